"""A peer that fails is answered so and so often."""

from __future__ import annotations

from ipaddress import IPv6Address

from minerva.adjacency.responder import ANSWERS_PER_MINUTE, MAX_FAILED_PEERS, ResponderLimit

PEER = IPv6Address("fe80::2")


def test_who_never_failed_is_always_answered() -> None:
    """An attempt alone costs nothing."""
    limit = ResponderLimit()
    assert all(limit.may_answer(1, PEER, 0.0) for _ in range(1000))
    assert len(limit) == 0


def test_answers_per_minute() -> None:
    """In no 60 s is a failing peer answered more often than stated, however often it tries."""
    limit = ResponderLimit()
    answered = []
    for tick in range(3000):
        now = tick / 10
        if limit.may_answer(1, PEER, now):
            answered.append(now)
            limit.record_failure(1, PEER, now)
    assert len(answered) == 5 * ANSWERS_PER_MINUTE
    for start in answered:
        assert sum(start <= when < start + 60 for when in answered) <= ANSWERS_PER_MINUTE


def test_others_are_not_affected() -> None:
    """The limit is for one address on one port, and ends with a success."""
    limit = ResponderLimit()
    limit.record_failure(1, PEER, 0.0)
    while limit.may_answer(1, PEER, 0.0):
        limit.record_failure(1, PEER, 0.0)
    assert limit.may_answer(2, PEER, 0.0)
    assert limit.may_answer(1, IPv6Address("fe80::3"), 0.0)
    limit.record_success(1, PEER)
    assert all(limit.may_answer(1, PEER, 0.0) for _ in range(20))


def test_table_is_bounded() -> None:
    """Who fails under many addresses makes us forget the oldest, and a port takes its own with it."""
    limit = ResponderLimit()
    for number in range(MAX_FAILED_PEERS + 10):
        limit.record_failure(number % 2, IPv6Address(f"fe80::1:{number:x}"), 0.0)
    assert len(limit) == MAX_FAILED_PEERS
    limit.forget_port(0)
    assert len(limit) == MAX_FAILED_PEERS / 2
