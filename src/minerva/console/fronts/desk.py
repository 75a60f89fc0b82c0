"""What can be done at a console server without staying attached: for one who has logged in, by any front."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from minerva.console.access import Action, Guard, Identity
from minerva.console.audit import AuditWriter
from minerva.console.events import AttachmentInfo, Mode
from minerva.console.hub import NotWriter
from minerva.console.power import Power, PowerAction, PowerState
from minerva.console.session import LONGEST_LINE, Console, Consoles, Session
from minerva.core.errors import UsageError
from minerva.core.text import did_you_mean, printable, shortened

SEND_SECONDS: Final = 60.0
"""How long a device may take to accept what is sent to it at once."""


class Desk:
    """Does what is wanted if it may be done; all of it raises MinervaError, and is in the audit."""

    def __init__(
        self,
        guard: Guard,
        consoles: Consoles,
        audit: AuditWriter,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.guard = guard
        self.consoles = consoles
        self.audit = audit
        self.clock = clock
        self._asking: dict[str, asyncio.Task[PowerState]] = {}
        self._switching: set[str] = set()

    def console(self, identity: Identity, name: str) -> Console:
        """Return a console; to one who may not look at it, it does not exist. Raises UsageError."""
        found = self.consoles.get(name)
        if found is None or not self.guard.may(identity, Action.ATTACH, name):
            self.guard.note(identity, Action.ATTACH.text, name, "no such console for it", allowed=False)
            known = [each for each in self.consoles.names() if self.guard.may(identity, Action.ATTACH, each)]
            raise UsageError(f"there is no console {printable(name)}{did_you_mean(name, known)}")
        return found

    def listing(self, identity: Identity) -> list[dict[str, Any]]:
        """Return the consoles that somebody may look at, as for JSON."""
        return [
            described(console)
            for name in self.consoles.names()
            if self.guard.may(identity, Action.ATTACH, name)
            and (console := self.consoles.get(name)) is not None
        ]

    def who(self, identity: Identity, name: str | None = None) -> list[dict[str, Any]]:
        """Return who is attached, to one console or to all, as for JSON."""
        names = (
            [self.console(identity, name).name]
            if name is not None
            else [each for each in self.consoles.names() if self.guard.may(identity, Action.WHO, each)]
        )
        found = []
        for each in names:
            if (console := self.consoles.get(each)) is not None:
                found += [attached(each, info) for info in console.hub.who()]
        return found

    async def send(self, identity: Identity, name: str, data: bytes, *, force: bool = False) -> None:
        """Have the device get the bytes, as one who writes meanwhile."""
        console = self.console(identity, name)
        if not force:
            self._check_free(identity, console, "send")
        woken = asyncio.Event()
        session = Session(identity, console, self.guard, now=self.clock(), mode=Mode.WRITE, wake=woken.set)
        try:
            if not console.hub.writes(session.attachment):
                session.force_write(self.clock())
            self.guard.note(identity, "send", name, f"{len(data)} bytes")
            session.receive(data, self.clock())
            async with asyncio.timeout(SEND_SECONDS):
                while session.waiting:
                    woken.clear()
                    await woken.wait()
                    session.pump(self.clock())
            if session.input_lost:
                raise UsageError(f"{name} was not sent everything: {session.input_lost}")
        except TimeoutError:
            raise UsageError(f"{name} does not take what it is sent") from None
        finally:
            session.close(self.clock())

    def send_break(self, identity: Identity, name: str, seconds: float | None = None) -> None:
        """Send a break, as one who writes meanwhile."""
        console = self.console(identity, name)
        self.guard.require(identity, Action.BREAK, name)
        self._check_free(identity, console, Action.BREAK.text)
        hub, now = console.hub, self.clock()
        attachment = hub.attach(identity.user, mode=Mode.WRITE, source=identity.source, now=now)
        try:
            hub.send_break(attachment, now, console.break_seconds if seconds is None else seconds)
        finally:
            hub.detach(attachment, now)

    def _check_free(self, identity: Identity, console: Console, what: str) -> None:
        """Raise NotWriter if somebody else writes; then nobody is bothered by being asked to hand over."""
        hub = console.hub
        if hub.holder is not None and not hub.co_writing:
            why = f"{hub.holder.user} writes to {console.name}"
            self.guard.note(identity, what, console.name, why, allowed=False)
            raise NotWriter(f"{printable(why)}: nothing was sent")

    async def power(self, identity: Identity, name: str, action: PowerAction | None) -> str:
        """Switch the machine behind a console, or with None say whether it is on. Return what is so now."""
        console = self.console(identity, name)
        self.guard.require(
            identity,
            Action.POWER_STATUS if action is None else Action.POWER,
            name,
            "" if action is None else action.value,
        )
        return await self.switch(identity, console, action)

    async def switch(self, identity: Identity, console: Console, action: PowerAction | None) -> str:
        """Do what :meth:`power` does for one who has been let already.

        However many ask whether a machine is on, it is asked once at a time; and it does one thing at a time.
        """
        name, power = console.name, console.power
        if power is None:
            raise UsageError(f"nothing is configured to switch the machine of {name}")
        if action is None:
            return f"the machine of {name} is {(await self._power_state(name, power)).value}"
        if name in self._switching:
            raise UsageError(f"the machine of {name} is being switched just now: wait for that")
        self._switching.add(name)
        try:
            console.hub.message(identity.user, f"power {action.value}", self.clock())
            await self.audit.settled()
            await power.act(action)
        finally:
            self._switching.discard(name)
        return f"power {action.value} of {name} has been accepted"

    async def _power_state(self, name: str, power: Power) -> PowerState:
        asking = self._asking.get(name)
        if asking is None:
            asking = self._asking[name] = asyncio.get_running_loop().create_task(power.status())
            asking.add_done_callback(lambda task: self._answered(name, task))
        return await asyncio.shield(asking)

    def _answered(self, name: str, asking: asyncio.Task[PowerState]) -> None:
        del self._asking[name]
        if not asking.cancelled():
            asking.exception()  # whoever asked may be gone

    def say(self, identity: Identity, name: str | None, text: str) -> None:
        """Tell something to all who are attached to a console, or to any."""
        if not text.strip():
            raise UsageError("there is nothing to say")
        names = [self.console(identity, name).name] if name is not None else self.consoles.names()
        for each in names:
            if name is None and not self.guard.may(identity, Action.SAY, each):
                continue
            self.guard.require(identity, Action.SAY, each, text)
            if (console := self.consoles.get(each)) is not None:
                console.hub.message(identity.user, shortened(text, LONGEST_LINE), self.clock())

    def warn_all(self, text: str) -> None:
        """Tell something to all who are attached to any console."""
        for name in self.consoles.names():
            if (console := self.consoles.get(name)) is not None:
                console.hub.message("minerva", text, self.clock())


def described(console: Console) -> dict[str, Any]:
    """Return what there is to say of a console, as for JSON."""
    hub = console.hub
    return {
        "name": console.name,
        "description": console.description,
        "state": hub.state.value,
        "reason": hub.reason,
        "changed": hub.changed_at,
        "writer": None if hub.holder is None else hub.holder.user,
        "attached": len(hub.who()),
        "bytes_in": hub.bytes_in,
        "bytes_out": hub.bytes_out,
        "bytes_lost": hub.bytes_lost,
        "power": console.power is not None,
    }


def attached(console: str, info: AttachmentInfo) -> dict[str, Any]:
    """Return what there is to say of one who is attached, as for JSON."""
    return {
        "console": console,
        "number": info.number,
        "user": info.user,
        "source": info.source,
        "since": info.since,
        "writing": info.writing,
        "waiting": info.waiting,
        "unread": info.unread,
        "lost": info.lost,
    }
