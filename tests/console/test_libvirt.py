"""Consoles of real libvirt, run as an ordinary user's, with machines of QEMU without KVM."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from minerva.console import port_config
from minerva.console.backends.base import BackendError, Capability, Unsupported
from minerva.console.backends.libvirt import LibvirtBackend
from minerva.console.hub import Hub, Mode, State
from minerva.console.port_config import LibvirtPort
from minerva.console.power import CommandPower, PowerAction, PowerState
from minerva.console.runner import Runner
from minerva.core.backoff import Backoff
from tests.console import small_guest
from tests.console.strangers import program, read_all, until

pytestmark = [pytest.mark.serial, pytest.mark.timeout(900)]
NOBODY = 65_534
NOW = 1000.0

DOMAIN = """\
<domain type='qemu'>
  <name>vm</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{arguments}</cmdline>
  </os>
  <devices>
    <emulator>{emulator}</emulator>
    <controller type='usb' model='none'/><memballoon model='none'/>
    <serial type='pty'/>
    <serial type='unix'><source mode='bind' path='{directory}/second'/></serial>
  </devices>
</domain>
"""


@dataclass(frozen=True)
class Libvirt:
    """A libvirt of our own, and what it is called."""

    directory: Path
    uri: str

    def virsh(self, *arguments: str) -> str:
        """Run virsh; return what it prints."""
        return subprocess.run(
            ["virsh", "-c", self.uri, *arguments], capture_output=True, text=True, check=True, timeout=60
        ).stdout

    @property
    def remote_uri(self) -> str:
        """The same one over a tunnel, which is SSH's in ordinary life."""
        tunnel = self.directory / "tunnel"
        tunnel.write_text(f"#!/bin/sh\nexec socat - UNIX-CONNECT:{self.directory}/run/libvirt/libvirt-sock\n")
        tunnel.chmod(0o755)
        return f"qemu+ssh://lab/session?command={tunnel}&no_tty=1"


@pytest.fixture
def libvirt() -> Iterator[Libvirt]:
    """A libvirt with a machine ``vm`` that does not run. It is not the one of this computer."""
    daemon, emulator = program("libvirtd"), program("qemu-system-x86_64")
    program("virsh")
    # Where others may enter, in contrast to tmp_path.
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    process = None
    try:
        kernel, initrd = small_guest.make(directory)
        description = DOMAIN.format(
            kernel=kernel,
            initrd=initrd,
            arguments=small_guest.ARGUMENTS,
            emulator=emulator,
            directory=directory,
        )
        (directory / "vm.xml").write_text(description)
        (directory / "run").mkdir()
        as_nobody: tuple[str, ...] = ()
        if os.geteuid() == 0:
            as_nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
            for path in (directory, *directory.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        with (directory / "log").open("w") as log:
            process = subprocess.Popen(
                [*as_nobody, daemon],
                stdout=log,
                stderr=log,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(directory),
                    "XDG_RUNTIME_DIR": str(directory / "run"),
                },
            )
        socket = directory / "run" / "libvirt" / "libvirt-sock"
        deadline = time.monotonic() + 60
        while not socket.exists():
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, "libvirtd listens"
            time.sleep(0.05)
        found = Libvirt(directory, f"qemu:///session?socket={socket}")
        found.virsh("define", str(directory / "vm.xml"))
        yield found
        subprocess.run(["virsh", "-c", found.uri, "destroy", "vm"], capture_output=True, check=False)
    finally:
        if process is not None:
            process.terminate()
            process.wait()
        shutil.rmtree(directory)


