"""Packets out of a capture file as it arrives, in pieces of any size: pcap and pcapng.

pcap is draft-ietf-opsawg-pcap, in either byte order, with times in microseconds or nanoseconds; of pcapng
(draft-ietf-opsawg-pcapng) the blocks that describe interfaces and hold packets, others are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final

from minerva.core.errors import DecodeError

MAX_PACKET: Final = 1 << 20
"""The largest packet that is read, in bytes."""

MAX_BLOCK: Final = 16 << 20
"""The largest block of a pcapng file, in bytes: there are others than packets."""

MAX_INTERFACES: Final = 4096
"""How many interfaces one section of a pcapng file may describe."""

_LAST_NS = (1 << 63) - 1  # in the year 2262


class CaptureError(DecodeError):
    """The file is no capture, or it is damaged where the packets are told apart."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A captured packet.

    ``link_type`` is what it begins with, in tcpdump.org's registry; ``interface`` where it was seen, if the
    file says so. ``time_ns`` is in nanoseconds since 1970, ``outgoing`` whether it was sent, if known.
    """

    time_ns: int
    link_type: int
    data: bytes
    interface: str = ""
    outgoing: bool | None = None


@dataclass(frozen=True, slots=True)
class _Interface:
    link_type: int
    snaplen: int
    name: str = ""
    ticks: int = 1_000_000  # in a second
    offset: int = 0  # in seconds


class CaptureReader:
    """Cuts a capture file into packets."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._next: Callable[[], Iterator[Packet] | None] = self._begin
        self._order = "<"
        self._ticks = 1_000_000
        self._link_type = 0
        self._interfaces: list[_Interface] = []
        self.broken = 0
        """How many packets were skipped because what describes them makes no sense."""

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished packet are held; at the end of the file, whether it was cut off."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Take the next bytes of the file and yield the packets that are now complete.

        Raises :class:`CaptureError` where no more packets can be found. Goes no further than it is asked to:
        take all of them before there are more bytes.
        """
        self._buffer += data
        while (packets := self._next()) is not None:
            yield from packets

    def _take(self, size: int) -> bytes | None:
        """Take ``size`` bytes off the buffer, or nothing as long as they are not all there."""
        if len(self._buffer) < size:
            return None
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _peek(self, layout: str) -> tuple[int, ...] | None:
        structure = Struct(self._order + layout)
        return structure.unpack_from(self._buffer) if len(self._buffer) >= structure.size else None

    def _begin(self) -> Iterator[Packet] | None:
        if len(self._buffer) < 4:
            return None
        magic = bytes(self._buffer[:4])
        if magic == _SECTION:
            self._next = self._block
            return iter(())
        if magic not in _PCAP_MAGIC:
            raise CaptureError("neither a pcap nor a pcapng file")
        self._order, self._ticks = _PCAP_MAGIC[magic]
        if (header := self._take(24)) is None:
            return None
        # The upper bits tell of a frame check sequence, which lies behind what IP takes for itself.
        self._link_type = Struct(self._order + "I").unpack_from(header, 20)[0] & 0xFFFF
        self._next = self._record
        return iter(())

    # pcap

    def _record(self) -> Iterator[Packet] | None:
        if (header := self._peek("IIII")) is None:
            return None
        seconds, fraction, size, _ = header
        if size > MAX_PACKET:
            raise CaptureError(f"a packet of {size} bytes: the file is damaged")
        if (record := self._take(16 + size)) is None:
            return None
        time_ns = seconds * 1_000_000_000 + fraction * (1_000_000_000 // self._ticks)
        return iter((Packet(time_ns, self._link_type, record[16:]),))

    # pcapng

    def _block(self) -> Iterator[Packet] | None:
        if len(self._buffer) < 12:
            return None
        if self._buffer[:4] == _SECTION:
            order = _BYTE_ORDER_MAGIC.get(bytes(self._buffer[8:12]))
            if order is None:
                raise CaptureError("a section of no known byte order: the file is damaged")
            self._order = order
        kind, size = self._peek("II") or (0, 0)
        if size % 4 or not 12 <= size <= MAX_BLOCK:
            raise CaptureError(f"a block of {size} bytes: the file is damaged")
        if (block := self._take(size)) is None:
            return None
        if block[4:8] != block[-4:]:
            raise CaptureError("a block whose two lengths differ: the file is damaged")
        return self._blocks(kind, block[8:-4])

    def _blocks(self, kind: int, body: bytes) -> Iterator[Packet]:
        if kind == _SECTION_KIND:
            self._interfaces.clear()
        elif kind == _INTERFACE_DESCRIPTION:
            self._describe(body)
        elif kind in _PACKET_LAYOUTS:
            packet = self._packet(kind, body)
            if packet is None:
                self.broken += 1
            else:
                yield packet

    def _describe(self, body: bytes) -> None:
        if len(self._interfaces) >= MAX_INTERFACES:
            raise CaptureError(f"more than {MAX_INTERFACES} interfaces")
        if len(body) < 8:
            raise CaptureError("a description of an interface that is too short: the file is damaged")
        link_type, _, snaplen = Struct(self._order + "HHI").unpack_from(body)
        options = dict(self._options(body[8:]))
        # A power of two if the highest bit is set, else of ten.
        resolution = (options.get(_IF_TSRESOL) or b"\x06")[0]
        ticks = 1 << (resolution & 0x7F) if resolution & 0x80 else 10**resolution
        offset = options.get(_IF_TSOFFSET, b"")
        self._interfaces.append(
            _Interface(
                link_type,
                snaplen,
                options.get(_IF_NAME, b"").decode(errors="replace"),
                ticks,
                Struct(self._order + "q").unpack(offset)[0] if len(offset) == 8 else 0,
            )
        )

    def _packet(self, kind: int, body: bytes) -> Packet | None:
        layout = Struct(self._order + _PACKET_LAYOUTS[kind])
        if len(body) < layout.size:
            return None
        fields = layout.unpack_from(body)
        if kind == _SIMPLE_PACKET:
            number, high, low, size = 0, 0, 0, fields[0]
            if self._interfaces and self._interfaces[0].snaplen:
                size = min(size, self._interfaces[0].snaplen)
            size = min(size, len(body) - layout.size)
        else:
            number, high, low, size = fields[0], *fields[-4:-1]
        end = layout.size + size
        if number >= len(self._interfaces) or end > len(body) or size > MAX_PACKET:
            return None
        interface = self._interfaces[number]
        ticks = high << 32 | low
        time_ns = interface.offset * 1_000_000_000 + ticks * 1_000_000_000 // interface.ticks
        flags = dict(self._options(body[end + -end % 4 :])).get(_EPB_FLAGS, b"")
        direction = Struct(self._order + "I").unpack(flags)[0] & 3 if len(flags) == 4 else 0
        return Packet(
            min(max(time_ns, 0), _LAST_NS),
            interface.link_type,
            body[layout.size : end],
            interface.name,
            {1: False, 2: True}.get(direction),
        )

    def _options(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the options of a block, as far as they are whole."""
        header = Struct(self._order + "HH")
        position = 0
        while position + 4 <= len(data):
            code, size = header.unpack_from(data, position)
            position += 4
            if code == _END_OF_OPTIONS or position + size > len(data):
                return
            yield code, data[position : position + size]
            position += size + -size % 4


_PCAP_MAGIC = {
    b"\xa1\xb2\xc3\xd4": (">", 1_000_000),
    b"\xd4\xc3\xb2\xa1": ("<", 1_000_000),
    b"\xa1\xb2\x3c\x4d": (">", 1_000_000_000),
    b"\x4d\x3c\xb2\xa1": ("<", 1_000_000_000),
}
_SECTION = b"\x0a\x0d\x0d\x0a"  # the same in both byte orders
_BYTE_ORDER_MAGIC = {b"\x1a\x2b\x3c\x4d": ">", b"\x4d\x3c\x2b\x1a": "<"}

_SECTION_KIND = 0x0A0D0D0A
_INTERFACE_DESCRIPTION, _OLD_PACKET, _SIMPLE_PACKET, _ENHANCED_PACKET = 1, 2, 3, 6
# What is before the packet: interface, time (high, low), captured and original size; or only the last.
_PACKET_LAYOUTS = {_OLD_PACKET: "HHIIII", _SIMPLE_PACKET: "I", _ENHANCED_PACKET: "IIIII"}

_END_OF_OPTIONS, _IF_NAME, _EPB_FLAGS, _IF_TSRESOL, _IF_TSOFFSET = 0, 2, 2, 9, 14
