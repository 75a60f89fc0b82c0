"""strongSwan with the ESP of its kernel as the neighbour of a whole node, on each of the two data planes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from minerva.connect import control
from minerva.core.errors import UsageError
from minerva.linux.icmp import EchoSocket
from minerva.linux.namespace import Namespace
from minerva.pki.ca import CertificateAuthority, write_node_directory
from tests.kernel.conftest import ip, sas
from tests.lab.attacker import until
from tests.strangers.strongswan import IF_ID, Charon, announce, require_strongswan, wire

pytestmark = [pytest.mark.root, pytest.mark.kernel]

INSIDE = IPv6Address("fe80::b0b")
"""charon's own address inside the channel."""

LIFETIME = 12


@dataclass
class Scene:
    """A node on one end of a wire, charon on the other, and ``inside``, the namespace of its interface."""

    plane: str
    in_udp: bool
    directory: Path
    theirs: Namespace
    inside: Namespace
    charon: Charon
    stack: ExitStack

    def status(self) -> dict[str, Any]:
        """What ``minerva status --json`` prints."""
        return control.call(self.directory / "run" / "control.sock", {"command": "status"})

    def port_up(self) -> Any:
        """Return the port once it is up."""
        try:
            ports = self.status()["ports"]
        except (UsageError, OSError):
            return None
        return next((port for port in ports if port["name"] == "a0" and port["state"] == "up"), None)

    def channel(self) -> dict[str, Any] | None:
        """Return the channel with charon, if it has keys."""
        return next((item for item in self.status()["channels"] if item.get("spi_out")), None)

    def begun(self, what: str) -> int:
        """Return how often the node has begun to replace the ``IKE`` or ``child`` SA."""
        return self.status()["counters"]["abutment"]["a0"]["ike"].get(f"{what} SA: rekeying begun", 0)  # type: ignore[no-any-return]  # JSON


@dataclass
class Probe:
    """Pings through the channel, from both ends at once."""

    scene: Scene
    stack: ExitStack
    ends: list[tuple[EchoSocket, IPv6Address, int]] = field(default_factory=list)
    sent: int = 0
    answered: int = 0

    def __post_init__(self) -> None:
        channel = self.scene.channel()
        assert channel is not None
        ours = IPv6Address(channel["inner_link_local"])
        acp = Namespace(self.scene.status()["acp0"]["namespace"])
        self.stack.callback(acp.close)
        for where, device, source, destination in (
            (acp, channel["interface"], ours, INSIDE),
            (self.scene.inside, "acp", INSIDE, ours),
        ):
            index = int(ip(where.name, "-o", "link", "show", "dev", device).split(":")[0])
            with where.entered():
                sock = EchoSocket(source, scope=index)
            self.stack.callback(sock.close)
            self.ends.append((sock, destination, index))

    def send(self, size: int = 0) -> None:
        """Send one from each end, and take what has come back."""
        self.sent += 1
        for sock, destination, index in self.ends:
            sock.send(destination, 1, self.sent & 0xFFFF, bytes(size), scope=index)
        self.take()

    def take(self) -> None:
        """Count what has come back."""
        self.answered += sum(len(sock.receive()) for sock, _, _ in self.ends)

    def lost(self) -> int:
        """Wait for what is under way; return how many were not answered."""
        deadline = time.monotonic() + 3.0
        while self.answered < 2 * self.sent and time.monotonic() < deadline:
            time.sleep(0.02)
            self.take()
        return 2 * self.sent - self.answered


WAYS = {"kernel": ("kernel", False), "user": ("user", False), "in UDP": ("kernel", True)}
"""The node's data plane, and whether charon wants ESP in UDP."""


