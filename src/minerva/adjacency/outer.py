"""Unique local addresses in the place of link-local ones: which address of a neighbour a channel goes to.

RFC 8994 has secure channels between link-local addresses (section 6.8.3.1), and so announced (section 6.4).
Some kernels and IKE daemons cannot do that, as an SA of theirs does not know on which link an address is.
What helps them is an address that is unique without a link: the node makes one for each port (RFC 4193),
announces it, and routes that of its neighbour to the neighbour's link-local address, as a host route on that
port. This deviates from both sections, so it is only done where the operator wants it.

One :class:`OuterAddresses` per port stands between what DULL GRASP hears and the adjacency table. There, such
a neighbour is known by its unique local address; everybody else by the link-local one, as ever: who announces
nothing but that, and who may not have what it announces. For an announcement is no proof:

* A unique local address belongs to the link-local address that was the first to announce it, for as long as
  that announces it or has a channel at it. So nobody takes over the route of another neighbour.
* A link-local address has one of them: the newest that it announced, but none other while it has a channel.
* Our own prefix is nobody else's.
* There are ``MAX_ROUTES`` on a port, and ``NEW_BURST`` new ones, then one in ``NEW_INTERVAL`` seconds, as
  each is work for the kernel. Who was there first stays: who finds no room still has its link-local address.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address, IPv6Network
from typing import Final

from minerva.adjacency.core import METHODS, Adjacency
from minerva.core.addresses import UNIQUE_LOCAL
from minerva.core.rate import TokenBucket

PREFIX_LENGTH: Final = 48
"""How much of a unique local address is the node's own (RFC 4193 section 3.1)."""

MAX_ROUTES: Final = 64
"""How many neighbours of a port can be reached by a unique local address: as many as we want channels to."""

NEW_BURST: Final = MAX_ROUTES
NEW_INTERVAL: Final = 1.0
"""How many new ones are taken at once, and every how many seconds one more."""


class Refusal(StrEnum):
    """Why a neighbour may not have the unique local address that it announces; what is counted."""

    NOT_ONE = "ula-not-one"
    OURS = "ula-of-our-own-prefix"
    TAKEN = "ula-of-another-neighbour"
    FULL = "ula-no-room"
    TOO_FAST = "ula-too-many-new-ones"


Offers = Mapping[IPv6Address | None, Mapping[str, int]]
"""The UDP port of every method by which a neighbour takes channels, by address; ``None`` is link-local."""


@dataclass(slots=True)
class _Source:
    """What a link-local address announces, and by which address the adjacency table knows it."""

    offers: Offers
    expires: float
    known: IPv6Address | None = None


