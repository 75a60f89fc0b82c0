"""CMS: what Minerva signs, what others sign, and what must not be believed."""

from __future__ import annotations

import hashlib
import itertools
import random
import subprocess
import time
from base64 import b64encode, encodebytes, urlsafe_b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from asn1crypto import cms as asn1_cms
from asn1crypto import core
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from minerva.pki.certificates import dump_pem, load_certificate, load_pem
from minerva.pki.keys import dump_private_key
from minerva.pki.path import validate_path
from minerva.voucher.cms import (
    ANIMA_JSON_VOUCHER,
    DATA,
    MAX_CERTIFICATES,
    MAX_SIZE,
    Signed,
    open_signed,
    sign,
)
from minerva.voucher.errors import CmsError, CmsSignatureError

from .maker import DOMAIN, MAKER, MASA, MASA_KEY, NOW, REGISTRAR, TLS_CHAIN, Ca, der, key, subject

PAYLOAD = b'{"ietf-voucher:voucher":{"serial-number":"FD-0017"}}'
OURS = sign(PAYLOAD, MASA_KEY, MASA, (MAKER.certificate,), when=NOW)
BARE = sign(PAYLOAD, MASA_KEY, MASA, when=None)
KINDS = ("p256", "p384", "p521", "rsa2048", "rsa3072")

Openssl = Callable[..., bytes]


@pytest.fixture
def openssl(tmp_path: Path) -> Openssl:
    """``openssl cms`` in a folder with the payload, and certificate and key of a signer of each kind."""
    (tmp_path / "payload").write_bytes(PAYLOAD)
    (tmp_path / "root.pem").write_bytes(dump_pem((MAKER.certificate,)))
    for kind in KINDS:
        (tmp_path / f"{kind}.pem").write_bytes(dump_pem((signer(kind),)))
        (tmp_path / f"{kind}.key").write_bytes(dump_private_key(key(f"{kind}/signer")))

    def run(*arguments: str, data: bytes = b"") -> bytes:
        result = subprocess.run(
            ["openssl", "cms", *arguments], cwd=tmp_path, input=data, capture_output=True, check=False
        )
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout

    return run


def signer(kind: str) -> x509.Certificate:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key(f"{kind}/signer").public_key())
    return MAKER.node(
        subject=subject(f"Signer {kind}"), kind=f"{kind}/signer", extensions=[(identifier, False)]
    )


def signed_by_openssl(run: Openssl, *options: str, kind: str = "p256") -> bytes:
    attached = () if "-detached" in options else ("-nodetach",)
    who = ("-signer", f"{kind}.pem", "-inkey", f"{kind}.key")
    arguments = [option for option in options if option != "-detached"]
    return run("-sign", "-binary", *attached, "-in", "payload", "-outform", "DER", *who, *arguments)


