"""The policy of a link: what passes of multicast DNS while there is a pledge, and between ports 4500."""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from minerva.brski.pledge.constants import MDNS_GROUP, MDNS_PORT
from minerva.brski.pledge.dns import Message, Question, Type, name_of
from minerva.linux import sockets
from minerva.linux.firewall import (
    ACP_TABLE,
    ATTEMPT_BURST,
    ATTEMPTS_PER_SECOND,
    LINK_TABLE,
    MARKED_IKE_PORT,
    acp_policy,
    link_policy,
    pledge_rules,
)
from minerva.linux.namespace import Namespace
from minerva.linux.nftables import Nftables, firewall_counters
from tests.linux.test_sockets import wait_for_routes, wire  # noqa: F401

pytestmark = pytest.mark.root

LOCAL, REMOTE = IPv6Address("fe80::b"), IPv6Address("fe80::a")
QUERY = Message(False, (Question(name_of("x.local"), Type.PTR),)).encode()
RESPONSE = Message(True).encode()
GROUP, DIRECT = str(MDNS_GROUP), str(LOCAL)


class Ends:
    """A pledge's socket behind the policy, and a neighbour who may send what he likes."""

    def __init__(self, neighbour: Namespace, link: Namespace) -> None:
        self._link, self._neighbour = link, neighbour
        with link.entered():
            with Nftables() as nftables:
                nftables.run(link_policy("b0", LOCAL))
            self.ours = sockets.multicast_socket(
                "b0", socket.if_nametoindex("b0"), MDNS_GROUP, MDNS_PORT, hops=255
            )
        with neighbour.entered():
            index = socket.if_nametoindex("a0")
            self.theirs = sockets.multicast_socket("a0", index, MDNS_GROUP, MDNS_PORT)

    def allow(self, *, mdns: bool) -> None:
        with self._link.entered(), Nftables() as nftables:
            nftables.run(pledge_rules(connect=False, mdns=mdns))

    def comes_in(self, data: bytes, to: str, *, hops: int = 255, port: int = MDNS_PORT) -> bool:
        """Return whether the pledge gets what its neighbour sends."""
        with self._neighbour.entered():
            index = socket.if_nametoindex("a0")
            with sockets.udp_socket("a0", port) if port != MDNS_PORT else self.theirs.dup() as sock:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, hops)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
                sock.sendto(data, (to, MDNS_PORT, 0, index))
        if not select.select([self.ours], [], [], 0.3)[0]:
            return False
        assert self.ours.recv(100) == data
        return True

    def goes_out(self, to: str) -> bool:
        """Return whether the pledge's neighbour gets what it sends."""
        with self._link.entered():
            index = socket.if_nametoindex("b0")
            # A link's own interface has no other address, but this one has one that the kernel gave it.
            source = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, LOCAL.packed + struct.pack("@I", index))
            try:
                self.ours.sendmsg([QUERY], [source], 0, (to, MDNS_PORT, 0, index))
            except PermissionError:
                return False
        return bool(select.select([self.theirs], [], [], 1)[0]) and self.theirs.recv(100) == QUERY


def test_multicast_dns_is_open_for_a_pledge_only(wire: tuple[Namespace, Namespace]) -> None:  # noqa: F811
    """Of neighbours on this link alone, from their port; and what is not for all only as a response.

    covers: P-17
    """
    ends = Ends(*wire)
    for _ in range(2):
        ends.allow(mdns=False)
        assert not ends.comes_in(RESPONSE, GROUP)
        assert not ends.comes_in(RESPONSE, DIRECT)
        assert not ends.goes_out(GROUP)
        ends.allow(mdns=True)
        assert ends.comes_in(RESPONSE, GROUP)
        assert ends.comes_in(RESPONSE, DIRECT)
        assert ends.comes_in(QUERY, GROUP)
        assert ends.goes_out(GROUP)
    assert not ends.comes_in(QUERY, DIRECT)
    assert not ends.comes_in(RESPONSE, GROUP, hops=254)
    assert not ends.comes_in(RESPONSE, DIRECT, hops=64)
    assert not ends.comes_in(RESPONSE, GROUP, port=5354)
    assert not ends.goes_out(str(REMOTE))
    ends.ours.close()
    ends.theirs.close()


