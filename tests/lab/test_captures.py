"""What passes on the links, from start-up to tear-down, as tshark sees it: without the keys and with them."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv6Address, IPv6Network
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from minerva.lab.lab import DOMAIN
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
ROUTER_SOLICITATION = "133"
ALL_ON_A_LINK = {"ND", "MLD", "DULL GRASP", "IKE", "ESP"}

# What tshark warns of though nothing is wrong: it knows no acp-node-name, and the first pings of a node that
# waits for the others are in vain.
HARMLESS = ("BER: Dissector for OID not implemented", "No response seen to ICMPv6 request")


@dataclass(frozen=True)
class Captures:
    """The captures of one ``minerva lab run``."""

    topology: str
    found: dict[str, Any]
    directory: Path
    without_keys: dict[str, Witness]
    with_keys: dict[str, Witness]

    def frames(self, condition: str, *fields: str) -> list[Frame]:
        """Return what ``condition`` selects on all links, with the keys."""
        return [frame for link in self.with_keys.values() for frame in link.frames(condition, *fields)]

    @cached_property
    def addresses(self) -> set[IPv6Address]:
        """The ACP addresses (V=0) of the nodes, as they called themselves in IKE_AUTH."""
        return {IPv6Address(one["isakmp.id.data.ipv6_addr"][0]) for one in self.frames(*IKE_IDENTITY)}

    @property
    def prefix(self) -> IPv6Network:
        """The domain's /48."""
        return IPv6Network((min(self.addresses), 48), strict=False)

    @cached_property
    def end(self) -> float:
        """When the first node said goodbye, in seconds: an IKE Delete, or the last word of its RPL."""
        deletes = [time_of(frame) for frame in self.frames("isakmp.delete.protoid", "frame.time_epoch")]
        last_words: dict[str, Frame] = {}
        for frame in sorted(self.frames(*DIO), key=time_of):
            last_words[frame["ipv6.src"][1]] = frame
        poisons = [time_of(frame) for frame in last_words.values() if rank_of(frame) == INFINITE_RANK]
        return min(deletes + poisons)


IKE_IDENTITY = ("isakmp.id.type", "isakmp.id.data.ipv6_addr")
DIO = (
    "icmpv6.type == 155 && icmpv6.code == 1",
    "frame.time_epoch",
    "ipv6.src",
    "ipv6.dst",
    "icmpv6.rpl.dio.rank",
    "icmpv6.rpl.dio.dagid",
    "icmpv6.rpl.dio.version",
)


