"""What all children of the supervisor have in common."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minerva.connect.ipc import VERSION, Ipc, IpcError, Message
from minerva.connect.messages import Ready, Shutdown, StatusReply, StatusRequest
from minerva.linux import process

log = logging.getLogger(__name__)

_NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Child:
    """An unprivileged process with one connection, to its supervisor.

    A subclass handles its messages in :meth:`handle` and tells its state in :meth:`state`.
    """

    @classmethod
    def prepare(cls, uid: int, root: Path, parent: int) -> None:
        """Give up all privileges, before anything else; die with the process ``parent``."""
        process.drop_privileges(uid, root)
        process.die_with_parent(parent)

    new_loop: Callable[[], asyncio.AbstractEventLoop] = staticmethod(asyncio.new_event_loop)
    """Makes the event loop in which a child of this kind runs."""

    def __init__(self, sock: socket.socket) -> None:
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ipc = Ipc(sock, self._on_message, self._on_close)

    def send(self, message: Message, descriptors: tuple[int, ...] = ()) -> None:
        """Send ``message`` to the supervisor."""
        self._ipc.send(message, descriptors)

    def _on_message(self, message: Message, descriptors: list[int]) -> None:
        if isinstance(message, StatusRequest):
            self._tell_state(message.request)
        elif isinstance(message, Shutdown):
            self.shutdown()
        elif not self.handle(message, descriptors):
            raise IpcError(f"{type(self).__name__} got a {type(message).__name__}")

    def _tell_state(self, request: int) -> None:
        try:
            self.send(StatusReply(request, self.state()))
        except IpcError as error:  # of a network that is larger than any status
            log.error("the state cannot be told: %s", error)
            self.send(StatusReply(request, {}))

    def _on_close(self, error: IpcError | None) -> None:
        if error is not None:
            log.error("the supervisor sent nonsense: %s", error)
        self.stop()

    def stop(self) -> None:
        """End this process."""
        if not self.finished.done():
            self.finished.set_result(None)

    def handle(self, message: Message, descriptors: list[int]) -> bool:
        """Act on ``message``, owning ``descriptors``; return whether it is one for this child."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return the state for ``minerva status``."""
        raise NotImplementedError

    def shutdown(self) -> None:
        """Say goodbye to peers and end."""
        self.stop()


def run(make: type[Child], sock: socket.socket) -> None:
    """Run a child of the kind ``make`` until its supervisor ends or says so."""

    async def main() -> None:
        child = make(sock)
        child.send(Ready(VERSION))
        await child.finished

    loop = make.new_loop()
    # An exception nobody caught is a bug: end, be restarted in a known state, and be seen.
    loop.set_exception_handler(_crash)
    loop.run_until_complete(main())
    loop.close()


def _crash(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if "socket" in context and isinstance(error, OSError) and error.errno in _NO_RESOURCES:
        # Of accepting a connection, which asyncio tries again in a second. The whole machine may be short.
        log.error("%s: %s", context["message"], error.strerror)
        return
    log.critical("%s", context["message"], exc_info=context.get("exception"))
    os._exit(70)
