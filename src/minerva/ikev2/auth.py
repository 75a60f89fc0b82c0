"""Digital signatures in IKE_AUTH: what is signed, and how (RFC 7296 section 2.15, RFC 7427).

The process that runs IKE has no private key. It asks another one, the signer, to sign; the signer takes our
own IKE_SA_INIT message, the peer's nonce and the MACed ID, and uses ``check_own_init``, ``signed_octets``
and ``sign`` of this module. As the message is parsed as strictly as that, nothing else (a TLS handshake, a
certificate request) can be signed through it.
"""

from __future__ import annotations

from collections.abc import Set

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
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
from minerva.pki.errors import Rule

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

# ecdsa-with-SHA256, -SHA384 and -SHA512 as AlgorithmIdentifiers (RFC 7427 appendix A.3): no parameters.
_ECDSA = {
    HashAlgorithm.SHA2_256: bytes.fromhex("300a06082a8648ce3d040302"),
    HashAlgorithm.SHA2_384: bytes.fromhex("300a06082a8648ce3d040303"),
    HashAlgorithm.SHA2_512: bytes.fromhex("300a06082a8648ce3d040304"),
}
_ECDSA_HASHES = {identifier: algorithm for algorithm, identifier in _ECDSA.items()}

_PREFERRED = {256: HashAlgorithm.SHA2_256, 384: HashAlgorithm.SHA2_384, 521: HashAlgorithm.SHA2_512}


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
    assume the support of method 14 all the same. The hash is as strong as the curve, if possible.

    Raises :class:`IkeUsageError` if we cannot sign with such a key.
    """
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.key_size not in _PREFERRED:
        raise IkeUsageError(
            "IKEv2 signs with ECDSA keys on P-256, P-384 or P-521; this node's key is another"
        )
    preferred = _PREFERRED[key.key_size]
    if offered is None or preferred in offered:
        return preferred
    return max(offered, default=None)


def sign(private_key: PrivateKeyTypes, octets: bytes, hash_algorithm: HashAlgorithm) -> bytes:
    """Return the signature of ``octets``. Raises :class:`IkeUsageError` if the key is not an ECDSA key."""
    if not isinstance(private_key, ec.EllipticCurvePrivateKey):
        raise IkeUsageError(
            "IKEv2 signs with ECDSA keys on P-256, P-384 or P-521; this node's key is another"
        )
    return private_key.sign(octets, ec.ECDSA(_HASHES[hash_algorithm]))


def authentication_data(hash_algorithm: HashAlgorithm, signature: bytes) -> bytes:
    """Return the data of an AUTH payload of method 14 (RFC 7427 section 3): algorithm and signature."""
    identifier = _ECDSA[hash_algorithm]
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
    algorithm = _ECDSA_HASHES.get(identifier)
    if algorithm is None or not isinstance(key, ec.EllipticCurvePublicKey):
        raise _failed(
            f"the peer signs with algorithm {identifier.hex()} and a key of type {type(key).__name__}; "
            "only ECDSA with SHA-256, SHA-384 or SHA-512 is supported"
        )
    try:
        key.verify(reader.rest(), octets, ec.ECDSA(_HASHES[algorithm]))
    except InvalidSignature:
        raise _failed(
            "the peer's signature is wrong: it does not own the key of its certificate",
            Rule.PROOF_OF_POSSESSION,
        ) from None


def _failed(reason: str, rule: Rule | None = None) -> IkePeerError:
    return IkePeerError(NotifyType.AUTHENTICATION_FAILED, reason, rule=rule)
