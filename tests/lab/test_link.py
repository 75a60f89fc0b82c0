"""What a stranger on the link finds of a node: discovery, IKE, and silence."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address

import pytest

from minerva.grasp.constants import ALL_GRASP_NEIGHBORS
from minerva.ikev2.constants import IKE_PORT, ExchangeType
from minerva.ikev2.endpoint import Endpoint
from minerva.ikev2.message import Header
from minerva.linux import namespace
from minerva.linux.firewall import (
    ATTEMPT_BURST,
    ATTEMPTS_PER_SECOND,
    SOLICITATION_BURST,
    SOLICITATIONS_PER_SECOND,
)
from minerva.pki.identity import load_identity
from tests.lab import attacker as tools
from tests.lab.attacker import Packet, Pings, StandingLab, Wire, counter, neighbours, run, standing_lab, until

pytestmark = pytest.mark.root

PORTS = (
    *(7, 9, 13, 19, 21, 22, 23, 25, 53, 67, 68, 69, 80, 88, 111, 123, 135, 137, 139, 143, 161, 162, 179, 389),
    *(443, 445, 500, 514, 520, 521, 546, 547, 623, 631, 636, 830, 853, 993, 1900, 2049, 3000, 3784, 4500),
    *(4712, 5353, 5355, 5683, 7017, 8080, 9100, 49_152),
)
UNUSED_PROTOCOLS = (4, 41, 47, 51, 89, 103, 112, 115, 132, 253)
NODES_MULTICAST = (IPv6Address("ff02::1"), "33:33:00:00:00:01")

DISCOVERY = {tools.NEIGHBOUR_SOLICITATION, tools.NEIGHBOUR_ADVERTISEMENT, 131, 132, 143}
"""The ICMPv6 types that a node may send: neighbour discovery and MLD reports."""

FLOOD = 100_000

INVENTED = 5000


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


@dataclass
class Scene:
    """A LAN of three nodes with a stranger on it, and a machine without Minerva to compare with."""

    lab: StandingLab
    stranger: Wire
    plain: Wire
    mac: str
    address: IPv6Address

    def scan(self, mac: str, address: IPv6Address) -> list[Packet]:
        """Try everything on a station; return what it sends meanwhile, to whomever."""
        self.stranger.forget()
        for packet in probes(self.stranger.address, address):
            self.stranger.send(mac, packet)
        group, group_mac = NODES_MULTICAST
        self.stranger.send(group_mac, tools.echo_request(self.stranger.address, group))
        return [packet for packet in self.stranger.heard(1.0) if packet.mac == mac]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The scene; n1 is attacked."""
    with standing_lab("lan:3", "link", tmp_path_factory.mktemp("labs")) as lab:
        port = lab.port("n1")
        stranger = lab.attacker("stranger", "lan1", "p8", bridge=True)
        plain = lab.attacker("plain", "lan1", "p9", bridge=True)
        with plain.where.entered():
            # Without its limit on errors, or those that the scan gets last are missing.
            namespace.write_sysctls({"ipv6/icmp/ratelimit": 0, "ipv6/icmp/ratemask": 2})
        yield Scene(lab, stranger, plain, port["mac"], IPv6Address(port["link_local"]))


def probes(source: IPv6Address, target: IPv6Address) -> Iterator[bytes]:
    """Yield packets, most of which an ordinary machine answers."""
    yield tools.echo_request(source, target)
    for port in PORTS:
        yield tools.udp(source, target, (40_099, port), b"who is there?")
        yield tools.tcp_syn(source, target, (40_099, port))
    for protocol in UNUSED_PROTOCOLS:
        yield tools.ipv6(source, target, protocol, bytes(16))
    # Options that must be complained about, even to multicast; a segment list; a fragment of a fragment.
    unknown_option = bytes((tools.UDP, 0, 0x80 | 0x3E, 4, 0, 0, 0, 0))
    for header in (tools.HOP_BY_HOP, tools.DESTINATION_OPTIONS):
        yield tools.ipv6(source, target, header, unknown_option + bytes(8))
        yield tools.ipv6(source, ALL_GRASP_NEIGHBORS, header, unknown_option + bytes(8))
    yield tools.ipv6(
        source, target, 43, struct.pack("!BBBB4x", tools.UDP, 2, 0, 1) + target.packed + bytes(8)
    )
    yield from tools.fragments(tools.echo_request(source, target), 1)
    yield from tools.fragments(tools.udp(source, target, (40_099, 9), b"who is there?"), 2)
    yield from tools.fragments(tools.tcp_syn(source, target, (40_099, 22)), 3)
    yield next(tools.fragments(tools.udp(source, target, (40_099, 9), b"who is there?"), 4))
    yield tools.icmpv6(source, target, 133, bytes(4), 255)  # router solicitation
    yield tools.icmpv6(source, target, 139, bytes(12))  # node information query


