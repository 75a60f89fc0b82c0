"""A registrar of the tests, and a manufacturer whose devices come to it."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy.engine import Engine
from starlette.applications import Starlette

from minerva.brski.registrar import manufacturers
from minerva.brski.registrar.authority import open_authority, record_certificate
from minerva.brski.registrar.database import DeviceState, open_database, reading, writing
from minerva.brski.registrar.devices import change_state, find_device, see_device, set_audit
from minerva.brski.registrar.domain import load_domain
from minerva.brski.registrar.est import EstService, est_routes
from minerva.brski.registrar.init import Made, initialise
from minerva.brski.registrar.policy import Policy
from minerva.brski.registrar.service_certificate import certify_service
from minerva.est.csrattrs import CsrAttributes
from minerva.https.server import make_server_context, serve
from minerva.pki.certificates import dump_pem, load_pem
from minerva.pki.keys import PrivateKey, dump_private_key, generate_key
from minerva.pki.node_name import AcpNodeName
from minerva.pki.request import make_request

DOMAIN = "acp.example.com"
FOR_EVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


@dataclass
class Identity:
    """A certificate with its key, and those above it."""

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def certificates(self) -> tuple[x509.Certificate, ...]:
        """As TLS shows them."""
        return (self.certificate, *self.chain)


@dataclass
class Manufacturer:
    """Makes devices: a root, and IDevIDs under it."""

    name: str = "Maker"
    certificate: x509.Certificate = field(init=False)
    key: ec.EllipticCurvePrivateKey = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        self.certificate = self._certificate(subject, self.key, ca=True)

    def device(self, serial_number: str) -> Identity:
        """Return the IDevID of a new device."""
        key = generate_key("p256")
        subject = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, serial_number)])
        return Identity(self._certificate(subject, key, ca=False), key)

    def _certificate(self, subject: x509.Name, key: PrivateKey, *, ca: bool) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
            .not_valid_after(FOR_EVER)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )


@dataclass
class Registrar:
    """A registrar made by ``init``, with a clock that the test sets."""

    made: Made
    engine: Engine
    maker: Manufacturer = field(default_factory=Manufacturer)
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    maker_id: int = 0

    def __post_init__(self) -> None:
        with reading(self.engine) as connection:
            self.authority: Any = open_authority(self.made.directory, self.engine, load_domain(connection))
        self.est = EstService(self.engine, self.authority, clock=lambda: self.now)
        with writing(self.engine) as connection:
            known = {one.name: one for one in manufacturers.load_all(connection)}
            added = known.get(self.maker.name) or manufacturers.add(
                connection,
                self.maker.name,
                dump_pem([self.maker.certificate]),
                when=self.now,
                policy=Policy.ANY,
            )
            self.maker_id = added.id
        self.anchors = load_pem((self.made.directory / "service" / "anchors.pem").read_bytes())

    def vouchered(self, serial_number: str, *, audit: bool | None = True) -> Identity:
        """Return a device that has got its voucher."""
        device = self.maker.device(serial_number)
        with writing(self.engine) as connection:
            row = see_device(
                connection, self.maker_id, serial_number, when=self.now, idevid=device.certificate
            )
            change_state(connection, row, DeviceState.VOUCHERED)
            set_audit(connection, row.id, audit)
        return device

    def set_state(self, serial_number: str, state: DeviceState, reason: str | None = None) -> None:
        """Bring a device into a state."""
        with writing(self.engine) as connection:
            row = see_device(connection, self.maker_id, serial_number, when=self.now)
            change_state(connection, row, state, reason=reason)

    def device_id(self, serial_number: str) -> int:
        """The number of a device."""
        with reading(self.engine) as connection:
            found = find_device(connection, self.maker_id, serial_number)
        assert found is not None
        return found.id

    def name_of(self, client: Identity) -> AcpNodeName:
        """What /csrattrs tells a client."""
        name = CsrAttributes.decode(self.est.attributes(client.certificates)).node_name
        assert name is not None
        return name

    def enroll(
        self,
        client: Identity,
        *,
        renew: bool = False,
        name: AcpNodeName | None = None,
        key: PrivateKey | None = None,
        subject: x509.Name | None = None,
    ) -> Identity:
        """Enrol a client as it should be done; return what it has then."""
        key = key or generate_key("p256")
        request = make_request(key, name or self.name_of(client), subject=subject)
        certificate = asyncio.run(self.est.enroll(client.certificates, request, renew=renew, peer="fd00::1"))
        chain = tuple(one for one in self.est.ca_certificates() if one.issuer != one.subject)
        return Identity(certificate, key, chain)

    def service(self, *addresses: str) -> Identity:
        """A service certificate for other addresses than the node's."""
        with reading(self.engine) as connection:
            domain = load_domain(connection)
        on = [ip_address(address) for address in addresses]
        issued = certify_service(domain, self.authority, on, self.now)
        with writing(self.engine) as connection:
            record_certificate(connection, issued.certificate, None, self.now)
        assert issued.private_key is not None
        return Identity(issued.certificate, issued.private_key, issued.chain)

    @contextmanager
    def serving(self, address: str = "::1") -> Iterator[Server]:
        """Serve EST on the loopback interface, in a thread."""
        app = Starlette(routes=est_routes(self.est))
        with serving(app, self.service(address), address, self.anchors) as server:
            yield server


def make_registrar(directory: Path, database: str = "", **options: object) -> Registrar:
    """Make a registrar in ``directory`` as an operator does."""
    now = datetime.now(UTC)
    made = initialise(
        DOMAIN,
        directory / "registrar",
        directory / "node",
        now=now,
        database=database,
        **options,  # type: ignore[arg-type]
    )
    return Registrar(made, open_database(database or made.directory / "registrar.db"), now=now)


@dataclass
class Server:
    """A running server."""

    address: str
    port: int
    anchors: tuple[x509.Certificate, ...]

    def connect(self, client: Identity | None) -> http.client.HTTPSConnection:
        """Return a connection of a client that trusts the CA of the domain."""
        context = ssl.create_default_context(cadata=dump_pem(self.anchors).decode())
        if client is not None:
            with tempfile.NamedTemporaryFile() as file:
                file.write(dump_pem(client.certificates) + dump_private_key(client.key))
                file.flush()
                context.load_cert_chain(file.name)
        return http.client.HTTPSConnection(self.address, self.port, context=context, timeout=20)

    def ask(
        self,
        client: Identity | None,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Ask once; return status, header fields and body."""
        connection = self.connect(client)
        try:
            connection.request(method, f"/.well-known/est/{path}", body, headers or {})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()


@contextmanager
def serving(
    app: Starlette, identity: Identity, address: str, anchors: tuple[x509.Certificate, ...]
) -> Iterator[Server]:
    """Serve an application over TLS, in a thread."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family)
    port = listener.getsockname()[1]
    context = make_server_context(identity.certificate, identity.chain, identity.key, client="optional")
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def run() -> None:
        loop.run_until_complete(serve(app, [listener], context, ready=ready.set, stop=stop))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(10)
        yield Server(address, port, anchors)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()
