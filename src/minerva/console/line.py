"""A line that somebody types at a terminal, for prompts and menus."""

from __future__ import annotations

from typing import Final

_ENTER: Final = (0x0D, 0x0A)
_ERASE: Final = (0x08, 0x7F)
_ERASE_LINE: Final = 0x15
_GIVE_UP: Final = (0x03, 0x04)


class LineEditor:
    """Takes bytes until there is a line; erasing works, other controls do not."""

    __slots__ = ("_limit", "_text", "done")

    def __init__(self, limit: int) -> None:
        self.done = False
        """Whether there is a line, or the user gave up."""
        self._limit = limit
        self._text = bytearray()

    def receive(self, byte: int) -> tuple[str, str | None]:
        """Take a byte; return what to echo and, when done, the line, or None if the user gave up."""
        if byte in _ENTER:
            self.done = True
            return "\n", self._text.decode("utf-8", "replace").strip()
        if byte in _GIVE_UP:
            self.done = True
            return "\n", None
        if byte in _ERASE:
            return ("\b \b", None) if self._erase() else ("", None)
        if byte == _ERASE_LINE:
            count = 0
            while self._erase():
                count += 1
            return "\b \b" * count, None
        if byte < 0x20 or len(self._text) >= self._limit:
            return "", None
        before = self._text.decode("utf-8", "ignore")
        self._text.append(byte)
        after = self._text.decode("utf-8", "ignore")
        echo = after[len(before) :]
        return (echo if echo.isprintable() else "?"), None

    def _erase(self) -> bool:
        """Remove the last character; return whether there was one."""
        if not self._text:
            return False
        while self._text and self._text[-1] & 0xC0 == 0x80:
            self._text.pop()
        if self._text:
            self._text.pop()
        return True
