"""What passes on the links, from start-up to tear-down, as tshark sees it: without the keys and with them."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv6Address, IPv6Network
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import pytest

from minerva.grasp.constants import GRASP_LISTEN_PORT
from minerva.grasp.messages import Flood
from minerva.grasp.stream import MessageStream
from minerva.lab.lab import DOMAIN
from minerva.lab.network import namespace_prefix
from minerva.linux import namespace
from tests.lab import tshark
from tests.lab.conftest import lab_run, node_processes
from tests.lab.tshark import Frame, Witness

pytestmark = pytest.mark.root

# topology: its capture files, and how many nodes are on each segment
TOPOLOGIES = {
    "ring:3": {"n1-n2.pcap": 2, "n2-n3.pcap": 2, "n3-n1.pcap": 2},
    "line:3": {"n1-n2.pcap": 2, "n2-n3.pcap": 2},
    "lan:3": {"lan1.pcap": 3},
}
NODES = 3
PROFILE = {"esp_sa", "ikev2_decryption_table", "preferences"}

LINK_LOCAL = IPv6Network("fe80::/10")
ON_LINK_MULTICAST = IPv6Network("ff02::/16")
UNSPECIFIED = IPv6Address("::")
ALL_GRASP_NEIGHBORS = "ff02::13"
ALL_RPL_NODES = "ff02::1a"
INFINITE_RANK = 65535
MIN_HOP_RANK_INCREASE = 256
# Between its timestamp and its place in the capture's queue a frame can be overtaken on another processor.
CLOCK_RACE_SECONDS = 0.01

ALL_ON_A_LINK = {"ND", "MLD", "DULL GRASP", "IKE", "ESP"}

ROUTER_SOLICITATION, NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = "133", "135", "136"
UNREACHABLE, TIME_EXCEEDED, ECHO, ECHO_REPLY, MLD2_REPORT, RPL = "1", "3", "128", "129", "143", "155"

# What tshark warns of though nothing is wrong: it knows no acp-node-name, the first pings of a node that
# waits for the others are in vain, TCP sends again what a busy machine has acknowledged too late, and it
# resets what nobody needs any more.
HARMLESS = (
    "BER: Dissector for OID not implemented",
    "No response seen to ICMPv6 request",
    "D-SACK Sequence",
    "Duplicate ACK",
    "This frame is a (suspected)",
    "Connection reset (RST)",
)

ON_THE_WIRE = (
    "frame.time_epoch",
    "frame.protocols",
    "eth.src",
    "ipv6.src",
    "ipv6.dst",
    "ipv6.nxt",
    "udp.srcport",
    "udp.dstport",
    "icmpv6.type",
    "icmpv6.mldr.mar.multicast_address",
)


@dataclass(frozen=True)
class Captures:
    """What one ``minerva lab run`` left: files, and who can read them how."""

    found: dict[str, Any]  # what it printed
    directory: Path
    nodes: dict[str, int]  # on each segment, by its file
    without_keys: dict[str, Witness]
    with_keys: Witness  # all segments in one

    @cached_property
    def on_the_wire(self) -> dict[str, list[Frame]]:
        """Everything on each segment, without the keys."""
        return {file: link.frames("", *ON_THE_WIRE) for file, link in self.without_keys.items()}

    @cached_property
    def owners(self) -> dict[str, IPv6Address]:
        """The ACP address (V=0) behind each link-local address, as the node called itself in IKE_AUTH."""
        field = "isakmp.id.data.ipv6_addr"
        frames = self.with_keys.frames(field, "ipv6.src", field)
        return {frame["ipv6.src"][0]: IPv6Address(frame[field][0]) for frame in frames}

    @property
    def addresses(self) -> set[IPv6Address]:
        """The ACP addresses (V=0) of the nodes."""
        return set(self.owners.values())

    @property
    def prefix(self) -> IPv6Network:
        """The domain's /48."""
        return IPv6Network((min(self.addresses), 48), strict=False)

    @cached_property
    def dios(self) -> list[Frame]:
        """All DODAG Information Objects, in the order of time."""
        fields = ("icmpv6.rpl.dio.rank", "icmpv6.rpl.dio.dagid", "icmpv6.rpl.dio.version")
        frames = self.with_keys.frames(fields[0], "frame.time_epoch", "ipv6.src", "ipv6.dst", *fields)
        return sorted(frames, key=time_of)

    @cached_property
    def deletes(self) -> list[Frame]:
        """All messages with an IKE Delete payload."""
        fields = ("isakmp.delete.protoid", "isakmp.exchangetype", "isakmp.ispi")
        return self.with_keys.frames(fields[0], "frame.time_epoch", *fields)


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """Nothing to check after each test: they read files, and :func:`run` looks after its lab itself."""


