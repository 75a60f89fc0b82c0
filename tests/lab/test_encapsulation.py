"""ESP in UDP (RFC 3948): who has it with whom, what is on the wire then, and what strangers can do to it."""

from __future__ import annotations

import os
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from minerva.ikev2.constants import ENCAPSULATION_PORT, IKE_PORT, ExchangeType, Flag
from minerva.ikev2.encapsulation import NON_ESP_MARKER
from minerva.ikev2.message import Header, encode_message
from minerva.linux.firewall import MARKED_IKE_PORT
from tests.lab import attacker as tools
from tests.lab import tshark
from tests.lab.attacker import (
    ESP,
    UDP,
    Pings,
    StandingLab,
    Wire,
    kill_and_start,
    standing_lab,
    until,
)
from tests.lab.conftest import lab_run
from tests.lab.tshark import Witness

pytestmark = pytest.mark.root

SETTINGS = {"a": "force", "b": "force", "c": "accept", "d": "off"}
LINKS = {("a", "b"): True, ("b", "c"): True, ("c", "d"): False, ("d", "a"): False}
"""Who is linked with whom, and whether their ESP goes in UDP."""

PORTS = (ENCAPSULATION_PORT, ENCAPSULATION_PORT)
SECONDS, RATE = 10.0, 10.0
PACKETS, BATCH = 5_000, 250


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The labs look themselves whether something of them stays."""


# --- on the wire ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """What passed on one link, with the keys; ``in_udp`` is what it should be."""

    witness: Witness
    in_udp: bool


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Link]:
    """Four nodes that are set differently, from start-up to tear-down."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    if not tshark.present():
        pytest.skip("needs tshark")
    directory = tmp_path_factory.mktemp("captures")
    lines = [f"links = {[list(link) for link in LINKS]}"]
    for node, mode in SETTINGS.items():
        lines += [f"[nodes.{node}.ike]", f'udp_encapsulation = "{mode}"']
    (directory / "ring.toml").write_text("\n".join(lines))
    found = lab_run(directory / "ring.toml", "--name", f"udp-{os.getpid()}", "--pcap", directory, "--keylog")
    assert found["exit_code"] == 0, found["stderr"]
    options = ("-o", "esp.enable_authentication_check:TRUE")
    return {
        link: Link(Witness(directory / f"{'-'.join(link)}.pcap", directory / "wireshark", options), in_udp)
        for link, in_udp in LINKS.items()
    }


@pytest.mark.parametrize("which", LINKS, ids="-".join)
def test_who_has_it_with_whom(ring: dict[tuple[str, str], Link], which: tuple[str, str]) -> None:
    """Only where both can and one wants it; and then nothing but IKE_SA_INIT is anywhere else."""
    link = ring[which]
    esp = link.witness.frames("esp", "udp.dstport", "esp.icv_good", "esp.protocol", "udp.checksum")
    assert len(esp) > 10, "RPL alone is more"
    link.witness.none("esp && !(esp.icv_good == 1)", "esp.protocol && esp.protocol != 41")
    if link.in_udp:
        assert {tuple(frame["udp.dstport"][:1]) for frame in esp} == {(str(ENCAPSULATION_PORT),)}
        assert not [frame for frame in esp if int(frame["udp.checksum"][0], 16) == 0]
        init = "isakmp.exchangetype == 34"
        link.witness.none(f"isakmp && udp.port == {IKE_PORT} && !({init})", f"udp.port == {MARKED_IKE_PORT}")
        assert link.witness.frames(f"isakmp && udp.port == {ENCAPSULATION_PORT} && isakmp.exchangetype == 35")
        assert link.witness.frames(f"isakmp && udp.port == {IKE_PORT} && {init}")
    else:
        assert not [frame for frame in esp if frame["udp.dstport"][:1] == [str(ENCAPSULATION_PORT)]]
        link.witness.none(f"udp.port == {ENCAPSULATION_PORT}")


def test_no_keepalive_is_sent(ring: dict[tuple[str, str], Link]) -> None:
    """Nothing on a link would forget a mapping."""
    for link in ring.values():
        link.witness.none("udpencap.nat_keepalive", "udp.length == 9")


# --- while it stands ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    directory = tmp_path_factory.mktemp("labs")
    lines = ['links = [["a", "b"]]']
    for node in "ab":
        lines += [f"[nodes.{node}.ike]", 'udp_encapsulation = "force"']
        lines += ["ike_lifetime = 3", "child_lifetime = 3"]
    (directory / "pair.toml").write_text("\n".join(lines))
    with standing_lab(str(directory / "pair.toml"), "udp", directory) as found:
        yield found


@pytest.fixture
def pings(lab: StandingLab) -> Iterator[Pings]:
    """From a to b, which answers."""
    ends = [lab.status(node)["acp0"]["address"] for node in "ab"]
    with Pings(lab.host("a"), *ends) as found:
        until(found.reaches, "b answers")
        found.forget()
        yield found


