"""The kinds of lines, with programs that others wrote as peers."""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import socket
import termios
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from minerva.console.backends import lock_file, sol
from minerva.console.backends.base import BackendError, Flow, LineSettings, Modem, Unsupported
from minerva.console.backends.serial import PtyBackend, SerialBackend
from minerva.console.backends.sol import SolBackend
from minerva.console.backends.ssh import SshBackend
from minerva.console.backends.telnet import Rfc2217Backend
from minerva.console.hub import Hub, Mode, State
from minerva.console.port_config import IpmiPort, PtyPort, Rfc2217Port, SerialPort, SshPort
from minerva.console.runner import Runner
from tests.console.strangers import (
    far_end,
    free_port,
    ipmi_sim,
    line,
    listening,
    program,
    read_exactly,
    running,
    until,
)

EVERY_BYTE = bytes(range(256))
NOW = 1000.0

SPEEDS = {termios.B9600: 9600, termios.B19200: 19_200, termios.B57600: 57_600, termios.B115200: 115_200}


def speed_of(path: Path) -> int:
    """Return the speed to which a line is set."""
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        return SPEEDS[termios.tcgetattr(descriptor)[5]]
    finally:
        os.close(descriptor)


# -- serial lines


def test_a_serial_line_carries_every_byte_both_ways(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with line(tmp_path) as (near, far), running_backend(near, speed=19_200) as backend:
            with far_end(far) as device:
                device.say(EVERY_BYTE * 4)
                assert await read_exactly(backend, 1024) == EVERY_BYTE * 4
                await backend.write(EVERY_BYTE * 4)
                assert await device.hear(1024) == EVERY_BYTE * 4
                assert speed_of(near) == 19_200
                settings = await backend.configure(replace(backend.settings, speed=57_600))
                assert settings.speed == speed_of(near) == 57_600
                # A pseudoterminal always has 8 bits.
                with pytest.raises(Unsupported, match="does not do 57600 7N1"):
                    await backend.configure(replace(settings, data_bits=7))
                assert backend.settings == settings
                # It has no such lines, and does not mind.
                await backend.set_lines(dtr=False)
                assert await backend.modem() is Modem.NONE
                assert backend.lines() == (False, True)
                await backend.send_break(0.01)

    asyncio.run(scenario())


@asynccontextmanager
async def running_backend(near: Path, speed: int = 115_200) -> AsyncIterator[SerialBackend]:
    """A serial line that is open."""
    backend = SerialBackend(SerialPort(device=str(near), speed=speed))
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


def test_a_serial_line_is_ours_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with line(tmp_path) as (near, _), running_backend(near):
            other = SerialBackend(SerialPort(device=str(near)))
            with pytest.raises(BackendError, match=f"{near} is in use by another console of this server"):
                await other.open()
            await other.close()

    asyncio.run(scenario())


def test_lock_files(tmp_path: Path) -> None:
    path = lock_file.take("/dev/pts/7", tmp_path)
    assert path == tmp_path / "LCK..pts_7"
    assert path.read_text() == f"{os.getpid():10}\n"
    # What this server left behind when it was killed is no obstacle, nor is what makes no sense.
    assert lock_file.take("/dev/pts/7", tmp_path) == path
    for text in (b"", b"x" * 1000, b"-1\n", b"\xff", f"{2**22 + 1:10}\n".encode()):
        path.write_bytes(text)
        assert lock_file.take("/dev/pts/7", tmp_path) == path
    path.write_text(f"{os.getppid():10}\n")
    with pytest.raises(lock_file.Locked, match=str(os.getppid())):
        lock_file.take("/dev/pts/7", tmp_path)
    path.unlink()
    # Links and pipes that somebody else has put there are not followed, and do not hold us up.
    other = tmp_path / "other"
    path.symlink_to(other)
    assert lock_file.take("/dev/pts/7", tmp_path) == path
    assert not path.is_symlink()
    path.unlink()
    os.mkfifo(path)
    assert lock_file.take("/dev/pts/7", tmp_path) == path
    lock_file.release(path)
    assert list(tmp_path.iterdir()) == []
    lock_file.release(path)
    assert lock_file.take("/dev/pts/7", tmp_path / "none") is None


def test_why_a_serial_line_cannot_be_opened(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(BackendError, match="is not there"):
            await SerialBackend(SerialPort(device=str(tmp_path / "none"))).open()
        file = tmp_path / "file"
        file.write_text("")
        with pytest.raises(BackendError, match="file is no serial line"):
            await SerialBackend(SerialPort(device=str(file))).open()

    asyncio.run(scenario())


def test_an_adapter_that_hangs_when_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minerva.console.backends.serial.OPEN_SECONDS", 0.1)
    release = threading.Event()
    opened = SerialBackend._open

    def slowly(self: SerialBackend) -> object:
        result = opened(self)
        release.wait()
        return result

    async def scenario() -> None:
        async with line(tmp_path) as (near, _):
            backend = SerialBackend(SerialPort(device=str(near)))
            monkeypatch.setattr(SerialBackend, "_open", slowly)
            for _ in range(2):
                with pytest.raises(
                    BackendError, match=r"could not be opened within|is in use by another console"
                ):
                    await backend.open()
                await backend.close()
            monkeypatch.setattr(SerialBackend, "_open", opened)
            monkeypatch.setattr("minerva.console.backends.serial.OPEN_SECONDS", 10.0)
            release.set()
            # What was opened too late has been closed again.
            async with asyncio.timeout(10):
                while True:
                    try:
                        await backend.open()
                        break
                    except BackendError:
                        await asyncio.sleep(0.02)
            await backend.close()

    asyncio.run(scenario())


def test_a_paste_waits_for_a_device_that_is_slow(tmp_path: Path) -> None:
    async def scenario() -> None:
        data = os.urandom(100_000)
        async with line(tmp_path) as (near, far), running_backend(near) as backend:
            with far_end(far) as device:
                writing = asyncio.ensure_future(backend.write(data))
                assert await device.hear(len(data)) == data
                await writing

    asyncio.run(scenario())


def test_an_adapter_that_is_unplugged_and_plugged_in_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        hub = Hub("lab")
        runner = Runner(hub, SerialBackend(SerialPort(device=str(tmp_path / "near"))))
        other_directory = tmp_path / "other"
        other_directory.mkdir()
        runner.start()
        try:
            reader = hub.attach("ann", now=NOW)
            async with line(tmp_path) as (_, far):
                await until(lambda: hub.state is State.IN_USE, "it is up")
                with far_end(far) as device:
                    device.say(b"before")
                    await until(lambda: hub.bytes_in == 6, "it says something")
            await until(lambda: hub.state is State.DOWN, "it is down")
            assert "is gone" in hub.reason or "is not there" in hub.reason
            async with line(tmp_path) as (_, far):
                await until(lambda: hub.state is State.IN_USE, "it is up again")
                with far_end(far) as device:
                    device.say(b"after")
                    await until(lambda: hub.bytes_in == 11, "it says something again")
            said = b""
            while (item := hub.read(reader)) is not None:
                said += item if isinstance(item, bytes) else b""
            assert said == b"beforeafter"
        finally:
            await runner.stop()

    asyncio.run(scenario())


def test_a_pseudoterminal_of_another_program(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with line(tmp_path) as (near, far):
            backend = PtyBackend(PtyPort(path=str(near)))
            await backend.open()
            with far_end(far) as device:
                device.say(EVERY_BYTE)
                assert await read_exactly(backend, 256) == EVERY_BYTE
                await backend.write(EVERY_BYTE)
                assert await device.hear(256) == EVERY_BYTE
            with pytest.raises(Unsupported, match="has none"):
                await backend.send_break(0.1)
            await backend.close()

    asyncio.run(scenario())


# -- RFC 2217, with ser2net as the server


@asynccontextmanager
async def ser2net(directory: Path, near: Path, port: int) -> AsyncIterator[None]:
    """A terminal server with one line."""
    configuration = directory / "ser2net.yaml"
    configuration.write_text(
        f"connection: &line\n  accepter: telnet(rfc2217),tcp,127.0.0.1,{port}\n"
        f"  connector: serialdev,{near},9600n81,local\n  options:\n    kickolduser: true\n"
    )
    async with running(
        program("ser2net"), "-n", "-d", "-c", str(configuration), "-P", str(directory / "pid")
    ) as process:
        await listening(port)
        yield
        process.kill()
        await process.wait()


def test_a_line_of_ser2net(tmp_path: Path) -> None:
    program("ser2net")

    async def scenario() -> None:
        port = free_port()
        async with line(tmp_path) as (near, far), ser2net(tmp_path, near, port):
            backend = Rfc2217Backend(Rfc2217Port(host="127.0.0.1", port=port, speed=19_200))
            await backend.open()
            assert backend.settings == LineSettings(19_200, 8, "N", 1, Flow.NONE)
            assert speed_of(near) == 19_200
            with far_end(far) as device:
                await backend.write(EVERY_BYTE * 4)
                assert await device.hear(1024) == EVERY_BYTE * 4
                device.say(EVERY_BYTE * 4)
                assert await read_exactly(backend, 1024) == EVERY_BYTE * 4
                assert "(ser2net)" in backend.describe()
                reading = asyncio.ensure_future(backend.read())
                changed = await backend.configure(replace(backend.settings, speed=57_600))
                assert changed.speed == speed_of(near) == 57_600
                await backend.send_break(0.05)
                await backend.write(b"after")
                assert await device.hear(5) == b"after"
                device.say(b"x")
                assert await reading == b"x"
            await backend.close()

    asyncio.run(scenario())


def test_ser2net_that_is_started_anew(tmp_path: Path) -> None:
    program("ser2net")

    async def scenario() -> None:
        port = free_port()
        hub = Hub("lab")
        backend = Rfc2217Backend(Rfc2217Port(host="127.0.0.1", port=port))
        runner = Runner(hub, backend)
        async with line(tmp_path) as (near, far):
            runner.start()
            try:
                for _ in range(2):
                    before = hub.bytes_in
                    async with ser2net(tmp_path, near, port):
                        await until(lambda: hub.state is State.CONNECTED, "it is up")
                        with far_end(far) as device:
                            device.say(b"x")
                            await until(lambda n=before: hub.bytes_in == n + 1, "it speaks")  # type: ignore[misc]
                    await until(lambda: hub.state is State.DOWN, "it is down")
            finally:
                await runner.stop()

    asyncio.run(scenario())


# -- IPMI, with ipmi_sim as the BMC and ipmitool beside us


def bmc(directory: Path, port: int, **more: bool) -> IpmiPort:
    """Return the settings for the simulated BMC."""
    password = str(directory / "password")
    return IpmiPort(host="127.0.0.1", port=port, user="operator", password_file=password, **more)  # type: ignore[arg-type]


async def ipmitool(port: int, *arguments: str) -> str:
    """Run ipmitool; return what it prints."""
    process = await asyncio.create_subprocess_exec(
        program("ipmitool"), "-I", "lanplus", "-C", "3", "-H", "127.0.0.1", "-p", str(port),
        "-U", "operator", "-P", "secret", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    return output.decode()


def test_serial_over_lan(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with line(tmp_path) as (near, far), ipmi_sim(tmp_path, near) as port:
            backend = SolBackend(bmc(tmp_path, port))
            await backend.open()
            assert f"127.0.0.1 port {port}, cipher suite 3" in backend.describe()
            with far_end(far) as device:
                data = os.urandom(3000)
                device.say(data)
                assert await read_exactly(backend, len(data)) == data
                data = os.urandom(3000)
                await backend.write(data)
                assert await device.hear(len(data)) == data
                await backend.send_break(0.25)
                await backend.write(b"after")
                assert await device.hear(5) == b"after"
            await backend.close()
            # It has been given back.
            await backend.open()
            await backend.close()

    asyncio.run(scenario())


def test_serial_over_lan_that_another_one_has(tmp_path: Path) -> None:
    program("ipmitool")

    async def scenario() -> None:
        async with line(tmp_path) as (near, far), ipmi_sim(tmp_path, near) as port:
            # ipmitool wants a terminal.
            pty = f"pty,raw,echo=0,link={tmp_path}/tool"
            activate = f"ipmitool -I lanplus -C 3 -H 127.0.0.1 -p {port} -U operator -P secret sol activate"
            async with running(program("socat"), pty, f"exec:{activate},pty,raw,echo=0") as tool:
                polite = SolBackend(bmc(tmp_path, port, take_over=False))
                reason = ""
                for _ in range(100):
                    try:
                        await polite.open()
                    except BackendError as error:
                        reason = str(error)
                        break
                    await polite.close()
                    await asyncio.sleep(0.1)
                assert reason.startswith("operator has Serial over LAN of the BMC 127.0.0.1")
                await polite.close()
                assert tool.returncode is None
                resolute = SolBackend(bmc(tmp_path, port))
                await resolute.open()
                with far_end(far) as device:
                    device.say(b"hello")
                    assert await read_exactly(resolute, 5) == b"hello"
                await resolute.close()

    asyncio.run(scenario())


def test_serial_over_lan_that_is_taken_from_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sol, "CHECK_SECONDS", 0.3)

    async def scenario() -> None:
        async with line(tmp_path) as (near, _), ipmi_sim(tmp_path, near) as port:
            ours, other = SolBackend(bmc(tmp_path, port)), SolBackend(bmc(tmp_path, port))
            await ours.open()
            await asyncio.sleep(0.7)  # it is asked for, and still ours
            await other.open()
            with pytest.raises(BackendError, match="operator has taken Serial over LAN"):
                async with asyncio.timeout(10):
                    await ours.read()
            await ours.close()
            await other.close()

    asyncio.run(scenario())


def test_ipmitool_beside_us_does_not_disturb(tmp_path: Path) -> None:
    program("ipmitool")

    async def scenario() -> None:
        async with line(tmp_path) as (near, far), ipmi_sim(tmp_path, near) as port:
            backend = SolBackend(bmc(tmp_path, port))
            await backend.open()
            assert "System Power         : off" in await ipmitool(port, "chassis", "status")
            with far_end(far) as device:
                device.say(b"x" * 1000)
                assert await read_exactly(backend, 1000) == b"x" * 1000
            await backend.close()

    asyncio.run(scenario())


def test_a_bmc_that_is_started_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with line(tmp_path) as (near, _):
            first, second = tmp_path / "1", tmp_path / "2"
            first.mkdir()
            second.mkdir()
            async with ipmi_sim(first, near) as port:
                backend = SolBackend(bmc(first, port))
                await backend.open()
            # The session is gone with it: what is typed is not acknowledged.
            with pytest.raises(BackendError, match=r"BMC 127\.0\.0\.1 port \d+: the BMC does not"):
                async with asyncio.timeout(60):
                    await asyncio.gather(backend.write(b"x" * 1000), backend.read())
            await backend.close()
            async with ipmi_sim(second, near) as port:
                backend = SolBackend(bmc(second, port))
                await backend.open()
                await backend.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("user", "password", "reason"),
    [
        ("operator", "hunter2", "the password is wrong"),
        ("nobody", "secret", "the BMC does not know the user"),
        ("operator", "x" * 21, "at most 20 bytes"),
        ("o" * 17, "secret", "at most 16 bytes"),
    ],
)
def test_why_a_bmc_does_not_let_us_in(tmp_path: Path, user: str, password: str, reason: str) -> None:
    async def scenario() -> None:
        async with line(tmp_path) as (near, _), ipmi_sim(tmp_path, near) as port:
            (tmp_path / "password").write_text(password)
            backend = SolBackend(replace(bmc(tmp_path, port), user=user))
            with pytest.raises(BackendError, match=reason) as caught:
                await backend.open()
            assert password not in str(caught.value)
            await backend.close()

    asyncio.run(scenario())


# -- SSH, with OpenSSH as the BMC


@asynccontextmanager
async def sshd(directory: Path) -> AsyncIterator[int]:
    """A console port as a BMC's; the key of the user is in ``user``."""
    server, keygen = program("sshd"), program("ssh-keygen")
    for name in ("host", "user"):
        async with running(keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)) as process:
            await process.wait()
    port = free_port()
    console = directory / "console.sh"
    console.write_text("#!/bin/sh\nstty raw -echo\necho 'login: '\nexec cat\n")
    console.chmod(0o755)
    (directory / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {directory}/host\nPidFile {directory}/sshd.pid\n"
        f"AuthorizedKeysFile {directory}/user.pub\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
        f"PasswordAuthentication no\nForceCommand {console}\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    async with running(server, "-D", "-e", "-f", str(directory / "sshd_config")) as process:
        await listening(port)
        yield port
        process.terminate()
        await process.wait()


def test_a_console_behind_openssh(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with sshd(tmp_path) as port:
            settings = SshPort(
                host="127.0.0.1", port=port, user=getpass.getuser(), key_file=str(tmp_path / "user")
            )
            hub = Hub("lab")
            runner = Runner(hub, SshBackend(settings, known=tmp_path / "known"))
            runner.start()
            try:
                await until(lambda: b"login: " in hub.tail(100), "the console greets us")
                one = hub.attach("ann", mode=Mode.WRITE, now=NOW)
                hub.input(one, EVERY_BYTE * 10, NOW)
                hub.send_break(one, NOW)
                await until(lambda: hub.tail(10_000).endswith(EVERY_BYTE * 10), "everything is echoed")
            finally:
                await runner.stop()
            public = (tmp_path / "host.pub").read_text().split()[:2]
            assert (tmp_path / "known").read_text().split()[:2] == public

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert "is trusted from now on" in caplog.text


def test_no_bmc_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minerva.console.ipmi._TRIES", 2)
    (tmp_path / "password").write_text("secret")

    async def scenario() -> None:
        port = free_port(socket.SOCK_DGRAM)
        backend = SolBackend(bmc(tmp_path, port))
        with pytest.raises(BackendError, match=r"no BMC answers there \(Connection refused\)"):
            await backend.open()
        await backend.close()

    asyncio.run(scenario())