def test_a_machine_that_is_started_destroyed_and_started_again(libvirt: Libvirt) -> None:
    virsh = ("virsh", "-c", libvirt.uri)
    power = CommandPower(
        port_config.CommandPower(
            on=(*virsh, "start", "vm"),
            off=(*virsh, "destroy", "vm"),
            cycle=(*virsh, "reset", "vm"),
            reset=(*virsh, "reset", "vm"),
            # It prints "running" or "shut off".
            status=("sh", "-c", '"$@" | sed s/running/on/', "sh", *virsh, "domstate", "vm"),
        )
    )

    async def scenario() -> None:
        hub = Hub("vm")
        # So long a wait is cut short only by what libvirt tells.
        backend = LibvirtBackend(LibvirtPort(domain="vm", uri=libvirt.uri))
        runner = Runner(hub, backend, backoff=Backoff(600, 600))
        ann = hub.attach("ann", mode=Mode.WRITE, now=NOW)
        runner.start()
        try:
            await until(lambda: hub.state is State.DOWN, "it does not run", 30)
            assert hub.reason == "the machine vm is not running"
            for number in (1, 2):
                assert await power.status() is PowerState.OFF
                await power.act(PowerAction.ON)
                await until(lambda: hub.state is State.IN_USE, "it is up", 30)
                assert await power.status() is PowerState.ON
                assert runner.backend.describe().startswith("libvirt vm (pseudoterminal /dev/pts/")
                logins = f"login {number}"
                await until(
                    lambda n=number: hub.tail(200_000).count(b"guest login: ") >= n,  # type: ignore[misc]
                    logins,
                    small_guest.PATIENCE,
                )
                hub.input(ann, b"root\r", NOW)
                await until(
                    lambda n=number: hub.tail(200_000).count(b"welcome root") == n,  # type: ignore[misc]
                    "it lets us in",
                    small_guest.PATIENCE,
                )
                await power.act(PowerAction.OFF)
                await until(lambda: hub.state is State.DOWN, "it is down", 30)
            assert hub.times_up == 2
            assert [each.user for each in hub.who()] == ["ann"]
        finally:
            await runner.stop()

    asyncio.run(scenario())


def test_another_device_of_a_machine(libvirt: Libvirt) -> None:
    async def scenario() -> None:
        libvirt.virsh("start", "vm")
        backend = LibvirtBackend(LibvirtPort(domain="vm", uri=libvirt.uri, device="serial1"))
        await backend.open()
        assert backend.describe() == f"libvirt vm (socket {libvirt.directory}/second)"
        await backend.close()
        missing = LibvirtBackend(LibvirtPort(domain="vm", uri=libvirt.uri, device="serial2"))
        with pytest.raises(BackendError, match="vm has no device serial2"):
            await missing.open()

    asyncio.run(scenario())


def test_a_machine_of_another_host(libvirt: Libvirt) -> None:
    """By virsh console, to which ^] is a character as any other."""
    program("socat")

    async def scenario() -> None:
        backend = LibvirtBackend(LibvirtPort(domain="vm", uri=libvirt.remote_uri))
        with pytest.raises(BackendError, match="the machine vm is not running"):
            await backend.open()
        libvirt.virsh("start", "vm")
        await backend.open()
        said = bytearray()
        try:
            async with asyncio.timeout(small_guest.PATIENCE):
                while b"guest login: " not in said:
                    said += await backend.read()
                assert b"Escape character" not in said
                assert backend.capabilities is Capability.NONE
                with pytest.raises(Unsupported):
                    await backend.send_break(0.1)
                await backend.write(b"\x1droot\r")
                while b"welcome root" not in said:
                    said += await backend.read()
                libvirt.virsh("destroy", "vm")
                with pytest.raises(BackendError, match="the console of vm has ended: virsh has ended"):
                    await read_all(backend, said)
        finally:
            await backend.close()

    asyncio.run(scenario())


def test_what_libvirt_says_is_the_reason(libvirt: Libvirt) -> None:
    async def scenario() -> None:
        for uri, domain, reason in (
            (libvirt.uri, "other", "libvirt: failed to get domain 'other'"),
            ("qemu:///session?socket=/nonexistent", "vm", "libvirt: .*: Failed to connect socket to '/nonex"),
            ("qemu+tcp://127.0.0.1:1/system", "vm", "libvirt: .* '127.0.0.1:1': Connection refused$"),
            (libvirt.remote_uri, "other", "libvirt: failed to get domain 'other'"),
        ):
            with pytest.raises(BackendError, match=reason) as caught:
                await LibvirtBackend(LibvirtPort(domain=domain, uri=uri)).open()
            assert "\n" not in str(caught.value)

    asyncio.run(scenario())
