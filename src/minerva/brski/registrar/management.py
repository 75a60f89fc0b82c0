"""What operators do with devices, and what they get to see. All of it is in the database only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from minerva.brski.registrar import manufacturers as makers
from minerva.brski.registrar.database import (
    DeviceState,
    addresses,
    certificates,
    crls,
    devices,
    events,
    manufacturers,
    record_event,
)
from minerva.brski.registrar.devices import (
    Device,
    change_state,
    find_by_serial_number,
    get_device,
    revoke_device,
    see_device,
    waive_audit,
)
from minerva.brski.registrar.domain import load_domain
from minerva.brski.registrar.errors import RegistrarError
from minerva.core.text import printable, utc

RECENT = timedelta(days=1)
"""How far back the refusals go that a status tells of."""


class ManagementError(RegistrarError):
    """An operator asked for what cannot be: one sentence."""


def allow(connection: Connection, serial_number: str, maker: str | None, *, when: datetime) -> Device:
    """Put a device that has yet to come on the list of those that may join."""
    known = find_by_serial_number(connection, serial_number)
    if maker is None and len(known) == 1:
        return approve(connection, serial_number, None, when=when)
    manufacturer_id = _manufacturer(connection, maker).id
    if any(device.manufacturer_id == manufacturer_id for device in known):
        return approve(connection, serial_number, maker, when=when)
    _check_serial_number(serial_number)
    device = see_device(connection, manufacturer_id, serial_number, when=when, state=DeviceState.APPROVED)
    record_event(connection, "allowed", when=when, device_id=device.id)
    return device


def approve(connection: Connection, serial_number: str, maker: str | None, *, when: datetime) -> Device:
    """Let a device in that waits, was shut out, or has a history that the registrar does not like."""
    device = pick(connection, serial_number, maker)
    waived = device.audit_ok is False
    if waived:
        waive_audit(connection, device.id)
    if device.state not in (DeviceState.VOUCHERED, DeviceState.ENROLLED):
        change_state(connection, device, DeviceState.APPROVED)
    elif waived:
        change_state(connection, device, device.state)
    record_event(
        connection,
        "approved",
        when=when,
        device_id=device.id,
        detail={"before": device.state.value, **({"history": device.reason} if waived else {})},
    )
    return _again(connection, device)


def deny(
    connection: Connection,
    serial_number: str,
    maker: str | None,
    *,
    reason: str | None,
    when: datetime,
    own: bool = False,
) -> Device:
    """Shut a device out, whether it has come or not. Certificates that it has stay good: see revoke.

    The first node of the domain only if ``own``: it has no IDevID with which it could come back.
    """
    known = find_by_serial_number(connection, serial_number)
    if not known:
        _check_serial_number(serial_number)
        see_device(connection, _manufacturer(connection, maker).id, serial_number, when=when)
    device = pick(connection, serial_number, maker)
    _check_own(device, own)
    change_state(connection, device, DeviceState.DENIED, reason=reason)
    record_event(connection, "denied", when=when, device_id=device.id, detail={"reason": reason})
    return _again(connection, device)


def revoke(
    connection: Connection,
    serial_number: str,
    maker: str | None,
    *,
    reason: str | None,
    when: datetime,
    own: bool = False,
) -> tuple[Device, int]:
    """Revoke a device and all its certificates; return it, and how many these were. ``own``: see deny."""
    device = pick(connection, serial_number, maker)
    _check_own(device, own)
    count = revoke_device(connection, device, reason=reason, when=when)
    return _again(connection, device), count


def pick(connection: Connection, serial_number: str, maker: str | None) -> Device:
    """Return the device that an operator means, locked. Raises :class:`ManagementError`."""
    shown = printable(serial_number)
    found = find_by_serial_number(connection, serial_number)
    if maker is not None:
        manufacturer_id = makers.find(connection, maker).id
        found = tuple(device for device in found if device.manufacturer_id == manufacturer_id)
    if not found:
        raise ManagementError(f"no device {shown} is known here; see `minerva registrar devices`")
    if len(found) > 1:
        raise ManagementError(f"{len(found)} manufacturers have a device {shown}: say --manufacturer NAME")
    return _again(connection, found[0], lock=True)


def describe_devices(connection: Connection, in_state: DeviceState | None = None) -> Iterator[dict[str, Any]]:
    """Yield what is known of each device, oldest first, as JSON has it."""
    current = (
        sa.select(
            certificates.c.device_id,
            sa.func.max(certificates.c.not_after).label("expires"),
        )
        .where(certificates.c.superseded_by.is_(None), certificates.c.revoked_at.is_(None))
        .group_by(certificates.c.device_id)
        .subquery()
    )
    query = (
        sa.select(
            devices.c.serial_number,
            manufacturers.c.name.label("manufacturer"),
            devices.c.state,
            devices.c.reason,
            devices.c.audit_ok,
            devices.c.audit_waived,
            devices.c.first_seen,
            devices.c.last_seen,
            devices.c.peer,
            addresses.c.address,
            current.c.expires,
        )
        .select_from(devices)
        .outerjoin(manufacturers, manufacturers.c.id == devices.c.manufacturer_id)
        .outerjoin(addresses, addresses.c.device_id == devices.c.id)
        .outerjoin(current, current.c.device_id == devices.c.id)
        .order_by(devices.c.id)
    )
    if in_state is not None:
        query = query.where(devices.c.state == in_state.value)
    for row in connection.execute(query).mappings():
        found = dict(row)
        for name in ("first_seen", "last_seen", "expires"):
            found[name] = None if row[name] is None else utc(row[name], "milliseconds")
        yield found


def describe_events(
    connection: Connection,
    serial_number: str | None = None,
    *,
    count: int,
    after: int = 0,
    kind: str | None = None,
    since: datetime | None = None,
) -> list[dict[str, Any]]:
    """Return the last ``count`` events after event number ``after``, oldest first, as JSON has them."""
    query = (
        sa.select(
            events.c.id,
            events.c.time,
            events.c.kind,
            devices.c.serial_number,
            events.c.peer,
            events.c.detail,
        )
        .select_from(events)
        .outerjoin(devices, devices.c.id == events.c.device_id)
        .where(events.c.id > after)
        .order_by(events.c.id.desc())
        .limit(count)
    )
    if serial_number is not None:
        numbers = [device.id for device in find_by_serial_number(connection, serial_number)]
        if not numbers:
            raise ManagementError(f"no device {printable(serial_number)} is known here")
        query = query.where(events.c.device_id.in_(numbers))
    if kind is not None:
        query = query.where(events.c.kind == kind)
    if since is not None:
        query = query.where(events.c.time >= since)
    rows = connection.execute(query).mappings().all()
    return [
        {**row, "time": utc(row["time"], "milliseconds"), "detail": json.loads(row["detail"] or "{}")}
        for row in reversed(rows)
    ]


def describe_status(connection: Connection, now: datetime) -> dict[str, Any]:
    """Return what there is to say of the registrar as a whole, as JSON has it."""
    domain = load_domain(connection)
    counted = connection.execute(sa.select(devices.c.state, sa.func.count()).group_by(devices.c.state))
    states = {str(state): int(count) for state, count in counted}
    crl = connection.execute(
        sa.select(crls.c.number, crls.c.next_update).where(crls.c.issuer == domain.issuing)
    ).one_or_none()
    refused = connection.scalar(
        sa.select(sa.func.count()).where(events.c.kind == "refused", events.c.time >= now - RECENT)
    )
    return {
        "domain": domain.name,
        "authority": domain.authority.value,
        "devices": {state.value: states.get(state.value, 0) for state in DeviceState},
        "addresses": connection.scalar(sa.select(sa.func.count()).select_from(addresses)),
        "manufacturers": connection.scalar(sa.select(sa.func.count()).select_from(manufacturers)),
        "crl": None
        if crl is None or not crl.number
        else {"number": crl.number, "next_update": utc(crl.next_update)},
        "refused_last_day": refused,
    }


def _manufacturer(connection: Connection, name: str | None) -> makers.Manufacturer:
    """Return the manufacturer of a name, or without one the only one there is."""
    if name is not None:
        return makers.find(connection, name)
    known = makers.load_all(connection)
    if len(known) == 1:
        return known[0]
    if not known:
        raise ManagementError(
            "no manufacturer is known here yet; see `minerva registrar manufacturer add --help`"
        )
    raise ManagementError(f"there are {len(known)} manufacturers: say --manufacturer NAME")


def _check_own(device: Device, own: bool) -> None:
    if device.manufacturer_id is None and not own:
        raise ManagementError(
            f"{device.serial_number} is the first node of the domain, which cannot be let in again: "
            "say --own if it is to be shut out"
        )


def _check_serial_number(text: str) -> None:
    if not 0 < len(text) <= makers.MAX_SERIAL or printable(text) != text:
        raise ManagementError(f"a serial number has 1 to {makers.MAX_SERIAL} characters that can be seen")


def _again(connection: Connection, device: Device, *, lock: bool = False) -> Device:
    found = get_device(connection, device.id, lock=lock)
    if found is None:
        raise ManagementError(f"the device {printable(device.serial_number)} was removed in between")
    return found
