"""What tests of security have in common: a lab that stands, an attacker's place in it, and his tools.

The tools are a packet socket with frames built by hand (:class:`Wire`), and a peer that is made of the
protocol cores, as a node is, but with any identity and with no scruples (:class:`Peer`).
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import random
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from minerva.connect import control
from minerva.connect.runner import CoreRunner
from minerva.connect.state import link_local_of
from minerva.grasp.announcement import AN_ACP_IKEV2
from minerva.grasp.constants import ALL_GRASP_NEIGHBORS, GRASP_LISTEN_PORT
from minerva.grasp.dull import DullInstance
from minerva.ikev2 import auth
from minerva.ikev2 import events as ike
from minerva.ikev2.constants import IKE_PORT, ExchangeType
from minerva.ikev2.endpoint import Endpoint
from minerva.ikev2.errors import IkeDecodeError
from minerva.ikev2.message import Header
from minerva.lab import nodes
from minerva.lab.network import host_namespace, namespace_prefix
from minerva.linux import namespace, sockets
from minerva.linux.icmp import EchoSocket
from minerva.linux.namespace import Namespace
from minerva.linux.nftables import Nftables
from minerva.linux.sockopt import force_receive_buffer
from minerva.pki.identity import Identity
from minerva.pki.membership import Member
from minerva.pki.node_name import AcpNodeName
from tests.lab.conftest import minerva

ICMPV6, TCP, UDP, ESP, HOP_BY_HOP, FRAGMENT, DESTINATION_OPTIONS = 58, 6, 17, 50, 0, 44, 60
UNREACHABLE, PARAMETER_PROBLEM = 1, 4
ECHO_REQUEST, ECHO_REPLY = 128, 129
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136
SYN, SYN_ACK, RST = 0x02, 0x12, 0x04

WIRE = "wire0"
"""The attacker's own interface."""


def until(condition: Callable[[], Any], what: str, *, seconds: float = 20.0) -> Any:
    """Return what ``condition`` returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        assert time.monotonic() < deadline, f"after {seconds} seconds still not: {what}"
        time.sleep(0.05)


def run(*command: str) -> str:
    """Return what ``command`` prints; it must succeed."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}: {result.stderr}"
    return result.stdout


# --- the lab -----------------------------------------------------------------------------------------------


class StandingLab:
    """A lab that is up, and what is in it."""

    def __init__(self, name: str, directory: Path, stack: ExitStack) -> None:
        self.name = name
        self.directory = directory
        self._stack = stack

    def run_dir(self, node: str) -> Path:
        """The run directory of a node."""
        return self.directory / "nodes" / node / "run"

    def state_dir(self, node: str) -> Path:
        """The state directory of a node."""
        return self.directory / "nodes" / node / "state"

    def status(self, node: str) -> dict[str, Any]:
        """What ``minerva status --json`` prints, without the start of a command for each look."""
        return control.call(self.run_dir(node) / "control.sock", {"command": "status"})

    def port(self, node: str, name: str = "eth0") -> dict[str, Any]:
        """The status of a port."""
        return next(port for port in self.status(node)["ports"] if port["name"] == name)

    def channel(self, node: str, peer: str) -> dict[str, Any]:
        """The status of the channel to another node."""
        name = self.status(peer)["node"]["name"]
        return next(item for item in self.status(node)["channels"] if item["peer_name"] == name)

    def channels(self, node: str) -> dict[int, str]:
        """The numbers of a node's channels, with the peers. A channel that was built anew has another."""
        return {item["channel"]: item["peer_name"] for item in self.status(node)["channels"]}

    def processes(self, node: str) -> dict[str, dict[str, Any]]:
        """The processes of a node by name."""
        return {item["name"]: item for item in self.status(node)["processes"]}

    def _opened(self, where: Namespace) -> Namespace:
        self._stack.callback(where.close)
        return where

    def host(self, what: str) -> Namespace:
        """The namespace of a node's host."""
        return self._opened(Namespace(host_namespace(self.name, what)))

    def inside(self, node: str) -> Namespace:
        """The ACP namespace of a node."""
        return self._opened(Namespace(self.status(node)["acp0"]["namespace"]))

    def link(self, node: str, port: str = "eth0") -> Namespace:
        """The link namespace of a port."""
        return self._opened(Namespace(self.port(node, port)["namespace"]))

    def attacker(self, name: str, into: str, device: str, *, bridge: bool = False) -> Wire:
        """Return a new namespace with a wire into ``device`` of the host or LAN ``into``."""
        where = self._opened(Namespace.create(host_namespace(self.name, name)))
        with where.entered():
            namespace.write_sysctls({"ipv6/conf/default/accept_dad": 0, "ipv6/conf/default/dad_transmits": 0})
        target = host_namespace(self.name, f"_{into}" if bridge else into)
        run("ip", "-n", where.name, "link", "add", WIRE, "type", "veth", "peer", device, "netns", target)
        if bridge:
            run("ip", "-n", target, "link", "set", device, "master", "br0")
        run("ip", "-n", target, "link", "set", device, "up")
        run("ip", "-n", where.name, "link", "set", WIRE, "up")
        run("ip", "-n", where.name, "link", "set", "lo", "up")
        return self._stack.enter_context(Wire(where, WIRE))


