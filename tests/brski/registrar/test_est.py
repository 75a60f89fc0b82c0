"""EST: who gets what, and who gets nothing."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from minerva.brski.registrar import est
from minerva.brski.registrar.authority import BuiltInAuthority
from minerva.brski.registrar.database import (
    DeviceState,
    addresses,
    certificates,
    devices,
    events,
    open_database,
    reading,
    set_state,
    writing,
)
from minerva.brski.registrar.devices import get_device, revoke_device, see_device, set_audit
from minerva.brski.registrar.errors import Refusal
from minerva.est.bodies import encode_base64, load_certs_only
from minerva.est.csrattrs import CsrAttributes
from minerva.pki.errors import AuthorityError, PathError
from minerva.pki.identity import Identity as NodeIdentity
from minerva.pki.identity import check_own
from minerva.pki.keys import generate_key
from minerva.pki.node_name import AcpNodeName
from minerva.pki.path import validate_path
from minerva.pki.request import RequestedExtension, make_request
from tests.brski.postgresql import Cluster
from tests.brski.registrar.world import Identity, Manufacturer, Registrar, Server, make_registrar

PKCS10 = {"Content-Type": "application/pkcs10"}


@pytest.fixture
def registrar(tmp_path: Path) -> Iterator[Registrar]:
    made = make_registrar(tmp_path)
    yield made
    made.engine.dispose()


@pytest.fixture
def server(registrar: Registrar) -> Iterator[Server]:
    with registrar.serving() as running:
        yield running


def rows(registrar: Registrar) -> tuple[list[object], ...]:
    """All that a refused request must not change."""
    with reading(registrar.engine) as connection:
        return tuple(
            list(connection.execute(sa.select(table)).all()) for table in (devices, addresses, certificates)
        )


def refused(registrar: Registrar, client: Identity, body: bytes, *, renew: bool = False) -> Refusal:
    """Return why a request is refused; nothing may have been written."""
    before = rows(registrar)
    with pytest.raises(Refusal) as caught:
        asyncio.run(registrar.est.enroll(client.certificates, body, renew=renew, peer="fd00::1"))
    assert rows(registrar) == before
    return caught.value


def no_attributes(registrar: Registrar, client: Identity) -> Refusal:
    before = rows(registrar)
    with pytest.raises(Refusal) as caught:
        registrar.est.attributes(client.certificates)
    assert rows(registrar) == before
    return caught.value


# Enrolment


def test_a_device_with_a_voucher_enrols(registrar: Registrar) -> None:
    """covers: R-70, R-71, E-5, 6.2.5-1"""
    device = registrar.vouchered("SN-1")
    enrolled = registrar.enroll(device)
    name = registrar.name_of(device)
    assert AcpNodeName.of(enrolled.certificate) == name
    assert enrolled.certificate.public_key() == enrolled.key.public_key()
    # What /cacerts says is all that a node needs besides.
    anchors = tuple(one for one in registrar.est.ca_certificates() if one.issuer == one.subject)
    check_own(NodeIdentity.from_certificates(enrolled.certificate, enrolled.chain, anchors), registrar.now)
    with reading(registrar.engine) as connection:
        found = get_device(connection, registrar.device_id("SN-1"))
    assert found is not None
    assert (found.state, found.peer) == (DeviceState.ENROLLED, "fd00::1")


def test_the_same_name_every_time(registrar: Registrar) -> None:
    """covers: R-71, 6.11.7.4-1"""
    device = registrar.vouchered("SN-1")
    other = registrar.vouchered("SN-2")
    first = registrar.est.attributes(device.certificates)
    assert registrar.est.attributes(device.certificates) == first
    assert registrar.est.attributes(other.certificates) != first
    enrolled = registrar.enroll(device)
    assert registrar.est.attributes(device.certificates) == first
    assert registrar.est.attributes(enrolled.certificates) == first
    # Also after it was reset and asked for a voucher again.
    registrar.set_state("SN-1", DeviceState.VOUCHERED)
    assert registrar.est.attributes(device.certificates) == first


def test_enrolling_again_supersedes(registrar: Registrar) -> None:
    device = registrar.vouchered("SN-1")
    one, two = registrar.enroll(device), registrar.enroll(device)
    with reading(registrar.engine) as connection:
        found = connection.execute(
            sa.select(certificates.c.serial, certificates.c.superseded_by)
            .where(certificates.c.device_id == registrar.device_id("SN-1"))
            .order_by(certificates.c.superseded_by.is_(None))
        ).all()
    serials = [f"{identity.certificate.serial_number:x}" for identity in (one, two)]
    assert [tuple(row) for row in found] == [(serials[0], serials[1]), (serials[1], None)]
    assert AcpNodeName.of(one.certificate) == AcpNodeName.of(two.certificate)


def test_an_old_certificate_is_of_no_use_after_its_end(registrar: Registrar) -> None:
    """Its key may be on a disk that was thrown away. The latest one brings a node back at any time."""
    device = registrar.vouchered("SN-1")
    found = registrar.enroll(device)
    registrar.now += timedelta(days=12)
    latest = registrar.enroll(found, renew=True)
    registrar.now += timedelta(days=12)
    latest = registrar.enroll(found, renew=True)  # the answer may have got lost
    registrar.now += timedelta(days=12)
    body = encode_base64(make_request(generate_key("p256"), registrar.name_of(device)))
    assert "has got newer ones" in refused(registrar, found, body, renew=True).reason
    assert no_attributes(registrar, found).status == 403
    registrar.now += timedelta(days=300)
    registrar.enroll(latest, renew=True)
    registrar.enroll(device)


def test_a_device_gets_so_many_certificates(registrar: Registrar, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that are valid are in the CRL once it is revoked: a member could make one that nobody can fetch."""
    monkeypatch.setattr(est, "MAX_CERTIFICATES", 3)
    device, other = registrar.vouchered("SN-1"), registrar.vouchered("SN-2")
    enrolled = [registrar.enroll(device) for _ in range(3)][-1]
    body = encode_base64(make_request(generate_key("p256"), registrar.name_of(device)))
    for client, renew in ((device, False), (enrolled, True)):
        refusal = refused(registrar, client, body, renew=renew)
        assert (refusal.status, refusal.retry_after) == (503, est.CERTIFICATES_RETRY_AFTER)
        assert "has got 3 certificates lately" in refusal.reason
    registrar.enroll(other)
    registrar.now += timedelta(days=1, seconds=1)
    registrar.enroll(device)


