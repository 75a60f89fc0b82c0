"""The services that everybody in the ACP must find: renewal of certificates, and registrars for enrolment.

SRV.est (RFC 8994 section 6.2.5.1) says where certificates are renewed, AN_join_registrar (RFC 8995 section
4.3) where new devices are enrolled. Both are flooded by who offers them, every 60 s, and believed for three
times as long or a little more, so that two floods in a row may be lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

from minerva.grasp.api import AsaLocator, TaggedObjective
from minerva.grasp.constants import ObjectiveFlag, TransportProto
from minerva.grasp.options import NO_VALUE, IPv6Locator, Objective

SRV_EST: Final = "SRV.est"
AN_JOIN_REGISTRAR: Final = "AN_join_registrar"
EST_TLS: Final = "EST-TLS"
"""The value of AN_join_registrar for enrolment with EST over TLS."""

PERIOD: Final = 60.0
"""How often a service is announced, in seconds (RFC 8994 section 6.2.5.1: not more often)."""

SRV_EST_TTL: Final = 210_000
"""How long SRV.est is believed, in milliseconds: 3.5 periods (RFC 8994 section 6.2.5.1)."""

JOIN_REGISTRAR_TTL: Final = 180_000
"""How long AN_join_registrar is believed, in milliseconds: three periods (RFC 8995 section 4.3)."""

_LOOP_COUNT = 255


@dataclass(frozen=True, slots=True)
class Service:
    """A service at an ACP address; ``variation`` is the objective's value, if it is a text."""

    objective: str
    address: IPv6Address
    port: int
    transport: TransportProto = TransportProto.IPPROTO_TCP
    variation: str | None = None


def est_server(address: IPv6Address, port: int) -> TaggedObjective:
    """Return what an EST server floods: without a value, as in RFC 8994 figure 4."""
    return _tagged(Objective(SRV_EST, ObjectiveFlag.F_SYNCH, _LOOP_COUNT, NO_VALUE), address, port)


def join_registrar(address: IPv6Address, port: int, variation: str = EST_TLS) -> TaggedObjective:
    """Return what a registrar floods (RFC 8995 figure 11)."""
    return _tagged(Objective(AN_JOIN_REGISTRAR, ObjectiveFlag.F_SYNCH, _LOOP_COUNT, variation), address, port)


def _tagged(objective: Objective, address: IPv6Address, port: int) -> TaggedObjective:
    locator = IPv6Locator(address, TransportProto.IPPROTO_TCP, port)
    return TaggedObjective(objective, AsaLocator(locator))


def services(floods: Iterable[TaggedObjective]) -> list[Service]:
    """Return the services in ``floods``; those without an address that can be used are left out.

    Whatever else their values and unknown parts say is ignored (RFC 8994 section 6.2.5.1).
    """
    found = []
    for tagged in floods:
        locator = None if tagged.locator is None else tagged.locator.locator
        if not isinstance(locator, IPv6Locator) or locator.address.is_link_local or not locator.port:
            continue
        value = tagged.objective.value
        variation = value if isinstance(value, str) else None
        found.append(
            Service(tagged.objective.name, locator.address, locator.port, locator.transport, variation)
        )
    return found
