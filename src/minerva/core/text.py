"""Texts of strangers, made fit for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime

_SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str) -> str:
    """Return ``text`` with all that is not to be seen escaped as in JSON, so that it is harmless to show.

    That is what Unicode counts as "other" (controls, formats such as those for bidirectional text, code
    points without a character) or as a separator, but for the space.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else escape(character) for character in text)


def escape(character: str) -> str:
    """Return the escape of a character in JSON."""
    if (short := _SHORT_ESCAPES.get(character)) is not None:
        return short
    utf16 = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{utf16[index : index + 2].hex()}" for index in range(0, len(utf16), 2))


def shortened(text: str, limit: int) -> str:
    """Return ``text`` printable, and cut where it has more than ``limit`` characters."""
    shown = printable(text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def utc(moment: datetime | float, timespec: str = "seconds") -> str:
    """Return a time (in seconds since 1970, if it is a number) for people: ``2026-11-25T19:12:10Z``.

    ``timespec`` is that of :meth:`datetime.datetime.isoformat`.
    """
    if not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(moment, UTC)
    with suppress(OverflowError):  # of the first or last day, as no clock says it
        moment = moment.astimezone(UTC)
    text = moment.isoformat(timespec=timespec)
    return f"{text[:-6]}Z" if text.endswith("+00:00") else text


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return what to put behind a sentence about a wrong ``name``: those of ``names`` that are like it."""
    from difflib import get_close_matches  # only who makes a mistake needs it

    known = {each.lower(): each for each in names}
    near = [known[each] for each in get_close_matches(name.lower(), known, 3)]
    return f"; did you mean {printable(' or '.join(near))}?" if near else ""