@contextmanager
def standing_lab(topology: str, name: str, directory: Path, *options: str) -> Iterator[StandingLab]:
    """A lab that all tests of a module share; afterwards nothing of it may be left.

    ``options`` are further ones of ``minerva lab up``.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    name = f"{name}-{os.getpid()}"
    environment = os.environ | {"MINERVA_LAB_DIR": str(directory)}
    marks: list[str] = []
    pids: set[int] = set()
    stack = ExitStack()
    try:
        up = minerva("lab", "up", topology, "--name", name, *options, env=environment)
        assert up.returncode == 0, up.stderr
        lab = StandingLab(name, directory / name, stack)
        nodes = sorted(path.name for path in (lab.directory / "nodes").iterdir())
        marks = [lab.status(node)["node"]["tag"] for node in nodes]
        yield lab
        pids = {item["pid"] for node in nodes for item in lab.processes(node).values() if item["pid"]}
    finally:
        stack.close()
        down = minerva("lab", "down", name, env=environment)
    assert down.returncode == 0, down.stderr
    prefixes = [namespace_prefix(name), *(f"minerva-{mark}-" for mark in marks)]
    assert [left for prefix in prefixes for left in namespace.names(prefix)] == []
    until(lambda: not any(map(_runs, pids)), "all processes have ended")


def kill_and_start(lab: StandingLab, node: str) -> None:
    """Kill all processes of a node at once, and start it again."""
    it = nodes.LabNode(node, lab.directory / "nodes" / node)
    for pid in nodes._processes([it]):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    it.start(lab.host(node), follow_us=False)
    assert it.process is not None
    # It ends with the lab, and is not waited for.
    it.process.returncode = 0


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def counter(where: Namespace, name: str) -> int:
    """Return how many packets the named counters ``name`` of a namespace's nftables have counted."""
    with where.entered(), Nftables() as nftables:
        words = nftables.run("list counters").split()
    return sum(
        int(words[index + 4])
        for index, word in enumerate(words)
        if word == "counter" and words[index + 1] == name
    )


def neighbours(where: Namespace) -> int:
    """Return how many entries a namespace has in the kernel's neighbour table, whatever their state."""
    return len(run("ip", "-n", where.name, "-6", "neigh", "show", "nud", "all").splitlines())


