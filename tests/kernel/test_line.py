"""A line of three nodes whose channels are the kernel's: what status says is what iproute2 finds."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from minerva.core.errors import UsageError
from minerva.linux import namespace
from minerva.linux.namespace import Namespace
from tests.kernel.conftest import Sa, ip, keys, link_namespaces, policies, sas
from tests.lab.attacker import Pings, StandingLab, standing_lab, until

pytestmark = [pytest.mark.root, pytest.mark.kernel]

NODES = ("n1", "n2", "n3")
PAIRS = [(one, other) for one in NODES for other in NODES if one != other]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    with standing_lab("line:3", "kernel", tmp_path_factory.mktemp("labs")) as found:
        yield found


def all_reach(lab: StandingLab) -> bool:
    """Whether each node reaches each other, now."""
    acp0 = {node: lab.status(node)["acp0"] for node in NODES}
    if any(item["problem"] for item in acp0.values()):
        return False
    address = {node: item["address"] for node, item in acp0.items()}
    for one, other in PAIRS:
        with Pings(lab.host(one), address[one], address[other]) as pings:
            if not pings.reaches():
                return False
    return True


def link_of(status: dict[str, Any], channel: dict[str, Any]) -> str:
    """Return the link namespace of a channel."""
    return next(port["namespace"] for port in status["ports"] if port["name"] == channel["port"])


def test_all_pairs_are_reachable(lab: StandingLab) -> None:
    """
    covers: 6.8.5-1, 6.12-1
    """
    for node in NODES:
        status = lab.status(node)
        assert status["node"]["data_plane"] == "kernel"
        assert status["node"]["data_plane_reason"] == "this kernel has IPv6 ESP and xfrm interfaces"
        assert "data-plane" not in lab.processes(node), "there is nothing for it to do"
    until(lambda: all_reach(lab), "all pairs reach each other")


def test_the_kernel_has_the_sas_that_status_shows(lab: StandingLab) -> None:
    """Two a channel, in the link namespace; as the profile of RFC 8994 section 6.8.3.1 has them.

    covers: 6.8.3.1-1, 6.8.3.1.1-2, 6.8.2-4, 6.8.2-5
    """
    for node in NODES:
        status = lab.status(node)
        assert sas(status["acp0"]["namespace"]) == []
        for channel in status["channels"]:
            here = sas(link_of(status, channel))
            inbound = [sa for sa in here if sa.destination == channel["local"]]
            outbound = [sa for sa in here if sa.source == channel["local"]]
            assert [sa.spi for sa in inbound] == channel["spis_in"]
            assert [sa.spi for sa in outbound] == [channel["spi_out"]]
            assert {sa.source for sa in inbound} == {sa.destination for sa in outbound} == {channel["peer"]}
            for sa in here:
                assert "mode tunnel" in sa.text
                assert re.search(r"aead rfc4106\(gcm\(aes\)\) 0x[0-9a-f]{72} \(288 bits\) 128", sa.text)
                assert "flag  (0x00000000)" in sa.text, "no extended sequence numbers"
            assert inbound[0].number(r"replay_window (\d+)") == 1024
            assert outbound[0].number(r"soft (\d+)\(packets\)") == 3 * 2**30
            assert outbound[0].number(r"soft (\d+)\(bytes\)") == 2**38
            assert outbound[0].number(r"hard (\d+)\(packets\)") == 2**32 - 1


def test_what_the_kernel_counts_is_what_status_shows(lab: StandingLab) -> None:
    """The differences: a channel may have had other keys before."""

    def look() -> tuple[dict[str, Any], dict[str, Sa], dict[str, Any]]:
        before = lab.channel("n1", "n2")
        found = {sa.spi: sa for sa in sas(where)}
        return before, found, lab.channel("n1", "n2")

    [where] = link_namespaces(lab.status("n1"))
    address = {node: lab.status(node)["acp0"]["address"] for node in NODES}
    first = look()
    with Pings(lab.host("n1"), address["n1"], address["n3"]) as pings:
        for _ in range(20):
            assert pings.reaches()
    last = look()
    channel = first[0]
    for spi, direction in ((channel["spis_in"][0], "in"), (channel["spi_out"], "out")):
        for counter in ("packets", "bytes"):
            name = f"{counter}_{direction}"
            kernel = getattr(last[1][spi], counter) - getattr(first[1][spi], counter)
            assert last[0][name] - first[2][name] <= kernel <= last[2][name] - first[0][name]
            assert kernel >= 20


def test_two_policies_a_channel(lab: StandingLab) -> None:
    """All of IPv6, of this interface alone; what is sent goes by the SA that status names.

    covers: 6.8.3.1-1
    """
    for node in NODES:
        status = lab.status(node)
        assert policies(status["acp0"]["namespace"]) == []
        for channel in status["channels"]:
            found = sorted(policies(link_of(status, channel)))
            assert len(found) == 2
            for direction, source, destination, text in (
                ("in", channel["peer"], channel["local"], found[0]),
                ("out", channel["local"], channel["peer"], found[1]),
            ):
                assert text.startswith(f"src ::/0 dst ::/0 dir {direction} priority 0 ptype main ")
                assert f" tmpl src {source} dst {destination} proto esp " in text
                assert re.search(r"reqid \d+ mode tunnel if_id 0x[0-9a-f]+$", text)
            assert f"spi 0x{channel['spi_out']} " in found[1]


def test_channel_interfaces(lab: StandingLab) -> None:
    """In the ACP namespace, with the one address that we chose, and the MTU that the link allows.

    covers: 6.13.5.2-1, 6.13.3-1
    """
    for node in NODES:
        status = lab.status(node)
        inside = status["acp0"]["namespace"]
        for channel in status["channels"]:
            shown = ip(inside, "-d", "address", "show", "dev", channel["interface"])
            assert " mtu 1426 " in shown
            assert "xfrm if_id 0x" in shown
            assert f"link-netns {link_of(status, channel)}" in shown
            assert re.findall(r"inet6 (\S+)", shown) == [f"{channel['inner_link_local']}/64"]
            assert channel["mtu"] == 1426


def test_the_largest_packet_passes_and_no_larger_one(lab: StandingLab) -> None:
    """In one piece, over two channels, and the first of its size: nothing had to be learnt.

    covers: 6.13.3-1
    """
    address = lab.status("n3")["node"]["address"]
    with lab.inside("n3").entered():
        receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with lab.inside("n1").entered():
        sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.bind((address, 0))
        receiver.settimeout(5)
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DONTFRAG, 1)
        sender.connect((address, receiver.getsockname()[1]))
        largest = bytes(1426 - 48)
        sender.send(largest)
        assert receiver.recv(65_535) == largest
        with pytest.raises(OSError, match="Message too long"):
            sender.send(bytes(1427 - 48))


def test_only_esp_and_what_builds_channels_is_on_the_wire(lab: StandingLab) -> None:
    """Nothing is refused on the way out: the policy of the link namespace fits both data planes."""
    for node in NODES:
        for where in link_namespaces(lab.status(node)):
            counters = ["ip", "netns", "exec", where, "nft", "list", "counters"]
            shown = subprocess.run(counters, capture_output=True, text=True, check=True).stdout
            refused = re.search(r"counter refused_out \{\s+packets (\d+)", shown)
            assert refused is not None
            assert int(refused[1]) == 0


def esp_frame(where: Namespace, source: str) -> bytes:
    """Return the next ESP packet of ``source`` on eth0, with its Ethernet header."""
    with where.entered():
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    with sniffer:
        sniffer.bind(("eth0", 3))
        sniffer.settimeout(20)
        while True:
            frame = sniffer.recv(2048)
            if frame[12:14] == b"\x86\xdd" and frame[20] == 50 and frame[22:38] == IPv6Address(source).packed:
                return frame


def test_replayed_and_forged_packets_are_dropped_and_counted(lab: StandingLab) -> None:
    """By the names that the user-space data plane has for them."""
    channel, host = lab.channel("n1", "n2"), lab.host("n1")
    address = {node: lab.status(node)["acp0"]["address"] for node in NODES}
    before = lab.channel("n2", "n1")["drops"]
    with ThreadPoolExecutor(1) as pool, Pings(host, address["n1"], address["n2"]) as pings:
        caught = pool.submit(esp_frame, host, channel["local"])
        while not caught.done():
            pings.reaches()
        frame = caught.result()
    beyond = int.from_bytes(frame[58:62]) + 1_000_000
    forged = frame[:58] + beyond.to_bytes(4) + frame[62:]
    with host.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))
        for _ in range(3):
            wire.send(frame)
        for _ in range(4):
            wire.send(forged)
    expected = {
        "replayed": before.get("replayed", 0) + 3,
        "not_authentic": before.get("not_authentic", 0) + 4,
    }
    until(lambda: lab.channel("n2", "n1")["drops"] == before | expected, "they are counted")
    assert all_reach(lab), "what is forged has not moved the replay window"


def test_sas_that_somebody_flushes_are_replaced(lab: StandingLab) -> None:
    """The channel is built anew, under fresh keys.

    covers: 6.8.3.1-2
    """
    status = lab.status("n1")
    [channel] = status["channels"]
    where = link_of(status, channel)
    old = keys(where)
    assert len(old) == 2
    ip(where, "xfrm", "state", "flush")
    until(
        lambda: {item.get("spi_out") for item in lab.status("n1")["channels"]} - {None, channel["spi_out"]},
        "there is a new channel",
        seconds=40,
    )
    until(lambda: all_reach(lab), "all pairs reach each other", seconds=40)
    until(lambda: len(sas(where)) == 2 == len(policies(where)), "nothing is left of the old one")
    assert len(keys(where) - old) == 2, "no key is used twice, as nobody has set any"


def test_an_interface_that_somebody_deletes_is_replaced(lab: StandingLab) -> None:
    status = lab.status("n3")
    [channel] = status["channels"]
    ip(status["acp0"]["namespace"], "link", "delete", channel["interface"])
    until(
        lambda: [item["channel"] for item in lab.status("n3")["channels"]] not in ([], [channel["channel"]]),
        "there is a new channel",
        seconds=40,
    )
    until(lambda: all_reach(lab), "all pairs reach each other", seconds=40)


def test_after_the_abutment_all_is_new_and_nothing_old_is_left(lab: StandingLab) -> None:
    before = {item["spi_out"] for item in lab.status("n2")["channels"]}
    os.kill(lab.processes("n2")["abutment"]["pid"], signal.SIGKILL)
    until(
        lambda: (
            len(found := {item.get("spi_out") for item in lab.status("n2")["channels"]} - {None}) == 2
            and not found & before
        ),
        "both channels are new",
        seconds=60,
    )
    until(lambda: all_reach(lab), "all pairs reach each other", seconds=60)
    for node in NODES:
        status = lab.status(node)
        for where in link_namespaces(status):
            until(lambda where=where: len(sas(where)) == 2 == len(policies(where)), f"{where} is tidy")
        interfaces = re.findall(r"^\d+: (acp_\w+)@", ip(status["acp0"]["namespace"], "link"), re.MULTILINE)
        assert sorted(interfaces) == sorted(item["interface"] for item in status["channels"])


def test_a_port_that_goes_down_takes_its_channel_along(lab: StandingLab) -> None:
    """
    covers: 6.13.5.2-2
    """
    status = lab.status("n3")
    [where] = link_namespaces(status)
    host = lab.host("n3").name
    ip(host, "link", "set", "eth0", "down")
    until(lambda: lab.status("n3")["channels"] == [], "the channel is closed")
    assert sas(where) == []
    assert policies(where) == []
    assert "acp_" not in ip(status["acp0"]["namespace"], "link")
    ip(host, "link", "set", "eth0", "up")
    until(lambda: all_reach(lab), "all pairs reach each other", seconds=60)


def test_a_killed_node_leaves_nothing_when_it_has_started_again(lab: StandingLab) -> None:
    """
    covers: 6.13.4-1
    """
    status, supervisor = lab.status("n1"), lab.processes("n1")["supervisor"]["pid"]
    [before] = link_namespaces(status)
    old = {sa.spi for sa in sas(before)}
    assert len(old) == 2
    command = Path(f"/proc/{supervisor}/cmdline").read_text().split("\0")[:-1]
    os.kill(supervisor, signal.SIGKILL)
    with lab.host("n1").entered():
        subprocess.run(["setsid", "--fork", *command], stderr=subprocess.DEVNULL, check=True)

    def runs_again() -> bool:
        with suppress(UsageError):
            return bool(lab.processes("n1")["supervisor"]["pid"] != supervisor)
        return False

    until(runs_again, "it runs again", seconds=30)
    until(lambda: all_reach(lab), "all pairs reach each other", seconds=60)
    assert len(namespace.names(f"minerva-{status['node']['tag']}-")) == 2
    [where] = link_namespaces(lab.status("n1"))
    assert len(sas(where)) == 2 == len(policies(where))
    assert not old & {sa.spi for sa in sas(where)}


def test_a_port_that_flaps(lab: StandingLab) -> None:
    """Whatever was under way each time: in the end there is one channel, and nothing of the others."""
    host = lab.host("n1").name
    for number in range(30):
        ip(host, "link", "set", "eth0", "down" if number % 2 == 0 else "up")
        time.sleep(0.05 + 0.07 * (number % 7))
    ip(host, "link", "set", "eth0", "up")
    until(lambda: all_reach(lab), "all pairs reach each other", seconds=90)
    status = lab.status("n1")
    [where] = link_namespaces(status)
    until(lambda: len(sas(where)) == 2 == len(policies(where)), "only the channel of now is left")
    shown = ip(status["acp0"]["namespace"], "link")
    assert re.findall(r"acp_\w+", shown) == [status["channels"][0]["interface"]]
