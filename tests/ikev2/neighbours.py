"""Whole neighbours in virtual time: DULL, adjacency and IKEv2 on every port, put together as in a node."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from ipaddress import IPv6Address
from typing import Any

from minerva.adjacency.core import Adjacency
from minerva.adjacency.roles import PeerIdentity
from minerva.adjacency.table import CheckConnection, CloseConnection, Initiate, Unexpected
from minerva.grasp.announcement import AN_ACP_IKEV2, channel_methods
from minerva.grasp.constants import GRASP_LISTEN_PORT
from minerva.grasp.dull import DullInstance, NeighbourExpired, NeighbourHeard, NeighbourRefreshed
from minerva.ikev2.constants import IKE_PORT
from minerva.ikev2.endpoint import Alive, Closed, Endpoint, Established, Failed, SignatureNeeded
from minerva.sim.driver import Driver
from minerva.sim.kernel import Simulator, Timer
from minerva.sim.link import Link
from tests.ikev2.nodes import Party, sign

Wiring = Sequence[tuple[Link, IPv6Address]]
"""The ports of a node: the link and the address there."""


class _Port:
    """A port with its cores."""

    def __init__(self, node: Neighbour, number: int, link: Link, address: IPv6Address) -> None:
        source = random.Random(node.simulator.random.random())
        self.address = address
        self.dull = DullInstance(address, random=source)
        self.endpoint = Endpoint(
            address,
            node.who.identity,
            node.who.authenticate,
            source.randbytes,
            held_elsewhere=lambda name: node.holds_elsewhere(number, name),
        )
        self.dull_driver = Driver(
            node.simulator,
            link,
            address,
            self.dull,
            port=GRASP_LISTEN_PORT,
            on_event=lambda event, now: node.heard(number, event, now),
        )
        self.ike_driver = Driver(
            node.simulator,
            link,
            address,
            self.endpoint,
            port=IKE_PORT,
            on_event=lambda event, now: node.on_ike(number, event, now),
        )


class Neighbour:
    """A node. ``up`` is what it holds: by port and IKE SA the SPI of the initiator and the peer's address."""

    def __init__(self, simulator: Simulator, who: Party, wiring: Wiring) -> None:
        self.simulator = simulator
        self.who = who
        self.wiring = wiring
        self.adjacency = Adjacency(who.identity.address)
        self.up: dict[tuple[int, int], Established] = {}
        self.closed: list[Closed] = []
        self.unexpected: list[Unexpected] = []
        self.dead = False
        self._timer: Timer | None = None
        self.ports: dict[int, _Port] = {}
        for number, (link, address) in enumerate(wiring, 1):
            self.ports[number] = _Port(self, number, link, address)
            self.adjacency.port_up(number, address, simulator.now)
        for port in self.ports.values():
            port.dull.announce([AN_ACP_IKEV2], simulator.now)
            port.dull_driver.pump()

    def crash(self) -> None:
        """Vanish without a word."""
        self.dead = True
        for port in self.ports.values():
            port.dull_driver.stop()
            port.ike_driver.stop()
        if self._timer is not None:
            self._timer.cancel()

    def again(self) -> Neighbour:
        """Return this node after a restart, with all that it knew forgotten."""
        return Neighbour(self.simulator, self.who, self.wiring)

    def with_node(self, other: Neighbour) -> Mapping[tuple[IPv6Address, IPv6Address], list[bytes]]:
        """Return the connections with another node by link-local addresses, ours first."""
        name = other.who.identity.node_name
        found: dict[tuple[IPv6Address, IPv6Address], list[bytes]] = {}
        for (number, _), event in self.up.items():
            if event.member.node_name == name:
                found.setdefault((self.ports[number].address, event.address), []).append(event.ike_spi_i)
        return found

    def holds_elsewhere(self, port: int, name: str | None) -> bool:
        """What the endpoint of a port asks."""
        return any(
            number != port and name in (None, str(event.member.node_name))
            for (number, _), event in self.up.items()
        )

    def heard(self, port: int, event: Any, now: float) -> None:
        """Take an event of DULL."""
        match event:
            case NeighbourHeard(address, announcements, expires):
                self.adjacency.heard(port, address, channel_methods(announcements), expires, now)
            case NeighbourRefreshed(address, expires):
                self.adjacency.refreshed(port, address, expires, now)
            case NeighbourExpired(address):
                self.adjacency.expired(port, address, now)
        self._act()

    def on_ike(self, port: int, event: Any, now: float) -> None:
        """Take an event of IKE."""
        match event:
            case SignatureNeeded():
                signature = sign(self.who.key, event)
                self.simulator.call_later(0.002, lambda: self._signed(port, event.sa, signature))
            case Established():
                self.up[port, event.sa] = event
                self.ports[port].dull.pin(event.address)
                peer = PeerIdentity(str(event.member.node_name), event.member.address)
                self.adjacency.connected(port, event.address, (port, event.sa), event.initiator, peer, now)
            case Alive():
                self.adjacency.answered(port, event.address, (port, event.sa), now)
            case Failed():
                self.adjacency.failed(port, event.address, event.initiator, event.reason, event.rule, now)
            case Closed():
                self.closed.append(event)
                self.up.pop((port, event.sa), None)
                self.adjacency.closed(port, event.address, (port, event.sa), event.reason, event.by_peer, now)
        self._act()

    def _signed(self, port: int, sa: int, signature: bytes) -> None:
        if not self.dead:
            self.ports[port].endpoint.signed(sa, signature, self.simulator.now)
            self.ports[port].ike_driver.pump()

    def _act(self) -> None:
        now = self.simulator.now
        while (event := self.adjacency.next_event()) is not None:
            match event:
                case Initiate(port, address, udp_port):
                    self.ports[port].endpoint.initiate(address, udp_port, now)
                case CheckConnection(connection):
                    port, sa = connection  # type: ignore[misc]
                    self.ports[port].endpoint.check_liveness(sa, now)
                case CloseConnection(connection):
                    port, sa = connection  # type: ignore[misc]
                    self.ports[port].endpoint.close(sa, now, event.reason)
                case Unexpected():
                    self.unexpected.append(event)
        if self._timer is not None:
            self._timer.cancel()
        when = self.adjacency.next_timer()
        self._timer = None if when is None else self.simulator.call_at(when, self._expire)
        # Whatever the cores of this node were in the middle of, it comes first.
        self.simulator.call_at(now, self._pump)

    def _pump(self) -> None:
        if not self.dead:
            for port in self.ports.values():
                port.ike_driver.pump()

    def _expire(self) -> None:
        self._timer = None
        self.adjacency.on_timer(self.simulator.now)
        self._act()
