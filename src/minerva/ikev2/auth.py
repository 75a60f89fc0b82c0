"""Digital signatures in IKE_AUTH: what is signed, and how (RFC 7296 section 2.15, RFC 7427).

The process that runs IKE has no private key. It asks another one, the signer, to sign; the signer takes our
own IKE_SA_INIT message, the peer's nonce and the MACed ID, and uses ``check_own_init``, ``signed_octets``
and ``sign`` of this module. As the message is parsed as strictly as that, nothing else (a TLS handshake, a
certificate request) can be signed through it.
"""

from __future__ import annotations

from collections.abc import Set
from enum import Enum, auto
from typing import TypeGuard

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

from minerva.core.reader import Reader
from minerva.ikev2.constants import (
    MAX_INIT_LENGTH,
    MAX_NONCE_LENGTH,
    MIN_NONCE_LENGTH,
    NO_SPI,
    VERSION,
    AuthMethod,
    ExchangeType,
    Flag,
    HashAlgorithm,
    NotifyType,
    ProtocolId,
)
from minerva.ikev2.crypto import MACED_ID_LENGTHS, PUBLIC_LENGTHS
from minerva.ikev2.errors import IkeDecodeError, IkePeerError, IkeUsageError
from minerva.ikev2.message import decode_message, encode_message, required
from minerva.ikev2.payloads import (
    Authentication,
    CertificateRequest,
    KeyExchange,
    Nonce,
    Notify,
    VendorId,
)
from minerva.ikev2.proposals import SecurityAssociation
from minerva.pki.errors import KeyRuleError, Rule
from minerva.pki.keys import check_public_key

__all__ = [
    "HashAlgorithm",
    "authentication_data",
    "check_own_init",
    "choose_hash",
    "sign",
    "signed_octets",
    "verify",
]

_HASHES: dict[HashAlgorithm, hashes.HashAlgorithm] = {
    HashAlgorithm.SHA2_256: hashes.SHA256(),
    HashAlgorithm.SHA2_384: hashes.SHA384(),
    HashAlgorithm.SHA2_512: hashes.SHA512(),
}

_NAMES = {HashAlgorithm.SHA2_256: 1, HashAlgorithm.SHA2_384: 2, HashAlgorithm.SHA2_512: 3}
"""The last arcs of the object identifiers 2.16.840.1.101.3.4.2 of the hashes."""

# AlgorithmIdentifiers of RFC 7427 appendix A. ecdsa-with-SHA256, -SHA384 and -SHA512 have no parameters;
# sha256WithRSAEncryption and its like (appendix A.1) have NULL.
_ECDSA = {algorithm: bytes.fromhex("300a06082a8648ce3d0403") + bytes((algorithm,)) for algorithm in _NAMES}
_PKCS1 = {
    HashAlgorithm.SHA2_256: bytes.fromhex("300d06092a864886f70d01010b0500"),
    HashAlgorithm.SHA2_384: bytes.fromhex("300d06092a864886f70d01010c0500"),
    HashAlgorithm.SHA2_512: bytes.fromhex("300d06092a864886f70d01010d0500"),
}


def _der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return bytes((tag, len(body))) + body


def _pss(algorithm: HashAlgorithm, null: bytes, trailer: bytes) -> bytes:
    """Return RSASSA-PSS with that hash, MGF1 with the same, and a salt of its length (appendix A.4)."""
    hash_oid = _der(0x06, bytes.fromhex("608648016503040200")[:-1], bytes((_NAMES[algorithm],)))
    hash_identifier = _der(0x30, hash_oid, null)
    mask = _der(0x30, _der(0x06, bytes.fromhex("2a864886f70d010108")), hash_identifier)
    salt = _der(0x02, bytes((_HASHES[algorithm].digest_size,)))
    parameters = _der(0x30, _der(0xA0, hash_identifier), _der(0xA1, mask), _der(0xA2, salt), trailer)
    return _der(0x30, _der(0x06, bytes.fromhex("2a864886f70d01010a")), parameters)


_NULL, _TRAILER = bytes.fromhex("0500"), bytes.fromhex("a303020101")

_PSS = {algorithm: _pss(algorithm, _NULL, _TRAILER) for algorithm in _NAMES}
"""As RFC 7427 appendix A.4 writes them."""

