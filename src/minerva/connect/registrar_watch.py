"""Which registrars announce themselves in the ACP (RFC 8995 section 4.3), as the plane hears them.

Only AN_join_registrar counts, in the GRASP instance of the ACP: an AN_Proxy, wherever it was heard, is
somebody's offer to pledges and no registrar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv6Address
from math import inf
from typing import Any, Final, Protocol

from minerva.asa.services import AN_JOIN_REGISTRAR, EST_TLS
from minerva.connect.messages import Registrar
from minerva.core.addresses import UNIQUE_LOCAL
from minerva.grasp.constants import GRASP_LISTEN_PORT, TransportProto
from minerva.grasp.flooding import CachedObjective
from minerva.grasp.options import IPv6Locator

MAX_REGISTRARS: Final = 16
"""How many are told of, one for each of its variations. Who was there first stays: no newcomers, however many
a member that has gone astray invents, drive out what pledges are enrolled by."""

MAX_VARIATION: Final = 64
"""Longest variation that is passed on, in bytes: it must fit into announcements on links."""

MAX_VARIATIONS: Final = 16
"""How many variations of one announcement are looked at: a flood has room for 16,000, and all of them would
be looked at again with every flood that comes."""

DEFAULT_VARIATION: Final = ""
"""What AN_Proxy has for "EST-TLS" (RFC 8995 figure 11, draft-ietf-anima-brski-discovery)."""

SILENCE: Final = 10.0
"""How long it takes, in seconds after the start, until hearing of no registrar means that there is none: the
neighbours tell what they know when they have connected."""


class Floods(Protocol):
    """What this needs of the GRASP engine."""

    def floods(self, name: str, now: float) -> list[CachedObjective]:
        """Return all valid copies of a flooded objective."""


def variations(value: Any) -> list[str]:
    """Return the values of AN_Proxy for the value of an AN_join_registrar.

    It is a text, or by the letter of the CDDL's comment a list of them, and none is understood. "EST-TLS" is
    the one that has another name in AN_Proxy. Where there is no text it is this one all the same: every
    registrar must support it.
    """
    texts = value[:MAX_VARIATIONS] if isinstance(value, list) and value else [value]
    found = [
        DEFAULT_VARIATION if text == EST_TLS or not isinstance(text, str) else text
        for text in texts
        if not isinstance(text, str) or len(text.encode(errors="surrogatepass")) <= MAX_VARIATION
    ]
    return list(dict.fromkeys(found))


def registrars_of(copies: Iterable[CachedObjective]) -> list[Registrar]:
    """Return the registrars that can be reached by TCP at an ACP address; others cannot be proxied to.

    GRASP's own port is none: no word of a member makes a door to that for strangers.
    """
    return [
        Registrar(locator.address, locator.port, variation)
        for copy in copies
        if isinstance(locator := copy.locator, IPv6Locator)
        and locator.transport is TransportProto.IPPROTO_TCP
        and locator.address in UNIQUE_LOCAL
        and locator.port
        and locator.port != GRASP_LISTEN_PORT
        for variation in variations(copy.objective.value)
    ]


class RegistrarWatch:
    """Tells of the registrars whenever they change, from its start at ``now`` on.

    ``own`` are this node's addresses. ``tell(registrars)`` gets all of them, ``tell_local(local)`` whether
    one of them is a program of this machine. :meth:`look` is to be called whenever a flood may have come or
    gone, and at the time that it returns.
    """

    def __init__(
        self,
        engine: Floods,
        own: Sequence[IPv6Address],
        now: float,
        *,
        tell: Callable[[tuple[Registrar, ...]], None],
        tell_local: Callable[[bool], None],
    ) -> None:
        self._engine = engine
        self._own = frozenset(own)
        self._tell = tell
        self._tell_local = tell_local
        self._registrars: tuple[Registrar, ...] | None = None  # not told yet
        self._silent_until = now + SILENCE
        self._local = False

    def look(self, now: float) -> float:
        """Look which there are; return when to look again, which is when the first announcement expires."""
        copies = self._engine.floods(AN_JOIN_REGISTRAR, now)
        # Each once, in the order in which they were first heard of, whatever has been repeated since.
        registrars = self._first(copies)
        local = any(
            copy.interface is None and any(one.address in self._own for one in registrars_of([copy]))
            for copy in copies
        )
        if local is not self._local:
            self._local = local
            self._tell_local(local)
        if self._registrars is None and not registrars and now < self._silent_until:
            return self._silent_until
        if registrars != self._registrars:
            self._registrars = registrars
            self._tell(registrars)
        return min((copy.expires for copy in copies), default=inf)

    def _first(self, copies: Sequence[CachedObjective]) -> tuple[Registrar, ...]:
        """Return those that are known and still announced, then the first of the others."""
        known = self._registrars or ()
        places = {(one.address, one.port) for one in known}
        found: dict[Registrar, None] = {}
        for copy in copies:
            locator = copy.locator
            if not isinstance(locator, IPv6Locator):
                continue
            # There may be thousands, invented by somebody: what cannot count any more is not looked at.
            if len(found) < MAX_REGISTRARS + len(known) or (locator.address, locator.port) in places:
                found.update(dict.fromkeys(registrars_of([copy])))
        kept = [registrar for registrar in known if registrar in found]
        kept += [registrar for registrar in found if registrar not in kept]
        return tuple(kept[:MAX_REGISTRARS])
