"""What is signed, and that nothing else can be."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from minerva.ikev2.auth import (
    HashAlgorithm,
    authentication_data,
    check_own_init,
    choose_hash,
    sign,
    signed_octets,
    verify,
)
from minerva.ikev2.config import Config
from minerva.ikev2.constants import Flag, NotifyType
from minerva.ikev2.errors import IkeDecodeError, IkeError, IkePeerError, IkeUsageError
from minerva.ikev2.message import decode_message, encode_message
from minerva.ikev2.payloads import (
    Authentication,
    Certificate,
    Delete,
    KeyExchange,
    Nonce,
    Notify,
    Opaque,
    VendorId,
    digital_signature,
)
from minerva.ikev2.proposals import SecurityAssociation, esp_offer
from minerva.pki.errors import Rule
from tests.ikev2.nodes import hands, recorded
from tests.pki import certs

EVERY = frozenset(HashAlgorithm)
SHA256, SHA384, SHA512 = HashAlgorithm.SHA2_256, HashAlgorithm.SHA2_384, HashAlgorithm.SHA2_512


@pytest.fixture(scope="module", params=list(Config().groups))
def inits(request: Any) -> list[bytes]:
    """An IKE_SA_INIT request and its response."""
    config = Config(groups=(request.param,))
    return recorded(*hands(config, config))[:2]


def test_own_messages_are_recognized(inits: list[bytes]) -> None:
    for message in inits:
        check_own_init(message)


def test_whatever_is_changed_in_the_structure_is_refused(inits: list[bytes]) -> None:
    """Every byte of a header or a length is fixed; only values inside may differ."""
    for message in inits:
        for cut in range(len(message)):
            with pytest.raises(IkeDecodeError):
                check_own_init(message[:cut])
        with pytest.raises(IkeDecodeError):
            check_own_init(message + b"\x00")
        # Next payload, version, exchange, flags, message ID, length of the header; then the generic header.
        for position in range(16, 32):
            for bit in range(8):
                changed = bytearray(message)
                changed[position] ^= 1 << bit
                with pytest.raises(IkeDecodeError):
                    check_own_init(bytes(changed))


@pytest.mark.parametrize(
    "extra",
    [
        Certificate(4, b"\x30\x00"),
        Authentication(14, b""),
        Delete(1),
        Nonce(b"n" * 16),
        KeyExchange(19, bytes(64)),
        Notify(NotifyType.NO_PROPOSAL_CHOSEN),
        Notify(NotifyType.COOKIE, b"c", 3, b"spi!"),
        Opaque(200, b"anything"),
    ],
)
def test_other_payloads_are_refused(inits: list[bytes], extra: Any) -> None:
    for message in inits:
        header, payloads = decode_message(message)
        with pytest.raises(IkeDecodeError):
            check_own_init(encode_message(header, (*payloads, extra)))


def test_payloads_that_may_be_there(inits: list[bytes]) -> None:
    for message in inits:
        header, payloads = decode_message(message)
        check_own_init(encode_message(header, (Notify(NotifyType.COOKIE, b"c" * 33), *payloads)))
        check_own_init(encode_message(header, (*payloads, VendorId(b"v"))))


def test_key_exchanges_and_proposals_that_are_not_ours(inits: list[bytes]) -> None:
    for message in inits:
        header, payloads = decode_message(message)
        for group, length in ((15, 384), (14, 255), (19, 63), (31, 33)):
            other = [KeyExchange(group, bytes(length)) if isinstance(p, KeyExchange) else p for p in payloads]
            with pytest.raises(IkeDecodeError, match="another group or length"):
                check_own_init(encode_message(header, other))
        other = [esp_offer(b"spi!") if isinstance(p, SecurityAssociation) else p for p in payloads]
        with pytest.raises(IkeDecodeError, match="not for an initial IKE SA"):
            check_own_init(encode_message(header, other))


def test_a_message_that_is_too_long(inits: list[bytes]) -> None:
    for message in inits:
        header, payloads = decode_message(message)
        with pytest.raises(IkeDecodeError, match="at most 8192"):
            check_own_init(encode_message(header, (*payloads, VendorId(bytes(8192)))))


def test_missing_payloads(inits: list[bytes]) -> None:
    for message in inits:
        header, payloads = decode_message(message)
        for position in range(3):
            with pytest.raises(IkeDecodeError):
                check_own_init(encode_message(header, payloads[:position] + payloads[position + 1 :]))


def test_a_certificate_request_is_for_responses_only(inits: list[bytes]) -> None:
    request, response = (decode_message(message) for message in inits)
    with pytest.raises(IkeDecodeError):
        check_own_init(encode_message(request[0], response[1]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" " * 64 + b"TLS 1.3, server CertificateVerify\x00" + bytes(32),
        b" " * 64 + b"TLS 1.3, client CertificateVerify\x00" + bytes(48),
        b"\x30\x82\x01\x00\x02\x01\x00" + bytes(253),
        bytes(10_000),
    ],
)
def test_other_things_that_one_could_want_signed(data: bytes) -> None:
    with pytest.raises(IkeError):
        check_own_init(data)


@pytest.mark.parametrize(
    ("nonce", "maced_id"), [(15, 32), (257, 32), (16, 31), (16, 33), (16, 0), (0, 48), (32, 65)]
)
def test_impossible_lengths(nonce: int, maced_id: int) -> None:
    with pytest.raises(IkeDecodeError):
        signed_octets(b"m", bytes(nonce), bytes(maced_id))


def test_signed_octets() -> None:
    assert signed_octets(b"message", b"n" * 16, b"i" * 32) == b"message" + b"n" * 16 + b"i" * 32


# --- signatures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["p256", "p384", "p521"])
@pytest.mark.parametrize("algorithm", list(HashAlgorithm))
def test_every_curve_with_every_hash(kind: str, algorithm: HashAlgorithm) -> None:
    """covers: 6.8.3.1.2-6"""
    key = certs.key(kind)
    data = authentication_data(key.public_key(), algorithm, sign(key, b"octets", algorithm))
    assert data[:1] + data[1:12] == bytes.fromhex("0c 300a06082a8648ce3d0403")
    assert data[12] == algorithm
    verify(key.public_key(), b"octets", digital_signature(data))
    with pytest.raises(IkePeerError, match="signature is wrong") as caught:
        verify(key.public_key(), b"octetz", digital_signature(data))
    assert caught.value.rule == Rule.PROOF_OF_POSSESSION
    assert caught.value.notify == NotifyType.AUTHENTICATION_FAILED


@pytest.mark.parametrize(
    ("authentication", "why"),
    [
        (Authentication(1, b"\x0c"), "method 1; RFC 8994 wants 14"),
        (Authentication(2, b"psk"), "method 2"),
        (Authentication(9, bytes(64)), "method 9"),
        (digital_signature(b""), "cannot be read"),
        (digital_signature(b"\x0c\x30"), "cannot be read"),
        (digital_signature(bytes.fromhex("0b 300906072a8648ce3d0401") + b"s"), "only RSASSA-PSS"),
        (digital_signature(bytes.fromhex("0c 300a06082a8648ce3d040302")), "signature is wrong"),
        (digital_signature(bytes.fromhex("0c 300a06082a8648ce3d040302") + b"\x30\xff"), "signature is wrong"),
    ],
)
def test_what_is_not_a_signature(authentication: Authentication, why: str) -> None:
    """covers: 6.8.3.1.2-6"""
    with pytest.raises(IkePeerError, match=why):
        verify(certs.key("p256").public_key(), b"octets", authentication)


RSA_HASHES = {SHA256: hashes.SHA256(), SHA384: hashes.SHA384(), SHA512: hashes.SHA512()}


@pytest.mark.parametrize("algorithm", list(HashAlgorithm))
def test_rsa_signs_with_pss(algorithm: HashAlgorithm) -> None:
    """Which is what RFC 8247 demands; the identifiers are those of RFC 7427 appendix A.4.

    covers: 6.8.3.1.2-1, 6.8.3.1.2-6
    """
    key = certs.key("rsa2048")
    data = authentication_data(key.public_key(), algorithm, sign(key, b"octets", algorithm))
    length = {SHA256: 0x20, SHA384: 0x30, SHA512: 0x40}[algorithm]
    number = {SHA256: 1, SHA384: 2, SHA512: 3}[algorithm]
    expected = (
        "304606092a864886f70d01010a3039a00f300d0609608648016503040201"
        "0500a11c301a06092a864886f70d010108300d06096086480165030402010500a203020120a303020101"
    )
    identifier = bytes.fromhex(
        expected.replace("03040201", f"030402{number:02x}").replace("a203020120", f"a2030201{length:02x}")
    )
    assert data[: 1 + len(identifier)] == bytes((len(identifier),)) + identifier
    assert len(identifier) == 72
    verify(key.public_key(), b"octets", digital_signature(data))
    with pytest.raises(IkePeerError, match="signature is wrong") as caught:
        verify(key.public_key(), b"octetz", digital_signature(data))
    assert caught.value.rule == Rule.PROOF_OF_POSSESSION


@pytest.mark.parametrize("null", ["0500", ""])
@pytest.mark.parametrize("trailer", ["a303020101", ""])
def test_other_ways_to_write_pss(null: str, trailer: str) -> None:
    """Parameters that are absent instead of NULL, a default that is left out: the same algorithm."""
    key = certs.key("rsa2048")
    signature = sign(key, b"octets", SHA512)
    name = "0609608648016503040203" + null
    size = len(name) // 2
    parts = f"a0{size + 2:02x}30{size:02x}{name}a1{size + 15:02x}30{size + 13:02x}06092a864886f70d010108"
    parts += f"30{size:02x}{name}a203020140{trailer}"
    body = f"06092a864886f70d01010a30{len(parts) // 2:02x}{parts}"
    identifier = bytes.fromhex(f"30{len(body) // 2:02x}{body}")
    verify(key.public_key(), b"octets", digital_signature(bytes((len(identifier),)) + identifier + signature))


@pytest.mark.parametrize("algorithm", list(HashAlgorithm))
@pytest.mark.parametrize("kind", ["rsa2048", "rsa3072"])
def test_pkcs1_is_accepted(algorithm: HashAlgorithm, kind: str) -> None:
    """covers: 6.8.3.1.2-1, 6.8.3.1.2-6"""
    key = certs.key(kind)
    signature = key.sign(b"octets", padding.PKCS1v15(), RSA_HASHES[algorithm])
    last = {SHA256: "0b", SHA384: "0c", SHA512: "0d"}[algorithm]
    data = bytes.fromhex(f"0f 300d06092a864886f70d0101{last}0500") + signature
    verify(key.public_key(), b"octets", digital_signature(data))
    with pytest.raises(IkePeerError, match="signature is wrong"):
        verify(key.public_key(), b"octetz", digital_signature(data))


@pytest.mark.parametrize(
    "identifier",
    [
        "300d06092a864886f70d0101050500",  # sha1WithRSAEncryption
        "300d06092a864886f70d01010e0500",  # sha224WithRSAEncryption
        "300d06092a864886f70d01010a3000",  # RSASSA-PSS with its defaults: SHA-1
        "300b06092a864886f70d01010a",  # and without parameters
    ],
)
def test_weak_rsa_signatures_are_refused(identifier: str) -> None:
    """covers: 6.8.3.1.2-1"""
    data = bytes.fromhex(identifier)
    authentication = digital_signature(bytes((len(data),)) + data + bytes(256))
    with pytest.raises(IkePeerError, match="only RSASSA-PSS"):
        verify(certs.key("rsa2048").public_key(), b"octets", authentication)


def test_keys_and_algorithms_must_fit() -> None:
    rsa_key, curve_key = certs.key("rsa2048"), certs.key("p256")
    for_curve = authentication_data(curve_key.public_key(), SHA256, sign(curve_key, b"o", SHA256))
    for_rsa = authentication_data(rsa_key.public_key(), SHA256, sign(rsa_key, b"o", SHA256))
    for key, data in ((rsa_key, for_curve), (curve_key, for_rsa)):
        with pytest.raises(IkePeerError, match="and a key of type"):
            verify(key.public_key(), b"o", digital_signature(data))


@pytest.mark.parametrize("bits", [1024, 2040, 8200, 16_384])
def test_rsa_keys_of_other_sizes(bits: int) -> None:
    """Refused before anything is computed with them: a large one would keep us busy."""
    modulus = (1 << bits) - 1
    key = rsa.RSAPublicNumbers(65537, modulus).public_key()
    assert key.key_size == bits
    data = bytes.fromhex("0f 300d06092a864886f70d01010b0500") + bytes(bits // 8)
    with pytest.raises(IkePeerError, match="of 2,048 to 8,192 bits"):
        verify(key, b"octets", digital_signature(data))
    with pytest.raises(IkeUsageError, match="RSA keys of 2,048 to 8,192 bits"):
        choose_hash(key, None)


@pytest.mark.parametrize(
    ("kind", "offered", "chosen"),
    [
        ("p256", None, SHA256),
        ("p256", EVERY, SHA256),
        ("p384", EVERY, SHA384),
        ("p521", EVERY, SHA512),
        ("p384", frozenset({SHA256, SHA512}), SHA512),
        ("p521", frozenset({SHA256}), SHA256),
        ("p256", frozenset({SHA512}), SHA512),
        ("p256", frozenset(), None),
        ("rsa2048", None, SHA256),
        ("rsa2048", EVERY, SHA256),
        ("rsa2048", frozenset({SHA512}), SHA512),
    ],
)
def test_the_hash_is_as_strong_as_the_curve_if_the_peer_has_it(
    kind: str, offered: frozenset[HashAlgorithm] | None, chosen: HashAlgorithm | None
) -> None:
    """covers: 6.8.3.1.2-6"""
    assert choose_hash(certs.key(kind).public_key(), offered) == chosen


def test_other_curves_cannot_sign() -> None:
    with pytest.raises(IkeUsageError):
        choose_hash(ec.generate_private_key(ec.SECP224R1()).public_key(), None)


def test_the_header_says_who_we_are(inits: list[bytes]) -> None:
    request, response = (decode_message(message)[0] for message in inits)
    assert request.flags == Flag.INITIATOR
    assert response.flags == Flag.RESPONSE
