"""The two forms of a console's record: asciinema v2 (``.cast``) and plain text (``.log``).

The cast has every byte, at its time since the file's beginning, by a clock that never steps. Its text must be
UTF-8; where the device said something else, an event "b" (which players ignore) holds in base64 the exact
bytes of the event after it, in which U+FFFD stands for what is wrong. Marks are events "m".

A line of the log is ``UTC SECONDS KIND TEXT``, where SECONDS are those of the cast, and KIND says what the
text is: ``|`` a line of the device, ``+`` more of its last line, ``*`` a mark, ``<`` what somebody typed.
So nothing that a device says looks like a mark. Colours are left out, and what shells say before and after
each command (bracketed paste, a CR at the beginning of a line); all else that cannot be seen is escaped.
"""

from __future__ import annotations

import base64
import json
import re
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from minerva.core.errors import DecodeError
from minerva.core.text import printable

WIDTH: Final = 80
HEIGHT: Final = 24
HOLD: Final = 1.0
"""For so many seconds the rest of a character or of a line's end is waited for."""
MAX_LINE: Final = 4096
"""Characters of a line in the log; what is longer goes on in a line of kind ``+``."""

_FOREVER = 1e12

_COLOUR = re.compile(r"\x1b\[(?:[0-9;:]*m|\?2004[hl])")
_UNFINISHED_COLOUR = re.compile(r"\x1b(\[([0-9;:]{0,30}|\?(2(0(04?)?)?)?))?\Z")
_LONGEST_UNFINISHED = 32  # characters of a colour, or CRs: a device that says more of them means no line end
_LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (\d{1,12}\.\d{3}) ([|+*<]) (.*)", re.DOTALL)


class RecordDecodeError(DecodeError):
    """A file is no record of a console."""


@dataclass(frozen=True, slots=True)
class Frame:
    """An event of a cast."""

    offset: float
    """Seconds since the file's beginning."""
    kind: str
    """``o`` for what the device said, ``i`` for what was typed, ``m`` for a mark."""
    data: bytes


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a log."""

    at: float
    """UTC, in seconds since 1970."""
    offset: float
    """Seconds since the beginning of the cast."""
    kind: str
    text: str


class Encoder:
    """Makes the bytes of both files, which collect in ``cast`` and ``log`` until somebody writes them.

    One encoder goes on over many files: :meth:`begin`, events, :meth:`end`, :meth:`begin` and so on. Times
    come as ``steady``, of a clock that never steps, and ``utc``, in seconds since 1970.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.cast = bytearray()
        self.log = bytearray()
        self._zero = 0.0  # what the steady clock said at offset 0
        self._last = 0.0
        self._second = -1
        self._second_text = ""
        self._broken = b""  # the beginning of a character
        self._unfinished = ""  # what may be the beginning of a line's end or a colour
        self._held_since = 0.0
        self._column: int | None = None  # of the line in the log that is not finished; None without one
        self._continued = False  # the device's line was interrupted
        self._typist: str | None = None
        self._typed: tuple[float, str, str] | None = None  # since, user, text

    def begin(self, steady: float, utc: float) -> None:
        """Begin a new file of each kind."""
        # The header knows only whole seconds: that is where the offsets count from.
        self._zero = steady - utc % 1
        self._last = 0.0
        self._typist = None
        header = {
            "version": 2,
            "width": WIDTH,
            "height": HEIGHT,
            "timestamp": int(utc),
            "title": self.title,
            "env": {"TERM": "vt220"},
        }
        self.cast += json.dumps(header).encode() + b"\n"

    def end(self, steady: float, utc: float, *, final: bool = False) -> None:
        """End both files; if this is not ``final``, what is unfinished goes on in the next."""
        self.settle(steady, utc, everything=final)
        self._break_line()

    def output(self, data: bytes, steady: float, utc: float) -> None:
        """Add what the device said."""
        self._held_since = steady
        data = self._broken + data
        whole = len(data) - _broken_tail(data)
        self._broken = data[whole:]
        if whole:
            self._add(data[:whole], steady, utc)

    def typed(self, user: str, data: bytes, steady: float, utc: float) -> None:
        """Add what somebody typed."""
        if user != self._typist:
            self._typist = user
            self._event("m", f"{printable(user)} types", steady)
        self._bytes_event("i", data, steady)
        text = data.decode(errors="backslashreplace")
        since, before, sofar = self._typed or (steady, user, "")
        if before != user:
            self._log_typed(steady, utc)
            since, sofar = steady, ""
        self._typed = (since, user, sofar + text)
        if "\r" in text or "\n" in text or len(sofar) > MAX_LINE:
            self._log_typed(steady, utc)

    def mark(self, text: str, steady: float, utc: float) -> None:
        """Add something that happened."""
        self._log_typed(steady, utc)
        text = printable(text)
        self._event("m", text, steady)
        self._log_line("*", text, steady, utc)

    def settle(self, steady: float, utc: float, *, everything: bool = False) -> None:
        """Wait no longer for the rest of what began a while ago, or of everything."""
        if self._typed is not None and (everything or steady - self._typed[0] >= HOLD):
            self._log_typed(steady, utc)
        if everything or steady - self._held_since >= HOLD:
            if self._broken:
                data, self._broken = self._broken, b""
                self._add(data, steady, utc)
            if self._unfinished:
                text, self._unfinished = self._unfinished, ""
                self._log_raw(text, steady, utc)

    # -- inside

    def _offset(self, steady: float) -> float:
        # Times in a cast never go back, whatever the order in which they come here.
        self._last = max(self._last, steady - self._zero)
        return self._last

    def _event(self, kind: str, text: str, steady: float) -> None:
        line = f"[{self._offset(steady):.6f}, {json.dumps(kind)}, {json.dumps(text, ensure_ascii=False)}]\n"
        self.cast += line.encode()

    def _bytes_event(self, kind: str, data: bytes, steady: float) -> str:
        """Add an event of bytes; return their text for the log."""
        try:
            text = data.decode()
        except UnicodeDecodeError:
            self._event("b", base64.b64encode(data).decode(), steady)
            self._event(kind, data.decode(errors="replace"), steady)
            return data.decode(errors="backslashreplace")
        self._event(kind, text, steady)
        return text

    def _add(self, data: bytes, steady: float, utc: float) -> None:
        text = self._unfinished + self._bytes_event("o", data, steady)
        whole = len(text) - _unfinished_tail(text)
        self._unfinished, text = text[whole:], text[:whole]
        if "\x1b" in text:
            text = _COLOUR.sub("", text)
        # Not by a pattern such as \r*\n, which needs the square of the time for what is only CRs.
        lines = text.split("\n")
        for line in lines[:-1]:
            # As many as are waited for, so that a log is the same however the output comes.
            line = line[:-_LONGEST_UNFINISHED] + line[-_LONGEST_UNFINISHED:].rstrip("\r")
            self._log_raw(line, steady, utc)
            self._finish_line(steady, utc)
        self._log_raw(lines[-1], steady, utc)

    def _log_raw(self, text: str, steady: float, utc: float) -> None:
        """Add a piece of the device's line."""
        if self._column is None and not self._continued:
            text = text.lstrip("\r")  # at the beginning of a line it does nothing
        self._log_text(text if text.isprintable() else printable(text), steady, utc)

    def _stamp(self, kind: str, steady: float, utc: float) -> str:
        second = int(utc)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{int(utc % 1 * 1000):03d}Z {self._offset(steady):.3f} {kind} "

    def _log_text(self, text: str, steady: float, utc: float) -> None:
        """Add a piece of the device's line, escaped already."""
        while text:
            if self._column is None:
                self.log += self._stamp("+" if self._continued else "|", steady, utc).encode()
                self._column, self._continued = 0, False
            piece = text[: MAX_LINE - self._column]
            self.log += piece.encode()
            self._column += len(piece)
            text = text[len(piece) :]
            if text:
                self._break_line()

    def _finish_line(self, steady: float, utc: float) -> None:
        if self._column is None:
            # An empty line, or the end of one that was interrupted.
            self.log += self._stamp("+" if self._continued else "|", steady, utc).encode()
        self.log += b"\n"
        self._column, self._continued = None, False

    def _break_line(self) -> None:
        if self._column is not None:
            self.log += b"\n"
            self._column, self._continued = None, True

    def _log_typed(self, steady: float, utc: float) -> None:
        if self._typed is not None:
            _, user, text = self._typed
            self._typed = None
            self._log_line("<", f"{user}: {text}", steady, utc)

    def _log_line(self, kind: str, text: str, steady: float, utc: float) -> None:
        self._break_line()
        self.log += f"{self._stamp(kind, steady, utc)}{printable(text)}\n".encode()


