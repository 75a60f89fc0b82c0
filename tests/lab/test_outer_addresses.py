"""Unique local outer addresses: between nodes that have them, beside one that has not, and with strangers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from minerva.adjacency.outer import MAX_ROUTES, Refusal
from minerva.core.errors import UsageError
from minerva.grasp.announcement import AN_ACP_IKEV2
from minerva.grasp.constants import ALL_GRASP_NEIGHBORS, GRASP_LISTEN_PORT
from minerva.grasp.messages import Flood
from minerva.ikev2.constants import IKE_PORT
from minerva.linux.nftables import Nftables
from minerva.pki.ca import CertificateAuthority
from minerva.pki.identity import Identity
from tests.lab import tshark
from tests.lab.attacker import (
    ESP,
    Peer,
    Pings,
    StandingLab,
    Wire,
    counter,
    echo_request,
    ipv6,
    run,
    soon,
    standing_lab,
    udp,
    until,
)
from tests.lab.conftest import lab_run
from tests.lab.tshark import Witness

pytestmark = pytest.mark.root

TOPOLOGY = """
lans = [["a", "b"]]
links = [["b", "c"]]

[nodes.a]
outer_addresses = "ula"

[nodes.b]
outer_addresses = "ula"
"""

LAN_PORTS = {"a": "eth0", "b": "eth1"}
GRASP_MAC = "33:33:00:00:00:13"
LENGTH_OF_ULA_FLOOD = 78  # of the IPv6 payload, in bytes; that of the other flood is 55
PAIRS = [(one, other) for one in "abc" for other in "abc" if one != other]


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


@dataclass
class Scene:
    """A chain of three: two with unique local addresses on a LAN, and the third with none on a link."""

    lab: StandingLab
    wire: Wire  # a stranger on the LAN

    def announce(self, source: IPv6Address, ula: IPv6Address, *, ttl: int = 210_000) -> None:
        """Have a stranger at ``source`` announce ``ula`` on the LAN."""
        entry = replace(AN_ACP_IKEV2, address=ula).to_entry(source)
        flood = Flood(int.from_bytes(os.urandom(4)), source, ttl, (entry,)).encode()
        ports = (GRASP_LISTEN_PORT, GRASP_LISTEN_PORT)
        self.wire.send(GRASP_MAC, udp(source, ALL_GRASP_NEIGHBORS, ports, flood))

    def on_lan(self, node: str) -> dict[str, Any]:
        """The status of a node's port on the LAN."""
        return self.lab.port(node, LAN_PORTS[node])

    def routes(self, node: str, port: str = "") -> dict[str, str]:
        """The host routes of a link namespace: where to, and through whom."""
        lines = run(
            "ip", "-n", self.lab.port(node, port or LAN_PORTS[node])["namespace"], "-6", "route"
        ).splitlines()
        words = [line.split() for line in lines if " via " in line]
        assert all(line[3:5] == ["dev", "port0"] for line in words)
        return {line[0]: line[2] for line in words}

    def refused(self, node: str, reason: Refusal) -> int:
        counters = self.lab.status(node)["counters"]["abutment"][LAN_PORTS[node]]["outer"]
        return int(counters.get(reason, 0))

    def all_reach(self) -> bool:
        acp0 = {node: self.lab.status(node).get("acp0") for node in "abc"}
        if any(item is None or item["problem"] for item in acp0.values()):
            return False
        for one, other in PAIRS:
            with Pings(self.lab.host(one), acp0[one]["address"], acp0[other]["address"]) as pings:
                if not pings.reaches():
                    return False
        return True

    def between(self, one: str, other: str) -> list[tuple[str, str]]:
        """The outer addresses of the channels from one node to another."""
        name = self.lab.status(other)["node"]["name"]
        channels = self.lab.status(one)["channels"]
        return [(item["local"], item["peer"]) for item in channels if item["peer_name"] == name]

    def is_ula_alone(self) -> bool:
        """Whether the only channel of ``a`` with ``b`` is between their unique local addresses."""
        a, b = (self.on_lan(node)["ula"] for node in "ab")
        return self.between("a", "b") == [(a, b)] and self.between("b", "a") == [(b, a)]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("labs")
    (directory / "outer.toml").write_text(TOPOLOGY)
    with standing_lab(str(directory / "outer.toml"), "outer", directory) as lab:
        made = Scene(lab, lab.attacker("stranger", "lan1", "x0", bridge=True))
        until(made.all_reach, "all reach each other")
        yield made


