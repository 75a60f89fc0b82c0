"""The file of revoked keys: read whenever it is another one, and asked at each login and about each session.

If it cannot be read, or is no such list, nobody can log in with a key or certificate: that is how OpenSSH
has it, too. Sessions that there are go by the last list that could be read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import threading
from collections.abc import Callable
from typing import Final

from minerva.console.krl import Credential, DecodeError, RevokedKeys
from minerva.core.text import printable

log = logging.getLogger(__name__)

MAX_SIZE: Final = 16 << 20
"""Bytes of a file at most."""
LOOK_SECONDS: Final = 1.0
"""How often it is looked whether the file is another one, besides at each login."""


class Revoked:
    """The keys in the file ``path``, as :meth:`look` has found them; none, if it is empty."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.problem = f"the list of revoked keys {printable(path)} has not been read yet" if path else ""
        """Why the file cannot be used; empty if it can."""
        self._keys = RevokedKeys()
        self._seen: tuple[int, ...] | None = None
        self._looking = threading.Lock()

    def refuses(self, shown: Credential) -> str:
        """Return why nobody may log in by this; empty if it is good. :meth:`look` just before."""
        if self.problem:
            return f"keys are not taken: {self.problem}"
        return "the key or certificate is revoked" if shown in self._keys else ""

    def has(self, shown: Credential) -> bool:
        """Return whether what somebody has logged in by is revoked since."""
        return shown in self._keys

    def look(self) -> None:
        """Read the file, if it is another one. To be called in a thread: it may be large."""
        if self.path:
            with self._looking:
                self._look()

    def _look(self) -> None:
        try:
            # A pipe or a device would hold us up.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor
                status = os.fstat(descriptor)
                seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                if seen == self._seen:
                    return
                if not stat.S_ISREG(status.st_mode):
                    raise DecodeError("it is no file")
                data = file.read(MAX_SIZE + 1)
            if len(data) > MAX_SIZE:
                raise DecodeError(f"it has more than {MAX_SIZE >> 20} MiB")
            self._keys = RevokedKeys.decode(data)
        except OSError as error:
            seen, problem = None, error.strerror or str(error)
        except DecodeError as error:
            problem = str(error)
        else:
            problem = ""
            log.info("%s has %d entries of revoked keys", printable(self.path), self._keys.entries)
        self._seen = seen
        if problem:
            problem = f"the list of revoked keys {printable(self.path)} cannot be used: {printable(problem)}"
            if problem != self.problem:
                log.error("%s; nobody can log in with a key or certificate until it can", problem)
        self.problem = problem


async def watch(current: Callable[[], Revoked]) -> None:
    """Look for ever at the file that ``current`` returns, for those who have logged in."""
    while True:
        await asyncio.to_thread(current().look)
        await asyncio.sleep(LOOK_SECONDS)
