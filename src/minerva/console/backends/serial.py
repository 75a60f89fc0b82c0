"""Serial lines of this machine, and pseudoterminals that other programs made.

An adapter that is unplugged is found again by its name, so that should be a stable one
(``/dev/serial/by-path/...``, ``/dev/serial/by-id/...``).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import struct
import termios
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from minerva.console.backends.base import (
    BackendError,
    Base,
    Capability,
    Flow,
    LineSettings,
    Modem,
    Unsupported,
    appeared,
    in_own_thread,
    why,
)
from minerva.console.backends.descriptor import DescriptorStream
from minerva.console.port_config import PtyPort, SerialPort
from minerva.core.text import printable

if TYPE_CHECKING:
    import serial

log = logging.getLogger(__name__)

OPEN_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 5.0
_DRAIN_LOOK: Final = 0.02
_DRAIN_SECONDS: Final = 30.0
_VMIN: Final = 6
_VTIME: Final = 5
_MODEM: Final = {
    termios.TIOCM_CTS: Modem.CTS,
    termios.TIOCM_DSR: Modem.DSR,
    termios.TIOCM_RI: Modem.RI,
    termios.TIOCM_CD: Modem.CD,
}


class SerialBackend(Base):
    """A serial line of this machine, by pyserial for its set-up and by its descriptor for its bytes."""

    def __init__(self, port: SerialPort) -> None:
        self._port = port
        self._path = Path(port.device)
        self._wanted = LineSettings.parse(port.speed, port.framing, port.flow)
        self._settings = self._wanted
        self._dtr, self._rts = port.dtr, port.rts
        self._serial: serial.Serial | None = None
        self._stream: DescriptorStream | None = None

    @property
    def capabilities(self) -> Capability:
        """All that a line can do."""
        return Capability.BREAK | Capability.LINE

    @property
    def settings(self) -> LineSettings:
        """Speed and framing now."""
        return self._settings

    def describe(self) -> str:
        """Return the device, what it is now, and the speed."""
        real = os.path.realpath(self._path)
        named = f" ({real})" if real != str(self._path) and Path(real).exists() else ""
        return f"{self._path}{named} at {self._settings}"

    async def open(self) -> None:
        """Open the device for ourselves alone, with the settings of the configuration."""
        self._settings = self._wanted
        self._dtr, self._rts = self._port.dtr, self._port.rts
        # An adapter that is sick can hold up whoever opens it.
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                self._serial = await in_own_thread(self._open, _close)
        except TimeoutError as error:
            raise BackendError(f"{self._path} could not be opened within {OPEN_SECONDS:g} s") from error
        self._stream = DescriptorStream(self._open_serial().fileno())

    async def read(self) -> bytes:
        """Return what comes next; ``b""`` when the adapter is gone."""
        data = await self._open_stream().read()
        if not data:
            raise BackendError(f"{self._path} is gone")
        return data

    async def write(self, data: bytes) -> None:
        """Write ``data``; the system keeps a few KiB."""
        await self._open_stream().write(data)

    async def send_break(self, seconds: float) -> None:
        """Send a break once all that was written has left."""
        line = self._open_serial()
        await self._drained()
        try:
            line.break_condition = True
            try:
                await asyncio.sleep(seconds)
            finally:
                line.break_condition = False
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP):
                raise Unsupported(f"{self._path} cannot send a break: {why(error)}") from error
            raise BackendError(f"{self._path} does not send a break: {why(error)}") from error

    async def configure(self, settings: LineSettings) -> LineSettings:
        """Change speed and framing until the line is opened again. Raises Unsupported if it has no such."""
        line = self._open_serial()
        before = self._settings
        await self._drained()
        try:
            await in_own_thread(lambda: _apply(line, settings))
        except (ValueError, OSError, termios.error) as error:
            # Some settings may have been taken.
            with suppress(ValueError, OSError, termios.error):
                await in_own_thread(lambda: _apply(line, before))
            raise Unsupported(f"{self._path} does not do {settings}: {_reason(error)}") from error
        self._settings = settings
        return settings

    async def set_lines(self, *, dtr: bool | None = None, rts: bool | None = None) -> None:
        """Assert or clear DTR and RTS; on what has no such lines, that has no effect."""
        line = self._open_serial()
        try:
            if dtr is not None:
                self._dtr = line.dtr = dtr
            if rts is not None:
                self._rts = line.rts = rts
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise BackendError(f"{self._path}: {why(error)}") from error

    def lines(self) -> tuple[bool, bool]:
        """Return whether DTR and RTS are asserted."""
        return self._dtr, self._rts

    def modem(self) -> Modem:
        """Return the lines that the device asserts; none on what has no such lines."""
        if self._serial is None:
            return Modem.NONE
        try:
            raw = fcntl.ioctl(self._serial.fileno(), termios.TIOCMGET, struct.pack("I", 0))
        except OSError:
            return Modem.NONE
        (bits,) = struct.unpack("I", raw)
        found = Modem.NONE
        for bit, line in _MODEM.items():
            if bits & bit:
                found |= line
        return found

    async def close(self) -> None:
        """Close the device. What it did not take yet is thrown away, or closing could last long."""
        line, self._serial = self._serial, None
        if self._stream is not None:
            self._stream.detach()
            self._stream = None
        if line is not None:
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await in_own_thread(lambda: _close(line))
            except TimeoutError:
                log.warning("%s does not let itself be closed", self._path)

    async def returned(self) -> None:
        """Wait until the device appears, if it is away."""
        await appeared(self._path)

    def _open(self) -> serial.Serial:
        import serial

        line = serial.Serial()
        line.port = str(self._path)
        line.exclusive = True
        line.timeout = line.write_timeout = 0
        line.dtr, line.rts = self._dtr, self._rts
        try:
            _apply(line, self._settings)
            line.open()
            # Else nothing to read and nobody to read from look the same.
            attributes = termios.tcgetattr(line.fileno())
            attributes[6][_VMIN], attributes[6][_VTIME] = 1, 0
            termios.tcsetattr(line.fileno(), termios.TCSANOW, attributes)
        except (serial.SerialException, OSError, ValueError, termios.error) as error:
            line.close()
            raise BackendError(self._why_not(error)) from error
        return line

    def _why_not(self, error: Exception) -> str:
        number = getattr(error, "errno", None)
        if number == errno.ENOENT:
            return f"{self._path} is not there"
        if number in (errno.EWOULDBLOCK, errno.EBUSY):
            return f"{self._path} is in use by {_user_of(self._path)}"
        if number == errno.EACCES:
            return (
                f"{self._path} may not be opened: the console server needs to be in the group of the device"
            )
        if number in (errno.EIO, errno.ENXIO, errno.ENODEV):
            return f"{self._path} does not work: {os.strerror(number)}"
        if isinstance(error, ValueError) or number is None:
            return f"{self._path} cannot be set to {self._settings}: {_reason(error)}"
        return f"{self._path} cannot be opened: {os.strerror(number)}"

    async def _drained(self) -> None:
        """Wait until all that was written has left; tcdrain would hold up everything."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _DRAIN_SECONDS
        while loop.time() < deadline:
            try:
                raw = fcntl.ioctl(self._open_serial().fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
            except OSError as error:
                raise BackendError(f"{self._path}: {why(error)}") from error
            if struct.unpack("i", raw)[0] == 0:
                return
            await asyncio.sleep(_DRAIN_LOOK)
        raise BackendError(f"{self._path} takes nothing: the other side holds it up by flow control")

    def _open_serial(self) -> serial.Serial:
        if self._serial is None:
            raise BackendError(f"{self._path} is not open")
        return self._serial

    def _open_stream(self) -> DescriptorStream:
        if self._stream is None:
            raise BackendError(f"{self._path} is not open")
        return self._stream


class PtyBackend(SerialBackend):
    """A pseudoterminal that another program made: a line without speed, lines and break."""

    def __init__(self, port: PtyPort) -> None:
        super().__init__(SerialPort(device=port.path))

    @property
    def capabilities(self) -> Capability:
        """Nothing but bytes."""
        return Capability.NONE

    def describe(self) -> str:
        """Return the path."""
        return f"pseudoterminal {self._path}"

    async def send_break(self, seconds: float) -> None:
        """Refuse: nobody sees one at the other end."""
        await Base.send_break(self, seconds)


def _apply(line: serial.Serial, settings: LineSettings) -> None:
    line.apply_settings(
        {
            "baudrate": settings.speed,
            "bytesize": settings.data_bits,
            "parity": settings.parity,
            "stopbits": settings.stop_bits if settings.stop_bits == 1.5 else int(settings.stop_bits),
            "xonxoff": settings.flow is Flow.XONXOFF,
            "rtscts": settings.flow is Flow.RTSCTS,
            "dsrdtr": settings.flow is Flow.DSRDTR,
        }
    )


def _reason(error: Exception) -> str:
    # Errors of termios have the number first, as if they were of the system.
    return printable(str(error.args[-1] if error.args else error))


def _close(line: serial.Serial) -> None:
    with suppress(OSError, termios.error):
        termios.tcflush(line.fileno(), termios.TCOFLUSH)
    with suppress(OSError):
        line.close()


def _user_of(device: Path) -> str:
    """Return which program has a device open, as far as we may know."""
    real = os.path.realpath(device)
    if _has_open(Path("/proc/self"), real):
        return "another console of this server"
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _has_open(process, real):
            with suppress(OSError):
                name = (process / "comm").read_text().strip()
                return f"{printable(name)} (process {process.name})"
    return "another program"


def _has_open(process: Path, real: str) -> bool:
    try:
        return any(os.path.realpath(link) == real for link in (process / "fd").iterdir())
    except OSError:
        # Gone meanwhile, or not to be looked into.
        return False
