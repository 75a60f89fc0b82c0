"""Keys that live for seconds: they are replaced all the time, and the traffic does not notice."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.attacker import Pings, StandingLab, standing_lab, until

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
    assert sent > SECONDS * RATE / 8
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


CHILD_BYTES = 1 << 20

BY_BYTES = f"""
links = [["a", "b"]]
[nodes.a]
data_plane = "PLANE"
[nodes.a.ike]
child_bytes = {CHILD_BYTES}
"""


def check_bytes(directory: Path, plane: str) -> None:
    """What one end has sent is enough; its peer has the default. Nothing is lost, and quiet keys stay."""
    (directory / "bytes.toml").write_text(BY_BYTES.replace("PLANE", plane))
    with standing_lab(str(directory / "bytes.toml"), "bytes", directory) as lab:
        until(lambda: len(lab.channels("a")) == len(lab.channels("b")) == 1, "there is a channel")
        address = {node: lab.status(node)["acp0"]["address"] for node in "ab"}
        with lab.host("b").entered():
            receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        with lab.host("a").entered():
            sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        with receiver, sender:
            receiver.bind((address["b"], 0))
            sender.bind((address["a"], 0))
            sender.connect(receiver.getsockname()[:2])
            receiver.setblocking(False)
            first = last = lab.channel("a", "b")
            for _ in range(3):
                spi, until_bytes = last["spi_out"], last["bytes_out"] + CHILD_BYTES
                while lab.channel("a", "b")["bytes_out"] < until_bytes + 100_000:
                    for _ in range(20):
                        sender.send(bytes(1000))
                    for _ in range(20):
                        until(lambda: _received(receiver), "it arrives")
                last = until(lambda spi=spi: _with_other(lab, spi), "the keys are replaced")
            time.sleep(2.5)
            assert lab.channel("a", "b")["spi_out"] == last["spi_out"], "nobody has sent much"
        assert last["channel"] == first["channel"]
        begun = {
            node: lab.status(node)["counters"]["abutment"]["eth0"]["ike"].get("child SA: rekeying begun", 0)
            for node in "ab"
        }
        assert begun == {"a": 3, "b": 0}


def test_keys_are_replaced_by_bytes(tmp_path: Path) -> None:
    """
    covers: 6.8-rekey
    """
    check_bytes(tmp_path, "user")


def _received(receiver: socket.socket) -> bytes | None:
    try:
        return receiver.recv(2000)
    except BlockingIOError:
        return None


def _with_other(lab: StandingLab, spi: str) -> dict[str, Any] | None:
    channel = lab.channel("a", "b")
    return channel if channel["spi_out"] not in (spi, None) else None