def test_certificates_of_a_moment_may_be_had_more_often(
    registrar: Registrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(est, "MAX_CERTIFICATES", 3)
    with writing(registrar.engine) as connection:
        set_state(connection, "certificate_lifetime", "60")
    device = registrar.vouchered("SN-1")
    for _ in range(6):
        registrar.enroll(device)
        registrar.now += timedelta(seconds=25)


def test_schemes_and_routing_subdomains_of_single_devices(registrar: Registrar) -> None:
    """covers: 6.11.7.3-2"""
    device = registrar.vouchered("SN-1")
    with writing(registrar.engine) as connection:
        connection.execute(
            sa.update(devices)
            .where(devices.c.id == registrar.device_id("SN-1"))
            .values(scheme="vlong8", rsub="area51")
        )
    name = registrar.name_of(device)
    assert name.routing_subdomain == "area51.acp.example.com"
    assert AcpNodeName.of(registrar.enroll(device).certificate) == name


@pytest.mark.parametrize(
    ("state", "audit", "status", "why"),
    [
        (DeviceState.WAITING, None, 403, "got no voucher here yet"),
        (DeviceState.DENIED, True, 403, "is denied: stolen"),
        (DeviceState.VOUCHERED, False, 403, "failed the check of its history"),
        (DeviceState.VOUCHERED, None, 503, "has not been checked yet"),
    ],
)
def test_who_gets_nothing(
    registrar: Registrar, state: DeviceState, audit: bool | None, status: int, why: str
) -> None:
    """covers: R-62, R-73"""
    device = registrar.maker.device("SN-1")
    with writing(registrar.engine) as connection:
        row = see_device(
            connection,
            registrar.maker_id,
            "SN-1",
            when=registrar.now,
            state=state,
            idevid=device.certificate,
        )
        set_audit(connection, row.id, audit, reason="stolen" if state is DeviceState.DENIED else None)
    for refusal in (
        no_attributes(registrar, device),
        refused(registrar, device, make_request(generate_key("p256"), None)),
    ):
        assert refusal.status == status
        assert why in refusal.reason
        assert refusal.device_id == row.id


def test_a_device_that_never_came(registrar: Registrar) -> None:
    """covers: R-73"""
    refusal = no_attributes(registrar, registrar.maker.device("SN-1"))
    assert (refusal.status, refusal.reason) == (403, "the device SN-1 got no voucher here; ask for one first")


def test_an_unknown_manufacturer(registrar: Registrar) -> None:
    """covers: R-10"""
    registrar.vouchered("SN-1")
    for name in ("Other", "Maker"):
        refusal = no_attributes(registrar, Manufacturer(name).device("SN-1"))
        assert refusal.status == 403
        assert "not a certificate of this domain, and the IDevID is" in refusal.reason


def test_another_idevid_of_the_same_serial_number(registrar: Registrar) -> None:
    registrar.vouchered("SN-1")
    refusal = no_attributes(registrar, registrar.maker.device("SN-1"))
    assert "got no voucher here with this IDevID" in refusal.reason


def test_a_device_that_the_operator_approved(registrar: Registrar) -> None:
    """A device without a voucher: one that does not know BRSKI, or that somebody stands beside."""
    with writing(registrar.engine) as connection:
        see_device(connection, registrar.maker_id, "SN-1", when=registrar.now, state=DeviceState.APPROVED)
    device = registrar.maker.device("SN-1")
    enrolled = registrar.enroll(device)
    assert AcpNodeName.of(enrolled.certificate) == registrar.name_of(enrolled)


def test_without_a_certificate(registrar: Registrar) -> None:
    """covers: E-2"""
    with pytest.raises(Refusal) as caught:
        registrar.est.attributes(())
    assert caught.value.status == 401
    assert registrar.est.ca_certificates()


# Requests


def test_a_name_before_it_was_told(registrar: Registrar) -> None:
    device = registrar.vouchered("SN-1")
    refusal = refused(registrar, device, make_request(generate_key("p256"), None))
    assert (refusal.status, refusal.reason) == (
        400,
        "ask /csrattrs first for the name that the request has to hold",
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fd739fc23c3400000000000000000001@acp.example.com", "but its sender is"),
        ("@acp.example.com", "but its sender is"),
        (None, "has no acp-node-name"),
    ],
)
def test_another_name(registrar: Registrar, name: str | None, why: str) -> None:
    """covers: R-72"""
    device = registrar.vouchered("SN-1")
    registrar.name_of(device)
    asked = None if name is None else AcpNodeName.parse(name)
    refusal = refused(registrar, device, make_request(generate_key("p256"), asked))
    assert refusal.status == 400
    assert why in refusal.reason


