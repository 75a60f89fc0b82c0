"""A share of the event loop's time: routing must not wait because others have much to say."""

from __future__ import annotations


class TimeBudget:
    """Lets one kind of work have ``share`` of the time, all who cause it together.

    Whoever has caused work is told how long to wait before it may cause more. All wait in one queue, so a
    thousand who cause a little are held back like one who causes much.
    """

    def __init__(self, share: float) -> None:
        self._rest = 1 / share - 1
        self._free_at = 0.0

    def spent(self, began: float, now: float) -> float:
        """Note work from ``began`` to ``now``; return how many seconds who caused it has to wait."""
        self._free_at = max(self._free_at, now) + (now - began) * self._rest
        return self._free_at - now
