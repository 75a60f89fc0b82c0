"""Who signs certificates for the registrar: the CA in its directory, or an external one over EST.

::

    ca/root/         the root CA, as `minerva ca` makes one; its key may be taken away once all is made
    ca/issuing/      the issuing CA under it, whose key the registrar needs
    ca/root-2/, ca/issuing-2/ ...   those made by `minerva registrar rollover`

Which of them are in use, the database says: the running processes of a domain change over at the same time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.engine import Connection, Engine

from minerva.brski.registrar.database import ca_certificates, certificates, crls, reading, writing
from minerva.brski.registrar.domain import AuthorityKind, Domain, load_domain
from minerva.brski.registrar.errors import RegistrarError
from minerva.brski.registrar.external import (
    EXTERNAL_DIRECTORY,
    ExternalAuthority,
    is_root,
    load_credentials,
)
from minerva.pki.address import AcpAddress
from minerva.pki.ca import CA_CERTIFICATE_FILE, CertificateAuthority, Issued
from minerva.pki.certificates import load_certificate, load_pem
from minerva.pki.errors import AuthorityError, CertificateError
from minerva.pki.keys import PrivateKey
from minerva.pki.node_name import AcpNodeName
from minerva.pki.request import CertificateRequest

CA_DIRECTORY: Final = "ca"
ROOT: Final = "root"
ISSUING: Final = "issuing"

KEEP_EXPIRED: Final = timedelta(days=30)
"""How long a superseded certificate is remembered after it has expired. The newest one is for ever."""


class Role(StrEnum):
    """What a certificate of a CA is for."""

    ROOT = "root"
    ISSUING = "issuing"
    CROSS = "cross"
    """One root's key, signed by another root: the way from old trust anchors to new ones."""


_CA_CERTIFICATES = sa.select(ca_certificates.c.role, ca_certificates.c.der, ca_certificates.c.added).where(
    ca_certificates.c.role.in_(sa.bindparam("roles", expanding=True)),
    sa.or_(ca_certificates.c.until.is_(None), ca_certificates.c.until > sa.bindparam("now")),
)
_SUPERSEDE = (
    sa.update(certificates)
    .where(
        certificates.c.device_id == sa.bindparam("owner"),
        certificates.c.superseded_by.is_(None),
        certificates.c.serial != sa.bindparam("newest"),
    )
    .values(superseded_by=sa.bindparam("newest"))
)

_FORGET = sa.delete(certificates).where(
    certificates.c.device_id == sa.bindparam("owner"),
    certificates.c.superseded_by.is_not(None),
    certificates.c.revoked_at.is_(None),
    certificates.c.not_after < sa.bindparam("long_ago"),
)


class Authority(Protocol):
    """Signs for the registrar, which has checked everything before."""

    async def issue(
        self,
        domain: Domain,
        request: CertificateRequest,
        node_name: AcpNodeName,
        subject: x509.Name | None,
        now: datetime,
    ) -> x509.Certificate:
        """Return a certificate for the key of ``request`` and for ``node_name``.

        ``subject`` is that of the certificate to be renewed. Raises :class:`RegistrarError` or another
        MinervaError if it cannot be had at present.
        """

    def problem(self, domain: Domain, now: datetime) -> str | None:
        """Return why no certificate can be had at present, or ``None`` if, as far as known, it can."""

    def certify(
        self,
        domain: Domain,
        key: PrivateKey,
        node_name: AcpNodeName,
        *,
        lifetime: timedelta,
        now: datetime,
        usages: Sequence[x509.ObjectIdentifier] = (),
        names: Sequence[x509.GeneralName] = (),
        subject: str | None = None,
        with_crl: bool = True,
    ) -> Issued:
        """Return a certificate for a key of the registrar's own or of its node; may take its time.

        ``usages`` are those of the extended key usage, ``names`` go into the subjectAltName besides
        ``node_name``, and ``subject`` is a common name. Raises :class:`RegistrarError` or PkiError.
        """


