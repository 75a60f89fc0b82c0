"""What a stranger says never reaches the terminal as anything but letters."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.core.text import did_you_mean, printable, shortened, utc


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Zürich 東京", "Zürich 東京"),
        ("\x1b[2Jgone", "\\u001b[2Jgone"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("abc\u202ecba", "abc\\u202ecba"),
        ("\u200bnothing", "\\u200bnothing"),
        ("\ud800", "\\ud800"),
    ],
)
def test_examples(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters()), st.integers(1, 50))
def test_always_printable_and_bounded(text: str, limit: int) -> None:
    assert shortened(text, limit).isprintable()
    assert len(shortened(text, limit)) <= limit


def test_times_are_utc() -> None:
    assert utc(0) == "1970-01-01T00:00:00Z"
    assert utc(1.0625, "milliseconds") == "1970-01-01T00:00:01.062Z"
    assert utc(datetime(2026, 11, 25, 21, 0, tzinfo=timezone(timedelta(hours=2)))) == "2026-11-25T19:00:00Z"
    last = datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))
    assert utc(last) == "9999-12-31T23:59:59-01:00"


def test_names_that_are_like_a_wrong_one() -> None:
    assert did_you_mean("rakc1", ["rack1", "Rack2", "web"]) == "; did you mean rack1 or Rack2?"
    assert did_you_mean("WEB", ["rack1", "web"]) == "; did you mean web?"
    assert did_you_mean("x", ["rack1"]) == did_you_mean("x", []) == ""
    assert "\x1b" not in did_you_mean("web", ["web\x1b"])
