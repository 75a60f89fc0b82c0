"""Whole networks: every connected pair can reach each other, soon, and no route outlives its target."""

from __future__ import annotations

from ipaddress import IPv6Network
from random import Random

import pytest

from minerva.rpl.config import LOW_SPEED_FACTOR, Preference
from minerva.rpl.events import DEFAULT_ROUTE, Role
from minerva.rpl.messages import Dao, decode

from .network import Edge, Network, line, mesh, random_graph, ring, star, tree

QUICK = 1.0
"""Seconds in which a network on good links of 1 ms converges, whatever happened to it but a hold-down."""

HELD = 2.0
"""The same where nodes have to wait for one or two hold-downs."""

LOSSY = 10.0
"""The same with up to a fifth of all messages lost."""

TOPOLOGIES: dict[str, tuple[int, list[Edge]]] = {
    "line:2": (2, line(2)),
    "line:5": (5, line(5)),
    "line:20": (20, line(20)),
    "ring:6": (6, ring(6)),
    "ring:10": (10, ring(10)),
    "star:6": (6, star(6)),
    "tree:2x2": tree(2, 2),
    "tree:3x3": tree(3, 3),
    "mesh:6": (6, mesh(6)),
    "random:30": (30, random_graph(30, 30, Random(1))),
}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_topology(name: str) -> None:
    """Everything reaches everything in less than a second; without a registrar the highest address roots.

    covers: 6.12-1, 6.12.1.2-1
    """
    count, edges = TOPOLOGIES[name]
    net = Network(count, edges)
    assert net.converge(QUICK) < QUICK
    assert net.root == count - 1


@pytest.mark.parametrize("registrar", range(6))
@pytest.mark.parametrize("edges", [line(6), ring(6), mesh(6)], ids=["line", "ring", "mesh"])
def test_registrar_is_the_root(edges: list[Edge], registrar: int) -> None:
    """covers: 6.12.1.12-1"""
    net = Network(6, edges, preferences={registrar: Preference.REGISTRAR})
    net.converge(QUICK)
    assert net.root == registrar
    assert all(host.node.status(net.now).grounded for host in net.hosts)


def test_two_registrars_and_a_configured_root() -> None:
    """Equal preferences: the higher address; when it dies, the other; a configured root beats both.

    covers: 6.12.1.12-1
    """
    registrars = {1: Preference.REGISTRAR, 4: Preference.REGISTRAR}
    net = Network(8, ring(8), preferences=registrars)
    net.converge(QUICK)
    assert net.root == 4
    net.kill(4)
    net.converge(HELD)
    assert net.root == 1
    net.hosts[6].node.set_preference(Preference.CONFIGURED_ROOT, net.now)
    net.hosts[6].pump()
    net.converge(QUICK)
    assert net.root == 6
    net.hosts[6].node.set_preference(Preference.DEFAULT, net.now)
    net.hosts[6].pump()
    net.run(0.2)
    net.converge(QUICK)
    assert net.root == 1


def test_slow_links() -> None:
    """A chain of twenty 100 Mbit/s links is one DODAG; OF0's default step of rank would cut it after 16."""
    net = Network(20, line(20), factor=LOW_SPEED_FACTOR)
    net.converge(QUICK)
    assert max(host.node.status(net.now).rank for host in net.hosts) == 256 + 19 * 5 * 256


def test_every_link_of_a_ring_cut_and_mended() -> None:
    """covers: 6.12.1.7-2, 6.12.1.7-3"""
    net = Network(6, ring(6))
    net.converge(QUICK)
    for edge in ring(6):
        net.run(40)
        net.cut(*edge)
        net.converge(HELD)
        net.run(40)
        net.connect(*edge)
        net.converge(HELD)


@pytest.mark.parametrize("victim", range(9))
def test_death_of_any_node(victim: int) -> None:
    """The root among them: what is left converges, and no route to the dead one is left."""
    edges = random_graph(9, 6, Random(3))
    net = Network(9, edges, preferences={2: Preference.REGISTRAR})
    net.converge(QUICK)
    net.run(30)
    net.kill(victim)
    net.converge(HELD)
    net.run(5)
    assert net.problem() is None


def test_split_and_merge() -> None:
    """Two halves, each with its own root, become one again."""
    net = Network(10, [*line(10)], preferences={1: Preference.REGISTRAR, 8: Preference.ACP_CONNECT})
    net.converge(QUICK)
    net.cut(4, 5)
    net.converge(QUICK)
    assert {h.number for h in net.hosts if h.node.role is Role.ROOT} == {1, 8}
    net.run(100)
    net.connect(4, 5)
    net.converge(QUICK)
    assert net.root == 1


def test_merge_of_two_networks() -> None:
    left, right = random_graph(8, 5, Random(5)), random_graph(8, 5, Random(6))
    net = Network(16, [*left, *((a + 8, b + 8) for a, b in right)])
    net.converge(QUICK)
    net.connect(3, 11)
    net.converge(QUICK)
    assert net.root == 15


def test_walk_through() -> None:
    """Three in a line, the tail moves: its newer path survives the late No-Path for the older one.

    covers: R9.5, R9.8, R9.2.2, R8.0
    """
    # 3 is the root; 2 and 1 are its neighbours; 0 hangs on 1 first.
    net = Network(4, [(3, 2), (3, 1), (1, 0)])
    net.converge(QUICK)
    tail = net.hosts[0].prefix
    root = net.hosts[3]
    net.run(10)
    before = root.routes[tail]
    net.connect(2, 0)
    net.cut(1, 0)
    net.converge(QUICK)
    net.run(10)
    assert root.routes[tail] != before
    assert tail not in net.hosts[1].routes
    assert net.hosts[0].routes.keys() == {DEFAULT_ROUTE, IPv6Network(root.address)}


