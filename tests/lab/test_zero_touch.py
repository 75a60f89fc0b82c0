"""Networks that begin with one member, a registrar, and devices that know nothing but their maker."""

from __future__ import annotations

import pytest

from tests.lab.conftest import lab_run

pytestmark = pytest.mark.root

# name: nodes, channels
TOPOLOGIES = {"line:5": (5, 4), "ring:6": (6, 6), "tree:2x2": (7, 6), "lan:6": (6, 15)}

PHASES = [
    "link_ready",
    "proxy_heard",
    "voucher",
    "enrolled",
    "neighbour_heard",
    "ike_established",
    "routed",
    "reachable",
]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_all_are_let_in(topology: str) -> None:
    """One after the other, through whoever is in already.

    covers: P-4, P-10, P-11, P-62, JP-1, JP-3, R-1, 6.2.5-2, 6.2.4-1
    """
    nodes, channels = TOPOLOGIES[topology]
    found = lab_run(topology, "--zero-touch")
    assert found["exit_code"] == 0, found["stderr"]
    assert found["pairs_reachable"] == found["pairs_total"] == nodes * (nodes - 1)
    assert found["channels"] == channels
    assert list(found["phases"]) == PHASES
    before = 0.0
    for phase in PHASES[1:4]:
        assert found["phases"][phase]["max"] > before
        before = found["phases"][phase]["max"]
