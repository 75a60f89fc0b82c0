"""The anti-replay window against the obvious model: a set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.esp.errors import EspError
from minerva.esp.replay import MIN_WINDOW, ReplayWindow


class Model:
    """Remembers everything."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen: set[int] = set()

    def is_old(self, sequence: int) -> bool:
        return sequence + self.size <= max(self.seen, default=0)

    def is_new(self, sequence: int) -> bool:
        return sequence != 0 and sequence not in self.seen and not self.is_old(sequence)


LAST = 2**32 - 1
NUMBERS = st.one_of(
    st.integers(0, 200),
    st.integers(LAST - 200, LAST),
    st.integers(0, LAST),
)


@given(st.sampled_from([32, 33, 64, 100]), st.lists(st.tuples(NUMBERS, st.booleans()), max_size=200))
def test_agrees_with_a_set(size: int, packets: list[tuple[int, bool]]) -> None:
    window, model = ReplayWindow(size), Model(size)
    for sequence, authentic in packets:
        assert window.is_new(sequence) == model.is_new(sequence)
        assert window.is_old(sequence) == model.is_old(sequence)
        if authentic and model.is_new(sequence):
            window.accept(sequence)
            model.seen.add(sequence)
        assert window.top == max(model.seen, default=0)


@given(st.permutations(range(1, 129)))
def test_every_order_within_the_window_is_accepted_once(order: list[int]) -> None:
    window = ReplayWindow(128)
    for sequence in order:
        assert window.is_new(sequence)
        window.accept(sequence)
        assert not window.is_new(sequence)
    assert not any(window.is_new(sequence) for sequence in order)


def test_edges() -> None:
    window = ReplayWindow(32)
    assert not window.is_new(0)
    window.accept(100)
    assert window.is_new(69)
    assert not window.is_old(69)
    assert not window.is_new(68)
    assert window.is_old(68)
    window.accept(69)
    window.accept(101)
    assert window.is_old(69)
    window.accept(LAST)
    assert window.top == LAST
    assert not window.is_new(LAST)
    assert window.is_new(LAST - 31)


def test_too_small() -> None:
    ReplayWindow(MIN_WINDOW)
    with pytest.raises(EspError, match="at least 32"):
        ReplayWindow(MIN_WINDOW - 1)
