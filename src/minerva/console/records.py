"""Writes the records of consoles. Their form is in ``record_format``, their files in ``record_files``.

The event loop only hands bytes over. One thread makes them into a cast and a log and gives them to the kernel
every :data:`FLUSH` seconds: so much is lost at most when this process is killed. Another one has the casts
brought to the disk every :data:`SYNC` seconds, or as fast as that can: so much is lost when the power fails.
A third one packs and removes finished files. If a disk is full or does not answer, up to :data:`MAX_PENDING`
bytes of each console wait in memory; what is lost after that is counted, and the record says so, as it says
how long nothing was recorded when it goes on after a pause or a crash.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from minerva.console import record_files
from minerva.console.config import Records
from minerva.console.events import HubEvent, Typed
from minerva.console.record_files import RecordError
from minerva.console.record_format import Encoder
from minerva.core.text import utc as utc_text

__all__ = ["Archive", "RecordError", "Recorder"]

FLUSH: Final = 0.2
SYNC: Final = 1.0
MAX_PENDING: Final = 16 << 20
TOGETHER: Final = 0.02
"""What a device says within so many seconds may be one event of the cast."""
HOUSEKEEPING: Final = 3600.0
COMPLAIN: Final = 60.0
"""Seconds between two complaints of the same console."""

_MIB = 1 << 20
_MAX_EVENT = 1 << 16
_OVERHEAD = 200  # bytes of memory for anything that waits, besides its text

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Output:
    steady: float
    utc: float
    data: bytes


@dataclass(frozen=True, slots=True)
class _Typed:
    steady: float
    utc: float
    user: str
    data: bytes


@dataclass(frozen=True, slots=True)
class _Mark:
    steady: float
    utc: float
    text: str


@dataclass(frozen=True, slots=True)
class Clock:
    """Two clocks: one that never steps, and UTC in seconds since 1970."""

    steady: Callable[[], float] = time.monotonic
    utc: Callable[[], float] = time.time


class Recorder:
    """The record of one console. All but the methods with an underscore may be called by the event loop."""

    def __init__(self, directory: Path, name: str, title: str, settings: Records, clock: Clock) -> None:
        self.name = name
        self.settings = settings
        self.lost = 0
        """Bytes of the device that are not in the record because nobody took them in time."""
        self._directory = directory / name
        self._clock = clock
        self._encoder = Encoder(title)
        self._lock = threading.Lock()  # of what waits to be taken; held for a moment only
        self._writing = threading.Lock()  # of all that follows `_lost_now`; held as long as the disk needs
        self._pending: list[_Output | _Typed | _Mark] = []
        self._size = 0
        self._lost_now = 0
        self._closed = False
        self._cast: _File | None = None
        self._log: _File | None = None
        self._begun = 0.0
        self._complained = -COMPLAIN
        self._known = False
        self._ended = False

    def output(self, data: bytes) -> None:
        """Record what the device said just now."""
        self._add(_Output(self._clock.steady(), self._clock.utc(), data), len(data), len(data))

    def event(self, event: HubEvent) -> None:
        """Record that something happened, or what somebody typed, if that is to be recorded."""
        steady, utc = self._clock.steady(), self._clock.utc()
        if not isinstance(event, Typed):
            self._add(_Mark(steady, utc, str(event)))
        elif any(fnmatchcase(self.name, pattern) for pattern in self.settings.input):
            self._add(_Typed(steady, utc, event.user, event.data), len(event.data))

    def describe(self, description: str) -> None:
        """Have the files that begin from now on say what the console is."""
        self._encoder.title = _title(self.name, description)

    def mark(self, text: str) -> None:
        """Record that something happened."""
        self._add(_Mark(self._clock.steady(), self._clock.utc(), text))

    def _add(self, item: _Output | _Typed | _Mark, size: int = 0, of_device: int = 0) -> None:
        with self._lock:
            if self._closed:
                return
            self._size += size + _OVERHEAD
            # Once something is lost all is until there is room again: the record has one gap and not many.
            if self._lost_now or self._size > MAX_PENDING:
                self._lost_now += of_device
                return
            self._pending.append(item)

    # -- in the thread that writes

    def _flush(self, *, final: bool = False) -> list[Path]:
        """Write what is there; return the files that this finished. Raises OSError, and may be tried again.

        Nothing is written any more after the ``final`` time.
        """
        if self._ended:
            return []
        steady, utc = self._clock.steady(), self._clock.utc()
        finished: list[Path] = []
        if self._cast is None or self._log is None:
            self._cast, self._log = self._open(*self._first_time(steady, utc))
        elif self._is_full(steady):
            self._write()
            self._encoder.end(steady, utc)
            self._write()
            finished += self._finish()
            self._cast, self._log = self._open(*self._first_time(steady, utc))
        self._write()  # what could not be written the last time
        with self._lock:
            items, self._pending = self._pending, []
            lost, self._lost_now = self._lost_now, 0
            self._size = 0
            self._closed = final
        self._encode(items)
        if lost:
            self.lost += lost
            self._encoder.mark(f"{lost} bytes are not in this record", steady, utc)
        self._encoder.settle(steady, utc)
        if final:
            self._encoder.mark("the record ends", steady, utc)
            self._encoder.end(steady, utc, final=True)
        self._write()
        if final:
            self._ended = True
            finished += self._finish()
        return finished

    def _abandon(self) -> None:
        """Write nothing any more, whatever is lost by that."""
        with self._lock:
            self._closed = self._ended = True
        for file in (self._cast, self._log):
            if file is not None:
                file.close()
        self._cast = self._log = None

    def _first_time(self, steady: float, utc: float) -> tuple[float, float]:
        """Return the time of the first thing that waits, or now: when a file begins that is to have it."""
        with self._lock:
            first = self._pending[0] if self._pending else None
        return (steady, utc) if first is None else (first.steady, first.utc)

    def _encode(self, items: list[_Output | _Typed | _Mark]) -> None:
        encoder = self._encoder
        together: list[bytes] = []
        first: _Output | None = None
        size = 0
        for item in items:
            if isinstance(item, _Output):
                if first is not None and item.steady - first.steady < TOGETHER and size < _MAX_EVENT:
                    together.append(item.data)
                    size += len(item.data)
                    continue
                if first is not None:
                    encoder.output(b"".join(together), first.steady, first.utc)
                first, together, size = item, [item.data], len(item.data)
                continue
            if first is not None:
                encoder.output(b"".join(together), first.steady, first.utc)
                first = None
            if isinstance(item, _Typed):
                encoder.typed(item.user, item.data, item.steady, item.utc)
            else:
                encoder.mark(item.text, item.steady, item.utc)
        if first is not None:
            encoder.output(b"".join(together), first.steady, first.utc)

    def _open(self, steady: float, utc: float) -> tuple[_File, _File]:
        before = None
        if not self._known:
            record_files.make_directory(self._directory)
            before = record_files.last_sign_of_life(self._directory)
        names = record_files.new_names(self._directory, utc)
        cast = _File(names[0])
        try:
            log = _File(names[1])
        except OSError:
            cast.close()
            names[0].unlink()
            raise
        self._begun, self._known = steady, True
        self._encoder.begin(steady, utc)
        if before is not None:
            away = max(0.0, utc - before)
            since = utc_text(before)
            self._encoder.mark(f"nothing was recorded for {away:.1f} s, since {since}", steady, utc)
        return cast, log

    def _is_full(self, steady: float) -> bool:
        assert self._cast is not None
        age = steady - self._begun
        return self._cast.size >= self.settings.rotate_mib * _MIB or age >= self.settings.rotate_hours * 3600

    def _write(self) -> None:
        assert self._cast is not None
        assert self._log is not None
        self._cast.write(self._encoder.cast)
        self._log.write(self._encoder.log)

    def _finish(self) -> list[Path]:
        assert self._cast is not None
        assert self._log is not None
        files = [self._cast, self._log]
        self._cast = self._log = None
        for file in files:
            try:
                file.sync()
            finally:
                file.close()
        return [file.path for file in files]

    def _touch(self) -> None:
        """Show in the file's time that this process lives, although the device is silent. Raises OSError."""
        if self._cast is not None:
            self._cast.touch()

    def _sync(self) -> None:
        """Bring the cast to the disk. Raises OSError."""
        # Another thread may finish the file meanwhile.
        cast = self._cast
        if cast is not None:
            cast.sync()

    def _paths(self) -> list[Path]:
        return [file.path for file in (self._cast, self._log) if file is not None]

    def _complain(self, error: Exception) -> None:
        now = self._clock.steady()
        if now - self._complained >= COMPLAIN:
            self._complained = now
            reason = (isinstance(error, OSError) and error.strerror) or str(error)
            _log.error("cannot write the record of %s: %s", self.name, reason)


