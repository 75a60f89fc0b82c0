from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.rpl.errors import RplDecodeError, UnknownCode
from minerva.rpl.messages import (
    Dao,
    DaoAck,
    DaoGroup,
    Dio,
    Dis,
    checksum_is_good,
    decode,
    with_checksum,
)
from minerva.rpl.options import (
    MAX_OPTIONS,
    DodagConfiguration,
    OpaqueOption,
    Option,
    OptionType,
    RplTarget,
    SolicitedInformation,
    TransitInformation,
)

from .captures import Packet, from_ipv6, read_rpl

ROOT = IPv6Address("fd89:b714:f3db:0:200:0:6400:0")
CONFIGURATION = DodagConfiguration(7, 20, 3, 0, 0, 256, 0, 0xFF, 0xFFFF)


def target(text: str) -> RplTarget:
    return RplTarget(IPv6Network(text))


DAO_OPTIONS = (target("fd89:b714:f3db:0:200:0:6400:2/127"), TransitInformation(0x80, 240, 255))
EXPECTED = {
    "DIS mcast": Dis(),
    "DIS unicast+SolicitedInfo": Dis((SolicitedInformation(0, ROOT, 240, True, True, True),)),
    "DIO root reg": Dio(240, 256, True, 2, 3, 240, ROOT, (CONFIGURATION,)),
    "DIO node rank 1024": Dio(240, 1024, True, 2, 3, 240, ROOT, (CONFIGURATION,)),
    "DIO with metric container hopcount+PIO": Dio(
        240,
        256,
        True,
        2,
        3,
        240,
        ROOT,
        (
            OpaqueOption(OptionType.DAG_METRIC_CONTAINER, bytes.fromhex("030000020001")),
            CONFIGURATION,
            OpaqueOption(
                OptionType.PREFIX_INFORMATION,
                bytes.fromhex("4020ffffffffffffffff00000000fd89b714f3db00000200000064000000"),
            ),
        ),
    ),
    "DIO poison": Dio(240, 0xFFFF, True, 2, 3, 240, ROOT),
    "DAO K /127": Dao(241, True, DAO_OPTIONS),
    "DAO 2 targets + /64 E": Dao(
        242,
        True,
        (
            target("fd89:b714:f3db:0:200:0:6400:2/127"),
            target("fd89:b714:f3db:4200:0:6400:8001:0/112"),
            target("fd89:b714:f3db:4200:0:6400:0:100/120"),
            TransitInformation(0x80, 241, 255),
            target("fd89:b714:f3db:2001::/64"),
            TransitInformation(0x80, 241, 255, external=True),
        ),
    ),
    "DAO D flag": Dao(243, True, (DAO_OPTIONS[0], TransitInformation(0x80, 242, 255)), ROOT),
    "DAO No-Path": Dao(
        244, True, (target("fd89:b714:f3db:0:200:0:6400:4/127"), TransitInformation(0x80, 243, 0))
    ),
    "DAO-ACK ok": DaoAck(241),
    "DAO-ACK reject D": DaoAck(241, 255, ROOT),
}


@pytest.fixture(scope="module")
def packets(vectors: Any) -> dict[str, Packet]:
    found = {v["name"]: from_ipv6(bytes.fromhex(v["ipv6_hex"])) for v in vectors["rpl_ipv6_packets"]}
    return {name: packet for name, packet in found.items() if packet is not None}


def test_every_vector_is_expected(packets: dict[str, Packet]) -> None:
    assert packets.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_vector(packets: dict[str, Packet], name: str) -> None:
    source, destination, icmpv6 = packets[name]
    message = decode(icmpv6)
    assert message == EXPECTED[name]
    assert checksum_is_good(icmpv6, source, destination)
    encoded = with_checksum(message.encode(), source, destination)
    if name == "DAO 2 targets + /64 E":
        # There the /64 stands in eight bytes; we always send sixteen.
        assert len(encoded) == len(icmpv6) + 8
        assert decode(encoded) == message
    else:
        assert encoded == icmpv6


def test_checksum_zero_when_sent() -> None:
    """The kernel computes it."""
    assert EXPECTED["DAO K /127"].encode()[2:4] == b"\0\0"
    assert not checksum_is_good(EXPECTED["DAO K /127"].encode(), ROOT, ROOT)
    assert not checksum_is_good(b"\x9b\0\0", ROOT, ROOT)


NO_TRANSIT = "DAO with a Target that no Transit Information follows"


