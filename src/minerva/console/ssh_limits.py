"""What asyncssh does not limit: how much one peer may make us do, at either end of SSH.

asyncssh handles all that has come at once, and answers a peer that takes no answers: one that has logged in,
or a BMC, could hold up all consoles for seconds with a few thousand small requests, and have the answers fill
our memory. So what comes is handed to asyncssh in small pieces, between which others have their turn, and
nothing is read from a peer that does not read. For this a few methods of its connections are replaced, which
are no part of its interface: :func:`check_asyncssh` sees that they are there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import asyncssh
from asyncssh.auth_keys import SSHAuthorizedKeys
from asyncssh.connection import SSHConnection

from minerva.core.errors import UsageError

PIECE: Final = 4096
"""So many bytes are handled at once: hardly more than a hundred packets."""
KEX: Final = "-diffie-hellman-*,rsa*"
"""Without the ways to exchange keys that cost a server a tenth of a second and more for each stranger."""

_REPLACED: Final = {
    asyncssh.SSHServerConnection: (
        "data_received",
        "pause_writing",
        "resume_writing",
        "send_userauth_failure",
        "set_authorized_keys",
        "validate_public_key",
    ),
    asyncssh.SSHClientConnection: ("data_received", "pause_writing", "resume_writing"),
    SSHAuthorizedKeys: ("validate", "validate_x509"),
}


def check_asyncssh() -> None:
    """Raise UsageError if this is a version of asyncssh whose inside is not known."""
    missing = [
        f"{kind.__name__}.{name}"
        for kind, names in _REPLACED.items()
        for name in names
        if not callable(getattr(kind, name, None))
    ]
    if missing:
        raise UsageError(
            f"asyncssh {asyncssh.__version__} has another inside than those versions that are known here (it "
            f"lacks {', '.join(missing)}): install 2.21 to 2.24"
        )


def _nothing() -> None:
    """Call nobody."""


class Brake:
    """Hands what comes by one SSH connection on in pieces, as long as the peer takes what it is sent.

    ``on_room`` is called when the peer has taken enough to be sent more.
    """

    def __init__(self, connection: SSHConnection, on_room: Callable[[], None] = _nothing) -> None:
        self.full = False
        """Whether the peer has not taken what it was sent."""
        self._connection = connection
        self._on_room = on_room
        self._receive = connection.data_received
        self._waiting = bytearray()
        self._handle: asyncio.Handle | None = None
        connection.data_received = self._data_received  # type: ignore[method-assign]
        connection.pause_writing = self._pause_writing  # type: ignore[method-assign]
        connection.resume_writing = self._resume_writing  # type: ignore[method-assign]

    def _data_received(self, data: bytes, datatype: int | None = None) -> None:  # noqa: ARG002
        self._waiting += data
        if self._handle is None and not self.full:
            self._turn()
        self._read_on()

    def _turn(self) -> None:
        """Hand on one piece, and see to the rest later: at most half of the time is spent on one peer."""
        self._handle = None
        if self._transport is None:
            self._waiting.clear()
            return
        piece = bytes(self._waiting[:PIECE])
        del self._waiting[:PIECE]
        began = time.perf_counter()
        self._receive(piece)
        took = time.perf_counter() - began
        if self._waiting and not self.full:
            self._handle = asyncio.get_running_loop().call_later(took, self._turn)
        self._read_on()

    def _pause_writing(self) -> None:
        self.full = True
        self._read_on()

    def _resume_writing(self) -> None:
        self.full = False
        if self._waiting and self._handle is None:
            self._handle = asyncio.get_running_loop().call_soon(self._turn)
        self._read_on()
        self._on_room()

    @property
    def _transport(self) -> asyncio.Transport | None:
        transport = getattr(self._connection, "_transport", None)
        return transport if isinstance(transport, asyncio.Transport) else None

    def _read_on(self) -> None:
        """Read from the peer, or not: both may be said again."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            if self.full or self._waiting:
                transport.pause_reading()
            else:
                transport.resume_reading()
