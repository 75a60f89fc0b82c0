"""What a forged IKE_SA_INIT costs who sends it, and the node that gets it: CPU time of both, in microseconds.

Each request is good in itself and comes from a neighbour that does not exist. They are made before, and sent
by ``sendmmsg`` from a packet socket, 16 at a time: the cheapest sender there is without a driver of its own.
What arrives by a veth pair is received in the sender's time, so the sender is also measured with the same
packets on a wire at whose other end the kernel drops them at once. The difference is what it takes the kernel
of the node to receive them, which no statistic of the node's processes shows.

Needs root. Prints JSON lines (see ``_report``).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from _report import report
from minerva.ikev2.constants import IKE_PORT
from minerva.ikev2.endpoint import Endpoint
from minerva.lab.lab import base_directory, down
from minerva.lab.network import host_namespace
from minerva.lab.nodes import LabNode
from minerva.linux.namespace import Namespace
from minerva.pki.ca import CertificateAuthority
from minerva.pki.identity import Identity

LAB = "bench-flood"
RATES = {"100,000 a minute": 100_000 / 60, "as fast as it can": float("inf")}
FAST_SECONDS = 5.0
BATCH = 16
DIFFERENT = 20_000
"""How many different requests are made; then the first comes again, which the node has forgotten by then."""

IDLE_SECONDS = 10.0
UDP, ETHERTYPE = 17, bytes.fromhex("86dd")


class _Vector(ctypes.Structure):  # struct iovec
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):  # struct msghdr
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):  # struct mmsghdr
    _fields_ = (("header", _Header), ("sent", ctypes.c_uint))


class Sender:
    """Frames in memory as ``sendmmsg`` wants them, and a packet socket on ``device``."""

    def __init__(self, where: Namespace, device: str, frames: list[bytes]) -> None:
        with where.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._socket.bind((device, 0))
        self._memory = [ctypes.create_string_buffer(frame, len(frame)) for frame in frames]
        self._vectors = (_Vector * len(frames))(
            *((ctypes.addressof(held), len(frame)) for held, frame in zip(self._memory, frames, strict=True))
        )
        size = ctypes.sizeof(_Vector)
        first = ctypes.addressof(self._vectors)
        self._messages = (_Message * len(frames))(
            *(((None, 0, first + number * size, 1, None, 0, 0), 0) for number in range(len(frames)))
        )
        self._call = ctypes.CDLL(None, use_errno=True).sendmmsg
        self._call.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
        self._next = 0

    def send(self, count: int) -> int:
        """Send the next ``count`` frames, or fewer up to the last of all; return how many."""
        count = min(count, len(self._messages) - self._next)
        start = ctypes.addressof(self._messages) + self._next * ctypes.sizeof(_Message)
        sent: int = self._call(self._socket.fileno(), start, count, 0)
        if sent < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._next = (self._next + sent) % len(self._messages)
        return sent

    def flood(self, seconds: float, rate: float) -> tuple[int, float]:
        """Send ``rate`` a second for so long; return how many, and the CPU time of each in microseconds."""
        sent, cpu, started = 0, 0.0, time.monotonic()
        while (passed := time.monotonic() - started) < seconds:
            if sent + BATCH <= passed * rate:
                before = time.thread_time()
                sent += self.send(BATCH)
                cpu += time.thread_time() - before
            else:
                time.sleep(0.002)
        return sent, cpu * 1e6 / sent

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def frames(init: bytes, destination: IPv6Address, mac: bytes) -> list[bytes]:
    """Return ``init`` as if from ``DIFFERENT`` neighbours, each with an SPI of its own."""
    source = random.Random(7)
    made = []
    for _ in range(DIFFERENT):
        sender = b"\xfe\x80" + bytes(6) + source.randbytes(8)
        data = source.randbytes(8) + init[8:]
        head = struct.pack("!4H", IKE_PORT, IKE_PORT, 8 + len(data), 0)
        pseudo = sender + destination.packed + struct.pack("!II", 8 + len(data), UDP)
        octets = pseudo + head + data + bytes(len(data) % 2)
        total = sum(struct.unpack(f"!{len(octets) // 2}H", octets)) % 0xFFFF
        head = head[:6] + struct.pack("!H", 0xFFFF - total)
        ip = struct.pack("!IHBB", 6 << 28, 8 + len(data), UDP, 64) + sender + destination.packed
        made.append(mac + b"\x02" + source.randbytes(5) + ETHERTYPE + ip + head + data)
    return made


def request(authority: CertificateAuthority, destination: IPv6Address) -> bytes:
    """Return the IKE_SA_INIT request of a node."""
    issued = authority.issue()
    identity = Identity.from_certificates(issued.certificate, issued.chain, issued.anchors)

    def nobody(chain: Any) -> Any:
        raise AssertionError(chain)

    endpoint = Endpoint(IPv6Address("fe80::bad"), identity, nobody, os.urandom)
    endpoint.initiate(destination, IKE_PORT, 0.0)
    return endpoint.datagrams_to_send(0.0)[0].data


def ip(where: str, *words: str) -> None:
    """Run ``ip`` in a namespace."""
    subprocess.run(["ip", "-n", where, *words], check=True)


def cpu_of(node: LabNode) -> dict[str, float]:
    """Return the CPU time of a node's processes so far, in seconds."""
    state = node.ask("status")
    if state is None:
        sys.exit("the node does not answer")
    return {
        item["name"]: sum(
            int(Path(task, "schedstat").read_text().split()[0])
            for task in Path(f"/proc/{item['pid']}/task").iterdir()
        )
        / 1e9
        for item in state["processes"]
        if item["pid"]
    }


