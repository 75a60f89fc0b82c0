"""Traffic selectors: TSi and TSr, and what we do with those of a peer (RFC 7296 sections 2.9, 3.13)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from minerva.core.reader import Reader
from minerva.ikev2.constants import PayloadType, TsType
from minerva.ikev2.errors import IkeDecodeError

_HEAD = struct.Struct("!BBHHH")
_COUNT = struct.Struct("!Bxxx")
_ADDRESS_LENGTHS = {TsType.TS_IPV4_ADDR_RANGE: 4, TsType.TS_IPV6_ADDR_RANGE: 16}
_MAX_PORT = 0xFFFF


@dataclass(frozen=True, slots=True)
class TrafficSelector:
    """A range of addresses, ports and one protocol, or all (section 3.13.1).

    ``start`` and ``end`` are 4 or 16 bytes; ``protocol`` 0 means any. A selector of a type that we do not
    know has its content behind the ports in ``start`` and an empty ``end``, and is never acceptable.

    ::

        TS Type 8 | IP Protocol ID 8 | Selector Length 16 | Start Port 16 | End Port 16 | Start | End
    """

    type: int
    protocol: int
    start_port: int
    end_port: int
    start: bytes
    end: bytes

    def encode(self) -> bytes:
        """Return the substructure."""
        length = _HEAD.size + len(self.start) + len(self.end)
        head = _HEAD.pack(self.type, self.protocol, length, self.start_port, self.end_port)
        return head + self.start + self.end

    @classmethod
    def decode(cls, reader: Reader) -> TrafficSelector:
        """Return the selector at the reader's position."""
        kind, protocol, length, start_port, end_port = _HEAD.unpack(
            reader.read(_HEAD.size, "traffic selector")
        )
        addresses = reader.read(length - _HEAD.size, "traffic selector addresses")
        try:
            size = _ADDRESS_LENGTHS[TsType(kind)]
        except ValueError:
            return cls(kind, protocol, start_port, end_port, addresses, b"")
        if len(addresses) != 2 * size:
            raise IkeDecodeError(f"traffic selector of type {kind}: {len(addresses)} bytes of addresses")
        return cls(kind, protocol, start_port, end_port, addresses[:size], addresses[size:])

    def contains(self, other: TrafficSelector) -> bool:
        """Return whether everything that ``other`` selects is selected by this one as well."""
        return (
            self.type == other.type
            and self.protocol in (0, other.protocol)
            and self.start_port <= other.start_port
            and other.end_port <= self.end_port
            and len(self.start) == len(other.start)
            and self.start <= other.start
            and other.end <= self.end
        )


@dataclass(frozen=True, slots=True)
class _TrafficSelectors:
    selectors: tuple[TrafficSelector, ...]

    def encode(self) -> bytes:
        """Return the payload's body."""
        return _COUNT.pack(len(self.selectors)) + b"".join(s.encode() for s in self.selectors)

    @classmethod
    def _read(cls, body: bytes) -> tuple[TrafficSelector, ...]:
        reader = Reader(body, IkeDecodeError)
        (count,) = _COUNT.unpack(reader.read(_COUNT.size, "TS"))
        if not count:
            raise IkeDecodeError("TS: no traffic selector")
        selectors = tuple(TrafficSelector.decode(reader) for _ in range(count))
        reader.expect_end("TS")
        return selectors


@dataclass(frozen=True, slots=True)
class TrafficSelectorsInitiator(_TrafficSelectors):
    """The TSi payload: the addresses at the initiator's end."""

    TYPE: ClassVar[PayloadType] = PayloadType.TS_I

    @classmethod
    def decode(cls, body: bytes) -> TrafficSelectorsInitiator:
        """Return the payload. Raises :class:`IkeDecodeError`."""
        return cls(cls._read(body))


@dataclass(frozen=True, slots=True)
class TrafficSelectorsResponder(_TrafficSelectors):
    """The TSr payload: the addresses at the responder's end."""

    TYPE: ClassVar[PayloadType] = PayloadType.TS_R

    @classmethod
    def decode(cls, body: bytes) -> TrafficSelectorsResponder:
        """Return the payload. Raises :class:`IkeDecodeError`."""
        return cls(cls._read(body))


ALL_IPV6 = TrafficSelector(TsType.TS_IPV6_ADDR_RANGE, 0, 0, _MAX_PORT, bytes(16), b"\xff" * 16)
"""The one selector of the profile, for both ends: all of ::/0 (RFC 8994 section 6.8.3.1)."""


def narrow(selectors: Sequence[TrafficSelector]) -> tuple[TrafficSelector, ...] | None:
    """Return what a peer's selectors narrow to, or ``None`` where they are unacceptable (section 2.9).

    A channel of the ACP carries all of IPv6 or nothing: routing decides what goes through it. So selectors
    that have room for ``ALL_IPV6`` narrow to that, and others are refused.
    """
    return (ALL_IPV6,) if any(selector.contains(ALL_IPV6) for selector in selectors) else None
