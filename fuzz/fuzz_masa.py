"""Fuzzes what a MASA makes of a registrar's request: nothing but a voucher or a refusal may come of it.

The first byte of the input chooses what the rest is: the whole request; what a registrar has signed; what a
registrar passes on of a device; what that device has signed; or the Accept header.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from starlette.requests import Request

from minerva.brski.database import open_engine
from minerva.brski.masa.app import check_accept
from minerva.brski.masa.authority import create_authority
from minerva.brski.masa.database import Database
from minerva.brski.masa.errors import Refusal
from minerva.brski.masa.factory import make_device
from minerva.brski.masa.service import Masa
from minerva.brski.masa.settings import Settings
from minerva.pki.ca import CertificateAuthority
from minerva.pki.certificates import ID_KP_CMC_RA, load_pem
from minerva.pki.keys import generate_key, load_private_key
from minerva.voucher.cms import sign
from minerva.voucher.model import Voucher, VoucherRequest

NOW = datetime.now(UTC).replace(microsecond=0)
SERIAL, NONCE = "SN-1", "0123456789abcdef"
MODES = 5

_folder = tempfile.TemporaryDirectory()
_base = Path(_folder.name)
_settings = Settings("Fuzz", "masa.example.com")
DATABASE = Database(open_engine(_base / "masa.db"))
DATABASE.create()
AUTHORITY = create_authority(_base / "masa", _settings, NOW)
MASA = Masa(AUTHORITY, DATABASE)
make_device(AUTHORITY, DATABASE, SERIAL, _base / "device", NOW)
DEVICE_KEY = load_private_key((_base / "device" / "key.pem").read_bytes())
(DEVICE,) = load_pem((_base / "device" / "cert.pem").read_bytes())
DEVICE_CHAIN = load_pem((_base / "device" / "chain.pem").read_bytes())
_ca = CertificateAuthority.create("fuzz.example.com", _base / "root")
REGISTRAR_KEY = generate_key("p256")
REGISTRAR = _ca.certify(
    REGISTRAR_KEY.public_key(), None, lifetime=timedelta(days=9), usages=(ID_KP_CMC_RA,), subject="registrar"
)
CHAIN = (_ca.certificate,)


def target(data: bytes) -> None:
    """Ask a MASA for a voucher and for a log."""
    if not data:
        return
    mode, rest = data[0] % MODES, data[1:]
    if mode == 4:
        headers = [(b"accept", rest)]
        refusal = _refusal(partial(check_accept, Request({"type": "http", "headers": headers})))
        assert refusal is None or refusal.status in (406, 415)
        return
    request = _request(mode, rest)
    for ask in (
        partial(MASA.request_voucher, request, peer="::1", now=NOW),
        partial(MASA.request_audit_log, request, NOW),
    ):
        before = DATABASE.known(SERIAL)
        if (refusal := _refusal(ask)) is not None:
            assert 400 <= refusal.status < 500
            assert refusal.reason.isprintable()
            assert refusal.reason.encode()
            assert DATABASE.known(SERIAL) == before


def _refusal(ask: Callable[[], object]) -> Refusal | None:
    try:
        ask()
    except Refusal as refusal:
        return refusal
    return None


def _request(mode: int, rest: bytes) -> bytes:
    if mode == 0:
        return rest
    if mode == 1:
        return sign(rest, REGISTRAR_KEY, REGISTRAR, CHAIN, when=NOW)
    prior = rest if mode == 2 else sign(rest, DEVICE_KEY, DEVICE, DEVICE_CHAIN, when=NOW)
    request = VoucherRequest(serial_number=SERIAL, nonce=NONCE, prior_signed_voucher_request=prior)
    return sign(request.encode(), REGISTRAR_KEY, REGISTRAR, CHAIN, when=NOW)


def _seeds() -> list[bytes]:
    pledge = VoucherRequest(
        serial_number=SERIAL, nonce=NONCE, proximity_registrar_cert=REGISTRAR.public_bytes(Encoding.DER)
    ).encode()
    signed = sign(pledge, DEVICE_KEY, DEVICE, DEVICE_CHAIN, when=NOW)
    registrar = VoucherRequest(
        serial_number="other", created_on=NOW, nonce=NONCE, prior_signed_voucher_request=signed
    ).encode()
    voucher = Voucher(
        serial_number=SERIAL, nonce=NONCE, assertion="logged", pinned_domain_cert=b"0", created_on=NOW
    )
    return [
        b"\0" + sign(registrar, REGISTRAR_KEY, REGISTRAR, CHAIN, when=NOW),
        b"\1" + registrar,
        b"\2" + signed,
        b"\3" + pledge,
        b"\3" + voucher.encode(),
        b"\4application/voucher-cms+json;q=0.5, */*;q=0",
    ]


SEEDS = _seeds()


if __name__ == "__main__":
    from _harness import run

    run(target, SEEDS)