@pytest.fixture(scope="module", params=TOPOLOGIES)
def captures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captures]:
    """The captures of one run of a network, with its keys."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    if not tshark.present():
        pytest.skip("needs tshark")
    directory = tmp_path_factory.mktemp("captures")
    stranger = tmp_path_factory.mktemp("stranger")
    name = f"captures-{os.getpid()}"
    found = lab_run(request.param, "--name", name, "--pcap", directory, "--keylog")
    assert found["exit_code"] == 0, found["stderr"]
    assert namespace.names(f"lab-{name}-") == []
    assert not any(node_processes().values())
    profile = directory / "wireshark"
    options = (*tshark.reading_grasp(stranger), "-o", "esp.enable_authentication_check:TRUE")
    yield Captures(
        request.param,
        found,
        directory,
        {file: Witness(directory / file, stranger) for file in TOPOLOGIES[request.param]},
        {file: Witness(directory / file, profile, options) for file in TOPOLOGIES[request.param]},
    )


def time_of(frame: Frame) -> float:
    return float(frame["frame.time_epoch"][0])


def rank_of(frame: Frame) -> int:
    return int(frame["icmpv6.rpl.dio.rank"][0])


def is_link_local(address: str) -> bool:
    return IPv6Address(address) in LINK_LOCAL


# --- the files ------------------------------------------------------------------------------------------


def test_one_file_a_link_and_a_profile(captures: Captures) -> None:
    assert {path.name for path in captures.directory.iterdir()} == {
        *TOPOLOGIES[captures.topology],
        "wireshark",
    }
    profile = captures.directory / "wireshark"
    assert {path.name for path in profile.iterdir()} == PROFILE
    assert all(path.stat().st_size for path in profile.iterdir())


def test_the_keys_are_not_for_everybody(captures: Captures) -> None:
    profile = captures.directory / "wireshark"
    for path in (profile, *profile.iterdir()):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, f"{path.name} has the mode {mode:o}"


def test_the_profile_alone_opens_the_captures(captures: Captures) -> None:
    """As the README says it: nothing but WIRESHARK_CONFIG_DIR."""
    for file in captures.with_keys:
        plain = Witness(captures.directory / file, captures.directory / "wireshark")
        assert plain.frames("esp && icmpv6.type == 128")
        assert plain.frames("isakmp.auth.method")
        assert not plain.frames("esp && !esp.protocol")
        assert not plain.frames("isakmp.enc.data && !isakmp.enc.decrypted")


def test_frames_are_in_the_order_of_time(captures: Captures) -> None:
    for link in captures.without_keys.values():
        times = [time_of(frame) for frame in link.frames("", "frame.time_epoch")]
        assert times == sorted(times)


def test_without_the_option_there_are_no_keys(tmp_path: Path) -> None:
    if not tshark.present():
        pytest.skip("needs tshark")
    found = lab_run("line:2", "--pcap", tmp_path / "new" / "folder")
    assert found["exit_code"] == 0, found["stderr"]
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["n1-n2.pcap"]
    link = Witness(tmp_path / "new" / "folder" / "n1-n2.pcap", tmp_path)
    assert link.frames("esp")
    assert link.frames("isakmp")


# --- without the keys: what anybody on the link sees ------------------------------------------------------

ON_THE_WIRE = (
    "eth.src",
    "frame.protocols",
    "ipv6.src",
    "ipv6.dst",
    "ipv6.nxt",
    "udp.srcport",
    "udp.dstport",
    "icmpv6.type",
)


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
    if protocol == ["58"] and frame["icmpv6.type"][0] in (ROUTER_SOLICITATION, "135", "136"):
        return "ND"
    # MLD is behind a hop-by-hop header with a router alert.
    if protocol == ["0"] and frame["icmpv6.type"] == ["143"]:
        return "MLD"
    return f"{frame['frame.protocols']} {frame}"


def test_only_what_must_be_is_on_the_links(captures: Captures) -> None:
    """From before the first node starts until after the last one is gone; no errors, nothing in fragments.

    covers: 6.4-17
    """
    for file, link in captures.without_keys.items():
        frames = link.frames("", *ON_THE_WIRE)
        assert {kind(frame) for frame in frames} == ALL_ON_A_LINK
        for frame in frames:
            source, destination = IPv6Address(frame["ipv6.src"][0]), IPv6Address(frame["ipv6.dst"][0])
            assert source in LINK_LOCAL or (source == UNSPECIFIED and kind(frame) in ("ND", "MLD"))
            assert destination in LINK_LOCAL or destination in ON_LINK_MULTICAST
        # Each node has an interface of its own there; the host's own one beside it is not silent, but speaks
        # neighbour discovery alone.
        nodes = {frame["eth.src"][0] for frame in frames if kind(frame) == "DULL GRASP"}
        assert len(nodes) == TOPOLOGIES[captures.topology][file]
        for frame in frames:
            if frame["eth.src"][0] in nodes:
                assert frame["icmpv6.type"] != [ROUTER_SOLICITATION]
            else:
                assert kind(frame) in ("ND", "MLD")


def test_no_octet_of_the_acp_is_in_the_clear(captures: Captures) -> None:
    """The ACP's prefix is in every ACP packet and certificate: in binary, in hex, and with the domain."""
    prefix = captures.prefix.network_address.packed[:6]
    for file in captures.without_keys:
        octets = (captures.directory / file).read_bytes()
        for secret in (prefix, prefix.hex().encode(), DOMAIN.encode()):
            assert secret not in octets
        for address in captures.addresses:
            assert str(address).encode() not in octets


