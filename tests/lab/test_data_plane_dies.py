"""The data plane is killed in mid-flow: no key meets a nonce again that it has met before."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv6Address

import pytest

from minerva.ikev2.constants import ENCAPSULATION_PORT
from minerva.ikev2.encapsulation import NON_ESP_MARKER
from tests.lab.attacker import ESP, UDP, Packet, Pings, StandingLab, Wire, standing_lab, until

pytestmark = pytest.mark.root

KILLS = 3
AT_ONCE = 5.0
"""How long, in seconds, until packets pass again: it takes a process, interfaces, keys and routing."""

MIN_PACKETS = 200
"""How many packets each of the outbound SAs carries at least until it is killed."""


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


@pytest.fixture(scope="module", params=["off", "force"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    """Two nodes, and again with ESP in UDP."""
    directory = tmp_path_factory.mktemp("labs")
    lines = ['links = [["n1", "n2"]]']
    for node in ("n1", "n2"):
        lines += [f"[nodes.{node}.ike]", f'udp_encapsulation = "{request.param}"']
    (directory / "pair.toml").write_text("\n".join(lines))
    with standing_lab(str(directory / "pair.toml"), f"dies-{request.param}", directory) as found:
        assert found.channel("n1", "n2")["udp_encapsulation"] is (request.param == "force")
        yield found


def esp_in(packet: Packet) -> bytes | None:
    """Return the packet of ESP, if it is one, also in UDP."""
    if packet.kind == ESP:
        return packet.data
    in_udp = packet.kind == UDP and packet.ports == (ENCAPSULATION_PORT, ENCAPSULATION_PORT)
    return packet.data[8:] if in_udp and not packet.data[8:].startswith(NON_ESP_MARKER) else None


def test_no_nonce_comes_twice(lab: StandingLab) -> None:
    """The sequence numbers of what was killed are lost, so what comes after sends with fresh keys only.

    SPI and IV stand in every packet. An SPI is that of one key: while that lives, nobody gives it another.

    covers: 6.8-rekey
    """
    address = {node: lab.status(node)["acp0"]["address"] for node in ("n1", "n2")}
    ours = lab.port("n1")["link_local"]
    heard: list[tuple[IPv6Address, bytes]] = []
    with (
        Wire(lab.host("n1"), "eth0") as wire,
        Pings(lab.host("n1"), address["n1"], address["n2"]) as pings,
    ):

        def flow(seconds: float) -> None:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                with suppress(OSError):  # there is no route while there is no channel
                    pings.send()
                time.sleep(0.001)
            packets = wire.heard(0.0)
            heard.extend((packet.source, esp) for packet in packets if (esp := esp_in(packet)) is not None)

        until(pings.reaches, "the two reach each other")
        age = lab.channel("n1", "n2")["seconds"]
        for node in (["n1", "n2"] * KILLS)[:KILLS]:
            flow(1.0)
            os.kill(lab.processes(node)["data-plane"]["pid"], signal.SIGKILL)
            flow(0.2)
            until(pings.reaches, f"{node} goes on with another data plane", seconds=AT_ONCE)
        flow(1.0)
        assert lab.channel("n1", "n2")["seconds"] > age, "IKE has not noticed"
    for sent in (True, False):
        packets = [esp for source, esp in heard if (str(source) == ours) is sent]
        nonces = Counter((data[:4], data[8:16]) for data in packets)
        numbers = Counter((data[:4], data[4:8]) for data in packets)
        assert set(nonces.values()) == set(numbers.values()) == {1}
        spis = Counter(data[:4] for data in packets)
        assert sum(count >= MIN_PACKETS for count in spis.values()) > KILLS, spis
