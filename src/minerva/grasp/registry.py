"""Which ASAs there are on this node, and which objectives they have (RFC 8991 section 2.3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from minerva.grasp.api import AsaError, ErrorCode
from minerva.grasp.constants import ObjectiveFlag
from minerva.grasp.discovery import supports
from minerva.grasp.options import Objective

MAX_ASAS = 256
MAX_OBJECTIVES = 1024
"""How many ASAs, and objectives of all of them, one node registers."""

MAX_NAME = 255
"""Longest name of an ASA or an objective, in bytes of UTF-8."""


@dataclass(frozen=True, slots=True)
class Asa:
    """A registered ASA; ``client`` is the process that registered it."""

    handle: int
    name: str
    client: int


@dataclass(slots=True)
class Registration:
    """An objective of an ASA: how it was registered, and whether anybody answers for it now."""

    asa: Asa
    name: str
    flags: ObjectiveFlag
    ttl: int
    discoverable: bool
    overlap: bool
    local: bool
    negotiating: bool = False
    """Whether the ASA listens for negotiation requests."""
    value: Objective | None = None
    """What synchronization requests are answered with; ``None`` if the ASA does not listen for them."""
    flooded: bool = False
    """Whether ``value`` is there only because it was flooded."""
    make: Callable[[], Objective] | None = None
    """Makes the value at the moment when it is asked for, instead of ``value``; for the node's own."""

    @property
    def answers(self) -> bool:
        """Whether a discovery may find it (RFC 8991 section 2.3.3)."""
        return self.discoverable or self.negotiating or self.value is not None or self.make is not None


def check_objective(objective: Objective) -> None:
    """Raise :class:`AsaError` unless an ASA may have an objective like this."""
    kinds = objective.flags
    if kinds & ObjectiveFlag.F_NEG and kinds & ObjectiveFlag.F_SYNCH:
        raise AsaError(ErrorCode.notBoth)
    if kinds & ObjectiveFlag.F_NEG_DRY and not kinds & ObjectiveFlag.F_NEG:
        raise AsaError(ErrorCode.notDry)
    check_name(objective.name)


def check_name(name: str) -> None:
    """Raise :class:`AsaError` unless ``name`` can be that of an objective, or of an ASA."""
    if not name or len(name.encode(errors="replace")) > MAX_NAME:
        raise AsaError(ErrorCode.unspec, f"a name has 1 to {MAX_NAME} bytes of UTF-8")


class Registry:
    """The ASAs of one instance and their objectives. Methods raise :class:`AsaError`."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._asas: dict[int, Asa] = {}
        self._objectives: dict[str, list[Registration]] = {}

    # --- ASAs ------------------------------------------------------------------------------------------

    def register_asa(self, name: str, client: int) -> Asa:
        """Register an ASA for the process ``client``."""
        check_name(name)
        if any(asa.name == name for asa in self._asas.values()):
            raise AsaError(ErrorCode.dupASA)
        if len(self._asas) >= MAX_ASAS:
            raise AsaError(ErrorCode.ASAfull)
        # Not 0, which programs like to use for "none", and not to be guessed by another process.
        while not (handle := self._random.getrandbits(32)) or handle in self._asas:
            pass
        self._asas[handle] = Asa(handle, name, client)
        return self._asas[handle]

    def asa(self, handle: int, client: int) -> Asa:
        """Return the ASA with ``handle``, which must be one of ``client``."""
        asa = self._asas.get(handle)
        if asa is None:
            raise AsaError(ErrorCode.noASA)
        if asa.client != client:
            raise AsaError(ErrorCode.notYourASA)
        return asa

    def asas_of(self, client: int) -> list[Asa]:
        """Return the ASAs that a process has registered."""
        return [asa for asa in self._asas.values() if asa.client == client]

    def remove_asa(self, asa: Asa) -> None:
        """Forget an ASA and all its objectives."""
        del self._asas[asa.handle]
        for name in list(self._objectives):
            self._keep(name, [item for item in self._objectives[name] if item.asa is not asa])

    # --- objectives ------------------------------------------------------------------------------------

    def register(
        self, asa: Asa, objective: Objective, *, ttl: int, discoverable: bool, overlap: bool, local: bool
    ) -> Registration:
        """Register an objective of ``asa``."""
        check_objective(objective)
        others = self._objectives.get(objective.name, [])
        if any(other.asa is asa for other in others):
            raise AsaError(ErrorCode.objReg)
        if others and not (overlap and all(other.overlap for other in others)):
            raise AsaError(ErrorCode.notOverlap if overlap else ErrorCode.objReg)
        if sum(len(items) for items in self._objectives.values()) >= MAX_OBJECTIVES:
            raise AsaError(ErrorCode.objFull)
        flags = objective.flags | ObjectiveFlag.F_DISC
        registration = Registration(asa, objective.name, flags, ttl, discoverable, overlap, local)
        self._objectives.setdefault(objective.name, []).append(registration)
        return registration

    def deregister(self, asa: Asa, name: str) -> None:
        """Forget an objective of ``asa``."""
        registration = self.registration(asa, name)
        self._keep(name, [item for item in self._objectives[name] if item is not registration])

    def _keep(self, name: str, items: list[Registration]) -> None:
        if items:
            self._objectives[name] = items
        else:
            del self._objectives[name]

    def registration(self, asa: Asa, name: str) -> Registration:
        """Return the objective ``name`` of ``asa``."""
        for item in self._objectives.get(name, ()):
            if item.asa is asa:
                return item
        raise AsaError(ErrorCode.notYourObj)

    def answering(self, objective: Objective) -> Registration | None:
        """Return who answers a discovery of ``objective``, if anybody does."""
        for item in self._objectives.get(objective.name, ()):
            if item.answers and supports(item.flags, objective.flags):
                return item
        return None

    def negotiating(self, name: str) -> list[Registration]:
        """Return who listens for negotiations of an objective."""
        return [item for item in self._objectives.get(name, ()) if item.negotiating]

    def synchronizing(self, name: str, *, local: bool) -> Objective | None:
        """Return what a synchronization request is answered with, or ``None``; who listens comes first.

        ``local`` tells whether the request came over a link, as those for objectives of the link do.
        """
        items = [item for item in self._objectives.get(name, ()) if item.local == local]
        for item in items:
            if item.make is not None:
                return item.make()
        values = [item for item in items if item.value is not None]
        return min(values, key=lambda item: item.flooded).value if values else None

    def __iter__(self) -> Iterator[Registration]:
        return (item for items in self._objectives.values() for item in items)
