"""Ports of TCP for tools: pyserial, ser2net and socat as clients."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

import serial
from minerva.console.backends.base import BackendError, Capability, LineSettings, Modem, Unsupported
from minerva.console.backends.telnet import Rfc2217Backend
from minerva.console.events import BreakAsked, Typed
from minerva.console.fronts import telnet as front
from minerva.console.fronts.telnet import ToolFront
from minerva.console.hub import RING_SIZE, Hub, Mode, State
from minerva.console.listeners import Connections
from minerva.console.port_config import Rfc2217Port
from minerva.console.runner import Runner
from minerva.console.telnet import BINARY, BRK, COM_PORT, DO, ECHO, IAC, SB, SE, SUPPRESS_GO_AHEAD, WILL
from minerva.core.backoff import Backoff
from tests.console.strangers import free_port, program, read_exactly, running, until
from tests.console.test_runner import Device, Notes

NOW = 1000.0
EVERY_BYTE = bytes(range(256))
GREETING = bytes([IAC, WILL, ECHO, IAC, WILL, SUPPRESS_GO_AHEAD, IAC, DO, SUPPRESS_GO_AHEAD]) + bytes(
    [IAC, WILL, BINARY, IAC, DO, BINARY]
)


class Line(Device):
    """A device on a serial line; of speeds above a million it does none."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = LineSettings()
        self.dtr = self.rts = True
        self.state = Modem.CTS | Modem.CD

    @property
    def capabilities(self) -> Capability:
        return Capability.BREAK | Capability.LINE

    async def configure(self, settings: LineSettings) -> LineSettings:
        if settings.speed > 1_000_000:
            raise Unsupported("too fast")
        self.heard.append(float(settings.speed))
        self.settings = settings
        return settings

    async def set_lines(self, *, dtr: bool | None = None, rts: bool | None = None) -> None:
        self.dtr = self.dtr if dtr is None else dtr
        self.rts = self.rts if rts is None else rts

    def lines(self) -> tuple[bool, bool]:
        return self.dtr, self.rts

    async def modem(self) -> Modem:
        return self.state


