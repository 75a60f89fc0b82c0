"""Restarts and parallel links: one connection for each link, whatever happens, and soon (RFC 8994 6.13.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from itertools import product

import pytest

from minerva.ikev2.constants import NO_SPI, ExchangeType, Flag, NotifyType
from minerva.ikev2.endpoint import Closed, State
from minerva.ikev2.ike_sa import IkeSa
from minerva.ikev2.message import Header, encode_message
from minerva.ikev2.payloads import Notify
from minerva.sim.kernel import Simulator
from minerva.sim.link import Link, Packet
from tests.ikev2.neighbours import Neighbour
from tests.ikev2.nodes import MEMBER_A, MEMBER_B, A, B, Hand, Party, party, recorded

A1, A2 = IPv6Address("fe80::a1"), IPv6Address("fe80::a2")
B1, B2 = IPv6Address("fe80::b1"), IPv6Address("fe80::b2")

C, D, E = (IPv6Address(f"fe80::{letter}") for letter in "cde")

AT_ONCE = 6.0
"""How long, in seconds, it takes at most until a node that has started again has its channels."""

SILENT = 12.0
"""How long, in seconds, until nobody holds what was with a node before its restart."""


@dataclass
class Scene:
    """Two nodes and the links between them. Which one decides, and which one begins, is up to the seed."""

    seed: int = 0
    lan: bool = False
    ports: int = 1
    loss: float = 0.0
    nodes: list[Neighbour] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.simulator = Simulator(self.seed)
        count = 1 if self.lan else self.ports
        self.links = [Link(self.simulator, loss=self.loss, jitter=0.004) for _ in range(count)]
        addresses = ([A1, A2], [B1, B2])
        if self.seed % 2:
            addresses = (addresses[1], addresses[0])
        parties: tuple[Party, Party] = (MEMBER_A, MEMBER_B)
        for who, own in zip(parties, addresses, strict=True):
            wiring = [(self.links[0 if self.lan else n], own[n]) for n in range(self.ports)]
            self.nodes.append(Neighbour(self.simulator, who, wiring))

    def run(self, seconds: float) -> None:
        self.simulator.run_until(self.simulator.now + seconds)

    def restart(self, number: int, away: float) -> None:
        self.nodes[number].crash()
        self.run(away)
        self.nodes[number] = self.nodes[number].again()

    @property
    def wanted(self) -> int:
        """How many connections there must be."""
        return self.ports * (self.ports if self.lan else 1)

    def shared(self) -> set[tuple[IPv6Address, IPv6Address]]:
        """Between which addresses both hold the same connection, the first node's address first."""
        first, second = self.nodes
        theirs = second.with_node(first)
        return {
            (ours, other)
            for (ours, other), spis in first.with_node(second).items()
            if set(spis) & set(theirs.get((other, ours), ()))
        }

    def connected(self) -> bool:
        return len(self.shared()) == self.wanted

    def until_connected(self, limit: float) -> float:
        start = self.simulator.now
        assert self.simulator.run_while(lambda: not self.connected(), limit=start + limit), self.state()
        return self.simulator.now - start

    def state(self) -> object:
        return [(node.up, node.adjacency.neighbours()) for node in self.nodes]

    def check_settled(self) -> None:
        """Both hold the same, one connection for each pair of addresses, and nothing else."""
        first, second = self.nodes
        ours, theirs = first.with_node(second), second.with_node(first)
        assert len(ours) == self.wanted, self.state()
        for (own, other), spis in ours.items():
            assert len(spis) == 1
            assert theirs[other, own] == spis
        for node in self.nodes:
            assert node.unexpected == []
            assert len(node.up) == self.wanted
            # Its own ports on the same link hear each other as well, and refuse each other from time to time.
            own = [address for _, address in node.wiring]
            states = [
                status.state
                for port in node.ports.values()
                for status in port.endpoint.status()
                if status.address not in own
            ]
            assert states == [State.ESTABLISHED] * self.wanted


def _says_first(a: Hand, b: Hand, now: float) -> tuple[bool, bool]:
    """Do a handshake that ``a`` begins; return whether the one and the other said INITIAL_CONTACT."""
    seen = {}

    def note(name: str, original: Callable[[IkeSa], bool]) -> Callable[[IkeSa], bool]:
        def asked(sa: IkeSa) -> bool:
            seen[name] = original(sa)
            return seen[name]

        return asked

    for name, hand in (("a", a), ("b", b)):
        hand.endpoint._context.is_first_contact = note(name, hand.endpoint._is_first_contact)
    recorded(a, b, now)
    return seen["a"], seen["b"]


def test_initial_contact_is_said_only_if_it_is_certain() -> None:
    """It speaks of identities, and there is one SA for each link: an initiator with any other SA is silent, a
    responder with one of the same identity.

    covers: 6.13.4-1
    """
    a, b, c = Hand(MEMBER_A, A), Hand(MEMBER_B, B), Hand(party(3), C)
    also_b = Hand(MEMBER_B, D)
    assert _says_first(a, b, 0.0) == (True, True)
    assert _says_first(a, c, 1.0) == (False, True)
    assert _says_first(also_b, a, 2.0) == (True, False)
    assert _says_first(Hand(party(4), E), a, 3.0) == (True, True)


