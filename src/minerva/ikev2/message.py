"""Messages: the header, the chain of payloads, and the encrypted payload (RFC 7296 sections 3.1, 3.2, 3.14).

The encrypted payload is that of RFC 5282 for AES-GCM with an ICV of 16 bytes, and the same for
ChaCha20-Poly1305 (RFC 7634)::

    Next Payload 8 | C | RESERVED 7 | Payload Length 16 | IV 64 | ciphertext | ICV 128

    plaintext = payloads | padding | Pad Length 8

The additional data of the AEAD is everything before the IV, so the header is authenticated as well.

A message that is too long for one packet goes as several (RFC 7383), each with a part of the payloads::

    Next Payload 8 | C | RESERVED 7 | Payload Length 16 | Fragment Number 16 | Total Fragments 16 |
    IV 64 | ciphertext | ICV 128

Every fragment is authenticated before it is kept, so that nobody can spoil a message by a forged one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from minerva.core.secret import Secret
from minerva.ikev2.constants import (
    MAX_FRAGMENTED_LENGTH,
    MAX_FRAGMENTS,
    MAX_MESSAGE_LENGTH,
    MAX_PAYLOADS,
    VERSION,
    EncryptionId,
    Flag,
    NotifyType,
    PayloadType,
)
from minerva.ikev2.crypto import IkeKeys
from minerva.ikev2.errors import IkeCryptoError, IkeDecodeError
from minerva.ikev2.payloads import DECODERS, UNREAD, Notify, Opaque, Payload, payload_type

_HEADER = struct.Struct("!8s8sBBBBII")
HEADER_LENGTH = _HEADER.size
"""The length of the header, in bytes: 28."""

_GENERIC = struct.Struct("!BBH")
_FRAGMENT = struct.Struct("!HH")
_CRITICAL = 0x80
_IV_LENGTH, _ICV_LENGTH, _SALT_LENGTH = 8, 16, 4

_P = TypeVar("_P")


@dataclass(frozen=True, slots=True)
class Header:
    """The header (section 3.1), without the length, which is that of the message.

    ``next_payload`` and ``exchange`` are plain numbers where we know no name; ``version`` is major and minor.

    ::

        Initiator's SPI 64 | Responder's SPI 64 |
        Next Payload 8 | Version 8 | Exchange Type 8 | Flags 8 | Message ID 32 | Length 32
    """

    spi_i: bytes
    spi_r: bytes
    exchange: int
    flags: int
    message_id: int
    next_payload: int = PayloadType.NO_NEXT_PAYLOAD
    version: int = VERSION

    @property
    def is_response(self) -> bool:
        """Whether the R flag is set."""
        return bool(self.flags & Flag.RESPONSE)

    @property
    def from_initiator(self) -> bool:
        """Whether the I flag is set: the sender began the IKE SA, so the responder's SPI is ours."""
        return bool(self.flags & Flag.INITIATOR)

    @property
    def major_version(self) -> int:
        """The major version."""
        return self.version >> 4

    def encode(self, next_payload: int, length: int) -> bytes:
        """Return the header of a message of ``length`` bytes that begins with ``next_payload``."""
        return _HEADER.pack(
            self.spi_i,
            self.spi_r,
            next_payload,
            self.version,
            self.exchange,
            self.flags,
            self.message_id,
            length,
        )

    @classmethod
    def decode(cls, data: bytes) -> Header:
        """Return the header of the message ``data``, whose length it must state.

        The length is not looked at in messages of another major version. Raises :class:`IkeDecodeError`.
        """
        if len(data) < HEADER_LENGTH:
            raise IkeDecodeError(f"{len(data)} bytes, too short for an IKE header")
        spi_i, spi_r, next_payload, version, exchange, flags, message_id, length = _HEADER.unpack_from(data)
        if version >> 4 == VERSION >> 4 and (length != len(data) or length > MAX_MESSAGE_LENGTH):
            raise IkeDecodeError(f"header states {length} bytes, the message has {len(data)}")
        return cls(spi_i, spi_r, exchange, flags, message_id, next_payload, version)


