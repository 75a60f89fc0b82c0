from __future__ import annotations

from ipaddress import IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.rpl.downward import NEVER, Path, TargetTable, split_path_control

PREFIX = IPv6Network("fd89::2/127")
GRACE = 2.0


def path(sequence: int, bits: int = 0xFF, expires: float = NEVER) -> Path:
    return Path(sequence, bits, False, expires)


@pytest.mark.parametrize(
    ("bits", "parents", "masks"),
    [
        (0xFF, 1, (0xFF,)),
        (0xFF, 2, (0xF0, 0x0F)),
        (0xFF, 3, (0xE0, 0x1C, 0x03)),
        (0b10100001, 2, (0b10100000, 0b00000001)),
        (0x08, 3, (0x08,)),
        (0, 3, ()),
    ],
)
def test_split(bits: int, parents: int, masks: tuple[int, ...]) -> None:
    """covers: R9.9"""
    assert split_path_control(bits, parents) == masks


@given(st.integers(0, 255), st.integers(1, 8))
def test_split_is_disjoint_and_whole(bits: int, parents: int) -> None:
    masks = split_path_control(bits, parents)
    assert all(masks)
    assert sum(masks) == bits
    assert sum(mask.bit_count() for mask in masks) == bits.bit_count()
    assert list(masks) == sorted(masks, reverse=True)
    assert len(masks) == min(parents, bits.bit_count())


def test_more_preferred_bit_wins() -> None:
    table = TargetTable(GRACE)
    table.update(PREFIX, 1, path(240, 0x0F), 0)
    table.update(PREFIX, 2, path(240, 0xF0), 0)
    assert table.best(PREFIX) == 2
    summary = table.summary(PREFIX)
    assert summary is not None
    assert summary.path_control == 0xFF


def test_superseded_path_retires_and_comes_back() -> None:
    """A refresh that comes by two ways changes no route; a path that is not refreshed is set aside, and used
    again should the newer one go."""
    table = TargetTable(GRACE)
    table.update(PREFIX, 1, path(240, 0xF0), 0)
    table.update(PREFIX, 2, path(240, 0x0F), 0)
    table.update(PREFIX, 2, path(241, 0x0F), 10)
    assert table.best(PREFIX) == 1
    assert table.next_sweep == 12
    assert table.sweep(11.9) == []
    assert table.sweep(12) == [PREFIX]
    assert table.best(PREFIX) == 2
    assert table.next_sweep == NEVER
    assert not table.update(PREFIX, 1, path(240, 0xF0), 13)
    assert table.best(PREFIX) == 2
    assert table.withdraw(PREFIX, 2, 241, 14)
    assert table.best(PREFIX) == 1


def test_counters_that_are_no_order() -> None:
    """Of three counters each can be newer than the next; still there is a route."""
    table = TargetTable(GRACE)
    for interface, sequence in enumerate((5, 15, 250)):
        table.update(PREFIX, interface, path(sequence), 0)
    table.sweep(100)
    assert table.best(PREFIX) is not None
    assert table.summary(PREFIX) is not None


def test_expiry() -> None:
    table = TargetTable(GRACE)
    table.update(PREFIX, 1, path(240, expires=100), 0)
    table.update(PREFIX, 1, path(240, expires=300), 50)
    assert table.sweep(100) == []
    assert table.next_sweep == 300
    assert table.sweep(300) == [PREFIX]
    assert PREFIX not in table
    assert len(table) == 0
    assert table.best(PREFIX) is None
    assert table.summary(PREFIX) is None


def test_doubt() -> None:
    table = TargetTable(GRACE)
    assert not table.doubt(1, 10)
    table.update(PREFIX, 1, path(240), 0)
    assert table.doubt(1, 10)
    table.update(PREFIX, 1, path(240), 5)
    assert table.sweep(20) == []
    table.doubt(1, 30)
    assert table.sweep(30) == [PREFIX]


def test_drop_interface() -> None:
    table = TargetTable(GRACE)
    table.update(PREFIX, 1, path(240), 0)
    table.update(PREFIX, 2, path(240), 0)
    assert table.count(1) == 1
    assert table.drop_interface(1, 0) == [PREFIX]
    assert table.drop_interface(1, 0) == []
    assert table.best(PREFIX) == 2
    assert not table.withdraw(PREFIX, 1, 240, 0)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 255), st.booleans(), st.floats(0, 5), st.integers(0, 1))
    )
)
def test_there_is_a_route_while_there_is_a_path(
    steps: list[tuple[int, int, bool, float, int]],
) -> None:
    """Whatever comes in whatever order: indexes agree, and every child's last word is kept."""
    table = TargetTable(GRACE)
    now, words = 0.0, set()
    prefixes = [PREFIX, IPv6Network("fd89::4/127")]
    for interface, sequence, announce, pause, which in steps:
        now += pause
        table.sweep(now)
        prefix = prefixes[which]
        if announce:
            table.update(prefix, interface, path(sequence), now)
            words.add((prefix, interface))
        elif table.withdraw(prefix, interface, sequence, now):
            words.remove((prefix, interface))
        for each in prefixes:
            live = {i for p, i in words if p == each}
            assert (table.best(each) in live) if live else (table.best(each) is None)
            assert (each in table) == bool(live)
        assert all(table.count(i) == sum(1 for _, j in words if j == i) for i in range(4))