NAT_T = 4500
MARKER = bytes(4)
IKE, LONG_IKE = (b"\1" * 8 + b"\2" * 8 + bytes(size) for size in (100, 1500))
ESP = b"\0\0\1\0" + bytes(60)


class Encapsulated:
    """A node's sockets behind the policy, and those of a neighbour: one on port 4500, one beside."""

    def __init__(self, neighbour: Namespace, link: Namespace) -> None:
        with link.entered():
            with Nftables() as nftables:
                nftables.run(link_policy("b0", LOCAL, udp_encapsulation=True))
            self.index = socket.if_nametoindex("b0")
            self.ike = sockets.udp_socket("b0", MARKED_IKE_PORT)
            self.esp = sockets.esp_socket("b0", self.index, LOCAL, REMOTE, udp_port=NAT_T)
        with neighbour.entered():
            self.there = socket.if_nametoindex("a0")
            self.peer, self.beside = (sockets.udp_socket("a0", port) for port in (NAT_T, 1024))
        self.all = (self.ike, self.esp, self.peer, self.beside)

    def gets(self, data: bytes, *, port: int = NAT_T, sender: socket.socket | None = None) -> str:
        """Return which of the node's sockets gets what the neighbour sends."""
        (sender or self.peer).sendto(data, (DIRECT, port, 0, self.there))
        readable, _, _ = select.select([self.ike, self.esp], [], [], 0.3)
        if not readable:
            return ""
        assert readable[0].recv(2000) == data
        return "ike" if readable[0] is self.ike else "esp"


@pytest.fixture
def encapsulated(wire: tuple[Namespace, Namespace]) -> Iterator[Encapsulated]:  # noqa: F811
    ends = Encapsulated(*wire)
    yield ends
    for sock in ends.all:
        sock.close()


def test_ike_and_esp_on_port_4500_each_have_their_socket(encapsulated: Encapsulated) -> None:
    """By the marker of RFC 3948, also in fragments; keepalives have none."""
    ends = encapsulated
    for _ in range(2):
        assert ends.gets(MARKER + IKE) == ends.gets(MARKER + LONG_IKE) == "ike"
        assert ends.gets(ESP) == "esp"
    for nothing in (b"\xff", b"", bytes(3), MARKER, (MARKER + IKE)[:19]):
        assert ends.gets(nothing) == ""
    assert ends.gets(ESP, sender=ends.beside) == ""
    assert ends.gets(MARKER + IKE, sender=ends.beside) == ""
    assert ends.gets(MARKER + IKE, port=MARKED_IKE_PORT) == ""


def test_what_leaves_is_from_port_4500(encapsulated: Encapsulated) -> None:
    ends = encapsulated
    assert ends.gets(ESP) == "esp", "the neighbour is known"
    ends.esp.send(ESP)
    # A link's own interface has no other address, but this one has one that the kernel gave it.
    source = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, LOCAL.packed + struct.pack("@I", ends.index))
    ends.ike.sendmsg([MARKER + LONG_IKE], [source], 0, (str(REMOTE), NAT_T, 0, ends.index))
    for expected in (ESP, MARKER + LONG_IKE):
        assert select.select([ends.peer], [], [], 1)[0]
        data, (_, port, *_) = ends.peer.recvfrom(2000)
        assert data == expected
        assert port == NAT_T
    with pytest.raises(PermissionError):
        ends.ike.sendmsg([MARKER + IKE], [source], 0, (str(REMOTE), 1024, 0, ends.index))


def test_first_messages_are_limited_in_both_ports_together(encapsulated: Encapsulated) -> None:
    """What the limit lets through of them, and nothing of what is no first message."""
    ends = encapsulated
    first = MARKER + b"\1" * 8 + bytes(20)
    for _ in range(1000):
        ends.peer.sendto(first, (DIRECT, NAT_T, 0, ends.there))
    got = 0
    while select.select([ends.ike], [], [], 0.3)[0]:
        ends.ike.recv(100)
        got += 1
    assert 150 <= got <= 400
    assert ends.gets(MARKER + IKE) == "ike"


