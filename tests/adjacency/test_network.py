"""Whole nodes on a link that loses and delays: every pair ends with exactly one connection."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Address
from itertools import combinations, pairwise

import pytest

from minerva.adjacency.roles import Role
from minerva.adjacency.table import State
from minerva.sim.kernel import Simulator
from minerva.sim.link import Link

from .network import Node, connections_between

LOSSES = (0.0, 0.1, 0.2, 0.3)


def _link(seed: int) -> tuple[Simulator, Link]:
    simulator = Simulator(seed)
    return simulator, Link(simulator, loss=LOSSES[seed % len(LOSSES)], delay=0.005, jitter=0.4)


def _nodes(simulator: Simulator, link: Link, count: int) -> list[Node]:
    # Node numbers, which make the Decider, and link-locals, which begin, in unrelated orders.
    numbers = simulator.random.sample(range(1, 100), count)
    hosts = simulator.random.sample(range(1, 0xFFFF), count)
    nodes: list[Node] = []
    for number, host in zip(numbers, hosts, strict=True):
        simulator.run_until(simulator.now + simulator.random.choice((0.0, 0.5, 3.0)))
        nodes.append(Node(simulator, link, number, IPv6Address(f"fe80::{host:x}")))
    return nodes


def _all_connected_once(nodes: Sequence[Node]) -> bool:
    for first, second in combinations(nodes, 2):
        ours, theirs = connections_between(first, second)
        if len(ours) != 1 or ours != theirs:
            return False
    return True


def _run_until_connected(simulator: Simulator, nodes: Sequence[Node], limit: float) -> float:
    """Return how long it took until every pair had exactly one connection."""
    start = simulator.now
    connected = simulator.run_while(lambda: not _all_connected_once(nodes), limit=start + limit)
    assert connected, [row for node in nodes for row in node.adjacency.neighbours()]
    return simulator.now - start


def _check_quiet(simulator: Simulator, nodes: Sequence[Node], duration: float) -> None:
    """Nothing changes any more, and nothing impossible has happened."""
    attempts = [len(node.initiated) for node in nodes]
    before = [node.channels.up() for node in nodes]
    simulator.run_until(simulator.now + duration)
    assert [node.channels.up() for node in nodes] == before
    assert [len(node.initiated) for node in nodes] == attempts
    assert [node.unexpected for node in nodes] == [[] for _ in nodes]


@pytest.mark.parametrize("seed", range(51))
def test_every_pair_has_one_connection(seed: int) -> None:
    """Four nodes, up to 30 % loss, both ends initiating across each other: one connection per pair, and then
    peace.

    covers: 6.6-2, 6.6-3, 6.6-4, 6.6-11
    """
    simulator, link = _link(seed)
    nodes = _nodes(simulator, link, 4)
    limit = 20.0 if link.loss == 0 else 120.0
    _run_until_connected(simulator, nodes, limit)
    simulator.run_until(simulator.now + 20.0)
    assert _all_connected_once(nodes)
    if link.loss == 0:
        _check_quiet(simulator, nodes, 300.0)
    for node in nodes:
        assert [row.state for row in node.adjacency.neighbours()] == [State.CONNECTED] * 3
        assert set(node.closed_as) <= {Role.DECIDER}
        assert node.unexpected == []


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("politely", [False, True])
def test_restart(seed: int, politely: bool) -> None:
    """A node crashes, or shuts down, and comes back with the same addresses: one connection per pair again.

    covers: 6.6-4, 6.13.4-1
    """
    simulator, link = _link(seed)
    nodes = _nodes(simulator, link, 3)
    _run_until_connected(simulator, nodes, 120.0)
    simulator.run_until(simulator.now + simulator.random.choice((0.5, 5.0, 70.0, 200.0)))
    leaving = nodes.pop(simulator.random.randrange(3))
    if politely:
        leaving.shut_down()
    else:
        leaving.crash()
    simulator.run_until(simulator.now + simulator.random.choice((0.2, 3.0, 30.0, 400.0)))
    nodes.append(Node(simulator, link, leaving.number, leaving.link_local))
    _run_until_connected(simulator, nodes, 30.0 if link.loss == 0 else 150.0)
    simulator.run_until(simulator.now + 20.0)
    assert _all_connected_once(nodes)
    assert [node.unexpected for node in nodes] == [[], [], []]


@pytest.mark.parametrize("seed", range(8))
def test_two_nodes_with_address_zero(seed: int) -> None:
    """Two nodes with the acp-address "0" and one with an address.

    covers: 6.6-6
    """
    simulator, link = _link(seed)
    nodes = [
        Node(simulator, link, number, IPv6Address(f"fe80::{host:x}"))
        for number, host in zip((0, 0, 5), simulator.random.sample(range(1, 99), 3), strict=True)
    ]
    _run_until_connected(simulator, nodes, 120.0)


def test_ends_seldom_initiate_both() -> None:
    """On a good link the delay lets one end alone begin."""
    simulator = Simulator(3)
    link = Link(simulator, delay=0.002)
    nodes = [Node(simulator, link, number, IPv6Address(f"fe80::{number}")) for number in range(1, 6)]
    assert _run_until_connected(simulator, nodes, 5.0) < 1.5
    _check_quiet(simulator, nodes, 600.0)
    assert sum(len(node.initiated) for node in nodes) == 10


def test_unreachable_neighbour_is_tried_ever_less_often() -> None:
    """Announcements arrive, but nobody answers: the exponential back-off, for as long as it takes.

    covers: 6.7-2
    """
    simulator = Simulator(1)
    link = Link(simulator, mangle=lambda packet: (packet,) if packet.destination.is_multicast else ())
    nodes = [Node(simulator, link, number, IPv6Address(f"fe80::{number}")) for number in (1, 2)]
    simulator.run_until(4000.0)
    for node in nodes:
        gaps = [b - a - 5.0 for a, b in pairwise(node.initiated)]
        assert gaps[:8] == pytest.approx([10, 20, 40, 80, 160, 320, 640, 640])
    link.mangle = None
    _run_until_connected(simulator, nodes, 650.0)
