"""What a MASA remembers: devices and their owners, vouchers and the log of them.

SQLite in a file, or PostgreSQL by URL. Several processes on one database are one MASA. Every change of a
device counts up its ``version``, and a voucher is recorded only if that is still what it was when it was
decided on: of two registrars that want one device at the same time, one becomes the owner, and a device
that the operator blocks meanwhile gets no voucher.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy.dialects import sqlite

from minerva.brski.database import DatabaseError, RowId, UtcTime, reading, shown, writing
from minerva.brski.masa.errors import MasaError
from minerva.core.text import printable
from minerva.pki.certificates import UNREADABLE, load_certificate, load_pem
from minerva.pki.errors import CertificateError, IdevidError, KeyRuleError
from minerva.pki.idevid import domain_id
from minerva.pki.keys import check_certificate

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql

SCHEMA_VERSION = "1"

KEPT_VOUCHERS = 64
"""How many vouchers of a device are kept; how many there were for each domain is counted for ever."""

MAX_TEXT = 200
"""The longest text of an operator or a peer that is kept, in characters."""

_ROWS_AT_A_TIME = 1000

metadata = sa.MetaData()

_state = sa.Table(
    "state",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

# A domain is a key: that of the certificate that was pinned, or that a device was sold to.
_owners = sa.Table(
    "owners",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("key", sa.LargeBinary, nullable=False, unique=True),  # SHA-256 of the SubjectPublicKeyInfo
    sa.Column("certificate", sa.LargeBinary, nullable=False),
    sa.Column("domain_id", sa.LargeBinary, nullable=False),
)

_devices = sa.Table(
    "devices",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("serial_number", sa.Text, nullable=False, unique=True),
    sa.Column("idevid", sa.LargeBinary, nullable=False),
    sa.Column("made", UtcTime, nullable=False),
    sa.Column("version", sa.Integer, nullable=False, default=0),
    sa.Column("owner_id", RowId, sa.ForeignKey("owners.id")),
    sa.Column("owned_since", UtcTime),
    sa.Column("assigned_id", RowId, sa.ForeignKey("owners.id")),  # to whom it was sold
    sa.Column("nonceless", sa.Boolean, nullable=False, default=False),  # whether he may have such vouchers
    sa.Column("blocked", sa.Text),  # why
    sa.Column("released", UtcTime),  # when last
    sa.Column("last_voucher", UtcTime),
)

_vouchers = sa.Table(
    "vouchers",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("device_id", RowId, sa.ForeignKey("devices.id"), nullable=False),
    sa.Column("owner_id", RowId, sa.ForeignKey("owners.id"), nullable=False),
    sa.Column("request_digest", sa.LargeBinary, nullable=False),
    sa.Column("nonce", sa.Text),
    sa.Column("assertion", sa.Text, nullable=False),
    sa.Column("created", UtcTime, nullable=False),
    sa.Column("expires", UtcTime),
    sa.Column("peer", sa.Text),
    sa.Column("voucher", sa.LargeBinary, nullable=False),
    sa.Column("void", sa.Boolean, nullable=False, default=False),  # the device was released since
    sa.UniqueConstraint("device_id", "request_digest"),
    sa.Index("vouchers_device", "device_id", "id"),
)

# The audit log as RFC 8995 section 5.8.1 lets it be abridged: for each domain the newest voucher with a nonce
# and the newest without, and how many there were.
_log = sa.Table(
    "log",
    metadata,
    sa.Column("device_id", RowId, sa.ForeignKey("devices.id"), primary_key=True),
    # Not by domainID: a stranger can make a certificate with the key identifier of somebody else.
    sa.Column("owner_id", RowId, sa.ForeignKey("owners.id"), primary_key=True),
    sa.Column("nonced", sa.Boolean, primary_key=True),
    sa.Column("domain_id", sa.LargeBinary, nullable=False),
    sa.Column("date", UtcTime, nullable=False),
    sa.Column("nonce", sa.Text),
    sa.Column("assertion", sa.Text, nullable=False),
    sa.Column("issued", sa.Integer, nullable=False),
    sa.Column("slug", sa.Text, nullable=False, unique=True),  # of the URL of the log: not to be guessed
)

_actions = sa.Table(
    "actions",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("device_id", RowId, sa.ForeignKey("devices.id"), nullable=False),
    sa.Column("time", UtcTime, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Index("actions_device", "device_id", "id"),
)


@dataclass(frozen=True, slots=True)
class Owner:
    """A domain that owns a device or that it was sold to."""

    key: bytes
    certificate: bytes = field(repr=False)
    domain_id: bytes

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Owner:
        """Return the domain whose (pinned) certificate is ``certificate``."""
        return cls(key_of(certificate), certificate.public_bytes(Encoding.DER), domain_id(certificate))

    @classmethod
    def load(cls, path: Path) -> Owner:
        """Return the domain whose CA, or registrar, has the certificate in the PEM file ``path``.

        Raises :class:`MasaError`.
        """
        try:
            (certificate,) = load_pem(path.read_bytes())
            check_certificate(certificate)
            return cls.of(certificate)
        except (CertificateError, IdevidError, KeyRuleError, ValueError) as error:
            raise MasaError(f"{path} is not one certificate in PEM, of a CA or a registrar") from error

    @property
    def name(self) -> str:
        """The subject of the certificate, fit for a terminal."""
        return _subject(self.certificate)


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """A device as the database has it."""

    id: int
    serial_number: str
    idevid: bytes = field(repr=False)
    made: datetime
    version: int
    owner: Owner | None
    owned_since: datetime | None
    assigned: Owner | None
    nonceless: bool
    blocked: str | None
    released: datetime | None
    last_voucher: datetime | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A voucher that was issued."""

    owner: Owner
    request_digest: bytes
    nonce: str | None
    assertion: str
    created: datetime
    expires: datetime | None
    peer: str
    voucher: bytes = field(repr=False)
    void: bool = False


