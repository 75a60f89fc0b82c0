"""DULL GRASP: who else is on this link (RFC 8990 section 2.5.2, RFC 8994 section 6.4).

One :class:`DullInstance` serves one interface. It announces by M_FLOOD only, and hears M_FLOOD only.

*When it sends.* Every 60 s with a ttl of 210 s, so that two of three may be lost. That alone would make
two nodes wait for each other for a minute, so a series of announcements at 0, 1, 3, 7 and 15 s (a lossy
link loses all five of them once in 400 times at 30 % loss) begins when there is something to announce, and
again when a stranger is heard. A neighbour that we know announces out of turn if it has just started, or
has heard a stranger: it may not know us, so it gets one announcement if we have sent none for 2.5 s. Both
answers are limited (``ANSWER_BURST``, ``ANSWER_INTERVAL``, ``MIN_GAP``), and they come to an end, as
nobody answers within 2.5 s of its own last packet. On a link of many they are spread over up to a second.

*In how many packets.* A ttl is that of a whole flood, and an AN_Proxy has another than an AN_ACP (RFC 8995
section 4.1.1). So each has a flood of its own, one right after the other, which also reaches those who
believe no flood with an objective that they do not know. An announcement that follows within ``PAIR_GAP``
belongs to the one before, and is none out of turn. What is offered at another address than the link-local one
comes apart as well, as only who has waived that rule believes it.

*What it believes.* See :mod:`minerva.grasp.announcement`. Everything else is counted in ``counters``.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv6Address
from random import Random
from typing import TypeAlias

from minerva.core.rate import TokenBucket
from minerva.core.sansio import Datagram
from minerva.grasp.announcement import Announcement, AnnouncementError, Drop, read_announcements
from minerva.grasp.constants import (
    ALL_GRASP_NEIGHBORS,
    AN_PROXY,
    GRASP_LISTEN_PORT,
    MAX_MULTICAST_SIZE,
    MAX_UINT32,
    TransportProto,
)
from minerva.grasp.errors import GraspError
from minerva.grasp.messages import Flood, FloodEntry
from minerva.grasp.session_id import SessionIds

ANNOUNCE_PERIOD = 60.0
"""How often announcements are repeated, in seconds."""

ANNOUNCE_TTL = 210_000
"""How long others may believe an announcement of ours, in milliseconds."""

PROXY_TTL = 180_000
"""The same for a join proxy (RFC 8995 section 4.1.1)."""

PAIR_GAP = 0.2
"""Within how many seconds what one announcer sends is one announcement. Below ``MIN_GAP``."""

PERIOD_JITTER = 0.05
"""By which part of it the period varies either way, so that the nodes of a link do not march in step."""

FAST_START = (1.0, 2.0, 4.0, 8.0)
"""The gaps, in seconds, between the first announcements of a series; after the last comes the period."""

MIN_GAP = 0.25
"""The shortest time between an announcement and an answer to others, in seconds."""

ANSWER_HOLD = 2.5
"""How long after our last announcement a known neighbour out of turn gets no answer, in seconds."""

ANSWER_BURST = 10
"""How many answers may be given at the pace of ``MIN_GAP``."""

ANSWER_INTERVAL = 6.0
"""After a burst, one answer is allowed per this many seconds."""

ANSWER_SPREAD = 0.01
"""An answer waits for a random part of this many seconds for each neighbour on the link, at most 1 s."""

MAX_SOURCES = 256
"""How many announcers are remembered on one link."""

MAX_ANNOUNCEMENTS = 8
"""How many announcements of one announcer are remembered."""

MAX_LIFETIME = 3600.0
"""For how long an announcement is believed at most, in seconds, also if its ttl says "indefinitely" (0)."""

_RECENT_SESSIONS = 16


class Count(StrEnum):
    """What a DULL instance counts besides the reasons in :class:`Drop`."""

    SENT = "sent"
    ACCEPTED = "accepted"
    ANSWER_LIMITED = "answer-limited"
    EVICTED = "evicted"
    FORGOTTEN = "announcements-forgotten"


@dataclass(frozen=True, slots=True)
class NeighbourHeard:
    """A neighbour was heard for the first time (``new``), or what it announces has changed.

    ``announcements`` is all that it announces now, ``expires`` when the last of it is forgotten.
    """

    address: IPv6Address
    announcements: tuple[Announcement, ...]
    expires: float
    new: bool


@dataclass(frozen=True, slots=True)
class NeighbourRefreshed:
    """A neighbour announced again what it had announced."""

    address: IPv6Address
    expires: float


@dataclass(frozen=True, slots=True)
class NeighbourExpired:
    """All that a neighbour announced has run out, or had to make room."""

    address: IPv6Address


Event: TypeAlias = NeighbourHeard | NeighbourRefreshed | NeighbourExpired


@dataclass(frozen=True, slots=True)
class NeighbourEntry:
    """One announcer for ``minerva status``; times as of the instance's ``now``."""

    address: IPv6Address
    announcements: tuple[Announcement, ...]
    first_heard: float
    last_heard: float
    expires: float
    pinned: bool


