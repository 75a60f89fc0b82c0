"""The policy of a link for multicast DNS: what passes while there is a pledge, and what else."""

from __future__ import annotations

import select
import socket
import struct
from ipaddress import IPv6Address

import pytest

from minerva.brski.pledge.constants import MDNS_GROUP, MDNS_PORT
from minerva.brski.pledge.dns import Message, Question, Type, name_of
from minerva.linux import sockets
from minerva.linux.firewall import link_policy, pledge_rules
from minerva.linux.namespace import Namespace
from minerva.linux.nftables import Nftables
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
