"""ACP addresses for devices: one for each, for ever, and never one twice (RFC 8994 section 6.11.7).

A number is taken by one atomic UPDATE of its counter, in the same transaction that writes the row of the
address; the constraints of the table ``addresses`` stand behind that. Numbers are never used again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from ipaddress import IPv6Address

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from minerva.brski.registrar.database import (
    addresses,
    counters,
    get_state,
    insert_ignoring,
    routing_subdomains,
    set_state,
    state,
)
from minerva.brski.registrar.errors import RegistrarError
from minerva.pki.address import AcpAddress, Scheme, ula_global_id
from minerva.pki.allocator import CONSTRUCTORS, LAST_NUMBERS, new_registrar_id
from minerva.pki.node_name import AcpNodeName

REGISTRAR_ID = "registrar_id"
"""The key in ``state`` of the Registrar-ID in use, in hexadecimal."""


_ASSIGNED = sa.select(addresses.c.address, addresses.c.routing_subdomain).where(
    addresses.c.device_id == sa.bindparam("device")
)
_OWNER = sa.select(routing_subdomains.c.name).where(routing_subdomains.c.global_id == sa.bindparam("prefix"))
_TAKE_NUMBER = (
    sa.update(counters)
    .where(
        counters.c.registrar_id == sa.bindparam("registrar"),
        counters.c.scheme == sa.bindparam("of_scheme"),
        counters.c.next_number <= sa.bindparam("last"),
    )
    .values(next_number=counters.c.next_number + 1)
    .returning(counters.c.next_number - 1)
)


class AddressError(RegistrarError):
    """No address can be given: why, and what to do."""


def prepare(connection: Connection, registrar_id: int) -> None:
    """Make ``registrar_id`` the one that addresses are taken from, with all its numbers free."""
    set_state(connection, REGISTRAR_ID, f"{registrar_id:012x}")
    _add_counters(connection, registrar_id)


def new_id(connection: Connection, random_bytes: Callable[[int], bytes] = os.urandom) -> int:
    """Take another Registrar-ID, for after an old backup was put back (RFC 8994 section 6.11.7.3).

    What the database has forgotten about is of the old one.
    """
    registrar_id = new_registrar_id(random_bytes)
    prepare(connection, registrar_id)
    return registrar_id


def assigned(connection: Connection, device_id: int, domain: str) -> AcpNodeName | None:
    """Return the name with the address that a device has, or ``None`` if it has none yet."""
    row = connection.execute(_ASSIGNED, {"device": device_id}).one_or_none()
    if row is None:
        return None
    rsub = str(row.routing_subdomain).removesuffix(domain.lower()).removesuffix(".")
    return AcpNodeName(domain, IPv6Address(row.address), rsub or None)


def assign(
    connection: Connection,
    device_id: int,
    domain: str,
    scheme: Scheme = Scheme.ZONE,
    rsub: str | None = None,
    *,
    when: datetime,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> AcpNodeName:
    """Return the name with the address of a device: the one it has, else one never given out before.

    The caller has the row of the device locked, so that two requests of one device come one after the other.
    Raises :class:`AddressError` for a scheme that is not for nodes or a routing subdomain whose prefix is in
    use by another.
    """
    if (name := assigned(connection, device_id, domain)) is not None:
        return name
    if scheme not in CONSTRUCTORS:
        raise AddressError(
            f"addresses of the {scheme.value} scheme are not for nodes: use zone, vlong8 or vlong16"
        )
    bare = AcpNodeName(domain, IPv6Address(0), rsub or None)
    global_id = _claim_prefix(connection, bare.routing_subdomain)
    registrar_id, number = _next_number(connection, scheme, random_bytes)
    address = CONSTRUCTORS[scheme](global_id, registrar_id, number)
    _write(connection, device_id, address, bare.routing_subdomain, when)
    return AcpNodeName(domain, address.address, rsub or None)


def acp_address(name: AcpNodeName) -> AcpAddress:
    """Return the address in the name of a device. Raises :class:`AddressError` if there is none."""
    if name.address is None:
        raise AddressError(f"{name} has no address")
    return AcpAddress(name.address)


def _write(
    connection: Connection, device_id: int, address: AcpAddress, routing_subdomain: str, when: datetime
) -> None:
    connection.execute(
        sa.insert(addresses),
        {
            "address": str(address),
            "device_id": device_id,
            "registrar_id": address.registrar_id,
            "scheme": address.scheme.value,
            "number": address.node_number,
            "routing_subdomain": routing_subdomain,
            "created": when,
        },
    )


def _claim_prefix(connection: Connection, routing_subdomain: str) -> bytes:
    """Return the ULA global ID of a routing subdomain that no other has (RFC 8994 section 6.11.2)."""
    global_id = ula_global_id(routing_subdomain)
    owner = connection.scalar(_OWNER, {"prefix": global_id.hex()})
    if owner is None:
        insert_ignoring(connection, routing_subdomains, global_id=global_id.hex(), name=routing_subdomain)
        owner = connection.scalar(_OWNER, {"prefix": global_id.hex()})
    if owner != routing_subdomain:
        raise AddressError(
            f"the routing subdomain {routing_subdomain} has the same ULA prefix as {owner}: choose another"
        )
    return global_id


def _next_number(
    connection: Connection, scheme: Scheme, random_bytes: Callable[[int], bytes]
) -> tuple[int, int]:
    """Return a Registrar-ID and a number that nobody else gets."""
    while True:
        current = get_state(connection, REGISTRAR_ID)
        if current is None:
            raise AddressError(
                "the database has no Registrar-ID; make a registrar with `minerva registrar init`"
            )
        registrar_id = int(current, 16)
        number = connection.scalar(
            _TAKE_NUMBER,
            {"registrar": registrar_id, "of_scheme": scheme.value, "last": LAST_NUMBERS[scheme]},
        )
        if number is not None:
            return registrar_id, number
        # All numbers are used up, of which the Zone scheme has 32768: go on with another Registrar-ID. If
        # another process was faster, its row is not the current one any more, and ours is not written.
        fresh = new_registrar_id(random_bytes)
        changed = connection.execute(
            sa.update(state)
            .where(state.c.key == REGISTRAR_ID, state.c.value == current)
            .values(value=f"{fresh:012x}")
        )
        if changed.rowcount:
            _add_counters(connection, fresh)


def _add_counters(connection: Connection, registrar_id: int) -> None:
    connection.execute(
        sa.insert(counters),
        [{"registrar_id": registrar_id, "scheme": scheme.value, "next_number": 0} for scheme in CONSTRUCTORS],
    )
