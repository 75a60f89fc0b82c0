"""USB adapters with the drivers of Linux: an FTDI of QEMU's, and a gadget of the same kernel as CDC ACM."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from minerva.console import record_search
from minerva.console.backends.base import Modem, Unsupported
from minerva.console.backends.serial import SerialBackend
from minerva.console.config import Records
from minerva.console.events import Gap
from minerva.console.hub import Hub, Mode, State
from minerva.console.port_config import SerialPort
from minerva.console.records import Archive
from minerva.console.runner import Runner
from tests.console.strangers import read_exactly, until
from tests.serial.guest import HOST, RUN, Monitor, MonitorError, Other, Trace, opened

pytestmark = pytest.mark.serial
NOW = 1000.0
UDEVD = Path("/lib/systemd/systemd-udevd")
BY_PATH = Path("/dev/serial/by-path")
ACM, GADGET = Path("/dev/ttyACM0"), Path("/dev/ttyGS0")


@pytest.fixture(scope="session")
def udev() -> Iterator[None]:
    """The program that names devices."""
    if not UDEVD.exists():
        pytest.skip("there is no systemd-udevd: apt-get install udev")
    process = subprocess.Popen([UDEVD], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(
            ["udevadm", "control", "--ping"], stderr=subprocess.DEVNULL, check=False
        ).returncode:
            assert process.poll() is None
            assert time.monotonic() < deadline, "udev answers"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


class Adapter:
    """A USB adapter that can be plugged in."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def plug(self, port: int = 1) -> None:
        """Plug it into a port of the machine."""
        deadline = time.monotonic() + 10
        where = {"bus": "usb.0", "port": str(port)}
        while True:
            try:
                self._monitor(
                    "device_add", driver="usb-serial", chardev="adapter", id="ftdi", serial="A1B2C3", **where
                )
                return
            except MonitorError:
                # QEMU needs a moment to forget one that was pulled out.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def unplug(self) -> None:
        """Pull it out."""
        self._monitor("device_del", id="ftdi")


@pytest.fixture
def adapter(monitor: Monitor, udev: None) -> Iterator[Adapter]:  # noqa: ARG001
    """An adapter that is plugged in."""
    found = Adapter(monitor)
    found.plug()
    deadline = time.monotonic() + 30
    while not any(BY_PATH.glob("*")):
        assert time.monotonic() < deadline, "udev names the adapter"
        time.sleep(0.05)
    yield found
    found.unplug()
    deadline = time.monotonic() + 30
    while any(Path("/dev").glob("ttyUSB*")) or any(BY_PATH.glob("*")):
        assert time.monotonic() < deadline, "it is gone"
        time.sleep(0.05)


def by_path() -> Path:
    """Return the name of the socket into which it is plugged."""
    (found,) = BY_PATH.glob("*")
    return found


def test_an_adapter_of_ftdi(adapter: Adapter) -> None:  # noqa: ARG001
    async def scenario() -> None:
        trace = Trace()
        async with opened(by_path(), speed=57_600, framing="7E1", rts=False) as backend:
            assert "(/dev/ttyUSB0) at 57600 7E1" in backend.describe()
            said = "\n".join(trace.lines())
            (baud,) = re.findall(r"usb_serial_set_baud .*rate (\d+)", said)[-1:]
            assert abs(int(baud) - 57_600) < 600
            assert re.findall(r"usb_serial_set_data .*parity (.), data bits (.), stop bits (.)", said)[
                -1
            ] == (
                "E",
                "7",
                "1",
            )
            await backend.configure(replace(backend.settings, speed=250_000, data_bits=8, parity="N"))
            (baud,) = re.findall(r"usb_serial_set_baud .*rate (\d+)", "\n".join(trace.lines()))[-1:]
            assert abs(int(baud) - 250_000) < 2_500
            await backend.configure(replace(backend.settings, speed=115_200))
            assert await backend.modem() & (Modem.CTS | Modem.DSR) == Modem.CTS | Modem.DSR
            assert backend.lines() == (True, False)
            with Other(HOST) as device:
                await device.say(bytes(range(256)) * 20)
                assert await read_exactly(backend, 5120) == bytes(range(256)) * 20
                await backend.write(bytes(range(256)) * 20)
                assert await device.hear(5120) == bytes(range(256)) * 20
                await backend.send_break(0.1)
                await backend.write(b"after")
                assert await device.hear(5) == b"after"

    asyncio.run(scenario())


