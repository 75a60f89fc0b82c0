"""The options of RPL control messages (RFC 6550 section 6.7) that the ACP profile uses.

The others (metric containers, prefix information and so on) are carried as :class:`OpaqueOption`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Address, IPv6Network
from typing import ClassVar, TypeAlias

from minerva.core.reader import Reader
from minerva.rpl.errors import RplDecodeError

MAX_OPTIONS = 512
"""The most options accepted in one message; ours never have more than 90."""

INFINITE_LIFETIME = 0xFF
"""The Path Lifetime and Default Lifetime that never end."""

INFINITE_LIFETIME_UNIT = 0xFFFF


class OptionType(IntEnum):
    """RPL Control Message Options, as IANA names them."""

    PAD1 = 0
    PADN = 1
    DAG_METRIC_CONTAINER = 2
    ROUTING_INFORMATION = 3
    DODAG_CONFIGURATION = 4
    RPL_TARGET = 5
    TRANSIT_INFORMATION = 6
    SOLICITED_INFORMATION = 7
    PREFIX_INFORMATION = 8
    RPL_TARGET_DESCRIPTOR = 9


def _frame(kind: int, data: bytes) -> bytes:
    return bytes((kind, len(data))) + data


@dataclass(frozen=True, slots=True)
class DodagConfiguration:
    """What the root lays down for its whole DODAG (RFC 6550 section 6.7.6)::

        Flags(4) A(1) PCS(3) | DIOIntDoubl. | DIOIntMin. | DIORedun. |
        MaxRankIncrease(16) | MinHopRankIncrease(16) | OCP(16) | Reserved | Def. Lifetime | Lifetime Unit(16)

    The lifetime of a route is ``default_lifetime`` times ``lifetime_unit`` seconds.
    """

    TYPE: ClassVar[int] = OptionType.DODAG_CONFIGURATION

    path_control_size: int
    dio_interval_doublings: int
    dio_interval_min: int
    dio_redundancy_constant: int
    max_rank_increase: int
    min_hop_rank_increase: int
    objective_code_point: int
    default_lifetime: int
    lifetime_unit: int
    authentication_enabled: bool = False

    def encode(self) -> bytes:
        """Return the option with its header."""
        flags = self.authentication_enabled << 3 | self.path_control_size
        head = (flags, self.dio_interval_doublings, self.dio_interval_min, self.dio_redundancy_constant)
        words = (self.max_rank_increase, self.min_hop_rank_increase, self.objective_code_point)
        data = bytes(head) + b"".join(word.to_bytes(2) for word in words)
        return _frame(self.TYPE, data + bytes((0, self.default_lifetime)) + self.lifetime_unit.to_bytes(2))

    @classmethod
    def decode(cls, data: bytes) -> DodagConfiguration:
        """Return what ``data``, the option without its header, says. Raises :class:`RplDecodeError`."""
        reader = Reader(data, RplDecodeError)
        flags = reader.u8("DODAG Configuration flags")
        doublings, interval, redundancy = reader.read(3, "DIO intervals")
        max_rank_increase = reader.u16("MaxRankIncrease")
        min_hop_rank_increase = reader.u16("MinHopRankIncrease")
        objective_code_point = reader.u16("Objective Code Point")
        reader.u8("reserved byte")
        option = cls(
            flags & 7,
            doublings,
            interval,
            redundancy,
            max_rank_increase,
            min_hop_rank_increase,
            objective_code_point,
            reader.u8("Default Lifetime"),
            reader.u16("Lifetime Unit"),
            bool(flags & 8),
        )
        reader.expect_end("DODAG Configuration")
        return option


@dataclass(frozen=True, slots=True)
class RplTarget:
    """A prefix that can be reached (RFC 6550 section 6.7.7)::

        Flags | Prefix Length | Target Prefix (variable)

    The prefix is always sent in 16 bytes: that is allowed, and there are dissectors that take nothing else.
    """

    TYPE: ClassVar[int] = OptionType.RPL_TARGET

    prefix: IPv6Network

    def encode(self) -> bytes:
        """Return the option with its header."""
        return _frame(self.TYPE, bytes((0, self.prefix.prefixlen)) + self.prefix.network_address.packed)

    @classmethod
    def decode(cls, data: bytes) -> RplTarget:
        """Return what ``data``, the option without its header, says. Raises :class:`RplDecodeError`."""
        reader = Reader(data, RplDecodeError)
        reader.u8("Target flags")
        length = reader.u8("Target prefix length")
        if length > 128:
            raise RplDecodeError(f"Target prefix length {length}")
        if not (length + 7) // 8 <= reader.remaining <= 16:
            raise RplDecodeError(f"Target prefix of length {length} in {reader.remaining} bytes")
        address = int.from_bytes(reader.rest().ljust(16, b"\0"))
        # Bits after the length are reserved: ignored on receipt (RFC 6550 section 6.7.7).
        return cls(IPv6Network((address >> (128 - length) << (128 - length), length)))


@dataclass(frozen=True, slots=True)
class TransitInformation:
    """Attributes of the path to the Targets before it (RFC 6550 section 6.7.8)::

        E(1) Flags(7) | Path Control | Path Sequence | Path Lifetime | Parent Address(128), optional

    ``path_lifetime`` is in lifetime units; 0 is a No-Path, 255 never ends. ``external`` is E.
    ``parent_address`` belongs to the non-storing mode.
    """

    TYPE: ClassVar[int] = OptionType.TRANSIT_INFORMATION

    path_control: int
    path_sequence: int
    path_lifetime: int
    external: bool = False
    parent_address: IPv6Address | None = None

    def encode(self) -> bytes:
        """Return the option with its header."""
        data = bytes((self.external << 7, self.path_control, self.path_sequence, self.path_lifetime))
        return _frame(self.TYPE, data + (self.parent_address.packed if self.parent_address else b""))

    @classmethod
    def decode(cls, data: bytes) -> TransitInformation:
        """Return what ``data``, the option without its header, says. Raises :class:`RplDecodeError`."""
        reader = Reader(data, RplDecodeError)
        flags, path_control, path_sequence, path_lifetime = reader.read(4, "Transit Information")
        parent = reader.ipv6("Transit parent address") if reader.remaining else None
        reader.expect_end("Transit Information")
        return cls(path_control, path_sequence, path_lifetime, bool(flags & 0x80), parent)


@dataclass(frozen=True, slots=True)
class SolicitedInformation:
    """Which DODAGs a DIS asks for (RFC 6550 section 6.7.9)::

        RPLInstanceID | V(1) I(1) D(1) Flags(5) | DODAGID(128) | Version Number

    Each of the three predicates says whether the field of its name has to match.
    """

    TYPE: ClassVar[int] = OptionType.SOLICITED_INFORMATION

    instance: int
    dodag_id: IPv6Address
    version: int
    version_predicate: bool = False
    instance_predicate: bool = False
    dodagid_predicate: bool = False

    def matches(self, instance: int, dodag_id: IPv6Address, version: int) -> bool:
        """Return whether a node in this version of this DODAG is asked to answer."""
        return (
            (not self.instance_predicate or self.instance == instance)
            and (not self.dodagid_predicate or self.dodag_id == dodag_id)
            and (not self.version_predicate or self.version == version)
        )

    def encode(self) -> bytes:
        """Return the option with its header."""
        flags = self.version_predicate << 7 | self.instance_predicate << 6 | self.dodagid_predicate << 5
        return _frame(
            self.TYPE, bytes((self.instance, flags)) + self.dodag_id.packed + bytes((self.version,))
        )

    @classmethod
    def decode(cls, data: bytes) -> SolicitedInformation:
        """Return what ``data``, the option without its header, says. Raises :class:`RplDecodeError`."""
        reader = Reader(data, RplDecodeError)
        instance, flags = reader.read(2, "Solicited Information")
        dodag_id = reader.ipv6("solicited DODAGID")
        version = reader.u8("solicited version")
        reader.expect_end("Solicited Information")
        return cls(instance, dodag_id, version, bool(flags & 0x80), bool(flags & 0x40), bool(flags & 0x20))


@dataclass(frozen=True, slots=True)
class OpaqueOption:
    """An option that is of no use here, or that nobody knows: kept as it came."""

    type: int
    data: bytes

    def encode(self) -> bytes:
        """Return the option with its header."""
        return _frame(self.type, self.data)


Option: TypeAlias = DodagConfiguration | RplTarget | TransitInformation | SolicitedInformation | OpaqueOption

_DECODERS = {
    option.TYPE: option.decode
    for option in (DodagConfiguration, RplTarget, TransitInformation, SolicitedInformation)
}


def encode_options(options: Iterable[Option]) -> bytes:
    """Return the options one after the other."""
    return b"".join(option.encode() for option in options)


def decode_options(reader: Reader) -> tuple[Option, ...]:
    """Return all options to the end of the message but the padding. Raises :class:`RplDecodeError`."""
    options: list[Option] = []
    for _ in range(MAX_OPTIONS):
        if not reader.remaining:
            return tuple(options)
        kind = reader.u8("option type")
        if kind == OptionType.PAD1:
            continue
        data = reader.read(reader.u8("option length"), f"option {kind}")
        if kind != OptionType.PADN:
            decode = _DECODERS.get(kind)
            options.append(decode(data) if decode else OpaqueOption(kind, data))
    if reader.remaining:
        raise RplDecodeError(f"more than {MAX_OPTIONS} options")
    return tuple(options)
