"""The bodies of EST: base64 on the outside, certs-only PKCS #7 inside (RFC 7030 section 4, RFC 8951)."""

from __future__ import annotations

import binascii
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from minerva.est.der import INTEGER, OBJECT_IDENTIFIER, SEQUENCE, SET, context, read
from minerva.est.errors import EstDecodeError
from minerva.pki.certificates import load_certificate
from minerva.pki.errors import CertificateError

MAX_BODY_SIZE = 262_144
"""The largest body accepted, in bytes as they come."""

MAX_CERTIFICATES = 32
"""How many certificates a certs-only message may hold."""

COLUMNS = 64
"""How many characters a wrapped line has."""

_WHITESPACE = b" \t\r\n"
_MAX_ELEMENTS = 8
_SIGNED_DATA = bytes.fromhex("2a864886f70d010702")


def encode_base64(der: bytes, *, wrapped: bool = False) -> bytes:
    """Return ``der`` in base64, in one line that ends with LF, or ``wrapped`` into several.

    One line is what every client known reads; some do not read more.
    """
    text = binascii.b2a_base64(der, newline=False)
    columns = COLUMNS if wrapped else max(len(text), 1)
    return b"".join(text[start : start + columns] + b"\n" for start in range(0, len(text), columns))


def decode_base64(body: bytes) -> bytes:
    """Return the DER that is in ``body``: in base64 with any white space in it, or as it is.

    What a header says of the transfer encoding does not matter (RFC 8951 section 2.1). All bodies of EST
    are a SEQUENCE: in DER they begin with a byte that is "0" in ASCII, in base64 with an "M".

    Raises :class:`EstDecodeError`, also for an empty body.
    """
    if len(body) > MAX_BODY_SIZE:
        raise EstDecodeError(f"body of {len(body)} bytes, at most {MAX_BODY_SIZE} are accepted")
    if body[:1] == bytes((SEQUENCE,)):
        return body
    text = body.translate(None, _WHITESPACE)
    if not text:
        raise EstDecodeError("the body is empty")
    try:
        der = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise EstDecodeError(f"the body is neither base64 nor DER: {error}") from error
    if der[0] != SEQUENCE:
        raise EstDecodeError("the body is base64 of something else than DER")
    return der


def certs_only(certificates: Iterable[x509.Certificate]) -> bytes:
    """Return the DER of a PKCS #7 message that holds ``certificates``, at least one, and no signature.

    As they are a SET, they come out in another order.
    """
    return pkcs7.serialize_certificates(list(certificates), Encoding.DER)


def load_certs_only(data: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates in a PKCS #7 message, of which nothing else is looked at.

    ``data`` may be in BER, as some servers have it. Raises :class:`EstDecodeError`, also if there is no
    certificate at all.
    """
    if len(data) > MAX_BODY_SIZE:
        raise EstDecodeError(f"PKCS #7 of {len(data)} bytes, at most {MAX_BODY_SIZE} are accepted")
    what = "PKCS #7"
    content_info = read(data, what).expect(SEQUENCE, what).children(what, 2)
    if [element.tag for element in content_info] != [OBJECT_IDENTIFIER, context(0)]:
        raise EstDecodeError("PKCS #7: not a content type and a content")
    if content_info[0].content != _SIGNED_DATA:
        raise EstDecodeError("PKCS #7: the content is no SignedData")
    signed_data = read(content_info[1].content, "SignedData").expect(SEQUENCE, "SignedData")
    fields = signed_data.children("SignedData", _MAX_ELEMENTS)
    if [field.tag for field in fields[:3]] != [INTEGER, SET, SEQUENCE]:
        raise EstDecodeError("SignedData: not a version, digest algorithms and a content")
    found = [
        _certificate(element.encoded)
        for field in fields[3:4]
        if field.tag == context(0)
        for element in field.children("certificates", MAX_CERTIFICATES)
        if element.tag == SEQUENCE
    ]
    if not found:
        raise EstDecodeError("PKCS #7: no certificate in it")
    return tuple(found)


def _certificate(der: bytes) -> x509.Certificate:
    try:
        return load_certificate(der)
    except CertificateError as error:
        raise EstDecodeError(f"PKCS #7: {ascii(str(error))[1:-1]}") from error