class BuiltInAuthority:
    """The CA in the registrar's directory. May be used by several threads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._issuers: dict[str, CertificateAuthority] = {}

    async def issue(
        self,
        domain: Domain,
        request: CertificateRequest,
        node_name: AcpNodeName,
        subject: x509.Name | None,
        now: datetime,
    ) -> x509.Certificate:
        """Return a certificate. Raises :class:`AuthorityError`."""
        return self.issuer(domain.issuing).certify(
            request.public_key,
            node_name,
            lifetime=domain.certificate_lifetime,
            now=now,
            crl_urls=domain.crl_urls,
            subject=subject,
        )

    def problem(self, domain: Domain, now: datetime) -> str | None:
        """Return why the CA cannot sign."""
        try:
            issuer = self.issuer(domain.issuing)
        except AuthorityError as error:
            return str(error)
        for certificate in (*issuer.chain, *issuer.anchors[:1]):
            if certificate.not_valid_after_utc <= now:
                expired = f"the CA's certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
                return f"{expired}; make a new one with `minerva registrar rollover`"
        return None

    def certify(
        self,
        domain: Domain,
        key: PrivateKey,
        node_name: AcpNodeName,
        *,
        lifetime: timedelta,
        now: datetime,
        usages: Sequence[x509.ObjectIdentifier] = (),
        names: Sequence[x509.GeneralName] = (),
        subject: str | None = None,
        with_crl: bool = True,
    ) -> Issued:
        """Return a certificate for a key of our own. Raises :class:`AuthorityError`."""
        issuer = self.issuer(domain.issuing)
        certificate = issuer.certify(
            key.public_key(),
            node_name,
            lifetime=lifetime,
            now=now,
            usages=usages,
            crl_urls=domain.crl_urls if with_crl else (),
            subject=subject,
            extra_names=names,
        )
        address = None if node_name.address is None else AcpAddress(node_name.address)
        return Issued(certificate, issuer.chain, issuer.anchors, node_name, address, key)

    def issuer(self, key_id: str) -> CertificateAuthority:
        """Return the issuing CA with a key identifier. Raises :class:`AuthorityError`."""
        found = self._issuers.get(key_id)
        if found is None:
            found = CertificateAuthority.open(find_ca(self._directory, ISSUING, key_id))
            self._issuers[key_id] = found
        return found


def open_authority(directory: Path, engine: Engine, domain: Domain) -> Authority:
    """Return who signs for the registrar in ``directory``. Raises :class:`RegistrarError`."""
    if domain.authority is AuthorityKind.BUILT_IN:
        return BuiltInAuthority(directory)

    def changed(found: tuple[x509.Certificate, ...], now: datetime) -> None:
        with writing(engine) as connection:
            replace_ca_certificates(connection, found, now)

    return ExternalAuthority(load_credentials(directory / EXTERNAL_DIRECTORY), changed=changed)


def replace_ca_certificates(
    connection: Connection, found: Iterable[x509.Certificate], when: datetime
) -> None:
    """Let clients get exactly these certificates of CAs with /cacerts from now on."""
    connection.execute(sa.delete(ca_certificates))
    for certificate in dict.fromkeys(found):
        role = Role.ROOT if is_root(certificate) else Role.ISSUING
        add_ca_certificate(connection, certificate, role, when)


def find_ca(directory: Path, kind: str, key_id: str) -> Path:
    """Return where the root or issuing CA with a key identifier is in the registrar's directory.

    Raises :class:`AuthorityError` if it is not there.
    """
    for candidate in sorted((directory / CA_DIRECTORY).glob(f"{kind}*")):
        try:
            (certificate,) = load_pem((candidate / CA_CERTIFICATE_FILE).read_bytes())
        except (OSError, ValueError, CertificateError):
            continue
        if key_identifier(certificate) == key_id:
            return candidate
    raise AuthorityError(
        f"the {kind} CA with the key identifier {key_id} is not in {directory / CA_DIRECTORY}: "
        "put its directory there"
    )


def key_identifier(certificate: x509.Certificate) -> str:
    """Return the key identifier of a CA in hexadecimal: what its certificate says, else that of RFC 5280."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        found = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
    return found.digest.hex()


def issuer_identifier(certificate: x509.Certificate) -> str:
    """Return the key identifier of the issuer of ``certificate``; empty if it does not say."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except x509.ExtensionNotFound:
        return ""
    return (found.value.key_identifier or b"").hex()


def serial_text(certificate: x509.Certificate) -> str:
    """Return a certificate's serial number as the database has it."""
    return f"{certificate.serial_number:x}"


def add_ca_certificate(
    connection: Connection,
    certificate: x509.Certificate,
    role: Role,
    when: datetime,
    until: datetime | None = None,
) -> None:
    """Let clients get a certificate of a CA with /cacerts, for good or ``until`` they need it no longer."""
    der = certificate.public_bytes(Encoding.DER)
    connection.execute(
        sa.insert(ca_certificates).values(
            sha256=hashlib.sha256(der).hexdigest(),
            role=role.value,
            key_id=key_identifier(certificate),
            der=der,
            added=when,
            until=until,
        )
    )


