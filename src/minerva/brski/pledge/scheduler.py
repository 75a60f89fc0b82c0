"""Which proxy a pledge tries, and when (RFC 8995 sections 4.1 and 5.1).

A sans-IO core without datagrams (:mod:`minerva.core.sansio`): it hears of proxies, says what to start and
what to abandon, and is told how each attempt goes. It knows nothing of connections and vouchers.

Its theory of operation:

* Attempts run beside each other, so that one who answers slowly on purpose holds up nobody. Two starts are 3
  to 5 s apart; the first is at once.
* There are only so many sockets. When all are in use and another proxy could be tried, the oldest
  attempt that has not got on for 5 s gives way; one that never got anywhere before one that did.
* The ports take turns, and on each port those proxies who once got somewhere take turns with the others: a
  flood of forged announcements on one link costs the other links nothing, and a known proxy half of its turns
  at most. Among equals the one that was tried least recently is next.
* Each proxy has a back-off of its own, from 5 s to an hour. Only a link that comes up ends it early.
* Once a voucher has been verified, that attempt goes on alone: a device enrols once.
* What is remembered is bounded, for each port and in all. A newcomer takes the place of a proxy that has
  failed, never of one under way and never of one that got somewhere, of which there may be only so many.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv6Address
from typing import Final

from minerva.brski.pledge.errors import SchedulerError
from minerva.core.backoff import Backoff

SPACING: Final = (3.0, 5.0)
"""How many seconds lie between two starts: at least, and at most (RFC 8995 section 4.1)."""

STALL: Final = 5.0
"""After how many seconds without progress an attempt may have to give way (RFC 8995 section 5.1)."""

INITIAL_BACKOFF: Final = 5.0
MAX_BACKOFF: Final = 3600.0
"""The back-off of a proxy, in seconds: after its first failure, and at most (RFC 8995 section 4.1)."""

MAX_ATTEMPTS: Final = 8
"""How many attempts run beside each other, if the owner does not say: one socket each."""

MAX_PROXIES: Final = 256
MAX_PER_PORT: Final = 16
"""How many proxies are remembered, in all and for one port."""

MAX_PROTECTED: Final = 12
"""How many proxies of one port are safe from newcomers because they got somewhere."""

MAX_LIFETIME: Final = 600.0
"""How long an announcement is believed at most, in seconds. Proxies announce themselves for 180 s."""

_JITTER = 0.2


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where a join proxy listens: ``address`` is link-local on ``port``, the owner's number of it."""

    port: int
    address: IPv6Address
    tcp_port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.tcp_port}"


@dataclass(frozen=True, slots=True)
class Start:
    """Connect to ``proxy`` and bootstrap; report under the number ``attempt``, which is never used again."""

    proxy: Proxy
    attempt: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """Drop ``attempt`` and its connection, and report nothing more about it. ``reason`` is for people."""

    proxy: Proxy
    attempt: int
    reason: str


class State(Enum):
    """What goes on with a proxy."""

    WAITING = "waiting"
    """For its turn, or for the end of its back-off."""
    CONNECTING = "connecting"
    """An attempt runs, and nothing has come of it so far."""
    PROGRESSING = "progressing"
    """An attempt runs, and the other end has answered."""
    IMPRINTED = "imprinted"
    """An attempt runs, and has a verified voucher."""


class Happening(Enum):
    """What changes that."""

    START = "start"
    PROGRESS = "progress"
    IMPRINT = "imprint"
    FAIL = "fail"
    ABANDON = "abandon"


