"""Puts a new CA into the place of the old one, without an outage.

From one transaction on, all processes of the registrar sign with the new issuing CA. Certificates of the old
one stay good until they expire; for as long, clients are told of both with /cacerts, and the old CA's CRL is
kept up. With a new root, both roots are trust anchors meanwhile, and certificates of each by the other lead
from the ones to the others (RFC 4210 section 4.4): nodes that have renewed, and nodes that have not, keep
accepting each other.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from cryptography import x509
from sqlalchemy.engine import Connection, Engine

from minerva.brski.registrar.authority import (
    CA_DIRECTORY,
    ISSUING,
    ROOT,
    BuiltInAuthority,
    Role,
    add_ca_certificate,
    find_ca,
    key_identifier,
    prepare_crl,
)
from minerva.brski.registrar.database import ca_certificates, reading, record_event, writing
from minerva.brski.registrar.domain import AuthorityKind, Domain, load_domain, store_domain
from minerva.brski.registrar.errors import RegistrarError
from minerva.brski.registrar.init import ISSUING_LIFETIME, ROOT_LIFETIME
from minerva.brski.registrar.service_certificate import renew_service
from minerva.core.text import utc
from minerva.pki.ca import CertificateAuthority
from minerva.pki.errors import AuthorityError


@dataclass(frozen=True, slots=True)
class RolledOver:
    """What a rollover made. ``root`` is there if it made a new one; the old CA is told of ``until`` then."""

    issuing: Path
    root: Path | None
    until: datetime


def roll_over(
    directory: Path,
    engine: Engine,
    *,
    now: datetime,
    new_root: bool = False,
    keep: timedelta | None = None,
) -> RolledOver:
    """Make a new issuing CA, with ``new_root`` under a new root, and sign with it from now on.

    ``keep`` is how long clients are told of the old one: by default two lifetimes of a certificate, so that
    none is left that needs it. The key of the root in use has to be in its directory for this; a new root's
    may be taken away afterwards. The registrar's own certificate is made anew, too.

    Raises :class:`RegistrarError`, or AuthorityError if the root's key is not there.
    """
    with reading(engine) as connection:
        domain = load_domain(connection)
    if domain.authority is not AuthorityKind.BUILT_IN:
        raise RegistrarError("the CA is an external one: it is not for the registrar to roll over")
    until = now + (2 * domain.certificate_lifetime if keep is None else keep)
    old_root = _open_root(directory, domain)
    ca = directory / CA_DIRECTORY
    with ExitStack() as undo:
        root = old_root
        root_path = None
        if new_root:
            root_path = _free(undo, ca, ROOT)
            root = CertificateAuthority.create(
                domain.name, root_path, lifetime=ROOT_LIFETIME, predecessor=old_root, now=now
            )
        issuing_path = _free(undo, ca, ISSUING)
        issuing = root.issue_ca(issuing_path, lifetime=ISSUING_LIFETIME, now=now)
        crossing = _crossing(old_root, root, now) if new_root else ()
        with writing(engine) as connection:
            _change_over(connection, domain, root, issuing, crossing, until, now)
        undo.pop_all()
    renew_service(directory, engine, BuiltInAuthority(directory), now=now)
    return RolledOver(issuing_path, root_path, until)


def _change_over(
    connection: Connection,
    seen: Domain,
    root: CertificateAuthority,
    issuing: CertificateAuthority,
    crossing: tuple[x509.Certificate, ...],
    until: datetime,
    now: datetime,
) -> None:
    domain = load_domain(connection)
    if (domain.root, domain.issuing) != (seen.root, seen.issuing):
        raise RegistrarError("another rollover was faster; this one has changed nothing")
    old = [domain.issuing]
    if crossing:
        old.append(domain.root)
        add_ca_certificate(connection, root.certificate, Role.ROOT, now)
        for certificate in crossing:
            add_ca_certificate(connection, certificate, Role.CROSS, now, until)
    add_ca_certificate(connection, issuing.certificate, Role.ISSUING, now)
    prepare_crl(connection, issuing.certificate, now)
    connection.execute(
        sa.update(ca_certificates)
        .where(
            ca_certificates.c.key_id.in_(old),
            ca_certificates.c.role != Role.CROSS.value,
            ca_certificates.c.until.is_(None),
        )
        .values(until=until)
    )
    store_domain(
        connection,
        replace(domain, root=key_identifier(root.certificate), issuing=key_identifier(issuing.certificate)),
    )
    record_event(
        connection,
        "rollover",
        when=now,
        detail={
            "issuing": key_identifier(issuing.certificate),
            "root": key_identifier(root.certificate),
            "until": utc(until),
        },
    )


def _crossing(
    old: CertificateAuthority, new: CertificateAuthority, now: datetime
) -> tuple[x509.Certificate, ...]:
    """Return the certificates of the new root's key by the old one, and of the old one's by the new."""
    return new.chain[0], new.cross_sign(old.certificate, now=now)


def _open_root(directory: Path, domain: Domain) -> CertificateAuthority:
    path = find_ca(directory, ROOT, domain.root)
    try:
        return CertificateAuthority.open(path)
    except AuthorityError as error:
        raise AuthorityError(
            f"a rollover needs the root's key: put it into {path} for as long ({error})"
        ) from error


def _free(undo: ExitStack, ca: Path, kind: str) -> Path:
    """Return a name for a new CA; what is made there goes away if ``undo`` says so."""
    number = 2
    while (ca / f"{kind}-{number}").exists():
        number += 1
    path = ca / f"{kind}-{number}"
    undo.callback(shutil.rmtree, path, ignore_errors=True)
    return path
