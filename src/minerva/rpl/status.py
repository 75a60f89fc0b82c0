"""A snapshot of an RPL node for its operator."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address, IPv6Network

from minerva.rpl.config import Preference
from minerva.rpl.events import NextHop, Role


class Drop(Enum):
    """Why a message, or one target in it, was not used."""

    UNKNOWN_INTERFACE = "on an interface without a channel"
    NOT_LINK_LOCAL = "source or destination is not a link-local address of the channel"
    OWN_ADDRESS = "from our own address"
    MALFORMED = "malformed"
    UNKNOWN_CODE = "RPL code that is not used in the ACP"
    OTHER_INSTANCE = "other RPL instance"
    NOT_UNICAST = "DAO or DAO-ACK to a multicast address"
    BAD_DODAG_ID = "DODAGID that is no ACP address"
    NOT_ASKED = "DIS for another DODAG"
    OLD_DAO = "DAO older than the last one"
    DAO_FROM_PARENT = "DAO from a parent"
    BAD_TARGET = "target that no neighbour may announce"
    TOO_MANY_TARGETS = "more targets than one neighbour may announce"


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
