"""A share of the event loop's time: routing must not wait because others have much to say."""

from __future__ import annotations

ALLOWANCE = 0.05
"""For so little, in seconds, nobody has to wait: who says a word now and then is answered at once."""


class TimeBudget:
    """Lets one kind of work have ``share`` of the time, all who cause it together.

    Whoever has caused work is told how long to wait before it may cause more. All wait in one queue, so a
    thousand who cause a little are held back like one who causes much.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._free_at = 0.0

    def spent(self, seconds: float, now: float) -> float:
        """Note work of ``seconds`` of CPU time, just done; return how many seconds its cause has to wait."""
        self._free_at = max(self._free_at, now - seconds) + seconds / self._share
        wait = self._free_at - now
        return wait if wait > ALLOWANCE else 0.0
