"""A join proxy that is heard by several ways is one."""

from __future__ import annotations

from ipaddress import IPv6Address

from minerva.brski.pledge.heard import HeardProxies, Way
from minerva.brski.pledge.scheduler import Proxy

PROXY = Proxy(1, IPv6Address("fe80::1"), 4443)


def test_it_is_there_until_nobody_says_so() -> None:
    """
    covers: P-12
    """
    heard = HeardProxies()
    assert heard.heard(PROXY, Way.MDNS, 120.0) == 120.0
    assert heard.heard(PROXY, Way.GRASP, 180.0) == 180.0
    assert heard.heard(PROXY, Way.MDNS, 130.0) == 180.0
    assert heard.ways(PROXY) == (Way.MDNS, Way.GRASP)
    assert heard.lost(PROXY, Way.GRASP) == 130.0
    assert heard.ways(PROXY) == (Way.MDNS,)
    assert heard.lost(PROXY, Way.MDNS) is None
    assert heard.lost(PROXY, Way.MDNS) is None
    assert heard.ways(PROXY) == ()


def test_a_port_is_gone() -> None:
    heard, other = HeardProxies(), Proxy(2, PROXY.address, PROXY.tcp_port)
    heard.heard(PROXY, Way.MDNS, 120.0)
    heard.heard(other, Way.MDNS, 120.0)
    heard.forget_port(1)
    assert heard.ways(PROXY) == ()
    assert heard.ways(other) == (Way.MDNS,)
