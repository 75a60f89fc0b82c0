"""A whole node and strongSwan on a wire: ESP in UDP from TUN to TUN, through rekeying, whoever begins."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any

import pytest

from minerva.ikev2.constants import ENCAPSULATION_PORT
from minerva.lab import nodes
from minerva.lab.nodes import LabNode
from minerva.linux import namespace
from minerva.linux.namespace import Namespace
from minerva.pki.ca import CertificateAuthority, Issued, write_node_directory
from tests.lab.attacker import ESP, UDP, Pings, Wire, run, until
from tests.strangers.strongswan import INNER_B, Charon, announce, require_strongswan, wire

pytestmark = pytest.mark.root

PORTS = (ENCAPSULATION_PORT, ENCAPSULATION_PORT)
LIFETIME = 8
RATE = 20.0
BURST = 60


@dataclass
class Scene:
    """A node on one end of a wire, charon on the other."""

    ours: Namespace
    theirs: Namespace
    charon: Charon
    node: LabNode
    issued: Issued  # to charon

    def status(self) -> dict[str, Any]:
        return self.node.ask("status") or {}

    def channel(self) -> dict[str, Any] | None:
        """The channel with charon, if it has keys."""
        return next((item for item in self.status().get("channels", []) if item.get("spi_out")), None)

    def begun(self, what: str) -> int:
        """How often the node has begun to replace the ``IKE`` or the ``child`` SA."""
        counters = self.status()["counters"]["abutment"]["a0"]["ike"]
        return int(counters.get(f"{what} SA: rekeying begun", 0))

    def start(self, mode: str, lifetime: int) -> None:
        """Start the node, with that lifetime of its SAs in seconds, and tell charon where it is."""
        self.node.run_dir.mkdir()
        self.node.config_file.write_text(
            f'[ports]\ninclude = ["a0"]\n[ike]\nudp_encapsulation = "{mode}"\n'
            f"ike_lifetime = {lifetime}\nchild_lifetime = {lifetime}\n"
        )
        self.node.start(self.ours, follow_us=True)

        def port_up() -> str | None:
            ports = [port for port in self.status().get("ports", []) if port["state"] == "up"]
            return ports[0]["link_local"] if ports else None

        self.charon.load(self.issued, address=IPv6Address(until(port_up, "the node has its port")))

    def meet(self, side: str) -> dict[str, Any]:
        """Have ``we`` or ``it`` begin; return the channel."""
        if side == "it":
            said = self.charon.begin("--initiate", "--child", "acp", "--timeout", "10").communicate()[0]
            assert "initiate completed successfully" in said, said
        else:
            until(self._announce, "the kernel has noticed that the wire is up")
        # The node begins at once, or after two seconds: by who has the lower address.
        return until(self.channel, "there is a channel")

    def _announce(self) -> bool:
        try:
            announce(self.theirs)
        except OSError:  # it does not route multicast yet
            return False
        return True


@pytest.fixture
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    require_strongswan()
    directory = tmp_path_factory.mktemp("node")
    authority = CertificateAuthority.create("acp.example.com", directory / "ca")
    node = LabNode("node", directory / "node")
    write_node_directory(node.state_dir, authority.issue(with_ip_san=True))
    with ExitStack() as stack:
        ours, theirs = stack.enter_context(wire())
        charon = Charon(theirs, directory)
        stack.callback(charon.stop)
        stack.callback(nodes.stop, [node])
        yield Scene(ours, theirs, charon, node, authority.issue(with_ip_san=True))
    assert not [name for name in namespace.names("minerva-test-") if f"-{os.getpid()}-" in name]


@dataclass
class Data:
    """Pings through the channel, from both ends at once, and what is on the wire meanwhile."""

    pings: tuple[Pings, Pings]
    wire: Wire
    sent: int = 0  # from each end

    def flow(self, until_done: Callable[[], bool], limit: float = 30.0) -> None:
        """Ping until ``until_done``, and a moment longer; all must be answered.

        But one: charon sends with new keys as soon as it has our answer, which may overtake them on their way
        to our data plane if the machine is busy.
        """
        deadline, last = time.monotonic() + limit, None
        while last is None or time.monotonic() < last:
            self.sent += 1
            for each in self.pings:
                each.send()
            time.sleep(1 / RATE)
            if last is None and until_done():
                last = time.monotonic() + 1.0
            assert time.monotonic() < deadline
        assert max(each.lost() for each in self.pings) <= 1
        for each in self.pings:
            each.forget()


@pytest.fixture
def data(scene: Scene) -> Iterator[Callable[[dict[str, Any]], Data]]:
    with ExitStack() as stack:

        def open_both(channel: dict[str, Any]) -> Data:
            """Route to charon's end of ``channel``: it speaks no RPL."""
            status = scene.status()
            inside, address = status["acp0"]["namespace"], status["node"]["address"]
            run("ip", "-n", inside, "route", "add", f"{INNER_B}/128", "dev", channel["interface"])
            where = Namespace(inside)
            stack.callback(where.close)
            there = stack.enter_context(Pings(where, address, str(INNER_B)))
            back = stack.enter_context(Pings(scene.theirs, str(INNER_B), address))
            for pings in (there, back):
                until(pings.reaches, "the other end answers")
                pings.forget()
            return Data((there, back), stack.enter_context(Wire(scene.theirs, "b0")))

        yield open_both


