"""Discovery: who has an objective (RFC 8990 section 2.5.4).

A node that has the objective answers with where it is; one that knows of such a node from another link
answers with a Divert; any other asks on its other links on behalf of the asker, once, and passes the answers
back on the connection that the question came by. Everybody on the way remembers the answers for as long as
their ttl says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

from minerva.core.rate import TokenBucket
from minerva.grasp.constants import GRASP_DEF_TIMEOUT, ObjectiveFlag
from minerva.grasp.messages import Discovery as DiscoveryMessage
from minerva.grasp.messages import Response
from minerva.grasp.options import NO_VALUE, Divert, FqdnLocator, IPv6Locator, Locator, Objective, UriLocator
from minerva.grasp.session_id import SessionIds

HOP_SECONDS = 0.1
"""How long a discovery waits per hop that its loop count allows, in seconds."""

LONG_TTL = 10 * GRASP_DEF_TIMEOUT
"""What a ttl of 0 in a response means, in milliseconds."""

SEEN_SECONDS = 60.0
"""How long a relayed discovery is remembered, in seconds: longer than any may take."""

RELAY_RATE, RELAY_BURST = 50, 200
"""Discoveries that are relayed for one link a second, and at once."""

MAX_NAMES = 4096
MAX_LOCATORS = 32
MAX_RELAYED = 16_384
MAX_DIVERTED = 8
MAX_PASSED_BACK = 64
MAX_QUERIES = 1024
"""Bounds: names cached, locators cached of each, discoveries remembered, locators in a Divert, answers passed
back to one asker, discoveries of our own at a time."""

_KINDS = ObjectiveFlag.F_NEG | ObjectiveFlag.F_SYNCH

_Initiator: TypeAlias = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Found:
    """A locator that discovery found; ``interface`` is 0 for this node itself, ``expires`` in seconds."""

    locator: Locator
    interface: int
    expires: float
    diverted: bool


@dataclass(slots=True)
class _Query:
    """A discovery of our own; ``wanted`` ends it before its time as soon as anything is found."""

    token: Hashable
    session_id: int
    objective: Objective
    until: float
    wanted: bool
    found: dict[Locator, Found] = field(default_factory=dict)


@dataclass(slots=True)
class _Relayed:
    """A discovery of somebody else that we have seen, and to whom its answers go."""

    name: str
    connection: int
    interface: int
    answers_until: float
    forget_at: float
    passed_back: int = 0


def supports(ours: ObjectiveFlag, asked: ObjectiveFlag) -> bool:
    """Return whether an objective with the flags ``ours`` does one of the things that are ``asked`` for."""
    return not asked & _KINDS or bool(ours & asked & _KINDS)


class Discovery:
    """Discovery of one instance.

    ``own(objective, interface)`` returns the locators and ttl (milliseconds) with which we answer for an
    objective that asks on ``interface``, or ``None``; ``send(connection, data)`` and
    ``send_on_link(interface, data)`` send. Results are handed to ``done(token, list of Found, now)``.
    """

    def __init__(
        self,
        address: IPv6Address,
        session_ids: SessionIds,
        counters: Counter[str],
        *,
        own: Callable[[Objective, int], tuple[tuple[Locator, ...], int] | None],
        links: Callable[[], Iterable[int]],
        send: Callable[[int, bytes], None],
        send_on_link: Callable[[int, bytes], None],
        done: Callable[[Hashable, list[Found], float], None],
    ) -> None:
        self._address = address
        self._session_ids = session_ids
        self._counters = counters
        self._own = own
        self._links = links
        self._send = send
        self._send_on_link = send_on_link
        self._done = done
        self._queries: dict[int, _Query] = {}
        self._relayed: dict[tuple[int, _Initiator], _Relayed] = {}
        self._cache: dict[str, dict[Locator, Found]] = {}
        self._buckets: dict[int, TokenBucket] = {}

    # --- asking ----------------------------------------------------------------------------------------

    def cached(self, name: str, now: float) -> list[Found]:
        """Return what is known of an objective: nearest knowledge first, then what lasts longest."""
        found = [item for item in self._cache.get(name, {}).values() if item.expires > now]
        return sorted(found, key=lambda item: (item.diverted, -item.expires))

    def flush(self, name: str, minimum_ttl: int, now: float) -> None:
        """Forget what is valid for no longer than ``minimum_ttl`` (milliseconds), everything if that is 0."""
        kept = {
            locator: item
            for locator, item in self._cache.get(name, {}).items()
            if minimum_ttl and item.expires > now + minimum_ttl / 1000
        }
        self._cache.pop(name, None)
        if kept:
            self._cache[name] = kept

    def forget(self, name: str, locator: Locator) -> None:
        """Forget a locator that turned out to be of no use."""
        known = self._cache.get(name, {})
        known.pop(locator, None)
        if not known:
            self._cache.pop(name, None)

    @property
    def busy(self) -> bool:
        """Whether so many discoveries of ours are under way that no process should begin another."""
        return len(self._queries) >= MAX_QUERIES

    def start(
        self, token: Hashable, objective: Objective, seconds: float, now: float, *, first: bool
    ) -> None:
        """Ask everybody for ``objective``; ``done`` follows after ``seconds``, or at the ``first`` answer."""
        session_id = self._session_ids.new()
        self._session_ids.hold(session_id)
        asked = replace(objective, flags=objective.flags | ObjectiveFlag.F_DISC, value=NO_VALUE)
        query = _Query(token, session_id, asked, now + seconds, first)
        self._queries[session_id] = query
        data = self._message(query).encode()
        for interface in self._links():
            self._send_on_link(interface, data)
            self._counters["discoveries-sent"] += 1

    def _message(self, query: _Query) -> DiscoveryMessage:
        return DiscoveryMessage(query.session_id, self._address, query.objective)

    def cancel(self, which: Callable[[Hashable], bool]) -> bool:
        """Forget the discoveries of ours with a token that ``which`` picks; return whether there were any."""
        picked = [query for query in self._queries.values() if which(query.token)]
        for query in picked:
            self._end(query)
        return bool(picked)

    def _end(self, query: _Query) -> None:
        del self._queries[query.session_id]
        self._session_ids.release(query.session_id)

    # --- being asked -----------------------------------------------------------------------------------

    def receive(self, message: DiscoveryMessage, connection: int, interface: int | None, now: float) -> None:
        """Take a discovery that came on a link, or on a unicast connection (``interface`` is ``None``)."""
        key = (message.session_id, message.initiator)
        if message.initiator == self._address or key in self._relayed:
            self._counters["discoveries-seen-before"] += 1
            return
        self._counters["discoveries-received"] += 1
        left = message.objective.loop_count - 1
        answer = self._answer(message, interface or 0, now)
        relay = answer is None and interface is not None and left > 0
        if relay and not self._may_relay(interface or 0, now):
            self._counters["discoveries-limited"] += 1
            return
        name, until = message.objective.name, now + HOP_SECONDS * max(left, 1)
        self._remember(key, _Relayed(name, connection, interface or 0, until, now + SEEN_SECONDS), now)
        if answer is not None:
            self._send(connection, answer.encode())
            self._counters["responses-sent"] += 1
        elif relay:
            self._relay(message, left, interface or 0)

    def _answer(self, message: DiscoveryMessage, interface: int, now: float) -> Response | None:
        own = self._own(message.objective, interface)
        if own is not None:
            locators, ttl = own
            return Response(message.session_id, message.initiator, ttl, locators)
        others = [
            item
            for item in self.cached(message.objective.name, now)
            if item.interface != interface and not _is_link_local(item.locator)
        ]
        if not others:
            return None
        ttl = int((min(item.expires for item in others) - now) * 1000)
        divert = Divert(tuple(item.locator for item in others[:MAX_DIVERTED]))
        return Response(message.session_id, message.initiator, max(ttl, 1), divert=divert)

    def _remember(self, key: tuple[int, _Initiator], seen: _Relayed, now: float) -> None:
        if len(self._relayed) >= MAX_RELAYED:
            self._sweep(now)
        if len(self._relayed) >= MAX_RELAYED:
            del self._relayed[next(iter(self._relayed))]
        self._relayed[key] = seen

    def _may_relay(self, interface: int, now: float) -> bool:
        return self._buckets.setdefault(interface, TokenBucket(RELAY_BURST, 1 / RELAY_RATE)).take(now)

    def _relay(self, message: DiscoveryMessage, left: int, interface: int) -> None:
        data = replace(message, objective=replace(message.objective, loop_count=left)).encode()
        for other in self._links():
            if other != interface:
                self._send_on_link(other, data)
                self._counters["discoveries-relayed"] += 1

    # --- answers ---------------------------------------------------------------------------------------

    def respond(self, message: Response, interface: int | None, now: float) -> None:
        """Take an answer: to a question of ours, or to one that we relayed."""
        query = self._queries.get(message.session_id) if message.initiator == self._address else None
        relayed = self._relayed.get((message.session_id, message.initiator))
        if query is not None:
            found = self._found(message, interface or 0, now)
            for item in found:
                if item.locator in query.found or len(query.found) < MAX_LOCATORS:
                    query.found[item.locator] = item
                    self._keep(query.objective.name, item)
            if query.wanted and query.found:
                self._end(query)
                self._done(query.token, list(query.found.values()), now)
        elif relayed is not None and relayed.answers_until >= now and relayed.interface != interface:
            self._pass_back(message, relayed, interface or 0, now)
        else:
            self._counters["responses-unasked"] += 1

    def _found(self, message: Response, interface: int, now: float) -> list[Found]:
        divert = message.divert
        locators = message.locators if divert is None else divert.locators
        expires = now + (message.ttl or LONG_TTL) / 1000
        # A link-local address tells nothing but where the answer itself came from (section 2.9.5); names
        # must not be taken for something inside the ACP (section 3).
        return [
            Found(locator, interface, expires, divert is not None)
            for locator in locators
            if not (divert is not None and _is_link_local(locator))
        ]

    def _keep(self, name: str, item: Found) -> None:
        if isinstance(item.locator, FqdnLocator | UriLocator):
            return
        known = self._cache.get(name)
        if known is None:
            if len(self._cache) >= MAX_NAMES:
                del self._cache[next(iter(self._cache))]
            known = self._cache[name] = {}
        if item.locator not in known and len(known) >= MAX_LOCATORS:
            del known[min(known, key=lambda locator: known[locator].expires)]
        known[item.locator] = item

    def _pass_back(self, message: Response, relayed: _Relayed, interface: int, now: float) -> None:
        # What is link-local here means nothing to the asker; without it there may be nothing left.
        found = [item for item in self._found(message, interface, now) if not _is_link_local(item.locator)]
        if not found or relayed.passed_back >= MAX_PASSED_BACK:
            self._counters["responses-dropped"] += 1
            return
        relayed.passed_back += 1
        for item in found[:MAX_LOCATORS]:
            self._keep(relayed.name, item)
        locators = tuple(item.locator for item in found)
        if message.divert is None:
            answer = replace(message, locators=locators)
        else:
            answer = replace(message, divert=Divert(locators))
        self._send(relayed.connection, answer.encode())
        self._counters["responses-passed-back"] += 1

    # --- links and time ----------------------------------------------------------------------------------

    def link_ready(self, interface: int) -> None:
        """Ask on a link that has just come up what we are asking everywhere else."""
        for query in self._queries.values():
            self._send_on_link(interface, self._message(query).encode())
            self._counters["discoveries-sent"] += 1

    def link_down(self, interface: int) -> None:
        """Forget what meant something on a link alone that is gone. All else may be reached another way."""
        self._buckets.pop(interface, None)
        for name, items in list(self._cache.items()):
            for item in list(items.values()):
                if item.interface == interface and _is_link_local(item.locator):
                    self.forget(name, item.locator)

    def next_timer(self) -> float | None:
        """Return when ``on_timer`` wants to be called."""
        times = [query.until for query in self._queries.values()]
        if self._relayed:
            times.append(next(iter(self._relayed.values())).forget_at)
        return min(times, default=None)

    def on_timer(self, now: float) -> None:
        """End the discoveries whose time is over."""
        for query in [query for query in self._queries.values() if query.until <= now]:
            self._end(query)
            self._done(query.token, list(query.found.values()), now)
        if self._relayed and next(iter(self._relayed.values())).forget_at <= now:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        self._relayed = {key: seen for key, seen in self._relayed.items() if seen.forget_at > now}
        for name in list(self._cache):
            kept = {locator: item for locator, item in self._cache[name].items() if item.expires > now}
            if kept:
                self._cache[name] = kept
            else:
                del self._cache[name]

    def everything(self, now: float) -> list[tuple[str, Found]]:
        """Return all that is cached, with the name of its objective."""
        return [(name, item) for name in self._cache for item in self.cached(name, now)]


def _is_link_local(locator: Locator) -> bool:
    return isinstance(locator, IPv6Locator) and locator.address.is_link_local
