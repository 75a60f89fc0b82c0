"""Which DODAG, which parents: root election, OF0 (RFC 6552), and what keeps the result free of loops.

A node without a parent is the root of a floating DODAG of its own. DODAGs are compared by their root alone:
DODAGPreference, then the grounded bit, then the numerically higher DODAGID. Everybody is in the best DODAG it
hears of, so that what is connected ends up in one.

Distance vectors count to infinity when news are bad, and the ACP profile has no RPL Packet Information by
which data packets would reveal a loop. So a node takes as parent only a neighbour whose advertised rank is
lower than the *lowest* rank which the node itself ever advertised in that version of that DODAG (the
feasibility condition that also DUAL and Babel use: nobody in the node's own sub-DODAG can meet it). Who has
nobody left detaches (RFC 6550 section 8.2.2.6), and the condition holds for the abandoned DODAG until
``hold_down`` is over: by then the former sub-DODAG has heard of it. Should bad luck with lost DIOs make a
loop after that, then the condition fails for somebody on the loop with the first DIO that gets through, and
the next hold-down is twice as long.

Detaching does not lower the preference of the node's own DODAG: while the abandoned root lives, it beats
every node that was in its DODAG, for else that node would have been the root; and if it is dead, its heirs
elect the best of themselves at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address
from math import inf

from minerva.core.backoff import Backoff
from minerva.rpl.config import Preference
from minerva.rpl.messages import INFINITE_RANK, ModeOfOperation
from minerva.rpl.options import DodagConfiguration
from minerva.rpl.sequence import INITIAL_SEQUENCE, increment, is_newer, is_older

_VERSION_GAP = 1.0
MAX_REMEMBERED = 64
"""How many DODAGs a node remembers; the one left longest ago is forgotten first."""


@dataclass(frozen=True, slots=True)
class Dodag:
    """One version of one DODAG, as its root describes it."""

    dodag_id: IPv6Address
    version: int
    grounded: bool
    preference: int
    mode_of_operation: int

    @property
    def priority(self) -> tuple[int, bool, int]:
        """The greater, the better."""
        return (self.preference, self.grounded, int(self.dodag_id))


class OwnDodag:
    """The DODAG that the node roots when it has no parent, and its version."""

    def __init__(self, dodag_id: IPv6Address, preference: Preference) -> None:
        self.preference = preference
        self._dodag_id = dodag_id
        self._version = INITIAL_SEQUENCE
        self._since = -inf

    @property
    def dodag(self) -> Dodag:
        """The DODAG as the node would describe it in a DIO."""
        preference = self.preference
        return Dodag(self._dodag_id, self._version, preference.grounded, preference, ModeOfOperation.STORING)

    def new_version(self, now: float) -> None:
        """Start a new version: what others know of an older one is void."""
        self._version = increment(self._version)
        self._since = now

    def overtake(self, version: int, now: float) -> bool:
        """Take note of a version of this DODAG that is newer than its root's, from before a restart.

        Return whether there has to be a new version. There is at most one a second, as a hostile neighbour
        could ask for ever newer ones.
        """
        if not is_newer(version, self._version) or now - self._since < _VERSION_GAP:
            return False
        self._version = version
        return True


@dataclass(frozen=True, slots=True)
class Offer:
    """A neighbour that may become a parent: its DODAG, its rank, and the rank that we would have by it."""

    interface: int
    dodag: Dodag
    rank: int
    resulting_rank: int
    configuration: DodagConfiguration
    suspicious: bool
    """It does not acknowledge DAOs."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The DODAG to be in, and the parents there, the preferred one first."""

    dodag: Dodag
    configuration: DodagConfiguration
    parents: tuple[int, ...]
    rank: int


@dataclass(slots=True)
class _Membership:
    version: int
    lowest: int
    until: float | None
    joined_at: float
    backoff: Backoff


