"""The certificate by which devices, nodes and MASAs know the registrar.

Its key is another than that of the node on the same machine: who breaks into the process that talks to
strangers does not get the node's.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from sqlalchemy.engine import Engine

from minerva.brski.registrar.authority import (
    Authority,
    Role,
    issuer_identifier,
    load_ca_certificates,
    record_certificate,
)
from minerva.brski.registrar.config import SERVICE_DIRECTORY
from minerva.brski.registrar.database import reading, record_event, writing
from minerva.brski.registrar.domain import Domain, load_domain
from minerva.brski.registrar.errors import RegistrarError
from minerva.core.text import utc
from minerva.pki.ca import Issued
from minerva.pki.certificates import dump_pem, load_pem
from minerva.pki.errors import CertificateError
from minerva.pki.files import File, write_files
from minerva.pki.identity import ANCHORS_FILE, CERTIFICATE_FILE, CHAIN_FILE, KEY_FILE
from minerva.pki.keys import dump_private_key, generate_key
from minerva.pki.node_name import AcpNodeName, AddressField
from minerva.tls.membership import ID_KP_CMC_RA

_Address = IPv4Address | IPv6Address | IPv4Network | IPv6Network

SERVICE_LIFETIME: Final = timedelta(days=90)
"""How long the service certificate is valid; it is renewed when a third of that is left."""


def certify_service(domain: Domain, authority: Authority, on: Iterable[_Address], now: datetime) -> Issued:
    """Return a certificate and key for the service on these addresses, which is to be recorded.

    It is a member of the domain without an ACP address, so it passes rules 1 to 4 of the membership check
    (RFC 8994 section 6.2.5), and no node takes it for the other end of a secure channel.
    """
    return authority.certify(
        domain,
        generate_key("p256"),
        AcpNodeName(domain.name, address_field=AddressField.OMITTED),
        lifetime=SERVICE_LIFETIME,
        now=now,
        usages=(ID_KP_CMC_RA, ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
        names=[x509.IPAddress(address) for address in on],
        subject=f"registrar of {domain.name}"[:64],
        # A MASA has to check a CRL that is named here (RFC 8995 section 5.5.3), and cannot reach ours.
        with_crl=False,
    )


def write_service(directory: Path, issued: Issued, anchors: Iterable[x509.Certificate]) -> None:
    """Write the service's identity into ``directory``, in the files that a node's identity has."""
    if issued.private_key is None:
        raise RegistrarError("the service certificate has no key")
    directory.mkdir(mode=0o700, exist_ok=True)
    write_files(
        directory,
        File(ANCHORS_FILE, dump_pem(anchors)),
        File(CHAIN_FILE, dump_pem(issued.chain)),
        File(KEY_FILE, dump_private_key(issued.private_key), secret=True),
        File(CERTIFICATE_FILE, dump_pem((issued.certificate,))),
    )


def renew_service(
    directory: Path, engine: Engine, authority: Authority, *, now: datetime
) -> x509.Certificate | None:
    """Make a new service certificate if a third of the lifetime of the old is left, or the CA is another.

    Return it, or ``None`` if the old one is good. It has a new key, and the names of the old one. Whoever
    serves with the old one goes on with it until it is loaded again.
    Raises :class:`RegistrarError` if there is none.
    """
    service = directory / SERVICE_DIRECTORY
    try:
        (old,) = load_pem((service / CERTIFICATE_FILE).read_bytes())
        names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, CertificateError, x509.ExtensionNotFound) as error:
        raise RegistrarError(f"the service certificate in {service} cannot be read: {error}") from error
    third = (old.not_valid_after_utc - old.not_valid_before_utc) / 3
    with reading(engine) as connection:
        domain = load_domain(connection)
    of_this_ca = not domain.issuing or issuer_identifier(old) == domain.issuing
    if of_this_ca and now < old.not_valid_after_utc - third:
        return None
    on = [name.value for name in names if isinstance(name, x509.IPAddress)]
    issued = certify_service(domain, authority, on, now)
    with writing(engine) as connection:
        record_certificate(connection, issued.certificate, None, now)
        anchors = load_ca_certificates(connection, now, Role.ROOT)
        expires = issued.certificate.not_valid_after_utc
        record_event(connection, "service", when=now, detail={"expires": utc(expires)})
        write_service(service, issued, anchors)
    return issued.certificate
