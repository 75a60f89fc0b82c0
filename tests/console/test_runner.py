"""What keeps a console connected."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from minerva.console.alerts import AlertSink, Notifier
from minerva.console.backends.base import BackendError, Base, Unsupported
from minerva.console.config import Alert
from minerva.console.hub import Gap, Hub, HubEvent, Mode, State
from minerva.console.runner import Runner, Sink
from minerva.core.backoff import Backoff
from tests.console.strangers import until

NOW = 1000.0


class Device(Base):
    """A device that does as the test says."""

    def __init__(self) -> None:
        self.says: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.heard: list[bytes | float] = []
        self.openings = 0
        self.closings = 0
        self.refusal: Exception | None = None
        self.takes = asyncio.Event()
        self.takes.set()
        self.back = asyncio.Event()
        self.breaks = True

    def describe(self) -> str:
        return "a device"

    async def open(self) -> None:
        self.openings += 1
        if self.refusal is not None:
            raise self.refusal

    async def read(self) -> bytes:
        said = await self.says.get()
        if isinstance(said, Exception):
            raise said
        return said

    async def write(self, data: bytes) -> None:
        await self.takes.wait()
        self.heard.append(data)

    async def send_break(self, seconds: float) -> None:
        if not self.breaks:
            raise Unsupported("no breaks here")
        self.heard.append(seconds)

    async def close(self) -> None:
        self.closings += 1

    async def returned(self) -> None:
        await self.back.wait()
        self.back.clear()

    @property
    def typed(self) -> bytes:
        return b"".join(piece for piece in self.heard if isinstance(piece, bytes))


class Notes:
    """A sink that writes everything down."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.data = bytearray()
        self.events: list[HubEvent] = []
        self.failure = failure

    def output(self, data: bytes) -> None:
        if self.failure is not None:
            raise self.failure
        self.data += data

    def event(self, event: HubEvent) -> None:
        if self.failure is not None:
            raise self.failure
        self.events.append(event)


@asynccontextmanager
async def console(
    device: Device, sinks: Sequence[Sink] = (), *, wait: float = 0.0, rate: int = 0, line_delay: float = 0.0
) -> AsyncIterator[Runner]:
    """A console that is being kept."""
    backoff = Backoff(wait or 0.01, wait or 0.01)
    runner = Runner(
        Hub("lab"),
        device,
        sinks,
        clock=lambda: NOW,
        backoff=backoff,
        input_rate=rate,
        line_delay=line_delay,
    )
    runner.start()
    try:
        yield runner
    finally:
        await runner.stop()


def test_output_goes_to_the_hub_and_to_all_sinks() -> None:
    async def scenario() -> None:
        device, record, alerts = Device(), Notes(), Notes()
        async with console(device, [record, alerts]) as runner:
            for number in range(100):
                device.says.put_nowait(b"line %d\r\n" % number)
            said = b"".join(b"line %d\r\n" % number for number in range(100))
            await until(lambda: runner.hub.bytes_in == len(said), "everything has come")
            assert runner.hub.tail(10_000) == record.data == alerts.data == said

    asyncio.run(scenario())


def test_input_and_breaks_go_to_the_device_in_their_order() -> None:
    async def scenario() -> None:
        device, notes = Device(), Notes()
        async with console(device, [notes]) as runner:
            hub = runner.hub
            await until(lambda: hub.state is State.CONNECTED, "it is up")
            one = hub.attach("ann", mode=Mode.WRITE, now=NOW)
            hub.input(one, b"before", NOW)
            hub.send_break(one, NOW, 0.5)
            hub.input(one, b"after" * 1000, NOW)
            await until(lambda: hub.bytes_out == 5006, "all was written")
            assert device.heard[:2] == [b"before", 0.5]
            assert device.typed == b"before" + b"after" * 1000
            assert [str(event) for event in notes.events] == [
                "the console is up",
                "ann attached",
                "ann writes now (granted)",
                "ann typed 6 bytes",
                "ann sends a break",
                "ann typed 5000 bytes",
            ]

    asyncio.run(scenario())


