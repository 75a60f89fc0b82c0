"""Connections to devices that are in the ACP themselves, such as a BMC that is a node, go through the ACP."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path

from minerva.asa.sockets import AcpSocket, AcpSocketError, acp_connect, acp_datagram
from minerva.console.backends.base import SystemDialer, in_own_thread
from minerva.core.addresses import UNIQUE_LOCAL


class AcpDialer(SystemDialer):
    """Connects to addresses of the domain by the node's sockets, and to all others as ever."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    async def stream(self, host: str, port: int) -> socket.socket:
        """Return a TCP socket that is connected. Raises OSError."""
        sock = await self._given(acp_connect, host, port)
        if sock is None:
            return await super().stream(host, port)
        try:
            await connected(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    async def datagram(self, host: str, port: int) -> socket.socket:
        """Return a UDP socket that is connected. Raises OSError."""
        sock = await self._given(acp_datagram, host, port)
        return await super().datagram(host, port) if sock is None else sock

    async def _given(self, ask: Callable[..., AcpSocket], host: str, port: int) -> socket.socket | None:
        """Return a socket of the ACP; None if the host is not in it, as far as can be known."""
        try:
            address = IPv6Address(host)
        except ValueError:
            return None
        if address not in UNIQUE_LOCAL:
            return None
        try:
            given = await in_own_thread(partial(ask, address, port, run_dir=self._run_dir), AcpSocket.close)
        except AcpSocketError:
            # No node, or an address of somebody else's network.
            return None
        # Should the node end, TCP finds that out, and so does who asks over UDP.
        given.life.close()
        return given.sock


async def connected(sock: socket.socket) -> None:
    """Wait until a socket that is being connected is. Raises OSError."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    sock.setblocking(False)

    def ready() -> None:
        if not done.done():
            done.set_result(None)

    loop.add_writer(sock, ready)
    try:
        await done
    finally:
        loop.remove_writer(sock)
    if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(code, os.strerror(code))
