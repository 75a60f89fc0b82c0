"""What the maker's certificate of a device says."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from asn1crypto import core
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from minerva.pki.certificates import load_certificate, load_pem
from minerva.pki.errors import IdevidError
from minerva.pki.idevid import (
    MASA_URL_OID,
    MAX_URL_LENGTH,
    OLD_MASA_URL_OID,
    SerialNumberSource,
    authority_key_identifier_value,
    domain_id,
    idevid_extensions,
    masa_url,
    normalise_masa_url,
    same_issuer,
    serial_number,
)

from .certs import Ca, key, subject

MAKER = Ca.root("Maker")
WELL_KNOWN = "/.well-known/brski"


def device(*extensions: x509.ExtensionType, **options: Any) -> x509.Certificate:
    name = options.pop("subject", named((NameOID.SERIAL_NUMBER, "FD-0017")))
    options = {"kind": "p256/device", **options}
    return MAKER.node(subject=name, extensions=[(each, False) for each in extensions], **options)


def named(*attributes: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])


def masa(der: bytes, oid: x509.ObjectIdentifier = MASA_URL_OID) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(oid, der)


def test_published(fixtures: Path) -> None:
    """covers: P-1, P-3, R-30"""
    folder = fixtures / "rfc8995"
    (printed,) = load_pem((folder / "C1.5-pledge-idevid-00-D0-E5-F2-00-02.cert.pem").read_bytes())
    embedded = load_certificate((folder / "C2.1-embedded-idevid-serial-0d83afd9.cert.der").read_bytes())
    for certificate in (printed, embedded):
        assert serial_number(certificate) == "00-D0-E5-F2-00-02"
        assert masa_url(certificate) == f"https://highway-test.example.com:9443{WELL_KNOWN}"
    constrained = load_certificate((fixtures / "cvoucher" / "pledge.cert.der").read_bytes())
    assert serial_number(constrained) == "JADA123456789"
    assert masa_url(constrained) == f"https://masa.stok.nl{WELL_KNOWN}"
    shipped = load_certificate((fixtures / "rfc8366" / "idevid1-example.der").read_bytes())
    assert serial_number(shipped) == "PID:CHIMAY-U-AC SN:FDO27361XTF"
    assert masa_url(shipped) is None


def test_domain_id_as_measured(fixtures: Path) -> None:
    """Of a certificate without a subjectKeyIdentifier and of one with.

    covers: M-17
    """
    for name, expected in (
        ("C1.4-registrar-ee-cmcRA-p256", "Oy6w2vS8ar8m/FtEHuzs7sl7LSD3pW9yTCgCecoIL3M="),
        ("C1.3-registrar-domain-ca-p384", "uaX2yxHhB6RJLKcIxnwQvIezdCY="),
    ):
        (certificate,) = load_pem((fixtures / "rfc8995" / f"{name}.cert.pem").read_bytes())
        assert b64encode(domain_id(certificate)).decode() == expected


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("masa.example.com", f"https://masa.example.com{WELL_KNOWN}"),
        ("MASA.Example.com:9443", f"https://masa.example.com:9443{WELL_KNOWN}"),
        ("masa", f"https://masa{WELL_KNOWN}"),
        ("192.0.2.7:443", f"https://192.0.2.7:443{WELL_KNOWN}"),
        ("[2001:DB8::7]", f"https://[2001:db8::7]{WELL_KNOWN}"),
        ("[2001:db8::7]:9443", f"https://[2001:db8::7]:9443{WELL_KNOWN}"),
        ("https://masa.example.com", f"https://masa.example.com{WELL_KNOWN}"),
        ("https://masa.example.com/", f"https://masa.example.com{WELL_KNOWN}"),
        ("https://masa.example.com:9443/.well-known/brski/", f"https://masa.example.com:9443{WELL_KNOWN}"),
        ("HTTPS://masa.example.com/Maker%20A/v1", "https://masa.example.com/Maker%20A/v1"),
        ("http://masa.example.com/x", "https://masa.example.com/x"),
        ("http://masa.example.com:8080/x", "https://masa.example.com:8080/x"),
    ],
)
def test_masa_url(text: str, url: str) -> None:
    """In an IA5String, in a UTF8String, and under the number before IANA's.

    covers: R-30
    """
    assert normalise_masa_url(text) == normalise_masa_url(url) == url
    for string in (core.IA5String(text), core.UTF8String(text)):
        for oid in (MASA_URL_OID, OLD_MASA_URL_OID):
            assert masa_url(device(masa(string.dump(), oid))) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":443",
        "masa.example.com:",
        "masa.example.com:0",
        "masa.example.com:65536",
        "masa.example.com:https",
        "masa example.com",
        "masa.example.com\n",
        "-masa.example.com",
        "masa..example.com",
        "a" * 64,
        ".".join(["a" * 60] * 5),
        "[::1",
        "[fe80::1%eth0]",
        "[192.0.2.7]",
        "mäsa.example.com",
        "user@masa.example.com",
        "masa.example.com?x",
        "masa.example.com/path",
        "//masa.example.com/path",
        "ldap://masa.example.com/cn=masa",
        "ftp://masa.example.com/",
        "https:///path",
        "https://user:secret@masa.example.com/",
        "https://masa.example.com/?query",
        "https://masa.example.com/#fragment",
        "https://masa.example.com/a b",
        "https://masa.example.com/../x",
        "https://masa.example.com/%zz",
        "https://[/",
        "https://masa.example.com/" + "a" * MAX_URL_LENGTH,
    ],
)
def test_not_a_masa_url(text: str) -> None:
    """covers: R-30"""
    with pytest.raises(IdevidError) as caught:
        normalise_masa_url(text)
    assert str(caught.value).isprintable()
    if text.isascii():
        with pytest.raises(IdevidError):
            masa_url(device(masa(core.IA5String(text).dump())))


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x16",
        b"\x16\x05masa",
        b"\x16\x04masa!",
        b"\x16\x01\xff",
        b"\x04\x04masa",
        b"\x02\x01\x05",
        b"\x30\x80" * 900,
    ],
)
def test_not_a_string(der: bytes) -> None:
    with pytest.raises(IdevidError, match="MASA URL extension"):
        masa_url(device(masa(der)))


def test_without_a_masa_url() -> None:
    """covers: R-31"""
    assert masa_url(device()) is None
    both = device(masa(core.IA5String("new").dump()), masa(core.IA5String("old").dump(), OLD_MASA_URL_OID))
    assert masa_url(both) == f"https://new{WELL_KNOWN}"


@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    try:
        url = normalise_masa_url(text)
    except IdevidError:
        return
    assert url.startswith("https://")
    assert not url.endswith("/")
    assert normalise_masa_url(url) == url


@pytest.mark.parametrize(
    ("given_url", "text"),
    [
        ("masa.example.com", b"masa.example.com"),
        ("https://masa.example.com:9443/.well-known/brski", b"masa.example.com:9443"),
        ("https://[2001:db8::7]/", b"[2001:db8::7]"),
        ("https://masa.example.com/v1", b"https://masa.example.com/v1"),
    ],
)
def test_idevids_of_ours(given_url: str, text: bytes) -> None:
    """Not critical, an IA5String, no more than is needed; no restriction of usage, no end.

    covers: P-1, P-2, R-30
    """
    extensions = idevid_extensions(given_url)
    certificate = MAKER.node(
        subject=named((NameOID.SERIAL_NUMBER, "FD-0017")),
        ca=None,
        extensions=extensions,
        end=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    )
    found = certificate.extensions.get_extension_for_oid(MASA_URL_OID)
    assert found.critical is False
    assert found.value.public_bytes() == bytes([0x16, len(text)]) + text
    assert masa_url(certificate) == normalise_masa_url(given_url)
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.KeyUsage)
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    with pytest.raises(IdevidError):
        idevid_extensions("ldap://masa.example.com/")


def test_serial_number() -> None:
    """That of the device, never that of its certificate; where the maker has put it.

    covers: P-3, R-11
    """
    assert serial_number(device()) == "FD-0017"
    many = (
        (NameOID.SERIAL_NUMBER, "FD-0017"),
        (NameOID.COMMON_NAME, "Router FD-0018"),
        (NameOID.SERIAL_NUMBER, "x"),
    )
    assert serial_number(device(subject=named(many[0], many[1]))) == "FD-0017"
    assert (
        serial_number(device(subject=named(many[0], many[1])), SerialNumberSource.COMMON_NAME)
        == "Router FD-0018"
    )
    hidden = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, "a\x00b", _ASN1Type.UTF8String)])
    for name in (named(), named(many[1]), named(*many), hidden):
        with pytest.raises(IdevidError, match="serial number"):
            serial_number(device(subject=name))
    with pytest.raises(IdevidError, match="common-name"):
        serial_number(device(), SerialNumberSource.COMMON_NAME)


@pytest.mark.parametrize(
    ("octets", "text"), [(b"FD-0017", "FD-0017"), (b"\x00\x01\xff", "0001ff"), (b"a\nb", "610a62")]
)
def test_serial_number_of_the_hardware(octets: bytes, text: str) -> None:
    """covers: R-11"""
    module = core.Sequence(
        contents=core.ObjectIdentifier("1.3.6.1.4.1.5").dump() + core.OctetString(octets).dump()
    ).dump()
    other = x509.OtherName(x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4"), module)
    names = x509.SubjectAlternativeName([x509.DNSName("x"), other])
    source = SerialNumberSource.HARDWARE_MODULE_NAME
    assert serial_number(device(names, subject=subject("x")), source) == text
    twice = x509.SubjectAlternativeName([other, other])
    broken = x509.SubjectAlternativeName([x509.OtherName(other.type_id, module[2 : -len(octets) - 2])])
    for extensions in ((), (twice,), (broken,)):
        with pytest.raises(IdevidError):
            serial_number(device(*extensions), source)


def test_issuer_in_three_encodings() -> None:
    """covers: P-41, R-41"""
    aki = x509.AuthorityKeyIdentifier.from_issuer_public_key(MAKER.key.public_key())
    certificate = device(aki)
    value = authority_key_identifier_value(certificate)
    assert value[:6] == bytes.fromhex("041830168014")
    raw = asn1_x509.Certificate.load(certificate.public_bytes(Encoding.DER))
    (extension,) = (
        each
        for each in raw["tbs_certificate"]["extensions"]
        if each["extn_id"].native == "authority_key_identifier"
    )
    assert extension["extn_value"].dump() == value
    assert aki.key_identifier is not None
    for spelling in (value, value[2:], aki.key_identifier):
        assert same_issuer(spelling, certificate)
        assert not same_issuer(spelling, device())
        assert not same_issuer(spelling[:-1], certificate)
        assert not same_issuer(spelling + b"\x00", certificate)
    assert not same_issuer(b"", certificate)


def test_issuer_without_an_authority_key_identifier(fixtures: Path) -> None:
    """RFC 8366bis section 6.1, rule 2: of the device's own key.

    covers: R-41
    """
    (printed,) = load_pem(
        (fixtures / "rfc8995" / "C1.5-pledge-idevid-00-D0-E5-F2-00-02.cert.pem").read_bytes()
    )
    # What openssl says is the subjectKeyIdentifier of that certificate.
    expected = bytes.fromhex("0418301680144588cc9696006437b0ba236564645408066c56ad")
    assert authority_key_identifier_value(printed) == expected
    assert same_issuer(expected, printed)


def test_issuer_without_a_key_identifier() -> None:
    """Names and numbers only, which nothing but the whole value says."""
    aki = x509.AuthorityKeyIdentifier(None, [x509.DirectoryName(subject("Maker"))], 5)
    certificate = device(aki)
    value = authority_key_identifier_value(certificate)
    assert same_issuer(value, certificate)
    assert not same_issuer(b"", certificate)


def test_issuers_as_published(fixtures: Path) -> None:
    """The registrar of another implementation wrote what is in the certificate of its pledge.

    covers: R-41
    """
    import cbor2

    request = cbor2.loads((fixtures / "cvoucher" / "rvr-nonsigned.cbor").read_bytes())
    issuer = request[2501][5]
    pledge = load_certificate((fixtures / "cvoucher" / "pledge.cert.der").read_bytes())
    assert authority_key_identifier_value(pledge) == issuer
    assert same_issuer(issuer, pledge)


def test_domain_id() -> None:
    """covers: M-17"""
    own = x509.SubjectKeyIdentifier(b"\x01\x02\x03")
    assert domain_id(device(own)) == b"\x01\x02\x03"
    assert len(domain_id(device())) == 32
    assert domain_id(device()) == domain_id(device(subject=subject("other")))
    assert domain_id(device()) != domain_id(device(kind="p256/other"))
    assert key("p256") is not key("p256/other")


def test_unreadable() -> None:
    """Extensions that say nonsense, of a certificate that loads."""
    der = device(x509.SubjectKeyIdentifier(b"\xaa" * 20)).public_bytes(Encoding.DER)
    broken = load_certificate(der.replace(b"\x04\x16\x04\x14\xaa", b"\x04\x16\x05\x14\xaa"))
    for question in (masa_url, authority_key_identifier_value, domain_id):
        with pytest.raises(IdevidError, match="extensions cannot be read"):
            question(broken)
