"""The control socket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import grp
import json
import os
import pwd
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minerva.asa import local_socket
from minerva.console.events import Mode
from minerva.console.fronts.control import MAX_CONNECTIONS, ControlFront, open_control_socket
from minerva.console.power import PowerAction
from minerva.core.errors import UsageError
from tests.console.office import Line, Office, until

ME = pwd.getpwuid(os.getuid()).pw_name


class Client:
    """A program that talks to the socket."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def open(self) -> Client:
        """Connect."""
        self.reader, self.writer = await asyncio.open_unix_connection(self.path)
        return self

    async def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Ask for something."""
        self.writer.write(json.dumps({"command": command, **arguments}).encode() + b"\n")
        answer = json.loads(await self.reader.readline())
        assert isinstance(answer, dict)
        return answer

    async def close(self) -> None:
        """Go."""
        self.writer.close()
        await self.writer.wait_closed()


Test = Callable[[Office, Path], Awaitable[None]]


def run(tmp_path: Path, lines: list[Line], test: Test) -> None:
    async def main() -> None:
        office = Office(tmp_path, {}, lines)
        path = tmp_path / "console.sock"

        async def reload() -> dict[str, Any]:
            return {"added": ["rack9"]}

        front = ControlFront(
            office.desk,
            office.tokens,
            escape=lambda: b"\x05c",
            reload=reload,
            status=lambda: {"started": 1.0},
        )
        await front.start(open_control_socket(path))
        try:
            async with asyncio.timeout(30):
                await test(office, path)
        finally:
            front.close()
            await asyncio.sleep(0.05)
            office.close()

    asyncio.run(main())


def test_what_can_be_asked(tmp_path: Path) -> None:
    line = Line("rack1")

    async def test(office: Office, path: Path) -> None:
        client = await Client(path).open()
        (console,) = (await client.ask("list"))["consoles"]
        assert console["name"] == "rack1"
        assert console["state"] == "Connected"
        assert await client.ask("who") == {"attached": []}
        data = bytes(range(256))
        assert await client.ask("send", console="rack1", data=base64.b64encode(data).decode()) == {
            "sent": 256
        }
        assert line.typed == data
        assert await client.ask("break", console="rack1") == {}
        assert await client.ask("break", console="rack1", seconds=2) == {}
        assert line.breaks == [0.25, 2]
        assert (await client.ask("power", console="rack1", action="status"))["said"].endswith("is on")
        assert "accepted" in (await client.ask("power", console="rack1", action="reset"))["said"]
        assert line.power.acts == [PowerAction.RESET]
        assert await client.ask("reload") == {"added": ["rack9"]}
        assert await client.ask("status") == {"started": 1.0}
        await client.close()
        entries = await office.entries()
        assert {each["user"] for each in entries} == {ME}
        assert {each["how"] for each in entries} == {f"uid {os.getuid()}"}
        assert {each["source"] for each in entries} == {f"local process {os.getpid()}"}
        assert {each["action"] for each in entries} >= {"send", "break", "power", "reload"}

    run(tmp_path, [line], test)


def test_what_is_wrong_is_one_sentence(tmp_path: Path) -> None:
    line = Line("rack1")

    async def test(office: Office, path: Path) -> None:  # noqa: ARG001
        client = await Client(path).open()
        for request, why in (
            ({"command": "dance"}, "there is no command 'dance'; there are: attach, break"),
            ({"command": "send", "console": "nope\x1b", "data": ""}, "data must be a string"),
            ({"command": "send", "console": "nope\x1b", "data": "QQ=="}, "there is no console nope\\u001b"),
            ({"command": "send", "console": "rack1", "data": "???"}, "data must be in base64"),
            ({"command": "power", "console": "rack1", "action": "burn"}, "action must be status, on"),
            ({"command": "break", "console": "rack1", "seconds": 99}, "a break lasts up to 10 seconds"),
            ({"command": "break", "console": "rack1", "seconds": "1"}, "seconds must be a number"),
            ({"command": "break", "console": 7}, "console must be a string"),
            ({"command": "say", "text": "  "}, "there is nothing to say"),
            ({"command": "token", "role": "king"}, "role must be view, write, power or admin"),
            ({"command": "token", "role": "view", "days": -1}, "a token needs consoles, and days and hours"),
            ({"command": "revoke", "number": "../x"}, "is no number of a break-glass token"),
        ):
            answer = await client.ask(**request)
            assert why in answer["error"], answer
        await client.close()
        for bad in (b"dance\n", b"[]\n", b"[" * 100_000 + b"\n", b"\xff\n"):
            client = await Client(path).open()
            client.writer.write(bad)
            assert b"error" in await client.reader.readline()
            assert await client.reader.read() == b""
            await client.close()
        client = await Client(path).open()
        client.writer.write(b"x" * 300_000)
        assert await client.reader.read() == b""
        client.writer.close()
        for request in (
            {"console": "nope"},
            {"console": "rack1", "mode": "king"},
            {"console": "rack1", "replay": -1},
            {"console": "rack1", "interactive": True, "escape": "^1"},
        ):
            client = await Client(path).open()
            assert "error" in await client.ask("attach", **request)
            assert await client.reader.read() == b""
            await client.close()
        assert not line.hub.who()

    run(tmp_path, [line], test)


def test_a_program_attaches(tmp_path: Path) -> None:
    line = Line("rack1")
    line.say(b"before\n")
    everything = bytes(range(256)) * 200

    async def test(office: Office, path: Path) -> None:  # noqa: ARG001
        client = await Client(path).open()
        assert await client.ask("attach", console="rack1", replay=100) == {
            "console": "rack1",
            "state": "InUse",
            "reason": "",
        }
        assert await client.reader.readexactly(7) == b"before\n"
        line.say(everything)
        line.hub.message("somebody", "hello", time.time())
        assert await client.reader.readexactly(len(everything)) == everything
        client.writer.write(everything)
        await until(lambda: len(line.typed) == len(everything))
        assert line.typed == everything
        await client.close()
        await until(lambda: not line.hub.who())

    run(tmp_path, [line], test)


def test_a_program_that_types_no_more_goes_on_reading(tmp_path: Path) -> None:
    line = Line("rack1")

    async def test(office: Office, path: Path) -> None:  # noqa: ARG001
        client = await Client(path).open()
        await client.ask("attach", console="rack1")
        client.writer.write(b"x")
        client.writer.write_eof()
        await until(lambda: line.typed == b"x")
        await asyncio.sleep(1.2)
        line.say(b"still here")
        assert await client.reader.readexactly(10) == b"still here"
        await client.close()
        await until(lambda: not line.hub.who())

    run(tmp_path, [line], test)


def test_a_person_attaches(tmp_path: Path) -> None:
    line = Line("rack1")

    async def test(office: Office, path: Path) -> None:  # noqa: ARG001
        client = await Client(path).open()
        await client.ask("attach", console="rack1", interactive=True, mode="read")
        assert b"nobody writes" in await client.reader.readuntil(b"]\r\n")
        client.writer.write(b"\x05ca")
        assert f"{ME} writes now".encode() in await client.reader.readuntil(b"]\r\n")
        client.writer.write(b"hello\x05c.")
        assert await client.reader.read() == b""
        assert line.typed == b"hello"
        await client.close()

    run(tmp_path, [line], test)


def test_sending_while_another_one_writes(tmp_path: Path) -> None:
    line = Line("rack1")

    async def test(office: Office, path: Path) -> None:
        holder = line.hub.attach("vera", mode=Mode.WRITE, now=0.0)
        client = await Client(path).open()
        sent = {"console": "rack1", "data": base64.b64encode(b"x").decode()}
        assert (await client.ask("send", **sent))["error"] == "vera writes to rack1: nothing was sent"
        assert (await client.ask("break", console="rack1"))[
            "error"
        ] == "vera writes to rack1: nothing was sent"
        assert not line.typed
        assert not line.breaks
        assert line.hub.holder is holder
        assert await client.ask("send", **sent, force=True) == {"sent": 1}
        assert line.typed == b"x"
        await client.close()
        assert (ME, "send") in await office.refusals()
        assert any(each["action"] == "force" for each in await office.entries())

    run(tmp_path, [line], test)


def test_sending_to_a_device_that_does_not_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line("rack1")
    monkeypatch.setattr("minerva.console.fronts.desk.SEND_SECONDS", 0.1)

    async def test(office: Office, path: Path) -> None:  # noqa: ARG001
        line.takes = False
        client = await Client(path).open()
        sent = {"console": "rack1", "data": base64.b64encode(b"x" * 100_000).decode()}
        assert (await client.ask("send", **sent))["error"] == "rack1 does not take what it is sent"
        line.hub.upstream_down("unplugged", 0.0)
        assert "rack1 is not connected" in (await client.ask("send", **sent))["error"]
        await client.close()

    run(tmp_path, [line], test)


def test_saying_something(tmp_path: Path) -> None:
    lines = [Line("rack1"), Line("rack2")]

    async def test(office: Office, path: Path) -> None:  # noqa: ARG001
        clients = []
        for line in lines:
            client = await Client(path).open()
            await client.ask("attach", console=line.name, interactive=True)
            await client.reader.readuntil(b"]\r\n")
            clients.append(client)
        speaker = await Client(path).open()
        await speaker.ask("say", text="power cut at noon\x1b[2J")
        for client in clients:
            said = await client.reader.readuntil(b"]\r\n")
            if b"granted" in said:
                said = await client.reader.readuntil(b"]\r\n")
            assert said == f"\r\n[{ME}: power cut at noon\\u001b[2J]\r\n".encode()
        for client in (*clients, speaker):
            await client.close()

    run(tmp_path, lines, test)


def test_a_client_that_does_not_read_stalls_nobody(tmp_path: Path) -> None:
    line = Line("rack1")

    async def test(office: Office, path: Path) -> None:  # noqa: ARG001
        slow = await Client(path).open()
        await slow.ask("attach", console="rack1", interactive=True, mode="read")
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(400):
            line.say(b"x" * 16_384)
            await asyncio.sleep(0)
        (who,) = line.hub.who()
        assert who.unread > 4 << 20
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert b"bytes lost" in await asyncio.wait_for(_read_until(slow.reader, b"bytes lost"), 10)
        await slow.close()

    run(tmp_path, [line], test)


async def _read_until(reader: asyncio.StreamReader, text: bytes) -> bytes:
    found = b""
    while text not in found and (data := await reader.read(65_536)):
        found = found[-100:] + data
    return found


def test_tokens(tmp_path: Path) -> None:
    async def test(office: Office, path: Path) -> None:
        client = await Client(path).open()
        made = await client.ask("token", role="write", ports=["rack*"], days=1)
        (listed,) = (await client.ask("tokens"))["tokens"]
        assert listed["number"] == made["number"]
        assert listed["ports"] == ["rack*"]
        assert "digest" not in listed
        assert office.tokens.use(made["token"], "", time.time()).grants is not None
        other = await client.ask("token", role="view")
        assert await client.ask("revoke", number=other["number"]) == {}
        assert await client.ask("tokens") == {"tokens": []}
        await client.close()
        assert made["token"] not in office.config.audit_file.read_text()

    run(tmp_path, [], test)


def test_an_answer_reaches_one_who_writes_no_more(tmp_path: Path) -> None:
    async def test(office: Office, path: Path) -> None:  # noqa: ARG001
        client = await Client(path).open()
        client.writer.write(b'{"command": "power", "console": "rack1", "action": "off"}\n')
        client.writer.write_eof()
        assert b"accepted" in await client.reader.read()
        await client.close()

    run(tmp_path, [Line("rack1")], test)


def test_one_who_asks_and_takes_no_answers_is_not_answered_for_ever(tmp_path: Path) -> None:
    async def test(_: Office, path: Path) -> None:
        client = await Client(path).open()
        request = json.dumps({"command": "x" * 1000}).encode() + b"\n"
        client.writer.transport.set_write_buffer_limits(0)
        sent = 0
        with contextlib.suppress(TimeoutError, ConnectionError):
            while sent < 10_000:
                async with asyncio.timeout(1):
                    client.writer.write(request)
                    await client.writer.drain()
                sent += 1
        # It is read no further, or was sent away; what it was answered is no more than the socket takes.
        assert sent < 2000
        client.writer.transport.abort()
        other = await Client(path).open()
        assert "consoles" in await other.ask("list")
        await other.close()

    run(tmp_path, [Line("rack1")], test)


def test_connections_are_limited(tmp_path: Path) -> None:
    async def test(office: Office, path: Path) -> None:  # noqa: ARG001
        clients = [await Client(path).open() for _ in range(MAX_CONNECTIONS)]
        assert "consoles" in await clients[-1].ask("list")
        late = await Client(path).open()
        with pytest.raises((OSError, ValueError)):
            await late.ask("list")
        late.writer.close()
        await clients[0].close()
        await asyncio.sleep(0.05)
        again = await Client(path).open()
        assert "consoles" in await again.ask("list")
        for client in (*clients[1:], again):
            await client.close()

    run(tmp_path, [], test)


def test_the_socket_is_for_root_and_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "console.sock"
    before = os.umask(0)
    try:
        first = open_control_socket(path)
    finally:
        os.umask(before)
    try:
        grp.getgrnam("minerva")
    except KeyError:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="a console server runs already"):
        open_control_socket(path)
    first.close()
    fake = SimpleNamespace(getgrnam=lambda name: SimpleNamespace(gr_gid=os.getgid(), name=name))
    monkeypatch.setattr(local_socket, "grp", fake)
    open_control_socket(path).close()  # in place of what is left of the first
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with pytest.raises(UsageError, match="cannot make the socket"):
        open_control_socket(tmp_path / "nowhere" / "console.sock")


@pytest.mark.skipif(os.getuid() != 0, reason="another user takes root")
def test_the_kernel_says_who_it_is(tmp_path: Path) -> None:
    line = Line("rack1")
    path = tmp_path / "console.sock"
    program = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(54321)\n"
        "try: s.connect(sys.argv[1])\n"
        "except PermissionError: sys.exit(3)\n"
        's.sendall(b\'{"command": "break", "console": "rack1"}\\n\'); print(s.recv(1000))\n'
    )

    async def test(office: Office, _path: Path) -> None:
        for parent in [tmp_path, *tmp_path.parents][:-1]:
            if not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o001)

        async def other() -> tuple[int, str]:
            found = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", program, str(path)],
                capture_output=True,
                text=True,
                check=False,
            )
            return found.returncode, found.stdout

        assert (await other())[0] == 3
        path.chmod(0o666)  # as if of the group
        assert (await other())[0] == 0
        entry = (await office.entries())[-1]
        assert entry["user"] == "uid-54321"
        assert entry["how"] == "uid 54321"

    run(tmp_path, [line], test)
