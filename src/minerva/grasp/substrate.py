"""The security and transport substrate of GRASP in the ACP, as the engine sees it (RFC 8994 section 6.9.2).

What GRASP calls link-local multicast goes over plain TCP between the link-local addresses of a channel's
two ends; everything else over TLS between ACP addresses. Both use port 7017. This module keeps the
connections and decides who opens which; it opens none. Whoever drives it carries out :class:`Connect`,
:class:`Send` and :class:`Close`, and tells what came of it.

*Links.* A channel has two ends, so the lower link-local address opens the connection as soon as it has
heard the other, and the higher only if there is none after 3 s. Should there be two all the same, each end
sends on its older one and reads both. A link is *ready* while it has a connection.

*Ourselves.* A conversation with our own address and port never leaves the node: two connections that are
each other's end.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Protocol, TypeAlias

from minerva.core.backoff import Backoff
from minerva.grasp.constants import GRASP_LISTEN_PORT
from minerva.grasp.errors import GraspDecodeError
from minerva.grasp.messages import Message
from minerva.grasp.stream import MessageStream

HIGHER_WAITS = 3.0
"""How long the end with the higher link-local address waits for the other to connect, in seconds."""

CONNECT_SECONDS = 10.0
"""How long opening a connection, TLS included, may take, in seconds."""

MAX_LINK_CONNECTIONS = 4
"""How many connections a link may have; more than two are a neighbour's mistake."""

MAX_NONSENSE = 64
"""How many CBOR items that are no message we know a connection may bring: a newer GRASP sends no more."""

MAX_INBOUND = 256
"""How many unicast connections others may have open to us."""

MAX_INBOUND_PER_PEER = 64
"""How many of them one address may have."""

