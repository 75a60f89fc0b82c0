"""A peer that does not authenticate itself is answered so and so often."""

from __future__ import annotations

from ipaddress import IPv6Address

from minerva.adjacency.responder import (
    ANSWERS_PER_MINUTE,
    BEGINNING_INTERVAL,
    BEGINNINGS,
    MAX_PEERS,
    ResponderLimit,
)

PEER = IPv6Address("fe80::2")


def spi(number: int) -> bytes:
    return number.to_bytes(8)


def test_repeated_packets_of_an_attempt_count_once() -> None:
    limit = ResponderLimit()
    assert all(limit.may_answer(1, PEER, spi(1), 0.0) for _ in range(100))
    others = [limit.may_answer(1, PEER, spi(number), 0.0) for number in range(2, 10)]
    assert others.count(True) == ANSWERS_PER_MINUTE - 1


def test_answers_per_minute() -> None:
    """In no 60 s is a peer answered more often than stated, however often it tries."""
    limit = ResponderLimit()
    answered = [tick / 10 for tick in range(3000) if limit.may_answer(1, PEER, spi(tick + 1), tick / 10)]
    assert len(answered) == 5 * ANSWERS_PER_MINUTE
    for start in answered:
        assert sum(start <= when < start + 60 for when in answered) <= ANSWERS_PER_MINUTE


def test_others_are_not_affected() -> None:
    """The limit is for one address on one port, and ends with a success."""
    limit = ResponderLimit()
    number = 1
    while limit.may_answer(1, PEER, spi(number), 0.0):
        number += 1
    assert limit.may_answer(2, PEER, spi(99), 0.0)
    assert limit.may_answer(1, IPv6Address("fe80::3"), spi(99), 0.0)
    limit.record_success(1, PEER)
    assert limit.may_answer(1, PEER, spi(99), 0.0)


def test_all_beginnings_of_a_port_together_are_limited() -> None:
    """So many packets are looked at, repeated ones too, whoever is invented; another port has its own."""
    limit = ResponderLimit()
    seconds, flood = 10, 50_000
    looked_at = sum(
        limit.may_answer(
            1, IPv6Address(f"fe80::1:{number // 2:x}"), spi(number // 2), number * seconds / flood
        )
        for number in range(flood)
    )
    assert looked_at <= BEGINNINGS + seconds / BEGINNING_INTERVAL
    assert not all(limit.may_answer(1, PEER, spi(1), seconds) for _ in range(2))
    assert limit.may_answer(2, PEER, spi(1), seconds)
    assert limit.may_answer(1, PEER, spi(1), seconds + 2 * BEGINNING_INTERVAL), "not for long"


def test_table_is_bounded() -> None:
    """Who tries under many addresses makes us forget the oldest, and a port takes its own with it."""
    limit = ResponderLimit()
    for number in range(MAX_PEERS + 10):
        limit.may_answer(number % 2, IPv6Address(f"fe80::1:{number:x}"), spi(1), 0.0)
    assert len(limit) == MAX_PEERS
    limit.forget_port(0)
    assert len(limit) == MAX_PEERS / 2
