"""The registrar's own certificate and key as a running registrar uses them; service.py makes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from minerva.brski.registrar.errors import RegistrarError
from minerva.pki.certificates import load_pem
from minerva.pki.errors import CertificateError, KeyRuleError, PathError
from minerva.pki.identity import ANCHORS_FILE, CERTIFICATE_FILE, CHAIN_FILE, KEY_FILE
from minerva.pki.keys import PrivateKey, load_private_key
from minerva.pki.path import validate_path


@dataclass(frozen=True, slots=True)
class ServiceIdentity:
    """The certificate that the registrar shows in TLS and signs voucher requests with.

    ``chain`` holds the CAs between it and the ``anchors``, which are those of the domain.
    """

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    anchors: tuple[x509.Certificate, ...]
    key: PrivateKey = field(repr=False)

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def authorities(self) -> tuple[x509.Certificate, ...]:
        """All CAs above it: each may be what a voucher pins."""
        return tuple(dict.fromkeys((*self.chain, *self.anchors)))

    def problem(self, now: datetime) -> str | None:
        """Return why nobody would accept it now."""
        try:
            validate_path((self.certificate, *self.chain), self.anchors, now)
        except PathError as error:
            return f"the registrar's own certificate is of no use: {error}"
        return None


class ServiceIdentities:
    """The identity in use, and the one before.

    Who began a conversation with the one before goes on with it (RFC 8995 section 5: the certificate that
    was seen first is the one that counts), and is answered with the same.
    """

    def __init__(self, current: ServiceIdentity) -> None:
        self.current = current
        self._before: ServiceIdentity | None = None

    def replace(self, identity: ServiceIdentity) -> None:
        """Use another identity from now on."""
        if identity.der != self.current.der:
            self.current, self._before = identity, self.current

    def seen_as(self, der: bytes) -> ServiceIdentity | None:
        """Return the identity of ours whose certificate somebody has seen."""
        for identity in (self.current, self._before):
            if identity is not None and identity.der == der:
                return identity
        return None


def load_service(directory: Path) -> ServiceIdentity:
    """Return the identity in ``directory``. Raises :class:`RegistrarError`."""
    try:
        certificates = load_pem((directory / CERTIFICATE_FILE).read_bytes())
        chain = load_pem((directory / CHAIN_FILE).read_bytes())
        anchors = load_pem((directory / ANCHORS_FILE).read_bytes())
        key = load_private_key((directory / KEY_FILE).read_bytes())
    except OSError as error:
        raise RegistrarError(
            f"{error.filename}: {error.strerror}; `minerva registrar init DOMAIN` makes a registrar"
        ) from error
    except (CertificateError, KeyRuleError) as error:
        raise RegistrarError(f"the registrar's certificate in {directory} cannot be read: {error}") from error
    if len(certificates) != 1 or not anchors:
        raise RegistrarError(
            f"{CERTIFICATE_FILE} in {directory} has to hold one certificate, {ANCHORS_FILE} at least one"
        )
    if not same_key(key.public_key(), certificates[0].public_key()):
        raise RegistrarError(f"{CERTIFICATE_FILE} and {KEY_FILE} in {directory} do not belong together")
    return ServiceIdentity(certificates[0], chain, anchors, key)


def same_key(one: CertificatePublicKeyTypes, other: CertificatePublicKeyTypes) -> bool:
    """Return whether two public keys are the same one."""
    return _encoded(one) == _encoded(other)


def _encoded(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
