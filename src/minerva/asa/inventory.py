"""The inventory of a domain: every node tells what it is (an ASA of use to operators).

Each node floods a description of itself, tagged with where it can be asked, and answers synchronization
requests with the same description and its uptime. So a list of all nodes is in everybody's flood cache, and
the uptime is a question away, to which silence is an answer too.

The objective's name is private (RFC 8990 section 2.10.1): it begins with a name under ``.alt``, which nobody
can have in the DNS (RFC 9476). Its value in CDDL::

    inventory = { "name": tstr, "version": tstr, ? "model": tstr, ? "serial": tstr, ? "uptime": uint }

``uptime`` is that of the node's GRASP, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from minerva.grasp.constants import ObjectiveFlag
from minerva.grasp.errors import GraspError
from minerva.grasp.options import NO_VALUE, Objective, check_text, check_uint

INVENTORY: Final = "minerva.alt:inventory"
"""The objective."""

INVENTORY_PERIOD: Final = 300.0
"""How often a node repeats its flood, in seconds; who joins in between is told by its neighbours."""

INVENTORY_TTL: Final = int(3.5 * INVENTORY_PERIOD * 1000)
"""How long others may believe it, in milliseconds."""

_LOOP_COUNT = 255
_MAX_TEXT = 200
_MAX_UPTIME = 1 << 40


@dataclass(frozen=True, slots=True)
class Description:
    """What a node is. Texts are empty where a machine has no such thing."""

    name: str
    version: str
    model: str = ""
    serial: str = ""
    uptime: int | None = None

    def texts(self) -> tuple[str, ...]:
        """Return all but the uptime."""
        return self.name, self.version, self.model, self.serial

    @classmethod
    def of_texts(cls, texts: tuple[str, ...]) -> Description:
        """Return the description that :meth:`texts` told of."""
        name, version, model, serial = texts
        return cls(name, version, model, serial)

    def with_uptime(self, seconds: float) -> Description:
        """Return the same with an uptime."""
        return replace(self, uptime=int(seconds))

    def objective(self) -> Objective:
        """Return the objective that says so."""
        texts = {"name": self.name, "version": self.version, "model": self.model, "serial": self.serial}
        value: dict[str, Any] = {key: text[:_MAX_TEXT] for key, text in texts.items() if text}
        if self.uptime is not None:
            value["uptime"] = self.uptime
        return Objective(INVENTORY, ObjectiveFlag.F_SYNCH, _LOOP_COUNT, value)

    @classmethod
    def of(cls, objective: Objective) -> Description:
        """Return what an objective says. Raises :class:`GraspError` if it is not an inventory."""
        value = objective.value
        if objective.name != INVENTORY or not isinstance(value, dict):
            raise GraspError("not an inventory objective")

        def text(key: str) -> str:
            return check_text(value.get(key, ""), key)[:_MAX_TEXT]

        uptime = value.get("uptime")
        if uptime is not None:
            check_uint(uptime, _MAX_UPTIME, "uptime")
        return cls(text("name"), text("version"), text("model"), text("serial"), uptime)


def question() -> Objective:
    """Return the objective without a value, to ask for it."""
    return Objective(INVENTORY, ObjectiveFlag.F_SYNCH, _LOOP_COUNT, NO_VALUE)
