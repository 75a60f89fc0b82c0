"""Bodies of EST: base64 in all its forms, and certificates in PKCS #7."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from minerva.est import der
from minerva.est.bodies import (
    COLUMNS,
    MAX_BODY_SIZE,
    MAX_CERTIFICATES,
    certs_only,
    decode_base64,
    encode_base64,
    load_certs_only,
)
from minerva.est.errors import EstDecodeError
from minerva.pki.ca import CertificateAuthority
from minerva.pki.certificates import load_pem
from tests.pki.certs import Ca, node_name

SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
DATA = bytes.fromhex("300b06092a864886f70d010701")


@cache
def chain() -> tuple[x509.Certificate, ...]:
    root = Ca.root()
    issuing = root.ca("Issuing")
    return (issuing.node(node_name(1)), issuing.certificate, root.certificate)


BODY = b"\x30" + bytes(range(200))


def signed_data(*fields: bytes) -> bytes:
    return der.encode(der.SEQUENCE, SIGNED_DATA, der.encode(0xA0, der.encode(der.SEQUENCE, *fields)))


START = (b"\x02\x01\x01", b"\x31\x00", DATA)


def test_one_line_by_default() -> None:
    """covers: E-3, R-75"""
    body = encode_base64(BODY)
    assert body.count(b"\n") == 1
    assert body.endswith(b"\n")
    assert decode_base64(body) == BODY
    assert encode_base64(b"") == b""


def test_wrapped_on_request() -> None:
    """covers: E-3"""
    body = encode_base64(BODY, wrapped=True)
    lines = body.splitlines()
    assert {len(line) for line in lines[:-1]} == {COLUMNS}
    assert body.endswith(b"\n")
    assert decode_base64(body) == BODY


@given(st.binary(min_size=1, max_size=400), st.sampled_from([b"", b"\r\n", b"\n", b" ", b"\t\r\n\r\n"]))
def test_any_white_space(data: bytes, space: bytes) -> None:
    """covers: E-3, R-75"""
    lines = encode_base64(b"\x30" + data, wrapped=True).split()
    assert decode_base64(space + space.join(lines) + space) == b"\x30" + data


def test_der_as_it_is() -> None:
    """covers: E-3"""
    data = certs_only(chain())
    assert decode_base64(data) == data
    # The base64 of a SEQUENCE never begins as a SEQUENCE does.
    assert {encode_base64(bytes((0x30, octet)))[:1] for octet in range(256)} == {b"M"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "the body is empty"),
        (b" \r\n", "the body is empty"),
        (b"MIIB", None),
        (b"MII", "neither base64 nor DER"),
        (b"MI==MIIB", "neither base64 nor DER"),
        (b"MA==\n=", "neither base64 nor DER"),
        (b"=MII", "neither base64 nor DER"),
        (b"M-_B", "neither base64 nor DER"),
        (b"\xff\xfe", "neither base64 nor DER"),
        (b"<html>", "neither base64 nor DER"),
        (b"AAAA", "something else than DER"),
        (b"M" * (MAX_BODY_SIZE + 1), "at most 262144 are accepted"),
    ],
)
def test_what_is_not_base64(body: bytes, reason: str | None) -> None:
    """covers: E-3"""
    if reason is None:
        assert decode_base64(body) == bytes.fromhex("308201")
        return
    with pytest.raises(EstDecodeError, match=reason):
        decode_base64(body)


@pytest.mark.parametrize("count", [1, 3])
def test_certificates_there_and_back(count: int) -> None:
    """covers: E-4, E-5"""
    certificates = chain()[:count]
    data = certs_only(certificates)
    assert sorted(map(hash, load_certs_only(data))) == sorted(map(hash, certificates))
    assert certs_only(load_certs_only(data)) == data


def indefinite(data: bytes) -> bytes:
    """``data`` with all its constructed elements in indefinite length, but for the certificates."""
    element = der.read(data, "test")
    if element.tag & 0x20 and not (element.tag == der.SEQUENCE and len(element.content) > 200):
        inner = b"".join(indefinite(child.encoded) for child in element.children("test", 99))
        return bytes((element.tag, 0x80)) + inner + b"\0\0"
    return data


def test_indefinite_lengths() -> None:
    """covers: E-4"""
    node = chain()[0]
    data = signed_data(*START, der.encode(0xA0, *(_encoded(each) for each in chain())), b"\x31\x00")
    parts = der.read(data, "test").children("test", 2)
    inner = der.read(parts[1].content, "test").children("test", 9)
    in_ber = (
        b"\x30\x80" + SIGNED_DATA + b"\xa0\x80\x30\x80"
        + b"".join(indefinite(field.encoded) for field in inner)
        + b"\0\0" * 3
    )  # fmt: skip
    assert in_ber != data
    assert load_certs_only(in_ber) == load_certs_only(data) == chain()
    assert node in load_certs_only(decode_base64(encode_base64(in_ber)))


def _encoded(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def test_what_else_a_message_may_hold() -> None:
    """Attribute certificates and CRLs are passed over."""
    certificates = der.encode(0xA0, _encoded(chain()[0]), b"\xa2\x00")
    data = signed_data(*START, certificates, b"\xa1\x02\x30\x00", b"\x31\x00")
    assert load_certs_only(data) == chain()[:1]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "PKCS #7: empty"),
        (b"\x30", "PKCS #7: 1 bytes wanted, 0 left"),
        (b"\x30\x00", "not a content type and a content"),
        (b"\x31\x00", "ASN.1 tag 0x31, not 0x30"),
        (der.encode(der.SEQUENCE, SIGNED_DATA), "not a content type and a content"),
        (der.encode(der.SEQUENCE, SIGNED_DATA, b"\xa0\x00"), "SignedData: empty"),
        (der.encode(der.SEQUENCE, DATA[2:], b"\xa0\x02\x30\x00"), "the content is no SignedData"),
        (signed_data(), "not a version, digest algorithms and a content"),
        (signed_data(*START, b"\x31\x00"), "no certificate in it"),
        (signed_data(*START, b"\xa0\x00", b"\x31\x00"), "no certificate in it"),
        (signed_data(*START, b"\xa0\x02\x30\x00", b"\x31\x00"), "not a certificate"),
        (
            signed_data(*START, der.encode(0xA0, b"\x30\x00" * (MAX_CERTIFICATES + 1))),
            "more than 32 elements",
        ),
        (signed_data(*START, b"\x31\x00" * 9), "more than 8 elements"),
        (certs_only(chain()) + b"\0", "more than 1 element"),
        (certs_only(chain())[:-1], "bytes wanted"),
        (bytes(MAX_BODY_SIZE + 1), "at most 262144 are accepted"),
        (b"\x30\x80" * 1000, "nested deeper than 16"),
        (b"\x04\x80\0\0", "an indefinite length without elements in it"),
        (b"\x30\x80\x00\x01\x00", "an end of contents with contents"),
        (b"\x3f\x81\x01\x00", "an ASN.1 tag of several bytes"),
        (b"\x30\x85\x01\x01\x01\x01\x01", "a length of 5 bytes"),
        (b"\x30\x84\xff\xff\xff\xff", "bytes wanted"),
    ],
)
def test_what_is_not_pkcs7(data: bytes, reason: str) -> None:
    """covers: E-4"""
    with pytest.raises(EstDecodeError, match=reason):
        load_certs_only(data)


@pytest.mark.parametrize("name", ["A1-crts-resp-281-pkcs7", "A2-sen-resp-281-pkcs7", "A3-skg-resp-281-pkcs7"])
def test_messages_of_the_rfc(fixtures: Path, name: str) -> None:
    """covers: E-4, E-5"""
    (certificate,) = load_certs_only((fixtures / "rfc9148" / f"{name}.der").read_bytes())
    # As these, but without the empty set of CRLs that DER would leave out.
    assert load_certs_only(certs_only([certificate])) == (certificate,)


def openssl(*arguments: str) -> bytes:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, the witness of this test, is not installed")
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30).stdout


def test_openssl_reads_ours(tmp_path: Path) -> None:
    """covers: E-4"""
    path = tmp_path / "message.der"
    path.write_bytes(certs_only(chain()))
    shown = openssl("pkcs7", "-inform", "DER", "-in", str(path), "-print_certs")
    pems = shown.split(b"-----BEGIN")
    blocks = b"".join(
        b"-----BEGIN" + pem.split(b"-----END")[0] + b"-----END CERTIFICATE-----\n" for pem in pems[1:]
    )
    assert set(load_pem(blocks)) == set(chain())


def test_we_read_those_of_openssl(tmp_path: Path) -> None:
    """covers: E-4"""
    ca = CertificateAuthority.create("acp.example.com", tmp_path / "ca")
    issuing = ca.issue_ca(tmp_path / "issuing")
    data = openssl(
        "crl2pkcs7", "-nocrl", "-outform", "DER",
        "-certfile", str(issuing.directory / "chain.pem"), "-certfile", str(ca.directory / "anchors.pem"),
    )  # fmt: skip
    assert set(load_certs_only(data)) == {ca.certificate, issuing.certificate}


@pytest.mark.skipif(shutil.which("pki") is None, reason="strongSwan's pki is not installed")
def test_strongswan_reads_ours(tmp_path: Path) -> None:
    """covers: E-4"""
    path = tmp_path / "message.der"
    path.write_bytes(certs_only(chain()))
    shown = subprocess.run(
        ["pki", "--pkcs7", "--show", "--in", str(path)], check=True, capture_output=True, timeout=30
    ).stdout
    pems = shown.decode().count("BEGIN CERTIFICATE")
    assert pems == len(chain())
