"""The machines that a registrar is on: several, with one PostgreSQL database.

Each has an ordinary node of the domain, and a copy of the registrar's directory with a service certificate of
its own. The CRL is on all of them, and certificates name up to three of these places.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

from cryptography import x509
from sqlalchemy.engine import Engine

from minerva.brski.registrar.authority import (
    Role,
    load_ca_certificates,
    open_authority,
    record_certificate,
)
from minerva.brski.registrar.config import SERVICE_DIRECTORY
from minerva.brski.registrar.database import reading, record_event, writing
from minerva.brski.registrar.domain import crl_base, load_domain, store_domain
from minerva.brski.registrar.errors import RegistrarError
from minerva.brski.registrar.service_certificate import certify_service, write_service
from minerva.pki.address import AcpAddress
from minerva.pki.identity import load_identity


def join(
    directory: Path, node_directory: Path, engine: Engine, *, crl_port: int, now: datetime
) -> x509.Certificate:
    """Make a service certificate for this machine, and name it as one that has the CRL; return that.

    ``directory`` is a copy of another machine's, ``node_directory`` has the identity of this one's node.
    Raises :class:`RegistrarError` or PkiError.
    """
    address = _service_address(node_directory)
    with reading(engine) as connection:
        domain = load_domain(connection)
    issued = certify_service(domain, open_authority(directory, engine, domain), [address.address], now)
    with writing(engine) as connection:
        record_certificate(connection, issued.certificate, None, now)
        domain = load_domain(connection)
        base = crl_base(address, crl_port)
        if base not in domain.crl_bases:
            store_domain(connection, replace(domain, crl_bases=(*domain.crl_bases, base)))
        record_event(connection, "joined", when=now, detail={"address": str(address)})
        anchors = load_ca_certificates(connection, now, Role.ROOT)
        write_service(directory / SERVICE_DIRECTORY, issued, anchors)
    return issued.certificate


def leave(node_directory: Path, engine: Engine, *, crl_port: int, now: datetime) -> None:
    """Name this machine no longer in certificates to come. Raises :class:`RegistrarError`."""
    address = _service_address(node_directory)
    base = crl_base(address, crl_port)
    with writing(engine) as connection:
        domain = load_domain(connection)
        left = tuple(one for one in domain.crl_bases if one != base)
        if left == domain.crl_bases:
            raise RegistrarError(f"no certificate names {base}: this machine has not joined")
        if not left:
            raise RegistrarError("this is the only machine of the registrar: nobody else has the CRL")
        store_domain(connection, replace(domain, crl_bases=left))
        record_event(connection, "left", when=now, detail={"address": str(address)})


def _service_address(node_directory: Path) -> AcpAddress:
    """Return the address on which the registrar is reached on this machine."""
    return load_identity(node_directory).address.with_v(1)
