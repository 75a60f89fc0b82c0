"""Where fronts listen: on sockets of the ACP from the node, on the loopback, or on addresses.

What cannot be had now is asked for again, with back-off: a node that starts again has other sockets, and an
address may come later than this process. When other fronts are wanted, in other places, what is new is
opened before anything is given up; a front that moves away leaves those alone who came by its old socket;
and a socket that is to be another front's only changes hands, so two fronts may swap their ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

from minerva.asa.sockets import AcpSocketError, NoAcp, acp_listener
from minerva.console.backends.base import in_own_thread
from minerva.console.config import ACP, LOOPBACK
from minerva.core.backoff import Backoff
from minerva.core.errors import MinervaError
from minerva.core.text import printable

log = logging.getLogger(__name__)

FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 5.0
BACKLOG: Final = 128
_LOOPBACK_ADDRESSES: Final = ("127.0.0.1", "::1")
_AWAY: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class ListenError(MinervaError):
    """A socket cannot be opened: where, and why."""


class Connections:
    """The tasks that serve those who came by one socket."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, task: asyncio.Task[None]) -> None:
        """Take one more, until it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def ended(self) -> None:
        """Return when there are none."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """End them."""
        await _cancel(*self._tasks)


Serve: TypeAlias = Callable[[socket.socket, Connections], Awaitable[None]]
"""Serves those who connect to a listening socket, until it is cancelled. Those who are served then go on:
each is a task that it has added to the connections, whose owner ends them. The socket stays open."""


@dataclass(frozen=True, slots=True)
class Front:
    """What listens on one port."""

    what: str
    """Its name, such as ``ssh``: fronts of the same name are the same."""
    port: int
    serve: Serve
    settings: bytes = b""
    """A digest of those that ``serve`` goes by; where it is another one, those who come are served anew."""


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


@dataclass(frozen=True, slots=True)
class _Socket:
    """A listening socket; ``life`` becomes readable when it is of no more use."""

    sock: socket.socket
    address: str
    life: socket.socket | None = None

    def close(self) -> None:
        self.sock.close()
        if self.life is not None:
            self.life.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_Key: TypeAlias = tuple[str, int]
Opened: TypeAlias = Mapping[_Key, _Socket]


class Listeners:
    """Keeps the fronts listening that :meth:`use` was told. ``run_dir`` is that of the node."""

    def __init__(self, run_dir: Path | None = None) -> None:
        self._run_dir = run_dir
        self._keepers: dict[_Key, _Keeper] = {}
        self._retired: set[_Keeper] = set()

    @property
    def places(self) -> list[Place]:
        """Where somebody listens, or should."""
        return [keeper.place for keeper in self._keepers.values()]

    async def open(self, where: Sequence[str], ports: Iterable[int]) -> Opened:
        """Open at ``where`` (``acp``, ``loopback``, addresses) the ports that are not there yet.

        It is for :meth:`use`. What is away, and not only now, is left out: the ACP if there is no node, an
        address that this machine has lost, one of the loopback's. Raises ListenError.
        """
        opened: dict[_Key, _Socket] = {}
        known = {*_LOOPBACK_ADDRESSES, *(where for where, _ in self._keepers)}
        try:
            for key in _keys(where, ports):
                if key not in self._keepers:
                    try:
                        opened[key] = await self._open(*key)
                    except NoAcp:
                        continue
                    except (AcpSocketError, OSError) as error:
                        if getattr(error, "errno", None) in _AWAY and key[0] in known:
                            continue
                        why = (isinstance(error, OSError) and error.strerror) or str(error)
                        raise ListenError(f"cannot listen on {key[0]} port {key[1]}: {why}") from error
        except BaseException:
            discard(opened)
            raise
        return opened

    async def use(self, where: Sequence[str], fronts: Iterable[Front], opened: Opened) -> None:
        """Have these fronts listen at ``where``, and no others; takes the sockets that were opened for it."""
        by_port = {front.port: front for front in fronts}
        wanted = _keys(where, by_port)
        gone = [self._keepers.pop(key) for key in self._keepers.keys() - wanted.keys()]
        changes = []
        for key in wanted:
            front = by_port[key[1]]
            if (keeper := self._keepers.get(key)) is not None:
                changes.append(keeper.use(front))
            else:
                self._keepers[key] = _Keeper(key[0], front, self._open, opened.get(key))
        for keeper in gone:
            self._retired.add(keeper)
            keeper.task.add_done_callback(partial(self._gone, keeper))
            changes.append(keeper.retire())
        await asyncio.gather(*changes)

    async def close(self) -> None:
        """Listen no more, and end those who are served, also those whose front has moved away since."""
        keepers = [*self._keepers.values(), *self._retired]
        self._keepers.clear()
        await _cancel(*(keeper.task for keeper in keepers))

    def _gone(self, keeper: _Keeper, _: object) -> None:
        self._retired.discard(keeper)

    async def _open(self, where: str, port: int) -> _Socket:
        """Return a socket. Raises AcpSocketError, OSError."""
        if where == ACP:
            # The node may not answer for a while; what comes when nobody waits for it any more is closed.
            given = await in_own_thread(
                lambda: acp_listener(port, run_dir=self._run_dir), lambda given: given.close()
            )
            given.life.setblocking(False)
            return _Socket(given.sock, str(given.address), given.life)
        own = [keeper.sock for key, keeper in self._keepers.items() if key[1] == port and key[0] != ACP]
        return _Socket(_listener(where, port, [sock for sock in own if sock is not None]), where)


def discard(opened: Opened) -> None:
    """Close what was opened and is not used."""
    for one in opened.values():
        one.close()


class _Keeper:
    """Has one socket for as long as it is wanted, and then lets those go on who came by it."""

    def __init__(
        self,
        where: str,
        front: Front,
        open_socket: Callable[[str, int], Awaitable[_Socket]],
        first: _Socket | None,
    ) -> None:
        self.place = Place(front.what, where, front.port)
        self.sock: socket.socket | None = None
        self._front: Front | None = front
        self._open = open_socket
        self._first = first
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()
        self._shut = asyncio.Event()
        if first is not None:
            self._listens(first)
        loop = asyncio.get_running_loop()
        self.task = loop.create_task(self._run(), name=f"listen {front.what} {front.port}")
        self.task.add_done_callback(self._ended)

    async def use(self, front: Front) -> None:
        """Let another front have the socket, if it is another one; return when that has it."""
        before = self._front
        if before is None or (before.what, before.settings) != (front.what, front.settings):
            self._front = front
            self.place.what = front.what
            self._settled.clear()
            self._changed.set()
            if self.sock is not None:
                await self._settled.wait()

    async def retire(self) -> None:
        """Listen no more; return when that is so. Those who are served are not disturbed."""
        self._front = None
        self._changed.set()
        if self.sock is None:
            self.task.cancel()
        await self._shut.wait()

    # -- inside

    def _listens(self, given: _Socket) -> None:
        place = self.place
        self.sock = given.sock
        place.address, place.problem = given.address, ""
        log.info("%s listens on %s port %d", place.what, given.address, place.port)

    def _ended(self, _: object) -> None:
        self._shut.set()
        self._settled.set()
        if self._first is not None:
            self._first.close()

    async def _run(self) -> None:
        backoff = Backoff(FIRST_DELAY, LONGEST_DELAY)
        place = self.place
        while self._front is not None:
            try:
                problem = await self._listen()
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
            place.address = self.sock = None
            if self._front is None:
                return
            if problem != place.problem:
                log.warning(
                    "%s does not listen on %s port %d: %s; it is tried again",
                    *(place.what, place.where, place.port, printable(problem)),
                )
            place.problem = problem
            await asyncio.sleep(backoff.failed())

    async def _listen(self) -> str:
        """Have one socket until it is of no more use; return why. Raises MinervaError, OSError."""
        given, self._first = self._first, None
        if given is None:
            given = await self._open(self.place.where, self.place.port)
            self._listens(given)
        connections = Connections()
        gone = asyncio.ensure_future(_ended(given.life))
        try:
            while self._front is not None:
                if (problem := await self._serve(self._front, given.sock, connections, gone)) is not None:
                    return problem
            given.sock.close()
            self.sock = None
            self._shut.set()
            staying = asyncio.ensure_future(connections.ended())
            try:
                await asyncio.wait((staying, gone), return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _cancel(staying)
            return ""
        finally:
            given.close()
            self._settled.set()
            await _cancel(gone)
            await connections.close()

    async def _serve(
        self, front: Front, sock: socket.socket, connections: Connections, gone: asyncio.Future[None]
    ) -> str | None:
        """Serve until another front is wanted, or with a reason, until that cannot go on."""
        self._changed.clear()
        changed = asyncio.ensure_future(self._changed.wait())
        serving = asyncio.ensure_future(front.serve(sock, connections))
        self._settled.set()
        try:
            await asyncio.wait((changed, serving, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = serving.done()
            await _cancel(changed, serving)
        if ended and not serving.cancelled() and (error := serving.exception()) is not None:
            raise error
        if gone.done():
            return "the node has ended"
        return "it has ended" if ended else None


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _ended(life: socket.socket | None) -> None:
    """Return when the node has given up the socket that it gave together with ``life``."""
    if life is None:
        await asyncio.Event().wait()
        return
    with contextlib.suppress(OSError):
        await asyncio.get_running_loop().sock_recv(life, 1)


def _keys(where: Sequence[str], ports: Iterable[int]) -> dict[_Key, None]:
    """Return all sockets that are to be there, in order."""
    addresses = [
        address
        for place in dict.fromkeys(where)
        for address in (_LOOPBACK_ADDRESSES if place == LOOPBACK else (place,))
    ]
    return {(address, port): None for port in ports for address in addresses}


def _listener(address: str, port: int, own: Sequence[socket.socket]) -> socket.socket:
    """Return a listening socket; ``own`` are those of ours on this port that may be in its way.

    All addresses can then be listened on while one of them still is. Only sockets that all have the option
    and belong to one user share a port. Raises OSError.
    """
    version = ip_address(address).version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        for each in (sock, *own) if own else ():
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
