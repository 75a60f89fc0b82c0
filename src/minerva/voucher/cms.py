"""Signed vouchers and requests: CMS SignedData with one signature (RFC 5652, RFC 8366 section 5.4).

::

    ContentInfo ::= SEQUENCE { contentType id-signedData, content [0] EXPLICIT SignedData }
    SignedData ::= SEQUENCE { version, digestAlgorithms SET,
        encapContentInfo SEQUENCE { eContentType, eContent [0] EXPLICIT OCTET STRING },
        certificates [0] IMPLICIT SET, crls [1] IMPLICIT SET OPTIONAL, signerInfos SET OF SignerInfo }
    SignerInfo ::= SEQUENCE { version, sid, digestAlgorithm, signedAttrs [0] IMPLICIT SET,
        signatureAlgorithm, signature OCTET STRING, unsignedAttrs [1] IMPLICIT SET OPTIONAL }

What is written is DER, of version 3. What is read may be BER, of any version, base64 or PEM; every published
voucher is of version 1 and says id-data of its content. Signed attributes are a must (RFC 8366bis section
7.1): without them, a signature over some attributes could be passed off as one over a content.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar

from asn1crypto import core
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from minerva.core.text import shortened
from minerva.pki.certificates import UNREADABLE, load_certificate
from minerva.pki.errors import CertificateError, KeyRuleError
from minerva.pki.keys import PrivateKey, check_public_key, signature_hash
from minerva.pki.path import MAX_CERTIFICATES as MAX_PATH_CERTIFICATES
from minerva.voucher.errors import CmsError, CmsSignatureError
from minerva.voucher.leaves import decode_binary

ANIMA_JSON_VOUCHER = "1.2.840.113549.1.9.16.1.40"
"""id-ct-animaJSONVoucher: the content is a voucher, or a request, in JSON."""

DATA = "1.2.840.113549.1.7.1"
"""id-data: the content is anything. All published vouchers say so."""

MAX_SIZE = 65_536
"""The longest CMS accepted, in bytes of its binary form."""

MAX_CERTIFICATES = MAX_PATH_CERTIFICATES - 1
"""How many certificates may be in it: with the signer's before them, they can still be a path."""

MAX_ATTRIBUTES = 16
"""How many signed attributes there may be."""

_Hash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512
_Fields = list[tuple[Any, ...]]


def _oid(dotted: str) -> bytes:
    return bytes(core.ObjectIdentifier(dotted).dump())


# Object identifiers are compared as what they are in DER: to decode a long one takes a long time.
_OID_SIGNED_DATA = _oid("1.2.840.113549.1.7.2")
_OID_CONTENT_TYPE = _oid("1.2.840.113549.1.9.3")
_OID_MESSAGE_DIGEST = _oid("1.2.840.113549.1.9.4")
_OID_SIGNING_TIME = _oid("1.2.840.113549.1.9.5")
_OID_RSA = _oid("1.2.840.113549.1.1.1")
_OID_RSA_PSS = _oid("1.2.840.113549.1.1.10")
_OID_MGF1 = _oid("1.2.840.113549.1.1.8")
_CONTENT_TYPES = {_oid(dotted): dotted for dotted in (ANIMA_JSON_VOUCHER, DATA)}
_DIGESTS: dict[bytes, _Hash] = {
    _oid("2.16.840.1.101.3.4.2.1"): hashes.SHA256(),
    _oid("2.16.840.1.101.3.4.2.2"): hashes.SHA384(),
    _oid("2.16.840.1.101.3.4.2.3"): hashes.SHA512(),
}
_ECDSA_WITH: dict[bytes, _Hash] = {
    _oid("1.2.840.10045.4.3.2"): hashes.SHA256(),
    _oid("1.2.840.10045.4.3.3"): hashes.SHA384(),
    _oid("1.2.840.10045.4.3.4"): hashes.SHA512(),
}
_RSA_WITH: dict[bytes, _Hash] = {
    _oid("1.2.840.113549.1.1.11"): hashes.SHA256(),
    _oid("1.2.840.113549.1.1.12"): hashes.SHA384(),
    _oid("1.2.840.113549.1.1.13"): hashes.SHA512(),
}

