from __future__ import annotations

from ipaddress import IPv6Address
from typing import Any

import pytest

from minerva.asa import AsaLocator, IPv6Locator, Objective, ObjectiveFlag, TaggedObjective, TransportProto
from minerva.console.alerts import Alert
from minerva.console.announce import (
    ALERTS,
    CONSOLES,
    MAX_PARTS,
    DomainAlert,
    alerts_objective,
    objectives,
    parse,
    parse_alerts,
)
from minerva.console.events import State
from minerva.grasp.constants import GRASP_DEF_MAX_SIZE
from minerva.grasp.errors import GraspError
from minerva.grasp.messages import Flood, FloodEntry

ADDRESS = IPv6Address("fd89:b714:f3db::1")


def tagged(objective: Objective) -> TaggedObjective:
    return TaggedObjective(objective, AsaLocator(IPv6Locator(ADDRESS, TransportProto.IPPROTO_TCP, 2222)))


@pytest.mark.parametrize("count", [0, 1, 60, 1000])
def test_what_is_told_is_what_is_heard(count: int) -> None:
    states = list(State)
    consoles = {f"rack-{number:04}.example": states[number % 4] for number in range(count)}
    heard: dict[str, State] = {}
    told = objectives(2222, 2280, consoles)
    for number, objective in enumerate(told):
        assert objective.name == (f"{CONSOLES}.{number}" if number else CONSOLES)
        flood = Flood(1, ADDRESS, 1, (FloodEntry(objective, tagged(objective).locator.locator),))  # type: ignore[union-attr]
        assert len(flood.encode()) <= GRASP_DEF_MAX_SIZE
        found, parts = parse(tagged(objective))
        assert (found.address, found.ssh, found.web, parts) == (ADDRESS, 2222, 2280, len(told))
        heard |= found.consoles
    assert heard == consoles


def test_one_has_only_so_many() -> None:
    consoles = {f"{'x' * 60}{number}": State.DOWN for number in range(2000)}
    assert len(objectives(1, 1, consoles)) == MAX_PARTS


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"ssh": -1},
        {"ssh": 65_536},
        {"ssh": True},
        {"consoles": []},
        {"consoles": {"x": 4}},
        {"consoles": {"x": "y"}},
        {"consoles": {1: 1}},
    ],
)
def test_nonsense_of_others(value: Any) -> None:
    with pytest.raises(GraspError):
        parse(tagged(Objective(CONSOLES, ObjectiveFlag.F_SYNCH, 255, value)))


def test_one_without_an_address_is_of_no_use() -> None:
    [objective] = objectives(2222, 0, {})
    with pytest.raises(GraspError):
        parse(TaggedObjective(objective))


@pytest.mark.parametrize(
    ("line", "count"),
    [("x", 16), ("Kernel panic", 16), ("x" * 1000, 5), ("\U0001f525" * 1000, 1), ("ü" * 90, 5)],
)
def test_the_latest_alerts_are_told_as_many_as_fit(line: str, count: int) -> None:
    """The largest fit into a flood, and what is heard is what was told."""
    alerts = [Alert("panic", f"web{number}", 1000.7 - number, line, (), 0) for number in range(16)]
    objective = alerts_objective(alerts)
    assert objective.name == ALERTS
    flood = Flood(1, ADDRESS, 1, (FloodEntry(objective, tagged(objective).locator.locator),))  # type: ignore[union-attr]
    assert len(flood.encode()) <= GRASP_DEF_MAX_SIZE
    found = parse_alerts(tagged(objective))
    assert found == [
        DomainAlert(ADDRESS, "panic", f"web{number}", 1000 - number, line[:200])
        for number in range(len(found))
    ]
    assert len(found) >= count


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        [1],
        [{}],
        [{"alert": "a", "console": "c", "line": "l"}],
        [{"alert": "a", "console": "c", "line": "l", "time": -1}],
        [{"alert": "a", "console": "c", "line": "l", "time": 1 << 60}],
        [{"alert": "a", "console": "c", "line": "l", "time": 1.5}],
        [{"alert": "a", "console": "c", "line": b"l", "time": 1}],
    ],
)
def test_nonsense_of_others_about_alerts(value: Any) -> None:
    with pytest.raises(GraspError):
        parse_alerts(tagged(Objective(ALERTS, ObjectiveFlag.F_SYNCH, 255, value)))


def test_alerts_need_an_address() -> None:
    with pytest.raises(GraspError):
        parse_alerts(TaggedObjective(alerts_objective([])))