class Port:
    """A console and one port of it."""

    def __init__(self, device: Device, runner: Runner, number: int, notes: Notes) -> None:
        self.device = device
        self.runner = runner
        self.hub = runner.hub
        self.number = number
        self.notes = notes

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect as a tool."""
        return await asyncio.open_connection("127.0.0.1", self.number)


@asynccontextmanager
async def tools(
    device: Device, *, telnet: bool, may: Callable[[str, str], bool] = lambda *_: True, wait: float = 0.01
) -> AsyncIterator[Port]:
    """A console with a port for tools."""
    notes = Notes()
    runner = Runner(Hub("lab"), device, [notes], backoff=Backoff(wait, wait))
    runner.start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = ToolFront(runner, user=lambda: "tools", telnet=telnet, may=may, break_seconds=lambda: 0.3)
        connections = Connections()
        task = asyncio.ensure_future(served.serve(listener, connections))
        try:
            await until(lambda: runner.hub.state is State.CONNECTED, "the console is up")
            yield Port(device, runner, listener.getsockname()[1], notes)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await connections.close()
            await runner.stop()
            assert runner.hub.who() == ()


async def leave(writer: asyncio.StreamWriter) -> None:
    """Close a connection."""
    writer.close()
    await writer.wait_closed()


# -- the bytes alone


def test_socat_on_a_raw_port(tmp_path: Path) -> None:
    socat = program("socat")
    (tmp_path / "in").write_bytes(EVERY_BYTE * 1000)

    async def scenario() -> None:
        device = Device()
        async with tools(device, telnet=False) as port:
            command = (
                socat,
                "-t",
                "5",
                f"file:{tmp_path}/in,ignoreeof!!create:{tmp_path}/out",
                f"tcp:127.0.0.1:{port.number}",
            )
            async with running(*command):
                await until(lambda: len(port.hub.who()) == 1, "it is attached")
                for _ in range(50):
                    device.says.put_nowait(EVERY_BYTE * 20)
                await until(lambda: len(device.typed) == 256_000, "all has been typed")
                out = tmp_path / "out"
                await until(lambda: out.exists() and out.stat().st_size == 256_000, "all has been said")
                assert device.typed == out.read_bytes() == EVERY_BYTE * 1000
                (who,) = port.hub.who()
                assert (who.user, who.source, who.holder) == ("tools", "tcp 127.0.0.1", True)

    asyncio.run(scenario())


def test_a_second_tool_waits_until_the_first_has_left_and_loses_nothing() -> None:
    async def scenario() -> None:
        device = Device()
        async with tools(device, telnet=False) as port:
            _, first = await port.connect()
            await until(lambda: len(port.hub.who()) == 1, "the first is attached")
            reader, second = await port.connect()
            second.write(b"second")
            await asyncio.sleep(0.05)
            device.says.put_nowait(b"for both")
            assert await reader.readexactly(8) == b"for both"
            first.write(b"first ")
            await until(lambda: device.typed == b"first ", "the first types")
            await leave(first)
            await until(lambda: device.typed == b"first second", "then the second")
            await leave(second)
            await until(lambda: port.hub.who() == (), "both are gone")

    asyncio.run(scenario())


def test_who_may_only_look_types_nothing() -> None:
    async def scenario() -> None:
        device = Device()
        async with tools(device, telnet=False, may=lambda _, action: action != "write") as port:
            reader, writer = await port.connect()
            writer.write(b"typed" * 1000)
            await until(lambda: len(port.hub.who()) == 1, "it is attached")
            device.says.put_nowait(b"x")
            assert await reader.readexactly(1) == b"x"
            await asyncio.sleep(0.05)
            assert device.typed == b""
            assert not any(isinstance(event, Typed) for event in port.notes.events)
            await leave(writer)

    asyncio.run(scenario())


def test_who_may_not_even_look_is_sent_away() -> None:
    async def scenario() -> None:
        async with tools(Device(), telnet=False, may=lambda *_: False) as port:
            reader, writer = await port.connect()
            assert await reader.read() == b""
            await leave(writer)

    asyncio.run(scenario())


def test_there_is_a_limit_to_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "MAX_OF_SOURCE", 2)

    async def scenario() -> None:
        async with tools(Device(), telnet=False) as port:
            writers = [(await port.connect())[1] for _ in range(2)]
            await until(lambda: len(port.hub.who()) == 2, "two are attached")
            reader, writer = await port.connect()
            assert await reader.read() == b""
            for each in (*writers, writer):
                await leave(each)

    asyncio.run(scenario())


def test_one_who_comes_all_the_time_is_heard_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(front, "BURST", 5)

    def may(_: str, what: str) -> bool:
        asked.append(what)
        return False

    async def scenario() -> None:
        async with tools(Device(), telnet=False, may=may) as port:
            for _ in range(100):
                reader, writer = await port.connect()
                with suppress(ConnectionError):
                    assert await reader.read() == b""
                await leave(writer)

    asyncio.run(scenario())
    assert 5 <= asked.count("attach") < 20
    assert caplog.text.count("is refused") == asked.count("attach")


def test_a_stranger_who_asks_for_breaks_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        async with tools(Device(), telnet=True, may=lambda _, what: what != "write") as port:
            _, writer = await port.connect()
            writer.write(b"\xff\xf3" * 10_000 + b"end")
            await writer.drain()
            await asyncio.sleep(0.5)
            await leave(writer)

    asyncio.run(scenario())
    assert len(caplog.records) < 20


def test_what_is_typed_while_the_device_is_away_is_as_on_an_open_line() -> None:
    async def scenario() -> None:
        device = Device()
        async with tools(device, telnet=False, wait=0.3) as port:
            reader, writer = await port.connect()
            await until(lambda: len(port.hub.who()) == 1, "it is attached")
            device.says.put_nowait(b"")
            await until(lambda: port.hub.state is State.DOWN, "it is down")
            writer.write(b"lost")
            await until(lambda: port.hub.state is State.IN_USE, "it is up")
            device.says.put_nowait(b"back")
            assert await reader.readexactly(4) == b"back"
            writer.write(b"typed")
            await until(lambda: device.typed == b"typed", "it goes on")
            await leave(writer)

    asyncio.run(scenario())


def test_a_tool_that_does_not_read_holds_up_nobody() -> None:
    async def scenario() -> None:
        device = Device()
        async with tools(device, telnet=False) as port:
            _, stopped = await port.connect()
            reader, writer = await port.connect()
            await until(lambda: len(port.hub.who()) == 2, "both are attached")
            heard = 0
            for _ in range(400):
                device.says.put_nowait(b"x" * 50_000)
                heard += len(await reader.readexactly(50_000))
            assert heard == 20_000_000
            assert port.hub.who()[0].unread > RING_SIZE
            await leave(stopped)
            await leave(writer)

    asyncio.run(scenario())


def test_tools_are_disconnected_when_the_console_is_removed() -> None:
    async def scenario() -> None:
        async with tools(Device(), telnet=False) as port:
            reader, writer = await port.connect()
            await until(lambda: len(port.hub.who()) == 1, "it is attached")
            await port.runner.stop()
            assert await reader.read() == b""
            await leave(writer)

    asyncio.run(scenario())


# -- telnet


def test_telnet_alone() -> None:
    async def scenario() -> None:
        device = Device()
        async with tools(device, telnet=True) as port:
            reader, writer = await port.connect()
            assert await reader.readexactly(len(GREETING)) == GREETING
            writer.write(b"ls\r\0\xff\xff" + bytes([IAC, BRK]) + b"x")
            await until(lambda: device.typed == b"ls\r\xffx", "it is typed")
            assert device.heard == [b"ls\r\xff", 0.3, b"x"]
            device.says.put_nowait(b"a\r\xff")
            assert await reader.readexactly(5) == b"a\r\0\xff\xff"
            await leave(writer)

    asyncio.run(scenario())


@pytest.mark.filterwarnings("ignore:set(Daemon|Name):DeprecationWarning")  # pyserial's
def test_pyserial_on_a_serial_line() -> None:
    device = Line()

    def tool(number: int) -> None:
        with serial.serial_for_url(f"rfc2217://127.0.0.1:{number}", baudrate=9600, timeout=5) as port:
            port.write(EVERY_BYTE * 4)
            assert port.read(1024) == EVERY_BYTE * 4
            assert (port.cts, port.dsr, port.cd) == (True, False, True)
            assert device.settings.speed == 9600
            port.baudrate = 57_600
            port.bytesize, port.parity, port.stopbits = 7, "E", 2
            assert str(device.settings) == "57600 7E2"
            port.rtscts = True
            assert str(device.settings) == "57600 7E2 rtscts"
            port.dtr = False
            assert not device.dtr
            assert device.rts
            port.send_break(0.05)

    async def scenario() -> None:
        async with tools(device, telnet=True) as port:
            working = asyncio.create_task(asyncio.to_thread(tool, port.number))
            await until(lambda: len(device.typed) == 1024, "it types")
            device.says.put_nowait(device.typed)
            await working
            await until(lambda: port.hub.who() == (), "it is gone")
            # What the tool has set is undone.
            assert device.settings == LineSettings()
            (asked,) = [event for event in port.notes.events if isinstance(event, BreakAsked)]
            assert 0.05 <= asked.seconds < 2

    asyncio.run(scenario())


def test_what_a_tool_has_set_is_not_undone_on_another_line() -> None:
    """The console is reached by another line since, whose settings are the configuration's."""

    async def scenario() -> None:
        before, after = Line(), Line()
        async with tools(before, telnet=True) as port:
            client = Rfc2217Backend(Rfc2217Port(host="127.0.0.1", port=port.number, speed=9600))
            await client.open()
            await until(lambda: before.settings.speed == 9600, "the tool has set the speed")
            await port.runner.pause("another line")
            port.runner.backend = after
            port.runner.start()
            await until(lambda: port.hub.state is State.IN_USE, "the other line is up")
            await client.close()
            await until(lambda: port.hub.who() == (), "it is gone")
            assert (before.settings.speed, after.heard) == (9600, [])

    asyncio.run(scenario())


