"""Drives the hub of one console on its line: for ever, whoever is attached.

The runner keeps one connection to the device and makes it again, with back-off, whenever it is lost. What
the device says goes to the hub and to all sinks (records, alerts) at one place, and so do the hub's events.
Input goes to the device at the pace that it can bear. A runner shares nothing with others: a line that
breaks, or a sink that fails, disturbs no other console.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

from minerva.console.backends.base import Backend, BackendError, Unsupported
from minerva.console.hub import Hub, HubEvent
from minerva.core.backoff import Backoff
from minerva.core.errors import MinervaError
from minerva.core.text import printable

log = logging.getLogger(__name__)

FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 60.0
JITTER: Final = 0.25
STEADY_SECONDS: Final = 10.0
"""A connection that held so long was a good one: after it, the back-off begins anew."""

GATHER_SECONDS: Final = 0.03
"""Output that comes in small pieces is gathered so long: nobody sees that, and it saves most of the work."""
LIVELY_GATHER_SECONDS: Final = 0.01
LIVELY_SECONDS: Final = 1.0
"""What comes so soon after input is gathered for a shorter time: a program may wait for each answer."""
_SMALL: Final = 1024
_AT_ONCE: Final = 8192
"""So much of what a device said is handed on before others have their turn."""
_COSTLY: Final = 0.002
_PIECE: Final = 1024
"""So many bytes of input are written at once, lest a break has to wait for long."""
_PACE_SECONDS: Final = 0.02
"""With a limit to the pace, so much is written at once as the device takes in this time."""


class Sink(Protocol):
    """Who gets all that happens at a console: its record, its alerts, the audit.

    An exception from it is logged once and has no other effect.
    """

    def output(self, data: bytes) -> None:
        """Take what the device said just now."""

    def event(self, event: HubEvent) -> None:
        """Take what happened."""


class Runner:
    """Keeps ``hub`` connected by ``backend``, from :meth:`start` until :meth:`stop`.

    ``input_rate`` is how many bytes a second the device is sent at most (0: no limit), ``line_delay`` how
    many seconds it is left in peace after each line.
    """

    def __init__(
        self,
        hub: Hub,
        backend: Backend,
        sinks: Sequence[Sink] = (),
        *,
        input_rate: int = 0,
        line_delay: float = 0.0,
        clock: Callable[[], float] = time.time,
        backoff: Backoff | None = None,
    ) -> None:
        self.hub = hub
        self.backend = backend
        self.attempts = 0
        """How often it was tried to reach the device."""
        self._sinks = list(sinks)
        self._failed: set[int] = set()
        self._clock = clock
        self.input_rate = input_rate
        self.line_delay = line_delay
        self._backoff = backoff or Backoff(
            FIRST_DELAY, LONGEST_DELAY, jitter=JITTER, random=random.Random().random
        )
        self._task: asyncio.Task[None] | None = None
        self._to_write = asyncio.Event()
        self._pumping = False
        hub.on_event = self._has_event

    def start(self) -> None:
        """Begin to reach for the device."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"console {self.hub.name}")

    async def pause(self, reason: str) -> None:
        """Give the device up until :meth:`start`, maybe with another backend; all stay attached."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._backoff.reset()
        self.hub.upstream_down(reason, self._clock())
        self.pump()

    async def stop(self, reason: str = "the console server ends") -> None:
        """Give the device up, and end all attachments."""
        await self.pause(reason)
        self.hub.detach_all(reason, self._clock())
        self.pump()

    def add_sink(self, sink: Sink) -> None:
        """Let one more have all that happens from now on."""
        self._sinks.append(sink)

    def remove_sink(self, sink: Sink) -> None:
        """Let it have nothing any more."""
        self._sinks.remove(sink)
        self._failed.discard(id(sink))

    def pump(self) -> None:
        """Hand the hub's events to the sinks now; happens soon by itself."""
        self._pumping = False
        while (event := self.hub.next_event()) is not None:
            for sink in self._sinks:
                try:
                    sink.event(event)
                except Exception as error:
                    self._sink_failed(sink, error)
        if self.hub.input_waiting:
            self._to_write.set()

    # -- inside

    def _has_event(self) -> None:
        if not self._pumping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self.pump)

    def _output(self, data: bytes) -> None:
        """Hand what the device said to the hub and all sinks: the only place where that is done."""
        for sink in self._sinks:
            try:
                sink.output(data)
            except Exception as error:
                self._sink_failed(sink, error)
        self.hub.output(data, self._clock())

    def _sink_failed(self, sink: Sink, error: Exception) -> None:
        if id(sink) in self._failed:
            return
        self._failed.add(id(sink))
        what = type(sink).__name__
        if isinstance(error, MinervaError | OSError):
            log.error("console %s: %s fails: %s", self.hub.name, what, printable(str(error)))
        else:
            log.error("console %s: %s fails", self.hub.name, what, exc_info=error)

    async def _run(self) -> None:
        while True:
            reason = await self._connection()
            self.hub.upstream_down(reason, self._clock())
            delay = self._backoff.failed()
            log.log(
                logging.WARNING if self._backoff.failures == 1 else logging.DEBUG,
                "console %s is down: %s; next attempt in %.0f s",
                self.hub.name,
                printable(reason),
                delay,
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self.backend.returned()

    async def _connection(self) -> str:
        """Hold one connection as long as it goes; return why it ended."""
        self.attempts += 1
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self.backend.open()
            log.info("console %s is up: %s", self.hub.name, printable(self.backend.describe()))
            self.hub.upstream_up(self._clock())
            began = loop.time()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read())
                group.create_task(self._write())
        except BackendError as error:
            reason = str(error)
        except ExceptionGroup as errors:
            reason = self._reason(errors.exceptions[0])
        except Exception as error:
            reason = self._reason(error)
        else:
            raise AssertionError("reading ends only by an exception")
        finally:
            await self.backend.close()
        if loop.time() - began >= STEADY_SECONDS:
            self._backoff.reset()
        return reason

    def _reason(self, error: Exception) -> str:
        if isinstance(error, BackendError):
            return str(error)
        # A mistake of ours in one backend must not end the console, nor be hidden.
        log.error("console %s: internal error", self.hub.name, exc_info=error)
        return f"internal error: {type(error).__name__}"

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        due = lively = 0.0
        sent = self.hub.bytes_out
        while data := await self.backend.read():
            await self._take(data)
            now = loop.time()
            if sent != self.hub.bytes_out:
                sent, lively = self.hub.bytes_out, now + LIVELY_SECONDS
            pause = LIVELY_GATHER_SECONDS if now < lively else GATHER_SECONDS
            # The first piece after a silence is shown at once: an echo must not lag.
            if len(data) < _SMALL and now < due:
                await asyncio.sleep(pause)
                now += pause
            else:
                # A line that always has more to say must not keep the others from being heard.
                await asyncio.sleep(0)
            due = now + 2 * pause
        raise BackendError("the device ended the connection")

    async def _take(self, data: bytes) -> None:
        """Hand on what the device said, a piece at a time: it may be costly, such as thousands of escapes.

        At most half of the time is spent on one device, and the device is read no faster than that.
        """
        loop = asyncio.get_running_loop()
        rest = memoryview(data)
        while len(rest) > _AT_ONCE:
            began = loop.time()
            self._output(bytes(rest[:_AT_ONCE]))
            rest = rest[_AT_ONCE:]
            took = loop.time() - began
            try:
                await asyncio.sleep(took if took > _COSTLY else 0)
            except asyncio.CancelledError:
                self._output(bytes(rest))  # it has been said
                raise
        self._output(bytes(rest))

    async def _write(self) -> None:
        hub = self.hub
        while True:
            await self._to_write.wait()
            self._to_write.clear()
            while hub.input_waiting:
                for wanted in hub.break_wanted():
                    await self._break(wanted.seconds)
                data = self._piece(hub.to_upstream(_PIECE))
                if data:
                    await self.backend.write(data)
                    hub.written(len(data))
                    await self._pace(data)

    def _piece(self, data: bytes) -> bytes:
        """Return as much of ``data`` as may be written at once."""
        if self.input_rate:
            data = data[: max(1, int(self.input_rate * _PACE_SECONDS))]
        if self.line_delay and (end := _line_end(data)):
            data = data[:end]
        return data

    async def _pace(self, data: bytes) -> None:
        delay = len(data) / self.input_rate if self.input_rate else 0.0
        if self.line_delay and _line_end(data) == len(data):
            delay += self.line_delay
        if delay:
            await asyncio.sleep(delay)

    async def _break(self, seconds: float) -> None:
        try:
            await self.backend.send_break(seconds)
        except Unsupported as error:
            self.hub.message("console", str(error), self._clock())


def _line_end(data: bytes) -> int:
    """Return where the first line of ``data`` ends, its CR, LF or both included; 0 if it does not."""
    found = [place for end in (b"\r", b"\n") if (place := data.find(end)) >= 0]
    if not found:
        return 0
    return min(found) + (2 if data[min(found) :].startswith(b"\r\n") else 1)