def test_a_scan_finds_nothing(scene: Scene) -> None:
    """The same scan of a machine without Minerva shows that it would have found something.

    covers: 6.4-3
    """
    found = scene.scan(scene.plain.mac, scene.plain.address)
    assert {packet.icmp_type for packet in found if packet.kind == tools.ICMPV6} >= {
        tools.ECHO_REPLY,
        tools.UNREACHABLE,
        tools.PARAMETER_PROBLEM,
    }
    assert any(packet.tcp_flags & tools.RST for packet in found if packet.kind == tools.TCP)

    refused = counter(scene.lab.link("n1"), "refused_in")
    for packet in scene.scan(scene.mac, scene.address):
        discovers = packet.icmp_type in DISCOVERY
        announces = packet.kind == tools.UDP and packet.destination == ALL_GRASP_NEIGHBORS
        assert discovers or announces, f"the node answers a scan with {packet}"
    assert counter(scene.lab.link("n1"), "refused_in") >= refused + 2 * len(PORTS)


def test_what_is_meant_to_answer_does(scene: Scene) -> None:
    """Discovery and IKE, so that the silence on all else is not that of a dead node."""
    stranger = scene.stranger
    ask = tools.solicitation(
        stranger.address, scene.address, scene.address, bytes.fromhex(stranger.mac.replace(":", ""))
    )
    stranger.forget()
    stranger.send(scene.mac, ask)
    answers = stranger.heard(0.5)
    assert any(
        packet.source == scene.address and packet.icmp_type == tools.NEIGHBOUR_ADVERTISEMENT
        for packet in answers
    )
    stranger.send(scene.mac, tools.udp(stranger.address, scene.address, (IKE_PORT, IKE_PORT), hello(scene)))
    answers = [packet for packet in stranger.heard(1.0) if packet.source == scene.address]
    assert any(packet.kind == tools.UDP and packet.ports == (IKE_PORT, IKE_PORT) for packet in answers)


def hello(scene: Scene) -> bytes:
    """Return an IKE_SA_INIT request, as anybody can make it."""
    identity = load_identity(scene.lab.state_dir("n2"))
    endpoint = Endpoint(scene.stranger.address, identity, tools.believe, os.urandom)
    endpoint.initiate(scene.address, IKE_PORT, 0.0)
    (datagram,) = endpoint.datagrams_to_send(0.0)
    assert Header.decode(datagram.data).exchange == ExchangeType.IKE_SA_INIT
    return datagram.data


def solicitations(scene: Scene) -> list[bytes]:
    """Return ``FLOOD`` frames: each is the solicitation of another station at another address."""
    source, mac = IPv6Address("fe80::bad:0:0"), bytes.fromhex("02bad0000000")
    packet = tools.solicitation(source, scene.address, scene.address, mac)
    frame = bytearray(tools.ethernet(scene.mac, scene.stranger.mac, packet))
    source_at, checksum_at, mac_at = 14 + 8 + 12, 14 + 40 + 2, len(frame) - 4
    base = ~int.from_bytes(frame[checksum_at : checksum_at + 2]) & 0xFFFF
    frames = []
    for number in range(FLOOD):
        low = struct.pack("!I", number)
        total = base + 2 * ((number >> 16) + (number & 0xFFFF))
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        frame[source_at : source_at + 4] = frame[mac_at:] = low
        frame[checksum_at : checksum_at + 2] = (~total & 0xFFFF).to_bytes(2)
        frames.append(bytes(frame))
    return frames


