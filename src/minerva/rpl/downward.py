"""What is reachable through which child: the storing mode's table of targets (RFC 6550 section 9)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from heapq import heappop, heappush
from ipaddress import IPv6Network

from minerva.rpl.sequence import is_newer, is_older

NEVER = float("inf")


@dataclass(slots=True)
class Path:
    """That a target can be reached through one child, as the child said last."""

    sequence: int
    path_control: int
    external: bool
    expires: float
    """When, in seconds; ``NEVER`` for the infinite lifetime."""

    superseded_at: float = NEVER
    """Since when another child has had a newer Path Sequence."""

    retired: bool = False
    """Superseded for so long that it is used only if the newer paths go away."""

    confirm_by: float = NEVER
    """When it ends unless the child, which has restarted, announces it again."""

    @property
    def end(self) -> float:
        """When the path is no more."""
        return min(self.expires, self.confirm_by)


@dataclass(frozen=True, slots=True)
class Summary:
    """A target as this node's own parents are to hear of it: the newest sequence, all Path Control bits."""

    sequence: int
    path_control: int
    external: bool
    expires: float


class TargetTable:
    """Targets and the children (by interface) through which they can be reached.

    Per child the last word counts, for its DAOs are in order. Between children the newer Path Sequence wins;
    the older path counts for ``grace`` seconds more, as a mere refresh comes by several ways at different
    times. Then it is retired, not forgotten: its child keeps it up until a No-Path or its end, and believes
    that we know it, and an owner that restarts counts from the beginning.

    Methods that change anything return the prefixes for which something changed.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._targets: dict[IPv6Network, dict[int, Path]] = {}
        self._by_interface: dict[int, set[IPv6Network]] = {}
        self._agenda: list[tuple[float, IPv6Network]] = []
        self._scheduled: dict[IPv6Network, float] = {}

    def __len__(self) -> int:
        return len(self._targets)

    def __contains__(self, prefix: object) -> bool:
        return prefix in self._targets

    def __iter__(self) -> Iterator[IPv6Network]:
        return iter(self._targets)

    def count(self, interface: int) -> int:
        """Return how many targets the child on ``interface`` announces."""
        return len(self._by_interface.get(interface, ()))

    def has(self, prefix: IPv6Network, interface: int) -> bool:
        """Return whether the child on ``interface`` announces ``prefix``."""
        return interface in self._targets.get(prefix, ())

    def update(self, prefix: IPv6Network, interface: int, path: Path, now: float) -> bool:
        """Take the child's word; return whether anything but the expiry changed."""
        paths = self._targets.setdefault(prefix, {})
        old = paths.get(interface)
        paths[interface] = path
        self._by_interface.setdefault(interface, set()).add(prefix)
        if old is not None and old.sequence == path.sequence:
            path.superseded_at, path.retired = old.superseded_at, old.retired
        self._supersede(paths, now)
        self._schedule(prefix)
        return old is None or (old.sequence, old.path_control, old.external) != (
            path.sequence,
            path.path_control,
            path.external,
        )

    def withdraw(self, prefix: IPv6Network, interface: int, sequence: int, now: float) -> bool:
        """Take a No-Path from the child; return whether it removed its path.

        One older than what the child said last is late and means nothing. An equal one is the child's own
        loss of the path, which only the owner could give a newer sequence; other children's paths stay.
        """
        path = self._targets.get(prefix, {}).get(interface)
        if path is None or is_older(sequence, path.sequence):
            return False
        self._remove(prefix, interface, now)
        return True

    def drop_interface(self, interface: int, now: float) -> list[IPv6Network]:
        """Forget all that the child on ``interface`` ever said."""
        prefixes = list(self._by_interface.get(interface, ()))
        for prefix in prefixes:
            self._remove(prefix, interface, now)
        return prefixes

    def doubt(self, interface: int, deadline: float) -> bool:
        """Let the child's paths end at ``deadline`` unless it announces them again; ``False`` if none."""
        prefixes = self._by_interface.get(interface)
        if not prefixes:
            return False
        for prefix in prefixes:
            path = self._targets[prefix][interface]
            path.confirm_by = min(path.confirm_by, deadline)
            self._schedule(prefix)
        return True

    def best(self, prefix: IPv6Network) -> int | None:
        """Return the interface to forward on: the most preferred Path Control bit, then the newest path."""
        paths = self._targets.get(prefix)
        if not paths:
            return None
        if len(paths) == 1:
            return next(iter(paths))
        usable = _usable(paths)
        return max(usable, key=lambda i: (paths[i].path_control, paths[i].superseded_at == NEVER, -i))

    def summary(self, prefix: IPv6Network) -> Summary | None:
        """Return what to say of ``prefix`` to the node's own parents; ``None`` if it is not reachable."""
        paths = self._targets.get(prefix)
        if not paths:
            return None
        usable = [paths[interface] for interface in _usable(paths)]
        newest, bits = usable[0], 0
        for path in usable:
            if is_newer(path.sequence, newest.sequence):
                newest = path
            bits |= path.path_control
        return Summary(newest.sequence, bits, newest.external, newest.expires)

    @property
    def next_sweep(self) -> float:
        """When :meth:`sweep` has something to do; ``NEVER`` if nothing expires."""
        return self._agenda[0][0] if self._agenda else NEVER

    def sweep(self, now: float) -> list[IPv6Network]:
        """Remove what has expired, retire what was superseded long enough ago."""
        changed = []
        while self._agenda and self._agenda[0][0] <= now:
            when, prefix = heappop(self._agenda)
            if self._scheduled.get(prefix) == when:
                del self._scheduled[prefix]
                if self._sweep_target(prefix, now):
                    changed.append(prefix)
        return changed

    def _sweep_target(self, prefix: IPv6Network, now: float) -> bool:
        changed = False
        for interface, path in list(self._targets.get(prefix, {}).items()):
            if path.end <= now:
                self._remove(prefix, interface, now)
                changed = True
            elif not path.retired and path.superseded_at + self._grace <= now:
                path.retired = changed = True
        self._schedule(prefix)
        return changed

    def _schedule(self, prefix: IPv6Network) -> None:
        """Put the target on the agenda for the first time at which something becomes of one of its paths."""
        when = self._scheduled.get(prefix, NEVER)
        for path in self._targets.get(prefix, {}).values():
            retirement = NEVER if path.retired else path.superseded_at + self._grace
            when = min(when, path.end, retirement)
        if when < self._scheduled.get(prefix, NEVER):
            self._scheduled[prefix] = when
            heappush(self._agenda, (when, prefix))

    def _remove(self, prefix: IPv6Network, interface: int, now: float) -> None:
        paths = self._targets[prefix]
        del paths[interface]
        self._by_interface[interface].discard(prefix)
        if not self._by_interface[interface]:
            del self._by_interface[interface]
        if paths:
            self._supersede(paths, now)
            self._schedule(prefix)
        else:
            del self._targets[prefix]

    def _supersede(self, paths: dict[int, Path], now: float) -> None:
        for path in paths.values():
            if any(is_newer(other.sequence, path.sequence) for other in paths.values()):
                path.superseded_at = min(path.superseded_at, now)
            else:
                path.superseded_at, path.retired = NEVER, False


def _usable(paths: dict[int, Path]) -> list[int]:
    """The interfaces of the paths that count. Counters are not an order: all may be retired at once."""
    return [interface for interface, path in paths.items() if not path.retired] or list(paths)


@lru_cache(maxsize=2048)
def split_path_control(bits: int, parents: int) -> tuple[int, ...]:
    """Share out the bits of ``bits`` among ``parents``, disjointly, the first getting the most preferred.

    The result has as many masks as there are parents, or bits if those are fewer: whoever gets no bit must
    not be told of the target (RFC 6550 section 9.9).
    """
    single = [1 << place for place in range(7, -1, -1) if bits >> place & 1]
    shares = min(parents, len(single))
    masks, start = [], 0
    for share in range(shares):
        size = len(single) // shares + (share < len(single) % shares)
        masks.append(sum(single[start : start + size]))
        start += size
    return tuple(masks)
