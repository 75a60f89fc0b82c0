"""A file descriptor of a terminal or pipe as a stream of bytes in asyncio."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress
from typing import Final

from minerva.console.backends.base import READ_SIZE, BackendError, why

GONE: Final = {errno.EIO, errno.ENXIO, errno.ENODEV, errno.EPIPE}
"""What the system says when a terminal's other side, or an adapter, is gone."""


class DescriptorStream:
    """Reads and writes a descriptor, which belongs to it from now on. One task reads, one writes.

    What has come stays in the system, but for one piece, until somebody reads: so a device with flow control
    is held up. A read that is cancelled loses nothing.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._watched = False
        self._closed = False
        self._ended = False
        self._failure: OSError | None = None
        self._arrived = b""

    async def read(self, limit: int = READ_SIZE) -> bytes:
        """Return the next bytes, at most ``limit``; ``b""`` when the other side is gone."""
        while not self._arrived:
            if self._closed:
                raise BackendError("it is closed")
            if self._failure is not None:
                raise BackendError(f"reading failed: {why(self._failure)}") from self._failure
            if self._ended:
                return b""
            await self._readable()
        data, self._arrived = self._arrived[:limit], self._arrived[limit:]
        return data

    async def write(self, data: bytes) -> None:
        """Write all of ``data``."""
        rest = memoryview(data)
        while rest:
            if self._closed:
                raise BackendError("it is closed")
            try:
                rest = rest[os.write(self.descriptor, rest) :]
            except BlockingIOError:
                await self._writable()
            except OSError as error:
                gone = "the other side is gone" if error.errno in GONE else why(error)
                raise BackendError(f"writing failed: {gone}") from error

    def detach(self) -> int | None:
        """Stop using the descriptor and return it, for its user to close; None if that has been done."""
        if self._closed:
            return None
        self._closed = True
        if self._watched:
            self._loop.remove_reader(self.descriptor)
        self._loop.remove_writer(self.descriptor)
        # Who still waits finds it closed.
        _wake(self._reader)
        _wake(self._writer)
        return self.descriptor

    def close(self) -> None:
        """Close the descriptor."""
        if (descriptor := self.detach()) is not None:
            with suppress(OSError):
                os.close(descriptor)

    async def _readable(self) -> None:
        self._reader = self._loop.create_future()
        if not self._watched:
            self._loop.add_reader(self.descriptor, self._has_come)
            self._watched = True
        await self._reader

    def _has_come(self) -> None:
        """Take what has come, once. Watching goes on until more comes before that has been read."""
        if not self._arrived and not self._ended and self._failure is None:
            try:
                self._arrived = os.read(self.descriptor, READ_SIZE)
                self._ended = not self._arrived
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in GONE:
                    self._ended = True
                else:
                    self._failure = error
            _wake(self._reader)
            if self._arrived:
                return
        self._loop.remove_reader(self.descriptor)
        self._watched = False

    async def _writable(self) -> None:
        self._writer = self._loop.create_future()
        self._loop.add_writer(self.descriptor, _wake, self._writer)
        try:
            await self._writer
        finally:
            if not self._closed:
                self._loop.remove_writer(self.descriptor)


def _wake(ready: asyncio.Future[None] | None) -> None:
    if ready is not None and not ready.done():
        ready.set_result(None)
