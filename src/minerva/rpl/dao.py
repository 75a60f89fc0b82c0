"""Keeps one neighbour informed of what is reachable through this node (RFC 6550 section 9).

The node marks what may have changed; when it is due, the session sends the difference between what the
neighbour acknowledged and what it ought to know, again and again until that difference is nothing. To a
neighbour that is no parent (any more) the node has nothing to announce, so the difference is a No-Path for
everything that it was ever told: leaving a parent needs no case of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv6Network
from typing import Protocol, TypeAlias

from minerva.core.backoff import Backoff
from minerva.rpl.config import DAO_ACK_TIME_OUT, DAO_RETRIES, RplConfig
from minerva.rpl.downward import NEVER
from minerva.rpl.messages import Dao, DaoGroup
from minerva.rpl.options import TransitInformation
from minerva.rpl.sequence import INITIAL_SEQUENCE, increment, is_older

MAX_TARGETS_PER_DAO = 44
"""So many Targets, each with a Transit of its own, fit into an IPv6 packet of 1280 bytes."""

_MAX_IN_FLIGHT = 8


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a parent is to know of one target; its lifetime is no part of the comparison."""

    sequence: int
    path_control: int
    external: bool


class Knowledge(Protocol):
    """What the node knows, from the point of view of the session with one neighbour."""

    def announcement(self, prefix: IPv6Network) -> Announcement | None:
        """Return what the neighbour is to know of ``prefix``; ``None`` if it is not to know it."""

    def path_lifetime(self, prefix: IPv6Network) -> int:
        """Return the Path Lifetime to announce for ``prefix``, in lifetime units."""

    def path_sequence(self, prefix: IPv6Network) -> int | None:
        """Return the newest Path Sequence of ``prefix``, or ``None`` if nothing is known of it any more."""


Content: TypeAlias = dict[IPv6Network, Announcement | None]


