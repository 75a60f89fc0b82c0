"""Two nodes with two links between them; one is killed and started again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.lab.attacker import Pings, StandingLab, kill_and_start, standing_lab, until

pytestmark = pytest.mark.root

TOPOLOGY = 'links = [["a", "b"], ["a", "b"]]\n'

AT_ONCE = 9.0
"""How long, in seconds, a node that was killed is away at most, which includes its start and that of routing.
That the old connection is dead would be known only after ten seconds."""


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    directory = tmp_path_factory.mktemp("labs")
    (directory / "parallel.toml").write_text(TOPOLOGY)
    with standing_lab(str(directory / "parallel.toml"), "restarts", directory) as found:
        until(lambda: all(len(found.channels(node)) == 2 for node in "ab"), "both links have a channel")
        yield found


def test_both_links_carry_a_channel(lab: StandingLab) -> None:
    """
    covers: 6.13.4-1, 6.6-9
    """
    for node in "ab":
        found = lab.status(node)["channels"]
        assert sorted(item["port"] for item in found) == ["eth0", "eth1"]
        assert len({item["peer_name"] for item in found}) == 1
        assert len({item["peer"] for item in found}) == 2

    def counters() -> list[int]:
        return [
            item[way]
            for node in "ab"
            for item in lab.status(node)["channels"]
            for way in ("packets_in", "packets_out")
        ]

    before = counters()
    until(
        lambda: all(now > then for now, then in zip(counters(), before, strict=True)),
        "all four move",
        seconds=60,
    )


@pytest.mark.parametrize("killed", ["a", "b"])
def test_a_killed_node_is_back_at_once(lab: StandingLab, killed: str) -> None:
    """Its neighbour recognises it by what it proves, and does not wait for the death of the old channels.

    covers: 6.13.4-1, 6.12-dpd
    """
    other = "b" if killed == "a" else "a"
    address = {node: lab.status(node)["acp0"]["address"] for node in "ab"}
    spis = {item["spi_out"] for item in lab.status(other)["channels"]}
    with Pings(lab.host(other), address[other], address[killed]) as pings:
        until(pings.reaches, "the two reach each other")
        died = time.monotonic()
        kill_and_start(lab, killed)
        until(pings.reaches, f"{killed} is reached again")
        away = time.monotonic() - died
        assert away < AT_ONCE
        until(
            lambda: (
                len(lab.status(other)["channels"]) == 2
                and not spis & {item["spi_out"] for item in lab.status(other)["channels"]}
            ),
            "both links have fresh keys",
            seconds=AT_ONCE - away,
        )
        # What was before is gone for good after a while, and nothing of it is missed.
        until(
            lambda: all(item["connections"] == 1 for item in lab.status(other)["channels"]),
            "one connection on each link",
        )
        pings.forget()
        for _ in range(20):
            pings.send()
            time.sleep(0.05)
        assert pings.lost() == 0
    assert len(lab.channels(other)) == 2
    assert len(lab.channels(killed)) == 2
