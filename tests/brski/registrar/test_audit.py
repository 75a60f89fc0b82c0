"""What the history of a device has to be."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import pytest

from minerva.brski.registrar.audit import judge
from minerva.brski.registrar.config import Audit
from minerva.voucher.audit import AuditEvent, AuditLog
from minerva.voucher.model import Assertion

OURS, THEIRS, OTHERS = b"o" * 20, b"t" * 20, b"x" * 32
DATE = datetime(2026, 11, 25, tzinfo=UTC)


def event(domain: bytes, nonce: str | None = "n0nce", when: datetime = DATE) -> AuditEvent:
    return AuditEvent(when, domain, nonce, Assertion.PROXIMITY)


def log(*events: AuditEvent, arbitrary: int = 0) -> bytes:
    return AuditLog(events, arbitrary=arbitrary).encode()


def test_a_new_device_has_only_our_own_voucher() -> None:
    """
    covers: R-62
    """
    assert judge(log(event(OURS)), [OURS], Audit()).acceptable
    assert judge(log(event(OURS)), [OURS], Audit()).remarks == ()


@pytest.mark.parametrize(
    ("data", "rules", "objection", "remark"),
    [
        (log(event(OURS), event(THEIRS)), Audit(), None, "was in other domains"),
        (log(event(OURS), event(THEIRS)), Audit(foreign="refuse"), "was in other domains", None),
        (log(event(OURS, None)), Audit(), None, "without a nonce"),
        (log(event(OURS, None)), Audit(nonceless="refuse"), "without a nonce", None),
        (log(event(OURS), event(THEIRS, None)), Audit(), "without a nonce", "was in other domains"),
        (log(event(OURS), event(THEIRS, None)), Audit(nonceless="accept"), None, "without a nonce"),
        (log(event(OURS), arbitrary=2), Audit(), "2 entries of the audit log", None),
        (log(event(OURS), arbitrary=2), Audit(truncated="accept"), None, "2 entries of the audit log"),
        (None, Audit(), "no audit log", None),
        (None, Audit(unknown="accept"), None, "no audit log"),
        (b"{}", Audit(), "cannot be read", None),
        (b"\xff", Audit(unknown="accept"), None, "cannot be read"),
    ],
)
def test_the_rules(data: bytes | None, rules: Audit, objection: str | None, remark: str | None) -> None:
    """
    covers: R-62
    """
    verdict = judge(data, [OURS], rules)
    assert verdict.acceptable is (objection is None)
    assert objection is None or objection in verdict.objections[0]
    assert remark is None or remark in " ".join(verdict.remarks)


def test_domains_that_the_operator_lists_are_ours() -> None:
    """
    covers: R-62
    """
    rules = Audit(foreign="refuse", domains=(base64.b64encode(THEIRS).decode(),))
    assert judge(log(event(OURS), event(THEIRS, None)), [OURS], rules).acceptable
    assert not judge(log(event(OURS), event(OTHERS)), [OURS], rules).acceptable


def test_numbers_as_texts_and_a_missing_truncation_and_a_later_version() -> None:
    """
    covers: R-62
    """
    members = json.loads(log(event(OURS)))
    del members["truncation"]
    members["version"] = "2"
    verdict = judge(json.dumps(members).encode(), [OURS], Audit())
    assert verdict.acceptable
    assert "of version 2" in verdict.remarks[0]
    members["truncation"] = {"arbitrary": "1", "nonced duplicates": "3"}
    assert not judge(json.dumps(members).encode(), [OURS], Audit()).acceptable


def test_what_a_stranger_wrote_is_harmless_and_short() -> None:
    events = [AuditEvent(DATE, bytes([number]) * 40_000, "n", "\x1b[2Jnew\n") for number in range(5)]
    verdict = judge(AuditLog(tuple(events[:1])).encode(), [], Audit(foreign="refuse"))
    (said,) = verdict.objections
    assert said.isprintable()
    assert len(said) < 300
    many = AuditLog(tuple(AuditEvent(DATE, bytes([n]), "n", "logged") for n in range(9))).encode()
    assert "and 6 more" in judge(many, [], Audit(foreign="refuse")).objections[0]
