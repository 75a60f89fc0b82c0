"""Telnet (RFC 854, RFC 855, with options as in RFC 1143), for both ends; no input or output.

Bytes that arrive go into :meth:`Telnet.receive`, which returns data, commands and subnegotiations in order;
what is to be sent comes out of :meth:`Telnet.to_send`. Options are agreed to if both sides want them, else
refused, and nobody can make the two ends answer each other for ever.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby
from typing import Final, TypeAlias

SE: Final = 240
NOP: Final = 241
DM: Final = 242
BRK: Final = 243
IP: Final = 244
AO: Final = 245
AYT: Final = 246
SB: Final = 250
WILL: Final = 251
WONT: Final = 252
DO: Final = 253
DONT: Final = 254
IAC: Final = 255

BINARY: Final = 0
ECHO: Final = 1
SUPPRESS_GO_AHEAD: Final = 3
COM_PORT: Final = 44

MAX_SUBNEGOTIATION: Final = 1024
"""A subnegotiation that is longer is ignored."""

_IAC_BYTE: Final = bytes([IAC])
_ESCAPED: Final = bytes([IAC, IAC])


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes for whoever sits at the line."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Command:
    """A command of one byte, such as BRK."""

    code: int


@dataclass(frozen=True, slots=True)
class Subnegotiation:
    """What the peer says about an option that is on at one side at least."""

    option: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Option:
    """An option is on or off now, at our side or the peer's; or the peer refuses what we asked for."""

    option: int
    ours: bool
    on: bool


TelnetEvent: TypeAlias = Data | Command | Subnegotiation | Option


class _Side(enum.Enum):
    """How far an option is, in the words of RFC 1143 section 7. We never turn one off by ourselves, so there
    is no WANTNO and no queue."""

    NO = enum.auto()
    YES = enum.auto()
    WANT_YES = enum.auto()


class _Place(enum.Enum):
    """Where in the stream we are."""

    DATA = enum.auto()
    COMMAND = enum.auto()
    """After IAC."""
    OPTION = enum.auto()
    """After IAC and WILL, WONT, DO or DONT."""
    INSIDE = enum.auto()
    """In a subnegotiation."""
    INSIDE_COMMAND = enum.auto()
    """In a subnegotiation, after IAC."""