@pytest.mark.filterwarnings("ignore:set(Daemon|Name):DeprecationWarning")  # pyserial's
def test_pyserial_on_what_has_no_speed() -> None:
    def tool(number: int) -> None:
        with serial.serial_for_url(f"rfc2217://127.0.0.1:{number}", baudrate=9600, timeout=5) as port:
            port.baudrate = 4_000_000
            assert port.cts
            assert port.cd
            port.write(b"typed")

    async def scenario() -> None:
        device = Device()
        async with tools(device, telnet=True) as port:
            await asyncio.to_thread(tool, port.number)
            await until(lambda: device.typed == b"typed", "it types")

    asyncio.run(scenario())


@asynccontextmanager
async def ser2net_client(directory: Path, target: int, accepter: str) -> AsyncIterator[int]:
    """ser2net with a port of its own that leads to one of ours."""
    port = free_port()
    configuration = directory / "ser2net.yaml"
    configuration.write_text(
        f"connection: &tool\n  accepter: {accepter},127.0.0.1,{port}\n"
        f"  connector: telnet(rfc2217),tcp,127.0.0.1,{target}\n"
    )
    async with running(
        program("ser2net"), "-n", "-d", "-c", str(configuration), "-P", str(directory / "pid")
    ) as process:
        # Not by a connection, which would be a tool.
        await asyncio.sleep(1)
        yield port
        process.kill()
        await process.wait()


