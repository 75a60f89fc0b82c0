"""The telnet option COM-PORT (RFC 2217): a serial line far away; no input or output.

A message is what is between ``IAC SB COM-PORT`` and ``IAC SE``: one byte that says what, and a value. What
the server says has 100 added to it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from minerva.console.backends.base import Flow, LineSettings
from minerva.core.errors import DecodeError

ANSWER: Final = 100
"""What is added to what the server says."""
MAX_SPEED: Final = 2**32 - 1


class Rfc2217Error(DecodeError):
    """Bytes that are no message of RFC 2217."""


class What(enum.IntEnum):
    """What a message is about (RFC 2217 section 3)."""

    SIGNATURE = 0
    SET_BAUDRATE = 1
    SET_DATASIZE = 2
    SET_PARITY = 3
    SET_STOPSIZE = 4
    SET_CONTROL = 5
    NOTIFY_LINESTATE = 6
    NOTIFY_MODEMSTATE = 7
    FLOWCONTROL_SUSPEND = 8
    FLOWCONTROL_RESUME = 9
    SET_LINESTATE_MASK = 10
    SET_MODEMSTATE_MASK = 11
    PURGE_DATA = 12


class Control(enum.IntEnum):
    """Values of SET-CONTROL; those that end in ASK want to know and change nothing."""

    FLOW_ASK = 0
    FLOW_NONE = 1
    FLOW_XONXOFF = 2
    FLOW_HARDWARE = 3
    BREAK_ASK = 4
    BREAK_ON = 5
    BREAK_OFF = 6
    DTR_ASK = 7
    DTR_ON = 8
    DTR_OFF = 9
    RTS_ASK = 10
    RTS_ON = 11
    RTS_OFF = 12
    FLOW_IN_ASK = 13
    FLOW_IN_NONE = 14
    FLOW_IN_XONXOFF = 15
    FLOW_IN_HARDWARE = 16
    FLOW_DCD = 17
    FLOW_IN_DTR = 18
    FLOW_DSR = 19


PARITIES: Final = "NOEMS"
"""In the order of the values of SET-PARITY, which begin with 1."""
STOP_BITS: Final[tuple[float, ...]] = (1, 2, 1.5)
"""In the order of the values of SET-STOPSIZE, which begin with 1."""
FLOWS: Final = {
    Control.FLOW_NONE: Flow.NONE,
    Control.FLOW_XONXOFF: Flow.XONXOFF,
    Control.FLOW_HARDWARE: Flow.RTSCTS,
    Control.FLOW_DSR: Flow.DSRDTR,
}
CONTROL_OF: Final = {flow: control for control, flow in FLOWS.items()}

_SIZES: Final = {
    What.SET_BAUDRATE: 4,
    What.FLOWCONTROL_SUSPEND: 0,
    What.FLOWCONTROL_RESUME: 0,
}


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``value`` is a number, 0 where there is none; the text of a signature is in ``text``."""

    what: What
    value: int = 0
    text: bytes = b""
    answer: bool = False
    """Whether the server says it."""

    def encode(self) -> bytes:
        """Return the bytes of the message."""
        first = bytes([self.what + (ANSWER if self.answer else 0)])
        if self.what is What.SIGNATURE:
            return first + self.text
        return first + self.value.to_bytes(_SIZES.get(self.what, 1))

    @classmethod
    def decode(cls, data: bytes) -> Message:
        """Return the message in ``data``. Raises Rfc2217Error."""
        if not data:
            raise Rfc2217Error("a message of RFC 2217 is empty")
        answer = data[0] >= ANSWER
        try:
            what = What(data[0] - (ANSWER if answer else 0))
        except ValueError:
            raise Rfc2217Error(f"RFC 2217 knows no message {data[0]}") from None
        if what is What.SIGNATURE:
            return cls(what, text=data[1:], answer=answer)
        size = _SIZES.get(what, 1)
        if len(data) != 1 + size:
            raise Rfc2217Error(f"{what.name} of RFC 2217 has {len(data) - 1} bytes instead of {size}")
        return cls(what, int.from_bytes(data[1:]), answer=answer)


def settings_messages(settings: LineSettings) -> list[Message]:
    """Return the messages by which a client asks for speed and framing."""
    return [
        Message(What.SET_BAUDRATE, settings.speed),
        Message(What.SET_DATASIZE, settings.data_bits),
        Message(What.SET_PARITY, 1 + PARITIES.index(settings.parity)),
        Message(What.SET_STOPSIZE, 1 + STOP_BITS.index(settings.stop_bits)),
        Message(What.SET_CONTROL, CONTROL_OF[settings.flow]),
    ]
