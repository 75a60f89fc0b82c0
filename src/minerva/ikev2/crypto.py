"""Diffie-Hellman, PRFs and the key schedule (RFC 7296 sections 2.13, 2.14, 2.17; RFC 3526, 5903, 8031)."""

from __future__ import annotations

import hmac
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from minerva.core.secret import Secret
from minerva.ikev2.constants import DhGroup, EncryptionId, PrfId
from minerva.ikev2.errors import IkeCryptoError

AEAD_KEY_LENGTH = 36
"""The keying material of all our ciphers, in bytes: a 256-bit key and 4 of salt (RFC 5282, RFC 7634)."""

PUBLIC_LENGTHS: dict[int, int] = {
    DhGroup.MODP_2048: 256,
    DhGroup.ECP_256: 64,
    DhGroup.ECP_384: 96,
    DhGroup.ECP_521: 132,
    DhGroup.CURVE25519: 32,
}
"""The lengths of the public values of the groups that we can do, in bytes."""

_PRF_HASHES = {
    PrfId.PRF_HMAC_SHA2_256: ("sha256", 32),
    PrfId.PRF_HMAC_SHA2_384: ("sha384", 48),
    PrfId.PRF_HMAC_SHA2_512: ("sha512", 64),
}

MACED_ID_LENGTHS = frozenset(length for _, length in _PRF_HASHES.values())
"""The lengths that prf(SK_p, ID) can have, in bytes."""


def prf(algorithm: PrfId, key: bytes, data: bytes) -> bytes:
    """Return the negotiated pseudorandom function of ``data`` under ``key``."""
    return hmac.digest(key, data, _PRF_HASHES[algorithm][0])


def prf_plus(algorithm: PrfId, key: bytes, seed: bytes, length: int) -> bytes:
    """Return ``length`` bytes of prf+ (section 2.13), which is defined for up to 255 blocks."""
    stream = block = b""
    counter = 1
    while len(stream) < length:
        block = prf(algorithm, key, block + seed + bytes((counter,)))
        stream += block
        counter += 1
    return stream[:length]


class KeyAgreement(ABC):
    """Our half of a Diffie-Hellman exchange, used for one IKE SA only."""

    group: DhGroup
    public: bytes
    """Our public value as it goes into a KE payload."""

    @abstractmethod
    def load(self, data: bytes) -> Callable[[], bytes]:
        """Check the peer's public value; return what computes the shared secret with it.

        The two are apart because a responder checks the value of a stranger at once, and does the costly
        part only for one that has shown that it receives our answers. Both raise :class:`IkeCryptoError`.
        """


_MODP_EXPONENT_BITS = 320

_UNCOMPRESSED = b"\x04"


class _Ecp(KeyAgreement):
    """A group of RFC 5903. A public value is x and y; the shared secret is x alone."""

    _CURVES: ClassVar = {
        DhGroup.ECP_256: ec.SECP256R1(),
        DhGroup.ECP_384: ec.SECP384R1(),
        DhGroup.ECP_521: ec.SECP521R1(),
    }

    def __init__(self, group: DhGroup) -> None:
        self.group = group
        self._private = ec.generate_private_key(self._CURVES[group])
        point = self._private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.public = point[len(_UNCOMPRESSED) :]

    def load(self, data: bytes) -> Callable[[], bytes]:
        _check_length(self.group, data)
        try:
            # Refuses points that are not on the curve (RFC 6989 section 2.3).
            peer = ec.EllipticCurvePublicKey.from_encoded_point(self._private.curve, _UNCOMPRESSED + data)
        except ValueError as error:
            raise IkeCryptoError(f"public value is not a point of group {self.group.name}") from error
        return lambda: self._private.exchange(ec.ECDH(), peer)


class _Curve25519(KeyAgreement):
    """Group 31 (RFC 8031)."""

    def __init__(self, group: DhGroup) -> None:
        self.group = group
        self._private = x25519.X25519PrivateKey.generate()
        self.public = self._private.public_key().public_bytes_raw()

    def load(self, data: bytes) -> Callable[[], bytes]:
        _check_length(self.group, data)
        peer = x25519.X25519PublicKey.from_public_bytes(data)
        return lambda: self._exchange(peer)

    def _exchange(self, peer: x25519.X25519PublicKey) -> bytes:
        try:
            shared = self._private.exchange(peer)
        except ValueError as error:
            # The library raises for an all-zero result, as RFC 8031 section 4 demands of us.
            raise IkeCryptoError("public value of small order in group CURVE25519") from error
        return shared


