"""Looks whether the audit log is as it was written: each line has the digest of the one before it.

What that shows: that no line has been altered, put in or taken out between the first and the last one that
are there. What it does not: that none was taken away at either end, or that somebody has not made all of them
anew. Both show if a digest that has been kept elsewhere is not that of any line.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from minerva.console.audit import KEEP, digest
from minerva.core.errors import MinervaError

_ROTATION_SECONDS: Final = 1.0
"""For how long there may be no newest file, because it is being made."""


class ChainError(MinervaError):
    """The log is not as it was written: where."""


@dataclass(frozen=True, slots=True)
class Chain:
    """What was found."""

    lines: int
    """Lines that are chained."""
    unchained: int
    """Lines before them, of when there was no chain yet."""
    files: int
    since: str
    """The time in the first chained line; empty if there is none."""
    head: str
    """The digest of the last line."""


def verify(path: Path, heads: Collection[str] = ()) -> Chain:
    """Look at the log ``path`` and all older files of it; ``heads`` are digests that must be there.

    Raises ChainError, OSError. The console server may go on writing.
    """
    lines = unchained = 0
    since = head = ""
    missing = set(heads)
    with ExitStack() as stack:
        files = _opened(path, stack)
        for file, number, line in _lines(files):
            fields = _fields(line)
            where = f"{Path(file.name).name} line {number}"
            if fields is None:
                pass  # half of a line; that it is what was there, the next one shows
            elif (before := fields.get("before")) is None and not lines:
                unchained += 1
            elif before is None or (head and before != head):
                raise ChainError(f"{where} does not follow on the line before it: one of the two was altered")
            else:
                lines += 1
                since = since or str(fields.get("time", ""))
            head = digest(line)
            missing.discard(head)
    if missing:
        raise ChainError(f"no line has the SHA-256 {min(missing)}: it was altered or taken away since")
    return Chain(lines, unchained, len(files), since, head)


def _fields(line: bytes) -> dict[str, object] | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _opened(path: Path, stack: ExitStack) -> list[tuple[BinaryIO, int]]:
    """Open all files, the oldest first; return them with their sizes, at one moment between two writes."""
    names = [path.with_name(f"{path.name}.{number}") for number in range(KEEP, 0, -1)]
    deadline = time.monotonic() + _ROTATION_SECONDS
    while True:
        try:
            current = stack.enter_context(path.open("rb"))
            fcntl.flock(current, fcntl.LOCK_SH)
            if path.stat().st_ino == os.fstat(current.fileno()).st_ino:
                break
            fcntl.flock(current, fcntl.LOCK_UN)
        except FileNotFoundError:
            if not names[-1].exists() or time.monotonic() > deadline:
                raise
        time.sleep(0.001)  # it was rotated just then
    try:
        found = [stack.enter_context(name.open("rb")) for name in names if name.exists()]
        return [(file, os.fstat(file.fileno()).st_size) for file in (*found, current)]
    finally:
        fcntl.flock(current, fcntl.LOCK_UN)


def _lines(files: list[tuple[BinaryIO, int]]) -> Iterator[tuple[BinaryIO, int, bytes]]:
    for file, size in files:
        for number, line in enumerate(file, 1):
            size -= len(line)
            if size < 0:
                break
            yield file, number, line
