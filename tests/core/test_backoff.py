"""Exponential back-off."""

from __future__ import annotations

import pytest

from minerva.core.backoff import Backoff


def test_defaults_are_those_of_rfc8994() -> None:
    """10 s doubling to 640 s, and from the start after a reset."""
    backoff = Backoff()
    assert [backoff.failed() for _ in range(8)] == [10, 20, 40, 80, 160, 320, 640, 640]
    assert backoff.failures == 8
    backoff.reset()
    assert backoff.failures == 0
    assert backoff.failed() == 10


def test_failing_for_years() -> None:
    """The delay stays at its maximum, however many failures there were."""
    backoff = Backoff(1.0, 5.0)
    for _ in range(2000):
        delay = backoff.failed()
    assert delay == 5.0


@pytest.mark.parametrize(("number", "delay"), [(0.0, 10.0), (0.5, 11.0), (0.999, 11.998)])
def test_jitter(number: float, delay: float) -> None:
    """Jitter adds up to its fraction of the delay."""
    backoff = Backoff(jitter=0.2, random=lambda: number)
    assert backoff.failed() == pytest.approx(delay)