def _title(name: str, description: str) -> str:
    return f"{name}: {description}" if description else name


class _File:
    """A file that is being written by one thread and synchronized by another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._descriptor = record_files.create(path)
        self._lock = threading.Lock()  # of the descriptor's life, not of writing
        self._dirty = False

    def write(self, data: bytearray) -> None:
        """Write the data and remove what is written from them. Raises OSError."""
        while data:
            written = os.write(self._descriptor, data)
            self._dirty = True
            self.size += written
            del data[:written]

    def sync(self) -> None:
        """Bring it to the disk, if it is open. Raises OSError."""
        if not self._dirty:
            return
        with self._lock:
            self._dirty = False
            if self._descriptor >= 0:
                os.fdatasync(self._descriptor)

    def touch(self) -> None:
        """Set its time to now. Raises OSError."""
        os.utime(self._descriptor)

    def close(self) -> None:
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1


def check_records(settings: Records) -> None:
    """Raise RecordError if records cannot be made as the settings say."""
    if settings.compress == "zstd":
        record_files.zstd()


class Archive:
    """The records of all consoles in one directory: hands out recorders, and has the threads.

    Raises :class:`RecordError` if it cannot begin; what goes wrong later is logged, and tried again.
    """

    def __init__(self, directory: Path, settings: Records, clock: Clock | None = None) -> None:
        check_records(settings)
        record_files.make_directory(directory)
        self.directory = directory
        self._settings = settings
        self._clock = clock or Clock()
        self._recorders: dict[str, Recorder] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._chores: queue.SimpleQueue[list[Path] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=target, name=f"records-{name}", daemon=True)
            for name, target in (
                ("write", self._run_writer),
                ("sync", self._run_sync),
                ("pack", self._run_chores),
            )
        ]
        left_behind = self._left_behind()
        for thread in self._threads:
            thread.start()
        self._chores.put(left_behind)

    def recorder(self, name: str, description: str = "") -> Recorder | None:
        """Begin the record of a console; None if there is to be none, by the settings."""
        if not any(fnmatchcase(name, pattern) for pattern in self._settings.ports):
            return None
        recorder = Recorder(self.directory, name, _title(name, description), self._settings, self._clock)
        with self._lock:
            if name in self._recorders:
                raise RecordError(f"{name} is being recorded already")
            self._recorders[name] = recorder
        return recorder

    def end(self, recorder: Recorder) -> None:
        """End the record of a console; again has no effect. Waits for the disk."""
        self._flush(recorder, final=True)
        with self._lock:
            if self._recorders.get(recorder.name) is recorder:
                del self._recorders[recorder.name]

    def update(self, settings: Records) -> None:
        """Take other settings; which consoles are recorded is asked by :meth:`recorder` alone."""
        check_records(settings)
        with self._lock:
            self._settings = settings
            for recorder in self._recorders.values():
                recorder.settings = settings
        self._chores.put([])

    def flush(self) -> None:
        """Give the kernel now what was handed over until now. Waits for the disk."""
        for recorder in self._all():
            self._flush(recorder)

    def close(self) -> None:
        """End all records. Waits for the disk, and for a file that is being packed."""
        self._closing.set()
        self._chores.put(None)
        for thread in self._threads:
            thread.join()
        for recorder in self._all():
            self.end(recorder)

    # -- in the threads

    def _all(self) -> list[Recorder]:
        with self._lock:
            return list(self._recorders.values())

    def _run_writer(self) -> None:
        touched = 0.0
        while not self._closing.wait(FLUSH):
            touch = time.monotonic() - touched >= SYNC
            if touch:
                touched = time.monotonic()
            for recorder in self._all():
                self._flush(recorder, touch=touch)

    def _flush(self, recorder: Recorder, *, touch: bool = False, final: bool = False) -> None:
        with recorder._writing:
            try:
                finished = recorder._flush(final=final)
                if touch:
                    recorder._touch()
            except (OSError, RecordError) as error:
                recorder._complain(error)
                if final:
                    recorder._abandon()
                return
        if finished:
            self._chores.put(finished)

    def _run_sync(self) -> None:
        while not self._closing.wait(SYNC):
            for recorder in self._all():
                try:
                    recorder._sync()
                except OSError as error:
                    recorder._complain(error)

    def _left_behind(self) -> list[Path]:
        """Mend what an earlier run left behind; return what it did not pack. Raises RecordError."""
        found = []
        try:
            for console in record_files.consoles(self.directory):
                record_files.mend(self.directory, console)
                for kind in (record_files.CAST, record_files.LOG):
                    files = record_files.files(self.directory, console, kind)
                    found += [file.path for file in files if not file.packed]
        except OSError as error:
            raise RecordError(f"cannot read the records in {self.directory}: {error.strerror}") from error
        return found

    def _run_chores(self) -> None:
        while True:
            try:
                finished = self._chores.get(timeout=HOUSEKEEPING)
            except queue.Empty:
                finished = []
            if finished is None:
                return
            for path in finished:
                if self._closing.is_set():
                    return
                self._pack(path)
            self._remove_old()

    def _pack(self, path: Path) -> None:
        try:
            record_files.pack(path, self._settings.compress)
        except FileNotFoundError:
            return  # removed meanwhile, for its age or by somebody
        except (OSError, RecordError) as error:
            _log.error("cannot pack %s: %s", path, error)

    def _remove_old(self) -> None:
        with self._lock:
            settings = self._settings
            paths = [path for recorder in self._recorders.values() for path in recorder._paths()]
        try:
            removed = record_files.remove_old(
                self.directory,
                now=self._clock.utc(),
                keep_days=settings.keep_days,
                keep_bytes=settings.keep_mib * _MIB,
                in_use=frozenset(paths),
            )
        except OSError as error:
            _log.error("cannot remove old records: %s", error)
            return
        for path in removed:
            _log.info("removed the old record %s", path)
