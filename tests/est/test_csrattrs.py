"""CSR attributes: what we tell a node, and what servers tell us."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID
from hypothesis import given
from hypothesis import strategies as st

from minerva.est import der
from minerva.est.bodies import decode_base64
from minerva.est.csrattrs import (
    EC_PUBLIC_KEY,
    EXTENSION_REQUEST,
    EXTENSION_REQUEST_TEMPLATE,
    MAX_ELEMENTS,
    MAX_SIZE,
    REQUEST_TEMPLATE,
    RSA_ENCRYPTION,
    Attribute,
    CsrAttributes,
    KeyDemand,
    for_node_name,
)
from minerva.est.errors import EstDecodeError, EstError
from minerva.pki.keys import KeyType, generate_key
from minerva.pki.node_name import ID_ON_ACP_NODE_NAME, AcpNodeName
from minerva.pki.request import RequestedExtension, check_request, load_request, make_request
from tests.pki.certs import node_name

NAME = AcpNodeName.parse(node_name(1))
P384 = x509.ObjectIdentifier("1.3.132.0.34")
P521 = x509.ObjectIdentifier("1.3.132.0.35")
OTHER_OID = x509.ObjectIdentifier("1.2.3.4")
SAN = ExtensionOID.SUBJECT_ALTERNATIVE_NAME


def sequence(*contents: bytes) -> bytes:
    return der.encode(der.SEQUENCE, *contents)


def oid(value: x509.ObjectIdentifier) -> bytes:
    return der.encode_oid(value)


def other_name(text: str, tag: int = der.IA5_STRING) -> bytes:
    return der.encode(0xA0, oid(ID_ON_ACP_NODE_NAME), der.encode(0xA0, der.encode(tag, text.encode())))


def extension(kind: x509.ObjectIdentifier, value: bytes | None = b"\x05\x00", critical: bytes = b"") -> bytes:
    return sequence(oid(kind), critical, b"" if value is None else der.encode(der.OCTET_STRING, value))


def asked(*extensions: bytes, kind: x509.ObjectIdentifier = EXTENSION_REQUEST) -> Attribute:
    return Attribute(kind, (sequence(*extensions),))


def san(*names: bytes, critical: bytes = b"") -> bytes:
    return extension(SAN, sequence(*names), critical)


def attribute(value: Attribute) -> bytes:
    return sequence(oid(value.oid), der.encode(der.SET, *value.values))


def template(*parts: bytes) -> Attribute:
    return Attribute(REQUEST_TEMPLATE, (sequence(b"\x02\x01\x00", *parts),))


@pytest.mark.parametrize("key_type", [None, *KeyType])
@pytest.mark.parametrize(
    "name", [NAME, AcpNodeName.parse("0+r@acp.example.com"), AcpNodeName.parse("@acp.example.com")]
)
def test_what_we_tell_a_node(name: AcpNodeName, key_type: KeyType | None) -> None:
    """covers: R-71, E-7, 6.2.2-8"""
    data = for_node_name(name, key_type)
    told = CsrAttributes.decode(data)
    assert told.node_name == name
    assert [(each.oid, each.critical) for each in told.extensions] == [(SAN, False)]
    assert told.key_type(KeyType.P256) is (key_type or KeyType.P256)
    assert told.encode() == data
    assert for_node_name(name, key_type) == data


def test_the_bytes_of_what_we_tell() -> None:
    """covers: R-71"""
    assert for_node_name(AcpNodeName.parse("@a.b"), KeyType.P384) == bytes.fromhex(
        "3044"
        "302e 06092a864886f70d01090e 3121 301f"  # extensionRequest, of one list
        "301d 0603551d11 0416"  # of one subjectAltName
        "3014 a012 06082b0601050507080a a006 1604 40612e62"  # of one otherName, "@a.b"
        "3012 06072a8648ce3d0201 3107 06052b81040022"  # ecPublicKey, secp384r1
    )


def test_from_the_registrar_to_the_request() -> None:
    """What a registrar tells, a client copies, and the registrar finds it in the request.

    covers: R-71, R-72, P-60, P-61
    """
    told = CsrAttributes.decode(for_node_name(NAME, KeyType.P384))
    key = generate_key(told.key_type())
    request = load_request(make_request(key, told.node_name, extensions=told.extensions))
    check_request(request, NAME)
    assert request.public_key == key.public_key()


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("harkins01", (KeyDemand(RSA_ENCRYPTION, bits=4096),)),
        ("harkins02", (KeyDemand(EC_PUBLIC_KEY, curve=P384),)),
        ("harkins03", (KeyDemand(EC_PUBLIC_KEY, curve=P521),)),
        ("potato-example", (KeyDemand(EC_PUBLIC_KEY, curve=P521),)),
        ("realistic-acp", ()),
        ("rfc7030-example01", (KeyDemand(EC_PUBLIC_KEY, curve=P384),)),
    ],
)
def test_examples_of_the_rfc(fixtures: Path, file: str, keys: tuple[KeyDemand, ...]) -> None:
    """covers: E-7"""
    data = decode_base64((fixtures / "csrattrs" / f"{file}.b64").read_bytes())
    assert data == (fixtures / "csrattrs" / f"{file}.der").read_bytes()
    told = CsrAttributes.decode(data)
    assert told.keys == keys
    assert told.encode() == data
    assert (told.node_name is None) is (file != "realistic-acp")


def test_a_name_as_drafts_had_it(fixtures: Path) -> None:
    """It is taken for what it means, and goes into the request in the form of the RFC.

    covers: E-7, P-61, R-71
    """
    data = (fixtures / "csrattrs" / "realistic-acp.der").read_bytes()
    assert b"rfc8994+fd739fc23c3440112233445500000000+@acp.example.com" in data
    told = CsrAttributes.decode(data)
    name = AcpNodeName.parse("fd739fc23c3440112233445500000000+@acp.example.com")
    assert told.node_name == name
    (names,) = told.extensions
    assert names.critical
    assert b"rfc8994" not in names.value
    der_request = make_request(generate_key(KeyType.P256), told.node_name, extensions=told.extensions)
    made = x509.load_der_x509_csr(der_request).extensions.get_extension_for_oid(SAN)
    assert made.critical
    check_request(load_request(der_request), name)


def test_the_wrong_example_of_rfc_7030(fixtures: Path) -> None:
    """covers: E-7"""
    data = (fixtures / "csrattrs" / "rfc7030-4.5.2-original.der").read_bytes()
    told = CsrAttributes.decode(data)
    assert told.extensions == ()
    assert told.node_name is None
    assert told.key_type() is KeyType.P384
    assert told.encode() == data


def test_the_example_of_rfc_9148(fixtures: Path) -> None:
    """covers: E-7"""
    data = (fixtures / "rfc9148" / "A4-att-resp-285-csrattrs.der").read_bytes()
    told = CsrAttributes.decode(data)
    assert len(told.items) == 6
    assert told.encode() == data
    assert told.key_type() is KeyType.P256


def test_a_request_is_no_csrattrs(fixtures: Path) -> None:
    """The template of RFC 8295, which is a whole request, is another thing."""
    with pytest.raises(EstDecodeError):
        CsrAttributes.decode((fixtures / "csrattrs" / "CSR-template.der").read_bytes())


def test_nothing_demanded() -> None:
    """covers: E-7"""
    told = CsrAttributes.decode(b"\x30\x00")
    assert (told.items, told.extensions, told.node_name, told.keys) == ((), (), None, ())
    assert told.key_type(KeyType.RSA2048) is KeyType.RSA2048


def test_unknown_things_are_ignored() -> None:
    """covers: E-7, P-61"""
    told = CsrAttributes(
        (OTHER_OID, Attribute(OTHER_OID, (b"\x05\x00", b"\x02\x01\x07")), Attribute(OTHER_OID, ()))
    )
    again = CsrAttributes.decode(told.encode())
    assert again == told
    assert again.extensions == ()


def test_extensions_and_their_critical_bit() -> None:
    """covers: P-61, E-7"""
    told = CsrAttributes.decode(
        CsrAttributes(
            (
                asked(
                    san(other_name(str(NAME)), b"\x82\x01a", critical=b"\x01\x01\xff"),
                    extension(OTHER_OID, b"\x04\x00", b"\x01\x01\x00"),
                ),
            )
        ).encode()
    )
    assert told.extensions == (
        RequestedExtension(SAN, True, sequence(other_name(str(NAME)), b"\x82\x01a")),
        RequestedExtension(OTHER_OID, False, b"\x04\x00"),
    )
    assert told.node_name == NAME


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([EC_PUBLIC_KEY], KeyType.P256),
        ([Attribute(EC_PUBLIC_KEY, ())], KeyType.P256),
        ([Attribute(EC_PUBLIC_KEY, (oid(P521),))], KeyType.P521),
        ([RSA_ENCRYPTION], KeyType.RSA3072),
        ([Attribute(RSA_ENCRYPTION, (der.encode_integer(2048),))], KeyType.RSA2048),
        ([Attribute(RSA_ENCRYPTION, (b"\x05\x00",))], KeyType.RSA3072),
        ([Attribute(RSA_ENCRYPTION, (der.encode_integer(4096),)), EC_PUBLIC_KEY], KeyType.P256),
        ([Attribute(EC_PUBLIC_KEY, (oid(P521),)), EC_PUBLIC_KEY], KeyType.P256),
        ([OTHER_OID], KeyType.P256),
    ],
)
def test_which_key_to_make(items: list[x509.ObjectIdentifier | Attribute], expected: KeyType) -> None:
    """covers: E-7, P-61"""
    assert CsrAttributes(tuple(items)).key_type() is expected


@pytest.mark.parametrize(
    ("item", "what"),
    [
        (Attribute(RSA_ENCRYPTION, (der.encode_integer(4096),)), "an RSA key of 4096 bits"),
        (Attribute(RSA_ENCRYPTION, (der.encode_integer(1024),)), "an RSA key of 1024 bits"),
        (Attribute(EC_PUBLIC_KEY, (oid(OTHER_OID),)), "a key on the curve 1.2.3.4"),
    ],
)
def test_keys_that_we_do_not_make(item: Attribute, what: str) -> None:
    """covers: P-61"""
    with pytest.raises(EstError, match=f"the EST server demands {what}, which Minerva does not make"):
        CsrAttributes((item,)).key_type()


def test_with_a_template_only_that_counts() -> None:
    """covers: E-7"""
    subject = sequence(der.encode(der.SET, sequence(oid(x509.ObjectIdentifier("2.5.4.3")))))
    key = der.encode(0xA0, sequence(oid(EC_PUBLIC_KEY), oid(P384)))
    listed = asked(
        san(other_name(str(NAME))),
        extension(ExtensionOID.EXTENDED_KEY_USAGE, None),
        extension(ExtensionOID.KEY_USAGE, None, b"\x01\x01\xff"),
        kind=EXTENSION_REQUEST_TEMPLATE,
    )
    other = str(AcpNodeName.parse(node_name(2)))
    told = CsrAttributes(
        (
            asked(san(other_name(other)), extension(OTHER_OID)),
            Attribute(EC_PUBLIC_KEY, (oid(P521),)),
            template(subject, key, der.encode(0xA1, attribute(listed))),
        )
    )
    assert CsrAttributes.decode(told.encode()) == told
    assert told.node_name == NAME
    # What has no value is for the client to fill in, which has nothing to say.
    assert [each.oid for each in told.extensions] == [SAN]
    assert told.key_type() is KeyType.P384


def test_a_template_with_the_size_of_an_rsa_key() -> None:
    """covers: E-7"""
    placeholder = sequence(der.encode_integer(1 << 2047), der.encode_integer(65537))
    algorithm = sequence(oid(RSA_ENCRYPTION), b"\x05\x00")
    with_key = der.encode(0xA0, algorithm, der.encode(der.BIT_STRING, b"\0", placeholder))
    assert CsrAttributes((template(with_key, b"\xa1\x00"),)).key_type() is KeyType.RSA2048
    assert CsrAttributes((template(der.encode(0xA0, algorithm)),)).key_type() is KeyType.RSA3072


def broken(*items: Attribute | bytes) -> bytes:
    return sequence(*(attribute(item) if isinstance(item, Attribute) else item for item in items))


ONE = san(other_name(str(NAME)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\x31\x00", "tag 0x31"),
        (b"\x30\x00\x00", "more than 1 element"),
        (b"\x30\x02\x05\x00", "tag 0x05"),
        (bytes(MAX_SIZE + 1), "at most 16384 are accepted"),
        (sequence(*([oid(OTHER_OID)] * (MAX_ELEMENTS + 1))), "more than 64 elements"),
        (b"\x30\x02\x30\x00", "not a type and a set of values"),
        (broken(asked(ONE), asked(ONE)), "several lists of extensions"),
        (broken(Attribute(EXTENSION_REQUEST, (sequence(ONE), sequence(ONE)))), "several lists of extensions"),
        (broken(asked(ONE, ONE)), "2 extensions of type 2.5.29.17"),
        (broken(asked(b"\x05\x00")), "extension: ASN.1 tag 0x05"),
        (broken(asked(sequence(oid(SAN), b"\x05\x00"))), "not a type, a critical bit and a value"),
        (broken(asked(sequence())), "not a type, a critical bit and a value"),
        (broken(asked(san(other_name(str(NAME)), other_name(str(NAME))))), "2 acp-node-names, one may be"),
        (broken(asked(san(other_name("nonsense")))), "not an acp-node-name: 'nonsense'"),
        (broken(asked(san(other_name("rfc8994+nonsense")))), "not an acp-node-name: 'nonsense'"),
        (broken(asked(san(other_name("rfc8994+" + str(NAME), 0x0C)))), "otherName: ASN.1 tag 0x0c"),
        (broken(asked(san(other_name(str(NAME), 0x0C)))), "ASN.1 tag 0x0c, not an IA5String"),
        (broken(asked(san(b"\xa0\x00"))), "an otherName is not a type and a value"),
        (broken(asked(extension(SAN, b"\x05\x00"))), "subjectAltName: ASN.1 tag 0x05"),
        (broken(template(), template()), "several request templates"),
        (broken(Attribute(REQUEST_TEMPLATE, ())), "several request templates, one may be"),
        (broken(Attribute(REQUEST_TEMPLATE, (b"\x30\x03\x02\x01\x01",))), "of an unknown version"),
        (broken(Attribute(REQUEST_TEMPLATE, (b"\x30\x00",))), "of an unknown version"),
        (broken(template(b"\xa0\x00")), "key of a request template: empty"),
        (broken(template(b"\xa0\x02\x30\x00")), "no algorithm"),
        (
            broken(template(der.encode(0xA0, sequence(oid(RSA_ENCRYPTION)), b"\x03\x03\0\x30\x00"))),
            "no modulus",
        ),
        (b"\x30\x02\x06\x00", "OBJECT IDENTIFIER: cut off"),
        (b"\x30\x03\x06\x01\x80", "OBJECT IDENTIFIER: not in DER"),
        (b"\x30\x04\x06\x02\x55\x81", "OBJECT IDENTIFIER: cut off"),
        (sequence(der.encode(der.OBJECT_IDENTIFIER, b"\x55" + b"\xff" * 30 + b"\x01")), "longer than any"),
        (broken(Attribute(RSA_ENCRYPTION, (b"\x02\x00",))), "INTEGER of 0 bytes"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    """covers: E-7"""
    with pytest.raises(EstDecodeError, match=reason):
        CsrAttributes.decode(data)


@pytest.mark.parametrize(
    "text", ["0.9.2342.19200300.100.1.5", "1.2.840.113549.1.9.14", "2.5.29.17", "2.999.1"]
)
def test_object_identifiers(text: str) -> None:
    value = x509.ObjectIdentifier(text)
    assert der.decode_oid(der.read(der.encode_oid(value), "test")) == value


@pytest.mark.parametrize(("value", "octets"), [(0, "00"), (127, "7f"), (128, "0080"), (4096, "1000")])
def test_integers(value: int, octets: str) -> None:
    encoded = der.encode_integer(value)
    assert encoded[2:].hex() == octets
    assert der.decode_integer(der.read(encoded, "test")) == value


def test_long_lengths() -> None:
    for size in (0x7F, 0x80, 0xFF, 0x100, 0x10000):
        element = der.read(der.encode(der.OCTET_STRING, bytes(size)), "test")
        assert element.content == bytes(size)


@given(st.binary(max_size=300))
def test_nothing_else_is_raised(data: bytes) -> None:
    """covers: E-7"""
    for candidate in (data, b"\x30\x80" + data + b"\0\0", sequence(data), broken(asked(san(data)))):
        try:
            told = CsrAttributes.decode(candidate)
        except EstDecodeError:
            continue
        assert CsrAttributes.decode(told.encode()) == told


def test_base64_of_the_example(fixtures: Path) -> None:
    """covers: E-3"""
    text = (fixtures / "csrattrs" / "harkins01.b64").read_bytes()
    assert decode_base64(text) == base64.b64decode(text)
