from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.rpl.sequence import INITIAL_SEQUENCE, Order, compare, increment, is_newer, is_older

_OPPOSITE = {
    Order.NEWER: Order.OLDER,
    Order.OLDER: Order.NEWER,
    Order.EQUAL: Order.EQUAL,
    Order.INCOMPARABLE: Order.INCOMPARABLE,
}
counters = st.integers(0, 255)


@pytest.mark.parametrize(
    ("value", "other", "order"),
    [
        (240, 5, Order.NEWER),
        (250, 5, Order.OLDER),
        (5, 250, Order.NEWER),
        (255, 0, Order.OLDER),
        (241, 240, Order.NEWER),
        (128, 144, Order.OLDER),
        (128, 145, Order.INCOMPARABLE),
        (0, 127, Order.NEWER),
        (120, 8, Order.OLDER),
        (16, 0, Order.NEWER),
        (17, 0, Order.INCOMPARABLE),
        (7, 7, Order.EQUAL),
    ],
)
def test_order(value: int, other: int, order: Order) -> None:
    """The RFC's two examples across the regions, and the edges of the window inside each."""
    assert compare(value, other) is order


@given(counters, counters)
def test_order_is_antisymmetric(value: int, other: int) -> None:
    assert compare(value, other) is _OPPOSITE[compare(other, value)]


@given(st.integers(0, 400), st.integers(1, 16))
def test_later_is_newer_within_the_window(start: int, steps: int) -> None:
    value = INITIAL_SEQUENCE
    for _ in range(start):
        value = increment(value)
    later = value
    for _ in range(steps):
        later = increment(later)
    assert is_newer(later, value)
    assert is_older(value, later)


def test_wraps_into_the_circle() -> None:
    assert increment(255) == 0
    assert increment(127) == 0
    assert increment(5) == 6