def run(topology: str, *arguments: object) -> dict[str, Any]:
    """Run a lab that must succeed, and must leave nothing; skip without root or tshark."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    if not tshark.present():
        pytest.skip("needs tshark")
    name = f"captures-{os.getpid()}"
    standing = node_processes()
    try:
        found = lab_run(topology, "--name", name, *arguments)
    finally:
        left = namespace.names(namespace_prefix(name))
        for one in left:
            namespace.delete_name(one)
    assert found["exit_code"] == 0, found["stderr"]
    assert left == []
    assert [pid for pid, mine in node_processes().items() if mine and pid not in standing] == []
    return found


@pytest.fixture(scope="module", params=TOPOLOGIES)
def captures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Captures:
    """The captures of one run of a network, with its keys."""
    nodes = TOPOLOGIES[request.param]
    directory, stranger = tmp_path_factory.mktemp("captures"), tmp_path_factory.mktemp("stranger")
    found = run(request.param, "--pcap", directory, "--keylog")
    tshark.merge((directory / file for file in nodes), stranger / "all.pcap")
    options = (*tshark.reading_grasp(stranger), "-o", "esp.enable_authentication_check:TRUE")
    return Captures(
        found,
        directory,
        nodes,
        {file: Witness(directory / file, stranger) for file in nodes},
        Witness(stranger / "all.pcap", directory / "wireshark", options),
    )


def time_of(frame: Frame) -> float:
    return float(frame["frame.time_epoch"][0])


def rank_of(frame: Frame) -> int:
    return int(frame["icmpv6.rpl.dio.rank"][0])


def direction(frame: Frame) -> tuple[str, str]:
    """Return from which link-local address to which an ESP packet goes: one of a channel's two directions."""
    return frame["ipv6.src"][0], frame["ipv6.dst"][0]


def is_link_local(address: str) -> bool:
    return IPv6Address(address) in LINK_LOCAL


# --- the files ------------------------------------------------------------------------------------------


def test_one_file_a_link_and_a_profile(captures: Captures) -> None:
    assert {path.name for path in captures.directory.iterdir()} == {*captures.nodes, "wireshark"}
    profile = captures.directory / "wireshark"
    assert {path.name for path in profile.iterdir()} == PROFILE
    assert all(path.stat().st_size for path in profile.iterdir())


