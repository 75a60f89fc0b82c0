"""Captures frames into a file that Wireshark and tcpdump read (pcapng, draft-ietf-opsawg-pcapng).

One file takes any number of interfaces, each under its name, with times in nanoseconds and the direction of
every frame, so that a whole laboratory fits into one capture.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from enum import IntEnum
from typing import BinaryIO, Final

from minerva.linux.sockopt import TIMESTAMP_SPACE, enable_timestamps, force_receive_buffer, timestamp_ns

MAX_FRAME: Final = 262_144
"""The most bytes of a frame that are kept by default; a veth carries unsegmented ones of 64 KiB and more."""

CAPTURE_BUFFER: Final = 8 << 20
"""How many bytes the kernel keeps for a capture until they are drained."""

_PENDING = 1 << 20  # bytes gathered before they are written even without a flush


class LinkType(IntEnum):
    """What a captured frame begins with, in tcpdump.org's registry of link types."""

    ETHERNET = 1
    IPV6 = 229


class PcapngWriter:
    """Writes a pcapng file to ``stream``, which it owns, in whole blocks.

    Frames are gathered and written by :meth:`flush` in one piece and in the order of their times, so that
    who reads the file while it grows, or after a crash, never finds half a frame, and frames of several
    sockets stand in the order in which they passed. It has no lock: write from one thread.
    """

    _SECTION_HEADER, _INTERFACE, _ENHANCED_PACKET = 0x0A0D0D0A, 1, 6
    _IF_NAME, _IF_TSRESOL, _EPB_FLAGS = 2, 9, 2

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._pending: list[tuple[int, bytes]] = []  # time and block
        self._pending_size = 0
        self._interfaces = 0
        # Byte order mark, version 1.0, and a section of unknown length.
        self._add(self._SECTION_HEADER, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
        self.flush()

    def add_interface(self, name: str, link_type: LinkType, snaplen: int = MAX_FRAME) -> int:
        """Describe an interface and return its number for :meth:`write`; ``snaplen`` is in bytes."""
        options = (
            _option(self._IF_NAME, name.encode())
            + _option(self._IF_TSRESOL, b"\x09")  # times count 10**-9 s
            + _END_OF_OPTIONS
        )
        self._add(self._INTERFACE, struct.pack("<HHI", link_type, 0, snaplen) + options)
        self._interfaces += 1
        return self._interfaces - 1

    def write(
        self,
        interface: int,
        time_ns: int,
        frame: bytes,
        *,
        original_size: int | None = None,
        outgoing: bool | None = None,
    ) -> None:
        """Add a frame seen on ``interface`` at ``time_ns`` (since the epoch, in nanoseconds).

        ``original_size`` is its size on the wire where ``frame`` was cut; ``outgoing`` its direction, if
        known. Raises OSError when the file cannot be written.
        """
        if not 0 <= interface < self._interfaces:
            raise ValueError(f"interface {interface} was not added to the capture")
        size = len(frame) if original_size is None else original_size
        header = struct.pack("<IIIII", interface, time_ns >> 32, time_ns & 0xFFFFFFFF, len(frame), size)
        options = b""
        if outgoing is not None:
            options = _option(self._EPB_FLAGS, struct.pack("<I", 2 if outgoing else 1)) + _END_OF_OPTIONS
        self._add(self._ENHANCED_PACKET, header + _padded(frame) + options, time_ns)
        if self._pending_size >= _PENDING:
            self.flush()

    def flush(self) -> None:
        """Write all that was gathered. Raises OSError when the file cannot be written."""
        # What is no frame has the time 0: descriptions come before what they describe.
        self._pending.sort(key=lambda block: block[0])
        data = b"".join(block for _, block in self._pending)
        self._pending.clear()
        self._pending_size = 0
        self._stream.write(data)
        self._stream.flush()

    def close(self) -> None:
        """Write all that was gathered and close the stream."""
        try:
            self.flush()
        finally:
            self._stream.close()

    def _add(self, kind: int, body: bytes, time_ns: int = 0) -> None:
        size = struct.pack("<I", len(body) + 12)
        self._pending.append((time_ns, struct.pack("<I", kind) + size + body + size))
        self._pending_size += len(body) + 12


_END_OF_OPTIONS = b"\0\0\0\0"


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_PACKET_OUTGOING = 4
_ARPHRD_NONE = 0xFFFE


class Capture:
    """Captures what passes an interface of the calling thread's network namespace.

    Wait for :meth:`fileno` to become readable, then call :meth:`drain`. The socket stays in the namespace
    where it was made, whatever the thread enters later. VLAN tags that the network card has taken off are
    not put back.
    """

    def __init__(
        self,
        device: str,
        writer: PcapngWriter,
        *,
        name: str | None = None,
        incoming_only: bool = False,
        snaplen: int = MAX_FRAME,
        buffer: int = CAPTURE_BUFFER,
    ) -> None:
        """Open a packet socket on ``device``, which the file calls ``name`` (by default ``device``).

        ``snaplen`` is the most bytes of a frame that are kept, ``buffer`` what the kernel keeps between two
        drains. Raises OSError without CAP_NET_RAW and CAP_NET_ADMIN, or if there is no such device.
        """
        self._writer = writer
        self._incoming_only = incoming_only
        self._buffer = memoryview(bytearray(snaplen))
        self._drops = 0
        # Protocol 0 hears nothing: no frame of another interface slips in before the socket is bound.
        self._socket = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0
        )
        try:
            force_receive_buffer(self._socket, buffer)
            enable_timestamps(self._socket)
            self._socket.bind((device, _ETH_P_ALL))
            # A TUN interface has no link layer, and those of an ACP carry IPv6 alone.
            hardware = self._socket.getsockname()[3]
            link_type = LinkType.IPV6 if hardware == _ARPHRD_NONE else LinkType.ETHERNET
            self._interface = writer.add_interface(name or device, link_type, snaplen)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    @property
    def drops(self) -> int:
        """How many frames the kernel threw away because its buffer was full."""
        # Reading resets the kernel's counters.
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self._drops += struct.unpack("@II", statistics)[1]
        return self._drops

    def drain(self, limit: int = 1024, *, flush: bool = True) -> int:
        """Write the frames that are waiting, at most ``limit``, to the file; return how many were read.

        Without ``flush`` they are only handed to the writer, to be put in order with those of others.
        Raises OSError when the file cannot be written.
        """
        count = 0
        while count < limit and self._read():
            count += 1
        if count and flush:
            self._writer.flush()
        return count

    def _read(self) -> bool:
        try:
            size, ancillary, _, address = self._socket.recvmsg_into(
                [self._buffer], TIMESTAMP_SPACE, socket.MSG_TRUNC
            )
        except BlockingIOError:
            return False
        except OSError as error:
            # Said once whenever the interface goes down; the socket goes on when it is up again.
            if error.errno == errno.ENETDOWN:
                return False
            raise
        outgoing = address[2] == _PACKET_OUTGOING
        if not (outgoing and self._incoming_only):
            self._writer.write(
                self._interface,
                timestamp_ns(ancillary) or time.time_ns(),
                bytes(self._buffer[:size]),
                original_size=size,
                outgoing=outgoing,
            )
        return True

    def close(self) -> None:
        """Close the socket; the writer, which others may share, stays open."""
        self._socket.close()
