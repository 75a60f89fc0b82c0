"""Header, chain of payloads, encrypted payload."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from minerva.core.secret import Secret
from minerva.ikev2.constants import EncryptionId, ExchangeType, Flag, NotifyType, PayloadType
from minerva.ikev2.errors import IkeCryptoError, IkeDecodeError
from minerva.ikev2.message import (
    Header,
    Protection,
    decode_message,
    decode_payloads,
    encode_message,
    find_error,
    find_notify,
    one,
    required,
    unsupported_critical,
)
from minerva.ikev2.payloads import Nonce, Notify, Opaque, Payload, VendorId

SPI_I, SPI_R = bytes.fromhex("0102030405060708"), bytes.fromhex("1112131415161718")
NONCE = Nonce(b"\x42" * 16)

# Written by hand from RFC 7296 sections 3.1 and 3.2: IKE_SA_INIT request with Ni and a vendor ID.
WIRE = bytes.fromhex(
    "0102030405060708 0000000000000000 28 20 22 08 00000000 00000036"
    "2b 00 0014" + "42" * 16 + "00 00 0006 6d65"
)


def test_wire() -> None:
    header, payloads = decode_message(WIRE)
    assert header == Header(SPI_I, bytes(8), 34, Flag.INITIATOR, 0, PayloadType.NONCE)
    assert header.from_initiator
    assert not header.is_response
    assert header.major_version == 2
    assert payloads == (NONCE, VendorId(b"me"))
    assert encode_message(header, payloads) == WIRE


@pytest.mark.parametrize("cut", range(len(WIRE)))
def test_cut_off(cut: int) -> None:
    """However it is cut, also where the header is adjusted to the new length."""
    with pytest.raises(IkeDecodeError):
        decode_message(WIRE[:cut])
    if cut > 28:
        with pytest.raises(IkeDecodeError):
            decode_message(WIRE[:24] + cut.to_bytes(4) + WIRE[28:cut])


def test_a_payload_shorter_than_its_header() -> None:
    """Length 0 would otherwise be an endless loop."""
    for length in range(4):
        with pytest.raises(IkeDecodeError, match="length"):
            decode_payloads(PayloadType.VENDOR_ID, bytes((43, 0, 0, length)) * 3)


def test_too_many_payloads() -> None:
    chain = bytes.fromhex("2b000004") * 64
    with pytest.raises(IkeDecodeError, match="more than 64"):
        decode_payloads(PayloadType.VENDOR_ID, chain + bytes.fromhex("00000004"))
    assert len(decode_payloads(PayloadType.VENDOR_ID, chain[:-4] + bytes.fromhex("00000004"))) == 64


def test_bytes_after_the_last_payload() -> None:
    with pytest.raises(IkeDecodeError, match="1 bytes after"):
        decode_payloads(PayloadType.VENDOR_ID, bytes.fromhex("00000004ff"))


def test_an_encrypted_payload_inside_is_refused() -> None:
    with pytest.raises(IkeDecodeError, match="encrypted"):
        decode_payloads(PayloadType.SK, bytes.fromhex("00000004"))


def test_other_versions() -> None:
    """The length belongs to version 2: of another version only the header is read."""
    assert Header.decode(WIRE[:17] + b"\x30" + WIRE[18:] + b"more").major_version == 3
    assert Header.decode(WIRE[:17] + b"\x2f" + WIRE[18:]).major_version == 2
    with pytest.raises(IkeDecodeError, match="too short"):
        Header.decode(WIRE[:27])


@pytest.mark.parametrize(
    ("payload", "refused"),
    [
        (Opaque(200, b"x"), None),
        (Opaque(200, b"x", critical=True), 200),
        (Opaque(47, b"x", critical=True), None),
        (Opaque(48, b"x", critical=True), None),
    ],
)
def test_critical_payloads(payload: Opaque, refused: int | None) -> None:
    """RFC 7296 section 2.5: the bit counts for types that the RFC does not define."""
    header = Header(SPI_I, bytes(8), 34, Flag.INITIATOR, 0)
    data = encode_message(header, (NONCE, payload))
    _, payloads = decode_message(data)
    assert payloads == (NONCE, payload)
    assert unsupported_critical(payloads) == refused


def test_looking_for_payloads() -> None:
    payloads: tuple[Payload, ...] = (
        NONCE,
        Notify(NotifyType.COOKIE, b"c"),
        Notify(NotifyType.INVALID_SYNTAX),
    )
    assert required(payloads, Nonce) == NONCE
    assert one(payloads, VendorId) is None
    assert find_notify(payloads, NotifyType.COOKIE) == payloads[1]
    assert find_notify(payloads, NotifyType.INITIAL_CONTACT) is None
    assert find_error(payloads) == payloads[2]
    assert find_error(payloads[:2]) is None
    with pytest.raises(IkeDecodeError, match="no VendorId"):
        required(payloads, VendorId)
    with pytest.raises(IkeDecodeError, match="2 Notify"):
        one(payloads, Notify)


# --- the encrypted payload -------------------------------------------------------------------------------

KEY_I, KEY_R = Secret(bytes(range(36))), Secret(bytes(range(100, 136)))
HEADER = Header(SPI_I, SPI_R, ExchangeType.INFORMATIONAL, Flag.INITIATOR, 2)


def pair() -> tuple[Protection, Protection]:
    return Protection(key_out=KEY_I, key_in=KEY_R), Protection(key_out=KEY_R, key_in=KEY_I)


def test_the_encrypted_payload_is_that_of_rfc_5282() -> None:
    """Opened with nothing but the cipher: nonce, additional data and padding are where RFC 5282 says."""
    data = pair()[0].seal(HEADER, (VendorId(b"me"),))
    assert data[:28] == HEADER.encode(PayloadType.SK, len(data))
    assert data[28:32] == bytes((PayloadType.VENDOR_ID, 0)) + (len(data) - 28).to_bytes(2)
    key, salt = KEY_I.reveal()[:32], KEY_I.reveal()[32:]
    plaintext = AESGCM(key).decrypt(salt + data[32:40], data[40:], data[:32])
    assert plaintext == bytes.fromhex("00 00 0006 6d65 00")


def test_chacha20_is_laid_out_alike() -> None:
    """RFC 7634: the same salt, IV and ICV as for AES-GCM.

    covers: 6.8.2-4
    """
    sealer = Protection(key_out=KEY_I, key_in=KEY_R, encryption=EncryptionId.ENCR_CHACHA20_POLY1305)
    data = sealer.seal(HEADER, (VendorId(b"me"),))
    assert len(data) == len(pair()[0].seal(HEADER, (VendorId(b"me"),)))
    key, salt = KEY_I.reveal()[:32], KEY_I.reveal()[32:]
    plaintext = ChaCha20Poly1305(key).decrypt(salt + data[32:40], data[40:], data[:32])
    assert plaintext == bytes.fromhex("00 00 0006 6d65 00")


def test_ivs_never_repeat() -> None:
    sealer, _ = pair()
    ivs = [sealer.seal(HEADER, ())[32:40] for _ in range(100)]
    assert len(set(ivs)) == 100


def test_open() -> None:
    sealer, opener = pair()
    for payloads in ((), (NONCE,), (NONCE, VendorId(b"me"))):
        data = sealer.seal(HEADER, payloads)
        assert decode_payloads(*opener.open(Header.decode(data), data)) == payloads


@pytest.mark.parametrize("padding", [0, 1, 17, 255])
def test_any_padding_is_accepted(padding: int) -> None:
    """RFC 7296 section 3.14: the recipient must accept any."""
    plaintext = bytes.fromhex("00 00 0006 6d65") + b"\xaa" * padding + bytes((padding,))
    data = seal_by_hand(plaintext)
    assert pair()[1].open(Header.decode(data), data) == (43, bytes.fromhex("00 00 0006 6d65"))


def seal_by_hand(plaintext: bytes) -> bytes:
    length = 4 + 8 + len(plaintext) + 16
    front = HEADER.encode(PayloadType.SK, 28 + length) + bytes((43, 0)) + length.to_bytes(2)
    key = KEY_I.reveal()
    return front + bytes(8) + AESGCM(key[:32]).encrypt(key[32:] + bytes(8), plaintext, front)


def test_padding_longer_than_the_payload() -> None:
    data = seal_by_hand(b"\x01")
    with pytest.raises(IkeCryptoError, match="padding"):
        pair()[1].open(Header.decode(data), data)


def test_every_changed_byte_is_found() -> None:
    """Header, generic header, IV, ciphertext and ICV: all of it is authenticated."""
    sealer, opener = pair()
    data = sealer.seal(HEADER, (NONCE,))
    for position in range(len(data)):
        changed = data[:position] + bytes((data[position] ^ 1,)) + data[position + 1 :]
        try:
            header = Header.decode(changed)
        except IkeDecodeError:
            continue
        with pytest.raises(IkeCryptoError):
            opener.open(header, changed)
    for cut in range(28, len(data)):
        short = data[:24] + cut.to_bytes(4) + data[28:cut]
        with pytest.raises(IkeCryptoError):
            opener.open(Header.decode(short), short)


def test_own_messages_do_not_come_back() -> None:
    """Each direction has its own key: a reflected message does not open."""
    sealer, _ = pair()
    data = sealer.seal(HEADER, ())
    with pytest.raises(IkeCryptoError):
        sealer.open(Header.decode(data), data)


@given(st.binary(max_size=120))
def test_any_bytes(data: bytes) -> None:
    try:
        header, payloads = decode_message(data)
    except IkeDecodeError:
        return
    assert len(encode_message(header, payloads)) <= len(data)


@given(st.integers(0, 255), st.binary(max_size=120))
def test_any_chain(first: int, data: bytes) -> None:
    try:
        payloads = decode_payloads(first, data)
    except IkeDecodeError:
        return
    assert len(payloads) <= len(data) // 4
