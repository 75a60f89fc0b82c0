"""Floods in networks of thousands of nodes, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import pytest

from minerva.grasp.api import ErrorCode, TaggedObjective
from tests.grasp.network import F_SYNCH, Network, objective

EX1 = objective("EX1", F_SYNCH)
Edges = Callable[[int, Random], Iterator[tuple[int, int]]]


def tree(size: int, random: Random) -> Iterator[tuple[int, int]]:
    """Yield the edges of a random tree, not as deep as the 255 hops that a loop count allows."""
    return ((random.randrange(max(0, node - 200), node), node) for node in range(1, size))


def graph(size: int, random: Random) -> Iterator[tuple[int, int]]:
    """Yield the edges of a random graph in one piece whose nodes have three neighbours on average."""
    yield from tree(size, random)
    edges = size // 2
    while edges:
        a = random.randrange(size)
        b = (a + random.randint(2, 100)) % size
        yield a, b
        edges -= 1


@pytest.mark.parametrize(
    ("size", "edges"),
    [(2000, tree), (2000, graph), (10_000, graph), pytest.param(10_000, tree, marks=pytest.mark.soak)],
)
def test_a_flood_reaches_every_node_and_is_relayed_once_by_each(
    size: int, edges: Edges, record_property: Callable[[str, object], None]
) -> None:
    """Every link carries it once, or twice where both its ends had it already: never more.

    covers: G2.5.6.2-3, G2.5.6.2-5, 6.9.2-8
    """
    network = Network(size)
    links = list(edges(size, Random(size)))
    for a, b in links:
        network.join(a, b)
    network.run(5)
    asas = [(node, network.asa(node)) for node in (0, size // 2, size - 1)]
    for node, asa in asas:
        asa.register(EX1, overlap=True)
        before = network.streams.messages
        tagged = TaggedObjective(objective("EX1", F_SYNCH, node, 255))
        assert asa.call("flood", 0, [tagged]).code is ErrorCode.ok
        network.run(1)
        messages = network.streams.messages - before
        record_property(f"messages per node of a flood in a {edges.__name__} of {size}", messages / size)
        assert len(links) <= messages <= 2 * len(links) - (size - 1)
        if edges is tree:
            assert messages == size - 1
    for number, node in enumerate(network.nodes):
        [copy] = node.core.floods("EX1", network.simulator.now)
        assert copy.objective.value == size - 1
        received = node.core.counters["floods-received"]
        assert received == len(asas) - (number in [origin for origin, _ in asas])
        relayed = node.core.counters["floods-relayed"]
        assert relayed == received * (len(node.neighbours) - 1)
