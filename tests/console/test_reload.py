"""The configuration is read again: what has to change does, and nobody who is attached is disturbed."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest

from minerva.console import client
from minerva.console.client import ConsoleClientError
from minerva.console.config import Web
from minerva.console.fronts.web_tls import Certificate
from minerva.console.listeners import Connections, Front, ListenError, Listeners, discard
from tests.console.serving import PASSWORD, Serving, echo, free_ports, until
from tests.console.strangers import until as soon
from tests.console.test_server import attach, read_until
from tests.console.test_web import Page, seen


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    return Serving(tmp_path)


def raw(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.settimeout(10)
    return sock


def at_terminal(serving: Serving, console: str, mode: str = "read") -> socket.socket:
    """Attach as a person does, who is shown notices."""
    sock = client.connect(serving.run_dir / "console.sock")
    client.ask(sock, {"command": "attach", "console": console, "mode": mode, "interactive": True})
    return sock


def is_shut(port: int, address: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((address, port)).close()
    except ConnectionRefusedError:
        return True
    return False


def echoes(sock: socket.socket, text: bytes) -> None:
    sock.sendall(text)
    read_until(sock, text)


def test_settings_that_are_not_the_lines_change_in_place(serving: Serving) -> None:
    """The lease, the connection to the device and a tool's connection all survive."""
    old, new, ssh, telnet = free_ports(4)
    serving.ports["echo"] |= {"raw_port": old, "tools_user": "mate"}
    serving.extra = '[console.users.mate]\nview = ["*"]\n'
    with serving:
        process = serving.consoles()["echo"]["device"]
        with attach(serving, "echo", "write") as sock, raw(old) as tool:
            until(lambda: serving.consoles()["echo"]["attached"] == 2, "the tool is attached")
            echoes(sock, b"x" * 5000)
            serving.ports["echo"] |= {
                "description": "says it again",
                "ring": 4096,
                "break_ms": 100,
                "input_rate": 1_000_000,
                "line_delay_ms": 1,
                "raw_port": new,
                "ssh_port": ssh,
                "telnet_port": telnet,
                "tools_user": "op",
            }
            serving.extra += '[console.ports.echo.power]\ntype = "command"\nstatus = ["echo", "on"]\n'
            serving.write()
            found = serving.ask("reload")
            assert found == {"added": [], "removed": [], "changed": ["echo"], "reconnected": []}
            assert is_shut(old)
            echoes(sock, b"still here\n")
            read_until(tool, b"still here\n")
            with raw(new) as other, raw(telnet), raw(ssh) as shell:
                read_until(shell, b"SSH-2.0-")
                until(lambda: serving.consoles()["echo"]["attached"] == 4, "all are attached")
                users = [who["user"] for who in serving.ask("who", console="echo")["attached"]]
                assert users[1:] == ["mate", "op", "op"]
                echoes(sock, b"all hear it\n")
                for each in (tool, other):
                    read_until(each, b"all hear it\n")
            assert serving.ask("power", console="echo", action="status")["said"].endswith("is on")
            with attach(serving, "echo") as late:
                assert late
            after = serving.consoles()["echo"]
        assert (after["times_up"], after["attempts"], after["device"]) == (1, 1, process)
        assert after["description"] == "says it again"


def test_another_line_keeps_those_who_are_attached(serving: Serving) -> None:
    """They are told; what they had replayed is still there, and whoever wrote writes on."""
    with serving:
        with at_terminal(serving, "echo", "write") as writer, at_terminal(serving, "echo") as reader:
            echoes(writer, b"before")
            read_until(reader, b"before")
            ready = serving.directory / "ready again"
            serving.ports["echo"]["command"] = echo(ready)
            serving.write()
            assert serving.ask("reload")["reconnected"] == ["echo"]
            for each in (writer, reader):
                shown = read_until(each, b"the console is up")
                assert b"the console is down: the configuration says another line now" in shown
            until(ready.exists, "the other device listens")
            echoes(writer, b"after")
            read_until(reader, b"after")
        found = serving.consoles()["echo"]
        assert (found["times_up"], found["attached"]) == (2, 0)
        # And so does another kind of line, whatever was between them.
        with (
            at_terminal(serving, "echo", "write") as writer,
            socket.create_server(("127.0.0.1", 0)) as device,
        ):
            serving.ports["echo"] = {"type": "tcp", "host": "127.0.0.1", "port": device.getsockname()[1]}
            serving.write()
            serving.ask("reload")
            device.settimeout(10)
            line, _ = device.accept()
            with line:
                read_until(writer, b"the console is up")
                writer.sendall(b"hello")
                read_until(line, b"hello")
                line.sendall(b"greetings")
                read_until(writer, b"greetings")


