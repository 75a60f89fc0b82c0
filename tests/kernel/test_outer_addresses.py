"""Unique local outer addresses by the kernel, to another kernel and to user space; keys live for seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from minerva.ikev2.constants import ENCAPSULATION_PORT
from tests.kernel.conftest import ip, link_namespaces, policies, sas
from tests.lab.attacker import ESP, UDP, Pings, StandingLab, Wire, standing_lab, until

pytestmark = [pytest.mark.root, pytest.mark.kernel]

NODES = {"a": ("kernel", "off"), "b": ("kernel", "accept"), "c": ("user", "force")}
SECONDS, RATE = 12.0, 10.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    """A chain; on its second link ESP is in UDP."""
    directory = tmp_path_factory.mktemp("labs")
    lines = ['links = [["a", "b"], ["b", "c"]]']
    for node, (plane, in_udp) in NODES.items():
        lines += [f"[nodes.{node}]", f'data_plane = "{plane}"', 'outer_addresses = "ula"']
        lines += [f"[nodes.{node}.ike]", "child_lifetime = 4", f'udp_encapsulation = "{in_udp}"']
    (directory / "chain.toml").write_text("\n".join(lines))
    with standing_lab(str(directory / "chain.toml"), "ula", directory) as found:
        yield found


def test_pings_go_on_while_keys_are_replaced(lab: StandingLab) -> None:
    """Between unique local addresses on both links."""
    near_b, far_b = (lab.port("b", name)["ula"] for name in ("eth0", "eth1"))
    links = {"ab": {lab.port("a")["ula"], near_b}, "bc": {far_b, lab.port("c")["ula"]}}
    for (one, other), pair in links.items():
        until(
            lambda o=one, p=other, e=pair: {lab.channel(o, p)["local"], lab.channel(o, p)["peer"]} == e,
            "the channel has the right ends",
        )
    address = {node: lab.status(node)["acp0"]["address"] for node in "ac"}
    seen = {link: set[str]() for link in links}
    with (
        Pings(lab.host("a"), address["a"], address["c"]) as pings,
        Wire(lab.host("a"), "eth0") as near,
        Wire(lab.host("c"), "eth0") as far,
    ):
        until(pings.reaches, "the far end answers")
        for item in (pings, near, far):
            item.forget()
        started = time.monotonic()
        while time.monotonic() < started + SECONDS:
            pings.send()
            time.sleep(1 / RATE)
            for one, other in links:
                seen[one + other].add(lab.channel(one, other)["spi_out"])
        lost, sent = pings.lost(), pings.sent
        plain = [packet for packet in near.heard(0.0) if packet.kind == ESP]
        in_udp = [
            packet for packet in far.heard(0.0) if packet.kind == UDP and ENCAPSULATION_PORT in packet.ports
        ]
    for link, packets in (("ab", plain), ("bc", in_udp)):
        assert len(packets) >= 2 * SECONDS
        assert {str(packet.source) for packet in packets} == links[link]
        assert {str(packet.destination) for packet in packets} == links[link]
    assert sent > SECONDS * RATE / 8
    assert lost == 0, f"{lost} of {sent} pings were lost"
    assert all(len(found) >= 3 for found in seen.values())


def test_the_kernel_has_these_addresses(lab: StandingLab) -> None:
    """In all SAs and policies, and one route, through the neighbour's link-local address."""
    a, b = lab.port("a"), lab.port("b")
    [where] = link_namespaces(lab.status("a"))
    pair = {a["ula"], b["ula"]}
    found = sas(where)
    assert len(found) >= 2
    assert all({sa.source, sa.destination} == pair for sa in found)
    shown = policies(where)
    assert len(shown) == 2
    for one, other in ((a, b), (b, a)):
        assert sum(f" tmpl src {one['ula']} dst {other['ula']} proto esp " in policy for policy in shown) == 1
    routes = [line.split() for line in ip(where, "-6", "route").splitlines() if " via " in line]
    assert [line[:5] for line in routes] == [[b["ula"], "via", b["link_local"], "dev", "port0"]]
