"""The log: lines that nobody can forge, and no more of them than a person would read."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from minerva.connect import log


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_one_place_cannot_fill_the_log(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("test")
    for number in range(500):
        root.warning("no GRASP with %s", number)
    root.warning("something else")
    lines = capsys.readouterr().err.splitlines()
    assert log.REPEAT_BURST <= len(lines) - 1 <= log.REPEAT_BURST + 3
    assert lines[-1].endswith("warning: something else")


def test_what_was_left_out_is_said(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    log.configure("test")

    def say(text: str) -> None:
        root.warning("%s", text)

    for _ in range(100):
        say("again")
    now[0] += 5
    say("once more")
    *_, last = capsys.readouterr().err.splitlines()
    assert last.endswith(f"once more ({100 - log.REPEAT_BURST} lines like this were left out)")


def test_names_of_others_cannot_forge_lines(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("test")
    root.warning("peer %s", "evil\n2026-01-01T00:00:00.000Z supervisor info: all is well\x1b[2J\u2028\u202e")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert "\\n2026" in line


def test_a_clock_that_is_set_back_does_not_silence_the_log(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.configure("test")
    for clock in (2_000_000_000.0, 1_000_000_000.0):
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        for _ in range(5):
            root.warning("still here")
    assert len(capsys.readouterr().err.splitlines()) == 10
