"""The zygote: forked by the supervisor before any key or socket exists, it forks all children.

So no child ever had in its memory what is not its own, also after a restart, and all share the memory of
what was imported.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import sys
from pathlib import Path

from minerva.connect import child, log
from minerva.connect.abutment import Abutment
from minerva.connect.data_plane import DataPlane
from minerva.connect.guard import Guard
from minerva.connect.ipc import MAX_DESCRIPTORS, MAX_PACKET, IpcError, decode, encode, socket_pair
from minerva.connect.messages import Exited, Fork, Forked
from minerva.connect.plane import Plane
from minerva.connect.pledge import Pledge
from minerva.connect.signer import Signer
from minerva.linux import namespace, process

ROLES: dict[str, tuple[type[child.Child], int]] = {
    "signer": (Signer, 65510),
    "abutment": (Abutment, 65511),
    "data-plane": (DataPlane, 65512),
    "plane": (Plane, 65513),
    "guard": (Guard, 65514),
    "pledge": (Pledge, 65515),
}
"""What each child runs and as which user and group. The numbers are in systemd's range of dynamic users,
which no distribution gives to anybody; each child has its own, so that none can touch another."""

_IMPORTED_LATE = ("cryptography.hazmat.backends.openssl", "encodings.idna", "traceback", "linecache")
"""What libraries import only when they need it: by then children have no file system to import from."""


def start(empty_root: Path) -> tuple[int, socket.socket]:
    """Fork the zygote; return its process id and our end of the connection to it.

    ``empty_root`` is a directory that will be all that children see of the file system.
    """
    for module in _IMPORTED_LATE:
        importlib.import_module(module)
    ours, theirs = socket_pair()
    supervisor = os.getpid()
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            ours.close()
            process.die_with_parent(supervisor)
            process.set_name("minerva-zygote")
            log.rename("zygote")
            # No terminal to push characters into, nothing that whoever started us left open.
            os.setsid()
            process.close_inherited(keep=theirs.fileno())
            # ^C goes to the whole foreground group; the supervisor ends us in order.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            _serve(theirs, empty_root)
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    return pid, ours


def _serve(sock: socket.socket, empty_root: Path) -> None:
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        readable, _, _ = select.select([sock.fileno(), wake_read], [], [])
        if wake_read in readable:
            os.read(wake_read, 4096)
            _reap(sock)
        if sock.fileno() in readable:
            data, descriptors, _, _ = socket.recv_fds(
                sock, MAX_PACKET, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
            if not data:
                return
            request = decode(data)
            if not isinstance(request, Fork) or len(descriptors) not in (1, 2):
                raise IpcError(f"the zygote got a {type(request).__name__}")
            zygote = os.getpid()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for inherited in (wake_read, wake_write):
                    os.close(inherited)
                sock.close()
                _become(request, descriptors, empty_root, zygote)
            for descriptor in descriptors:
                os.close(descriptor)
            sock.send(encode(Forked(request.name, pid)))


def _reap(sock: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        sock.send(encode(Exited(pid, os.waitstatus_to_exitcode(status))))


def _become(request: Fork, descriptors: list[int], empty_root: Path, zygote: int) -> None:
    """Turn this process, just forked, into the child ``request.role``, for good."""
    status = 70
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        make, uid = ROLES[request.role]
        process.set_name(f"mnv-{request.role}")
        log.rename(request.name)
        if len(descriptors) == 2:
            namespace.enter(descriptors[1])
            os.close(descriptors[1])
        else:
            namespace.unshare(namespace.CLONE_NEWNET)
        sock = socket.socket(fileno=descriptors[0])
        make.prepare(uid, empty_root, zygote)
        child.run(make, sock)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        sys.stderr.flush()
        os._exit(status)
