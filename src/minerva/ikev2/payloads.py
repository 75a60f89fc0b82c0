"""The bodies of payloads, without their generic header (RFC 7296 sections 3.4 to 3.12)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from minerva.core.reader import Reader
from minerva.ikev2.constants import (
    FIRST_STATUS_TYPE,
    MAX_NONCE_LENGTH,
    MIN_NONCE_LENGTH,
    AuthMethod,
    CertEncoding,
    HashAlgorithm,
    NotifyType,
    PayloadType,
    ProtocolId,
)
from minerva.ikev2.errors import IkeDecodeError
from minerva.ikev2.proposals import SecurityAssociation
from minerva.ikev2.traffic import TrafficSelectorsInitiator, TrafficSelectorsResponder

_GROUP = struct.Struct("!Hxx")
_TYPE = struct.Struct("!Bxxx")
_NOTIFY = struct.Struct("!BBH")
_DELETE = struct.Struct("!BBH")
_SHA1_LENGTH = 20
_CHILD_SPI_LENGTH = 4


@dataclass(frozen=True, slots=True)
class KeyExchange:
    """KE (section 3.4): ``Diffie-Hellman Group Num 16 | RESERVED 16 | Key Exchange Data``."""

    TYPE: ClassVar[PayloadType] = PayloadType.KE

    group: int
    data: bytes

    def encode(self) -> bytes:
        """Return the payload's body."""
        return _GROUP.pack(self.group) + self.data

    @classmethod
    def decode(cls, body: bytes) -> KeyExchange:
        """Return the payload. Raises :class:`IkeDecodeError`."""
        reader = Reader(body, IkeDecodeError)
        (group,) = _GROUP.unpack(reader.read(_GROUP.size, "KE"))
        return cls(group, reader.rest())


@dataclass(frozen=True, slots=True)
class _Identification:
    id_type: int
    data: bytes
    reserved: bytes = bytes(3)

    def encode(self) -> bytes:
        """Return the payload's body, which is also what the MACed ID is computed over (section 2.15)."""
        return bytes((self.id_type,)) + self.reserved + self.data

    @staticmethod
    def _read(body: bytes) -> tuple[int, bytes, bytes]:
        reader = Reader(body, IkeDecodeError)
        id_type, reserved = reader.u8("ID type"), reader.read(3, "ID reserved")
        return id_type, reader.rest(), reserved


@dataclass(frozen=True, slots=True)
class IdentificationInitiator(_Identification):
    """IDi (section 3.5): ``ID Type 8 | RESERVED 24 | Identification Data``.

    ``reserved`` is kept as it came, as the peer's signature covers it.
    """

    TYPE: ClassVar[PayloadType] = PayloadType.ID_I

    @classmethod
    def decode(cls, body: bytes) -> IdentificationInitiator:
        """Return the payload. Raises :class:`IkeDecodeError`."""
        return cls(*cls._read(body))


@dataclass(frozen=True, slots=True)
class IdentificationResponder(_Identification):
    """IDr, laid out as IDi."""

    TYPE: ClassVar[PayloadType] = PayloadType.ID_R

    @classmethod
    def decode(cls, body: bytes) -> IdentificationResponder:
        """Return the payload. Raises :class:`IkeDecodeError`."""
        return cls(*cls._read(body))


@dataclass(frozen=True, slots=True)
class Certificate:
    """CERT (section 3.6): ``Cert Encoding 8 | Certificate Data``; for encoding 4, one certificate in DER."""

    TYPE: ClassVar[PayloadType] = PayloadType.CERT

    encoding: int
    data: bytes

    def encode(self) -> bytes:
        """Return the payload's body."""
        return bytes((self.encoding,)) + self.data

    @classmethod
    def decode(cls, body: bytes) -> Certificate:
        """Return the payload. Raises :class:`IkeDecodeError`."""
        reader = Reader(body, IkeDecodeError)
        return cls(reader.u8("CERT encoding"), reader.rest())


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """CERTREQ (section 3.7): ``Cert Encoding 8 | Certification Authority``, SHA-1 hashes of public keys.

    ``authorities`` is empty for encodings other than 4: what they hold is not defined.
    """

    TYPE: ClassVar[PayloadType] = PayloadType.CERTREQ

    encoding: int
    authorities: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Return the payload's body."""
        return bytes((self.encoding,)) + b"".join(self.authorities)

    @classmethod
    def decode(cls, body: bytes) -> CertificateRequest:
        """Return the payload. Raises :class:`IkeDecodeError`."""
        reader = Reader(body, IkeDecodeError)
        encoding = reader.u8("CERTREQ encoding")
        if encoding != CertEncoding.X509_SIGNATURE:
            return cls(encoding, ())
        authorities: list[bytes] = []
        while reader.remaining:
            authorities.append(reader.read(_SHA1_LENGTH, "CERTREQ authority"))
        return cls(encoding, tuple(authorities))


