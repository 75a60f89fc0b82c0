"""What a stranger says never reaches the terminal as anything but letters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.core.text import printable, shortened


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