def test_initial_contact_knows_of_other_ports() -> None:
    """covers: 6.13.4-1"""
    name = str(MEMBER_B.identity.node_name)
    a, b = Hand(MEMBER_A, A), Hand(MEMBER_B, B)
    a.endpoint._held_elsewhere = lambda known: known in (None, name)
    assert _says_first(a, b, 0.0) == (False, True)
    a, b = Hand(MEMBER_A, A), Hand(MEMBER_B, B)
    a.endpoint._held_elsewhere = lambda known: known in (None, name)
    assert _says_first(b, a, 0.0) == (True, False)
    a, c = Hand(MEMBER_A, A), Hand(party(3), C)
    a.endpoint._held_elsewhere = lambda known: known in (None, name)
    assert _says_first(c, a, 0.0) == (True, True)


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("who", ["first", "second", "both"])
def test_a_restart_at_any_moment(seed: int, who: str) -> None:
    """Before, in the middle of, and long after the handshake: it is back at once, not after liveness.

    covers: 6.13.4-1, 6.6-4
    """
    scene = Scene(seed)
    source = scene.simulator.random
    scene.run(source.choice([source.random() * 0.05, source.random() * 3.0, 20.0 * source.random(), 80.0]))
    away = source.choice([0.0, source.random(), 20.0 * source.random()])
    for number in {"first": (0,), "second": (1,), "both": (0, 1)}[who]:
        scene.restart(number, away)
    assert scene.until_connected(AT_ONCE) < AT_ONCE
    scene.run(SILENT)
    scene.check_settled()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("lan", [False, True])
def test_parallel_links(seed: int, lan: bool) -> None:
    """Two nodes with two ports each, on two links or all on one: every pair of addresses is connected, no
    connection is taken for another's successor, and a restart brings all of them back.

    covers: 6.13.4-1, 6.6-9, 6.6-10
    """
    scene = Scene(seed, lan=lan, ports=2)
    scene.until_connected(AT_ONCE)
    scene.run(SILENT)
    scene.check_settled()
    reasons = {closed.reason for node in scene.nodes for closed in node.closed}
    assert reasons <= {"surplus: another connection to it is kept", "the peer deleted the SA"}
    scene.restart(seed % 2, 1.0)
    scene.until_connected(AT_ONCE)
    scene.run(SILENT)
    scene.check_settled()


@pytest.mark.parametrize("seed", range(10))
def test_restarts_on_bad_links(seed: int) -> None:
    """covers: 6.13.4-1"""
    scene = Scene(seed, ports=2, loss=0.2)
    scene.until_connected(100.0)
    scene.run(30.0 * scene.simulator.random.random())
    scene.restart(seed % 2, 3.0)
    scene.until_connected(100.0)
    for link in scene.links:
        link.loss = 0.0
    scene.run(60.0)
    scene.check_settled()


def test_one_link_of_two_is_cut_for_a_while() -> None:
    """Both sides lose it, each in its own time, and the other one goes on undisturbed.

    covers: 6.13.4-1
    """
    scene = Scene(3, ports=2)
    scene.run(20.0)
    kept = scene.nodes[0].with_node(scene.nodes[1])
    scene.links[0].up = False
    scene.run(30.0)
    scene.links[0].up = True
    scene.run(60.0)
    scene.check_settled()
    now = scene.nodes[0].with_node(scene.nodes[1])
    assert len(set(now) & set(kept)) == 2
    assert sum(now[pair] == kept[pair] for pair in kept) == 1


def _requests(packets: list[Packet]) -> list[Packet]:
    return [
        packet
        for packet in packets
        if packet.destination_port == 500
        and Header.decode(packet.data).exchange == ExchangeType.IKE_SA_INIT
        and not Header.decode(packet.data).is_response
    ]


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_replayed_requests_change_nothing(seed: int, restarted: bool) -> None:
    """IKE_SA_INIT requests of before, again and again, also of before a restart."""
    scene = Scene(seed)
    scene.run(20.0)
    requests = _requests(scene.links[0].carried)
    assert requests
    if restarted:
        scene.restart(seed % 2, 0.5)
        scene.run(20.0)
    before = [dict(node.up) for node in scene.nodes]
    for _ in range(20):
        for packet in requests:
            scene.links[0].transmit(packet, None)
        scene.run(0.7)
    scene.run(30.0)
    assert [node.up for node in scene.nodes] == before
    scene.check_settled()


@pytest.mark.parametrize("seed", range(2))
def test_forged_invalid_ike_spi_changes_nothing(seed: int) -> None:
    """Of an SA that is there, and in any form; there is nothing in it that proves anything."""
    scene = Scene(seed)
    scene.run(20.0)
    before = [dict(node.up) for node in scene.nodes]
    initiated = len(_requests(scene.links[0].carried))
    ends = [(node.wiring[0][1], next(iter(node.up.values()))) for node in scene.nodes]
    for (address, _), (source, event) in product(ends, ends):
        if address == source:
            continue
        for exchange, flags, number in product(
            (ExchangeType.INFORMATIONAL, ExchangeType.IKE_SA_INIT, ExchangeType.CREATE_CHILD_SA),
            (0, Flag.RESPONSE, Flag.INITIATOR, Flag.INITIATOR | Flag.RESPONSE),
            range(8),
        ):
            for spis in (
                (event.ike_spi_i, event.ike_spi_r),
                (event.ike_spi_i, NO_SPI),
                (event.ike_spi_r, event.ike_spi_i),
            ):
                header = Header(*spis, exchange, flags, number)
                data = encode_message(header, (Notify(NotifyType.INVALID_IKE_SPI),))
                scene.links[0].transmit(Packet(data, source, 500, address, 500), None)
            scene.run(0.05)
    scene.run(30.0)
    assert [node.up for node in scene.nodes] == before
    assert not [event for node in scene.nodes for event in node.closed if isinstance(event, Closed)]
    genuine = [packet for packet in _requests(scene.links[0].carried) if len(packet.data) > 100]
    assert len(genuine) == initiated, "nobody has begun anything"
    scene.check_settled()
