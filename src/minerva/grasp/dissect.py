"""From a captured packet to the UDP datagram or TCP segment in it.

Checksums are not looked at: where a packet is captured before the network card has completed it, they are
wrong in packets that are right. Fragments are told and left: no GRASP over UDP is ever fragmented (RFC 8990
section 2.5.3), and TCP cuts for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from minerva.core.errors import DecodeError
from minerva.core.reader import Reader

MAX_TAGS: Final = 4
"""How many VLAN tags may be before the network layer."""

MAX_EXTENSION_HEADERS: Final = 16
"""How many extension headers an IPv6 packet may have."""


class PacketError(DecodeError):
    """The packet cannot be read."""


class NotOursError(PacketError):
    """The packet is neither UDP nor TCP over IP, or a fragment."""


class TcpFlag(IntFlag):
    """The flags of a segment that matter here (RFC 9293 section 3.1)."""

    FIN = 1
    SYN = 2
    RST = 4


@dataclass(frozen=True, slots=True)
class Datagram:
    """A UDP datagram."""

    source: IPv6Address | IPv4Address
    source_port: int
    destination: IPv6Address | IPv4Address
    destination_port: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP segment; ``data`` is less than was sent where the capture has cut it."""

    source: IPv6Address | IPv4Address
    source_port: int
    destination: IPv6Address | IPv4Address
    destination_port: int
    sequence: int
    flags: TcpFlag
    data: bytes


def dissect(link_type: int, data: bytes) -> Datagram | Segment:
    """Return what a packet carries. Raises :class:`PacketError`, for the many of no interest its subclass."""
    reader = Reader(data, PacketError)
    return _network(_ether_type(link_type, reader, data), reader)


# Link types in tcpdump.org's registry; raw IP has two numbers.
_ETHERNET, _RAW, _LINUX_SLL, _LINUX_SLL2, _IPV4, _IPV6 = 1, (101, 12), 113, 276, 228, 229
_ETHER_IPV4, _ETHER_IPV6 = 0x0800, 0x86DD
_ETHER_VLAN = (0x8100, 0x88A8, 0x9100)


def _ether_type(link_type: int, reader: Reader, data: bytes) -> int:
    """Read the link layer and return what is in it."""
    if link_type in _RAW:
        return {4: _ETHER_IPV4, 6: _ETHER_IPV6}.get(data[0] >> 4 if data else 0, 0)
    if link_type in (_IPV4, _IPV6):
        return _ETHER_IPV4 if link_type == _IPV4 else _ETHER_IPV6
    if link_type == _ETHERNET:
        reader.read(12, "MAC addresses")
        ether_type = reader.u16("EtherType")
    elif link_type == _LINUX_SLL:
        reader.read(14, "cooked header")
        ether_type = reader.u16("protocol")
    elif link_type == _LINUX_SLL2:
        ether_type = reader.u16("protocol")
        reader.read(18, "cooked header")
    else:
        raise NotOursError(f"link type {link_type} is not known")
    for _ in range(MAX_TAGS):
        if ether_type not in _ETHER_VLAN:
            break
        reader.read(2, "VLAN tag")
        ether_type = reader.u16("EtherType")
    return ether_type


def _network(ether_type: int, reader: Reader) -> Datagram | Segment:
    if ether_type == _ETHER_IPV6:
        return _ipv6(reader)
    if ether_type == _ETHER_IPV4:
        return _ipv4(reader)
    raise NotOursError(f"EtherType {ether_type:#06x}")


_UDP, _TCP = 17, 6
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
_EIGHTS = (_HOP_BY_HOP, _ROUTING, _DESTINATION, 135, 139, 140)
"""Extension headers whose length is in units of 8 bytes, after the first 8 (RFC 8200 section 4)."""


def _ipv6(reader: Reader) -> Datagram | Segment:
    if reader.u32("version") >> 28 != 6:
        raise PacketError("not IPv6")
    size, header = reader.u16("payload length"), reader.u8("next header")
    reader.u8("hop limit")
    source, destination = reader.ipv6("source"), reader.ipv6("destination")
    # A size of 0 is what a card is given that will cut the segment itself, or that of a jumbogram.
    payload = Reader(reader.read(min(size or reader.remaining, reader.remaining), "payload"), PacketError)
    for _ in range(MAX_EXTENSION_HEADERS):
        if header in (_UDP, _TCP):
            return _transport(header, source, destination, payload)
        following = payload.u8("next header") if header in (*_EIGHTS, _FRAGMENT, _AUTHENTICATION) else 0
        if header in _EIGHTS:
            payload.read(payload.u8("length") * 8 + 6, "extension header")
        elif header == _AUTHENTICATION:
            payload.read(payload.u8("length") * 4 + 6, "authentication header")
        elif header == _FRAGMENT:
            payload.u8("reserved")
            if payload.u16("fragment offset") & 0xFFF9:
                raise NotOursError("a fragment")
            payload.u32("identification")
        else:
            raise NotOursError(f"next header {header}")
        header = following
    raise PacketError(f"more than {MAX_EXTENSION_HEADERS} extension headers")


def _ipv4(reader: Reader) -> Datagram | Segment:
    first = reader.u8("version")
    if first >> 4 != 4 or first & 15 < 5:
        raise PacketError("not IPv4")
    reader.u8("type of service")
    size = reader.u16("total length")
    reader.u16("identification")
    if reader.u16("fragment offset") & 0x3FFF:
        raise NotOursError("a fragment")
    reader.u8("time to live")
    protocol = reader.u8("protocol")
    reader.u16("checksum")
    source, destination = IPv4Address(reader.u32("source")), IPv4Address(reader.u32("destination"))
    options = (first & 15) * 4 - 20
    reader.read(options, "options")
    if protocol not in (_UDP, _TCP):
        raise NotOursError(f"protocol {protocol}")
    size = max(size - 20 - options, 0) if size else reader.remaining
    payload = Reader(reader.read(min(size, reader.remaining), "payload"), PacketError)
    return _transport(protocol, source, destination, payload)


def _transport(
    protocol: int,
    source: IPv6Address | IPv4Address,
    destination: IPv6Address | IPv4Address,
    reader: Reader,
) -> Datagram | Segment:
    source_port, destination_port = reader.u16("source port"), reader.u16("destination port")
    if protocol == _UDP:
        length = reader.u16("length") - 8
        reader.u16("checksum")
        return Datagram(source, source_port, destination, destination_port, reader.read(length, "datagram"))
    sequence = reader.u32("sequence number")
    reader.u32("acknowledgment number")
    offset, flags = reader.u8("data offset") >> 4, reader.u8("flags")
    if offset < 5:
        raise PacketError("a TCP header of less than 20 bytes")
    reader.read(offset * 4 - 14, "rest of the TCP header")
    return Segment(
        source, source_port, destination, destination_port, sequence, TcpFlag(flags & 7), reader.rest()
    )
