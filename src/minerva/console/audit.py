"""The audit log: who did what, and who was refused what, as lines of JSON.

Everything is ASCII with control characters escaped, so any viewer may show it. A line is on the disk
(fsync) before :meth:`AuditLog.write` returns; the :class:`AuditWriter` does that in a thread of its own,
because a disk may take its time and consoles do not wait for it. Several processes may write to one log.

Each line has in ``before`` the SHA-256 of the one before it, without its line end, so none can be altered or
taken out unless all that follow are made anew. Against that, the digest of the last line goes to the ordinary
log once in an hour: from there it may have gone to another machine.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from minerva.console.events import CoWriting, Detached, HubEvent, LeaseMoved
from minerva.core.errors import MinervaError

log = logging.getLogger(__name__)

MAX_SIZE: Final = 16 << 20
"""Bytes from which on a new file is begun."""
KEEP: Final = 20
"""Files kept besides the newest."""
MAX_WAITING: Final = 10_000
"""Entries that wait for the disk at most; more are only counted."""
HEAD_SECONDS: Final = 3600.0
"""How often the digest of the last line goes to the ordinary log."""
_LONGEST_TEXT: Final = 1000
_LONGEST_LINE: Final = 1 << 17  # bytes: far more than all texts can be in JSON


class AuditError(MinervaError):
    """The audit log cannot be written."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that was done or refused."""

    at: float
    """Seconds since 1970."""
    action: str
    allowed: bool = True
    user: str = ""
    source: str = ""
    how: str = ""
    console: str = ""
    detail: str = ""

    def encode(self, before: str | None = None) -> bytes:
        """Return the line of JSON; ``before`` is the digest of the one before it."""
        when = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, object] = {
            "time": when.replace("+00:00", "Z"),
            "action": self.action,
            "allowed": self.allowed,
        }
        for name in ("user", "source", "how", "console", "detail"):
            if value := getattr(self, name):
                fields[name] = value[:_LONGEST_TEXT]
        if before is not None:
            fields["before"] = before
        # JSON in ASCII escapes all controls but this one.
        return json.dumps(fields).replace("\x7f", "\\u007f").encode("ascii") + b"\n"


def digest(line: bytes) -> str:
    """Return what the line after this one has in ``before``; that after none has nothing in it."""
    return hashlib.sha256(line.rstrip(b"\n")).hexdigest() if line else ""


class AuditLog:
    """The file ``path``, rotated to ``path.1`` and so on when it is large."""

    def __init__(self, path: Path, *, max_size: int = MAX_SIZE, keep: int = KEEP) -> None:
        self.path = path
        self.head = ""
        """The digest of the line that was written last."""
        self._max_size = max_size
        self._keep = keep

    def write(self, entries: Iterable[Entry]) -> None:
        """Append the entries; they are on the disk when this returns. Raises AuditError."""
        try:
            descriptor = self._open()
            try:
                line = self._last_line(descriptor)
                # Half a line, from when the power failed or the disk was full, stays one of its own.
                data = bytearray(b"" if not line or line.endswith(b"\n") else b"\n")
                for entry in entries:
                    line = entry.encode(digest(line))
                    data += line
                while data:
                    del data[: os.write(descriptor, data)]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self.head = digest(line)
        except OSError as error:
            raise AuditError(f"cannot write the audit log {self.path}: {error.strerror or error}") from error

    def _open(self) -> int:
        """Return the file, locked against other processes, rotated if it was time."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                found = os.fstat(descriptor)
                try:
                    current = self.path.stat().st_ino == found.st_ino
                except FileNotFoundError:
                    current = False
                if current and found.st_size < self._max_size:
                    if not found.st_size:
                        self._sync_directory()
                    return descriptor
                if current:
                    self._rotate()
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # another process has rotated it, or we have

    def _last_line(self, descriptor: int) -> bytes:
        """Return the last line of all, with its end if it has one; nothing if there is none."""
        size = os.fstat(descriptor).st_size
        if size:
            tail = os.pread(descriptor, _LONGEST_LINE, max(0, size - _LONGEST_LINE))
        else:
            try:
                with self._numbered(1).open("rb") as file:
                    file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE))
                    tail = file.read()
            except FileNotFoundError:
                return b""
        return tail[tail.rfind(b"\n", 0, -1) + 1 :]

    def _rotate(self) -> None:
        for number in range(self._keep, 0, -1):
            older = self.path if number == 1 else self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _sync_directory(self) -> None:
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class AuditWriter:
    """Writes entries in a thread, many at once if they come fast.

    If the log cannot be written, consoles go on working: the entry goes to the ordinary log, and
    :attr:`failures` counts.
    """

    def __init__(self, audit: AuditLog) -> None:
        self.failures = 0
        self.dropped = 0
        self._audit = audit
        self._waiting: deque[Entry | Future[None]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._head_told = ""
        self._head_due = time.monotonic() + HEAD_SECONDS
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Take an entry; never waits."""
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                self.dropped += 1
                return
            self._waiting.append(entry)
            self._changed.notify()

    async def settled(self) -> None:
        """Wait until all that was put is on the disk, or could not be written."""
        done: Future[None] = Future()
        with self._changed:
            if not self._thread.is_alive():
                return
            self._waiting.append(done)
            self._changed.notify()
        await asyncio.wrap_future(done)

    def close(self) -> None:
        """Write what waits, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                batch = list(self._waiting)
                self._waiting.clear()
                dropped, self.dropped = self.dropped, 0
            if not batch:
                self._tell_head()
                return
            entries = [item for item in batch if isinstance(item, Entry)]
            if dropped:
                last = entries[-1].at if entries else 0.0
                entries.append(Entry(last, "audit", False, detail=f"{dropped} entries came too fast"))
            if entries:
                self._write(entries)
            for item in batch:
                if isinstance(item, Future) and item.set_running_or_notify_cancel():
                    item.set_result(None)

    def _tell_head(self) -> None:
        if self._audit.head != self._head_told:
            self._head_told, self._head_due = self._audit.head, time.monotonic() + HEAD_SECONDS
            log.info("the last line of the audit log has the SHA-256 %s", self._head_told)

    def _write(self, entries: list[Entry]) -> None:
        try:
            self._audit.write(entries)
            if time.monotonic() >= self._head_due:
                self._tell_head()
        except AuditError as error:
            self.failures += len(entries)
            log.error("%s", error)
            for entry in entries:
                log.error("not in the audit log: %s", entry.encode().decode("ascii").rstrip())


class AuditSink:
    """Writes down what happens at a console without anybody asking for it just then."""

    def __init__(self, console: str, writer: AuditWriter) -> None:
        self._console = console
        self._writer = writer

    def output(self, data: bytes) -> None:
        """What the device says is no matter for the audit."""

    def event(self, event: HubEvent) -> None:
        """Write down who left, and who writes now."""
        match event:
            case Detached(at, who, reason):
                entry = Entry(at, "detach", user=who.user, source=who.source, detail=reason)
            case LeaseMoved(at, before, after, how):
                entry = Entry(
                    at, "lease", user=after or before or "", detail=f"from {before} to {after}: {how.value}"
                )
            case CoWriting(at, user, allowed):
                entry = Entry(at, "co-write", user=user, detail="begins" if allowed else "ends")
            case _:
                return
        self._writer.put(replace(entry, console=self._console))
