"""A reader of small pcap files and a writer of IPv6 ones (https://www.tcpdump.org/manpages/pcap-savefile.5)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address
from pathlib import Path
from typing import NamedTuple

from minerva.rpl.messages import ICMPV6_RPL, with_checksum

LINKTYPE_ETHERNET = 1
LINKTYPE_IPV6 = 229
_MAGIC = 0xA1B2C3D4
_ICMPV6 = 58


class Packet(NamedTuple):
    """An ICMPv6 message and between whom it went."""

    source: IPv6Address
    destination: IPv6Address
    icmpv6: bytes


def from_ipv6(packet: bytes) -> Packet | None:
    """The ICMPv6 message in an IPv6 packet without extension headers, if there is one."""
    if packet[6] != _ICMPV6:
        return None
    length = int.from_bytes(packet[4:6])
    return Packet(IPv6Address(packet[8:24]), IPv6Address(packet[24:40]), packet[40 : 40 + length])


def to_ipv6(packet: Packet) -> bytes:
    """An IPv6 packet with the message in it, its checksum computed."""
    message = with_checksum(packet.icmpv6, packet.source, packet.destination)
    header = struct.pack("!IHBB", 6 << 28, len(message), _ICMPV6, 255)
    return header + packet.source.packed + packet.destination.packed + message


def read_rpl(path: Path) -> Iterator[Packet]:
    """All RPL messages in a little-endian Ethernet capture."""
    data = path.read_bytes()
    magic, *_, link_type = struct.unpack_from("<IHHiIII", data)
    assert (magic, link_type) == (_MAGIC, LINKTYPE_ETHERNET)
    offset = 24
    while offset < len(data):
        _, _, length, _ = struct.unpack_from("<IIII", data, offset)
        frame = data[offset + 16 : offset + 16 + length]
        offset += 16 + length
        packet = from_ipv6(frame[14:]) if frame[12:14] == b"\x86\xdd" else None
        if packet is not None and packet.icmpv6[0] == ICMPV6_RPL:
            yield packet


def write(path: Path, packets: Iterable[Packet]) -> None:
    """A capture of these packets, one second apart."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", _MAGIC, 2, 4, 0, 0, 65535, LINKTYPE_IPV6))
        for second, packet in enumerate(packets):
            data = to_ipv6(packet)
            file.write(struct.pack("<IIII", second, 0, len(data), len(data)) + data)
