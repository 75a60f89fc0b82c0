"""Texts of strangers, made fit for a terminal."""

from __future__ import annotations

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
