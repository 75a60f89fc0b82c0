"""ASAs and negotiations as objects, on top of :class:`minerva.asa.client.Grasp`.

They keep the handle, the Session ID and the loop count, which RFC 8991 has each call repeat, and clean up
after themselves: an ASA is deregistered, a negotiation declined, when its ``with`` is left.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

from minerva.asa.client import DISCOVERY_TIMEOUT, Grasp
from minerva.grasp.api import AsaError, AsaLocator, ErrorCode, TaggedObjective
from minerva.grasp.constants import GRASP_DEF_TIMEOUT
from minerva.grasp.options import Objective

_SESSION_SURVIVES = frozenset(
    {ErrorCode.unspec, ErrorCode.notObj, ErrorCode.notDry, ErrorCode.noASA, ErrorCode.noValidStep}
)
"""Errors of a step that say that the call was wrong, not that the negotiation is over."""


class Session:
    """One negotiation (RFC 8991 section 2.3.5): a conversation in which each side offers in its turn.

    Use as ``async with session``: left before its end, it is declined.
    """

    def __init__(self, grasp: Grasp, handle: int, number: int | None, objective: Objective) -> None:
        """For :class:`Asa`."""
        self._grasp = grasp
        self._handle = handle
        self._number = number
        self._objective = objective
        self._agreed = number is None

    @property
    def objective(self) -> Objective:
        """What the peer asked for or offered last; once :attr:`agreed`, what was agreed."""
        return self._objective

    @property
    def value(self) -> Any:
        """The value of :attr:`objective`."""
        return self._objective.value

    @property
    def ended(self) -> bool:
        """Whether the negotiation is over, in one way or the other."""
        return self._number is None

    @property
    def agreed(self) -> bool:
        """Whether it ended in agreement."""
        return self._agreed

    async def step(self, objective: Objective, timeout: int = 0) -> Objective:
        """Offer ``objective`` and return the peer's answer, a counter-offer unless :attr:`ended`.

        The loop count goes on from the peer's, whatever ``objective`` has. Raises :class:`AsaError`, with
        ``declined`` if the peer declines.
        """
        offer = replace(objective, loop_count=self._objective.loop_count)
        number = self._open_number()
        async with self._ending_on_error():
            self._number, self._objective = await self._grasp.negotiate_step(
                self._handle, number, offer, timeout
            )
        self._agreed = self._number is None
        return self._objective

    async def offer(self, value: Any, timeout: int = 0) -> Objective:
        """Make a :meth:`step` with the objective of the session and another value."""
        return await self.step(replace(self._objective, value=value), timeout)

    async def wait(self, timeout: int) -> None:
        """Ask the peer for ``timeout`` milliseconds more before the next step."""
        number = self._open_number()
        async with self._ending_on_error():
            await self._grasp.negotiate_wait(self._handle, number, timeout)

    async def accept(self) -> None:
        """End the negotiation with what the peer offered last."""
        await self._end(True, None)
        self._agreed = True

    async def decline(self, reason: str | None = None) -> None:
        """End the negotiation without agreement."""
        await self._end(False, reason)

    async def invalid(self, info: bytes | None = None) -> None:
        """End the negotiation because the peer does not make sense (section 2.3.7)."""
        number, self._number = self._open_number(), None
        await self._grasp.send_invalid(self._handle, number, info)

    async def _end(self, result: bool, reason: str | None) -> None:
        number, self._number = self._open_number(), None
        await self._grasp.end_negotiate(self._handle, number, result, reason)

    def _open_number(self) -> int:
        if self._number is None:
            raise AsaError(ErrorCode.noSession, "the negotiation has ended")
        return self._number

    @asynccontextmanager
    async def _ending_on_error(self) -> AsyncIterator[None]:
        try:
            yield
        except AsaError as error:
            if error.code not in _SESSION_SURVIVES:
                self._number = None
            raise

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.ended:
            with contextlib.suppress(AsaError):  # it is over now, whoever else thinks so too
                await self.decline("broken off")


class Asa:
    """A registered ASA: functions of :class:`Grasp` without the handle, negotiations as :class:`Session`."""

    def __init__(self, grasp: Grasp, name: str, handle: int) -> None:
        """For :meth:`register` and :meth:`connect`."""
        self.grasp = grasp
        self.name = name
        self.handle = handle

    @classmethod
    @asynccontextmanager
    async def register(cls, grasp: Grasp, name: str) -> AsyncIterator[Asa]:
        """Be the ASA ``name`` for the length of a ``with``, on a connection that others may use too."""
        asa = cls(grasp, name, await grasp.register_asa(name))
        try:
            yield asa
        finally:
            if grasp.is_open:
                # If the node goes meanwhile, it is done too.
                with contextlib.suppress(AsaError):
                    await grasp.deregister_asa(asa.handle, name)

    @classmethod
    @asynccontextmanager
    async def connect(cls, name: str, path: str | os.PathLike[str] | None = None) -> AsyncIterator[Asa]:
        """Be the ASA ``name`` on a connection of its own (as :meth:`Grasp.open`)."""
        async with Grasp.connect(path) as grasp, cls.register(grasp, name) as asa:
            yield asa

    async def register_objective(
        self,
        objective: Objective,
        ttl: int = GRASP_DEF_TIMEOUT,
        *,
        discoverable: bool = False,
        overlap: bool = False,
        local: bool = False,
    ) -> None:
        """As :meth:`Grasp.register_objective`."""
        await self.grasp.register_objective(
            self.handle, objective, ttl, discoverable=discoverable, overlap=overlap, local=local
        )

    async def deregister_objective(self, objective: Objective) -> None:
        """As :meth:`Grasp.deregister_objective`."""
        await self.grasp.deregister_objective(self.handle, objective)

    async def discover(
        self, objective: Objective, timeout: int = DISCOVERY_TIMEOUT, minimum_ttl: int = 1
    ) -> list[AsaLocator]:
        """As :meth:`Grasp.discover`."""
        return await self.grasp.discover(self.handle, objective, timeout, minimum_ttl)

    async def negotiate(
        self, objective: Objective, peer: AsaLocator | None = None, timeout: int = 0
    ) -> Session:
        """Ask for the objective's value (``request_negotiate``).

        If the peer accepts at once, the session has :attr:`~Session.ended` already.
        """
        session, proffered = await self.grasp.request_negotiate(self.handle, objective, peer, timeout)
        return Session(self.grasp, self.handle, session, proffered)

    async def listen_negotiate(self, objective: Objective) -> Session:
        """Wait for somebody who asks for the objective; answer with the session's methods."""
        session, requested = await self.grasp.listen_negotiate(self.handle, objective)
        return Session(self.grasp, self.handle, session, requested)

    async def stop_listen_negotiate(self, objective: Objective) -> None:
        """As :meth:`Grasp.stop_listen_negotiate`."""
        await self.grasp.stop_listen_negotiate(self.handle, objective)

    async def synchronize(
        self, objective: Objective, peer: AsaLocator | None = None, timeout: int = 0
    ) -> Objective:
        """As :meth:`Grasp.synchronize`."""
        return await self.grasp.synchronize(self.handle, objective, peer, timeout)

    async def listen_synchronize(self, objective: Objective) -> None:
        """As :meth:`Grasp.listen_synchronize`."""
        await self.grasp.listen_synchronize(self.handle, objective)

    async def stop_listen_synchronize(self, objective: Objective) -> None:
        """As :meth:`Grasp.stop_listen_synchronize`."""
        await self.grasp.stop_listen_synchronize(self.handle, objective)

    async def flood(
        self, ttl: int, objectives: Iterable[Objective | TaggedObjective] | Objective | TaggedObjective
    ) -> None:
        """As :meth:`Grasp.flood`; takes one objective or several, with a locator or without."""
        many = [objectives] if isinstance(objectives, Objective | TaggedObjective) else objectives
        tagged = [TaggedObjective(item) if isinstance(item, Objective) else item for item in many]
        await self.grasp.flood(self.handle, ttl, tagged)

    async def get_flood(self, objective: Objective) -> list[TaggedObjective]:
        """As :meth:`Grasp.get_flood`."""
        return await self.grasp.get_flood(self.handle, objective)

    async def expire_flood(self, tagged_objective: TaggedObjective) -> None:
        """As :meth:`Grasp.expire_flood`."""
        await self.grasp.expire_flood(self.handle, tagged_objective)
