"""Who may write to a console: one at a time, unless that one lets others write, too."""

from __future__ import annotations

from typing import Generic, TypeVar

_P = TypeVar("_P")


class Lease(Generic[_P]):
    """The lease of one console among parties, which are compared by identity.

    When its holder gives it up, it goes to whoever has waited longest. The holder may allow co-writing: then
    all who ask may write beside it. That ends whenever the lease moves; co-writers then wait for the lease,
    before all others.
    """

    __slots__ = ("_co_writers", "_waiting", "co_writing", "holder")

    def __init__(self) -> None:
        self.holder: _P | None = None
        self.co_writing = False
        self._co_writers: list[_P] = []
        self._waiting: list[_P] = []

    def writes(self, party: _P) -> bool:
        """Return whether the party may write now."""
        return party is self.holder or party in self._co_writers

    def waits(self, party: _P) -> bool:
        """Return whether the party has asked for the lease and not got it yet."""
        return party in self._waiting

    def request(self, party: _P) -> bool:
        """Ask for the lease; return whether the party may write now. If not, it waits."""
        if self.holder is None:
            self.holder = party
        elif not self.writes(party):
            if self.co_writing:
                self._co_writers.append(party)
            elif party not in self._waiting:
                self._waiting.append(party)
        return self.writes(party)

    def move(self, party: _P) -> None:
        """Give the lease to the party, whoever had it."""
        self.allow(False)
        if party in self._waiting:
            self._waiting.remove(party)
        self.holder = party

    def drop(self, party: _P) -> None:
        """Let the party neither write nor wait any more."""
        if party is self.holder:
            self.allow(False)
            self.holder = self._waiting.pop(0) if self._waiting else None
        elif party in self._co_writers:
            self._co_writers.remove(party)
        elif party in self._waiting:
            self._waiting.remove(party)

    def allow(self, co_writing: bool) -> list[_P]:
        """Allow co-writing or end it; return those who thereby begin or cease to write."""
        self.co_writing = co_writing
        if co_writing:
            changed, self._waiting = self._waiting, []
            self._co_writers += changed
        else:
            changed, self._co_writers = self._co_writers, []
            self._waiting = changed + self._waiting
        return changed
