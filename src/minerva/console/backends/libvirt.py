"""Consoles of virtual machines of libvirt.

Where the machine is on this host, libvirt is asked where its character device is, and that is opened: a
pseudoterminal, a socket. Else ``virsh console`` is run.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final
from urllib.parse import urlsplit
from xml.etree import ElementTree

from minerva.console.backends.base import Backend, BackendError, Base, Capability, Dialer, why
from minerva.console.backends.process import ProcessBackend
from minerva.console.backends.serial import PtyBackend
from minerva.console.backends.stream import TcpBackend, UnixBackend
from minerva.console.backends.telnet import TelnetBackend
from minerva.console.port_config import (
    LibvirtPort,
    ProcessPort,
    PtyPort,
    TcpPort,
    TelnetPort,
    UnixPort,
)
from minerva.core.text import printable, shortened

VIRSH_SECONDS: Final = 20.0
_RUNNING: Final = b"running"
_STARTED: Final = b"'lifecycle'"
_ESCAPE: Final = "\udcff"
"""virsh must have a character that ends it: the byte 0xFF, which no text has, instead of ^]."""


class LibvirtBackend(Base):
    """A virtual machine's console."""

    def __init__(self, port: LibvirtPort, dialer: Dialer | None = None) -> None:
        self._settings = port
        self._dialer = dialer
        self._inner: Backend | None = None

    @property
    def capabilities(self) -> Capability:
        """What the device can do that libvirt gives us."""
        # What breaks a program would end virsh.
        return Capability.NONE if self._inner is None or self._remote else self._inner.capabilities

    def describe(self) -> str:
        """Return the name of the machine, and what its console is."""
        if self._remote:
            return f"libvirt {printable(self._settings.domain)} at {printable(self._settings.uri)}"
        inner = f" ({self._inner.describe()})" if self._inner is not None else ""
        return f"libvirt {printable(self._settings.domain)}{inner}"

    async def open(self) -> None:
        """Find the device and open it."""
        settings = self._settings
        if self._remote:
            # First of all: what virsh has to complain of is not what the machine says.
            state = await self._virsh("domstate", "--domain", settings.domain)
            if state.strip() != _RUNNING:
                raise BackendError(f"the machine {printable(settings.domain)} is not running")
            command = ("virsh", "-c", settings.uri, "-q", "-e", _ESCAPE, "console", "--force")
            device = ("--devname", settings.device) if settings.device else ()
            inner: Backend = ProcessBackend(
                ProcessPort(command=(*command, "--domain", settings.domain, *device))
            )
        else:
            description = await self._virsh("dumpxml", "--domain", settings.domain)
            inner = device_in(description, settings, self._dialer)
        await inner.open()
        self._inner = inner

    async def read(self) -> bytes:
        """Return what the console says next."""
        try:
            return await self._opened().read()
        except BackendError as error:
            if not self._remote:
                raise
            raise BackendError(
                f"the console of {printable(self._settings.domain)} has ended: {error}"
            ) from error

    async def write(self, data: bytes) -> None:
        """Send ``data``."""
        await self._opened().write(data)

    async def send_break(self, seconds: float) -> None:
        """Send a break, if the device can."""
        if self._remote:
            await super().send_break(seconds)
        await self._opened().send_break(seconds)

    async def close(self) -> None:
        """Close the device."""
        inner, self._inner = self._inner, None
        if inner is not None:
            await inner.close()

    async def returned(self) -> None:
        """Wait until something happens to the machine, such as that it starts."""
        try:
            said = await self._virsh(
                "event", "--domain", self._settings.domain, "--event", "lifecycle", seconds=None
            )
        except BackendError:
            said = b""
        if _STARTED not in said:
            await super().returned()

    @property
    def _remote(self) -> bool:
        return bool(urlsplit(self._settings.uri).hostname)

    def _opened(self) -> Backend:
        if self._inner is None:
            raise BackendError(f"{self.describe()} is not open")
        return self._inner

    async def _virsh(self, *arguments: str, seconds: float | None = VIRSH_SECONDS) -> bytes:
        try:
            process = await asyncio.create_subprocess_exec(
                "virsh",
                "-c",
                self._settings.uri,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "LC_ALL": "C"},
            )
        except FileNotFoundError as error:
            raise BackendError("there is no virsh here: install libvirt-clients") from error
        except OSError as error:
            raise BackendError(f"virsh cannot be run: {why(error)}") from error
        try:
            async with asyncio.timeout(seconds):
                output, errors = await process.communicate()
        except TimeoutError as error:
            raise BackendError(f"virsh did not answer within {seconds:g} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise BackendError(f"libvirt: {_complaint(errors)}")
        return output


def _complaint(errors: bytes) -> str:
    """Return what virsh complains of, in one line."""
    lines = errors.decode("utf-8", "replace").splitlines()
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return shortened(": ".join(reasons or lines), 200) or "virsh fails, and does not say why"


def device_in(description: bytes, settings: LibvirtPort, dialer: Dialer | None = None) -> Backend:
    """Return the backend for the console in libvirt's description of a machine. Raises BackendError."""
    name = printable(settings.domain)
    try:
        domain = ElementTree.fromstring(description)
    except ElementTree.ParseError as error:
        raise BackendError(f"libvirt describes {name} in no XML: {error}") from error
    if domain.get("id") is None:
        raise BackendError(f"the machine {name} is not running")
    for device in [*domain.iterfind("devices/serial"), *domain.iterfind("devices/console")]:
        alias, source = device.find("alias"), device.find("source")
        if settings.device and (alias is None or alias.get("name") != settings.device):
            continue
        if source is None or (source.get("path") is None and source.get("host") is None):
            raise BackendError(f"the machine {name} is not running")
        path, host = source.get("path", ""), source.get("host", "")
        match device.get("type"):
            case "pty":
                return PtyBackend(PtyPort(path=path))
            case "unix":
                return UnixBackend(UnixPort(path=path))
            case "tcp" if (service := source.get("service", "")).isdigit():
                protocol = device.find("protocol")
                if protocol is not None and protocol.get("type") == "telnet":
                    return TelnetBackend(TelnetPort(host=host, port=int(service)), dialer)
                return TcpBackend(TcpPort(host=host, port=int(service)), dialer)
            case kind:
                raise BackendError(f"the machine {name} has a console of type {kind}: not one to connect to")
    what = f"device {printable(settings.device)}" if settings.device else "serial line or console"
    raise BackendError(f"the machine {name} has no {what}")