class DodagMemory:
    """The lowest rank advertised in each DODAG that the node is or was in (RFC 6550 section 8.2.2.1)."""

    def __init__(self, hold_down: float, hold_down_maximum: float, stable_after: float) -> None:
        self._hold_down = hold_down
        self._maximum = hold_down_maximum
        self._stable_after = stable_after
        self._memberships: dict[IPv6Address, _Membership] = {}

    def __len__(self) -> int:
        return len(self._memberships)

    def allows(self, offer: Offer, now: float) -> bool:
        """Return whether the offer meets the feasibility condition and the DODAG's MaxRankIncrease."""
        membership = self._memberships.get(offer.dodag.dodag_id)
        if membership is None or (membership.until is not None and membership.until <= now):
            return True
        if membership.version != offer.dodag.version:
            return not is_older(offer.dodag.version, membership.version)
        increase = offer.configuration.max_rank_increase
        if increase and offer.resulting_rank > membership.lowest + increase:
            return False
        return offer.rank < membership.lowest

    def advertised(self, dodag: Dodag, rank: int, now: float) -> None:
        """Record that the node is in ``dodag`` with ``rank``."""
        membership = self._memberships.get(dodag.dodag_id)
        if membership is None:
            self._make_room()
            backoff = Backoff(self._hold_down, self._maximum)
            self._memberships[dodag.dodag_id] = _Membership(dodag.version, rank, None, now, backoff)
            return
        forgotten = membership.until is not None and membership.until <= now
        if forgotten or membership.version != dodag.version:
            membership.version, membership.lowest = dodag.version, rank
        else:
            membership.lowest = min(membership.lowest, rank)
        if membership.until is not None:
            membership.until, membership.joined_at = None, now

    def left(self, dodag_id: IPv6Address, now: float, *, lost: bool) -> None:
        """Record that the node left the DODAG: the condition holds until the hold-down is over.

        ``lost`` says that it had to: that doubles the next hold-down, unless it was long ago.
        """
        membership = self._memberships.get(dodag_id)
        if membership is None or membership.until is not None:
            return
        if now - membership.joined_at >= self._stable_after:
            membership.backoff.reset()
        membership.until = now + (membership.backoff.failed() if lost else self._hold_down)

    def next_expiry(self, now: float) -> float:
        """Return when the next hold-down after ``now`` is over, infinity if there is none."""
        times = [m.until for m in self._memberships.values() if m.until is not None and m.until > now]
        return min(times, default=inf)

    def _make_room(self) -> None:
        if len(self._memberships) >= MAX_REMEMBERED:
            past = [(m.until, dodag_id) for dodag_id, m in self._memberships.items() if m.until is not None]
            if past:
                del self._memberships[min(past)[1]]


def choose(
    own: Dodag,
    offers: Iterable[Offer],
    allows: Callable[[Offer], bool],
    current: tuple[int, ...],
    max_parents: int,
) -> Choice | None:
    """Return the best DODAG and the parents in it, or ``None`` to be a root.

    ``current`` are the interfaces of the present parents, the preferred one first: among equals they stay
    (RFC 6552 section 4.2.1).
    """
    eligible = _newest_versions([offer for offer in offers if offer.dodag.dodag_id != own.dodag_id])
    eligible = [offer for offer in eligible if allows(offer)]
    best = max((offer.dodag.priority for offer in eligible), default=own.priority)
    if best <= own.priority:
        return None

    def order(offer: Offer) -> tuple[bool, int, int, int]:
        place = current.index(offer.interface) if offer.interface in current else len(current)
        return (offer.suspicious, offer.resulting_rank, place, offer.interface)

    candidates = sorted((offer for offer in eligible if offer.dodag.priority == best), key=order)
    preferred = candidates[0]
    rank = preferred.resulting_rank
    min_hop = preferred.configuration.min_hop_rank_increase
    others = [
        offer.interface
        for offer in candidates[1:]
        if offer.dodag.version == preferred.dodag.version and offer.rank // min_hop < rank // min_hop
    ]
    parents = (preferred.interface, *others[: max_parents - 1])
    return Choice(preferred.dodag, preferred.configuration, parents, rank)


def resulting_rank(rank: int, rank_factor: int, step_of_rank: int, min_hop_rank_increase: int) -> int:
    """Return the rank by a parent of ``rank`` (RFC 6552 section 4.1, no stretch); at most INFINITE_RANK."""
    return min(rank + rank_factor * step_of_rank * min_hop_rank_increase, INFINITE_RANK)


def _newest_versions(offers: list[Offer]) -> list[Offer]:
    """Leave out who is in an older version of a DODAG than another neighbour (RFC 6550 section 8.2.2.1)."""
    newest: dict[IPv6Address, int] = {}
    for offer in offers:
        known = newest.get(offer.dodag.dodag_id)
        if known is None or is_newer(offer.dodag.version, known):
            newest[offer.dodag.dodag_id] = offer.dodag.version
    return [offer for offer in offers if not is_older(offer.dodag.version, newest[offer.dodag.dodag_id])]
