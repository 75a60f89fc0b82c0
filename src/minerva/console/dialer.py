"""Connections to devices that are in the ACP themselves, such as a BMC that is a node, go through the ACP."""

from __future__ import annotations

import asyncio
import os
import socket
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Final

from minerva.asa.sockets import AcpSocketError, acp_connect
from minerva.console.backends.base import SystemDialer

_UNIQUE_LOCAL: Final = IPv6Network("fc00::/7")


class AcpDialer(SystemDialer):
    """Makes TCP connections to addresses of the domain by the node's sockets, and all others as ever."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    async def stream(self, host: str, port: int) -> socket.socket:
        """Return a TCP socket that is connected. Raises OSError."""
        try:
            address = IPv6Address(host)
        except ValueError:
            return await super().stream(host, port)
        if address not in _UNIQUE_LOCAL:
            return await super().stream(host, port)
        try:
            sock = await asyncio.to_thread(self._ask, address, port)
        except AcpSocketError:
            # No node, or an address of somebody else's network.
            return await super().stream(host, port)
        try:
            await connected(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def _ask(self, address: IPv6Address, port: int) -> socket.socket:
        given = acp_connect(address, port, run_dir=self._run_dir)
        # Should the node end, TCP finds that out.
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
