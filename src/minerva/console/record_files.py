"""The files of records: ``DIR/CONSOLE/20261125T185331Z.cast`` and ``.log``, packed when they are finished.

What a crash left behind is mended when the console server starts again; nothing is ever appended to a file of
an earlier run.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import importlib.util
import io
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, Final

from minerva.core.errors import MinervaError

CAST: Final = ".cast"
LOG: Final = ".log"
PACKED: Final = {"none": "", "gzip": ".gz", "zstd": ".zst"}
"""What is added to the name of a file that is packed."""

_NAME = re.compile(r"(\d{8}T\d{6}Z)(?:-(\d{1,6}))?(\.cast|\.log)(|\.gz|\.zst)")
_UNFINISHED = ".part"
_TAIL = 1 << 16  # so much of a file's end is looked at for what a crash left behind
_ZSTD = ("compression.zstd", "zstandard")


class RecordError(MinervaError):
    """Records cannot be kept or read as wanted."""


@dataclass(frozen=True, slots=True)
class RecordFile:
    """A file of a record."""

    path: Path
    start: float
    """When it begins: UTC, in seconds since 1970."""
    turn: int
    """Which of those that begin in that second."""
    kind: str
    """``.cast`` or ``.log``."""
    packed: str
    """``.gz``, ``.zst``, or nothing."""

    @property
    def console(self) -> str:
        """Of which console."""
        return self.path.parent.name

    @property
    def stem(self) -> str:
        """The name that a cast and a log of the same time have in common."""
        return self.path.name.split(".")[0]


def consoles(directory: Path, patterns: Iterable[str] = ("*",)) -> list[str]:
    """Return the consoles of which there are records, and whose name fits one of the patterns."""
    try:
        names = sorted(path.name for path in directory.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []
    wanted = list(patterns)
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted)]


def files(directory: Path, console: str, kind: str = CAST) -> list[RecordFile]:
    """Return the files of one kind of a console, the oldest first."""
    found = []
    try:
        names = [entry.name for entry in os.scandir(directory / console)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    for name in names:
        parts = _NAME.fullmatch(name)
        if parts is None or parts[3] != kind:
            continue
        with contextlib.suppress(ValueError):  # digits that are no time: not ours
            start = datetime.strptime(parts[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
            turn = int(parts[2] or 1)
            found.append(RecordFile(directory / console / name, start, turn, kind, parts[4]))
    # While a file is being packed there are, for a moment, both.
    found.sort(key=lambda file: (file.start, file.turn, file.packed))
    return [file for index, file in enumerate(found) if not index or found[index - 1].stem != file.stem]


def new_names(directory: Path, utc: float) -> tuple[Path, Path]:
    """Return names for a cast and a log that begin now, and are not there yet, packed or not."""
    stem = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(utc))
    taken = {entry.name.split(".")[0] for entry in os.scandir(directory)}
    turn, name = 1, stem
    while name in taken:
        turn += 1
        name = f"{stem}-{turn}"
    return directory / f"{name}{CAST}", directory / f"{name}{LOG}"


def create(path: Path) -> int:
    """Make a new file that only its owner can read; return its descriptor. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def make_directory(path: Path) -> None:
    """Make a directory that only its owner can read, if it is not there. Raises RecordError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"cannot keep records in {path}: {error.strerror}") from error


def open_record(file: RecordFile) -> IO[bytes]:
    """Open a file for reading its bytes, whether it is packed or not, or was packed just now.

    Raises RecordError, OSError.
    """
    for packed in (file.packed, *PACKED.values()):
        path = file.path.with_name(f"{file.stem}{file.kind}{packed}")
        try:
            if packed == PACKED["none"]:
                return path.open("rb")
            if packed == PACKED["gzip"]:
                return io.BufferedReader(gzip.open(path, "rb"))
            if path.exists():
                return io.BufferedReader(zstd().open(path, "rb"))
        except FileNotFoundError:
            continue
    raise RecordError(f"the record {file.path} has been removed")


def lines(file: RecordFile, limit: int) -> Iterator[bytes]:
    """Return the lines of a file, without their ends; one with more than ``limit`` bytes comes in pieces.

    What a packed file lacks is left out silently only at its end. Raises RecordError, OSError.
    """
    with open_record(file) as stream:
        while line := stream.readline(limit):
            yield line.removesuffix(b"\n")


def zstd() -> Any:
    """Return a module that packs with Zstandard. Raises RecordError."""
    for name in _ZSTD:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise RecordError("zstd needs Python 3.14 or the package zstandard: pip install zstandard")


def pack(path: Path, compress: str) -> None:
    """Pack a finished file; a crash leaves the one or the other. Raises OSError, RecordError."""
    if compress == "none":
        return
    packed = path.with_name(path.name + PACKED[compress])
    part = packed.with_name(packed.name + _UNFINISHED)
    part.unlink(missing_ok=True)
    times = path.stat()
    with path.open("rb") as source, os.fdopen(create(part), "wb") as raw:
        opened = gzip.GzipFile("", "wb", 6, raw, 0) if compress == "gzip" else zstd().open(raw, "wb")
        with opened as sink:
            shutil.copyfileobj(source, sink, 1 << 18)
        raw.flush()
        os.fsync(raw.fileno())
    # Its age is that of what is in it.
    os.utime(part, ns=(times.st_atime_ns, times.st_mtime_ns))
    part.rename(packed)
    path.unlink()


def mend(directory: Path, console: str) -> None:
    """Mend what a crash left of a console's record: halves of lines, packing that was not finished.

    Only the last files can have been written to. Raises OSError.
    """
    for entry in os.scandir(directory / console):
        if entry.name.endswith(_UNFINISHED):
            Path(entry.path).unlink()
    for kind in (CAST, LOG):
        if (found := files(directory, console, kind)) and not found[-1].packed:
            _mend_end(found[-1].path)


def _mend_end(path: Path) -> None:
    """Cut off what is behind the last line of a cast, and end the last line of a log."""
    times = path.stat()
    with path.open("r+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _TAIL))
        tail = stream.read()
        # After a power failure a file may end with zeros, where data had a place but were not written.
        whole = tail.rstrip(b"\0")
        if path.suffix == CAST:
            whole = whole[: whole.rfind(b"\n") + 1]
        if size and whole == tail and tail.endswith(b"\n"):
            return
        left = size - len(tail) + len(whole)
        if not left:
            path.unlink()
            return
        stream.truncate(left)
        if whole and not whole.endswith(b"\n"):
            stream.seek(0, os.SEEK_END)
            stream.write(b"\n")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def last_sign_of_life(directory: Path) -> float | None:
    """Return when a file of the console was written last: UTC; None if there is none. Raises OSError."""
    ends = [
        entry.stat(follow_symlinks=False).st_mtime
        for entry in os.scandir(directory)
        if _NAME.fullmatch(entry.name)
    ]
    return max(ends, default=None)


def remove_old(
    directory: Path, *, now: float, keep_days: int, keep_bytes: int, in_use: frozenset[Path]
) -> list[Path]:
    """Remove finished files that are too old, and then the oldest of the console with the most bytes, as long
    as there are too many: so a device that talks without end pushes out its own record, and no other's.

    ``in_use`` are those that are being written; 0 keeps all. Returns what was removed. Raises OSError.
    """
    found: dict[str, list[tuple[float, Path, int]]] = {}
    sizes: Counter[str] = Counter()
    for console in consoles(directory):
        for entry in os.scandir(directory / console):
            if not _NAME.fullmatch(entry.name):
                continue
            status = entry.stat(follow_symlinks=False)
            sizes[console] += status.st_size
            if (path := Path(entry.path)) not in in_use:
                found.setdefault(console, []).append((status.st_mtime, path, status.st_size))
    for files_of in found.values():
        files_of.sort(reverse=True)  # the oldest is at the end
    removed = []

    def remove_oldest(console: str) -> None:
        _, path, size = found[console].pop()
        path.unlink(missing_ok=True)
        sizes[console] -= size
        removed.append(path)

    for console, files_of in found.items():
        while keep_days and files_of and now - files_of[-1][0] > keep_days * 86_400:
            remove_oldest(console)
    while keep_bytes and sizes.total() > keep_bytes:
        having = [console for console, files_of in found.items() if files_of]
        if not having:
            break
        remove_oldest(max(having, key=lambda console: (sizes[console], -found[console][-1][0])))
    return removed
