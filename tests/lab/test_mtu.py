"""The MTU of a link is changed while channels are there."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from minerva.esp.packet import inner_mtu
from tests.lab.attacker import ESP, Pings, StandingLab, Wire, run, standing_lab, until

pytestmark = pytest.mark.root

NODES = ("n1", "n2")
IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO = 23, 2


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    with standing_lab("line:2", "mtu", tmp_path_factory.mktemp("labs")) as found:
        yield found


def set_mtu(lab: StandingLab, mtu: int) -> None:
    """Change the MTU of the link, at both ends."""
    for node in NODES:
        run("ip", "-n", lab.host(node).name, "link", "set", "eth0", "mtu", str(mtu))


@pytest.mark.parametrize("mtu", [9000, 1400, 1500])
def test_channels_are_made_for_the_new_one(lab: StandingLab, mtu: int) -> None:
    """And carry packets as large as that, in one frame."""
    set_mtu(lab, mtu)

    def channels() -> list[int]:
        return [item["mtu"] for node in NODES for item in lab.status(node)["channels"]]

    until(lambda: channels() == [inner_mtu(mtu)] * 2, "both have new channels", seconds=40.0)
    source, destination = (lab.status(node)["acp0"]["address"] for node in NODES)
    with Pings(lab.host("n1"), source, destination) as pings:
        until(pings.reaches, "n2 answers", seconds=40.0)
    with lab.inside("n1").entered():  # acp0 has an MTU of its own
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with sock, Wire(lab.host("n2"), "eth0") as wire:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO)
        sock.sendto(bytes(inner_mtu(mtu) - 40 - 8), (destination, 9))
        largest = max(len(packet.data) for packet in wire.heard(0.5) if packet.kind == ESP)
    assert mtu - 40 - 3 <= largest <= mtu - 40


def test_a_link_that_is_too_small_is_a_problem_until_it_is_not(lab: StandingLab) -> None:
    set_mtu(lab, 1300)
    until(lambda: lab.port("n1")["state"] == "failed", "the port cannot be used")
    assert "1300" in lab.port("n1")["problem"]
    assert lab.status("n1")["channels"] == []
    set_mtu(lab, 1500)
    until(lambda: len(lab.status("n1")["channels"]) == 1, "there is a channel again", seconds=60.0)
