"""What devices report."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from minerva.brski.registrar.authority import record_certificate
from minerva.brski.registrar.database import DeviceState, writing
from minerva.brski.registrar.errors import Refusal
from minerva.brski.registrar.telemetry import JSON, MAX_SIZE, REPORTS
from minerva.pki.keys import generate_key
from minerva.pki.node_name import AcpNodeName
from tests.brski.registrar.makers import HOUR, PEER, Bench, Pledge


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def pledge(bench: Bench) -> Pledge:
    """A device that has its voucher."""
    pledge = bench.maker.device("D-1")
    bench.asks(pledge)
    return pledge


def voucher_status(
    bench: Bench, pledge: Pledge, *, chain: Any = None, kind: str = JSON, **members: Any
) -> None:
    body = json.dumps({"version": 1, "status": True} | members).encode()
    chain = pledge.certificates if chain is None else chain
    asyncio.run(bench.telemetry.voucher_status(body, chain, content_type=kind, peer=PEER))


def enrolment_status(bench: Bench, chain: Any, **members: Any) -> None:
    body = json.dumps({"version": 1, "status": True} | members).encode()
    asyncio.run(bench.telemetry.enrolment_status(body, chain, content_type=JSON, peer=PEER))


def issued(bench: Bench, pledge: Pledge) -> x509.Certificate:
    """Give the device a certificate of the domain."""
    device = bench.device(pledge)
    assert device is not None
    from minerva.brski.registrar.authority import key_identifier

    certificate = bench.authority.issuer(key_identifier(bench.service.chain[0])).certify(
        generate_key("p256").public_key(),
        AcpNodeName("acp.example.com", bench.made.address.address),
        lifetime=HOUR,
        now=bench.now,
    )
    with writing(bench.engine) as connection:
        record_certificate(connection, certificate, device.id, bench.now)
    return certificate


def last(bench: Bench) -> tuple[str, dict[str, Any]]:
    return bench.events()[-1]


def test_a_voucher_that_is_accepted(bench: Bench, pledge: Pledge) -> None:
    """
    covers: R-60, P-50
    """
    voucher_status(bench, pledge)
    assert last(bench) == ("voucher status", {"status": True})
    device = bench.device(pledge)
    assert device is not None
    assert device.audit_ok is True


def test_a_voucher_that_is_not(bench: Bench, pledge: Pledge) -> None:
    """It gets no certificate with it, and may come again.

    covers: R-60, R-73
    """
    voucher_status(bench, pledge, status=False, reason="no\x1b[2J", **{"reason-context": {"a": "\n"}})
    _, detail = last(bench)
    assert detail == {"status": False, "reason": "no\\u001b[2J", "reason_context": '{"a": "\\n"}'}
    device = bench.device(pledge)
    assert device is not None
    assert (device.audit_ok, device.state) == (False, DeviceState.VOUCHERED)
    first = bench.masa.count("requestvoucher")
    assert bench.asks(pledge)  # asked anew, and not from what is kept
    assert bench.masa.count("requestvoucher") == first + 1


def test_a_later_version_calls_for_a_human(
    bench: Bench, pledge: Pledge, caplog: pytest.LogCaptureFixture
) -> None:
    """
    covers: R-60
    """
    voucher_status(bench, pledge, version=2, more=[1])
    assert last(bench)[1] == {"status": True, "version": 2, "unknown": '{"more": [1]}'}
    assert any(
        "version 2" in record.getMessage() for record in caplog.records if record.levelno == logging.ERROR
    )
    assert "more" in caplog.text


def test_enrolment_is_reported_with_the_new_certificate(bench: Bench, pledge: Pledge) -> None:
    """
    covers: R-12, R-63, P-51
    """
    certificate = issued(bench, pledge)
    enrolment_status(bench, (certificate, *bench.service.chain))
    assert last(bench) == ("enrolment status", {"status": True, "with_its_certificate": True})
    enrolment_status(bench, pledge.certificates, status=False, reason="clock")
    assert last(bench)[1] == {"status": False, "reason": "clock", "with_its_certificate": False}


def test_strangers_report_nothing(bench: Bench, pledge: Pledge) -> None:
    """
    covers: R-60, R-63, R-76
    """
    before = bench.counts()
    stranger = bench.maker.device("D-1")  # of the same maker, with another key
    for chain, status in ((stranger.certificates, 404), ((), 403), ((bench.service.certificate,), 404)):
        with pytest.raises(Refusal) as caught:
            voucher_status(bench, pledge, chain=chain)
        assert caught.value.status == status
        with pytest.raises(Refusal):
            enrolment_status(bench, chain)
    assert bench.counts() == before


def test_what_is_no_report(bench: Bench, pledge: Pledge) -> None:
    with pytest.raises(Refusal) as caught:
        voucher_status(bench, pledge, kind="text/plain")
    assert caught.value.status == 415
    for body in (b"", b"[]", b'{"version":1}', b'{"version":1,"version":1,"status":true}', b"\xff"):
        with pytest.raises(Refusal) as caught:
            asyncio.run(bench.telemetry.voucher_status(body, pledge.certificates, content_type=JSON))
        assert caught.value.status == 400
    with pytest.raises(Refusal) as caught:
        voucher_status(bench, pledge, reason="x" * MAX_SIZE)
    assert caught.value.status == 413


def test_a_device_that_talks_too_much_is_not_written_down_any_more(bench: Bench, pledge: Pledge) -> None:
    before = bench.counts()[2]
    for _ in range(REPORTS + 10):
        voucher_status(bench, pledge)
    assert bench.counts()[2] == before + REPORTS
    bench.now += HOUR
    voucher_status(bench, pledge)
    assert bench.counts()[2] == before + REPORTS + 1
