"""Holds the host's guard table (``linux.firewall``), and outlives the supervisor.

The table belongs to this process's netlink socket: it survives ``nft flush ruleset``, and after a
``kill -9`` of the node it goes on protecting whatever is left until the next start has cleaned up.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from minerva.connect.child import Child
from minerva.connect.ipc import IpcError, Message
from minerva.connect.messages import GuardApply, GuardReady
from minerva.linux import process
from minerva.linux.errors import LinuxError
from minerva.linux.nftables import Nftables


class Guard(Child):
    """The guard process: applies one table when told so, gives up its privileges, and then only exists."""

    _give_up: ClassVar[Callable[[], None]]

    @classmethod
    def prepare(cls, uid: int, root: Path, parent: int) -> None:  # noqa: ARG003 -- it outlives its parent
        """Note what to give up; the kernel wants the privilege still when the table is applied."""
        cls._give_up = partial(process.drop_privileges, uid, root)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._nftables: Nftables | None = None

    def handle(self, message: Message, descriptors: list[int]) -> bool:  # noqa: ARG002
        if not isinstance(message, GuardApply) or self._nftables is not None:
            return False
        problem = None
        try:
            nftables = Nftables()
            nftables.run(message.commands)
            self._nftables = nftables
        except LinuxError as error:
            problem = str(error)
        type(self)._give_up()
        self.send(GuardReady(problem))
        if problem is not None:
            self.stop()  # to be tried again
        return True

    def state(self) -> dict[str, Any]:
        return {"table": "in place" if self._nftables is not None else "missing"}

    def _on_close(self, error: IpcError | None) -> None:  # noqa: ARG002
        if self._nftables is None:
            self.stop()
        # else: the supervisor died without a word. Stay, and keep the door shut, until the next one
        # has removed what it left, and us.
