"""Serial lines of this machine, and pseudoterminals that other programs made.

An adapter that is unplugged is found again by its name, so that should be a stable one
(``/dev/serial/by-path/...``, ``/dev/serial/by-id/...``).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

from minerva.console.backends import lock_file, tty
from minerva.console.backends.base import (
    BackendError,
    Base,
    Capability,
    LineSettings,
    Modem,
    Unsupported,
    appeared,
    in_own_thread,
    why,
)
from minerva.console.backends.descriptor import GONE, DescriptorStream
from minerva.console.port_config import PtyPort, SerialPort
from minerva.core.text import printable

log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")

OPEN_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 5.0
ACT_SECONDS: Final = 10.0
"""How long an adapter may take for anything else."""
_DRAIN_LOOK: Final = 0.02
_DRAIN_SECONDS: Final = 30.0


class _Device:
    """A device that is open, for threads: what comes too late must not meet another file with its number."""

    def __init__(self, descriptor: int) -> None:
        self.lock_file: Path | None = None
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def do(self, act: Callable[Concatenate[int, _P], _T], *arguments: _P.args, **more: _P.kwargs) -> _T:
        """Do one of the things of :mod:`tty`."""
        with self._lock:
            if self._descriptor < 0:
                raise OSError(errno.EBADF, "it is closed")
            return act(self._descriptor, *arguments, **more)

    def close(self) -> None:
        """Close it. What it did not take yet is thrown away, or closing could last long."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
            # First, as whoever has the device next makes another one.
            if self.lock_file is not None:
                lock_file.release(self.lock_file)
                self.lock_file = None
            with suppress(OSError):
                tty.discard(descriptor)
            with suppress(OSError):
                os.close(descriptor)