def test_grasp_is_reported_to_switches_that_snoop(captures: Captures) -> None:
    """A report from :: does not count for a switch or a querier (RFC 3810 section 5.2.13).

    covers: 6.4-4
    """
    for link in captures.without_keys.values():
        speakers = {frame["ipv6.src"][0] for frame in link.frames("udp.port == 7017", "ipv6.src")}
        reports = link.frames(
            f"icmpv6.type == 143 && icmpv6.mldr.mar.multicast_address == {ALL_GRASP_NEIGHBORS}", "ipv6.src"
        )
        assert speakers <= {frame["ipv6.src"][0] for frame in reports}


# --- with the keys ----------------------------------------------------------------------------------------


def test_nothing_is_malformed(captures: Captures) -> None:
    for link in captures.with_keys.values():
        assert link.frames("_ws.malformed") == []
        assert link.frames(f"_ws.expert.severity >= {tshark.ERROR}", "_ws.expert.message") == []
        for frame in link.frames(f"_ws.expert.severity >= {tshark.WARNING}", "_ws.expert.message"):
            assert all(message.startswith(HARMLESS) for message in frame["_ws.expert.message"]), frame
        assert link.frames("icmpv6 && !(icmpv6.checksum.status == 1)") == []


def test_announcements(captures: Captures) -> None:
    """Of 6.4-9 this shows the ttl; a minute's silence it does not wait for.

    covers: 6.4-8, 6.4-9, 6.4-10, 6.4-12, 6.4-15, 6.4-17, 6.8.3-1, G2.8.11-1
    """
    integers, strings, octets = "cbor.type.uint", "cbor.type.textstring", "cbor.type.bytestring"
    sessions: Counter[str] = Counter()
    for link in captures.with_keys.values():
        assert link.frames("udp.port == 7017 && !cbor") == []
        frames = link.frames(
            "cbor",
            integers,
            strings,
            octets,
            "cbor.item.major_type",
            "cbor.item.items",
            "ipv6.src",
            "frame.len",
        )
        assert frames
        for frame in frames:
            # [M_FLOOD, session-id, initiator, ttl, [["AN_ACP", F_SYNCH, loop-count, "IKEv2"], []]]
            message, session, ttl, flags, loop_count = frame[integers]
            assert (message, ttl, flags, loop_count) == ("9", "210000", "4", "1")
            assert frame[strings] == ["AN_ACP", "IKEv2"]
            (initiator,) = frame[octets]
            assert IPv6Address(bytes.fromhex(initiator)) == IPv6Address(frame["ipv6.src"][0])
            assert frame["cbor.item.items"] == ["5", "2", "4", "0"]
            assert frame["cbor.item.major_type"] == list("40020" + "4" + "4300" + "3" + "4")
            assert int(frame["frame.len"][0]) < 1280
            assert int(session) > 0
            sessions[session] += 1
    assert max(sessions.values()) == 1, "every flood has a session of its own"


def test_ike_sa_init(captures: Captures) -> None:
    """
    covers: 6.8.2-3, 6.8.2-4, 6.8.3.1.2-6, 6.8.3.1.2-7
    """
    fields = ["flag_r", "tf.id.encr", "ike2.attr.key_length", "tf.id.dh", "key_exchange.dh_group"]
    fields += ["notify.data.signature_hash_algorithms"]
    frames = captures.frames("isakmp.exchangetype == 34", *(f"isakmp.{field}" for field in fields))
    assert frames
    for frame in frames:
        assert set(frame["isakmp.tf.id.encr"]) == {"20"}, "AES-GCM with an ICV of 16 octets"
        assert set(frame["isakmp.ike2.attr.key_length"]) == {"256"}
        assert "19" in frame["isakmp.tf.id.dh"]
        assert frame["isakmp.key_exchange.dh_group"] == ["19"]
        # SHA2-256 and SHA2-512 (RFC 7427 section 4)
        assert {"2", "4"} <= set(frame["isakmp.notify.data.signature_hash_algorithms"])


