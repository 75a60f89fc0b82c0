"""The join proxy of a node (RFC 8995 section 4): pledges on its links get through to a registrar in the ACP.

It is part of the abutment, which meets the pledges. It knows registrars by what the plane has heard in the
ACP, and reaches them by TCP sockets that the supervisor makes in the ACP namespace: these are connected from
the node's own address, and the kernel lets them go to registrars only. What is said on a connection is
nobody's business here, not even whether it is TLS.

For each variation (what registrars can do, as a text that is passed on as it is) there is a TCP port, the
same on all links. It is announced by AN_Proxy, listened to, and let through the link's firewall while a
registrar of that variation is usable; otherwise a scan finds nothing there.

The limits are in this module's constants: one who opens connections without end, or leaves them idle, is in
his own way before he is in that of others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from random import Random
from typing import Any, Final

from minerva.connect import messages as m
from minerva.connect.budget import TimeBudget
from minerva.connect.circuit import Circuit, End, reset
from minerva.connect.ipc import Message
from minerva.connect.messages import Registrar
from minerva.connect.registrar_choice import RegistrarChoice
from minerva.connect.registrar_watch import DEFAULT_VARIATION
from minerva.core.rate import TokenBucket
from minerva.core.text import printable
from minerva.grasp.announcement import Announcement
from minerva.grasp.constants import AN_PROXY, TransportProto

log = logging.getLogger(__name__)

PROXY_PORTS: Final = (4443, 4444, 4445, 4446)
"""The TCP ports, one for each variation; the first is that of RFC 8995's example and of its protocol."""

MAX_PER_PEER, MAX_PER_LINK, MAX_PER_NODE = 4, 32, 128
"""How many connections one link-local address, one link and all links together may have. A pledge needs one
or two; of more than its share its least active one gives way."""

GIVE_WAY_SECONDS = 5.0
"""How long a connection must have been silent to give way to another peer's when the link has its share."""

ACCEPTS_PER_SECOND, ACCEPT_BURST, ACCEPTS_AT_ONCE = 20, 40, 4
"""How many connections are accepted on a link in a second, in a burst, and before others have their turn."""

BYTES_PER_SECOND: Final = 1 << 20
"""How much strangers on one link, and those who answer them, may send across the ACP: it is there to manage
the network, not for them. An enrolment takes some tens of kilobytes."""

LEAST_PIECE: Final = 512
"""A piece of fewer bytes counts like this many: it costs the process as much."""

CONNECT_SECONDS = 4.0
"""How long a registrar may take to accept a connection before the next one is tried."""

CONNECT_ALL_SECONDS = 20.0
"""How long all of them may take together for one pledge."""

_ASK_AGAIN_SECONDS = 10.0
_NO_DESCRIPTORS_PAUSE = 1.0
_LOGGED_PER_SECOND, _LOGGED_BURST = 2, 30


class _NotConnected(Exception):
    """A registrar cannot be connected to, for a reason that people can read."""


@dataclass
class _Link:
    """A port of this node, for strangers."""

    number: int
    name: str
    listeners: dict[int, socket.socket] = field(default_factory=dict)  # by TCP port
    asked: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())  # of the supervisor
    opened: frozenset[int] = frozenset()  # what it has opened
    offered: dict[int, str] = field(default_factory=dict)  # what is announced: TCP port, variation
    circuits: list[Circuit] = field(default_factory=list)
    accepts: TokenBucket = field(default_factory=lambda: TokenBucket(ACCEPT_BURST, 1 / ACCEPTS_PER_SECOND))
    budget: TimeBudget = field(default_factory=lambda: TimeBudget(1.0))
    resting: dict[int, asyncio.TimerHandle] = field(default_factory=dict)


