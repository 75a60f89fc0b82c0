"""The manufacturers whose devices may come: how they are known, and what goes for them.

A device belongs to the manufacturer under one of whose trust anchors its IDevID is. These anchors say nothing
about a MASA's web server: what that is known by is an entry of its own (RFC 8995 section 5.1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy.engine import Connection

from minerva.brski.registrar.database import bump, devices, get_state, manufacturers
from minerva.brski.registrar.errors import RegistrarError
from minerva.brski.registrar.policy import Policy
from minerva.core.text import printable
from minerva.pki import idevid
from minerva.pki.certificates import UNREADABLE, dump_pem, load_pem
from minerva.pki.errors import CertificateError, IdevidError, PathError
from minerva.pki.idevid import SerialNumberSource
from minerva.pki.path import validate_path

WEB: Final = "web"
"""In place of anchors: those by which browsers know a web server."""

MAX_LEARNT: Final = 32
"""How many manufacturers that nobody added an open registrar learns of."""

MAX_NAME: Final = 100
MAX_SERIAL: Final = 200
"""The longest serial number of a device, in characters."""

UNLEARNT: Final = 0
"""The number of a manufacturer that is not in the database."""

_GENERATION = "manufacturers"
_LEARNT = "unknown-"


class ManufacturerError(RegistrarError):
    """A manufacturer cannot be added, changed or removed as asked."""


class UnknownManufacturerError(RegistrarError):
    """An IDevID is not one of a manufacturer's: it is under no anchor (``unknown``), or of no use."""

    def __init__(self, reason: str, *, unknown: bool = False) -> None:
        super().__init__(reason)
        self.unknown = unknown


@dataclass(frozen=True, slots=True)
class Manufacturer:
    """A maker of devices.

    ``masa_url`` overrides what its IDevIDs say. ``masa_anchors`` are what its MASA's web server is known by:
    without any, the ``anchors``. ``ignore_expiry``: its IDevIDs are good for ever, whatever they say.
    ``serial_source`` tells where in them the serial number is.
    """

    id: int
    name: str
    anchors: tuple[x509.Certificate, ...]
    masa_url: str | None = None
    masa_anchors: tuple[x509.Certificate, ...] | Literal["web"] | None = None
    policy: Policy = Policy.ANY
    ignore_expiry: bool = False
    serial_source: SerialNumberSource = SerialNumberSource.SERIAL_NUMBER

    @property
    def server_anchors(self) -> tuple[x509.Certificate, ...] | Literal["web"]:
        """What its MASA's web server is known by."""
        return self.anchors if self.masa_anchors is None else self.masa_anchors

    def time_for(self, now: datetime) -> datetime | None:
        """Return the time at which its certificates are to be judged; ``None`` for no time."""
        return None if self.ignore_expiry else now


def add(
    connection: Connection,
    name: str,
    anchors_pem: bytes,
    *,
    when: datetime,
    masa_url: str | None = None,
    masa_anchors_pem: bytes | Literal["web"] | None = None,
    policy: Policy = Policy.ANY,
    ignore_expiry: bool = False,
    serial_source: SerialNumberSource = SerialNumberSource.SERIAL_NUMBER,
) -> Manufacturer:
    """Add a manufacturer. Raises :class:`ManufacturerError` if it cannot be as asked."""
    if not 0 < len(name) <= MAX_NAME or printable(name) != name:
        raise ManufacturerError(f"a manufacturer's name has 1 to {MAX_NAME} characters that can be seen")
    anchors = _load(anchors_pem, "anchors")
    if not anchors:
        raise ManufacturerError("a manufacturer needs a trust anchor, or none of its devices can be known")
    url = None if masa_url is None else _masa_url(masa_url)
    server = None if masa_anchors_pem is None else _masa_anchors(masa_anchors_pem)
    for other in load_all(connection):
        if other.name == name:
            raise ManufacturerError(f"there is a manufacturer {name} already; it is left as it is")
        if set(other.anchors) & set(anchors):
            raise ManufacturerError(
                f"{other.name} has the same trust anchor: whose a device is could not be told"
            )
    number = connection.scalar(
        sa.insert(manufacturers)
        .values(
            name=name,
            anchors=_pem(anchors),
            masa_url=url,
            masa_anchors=server,
            policy=policy.value,
            ignore_expiry=ignore_expiry,
            serial_source=serial_source.value,
            created=when,
        )
        .returning(manufacturers.c.id)
    )
    _touch(connection)
    (added,) = [one for one in load_all(connection) if one.id == number]
    return added