def test_the_name_of_another_device(registrar: Registrar) -> None:
    """covers: R-72"""
    device, other = registrar.vouchered("SN-1"), registrar.vouchered("SN-2")
    registrar.name_of(device)
    refusal = refused(registrar, device, make_request(generate_key("p256"), registrar.name_of(other)))
    assert "but its sender is" in refusal.reason


def test_a_signature_by_another_key(registrar: Registrar) -> None:
    """covers: R-72"""
    device = registrar.vouchered("SN-1")
    request = bytearray(make_request(generate_key("p256"), registrar.name_of(device)))
    request[-1] ^= 1
    refusal = refused(registrar, device, bytes(request))
    assert refusal.status == 400
    assert "not signed with the private key" in refusal.reason


@pytest.mark.parametrize("body", [b"", b"\n", b"x", b"0\x80", b"MAA=", b"MA" * 5000, b"-----BEGIN"])
def test_bodies_that_are_no_request(registrar: Registrar, body: bytes) -> None:
    assert refused(registrar, registrar.vouchered("SN-1"), body).status == 400


GRANTED = [
    x509.BasicConstraints(ca=False, path_length=None),
    x509.SubjectKeyIdentifier(b"1" * 20),
    x509.KeyUsage(True, False, True, False, False, False, False, False, False),
]
NOT_GRANTED = {
    "basicConstraints": x509.BasicConstraints(ca=True, path_length=None),
    "keyUsage": x509.KeyUsage(True, False, False, False, False, True, False, False, False),
    "extendedKeyUsage": x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")]),
    "nameConstraints": x509.NameConstraints([x509.DNSName("example.com")], None),
    "1.2.3.4": x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),
}