def test_form() -> None:
    """DER, version 3, the content type of vouchers, all certificates; read by asn1crypto.

    covers: CM-1, CM-3
    """
    content_info = asn1_cms.ContentInfo.load(OURS, strict=True)
    assert content_info.dump(force=True) == OURS
    signed_data = content_info["content"]
    assert signed_data["version"].native == "v3"
    assert signed_data["encap_content_info"]["content_type"].dotted == ANIMA_JSON_VOUCHER
    assert {choice.chosen.dump() for choice in signed_data["certificates"]} == {
        der(MASA),
        der(MAKER.certificate),
    }
    (info,) = signed_data["signer_infos"]
    attributes = {
        attribute["type"].native: attribute["values"][0].native for attribute in info["signed_attrs"]
    }
    assert set(attributes) == {"content_type", "message_digest", "signing_time"}
    assert attributes["signing_time"] == NOW
    assert info["signature_algorithm"]["algorithm"].native == "sha256_ecdsa"
    as_data = asn1_cms.ContentInfo.load(sign(PAYLOAD, MASA_KEY, MASA, when=None, content_type=DATA))[
        "content"
    ]
    assert as_data["version"].native == "v1"
    assert as_data["encap_content_info"]["content_type"].native == "data"
    assert [each["type"].native for each in as_data["signer_infos"][0]["signed_attrs"]] == [
        "content_type",
        "message_digest",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_with_openssl(openssl: Openssl, kind: str, tmp_path: Path) -> None:
    """covers: CM-1, CM-2"""
    ours = sign(PAYLOAD, key(f"{kind}/signer"), signer(kind), when=NOW)
    (tmp_path / "signed").write_bytes(ours)
    arguments = ("-CAfile", "root.pem", "-attime", str(int(NOW.timestamp())), "-purpose", "any", "-binary")
    assert openssl("-verify", "-inform", "DER", "-in", "signed", *arguments) == PAYLOAD
    assert open_signed(ours).payload == PAYLOAD
    digest = {"p384": "sha384", "p521": "sha512"}.get(kind, "sha256")
    theirs = open_signed(signed_by_openssl(openssl, "-md", digest, kind=kind))
    assert (theirs.payload, theirs.content_type) == (PAYLOAD, DATA)
    assert theirs.signer.subject == signer(kind).subject
    assert abs(theirs.signing_time - datetime.now(UTC)) < timedelta(hours=1)  # type: ignore[operator]
    anima = open_signed(signed_by_openssl(openssl, "-econtent_type", ANIMA_JSON_VOUCHER, kind=kind))
    assert anima.content_type == ANIMA_JSON_VOUCHER
    by_key = open_signed(signed_by_openssl(openssl, "-keyid", kind=kind))
    assert by_key.signer == theirs.signer


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_rsa_pss(openssl: Openssl, digest: str) -> None:
    options = ("-keyopt", "rsa_padding_mode:pss", "-md", digest)
    signed = signed_by_openssl(openssl, *options, kind="rsa2048")
    assert open_signed(signed).payload == PAYLOAD
    salt = signed_by_openssl(openssl, *options, "-keyopt", "rsa_pss_saltlen:20", kind="rsa2048")
    assert open_signed(salt).payload == PAYLOAD
    with pytest.raises(CmsSignatureError):
        open_signed(signed.replace(b"FD-0017", b"FD-0017")[:-1] + bytes([signed[-1] ^ 1]))
    other_mask = ("-keyopt", f"rsa_mgf1_md:{'sha512' if digest == 'sha256' else 'sha256'}")
    with pytest.raises(CmsError, match="another digest"):
        open_signed(signed_by_openssl(openssl, *options, *other_mask, kind="rsa2048"))


def test_spellings(openssl: Openssl) -> None:
    """BER of indefinite length, base64 of any kind, PEM.

    covers: CM-2, CM-4
    """
    streamed = signed_by_openssl(openssl, "-stream")
    assert streamed[1] == 0x80
    assert open_signed(streamed).payload == PAYLOAD
    pem = openssl("-cmsout", "-inform", "DER", "-outform", "PEM", data=OURS)
    assert pem.startswith(b"-----BEGIN CMS-----")
    assert open_signed(pem) == open_signed(pem.replace(b"CMS-----", b"PKCS7-----")) == open_signed(OURS)
    for text in (
        b64encode(OURS),
        encodebytes(OURS),
        urlsafe_b64encode(OURS).rstrip(b"="),
        pem.replace(b"\n", b"\r\n"),
    ):
        assert open_signed(text).payload == PAYLOAD
    for text in (b"-----BEGIN CMS-----\n", pem[:-9], pem.replace(b"BEGIN CMS", b"BEGIN KEY"), b"\xff" * 9):
        with pytest.raises(CmsError):
            open_signed(text)


def test_published(fixtures: Path) -> None:
    """Every published voucher and request, under the CA that signed it.

    covers: CM-1, CM-2
    """
    anchors = [
        *load_pem((fixtures / "rfc8995" / "C1.1-manufacturer-ca-p384.cert.pem").read_bytes()),
        *load_pem((fixtures / "rfc8995" / "C1.3-registrar-domain-ca-p384.cert.pem").read_bytes()),
    ]
    found = sorted(path for folder in ("rfc8995", "rfc8366") for path in (fixtures / folder).glob("*"))
    names = [path for path in found if path.suffix in (".der", ".b64") and ".cert" not in path.name]
    names = [path for path in names if "idevid" not in path.name]
    assert len(names) == 7
    for path in names:
        signed = open_signed(path.read_bytes())
        assert signed.content_type == DATA
        assert signed.payload.startswith(b'{"ietf-voucher')
        assert validate_path(signed.chain, anchors, signed.signing_time)[-1] in anchors
    run = fixtures / "rfc8995"
    assert open_signed((run / "C2.1-pvr-pledge-to-registrar.cms.der").read_bytes()).payload == (
        run / "C2.1-pvr-pledge-to-registrar.payload.json"
    ).read_bytes().rstrip(b"\n")
    embedded = load_certificate((run / "C2.1-embedded-idevid-serial-0d83afd9.cert.der").read_bytes())
    assert open_signed((run / "C2.1-pvr-pledge-to-registrar.cms.der").read_bytes()).signer == embedded


def tlv(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def oid(dotted: str) -> bytes:
    return bytes(core.ObjectIdentifier(dotted).dump())


def attribute(dotted: str, *values: bytes) -> bytes:
    return tlv(0x30, oid(dotted), tlv(0x31, *values))


CONTENT_TYPE = attribute("1.2.840.113549.1.9.3", oid(ANIMA_JSON_VOUCHER))
DIGEST = attribute("1.2.840.113549.1.9.4", tlv(0x04, hashlib.sha256(PAYLOAD).digest()))
ECDSA_WITH_SHA256 = "1.2.840.10045.4.3.2"
SHA256 = tlv(0x30, oid("2.16.840.1.101.3.4.2.1"))
CONTENT = tlv(0x04, PAYLOAD)


def assembled(
    *,
    attributes: Sequence[bytes] = (CONTENT_TYPE, DIGEST),
    certificates: Sequence[bytes] = (der(MASA),),
    content: bytes = CONTENT,
    algorithm: str = ECDSA_WITH_SHA256,
    crls: bytes = b"",
    unsigned: bytes = b"",
) -> bytes:
    """A SignedData with a good signature of the MASA's, put together without regard to what it says."""
    signature = MASA_KEY.sign(tlv(0x31, *attributes), ec.ECDSA(hashes.SHA256()))
    sid = tlv(0x30, MASA.issuer.public_bytes(), core.Integer(MASA.serial_number).dump())
    info = tlv(
        0x30,
        tlv(0x02, b"\x01"),
        sid,
        SHA256,
        tlv(0xA0, *attributes),
        tlv(0x30, oid(algorithm)),
        tlv(0x04, signature),
        unsigned,
    )
    signed_data = tlv(
        0x30,
        tlv(0x02, b"\x03"),
        tlv(0x31, SHA256),
        tlv(0x30, oid(ANIMA_JSON_VOUCHER), tlv(0xA0, content)),
        tlv(0xA0, *certificates),
        crls,
        tlv(0x31, info),
    )
    return tlv(0x30, oid("1.2.840.113549.1.7.2"), tlv(0xA0, signed_data))


def test_assembled() -> None:
    opened = open_signed(assembled())
    assert opened == open_signed(BARE) == Signed(PAYLOAD, ANIMA_JSON_VOUCHER, MASA, (MASA,), None)
    # CRLs, which RFC 8366bis allows and discourages, and what is not signed, such as a time stamp.
    assert open_signed(assembled(crls=tlv(0xA1, tlv(0x30)))) == opened
    assert open_signed(assembled(unsigned=tlv(0xA1, attribute("1.2.3", tlv(0x05))))) == opened


def test_order_of_certificates() -> None:
    """The signer is found wherever it is, or among those who are known.

    covers: CM-3, CM-4
    """
    chain = [MAKER.certificate, DOMAIN.certificate, MASA]
    for certificates in itertools.permutations(chain):
        opened = open_signed(assembled(certificates=[der(each) for each in certificates]))
        assert opened.signer == MASA
        assert opened.certificates == certificates
        assert opened.chain == (MASA, *(each for each in certificates if each != MASA))
        assert validate_path(opened.chain, (MAKER.certificate,), NOW)
    without = assembled(certificates=())
    assert open_signed(without, known=(REGISTRAR, MASA)) == Signed(
        PAYLOAD, ANIMA_JSON_VOUCHER, MASA, (), None
    )
    for known in ((), (REGISTRAR,)):
        with pytest.raises(CmsError, match="certificate of the signer is missing"):
            open_signed(without, known=known)
    other_choice = tlv(0xA2, tlv(0x02, b"\x01"))
    assert open_signed(assembled(certificates=(other_choice, der(MASA)))).certificates == (MASA,)
    with pytest.raises(CmsError, match="not a certificate"):
        open_signed(assembled(certificates=(der(MASA), tlv(0x30, b""))))


def test_what_openssl_can_do_wrong(openssl: Openssl) -> None:
    """Detached, without certificates, without attributes, two signers, an old digest.

    covers: CM-1, CM-4
    """
    cases = {
        "there is no content": signed_by_openssl(openssl, "-detached"),
        "certificate of the signer is missing": signed_by_openssl(openssl, "-nocerts"),
        "no signed attributes": signed_by_openssl(openssl, "-noattr"),
        "2 signatures": signed_by_openssl(openssl, "-signer", "p384.pem", "-inkey", "p384.key"),
        "digest is none of": signed_by_openssl(openssl, "-md", "sha1"),
        "neither a voucher": signed_by_openssl(openssl, "-econtent_type", "1.2.840.113549.1.9.16.1.42"),
    }
    for sentence, data in cases.items():
        with pytest.raises(CmsError, match=sentence):
            open_signed(data)
    anima = ("-econtent_type", ANIMA_JSON_VOUCHER)
    with pytest.raises(CmsError, match="no signed attributes"):
        open_signed(signed_by_openssl(openssl, "-noattr", *anima))


def test_other_containers(openssl: Openssl) -> None:
    """covers: CM-4"""
    digested = openssl("-digest_create", "-in", "payload", "-outform", "DER")
    compressed_not_there = openssl("-data_create", "-in", "payload", "-outform", "DER")
    for data in (digested, compressed_not_there, der(MASA), b"\x30\x00", b"\x31\x00", core.Integer(1).dump()):
        with pytest.raises(CmsError):
            open_signed(data)


def test_signatures_that_do_not_fit() -> None:
    """covers: CM-4"""
    with pytest.raises(CmsSignatureError, match="content is not the one"):
        open_signed(OURS.replace(b"FD-0017", b"FD-0018"))
    with pytest.raises(CmsSignatureError, match="not one of the signer's key"):
        open_signed(OURS[:-1] + bytes([OURS[-1] ^ 1]))
    thief = Ca(MAKER.certificate, key("p384/maker")).node(subject=subject("MASA"), kind="p256/thief")
    with pytest.raises(CmsError, match="certificate of the signer is missing"):
        open_signed(assembled(certificates=(der(thief),)))
    with pytest.raises(ValueError, match="not that of the certificate"):
        sign(PAYLOAD, key("p256/other"), MASA, when=NOW)
    with pytest.raises(ValueError, match="time zone"):
        sign(PAYLOAD, MASA_KEY, MASA, when=NOW.replace(tzinfo=None))


def test_attributes_that_do_not_fit() -> None:
    """All of these are signed with the right key.

    covers: CM-1, CM-4
    """
    as_data = attribute("1.2.840.113549.1.9.3", oid(DATA))
    both = attribute("1.2.840.113549.1.9.3", oid(ANIMA_JSON_VOUCHER), oid(DATA))
    other = attribute("1.2.840.113549.1.9.4", tlv(0x04, bytes(32)))
    null = tlv(0x05)
    many = [attribute(f"1.2.{number}", null) for number in range(15)]
    cases: dict[str, list[tuple[bytes, ...]]] = {
        "type that was signed": [(as_data, DIGEST), (DIGEST,), (both, DIGEST)],
        "content is not the one": [(CONTENT_TYPE,), (CONTENT_TYPE, other)],
        "comes twice": [(CONTENT_TYPE, CONTENT_TYPE, DIGEST), (CONTENT_TYPE, DIGEST, other)],
        "17 signed attributes": [(CONTENT_TYPE, DIGEST, *many)],
    }
    for sentence, variants in cases.items():
        for variant in variants:
            with pytest.raises(CmsError, match=sentence):
                open_signed(assembled(attributes=variant))
    unknown = attribute("1.2.3", null, tlv(0x02, b"\x01"))
    assert open_signed(assembled(attributes=(unknown, DIGEST, CONTENT_TYPE))).payload == PAYLOAD


@pytest.mark.parametrize(
    ("value", "year"),
    [
        (tlv(0x17, b"210413214324Z"), 2021),
        (tlv(0x18, b"20210413214324Z"), 2021),
        (tlv(0x18, b"21210413214324Z"), 2121),
        (tlv(0x18, b"20210413174324-0400"), 2021),
        (tlv(0x18, b"20210413214324"), None),
        (tlv(0x18, b"00000413214324Z"), None),
        (tlv(0x17, b"990231000000Z"), None),
        (tlv(0x17, b"yesterday"), None),
        (tlv(0x02, b"\x05"), None),
        (tlv(0x30), None),
    ],
)
def test_signing_time(value: bytes, year: int | None) -> None:
    signed = assembled(attributes=(CONTENT_TYPE, DIGEST, attribute("1.2.840.113549.1.9.5", value)))
    if year is not None:
        assert open_signed(signed).signing_time == datetime(year, 4, 13, 21, 43, 24, tzinfo=UTC)
        return
    with pytest.raises(CmsError):
        open_signed(signed)


@pytest.mark.parametrize("year", [1949, 1950, 2049, 2050, 9999])
def test_signing_time_of_ours(year: int) -> None:
    moment = datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC)
    signed = sign(PAYLOAD, MASA_KEY, MASA, when=moment)
    assert open_signed(signed).signing_time == moment
    (info,) = asn1_cms.ContentInfo.load(signed)["content"]["signer_infos"]
    (choice,) = (each["values"][0] for each in info["signed_attrs"] if each["type"].native == "signing_time")
    assert choice.name == ("utc_time" if 1950 <= year < 2050 else "generalized_time")


def test_algorithm_that_does_not_fit_the_key() -> None:
    rsa_encryption, rsa_with_sha256 = "1.2.840.113549.1.1.1", "1.2.840.113549.1.1.11"
    for algorithm in (rsa_encryption, rsa_with_sha256, "1.2.840.113549.1.1.10", "1.2.3"):
        with pytest.raises(CmsError, match="kind that does not fit"):
            open_signed(assembled(algorithm=algorithm))
    with pytest.raises(CmsError, match="another digest"):
        open_signed(assembled(algorithm="1.2.840.10045.4.3.3"))


def test_weak_key_of_the_signer() -> None:
    for kind in ("rsa1024", "p224"):
        certificate = MAKER.node(subject=subject("Weak"), kind=kind)
        with pytest.raises(CmsError, match="certificate is of no use"):
            open_signed(sign(PAYLOAD, key(kind), certificate, when=NOW))


def test_too_much() -> None:
    """Size, certificates, trailing bytes, nesting.

    covers: CM-4
    """
    room = MAX_SIZE - len(BARE) + len(PAYLOAD) - 8
    assert len(open_signed(sign(b"x" * room, MASA_KEY, MASA, when=None)).payload) == room
    for data in (sign(b"x" * MAX_SIZE, MASA_KEY, MASA, when=None), b"A" * 3 * MAX_SIZE):
        with pytest.raises(CmsError, match="at most"):
            open_signed(data)
        with pytest.raises(CmsError, match="at most"):
            open_signed(b64encode(data))
    for tail in (b"\x00", OURS):
        with pytest.raises(CmsError):
            open_signed(OURS + tail)
    chain = [MAKER.ca(f"CA {number}").certificate for number in range(MAX_CERTIFICATES)]
    assert (
        len(open_signed(sign(PAYLOAD, MASA_KEY, MASA, chain[1:], when=None)).certificates) == MAX_CERTIFICATES
    )
    with pytest.raises(CmsError, match="at most 15"):
        open_signed(sign(PAYLOAD, MASA_KEY, MASA, chain, when=None))


def indefinite(depth: int) -> bytes:
    return b"\x30\x80" * depth


def hostile() -> dict[str, bytes]:
    """What costs a naive reader much, each as large as is accepted."""
    oid = core.ObjectIdentifier("1.2.840.113549.1.7.2").dump()
    head = b"\x30\x80" + oid + b"\xa0\x80\x30\x80\x02\x01\x03\x31\x00"
    anima = core.ObjectIdentifier(ANIMA_JSON_VOUCHER).dump()
    room = MAX_SIZE - 200
    segments = head + b"\x30\x80" + anima + b"\xa0\x80\x24\x80"
    return {
        "nested": indefinite(MAX_SIZE // 2),
        "nested and closed": indefinite(MAX_SIZE // 4) + b"\x00\x00" * (MAX_SIZE // 4),
        "content in segments": segments + b"\x04\x00" * (room // 2),
        "content in segments of segments": segments + b"\x24\x80" * (room // 2),
        "many signers": head + b"\x30\x80" + anima + b"\x00\x00" + b"\x31\x80" + b"\x30\x00" * (room // 2),
        "many digests": head[:-2] + b"\x31\x80" + b"\x05\x00" * (room // 2),
        "long object identifier": b"\x30\x80\x06\x82" + (room - 4).to_bytes(2) + b"\xff" * (room - 4),
    }


@pytest.mark.parametrize("name", hostile())
def test_hostile(name: str) -> None:
    """Refused, and soon: nothing here takes longer than it does to read it a few times over.

    covers: CM-4
    """
    data = hostile()[name]
    assert len(data) <= MAX_SIZE
    start = time.perf_counter()
    with pytest.raises(CmsError):
        open_signed(data)
    assert time.perf_counter() - start < 2


def test_content_in_segments() -> None:
    """As BER allows it, of a byte each, and as many as there is room for."""
    segments = [tlv(0x04, bytes([byte])) for byte in PAYLOAD]
    assert open_signed(assembled(content=b"\x24\x80" + b"".join(segments) + bytes(2))).payload == PAYLOAD
    empty = b"\x04\x00" * ((MAX_SIZE - 2000) // 2)
    start = time.perf_counter()
    assert (
        open_signed(assembled(content=b"\x24\x80" + b"".join(segments) + empty + bytes(2))).payload == PAYLOAD
    )
    assert time.perf_counter() - start < 2


@given(st.binary(max_size=2000), st.sampled_from([NOW, None]), st.sampled_from([ANIMA_JSON_VOUCHER, DATA]))
def test_any_payload(payload: bytes, when: datetime | None, content_type: str) -> None:
    opened = open_signed(sign(payload, MASA_KEY, MASA, TLS_CHAIN, when=when, content_type=content_type))
    assert (opened.payload, opened.content_type, opened.signing_time) == (payload, content_type, when)
    assert opened.chain[0] == MASA


def _mutations(data: bytes, seed: int, count: int) -> Sequence[bytes]:
    numbers = random.Random(seed)
    found = []
    for _ in range(count):
        mutated = bytearray(data)
        for _ in range(numbers.randint(1, 3)):
            match numbers.randrange(3):
                case 0:
                    mutated[numbers.randrange(len(mutated))] = numbers.randrange(256)
                case 1:
                    start = numbers.randrange(len(mutated))
                    del mutated[start : start + numbers.randint(1, 40)]
                case _:
                    mutated.insert(numbers.randrange(len(mutated)), numbers.randrange(256))
        found.append(bytes(mutated))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_mutilated(seed: int, fixtures: Path) -> None:
    """What still opens says what was signed.

    covers: CM-4
    """
    published = (fixtures / "rfc8995" / "C2.2-rvr-registrar-to-masa.cms.der").read_bytes()
    for data in (OURS, published):
        payload = open_signed(data).payload
        for mutated in _mutations(data, seed, 300):
            try:
                opened = open_signed(mutated)
            except CmsError:
                continue
            assert opened.payload == payload


@given(st.binary(max_size=200))
def test_garbage(data: bytes) -> None:
    with pytest.raises(CmsError):
        open_signed(data)