class _Modp(KeyAgreement):
    """Group 14 (RFC 3526). Values and the shared secret are padded to the length of the modulus.

    The cryptographic library is about to drop such groups, so Python's own arithmetic has to do. It does not
    take the same time for every exponent; but each of ours is used for one exchange only, so that there is
    nothing to measure repeatedly.
    """

    _PRIME = int(
        "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
        "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
        "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F"
        "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B"
        "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510"
        "15728E5A8AACAA68FFFFFFFFFFFFFFFF",
        16,
    )

    def __init__(self, group: DhGroup) -> None:
        self.group = group
        # Twice the strength of the group is enough, with a margin (RFC 3526 section 8 has 220 to 320 bits).
        self._exponent = secrets.randbits(_MODP_EXPONENT_BITS) | 1 << (_MODP_EXPONENT_BITS - 1)
        self.public = pow(2, self._exponent, self._PRIME).to_bytes(PUBLIC_LENGTHS[group])

    def load(self, data: bytes) -> Callable[[], bytes]:
        _check_length(self.group, data)
        value = int.from_bytes(data)
        # The values of the small subgroup; the prime is a safe one, so there are no others (RFC 6989 2.1).
        if not 1 < value < self._PRIME - 1:
            raise IkeCryptoError(f"public value out of the range of group {self.group.name}")
        return lambda: pow(value, self._exponent, self._PRIME).to_bytes(len(data))


_AGREEMENTS: dict[DhGroup, type[_Ecp] | type[_Curve25519] | type[_Modp]] = {
    DhGroup.MODP_2048: _Modp,
    DhGroup.ECP_256: _Ecp,
    DhGroup.ECP_384: _Ecp,
    DhGroup.ECP_521: _Ecp,
    DhGroup.CURVE25519: _Curve25519,
}


def _check_length(group: DhGroup, data: bytes) -> None:
    if len(data) != PUBLIC_LENGTHS[group]:
        raise IkeCryptoError(f"public value of {len(data)} bytes in group {group.name}")


def new_agreement(group: DhGroup) -> KeyAgreement:
    """Return a fresh half of an exchange in ``group``."""
    return _AGREEMENTS[group](group)


@dataclass(frozen=True, slots=True)
class IkeKeys:
    """The secrets of an IKE SA (section 2.14), and what they are for. An AEAD has no SK_ai and SK_ar."""

    prf: PrfId
    sk_d: Secret
    sk_ei: Secret
    sk_er: Secret
    sk_pi: Secret
    sk_pr: Secret
    encryption: EncryptionId = EncryptionId.ENCR_AES_GCM_16

    @classmethod
    def derive(
        cls,
        algorithm: PrfId,
        shared: bytes,
        nonce_i: bytes,
        nonce_r: bytes,
        spi_i: bytes,
        spi_r: bytes,
        encryption: EncryptionId = EncryptionId.ENCR_AES_GCM_16,
    ) -> IkeKeys:
        """Return the keys that follow from the Diffie-Hellman result ``shared`` and what was exchanged."""
        skeyseed = prf(algorithm, nonce_i + nonce_r, shared)
        return cls._expand(algorithm, encryption, skeyseed, nonce_i + nonce_r + spi_i + spi_r)

    def successor(
        self,
        algorithm: PrfId,
        shared: bytes,
        nonce_i: bytes,
        nonce_r: bytes,
        spi_i: bytes,
        spi_r: bytes,
        encryption: EncryptionId = EncryptionId.ENCR_AES_GCM_16,
    ) -> IkeKeys:
        """Return the keys of the IKE SA that replaces this one (section 2.18).

        ``algorithm`` is the PRF of the new IKE SA; SKEYSEED is made with that of the old one.
        """
        skeyseed = prf(self.prf, self.sk_d.reveal(), shared + nonce_i + nonce_r)
        return self._expand(algorithm, encryption, skeyseed, nonce_i + nonce_r + spi_i + spi_r)

    @classmethod
    def _expand(cls, algorithm: PrfId, encryption: EncryptionId, skeyseed: bytes, seed: bytes) -> IkeKeys:
        size = _PRF_HASHES[algorithm][1]
        lengths = (size, AEAD_KEY_LENGTH, AEAD_KEY_LENGTH, size, size)
        stream = prf_plus(algorithm, skeyseed, seed, sum(lengths))
        parts: list[Secret] = []
        position = 0
        for length in lengths:
            parts.append(Secret(stream[position : position + length]))
            position += length
        sk_d, sk_ei, sk_er, sk_pi, sk_pr = parts
        return cls(algorithm, sk_d, sk_ei, sk_er, sk_pi, sk_pr, encryption)

    def child(self, nonce_i: bytes, nonce_r: bytes, shared: bytes = b"") -> tuple[Secret, Secret]:
        """Return the keys of a child SA: initiator to responder, and back (section 2.17).

        ``shared`` is the result of the Diffie-Hellman of CREATE_CHILD_SA; IKE_AUTH has none for its child.
        """
        stream = prf_plus(self.prf, self.sk_d.reveal(), shared + nonce_i + nonce_r, 2 * AEAD_KEY_LENGTH)
        return Secret(stream[:AEAD_KEY_LENGTH]), Secret(stream[AEAD_KEY_LENGTH:])

    def maced_id(self, identification: bytes, *, initiator: bool) -> bytes:
        """Return prf(SK_p, ID) for the body of that side's ID payload (section 2.15)."""
        return prf(self.prf, (self.sk_pi if initiator else self.sk_pr).reveal(), identification)
