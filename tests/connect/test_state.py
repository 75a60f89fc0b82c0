"""The node's secret and what follows from it."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

import pytest

from minerva.connect.state import NodeState, link_local_of
from minerva.core.errors import UsageError

PEER = IPv6Address("fe80::1")


def test_the_same_after_a_restart(tmp_path: Path) -> None:
    first = NodeState(tmp_path)
    seen = (first.tag, first.mac("eth0", "02:00:00:00:00:01", 0), first.channel_link_local("eth0", PEER))
    first.close()
    second = NodeState(tmp_path)
    assert seen == (
        second.tag,
        second.mac("eth0", "02:00:00:00:00:01", 0),
        second.channel_link_local("eth0", PEER),
    )
    second.close()
    assert (tmp_path / "node-secret").stat().st_mode & 0o777 == 0o600


def test_addresses_differ_by_port_attempt_and_node(tmp_path: Path) -> None:
    """The interface's address inside the ACP follows from a secret, not from what the link shows.

    covers: 6.13.5.2-6
    """
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = NodeState(tmp_path / "a"), NodeState(tmp_path / "b")
    macs = {
        state.mac(port, "02:00:00:00:00:01", attempt)
        for state in (a, b)
        for port in ("eth0", "eth1")
        for attempt in (0, 1)
    }
    assert len(macs) == 8
    assert all(int(mac[:2], 16) & 0x03 == 0x02 for mac in macs), "unicast and locally administered"
    inner = {state.channel_link_local(port, PEER) for state in (a, b) for port in ("eth0", "eth1")}
    assert len(inner) == 4
    assert all(address.is_link_local for address in inner)
    a.close()
    b.close()


def test_unique_local_addresses(tmp_path: Path) -> None:
    """Of one /48 for a node, made by chance and kept, with a /64 for a port (RFC 4193)."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = NodeState(tmp_path / "a"), NodeState(tmp_path / "b")
    found = {(node, port): node.ula(port, "02:00:00:00:00:01", PEER) for node in (a, b) for port in "xy"}

    def prefixes(node: NodeState, length: int) -> set[IPv6Network]:
        return {IPv6Network((found[node, port], length), strict=False) for port in "xy"}

    for node in (a, b):
        assert len(prefixes(node, 48)) == 1
        assert len(prefixes(node, 64)) == 2
    assert prefixes(a, 48) != prefixes(b, 48)
    for address in found.values():
        assert address in IPv6Network("fd00::/8"), "locally assigned"
        assert address.packed[8:] == PEER.packed[8:]
    a.close()
    again = NodeState(tmp_path / "a")
    assert again.ula("x", "02:00:00:00:00:01", PEER) == found[a, "x"]
    again.close()
    b.close()


def test_two_nodes_cannot_share_a_directory(tmp_path: Path) -> None:
    first = NodeState(tmp_path)
    with pytest.raises(UsageError, match="already runs"):
        NodeState(tmp_path)
    first.close()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="minerva ca issue"):
        NodeState(tmp_path / "none")


def test_a_damaged_secret_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "node-secret").write_bytes(b"short")
    with pytest.raises(UsageError, match="damaged"):
        NodeState(tmp_path)


def test_link_local_of_a_mac() -> None:
    assert link_local_of("02:11:22:33:44:55") == IPv6Address("fe80::11:22ff:fe33:4455")
