"""Socket options that the standard library does not know."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from typing import Final

_ICMP6_FILTER = 1
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_UDP_ENCAP, _UDP_ENCAP_ESPINUDP = 100, 2
# The variant that is two 64-bit numbers on every architecture; the control message has the same number.
_SO_TIMESTAMPNS_NEW = 64
_TIMESPEC = struct.Struct("@qq")

TIMESTAMP_SPACE: Final = socket.CMSG_SPACE(_TIMESPEC.size)
"""What the time of arrival takes in the buffer for ancillary data, in bytes."""


def force_receive_buffer(sock: socket.socket, size: int) -> None:
    """Give ``sock`` a receive buffer of ``size`` bytes, beyond the system's limit. Raises OSError."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)


def force_send_buffer(sock: socket.socket, size: int) -> None:
    """Give ``sock`` a send buffer of ``size`` bytes, beyond the system's limit. Raises OSError."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)


def pass_only_icmp6(sock: socket.socket, kind: int) -> None:
    """Let only ICMPv6 messages of type ``kind`` pass to the raw socket ``sock``. Raises OSError."""
    words = [0xFFFFFFFF] * 8  # a set bit blocks the type (RFC 3542 section 3.2)
    words[kind >> 5] &= ~(1 << (kind & 31)) & 0xFFFFFFFF
    sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("@8I", *words))


def take_esp_in_udp(sock: socket.socket) -> None:
    """Give ESP that comes to the UDP socket ``sock`` to the kernel's IPsec (RFC 3948). Raises OSError."""
    sock.setsockopt(socket.IPPROTO_UDP, _UDP_ENCAP, _UDP_ENCAP_ESPINUDP)


def enable_timestamps(sock: socket.socket) -> None:
    """Have the kernel note when each packet arrives, for :func:`timestamp_ns`. Raises OSError."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS_NEW, 1)


def timestamp_ns(ancillary: Iterable[tuple[int, int, bytes]]) -> int | None:
    """Return when a packet arrived, in nanoseconds since the epoch, from what ``recvmsg`` says beside it."""
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS_NEW:
            seconds, nanoseconds = _TIMESPEC.unpack(value)
            return int(seconds * 10**9 + nanoseconds)
    return None