def test_two_consoles_swap_their_devices(serving: Serving) -> None:
    """What is given up is given up before anything is taken."""
    devices = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [device.getsockname()[1] for device in devices]
    serving.ports = {
        name: {"type": "tcp", "host": "127.0.0.1", "port": port}
        for name, port in zip(("a", "b"), ports, strict=True)
    }
    with serving:
        a, b = serving.ports["a"], serving.ports["b"]
        serving.ports = {"a": b, "b": a}
        serving.write()
        assert serving.ask("reload")["reconnected"] == ["a", "b"]
        until(
            lambda: all(item["state"] == "Connected" for item in serving.consoles().values()), "both are up"
        )
        assert [item["times_up"] for item in serving.consoles().values()] == [2, 2]
    for device in devices:
        device.close()


def test_fronts_move_and_leave_sessions_alone(serving: Serving) -> None:
    """SSH and the web page go elsewhere, announcing is switched off: nobody who is here notices."""
    asyncssh = pytest.importorskip("asyncssh")

    async def scenario() -> None:
        connection = await asyncssh.connect(
            "127.0.0.1",
            serving.ssh_port,
            username="op:echo",
            password=PASSWORD,
            known_hosts=None,
            config=None,
        )
        process = await connection.create_process(encoding=None)

        async def echoed(text: bytes) -> None:
            process.stdin.write(text)
            async with asyncio.timeout(10):
                seen = b""
                while text not in seen:
                    seen += await process.stdout.read(100)

        await echoed(b"one")
        page = await asyncio.to_thread(Page(serving).login)
        terminal = await asyncio.to_thread(page.attach("echo").__enter__)
        old = serving.ssh_port, serving.web_port
        serving.ssh_port, serving.web_port = free_ports(2)
        serving.write()
        text = serving.config.read_text()
        serving.config.write_text(
            text.replace('listen = ["127.0.0.1"]', 'listen = ["0.0.0.0"]\nannounce = false')
        )
        assert (await asyncio.to_thread(serving.ask, "reload"))["changed"] == []
        assert [is_shut(port) for port in old] == [True, True]
        await echoed(b"two")
        await asyncio.to_thread(seen, terminal, "two")
        # Who comes now comes by the new ones; who was logged in on the page still is.
        page.host = f"127.0.0.1:{serving.web_port}"
        assert {item["name"] for item in (await asyncio.to_thread(page.get, "/api/consoles"))["consoles"]}
        # Back again while old connections are still there, and only on one address of all.
        serving.ssh_port = old[0]
        serving.write()
        await asyncio.to_thread(serving.ask, "reload")
        with raw(old[0]) as sock:
            read_until(sock, b"SSH-2.0-")
        await echoed(b"three")
        assert is_shut(serving.web_port, "127.0.0.2")
        # Without SSH, nobody comes any more; whoever is here may stay.
        text = serving.config.read_text()
        serving.config.write_text(text.replace("ssh = {port", "ssh = {enabled = false, port"))
        await asyncio.to_thread(serving.ask, "reload")
        assert is_shut(old[0])
        await echoed(b"four")
        assert all(item["what"] != "ssh" for item in serving.ask("status")["listening"])
        await asyncio.to_thread(terminal.close)
        connection.close()
        await connection.wait_closed()

    with serving:
        asyncio.run(scenario())
        assert serving.stop() == 0
    assert "Traceback" not in serving.log.read_text()