def encode_payloads(payloads: Iterable[Payload]) -> tuple[int, bytes]:
    """Return the type of the first of ``payloads`` and all of them chained, with generic headers."""
    chained = tuple(payloads)
    types = [*map(payload_type, chained), PayloadType.NO_NEXT_PAYLOAD]
    parts: list[bytes] = []
    for payload, following in zip(chained, types[1:], strict=True):
        body = payload.encode()
        critical = _CRITICAL if isinstance(payload, Opaque) and payload.critical else 0
        parts.append(_GENERIC.pack(following, critical, _GENERIC.size + len(body)))
        parts.append(body)
    return types[0], b"".join(parts)


def decode_payloads(
    first: int,
    data: bytes,
    start: int = 0,
    end: int | None = None,
    *,
    decoders: Mapping[int, Callable[[bytes], Payload]] = DECODERS,
) -> tuple[Payload, ...]:
    """Return the payloads that ``data[start:end]`` exactly consists of; ``first`` is the type of the first.

    Those that ``decoders`` has nothing for stay as they are. Raises :class:`IkeDecodeError`.
    """
    position, stop = start, len(data) if end is None else end
    payloads: list[Payload] = []
    kind = first
    while kind != PayloadType.NO_NEXT_PAYLOAD:
        if len(payloads) == MAX_PAYLOADS:
            raise IkeDecodeError(f"more than {MAX_PAYLOADS} payloads")
        if stop - position < _GENERIC.size:
            raise IkeDecodeError(f"payload of type {kind}: header cut off")
        following, bits, length = _GENERIC.unpack_from(data, position)
        if not _GENERIC.size <= length <= stop - position:
            raise IkeDecodeError(f"payload of type {kind}: length {length}, {stop - position} bytes left")
        if kind in (PayloadType.SK, PayloadType.SKF):
            raise IkeDecodeError("an encrypted payload where none belongs")
        body = data[position + _GENERIC.size : position + length]
        decoder = decoders.get(kind)
        payloads.append(Opaque(kind, body, bool(bits & _CRITICAL)) if decoder is None else decoder(body))
        position += length
        kind = following
    if position != stop:
        raise IkeDecodeError(f"{stop - position} bytes after the last payload")
    return tuple(payloads)


def encode_message(header: Header, payloads: Iterable[Payload]) -> bytes:
    """Return a message whose payloads are not encrypted."""
    first, body = encode_payloads(payloads)
    return header.encode(first, HEADER_LENGTH + len(body)) + body


def decode_message(data: bytes) -> tuple[Header, tuple[Payload, ...]]:
    """Return header and payloads of an unencrypted message. Raises :class:`IkeDecodeError`."""
    header = Header.decode(data)
    return header, decode_payloads(header.next_payload, data, HEADER_LENGTH)


def unsupported_critical(payloads: Sequence[Payload]) -> int | None:
    """Return the type of the first payload that we must refuse the message for, if any (section 2.5)."""
    for payload in payloads:
        if isinstance(payload, Opaque) and payload.critical and payload.type not in UNREAD:
            return payload.type
    return None


def one(payloads: Iterable[Payload], kind: type[_P]) -> _P | None:
    """Return the payload of class ``kind``, or ``None``; raise :class:`IkeDecodeError` for several."""
    found = [payload for payload in payloads if isinstance(payload, kind)]
    if len(found) > 1:
        raise IkeDecodeError(f"{len(found)} {kind.__name__} payloads, one allowed")
    return found[0] if found else None


def required(payloads: Iterable[Payload], kind: type[_P]) -> _P:
    """Return the one payload of class ``kind``; raise :class:`IkeDecodeError` unless there is just one."""
    payload = one(payloads, kind)
    if payload is None:
        raise IkeDecodeError(f"no {kind.__name__} payload")
    return payload


