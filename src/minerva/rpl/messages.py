"""RPL control messages: ICMPv6 type 155 (RFC 6550 section 6).

A message is the whole ICMPv6 message, as a raw ICMPv6 socket gives and takes it: type, code, checksum, base,
options. ``encode`` leaves the checksum zero, for the kernel computes it; ``decode`` does not look at it, for
the kernel has checked it. Where there is no kernel, :func:`with_checksum` and :func:`checksum_is_good` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Address, IPv6Network
from typing import ClassVar, TypeAlias

from minerva.core.reader import Reader
from minerva.rpl.errors import RplDecodeError, UnknownCode
from minerva.rpl.options import (
    DodagConfiguration,
    Option,
    RplTarget,
    SolicitedInformation,
    TransitInformation,
    decode_options,
    encode_options,
)

ICMPV6_RPL = 155
"""The ICMPv6 type of every RPL control message."""

ALL_RPL_NODES = IPv6Address("ff02::1a")
DEFAULT_INSTANCE = 0
INFINITE_RANK = 0xFFFF

_IPPROTO_ICMPV6 = 58
_LOCAL_INSTANCE = 0x80


class Code(IntEnum):
    """RPL Control Codes, as IANA names them; the secured ones are not used in the ACP."""

    DODAG_INFORMATION_SOLICITATION = 0
    DODAG_INFORMATION_OBJECT = 1
    DESTINATION_ADVERTISEMENT_OBJECT = 2
    DESTINATION_ADVERTISEMENT_OBJECT_ACKNOWLEDGMENT = 3


class ModeOfOperation(IntEnum):
    """How a DODAG keeps downward routes; of those named here the ACP uses ``STORING``."""

    NO_DOWNWARD_ROUTES = 0
    NON_STORING = 1
    STORING = 2
    STORING_WITH_MULTICAST = 3


def _message(code: Code, base: bytes, options: Sequence[Option]) -> bytes:
    return bytes((ICMPV6_RPL, code, 0, 0)) + base + encode_options(options)


@dataclass(frozen=True, slots=True)
class Dis:
    """DODAG Information Solicitation (RFC 6550 section 6.2)::

    Flags | Reserved | options
    """

    CODE: ClassVar[Code] = Code.DODAG_INFORMATION_SOLICITATION

    options: tuple[Option, ...] = ()

    def asks_for(self, instance: int, dodag_id: IPv6Address, version: int) -> bool:
        """Return whether a node in this DODAG should answer: it is asked for nothing else."""
        asked = [option for option in self.options if isinstance(option, SolicitedInformation)]
        return not asked or any(option.matches(instance, dodag_id, version) for option in asked)

    def encode(self) -> bytes:
        """Return the ICMPv6 message, its checksum zero."""
        return _message(self.CODE, bytes(2), self.options)

    @classmethod
    def decode_base(cls, reader: Reader) -> Dis:
        """Return what follows the ICMPv6 header. Raises :class:`RplDecodeError`."""
        reader.read(2, "DIS")
        return cls(decode_options(reader))


@dataclass(frozen=True, slots=True)
class Dio:
    """DODAG Information Object (RFC 6550 section 6.3)::

        RPLInstanceID | Version Number | Rank(16) |
        G(1) 0(1) MOP(3) Prf(3) | DTSN | Flags | Reserved | DODAGID(128) | options

    Ranks are numbers without a unit; ``INFINITE_RANK`` poisons.
    """

    CODE: ClassVar[Code] = Code.DODAG_INFORMATION_OBJECT

    version: int
    rank: int
    grounded: bool
    mode_of_operation: int
    preference: int
    dtsn: int
    dodag_id: IPv6Address
    options: tuple[Option, ...] = ()
    instance: int = DEFAULT_INSTANCE

    @property
    def configuration(self) -> DodagConfiguration | None:
        """The DODAG Configuration option, if there is one."""
        return next((option for option in self.options if isinstance(option, DodagConfiguration)), None)

    def encode(self) -> bytes:
        """Return the ICMPv6 message, its checksum zero."""
        flags = self.grounded << 7 | self.mode_of_operation << 3 | self.preference
        base = bytes((self.instance, self.version)) + self.rank.to_bytes(2) + bytes((flags, self.dtsn, 0, 0))
        return _message(self.CODE, base + self.dodag_id.packed, self.options)

    @classmethod
    def decode_base(cls, reader: Reader) -> Dio:
        """Return what follows the ICMPv6 header. Raises :class:`RplDecodeError`."""
        instance, version = reader.read(2, "DIO instance and version")
        rank = reader.u16("DIO rank")
        flags, dtsn, _, _ = reader.read(4, "DIO flags")
        dodag_id = reader.ipv6("DODAGID")
        options = decode_options(reader)
        return cls(
            version, rank, bool(flags & 0x80), flags >> 3 & 7, flags & 7, dtsn, dodag_id, options, instance
        )


@dataclass(frozen=True, slots=True)
class DaoGroup:
    """Targets, and the Transit Information options that apply to every one of them."""

    targets: tuple[IPv6Network, ...]
    transits: tuple[TransitInformation, ...]


@dataclass(frozen=True, slots=True)
class Dao:
    """Destination Advertisement Object (RFC 6550 section 6.4)::

        RPLInstanceID | K(1) D(1) Flags(6) | Reserved | DAOSequence | DODAGID(128), if D | options

    ``acknowledge`` is K; there is a ``dodag_id`` where D is set.
    """

    CODE: ClassVar[Code] = Code.DESTINATION_ADVERTISEMENT_OBJECT

    sequence: int
    acknowledge: bool
    options: tuple[Option, ...]
    dodag_id: IPv6Address | None = None
    instance: int = DEFAULT_INSTANCE

    @classmethod
    def of_groups(cls, sequence: int, acknowledge: bool, groups: Sequence[DaoGroup]) -> Dao:
        """Return a DAO with these groups."""
        options: list[Option] = []
        for group in groups:
            options += [RplTarget(prefix) for prefix in group.targets]
            options += group.transits
        return cls(sequence, acknowledge, tuple(options))

    def groups(self) -> tuple[DaoGroup, ...]:
        """Return the Targets with their Transits, in order.

        Raises :class:`RplDecodeError` if a Transit has no Target before it or a Target no Transit after it
        (RFC 6550 section 9.4). Other options may stand anywhere.
        """
        groups: list[DaoGroup] = []
        targets: list[IPv6Network] = []
        transits: list[TransitInformation] = []
        for option in self.options:
            if isinstance(option, RplTarget):
                if transits:
                    groups.append(DaoGroup(tuple(targets), tuple(transits)))
                    targets, transits = [], []
                targets.append(option.prefix)
            elif isinstance(option, TransitInformation):
                if not targets:
                    raise RplDecodeError("DAO with a Transit Information before any Target")
                transits.append(option)
        if targets and not transits:
            raise RplDecodeError("DAO with a Target that no Transit Information follows")
        if targets:
            groups.append(DaoGroup(tuple(targets), tuple(transits)))
        return tuple(groups)

    def encode(self) -> bytes:
        """Return the ICMPv6 message, its checksum zero."""
        flags = self.acknowledge << 7 | (self.dodag_id is not None) << 6
        base = bytes((self.instance, flags, 0, self.sequence))
        return _message(self.CODE, base + (self.dodag_id.packed if self.dodag_id else b""), self.options)

    @classmethod
    def decode_base(cls, reader: Reader) -> Dao:
        """Return what follows the ICMPv6 header. Raises :class:`RplDecodeError`."""
        instance, flags, _, sequence = reader.read(4, "DAO")
        dodag_id = _dodag_id(reader, instance, bool(flags & 0x40))
        dao = cls(sequence, bool(flags & 0x80), decode_options(reader), dodag_id, instance)
        dao.groups()
        return dao


@dataclass(frozen=True, slots=True)
class DaoAck:
    """Destination Advertisement Object Acknowledgement (RFC 6550 section 6.5)::

        RPLInstanceID | D(1) Reserved(7) | DAOSequence | Status | DODAGID(128), if D | options

    ``status`` 0 accepts, up to 127 accepts but would rather not be the parent, above rejects.
    """

    CODE: ClassVar[Code] = Code.DESTINATION_ADVERTISEMENT_OBJECT_ACKNOWLEDGMENT
    ACCEPTED: ClassVar[int] = 0
    REJECTED: ClassVar[int] = 255

    sequence: int
    status: int = ACCEPTED
    dodag_id: IPv6Address | None = None
    instance: int = DEFAULT_INSTANCE
    options: tuple[Option, ...] = ()

    @property
    def rejects(self) -> bool:
        """Whether the sender must look for another parent."""
        return self.status > 127

    def encode(self) -> bytes:
        """Return the ICMPv6 message, its checksum zero."""
        base = bytes((self.instance, (self.dodag_id is not None) << 7, self.sequence, self.status))
        return _message(self.CODE, base + (self.dodag_id.packed if self.dodag_id else b""), self.options)

    @classmethod
    def decode_base(cls, reader: Reader) -> DaoAck:
        """Return what follows the ICMPv6 header. Raises :class:`RplDecodeError`."""
        instance, flags, sequence, status = reader.read(4, "DAO-ACK")
        dodag_id = _dodag_id(reader, instance, bool(flags & 0x80))
        return cls(sequence, status, dodag_id, instance, decode_options(reader))


Message: TypeAlias = Dis | Dio | Dao | DaoAck

_DECODERS = {message.CODE: message.decode_base for message in (Dis, Dio, Dao, DaoAck)}


def _dodag_id(reader: Reader, instance: int, present: bool) -> IPv6Address | None:
    if present:
        return reader.ipv6("DODAGID")
    if instance & _LOCAL_INSTANCE:
        raise RplDecodeError(f"no DODAGID, which the local instance {instance:#x} needs")
    return None


def decode(icmpv6: bytes) -> Message:
    """Return the RPL control message that ``icmpv6``, a whole ICMPv6 message, is.

    Raises :class:`UnknownCode` for RPL that this profile does not use, else :class:`RplDecodeError`.
    """
    reader = Reader(icmpv6, RplDecodeError)
    kind, code, _, _ = reader.read(4, "ICMPv6 header")
    if kind != ICMPV6_RPL:
        raise RplDecodeError(f"ICMPv6 type {kind}, not RPL")
    decoder = _DECODERS.get(code)  # type: ignore[call-overload]
    if decoder is None:
        raise UnknownCode(f"RPL code {code:#04x}")
    message: Message = decoder(reader)
    return message


def _checksum(icmpv6: bytes, source: IPv6Address, destination: IPv6Address) -> int:
    """The Internet checksum over the pseudo-header of RFC 8200 section 8.1 and ``icmpv6`` as it stands."""
    pseudo = source.packed + destination.packed + len(icmpv6).to_bytes(4) + bytes((0, 0, 0, _IPPROTO_ICMPV6))
    data = pseudo + icmpv6 + bytes(len(icmpv6) % 2)
    # The ones' complement sum of 16-bit words is the residue modulo 65535; all zeros cannot happen here.
    return ~(int.from_bytes(data) % 0xFFFF) & 0xFFFF


def with_checksum(icmpv6: bytes, source: IPv6Address, destination: IPv6Address) -> bytes:
    """Return ``icmpv6`` with its checksum (RFC 4443 section 2.3) filled in."""
    blank = icmpv6[:2] + bytes(2) + icmpv6[4:]
    return blank[:2] + _checksum(blank, source, destination).to_bytes(2) + blank[4:]


def checksum_is_good(icmpv6: bytes, source: IPv6Address, destination: IPv6Address) -> bool:
    """Return whether the checksum of ``icmpv6`` is that of a packet between these two addresses."""
    return len(icmpv6) >= 4 and with_checksum(icmpv6, source, destination) == icmpv6