def test_all_or_nothing(serving: Serving) -> None:
    """A port that another program has, a certificate that is none: one sentence, and all is as before."""
    with serving, socket.create_server(("127.0.0.1", 0)) as taken:
        before = serving.ask("status")
        port = taken.getsockname()[1]
        moved = free_ports(1)[0]
        serving.ports["sh"]["description"] = "changed"
        serving.ports["new"] = {"type": "process", "command": ["cat"]}
        serving.ports["echo"] |= {"command": ["cat"], "raw_port": moved, "tools_user": "op"}
        serving.ssh_port, old = port, serving.ssh_port
        serving.write()
        with attach(serving, "echo", "write") as sock:
            with pytest.raises(
                ConsoleClientError, match=f"cannot listen on 127.0.0.1 port {port}: Address alr"
            ):
                serving.ask("reload")
            assert is_shut(moved)
            serving.ssh_port = old
            serving.write()
            good = serving.config.read_text()
            bad = serving.directory / "bad.pem"
            bad.write_text("none")
            serving.config.write_text(
                good.replace("web = {", f'web = {{certificate = "{bad}", key = "{bad}", ')
            )
            with pytest.raises(ConsoleClientError, match=r"cannot use .*bad\.pem"):
                serving.ask("reload")
            serving.config.write_text(good + '[console.records]\ncompress = "zstd"\n')
            if sys.version_info < (3, 14):
                with pytest.raises(ConsoleClientError, match="zstd needs"):
                    serving.ask("reload")
            echoes(sock, b"as before")
        after = serving.ask("status")
        for status in (before, after):
            for console in status["consoles"]:
                del console["bytes_in"], console["bytes_out"]
        assert after["consoles"] == before["consoles"]
        assert after["listening"] == before["listening"]
        # And what was wrong can be made good.
        serving.write()
        found = serving.ask("reload")
        assert (found["added"], found["reconnected"]) == (["new"], ["echo"])


def served_certificate(port: int) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with raw(port) as sock, context.wrap_socket(sock) as wrapped:
        return wrapped.getpeercert(True) or b""


def test_another_certificate_of_the_web_page(serving: Serving) -> None:
    """Also if only the files have changed, as after a renewal; logins stay."""
    with serving:
        page = Page(serving).login()
        first = served_certificate(serving.web_port)
        files = serving.directory / "own"
        files.mkdir()
        Certificate(Web(), files).files()
        serving.write()
        text = serving.config.read_text()
        pem = files / "web.pem"
        serving.config.write_text(text.replace("web = {", f'web = {{certificate = "{pem}", key = "{pem}", '))
        with page.attach("sh") as terminal:
            serving.ask("reload")
            second = served_certificate(serving.web_port)
            pem.unlink()
            Certificate(Web(), files).files()
            serving.ask("reload")
            third = served_certificate(serving.web_port)
            assert len({first, second, third}) == 3
            assert page.get("/api/consoles")["user"] == "op"
            serving.ask("send", console="sh", data="ZWNobyBoaXRoZXINCg==")
            seen(terminal, "hither")


