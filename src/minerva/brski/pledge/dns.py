"""As much of a DNS message as finding a service on a link takes (RFC 1035 section 4, RFC 6762 section 18).

::

    header  ID (16), QR (1) opcode (4) AA TC (1) RD RA Z AD CD rcode (4), QDCOUNT, ANCOUNT, NSCOUNT, ARCOUNT
    question  name, type (16), QU (1) class (15)
    record    name, type (16), cache-flush (1) class (15), ttl (32), length (16), data

Records of other types and classes are passed over, but their form is checked. Names are told apart without
regard to case (RFC 6762 section 16), so here they are in lower case.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Address
from typing import Final, TypeAlias

from minerva.brski.pledge.errors import DnsDecodeError
from minerva.core.reader import Reader

MAX_MESSAGE: Final = 9000
"""The size of a message at most, in bytes (RFC 6762 section 17)."""

MAX_NAME: Final = 255
MAX_LABEL: Final = 63
"""The size of a name and of one label at most, in bytes (RFC 1035 section 2.3.4)."""

MAX_QUESTIONS: Final = 64
MAX_RECORDS: Final = 128
"""How many questions and records a message that is read may have. What a full LAN says at once is less."""

_MAX_POINTERS: Final = 16
"""How often a name may go on elsewhere. Names of services do so once or twice."""

_RESPONSE, _OPCODE_AND_RCODE, _TRUNCATED = 0x8000, 0x780F, 0x0200
_IN, _ANY, _TOP_BIT = 1, 255, 0x8000
_POINTER = 0xC0

Name: TypeAlias = tuple[bytes, ...]
"""A name as its labels, in lower case."""


class Type(IntEnum):
    """The types of records that are read."""

    PTR = 12
    AAAA = 28
    SRV = 33


@dataclass(frozen=True, slots=True)
class Server:
    """The data of an SRV record (RFC 2782). Priority and weight say nothing here (RFC 6763 section 5)."""

    port: int
    target: Name


@dataclass(frozen=True, slots=True)
class Question:
    """A question; ``unicast`` is the QU bit (RFC 6762 section 5.4). ``type`` may be one that is not known."""

    name: Name
    type: int
    unicast: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A record of class IN and its ``ttl`` in seconds. ``flush`` is the cache-flush bit (section 10.2)."""

    name: Name
    ttl: int
    data: Name | Server | IPv6Address
    flush: bool = False

    @property
    def type(self) -> Type:
        """The type, which follows from the data."""
        match self.data:
            case Server():
                return Type.SRV
            case IPv6Address():
                return Type.AAAA
            case _:
                return Type.PTR


@dataclass(frozen=True, slots=True)
class Message:
    """A query, whose answers are those already known, or a response with all its records."""

    response: bool
    questions: tuple[Question, ...] = ()
    records: tuple[Record, ...] = ()
    truncated: bool = False

    @classmethod
    def decode(cls, data: bytes) -> Message:
        """Read a message. Raises :class:`DnsDecodeError`."""
        if len(data) > MAX_MESSAGE:
            raise DnsDecodeError(f"a message of {len(data)} bytes, at most {MAX_MESSAGE} are read")
        reader, names = Reader(data, DnsDecodeError), _Names(data)
        reader.u16("ID")
        flags = reader.u16("flags")
        if flags & _OPCODE_AND_RCODE:
            raise DnsDecodeError(f"flags {flags:#06x}: neither a plain query nor a plain response")
        counts = [reader.u16("count") for _ in range(4)]
        if counts[0] > MAX_QUESTIONS or sum(counts[1:]) > MAX_RECORDS:
            raise DnsDecodeError(f"{counts[0]} questions and {sum(counts[1:])} records are too many")
        questions = [_read_question(names, reader) for _ in range(counts[0])]
        records = [_read_record(data, names, reader) for _ in range(sum(counts[1:]))]
        reader.expect_end("message")
        return cls(
            bool(flags & _RESPONSE),
            tuple(question for question in questions if question is not None),
            tuple(record for record in records if record is not None),
            bool(flags & _TRUNCATED),
        )

    def encode(self) -> bytes:
        """Return the message; only the names that questions have are pointed to."""
        flags = (_RESPONSE | 0x0400 if self.response else 0) | (_TRUNCATED if self.truncated else 0)
        out = bytearray(struct.pack("!6H", 0, flags, len(self.questions), len(self.records), 0, 0))
        places: dict[Name, int] = {}
        for question in self.questions:
            _write_name(out, question.name, places)
            out += struct.pack("!HH", question.type, _IN | _TOP_BIT * question.unicast)
        for record in self.records:
            _write_name(out, record.name, places)
            out += struct.pack("!HHI", record.type, _IN | _TOP_BIT * record.flush, record.ttl)
            start = len(out) + 2
            out += bytes(2)
            match record.data:
                case Server(port, target):
                    out += struct.pack("!HHH", 0, 0, port)
                    _write_name(out, target, {})  # RFC 2782 allows no pointers here
                case IPv6Address():
                    out += record.data.packed
                case name:
                    _write_name(out, name, places)
            out[start - 2 : start] = struct.pack("!H", len(out) - start)
        return bytes(out)