@dataclass(frozen=True, slots=True)
class Authentication:
    """AUTH (section 3.8): ``Auth Method 8 | RESERVED 24 | Authentication Data``."""

    TYPE: ClassVar[PayloadType] = PayloadType.AUTH

    method: int
    data: bytes

    def encode(self) -> bytes:
        """Return the payload's body."""
        return _TYPE.pack(self.method) + self.data

    @classmethod
    def decode(cls, body: bytes) -> Authentication:
        """Return the payload. Raises :class:`IkeDecodeError`."""
        reader = Reader(body, IkeDecodeError)
        (method,) = _TYPE.unpack(reader.read(_TYPE.size, "AUTH"))
        return cls(method, reader.rest())


@dataclass(frozen=True, slots=True)
class Nonce:
    """Ni and Nr (section 3.9): 16 to 256 random bytes."""

    TYPE: ClassVar[PayloadType] = PayloadType.NONCE

    data: bytes

    def encode(self) -> bytes:
        """Return the payload's body."""
        return self.data

    @classmethod
    def decode(cls, body: bytes) -> Nonce:
        """Return the payload. Raises :class:`IkeDecodeError`."""
        if not MIN_NONCE_LENGTH <= len(body) <= MAX_NONCE_LENGTH:
            raise IkeDecodeError(
                f"nonce of {len(body)} bytes; {MIN_NONCE_LENGTH} to {MAX_NONCE_LENGTH} are allowed"
            )
        return cls(body)


@dataclass(frozen=True, slots=True)
class Notify:
    """N (section 3.10): ``Protocol ID 8 | SPI Size 8 | Notify Message Type 16 | SPI | Notification Data``."""

    TYPE: ClassVar[PayloadType] = PayloadType.NOTIFY

    notify_type: int
    data: bytes = b""
    protocol: int = ProtocolId.NONE
    spi: bytes = b""

    @property
    def is_error(self) -> bool:
        """Whether the type is one of those that report errors."""
        return self.notify_type < FIRST_STATUS_TYPE

    def encode(self) -> bytes:
        """Return the payload's body."""
        return _NOTIFY.pack(self.protocol, len(self.spi), self.notify_type) + self.spi + self.data

    @classmethod
    def decode(cls, body: bytes) -> Notify:
        """Return the payload. Raises :class:`IkeDecodeError`."""
        reader = Reader(body, IkeDecodeError)
        protocol, spi_size, notify_type = _NOTIFY.unpack(reader.read(_NOTIFY.size, "N"))
        spi = reader.read(spi_size, "N SPI")
        return cls(notify_type, reader.rest(), protocol, spi)


@dataclass(frozen=True, slots=True)
class Delete:
    """D (section 3.11): ``Protocol ID 8 | SPI Size 8 | Num of SPIs 16 | SPIs``; no SPI means the IKE SA."""

    TYPE: ClassVar[PayloadType] = PayloadType.DELETE

    protocol: int
    spis: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        """Return the payload's body."""
        size = len(self.spis[0]) if self.spis else 0
        return _DELETE.pack(self.protocol, size, len(self.spis)) + b"".join(self.spis)

    @classmethod
    def decode(cls, body: bytes) -> Delete:
        """Return the payload. Raises :class:`IkeDecodeError`."""
        reader = Reader(body, IkeDecodeError)
        protocol, size, count = _DELETE.unpack(reader.read(_DELETE.size, "D"))
        if count and (size != _CHILD_SPI_LENGTH or protocol == ProtocolId.IKE):
            raise IkeDecodeError(f"D for protocol {protocol}: {count} SPIs of {size} bytes")
        spis = tuple(reader.read(size, "D SPI") for _ in range(count))
        reader.expect_end("D")
        return cls(protocol, spis)


