"""A neighbour on the host's own data plane gets neither to the host's ACP address nor into the ACP.

Linux is a weak host, and may be a router: without the guard it would hand over both. The last test takes
the guard away and shows just that, with the very same packets.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network
from itertools import product

import pytest

from minerva.linux import namespace
from minerva.linux.namespace import Namespace
from tests.lab import attacker as tools
from tests.lab.attacker import Packet, StandingLab, Wire, counter, run, standing_lab, until

pytestmark = pytest.mark.root

OPEN, CLOSED, FROM = 4711, 4712, 40_099

HOST = {"unique local": "fd99:0:0:1::1", "global": "2001:db8:99::1"}
ATTACKER = {"unique local": "fd99:0:0:1::2", "global": "2001:db8:99::2"}


@dataclass
class Scene:
    """A line of three nodes, with an attacker on the data plane of the middle one."""

    lab: StandingLab
    host: Namespace
    inside: Namespace
    wire: Wire
    mac: str  # of the host's data-plane interface
    prefix: IPv6Network
    own: IPv6Address  # V=1 of the host that is attacked
    acp: dict[str, IPv6Address]  # all other addresses in the ACP

    def sources(self) -> list[IPv6Address]:
        """The attacker's own addresses, and those of others that he forges."""
        own = [IPv6Address(text) for text in ATTACKER.values()]
        return [*own, self.wire.address, self.acp["n1 V=0"], self.acp["n3 V=1"], self.acp["n2 V=0"], self.own]

    def targets(self) -> list[IPv6Address]:
        """All addresses of the ACP."""
        return [self.own, *self.acp.values()]

    def guard(self, name: str) -> int:
        """How many packets the guard has refused."""
        return counter(self.host, name)


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The scene, with the data plane of n2 set up as its operator might have."""
    with standing_lab("line:3", "door", tmp_path_factory.mktemp("labs")) as lab:
        wire = lab.attacker("attacker", "n2", "data0")
        host = lab.host("n2")
        for name, address in HOST.items():
            run("ip", "-n", host.name, "addr", "add", f"{address}/64", "dev", "data0", "nodad")
            run("ip", "-n", wire.where.name, "addr", "add", f"{ATTACKER[name]}/64", "dev", "wire0", "nodad")
        found = {node: lab.status(node) for node in ("n1", "n2", "n3")}
        acp = {f"{node} V=0": IPv6Address(status["node"]["address"]) for node, status in found.items()}
        acp |= {f"{node} V=1": IPv6Address(status["acp0"]["address"]) for node, status in found.items()}
        own = acp.pop("n2 V=1")
        prefix = IPv6Network(found["n2"]["acp0"]["prefix"])
        gateway = HOST["unique local"]
        run("ip", "-n", wire.where.name, "route", "add", str(prefix), "via", gateway, "dev", "wire0")
        mac = run("ip", "-n", host.name, "-o", "link", "show", "data0").split("link/ether ")[1].split()[0]
        assert all(address in prefix for address in (own, *acp.values()))
        yield Scene(lab, host, lab.inside("n2"), wire, mac, prefix, own, acp)


class Listeners:
    """TCP and UDP services on all addresses of a host, as it may well have."""

    def __init__(self, where: Namespace) -> None:
        with where.entered():
            self.tcp = socket.create_server(("::", OPEN), family=socket.AF_INET6)
            self.udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            self.udp.bind(("::", OPEN))

    def reached(self, seconds: float = 0.0) -> list[str]:
        """Return which of them somebody has reached; what came by UDP is taken."""
        readable, _, _ = select.select([self.tcp, self.udp], [], [], seconds)
        if self.udp in readable:
            self.udp.recv(1500)
        return ["tcp" if sock is self.tcp else "udp" for sock in readable]

    def __enter__(self) -> Listeners:
        return self

    def __exit__(self, *exc: object) -> None:
        self.tcp.close()
        self.udp.close()


@contextmanager
def forwarding(host: Namespace, value: int) -> Iterator[None]:
    """Have the host forward IPv6, or not."""
    with host.entered():
        namespace.write_sysctls({"ipv6/conf/all/forwarding": value})
    yield
    with host.entered():
        namespace.write_sysctls({"ipv6/conf/all/forwarding": 0})


def probes(source: IPv6Address, target: IPv6Address) -> list[bytes]:
    """Return packets each of which makes a host that receives it answer, or hand something to a service."""
    return [
        tools.echo_request(source, target),
        tools.tcp_syn(source, target, (FROM, OPEN)),
        tools.tcp_syn(source, target, (FROM, CLOSED)),
        tools.udp(source, target, (FROM, OPEN), b"knock"),
        tools.udp(source, target, (FROM, CLOSED), b"knock"),
    ]


def without_discovery(packets: list[Packet]) -> list[str]:
    """Return, readable, what was received and is neither neighbour discovery nor MLD."""
    harmless = {130, 131, 132, 133, 134, 135, 136, 143}
    return [str(packet) for packet in packets if not packet.outgoing and packet.icmp_type not in harmless]


def knock(scene: Scene) -> int:
    """Send every probe from every source to every address; return how many packets that were."""
    packets = [
        packet
        for source, target in product(scene.sources(), scene.targets())
        for packet in probes(source, target)
    ]
    for packet in packets:
        scene.wire.send(scene.mac, packet)
    return len(packets)


def check_shut(scene: Scene, services: Listeners) -> None:
    """Knock, and check that there was no answer, that nothing came in, and that the guard has seen it all."""
    with Wire(scene.inside, "host0") as entrance:
        scene.wire.forget()
        before = scene.guard("refused_in")
        sent = knock(scene)
        assert without_discovery(scene.wire.heard(0.3)) == []
        assert without_discovery(entrance.heard(0.0)) == []
    assert services.reached() == []
    assert scene.guard("refused_in") == before + sent


@pytest.mark.parametrize("value", [0, 1], ids=["not forwarding", "forwarding"])
def test_a_neighbour_on_the_data_plane_reaches_nothing(scene: Scene, value: int) -> None:
    """
    covers: 6.10-1
    """
    with Listeners(scene.host) as services, forwarding(scene.host, value):
        check_shut(scene, services)
        # So that silence means something: the same services do answer on the data plane.
        own, host = IPv6Address(ATTACKER["global"]), IPv6Address(HOST["global"])
        for packet in probes(own, host):
            scene.wire.send(scene.mac, packet)
        answers = scene.wire.heard(0.3)
        assert {packet.tcp_flags & 0x17 for packet in answers if packet.kind == tools.TCP} >= {
            tools.SYN_ACK,
            tools.RST | 0x10,
        }
        assert services.reached(2) != []


def test_nothing_of_the_acp_leaves_by_the_data_plane(scene: Scene) -> None:
    """
    covers: 6.10-1
    """
    scene.wire.forget()
    before = scene.guard("refused_out")
    attempts = 0
    with scene.host.entered(), ExitStack() as stack:
        for device in (b"", b"data0\0"):
            datagram = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            raw = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6))
            for sock, port, message in ((datagram, OPEN, b"secret"), (raw, 0, b"\x80\0\0\0\x12\x34\0\1")):
                sock.bind((str(scene.own), 0))
                if device:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
                for target in ATTACKER.values():
                    attempts += 1
                    with pytest.raises(PermissionError):
                        sock.sendto(message, (target, port))
    assert scene.guard("refused_out") == before + attempts
    leaked = [packet for packet in scene.wire.heard(0.3) if packet.source in scene.prefix]
    assert leaked == []


def test_the_acp_takes_only_v1_from_the_host_and_gives_it_nothing_else(scene: Scene) -> None:
    """A packet of the host's with another source, or of a node to beyond the ACP, ends in the ACP.

    covers: 6.10-1
    """
    before = counter(scene.inside, "refused_from_host")
    with Listeners(scene.lab.host("n3")) as far, scene.host.entered(), udp_socket() as sock:
        sock.bind((HOST["global"], 0))
        sock.sendto(b"as the data plane", (str(scene.acp["n3 V=1"]), OPEN))
        assert far.reached(0.3) == []
    assert counter(scene.inside, "refused_from_host") > before
    scene.wire.forget()
    with forwarding(scene.host, 1):
        with scene.lab.inside("n1").entered(), udp_socket() as sock:
            for address in ATTACKER.values():
                with suppress(OSError):  # n1 may have no route to there: as good
                    sock.sendto(b"out of the ACP", (address, OPEN))
        assert without_discovery(scene.wire.heard(0.3)) == []


def udp_socket() -> socket.socket:
    return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)


@contextmanager
def without_guard(scene: Scene) -> Iterator[None]:
    """Kill the guard, with the process asleep that would tell the supervisor, so that acp0 stays."""
    processes = scene.lab.processes("n2")
    zygote, guard = processes["zygote"]["pid"], processes["guard"]["pid"]
    os.kill(zygote, signal.SIGSTOP)
    try:
        os.kill(guard, signal.SIGKILL)
        with scene.host.entered():
            until(lambda: "minerva_" not in run("nft", "list", "tables"), "the guard's table is gone")
        yield
    finally:
        os.kill(zygote, signal.SIGCONT)


def test_it_is_the_guard_that_keeps_the_door_shut(scene: Scene) -> None:
    """Without it, the same packets get in: to V=1, and through a forwarding host to other nodes."""
    old = scene.lab.processes("n2")["guard"]["pid"]
    stranger = IPv6Address(ATTACKER["global"])
    with (
        Listeners(scene.host) as services,
        Listeners(scene.lab.host("n3")) as far,
        without_guard(scene),
        forwarding(scene.host, 1),
    ):
        scene.wire.forget()
        for packet in probes(stranger, scene.own):
            scene.wire.send(scene.mac, packet)
        answers = [packet for packet in scene.wire.heard(0.5) if packet.source == scene.own]
        assert tools.ECHO_REPLY in {packet.icmp_type for packet in answers}
        assert tools.SYN_ACK in {packet.tcp_flags for packet in answers if packet.kind == tools.TCP}
        assert "udp" in services.reached(2)
        # In the name of the host, which the ACP takes packets from.
        scene.wire.send(scene.mac, tools.udp(scene.own, scene.acp["n3 V=1"], (FROM, OPEN), b"knock"))
        assert far.reached(2) == ["udp"]
    until(lambda: scene.lab.processes("n2")["guard"]["pid"] not in (None, old), "there is a new guard")
    until(lambda: scene.lab.status("n2")["acp0"]["guard"] == "in place", "it is in place")
    acp0 = ("ip", "-n", scene.host.name, "-6", "-o", "addr", "show")
    until(lambda: f"acp0    inet6 {scene.own}" in run(*acp0), "acp0 is back")
    with Listeners(scene.host) as services, forwarding(scene.host, 1):
        check_shut(scene, services)
