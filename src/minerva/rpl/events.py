"""What an RPL node tells its driver and its operator, and what it wants sent."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address, IPv6Network
from typing import TypeAlias

DEFAULT_ROUTE = IPv6Network("::/0")


class Role(Enum):
    """What a node is in its DODAG."""

    ROOT = "root"
    """It has no parent and roots a DODAG of its own, be it alone in it."""

    ROUTER = "router"
    STOPPED = "stopped"


TRANSITIONS: dict[Role, frozenset[Role]] = {
    Role.ROOT: frozenset({Role.ROOT, Role.ROUTER, Role.STOPPED}),
    Role.ROUTER: frozenset({Role.ROOT, Role.ROUTER, Role.STOPPED}),
    Role.STOPPED: frozenset(),
}
"""Which role may follow which; every change of role or DODAG is a :class:`DodagChanged`."""


class DodagCause(Enum):
    """Why a node changed its DODAG."""

    BETTER_DODAG = "heard of a DODAG with a better root"
    BEST_ROOT = "is a better root than any it hears"
    NO_PARENT = "lost its last parent"
    NEW_VERSION = "the root started a new version"
    GLOBAL_REPAIR = "started a new version"
    OWN_DODAG_HEARD = "heard a newer version of its own DODAG, from before a restart"
    SHUTDOWN = "shut down"


class NeighbourCause(Enum):
    """Why a neighbour is gone."""

    INTERFACE_DOWN = "interface down"
    SILENT = "does not answer"
    REPLACED = "another address on the channel"


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
class RplDatagram:
    """An ICMPv6 message to send on ``interface``; its checksum field is zero."""

    interface: int
    destination: IPv6Address
    data: bytes


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where a route leads: a neighbour's link-local address on an interface."""

    interface: int
    address: IPv6Address


@dataclass(frozen=True, slots=True)
class RouteAdded:
    """Install this route, in place of the one to the same prefix if there is one."""

    prefix: IPv6Network
    interface: int
    next_hop: IPv6Address


@dataclass(frozen=True, slots=True)
class RouteRemoved:
    """Remove the route to this prefix, which is this one."""

    prefix: IPv6Network
    interface: int
    next_hop: IPv6Address


@dataclass(frozen=True, slots=True)
class DodagChanged:
    """The node is in another DODAG, or version of it, now."""

    role: Role
    dodag_id: IPv6Address
    version: int
    cause: DodagCause


@dataclass(frozen=True, slots=True)
class ParentsChanged:
    """The node's parents, the preferred one first; empty at a root."""

    parents: tuple[NextHop, ...]
    rank: int


@dataclass(frozen=True, slots=True)
class NeighbourHeard:
    """A neighbour spoke for the first time."""

    interface: int
    address: IPv6Address


@dataclass(frozen=True, slots=True)
class NeighbourLost:
    """A neighbour is gone, and with it all routes through it."""

    interface: int
    address: IPv6Address
    cause: NeighbourCause


@dataclass(frozen=True, slots=True)
class DaoUnanswered:
    """A neighbour did not acknowledge, or rejected (``status`` above 127), what is reachable through us.

    Tried again after ``retry_in`` seconds; until then other parents are preferred.
    """

    interface: int
    address: IPv6Address
    status: int | None
    retry_in: float


RplEvent: TypeAlias = (
    RouteAdded | RouteRemoved | DodagChanged | ParentsChanged | NeighbourHeard | NeighbourLost | DaoUnanswered
)