def test_channels_are_between_unique_local_addresses(scene: Scene) -> None:
    """Where both ends have such; each has the other's alone in its routes, through its link-local address."""
    lab = scene.lab
    until(scene.is_ula_alone, "there is one channel")
    for one, other in ("ab", "ba"):
        status, port = lab.status(one), scene.on_lan(one)
        theirs = scene.on_lan(other)
        assert status["node"]["outer_addresses"] == "ula"
        assert IPv6Address(port["ula"]).packed[8:] == IPv6Address(port["link_local"]).packed[8:]
        assert scene.routes(one) == {theirs["ula"]: theirs["link_local"]}
        [row] = [row for row in status["neighbours"] if row["port"] == LAN_PORTS[one]]
        assert (row["address"], row["link_local"], row["state"]) == (
            theirs["ula"],
            theirs["link_local"],
            "connected",
        )
    ports = [IPv6Address(port["ula"]) for port in lab.status("b")["ports"] if port.get("ula")]
    assert len({address.packed[:6] for address in ports}) == 1, "one /48 of the node"
    assert len({address.packed[:8] for address in ports}) == len(ports) == 2, "a /64 for each port"


def test_a_node_without_the_setting_is_met_by_link_local_addresses(scene: Scene) -> None:
    """It drops one flood and believes the other, as the RFC has it."""
    lab = scene.lab
    b, c = lab.port("b")["link_local"], lab.port("c")["link_local"]
    assert scene.between("b", "c") == [(b, c)]
    assert scene.between("c", "b") == [(c, b)]
    assert scene.routes("b", "eth0") == scene.routes("c", "eth0") == {}
    assert lab.port("c")["ula"] is None
    assert lab.status("c")["node"]["outer_addresses"] == "link-local"
    dropped = lab.status("c")["counters"]["abutment"]["eth0"]["dull"]
    assert dropped["bad-locator"] > 0
    assert dropped["accepted"] > 0
    [row] = lab.status("c")["neighbours"]
    assert row["heard_seconds_ago"] is not None


def test_what_is_on_the_wire(tmp_path: Path) -> None:
    """A whole life of the chain, as tshark sees it: IKE and ESP between the addresses that are said."""
    if not tshark.present():
        pytest.skip("needs tshark")
    (tmp_path / "outer.toml").write_text(TOPOLOGY)
    found = lab_run(tmp_path / "outer.toml", "--pcap", tmp_path / "pcap")
    assert (found["exit_code"], found["error"], found["channels"]) == (0, None, 2)
    channel = "(udp.port == 500 || esp)"
    lan, link = (Witness(tmp_path / "pcap" / name, tmp_path) for name in ("lan1.pcap", "b-c.pcap"))
    outer = "(ipv6.src == fc00::/7 && ipv6.dst == fc00::/7)"
    lan.none(f"{channel} && !{outer}", "icmpv6 && ipv6.addr == fc00::/7")
    link.none(f"{channel} && !(ipv6.src == fe80::/10 && ipv6.dst == fe80::/10)", "ipv6.addr == fc00::/7")
    for witness in (lan, link):
        for what in ("udp.port == 500", "esp"):
            frames = witness.frames(what, "ipv6.src", "ipv6.dst")
            ends = {(frame["ipv6.src"][0], frame["ipv6.dst"][0]) for frame in frames}
            assert len(ends) == 2
            assert {one[::-1] for one in ends} == ends, "one pair of addresses, both ways"


def test_new_devices_come_in_through_such_a_node(tmp_path: Path) -> None:
    """A pledge follows the RFC whatever its configuration says, and hears what is for it."""
    (tmp_path / "outer.toml").write_text(TOPOLOGY)
    found = lab_run(tmp_path / "outer.toml", "--zero-touch")
    assert (found["exit_code"], found["error"], found["pairs_reachable"]) == (0, None, 6)


