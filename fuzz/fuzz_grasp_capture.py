"""Fuzzes the reading of captures: pcap and pcapng, links, IP, UDP and TCP, and what is said of it all."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address

from minerva.grasp.capture import Captured, CapturedMessage, Counts, GraspCapture
from minerva.grasp.capture_file import CaptureError
from minerva.grasp.dissect import PacketError, dissect
from minerva.grasp.text import MAX_LINE, json_text, message_data, message_text, printable

PIECE = 5

ONE, OTHER = IPv6Address("fe80::1").packed, IPv6Address("fe80::2").packed
ALL = IPv6Address("ff02::13").packed
FLOOD = bytes.fromhex(
    "85091a00bc4e4f50fe80000000000000c0011001feef00001a00033450828466414e5f414350040165494b45763280"
)
RESPONSE = bytes.fromhex(
    "85021a00d4d7485020010db8f000baaa28ccdc4c9703678119ea6084186750fe8000000000000000000000000000020619c123"
)
DISCOVERY = bytes.fromhex("84011a00d4d7485020010db8f000baaa28ccdc4c970367818463455831050200")
WAIT = bytes.fromhex("83071a00d21462198895")


def _ip(source: bytes, destination: bytes, header: int, payload: bytes) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), header, 64) + source + destination + payload


def _udp(data: bytes, port: int = 49152) -> bytes:
    return _ip(ONE, ALL, 17, struct.pack("!HHHH", port, 7017, len(data) + 8, 0) + data)


def _tcp(sequence: int, data: bytes, flags: int = 0x10, ports: tuple[int, int] = (7017, 40000)) -> bytes:
    header = struct.pack("!HHIIBBHHH", *ports, sequence, 0, 5 << 4, flags, 1024, 0, 0)
    return _ip(ONE, OTHER, 6, header + data)


def _pcap(link_type: int, *packets: bytes, order: str = "<", magic: int = 0xA1B2C3D4) -> bytes:
    records = [struct.pack(order + "IIII", 1, 2, len(packet), len(packet)) + packet for packet in packets]
    return struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link_type) + b"".join(records)


def _block(kind: int, body: bytes, order: str = "<") -> bytes:
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def _pcapng(link_type: int, *packets: bytes, order: str = "<") -> bytes:
    options = struct.pack(order + "HH4sHHB3xHHqI", 2, 4, b"eth0", 9, 1, 9, 14, 8, 5, 0)
    blocks = [
        _block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order),
        _block(1, struct.pack(order + "HHI", link_type, 0, 65535) + options, order),
    ]
    for number, packet in enumerate(packets):
        padded = packet + bytes(-len(packet) % 4)
        sizes = (len(packet), len(packet))
        kinds = (
            (6, struct.pack(order + "IIIII", 0, 1, 2, *sizes) + padded + struct.pack(order + "HHI", 2, 4, 2)),
            (3, struct.pack(order + "I", len(packet)) + padded),
            (2, struct.pack(order + "HHIIII", 0, 0, 1, 2, *sizes) + padded),
        )
        blocks.append(_block(*kinds[number % 3], order))
    return b"".join(blocks)


def _seeds() -> list[bytes]:
    talk = [
        _udp(DISCOVERY),
        _tcp(9, b"", 2, (40000, 49152)),
        _tcp(10, RESPONSE[:20], 16, (40000, 49152)),
        _tcp(50, RESPONSE[40:], 16, (40000, 49152)),
        _tcp(25, RESPONSE[15:45], 17, (40000, 49152)),
        _tcp(0xFFFFFFFE, b"", 2),
        _tcp(0xFFFFFFFF, WAIT + WAIT),
        _tcp(100, b"\x16\x03\x01\x02\x00\x01"),
    ]
    ethernet = [bytes(12) + b"\x86\xdd" + packet for packet in (_udp(FLOOD), *talk)]
    tagged = [bytes(12) + b"\x81\x00\x00\x05\x86\xdd" + packet for packet in talk]
    cooked = [bytes(14) + b"\x86\xdd" + packet for packet in talk]
    cooked2 = [b"\x86\xdd" + bytes(18) + packet for packet in talk]
    extended = _ip(
        ONE, ALL, 0, b"\x3c\x00" + bytes(6) + b"\x2c\x00" + bytes(6) + b"\x11" + bytes(7) + _udp(FLOOD)[40:]
    )
    ipv4 = struct.pack("!BBHHHBBHII", 0x45, 0, 28 + len(WAIT), 0, 0, 1, 17, 0, 1, 0xE0000077)
    ipv4 += struct.pack("!HHHH", 7017, 7017, 8 + len(WAIT), 0) + WAIT
    return [
        _pcap(1, *ethernet),
        _pcap(1, *tagged, order=">", magic=0xA1B23C4D),
        _pcap(101, *talk, extended, ipv4),
        _pcap(113, *cooked, order=">"),
        _pcap(276, *cooked2),
        _pcap(229, _udp(FLOOD)),
        _pcapng(1, *ethernet),
        _pcapng(101, *talk, order=">"),
    ]


SEEDS = _seeds()


def target(data: bytes) -> None:
    """Read ``data`` as a capture, whole and in pieces, and as a packet."""
    whole = _read(data, len(data) or 1)
    assert whole == _read(data, PIECE)
    for link_type in (1, 12, 113, 276, 229):
        try:
            dissect(link_type, data)
        except PacketError:
            continue


def _read(data: bytes, size: int) -> tuple[list[str], Counts, str]:
    capture = GraspCapture((7017, 49152))
    pieces = (data[start : start + size] for start in range(0, len(data), size))
    said, damage = [], ""
    try:
        said += [_say(captured) for captured in capture.read(pieces)]
    except CaptureError as error:
        damage = str(error)
    return said, capture.counts, damage


def _say(captured: Captured) -> str:
    assert 0 <= captured.time_ns < 1 << 63
    if not isinstance(captured, CapturedMessage):
        assert printable(captured.text) == captured.text
        return captured.text
    line, data = message_text(captured.data), json_text(message_data(captured.data))
    assert line.isprintable()
    assert 0 < len(line) <= MAX_LINE
    assert data.isascii()
    assert data.isprintable()
    return line + data


if __name__ == "__main__":
    from _harness import run

    run(target, SEEDS)
