"""Certificate requests: ours, those of openssl and of the RFCs, and those that are refused."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AttributeOID, ExtensionOID

from minerva.pki.errors import RequestError
from minerva.pki.node_name import ID_ON_ACP_NODE_NAME, AcpNodeName
from minerva.pki.request import (
    MAX_NAMES,
    MAX_REQUEST_SIZE,
    RequestedExtension,
    check_request,
    load_request,
    make_request,
)

from .certs import key, node_name, san, subject

NAME = AcpNodeName.parse(node_name(1))


def request(
    *extensions: tuple[Any, bool],
    kind: str = "p256",
    digest: Any = hashes.SHA256(),  # noqa: B008 -- a constant
    attributes: tuple[tuple[x509.ObjectIdentifier, bytes], ...] = (),
    name: x509.Name = subject("node"),  # noqa: B008 -- a constant
) -> bytes:
    """A request made without our help."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    for oid, value in attributes:
        builder = builder.add_attribute(oid, value)
    if kind == "ed25519":
        digest = None
    return builder.sign(key(kind), digest).public_bytes(Encoding.DER)


@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "rsa2048"])
def test_there_and_back(kind: str) -> None:
    """covers: P-61, R-72"""
    der = make_request(key(kind), NAME)
    loaded = load_request(der)
    assert loaded.public_key == key(kind).public_key()
    assert loaded.node_name == NAME
    assert loaded.other_names == ()
    assert loaded.extensions == ()
    assert not loaded.challenge_password
    assert loaded.subject == x509.Name([])
    assert loaded.der == der
    check_request(loaded, NAME)


def test_what_the_server_said_is_copied() -> None:
    """covers: P-61, E-7"""
    names = san(str(NAME)).public_bytes()
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False).public_bytes()
    told = [
        RequestedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, True, names),
        RequestedExtension(ExtensionOID.KEY_USAGE, True, usage),
        RequestedExtension(x509.ObjectIdentifier("1.2.3.4"), False, b"\x05\x00"),
    ]
    der = make_request(key("p256"), NAME, extensions=told)
    made = [
        (extension.oid, extension.critical, extension.value.public_bytes())
        for extension in x509.load_der_x509_csr(der).extensions
    ]
    assert made == [(each.oid, each.critical, each.value) for each in told]
    loaded = load_request(der)
    assert loaded.node_name == NAME
    assert [extension.oid for extension in loaded.extensions] == [each.oid for each in told[1:]]
    check_request(loaded, NAME)
    with pytest.raises(RequestError, match="do not go into one request"):
        make_request(key("p256"), NAME, extensions=[told[1], told[1]])


def test_a_renewal_keeps_the_subject() -> None:
    """covers: E-6"""
    loaded = load_request(make_request(key("p256"), NAME, subject=subject("router 7")))
    check_request(loaded, NAME, subject=subject("router 7"))
    with pytest.raises(RequestError, match="is not that of the certificate to be renewed"):
        check_request(loaded, NAME, subject=subject("router 8"))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "has no acp-node-name"),
        ([AcpNodeName.parse(node_name(2)).other_name()], "but its sender is"),
        ([AcpNodeName.parse(node_name(1, domain="other.example")).other_name()], "but its sender is"),
        ([AcpNodeName.parse(node_name(1, rsub="+r")).other_name()], "but its sender is"),
        ([NAME.other_name(), x509.DNSName("www.example.com")], "holds more than .*: DNSName"),
        ([NAME.other_name(), x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x05\x00")], ": OtherName"),
    ],
)
def test_other_names_than_told(names: list[x509.GeneralName], reason: str) -> None:
    """covers: R-72, 6.2.2-8"""
    extensions = [(x509.SubjectAlternativeName(names), False)] if names else []
    with pytest.raises(RequestError, match=reason):
        check_request(load_request(request(*extensions)), NAME)


def test_challenge_password() -> None:
    """covers: E-9"""
    der = request((san(str(NAME)), False), attributes=((AttributeOID.CHALLENGE_PASSWORD, b"secret"),))
    loaded = load_request(der)
    assert loaded.challenge_password
    with pytest.raises(RequestError, match="make one without it"):
        check_request(loaded, NAME)


