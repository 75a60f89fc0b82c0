"""Whole networks, from nothing but certificates to all pairs reachable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab.conftest import lab_run, minerva

pytestmark = pytest.mark.root

# name: nodes, segments, channels that there must be (every pair of neighbours has exactly one)
TOPOLOGIES = {
    "line:2": (2, 1, 1),
    "line:5": (5, 4, 4),
    "ring:6": (6, 6, 6),
    "star:6": (6, 5, 5),
    "tree:2x2": (7, 6, 6),
    "lan:6": (6, 1, 15),
}
PHASES = ["link_ready", "neighbour_heard", "ike_established", "routed", "reachable"]


def check(topology: str) -> None:
    nodes, links, channels = TOPOLOGIES[topology]
    found = lab_run(topology)
    assert found["exit_code"] == 0, found["stderr"]
    assert found["topology"] == topology
    assert (found["nodes"], found["links"]) == (nodes, links)
    assert found["pairs_reachable"] == found["pairs_total"] == nodes * (nodes - 1)
    assert found["channels"] == channels
    assert found["data_plane"] == "user"
    assert found["seconds"] > 0
    assert found["mib_per_node"] > 0
    assert list(found["phases"]) == PHASES
    medians = [found["phases"][phase]["median"] for phase in PHASES]
    assert medians[0] == min(medians)
    assert all(0 < found["phases"][phase]["median"] <= found["phases"][phase]["max"] for phase in PHASES)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_all_pairs_become_reachable(topology: str) -> None:
    """
    covers: 6.12-1, 6.4-2, 6.0-1
    """
    check(topology)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_again_and_again(topology: str) -> None:
    for _ in range(int(os.environ.get("MINERVA_SOAK_ROUNDS", "10"))):
        check(topology)


def test_a_cut_ring_heals() -> None:
    """
    covers: 6.12.1.1.2-3, 6.13.5.2-2
    """
    found = lab_run("ring:6", "--cut", "n2-n3")
    assert found["exit_code"] == 0, found["stderr"]
    assert found["pairs_reachable"] == 30
    assert 0 < found["heal_seconds"] < 30


def test_a_line_cut_in_two_does_not_heal_and_says_so() -> None:
    found = lab_run("line:3", "--cut", "n1-n2", "--timeout", "12")
    assert found["exit_code"] == 1
    assert found["pairs_reachable"] == 6, "before the cut, all were"
    assert found["heal_seconds"] is None


def test_a_file_with_links_lans_and_settings(tmp_path: Path) -> None:
    file = tmp_path / "net.toml"
    file.write_text('links = [["a", "b"]]\nlans = [["b", "c", "d"]]\n[nodes.c.rpl]\nroot = true\n')
    found = lab_run(file)
    assert found["exit_code"] == 0, found["stderr"]
    assert (found["nodes"], found["links"], found["channels"]) == (4, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "lin:3"], "no such topology"),
        (["run", "line:1"], "line"),
        (["run", "line:3", "--cut", "n1-n3"], "n1-n3"),
        (["run", "line:2", "--keylog"], "--pcap"),
        (["run", "line:2", "--name", "Not A Name"], "cannot be called"),
        (["down", "nosuchlab"], "no lab called"),
        (["down"], "--all"),
        (["exec", "nosuchlab", "n1", "--", "true"], "no lab called"),
        (["status", "nosuchlab"], "no lab called"),
    ],
)
def test_bad_input_gets_one_sentence(arguments: list[str], words: str) -> None:
    result = minerva("lab", *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""
