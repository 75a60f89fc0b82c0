"""What EST brings: trust anchors, what to ask for, and a certificate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID

from minerva.brski.pledge.enrolment import anchors_of
from minerva.brski.pledge.errors import RefusedError
from minerva.est import der
from minerva.est.bodies import decode_base64, encode_base64
from minerva.est.csrattrs import (
    EXTENSION_REQUEST,
    Attribute,
    CsrAttributes,
    for_node_name,
)
from minerva.pki.keys import KeyType
from minerva.pki.node_name import AcpNodeName
from minerva.pki.request import load_request
from tests.brski.pledge.world import (
    FAKE_ISSUING,
    IMPOSTOR,
    ISSUING,
    NODE_NAME,
    NOW,
    OTHER_NAME,
    REGISTRAR,
    ROOT,
    STRANGER,
    VALID,
    Answer,
    Asked,
    Registrar,
    certify,
    enrol,
    fail,
    pkcs7,
)
from tests.pki.certs import Ca, _make, key, subject

# --- trust anchors -----------------------------------------------------------------------------------------


def test_strangers_among_the_authorities_are_ignored() -> None:
    """covers: E-4"""
    registrar = Registrar(
        authorities=(
            STRANGER.certificate,
            ISSUING.certificate,
            ROOT.certificate,
            IMPOSTOR.certificate,
            REGISTRAR,
        )
    )
    assert enrol(registrar).anchors == (ROOT.certificate,)


def test_authorities_of_another_domain() -> None:
    registrar = Registrar(authorities=(STRANGER.certificate,))
    why = fail(registrar)
    assert "none of the registrar's CA certificates belongs to the domain" in why
    (status,) = registrar.statuses("enrollstatus")
    assert status.status is False
    assert {asked.connection for asked in registrar.asked} == {1}


def test_the_successor_of_a_root() -> None:
    """covers: E-4"""
    new = Ca.root("Domain root 2", kind="p384/root2", **VALID)
    cross = _make(
        new.certificate.subject,
        new.key.public_key(),
        ROOT.certificate.subject,
        ROOT.key,
        ca=True,
        **VALID,
    )
    back = _make(
        ROOT.certificate.subject,
        ROOT.key.public_key(),
        new.certificate.subject,
        new.key,
        ca=True,
        **VALID,
    )
    authorities = (ROOT.certificate, new.certificate, cross, back, ISSUING.certificate, STRANGER.certificate)
    assert set(anchors_of(authorities, ROOT.certificate, NOW)) == {ROOT.certificate, new.certificate}
    # Whoever signs the old one's key has not become its successor by that.
    stranger = _make(
        ROOT.certificate.subject,
        ROOT.key.public_key(),
        STRANGER.certificate.subject,
        STRANGER.key,
        ca=True,
        **VALID,
    )
    assert anchors_of((*authorities[:1], STRANGER.certificate, stranger), ROOT.certificate, NOW) == (
        ROOT.certificate,
    )
    issuing = new.ca("Domain issuing 2", kind="p256/issuing2", **VALID)
    registrar = Registrar(authorities=(*authorities, issuing.certificate))
    registrar.handlers["simpleenroll"] = lambda asked: pkcs7(
        certify(load_request(decode_base64(asked.body)).public_key, ca=issuing)
    )
    enrolled = enrol(registrar)
    assert set(enrolled.anchors) == {ROOT.certificate, new.certificate}
    assert set(enrolled.chain) == {issuing.certificate, cross}, "who knows only the old root can check us"


def test_a_node_of_the_domain_cannot_make_itself_the_successor() -> None:
    """covers: E-4"""
    own = key("p256/rogue")
    name = subject("rogue")
    as_node = _make(name, own.public_key(), ROOT.certificate.subject, ROOT.key, ca=False, **VALID)
    as_root = _make(name, own.public_key(), name, own, ca=True, **VALID)
    authorities = (ROOT.certificate, as_root, as_node)
    assert anchors_of(authorities, ROOT.certificate, NOW) == (ROOT.certificate,)


def test_an_issuing_ca_alone_is_the_anchor() -> None:
    registrar = Registrar(pinned=ISSUING.certificate, authorities=(ISSUING.certificate,))
    enrolled = enrol(registrar)
    assert enrolled.anchors == (ISSUING.certificate,)
    assert enrolled.chain == ()


@pytest.mark.parametrize("operation", ["cacerts", "csrattrs", "simpleenroll"])
@pytest.mark.parametrize("answer", [Answer(403, b"no"), Answer(500), Answer(200, b"!"), Answer(200, b"AgEA")])
def test_what_fails_after_the_voucher_is_told_on_the_same_connection(operation: str, answer: Answer) -> None:
    """covers: P-51, E-4"""
    registrar = Registrar(handlers={operation: [answer]})
    fail(registrar)
    assert registrar.operations()[-1] == "enrollstatus"
    assert registrar.operations()[-2] == operation
    (status,) = registrar.statuses("enrollstatus")
    assert status.status is False
    assert status.reason
    assert registrar.connections == 1


def test_no_report_over_another_connection() -> None:
    """covers: P-51"""
    registrar = Registrar(handlers={"csrattrs": [Answer(403, b"no", close=True)]})
    fail(registrar, RefusedError)
    assert registrar.connections == 1
    assert registrar.of("enrollstatus") == []


# --- what to ask for ---------------------------------------------------------------------------------------


def attributes(body: bytes, status: int = 200) -> dict[str, Any]:
    return {"csrattrs": [Answer(status, body, "application/csrattrs")]}


@pytest.mark.parametrize(
    "handlers",
    [attributes(b"", 204), attributes(b"", 404), attributes(b""), attributes(encode_base64(b"\x30\x00"))],
)
def test_without_a_name_it_cannot_be_a_node(handlers: dict[str, Any]) -> None:
    """covers: E-7"""
    assert "no acp-node-name" in fail(Registrar(handlers=handlers))


def test_a_name_without_an_address() -> None:
    name = AcpNodeName.parse("@acp.example.com")
    assert "no address" in fail(Registrar(handlers=attributes(for_node_name(name))))


@pytest.mark.parametrize(
    ("key_type", "bits"), [(KeyType.P384, 384), (KeyType.P521, 521), (KeyType.RSA2048, 2048), (None, 256)]
)
def test_the_key_that_is_demanded(key_type: KeyType | None, bits: int) -> None:
    """covers: P-61, E-7"""
    body = encode_base64(for_node_name(NODE_NAME, key_type), wrapped=True)
    enrolled = enrol(Registrar(handlers=attributes(body)))
    assert enrolled.key.key_size == bits
    assert enrolled.certificate.public_key() == enrolled.key.public_key()


def test_the_key_that_the_owner_wants() -> None:
    body = encode_base64(for_node_name(NODE_NAME, None))
    assert enrol(Registrar(handlers=attributes(body)), key_type=KeyType.P384).key.key_size == 384


def test_a_key_that_cannot_be_made() -> None:
    ed448 = Attribute(x509.ObjectIdentifier("1.2.840.10045.2.1"), (der.encode_oid(_BRAINPOOL),))
    told = CsrAttributes.decode(for_node_name(NODE_NAME, None))
    body = encode_base64(CsrAttributes((*told.items, ed448)).encode())
    assert "does not make" in fail(Registrar(handlers=attributes(body)))


_BRAINPOOL = x509.ObjectIdentifier("1.3.36.3.3.2.8.1.1.7")


def test_extensions_are_copied_as_they_are() -> None:
    """covers: P-61, E-7"""
    (names,) = CsrAttributes.decode(for_node_name(NODE_NAME, None)).extensions
    eku = x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.3.6.1.5.5.7.3.2")])
    extensions = [
        (names.oid, True, names.value),
        (ExtensionOID.EXTENDED_KEY_USAGE, True, eku.public_bytes()),
        (x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), False, b"\x05\x00"),
    ]
    encoded = [
        der.encode(
            der.SEQUENCE,
            der.encode_oid(oid),
            der.encode(der.BOOLEAN, b"\xff") if critical else b"",
            der.encode(der.OCTET_STRING, value),
        )
        for oid, critical, value in extensions
    ]
    items = (
        x509.ObjectIdentifier("1.3.6.1.1.1.1.22"),
        Attribute(EXTENSION_REQUEST, (der.encode(der.SEQUENCE, *encoded),)),
        Attribute(x509.ObjectIdentifier("1.2.3.4"), (b"\x05\x00",)),
    )
    registrar = Registrar(handlers=attributes(encode_base64(CsrAttributes(items).encode())))
    enrol(registrar)
    request = x509.load_der_x509_csr(decode_base64(registrar.of("simpleenroll")[0].body))
    found = [(each.oid, each.critical, each.value.public_bytes()) for each in request.extensions]
    assert found == extensions
    assert not [each for each in request.attributes if "1.9.7" in each.oid.dotted_string]


def test_what_the_certificate_request_looks_like() -> None:
    """covers: P-61, E-3, E-5, E-9"""
    registrar = Registrar()
    enrol(registrar)
    (asked,) = registrar.of("simpleenroll")
    assert asked.target == "/.well-known/est/simpleenroll"
    assert asked.headers["content-type"] == "application/pkcs10"
    assert asked.body.endswith(b"\n")
    assert asked.body.count(b"\n") == 1
    request = load_request(decode_base64(asked.body))
    assert request.node_name == NODE_NAME
    assert not request.challenge_password
    assert isinstance(request.public_key, ec.EllipticCurvePublicKey)
    for operation in ("cacerts", "csrattrs"):
        (asked,) = registrar.of(operation)
        assert asked.method == "GET"
        assert asked.target == f"/.well-known/est/{operation}"


@pytest.mark.parametrize("form", ["DER", "one line", "wrapped", "CRLF"])
def test_bodies_in_any_form(form: str) -> None:
    """covers: E-3"""

    class Odd(Registrar):
        def honest(self, asked: Asked) -> Answer:
            answer = super().honest(asked)
            if "/est/" not in asked.target:
                return answer
            body = decode_base64(answer.body)
            if form != "DER":
                body = encode_base64(body, wrapped=form != "one line")
            if form == "CRLF":
                body = body.replace(b"\n", b"\r\n")
            return replace(answer, body=body, headers=[("Content-Transfer-Encoding", "binary")])

    enrol(Odd())


# --- what comes back ---------------------------------------------------------------------------------------


def issuing(**changes: Any) -> Callable[[Asked], Answer]:
    def handler(asked: Asked) -> Answer:
        public_key = changes.get("public_key") or load_request(decode_base64(asked.body)).public_key
        return pkcs7(certify(public_key, **{k: v for k, v in changes.items() if k != "public_key"}))

    return handler


BAD_CERTIFICATES: dict[str, tuple[Any, str]] = {
    "another key": (issuing(public_key=key("p256/other").public_key()), "another key"),
    "another name": (issuing(name=OTHER_NAME), "not for"),
    "no name": (issuing(name=None), "no acp-node-name"),
    "a stranger's": (issuing(ca=STRANGER), "no path"),
    "an impostor's": (issuing(ca=FAKE_ISSUING), "no path"),
    "expired": (issuing(end=NOW - timedelta(minutes=1)), "expired"),
    "not yet valid": (issuing(start=NOW + timedelta(days=1)), "not valid before"),
    "only the CAs": (lambda _: pkcs7(ISSUING.certificate, ROOT.certificate), "another key"),
}


@pytest.mark.parametrize("what", BAD_CERTIFICATES)
def test_certificates_of_no_use(what: str) -> None:
    """covers: E-5"""
    handler, sentence = BAD_CERTIFICATES[what]
    registrar = Registrar(handlers={"simpleenroll": [handler]})
    assert sentence in fail(registrar)
    (status,) = registrar.statuses("enrollstatus")
    assert status.status is False
    assert sentence in str(status.reason)


def test_a_certificate_with_its_cas() -> None:
    registrar = Registrar(authorities=(ROOT.certificate,))
    registrar.handlers["simpleenroll"] = [
        lambda asked: pkcs7(
            ISSUING.certificate,
            certify(load_request(decode_base64(asked.body)).public_key),
            STRANGER.certificate,
        )
    ]
    assert enrol(registrar).chain == (ISSUING.certificate,)


def test_a_new_certificate_needs_no_clock() -> None:
    handler = issuing(start=NOW + timedelta(days=1), end=NOW + timedelta(days=2))
    enrol(Registrar(handlers={"simpleenroll": [handler]}), now=lambda: None)
