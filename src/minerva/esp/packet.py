"""The ESP packet as the ACP uses it: RFC 4303 in tunnel mode with AES-GCM-16 (RFC 4106), no ESN.

::

    0                   8                   16                                        -16
    +---------+---------+-------------------+------------------------------------------+-----+
    |   SPI   | seq. no |        IV         | inner IPv6, padding, pad length, 41      | ICV |
    +---------+---------+-------------------+------------------------------------------+-----+
    |<- authenticated ->|                   |<- encrypted and authenticated ---------->|

The nonce is the salt (the last four bytes of the key material) followed by the IV.
"""

from __future__ import annotations

from typing import Final

from minerva.esp.errors import EspError

HEADER_SIZE: Final = 8
"""SPI and sequence number, which are the additional authenticated data (RFC 4106 section 5), in bytes."""

IV_SIZE: Final = 8
"""The explicit part of the nonce (RFC 4106 section 3.1), in bytes."""

ICV_SIZE: Final = 16
"""The integrity check value of AES-GCM-16, in bytes."""

TRAILER_SIZE: Final = 2
"""Pad length and next header, in bytes."""

ALIGNMENT: Final = 4
"""Next header ends on a multiple of this many bytes (RFC 4303 section 2.4)."""

MIN_PACKET_SIZE: Final = HEADER_SIZE + IV_SIZE + ALIGNMENT + ICV_SIZE
"""The shortest ESP packet there can be: one word of ciphertext, in bytes."""

REKEY_BYTES: Final = 2**38
"""How much may be sealed under one key, in bytes, before it is replaced: 256 GiB. AES-GCM
keeps a margin of 2**-57 up to 2**38.5 (RFC 8446 section 5.5)."""

NEXT_HEADER_IPV6: Final = 41
"""An IPv6 packet inside: the only kind that an ACP channel carries (RFC 8994 section 6.8.3.1)."""

NEXT_HEADER_NONE: Final = 59
"""A dummy packet, sent to hide how much is being sent (RFC 4303 section 2.6)."""

MIN_SPI: Final = 256
"""The first SPI that may be negotiated; 0 means "no SA", 1 to 255 are IANA's (RFC 4303 section 2.1)."""

MAX_SPI: Final = 2**32 - 1
"""The last SPI there is."""

IPV6_HEADER_SIZE: Final = 40
"""The fixed header of the outer and of the inner packet, in bytes."""

MIN_IPV6_MTU: Final = 1280
"""What every IPv6 link must carry (RFC 8200 section 5), in bytes."""

# Default padding is 1, 2, 3, ... (RFC 4303 section 2.4).
_PADDING = bytes(range(1, 256))
PADDINGS: Final = tuple(_PADDING[:length] for length in range(256))
"""The padding of every possible length."""

TRAILERS: Final = tuple(
    PADDINGS[length] + bytes([length, NEXT_HEADER_IPV6])
    for length in ((-size - TRAILER_SIZE) % ALIGNMENT for size in range(ALIGNMENT))
)
"""What follows an inner packet of n bytes, by n modulo ``ALIGNMENT``."""

_OVERHEAD = IPV6_HEADER_SIZE + HEADER_SIZE + IV_SIZE + ICV_SIZE

MIN_LINK_MTU: Final = _OVERHEAD + -(-(MIN_IPV6_MTU + TRAILER_SIZE) // ALIGNMENT) * ALIGNMENT
"""The smallest MTU of a link that can carry a channel (1356 bytes)."""


UDP_HEADER_SIZE: Final = 8
"""What ESP in UDP (RFC 3948) has in addition, in bytes."""


def inner_mtu(link_mtu: int, *, in_udp: bool = False) -> int:
    """Return the MTU of a channel over a link with ``link_mtu``, both in bytes: 1426 over 1500.

    With ESP ``in_udp`` it is smaller by the header of UDP. It is computed from the link and never learnt from
    packets, which anybody on the link could forge (RFC 8994 section 6.13.3). Raises :class:`EspError` for a
    link too small for IPv6 in the channel.
    """
    more = UDP_HEADER_SIZE if in_udp else 0
    if link_mtu < MIN_LINK_MTU + more:
        raise EspError(
            f"a link with an MTU of {link_mtu} bytes cannot carry an ACP channel: "
            f"raise it to {MIN_LINK_MTU + more} or more"
        )
    return ((link_mtu - more - _OVERHEAD) & ~(ALIGNMENT - 1)) - TRAILER_SIZE


def spi_of(packet: bytes) -> int | None:
    """Return the SPI of an ESP packet, to find its SA by; ``None`` for what is too short to be one."""
    if len(packet) < MIN_PACKET_SIZE:
        return None
    return int.from_bytes(packet[:4])