def test_a_stranger_does_not_get_the_address_of_a_neighbour(scene: Scene) -> None:
    """Nor one of our own, nor any that is not unique local."""
    lab, wire = scene.lab, scene.wire
    before, channels = scene.routes("a"), lab.channels("a")
    forged = {
        Refusal.TAKEN: scene.on_lan("b")["ula"],
        Refusal.OURS: str(IPv6Address(scene.on_lan("a")["ula"]) + 1),
    }
    for reason, address in forged.items():
        counted = scene.refused("a", reason)
        scene.announce(wire.address, IPv6Address(address), ttl=2000)
        until(lambda r=reason, c=counted: scene.refused("a", r) > c, f"{reason} is counted")
    dropped = lab.status("a")["counters"]["abutment"]["eth0"]["dull"].get("bad-locator", 0)
    scene.announce(wire.address, IPv6Address("2001:db8::1"), ttl=2000)
    until(
        lambda: lab.status("a")["counters"]["abutment"]["eth0"]["dull"].get("bad-locator", 0) > dropped,
        "it is dropped",
    )
    assert scene.routes("a") == before
    assert lab.channels("a") == channels
    assert scene.all_reach()


def test_the_route_to_a_stranger_comes_and_goes_with_its_announcement(scene: Scene) -> None:
    """And so does what the firewall lets in; at no time does anything but IKE and ESP get an answer."""
    lab, wire = scene.lab, scene.wire
    ula, mac = IPv6Address(scene.on_lan("a")["ula"]), scene.on_lan("a")["mac"]
    ours = IPv6Address("fd5a::66")
    attempt = udp(ours, ula, (IKE_PORT, IKE_PORT), os.urandom(8) + bytes(8) + b"\x21\x20\x22\x08" + bytes(8))
    link = lab.link("a")

    def passes(packet: bytes) -> bool:
        before = counter(link, "refused_in")
        wire.send(mac, packet)
        time.sleep(0.2)
        return counter(link, "refused_in") == before

    assert not passes(attempt), "a stranger who announces nothing"
    scene.announce(wire.address, ours, ttl=4000)
    until(lambda: scene.routes("a").get(str(ours)) == str(wire.address), "there is a route")
    assert passes(attempt)
    assert passes(ipv6(ours, ula, ESP, os.urandom(64)))
    for packet in (
        echo_request(ours, ula),
        udp(ours, ula, (IKE_PORT, 501), b"x"),
        udp(ours, IPv6Address(scene.on_lan("a")["link_local"]), (IKE_PORT, IKE_PORT), b"x"),
        udp(wire.address, ula, (IKE_PORT, IKE_PORT), b"x"),
        udp(IPv6Address("fd5a::67"), ula, (IKE_PORT, IKE_PORT), b"x"),
        ipv6(IPv6Address("fd5a::67"), ula, ESP, os.urandom(64)),
    ):
        assert not passes(packet)
    until(lambda: str(ours) not in scene.routes("a"), "the route is gone", seconds=10)
    assert not passes(attempt)
    assert scene.is_ula_alone()


def test_invented_neighbours_are_bounded_and_displace_nobody(scene: Scene) -> None:
    lab = scene.lab
    channels, route = lab.channels("a"), {scene.on_lan("b")["ula"]: scene.on_lan("b")["link_local"]}
    for number in range(300):
        scene.announce(IPv6Address(f"fe80::666:{number:x}"), IPv6Address(f"fd66::{number:x}"), ttl=6000)
    until(
        lambda: scene.refused("a", Refusal.FULL) + scene.refused("a", Refusal.TOO_FAST) >= 200, "it is full"
    )
    found = scene.routes("a")
    assert route.items() <= found.items()
    assert 1 < len(found) <= MAX_ROUTES
    assert scene.all_reach()
    until(lambda: scene.routes("a") == route, "they are forgotten", seconds=30)
    assert lab.channels("a") == channels


def test_a_peer_that_has_no_link_local_channels(scene: Scene) -> None:
    """It announces its unique local address and nothing else; what it is for."""

    async def check() -> None:
        lab = scene.lab
        wire = lab.attacker("old", "lan1", "x1", bridge=True)
        ula, theirs = IPv6Address("fd7e:57::1"), scene.on_lan("a")
        where = wire.where.name
        run("ip", "-n", where, "address", "add", f"{ula}/128", "dev", "lo")
        route = ["route", "add", theirs["ula"], "via", theirs["link_local"], "dev", "wire0", "src", str(ula)]
        run("ip", "-n", where, *route)
        issued = CertificateAuthority.open(lab.directory / "ca").issue()
        assert issued.address is not None
        assert issued.private_key is not None
        identity = Identity(
            issued.certificate, issued.chain, issued.anchors, issued.node_name, issued.address
        )
        peer = Peer(wire, identity, issued.private_key, ula=ula)
        peer.start()
        try:
            await soon(lambda: peer.established, "there is a channel")
            channels = {item["peer"]: item["local"] for item in lab.status("a")["channels"]}
            assert channels[str(ula)] == theirs["ula"]
            assert {str(event.address) for event in peer.established} <= {
                theirs["ula"],
                scene.on_lan("b")["ula"],
            }
        finally:
            peer.close()

    asyncio.run(check())
    until(scene.is_ula_alone, "all is as before", seconds=30)


