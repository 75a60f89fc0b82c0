"""A 16550 with the driver of Linux, its chip being QEMU's: what is asked for is what the chip is told."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import subprocess
import sys
import termios
from dataclasses import replace
from pathlib import Path

import pytest

from minerva.console.backends import lock_file, serial, tty
from minerva.console.backends.base import BackendError, Flow, LineSettings, Modem, Unsupported
from minerva.console.backends.process import ProcessBackend
from minerva.console.backends.serial import SerialBackend
from minerva.console.hub import Hub, Mode, State
from minerva.console.port_config import ProcessPort, SerialPort
from minerva.console.runner import Runner
from tests.console.strangers import program, read_all, read_exactly, running, until
from tests.serial.guest import (
    BREAKER,
    BROKEN,
    FAR,
    NEAR,
    TELNET_BREAK,
    Other,
    Trace,
    counters,
    opened,
    silence,
    stty,
)

pytestmark = pytest.mark.serial
NOW = 1000.0
TIOCM_LOOP = 0x8000

# What a 16550 makes of a speed: 115200 divided by a whole number.
SPEEDS = {
    speed: speed for speed in (50, 75, 110, 300, 1200, 2400, 4800, 9600, 19_200, 38_400, 57_600, 115_200)
} | {10_400: 10_472, 14_400: 14_400, 28_800: 28_800}


def test_speeds() -> None:
    async def scenario() -> None:
        trace = Trace()
        for speed, of_chip in SPEEDS.items():
            async with opened(speed=speed) as backend:
                assert backend.settings.speed == speed
                assert trace.parameters() == (of_chip, "8N1")
                if speed in (9600, 115_200):
                    assert f"speed {speed} baud" in stty(NEAR, "-a")

    asyncio.run(scenario())


def test_a_speed_that_the_chip_does_not_have_is_an_error() -> None:
    async def scenario() -> None:
        with pytest.raises(BackendError, match="ttyS1 does not do 230400 8N1: its driver has no such speed"):
            async with opened(speed=230_400):
                pass
        async with opened(speed=9600) as backend:
            trace = Trace()
            with pytest.raises(Unsupported, match="does not do 1000000 8N1"):
                await backend.configure(replace(backend.settings, speed=1_000_000))
            assert backend.settings.speed == 9600
            assert trace.parameters() == (9600, "8N1")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("framing", "of_chip"),
    [
        ("8N1", "8N1"),
        ("8N2", "8N2"),
        ("8E1", "8E1"),
        ("8O1", "8O1"),
        ("7E1", "7E1"),
        ("7O2", "7O2"),
        ("6N1", "6N1"),
        ("5N1", "5N1"),
        ("5N1.5", "5N2"),
    ],
)
def test_framings(framing: str, of_chip: str) -> None:
    async def scenario() -> None:
        trace = Trace()
        async with opened(speed=9600, framing=framing):
            assert trace.parameters() == (9600, of_chip)
        async with opened(speed=9600) as backend:
            await backend.configure(LineSettings.parse(9600, framing, "none"))
            assert trace.parameters() == (9600, of_chip)

    asyncio.run(scenario())


def test_parities_that_never_change() -> None:
    """QEMU knows no sticky parity; the driver says that it does."""

    async def scenario() -> None:
        for framing, flags in (("7M1", "parenb parodd cmspar"), ("7S1", "parenb -parodd cmspar")):
            async with opened(framing=framing):
                assert flags in stty(NEAR, "-a")

    asyncio.run(scenario())


def test_every_byte_passes_both_ways_at_once() -> None:
    async def scenario() -> None:
        there, back = os.urandom(15_000) + bytes(range(256)), bytes(range(256)) + os.urandom(15_000)
        async with opened() as backend:
            with Other(FAR) as device:
                writing = asyncio.ensure_future(backend.write(there))
                saying = asyncio.ensure_future(device.say(back))
                hearing = asyncio.ensure_future(device.hear(len(there), 100))
                received = b""
                async with asyncio.timeout(100):
                    while len(received) < len(back):
                        received += await backend.read()
                assert received == back
                assert await hearing == there
                await writing
                await saying
                for line in (NEAR, FAR):
                    found = counters(line)
                    assert (found.overrun, found.buffer_overrun, found.frame) == (0, 0, 0)

    asyncio.run(scenario())


def test_a_line_that_another_program_has_set_up_for_people_is_raw() -> None:
    async def scenario() -> None:
        stty(NEAR, "sane", "brkint", "istrip", "inpck", "parmrk", "ixany", "imaxbel", "iutf8", "-clocal")
        async with opened() as backend:
            with Other(FAR) as device:
                await device.say(bytes(range(256)))
                assert await read_exactly(backend, 256) == bytes(range(256))
                await backend.write(bytes(range(256)))
                assert await device.hear(256) == bytes(range(256))
                await asyncio.sleep(0.1)
                assert device.heard() == b""  # nothing is echoed

    asyncio.run(scenario())


def test_a_break_begins_when_all_has_left_and_ends_before_more_is_sent() -> None:
    async def scenario() -> None:
        async with opened(speed=9600) as backend:
            with Other(FAR, speed=9600) as device:
                trace = Trace()
                await backend.write(b"before" * 20)
                loop = asyncio.get_running_loop()
                began = loop.time()
                await backend.send_break(0.3)
                assert loop.time() - began > 0.3
                await backend.write(b"after")
                assert await device.hear(125) == b"before" * 20 + b"after"
                assert trace.chip() == [*b"before" * 20, "break", "no break", *b"after"]

    asyncio.run(scenario())


def _unread(backend: SerialBackend) -> int:
    """Return how many bytes have come that were not read."""
    raw = fcntl.ioctl(backend._opened().descriptor, termios.FIONREAD, bytes(4))
    return int(struct.unpack("i", raw)[0])


def test_a_break_of_the_device_is_a_zero_byte_and_loses_nothing() -> None:
    """Other programs leave a line so that a break throws away what has come and was not read."""

    async def scenario() -> None:
        stty(BROKEN, "brkint")
        async with opened(BROKEN) as backend:
            with Other(BREAKER) as device:
                # QEMU says hello in telnet, which is echoed if it comes before the device is raw.
                await silence(backend)
                breaks = counters(BROKEN).breaks
                # The first piece is read at once, the next one when somebody wants it.
                await device.say(b"be")
                await asyncio.sleep(0.3)
                await device.say(b"fore")
                await until(lambda: _unread(backend) == 4, "it has come, and nobody reads it")
                await device.say(TELNET_BREAK)
                await until(lambda: counters(BROKEN).breaks == breaks + 1, "the driver sees the break")
                await device.say(b"after")
                assert await read_exactly(backend, 12) == b"before\0after"

    asyncio.run(scenario())


def _set_loop(backend: SerialBackend, *, on: bool) -> None:
    """Have the chip connect its own lines: DTR to DSR, RTS to CTS."""
    # Not by a descriptor of our own: Linux asserts DTR and RTS whenever a line is opened.
    request = termios.TIOCMBIS if on else termios.TIOCMBIC
    fcntl.ioctl(backend._opened().descriptor, request, struct.pack("I", TIOCM_LOOP))


def test_modem_lines() -> None:
    async def scenario() -> None:
        trace = Trace()
        async with opened(dtr=True, rts=False) as backend:
            assert trace.modem_control()[-1] == (True, False)
            assert backend.lines() == (True, False)
            assert await backend.modem() == Modem.CTS | Modem.DSR | Modem.CD  # QEMU's, without a modem
            _set_loop(backend, on=True)
            try:
                assert await backend.modem() & (Modem.CTS | Modem.DSR) == Modem.DSR
                await backend.set_lines(dtr=False, rts=True)
                assert await backend.modem() & (Modem.CTS | Modem.DSR) == Modem.CTS
                assert backend.lines() == (False, True)
                await backend.set_lines(dtr=True)
                assert await backend.modem() & (Modem.CTS | Modem.DSR) == Modem.CTS | Modem.DSR
                assert trace.modem_control()[-1] == (True, True)
            finally:
                _set_loop(backend, on=False)
        # A device that watches DTR is told that nobody is there.
        assert trace.modem_control()[-1] == (False, False)

    asyncio.run(scenario())


def test_a_device_that_holds_us_up_by_rts_and_cts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial, "_DRAIN_SECONDS", 1.0)

    async def scenario() -> None:
        async with opened(rts=False) as backend:
            _set_loop(backend, on=True)
            try:
                await backend.configure(replace(backend.settings, flow=Flow.RTSCTS))
                assert " crtscts" in stty(NEAR, "-a")
                await backend.write(b"held")
                assert tty.waiting(backend._opened().descriptor) == 4
                with pytest.raises(BackendError, match="takes nothing: the other side holds it up"):
                    await backend.send_break(0.1)
            finally:
                _set_loop(backend, on=False)

    asyncio.run(scenario())


def test_a_device_that_holds_us_up_by_xon_and_xoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial, "_DRAIN_SECONDS", 1.0)

    async def scenario() -> None:
        async with opened(flow="xonxoff") as backend:
            with Other(FAR) as device:
                await device.say(b"\x13")
                await asyncio.sleep(0.5)
                await backend.write(b"held")
                await asyncio.sleep(0.5)
                assert device.heard() == b""
                with pytest.raises(BackendError, match="takes nothing: the other side holds it up"):
                    await backend.send_break(0.1)
                await device.say(b"\x11")
                assert await device.hear(4) == b"held"
                await backend.send_break(0.1)
                # And we hold it up when nobody reads.
                talking = asyncio.ensure_future(device.say(b"x" * 100_000))
                assert await device.hear(1) == b"\x13"
                talking.cancel()
                await silence(backend)

    asyncio.run(scenario())


# -- who has the line


PROGRAMS = {
    "picocom": ("picocom", "-q", str(NEAR)),
    "minicom": ("minicom", "-D", str(NEAR)),
    "busybox": ("busybox", "getty", "-L", "115200", NEAR.name, "vt100"),
}
"""The first locks a line, the second has a lock file, and getty takes what it is told to take."""


@pytest.mark.parametrize("name", ["picocom", "minicom"])
def test_programs_that_respect_locks_keep_off(name: str) -> None:
    program(name)

    async def scenario() -> None:
        async with opened() as backend:
            other = ProcessBackend(ProcessPort(command=PROGRAMS[name]))
            await other.open()
            said = bytearray()
            with pytest.raises(BackendError, match=f"{name} has ended with status [1-9]"):
                await read_all(other, said)
            await other.close()
            assert b"lock" in said.lower(), said
            # The line is as it was.
            with Other(FAR) as device:
                await device.say(b"still ours")
                assert await read_exactly(backend, 10) == b"still ours"

    asyncio.run(scenario())


def test_programs_that_respect_no_locks_are_kept_off_unless_they_are_roots() -> None:
    async def scenario() -> None:
        NEAR.chmod(0o666)
        command = ("setpriv", "--reuid=65534", "--clear-groups", "cat", str(NEAR))
        async with opened():
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            assert "Device or resource busy" in done.stderr
        # It is over when we have closed it.
        async with running(*command) as process:
            await asyncio.sleep(1)
            assert process.returncode is None
        NEAR.chmod(0o600)

    asyncio.run(scenario())


@pytest.mark.parametrize("name", PROGRAMS)
def test_who_has_the_line_is_said(name: str) -> None:
    program(name)

    async def scenario() -> None:
        hub = Hub("lab")
        runner = Runner(hub, SerialBackend(SerialPort(device=str(NEAR))))
        other = ProcessBackend(ProcessPort(command=PROGRAMS[name]))
        await other.open()
        try:
            await until(lambda: _user(NEAR) == name, f"{name} has the line", 30)
            runner.start()
            await until(lambda: hub.state is State.DOWN, "it is not to be had", 30)
            assert f"{NEAR} is in use by {name} (process " in hub.reason
            await other.close()
            await until(lambda: hub.state is State.CONNECTED, "it is ours when that one has ended", 30)
        finally:
            await other.close()
            await runner.stop()

    asyncio.run(scenario())


def _user(device: Path) -> str:
    """Return the name of the program that has a device open."""
    return (serial._user_of(device) or "").split(" ")[0]


LOGIN = """\
#!/bin/busybox sh
echo "welcome $2 $1"
while read -r line; do
	[ "$line" = bye ] && exit
	echo "$line" >>{heard}
