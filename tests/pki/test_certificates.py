"""Certificates as bytes."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from minerva.pki.certificates import MAX_CERTIFICATE_SIZE, dump_pem, load_certificate, load_pem
from minerva.pki.errors import CertificateError

from .certs import Ca, node_name

LEAF = Ca.root().node(node_name(1))
DER = LEAF.public_bytes(Encoding.DER)


def test_der() -> None:
    assert load_certificate(DER) == LEAF


@given(st.data())
def test_mutilated_der(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(DER) - 1))
    mutilated = bytearray(DER)
    mutilated[position] = data.draw(st.integers(0, 255))
    try:
        load_certificate(bytes(mutilated))
    except CertificateError:
        return


@pytest.mark.parametrize("der", [b"", DER[:-1], DER + b"\x00", bytes(MAX_CERTIFICATE_SIZE + 1)])
def test_not_der(der: bytes) -> None:
    with pytest.raises(CertificateError):
        load_certificate(der)


def test_another_version() -> None:
    version_3, version_5 = bytes.fromhex("a003020102"), bytes.fromhex("a003020104")
    with pytest.raises(CertificateError, match="version"):
        load_certificate(DER.replace(version_3, version_5, 1))


def test_pem() -> None:
    pair = (LEAF, Ca.root().certificate)
    assert load_pem(dump_pem(pair)) == pair
    assert load_pem(b" \n") == ()
    assert dump_pem(()) == b""
    for data in (
        b"nonsense",
        dump_pem(pair)[:-60],
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ):
        with pytest.raises(CertificateError):
            load_pem(data)