@dataclass(frozen=True, slots=True)
class LogEntry:
    """The newest voucher of a domain, with or without a nonce, and how many there were of that kind."""

    key: bytes
    domain_id: bytes
    date: datetime
    nonce: str | None
    assertion: str
    issued: int
    slug: str


@dataclass(frozen=True, slots=True)
class Action:
    """What the maker's operator did to a device."""

    time: datetime
    action: str
    detail: str


@lru_cache(1000)
def _subject(certificate: bytes) -> str:
    return printable(load_certificate(certificate).subject.rfc4514_string())[:MAX_TEXT]


def key_of(certificate: x509.Certificate) -> bytes:
    """Return the SHA-256 fingerprint of a certificate's SubjectPublicKeyInfo."""
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).digest()


# The statements of the HTTP interface. They are made once: SQLAlchemy needs longer for it than the database
# for the answer.
_owner, _assigned = _owners.alias("owner"), _owners.alias("assigned")
_DEVICES = sa.select(
    _devices,
    *(
        table.c[name].label(f"{table.name}_{name}")
        for table in (_owner, _assigned)
        for name in ("key", "certificate", "domain_id")
    ),
).select_from(
    _devices.outerjoin(_owner, _owner.c.id == _devices.c.owner_id).outerjoin(
        _assigned, _assigned.c.id == _devices.c.assigned_id
    )
)
_DEVICE = _DEVICES.where(_devices.c.serial_number == sa.bindparam("serial_number"))
_VOUCHERS = sa.select(_vouchers, _owners.c.key, _owners.c.certificate, _owners.c.domain_id).join(
    _owners, _owners.c.id == _vouchers.c.owner_id
)
_ANSWER = _VOUCHERS.where(
    _vouchers.c.device_id == sa.bindparam("device_id"),
    _vouchers.c.request_digest == sa.bindparam("request_digest"),
)
_LOGS = (
    sa.select(_log, _owners.c.key)
    .join(_owners, _owners.c.id == _log.c.owner_id)
    .order_by(_log.c.date.desc(), _log.c.owner_id, _log.c.nonced)
)
_LOG = _LOGS.where(_log.c.device_id == sa.bindparam("device_id"))
_LOG_AT = _LOGS.where(
    _log.c.device_id
    == sa.select(_log.c.device_id).where(_log.c.slug == sa.bindparam("slug")).scalar_subquery()
)
_OWNER_ID = sa.select(_owners.c.id).where(_owners.c.key == sa.bindparam("owner_key"))
_UNCHANGED = (
    sa.update(_devices)
    .where(_devices.c.id == sa.bindparam("device_id"), _devices.c.version == sa.bindparam("seen_version"))
    .values(last_voucher=sa.bindparam("created"))
)
_OWNED = _UNCHANGED.values(
    owner_id=sa.bindparam("new_owner_id"),
    owned_since=sa.bindparam("created"),
    version=_devices.c.version + 1,
)
_INSERT_VOUCHER = sa.insert(_vouchers)


