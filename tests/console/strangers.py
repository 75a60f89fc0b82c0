"""Programs that others wrote, run as peers: serial lines by socat, ser2net, ipmi_sim, sshd."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from minerva.console.backends.base import Backend

PACKAGES = {
    "socat": "socat",
    "ser2net": "ser2net",
    "ipmi_sim": "openipmi",
    "ipmitool": "ipmitool",
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "picocom": "picocom",
    "qemu-system-x86_64": "qemu-system-x86",
    "libvirtd": "libvirt-daemon",
    "virsh": "libvirt-clients",
    "busybox": "busybox-static",
    "minicom": "minicom",
}
PATIENCE = 10.0


def program(name: str) -> str:
    """Return where a program is; the test is skipped if it is not here."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"there is no {name}: apt-get install {PACKAGES[name]}")
    return found


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return a port of 127.0.0.1 that nobody has now."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait until something is true."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        await asyncio.sleep(0.01)


async def read_exactly(backend: Backend, count: int) -> bytes:
    """Return so many bytes that the device says."""
    data = b""
    async with asyncio.timeout(PATIENCE):
        while len(data) < count:
            data += await backend.read()
    return data


async def read_all(backend: Backend, into: bytearray) -> None:
    """Read until that raises what ends the connection."""
    async with asyncio.timeout(PATIENCE):
        while data := await backend.read():
            into += data


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler, path: Path | None = None) -> AsyncIterator[int]:
    """Serve connections by ``handler`` on a port of 127.0.0.1, which is returned, or on a Unix socket."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    if path is None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
    else:
        server = await asyncio.start_unix_server(serve, path)
    try:
        yield server.sockets[0].getsockname()[1] if path is None else 0
    finally:
        server.close()
        _, late = await asyncio.wait(tasks, timeout=3) if tasks else (set(), set())
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


@asynccontextmanager
async def running(*command: str, directory: Path | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program as long as the block lasts."""
    log = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *command, cwd=directory, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(3):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


class Far:
    """The far end of a line, as the device there has it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)

    def say(self, data: bytes) -> None:
        """Write all of ``data``, which must fit into the system's buffer."""
        assert os.write(self.descriptor, data) == len(data)

    async def hear(self, count: int) -> bytes:
        """Return so many bytes that come."""
        data = b""
        end = time.monotonic() + PATIENCE
        while len(data) < count:
            try:
                data += os.read(self.descriptor, count - len(data))
            except BlockingIOError:
                assert time.monotonic() < end, f"only {data!r} came"
                await asyncio.sleep(0.01)
        return data

    def nothing_more(self) -> bool:
        """Return whether nothing has come that was not heard."""
        try:
            return os.read(self.descriptor, 1) == b""
        except BlockingIOError:
            return True


@contextmanager
def far_end(path: Path) -> Iterator[Far]:
    """Open the far end of a line."""
    far = Far(path)
    try:
        yield far
    finally:
        os.close(far.descriptor)


@asynccontextmanager
async def line(directory: Path) -> AsyncIterator[tuple[Path, Path]]:
    """A serial line by socat, with a name at each end."""
    near, far = directory / "near", directory / "far"
    async with running(
        program("socat"), f"pty,raw,echo=0,link={near}", f"pty,raw,echo=0,link={far}"
    ) as process:
        await until(lambda: near.exists() and far.exists(), "socat makes a line")
        yield near, far
        process.terminate()
        await process.wait()


async def listening(port: int) -> None:
    """Wait until a TCP port of 127.0.0.1 listens."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            assert time.monotonic() < end, "nobody listens"
            await asyncio.sleep(0.05)
        else:
            writer.close()
            await writer.wait_closed()
            return


IPMI_LAN = """\
name "bmc"
set_working_mc 0x20
  startlan 1
    addr {address} {port}
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "./chassis.sh"
  sol "{line}" 115200
  user 1 true "" "test" user 10 none md2 md5 straight
  user 2 true "operator" "secret" admin 10 none md2 md5 straight
"""
IPMI_EMULATION = """\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
"""
CHASSIS = """\
#!/bin/sh
case "$1 $2" in
"get power") echo "power:$(cat power 2>/dev/null || echo 0)" ;;
"set power") echo "$3" > power ;;
*) echo "$@" >> other ;;
esac
"""


def ipmi_sim_command(directory: Path, line_path: Path, address: str, port: int) -> list[str]:
    """Return what runs such a BMC at an address, in its directory, into which its files are written."""
    simulator = program("ipmi_sim")
    (directory / "lan.conf").write_text(IPMI_LAN.format(address=address, port=port, line=line_path))
    (directory / "sim.emu").write_text(IPMI_EMULATION)
    (directory / "chassis.sh").write_text(CHASSIS)
    (directory / "chassis.sh").chmod(0o755)
    (directory / "password").write_text("secret\n")
    (directory / "state").mkdir()
    return [simulator, "-n", "-c", "lan.conf", "-f", "sim.emu", "-s", "state"]


@asynccontextmanager
async def ipmi_sim(directory: Path, line_path: Path) -> AsyncIterator[int]:
    """A simulated BMC, whose user "operator" has the password in the file ``password``; its UDP port."""
    port = free_port(socket.SOCK_DGRAM)
    command = ipmi_sim_command(directory, line_path, "127.0.0.1", port)
    async with running(*command, directory=directory) as process:
        await until(lambda: _udp_bound(port), "ipmi_sim listens")
        yield port
        process.kill()  # it ends itself only slowly
        await process.wait()


def _udp_bound(port: int) -> bool:
    return f"0100007F:{port:04X}" in Path("/proc/net/udp").read_text()