@dataclass(frozen=True, slots=True)
class VendorId:
    """V (section 3.12): any bytes. We send none, and ignore all."""

    TYPE: ClassVar[PayloadType] = PayloadType.VENDOR_ID

    data: bytes

    def encode(self) -> bytes:
        """Return the payload's body."""
        return self.data

    @classmethod
    def decode(cls, body: bytes) -> VendorId:
        """Return the payload."""
        return cls(body)


@dataclass(frozen=True, slots=True)
class Opaque:
    """A payload whose content we do not read: CP, EAP, and all that RFC 7296 does not define.

    ``critical`` is the bit of the generic header by which the sender has the whole message refused if the
    payload is not understood (section 2.5); it counts only for those not defined in RFC 7296.
    """

    type: int
    data: bytes
    critical: bool = False

    def encode(self) -> bytes:
        """Return the payload's body."""
        return self.data


Payload = (
    SecurityAssociation
    | KeyExchange
    | IdentificationInitiator
    | IdentificationResponder
    | Certificate
    | CertificateRequest
    | Authentication
    | Nonce
    | Notify
    | Delete
    | VendorId
    | TrafficSelectorsInitiator
    | TrafficSelectorsResponder
    | Opaque
)

DECODERS: dict[int, Callable[[bytes], Payload]] = {
    SecurityAssociation.TYPE: SecurityAssociation.decode,
    KeyExchange.TYPE: KeyExchange.decode,
    IdentificationInitiator.TYPE: IdentificationInitiator.decode,
    IdentificationResponder.TYPE: IdentificationResponder.decode,
    Certificate.TYPE: Certificate.decode,
    CertificateRequest.TYPE: CertificateRequest.decode,
    Authentication.TYPE: Authentication.decode,
    Nonce.TYPE: Nonce.decode,
    Notify.TYPE: Notify.decode,
    Delete.TYPE: Delete.decode,
    VendorId.TYPE: VendorId.decode,
    TrafficSelectorsInitiator.TYPE: TrafficSelectorsInitiator.decode,
    TrafficSelectorsResponder.TYPE: TrafficSelectorsResponder.decode,
}
"""How the body of each payload type that we read is decoded."""

UNREAD = frozenset({PayloadType.CP, PayloadType.EAP})
"""Payload types of RFC 7296 that we know and do not read: their critical bit means nothing."""


def payload_type(payload: Payload) -> int:
    """Return the number of a payload's type."""
    return payload.type if isinstance(payload, Opaque) else payload.TYPE


def signature_hashes(hashes: Iterable[HashAlgorithm]) -> Notify:
    """Return the SIGNATURE_HASH_ALGORITHMS notification: the hashes that we accept (RFC 7427 section 4)."""
    return Notify(
        NotifyType.SIGNATURE_HASH_ALGORITHMS, b"".join(algorithm.to_bytes(2) for algorithm in hashes)
    )


def read_signature_hashes(payloads: Iterable[Payload]) -> frozenset[HashAlgorithm] | None:
    """Return the hashes that a peer accepts and we know, or ``None`` if it did not say.

    Raises :class:`IkeDecodeError`.
    """
    for payload in payloads:
        if isinstance(payload, Notify) and payload.notify_type == NotifyType.SIGNATURE_HASH_ALGORITHMS:
            reader = Reader(payload.data, IkeDecodeError)
            numbers = set()
            while reader.remaining:
                numbers.add(reader.u16("hash algorithm"))
            return frozenset(algorithm for algorithm in HashAlgorithm if algorithm in numbers)
    return None


def digital_signature(data: bytes) -> Authentication:
    """Return an AUTH payload of method 14 (RFC 7427 section 3)."""
    return Authentication(AuthMethod.DIGITAL_SIGNATURE, data)
