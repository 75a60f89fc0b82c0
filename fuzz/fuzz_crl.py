"""Fuzzes CRLs: as they come, and signed by the CA so that what is in them is looked at."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from _harness import run
from minerva.est import der
from minerva.pki.ca import CertificateAuthority
from minerva.pki.crl import CrlStore, crl_urls
from minerva.pki.errors import CrlError
from minerva.pki.keys import load_private_key
from minerva.pki.membership import RevocationStatus

WHEN = datetime(2026, 6, 1, tzinfo=UTC)

with tempfile.TemporaryDirectory() as _folder:
    CA = CertificateAuthority.create("fuzz.example.com", Path(_folder), now=WHEN)
    KEY = load_private_key(Path(_folder, "ca-key.pem").read_bytes())
assert isinstance(KEY, ec.EllipticCurvePrivateKey)
NODE = CA.certify(
    KEY.public_key(), None, lifetime=timedelta(days=1), now=WHEN, crl_urls=["http://[fd00::1]/crl"]
)
_CRL = CA.make_crl(
    [(NODE.serial_number, WHEN, x509.ReasonFlags.superseded), (7, WHEN, None)],
    3,
    lifetime=timedelta(days=1),
    now=WHEN,
)


def _to_be_signed(crl: bytes) -> bytes:
    return x509.load_der_x509_crl(crl).tbs_certlist_bytes


def _scoped(**options: object) -> bytes:
    point = x509.IssuingDistributionPoint(
        **{
            "full_name": [x509.UniformResourceIdentifier("http://[fd00::1]/crl")],
            "relative_name": None,
            "only_contains_user_certs": True,
            "only_contains_ca_certs": False,
            "only_some_reasons": None,
            "indirect_crl": False,
            "only_contains_attribute_certs": False,
            **options,
        }
    )
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(CA.certificate.subject)
        .last_update(WHEN)
        .next_update(WHEN + timedelta(days=1))
        .add_extension(point, critical=True)
    )
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


SEEDS: list[bytes] = [
    b"\0" + _CRL,
    *(b"\1" + _to_be_signed(crl) for crl in (_CRL, _scoped(), _scoped(indirect_crl=True))),
    b"\2" + NODE.extensions.get_extension_for_class(x509.CRLDistributionPoints).value.public_bytes(),
]
_ALGORITHM = bytes.fromhex("300a06082a8648ce3d040302")


def _signed(tbs: bytes) -> bytes:
    signature = KEY.sign(tbs, ec.ECDSA(hashes.SHA256()))
    return der.encode(der.SEQUENCE, tbs, _ALGORITHM, der.encode(der.BIT_STRING, b"\0", signature))


def _with_urls(value: bytes) -> x509.Certificate:
    extension = x509.UnrecognizedExtension(x509.CRLDistributionPoints.oid, value)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(CA.certificate.subject)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(WHEN)
        .not_valid_after(WHEN)
        .add_extension(extension, critical=False)
    )
    return builder.sign(KEY, hashes.SHA256())


def target(data: bytes) -> None:
    """Take ``data`` for a CRL, for one to be signed, or for what a certificate says of its CRL."""
    if not data:
        return
    mode, rest = data[0] % 3, data[1:]
    if mode == 2:
        try:
            urls = crl_urls(_with_urls(rest))
        except CrlError:
            return
        assert all(url.lower().startswith("http") and url.isascii() and url.isprintable() for url in urls)
        return
    store = CrlStore()
    try:
        crl = store.add(_signed(rest) if mode else rest, [CA.certificate], WHEN)
    except CrlError:
        assert not store.crls
        return
    status = store.status(NODE, CA.certificate, WHEN)
    assert (status is RevocationStatus.REVOKED) is (NODE.serial_number in crl.serial_numbers)


if __name__ == "__main__":
    run(target, SEEDS)
