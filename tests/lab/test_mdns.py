"""A device whose neighbour's announcements do not come through finds it by multicast DNS.

Who answers is not ours: python-zeroconf, which runs on the machine of the member, and knows no more of
Minerva than where the join proxy listens.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from minerva.connect import control
from minerva.core.errors import MinervaError
from minerva.grasp.announcement import Announcement
from minerva.grasp.constants import ALL_GRASP_NEIGHBORS, AN_PROXY, GRASP_LISTEN_PORT, TransportProto
from minerva.grasp.dull import DullInstance
from minerva.lab.lab import Lab
from minerva.linux import sockets
from minerva.linux.namespace import Namespace
from minerva.linux.nftables import Nftables
from tests.lab import tshark
from tests.lab.conftest import minerva
from tests.lab.zero_touch import REGISTRAR, all_are_in, logged, service, soon, zero_touch_lab

pytestmark = pytest.mark.root

pytest.importorskip("zeroconf")

RESPONDER = """
import sys, time
from ipaddress import IPv6Address
from socket import if_nametoindex
from zeroconf import IPVersion, ServiceInfo, Zeroconf

address, port = IPv6Address(sys.argv[1]), int(sys.argv[2])
kind = "_brski-proxy._tcp.local."
info = ServiceInfo(kind, f"a join proxy.{kind}", port, addresses=[address.packed], server="n1-proxy.local.")
responder = Zeroconf(interfaces=[if_nametoindex("eth0")], ip_version=IPVersion.V6Only)
responder.register_service(info)
print("ready", flush=True)
sys.stdin.read()
responder.close()
"""


@contextmanager
def responder(where: Namespace, address: IPv6Address, port: int) -> Iterator[None]:
    """Somebody who says in ``where`` that there is a join proxy."""
    with where.entered():
        process = subprocess.Popen(
            [sys.executable, "-c", RESPONDER, str(address), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield


def status(lab: Lab, name: str) -> dict[str, Any]:
    return control.call(lab.nodes[name].control_socket, {"command": "status"})


def offers(lab: Lab) -> list[dict[str, Any]]:
    """What n1 offers as a join proxy, when it does."""
    try:
        found: list[dict[str, Any]] = status(lab, "n1")["proxy"]["offers"].get("eth0", [])
    except (MinervaError, KeyError):
        return []
    return found


def heard(lab: Lab) -> list[dict[str, Any]]:
    """The join proxies of which n2 knows, while it is a pledge."""
    found: list[dict[str, Any]] = status(lab, "n2").get("pledge", {}).get("proxies", [])
    return found


def link(lab: Lab, name: str) -> tuple[Namespace, IPv6Address]:
    """The link namespace of a node, and its link-local address there."""
    port = next(port for port in status(lab, name)["ports"] if port["name"] == "eth0")
    return Namespace(port["namespace"]), IPv6Address(port["link_local"])


def mdns_open(where: Namespace) -> bool:
    with where.entered(), Nftables() as nftables:
        return "elements" in nftables.run("list set inet minerva_link pledge_mdns")


def listens(where: Namespace) -> bool:
    with where.entered():
        sockets = subprocess.run(["ss", "-6uanH"], capture_output=True, text=True, check=True).stdout
    return ":5353 " in sockets


def test_a_device_finds_its_proxy_by_multicast_dns_alone(tmp_path: Path) -> None:
    """It believes a machine that answers for its proxy, and is silent as soon as it is a member.

    covers: P-12, P-17
    """

    async def work() -> IPv6Address:
        async with zero_touch_lab("line:2", start=False) as lab:
            lab.capture(tmp_path)
            assert lab.zero_touch is not None
            lab.nodes["n1"].start(lab.network.hosts["n1"], follow_us=True)
            lab.zero_touch.start(follow_us=True)
            offer = (await soon(lambda: offers(lab), "n1 is a join proxy", pause=0.1))[0]
            where, address = link(lab, "n1")
            with where.entered(), Nftables() as nftables:
                nftables.run(
                    "table inet silence { chain out { type filter hook output priority -400; "
                    "udp dport 7017 drop; }; }"
                )
            lab.nodes["n2"].start(lab.network.hosts["n2"], follow_us=True)
            await logged(lab.nodes["n2"], "looking for a join proxy")
            await soon(lambda: lab.nodes["n2"].control_socket.exists(), "n2 runs")
            await asyncio.sleep(3)
            here, device = link(lab, "n2")
            assert heard(lab) == []
            assert mdns_open(here)
            assert listens(here)
            assert not mdns_open(where)
            registrar = service(lab, REGISTRAR).process
            assert registrar is not None
            registrar.send_signal(signal.SIGSTOP)  # long enough for a look at the pledge
            with responder(lab.network.hosts["n1"], address, offer["tcp_port"]):
                proxy = (await soon(lambda: heard(lab), "n2 hears it", pause=0.1))[0]
                assert proxy["heard_by"] == ["mdns"]
                assert (proxy["address"], proxy["tcp_port"]) == (str(address), offer["tcp_port"])
                shown = minerva("status", "--run-dir", lab.nodes["n2"].run_dir)
                assert re.search(rf"eth0 +{address} +mdns ", shown.stdout), shown.stdout
                registrar.send_signal(signal.SIGCONT)
                await logged(lab.nodes["n2"], "enrolled: this node is")
            log = lab.nodes["n2"].log_file.read_text()
            assert f"heard the join proxy [{address}]:{offer['tcp_port']} on port eth0 by mdns" in log
            assert "by grasp" not in log
            assert not mdns_open(here)
            assert not listens(here)
            with where.entered(), Nftables() as nftables:
                nftables.run("delete table inet silence")
            await all_are_in(lab)
            where.close()
            here.close()
            return device

    device = asyncio.run(work())
    if tshark.present():
        see_what_was_asked(tmp_path, device)


def test_a_cable_is_plugged_in_and_a_proxy_is_heard_by_both_ways(tmp_path: Path) -> None:
    """The device then asks as if for the first time. Of one proxy, heard twice, it knows until both are over.

    covers: P-12
    """

    async def work() -> IPv6Address:
        async with zero_touch_lab("line:2", start=False) as lab:
            lab.capture(tmp_path)
            neighbour, pledge = lab.network.hosts["n1"], lab.nodes["n2"]
            pledge.start(lab.network.hosts["n2"], follow_us=True)
            await logged(pledge, "is up as")
            await asyncio.sleep(4)
            for state, words, times in (("down", "lost its carrier", 1), ("up", "is up as", 2)):
                ip(neighbour, "link", "set", "eth0", state)
                await logged(pledge, words, times=times)
            address = await soon(lambda: link_local(neighbour), "n1 has an address", pause=0.1)
            await asyncio.sleep(4)
            with responder(neighbour, address, 4443):
                await soon(lambda: ways(lab) == [["mdns"]], "n2 hears it", pause=0.1)
                announce(neighbour, address, 4443)
                await soon(lambda: ways(lab) == [["mdns", "grasp"]], "n2 hears it twice", pause=0.1)
            await soon(lambda: ways(lab) == [["grasp"]], "it said goodbye by one way", pause=0.1)
            where, device = link(lab, "n2")
            where.close()
            return device

    device = asyncio.run(work())
    if tshark.present():
        times, first = [], []
        for frame in asked_by(device, tmp_path):
            times.append(float(frame["frame.time_epoch"][0]))
            first.append(frame["dns.qry.qu"] == ["1"])
        again = first.index(True, 1)
        assert first.count(True) == 2
        for start, end in ((0, again), (again, len(times))):
            gaps = [round(later - earlier) for earlier, later in pairwise(times[start:end])]
            assert gaps == [1, 2, 4, 8][: len(gaps)]
            assert len(gaps) >= 2


def ip(where: Namespace, *words: str) -> str:
    return subprocess.run(["ip", "-n", where.name, *words], check=True, capture_output=True, text=True).stdout


def link_local(where: Namespace) -> IPv6Address | None:
    """The address of a machine on its link, when it has one that can be used."""
    words = ip(where, "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link", "-tentative").split()
    return IPv6Address(words[3].partition("/")[0]) if words else None


def ways(lab: Lab) -> list[list[str]]:
    """By which ways n2 hears its proxies."""
    return [item["heard_by"] for item in heard(lab)]


def announce(where: Namespace, address: IPv6Address, port: int) -> None:
    """Say by GRASP in ``where`` that there is a join proxy."""
    core = DullInstance(address, random=Random())
    core.announce([Announcement(AN_PROXY, "", TransportProto.IPPROTO_TCP, port)], 0.0)
    with where.entered():
        index = socket.if_nametoindex("eth0")
        with sockets.multicast_socket("eth0", index, ALL_GRASP_NEIGHBORS, GRASP_LISTEN_PORT) as sock:
            for datagram in core.datagrams_to_send(0.0):
                sock.sendto(datagram.data, (str(datagram.address), datagram.port))


def asked_by(device: IPv6Address, directory: Path) -> list[tshark.Frame]:
    """What a device has sent by multicast DNS."""
    (file,) = directory.glob("*.pcap")
    witness = tshark.Witness(file, directory)
    witness.none(f"ipv6.src == {device} && mdns && _ws.malformed")
    return witness.frames(
        f"ipv6.src == {device} && udp.port == 5353",
        "frame.time_epoch",
        "dns.flags.response",
        "dns.qry.name",
        "dns.qry.type",
        "dns.qry.qu",
        "ipv6.hlim",
        "ipv6.dst",
    )


def see_what_was_asked(directory: Path, device: IPv6Address) -> None:
    """Others read in the device's packets what it means to say, and it does not ask too often."""
    asked = asked_by(device, directory)
    assert [frame["dns.qry.qu"] for frame in asked] == [["1"], *([["0"]] * (len(asked) - 1))]
    for frame in asked:
        assert frame["dns.flags.response"] == ["0"]
        assert frame["dns.qry.name"] == ["_brski-proxy._tcp.local"]
        assert frame["dns.qry.type"] == ["12"]
        assert frame["ipv6.hlim"] == ["255"]
        assert frame["ipv6.dst"] == ["ff02::fb"]
    times = [float(frame["frame.time_epoch"][0]) for frame in asked]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert [round(gap) for gap in gaps] == [1, 2, 4, 8][: len(gaps)]
    assert len(gaps) >= 2
