"""One request and its repetitions, one response and its repetitions (RFC 7296 section 2.1)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from minerva.ikev2.config import Retransmission


class Request:
    """A request of ours that waits for its response. Times are in seconds of the monotonic clock.

    ``data`` is the message in one datagram or several fragments.
    ``deadline`` is when the peer counts as dead; without it, ``schedule`` says when. ``closes`` marks a
    request whose response is the end of the SA. ``task`` is what the request is for, if its response tells
    more than that the peer lives.
    """

    __slots__ = (
        "_begun",
        "_resend_at",
        "_schedule",
        "_wait",
        "closes",
        "data",
        "deadline",
        "exchange",
        "message_id",
        "started",
        "task",
    )

    def __init__(
        self,
        data: tuple[bytes, ...],
        exchange: int,
        message_id: int,
        schedule: Retransmission,
        now: float,
        *,
        deadline: float | None = None,
        closes: bool = False,
        task: object = None,
    ) -> None:
        self.data = data
        self.exchange = exchange
        self.message_id = message_id
        self.closes = closes
        self.task = task
        self._schedule = schedule
        self._begun = now
        self.restart(now)
        if deadline is not None:
            self.deadline = deadline

    def restart(self, now: float) -> None:
        """Begin the schedule anew, as if the request were sent for the first time ``now``."""
        self.started = now
        self.deadline = now + self._schedule.give_up
        self._wait = self._schedule.first
        self._resend_at = now + self._wait

    def age(self, now: float) -> float:
        """Return how long ago the request was really sent for the first time, in seconds."""
        return now - self._begun

    def next_timer(self) -> float:
        """Return when ``is_dead`` or ``take_due`` has something to say."""
        return min(self._resend_at, self.deadline)

    def is_dead(self, now: float) -> bool:
        """Return whether the peer has had its time."""
        return now >= self.deadline

    def take_due(self, now: float) -> bool:
        """Return whether the request is to be sent again, which it then counts as."""
        if now < self._resend_at:
            return False
        self._wait *= self._schedule.factor
        self._resend_at = now + self._wait
        return True


@dataclass(slots=True)
class Answer:
    """The newest request of the peer, and our response once there is one.

    The request is kept as a hash: a repetition must be the same, bit for bit, or it is not one. Of a request
    in fragments, the first one counts; for the others nothing is repeated.
    """

    exchange: int
    message_id: int
    digest: bytes
    port: int
    response: tuple[bytes, ...] | None = None


def digest(data: bytes) -> bytes:
    """Return what tells one datagram from another."""
    return hashlib.sha256(data).digest()
