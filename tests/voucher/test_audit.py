"""Audit logs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.voucher.audit import MAX_SIZE, MAX_TRUNCATION_COUNT, AuditEvent, AuditLog
from minerva.voucher.errors import AuditLogDecodeError
from minerva.voucher.model import Assertion

from .maker import NOW
from .test_model import DATES, TEXTS

COUNTERS = st.integers(0, MAX_TRUNCATION_COUNT)
LOGS = st.builds(
    AuditLog,
    events=st.lists(
        st.builds(
            AuditEvent,
            date=DATES,
            domain_id=st.binary(max_size=40),
            nonce=st.none() | TEXTS,
            assertion=st.sampled_from(Assertion) | st.just("sworn"),
            truncated=COUNTERS,
        ),
        max_size=4,
    ).map(tuple),
    nonced_duplicates=COUNTERS,
    nonceless_duplicates=COUNTERS,
    arbitrary=COUNTERS,
    version=st.integers(1, 3),
)
EVENT: dict[str, Any] = {
    "date": "2026-06-01T12:00:00Z",
    "domainID": "AQI=",
    "nonce": None,
    "assertion": "logged",
}


def log(event: Any = EVENT, **members: Any) -> AuditLog:
    return AuditLog.decode(json.dumps({"version": 1, "events": [event], **members}).encode())


@given(LOGS)
def test_in_and_out(one: AuditLog) -> None:
    """covers: M-16"""
    assert AuditLog.decode(one.encode()) == one


def test_form() -> None:
    """Numbers are numbers, a nonce that is not there is null, counting ends somewhere.

    covers: M-16
    """
    events = (
        AuditEvent(NOW, b"\x01\x02", "n", Assertion.PROXIMITY, 5000),
        AuditEvent(NOW, b"\x01\x02", None, Assertion.LOGGED),
    )
    assert json.loads(AuditLog(events, nonced_duplicates=5000, arbitrary=3).encode()) == {
        "version": 1,
        "events": [
            {
                "date": "2026-06-01T12:00:00Z",
                "domainID": "AQI=",
                "nonce": "n",
                "assertion": "proximity",
                "truncated": 1024,
            },
            {"date": "2026-06-01T12:00:00Z", "domainID": "AQI=", "nonce": None, "assertion": "logged"},
        ],
        "truncation": {"nonced duplicates": 1024, "nonceless duplicates": 0, "arbitrary": 3},
    }


def test_published(fixtures: Path) -> None:
    """Its counters are texts.

    covers: M-16
    """
    found = AuditLog.decode((fixtures / "rfc8995" / "fig18-auditlog.json").read_bytes())
    assert (found.version, found.nonced_duplicates, found.nonceless_duplicates, found.arbitrary) == (
        1,
        0,
        1,
        2,
    )
    first, second = found.events
    assert first.date == datetime(2019, 5, 15, 21, 25, 55, 644_000, UTC)
    assert first.domain_id.hex() == "05db8985d1cfa5f8502f2a689dfe3c2735d2199f"
    assert (first.nonce, second.nonce) == ("VOUFT-WwrEv0NuAQEHoV7Q", "f4G6Vi1t8nKo/FieCVgpBg==")
    assert first.assertion is Assertion.PROXIMITY


def test_what_others_leave_out_or_add() -> None:
    assert log().events[0] == AuditEvent(NOW, b"\x01\x02", None, Assertion.LOGGED)
    without = {name: value for name, value in EVENT.items() if name != "nonce"}
    assert log(without).events[0].nonce is None
    assert log(truncation=None).arbitrary == 0
    assert log(truncation={"arbitrary": "7", "other": "x"}).arbitrary == 7
    assert log({**EVENT, "weather": "fair"}, version=2, chain=["block"]).version == 2
    assert log({**EVENT, "assertion": "sworn"}).events[0].assertion == "sworn"
    assert AuditLog.decode(b'{"version":"1","events":[]}').events == ()


@pytest.mark.parametrize(
    "change",
    [
        {"date": None},
        {"date": "yesterday"},
        {"domainID": "?"},
        {"domainID": 5},
        {"nonce": 5},
        {"nonce": ""},
        {"assertion": None},
        {"assertion": 2},
        {"truncated": -1},
        {"truncated": True},
        {"truncated": 1.0},
        {"truncated": "-1"},
        {"truncated": "1" * 10},
        {"truncated": 10**9},
    ],
)
def test_bad_events(change: dict[str, Any]) -> None:
    with pytest.raises(AuditLogDecodeError):
        log({**EVENT, **change})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"version":1}',
        b'{"events":[]}',
        b'{"version":1,"events":{}}',
        b'{"version":1,"events":[1]}',
        b'{"version":1,"events":[{}]}',
        b'{"version":1,"events":[],"truncation":[1]}',
        b'{"version":1,"events":[],"truncation":{"arbitrary":"many"}}',
        b'{"version":1,"events":[]}' + b" " * MAX_SIZE,
    ],
)
def test_not_logs(data: bytes) -> None:
    with pytest.raises(AuditLogDecodeError):
        AuditLog.decode(data)