def test_status_says_so_and_the_channel_is_narrower(lab: StandingLab) -> None:
    """By the eight bytes of UDP.

    covers: 6.13.3-1
    """
    for node, other in ("ab", "ba"):
        channel = lab.channel(node, other)
        assert channel["udp_encapsulation"] is True
        assert channel["mtu"] == 1418


def test_keys_are_replaced_and_nobody_notices(lab: StandingLab, pings: Pings) -> None:
    """
    covers: 6.8-rekey
    """
    channels = {node: lab.channels(node) for node in "ab"}
    seen: dict[str, set[str]] = {"a": set(), "b": set()}
    with Wire(lab.host("a"), "eth0") as wire:
        started = time.monotonic()
        while time.monotonic() < started + SECONDS:
            pings.send()
            time.sleep(1 / RATE)
            for node, other in ("ab", "ba"):
                seen[node].add(lab.channel(node, other)["spi_out"])
        lost = pings.lost()
        heard = wire.heard(0.0)
    assert lost == 0
    assert pings.sent > SECONDS * RATE / 8
    assert {node: lab.channels(node) for node in "ab"} == channels
    assert all(len(spis) >= 3 for spis in seen.values()), "the SAs have not been replaced"
    assert not [str(packet) for packet in heard if packet.kind == ESP]
    assert {packet.ports for packet in heard if packet.kind == UDP and IKE_PORT in packet.ports} == set()
    assert sum(packet.kind == UDP and packet.ports == PORTS for packet in heard) > 2 * pings.sent


def test_the_largest_packet_of_a_channel_fits_into_the_link(lab: StandingLab) -> None:
    """And is one frame, of the whole length but for what alignment costs."""
    address = lab.status("b")["acp0"]["address"]
    data = bytes(lab.channel("a", "b")["mtu"] - 40 - 8)
    with lab.host("a").entered():
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with sock, Wire(lab.host("a"), "eth0") as wire:
        sock.sendto(data, (address, 9))
        largest = max(len(packet.data) for packet in wire.heard(0.5) if packet.kind == UDP)
    assert 1500 - 40 - 3 <= largest <= 1500 - 40


@dataclass
class Attack:
    """An attacker on the link, who can speak as a: what b must not mind."""

    lab: StandingLab
    wire: Wire
    a: IPv6Address
    b: IPv6Address
    mac: str
    pings: Pings
    chance: random.Random

    def send(self, payload: bytes, source: IPv6Address | None = None, ports: tuple[int, int] = PORTS) -> None:
        self.wire.send(self.mac, tools.udp(source or self.a, self.b, ports, payload))

    def flood(self, payloads: Iterator[bytes], *, stranger: bool = False) -> float:
        """Send all, at a rate that the pings survive; return the time that b's processes needed for it."""
        before = self.cpu()
        for batch in tools.batches(payloads, BATCH):
            for payload in batch:
                self.send(payload, tools.random_link_local(self.chance) if stranger else None)
            self.pings.send()
            time.sleep(0.05)
        assert self.pings.lost() == 0
        return self.cpu() - before

    def cpu(self) -> float:
        """The processor time, in seconds, of those of b's processes that strangers can reach."""
        processes = self.lab.processes("b")
        files = (Path(f"/proc/{processes[name]['pid']}/schedstat") for name in ("abutment", "data-plane"))
        return sum(int(file.read_text().split()[0]) for file in files) / 1e9

    def ike(self) -> Counter[str]:
        return Counter(self.lab.status("b")["counters"]["abutment"]["eth0"]["ike"])

    def drops(self) -> Counter[str]:
        return Counter(self.lab.channel("b", "a")["drops"])

    def refused(self) -> int:
        return int(self.lab.port("b")["firewall"]["refused_in"])


@pytest.fixture
def attack(lab: StandingLab, pings: Pings) -> Iterator[Attack]:
    """The scene; afterwards all is as it was."""
    channels = {node: lab.channels(node) for node in "ab"}
    processes = lab.processes("b")
    addresses = [IPv6Address(lab.port(node)["link_local"]) for node in "ab"]
    with Wire(lab.host("a"), "eth0") as wire:
        yield Attack(lab, wire, *addresses, lab.port("b")["mac"], pings, random.Random(4500))
    assert {node: lab.channels(node) for node in "ab"} == channels
    assert {name: item["pid"] for name, item in lab.processes("b").items()} == {
        name: item["pid"] for name, item in processes.items()
    }


@pytest.mark.parametrize("payload", [b"\xff", b"", b"\0\0\0"], ids=["keepalive", "empty", "short"])
def test_what_is_neither_ike_nor_esp_reaches_no_process(attack: Attack, payload: bytes) -> None:
    refused, ike, drops = attack.refused(), attack.ike(), attack.drops()
    spent = attack.flood(payload for _ in range(PACKETS))
    assert attack.refused() - refused >= PACKETS
    assert attack.drops() == drops
    assert not {name for name in attack.ike() - ike if "4500" in name or "malformed" in name}
    assert spent < 0.5, "the channel itself needs less"


