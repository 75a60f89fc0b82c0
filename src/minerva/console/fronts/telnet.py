"""Ports of TCP for tools: the bytes alone, or telnet with RFC 2217, on which a tool sets the speed, too.

There is no login: whoever can reach the port has the rights of one user, so these ports are off by default.
A tool that may write has the lease, or waits for it: what it sends waits with it, and is not lost. It is
shown no notices, and no marks where it was too slow: it wants the device's bytes alone. A speed that a tool
has set is undone when it leaves.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final, cast

from minerva.console.backends.base import (
    BackendError,
    Capability,
    Flow,
    LineSettings,
    Modem,
    SerialLine,
    keep_alive,
)
from minerva.console.backends.stream import SocketLine
from minerva.console.fronts.driver import REVIEW_SECONDS
from minerva.console.hub import (
    BREAK_SECONDS,
    MAX_BREAK_SECONDS,
    RING_SIZE,
    Attachment,
    Gap,
    HubError,
    Mode,
    State,
)
from minerva.console.listeners import Connections
from minerva.console.rfc2217 import (
    CONTROL_OF,
    FLOWS,
    PARITIES,
    STOP_BITS,
    Control,
    Message,
    Rfc2217Error,
    What,
)
from minerva.console.runner import Runner
from minerva.console.telnet import (
    BINARY,
    BRK,
    COM_PORT,
    ECHO,
    SUPPRESS_GO_AHEAD,
    Command,
    Data,
    Option,
    Subnegotiation,
    Telnet,
    TelnetEvent,
)
from minerva.console.throttle import Logins, Paces, source_of
from minerva.core.text import printable

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 32
"""So many tools may have one port open at once; then the oldest of the busiest source goes,"""
MAX_OF_SOURCE: Final = 16
"""and of one source so many."""
BURST: Final = 30
"""So often may one source connect at once,"""
PACE_SECONDS: Final = 1.0
"""and once more every so many seconds."""
MODEM_SECONDS: Final = 0.5
"""How often it is looked how the modem lines are."""
SIGNATURE: Final = b"Minerva"
_DRAIN_SECONDS: Final = 5.0
_DRAIN_LOOK: Final = 0.02
_ACCEPT_PAUSE: Final = 1.0
_READY: Final = Modem.CTS | Modem.DSR | Modem.CD
_FLOW_IN: Final = {
    Flow.NONE: Control.FLOW_IN_NONE,
    Flow.XONXOFF: Control.FLOW_IN_XONXOFF,
    Flow.RTSCTS: Control.FLOW_IN_HARDWARE,
    Flow.DSRDTR: Control.FLOW_IN_DTR,
}


class ToolFront:
    """One port of one console.

    ``user()`` is whose rights those have who come now. ``may`` says whether a user may "attach", and while it
    is attached, "view" and "write".
    """

    def __init__(
        self,
        runner: Runner,
        *,
        user: Callable[[], str],
        telnet: bool,
        may: Callable[[str, str], bool],
        break_seconds: Callable[[], float] = lambda: BREAK_SECONDS,
    ) -> None:
        self._runner = runner
        self._user = user
        self._telnet = telnet
        self._may = may
        self._break_seconds = break_seconds
        self._places = Logins(MAX_OF_SOURCE, MAX_CONNECTIONS)
        self._paces = Paces(BURST, PACE_SECONDS)

    async def serve(self, listener: socket.socket, connections: Connections) -> None:
        """Serve those who connect to ``listener``, until this is cancelled."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:
                # Too many files are open, say: those who are here go on.
                log.warning("console %s: a connection was not accepted: %s", self._name, error)
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            self._admit(sock, address, connections)

    @property
    def _name(self) -> str:
        return self._runner.hub.name

    def _admit(self, sock: socket.socket, address: object, connections: Connections) -> None:
        user = self._user()
        kind = "telnet" if self._telnet else "tcp"
        where = str(address[0]) if isinstance(address, tuple) else ""
        source = f"{kind} {where}".rstrip()
        if not self._paces.take(source_of(where), time.monotonic()):
            # There is no login that would stop it. Not told: whoever comes so often would fill the logs.
            sock.close()
            return
        number = None
        if self._may(user, "attach"):
            number = self._places.enter(source_of(where), lambda: _cancel(task))
        if number is None:
            log.warning("console %s: %s from %s is refused", self._name, printable(user), source)
            sock.close()
            return
        task = asyncio.get_running_loop().create_task(self._connection(sock, user, source))
        connections.add(task)
        task.add_done_callback(lambda _: self._places.leave(number))

    async def _connection(self, sock: socket.socket, user: str, source: str) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            keep_alive(sock)
        kind = _TelnetConnection if self._telnet else _Connection
        connection = kind(self._runner, sock)
        try:
            await connection.run(user, source, partial(self._may, user), self._break_seconds())
        except Exception as error:
            # One connection must not end the others, nor fail silently.
            log.error("console %s: internal error on a connection", self._name, exc_info=error)