def test_ike_auth(captures: Captures) -> None:
    """
    covers: 6.8.2-2, 6.8.2-4, 6.8.3.1-3, 6.8.3.1.1-2, 6.8.3.1.2-2, 6.8.3.1.2-5, 6.8.3.1.2-6
    """
    fields = ["ispi", "typepayload", "id.type", "id.data.ipv6_addr", "cert.encoding", "auth.method"]
    fields += ["prop.protoid", "tf.id.encr", "ike2.attr.key_length", "ts.type", "ts.protoid", "ts.start_port"]
    fields += ["ts.end_port", "ts.start_ipv6", "ts.end_ipv6"]
    per_sa: dict[str, set[str]] = {}
    for link in captures.with_keys.values():
        frames = link.frames("isakmp.exchangetype == 35", *(f"isakmp.{field}" for field in fields))
        certificates = link.octets("isakmp.exchangetype == 35", "isakmp.cert.data")
        for frame, chain in zip(frames, certificates, strict=True):
            found = {field: frame[f"isakmp.{field}"] for field in fields}
            assert found["id.type"] == ["5"], "ID_IPV6_ADDR"
            assert set(found["cert.encoding"]) == {"4"}, "X.509 Certificate - Signature"
            assert len(chain) == len(found["cert.encoding"]) == 2, "the node's, and the trust anchor's"
            (address,) = found["id.data.ipv6_addr"]
            assert f"{IPv6Address(address).packed.hex()}@{DOMAIN}".encode() in chain[0]
            assert found["auth.method"] == ["14"], "Digital Signature"
            assert found["prop.protoid"] == ["3"], "ESP"
            assert (found["tf.id.encr"], found["ike2.attr.key_length"]) == (["20"], ["256"])
            assert {"44", "45"} <= set(found["typepayload"]), "TSi and TSr"
            assert found["ts.type"] == ["8", "8"], "TS_IPV6_ADDR_RANGE"
            assert found["ts.protoid"] == ["0", "0"]
            assert (found["ts.start_port"], found["ts.end_port"]) == (["0", "0"], ["65535", "65535"])
            assert {IPv6Address(one) for one in found["ts.start_ipv6"]} == {UNSPECIFIED}
            assert {IPv6Address(one) for one in found["ts.end_ipv6"]} == {IPv6Address(2**128 - 1)}
            per_sa.setdefault(found["ispi"][0], set()).add(address)
    assert len(per_sa) >= captures.found["channels"]
    assert all(len(pair) == 2 for pair in per_sa.values()), "both ends of every SA are authenticated"
    assert len(captures.addresses) == NODES


def test_esp_is_a_tunnel_between_link_local_addresses(captures: Captures) -> None:
    """Its SAs come from IKE alone, so what the key log opens has no other keys.

    covers: 6.8.3.1-1, 6.8.3.1-2
    """
    for link in captures.with_keys.values():
        frames = link.frames("esp", "esp.protocol", "ipv6.src", "ipv6.dst", "ipv6.version")
        assert frames
        assert link.frames("esp && !(esp.icv_good == 1)") == []
        for frame in frames:
            assert [int(number, 0) for number in frame["esp.protocol"]] == [41]
            assert frame["ipv6.version"][:2] == ["6", "6"]
            assert is_link_local(frame["ipv6.src"][0])
            assert is_link_local(frame["ipv6.dst"][0])
            # Inside are the ACP's own addresses, and link-local ones that are not those outside.
            for inner, outer in zip(frame["ipv6.src"][1:2], frame["ipv6.src"][:1], strict=True):
                assert IPv6Address(inner) in captures.prefix or is_link_local(inner)
                assert inner != outer
            target = IPv6Address(frame["ipv6.dst"][1])
            assert target in captures.prefix or target in LINK_LOCAL or target in ON_LINK_MULTICAST


def test_all_pairs_of_hosts_ping_through_the_tunnels(captures: Captures) -> None:
    hosts = {str(address + 1) for address in captures.addresses}  # V=1
    for kind_of_echo in (128, 129):
        frames = captures.frames(
            f"esp && icmpv6.type == {kind_of_echo}", "ipv6.src", "ipv6.dst", "icmpv6.type"
        )
        direct = [frame for frame in frames if frame["icmpv6.type"] == [str(kind_of_echo)]]
        assert {(frame["ipv6.src"][1], frame["ipv6.dst"][1]) for frame in direct} == set(
            permutations(hosts, 2)
        )


