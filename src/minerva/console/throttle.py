"""How often logins may fail, and how many may be under way, so that a flood locks out only itself.

A source is an address; of IPv6, the prefix that one machine may have for itself. Failures are counted for
each source. Guessed passwords are counted in total, too, since one who guesses may have many addresses: when
there are too many, passwords are taken only from sources that have logged in before. Keys are not guessed,
and work all the time. Nothing here reads a clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeVar

from minerva.core.rate import TokenBucket

MINUTE: Final = 60.0
TOTAL_FAILURES: Final = 60
"""Failed passwords a minute, of all sources together."""
MAX_SOURCES: Final = 4096
"""So many sources are remembered, of each kind."""
LOGINS_OF_SOURCE: Final = 8
"""Connections of one source that have not logged in yet."""
LOGINS: Final = 64
"""Connections that have not logged in yet, in total."""

_V = TypeVar("_V")
_UNIQUE_LOCAL: Final = IPv6Network("fc00::/7")


def source_of(address: str) -> str:
    """Return the source that an address belongs to: itself, or for IPv6 what one machine may have.

    In the ACP (unique local addresses) a node has at most the last 8 or 16 bits (RFC 8994 section 6.11).
    """
    try:
        found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    if found.is_loopback or found.is_link_local:
        return str(found)
    return str(ip_network((found, 120 if found in _UNIQUE_LOCAL else 64), strict=False))


class Throttle:
    """Says who may try to log in."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        """So many failures a minute one source may have."""
        self._sources: OrderedDict[str, TokenBucket] = OrderedDict()
        self._good: OrderedDict[str, None] = OrderedDict()
        self._total = TokenBucket(TOTAL_FAILURES, MINUTE / TOTAL_FAILURES)
        self._total_spent_until = 0.0
        self._blocked_until: dict[str, float] = {}

    def blocked(self, source: str, now: float) -> bool:
        """Return whether a source has failed too often to try again already."""
        until = self._blocked_until.get(source)
        if until is None:
            return False
        if now < until:
            return True
        del self._blocked_until[source]
        return False

    def password_blocked(self, source: str, now: float) -> bool:
        """Return whether no password is to be taken from a source now."""
        return self.blocked(source, now) or (now < self._total_spent_until and not self.known(source))

    def known(self, source: str) -> bool:
        """Return whether somebody has logged in from there before."""
        return source in self._good

    def failed(self, source: str, now: float, *, guess: bool) -> None:
        """Count a failed login; ``guess`` if it was by a password."""
        bucket = self._sources.pop(source, None) or TokenBucket(self.failures, MINUTE / self.failures)
        _remember(self._sources, source, bucket)
        if not bucket.take(now):
            if len(self._blocked_until) >= MAX_SOURCES:
                self._blocked_until.pop(next(iter(self._blocked_until)))
            self._blocked_until[source] = now + MINUTE
        if guess and not self._total.take(now):
            self._total_spent_until = now + MINUTE / TOTAL_FAILURES

    def succeeded(self, source: str) -> None:
        """Remember that somebody logged in from there."""
        self._good.pop(source, None)
        _remember(self._good, source, None)


class Paces:
    """How often each source may come: ``burst`` times at once, and once more every ``seconds``."""

    def __init__(self, burst: int, seconds: float) -> None:
        self._burst = burst
        self._seconds = seconds
        self._sources: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, source: str, now: float) -> bool:
        """Return whether a source may come now; if so, it counts as having come."""
        bucket = self._sources.pop(source, None) or TokenBucket(self._burst, self._seconds)
        _remember(self._sources, source, bucket)
        return bucket.take(now)


class Logins:
    """The connections that have not logged in yet. When there are too many, those of the busiest source go.

    So a flood, from however many connections, ends its own; whoever comes from elsewhere is let in.
    """

    def __init__(self, of_source: int = LOGINS_OF_SOURCE, total: int = LOGINS) -> None:
        self._of_source = of_source
        self._total = total
        self._waiting: dict[int, tuple[str, Callable[[], None]]] = {}
        self._counts: dict[str, int] = {}
        self._next = 0
        self.refused = 0

    def enter(self, source: str, end: Callable[[], None]) -> int | None:
        """Take a connection; ``end`` ends it. Return its number, or None if it is one too many."""
        if self._counts.get(source, 0) >= self._of_source:
            self.refused += 1
            return None
        if len(self._waiting) >= self._total:
            busiest = max(self._counts, key=self._counts.__getitem__)
            oldest = next(number for number, (where, _) in self._waiting.items() if where == busiest)
            stop = self._waiting[oldest][1]
            self.leave(oldest)
            self.refused += 1
            stop()
        self._next += 1
        self._waiting[self._next] = (source, end)
        self._counts[source] = self._counts.get(source, 0) + 1
        return self._next

    def leave(self, number: int) -> None:
        """Say that a connection has logged in or ended; again has no effect."""
        found = self._waiting.pop(number, None)
        if found is not None:
            source = found[0]
            self._counts[source] -= 1
            if not self._counts[source]:
                del self._counts[source]


def _remember(kept: OrderedDict[str, _V], source: str, value: _V) -> None:
    kept[source] = value
    if len(kept) > MAX_SOURCES:
        kept.popitem(last=False)
