"""A network stands while somebody on its links sends everything but what he should."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from minerva.grasp.announcement import AN_ACP_IKEV2
from minerva.grasp.constants import ALL_GRASP_NEIGHBORS, GRASP_LISTEN_PORT
from minerva.grasp.dull import MAX_SOURCES, DullInstance
from minerva.ikev2.constants import IKE_PORT
from minerva.linux.namespace import Namespace
from tests.lab import attacker as tools
from tests.lab.attacker import Pings, StandingLab, Wire, counter, mutated, run, standing_lab, until

pytestmark = pytest.mark.root

DATAGRAMS = 10_000
BATCH = 250
"""What is sent before the node gets the time to take it in: below what its sockets have room for."""

MAX_GROWTH = 8 << 20
"""How much memory, in bytes, a process may need in addition for all the garbage together."""

IKE_HEADER = 28
IKE_PORTS, GRASP_PORTS = (IKE_PORT, IKE_PORT), (GRASP_LISTEN_PORT, GRASP_LISTEN_PORT)
GROUP_MAC = "33:33:00:00:00:13"


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


@dataclass
class State:
    """What garbage must not change, by node, and the memory of n2's processes, in bytes."""

    channels: dict[str, dict[int, str]]
    processes: dict[str, dict[str, tuple[int, int]]]  # process id and restarts
    memory: dict[str, int]


@dataclass
class Scene:
    """A line of three nodes; the attacker is on the link between n1 and n2, where he can speak as n1."""

    lab: StandingLab
    wire: Wire
    n1: IPv6Address
    n2: IPv6Address
    mac: str  # of n2
    genuine: dict[str, list[bytes]]  # what was heard on the link, by protocol
    pings: Pings  # from n1 to n3, through n2
    before: State

    def dull(self) -> Counter[str]:
        """What n2 has counted of DULL GRASP on the port that is attacked."""
        return Counter(self.lab.status("n2")["counters"]["abutment"]["eth0"]["dull"])

    def ike(self) -> Counter[str]:
        """What n2 has counted of IKE there, and what came too often to be looked at."""
        counters = self.lab.status("n2")["counters"]["abutment"]
        return Counter(counters["eth0"]["ike"]) + Counter(
            attempts_not_answered=counters["attempts_not_answered"],
            attempts_over_limit=counter(self.lab.link("n2"), "attempts_over_limit"),
        )

    def drops(self) -> Counter[str]:
        """What n2 has dropped in the channel to n1, by reason."""
        return Counter(self.lab.channel("n2", "n1")["drops"])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The scene, after a handshake was listened to."""
    with standing_lab("line:3", "garbage", tmp_path_factory.mktemp("labs")) as lab, ExitStack() as stack:
        wire = stack.enter_context(Wire(lab.host("n1"), "eth0"))
        n1, n2 = (IPv6Address(lab.port(node)["link_local"]) for node in ("n1", "n2"))
        genuine = listen(lab, wire)
        ends = [lab.status(node)["acp0"]["address"] for node in ("n1", "n3")]
        pings = stack.enter_context(Pings(lab.host("n1"), *ends))
        until(pings.reaches, "n1 reaches n3 again")
        pings.forget()
        yield Scene(lab, wire, n1, n2, lab.port("n2")["mac"], genuine, pings, look(lab))


def listen(lab: StandingLab, wire: Wire) -> dict[str, list[bytes]]:
    """Pull the cable between n1 and n2 and plug it in again; return what n1 and n2 then say to each other."""
    host = lab.host("n1")
    run("ip", "-n", host.name, "link", "set", "eth0", "down")
    until(lambda: not lab.channels("n1"), "n1 has no channel")
    wire.forget()
    run("ip", "-n", host.name, "link", "set", "eth0", "up")
    until(lambda: lab.channels("n1") and len(lab.channels("n2")) == 2, "the channel is up again")
    heard: dict[str, list[bytes]] = {"grasp": [], "ike": [], "esp": []}
    for packet in wire.heard(0.5):
        if packet.kind == tools.ESP:
            heard["esp"].append(packet.data)
        elif packet.kind == tools.UDP and packet.ports[1] in (GRASP_LISTEN_PORT, IKE_PORT):
            heard["grasp" if packet.ports[1] == GRASP_LISTEN_PORT else "ike"].append(packet.data[8:])
    assert len(heard["grasp"]) >= 2
    assert len({data[18] for data in heard["ike"]}) >= 2, "IKE_SA_INIT and IKE_AUTH"
    assert heard["esp"]
    return heard


def memory(pid: int) -> int:
    """Return what a process has for itself alone, in bytes."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return sum(int(words[1]) << 10 for words in lines if words[0] in ("Private_Dirty:", "Private_Clean:"))


def look(lab: StandingLab) -> State:
    """Return how the nodes are."""
    found = {node: lab.status(node) for node in ("n1", "n2", "n3")}
    processes = {node: status["processes"] for node, status in found.items()}
    return State(
        {
            node: {channel["channel"]: channel["peer_name"] for channel in status["channels"]}
            for node, status in found.items()
        },
        {
            node: {item["name"]: (item["pid"], item["restarts"]) for item in items}
            for node, items in processes.items()
        },
        {item["name"]: memory(item["pid"]) for item in processes["n2"]},
    )