class Pings:
    """Pings from one address to another, one at a time, while something else goes on."""

    def __init__(self, where: Namespace, source: str, destination: str) -> None:
        with where.entered():
            self._socket = EchoSocket(IPv6Address(source))
        self._destination = IPv6Address(destination)
        self.sent = self.answered = self._sequence = 0

    def send(self) -> None:
        """Send one more."""
        self.sent += 1
        self._sequence += 1
        self._socket.send(self._destination, os.getpid() & 0xFFFF, self._sequence & 0xFFFF)
        self.answered += len(self._socket.receive())

    def lost(self) -> int:
        """Wait for what is under way; return how many had no answer."""
        deadline = time.monotonic() + 5.0
        while self.answered < self.sent and time.monotonic() < deadline:
            time.sleep(0.02)
            self.answered += len(self._socket.receive())
        return self.sent - self.answered

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def forget(self) -> None:
        """Wait for what is under way, and count from here."""
        self.lost()
        self.sent = self.answered = 0

    def reaches(self) -> bool:
        """Send one, and return whether it is answered within half a second."""
        before = self.answered
        try:
            self.send()
        except OSError:  # what the kernel says if it has no room for the neighbour
            return False
        deadline = time.monotonic() + 0.5
        while self.answered == before and time.monotonic() < deadline:
            time.sleep(0.01)
            self.answered += len(self._socket.receive())
        return self.answered > before

    def __enter__(self) -> Pings:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()


# --- packets -----------------------------------------------------------------------------------------------


def ethernet(destination: str, source: str, packet: bytes) -> bytes:
    """Return a frame with an IPv6 packet."""
    return bytes.fromhex(destination.replace(":", "") + source.replace(":", "")) + b"\x86\xdd" + packet


def ipv6(source: IPv6Address, destination: IPv6Address, kind: int, payload: bytes, hops: int = 64) -> bytes:
    """Return an IPv6 packet with the next header ``kind``."""
    head = struct.pack("!IHBB", 6 << 28, len(payload), kind, hops)
    return head + source.packed + destination.packed + payload


def _checksum(source: IPv6Address, destination: IPv6Address, kind: int, message: bytes) -> int:
    data = source.packed + destination.packed + struct.pack("!II", len(message), kind) + message
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF


def _with_checksum(
    source: IPv6Address, destination: IPv6Address, kind: int, message: bytes, at: int, hops: int = 64
) -> bytes:
    value = _checksum(source, destination, kind, message)
    return ipv6(source, destination, kind, message[:at] + value.to_bytes(2) + message[at + 2 :], hops)


def udp(source: IPv6Address, destination: IPv6Address, ports: tuple[int, int], data: bytes) -> bytes:
    """Return a UDP packet; ``ports`` are those of source and destination."""
    message = struct.pack("!4H", *ports, 8 + len(data), 0) + data
    return _with_checksum(source, destination, UDP, message, 6)


def tcp_syn(source: IPv6Address, destination: IPv6Address, ports: tuple[int, int]) -> bytes:
    """Return the packet that wants to open a TCP connection."""
    message = struct.pack("!2H2IBB3H", *ports, 1000, 0, 5 << 4, SYN, 65_535, 0, 0)
    return _with_checksum(source, destination, TCP, message, 16)


def icmpv6(source: IPv6Address, destination: IPv6Address, kind: int, body: bytes, hops: int = 64) -> bytes:
    """Return an ICMPv6 packet with code 0."""
    return _with_checksum(source, destination, ICMPV6, bytes((kind, 0, 0, 0)) + body, 2, hops)


def echo_request(source: IPv6Address, destination: IPv6Address) -> bytes:
    """Return a ping."""
    return icmpv6(source, destination, ECHO_REQUEST, b"\x12\x34\0\1minerva")


def solicitation(source: IPv6Address, destination: IPv6Address, target: IPv6Address, mac: bytes) -> bytes:
    """Return a neighbour solicitation by which ``source`` at ``mac`` asks for ``target``."""
    body = bytes(4) + target.packed + b"\x01\x01" + mac
    return icmpv6(source, destination, NEIGHBOUR_SOLICITATION, body, 255)


def fragments(packet: bytes, number: int) -> Iterator[bytes]:
    """Yield a packet in two fragments; the first holds 8 bytes of the payload."""
    source, destination = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
    for offset, piece in ((0, packet[40:48]), (8, packet[48:])):
        header = struct.pack("!BBHI", packet[6], 0, offset | (offset == 0), number)
        yield ipv6(source, destination, FRAGMENT, header + piece)


