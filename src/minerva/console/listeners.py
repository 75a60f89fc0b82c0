"""Where fronts listen: on sockets of the ACP from the node, on the loopback, or on addresses.

What cannot be had now is asked for again, with back-off: a node that starts again has other sockets, and an
address may come later than this process. Who serves a socket is told nothing of that; it is cancelled when
its socket is of no more use, and called again with the next one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final, TypeAlias

from minerva.asa.sockets import acp_listener
from minerva.console.config import ACP, LOOPBACK
from minerva.core.backoff import Backoff
from minerva.core.errors import MinervaError
from minerva.core.text import printable

log = logging.getLogger(__name__)

FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 5.0
BACKLOG: Final = 128
_LOOPBACK_ADDRESSES: Final = ("127.0.0.1", "::1")

Serve: TypeAlias = Callable[[socket.socket], Awaitable[None]]
"""Serves those who connect to a listening socket, until it is cancelled."""


@dataclass(slots=True)
class Place:
    """One socket that is to be there: for ``minerva console status``."""

    what: str
    """Whose it is, such as ``ssh``."""
    where: str
    """As in the configuration."""
    port: int
    address: str | None = None
    """Where it listens; None while it does not."""
    problem: str = ""


class Listening:
    """One front that listens on one port at all places; ends with :meth:`close`."""

    def __init__(self, places: Sequence[Place], tasks: Sequence[asyncio.Task[None]]) -> None:
        self.places = tuple(places)
        self._tasks = tuple(tasks)

    async def close(self) -> None:
        """Listen no more, and end those who are served."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Listeners:
    """Opens ports at ``where`` (``acp``, ``loopback``, addresses); ``run_dir`` is that of the node."""

    def __init__(self, where: Sequence[str], run_dir: Path | None = None) -> None:
        self._where = [
            address
            for place in dict.fromkeys(where)
            for address in (_LOOPBACK_ADDRESSES if place == LOOPBACK else (place,))
        ]
        self._run_dir = run_dir

    def listen(self, what: str, port: int, serve: Serve) -> Listening:
        """Begin to listen; ``serve`` is run for each socket, as often as there is another one."""
        places = [Place(what, where, port) for where in self._where]
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._keep(place, serve), name=f"listen {what} {port}") for place in places]
        return Listening(places, tasks)

    async def _keep(self, place: Place, serve: Serve) -> None:
        backoff = Backoff(FIRST_DELAY, LONGEST_DELAY)
        while True:
            try:
                if place.where == ACP:
                    await self._serve_acp(place, serve)
                    problem = "the node has ended"
                else:
                    problem = await self._serve_here(place, serve)
            except MinervaError as error:
                problem = str(error)
            except OSError as error:
                problem = error.strerror or str(error)
            except Exception as error:
                # A mistake of ours in one front must not end it for ever, nor be hidden.
                log.error("%s at %s: internal error", place.what, place.where, exc_info=error)
                problem = f"internal error: {type(error).__name__}"
            if place.address is not None:
                backoff.reset()
            place.address = None
            if problem != place.problem:
                log.warning(
                    "%s does not listen on %s port %d: %s; it is tried again",
                    *(place.what, place.where, place.port, printable(problem)),
                )
            place.problem = problem
            await asyncio.sleep(backoff.failed())

    async def _serve_acp(self, place: Place, serve: Serve) -> None:
        """Serve a socket of the ACP until the node has no more use for it. Raises AcpSocketError."""
        loop = asyncio.get_running_loop()
        given = await asyncio.to_thread(acp_listener, place.port, run_dir=self._run_dir)
        with given:
            given.life.setblocking(False)
            gone = loop.create_task(_ended(given.life))
            try:
                self._listens(place, str(given.address))
                await _until(gone, serve, given.sock)
            finally:
                gone.cancel()
                await asyncio.gather(gone, return_exceptions=True)

    async def _serve_here(self, place: Place, serve: Serve) -> str:
        version = ip_address(place.where).version
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setblocking(False)
            sock.bind((place.where, place.port))
            sock.listen(BACKLOG)
            self._listens(place, place.where)
            await serve(sock)
        return "it has ended"

    def _listens(self, place: Place, address: str) -> None:
        place.address, place.problem = address, ""
        log.info("%s listens on %s port %d", place.what, address, place.port)


async def _ended(life: socket.socket) -> None:
    """Return when the node has given up the socket that it gave together with ``life``."""
    with suppress(OSError):
        await asyncio.get_running_loop().sock_recv(life, 1)


async def _until(gone: asyncio.Task[None], serve: Serve, sock: socket.socket) -> None:
    """Serve ``sock`` until ``gone`` is done, or serving ends by itself."""
    serving = asyncio.ensure_future(serve(sock))
    try:
        await asyncio.wait((serving, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended = serving.done()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    if ended and not serving.cancelled() and (error := serving.exception()) is not None:
        raise error
