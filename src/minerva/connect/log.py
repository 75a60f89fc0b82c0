"""The log: one line an event, on standard error, that reads as a story."""

from __future__ import annotations

import logging
import sys
import time

from minerva.core.rate import TokenBucket
from minerva.core.text import printable

_LEVELS = {"DEBUG": "debug", "INFO": "info", "WARNING": "warning", "ERROR": "error", "CRITICAL": "error"}

REPEAT_BURST, REPEAT_SECONDS = 20, 1.0
"""How many lines one place in the program may log at once, and after how many seconds one more.

Much of what is logged is about what others did; they shall not fill the disk with it.
"""


class _Formatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        level = _LEVELS.get(record.levelname, record.levelname.lower())
        # Names and reasons may come from peers: they shall not forge lines or move the cursor.
        text = printable(record.getMessage())
        if record.exc_info:
            lines = self.formatException(record.exc_info).splitlines()
            text = "\n".join([text, *map(printable, lines)])
        return f"{stamp}.{int(record.msecs):03}Z {self._process} {level}: {text}"


class _Limiter(logging.Filter):
    """Leaves out what one place logs too often, and says with its next line how much that was."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[tuple[str, int], TokenBucket] = {}
        self._left_out: dict[tuple[str, int], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        place = (record.pathname, record.lineno)
        bucket = self._places.setdefault(place, TokenBucket(REPEAT_BURST, REPEAT_SECONDS))
        if not bucket.take(time.monotonic()):  # not the record's time: somebody may set the clock
            self._left_out[place] = self._left_out.get(place, 0) + 1
            return False
        if left_out := self._left_out.pop(place, 0):
            record.msg = f"{record.getMessage()} ({left_out} lines like this were left out)"
            record.args = None
        return True


def configure(process: str, level: str = "info") -> None:
    """Send the log of this process, called ``process`` in it, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(process))
    handler.addFilter(_Limiter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def rename(process: str) -> None:
    """Go on logging under another name: what a forked child does first."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Formatter(process))
