"""The certificate of the web page: the operator's, or one that is made here once and kept."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from minerva.console.config import Web
from minerva.core.errors import MinervaError

log = logging.getLogger(__name__)

FILE: Final = "web.pem"
LIFETIME: Final = timedelta(days=3650)


class CertificateError(MinervaError):
    """The certificate cannot be read or made."""


class Certificate:
    """Says in which files certificate and key are; makes one, signed by itself, if none is configured."""

    def __init__(self, settings: Web, directory: Path) -> None:
        self._settings = settings
        self._file = directory / FILE

    def files(self) -> tuple[str, str]:
        """Return the files of the certificate and of its key. Raises CertificateError."""
        if self._settings.certificate:
            return self._settings.certificate, self._settings.key
        try:
            made = not self._file.exists()
            if made:
                self._make()
            shown = x509.load_pem_x509_certificate(self._file.read_bytes())
        except (OSError, ValueError) as error:
            raise CertificateError(f"cannot use {self._file}, the web page's certificate: {error}") from error
        if made:
            digest = shown.fingerprint(hashes.SHA256()).hex(":")
            log.info("a certificate for the web page was made: %s, with the SHA-256 %s", self._file, digest)
        return str(self._file), str(self._file)

    def load(self) -> tuple[ssl.SSLContext, bytes]:
        """Return what serves TLS with it, and a digest of its files. Raises CertificateError."""
        certificate, key = self.files()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(certificate, key)
            digest = hashlib.sha256(Path(certificate).read_bytes() + Path(key).read_bytes()).digest()
        except OSError as error:  # of which SSLError is one
            reason = error.strerror or str(error)
            raise CertificateError(f"cannot use {certificate} with the key {key}: {reason}") from error
        return context, digest

    def _make(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = socket.gethostname()[:64] or "console"
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + LIFETIME)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        new = self._file.with_suffix(".new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._file)
