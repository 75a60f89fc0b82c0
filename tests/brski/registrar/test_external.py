"""An external CA: everything the registrar needs comes from it, over EST."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from minerva.brski.registrar.database import certificates, check_schema, open_database, reading
from minerva.brski.registrar.domain import AuthorityKind, load_domain
from minerva.brski.registrar.errors import Refusal, RegistrarError
from minerva.brski.registrar.external import PAUSE, check_url
from minerva.brski.registrar.identity import load_service
from minerva.brski.registrar.init import External, initialise
from minerva.brski.registrar.rollover import roll_over
from minerva.brski.registrar.service_certificate import renew_service
from minerva.est.bodies import certs_only, decode_base64, encode_base64
from minerva.https.server import client_chain
from minerva.pki.ca import CertificateAuthority
from minerva.pki.certificates import dump_pem
from minerva.pki.errors import PkiError
from minerva.pki.identity import check_own, load_identity
from minerva.pki.keys import dump_private_key, generate_key
from minerva.pki.node_name import AcpNodeName
from minerva.pki.path import validate_path
from minerva.pki.request import CertificateRequest, load_request, make_request
from minerva.tls.membership import ID_KP_CMC_RA
from tests.brski.registrar.world import DOMAIN, Identity, Registrar, serving

PATH = "/.well-known/est"


@dataclass
class OtherCa:
    """Somebody else's CA with an EST server, which signs for the one client that it knows."""

    directory: Path
    answer: Callable[[CertificateRequest, x509.Certificate], Response] | None = None
    name: AcpNodeName | None = None
    usages: bool = True
    asked: list[CertificateRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        root = CertificateAuthority.create("ca.example", self.directory / "root")
        self.root = root.certificate
        self.issuing = root.issue_ca(self.directory / "issuing")
        self.client = self.identity("the registrar")
        self.server = self.identity("est", x509.IPAddress(ip_address("::1")))

    def identity(self, subject: str, *names: x509.GeneralName) -> Identity:
        key = generate_key("p256")
        certificate = self.issuing.certify(
            key.public_key(), None, lifetime=timedelta(days=30), subject=subject, extra_names=names
        )
        return Identity(certificate, key, self.issuing.chain)

    def write_credentials(self, directory: Path) -> Path:
        directory.mkdir()
        (directory / "cert.pem").write_bytes(dump_pem([self.client.certificate]))
        (directory / "chain.pem").write_bytes(dump_pem(self.client.chain))
        (directory / "key.pem").write_bytes(dump_private_key(self.client.key))
        (directory / "anchors.pem").write_bytes(dump_pem([self.root]))
        return directory

    async def cacerts(self, _: Request) -> Response:
        return Response(encode_base64(certs_only([*self.issuing.chain, self.root]), wrapped=True))

    async def simpleenroll(self, request: Request) -> Response:
        if client_chain(request.scope)[:1] != (self.client.certificate,):
            return Response("who are you?", 401)
        asked = load_request(decode_base64(await request.body()))
        self.asked.append(asked)
        usages: list[x509.ObjectIdentifier] = []
        for extension in asked.extensions:
            if self.usages and isinstance(extension.value, x509.ExtendedKeyUsage):
                usages = list(extension.value)
        certificate = self.issuing.certify(
            asked.public_key,
            self.name or asked.node_name,
            lifetime=timedelta(days=7),
            usages=usages,
            subject=asked.subject,
            extra_names=asked.other_names,
        )
        if self.answer is not None:
            return self.answer(asked, certificate)
        return Response(encode_base64(certs_only([certificate]), wrapped=True))

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve; yield the URL."""
        app = Starlette(
            routes=[
                Route(f"{PATH}/cacerts", self.cacerts),
                Route(f"{PATH}/simpleenroll", self.simpleenroll, methods=["POST"]),
            ]
        )
        with serving(app, self.server, "::1", (self.root,)) as server:
            yield f"https://[::1]:{server.port}"


@pytest.fixture
def ca(tmp_path: Path) -> OtherCa:
    return OtherCa(tmp_path / "other")


@pytest.fixture
def registrar(ca: OtherCa, tmp_path: Path) -> Iterator[Registrar]:
    with ca.running() as url:
        made = initialise(
            DOMAIN,
            tmp_path / "registrar",
            tmp_path / "node",
            now=datetime.now(UTC),
            external=External(url, ca.write_credentials(tmp_path / "credentials")),
        )
        registrar = Registrar(made, open_database(made.directory / "registrar.db"))
        yield registrar
        registrar.engine.dispose()


def test_what_init_makes(ca: OtherCa, registrar: Registrar) -> None:
    check_schema(registrar.engine)
    node = load_identity(registrar.made.node_directory)
    check_own(node, registrar.now)
    assert node.anchors == (ca.root,)
    assert node.address == registrar.made.address
    assert node.node_name.domain == DOMAIN
    service = load_service(registrar.made.directory / "service")
    assert service.problem(registrar.now) is None
    assert service.anchors == (ca.root,)
    usages = service.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ID_KP_CMC_RA, ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not (registrar.made.directory / "ca").exists()
    with reading(registrar.engine) as connection:
        domain = load_domain(connection)
    assert domain.authority is AuthorityKind.EST
    assert domain.crl_urls == ()
    assert registrar.authority.problem(domain, registrar.now) is None


def test_a_device_enrols_and_renews(ca: OtherCa, registrar: Registrar) -> None:
    assert set(registrar.est.ca_certificates()) == {*ca.issuing.chain, ca.root}
    device = registrar.vouchered("SN-1")
    enrolled = registrar.enroll(device)
    assert AcpNodeName.of(enrolled.certificate) == registrar.name_of(device)
    validate_path(enrolled.certificates, (ca.root,), registrar.now)
    renewed = registrar.enroll(enrolled, renew=True)
    assert AcpNodeName.of(renewed.certificate) == AcpNodeName.of(enrolled.certificate)
    assert len(ca.asked) == 4
    with reading(registrar.engine) as connection:
        serials = connection.scalars(sa.select(certificates.c.serial)).all()
    assert {f"{one.certificate.serial_number:x}" for one in (enrolled, renewed)} < set(serials)


def refused(registrar: Registrar, device: Identity) -> Refusal:
    request = make_request(generate_key("p256"), registrar.name_of(device))
    with pytest.raises(Refusal) as caught:
        asyncio.run(registrar.est.enroll(device.certificates, request, renew=False))
    return caught.value


def test_what_the_ca_may_do_wrong(ca: OtherCa, registrar: Registrar) -> None:
    other = OtherCa(ca.directory / "stranger")
    device = registrar.vouchered("SN-1")

    def of_a_stranger(asked: CertificateRequest, _: x509.Certificate) -> Response:
        forged = other.issuing.certify(asked.public_key, asked.node_name, lifetime=timedelta(days=1))
        return Response(encode_base64(certs_only([forged])))

    for answer, why in (
        (
            lambda _asked, _made: Response("no more paper", 503),
            "with 503: no more paper",
        ),
        (lambda _asked, _made: Response("*"), "neither base64 nor DER"),
        (
            lambda _asked, _made: Response(encode_base64(certs_only([ca.root]))),
            "no certificate for the key in the request",
        ),
        (of_a_stranger, "no path to its trust anchors"),
    ):
        ca.answer = answer
        refusal = refused(registrar, device)
        assert (refusal.status, refusal.retry_after) == (503, 10)
        assert why in (refusal.detail or "")
        assert why not in refusal.reason
        # For a while it counts as one that does not work, and is not asked.
        asked = len(ca.asked)
        assert why in refused(registrar, device).reason
        assert len(ca.asked) == asked
        registrar.now += PAUSE
    ca.answer = None
    registrar.enroll(device)


def test_a_name_that_the_ca_changed(ca: OtherCa, registrar: Registrar) -> None:
    ca.name = AcpNodeName.parse("fd739fc23c3400000000000000000001@acp.example.com")
    assert "not for" in (refused(registrar, registrar.vouchered("SN-1")).detail or "")


def test_a_ca_that_has_not_decided(ca: OtherCa, registrar: Registrar) -> None:
    """covers: E-5"""
    device = registrar.vouchered("SN-1")
    ca.answer = lambda _asked, _made: Response(status_code=202, headers={"Retry-After": "17"})
    refusal = refused(registrar, device)
    assert (refusal.status, refusal.retry_after) == (202, 17)
    ca.answer = None
    registrar.enroll(device)


def test_a_request_that_the_ca_refuses(ca: OtherCa, registrar: Registrar) -> None:
    """One device cannot make the others wait."""
    device = registrar.vouchered("SN-1")
    ca.answer = lambda _asked, _made: Response("not this one", 400)
    refusal = refused(registrar, device)
    assert (refusal.status, refusal.reason) == (403, "the CA refuses this request")
    assert refusal.detail == "the external CA answered 400: not this one"
    ca.answer = None
    registrar.enroll(registrar.vouchered("SN-2"))


def test_a_new_ca_behind_the_external_one(ca: OtherCa, registrar: Registrar) -> None:
    device = registrar.vouchered("SN-1")
    registrar.enroll(device)
    ca.issuing = CertificateAuthority.open(ca.directory / "root").issue_ca(ca.directory / "issuing-2")
    enrolled = registrar.enroll(device)
    assert set(registrar.est.ca_certificates()) == {*ca.issuing.chain, ca.root}
    validate_path(enrolled.certificates, (ca.root,), registrar.now)


def test_the_service_certificate_comes_from_it_too(ca: OtherCa, registrar: Registrar) -> None:
    directory = registrar.made.directory
    assert renew_service(directory, registrar.engine, registrar.authority, now=registrar.now) is None
    late = registrar.now + timedelta(days=5)
    new = renew_service(directory, registrar.engine, registrar.authority, now=late)
    assert new == load_service(directory / "service").certificate
    assert len(ca.asked) == 3


def test_a_ca_that_leaves_out_what_a_registrar_needs(ca: OtherCa, tmp_path: Path) -> None:
    ca.usages = False
    credentials = ca.write_credentials(tmp_path / "credentials")
    with (
        ca.running() as url,
        pytest.raises(RegistrarError, match=r"left out what a registrar needs: 1\.3\.6"),
    ):
        initialise(
            DOMAIN,
            tmp_path / "registrar",
            tmp_path / "node",
            now=datetime.now(UTC),
            external=External(url, credentials),
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["credentials", "other"]


def test_credentials_of_an_expired_certificate(registrar: Registrar) -> None:
    with reading(registrar.engine) as connection:
        domain = load_domain(connection)
    problem = registrar.authority.problem(domain, registrar.now + timedelta(days=31))
    assert "expired on" in problem


def test_what_there_is_not(registrar: Registrar) -> None:
    with pytest.raises(RegistrarError, match="is not for the registrar to roll over"):
        roll_over(registrar.made.directory, registrar.engine, now=registrar.now)


@pytest.mark.parametrize(
    "url", ["", "http://ca.example", "ca.example", "https://", "https://ca:x/", "https://["]
)
def test_urls(url: str) -> None:
    with pytest.raises(RegistrarError, match="is given by a URL such as"):
        check_url(url)


def test_no_credentials(tmp_path: Path) -> None:
    (tmp_path / "credentials").mkdir()
    with pytest.raises((RegistrarError, PkiError), match=r"cert\.pem: No such file"):
        initialise(
            DOMAIN,
            tmp_path / "registrar",
            tmp_path / "node",
            now=datetime.now(UTC),
            external=External("https://[::1]:1", tmp_path / "credentials"),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["credentials"]
