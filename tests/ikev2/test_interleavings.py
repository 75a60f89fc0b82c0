"""Rekeying in whatever order messages come: it always ends in one IKE SA and one child SA on both sides."""

from __future__ import annotations

from random import Random

import pytest

from minerva.ikev2.config import Config
from tests.ikev2.channel import Channel

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
