"""What is written of refusals, and how much of it at most."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path

import pytest

from minerva.brski.registrar import journal as module
from minerva.brski.registrar.database import record_event, writing
from minerva.brski.registrar.errors import Refusal
from minerva.brski.registrar.journal import BURST, forget_strangers
from tests.brski.registrar.makers import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_refusal_is_written_once_a_minute_with_how_often_it_was(bench: Bench) -> None:
    """
    covers: R-22
    """
    refusal = Refusal(403, "no", detail="by whom")
    for _ in range(7):
        bench.journal.refused(refusal, "requestvoucher", "fd00::1", bench.now)
    detail = {"operation": "requestvoucher", "status": 403, "reason": "no", "detail": "by whom"}
    assert bench.events() == [("refused", detail)]
    bench.journal.refused(refusal, "requestvoucher", "fd00::1", bench.now + timedelta(minutes=2))
    assert bench.events()[1:] == [("refused", detail | {"repeated": 6})]
    bench.journal.refused(refusal, "requestvoucher", "fd00::2", bench.now)
    assert len(bench.events()) == 3


def test_who_waits_is_not_refused(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    refusal = Refusal(202, "wait", retry_after=1)
    for minutes in (0, 1, 59, 61):
        later = bench.now + timedelta(minutes=minutes)
        bench.journal.refused(refusal, "requestvoucher", "fd00::1", later)
        bench.journal.refused(refusal, "requestvoucher", "fd00::2", later)
    assert bench.events() == []
    assert caplog.text.count("202, wait") == 2  # once an hour: it asks every few seconds
    for number in range(1_100):
        refusal = Refusal(202, "wait", retry_after=1, device_id=number)
        bench.journal.refused(refusal, "requestvoucher", "fd00::1", bench.now)
    assert caplog.text.count("202, wait") == 1_102


def test_strangers_cannot_fill_the_database(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    covers: R-22
    """
    for number in range(5 * BURST):
        bench.journal.refused(Refusal(403, f"no {number}"), "requestvoucher", f"fd00::{number:x}", bench.now)
    assert len(bench.events()) == BURST
    monkeypatch.setattr(module, "_MAX_KINDS", 10)
    later = bench.now + timedelta(hours=1)
    for number in range(50):
        bench.journal.refused(Refusal(403, f"yes {number}"), "requestvoucher", None, later)
    assert len(bench.journal._kinds) == 10


def test_the_oldest_go(bench: Bench) -> None:
    with writing(bench.engine) as connection:
        for number in range(30):
            record_event(connection, "refused", when=bench.now, detail={"n": number})
        record_event(connection, "refused", when=bench.now, device_id=1, detail={"n": "of a device"})
        record_event(connection, "other", when=bench.now)
        forget_strangers(connection, keep=10)
    kept = [detail.get("n") for _, detail in bench.events()]
    assert kept == [*range(20, 30), "of a device", None]


def test_a_database_that_does_not_answer_is_said_and_no_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from minerva.brski.database import DatabaseError

    def fail(_: object) -> None:
        raise DatabaseError("the disk is full")

    monkeypatch.setattr(module, "writing", fail)
    bench.journal.refused(Refusal(403, "no"), "requestvoucher", None, bench.now)
    assert "the disk is full" in caplog.text