@dataclass(frozen=True, slots=True)
class Packet:
    """An IPv6 packet that was heard; ``kind`` and ``data`` are those after a hop-by-hop header."""

    source: IPv6Address
    destination: IPv6Address
    kind: int
    data: bytes
    outgoing: bool
    mac: str

    @property
    def icmp_type(self) -> int | None:
        """The type of an ICMPv6 message."""
        return self.data[0] if self.kind == ICMPV6 and self.data else None

    @property
    def ports(self) -> tuple[int, int]:
        """The ports, source first, of UDP or TCP."""
        source, destination = struct.unpack_from("!2H", self.data)
        return source, destination

    @property
    def tcp_flags(self) -> int:
        """The flags of a TCP segment."""
        return self.data[13]

    def __str__(self) -> str:
        return f"{self.source} > {self.destination}: protocol {self.kind}, {self.data[:16].hex()}"


def _parse(frame: bytes, outgoing: bool) -> Packet | None:
    if len(frame) < 54 or frame[12:14] != b"\x86\xdd":
        return None
    kind, data = frame[20], frame[54 : 54 + int.from_bytes(frame[18:20])]
    if kind == HOP_BY_HOP and len(data) >= 8:
        kind, data = data[0], data[8 * (data[1] + 1) :]
    source, destination = IPv6Address(frame[22:38]), IPv6Address(frame[38:54])
    return Packet(source, destination, kind, data, outgoing, frame[6:12].hex(":"))


_ETH_P_ALL = 3  # any other does not see what a macvlan takes from the interface
_PACKET_OUTGOING = 4
_SIOCGIFHWADDR = 0x8927


class Wire:
    """A packet socket on an interface of a namespace: sends any frame, hears all IPv6."""

    def __init__(self, where: Namespace, device: str) -> None:
        self.where = where
        with where.entered():
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0
            )
            force_receive_buffer(self._socket, 16 << 20)
            self._socket.bind((device, _ETH_P_ALL))
            self.index = socket.if_nametoindex(device)
            request = struct.pack("16s16x", device.encode())
            self.mac = fcntl.ioctl(self._socket, _SIOCGIFHWADDR, request)[18:24].hex(":")
        self._socket.setblocking(False)

    @property
    def address(self) -> IPv6Address:
        """The link-local address that the kernel has given to the interface."""
        return link_local_of(self.mac)

    def send(self, mac: str, packet: bytes) -> None:
        """Send a packet to the station ``mac``."""
        self.send_frame(ethernet(mac, self.mac, packet))

    def send_frame(self, frame: bytes) -> None:
        """Send a frame, waiting if the queue is full."""
        while True:
            try:
                self._socket.send(frame)
                return
            except (BlockingIOError, OSError) as error:
                if not isinstance(error, BlockingIOError) and error.errno != 105:  # ENOBUFS
                    raise
                time.sleep(0.001)

    def forget(self) -> None:
        """Drop what was heard so far."""
        self.heard(0.0)

    def heard(self, seconds: float) -> list[Packet]:
        """Return the packets heard up to ``seconds`` from now."""
        packets, deadline = [], time.monotonic() + seconds
        while True:
            try:
                frame, address = self._socket.recvfrom(65_535)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return packets
                time.sleep(0.01)
                continue
            except OSError as error:
                if error.errno != 100:  # ENETDOWN is said once, and then the socket goes on
                    raise
                continue
            packet = _parse(frame, address[2] == _PACKET_OUTGOING)
            if packet is not None:
                packets.append(packet)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()


def random_link_local(source: random.Random) -> IPv6Address:
    """Return a link-local address that nobody has."""
    return IPv6Address((0xFE80 << 112) | source.getrandbits(64))


MAX_GARBAGE = 1400
"""How long garbage gets: with its headers it fits into a frame."""


