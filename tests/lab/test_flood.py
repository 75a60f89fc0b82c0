"""100,000 forged IKE_SA_INIT requests a minute, from as many invented neighbours.

What is there goes on, also with new keys every few seconds; who comes new gets in; memory stays.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from minerva.ikev2.constants import IKE_PORT, ExchangeType
from minerva.ikev2.endpoint import Endpoint
from minerva.ikev2.message import Header
from minerva.pki.ca import CertificateAuthority
from minerva.pki.identity import Identity
from tests.lab import attacker as tools
from tests.lab.attacker import Peer, Pings, StandingLab, Wire, believe, standing_lab, until
from tests.lab.test_garbage import memory

pytestmark = pytest.mark.root

PER_SECOND = 100_000 / 60

LIFETIME = 3
"""How long a child SA is used in the lab, in seconds."""

GETS_IN = 8.0
"""How long, in seconds, a new neighbour takes at most."""

MAX_GROWTH = 12 << 20
"""By how much the memory of a process may have grown after the flood, in bytes, however long that was. Most
is the supervisor's: for each new channel it lists the kernel's neighbours, and the flood makes hundreds."""

MAX_CPU = 0.3
"""How much of a processor the process that speaks IKE may use at most during the flood."""

TOPOLOGY = f"""
lans = [["n1", "n2"]]

[nodes.n1.ike]
child_lifetime = {LIFETIME}

[nodes.n2.ike]
child_lifetime = {LIFETIME}
"""


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


@dataclass
class Scene:
    """Two nodes on a LAN, and room for others."""

    lab: StandingLab
    authority: CertificateAuthority
    wire: Wire
    target: IPv6Address
    """The link-local address of n1, which is flooded."""
    attached: int = 0

    def peer(self) -> Peer:
        """Return a new member on the LAN, to be started."""
        self.attached += 1
        wire = self.lab.attacker(f"new{self.attached}", "lan1", f"x{self.attached}", bridge=True)
        issued = self.authority.issue()
        assert issued.address is not None
        assert issued.private_key is not None
        identity = Identity(
            issued.certificate, issued.chain, issued.anchors, issued.node_name, issued.address
        )
        return Peer(wire, identity, issued.private_key)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("labs")
    (directory / "flood.toml").write_text(TOPOLOGY)
    with standing_lab(str(directory / "flood.toml"), "flood", directory) as lab:
        authority = CertificateAuthority.open(lab.directory / "ca")
        wire = lab.attacker("flooder", "lan1", "flooder", bridge=True)
        yield Scene(lab, authority, wire, IPv6Address(lab.port("n1")["link_local"]))


@dataclass
class Flood(threading.Thread):
    """Sends until it is told to stop. What it sends was made before: sending must not be its limit."""

    wire: Wire
    mac: str
    packets: list[bytes]
    sent: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__()

    def run(self) -> None:
        started, cpu = time.monotonic(), time.thread_time()
        while not self.stop.is_set():
            self.seconds = time.monotonic() - started
            while self.sent < self.seconds * PER_SECOND:
                self.wire.send(self.mac, self.packets[self.sent % len(self.packets)])
                self.sent += 1
            self.cpu = time.thread_time() - cpu
            time.sleep(0.005)

    def __hash__(self) -> int:
        return id(self)


def forged(scene: Scene, count: int) -> list[bytes]:
    """Return IKE_SA_INIT requests, each good in itself, of as many neighbours that do not exist."""
    source, peer = random.Random(7), scene.peer()
    endpoint = Endpoint(IPv6Address("fe80::bad"), peer.identity, believe, os.urandom)
    endpoint.initiate(scene.target, IKE_PORT, 0.0)
    (init,) = endpoint.datagrams_to_send(0.0)
    return [
        tools.udp(
            tools.random_link_local(source),
            scene.target,
            (IKE_PORT, IKE_PORT),
            source.randbytes(8) + init.data[8:],
        )
        for _ in range(count)
    ]


def ike_counters(lab: StandingLab) -> Counter[str]:
    """Return what the IKE core of n1 has counted."""
    return Counter(lab.status("n1")["counters"]["abutment"]["eth0"]["ike"])


def cpu_seconds(pid: int) -> float:
    """Return how long a process has computed."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def deaf(peer: Peer) -> None:
    """Let a peer hear no request for an IKE SA, as if it were flooded itself: it must get in by its own."""
    accept = peer._note

    def note(data: bytes, address: IPv6Address, port: int, now: float) -> bool:
        header = Header.decode(data)
        asks = header.exchange == ExchangeType.IKE_SA_INIT and not header.is_response
        return not asks and accept(data, address, port, now)

    peer._note = note  # type: ignore[method-assign]