def test_nor_does_what_is_not_between_the_two_ports(attack: Attack) -> None:
    """And nobody outside has to do with the port where the marked messages are heard."""
    refused = attack.refused()
    for ports in ((1024, ENCAPSULATION_PORT), (ENCAPSULATION_PORT, MARKED_IKE_PORT), (IKE_PORT, 4502)):
        for payload in (NON_ESP_MARKER + bytes(28), attack.chance.randbytes(60)):
            attack.send(payload, ports=ports)
    until(lambda: attack.refused() - refused >= 6, "all are refused")


def test_garbage_with_the_marker_is_counted(attack: Attack) -> None:
    """Down to the SPIs: what does not even have those is refused by the firewall."""
    before, chance = attack.ike(), attack.chance
    attack.flood(NON_ESP_MARKER + chance.randbytes(chance.choice((16, 20, 28, 200))) for _ in range(PACKETS))
    counted = attack.ike() - before
    for reason in ("malformed message", "other IKE version"):
        assert counted[reason] > PACKETS / 10, counted
    # Of what says that it is a first message of IKE only so much is let in, as on port 500.
    assert counted.total() > PACKETS / 2


def test_first_messages_have_the_limits_of_port_500(attack: Attack) -> None:
    """They share them."""

    def over_limit() -> int:
        return int(attack.lab.port("b")["firewall"]["attempts_over_limit"])

    first = NON_ESP_MARKER + attack.chance.randbytes(8) + bytes(8) + attack.chance.randbytes(12)
    before, counted = attack.ike(), over_limit()
    attack.flood((first for _ in range(PACKETS)), stranger=True)
    assert over_limit() - counted > PACKETS / 2
    assert (attack.ike() - before).total() < PACKETS / 2


def test_attempts_of_one_address_are_limited_too(attack: Attack) -> None:
    """What the kernel lets in, the abutment answers six times a minute, on port 4500 as on 500."""

    def not_answered() -> int:
        return int(attack.lab.status("b")["counters"]["abutment"]["attempts_not_answered"])

    stranger, before = tools.random_link_local(attack.chance), not_answered()
    for _ in range(10):
        header = Header(attack.chance.randbytes(8), bytes(8), ExchangeType.IKE_SA_INIT, Flag.INITIATOR, 0)
        attack.send(NON_ESP_MARKER + encode_message(header, ()), stranger)
        time.sleep(0.1)  # below the limit for all strangers, which others may just have used up
    until(lambda: not_answered() - before == 4, "four are too many")


def test_garbage_as_esp_is_counted(attack: Attack) -> None:
    """In the name of the neighbour; that of a stranger finds no socket."""
    before, chance = attack.drops(), attack.chance
    attack.flood(b"\1" + chance.randbytes(chance.choice((4, 40, 400))) for _ in range(PACKETS))
    counted = attack.drops() - before
    assert counted["unknown_spi"] > PACKETS / 2
    assert counted["short"] > PACKETS / 5
    before = attack.drops()
    spent = attack.flood((b"\1" + chance.randbytes(60) for _ in range(PACKETS)), stranger=True)
    assert attack.drops() == before
    assert spent < 0.5


# --- a neighbour that is set otherwise ------------------------------------------------------------------


def set_to(lab: StandingLab, node: str, mode: str) -> None:
    """Start a node that is killed again with another setting."""
    file = lab.directory / "nodes" / node / "minerva.toml"
    text = file.read_text()
    changed = re.sub(r'("udp_encapsulation" = )"\w+"', rf'\1"{mode}"', text)
    assert changed != text
    file.write_text(changed)
    kill_and_start(lab, node)


def test_the_channel_follows_a_neighbour_that_changes_its_mind(lab: StandingLab) -> None:
    """While the other end has the old one up: a channel has one way, so there is another channel."""
    ends = [lab.status(node)["acp0"]["address"] for node in "ba"]
    for mode, in_udp in (("off", False), ("accept", True)):
        (before,) = lab.channels("b")
        set_to(lab, "a", mode)
        with Pings(lab.host("b"), *ends) as pings:
            until(pings.reaches, "a is reached again")
            for node, other in ("ab", "ba"):
                assert lab.channel(node, other)["udp_encapsulation"] is in_udp
                assert lab.channel(node, other)["mtu"] == (1418 if in_udp else 1426)
            (after,) = lab.channels("b")
            assert after != before
            until(lambda: lab.channel("b", "a")["connections"] == 1, "the old connection is gone")
            pings.forget()
            for _ in range(20):
                pings.send()
                time.sleep(0.05)
            assert pings.lost() == 0