def test_an_adapter_that_goes_away_while_it_talks(
    adapter: Adapter,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    """Taken from its driver by the kernel, and given back: pulled out while it talks, QEMU 7.2 may crash."""
    path = by_path()
    device = Path("/sys/class/tty/ttyUSB0/device").resolve().parents[1] / "authorized"
    archive = Archive(tmp_path, Records(compress="none"))
    recorder = archive.recorder("lab")
    assert recorder is not None

    async def scenario() -> None:
        hub = Hub("lab")
        runner = Runner(hub, SerialBackend(SerialPort(device=str(path))), [recorder])
        loop = asyncio.get_running_loop()
        ann = hub.attach("ann", mode=Mode.WRITE, now=NOW)
        runner.start()
        try:
            await until(lambda: hub.state is State.IN_USE, "it is up", 30)
            with Other(HOST) as host:
                for number in range(3):
                    talking = asyncio.ensure_future(host.say(b"it talks and talks\r\n" * 1000))
                    before = hub.bytes_in
                    await until(lambda n=before: hub.bytes_in > n + 500, "it talks", 30)  # type: ignore[misc]
                    pulled = loop.time()
                    device.write_text("0")
                    await until(lambda: hub.state is State.DOWN, "it is down", 30)
                    down = loop.time() - pulled
                    assert f"{path} is gone" in hub.reason
                    talking.cancel()
                    await asyncio.sleep(0.5)
                    assert not path.exists()
                    plugged = loop.time()
                    device.write_text("1")
                    await until(lambda: hub.state is State.IN_USE, "it is up again", 30)
                    print(f"down {down:.2f} s, up {loop.time() - plugged:.2f} s")
                    hub.input(ann, b"hello %d\r" % number, NOW)
                    heard = b""
                    while b"hello %d\r" % number not in heard:
                        heard += await host.hear(1)
                assert hub.times_up == 4
            assert [each.user for each in hub.who()] == ["ann"]
            missing = 0
            while (item := hub.read(ann)) is not None:
                missing += isinstance(item, Gap)
            assert missing == 0
        finally:
            await runner.stop()
            archive.close()

    asyncio.run(scenario())
    marks = [line.text for line in record_search.lines(tmp_path, "lab") if line.kind == "*"]
    assert len([text for text in marks if f"{path} is gone" in text]) == 3, marks


def test_an_adapter_that_is_pulled_out_belongs_to_its_socket(adapter: Adapter) -> None:
    path = by_path()

    async def scenario() -> None:
        hub = Hub("lab")
        runner = Runner(hub, SerialBackend(SerialPort(device=str(path))))
        runner.start()
        try:
            await until(lambda: hub.state is State.CONNECTED, "it is up", 30)
            adapter.unplug()
            await until(lambda: hub.state is State.DOWN, "it is down", 30)
            assert f"{path} is gone" in hub.reason
            await until(lambda: not path.is_symlink(), "its name is gone", 30)
            # In another socket it is another one.
            adapter.plug(2)
            await until(lambda: any(BY_PATH.glob("*")), "it has a name", 30)
            assert by_path() != path
            await until(lambda: f"{path} is not there" in hub.reason, "it is not taken for that one", 30)
            other = by_path()
            adapter.unplug()
            await until(lambda: not other.is_symlink(), "that name is gone", 30)
            adapter.plug()
            await until(lambda: hub.state is State.CONNECTED, "it is up again", 30)
        finally:
            await runner.stop()

    asyncio.run(scenario())


def test_the_lines_of_a_machine_are_found(adapter: Adapter) -> None:  # noqa: ARG001
    async def scenario() -> None:
        with Other(HOST) as device:
            command = (sys.executable, "-m", "minerva", "console", "discover", "--listen", "8", "--json")
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            greeting = asyncio.ensure_future(_greet(device))
            output, _ = await process.communicate()
            greeting.cancel()
        found = {line["device"]: line for line in json.loads(output)}
        ours = found["/dev/ttyUSB0"]
        assert ours["path"] == str(by_path())
        assert "A1B2C3" in ours["description"]
        assert ours["name"] == "web1"
        # The 16550 of this machine; two that are not wired are left out.
        assert {f"/dev/ttyS{number}" for number in range(6)} <= set(found)
        assert "/dev/ttyS6" not in found
        assert (
            "in use by another program" in found[str(HOST)]["remark"]
            or "python" in found[str(HOST)]["remark"]
        )

    asyncio.run(scenario())


async def _greet(device: Other) -> None:
    while True:
        await device.say(b"\r\nDebian GNU/Linux 12 web1 ttyS0\r\n\r\nweb1 login: ")
        await asyncio.sleep(1)


# -- CDC ACM


@pytest.fixture
def gadget() -> Iterator[Path]:
    """This machine as its own adapter; the driver of its other end."""
    (module,) = (RUN / "modules").glob("*g_serial.ko")
    subprocess.run(["/bin/busybox", "insmod", module, "use_acm=1"], check=True)
    deadline = time.monotonic() + 30
    while not (ACM.exists() and GADGET.exists()):
        assert time.monotonic() < deadline, "both ends are there"
        time.sleep(0.05)
    yield module
    subprocess.run(["/bin/busybox", "rmmod", "g_serial"], check=False)


def test_a_device_that_is_an_adapter_itself(gadget: Path) -> None:
    """As the consoles of many switches and boards."""

    async def scenario() -> None:
        hub = Hub("lab")
        async with opened(ACM) as backend:
            # The other end is not open, so nobody is there.
            assert await backend.modem() & Modem.CD == Modem.NONE
            with Other(GADGET, speed=0) as device:
                await _lines(backend, Modem.CD | Modem.DSR)
                await device.say(bytes(range(256)) * 8)
                assert await read_exactly(backend, 2048) == bytes(range(256)) * 8
                await backend.write(bytes(range(256)) * 8)
                assert await device.hear(2048) == bytes(range(256)) * 8
                # It has none, and the line is well.
                with pytest.raises(Unsupported, match="does not send a break"):
                    await backend.send_break(0.1)
                await backend.write(b"after")
                assert await device.hear(5) == b"after"
            # The device has hung up, which is its affair.
            await _lines(backend, Modem.NONE)
            with Other(GADGET, speed=0) as device:
                await device.say(b"again")
                assert await read_exactly(backend, 5) == b"again"
        runner = Runner(hub, SerialBackend(SerialPort(device=str(ACM))))
        runner.start()
        try:
            await until(lambda: hub.state is State.CONNECTED, "it is up", 30)
            subprocess.run(["/bin/busybox", "rmmod", "g_serial"], check=True)
            await until(lambda: hub.state is State.DOWN, "it is down", 30)
            assert f"{ACM} is gone" in hub.reason
            subprocess.run(["/bin/busybox", "insmod", gadget, "use_acm=1"], check=True)
            await until(lambda: hub.state is State.CONNECTED, "it is up again", 30)
        finally:
            await runner.stop()

    asyncio.run(scenario())


async def _lines(backend: SerialBackend, expected: Modem) -> None:
    """Wait until the carrier and DSR are so."""
    async with asyncio.timeout(10):
        while await backend.modem() & (Modem.CD | Modem.DSR) != expected:
            await asyncio.sleep(0.05)