class SerialBackend(Base):
    """A serial line of this machine.

    An adapter that is sick can hold up whoever asks it for anything, so all that is done in threads.
    """

    def __init__(self, port: SerialPort) -> None:
        self._port = port
        self._path = Path(port.device)
        self._wanted = LineSettings.parse(port.speed, port.framing, port.flow)
        self._settings = self._wanted
        self._dtr, self._rts = port.dtr, port.rts
        self._device: _Device | None = None
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
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                opened = await in_own_thread(self._open, _close_late)
        except TimeoutError as error:
            raise BackendError(f"{self._path} could not be opened within {OPEN_SECONDS:g} s") from error
        descriptor, self._device = opened
        self._stream = DescriptorStream(descriptor)

    async def read(self) -> bytes:
        """Return what comes next. Raises BackendError when the adapter is gone."""
        data = await self._opened().read()
        if not data:
            raise BackendError(f"{self._path} is gone")
        return data

    async def write(self, data: bytes) -> None:
        """Write ``data``; the system keeps a few KiB."""
        await self._opened().write(data)

    async def send_break(self, seconds: float) -> None:
        """Send a break once all that was written has left. Raises Unsupported if the line has none."""
        await self._drained()
        try:
            await self._do(tty.set_break, True)
            try:
                await asyncio.sleep(seconds)
            finally:
                await self._do(tty.set_break, False)
        except OSError as error:
            if error.errno in GONE:
                raise BackendError(f"{self._path}: {why(error)}") from error
            raise Unsupported(f"{self._path} does not send a break: {why(error)}") from error

    async def configure(self, settings: LineSettings) -> LineSettings:
        """Change speed and framing until the line is opened again. Raises Unsupported if it has no such."""
        before = self._settings
        await self._drained()
        try:
            await self._do(tty.apply, settings)
        except (ValueError, OSError) as error:
            # Some settings may have been taken.
            with suppress(ValueError, OSError):
                await self._do(tty.apply, before)
            raise Unsupported(f"{self._path} does not do {settings}: {_reason(error)}") from error
        self._settings = settings
        return settings

    async def set_lines(self, *, dtr: bool | None = None, rts: bool | None = None) -> None:
        """Assert or clear DTR and RTS; on what has no such lines, that has no effect."""
        try:
            await self._do(tty.set_lines, dtr=dtr, rts=rts)
        except OSError as error:
            raise BackendError(f"{self._path}: {why(error)}") from error
        self._dtr = self._dtr if dtr is None else dtr
        self._rts = self._rts if rts is None else rts

    def lines(self) -> tuple[bool, bool]:
        """Return whether DTR and RTS are asserted."""
        return self._dtr, self._rts

    async def modem(self) -> Modem:
        """Return the lines that the device asserts; none on what has no such lines."""
        try:
            return await self._do(tty.modem)
        except (OSError, BackendError):
            return Modem.NONE

    async def close(self) -> None:
        """Close the device."""
        device, self._device = self._device, None
        if self._stream is not None:
            self._stream.detach()
            self._stream = None
        if device is None:
            return
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await in_own_thread(device.close)
        except TimeoutError:
            log.warning("%s does not let itself be closed", self._path)

    async def returned(self) -> None:
        """Wait until the device appears, if it is away."""
        await appeared(self._path)

    def _open(self) -> tuple[int, _Device]:
        try:
            descriptor = tty.open_device(str(self._path))
        except OSError as error:
            raise BackendError(self._why_not(error)) from error
        device = _Device(descriptor)
        try:
            # The program that made a pseudoterminal may have it open.
            if not tty.is_pseudoterminal(descriptor):
                self._keep_others_off(device, descriptor)
            tty.apply(descriptor, self._settings)
            tty.set_lines(descriptor, dtr=self._dtr, rts=self._rts)
        except (OSError, ValueError) as error:
            device.close()
            raise BackendError(self._why_not(error)) from error
        except BaseException:
            device.close()
            raise
        return descriptor, device

    def _keep_others_off(self, device: _Device, descriptor: int) -> None:
        """Raise BackendError if others use the device without a lock: each would get half of the bytes."""
        user = _user_of(self._path, but=descriptor)
        if user is None:
            try:
                device.lock_file = lock_file.take(os.path.realpath(self._path))
            except lock_file.Locked as locked:
                user = f"{_name(str(locked))}: {lock_file.DIRECTORY} says so"
        if user is not None:
            raise BackendError(f"{self._path} is in use by {user}")

    def _why_not(self, error: OSError | ValueError) -> str:
        if isinstance(error, ValueError):
            return f"{self._path} does not do {self._settings}: {error}"
        match error.errno:
            case errno.ENOENT:
                return f"{self._path} is not there"
            case errno.EWOULDBLOCK | errno.EBUSY:
                return f"{self._path} is in use by {_user_of(self._path) or 'another program'}"
            case errno.EACCES:
                need = "the console server needs to be in the group of the device"
                return f"{self._path} may not be opened: {need}"
            case errno.EIO | errno.ENXIO | errno.ENODEV:
                return f"{self._path} does not work: {why(error)}"
            case errno.ENOTTY:
                return f"{self._path} is no serial line"
            case _:
                return f"{self._path} cannot be opened: {why(error)}"

    async def _do(
        self, act: Callable[Concatenate[int, _P], _T], *arguments: _P.args, **more: _P.kwargs
    ) -> _T:
        """Do something with the device that may last."""
        if (device := self._device) is None:
            raise BackendError(f"{self._path} is not open")
        try:
            async with asyncio.timeout(ACT_SECONDS):
                return await in_own_thread(lambda: device.do(act, *arguments, **more))
        except TimeoutError as error:
            raise BackendError(f"{self._path} did not react within {ACT_SECONDS:g} s") from error

    async def _drained(self) -> None:
        """Wait until all that was written has left."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _DRAIN_SECONDS
        try:
            # Were the system to wait for this, nobody could make it stop.
            while tty.waiting(self._opened().descriptor):
                if loop.time() > deadline:
                    raise BackendError(
                        f"{self._path} takes nothing: the other side holds it up by flow control"
                    )
                await asyncio.sleep(_DRAIN_LOOK)
            # What is in the chip is on its way.
            await self._do(tty.drain)
        except OSError as error:
            raise BackendError(f"{self._path}: {why(error)}") from error

    def _opened(self) -> DescriptorStream:
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


def _close_late(opened: tuple[int, _Device]) -> None:
    opened[1].close()


def _reason(error: OSError | ValueError) -> str:
    return why(error) if isinstance(error, OSError) else str(error)


def _user_of(device: Path, but: int = -1) -> str | None:
    """Return which program has a device open, as far as we may know, other than by our descriptor ``but``."""
    real, us = os.path.realpath(device), str(os.getpid())
    if any(number != str(but) for number in _open_in(us, real)):
        return "another console of this server"
    for process in os.listdir("/proc"):  # noqa: PTH208  # there may be ten thousands of files: Path takes seconds
        if process.isdigit() and process != us and _open_in(process, real) and not _is_being_born(process):
            return _name(process)
    return None


def _is_being_born(process: str) -> bool:
    """Return whether a process is a copy of ours, which has all of ours until it becomes another program."""
    child, us = Path(f"/proc/{process}"), Path("/proc/self")
    try:
        is_child = f"\nPPid:\t{os.getpid()}\n" in (child / "status").read_text()
        return is_child and (child / "exe").readlink() == (us / "exe").readlink()
    except OSError:
        return False


def _name(process: str) -> str:
    """Return what a process is called, and its number."""
    try:
        name = printable(Path(f"/proc/{process}/comm").read_text().strip())
    except OSError:
        name = "a program"
    return f"{name} (process {process})"


def _open_in(process: str, real: str) -> list[str]:
    """Return the numbers of the descriptors by which a process has a file open."""
    directory, found = f"/proc/{process}/fd/", []
    try:
        # Here as well there may be very many.
        for number in os.listdir(directory):  # noqa: PTH208
            with suppress(FileNotFoundError):
                if os.readlink(directory + number) == real:  # noqa: PTH115
                    found.append(number)
    except OSError:
        # Gone meanwhile, or not to be looked into.
        return []
    return found
