"""The inventory ASA of this node: part of the process that has the GRASP engine (see ``asa.inventory``)."""

from __future__ import annotations

import random
from collections.abc import Callable

from minerva.asa.inventory import INVENTORY_PERIOD, INVENTORY_TTL, Description
from minerva.grasp.constants import GRASP_LISTEN_PORT, TransportProto
from minerva.grasp.engine import GraspEngine
from minerva.grasp.messages import FloodEntry
from minerva.grasp.options import IPv6Locator, Objective

_JITTER = 0.1


class InventoryAsa:
    """Tells the domain what this node is. ``clock`` returns the engine's time in seconds.

    :meth:`flood` returns in how many seconds it wants to be called again.
    """

    def __init__(self, engine: GraspEngine, description: Description, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._description = description
        self._clock = clock
        self._started = clock()
        self._locator = IPv6Locator(engine.address, TransportProto.IPPROTO_TCP, GRASP_LISTEN_PORT)
        engine.serve(self._current, ttl=INVENTORY_TTL)

    def _current(self) -> Objective:
        return self._description.with_uptime(self._clock() - self._started).objective()

    def flood(self) -> float:
        """Flood the description."""
        entry = FloodEntry(self._description.objective(), self._locator)
        self._engine.flood(INVENTORY_TTL, [entry], self._clock())
        return INVENTORY_PERIOD * (1 + _JITTER * (2 * random.random() - 1))
