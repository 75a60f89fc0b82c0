"""The registrar's database: its tables, and how one is opened.

SQLite or PostgreSQL. Several registrar processes on one PostgreSQL database are one registrar. What must not
happen twice, such as the same address for two devices, is forbidden by the constraints of the tables and not
by the programs. No statement reads more rows than it needs, however many devices there are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from minerva.brski.database import DatabaseError, RowId, UtcTime, reading, shown, writing
from minerva.brski.database import open_engine as open_database
from minerva.core.text import shortened

__all__ = ["open_database", "reading", "shown", "writing"]

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

SCHEMA_VERSION = 1
"""What ``state`` holds under ``schema_version`` in a database that this program can use."""

MAX_EVENTS = 1_000_000
"""How many events are kept. Strangers can cause some: the oldest go."""

MAX_DETAIL = 500
"""The longest text kept in the detail of an event, in characters."""

_EVENTS_BETWEEN_CLEANINGS = 1_000
_INSERTS: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class DeviceState(StrEnum):
    """How far a device has come, or that it must not come any further."""

    WAITING = "waiting"
    APPROVED = "approved"
    DENIED = "denied"
    VOUCHERED = "vouchered"
    ENROLLED = "enrolled"
    REVOKED = "revoked"


metadata = sa.MetaData()

state = sa.Table(
    "state",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

manufacturers = sa.Table(
    "manufacturers",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("anchors", sa.Text, nullable=False),  # PEM: what IDevIDs and vouchers are checked with
    sa.Column("masa_url", sa.Text),
    sa.Column("masa_anchors", sa.Text),  # PEM, or "web"
    sa.Column("policy", sa.Text, nullable=False),  # any, listed, approve
    sa.Column("ignore_expiry", sa.Boolean, nullable=False, default=False),
    sa.Column("serial_source", sa.Text),
    sa.Column("created", UtcTime),
)

devices = sa.Table(
    "devices",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    # None for what came without a voucher: the registrar's own node.
    sa.Column("manufacturer_id", RowId, sa.ForeignKey("manufacturers.id")),
    sa.Column("serial_number", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),  # of the operator, or why the registrar refuses the device
    sa.Column("idevid", sa.LargeBinary),  # DER
    sa.Column("idevid_sha256", sa.Text),  # of the DER, hexadecimal: how a device is found by what it shows
    sa.Column("audit_ok", sa.Boolean),  # None: not judged yet
    sa.Column("audit_waived", sa.Boolean, nullable=False, default=False),  # the operator takes its history
    sa.Column("scheme", sa.Text),  # of its address, if the operator chose one
    sa.Column("rsub", sa.Text),  # its routing subdomain, if the operator chose one
    sa.Column("first_seen", UtcTime),
    sa.Column("last_seen", UtcTime),
    sa.Column("peer", sa.Text),  # whence it last came
    sa.UniqueConstraint("manufacturer_id", "serial_number"),
    sa.Index("devices_serial_number", "serial_number"),
    sa.Index("devices_state", "state", "id"),
    sa.Index("devices_idevid", "idevid_sha256"),
)
# To a constraint, two NULLs differ.
sa.Index(
    "devices_own",
    devices.c.serial_number,
    unique=True,
    sqlite_where=devices.c.manufacturer_id.is_(None),
    postgresql_where=devices.c.manufacturer_id.is_(None),
)

addresses = sa.Table(
    "addresses",
    metadata,
    sa.Column("address", sa.Text, primary_key=True),  # as RFC 5952 writes it
    sa.Column("device_id", RowId, sa.ForeignKey("devices.id"), nullable=False, unique=True),
    sa.Column("registrar_id", sa.BigInteger, nullable=False),
    sa.Column("scheme", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("routing_subdomain", sa.Text, nullable=False),
    sa.Column("created", UtcTime, nullable=False),
    sa.UniqueConstraint("registrar_id", "scheme", "number"),
)

routing_subdomains = sa.Table(
    "routing_subdomains",
    metadata,
    sa.Column("global_id", sa.Text, primary_key=True),  # two with the same hash must not both be used
    sa.Column("name", sa.Text, nullable=False, unique=True),
)

counters = sa.Table(
    "counters",
    metadata,
    sa.Column("registrar_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("scheme", sa.Text, primary_key=True),
    sa.Column("next_number", sa.Integer, nullable=False),
)

certificates = sa.Table(
    "certificates",
    metadata,
    sa.Column("serial", sa.Text, primary_key=True),  # hexadecimal, without leading zeros
    sa.Column("device_id", RowId, sa.ForeignKey("devices.id")),  # None for the registrar's service
    sa.Column("issuer", sa.Text, nullable=False),  # the issuer's key identifier, hexadecimal
    sa.Column("not_before", UtcTime, nullable=False),
    sa.Column("not_after", UtcTime, nullable=False),
    sa.Column("der", sa.LargeBinary, nullable=False),
    sa.Column("issued", UtcTime, nullable=False),
    sa.Column("revoked_at", UtcTime),
    sa.Column("revocation_reason", sa.Text),
    sa.Column("superseded_by", sa.Text),  # a serial
)
sa.Index("certificates_device", certificates.c.device_id, certificates.c.issued)
sa.Index(
    "certificates_current",
    certificates.c.device_id,
    sqlite_where=certificates.c.superseded_by.is_(None),
    postgresql_where=certificates.c.superseded_by.is_(None),
)
sa.Index(
    "certificates_revoked",
    certificates.c.issuer,
    certificates.c.not_after,
    sqlite_where=certificates.c.revoked_at.is_not(None),
    postgresql_where=certificates.c.revoked_at.is_not(None),
)

ca_certificates = sa.Table(
    "ca_certificates",
    metadata,
    sa.Column("sha256", sa.Text, primary_key=True),  # of the DER, hexadecimal
    sa.Column("role", sa.Text, nullable=False),  # root, issuing or cross
    sa.Column("key_id", sa.Text, nullable=False),  # the subject key identifier, hexadecimal
    sa.Column("der", sa.LargeBinary, nullable=False),
    sa.Column("added", UtcTime, nullable=False),
    sa.Column("until", UtcTime),  # when clients need it no longer; None for those in use
)

crls = sa.Table(
    "crls",
    metadata,
    sa.Column("issuer", sa.Text, primary_key=True),  # as in certificates
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),  # of the revocations it holds
    sa.Column("der", sa.LargeBinary, nullable=False),
    sa.Column("this_update", UtcTime, nullable=False),
    sa.Column("next_update", UtcTime, nullable=False),
)

vouchers = sa.Table(
    "vouchers",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("device_id", RowId, sa.ForeignKey("devices.id"), nullable=False),
    sa.Column("nonce", sa.Text),
    sa.Column("request", sa.LargeBinary, nullable=False),  # the pledge's
    sa.Column("registrar_request", sa.LargeBinary),  # the registrar's: asked again for the audit log
    sa.Column("masa_url", sa.Text),
    sa.Column("voucher", sa.LargeBinary),
    sa.Column("assertion", sa.Text),
    sa.Column("created", UtcTime, nullable=False),
    sa.Index("vouchers_device", "device_id", "id"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("time", UtcTime, nullable=False),
    sa.Column("device_id", RowId, sa.ForeignKey("devices.id")),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("peer", sa.Text),
    sa.Column("detail", sa.Text),  # a JSON object
    sa.Index("events_device", "device_id", "id"),
)


# Statements that every enrolment needs are made once: it takes longer to make one than to execute it.
_GET_STATE = sa.select(state.c.value).where(state.c.key == sa.bindparam("wanted"))
_INSERT_EVENT = sa.insert(events).returning(events.c.id)


def create_tables(connection: Connection) -> None:
    """Make the tables, in the transaction of ``connection``.

    Raises :class:`DatabaseError` if there is a registrar in the database already.
    """
    if sa.inspect(connection).has_table(state.name):
        raise DatabaseError(
            f"there is a registrar in {shown(connection.engine)} already; it is left as it is"
        )
    metadata.create_all(connection)
    set_state(connection, "schema_version", str(SCHEMA_VERSION))


def check_schema(engine: Engine) -> None:
    """Raise :class:`DatabaseError` unless the database is one of a registrar of this version."""
    database = engine.url.database
    if engine.dialect.name == "sqlite" and database and not Path(database).exists():
        raise DatabaseError(f"there is no registrar in {database}; make one with `minerva registrar init`")
    with reading(engine) as connection:
        if not sa.inspect(connection).has_table(state.name):
            raise DatabaseError(
                f"there is no registrar in {shown(engine)}; make one with `minerva registrar init`"
            )
        version = get_state(connection, "schema_version")
    if version != str(SCHEMA_VERSION):
        raise DatabaseError(
            f"the registrar in {shown(engine)} has tables of version {version}, this program needs version "
            f"{SCHEMA_VERSION}; run the release of Minerva that made them"
        )


def get_state(connection: Connection, key: str) -> str | None:
    """Return a value of the table ``state``."""
    value = connection.scalar(_GET_STATE, {"wanted": key})
    return None if value is None else str(value)


def set_state(connection: Connection, key: str, value: str) -> None:
    """Set a value of the table ``state``."""
    updated = connection.execute(sa.update(state).where(state.c.key == key).values(value=value))
    if not updated.rowcount:
        connection.execute(sa.insert(state).values(key=key, value=value))


def bump(connection: Connection, key: str) -> int:
    """Add 1 to a number in the table ``state``, which begins at 0, and return it. Atomic."""
    number = connection.scalar(
        sa.update(state)
        .where(state.c.key == key)
        .values(value=sa.cast(sa.cast(state.c.value, sa.BigInteger) + 1, sa.Text))
        .returning(state.c.value)
    )
    if number is not None:
        return int(number)
    insert_ignoring(connection, state, key=key, value="0")
    return bump(connection, key)


def insert_ignoring(connection: Connection, table: sa.Table, **values: Any) -> None:
    """Insert a row, unless a constraint of uniqueness says that there is one already."""
    connection.execute(_insert_ignoring(connection.dialect.name, table), values)


@cache
def _insert_ignoring(dialect: str, table: sa.Table) -> sa.Insert:
    statement: sa.Insert = _INSERTS[dialect](table).on_conflict_do_nothing()
    return statement


def record_event(
    connection: Connection,
    kind: str,
    *,
    when: datetime,
    device_id: int | None = None,
    peer: str | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Write an event. Texts in ``detail`` are made printable and cut: they may be a stranger's."""
    shown = {
        name: shortened(value, MAX_DETAIL) if isinstance(value, str) else value
        for name, value in (detail or {}).items()
    }
    number = connection.scalar(
        _INSERT_EVENT,
        {
            "time": when,
            "device_id": device_id,
            "kind": kind,
            "peer": peer,
            "detail": json.dumps(shown, sort_keys=True),
        },
    )
    if number is not None and number % _EVENTS_BETWEEN_CLEANINGS == 0:
        connection.execute(sa.delete(events).where(events.c.id <= number - MAX_EVENTS))
