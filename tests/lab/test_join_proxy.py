"""A pledge on a link of a node gets through the node, and the ACP, to a registrar: and to nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from minerva.asa import Asa
from minerva.asa.services import join_registrar
from minerva.connect.join_proxy import BYTES_PER_SECOND, MAX_PER_PEER, PROXY_PORTS
from minerva.grasp.announcement import Announcement, AnnouncementError, read_announcements
from minerva.grasp.constants import AN_PROXY, GRASP_LISTEN_PORT, TransportProto
from minerva.linux import sockets
from minerva.linux.firewall import PROXY_MARK
from minerva.linux.namespace import Namespace
from minerva.pki.ca import CertificateAuthority
from tests.lab import attacker as tools
from tests.lab.attacker import Pings, StandingLab, Wire, counter, neighbours, standing_lab, until
from tests.lab.grasp import api

pytestmark = pytest.mark.root

PORT, OTHER_PORT, TLS_PORT, CLOSED_PORT = 8443, 9443, 10_443, 11_443
LONG = 3_600_000
SHORT = 2_000
FLOOD = 20_000


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


class Echo:
    """A program on a machine that says back what it is told, over TCP or TLS, after a name of its own."""

    def __init__(
        self,
        where: Namespace,
        address: IPv6Address,
        port: int,
        name: bytes,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        with where.entered():
            self._listener = socket.create_server((str(address), port), family=socket.AF_INET6, backlog=64)
        self._name = name
        self._tls = tls
        self.peers: list[str] = []
        self.open: set[socket.socket] = set()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                sock, peer = self._listener.accept()
            except OSError:
                return
            self.peers.append(peer[0])
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        self.open.add(sock)
        # Of those who only look whether it is there, nothing comes.
        with contextlib.suppress(OSError):
            stream = self._tls.wrap_socket(sock, server_side=True) if self._tls else sock
            data = stream.recv(65_536)
            if data:
                stream.sendall(self._name)
            while data:
                stream.sendall(data)
                data = stream.recv(65_536)
            stream.close()
        self.open.discard(sock)
        sock.close()

    def close(self) -> None:
        """As when its process is killed."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self.open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@dataclass
class Scene:
    """A line of three; registrars on n1, a pledge on a link of n3."""

    lab: StandingLab
    wire: Wire
    port: dict[str, Any]  # of n3, to the pledge
    registrar: IPv6Address
    tls: ssl.SSLContext
    echoes: list[Echo] = field(default_factory=list)

    @property
    def address(self) -> IPv6Address:
        return IPv6Address(self.port["link_local"])

    def run(self, port: int, name: bytes = b"registrar ", tls: ssl.SSLContext | None = None) -> Echo:
        echo = Echo(self.lab.host("n1"), self.registrar, port, name, tls)
        self.echoes.append(echo)
        return echo

    def flood(self, port: int, ttl: int, variation: str = "EST-TLS") -> None:
        """Announce a registrar on n1, as the program that is it does."""

        async def work() -> None:
            async with Asa.connect(f"registrar {time.monotonic_ns()}", api(self.lab, "n1")) as asa:
                announced = join_registrar(self.registrar, port, variation)
                await asa.register_objective(announced.objective, overlap=True)
                await asa.flood(ttl, announced)

        asyncio.run(work())

    def proxy(self, node: str = "n3") -> dict[str, Any]:
        found = self.lab.status(node)["proxy"]
        assert isinstance(found, dict)
        return found

    def offers(self, node: str = "n3", port: str = "eth9") -> dict[str, int]:
        """The TCP port for each variation."""
        offers = self.proxy(node).get("offers", {}).get(port, [])
        return {item["variation"]: item["tcp_port"] for item in offers}

    def connect(self, tcp_port: int = PROXY_PORTS[0]) -> socket.socket:
        """Connect as a pledge."""
        with self.wire.where.entered():
            sock = socket.socket(socket.AF_INET6)
        sock.settimeout(5.0)
        sock.connect((str(self.address), tcp_port, 0, self.wire.index))
        return sock

    def answers(self, tcp_port: int) -> list[tools.Packet]:
        """What comes of an attempt to connect, from the node, in a second and a half."""
        self.wire.forget()
        source = (40_000 + random.randrange(10_000), tcp_port)
        self.wire.send(self.port["mac"], tools.tcp_syn(self.wire.address, self.address, source))
        return [
            packet
            for packet in self.wire.heard(1.5)
            if packet.mac == self.port["mac"] and packet.kind == tools.TCP
        ]

    def end(self) -> None:
        """Let all registrars go, and all announcements."""
        for echo in self.echoes:
            echo.close()
        self.echoes.clear()

        def quiet() -> bool:
            # More than once: a message can be lost with a connection of GRASP that has just broken.
            for item in self.proxy()["registrars"]:
                self.flood(item["port"], 1, item["variation"] or "EST-TLS")
            time.sleep(0.3)
            return not self.proxy()["registrars"] and not self.offers()

        until(quiet, "nothing is offered")


