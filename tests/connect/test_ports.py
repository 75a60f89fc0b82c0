"""Which interfaces of the host are ports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minerva.connect.config import Ports
from minerva.connect.ports import why_not
from minerva.linux.netlink import Link

NIC = Link(
    index=2,
    name="eth0",
    kind=None,
    mac="02:00:00:00:00:01",
    permanent_mac=None,
    mtu=1500,
    up=True,
    carrier=True,
    ethernet=True,
    alias=None,
)


def test_a_plain_ethernet_interface_is_a_port() -> None:
    """
    covers: 6.4-2
    """
    assert why_not(NIC, Ports()) is None
    assert why_not(replace(NIC, up=False, carrier=False), Ports()) is None


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        (replace(NIC, name="lo", ethernet=False), "not Ethernet"),
        (replace(NIC, name="tun0", kind="tun", ethernet=False), "not Ethernet"),
        (replace(NIC, name="eth0.5", kind="vlan"), "virtual interface (vlan)"),
        (replace(NIC, name="br0", kind="bridge"), "virtual interface (bridge)"),
        (replace(NIC, name="veth1", kind="veth"), "virtual interface (veth)"),
        (replace(NIC, name="gretap0", kind="gretap"), "virtual interface (gretap)"),
        (replace(NIC, name="acp0", kind="veth", alias="minerva:123456"), "Minerva's own"),
    ],
)
def test_what_is_not_native_is_left_out_and_the_reason_can_be_seen(link: Link, reason: str) -> None:
    """
    covers: 6.4-5, 6.4-6
    """
    said = why_not(link, Ports())
    assert said is not None
    assert reason in said


def test_the_configuration_has_the_last_word() -> None:
    settings = Ports(include=("veth*", "eth*"), exclude=("eth1",))
    assert why_not(replace(NIC, name="veth7", kind="veth"), settings) is None
    assert why_not(replace(NIC, name="eth1"), settings) == "excluded by the configuration"
    own = replace(NIC, name="veth9", kind="veth", alias="minerva:123456")
    assert why_not(own, settings) == "it is Minerva's own"
