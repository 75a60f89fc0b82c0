"""Certificates as strangers send them: whatever they are, they are a refusal and nothing else."""

from __future__ import annotations

import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from minerva.ikev2.constants import CertEncoding
from minerva.ikev2.credentials import describe_certificates, read_certificates
from minerva.ikev2.errors import IkePeerError
from minerva.ikev2.payloads import Certificate
from minerva.pki.certificates import MAX_CERTIFICATE_SIZE
from tests.pki.certs import Ca

GENUINE = Ca.root().node("@acp.example").public_bytes(Encoding.DER)


def read(der: bytes) -> list[x509.Certificate]:
    return read_certificates([Certificate(CertEncoding.X509_SIGNATURE, der)])


def test_a_genuine_one_is_read() -> None:
    assert read(GENUINE)[0].public_bytes(Encoding.DER) == GENUINE


@pytest.mark.parametrize(
    "der", [b"", b"\x30", GENUINE[:-1], GENUINE + b"\0", bytes(MAX_CERTIFICATE_SIZE + 1)]
)
def test_what_is_no_certificate_is_a_refusal(der: bytes) -> None:
    with pytest.raises(IkePeerError, match="cannot be read"):
        read(der)


def test_every_changed_octet_is_read_or_refused() -> None:
    """Nothing else escapes, and not a line of a warning: the version, names and keys are all in here."""
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for place in range(len(GENUINE)):
            for change in (0x01, 0x80, 0xFF):
                changed = bytearray(GENUINE)
                changed[place] ^= change
                try:
                    describe_certificates(read(bytes(changed)))
                except IkePeerError:
                    refused += 1
    assert 0 < refused < 3 * len(GENUINE)
