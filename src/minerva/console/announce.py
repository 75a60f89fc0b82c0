"""Consoles are found by themselves: each server floods what it has, and every node knows all of them.

The objectives' names are private (RFC 8990 section 2.10.1), as that of the inventory. The values in CDDL::

    consoles = { "ssh": uint, ? "web": uint, "parts": uint, "consoles": { * tstr => state } }
    state = 0 / 1 / 2 / 3          ; unknown, down, connected, in use
    alerts = [* { "alert": tstr, "console": tstr, "time": uint, "line": tstr }]   ; the latest first

``ssh`` and ``web`` are ports at the locator's address, which is that of the node; 0 where there is none. A
server with many consoles tells of them in several parts, which are objectives of their own: the name of part
``n`` has ``.n`` at its end, but for the first. Of alerts it tells the latest again with each new one, as many
as fit into one message, since what is flooded takes the place of what the same server flooded before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

from minerva.asa import (
    NO_VALUE,
    Asa,
    AsaError,
    AsaLocator,
    IPv6Locator,
    Objective,
    ObjectiveFlag,
    TaggedObjective,
    TransportProto,
)
from minerva.asa.protocol import API_SOCKET
from minerva.console.alerts import Alert
from minerva.console.events import State
from minerva.core.errors import UsageError
from minerva.core.text import printable
from minerva.grasp.errors import GraspError

log = logging.getLogger(__name__)

CONSOLES: Final = "minerva.alt:consoles"
ALERTS: Final = "minerva.alt:console-alerts"
PERIOD: Final = 60.0
"""How often it is told again, in seconds."""
SETTLE: Final = 2.0
"""What changes is told after so many seconds, all together."""
TTL: Final = int(3.5 * PERIOD * 1000)
ALERT_TTL: Final = 3_600_000
"""How long others keep alerts, in milliseconds; older ones are told no more."""
RETRY: Final = 5.0
MAX_PARTS: Final = 32

_PER_PART = 800  # bytes: a flood has to fit into GRASP's 2048, with whatever else is in the message
_LOOP_COUNT = 255
_MAX_TEXT = 200
_MAX_ALERTS = 16
_PER_FLOOD = 1500  # bytes of alerts, likewise
_ALERT_OVERHEAD = 40  # bytes of an alert besides its texts
_LATEST = 1 << 37  # seconds, to a year of four digits
_STATES: Final = (State.UNKNOWN, State.DOWN, State.CONNECTED, State.IN_USE)


@dataclass(frozen=True, slots=True)
class DomainAlert:
    """What a server has told of an alert; its texts may have anything in them."""

    address: IPv6Address
    name: str
    console: str
    at: int
    """Seconds since 1970, by the server's clock."""
    line: str


@dataclass(frozen=True, slots=True)
class Announced:
    """What one server has told of itself."""

    address: IPv6Address
    ssh: int
    web: int
    consoles: Mapping[str, State]


def _name(part: int) -> str:
    return f"{CONSOLES}.{part}" if part else CONSOLES


def _question(name: str) -> Objective:
    return Objective(name, ObjectiveFlag.F_SYNCH, _LOOP_COUNT, NO_VALUE)


def objectives(ssh: int, web: int, consoles: Mapping[str, State]) -> list[Objective]:
    """Return what is to be flooded for these consoles."""
    parts: list[dict[str, int]] = [{}]
    size = 0
    for name, state in sorted(consoles.items()):
        if size > _PER_PART:
            parts.append({})
            size = 0
        parts[-1][name] = _STATES.index(state)
        size += len(name) + 3
    del parts[MAX_PARTS:]
    return [
        Objective(
            _name(number),
            ObjectiveFlag.F_SYNCH,
            _LOOP_COUNT,
            {"ssh": ssh, "web": web, "parts": len(parts), "consoles": part},
        )
        for number, part in enumerate(parts)
    ]


def parse(tagged: TaggedObjective) -> tuple[Announced, int]:
    """Return what a flooded objective says, and of how many parts it is one. Raises GraspError."""
    value = tagged.objective.value
    address = None if tagged.locator is None else tagged.locator.address
    if address is None or not isinstance(value, dict):
        raise GraspError("not an objective of consoles")
    ssh, web, parts, states = (value.get(key, 0) for key in ("ssh", "web", "parts", "consoles"))
    if not all(type(number) is int and 0 <= number <= 65_535 for number in (ssh, web, parts)):
        raise GraspError("not the ports of a console server")
    if not isinstance(states, dict) or not all(
        isinstance(name, str) and type(state) is int and 0 <= state < len(_STATES)
        for name, state in states.items()
    ):
        raise GraspError("not a map of consoles")
    consoles = {name[:_MAX_TEXT]: _STATES[state] for name, state in states.items()}
    return Announced(address, ssh, web, consoles), parts


def alerts_objective(alerts: Iterable[Alert]) -> Objective:
    """Return what is to be flooded for these alerts, the latest first: as many as there is room for."""
    told: list[dict[str, str | int]] = []
    size = 0
    for alert in alerts:
        name, console, line = (text[:_MAX_TEXT] for text in (alert.name, alert.console, alert.line))
        size += len((name + console + line).encode()) + _ALERT_OVERHEAD
        if size > _PER_FLOOD:
            break
        told.append({"alert": name, "console": console, "time": int(alert.at), "line": line})
    return Objective(ALERTS, ObjectiveFlag.F_SYNCH, _LOOP_COUNT, told)


