"""What every kind of line has in common: bytes from a device and to it, and breaks.

One task reads and one writes, which may be the same. ``read`` and ``write`` may be cancelled, then the
backend is closed. After ``close`` a backend can be opened again.
"""

from __future__ import annotations

import asyncio
import enum
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from minerva.core.errors import MinervaError
from minerva.core.secret import Secret
from minerva.core.text import printable

_T = TypeVar("_T")
_A = TypeVar("_A")

READ_SIZE: Final = 65_536
CONNECT_SECONDS: Final = 20.0
"""How long reaching a device may take."""
LOOK_SECONDS: Final = 0.5
"""How often it is looked whether a device that was unplugged is back."""


class BackendError(MinervaError):
    """The device cannot be reached any more, or yet: the sentence says why."""


class Unsupported(BackendError):
    """This kind of line cannot do that; the line itself is well."""


class Capability(enum.Flag):
    """What a backend can do besides carrying bytes."""

    NONE = 0
    BREAK = enum.auto()
    LINE = enum.auto()
    """It is a :class:`SerialLine`, whose speed and framing can be changed."""


class Flow(enum.Enum):
    """Who stops whom on a serial line, and how; spelled as in the configuration."""

    NONE = "none"
    RTSCTS = "rtscts"
    XONXOFF = "xonxoff"
    DSRDTR = "dsrdtr"


@dataclass(frozen=True, slots=True)
class LineSettings:
    """Speed in bit/s and framing of a serial line."""

    speed: int = 115_200
    data_bits: int = 8
    parity: str = "N"
    """One of N, E, O, M (mark), S (space)."""
    stop_bits: float = 1
    flow: Flow = Flow.NONE

    @classmethod
    def parse(cls, speed: int, framing: str, flow: str) -> LineSettings:
        """Return what the configuration says, such as 115200, ``8N1``, ``none``; it has been checked."""
        return cls(speed, int(framing[0]), framing[1], float(framing[2:]), Flow(flow))

    def __str__(self) -> str:
        flow = "" if self.flow is Flow.NONE else f" {self.flow.value}"
        return f"{self.speed} {self.data_bits}{self.parity}{self.stop_bits:g}{flow}"


class Modem(enum.Flag):
    """The modem lines that come from the device, as RFC 2217 numbers them in NOTIFY-MODEMSTATE."""

    NONE = 0
    CTS = 16
    DSR = 32
    RI = 64
    CD = 128


class Backend(Protocol):
    """A line to a device. Everything raises :class:`BackendError` at most."""

    @property
    def capabilities(self) -> Capability:
        """What it can do; may be known only when it is open."""

    def describe(self) -> str:
        """Return what the line is, for people."""

    async def open(self) -> None:
        """Reach the device."""

    async def read(self) -> bytes:
        """Return the next bytes that the device says; ``b""`` when it has ended the connection."""

    async def write(self, data: bytes) -> None:
        """Send all of ``data``; return when more would be taken."""

    async def send_break(self, seconds: float) -> None:
        """Send a break after all that has been written. Raises :class:`Unsupported`."""

    async def close(self) -> None:
        """Give the device up; again has no effect. Never raises."""

    async def returned(self) -> None:
        """Return when it is worthwhile to try again at once; never, where that cannot be known."""


class SerialLine(Protocol):
    """What a backend can do besides if it is a serial line, near or far."""

    @property
    def settings(self) -> LineSettings:
        """The speed and framing now."""

    async def configure(self, settings: LineSettings) -> LineSettings:
        """Change speed and framing; return what they are then."""

    async def set_lines(self, *, dtr: bool | None = None, rts: bool | None = None) -> None:
        """Assert or clear DTR and RTS."""

    def lines(self) -> tuple[bool, bool]:
        """Return whether DTR and RTS are asserted."""

    async def modem(self) -> Modem:
        """Return the lines that the device asserts."""


class Base:
    """What most backends do not care about."""

    @property
    def capabilities(self) -> Capability:
        """Nothing but bytes."""
        return Capability.NONE

    async def send_break(self, seconds: float) -> None:
        """Refuse."""
        raise Unsupported(f"a break cannot be sent for {seconds:g} s: this kind of line has none")

    async def returned(self) -> None:
        """Wait for ever."""
        await asyncio.Event().wait()


