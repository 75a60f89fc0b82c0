"""The SSH front, with OpenSSH's client and asyncssh's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

asyncssh = pytest.importorskip("asyncssh")

from minerva.console.access import Role  # noqa: E402
from minerva.console.config import BREAK_GLASS  # noqa: E402
from minerva.console.fronts.ssh import Login, parse_login  # noqa: E402
from minerva.console.passwords import hash_password  # noqa: E402
from minerva.console.power import PowerAction  # noqa: E402
from tests.console.office import Line, SshOffice, until  # noqa: E402

needs_openssh = pytest.mark.skipif(
    shutil.which("ssh") is None or shutil.which("ssh-keygen") is None, reason="OpenSSH is not installed"
)

PASSWORD = hash_password("open sesame")


class Keys:
    """Keys of people, made by ssh-keygen."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def make(self, name: str) -> str:
        """Make a key; return its public part."""
        path = self.directory / name
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path)], check=True
        )
        return path.with_suffix(".pub").read_text().strip()

    def sign(self, authority: str, name: str, *options: str) -> None:
        """Make a certificate of a key."""
        subprocess.run(
            [
                "ssh-keygen",
                "-q",
                "-s",
                str(self.directory / authority),
                "-I",
                f"id of {name}",
                *options,
                str(self.directory / f"{name}.pub"),
            ],
            check=True,
        )

    def path(self, name: str) -> str:
        """Return the file of a private key."""
        return str(self.directory / name)


class People:
    """Users of every kind, with their keys."""

    def __init__(self, directory: Path) -> None:
        self.keys = Keys(directory)
        users: dict[str, Any] = {
            name: {"keys": [self.keys.make(name)], **rights}
            for name, rights in (
                ("vera", {"view": ["*"]}),
                ("will", {"write": ["*"]}),
                ("paul", {"power": ["*"]}),
                ("anna", {"admin": ["*"]}),
                ("nora", {"view": ["other*"]}),
            )
        }
        users["walt"] = {"write": ["*"], "password": PASSWORD}
        users["carl"] = {"write": ["*"]}
        self.table = {"users": users, "access": {"user_ca": [self.keys.make("authority")], "failures": 5}}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("OpenSSH is not installed")
    return People(tmp_path_factory.mktemp("people"))


