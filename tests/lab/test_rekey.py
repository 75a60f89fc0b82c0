"""Keys that live for seconds: they are replaced all the time, and the traffic does not notice."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.lab.attacker import Pings, StandingLab, standing_lab

pytestmark = pytest.mark.root

SECONDS, RATE = 15.0, 10.0

TOPOLOGY = """
links = [["a", "b"]]

[nodes.a.ike]
ike_lifetime = 3
child_lifetime = 3

[nodes.b.ike]
ike_lifetime = 3
child_lifetime = 3
"""


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    directory = tmp_path_factory.mktemp("labs")
    (directory / "rekey.toml").write_text(TOPOLOGY)
    with standing_lab(str(directory / "rekey.toml"), "rekey", directory) as found:
        yield found


def test_pings_go_on_while_keys_are_replaced(lab: StandingLab) -> None:
    """No ping is lost, the channel is the same, its SAs are others.

    covers: 6.8-rekey, 6.8.2-3
    """
    channels = {node: lab.channels(node) for node in "ab"}
    address = {node: lab.status(node)["acp0"]["address"] for node in "ab"}
    seen: dict[str, set[str]] = {"a": set(), "b": set()}
    most, longest, answered = 0, 0.0, time.monotonic()
    with Pings(lab.host("a"), address["a"], address["b"]) as pings:
        started = time.monotonic()
        while time.monotonic() < started + SECONDS:
            before = pings.answered
            pings.send()
            time.sleep(1 / RATE)
            now = time.monotonic()
            if pings.answered > before:
                longest, answered = max(longest, now - answered), now
            for node, other in ("ab", "ba"):
                channel = lab.channel(node, other)
                seen[node].add(channel["spi_out"])
                most = max(most, len(channel["spis_in"]))
        lost = pings.lost()
        sent = pings.sent
    assert sent > SECONDS * RATE / 2
    assert longest < 1.0
    assert lost == 0, f"{lost} of {sent} pings were lost"
    assert {node: lab.channels(node) for node in "ab"} == channels
    for node in "ab":
        assert len(seen[node]) >= 4, "the SAs have not been replaced"
    assert 2 <= most <= 6, "old and new are received on for a moment"
    begun = [
        lab.status(node)["counters"]["abutment"]["eth0"]["ike"].get(f"{what} SA: rekeying begun", 0)
        for what in ("IKE", "child")
        for node in "ab"
    ]
    assert sum(begun[:2]) >= 3, "the IKE SA has not been replaced"
    assert sum(begun[2:]) >= 3
