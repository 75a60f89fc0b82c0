"""What the user-space data plane does to packets under load: nothing. And what it writes to a real TUN."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from minerva.connect import ipc
from minerva.connect import messages as m
from minerva.connect.data_plane import DataPlane
from minerva.connect.forwarding_loop import ForwardingLoop
from minerva.core.secret import Secret
from minerva.esp.packet import REKEY_BYTES
from minerva.esp.sa import KEYMAT_SIZE, OutboundSA
from minerva.linux.namespace import Namespace
from minerva.linux.tun import open_tun
from tests.lab.attacker import Pings, StandingLab, run, standing_lab, until

pytestmark = pytest.mark.root

SECONDS = 2
BYTES = 4_000_001
MTU = 1400
HERE, THERE = IPv6Address("fd00::1"), IPv6Address("fd00::2")
TCP, UDP, ICMPV6, FRAGMENT = 6, 17, 58, 44


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    with standing_lab("line:2", "throughput", tmp_path_factory.mktemp("labs")) as found:
        yield found


def acp0(lab: StandingLab, node: str) -> str:
    return str(lab.status(node)["acp0"]["address"])


def drops(lab: StandingLab) -> list[dict[str, int]]:
    """What the data planes dropped so far, by reason: there may be some from before there were keys."""
    return [channel["drops"] for node in ("n1", "n2") for channel in lab.status(node)["channels"]]


def snmp(namespace: Namespace) -> dict[str, int]:
    """The kernel's counters of a namespace that tell of packets it did not like."""
    with namespace.entered():
        # In a thread's own namespace, the calling thread must read: /proc/net is that of the process.
        ipv6 = Path("/proc/thread-self/net/snmp6").read_text()
        ipv4 = Path("/proc/thread-self/net/snmp").read_text()
    found = {name: int(value) for name, value in (line.split() for line in ipv6.splitlines())}
    names, values = (line.split()[1:] for line in ipv4.splitlines() if line.startswith("Tcp:"))
    # TCP counts for both protocols together, under this name.
    found["TcpInCsumErrors"] = int(dict(zip(names, values, strict=True))["InCsumErrors"])
    wanted = (
        "TcpInCsumErrors",
        "Udp6InCsumErrors",
        "Icmp6InCsumErrors",
        "Ip6InHdrErrors",
        "Ip6InTruncatedPkts",
    )
    return {name: found[name] for name in wanted}


@pytest.mark.parametrize(("sender", "receiver"), [("n1", "n2"), ("n2", "n1")])
def test_tcp_arrives_as_it_was_sent(lab: StandingLab, sender: str, receiver: str) -> None:
    """Whatever the sizes of the writes, and no checksum was wrong on the way."""
    hosts = [lab.host(sender), lab.host(receiver)]
    insides = [lab.inside(node) for node in ("n1", "n2")]
    before, dropped = [snmp(where) for where in hosts + insides], drops(lab)
    data = random.Random(sender).randbytes(BYTES)
    with hosts[1].entered():
        listener = socket.create_server((acp0(lab, receiver), 0), family=socket.AF_INET6)
    with hosts[0].entered():
        out = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    got = hashlib.sha256()

    def receive() -> None:
        connection, _ = listener.accept()
        with connection:
            while chunk := connection.recv(1 << 20):
                got.update(chunk)

    thread = threading.Thread(target=receive)
    thread.start()
    with out, listener:
        out.settimeout(60)
        out.connect(listener.getsockname()[:2])
        position = 0
        while position < len(data):  # ever more at once, from single bytes to what becomes many segments
            size = 1 + position // 3
            out.sendall(data[position : position + size])
            position += size
        out.shutdown(socket.SHUT_WR)
        thread.join(60)
    assert got.digest() == hashlib.sha256(data).digest()
    assert [snmp(where) for where in hosts + insides] == before
    assert drops(lab) == dropped


def test_udp_datagrams_arrive_in_order(lab: StandingLab) -> None:
    """Of any length, odd ones and fragmented ones included."""
    with lab.host("n2").entered():
        receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        receiver.bind((acp0(lab, "n2"), 0))
    with lab.host("n1").entered():
        sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sizes = [0, 1, 7, 63, 1300, 1301, 1378, 1379, 1453, 4001, 65_000, *range(100, 140)]
    with sender, receiver:
        receiver.settimeout(10)
        sent = [bytes([number]) * size for number, size in enumerate(sizes)]
        for datagram in sent:
            sender.sendto(datagram, receiver.getsockname()[:2])
        assert [receiver.recv(65_535) for _ in sent] == sent


