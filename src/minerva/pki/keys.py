"""Which keys and signatures a certificate of the ACP may have (RFC 8994 section 6.2.1)."""

from __future__ import annotations

from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from minerva.pki.errors import KeyRuleError

MIN_RSA_BITS = 2048
"""The shortest RSA modulus accepted, in bits."""

MAX_RSA_BITS = 8192
"""The longest RSA modulus accepted, in bits: a stranger's key must not cost much to use."""

CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
"""The curves accepted: those the RFC names, all of an order of 256 bits or more."""

HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
"""The digests accepted in the signature of a certificate."""


def check_public_key(key: CertificatePublicKeyTypes) -> None:
    """Raise :class:`KeyRuleError` unless ``key`` is RSA of 2048 bits or more, or on P-256, P-384 or P-521."""
    if isinstance(key, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise KeyRuleError(
                f"RSA key of {key.key_size} bits; {MIN_RSA_BITS} to {MAX_RSA_BITS} are accepted"
            )
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, CURVES):
            raise KeyRuleError(f"key on the curve {key.curve.name}; P-256, P-384 and P-521 are accepted")
    else:
        raise KeyRuleError(f"{type(key).__name__}: neither an RSA nor an elliptic curve key")


def check_signature_algorithm(certificate: x509.Certificate) -> None:
    """Raise :class:`KeyRuleError` unless ``certificate`` is signed over SHA-256, SHA-384 or SHA-512."""
    try:
        digest = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm as error:
        raise KeyRuleError(
            f"unknown signature algorithm {certificate.signature_algorithm_oid.dotted_string}"
        ) from error
    if not isinstance(digest, HASHES):
        name = digest.name if digest else certificate.signature_algorithm_oid.dotted_string
        raise KeyRuleError(f"certificate signed with {name}; SHA-256, SHA-384 and SHA-512 are accepted")


def check_certificate(certificate: x509.Certificate) -> None:
    """Raise :class:`KeyRuleError` unless both the key and the signature of ``certificate`` are accepted."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyRuleError(f"public key cannot be read: {error}") from error
    check_public_key(key)
    check_signature_algorithm(certificate)


class KeyType(StrEnum):
    """The kinds of key that Minerva makes."""

    P256 = "p256"
    P384 = "p384"
    P521 = "p521"
    RSA2048 = "rsa2048"
    RSA3072 = "rsa3072"


PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def generate_key(key_type: KeyType | str) -> PrivateKey:
    """Return a new private key."""
    match KeyType(key_type):
        case KeyType.P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyType.P384:
            return ec.generate_private_key(ec.SECP384R1())
        case KeyType.P521:
            return ec.generate_private_key(ec.SECP521R1())
        case KeyType.RSA2048:
            return rsa.generate_private_key(65537, 2048)
        case KeyType.RSA3072:
            return rsa.generate_private_key(65537, 3072)


def signature_hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | hashes.SHA512:
    """Return the digest that matches the strength of ``key``."""
    if key.key_size >= 512 and isinstance(key, ec.EllipticCurvePrivateKey):
        return hashes.SHA512()
    if key.key_size >= 384 and isinstance(key, ec.EllipticCurvePrivateKey):
        return hashes.SHA384()
    return hashes.SHA256()


def load_private_key(data: bytes) -> PrivateKey:
    """Return the private key in unencrypted PEM ``data``. Raises :class:`KeyRuleError`."""
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyRuleError("not a private key in unencrypted PEM") from error
    if not isinstance(key, PrivateKey):
        raise KeyRuleError("neither an RSA nor an elliptic curve key")
    return key


def dump_private_key(key: PrivateKey) -> bytes:
    """Return ``key`` as unencrypted PKCS#8 in PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
