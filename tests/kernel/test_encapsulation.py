"""ESP in UDP by the kernel, to another kernel and to user space, while keys live for seconds."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from minerva.ikev2.constants import ENCAPSULATION_PORT, IKE_PORT
from tests.kernel.conftest import link_namespaces, sas
from tests.lab.attacker import ESP, UDP, Pings, StandingLab, Wire, standing_lab, until

pytestmark = [pytest.mark.root, pytest.mark.kernel]

PLANES = {"a": "kernel", "b": "kernel", "c": "user"}
SECONDS, RATE = 12.0, 10.0
PACKETS = 200


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    directory = tmp_path_factory.mktemp("labs")
    lines = ['links = [["a", "b"], ["b", "c"]]']
    for node, plane in PLANES.items():
        lines += [f"[nodes.{node}]", f'data_plane = "{plane}"', f"[nodes.{node}.ike]"]
        lines += ["ike_lifetime = 4", "child_lifetime = 4", 'udp_encapsulation = "force"']
    (directory / "chain.toml").write_text("\n".join(lines))
    with standing_lab(str(directory / "chain.toml"), "udp", directory) as found:
        yield found


def test_pings_go_on_while_keys_are_replaced(lab: StandingLab) -> None:
    """In UDP on both links, as large as a channel carries; the channels stay, their SAs do not."""
    channels = {node: lab.channels(node) for node in PLANES}
    address = {node: lab.status(node)["acp0"]["address"] for node in "ac"}
    seen = {node: set[str]() for node in "ab"}
    with (
        Pings(lab.host("a"), address["a"], address["c"]) as pings,
        Wire(lab.host("a"), "eth0") as near,
        Wire(lab.host("c"), "eth0") as far,
    ):
        until(pings.reaches, "the far end answers")
        pings.forget()
        started = time.monotonic()
        while time.monotonic() < started + SECONDS:
            pings.send()
            time.sleep(1 / RATE)
            for node, other in ("ab", "bc"):
                seen[node].add(lab.channel(node, other)["spi_out"])
        lost, sent = pings.lost(), pings.sent
        for wire in (near, far):
            heard = wire.heard(0.0)
            assert not [str(packet) for packet in heard if packet.kind == ESP]
            ports = {packet.ports for packet in heard if packet.kind == UDP}
            assert (ENCAPSULATION_PORT, ENCAPSULATION_PORT) in ports
            assert not [pair for pair in ports if IKE_PORT in pair], "the handshakes were before"
    assert sent > SECONDS * RATE / 8
    assert lost == 0, f"{lost} of {sent} pings were lost"
    assert {node: lab.channels(node) for node in PLANES} == channels
    assert all(len(found) >= 3 for found in seen.values())


def test_what_user_space_sends_at_once_the_kernel_takes_one_by_one(lab: StandingLab) -> None:
    """A burst of equal packets from c, which it sends together, is counted by b's kernel in full."""
    address = lab.status("a")["acp0"]["address"]
    with lab.host("c").entered():
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    before = lab.channel("b", "c")["packets_in"]
    with sock, Wire(lab.host("c"), "eth0") as wire:
        sock.connect((address, 9))
        # Meanwhile the data plane must not send them as they come.
        pid = lab.processes("c")["data-plane"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        for _ in range(PACKETS):
            sock.send(bytes(1000))
        os.kill(pid, signal.SIGCONT)
        longest = max(len(packet.data) for packet in wire.heard(1.0) if packet.kind == UDP)
    assert longest > 2000, "none were sent together"
    until(lambda: lab.channel("b", "c")["packets_in"] - before >= PACKETS, "all have arrived")
    assert lab.channel("b", "c")["drops"] == {}


def test_what_the_kernel_has(lab: StandingLab) -> None:
    for node in "ab":
        status = lab.status(node)
        assert {channel["udp_encapsulation"] for channel in status["channels"]} == {True}
        assert {channel["mtu"] for channel in status["channels"]} == {1418}
        for name in link_namespaces(status):
            found = sas(name)
            assert found
            assert all("type espinudp sport 4500 dport 4500" in sa.text for sa in found)
