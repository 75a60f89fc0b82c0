"""Fuzzes what strangers say to a registrar: requests and reports of pledges, audit logs, answers of proxies.

The first byte chooses which. A request for a voucher is refused in one way only, and none that the device did
not sign is accepted.
"""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from minerva.brski.registrar.audit import judge
from minerva.brski.registrar.config import Audit
from minerva.brski.registrar.errors import Refusal
from minerva.brski.registrar.identity import ServiceIdentities, ServiceIdentity
from minerva.brski.registrar.manufacturers import Manufacturer, UnknownManufacturerError, identify
from minerva.brski.registrar.masa_client import Proxy, _connect_through
from minerva.brski.registrar.requests import check_media_types, check_pledge_request
from minerva.brski.registrar.telemetry import JSON, _decode, _detail
from minerva.https.errors import HttpError
from minerva.pki.certificates import load_certificate
from minerva.pki.errors import CertificateError
from minerva.pki.keys import PrivateKey, generate_key, signature_hash
from minerva.voucher.audit import AuditEvent, AuditLog
from minerva.voucher.cms import sign
from minerva.voucher.model import Assertion, VoucherRequest
from minerva.voucher.telemetry import Status

MODES = 6
WHEN = datetime(2026, 11, 25, tzinfo=UTC)
SERIAL = "D-1"


def _certificate(
    subject: str, key: PrivateKey, issuer: str, issuer_key: PrivateKey, *, ca: bool
) -> x509.Certificate:
    oid = NameOID.COMMON_NAME if ca else NameOID.SERIAL_NUMBER
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(oid, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(WHEN - timedelta(days=1))
        .not_valid_after(WHEN + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(issuer_key, signature_hash(issuer_key))
    )


ROOT_KEY, DEVICE_KEY, OWN_KEY = (generate_key("p256") for _ in range(3))
ROOT = _certificate("Maker", ROOT_KEY, "Maker", ROOT_KEY, ca=True)
DEVICE = _certificate(SERIAL, DEVICE_KEY, "Maker", ROOT_KEY, ca=False)
OWN = _certificate("registrar", OWN_KEY, "registrar", OWN_KEY, ca=True)
MAKER = Manufacturer(1, "Maker", (ROOT,))
SERVICES = ServiceIdentities(ServiceIdentity(OWN, (), (OWN,), OWN_KEY))


def _payload(**changes: object) -> bytes:
    values: dict[str, object] = {
        "serial_number": SERIAL,
        "nonce": "nonce-0001",
        "assertion": Assertion.PROXIMITY,
        "proximity_registrar_cert": OWN.public_bytes(Encoding.DER),
    }
    return VoucherRequest(**values | changes).encode()  # type: ignore[arg-type]


def _signed(payload: bytes) -> bytes:
    return sign(payload, DEVICE_KEY, DEVICE, when=None)


LOOP = asyncio.new_event_loop()


def target(data: bytes) -> None:
    """Hand ``data`` to what takes bytes of strangers."""
    if not data:
        return
    mode, rest = data[0] % MODES, data[1:]
    try:
        match mode:
            case 0:
                found = check_pledge_request(rest, (DEVICE,), MAKER, SERIAL, SERVICES)
                assert (found.serial_number, found.service) == (SERIAL, SERVICES.current)
            case 1:
                # What the device itself may have signed.
                found = check_pledge_request(_signed(rest), (DEVICE,), MAKER, SERIAL, SERVICES)
                assert found.nonce
            case 2:
                detail = _detail(_decode(rest, JSON))
                assert all(len(str(value)) <= 1300 for value in detail.values())
            case 3:
                verdict = judge(rest, [b"own"], Audit())
                assert all(said.isprintable() for said in (*verdict.objections, *verdict.remarks))
            case 4:
                kind, _, accept = rest.decode("latin-1").partition("\n")
                check_media_types(kind, accept)
            case 5:
                _hear_proxy(rest)
    except Refusal as refusal:
        said, status = refusal.reason, refusal.status
    except HttpError as error:
        said, status = str(error), 0
    else:
        said, status = "", 0
    assert said.isprintable()
    assert status in (0, 400, 401, 403, 406, 413, 415)
    _show(rest)


def _show(data: bytes) -> None:
    """Show ``data`` as an IDevID."""
    try:
        identify([MAKER], (load_certificate(data),), WHEN)
    except (CertificateError, UnknownManufacturerError):
        return
    assert data == DEVICE.public_bytes(Encoding.DER) or data == ROOT.public_bytes(Encoding.DER)


def _hear_proxy(answer: bytes) -> None:
    ours, its = socket.socketpair()
    with ours, its:
        ours.setblocking(False)
        its.sendall(answer[:60_000])
        its.shutdown(socket.SHUT_WR)
        LOOP.run_until_complete(_connect_through(ours, "masa.example:443", Proxy("p", 1), "p:1"))


SEEDS = [
    b"\x00" + _signed(_payload()),
    b"\x00" + _signed(_payload(nonce=None)),
    b"\x01" + _payload(),
    b"\x01" + _payload(serial_number="D-2"),
    b"\x01" + _payload(proximity_registrar_cert=b"x"),
    b"\x02" + Status(False, "why", {"a": 1}, 2, {"b": []}).encode(),
    b"\x03" + AuditLog((AuditEvent(WHEN, b"x", None, Assertion.LOGGED),), arbitrary=1).encode(),
    b"\x04application/voucher-cms+json; a=b\ntext/html;q=0, */*;q=0.1",
    b"\x05HTTP/1.1 200 OK\r\nA: b\r\n\r\n",
    b"\x05HTTP/1.1 403 No\r\n\r\n",
    b"\x05" + DEVICE.public_bytes(Encoding.DER),
]


if __name__ == "__main__":
    from _harness import run

    run(target, SEEDS)