_VERSION_1, _VERSION_3 = b"\x02\x01\x01", b"\x02\x01\x03"
_NULL = b"\x05\x00"

_PEM = re.compile(rb"-----BEGIN (CMS|PKCS7)-----\s(.*)-----END \1-----", re.DOTALL)

# What asn1crypto raises on bytes that are not what they should be. It decodes a part when that is asked for,
# and BER of indefinite length by recursion.
_MALFORMED = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)


class _Raw(core.SetOf):  # type: ignore[misc]  # asn1crypto has no types
    _child_spec: ClassVar[Any] = core.Any


class _Algorithm(core.Sequence):  # type: ignore[misc]
    _fields: ClassVar[_Fields] = [
        ("oid", core.ObjectIdentifier),
        ("parameters", core.Any, {"optional": True}),
    ]


class _Attribute(core.Sequence):  # type: ignore[misc]
    _fields: ClassVar[_Fields] = [("type", core.ObjectIdentifier), ("values", _Raw)]


class _Attributes(core.SetOf):  # type: ignore[misc]
    _child_spec: ClassVar[Any] = _Attribute


class _IssuerAndSerialNumber(core.Sequence):  # type: ignore[misc]
    _fields: ClassVar[_Fields] = [("issuer", core.Any), ("serial_number", core.Integer)]


class _SignerIdentifier(core.Choice):  # type: ignore[misc]
    _alternatives: ClassVar[_Fields] = [
        ("issuer_and_serial_number", _IssuerAndSerialNumber),
        ("subject_key_identifier", core.OctetString, {"implicit": 0}),
    ]


class _SignerInfo(core.Sequence):  # type: ignore[misc]
    _fields: ClassVar[_Fields] = [
        ("version", core.Integer),
        ("sid", _SignerIdentifier),
        ("digest_algorithm", _Algorithm),
        ("signed_attributes", _Attributes, {"implicit": 0, "optional": True}),
        ("signature_algorithm", _Algorithm),
        ("signature", core.OctetString),
        ("unsigned_attributes", _Raw, {"implicit": 1, "optional": True}),
    ]


class _SignerInfos(core.SetOf):  # type: ignore[misc]
    _child_spec: ClassVar[Any] = _SignerInfo


class _Content(core.Sequence):  # type: ignore[misc]
    _fields: ClassVar[_Fields] = [
        ("type", core.ObjectIdentifier),
        ("content", core.OctetString, {"explicit": 0, "optional": True}),
    ]


class _SignedData(core.Sequence):  # type: ignore[misc]
    _fields: ClassVar[_Fields] = [
        ("version", core.Integer),
        ("digest_algorithms", _Raw),
        ("content", _Content),
        ("certificates", _Raw, {"implicit": 0, "optional": True}),
        ("crls", _Raw, {"implicit": 1, "optional": True}),
        ("signer_infos", _SignerInfos),
    ]


class _ContentInfo(core.Sequence):  # type: ignore[misc]
    _fields: ClassVar[_Fields] = [("type", core.ObjectIdentifier), ("content", _SignedData, {"explicit": 0})]


class _PssParameters(core.Sequence):  # type: ignore[misc]
    _fields: ClassVar[_Fields] = [
        ("hash", _Algorithm, {"explicit": 0}),
        ("mask", _Algorithm, {"explicit": 1}),
        ("salt_length", core.Integer, {"explicit": 2, "default": 20}),
        ("trailer", core.Integer, {"explicit": 3, "default": 1}),
    ]


@dataclass(frozen=True, slots=True)
class Signed:
    """A content and who signed it: the signature is good, whether the signer is to be believed is open.

    ``certificates`` are all in it, in its order, the signer's mostly among them. ``signing_time`` is what
    the signer claims, in UTC.
    """

    payload: bytes
    content_type: str
    signer: x509.Certificate
    certificates: tuple[x509.Certificate, ...]
    signing_time: datetime | None

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """The signer's certificate, then the others."""
        return (self.signer, *(other for other in self.certificates if other != self.signer))


