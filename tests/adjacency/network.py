"""Nodes with DULL, adjacency core and a make-believe channel protocol, on a simulated link.

The channel protocol stands in for IKEv2: a handshake of two packets that takes its time, retransmission,
a liveness check and a reliable close. It authenticates nobody; the packets say who they are from.
"""

from __future__ import annotations

import json
import random
from collections import deque
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any

from minerva.adjacency.core import Adjacency
from minerva.adjacency.roles import PeerIdentity, Role
from minerva.adjacency.table import CheckConnection, CloseConnection, Initiate, Unexpected
from minerva.core.sansio import Datagram
from minerva.grasp.announcement import AN_ACP_IKEV2, channel_methods
from minerva.grasp.constants import GRASP_LISTEN_PORT
from minerva.grasp.dull import DullInstance, NeighbourExpired, NeighbourHeard, NeighbourRefreshed
from minerva.pki.address import AcpAddress
from minerva.sim.driver import Driver
from minerva.sim.kernel import Simulator, Timer
from minerva.sim.link import Link

PORT = 1
CHANNEL_PORT = 500
RETRANSMIT, TRIES = 1.0, 5
PING, DEAD = 1.0, 15.0
GLOBAL_ID = bytes.fromhex("89b714f3db")


@dataclass(frozen=True)
class Up:
    """A connection is up."""

    address: IPv6Address
    connection: str
    initiated_by_us: bool
    peer: int


@dataclass(frozen=True)
class Failed:
    """An attempt of ours has had no answer."""

    address: IPv6Address


@dataclass(frozen=True)
class Answered:
    """The peer holds a connection that was checked."""

    address: IPv6Address
    connection: str


@dataclass(frozen=True)
class Down:
    """A connection has ended."""

    address: IPv6Address
    connection: str
    by_peer: bool


@dataclass
class _Connection:
    address: IPv6Address
    initiator: bool
    up: bool = False
    closing: bool = False
    checking: bool = False
    tries: int = 0
    heard: float = 0.0
    answer_at: float | None = None
    next: float = field(default=0.0)


class FakeChannels:
    """A core with the contract of ``core.sansio``."""

    def __init__(self, node_number: int, rng: random.Random, slowness: float) -> None:
        self.node_number = node_number
        self.connections: dict[str, _Connection] = {}
        self._random = rng
        self._slowness = slowness
        self._out: list[Datagram] = []
        self._events: deque[Any] = deque()

    def initiate(self, address: IPv6Address, now: float) -> None:
        """Begin a handshake."""
        name = f"{self.node_number}-{self._random.getrandbits(40):x}"
        self.connections[name] = _Connection(address, True, next=now)
        self.on_timer(now)

    def check(self, name: str, now: float) -> None:
        """Ask the peer whether it holds a connection."""
        if (connection := self.connections.get(name)) is not None and not connection.closing:
            connection.checking = True
            self._send("ping", name, connection.address)
            connection.next = now + PING

    def close(self, name: str, now: float) -> None:
        """Close, telling the peer."""
        connection = self.connections[name]
        connection.closing, connection.tries, connection.next = True, 0, now
        self.on_timer(now)

    def up(self) -> dict[str, IPv6Address]:
        """Return the connections that are up, and with whom."""
        return {name: c.address for name, c in self.connections.items() if c.up and not c.closing}

    def receive(self, data: bytes, address: IPv6Address, port: int, now: float) -> None:  # noqa: ARG002
        """Take a packet."""
        kind, name, peer = json.loads(data)
        connection = self.connections.get(name)
        if connection is not None:
            connection.heard = now
            if connection.checking and connection.up and kind in ("ping", "pong"):
                connection.checking = False
                self._events.append(Answered(address, name))
        if kind == "hello" and connection is None:
            delay = self._slowness * self._random.random()
            connection = _Connection(address, False, heard=now, answer_at=now + delay, next=now + delay)
            connection.tries = peer  # Who it is is known when it is answered.
            self.connections[name] = connection
        elif kind == "hello" and connection is not None and connection.up:
            self._send("welcome", name, address)
        elif kind == "welcome" and connection is not None and not connection.up:
            connection.up, connection.next = True, now + PING
            self._events.append(Up(address, name, True, peer))
        elif kind == "ping" and connection is not None and connection.up:
            self._send("pong", name, address)
        elif kind == "close":
            self._send("closed", name, address)
            if connection is not None and connection.up and not connection.closing:
                self._events.append(Down(address, name, by_peer=True))
                del self.connections[name]
        elif kind == "closed":
            self.connections.pop(name, None)

    def datagrams_to_send(self, now: float) -> list[Datagram]:  # noqa: ARG002
        """The contract."""
        out, self._out = self._out, []
        return out

    def next_timer(self) -> float | None:
        """The contract."""
        return min((connection.next for connection in self.connections.values()), default=None)

    def next_event(self) -> Any | None:
        """The contract."""
        return self._events.popleft() if self._events else None

    def on_timer(self, now: float) -> None:
        """Retransmit, answer, ask, give up."""
        for name, connection in list(self.connections.items()):
            if connection.next > now:
                continue
            connection.next = now + RETRANSMIT
            if connection.answer_at is not None:
                peer, connection.tries, connection.answer_at = connection.tries, 0, None
                connection.up = True
                self._send("welcome", name, connection.address)
                self._events.append(Up(connection.address, name, False, peer))
            elif connection.closing or not connection.up:
                self._retransmit(name, connection)
            elif now - connection.heard >= DEAD:
                del self.connections[name]
                self._events.append(Down(connection.address, name, by_peer=False))
            else:
                self._send("ping", name, connection.address)

    def _retransmit(self, name: str, connection: _Connection) -> None:
        connection.tries += 1
        if connection.tries <= TRIES:
            self._send("close" if connection.closing else "hello", name, connection.address)
            return
        del self.connections[name]
        if not connection.closing:
            self._events.append(Failed(connection.address))

    def _send(self, kind: str, name: str, address: IPv6Address) -> None:
        data = json.dumps([kind, name, self.node_number]).encode()
        self._out.append(Datagram(data, address, CHANNEL_PORT))