def prepare_crl(connection: Connection, issuing: x509.Certificate, when: datetime) -> None:
    """Make the row for the CRL of an issuing CA: there from the start, whoever makes one can lock it."""
    connection.execute(
        sa.insert(crls).values(
            issuer=key_identifier(issuing),
            number=0,
            generation=-1,
            der=b"",
            this_update=when,
            next_update=when,
        )
    )


def load_ca_certificates(connection: Connection, now: datetime, *roles: Role) -> tuple[x509.Certificate, ...]:
    """Return what clients need to check each other: issuing CAs, cross certificates, trust anchors.

    With ``roles``, only those. Of each, the newest is the first.
    """
    order = list(roles or (Role.ISSUING, Role.CROSS, Role.ROOT))
    rows = connection.execute(_CA_CERTIFICATES, {"now": now, "roles": [role.value for role in order]})
    newest_first = sorted(rows, key=lambda row: row.added, reverse=True)
    in_order = sorted(newest_first, key=lambda row: order.index(Role(row.role)))
    return tuple(_load(row.der) for row in in_order)


@lru_cache(64)
def _load(der: bytes) -> x509.Certificate:
    return load_certificate(der)


def record_certificate(
    connection: Connection, certificate: x509.Certificate, device_id: int | None, when: datetime
) -> None:
    """Write down a certificate. The older ones of the device are superseded by it."""
    serial = serial_text(certificate)
    connection.execute(
        sa.insert(certificates),
        {
            "serial": serial,
            "device_id": device_id,
            "issuer": issuer_identifier(certificate),
            "not_before": certificate.not_valid_before_utc,
            "not_after": certificate.not_valid_after_utc,
            "der": certificate.public_bytes(Encoding.DER),
            "issued": when,
        },
    )
    if device_id is not None:
        connection.execute(_SUPERSEDE, {"owner": device_id, "newest": serial})
        connection.execute(_FORGET, {"owner": device_id, "long_ago": when - KEEP_EXPIRED})


@dataclass(frozen=True, slots=True)
class Crl:
    """A CRL, and until when it is to be used."""

    der: bytes
    number: int
    next_update: datetime


def current_crl(engine: Engine, authority: BuiltInAuthority, now: datetime, issuer: str | None = None) -> Crl:
    """Return the CRL of an issuing CA, by default of the one in use; made anew if it is not up to date.

    That is if something was revoked since, or if half of its lifetime is over. Raises
    :class:`RegistrarError` if there is no such CA.
    """
    with reading(engine) as connection:
        domain = load_domain(connection)
        issuer = issuer or domain.issuing
        known = _stored_crl(connection, issuer, domain, now)
    if known is not None:
        return known
    with writing(engine) as connection:
        # Locks the row: who waited for it finds what the other one has made.
        domain = load_domain(connection)
        locked = connection.execute(
            sa.update(crls).where(crls.c.issuer == issuer).values(number=crls.c.number)
        ).rowcount
        if not locked:
            raise RegistrarError(f"there is no CRL of a CA {issuer}")
        known = _stored_crl(connection, issuer, domain, now)
        return known or _make_crl(connection, authority.issuer(issuer), issuer, domain, now)


def _stored_crl(connection: Connection, issuer: str, domain: Domain, now: datetime) -> Crl | None:
    row = connection.execute(sa.select(crls).where(crls.c.issuer == issuer)).one_or_none()
    if row is None or row.generation != domain.revocations:
        return None
    if not row.this_update <= now < row.this_update + (row.next_update - row.this_update) / 2:
        return None
    return Crl(row.der, row.number, row.next_update)


def _make_crl(
    connection: Connection, issuer: CertificateAuthority, key_id: str, domain: Domain, now: datetime
) -> Crl:
    number = connection.scalar(
        sa.update(crls)
        .where(crls.c.issuer == key_id)
        .values(number=crls.c.number + 1)
        .returning(crls.c.number)
    )
    if number is None:
        raise RegistrarError(f"there is no CRL of a CA {key_id}")
    der = issuer.make_crl(_revoked(connection, key_id, now), number, lifetime=domain.crl_lifetime, now=now)
    next_update = now + domain.crl_lifetime
    connection.execute(
        sa.update(crls)
        .where(crls.c.issuer == key_id)
        .values(generation=domain.revocations, der=der, this_update=now, next_update=next_update)
    )
    return Crl(der, number, next_update)


def _revoked(connection: Connection, issuer: str, now: datetime) -> Iterable[tuple[int, datetime, None]]:
    rows = connection.execute(
        sa.select(certificates.c.serial, certificates.c.revoked_at).where(
            certificates.c.issuer == issuer,
            certificates.c.revoked_at.is_not(None),
            certificates.c.not_after > now,
        )
    )
    return [(int(serial, 16), when, None) for serial, when in rows]