class JoinProxy:
    """The proxy on all links.

    ``send(message)`` tells the supervisor; ``announce(port, announcements)`` sets what is announced on a link
    besides the ACP itself.
    """

    def __init__(
        self,
        send: Callable[[Message], None],
        announce: Callable[[int, Sequence[Announcement]], None],
        *,
        random: Random,
    ) -> None:
        self._send = send
        self._announce = announce
        self._choice = RegistrarChoice(random)
        self._links: dict[int, _Link] = {}
        self._ports: dict[str, int] = {}  # TCP port of each variation
        self._requests: dict[int, asyncio.Future[socket.socket]] = {}
        self._last_request = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: dict[Circuit, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._logged = TokenBucket(_LOGGED_BURST, 1 / _LOGGED_PER_SECOND)
        self.counters: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()

    # --- what others tell --------------------------------------------------------------------------------

    def registrars(self, registrars: Sequence[Registrar]) -> None:
        """Know these registrars, and no others."""
        self._choice.update(registrars)
        variations = self._choice.variations()
        if not variations and self._ports:
            log.info("no registrar announces itself any more")
        self._ports = {known: port for known, port in self._ports.items() if known in variations}
        free = [port for port in PROXY_PORTS if port not in self._ports.values()]
        # The first port is kept for what every registrar and every pledge must be able to do.
        if DEFAULT_VARIATION in variations:
            self._ports.setdefault(DEFAULT_VARIATION, PROXY_PORTS[0])
        others = [port for port in free if port != PROXY_PORTS[0]]
        for variation in variations:
            if variation not in self._ports and others:
                self._ports[variation] = others.pop(0)
        self._follow()

    def port_up(self, number: int, name: str) -> None:
        """A port is there: offer on it what is offered."""
        self.port_down(number)
        self._links[number] = _Link(number, name)
        self._follow()

    def port_down(self, number: int) -> None:
        """A port is gone, and with it all who were connected by it."""
        link = self._links.pop(number, None)
        if link is None:
            return
        self._stop_listening(link, tuple(link.listeners))
        for circuit in list(link.circuits):
            circuit.end(End.PORT_DOWN)

    def opened(self, message: m.ProxyOpened, descriptors: Sequence[int]) -> None:
        """The supervisor has opened TCP ports, and made sockets to listen on them."""
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        link = self._links.get(message.port)
        for port, sock in zip(message.connect, sockets, strict=False):
            if link is not None and port not in link.listeners:
                link.listeners[port] = sock
        if link is not None:
            link.opened = frozenset(message.connect)
            if set(link.asked[0]) - link.opened:
                self._loop.call_later(_ASK_AGAIN_SECONDS, self._ask_again, link)
        for sock in sockets:
            if link is None or sock not in link.listeners.values():
                sock.close()
        self._follow()

    def _ask_again(self, link: _Link) -> None:
        if self._links.get(link.number) is link:
            link.asked = ((), ())
            self._follow()

    def connecting(self, request: int, descriptor: int) -> None:
        """A socket to a registrar is there, still about to be connected."""
        sock = socket.socket(fileno=descriptor)
        future = self._requests.pop(request, None)
        if future is None or future.done():
            sock.close()
        else:
            future.set_result(sock)

    def not_connecting(self, request: int, reason: str) -> None:
        """The supervisor could not make a socket, or did not want to."""
        future = self._requests.pop(request, None)
        if future is not None and not future.done():
            future.set_exception(_NotConnected(reason))

    def close(self) -> None:
        """End everything."""
        for number in list(self._links):
            self.port_down(number)
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    # --- what is offered ---------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Offer what can be offered, and try in the background what may be offered next."""
        now = self._loop.time()
        wanted = {
            self._ports[variation]: variation
            for variation in self._choice.offered(now)
            if variation in self._ports
        }
        for link in self._links.values():
            self._offer(link, wanted)
        if self._links:
            for registrar in self._choice.probes(now):
                self._run(self._probe(registrar))
        if self._timer is not None:
            self._timer.cancel()
        when = self._choice.next_timer() if self._links else None
        self._timer = None if when is None else self._loop.call_at(when, self._follow)

    def _offer(self, link: _Link, wanted: dict[int, str]) -> None:
        # First nothing is announced, then nobody let in; and the other way round when there is more.
        ready = {port: variation for port, variation in wanted.items() if port in link.opened}
        if ready != link.offered:
            self._stop_listening(link, [port for port in link.offered if port not in ready])
            for port in ready:
                if port not in link.offered:
                    link.listeners[port].listen(ACCEPT_BURST)
                    self._listen(link, port)
            link.offered = ready
            self._announce(
                link.number,
                [
                    Announcement(AN_PROXY, variation, TransportProto.IPPROTO_TCP, port)
                    for port, variation in sorted(ready.items())
                ],
            )
            shown = ", ".join(
                f"TCP port {port}{f' for {printable(variation)}' if variation else ''}"
                for port, variation in sorted(ready.items())
            )
            log.info("join proxy on port %s: %s", link.name, shown or "nothing is offered any more")
        connect = tuple(sorted(wanted))
        circuits = tuple(sorted({circuit.tcp_port for circuit in link.circuits}))
        if (connect, circuits) != link.asked:
            link.asked = (connect, circuits)
            link.opened &= frozenset(connect)
            self._send(m.ProxyOpen(link.number, connect, circuits))

    def _stop_listening(self, link: _Link, ports: Sequence[int]) -> None:
        for port in ports:
            if (handle := link.resting.pop(port, None)) is not None:
                handle.cancel()
            sock = link.listeners.pop(port)
            self._loop.remove_reader(sock)
            sock.close()

    # --- pledges -----------------------------------------------------------------------------------------

    def _listen(self, link: _Link, port: int) -> None:
        link.resting.pop(port, None)
        self._loop.add_reader(link.listeners[port], self._accept, link, port)

    def _pause(self, link: _Link, port: int, seconds: float) -> None:
        self._loop.remove_reader(link.listeners[port])
        link.resting[port] = self._loop.call_later(seconds, self._listen, link, port)

    def _accept(self, link: _Link, port: int) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            if not link.accepts.take(self._loop.time()):
                self._pause(link, port, 1 / ACCEPTS_PER_SECOND)
                return
            try:
                sock, (host, *_) = link.listeners[port].accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # the loop would call this again at once, and again
                log.error("join proxy on port %s: accept: %s", link.name, error.strerror)
                self._pause(link, port, _NO_DESCRIPTORS_PAUSE)
                return
            peer = IPv6Address(host.partition("%")[0])
            if not peer.is_link_local:  # the firewall has let none in; proximity rests on that (section 3)
                self._refuse(sock, peer, link, "not link-local")
                continue
            self.admit(link.number, port, sock, peer)

    def admit(self, number: int, port: int, sock: socket.socket, peer: IPv6Address) -> None:
        """Connect ``peer``, who has connected to a TCP port on a link, with a registrar, if there is room."""
        link = self._links[number]
        sock.setblocking(False)
        if (reason := self._make_room(link, peer)) is not None:
            self._refuse(sock, peer, link, reason)
            return
        self.counters["accepted"] += 1
        circuit = Circuit(
            sock,
            peer,
            port,
            spend=lambda size: link.budget.spent(
                max(size, LEAST_PIECE) / BYTES_PER_SECOND, self._loop.time()
            ),
            on_end=lambda circuit, how: self._ended(link, circuit, how),
        )
        link.circuits.append(circuit)
        self._serving[circuit] = self._run(
            self._serve(link, circuit, link.offered.get(port, DEFAULT_VARIATION))
        )

    def _make_room(self, link: _Link, peer: IPv6Address) -> str | None:
        """Return why ``peer`` may not have one more connection; else one gives way where that is needed."""
        own = [circuit for circuit in link.circuits if circuit.peer == peer]
        if len(own) >= MAX_PER_PEER:
            min(own, key=lambda circuit: circuit.touched).end(End.GAVE_WAY)
        if len(link.circuits) >= MAX_PER_LINK or len(self._serving) >= MAX_PER_NODE:
            quiet = min(link.circuits, key=lambda circuit: (circuit.answered, circuit.touched), default=None)
            if quiet is None or self._loop.time() - quiet.touched < GIVE_WAY_SECONDS:
                return "too many connections"
            quiet.end(End.GAVE_WAY)
        return None

    def _refuse(self, sock: socket.socket, peer: IPv6Address, link: _Link, reason: str) -> None:
        self.refused[reason] += 1
        self._log("join proxy on port %s: %s is refused: %s", link.name, peer, reason)
        reset(sock)

    def _log(self, text: str, *arguments: object) -> None:
        """Tell of what strangers do, as long as that is not too much."""
        enough = not self._logged.take(self._loop.time())
        log.log(logging.DEBUG if enough else logging.INFO, text, *arguments)

    async def _serve(self, link: _Link, circuit: Circuit, variation: str) -> None:
        deadline = self._loop.time() + CONNECT_ALL_SECONDS
        for registrar in self._choice.candidates(variation, self._loop.time()):
            if self._loop.time() >= deadline:
                break
            try:
                sock = await self._connect(registrar, CONNECT_SECONDS)
            except _NotConnected as error:
                self._failed(registrar, str(error), probe=False)
                continue
            self._succeeded(registrar, probe=False)
            circuit.start(sock, registrar)
            where = _named(registrar)
            self._log("join proxy on port %s: %s talks to the registrar %s", link.name, circuit.peer, where)
            return
        circuit.end(End.NO_REGISTRAR)

    def _ended(self, link: _Link, circuit: Circuit, how: End) -> None:
        task = self._serving.pop(circuit)
        if how is not End.NO_REGISTRAR:  # which the task itself has said
            task.cancel()
        link.circuits.remove(circuit)
        self.ended[how.value] += 1
        self.counters["bytes_up"] += circuit.bytes_up
        self.counters["bytes_down"] += circuit.bytes_down
        self._log(
            "join proxy on port %s: %s has ended: %s; %d bytes up, %d down, %.1f s",
            link.name,
            circuit.peer,
            how.value,
            circuit.bytes_up,
            circuit.bytes_down,
            self._loop.time() - circuit.began,
        )
        if self._links.get(link.number) is link and not any(
            other.tcp_port == circuit.tcp_port for other in link.circuits
        ):
            self._loop.call_soon(self._follow)

    # --- registrars --------------------------------------------------------------------------------------

    async def _probe(self, registrar: Registrar) -> None:
        try:
            sock = await self._connect(registrar, self._choice.patience(registrar))
        except _NotConnected as error:
            self._failed(registrar, str(error), probe=True)
        else:
            sock.close()
            self._succeeded(registrar, probe=True)

    def _succeeded(self, registrar: Registrar, *, probe: bool) -> None:
        if self._choice.succeeded(registrar, self._loop.time(), probe=probe):
            log.info("the registrar %s can be reached", _named(registrar))
        self._follow()

    def _failed(self, registrar: Registrar, reason: str, *, probe: bool) -> None:
        if self._choice.failed(registrar, reason, self._loop.time(), probe=probe):
            level = logging.INFO if probe else logging.WARNING
            log.log(level, "the registrar %s cannot be reached: %s", _named(registrar), reason)
        self._follow()

    async def _connect(self, registrar: Registrar, seconds: float) -> socket.socket:
        """Return a socket that is connected with ``registrar`` within ``seconds``. Raises _NotConnected."""
        self._last_request += 1
        request = self._last_request
        future: asyncio.Future[socket.socket] = self._loop.create_future()
        self._requests[request] = future
        self._send(m.ProxyConnect(request, registrar.address, registrar.port))
        sock: socket.socket | None = None
        try:
            async with asyncio.timeout(seconds):
                sock = await future
                await self._connected(sock)
        except TimeoutError:
            _close(sock)
            raise _NotConnected("it does not answer") from None
        except OSError as error:
            _close(sock)
            raise _NotConnected(error.strerror or str(error)) from None
        except asyncio.CancelledError:
            _close(sock)
            raise
        finally:
            self._requests.pop(request, None)
            if sock is None and future.done() and not future.cancelled() and future.exception() is None:
                future.result().close()  # it came in the moment when nobody waited any more
        return sock

    async def _connected(self, sock: socket.socket) -> None:
        """Wait until a socket that is connecting is connected. Raises OSError."""
        done: asyncio.Future[None] = self._loop.create_future()

        def writable() -> None:
            if not done.done():
                done.set_result(None)

        self._loop.add_writer(sock, writable)
        try:
            await done
        finally:
            self._loop.remove_writer(sock)
        if (number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) != 0:
            raise OSError(number, os.strerror(number))

    def _run(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()

    # --- state -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return the state for ``minerva status``."""
        circuits = list(self._serving)
        return {
            "registrars": self._choice.status(self._loop.time()),
            "offers": {
                link.name: [
                    {"tcp_port": port, "variation": variation}
                    for port, variation in sorted(link.offered.items())
                ]
                for link in self._links.values()
            },
            "connections": {link.name: len(link.circuits) for link in self._links.values()},
            "counters": {
                "accepted": self.counters["accepted"],
                "active": len(circuits),
                "bytes_up": self.counters["bytes_up"] + sum(circuit.bytes_up for circuit in circuits),
                "bytes_down": self.counters["bytes_down"] + sum(circuit.bytes_down for circuit in circuits),
                "refused": dict(self.refused),
                "ended": dict(self.ended),
            },
        }


def _named(registrar: Registrar) -> str:
    variation = f" ({printable(registrar.variation)})" if registrar.variation else ""
    return f"[{registrar.address}]:{registrar.port}{variation}"


def _close(sock: socket.socket | None) -> None:
    if sock is not None:
        sock.close()
