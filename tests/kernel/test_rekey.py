"""Keys that live for seconds, also between a kernel and user space: the traffic does not notice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.conftest import link_namespaces, policies, sas
from tests.lab.attacker import Pings, StandingLab, standing_lab, until
from tests.lab.test_rekey import check_bytes

pytestmark = [pytest.mark.root, pytest.mark.kernel]

SECONDS, RATE = 20.0, 10.0
LIFETIME = 4

PLANES = {
    "kernel": {"a": "kernel", "b": "kernel", "c": "kernel"},
    "mixed": {"a": "user", "b": "kernel", "c": "user"},
}


@pytest.fixture(scope="module", params=PLANES)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    directory = tmp_path_factory.mktemp("labs")
    lines = ['links = [["a", "b"], ["b", "c"]]']
    for node, plane in PLANES[request.param].items():
        lines += [f"[nodes.{node}]", f'data_plane = "{plane}"', f"[nodes.{node}.ike]"]
        lines += [f"ike_lifetime = {LIFETIME}", f"child_lifetime = {LIFETIME}"]
    (directory / "chain.toml").write_text("\n".join(lines))
    with standing_lab(str(directory / "chain.toml"), request.param, directory) as found:
        for node, plane in PLANES[request.param].items():
            assert found.status(node)["node"]["data_plane"] == plane
            assert found.status(node)["node"]["data_plane_reason"] == "the configuration says so"
            assert ("data-plane" in found.processes(node)) is (plane == "user")
        yield found


def test_pings_go_on_while_keys_are_replaced(lab: StandingLab) -> None:
    """No ping is lost, the channels are the same, their SAs are others, and old ones do not pile up.

    covers: 6.8-rekey, 6.8.2-3
    """
    channels = {node: lab.channels(node) for node in "abc"}
    address = {node: lab.status(node)["acp0"]["address"] for node in "ac"}
    seen: dict[str, set[str]] = {"a": set(), "b": set()}
    most = 0
    with Pings(lab.host("a"), address["a"], address["c"]) as pings:
        until(pings.reaches, "the far end answers")
        pings.forget()
        started = time.monotonic()
        while time.monotonic() < started + SECONDS:
            pings.send()
            time.sleep(1 / RATE)
            for node, other in ("ab", "ba"):
                channel = lab.channel(node, other)
                seen[node].add(channel["spi_out"])
                most = max(most, len(channel["spis_in"]))
        lost, sent = pings.lost(), pings.sent
    assert sent > SECONDS * RATE / 8
    assert lost == 0, f"{lost} of {sent} pings were lost"
    assert {node: lab.channels(node) for node in "abc"} == channels
    for node, found in seen.items():
        assert len(found) >= 3, f"{node} has not replaced its SAs"
    assert 2 <= most <= 6, "old and new are received on for a moment"


def test_what_the_kernel_has_is_what_status_shows_also_between_two_keys(lab: StandingLab) -> None:
    status = lab.status("b")
    where = {port["name"]: port["namespace"] for port in status["ports"] if port.get("namespace")}

    def agrees() -> bool:
        before = lab.status("b")["channels"]
        found = {port: sas(name) for port, name in where.items()}
        after = lab.status("b")["channels"]
        for old, new in zip(before, after, strict=True):
            if (old["spis_in"], old["spi_out"]) != (new["spis_in"], new["spi_out"]):
                return False  # changed while we looked
            inbound = {sa.spi for sa in found[new["port"]] if sa.destination == new["local"]}
            assert inbound == set(new["spis_in"])
            assert len(found[new["port"]]) == 2 * len(inbound)
        return True

    until(agrees, "nothing changes while we look")
    for name in link_namespaces(status):
        assert len(policies(name)) == 2


def test_counters_go_on_across_keys(lab: StandingLab) -> None:
    """They are those of the channel, not of an SA."""
    for node in "ab":
        before = lab.status(node)["channels"]
        time.sleep(LIFETIME * 1.5)
        after = lab.status(node)["channels"]
        for old, new in zip(before, after, strict=True):
            assert old["spi_out"] != new["spi_out"]
            for name in ("packets_in", "packets_out", "bytes_in", "bytes_out"):
                assert new[name] >= old[name] > 0
            assert new["drops"] == old["drops"] == {}


def test_keys_are_replaced_by_bytes(tmp_path: Path) -> None:
    """
    covers: 6.8-rekey
    """
    check_bytes(tmp_path, "kernel")