IPV6_FREEBIND = 78
FIRST = b"\1" * 8 + bytes(120)
"""A first message of IKE, as the policy sees it."""
ATTEMPTS = 400


def arrived(sock: socket.socket) -> int:
    """Return how many datagrams have come."""
    number = 0
    while select.select([sock], [], [], 0.3)[0]:
        sock.recv(2000)
        number += 1
    return number


def test_what_has_the_marker_is_nothing_for_port_500(
    wire: tuple[Namespace, Namespace],  # noqa: F811
    encapsulated: Encapsulated,
) -> None:
    """Its SPIs are not where those are on port 500, so the limit on first messages would not see it."""
    ends = encapsulated
    with wire[1].entered():
        ike = sockets.udp_socket("b0", 500)
    with ike:
        for sender, data in ((ends.peer, MARKER + FIRST), (ends.peer, MARKER + IKE)):
            sender.sendto(data, (DIRECT, 500, 0, ends.there))
        assert arrived(ike) == 0
        ends.beside.sendto(FIRST, (DIRECT, 500, 0, ends.there))
        assert arrived(ike) == 1
    counted = firewall_counters(wire[1], LINK_TABLE)
    assert counted["refused_in"] >= 2
    assert counted["attempts_over_limit"] == counted["proxy_syns_over_limit"] == 0


def in_fragments(number: int, data: bytes, port: int, first: int) -> Iterator[bytes]:
    """Yield a datagram from ``REMOTE`` in two fragments, ``first`` bytes of it in the first one."""
    length = struct.pack("!I3xB", 8 + len(data), socket.IPPROTO_UDP)
    udp = struct.pack("!3H", port, port, 8 + len(data)) + bytes(2) + data
    checksum = internet_checksum(REMOTE.packed + LOCAL.packed + length + udp)
    udp = udp[:6] + struct.pack("!H", checksum or 0xFFFF) + udp[8:]
    for offset, part, more in ((0, udp[:first], 1), (first, udp[first:], 0)):
        yield struct.pack("!BBHI", socket.IPPROTO_UDP, 0, offset | more, number) + part


