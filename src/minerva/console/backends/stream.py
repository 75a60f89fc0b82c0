"""Lines that are sockets carrying the bytes alone: TCP, and Unix sockets such as that of obmc-console."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from minerva.console.backends.base import (
    BackendError,
    Base,
    Dialer,
    SystemDialer,
    appeared,
    dial,
    why,
)
from minerva.console.port_config import TcpPort, UnixPort
from minerva.core.text import printable
from minerva.https.errors import HttpError
from minerva.https.stream import TcpStream


class SocketLine:
    """A connected socket as a stream whose errors are those of backends."""

    def __init__(self, sock: socket.socket) -> None:
        self._stream = TcpStream(sock)

    async def read(self) -> bytes:
        """Return the next bytes; ``b""`` at the end."""
        try:
            return await self._stream.read()
        except HttpError as error:
            raise BackendError(str(error)) from error

    async def write(self, data: bytes) -> None:
        """Send all of ``data``."""
        await self.flush(bytearray(data))

    async def flush(self, rest: bytearray) -> None:
        """Send and remove what is in ``rest``, which holds at any time what has not been sent."""
        try:
            await self._stream.flush(rest)
        except HttpError as error:
            raise BackendError(str(error)) from error

    def close(self) -> None:
        """Close the socket."""
        self._stream.abort()


class SocketBackend(Base):
    """What TCP and Unix sockets have in common."""

    def __init__(self) -> None:
        self._line: SocketLine | None = None

    def describe(self) -> str:
        """Return where the socket goes."""
        raise NotImplementedError

    async def connect(self) -> socket.socket:
        """Return a socket that is connected. Raises BackendError."""
        raise NotImplementedError

    async def open(self) -> None:
        """Connect."""
        self._line = SocketLine(await self.connect())

    async def read(self) -> bytes:
        """Return what comes next."""
        return await self._open_line().read()

    async def write(self, data: bytes) -> None:
        """Send ``data``."""
        await self._open_line().write(data)

    async def close(self) -> None:
        """Close the socket."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def _open_line(self) -> SocketLine:
        if self._line is None:
            raise BackendError(f"{self.describe()} is not open")
        return self._line


class TcpBackend(SocketBackend):
    """A TCP port."""

    def __init__(self, port: TcpPort, dialer: Dialer | None = None) -> None:
        super().__init__()
        self._port = port
        self._dialer = dialer or SystemDialer()

    def describe(self) -> str:
        """Return the address."""
        return f"TCP {printable(self._port.host)} port {self._port.port}"

    async def connect(self) -> socket.socket:
        """Return a socket that is connected."""
        return await dial(self._dialer, self._port.host, self._port.port)


class UnixBackend(SocketBackend):
    """A Unix stream socket; a name that begins with ``@`` is an abstract one."""

    def __init__(self, port: UnixPort) -> None:
        super().__init__()
        self._path = port.path

    def describe(self) -> str:
        """Return the path."""
        return f"socket {printable(self._path)}"

    async def connect(self) -> socket.socket:
        """Return a socket that is connected."""
        name = f"\0{self._path[1:]}" if self._path.startswith("@") else self._path
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, name)
        except FileNotFoundError as error:
            sock.close()
            raise BackendError(f"there is no socket {printable(self._path)}") from error
        except ConnectionRefusedError as error:
            sock.close()
            raise BackendError(f"nobody listens on the socket {printable(self._path)}") from error
        except OSError as error:
            sock.close()
            raise BackendError(f"the socket {printable(self._path)} cannot be used: {why(error)}") from error
        except BaseException:
            sock.close()
            raise
        return sock

    async def returned(self) -> None:
        """Wait until the socket is made anew."""
        if self._path.startswith("@"):
            await super().returned()
        await appeared(Path(self._path))