# --- the tests --------------------------------------------------------------------------------------------


def check_wire(data: Data) -> None:
    """Nothing but UDP between ports 4500 has passed, besides what finds neighbours."""
    heard = data.wire.heard(0.0)
    assert not [str(packet) for packet in heard if packet.kind == ESP]
    assert sum(packet.kind == UDP and packet.ports == PORTS for packet in heard) > 4 * data.sent


@pytest.mark.parametrize("side", ["we", "it"])
@pytest.mark.parametrize("mode", ["accept", "force"])
def test_data_both_ways_while_charon_replaces_keys(
    scene: Scene, data: Callable[[dict[str, Any]], Data], side: str, mode: str
) -> None:
    """charon wants ESP in UDP, so it is enough that the node accepts it.

    covers: 6.8.3.1.1-2, 6.8-rekey, 6.8.2-3
    """
    scene.start(mode, 3600)
    before = scene.meet(side)
    assert before["udp_encapsulation"] is True
    assert before["mtu"] == 1418
    passing = data(before)
    for kind in ("child", "ike", "child"):
        held = scene.channel()
        assert held is not None
        rekeying = scene.charon.begin("--rekey", f"--{kind}", "acp")
        passing.flow(lambda: rekeying.poll() is not None)  # noqa: B023
        said, _ = rekeying.communicate()
        assert "rekey completed successfully" in said, said
        now = scene.channel()
        assert now is not None
        assert now["channel"] == before["channel"]
        assert (now["spi_out"] != held["spi_out"]) is (kind == "child")
    check_wire(passing)
    channel = scene.channel()
    assert channel is not None
    # What routing says before there are keys, and what came before them.
    assert set(channel["drops"]) <= {"no_outbound_sa", "unknown_spi"}
    sas = scene.charon.sas()
    assert channel["spi_out"] in sas
    assert channel["spis_in"][-1] in sas


@pytest.mark.parametrize("side", ["we", "it"])
def test_data_both_ways_while_the_node_replaces_keys(
    scene: Scene, data: Callable[[dict[str, Any]], Data], side: str
) -> None:
    """Both kinds of SA, more than once.

    covers: 6.8-rekey, 6.8.2-3
    """
    scene.start("accept", LIFETIME)
    before = scene.meet(side)
    passing = data(before)
    passing.flow(lambda: min(map(scene.begun, ("IKE", "child"))) >= 2, 4 * LIFETIME)
    check_wire(passing)
    channel = scene.channel()
    assert channel is not None
    assert channel["channel"] == before["channel"]
    assert channel["spi_out"] != before["spi_out"]
    until(lambda: scene.charon.sas().count("ESTABLISHED") == 1, "charon has one IKE SA")


def test_what_the_node_sends_at_once_charon_takes_one_by_one(
    scene: Scene, data: Callable[[dict[str, Any]], Data]
) -> None:
    """A burst of equal packets, which the kernel cuts from one."""
    scene.start("accept", 3600)
    wire = data(scene.meet("it")).wire
    inside = Namespace(scene.status()["acp0"]["namespace"])
    with inside.entered():
        near = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    inside.close()
    with scene.theirs.entered():
        far = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with near, far:
        far.bind((str(INNER_B), 7))
        far.settimeout(5)
        near.connect((str(INNER_B), 7))
        wire.forget()
        packets = [number.to_bytes(4) * 100 for number in range(BURST)]
        # Meanwhile the data plane must not send them as they come.
        pid = next(item["pid"] for item in scene.status()["processes"] if item["name"] == "data-plane")
        os.kill(pid, signal.SIGSTOP)
        for packet in packets:
            near.send(packet)
        os.kill(pid, signal.SIGCONT)
        assert max(len(packet.data) for packet in wire.heard(1.0) if packet.kind == UDP) > 1000
        assert [far.recv(1000) for _ in packets] == packets


def test_without_it_they_do_not_come_together(scene: Scene) -> None:
    """By default the node has no ESP in UDP, and this charon has no other; both say so."""
    scene.start("off", 3600)
    said = scene.charon.begin("--initiate", "--child", "acp", "--timeout", "5").communicate()[0]
    assert "initiate failed" in said, said
    assert "failed to create SAD entry" in scene.charon.log() or "unable to install" in scene.charon.log()
