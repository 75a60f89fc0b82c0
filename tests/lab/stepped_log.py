"""A node that goes on one line of its log at a time."""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

_SPLICE_F_NONBLOCK = 2
_PAGE = 4096

_libc = ctypes.CDLL(None, use_errno=True)


class SteppedLog:
    """A pipe with room for one line: a process that wants to write the next is held until this one is taken.

    Give ``writer`` to a node as its standard error.
    """

    def __init__(self) -> None:
        # Of packets, each of which takes up a page; and there is one page.
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK | os.O_DIRECT)
        fcntl.fcntl(self._reader, fcntl.F_SETPIPE_SZ, _PAGE)
        os.set_blocking(self.writer, True)
        self.taken: list[str] = []

    def has_come_to(self, words: str) -> bool:
        """Take lines as they come, up to the first with ``words`` in it; return whether that is there.

        That one is left where it is.
        """
        while line := self._peek():
            if words in line:
                return True
            self.taken.append(os.read(self._reader, _PAGE).decode().rstrip())
        return False

    def _peek(self) -> str:
        copy, into = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            size = _libc.tee(self._reader, into, _PAGE, _SPLICE_F_NONBLOCK)
            return os.read(copy, size).decode() if size > 0 else ""
        finally:
            os.close(copy)
            os.close(into)

    def close(self) -> None:
        """Close both ends."""
        os.close(self._reader)
        os.close(self.writer)


@contextmanager
def stepped_log() -> Iterator[SteppedLog]:
    """A log that is closed in the end."""
    log = SteppedLog()
    try:
        yield log
    finally:
        log.close()
