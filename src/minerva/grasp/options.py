"""What GRASP messages are made of: objectives, locators and the Divert option (RFC 8990 sections 2.9, 2.10).

Every class checks its own fields and raises :class:`GraspError`, so that neither a message from the
network nor one of ours can hold what the CDDL of section 4 forbids. ``from_cbor`` takes a decoded CBOR
item; elements after those that are defined are ignored, as an extension may put some there (2.8.2).
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final, TypeAlias

from minerva.grasp.constants import GRASP_DEF_LOOPCT, ObjectiveFlag, OptionType, TransportProto
from minerva.grasp.errors import GraspError


class NoValue(Enum):
    """The type of :data:`NO_VALUE`."""

    NO_VALUE = "no value"

    def __repr__(self) -> str:
        return self.name


NO_VALUE: Final = NoValue.NO_VALUE
"""Stands for an element that is absent, which is not the same as one that is null (``None``)."""

_ALL_FLAGS = sum(ObjectiveFlag)


def check_uint(value: Any, maximum: int, what: str) -> int:
    """Return ``value`` if it is an integer from 0 to ``maximum``, else raise :class:`GraspError`."""
    # A CBOR boolean arrives as a bool, which Python takes for an int. It is none here.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
        raise GraspError(f"{what} is {reprlib.repr(value)}, not an integer from 0 to {maximum}")
    return value


def check_text(value: Any, what: str) -> str:
    """Return ``value`` if it is a text string, else raise :class:`GraspError`."""
    if not isinstance(value, str):
        raise GraspError(f"{what} is {reprlib.repr(value)}, not a text string")
    return value


def check_array(value: Any, minimum: int, what: str) -> list[Any]:
    """Return ``value`` if it is an array of ``minimum`` elements or more, else raise :class:`GraspError`."""
    if not isinstance(value, list):
        raise GraspError(f"{what} is {reprlib.repr(value)}, not an array")
    if len(value) < minimum:
        raise GraspError(f"{what} has {len(value)} elements, not {minimum}")
    return value


def check_transport(value: Any) -> TransportProto:
    """Return ``value`` as a transport-proto, or raise :class:`GraspError`."""
    if check_uint(value, 255, "transport-proto") not in tuple(TransportProto):
        raise GraspError(f"transport-proto is {value}, neither TCP (6) nor UDP (17)")
    return TransportProto(value)


def address_from_cbor(value: Any, what: str) -> IPv4Address | IPv6Address:
    """Return the IP address in a byte string of 4 or 16 bytes, or raise :class:`GraspError`."""
    if not isinstance(value, bytes) or len(value) not in (4, 16):
        raise GraspError(f"{what} is {reprlib.repr(value)}, not an IP address of 4 or 16 bytes")
    return IPv4Address(value) if len(value) == 4 else IPv6Address(value)


@dataclass(frozen=True, slots=True)
class Objective:
    """A technical objective::

        objective = [objective-name, objective-flags, loop-count, ?objective-value]

    ``value`` is whatever CBOR can say, or ``NO_VALUE`` if there is none. Names compare byte by byte.
    """

    name: str
    flags: ObjectiveFlag
    loop_count: int = GRASP_DEF_LOOPCT
    value: Any = NO_VALUE

    def __post_init__(self) -> None:
        check_text(self.name, "objective-name")
        check_uint(self.flags, _ALL_FLAGS, "objective-flags")
        check_uint(self.loop_count, 255, "loop-count")

    def to_cbor(self) -> list[Any]:
        """Return the objective as a CBOR item."""
        item = [self.name, int(self.flags), self.loop_count]
        return item if self.value is NO_VALUE else [*item, self.value]

    @classmethod
    def from_cbor(cls, item: Any) -> Objective:
        """Return the objective that ``item`` is. Raises :class:`GraspError`."""
        name, flags, loop_count, *rest = check_array(item, 3, "objective")
        flags = ObjectiveFlag(check_uint(flags, _ALL_FLAGS, "objective-flags"))
        return cls(name, flags, loop_count, rest[0] if rest else NO_VALUE)


@dataclass(frozen=True, slots=True)
class IPv6Locator:
    """``[O_IPv6_LOCATOR, ipv6-address, transport-proto, port-number]``."""

    address: IPv6Address
    transport: TransportProto
    port: int

    def __post_init__(self) -> None:
        check_uint(self.port, 65535, "port-number")

    def to_cbor(self) -> list[Any]:
        """Return the locator as a CBOR item."""
        return [OptionType.O_IPv6_LOCATOR.value, self.address.packed, self.transport.value, self.port]


@dataclass(frozen=True, slots=True)
class IPv4Locator:
    """``[O_IPv4_LOCATOR, ipv4-address, transport-proto, port-number]``."""

    address: IPv4Address
    transport: TransportProto
    port: int

    def __post_init__(self) -> None:
        check_uint(self.port, 65535, "port-number")

    def to_cbor(self) -> list[Any]:
        """Return the locator as a CBOR item."""
        return [OptionType.O_IPv4_LOCATOR.value, self.address.packed, self.transport.value, self.port]


@dataclass(frozen=True, slots=True)
class FqdnLocator:
    """``[O_FQDN_LOCATOR, text, transport-proto, port-number]``."""

    name: str
    transport: TransportProto
    port: int

    def __post_init__(self) -> None:
        check_text(self.name, "FQDN")
        check_uint(self.port, 65535, "port-number")

    def to_cbor(self) -> list[Any]:
        """Return the locator as a CBOR item."""
        return [OptionType.O_FQDN_LOCATOR.value, self.name, self.transport.value, self.port]


@dataclass(frozen=True, slots=True)
class UriLocator:
    """``[O_URI_LOCATOR, text, transport-proto / null, port-number / null]``."""

    uri: str
    transport: TransportProto | None = None
    port: int | None = None

    def __post_init__(self) -> None:
        check_text(self.uri, "URI")
        if self.port is not None:
            check_uint(self.port, 65535, "port-number")

    def to_cbor(self) -> list[Any]:
        """Return the locator as a CBOR item."""
        transport = None if self.transport is None else self.transport.value
        return [OptionType.O_URI_LOCATOR.value, self.uri, transport, self.port]


Locator: TypeAlias = IPv6Locator | IPv4Locator | FqdnLocator | UriLocator

_LOCATOR_TYPES = (
    OptionType.O_IPv6_LOCATOR,
    OptionType.O_IPv4_LOCATOR,
    OptionType.O_FQDN_LOCATOR,
    OptionType.O_URI_LOCATOR,
)


def option_type(item: Any) -> int | None:
    """Return the number that a GRASP option begins with, or ``None`` if ``item`` is not an option (2.9.1)."""
    first = item[0] if isinstance(item, list) and item else item
    return first if isinstance(first, int) and not isinstance(first, bool) and first >= 0 else None


def is_locator(item: Any) -> bool:
    """Return whether ``item`` is an option of one of the four kinds of locator, perhaps a malformed one."""
    return isinstance(item, list) and option_type(item) in _LOCATOR_TYPES


def locator_from_cbor(item: Any) -> Locator:
    """Return the locator that ``item`` is. Raises :class:`GraspError`."""
    if not is_locator(item):
        raise GraspError(f"{reprlib.repr(item)} is not a locator option")
    kind, where, transport, port = check_array(item, 4, "locator option")[:4]
    if kind == OptionType.O_URI_LOCATOR:
        return UriLocator(where, None if transport is None else check_transport(transport), port)
    transport = check_transport(transport)
    if kind == OptionType.O_FQDN_LOCATOR:
        return FqdnLocator(where, transport, port)
    address = address_from_cbor(where, "address of the locator")
    if kind == OptionType.O_IPv6_LOCATOR and isinstance(address, IPv6Address):
        return IPv6Locator(address, transport, port)
    if kind == OptionType.O_IPv4_LOCATOR and isinstance(address, IPv4Address):
        return IPv4Locator(address, transport, port)
    raise GraspError(f"{OptionType(kind).name} with an address of {len(where)} bytes")


@dataclass(frozen=True, slots=True)
class Divert:
    """``[O_DIVERT, +locator-option]``: ask there instead (RFC 8990 section 2.9.2)."""

    locators: tuple[Locator, ...]

    def __post_init__(self) -> None:
        if not self.locators:
            raise GraspError("a Divert option needs a locator")

    def to_cbor(self) -> list[Any]:
        """Return the option as a CBOR item."""
        return [OptionType.O_DIVERT.value, *(locator.to_cbor() for locator in self.locators)]

    @classmethod
    def from_cbor(cls, item: Any) -> Divert:
        """Return the option that ``item`` is; only its locators count. Raises :class:`GraspError`."""
        if option_type(item) != OptionType.O_DIVERT:
            raise GraspError(f"{reprlib.repr(item)} is not a Divert option")
        elements = check_array(item, 1, "Divert option")[1:]
        return cls(tuple(locator_from_cbor(element) for element in elements if is_locator(element)))