def asking_for(extension: x509.ExtensionType) -> RequestedExtension:
    return RequestedExtension(extension.oid, False, extension.public_bytes())


@pytest.mark.parametrize("extension", GRANTED, ids=lambda extension: type(extension).__name__)
def test_extensions_that_do_no_harm(registrar: Registrar, extension: x509.ExtensionType) -> None:
    device = registrar.vouchered("SN-1")
    request = make_request(
        generate_key("p256"), registrar.name_of(device), extensions=[asking_for(extension)]
    )
    issued = asyncio.run(registrar.est.enroll(device.certificates, request, renew=False))
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize("what", NOT_GRANTED)
def test_extensions_that_a_device_does_not_get(registrar: Registrar, what: str) -> None:
    """covers: R-72"""
    device = registrar.vouchered("SN-1")
    request = make_request(
        generate_key("p256"), registrar.name_of(device), extensions=[asking_for(NOT_GRANTED[what])]
    )
    refusal = refused(registrar, device, request)
    assert refusal.reason == f"the request asks for {what}, which a device's certificate does not get"


def test_a_binding_that_was_not_asked_for(registrar: Registrar) -> None:
    """covers: E-9"""
    device = registrar.vouchered("SN-1")
    key = generate_key("p256")
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([registrar.name_of(device).other_name()]), False)
        .add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, b"binding")
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    assert "challengePassword" in refused(registrar, device, request).reason


# Renewal


def test_renewal_with_a_new_key(registrar: Registrar) -> None:
    """covers: R-70, E-6, 6.11.7.4-1"""
    device = registrar.vouchered("SN-1")
    old = registrar.enroll(device)
    registrar.now += timedelta(days=15)
    new = registrar.enroll(old, renew=True, subject=old.certificate.subject)
    assert AcpNodeName.of(new.certificate) == AcpNodeName.of(old.certificate)
    assert new.certificate.subject == old.certificate.subject
    assert new.certificate.public_key() != old.certificate.public_key()
    assert new.certificate.not_valid_after_utc == (registrar.now + timedelta(days=30)).replace(microsecond=0)


def test_renewal_with_the_old_key(registrar: Registrar) -> None:
    """covers: E-6"""
    old = registrar.enroll(registrar.vouchered("SN-1"))
    new = registrar.enroll(old, renew=True, key=old.key)
    assert new.certificate.public_key() == old.certificate.public_key()
    assert new.certificate.serial_number != old.certificate.serial_number


def test_an_answer_that_was_lost(registrar: Registrar) -> None:
    """The node still has the old certificate, which the one that it never got has superseded."""
    old = registrar.enroll(registrar.vouchered("SN-1"))
    registrar.enroll(old, renew=True)
    registrar.enroll(old, renew=True)


def test_an_expired_certificate_of_our_own(registrar: Registrar) -> None:
    """covers: R-12, 6.2.5.5-2"""
    device = registrar.vouchered("SN-1")
    old = registrar.enroll(device)
    registrar.now += timedelta(days=300)
    with pytest.raises(PathError):
        validate_path(old.certificates, registrar.anchors, registrar.now)
    new = registrar.enroll(old, renew=True)
    assert AcpNodeName.of(new.certificate) == AcpNodeName.of(old.certificate)
    validate_path(new.certificates, registrar.anchors, registrar.now)


def test_old_certificates_are_forgotten_but_not_the_newest(registrar: Registrar) -> None:
    node = registrar.enroll(registrar.vouchered("SN-1"))
    for _ in range(10):
        registrar.now += timedelta(days=15)
        node = registrar.enroll(node, renew=True)
    with reading(registrar.engine) as connection:
        count = sa.select(sa.func.count()).select_from(certificates)
        kept = connection.scalar(count.where(certificates.c.device_id == registrar.device_id("SN-1")))
    assert kept in (4, 5)
    registrar.now += timedelta(days=1000)
    registrar.enroll(node, renew=True)


def test_another_subject_in_a_renewal(registrar: Registrar) -> None:
    """covers: E-6"""
    old = registrar.enroll(registrar.vouchered("SN-1"))
    other = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "other")])
    request = make_request(generate_key("p256"), registrar.name_of(old), subject=other)
    assert "subject is not that" in refused(registrar, old, request, renew=True).reason


