"""A limit of time for regular expressions, whose text is a stranger's.

Python's engine backtracks: for a pattern such as ``(a+)+b`` there are lines that take it years, and meanwhile
nothing else of the process runs. But it looks for signals while it works, so a timer can end it.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Final

LINE_SECONDS: Final = 0.1
"""How long the patterns for some lines may take at most, in seconds of CPU time."""


class PatternTooSlowError(Exception):
    """A pattern takes too long for a text."""


class TimeLimit:
    """Raises PatternTooSlowError in a ``with`` that takes longer. For the main thread, one at a time.

    It uses ITIMER_VIRTUAL and SIGVTALRM, which nothing else here does; CPU time, so that a busy machine
    makes no pattern slow.
    """

    def __init__(self, seconds: float = LINE_SECONDS) -> None:
        self._seconds = seconds
        self._armed = False

    def __enter__(self) -> None:
        if signal.getsignal(signal.SIGVTALRM) != self._expired:
            signal.signal(signal.SIGVTALRM, self._expired)
        self._armed = True
        signal.setitimer(signal.ITIMER_VIRTUAL, self._seconds)

    def __exit__(self, *_: object) -> None:
        # In this order: a signal that comes in between must find nobody.
        self._armed = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def _expired(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._armed:
            raise PatternTooSlowError
