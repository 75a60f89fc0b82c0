"""Session IDs: fresh, not in use, not lately used."""

from __future__ import annotations

from random import Random

from minerva.grasp.session_id import SessionIds


class Dice(Random):
    """Gives the numbers that it is told, one after the other."""

    def __init__(self, *values: int) -> None:
        super().__init__(0)
        self.values = list(values)

    def getrandbits(self, k: int, /) -> int:
        """Return the next one."""
        assert k == 32
        return self.values.pop(0)


def test_what_is_in_use_is_not_given_out() -> None:
    """Neither by us nor by somebody else.

    covers: G2.7-1
    """
    ids = SessionIds(Dice(5, 6, 5, 7), recent=0)
    ids.hold(5)
    assert ids.is_active(5)
    assert ids.new() == 6
    ids.release(5)
    assert ids.new() == 5
    assert not ids.is_active(6)


def test_what_was_lately_given_out_is_not_given_out_again() -> None:
    """covers: G2.7-1"""
    ids = SessionIds(Dice(1, 1, 2, 2, 1, 3, 1), recent=2)
    assert [ids.new() for _ in range(4)] == [1, 2, 3, 1]


def test_releasing_twice_does_no_harm() -> None:
    ids = SessionIds(Dice(1))
    ids.hold(1)
    ids.release(1)
    ids.release(1)
    assert not ids.is_active(1)


def test_they_use_all_32_bits_and_differ_from_node_to_node() -> None:
    """covers: G2.7-1"""
    drawn = [{SessionIds(Random(seed)).new() for _ in range(1)} for seed in range(200)]
    values = set().union(*drawn)
    assert len(values) == 200
    for bit in range(32):
        assert len({value >> bit & 1 for value in values}) == 2