def change(
    connection: Connection,
    name: str,
    *,
    policy: Policy | None = None,
    ignore_expiry: bool | None = None,
    masa_url: str | None = None,
    masa_anchors_pem: bytes | Literal["web", ""] | None = None,
) -> Manufacturer:
    """Change what is given of a manufacturer; an empty ``masa_url`` or ``masa_anchors_pem`` is again none.

    Raises :class:`ManufacturerError`.
    """
    found = find(connection, name)
    values: dict[str, Any] = {
        "policy": (policy or found.policy).value,
        "ignore_expiry": found.ignore_expiry if ignore_expiry is None else ignore_expiry,
    }
    if masa_url is not None:
        values["masa_url"] = _masa_url(masa_url) if masa_url else None
    if masa_anchors_pem is not None:
        values["masa_anchors"] = None if masa_anchors_pem == "" else _masa_anchors(masa_anchors_pem)
    connection.execute(sa.update(manufacturers).where(manufacturers.c.id == found.id).values(values))
    _touch(connection)
    return find(connection, name)


def remove(connection: Connection, name: str) -> None:
    """Remove a manufacturer. Raises :class:`ManufacturerError` while there are devices of it."""
    found = find(connection, name)
    if connection.scalar(sa.select(devices.c.id).where(devices.c.manufacturer_id == found.id).limit(1)):
        raise ManufacturerError(
            f"there are devices of {name}: let no more of them in with "
            f"`minerva registrar manufacturer change {name} --policy listed`"
        )
    connection.execute(sa.delete(manufacturers).where(manufacturers.c.id == found.id))
    _touch(connection)


def find(connection: Connection, name: str) -> Manufacturer:
    """Return the manufacturer ``name``. Raises :class:`ManufacturerError` if there is none."""
    row = connection.execute(sa.select(manufacturers).where(manufacturers.c.name == name)).mappings().first()
    if row is None:
        raise ManufacturerError(
            f"there is no manufacturer {printable(name)}; see `minerva registrar manufacturer list`"
        )
    return _manufacturer(row)


def load_all(connection: Connection) -> list[Manufacturer]:
    """Return all manufacturers, by name."""
    rows = connection.execute(sa.select(manufacturers).order_by(manufacturers.c.name)).mappings()
    return [_manufacturer(row) for row in rows]


def unlearnt(chain: Sequence[x509.Certificate]) -> Manufacturer:
    """Return the unknown manufacturer of the IDevID ``chain[0]``, for a registrar that is open to all.

    Its anchor is the topmost certificate that the device sent, and its MASA's web server has to be one that
    browsers would trust. It is not in the database yet. Raises :class:`UnknownManufacturerError`.
    """
    anchor = _topmost(chain)
    if anchor is None:
        raise UnknownManufacturerError("the IDevID comes without a certificate of who issued it")
    public_key = anchor.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    name = f"{_LEARNT}{hashlib.sha256(public_key).hexdigest()[:16]}"
    return Manufacturer(UNLEARNT, name, (anchor,), masa_anchors=WEB)


def learn(connection: Connection, manufacturer: Manufacturer, when: datetime) -> Manufacturer:
    """Add a manufacturer of :func:`unlearnt`. Raises :class:`UnknownManufacturerError`."""
    known = [one for one in load_all(connection) if one.name.startswith(_LEARNT)]
    for one in known:
        if one.anchors == manufacturer.anchors:
            return one
    if len(known) >= MAX_LEARNT:
        raise UnknownManufacturerError(
            f"{MAX_LEARNT} unknown manufacturers have been learnt of; more have to be added by hand"
        )
    try:
        return add(
            connection, manufacturer.name, dump_pem(manufacturer.anchors), when=when, masa_anchors_pem=WEB
        )
    except ManufacturerError as error:
        raise UnknownManufacturerError(str(error)) from error


