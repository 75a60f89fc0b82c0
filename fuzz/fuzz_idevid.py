"""Fuzzes what an IDevID says: as a certificate, as a MASA URL, and as the extension that holds one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from minerva.pki.certificates import load_certificate
from minerva.pki.errors import CertificateError, IdevidError
from minerva.pki.idevid import (
    SerialNumberSource,
    authority_key_identifier_value,
    decode_masa_url,
    domain_id,
    idevid_extensions,
    masa_url,
    normalise_masa_url,
    same_issuer,
    serial_number,
)

WHEN = datetime(2026, 6, 1, tzinfo=UTC)


def _seeds() -> list[bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(NameOID.SERIAL_NUMBER, "FD-0017"), x509.NameAttribute(NameOID.COMMON_NAME, "x")]
    )
    module = bytes.fromhex("300f06072b06010401050104044644310a")
    names = [x509.OtherName(x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4"), module)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(WHEN)
        .not_valid_after(WHEN + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for extension, critical in idevid_extensions("masa.example.com:9443"):
        builder = builder.add_extension(extension, critical=critical)
    urls = ("masa.example.com", "[::1]:443", "http://masa.example.com:80/a%20b/", "ldap://x/", "https://h")
    return [
        builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER),
        *(url.encode() for url in urls),
        *(bytes([tag, len(url)]) + url.encode() for url in urls for tag in (0x16, 0x0C)),
    ]


def target(data: bytes) -> None:
    """Read ``data`` as each of them."""
    for read in (lambda: normalise_masa_url(data.decode("latin-1")), lambda: decode_masa_url(data)):
        try:
            url = read()
        except IdevidError:
            continue
        assert url.startswith("https://")
        assert not url.endswith("/")
        assert normalise_masa_url(url) == url
    try:
        certificate = load_certificate(data)
    except CertificateError:
        return
    for question in (masa_url, domain_id, *(lambda c, s=s: serial_number(c, s) for s in SerialNumberSource)):
        try:
            question(certificate)
        except IdevidError:
            continue
    try:
        assert same_issuer(authority_key_identifier_value(certificate), certificate)
    except IdevidError:
        return


SEEDS = _seeds()


if __name__ == "__main__":
    from _harness import run

    run(target, SEEDS)
