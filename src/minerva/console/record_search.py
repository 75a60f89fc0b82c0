"""Reads the records of consoles: their lines, a pattern in them, and what they showed, at its speed.

All of it are iterators that read as they go, also what is being written at the time. What a crash or a
strange hand left in a file that is no record is passed over.
"""

from __future__ import annotations

import heapq
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Final

from minerva.console import record_files
from minerva.console.record_files import CAST, LOG, RecordError, RecordFile
from minerva.console.record_format import (
    MAX_LINE,
    Frame,
    RecordDecodeError,
    decode_frame,
    decode_header,
    decode_log_line,
)

MAX_IDLE: Final = 2.0
"""A replay does not stand still for longer, if nothing else is said."""

_MAX_LOG_LINE = MAX_LINE * 16
_MAX_CAST_LINE = 1 << 22  # an event has 64 KiB at most, each byte up to six characters, twice


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a console's log."""

    console: str
    at: float
    """UTC, in seconds since 1970."""
    kind: str
    """``|`` the device's, ``+`` more of its last line, ``*`` a mark, ``<`` what somebody typed."""
    text: str
    """Fit for any terminal."""


def lines(
    directory: Path, console: str, *, since: float = 0.0, until: float = float("inf")
) -> Iterator[Line]:
    """Return the lines of a console's log between two times (UTC). Raises RecordError, OSError."""
    found = record_files.files(directory, console, LOG)
    for file, after in [*pairwise(found), *((last, None) for last in found[-1:])]:
        if file.start > until or (after is not None and after.start < since - 1):
            continue
        for line in _log_lines(file):
            if since <= line.at <= until:
                yield line


def last_lines(directory: Path, console: str, count: int) -> list[Line]:
    """Return the last lines of a console's log. Raises RecordError, OSError."""
    found: deque[Line] = deque()
    for file in reversed(record_files.files(directory, console, LOG)):
        missing = count - len(found)
        if missing <= 0:
            break
        found.extendleft(reversed(deque(_log_lines(file), missing)))
    return list(found)


def search(
    directory: Path,
    pattern: re.Pattern[str],
    *,
    consoles: Iterable[str] = ("*",),
    since: float = 0.0,
    until: float = float("inf"),
    kinds: str = "|+*<",
    deadline: float = float("inf"),
) -> Iterator[Line]:
    """Return the lines in which the pattern is, of all consoles that fit, in the order of time.

    A line of the device that was interrupted, such as by a mark, is found as if it had not been.
    Raises RecordError, OSError; TimeoutError after ``deadline``, by the monotonic clock.
    """
    found = [
        _matching(_timely(lines(directory, console, since=since, until=until), deadline), pattern, kinds)
        for console in record_files.consoles(directory, consoles)
    ]
    return heapq.merge(*found, key=attrgetter("at"))


def frames(file: RecordFile) -> Iterator[Frame]:
    """Return the events of a cast, with the exact bytes. Raises RecordError, OSError."""
    exact: bytes | None = None
    for number, line in enumerate(record_files.lines(file, _MAX_CAST_LINE)):
        try:
            if not number:
                decode_header(line)
                continue
            frame = decode_frame(line, exact)
        except RecordDecodeError as error:
            if number:
                continue  # the last one is being written, or a crash tore it
            raise RecordError(f"{file.path} is no cast") from error
        if frame.kind == "b":
            exact = frame.data
        else:
            exact = None
            yield frame


def output(
    directory: Path, console: str, *, since: float = 0.0, until: float = float("inf")
) -> Iterator[bytes]:
    """Return what a device said between two times (UTC), byte by byte. Raises RecordError, OSError."""
    for _, frame in _timed(directory, console, since, until):
        if frame.kind == "o":
            yield frame.data


def replay(
    directory: Path,
    console: str,
    *,
    since: float = 0.0,
    until: float = float("inf"),
    speed: float = 1.0,
    max_idle: float = MAX_IDLE,
) -> Iterator[tuple[float, bytes]]:
    """Return what a device said between two times (UTC), each with the seconds to wait before it is shown.

    ``speed`` 2 is twice as fast; ``max_idle`` are the seconds to wait at most. Raises RecordError, OSError.
    """
    before: float | None = None
    for at, frame in _timed(directory, console, since, until):
        if frame.kind == "o":
            wait = 0.0 if before is None else max(0.0, at - before) / speed
            before = at
            yield min(wait, max_idle), frame.data


def _timed(directory: Path, console: str, since: float, until: float) -> Iterator[tuple[float, Frame]]:
    found = record_files.files(directory, console, CAST)
    for file, after in [*pairwise(found), *((last, None) for last in found[-1:])]:
        if file.start > until or (after is not None and after.start < since - 1):
            continue
        for frame in frames(file):
            if since <= file.start + frame.offset <= until:
                yield file.start + frame.offset, frame


def _log_lines(file: RecordFile) -> Iterator[Line]:
    for data in record_files.lines(file, _MAX_LOG_LINE):
        try:
            line = decode_log_line(data.decode(errors="replace"))
        except RecordDecodeError:
            continue
        yield Line(file.console, line.at, line.kind, line.text)


def _timely(found: Iterable[Line], deadline: float) -> Iterator[Line]:
    for line in found:
        if time.monotonic() > deadline:
            raise TimeoutError
        yield line


def _matching(found: Iterable[Line], pattern: re.Pattern[str], kinds: str) -> Iterator[Line]:
    before = ""  # the part of the device's line that came before an interruption
    for line in found:
        text, start = line.text, -1
        if line.kind == "+":
            text, start = before + text, len(before)
        if line.kind in "|+":
            before = text[-MAX_LINE:]
        # What matches before the interruption has been found already.
        if line.kind in kinds and any(match.end() > start for match in pattern.finditer(text)):
            yield replace(line, text=text)
