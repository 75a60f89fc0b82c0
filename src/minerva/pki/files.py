"""Files that are there whole or not at all, and a lock on the directory that holds them."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class File:
    """A file to be written; ``secret`` makes it readable by its owner alone."""

    name: str
    data: bytes = field(repr=False)
    secret: bool = False


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock on ``directory``, which must exist; wait for it if another process holds it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_files(directory: Path, *files: File) -> None:
    """Write ``files`` into ``directory``, replacing what is there, so that a crash leaves no part of any.

    All are on the disk under temporary names before the first gets its own, and they get their names in
    the order given: the last one is the sign that all are there.
    """
    with ExitStack() as stack:
        staged = [(_stage(directory, file, stack), directory / file.name) for file in files]
        for temporary, target in staged:
            temporary.replace(target)
    sync_directory(directory)


def _stage(directory: Path, file: File, stack: ExitStack) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=directory)
    temporary = Path(name)
    stack.callback(temporary.unlink, missing_ok=True)
    with os.fdopen(descriptor, "wb") as stream:
        if not file.secret:
            os.fchmod(descriptor, 0o644)
        stream.write(file.data)
        stream.flush()
        os.fsync(descriptor)
    return temporary


def append_line(path: Path, line: str) -> None:
    """Append ``line`` to the file ``path`` and wait until it is on the disk."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def sync_directory(directory: Path) -> None:
    """Wait until the names in ``directory`` are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
