"""Rekeying in whatever order messages come: it always ends in one IKE SA and one child SA on both sides."""

from __future__ import annotations

from random import Random

import pytest

from minerva.ikev2.children import ChildState
from minerva.ikev2.config import Config
from minerva.ikev2.endpoint import ChildUp, Closed, Established, IkeRekeyed
from tests.ikev2.channel import Channel
from tests.ikev2.nodes import A, B, Hand, hands, recorded

CALM = Config(rekey_jitter=0.0)
"""Nothing happens but what the test triggers."""

KINDS = [
    [("a", "child"), ("b", "child")],
    [("a", "ike"), ("b", "ike")],
    [("a", "child"), ("b", "ike")],
    [("a", "ike"), ("b", "child")],
    [("a", "child"), ("a", "ike"), ("b", "child"), ("b", "ike")],
]
"""Who begins what at about the same time."""


@pytest.mark.parametrize("loss", [0.0, 0.15, 0.35])
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_both_begin_at_about_the_same_time(kind: int, loss: float) -> None:
    """covers: 6.8-rekey, 6.8.2-3"""
    for seed in range(36):
        source = Random(f"{kind}/{loss}/{seed}")
        delay = source.choice([0.001, 0.01, 0.2])
        net = Channel(
            CALM,
            seed=seed,
            loss=loss,
            delay=delay,
            jitter=source.choice([0.0, delay, 0.6]),
            duplicate=source.choice([0.0, 0.3]),
            interval=0.0 if seed % 3 else 0.1,
            esp_delay=delay,
        )
        for round_ in range(2):
            for who, what in KINDS[kind]:
                when = source.uniform(0.0, 3 * delay) if source.random() < 0.8 else source.uniform(0.0, 2.0)
                net.rekey_later(net.a if who == "a" else net.b, what, when)
            net.run(25.0)
            net.link.loss, lossy = 0.0, net.link.loss
            net.run(60.0)
            if net.closed():
                # Only because nothing came through for the whole time of a request.
                assert loss > 0.3, (seed, round_, net.closed())
                break
            assert net.settled(), (seed, round_)
            net.check()
            assert net.lost == {"a": [], "b": []}, "rekeying has lost packets"
            net.link.loss = lossy


class Pool:
    """Two nodes and the messages between them, of which any may be the next to arrive, again, or never."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.a, self.b = hands(CALM, CALM, seed)
        recorded(self.a, self.b)
        self.now = 1.0
        self.flying: list[tuple[Hand, bytes]] = []

    def collect(self, hand: Hand) -> None:
        other = self.b if hand is self.a else self.a
        self.flying += [(other, datagram.data) for datagram in hand.out(self.now)]

    def deliver(self, index: int, *, keep: bool = False) -> None:
        hand, data = self.flying[index] if keep else self.flying.pop(index)
        source = B if hand is self.a else A
        self.flying += [
            (self.a if hand is self.b else self.b, out) for out in hand.take(data, source, self.now)
        ]

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for hand in (self.a, self.b):
            hand.endpoint.on_timer(self.now)
            self.collect(hand)

    def rekey(self, hand: Hand, what: str) -> None:
        method = hand.endpoint.rekey_child if what == "child" else hand.endpoint.rekey_ike
        method(hand.of(Established)[0].sa, self.now)
        self.collect(hand)

    def step(self) -> None:
        what, some = self.random.random(), len(self.flying)
        if some and what < 0.6:
            self.deliver(self.random.randrange(some))
        elif some and what < 0.7:
            self.deliver(self.random.randrange(some), keep=True)
        elif some and what < 0.78:
            self.flying.pop(self.random.randrange(some))
        elif what < 0.85:
            self.rekey(self.random.choice([self.a, self.b]), self.random.choice(["child", "child", "ike"]))
        else:
            self.wait(self.random.choice([0.01, 0.05, 0.2]))

    def settle(self) -> None:
        """From now on all arrives, in the order in which it was sent, for longer than anything lingers."""
        end = self.now + 70.0
        while self.now < end:
            while self.flying:
                self.deliver(0)
            self.wait(0.25)


@pytest.mark.parametrize("block", range(6))
def test_any_order_of_messages(block: int) -> None:
    """covers: 6.8-rekey"""
    replaced = 0
    for seed in range(block * 30, block * 30 + 30):
        pool = Pool(seed)
        for _ in range(pool.random.choice([20, 60, 120])):
            pool.step()
        pool.settle()
        ends = []
        for hand in (pool.a, pool.b):
            assert not hand.of(Closed), (seed, hand.of(Closed))
            (sa,) = hand.endpoint._by_spi.values()
            assert hand.endpoint._sas == {hand.of(Established)[0].sa: sa}
            (child,) = sa.children
            assert child.state is ChildState.INSTALLED
            assert hand.endpoint._context.child_spis == {child.keys.spi_in}
            ends.append((sa, child.keys))
        (a, ours), (b, theirs) = ends
        assert (a._spi_i, a._spi_r, a.initiator) == (b._spi_i, b._spi_r, not b.initiator)
        assert (ours.spi_in, ours.key_in) == (theirs.spi_out, theirs.key_out)
        assert (ours.spi_out, ours.key_out) == (theirs.spi_in, theirs.key_in)
        replaced += len(pool.a.of(IkeRekeyed)) + len(pool.a.of(ChildUp))
    assert replaced > 60
