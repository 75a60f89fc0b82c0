"""One terminal of the web page, on a websocket.

Binary messages are what the device says and what the user types; messages in text are JSON:
``{"told": TEXT}`` and ``{"state": STATE, "writes": BOOL}`` from the server, ``{"do": NAME, ...}`` from the
page, for what the keys of other fronts do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from minerva.console.fronts.desk import Desk
from minerva.console.power import PowerAction
from minerva.console.session import Output, PowerAsked, Prompt, Session, Told
from minerva.core.errors import MinervaError, UsageError
from minerva.core.text import printable

log = logging.getLogger(__name__)

_REVIEW_SECONDS: Final = 15.0


class WebTerminal:
    """One terminal in a page."""

    session: Session

    def __init__(self, websocket: WebSocket, desk: Desk) -> None:
        self._websocket = websocket
        self._desk = desk
        self._woken = asyncio.Event()
        self._fed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """See what there is to show, and whether there is room for input."""
        self._woken.set()

    async def run(self, still: Callable[[], bool]) -> None:
        """Carry both ways until either end has enough."""
        tasks = [asyncio.ensure_future(each) for each in (self._show(still), self._listen())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect | OSError):
                    log.error("a terminal of the web page: internal error", exc_info=result)
        if self._websocket.application_state is WebSocketState.CONNECTED:
            with contextlib.suppress(WebSocketDisconnect, OSError, RuntimeError):  # it may have gone first
                await self._websocket.close()

    async def _show(self, still: Callable[[], bool]) -> None:
        session = self.session
        review = time.monotonic() + _REVIEW_SECONDS
        state: tuple[str, bool] | None = None
        while True:
            self._woken.clear()
            session.pump(time.time())
            if session.hungry:
                self._fed.set()
            # Sending waits while the page is slow: then the hub skips what it cannot show in time.
            while (output := session.read()) is not None:
                await self._send(output)
            while (event := session.next_event()) is not None:
                if isinstance(event, PowerAsked):
                    self._switch(event.action)
            hub = session.console.hub
            if state != (now := (hub.state.value, hub.writes(session.attachment))):
                state = now
                await self._websocket.send_text(json.dumps({"state": state[0], "writes": state[1]}))
            if session.ended:
                return
            if time.monotonic() >= review:
                review = time.monotonic() + _REVIEW_SECONDS
                if not still():
                    session.close(time.time(), "the login has ended")
                session.review(time.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REVIEW_SECONDS):
                    await self._woken.wait()

    async def _send(self, output: Output) -> None:
        if isinstance(output, bytes):
            await self._websocket.send_bytes(output)
        elif isinstance(output, Told | Prompt):
            await self._websocket.send_text(json.dumps({"told": output.text}))

    async def _listen(self) -> None:
        session = self.session
        while True:
            while not session.hungry:
                self._fed.clear()
                await self._fed.wait()
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if (data := message.get("bytes")) is not None:
                session.receive(data, time.time())
                self.wake()
            elif (text := message.get("text")) is not None:
                try:
                    self._do(json.loads(text), time.time())
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    session.tell("the page said something that is no command")
                except MinervaError as error:
                    session.tell(printable(str(error)))

    def _do(self, command: dict[str, Any], now: float) -> None:
        session = self.session
        match command["do"]:
            case "write":
                session.ask_write(now)
            case "force":
                session.force_write(now)
            case "release":
                session.release(now)
            case "break":
                session.send_break(now)
            case "say":
                session.say(str(command["text"]), now)
            case "who":
                session.tell(session.who())
            case "power":
                action = command["action"]
                session.ask_power(None if action == "status" else PowerAction(action))
            case _:
                raise UsageError("the page wants something that is not known here")
        self.wake()

    def _switch(self, action: PowerAction | None) -> None:
        task = asyncio.ensure_future(self._do_switch(action))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _do_switch(self, action: PowerAction | None) -> None:
        try:
            said = await self._desk.switch(self.session.identity, self.session.console, action)
        except MinervaError as error:
            said = str(error)
        self.session.tell(printable(said))
