"""What is reachable through which child: the storing mode's table of targets (RFC 6550 section 9)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Network

from minerva.rpl.sequence import is_newer, is_older

NEVER = float("inf")


@dataclass(slots=True)
class Path:
    """That a target can be reached through one child, as the child said last."""

    sequence: int
    path_control: int
    external: bool
    received: float
    expires: float
    """When, in seconds; ``NEVER`` for the infinite lifetime."""

    superseded_at: float = NEVER
    """Since when another child has had a newer Path Sequence."""

    confirm_by: float = NEVER
    """When it ends unless the child, which has restarted, announces it again."""


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
    the older path is kept for ``grace`` seconds, as a mere refresh comes by several ways at different times.
    An older Path Sequence that comes more than ``restart`` seconds later is not late: its owner has started
    anew. Then both paths stay, and the later one is preferred.

    Methods that change anything return the prefixes for which something changed.
    """

    def __init__(self, grace: float, restart: float) -> None:
        self._grace = grace
        self._restart = restart
        self._targets: dict[IPv6Network, dict[int, Path]] = {}
        self._by_interface: dict[int, set[IPv6Network]] = {}
        self._next_sweep = NEVER

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
        self._next_sweep = min(self._next_sweep, path.expires)
        if len(paths) > 1:
            self._supersede(paths, now)
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
        self._next_sweep = min(self._next_sweep, deadline)
        return True

    def best(self, prefix: IPv6Network) -> int | None:
        """Return the interface to forward on: by the most preferred Path Control bit, then the newest path.

        A path superseded a moment ago still counts, lest every refresh makes routes change to and fro.
        """
        paths = self._targets.get(prefix)
        if not paths:
            return None
        if len(paths) == 1:
            return next(iter(paths))
        newest = self._newest(paths)

        def value(interface: int) -> tuple[bool, int, bool, int]:
            path = paths[interface]
            superseded = path.superseded_at != NEVER
            outdated = not superseded and self._beats(newest, path)
            return (not outdated, path.path_control, not superseded, -interface)

        return max(paths, key=value)

    def summary(self, prefix: IPv6Network) -> Summary | None:
        """Return what to say of ``prefix`` to the node's own parents; ``None`` if it is not reachable."""
        paths = self._targets.get(prefix)
        if not paths:
            return None
        newest = self._newest(paths)
        bits = 0
        for path in paths.values():
            bits |= path.path_control
        return Summary(newest.sequence, bits, newest.external, newest.expires)

    @property
    def next_sweep(self) -> float:
        """When :meth:`sweep` has something to do; ``NEVER`` if nothing expires."""
        return self._next_sweep

    def sweep(self, now: float) -> list[IPv6Network]:
        """Remove what has expired or was superseded long enough ago."""
        gone = []
        self._next_sweep = NEVER
        for prefix, paths in list(self._targets.items()):
            for interface, path in list(paths.items()):
                end = min(path.expires, path.confirm_by, path.superseded_at + self._grace)
                if end <= now:
                    self._remove(prefix, interface, now)
                    gone.append(prefix)
                else:
                    self._next_sweep = min(self._next_sweep, end)
        return gone

    def _remove(self, prefix: IPv6Network, interface: int, now: float) -> None:
        paths = self._targets[prefix]
        del paths[interface]
        self._by_interface[interface].discard(prefix)
        if not self._by_interface[interface]:
            del self._by_interface[interface]
        if paths:
            self._supersede(paths, now)
        else:
            del self._targets[prefix]

    def _supersede(self, paths: dict[int, Path], now: float) -> None:
        for path in paths.values():
            newer = [other for other in paths.values() if is_newer(other.sequence, path.sequence)]
            if any(self._beats(other, path) for other in newer):
                path.superseded_at = min(path.superseded_at, now)
                self._next_sweep = min(self._next_sweep, path.superseded_at + self._grace)
            else:
                path.superseded_at = NEVER

    def _beats(self, path: Path, other: Path) -> bool:
        """Whether ``path`` is what its owner said later, by its Path Sequence or, long after, by the clock."""
        if is_newer(path.sequence, other.sequence):
            return path.received > other.received - self._restart
        return is_older(path.sequence, other.sequence) and path.received >= other.received + self._restart

    def _newest(self, paths: dict[int, Path]) -> Path:
        newest, *others = paths.values()
        for path in others:
            if self._beats(path, newest):
                newest = path
        return newest


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