@pytest.mark.parametrize(
    ("der", "reason"),
    [
        (b"", "not a certificate request"),
        (b"nonsense", "not a certificate request"),
        (b"\x30" * (MAX_REQUEST_SIZE + 1), "at most 16384 are accepted"),
        (request((san(str(NAME)), False))[:-1], "not a certificate request"),
        (request((san(str(NAME)), False)) + b"\0", "not a certificate request"),
        (request(kind="rsa1024"), "RSA key of 1024 bits"),
        (request(kind="p224"), "key on the curve secp224r1"),
        (request(kind="brainpool"), "key on the curve brainpool"),
        (request(kind="ed25519"), "neither an RSA nor an elliptic curve key"),
        (request(digest=hashes.SHA224()), "request signed with sha224"),
        (request((san(str(NAME), node_name(2)), False)), "holds 2 acp-node-names, one may be"),
        (request((san(str(NAME), str(NAME)), False)), "holds 2 acp-node-names, one may be"),
        (
            request((x509.SubjectAlternativeName([x509.DNSName("a")] * (MAX_NAMES + 1)), False)),
            "17 names in the request's subjectAltName",
        ),
        (
            request(
                (
                    x509.SubjectAlternativeName(
                        [x509.OtherName(ID_ON_ACP_NODE_NAME, b"\x16\x13rfc8994+0@d.example")]
                    ),
                    False,
                )
            ),
            "the request's subjectAltName: not an acp-node-name: 'rfc8994",
        ),
        (
            request(
                (san(str(NAME)), False),
                attributes=((x509.ObjectIdentifier("1.3.6.1.4.1.311.2.1.14"), b"\x30\x00"),),
            ),
            "several lists of extensions",
        ),
        (
            request((x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x05\x00"), True)),
            "not a certificate request",
        ),
    ],
)
def test_refused(der: bytes, reason: str) -> None:
    """covers: R-72"""
    with pytest.raises(RequestError, match=reason):
        load_request(der)


def test_a_signature_by_another_key() -> None:
    """covers: R-72"""
    mine, other = request((san(str(NAME)), False)), request((san(str(NAME)), False), kind="p256/other")
    point = key("p256").public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    stolen = other.replace(
        key("p256/other").public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint), point
    )
    assert stolen != other
    assert load_request(mine).public_key == key("p256").public_key()
    with pytest.raises(RequestError, match="is not signed with the private key of the public key in it"):
        load_request(stolen)


def test_texts_of_strangers_are_escaped() -> None:
    names = x509.SubjectAlternativeName([x509.OtherName(ID_ON_ACP_NODE_NAME, b"\x16\x04\x1b[2J")])
    with pytest.raises(RequestError) as caught:
        load_request(request((names, False)))
    assert "\x1b" not in str(caught.value)


def test_requests_of_the_rfc(fixtures: Path) -> None:
    """covers: E-5"""
    data = (fixtures / "rfc9148" / "A2-sen-req-286-csr.der").read_bytes()
    loaded = load_request(data)
    assert loaded.challenge_password
    assert loaded.node_name is None
    assert [type(name) for name in loaded.other_names] == [x509.OtherName]
    assert load_request((fixtures / "rfc9148" / "A3-skg-req-286-csr.der").read_bytes()).other_names == ()


def openssl(*arguments: str, data: bytes = b"") -> bytes:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, the witness of this test, is not installed")
    return subprocess.run(
        ["openssl", *arguments], check=True, capture_output=True, input=data, timeout=30
    ).stdout


@pytest.mark.parametrize("kind", ["p256", "p384", "rsa2048"])
def test_openssl_reads_ours(kind: str) -> None:
    """covers: P-61"""
    der = make_request(key(kind), NAME, subject=subject("node"))
    done = openssl("req", "-inform", "DER", "-verify", "-noout", "-text", data=der).decode()
    assert f"othername: 1.3.6.1.5.5.7.8.10::{NAME}" in done
    assert "CN = node" in done or "CN=node" in done


@pytest.mark.parametrize("key_options", [("ec", "ec_paramgen_curve:P-384"), ("rsa", "rsa_keygen_bits:2048")])
def test_we_read_those_of_openssl(tmp_path: Path, key_options: tuple[str, str]) -> None:
    """covers: E-5"""
    algorithm, parameter = key_options
    der = openssl(
        "req", "-new", "-newkey", algorithm, "-pkeyopt", parameter, "-nodes", "-outform", "DER",
        "-keyout", str(tmp_path / "key.pem"), "-subj", "/CN=by openssl",
        "-addext", f"subjectAltName=critical,otherName:1.3.6.1.5.5.7.8.10;IA5STRING:{NAME}",
        "-addext", "keyUsage=digitalSignature",
    )  # fmt: skip
    loaded = load_request(der)
    assert loaded.node_name == NAME
    assert loaded.subject == x509.Name.from_rfc4514_string("CN=by openssl")
    assert [extension.oid for extension in loaded.extensions] == [ExtensionOID.KEY_USAGE]
    check_request(loaded, NAME)