@pytest.mark.parametrize(
    ("name", "decoded", "refused"),
    [
        ("interop-rpld-riot-rpldroot-stock-STORM-first300", {"Dis": 149, "Dio": 148}, {}),
        ("interop-unstrung-riot-unstrungroot-stock", {"Dis": 7, "Dio": 6}, {}),
        ("riot-line5-nopio-leaf", {"Dio": 18, "Dao": 1, "DaoAck": 1}, {}),
        ("riot-line5-nopio-middle", {"Dio": 26, "Dao": 3, "DaoAck": 3}, {}),
        ("riot-line5-nopio-root", {"Dio": 17, "Dao": 2, "DaoAck": 2}, {}),
        ("rpld-eth-line5-root-link", {"Dis": 2, "Dio": 17, "DaoAck": 9}, {NO_TRANSIT: 9}),
        ("unstrung-stock-mop3-line5-root-link", {"Dio": 52, "DaoAck": 31}, {NO_TRANSIT: 31}),
    ],
)
def test_captures_of_others(
    fixtures: Path, name: str, decoded: dict[str, int], refused: dict[str, int]
) -> None:
    """What other implementations send is understood, or refused for what is wrong with it.

    covers: R9.4
    """
    seen: dict[str, int] = {}
    reasons: dict[str, int] = {}
    for source, destination, icmpv6 in read_rpl(fixtures / "rpl-peers" / f"{name}.pcap"):
        assert checksum_is_good(icmpv6, source, destination)
        try:
            message = decode(icmpv6)
        except RplDecodeError as error:
            reasons[str(error)] = reasons.get(str(error), 0) + 1
        else:
            seen[type(message).__name__] = seen.get(type(message).__name__, 0) + 1
            assert decode(message.encode()) == message
    assert (seen, reasons) == (decoded, refused)


@pytest.mark.parametrize("code", [4, 0x80, 0x81, 0x82, 0x83, 0x8A, 0xFF])
def test_unknown_code(code: int) -> None:
    """Secured messages and whatever comes after this profile.

    covers: 6.12.1.8/9/10
    """
    with pytest.raises(UnknownCode, match=f"{code:#04x}"):
        decode(bytes((155, code, 0, 0, 0, 0)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "ICMPv6 header"),
        ("80000000", "not RPL"),
        ("9b00000000", "DIS"),
        ("9b01000000f0010093f00000fd89", "DODAGID"),
        ("9b000000000005", "option length"),
        ("9b00000000000512", "option 5"),
        ("9b020000008000f10503007ffd06040080f0ff", "length 127 in 1 bytes"),
        ("9b020000008000f1050300810006040080f0ff", "prefix length 129"),
        ("9b020000008000f1051300" + "00" * 18 + "06040080f0ff", "in 17 bytes"),
        ("9b020000008000f106040080f0ff", "before any Target"),
        ("9b020000008000f10502000006050080f0ff00", "Transit parent address"),
        ("9b020000008000f1050200000603008000", "Transit Information"),
        ("9b020000800000f1", "local instance"),
        ("9b0300008000f100", "local instance"),
        ("9b01000000f0010093f00000" + "fd" * 16 + "04020000", "DIO intervals"),
        ("9b01000000f0010093f00000" + "fd" * 16 + "040f" + "00" * 15, "after its end"),
        ("9b0000000000" + "1000" * (MAX_OPTIONS + 1), "more than"),
    ],
)
def test_malformed(text: str, reason: str) -> None:
    """covers: R8.2.3, R9.4"""
    with pytest.raises(RplDecodeError, match=reason):
        decode(bytes.fromhex(text))


def test_padding_and_unknown_options() -> None:
    message = decode(bytes.fromhex("9b0000000000" + "00" + "0102aaaa" + "7f03010203" + "0100" + "00"))
    assert message == Dis((OpaqueOption(0x7F, b"\1\2\3"),))


def test_as_many_options_as_allowed() -> None:
    message = decode(bytes.fromhex("9b0000000000" + "1000" * MAX_OPTIONS))
    assert isinstance(message, Dis)
    assert len(message.options) == MAX_OPTIONS


def test_reserved_bits_are_ignored_and_sent_as_zero() -> None:
    message = decode(bytes.fromhex("9b020000003fffff" + "0512ff7f" + "fd" + "ff" * 15 + "06047f8001ff"))
    assert isinstance(message, Dao)
    assert not message.acknowledge
    assert (
        message.encode().hex()
        == "9b02000000" + "0000ff" + "0512007f" + "fd" + "ff" * 14 + "fe" + "0604008001ff"
    )


