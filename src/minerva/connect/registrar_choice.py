"""Which registrar the join proxy connects a pledge with, without sockets and clocks.

*Usable* is a registrar once a connection to it was opened, until one cannot be. A variation (what AN_Proxy
has as its value) is offered to pledges while one of its registrars is usable. As long as none is, one after
the other is tried in the background: those never tried at once, the others with a back-off. So nothing is
offered that has never worked, and what has stopped to work is offered for no longer than ``GRACE``.

*In which order.* The one that last worked is the first choice for all pledges: a pledge comes with several
connections, and should find the same registrar again. Which one a node begins with is random, so the nodes
of a network spread over its registrars. One that failed is passed over for ``PASS_OVER`` seconds while there
is another that works (draft-ietf-anima-brski-discovery).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from random import Random
from typing import Any

from minerva.connect.messages import Registrar
from minerva.core.backoff import Backoff

PASS_OVER = 60.0
"""How long a registrar that cannot be connected to is tried last, in seconds."""

FIRST_PROBE, LAST_PROBE = 0.1, 30.0
"""Between which delays, in seconds, the background tries again where no registrar is usable."""

GRACE = 1.0
"""For how many seconds a variation is still offered when none of its registrars is usable any more: another
may be, in a moment."""

FIRST_PATIENCE, LAST_PATIENCE = 0.15, 4.0
"""Between which times, in seconds, it waits for an answer. Who has just joined hears of registrars before all
routes are there; TCP by itself would try again after a second."""

NO_NEWS = 3
"""How often a registrar that has just been heard of may fail before that is worth a word."""

_JITTER = 0.25


class Standing(StrEnum):
    """What is known of a registrar, in the words of ``minerva status``."""

    UNTRIED = "not tried yet"
    USABLE = "usable"
    FAILED = "failed"


@dataclass
class _Entry:
    registrar: Registrar
    rank: float  # at random: among those of which nothing is known
    backoff: Backoff
    standing: Standing = Standing.UNTRIED
    worked: float = 0.0  # when it last did
    failed: float = 0.0
    reason: str = ""
    probe_at: float = 0.0
    probing: bool = False
    counters: dict[str, int] = field(default_factory=lambda: {"connections": 0, "failures": 0})


class RegistrarChoice:
    """The registrars that are known, and what has become of connections to them."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._entries: dict[Registrar, _Entry] = {}
        self._offered: dict[str, float] = {}  # until when, if none of it becomes usable

    def update(self, registrars: Sequence[Registrar]) -> None:
        """Know these and no others."""
        self._entries = {
            registrar: self._entries.get(registrar) or self._new(registrar) for registrar in registrars
        }
        known = self.variations()
        self._offered = {variation: until for variation, until in self._offered.items() if variation in known}

    def _new(self, registrar: Registrar) -> _Entry:
        backoff = Backoff(FIRST_PROBE, LAST_PROBE, jitter=_JITTER, random=self._random.random)
        return _Entry(registrar, self._random.random(), backoff)

    def _of(self, variation: str) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.registrar.variation == variation]

    def variations(self) -> list[str]:
        """Return all variations, each once."""
        return list(dict.fromkeys(registrar.variation for registrar in self._entries))

    def usable(self, variation: str) -> bool:
        """Return whether a registrar is usable for it."""
        return any(entry.standing is Standing.USABLE for entry in self._of(variation))

    def offered(self, now: float) -> list[str]:
        """Return the variations to offer to pledges now."""
        for variation in self.variations():
            if self.usable(variation):
                self._offered[variation] = inf
            elif variation in self._offered:
                self._offered[variation] = min(self._offered[variation], now + GRACE)
                if self._offered[variation] <= now:
                    del self._offered[variation]
        return [variation for variation in self.variations() if variation in self._offered]

    def candidates(self, variation: str, now: float) -> list[Registrar]:
        """Return the registrars to connect a pledge with, the first choice first."""

        def order(entry: _Entry) -> tuple[int, float, float]:
            failed = entry.standing is Standing.FAILED and now - entry.failed < PASS_OVER
            return 2 * failed or entry.standing is not Standing.USABLE, -entry.worked, entry.rank

        return [entry.registrar for entry in sorted(self._of(variation), key=order)]

    def succeeded(self, registrar: Registrar, now: float, *, probe: bool = False) -> bool:
        """Note that a connection was opened; return whether the registrar was not known to be usable."""
        entry = self._entries.get(registrar)
        if entry is None:
            return False
        news = entry.standing is not Standing.USABLE
        entry.standing, entry.worked, entry.reason = Standing.USABLE, now, ""
        entry.backoff.reset()
        self._tried(entry, "connections", probe=probe)
        return news

    def failed(self, registrar: Registrar, reason: str, now: float, *, probe: bool = False) -> bool:
        """Note that none could be opened; return whether that is news."""
        entry = self._entries.get(registrar)
        if entry is None:
            return False
        news = (entry.standing, entry.reason) != (Standing.FAILED, reason)
        entry.standing, entry.failed, entry.reason = Standing.FAILED, now, reason
        entry.probe_at = now + entry.backoff.failed()
        if not entry.worked and entry.backoff.failures <= NO_NEWS:
            news = entry.backoff.failures == NO_NEWS
        self._tried(entry, "failures", probe=probe)
        return news

    @staticmethod
    def _tried(entry: _Entry, what: str, *, probe: bool) -> None:
        entry.counters[what] += 1
        if probe:
            entry.probing = False

    def patience(self, registrar: Registrar) -> float:
        """Return for how many seconds to wait for this registrar in the background."""
        entry = self._entries.get(registrar)
        failures = entry.backoff.failures if entry is not None else 0
        return min(FIRST_PATIENCE * 2.0 ** min(failures, 16), LAST_PATIENCE)

    def probes(self, now: float) -> list[Registrar]:
        """Return the registrars to try now in the background; they count as being tried until it is known."""
        due = []
        for variation in self.variations():
            entries = self._of(variation)
            if not self.usable(variation) and not any(entry.probing for entry in entries):
                first = min(entries, key=lambda entry: (entry.probe_at, entry.rank))
                if first.probe_at <= now:
                    first.probing = True
                    due.append(first.registrar)
        return due

    def next_timer(self) -> float | None:
        """Return when :meth:`probes` may have something, or :meth:`offered` something else."""
        times = [until for until in self._offered.values() if until != inf]
        for variation in self.variations():
            entries = self._of(variation)
            if not self.usable(variation) and not any(entry.probing for entry in entries):
                times.append(min(entry.probe_at for entry in entries))
        return min(times, default=None)

    def status(self, now: float) -> list[dict[str, Any]]:
        """Return the registrars for ``minerva status``; in use is what a pledge would get now."""
        in_use = {
            self.candidates(variation, now)[0] for variation in self.variations() if self.usable(variation)
        }
        return [
            {
                "address": str(entry.registrar.address),
                "port": entry.registrar.port,
                "variation": entry.registrar.variation,
                "state": entry.standing.value,
                "in_use": entry.registrar in in_use,
                "problem": entry.reason or None,
                **entry.counters,
            }
            for entry in self._entries.values()
        ]
