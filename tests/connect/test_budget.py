"""Who causes much work waits, and so do many who cause a little each."""

from __future__ import annotations

import pytest

from minerva.connect.budget import ALLOWANCE, TimeBudget


def test_a_third_of_the_time_is_the_most() -> None:
    budget, now, worked = TimeBudget(1 / 3), 100.0, 0.0
    while now < 200:
        now += 0.01
        worked += 0.01
        now += budget.spent(0.01, now)
    assert worked == pytest.approx(100 / 3, rel=0.01)


def test_many_share_one_queue() -> None:
    budget = TimeBudget(1 / 3)
    waits = [budget.spent(0.01, 100 + 0.01 * number) for number in range(1, 11)]
    expected = [0.02 * number for number in range(1, 11)]
    assert waits == pytest.approx([wait if wait > ALLOWANCE else 0 for wait in expected])


def test_a_word_now_and_then_costs_no_wait() -> None:
    budget = TimeBudget(1 / 3)
    assert [budget.spent(0.005, float(second)) for second in range(100)] == [0.0] * 100


def test_a_pause_is_not_saved_up() -> None:
    budget = TimeBudget(0.5)
    budget.spent(1.0, 0.0)
    assert budget.spent(0.25, 1000.0) == pytest.approx(0.25)