def test_ser2net_as_the_client(tmp_path: Path) -> None:
    program("ser2net")

    async def scenario() -> None:
        device = Line()
        async with tools(device, telnet=True) as port, ser2net_client(tmp_path, port.number, "tcp") as number:
            reader, writer = await asyncio.open_connection("127.0.0.1", number)
            await until(lambda: len(port.hub.who()) == 1, "it is attached")
            await asyncio.sleep(0.2)
            data = os.urandom(10_000)
            writer.write(data)
            await until(lambda: len(device.typed) >= len(data), "it types")
            assert device.typed == data
            device.says.put_nowait(data)
            assert await reader.readexactly(len(data)) == data
            await leave(writer)
            await until(lambda: port.hub.who() == (), "it is gone")

    asyncio.run(scenario())


def test_our_client_on_our_server() -> None:
    async def scenario() -> None:
        device = Line()
        async with tools(device, telnet=True) as port:
            settings = Rfc2217Port(host="127.0.0.1", port=port.number, speed=19_200, framing="7O1")
            client = Rfc2217Backend(settings)
            await client.open()
            assert str(client.settings) == str(device.settings) == "19200 7O1"
            await client.write(EVERY_BYTE)
            await until(lambda: device.typed == EVERY_BYTE, "it types")
            device.says.put_nowait(EVERY_BYTE)
            assert await read_exactly(client, 256) == EVERY_BYTE
            reading = asyncio.ensure_future(client.read())
            # What the server does not do is told.
            assert (await client.configure(replace(client.settings, speed=2_000_000))).speed == 19_200
            await client.send_break(0.05)
            await until(lambda: isinstance(device.heard[-1], float) and device.heard[-1] < 5, "a break")
            device.state = Modem.DSR
            async with asyncio.timeout(5):
                while await client.modem() is not Modem.DSR:
                    await asyncio.sleep(0.01)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await client.close()

    asyncio.run(scenario())


