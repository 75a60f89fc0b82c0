"""Virtual time."""

from __future__ import annotations

from minerva.sim.kernel import Simulator


def test_callbacks_run_in_order_of_time() -> None:
    """By time, and those of equal time in the order given; none before its time."""
    simulator = Simulator()
    seen: list[tuple[float, str]] = []
    for when, name in ((2.0, "c"), (1.0, "a"), (1.0, "b"), (3.0, "d")):
        simulator.call_at(when, lambda name=name: seen.append((simulator.now, name)))
    simulator.run_until(2.5)
    assert seen == [(1.0, "a"), (1.0, "b"), (2.0, "c")]
    assert simulator.now == 2.5
    simulator.run_until(3.0)
    assert seen[-1] == (3.0, "d")


def test_cancelled_callbacks_do_not_run() -> None:
    """A timer that is cancelled, even at its own time, stays silent."""
    simulator = Simulator()
    seen: list[str] = []
    later = simulator.call_later(1.0, lambda: seen.append("later"))
    simulator.call_at(0.5, later.cancel)
    simulator.run_until(5.0)
    assert seen == []


def test_the_past_is_now() -> None:
    """Time never goes backwards."""
    simulator = Simulator(start=10.0)
    seen: list[float] = []
    simulator.call_at(3.0, lambda: seen.append(simulator.now))
    simulator.call_later(-1.0, lambda: seen.append(simulator.now))
    simulator.run_until(9.0)
    assert simulator.now == 10.0
    simulator.run_until(10.0)
    assert seen == [10.0, 10.0]


def test_callbacks_may_call() -> None:
    """What a callback asks for in time is run, too."""
    simulator = Simulator()
    seen: list[float] = []

    def tick() -> None:
        seen.append(simulator.now)
        simulator.call_later(1.0, tick)

    simulator.call_later(1.0, tick)
    simulator.run_until(4.5)
    assert seen == [1.0, 2.0, 3.0, 4.0]


def test_run_while() -> None:
    """It stops as soon as the condition does not hold, or at the limit, and says which."""
    simulator = Simulator()
    seen: list[float] = []
    for when in (1.0, 2.0, 3.0):
        simulator.call_at(when, lambda: seen.append(simulator.now))
    assert simulator.run_while(lambda: len(seen) < 2, limit=10.0)
    assert (seen, simulator.now) == ([1.0, 2.0], 2.0)
    assert not simulator.run_while(lambda: len(seen) < 9, limit=10.0)
    assert seen == [1.0, 2.0, 3.0]


def test_same_seed_same_run() -> None:
    """The randomness of a run is its seed's."""
    runs = [[Simulator(seed).random.random() for _ in range(3)] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