# RFC 8990 section 2.8.11 keeps one copy per name and locator. In DULL all locators of a source are its own
# address, so what is left of the locator is the transport, and whether it is that address where that rule is
# waived; the latest word on the rest is the valid one.
_Key: TypeAlias = tuple[str, str, TransportProto | None, bool]


@dataclass(slots=True)
class _Source:
    first_heard: float
    last_heard: float
    entries: dict[_Key, tuple[Announcement, float]] = field(default_factory=dict)

    @property
    def announcements(self) -> tuple[Announcement, ...]:
        return tuple(announcement for announcement, _ in self.entries.values())

    @property
    def expires(self) -> float:
        return max(expires for _, expires in self.entries.values())


class DullInstance:
    """The DULL instance of one interface (see the module's docstring), with the contract of ``core.sansio``.

    ``link_local`` is our address there. ``random`` makes Session IDs, so a daemon passes a
    ``random.SystemRandom``. ``period`` is in seconds, ``ttl`` in milliseconds. With ``unique_local`` it
    believes an AN_ACP at a unique local address as well. ``counters`` has a number for every reason in
    :class:`Drop` and :class:`Count` that has occurred.
    """

    def __init__(
        self,
        link_local: IPv6Address,
        *,
        random: Random,
        period: float = ANNOUNCE_PERIOD,
        ttl: int = ANNOUNCE_TTL,
        unique_local: bool = False,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._link_local = link_local
        self._random = random
        self._period = period
        self._ttl = ttl
        self._unique_local = unique_local
        self._announced: tuple[Announcement, ...] = ()
        self._next_send: float | None = None
        self._last_sent = float("-inf")
        self._gaps: deque[float] = deque()
        self._answers = TokenBucket(ANSWER_BURST, ANSWER_INTERVAL)
        self._session_ids = SessionIds(random, recent=_RECENT_SESSIONS)
        self._sources: dict[IPv6Address, _Source] = {}
        self._pinned: set[IPv6Address] = set()
        self._datagrams: list[Datagram] = []
        self._events: deque[Event] = deque()

    def announce(self, announcements: Sequence[Announcement], now: float) -> None:
        """Announce this, and nothing else, from now on; to be called again when the link has come up.

        What is only less than before is announced at its next time. Raises :class:`GraspError` if it does not
        fit into packets that are not fragmented.
        """
        size = max(
            (len(flood.encode()) for flood in self._floods(announcements, lambda: MAX_UINT32)), default=0
        )
        if size > MAX_MULTICAST_SIZE:
            raise GraspError(f"announcements of {size} bytes, at most {MAX_MULTICAST_SIZE} fit into a packet")
        less = 0 < len(announcements) < len(self._announced) and set(announcements) < set(self._announced)
        self._announced = tuple(announcements)
        if less:
            return
        self._next_send = None
        if announcements:
            self._start_series(now)
            self._send_if_due(now)

    def withdraw(self, now: float) -> None:
        """Announce nothing any more. Others forget us when the ttl runs out; GRASP has no recall."""
        self.announce((), now)

    def pin(self, address: IPv6Address) -> None:
        """Keep ``address``, which has been authenticated, whoever else announces itself."""
        self._pinned.add(address)

    def unpin(self, address: IPv6Address) -> None:
        """Treat ``address`` like any other again."""
        self._pinned.discard(address)

    def neighbours(self) -> list[NeighbourEntry]:
        """Return who is believed to be there."""
        return [
            NeighbourEntry(
                address,
                source.announcements,
                source.first_heard,
                source.last_heard,
                source.expires,
                address in self._pinned,
            )
            for address, source in self._sources.items()
        ]

    def receive(self, data: bytes, address: IPv6Address, port: int, now: float) -> None:  # noqa: ARG002
        """Take a packet that came from ``address``; the port says nothing."""
        if address == self._link_local:
            self.counters[Drop.OWN] += 1
            return
        try:
            ttl, announcements = read_announcements(data, address, unique_local=self._unique_local)
        except AnnouncementError as error:
            self.counters[error.reason] += 1
            return
        self._expire(now)
        known = self._sources.get(address)
        if known is None and not self._make_room():
            self.counters[Drop.TABLE_FULL] += 1
            return
        self.counters[Count.ACCEPTED] += 1
        if known is None:
            self._answer(now, series=True)
        elif PAIR_GAP < now - known.last_heard < self._period / 2 and now - self._last_sent >= ANSWER_HOLD:
            self._answer(now, series=False)
        self._remember(address, ttl, announcements, now)

    def datagrams_to_send(self, now: float) -> list[Datagram]:  # noqa: ARG002 -- the contract
        """Return, and forget, what is to be sent."""
        datagrams, self._datagrams = self._datagrams, []
        return datagrams

    def next_timer(self) -> float | None:
        """Return when ``on_timer`` wants to be called, or ``None`` for never."""
        times = [expires for source in self._sources.values() for _, expires in source.entries.values()]
        if self._next_send is not None:
            times.append(self._next_send)
        return min(times, default=None)

    def on_timer(self, now: float) -> None:
        """Send what is due, and forget what has expired."""
        self._expire(now)
        self._send_if_due(now)

    def next_event(self) -> Event | None:
        """Return, and forget, the oldest event, or ``None``."""
        return self._events.popleft() if self._events else None

    def _start_series(self, when: float) -> None:
        self._gaps = deque(FAST_START)
        self._next_send = when

    def _answer(self, now: float, *, series: bool) -> None:
        """Announce soon, because someone may not know us: once, or in a new series."""
        if self._next_send is None:
            return
        spread = min(1.0, ANSWER_SPREAD * (len(self._sources) + 1)) * self._random.random()
        when = max(now + spread, self._last_sent + MIN_GAP)
        if self._next_send <= when and (not series or len(self._gaps) == len(FAST_START)):
            return  # What is about to be sent does it.
        if not self._answers.take(now):
            self.counters[Count.ANSWER_LIMITED] += 1
        elif series:
            self._start_series(min(when, self._next_send))
        else:
            self._next_send = when

    def _send_if_due(self, now: float) -> None:
        if self._next_send is None or now < self._next_send:
            return
        for flood in self._floods(self._announced, self._session_ids.new):
            self._datagrams.append(Datagram(flood.encode(), ALL_GRASP_NEIGHBORS, GRASP_LISTEN_PORT))
            self.counters[Count.SENT] += 1
        self._last_sent = now
        if self._gaps:
            self._next_send = now + self._gaps.popleft()
        else:
            self._next_send = now + self._period * (1 + PERIOD_JITTER * (2 * self._random.random() - 1))

    def _floods(self, announcements: Sequence[Announcement], session_id: Callable[[], int]) -> list[Flood]:
        floods: dict[tuple[int, bool], list[FloodEntry]] = {}
        for announcement in announcements:
            ttl = PROXY_TTL if announcement.objective == AN_PROXY else self._ttl
            kind = (ttl, announcement.address is None)
            floods.setdefault(kind, []).append(announcement.to_entry(self._link_local))
        return [
            Flood(session_id(), self._link_local, ttl, tuple(entries)) for (ttl, _), entries in floods.items()
        ]

    def _make_room(self) -> bool:
        """Return whether one more source can be remembered; a random one that is not pinned may have to go.

        Refusing newcomers instead would let someone who invents announcers shut honest ones out; by being
        heard at all an honest one has got its event, and so its chance to prove who it is.
        """
        if len(self._sources) < MAX_SOURCES:
            return True
        candidates = [address for address in self._sources if address not in self._pinned]
        if not candidates:
            return False
        self._forget(self._random.choice(candidates))
        self.counters[Count.EVICTED] += 1
        return True

    def _remember(
        self, address: IPv6Address, ttl: int, announcements: tuple[Announcement, ...], now: float
    ) -> None:
        new = address not in self._sources
        source = self._sources.setdefault(address, _Source(now, now))
        source.last_heard = now
        expires = now + (min(ttl / 1000, MAX_LIFETIME) if ttl else MAX_LIFETIME)
        changed = new
        for announcement in announcements:
            key = (
                announcement.objective,
                announcement.method,
                announcement.transport,
                announcement.address is None,
            )
            # The entries stay in the order of their last refresh, and the one not refreshed for longest gives
            # way: else who forges a neighbour's address could fill its places before the neighbour does.
            before = source.entries.pop(key, None)
            if len(source.entries) >= MAX_ANNOUNCEMENTS:
                del source.entries[next(iter(source.entries))]
                self.counters[Count.FORGOTTEN] += 1
            source.entries[key] = (announcement, expires)
            changed |= before is None or before[0] != announcement
        if changed:
            self._events.append(NeighbourHeard(address, source.announcements, source.expires, new))
        else:
            self._events.append(NeighbourRefreshed(address, source.expires))

    def _expire(self, now: float) -> None:
        for address, source in list(self._sources.items()):
            live = {key: entry for key, entry in source.entries.items() if entry[1] > now}
            if not live:
                self._forget(address)
            elif len(live) < len(source.entries):
                source.entries = live
                self._events.append(NeighbourHeard(address, source.announcements, source.expires, False))

    def _forget(self, address: IPv6Address) -> None:
        del self._sources[address]
        self._events.append(NeighbourExpired(address))