@pytest.mark.skipif(shutil.which("iperf3") is None, reason="needs iperf3")
@pytest.mark.parametrize("direction", [[], ["--reverse"]])
def test_iperf3(lab: StandingLab, direction: list[str]) -> None:
    """A full pipe in either direction: the channel stays, and no packet fails its integrity check."""
    channels, dropped = lab.channels("n1"), drops(lab)
    listen = ["iperf3", "--server", "--one-off", "--forceflush"]
    with lab.host("n2").entered():
        server = subprocess.Popen(listen, stdout=subprocess.PIPE, text=True)
    with server:
        assert server.stdout is not None
        assert any("listening" in line for line in server.stdout)
        command = ["iperf3", "--client", acp0(lab, "n2"), "--time", str(SECONDS), "--json", *direction]
        with lab.host("n1").entered():
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        server.terminate()
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["end"]["sum_received"]["bytes"] > 1_000_000
    assert lab.channels("n1") == channels
    # What TCP makes of losses in queues is its business; nothing may be damaged or come twice.
    assert drops(lab) == dropped


def test_the_data_plane_goes_first_while_packets_queue_up(lab: StandingLab) -> None:
    """Not before and not after, and not for a while after it had no rest."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors")
    pid = lab.processes("n1")["data-plane"]["pid"]
    first = os.SCHED_RR | os.SCHED_RESET_ON_FORK

    def is_first() -> bool:
        return os.sched_getscheduler(pid) == first

    def is_first_after_a_queue(pings: Pings) -> bool:
        os.kill(pid, signal.SIGSTOP)
        for _ in range(100):
            pings.send()
        os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + 0.5
        while not (found := is_first()) and time.monotonic() < deadline:
            time.sleep(0.002)
        return found

    until(lambda: not is_first(), "it is an ordinary process")
    with Pings(lab.host("n1"), acp0(lab, "n1"), acp0(lab, "n2")) as pings:
        until(lambda: is_first_after_a_queue(pings), "it goes first")
        until(lambda: not is_first(), "it is an ordinary process again")
        os.kill(pid, signal.SIGXCPU)  # as the kernel does
        time.sleep(0.3)
        assert not is_first_after_a_queue(pings)
        until(lambda: is_first_after_a_queue(pings), "it goes first again")
    assert lab.processes("n1")["data-plane"]["pid"] == pid


# --- one TUN interface -------------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[tuple[Namespace, int]]:
    """A namespace with a TUN interface, and its descriptor."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    where = Namespace.create(f"lab-tun-{os.getpid()}-{secrets.token_hex(2)}")
    tun = -1
    try:
        with where.entered():
            tun = open_tun("acp_t")
        run("ip", "-n", where.name, "link", "set", "acp_t", "mtu", str(MTU), "addrgenmode", "none", "up")
        run("ip", "-n", where.name, "address", "add", f"{HERE}/64", "dev", "acp_t", "nodad")
        yield where, tun
    finally:
        if tun >= 0:
            os.close(tun)
        where.delete()


def read_all(tun: int, kind: int) -> list[bytes]:
    """All packets to THERE that the kernel has for the interface and whose next header is ``kind``."""
    packets = []
    while True:
        try:
            packet = os.read(tun, 65_535)
        except BlockingIOError:
            return packets
        if packet[6] == kind and packet[24:40] == THERE.packed:
            packets.append(packet)


