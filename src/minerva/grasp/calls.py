"""The functions of RFC 8991, as a process of this node calls them: names, arguments and answers in CBOR."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from ipaddress import IPv6Address
from typing import Any, TypeAlias

from minerva.grasp.api import AsaError, AsaLocator, ErrorCode, TaggedObjective
from minerva.grasp.constants import GRASP_DEF_TIMEOUT, MAX_UINT32, ObjectiveFlag
from minerva.grasp.discovery import Discovery
from minerva.grasp.errors import GraspError
from minerva.grasp.finding import CallToken, Finder, milliseconds
from minerva.grasp.flooding import CachedObjective, Flooding
from minerva.grasp.messages import Flood, FloodEntry, Synch
from minerva.grasp.options import NO_VALUE, IPv6Locator, Objective, check_text, check_uint
from minerva.grasp.registry import Asa, Registry, check_objective
from minerva.grasp.session import Session
from minerva.grasp.session_id import SessionIds
from minerva.grasp.sessions import Sessions, check_size
from minerva.grasp.substrate import Substrate

_UNSPECIFIED = IPv6Address("::")

_LATER = object()
"""What a function returns whose answer comes later."""

_Function: TypeAlias = Callable[["Calls", CallToken, list[Any], float], Any]


class Calls:
    """Carries out calls. ``answer(token, code, result, reason)`` takes the answers, now or later."""

    def __init__(
        self,
        address: IPv6Address,
        substrate: Substrate,
        registry: Registry,
        session_ids: SessionIds,
        flooding: Flooding,
        discovery: Discovery,
        finder: Finder,
        sessions: Sessions,
        *,
        answer: Callable[[Hashable, ErrorCode, Any, str], None],
        status: Callable[[float], Any],
    ) -> None:
        self._address = address
        self._substrate = substrate
        self._registry = registry
        self._session_ids = session_ids
        self._flooding = flooding
        self._discovery = discovery
        self._finder = finder
        self._sessions = sessions
        self._answer = answer
        self._status_now = status

    def call(self, client: int, request: int, function: str, arguments: list[Any], now: float) -> None:
        """Do what a process asks for: a function of RFC 8991, or of ``minerva.asa`` beyond it.

        ``arguments`` are CBOR items in the order of the RFC. The answer is an :class:`Answer`, now or later;
        nothing is raised for anything that a process may ask.
        """
        token = CallToken(client, request)
        entry = _FUNCTIONS.get(function)
        try:
            if entry is None:
                raise AsaError(ErrorCode.unspec, f"there is no function {function!a}")
            method, count = entry
            if len(arguments) != count:
                raise AsaError(ErrorCode.unspec, f"{function} takes {count} arguments, not {len(arguments)}")
            result = method(self, token, arguments, now)
        except AsaError as error:
            self._answer(token, error.code, None, error.reason)
        except GraspError as error:
            self._answer(token, ErrorCode.unspec, None, str(error))
        else:
            if result is not _LATER:
                self._answer(token, ErrorCode.ok, result, "")

    def client_gone(self, client: int) -> None:
        """Forget a process: all its ASAs, with what they do (RFC 8991 section 2.3.3)."""
        for asa in self._registry.asas_of(client):
            self._remove_asa(asa)
        self._finder.cancel_all(client)

    def _asa(self, token: CallToken, handle: Any) -> Asa:
        return self._registry.asa(check_uint(handle, MAX_UINT32, "asa_handle"), token.client)

    def _session(self, token: CallToken, handle: Any, session: Any) -> Session:
        asa = self._asa(token, handle)
        return self._sessions.of_asa(asa, check_uint(session, MAX_UINT32, "session_handle"))

    def _register_asa(self, token: CallToken, arguments: list[Any], _: float) -> int:
        return self._registry.register_asa(check_text(arguments[0], "name"), token.client).handle

    def _deregister_asa(self, token: CallToken, arguments: list[Any], _: float) -> None:
        asa = self._asa(token, arguments[0])
        if asa.name != arguments[1]:
            raise AsaError(ErrorCode.notYourASA)
        self._remove_asa(asa)

    def _remove_asa(self, asa: Asa) -> None:
        self._sessions.asa_gone(asa)
        self._registry.remove_asa(asa)

    def _register_objective(self, token: CallToken, arguments: list[Any], _: float) -> None:
        handle, objective, ttl, discoverable, overlap, local = arguments
        self._registry.register(
            self._asa(token, handle),
            Objective.from_cbor(objective),
            ttl=check_uint(ttl, MAX_UINT32, "ttl") or GRASP_DEF_TIMEOUT,
            discoverable=_boolean(discoverable, "discoverable"),
            overlap=_boolean(overlap, "overlap"),
            local=_boolean(local, "local"),
        )

    def _deregister_objective(self, token: CallToken, arguments: list[Any], _: float) -> None:
        asa, objective = self._asa(token, arguments[0]), Objective.from_cbor(arguments[1])
        self._sessions.stop_listening(self._registry.registration(asa, objective.name))
        self._registry.deregister(asa, objective.name)

    def _discover(self, token: CallToken, arguments: list[Any], now: float) -> Any:
        handle, item, timeout, minimum_ttl = arguments
        self._asa(token, handle)
        objective = Objective.from_cbor(item)
        self._discovery.flush(objective.name, check_uint(minimum_ttl, MAX_UINT32, "minimum_TTL"), now)
        if not check_uint(timeout, MAX_UINT32, "timeout"):
            return [locator.to_cbor() for locator in self._finder.known(objective, now)]
        self._finder.list_all(token, objective, timeout / 1000, now)
        return _LATER

    def _request_negotiate(self, token: CallToken, arguments: list[Any], now: float) -> Any:
        handle, item, peer, timeout = arguments
        objective = Objective.from_cbor(item)
        if not objective.flags & ObjectiveFlag.F_NEG:
            raise AsaError(ErrorCode.notNeg)
        check_objective(objective)
        if objective.value is NO_VALUE:  # a negotiation has a value, if only this one (section 2.10.3)
            objective = Objective(objective.name, objective.flags, objective.loop_count, None)
        self._request(token, handle, objective, peer, timeout, now)
        return _LATER

    def _request(
        self, token: CallToken, handle: Any, objective: Objective, peer: Any, timeout: Any, now: float
    ) -> None:
        if not objective.loop_count:
            raise AsaError(ErrorCode.loopExhausted)
        candidates = [] if peer is None else [AsaLocator.from_cbor(peer)]
        self._sessions.request(
            self._asa(token, handle),
            objective,
            candidates,
            timeout=check_uint(timeout, MAX_UINT32, "timeout"),
            token=token,
            now=now,
        )

    def _listen_negotiate(self, token: CallToken, arguments: list[Any], _: float) -> Any:
        asa, objective = self._asa(token, arguments[0]), Objective.from_cbor(arguments[1])
        registration = self._registry.registration(asa, objective.name)
        if not registration.flags & ObjectiveFlag.F_NEG:
            raise AsaError(ErrorCode.notNeg)
        self._sessions.listen(registration, token)
        return _LATER

    def _stop_listen_negotiate(self, token: CallToken, arguments: list[Any], _: float) -> None:
        asa, objective = self._asa(token, arguments[0]), Objective.from_cbor(arguments[1])
        self._sessions.stop_listening(self._registry.registration(asa, objective.name))

    def _negotiate_step(self, token: CallToken, arguments: list[Any], now: float) -> Any:
        handle, session, objective, timeout = arguments
        self._sessions.step(
            self._session(token, handle, session),
            Objective.from_cbor(objective),
            timeout=check_uint(timeout, MAX_UINT32, "timeout"),
            token=token,
            now=now,
        )
        return _LATER

    def _negotiate_wait(self, token: CallToken, arguments: list[Any], now: float) -> None:
        handle, session, timeout = arguments
        check_uint(timeout, MAX_UINT32, "timeout")
        self._sessions.delay(self._session(token, handle, session), timeout, now)

    def _end_negotiate(self, token: CallToken, arguments: list[Any], _: float) -> None:
        handle, session, accept, reason = arguments
        if reason is not None:
            check_text(reason, "reason")
        accept = _boolean(accept, "result")
        self._sessions.end(self._session(token, handle, session), accept=accept, reason=reason)

    def _send_invalid(self, token: CallToken, arguments: list[Any], _: float) -> None:
        handle, session, info = arguments
        self._sessions.invalid(self._session(token, handle, session), NO_VALUE if info is None else info)

    def _synchronize(self, token: CallToken, arguments: list[Any], now: float) -> Any:
        handle, item, peer, timeout = arguments
        objective = Objective.from_cbor(item)
        if not objective.flags & ObjectiveFlag.F_SYNCH or objective.flags & ObjectiveFlag.F_NEG:
            raise AsaError(ErrorCode.notSynch)
        copies = self._flooding.copies(objective.name, now) if peer is None else []
        if copies:
            self._asa(token, handle)
            return copies[-1].objective.to_cbor()  # the newest
        self._request(token, handle, objective, peer, timeout, now)
        return _LATER

    def _listen_synchronize(self, token: CallToken, arguments: list[Any], _: float) -> None:
        asa, objective = self._asa(token, arguments[0]), Objective.from_cbor(arguments[1])
        registration = self._registry.registration(asa, objective.name)
        if not registration.flags & ObjectiveFlag.F_SYNCH:
            raise AsaError(ErrorCode.notSynch)
        check_size(Synch(0, objective))
        registration.value, registration.flooded = objective, False

    def _stop_listen_synchronize(self, token: CallToken, arguments: list[Any], _: float) -> None:
        asa, objective = self._asa(token, arguments[0]), Objective.from_cbor(arguments[1])
        self._registry.registration(asa, objective.name).value = None

    def _flood(self, token: CallToken, arguments: list[Any], now: float) -> None:
        handle, ttl, items = arguments
        asa = self._asa(token, handle)
        check_uint(ttl, MAX_UINT32, "ttl")
        if not isinstance(items, list) or not items:
            raise AsaError(ErrorCode.unspec, "there is nothing to flood")
        tagged = [TaggedObjective.from_cbor(item) for item in items]
        for item in tagged:
            registration = self._registry.registration(asa, item.objective.name)
            if not registration.flags & item.objective.flags & ObjectiveFlag.F_SYNCH:
                raise AsaError(ErrorCode.notFloodDisc)
        link_local = [item for item in tagged if _is_for_link(item)]
        if link_local and len(link_local) < len(tagged):
            raise AsaError(ErrorCode.invalidLoc, "what is for the link alone is flooded alone")
        if link_local:
            self._flood_on_links(ttl, tagged)
            return
        self.flood(ttl, [self._flood_entry(item) for item in tagged], now)
        for item in tagged:
            registration = self._registry.registration(asa, item.objective.name)
            if registration.value is None or registration.flooded:
                registration.value, registration.flooded = item.objective, True

    def flood(self, ttl: int, entries: list[FloodEntry], now: float) -> None:
        """Flood on behalf of the node itself; ``ttl`` in milliseconds. Raises :class:`AsaError`."""
        flood = Flood(self._session_ids.new(), self._address, ttl, tuple(entries))
        check_size(flood)
        self._flooding.originate(flood, now)

    def _flood_entry(self, item: TaggedObjective) -> FloodEntry:
        """Return the entry of a flood; link-local addresses have no place in it (RFC 8994 section 6.9.2)."""
        if item.locator is None:
            return FloodEntry(item.objective)
        if item.locator.address is not None and item.locator.address.is_link_local:
            raise AsaError(ErrorCode.invalidLoc, "a link-local address means nothing to others")
        return FloodEntry(item.objective, item.locator.locator)

    def _flood_on_links(self, ttl: int, tagged: list[TaggedObjective]) -> None:
        """Flood with our own link-local address, with loop count 1 (RFC 8991, flood)."""
        session_id = self._session_ids.new()

        def make(interface: int) -> Flood:
            address = self._substrate.link_local(interface)
            assert address is not None
            entries = []
            for item in tagged:
                objective = item.objective
                alone = Objective(objective.name, objective.flags, 1, objective.value)
                assert item.locator is not None
                assert isinstance(item.locator.locator, IPv6Locator)
                locator = IPv6Locator(address, item.locator.locator.transport, item.locator.locator.port)
                entries.append(FloodEntry(alone, locator))
            return Flood(session_id, address, ttl, tuple(entries))

        for interface in self._substrate.ready_links()[:1]:
            check_size(make(interface))  # they differ by nothing that takes room
        self._flooding.send_link_local(make)

    def _get_flood(self, token: CallToken, arguments: list[Any], now: float) -> Any:
        self._asa(token, arguments[0])
        name = Objective.from_cbor(arguments[1]).name
        return [_tagged(copy, now).to_cbor() for copy in self._flooding.copies(name, now)]

    def _expire_flood(self, token: CallToken, arguments: list[Any], _: float) -> None:
        self._asa(token, arguments[0])
        tagged = TaggedObjective.from_cbor(arguments[1])
        locator = None if tagged.locator is None else tagged.locator.locator
        if not self._flooding.forget(tagged.objective.name, locator):
            raise AsaError(ErrorCode.notObj)

    def _cancel(self, token: CallToken, arguments: list[Any], _: float) -> None:
        other = CallToken(token.client, check_uint(arguments[0], 1 << 62, "request"))
        if self._sessions.abandon(other) or self._finder.cancel(other):  # else its answer is on its way
            self._answer(other, ErrorCode.unspec, None, "cancelled")

    def _node(self, _: CallToken, __: list[Any], ___: float) -> Any:
        return {"address": self._address.packed, "port": self._substrate.port}

    def _status(self, _: CallToken, __: list[Any], now: float) -> Any:
        return self._status_now(now)


_FUNCTIONS: dict[str, tuple[_Function, int]] = {
    "register_asa": (Calls._register_asa, 1),
    "deregister_asa": (Calls._deregister_asa, 2),
    "register_objective": (Calls._register_objective, 6),
    "deregister_objective": (Calls._deregister_objective, 2),
    "discover": (Calls._discover, 4),
    "request_negotiate": (Calls._request_negotiate, 4),
    "listen_negotiate": (Calls._listen_negotiate, 2),
    "stop_listen_negotiate": (Calls._stop_listen_negotiate, 2),
    "negotiate_step": (Calls._negotiate_step, 4),
    "negotiate_wait": (Calls._negotiate_wait, 3),
    "end_negotiate": (Calls._end_negotiate, 4),
    "synchronize": (Calls._synchronize, 4),
    "listen_synchronize": (Calls._listen_synchronize, 2),
    "stop_listen_synchronize": (Calls._stop_listen_synchronize, 2),
    "flood": (Calls._flood, 3),
    "get_flood": (Calls._get_flood, 2),
    "expire_flood": (Calls._expire_flood, 2),
    "send_invalid": (Calls._send_invalid, 3),
    "cancel": (Calls._cancel, 1),
    "node": (Calls._node, 0),
    "status": (Calls._status, 0),
}
"""The functions that can be called, and how many arguments each takes."""


def _boolean(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise AsaError(ErrorCode.unspec, f"{what} is neither true nor false")
    return value


def _is_for_link(tagged: TaggedObjective) -> bool:
    return tagged.locator is not None and tagged.locator.address == _UNSPECIFIED


def _tagged(copy: CachedObjective, now: float) -> TaggedObjective:
    ttl, interface = milliseconds(copy.expires, now), copy.interface or 0
    locator = None if copy.locator is None else AsaLocator(copy.locator, interface, ttl)
    return TaggedObjective(copy.objective, locator)
