"""What the node says of itself and what iproute2 finds in the kernel are the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network
from typing import Any

import pytest

from tests.lab.conftest import minerva

pytestmark = pytest.mark.root

LAB = f"agree-{os.getpid()}"
NODES = ("n1", "n2", "n3")


@pytest.fixture(scope="module")
def states() -> Iterator[dict[str, Any]]:
    """The status of every node of a standing line of three."""
    up = minerva("lab", "up", "line:3", "--name", LAB)
    assert up.returncode == 0, up.stderr
    yield json.loads(minerva("lab", "status", LAB, "--json").stdout)
    assert minerva("lab", "down", LAB).returncode == 0


def ip(namespace: str, *arguments: str) -> list[dict[str, Any]]:
    """Return what ``ip -json`` says in a namespace."""
    command = ["ip", "-json", "-details", "-n", namespace, "-6", *arguments]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout or "[]")
    assert isinstance(found, list)
    return found


def test_routes(states: dict[str, Any]) -> None:
    """Default route to the parent, prefix routes down, a black hole for what is our own and not in use.

    covers: 6.12.1.11-1, 6.12.1.11-2, 6.12.1.1-1, R8.0
    """
    for state in states.values():
        inside = state["acp0"]["namespace"]
        kernel = {
            (
                str(IPv6Network(route["dst"] if route["dst"] != "default" else "::/0")),
                route["gateway"],
                route["dev"],
            )
            for route in ip(inside, "route", "show", "proto", "197")
            if "gateway" in route and route["dev"] != "host0"
        }
        ours = {(route["prefix"], route["next_hop"], route["interface"]) for route in state["rpl"]["routes"]}
        assert kernel == ours
        assert len(ours) >= 2
        own = IPv6Network(f"{state['node']['address']}/127")
        holes = [route for route in ip(inside, "route") if route.get("type") == "blackhole"]
        assert [IPv6Network(route["dst"]) for route in holes] == [own]


def test_channel_interfaces(states: dict[str, Any]) -> None:
    """One point-to-point interface a channel, with an address of its own and an MTU from the link's.

    covers: 6.13.5.2-1, 6.13.3-1, 6.13.5.2-3, 6.11-1
    """
    for state in states.values():
        inside = state["acp0"]["namespace"]
        links = {link["ifname"]: link for link in ip(inside, "address") if link["ifname"].startswith("acp_")}
        assert set(links) == {channel["interface"] for channel in state["channels"]}
        for channel in state["channels"]:
            link = links[channel["interface"]]
            assert {"POINTOPOINT", "MULTICAST", "NOARP", "UP"} <= set(link["flags"])
            assert link["mtu"] == channel["mtu"] == 1426
            addresses = [item["local"] for item in link["addr_info"]]
            assert addresses == [channel["inner_link_local"]], "link-local only, and the one that we chose"
            digits = [IPv6Address(channel[end]).packed[-2:].hex() for end in ("local", "peer")]
            assert re.fullmatch(f"acp_{digits[0]}_{digits[1]}(_[0-9]+)?", channel["interface"])


def test_loopback(states: dict[str, Any]) -> None:
    """The ACP address is on the loopback interface, and nothing else of the ACP is routable.

    covers: 6.13.5.1-1, 6.13.5.1-2, 6.11-1
    """
    for state in states.values():
        links = {link["ifname"]: link for link in ip(state["acp0"]["namespace"], "address")}
        routable = {
            item["local"]: name
            for name, link in links.items()
            for item in link["addr_info"]
            if IPv6Address(item["local"]).is_private and not IPv6Address(item["local"]).is_link_local
        }
        routable.pop("::1", None)
        assert routable == {state["node"]["address"]: "lo"}
        [loopback] = [link for link in links.values() if link["ifname"] == "lo"]
        assert "LOOPBACK" in loopback["flags"]


def test_one_discovery_instance_a_port(states: dict[str, Any]) -> None:
    """
    covers: 6.4-1, 6.5-1, 6.3-1
    """
    middle = states["n2"]
    counters = middle["counters"]["abutment"]
    assert {"eth0", "eth1"} <= set(counters)
    assert all(counters[port]["dull"]["accepted"] >= 1 for port in ("eth0", "eth1"))
    assert {item["port"] for item in middle["neighbours"]} == {"eth0", "eth1"}
    domain = middle["node"]["domain"]
    for item in middle["neighbours"]:
        assert item["state"] == "connected"
        assert item["peer_name"].endswith(f"@{domain}")


def test_neighbour_entries_are_pinned(states: dict[str, Any]) -> None:
    for state in states.values():
        ports = {port["name"]: port for port in state["ports"]}
        for channel in state["channels"]:
            entries = ip(ports[channel["port"]]["namespace"], "neigh", "show", "nud", "permanent")
            assert channel["peer"] in [entry["dst"] for entry in entries]


def test_exactly_one_decider_a_channel(states: dict[str, Any]) -> None:
    """
    covers: 6.6-3
    """
    roles = {
        (state["node"]["name"], item["peer_name"]): item["role"]
        for state in states.values()
        for item in state["neighbours"]
    }
    assert len(roles) == 4
    for (own, peer), role in roles.items():
        assert {role, roles[peer, own]} == {"Decider", "Follower"}


def test_packets_are_counted_where_they_pass(states: dict[str, Any]) -> None:
    channel = states["n1"]["channels"][0]
    assert channel["packets_in"] > 0
    assert channel["packets_out"] > 0
    statistics = ip(states["n1"]["acp0"]["namespace"], "-stats", "link", "show", channel["interface"])
    [link] = statistics
    # The status was taken before: the kernel's counters have not gone back since.
    assert link["stats64"]["tx"]["packets"] >= channel["packets_out"]
    assert link["stats64"]["rx"]["packets"] >= channel["packets_in"]
