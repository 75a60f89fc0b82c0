"""Consoles behind SSH, such as port 2200 of a BMC: one login, held for ever.

If the configuration does not say which key the server has, the first one that lets us in is kept, and then
is the only one (as with OpenSSH's ``StrictHostKeyChecking=accept-new``).
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncssh

from minerva.console.backends.base import (
    CONNECT_SECONDS,
    READ_SIZE,
    BackendError,
    Base,
    Capability,
    Dialer,
    SystemDialer,
    dial,
    read_password,
    why,
)
from minerva.console.port_config import SshPort
from minerva.console.ssh_limits import Brake, check_asyncssh
from minerva.core.text import printable, shortened

if TYPE_CHECKING:
    from minerva.console.redfish import SshConsole

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS: Final = 15
KEEP_ALIVES: Final = 4
"""So many may remain without an answer until the server counts as gone."""


class _Client(asyncssh.SSHClient):
    """Remembers the key of a server that nobody has told us."""

    def __init__(self, trust: bool) -> None:
        self._trust = trust
        self.shown: asyncssh.SSHKey | None = None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """Let the server have us do only so much at once."""
        Brake(conn)

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        """Called for a key that is not among the known ones."""
        self.shown = key
        return self._trust


class SshBackend(Base):
    """A console behind SSH. ``known`` is the file in which the server's key is kept."""

    def __init__(self, port: SshPort, *, known: Path, dialer: Dialer | None = None) -> None:
        self._settings = port
        self._known = known
        self._dialer = dialer or SystemDialer()
        self._port = port.port
        self._connection: asyncssh.SSHClientConnection | None = None
        self._process: asyncssh.SSHClientProcess[bytes] | None = None

    @property
    def capabilities(self) -> Capability:
        """SSH has a request for a break (RFC 4335)."""
        return Capability.BREAK

    @property
    def where(self) -> str:
        """The address, fit for a terminal."""
        return f"{printable(self._settings.host)} port {self._port}"

    def describe(self) -> str:
        """Return user and address."""
        return f"SSH {printable(self._settings.user)}@{self.where}"

    async def open(self) -> None:
        """Log in and ask for the console."""
        check_asyncssh()
        settings = self._settings
        self._port, command = settings.port, settings.command
        if settings.redfish:
            found = await self._ask_redfish()
            self._port, command = found.port, command or found.command
        sock = await dial(self._dialer, settings.host, self._port)
        client = _Client(trust=not settings.host_key and not self._known.exists())
        try:
            options = self._options()
            async with asyncio.timeout(CONNECT_SECONDS):
                self._connection = await asyncssh.connect(
                    settings.host, self._port, sock=sock, client_factory=lambda: client, **options
                )
                self._remember(client)
                self._process = await self._connection.create_process(
                    command or None,
                    request_pty="force",
                    term_type="vt100",
                    term_size=(80, 24),
                    stderr=asyncssh.STDOUT,
                    encoding=None,
                )
        except TimeoutError as error:
            raise BackendError(f"{self.where} did not let us in within {CONNECT_SECONDS:g} s") from error
        except (asyncssh.Error, OSError, ValueError) as error:
            raise BackendError(self._why_not(error, client)) from error
        finally:
            if self._connection is None:
                sock.close()

    async def read(self) -> bytes:
        """Return what the console says next."""
        process = self._open_process()
        try:
            if data := await process.stdout.read(READ_SIZE):
                return data
        except (asyncssh.Error, OSError) as error:
            raise BackendError(f"{self.where}: {_reason(error)}") from error
        status = process.exit_status
        raise BackendError(f"{self.where} ended the session" + (f" with status {status}" if status else ""))

    async def write(self, data: bytes) -> None:
        """Send ``data``."""
        process = self._open_process()
        try:
            process.stdin.write(data)
            await process.stdin.drain()
        except (asyncssh.Error, OSError) as error:
            raise BackendError(f"{self.where}: {_reason(error)}") from error

    async def send_break(self, seconds: float) -> None:
        """Ask the server for a break."""
        try:
            self._open_process().channel.send_break(round(seconds * 1000))
        except (asyncssh.Error, OSError) as error:
            raise BackendError(f"{self.where}: {_reason(error)}") from error

    async def close(self) -> None:
        """Log out."""
        self._process = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            try:
                async with asyncio.timeout(2):
                    await connection.wait_closed()
            except TimeoutError:
                connection.abort()

    def _options(self) -> dict[str, Any]:
        """Return how to log in: nothing of what the user of this process has in its own directory."""
        settings = self._settings
        keys: list[asyncssh.SSHKey] = []
        if settings.host_key:
            keys = [asyncssh.import_public_key(settings.host_key)]
        elif self._known.exists():
            keys = [asyncssh.import_public_key(self._known.read_bytes())]
        password = read_password(settings.password_file).reveal().decode("utf-8", "surrogateescape")
        return {
            "username": settings.user,
            "password": password if settings.password_file else None,
            "client_keys": [settings.key_file] if settings.key_file else None,
            "known_hosts": (keys, [], []),
            "agent_path": None,
            "compression_algs": None,  # a packet may be a thousand times larger when it is unpacked
            "config": None,
            "login_timeout": CONNECT_SECONDS,
            "keepalive_interval": KEEP_ALIVE_SECONDS,
            "keepalive_count_max": KEEP_ALIVES,
        }

    def _remember(self, client: _Client) -> None:
        """Keep the key of a server that has let us in."""
        if client.shown is None:
            return
        text = client.shown.export_public_key()
        try:
            self._known.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(self._known, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(text)
        except OSError as error:
            raise BackendError(f"the server's key cannot be kept in {self._known}: {why(error)}") from error
        log.warning("%s: its key %s is trusted from now on", self.where, client.shown.get_fingerprint())

    async def _ask_redfish(self) -> SshConsole:
        from minerva.console.redfish import RedfishClient

        settings = self._settings
        client = RedfishClient(
            settings.redfish,
            user=settings.user,
            password=read_password(settings.password_file),
            ca_file=settings.ca_file,
            fingerprint=settings.fingerprint,
            dialer=self._dialer,
        )
        try:
            return await client.ssh_console()
        finally:
            await client.close()

    def _why_not(self, error: Exception, client: _Client) -> str:
        if client.shown is not None and isinstance(error, asyncssh.HostKeyNotVerifiable):
            where = "host_key" if self._settings.host_key else str(self._known)
            return (
                f"{self.where} has another key than before, {client.shown.get_fingerprint()}: if that is "
                f"right, change {where}"
            )
        if isinstance(error, asyncssh.PermissionDenied):
            return f"{self.where} does not let {printable(self._settings.user)} in"
        return f"{self.where}: {_reason(error)}"

    def _open_process(self) -> asyncssh.SSHClientProcess[bytes]:
        if self._process is None:
            raise BackendError(f"{self.where} is not open")
        return self._process


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return why(error)
    if isinstance(error, asyncssh.Error):
        return shortened(error.reason, 200) or "the connection ended"
    return shortened(str(error), 200)
