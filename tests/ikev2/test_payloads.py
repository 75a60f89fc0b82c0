"""The bodies of payloads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.ikev2.constants import HashAlgorithm, NotifyType, notify_name
from minerva.ikev2.errors import IkeDecodeError
from minerva.ikev2.payloads import (
    DECODERS,
    Authentication,
    Certificate,
    CertificateRequest,
    Delete,
    IdentificationInitiator,
    IdentificationResponder,
    KeyExchange,
    Nonce,
    Notify,
    VendorId,
    digital_signature,
    payload_type,
    read_signature_hashes,
    signature_hashes,
)

# Written by hand from RFC 7296 sections 3.4 to 3.12 and RFC 7427 section 4.
WIRE: list[tuple[Any, str]] = [
    (KeyExchange(19, b"\x01\x02"), "0013 0000 0102"),
    (IdentificationInitiator(5, bytes(15) + b"\x01"), "05 000000 00000000000000000000000000000001"),
    (IdentificationResponder(2, b"x"), "02 000000 78"),
    (IdentificationResponder(2, b"x", b"\x01\x02\x03"), "02 010203 78"),
    (Certificate(4, b"\x30\x00"), "04 3000"),
    (CertificateRequest(4, (b"\xaa" * 20, b"\xbb" * 20)), "04" + "aa" * 20 + "bb" * 20),
    (CertificateRequest(4, ()), "04"),
    (Authentication(14, b"\x0c"), "0e 000000 0c"),
    (Nonce(b"\x11" * 16), "11" * 16),
    (Notify(NotifyType.INVALID_KE_PAYLOAD, b"\x00\x13"), "00 00 0011 0013"),
    (Notify(NotifyType.REKEY_SA, b"", 3, b"\x00\x00\x01\x00"), "03 04 4009 00000100"),
    (signature_hashes(HashAlgorithm), "00 00 402f 0002 0003 0004"),
    (Delete(1), "01 00 0000"),
    (Delete(3, (b"\x00\x00\x01\x00", b"\x00\x00\x02\x00")), "03 04 0002 00000100 00000200"),
    (VendorId(b"me"), "6d65"),
]


@pytest.mark.parametrize(("payload", "wire"), WIRE)
def test_wire(payload: Any, wire: str) -> None:
    data = bytes.fromhex(wire)
    assert payload.encode() == data
    assert DECODERS[payload_type(payload)](data) == payload


@pytest.mark.parametrize(
    ("kind", "wire"),
    [
        (KeyExchange, "001300"),
        (IdentificationInitiator, "050000"),
        (Certificate, ""),
        (CertificateRequest, ""),
        (CertificateRequest, "04" + "aa" * 19),
        (Authentication, "0e0000"),
        (Nonce, "11" * 15),
        (Nonce, "11" * 257),
        (Notify, "000000"),
        (Notify, "0304400900"),
        (Delete, "0100"),
        (Delete, "0304000100000100" + "00"),
        (Delete, "03040002" + "00000100"),
        (Delete, "0308000100000100" + "00000000"),
        (Delete, "0104000100000100"),
        (Delete, "0100ffff"),
    ],
)
def test_malformed(kind: Any, wire: str) -> None:
    with pytest.raises(IkeDecodeError):
        kind.decode(bytes.fromhex(wire))


def test_certificate_requests_of_other_encodings_are_not_read() -> None:
    assert CertificateRequest.decode(b"\x0cwhatever") == CertificateRequest(12, ())


byte_strings = st.binary(max_size=40)
numbers8 = st.integers(0, 255)
numbers16 = st.integers(0, 65535)
payloads = st.one_of(
    st.builds(KeyExchange, numbers16, byte_strings),
    st.builds(IdentificationInitiator, numbers8, byte_strings),
    st.builds(IdentificationResponder, numbers8, byte_strings, st.binary(min_size=3, max_size=3)),
    st.builds(Certificate, numbers8, byte_strings),
    st.builds(
        CertificateRequest,
        st.just(4),
        st.lists(st.binary(min_size=20, max_size=20), max_size=4).map(tuple),
    ),
    st.builds(Authentication, numbers8, byte_strings),
    st.builds(Nonce, st.binary(min_size=16, max_size=256)),
    st.builds(Notify, numbers16, byte_strings, numbers8, st.binary(max_size=8)),
    st.builds(Delete, st.just(3), st.lists(st.binary(min_size=4, max_size=4), max_size=4).map(tuple)),
    st.builds(VendorId, byte_strings),
)


@given(payloads)
def test_round_trip(payload: Any) -> None:
    assert DECODERS[payload_type(payload)](payload.encode()) == payload


@given(st.sampled_from(sorted(DECODERS)), st.binary(max_size=60))
def test_any_bytes(kind: int, data: bytes) -> None:
    """A decoder raises nothing but its own error."""
    try:
        payload = DECODERS[kind](data)
    except IkeDecodeError:
        return
    assert payload_type(payload) == kind


def test_signature_hashes() -> None:
    """covers: 6.8.3.1.2-6"""
    every = frozenset({HashAlgorithm.SHA2_256, HashAlgorithm.SHA2_384, HashAlgorithm.SHA2_512})
    assert read_signature_hashes([VendorId(b""), signature_hashes(HashAlgorithm)]) == every
    assert read_signature_hashes([]) is None


@pytest.mark.parametrize(
    ("data", "known"),
    [
        ("", frozenset()),
        ("0001", frozenset()),
        ("0001 0003 0005 ffff", frozenset({HashAlgorithm.SHA2_384})),
    ],
)
def test_unknown_hashes_are_ignored(data: str, known: frozenset[HashAlgorithm]) -> None:
    notify = Notify(NotifyType.SIGNATURE_HASH_ALGORITHMS, bytes.fromhex(data))
    assert read_signature_hashes([notify]) == known


def test_signature_hashes_cut_off() -> None:
    with pytest.raises(IkeDecodeError):
        read_signature_hashes([Notify(NotifyType.SIGNATURE_HASH_ALGORITHMS, b"\x00\x02\x00")])


def test_errors_and_states() -> None:
    assert Notify(NotifyType.NO_PROPOSAL_CHOSEN).is_error
    assert Notify(16383).is_error
    assert not Notify(NotifyType.COOKIE).is_error
    assert notify_name(24) == "AUTHENTICATION_FAILED"
    assert notify_name(9999) == "notify type 9999"
    assert digital_signature(b"x") == Authentication(14, b"x")