@pytest.fixture(scope="module", params=WAYS)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    require_strongswan()
    directory = tmp_path_factory.mktemp("strongswan")
    authority = CertificateAuthority.create("acp.example.com", directory / "ca")
    ours, its = (authority.issue(with_ip_san=True) for _ in range(2))
    write_node_directory(directory / "node", ours)
    plane, in_udp = WAYS[request.param]
    (directory / "minerva.toml").write_text(
        f'data_plane = "{plane}"\n[ports]\ninclude = ["a0"]\n'
        f"[ike]\nike_lifetime = {LIFETIME}\nchild_lifetime = {LIFETIME}\n"
        f'udp_encapsulation = "{"accept" if in_udp else "off"}"\n'
    )
    with ExitStack() as stack:
        host, theirs = stack.enter_context(wire())
        inside = Namespace.create(f"minerva-test-{os.getpid()}-ike-inside")
        stack.callback(inside.delete)
        # Where the outer addresses are, a second link with link-local addresses would take their packets.
        ip(theirs.name, "link", "add", "acp", "type", "xfrm", "if_id", str(IF_ID))
        ip(theirs.name, "link", "set", "acp", "netns", inside.name)
        ip(inside.name, "link", "set", "acp", "mtu", "1426", "addrgenmode", "none")
        ip(inside.name, "addr", "add", f"{INSIDE}/64", "dev", "acp", "nodad")
        ip(inside.name, "link", "set", "acp", "up")
        charon = Charon(theirs, directory, kernel_esp=True)
        stack.callback(charon.stop)
        command = [sys.executable, "-m", "minerva", "connect", "--state-dir", str(directory / "node")]
        command += ["--run-dir", str(directory / "run"), "--config", str(directory / "minerva.toml")]
        with host.entered(), (directory / "log").open("wb") as log:
            process = subprocess.Popen(command, stderr=log)
        stack.callback(process.wait, 20)
        stack.callback(process.terminate)
        made = Scene(plane, in_udp, directory, theirs, inside, charon, stack)
        port = until(made.port_up, "the port is up", seconds=30)
        charon.load(its, address=IPv6Address(port["link_local"]), encap=in_udp)
        until(lambda: [announce(theirs), time.sleep(1), made.channel()][-1], "there is a channel", seconds=40)
        yield made


@pytest.fixture
def probe(scene: Scene) -> Iterator[Probe]:
    with ExitStack() as stack:
        yield Probe(scene, stack)


def test_data_passes_both_ways(scene: Scene, probe: Probe) -> None:
    """Under the two SAs that both ends show, in UDP if charon wants that, up to the largest packet.

    covers: 6.8.3.1-1, 6.8.3.1.1-2, 6.13.3-1
    """
    assert scene.status()["node"]["data_plane"] == scene.plane
    channel = scene.channel()
    assert channel is not None
    assert channel["udp_encapsulation"] is scene.in_udp
    for size in (0, 100, channel["mtu"] - 48):
        probe.send(size)
    assert probe.lost() == 0
    held = {sa.spi: sa for sa in sas(scene.theirs.name)}
    assert {channel["spi_out"], channel["spis_in"][-1]} <= set(held)
    for spi in (channel["spi_out"], channel["spis_in"][-1]):
        assert "mode tunnel" in held[spi].text
        assert f"if_id {IF_ID:#x}" in held[spi].text
        assert ("encap type espinudp sport 4500 dport 4500" in held[spi].text) is scene.in_udp


@pytest.mark.parametrize("what", ["child", "ike"])
def test_charon_replaces_keys(scene: Scene, probe: Probe, what: str) -> None:
    """
    covers: 6.8-rekey, 6.8.2-3
    """
    before = scene.channel()
    assert before is not None
    rekeying = scene.charon.begin("--rekey", f"--{what}", "acp")
    deadline = time.monotonic() + 15
    while rekeying.poll() is None and time.monotonic() < deadline:
        probe.send()
        time.sleep(0.05)
    output, _ = rekeying.communicate()
    assert "rekey completed successfully" in output, output
    for _ in range(40):
        probe.send()
        time.sleep(0.05)
    assert probe.lost() == 0, f"{probe.lost()} of {2 * probe.sent} were lost"
    after = scene.channel()
    assert after is not None
    assert after["channel"] == before["channel"]
    if what == "child":
        assert after["spi_out"] != before["spi_out"]


def test_we_replace_keys(scene: Scene, probe: Probe) -> None:
    """Both kinds, again and again; charon keeps no more SAs than are in use.

    covers: 6.8-rekey, 6.8.2-3
    """
    before = scene.channel()
    assert before is not None
    begun = {what: scene.begun(what) for what in ("IKE", "child")}
    started = time.monotonic()
    while time.monotonic() < started + 2.5 * LIFETIME:
        probe.send()
        time.sleep(0.1)
    assert probe.lost() == 0, f"{probe.lost()} of {2 * probe.sent} were lost"
    after = scene.channel()
    assert after is not None
    assert after["channel"] == before["channel"]
    for what, count in begun.items():
        assert scene.begun(what) >= count + 2, f"the {what} SA has not been replaced by us"
    until(lambda: len(sas(scene.theirs.name)) == 2, "charon's kernel has the two SAs that are in use")
    assert scene.charon.sas().count("ESTABLISHED") == 1
    assert json.dumps(scene.status()).count('"connections": 1') == 1
