"""Two endpoints on links that lose, delay, duplicate, reorder and mutate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from minerva.ikev2.config import Config
from minerva.ikev2.endpoint import Closed, Established, Failed, State
from minerva.sim.link import Packet
from tests.ikev2.nodes import MEMBER_A, A, B, Net, Node, check_match


def ups(node: Node) -> list[Established]:
    """What is up at the end."""
    over = {event.sa for event in node.events(Closed)}
    return [event for event in node.events(Established) if event.sa not in over]


def check_agreement(net: Net) -> None:
    """Assert that both ends hold the same SAs, with the same keys."""
    of_a = {event.ike_spi_i: event for event in ups(net.a)}
    of_b = {event.ike_spi_i: event for event in ups(net.b)}
    assert of_a.keys() == of_b.keys()
    for spi, event in of_a.items():
        check_match(event, of_b[spi])
    for node in (net.a, net.b):
        states = [status.state for status in node.endpoint.status()]
        assert states == [State.ESTABLISHED] * len(of_a)


def test_a_clean_link() -> None:
    net = Net()
    check_match(*net.handshake())
    net.run(60)
    check_agreement(net)
    # A probe and its response every three seconds, by one side.
    assert len(net.link.carried) == pytest.approx(4 + 2 * 20, abs=3)


@pytest.mark.parametrize("loss", [0.0, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("seed", range(8))
def test_bad_links(loss: float, seed: int) -> None:
    """Lost, late, twice, in another order: in the end both are up with the same keys, or neither is."""
    net = Net(seed=seed, loss=loss, delay=0.01, jitter=0.7, duplicate=0.3)
    net.a.initiate(B)
    net.run(21)
    net.link.loss = 0.0
    net.run(40)
    check_agreement(net)
    outcomes = [*net.a.events(Established), *net.a.events(Failed)]
    assert len(outcomes) == 1
    if loss <= 0.1:
        assert ups(net.a)


def test_most_handshakes_survive_heavy_loss() -> None:
    successes = 0
    for seed in range(40):
        net = Net(seed=seed, loss=0.4, delay=0.01)
        net.a.initiate(B)
        net.run(21)
        successes += bool(net.a.events(Established))
    assert successes >= 24


@pytest.mark.parametrize("seed", range(10))
def test_mutating_links(seed: int) -> None:
    """Every packet may be preceded by a changed copy of itself: the genuine one counts."""
    net: Net

    def mangle(packet: Packet) -> Iterable[Packet]:
        source = net.simulator.random
        if source.random() < 0.7:
            changed = bytearray(packet.data)
            changed[source.randrange(len(changed))] ^= 1 << source.randrange(8)
            yield Packet(
                bytes(changed), packet.source, packet.source_port, packet.destination, packet.destination_port
            )
        yield packet

    net = Net(seed=seed, mangle=mangle)
    net.a.initiate(B)
    net.run(30)
    assert len(ups(net.a)) == 1
    check_agreement(net)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_both_begin_at_once(seed: int, loss: float) -> None:
    """Two SAs, both reported by both: which one goes is for the adjacency to decide."""
    net = Net(seed=seed, loss=loss, delay=0.02, jitter=0.05)
    net.a.initiate(B)
    net.b.initiate(A)
    net.run(21)
    net.link.loss = 0.0
    net.run(30)
    check_agreement(net)
    if loss == 0.0:
        for node in (net.a, net.b):
            assert [event.initiator for event in sorted(ups(node), key=lambda e: e.initiator)] == [
                False,
                True,
            ]
            assert not node.events(Closed)


@pytest.mark.parametrize("closer", ["a", "b"])
@pytest.mark.parametrize("seed", range(5))
def test_the_owner_closes_one_of_two(closer: str, seed: int) -> None:
    net = Net(seed=seed, delay=0.02, jitter=0.05)
    net.a.initiate(B)
    net.b.initiate(A)
    net.run(2)
    node: Node = getattr(net, closer)
    own = next(event for event in ups(node) if event.initiator)
    node.close(own.sa, "one is enough")
    net.run(20)
    check_agreement(net)
    assert len(ups(net.a)) == 1


@pytest.mark.parametrize("closer", ["a", "b"])
@pytest.mark.parametrize("loss", [0.0, 0.4])
def test_deletion_from_either_side(closer: str, loss: float) -> None:
    net = Net(seed=3)
    net.handshake()
    net.link.loss = loss
    node, other = (net.a, net.b) if closer == "a" else (net.b, net.a)
    node.close(ups(node)[0].sa)
    assert node.events(Closed)[0].reason == "test"
    net.run(15)
    assert other.events(Closed)[0].address == node.address
    net.link.loss = 0.0
    net.run(30)
    check_agreement(net)
    assert not net.a.endpoint._sas
    assert not net.b.endpoint._sas


@pytest.mark.parametrize("dead", ["a", "b"])
def test_a_peer_that_vanishes(dead: str) -> None:
    """covers: 6.12-dpd"""
    net = Net()
    net.handshake()
    net.run(7.3)
    dead_node, living = (net.a, net.b) if dead == "a" else (net.b, net.a)
    died = net.simulator.now
    dead_node.driver.stop()
    net.run(60)
    (closed,) = living.events(Closed)
    assert "does not answer" in closed.reason
    assert living.when(Closed) - died < 10.0
    assert not living.endpoint._sas


def test_a_short_interruption_is_survived() -> None:
    net = Net()
    net.handshake()
    net.run(5)
    net.link.up = False
    net.run(4)
    net.link.up = True
    net.run(20)
    check_agreement(net)
    assert ups(net.a)


def test_a_peer_that_restarts() -> None:
    """It comes back with nothing, begins anew, and says so: no wait for the old SA's death."""
    net = Net()
    _, old = net.handshake()
    net.a.driver.stop()
    net.a = Node(net.simulator, net.link, A, MEMBER_A, seed=99)
    net.run(1)
    net.a.initiate(B)
    net.run(1)
    (closed,) = net.b.events(Closed)
    assert (closed.sa, closed.reason) == (old.sa, "the peer restarted")
    check_agreement(net)
    assert len(ups(net.b)) == 1


def test_the_same_seed_makes_the_same_packets_but_for_the_keys() -> None:
    def sizes() -> list[Any]:
        net = Net(seed=5, loss=0.3, jitter=0.1, duplicate=0.2)
        net.a.initiate(B)
        net.run(20)
        return [(p.source, p.data[:8], len(p.data) // 50) for p in net.link.carried]

    assert sizes() == sizes()


def test_slow_signers() -> None:
    """The signer is another process, and may be busy: retransmissions meanwhile do no harm."""
    net = Net()
    net.a.signing = net.b.signing = 2.0
    check_match(*net.handshake(seconds=8.0))
    check_agreement(net)
    assert net.b.endpoint.counters["repeated request while its response is made"] > 0


def test_other_settings() -> None:
    config = Config(liveness_interval=1.0)
    net = Net(config_a=config, config_b=config)
    net.handshake()
    net.run(30)
    check_agreement(net)
