"""Unix sockets for the programs of this machine: for root, and for one group."""

from __future__ import annotations

import grp
import os
import socket
from pathlib import Path
from typing import Final

from minerva.core.errors import UsageError

GROUP: Final = "minerva"
"""Members of this group may use the sockets, besides root."""


def open_local_socket(path: Path, kind: socket.SocketKind, backlog: int) -> socket.socket:
    """Return a Unix socket that listens on ``path``. One left there before is replaced.

    It is for root and the group ``minerva``; where there is no such group, for root alone. Raises UsageError.
    """
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        # Nobody may connect between bind and chmod, not even with the widest umask.
        before = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        try:
            group = grp.getgrnam(GROUP).gr_gid
        except KeyError:
            pass
        else:
            os.chown(path, -1, group)
            path.chmod(0o660)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        hint = "; run this as root, or with another --run-dir" if isinstance(error, PermissionError) else ""
        raise UsageError(f"cannot make the socket {path}: {error.strerror or error}{hint}") from error
    return sock
