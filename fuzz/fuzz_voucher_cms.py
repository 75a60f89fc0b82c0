"""Fuzzes CMS: what opens says what somebody has signed, and nothing but a CmsError comes of the rest.

The last seeds are what costs a naive reader of BER much.
"""

from __future__ import annotations

from base64 import b64encode
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from asn1crypto import cms
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from minerva.pki.errors import PathError
from minerva.pki.keys import PrivateKey
from minerva.pki.path import validate_path
from minerva.voucher.check import check_voucher
from minerva.voucher.cms import ANIMA_JSON_VOUCHER, DATA, MAX_CERTIFICATES, MAX_SIZE, open_signed, sign
from minerva.voucher.errors import CmsError, VoucherRefused

WHEN = datetime(2026, 6, 1, tzinfo=UTC)
PAYLOAD = b'{"ietf-voucher:voucher":{"serial-number":"FD-0017","assertion":"logged"}}'


def _certificate(name: str, key: PrivateKey) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(WHEN - timedelta(days=1))
        .not_valid_after(WHEN + timedelta(days=1))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


EC_KEY = ec.generate_private_key(ec.SECP256R1())
EC = _certificate("ec", EC_KEY)
RSA_KEY = rsa.generate_private_key(65537, 2048)
RSA = _certificate("rsa", RSA_KEY)


def target(data: bytes) -> None:
    """Open ``data``, and have a pledge judge it."""
    try:
        signed = open_signed(data)
    except CmsError:
        pass
    else:
        assert signed.payload == PAYLOAD, "a signature was forged"
        assert signed.content_type in (ANIMA_JSON_VOUCHER, DATA)
        assert len(signed.chain) <= MAX_CERTIFICATES + 1
        assert signed.signing_time is None or signed.signing_time.tzinfo is UTC
        with suppress(PathError):
            validate_path(signed.chain, (EC, RSA), WHEN)
    try:
        check_voucher(data, serial_number="FD-0017", certificate=EC, anchors=(EC, RSA), nonce=None, when=WHEN)
    except VoucherRefused:
        return
    raise AssertionError("a voucher without a pinned certificate was accepted")


def _spelled(data: bytes, spell: dict[str, object]) -> bytes:
    """Return ``data`` with fields of its SignerInfo put differently."""
    content_info = cms.ContentInfo.load(data)
    (info,) = content_info["content"]["signer_infos"]
    for name, value in spell.items():
        info[name] = value
    return bytes(content_info.dump(force=True))


def _seeds() -> list[bytes]:
    plain = sign(PAYLOAD, EC_KEY, EC, (RSA,), when=WHEN)
    with_rsa = sign(PAYLOAD, RSA_KEY, RSA, when=None, content_type=DATA)
    identifier = EC.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    pss = {
        "algorithm": "rsassa_pss",
        "parameters": {
            "hash_algorithm": {"algorithm": "sha256"},
            "mask_gen_algorithm": {"algorithm": "mgf1", "parameters": {"algorithm": "sha256"}},
            "salt_length": 32,
        },
    }
    encoded = b64encode(plain)
    return [
        plain,
        with_rsa,
        encoded,
        b"-----BEGIN CMS-----\n" + encoded + b"\n-----END CMS-----\n",
        _spelled(plain, {"sid": cms.SignerIdentifier("subject_key_identifier", identifier)}),
        _spelled(with_rsa, {"signature_algorithm": pss}),
        b"\x30\x80" + plain[4:] + b"\x00\x00",
        b"\x30\x80" * 2000,
        b"\x30\x80" + plain[4:15] + b"\xa0\x80" + b"\x24\x80" * 2000,
        bytes(MAX_SIZE + 1),
    ]


SEEDS = _seeds()


if __name__ == "__main__":
    from _harness import run

    run(target, SEEDS)