@pytest.fixture(scope="module")
def far_side(scene: Scene) -> Iterator[Pings]:
    """Pings from the host of n1 to a neighbour on another port of it, that it has never talked to."""
    beyond = scene.lab.attacker("beyond", "n1", "data0")
    run("ip", "-n", scene.lab.host("n1").name, "addr", "add", "fd98::1/64", "dev", "data0", "nodad")
    for number in (2, 3, 4):
        run("ip", "-n", beyond.where.name, "addr", "add", f"fd98::{number}/64", "dev", "wire0", "nodad")
    with Pings(scene.lab.host("n1"), "fd98::1", "fd98::2") as pings:
        yield pings


def test_a_flood_of_solicitations_harms_nobody(scene: Scene, far_side: Pings) -> None:
    """100,000 invented neighbours: the channels stay, and the host can still resolve new neighbours."""
    lab, link = scene.lab, scene.lab.link("n1")
    channels, before = lab.channels("n1"), neighbours(link)
    assert len(channels) == 2
    frames = solicitations(scene)
    limited = counter(link, "solicitations_over_limit")
    acp = {node: lab.status(node)["acp0"]["address"] for node in ("n1", "n2", "n3")}
    with (
        Pings(lab.host("n2"), acp["n2"], acp["n1"]) as to,
        Pings(lab.host("n1"), acp["n1"], acp["n3"]) as fro,
    ):
        started = time.monotonic()
        for number, batch in enumerate(tools.batches(frames, FLOOD // 50)):
            for frame in batch:
                scene.stranger.send_frame(frame)
            to.send()
            fro.send()
            if number == 25:
                assert far_side.reaches(), "during the flood the host cannot resolve a new neighbour"
        seconds = time.monotonic() - started
        assert to.lost() == fro.lost() == 0
    allowed = SOLICITATION_BURST + int(SOLICITATIONS_PER_SECOND * (seconds + 1))
    assert neighbours(link) <= before + allowed
    assert counter(link, "solicitations_over_limit") >= limited + FLOOD - allowed
    assert lab.channels("n1") == channels
    with Pings(lab.host("n1"), "fd98::1", "fd98::3") as another:
        assert another.reaches(), "after the flood the host cannot resolve a new neighbour"
    until(lambda: answers_again(scene), "the node answers solicitations again")


def answers_again(scene: Scene) -> bool:
    stranger = scene.stranger
    mac = bytes.fromhex(stranger.mac.replace(":", ""))
    stranger.forget()
    stranger.send(scene.mac, tools.solicitation(stranger.address, scene.address, scene.address, mac))
    return any(packet.icmp_type == tools.NEIGHBOUR_ADVERTISEMENT for packet in stranger.heard(0.3))


def test_answers_to_invented_initiators_do_not_fill_the_neighbour_table(
    scene: Scene,
    far_side: Pings,  # noqa: ARG001 -- the other port
) -> None:
    """An IKE_SA_INIT request from an invented address must not cost the host an entry for each.

    What is answered has to be resolved first, and the table for that is one for the whole machine.
    """
    link, source, init = scene.lab.link("n1"), random.Random(1), hello(scene)
    channels, before, started = scene.lab.channels("n1"), neighbours(link), time.monotonic()
    for batch in tools.batches(range(INVENTED), 50):
        for _ in batch:
            invented = tools.random_link_local(source)
            # Another SPI, for this is another initiator.
            request = source.randbytes(8) + init[8:]
            packet = tools.udp(invented, scene.address, (IKE_PORT, IKE_PORT), request)
            scene.stranger.send(scene.mac, packet)
        # Each has an entry, and the group in which it is looked for has another.
        allowed = 2 * (ATTEMPT_BURST + int(ATTEMPTS_PER_SECOND * (time.monotonic() - started + 1)))
        # At once, so that a node that fails does not take the whole machine's table with it.
        assert neighbours(link) - before <= allowed, "invented initiators fill the neighbour table"
    assert counter(link, "attempts_over_limit") >= INVENTED - allowed
    with Pings(scene.lab.host("n1"), "fd98::1", "fd98::4") as another:
        assert another.reaches(), "the host cannot resolve a new neighbour"
    assert scene.lab.channels("n1") == channels
