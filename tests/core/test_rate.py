"""The token bucket."""

from __future__ import annotations

from minerva.core.rate import TokenBucket


def test_burst_and_refill() -> None:
    """The burst at once, then one per interval, and never more than the burst saved up."""
    bucket = TokenBucket(3, 5.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(104.9)
    assert bucket.take(105.0)
    assert not bucket.take(105.0)
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]
