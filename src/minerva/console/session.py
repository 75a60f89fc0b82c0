"""One who is attached, as every front has it: commands after an escape, notices, input, rights.

A front makes a :class:`Session`, hands it what the user typed (:meth:`Session.receive`) and shows what
:meth:`Session.read` returns. It calls ``read`` only when the user can be shown more, so that a slow user
is the hub's business, and stops to receive while :attr:`Session.hungry` is false. ``wake`` is called when
either may have changed. Nothing here waits, opens or reads a clock: ``now`` is in seconds since 1970.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from minerva.console.access import Action, Guard, Identity
from minerva.console.config import parse_escape
from minerva.console.events import Gap, Mode
from minerva.console.hub import Hub, HubError, NotConnected
from minerva.console.line import LineEditor
from minerva.console.power import Power, PowerAction, confirmation
from minerva.core.errors import MinervaError, UsageError
from minerva.core.text import printable, shortened

HOLD_SECONDS: Final = 1.0
"""What may be the beginning of an escape is held back so long."""
INPUT_SIZE: Final = 65_536
"""From so many bytes on that wait for the console, no more are received."""
OUTPUT_SIZE: Final = 65_536
"""From so many characters on that wait to be shown, answers to commands are only counted."""
READ_SIZE: Final = 16_384
REPLAY: Final = 4096
"""Bytes that the command to replay shows."""
LONGEST_LINE: Final = 400

HELP: Final = """\
 {0}.   detach                          {0}?   this help
 {0}a   ask to write                    {0}s   stop writing, only read
 {0}f   take writing (role admin)       {0}h   hand writing over
 {0}c   let others write, too, or not   {0}w   who is attached
 {0}l0  send a break                    {0}p   power (role power)
 {0}b   say something to all            {0}r   replay the last output
 {0}m   back to the menu                {0}e   change the escape
 {0}{0} send {0} itself"""


class Console(Protocol):
    """What a front has to know of one console."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def description(self) -> str:
        """What it is, for people."""

    @property
    def hub(self) -> Hub:
        """Who is attached, and what the device says."""

    @property
    def break_seconds(self) -> float:
        """How long a break lasts that says nothing else."""

    @property
    def power(self) -> Power | None:
        """The switch of its machine."""


class Consoles(Protocol):
    """The consoles of this server, as fronts see them; they come and go."""

    def names(self) -> list[str]:
        """Return the names of all consoles, sorted."""

    def get(self, name: str) -> Console | None:
        """Return a console."""


@dataclass(frozen=True, slots=True)
class Told:
    """A line of ours to the user: fit for any terminal, but for line ends in it."""

    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """Our part of a dialogue, without a line end: a question, or the echo of the answer."""

    text: str


Output: TypeAlias = bytes | Told | Prompt