@cache
def _add_owner(dialect: str) -> sa.Insert:
    return _insert(dialect, _owners).on_conflict_do_nothing()


@cache
def _count_voucher(dialect: str) -> sa.Insert:
    insert = _insert(dialect, _log)
    newest = {name: insert.excluded[name] for name in ("domain_id", "date", "nonce", "assertion")}
    return insert.on_conflict_do_update(
        index_elements=[_log.c.device_id, _log.c.owner_id, _log.c.nonced],
        set_={**newest, "issued": _log.c.issued + 1},
    ).returning(_log.c.issued)


def _insert(dialect: str, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    # Both databases know ON CONFLICT, but SQLAlchemy has no common word for it.
    if dialect == "postgresql":
        # It takes long to import and is not needed by most.
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    return sqlite.insert(table)


class Database:
    """The database of a MASA. Every method raises :class:`DatabaseError` if it does not answer."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def create(self) -> None:
        """Make the tables. Raises :class:`DatabaseError` if there is a MASA already."""
        with writing(self._engine) as connection:
            if sa.inspect(connection).has_table(_state.name):
                raise DatabaseError(f"the database {shown(self._engine)} is in use already; give another")
            metadata.create_all(connection)
            connection.execute(sa.insert(_state).values(key="masa_schema_version", value=SCHEMA_VERSION))

    def check(self) -> None:
        """Raise :class:`DatabaseError` unless this is the database of a MASA of this version."""
        with reading(self._engine) as connection:
            version = None
            if sa.inspect(connection).has_table(_state.name):
                version = connection.scalar(
                    sa.select(_state.c.value).where(_state.c.key == "masa_schema_version")
                )
        if version is None:
            raise DatabaseError(f"the database {shown(self._engine)} is not that of a MASA")
        if version != SCHEMA_VERSION:
            raise DatabaseError(
                f"the database {shown(self._engine)} has tables of version {version}, this program needs "
                f"{SCHEMA_VERSION}; run the release of Minerva that made them"
            )

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def add_devices(self, idevids: Sequence[tuple[str, bytes]], now: datetime) -> None:
        """Add devices, by serial number and IDevID: all or none.

        Raises :class:`MasaError` if there is one of them already.
        """
        rows = [
            {"serial_number": serial_number, "idevid": idevid, "made": now}
            for serial_number, idevid in idevids
        ]
        try:
            with writing(self._engine) as connection:
                connection.execute(sa.insert(_devices), rows)
        except sa.exc.IntegrityError as error:
            for serial_number, _ in idevids:
                if self.device(serial_number) is not None:
                    raise MasaError(
                        f"there is a device {serial_number} already; it is left as it is"
                    ) from error
            raise MasaError("a serial number is there twice; give each once") from error

    def device(self, serial_number: str) -> DeviceRecord | None:
        """Return a device."""
        with reading(self._engine) as connection:
            row = connection.execute(_DEVICE, {"serial_number": serial_number}).one_or_none()
        return None if row is None else _device(row)

    def look_up(
        self, serial_number: str, request_digest: bytes | None
    ) -> tuple[DeviceRecord | None, Entry | None]:
        """Return a device, and the voucher that was issued for a request, if one is given, in one step."""
        with reading(self._engine) as connection:
            row = connection.execute(_DEVICE, {"serial_number": serial_number}).one_or_none()
            if row is None:
                return None, None
            if request_digest is None:
                return _device(row), None
            key = {"device_id": row.id, "request_digest": request_digest}
            answer = connection.execute(_ANSWER, key).one_or_none()
        return _device(row), None if answer is None else _entry(answer)

    def devices(self) -> Iterator[DeviceRecord]:
        """Yield all devices in the order in which they were made."""
        last = 0
        while True:
            with reading(self._engine) as connection:
                rows = connection.execute(
                    _DEVICES.where(_devices.c.id > last).order_by(_devices.c.id).limit(_ROWS_AT_A_TIME)
                ).all()
            if not rows:
                return
            yield from map(_device, rows)
            last = rows[-1].id

    def highest_number(self, prefix: str) -> int:
        """Return the highest number that follows ``prefix`` alone in a serial number; 0 if there is none."""
        with reading(self._engine) as connection:
            names = connection.scalars(
                sa.select(_devices.c.serial_number).where(
                    _devices.c.serial_number.startswith(prefix, autoescape=True)
                )
            ).all()
        # SQLite finds those with letters of the other case too.
        rests = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
        return max((int(rest) for rest in rests if rest.isdigit()), default=0)

    def record(self, device: DeviceRecord, entry: Entry) -> bool:
        """Record a voucher, whose domain becomes the owner if there is none. On return it is on the disk.

        Returns whether that was done: not if ``device`` is no longer as it was, or the request was
        answered meanwhile.
        """
        try:
            with writing(self._engine) as connection:
                owner_id = _owner_id(connection, entry.owner)
                values = {
                    "device_id": device.id,
                    "seen_version": device.version,
                    "created": entry.created,
                    "new_owner_id": owner_id,
                }
                if device.owner is not None:
                    del values["new_owner_id"]
                if connection.execute(_UNCHANGED if device.owner else _OWNED, values).rowcount != 1:
                    return False
                connection.execute(
                    _INSERT_VOUCHER,
                    {
                        "device_id": device.id,
                        "owner_id": owner_id,
                        "request_digest": entry.request_digest,
                        "nonce": entry.nonce,
                        "assertion": entry.assertion,
                        "created": entry.created,
                        "expires": entry.expires,
                        "peer": entry.peer[:MAX_TEXT],
                        "voucher": entry.voucher,
                        "void": False,
                    },
                )
                issued = connection.execute(
                    _count_voucher(connection.dialect.name),
                    {
                        "device_id": device.id,
                        "domain_id": entry.owner.domain_id,
                        "nonced": entry.nonce is not None,
                        "owner_id": owner_id,
                        "date": entry.created,
                        "nonce": entry.nonce,
                        "assertion": entry.assertion,
                        "issued": 1,
                        "slug": secrets.token_urlsafe(24),
                    },
                ).scalar_one()
                if issued % (KEPT_VOUCHERS // 2) == 0:
                    _prune(connection, device)
        except sa.exc.IntegrityError:
            return False
        return True

    def log(self, device: DeviceRecord) -> list[LogEntry]:
        """Return the log of a device, the newest entry first."""
        with reading(self._engine) as connection:
            rows = connection.execute(_LOG, {"device_id": device.id}).all()
        return list(map(_log_entry, rows))

    def log_at(self, slug: str) -> list[LogEntry]:
        """Return the log whose URL ends in ``slug``; empty if there is none."""
        with reading(self._engine) as connection:
            rows = connection.execute(_LOG_AT, {"slug": slug}).all()
        return list(map(_log_entry, rows))

    def vouchers(self, device: DeviceRecord) -> list[Entry]:
        """Return the newest vouchers of a device, the newest first."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                _VOUCHERS.where(_vouchers.c.device_id == device.id)
                .order_by(_vouchers.c.id.desc())
                .limit(KEPT_VOUCHERS)
            ).all()
        return list(map(_entry, rows))

    def actions(self, device: DeviceRecord) -> list[Action]:
        """Return what the operator did to a device, the newest first."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(_actions).where(_actions.c.device_id == device.id).order_by(_actions.c.id.desc())
            ).all()
        return [Action(row.time, row.action, row.detail) for row in rows]

    def assign(self, serial_number: str, owner: Owner, *, nonceless: bool, now: datetime) -> DeviceRecord:
        """Note to whom a device was sold, and whether he may have vouchers without a nonce.

        Raises :class:`MasaError` for a device that is not there or has another owner.
        """

        def values(connection: sa.Connection, device: DeviceRecord) -> dict[str, object]:
            if device.owner is not None and device.assigned != owner and not _same(device.owner, owner):
                raise MasaError(
                    f"the device {serial_number} belongs to {device.owner.name}; release it first, "
                    "if he gave it up"
                )
            return {"assigned_id": _owner_id(connection, owner), "nonceless": nonceless}

        detail = owner.name + (", vouchers without a nonce allowed" if nonceless else "")
        return self._act(serial_number, "assign", detail, now, values)

    def release(self, serial_number: str, now: datetime) -> DeviceRecord:
        """Let a device have a new owner. Raises :class:`MasaError`."""

        def values(connection: sa.Connection, device: DeviceRecord) -> dict[str, object]:
            # A former owner's request must not get him the device again when it is sent once more.
            connection.execute(
                sa.update(_vouchers).where(_vouchers.c.device_id == device.id).values(void=True)
            )
            return {
                "owner_id": None,
                "owned_since": None,
                "assigned_id": None,
                "nonceless": False,
                # As exact as the times in requests.
                "released": now.replace(microsecond=0),
            }

        device = self.known(serial_number)
        names = dict.fromkeys(owner.name for owner in (device.owner, device.assigned) if owner is not None)
        return self._act(serial_number, "release", "; ".join(names) or "nobody", now, values)

    def block(self, serial_number: str, reason: str, now: datetime) -> DeviceRecord:
        """Issue no more vouchers for a device. Raises :class:`MasaError`."""
        kept = printable(reason)[:MAX_TEXT]
        return self._act(serial_number, "block", kept, now, lambda _c, _d: {"blocked": kept})

    def unblock(self, serial_number: str, now: datetime) -> DeviceRecord:
        """Undo :meth:`block`. Raises :class:`MasaError`."""
        return self._act(serial_number, "unblock", "", now, lambda _c, _d: {"blocked": None})

    def known(self, serial_number: str) -> DeviceRecord:
        """Return a device. Raises :class:`MasaError` if it is not there."""
        device = self.device(serial_number)
        if device is None:
            raise MasaError(
                f"there is no device {printable(serial_number)}; `minerva masa devices` lists them"
            )
        return device

    def _act(
        self,
        serial_number: str,
        action: str,
        detail: str,
        now: datetime,
        values: Callable[[sa.Connection, DeviceRecord], dict[str, object]],
    ) -> DeviceRecord:
        while True:
            device = self.known(serial_number)
            with writing(self._engine) as connection:
                if not _change(connection, device, {"version": device.version + 1}):
                    continue  # a registrar was faster
                changes = values(connection, device)
                connection.execute(sa.update(_devices).where(_devices.c.id == device.id).values(changes))
                connection.execute(
                    sa.insert(_actions).values(device_id=device.id, time=now, action=action, detail=detail)
                )
            return self.known(serial_number)


def _same(owner: Owner, buyer: Owner) -> bool:
    """Return whether ``owner`` is of the domain of ``buyer``: the same key, or certified by it."""
    if owner.key == buyer.key:
        return True
    try:
        load_certificate(owner.certificate).verify_directly_issued_by(load_certificate(buyer.certificate))
    except (*UNREADABLE, InvalidSignature):
        return False
    return True


def _change(connection: sa.Connection, device: DeviceRecord, changes: dict[str, object]) -> bool:
    result = connection.execute(
        sa.update(_devices)
        .where(_devices.c.id == device.id, _devices.c.version == device.version)
        .values(changes)
    )
    return result.rowcount == 1


def _owner_id(connection: sa.Connection, owner: Owner) -> int:
    number = connection.scalar(_OWNER_ID, {"owner_key": owner.key})
    if number is None:
        values = {"key": owner.key, "certificate": owner.certificate, "domain_id": owner.domain_id}
        connection.execute(_add_owner(connection.dialect.name), values)
        number = connection.scalar(_OWNER_ID, {"owner_key": owner.key})
    assert number is not None
    return int(number)


def _prune(connection: sa.Connection, device: DeviceRecord) -> None:
    of_device = sa.select(_vouchers.c.id).where(_vouchers.c.device_id == device.id)
    newest_to_go = of_device.order_by(_vouchers.c.id.desc()).offset(KEPT_VOUCHERS).limit(1)
    connection.execute(
        sa.delete(_vouchers).where(
            _vouchers.c.device_id == device.id, _vouchers.c.id <= newest_to_go.scalar_subquery()
        )
    )


def _device(row: sa.Row[Any]) -> DeviceRecord:
    owner = assigned = None
    if row.owner_id is not None:
        owner = Owner(row.owner_key, row.owner_certificate, row.owner_domain_id)
    if row.assigned_id is not None:
        assigned = Owner(row.assigned_key, row.assigned_certificate, row.assigned_domain_id)
    return DeviceRecord(
        id=row.id,
        serial_number=row.serial_number,
        idevid=row.idevid,
        made=row.made,
        version=row.version,
        owner=owner,
        owned_since=row.owned_since,
        assigned=assigned,
        nonceless=row.nonceless,
        blocked=row.blocked,
        released=row.released,
        last_voucher=row.last_voucher,
    )


def _entry(row: sa.Row[Any]) -> Entry:
    return Entry(
        owner=Owner(row.key, row.certificate, row.domain_id),
        request_digest=row.request_digest,
        nonce=row.nonce,
        assertion=row.assertion,
        created=row.created,
        expires=row.expires,
        peer=row.peer,
        voucher=row.voucher,
        void=row.void,
    )


def _log_entry(row: sa.Row[Any]) -> LogEntry:
    return LogEntry(row.key, row.domain_id, row.date, row.nonce, row.assertion, row.issued, row.slug)