def test_a_break_that_the_line_cannot_do_is_told_and_nothing_else_happens() -> None:
    async def scenario() -> None:
        device = Device()
        device.breaks = False
        async with console(device) as runner:
            hub = runner.hub
            await until(lambda: hub.state is State.CONNECTED, "it is up")
            one = hub.attach("ann", mode=Mode.WRITE, now=NOW)
            hub.send_break(one, NOW)
            hub.input(one, b"x", NOW)
            await until(lambda: device.typed == b"x", "input goes on")
            told = []
            while (item := hub.read(one)) is not None:
                told.append(str(item))
            assert "console: no breaks here" in told
            assert hub.times_up == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (b"", "the device ended the connection"),
        (BackendError("the cable is cut"), "the cable is cut"),
        (ZeroDivisionError("x"), "internal error: ZeroDivisionError"),
    ],
)
def test_a_connection_that_ends_is_made_again(
    end: bytes | Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        device = Device()
        async with console(device, wait=0.2) as runner:
            hub = runner.hub
            await until(lambda: hub.state is State.CONNECTED, "it is up")
            reader = hub.attach("ann", now=NOW)
            device.says.put_nowait(b"first")
            device.says.put_nowait(end)
            await until(lambda: hub.state is State.DOWN, "it is down")
            assert hub.reason == reason
            await until(lambda: hub.state is State.IN_USE, "it is up again")
            device.says.put_nowait(b"second")
            await until(lambda: hub.bytes_in == 11, "it goes on")
            assert (device.openings, device.closings) == (2, 1)
            # Who was attached still is.
            seen = []
            while (item := hub.read(reader)) is not None:
                seen.append(item if isinstance(item, bytes | Gap) else str(item))
            assert seen == [b"first", f"the console is down: {reason}", "the console is up", b"second"]

    asyncio.run(scenario())
    assert f"console lab is down: {reason}" in caplog.text


def test_a_device_that_cannot_be_reached_is_tried_for_ever_and_the_log_is_not_filled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        device = Device()
        device.refusal = BackendError("nobody \x1b[31m there")
        async with console(device) as runner:
            await until(lambda: device.openings >= 5, "it is tried again and again")
            assert runner.hub.state is State.DOWN
            assert device.closings >= 4
            device.refusal = None
            await until(lambda: runner.hub.state is State.CONNECTED, "it is up")

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    assert caplog.text.count("is down") == 1
    assert "\x1b" not in caplog.text


def test_a_device_that_is_back_is_reached_before_the_time() -> None:
    async def scenario() -> None:
        device = Device()
        device.refusal = BackendError("unplugged")
        async with console(device, wait=1000) as runner:
            await until(lambda: runner.hub.state is State.DOWN, "it is down")
            device.refusal = None
            device.back.set()
            await until(lambda: runner.hub.state is State.CONNECTED, "it is up")

    asyncio.run(scenario())


def test_input_that_the_device_was_not_sent_is_dropped_when_it_goes() -> None:
    async def scenario() -> None:
        device = Device()
        device.takes.clear()
        async with console(device) as runner:
            hub = runner.hub
            await until(lambda: hub.state is State.CONNECTED, "it is up")
            one = hub.attach("ann", mode=Mode.WRITE, now=NOW)
            hub.input(one, b"x" * 3000, NOW)
            await asyncio.sleep(0.02)
            device.says.put_nowait(b"")
            await until(lambda: hub.times_up == 2, "it is up again")
            device.takes.set()
            hub.input(one, b"y", NOW)
            await until(lambda: device.typed.endswith(b"y"), "input goes on")
            assert device.typed == b"y"

    asyncio.run(scenario())


def test_a_sink_that_fails_disturbs_nobody_and_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        device, good = Device(), Notes()
        bad, worse = Notes(OSError(28, "No space left on device")), Notes(KeyError("x"))
        async with console(device, [bad, worse, good]) as runner:
            for _ in range(5):
                device.says.put_nowait(b"abc")
            await until(lambda: runner.hub.bytes_in == 15, "everything has come")
            assert good.data == b"abc" * 5

    asyncio.run(scenario())
    assert caplog.text.count("Notes fails: [Errno 28] No space left") == 1
    assert caplog.text.count("KeyError") == 1


def test_a_sink_comes_and_goes() -> None:
    async def scenario() -> None:
        device, notes = Device(), Notes()
        async with console(device) as runner:
            device.says.put_nowait(b"a")
            await until(lambda: runner.hub.bytes_in == 1, "a has come")
            runner.add_sink(notes)
            device.says.put_nowait(b"b")
            await until(lambda: runner.hub.bytes_in == 2, "b has come")
            runner.remove_sink(notes)
            device.says.put_nowait(b"c")
            await until(lambda: runner.hub.bytes_in == 3, "c has come")
            assert notes.data == b"b"

    asyncio.run(scenario())


def test_the_pace_of_input() -> None:
    async def scenario() -> None:
        device = Device()
        loop = asyncio.get_running_loop()
        async with console(device, rate=1000) as runner:
            hub = runner.hub
            await until(lambda: hub.state is State.CONNECTED, "it is up")
            one = hub.attach("ann", mode=Mode.WRITE, now=NOW)
            began = loop.time()
            hub.input(one, b"x" * 300, NOW)
            await until(lambda: len(device.typed) == 300, "all was written")
            assert loop.time() - began > 0.25
            assert max(len(piece) for piece in device.heard if isinstance(piece, bytes)) <= 20

    asyncio.run(scenario())


def test_the_device_is_left_in_peace_after_each_line() -> None:
    async def scenario() -> None:
        device = Device()
        loop = asyncio.get_running_loop()
        async with console(device, line_delay=0.05) as runner:
            hub = runner.hub
            await until(lambda: hub.state is State.CONNECTED, "it is up")
            one = hub.attach("ann", mode=Mode.WRITE, now=NOW)
            began = loop.time()
            hub.input(one, b"one\rtwo\r\nthree\nrest", NOW)
            await until(lambda: device.typed.endswith(b"rest"), "all was written")
            assert device.heard == [b"one\r", b"two\r\n", b"three\n", b"rest"]
            assert loop.time() - began >= 0.15

    asyncio.run(scenario())


def test_all_are_told_when_it_ends() -> None:
    async def scenario() -> None:
        device, notes = Device(), Notes()
        async with console(device, [notes]) as runner:
            await until(lambda: runner.hub.state is State.CONNECTED, "it is up")
            one = runner.hub.attach("ann", now=NOW)
            await runner.stop("it was removed")
            assert one.ended == "it was removed"
            assert device.closings == 1
            assert str(notes.events[-1]) == "ann detached (it was removed)"
            assert runner.hub.state is State.DOWN

    asyncio.run(scenario())


def test_one_console_that_hangs_holds_up_no_other() -> None:
    async def scenario() -> None:
        stuck, well = Device(), Device()
        stuck.takes.clear()
        async with console(stuck) as first, console(well) as second:
            for runner in (first, second):
                await until(lambda hub=runner.hub: hub.state is State.CONNECTED, "it is up")  # type: ignore[misc]
                one = runner.hub.attach("ann", mode=Mode.WRITE, now=NOW)
                runner.hub.input(one, b"x" * 60_000, NOW)
            await until(lambda: len(well.typed) == 60_000, "the other one goes on")
            assert stuck.typed == b""

    asyncio.run(scenario())


class Flood(Device):
    """A device that always has the most costly things to say."""

    async def read(self) -> bytes:
        return b"\x1b" * 65_536


def test_a_device_that_says_costly_things_without_end_leaves_time_for_others() -> None:
    async def scenario() -> int:
        notifier = Notifier({"panic": Alert(pattern="panic")}, lambda _: None)
        runner = Runner(Hub("flood"), Flood())
        runner.add_sink(AlertSink("flood", notifier))
        runner.start()
        turns, end = 0, time.monotonic() + 2
        while time.monotonic() < end:
            await asyncio.sleep(0)
            turns += 1
        assert runner.hub.bytes_in > 16_384
        await runner.stop()
        return turns

    assert asyncio.run(scenario()) > 1000


def test_what_was_read_is_handed_on_also_at_the_end() -> None:
    said = bytes(range(256)) * 256

    async def scenario() -> bytes:
        device = Device()
        notes = Notes()
        runner = Runner(Hub("lab"), device, [notes])
        runner.start()
        device.says.put_nowait(said)
        while not runner.hub.bytes_in:
            await asyncio.sleep(0)
        assert runner.hub.bytes_in < len(said)
        await runner.stop()
        return runner.hub.tail(len(said))

    assert asyncio.run(scenario()) == said
