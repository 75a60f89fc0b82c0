"""The devices that the registrar knows, and how far each has come."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.engine import Connection

from minerva.brski.registrar.database import (
    DeviceState,
    bump,
    certificates,
    devices,
    insert_ignoring,
    record_event,
)
from minerva.brski.registrar.errors import RegistrarError

REVOCATIONS = "revocations"
"""The key in ``state`` of the number of revocations: a CRL made at another number is out of date."""

_CHANGES: Mapping[DeviceState, frozenset[DeviceState]] = {
    DeviceState.WAITING: frozenset({DeviceState.APPROVED, DeviceState.DENIED, DeviceState.VOUCHERED}),
    DeviceState.APPROVED: frozenset(
        {DeviceState.WAITING, DeviceState.DENIED, DeviceState.VOUCHERED, DeviceState.ENROLLED}
    ),
    DeviceState.DENIED: frozenset({DeviceState.APPROVED, DeviceState.REVOKED}),
    # A device that was reset asks for a voucher again.
    DeviceState.VOUCHERED: frozenset(
        {DeviceState.APPROVED, DeviceState.DENIED, DeviceState.ENROLLED, DeviceState.REVOKED}
    ),
    DeviceState.ENROLLED: frozenset({DeviceState.DENIED, DeviceState.VOUCHERED, DeviceState.REVOKED}),
    # Only the operator brings a device back.
    DeviceState.REVOKED: frozenset({DeviceState.APPROVED, DeviceState.DENIED}),
}


@dataclass(frozen=True, slots=True)
class Device:
    """A row of the table ``devices``."""

    id: int
    manufacturer_id: int | None
    serial_number: str
    state: DeviceState
    reason: str | None
    idevid: bytes | None
    audit_ok: bool | None
    audit_waived: bool
    scheme: str | None
    rsub: str | None
    first_seen: datetime | None
    last_seen: datetime | None
    peer: str | None


_COLUMNS = (
    devices.c.id,
    devices.c.manufacturer_id,
    devices.c.serial_number,
    devices.c.state,
    devices.c.reason,
    devices.c.idevid,
    devices.c.audit_ok,
    devices.c.audit_waived,
    devices.c.scheme,
    devices.c.rsub,
    devices.c.first_seen,
    devices.c.last_seen,
    devices.c.peer,
)


_SELECT = sa.select(*_COLUMNS)
_BY_ID = _SELECT.where(devices.c.id == sa.bindparam("wanted"))
_OWN = _SELECT.where(
    devices.c.manufacturer_id.is_(None), devices.c.serial_number == sa.bindparam("wanted_serial")
)
_MADE = _SELECT.where(
    devices.c.manufacturer_id == sa.bindparam("manufacturer"),
    devices.c.serial_number == sa.bindparam("wanted_serial"),
)
# More than one only if the device was counted among those of another manufacturer before.
_BY_IDEVID = (
    _SELECT.where(devices.c.idevid_sha256 == sa.bindparam("fingerprint"))
    .order_by(devices.c.last_seen.desc(), devices.c.id.desc())
    .limit(1)
)
_LOCKING = {statement: statement.with_for_update() for statement in (_BY_ID, _OWN, _MADE)}
_UPDATE = sa.update(devices).where(devices.c.id == sa.bindparam("wanted"))


def get_device(connection: Connection, device_id: int, *, lock: bool = False) -> Device | None:
    """Return a device by its number; with ``lock`` nobody else changes it until the transaction ends."""
    return _one(connection, _LOCKING[_BY_ID] if lock else _BY_ID, wanted=device_id)


def find_device(
    connection: Connection, manufacturer_id: int | None, serial_number: str, *, lock: bool = False
) -> Device | None:
    """Return the device of a manufacturer with a serial number."""
    values = {"wanted_serial": serial_number}
    if manufacturer_id is None:
        return _one(connection, _LOCKING[_OWN] if lock else _OWN, **values)
    return _one(connection, _LOCKING[_MADE] if lock else _MADE, manufacturer=manufacturer_id, **values)


def find_by_idevid(connection: Connection, idevid: x509.Certificate) -> Device | None:
    """Return the device that showed exactly this IDevID before, when it was checked."""
    return _one(connection, _BY_IDEVID, fingerprint=_fingerprint(idevid.public_bytes(Encoding.DER)))


def find_by_serial_number(connection: Connection, serial_number: str) -> tuple[Device, ...]:
    """Return the devices with a serial number: more than one if several manufacturers use it."""
    rows = connection.execute(_SELECT.where(devices.c.serial_number == serial_number).order_by(devices.c.id))
    return tuple(_device(row) for row in rows)


def each_device(connection: Connection, in_state: DeviceState | None = None) -> Iterator[Device]:
    """Yield all devices, or those in a state, oldest first."""
    query = _SELECT.order_by(devices.c.id)
    if in_state is not None:
        query = query.where(devices.c.state == in_state.value)
    for row in connection.execute(query):
        yield _device(row)


def see_device(
    connection: Connection,
    manufacturer_id: int | None,
    serial_number: str,
    *,
    when: datetime,
    state: DeviceState = DeviceState.WAITING,
    idevid: x509.Certificate | None = None,
    peer: str | None = None,
) -> Device:
    """Return a device, locked: the one known, else a new one in ``state``. What is given is noted.

    ``idevid`` must have been checked: it is what the device may show at EST from then on.
    """
    insert_ignoring(
        connection,
        devices,
        manufacturer_id=manufacturer_id,
        serial_number=serial_number,
        state=state.value,
        first_seen=when,
    )
    device = find_device(connection, manufacturer_id, serial_number, lock=True)
    if device is None:
        raise RegistrarError(f"the device {serial_number} was removed in between; try again")
    seen: dict[str, Any] = {"last_seen": when}
    if peer is not None:
        seen["peer"] = peer
    if idevid is not None:
        der = idevid.public_bytes(Encoding.DER)
        seen |= {"idevid": der, "idevid_sha256": _fingerprint(der)}
    _update(connection, device.id, **seen)
    return device


def change_state(
    connection: Connection,
    device: Device,
    state: DeviceState,
    *,
    reason: str | None = None,
    seen: datetime | None = None,
    peer: str | None = None,
    audit_ok: bool | None = None,
) -> None:
    """Bring a device, which the caller has locked, into another state; note when and whence it came.

    ``audit_ok`` is noted as by :func:`set_audit`, if it is given.
    Raises :class:`RegistrarError` if there is no way from the one it is in.
    """
    if state is not device.state and state not in _CHANGES[device.state]:
        raise RegistrarError(f"the device {device.serial_number} is {device.state}: it cannot become {state}")
    values: dict[str, Any] = {"state": state.value, "reason": reason}
    if seen is not None:
        values |= {"last_seen": seen, "peer": peer or device.peer}
    if audit_ok is not None:
        values["audit_ok"] = audit_ok
    _update(connection, device.id, **values)


def set_audit(connection: Connection, device_id: int, ok: bool | None, *, reason: str | None = None) -> None:
    """Note how the audit log of a device was judged; ``False`` shuts it out of EST."""
    values: dict[str, Any] = {"audit_ok": ok}
    if reason is not None:
        values["reason"] = reason
    _update(connection, device_id, **values)


def waive_audit(connection: Connection, device_id: int) -> None:
    """Let a device go on whatever its audit log says: the operator knows its history."""
    _update(connection, device_id, audit_ok=True, audit_waived=True)


def revoke_device(connection: Connection, device: Device, *, reason: str | None, when: datetime) -> int:
    """Revoke a device, which the caller has locked, and all its certificates; return how many these were.

    Raises :class:`RegistrarError` if it has never been let in.
    """
    change_state(connection, device, DeviceState.REVOKED, reason=reason)
    revoked = connection.execute(
        sa.update(certificates)
        .where(
            certificates.c.device_id == device.id,
            certificates.c.revoked_at.is_(None),
            certificates.c.not_after > when,
        )
        .values(revoked_at=when, revocation_reason=reason)
    ).rowcount
    bump(connection, REVOCATIONS)
    record_event(
        connection,
        "revoked",
        when=when,
        device_id=device.id,
        detail={"certificates": revoked, "reason": reason},
    )
    return revoked


def _update(connection: Connection, device_id: int, **values: Any) -> None:
    connection.execute(_UPDATE, {"wanted": device_id, **values})


def _one(connection: Connection, statement: sa.Select[Any], **values: Any) -> Device | None:
    row = connection.execute(statement, values).one_or_none()
    return None if row is None else _device(row)


def _fingerprint(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()


def _device(row: Any) -> Device:
    return Device(**{**row._mapping, "state": DeviceState(row.state)})
