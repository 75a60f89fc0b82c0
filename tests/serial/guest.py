"""The guest of tools/qemu: its lines, what QEMU saw of their chips, and its monitor."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import select
import struct
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minerva.console.backends.serial import SerialBackend
from minerva.console.port_config import SerialPort

RUN = Path(os.environ.get("MINERVA_QEMU", "/nonexistent"))
NEAR, FAR = Path("/dev/ttyS1"), Path("/dev/ttyS2")
"""Two ends of a cable."""
BROKEN, BREAKER = Path("/dev/ttyS3"), Path("/dev/ttyS4")
"""The same, but that what is written to the second is telnet to the first."""
HOST = Path("/dev/ttyS5")
"""The other end of a USB adapter."""
TELNET_BREAK = b"\xff\xf3"

_TIOCGICOUNT = 0x545D
_DATA, _LINE_CONTROL, _MODEM_CONTROL = 0, 3, 4  # registers of a 16550
_BREAK, _DIVISOR = 0x40, 0x80  # in the second


@dataclass(frozen=True)
class Counters:
    """What a driver has counted at a line."""

    received: int
    sent: int
    frame: int
    overrun: int
    parity: int
    breaks: int
    buffer_overrun: int


def counters(line: Path) -> Counters:
    """Return what the driver has counted."""
    descriptor = os.open(line, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        raw = fcntl.ioctl(descriptor, _TIOCGICOUNT, bytes(80))
    finally:
        os.close(descriptor)
    return Counters(*struct.unpack_from("11i", raw)[4:])


class Trace:
    """What QEMU noted since this was made."""

    def __init__(self) -> None:
        self._file = RUN / "trace"
        self._start = self._file.stat().st_size

    def lines(self) -> list[str]:
        """Return it."""
        time.sleep(0.1)  # it is another process, on the other side of a file system
        with self._file.open("rb") as file:
            file.seek(self._start)
            return file.read().decode().splitlines()

    def parameters(self) -> tuple[int, str]:
        """Return the last speed and framing that a 16550 was set to."""
        found = [line for line in self.lines() if line.startswith("serial_update_parameters")]
        match = re.search(r"baudrate=(\d+) parity='(.)' data=(\d) stop=(\d)", found[-1])
        assert match is not None, found[-1]
        return int(match[1]), f"{match[3]}{match[2]}{match[4]}"

    def chip(self) -> list[str | int]:
        """Return the bytes that a 16550 sent, and the beginnings and ends of breaks."""
        found: list[str | int] = []
        control, breaking = 0, False
        for line in self.lines():
            match = re.search(r"serial_write write addr 0x(..) val 0x(..)", line)
            if match is None:
                continue
            register, value = int(match[1], 16), int(match[2], 16)
            if register == _LINE_CONTROL:
                control = value
                if bool(value & _BREAK) != breaking:
                    breaking = not breaking
                    found.append("break" if breaking else "no break")
            elif register == _DATA and not control & _DIVISOR:
                found.append(value)
        return found

    def modem_control(self) -> list[tuple[bool, bool]]:
        """Return the states of DTR and RTS that a 16550 was told."""
        values = re.findall(r"serial_write write addr 0x04 val 0x(..)", "\n".join(self.lines()))
        return [(bool(int(value, 16) & 1), bool(int(value, 16) & 2)) for value in values]


class MonitorError(Exception):
    """What QEMU does not do."""


class Monitor:
    """QEMU's own control, from within the guest."""

    def __init__(self) -> None:
        names = Path("/sys/class/virtio-ports").glob("*/name")
        port = next(name.parent.name for name in names if name.read_text().strip() == "qmp")
        self._descriptor = os.open(f"/dev/{port}", os.O_RDWR | os.O_NONBLOCK)
        self._rest = b""
        self._next("QMP")
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Have a command done; return what it returns. Raises MonitorError."""
        os.write(self._descriptor, json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        return self._next("return")["return"]

    def _next(self, key: str) -> dict[str, Any]:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            line, found, rest = self._rest.partition(b"\n")
            if not found:
                if select.select([self._descriptor], [], [], 1)[0]:
                    self._rest += os.read(self._descriptor, 65_536)
                continue
            self._rest = rest
            message: dict[str, Any] = json.loads(line)
            if "error" in message:
                raise MonitorError(message["error"]["desc"])
            if key in message:
                return message
        raise AssertionError(f"QEMU says no {key}")


def stty(line: Path, *arguments: str) -> str:
    """Run stty on a line; return what it prints."""
    done = subprocess.run(["stty", "-F", str(line), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@asynccontextmanager
async def opened(line: Path = NEAR, **settings: Any) -> AsyncIterator[SerialBackend]:
    """A line that is open."""
    backend = SerialBackend(SerialPort(device=str(line), **settings))
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


async def silence(backend: SerialBackend) -> None:
    """Read until nothing has come for half a second."""
    with suppress(TimeoutError):
        while True:
            async with asyncio.timeout(0.5):
                await backend.read()


class Other:
    """The device at the other end, which is raw and as fast as we are."""

    def __init__(self, line: Path, speed: int = 115_200) -> None:
        # One that is no chip has no speed.
        stty(line, "raw", "-echo", *(("clocal", str(speed)) if speed else ()))
        self.descriptor = os.open(line, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)

    async def say(self, data: bytes) -> None:
        """Write all of it."""
        while data:
            try:
                data = data[os.write(self.descriptor, data) :]
            except BlockingIOError:
                await asyncio.sleep(0.01)

    async def hear(self, count: int, seconds: float = 30) -> bytes:
        """Return so many bytes."""
        data = b""
        async with asyncio.timeout(seconds):
            while len(data) < count:
                data += self.heard() or await asyncio.sleep(0.01, b"")
        return data

    def heard(self) -> bytes:
        """Return what has come until now."""
        try:
            return os.read(self.descriptor, 65_536)
        except BlockingIOError:
            return b""

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
