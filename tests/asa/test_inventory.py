"""The inventory objective: what a node says of itself, and what is made of what others say."""

from __future__ import annotations

from typing import Any

import pytest

from minerva.asa.inventory import INVENTORY, Description, question
from minerva.grasp.constants import ObjectiveFlag
from minerva.grasp.errors import GraspError
from minerva.grasp.options import Objective


def test_there_and_back() -> None:
    whole = Description("r1", "minerva 1", "Rack 9000", "S/N 1").with_uptime(12.9)
    assert Description.of(whole.objective()) == whole
    assert whole.uptime == 12
    assert Description.of_texts(whole.texts()).with_uptime(12) == whole


def test_what_a_machine_does_not_have_is_not_said() -> None:
    assert Description("r1", "minerva 1").objective().value == {"name": "r1", "version": "minerva 1"}


def test_the_name_is_private() -> None:
    """
    covers: G2.10.1-1
    """
    assert ":" in INVENTORY
    assert question().name == INVENTORY


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "text",
        {"name": 1},
        {"name": "a", "version": "b", "uptime": -1},
        {"serial": b""},
        {"uptime": "1"},
    ],
)
def test_nonsense_of_others_is_refused(value: Any) -> None:
    with pytest.raises(GraspError):
        Description.of(Objective(INVENTORY, ObjectiveFlag.F_SYNCH, 6, value))


def test_long_texts_of_others_are_cut() -> None:
    found = Description.of(Objective(INVENTORY, ObjectiveFlag.F_SYNCH, 6, {"name": "x" * 1000, "more": 1}))
    assert len(found.name) == 200