class DaoSession:
    """The DAOs to one neighbour: each has all that is unacknowledged and fits, so only the last counts."""

    def __init__(self, config: RplConfig) -> None:
        self._told: dict[IPv6Network, Announcement] = {}
        self._acknowledged: dict[IPv6Network, Announcement] = {}
        self._dirty: dict[IPv6Network, None] = {}
        self._in_flight: dict[int, Content] = {}
        self._sequence: int | None = None
        self._retries = 0
        self._deadline = NEVER
        self._due = NEVER
        self._blocked_until = 0.0
        self._backoff = Backoff(config.dao_backoff, config.dao_backoff_maximum)
        self.suspicious = False
        """Whether the neighbour neither acknowledged the last DAO nor all of its repetitions."""

    @property
    def told(self) -> set[IPv6Network]:
        """What the neighbour may believe to be reachable through this node."""
        return set(self._told)

    @property
    def synchronized(self) -> bool:
        """Whether the neighbour has acknowledged all that it is to know."""
        return not self._dirty

    @property
    def next_timer(self) -> float:
        """When :meth:`next_dao` has something to do, or ``NEVER``."""
        return min(self._due, self._deadline)

    def mark(self, prefixes: Iterable[IPv6Network], when: float) -> None:
        """Note that the announcement of these may have changed; send at ``when`` at the latest."""
        marks = dict.fromkeys(prefixes)
        if marks:
            self._dirty |= marks
            self._due = min(self._due, max(when, self._blocked_until))

    def start_over(self, prefixes: Iterable[IPv6Network], when: float) -> None:
        """Announce all of these whatever was acknowledged: the neighbour asked for it or is a new parent."""
        self._acknowledged.clear()
        self._in_flight.clear()
        self._retries = 0
        self._deadline = NEVER
        self._blocked_until = 0.0
        self.mark([*self._told, *prefixes], when)

    def next_dao(self, knowledge: Knowledge, now: float) -> Dao | None:
        """Return the DAO that is due, if any.

        Returns ``None`` also when the retries are used up: then ``suspicious`` is set, and
        ``next_timer`` says when the next attempt is.
        """
        if self._deadline <= now:
            if self._retries >= DAO_RETRIES:
                self._give_up(now)
                return None
            self._retries += 1
        content = self._difference(knowledge)
        self._due = self._deadline = NEVER
        if not content:
            self._in_flight.clear()
            self._retries = 0
            return None
        self._deadline = now + DAO_ACK_TIME_OUT
        dao = Dao.of_groups(self._number(content), True, self._groups(content, knowledge))
        for prefix, announcement in content.items():
            # Whether the neighbour still knows what it once acknowledged is open until it answers this.
            self._acknowledged.pop(prefix, None)
            if announcement is not None:
                self._told[prefix] = _with_newest_sequence(announcement, self._told.get(prefix))
        return dao

    def acknowledged(self, sequence: int, now: float) -> None:
        """Take an acceptance of the DAO with this DAOSequence."""
        if sequence not in self._in_flight:
            return
        order = list(self._in_flight)
        later = [self._in_flight[other] for other in order[order.index(sequence) + 1 :]]
        for prefix, announcement in self._in_flight.pop(sequence).items():
            if any(prefix in content and content[prefix] != announcement for content in later):
                continue
            if announcement is None:
                self._told.pop(prefix, None)
                self._acknowledged.pop(prefix, None)
            else:
                self._acknowledged[prefix] = announcement
        self._retries = 0
        self._backoff.reset()
        self._blocked_until = 0.0
        self.suspicious = False
        if sequence == self._sequence:
            self._in_flight.clear()
            self._deadline = NEVER
            if self._due == NEVER:
                self._due = now

    def rejected(self, sequence: int, now: float) -> bool:
        """Take a rejection; return whether it was of a DAO that is under way."""
        if sequence not in self._in_flight:
            return False
        self._give_up(now)
        return True

    def farewell(self, knowledge: Knowledge) -> list[Dao]:
        """Return No-Paths for all that the neighbour was told, asking for no acknowledgement."""
        daos, told = [], list(self._told)
        for start in range(0, len(told), MAX_TARGETS_PER_DAO):
            content: Content = dict.fromkeys(told[start : start + MAX_TARGETS_PER_DAO])
            daos.append(Dao.of_groups(self._number(content), False, self._groups(content, knowledge)))
        return daos

    def _difference(self, knowledge: Knowledge) -> Content:
        """What to send next, No-Paths first; forgets the marks of what is already as it should be."""
        withdrawn: Content = {}
        announced: Content = {}
        for prefix in list(self._dirty):
            announcement = knowledge.announcement(prefix)
            if announcement is None and prefix in self._told:
                withdrawn[prefix] = None
            elif announcement is not None and announcement != self._acknowledged.get(prefix):
                announced[prefix] = announcement
            else:
                del self._dirty[prefix]
        content = withdrawn | announced
        return dict(list(content.items())[:MAX_TARGETS_PER_DAO])

    def _number(self, content: Content) -> int:
        """The DAOSequence for ``content``: the last one if it is a mere repetition (RFC 6550 section 9.3)."""
        if self._sequence is None:
            self._sequence = INITIAL_SEQUENCE
        elif self._in_flight.get(self._sequence) != content:
            self._sequence = increment(self._sequence)
        self._in_flight[self._sequence] = content
        while len(self._in_flight) > _MAX_IN_FLIGHT:
            del self._in_flight[next(iter(self._in_flight))]
        return self._sequence

    def _give_up(self, now: float) -> None:
        self._in_flight.clear()
        self._retries = 0
        self._deadline = NEVER
        self._due = self._blocked_until = now + self._backoff.failed()
        self.suspicious = True

    def _groups(self, content: Content, knowledge: Knowledge) -> list[DaoGroup]:
        groups: dict[TransitInformation, list[IPv6Network]] = {}
        for prefix, announcement in content.items():
            if announcement is None:
                transit = self._no_path(self._told[prefix], knowledge.path_sequence(prefix))
            else:
                transit = TransitInformation(
                    announcement.path_control,
                    announcement.sequence,
                    knowledge.path_lifetime(prefix),
                    announcement.external,
                )
            groups.setdefault(transit, []).append(prefix)
        return [DaoGroup(tuple(prefixes), (transit,)) for transit, prefixes in groups.items()]

    @staticmethod
    def _no_path(told: Announcement, newest: int | None) -> TransitInformation:
        # Only the owner may increment the Path Sequence, so a lost path goes with the newest one known.
        sequence = told.sequence if newest is None or is_older(newest, told.sequence) else newest
        return TransitInformation(told.path_control, sequence, 0, told.external)


def _with_newest_sequence(announcement: Announcement, told: Announcement | None) -> Announcement:
    """An announcement may fall back to an older path, but a later No-Path must not be older than any."""
    if told is None or not is_older(announcement.sequence, told.sequence):
        return announcement
    return replace(announcement, sequence=told.sequence)
