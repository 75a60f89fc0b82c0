"""A snapshot of an RPL node for its operator."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

from minerva.rpl.channel import Channel
from minerva.rpl.config import Preference
from minerva.rpl.downward import TargetTable
from minerva.rpl.events import NextHop, Role


@dataclass(frozen=True, slots=True)
class NeighbourStatus:
    """One channel and what is known of the node behind it (``None`` where nothing is)."""

    interface: int
    address: IPv6Address | None
    rank_factor: int
    dodag_id: IPv6Address | None
    version: int | None
    rank: int | None
    configuration_known: bool
    silent_for: float | None
    """Seconds since its last message."""

    synchronized: bool
    """Whether it has acknowledged all that it is to know."""

    suspicious: bool
    """Whether it stopped acknowledging."""

    targets: int
    """How many targets it announces to us."""


@dataclass(frozen=True, slots=True)
class RplStatus:
    """The whole node. ``preference`` is its own, ``root_preference`` that of the DODAG's root."""

    role: Role
    preference: Preference
    dodag_id: IPv6Address
    version: int
    grounded: bool
    root_preference: int
    rank: int
    parents: tuple[NextHop, ...]
    """The preferred parent first, which carries the default route."""

    neighbours: tuple[NeighbourStatus, ...]
    routes: dict[IPv6Network, NextHop]
    targets: int
    sent: dict[str, int]
    """Messages by type."""

    dropped: dict[str, int]
    """What was refused, by reason."""


def neighbour_status(channel: Channel, targets: TargetTable, now: float) -> NeighbourStatus:
    """Return what is known of the neighbour on ``channel``."""
    neighbour = channel.neighbour
    dio = neighbour.dio if neighbour else None
    return NeighbourStatus(
        interface=channel.interface,
        address=neighbour.address if neighbour else None,
        rank_factor=channel.rank_factor,
        dodag_id=dio.dodag_id if dio else None,
        version=dio.version if dio else None,
        rank=dio.rank if dio else None,
        configuration_known=bool(neighbour and neighbour.configuration),
        silent_for=now - neighbour.heard_at if neighbour else None,
        synchronized=channel.session.synchronized,
        suspicious=channel.session.suspicious,
        targets=targets.count(channel.interface),
    )