def test_a_tool_that_does_not_write_changes_nothing() -> None:
    async def scenario() -> None:
        device = Line()
        async with tools(device, telnet=True) as port:
            holder = port.hub.attach("ann", mode=Mode.WRITE, now=NOW)
            client = Rfc2217Backend(Rfc2217Port(host="127.0.0.1", port=port.number, speed=9600))
            await client.open()
            assert client.settings.speed == device.settings.speed == 115_200
            await client.close()
            await until(lambda: len(port.hub.who()) == 1, "it is gone")
            assert device.heard == []
            port.hub.detach(holder, NOW)

    asyncio.run(scenario())


def ask(*message: int) -> bytes:
    """Return a message of RFC 2217."""
    return bytes([IAC, SB, COM_PORT, *message, IAC, SE])


def test_the_other_messages_of_rfc_2217() -> None:
    async def scenario() -> None:
        device = Line()
        async with tools(device, telnet=True) as port:
            reader, writer = await port.connect()

            async def answer(question: bytes, expected: bytes) -> None:
                writer.write(question)
                async with asyncio.timeout(5):
                    assert (await reader.readuntil(expected)).endswith(expected)

            await answer(bytes([IAC, WILL, COM_PORT]), bytes([IAC, DO, COM_PORT]))
            await answer(b"", ask(107, (Modem.CTS | Modem.CD).value))
            await answer(ask(0), bytes([IAC, SB, COM_PORT, 100]) + b"Minerva lab" + bytes([IAC, SE]))
            await answer(ask(1, 0, 0, 0, 0), ask(101, 0, 1, 194, 0))
            await answer(ask(2, 9), ask(102, 8))
            await answer(ask(3, 0), ask(103, 1))
            await answer(ask(4, 4), ask(104, 1))
            await answer(ask(5, 0), ask(105, 1))
            await answer(ask(5, 17), ask(105, 1))
            await answer(ask(5, 13), ask(105, 14))
            await answer(ask(5, 16), ask(105, 14))
            await answer(ask(5, 4), ask(105, 6))
            await answer(ask(5, 5), ask(105, 5))
            await answer(ask(5, 4), ask(105, 5))
            await answer(ask(5, 6), ask(105, 6))
            await answer(ask(5, 7), ask(105, 8))
            await answer(ask(5, 12) + ask(5, 10), ask(105, 12) * 2)
            await answer(ask(10, 7), ask(110, 7))
            await answer(ask(12, 1), ask(112, 1))
            # Only DSR is told of from now on.
            await answer(ask(11, 34), ask(111, 34) + ask(107, 0))
            device.state = Modem.DSR
            await answer(b"", ask(107, 34))
            # Nonsense, and what only a server says.
            writer.write(ask(77) + ask(1, 2) + ask(7, 1) + ask(101, 0, 0, 0, 1))
            # Held up, and let go.
            writer.write(ask(8))
            await answer(ask(10, 8), ask(110, 8))
            device.says.put_nowait(b"late")
            await until(lambda: port.hub.bytes_in == 4, "the device speaks")
            await asyncio.sleep(0.05)
            await answer(ask(9), b"late")
            assert device.settings == LineSettings()
            await leave(writer)

    asyncio.run(scenario())


def test_a_line_that_is_gone_when_the_tool_leaves(caplog: pytest.LogCaptureFixture) -> None:
    class Sick(Line):
        async def configure(self, settings: LineSettings) -> LineSettings:
            if settings.speed == 115_200:
                raise BackendError("it is gone")
            return await super().configure(settings)

    async def scenario() -> None:
        async with tools(Sick(), telnet=True) as port:
            client = Rfc2217Backend(Rfc2217Port(host="127.0.0.1", port=port.number, speed=9600))
            await client.open()
            await client.close()
            await until(lambda: port.hub.who() == (), "it is gone")

    asyncio.run(scenario())
    assert "the line stays as the tool set it: it is gone" in caplog.text