def sign(
    payload: bytes,
    key: PrivateKey,
    certificate: x509.Certificate,
    chain: Sequence[x509.Certificate] = (),
    *,
    when: datetime | None,
    content_type: str = ANIMA_JSON_VOUCHER,
) -> bytes:
    """Return ``payload`` signed with ``key``, which is that of ``certificate``, in DER.

    ``certificate`` and all of ``chain`` go with it. ``when`` is the signing time, with a time zone; ``None``
    leaves it out. The digest is the one that fits the key; RSA signs with PKCS #1 v1.5.
    """
    if key.public_key() != certificate.public_key():
        raise ValueError("the key is not that of the certificate")
    digest = signature_hash(key)
    attributes = [
        _sequence(_OID_CONTENT_TYPE, _set(_oid(content_type))),
        _sequence(_OID_MESSAGE_DIGEST, _set(_octets(_hashed(digest, payload)))),
    ]
    if when is not None:
        attributes.append(_sequence(_OID_SIGNING_TIME, _set(_time(when))))
    # A SET in DER is in the order of its encodings.
    signed_attributes = b"".join(sorted(attributes))
    if isinstance(key, ec.EllipticCurvePrivateKey):
        signature = key.sign(_set(signed_attributes), ec.ECDSA(digest))
        signature_algorithm = _sequence(_oid_for(_ECDSA_WITH, digest))
    else:
        signature = key.sign(_set(signed_attributes), padding.PKCS1v15(), digest)
        signature_algorithm = _sequence(_OID_RSA, _NULL)
    digest_algorithm = _sequence(_oid_for(_DIGESTS, digest))
    signer_info = _sequence(
        _VERSION_1,
        _sequence(certificate.issuer.public_bytes(), core.Integer(certificate.serial_number).dump()),
        digest_algorithm,
        _tagged(0, signed_attributes),
        signature_algorithm,
        _octets(signature),
    )
    certificates = {each.public_bytes(Encoding.DER) for each in (certificate, *chain)}
    signed_data = _sequence(
        _VERSION_1 if content_type == DATA else _VERSION_3,
        _set(digest_algorithm),
        _sequence(_oid(content_type), _tagged(0, _octets(payload))),
        _tagged(0, *sorted(certificates)),
        _set(signer_info),
    )
    return _sequence(_OID_SIGNED_DATA, _tagged(0, signed_data))


