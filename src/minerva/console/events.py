"""What happens at a console: for the audit and the records, and as notices to those who are attached."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from minerva.core.text import printable


class State(enum.Enum):
    """What a console is doing."""

    CONNECTED = "Connected"
    """The device can be reached, nobody is attached."""
    IN_USE = "InUse"
    """The device can be reached, and somebody is attached."""
    DOWN = "Down"
    UNKNOWN = "Unknown"
    """Nobody has tried yet."""


class Mode(enum.Enum):
    """What one who attaches wants."""

    READ = "read"
    WRITE = "write"
    """To have the lease, if it is free."""


class Move(enum.Enum):
    """Why the lease moved."""

    GRANTED = "granted"
    RELEASED = "released"
    HANDED_OVER = "handed over"
    FORCED = "forced"
    LEFT = "left"
    """Its holder detached."""
    REVOKED = "revoked"
    """Its holder may not write any more."""


@dataclass(frozen=True, slots=True)
class AttachmentInfo:
    """One who is attached, as others see it."""

    number: int
    user: str
    source: str
    """Where from: the front and the peer's address."""
    since: float
    writing: bool
    """Has the lease, or may write beside its holder."""
    holder: bool
    waiting: bool
    """Has asked for the lease."""
    unread: int
    lost: int
    """Bytes that it was too slow for, so far."""


@dataclass(frozen=True, slots=True)
class Attached:
    """Somebody attached."""

    at: float
    who: AttachmentInfo

    def __str__(self) -> str:
        return f"{printable(self.who.user)} attached"


@dataclass(frozen=True, slots=True)
class Detached:
    """Somebody is gone."""

    at: float
    who: AttachmentInfo
    reason: str

    def __str__(self) -> str:
        reason = f" ({printable(self.reason)})" if self.reason else ""
        return f"{printable(self.who.user)} detached{reason}"


@dataclass(frozen=True, slots=True)
class LeaseMoved:
    """Another one has the lease now, or nobody."""

    at: float
    before: str | None
    after: str | None
    how: Move

    def __str__(self) -> str:
        if self.after is None:
            return f"nobody writes any more ({self.how.value})"
        return f"{printable(self.after)} writes now ({self.how.value})"


@dataclass(frozen=True, slots=True)
class WriteRequested:
    """Somebody asks the holder for the lease."""

    at: float
    user: str
    holder: str

    def __str__(self) -> str:
        return f"{printable(self.user)} asks {printable(self.holder)} to hand over writing"


@dataclass(frozen=True, slots=True)
class CoWriting:
    """The holder lets others write, too, or not any more; or one of them begins."""

    at: float
    user: str
    allowed: bool

    def __str__(self) -> str:
        what = "may write, too" if self.allowed else "does not write beside others any more"
        return f"{printable(self.user)} {what}"


@dataclass(frozen=True, slots=True)
class UpstreamChanged:
    """The device can be reached, or not any more."""

    at: float
    up: bool
    reason: str

    def __str__(self) -> str:
        reason = f": {printable(self.reason)}" if self.reason else ""
        return f"the console is {'up' if self.up else 'down'}{reason}"


@dataclass(frozen=True, slots=True)
class InputLost:
    """The device went away before it was sent what had been typed."""

    at: float
    count: int

    def __str__(self) -> str:
        return f"{self.count} bytes of input never reached the device"


@dataclass(frozen=True, slots=True)
class Said:
    """A message to everybody who is attached."""

    at: float
    sender: str
    text: str

    def __str__(self) -> str:
        return f"{printable(self.sender)}: {printable(self.text)}"


@dataclass(frozen=True, slots=True)
class BreakAsked:
    """A writer sends a break."""

    at: float
    user: str
    seconds: float

    def __str__(self) -> str:
        return f"{printable(self.user)} sends a break"


@dataclass(frozen=True, slots=True)
class Typed:
    """A writer's input was taken. It is not shown to others: what the device echoes is."""

    at: float
    user: str
    data: bytes

    def __repr__(self) -> str:
        # May be a password.
        return f"Typed(at={self.at!r}, user={self.user!r}, data=<{len(self.data)} bytes>)"

    def __str__(self) -> str:
        return f"{printable(self.user)} typed {len(self.data)} bytes"


Notice: TypeAlias = (
    Attached
    | Detached
    | LeaseMoved
    | WriteRequested
    | CoWriting
    | UpstreamChanged
    | InputLost
    | Said
    | BreakAsked
)
"""What those who are attached are told. ``str(notice)`` is a line fit for any terminal."""

HubEvent: TypeAlias = Notice | Typed


@dataclass(frozen=True, slots=True)
class Gap:
    """In place of bytes that a reader was too slow for."""

    lost: int

    def __str__(self) -> str:
        return f"{self.lost} bytes lost"


@dataclass(frozen=True, slots=True)
class BreakRequest:
    """A break that is to be sent now."""

    user: str
    seconds: float