def mutated(genuine: Sequence[bytes], source: random.Random, keep: int = 0) -> bytes:
    """Return garbage: random bytes, or a genuine message cut, changed, lengthened or mixed with another.

    The first ``keep`` bytes of a message that is changed stay as they are.
    """
    data = bytearray(source.choice(genuine))
    match source.randrange(6):
        case 0:
            return source.randbytes(source.randrange(MAX_GARBAGE))
        case 1:
            return bytes(data[: source.randrange(len(data))])
        case 2:
            data += source.randbytes(source.randrange(1, 64))
        case 3:
            other = source.choice(genuine)
            data[source.randrange(len(data)) :] = other[source.randrange(len(other)) :]
        case 4:
            data[keep:] = source.randbytes(len(data))
        case 5:
            for _ in range(source.randrange(1, 9)):
                data[source.randrange(min(keep, len(data) - 1), len(data))] = source.randrange(256)
    return bytes(data[:MAX_GARBAGE])


# --- a peer made of the cores ------------------------------------------------------------------------------

_FAR = timedelta(days=1)


def believe(chain: Sequence[x509.Certificate]) -> Member:
    """Take anybody for a member: who wants in does not ask who is there."""
    return Member(chain[0], AcpNodeName.of(chain[0]), None, datetime.now(UTC) + _FAR)


@dataclass
class Peer:
    """A peer at the end of a wire. It announces itself, answers, and initiates when told so.

    Use it in asyncio. With ``ula`` that is the only address at which it announces itself. ``answers`` counts
    the attempts (IKE_SA_INIT requests) of ours that were answered, by the address that answered.
    """

    wire: Wire
    identity: Identity
    key: PrivateKeyTypes
    established: list[ike.Established] = field(default_factory=list)
    failed: list[ike.Failed] = field(default_factory=list)
    closed: list[ike.Closed] = field(default_factory=list)
    answers: dict[IPv6Address, set[bytes]] = field(default_factory=dict)
    ula: IPv6Address | None = None

    def start(self, *, announce: bool = True) -> None:
        """Open the sockets, and announce this peer on the link."""
        now = asyncio.get_running_loop().time()
        with self.wire.where.entered():
            dull_socket = sockets.multicast_socket(
                WIRE, self.wire.index, ALL_GRASP_NEIGHBORS, GRASP_LISTEN_PORT
            )
            ike_socket = sockets.udp_socket(WIRE, IKE_PORT)
        self._dull = DullInstance(self.wire.address, random=random.SystemRandom())
        self._endpoint = Endpoint(self.wire.address, self.identity, believe, os.urandom, ula=self.ula)
        self._runners = [
            CoreRunner(self._dull, dull_socket, lambda *_: None),
            CoreRunner(self._endpoint, ike_socket, self._on_event, accept=self._note),
        ]
        if announce:
            self._dull.announce([replace(AN_ACP_IKEV2, address=self.ula)], now)
        self._pump()

    def _pump(self) -> None:
        for runner in self._runners:
            runner.pump()

    def _note(self, data: bytes, address: IPv6Address, port: int, now: float) -> bool:  # noqa: ARG002
        try:
            header = Header.decode(data)
        except IkeDecodeError:
            return False
        if header.exchange == ExchangeType.IKE_SA_INIT and header.is_response:
            self.answers.setdefault(address, set()).add(header.spi_i)
        return True

    def _on_event(self, event: object, now: float) -> None:
        match event:
            case ike.SignatureNeeded():
                octets = auth.signed_octets(event.message, event.nonce, event.maced_id)
                self._endpoint.signed(event.sa, auth.sign(self.key, octets, event.hash), now)
            case ike.Established():
                self.established.append(event)
            case ike.Failed():
                self.failed.append(event)
            case ike.Closed():
                self.closed.append(event)

    def initiate(self, address: IPv6Address) -> None:
        """Begin an IKE SA with the node at ``address``."""
        self._endpoint.initiate(address, IKE_PORT, asyncio.get_running_loop().time())
        self._pump()

    def close(self) -> None:
        """Go without a word."""
        for runner in self._runners:
            runner.close()


async def soon(condition: Callable[[], Any], what: str, *, seconds: float = 20.0) -> Any:
    """As :func:`until`, while peers run."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"after {seconds} seconds still not: {what}"
        await asyncio.sleep(0.05)
    return found


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield ``items`` in lists of ``size``."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
