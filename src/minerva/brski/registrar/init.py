"""Makes a registrar and the first node of a domain, in one step: all of it or nothing.

::

    ca/root/, ca/issuing/   the CA (see authority.py)
    service/                the certificate and key by which devices and nodes know the registrar
    registrar.toml          the settings of the process
    registrar.db            the database, unless it is PostgreSQL

The node of this machine gets its identity into its own directory. The registrar has another key than the
node: who breaks into the process that talks to strangers does not get the node's.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from sqlalchemy.engine import Connection

from minerva.brski.registrar import addresses
from minerva.brski.registrar.authority import (
    CA_DIRECTORY,
    ISSUING,
    ROOT,
    Authority,
    BuiltInAuthority,
    Role,
    add_ca_certificate,
    key_identifier,
    prepare_crl,
    record_certificate,
)
from minerva.brski.registrar.config import (
    CONFIG_FILE,
    CRL_PORT,
    DATABASE_FILE,
    NODE_DIRECTORY,
    SERVICE_DIRECTORY,
)
from minerva.brski.registrar.database import (
    DeviceState,
    create_tables,
    open_database,
    record_event,
    writing,
)
from minerva.brski.registrar.devices import see_device, set_audit
from minerva.brski.registrar.domain import (
    CERTIFICATE_LIFETIME,
    CRL_LIFETIME,
    AuthorityKind,
    Domain,
    crl_base,
    store_domain,
)
from minerva.brski.registrar.errors import RegistrarError
from minerva.brski.registrar.external import (
    EXTERNAL_DIRECTORY,
    ExternalAuthority,
    check_url,
    is_root,
    load_credentials,
)
from minerva.brski.registrar.service_certificate import certify_service, write_service
from minerva.pki.address import AcpAddress, Scheme
from minerva.pki.allocator import new_registrar_id
from minerva.pki.ca import CertificateAuthority, Issued, check_free, write_node_directory
from minerva.pki.files import File, sync_directory, write_files
from minerva.pki.identity import ANCHORS_FILE, CERTIFICATE_FILE, CHAIN_FILE, KEY_FILE
from minerva.pki.keys import generate_key
from minerva.pki.node_name import is_domain

ROOT_LIFETIME: Final = timedelta(days=7300)
ISSUING_LIFETIME: Final = timedelta(days=3650)
OWN_NODE: Final = "registrar"
"""The serial number under which the registrar's own node stands among the devices."""


@dataclass(frozen=True, slots=True)
class External:
    """An external CA: the URL of its EST server, and the directory with our credentials for it."""

    url: str
    credentials: Path


@dataclass(frozen=True, slots=True)
class Made:
    """What was made."""

    domain: str
    directory: Path
    node_directory: Path
    address: AcpAddress
    service_address: AcpAddress
    """The node's address with V=1, on which the registrar is reached."""
    node_expires: datetime
    service_expires: datetime


def initialise(
    domain: str,
    directory: Path,
    node_directory: Path,
    *,
    now: datetime,
    database: str = "",
    scheme: Scheme = Scheme.ZONE,
    certificate_lifetime: timedelta = CERTIFICATE_LIFETIME,
    crl_lifetime: timedelta = CRL_LIFETIME,
    crl_port: int = CRL_PORT,
    external: External | None = None,
) -> Made:
    """Make the registrar of ``domain`` in ``directory``, and the identity of this machine's node.

    ``database`` is the URL of a PostgreSQL database; without, an SQLite file in ``directory`` is made.
    ``external`` is a CA to be asked for everything; without, one is made. Nothing that is there is
    overwritten, and after an error nothing new is there.

    Raises :class:`RegistrarError` or :class:`~minerva.pki.errors.PkiError`.
    """
    _check_empty(directory)
    check_free(node_directory)
    settings = Domain(
        name=domain,
        authority=AuthorityKind.BUILT_IN,
        scheme=scheme,
        certificate_lifetime=certificate_lifetime,
        crl_lifetime=crl_lifetime,
    )
    directory.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        undo.callback(shutil.rmtree, staging, ignore_errors=True)
        ca = (
            _own_ca(staging, settings, now) if external is None else _external_ca(staging, settings, external)
        )
        _write_settings(staging, database, crl_port, node_directory)
        engine = open_database(database or staging / DATABASE_FILE)
        undo.callback(engine.dispose)
        with writing(engine) as connection:
            node, service = _fill(connection, staging, ca, crl_port, now)
            if database:
                # Before the end of the transaction: what fails here takes the tables with it.
                _publish(undo, staging, directory, node_directory, node)
        if not database:
            # The file may be moved only when the last connection has put everything into it.
            engine.dispose()
            _publish(undo, staging, directory, node_directory, node)
        undo.pop_all()
        engine.dispose()
    return Made(
        ca.domain.name,
        directory,
        node_directory,
        _address(node),
        _address(node).with_v(1),
        node.certificate.not_valid_after_utc,
        service.certificate.not_valid_after_utc,
    )


