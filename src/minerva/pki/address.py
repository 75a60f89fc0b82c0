"""ACP addresses: the base scheme and its sub-schemes (RFC 8994 sections 6.11.2 to 6.11.5).

Bits are counted from the left, as in the RFC::

    base      0-7 0xfd | 8-47 hash of the routing-subdomain | 48-49 Type | 50-127 sub-scheme
    Zone      Type 0, 50 Z=0 | 51-63 Zone-ID   | 64-111 Registrar-ID | 112-126 Node-Number | 127 V
    Manual    Type 0, 50 Z=1 | 51-63 Subnet-ID | 64-127 interface identifier
    Vlong-8   Type 1, 50-95 Registrar-ID | 96 F=0 | 97-119 Node-Number | 120-127 V
    Vlong-16  Type 1, 50-95 Registrar-ID | 96 F=1 | 97-111 Node-Number | 112-127 V
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address, IPv6Network
from typing import NamedTuple

from minerva.pki.errors import AddressError

GLOBAL_ID_LENGTH = 5
"""The length of a ULA global ID, in bytes."""


class Scheme(Enum):
    """The addressing sub-schemes, by the names an operator types."""

    ZONE = "zone"
    MANUAL = "manual"
    VLONG8 = "vlong8"
    VLONG16 = "vlong16"


class _Layout(NamedTuple):
    """Widths in bits; what a scheme does not have is zero bits wide."""

    registrar_id: int
    node_number: int
    v: int
    node_id: int
    prefix_length: int


_LAYOUTS = {
    Scheme.ZONE: _Layout(registrar_id=48, node_number=15, v=1, node_id=64, prefix_length=127),
    Scheme.MANUAL: _Layout(registrar_id=0, node_number=0, v=0, node_id=64, prefix_length=64),
    Scheme.VLONG8: _Layout(registrar_id=46, node_number=23, v=8, node_id=78, prefix_length=120),
    Scheme.VLONG16: _Layout(registrar_id=46, node_number=15, v=16, node_id=78, prefix_length=112),
}
_ZONE_BITS = 13
_Z_BIT = 1 << 77
_F_BIT = 1 << 31
_TYPE_SHIFT = 78


def ula_global_id(routing_subdomain: str) -> bytes:
    """Return the ULA global ID, 5 bytes, of a routing-subdomain, whatever its case (section 6.11.2).

    To be used when a certificate is made. Nodes take their prefix from the certificate and must not
    assume that it is this hash.
    """
    return hashlib.sha256(routing_subdomain.lower().encode("ascii")).digest()[:GLOBAL_ID_LENGTH]


def registrar_id_from_mac(mac: bytes) -> int:
    """Return the Registrar-ID that a MAC address of 6 bytes gives: its low 46 bits (section 6.11.7.2)."""
    if len(mac) != 6:
        raise AddressError(f"a MAC address has 6 bytes, not {len(mac)}")
    return int.from_bytes(mac) & ((1 << 46) - 1)


@dataclass(frozen=True, slots=True, order=True)
class AcpAddress:
    """An IPv6 address as the ACP reads it. Raises :class:`AddressError` if it is of no known scheme."""

    address: IPv6Address

    def __post_init__(self) -> None:
        if int(self.address) >> 120 != 0xFD:
            raise AddressError(f"{self.address} is not an ACP address: it does not begin with fd")
        if self._type > 1:
            raise AddressError(f"{self.address} has the reserved ACP address type {self._type}")

    @classmethod
    def zone(
        cls, global_id: bytes, registrar_id: int, node_number: int, zone_id: int = 0, v: int = 0
    ) -> AcpAddress:
        """Return an address of the Zone sub-scheme (section 6.11.3)."""
        zone = _field("Zone-ID", zone_id, _ZONE_BITS) << 64
        return cls._node(Scheme.ZONE, global_id, zone, registrar_id, node_number, v)

    @classmethod
    def manual(cls, global_id: bytes, subnet_id: int, iid: int) -> AcpAddress:
        """Return an address of the Manual sub-scheme (section 6.11.4)."""
        subnet = _field("Subnet-ID", subnet_id, _ZONE_BITS) << 64
        return cls._base(global_id, _Z_BIT | subnet | _field("interface identifier", iid, 64))

    @classmethod
    def vlong8(cls, global_id: bytes, registrar_id: int, node_number: int, v: int = 0) -> AcpAddress:
        """Return an address of the Vlong sub-scheme with 8 bits of V (section 6.11.5)."""
        return cls._node(Scheme.VLONG8, global_id, 1 << _TYPE_SHIFT, registrar_id, node_number, v)

    @classmethod
    def vlong16(cls, global_id: bytes, registrar_id: int, node_number: int, v: int = 0) -> AcpAddress:
        """Return an address of the Vlong sub-scheme with 16 bits of V (section 6.11.5)."""
        return cls._node(Scheme.VLONG16, global_id, 1 << _TYPE_SHIFT | _F_BIT, registrar_id, node_number, v)

    @classmethod
    def _node(
        cls, scheme: Scheme, global_id: bytes, rest: int, registrar_id: int, node_number: int, v: int
    ) -> AcpAddress:
        layout = _LAYOUTS[scheme]
        rest |= _field("Registrar-ID", registrar_id, layout.registrar_id) << _registrar_shift(scheme)
        rest |= _field("Node-Number", node_number, layout.node_number) << layout.v
        return cls._base(global_id, rest | _field("V", v, layout.v))

    @classmethod
    def _base(cls, global_id: bytes, rest: int) -> AcpAddress:
        if len(global_id) != GLOBAL_ID_LENGTH:
            raise AddressError(f"a ULA global ID has {GLOBAL_ID_LENGTH} bytes, not {len(global_id)}")
        return cls(IPv6Address(b"\xfd" + global_id + rest.to_bytes(10)))

    @property
    def _type(self) -> int:
        return int(self.address) >> _TYPE_SHIFT & 3

    @property
    def scheme(self) -> Scheme:
        """The sub-scheme."""
        value = int(self.address)
        if self._type == 0:
            return Scheme.MANUAL if value & _Z_BIT else Scheme.ZONE
        return Scheme.VLONG16 if value & _F_BIT else Scheme.VLONG8

    @property
    def global_id(self) -> bytes:
        """The ULA global ID, 5 bytes."""
        return self.address.packed[1:6]

    @property
    def ula_prefix(self) -> IPv6Network:
        """The /48 of the routing subdomain."""
        return IPv6Network((self.address, 48), strict=False)

    @property
    def zone_id(self) -> int:
        """The Zone-ID. Raises :class:`AddressError` if the scheme has none."""
        return self._of(Scheme.ZONE, "Zone-ID")

    @property
    def subnet_id(self) -> int:
        """The Subnet-ID. Raises :class:`AddressError` if the scheme has none."""
        return self._of(Scheme.MANUAL, "Subnet-ID")

    def _of(self, scheme: Scheme, what: str) -> int:
        if self.scheme is not scheme:
            raise AddressError(f"{self} is of the {self.scheme.value} scheme, which has no {what}")
        return int(self.address) >> 64 & ((1 << _ZONE_BITS) - 1)

    @property
    def registrar_id(self) -> int:
        """The Registrar-ID: 48 bits in a Zone address, 46 in a Vlong one.

        Raises :class:`AddressError` if the scheme has none.
        """
        return self._bits(_registrar_shift(self.scheme), self._layout.registrar_id, "Registrar-ID")

    @property
    def node_number(self) -> int:
        """The Node-Number. Raises :class:`AddressError` if the scheme has none."""
        return self._bits(self._layout.v, self._layout.node_number, "Node-Number")

    def _bits(self, shift: int, width: int, what: str) -> int:
        if not width:
            raise AddressError(f"{self} is of the {self.scheme.value} scheme, which has no {what}")
        return int(self.address) >> shift & ((1 << width) - 1)

    @property
    def v(self) -> int:
        """The virtualization bits: 0 is the ACP node itself. The Manual scheme has none: always 0."""
        return int(self.address) & ((1 << self._layout.v) - 1)

    @property
    def v_bits(self) -> int:
        """How many virtualization bits there are."""
        return self._layout.v

    @property
    def node_id(self) -> int:
        """The Node-ID with its V bits: the low 64 bits of a Zone address, the low 78 of a Vlong one.

        The Manual scheme has no Node-ID; its interface identifier, the low 64 bits, stands in for it.
        """
        return int(self.address) & ((1 << self.node_id_bits) - 1)

    @property
    def node_id_bits(self) -> int:
        """How many bits the Node-ID has: 64 or 78."""
        return self._layout.node_id

    @property
    def prefix(self) -> IPv6Network:
        """What the node announces into RPL: a /127, /120 or /112; the /64 of a Manual address."""
        return IPv6Network((self.address, self._layout.prefix_length), strict=False)

    def with_v(self, v: int) -> AcpAddress:
        """Return the address of the same node with other V bits."""
        return AcpAddress(IPv6Address(int(self.address) - self.v + _field("V", v, self._layout.v)))

    @property
    def _layout(self) -> _Layout:
        return _LAYOUTS[self.scheme]

    def __str__(self) -> str:
        return str(self.address)


def decider_key(address: AcpAddress) -> tuple[int, int]:
    """Return what orders two nodes for the choice of the Decider: the higher decides (RFC 8994 section 6.6).

    The RFC compares Node-IDs and leaves open how those of different schemes or prefixes compare. Here: as
    unsigned integers, a tie decided by the whole address.
    """
    return address.node_id, int(address.address)


def _registrar_shift(scheme: Scheme) -> int:
    return 16 if scheme is Scheme.ZONE else 32


def _field(what: str, value: int, width: int) -> int:
    if not 0 <= value < 1 << width:
        raise AddressError(f"{what} {value} does not fit into {width} bits")
    return value
