"""The rows of the adjacency table, their states, and the events that tell of them (RFC 8994 section 6.3).

::

    HEARD ──selected──► DELAYED ──due──► INITIATING ──connected──► CONNECTED
      ▲                 BACKOFF ◄─failed──┘                        │      │
      └──────────────────────── lost ──────────────────────────────┘      │
      └──── patience ends ───── FOLLOWER ◄──── closed by the Decider ─────┘

From every state a connection of the peer's leads to CONNECTED, as both ends answer at any time. What is no
longer heard and not connected becomes SILENT, and is forgotten when its back-off allows.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv6Address
from typing import TypeAlias

from minerva.adjacency.roles import PeerIdentity, Role
from minerva.core.backoff import Backoff


class State(Enum):
    """What we are doing about a neighbour."""

    HEARD = "heard"
    """It announces itself, but is not selected, or speaks no method of ours."""
    DELAYED = "delayed"
    """Selected; we leave it to the other end to begin for a moment."""
    INITIATING = "initiating"
    """An attempt of ours is under way."""
    BACKOFF = "backoff"
    """Attempts of ours failed; the next one has its time."""
    CONNECTED = "connected"
    """It has authenticated itself, and there is a connection."""
    FOLLOWER = "follower"
    """It is our Decider and has closed the connection: we wait for it."""
    OURSELVES = "ourselves"
    """It has our own ACP address: another port of this node on the same link, or a copied certificate."""
    SILENT = "silent"
    """It does not announce itself (any more)."""


class Trigger(Enum):
    """What moves a neighbour from one state to another."""

    HEARD = "heard"
    SELECTED = "selected"
    THROTTLED = "selected, but tried too recently"
    DESELECTED = "not selected any more"
    DUE = "time to initiate"
    FAILED = "attempt failed"
    REFUSED_FOLLOWER = "attempt to our Decider failed"
    CONNECTED = "connected"
    OURSELVES = "it is this node"
    LOST = "connection lost"
    LOST_IN_ATTEMPT = "connection lost, another attempt is under way"
    RELEASED = "closed by the Decider"
    PATIENCE_ENDED = "the Decider has not come back"
    EXPIRED = "not heard any more"


def _transitions() -> dict[tuple[State, Trigger], State]:
    s, t = State, Trigger
    table = {
        (s.HEARD, t.SELECTED): s.DELAYED,
        (s.HEARD, t.THROTTLED): s.BACKOFF,
        (s.DELAYED, t.DESELECTED): s.HEARD,
        (s.BACKOFF, t.DESELECTED): s.HEARD,
        (s.DELAYED, t.DUE): s.INITIATING,
        (s.BACKOFF, t.DUE): s.INITIATING,
        (s.INITIATING, t.FAILED): s.BACKOFF,
        (s.INITIATING, t.REFUSED_FOLLOWER): s.FOLLOWER,
        (s.CONNECTED, t.LOST): s.HEARD,
        (s.CONNECTED, t.LOST_IN_ATTEMPT): s.INITIATING,
        (s.CONNECTED, t.RELEASED): s.FOLLOWER,
        (s.FOLLOWER, t.PATIENCE_ENDED): s.HEARD,
        (s.SILENT, t.HEARD): s.HEARD,
    }
    for state in State:
        table[state, t.CONNECTED] = s.CONNECTED
        table[state, t.OURSELVES] = s.OURSELVES
        table[state, t.EXPIRED] = s.SILENT
    return table


TRANSITIONS = _transitions()
"""The state after a trigger. What is not in here is impossible, and reported as :class:`Unexpected`."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong last: when, why, which rule of the membership check said no, and who had initiated."""

    time: float
    reason: str
    rule: int | None
    initiated_by_us: bool


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One row of the adjacency table. Times are those of ``now``; ``None`` means never or not applicable."""

    port: int
    address: IPv6Address
    methods: Mapping[str, int]
    first_heard: float | None
    last_heard: float | None
    expires: float | None
    state: State
    peer: PeerIdentity | None
    role: Role | None
    connections: tuple[Hashable, ...]
    failures: int
    failure: Failure | None
    next_attempt: float | None


@dataclass(slots=True)
class Connection:
    """One connection: since when, who began it, and when the peer has answered by it while in doubt."""

    since: float
    initiated_by_us: bool
    answered: float | None = None


@dataclass(slots=True)
class Row:
    """The table's own record of a neighbour. ``due`` is when its timer fires.

    ``connections`` holds those that are up, the oldest first. ``passive`` says that we are a Follower who
    leaves the next attempt to its Decider.
    """

    port: int
    address: IPv6Address
    backoff: Backoff
    state: State = State.SILENT
    methods: Mapping[str, int] = field(default_factory=dict)
    first_heard: float | None = None
    last_heard: float | None = None
    expires: float | None = None
    peer: PeerIdentity | None = None
    role: Role | None = None
    connections: dict[Hashable, Connection] = field(default_factory=dict)
    attempting: bool = False
    passive: bool = False
    last_attempt: float = float("-inf")
    not_before: float = float("-inf")
    due: float | None = None
    failure: Failure | None = None

    @property
    def live(self) -> bool:
        """Whether it announces itself."""
        return self.expires is not None

    def snapshot(self) -> Neighbour:
        """Return the row as others may see it."""
        waiting = self.state in (State.DELAYED, State.BACKOFF, State.FOLLOWER)
        return Neighbour(
            self.port,
            self.address,
            dict(self.methods),
            self.first_heard,
            self.last_heard,
            self.expires,
            self.state,
            self.peer,
            self.role,
            tuple(self.connections),
            self.backoff.failures,
            self.failure,
            self.due if waiting else None,
        )


@dataclass(frozen=True, slots=True)
class Initiate:
    """Build a connection to ``address`` and ``udp_port`` by IKEv2; then say ``connected`` or ``failed``."""

    port: int
    address: IPv6Address
    udp_port: int


@dataclass(frozen=True, slots=True)
class CheckConnection:
    """Ask the peer whether it holds ``connection``; then say ``answered`` or, if it does not, ``closed``."""

    connection: Hashable


@dataclass(frozen=True, slots=True)
class CloseConnection:
    """Close ``connection``, telling the peer. For the table it has gone already; ``closed`` is not needed."""

    connection: Hashable
    reason: str


@dataclass(frozen=True, slots=True)
class RolesDecided:
    """A neighbour is authenticated, and this is our role towards it."""

    port: int
    address: IPv6Address
    role: Role


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A neighbour is in another state. One that is new in the table comes from ``SILENT``."""

    port: int
    address: IPv6Address
    old: State
    new: State
    reason: str


@dataclass(frozen=True, slots=True)
class TableFull:
    """``address`` is ignored, as there are too many neighbours on the port."""

    port: int
    address: IPv6Address


@dataclass(frozen=True, slots=True)
class Unexpected:
    """Something was reported that cannot be: a defect of Minerva's, worth a line in the log."""

    port: int
    address: IPv6Address
    what: str


Event: TypeAlias = (
    Initiate | CheckConnection | CloseConnection | RolesDecided | StateChanged | TableFull | Unexpected
)