_RETRY_FIRST, _RETRY_LAST = 0.2, 10.0
_GOOD_RUN = 10.0


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a connection: TCP on ``interface`` from our link-local ``source``, without an interface TLS."""

    connection: int
    address: IPv6Address
    port: int
    interface: int | None = None
    source: IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Send ``data``, one message, on a connection."""

    connection: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Close a connection, after what was sent has gone out or, with ``abort``, at once."""

    connection: int
    abort: bool = False


Action: TypeAlias = Connect | Send | Close


@dataclass(frozen=True, slots=True)
class Traced:
    """A message that came in or went out; only while the engine is ``tracing``.

    ``interface`` is that of a link, ``None`` for unicast.
    """

    interface: int | None
    peer: IPv6Address
    incoming: bool
    data: bytes


@dataclass(slots=True)
class Connection:
    """A connection as the substrate knows it; ``interface`` is ``None`` for unicast."""

    number: int
    peer: IPv6Address
    port: int
    interface: int | None
    inbound: bool
    opened: float
    ready: bool = False
    other_end: int | None = None  # of a conversation with ourselves
    stream: MessageStream = field(default_factory=MessageStream)
    nonsense: int = 0
    """How many CBOR items came that were no message."""


@dataclass(slots=True)
class Link:
    """The GRASP virtual interface of one channel."""

    interface: int
    link_local: IPv6Address
    peer: IPv6Address | None = None
    established: list[int] = field(default_factory=list)
    """Numbers of its connections that can be used, the oldest first."""
    connecting: int | None = None
    attempt_at: float | None = None
    since: float | None = None
    """Since when it has been ready without a break, if it is."""
    backoff: Backoff = field(default_factory=lambda: Backoff(_RETRY_FIRST, _RETRY_LAST))


class Upcalls(Protocol):
    """What the substrate tells the engine."""

    def on_link_ready(self, interface: int, now: float) -> None:
        """Messages can be sent on ``interface``; what was sent before may not have arrived."""

    def on_link(self, connection: int, interface: int, message: Message, now: float) -> None:
        """A message came on a link."""

    def on_unicast(self, connection: int, message: Message, now: float) -> None:
        """A message came on a unicast connection."""

    def on_nonsense(self, connection: int, error: GraspDecodeError, now: float) -> None:
        """A CBOR item that is no message we know came on a connection, which goes on."""

    def on_connected(self, connection: int, now: float) -> None:
        """A unicast connection that we asked for can be used."""

    def on_closed(self, connection: int, reason: str, now: float) -> None:
        """A connection is gone, and not because we closed it."""


class Substrate:
    """Connections of one GRASP instance (see the module's docstring)."""

    def __init__(
        self, address: IPv6Address, upcalls: Upcalls, counters: Counter[str], *, port: int = GRASP_LISTEN_PORT
    ) -> None:
        self.address = address
        self.port = port
        self.tracing = False
        self._upcalls = upcalls
        self._counters = counters
        self._connections: dict[int, Connection] = {}
        self._links: dict[int, Link] = {}
        self._number = 0
        self._actions: deque[Action] = deque()
        self._traced: deque[Traced] = deque()
        self._to_ourselves: deque[tuple[int, bytes | None]] = deque()
        self._delivering = False

    # --- links -----------------------------------------------------------------------------------------

    def interface_up(self, interface: int, link_local: IPv6Address, now: float) -> None:
        """Note a channel; ``link_local`` is our address on it."""
        self.interface_down(interface, now)
        self._links[interface] = Link(interface, link_local)

    def interface_down(self, interface: int, now: float) -> None:
        """Forget a channel and reset its connections."""
        link = self._links.pop(interface, None)
        if link is not None:
            self._drop_connections(link, "the channel is gone", now)

    def peer_heard(self, interface: int, peer: IPv6Address, now: float) -> None:
        """Note the neighbour's address on a channel, as a routing message has shown it."""
        link = self._links.get(interface)
        if link is None or link.peer == peer or peer == link.link_local:
            return
        if link.peer is not None:  # another address is another node, or the same after a new start
            self._drop_connections(link, f"the neighbour is {peer} now", now)
        link.peer = peer
        if not link.established:
            link.attempt_at = now if link.link_local < peer else now + HIGHER_WAITS

    def _drop_connections(self, link: Link, reason: str, now: float) -> None:
        numbers = [*link.established, *([link.connecting] if link.connecting is not None else [])]
        link.established, link.connecting, link.since = [], None, None
        for number in numbers:
            self.close(number, abort=True)
            self._upcalls.on_closed(number, reason, now)

    def ready_links(self) -> list[int]:
        """Return the interfaces on which messages can be sent."""
        return [link.interface for link in self._links.values() if link.established]

    def send_on_link(self, interface: int, data: bytes) -> None:
        """Send a message to the neighbour on ``interface``; nothing happens if there is none."""
        link = self._links.get(interface)
        if link is not None and link.established:
            self.send(link.established[0], data)

    def link_local(self, interface: int) -> IPv6Address | None:
        """Return our link-local address on a channel."""
        link = self._links.get(interface)
        return None if link is None else link.link_local

    def link_to(self, interface: int, peer: IPv6Address) -> int | None:
        """Return the connection to the neighbour ``peer`` on ``interface``, if there is one."""
        link = self._links.get(interface)
        return link.established[0] if link is not None and link.peer == peer and link.established else None

    def _established(self, connection: Connection, now: float) -> None:
        assert connection.interface is not None
        link = self._links[connection.interface]
        link.established.append(connection.number)
        link.attempt_at = None
        if link.connecting == connection.number:
            link.connecting = None
        if len(link.established) == 1:
            link.since = now
            self._upcalls.on_link_ready(link.interface, now)

    def _link_lost(self, link: Link, number: int, now: float) -> None:
        was_first = link.established[:1] == [number]
        if number in link.established:
            link.established.remove(number)
        if link.connecting == number:
            link.connecting = None
        if link.established:
            if was_first:  # what was under way on it is lost
                self._upcalls.on_link_ready(link.interface, now)
            return
        if link.since is not None and now - link.since > _GOOD_RUN:
            link.backoff.reset()
        link.since = None
        delay = link.backoff.failed()
        if link.peer is not None and link.connecting is None:
            link.attempt_at = now + delay + (0.0 if link.link_local < link.peer else HIGHER_WAITS)

    # --- connections -----------------------------------------------------------------------------------

    def open(self, address: IPv6Address, port: int, now: float) -> int:
        """Open a unicast connection and return its number; ``on_connected`` or ``on_closed`` follows."""
        connection = self._new(address, port, None, inbound=False, now=now)
        if (address, port) == (self.address, self.port):
            other = self._new(self.address, 0, None, inbound=True, now=now)
            connection.other_end, other.other_end = other.number, connection.number
            other.ready = True
            self._to_ourselves.append((connection.number, b""))
        else:
            self._actions.append(Connect(connection.number, address, port))
        return connection.number

    def _new(
        self, peer: IPv6Address, port: int, interface: int | None, *, inbound: bool, now: float
    ) -> Connection:
        self._number += 1
        connection = Connection(self._number, peer, port, interface, inbound, now)
        self._connections[connection.number] = connection
        return connection

    def accepted(self, peer: IPv6Address, interface: int | None, now: float) -> int | None:
        """Take a connection that somebody opened to us; return its number, or ``None`` to refuse it."""
        if interface is not None:
            link = self._links.get(interface)
            full = link is not None and len(link.established) >= MAX_LINK_CONNECTIONS
            if link is None or not peer.is_link_local or link.peer not in (None, peer) or full:
                self._counters["refused-connections"] += 1
                return None
            link.peer = peer
        elif not self._has_room(peer):
            self._counters["refused-connections"] += 1
            return None
        connection = self._new(peer, 0, interface, inbound=True, now=now)
        connection.ready = True
        if interface is not None:
            self._established(connection, now)
        return connection.number

    def _has_room(self, peer: IPv6Address) -> bool:
        inbound = [
            c for c in self._connections.values() if c.inbound and c.interface is None and c.other_end is None
        ]
        return len(inbound) < MAX_INBOUND and sum(c.peer == peer for c in inbound) < MAX_INBOUND_PER_PEER

    def connected(self, number: int, now: float) -> None:
        """Note that a connection we asked for is there."""
        connection = self._connections.get(number)
        if connection is None or connection.ready:
            return
        connection.ready = True
        if connection.interface is None:
            self._upcalls.on_connected(number, now)
        else:
            self._established(connection, now)

    def closed(self, number: int, reason: str, now: float) -> None:
        """Note that a connection is gone, or could not be opened."""
        connection = self._connections.pop(number, None)
        if connection is not None:
            self._lost(connection, reason, now)

    def received(self, number: int, data: bytes, now: float) -> None:
        """Take bytes that came on a connection."""
        connection = self._connections.get(number)
        if connection is None:
            return
        for item, message in connection.stream.feed(data):
            if number not in self._connections:
                return  # what came before had it closed
            self._trace(connection, item, incoming=True)
            if isinstance(message, GraspDecodeError):
                self._counters["not-a-message"] += 1
                connection.nonsense += 1
                if connection.nonsense > MAX_NONSENSE:
                    self._reset(connection, "it sends nothing that GRASP knows", now)
                    return
                self._upcalls.on_nonsense(number, message, now)
            elif connection.interface is not None:
                self._upcalls.on_link(number, connection.interface, message, now)
            else:
                self._upcalls.on_unicast(number, message, now)
        if connection.stream.broken and number in self._connections:
            self._counters["broken-streams"] += 1
            self._reset(connection, "it sent something that is not CBOR", now)

    def _reset(self, connection: Connection, reason: str, now: float) -> None:
        self.close(connection.number, abort=True)
        self._lost(connection, reason, now)

    def _lost(self, connection: Connection, reason: str, now: float) -> None:
        link = None if connection.interface is None else self._links.get(connection.interface)
        if link is not None:
            self._link_lost(link, connection.number, now)
        self._upcalls.on_closed(connection.number, reason, now)

    def send(self, number: int, data: bytes) -> None:
        """Send ``data``, one message, on a connection; nothing happens if that is gone."""
        connection = self._connections.get(number)
        if connection is None or not connection.ready:
            return
        self._trace(connection, data, incoming=False)
        if connection.other_end is not None:
            self._to_ourselves.append((connection.other_end, data))
        else:
            self._actions.append(Send(number, data))

    def close(self, number: int, *, abort: bool = False) -> None:
        """Close a connection; nothing more is heard of it."""
        connection = self._connections.pop(number, None)
        if connection is None:
            return
        if connection.other_end is not None:
            self._to_ourselves.append((connection.other_end, None))
        else:
            self._actions.append(Close(number, abort))

    def get(self, number: int) -> Connection | None:
        """Return a connection by its number."""
        return self._connections.get(number)

    def _trace(self, connection: Connection, data: bytes, *, incoming: bool) -> None:
        if self.tracing:
            self._traced.append(Traced(connection.interface, connection.peer, incoming, data))

    # --- being driven ----------------------------------------------------------------------------------

    def deliver_to_ourselves(self, now: float) -> None:
        """Carry what is under way between our own two ends, and what that brings about."""
        if self._delivering:
            return
        self._delivering = True
        while self._to_ourselves:
            number, data = self._to_ourselves.popleft()
            if data is None:
                self.closed(number, "the other end closed it", now)
            elif data:
                self.received(number, data, now)
            else:
                self.connected(number, now)
        self._delivering = False

    def actions(self) -> list[Action]:
        """Return, and forget, what is to be done."""
        actions, self._actions = list(self._actions), deque()
        return actions

    def next_traced(self) -> Traced | None:
        """Return, and forget, the oldest traced message."""
        return self._traced.popleft() if self._traced else None

    def next_timer(self) -> float | None:
        """Return when ``on_timer`` wants to be called."""
        times = [link.attempt_at for link in self._links.values() if link.attempt_at is not None]
        times += [c.opened + CONNECT_SECONDS for c in self._connections.values() if not c.ready]
        return min(times, default=None)

    def on_timer(self, now: float) -> None:
        """Open what is due, and give up what takes too long."""
        for link in list(self._links.values()):
            if link.attempt_at is None or link.attempt_at > now or link.peer is None:
                continue
            link.attempt_at = None
            connection = self._new(link.peer, self.port, link.interface, inbound=False, now=now)
            link.connecting = connection.number
            self._actions.append(
                Connect(connection.number, link.peer, self.port, link.interface, link.link_local)
            )
        for late in [c for c in self._connections.values() if not c.ready]:
            if late.opened + CONNECT_SECONDS <= now:
                self.close(late.number, abort=True)
                self._lost(late, f"no connection within {CONNECT_SECONDS:.0f} s", now)

    def status(self) -> list[dict[str, object]]:
        """Return the links for ``minerva status``."""
        return [
            {
                "interface": link.interface,
                "peer": None if link.peer is None else str(link.peer),
                "ready": bool(link.established),
                "connections": len(link.established),
            }
            for link in self._links.values()
        ]
