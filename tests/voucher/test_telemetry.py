"""What pledges report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.voucher.errors import StatusDecodeError
from minerva.voucher.telemetry import MAX_SIZE, Status

from ..core.test_strict_json import VALUES

UNKNOWN = st.dictionaries(
    st.text().filter(lambda name: name not in ("version", "status", "reason", "reason-context")),
    VALUES,
    max_size=3,
)


@given(
    st.builds(
        Status,
        status=st.booleans(),
        reason=st.none() | st.text(),
        reason_context=VALUES,
        version=st.integers(0, 999_999_999),
        unknown=UNKNOWN,
    )
)
def test_in_and_out(status: Status) -> None:
    """covers: P-50, P-51"""
    data = status.encode()
    if len(data) <= MAX_SIZE:
        assert Status.decode(data) == status


def test_form() -> None:
    """covers: P-50, P-51"""
    assert json.loads(Status(True).encode()) == {"version": 1, "status": True}
    failed = Status(False, "the voucher was not accepted", {"attempt": 3})
    assert failed.encode() == (
        b'{"version":1,"status":false,"reason":"the voucher was not accepted","reason-context":{"attempt":3}}'
    )


@pytest.mark.parametrize(("name", "status"), [("fig16-voucher_status", False), ("fig20-enrollstatus", True)])
def test_published(fixtures: Path, name: str, status: bool) -> None:
    """covers: P-50, P-51"""
    found = Status.decode((fixtures / "rfc8995" / f"{name}.json").read_bytes())
    assert found.status is status
    assert found.version == 1
    assert found.reason is not None
    assert found.reason_context == {"additional": "JSON"}


def test_later_versions() -> None:
    found = Status.decode(b'{"version":2,"status":true,"colour":"red"}')
    assert found == Status(True, version=2, unknown={"colour": "red"})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"true",
        b'{"version":1}',
        b'{"status":true}',
        b'{"Version":1,"Status":true}',
        b'{"version":1,"status":1}',
        b'{"version":-1,"status":true}',
        b'{"version":1.5,"status":true}',
        b'{"version":1,"status":null}',
        b'{"version":1,"status":true,"reason":5}',
        b'{"version":1,"status":true,"status":false}',
        b'{"version":1,"status":true}' + b" " * MAX_SIZE,
    ],
)
def test_not_statuses(data: bytes) -> None:
    with pytest.raises(StatusDecodeError):
        Status.decode(data)
