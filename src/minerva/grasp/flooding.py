"""Floods: what all nodes are to know (RFC 8990 sections 2.5.6.2 and 2.8.11).

*Once.* A flood is relayed once, on every link but the one it came by, with the loop count of its first
objective one lower. A (Session ID, initiator) that was seen is remembered as long as a copy of the flood may
still be alive somewhere, and never for less than 120 s.

*Catching up.* RFC 8990 leaves a node that joins, or rejoins, to wait for the next repetition. Here the two
ends of a link that has come up tell each other all floods that are still valid, as they would have relayed
them, with the time that is left of their lifetime. Whoever has seen a flood drops it at once; who has not
relays it. So a flood reaches every node that can be reached, whenever its part of the network was joined.
That includes what came by this very link before: the neighbour may have started anew.

*Limits.* What one link brings in, and what one initiator says, is limited each (``LINK_RATE``,
``INITIATOR_RATE``), so that neither a neighbour nor a node far away takes the network, or this node's
memory, from the others. What is above the limit is dropped, counted, and not remembered as seen. As the
address of an initiator is but a claim, half of what a link may bring is for initiators that are known
already, and a cache that is full makes room at the expense of the link that has filled it most.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from math import inf
from typing import TypeAlias, TypeVar

from minerva.core.rate import TokenBucket
from minerva.grasp.constants import ObjectiveFlag
from minerva.grasp.messages import Flood, FloodEntry
from minerva.grasp.options import IPv6Locator, Locator, Objective

SEEN_SECONDS = 120.0
"""How long a flood is remembered at the least: twice GRASP_DEF_TIMEOUT, in seconds."""

SEEN_LONGEST = 86_400.0
"""How long a flood is remembered at the most, unless it is in the cache, in seconds.