def contexts(lab: StandingLab, directory: Path) -> ssl.SSLContext:
    """Return what a TLS server needs; which versions, a test says."""
    issued = CertificateAuthority.open(lab.directory / "ca").issue()
    assert issued.private_key is not None
    key = issued.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "server.pem").write_bytes(key + issued.certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    return context


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The lab, for the whole module."""
    with standing_lab("line:3", "proxy", tmp_path_factory.mktemp("labs")) as lab:
        wire = lab.attacker("pledge", "n3", "eth9")
        until(
            lambda: any(
                port["name"] == "eth9" and port["state"] == "up" for port in lab.status("n3")["ports"]
            ),
            "the port to the pledge is up",
        )
        registrar = IPv6Address(lab.status("n1")["acp0"]["address"])
        tls = contexts(lab, tmp_path_factory.mktemp("tls"))
        yield Scene(lab, wire, lab.port("n3", "eth9"), registrar, tls)


@pytest.fixture
def scene(standing: Scene) -> Iterator[Scene]:
    """The scene, without registrars before and after."""
    yield standing
    standing.end()


def exchange(sock: socket.socket, data: bytes, name: bytes = b"registrar ") -> None:
    """Say something, end the sentence, and hear all of it again after the registrar's name."""
    sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
    sender.start()
    heard = b""
    while piece := sock.recv(65_536):
        heard += piece
    sender.join()
    assert heard == name + data


def announcements(packets: list[tools.Packet]) -> dict[Announcement, int]:
    """What was announced, with the time to live in milliseconds."""
    found = {}
    for packet in packets:
        if packet.kind == tools.UDP and packet.ports[1] == GRASP_LISTEN_PORT and not packet.outgoing:
            with contextlib.suppress(AnnouncementError):
                ttl, items = read_announcements(packet.data[8:], packet.source)
                found |= dict.fromkeys(items, ttl)
    return found


def test_a_pledge_reaches_the_registrar_and_only_while_there_is_one(scene: Scene) -> None:
    """
    covers: JP-1, JP-2, JP-3, JP-5, JP-6, JP-8
    """
    assert scene.offers() == {}
    assert scene.answers(PROXY_PORTS[0]) == []
    echo = scene.run(PORT)
    scene.wire.forget()
    began = time.monotonic()
    scene.flood(PORT, LONG)
    offered = Announcement(AN_PROXY, "", TransportProto.IPPROTO_TCP, PROXY_PORTS[0])
    found: dict[Announcement, int] = {}

    def heard() -> bool:
        found.update(announcements(scene.wire.heard(0.0)))
        return offered in found

    until(heard, "AN_Proxy is heard")
    print(f"AN_Proxy heard {time.monotonic() - began:.3f} s after the registrar's first announcement")
    assert found[offered] == 180_000
    with scene.connect() as sock:
        exchange(sock, os.urandom(300_000))
    # From the node's own address across the ACP.
    address = scene.lab.status("n3")["node"]["address"]
    assert address in echo.peers
    assert set(echo.peers) == {scene.lab.status(node)["node"]["address"] for node in ("n1", "n2", "n3")}
    proxy = scene.proxy()
    assert [(item["port"], item["state"], item["in_use"]) for item in proxy["registrars"]] == [
        (PORT, "usable", True)
    ]
    until(lambda: scene.proxy()["counters"]["active"] == 0, "the connection has ended")
    counters = scene.proxy()["counters"]
    assert counters["accepted"] == 1
    assert counters["bytes_up"] == 300_000
    assert counters["ended"] == {"closed": 1}
    # The node with the registrar is the root, and proxies too.
    assert scene.offers("n1", "eth0") == {"": PROXY_PORTS[0]}
    until(
        lambda: (
            {scene.lab.status(node)["rpl"]["dodag_id"] for node in ("n1", "n2", "n3")}
            == {scene.lab.status("n1")["node"]["address"]}
        ),
        "n1 is the root",
    )
    assert scene.lab.status("n1")["rpl"]["root_preference"] == 3
    # Its last announcement runs out. That the neighbours still believe each other's AN_Proxy changes nothing.
    scene.flood(PORT, SHORT)
    until(lambda: not scene.offers(), "the offer ends")
    scene.wire.forget()
    assert scene.answers(PROXY_PORTS[0]) == []
    assert all(not scene.proxy(node)["registrars"] for node in ("n1", "n2", "n3"))
    until(lambda: scene.lab.status("n1")["rpl"]["root_preference"] == 1, "n1 is a node like others")


def test_no_other_transport_and_nobody_else_is_let_in(scene: Scene) -> None:
    """A scan of the link finds the one TCP port; from elsewhere not even that.

    covers: JP-4, JP-5
    """
    scene.run(PORT)
    scene.flood(PORT, LONG)
    until(scene.offers, "it is offered")
    assert {packet.tcp_flags for packet in scene.answers(PROXY_PORTS[0])} <= {tools.SYN_ACK, tools.RST}
    assert scene.answers(PROXY_PORTS[0])
    for port in (*PROXY_PORTS[1:], 22, 443, PORT, GRASP_LISTEN_PORT):
        assert scene.answers(port) == []
    scene.wire.forget()
    global_source = IPv6Address("2001:db8::7")
    for source, target in ((global_source, scene.address), (scene.wire.address, scene.registrar)):
        packet = tools.tcp_syn(source, target, (40_001, PROXY_PORTS[0]))
        scene.wire.send(scene.port["mac"], packet)
        scene.wire.send(scene.port["mac"], tools.udp(source, target, (40_001, PROXY_PORTS[0]), b"?"))
    assert [
        packet
        for packet in scene.wire.heard(1.0)
        if packet.mac == scene.port["mac"] and packet.kind in (tools.TCP, tools.UNREACHABLE)
    ] == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_of_any_version_passes_unread(scene: Scene, version: ssl.TLSVersion) -> None:
    """
    covers: JP-1
    """
    scene.tls.minimum_version = scene.tls.maximum_version = version
    scene.run(TLS_PORT, tls=scene.tls)
    scene.flood(TLS_PORT, LONG)
    until(scene.offers, "it is offered")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.minimum_version = client.maximum_version = version
    with scene.connect() as sock, client.wrap_socket(sock) as tls:
        assert tls.version() == {ssl.TLSVersion.TLSv1_2: "TLSv1.2"}.get(version, "TLSv1.3")
        tls.sendall(b"who are you?")
        heard = b""
        while len(heard) < 22:
            heard += tls.recv(100)
        assert heard == b"registrar who are you?"


def test_another_variation_goes_to_its_own_registrar(scene: Scene) -> None:
    """
    covers: JP-4
    """
    scene.run(PORT)
    scene.run(OTHER_PORT, b"another ")
    scene.flood(PORT, LONG)
    scene.flood(OTHER_PORT, LONG, "something new")
    until(lambda: len(scene.offers()) == 2, "both are offered")
    with scene.connect(scene.offers()["something new"]) as sock:
        exchange(sock, b"x" * 1000, b"another ")
    with scene.connect(scene.offers()[""]) as sock:
        exchange(sock, b"x" * 1000)


def test_when_one_registrar_is_killed_the_other_is_used(scene: Scene) -> None:
    """
    covers: JP-6
    """
    echoes = {PORT: scene.run(PORT, b"first "), OTHER_PORT: scene.run(OTHER_PORT, b"second ")}
    for port in echoes:
        scene.flood(port, LONG)
    until(lambda: len(scene.proxy()["registrars"]) == 2 and scene.offers(), "both are known")

    def talk(name: bytes) -> float:
        began = time.monotonic()
        with scene.connect() as sock:
            exchange(sock, b"hello", name)
        return time.monotonic() - began

    used = next(item["port"] for item in scene.proxy()["registrars"] if item["in_use"])
    names = {PORT: b"first ", OTHER_PORT: b"second "}
    other = OTHER_PORT if used == PORT else PORT
    talk(names[used])
    under_way = scene.connect()
    under_way.sendall(b"x")
    assert under_way.recv(100)
    echoes[used].close()
    with contextlib.suppress(ConnectionResetError):
        while under_way.recv(100):
            pass
    under_way.close()
    print(f"the first connection after a registrar was killed took {talk(names[other]):.3f} s")
    assert scene.offers()
    # It is back, but for a while only the second choice.
    back = scene.run(used, b"back again ")
    talk(names[other])
    echoes[other].close()
    talk(b"back again ")
    back.close()
    with scene.connect() as sock:
        sock.sendall(b"x")
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""  # it is let in for a moment, but nobody is there for it
    until(lambda: not scene.offers(), "nothing is offered while none can be reached", seconds=5.0)
    scene.run(other, b"back too ")
    until(scene.offers, "one that is back is found", seconds=10.0)
    talk(b"back too ")


def test_a_crowd_and_idlers(scene: Scene) -> None:
    """One peer has its share of connections, and the node is unharmed by all that it does with them.

    covers: JP-6
    """
    scene.run(PORT)
    scene.flood(PORT, LONG)
    until(scene.offers, "it is offered")
    idle = [scene.connect() for _ in range(MAX_PER_PEER)]
    time.sleep(0.3)
    for _ in range(4):
        idle.append(scene.connect())
        time.sleep(0.6)  # the firewall's limit for one peer
    assert scene.proxy()["counters"]["active"] <= MAX_PER_PEER
    assert scene.proxy()["counters"]["ended"].get("gave way", 0) >= 4
    time.sleep(3.0)
    with scene.connect() as sock:
        exchange(sock, b"all the same")
    for sock in idle:
        sock.close()


def test_a_flood_of_connections_harms_nobody_else(scene: Scene) -> None:
    """From one address and from many: channels, pings across the node and other pledges do not suffer.

    covers: JP-6
    """
    scene.run(PORT)
    scene.flood(PORT, LONG)
    until(scene.offers, "it is offered")
    channels = {node: scene.lab.channels(node) for node in ("n1", "n2", "n3")}
    processes = scene.lab.processes("n3")
    chance = random.Random(8995)
    ends = [scene.lab.status(node)["acp0"]["address"] for node in ("n1", "n3")]
    link = scene.lab.link("n3", "eth9")
    with Pings(scene.lab.host("n1"), *ends) as pings:
        for many in (False, True):
            for number in range(FLOOD):
                source = tools.random_link_local(chance) if many else scene.wire.address
                ports = (chance.randrange(1024, 65_536), PROXY_PORTS[0])
                scene.wire.send(scene.port["mac"], tools.tcp_syn(source, scene.address, ports))
                if number % 500 == 0:
                    pings.send()
                    time.sleep(0.05)
            assert neighbours(link) < 400
            time.sleep(4.0)
            with scene.connect() as sock:
                exchange(sock, b"let me in")
        assert pings.lost() == 0
    assert counter(link, "proxy_syns_over_limit") > FLOOD
    assert {node: scene.lab.channels(node) for node in channels} == channels
    now = scene.lab.processes("n3")
    assert {name: item["pid"] for name, item in now.items()} == {
        name: item["pid"] for name, item in processes.items()
    }


@pytest.mark.parametrize("size", [1, 16_384])
def test_a_flood_of_bytes_harms_nobody_else(scene: Scene, size: int) -> None:
    """One peer sends and hears as much as it can, in pieces large and small, on all its connections.

    covers: JP-6
    """
    scene.run(PORT)
    scene.flood(PORT, LONG)
    until(scene.offers, "it is offered")
    pid = scene.lab.processes("n3")["abutment"]["pid"]
    ends = [scene.lab.status(node)["acp0"]["address"] for node in ("n1", "n3")]
    before = scene.proxy()["counters"]
    socks = [scene.connect() for _ in range(MAX_PER_PEER)]
    stop = threading.Event()

    def push(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                sock.send(bytes(size))

    def pull(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while sock.recv(65_536):
                pass

    threads = [threading.Thread(target=work, args=(sock,)) for sock in socks for work in (push, pull)]
    for sock in socks:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(1.0)
    with Pings(scene.lab.host("n1"), *ends) as pings:
        for thread in threads:
            thread.start()
        began, used = time.monotonic(), cpu_seconds(pid)
        while time.monotonic() - began < 5.0:
            pings.send()
            time.sleep(0.1)
        seconds = time.monotonic() - began
        used = cpu_seconds(pid) - used
        after = scene.proxy()["counters"]
        stop.set()
        for thread in threads:
            thread.join()
        assert pings.lost() == 0
    for sock in socks:
        sock.close()
    moved = sum(after[name] - before[name] for name in ("bytes_up", "bytes_down")) / seconds
    print(f"pieces of {size}: {moved / 2**20:.2f} MiB/s through the proxy, {used / seconds:.0%} of a core")
    assert moved < 1.2 * BYTES_PER_SECOND
    assert used / seconds < 0.4


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def test_the_sockets_of_the_proxy_lead_to_registrars_only(scene: Scene) -> None:
    """What the process that meets strangers holds is of no use for anything else in the ACP."""
    scene.run(PORT)
    scene.run(CLOSED_PORT, b"not for strangers ")
    scene.flood(PORT, LONG)
    until(scene.offers, "it is offered")
    inside = scene.lab.inside("n3")
    source = IPv6Address(scene.lab.status("n3")["node"]["address"])
    for port, reached in ((PORT, True), (CLOSED_PORT, False)):
        before = counter(inside, "refused_from_proxy")
        with inside.entered():
            sock = sockets.proxy_socket(source, PROXY_MARK)
        sock.settimeout(1.5)
        with sock:
            if reached:
                sock.connect((str(scene.registrar), port))
            else:
                with pytest.raises(OSError):
                    sock.connect((str(scene.registrar), port))
        assert (counter(inside, "refused_from_proxy") > before) is not reached
    # Without the mark it is a program of the node's like any other.
    with inside.entered():
        sock = sockets.tcp_socket(source)
    sock.settimeout(5.0)
    with sock:
        sock.connect((str(scene.registrar), CLOSED_PORT))


def test_an_abutment_that_is_started_again_offers_again(scene: Scene) -> None:
    """And what was open is closed meanwhile."""
    scene.run(PORT)
    scene.flood(PORT, LONG)
    until(scene.offers, "it is offered")
    pid = scene.lab.processes("n3")["abutment"]["pid"]
    with scene.connect() as sock:
        sock.sendall(b"x")
        sock.recv(100)
        os.kill(pid, 9)
        until(lambda: scene.lab.processes("n3")["abutment"]["pid"] not in (None, pid), "it runs again")
        sock.settimeout(3.0)
        with contextlib.suppress(OSError):
            while sock.recv(100):
                pass
    until(scene.offers, "it is offered again")
    with scene.connect() as sock:
        exchange(sock, b"hello again")
    until(lambda: len(scene.lab.channels("n2")) == 2, "the channels are back", seconds=40)
