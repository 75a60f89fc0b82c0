"""A session as a state machine: one negotiation or synchronization.

A session in the words of RFC 8991::

    initiator                                   responder
    FINDING     discovery, if no peer was named
    CONNECTING  to the peer's ASA
    WAITING     M_REQ_NEG / M_REQ_SYN sent      TURN     the ASA is to answer
    TURN        the peer has made an offer      WAITING  for the peer's next step
    ENDED                                       ENDED

From TURN the ASA makes a step or adds a delay (WAITING, TURN), or ends the session; in WAITING the peer does.
``NEXT`` is the whole of it: what it does not hold is somebody's mistake. If it is the peer's, the peer gets
an M_INVALID and the session fails; if it is the ASA's, the call fails.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv6Address
from typing import Any

from minerva.grasp.api import AsaLocator, ErrorCode
from minerva.grasp.constants import ObjectiveFlag
from minerva.grasp.options import Objective
from minerva.grasp.registry import Asa


class State(Enum):
    """Where a session is."""

    FINDING = "looking for a peer"
    CONNECTING = "connecting"
    WAITING = "waiting for the peer"
    TURN = "waiting for the ASA"
    ENDED = "ended"


class Step(Enum):
    """What moves a session on."""

    FOUND = "peer found"
    CONNECTED = "connected"
    OFFER = "offer from the peer"
    DELAY = "delay from the peer"
    END = "end from the peer"
    OWN_STEP = "step of the ASA"
    OWN_DELAY = "delay of the ASA"
    OWN_END = "end by the ASA"
    FAILED = "failure"


NEXT: dict[tuple[State, Step], State] = {
    (State.FINDING, Step.FOUND): State.CONNECTING,
    (State.FINDING, Step.FAILED): State.ENDED,
    (State.CONNECTING, Step.FOUND): State.CONNECTING,  # the next candidate, as this one does not answer
    (State.CONNECTING, Step.CONNECTED): State.WAITING,
    (State.CONNECTING, Step.FAILED): State.ENDED,
    (State.WAITING, Step.OFFER): State.TURN,
    (State.WAITING, Step.DELAY): State.WAITING,
    (State.WAITING, Step.END): State.ENDED,
    (State.WAITING, Step.FAILED): State.ENDED,
    (State.TURN, Step.OWN_STEP): State.WAITING,
    (State.TURN, Step.OWN_DELAY): State.TURN,
    (State.TURN, Step.OWN_END): State.ENDED,
    (State.TURN, Step.FAILED): State.ENDED,
    # Not its turn, but a peer that has to give up says it best this way.
    (State.TURN, Step.END): State.ENDED,
}


@dataclass(slots=True, eq=False)
class Session:
    """One negotiation or synchronization. ``token`` names the ASA's call that waits for it, if one does."""

    session_id: int
    objective: Objective
    asa: Asa | None
    initiated: bool
    state: State
    deadline: float
    seconds: float
    token: Hashable | None = None
    connection: int | None = None
    peer: IPv6Address | None = None
    candidates: deque[AsaLocator] = field(default_factory=deque)
    candidate: AsaLocator | None = None
    """Where the peer is thought to be, and those where it may be as well."""
    answered: bool = False
    """Whether the peer has ever answered."""

    @property
    def negotiation(self) -> bool:
        """Whether it is a negotiation; else a synchronization."""
        return bool(self.objective.flags & ObjectiveFlag.F_NEG)

    def status(self, now: float) -> dict[str, Any]:
        """Return what an operator may want to know, as a CBOR item."""
        return {
            "session_id": self.session_id,
            "objective": self.objective.name,
            "kind": "negotiation" if self.negotiation else "synchronization",
            "dry_run": bool(self.objective.flags & ObjectiveFlag.F_NEG_DRY),
            "role": "initiator" if self.initiated else "responder",
            "asa": None if self.asa is None else self.asa.name,
            "peer": None if self.peer is None else str(self.peer),
            "state": self.state.value,
            "loop_count": self.objective.loop_count,
            "seconds_left": round(self.deadline - now, 3),
        }


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """A session is over; ``code`` is ``ok`` if it came to what it was for. For the operator."""

    session_id: int
    objective: str
    peer: IPv6Address | None
    initiated: bool
    code: ErrorCode
    reason: str
