"""Packets and captures made by hand."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise

from minerva.grasp.capture_file import Packet

ONE, OTHER, ALL = IPv6Address("fe80::1"), IPv6Address("fe80::2"), IPv6Address("ff02::13")
V4_ONE, V4_OTHER = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")

RAW, ETHERNET, SLL, SLL2 = 101, 1, 113, 276
FIN, SYN, RST, ACK = 1, 2, 4, 16


def ipv6(payload: bytes, header: int, source: IPv6Address = ONE, destination: IPv6Address = OTHER) -> bytes:
    return (
        struct.pack("!IHBB", 6 << 28, len(payload), header, 64) + source.packed + destination.packed + payload
    )


def ipv4(payload: bytes, protocol: int, options: bytes = b"", fragment: int = 0) -> bytes:
    words = 5 + len(options) // 4
    size = 4 * words + len(payload)
    header = struct.pack("!BBHHHBBH", 0x40 | words, 0, size, 0, fragment, 64, protocol, 0)
    return header + V4_ONE.packed + V4_OTHER.packed + options + payload


def udp(data: bytes, source: int = 49152, destination: int = 7017) -> bytes:
    return struct.pack("!HHHH", source, destination, len(data) + 8, 0xBAD) + data


def tcp(
    sequence: int,
    data: bytes,
    flags: int = ACK,
    ports: tuple[int, int] = (40000, 7017),
    options: bytes = b"",
) -> bytes:
    words = 5 + len(options) // 4
    header = struct.pack("!HHIIBBHHH", *ports, sequence % (1 << 32), 0, words << 4, flags, 1024, 0xBAD, 0)
    return header + options + data


def datagram(data: bytes, source: int = 49152, destination: int = 7017) -> bytes:
    return ipv6(udp(data, source, destination), 17, destination=ALL)


def segment(
    sequence: int,
    data: bytes,
    flags: int = ACK,
    ports: tuple[int, int] = (40000, 7017),
    source: IPv6Address = ONE,
) -> bytes:
    return ipv6(tcp(sequence, data, flags, ports), 6, source, OTHER if source == ONE else ONE)


def raw(*packets: bytes) -> list[Packet]:
    """Packets a second apart."""
    return [Packet(number * 1_000_000_000, RAW, data) for number, data in enumerate(packets, 1)]


def pcap(
    packets: Iterable[bytes], link_type: int = RAW, order: str = "<", nanoseconds: bool = False
) -> bytes:
    magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
    file = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link_type)
    for number, data in enumerate(packets, 1):
        file += struct.pack(order + "IIII", number, 5, len(data), len(data)) + data
    return file


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def interface(link_type: int = RAW, options: bytes = b"", order: str = "<", snaplen: int = 0) -> bytes:
    return block(1, struct.pack(order + "HHI", link_type, 0, snaplen) + options, order)


def enhanced(data: bytes, ticks: int, number: int = 0, options: bytes = b"", order: str = "<") -> bytes:
    high, low = ticks >> 32, ticks & 0xFFFFFFFF
    head = struct.pack(order + "IIIII", number, high, low, len(data), len(data))
    return block(6, head + data + bytes(-len(data) % 4) + options, order)


def torn(stream: bytes, cuts: Sequence[int], dice: random.Random, first: int) -> list[bytes]:
    """The segments of a stream that is cut at ``cuts``: some of them twice, some overlapping, mixed up."""
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    pieces = []
    for start, end in pairwise(edges):
        for _ in range(dice.choice((1, 1, 2))):
            earlier, later = max(start - dice.randrange(6), 0), min(end + dice.randrange(6), len(stream))
            pieces.append(segment(first + earlier, stream[earlier:later]))
    dice.shuffle(pieces)
    return pieces