class Node:
    """One node with one port: the glue that the daemon has too."""

    def __init__(self, simulator: Simulator, link: Link, number: int, link_local: IPv6Address) -> None:
        self.simulator = simulator
        self.number = number
        self.link_local = link_local
        self.adjacency = Adjacency(_address(number))
        self.adjacency.port_up(PORT, link_local, simulator.now)
        self.unexpected: list[Unexpected] = []
        self.initiated: list[float] = []
        self.closed_as: list[Role | None] = []
        rng = random.Random(simulator.random.random())
        self.dull = DullInstance(link_local, random=rng)
        self.channels = FakeChannels(number, rng, slowness=0.8)
        self._timer: Timer | None = None
        self._dull = Driver(
            simulator, link, link_local, self.dull, port=GRASP_LISTEN_PORT, on_event=self._heard
        )
        self._channels = Driver(
            simulator, link, link_local, self.channels, port=CHANNEL_PORT, on_event=self._happened
        )
        self.dull.announce([AN_ACP_IKEV2], simulator.now)
        self._dull.pump()

    def crash(self) -> None:
        """Vanish without a word."""
        self._dull.stop()
        self._channels.stop()
        if self._timer is not None:
            self._timer.cancel()

    def shut_down(self) -> None:
        """Close all connections, then vanish."""
        for name in self.channels.up():
            self.channels.close(name, self.simulator.now)
        self._channels.pump()
        self.crash()

    def _heard(self, event: Any, now: float) -> None:
        match event:
            case NeighbourHeard(address, announcements, expires):
                self.adjacency.heard(PORT, address, channel_methods(announcements), expires, now)
            case NeighbourRefreshed(address, expires):
                self.adjacency.refreshed(PORT, address, expires, now)
            case NeighbourExpired(address):
                self.adjacency.expired(PORT, address, now)
        self._act()

    def _happened(self, event: Any, now: float) -> None:
        match event:
            case Up(address, connection, initiated_by_us, peer):
                self.dull.pin(address)
                identity = PeerIdentity(f"{peer}@example.com", _address(peer))
                self.adjacency.connected(PORT, address, connection, initiated_by_us, identity, now)
            case Answered(address, connection):
                self.adjacency.answered(PORT, address, connection, now)
            case Failed(address):
                self.adjacency.failed(PORT, address, True, "no answer", None, now)
            case Down(address, connection, by_peer):
                self.adjacency.closed(PORT, address, connection, "closed", by_peer, now)
        self._act()

    def _act(self) -> None:
        now = self.simulator.now
        while (event := self.adjacency.next_event()) is not None:
            match event:
                case Initiate(_, address, udp_port):
                    assert udp_port == CHANNEL_PORT
                    self.initiated.append(now)
                    self.channels.initiate(address, now)
                case CheckConnection(connection):
                    self.channels.check(str(connection), now)
                case CloseConnection(connection):
                    address = self.channels.connections[str(connection)].address
                    self.closed_as += [
                        row.role for row in self.adjacency.neighbours() if row.address == address
                    ]
                    self.channels.close(str(connection), now)
                case Unexpected():
                    self.unexpected.append(event)
        if self._timer is not None:
            self._timer.cancel()
        when = self.adjacency.next_timer()
        self._timer = None if when is None else self.simulator.call_at(when, self._expire)
        # Whatever this node's channels were in the middle of, it comes first.
        self.simulator.call_at(now, self._channels.pump)

    def _expire(self) -> None:
        self._timer = None
        self.adjacency.on_timer(self.simulator.now)
        self._act()


def _address(number: int) -> AcpAddress | None:
    """Node 0 has the acp-address "0"."""
    return AcpAddress.zone(GLOBAL_ID, 1, number) if number else None


def connections_between(first: Node, second: Node) -> tuple[set[str], set[str]]:
    """Return what either end believes to have with the other."""
    return (
        {name for name, address in first.channels.up().items() if address == second.link_local},
        {name for name, address in second.channels.up().items() if address == first.link_local},
    )
