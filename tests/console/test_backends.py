"""The kinds of lines, with peers of this file."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncssh
import pytest

from minerva.console import backends, port_config
from minerva.console.backends import base, make_backend
from minerva.console.backends import telnet as telnet_backend
from minerva.console.backends.base import BackendError, Capability, Unsupported, read_password
from minerva.console.backends.libvirt import LibvirtBackend, device_in
from minerva.console.backends.process import ProcessBackend
from minerva.console.backends.ssh import SshBackend
from minerva.console.backends.stream import TcpBackend, UnixBackend
from minerva.console.backends.telnet import Rfc2217Backend, TelnetBackend
from minerva.console.port_config import (
    IpmiPort,
    LibvirtPort,
    ProcessPort,
    PtyPort,
    Rfc2217Port,
    SerialPort,
    SshPort,
    TcpPort,
    TelnetPort,
    UnixPort,
)
from minerva.console.telnet import BRK, DO, IAC, SB, SE, WILL
from minerva.core.errors import UsageError
from tests.console.strangers import free_port, read_all, read_exactly, serving, until

ALL = (
    SerialPort(device="/dev/ttyS0"),
    PtyPort(path="/tmp/pty"),
    ProcessPort(command=("true",)),
    UnixPort(path="/run/socket"),
    TcpPort(host="bmc", port=4000),
    TelnetPort(host="bmc"),
    Rfc2217Port(host="bmc", port=4000),
    SshPort(host="bmc", user="root", password_file="/etc/secret"),
    IpmiPort(host="bmc", user="root"),
    LibvirtPort(domain="vm"),
)


@pytest.mark.parametrize("port", ALL, ids=lambda port: port.type)
def test_every_kind_has_a_backend(port: port_config.Port, tmp_path: Path) -> None:
    backend = make_backend(port, state=tmp_path, name="lab")
    assert backend.describe()
    assert not backend.capabilities & ~(Capability.BREAK | Capability.LINE)


def test_there_is_a_backend_for_each_kind_in_the_configuration() -> None:
    assert {port.type for port in ALL} == set(port_config.PORT_TYPES)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'asyncssh'", name="asyncssh")

    monkeypatch.setattr(backends, "_make", fail)
    with pytest.raises(UsageError, match=r"of type ssh need .*pip install 'minerva-acp\[console\]'"):
        make_backend(SshPort(host="bmc"), state=tmp_path, name="lab")


def test_the_first_line_of_a_file_is_the_password(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(b"se cret\r\nother\n")
    password = read_password(str(file))
    assert password.reveal() == b"se cret"
    assert "se cret" not in repr(password)
    with pytest.raises(BackendError, match=r"cannot be read from .*: No such file"):
        read_password(str(tmp_path / "none"))


# -- sockets


def test_a_unix_socket_that_comes_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "console.sock"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"login: ")
        writer.write(await reader.readexactly(5))

    async def scenario() -> None:
        backend = UnixBackend(UnixPort(path=str(path)))
        with pytest.raises(BackendError, match="there is no socket"):
            await backend.open()
        back = asyncio.ensure_future(backend.returned())
        await asyncio.sleep(0.01)
        async with serving(serve, path):
            async with asyncio.timeout(5):
                await back
            await backend.open()
            await backend.write(b"root\r")
            assert await read_exactly(backend, 12) == b"login: root\r"
            assert await backend.read() == b""
            with pytest.raises(Unsupported):
                await backend.send_break(0.1)
            await backend.close()
            await backend.close()
        with pytest.raises(BackendError, match="not open"):
            await backend.write(b"x")
        with socket.socket(socket.AF_UNIX) as sock:
            path.unlink(missing_ok=True)
            sock.bind(str(path))
        with pytest.raises(BackendError, match="nobody listens"):
            await backend.open()

    asyncio.run(scenario())


def test_an_abstract_socket_as_that_of_obmc_console() -> None:
    name = f"minerva-test-{os.getpid()}"

    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{name}")
            listener.listen()
            backend = UnixBackend(UnixPort(path=f"@{name}"))
            await backend.open()
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"hello")
                assert await backend.read() == b"hello"
            await backend.close()

    asyncio.run(scenario())


def test_a_large_paste_over_tcp_waits_for_the_device() -> None:
    async def scenario() -> None:
        data = os.urandom(3_000_000)
        received = bytearray()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001
            while piece := await reader.read(10_000):
                received.extend(piece)
                await asyncio.sleep(0)

        async with serving(serve) as port:
            backend = TcpBackend(TcpPort(host="localhost", port=port))
            await backend.open()
            await backend.write(data)
            await backend.close()
            await until(lambda: len(received) == len(data), "everything arrives")
            assert received == data

    asyncio.run(scenario())


def test_why_a_tcp_port_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()

    class Silent:
        async def stream(self, host: str, port: int) -> socket.socket:  # noqa: ARG002
            await asyncio.sleep(100)
            raise AssertionError

        async def datagram(self, host: str, port: int) -> socket.socket:  # noqa: ARG002
            raise AssertionError

    async def scenario() -> None:
        with pytest.raises(BackendError, match=f"localhost port {port} cannot be reached: .*refused"):
            await TcpBackend(TcpPort(host="localhost", port=port)).open()
        with pytest.raises(BackendError, match=r"no-such-host\.invalid port 1 cannot be reached"):
            await TcpBackend(TcpPort(host="no-such-host.invalid", port=1)).open()
        monkeypatch.setattr(base, "CONNECT_SECONDS", 0.05)
        with pytest.raises(BackendError, match=r"localhost port 1 did not answer within 0\.05 s"):
            await TcpBackend(TcpPort(host="localhost", port=1), Silent()).open()

    asyncio.run(scenario())


def test_a_peer_that_resets_the_connection() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            backend = TcpBackend(TcpPort(host="127.0.0.1", port=listener.getsockname()[1]))
            await backend.open()
            peer, _ = listener.accept()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            peer.close()
            with pytest.raises(BackendError, match="reset"):
                await backend.read()
            await backend.close()

    asyncio.run(scenario())


# -- telnet


def test_a_terminal_server_with_telnet_alone() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            backend = TelnetBackend(TelnetPort(host="127.0.0.1", port=listener.getsockname()[1]))
            await backend.open()
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(5)
                peer.sendall(bytes([IAC, WILL, 1, IAC, WILL, 3, IAC, DO, 24]) + b"Router>\xff\xff\r\0")
                assert await read_exactly(backend, 9) == b"Router>\xff\r"
                assert peer.recv(100) == bytes([IAC, DO, 1, IAC, DO, 3, IAC, 252, 24])
                await backend.write(b"show\r\xff")
                await backend.send_break(0.25)
                expected = b"show\r\0\xff\xff" + bytes([IAC, BRK])
                assert peer.recv(len(expected), socket.MSG_WAITALL) == expected
            await backend.close()

    asyncio.run(scenario())


def test_a_server_that_does_not_speak_rfc_2217() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # WILL COM-PORT is refused.
        await reader.readuntil(bytes([IAC, WILL, 44]))
        writer.write(bytes([IAC, 254, 44]))
        await reader.read()

    async def scenario() -> None:
        async with serving(serve) as port:
            backend = Rfc2217Backend(Rfc2217Port(host="127.0.0.1", port=port))
            with pytest.raises(BackendError, match=r"does not speak RFC 2217: .* telnet"):
                await backend.open()
            await backend.close()

    asyncio.run(scenario())


def test_a_server_of_rfc_2217_that_wants_us_to_wait() -> None:
    class Server:
        """Says that everything is as was asked for."""

        def __init__(self) -> None:
            self.heard = b""
            self.writer: asyncio.StreamWriter | None = None

        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.writer = writer
            writer.write(bytes([IAC, DO, 44]))
            while data := await reader.read(1000):
                self.heard += data
                for code, size in ((1, 4), (2, 1), (3, 1), (4, 1), (5, 1)):
                    start = data.find(bytes([IAC, SB, 44, code]))
                    if start >= 0:
                        value = data[start + 4 : start + 4 + size]
                        writer.write(bytes([IAC, SB, 44, 100 + code]) + value + bytes([IAC, SE]))

        def say(self, code: int, value: bytes = b"") -> None:
            assert self.writer is not None
            self.writer.write(bytes([IAC, SB, 44, 100 + code]) + value + bytes([IAC, SE]))

    async def scenario() -> None:
        server = Server()
        async with serving(server.serve) as port:
            backend = Rfc2217Backend(Rfc2217Port(host="127.0.0.1", port=port, speed=9600, framing="7E2"))
            await backend.open()
            assert str(backend.settings) == "9600 7E2"
            reading = asyncio.ensure_future(backend.read())
            server.say(7, b"\x90")
            async with asyncio.timeout(5):
                while (await backend.modem()).value != 0x90:
                    await asyncio.sleep(0.01)
            server.say(8)
            server.say(0, b"box \x1b[m")
            await until(lambda: "box" in backend.describe(), "it is told the name")
            assert "\x1b" not in backend.describe()
            writing = asyncio.ensure_future(backend.write(b"typed"))
            await asyncio.sleep(0.05)
            assert b"typed" not in server.heard
            server.say(9)
            await writing
            await until(lambda: b"typed" in server.heard, "it goes on")
            await backend.set_lines(dtr=False)
            assert backend.lines() == (False, True)
            await until(lambda: bytes([IAC, SB, 44, 5, 9, IAC, SE]) in server.heard, "DTR is cleared")
            await backend.close()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    asyncio.run(scenario())


# -- programs


def test_a_program_on_a_terminal_of_its_own() -> None:
    async def scenario() -> None:
        backend = ProcessBackend(
            ProcessPort(command=("sh", "-c", "tty; test -t 0 && stty size; read x; echo got $x; exit 3"))
        )
        await backend.open()
        said = bytearray(await read_exactly(backend, 10))
        assert said.startswith(b"/dev/pts/")
        await backend.write(b"abc\r")
        with pytest.raises(BackendError, match="sh has ended with status 3"):
            await read_all(backend, said)
        assert b"24 80" in said
        assert b"got abc" in said
        await backend.close()

    asyncio.run(scenario())


def test_a_break_interrupts_a_program() -> None:
    async def scenario() -> None:
        backend = ProcessBackend(ProcessPort(command=("sh", "-c", "echo up; exec sleep 100")))
        await backend.open()
        await read_exactly(backend, 4)
        await backend.send_break(0.25)
        with pytest.raises(BackendError, match=f"ended by signal {signal.SIGINT.value}"):
            await read_all(backend, bytearray())
        await backend.close()

    asyncio.run(scenario())


def test_a_program_and_its_children_end_with_the_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("minerva.console.backends.process.GRACE_SECONDS", 0.3)
    # The child does not mind being told, in contrast to its parent.
    child_code = f"(trap '' HUP TERM; echo $$ up; exec sleep 100) & echo $! > {tmp_path}/child; wait"

    async def scenario() -> None:
        backend = ProcessBackend(ProcessPort(command=("sh", "-c", child_code)))
        await backend.open()
        await read_exactly(backend, 4)
        noted = tmp_path / "child"
        await until(lambda: noted.exists() and noted.read_text().endswith("\n"), "the child is noted")
        child = int(noted.read_text())
        await backend.close()
        await until(lambda: not _runs(child), "the child is gone")

    asyncio.run(scenario())


def _runs(process: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(BackendError, match="/no/such is no program that can be run"):
        asyncio.run(ProcessBackend(ProcessPort(command=("/no/such",))).open())


def test_a_large_paste_into_a_program_that_is_slow() -> None:
    code = "import sys, time, tty\ntty.setraw(0)\nprint('up', flush=True)\nn = 0\n"
    code += "while n < 200000:\n    n += len(sys.stdin.buffer.raw.read(4096))\nprint('got', n, flush=True)"

    async def scenario() -> None:
        backend = ProcessBackend(ProcessPort(command=(sys.executable, "-c", code)))
        await backend.open()
        await read_exactly(backend, 3)
        async with asyncio.timeout(20):
            await backend.write(b"x" * 200_000)
        said = bytearray()
        with pytest.raises(BackendError, match="status 0"):
            await read_all(backend, said)
        assert b"got 200000" in said
        await backend.close()

    asyncio.run(scenario())


# -- SSH


class SshServer(asyncssh.SSHServer):
    """Lets one user in."""

    def begin_auth(self, username: str) -> bool:  # noqa: ARG002
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == ("root", "secret")


class SshConsole(asyncssh.SSHServerSession[bytes]):
    """Echoes, and says what happens."""

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self.channel = chan

    def pty_requested(self, term_type: str, term_size: object, term_modes: object) -> bool:  # noqa: ARG002
        return term_type == "vt100"

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        self.channel.write(f"[{command}]".encode())
        return True

    def data_received(self, data: bytes, datatype: int | None) -> None:  # noqa: ARG002
        if data == b"\x04":
            self.channel.exit(7)
        else:
            self.channel.write(data)

    def break_received(self, msec: int) -> bool:
        self.channel.write(b"[break %d]" % msec)
        return True


@asynccontextmanager
async def ssh_server(key: asyncssh.SSHKey) -> AsyncIterator[int]:
    """A BMC's console port."""

    class Server(SshServer):
        def session_requested(self) -> SshConsole:
            return SshConsole()

    acceptor = await asyncssh.create_server(
        Server, "127.0.0.1", 0, server_host_keys=[key], encoding=None, line_editor=False
    )
    try:
        yield acceptor.get_port()
    finally:
        acceptor.close()
        await acceptor.wait_closed()


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    """A file with the password of the BMC."""
    file = tmp_path / "password"
    file.write_text("secret\n")
    return str(file)


