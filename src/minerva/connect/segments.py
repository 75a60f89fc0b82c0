"""ESP in UDP is sent as many packets at a time as there are: the kernel cuts what it got in one piece.

Linux calls it UDP_SEGMENT: a buffer and a length go through socket, policy and interface once, and only the
hardware, or what is before it, makes datagrams of it, each of that length but the last, which may be shorter.
A raw socket has nothing like it.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from typing import Final

log = logging.getLogger(__name__)

MAX_SEGMENTS: Final = 64
"""How many datagrams the kernel takes at once (UDP_MAX_SEGMENTS, 64 until Linux 6.9)."""

MAX_BYTES: Final = 65_535 - 8
"""How many bytes: what the length of UDP can tell."""

_UDP_SEGMENT = 103
_CANNOT: Final = frozenset({errno.EIO, errno.EINVAL, errno.ENOPROTOOPT})
"""How the kernel says that the way to this peer cannot do it: its interface computes no checksums."""


class Segments:
    """Sends packets by a connected UDP socket. Whoever has no more for the moment calls :meth:`finish`."""

    def __init__(self, sock: socket.socket) -> None:
        self._send, self._send_many = sock.send, sock.sendmsg
        self._packets: list[bytes] = []
        self._length = 0  # of the first
        self._room = 0  # in bytes
        self._together = True
        self._unsent = 0

    def send(self, packet: bytes) -> None:
        """Send ``packet``, now or with those to come, and after those before it."""
        length = len(packet)
        if self._packets and (length > self._length or length > self._room):
            self._flush()
        if not self._packets:
            self._length, self._room = length, MAX_BYTES
        self._packets.append(packet)
        self._room -= length
        if length < self._length or len(self._packets) == MAX_SEGMENTS:
            self._flush()

    def finish(self) -> int:
        """Send what waits; return how many packets could not be sent since the last time."""
        if self._packets:
            self._flush()
        unsent, self._unsent = self._unsent, 0
        return unsent

    def _flush(self) -> None:
        packets, self._packets = self._packets, []
        if len(packets) > 1 and self._together:
            length = (socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", self._length))
            try:
                self._send_many((b"".join(packets),), (length,))
            except OSError as error:
                if error.errno not in _CANNOT:
                    # A full queue drops, as any link would.
                    self._unsent += len(packets)
                    return
                log.info("packets are sent one by one: %s", error.strerror)
                self._together = False
            else:
                return
        for packet in packets:
            try:
                self._send(packet)
            except OSError:
                self._unsent += 1