# The parameters of a hash may as well be absent (RFC 4055 section 2.1), and the trailer field is the default.
_PSS_VARIANTS = [
    {algorithm: _pss(algorithm, null, trailer) for algorithm in _NAMES}
    for null in (_NULL, b"")
    for trailer in (_TRAILER, b"")
]


class _Scheme(Enum):
    ECDSA = auto()
    PSS = auto()
    PKCS1 = auto()


_SCHEMES: dict[bytes, tuple[_Scheme, HashAlgorithm]] = {
    identifier: (scheme, algorithm)
    for scheme, table in (
        (_Scheme.ECDSA, _ECDSA),
        (_Scheme.PKCS1, _PKCS1),
        *((_Scheme.PSS, variant) for variant in _PSS_VARIANTS),
    )
    for algorithm, identifier in table.items()
}

_PREFERRED = {256: HashAlgorithm.SHA2_256, 384: HashAlgorithm.SHA2_384, 521: HashAlgorithm.SHA2_512}

_KEYS = "IKEv2 signs with RSA keys of 2,048 to 8,192 bits and ECDSA keys on P-256, P-384 and P-521"


def check_own_init(message: bytes) -> None:
    """Raise :class:`IkeDecodeError` unless ``message`` is an IKE_SA_INIT as this package writes them.

    That is: a request or a response, complete, with nothing after it, with exactly one SA, KE and Nonce
    payload, else only notifications of status and vendor IDs (in a response also certificate requests), and
    encoded in the one way that there is for its content.
    """
    if len(message) > MAX_INIT_LENGTH:
        raise IkeDecodeError(f"IKE_SA_INIT of {len(message)} bytes; at most {MAX_INIT_LENGTH} are accepted")
    header, payloads = decode_message(message)
    response = header.flags == Flag.RESPONSE
    if (
        header.exchange != ExchangeType.IKE_SA_INIT
        or header.version != VERSION
        or header.message_id != 0
        or header.flags not in (Flag.INITIATOR, Flag.RESPONSE)
        or header.spi_i == NO_SPI
        or (header.spi_r == NO_SPI) is response
    ):
        raise IkeDecodeError("not the header of an IKE_SA_INIT of ours")
    allowed = (SecurityAssociation, KeyExchange, Nonce, Notify, VendorId)
    for payload in payloads:
        if not isinstance(payload, allowed) and not (response and isinstance(payload, CertificateRequest)):
            raise IkeDecodeError(f"{type(payload).__name__} payload in an IKE_SA_INIT")
        if isinstance(payload, Notify) and (payload.is_error or payload.spi or payload.protocol):
            raise IkeDecodeError(f"notification of type {payload.notify_type} in an IKE_SA_INIT of ours")
    required(payloads, Nonce)
    key_exchange = required(payloads, KeyExchange)
    if PUBLIC_LENGTHS.get(key_exchange.group) != len(key_exchange.data):
        raise IkeDecodeError("KE payload of another group or length than ours")
    proposals = required(payloads, SecurityAssociation).proposals
    if any(proposal.protocol != ProtocolId.IKE or proposal.spi for proposal in proposals):
        raise IkeDecodeError("SA payload that is not for an initial IKE SA")
    if encode_message(header, payloads) != message:
        raise IkeDecodeError("reserved bits or unknown attributes in an IKE_SA_INIT of ours")


def signed_octets(message: bytes, nonce: bytes, maced_id: bytes) -> bytes:
    """Return the octets that a side signs: its own IKE_SA_INIT, the other's nonce, prf(SK_p, its ID).

    Raises :class:`IkeDecodeError` for a nonce or MACed ID of an impossible length.
    """
    if not MIN_NONCE_LENGTH <= len(nonce) <= MAX_NONCE_LENGTH:
        raise IkeDecodeError(f"nonce of {len(nonce)} bytes")
    if len(maced_id) not in MACED_ID_LENGTHS:
        raise IkeDecodeError(f"MACed ID of {len(maced_id)} bytes")
    return message + nonce + maced_id