def test_short_prefix_forms() -> None:
    """Any length that holds the prefix is accepted, sixteen bytes are sent."""
    short = decode(bytes.fromhex("9b020000000000f1" + "050a0040fd89b714f3db2001" + "06040080f0ff"))
    assert short == Dao(241, False, (target("fd89:b714:f3db:2001::/64"), TransitInformation(0x80, 240, 255)))
    assert short.encode()[8:10] == b"\x05\x12"


def test_dao_groups() -> None:
    """The transits after some targets belong to all of these.

    covers: R9.4
    """
    one, two, three = (IPv6Network(f"fd89::{n}:0:0/112") for n in (1, 2, 3))
    first, second, third = (TransitInformation(0x80 >> n, 240, 30) for n in range(3))
    groups = (DaoGroup((one, two), (first,)), DaoGroup((three,), (second, third)))
    dao = Dao.of_groups(7, True, groups)
    assert dao.groups() == groups
    described = Dao(7, True, (dao.options[0], OpaqueOption(9, b"abcd"), *dao.options[1:]))
    assert described.groups() == groups
    assert Dao(7, True, ()).groups() == ()


@pytest.mark.parametrize(
    ("option", "asked"),
    [
        (SolicitedInformation(9, IPv6Address("::"), 9), True),
        (SolicitedInformation(0, ROOT, 240, True, True, True), True),
        (SolicitedInformation(1, ROOT, 240, instance_predicate=True), False),
        (SolicitedInformation(0, IPv6Address("fd00::1"), 240, dodagid_predicate=True), False),
        (SolicitedInformation(0, ROOT, 241, version_predicate=True), False),
    ],
)
def test_solicited_information(option: SolicitedInformation, asked: bool) -> None:
    """covers: R8.3"""
    assert Dis((option,)).asks_for(0, ROOT, 240) is asked
    assert Dis().asks_for(0, ROOT, 240)


def test_dao_ack_status() -> None:
    assert not DaoAck(1, 0).rejects
    assert not DaoAck(1, 127).rejects
    assert DaoAck(1, 128).rejects


byte = st.integers(0, 255)
word = st.integers(0, 65535)
address = st.builds(IPv6Address, st.integers(0, 2**128 - 1))
prefix = st.builds(
    lambda a, length: IPv6Network((a, length), strict=False), st.integers(0, 2**128 - 1), st.integers(0, 128)
)
configuration = st.builds(
    DodagConfiguration, st.integers(0, 7), byte, byte, byte, word, word, word, byte, word, st.booleans()
)
transit = st.builds(TransitInformation, byte, byte, byte, st.booleans(), st.none() | address)
solicited = st.builds(SolicitedInformation, byte, address, byte, st.booleans(), st.booleans(), st.booleans())
opaque = st.builds(OpaqueOption, st.integers(10, 255), st.binary(max_size=255))
options: st.SearchStrategy[tuple[Option, ...]] = st.lists(configuration | solicited | opaque, max_size=5).map(
    tuple
)
instance = st.integers(0, 127)
group = st.builds(
    DaoGroup,
    st.lists(prefix, min_size=1, max_size=3).map(tuple),
    st.lists(transit, min_size=1, max_size=3).map(tuple),
)
dao = st.builds(Dao.of_groups, byte, st.booleans(), st.lists(group, max_size=3))
dio = st.builds(
    Dio, byte, word, st.booleans(), st.integers(0, 7), st.integers(0, 7), byte, address, options, instance
)
dao_ack = st.builds(DaoAck, byte, byte, st.none() | address, instance, options)


@given(st.builds(Dis, options) | dio | dao | dao_ack)
def test_round_trip(message: Dis | Dio | Dao | DaoAck) -> None:
    assert decode(message.encode()) == message


@given(st.sampled_from([0, 1, 2, 3]), st.binary(max_size=200))
def test_any_bytes(code: int, data: bytes) -> None:
    try:
        message = decode(bytes((155, code, 0, 0)) + data)
    except RplDecodeError:
        return
    assert decode(message.encode()) == message


@given(st.binary(min_size=4, max_size=64), address, address)
def test_checksum(data: bytes, source: IPv6Address, destination: IPv6Address) -> None:
    message = with_checksum(data, source, destination)
    assert checksum_is_good(message, source, destination)
    damaged = message[:-1] + bytes((message[-1] ^ 0x10,))
    assert not checksum_is_good(damaged, source, destination)
