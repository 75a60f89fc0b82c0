"""The console of a machine from its boot to a login and its end: guests of User Mode Linux and of QEMU."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import pytest

from minerva.console.backends.base import Backend
from minerva.console.backends.process import ProcessBackend
from minerva.console.backends.serial import PtyBackend
from minerva.console.backends.stream import UnixBackend
from minerva.console.backends.telnet import TelnetBackend
from minerva.console.hub import Hub, Mode, State
from minerva.console.port_config import ProcessPort, PtyPort, TelnetPort, UnixPort
from minerva.console.runner import Runner
from minerva.core.backoff import Backoff
from tests.console import small_guest
from tests.console.small_guest import LOGIN
from tests.console.strangers import free_port, running, until

KERNEL = Path(os.environ.get("UML", "~/.cache/minerva/uml")).expanduser() / "usr/bin/linux.uml"
BUSYBOX = Path("/bin/busybox")
NOW = 1000.0

INIT = """\
#!/bin/busybox sh
/bin/busybox hostname guest
/bin/busybox getty -L -l {directory}/login 115200 tty0 vt100
/bin/busybox poweroff -f
"""


@pytest.mark.skipif(not KERNEL.exists(), reason=f"there is no {KERNEL}: tools/uml-build makes one")
@pytest.mark.skipif(not BUSYBOX.exists(), reason="there is no busybox: apt-get install busybox-static")
def test_a_guest_from_boot_to_login(tmp_path: Path) -> None:
    for name, text in (("init", INIT), ("login", LOGIN)):
        (tmp_path / name).write_text(text.format(directory=tmp_path) if name == "init" else text)
        (tmp_path / name).chmod(0o755)
    command = (
        str(KERNEL), "mem=64M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
        "con=null", "con0=fd:0,fd:1", "panic=-1", f"init={tmp_path}/init",
    )  # fmt: skip

    async def scenario() -> None:
        hub = Hub("guest")
        runner = Runner(hub, ProcessBackend(ProcessPort(command=command)), backoff=Backoff(2, 2))
        reader = hub.attach("ben", now=NOW)
        runner.start()
        try:
            await until(lambda: b"guest login: " in hub.tail(100_000), "the guest boots", 60)
            assert b"Linux version" in hub.tail(100_000)
            ann = hub.attach("ann", mode=Mode.WRITE, replay=100_000, now=NOW)
            hub.input(ann, b"root\r", NOW)
            await until(lambda: b"welcome root" in hub.tail(1000), "it lets us in")
            hub.input(ann, small_guest.PASTE, NOW)
            await until(lambda: small_guest.PASTED in hub.tail(1000), "it gets all of the paste")
            hub.input(ann, b"bye\r", NOW)
            await until(lambda: hub.times_up == 2 or hub.state is State.DOWN, "the guest ends", 60)
            assert "has ended with status" in hub.reason
            # It is started again, and who is attached sees that.
            await until(lambda: hub.tail(200_000).count(b"guest login: ") == 2, "it boots again", 60)
            seen = b""
            while (item := hub.read(reader)) is not None:
                seen += item if isinstance(item, bytes) else b""
            assert seen.count(b"guest login: ") == 2
        finally:
            await runner.stop()

    asyncio.run(scenario())


async def _log_in(hub: Hub, patience: float) -> int:
    """Log in at a machine that has booted, and paste something; return who is attached for that."""
    ann = hub.attach("ann", mode=Mode.WRITE, replay=100_000, now=NOW)
    hub.input(ann, b"root\r", NOW)
    await until(lambda: b"welcome root" in hub.tail(1000), "it lets us in", patience)
    hub.input(ann, small_guest.PASTE, NOW)
    await until(lambda: small_guest.PASTED in hub.tail(1000), "it gets all of the paste", patience)
    return ann


@pytest.mark.timeout(900)
def test_a_guest_of_qemu_at_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "console"
    command = small_guest.command(tmp_path, f"unix:{path},server=on,wait=on")

    async def scenario() -> None:
        hub = Hub("guest")
        runner = Runner(hub, UnixBackend(UnixPort(path=str(path))), backoff=Backoff(2, 2))
        reader = hub.attach("ben", now=NOW)
        runner.start()
        try:
            async with running(*command) as qemu:
                await until(lambda: b"guest login: " in hub.tail(100_000), "it boots", small_guest.PATIENCE)
                assert b"Linux version" in hub.tail(100_000)
                ann = await _log_in(hub, small_guest.PATIENCE)
                hub.input(ann, b"bye\r", NOW)
                await until(lambda: hub.state is State.DOWN, "it ends", small_guest.PATIENCE)
                assert "the device ended the connection" in hub.reason
                await qemu.wait()
            async with running(*command):
                await until(
                    lambda: hub.tail(200_000).count(b"guest login: ") == 2,
                    "it boots again",
                    small_guest.PATIENCE,
                )
            seen = b""
            while (item := hub.read(reader)) is not None:
                seen += item if isinstance(item, bytes) else b""
            assert seen.count(b"guest login: ") == 2
        finally:
            await runner.stop()

    asyncio.run(scenario())


@pytest.mark.serial
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["pty", "telnet"])
def test_a_guest_of_qemu_at_other_lines(tmp_path: Path, kind: str) -> None:
    port = free_port()
    serial = "pty" if kind == "pty" else f"telnet:127.0.0.1:{port},server=on,wait=on"
    command = small_guest.command(tmp_path, serial)

    async def scenario() -> None:
        hub = Hub("guest")
        with (tmp_path / "said").open("w") as said:
            qemu = await asyncio.create_subprocess_exec(*command, stdout=said, stderr=said)
        try:
            if kind == "pty":
                words = (tmp_path / "said").read_text
                await until(lambda: "redirected to /dev/pts/" in words(), "QEMU has a pseudoterminal")
                path = next(word for word in words().split() if word.startswith("/dev/pts/"))
                backend: Backend = PtyBackend(PtyPort(path=path))
            else:
                backend = TelnetBackend(TelnetPort(host="127.0.0.1", port=port))
            runner = Runner(hub, backend, backoff=Backoff(0.1, 0.1))
            runner.start()
            try:
                await until(lambda: b"guest login: " in hub.tail(100_000), "it boots", small_guest.PATIENCE)
                ann = await _log_in(hub, small_guest.PATIENCE)
                if kind == "telnet":
                    # A break, and then a letter, is a question to the kernel itself.
                    hub.send_break(ann, NOW, 0.25)
                    hub.input(ann, b"h", NOW)
                    await until(lambda: b"sysrq: HELP : " in hub.tail(10_000), "the kernel answers", 30)
                qemu.kill()
                await until(lambda: hub.state is State.DOWN, "it is down", 30)
            finally:
                await runner.stop()
        finally:
            if qemu.returncode is None:
                with suppress(ProcessLookupError):
                    qemu.kill()
            await qemu.wait()

    asyncio.run(scenario())
