"""The beginning and the end of an ASGI application (ASGI lifespan protocol 2.0)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from minerva.https.errors import HttpUsageError

log = logging.getLogger(__name__)

END_SECONDS = 10.0
"""How long an application may take to clean up, in seconds."""

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An ASGI application, such as one of Starlette's."""


class Lifespan:
    """Tells ``app`` when serving begins and ends. ``state`` is what it wants to find in every request."""

    def __init__(self, app: Application) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Let the application prepare. Raises :class:`HttpUsageError` if it cannot."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            answer = await self._tell("lifespan.startup")
        except BaseException:
            self._task.cancel()
            raise
        if answer is not None and answer["type"] == "lifespan.startup.failed":
            await self._join(END_SECONDS)
            reason = answer.get("message") or "it gives no reason"
            raise HttpUsageError(f"the application cannot start: {reason}")

    async def end(self) -> None:
        """Let the application clean up, for so long as that takes within :data:`END_SECONDS`."""
        if self._task is None:
            return
        try:
            async with asyncio.timeout(END_SECONDS):
                answer = await self._tell("lifespan.shutdown")
        except TimeoutError:
            log.error("the application did not end within %g s", END_SECONDS)
            await self._join(0)
            return
        if answer is not None and answer["type"] == "lifespan.shutdown.failed":
            log.error("the application did not end well: %s", answer.get("message"))
        await self._join(END_SECONDS)

    async def _join(self, seconds: float) -> None:
        assert self._task is not None
        await asyncio.wait([self._task], timeout=seconds)
        if self._task.cancel():
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._to_app.get, self._from_app.put)
        except Exception as error:
            # By its specification the way of an application without a lifespan to say so. One that has
            # failed has told why in a message before.
            log.debug("the application left the lifespan protocol: %r", error)

    async def _tell(self, kind: str) -> Message | None:
        """Send a message and return the answer; ``None`` if the application does not listen."""
        assert self._task is not None
        await self._to_app.put({"type": kind})
        answer = asyncio.get_running_loop().create_task(self._from_app.get())
        try:
            await asyncio.wait([answer, self._task], return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            return None if self._from_app.empty() else self._from_app.get_nowait()
        finally:
            answer.cancel()