def test_what_is_inside(captures: Captures) -> None:
    """RPL, pings, errors and MLD: neither discovery nor any hop-by-hop or routing header of RPL.

    covers: 6.4-6, 6.12.1.1-1, RPL-ACP
    """
    for link in captures.with_keys.values():
        assert link.frames("esp && udp") == []
        assert link.frames("esp && tcp") == []
        assert link.frames("esp && (ipv6.routing || ipv6.fraghdr || ipv6.dstopts)") == []
        assert link.frames("esp && ipv6.hopopts && !(icmpv6.type == 143)") == []
        assert link.frames("ipv6.opt.type == 0x63 || ipv6.opt.type == 0x23") == []
        types = {frame["icmpv6.type"][0] for frame in link.frames("esp", "icmpv6.type")}
        assert {"155", "128", "129"} <= types <= {"1", "3", "128", "129", "143", "155"}


def test_rpl(captures: Captures) -> None:
    """
    covers: 6.12.1.2-1, 6.12.1.3-1, 6.12.1.4-1, 6.12.1.6-1, 6.12.1.8/9/10, R8.1-2, R9.1
    """
    frames = captures.frames("icmpv6.type == 155", "icmpv6.code", "ipv6.src", "ipv6.dst", "frame.protocols")
    assert {frame["icmpv6.code"][0] for frame in frames} == {"0", "1", "2", "3"}, "insecure messages"
    for frame in frames:
        assert "esp" in frame["frame.protocols"][0].split(":")
        assert is_link_local(frame["ipv6.src"][1])
        target = frame["ipv6.dst"][1]
        assert is_link_local(target) or (target == ALL_RPL_NODES and frame["icmpv6.code"][0] in "01")
    for field in ("dio", "dao", "daoack"):
        assert captures.frames(f"icmpv6.rpl.{field}.instance != 0") == []
    assert captures.frames("icmpv6.rpl.opt.type == 2") == [], "no metric containers"


def test_rpl_information_objects(captures: Captures) -> None:
    """
    covers: 6.12.1.2-1, 6.12.1.3-1, 6.12.1.6-1, R8.1-2
    """
    assert captures.frames("icmpv6.rpl.dio.flag.mop != 2") == [], "storing, without multicast"
    assert captures.frames("icmpv6.rpl.opt.config.ocp != 0") == [], "OF0"
    assert captures.frames(f"icmpv6.rpl.opt.config.min_hop_rank_inc != {MIN_HOP_RANK_INCREASE}") == []
    assert captures.frames("icmpv6.rpl.opt.config.pcs == 0") == [], "several DAO parents are possible"
    dios = captures.frames(*DIO)
    assert ALL_RPL_NODES in {frame["ipv6.dst"][1] for frame in dios}
    for frame in dios:
        rank = rank_of(frame)
        assert rank == INFINITE_RANK or (rank > 0 and rank % MIN_HOP_RANK_INCREASE == 0)
        assert IPv6Address(frame["icmpv6.rpl.dio.dagid"][0]) in captures.addresses
    # Before the first goodbye all are in one DODAG, and only its root has the root's rank.
    latest: dict[str, Frame] = {}
    for frame in sorted(dios, key=time_of):
        if time_of(frame) < captures.end and rank_of(frame) != INFINITE_RANK:
            latest[frame["ipv6.src"][1]] = frame
    assert len(latest) == 2 * captures.found["channels"]
    assert len({tuple(frame["icmpv6.rpl.dio.dagid"]) for frame in latest.values()}) == 1
    assert len({tuple(frame["icmpv6.rpl.dio.version"]) for frame in latest.values()}) == 1