A part of the network that was cut off for longer may bring values without an end to their lifetime back that
were replaced meanwhile, until they are flooded the next time.
"""

MAX_SEEN = 65_536
MAX_ENTRIES = 20_000
MAX_ENTRIES_PER_INITIATOR = 256
MAX_INITIATORS = 16_384
"""Bounds of the tables. Of what was seen, and of the cache, the oldest goes; an initiator gets its share."""

LINK_RATE, LINK_BURST = 250, 1000
"""Floods that one link may bring in a second, and at once."""

INITIATOR_RATE, INITIATOR_BURST = 10, MAX_ENTRIES_PER_INITIATOR
"""Floods that one initiator may send a second, and at once: all of its own that a neighbour tells again."""

REPLAY_BATCH, REPLAY_INTERVAL = 50, 0.25
"""How many floods a neighbour that has come up is told at once, and how often; below what it may bring in."""

_SWEEP_SECONDS = 10.0  # at the least, from one sweep to the next
_EVICTED_AT_ONCE = MAX_ENTRIES // 20

_Initiator: TypeAlias = IPv4Address | IPv6Address
_FloodKey: TypeAlias = tuple[int, _Initiator]
_EntryKey: TypeAlias = tuple[str, Locator | None]
_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class CachedObjective:
    """A flooded objective; ``interface`` is the link it came by, ``None`` if a local ASA flooded it.

    ``expires`` is in seconds of the engine's clock, ``inf`` for an indefinite lifetime.
    """

    objective: Objective
    locator: Locator | None
    session_id: int
    initiator: _Initiator
    interface: int | None
    expires: float
    loop_count: int
    """The loop count of a relayed copy of the flood; below 1 it is not relayed."""


@dataclass(slots=True)
class _Replay:
    """What a neighbour is still to be told, and when it may be told the next of it."""

    keys: deque[_FloodKey]
    at: float


class Flooding:
    """The flood cache and the relay of one instance. ``send(interface, data)`` sends on a link."""

    def __init__(
        self, counters: Counter[str], send: Callable[[int, bytes], None], links: Callable[[], Iterable[int]]
    ) -> None:
        self._counters = counters
        self._send = send
        self._links = links
        self._seen: dict[_FloodKey, float] = {}
        self._cache: dict[str, dict[Locator | None, CachedObjective]] = {}
        self._floods: dict[_FloodKey, list[_EntryKey]] = {}
        self._entries = 0
        self._per_initiator: Counter[_Initiator] = Counter()
        self._per_link: Counter[int | None] = Counter()
        self._link_buckets: dict[int, TokenBucket] = {}
        self._initiator_buckets: dict[_Initiator, TokenBucket] = {}
        self._replays: dict[int, _Replay] = {}
        self._sweep_at: float | None = None

    @property
    def size(self) -> int:
        """How many copies of objectives the cache holds."""
        return self._entries

    # --- from here -------------------------------------------------------------------------------------

    def originate(self, flood: Flood, now: float) -> None:
        """Send a flood of our own to all neighbours, and keep it for those to come."""
        self._remember_seen((flood.session_id, flood.initiator), flood.ttl, now)
        self._store(flood, None, flood.entries[0].objective.loop_count, now)
        data = flood.encode()
        for interface in self._links():
            self._send(interface, data)
            self._counters["floods-sent"] += 1

    def send_link_local(self, make: Callable[[int], Flood]) -> None:
        """Send on each link the flood that ``make`` makes for it, for that link alone."""
        for interface in self._links():
            self._send(interface, make(interface).encode())
            self._counters["floods-sent"] += 1

    # --- from elsewhere --------------------------------------------------------------------------------

    def receive(self, flood: Flood, interface: int, now: float) -> bool:
        """Take a flood that came by ``interface``; return whether it is new and was taken."""
        key = (flood.session_id, flood.initiator)
        if key in self._floods or self._seen.get(key, 0.0) > now:
            self._counters["floods-seen-before"] += 1
            return False
        first = flood.entries[0].objective
        link_local = flood.initiator.is_link_local
        if link_local and first.loop_count != 1:
            self._counters["floods-invalid"] += 1
            return False
        if not self._within_limits(flood.initiator, interface, now):
            self._counters["floods-limited"] += 1
            return False
        self._remember_seen(key, flood.ttl, now)
        self._counters["floods-received"] += 1
        kept = [entry for entry in flood.entries if self._acceptable(entry, link_local)]
        self._counters["objectives-refused"] += len(flood.entries) - len(kept)
        if not kept:
            return False
        left = first.loop_count - 1
        taken = replace(flood, entries=tuple(kept))
        self._store(taken, interface, left, now)
        self._relay(taken, left, interface)
        return True

    def _within_limits(self, initiator: _Initiator, interface: int, now: float) -> bool:
        link = self._link_buckets.setdefault(interface, TokenBucket(LINK_BURST, 1 / LINK_RATE))
        bucket = self._initiator_buckets.pop(initiator, None)
        if bucket is None:
            if len(self._initiator_buckets) >= MAX_INITIATORS:
                del self._initiator_buckets[next(iter(self._initiator_buckets))]
            bucket = TokenBucket(INITIATOR_BURST, 1 / INITIATOR_RATE)
        self._initiator_buckets[initiator] = bucket  # the one unused for longest stays in front
        # The initiator first: one that says too much should not use up what its neighbours may bring in.
        known = initiator in self._per_initiator
        return bucket.take(now) and link.take(now, leave=0 if known else LINK_BURST // 2)

    @staticmethod
    def _acceptable(entry: FloodEntry, link_local_flood: bool) -> bool:
        """Return whether an objective may be flooded, and with that locator (RFC 8994 section 6.9.2)."""
        if not entry.objective.flags & ObjectiveFlag.F_SYNCH:
            return False
        locator = entry.locator
        return link_local_flood or not (isinstance(locator, IPv6Locator) and locator.address.is_link_local)

    def _remember_seen(self, key: _FloodKey, ttl: int, now: float) -> None:
        if len(self._seen) >= MAX_SEEN:
            del self._seen[next(iter(self._seen))]
        lifetime = ttl / 1000 if ttl else SEEN_LONGEST
        until = self._seen[key] = now + min(max(lifetime, SEEN_SECONDS), SEEN_LONGEST)
        self._sweep_at = until if self._sweep_at is None else min(self._sweep_at, until)

    def _relay(self, flood: Flood, loop_count: int, came_by: int) -> None:
        if loop_count < 1:
            return
        data = _with_loop_count(flood, loop_count).encode()
        for interface in self._links():
            if interface != came_by:
                self._send(interface, data)
                self._counters["floods-relayed"] += 1

    # --- cache -----------------------------------------------------------------------------------------

    def _store(self, flood: Flood, interface: int | None, loop_count: int, now: float) -> None:
        expires = now + flood.ttl / 1000 if flood.ttl else inf
        key = (flood.session_id, flood.initiator)
        for entry in flood.entries:
            name, locator = entry.objective.name, entry.locator
            # Taken out first, so that the newest copy of an objective is the last.
            if not self.forget(name, locator) and not self._has_room(flood.initiator, now):
                self._counters["flood-cache-full"] += 1
                continue
            copy = CachedObjective(entry.objective, locator, *key, interface, expires, loop_count)
            self._cache.setdefault(name, {})[locator] = copy
            self._floods.setdefault(key, []).append((name, locator))
            self._entries += 1
            self._per_initiator[flood.initiator] += 1
            self._per_link[interface] += 1

    def _has_room(self, initiator: _Initiator, now: float) -> bool:
        """Return whether one more entry may be cached; make room if it is only the whole that is full."""
        if self._entries >= MAX_ENTRIES or self._per_initiator[initiator] >= MAX_ENTRIES_PER_INITIATOR:
            self._sweep(now)
        if self._per_initiator[initiator] >= MAX_ENTRIES_PER_INITIATOR:
            return False
        if self._entries >= MAX_ENTRIES:
            self._evict()
        return True

    def _evict(self) -> None:
        """Forget the oldest entries of the link that most have come by."""
        heaviest = self._per_link.most_common(1)[0][0]
        copies = (self._cache[name][locator] for keys in self._floods.values() for name, locator in keys)
        oldest = islice((copy for copy in copies if copy.interface == heaviest), _EVICTED_AT_ONCE)
        for copy in list(oldest):
            self._counters["floods-evicted"] += 1
            self.forget(copy.objective.name, copy.locator)

    def _forget_copy(self, copy: CachedObjective) -> None:
        """Take a copy, which is out of the cache already, out of the other tables."""
        key = (copy.session_id, copy.initiator)
        entries = self._floods[key]
        entries.remove((copy.objective.name, copy.locator))
        if not entries:
            del self._floods[key]
        self._entries -= 1
        _count_down(self._per_initiator, copy.initiator)
        _count_down(self._per_link, copy.interface)

    def forget(self, name: str, locator: Locator | None) -> bool:
        """Take one copy out of the cache; return whether it was there."""
        copy = self._cache.get(name, {}).pop(locator, None)
        if copy is None:
            return False
        self._forget_copy(copy)
        if not self._cache[name]:
            del self._cache[name]
        return True

    def copies(self, name: str, now: float) -> list[CachedObjective]:
        """Return all valid copies of an objective."""
        return [copy for copy in self._cache.get(name, {}).values() if copy.expires > now]

    def everything(self, now: float) -> list[CachedObjective]:
        """Return all valid copies of all objectives."""
        return [copy for copies in self._cache.values() for copy in copies.values() if copy.expires > now]

    # --- links that come and go, time --------------------------------------------------------------------

    def link_ready(self, interface: int, now: float) -> None:
        """Begin to tell a neighbour what it may have missed."""
        before = self._replays.get(interface)
        # A neighbour that connects again and again is not told more for it.
        self._replays[interface] = _Replay(deque(self._floods), now if before is None else before.at)
        self._replay(now)

    def link_down(self, interface: int) -> None:
        """Forget what was kept for a link, and what meant something on it alone."""
        self._replays.pop(interface, None)
        self._link_buckets.pop(interface, None)
        for copy in [copy for copies in self._cache.values() for copy in copies.values()]:
            if copy.interface == interface and copy.initiator.is_link_local:
                self.forget(copy.objective.name, copy.locator)

    def _replay(self, now: float) -> None:
        for interface, replay in self._replays.items():
            if replay.keys and replay.at <= now:
                for _ in range(min(REPLAY_BATCH, len(replay.keys))):
                    self._replay_one(interface, replay.keys.popleft(), now)
                replay.at = now + REPLAY_INTERVAL

    def _replay_one(self, interface: int, key: _FloodKey, now: float) -> None:
        copies = [self._cache[name][locator] for name, locator in self._floods.get(key, ())]
        copies = [copy for copy in copies if copy.expires > now]
        if not copies or copies[0].loop_count < 1:
            return
        expires = copies[0].expires
        ttl = 0 if expires == inf else max(1, int((expires - now) * 1000))
        entries = tuple(FloodEntry(copy.objective, copy.locator) for copy in copies)
        flood = _with_loop_count(Flood(key[0], key[1], ttl, entries), copies[0].loop_count)
        self._send(interface, flood.encode())
        self._counters["floods-told-again"] += 1

    def next_timer(self) -> float | None:
        """Return when ``on_timer`` wants to be called."""
        times = [replay.at for replay in self._replays.values() if replay.keys]
        return min(times if self._sweep_at is None else [*times, self._sweep_at], default=None)

    def on_timer(self, now: float) -> None:
        """Go on telling, and forget what has expired."""
        self._replay(now)
        if self._sweep_at is not None and self._sweep_at <= now:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        for copy in [c for copies in self._cache.values() for c in copies.values() if c.expires <= now]:
            self.forget(copy.objective.name, copy.locator)
        self._seen = {key: until for key, until in self._seen.items() if until > now}
        ends = [copy.expires for copies in self._cache.values() for copy in copies.values()]
        next_end = min(*ends, *self._seen.values(), inf, inf)
        self._sweep_at = None if next_end == inf else max(next_end, now + _SWEEP_SECONDS)


def _count_down(counter: Counter[_Key], key: _Key) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _with_loop_count(flood: Flood, loop_count: int) -> Flood:
    """Return ``flood`` with the loop count of its first objective changed, and only of that."""
    first, *rest = flood.entries
    objective = replace(first.objective, loop_count=loop_count)
    return replace(flood, entries=(FloodEntry(objective, first.locator), *rest))
