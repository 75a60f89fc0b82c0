"""Drives one session in asyncio, for fronts that carry a stream: shows as much as the peer takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from minerva.console.fronts.desk import Desk
from minerva.console.power import PowerAction
from minerva.console.session import Ended, Output, PowerAsked, Session
from minerva.core.errors import MinervaError
from minerva.core.text import printable

TURN: Final = 65_536
"""So many bytes are shown in one go; then others have their turn."""
REVIEW_SECONDS: Final = 15.0
"""How often the rights of who stays attached are looked at again."""


class Peer(Protocol):
    """The stream to the user."""

    @property
    def full(self) -> bool:
        """Whether the user has not taken what it was shown; the driver is to be woken when it has."""

    def show(self, output: Output) -> None:
        """Show something."""

    def listen(self, hungry: bool) -> None:
        """Read what the user types, or leave it."""

    def ended(self, event: Ended) -> None:
        """The session has ended, and everything was shown."""


class Driver:
    """Carries between a session and its peer. ``make`` makes the session and is given what wakes this."""

    def __init__(self, desk: Desk, peer: Peer, make: Callable[[Callable[[], None]], Session]) -> None:
        self._desk = desk
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._over = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._end: Ended | None = None
        self.session = make(self.wake)
        self._review: asyncio.TimerHandle = self._loop.call_later(REVIEW_SECONDS, self._do_review)
        self.wake()

    def wake(self) -> None:
        """See soon what there is to do."""
        if not self._scheduled and not self._over:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def receive(self, data: bytes) -> None:
        """Take what the user typed."""
        self.session.receive(data, self._desk.clock())
        self.wake()

    def send_break(self, seconds: float | None) -> None:
        """Send a break; the user is told if that cannot be."""
        try:
            self.session.send_break(self._desk.clock(), seconds)
        except MinervaError as error:
            self.session.tell(printable(str(error)))

    def close(self, reason: str = "") -> None:
        """End the session: the peer is gone."""
        self._stop()
        self.session.close(self._desk.clock(), reason)

    # -- inside

    def _stop(self) -> None:
        self._over = True
        self._review.cancel()
        if self._timer is not None:
            self._timer.cancel()
        # What switches a machine goes on to its end: it has begun.

    def _turn(self) -> None:
        self._scheduled = False
        if self._over:
            return
        session, now = self.session, self._desk.clock()
        session.pump(now)
        shown = 0
        drained = False
        while not self._peer.full:
            if shown >= TURN:
                self.wake()
                break
            output = session.read()
            if output is None:
                drained = True
                break
            self._peer.show(output)
            shown += len(output) if isinstance(output, bytes) else len(output.text)
        while (event := session.next_event()) is not None:
            if isinstance(event, PowerAsked):
                self._switch(event.action)
            else:
                self._end = event
        if self._end is not None and drained:
            self._stop()
            self._peer.ended(self._end)
            return
        self._peer.listen(session.hungry)
        self._arm(session.next_timer(), now)

    def _arm(self, when: float | None, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if when is not None:
            self._timer = self._loop.call_later(max(0.0, when - now), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.session.on_timer(self._desk.clock())
        self.wake()

    def _do_review(self) -> None:
        self._review = self._loop.call_later(REVIEW_SECONDS, self._do_review)
        self.session.review(self._desk.clock())

    def _switch(self, action: PowerAction | None) -> None:
        task = self._loop.create_task(self._do_switch(action))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _do_switch(self, action: PowerAction | None) -> None:
        session = self.session
        try:
            said = await self._desk.switch(session.identity, session.console, action)
        except MinervaError as error:
            said = str(error)
            self._desk.guard.note(session.identity, "power failed", session.console.name, said, allowed=True)
        session.tell(printable(said))