def run(
    tmp_path: Path, people: People, lines: list[Line], test: Callable[[SshOffice], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with SshOffice(tmp_path / "console", people.table, lines) as office:
            async with asyncio.timeout(60):
                await test(office)

    (tmp_path / "console").mkdir()
    asyncio.run(main())


def arguments(office: SshOffice, people: People, user: str, name: str, *options: str) -> list[str]:
    return [
        "ssh",
        "-F",
        "none",
        "-i",
        people.keys.path(user),
        "-p",
        str(office.port),
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        "StrictHostKeyChecking=accept-new",
        "-o",
        f"UserKnownHostsFile={office.directory / 'known_hosts'}",
        "-o",
        "LogLevel=ERROR",
        *options,
        f"{name}@127.0.0.1",
    ]


class Ssh:
    """OpenSSH's client, as a program or (``terminal``) as a person would run it."""

    def __init__(self, process: asyncio.subprocess.Process, master: int | None) -> None:
        self.process = process
        self.master = master
        self.out = bytearray()
        self.err = bytearray()
        self._tasks = [asyncio.create_task(self._read(process.stderr, self.err))]
        if master is None:
            self._tasks.append(asyncio.create_task(self._read(process.stdout, self.out)))
        else:
            os.set_blocking(master, False)
            asyncio.get_running_loop().add_reader(master, self._read_terminal)

    async def _read(self, stream: asyncio.StreamReader | None, into: bytearray) -> None:
        assert stream is not None
        while data := await stream.read(65_536):
            into += data

    def _read_terminal(self) -> None:
        assert self.master is not None
        try:
            self.out += os.read(self.master, 65_536)
        except BlockingIOError:
            pass
        except OSError:
            asyncio.get_running_loop().remove_reader(self.master)

    def type(self, data: bytes) -> None:
        """Type something."""
        if self.master is not None:
            os.write(self.master, data)
        else:
            assert self.process.stdin is not None
            self.process.stdin.write(data)

    async def sees(self, text: bytes, seconds: float = 10) -> None:
        """Wait until it has been shown something."""
        try:
            await until(lambda: text in self.out, seconds)
        except TimeoutError:
            raise AssertionError(f"no {text!r} in {bytes(self.out)!r}, {bytes(self.err)!r}") from None

    async def ends(self) -> int:
        """Wait until it ends."""
        status = await self.process.wait()
        await self.close()
        return status

    async def close(self) -> None:
        """End it."""
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        await asyncio.gather(*self._tasks)
        if self.master is not None:
            asyncio.get_running_loop().remove_reader(self.master)
            self._read_terminal()
            os.close(self.master)
            self.master = None
        # Lets the transport of its standard input end within the loop.
        await asyncio.sleep(0)


async def ssh(args: list[str], *command: str, terminal: bool = False) -> Ssh:
    if not terminal:
        process = await asyncio.create_subprocess_exec(
            *args,
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        return Ssh(process, None)
    master, slave = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *args[:1],
        "-tt",
        *args[1:],
        *command,
        stdin=slave,
        stdout=slave,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    os.close(slave)
    return Ssh(process, master)


@pytest.mark.parametrize(
    ("name", "console", "login"),
    [
        ("rack1", None, Login(None, "rack1")),
        ("vera", None, Login("vera", None)),
        ("vera:rack1", None, Login("vera", "rack1")),
        ("both", None, Login(None, "both")),
        ("both:", None, Login("both", None)),
        (":rack1", None, Login(None, "rack1")),
        ("break-glass:rack1", None, Login(BREAK_GLASS, "rack1")),
        ("vera", "rack1", Login("vera", "rack1")),
        ("rack1", "rack1", Login(None, "rack1")),
        ("vera:other", "rack1", Login("vera", "rack1")),
    ],
)
def test_the_name_to_log_in_with(name: str, console: str | None, login: Login) -> None:
    assert parse_login(name, console, ["both", "rack1"]) == login


@needs_openssh
def test_a_program_gets_exactly_what_the_device_says(tmp_path: Path, people: People) -> None:
    line = Line("rack1")
    everything = bytes(range(256)) * 200

    async def test(office: SshOffice) -> None:
        client = await ssh(arguments(office, people, "will", "rack1"))
        await until(lambda: line.hub.who())
        line.say(everything)
        await until(lambda: len(client.out) >= len(everything))
        client.type(everything)  # with whatever is the escape
        await until(lambda: len(line.typed) >= len(everything))
        line.hub.message("vera", "hello", time.time())
        await until(lambda: b"vera: hello" in client.err)
        await client.close()
        await until(lambda: not line.hub.who())
        assert client.out == everything
        assert line.typed == everything

    run(tmp_path, people, [line], test)


@needs_openssh
def test_a_person_at_a_terminal(tmp_path: Path, people: People) -> None:
    line = Line("rack1", echo=True)
    line.say(b"before\r\nlogin: ")

    async def test(office: SshOffice) -> None:
        client = await ssh(arguments(office, people, "will", "rack1"), terminal=True)
        await client.sees(b"login: ")
        await client.sees(b"you write")
        client.type(b"root\r")
        await client.sees(b"root\r")
        client.type(b"~.\r")  # not at the start of a line for OpenSSH only after "root\r": so it is
        assert await client.ends() != 0
        await until(lambda: not line.hub.who())
        assert line.typed == b"root\r"

        client = await ssh(arguments(office, people, "will", "rack1"), terminal=True)
        await client.sees(b"you write")
        client.type(b"ls ~.\r")
        await until(lambda: line.typed.endswith(b"ls ~.\r"))
        client.type(b"\x05c?")
        await client.sees(b"hand writing over")
        client.type(b"\x05cw")
        await client.sees(b"will (you) writes, ssh 127.0.0.1")
        client.type(b"\x05c\x05c")
        await until(lambda: line.typed.endswith(b"\x05c"))
        client.type(b"\x05c.")
        assert await client.ends() == 0

    run(tmp_path, people, [line], test)


@needs_openssh
def test_the_escape_of_openssh_sends_a_break(tmp_path: Path, people: People) -> None:
    line = Line("rack1")

    async def test(office: SshOffice) -> None:
        client = await ssh(arguments(office, people, "will", "rack1"), terminal=True)
        await client.sees(b"you write")
        client.type(b"\r~B")
        await until(lambda: line.breaks)
        assert line.breaks == [1.0]  # what OpenSSH asks for
        client.type(b"\x05cl0")
        await until(lambda: len(line.breaks) == 2)
        assert line.breaks[1] == 0.25
        await client.close()
        reader = await ssh(arguments(office, people, "vera", "rack1"), terminal=True)
        await reader.sees(b"you only read")
        reader.type(b"\r~B")
        await reader.sees(b"break at rack1 needs the role write")
        await reader.close()
        assert ("vera", "break") in await office.refusals()
        assert len(line.breaks) == 2

    run(tmp_path, people, [line], test)


@needs_openssh
def test_the_escape_changes_and_an_ssh_within_keeps_its_own(tmp_path: Path, people: People) -> None:
    line = Line("rack1")

    async def test(office: SshOffice) -> None:
        client = await ssh(arguments(office, people, "will", "rack1"), terminal=True)
        await client.sees(b"you write")
        client.type(b"\x05ce")
        await client.sees(b"new escape")
        client.type(b"^]\r")
        await client.sees(b"the escape is ^] now")
        client.type(b"\x05cw~~.")
        await until(lambda: line.typed == b"\x05cw~~.")
        client.type(b"\x1d.")
        assert await client.ends() == 0

    run(tmp_path, people, [line], test)


@needs_openssh
def test_the_lease_goes_from_one_to_another(tmp_path: Path, people: People) -> None:
    line = Line("rack1")

    async def test(office: SshOffice) -> None:
        will = await ssh(arguments(office, people, "will", "rack1"), terminal=True)
        await will.sees(b"you write")
        paul = await ssh(arguments(office, people, "paul", "rack1"), terminal=True)
        await paul.sees(b"will writes")
        paul.type(b"x")
        await paul.sees(b"not sent: will writes")
        paul.type(b"\x05cf")
        await paul.sees(b"force at rack1 needs the role admin")
        paul.type(b"\x05ca")
        await will.sees(b"paul asks will")
        will.type(b"\x05cs")
        await paul.sees(b"paul writes now")
        paul.type(b"from paul")
        await until(lambda: line.typed == b"from paul")
        anna = await ssh(arguments(office, people, "anna", "rack1"), terminal=True)
        await anna.sees(b"paul writes")
        anna.type(b"\x05cf")
        await paul.sees(b"anna writes now (forced)")
        anna.type(b", then anna")
        await until(lambda: line.typed == b"from paul, then anna")
        for client in (will, paul, anna):
            await client.close()
        assert {("paul", "input"), ("paul", "force")} <= set(await office.refusals())

    run(tmp_path, people, [line], test)


@needs_openssh
def test_who_may_what(tmp_path: Path, people: People) -> None:
    line = Line("rack1")

    async def test(office: SshOffice) -> None:
        async def do(user: str, *command: str, status: int) -> Ssh:
            client = await ssh(arguments(office, people, user, "rack1"), *command)
            assert await client.ends() == status, (user, command, client.out, client.err)
            return client

        await do("vera", "send", "reboot", status=1)
        await do("vera", "write", status=1)
        await do("vera", "break", status=1)
        await do("will", "power", "off", status=1)
        assert b"no console rack1" in (await do("nora", "read", status=1)).err
        assert not line.typed
        assert not line.power.acts
        await do("will", "send", "'ls -l'", status=0)
        assert line.typed == b"ls -l\r"
        await do("paul", "power", "cycle", status=0)
        assert line.power.acts == [PowerAction.CYCLE]
        assert (await do("will", "power", "status", status=0)).out == b"the machine of rack1 is on\n"
        assert b"commands: " in (await do("will", "scp -f x", status=1)).err
        assert set(await office.refusals()) == {
            ("vera", "write"),
            ("vera", "break"),
            ("will", "power"),
            ("nora", "attach"),
        }

    run(tmp_path, people, [line], test)


@needs_openssh
def test_what_is_piped_in_before_it_has_begun_is_sent(tmp_path: Path, people: People) -> None:
    line = Line("rack1")

    async def test(office: SshOffice) -> None:
        for _ in range(5):
            line.typed.clear()
            client = await ssh(arguments(office, people, "will", "rack1"), "write")
            client.type(b"typed ahead\r")
            await until(lambda: line.typed == b"typed ahead\r")
            await client.close()

    run(tmp_path, people, [line], test)


@needs_openssh
def test_power_from_a_terminal_asks_first(tmp_path: Path, people: People) -> None:
    line = Line("rack1")

    async def test(office: SshOffice) -> None:
        will = await ssh(arguments(office, people, "will", "rack1"), terminal=True)
        await will.sees(b"you write")
        paul = await ssh(arguments(office, people, "paul", "rack1"), terminal=True)
        await paul.sees(b"will writes")
        paul.type(b"\x05cp")
        await paul.sees(b"power (")
        paul.type(b"reset\r")
        await paul.sees(b"will (writes, from ssh 127.0.0.1)")
        paul.type(b"yes\r")
        await paul.sees(b"has been accepted")
        await will.sees(b"paul: power reset")
        assert line.power.acts == [PowerAction.RESET]
        for client in (will, paul):
            await client.close()

    run(tmp_path, people, [line], test)


@needs_openssh
def test_the_menu(tmp_path: Path, people: People) -> None:
    async def test(office: SshOffice) -> None:
        nora = await ssh(arguments(office, people, "nora", "nora"), terminal=True)
        await nora.sees(b"q to go): ")
        assert b"rack1" not in nora.out
        nora.type(b"rack1\r")
        await nora.sees(b"there is no console rack1")
        nora.type(b"1\r")
        await nora.sees(b"other1: InUse")
        nora.type(b"\x05cm")
        await until(lambda: nora.out.count(b"q to go): ") == 2)
        nora.type(b"q\r")
        assert await nora.ends() == 0
        listed = await ssh(arguments(office, people, "nora", "nora"), "list")
        assert await listed.ends() == 0
        assert listed.out == b"other1  Connected  the console other1\n"

    run(tmp_path, people, [Line("rack1"), Line("other1")], test)


@needs_openssh
def test_certificates(tmp_path: Path, people: People) -> None:
    keys = people.keys
    for name in ("carl", "wide", "late", "forged"):
        keys.make(name)
    keys.make("impostor")
    keys.sign("authority", "carl", "-n", "carl")
    keys.sign("authority", "wide")
    keys.sign("authority", "late", "-n", "carl", "-V", "-2d:-1d")
    keys.sign("impostor", "forged", "-n", "carl")
    line = Line("rack1")

    async def test(office: SshOffice) -> None:
        client = await ssh(arguments(office, people, "carl", "rack1", "-o", "BatchMode=yes"), terminal=True)
        await client.sees(b"you write")
        client.type(b"\x05c.")
        assert await client.ends() == 0
        client = await ssh(arguments(office, people, "carl", "carl:rack1", "-o", "BatchMode=yes"), "list")
        assert await client.ends() == 0
        for name in ("vera:rack1", "anna:rack1"):
            client = await ssh(arguments(office, people, "carl", name, "-o", "BatchMode=yes"), "list")
            assert await client.ends() == 255
        office.throttle.failures = 100
        for user in ("wide", "late", "forged"):
            client = await ssh(arguments(office, people, user, "rack1", "-o", "BatchMode=yes"), "list")
            assert await client.ends() == 255, user
        logins = [each for each in await office.entries() if each["action"] == "login" and each["allowed"]]
        assert {each["user"] for each in logins} == {"carl"}
        assert all(
            each["how"].startswith("certificate 'id of carl' number 0 of CA SHA256:") for each in logins
        )

    run(tmp_path, people, [line], test)


async def connect(office: SshOffice, name: str, address: str = "127.0.0.1", **options: Any) -> Any:
    return await asyncssh.connect(
        address,
        office.port,
        username=name,
        known_hosts=None,
        config=None,
        agent_path=None,
        encoding=None,
        **{"client_keys": [], **options},
    )


def test_passwords_and_floods(tmp_path: Path, people: People) -> None:
    line = Line("rack1")

    async def test(office: SshOffice) -> None:
        async with await connect(office, "walt:rack1", password="open sesame"):
            pass
        with pytest.raises(asyncssh.PermissionDenied):
            await connect(office, "rack1", password="open sesame")  # whose?
        with pytest.raises(asyncssh.PermissionDenied):
            await connect(office, "vera:rack1", password="")
        # A flood from one address, many connections at once.
        refused = 0
        for _ in range(5):
            results = await asyncio.gather(
                *(connect(office, "walt:rack1", password="x", local_addr=("127.0.0.7", 0)) for _ in range(6)),
                return_exceptions=True,
            )
            assert all(isinstance(result, Exception) for result in results)
            refused += sum(not isinstance(result, asyncssh.PermissionDenied) for result in results)
        assert refused >= 20  # not even heard
        with pytest.raises((OSError, asyncssh.Error)):
            await connect(office, "walt:rack1", password="open sesame", local_addr=("127.0.0.7", 0))
        # Nobody else is locked out.
        async with await connect(office, "walt:rack1", password="open sesame", local_addr=("127.0.0.8", 0)):
            pass
        denied = [
            each for each in await office.entries() if each["action"] == "login" and not each["allowed"]
        ]
        assert any("has to wait now" in each["detail"] for each in denied)
        assert len(denied) < 20

    run(tmp_path, people, [line], test)


def test_connections_that_never_log_in_do_not_keep_others_out(tmp_path: Path, people: People) -> None:
    async def test(office: SshOffice) -> None:
        idle = [
            await asyncio.open_connection("127.0.0.1", office.port, local_addr=(f"127.0.0.{last}", 0))
            for last in [1] * 40 + list(range(9, 40)) * 3
        ]
        await asyncio.sleep(0.2)
        async with await connect(office, "walt:rack1", password="open sesame", local_addr=("127.0.0.200", 0)):
            pass
        for _, writer in idle:
            writer.close()

    run(tmp_path, people, [Line("rack1")], test)


def test_break_glass(tmp_path: Path, people: People) -> None:
    line = Line("rack1")

    async def test(office: SshOffice) -> None:
        text, token = office.tokens.create(role=Role.WRITE, ports=("rack*",), made_by="root", now=time.time())
        watcher = await connect(office, "walt:rack1", password="open sesame")
        process = await watcher.create_process(encoding=None)
        async with await connect(
            office, "break-glass:rack1", password=text.lower(), preferred_auth="keyboard-interactive"
        ) as conn:
            said = await process.stderr.readline()
            while b"break-glass token" not in said:
                said = await process.stderr.readline()
            found = await conn.run("power off")
            assert found.exit_status == 1
            assert (await conn.run("list")).stdout.startswith(b"rack1 ")
        with pytest.raises(asyncssh.PermissionDenied):
            await connect(office, "break-glass:rack1", password=text)
        watcher.close()
        entries = await office.entries()
        assert any(
            each["action"] == "login" and each["allowed"] and each["how"] == f"token {token.number}"
            for each in entries
        )
        assert text.replace("-", "") not in office.config.audit_file.read_text().replace("-", "")
        assert not line.power.acts

    run(tmp_path, people, [line], test)


def test_a_client_that_stops_reading_loses_data_and_nobody_else_does(tmp_path: Path, people: People) -> None:
    line = Line("rack1", ring_size=262_144)
    block = b"x" * 1023 + b"\n"
    total = 24 << 20

    async def test(office: SshOffice) -> None:
        async def attach(window: int) -> tuple[Any, Any]:
            conn = await connect(office, "walt:rack1", password="open sesame")
            return conn, await conn.create_process("read", encoding=None, window=window, max_pktsize=32_768)

        slow_conn, slow = await attach(16 << 20)
        fast_conn, fast = await attach(2 << 20)
        await until(lambda: len(line.hub.who()) == 2)
        transport = slow_conn._transport
        transport.pause_reading()

        got = 0

        async def read() -> None:
            nonlocal got
            while got < total:
                got += len(await fast.stdout.read(1 << 20))

        reading = asyncio.create_task(read())
        longest = 0.0
        for sent in range(0, total, 16 * 1024):
            began = time.monotonic()
            line.say(block * 16)
            longest = max(longest, time.monotonic() - began)
            while sent - got > 32 * 1024:
                await asyncio.sleep(0.001)
        await asyncio.wait_for(reading, 30)
        lost = {who.number: who.lost for who in line.hub.who()}
        unread = {who.number: who.unread for who in line.hub.who()}
        assert list(lost.values())[1] == 0
        assert unread[1] > 16 << 20
        assert longest < 0.5
        transport.resume_reading()
        line.say(b"the end\n")
        seen = 0
        while b"bytes lost" not in (told := await asyncio.wait_for(slow.stderr.readline(), 20)):
            pass
        missing = int(told.split()[0])
        while not (data := await asyncio.wait_for(slow.stdout.read(1 << 20), 20)).endswith(b"the end\n"):
            seen += len(data)
        assert seen + len(data) + missing == total + 8
        slow_conn.close()
        fast_conn.close()

    run(tmp_path, people, [line], test)


@needs_openssh
def test_a_stopped_ssh_goes_on_after_a_gap(tmp_path: Path, people: People) -> None:
    line = Line("rack1")
    block = b"y" * 1023 + b"\n"

    async def test(office: SshOffice) -> None:
        stopped = await ssh(arguments(office, people, "vera", "rack1"))
        await until(lambda: line.hub.who())
        stopped.process.send_signal(signal.SIGSTOP)
        total = 0
        while line.hub.who()[0].unread < 1 << 20:
            line.say(block * 16)
            total += 16 * len(block)
            await asyncio.sleep(0)
        client = await ssh(arguments(office, people, "will", "rack1"))  # others come and work meanwhile
        await until(lambda: len(line.hub.who()) == 2)
        client.type(b"hello")
        await until(lambda: line.typed == b"hello")
        stopped.process.send_signal(signal.SIGCONT)
        line.say(b"the end\n")
        total += 8
        await until(lambda: stopped.out.endswith(b"the end\n"), 20)
        await until(lambda: b"bytes lost" in stopped.err)
        lost = sum(int(said.split()[0]) for said in stopped.err.splitlines() if b"bytes lost" in said)
        assert len(stopped.out) + lost == total
        for each in (stopped, client):
            await each.close()

    run(tmp_path, people, [line], test)


@needs_openssh
def test_a_name_that_means_nothing_is_told_to_one_with_a_good_key(tmp_path: Path, people: People) -> None:
    """Not "permission denied", as if the key were wrong."""

    async def test(office: SshOffice) -> None:
        for user, said in (("will", b"no console rakc1; did you mean rack1?"), ("nora", b"no console rakc1")):
            for command in ((), ("send", "x")):
                client = await ssh(arguments(office, people, user, "rakc1"), *command)
                assert await client.ends() == 1
                assert said in client.err
                assert b"rack1" not in client.err or user == "will"
        client = await ssh(arguments(office, people, "will", "rakc1"), terminal=True)
        await client.sees(b"there is no console rakc1; did you mean rack1?")
        assert await client.ends() == 1
        # Other names are as they were: those of users are for their keys, a colon says which is which.
        for name in ("vera", "nobody:rack1", "nobody:", BREAK_GLASS):
            client = await ssh(arguments(office, people, "will", name), "list")
            assert await client.ends() == 255, name

    run(tmp_path, people, [Line("rack1")], test)


def test_a_port_of_its_own(tmp_path: Path, people: People) -> None:
    line = Line("rack1")

    async def test(office: SshOffice) -> None:
        office.port = office.listen(console="rack1")
        async with await connect(office, "walt", password="open sesame") as conn:
            assert (await conn.run("send hello")).exit_status == 0
        assert line.typed == b"hello\r"

    run(tmp_path, people, [line, Line("rack2")], test)


def test_the_keys_of_the_server_stay_and_are_for_root_alone(tmp_path: Path) -> None:
    from minerva.console.fronts.ssh_keys import host_keys

    first = [key.get_fingerprint() for key in host_keys(tmp_path)]
    assert [key.get_fingerprint() for key in host_keys(tmp_path)] == first
    for path in tmp_path.glob("ssh_host_*_key"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_only_so_many_keys_are_tried(tmp_path: Path, people: People) -> None:
    async def test(office: SshOffice) -> None:
        strangers = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(40)]
        asked = []
        users_of_key = office.access.users_of_key
        office.access.users_of_key = lambda blob: asked.append(blob) or users_of_key(blob)  # type: ignore[method-assign,func-returns-value]
        with pytest.raises(asyncssh.DisconnectError):
            await connect(office, "rack1", client_keys=strangers)
        assert len(asked) == 20
        good = asyncssh.read_private_key(people.keys.path("will"))
        async with await connect(office, "rack1", client_keys=[*strangers[:10], good]):
            pass

    run(tmp_path, people, [Line("rack1")], test)


def test_a_stranger_sends_only_so_much(tmp_path: Path, people: People) -> None:
    async def test(office: SshOffice) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", office.port)
        writer.write(b"SSH-2.0-stranger\r\n" + bytes([0, 0, 0x80, 0]) * 100_000)
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        writer.close()
        entries = await office.entries()
        assert not any(entry["allowed"] for entry in entries)
        async with await connect(office, "walt:rack1", password="open sesame"):
            pass

    run(tmp_path, people, [Line("rack1")], test)
