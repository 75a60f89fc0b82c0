"""Virtual time: a queue of callbacks and one seeded source of randomness.

Nothing here waits. An hour of protocol takes as long as its callbacks compute, and the same seed gives
the same run, so that a seed that fails is a test.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable


class Timer:
    """A callback that is waiting for its time."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Make sure that the callback is not called (any more)."""
        self.callback = None


class Simulator:
    """A virtual clock in seconds, its queue of callbacks, and the randomness of the run."""

    def __init__(self, seed: int = 0, *, start: float = 0.0) -> None:
        self.now = start
        self.random = random.Random(seed)
        self._queue: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` at ``when``, or now if that is past; equal times run in the order given."""
        timer = Timer(max(when, self.now), callback)
        heapq.heappush(self._queue, (timer.when, next(self._order), timer))
        return timer

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` after ``delay`` seconds."""
        return self.call_at(self.now + delay, callback)

    def run_until(self, when: float) -> None:
        """Run everything that is due up to and including ``when``; then it is ``when``."""
        self.run_while(lambda: True, limit=when)
        self.now = max(self.now, when)

    def run_while(self, condition: Callable[[], bool], *, limit: float) -> bool:
        """Run callbacks as long as ``condition()`` holds, none later than ``limit``.

        Return whether the condition ceased to hold.
        """
        while condition():
            if not self._queue or self._queue[0][0] > limit:
                return False
            when, _, timer = heapq.heappop(self._queue)
            if timer.callback is not None:
                self.now = when
                timer.callback()
        return True