def parse_alerts(tagged: TaggedObjective) -> list[DomainAlert]:
    """Return the alerts in a flooded objective. Raises GraspError."""
    value = tagged.objective.value
    address = None if tagged.locator is None else tagged.locator.address
    if address is None or not isinstance(value, list):
        raise GraspError("not an objective of alerts")
    found = []
    for each in value:
        if not isinstance(each, dict):
            raise GraspError("not an alert")
        name, console, line, at = (each.get(key) for key in ("alert", "console", "line", "time"))
        if not (isinstance(name, str) and isinstance(console, str) and isinstance(line, str)):
            raise GraspError("not the texts of an alert")
        if type(at) is not int or not 0 <= at < _LATEST:
            raise GraspError("not the time of an alert")
        found.append(DomainAlert(address, name[:_MAX_TEXT], console[:_MAX_TEXT], at, line[:_MAX_TEXT]))
    return found


async def find_alerts(run_dir: Path) -> list[DomainAlert]:
    """Return all alerts that the node has heard of, the latest first. Raises AsaError."""
    found: list[DomainAlert] = []
    async with Asa.connect("consoles: command", run_dir / API_SOCKET) as asa:
        for tagged in await asa.get_flood(_question(ALERTS)):
            try:
                found += parse_alerts(tagged)
            except GraspError as error:
                log.debug("%s of somebody: %s", ALERTS, error)
    return sorted(found, key=lambda one: one.at, reverse=True)


async def find(run_dir: Path) -> list[Announced]:
    """Return all servers that the node has heard of. Raises AsaError."""
    found: dict[IPv6Address, Announced] = {}
    async with Asa.connect("consoles: command", run_dir / API_SOCKET) as asa:
        part, parts = 0, 1
        while part < min(parts, MAX_PARTS):
            for tagged in await asa.get_flood(_question(_name(part))):
                try:
                    one, of_parts = parse(tagged)
                except GraspError as error:
                    log.debug("%s of somebody: %s", CONSOLES, error)
                    continue
                parts = max(parts, of_parts)
                before = found.get(one.address)
                consoles = dict(one.consoles) if before is None else {**before.consoles, **one.consoles}
                found[one.address] = Announced(one.address, one.ssh, one.web, consoles)
            part += 1
    return sorted(found.values(), key=lambda one: one.address)


class Announcer:
    """Tells the domain of the consoles that ``consoles()`` returns, and of alerts, for as long as it runs.

    Without a node it waits for one. ``ssh`` and ``web`` are 0 where there is no such front in the ACP.
    """

    def __init__(
        self, consoles: Callable[[], Mapping[str, State]], *, run_dir: Path, ssh: int, web: int
    ) -> None:
        self.problem = "not yet"
        """Why nothing is told; empty if it is."""
        self._consoles = consoles
        self._path = run_dir / API_SOCKET
        self._ssh, self._web = ssh, web
        self._alerts: deque[Alert] = deque(maxlen=_MAX_ALERTS)
        self._alerts_told = True
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="announcements")

    async def close(self) -> None:
        """Tell nothing more; what was told expires."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def changed(self) -> None:
        """Say that a console has another state, or that there are others."""
        self._wake.set()

    def alert(self, alert: Alert) -> None:
        """Tell the domain of an alert."""
        self._alerts.appendleft(alert)
        self._alerts_told = False
        self._wake.set()

    async def _run(self) -> None:
        while True:
            try:
                async with Asa.connect("consoles", self._path) as asa:
                    await self._tell(asa)
            except (AsaError, GraspError, UsageError) as error:
                if str(error) != self.problem:
                    log.info("consoles are not announced: %s", printable(str(error)))
                self.problem = str(error)
            await asyncio.sleep(RETRY)

    async def _tell(self, asa: Asa) -> None:
        address, _ = await asa.grasp.node()
        # A node that has begun anew does not know them.
        self._alerts_told = not self._alerts
        registered: set[str] = set()
        while True:
            self._wake.clear()
            many = objectives(self._ssh, self._web, self._consoles())
            if not self._alerts_told:
                oldest = time.time() - ALERT_TTL / 1000
                many.append(alerts_objective(alert for alert in self._alerts if alert.at >= oldest))
                self._alerts_told = True
            for objective in many:
                if objective.name not in registered:
                    await asa.register_objective(objective)
                    registered.add(objective.name)
                locator = AsaLocator(IPv6Locator(address, TransportProto.IPPROTO_TCP, self._ssh or self._web))
                ttl = ALERT_TTL if objective.name == ALERTS else TTL
                await asa.flood(ttl, TaggedObjective(objective, locator))
            if self.problem:
                log.info("consoles are announced to the domain")
            self.problem = ""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD * random.uniform(0.9, 1.1)):
                    await self._wake.wait()
            await asyncio.sleep(SETTLE)
