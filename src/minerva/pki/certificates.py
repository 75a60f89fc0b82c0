"""Certificates as bytes: what comes from a stranger, and the PEM files of an operator."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from minerva.pki.errors import CertificateError

ID_KP_CMC_RA: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")
"""id-kp-cmcRA, the extended key usage of a registrar (RFC 6402 section 2.10, RFC 8994 section 6.2.5)."""

MAX_CERTIFICATE_SIZE = 16_384
"""The largest certificate accepted from a stranger, in bytes."""

UNREADABLE = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises on a malformed certificate, when it is loaded or when a part is asked for."""


def load_certificate(der: bytes) -> x509.Certificate:
    """Return the certificate in ``der``. Raises :class:`CertificateError`.

    Its names, keys and extensions may still turn out to be unreadable, in one of the ways of
    :data:`UNREADABLE`; :func:`minerva.pki.path.validate_path` looks into all of them.
    """
    if len(der) > MAX_CERTIFICATE_SIZE:
        raise CertificateError(
            f"certificate of {len(der)} bytes, at most {MAX_CERTIFICATE_SIZE} are accepted"
        )
    try:
        with warnings.catch_warnings():
            # Of what it will refuse one day, such as a negative serial number. Not for an operator's eyes.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            return x509.load_der_x509_certificate(der)
    except UNREADABLE as error:
        raise CertificateError(f"not a certificate: {error}") from error


def load_pem(data: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates in PEM ``data``, none if it is blank.

    Raises :class:`CertificateError`, also if there is anything but whole certificates.
    """
    if not data.strip():
        return ()
    try:
        certificates = tuple(x509.load_pem_x509_certificates(data))
    except UNREADABLE as error:
        raise CertificateError(
            "not certificates in PEM, which begin with -----BEGIN CERTIFICATE-----"
        ) from error
    # The library passes over what it does not take for a certificate, such as one that is cut off.
    blocks = data.count(b"-----BEGIN ")
    if blocks != len(certificates):
        raise CertificateError(f"{blocks} blocks of PEM, only {len(certificates)} of them whole certificates")
    return certificates


def dump_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """Return ``certificates`` in PEM, one after the other."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
