"""A maker, its MASA and one of its devices, and a domain with a registrar."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from minerva.pki.certificates import ID_KP_CMC_RA
from minerva.pki.idevid import idevid_extensions
from minerva.voucher.cms import sign
from minerva.voucher.model import Assertion, Voucher

from ..pki.certs import DAY, NOW, Ca, key, node_name, subject

SERIAL_NUMBER = "FD-0017"
NONCE = "bm9uY2Vub25jZW5vbmNl"
FOREVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=NOW.tzinfo)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def device_subject(serial_number: str = SERIAL_NUMBER) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, serial_number)])


def aki(ca: Ca) -> tuple[x509.ExtensionType, bool]:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), False


def idevid(ca: Ca, serial_number: str = SERIAL_NUMBER, **options: Any) -> x509.Certificate:
    """The IDevID of a device of the maker ``ca``."""
    extensions = [pair for pair in idevid_extensions("masa.example.com") if pair[1] is False]
    return ca.node(
        subject=device_subject(serial_number),
        extensions=[*extensions, aki(ca)],
        end=FOREVER,
        **{"kind": "p256/device", **options},
    )


def cmc_ra() -> tuple[x509.ExtensionType, bool]:
    return x509.ExtendedKeyUsage([ID_KP_CMC_RA]), False


MAKER = Ca.root("Maker", "p384/maker", end=FOREVER)
DEVICE = idevid(MAKER)
MASA_KEY = key("p256/masa")
MASA = MAKER.node(subject=subject("MASA"), kind="p256/masa")

DOMAIN = Ca.root("Domain", "p256/domain")
ISSUING = DOMAIN.ca("Issuing", "p256/issuing")
REGISTRAR = ISSUING.node(subject=subject("Registrar"), kind="p256/registrar", extensions=[cmc_ra()])
NODE = ISSUING.node(node_name(1), kind="p256/node")
TLS_CHAIN = (REGISTRAR, ISSUING.certificate)

VOUCHER = Voucher(
    assertion=Assertion.PROXIMITY,
    created_on=NOW,
    serial_number=SERIAL_NUMBER,
    nonce=NONCE,
    pinned_domain_cert=der(DOMAIN.certificate),
)


@dataclass(frozen=True)
class Signer:
    """Who signs a voucher, and with which key."""

    certificate: x509.Certificate = MASA
    key: Any = MASA_KEY
    chain: tuple[x509.Certificate, ...] = (MAKER.certificate,)

    def voucher(self, *, when: datetime | None = NOW, base: Voucher = VOUCHER, **changes: Any) -> bytes:
        """A voucher for the device, signed; ``changes`` are of its leaves."""
        return self.signed(replace(base, **changes).encode(), when=when)

    def signed(self, payload: bytes, *, when: datetime | None = NOW) -> bytes:
        return sign(payload, self.key, self.certificate, self.chain, when=when)


LATER = NOW + timedelta(minutes=20)
__all__ = [
    "DAY",
    "DEVICE",
    "DOMAIN",
    "FOREVER",
    "ISSUING",
    "LATER",
    "MAKER",
    "MASA",
    "MASA_KEY",
    "NODE",
    "NONCE",
    "NOW",
    "REGISTRAR",
    "SERIAL_NUMBER",
    "TLS_CHAIN",
    "VOUCHER",
    "Ca",
    "Signer",
    "aki",
    "cmc_ra",
    "der",
    "device_subject",
    "idevid",
    "key",
    "subject",
]