def test_a_tool_whose_user_loses_its_rights_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standing tools have the rights of the user they came as, and not for longer."""
    from minerva.console.fronts import telnet as front
    from tests.console.test_runner import Device
    from tests.console.test_tool_front import tools

    monkeypatch.setattr(front, "REVIEW_SECONDS", 0.05)
    rights = {"attach", "view", "write"}

    async def scenario() -> None:
        device = Device()
        async with tools(device, telnet=False, may=lambda _, what: what in rights) as port:
            reader, writer = await port.connect()
            writer.write(b"one")
            await soon(lambda: device.typed == b"one", "it writes")
            rights.discard("write")
            await soon(lambda: port.hub.holder is None, "it does not have the lease any more")
            writer.write(b"two")
            device.says.put_nowait(b"reads on")
            assert await reader.readexactly(8) == b"reads on"
            rights.add("write")
            await soon(lambda: port.hub.holder is not None, "it has the lease again")
            writer.write(b"three")
            await soon(lambda: device.typed == b"onethree", "and writes")
            rights.clear()
            assert await reader.read() == b""
            await soon(lambda: port.hub.who() == (), "it is detached")
            writer.close()

    asyncio.run(scenario())


# -- the listeners by themselves


async def _serve(name: bytes, sock: socket.socket, connections: Connections) -> None:
    sock.setblocking(False)
    loop = asyncio.get_running_loop()

    async def one(peer: socket.socket) -> None:
        with peer:
            await loop.sock_sendall(peer, name)
            await loop.sock_recv(peer, 1)

    while True:
        peer, _ = await loop.sock_accept(sock)
        connections.add(loop.create_task(one(peer)))


def front(name: str, port: int, settings: bytes = b"") -> Front:
    async def serve(sock: socket.socket, connections: Connections) -> None:
        await _serve(name.encode(), sock, connections)

    return Front(name, port, serve, settings)


async def greeted(port: int, name: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.readexactly(len(name)) == name
    return reader, writer


def test_two_fronts_swap_their_ports(tmp_path: Path) -> None:
    """Neither port is ever shut; a node that is not there is no reason to refuse."""

    async def scenario() -> None:
        listeners = Listeners(tmp_path)
        one, two = free_ports(2)
        where = ["127.0.0.1"]
        fronts = [front("a", one), front("b", two)]
        await listeners.use(where, fronts, await listeners.open(where, [one, two]))
        reader, writer = await greeted(one, b"a")
        swapped = [front("b", one), front("a", two)]
        assert await listeners.open(where, [one, two]) == {}
        await listeners.use(where, swapped, {})
        others = [await greeted(one, b"b"), await greeted(two, b"a")]
        assert await listeners.open(["acp", *where], [one, two]) == {}
        assert [place.what for place in listeners.places] == ["a", "b"][::-1]
        await listeners.use(where, [], {})
        assert is_shut(one)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.2)
        for _, each in others:
            each.close()
        await listeners.close()
        assert await reader.read(1) == b""
        writer.close()

    asyncio.run(scenario())


def test_what_was_opened_in_vain_is_closed() -> None:
    async def scenario() -> None:
        listeners = Listeners()
        one = free_ports(1)[0]
        with socket.create_server(("127.0.0.1", 0)) as taken:
            ports = [one, taken.getsockname()[1]]
            with pytest.raises(ListenError, match="Address already in use"):
                await listeners.open(["127.0.0.1"], ports)
        assert is_shut(one)
        opened = await listeners.open(["127.0.0.1"], [one])
        assert not is_shut(one)
        discard(opened)
        assert is_shut(one)
        with pytest.raises(ListenError, match=r"203\.0\.113\.78 port"):
            await listeners.open(["203.0.113.78"], [one])

    asyncio.run(scenario())


def test_an_address_that_the_machine_has_lost_is_no_reason_to_refuse() -> None:
    """Who repairs a machine must be able to change something else; a new address must be right."""

    async def scenario() -> None:
        listeners = Listeners()
        one, two = free_ports(2)
        where = ["203.0.113.78", "127.0.0.1"]
        await listeners.use(where, [front("a", one)], {})
        opened = await listeners.open(where, [one, two])
        assert list(opened) == [("127.0.0.1", two)]
        with pytest.raises(ListenError, match=r"203\.0\.113\.79 port .*: Cannot assign requested address"):
            await listeners.open(["203.0.113.79"], [one])
        await listeners.use(where, [front("a", one), front("b", two)], opened)
        _, writer = await greeted(two, b"b")
        writer.close()
        await asyncio.sleep(0.1)
        assert [bool(place.problem) for place in listeners.places] == [True, False, True, False]
        await listeners.close()

    asyncio.run(scenario())


def test_from_one_address_to_all() -> None:
    """Our own sockets share the port while they change places; another console server cannot have it."""

    async def scenario() -> None:
        listeners = Listeners()
        port = free_ports(1)[0]
        fronts = [front("a", port)]
        await listeners.use(["127.0.0.1"], fronts, await listeners.open(["127.0.0.1"], [port]))
        reader, writer = await greeted(port, b"a")
        await listeners.use(["0.0.0.0"], fronts, await listeners.open(["0.0.0.0"], [port]))
        places: list[Any] = listeners.places
        assert [place.address for place in places] == ["0.0.0.0"]
        for each in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(ListenError, match="already in use"):
                await Listeners().open([each], [port])
        other_reader, other = await asyncio.open_connection("127.0.0.2", port)
        assert await other_reader.readexactly(1) == b"a"
        other.close()
        writer.close()
        await listeners.close()
        assert await reader.read(1) == b""

    asyncio.run(scenario())