class Manufacturers:
    """All manufacturers, as the database has them now; they are parsed again only if they have changed."""

    def __init__(self) -> None:
        self._generation: str | None = None
        self._all: list[Manufacturer] = []

    def load(self, connection: Connection) -> list[Manufacturer]:
        """Return all manufacturers."""
        generation = get_state(connection, _GENERATION) or ""
        if generation != self._generation:
            self._all, self._generation = load_all(connection), generation
        return self._all


def identify(
    known: Iterable[Manufacturer], chain: Sequence[x509.Certificate], now: datetime
) -> tuple[Manufacturer, str]:
    """Return whose the device with the IDevID ``chain[0]`` is, and its serial number.

    Raises :class:`UnknownManufacturerError` with the reason.
    """
    if not chain:
        raise UnknownManufacturerError("the device showed no certificate")
    try:
        issuers = {certificate.issuer.public_bytes() for certificate in chain}
    except UNREADABLE as error:
        raise UnknownManufacturerError("the device's certificate cannot be read") from error
    reasons: list[str] = []
    for manufacturer in known:
        # The names are compared first, for a path validation per manufacturer would cost too much.
        if not any(
            anchor.subject.public_bytes() in issuers or anchor in chain for anchor in manufacturer.anchors
        ):
            continue
        try:
            validate_path(chain, manufacturer.anchors, manufacturer.time_for(now))
        except PathError as error:
            reasons.append(f"{manufacturer.name}: {error}")
            continue
        return manufacturer, serial_of(chain[0], manufacturer.serial_source)
    if reasons:
        raise UnknownManufacturerError(
            f"the IDevID is not acceptable as one of {'; or of '.join(reasons[:3])}"
        )
    raise UnknownManufacturerError("the IDevID is of a manufacturer that is not known here", unknown=True)


def serial_of(certificate: x509.Certificate, source: SerialNumberSource) -> str:
    """Return the serial number of the device with this IDevID. Raises :class:`UnknownManufacturerError`."""
    try:
        serial = idevid.serial_number(certificate, source)
    except IdevidError as error:
        raise UnknownManufacturerError(str(error)) from error
    if len(serial) > MAX_SERIAL:
        raise UnknownManufacturerError(f"a serial number of {len(serial)} characters, at most {MAX_SERIAL}")
    return serial


def _topmost(chain: Sequence[x509.Certificate]) -> x509.Certificate | None:
    """Return the certificate at the top of the path that begins with ``chain[0]``, if that is not itself."""
    top, rest = chain[0], list(chain[1:])
    while True:
        above = next((one for one in rest if _issued(one, top)), None)
        if above is None:
            return None if top is chain[0] else top
        rest.remove(above)
        top = above


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        validate_path([certificate], [issuer], None)
    except PathError:
        return False
    return True


def _manufacturer(row: Any) -> Manufacturer:
    stored = row["masa_anchors"]
    return Manufacturer(
        id=row["id"],
        name=row["name"],
        anchors=load_pem(row["anchors"].encode()),
        masa_url=row["masa_url"],
        masa_anchors=None if stored is None else WEB if stored == WEB else load_pem(stored.encode()),
        policy=Policy(row["policy"]),
        ignore_expiry=bool(row["ignore_expiry"]),
        serial_source=SerialNumberSource(row["serial_source"] or SerialNumberSource.SERIAL_NUMBER),
    )


def _masa_url(text: str) -> str:
    try:
        return idevid.normalise_masa_url(text)
    except IdevidError as error:
        raise ManufacturerError(f"the URL of the MASA: {error}") from error


def _masa_anchors(pem: bytes | str) -> str:
    stored = WEB if pem == WEB else _pem(_load(_bytes(pem), "MASA anchors"))
    if not stored:
        raise ManufacturerError('without a certificate no MASA is known: give "web" or leave it out')
    return stored


def _load(data: bytes, what: str) -> tuple[x509.Certificate, ...]:
    try:
        return load_pem(data)
    except CertificateError as error:
        raise ManufacturerError(f"{what}: {error}") from error


def _bytes(data: bytes | str) -> bytes:
    return data if isinstance(data, bytes) else data.encode()


def _pem(certificates: Iterable[x509.Certificate]) -> str:
    return dump_pem(dict.fromkeys(certificates)).decode()


def _touch(connection: Connection) -> None:
    """Let all processes see that something has changed."""
    bump(connection, _GENERATION)