def open_signed(data: bytes, known: Sequence[x509.Certificate] = ()) -> Signed:
    """Return what ``data`` holds, the signature of which is good for the signer's certificate.

    That is in ``data``, or else among the ``known``. Whether it is to be believed is for
    :func:`minerva.pki.path.validate_path` and :attr:`Signed.chain` to say. Raises :class:`CmsError`.
    """
    try:
        parts = _parse(_binary(data))
    except _MALFORMED as error:
        raise CmsError(f"not a CMS SignedData: {shortened(str(error), 200)}") from error
    try:
        certificates = tuple(load_certificate(der) for der in parts.certificates)
        signer = next(each for each in (*certificates, *known) if parts.is_signed_by(each))
        _verify(parts, signer)
    except StopIteration:
        raise CmsError("CMS: the certificate of the signer is missing") from None
    except CertificateError as error:
        raise CmsError(f"CMS: {shortened(str(error), 200)}") from error
    except (KeyRuleError, *UNREADABLE) as error:
        raise CmsError(f"CMS: the signer's certificate is of no use: {shortened(str(error), 200)}") from error
    return Signed(parts.payload, parts.content_type, signer, certificates, parts.signing_time)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What matters in a SignedData. Nothing in here is left to be decoded by asn1crypto."""

    payload: bytes
    content_type: str
    certificates: list[bytes]
    issuer: bytes
    serial_number: int
    key_identifier: bytes | None
    digest: _Hash
    to_be_verified: bytes
    signature_algorithm: bytes
    parameters: bytes
    signature: bytes
    signing_time: datetime | None

    def is_signed_by(self, certificate: x509.Certificate) -> bool:
        """Return whether the signer says that this is its certificate."""
        if self.key_identifier is None:
            return (
                certificate.serial_number == self.serial_number
                and certificate.issuer.public_bytes() == self.issuer
            )
        try:
            extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except x509.ExtensionNotFound:
            return False
        return extension.value.digest == self.key_identifier


def _binary(data: bytes) -> bytes:
    """Return ``data`` in its binary form, if it is in base64 or in PEM."""
    if len(data) > 2 * MAX_SIZE:
        raise CmsError(f"CMS of {len(data)} bytes, at most {MAX_SIZE} are accepted")
    if not data.startswith(b"\x30"):
        text = data.strip()
        if (pem := _PEM.fullmatch(text)) is not None:
            text = pem[2]
        # A text that is not ASCII becomes one that is not base64.
        data = decode_binary(text.decode("latin-1"), "CMS", CmsError)
    if len(data) > MAX_SIZE:
        raise CmsError(f"CMS of {len(data)} bytes, at most {MAX_SIZE} are accepted")
    return data


def _parse(der: bytes) -> _Parts:
    """Return what matters in ``der``. Raises :class:`CmsError`, or one of :data:`_MALFORMED`."""
    content_info = _ContentInfo.load(der, strict=True)
    if content_info["type"].dump() != _OID_SIGNED_DATA:
        raise CmsError("CMS: not a SignedData")
    signed_data = content_info["content"]
    content_oid = signed_data["content"]["type"].dump()
    content_type = _CONTENT_TYPES.get(content_oid)
    if content_type is None:
        raise CmsError("CMS: its content is neither a voucher nor plain data")
    content = signed_data["content"]["content"]
    if not isinstance(content, core.OctetString):
        raise CmsError("CMS: there is no content, only a signature")
    signer_infos = signed_data["signer_infos"]
    if len(signer_infos) != 1:
        raise CmsError(f"CMS: {len(signer_infos)} signatures, one wanted")
    (signer,) = signer_infos
    sid = signer["sid"].chosen
    by_key = isinstance(sid, core.OctetString)
    digest = _digest(signer["digest_algorithm"])
    attributes = _signed_attributes(signer["signed_attributes"])
    payload = bytes(content.native)
    if attributes.get(_OID_CONTENT_TYPE) != content_oid:
        raise CmsError("CMS: the type that was signed is not that of the content")
    if attributes.get(_OID_MESSAGE_DIGEST) != _octets(_hashed(digest, payload)):
        raise CmsSignatureError("CMS: the content is not the one that was signed")
    return _Parts(
        payload=payload,
        content_type=content_type,
        certificates=_certificates(signed_data["certificates"]),
        issuer=b"" if by_key else sid["issuer"].dump(),
        serial_number=0 if by_key else sid["serial_number"].native,
        key_identifier=bytes(sid.native) if by_key else None,
        digest=digest,
        to_be_verified=_set(signer["signed_attributes"].contents),
        signature_algorithm=signer["signature_algorithm"]["oid"].dump(),
        parameters=signer["signature_algorithm"]["parameters"].dump(),
        signature=bytes(signer["signature"].native),
        signing_time=_signing_time(attributes.get(_OID_SIGNING_TIME)),
    )


def _digest(algorithm: Any) -> _Hash:
    if (digest := _DIGESTS.get(algorithm["oid"].dump())) is None:
        raise CmsError("CMS: the digest is none of SHA-256, SHA-384 and SHA-512")
    return digest


def _signed_attributes(attributes: Any) -> dict[bytes, bytes]:
    """Return the one value of each attribute, in DER, by its type."""
    if not isinstance(attributes, _Attributes):
        raise CmsError("CMS: no signed attributes")
    if len(attributes) > MAX_ATTRIBUTES:
        raise CmsError(f"CMS: {len(attributes)} signed attributes, at most {MAX_ATTRIBUTES} are accepted")
    found: dict[bytes, bytes] = {}
    for attribute in attributes:
        oid, values = attribute["type"].dump(), attribute["values"]
        if oid in found:
            raise CmsError("CMS: a signed attribute comes twice")
        # Of attributes that are not known here there may be as many values as they like.
        found[oid] = values[0].dump() if len(values) == 1 else b""
    return found


def _signing_time(der: bytes | None) -> datetime | None:
    if der is None:
        return None
    time = core.load(der, strict=True)
    if not isinstance(time, core.UTCTime | core.GeneralizedTime):
        raise CmsError("CMS: the signing time is not a time")
    moment = time.native
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise CmsError("CMS: the signing time is not one in UTC")
    return moment.astimezone(UTC)


def _certificates(certificates: Any) -> list[bytes]:
    if not isinstance(certificates, _Raw):
        return []
    if len(certificates) > MAX_CERTIFICATES:
        raise CmsError(f"CMS: {len(certificates)} certificates, at most {MAX_CERTIFICATES} are accepted")
    # What is not a SEQUENCE is no certificate of X.509: attribute certificates and the like.
    return [der for each in certificates if (der := each.dump()).startswith(b"\x30")]


def _verify(parts: _Parts, signer: x509.Certificate) -> None:
    key = signer.public_key()
    check_public_key(key)
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            _same_digest(parts, _ECDSA_WITH.get(parts.signature_algorithm))
            key.verify(parts.signature, parts.to_be_verified, ec.ECDSA(parts.digest))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(parts.signature, parts.to_be_verified, _rsa_padding(parts), parts.digest)
    except InvalidSignature:
        raise CmsSignatureError("CMS: the signature is not one of the signer's key") from None


def _same_digest(parts: _Parts, digest: _Hash | None) -> None:
    # RFC 8933 section 3: one digest, for the content and for the attributes.
    if digest is None:
        raise CmsError("CMS: the signature is of a kind that does not fit the signer's key")
    if digest.name != parts.digest.name:
        raise CmsError("CMS: the signature has another digest than the content")


def _rsa_padding(parts: _Parts) -> padding.PKCS1v15 | padding.PSS:
    if parts.signature_algorithm == _OID_RSA:
        return padding.PKCS1v15()
    if parts.signature_algorithm != _OID_RSA_PSS:
        _same_digest(parts, _RSA_WITH.get(parts.signature_algorithm))
        return padding.PKCS1v15()
    try:
        parameters = _PssParameters.load(parts.parameters, strict=True)
        _same_digest(parts, _DIGESTS.get(parameters["hash"]["oid"].dump()))
        mask = parameters["mask"]
        _same_digest(parts, _DIGESTS.get(_Algorithm.load(mask["parameters"].dump())["oid"].dump()))
        if mask["oid"].dump() != _OID_MGF1 or parameters["trailer"].native != 1:
            raise CmsError("CMS: RSASSA-PSS with parameters that are not known")
        return padding.PSS(padding.MGF1(parts.digest), parameters["salt_length"].native)
    except _MALFORMED as error:
        raise CmsError("CMS: RSASSA-PSS with parameters that are not known") from error


def _hashed(digest: _Hash, data: bytes) -> bytes:
    return hashlib.new(digest.name, data).digest()


def _oid_for(algorithms: dict[bytes, _Hash], digest: _Hash) -> bytes:
    return next(oid for oid, each in algorithms.items() if each.name == digest.name)


def _time(moment: datetime) -> bytes:
    if moment.tzinfo is None:
        raise ValueError("the signing time needs a time zone")
    moment = moment.astimezone(UTC)
    # RFC 5652 section 11.3: two digits for the year as long as they are enough.
    if 1950 <= moment.year < 2050:
        return _tlv(0x17, f"{moment:%y%m%d%H%M%S}Z".encode("ascii"))
    return _tlv(0x18, f"{moment.year:04}{moment:%m%d%H%M%S}Z".encode("ascii"))


def _sequence(*parts: bytes) -> bytes:
    return _tlv(0x30, *parts)


def _set(*parts: bytes) -> bytes:
    return _tlv(0x31, *parts)


def _octets(data: bytes) -> bytes:
    return _tlv(0x04, data)


def _tagged(number: int, *parts: bytes) -> bytes:
    return _tlv(0xA0 | number, *parts)


def _tlv(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + content
