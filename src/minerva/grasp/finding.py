"""Where an objective can be had: here, where others were found before, or wherever a discovery finds it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any

from minerva.grasp.api import AsaError, AsaLocator, ErrorCode
from minerva.grasp.constants import TransportProto
from minerva.grasp.discovery import HOP_SECONDS, Discovery, Found
from minerva.grasp.options import IPv6Locator, Locator, Objective
from minerva.grasp.registry import Registry
from minerva.grasp.session import Session, State
from minerva.grasp.substrate import Substrate

FIND_ATTEMPTS = 3
"""How often a peer is looked for on behalf of a session, each time for twice as long as before."""


@dataclass(frozen=True, slots=True)
class CallToken:
    """Names a call of a process: what is done for it, and whom the answer goes to."""

    client: int
    request: int


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """A discovery on behalf of a session."""

    session: Session
    attempt: int


@dataclass(frozen=True, slots=True, eq=False)
class _Listing:
    """A discovery that a call asked for."""

    call: CallToken
    objective: Objective


class Finder:
    """Finds for sessions and for calls. ``discovery`` is set by the owner, as each needs the other.

    ``found(session, locators, now)`` and ``answer(token, code, result, reason)`` take the results.
    """

    def __init__(
        self,
        address: IPv6Address,
        substrate: Substrate,
        registry: Registry,
        *,
        found: Callable[[Session, list[AsaLocator], float], None],
        answer: Callable[[Hashable, ErrorCode, Any, str], None],
    ) -> None:
        self._address = address
        self._substrate = substrate
        self._registry = registry
        self._found = found
        self._answer = answer
        self.discovery: Discovery

    def own_locators(self, objective: Objective, interface: int) -> tuple[tuple[Locator, ...], int] | None:
        """Return locators and ttl (milliseconds) with which this node answers on ``interface``, if at all."""
        registration = self._registry.answering(objective)
        if registration is None:
            return None
        address = self._substrate.link_local(interface) if registration.local else self._address
        if address is None:
            return None
        return (IPv6Locator(address, TransportProto.IPPROTO_TCP, self._substrate.port),), registration.ttl

    def known(self, objective: Objective, now: float) -> list[AsaLocator]:
        """Return all locators that are known without asking anybody, the best first."""
        own = self.own_locators(objective, 0)
        ours = [] if own is None else [AsaLocator(locator, ttl=own[1]) for locator in own[0]]
        return ours + [_asa_locator(found, now) for found in self.discovery.cached(objective.name, now)]

    def find(self, session: Session, now: float) -> None:
        """Find a peer for a session."""
        known = self.known(session.objective, now)
        if known:
            self._found(session, known, now)
        else:
            self._search(_Search(session, 1), now)

    def _search(self, search: _Search, now: float) -> None:
        if search.session.state is not State.FINDING:  # it has ended meanwhile
            return
        seconds = HOP_SECONDS * search.session.objective.loop_count * 2 ** (search.attempt - 1)
        self.discovery.start(search, search.session.objective, seconds, now, first=True)

    def list_all(self, call: CallToken, objective: Objective, seconds: float, now: float) -> None:
        """Answer ``call`` with all locators found within ``seconds``. Raises :class:`AsaError`."""
        if self.discovery.busy:
            raise AsaError(ErrorCode.unspec, "too many discoveries are under way")
        self.discovery.start(_Listing(call, objective), objective, seconds, now, first=False)

    def cancel(self, call: CallToken) -> bool:
        """Forget what ``call`` asked for; return whether it was under way."""
        return self.discovery.cancel(lambda token: isinstance(token, _Listing) and token.call == call)

    def cancel_all(self, client: int) -> None:
        """Forget what any call of a process asked for."""
        self.discovery.cancel(lambda token: isinstance(token, _Listing) and token.call.client == client)

    def discovered(self, token: Hashable, found: list[Found], now: float) -> None:
        """Take the result of a discovery."""
        if isinstance(token, _Search):
            if not found and token.attempt < FIND_ATTEMPTS and now < token.session.deadline:
                self._search(_Search(token.session, token.attempt + 1), now)
            else:
                self._found(token.session, [_asa_locator(item, now) for item in found], now)
        elif isinstance(token, _Listing):
            locators = {item.locator: item for item in self.known(token.objective, now)}
            locators |= {item.locator: _asa_locator(item, now) for item in found}
            result = [locator.to_cbor() for locator in locators.values()]
            self._answer(token.call, ErrorCode.ok, result, "")


def milliseconds(expires: float, now: float) -> int | None:
    """Return how long something is still valid, ``None`` for ever."""
    return None if expires == float("inf") else max(0, int((expires - now) * 1000))


def _asa_locator(found: Found, now: float) -> AsaLocator:
    return AsaLocator(found.locator, found.interface, milliseconds(found.expires, now), found.diverted)
