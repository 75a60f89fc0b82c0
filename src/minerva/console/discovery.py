"""Finds the serial lines of this machine, and guesses what is at their other end from what it says."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minerva.console.backends.serial import SerialBackend
from minerva.console.port_config import SerialPort
from minerva.core.text import shortened

DEV: Final = Path("/dev")
TTYS: Final = Path("/sys/class/tty")
MOST: Final = 16_384
"""So many bytes of what a device says are looked at."""

_USB_ABOVE = 6  # directories in which the description of a USB device may be
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-_]|[\x00-\x09\x0b-\x1f\x7f]")
_NAME = r"([A-Za-z0-9][A-Za-z0-9._-]{0,62})"
_GREETINGS = (
    re.compile(rf"^(?:.*\s)?{_NAME} login: ?", re.MULTILINE),
    re.compile(rf"^\[?[a-z_][a-z0-9_-]*@{_NAME}[: ]", re.MULTILINE),
    re.compile(rf"^<?{_NAME}(?:\([\w-]+\))?[>#] ?$", re.MULTILINE),
)
_NO_NAMES = {"localhost", "last", "user", "username", "password", "login", "root", "admin"}


@dataclass(frozen=True, slots=True)
class Adapter:
    """A serial line of this machine."""

    device: str
    """What it is called now, such as /dev/ttyUSB0."""
    path: str
    """The name to use for it: one that stays the same, if there is one."""
    description: str
    """What it says of itself, fit for a terminal; empty if nothing."""


def adapters(dev: Path = DEV, ttys: Path = TTYS) -> list[Adapter]:
    """Return the serial lines that are there now, by their paths."""
    stable: dict[str, str] = {}
    for directory in ("by-id", "by-path"):  # the second is the better one
        for link in sorted((dev / "serial" / directory).glob("*")):
            stable[link.resolve().name] = str(link)
    found = []
    for tty in ttys.glob("*"):
        # Terminals that are no hardware have no device, and lines that are not wired no type.
        if not (tty / "device").exists() or _read(tty / "type") == "0" or not (dev / tty.name).exists():
            continue
        device = str(dev / tty.name)
        found.append(Adapter(device, stable.get(tty.name, device), _describe(tty / "device")))
    return sorted(found, key=lambda adapter: adapter.path)


def suggested_name(said: bytes) -> str | None:
    """Return the name that a device seems to have from what it said last, such as ``web1 login:``."""
    text = _CONTROL.sub("", said[-MOST:].decode("utf-8", "replace").replace("\r", "\n"))
    best: tuple[int, str] | None = None
    for pattern in _GREETINGS:
        for match in pattern.finditer(text):
            name = match[1].rstrip(".-")
            if name.lower() not in _NO_NAMES and (best is None or match.start() > best[0]):
                best = match.start(), name
    return None if best is None else best[1]


async def listen(path: str, *, speed: int, seconds: float, enter: bool) -> bytes:
    """Return what a line says within some seconds; with ``enter``, Enter is typed first.

    Raises BackendError, also if another program has the line.
    """
    backend = SerialBackend(SerialPort(device=path, speed=speed))
    said = bytearray()
    try:
        await backend.open()
        if enter:
            await backend.write(b"\r")
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while len(said) < MOST:
                    said += await backend.read()
    finally:
        await backend.close()
    return bytes(said)


def _describe(device: Path) -> str:
    """Return what a USB device says of itself, or the name of another one's driver."""
    place = device.resolve()
    for _ in range(_USB_ABOVE):
        if (place / "idVendor").exists():
            words = (_read(place / name) for name in ("manufacturer", "product", "serial"))
            return shortened(" ".join(word for word in words if word), 80)
        place = place.parent
    driver = device / "driver"
    return shortened(driver.resolve().name, 80) if driver.exists() else ""


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
