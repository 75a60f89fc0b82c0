"""The GRASP messages in captured packets: what was said, when, by whom to whom.

UDP datagrams and TCP streams of GRASP's port are read, and streams on the dynamic ports that the messages
themselves tell of: that a M_DISCOVERY came from, where responses go (RFC 8990 section 2.8.4), and the
locators of a M_RESPONSE. Of each direction of a connection the segments are put together, however they were
cut, repeated or mixed up, and its messages are found as bare CBOR items (section 2.5.3). In the ACP they are
inside TLS (RFC 8994 section 6.9.2): that is recognised and said.

Memory is bounded, whatever is in the capture.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

from minerva.core.cbor import CborError
from minerva.core.cbor_stream import ItemScanner
from minerva.grasp.capture_file import CaptureError, CaptureReader, Packet
from minerva.grasp.constants import GRASP_DEF_TIMEOUT, GRASP_LISTEN_PORT, TransportProto
from minerva.grasp.dissect import Datagram, NotOursError, PacketError, Segment, TcpFlag, dissect
from minerva.grasp.errors import GraspDecodeError
from minerva.grasp.messages import Discovery, Message, Response, decode
from minerva.grasp.options import IPv4Locator, IPv6Locator
from minerva.grasp.stream import MAX_STREAM_MESSAGE

MAX_STREAMS: Final = 1024
"""How many directions of TCP connections are followed; then those that were silent longest are given up."""

MAX_HELD: Final = 256 << 10
"""How much of a direction is held, in bytes, while a segment before it is missing."""

MAX_HELD_IN_ALL: Final = 16 << 20
"""The same for all of them together."""

PATIENCE_NS: Final = GRASP_DEF_TIMEOUT * 1_000_000
"""How long a missing segment is waited for in the time of the capture: by then GRASP has given up too."""

MAX_LEARNT: Final = 4096
"""How many dynamic ports are remembered."""

_FAR = 1 << 24  # no window of a GRASP connection is that large: the segment is of another connection
_SEGMENT_COST = 64  # what holding a segment takes beyond its bytes

Address: TypeAlias = IPv6Address | IPv4Address


@dataclass(frozen=True, slots=True)
class Flow:
    """From where to where something was sent, and on which interface that was seen, if the file says so."""

    transport: TransportProto
    source: Address
    source_port: int
    destination: Address
    destination_port: int
    interface: str = ""

    def reversed(self) -> Flow:
        """Return the other direction."""
        there = (self.destination, self.destination_port)
        return Flow(self.transport, *there, self.source, self.source_port, self.interface)


@dataclass(frozen=True, slots=True)
class CapturedMessage:
    """A message, or bytes where one should be: then ``message`` is the error that says why they are none.

    ``time_ns`` is when its last byte was captured, in nanoseconds since 1970.
    """

    time_ns: int
    flow: Flow
    data: bytes
    message: Message | GraspDecodeError
    outgoing: bool | None = None


@dataclass(frozen=True, slots=True)
class CapturedNote:
    """Something to know about a connection: why its messages, or some, cannot be read."""

    time_ns: int
    flow: Flow
    text: str
    outgoing: bool | None = None


Captured: TypeAlias = CapturedMessage | CapturedNote


@dataclass(slots=True)
class Counts:
    """What came of a capture: packets in it, messages found, packets that were broken or of no interest.

    ``gaps`` is how often a part of a connection was not in the capture; ``cut`` whether the file ends in the
    middle of a packet.
    """

    packets: int = 0
    messages: int = 0
    broken: int = 0
    other: int = 0
    gaps: int = 0
    cut: bool = False


class Reassembly:
    """Puts the segments of one direction of a TCP connection together."""

    __slots__ = ("_held", "_position", "_start", "_waiting_since", "held_size")

    def __init__(self) -> None:
        self._start: int | None = None  # the sequence number of the first byte
        self._position = 0  # how many bytes of the stream have been delivered or given up
        self._held: list[tuple[int, bytes]] = []  # a heap of positions and what is there
        self._waiting_since = 0
        self.held_size = 0
        """What is held, in bytes."""

    def is_of_another_connection(self, segment: Segment) -> bool:
        """Return whether the segment belongs to a later connection between the same ports."""
        if self._start is None:
            return False
        if segment.flags & TcpFlag.SYN:
            return (segment.sequence + 1 - self._start) % (1 << 32) != 0
        return not -_FAR < self._distance(segment.sequence) < _FAR

    def receive(self, segment: Segment, time_ns: int) -> Iterator[bytes | None]:
        """Take a segment with data, or the first, and yield what can now be delivered.

        ``None`` is where bytes are missing.
        """
        is_first = bool(segment.flags & TcpFlag.SYN)
        sequence = segment.sequence + is_first
        if self._start is None:
            self._start = sequence % (1 << 32)
        distance = self._distance(sequence)
        before, was_waiting = self._position, bool(self._held)
        if segment.data:
            heapq.heappush(self._held, (before + distance, segment.data))
            self.held_size += len(segment.data) + _SEGMENT_COST
        yield from self._deliver()
        if self._position != before or not was_waiting:
            self._waiting_since = time_ns
        if self.held_size > MAX_HELD or (self._held and time_ns - self._waiting_since > PATIENCE_NS):
            yield from self.give_up()
            self._waiting_since = time_ns

    def give_up(self) -> Iterator[bytes | None]:
        """Yield what is held, with a ``None`` for each part that is missing."""
        while self._held:
            self._position = self._held[0][0]
            yield None
            yield from self._deliver()

    def _distance(self, sequence: int) -> int:
        """Return how far a sequence number is from what is to be delivered next."""
        assert self._start is not None
        half = 1 << 31
        return (sequence - self._start - self._position + half) % (1 << 32) - half

    def _deliver(self) -> Iterator[bytes]:
        while self._held and self._held[0][0] <= self._position:
            where, data = heapq.heappop(self._held)
            self.held_size -= len(data) + _SEGMENT_COST
            fresh = data[self._position - where :]
            if fresh:
                self._position += len(fresh)
                yield fresh


_TLS_CONTENT = range(20, 24)  # change_cipher_spec, alert, handshake, application_data
_TLS_MAJOR = 3
_ARRAY = 4  # the major type that all messages are
_MESSAGE_TYPES = (*range(10), 0x18)  # how a message goes on after the head of the array; the last is 99's


def _is_tls(data: bytes) -> bool:
    """Return whether a TLS record begins so (RFC 8446 section 5.1); no GRASP message does."""
    return data[0] in _TLS_CONTENT and data[1] == _TLS_MAJOR


def _may_be_message(data: bytes) -> bool:
    return data[0] >> 5 == _ARRAY and len(data) > 1 and data[1] in _MESSAGE_TYPES


class _Direction:
    """One direction of a connection, from its bytes to its messages."""

    def __init__(self, flow: Flow, counts: Counts, *, from_its_beginning: bool) -> None:
        self.flow = flow
        self.reassembly = Reassembly()
        self.is_tls = False
        self.last: Packet | None = None
        self._counts = counts
        self._scanner = ItemScanner(max_size=MAX_STREAM_MESSAGE)
        self._head: bytes | None = b""  # until it is known what the stream is
        self._lost = not from_its_beginning  # looking for where a message begins
        self._said: set[str] = set()

    def receive(self, segment: Segment, packet: Packet) -> Iterator[Captured]:
        """Take a segment and yield the messages that are now complete."""
        self.last = packet
        for piece in self.reassembly.receive(segment, packet.time_ns):
            yield from self._take(piece)

    def give_up(self) -> Iterator[Captured]:
        """Yield the messages after what is missing: it will not come any more."""
        for piece in self.reassembly.give_up():
            yield from self._take(piece)

    def finish(self) -> Iterator[Captured]:
        """Yield what there is when nothing more comes."""
        yield from self.give_up()
        if self._scanner.pending or self._head:
            yield from self._note("ends in the middle of a message")

    def _take(self, piece: bytes | None) -> Iterator[Captured]:
        if self.is_tls:
            return
        if piece is None:
            self._counts.gaps += 1
            self._lose()
            return
        if self._lost:
            # Messages begin where segments do, mostly.
            if not _may_be_message(piece) and not (len(piece) > 1 and _is_tls(piece)):
                return
            self._lost = False
        if self._head is not None:
            self._head = piece = self._head + piece
            if len(piece) < 2:
                return
            self._head = None
            if _is_tls(piece):
                self.is_tls = True
                yield from self._note("TLS, not readable")
                return
        yield from self._scan(piece)

    def _scan(self, piece: bytes) -> Iterator[Captured]:
        why = "neither GRASP nor TLS"
        try:
            items = self._scanner.feed(piece)
        except CborError:
            items = []
        for item in items:
            if item[0] >> 5 != _ARRAY:
                break
            yield self._message(item)
        else:
            if self._scanner.broken is None:
                return
            why = str(self._scanner.broken)
        self._lose()
        yield from self._note(f"not GRASP: {why}")

    def _lose(self) -> None:
        self._scanner = ItemScanner(max_size=MAX_STREAM_MESSAGE)
        self._head = b""
        self._lost = True

    def _message(self, data: bytes) -> CapturedMessage:
        assert self.last is not None
        message = _decoded(data)
        self._counts.messages += not isinstance(message, GraspDecodeError)
        return CapturedMessage(self.last.time_ns, self.flow, data, message, self.last.outgoing)

    def _note(self, text: str) -> Iterator[CapturedNote]:
        if text not in self._said and self.last is not None:
            self._said.add(text)
            yield CapturedNote(self.last.time_ns, self.flow, text, self.last.outgoing)


def _decoded(data: bytes) -> Message | GraspDecodeError:
    try:
        return decode(data, max_size=MAX_STREAM_MESSAGE)
    except GraspDecodeError as error:
        return error


class GraspCapture:
    """Finds the messages in packets that are handed to it in their order; :attr:`counts` says what else.

    ``ports`` are those whose UDP and TCP is GRASP, at either end.
    """

    def __init__(self, ports: Iterable[int] = (GRASP_LISTEN_PORT,)) -> None:
        self.counts = Counts()
        self._ports = frozenset(ports)
        self._learnt: dict[tuple[Address, int], None] = {}
        self._streams: dict[Flow, _Direction] = {}  # those that were silent longest first
        self._held = 0

    def read(self, chunks: Iterable[bytes]) -> Iterator[Captured]:
        """Yield what is in a capture file, given in pieces.

        Raises :class:`CaptureError`, but not before all has come that is before the damage.
        """
        reader = CaptureReader()
        damage = None
        try:
            for chunk in chunks:
                for packet in reader.feed(chunk):
                    yield from self.receive(packet)
        except CaptureError as error:
            damage = error
        self.counts.broken += reader.broken
        self.counts.cut = reader.pending > 0 and damage is None
        yield from self.finish()
        if damage is not None:
            raise damage

    def receive(self, packet: Packet) -> list[Captured]:
        """Take a packet and return the messages that are now complete."""
        self.counts.packets += 1
        try:
            inside = dissect(packet.link_type, packet.data)
        except NotOursError:
            self.counts.other += 1
            return []
        except PacketError:
            self.counts.broken += 1
            return []
        transport = TransportProto.IPPROTO_TCP if isinstance(inside, Segment) else TransportProto.IPPROTO_UDP
        ends = (inside.source, inside.source_port, inside.destination, inside.destination_port)
        flow = Flow(transport, *ends, packet.interface)
        if not self._is_grasp(flow):
            self.counts.other += 1
            return []
        found = self._datagram(flow, inside, packet) if isinstance(inside, Datagram) else None
        if isinstance(inside, Segment):
            found = list(self._segment(flow, inside, packet))
        for captured in found or []:
            if isinstance(captured, CapturedMessage):
                self._learn(captured)
        return found or []

    def finish(self) -> list[Captured]:
        """Return what can be said when there are no more packets."""
        found: list[Captured] = []
        for direction in self._streams.values():
            found += direction.finish()
        self._streams.clear()
        self._held = 0
        return found

    def _is_grasp(self, flow: Flow) -> bool:
        if flow.source_port in self._ports or flow.destination_port in self._ports:
            return True
        return flow.transport is TransportProto.IPPROTO_TCP and (
            (flow.source, flow.source_port) in self._learnt
            or (flow.destination, flow.destination_port) in self._learnt
            or flow in self._streams
        )

    def _datagram(self, flow: Flow, datagram: Datagram, packet: Packet) -> list[Captured]:
        message = _decoded(datagram.data)
        self.counts.messages += not isinstance(message, GraspDecodeError)
        return [CapturedMessage(packet.time_ns, flow, datagram.data, message, packet.outgoing)]

    def _segment(self, flow: Flow, segment: Segment, packet: Packet) -> Iterator[Captured]:
        if not segment.data and not segment.flags & TcpFlag.SYN:
            # Tells nothing new. A reset may even have numbers that are none of the connection's.
            return
        direction = self._streams.pop(flow, None)
        if direction is not None and direction.reassembly.is_of_another_connection(segment):
            self._held -= direction.reassembly.held_size
            yield from direction.finish()
            direction = None
        if direction is None:
            yield from self._make_room()
            direction = _Direction(flow, self.counts, from_its_beginning=bool(segment.flags & TcpFlag.SYN))
        self._streams[flow] = direction
        self._held -= direction.reassembly.held_size
        said_of_other = flow.reversed() in self._streams and self._streams[flow.reversed()].is_tls
        for captured in direction.receive(segment, packet):
            if not (isinstance(captured, CapturedNote) and direction.is_tls and said_of_other):
                yield captured
        if self._held + direction.reassembly.held_size > MAX_HELD_IN_ALL:
            yield from direction.give_up()
        self._held += direction.reassembly.held_size

    def _make_room(self) -> Iterator[Captured]:
        if len(self._streams) >= MAX_STREAMS:
            oldest = self._streams.pop(next(iter(self._streams)))
            self._held -= oldest.reassembly.held_size
            yield from oldest.finish()

    def _learn(self, captured: CapturedMessage) -> None:
        """Remember the dynamic ports that a message tells of."""
        message, flow = captured.message, captured.flow
        found: list[tuple[Address, int]] = []
        if isinstance(message, Discovery) and flow.transport is TransportProto.IPPROTO_UDP:
            found = [(flow.source, flow.source_port)]
        elif isinstance(message, Response):
            found = [
                (locator.address, locator.port)
                for locator in (message.divert.locators if message.divert else message.locators)
                if isinstance(locator, IPv6Locator | IPv4Locator)
                and locator.transport is TransportProto.IPPROTO_TCP
            ]
        for end in found:
            self._learnt.pop(end, None)
            self._learnt[end] = None
        while len(self._learnt) > MAX_LEARNT:
            del self._learnt[next(iter(self._learnt))]
