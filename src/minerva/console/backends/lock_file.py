"""Lock files as UUCP had them: all that minicom and some others look at before they open a serial line.

``/var/lock/LCK..ttyS0`` has the number of the process that uses the line, in ten columns and LF (FHS 3.0,
section 5.9). Where it cannot be written, there is none.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

DIRECTORY: Final = Path("/var/lock")
_MOST: Final = 32


class Locked(Exception):
    """The process whose number is the argument has the line."""


def take(device: str, directory: Path = DIRECTORY) -> Path | None:
    """Make the lock file of a device, and return it; None if there can be none. Raises Locked.

    ``device`` is no link. Anybody may write to the directory, so only what root or our own user says counts.
    """
    path = directory / f"LCK..{device.removeprefix('/dev/').replace('/', '_')}"
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            if (process := _holder(path)) is not None:
                raise Locked(process) from None
            with suppress(OSError):
                path.unlink()
        except OSError:
            break
        else:
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{os.getpid():10}\n")
            return path
    return None


def release(path: Path) -> None:
    """Remove a lock file of ours."""
    with suppress(OSError):
        path.unlink()


def _holder(path: Path) -> int | None:
    """Return the process that holds a lock, if it is another one that still runs."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            owner = os.fstat(descriptor).st_uid
            process = int(file.read(_MOST))
    except (OSError, ValueError):
        return None
    if owner not in (0, os.geteuid()) or process == os.getpid() or not Path(f"/proc/{process}").exists():
        return None
    return process