_TRANSITIONS: Final = {
    (State.WAITING, Happening.START): State.CONNECTING,
    (State.CONNECTING, Happening.PROGRESS): State.PROGRESSING,
    (State.CONNECTING, Happening.IMPRINT): State.IMPRINTED,
    (State.CONNECTING, Happening.FAIL): State.WAITING,
    (State.CONNECTING, Happening.ABANDON): State.WAITING,
    (State.PROGRESSING, Happening.PROGRESS): State.PROGRESSING,
    (State.PROGRESSING, Happening.IMPRINT): State.IMPRINTED,
    (State.PROGRESSING, Happening.FAIL): State.WAITING,
    (State.PROGRESSING, Happening.ABANDON): State.WAITING,
    (State.IMPRINTED, Happening.PROGRESS): State.IMPRINTED,
    (State.IMPRINTED, Happening.FAIL): State.WAITING,
    (State.IMPRINTED, Happening.ABANDON): State.WAITING,
}


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    """What is known of a proxy, for people: ``retry_at`` is when its back-off ends, if it is in one."""

    proxy: Proxy
    state: State
    attempt: int | None
    failures: int
    retry_at: float | None
    reason: str | None


@dataclass(slots=True)
class _Entry:
    proxy: Proxy
    number: int
    expires: float
    backoff: Backoff
    state: State = State.WAITING
    got_somewhere: bool = False
    not_before: float = -math.inf
    last_tried: float = -math.inf
    attempt: int | None = None
    last_progress: float = -math.inf
    reason: str | None = None

    def happen(self, happening: Happening) -> None:
        """Go where the table says. Raises :class:`SchedulerError` for what cannot happen now."""
        try:
            self.state = _TRANSITIONS[self.state, happening]
        except KeyError:
            raise SchedulerError(f"{self.proxy} is {self.state.value}: no {happening.value} now") from None


@dataclass(slots=True)
class _Port:
    entries: dict[Proxy, _Entry] = field(default_factory=dict)
    last_start: float = -math.inf
    known_next: bool = False
    """Whether the next turn is that of the proxies who got somewhere."""


Event = Start | Abandon