@contextmanager
def standing_lab() -> Iterator[tuple[LabNode, Namespace, dict[str, Any]]]:
    """A node of a lab, the flooder's namespace, with ``wire`` to the node and ``nowhere``, and the port."""
    subprocess.run(
        [sys.executable, "-m", "minerva", "lab", "up", "line:2", "--name", LAB],
        capture_output=True,
        check=True,
    )
    try:
        node = LabNode("n1", base_directory() / LAB / "nodes" / "n1")
        where, host = Namespace.create(host_namespace(LAB, "flooder")), host_namespace(LAB, "n1")
        ip(where.name, "link", "add", "wire", "type", "veth", "peer", "eth9", "netns", host)
        ip(where.name, "link", "add", "nowhere", "type", "veth", "peer", "end")
        ip(host, "link", "set", "eth9", "up")
        for device in ("wire", "nowhere", "end"):
            path = f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6"
            subprocess.run(["ip", "netns", "exec", where.name, "sh", "-c", f"echo 1 >{path}"], check=True)
            ip(where.name, "link", "set", device, "up")
        deadline = time.monotonic() + 20
        while True:
            state = node.ask("status")
            ports = state["ports"] if state is not None else []
            found = [port for port in ports if port["name"] == "eth9" and port["state"] == "up"]
            if found:
                break
            if time.monotonic() > deadline:
                sys.exit("the node does not use the flooder's wire")
            time.sleep(0.2)
        yield node, where, found[0]
    finally:
        down(LAB)


def counted(node: LabNode) -> dict[str, int]:
    """Return what the IKE core of the flooded port has counted."""
    state = node.ask("status")
    assert state is not None
    return state["counters"]["abutment"]["eth9"].get("ike", {})  # type: ignore[no-any-return]  # JSON


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    figures: dict[tuple[str, str], list[float]] = {}
    with standing_lab() as (node, where, port):
        time.sleep(5.0)  # what begins is over
        address, mac = IPv6Address(port["link_local"]), bytes.fromhex(port["mac"].replace(":", ""))
        init = request(CertificateAuthority.open(base_directory() / LAB / "ca"), address)
        made = frames(init, address, mac)
        senders = {device: Sender(where, device, made) for device in ("wire", "nowhere")}
        for _ in range(arguments.runs):
            for name, rate in RATES.items():
                seconds = FAST_SECONDS if rate == float("inf") else arguments.seconds
                for figure, value in flooded(node, senders, seconds, rate).items():
                    figures.setdefault((figure, name), []).append(value)
        for sender in senders.values():
            sender.close()
    for (figure, name), values in figures.items():
        report("flood", figure, values, "us", "lower", fields={"rate": name})


def flooded(node: LabNode, senders: dict[str, Sender], seconds: float, rate: float) -> dict[str, float]:
    """Flood once, after a rest; return the figures."""
    before = cpu_of(node)
    time.sleep(IDLE_SECONDS)
    at_rest = {name: (used - before[name]) / IDLE_SECONDS for name, used in cpu_of(node).items()}
    _, alone = senders["nowhere"].flood(min(seconds, FAST_SECONDS), rate)
    before, started = cpu_of(node), time.monotonic()
    sent, received = senders["wire"].flood(seconds, rate)
    passed = time.monotonic() - started
    cost = {
        name: (used - before[name] - at_rest[name] * passed) * 1e6 / sent
        for name, used in cpu_of(node).items()
    }
    costs = {name: round(value, 2) for name, value in cost.items()}
    print(f"{sent} sent in {passed:.1f} s; {costs}; {counted(node)}", file=sys.stderr)
    return {
        "sender_cpu_us": alone,
        "node_receiving_cpu_us": received - alone,
        "node_processes_cpu_us": sum(cost.values()),
    }


if __name__ == "__main__":
    main()
