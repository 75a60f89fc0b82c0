"""ICMPv6 echo (RFC 4443 section 4): the messages, and a socket that pings many destinations at once."""

from __future__ import annotations

import socket
import struct
import sys
import time
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Address
from typing import Final

from minerva.core.errors import DecodeError
from minerva.core.reader import Reader
from minerva.linux.sockopt import (
    TIMESTAMP_SPACE,
    enable_timestamps,
    force_receive_buffer,
    pass_only_icmp6,
    timestamp_ns,
)

MAX_OUTSTANDING: Final = 65_536
"""How many requests a socket remembers; beyond that it forgets the oldest, and their replies are ignored."""

ECHO_BUFFER: Final = 1 << 20
"""Receive buffer of an echo socket, in bytes: the replies to a whole laboratory may come at once."""

_MAX_MESSAGE = 65_535
_ANCILLARY_SIZE = TIMESTAMP_SPACE + socket.CMSG_SPACE(4)


class IcmpDecodeError(DecodeError):
    """The bytes are not an ICMPv6 echo message."""


class EchoType(IntEnum):
    """The two ICMPv6 types of echo."""

    ECHO_REQUEST = 128
    ECHO_REPLY = 129


@dataclass(frozen=True, slots=True)
class Echo:
    """An Echo Request or Echo Reply (RFC 4443 sections 4.1 and 4.2).

    ::

        | type (8) | code 0 (8) | checksum (16) | identifier (16) | sequence number (16) | data ... |

    The checksum covers the addresses, so the kernel makes and checks it; here it is 0 and ignored.
    """

    type: EchoType
    ident: int
    sequence: int
    payload: bytes = b""

    def encode(self) -> bytes:
        """Return the message with a checksum of 0."""
        return struct.pack("!BBHHH", self.type, 0, 0, self.ident, self.sequence) + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Echo:
        """Return the message that ``data`` consists of. Raises :class:`IcmpDecodeError`."""
        reader = Reader(data, IcmpDecodeError)
        kind, code = reader.u8("type"), reader.u8("code")
        if kind not in (EchoType.ECHO_REQUEST, EchoType.ECHO_REPLY) or code:
            raise IcmpDecodeError(f"ICMPv6 type {kind} code {code} is no echo message")
        reader.u16("checksum")
        return cls(EchoType(kind), reader.u16("identifier"), reader.u16("sequence number"), reader.rest())


@dataclass(frozen=True, slots=True)
class EchoAnswer:
    """The first reply to a request: ``rtt`` in seconds, ``hop_limit`` as it arrived."""

    source: IPv6Address
    ident: int
    sequence: int
    rtt: float
    hop_limit: int
    payload: bytes


class EchoSocket:
    """Pings from one address: send as many requests as you like, then take the replies.

    Wait for :meth:`fileno` to become readable, then call :meth:`receive`. A reply counts once, and only from
    the address that was asked with its identifier and sequence number. The socket stays in the network
    namespace where it was made.
    """

    def __init__(self, source: IPv6Address, *, scope: int = 0) -> None:
        """Open a raw socket bound to ``source``; ``scope`` is the interface's index if that is link-local.

        Raises OSError without CAP_NET_RAW and CAP_NET_ADMIN, or if ``source`` is not an address of the node.
        """
        self._outstanding: dict[tuple[int, int, IPv6Address], float] = {}
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6)
        try:
            pass_only_icmp6(self._socket, EchoType.ECHO_REPLY)
            force_receive_buffer(self._socket, ECHO_BUFFER)
            enable_timestamps(self._socket)
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            self._socket.bind((str(source), 0, 0, scope))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def send(
        self, destination: IPv6Address, ident: int, sequence: int, payload: bytes = b"", *, scope: int = 0
    ) -> None:
        """Send a request. Raises OSError if it cannot be sent: no route, or the send buffer is full."""
        key = (ident, sequence, destination)
        message = Echo(EchoType.ECHO_REQUEST, ident, sequence, payload).encode()
        self._outstanding.pop(key, None)
        sent = time.monotonic()
        self._socket.sendto(message, (str(destination), 0, 0, scope))
        self._outstanding[key] = sent
        if len(self._outstanding) > MAX_OUTSTANDING:
            del self._outstanding[next(iter(self._outstanding))]

    def receive(self) -> list[EchoAnswer]:
        """Return the replies that have come; an empty list if there are none."""
        answers: list[EchoAnswer] = []
        while True:
            try:
                data, ancillary, _, address = self._socket.recvmsg(_MAX_MESSAGE, _ANCILLARY_SIZE)
            except BlockingIOError:
                return answers
            answer = self._match(data, ancillary, IPv6Address(address[0].partition("%")[0]))
            if answer is not None:
                answers.append(answer)

    def _match(
        self, data: bytes, ancillary: list[tuple[int, int, bytes]], source: IPv6Address
    ) -> EchoAnswer | None:
        try:
            echo = Echo.decode(data)
        except IcmpDecodeError:
            return None
        sent = self._outstanding.pop((echo.ident, echo.sequence, source), None)
        if sent is None:
            return None
        now, arrived = time.time_ns(), timestamp_ns(ancillary)
        # How long the reply lay in our buffer says nothing about the path.
        waited = 0.0 if arrived is None else max(0, now - arrived) / 1e9
        rtt = max(0.0, time.monotonic() - sent - waited)
        return EchoAnswer(source, echo.ident, echo.sequence, rtt, _hop_limit(ancillary), echo.payload)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _hop_limit(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, value in ancillary:
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_HOPLIMIT:
            return int.from_bytes(value, sys.byteorder)
    return 0