class OuterAddresses:
    """Decides by which address the neighbours of ``port`` are known to ``adjacency``.

    ``ula`` is our own unique local address there; ``None`` has all stay link-local. The owner tells what
    DULL GRASP says (``heard``, ``refreshed``, ``expired``), makes the routes that it finds in ``routes``,
    tells which there are (``opened``), and at which addresses there are channels (``hold``, ``release``).
    ``counters`` has a number for every :class:`Refusal` that has occurred.
    """

    def __init__(self, adjacency: Adjacency, port: int, ula: IPv6Address | None) -> None:
        self._adjacency = adjacency
        self._port = port
        self._own = None if ula is None else IPv6Network((ula, PREFIX_LENGTH), strict=False)
        self._sources: dict[IPv6Address, _Source] = {}
        self._routes: dict[IPv6Address, IPv6Address] = {}
        self._opened: frozenset[IPv6Address] = frozenset()
        self._held: set[IPv6Address] = set()
        self._new = TokenBucket(NEW_BURST, NEW_INTERVAL)
        self.counters: Counter[str] = Counter()

    @property
    def routes(self) -> tuple[tuple[IPv6Address, IPv6Address], ...]:
        """The unique local addresses of neighbours, each with the link-local address that leads to it."""
        return tuple(sorted(self._routes.items()))

    def link_local_of(self, address: IPv6Address) -> IPv6Address:
        """Return the link-local address of the neighbour that is known by ``address``."""
        return self._routes.get(address, address)

    def ula_of(self, link_local: IPv6Address) -> IPv6Address | None:
        """Return the unique local address that a neighbour has, if there is a route to one."""
        return next((ula for ula, via in self._routes.items() if via == link_local), None)

    # What DULL GRASP says.

    def heard(self, link_local: IPv6Address, offers: Offers, expires: float, now: float) -> None:
        """A neighbour announces something new."""
        source = self._sources.setdefault(link_local, _Source(offers, expires))
        source.offers, source.expires = offers, expires
        self._settle(link_local, source, now, new=True)

    def refreshed(self, link_local: IPv6Address, expires: float, now: float) -> None:
        """A neighbour announced again what we know. What it could not have before, it may have now."""
        source = self._sources[link_local]
        source.expires = expires
        self._settle(link_local, source, now, new=False)

    def expired(self, link_local: IPv6Address, now: float) -> None:
        """A neighbour has not announced itself for as long as it had said."""
        source = self._sources.pop(link_local)
        if source.known is not None:
            self._adjacency.expired(self._port, source.known, now)
        self._forget_unused(link_local)

    # What the owner does.

    def opened(self, addresses: Collection[IPv6Address], now: float) -> None:
        """These unique local addresses, and no others, can be reached now."""
        new = frozenset(addresses) - self._opened
        self._opened = frozenset(addresses)
        for address in new:
            link_local = self._routes.get(address)
            if link_local in self._sources:
                self._settle(link_local, self._sources[link_local], now, new=True)

    def hold(self, address: IPv6Address) -> None:
        """There is a channel at ``address``: whatever is announced, the route to it stays."""
        if address in self._routes:
            self._held.add(address)

    def release(self, address: IPv6Address) -> None:
        """There is none any more."""
        self._held.discard(address)
        if address in self._routes:
            self._forget_unused(self._routes[address])

    # How it is decided.

    def _settle(self, link_local: IPv6Address, source: _Source, now: float, *, new: bool) -> None:
        """Have the adjacency table know a neighbour by the address that it is to be known by."""
        ula = self._choose(link_local, source, now)
        if ula is not None and ula not in self._opened:
            return  # until the kernel has the route
        address = link_local if ula is None else ula
        if source.known not in (None, address):
            self._adjacency.expired(self._port, source.known, now)
        if new or source.known != address:
            source.known = address
            self._adjacency.heard(self._port, address, source.offers.get(ula, {}), source.expires, now)
        else:
            self._adjacency.refreshed(self._port, address, source.expires, now)

    def _choose(self, link_local: IPv6Address, source: _Source, now: float) -> IPv6Address | None:
        """Return the unique local address that a neighbour is to be reached by, and see to its route."""
        bound = self.ula_of(link_local)
        wanted = _wanted(source.offers)
        if bound is not None and (bound == wanted or bound in self._held):
            return bound
        if bound is not None:
            del self._routes[bound]
        if wanted is None or self._own is None:
            return None
        refusal = self._refusal(wanted, now)
        if refusal is not None:
            self.counters[refusal] += 1
            return None
        self._routes[wanted] = link_local
        return wanted

    def _refusal(self, wanted: IPv6Address, now: float) -> Refusal | None:
        if wanted not in UNIQUE_LOCAL:
            return Refusal.NOT_ONE
        if self._own is not None and wanted in self._own:
            return Refusal.OURS
        if wanted in self._routes:
            return Refusal.TAKEN
        if len(self._routes) >= MAX_ROUTES:
            return Refusal.FULL
        return None if self._new.take(now) else Refusal.TOO_FAST

    def _forget_unused(self, link_local: IPv6Address) -> None:
        """Forget the route of a neighbour that announces nothing any more and has no channel at it."""
        if link_local in self._sources:
            return
        for ula, via in list(self._routes.items()):
            if via == link_local and ula not in self._held:
                del self._routes[ula]


def _wanted(offers: Offers) -> IPv6Address | None:
    """Return the address, other than the link-local one, at which a neighbour offers a method of ours."""
    ours = set(METHODS)
    return next((address for address in offers if address is not None and ours & set(offers[address])), None)