def checksum_holds(packet: bytes) -> bool:
    """RFC 8200 section 8.1, by the book."""
    payload = packet[40:]
    pseudo = packet[8:40] + struct.pack("!I3xB", len(payload), packet[6])
    data = pseudo + payload + bytes(len(payload) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF


def answered(syn: bytes, size: int) -> bytes:
    """The SYN-ACK that lets the kernel send segments of ``size`` bytes to THERE."""
    ports, sequence = syn[42:44] + syn[40:42], int.from_bytes(syn[44:48])
    head = ports + struct.pack("!IIBBHHH", 1000, sequence + 1, 6 << 4, 0x12, 65_535, 0, 0)
    options = struct.pack("!BBH", 2, 4, size)
    packet = b"\x60\0\0\0" + struct.pack("!HBB", 24, TCP, 64) + THERE.packed + HERE.packed + head + options
    total = sum(struct.unpack(f"!{len(packet[8:]) // 2}H", packet[8:])) + 24 + TCP
    return packet[:56] + (-total % 0xFFFF).to_bytes(2) + packet[58:]


@pytest.mark.parametrize("size", [217, 536, 1000, 1001, 1339, 1340])
def test_the_kernel_cuts_what_tcp_sends(place: tuple[Namespace, int], size: int) -> None:
    """Each read is one whole segment of at most the size agreed on, in order, with its checksum."""
    where, tun = place
    data = random.Random(size).randbytes(9 * size + 5)
    with where.entered():
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    with sock:
        sock.setblocking(False)
        sock.connect_ex((str(THERE), 80))
        [syn] = read_all(tun, TCP)
        assert checksum_holds(syn)
        os.write(tun, answered(syn, size))
        read_all(tun, TCP)
        sock.sendall(data)
        packets = read_all(tun, TCP)
    assert all(checksum_holds(packet) for packet in packets)
    assert all(len(packet) == 40 + int.from_bytes(packet[4:6]) <= min(MTU, 60 + size) for packet in packets)
    expected, stream = int.from_bytes(syn[44:48]) + 1, b""
    for packet in packets:
        assert int.from_bytes(packet[44:48]) == (expected + len(stream)) % 2**32
        stream += packet[40 + (packet[52] >> 4) * 4 :]
    assert len(packets) > 5
    assert data.startswith(stream)


def test_the_kernel_completes_checksums(place: tuple[Namespace, int]) -> None:
    """Of UDP and ICMPv6 of any length; what is fragmented keeps its extension header."""
    where, tun = place
    with where.entered():
        udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        icmp = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    sizes = [1, 2, 7, 100, 1301, 1352]
    with udp, icmp:
        for size in sizes:
            udp.sendto(os.urandom(size), (str(THERE), 9))
        found = read_all(tun, UDP)
        assert [len(packet) - 48 for packet in found] == sizes
        assert all(map(checksum_holds, found))
        for size in sizes:
            icmp.sendto(b"\x80\0\0\0\0\1\0\1" + os.urandom(size), (str(THERE), 0))
        found = read_all(tun, ICMPV6)
        assert [len(packet) - 48 for packet in found] == sizes
        assert all(map(checksum_holds, found))
        udp.sendto(os.urandom(3000), (str(THERE), 9))
        assert len(read_all(tun, FRAGMENT)) == 3


def hostile() -> list[bytes]:
    """Packets that no kernel sends, with a version and a length that pass."""
    rand = random.Random(4)
    found = []
    for kind in (0, TCP, UDP, 43, FRAGMENT, 50, ICMPV6, 59, 60, 255):
        for size in (0, 1, 3, 7, 8, 19, 20, 39, 64, 1301, 30_001, 60_000):
            for hops in (0, 255):
                addresses = rand.choice((THERE.packed, HERE.packed, bytes(16), b"\xff" * 16)) + HERE.packed
                start = b"\x6f\xff\xff\xff" + struct.pack("!HBB", size, kind, hops)
                found.append(start + addresses + rand.randbytes(size))
    return found


def test_a_malicious_peer_does_not_end_the_channel(place: tuple[Namespace, int]) -> None:
    """Whatever it puts into authentic packets: they reach the kernel as they are, or are counted."""
    _, tun = place
    key = Secret(secrets.token_bytes(KEYMAT_SIZE))

    async def main() -> None:
        near, far = ipc.socket_pair()
        said: list[ipc.Message] = []
        plane = DataPlane(far)
        supervisor = ipc.Ipc(near, lambda message, _: said.append(message), lambda _: None)
        wire, esp = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        wire.setblocking(False)
        esp.setblocking(False)
        supervisor.send(m.ChannelAttach(1, "acp_t", MTU, REKEY_BYTES), [tun, esp.fileno()])
        esp.close()
        supervisor.send(m.ChannelKeys(1, 300, 400, key, key, send=True))
        peer, packets = OutboundSA(300, key), hostile()
        loop = asyncio.get_running_loop()
        for packet in packets:
            await loop.sock_sendall(wire, peer.seal(packet))
        for _ in range(100):
            [channel] = plane.state()["channels"]
            if channel["packets_in"] == len(packets):
                break
            await asyncio.sleep(0.02)
        assert channel["packets_in"] == len(packets)
        assert channel["drops"] == {}
        await asyncio.sleep(1.2)
        assert [each for each in said if each != m.Hurry()] == [m.Traffic((1,))], "no fault"
        supervisor.send(m.ChannelDetach(1))
        await asyncio.sleep(0.05)
        supervisor.close()
        wire.close()

    with asyncio.Runner(loop_factory=ForwardingLoop) as runner:
        runner.run(main())
