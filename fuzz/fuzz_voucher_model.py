"""Fuzzes the JSON of vouchers, requests, audit logs and reports: what decodes survives its own encoding."""

from __future__ import annotations

from datetime import UTC, datetime

from minerva.voucher.audit import AuditEvent, AuditLog
from minerva.voucher.errors import (
    AuditLogDecodeError,
    StatusDecodeError,
    VoucherDecodeError,
    VoucherError,
)
from minerva.voucher.model import Assertion, Voucher, VoucherRequest
from minerva.voucher.telemetry import Status

WHEN = datetime(2026, 6, 1, 12, 0, 0, 250_000, tzinfo=UTC)
_EVENTS = (
    AuditEvent(WHEN, bytes(20), "nonce", Assertion.PROXIMITY, 3),
    AuditEvent(WHEN, bytes(32), None, Assertion.LOGGED),
)
SEEDS: list[bytes] = [
    Voucher(
        assertion=Assertion.LOGGED,
        created_on=WHEN,
        serial_number="FD-0017",
        expires_on=WHEN,
        last_renewal_date=WHEN,
        domain_cert_revocation_checks=False,
        idevid_issuer=b"\x04\x02\x30\x00",
        pinned_domain_cert=bytes(40),
    ).encode(),
    VoucherRequest(
        assertion=Assertion.PROXIMITY,
        created_on=WHEN,
        serial_number="FD-0017",
        nonce="62a2e7693d82fcda2624de58fb6722e5",
        proximity_registrar_cert=bytes(40),
        prior_signed_voucher_request=bytes(range(250)),
    ).encode(),
    b'{"ietf-voucher:voucher":{"serial-number":"1","created-on":"2021-04-13T17:43:23.747-04:00",'
    b'"domain-cert-revocation-checks":"true","idevid-issuer":"-_8","nonce":null,"x":[{"y":1e5}]}}',
    AuditLog(_EVENTS, 1, 2, 3).encode(),
    b'{"version":"1","events":[{"date":"2016-12-31T23:59:60Z","domainID":"","assertion":"sworn","truncated":"7"}]}',
    Status(True).encode(),
    Status(False, "reason", {"a": [1, None]}, unknown={"b": "\U0001f600"}).encode(),
    b'{"version":2,"status":"false","reason":"\\ud83d\\ude00"}',
    b"[" * 500,
]


def target(data: bytes) -> None:
    """Decode ``data`` as each of them."""
    for kind in (Voucher, VoucherRequest):
        try:
            found = kind.decode(data)
        except VoucherDecodeError:
            continue
        try:
            encoded = found.encode()
        except VoucherError:
            # Not one that is ever made.
            continue
        assert kind.decode(encoded) == found
    try:
        log = AuditLog.decode(data)
    except AuditLogDecodeError:
        pass
    else:
        again = AuditLog.decode(log.encode())
        assert [(event.date, event.domain_id, event.nonce, event.assertion) for event in again.events] == [
            (event.date, event.domain_id, event.nonce, event.assertion) for event in log.events
        ]
    try:
        status = Status.decode(data)
    except StatusDecodeError:
        return
    again_encoded = status.encode()
    assert Status.decode(again_encoded).encode() == again_encoded


if __name__ == "__main__":
    from _harness import run

    run(target, SEEDS)