def test_a_channel_between_link_local_addresses_is_replaced(scene: Scene) -> None:
    """Where one end has not heard the other's unique local address at first."""
    lab = scene.lab
    a, b = (scene.on_lan(node)["link_local"] for node in "ab")
    host = lab.host("a").name
    lost = f"udp dport {GRASP_LISTEN_PORT} ip6 length {LENGTH_OF_ULA_FLOOD} counter drop"
    chains = (
        f"chain {port} {{\ntype filter hook ingress device {port} priority 0;\n{lost}\n}}\n"
        for port in ("p0", "p1")
    )
    with lab.host("_lan1").entered():
        nftables = Nftables()
    with nftables:
        nftables.run(f"table netdev lossy {{\n{''.join(chains)}}}")
        try:
            run("ip", "-n", host, "link", "set", "eth0", "down")
            until(lambda: lab.channels("a") == {}, "the channel is gone")
            run("ip", "-n", host, "link", "set", "eth0", "up")
            until(lambda: scene.between("a", "b") == [(a, b)], "there is one that the RFC knows", seconds=30)
            # The other end still holds the dead one between the others, which is in nobody's place.
            time.sleep(3.0)
            assert scene.between("a", "b") == [(a, b)]
            assert "packets 0 " not in nftables.run("list chain netdev lossy p1"), "some were lost"
        finally:
            nftables.run("delete table netdev lossy")
    addresses = [lab.status(node)["acp0"]["address"] for node in "ab"]
    until(scene.all_reach, "all reach each other", seconds=30)
    with Pings(lab.host("a"), *addresses) as pings:
        until(lambda: pings.reaches() and scene.is_ula_alone(), "it is replaced", seconds=90)
        assert pings.lost() <= 3, "the new one is used before the old one ends"


def test_after_the_abutment_and_after_the_link(scene: Scene) -> None:
    """Whatever ends: routes of before are gone or the same, and the channel comes back."""
    lab = scene.lab
    expected = {scene.on_lan("b")["ula"]: scene.on_lan("b")["link_local"]}
    before = lab.channels("a")
    os.kill(lab.processes("a")["abutment"]["pid"], signal.SIGKILL)
    until(lambda: not set(before) & set(lab.channels("a")), "its channels are closed")
    until(lambda: scene.is_ula_alone() and scene.all_reach(), "there is a new channel", seconds=60)
    assert scene.routes("a") == expected
    host = lab.host("a").name
    run("ip", "-n", host, "link", "set", "eth0", "down")
    until(lambda: lab.channels("a") == {} and scene.routes("a") == {}, "all of the port is gone")
    run("ip", "-n", host, "link", "set", "eth0", "up")
    until(lambda: scene.is_ula_alone() and scene.all_reach(), "there is a new channel", seconds=60)
    assert scene.routes("a") == expected


def test_the_option_outweighs_the_configuration(scene: Scene) -> None:
    """A node that is started anew with it has other channels from then on."""
    lab = scene.lab
    supervisor = lab.processes("c")["supervisor"]["pid"]
    command = Path(f"/proc/{supervisor}/cmdline").read_text().split("\0")[:-1]
    os.kill(supervisor, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{supervisor}").exists(), "it has ended")
    with lab.host("c").entered():
        command += ["--outer-addresses", "ula"]
        subprocess.run(["setsid", "--fork", *command], stderr=subprocess.DEVNULL, check=True)

    def is_replaced() -> bool:
        with suppress(UsageError):
            ends = (lab.port("b")["ula"], lab.port("c")["ula"])
            return scene.between("b", "c") == [ends] and scene.between("c", "b") == [ends[::-1]]
        return False

    until(is_replaced, "the channel is between unique local addresses", seconds=60)
    until(scene.all_reach, "all reach each other", seconds=60)
