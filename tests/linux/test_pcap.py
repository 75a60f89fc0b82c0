"""The capture file, as bytes and as tshark reads it, and captures in a namespace of their own."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import io
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from minerva.linux.namespace import CLONE_NEWNET, unshare
from minerva.linux.pcap import Capture, LinkType, PcapngWriter
from minerva.linux.tun import open_tun

# --- the file ---------------------------------------------------------------------------------------------


@dataclass
class Frame:
    """A frame as this file's own reader finds it."""

    interface: int
    time_ns: int
    data: bytes
    original_size: int
    flags: int | None


def read(data: bytes) -> tuple[list[tuple[str, int, int]], list[Frame]]:
    """Return the interfaces (name, link type, snaplen) and the frames in a pcapng file, or fail."""
    interfaces, frames, position = [], [], 0
    while position < len(data):
        kind, size = struct.unpack_from("<II", data, position)
        assert size % 4 == 0
        assert position + size <= len(data), "half a block"
        assert struct.unpack_from("<I", data, position + size - 4) == (size,)
        body = data[position + 8 : position + size - 4]
        if position == 0:
            assert (kind, body[:4]) == (0x0A0D0D0A, bytes.fromhex("4d3c2b1a"))
        elif kind == 1:
            link_type, _, snaplen = struct.unpack_from("<HHI", body)
            options = read_options(body[8:])
            assert options[9] == b"\x09"
            interfaces.append((options[2].decode(), link_type, snaplen))
        else:
            assert kind == 6
            interface, high, low, captured, original = struct.unpack_from("<5I", body)
            options = read_options(body[20 + captured + -captured % 4 :])
            flags = struct.unpack("<I", options[2])[0] if options else None
            frames.append(Frame(interface, high << 32 | low, body[20 : 20 + captured], original, flags))
        position += size
    return interfaces, frames