def name_of(text: str) -> Name:
    """Return the name that ``text`` is, whose labels have no dots in them."""
    return tuple(label.encode().lower() for label in text.rstrip(".").split("."))


class _Names:
    """Reads the names of a message, each part of it once, however often it is pointed to."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._known: dict[int, Name] = {}

    def read(self, reader: Reader, pointers: int = 0) -> Name:
        """Read a name that ``pointers`` led to."""
        start, labels = reader.position, list[bytes]()
        rest: Name = ()
        while length := reader.u8("label"):
            if length & _POINTER == _POINTER:
                place = (length & ~_POINTER) << 8 | reader.u8("pointer")
                # Only ever to the front of where the name has been before: so it comes to an end.
                if place >= start or pointers >= _MAX_POINTERS:
                    raise DnsDecodeError(f"a name goes on at {place} after {pointers} pointers")
                rest = self._at(place, pointers + 1)
                break
            if length > MAX_LABEL:
                raise DnsDecodeError(f"a label begins with {length:#04x}")
            labels.append(reader.read(length, "label").lower())
        found = (*labels, *rest)
        if len(found) + sum(map(len, found)) >= MAX_NAME:
            raise DnsDecodeError(f"a name has more than {MAX_NAME} bytes")
        self._known[start] = found
        return found

    def _at(self, place: int, pointers: int) -> Name:
        if (known := self._known.get(place)) is not None:
            return known
        return self.read(Reader(self._data, DnsDecodeError, start=place), pointers)


def _read_question(names: _Names, reader: Reader) -> Question | None:
    name, kind, cls = names.read(reader), reader.u16("type"), reader.u16("class")
    if cls & ~_TOP_BIT not in (_IN, _ANY):
        return None
    return Question(name, kind, bool(cls & _TOP_BIT))


def _read_record(data: bytes, names: _Names, reader: Reader) -> Record | None:
    owner, kind, cls, ttl = names.read(reader), *struct.unpack("!HHI", reader.read(8, "record"))
    length = reader.u16("length")
    inner = Reader(data, DnsDecodeError, start=reader.position, end=reader.position + length)
    reader.read(length, "data")
    content: Name | Server | IPv6Address
    if cls & ~_TOP_BIT != _IN:
        return None
    match kind:
        case Type.AAAA:
            content = inner.ipv6("address")
        case Type.PTR:
            content = names.read(inner)
        case Type.SRV:
            inner.read(4, "priority and weight")
            content = Server(inner.u16("port"), names.read(inner))
        case _:
            return None
    inner.expect_end("data")
    return Record(owner, ttl, content, bool(cls & _TOP_BIT))


def _write_name(out: bytearray, labels: Name, places: dict[Name, int]) -> None:
    for index, label in enumerate(labels):
        rest = labels[index:]
        if (place := places.get(rest)) is not None:
            out += struct.pack("!H", _POINTER << 8 | place)
            return
        if len(out) < 1 << 14:  # what a pointer can point to
            places[rest] = len(out)
        out += bytes((len(label),)) + label
    out += b"\0"
