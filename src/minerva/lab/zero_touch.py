"""What a lab needs to start with nothing but devices: a maker with its MASA, an operator with a registrar.

::

    n1's host ─ masa0 ════ masa0 ─ namespace of the MASA    the data plane: only the registrar has it
       │ eth0
      n2, n3, ...                                           with an IDevID each, and nothing else

All of it is made with the commands that a maker and an operator would use.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

from minerva.core.errors import MinervaError
from minerva.lab.network import namespace_prefix
from minerva.lab.nodes import LabNode
from minerva.linux import process
from minerva.linux.namespace import Namespace
from minerva.linux.netlink import Netlink
from minerva.pki.identity import IDEVID_DIRECTORY

MASA_INTERFACE: Final = "masa0"
MASA_PORT: Final = 9443
REGISTRAR_SIDE: Final = IPv6Address("2001:db8:a5a::1")
MASA_SIDE: Final = IPv6Address("2001:db8:a5a::2")
"""The addresses of the registrar's host and of the MASA on the network between them (RFC 3849)."""

DIRECTORIES: Final = ("masa", "devices", "registrar")
"""What a zero-touch lab has in its directory besides the nodes."""

_MAKER = "Lab Devices"
_SECONDS = 60.0


class ServiceError(MinervaError):
    """A service of the lab could not be made, or has ended."""


@dataclass
class Service:
    """A process beside the nodes: the registrar, or the MASA."""

    name: str
    command: Sequence[str]
    log_file: Path
    where: Namespace
    process: subprocess.Popen[bytes] | None = None

    def start(self, *, follow_us: bool) -> None:
        """Start it; with ``follow_us`` it ends when this process does."""
        us = os.getpid()
        with self.log_file.open("ab") as log, self.where.entered():
            self.process = subprocess.Popen(
                [sys.executable, "-m", "minerva", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=(lambda: process.end_with_parent(us)) if follow_us else None,
            )

    def reap(self) -> None:
        """Take note that it has ended."""
        if self.process is not None:
            self.process.wait(_SECONDS)
            self.process = None

    def check_alive(self) -> None:
        """Raise ServiceError if it has ended."""
        if self.process is not None and self.process.poll() is not None:
            lines = self.log_file.read_text(errors="replace").splitlines() or ["it left no log"]
            raise ServiceError(f"the {self.name} ended: {lines[-1].removeprefix('minerva: ')}")


class ZeroTouch:
    """The maker, the operator, and what they run for the lab called ``lab`` in ``directory``."""

    def __init__(self, lab: str, directory: Path, nodes: dict[str, LabNode]) -> None:
        self._lab = lab
        self._directory = directory
        self._nodes = nodes
        self._first = next(iter(nodes))
        self._masa_namespace: Namespace | None = None
        self.services: list[Service] = []

    @property
    def masa_directory(self) -> Path:
        """Where the maker has its things."""
        return self._directory / "masa"

    @property
    def registrar_directory(self) -> Path:
        """Where the operator has its things."""
        return self._directory / "registrar"

    async def build(self, domain: str, hosts: dict[str, Namespace], options: Sequence[str] = ()) -> None:
        """Make the MASA with its network, a device for each node but the first, and the registrar.

        ``options`` are for ``minerva registrar init``. Raises ServiceError, LinuxError, OSError.
        """
        await self._build_network(hosts[self._first])
        masa, registrar = ("--dir", str(self.masa_directory)), ("--dir", str(self.registrar_directory))
        url = f"[{MASA_SIDE}]:{MASA_PORT}"
        first = self._nodes[self._first].state_dir
        await _all(
            _run("masa", "init", *masa, "--name", _MAKER, "--url", url),
            _run("registrar", "init", domain, *registrar, "--node-dir", str(first), *options),
        )
        await self._make_devices(masa)
        anchors = self.masa_directory / "anchors-for-registrars.pem"
        anchors.write_bytes(await _run("masa", "anchors", *masa))
        await _run("registrar", "manufacturer", "add", _MAKER, "--anchors", str(anchors), *registrar)
        logs = self._directory
        assert self._masa_namespace is not None
        run_dir = str(self._nodes[self._first].run_dir)
        self.services = [
            Service("MASA", ("masa", "run", *masa, "--listen", url), logs / "masa.log", self._masa_namespace),
            Service(
                "registrar",
                ("registrar", "run", *registrar, "--run-dir", run_dir),
                logs / "registrar.log",
                hosts[self._first],
            ),
        ]

    async def _build_network(self, registrar: Namespace) -> None:
        # Neither a node nor a LAN can have that name.
        self._masa_namespace = masa = Namespace.create(f"{namespace_prefix(self._lab)}__masa")
        outside = Netlink()
        try:
            await outside.add_veth_between(MASA_INTERFACE, registrar, MASA_INTERFACE, masa)
        finally:
            await outside.close()
        for where, address in ((registrar, REGISTRAR_SIDE), (masa, MASA_SIDE)):
            netlink = Netlink(where)
            try:
                index = await netlink.index_of(MASA_INTERFACE)
                await netlink.add_address(index, address, 64)
                await netlink.set_link(index, state="up")
                if where is masa:
                    await netlink.set_link(await netlink.index_of("lo"), state="up")
            finally:
                await netlink.close()

    async def _make_devices(self, masa: Sequence[str]) -> None:
        names = [name for name in self._nodes if name != self._first]
        serial_numbers = self.masa_directory / "serial-numbers"
        serial_numbers.write_text("".join(f"LAB-{name}\n" for name in names))
        devices = self._directory / "devices"
        await _run("masa", "batch", str(serial_numbers), str(devices), *masa)
        for name in names:
            state_dir = self._nodes[name].state_dir
            state_dir.mkdir(mode=0o700)
            (devices / f"LAB-{name}").rename(state_dir / IDEVID_DIRECTORY)

    def start(self, *, follow_us: bool) -> None:
        """Start the MASA and the registrar."""
        for service in self.services:
            service.start(follow_us=follow_us)

    def check_alive(self) -> None:
        """Raise ServiceError if one of them has ended."""
        for service in self.services:
            service.check_alive()

    def close(self, *, delete: bool) -> None:
        """Close what is open; with ``delete``, when all has ended, remove the namespace of the MASA."""
        if delete:
            for service in self.services:
                service.reap()
        if self._masa_namespace is not None:
            if delete:
                self._masa_namespace.delete()
            else:
                self._masa_namespace.close()


async def _all(*works: Coroutine[None, None, bytes]) -> None:
    """Do all of ``works`` at the same time; when one fails, none goes on."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _run(*words: str) -> bytes:
    """Return what ``minerva`` with ``words`` prints. Raises ServiceError if it fails."""
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "minerva", *words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(running.communicate(), _SECONDS)
    except TimeoutError:
        raise ServiceError(f"minerva {' '.join(words[:2])} did not end within {_SECONDS:g} seconds") from None
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()
    if running.returncode != 0:
        lines = errors.decode(errors="replace").splitlines() or ["it said nothing"]
        raise ServiceError(f"minerva {' '.join(words[:2])}: {lines[-1].removeprefix('minerva: ')}")
    return output
