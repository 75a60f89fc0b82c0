"""Whom to build a secure channel with, when, and which of several connections stays (RFC 8994 6.3 to 6.7).

One :class:`Adjacency` per node sees all ports. It opens nothing itself: it is told what the DULL
instances heard and what became of connections, and its events say what to do.

* Everybody that is heard and selected (:meth:`Adjacency.wanted`) is initiated to: at once by the end with
  the lower link-local address, after 2 s by the other, unless a connection has come meanwhile.
* A failed attempt of ours is repeated after 10, 20, 40 ... 640 s. What peers fail at when they initiate has
  no influence on that (section 6.7). Success ends the back-off once the connection has lasted ``STABLE``:
  a peer that authenticates and hangs up is throttled like one that does not.
* With a second connection to one neighbour both ends ask by each of them whether the peer holds it. One
  that stays silent was of a peer before its restart, and is replaced; that one the protocol below ends. Of
  those that are answered the newest stays, and the Decider closes the others as surplus: it alone, so that
  the two ends cannot close different ones; not before the peer's answer has come by the one that stays, as
  our last packet of the handshake may have been lost; and ``SURPLUS`` later, as the traffic moves to it
  meanwhile. What has nothing to do with that is the same peer on another port, or at another link-local
  address: that is another neighbour, with a connection of its own.
* A Follower that the Decider has dismissed stays passive until it hears the Decider as someone new, or lost
  the connection itself. To this rule of the RFC's we add an end, ``FOLLOWER_PATIENCE``: a Decider that
  cannot hear our announcements never comes back by itself.
* A neighbour is a port and an address on it, nothing more: the same address on two ports is two neighbours
  (section 6.6), and what fails on one port is still tried on the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from ipaddress import IPv6Address

from minerva.adjacency.roles import PeerIdentity, Role, decide_role, initiation_delay
from minerva.adjacency.table import (
    TRANSITIONS,
    CheckConnection,
    CloseConnection,
    Connection,
    Event,
    Failure,
    Initiate,
    Neighbour,
    RolesDecided,
    Row,
    State,
    StateChanged,
    TableFull,
    Trigger,
    Unexpected,
)
from minerva.core.addresses import OwnAddresses
from minerva.core.backoff import Backoff
from minerva.pki.address import AcpAddress

METHODS = ("IKEv2",)
"""The AN_ACP methods we speak, best first."""

IRT = 10.0
"""The first delay after a failed attempt, in seconds (RFC 8994 section 6.7)."""

MRT = 640.0
"""The longest delay between attempts, in seconds (RFC 8994 section 6.7)."""

STABLE = 60.0
"""How long a connection lasts, in seconds, to count as a success that ends the back-off."""

SURPLUS = 1.0
"""How long, in seconds, the Decider keeps what is surplus once the one that stays has been answered."""

MAX_CONNECTIONS = 8
"""How many connections with one neighbour there are at a time; beyond, the oldest is closed by either end."""

FOLLOWER_PATIENCE = MRT
"""How long a Follower without a connection waits for its Decider, in seconds."""

MAX_NEIGHBOURS = 256
"""How many neighbours are kept per port, not counting those that came by a connection."""

MAX_WANTED = 64
"""How many neighbours of a port we try to be connected with at a time."""


class Adjacency:
    """The adjacency table of a node, and what it does about it.

    ``own`` is the ACP address in our certificate, ``None`` if that holds "0". ``port`` is any number that
    stands for a port, ``connection`` anything hashable that stands for one connection and no other.
    """

    def __init__(self, own: AcpAddress | None) -> None:
        self._own = own
        self._ours: dict[int, OwnAddresses] = {}
        self._rows: dict[tuple[int, IPv6Address], Row] = {}
        self._events: deque[Event] = deque()

    # What happens to us.

    def port_up(
        self, port: int, link_local: IPv6Address, now: float, *, ula: IPv6Address | None = None
    ) -> None:
        """A port has come up, where our address is ``link_local``, and ``ula`` if we have such a one too."""
        ours = OwnAddresses(link_local, ula)
        if self._ours.get(port, ours) != ours:
            self.port_down(port, now)
        self._ours[port] = ours

    def port_down(self, port: int, now: float) -> None:  # noqa: ARG002 -- as all the others
        """A port has gone: so have its neighbours, and their connections are to be closed."""
        self._ours.pop(port, None)
        for row in self._on(port):
            for connection in row.connections:
                self._events.append(CloseConnection(connection, "the port went down"))
            del self._rows[port, row.address]

    def heard(
        self, port: int, address: IPv6Address, methods: Mapping[str, int], expires: float, now: float
    ) -> None:
        """A neighbour announces something new: the UDP port of each method, believed until ``expires``."""
        if port not in self._ours:
            self._unexpected(port, address, "heard on a port that is not up")
            return
        row = self._rows.get((port, address))
        if row is None:
            if sum(row.live for row in self._on(port)) >= MAX_NEIGHBOURS:
                self._events.append(TableFull(port, address))
                return
            row = self._add(port, address)
        new = not row.live
        row.methods, row.expires, row.last_heard = dict(methods), expires, now
        if row.first_heard is None:
            row.first_heard = now
        if new:
            # A previously unknown announcement starts afresh, but not so often that it undoes the throttle.
            row.passive = row.passive and bool(row.connections)
            row.backoff.reset()
            row.not_before = row.last_attempt + IRT
            if row.state is State.SILENT:
                self._move(row, Trigger.HEARD)
        self._select(port, now)

    def refreshed(self, port: int, address: IPv6Address, expires: float, now: float) -> None:
        """A neighbour announced again what we know."""
        row = self._rows.get((port, address))
        if row is not None and row.live:
            row.last_heard, row.expires = now, expires

    def expired(self, port: int, address: IPv6Address, now: float) -> None:
        """A neighbour has not announced itself for as long as it had said."""
        row = self._rows.get((port, address))
        if row is None or not row.live:
            return  # One that did not fit into the table, or a port that went down.
        row.expires = None
        if not row.connections and not row.attempting:
            self._silence(row, now)
        self._select(port, now)

    def connected(
        self,
        port: int,
        address: IPv6Address,
        connection: Hashable,
        initiated_by_us: bool,
        peer: PeerIdentity,
        now: float,
    ) -> None:
        """The peer at the other end of a new connection has passed authentication and membership check."""
        if port not in self._ours:
            self._events.append(CloseConnection(connection, "the port went down"))
            return
        row = self._rows.get((port, address)) or self._add(port, address)
        if connection in row.connections:
            self._unexpected(port, address, f"connection {connection} connected twice")
            return
        if initiated_by_us:
            row.attempting = False
        if self._own is not None and peer.address == self._own:
            self._events.append(CloseConnection(connection, "the peer has our own ACP address"))
            if not row.connections:
                row.peer, row.role, row.passive, row.due = peer, None, False, None
                self._move(row, Trigger.OURSELVES)
            return
        row.peer, row.due = peer, None
        row.connections[connection] = Connection(now, initiated_by_us)
        self._set_role(row, peer)
        self._move(row, Trigger.CONNECTED)
        if len(row.connections) > 1:
            self._doubt(row)
        self._select(port, now)

    def answered(self, port: int, address: IPv6Address, connection: Hashable, now: float) -> None:
        """The peer has shown, since ``CheckConnection``, that it holds a connection."""
        row = self._rows.get((port, address))
        found = row.connections.get(connection) if row is not None else None
        if row is not None and found is not None and len(row.connections) > 1:
            found.answered = now
            self._decide(row)

    def failed(
        self,
        port: int,
        address: IPv6Address,
        initiated_by_us: bool,
        reason: str,
        rule: int | None,
        now: float,
    ) -> None:
        """An attempt came to nothing; ``rule`` is the rule of the membership check that the peer broke."""
        row = self._rows.get((port, address))
        if row is None:
            return  # A stranger that never announced itself, or a port that went down.
        if not initiated_by_us:
            row.failure = Failure(now, reason, rule, initiated_by_us)
            return
        if not row.attempting:
            self._unexpected(port, address, f"an attempt failed that was not under way: {reason}")
            return
        row.failure = Failure(now, reason, rule, initiated_by_us)
        row.attempting = False
        row.not_before = now + row.backoff.failed()
        if row.connections:
            return
        if not row.live:
            self._silence(row, now)
        elif row.passive:
            row.due = now + FOLLOWER_PATIENCE
            self._move(row, Trigger.REFUSED_FOLLOWER, reason)
        elif row.state is State.INITIATING:
            row.due = row.not_before
            self._move(row, Trigger.FAILED, reason)
        self._select(port, now)

    def reauthenticate(self, port: int, address: IPv6Address, now: float) -> None:
        """Build a further connection to a neighbour that is connected: our certificate is a new one.

        Does nothing where there is no connection to take the place of, or an attempt is under way already.
        """
        row = self._rows.get((port, address))
        if row is None or not row.connections or row.attempting or now < row.not_before:
            return
        udp_port = _udp_port(row)
        if udp_port is not None:
            row.attempting = True
            row.last_attempt = now
            self._events.append(Initiate(port, address, udp_port))

    def closed(
        self, port: int, address: IPv6Address, connection: Hashable, reason: str, by_peer: bool, now: float
    ) -> None:
        """A connection has ended: closed by the peer, or lost or closed on our side."""
        row = self._rows.get((port, address))
        if row is None or connection not in row.connections:
            return  # One that we asked to be closed.
        ended = row.connections.pop(connection)
        if row.connections:
            self._decide(row)
            return
        if now - ended.since >= STABLE:
            row.backoff.reset()
            row.not_before = now
        else:
            row.not_before = now + row.backoff.failed()
        if not by_peer:
            row.passive = False
        if not row.passive:
            row.failure = Failure(now, reason, None, ended.initiated_by_us)
        self._disconnect(row, reason, now)
        self._select(port, now)

    # The contract of a core.

    def next_timer(self) -> float | None:
        """Return when ``on_timer`` wants to be called, or ``None`` for never."""
        return min((row.due for row in self._rows.values() if row.due is not None), default=None)

    def on_timer(self, now: float) -> None:
        """Do what is due at ``now``."""
        ports = set()
        for row in list(self._rows.values()):
            if row.due is None or row.due > now:
                continue
            ports.add(row.port)
            row.due = None
            if row.state is State.CONNECTED:
                self._close_surplus(row)
            elif row.state is State.SILENT:
                del self._rows[row.port, row.address]
            elif row.state is State.FOLLOWER:
                row.passive = False
                self._move(row, Trigger.PATIENCE_ENDED)
            else:
                self._initiate(row, now)
        for port in ports:
            self._select(port, now)

    def next_event(self) -> Event | None:
        """Return, and forget, the oldest event, or ``None``."""
        return self._events.popleft() if self._events else None

    # What can be seen.

    def neighbours(self) -> list[Neighbour]:
        """Return the table."""
        return [row.snapshot() for row in self._rows.values()]

    def wanted(self, port: int) -> set[IPv6Address]:
        """Return with whom on ``port`` to be connected: everybody heard that speaks a method of ours.

        Beyond ``MAX_WANTED``, those that are connected come first, then those that failed least often, so
        that invented neighbours give way to real ones. Attempts to those that are not heard any more use
        up a place each until they end, so that announcers who come and go cannot start more than that.
        """
        rows = [row for row in self._on(port) if row.live and _udp_port(row) is not None]
        places = MAX_WANTED - sum(row.attempting and not row.live for row in self._on(port))
        if len(rows) > places:
            rows.sort(key=lambda row: (not row.connections, row.backoff.failures, row.first_heard))
        return {row.address for row in rows[: max(places, 0)]}

    # How it is done.

    def _on(self, port: int) -> list[Row]:
        return [row for row in self._rows.values() if row.port == port]

    def _add(self, port: int, address: IPv6Address) -> Row:
        row = self._rows[port, address] = Row(port, address, Backoff(IRT, MRT))
        return row

    def _move(self, row: Row, trigger: Trigger, reason: str = "") -> None:
        new = TRANSITIONS.get((row.state, trigger))
        if new is None:
            self._unexpected(row.port, row.address, f"{trigger.value} in state {row.state.value}")
        elif new is not row.state:
            self._events.append(StateChanged(row.port, row.address, row.state, new, reason or trigger.value))
            row.state = new

    def _unexpected(self, port: int, address: IPv6Address, what: str) -> None:
        self._events.append(Unexpected(port, address, what))

    def _select(self, port: int, now: float) -> None:
        """Begin with those that are wanted and wait for nothing, and leave those that are not."""
        wanted = self.wanted(port)
        for row in self._on(port):
            if row.state is State.DELAYED and row.address not in wanted:
                row.due = None
                self._move(row, Trigger.DESELECTED)
            elif row.state is State.HEARD and row.address in wanted:
                start = now + initiation_delay(self._ours[port].towards(row.address), row.address)
                row.due = max(start, row.not_before)
                self._move(row, Trigger.SELECTED if row.due == start else Trigger.THROTTLED)
                if row.due <= now:
                    self._initiate(row, now)

    def _initiate(self, row: Row, now: float) -> None:
        udp_port = _udp_port(row)
        row.due = None
        if udp_port is None or row.address not in self.wanted(row.port):
            self._move(row, Trigger.DESELECTED)
            return
        row.attempting = True
        row.last_attempt = now
        self._move(row, Trigger.DUE)
        self._events.append(Initiate(row.port, row.address, udp_port))

    def _set_role(self, row: Row, peer: PeerIdentity) -> None:
        ours = self._ours[row.port].towards(row.address)
        role = decide_role(self._own, ours, peer.address, row.address)
        row.passive = role is Role.FOLLOWER
        if role is not row.role:
            row.role = role
            self._events.append(RolesDecided(row.port, row.address, role))

    def _doubt(self, row: Row) -> None:
        """Find out which connections the peer holds."""
        if len(row.connections) > MAX_CONNECTIONS:
            oldest = next(iter(row.connections))
            del row.connections[oldest]
            self._events.append(CloseConnection(oldest, "too many connections to it"))
        for connection, found in row.connections.items():
            found.answered = None
            self._events.append(CheckConnection(connection))

    def _decide(self, row: Row) -> None:
        """Arm the timer for closing what is surplus, if it is for us to close, and known what stays."""
        kept = _kept(row) if row.role is Role.DECIDER else None
        row.due = kept.answered + SURPLUS if kept is not None and kept.answered is not None else None

    def _close_surplus(self, row: Row) -> None:
        kept = _kept(row)
        for connection, found in list(row.connections.items()):
            if found is kept:
                break  # newer ones have not been answered yet
            if found.answered is not None:
                del row.connections[connection]
                self._events.append(CloseConnection(connection, "surplus: another connection to it is kept"))

    def _disconnect(self, row: Row, reason: str, now: float) -> None:
        """Choose what to do about a neighbour whose last connection has gone."""
        if row.attempting:
            self._move(row, Trigger.LOST_IN_ATTEMPT, reason)
        elif not row.live:
            self._silence(row, now)
        elif row.passive:
            row.due = now + FOLLOWER_PATIENCE
            self._move(row, Trigger.RELEASED, reason)
        else:
            self._move(row, Trigger.LOST, reason)

    def _silence(self, row: Row, now: float) -> None:
        """Keep the row only for as long as the throttle needs its last attempt."""
        self._move(row, Trigger.EXPIRED)
        row.due = row.last_attempt + IRT
        if row.due <= now:
            del self._rows[row.port, row.address]


def _kept(row: Row) -> Connection | None:
    """Return the newest connection that the peer has answered by, if there is an older one of the kind."""
    answered = [found for found in row.connections.values() if found.answered is not None]
    return answered[-1] if len(answered) > 1 else None


def _udp_port(row: Row) -> int | None:
    return next((row.methods[method] for method in METHODS if method in row.methods), None)