def _unfinished_tail(text: str) -> int:
    """Return how many characters at the end may be the beginning of a line's end or of a colour."""
    tail = text[-_LONGEST_UNFINISHED:]
    if tail.endswith("\r"):
        return len(tail) - len(tail.rstrip("\r"))
    found = _UNFINISHED_COLOUR.search(tail)
    return 0 if found is None else len(found[0])


def _broken_tail(data: bytes) -> int:
    """Return how many bytes at the end are the beginning of a character in UTF-8 that is not complete."""
    for length in range(1, min(3, len(data)) + 1):
        byte = data[-length]
        if byte & 0xC0 == 0x80:
            continue
        needed = 2 if 0xC2 <= byte < 0xE0 else 3 if 0xE0 <= byte < 0xF0 else 4 if 0xF0 <= byte < 0xF5 else 1
        return length if needed > length else 0
    return 0


def decode_header(line: bytes) -> int:
    """Return the time, in seconds since 1970, at which a cast begins. Raises RecordDecodeError."""
    try:
        header = json.loads(line)
        if header["version"] == 2 and type(header["timestamp"]) is int:
            return int(header["timestamp"])
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise RecordDecodeError("this is not the beginning of a cast")


def decode_frame(line: bytes, exact: bytes | None) -> Frame:
    """Return the event on a line of a cast; its bytes are ``exact`` if the event before was a "b" with those.

    Raises RecordDecodeError.
    """
    try:
        offset, kind, text = json.loads(line)
        # The comparison is false for NaN, too.
        if 0 <= offset < _FOREVER and isinstance(kind, str) and isinstance(text, str):
            if kind == "b":
                return Frame(float(offset), kind, base64.b64decode(text, validate=True))
            return Frame(float(offset), kind, text.encode() if exact is None else exact)
    except (ValueError, TypeError, OverflowError, RecursionError):
        pass
    raise RecordDecodeError("this is not an event of a cast")


def decode_log_line(line: str) -> LogLine:
    """Return what a line of a log says. Raises RecordDecodeError."""
    found = _LOG_LINE.fullmatch(line)
    if found is not None:
        try:
            at = datetime.fromisoformat(found[1]).timestamp()
        except ValueError as error:
            raise RecordDecodeError("a line of a log has no time") from error
        return LogLine(at, float(found[2]), found[3], found[4])
    raise RecordDecodeError("this is not a line of a console's log")
