"""One console: a device, any number who read what it says, and one who types.

Theory of operation. What the device says goes into a ring. An attachment is an offset into the bytes that
ever came, so a reader that does nothing costs nothing, and the device waits for nobody: whoever has fallen
more than its queue behind continues half a queue before the end, with a :class:`Gap` in place of what it
missed. So all that an attachment reads, together with its gaps, is exactly what the device said since the
attachment's start. Notices (who came, who writes, messages) are read at their place between the bytes.

Input is the other way round: nothing of it is lost while the device is there, so a writer has to wait for
room. A break is sent in its place between the bytes. When the device goes away, input that it was not sent
is dropped: nobody wants what he typed an hour ago to be executed when the line returns.

Nothing here does input or output or reads a clock (``now`` is in seconds since 1970). The runner is called
back when there are events, and takes ``next_event()`` until it is None; fronts are called back when their
attachment may have something to read or room to write, once each time it had run dry.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from minerva.console.events import (
    Attached,
    AttachmentInfo,
    BreakAsked,
    BreakRequest,
    CoWriting,
    Detached,
    Gap,
    HubEvent,
    InputLost,
    LeaseMoved,
    Mode,
    Move,
    Notice,
    Said,
    State,
    Typed,
    UpstreamChanged,
    WriteRequested,
)
from minerva.console.lease import Lease
from minerva.console.ring import Ring
from minerva.core.errors import MinervaError

__all__ = [
    "Attachment",
    "BreakRequest",
    "Gap",
    "Hub",
    "HubError",
    "HubEvent",
    "InputFull",
    "Item",
    "Mode",
    "NotAllowed",
    "NotAttached",
    "NotConnected",
    "NotWriter",
    "Notice",
    "State",
]

RING_SIZE: Final = 262_144
QUEUE_SIZE: Final = 65_536
"""How far a reader may fall behind."""
READ_SIZE: Final = 16_384
INPUT_LIMIT: Final = 65_536
"""Bytes of input that wait for the device at most."""
BREAK_LIMIT: Final = 16
"""Breaks that wait for the device at most."""
BREAK_SECONDS: Final = 0.25
MAX_BREAK_SECONDS: Final = 10.0
NOTICE_LIMIT: Final = 100
"""Notices that wait for a reader at most; then it loses the oldest."""

_LINE_SEARCH: Final = 4096  # so far into a replay the first line may end


class HubError(MinervaError):
    """What somebody wanted from a console cannot be."""


class NotAttached(HubError):
    """The attachment has ended, or is that of another console."""


class NotAllowed(HubError):
    """The attachment is for reading only."""


class NotWriter(HubError):
    """Another one has the lease, or nobody."""


class NotConnected(HubError):
    """There is no device to write to now."""


class InputFull(HubError):
    """There is no room for that much input. Nothing of it was taken; wait for room."""


def _nothing() -> None:
    """Call nobody."""


class Attachment:
    """One who is attached to a console. Only its :class:`Hub` changes what is in it."""

    __slots__ = (
        "_asleep",
        "_limit",
        "_notices",
        "_on_readable",
        "_on_room",
        "_position",
        "_thirsty",
        "end",
        "ended",
        "lost",
        "may_write",
        "number",
        "since",
        "source",
        "start",
        "user",
    )

    def __init__(self, number: int, user: str, source: str, may_write: bool, start: int, now: float) -> None:
        self.number = number
        self.user = user
        self.source = source
        self.since = now
        self.may_write = may_write
        """May ever ask for the lease."""
        self.start = start
        """The offset, in all that the device ever said, at which its reading begins."""
        self.end: int | None = None
        self.ended: str | None = None
        """Why it has ended; None while it has not. What came before that can still be read."""
        self.lost = 0
        self._position = start
        self._limit = QUEUE_SIZE
        self._notices: deque[tuple[int, Notice]] = deque()
        self._asleep = True  # has read everything, so it is to be called when there is more
        self._thirsty = False  # was told of too little room, so it is to be called when there is more
        self._on_readable: Callable[[], None] = _nothing
        self._on_room: Callable[[], None] = _nothing

    def __repr__(self) -> str:
        return f"<Attachment {self.number} of {self.user!r}>"


Item: TypeAlias = bytes | Gap | Notice


class Hub:
    """One console (see the module's theory of operation)."""

    def __init__(
        self,
        name: str,
        *,
        ring_size: int = RING_SIZE,
        input_limit: int = INPUT_LIMIT,
        on_event: Callable[[], None] = _nothing,
    ) -> None:
        self.name = name
        self.on_event = on_event
        """Called whenever there is an event more, so also when there is something to write to the device."""
        self._ring = Ring(ring_size)
        self._up: bool | None = None
        self._attachments: dict[int, Attachment] = {}
        self._asleep: list[Attachment] = []
        self._number = 0
        self._lease: Lease[Attachment] = Lease()
        self._input: deque[bytearray | BreakRequest] = deque()
        self._input_limit = input_limit
        self._input_size = 0
        self._breaks = 0
        self._offered = 0
        self._events: deque[HubEvent] = deque()
        self.changed_at: float | None = None
        """When the device came or went."""
        self.reason = ""
        """Why the device is away."""
        self.bytes_out = 0
        """Bytes that were written to the device."""
        self.bytes_lost = 0
        """Bytes that readers were too slow for, all together."""
        self.times_up = 0

    # -- the device

    def upstream_up(self, now: float) -> None:
        """Say that the device can be reached."""
        if self._up:
            return
        self._up, self.changed_at, self.reason = True, now, ""
        self.times_up += 1
        self._tell(UpstreamChanged(now, True, ""))
        self._call_thirsty()

    def upstream_down(self, reason: str, now: float) -> None:
        """Say that the device cannot be reached, or still cannot; input that it was not sent is dropped."""
        self.reason = reason
        if self._up is False:
            return
        self._up, self.changed_at = False, now
        lost = self._input_size
        self._input.clear()
        self._input_size = self._breaks = self._offered = 0
        self._tell(UpstreamChanged(now, False, reason))
        if lost:
            self._tell(InputLost(now, lost))

    def output(self, data: bytes, now: float) -> None:  # noqa: ARG002  # the same shape as the others
        """Take what the device said."""
        if data:
            self._ring.append(data)
            self._wake()

    def resize(self, ring_size: int) -> None:
        """Keep so many bytes from now on; who is too far behind for fewer finds a gap."""
        self._ring.resize(ring_size)

    def to_upstream(self, limit: int = READ_SIZE) -> bytes:
        """Return what is to be written to the device next; say :meth:`written` when it has been.

        Nothing while the device is away, or before a break that is due first.
        """
        head = self._input[0] if self._input else b""
        if isinstance(head, BreakRequest):
            return b""
        data = bytes(head[:limit])
        self._offered = len(data)
        return data

    def written(self, count: int) -> None:
        """Say that the device has taken so many bytes of what :meth:`to_upstream` returned last.

        If the device went away in between, that is not an error and has no effect.
        """
        count = min(count, self._offered)
        if not count:
            return
        self._offered -= count
        head = self._input[0]
        assert isinstance(head, bytearray)
        del head[:count]
        if not head:
            self._input.popleft()
        self._input_size -= count
        self.bytes_out += count
        self._call_thirsty()

    def break_wanted(self) -> list[BreakRequest]:
        """Return the breaks whose turn it is: all input before them has been written. Each only once."""
        due: list[BreakRequest] = []
        while self._input and isinstance(head := self._input[0], BreakRequest):
            self._input.popleft()
            due.append(head)
        if due:
            self._breaks -= len(due)
            self._call_thirsty()
        return due

    # -- who is attached

    def attach(
        self,
        user: str,
        *,
        mode: Mode = Mode.READ,
        may_write: bool | None = None,
        replay: int | None = None,
        queue: int = QUEUE_SIZE,
        source: str = "",
        on_readable: Callable[[], None] = _nothing,
        on_room: Callable[[], None] = _nothing,
        now: float,
    ) -> Attachment:
        """Attach a user; with ``replay``, to begin with the last so many bytes of before.

        ``may_write`` says whether it may ever ask for the lease; without it, only ``mode`` WRITE may, which
        takes the lease if it is free and otherwise asks for it. A replay that does not begin with the first
        byte of all begins with a line, if there is one soon.
        ``on_readable`` is called once when there is more to read after :meth:`read` returned None (so read
        first), ``on_room`` once when there is more room for input after :meth:`input_room` was asked.
        Raises NotAllowed.
        """
        writer = mode is Mode.WRITE if may_write is None else may_write
        if mode is Mode.WRITE and not writer:
            raise NotAllowed(f"{user} may not write to {self.name}")
        self._number += 1
        start = self._ring.total if replay is None else self._replay_start(replay)
        attachment = Attachment(self._number, user, source, writer, start, now)
        attachment._limit = min(self._ring.size, max(1, queue, self._ring.total - start))
        attachment._on_readable, attachment._on_room = on_readable, on_room
        self._attachments[attachment.number] = attachment
        self._tell(Attached(now, self._info(attachment)), but=attachment)
        if mode is Mode.WRITE:
            self.request_write(attachment, now)
        self._asleep.append(attachment)
        return attachment

    def detach(self, attachment: Attachment, now: float, reason: str = "") -> None:
        """End an attachment; again has no effect. It can still read what came before."""
        if attachment.ended is not None:
            return
        self._check(attachment)
        who = self._info(attachment)
        del self._attachments[attachment.number]
        attachment.ended, attachment.end = reason, self._ring.total
        self._drop(attachment, Move.LEFT, now)
        self._tell(Detached(now, who, reason))
        if attachment._asleep:
            attachment._asleep = False
            self._asleep.remove(attachment)
            attachment._on_readable()
        if attachment._thirsty:
            attachment._thirsty = False
            attachment._on_room()

    def detach_all(self, reason: str, now: float) -> None:
        """End all attachments, because the console is no longer here."""
        for attachment in list(self._attachments.values()):
            self.detach(attachment, now, reason)

    def read(self, attachment: Attachment, limit: int = READ_SIZE) -> Item | None:
        """Return what the attachment has to be shown next; None if it has seen everything.

        Bytes, at most ``limit``; a gap in place of bytes that it was too slow for; or a notice.
        """
        total, position = self._ring.total, attachment._position
        end = total if attachment.end is None else attachment.end
        oldest, limit_behind = self._ring.oldest, min(attachment._limit, self._ring.size)
        if position < end and position < max(oldest, total - limit_behind):
            lost = min(end, max(oldest, total - limit_behind // 2)) - position
            attachment._position += lost
            attachment.lost += lost
            self.bytes_lost += lost
            return Gap(lost)
        stop = min(end, position + limit)
        if attachment._notices:
            place, notice = attachment._notices[0]
            if place <= position:
                attachment._notices.popleft()
                return notice
            stop = min(stop, place)
        if position == stop:
            if attachment.end is None and not attachment._asleep:
                attachment._asleep = True
                self._asleep.append(attachment)
            return None
        attachment._position = stop
        return self._ring.slice(position, stop)

    def who(self) -> tuple[AttachmentInfo, ...]:
        """Return who is attached, in the order in which they came."""
        return tuple(self._info(attachment) for attachment in self._attachments.values())

    def attachment(self, number: int) -> Attachment | None:
        """Return who is attached under this number."""
        return self._attachments.get(number)

    def message(self, sender: str, text: str, now: float) -> None:
        """Tell something to all who are attached."""
        self._tell(Said(now, sender, text))

    # -- who writes

    @property
    def holder(self) -> Attachment | None:
        """Who has the lease."""
        return self._lease.holder

    @property
    def co_writing(self) -> bool:
        """Whether the holder lets others write, too."""
        return self._lease.co_writing

    def writes(self, attachment: Attachment) -> bool:
        """Return whether the attachment may write now."""
        return self._lease.writes(attachment)

    def request_write(self, attachment: Attachment, now: float) -> Attachment | None:
        """Ask for the lease. Return None if the attachment may write now, else who has the lease.

        In that case the holder is told, and the attachment gets it when its turn comes. Raises NotAllowed.
        """
        self._check_may_write(attachment)
        if self._lease.writes(attachment):
            return None
        before, waited = self._lease.holder, self._lease.waits(attachment)
        if self._lease.request(attachment):
            if before is None:
                self._tell(LeaseMoved(now, None, attachment.user, Move.GRANTED))
            else:
                self._tell(CoWriting(now, attachment.user, True))
            return None
        assert before is not None
        if not waited:
            self._tell(WriteRequested(now, attachment.user, before.user))
        return before

    def force_write(self, attachment: Attachment, now: float) -> None:
        """Take the lease, whoever has it. Raises NotAllowed."""
        self._check_may_write(attachment)
        self._move(attachment, Move.GRANTED if self._lease.holder is None else Move.FORCED, now)

    def hand_over(self, attachment: Attachment, to: Attachment, now: float) -> None:
        """Give the holder's lease to another one. Raises NotWriter, NotAllowed."""
        self._check_holder(attachment)
        self._check_may_write(to)
        self._move(to, Move.HANDED_OVER, now)

    def co_write(self, attachment: Attachment, allowed: bool, now: float) -> None:
        """Let all who ask write beside the holder, or not any more. Raises NotWriter."""
        self._check_holder(attachment)
        for changed in self._lease.allow(allowed):
            self._tell(CoWriting(now, changed.user, allowed))

    def release(self, attachment: Attachment, now: float) -> None:
        """Stop writing, or waiting for the lease, and go on reading."""
        self._check(attachment)
        self._drop(attachment, Move.RELEASED, now)

    def allow_write(self, attachment: Attachment, allowed: bool, now: float) -> None:
        """Change whether the attachment may ever ask for the lease, because the user's rights changed."""
        self._check(attachment)
        attachment.may_write = allowed
        if not allowed:
            self._drop(attachment, Move.REVOKED, now)

    def input_room(self, attachment: Attachment) -> int:
        """Return how many bytes of input would be taken now; ``on_room`` is called when there are more."""
        attachment._thirsty = attachment.ended is None
        return self._input_limit - self._input_size if self._up else 0

    def input(self, attachment: Attachment, data: bytes, now: float) -> None:
        """Take what a writer typed: all of it, or nothing.

        Raises NotWriter, NotConnected, InputFull.
        """
        self._check_can_write(attachment)
        if len(data) > self._input_limit - self._input_size:
            raise InputFull(f"{self.name} takes no more input now: it has to send what it has got")
        if not data:
            return
        if not self._input or isinstance(tail := self._input[-1], BreakRequest):
            self._input.append(tail := bytearray())
        tail += data
        self._input_size += len(data)
        self._events.append(Typed(now, attachment.user, data))
        self.on_event()

    def send_break(self, attachment: Attachment, now: float, seconds: float = BREAK_SECONDS) -> None:
        """Ask for a break after all input so far. Raises NotWriter, NotConnected, InputFull."""
        self._check_can_write(attachment)
        if not 0 < seconds <= MAX_BREAK_SECONDS:
            raise HubError(f"a break lasts up to {MAX_BREAK_SECONDS:g} seconds")
        if self._breaks >= BREAK_LIMIT:
            raise InputFull(f"{self.name} has {BREAK_LIMIT} breaks to send already")
        self._breaks += 1
        self._input.append(BreakRequest(attachment.user, seconds))
        self._tell(BreakAsked(now, attachment.user, seconds))

    # -- what is to be seen

    @property
    def state(self) -> State:
        """What the console is doing."""
        if self._up is None:
            return State.UNKNOWN
        if not self._up:
            return State.DOWN
        return State.IN_USE if self._attachments else State.CONNECTED

    @property
    def bytes_in(self) -> int:
        """Bytes that the device ever said."""
        return self._ring.total

    @property
    def input_waiting(self) -> bool:
        """Whether there is input or a break that the device was not sent yet."""
        return bool(self._input)

    def tail(self, length: int) -> bytes:
        """Return the last bytes that the device said, as far as they are kept."""
        return self._ring.tail(length)

    def next_event(self) -> HubEvent | None:
        """Return what has happened next."""
        return self._events.popleft() if self._events else None

    # -- inside

    def _replay_start(self, replay: int) -> int:
        ring = self._ring
        start = max(ring.oldest, ring.total - max(0, replay))
        if 0 < start < ring.total:
            before = max(ring.oldest, start - 1)  # which may be the end of a line
            newline = ring.slice(before, min(ring.total, start + _LINE_SEARCH)).find(b"\n")
            return start if newline < 0 else before + newline + 1
        return start

    def _info(self, attachment: Attachment) -> AttachmentInfo:
        return AttachmentInfo(
            attachment.number,
            attachment.user,
            attachment.source,
            attachment.since,
            self._lease.writes(attachment),
            attachment is self._lease.holder,
            self._lease.waits(attachment),
            self._ring.total - attachment._position,
            attachment.lost,
        )

    def _check(self, attachment: Attachment) -> None:
        if self._attachments.get(attachment.number) is not attachment:
            raise NotAttached(f"{attachment.user} is not attached to {self.name}")

    def _check_may_write(self, attachment: Attachment) -> None:
        self._check(attachment)
        if not attachment.may_write:
            raise NotAllowed(f"{attachment.user} may not write to {self.name}")

    def _check_holder(self, attachment: Attachment) -> None:
        self._check(attachment)
        if attachment is not self._lease.holder:
            raise NotWriter(f"{attachment.user} does not have the lease of {self.name}")

    def _check_can_write(self, attachment: Attachment) -> None:
        self._check(attachment)
        if not self._lease.writes(attachment):
            holder = self._lease.holder
            writer = "nobody" if holder is None else holder.user
            raise NotWriter(f"{attachment.user} does not write to {self.name}; {writer} does")
        if not self._up:
            raise NotConnected(f"{self.name} is not connected")

    def _move(self, to: Attachment, how: Move, now: float) -> None:
        before = self._lease.holder
        if to is before:
            return
        self._lease.move(to)
        self._tell(LeaseMoved(now, None if before is None else before.user, to.user, how))

    def _drop(self, attachment: Attachment, how: Move, now: float) -> None:
        holder, wrote = self._lease.holder, self._lease.writes(attachment)
        self._lease.drop(attachment)
        after = self._lease.holder
        if after is not holder:
            self._tell(LeaseMoved(now, attachment.user, None if after is None else after.user, how))
        elif wrote:
            self._tell(CoWriting(now, attachment.user, False))

    def _tell(self, notice: Notice, but: Attachment | None = None) -> None:
        self._events.append(notice)
        place = self._ring.total
        for attachment in self._attachments.values():
            if attachment is not but:
                if len(attachment._notices) >= NOTICE_LIMIT:
                    attachment._notices.popleft()
                attachment._notices.append((place, notice))
        self._wake()
        self.on_event()

    def _wake(self) -> None:
        """Call those who had read everything; one that has nothing to read finds that out."""
        if not self._asleep:
            return
        woken, self._asleep = self._asleep, []
        for attachment in woken:
            attachment._asleep = False
        for attachment in woken:
            attachment._on_readable()

    def _call_thirsty(self) -> None:
        for attachment in list(self._attachments.values()):
            if attachment._thirsty:
                attachment._thirsty = False
                attachment._on_room()
