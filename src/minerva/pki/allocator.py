"""A registrar's memory of the addresses it gave out (RFC 8994 sections 6.11.7.2 and 6.11.7.3)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minerva.pki.address import AcpAddress, Scheme, ula_global_id
from minerva.pki.errors import AuthorityError

_REGISTRAR_ID_BITS = 46
_VERSION = 1

CONSTRUCTORS: Mapping[Scheme, Callable[[bytes, int, int], AcpAddress]] = {
    Scheme.ZONE: AcpAddress.zone,
    Scheme.VLONG8: AcpAddress.vlong8,
    Scheme.VLONG16: AcpAddress.vlong16,
}
"""The schemes for nodes, and what makes an address from global ID, Registrar-ID and Node-Number."""

LAST_NUMBERS = {Scheme.ZONE: (1 << 15) - 1, Scheme.VLONG8: (1 << 23) - 1, Scheme.VLONG16: (1 << 15) - 1}
"""The highest Node-Number of each scheme for nodes."""


def new_registrar_id(random_bytes: Callable[[int], bytes]) -> int:
    """Return a random Registrar-ID that cannot be taken for one made from a MAC address.

    It has the form of a locally administered unicast MAC address without its two upper bits.
    """
    octets = bytearray(random_bytes(6))
    octets[0] = octets[0] & 0x3C | 0x02
    return int.from_bytes(octets)


@dataclass(frozen=True, slots=True)
class AddressAllocator:
    """The Registrar-ID, the next Node-Number of each scheme, and the routing-subdomains in use.

    A value that does not change: :meth:`allocate` returns the next one, which has to be on the disk
    before the address leaves. Numbers are never used again. A registrar that lost its allocator starts a
    :meth:`fresh` one, whose new Registrar-ID keeps its addresses apart from those it has forgotten.
    """

    registrar_id: int
    next_numbers: Mapping[Scheme, int] = field(default_factory=lambda: dict.fromkeys(CONSTRUCTORS, 0))
    subdomains: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def fresh(cls, random_bytes: Callable[[int], bytes]) -> AddressAllocator:
        """Return an allocator that has given out nothing, with a random Registrar-ID."""
        return cls(new_registrar_id(random_bytes))

    def allocate(self, scheme: Scheme, routing_subdomain: str) -> tuple[AcpAddress, AddressAllocator]:
        """Return an address never given out before, and the allocator as it is after that.

        Raises :class:`AuthorityError` if the scheme is not one for nodes, if it has no number left, or if
        the routing-subdomain has the same hash as another (RFC 8994 section 6.11.2).
        """
        if scheme not in CONSTRUCTORS:
            raise AuthorityError(
                f"addresses of the {scheme.value} scheme are not for nodes: use zone, vlong8 or vlong16"
            )
        number = self.next_numbers[scheme]
        if number > LAST_NUMBERS[scheme]:
            raise AuthorityError(
                f"all {number} node numbers of the {scheme.value} scheme are used up: use another"
            )
        global_id = ula_global_id(routing_subdomain)
        owner = self.subdomains.get(global_id.hex(), routing_subdomain)
        if owner != routing_subdomain:
            raise AuthorityError(f"{routing_subdomain} has the same ULA prefix as {owner}: choose another")
        after = replace(
            self,
            next_numbers={**self.next_numbers, scheme: number + 1},
            subdomains={**self.subdomains, global_id.hex(): routing_subdomain},
        )
        return CONSTRUCTORS[scheme](global_id, self.registrar_id, number), after

    def gave(self, address: AcpAddress, routing_subdomain: str) -> bool:
        """Return whether ``address`` is one that this allocator gave out for ``routing_subdomain``."""
        return (
            address.scheme in CONSTRUCTORS
            and address.v == 0
            and self.subdomains.get(address.global_id.hex()) == routing_subdomain
            and address.registrar_id == self.registrar_id
            and address.node_number < self.next_numbers[address.scheme]
        )

    def encode(self) -> bytes:
        """Return the allocator as JSON."""
        content = {
            "version": _VERSION,
            "registrar_id": f"{self.registrar_id:012x}",
            "next_node_number": {scheme.value: number for scheme, number in self.next_numbers.items()},
            "routing_subdomains": dict(self.subdomains),
        }
        return json.dumps(content, indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> AddressAllocator:
        """Return the allocator that :meth:`encode` wrote. Raises :class:`AuthorityError`."""
        try:
            content: Any = json.loads(data)
            version, registrar_id = content["version"], int(content["registrar_id"], 16)
            numbers = {scheme: int(content["next_node_number"][scheme.value]) for scheme in CONSTRUCTORS}
            subdomains = {str(prefix): str(name) for prefix, name in content["routing_subdomains"].items()}
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise AuthorityError(f"not the state of an address allocator: {error!r}") from error
        if version != _VERSION or registrar_id >> _REGISTRAR_ID_BITS or min(numbers.values()) < 0:
            raise AuthorityError("not the state of an address allocator of this version")
        return cls(registrar_id, numbers, subdomains)
