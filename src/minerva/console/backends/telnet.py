"""Ports of terminal servers: telnet alone, or with RFC 2217, which sets up the serial line there, too."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Final

from minerva.console.backends.base import (
    BackendError,
    Base,
    Capability,
    Dialer,
    LineSettings,
    Modem,
    SystemDialer,
    dial,
)
from minerva.console.backends.stream import SocketLine
from minerva.console.port_config import Rfc2217Port, TelnetPort
from minerva.console.rfc2217 import (
    FLOWS,
    PARITIES,
    STOP_BITS,
    Control,
    Message,
    Rfc2217Error,
    What,
    settings_messages,
)
from minerva.console.telnet import (
    BINARY,
    BRK,
    COM_PORT,
    ECHO,
    SUPPRESS_GO_AHEAD,
    Data,
    Option,
    Subnegotiation,
    Telnet,
    TelnetEvent,
)
from minerva.core.text import printable

log = logging.getLogger(__name__)

MAX_READ_AHEAD: Final = 262_144
"""Bytes that wait for the first who reads; older ones are lost."""
ANSWER_SECONDS: Final = 10.0
"""How long a server has to answer a request."""


class TelnetBackend(Base):
    """A port with telnet. The server may echo and be binary."""

    def __init__(self, port: TelnetPort | Rfc2217Port, dialer: Dialer | None = None) -> None:
        self._host, self._port = port.host, port.port
        self._dialer = dialer or SystemDialer()
        self._line: SocketLine | None = None
        self._telnet = Telnet()
        self._writing = asyncio.Lock()
        self._read_ahead = bytearray()
        self._to_send = bytearray()

    @property
    def capabilities(self) -> Capability:
        """Telnet has a command for a break."""
        return Capability.BREAK

    def describe(self) -> str:
        """Return the address."""
        return f"telnet {self.where}"

    @property
    def where(self) -> str:
        """The address, fit for a terminal."""
        return f"{printable(self._host)} port {self._port}"

    async def open(self) -> None:
        """Connect."""
        line = SocketLine(await dial(self._dialer, self._host, self._port))
        self._line = line
        self._telnet = Telnet(ours=(BINARY, SUPPRESS_GO_AHEAD), theirs=(BINARY, ECHO, SUPPRESS_GO_AHEAD))
        self._read_ahead.clear()
        self._to_send.clear()

    async def read(self) -> bytes:
        """Return what the device says next."""
        while not self._read_ahead:
            if not await self._receive():
                return b""
        data = bytes(self._read_ahead)
        self._read_ahead.clear()
        return data

    async def write(self, data: bytes) -> None:
        """Send ``data``."""
        self._telnet.send(data)
        await self._flush()

    async def send_break(self, seconds: float) -> None:  # noqa: ARG002  # the server decides how long
        """Send telnet's break."""
        self._telnet.command(BRK)
        await self._flush()

    async def close(self) -> None:
        """Close the connection."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def handle(self, event: TelnetEvent) -> None:
        """Take an event other than data."""

    async def _receive(self) -> bool:
        """Take what comes next; return False at the end of the connection."""
        data = await self._open_line().read()
        for event in self._telnet.receive(data):
            if isinstance(event, Data):
                self._read_ahead += event.data
                # While the line is being set up, nobody reads, and the device may say what it likes.
                del self._read_ahead[:-MAX_READ_AHEAD]
            else:
                self.handle(event)
        await self._flush()
        return bool(data)

    async def _flush(self) -> None:
        """Send what is to be sent; one at a time, or it would change places."""
        async with self._writing:
            self._to_send += self._telnet.to_send()
            if self._to_send:
                await self._open_line().flush(self._to_send)

    def _open_line(self) -> SocketLine:
        if self._line is None:
            raise BackendError(f"{self.where} is not open")
        return self._line


class Rfc2217Backend(TelnetBackend):
    """A port with telnet and RFC 2217."""

    def __init__(self, port: Rfc2217Port, dialer: Dialer | None = None) -> None:
        super().__init__(port, dialer)
        self._wanted = LineSettings.parse(port.speed, port.framing, port.flow)
        self._settings = self._wanted
        self._wanted_lines = port.dtr, port.rts
        self._dtr, self._rts = self._wanted_lines
        self._modem = Modem.NONE
        self._signature = ""
        self._answers: dict[What, asyncio.Future[int]] = {}
        self._agreed: asyncio.Future[int] | None = None
        self._configuring = asyncio.Lock()
        self._go = asyncio.Event()

    @property
    def capabilities(self) -> Capability:
        """All that a line can do."""
        return Capability.BREAK | Capability.LINE

    @property
    def settings(self) -> LineSettings:
        """What the server says that speed and framing are."""
        return self._settings

    def describe(self) -> str:
        """Return the address, what the server calls itself, and the speed."""
        named = f" ({self._signature})" if self._signature else ""
        return f"RFC 2217 {self.where}{named} at {self._settings}"

    async def open(self) -> None:
        """Connect, and set up the line."""
        await super().open()
        self._modem, self._signature = Modem.NONE, ""
        self._answers.clear()
        self._go.set()
        self._agreed = asyncio.get_running_loop().create_future()
        telnet = self._telnet
        telnet.will(COM_PORT)
        telnet.will(BINARY)
        telnet.do(BINARY)
        telnet.will(SUPPRESS_GO_AHEAD)
        telnet.do(SUPPRESS_GO_AHEAD)
        # Nobody else reads yet.
        reading = asyncio.ensure_future(self._read_while_opening())
        try:
            await self._flush()
            await self._agree(reading)
            self._say(Message(What.SIGNATURE))
            self._settings = await self._ask_for(self._wanted, reading)
            self._dtr, self._rts = self._wanted_lines
            self._say_lines(dtr=self._dtr, rts=self._rts)
            await self._flush()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        if self._settings != self._wanted:
            log.warning("%s: the line is at %s instead of %s", self.where, self._settings, self._wanted)

    async def write(self, data: bytes) -> None:
        """Send ``data``, unless the server wants us to wait."""
        await self._go.wait()
        await super().write(data)

    async def send_break(self, seconds: float) -> None:
        """Have the line's break on for so long."""
        self._say(Message(What.SET_CONTROL, Control.BREAK_ON))
        await self._flush()
        try:
            await asyncio.sleep(seconds)
        finally:
            if self._line is not None:
                self._say(Message(What.SET_CONTROL, Control.BREAK_OFF))
                await self._flush()

    async def configure(self, settings: LineSettings) -> LineSettings:
        """Change speed and framing; return what the server made of it. Somebody must be reading."""
        self._settings = await self._ask_for(settings)
        return self._settings

    async def set_lines(self, *, dtr: bool | None = None, rts: bool | None = None) -> None:
        """Assert or clear DTR and RTS."""
        self._dtr = self._dtr if dtr is None else dtr
        self._rts = self._rts if rts is None else rts
        self._say_lines(dtr=dtr, rts=rts)
        await self._flush()

    def lines(self) -> tuple[bool, bool]:
        """Return whether DTR and RTS are asserted."""
        return self._dtr, self._rts

    async def modem(self) -> Modem:
        """Return the lines that the device asserts, as the server told us last."""
        return self._modem

    async def close(self) -> None:
        """Close the connection."""
        await super().close()
        self._go.set()
        for answer in self._answers.values():
            answer.cancel()
        self._answers.clear()

    def handle(self, event: TelnetEvent) -> None:
        """Take what the server says about the line."""
        if isinstance(event, Option) and event.option == COM_PORT and event.ours:
            if self._agreed is not None and not self._agreed.done():
                self._agreed.set_result(event.on)
        elif isinstance(event, Subnegotiation) and event.option == COM_PORT:
            try:
                message = Message.decode(event.data)
            except Rfc2217Error as error:
                log.debug("%s: %s", self.where, error)
                return
            if message.answer:
                self._take(message)

    def _take(self, message: Message) -> None:
        match message.what:
            case What.NOTIFY_MODEMSTATE:
                self._modem = Modem(message.value & 0xF0)
            case What.FLOWCONTROL_SUSPEND:
                self._go.clear()
            case What.FLOWCONTROL_RESUME:
                self._go.set()
            case What.SIGNATURE:
                self._signature = printable(message.text[:80].decode("utf-8", "replace"))
            case what if (answer := self._answers.get(what)) is not None and not answer.done():
                # The state of a line, or of a break, is no answer to a question about the flow control.
                if what is not What.SET_CONTROL or message.value in FLOWS:
                    answer.set_result(message.value)

    def _say(self, message: Message) -> None:
        self._telnet.subnegotiate(COM_PORT, message.encode())

    def _say_lines(self, *, dtr: bool | None, rts: bool | None) -> None:
        if dtr is not None:
            self._say(Message(What.SET_CONTROL, Control.DTR_ON if dtr else Control.DTR_OFF))
        if rts is not None:
            self._say(Message(What.SET_CONTROL, Control.RTS_ON if rts else Control.RTS_OFF))

    async def _read_while_opening(self) -> None:
        while await self._receive():
            pass
        raise BackendError(f"{self.where} closed the connection")

    async def _agree(self, reading: asyncio.Future[None]) -> None:
        assert self._agreed is not None
        if not await self._wait(self._agreed, reading):
            raise BackendError(f"{self.where} does not speak RFC 2217: set the type of the console to telnet")

    async def _ask_for(
        self, settings: LineSettings, reading: asyncio.Future[None] | None = None
    ) -> LineSettings:
        async with self._configuring:
            asked = settings_messages(settings)
            loop = asyncio.get_running_loop()
            self._answers = {message.what: loop.create_future() for message in asked}
            for message in asked:
                self._say(message)
            await self._flush()
            values = {}
            for message in asked:
                # Not every server answers everything.
                value = await self._wait(self._answers[message.what], reading)
                values[message.what] = message.value if value is None else value
            self._answers.clear()
            return _settings(values, settings)

    async def _wait(self, answer: asyncio.Future[int], reading: asyncio.Future[None] | None) -> int | None:
        """Return an answer, or None if none comes in time; raise what ends the reading before."""
        waiting: set[asyncio.Future[int] | asyncio.Future[None]] = {answer}
        if reading is not None:
            waiting.add(reading)
        await asyncio.wait(waiting, timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if answer.cancelled():
            raise BackendError(f"{self.where} is closed")
        if answer.done():
            return answer.result()
        if reading is not None and reading.done():
            reading.result()
        return None


def _settings(values: dict[What, int], asked: LineSettings) -> LineSettings:
    """Return what a server has answered; what makes no sense is taken as what was asked."""
    found = replace(asked, speed=values[What.SET_BAUDRATE] or asked.speed)
    if 5 <= (bits := values[What.SET_DATASIZE]) <= 8:
        found = replace(found, data_bits=bits)
    if 1 <= (parity := values[What.SET_PARITY]) <= len(PARITIES):
        found = replace(found, parity=PARITIES[parity - 1])
    if 1 <= (stop := values[What.SET_STOPSIZE]) <= len(STOP_BITS):
        found = replace(found, stop_bits=STOP_BITS[stop - 1])
    return replace(found, flow=FLOWS.get(Control(values[What.SET_CONTROL]), asked.flow))