def choose_hash(key: PublicKeyTypes, offered: Set[HashAlgorithm] | None) -> HashAlgorithm | None:
    """Return the hash that we sign with by our ``key``, or ``None`` if the peer accepts none that we have.

    ``offered`` is what the peer announced; ``None`` if it did not: RFC 8994 section 6.8.3.1.2 then lets us
    assume the support of method 14 all the same. The hash is as strong as the curve, if possible; for RSA
    it is the one that all must have.

    Raises :class:`IkeUsageError` if we cannot sign with such a key.
    """
    if not _is_usable(key):
        raise IkeUsageError(f"{_KEYS}; this node's key is another")
    preferred = HashAlgorithm.SHA2_256
    if isinstance(key, ec.EllipticCurvePublicKey):
        preferred = _PREFERRED[key.key_size]
    if offered is None or preferred in offered:
        return preferred
    return max(offered, default=None)


def _is_usable(key: object) -> TypeGuard[ec.EllipticCurvePublicKey | rsa.RSAPublicKey]:
    try:
        check_public_key(key)  # type: ignore[arg-type]  # it looks itself at what the key is
    except KeyRuleError:
        return False
    return True


def sign(private_key: PrivateKeyTypes, octets: bytes, hash_algorithm: HashAlgorithm) -> bytes:
    """Return the signature of ``octets``: ECDSA, or RSASSA-PSS, as RFC 8247 section 3.1 demands.

    Raises :class:`IkeUsageError` for other keys.
    """
    algorithm = _HASHES[hash_algorithm]
    if isinstance(private_key, ec.EllipticCurvePrivateKey):
        return private_key.sign(octets, ec.ECDSA(algorithm))
    if isinstance(private_key, rsa.RSAPrivateKey):
        return private_key.sign(octets, _pss_padding(algorithm), algorithm)
    raise IkeUsageError(f"{_KEYS}; this node's key is another")


def _pss_padding(algorithm: hashes.HashAlgorithm) -> padding.PSS:
    return padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)


def authentication_data(key: PublicKeyTypes, hash_algorithm: HashAlgorithm, signature: bytes) -> bytes:
    """Return the data of an AUTH payload of method 14 (RFC 7427 section 3): algorithm and signature.

    ``key`` is the public key to what :func:`sign` was called with.
    """
    table = _PSS if isinstance(key, rsa.RSAPublicKey) else _ECDSA
    identifier = table[hash_algorithm]
    return bytes((len(identifier),)) + identifier + signature


def verify(key: PublicKeyTypes, octets: bytes, authentication: Authentication) -> None:
    """Raise :class:`IkePeerError` unless ``authentication`` is a signature of ``octets`` with ``key``."""
    if authentication.method != AuthMethod.DIGITAL_SIGNATURE:
        raise _failed(
            f"the peer authenticates with method {authentication.method}; "
            "RFC 8994 wants 14, a digital signature"
        )
    reader = Reader(authentication.data, IkeDecodeError)
    try:
        identifier = reader.read(reader.u8("AlgorithmIdentifier length"), "AlgorithmIdentifier")
    except IkeDecodeError as error:
        raise _failed(f"the peer's signature cannot be read: {error}") from error
    scheme, hash_algorithm = _SCHEMES.get(identifier, (None, None))
    # Before anything is computed: the size of a stranger's key is the stranger's choice.
    if (
        scheme is None
        or hash_algorithm is None
        or not _is_usable(key)
        or (scheme is _Scheme.ECDSA) is not isinstance(key, ec.EllipticCurvePublicKey)
    ):
        raise _failed(
            f"the peer signs with algorithm {identifier.hex()} and a key of type {type(key).__name__}; "
            "only RSASSA-PSS, RSASSA-PKCS1-v1.5 and ECDSA with SHA-256, SHA-384 or SHA-512 are supported, "
            "with RSA keys of 2,048 to 8,192 bits or on P-256, P-384 and P-521"
        )
    try:
        _verify(key, reader.rest(), octets, scheme, _HASHES[hash_algorithm])
    except InvalidSignature:
        raise _failed(
            "the peer's signature is wrong: it does not own the key of its certificate",
            Rule.PROOF_OF_POSSESSION,
        ) from None


def _verify(
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    signature: bytes,
    octets: bytes,
    scheme: _Scheme,
    algorithm: hashes.HashAlgorithm,
) -> None:
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, octets, ec.ECDSA(algorithm))
    elif scheme is _Scheme.PSS:
        key.verify(signature, octets, _pss_padding(algorithm), algorithm)
    else:
        key.verify(signature, octets, padding.PKCS1v15(), algorithm)


def _failed(reason: str, rule: Rule | None = None) -> IkePeerError:
    return IkePeerError(NotifyType.AUTHENTICATION_FAILED, reason, rule=rule)
