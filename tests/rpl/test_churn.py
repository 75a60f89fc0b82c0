"""Random histories: links and nodes come and go, preferences change, processes restart; then it is calm."""

from __future__ import annotations

from random import Random

import pytest

from minerva.rpl.config import Preference

from .network import Network, random_graph

CALM = 20.0
"""Seconds from the last change in which a network has to be in order again: the longest hold-down twice."""

LATER = 70.0
"""And then it has to stay in order, past a keep-alive of everybody."""


def churn(seed: int, smallest: int, largest: int, steps: int) -> Network:
    """A network of seeded size, links and history; returns it after the last step."""
    random = Random(seed)
    count = random.randint(smallest, largest)
    preferences = {
        random.randrange(count): random.choice(list(Preference)) for _ in range(random.randrange(3))
    }
    net = Network(
        count,
        random_graph(count, random.randrange(count), random),
        seed=seed,
        preferences=preferences,
        up=False,
        loss=random.choice([0, 0, 0.05, 0.1, 0.2]),
        delay=random.choice([0.001, 0.005, 0.02]),
        jitter=random.choice([0, 0.005, 0.05]),
        duplicate=random.choice([0, 0.1]),
    )
    for edge in random.sample(net.edges, len(net.edges)):
        net.connect(*edge)
        net.run(random.random() * 0.2)
    for _ in range(random.randint(1, steps)):
        net.run(random.choice([0.01, 0.1, 1, 5]) * random.random())
        step(net, random)
    return net


def step(net: Network, random: Random) -> None:
    """One thing happens."""
    alive = [host.number for host in net.hosts if host.alive]
    down = [
        edge
        for edge in net.edges
        if edge not in net.links and all(net.hosts[number].alive for number in edge)
    ]
    dice = random.random()
    if dice < 0.45 and net.links:
        net.cut(*random.choice(sorted(net.links)))
    elif dice < 0.85 and down:
        net.connect(*random.choice(down))
    elif dice < 0.9 and len(alive) > 2:
        net.kill(random.choice(alive))
    elif dice < 0.95:
        net.restart(random.choice(alive))
    else:
        host = net.hosts[random.choice(alive)]
        host.node.set_preference(random.choice(list(Preference)), net.now)
        host.pump()


def settle(net: Network) -> None:
    net.converge(CALM)
    net.run(LATER)
    assert net.problem() is None


@pytest.mark.parametrize("seed", range(100))
def test_calm_after_churn(seed: int) -> None:
    settle(churn(seed, 3, 10, 14))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1000, 1300))
def test_calm_after_much_churn(seed: int) -> None:
    settle(churn(seed, 15, 30, 40))
