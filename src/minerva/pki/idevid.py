"""The IDevID: what a maker's certificate says of a device, and who its MASA is (RFC 8995 section 2.3)."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from ipaddress import AddressValueError, IPv6Address
from typing import Any, ClassVar
from urllib.parse import urlsplit

from asn1crypto import core
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from minerva.core.text import shortened
from minerva.pki.certificates import UNREADABLE
from minerva.pki.errors import IdevidError

MASA_URL_OID = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.32")
"""id-pe-masa-url: the extension that says where the maker's MASA is (RFC 8995 section 2.3.2)."""

OLD_MASA_URL_OID = x509.ObjectIdentifier("1.3.6.1.4.1.46930.2")
"""What stood in the place of id-pe-masa-url before IANA gave that its number. Read, never written."""

WELL_KNOWN_PATH = "/.well-known/brski"
"""Where a MASA is whose IDevIDs name an authority only."""

MAX_URL_LENGTH = 1024
"""The longest MASA URL accepted, in characters."""

_MAX_HOST_LENGTH = 253
_HARDWARE_MODULE_NAME = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4")

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?", re.IGNORECASE)
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::(?P<port>[0-9]{1,5}))?")
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*")


class _HardwareModuleName(core.Sequence):  # type: ignore[misc]  # asn1crypto has no types
    """``SEQUENCE { hwType OBJECT IDENTIFIER, hwSerialNum OCTET STRING }``."""

    _fields: ClassVar[list[tuple[Any, ...]]] = [
        ("hw_type", core.ObjectIdentifier),
        ("hw_serial_num", core.OctetString),
    ]


class SerialNumberSource(StrEnum):
    """Where a maker has put the serial number of a device (RFC 8995 section 2.3.1: "in other fields")."""

    SERIAL_NUMBER = "serial-number"
    """The serialNumber (X520SerialNumber) of the subject, as the RFC wants it."""
    COMMON_NAME = "common-name"
    """The commonName of the subject."""
    HARDWARE_MODULE_NAME = "hardware-module-name"
    """The hwSerialNum of a hardwareModuleName in the subjectAltName (RFC 4108 section 5)."""


def serial_number(
    certificate: x509.Certificate, source: SerialNumberSource = SerialNumberSource.SERIAL_NUMBER
) -> str:
    """Return the serial number of the device that ``certificate`` is of: the serial-number of its vouchers.

    That is never the serial number of the certificate itself. Raises :class:`IdevidError` if it is not
    there exactly once.
    """
    try:
        match source:
            case SerialNumberSource.SERIAL_NUMBER:
                found = _attributes(certificate, NameOID.SERIAL_NUMBER)
            case SerialNumberSource.COMMON_NAME:
                found = _attributes(certificate, NameOID.COMMON_NAME)
            case SerialNumberSource.HARDWARE_MODULE_NAME:
                found = _hardware_serial_numbers(certificate)
    except UNREADABLE as error:
        raise IdevidError(f"the certificate cannot be read: {shortened(str(error), 200)}") from error
    if len(found) != 1 or not found[0] or not found[0].isprintable():
        raise IdevidError(
            f"{len(found) or 'no'} serial numbers of a device in the {source.value} of the certificate; "
            "one in characters to be seen is wanted"
        )
    return found[0]


def masa_url(certificate: x509.Certificate) -> str | None:
    """Return the URL of the MASA that ``certificate`` names, ``None`` if it names none.

    It is ``https://authority/path`` without a slash at the end; the name of an operation such as
    ``/requestvoucher`` follows. Raises :class:`IdevidError` for one that is of no use.
    """
    try:
        extensions = certificate.extensions
    except UNREADABLE as error:
        raise IdevidError("the certificate's extensions cannot be read") from error
    for oid in (MASA_URL_OID, OLD_MASA_URL_OID):
        for extension in extensions:
            if extension.oid == oid and isinstance(extension.value, x509.UnrecognizedExtension):
                return decode_masa_url(extension.value.value)
    return None


def decode_masa_url(der: bytes) -> str:
    """Return the URL that the MASA URL extension ``der`` stands for. Raises :class:`IdevidError`.

    It is an IA5String, or the UTF8String that some makers write.
    """
    try:
        value = core.load(der, strict=True)
        if isinstance(value, core.IA5String | core.UTF8String):
            return normalise_masa_url(str(value.native))
    except (ValueError, TypeError, RecursionError) as error:
        raise IdevidError("the MASA URL extension of the certificate is not in DER") from error
    raise IdevidError("the MASA URL extension of the certificate is not an IA5String")