done
"""


def test_a_lock_file_that_only_anybody_has_written_counts_for_nothing() -> None:
    file = lock_file.DIRECTORY / f"LCK..{NEAR.name}"

    async def scenario() -> None:
        file.write_text(f"{1:10}\n")
        with pytest.raises(BackendError, match=r"in use by \w+ \(process 1\): /var/lock says so"):
            async with opened():
                pass
        os.chown(file, 65_534, 65_534)
        async with opened():
            assert int(file.read_text()) == os.getpid()
        assert not file.exists()
        # Of a process that is no more, or no process's at all.
        for text in (f"{2**22 + 1:10}\n", "x" * 100_000):
            file.write_text(text)
            async with opened():
                assert int(file.read_text()) == os.getpid()

    asyncio.run(scenario())


def test_a_getty_at_the_other_end(tmp_path: Path) -> None:
    login = tmp_path / "login"
    heard = tmp_path / "heard"
    heard.touch()
    login.write_text(LOGIN.format(heard=heard))
    login.chmod(0o755)

    async def scenario() -> None:
        hub = Hub("lab")
        runner = Runner(hub, SerialBackend(SerialPort(device=str(NEAR))))
        runner.start()
        getty = ("/bin/busybox", "getty", "-L", "-l", str(login), "115200", FAR.name, "vt100")
        try:
            await until(lambda: hub.state is State.CONNECTED, "it is up", 30)
            async with running(*getty):
                await until(lambda: b"login: " in hub.tail(1000), "getty asks for a name", 30)
                ann = hub.attach("ann", mode=Mode.WRITE, replay=1000, now=NOW)
                hub.input(ann, b"root\r", NOW)
                await until(lambda: b"welcome root" in hub.tail(1000), "it lets us in", 30)
                # Without flow control, no more than the buffer of a terminal has room for.
                paste = [f"line {number} of a paste" for number in range(150)]
                hub.input(ann, "".join(f"{line}\r" for line in paste).encode(), NOW)
                # Not from what it echoes: answers and echoes get mixed up.
                await until(lambda: heard.read_text().splitlines()[-1:] == paste[-1:], "it gets it", 60)
                assert heard.read_text().splitlines() == paste
                hub.input(ann, b"bye\r", NOW)
        finally:
            await runner.stop()

    asyncio.run(scenario())


def test_the_line_is_closed_when_we_are_killed() -> None:
    code = (
        "import asyncio, os\nfrom tests.serial.guest import *\n"
        "async def scenario():\n async with opened() as backend:\n"
        "  await backend.write(b'x' * 3000)\n  os.kill(os.getpid(), 9)\nasyncio.run(scenario())\n"
    )

    async def scenario() -> None:
        done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
        assert done.returncode == -9
        async with asyncio.timeout(5), opened():
            pass

    asyncio.run(scenario())