async def appeared(path: Path) -> None:
    """Return when there is something new at ``path``, or something else than now."""
    before = _identity(path)
    while (now := _identity(path)) is None or now == before:
        await asyncio.sleep(LOOK_SECONDS)
        if now is None:
            before = None


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


def why(error: OSError) -> str:
    """Return the reason in an error of the system, without its number."""
    # asyncio puts its own words in place of the system's; libraries have their own numbers.
    if error.errno and type(error).__module__ == "builtins":
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__


def read_password(path: str) -> Secret:
    """Return the first line of a file with a password; empty if no file is named. Raises BackendError."""
    if not path:
        return Secret(b"")
    try:
        with Path(path).open("rb") as file:
            return Secret(file.readline().rstrip(b"\r\n"))
    except OSError as error:
        raise BackendError(f"the password cannot be read from {path}: {why(error)}") from error


async def in_own_thread(function: Callable[[], _T], late: Callable[[_T], None] | None = None) -> _T:
    """Run a function that may block in a thread of its own, so that it can hold up nobody but its caller.

    If the caller has given up by then, ``late`` is called with the result, in that thread.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def deliver(result: _T) -> None:
        if future.cancelled():
            if late is not None:
                # It may block as well.
                threading.Thread(target=late, args=(result,), daemon=True).start()
        else:
            future.set_result(result)

    def fail(error: Exception) -> None:
        if not future.cancelled():
            future.set_exception(error)

    def run() -> None:
        try:
            result = function()
        except Exception as error:
            _call(loop, fail, error)
        else:
            if not _call(loop, deliver, result) and late is not None:
                late(result)

    threading.Thread(target=run, daemon=True).start()
    return await future


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[_A], None], argument: _A) -> bool:
    """Have the loop call a function; return whether there still is a loop."""
    try:
        loop.call_soon_threadsafe(function, argument)
    except RuntimeError:
        return False
    return True


class Dialer(Protocol):
    """How sockets to devices are made: in which network."""

    async def stream(self, host: str, port: int) -> socket.socket:
        """Return a TCP socket that is connected. Raises OSError."""

    async def datagram(self, host: str, port: int) -> socket.socket:
        """Return a UDP socket that is connected. Raises OSError."""


class SystemDialer:
    """Sockets in the network in which the process itself is."""

    async def stream(self, host: str, port: int) -> socket.socket:
        """Return a TCP socket that is connected, to whichever address of the host answers first in order."""
        return await self._connect(host, port, socket.SOCK_STREAM)

    async def datagram(self, host: str, port: int) -> socket.socket:
        """Return a UDP socket that is connected."""
        return await self._connect(host, port, socket.SOCK_DGRAM)

    async def _connect(self, host: str, port: int, kind: socket.SocketKind) -> socket.socket:
        loop = asyncio.get_running_loop()
        failure: OSError = OSError("the name has no address")
        for family, _, protocol, _, address in await _addresses(host, port, kind):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise failure


async def _addresses(host: str, port: int, kind: socket.SocketKind) -> list[Any]:
    """Return the addresses of a host; a name server that does not answer holds up nobody else."""
    try:
        return socket.getaddrinfo(host, port, type=kind, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return await in_own_thread(lambda: socket.getaddrinfo(host, port, type=kind))


async def dial(dialer: Dialer, host: str, port: int) -> socket.socket:
    """Return a TCP socket that is connected and notices when the peer is gone. Raises BackendError."""
    where = f"{printable(host)} port {port}"
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            sock = await dialer.stream(host, port)
    except TimeoutError as error:
        raise BackendError(f"{where} did not answer within {CONNECT_SECONDS:g} s") from error
    except OSError as error:
        raise BackendError(f"{where} cannot be reached: {why(error)}") from error
    keep_alive(sock)
    return sock


def keep_alive(sock: socket.socket) -> None:
    """Let the system find out within two minutes when a silent peer of TCP is gone."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 45)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 120_000)