def normalise_masa_url(text: str) -> str:
    """Return the URL that ``text`` stands for, which is one or an authority only.

    Without a slash it is an authority, and the path is the well-known one (RFC 8995 section 2.3.2). So it is
    where a URL has no path. HTTP becomes HTTPS; ldap: and the like are of no use.
    Raises :class:`IdevidError`.
    """
    if len(text) > MAX_URL_LENGTH:
        raise IdevidError(f"MASA URL of {len(text)} characters, at most {MAX_URL_LENGTH} are accepted")
    shown = shortened(text, 200)
    if not text.isascii() or any(character <= " " or character == "\x7f" for character in text):
        raise IdevidError(f'not a MASA URL: "{shown}" has characters that a URL cannot have')
    if "/" not in text:
        return f"https://{_authority(text, shown)}{WELL_KNOWN_PATH}"
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise IdevidError(f'not a MASA URL: "{shown}"') from error
    if parts.scheme not in ("https", "http") or not parts.netloc:
        raise IdevidError(f'not a MASA URL: "{shown}" is neither an authority nor a URL of HTTPS')
    if "?" in text or "#" in text:
        raise IdevidError(f'not a MASA URL: "{shown}" has more than a scheme, an authority and a path')
    path = parts.path.rstrip("/")
    if _PATH.fullmatch(path) is None or any(part in (".", "..") for part in path.split("/")):
        raise IdevidError(f'not a MASA URL: "{shown}" has no proper path')
    return f"https://{_authority(parts.netloc, shown)}{path or WELL_KNOWN_PATH}"


def idevid_extensions(masa: str) -> tuple[tuple[x509.ExtensionType, bool], ...]:
    """Return the extensions that an IDevID has besides those of its keys, each with whether it is critical.

    That is basicConstraints, and the MASA URL, cut down to the authority where that says the same. There
    are no restrictions of usage (RFC 8995 section 2.3). Raises :class:`IdevidError`.
    """
    text = normalise_masa_url(masa)
    authority = text.removeprefix("https://").removesuffix(WELL_KNOWN_PATH)
    if "/" not in authority:
        text = authority
    return (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.UnrecognizedExtension(MASA_URL_OID, core.IA5String(text).dump()), False),
    )


def authority_key_identifier_value(certificate: x509.Certificate) -> bytes:
    """Return the idevid-issuer for the device that ``certificate`` is of (RFC 8366bis sections 6.1 to 6.3).

    That is the whole extnValue of the authorityKeyIdentifier, an OCTET STRING around a SEQUENCE. Where
    there is no such extension, it is made of the SHA-1 hash of the device's own public key.
    Raises :class:`IdevidError`.
    """
    return _octet_string(_authority_key_identifier(certificate).public_bytes())


def same_issuer(idevid_issuer: bytes, certificate: x509.Certificate) -> bool:
    """Return whether ``idevid_issuer``, of a voucher or a request, is that of ``certificate``.

    It has been written in three ways: as :func:`authority_key_identifier_value` does, without the OCTET
    STRING around, and as the bare key identifier. Raises :class:`IdevidError` for an unreadable certificate.
    """
    identifier = _authority_key_identifier(certificate)
    value = identifier.public_bytes()
    return idevid_issuer in (_octet_string(value), value) or (
        bool(idevid_issuer) and idevid_issuer == identifier.key_identifier
    )


def domain_id(certificate: x509.Certificate) -> bytes:
    """Return the domainID of the domain whose pinned-domain-cert is ``certificate`` (RFC 8995 5.8.2).

    That is its subjectKeyIdentifier if it has one, else the SHA-256 hash of its subjectPublicKeyInfo.
    Raises :class:`IdevidError` for an unreadable certificate.
    """
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        pass
    except UNREADABLE as error:
        raise IdevidError("the certificate's extensions cannot be read") from error
    try:
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except UNREADABLE as error:
        raise IdevidError("the certificate's public key cannot be read") from error
    return hashlib.sha256(key).digest()


def _authority_key_identifier(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        return certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except x509.ExtensionNotFound:
        pass
    except UNREADABLE as error:
        raise IdevidError("the certificate's extensions cannot be read") from error
    try:
        own = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
    except UNREADABLE as error:
        raise IdevidError("the certificate's public key cannot be read") from error
    return x509.AuthorityKeyIdentifier(own.digest, None, None)


def _octet_string(content: bytes) -> bytes:
    return bytes(core.OctetString(content).dump())


def _attributes(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> list[str]:
    # The only attribute of a name that is bytes is x500UniqueIdentifier, which is not asked for.
    return [str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(oid)]


def _hardware_serial_numbers(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    found = []
    for name in names.get_values_for_type(x509.OtherName):
        if name.type_id == _HARDWARE_MODULE_NAME:
            module = _HardwareModuleName.load(name.value, strict=True)
            found.append(_hardware_serial(module["hw_serial_num"].native))
    return found


def _hardware_serial(octets: bytes) -> str:
    # Most makers put text there. What is none is written as hexadecimal digits.
    text = octets.decode("latin-1")
    return text if text.isascii() and text.isprintable() else octets.hex()


def _authority(text: str, shown: str) -> str:
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise IdevidError(f'not a MASA URL: "{shown}" names no host')
    host, port = match["host"].lower(), match["port"]
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1])}]"
        except AddressValueError as error:
            raise IdevidError(f'not a MASA URL: "{shown}" does not hold an IPv6 address') from error
    elif len(host) > _MAX_HOST_LENGTH or _HOST_NAME.fullmatch(host) is None:
        raise IdevidError(f'not a MASA URL: "{shown}" does not name a host')
    if port is None:
        return host
    if not 1 <= int(port) <= 65535:
        raise IdevidError(f'not a MASA URL: "{shown}" has no proper port')
    return f"{host}:{int(port)}"
