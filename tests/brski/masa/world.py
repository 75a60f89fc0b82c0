"""A maker with a MASA, its devices, and the domains that want them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from minerva.brski.database import open_engine
from minerva.brski.masa.authority import Authority, create_authority
from minerva.brski.masa.database import Database, DeviceRecord, Owner
from minerva.brski.masa.factory import make_device
from minerva.brski.masa.service import Masa
from minerva.brski.masa.settings import Settings
from minerva.pki.ca import CertificateAuthority
from minerva.pki.certificates import ID_KP_CMC_RA, load_pem
from minerva.pki.keys import PrivateKey, generate_key, load_private_key
from minerva.voucher.check import check_voucher
from minerva.voucher.cms import sign
from minerva.voucher.model import Assertion, Voucher, VoucherRequest

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
REGISTRAR_USAGES = (ID_KP_CMC_RA, ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)

_nonces = itertools.count(1)


def new_nonce() -> str:
    """Return a nonce that no other request has."""
    return f"nonce-{next(_nonces):016}"


@dataclass
class Device:
    """A device as it left the factory."""

    serial_number: str
    certificate: x509.Certificate
    key: PrivateKey
    chain: tuple[x509.Certificate, ...]
    anchors: tuple[x509.Certificate, ...]

    @classmethod
    def load(cls, serial_number: str, directory: Path) -> Device:
        """Return the device whose identity is in ``directory``."""

        def certificates(name: str) -> tuple[x509.Certificate, ...]:
            return load_pem((directory / name).read_bytes())

        (certificate,) = certificates("cert.pem")
        key = load_private_key((directory / "key.pem").read_bytes())
        return cls(serial_number, certificate, key, certificates("chain.pem"), certificates("anchors.pem"))

    def request(self, registrar: x509.Certificate | None, nonce: str | None, **changes: Any) -> bytes:
        """Return this device's voucher request, to the registrar it sees."""
        request = VoucherRequest(
            serial_number=self.serial_number,
            created_on=NOW,
            nonce=nonce,
            assertion=Assertion.PROXIMITY,
            proximity_registrar_cert=None if registrar is None else registrar.public_bytes(Encoding.DER),
        )
        payload = replace(request, **changes).encode()
        return sign(payload, self.key, self.certificate, self.chain, when=NOW)

    def check(self, voucher: bytes, nonce: str | None, when: datetime = NOW) -> Voucher:
        """Return the voucher if this device believes it."""
        return check_voucher(
            voucher,
            serial_number=self.serial_number,
            certificate=self.certificate,
            anchors=self.anchors,
            nonce=nonce,
            when=when,
        )


class Domain:
    """A domain: a root CA, an issuing CA, and a registrar."""

    def __init__(
        self, name: str, directory: Path, *, usages: Sequence[x509.ObjectIdentifier] = REGISTRAR_USAGES
    ):
        self.name = name
        self.root = CertificateAuthority.create(name, directory / "root", now=NOW - timedelta(days=10))
        self.issuing = self.root.issue_ca(directory / "issuing", now=NOW - timedelta(days=10))
        self.key = generate_key("p256")
        self.registrar = self.certify(usages=usages)
        self.chain = (*self.issuing.chain, self.root.certificate)

    def certify(
        self,
        *,
        usages: Sequence[x509.ObjectIdentifier] = REGISTRAR_USAGES,
        key: PrivateKey | None = None,
        now: datetime = NOW - timedelta(days=5),
    ) -> x509.Certificate:
        """Return a certificate for a registrar."""
        return self.issuing.certify(
            (key or self.key).public_key(),
            None,
            lifetime=timedelta(days=30),
            now=now,
            usages=usages,
            subject=f"registrar of {self.name}",
        )

    def request(
        self,
        serial_number: str,
        nonce: str | None,
        *,
        prior: bytes | None = None,
        chain: Sequence[x509.Certificate] | None = None,
        when: datetime | None = NOW,
        **changes: Any,
    ) -> bytes:
        """Return the registrar's voucher request."""
        request = VoucherRequest(
            serial_number=serial_number, created_on=when, nonce=nonce, prior_signed_voucher_request=prior
        )
        payload = replace(request, **changes).encode()
        certificates = self.chain if chain is None else chain
        return sign(payload, self.key, self.registrar, certificates, when=when)

    def proximity_request(
        self, device: Device, nonce: str | None = None, **changes: Any
    ) -> tuple[bytes, str]:
        """Return the request for a device that speaks with this registrar, and its nonce."""
        nonce = nonce or new_nonce()
        prior = device.request(self.registrar, nonce)
        return self.request(device.serial_number, nonce, prior=prior, **changes), nonce

    @property
    def owner(self) -> Owner:
        """The domain as a buyer: its root."""
        return Owner.of(self.root.certificate)


@dataclass
class Maker:
    """A maker of devices with its MASA."""

    directory: Path
    authority: Authority
    database: Database
    masa: Masa
    serial_numbers: Any = field(default_factory=lambda: itertools.count(1))

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        at: str = "masa.example.com:9443",
        url: str | None = None,
        sales: str = "open",
        **settings: Any,
    ) -> Maker:
        """Make one; ``url`` is that of its database."""
        chosen = Settings("Maker", at, url or "masa.db", sales, **settings)
        directory.mkdir(parents=True, exist_ok=True)
        database = Database(open_engine(chosen.database_at(directory)))
        database.create()
        authority = create_authority(directory, chosen, NOW - timedelta(days=100))
        return cls(directory, authority, database, Masa(authority, database))

    def device(self, serial_number: str | None = None) -> Device:
        """Make a device."""
        serial_number = serial_number or f"SN-{next(self.serial_numbers):04}"
        where = self.directory / "made" / serial_number
        make_device(self.authority, self.database, serial_number, where, NOW - timedelta(days=50))
        return Device.load(serial_number, where)

    def ask(self, request: bytes, when: datetime = NOW) -> bytes:
        """Return the voucher for a request."""
        return self.masa.request_voucher(request, peer="2001:db8::1", now=when)

    def record(self, device: Device) -> DeviceRecord:
        """Return what the database says of a device."""
        return self.database.known(device.serial_number)

    def close(self) -> None:
        """Close the database."""
        self.database.close()