def check_unharmed(scene: Scene) -> None:
    """No process was started again, no channel was built anew, no ping was lost, and memory stays."""
    assert scene.pings.lost() == 0
    now = look(scene.lab)
    assert now.channels == scene.before.channels
    assert now.processes == scene.before.processes
    grown = {name: now.memory[name] - size for name, size in scene.before.memory.items()}
    assert max(grown.values()) < MAX_GROWTH, f"memory has grown: {grown}"


def backlog(link: Namespace) -> int:
    """Return how many bytes wait in the sockets of a link namespace, in the kernel's account."""
    with link.entered():
        tables = [Path(f"/proc/thread-self/net/{name}").read_text() for name in ("udp6", "raw6")]
    lines = (line.split() for table in tables for line in table.splitlines()[1:])
    return sum(int(line[4].partition(":")[2], 16) for line in lines)


def send_all(
    scene: Scene, packets: Iterator[tuple[str, bytes]], counted: Callable[[], Counter[str]]
) -> Counter[str]:
    """Send packets to stations, with time for the node to take them in; return what it has counted."""
    link, before = scene.lab.link("n2"), counted()
    for batch in tools.batches(packets, BATCH):
        for mac, packet in batch:
            scene.wire.send(mac, packet)
        scene.pings.send()
        until(lambda: backlog(link) == 0, "the node has taken in what was sent")
    # A macvlan passes on multicast when it has the time: what it has not yet is in no account.
    last = None
    while last != (now := counted()):
        last = now
        time.sleep(0.2)
    return now - before


def sources(scene: Scene, chance: random.Random) -> IPv6Address:
    """Return a source that n2 knows, or one that nobody has."""
    return scene.n1 if chance.random() < 0.5 else tools.random_link_local(chance)


def test_garbage_to_the_grasp_port(scene: Scene) -> None:
    chance = random.Random(7017)

    def packets() -> Iterator[tuple[str, bytes]]:
        for _ in range(DATAGRAMS):
            data = mutated(scene.genuine["grasp"], chance)
            source = sources(scene, chance)
            yield (
                GROUP_MAC,
                tools.udp(source, ALL_GRASP_NEIGHBORS, GRASP_PORTS, data),
            )

    counted = send_all(scene, packets(), scene.dull)
    check_unharmed(scene)
    assert counted["malformed"] > DATAGRAMS / 2
    assert counted.total() - counted["sent"] >= DATAGRAMS * 0.99


def test_announcements_of_invented_neighbours(scene: Scene) -> None:
    """Valid ones, of more neighbours than are remembered: the one that has authenticated itself stays."""
    chance = random.Random(13)

    def packets() -> Iterator[tuple[str, bytes]]:
        for _ in range(2 * MAX_SOURCES):
            source = tools.random_link_local(chance)
            dull = DullInstance(source, random=chance)
            dull.announce([AN_ACP_IKEV2], 0.0)
            (datagram,) = dull.datagrams_to_send(0.0)
            yield (
                GROUP_MAC,
                tools.udp(source, ALL_GRASP_NEIGHBORS, GRASP_PORTS, datagram.data),
            )

    counted = send_all(scene, packets(), scene.dull)
    check_unharmed(scene)
    assert counted["accepted"] >= 2 * MAX_SOURCES
    assert counted["evicted"] >= MAX_SOURCES


def test_garbage_to_the_ike_port(scene: Scene) -> None:
    chance = random.Random(500)

    def packets() -> Iterator[tuple[str, bytes]]:
        for number in range(DATAGRAMS):
            # One in two under a genuine header, SPIs and message ID included.
            data = mutated(scene.genuine["ike"], chance, keep=IKE_HEADER * (number % 2))
            source = sources(scene, chance)
            yield scene.mac, tools.udp(source, scene.n2, IKE_PORTS, data)

    counted = send_all(scene, packets(), scene.ike)
    check_unharmed(scene)
    assert counted.total() - counted["error not answered: rate limit"] >= DATAGRAMS * 0.98
    for reason in ("malformed message", "other IKE version", "unknown IKE SPI"):
        assert counted[reason] > DATAGRAMS / 100


def test_garbage_as_esp(scene: Scene) -> None:
    """With random SPIs, with the right one and garbage, and genuine packets again."""
    chance = random.Random(50)
    channel = scene.lab.channel("n2", "n1")
    (spi,) = (bytes.fromhex(text) for text in channel["spis_in"])
    old = [data for data in scene.genuine["esp"] if data[:4] == spi]

    def content(kind: int) -> bytes:
        body = chance.randbytes(chance.randrange(200))
        match kind:
            case 0:
                return chance.randbytes(4) + body
            case 1:
                return spi + chance.randrange(1 << 20).to_bytes(4) + body
            case 2 if old:
                return mutated(old, chance, keep=8)
            case 3 if old:
                return chance.choice(old)
        return body[:3]

    def packets() -> Iterator[tuple[str, bytes]]:
        for number in range(DATAGRAMS):
            source = scene.n1 if number % 10 else tools.random_link_local(chance)
            yield scene.mac, tools.ipv6(source, scene.n2, tools.ESP, content(number % 5))

    counted = send_all(scene, packets(), scene.drops)
    check_unharmed(scene)
    # One in ten is from an address that no channel leads to, and is nobody's.
    assert counted.total() >= DATAGRAMS * 0.89
    for reason in ("unknown_spi", "not_authentic", "replayed", "short"):
        assert counted[reason] > DATAGRAMS / 100
