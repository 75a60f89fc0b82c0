"""One session of SSH: at a console, in the menu, or one command."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import asyncssh

from minerva.console.access import Identity
from minerva.console.events import Mode
from minerva.console.fronts.desk import Desk
from minerva.console.fronts.driver import Driver
from minerva.console.menu import Menu, table
from minerva.console.power import PowerAction
from minerva.console.session import Ended, Output, Session, Told, to_terminal
from minerva.console.session import Prompt as Asked
from minerva.core.errors import MinervaError, UsageError
from minerva.core.text import printable

MAX_COMMAND: Final = 8192
"""Characters of a command."""
REPLAY: Final = 4096
"""Bytes of before that are shown to one who attaches at a terminal."""
QUEUE: Final = 32_768
"""Bytes on their way to a client; more wait in the console's ring."""
_USAGE: Final = (
    "commands: list | who | read | write | send TEXT | break | power status|on|off|cycle|reset | say TEXT"
)


class Connection(Protocol):
    """What a session needs of the connection that it is in."""

    sessions: set[SshSession]

    @property
    def transport_full(self) -> bool:
        """Whether the client has not taken what it was sent."""


class SshSession(asyncssh.SSHServerSession[bytes]):
    """One session in a connection: at a console, in the menu, or one command."""

    def __init__(
        self,
        connection: Connection,
        desk: Desk,
        escape: Callable[[], bytes],
        identity: Identity,
        console: str | None,
    ) -> None:
        self._connection = connection
        self._desk = desk
        self._escape = escape
        self._identity = identity
        self._console = console
        self._chan: asyncssh.SSHServerChannel[bytes] | None = None
        self._driver: Driver | None = None
        self._menu: Menu | None = None
        self._terminal = False
        self._command: str | None = None
        self._channel_full = False
        self._listening = True
        self._from_menu = console is None
        self._task: asyncio.Task[None] | None = None
        connection.sessions.add(self)

    # -- called by asyncssh

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        """Begin."""
        self._chan = chan
        chan.set_write_buffer_limits(QUEUE)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self.gone("" if exc is None else "the connection was lost")

    def pty_requested(self, term_type: str, term_size: object, term_modes: object) -> bool:  # noqa: ARG002
        """There is a person at a terminal; how large it is, a serial console cannot know."""
        self._terminal = True
        return True

    def shell_requested(self) -> bool:
        """Attach."""
        return True

    def exec_requested(self, command: str) -> bool:
        """Do one thing."""
        self._command = command
        return True

    def session_started(self) -> None:
        """Do what was asked for."""
        mode = (self._command or "").strip()
        if self._console is not None and mode in ("read", "write"):
            # At once: what the client has sent already comes next.
            self._attach(self._console, Mode(mode))
        elif self._command is not None:
            self._task = asyncio.get_running_loop().create_task(self._run(self._command))
        elif self._console is not None:
            self._attach(self._console)
        elif self._terminal:
            self._show_menu()
        else:
            self._write_lines(table(self._identity, self._desk.consoles, self._desk.guard))
            self._exit(0)

    def data_received(self, data: bytes, datatype: object) -> None:  # noqa: ARG002
        """Take what the user typed."""
        if self._driver is not None:
            self._driver.receive(data)
        elif self._menu is not None:
            self._write(Asked(self._menu.receive(data)))
            if self._menu.over:
                self._exit(0)
            elif self._menu.chosen is not None:
                chosen, self._menu = self._menu.chosen, None
                self._attach(chosen)

    def eof_received(self) -> bool:
        """Nothing more will be typed, but what the console says is still wanted."""
        if self._menu is not None:
            self._exit(0)
        return True

    def break_received(self, msec: int) -> bool:
        """Send a break (RFC 4335); one of no length has the console's own."""
        if self._driver is None:
            return False
        self._driver.send_break(msec / 1000 if msec else None)
        return True

    def pause_writing(self) -> None:
        """The client does not take more."""
        self._channel_full = True

    def resume_writing(self) -> None:
        """It does again."""
        self._channel_full = False
        self.wake()

    # -- called by the driver

    @property
    def full(self) -> bool:
        """Whether the client has not taken what it was shown."""
        return self._channel_full or self._connection.transport_full

    def show(self, output: Output) -> None:
        """Show something."""
        self._write(output)

    def listen(self, hungry: bool) -> None:
        """Read what the user types, or leave it in the client."""
        if self._chan is not None and hungry is not self._listening:
            self._listening = hungry
            if hungry:
                self._chan.resume_reading()
            else:
                self._chan.pause_reading()

    def ended(self, event: Ended) -> None:
        """The session at the console has ended."""
        self._driver = None
        if (
            self._terminal
            and self._command is None
            and (event.menu or (self._from_menu and not event.reason))
        ):
            self._from_menu = True
            self._show_menu()
        else:
            self._exit(1 if event.reason else 0)

    # -- inside

    def wake(self) -> None:
        """See whether there is more to show."""
        if self._driver is not None:
            self._driver.wake()

    def gone(self, reason: str) -> None:
        """End: the client is gone."""
        self._connection.sessions.discard(self)
        if self._driver is not None:
            self._driver.close(reason)
            self._driver = None
        if self._task is not None:
            self._task.cancel()

    def _attach(self, name: str, mode: Mode | None = None) -> None:
        desk = self._desk
        try:
            console = desk.console(self._identity, name)
            self._driver = Driver(
                desk,
                self,
                lambda wake: Session(
                    self._identity,
                    console,
                    desk.guard,
                    now=desk.clock(),
                    escape=self._escape() if self._terminal else b"",
                    mode=mode,
                    replay=REPLAY if self._terminal else None,
                    wake=wake,
                ),
            )
        except MinervaError as error:
            self._write(Told(printable(str(error))))
            if self._from_menu and self._terminal:
                self._show_menu()
            else:
                self._exit(1)

    def _show_menu(self) -> None:
        if self._chan is not None and not self._listening:
            self.listen(True)
        self._menu = Menu(self._identity, self._desk.consoles, self._desk.guard)
        self._write(Asked(self._menu.show()))

    async def _run(self, command: str) -> None:
        try:
            await self._do(command)
        except MinervaError as error:
            self._write(Told(printable(str(error))))
            self._exit(1)

    async def _do(self, command: str) -> None:
        desk, identity = self._desk, self._identity
        if len(command) > MAX_COMMAND:
            raise UsageError(f"a command has at most {MAX_COMMAND} characters")
        verb, _, rest = command.strip().partition(" ")
        if verb == "list" and not rest:
            self._write_lines(table(identity, desk.consoles, desk.guard))
            self._exit(0)
            return
        if self._console is None:
            raise UsageError("log in with the name of a console, or USER:CONSOLE, to do something there")
        name = self._console
        match verb:
            case "who" if not rest:
                found = desk.who(identity, name)
                self._write_lines(
                    [f"{who['number']} {printable(who['user'])} {printable(who['source'])}" for who in found]
                )
            case "send" if rest:
                await desk.send(identity, name, _text(rest).encode() + b"\r")
            case "break" if not rest:
                desk.send_break(identity, name)
            case "say" if rest:
                desk.say(identity, name, _text(rest))
            case "power" if rest == "status":
                self._write_lines([await desk.power(identity, name, None)])
            case "power" if rest in [action.value for action in PowerAction]:
                self._write_lines([await desk.power(identity, name, PowerAction(rest))])
            case _:
                raise UsageError(_USAGE)
        self._exit(0)

    def _write_lines(self, lines: Sequence[str]) -> None:
        end = "\r\n" if self._terminal else "\n"
        if self._chan is not None:
            self._chan.write("".join(line + end for line in lines).encode())

    def _write(self, output: Output) -> None:
        if self._chan is None or self._chan.is_closing():
            return
        if self._terminal or isinstance(output, bytes):
            self._chan.write(to_terminal(output))
        else:
            self._chan.write_stderr(f"{output.text}\n".encode())

    def _exit(self, status: int) -> None:
        self._connection.sessions.discard(self)
        if self._chan is not None and not self._chan.is_closing():
            with suppress(OSError):
                self._chan.exit(status)


def _text(rest: str) -> str:
    """Return a text as it was meant: without its quotes, if it has any."""
    try:
        words = shlex.split(rest)
    except ValueError:
        return rest
    return words[0] if len(words) == 1 else rest