@dataclass(frozen=True, slots=True)
class _Ca:
    """Who signs, the settings with it, and the certificates of its CAs."""

    authority: Authority
    domain: Domain
    certificates: tuple[x509.Certificate, ...]


def _own_ca(staging: Path, domain: Domain, now: datetime) -> _Ca:
    directory = staging / CA_DIRECTORY
    root = CertificateAuthority.create(domain.name, directory / ROOT, lifetime=ROOT_LIFETIME, now=now)
    issuing = root.issue_ca(directory / ISSUING, lifetime=ISSUING_LIFETIME, now=now)
    domain = replace(
        domain,
        name=issuing.domain,
        root=key_identifier(root.certificate),
        issuing=key_identifier(issuing.certificate),
    )
    return _Ca(BuiltInAuthority(staging), domain, (issuing.certificate, root.certificate))


def _external_ca(staging: Path, domain: Domain, external: External) -> _Ca:
    if not is_domain(domain.name):
        raise RegistrarError(f"{domain.name!a} is no ACP domain")
    domain = replace(domain, authority=AuthorityKind.EST, est_url=check_url(external.url))
    shutil.copytree(external.credentials, staging / EXTERNAL_DIRECTORY)
    authority = ExternalAuthority(load_credentials(staging / EXTERNAL_DIRECTORY))
    return _Ca(authority, domain, asyncio.run(authority.authorities(domain)))


def _fill(
    connection: Connection, staging: Path, ca: _Ca, crl_port: int, now: datetime
) -> tuple[Issued, Issued]:
    """Write the database, and the service's identity beside it; return the node's identity and that."""
    create_tables(connection)
    addresses.prepare(connection, new_registrar_id(os.urandom))
    for certificate in ca.certificates:
        role = Role.ROOT if is_root(certificate) else Role.ISSUING
        add_ca_certificate(connection, certificate, role, now)
        if key_identifier(certificate) == ca.domain.issuing:
            prepare_crl(connection, certificate, now)
    device = see_device(connection, None, OWN_NODE, when=now, state=DeviceState.ENROLLED)
    set_audit(connection, device.id, ok=True)
    name = addresses.assign(connection, device.id, ca.domain.name, ca.domain.scheme, when=now)
    service_address = addresses.acp_address(name).with_v(1)
    domain = replace(ca.domain, crl_bases=(crl_base(service_address, crl_port),))
    store_domain(connection, domain)
    node = ca.authority.certify(
        domain, generate_key("p256"), name, lifetime=domain.certificate_lifetime, now=now
    )
    record_certificate(connection, node.certificate, device.id, now)
    service = certify_service(domain, ca.authority, [service_address.address], now)
    record_certificate(connection, service.certificate, None, now)
    write_service(staging / SERVICE_DIRECTORY, service, service.anchors)
    record_event(connection, "initialised", when=now, detail={"domain": domain.name})
    return node, service


def _check_empty(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RegistrarError(f"{directory} is not empty: what is there is left as it is")


def _write_settings(staging: Path, database: str, crl_port: int, node_directory: Path) -> None:
    lines = ["# The settings of the registrar: all that is not here has its default (docs/registrar.md)."]
    if database:
        lines.append(f"database = {json.dumps(database)}")
    server = []
    if crl_port != CRL_PORT:
        server.append(f"crl_port = {crl_port}")
    if node_directory.absolute() != NODE_DIRECTORY:
        server.append(f"node_directory = {json.dumps(str(node_directory.absolute()))}")
    if server:
        lines += ["", "[server]", *server]
    # Secret, as there may be a password in the URL.
    write_files(staging, File(CONFIG_FILE, "\n".join([*lines, ""]).encode(), secret=True))


def _publish(undo: ExitStack, staging: Path, directory: Path, node_directory: Path, node: Issued) -> None:
    """Put everything into its place; ``undo`` takes it away again."""
    existed = node_directory.exists()
    write_node_directory(node_directory, node)
    undo.callback(_remove_node, node_directory, existed=existed)
    staging.chmod(0o700)
    staging.rename(directory)
    undo.callback(shutil.rmtree, directory, ignore_errors=True)
    sync_directory(directory.parent)


def _remove_node(directory: Path, *, existed: bool) -> None:
    for name in (CERTIFICATE_FILE, KEY_FILE, CHAIN_FILE, ANCHORS_FILE):
        (directory / name).unlink(missing_ok=True)
    if not existed:
        shutil.rmtree(directory, ignore_errors=True)


def _address(node: Issued) -> AcpAddress:
    if node.address is None:
        raise RegistrarError("the registrar's node has no address")
    return node.address