class AttemptScheduler:
    """Decides which proxies a pledge tries. ``random`` returns numbers in [0, 1), ``now`` is monotonic.

    Reports about an attempt that is over, such as one that was abandoned while it failed, are dropped.
    """

    def __init__(self, random: Callable[[], float], *, max_attempts: int = MAX_ATTEMPTS) -> None:
        if max_attempts < 1:
            raise SchedulerError(f"{max_attempts} attempts at once: at least one is needed")
        self._random = random
        self._max_attempts = max_attempts
        self._ports: dict[int, _Port] = {}
        self._running: dict[int, _Entry] = {}
        self._events: deque[Event] = deque()
        self._next_start = -math.inf
        self._numbers = 0
        self._attempts = 0
        self._imprinted: int | None = None
        self._done = False
        self.dropped = 0
        """How many announcements found no place: a flood, or an unusual number of neighbours."""

    def heard(self, proxy: Proxy, expires: float, now: float) -> None:
        """Take the announcement of ``proxy``, which holds until ``expires``."""
        if self._done:
            return
        expires = min(expires, now + MAX_LIFETIME)
        if expires <= now:
            self.expired(proxy, now)
            return
        entry = self._entry(proxy)
        if entry is not None:
            entry.expires = expires
        elif self._make_room(proxy, now):
            self._numbers += 1
            backoff = Backoff(INITIAL_BACKOFF, MAX_BACKOFF)
            port = self._ports.setdefault(proxy.port, _Port())
            port.entries[proxy] = _Entry(proxy, self._numbers, expires, backoff)
        else:
            self.dropped += 1
        self._advance(now)

    def expired(self, proxy: Proxy, now: float) -> None:
        """Forget ``proxy``, which does not offer itself any longer. An attempt under way goes on."""
        if (entry := self._entry(proxy)) is not None:
            entry.expires = -math.inf
            self._forget_expired(now)

    def link_up(self, port: int, now: float) -> None:
        """End the back-offs on ``port``, whose link has come up."""
        if (found := self._ports.get(port)) is not None:
            for entry in found.entries.values():
                entry.backoff.reset()
                entry.not_before = -math.inf
        self._advance(now)

    def link_down(self, port: int, now: float) -> None:
        """Forget the proxies on ``port``, which is gone, and abandon the attempts there."""
        if (found := self._ports.get(port)) is not None:
            for entry in list(found.entries.values()):
                entry.expires = -math.inf
                if entry.attempt is not None:
                    self._abandon(entry, "the link went down")
        self._forget_expired(now)
        self._advance(now)

    def progress(self, attempt: int, now: float) -> None:
        """Note that the other end of ``attempt`` has answered: a handshake done, a response complete."""
        if (entry := self._running.get(attempt)) is not None:
            entry.happen(Happening.PROGRESS)
            entry.got_somewhere = True
            entry.last_progress = now

    def imprinted(self, attempt: int, now: float) -> bool:
        """Return whether ``attempt``, which has verified a voucher, may go on; all others are then abandoned.

        If not, another one was first, or this one is over.
        """
        # Of the others none runs any more, from the moment that the first one was.
        entry = self._running.get(attempt)
        if entry is None:
            return False
        if self._imprinted is None:
            entry.happen(Happening.IMPRINT)
            self._imprinted = attempt
        entry.got_somewhere = True
        entry.last_progress = now
        for other in [other for other in self._running.values() if other is not entry]:
            self._abandon(other, f"the voucher came through {entry.proxy}")
        return True

    def failed(self, attempt: int, reason: str, now: float) -> None:
        """Note that ``attempt`` is over, without success: its proxy is left alone for a while."""
        if (entry := self._running.get(attempt)) is not None:
            entry.happen(Happening.FAIL)
            self._over(entry)
            self._back_off(entry, reason, now)
            self._forget_expired(now)
        self._advance(now)

    def succeeded(self, attempt: int) -> None:
        """Note that ``attempt`` has enrolled the device: nothing is started any more."""
        if attempt not in self._running:
            return
        del self._running[attempt]
        for other in list(self._running.values()):
            self._abandon(other, "the device is enrolled")
        self._done = True
        self._ports.clear()

    def next_timer(self) -> float | None:
        """Return when :meth:`on_timer` wants to be called, or ``None`` for never."""
        waiting = [entry for entry in self._entries() if entry.state is State.WAITING]
        if not waiting:
            return None
        first_expiry = min(entry.expires for entry in waiting)
        if self._imprinted is not None:
            return first_expiry
        start = max(self._next_start, min(entry.not_before for entry in waiting))
        if len(self._running) >= self._max_attempts:
            start = max(start, min(entry.last_progress for entry in self._running.values()) + STALL)
        return min(first_expiry, start)

    def on_timer(self, now: float) -> None:
        """Do what is due at ``now``. Harmless when nothing is."""
        self._forget_expired(now)
        self._advance(now)

    def next_event(self) -> Event | None:
        """Return, and forget, the oldest event, or ``None``."""
        return self._events.popleft() if self._events else None

    def status(self, now: float) -> tuple[ProxyStatus, ...]:
        """Return what is known of the proxies, in the order they were heard first."""
        return tuple(
            ProxyStatus(
                entry.proxy,
                entry.state,
                entry.attempt,
                entry.backoff.failures,
                entry.not_before if entry.not_before > now and entry.state is State.WAITING else None,
                entry.reason,
            )
            for entry in sorted(self._entries(), key=lambda entry: entry.number)
        )

    def _entries(self) -> list[_Entry]:
        return [entry for port in self._ports.values() for entry in port.entries.values()]

    def _entry(self, proxy: Proxy) -> _Entry | None:
        port = self._ports.get(proxy.port)
        return None if port is None else port.entries.get(proxy)

    def _advance(self, now: float) -> None:
        """Start the next attempt, if it is time for one."""
        if self._done or self._imprinted is not None or now < self._next_start:
            return
        entry = self._choose(now)
        if entry is None:
            return
        if len(self._running) >= self._max_attempts:
            stalled = self._stalled(now)
            if stalled is None:
                return
            reason = f"nothing came of it for {STALL:.0f} s, and others wait"
            self._abandon(stalled, reason)
            self._back_off(stalled, reason, now)
            self._forget_expired(now)
        self._start(entry, now)

    def _choose(self, now: float) -> _Entry | None:
        """Return the proxy whose turn it is."""
        ready = {
            number: [
                entry
                for entry in port.entries.values()
                if entry.state is State.WAITING and entry.not_before <= now < entry.expires
            ]
            for number, port in self._ports.items()
        }
        numbers = [number for number, entries in ready.items() if entries]
        if not numbers:
            return None
        number = min(numbers, key=lambda number: self._ports[number].last_start)
        known_next = self._ports[number].known_next
        turn = [entry for entry in ready[number] if entry.got_somewhere is known_next] or ready[number]
        return min(turn, key=lambda entry: (entry.last_tried, entry.number))

    def _stalled(self, now: float) -> _Entry | None:
        """Return the attempt that has to give way, if one has to."""
        stalled = [entry for entry in self._running.values() if now >= entry.last_progress + STALL]
        if not stalled:
            return None
        return min(stalled, key=lambda entry: (entry.state is not State.CONNECTING, entry.last_tried))

    def _start(self, entry: _Entry, now: float) -> None:
        entry.happen(Happening.START)
        self._attempts += 1
        entry.attempt = self._attempts
        entry.last_tried = entry.last_progress = now
        self._running[entry.attempt] = entry
        port = self._ports[entry.proxy.port]
        port.last_start = now
        port.known_next = not entry.got_somewhere
        least, most = SPACING
        self._next_start = now + least + (most - least) * self._random()
        self._events.append(Start(entry.proxy, entry.attempt))

    def _abandon(self, entry: _Entry, reason: str) -> None:
        assert entry.attempt is not None
        self._events.append(Abandon(entry.proxy, entry.attempt, reason))
        entry.happen(Happening.ABANDON)
        self._over(entry)

    def _over(self, entry: _Entry) -> None:
        assert entry.attempt is not None
        del self._running[entry.attempt]
        if self._imprinted == entry.attempt:
            self._imprinted = None
        entry.attempt = None

    def _back_off(self, entry: _Entry, reason: str, now: float) -> None:
        entry.reason = reason
        # Shorter by chance and never longer: the hour is a limit, and devices that got power at the same
        # moment should not come back at the same moment.
        entry.not_before = now + entry.backoff.failed() * (1 - _JITTER * self._random())

    def _forget_expired(self, now: float) -> None:
        for entry in self._entries():
            if entry.state is State.WAITING and entry.expires <= now:
                self._remove(entry)

    def _remove(self, entry: _Entry) -> None:
        port = self._ports[entry.proxy.port]
        del port.entries[entry.proxy]
        if not port.entries:
            del self._ports[entry.proxy.port]

    def _make_room(self, proxy: Proxy, now: float) -> bool:
        """Return whether there is room for ``proxy`` on its port, after what may be done to make some."""
        self._forget_expired(now)
        port = self._ports.get(proxy.port)
        mine = 0 if port is None else len(port.entries)
        if port is not None and mine >= MAX_PER_PORT:
            victims = [entry for entry in _unprotected(port) if entry.backoff.failures]
        elif sum(len(port.entries) for port in self._ports.values()) >= MAX_PROXIES:
            # A port that has fewer than others gets its share, even of what has not been tried yet.
            crowded = max(self._ports.values(), key=lambda port: len(port.entries))
            victims = _unprotected(crowded) if len(crowded.entries) > mine + 1 else []
        else:
            return True
        if not victims:
            return False
        self._remove(max(victims, key=lambda entry: (entry.backoff.failures, entry.number)))
        return True


def _unprotected(port: _Port) -> list[_Entry]:
    """Return the proxies of ``port`` that may have to make room."""
    known = [entry for entry in port.entries.values() if entry.got_somewhere]
    known.sort(key=lambda entry: (entry.backoff.failures, entry.number))
    protected = {entry.number for entry in known[:MAX_PROTECTED]}
    return [
        entry
        for entry in port.entries.values()
        if entry.state is State.WAITING and entry.number not in protected
    ]