def test_redundant_parents_carry_on_without_the_root_noticing() -> None:
    """A node with two parents loses one: reachable all the time but for the message's way up."""
    net = Network(4, [(3, 1), (3, 2), (1, 0), (2, 0)])
    net.converge(QUICK)
    net.run(1)
    assert len(net.hosts[0].node.parents) == 2
    net.cut(0, net.hosts[0].channels[net.hosts[0].node.parents[0]].peer)
    net.run(0.005)
    assert net.problem() is None


def test_goodbye_is_heard_before_the_channel_closes() -> None:
    """Neighbours react to a shutdown at once, although their IKE notices nothing yet.

    covers: R8.2.2.5
    """
    net = Network(5, mesh(5), preferences={2: Preference.REGISTRAR})
    net.converge(QUICK)
    host = net.hosts[2]
    host.node.shutdown(net.now)
    host.pump()
    host.alive = False
    net.converge(QUICK)
    assert net.root == 4
    assert host.routes == {}


def test_one_way_channel_is_not_used() -> None:
    """Node 1 hears the root directly, but is not heard: it goes the long way.

    covers: R8.4
    """
    net = Network(3, [(0, 2), (0, 1)], preferences={2: Preference.REGISTRAR})
    net.connect(1, 2)
    link = net.links[1, 2]
    ours = {c.attachment.address for c in net.hosts[1].channels.values()}
    link.mangle = lambda packet: () if packet.source in ours else (packet,)
    net.converge(QUICK)
    (parent,) = net.hosts[1].node.parents
    assert net.hosts[1].channels[parent].peer == 0


def test_channels_in_any_order() -> None:
    for seed in range(10):
        random = Random(seed)
        edges = random_graph(10, 8, random)
        net = Network(10, edges, seed=seed, up=False)
        for edge in random.sample(edges, len(edges)):
            net.connect(*edge)
            net.run(random.random())
        net.converge(QUICK)


def test_restarted_process() -> None:
    """Every node in turn forgets everything while its channels stay up."""
    net = Network(8, random_graph(8, 5, Random(8)), preferences={3: Preference.REGISTRAR})
    net.converge(QUICK)
    for number in range(8):
        net.run(20)
        net.restart(number)
        net.converge(HELD)
        net.run(15)
        assert net.problem() is None


def test_calm_network_is_quiet() -> None:
    """An hour in a line of five: a keep-alive a minute and interface, and seven refreshes a node, which
    travel to the root with their acknowledgements. Not one route changes.

    covers: 6.12.1.7-1, 6.12.1.7-4
    """
    net = Network(5, line(5))
    net.converge(QUICK)
    net.run(60)
    before = [dict(host.node.sent) for host in net.hosts]
    changes = [len(host.events) for host in net.hosts]
    net.run(3600)
    for number, host in enumerate(net.hosts):
        sent = {kind: count - before[number].get(kind, 0) for kind, count in host.node.sent.items()}
        ends = len(host.channels)
        below = number + 1
        assert 54 * ends <= sent["Dio"] <= 67 * ends
        assert sent["Dis"] == 0
        assert sent.get("Dao", 0) <= (8 * below if number < 4 else 0)
        assert sent.get("DaoAck", 0) <= 8 * number
    assert [len(host.events) for host in net.hosts] == changes
    assert net.problem() is None


def test_message_counts_while_converging() -> None:
    """Not many: fewer than sixty a node up to the last repetition of the last DIO."""
    for name in ("line:5", "ring:6", "tree:2x2"):
        count, edges = TOPOLOGIES[name]
        net = Network(count, edges)
        net.run(20)
        assert net.messages() < 60 * count


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("loss", [0.05, 0.2])
def test_bad_links(seed: int, loss: float) -> None:
    """Loss, duplicates and reordering."""
    random = Random(seed)
    edges = random_graph(10, 6, random)
    net = Network(10, edges, seed=seed, loss=loss, delay=0.005, jitter=0.05, duplicate=0.1)
    net.converge(LOSSY)
    victim = random.choice(edges)
    net.cut(*victim)
    net.converge(LOSSY)
    net.connect(*victim)
    net.converge(LOSSY)
    net.kill(random.randrange(10))
    net.converge(LOSSY)


def test_long_ways() -> None:
    """A tenth of a second a hop, ten hops."""
    net = Network(10, ring(10), delay=0.1)
    net.converge(10)
    net.run(40)
    net.cut(*ring(10)[-1])
    net.converge(10)


def test_daos_go_up_only() -> None:
    """No node ever announces to anybody but a neighbour of lower rank, by unicast.

    covers: R9.1, R9.8
    """
    net = Network(9, random_graph(9, 9, Random(4)))
    net.converge(QUICK)
    net.run(20)
    for link in net.links.values():
        link.carried.clear()
    net.run(3600)
    seen = 0
    for edge, link in net.links.items():
        ranks = {
            channel.attachment.address: net.hosts[n].node.status(net.now).rank
            for n in edge
            for channel in net.hosts[n].channels.values()
            if channel.link is link
        }
        for packet in link.carried:
            if isinstance(decode(packet.data), Dao):
                assert ranks[packet.destination] < ranks[packet.source]
                seen += 1
    assert seen > 50