def lets_in(scene: Scene, peer: Peer) -> bool:
    """Return whether n1 has a channel to a peer."""
    return any(item["peer"] == str(peer.wire.address) for item in scene.lab.status("n1")["channels"])


async def newcomers(scene: Scene, seconds: float) -> list[float]:
    """Let new neighbours come, one after the other, every second one deaf; return how long each took."""
    took: list[float] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or len(took) < 2:
        peer = scene.peer()
        if len(took) % 2:
            deaf(peer)
        peer.start()
        try:
            started = time.monotonic()
            while not lets_in(scene, peer):
                waited = time.monotonic() - started
                assert waited < GETS_IN, f"newcomer {len(took)} does not get in"
                # As a node would: at once, and with its back-off.
                if len(took) % 2 and not peer._endpoint.status():
                    peer.initiate(scene.target)
                await asyncio.sleep(0.1)
            took.append(time.monotonic() - started)
        finally:
            peer.close()
        await asyncio.sleep(1.0)
    return took


def check_flood(scene: Scene, seconds: float) -> None:
    lab = scene.lab
    # What is needed for the first newcomer is needed once: memory is looked at from the second on.
    asyncio.run(newcomers(scene, 0.0))
    address = {node: lab.status(node)["acp0"]["address"] for node in ("n1", "n2")}
    processes = lab.processes("n1")
    abutment = processes["abutment"]["pid"]
    grown = {name: -memory(item["pid"]) for name, item in processes.items()}
    packets = forged(scene, int(min(seconds, 10) * PER_SECOND))
    flood = Flood(scene.wire, lab.port("n1")["mac"], packets)
    age, cpu = lab.channel("n1", "n2")["seconds"], cpu_seconds(abutment)
    before = ike_counters(lab)
    with Pings(lab.host("n1"), address["n1"], address["n2"]) as pings:
        until(pings.reaches, "n1 reaches n2")
        pings.forget()

        async def ping() -> None:
            while True:
                pings.send()
                await asyncio.sleep(0.05)

        async def work() -> list[float]:
            pinging = asyncio.create_task(ping())
            try:
                return await newcomers(scene, seconds)
            finally:
                pinging.cancel()

        flood.start()
        try:
            took = asyncio.run(work())
        finally:
            flood.stop.set()
            flood.join()
        cpu = (cpu_seconds(abutment) - cpu) / flood.seconds
        assert flood.sent >= 0.9 * PER_SECOND * seconds
        lost = pings.lost()
        assert lost <= pings.sent / 100, "an existing channel suffers"
    now = lab.channel("n1", "n2")
    assert now["seconds"] > age + seconds / 2, "the channel was built anew"
    counted = ike_counters(lab) - before
    print(f"{flood.sent} in {flood.seconds:.1f} s; newcomers took {[round(each, 1) for each in took]}")
    print(
        f"CPU: flooder {flood.cpu / flood.seconds:.2f}, abutment {cpu:.2f}; lost {lost} of {pings.sent} pings"
    )
    print(counted)
    # Either side begins, and the newcomers' keys, which are theirs to replace, are not meant.
    assert counted["child SA: rekeying begun"] > seconds / LIFETIME
    assert cpu < MAX_CPU
    for name, item in lab.processes("n1").items():
        assert item["pid"] == processes[name]["pid"], f"{name} was started again"
        grown[name] += memory(item["pid"])
    print({name: f"{size >> 10} KiB" for name, size in grown.items()})
    assert max(grown.values()) < MAX_GROWTH, f"memory has grown: {grown}"


def test_a_flood_of_requests(scene: Scene) -> None:
    """
    covers: 6.7-3, 6.8-rekey
    """
    check_flood(scene, 10.0)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_minute_of_flood(scene: Scene) -> None:
    check_flood(scene, 60.0)
