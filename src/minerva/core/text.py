"""Texts of strangers, made fit for a terminal and a log."""

from __future__ import annotations


def visible(text: str, limit: int = 200) -> str:
    """Return at most ``limit`` characters of ``text``, with all escaped that a terminal would obey or hide.

    That is all that Unicode does not call printable: control characters, and the formatting characters that
    turn the direction of writing or have no width.
    """
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text[:limit]
    )
    return shown if len(shown) <= limit and len(text) <= limit else shown[: limit - 1] + "…"