@dataclass(frozen=True, slots=True)
class PowerAsked:
    """The machine is to be switched, or with None, asked whether it is on. The user may, and is sure."""

    action: PowerAction | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The session has ended; with ``menu``, the user wants to choose another console."""

    reason: str
    menu: bool = False


SessionEvent: TypeAlias = PowerAsked | Ended


def to_terminal(output: Output) -> bytes:
    """Return what a terminal is sent to show this."""
    match output:
        case Told(text):
            return b"\r\n[" + text.replace("\n", "\r\n").encode() + b"]\r\n"
        case Prompt(text):
            return text.replace("\n", "\r\n").encode()
        case data:
            return data


def _size(output: Output) -> int:
    return len(output) if isinstance(output, bytes) else len(output.text)


def escape_text(escape: bytes) -> str:
    """Return an escape as people write it, such as ``^Ec``."""
    return "".join(chr(byte) if byte >= 0x20 else f"^{chr(byte + 0x40)}" for byte in escape)


class Session:
    """A user at a console. Raises Refused if it may not even look.

    ``escape`` begins commands, if it is not empty; a session of a program should have none. ``mode`` None
    means to write if the user may and nobody else does.
    """

    def __init__(
        self,
        identity: Identity,
        console: Console,
        guard: Guard,
        *,
        now: float,
        escape: bytes = b"",
        mode: Mode | None = None,
        replay: int | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        guard.require(identity, Action.ATTACH, console.name)
        may_write = guard.may(identity, Action.WRITE, console.name)
        if mode is Mode.WRITE:
            guard.require(identity, Action.WRITE, console.name, "on attach")
        elif mode is None:
            mode = Mode.WRITE if may_write and console.hub.holder is None else Mode.READ
        self.identity = identity
        self.console = console
        self.input_lost = ""
        """Why some of the input was not taken, if so."""
        self.escape = escape
        self._guard = guard
        self._hub = console.hub
        self._output: deque[Output] = deque()
        self._output_size = 0
        self._unshown = 0
        self._input: deque[bytes | float] = deque()
        self._input_size = 0
        self._events: deque[SessionEvent] = deque()
        self._ended = False
        self._refused_input = False
        self._matched = 0
        self._command: str | None = None
        self._timer: float | None = None
        self._dialogue: tuple[LineEditor, Callable[[str, float], None]] | None = None
        self._wake = wake
        self.attachment = self._hub.attach(
            identity.user,
            mode=mode,
            may_write=may_write,
            replay=replay,
            source=identity.source,
            on_readable=wake,
            on_room=wake,
            now=now,
        )
        if escape:
            self._greet()

    # -- what the front calls

    @property
    def hungry(self) -> bool:
        """Whether the front should hand over what the user types."""
        return self._input_size < INPUT_SIZE

    @property
    def ended(self) -> bool:
        """Whether the session has ended."""
        return self._ended

    @property
    def waiting(self) -> bool:
        """Whether there is input that the console has not taken yet."""
        return bool(self._input)

    def receive(self, data: bytes, now: float) -> None:
        """Take what the user typed."""
        if self._ended:
            return
        if not self.escape:
            self._type(data)
        else:
            plain = bytearray()
            for byte in data:
                if self._ended:
                    return
                self._receive_byte(byte, plain, now)
            self._type(bytes(plain))
        self.pump(now)

    def pump(self, now: float) -> None:
        """Let the console have what waits for it, as far as there is room; call this when woken."""
        while self._input and not self._ended:
            head = self._input[0]
            if not self._hub.writes(self.attachment):
                self._refuse_input()
                return
            try:
                if isinstance(head, float):
                    self._hub.send_break(self.attachment, now, head)
                    self._input.popleft()
                    continue
                room = self._hub.input_room(self.attachment)
                part = head[:room]
                self._hub.input(self.attachment, part, now)
            except NotConnected as error:
                reason = f" ({printable(self._hub.reason)})" if self._hub.reason else ""
                self._lose(f"{error}{reason}")
                self.tell(f"{error}{reason}: what you typed was not sent")
                return
            except HubError as error:
                self._lose(str(error))
                self.tell(str(error))
                return
            self._refused_input = False
            self._input_size -= len(part)
            if len(part) == len(head):
                self._input.popleft()
            else:
                self._input[0] = head[len(part) :]
                return

    def read(self, limit: int = READ_SIZE) -> Output | None:
        """Return what is to be shown next; None if there is nothing now."""
        if self._output:
            output = self._output.popleft()
            self._output_size -= _size(output)
            return output
        if self._unshown:
            count, self._unshown = self._unshown, 0
            return Told(f"{count} answers are not shown: this connection was too slow for them")
        if self._ended:
            return None
        item = self._hub.read(self.attachment, limit)
        if item is None:
            if self.attachment.ended is not None:
                self._end(self.attachment.ended or "the console is no longer here")
                return self.read(limit)
            return None
        if isinstance(item, bytes):
            return item
        if isinstance(item, Gap):
            return Told(f"{item.lost} bytes lost: this connection was too slow for them")
        return Told(str(item))

    def next_event(self) -> SessionEvent | None:
        """Return what the front has to do next, besides showing things."""
        return self._events.popleft() if self._events else None

    def next_timer(self) -> float | None:
        """Return when :meth:`on_timer` is to be called."""
        return self._timer

    def on_timer(self, now: float) -> None:
        """Let go of what was no escape, because nothing came after it."""
        if self._timer is not None and now >= self._timer:
            self._timer = None
            held = self.escape[: self._matched]
            self._matched = 0
            self._type(held)
            self.pump(now)

    def tell(self, text: str) -> None:
        """Show the user a line of ours."""
        self._show(Told(text))

    def review(self, now: float) -> None:
        """Go by the rights that the user has now: the configuration may have changed, or time is over."""
        if self._ended or self.attachment.ended is not None:
            return
        name = self.console.name
        if not self._guard.may(self.identity, Action.ATTACH, name):
            self._guard.note(self.identity, Action.ATTACH.text, name, "rights have ended", allowed=False)
            self.close(now, f"{self.identity.user} has no rights at {name} any more")
            return
        may_write = self._guard.may(self.identity, Action.WRITE, name)
        if may_write is not self.attachment.may_write:
            self._hub.allow_write(self.attachment, may_write, now)

    def close(self, now: float, reason: str = "") -> None:
        """End the session; again has no effect."""
        if not self._ended:
            self._end(reason)
        if self.attachment.ended is None:
            self._hub.detach(self.attachment, now, reason)

    # -- what the user can do; each raises MinervaError, and is in the audit

    def ask_write(self, now: float) -> None:
        """Ask for the lease."""
        self._require(Action.WRITE, "asks")
        holder = self._hub.request_write(self.attachment, now)
        if holder is not None:
            self.tell(f"{printable(holder.user)} writes and has been asked; you will get it when it is free")

    def force_write(self, now: float) -> None:
        """Take the lease from whoever has it."""
        holder = self._hub.holder
        self._require(Action.FORCE, f"from {holder.user}" if holder is not None else "")
        self._hub.force_write(self.attachment, now)

    def release(self, now: float) -> None:
        """Only read from now on."""
        self._hub.release(self.attachment, now)

    def hand_over(self, number: int, now: float) -> None:
        """Give the lease to the attachment with this number, as :meth:`Hub.who` has it."""
        other = self._hub.attachment(number)
        if other is None:
            raise UsageError(f"nobody with the number {number} is attached")
        self._require(Action.WRITE, f"hands over to {other.user}")
        self._hub.hand_over(self.attachment, other, now)

    def co_write(self, allowed: bool, now: float) -> None:
        """Let others write beside this one, or not any more."""
        self._require(Action.WRITE, f"lets others write: {'yes' if allowed else 'no'}")
        self._hub.co_write(self.attachment, allowed, now)

    def send_break(self, now: float, seconds: float | None = None) -> None:
        """Send a break, after what was typed before."""
        self._require(Action.BREAK)
        if not self._hub.writes(self.attachment):
            self._guard.note(
                self.identity, Action.BREAK.text, self.console.name, "is not the writer", allowed=False
            )
        self._input.append(self.console.break_seconds if seconds is None else seconds)
        self.pump(now)

    def say(self, text: str, now: float) -> None:
        """Tell all who are attached something."""
        if text:
            self._require(Action.SAY, text)
            self._hub.message(self.identity.user, shortened(text, LONGEST_LINE), now)

    def ask_power(self, action: PowerAction | None) -> None:
        """Have the front switch the machine, or ask whether it is on. The user has been asked already."""
        self._power()
        if action is None:
            self._require(Action.POWER_STATUS)
        else:
            self._require(Action.POWER, action.value)
        self._events.append(PowerAsked(action))
        self._wake()

    def who(self) -> str:
        """Return who is attached, for people."""
        lines = []
        for info in self._hub.who():
            does = "writes" if info.writing else "waits to write" if info.waiting else "reads"
            you = " (you)" if info.number == self.attachment.number else ""
            lines.append(f"{info.number} {printable(info.user)}{you} {does}, {printable(info.source)}")
        return "\n ".join(lines)

    # -- inside

    def _show(self, output: Output) -> None:
        """Have the user shown something of ours; one who commands much and reads nothing only a part."""
        if self._output and self._output_size + _size(output) > OUTPUT_SIZE:
            self._unshown += 1
        else:
            self._output.append(output)
            self._output_size += _size(output)
        self._wake()

    def _require(self, action: Action, detail: str = "") -> None:
        self._guard.require(self.identity, action, self.console.name, detail)

    def _greet(self) -> None:
        if self._hub.writes(self.attachment):
            does = "you write"
        elif not self.attachment.may_write:
            does = "you only read"
        else:
            holder = self._hub.holder
            writer = "nobody" if holder is None else printable(holder.user)
            does = f"{writer} writes, {escape_text(self.escape)}a asks for it"
        reason = f" ({printable(self._hub.reason)})" if self._hub.reason else ""
        state = f"{self.console.name}: {self._hub.state.value}{reason}"
        self.tell(f"{state}; {does}; {escape_text(self.escape)}? for help")

    def _end(self, reason: str, *, menu: bool = False) -> None:
        self._ended = True
        self._timer = None
        self._drop_input()
        if reason:
            self._show(Told(printable(reason)))
        self._events.append(Ended(reason, menu))
        self._wake()

    def _leave(self, now: float, *, menu: bool = False) -> None:
        self._end("", menu=menu)
        self._hub.detach(self.attachment, now)

    def _type(self, data: bytes) -> None:
        if data:
            self._input.append(data)
            self._input_size += len(data)

    def _drop_input(self) -> None:
        self._input.clear()
        self._input_size = 0

    def _lose(self, why: str) -> None:
        self._drop_input()
        self.input_lost = why

    def _refuse_input(self) -> None:
        self._lose("another one writes")
        if self._refused_input:
            return
        self._refused_input = True
        holder = self._hub.holder
        if not self.attachment.may_write:
            why = f"{self.identity.user} may only read {self.console.name}"
        elif holder is None:
            why = "nobody writes; ask for it first"
        else:
            why = f"{holder.user} writes; ask for it first"
        self._guard.note(self.identity, "input", self.console.name, why, allowed=False)
        self.tell(f"not sent: {printable(why)}")

    def _receive_byte(self, byte: int, plain: bytearray, now: float) -> None:
        if self._dialogue is not None:
            self._receive_answer(byte, now)
            return
        if byte == self.escape[self._matched]:
            self._matched += 1
            self._timer = now + HOLD_SECONDS if self._command is None else None
            if self._matched < len(self.escape):
                return
            self._matched, self._timer = 0, None
            if self._command is None:
                self._type(bytes(plain))
                plain.clear()
                self.pump(now)
                self._command = ""
            else:
                self._command = None
                plain += self.escape
            return
        held = self.escape[: self._matched]
        self._matched, self._timer = 0, None
        if self._command is not None:
            self._attempt(chr(byte), now)
        elif held:
            plain += held
            self._receive_byte(byte, plain, now)
        else:
            plain.append(byte)

    def _receive_answer(self, byte: int, now: float) -> None:
        assert self._dialogue is not None
        editor, answer = self._dialogue
        echo, line = editor.receive(byte)
        if echo:
            self._show(Prompt(echo))
        if editor.done:
            self._dialogue = None
            if line is None:
                self.tell("never mind")
            else:
                self._try(lambda: answer(line, now))
        self._wake()

    def _attempt(self, key: str, now: float) -> None:
        command, self._command = (self._command or "") + key, None
        if command == "l":
            self._command = command
            return
        self._try(lambda: self._run(command, now))

    def _try(self, do: Callable[[], None]) -> None:
        try:
            do()
        except MinervaError as error:
            self.tell(printable(str(error)))

    def _run(self, command: str, now: float) -> None:
        match command:
            case ".":
                self._leave(now)
            case "m":
                self._leave(now, menu=True)
            case "?":
                self.tell("\n" + HELP.format(escape_text(self.escape)) + "\n")
            case "a":
                self.ask_write(now)
            case "s":
                self.release(now)
            case "f":
                self.force_write(now)
            case "c":
                self.co_write(not self._hub.co_writing, now)
            case "h":
                if len(self._hub.who()) < 2:
                    raise UsageError("nobody else is attached")
                self._ask(f"hand over to which number?\n {self.who()}\n> ", self._answer_hand_over)
            case "w":
                self.tell(self.who())
            case "l0":
                self.send_break(now)
            case "r":
                self._show(self._hub.tail(REPLAY))
            case "b":
                self._ask("say to all: ", self.say)
            case "p":
                self._power()
                self._ask("power (status, on, off, cycle, reset): ", self._answer_power)
            case "e":
                self._ask("new escape (such as ^Ec or ^]): ", self._answer_escape)
            case "\r" | "\n":
                pass
            case _:
                self.tell(f"there is no such command; {escape_text(self.escape)}? for help")

    def _power(self) -> Power:
        if self.console.power is None:
            raise UsageError(f"nothing is configured to switch the machine of {self.console.name}")
        return self.console.power

    def _ask(self, question: str, answer: Callable[[str, float], None]) -> None:
        self._dialogue = (LineEditor(LONGEST_LINE), answer)
        self._show(Prompt(f"\n[{question}"))

    def _answer_hand_over(self, text: str, now: float) -> None:
        if not text.isascii() or not text.isdigit():
            raise UsageError("a number is needed")
        self.hand_over(int(text), now)

    def _answer_power(self, text: str, _now: float) -> None:
        if text == "status":
            self.ask_power(None)
            return
        try:
            action = PowerAction(text)
        except ValueError:
            raise UsageError("power knows status, on, off, cycle and reset") from None
        if not self._guard.may(self.identity, Action.POWER, self.console.name):
            self.ask_power(action)  # refuses, and that is written down
        question = confirmation(self.console.name, action, self._hub.who())

        def answer_sure(sure: str, _now: float) -> None:
            if sure.lower() == "yes":
                self.ask_power(action)
            else:
                self.tell("nothing was done")

        self._ask(f"{question}\n yes or no? ", answer_sure)

    def _answer_escape(self, text: str, _now: float) -> None:
        escape = parse_escape(text, "the escape")
        if not escape:
            raise UsageError("the escape stays as it is")
        self.escape = escape
        self.tell(f"the escape is {escape_text(escape)} now")