def test_the_keys_are_not_for_everybody(captures: Captures) -> None:
    profile = captures.directory / "wireshark"
    for path in (profile, profile / "esp_sa", profile / "ikev2_decryption_table"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, f"{path.name} has the mode {mode:o}"


def test_the_profile_alone_opens_a_capture(captures: Captures) -> None:
    """As the README says it: nothing but WIRESHARK_CONFIG_DIR and the file."""
    opened = []
    for file in captures.nodes:
        plain = Witness(captures.directory / file, captures.directory / "wireshark")
        opened += plain.frames("esp.protocol || isakmp.auth.method", "esp.protocol", "isakmp.auth.method")
        plain.none("esp && !esp.protocol", "isakmp.enc.data && !isakmp.enc.decrypted")
    assert any(frame["esp.protocol"] for frame in opened)
    assert any(frame["isakmp.auth.method"] for frame in opened)


def test_frames_are_in_the_order_of_time(captures: Captures) -> None:
    for file, frames in captures.on_the_wire.items():
        back = max(time_of(one) - time_of(following) for one, following in pairwise(frames))
        assert back < CLOCK_RACE_SECONDS, f"{file} goes back by {back:.6f} s"


def test_without_the_option_there_are_no_keys(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "folder"
    run("line:2", "--pcap", directory)
    assert [path.name for path in directory.iterdir()] == ["n1-n2.pcap"]
    link = Witness(directory / "n1-n2.pcap", tmp_path)
    assert {kind(frame) for frame in link.frames("", *ON_THE_WIRE)} == ALL_ON_A_LINK


# --- without the keys: what anybody on the link sees ------------------------------------------------------


def kind(frame: Frame) -> str:
    """Return what a frame is, one of ``ALL_ON_A_LINK``, or else what tshark takes it for."""
    protocol = frame["ipv6.nxt"][:1]
    if protocol == ["50"]:
        return "ESP"
    if protocol == ["17"]:
        if frame["udp.dstport"] == ["7017"] and frame["ipv6.dst"] == [ALL_GRASP_NEIGHBORS]:
            return "DULL GRASP"
        if frame["udp.srcport"] == frame["udp.dstport"] == ["500"]:
            return "IKE"
    if protocol == ["58"] and frame["icmpv6.type"][0] in (
        ROUTER_SOLICITATION,
        NEIGHBOUR_SOLICITATION,
        NEIGHBOUR_ADVERTISEMENT,
    ):
        return "ND"
    # MLD is behind a hop-by-hop header with a router alert.
    if protocol == ["0"] and frame["icmpv6.type"] == [MLD2_REPORT]:
        return "MLD"
    return str(frame)


def test_only_what_must_be_is_on_the_links(captures: Captures) -> None:
    """From before the first node starts until after the last one is gone; no errors, nothing in fragments.

    covers: 6.4-17
    """
    # The last link of a ring may still be without a channel when all reach each other over the others.
    everything = [frame for frames in captures.on_the_wire.values() for frame in frames]
    assert {kind(frame) for frame in everything} == ALL_ON_A_LINK
    for file, frames in captures.on_the_wire.items():
        for frame in frames:
            (source,), (destination,) = frame["ipv6.src"], frame["ipv6.dst"]
            assert is_link_local(source) or (source == "::" and kind(frame) in ("ND", "MLD")), frame
            assert is_link_local(destination) or IPv6Address(destination) in ON_LINK_MULTICAST, frame
        # Each node has an interface of its own there; the host's own one beside it is not silent, but speaks
        # neighbour discovery alone.
        nodes = {frame["eth.src"][0] for frame in frames if kind(frame) == "DULL GRASP"}
        assert len(nodes) == captures.nodes[file]
        for frame in frames:
            if frame["eth.src"][0] in nodes:
                assert frame["icmpv6.type"] != [ROUTER_SOLICITATION]
            else:
                assert kind(frame) in ("ND", "MLD")


def test_no_octet_of_the_acp_is_in_the_clear(captures: Captures) -> None:
    """The ACP's prefix is in every ACP packet and certificate: in binary, in hex, and with the domain."""
    prefix = captures.prefix.network_address.packed[:6]
    for file in captures.nodes:
        octets = (captures.directory / file).read_bytes()
        for secret in (prefix, prefix.hex().encode(), DOMAIN.encode()):
            assert secret not in octets
        for address in captures.addresses:
            assert str(address).encode() not in octets


def test_switches_that_snoop_learn_of_grasp(captures: Captures) -> None:
    """A report from the unspecified address does not count (RFC 3810 section 5.2.13).

    covers: 6.4-4
    """
    for frames in captures.on_the_wire.values():
        speakers = {frame["ipv6.src"][0] for frame in frames if kind(frame) == "DULL GRASP"}
        reported = {
            frame["ipv6.src"][0]
            for frame in frames
            if ALL_GRASP_NEIGHBORS in frame["icmpv6.mldr.mar.multicast_address"]
        }
        assert speakers <= reported


# --- with the keys: discovery, IKE, ESP -------------------------------------------------------------------


def test_nothing_is_malformed(captures: Captures) -> None:
    captures.with_keys.none(
        "_ws.malformed",
        f"_ws.expert.severity >= {tshark.ERROR}",
        "icmpv6 && !(icmpv6.checksum.status == 1)",
        "esp && !(esp.icv_good == 1)",
        "udp.port == 7017 && !cbor",
    )
    message = "_ws.expert.message"
    for frame in captures.with_keys.frames(f"_ws.expert.severity >= {tshark.WARNING}", message):
        assert all(one.startswith(HARMLESS) for one in frame[message]), frame


def test_announcements(captures: Captures) -> None:
    """Of 6.4-9 this shows the ttl; it does not wait a minute for the period. UDP carries floods only: no
    M_DISCOVERY, whose answers would have to come to the same port.

    covers: 6.4-8, 6.4-9, 6.4-10, 6.4-12, 6.4-15, 6.4-17, 6.8.3-1, G2.8.4-2, G2.8.11-1
    """
    numbers, strings, octets = "cbor.type.uint", "cbor.type.textstring", "cbor.type.bytestring"
    items, types = "cbor.item.items", "cbor.item.major_type"
    frames = captures.with_keys.frames(
        "cbor", numbers, strings, octets, items, types, "ipv6.src", "frame.len"
    )
    sessions = []
    for frame in frames:
        # [M_FLOOD, session-id, initiator, ttl, [["AN_ACP", F_SYNCH, loop-count, "IKEv2"], []]]
        message, session, ttl, flags, loop_count = frame[numbers]
        assert (message, ttl, flags, loop_count) == ("9", "210000", "4", "1")
        assert frame[strings] == ["AN_ACP", "IKEv2"]
        (initiator,) = frame[octets]
        assert IPv6Address(bytes.fromhex(initiator)) == IPv6Address(frame["ipv6.src"][0])
        assert frame[types] == ["4", "0", "0", "2", "0", "4", "4", "3", "0", "0", "3", "4"]
        assert frame[items] == ["5", "2", "4", "0"], "the arrays; that of the locator is empty"
        assert int(frame["frame.len"][0]) <= 1280
        sessions.append(int(session))
    assert len(frames) >= NODES
    assert len(set(sessions)) == len(sessions), "every flood is a session of its own"
    assert 0 not in sessions


def test_ike_sa_init(captures: Captures) -> None:
    """
    covers: 6.8.2-3, 6.8.2-4, 6.8.3.1.2-6, 6.8.3.1.2-7
    """
    cipher, size, group = "isakmp.tf.id.encr", "isakmp.ike2.attr.key_length", "isakmp.tf.id.dh"
    exchange, hashes = "isakmp.key_exchange.dh_group", "isakmp.notify.data.signature_hash_algorithms"
    whose, public = ("isakmp.ispi", "ipv6.src"), "isakmp.key_exchange.data"
    frames = captures.with_keys.frames(
        "isakmp.exchangetype == 34", cipher, size, group, exchange, hashes, public, *whose
    )
    assert len(frames) >= 2 * captures.found["channels"]
    for frame in frames:
        assert frame[cipher][0] == "20", "AES-GCM with an ICV of 16 octets"
        assert set(frame[cipher]) <= {"20", "28"}, "or else ChaCha20-Poly1305"
        assert set(frame[size]) == {"256"}
        assert "19" in frame[group]
        assert frame[exchange] == ["19"]
        assert {"2", "4"} <= set(frame[hashes]), "SHA2-256 and SHA2-512 (RFC 7427 section 4)"
    ephemeral = {tuple(frame[field][0] for field in whose): frame[public][0] for frame in frames}
    assert len(set(ephemeral.values())) == len(ephemeral), "a new key for every SA at either end"


def test_no_packet_before_the_channel_is_decided_on(captures: Captures) -> None:
    """With one protocol there is: what authenticates is used. Until then neither end sends anything by it.

    covers: 6.6-7
    """
    first: dict[str, dict[frozenset[str], float]] = {}
    for what, condition in (
        ("answer", "isakmp.exchangetype == 35 && isakmp.flag_r == 1"),
        ("esp", "esp"),
    ):
        frames = sorted(
            captures.with_keys.frames(condition, "frame.time_epoch", "ipv6.src", "ipv6.dst"), key=time_of
        )
        for frame in frames:
            # The outer addresses; inside of ESP there are others.
            pair = frozenset((frame["ipv6.src"][0], frame["ipv6.dst"][0]))
            first.setdefault(what, {}).setdefault(pair, time_of(frame))
    assert len(first["esp"]) == captures.found["channels"]
    for pair, sent in first["esp"].items():
        assert sent > first["answer"][pair] - CLOCK_RACE_SECONDS


def test_ike_auth(captures: Captures) -> None:
    """
    covers: 6.8.2-2, 6.8.2-4, 6.8.3.1-3, 6.8.3.1.1-2, 6.8.3.1.2-2, 6.8.3.1.2-5, 6.8.3.1.2-6
    """
    fields = ["ispi", "typepayload", "id.type", "id.data.ipv6_addr", "cert.encoding", "auth.method"]
    fields += ["prop.protoid", "tf.id.encr", "ike2.attr.key_length", "ts.type", "ts.protoid"]
    fields += ["ts.start_port", "ts.end_port", "ts.start_ipv6", "ts.end_ipv6"]
    # Of a message in fragments (RFC 7383), only the frame with the last one shows what is in it.
    condition = "isakmp.exchangetype == 35 && isakmp.auth.method"
    frames = captures.with_keys.frames(condition, *(f"isakmp.{field}" for field in fields))
    chains = captures.with_keys.octets(condition, "isakmp.cert.data")
    ends: dict[str, set[str]] = {}
    for frame, chain in zip(frames, chains, strict=True):
        found = {field: frame[f"isakmp.{field}"] for field in fields}
        assert found["id.type"] == ["5"], "ID_IPV6_ADDR"
        (address,) = found["id.data.ipv6_addr"]
        assert found["cert.encoding"] == ["4", "4"], "X.509 Certificate - Signature: the node's, the anchor's"
        assert f"{IPv6Address(address).packed.hex()}@{DOMAIN}".encode() in chain[0]
        assert found["auth.method"] == ["14"], "Digital Signature"
        assert found["prop.protoid"] == ["3"], "ESP"
        assert (found["tf.id.encr"], found["ike2.attr.key_length"]) == (["20"], ["256"])
        assert {"44", "45"} <= set(found["typepayload"]), "TSi and TSr"
        assert found["ts.type"] == ["8", "8"], "TS_IPV6_ADDR_RANGE"
        assert found["ts.protoid"] == ["0", "0"]
        assert (found["ts.start_port"], found["ts.end_port"]) == (["0", "0"], ["65535", "65535"])
        assert [IPv6Address(one) for one in found["ts.start_ipv6"]] == [UNSPECIFIED] * 2
        assert [IPv6Address(one) for one in found["ts.end_ipv6"]] == [IPv6Address(2**128 - 1)] * 2
        ends.setdefault(found["ispi"][0], set()).add(address)
    both = [addresses for addresses in ends.values() if len(addresses) == 2]
    assert len(both) >= captures.found["channels"], "both ends of every channel"
    assert len(captures.addresses) == NODES


def test_esp_is_a_tunnel_between_link_local_addresses(captures: Captures) -> None:
    """
    covers: 6.8.3.1-1, 6.8.5-1, 6.9.1-2
    """
    frames = captures.with_keys.frames("esp", "esp.protocol", "ipv6.src", "ipv6.dst", "ipv6.version")
    assert frames
    for frame in frames:
        assert [int(number, 0) for number in frame["esp.protocol"]] == [41], frame
        assert frame["ipv6.version"][:2] == ["6", "6"]
        outer, inner = frame["ipv6.src"][:2]
        outer_target, inner_target = frame["ipv6.dst"][:2]
        assert is_link_local(outer)
        assert is_link_local(outer_target)
        assert inner != outer
        assert IPv6Address(inner) in captures.prefix or is_link_local(inner)
        assert (
            IPv6Address(inner_target) in captures.prefix
            or is_link_local(inner_target)
            or IPv6Address(inner_target) in ON_LINK_MULTICAST
        )


def test_all_pairs_of_hosts_ping_through_the_tunnels(captures: Captures) -> None:
    pairs = set(permutations([str(address + 1) for address in captures.addresses], 2))  # V=1
    assert len(pairs) == captures.found["pairs_total"]
    frames = captures.with_keys.frames("esp && icmpv6.echo.identifier", "ipv6.src", "ipv6.dst", "icmpv6.type")
    for kind_of_echo in (ECHO, ECHO_REPLY):
        of_kind = [frame for frame in frames if frame["icmpv6.type"] == [kind_of_echo]]
        assert {(frame["ipv6.src"][1], frame["ipv6.dst"][1]) for frame in of_kind} == pairs


def test_what_is_inside(captures: Captures) -> None:
    """RPL, GRASP, pings, errors and MLD: neither discovery nor any hop-by-hop or routing header of RPL.

    covers: 6.4-6, 6.12.1.1-1
    """
    captures.with_keys.none(
        "esp && udp",
        f"esp && tcp && !(tcp.port == {GRASP_LISTEN_PORT})",
        "ipv6.routing || ipv6.fraghdr || ipv6.dstopts",
        "ipv6.opt.type == 0x63 || ipv6.opt.type == 0x23",
        f"ipv6.hopopts && !(icmpv6.type == {MLD2_REPORT})",
    )
    frames = captures.with_keys.frames("esp && icmpv6", "icmpv6.type")
    types = {frame["icmpv6.type"][0] for frame in frames}
    assert {RPL, ECHO, ECHO_REPLY} <= types
    assert types <= {RPL, ECHO, ECHO_REPLY, MLD2_REPORT, UNREACHABLE, TIME_EXCEEDED}


def test_grasp_is_flooded_from_neighbour_to_neighbour(captures: Captures) -> None:
    """Plain TCP between link-local addresses, each flood once in a direction, never back where it came from.

    covers: 6.9.2-6, 6.9.2-7, 6.9.2-8, G2.5.6.2-5
    """
    condition = "esp && tcp.len > 0 && !tcp.analysis.retransmission"
    frames = captures.with_keys.frames(condition, "ipv6.src", "ipv6.dst", "tcp.dstport", "tcp.srcport")
    payloads = captures.with_keys.octets(condition, "tcp.payload")
    seen: Counter[tuple[str, str, int]] = Counter()
    initiators = set()
    for frame, (payload, *_) in zip(frames, payloads, strict=True):
        source, target = frame["ipv6.src"][1], frame["ipv6.dst"][1]
        assert is_link_local(source)
        assert is_link_local(target)
        assert str(GRASP_LISTEN_PORT) in (frame["tcp.dstport"][0], frame["tcp.srcport"][0])
        for flood in floods_in(payload):
            seen[source, target, flood.session_id] += 1
            # Where there are two ways, both ends of a link may send it before either has heard the other.
            if captures.found["topology"].startswith("line"):
                assert (target, source, flood.session_id) not in seen, "it went back to where it came from"
            assert flood.initiator in captures.addresses
            initiators.add(flood.initiator)
    assert initiators == captures.addresses
    assert set(seen.values()) == {1}


def floods_in(data: bytes) -> list[Flood]:
    """Return the messages of a TCP segment, which are all floods."""
    messages = [message for _, message in MessageStream().feed(data)]
    floods = [message for message in messages if isinstance(message, Flood)]
    assert floods == messages
    return floods


def test_no_nonce_is_used_twice(captures: Captures) -> None:
    """A key that meets an IV again betrays AES-GCM; every direction of every SA has a key of its own."""
    keys = {}
    for line in (captures.directory / "wireshark" / "esp_sa").read_text().splitlines():
        _, source, destination, spi, _, key, _, _ = (field.strip('"') for field in line.split(","))
        assert len(bytes.fromhex(key.removeprefix("0x"))) == 32 + 4, "key and salt"
        keys[source, destination, int(spi, 0)] = key
    assert len(set(keys.values())) == len(keys) >= 2 * captures.found["channels"]
    used: dict[str, Counter[tuple[str, str]]] = {"esp.iv": Counter(), "esp.sequence": Counter()}
    for frame in captures.with_keys.frames("esp", "ipv6.src", "ipv6.dst", "esp.spi", *used):
        key = keys[frame["ipv6.src"][0], frame["ipv6.dst"][0], int(frame["esp.spi"][0], 0)]
        for field, counter in used.items():
            counter[key, frame[field][0]] += 1
    assert all(set(counter.values()) == {1} for counter in used.values())
    assert "0" not in {sequence for _, sequence in used["esp.sequence"]}


def test_every_channel_ends_with_a_delete(captures: Captures) -> None:
    """Encrypted, and for the IKE SA with all that is below it; what comes after is judged as all before."""
    for frame in captures.deletes:
        assert frame["isakmp.exchangetype"] == ["37"], "INFORMATIONAL"
        assert frame["isakmp.delete.protoid"] == ["1"], "IKE"
    ended = {frame["isakmp.ispi"][0] for frame in captures.deletes}
    assert len(ended) >= captures.found["channels"]
    first = min(map(time_of, captures.deletes))
    after = [frame for frames in captures.on_the_wire.values() for frame in frames if time_of(frame) > first]
    assert after, "the capture goes on after the goodbye"
    assert {kind(frame) for frame in after} <= ALL_ON_A_LINK


# --- with the keys: RPL -----------------------------------------------------------------------------------


def test_rpl(captures: Captures) -> None:
    """
    covers: 6.12.1.2-1, 6.12.1.3-1, 6.12.1.6-1, 6.12.1.8/9/10, R9.1
    """
    code = "icmpv6.code"
    frames = captures.with_keys.frames(
        f"icmpv6.type == {RPL}", code, "ipv6.src", "ipv6.dst", "frame.protocols"
    )
    assert {frame[code][0] for frame in frames} == {"0", "1", "2", "3"}, "DIS, DIO, DAO, DAO-ACK, insecure"
    for frame in frames:
        assert "esp" in frame["frame.protocols"][0].split(":")
        assert is_link_local(frame["ipv6.src"][1])
        target = frame["ipv6.dst"][1]
        assert is_link_local(target) or (target == ALL_RPL_NODES and frame[code][0] in ("0", "1"))
    captures.with_keys.none(
        *(f"icmpv6.rpl.{message}.instance != 0" for message in ("dio", "dao", "daoack")),
        "icmpv6.rpl.dio.flag.mop != 2",
        "icmpv6.rpl.opt.config.ocp != 0",
        f"icmpv6.rpl.opt.config.min_hop_rank_inc != {MIN_HOP_RANK_INCREASE}",
        "icmpv6.rpl.opt.type == 2",  # a metric container
    )


def test_all_are_in_one_dodag(captures: Captures) -> None:
    """
    covers: 6.12.1.2-1, 6.12.1.6-1, R8.1-2
    """
    for frame in captures.dios:
        rank = rank_of(frame)
        assert rank == INFINITE_RANK or (rank > 0 and rank % MIN_HOP_RANK_INCREASE == 0)
        assert IPv6Address(frame["icmpv6.rpl.dio.dagid"][0]) in captures.addresses
    assert ALL_RPL_NODES in {frame["ipv6.dst"][1] for frame in captures.dios}
    # The goodbye begins with the first Delete, or with a rank of infinity that is the last word on a channel.
    last_words = {direction(frame): frame for frame in captures.dios}
    poisons = [time_of(frame) for frame in last_words.values() if rank_of(frame) == INFINITE_RANK]
    end = min(poisons + [time_of(frame) for frame in captures.deletes])
    settled = {
        direction(frame): frame
        for frame in captures.dios
        if time_of(frame) < end and rank_of(frame) != INFINITE_RANK
    }
    assert {captures.owners[source] for source, _ in settled} == captures.addresses
    (dodagid,) = {frame["icmpv6.rpl.dio.dagid"][0] for frame in settled.values()}
    assert len({frame["icmpv6.rpl.dio.version"][0] for frame in settled.values()}) == 1
    roots = {source for (source, _), frame in settled.items() if rank_of(frame) == MIN_HOP_RANK_INCREASE}
    assert {captures.owners[source] for source in roots} == {IPv6Address(dodagid)}


def test_destination_advertisements(captures: Captures) -> None:
    """
    covers: 6.12.1.4-1, R9.1, R9.3, R9.4
    """
    names = ("target.prefix", "target.prefix_length", "type", "length", "transit.pathlifetime")
    prefix, prefix_length, option, length, lifetime = (f"icmpv6.rpl.opt.{name}" for name in names)
    sequence = "icmpv6.rpl.dao.sequence"
    daos = captures.with_keys.frames(
        sequence, sequence, prefix, prefix_length, option, length, lifetime, "ipv6.src", "ipv6.dst"
    )
    for frame in daos:
        assert set(frame[prefix_length]) == {"127"}
        # Groups of RPL Targets with whole addresses, each followed by Transit Information for all of them,
        # without a parent's address.
        assert re.fullmatch("(5+6)+", "".join(frame[option])), frame
        assert {("5", "18"), ("6", "4")} == set(zip(frame[option], frame[length], strict=True))
    captures.with_keys.none(
        # A node that leaves, and takes back what it advertised, does not wait for an answer.
        "icmpv6.rpl.dao.flag.k == 0 && icmpv6.rpl.opt.transit.pathlifetime > 0",
        "icmpv6.rpl.dao.flag.d == 1",
        "icmpv6.rpl.opt.transit.pathctl == 0",
    )
    acknowledged = "icmpv6.rpl.daoack.sequence"
    status = "icmpv6.rpl.daoack.status"
    answers = captures.with_keys.frames(acknowledged, acknowledged, status, "ipv6.src", "ipv6.dst")
    assert {frame[status][0] for frame in answers} == {"0"}, "all are accepted"
    answered = {(frame["ipv6.dst"][1], frame["ipv6.src"][1], frame[acknowledged][0]) for frame in answers}
    asked = {(frame["ipv6.src"][1], frame["ipv6.dst"][1], frame[sequence][0]): frame for frame in daos}
    assert answered <= asked.keys()
    reached = [asked[key] for key in answered if set(asked[key][lifetime]) != {"0"}]
    targets = {IPv6Address(target) for frame in reached for target in frame[prefix]}
    assert targets <= captures.addresses
    assert len(targets) >= NODES - 1, "all but the root"
