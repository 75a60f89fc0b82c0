"""The child SAs of a connection: their states and their times (RFC 7296 sections 1.4.1, 2.8).

Normally there is one. While it is replaced there are two, with both ends rekeying at once three, and what
was deleted is received on for a moment more. The table outlives the IKE SA that made it: whichever IKE SA
replaces that one inherits it (section 2.8.2).

::

    UNCONFIRMED ──the peer has it──► INSTALLED ──our request──► REKEYING ──refused──► INSTALLED
         │  the peer rekeys it           │                         │
         └──────────► REPLACED ◄─────────┴──the peer's came first──┤
                         │ overdue                                 │ ours is there
                         └──────────────► RETIRED ◄────────────────┘
                                             │ our Delete sent      answered
                                             └──────► DELETING ────────────► DRAINING ──► gone

From every state a Delete of the peer leads out of the table at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from minerva.ikev2.errors import IkeUsageError
from minerva.ikev2.events import ChildKeys


class ChildState(Enum):
    """What we know, and are about to do, about a child SA."""

    UNCONFIRMED = auto()
    """Made in answer to the peer, which may not have got the answer."""
    INSTALLED = auto()
    REKEYING = auto()
    """Our request to replace it is on its way."""
    REPLACED = auto()
    """The peer has replaced it, and will delete it."""
    RETIRED = auto()
    """We shall delete it, as soon as it is time and the window has room."""
    DELETING = auto()
    DRAINING = auto()
    """Deleted on both sides; what was sent before may still arrive."""


class ChildInput(Enum):
    """What moves a child SA from one state to another."""

    CONFIRMED = auto()
    REKEY = auto()
    REFUSED = auto()
    REPLACED = auto()
    RETIRED = auto()
    DELETE = auto()
    DELETED = auto()


_S, _I = ChildState, ChildInput

TRANSITIONS: dict[tuple[ChildState, ChildInput], ChildState] = {
    (_S.UNCONFIRMED, _I.CONFIRMED): _S.INSTALLED,
    (_S.INSTALLED, _I.REKEY): _S.REKEYING,
    (_S.REKEYING, _I.REFUSED): _S.INSTALLED,
    (_S.UNCONFIRMED, _I.REPLACED): _S.REPLACED,
    (_S.INSTALLED, _I.REPLACED): _S.REPLACED,
    (_S.REKEYING, _I.REPLACED): _S.REPLACED,
    (_S.REKEYING, _I.RETIRED): _S.RETIRED,
    (_S.UNCONFIRMED, _I.RETIRED): _S.RETIRED,
    (_S.REPLACED, _I.RETIRED): _S.RETIRED,
    (_S.INSTALLED, _I.RETIRED): _S.RETIRED,
    (_S.RETIRED, _I.DELETE): _S.DELETING,
    (_S.DELETING, _I.DELETED): _S.DRAINING,
}
"""The state machine. What is not here cannot happen; an attempt raises ``IkeUsageError``."""

_LASTING = frozenset({_S.UNCONFIRMED, _S.INSTALLED, _S.REKEYING, _S.REPLACED})
"""States in which a child SA carries the channel, or could."""

REKEYABLE = frozenset({_S.UNCONFIRMED, _S.INSTALLED, _S.REKEYING})
"""States in which the peer may replace it. One that it has not confirmed it confirms by that."""


@dataclass(slots=True, eq=False)
class Child:
    """One child SA. Times are in seconds of the monotonic clock.

    ``due`` is when it is to be rekeyed (INSTALLED), deleted (RETIRED) or forgotten (DRAINING); ``expires``
    is when it may not be used any more. ``successor`` is what the peer has replaced it by. ``failures``
    counts refused attempts to rekey it.
    """

    keys: ChildKeys
    state: ChildState
    due: float
    expires: float
    successor: Child | None = None
    failures: int = 0

    def move(self, what: ChildInput) -> None:
        """Go to the state that follows."""
        after = TRANSITIONS.get((self.state, what))
        if after is None:
            raise IkeUsageError(f"{what.name} cannot happen to a child SA that is {self.state.name}")
        self.state = after

    def retire(self, due: float) -> None:
        """Have it deleted when ``due``."""
        self.move(ChildInput.RETIRED)
        self.due = due


class ChildSas:
    """The table, by the SPI that we receive with."""

    def __init__(self) -> None:
        self._children: dict[int, Child] = {}

    def __len__(self) -> int:
        return len(self._children)

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._children.values()))

    def __contains__(self, child: Child) -> bool:
        return self._children.get(child.keys.spi_in) is child

    def add(self, child: Child) -> None:
        """Take a new child SA."""
        self._children[child.keys.spi_in] = child

    def remove(self, child: Child) -> None:
        """Forget a child SA."""
        del self._children[child.keys.spi_in]

    def by_spi_out(self, spi: int) -> Child | None:
        """Return the child SA that the peer calls by ``spi``, unless it is deleted already."""
        for child in self._children.values():
            if child.keys.spi_out == spi and child.state is not ChildState.DRAINING:
                return child
        return None

    @property
    def lasting(self) -> bool:
        """Whether there is one that is not about to go: without it the channel is over."""
        return any(child.state in _LASTING for child in self._children.values())

    def find(self, state: ChildState, now: float) -> list[Child]:
        """Return the child SAs in ``state`` that are due."""
        return [child for child in self._children.values() if child.state is state and child.due <= now]

    def overdue(self, now: float) -> list[Child]:
        """Return those that may not be used any more, and that nothing is being done about."""
        return [
            child for child in self._children.values() if child.state in _LASTING and child.expires <= now
        ]

    def next_timer(self, *, window: bool) -> float | None:
        """Return when there is something to do; with ``window``, also what takes a request."""
        timers = []
        for child in self._children.values():
            if child.state in _LASTING:
                timers.append(child.expires)
            if child.state is ChildState.DRAINING or (
                window and child.state in (ChildState.INSTALLED, ChildState.RETIRED)
            ):
                timers.append(child.due)
        return min(timers, default=None)