def read_options(data: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    while data:
        code, size = struct.unpack_from("<HH", data)
        if code == 0:
            assert data == bytes(4)
            break
        options[code] = data[4 : 4 + size]
        data = data[4 + size + -size % 4 :]
    return options


class Stream(io.BytesIO):
    """Keeps what was written to it after it is closed, and how often."""

    content = b""
    writes = 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.content += data
        self.writes += 1
        return len(data)


def test_section_header() -> None:
    stream = Stream()
    PcapngWriter(stream)
    assert stream.content.hex() == "0a0d0d0a1c0000004d3c2b1a01000000ffffffffffffffff1c000000"


def test_what_is_written_is_read() -> None:
    stream = Stream()
    writer = PcapngWriter(stream)
    assert writer.add_interface("n1.eth0", LinkType.ETHERNET) == 0
    assert writer.add_interface("acp_6bbc_3e6b", LinkType.IPV6, snaplen=100) == 1
    now = 1_767_225_600_123_456_789
    for size in range(10):
        writer.write(size % 2, now + size, bytes(range(size)), original_size=size * 10)
    writer.write(0, now + 10, b"in", outgoing=False)
    writer.write(0, now + 10, b"out", outgoing=True)
    writer.close()
    assert stream.closed
    interfaces, frames = read(stream.content)
    assert interfaces == [("n1.eth0", 1, 262_144), ("acp_6bbc_3e6b", 229, 100)]
    assert frames[:10] == [
        Frame(size % 2, now + size, bytes(range(size)), size * 10, None) for size in range(10)
    ]
    assert frames[10:] == [Frame(0, now + 10, b"in", 2, 1), Frame(0, now + 10, b"out", 3, 2)]


def test_frames_of_several_sockets_are_put_in_order() -> None:
    stream = Stream()
    writer = PcapngWriter(stream)
    for name in ("p0", "p1"):
        writer.add_interface(name, LinkType.ETHERNET)
    for interface, when in ((0, 1), (0, 5), (1, 2), (1, 4)):
        writer.write(interface, when, b"x")
    writer.flush()
    _, frames = read(stream.content)
    assert [(frame.interface, frame.time_ns) for frame in frames] == [(0, 1), (1, 2), (1, 4), (0, 5)]


def test_only_whole_blocks_reach_the_file(tmp_path: Path) -> None:
    """Whatever the buffer sizes of files are: after every flush the file can be read to its end."""
    path = tmp_path / "growing.pcapng"
    writer = PcapngWriter(path.open("wb"))
    writer.add_interface("eth0", LinkType.ETHERNET)
    for count in range(1, 60):
        writer.write(0, count, bytes(count * 37))
        if count % 5 == 0:
            writer.flush()
            assert len(read(path.read_bytes())[1]) == count
        else:
            assert len(read(path.read_bytes())[1]) == count - count % 5
    writer.close()
    assert len(read(path.read_bytes())[1]) == 59


def test_much_is_written_without_a_flush() -> None:
    stream = Stream()
    writer = PcapngWriter(stream)
    writer.add_interface("eth0", LinkType.ETHERNET)
    for _ in range(100):
        writer.write(0, 0, bytes(100_000))
    assert 8 <= stream.writes <= 12
    assert len(read(stream.content)[1]) >= 80


def test_unknown_interface() -> None:
    writer = PcapngWriter(Stream())
    with pytest.raises(ValueError, match="interface 0 was not added"):
        writer.write(0, 0, b"")


def test_a_full_disk_is_reported() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with pytest.raises(OSError) as caught, Path("/dev/full").open("wb", buffering=0) as stream:
        PcapngWriter(stream)  # type: ignore[arg-type]
    assert caught.value.errno == errno.ENOSPC


def test_tshark_reads_it(tmp_path: Path) -> None:
    program = shutil.which("tshark")
    if program is None:
        pytest.skip("tshark is not installed")
    path = tmp_path / "judged.pcapng"
    writer = PcapngWriter(path.open("wb"))
    ethernet = writer.add_interface("n1.eth0", LinkType.ETHERNET)
    other = writer.add_interface("n2.acp", LinkType.IPV6)
    packet = struct.pack("!IHBB", 6 << 28, 0, 59, 64) + socket.inet_pton(socket.AF_INET6, "fe80::1") * 2
    header = bytes.fromhex("02000000000b 02000000000a 86dd")
    writer.write(ethernet, 1_767_225_600_123_456_789, header + packet, outgoing=True)
    writer.write(other, 1_767_225_601_000_000_001, packet, original_size=1000, outgoing=False)
    writer.close()
    fields = ["frame.interface_name", "frame.time_epoch", "frame.len", "frame.cap_len", "frame.protocols"]
    fields += ["frame.packet_flags_direction", "_ws.malformed"]
    done = subprocess.run(
        [program, "-n", "-r", str(path), "-T", "fields", "-E", "separator=;"]
        + [part for field in fields for part in ("-e", field)],
        env={**os.environ, "WIRESHARK_CONFIG_DIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, second = (line.split(";") for line in done.stdout.splitlines())
    assert first[:4] == ["n1.eth0", "1767225600.123456789", "54", "54"]
    assert first[4].startswith("eth:ethertype:ipv6")
    assert second[:4] == ["n2.acp", "1767225601.000000001", "1000", "40"]
    assert second[4].startswith("raw_ip:ipv6") or second[4].startswith("ipv6")
    assert [int(first[5], 16), int(second[5], 16)] == [2, 1]
    assert first[6] == second[6] == ""


# --- the captures -----------------------------------------------------------------------------------------

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def set_link(device: str, up: bool) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
        request = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sH22x", device.encode(), 0))
        flags = struct.unpack_from("H", request, 16)[0]
        flags = flags | IFF_UP if up else flags & ~IFF_UP
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", device.encode(), flags))


@pytest.fixture
def isolated() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Run a function in a thread with a network namespace of its own, which goes when the thread ends."""

    def enter() -> None:
        unshare(CLONE_NEWNET)
        set_link("lo", True)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(enter).result()
        yield lambda function: thread.submit(function).result(timeout=60)


Isolated = Callable[[Callable[[], None]], None]


def send_to_self(*payloads: bytes) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))
        for payload in payloads:
            sock.sendto(payload, sock.getsockname())


def capturing(device: str = "lo", **options: object) -> tuple[Capture, Stream]:
    stream = Stream()
    return Capture(device, PcapngWriter(stream), **options), stream  # type: ignore[arg-type]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a network namespace")
class TestCapture:
    """Every test has a fresh network namespace with a loopback interface."""

    def test_both_directions(self, isolated: Isolated) -> None:
        def check() -> None:
            capture, stream = capturing(name="n1.lo")
            assert capture.drain() == 0
            before = time.time_ns()
            send_to_self(b"hello", b"world")
            assert capture.drain() == 4
            after = time.time_ns()
            interfaces, frames = read(stream.content)
            assert interfaces == [("n1.lo", 1, 262_144)]
            assert [(frame.flags, frame.data[-5:]) for frame in frames] == [
                (2, b"hello"),
                (1, b"hello"),
                (2, b"world"),
                (1, b"world"),
            ]
            assert all(before <= frame.time_ns <= after for frame in frames)
            assert all(len(frame.data) == frame.original_size == 14 + 40 + 8 + 5 for frame in frames)
            assert capture.drops == 0
            capture.close()

        isolated(check)

    def test_incoming_only(self, isolated: Isolated) -> None:
        def check() -> None:
            capture, stream = capturing(incoming_only=True)
            send_to_self(b"hello")
            capture.drain()
            assert [frame.flags for frame in read(stream.content)[1]] == [1]
            capture.close()

        isolated(check)

    def test_snaplen(self, isolated: Isolated) -> None:
        def check() -> None:
            capture, stream = capturing(snaplen=60)
            send_to_self(bytes(1000))
            capture.drain()
            interfaces, frames = read(stream.content)
            assert interfaces[0][2] == 60
            assert [(len(frame.data), frame.original_size) for frame in frames] == [(60, 1062)] * 2
            capture.close()

        isolated(check)

    def test_a_drain_has_an_end(self, isolated: Isolated) -> None:
        def check() -> None:
            capture, stream = capturing()
            send_to_self(*[b"x"] * 10)
            assert [capture.drain(8), capture.drain(8), capture.drain(8), capture.drain(8)] == [8, 8, 4, 0]
            assert len(read(stream.content)[1]) == 20
            capture.close()

        isolated(check)

    def test_drops_are_counted_and_stay_counted(self, isolated: Isolated) -> None:
        def check() -> None:
            capture, stream = capturing(buffer=8192)
            send_to_self(*[bytes(1000)] * 100)
            read_in_time = capture.drain()
            assert 0 < read_in_time < 200
            assert capture.drops == 200 - read_in_time
            assert capture.drops == 200 - read_in_time
            send_to_self(b"x")
            assert capture.drain() == 2
            assert capture.drops == 200 - read_in_time
            assert len(read(stream.content)[1]) == read_in_time + 2
            capture.close()

        isolated(check)

    def test_link_down_and_up_again(self, isolated: Isolated) -> None:
        def check() -> None:
            capture, stream = capturing()
            set_link("lo", False)
            assert capture.drain() == 0
            assert capture.drain() == 0
            set_link("lo", True)
            send_to_self(b"again")
            capture.drain()
            assert [frame.data[-5:] for frame in read(stream.content)[1][-2:]] == [b"again"] * 2
            capture.close()

        isolated(check)

    def test_tun_has_raw_ipv6_and_nothing_of_other_interfaces(self, isolated: Isolated) -> None:
        def check() -> None:
            tun = open_tun("acp0")
            set_link("acp0", True)
            capture, stream = capturing("acp0", incoming_only=True)
            send_to_self(b"on lo")
            packet = struct.pack("!IHBB", 6 << 28, 0, 59, 64) + bytes(32)
            os.write(tun, packet)
            capture.drain()
            interfaces, frames = read(stream.content)
            assert interfaces[0][:2] == ("acp0", LinkType.IPV6)
            assert [frame.data for frame in frames] == [packet]
            capture.close()
            os.close(tun)

        if not Path("/dev/net/tun").exists():
            pytest.skip("no /dev/net/tun")
        isolated(check)

    def test_two_interfaces_in_one_file(self, isolated: Isolated) -> None:
        def check() -> None:
            stream = Stream()
            writer = PcapngWriter(stream)
            one, two = Capture("lo", writer, name="one"), Capture("lo", writer, name="two")
            send_to_self(b"x")
            assert (one.drain(), two.drain()) == (2, 2)
            interfaces, frames = read(stream.content)
            assert [name for name, _, _ in interfaces] == ["one", "two"]
            assert [frame.interface for frame in frames] == [0, 0, 1, 1]
            one.close()
            two.close()
            assert not stream.closed

        isolated(check)

    def test_asyncio(self, isolated: Isolated) -> None:
        async def wait_for(capture: Capture) -> int:
            loop, counts = asyncio.get_running_loop(), asyncio.Queue[int]()
            loop.add_reader(capture.fileno(), lambda: counts.put_nowait(capture.drain()))
            send_to_self(b"x")
            async with asyncio.timeout(10):
                return await counts.get()

        def check() -> None:
            capture, _ = capturing()
            assert asyncio.run(wait_for(capture)) == 2
            capture.close()

        isolated(check)

    def test_no_such_interface(self, isolated: Isolated) -> None:
        def check() -> None:
            with pytest.raises(OSError) as caught:
                capturing("nothing0")
            assert caught.value.errno == errno.ENODEV

        isolated(check)
