"""Takes what a child announces into the table of targets: what is acceptable, and what is too much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv6Network

from minerva.rpl.config import DOMAIN_SPACE, MIN_TARGET_LENGTH
from minerva.rpl.downward import Path, TargetTable
from minerva.rpl.events import Drop
from minerva.rpl.messages import DaoAck, DaoGroup
from minerva.rpl.options import TransitInformation


def is_acceptable(prefix: IPv6Network, own: Iterable[IPv6Network] = ()) -> bool:
    """Return whether a neighbour may announce ``prefix`` to a node whose targets are ``own``.

    Only a member of the domain is a neighbour, but one that has been taken over must not draw the traffic
    for the whole domain, or for this node, to itself.
    """
    return (
        prefix.prefixlen >= MIN_TARGET_LENGTH
        and prefix.subnet_of(DOMAIN_SPACE)
        and not any(prefix.overlaps(mine) for mine in own)
    )


@dataclass(slots=True)
class Intake:
    """The outcome of one DAO: the targets that changed, the status to answer with, and what was refused."""

    changed: list[IPv6Network] = field(default_factory=list)
    status: int = DaoAck.ACCEPTED
    refused: Counter[Drop] = field(default_factory=Counter)


def take_groups(
    targets: TargetTable,
    interface: int,
    groups: Iterable[DaoGroup],
    *,
    own: Collection[IPv6Network],
    seconds: Callable[[int], float],
    limit: int,
    now: float,
) -> Intake:
    """Bring ``targets`` up to date with what the child on ``interface`` announces.

    ``seconds`` turns a Path Lifetime into time, and ``limit`` is how many targets one child may announce.
    """
    intake = Intake()
    for group in groups:
        transit = group.transits[-1]
        bits = _path_control(group.transits)
        for prefix in group.targets:
            if not is_acceptable(prefix, own):
                intake.refused[Drop.BAD_TARGET] += 1
            elif transit.path_lifetime == 0:
                if targets.withdraw(prefix, interface, transit.path_sequence, now):
                    intake.changed.append(prefix)
            elif targets.count(interface) >= limit and not targets.has(prefix, interface):
                intake.refused[Drop.TOO_MANY_TARGETS] += 1
                intake.status = DaoAck.REJECTED
            else:
                expires = now + seconds(transit.path_lifetime)
                path = Path(transit.path_sequence, bits, transit.external, expires)
                if targets.update(prefix, interface, path, now):
                    intake.changed.append(prefix)
    return intake


def _path_control(transits: Iterable[TransitInformation]) -> int:
    bits = 0
    for transit in transits:
        bits |= transit.path_control
    return bits
