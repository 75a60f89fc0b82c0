"""RPL's sequence counters (RFC 6550 section 7.2): first straight from 128 to 255, then round from 0 to 127.

A counter starts in the straight run, so that a node that has just (re)started is told from one that has
been counting for long. This is how DODAG versions, DTSNs, DAO sequences and Path Sequences count.
"""

from __future__ import annotations

from enum import Enum

SEQUENCE_WINDOW = 16
INITIAL_SEQUENCE = 240
"""Where a counter starts: 256 - SEQUENCE_WINDOW, as the RFC recommends."""

_CIRCLE = 128


class Order(Enum):
    """How one counter relates to another."""

    OLDER = -1
    EQUAL = 0
    NEWER = 1
    INCOMPARABLE = 2
    """Both in the same region, but further apart than the window: one of the nodes lost its state."""


def increment(value: int) -> int:
    """Return the counter after ``value``: 255 and 127 are both followed by 0."""
    return 0 if value in (255, 127) else value + 1


def compare(value: int, other: int) -> Order:
    """Say how ``value`` relates to ``other``.

    In the circle the distance is taken around it, or 0 would not follow 127.
    """
    if value == other:
        return Order.EQUAL
    if value >= _CIRCLE > other:
        return Order.OLDER if 256 + other - value <= SEQUENCE_WINDOW else Order.NEWER
    if other >= _CIRCLE > value:
        return Order.NEWER if 256 + value - other <= SEQUENCE_WINDOW else Order.OLDER
    if value >= _CIRCLE:
        if abs(value - other) > SEQUENCE_WINDOW:
            return Order.INCOMPARABLE
        return Order.NEWER if value > other else Order.OLDER
    ahead = (value - other) % _CIRCLE
    if ahead <= SEQUENCE_WINDOW:
        return Order.NEWER
    return Order.OLDER if _CIRCLE - ahead <= SEQUENCE_WINDOW else Order.INCOMPARABLE


def is_older(value: int, other: int) -> bool:
    """Return whether ``value`` is surely older than ``other``."""
    return compare(value, other) is Order.OLDER


def is_newer(value: int, other: int) -> bool:
    """Return whether ``value`` is surely newer than ``other``."""
    return compare(value, other) is Order.NEWER