def internet_checksum(data: bytes) -> int:
    """Return the checksum of RFC 1071 over an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@pytest.mark.parametrize("shown", [8, 16, 24, 64])
def test_fragments_do_not_hide_first_messages(
    wire: tuple[Namespace, Namespace],  # noqa: F811
    shown: int,
) -> None:
    """What does not show its SPIs in the first fragment does not come in; what does is under the limit."""
    neighbour, link = wire
    with link.entered():
        with Nftables() as nftables:
            nftables.run(link_policy("b0", LOCAL, udp_encapsulation=True))
        ike, marked = sockets.udp_socket("b0", 500), sockets.udp_socket("b0", MARKED_IKE_PORT)
    with neighbour.entered():
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        raw = socket.socket(socket.AF_INET6, kind, socket.IPPROTO_FRAGMENT)
        there = socket.if_nametoindex("a0")
    with ike, marked, raw:
        raw.bind((str(REMOTE), 0, 0, there))
        numbers = iter(range(1, 10_000))

        def comes_in(sock: socket.socket, data: bytes, port: int) -> bool:
            for fragment in in_fragments(next(numbers), data, port, shown):
                raw.sendto(fragment, (DIRECT, 0, 0, there))
            return arrived(sock) == 1

        seen = shown >= 24  # UDP's header and both SPIs; with the marker it takes more
        assert comes_in(ike, IKE, 500) is seen
        assert comes_in(marked, MARKER + IKE, NAT_T) is (seen and shown > 24)
        assert not comes_in(marked, MARKER + IKE, MARKED_IKE_PORT)
        for _ in range(ATTEMPTS):
            for fragment in in_fragments(next(numbers), FIRST, 500, shown):
                raw.sendto(fragment, (DIRECT, 0, 0, there))
            time.sleep(0.006)  # below the limit on fragments
        let_in = arrived(ike)
        assert let_in <= ATTEMPT_BURST + 10 * ATTEMPTS_PER_SECOND
        assert (let_in > 0) is seen


def icmp_received(where: Namespace, name: str) -> int:
    """Return what the kernel has counted of ICMPv6 in a namespace."""
    with where.entered():
        lines = Path("/proc/thread-self/net/snmp6").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_no_error_comes_in_fragments(wire: tuple[Namespace, Namespace]) -> None:  # noqa: F811
    """A forged Packet Too Big would have the kernel make fragments of what it sends by ESP."""
    neighbour, link = wire
    cited = struct.pack("!IHBB", 6 << 28, 100, 50, 64) + LOCAL.packed + REMOTE.packed + bytes(24)
    message = struct.pack("!BBHI", 2, 0, 0, 1280) + cited
    pseudo = REMOTE.packed + LOCAL.packed + struct.pack("!I3xB", len(message), socket.IPPROTO_ICMPV6)
    message = message[:2] + struct.pack("!H", internet_checksum(pseudo + message)) + message[4:]
    with neighbour.entered():
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        raw = socket.socket(socket.AF_INET6, kind, socket.IPPROTO_FRAGMENT)
        there = socket.if_nametoindex("a0")

    def comes_in(number: int) -> bool:
        before = icmp_received(link, "Icmp6InPktTooBigs")
        for offset, part, more in ((0, message[:64], 1), (64, message[64:], 0)):
            header = struct.pack("!BBHI", socket.IPPROTO_ICMPV6, 0, offset | more, number)
            raw.sendto(header + part, (DIRECT, 0, 0, there))
        time.sleep(0.2)
        return icmp_received(link, "Icmp6InPktTooBigs") > before

    with raw:
        raw.bind((str(REMOTE), 0, 0, there))
        assert comes_in(1), "it is a good one"
        with link.entered(), Nftables() as nftables:
            nftables.run(link_policy("b0", LOCAL))
        assert not comes_in(2)


def test_who_has_a_socket_of_the_acp_cannot_speak_for_others(
    wire: tuple[Namespace, Namespace],  # noqa: F811
) -> None:
    """Though Linux lets anybody name any source in a datagram."""
    address, other, peer = map(IPv6Address, ("fd00::a", "fd00::dead", "fd00::b"))
    for namespace, device, own in ((wire[0], "a0", address), (wire[1], "b0", peer)):
        command = ["ip", "-n", namespace.name, "addr", "add", f"{own}/64", "dev", device, "nodad"]
        subprocess.run(command, check=True)
    with wire[0].entered():
        with Nftables() as nftables:
            nftables.run(acp_policy("host0", IPv6Address("fd00::1"), address))
        there = socket.if_nametoindex("a0")
    with wire[1].entered():
        hears = sockets.udp_socket("b0", 99)
    with hears, wire[0].entered():
        for source, passes in ((address, True), (other, False), (REMOTE, False), (peer, False)):
            with sockets.connected_udp_socket(address, peer, 99) as sock:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
                named = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, source.packed + struct.pack("@I", there))
                with nullcontext() if passes else suppress(PermissionError):
                    sock.sendmsg([b"x"], [named])
            assert arrived(hears) == passes, source
            with sockets.tcp_socket(address) as sock:
                sock.connect_ex((str(peer), 98))
    assert firewall_counters(wire[0], ACP_TABLE)["refused_source"] == 3


def test_by_default_port_4500_is_closed(wire: tuple[Namespace, Namespace]) -> None:  # noqa: F811
    ends = Encapsulated(*wire)
    with wire[1].entered(), Nftables() as nftables:
        nftables.run("flush ruleset\n" + link_policy("b0", LOCAL))
    assert ends.gets(ESP) == ends.gets(MARKER + IKE) == ""
    for sock in ends.all:
        sock.close()