class Telnet:
    """One end of a connection.

    ``ours`` are the options that we turn on at our side if the peer asks, ``theirs`` those that the peer may
    turn on at its side.
    """

    def __init__(self, *, ours: Collection[int] = (), theirs: Collection[int] = ()) -> None:
        self._ours_allowed = frozenset(ours)
        self._theirs_allowed = frozenset(theirs)
        self._ours: dict[int, _Side] = {}
        self._theirs: dict[int, _Side] = {}
        self._place = _Place.DATA
        self._verb = 0
        self._inside = bytearray()
        self._too_long = False
        self._after_cr = False
        self._out = bytearray()

    def is_on(self, option: int, *, ours: bool) -> bool:
        """Return whether an option is on at our side, or the peer's."""
        return (self._ours if ours else self._theirs).get(option) is _Side.YES

    def to_send(self) -> bytes:
        """Return, and forget, what is to be sent."""
        out, self._out = bytes(self._out), bytearray()
        return out

    # -- what we say

    def will(self, option: int) -> None:
        """Offer an option at our side."""
        self._ask(self._ours, option, WILL)

    def do(self, option: int) -> None:
        """Ask for an option at the peer's side."""
        self._ask(self._theirs, option, DO)

    def send(self, data: bytes) -> None:
        """Send data: IAC twice and, unless our side is binary, CR with NUL where no LF follows."""
        data = data.replace(_IAC_BYTE, _ESCAPED)
        if self.is_on(BINARY, ours=True):
            self._out += data
            return
        # A CR at the end waits for no LF: NUL goes along at once, and a LF that follows stands alone.
        parts = data.split(b"\r")
        for index, part in enumerate(parts):
            if index:
                self._out += b"\r" if part.startswith(b"\n") else b"\r\0"
            self._out += part

    def command(self, code: int) -> None:
        """Send a command of one byte."""
        self._out += bytes([IAC, code])

    def subnegotiate(self, option: int, data: bytes) -> None:
        """Say something about an option."""
        self._out += bytes([IAC, SB, option]) + data.replace(_IAC_BYTE, _ESCAPED) + bytes([IAC, SE])

    # -- what the peer says

    def receive(self, data: bytes) -> list[TelnetEvent]:
        """Take bytes from the peer. Never raises, whatever they are."""
        events: list[TelnetEvent] = []
        position = 0
        while position < len(data):
            if self._place is _Place.DATA:
                end = _end_of_data(data, position)
                self._take_data(data[position:end].replace(_ESCAPED, _IAC_BYTE), events)
                position = end + 1
                if end < len(data):
                    self._place = _Place.COMMAND
            elif self._place is _Place.INSIDE:
                end = data.find(_IAC_BYTE, position)
                end = len(data) if end < 0 else end
                self._keep(data[position:end])
                position = end + 1
                if end < len(data):
                    self._place = _Place.INSIDE_COMMAND
            else:
                self._take_byte(data[position], events)
                position += 1
        return _joined(events)

    def _take_byte(self, byte: int, events: list[TelnetEvent]) -> None:
        place, self._place = self._place, _Place.DATA
        if place is _Place.OPTION:
            self._negotiate(self._verb, byte, events)
        elif place is _Place.INSIDE_COMMAND:
            if byte == IAC:
                self._keep(_IAC_BYTE)
                self._place = _Place.INSIDE
            else:
                self._end_inside(events)
                if byte != SE:
                    # The end was forgotten: it is a command.
                    self._take_command(byte, events)
        else:
            self._take_command(byte, events)

    def _take_command(self, byte: int, events: list[TelnetEvent]) -> None:
        if byte == IAC:
            self._take_data(_IAC_BYTE, events)
        elif byte in (WILL, WONT, DO, DONT):
            self._verb, self._place = byte, _Place.OPTION
        elif byte == SB:
            self._inside.clear()
            self._too_long, self._place = False, _Place.INSIDE
        elif byte != NOP:
            events.append(Command(byte))

    def _take_data(self, data: bytes, events: list[TelnetEvent]) -> None:
        if not data:
            return
        if self.is_on(BINARY, ours=False):
            self._after_cr = False
        else:
            if self._after_cr and data[0] == 0:
                data = data[1:]
            self._after_cr = data.endswith(b"\r") if data else False
            data = data.replace(b"\r\0", b"\r")
        if data:
            events.append(Data(data))

    def _keep(self, data: bytes) -> None:
        if len(self._inside) + len(data) > MAX_SUBNEGOTIATION:
            self._too_long = True
            self._inside.clear()
        if not self._too_long:
            self._inside += data

    def _end_inside(self, events: list[TelnetEvent]) -> None:
        if self._inside:
            option = self._inside[0]
            if self.is_on(option, ours=True) or self.is_on(option, ours=False):
                events.append(Subnegotiation(option, bytes(self._inside[1:])))
        self._inside.clear()

    # -- options

    def _ask(self, side: dict[int, _Side], option: int, verb: int) -> None:
        if side.get(option, _Side.NO) is _Side.NO:
            side[option] = _Side.WANT_YES
            self._out += bytes([IAC, verb, option])

    def _negotiate(self, verb: int, option: int, events: list[TelnetEvent]) -> None:
        ours = verb in (DO, DONT)
        side, allowed = (self._ours, self._ours_allowed) if ours else (self._theirs, self._theirs_allowed)
        yes, no = (WILL, WONT) if ours else (DO, DONT)
        state = side.get(option, _Side.NO)
        if verb in (WILL, DO):
            if state is _Side.NO and option not in allowed:
                self._out += bytes([IAC, no, option])
            elif state is not _Side.YES:
                if state is _Side.NO:
                    self._out += bytes([IAC, yes, option])
                side[option] = _Side.YES
                events.append(Option(option, ours, True))
        elif state is not _Side.NO:
            if state is _Side.YES:
                self._out += bytes([IAC, no, option])
            side[option] = _Side.NO
            events.append(Option(option, ours, False))


def _end_of_data(data: bytes, start: int) -> int:
    """Return where there is the first IAC that no other one follows."""
    while (end := data.find(_IAC_BYTE, start)) >= 0 and data[end + 1 : end + 2] == _IAC_BYTE:
        start = end + 2
    return len(data) if end < 0 else end


def _joined(events: list[TelnetEvent]) -> list[TelnetEvent]:
    """Return the events with all data in one that follow each other."""
    found: list[TelnetEvent] = []
    for same, group in groupby(events, key=type):
        if same is Data:
            found.append(Data(b"".join(event.data for event in group if isinstance(event, Data))))
        else:
            found += group
    return found