def test_another_name_in_a_renewal(registrar: Registrar) -> None:
    """covers: E-6"""
    old = registrar.enroll(registrar.vouchered("SN-1"))
    other = registrar.name_of(registrar.vouchered("SN-2"))
    request = make_request(generate_key("p256"), other, subject=old.certificate.subject)
    assert "but its sender is" in refused(registrar, old, request, renew=True).reason


def test_an_idevid_enrols_whatever_the_operation_is_called(registrar: Registrar) -> None:
    """strongSwan's client takes simplereenroll whenever it has a certificate."""
    device = registrar.vouchered("SN-1")
    one, two = registrar.enroll(device, renew=True), registrar.enroll(device, renew=True)
    assert AcpNodeName.of(one.certificate) == AcpNodeName.of(two.certificate)


def test_a_revoked_device(registrar: Registrar) -> None:
    """covers: R-73, R-12"""
    device = registrar.vouchered("SN-1")
    old = registrar.enroll(device)
    with writing(registrar.engine) as connection:
        row = get_device(connection, registrar.device_id("SN-1"), lock=True)
        assert row is not None
        assert revoke_device(connection, row, reason="stolen", when=registrar.now) == 1
    for when in (registrar.now, registrar.now + timedelta(days=300)):
        registrar.now = when
        assert no_attributes(registrar, old).reason == "this certificate has been revoked"
        assert "is revoked: stolen" in no_attributes(registrar, device).reason
        request = make_request(generate_key("p256"), AcpNodeName.of(old.certificate))
        assert refused(registrar, old, request, renew=True).status == 403
        assert refused(registrar, device, request).status == 403
    # If the operator takes it back, the device comes with its IDevID; the old certificate stays revoked.
    registrar.set_state("SN-1", DeviceState.APPROVED)
    assert AcpNodeName.of(registrar.enroll(device).certificate) == AcpNodeName.of(old.certificate)
    assert no_attributes(registrar, old).reason == "this certificate has been revoked"


def test_a_certificate_of_the_same_number_by_another_ca(registrar: Registrar) -> None:
    old = registrar.enroll(registrar.vouchered("SN-1"))
    key = generate_key("p256")
    forged = (
        x509.CertificateBuilder()
        .subject_name(old.certificate.subject)
        .issuer_name(old.certificate.issuer)
        .public_key(key.public_key())
        .serial_number(old.certificate.serial_number)
        .not_valid_before(old.certificate.not_valid_before_utc)
        .not_valid_after(old.certificate.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName([AcpNodeName.of(old.certificate).other_name()]), False)
        .sign(generate_key("p256"), hashes.SHA256())
    )
    refusal = no_attributes(registrar, Identity(forged, key))
    assert refusal.status == 403
    assert "not a certificate of this domain" in refusal.reason


def test_the_registrars_own_certificate(registrar: Registrar) -> None:
    refusal = no_attributes(registrar, registrar.service("::1"))
    assert refusal.reason == "a registrar's own certificate is not renewed over EST"


def test_the_registrars_own_node_renews_as_any_other(registrar: Registrar) -> None:
    from minerva.pki.identity import load_identity
    from minerva.pki.keys import load_private_key

    own = load_identity(registrar.made.node_directory)
    key = load_private_key((registrar.made.node_directory / "key.pem").read_bytes())
    new = registrar.enroll(Identity(own.certificate, key, own.chain), renew=True)
    assert AcpNodeName.of(new.certificate) == own.node_name


# When something happens in between


class Meddling(BuiltInAuthority):
    """Something happens while it signs."""

    def __init__(self, directory: Path, meddle: object) -> None:
        super().__init__(directory)
        self.meddle = meddle

    async def issue(self, *arguments: object) -> x509.Certificate:
        issued = await super().issue(*arguments)  # type: ignore[arg-type]
        assert callable(self.meddle)
        self.meddle()
        return issued


def test_revoked_while_the_ca_signs(registrar: Registrar) -> None:
    device = registrar.vouchered("SN-1")
    request = make_request(generate_key("p256"), registrar.name_of(device))

    def meddle() -> None:
        with writing(registrar.engine) as connection:
            row = get_device(connection, registrar.device_id("SN-1"), lock=True)
            assert row is not None
            revoke_device(connection, row, reason=None, when=registrar.now)

    registrar.est.authority = Meddling(registrar.made.directory, meddle)
    with pytest.raises(Refusal, match="is revoked"):
        asyncio.run(registrar.est.enroll(device.certificates, request, renew=False))
    with reading(registrar.engine) as connection:
        issued = connection.scalar(
            sa.select(sa.func.count())
            .select_from(certificates)
            .where(certificates.c.device_id == registrar.device_id("SN-1"))
        )
    assert issued == 0