def test_rpl_destination_advertisements(captures: Captures) -> None:
    """
    covers: 6.12.1.4-1, R9.1, R9.3
    """
    length, prefix = "icmpv6.rpl.opt.target.prefix_length", "icmpv6.rpl.opt.target.prefix"
    lifetime, option, size = (
        "icmpv6.rpl.opt.transit.pathlifetime",
        "icmpv6.rpl.opt.type",
        "icmpv6.rpl.opt.length",
    )
    sequence, common = "icmpv6.rpl.dao.sequence", ("ipv6.src", "ipv6.dst", "frame.time_epoch")
    daos = captures.frames(
        "icmpv6.code == 2 && icmpv6.type == 155", length, prefix, lifetime, option, size, sequence, *common
    )
    live = [frame for frame in daos if frame[lifetime] != ["0"]]
    targets = {IPv6Address(target) for frame in live for target in frame[prefix]}
    assert targets < captures.addresses
    assert len(targets) == NODES - 1, "all but the root advertise themselves"
    for frame in daos:
        assert set(frame[length]) == {"127"}
        # RPL Targets with whole addresses, then their Transit Information.
        assert list(zip(frame[option], frame[size], strict=True)) == [
            *[("5", "18")] * len(frame[prefix]),
            ("6", "4"),
        ]
    # A node that leaves does not wait for an answer.
    assert captures.frames("icmpv6.rpl.dao.flag.k == 0 && icmpv6.rpl.opt.transit.pathlifetime != 0") == []
    assert captures.frames("icmpv6.rpl.dao.flag.d == 1") == []
    assert captures.frames("icmpv6.rpl.opt.transit.pathctl == 0") == []
    answers = captures.frames(
        "icmpv6.code == 3 && icmpv6.type == 155",
        "icmpv6.rpl.daoack.sequence",
        "icmpv6.rpl.daoack.status",
        *common,
    )
    answered = {
        (frame["ipv6.dst"][1], frame["ipv6.src"][1], frame["icmpv6.rpl.daoack.sequence"][0])
        for frame in answers
    }
    asked = {(frame["ipv6.src"][1], frame["ipv6.dst"][1], frame[sequence][0]) for frame in daos}
    assert answered <= asked
    assert {(frame["ipv6.src"][1], frame["ipv6.dst"][1], frame[sequence][0]) for frame in live} <= answered
    assert {frame["icmpv6.rpl.daoack.status"][0] for frame in answers} == {"0"}, "accepted"


def test_no_nonce_is_used_twice(captures: Captures) -> None:
    """AES-GCM fails at once when a key meets an IV again; every direction of every SA has a key of its own."""
    keys = {}
    for line in (captures.directory / "wireshark" / "esp_sa").read_text().splitlines():
        _, source, destination, spi, _, key, _, _ = (field.strip('"') for field in line.split(","))
        assert len(bytes.fromhex(key.removeprefix("0x"))) == 32 + 4, "key and salt"
        keys[source, destination, int(spi, 0)] = key
    assert len(set(keys.values())) == len(keys) >= 2 * captures.found["channels"]
    nonces: Counter[tuple[str, str]] = Counter()
    numbers: Counter[tuple[str, str]] = Counter()
    for frame in captures.frames("esp", "ipv6.src", "ipv6.dst", "esp.spi", "esp.sequence", "esp.iv"):
        key = keys[frame["ipv6.src"][0], frame["ipv6.dst"][0], int(frame["esp.spi"][0], 0)]
        nonces[key, frame["esp.iv"][0]] += 1
        numbers[key, frame["esp.sequence"][0]] += 1
    assert set(nonces.values()) == set(numbers.values()) == {1}
    assert not any(sequence == "0" for _, sequence in numbers)


def test_goodbye(captures: Captures) -> None:
    """Every channel ends with an IKE Delete, encrypted; nothing else than before is on the link after it."""
    ended = set()
    for file, link in captures.with_keys.items():
        deletes = link.frames(
            "isakmp.delete.protoid",
            "frame.time_epoch",
            "isakmp.exchangetype",
            "isakmp.ispi",
            "isakmp.delete.protoid",
        )
        assert deletes
        for frame in deletes:
            assert frame["isakmp.exchangetype"] == ["37"], "INFORMATIONAL"
            assert frame["isakmp.delete.protoid"] == ["1"], "the IKE SA, and all below it"
            ended.add(frame["isakmp.ispi"][0])
        first = min(time_of(frame) for frame in deletes)
        after = captures.without_keys[file].frames(f"frame.time_epoch > {first:.9f}", *ON_THE_WIRE)
        assert {kind(frame) for frame in after} <= ALL_ON_A_LINK
    assert len(ended) >= captures.found["channels"]