def test_a_console_behind_ssh(tmp_path: Path, password_file: str) -> None:
    known = tmp_path / "known" / "lab"

    async def scenario() -> None:
        key = asyncssh.generate_private_key("ssh-ed25519")
        async with ssh_server(key) as port:
            settings = SshPort(host="127.0.0.1", port=port, user="root", password_file=password_file)
            backend = SshBackend(settings, known=known)
            await backend.open()
            await backend.write(b"\x00\xff typed")
            assert await read_exactly(backend, 8) == b"\x00\xff typed"
            await backend.send_break(0.25)
            assert await read_exactly(backend, 11) == b"[break 250]"
            await backend.write(b"\x04")
            with pytest.raises(BackendError, match="ended the session with status 7"):
                await backend.read()
            await backend.close()
            # The key that was seen first is kept, and good.
            assert known.stat().st_mode & 0o777 == 0o600
            await backend.open()
            await backend.close()
            # Another server is not told the password.
            other = asyncssh.generate_private_key("ssh-ed25519")
            known.write_bytes(other.export_public_key())
            with pytest.raises(BackendError, match="has another key than before"):
                await backend.open()
            await backend.close()

    asyncio.run(scenario())


def test_a_command_and_a_key_that_is_known(tmp_path: Path, password_file: str) -> None:
    async def scenario() -> None:
        key = asyncssh.generate_private_key("ssh-ed25519")
        public = key.export_public_key().decode()
        async with ssh_server(key) as port:
            settings = SshPort(
                host="127.0.0.1",
                port=port,
                user="root",
                password_file=password_file,
                host_key=public,
                command="console 1",
            )
            backend = SshBackend(settings, known=tmp_path / "known")
            await backend.open()
            assert await read_exactly(backend, 11) == b"[console 1]"
            await backend.close()
            assert not (tmp_path / "known").exists()

    asyncio.run(scenario())


