"""Fuzzes the receiving side of ESP: what strangers send, and what an authenticated peer may put inside."""

from __future__ import annotations

import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from minerva.core.secret import Secret
from minerva.esp.packet import MIN_PACKET_SIZE
from minerva.esp.sa import KEY_SIZE, ChannelSAs, InboundSA, OutboundSA

SPI = 0x101
MATERIAL = bytes(range(36))
KEY = Secret(MATERIAL)


def _ipv6(size: int) -> bytes:
    return struct.pack("!IHBB", 6 << 28, size - 40, 59, 64) + bytes(size - 8)


_SENDER = OutboundSA(SPI, KEY)
_SEALED = [_SENDER.seal(_ipv6(size)) for size in (40, 41, 42, 43, 100)]
_CIPHER = AESGCM(MATERIAL[:KEY_SIZE])

SEEDS = [
    *_SEALED,
    _ipv6(40) + b"\1\2\2\x29",
    _ipv6(60) + bytes(30) + b"\0\x29",
    b"\1\2\2\x3b",
    _ipv6(40) + bytes(range(1, 256)) + b"\xff\x29",
]


def target(data: bytes) -> None:
    """Open ``data`` as a packet, as a change to a good packet, and as the plaintext of an authentic one."""
    _stranger(data)
    _tampered(data)
    _authentic(data)


def _stranger(data: bytes) -> None:
    channel = ChannelSAs()
    channel.add_inbound(InboundSA(SPI, KEY))
    inner = channel.open(data)
    if (inner is not None) != (data in _SEALED):
        raise AssertionError("a forged packet was accepted, or a good one refused")
    if inner is None and sum(channel.counters().drops.values()) != 1:
        raise AssertionError("a dropped packet was not counted once")


def _tampered(data: bytes) -> None:
    """The first byte says which packet and the second where; the rest is written over it."""
    if len(data) < 3:
        return
    packet = bytearray(_SEALED[data[0] % len(_SEALED)])
    position = data[1] % len(packet)
    packet[position : position + len(data) - 2] = data[2:]
    changed = bytes(packet)
    if (InboundSA(SPI, KEY).open(changed) is not None) != (changed in _SEALED):
        raise AssertionError("a changed packet was accepted, or a good one refused")


def _authentic(plain: bytes) -> None:
    head = struct.pack("!II", SPI, 1)
    packet = head + bytes(8) + _CIPHER.encrypt(MATERIAL[KEY_SIZE:] + bytes(8), plain, head)
    sa = InboundSA(SPI, KEY)
    inner = sa.open(packet)
    if inner is None:
        if sum(sa.drops.values()) != 1:
            raise AssertionError("a dropped packet was not counted once")
    elif len(packet) < MIN_PACKET_SIZE or not _is_start_of(inner, plain):
        raise AssertionError("what was passed on is not the IPv6 packet inside")
    elif InboundSA(SPI, KEY).open(OutboundSA(SPI, KEY).seal(inner)) != inner:
        raise AssertionError("an accepted packet does not survive being sent")


def _is_start_of(inner: bytes, plain: bytes) -> bool:
    return (
        plain.startswith(inner)
        and inner[0] >> 4 == 6
        and len(inner) == 40 + int.from_bytes(inner[4:6])
        and len(inner) + plain[-2] + 2 <= len(plain)
        and plain[-1] == 41
    )


if __name__ == "__main__":
    from _harness import run

    run(target, SEEDS)