class _Connection:
    """A tool that wants the bytes alone."""

    def __init__(self, runner: Runner, sock: socket.socket) -> None:
        self._runner = runner
        self._hub = runner.hub
        self._line = SocketLine(sock)
        self._attachment: Attachment | None = None
        self._writer = False
        self._break_seconds = BREAK_SECONDS
        self._readable = asyncio.Event()
        self._room = asyncio.Event()
        self._gap = 0

    async def run(self, user: str, source: str, may: Callable[[str], bool], break_seconds: float) -> None:
        """Serve it until it leaves, or its rights end."""
        self._writer, self._break_seconds = may("write"), break_seconds
        attachment = self._attachment = self._hub.attach(
            user,
            mode=Mode.WRITE if self._writer else Mode.READ,
            queue=RING_SIZE,
            source=source,
            on_readable=self._readable.set,
            on_room=self._room.set,
            now=time.time(),
        )
        reason = ""
        tasks: list[asyncio.Task[None]] = []
        try:
            await self.begin()
            tasks = [
                asyncio.ensure_future(each)
                for each in (self._to_device(), self._to_tool(), self._review(user, may))
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except BackendError as error:
            reason = str(error)
        finally:
            for task in tasks:
                task.cancel()
            self._line.close()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
                await self.end()
            finally:
                if self._gap:
                    log.warning("console %s: %s was too slow for %d bytes", self._hub.name, source, self._gap)
                self._hub.detach(attachment, time.time(), reason)

    async def begin(self) -> None:
        """Say what is to be said first."""

    async def end(self) -> None:
        """Undo what is to be undone."""

    async def received(self, data: bytes) -> None:
        """Take bytes from the tool."""
        await self._input(data)

    async def say(self, data: bytes) -> None:
        """Send the tool what the device said."""
        await self._line.write(data)

    async def _to_device(self) -> None:
        while data := await self._line.read():
            await self.received(data)

    async def _to_tool(self) -> None:
        attachment = self._here()
        while True:
            item = self._hub.read(attachment)
            if isinstance(item, bytes):
                await self.say(item)
            elif isinstance(item, Gap):
                self._gap += item.lost
            elif item is not None:
                # The lease may have moved, or the device gone.
                self._room.set()
            elif attachment.ended is not None:
                return
            else:
                await self._readable.wait()
                self._readable.clear()

    async def _review(self, user: str, may: Callable[[str], bool]) -> None:
        """Go by the rights of now, for as long as there are any."""
        attachment = self._here()
        while may("view"):
            if may("write") is not self._writer and attachment.ended is None:
                self._writer = not self._writer
                self._hub.allow_write(attachment, self._writer, time.time())
                if self._writer:
                    self._hub.request_write(attachment, time.time())
                self._room.set()
            await asyncio.sleep(REVIEW_SECONDS)
        raise BackendError(f"{printable(user)} has no rights at {self._hub.name} any more")

    async def _input(self, data: bytes) -> None:
        """Hand what the tool sent to the device, when it may write and there is room."""
        hub, attachment = self._hub, self._here()
        rest = memoryview(data)
        while rest and self._writer and attachment.ended is None:
            if hub.state in (State.DOWN, State.UNKNOWN):
                # As on a line whose other end is unplugged.
                return
            room = hub.input_room(attachment) if hub.writes(attachment) else 0
            if room <= 0:
                await self._room.wait()
                self._room.clear()
                continue
            hub.input(attachment, bytes(rest[:room]), time.time())
            rest = rest[room:]

    def _here(self) -> Attachment:
        assert self._attachment is not None
        return self._attachment


class _TelnetConnection(_Connection):
    """A tool that speaks telnet, and RFC 2217 if it likes."""

    def __init__(self, runner: Runner, sock: socket.socket) -> None:
        super().__init__(runner, sock)
        self._telnet = Telnet(
            ours=(BINARY, ECHO, SUPPRESS_GO_AHEAD, COM_PORT), theirs=(BINARY, SUPPRESS_GO_AHEAD, COM_PORT)
        )
        self._to_send = bytearray()
        self._sending = asyncio.Lock()
        self._go = asyncio.Event()
        self._go.set()
        self._virtual = LineSettings()
        self._before: LineSettings | None = None
        self._changed_line: SerialLine | None = None
        self._break_began: float | None = None
        self._modem_mask = 255
        self._modem_told: Modem | None = None
        self._watch: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Offer what every tool needs: all bytes, and no echo of its own."""
        telnet = self._telnet
        telnet.will(ECHO)
        telnet.will(SUPPRESS_GO_AHEAD)
        telnet.do(SUPPRESS_GO_AHEAD)
        telnet.will(BINARY)
        telnet.do(BINARY)
        await self._flush()

    async def end(self) -> None:
        """Set the line as it was before."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        line = self._real_line()
        # Another line, by another configuration, is none of ours to set.
        if self._before is not None and line is not None and line is self._changed_line:
            try:
                await line.configure(self._before)
            except BackendError as error:
                log.warning("console %s: the line stays as the tool set it: %s", self._hub.name, error)

    async def received(self, data: bytes) -> None:
        """Take bytes from the tool."""
        for event in self._telnet.receive(data):
            await self._take(event)
        await self._flush()

    async def say(self, data: bytes) -> None:
        """Send the tool what the device said, unless it wants us to wait."""
        await self._go.wait()
        self._telnet.send(data)
        await self._flush()

    async def _take(self, event: TelnetEvent) -> None:
        match event:
            case Data():
                await self._flush()
                await self._input(event.data)
            case Command() if event.code == BRK:
                self._send_break(self._break_seconds)
            case Option() if event.option == COM_PORT and event.on and self._watch is None:
                self._watch = asyncio.ensure_future(self._watch_modem())
            case Subnegotiation() if event.option == COM_PORT:
                try:
                    message = Message.decode(event.data)
                except Rfc2217Error as error:
                    log.debug("console %s: %s", self._hub.name, error)
                    return
                if not message.answer:
                    await self._serve(message)

    async def _flush(self) -> None:
        async with self._sending:
            self._to_send += self._telnet.to_send()
            if self._to_send:
                await self._line.flush(self._to_send)

    # -- the line

    def _real_line(self) -> SerialLine | None:
        """Return the serial line behind the console, if there is one and it is there."""
        backend = self._runner.backend
        if self._hub.state in (State.DOWN, State.UNKNOWN) or Capability.LINE not in backend.capabilities:
            return None
        return cast("SerialLine", backend)

    def _settings(self) -> LineSettings:
        line = self._real_line()
        return self._virtual if line is None else line.settings

    async def _configure(self, settings: LineSettings) -> None:
        """Change the line; of one that is none, or if the tool does not write, only what we say."""
        line, before = self._real_line(), self._settings()
        if settings == before or not self._hub.writes(self._here()):
            return
        if line is None:
            self._virtual = settings
            return
        await self._drain()
        try:
            await line.configure(settings)
        except BackendError as error:
            log.info("console %s: %s", self._hub.name, error)
        else:
            if line is not self._changed_line:
                self._before, self._changed_line = before, line

    async def _drain(self) -> None:
        """Wait until the device has been sent what was typed before: it is meant for the old speed."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._hub.input_waiting and time.monotonic() < deadline:
            await asyncio.sleep(_DRAIN_LOOK)

    def _send_break(self, seconds: float) -> None:
        try:
            self._hub.send_break(self._here(), time.time(), seconds)
        except HubError as error:
            # Nothing to tell of: a stranger may ask for it with every two bytes.
            log.debug("console %s: %s", self._hub.name, error)

    async def _modem(self) -> Modem:
        if self._hub.state in (State.DOWN, State.UNKNOWN):
            return Modem.NONE
        line = self._real_line()
        return _READY if line is None else await line.modem()

    async def _watch_modem(self) -> None:
        while True:
            await self._tell_modem()
            await asyncio.sleep(MODEM_SECONDS)

    async def _tell_modem(self) -> None:
        """Tell how the modem lines are, if the tool wants to know and they have changed."""
        now, told = await self._modem(), self._modem_told
        self._modem_told = now
        if told is not None and not (now ^ told).value & self._modem_mask:
            return
        changed = 0 if told is None else (now ^ told).value >> 4
        self._answer(Message(What.NOTIFY_MODEMSTATE, (now.value | changed) & self._modem_mask))
        await self._flush()

    # -- RFC 2217

    def _answer(self, message: Message) -> None:
        self._telnet.subnegotiate(COM_PORT, replace(message, answer=True).encode())

    async def _serve(self, message: Message) -> None:
        """Do what a message says; the answer is how things are then."""
        what, value = message.what, message.value
        match what:
            case What.SIGNATURE:
                if not message.text:
                    self._answer(Message(what, text=SIGNATURE + b" " + self._hub.name.encode()))
            case What.SET_BAUDRATE | What.SET_DATASIZE | What.SET_PARITY | What.SET_STOPSIZE:
                if value and (wanted := _changed(self._settings(), what, value)) is not None:
                    await self._configure(wanted)
                self._answer(Message(what, _value(self._settings(), what)))
            case What.SET_CONTROL:
                await self._control(value)
            case What.FLOWCONTROL_SUSPEND:
                self._go.clear()
            case What.FLOWCONTROL_RESUME:
                self._go.set()
            case What.SET_MODEMSTATE_MASK:
                self._modem_mask, self._modem_told = value, None
                self._answer(message)
                await self._tell_modem()
            case What.SET_LINESTATE_MASK:
                # We cannot know of errors on the line, so there is never anything to tell.
                self._answer(message)
            case What.PURGE_DATA:
                if value in (1, 3):
                    self._skip()
                self._answer(message)
            case What.NOTIFY_LINESTATE | What.NOTIFY_MODEMSTATE:
                pass  # only a server says that

    def _skip(self) -> None:
        """Forget what the device said and the tool was not sent yet."""
        while self._hub.read(self._here()) is not None:
            self._room.set()

    async def _control(self, value: int) -> None:
        line = self._real_line()
        writes = self._hub.writes(self._here())
        dtr, rts = (True, True) if line is None else line.lines()
        match value:
            case Control.BREAK_ON:
                self._break_began = time.monotonic()
                answer = value
            case Control.BREAK_OFF:
                if self._break_began is not None:
                    lasted = time.monotonic() - self._break_began
                    self._send_break(min(max(lasted, 0.001), MAX_BREAK_SECONDS))
                    self._break_began = None
                answer = value
            case Control.BREAK_ASK:
                answer = Control.BREAK_OFF if self._break_began is None else Control.BREAK_ON
            case Control.DTR_ASK | Control.DTR_ON | Control.DTR_OFF:
                if line is not None and writes and value != Control.DTR_ASK:
                    dtr = value == Control.DTR_ON
                    await self._set_lines(line, dtr=dtr)
                answer = Control.DTR_ON if dtr else Control.DTR_OFF
            case Control.RTS_ASK | Control.RTS_ON | Control.RTS_OFF:
                if line is not None and writes and value != Control.RTS_ASK:
                    rts = value == Control.RTS_ON
                    await self._set_lines(line, rts=rts)
                answer = Control.RTS_ON if rts else Control.RTS_OFF
            case Control.FLOW_IN_ASK | Control.FLOW_IN_NONE | Control.FLOW_IN_XONXOFF:
                answer = _FLOW_IN[self._settings().flow]
            case Control.FLOW_IN_HARDWARE | Control.FLOW_IN_DTR:
                answer = _FLOW_IN[self._settings().flow]
            case _:
                if (flow := FLOWS.get(cast("Control", value))) is not None:
                    await self._configure(replace(self._settings(), flow=flow))
                answer = CONTROL_OF[self._settings().flow]
        self._answer(Message(What.SET_CONTROL, answer))

    async def _set_lines(self, line: SerialLine, *, dtr: bool | None = None, rts: bool | None = None) -> None:
        try:
            await line.set_lines(dtr=dtr, rts=rts)
        except BackendError as error:
            log.info("console %s: %s", self._hub.name, error)


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def _changed(settings: LineSettings, what: What, value: int) -> LineSettings | None:
    """Return the settings with one changed; None if there is no such value."""
    match what:
        case What.SET_BAUDRATE:
            return replace(settings, speed=value)
        case What.SET_DATASIZE if 5 <= value <= 8:
            return replace(settings, data_bits=value)
        case What.SET_PARITY if value <= len(PARITIES):
            return replace(settings, parity=PARITIES[value - 1])
        case What.SET_STOPSIZE if value <= len(STOP_BITS):
            return replace(settings, stop_bits=STOP_BITS[value - 1])
    return None


def _value(settings: LineSettings, what: What) -> int:
    match what:
        case What.SET_BAUDRATE:
            return settings.speed
        case What.SET_DATASIZE:
            return settings.data_bits
        case What.SET_PARITY:
            return 1 + PARITIES.index(settings.parity)
        case _:
            return 1 + STOP_BITS.index(settings.stop_bits)