def test_a_wrong_password_for_ssh_keeps_no_key(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong-password\n")

    async def scenario() -> None:
        async with ssh_server(asyncssh.generate_private_key("ssh-ed25519")) as port:
            settings = SshPort(host="127.0.0.1", port=port, user="root", password_file=str(wrong))
            backend = SshBackend(settings, known=tmp_path / "known")
            with pytest.raises(BackendError, match="does not let root in") as caught:
                await backend.open()
            assert "wrong-password" not in str(caught.value)
            await backend.close()
            assert not (tmp_path / "known").exists()

    asyncio.run(scenario())


def test_what_is_no_ssh_server(tmp_path: Path, password_file: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x1b[31mhello\r\n" * 3)
        await reader.read(10)

    async def scenario() -> None:
        async with serving(serve) as port:
            settings = SshPort(host="127.0.0.1", port=port, user="root", password_file=password_file)
            backend = SshBackend(settings, known=tmp_path / "known")
            with pytest.raises(BackendError) as caught:
                await backend.open()
            assert "\x1b" not in str(caught.value)
            await backend.close()

    asyncio.run(scenario())


# -- libvirt


def domain(devices: str) -> bytes:
    """Return libvirt's description of a machine."""
    return f"<domain type='kvm' id='1'><name>vm</name><devices>{devices}</devices></domain>".encode()


PTY = "<serial type='pty'><source path='/dev/pts/7'/><alias name='serial0'/></serial>"
UNIX = "<serial type='unix'><source mode='bind' path='/run/vm.sock'/><alias name='serial1'/></serial>"
TCP = "<console type='tcp'><source host='127.0.0.1' service='4000'/>{}<alias name='serial2'/></console>"


@pytest.mark.parametrize(
    ("devices", "alias", "described"),
    [
        (PTY + UNIX, "", "pseudoterminal /dev/pts/7"),
        (PTY + UNIX, "serial1", "socket /run/vm.sock"),
        (TCP.format("<protocol type='raw'/>"), "", "TCP 127.0.0.1 port 4000"),
        (TCP.format("<protocol type='telnet'/>"), "serial2", "telnet 127.0.0.1 port 4000"),
    ],
)
def test_where_libvirt_has_a_console(devices: str, alias: str, described: str) -> None:
    assert device_in(domain(devices), LibvirtPort(domain="vm", device=alias)).describe() == described


@pytest.mark.parametrize(
    ("description", "alias", "reason"),
    [
        (domain("<serial type='pty'/>"), "", "vm is not running"),
        (domain(""), "", "has no serial line or console"),
        (domain(PTY), "serial9", "has no device serial9"),
        (domain("<serial type='file'><source path='/x'/></serial>"), "", "of type file"),
        (b"<domain>", "", "in no XML"),
    ],
)
def test_why_libvirt_has_no_console(description: bytes, alias: str, reason: str) -> None:
    with pytest.raises(BackendError, match=reason):
        device_in(description, LibvirtPort(domain="vm", device=alias))


def test_a_machine_of_libvirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vm.sock"
    description = domain(f"<serial type='unix'><source path='{path}'/></serial>").decode()
    virsh = tmp_path / "virsh"
    virsh.write_text(
        f'#!/bin/sh\n[ "$*" = "-c qemu:///system dumpxml --domain vm" ] && echo "{description}" && exit\n'
        '[ "$3" = domstate ] && echo running && exit\n'
        '[ "$6" = console ] && echo "remote $*" && exit\necho "error: no domain" >&2; exit 1\n'
    )
    virsh.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(10))

    async def scenario() -> None:
        async with serving(serve, path):
            backend = LibvirtBackend(LibvirtPort(domain="vm"))
            await backend.open()
            assert backend.describe() == f"libvirt vm (socket {path})"
            await backend.write(b"x")
            assert await backend.read() == b"x"
            with pytest.raises(Unsupported):
                await backend.send_break(0.1)
            await backend.close()
        with pytest.raises(BackendError, match="libvirt: no domain"):
            await LibvirtBackend(LibvirtPort(domain="other")).open()
        remote = LibvirtBackend(LibvirtPort(domain="vm", uri="qemu+ssh://host/system", device="serial1"))
        await remote.open()
        assert b"console --force --domain vm --devname serial1" in await read_exactly(remote, 60)
        await remote.close()

    asyncio.run(scenario())


def test_virsh_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match="install libvirt-clients"):
        asyncio.run(LibvirtBackend(LibvirtPort(domain="vm")).open())


def test_what_a_server_says_while_the_line_is_set_up_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telnet_backend, "ANSWER_SECONDS", 1.5)
    said = 0

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal said
        with suppress(ConnectionError):
            while True:
                writer.write(b"x" * 65_536)
                await writer.drain()
                said += 65_536
        writer.close()

    async def scenario() -> None:
        async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
            number = server.sockets[0].getsockname()[1]
            backend = Rfc2217Backend(Rfc2217Port(host="127.0.0.1", port=number))
            with pytest.raises(BackendError, match="does not speak RFC 2217"):
                await backend.open()
            assert said > telnet_backend.MAX_READ_AHEAD
            assert len(backend._read_ahead) <= telnet_backend.MAX_READ_AHEAD
            await backend.close()
            await asyncio.sleep(0.1)

    asyncio.run(scenario())
