"""A limit on how often something is done."""

from __future__ import annotations


class TokenBucket:
    """Lets ``burst`` things happen at once, and one more for every ``interval`` seconds since."""

    __slots__ = ("_burst", "_interval", "_tokens", "_updated")

    def __init__(self, burst: int, interval: float) -> None:
        self._burst = burst
        self._interval = interval
        self._tokens = float(burst)
        self._updated = 0.0

    def take(self, now: float, *, leave: int = 0) -> bool:
        """Return whether it may happen at ``now``; if so, it counts as having happened.

        What is less important should ``leave`` so many to what is more so.
        """
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._updated) / self._interval)
        self._updated = now
        if self._tokens < 1 + leave:
            return False
        self._tokens -= 1
        return True
