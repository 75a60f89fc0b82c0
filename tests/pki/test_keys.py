"""Which keys and signatures are accepted."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from minerva.pki.errors import KeyRuleError
from minerva.pki.keys import (
    KeyType,
    check_certificate,
    check_public_key,
    check_signature_algorithm,
    dump_private_key,
    generate_key,
    load_private_key,
    signature_hash,
)

from .certs import Ca, key, node_name


@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "rsa2048", "rsa3072"])
def test_accepted(kind: str) -> None:
    """covers: 6.2.1-4, 6.2.1-5"""
    check_public_key(key(kind).public_key())


@pytest.mark.parametrize("kind", ["rsa1024", "rsa2047", "p224", "brainpool", "ed25519", "dsa"])
def test_refused(kind: str) -> None:
    """covers: 6.2.1-3"""
    with pytest.raises(KeyRuleError):
        check_public_key(key(kind).public_key())


def test_a_modulus_that_is_a_burden_is_refused() -> None:
    with pytest.raises(KeyRuleError, match="16384 bits"):
        check_public_key(rsa.RSAPublicNumbers(65537, (1 << 16383) + 1).public_key())


def test_signatures() -> None:
    """covers: 6.2.1-6"""
    for digest in (hashes.SHA256(), hashes.SHA384(), hashes.SHA512()):
        check_certificate(Ca.root().node(node_name(1), digest=digest))
    for digest in (hashes.SHA224(), hashes.SHA3_256()):
        with pytest.raises(KeyRuleError, match="accepted"):
            check_signature_algorithm(Ca.root().node(node_name(1), digest=digest))
    with pytest.raises(KeyRuleError, match="signed with"):
        check_signature_algorithm(Ca.root("Root", "ed25519").node(node_name(1)))


@pytest.mark.parametrize("key_type", KeyType)
def test_generated_keys(key_type: KeyType) -> None:
    made = generate_key(key_type)
    check_public_key(made.public_key())
    kind, size = ("rsa", key_type[3:]) if key_type.startswith("rsa") else ("p", key_type[1:])
    assert made.key_size == int(size)
    assert isinstance(made, rsa.RSAPrivateKey if kind == "rsa" else ec.EllipticCurvePrivateKey)
    again = load_private_key(dump_private_key(made))
    assert again.public_key() == made.public_key()


def test_digest_by_strength() -> None:
    sizes = {kind: signature_hash(key(kind)).name for kind in ("p256", "p384", "p521", "rsa2048", "rsa3072")}
    assert sizes == {
        "p256": "sha256",
        "p384": "sha384",
        "p521": "sha512",
        "rsa2048": "sha256",
        "rsa3072": "sha256",
    }


@pytest.mark.parametrize(
    "data", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_not_a_key(data: bytes) -> None:
    with pytest.raises(KeyRuleError, match="not a private key"):
        load_private_key(data)


def test_a_key_of_another_kind() -> None:
    with pytest.raises(KeyRuleError, match="neither"):
        load_private_key(dump_private_key(key("ed25519")))
