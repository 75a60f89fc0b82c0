"""What each parent is to know: the node's own targets and its children's, Path Control bits shared out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Network
from math import ceil

from minerva.rpl.dao import Announcement
from minerva.rpl.downward import NEVER, TargetTable, split_path_control
from minerva.rpl.options import INFINITE_LIFETIME, INFINITE_LIFETIME_UNIT, DodagConfiguration
from minerva.rpl.sequence import INITIAL_SEQUENCE, increment

_ALL_BITS = 0xFF


class Announcer:
    """The node's own targets with their Path Sequence, and how they and the table look to each parent.

    ``own`` maps the node's own targets to whether they are external (E, an ACP connect subnet).
    ``parents`` are interfaces, the preferred parent first.
    """

    def __init__(self, prefix: IPv6Network, targets: TargetTable, configuration: DodagConfiguration) -> None:
        self.own: dict[IPv6Network, bool] = {prefix: False}
        self.parents: tuple[int, ...] = ()
        self.configuration = configuration
        self._targets = targets
        self._ever_own = {prefix}
        self._sequence = INITIAL_SEQUENCE

    def new_sequence(self) -> None:
        """Count the Path Sequence up: parents, lifetime or own targets change (RFC 6550 section 9.2.1)."""
        self._sequence = increment(self._sequence)

    def set_subnets(self, subnets: Iterable[IPv6Network]) -> list[IPv6Network]:
        """Own these besides the prefix; return all targets that were or are the node's own."""
        prefix = next(iter(self.own))
        old, self.own = self.own, {prefix: False, **dict.fromkeys(subnets, True)}
        self._ever_own |= self.own.keys()
        self.new_sequence()
        return list(old | self.own)

    def everything(self) -> list[IPv6Network]:
        """All targets, the node's own first."""
        return [*self.own, *self._targets]

    def view(self, interface: int, now: float) -> View:
        """Return the knowledge for the DAO session on ``interface``."""
        return View(self, interface, now)

    def seconds(self, path_lifetime: int) -> float:
        """Return how long a Path Lifetime is in this DODAG, or ``NEVER``."""
        unit = self.configuration.lifetime_unit
        if path_lifetime == INFINITE_LIFETIME or unit == INFINITE_LIFETIME_UNIT:
            return NEVER
        return float(path_lifetime * unit)

    @property
    def default_lifetime(self) -> float:
        """How long a target lives in this DODAG without a refresh, in seconds, or ``NEVER``."""
        return self.seconds(self.configuration.default_lifetime)

    def announcement(self, prefix: IPv6Network, interface: int) -> Announcement | None:
        """Return what the neighbour on ``interface`` is to know of ``prefix``; nothing if it is no parent."""
        if interface not in self.parents:
            return None
        active = _ALL_BITS << (7 - self.configuration.path_control_size) & _ALL_BITS
        if prefix in self.own:
            bits, sequence, external = _ALL_BITS, self._sequence, self.own[prefix]
        else:
            summary = self._targets.summary(prefix)
            if summary is None:
                return None
            bits, sequence, external = summary.path_control, summary.sequence, summary.external
        masks = split_path_control(bits & active, len(self.parents))
        place = self.parents.index(interface)
        return Announcement(sequence, masks[place], external) if place < len(masks) else None

    def path_lifetime(self, prefix: IPv6Network, now: float) -> int:
        """Return what is left of the lifetime of ``prefix``, in units, at least 1."""
        summary = None if prefix in self.own else self._targets.summary(prefix)
        if summary is None:
            return self.configuration.default_lifetime
        if summary.expires == NEVER or self.configuration.lifetime_unit == INFINITE_LIFETIME_UNIT:
            return INFINITE_LIFETIME
        units = ceil((summary.expires - now) / self.configuration.lifetime_unit)
        return min(max(units, 1), INFINITE_LIFETIME - 1)

    def path_sequence(self, prefix: IPv6Network) -> int | None:
        """Return the newest Path Sequence known for ``prefix``."""
        if prefix in self._ever_own:
            return self._sequence
        summary = self._targets.summary(prefix)
        return summary.sequence if summary else None


@dataclass(frozen=True, slots=True)
class View:
    """An announcer from the point of view of one neighbour: a :class:`minerva.rpl.dao.Knowledge`."""

    announcer: Announcer
    interface: int
    now: float

    def announcement(self, prefix: IPv6Network) -> Announcement | None:
        """See :class:`minerva.rpl.dao.Knowledge`."""
        return self.announcer.announcement(prefix, self.interface)

    def path_lifetime(self, prefix: IPv6Network) -> int:
        """See :class:`minerva.rpl.dao.Knowledge`."""
        return self.announcer.path_lifetime(prefix, self.now)

    def path_sequence(self, prefix: IPv6Network) -> int | None:
        """See :class:`minerva.rpl.dao.Knowledge`."""
        return self.announcer.path_sequence(prefix)
