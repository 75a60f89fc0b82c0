"""Who causes much work waits, and so do many who cause a little each."""

from __future__ import annotations

import pytest

from minerva.connect.budget import TimeBudget


def test_a_third_of_the_time_is_the_most() -> None:
    budget, now, worked = TimeBudget(1 / 3), 100.0, 0.0
    while now < 110:
        wait = budget.spent(now, now + 0.01)
        worked += 0.01
        now += 0.01 + wait
    assert worked == pytest.approx(10 / 3, rel=0.01)


def test_many_share_one_queue() -> None:
    budget = TimeBudget(1 / 3)
    waits = [budget.spent(100.0, 100.01) for _ in range(10)]
    assert waits == pytest.approx([0.02 * number for number in range(1, 11)])


def test_a_pause_is_not_saved_up() -> None:
    budget = TimeBudget(0.5)
    budget.spent(0.0, 1.0)
    assert budget.spent(1000.0, 1000.25) == pytest.approx(0.25)