def test_a_ca_that_fails(registrar: Registrar) -> None:
    device = registrar.vouchered("SN-1")
    request = make_request(generate_key("p256"), registrar.name_of(device))

    def meddle() -> None:
        raise AuthorityError("a secret of the operator's")

    registrar.est.authority = Meddling(registrar.made.directory, meddle)
    refusal = refused(registrar, device, request)
    assert (refusal.status, refusal.retry_after) == (503, 10)
    assert "secret" not in refusal.reason
    assert refusal.detail == "a secret of the operator's"


def test_a_ca_that_is_not_there(registrar: Registrar) -> None:
    device = registrar.vouchered("SN-1")
    request = make_request(generate_key("p256"), registrar.name_of(device))
    (registrar.made.directory / "ca" / "issuing").rename(registrar.made.directory / "elsewhere")
    refusal = refused(registrar, device, request)
    assert refusal.status == 503


# Several at once


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_many_devices_at_two_processes_at_once(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    """covers: R-74, 6.11.7.2-1"""
    url = ""
    if kind == "postgresql":
        cluster: Cluster = request.getfixturevalue("postgresql")
        url = cluster.new_database()
    one = make_registrar(tmp_path, url)
    another = open_database(url or one.made.directory / "registrar.db")
    two = Registrar(one.made, another, one.maker, one.now)
    devices_of = [one.vouchered(f"SN-{number}") for number in range(12)]

    def enroll(number: int) -> AcpNodeName:
        # Every device three times, at either process: as impatient as can be.
        registrar = (one, two)[number % 2]
        return AcpNodeName.of(registrar.enroll(devices_of[number // 3]).certificate)

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(enroll, range(36)))
    for first in range(0, 36, 3):
        assert len(set(map(str, names[first : first + 3]))) == 1
    assert len(set(map(str, names))) == 12
    with reading(one.engine) as connection:
        given = connection.scalar(sa.select(sa.func.count()).select_from(addresses))
        current = connection.scalars(
            sa.select(certificates.c.device_id).where(
                certificates.c.superseded_by.is_(None), certificates.c.device_id.is_not(None)
            )
        ).all()
        enrolled = connection.scalar(
            sa.select(sa.func.count()).select_from(devices).where(devices.c.state == "enrolled")
        )
    # With the registrar's own node.
    assert given == enrolled == len(current) == len(set(current)) == 13
    one.engine.dispose()
    another.dispose()


# HTTP


def test_over_http(registrar: Registrar, server: Server) -> None:
    """covers: E-1, E-2, E-3, E-4, E-5, E-7, R-70, R-75"""
    device = registrar.vouchered("SN-1")
    status, headers, body = server.ask(None, "GET", "cacerts")
    assert (status, headers["content-type"]) == (200, "application/pkcs7-mime")
    assert body.count(b"\n") == 1
    assert body.endswith(b"\n")
    found = load_certs_only(base64.b64decode(body))
    assert set(found) == set(registrar.est.ca_certificates())
    assert set(registrar.anchors) < set(found)

    status, headers, body = server.ask(device, "GET", "csrattrs")
    assert (status, headers["content-type"]) == (200, "application/csrattrs")
    attributes = CsrAttributes.decode(base64.b64decode(body))
    assert attributes.node_name == registrar.name_of(device)

    key = generate_key("p256")
    request = encode_base64(make_request(key, attributes.node_name))
    status, headers, body = server.ask(device, "POST", "simpleenroll", request, PKCS10)
    assert (status, headers["content-type"]) == (200, "application/pkcs7-mime; smime-type=certs-only")
    (certificate,) = load_certs_only(base64.b64decode(body))
    assert certificate.public_key() == key.public_key()

    status, headers, body = server.ask(Identity(certificate, key), "POST", "simplereenroll", request, PKCS10)
    assert status == 200
    (renewed,) = load_certs_only(base64.b64decode(body))
    assert AcpNodeName.of(renewed) == attributes.node_name


def test_bodies_in_all_forms(registrar: Registrar, server: Server) -> None:
    """covers: E-3, R-75"""
    device = registrar.vouchered("SN-1")
    der = make_request(generate_key("p256"), registrar.name_of(device))
    one_line = base64.b64encode(der)
    wrapped = encode_base64(der, wrapped=True)
    for body in (der, one_line, wrapped, wrapped.replace(b"\n", b"\r\n"), b"\r\n " + one_line + b"\n\n"):
        headers = {**PKCS10, "Content-Transfer-Encoding": "8bit"}
        assert server.ask(device, "POST", "simpleenroll", body, headers)[0] == 200


@pytest.mark.parametrize("agent", ["Cisco EST client 2.0 with BRSKI", "libest/3.2"])
def test_lines_for_those_who_need_them(server: Server, agent: str) -> None:
    status, _, body = server.ask(None, "GET", "cacerts", headers={"User-Agent": agent})
    assert status == 200
    lines = body.split(b"\n")
    assert len(lines) > 10
    assert {len(line) for line in lines[:-2]} == {64}
    assert load_certs_only(base64.b64decode(body))


@pytest.mark.parametrize("kind", [None, "text/plain", "application/json", "application/pkcs10x"])
def test_media_types(registrar: Registrar, server: Server, kind: str | None) -> None:
    device = registrar.vouchered("SN-1")
    headers = {} if kind is None else {"Content-Type": kind}
    status, answer, body = server.ask(device, "POST", "simpleenroll", b"x", headers)
    assert status == 415
    assert answer["content-type"] == "text/plain; charset=utf-8"
    assert b"application/pkcs10" in body


def test_media_type_with_parameters(registrar: Registrar, server: Server) -> None:
    device = registrar.vouchered("SN-1")
    request = make_request(generate_key("p256"), registrar.name_of(device))
    headers = {"Content-Type": "Application/PKCS10; charset=us-ascii"}
    assert server.ask(device, "POST", "simpleenroll", request, headers)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "why"),
    [
        ("POST", "serverkeygen", 501, "no keys are made here"),
        ("POST", "fullcmc", 501, "Full CMC is not offered"),
        ("GET", "label/cacerts", 404, "no label"),
        ("POST", "label/simpleenroll", 404, "no label"),
        ("GET", "simpleenroll", 405, "is asked with the method POST"),
        ("POST", "cacerts", 405, "is asked with the method GET"),
        ("GET", "nothing", 404, "no such operation"),
        ("DELETE", "cacerts", 405, "is asked with the method GET"),
        ("GET", "", 404, ""),
    ],
)
def test_what_there_is_not(server: Server, method: str, path: str, status: int, why: str) -> None:
    """covers: E-1"""
    answer = server.ask(None, method, path, b"x" if method == "POST" else None, PKCS10)
    assert answer[0] == status
    assert why.encode() in answer[2]


def test_refusals_are_written_down(registrar: Registrar, server: Server) -> None:
    device = registrar.maker.device("SN-1")
    status, headers, body = server.ask(device, "GET", "csrattrs")
    assert status == 403
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert body == b"the device SN-1 got no voucher here; ask for one first\n"
    with reading(registrar.engine) as connection:
        row = connection.execute(sa.select(events).where(events.c.kind == "refused")).one()
    assert row.peer == "::1"
    detail = json.loads(row.detail)
    assert detail == {
        "operation": "csrattrs",
        "status": 403,
        "reason": "the device SN-1 got no voucher here; ask for one first",
    }


def test_a_body_that_is_too_large(registrar: Registrar, server: Server) -> None:
    device = registrar.vouchered("SN-1")
    status, _, _ = server.ask(device, "POST", "simpleenroll", b"M" * 70_000, PKCS10)
    assert status == 413


def test_a_database_that_does_not_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from minerva.brski.registrar import est
    from minerva.brski.registrar.errors import DatabaseError

    def reading_fails(_: object) -> None:
        raise DatabaseError("postgresql://host does not answer")

    monkeypatch.setattr(est, "reading", reading_fails)
    status, headers, body = server.ask(None, "GET", "cacerts")
    assert (status, headers["retry-after"]) == (503, "10")
    assert b"postgresql" not in body