def find_notify(payloads: Iterable[Payload], notify_type: NotifyType) -> Notify | None:
    """Return the first notification of that type, or ``None``."""
    for payload in payloads:
        if isinstance(payload, Notify) and payload.notify_type == notify_type:
            return payload
    return None


def find_error(payloads: Iterable[Payload]) -> Notify | None:
    """Return the first notification of an error, or ``None``."""
    for payload in payloads:
        if isinstance(payload, Notify) and payload.is_error:
            return payload
    return None


class _Reassembly:
    """The fragments of one message, as far as they have come."""

    def __init__(self, header: Header, total: int) -> None:
        self.exchange, self.message_id, self.total = header.exchange, header.message_id, total
        self.parts: dict[int, bytes] = {}
        self.first_payload = int(PayloadType.NO_NEXT_PAYLOAD)
        self.first_datagram = b""


class Protection:
    """Seals and opens the messages of one IKE SA, with one key for each direction (RFC 5282).

    Each key is 32 bytes for the cipher and 4 of salt. ``max_datagram`` is the longest message that is sent
    in one piece; ``None`` if the peer cannot put fragments together.
    """

    def __init__(
        self,
        key_out: Secret,
        key_in: Secret,
        *,
        encryption: EncryptionId = EncryptionId.ENCR_AES_GCM_16,
        max_datagram: int | None = None,
    ) -> None:
        self.max_datagram = max_datagram
        self._salt_out, self._cipher_out = _split(key_out, encryption)
        self._salt_in, self._cipher_in = _split(key_in, encryption)
        # A counter can never repeat; RFC 5282 section 3.1 recommends it. The key is of this SA alone.
        self._sealed = 0
        self._reassembly: dict[bool, _Reassembly] = {}  # the one of a request, the one of a response

    @classmethod
    def of(cls, keys: IkeKeys, *, initiator: bool, max_datagram: int | None) -> Protection:
        """Return what the ``initiator`` of an IKE SA, or the other side, uses."""
        key_out, key_in = (keys.sk_ei, keys.sk_er) if initiator else (keys.sk_er, keys.sk_ei)
        return cls(key_out, key_in, encryption=keys.encryption, max_datagram=max_datagram)

    def seal(self, header: Header, payloads: Iterable[Payload]) -> bytes:
        """Return the message with ``payloads`` in its encrypted payload, in one piece."""
        first, inner = encode_payloads(payloads)
        return self._seal(header, PayloadType.SK, first, b"", inner)

    def seal_all(self, header: Header, payloads: Iterable[Payload]) -> tuple[bytes, ...]:
        """Return the message in as many datagrams as it takes."""
        first, inner = encode_payloads(payloads)
        overhead = HEADER_LENGTH + _GENERIC.size + _IV_LENGTH + 1 + _ICV_LENGTH
        if self.max_datagram is None or overhead + len(inner) <= self.max_datagram:
            return (self._seal(header, PayloadType.SK, first, b"", inner),)
        room = self.max_datagram - overhead - _FRAGMENT.size
        parts = [inner[start : start + room] for start in range(0, len(inner), room)]
        return tuple(
            self._seal(
                header,
                PayloadType.SKF,
                first if number == 1 else PayloadType.NO_NEXT_PAYLOAD,
                _FRAGMENT.pack(number, len(parts)),
                part,
            )
            for number, part in enumerate(parts, 1)
        )

    def _seal(self, header: Header, kind: int, first: int, fragment: bytes, inner: bytes) -> bytes:
        plaintext = inner + b"\x00"  # no padding is needed, so the pad length is 0
        iv = self._sealed.to_bytes(_IV_LENGTH)
        self._sealed += 1
        length = _GENERIC.size + len(fragment) + _IV_LENGTH + len(plaintext) + _ICV_LENGTH
        front = header.encode(kind, HEADER_LENGTH + length) + _GENERIC.pack(first, 0, length) + fragment
        return front + iv + self._cipher_out.encrypt(self._salt_out + iv, plaintext, front)

    def open(self, header: Header, data: bytes) -> tuple[int, bytes]:
        """Return the type of the first payload inside the message ``data``, and the bytes of them all.

        Raises :class:`IkeCryptoError` if it is not exactly what the peer sealed, in one piece.
        """
        first, plaintext, _ = self._open(header, data, PayloadType.SK, 0)
        return first, plaintext

    def open_any(self, header: Header, data: bytes) -> tuple[int, bytes, bytes] | None:
        """Return what :meth:`open` does, and the datagram by which a repetition is known.

        That is the message itself, or its first fragment (RFC 7383 section 2.6.1). ``None`` if ``data`` is a
        fragment and others are still missing. Raises :class:`IkeCryptoError`.
        """
        if header.next_payload != PayloadType.SKF:
            return (*self.open(header, data), data)
        if self.max_datagram is None:
            raise IkeCryptoError("a fragment, although none were agreed upon")
        first, part, fragment = self._open(header, data, PayloadType.SKF, _FRAGMENT.size)
        number, total = _FRAGMENT.unpack(fragment)
        if not 1 <= number <= total <= MAX_FRAGMENTS:
            raise IkeCryptoError(f"fragment {number} of {total}")
        known = self._reassembly.get(header.is_response)
        if known is None or (known.message_id, known.exchange) != (header.message_id, header.exchange):
            known = self._reassembly[header.is_response] = _Reassembly(header, total)
        if total < known.total:
            raise IkeCryptoError("a fragment of an earlier, coarser fragmentation")
        if total > known.total:
            # The peer tries smaller ones; those that have come are of no use any more.
            known = self._reassembly[header.is_response] = _Reassembly(header, total)
        if sum(map(len, known.parts.values())) + len(part) > MAX_FRAGMENTED_LENGTH:
            raise IkeCryptoError(f"more than {MAX_FRAGMENTED_LENGTH} bytes in fragments")
        known.parts.setdefault(number, part)
        if number == 1:
            known.first_payload, known.first_datagram = first, data
        if len(known.parts) < total:
            return None
        del self._reassembly[header.is_response]
        whole = b"".join(known.parts[number] for number in range(1, total + 1))
        return known.first_payload, whole, known.first_datagram

    def _open(self, header: Header, data: bytes, kind: int, extra: int) -> tuple[int, bytes, bytes]:
        """Return the next payload, the plaintext, and the ``extra`` bytes before the IV."""
        front_length = HEADER_LENGTH + _GENERIC.size + extra
        start = front_length + _IV_LENGTH
        if header.next_payload != kind or len(data) < start + 1 + _ICV_LENGTH:
            raise IkeCryptoError("no encrypted payload")
        first, _, length = _GENERIC.unpack_from(data, HEADER_LENGTH)
        if length != len(data) - HEADER_LENGTH:
            raise IkeCryptoError("the encrypted payload does not fill the message")
        front, iv = data[:front_length], data[front_length:start]
        try:
            plaintext = self._cipher_in.decrypt(self._salt_in + iv, data[start:], front)
        except InvalidTag:
            raise IkeCryptoError("integrity check failed") from None
        padding = plaintext[-1] + 1
        if padding > len(plaintext):
            raise IkeCryptoError("padding longer than the encrypted payload")
        return first, plaintext[:-padding], front[front_length - extra :]


_CIPHERS: dict[EncryptionId, type[AESGCM] | type[ChaCha20Poly1305]] = {
    EncryptionId.ENCR_AES_GCM_16: AESGCM,
    EncryptionId.ENCR_CHACHA20_POLY1305: ChaCha20Poly1305,
}


def _split(key: Secret, encryption: EncryptionId) -> tuple[bytes, AESGCM | ChaCha20Poly1305]:
    material = key.reveal()
    return material[-_SALT_LENGTH:], _CIPHERS[encryption](material[:-_SALT_LENGTH])
