"""The log: one line an event, on standard error, that reads as a story."""

from __future__ import annotations

import logging
import sys
import time

_LEVELS = {"DEBUG": "debug", "INFO": "info", "WARNING": "warning", "ERROR": "error", "CRITICAL": "error"}

_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


class _Formatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        level = _LEVELS.get(record.levelname, record.levelname.lower())
        # Names and reasons may come from peers: they shall not forge lines or move the cursor.
        text = record.getMessage().translate(_VISIBLE)
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return f"{stamp}.{int(record.msecs):03}Z {self._process} {level}: {text}"


def configure(process: str, level: str = "info") -> None:
    """Send the log of this process, called ``process`` in it, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def rename(process: str) -> None:
    """Go on logging under another name: what a forked child does first."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Formatter(process))
