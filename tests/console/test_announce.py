from __future__ import annotations

from ipaddress import IPv6Address
from typing import Any

import pytest

from minerva.asa import AsaLocator, IPv6Locator, Objective, ObjectiveFlag, TaggedObjective, TransportProto
from minerva.console.announce import CONSOLES, MAX_PARTS, objectives, parse
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
