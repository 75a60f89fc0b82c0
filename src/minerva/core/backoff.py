"""Exponential back-off without a clock of its own."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Delays that double from ``initial`` to ``maximum``, in seconds.

    With the defaults of RFC 8994 section 6.7 (IRT 10 s, MRT 640 s): 10, 20, 40, 80, 160, 320, 640, 640.
    ``jitter`` is the largest fraction added at random to each delay; ``random`` returns a number in
    [0, 1) and is needed only with jitter.
    """

    __slots__ = ("_failures", "_initial", "_jitter", "_maximum", "_random")

    def __init__(
        self,
        initial: float = 10.0,
        maximum: float = 640.0,
        *,
        jitter: float = 0.0,
        random: Callable[[], float] | None = None,
    ) -> None:
        self._initial = initial
        self._maximum = maximum
        self._jitter = jitter
        self._random = random
        self._failures = 0

    @property
    def failures(self) -> int:
        """How many failures there were since the last ``reset``."""
        return self._failures

    def failed(self) -> float:
        """Record a failure and return the delay in seconds before the next attempt."""
        # The exponent is bounded so that a peer that fails for years cannot overflow a float.
        delay = min(self._initial * 2.0 ** min(self._failures, 32), self._maximum)
        self._failures += 1
        if self._random is not None:
            delay += delay * self._jitter * self._random()
        return delay

    def reset(self) -> None:
        """Forget the failures; the next delay is ``initial`` again."""
        self._failures = 0
