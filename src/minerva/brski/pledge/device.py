"""Who a device is by the word of its maker: the IDevID, and whose vouchers it believes (RFC 8995 2.3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509

from minerva.brski.pledge.errors import DeviceError
from minerva.pki.certificates import load_pem
from minerva.pki.errors import CertificateError, IdevidError, KeyRuleError
from minerva.pki.identity import ANCHORS_FILE, CERTIFICATE_FILE, CHAIN_FILE, KEY_FILE
from minerva.pki.idevid import serial_number
from minerva.pki.keys import PrivateKey, check_certificate, load_private_key

_REMEDY = "put there what the maker gave you, such as by `minerva masa device`"


@dataclass(frozen=True, slots=True)
class Device:
    """A device with its IDevID.

    ``chain`` holds the maker's intermediate CAs without the leaf, ``anchors`` what vouchers are checked by:
    at least one. ``serial_number`` is that of the device, as its vouchers have it.
    """

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    anchors: tuple[x509.Certificate, ...]
    key: PrivateKey = field(repr=False)
    serial_number: str

    @classmethod
    def from_pem(cls, cert_pem: bytes, chain_pem: bytes, anchors_pem: bytes, key_pem: bytes) -> Device:
        """Return the device in the bytes of four PEM files, of which ``chain_pem`` may be empty.

        Raises :class:`DeviceError`.
        """
        certificates = _load(cert_pem, CERTIFICATE_FILE)
        if len(certificates) != 1:
            raise DeviceError(
                f"{CERTIFICATE_FILE} holds {len(certificates)} certificates, not the device's alone; "
                f"CA certificates belong into {CHAIN_FILE}"
            )
        certificate = certificates[0]
        anchors = _load(anchors_pem, ANCHORS_FILE)
        if not anchors:
            raise DeviceError(f"{ANCHORS_FILE} holds no certificate: no voucher could be believed; {_REMEDY}")
        try:
            key = load_private_key(key_pem)
        except KeyRuleError as error:
            raise DeviceError(f"{KEY_FILE}: {error}; {_REMEDY}") from error
        try:
            check_certificate(certificate)
            serial = serial_number(certificate)
        except (KeyRuleError, IdevidError) as error:
            raise DeviceError(f"{CERTIFICATE_FILE} is no IDevID that can be used: {error}") from error
        if key.public_key() != certificate.public_key():
            raise DeviceError(f"{KEY_FILE} and {CERTIFICATE_FILE} do not belong together; {_REMEDY}")
        return cls(certificate, _load(chain_pem, CHAIN_FILE), anchors, key, serial)

    def believable(self, now: datetime) -> datetime | None:
        """Return ``now``, what the clock says, or ``None`` if it cannot be right.

        The device was not made in the future: a clock before the IDevID's beginning has not been set since
        the power came (RFC 8995 section 2.6.1).
        """
        return None if now < self.certificate.not_valid_before_utc else now


def load_device(directory: Path) -> Device:
    """Return the device in ``cert.pem``, ``chain.pem``, ``anchors.pem`` and ``key.pem`` of ``directory``.

    Raises :class:`DeviceError`, as :meth:`Device.from_pem` and for files that are missing or unreadable; only
    ``chain.pem`` need not be there.
    """
    contents = []
    for name in (CERTIFICATE_FILE, CHAIN_FILE, ANCHORS_FILE, KEY_FILE):
        path = directory / name
        try:
            contents.append(path.read_bytes())
        except FileNotFoundError:
            if name != CHAIN_FILE:
                raise DeviceError(
                    f"{path} is missing: without it this device cannot show who it is; {_REMEDY}"
                ) from None
            contents.append(b"")
        except OSError as error:
            raise DeviceError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return Device.from_pem(*contents)
    except DeviceError as error:
        raise DeviceError(f"{directory}: {error}") from error


def _load(data: bytes, name: str) -> tuple[x509.Certificate, ...]:
    try:
        return load_pem(data)
    except CertificateError as error:
        raise DeviceError(f"{name}: {error}; {_REMEDY}") from error
