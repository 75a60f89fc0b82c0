"""Captures: files, links, IP, TCP put together, and the messages of another implementation in them."""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import subprocess
from collections import Counter
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerva.grasp import capture as capture_module
from minerva.grasp import capture_file
from minerva.grasp.capture import (
    MAX_HELD,
    MAX_LEARNT,
    MAX_STREAMS,
    PATIENCE_NS,
    Captured,
    CapturedMessage,
    CapturedNote,
    GraspCapture,
)
from minerva.grasp.capture_file import MAX_PACKET, CaptureError, CaptureReader, Packet
from minerva.grasp.constants import TransportProto
from minerva.grasp.dissect import Datagram, NotOursError, PacketError, Segment, dissect
from minerva.grasp.errors import GraspDecodeError
from minerva.grasp.messages import Invalid, Message, Wait, decode, decode_first
from minerva.linux.pcap import LinkType, PcapngWriter

from .examples import ACP, APPENDIX_A
from .packets import (
    ACK,
    ALL,
    ETHERNET,
    FIN,
    ONE,
    OTHER,
    RAW,
    RST,
    SLL,
    SLL2,
    SYN,
    V4_ONE,
    V4_OTHER,
    block,
    datagram,
    enhanced,
    interface,
    ipv4,
    ipv6,
    option,
    pcap,
    raw,
    section,
    segment,
    tcp,
    torn,
    udp,
)

FLOOD = ACP[0]
TALK = b"".join(message.encode() for message in APPENDIX_A)
CAPTURES = ("dull-two-nodes.pcap", "line3-link-client-relay.pcap", "line3-link-relay-server.pcap")
TLS_HELLO = bytes.fromhex("160301007a0100007603030000")


def messages(found: list[Captured]) -> list[Message | GraspDecodeError]:
    return [captured.message for captured in found if isinstance(captured, CapturedMessage)]


def notes(found: list[Captured]) -> list[str]:
    return [captured.text for captured in found if isinstance(captured, CapturedNote)]


def read(file: bytes, ports: tuple[int, ...] = (7017,)) -> list[Captured]:
    return list(GraspCapture(ports).read([file]))


def until_damage(capture: GraspCapture, pieces: list[bytes]) -> tuple[list[Captured], str]:
    """What a file holds, and why it ends if it is damaged."""
    found: list[Captured] = []
    try:
        for captured in capture.read(pieces):
            found += [captured]
    except CaptureError as error:
        return found, str(error)
    return found, ""


def hear(capture: GraspCapture, packets: list[Packet]) -> list[Captured]:
    """What comes of packets, without what remains to be said at the end."""
    return [captured for packet in packets for captured in capture.receive(packet)]


# Captures of another implementation


@pytest.fixture(scope="module")
def conversations(fixtures: Path) -> dict[str, list[CapturedMessage]]:
    """The messages of each capture; there is nothing else to be said of them."""
    found = {}
    for name in CAPTURES:
        capture = GraspCapture()
        said = list(capture.read([(fixtures / "grasp-peer" / name).read_bytes()]))
        assert (capture.counts.broken, capture.counts.gaps, capture.counts.cut) == (0, 0, False)
        found[name] = [captured for captured in said if isinstance(captured, CapturedMessage)]
        assert found[name] == said
    return found


def test_every_message_of_another_implementation(
    fixtures: Path, conversations: dict[str, list[CapturedMessage]]
) -> None:
    """Those that a third party has found are found, from and to the same ends, on dynamic ports too."""
    for line in (fixtures / "grasp-peer" / "messages.jsonl").read_text().splitlines():
        expected: dict[str, Any] = json.loads(line)
        (captured, *_) = [
            captured
            for captured in conversations[expected["capture"]]
            if captured.data.hex() == expected["hex"]
            and captured.flow.source == IPv6Address(expected["src"])
            and captured.flow.destination == IPv6Address(expected["dst"])
        ]
        flow = captured.flow
        assert (flow.source_port, flow.destination_port) == (expected["sport"], expected["dport"])
        assert flow.transport.name.lower().endswith(expected["transport"])
        assert captured.message == decode(captured.data)


def test_all_messages_are_messages_and_canonical(conversations: dict[str, list[CapturedMessage]]) -> None:
    """What was deterministic CBOR is encoded to the same bytes; only a 3.5 in eight bytes was not."""
    for captured in (item for found in conversations.values() for item in found):
        assert not isinstance(captured.message, GraspDecodeError)
        if b"\xfb\x40\x0c" in captured.data:
            shorter = captured.data.replace(bytes.fromhex("fb400c000000000000"), bytes.fromhex("f94300"))
            assert captured.message.encode() == shorter
        else:
            assert captured.message.encode() == captured.data


@pytest.mark.parametrize("name", CAPTURES)
def test_as_many_as_tshark_sees(
    fixtures: Path, conversations: dict[str, list[CapturedMessage]], name: str
) -> None:
    """Messages in what tshark takes for payload: as many of each type, in the order of each conversation."""
    if shutil.which("tshark") is None:
        pytest.skip("no tshark")
    fields = ("ipv6.src", "ipv6.dst", "tcp.srcport", "tcp.dstport", "tcp.payload", "udp.payload")
    result = subprocess.run(
        [
            *("tshark", "-n", "-r", fixtures / "grasp-peer" / name, "-T", "fields"),
            *("-Y", "(tcp.len > 0 && !tcp.analysis.retransmission) || udp.port == 7017"),
            *(word for field in fields for word in ("-e", field)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    streams: dict[tuple[str, ...], bytes] = {}
    theirs: list[bytes] = []
    for line in result.stdout.splitlines():
        *flow, by_tcp, by_udp = line.split("\t")
        if by_udp:
            theirs.append(bytes.fromhex(by_udp))
        else:
            streams[tuple(flow)] = streams.get(tuple(flow), b"") + bytes.fromhex(by_tcp)
    for flow, stream in streams.items():
        conversation = [
            captured.data
            for captured in conversations[name]
            if (str(captured.flow.source), str(captured.flow.destination)) == tuple(flow[:2])
            and (captured.flow.source_port, captured.flow.destination_port) == tuple(map(int, flow[2:]))
        ]
        assert b"".join(conversation) == stream
        while stream:
            _, end = decode_first(stream)
            theirs.append(stream[:end])
            stream = stream[end:]
    assert theirs
    ours = Counter(type(captured.message) for captured in conversations[name])
    assert ours == Counter(type(decode(data)) for data in theirs)
    assert Counter(captured.data for captured in conversations[name]) == Counter(theirs)


def test_conversations_are_in_order(conversations: dict[str, list[CapturedMessage]]) -> None:
    """The negotiations of the capture, from request to end, as they were led."""
    sessions: dict[int, list[str]] = {}
    for captured in conversations["line3-link-client-relay.pcap"]:
        if captured.flow.transport is TransportProto.IPPROTO_TCP:
            assert isinstance(captured.message, Message)
            sessions.setdefault(captured.message.session_id, []).append(captured.message.TYPE.name)
    assert sessions[2764696812] == ["M_REQ_NEG", "M_NEGOTIATE", "M_NEGOTIATE", "M_END"]
    assert sessions[4216516060] == ["M_REQ_NEG", "M_WAIT", "M_END"]
    assert sessions[774239879] == ["M_REQ_SYN", "M_SYNCH"]
    assert sessions[646620901] == ["M_REQ_NEG", "M_NEGOTIATE", "M_INVALID"]
    for found in conversations.values():
        times = [captured.time_ns for captured in found]
        assert times == sorted(times)


def test_dull_on_a_link(conversations: dict[str, list[CapturedMessage]]) -> None:
    """Multicast messages of a link: what two neighbours announce to each other."""
    multicast = [item for item in conversations["dull-two-nodes.pcap"] if item.flow.destination == ALL]
    assert Counter(type(item.message).__name__ for item in multicast) == {
        "Flood": 16,
        "Noop": 2,
        "Discovery": 1,
    }
    assert {item.flow.destination_port for item in multicast} == {7017}


# Files


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nanoseconds", [False, True])
def test_pcap(order: str, nanoseconds: bool) -> None:
    """Both byte orders and both units of time, in pieces of any size."""
    file = pcap([datagram(FLOOD.encode()), b"", b"xyz"], order=order, nanoseconds=nanoseconds)
    fraction = 5 if nanoseconds else 5000
    expected = [
        Packet(10**9 * second + fraction, RAW, data)
        for second, data in ((1, datagram(FLOOD.encode())), (2, b""), (3, b"xyz"))
    ]
    for size in (1, 3, 16, len(file)):
        reader = CaptureReader()
        pieces = [file[start : start + size] for start in range(0, len(file), size)]
        assert [packet for piece in pieces for packet in reader.feed(piece)] == expected
        assert reader.pending == 0
    (captured,) = read(file)
    assert isinstance(captured, CapturedMessage)
    assert captured.message == FLOOD
    assert captured.time_ns == 10**9 + fraction


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng(order: str) -> None:
    """Interfaces with units of time and names of their own, three kinds of packet blocks, others skipped."""
    data = datagram(FLOOD.encode())
    padded = data + bytes(-len(data) % 4)
    offset = option(14, struct.pack(order + "q", -1), order)
    sizes = struct.pack(order + "II", len(data), len(data) + 9)
    file = b"".join(
        (
            section(order),
            interface(options=option(2, "größe".encode(), order), order=order),
            interface(ETHERNET, option(9, b"\x09", order) + offset + bytes(4), order),
            interface(SLL, option(9, b"\x81", order), order),
            block(0xBAD, b"1234" * 9, order),
            enhanced(data, 3_000_001, options=option(2, struct.pack(order + "I", 2), order), order=order),
            enhanced(data, 3_000_000_001, 1, option(2, struct.pack(order + "I", 1), order), order),
            enhanced(data, 5, 2, option(1, b"comment", order), order),
            block(2, struct.pack(order + "HHII", 1, 0, 0, 2_000_000_000) + sizes + padded, order),
            block(3, struct.pack(order + "I", len(data)) + padded, order),
            section(order),
            interface(276, order=order),
            enhanced(b"", 0, order=order),
        )
    )
    for size in (1, 7, len(file)):
        reader = CaptureReader()
        pieces = [file[start : start + size] for start in range(0, len(file), size)]
        assert [packet for piece in pieces for packet in reader.feed(piece)] == [
            Packet(3_000_001_000, RAW, data, "größe", True),
            Packet(2_000_000_001, ETHERNET, data, "", False),
            Packet(2_500_000_000, SLL, data),
            Packet(1_000_000_000, ETHERNET, data),
            Packet(0, RAW, data, "größe"),
            Packet(0, SLL2, b""),
        ]
        assert (reader.pending, reader.broken) == (0, 0)


def test_what_is_seldom_in_a_file() -> None:
    """A frame check sequence told of, options after their end, packets that were cut or are too large."""
    (packet,) = CaptureReader().feed(pcap([b"x"], link_type=ETHERNET | 0x2400_0000))
    assert packet.link_type == ETHERNET
    options = option(2, b"eth0") + option(0, b"") + option(2, b"eth9")
    file = section() + interface(options=options, snaplen=6)
    reader = CaptureReader()
    (packet,) = reader.feed(file + block(3, struct.pack("<I", 100) + b"12345678"))
    assert (packet.interface, packet.data) == ("eth0", b"123456")
    # Blocks may be larger than packets.
    assert list(reader.feed(block(0xBAD, bytes(MAX_PACKET + 4)))) == []
    assert list(reader.feed(enhanced(bytes(MAX_PACKET + 4), 1))) == []
    assert reader.broken == 1


def test_pcapng_of_our_own() -> None:
    """What Minerva captures: names, nanoseconds and directions are as they were written."""
    stream = io.BytesIO()
    writer = PcapngWriter(stream)
    port = writer.add_interface("eth1", LinkType.ETHERNET)
    tunnel = writer.add_interface("acp_1", LinkType.IPV6)
    frame = bytes(12) + b"\x86\xdd" + datagram(FLOOD.encode())
    writer.write(port, 1_700_000_000_123_456_789, frame, outgoing=True)
    writer.write(tunnel, 1_700_000_001_000_000_001, segment(0, b"", SYN), outgoing=False)
    writer.write(tunnel, 1_700_000_001_000_000_002, segment(1, FLOOD.encode()))
    writer.flush()
    one, other = read(stream.getvalue())
    assert isinstance(one, CapturedMessage)
    assert isinstance(other, CapturedMessage)
    assert (one.flow.interface, one.time_ns, one.outgoing) == ("eth1", 1_700_000_000_123_456_789, True)
    assert (other.flow.interface, other.time_ns, other.outgoing) == ("acp_1", 1_700_000_001_000_000_002, None)
    assert one.message == other.message == FLOOD


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (b"#!/bin/sh", "neither a pcap nor a pcapng"),
        (pcap([]) + struct.pack("<IIII", 1, 1, MAX_PACKET + 1, 0), "a packet of 1048577 bytes"),
        (section()[:8] + bytes(4), "no known byte order"),
        (section() + struct.pack("<III", 6, 13, 0), "a block of 13 bytes"),
        (section() + struct.pack("<III", 6, 8, 0), "a block of 8 bytes"),
        (section() + struct.pack("<III", 6, 1 << 30, 0), "a block of 1073741824 bytes"),
        (section() + struct.pack("<III", 6, 12, 16), "two lengths differ"),
        (section() + block(1, b"1234"), "too short"),
    ],
)
def test_damaged_files(file: bytes, why: str) -> None:
    """Where the packets cannot be told apart any more the reading ends, with a reason."""
    with pytest.raises(CaptureError, match=why):
        list(CaptureReader().feed(file))


def test_what_comes_before_the_damage() -> None:
    """All that was captured before is told before the error is, the end of a conversation included."""
    file = pcap([segment(0, b"", SYN), segment(1, TALK[:40])]) + b"\xff" * 16
    found, why = until_damage(GraspCapture(), [file])
    assert "damaged" in why
    assert messages(found) == [APPENDIX_A[0]]
    assert notes(found) == ["ends in the middle of a message"]


def test_broken_packets_are_skipped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an interface nobody described, larger than their block, cut off, or no packets at all."""
    good = enhanced(datagram(FLOOD.encode()), 1)
    file = (
        section()
        + interface()
        + enhanced(b"x", 1, number=5)
        + block(6, struct.pack("<IIIII", 0, 0, 0, 400, 400) + b"x" * 8)
        + block(6, b"1234")
        + enhanced(b"\x60", 1)
        + good
    )
    capture = GraspCapture()
    assert messages(list(capture.read([file]))) == [FLOOD]
    assert (capture.counts.broken, capture.counts.packets, capture.counts.messages) == (4, 2, 1)
    assert capture.counts.cut is False
    capture = GraspCapture()
    assert messages(list(capture.read([file[:-3]]))) == []
    assert capture.counts.cut is True
    monkeypatch.setattr(capture_file, "MAX_INTERFACES", 3)
    with pytest.raises(CaptureError, match="more than 3 interfaces"):
        list(CaptureReader().feed(section() + interface() * 4))
    assert list(CaptureReader().feed(section() + interface() * 3 + section() + interface() * 3)) == []


def test_times_that_are_none() -> None:
    """Whatever the times of a file say, they fit into 63 bits."""
    offset = option(14, struct.pack("<q", 2**62))
    early = option(14, struct.pack("<q", -(2**62)))
    for options, expected in (
        (offset, 2**63 - 1),
        (early, 0),
        (option(9, b"\x7f"), 0),
        (option(9, b"\xff"), 0),
    ):
        (packet,) = CaptureReader().feed(section() + interface(options=options) + enhanced(b"", 2**40))
        assert packet.time_ns == expected
    (packet,) = CaptureReader().feed(section() + interface(options=option(9, b"\0")) + enhanced(b"", 2**63))
    assert packet.time_ns == 2**63 - 1


# Links and IP

V4 = ipv4(udp(FLOOD.encode()), 17)
V6 = datagram(FLOOD.encode())


@pytest.mark.parametrize(
    ("link_type", "frame"),
    [
        (ETHERNET, bytes(12) + b"\x86\xdd" + V6),
        (ETHERNET, bytes(12) + b"\x86\xdd" + V6 + b"trailer"),
        (ETHERNET, bytes(12) + b"\x08\x00" + V4),
        (ETHERNET, bytes(12) + b"\x81\x00\x00\x05\x86\xdd" + V6),
        (ETHERNET, bytes(12) + b"\x88\xa8\x00\x05\x81\x00\x00\x07\x86\xdd" + V6),
        (101, V6),
        (101, V4),
        (12, V6),
        (228, V4),
        (229, V6),
        (SLL, bytes(14) + b"\x86\xdd" + V6),
        (SLL, bytes(14) + b"\x81\x00\x00\x05\x08\x00" + V4),
        (SLL2, b"\x86\xdd" + bytes(18) + V6),
        (101, ipv4(udp(FLOOD.encode()), 17, options=b"\x01" * 8)),
        # The size 0 is what a card is given that will cut a large segment.
        (101, V6[:4] + b"\0\0" + V6[6:]),
        (101, V4[:2] + b"\0\0" + V4[4:]),
        # hop-by-hop, routing, destination options, authentication, and a fragment that is all of it
        (101, ipv6(b"\x2b\0" + bytes(6) + b"\x3c\x01" + bytes(14) + b"\x33\0" + bytes(6) + b"\x2c\x01"
                   + bytes(10) + b"\x11\0" + bytes(6) + udp(FLOOD.encode()), 0)),
    ],
)  # fmt: skip
def test_links(link_type: int, frame: bytes) -> None:
    """A datagram on each kind of link, under VLAN tags, and behind options and extension headers."""
    found = dissect(link_type, frame)
    assert isinstance(found, Datagram)
    assert found.data == FLOOD.encode()
    assert (found.source_port, found.destination_port) == (49152, 7017)
    assert found.source in (ONE, V4_ONE)
    assert found.destination in (ALL, OTHER, V4_OTHER)


def test_segments() -> None:
    """TCP with options, over IPv4, and in a frame that is filled up to 60 bytes."""
    frame = bytes(12) + b"\x08\x00" + ipv4(tcp(7, b"\x81\x00", options=b"\x01" * 12), 6) + bytes(9)
    found = dissect(ETHERNET, frame)
    assert isinstance(found, Segment)
    assert (found.sequence, found.data, found.source, found.source_port) == (7, b"\x81\x00", V4_ONE, 40000)


@pytest.mark.parametrize(
    ("link_type", "data"),
    [
        (147, b""),
        (101, b""),
        (101, b"\x50" + bytes(60)),
        (ETHERNET, bytes(12) + b"\x08\x06" + bytes(28)),
        (101, ipv6(b"", 59)),
        (101, ipv6(b"", 58)),
        (101, ipv6(b"\x11\0" + b"\x00\x08" + bytes(4) + udp(b"x"), 44)),
        (101, ipv6(b"\x11\0" + b"\x00\x01" + bytes(4) + udp(b"x"), 44)),
        (101, ipv4(udp(b"x"), 17, fragment=0x2000)),
        (101, ipv4(udp(b"x"), 17, fragment=1)),
        (101, ipv4(b"", 1)),
    ],
)
def test_what_is_of_no_interest(link_type: int, data: bytes) -> None:
    """Other links, other protocols, and fragments."""
    with pytest.raises(NotOursError):
        dissect(link_type, data)


@pytest.mark.parametrize(
    ("link_type", "data"),
    [
        (ETHERNET, bytes(13)),
        (ETHERNET, bytes(12) + b"\x81\x00\x00"),
        (ETHERNET, bytes(12) + b"\x86\xdd" + V4),
        (ETHERNET, bytes(12) + b"\x08\x00" + V6),
        (101, V6[:30]),
        (101, V6[:47]),
        (101, V6[:-1]),
        (101, V4[:-1]),
        (101, b"\x44" + V4[1:]),
        (101, ipv6(b"\0\0" + bytes(6), 0) * 2),
        (101, ipv6((b"\0\0" + bytes(6)) * 40, 0)),
        (101, ipv6(b"\x11\xff" + udp(b"x"), 60)),
        (101, ipv6(b"\x11\xff" + udp(b"x"), 51)),
        (101, ipv6(struct.pack("!HHHH", 1, 7017, 7, 0), 17)),
        (101, ipv6(tcp(1, b"")[:19], 6)),
        (101, ipv6(tcp(1, b"")[:12] + b"\x40" + tcp(1, b"")[13:], 6)),
        (101, ipv6(tcp(1, b"")[:12] + b"\xf0" + tcp(1, b"")[13:], 6)),
    ],
)
def test_broken_packets(link_type: int, data: bytes) -> None:
    """Cut off anywhere, or with sizes that cannot be."""
    with pytest.raises(PacketError) as caught:
        dissect(link_type, data)
    assert not isinstance(caught.value, NotOursError)


# TCP


def test_a_conversation_cut_everywhere() -> None:
    """Two segments with the border at each byte of a conversation, and every byte in its own.

    covers: G2.5.3-2
    """
    for cut in range(1, len(TALK)):
        capture = GraspCapture()
        found = hear(capture, raw(segment(0, b"", SYN), segment(1, TALK[:cut]), segment(1 + cut, TALK[cut:])))
        assert messages(found) == APPENDIX_A
        assert capture.finish() == []
    single = [segment(1 + place, TALK[place : place + 1]) for place in range(len(TALK))]
    assert messages(read(pcap([segment(0, b"", SYN), *single]))) == APPENDIX_A


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, len(TALK)), max_size=30),
    st.randoms(use_true_random=False),
    st.integers(0, 2**32 - 1),
)
def test_segments_mixed_up(cuts: list[int], dice: random.Random, first: int) -> None:
    """Whatever the order, repetitions and overlaps of the segments, and wherever the numbers begin."""
    handshake = segment(first - 1, b"", SYN)
    packets = raw(handshake, *torn(TALK, cuts, dice, first), handshake, segment(first + len(TALK), b"", FIN))
    capture = GraspCapture()
    # The test is about order, not about time.
    found = hear(capture, [Packet(5, packet.link_type, packet.data) for packet in packets])
    assert messages(found) == APPENDIX_A
    assert notes(found) == capture.finish() == []
    assert capture.counts.gaps == 0


def test_both_directions_and_many_connections() -> None:
    """Directions and connections have nothing to do with each other, however they are woven."""
    packets = []
    for port in (40000, 40001):
        packets += [
            segment(0, b"", SYN, (port, 7017)),
            segment(9, b"", SYN | ACK, (7017, port), source=OTHER),
        ]
    for place in range(0, len(TALK), 50):
        for port in (40000, 40001):
            piece = TALK[place : place + 50]
            packets += [
                segment(1 + place, piece, ACK, (port, 7017)),
                segment(10 + place, piece, ACK, (7017, port), source=OTHER),
            ]
    found = read(pcap(packets))
    flows = {captured.flow for captured in found}
    assert len(flows) == 4
    for flow in flows:
        assert messages([captured for captured in found if captured.flow == flow]) == APPENDIX_A
        assert flow.reversed() in flows


def test_ports() -> None:
    """TCP and UDP on 7017, what is asked for, and what messages tell of; nothing else."""
    start, end = segment(0, b"", SYN, (1, 2)), segment(1, TALK, ACK, (1, 2))
    assert read(pcap([start, end, datagram(FLOOD.encode(), 1, 2)])) == []
    assert messages(read(pcap([start, end]), ports=(7017, 2))) == APPENDIX_A
    assert messages(read(pcap([start, end]), ports=(1,))) == APPENDIX_A
    capture = GraspCapture()
    asked = datagram(APPENDIX_A[0].encode(), source=2)
    hear(capture, raw(asked))
    # The response goes to where the question came from: ONE, here.
    reply = [segment(0, b"", SYN, (1, 2), OTHER), segment(1, APPENDIX_A[1].encode(), ACK, (1, 2), OTHER)]
    assert messages(hear(capture, raw(*reply))) == [APPENDIX_A[1]]
    host = IPv6Address("2001:db8:f000:baaa:f000:baaa:f000:baaa")
    talk = [
        ipv6(tcp(0, b"", SYN, (9, 49443)), 6, ONE, host),
        ipv6(tcp(1, TALK, ACK, (9, 49443)), 6, ONE, host),
        ipv6(tcp(7, APPENDIX_A[13].encode(), ACK, (49443, 9)), 6, host, ONE),
        ipv6(tcp(1, TALK, ACK, (9, 49444)), 6, ONE, host),
    ]
    assert messages(hear(capture, raw(*talk))) == [*APPENDIX_A, APPENDIX_A[13]]
    for number in range(MAX_LEARNT + 10):
        hear(capture, raw(datagram(APPENDIX_A[0].encode(), source=10_000 + number)))
    assert len(capture._learnt) == MAX_LEARNT
    # A connection that is known stays known.
    more = ipv6(tcp(1 + len(TALK), FLOOD.encode(), ACK, (9, 49443)), 6, ONE, host)
    assert messages(hear(capture, raw(more))) == [FLOOD]
    assert hear(capture, raw(ipv6(tcp(1, TALK, ACK, (10, 49443)), 6, ONE, host))) == []


def test_tls_is_said_and_not_guessed_at() -> None:
    """Once a connection, however its first bytes are cut, and if the capture begins in the middle of it."""
    record = bytes.fromhex("170303") + b"\x00\x20" + bytes(range(0x81, 0xA1))
    begin = segment(0, b"", SYN)
    answer = [
        segment(0, b"", SYN | ACK, (7017, 40000), OTHER),
        segment(1, TLS_HELLO, ACK, (7017, 40000), OTHER),
    ]
    for size in (1, 2, 3, len(TLS_HELLO)):
        pieces = [
            segment(1 + start, TLS_HELLO[start : start + size]) for start in range(0, len(TLS_HELLO), size)
        ]
        (note,) = found = read(pcap([begin, *pieces, *answer, segment(1 + len(TLS_HELLO), record)]))
        assert notes(found) == ["TLS, not readable"]
        assert (note.flow.source, note.flow.destination_port) == (ONE, 7017)
    assert notes(read(pcap([segment(77, record), segment(77 + len(record), record)]))) == [
        "TLS, not readable"
    ]
    on_channel = [
        Packet(packet.time_ns, RAW, packet.data, "acp_1")
        for packet in raw(begin, segment(1, TLS_HELLO), *answer)
    ]
    assert notes(hear(GraspCapture(), on_channel)) == ["TLS, not readable"]
    # A gap in it is no loss.
    capture = GraspCapture()
    assert len(list(capture.read([pcap([begin, segment(1, TLS_HELLO), segment(5000, record)])]))) == 1
    assert capture.counts.gaps == 0


def test_what_is_not_grasp() -> None:
    """Is said once with a reason; then the next segment that begins as a message does is read again."""
    http = b"GET / HTTP/1.1\r\n\r\n"
    packets = [segment(0, b"", SYN), segment(1, http), segment(1 + len(http), http)]
    assert notes(read(pcap(packets))) == ["not GRASP: neither GRASP nor TLS"]
    assert messages(read(pcap(packets))) == []
    broken = FLOOD.encode() + b"\x81\x1c"
    packets = [
        segment(0, b"", SYN),
        segment(1, broken),
        segment(1 + len(broken), TALK),
        segment(1 + len(broken) + len(TALK), broken),
    ]
    found = read(pcap(packets))
    assert messages(found) == [FLOOD, *APPENDIX_A, FLOOD]
    assert notes(found) == ["not GRASP: no CBOR item begins with 0x1c"]
    # CBOR that is an array, but none of GRASP's, is shown with what is wrong with it.
    (error,) = messages(read(pcap([segment(0, b"", SYN), segment(1, b"\x82\x0a\x05")])))
    assert isinstance(error, GraspDecodeError)
    (error,) = messages(read(pcap([datagram(b"\x82\x0a\x05")])))
    assert isinstance(error, GraspDecodeError)


def test_a_capture_that_begins_in_the_middle() -> None:
    """What is left of a message is passed over; from the next segment that begins one on it is complete."""
    half = FLOOD.encode()[30:]
    packets = [segment(500, half), segment(500 + len(half), TALK)]
    capture = GraspCapture()
    found = list(capture.read([pcap(packets)]))
    assert messages(found) == APPENDIX_A
    assert notes(found) == []
    assert capture.counts.gaps == 0


def test_segments_without_data() -> None:
    """Acknowledgments and resets change nothing, not even those with numbers from elsewhere."""
    stream = FLOOD.encode()
    packets = [
        segment(900, b""),
        segment(0, b"", SYN),
        segment(1, stream[:30]),
        segment(0, b"", RST),
        segment(1 << 31, b"", RST | ACK),
        segment(31, b""),
        # A probe of a closed window: the byte before, again (RFC 9293 section 3.8.4).
        segment(30, b"\0"),
        segment(31, stream[30:]),
        segment(1 + len(stream), b"", FIN),
    ]
    capture = GraspCapture()
    assert messages(hear(capture, raw(*packets))) == [FLOOD]
    assert capture.finish() == []
    assert capture.counts.gaps == 0


def test_missing_segments() -> None:
    """What follows a gap is told when the capture ends, or when the gap has been there for too long."""
    lost = FLOOD.encode()
    packets = [
        segment(0, b"", SYN),
        segment(1, lost[:20]),
        segment(1 + len(lost), TALK[:50]),
        segment(51 + len(lost), TALK[50:]),
    ]
    capture = GraspCapture()
    assert hear(capture, raw(*packets)) == []
    assert messages(capture.finish()) == APPENDIX_A
    assert capture.counts.gaps == 1
    capture = GraspCapture()
    assert hear(capture, raw(*packets)) == []
    late = Packet(PATIENCE_NS + 10**10, RAW, segment(1 + len(lost + TALK), lost))
    assert messages(capture.receive(late)) == [*APPENDIX_A, FLOOD]
    # It comes after all, but nothing is said twice.
    assert capture.receive(Packet(late.time_ns, RAW, packets[2])) == []
    assert capture.finish() == []
    # A gap that is filled ends the wait for that one; the next has its own time.
    capture = GraspCapture()
    second = 2 * 10**10
    timed = [
        (0, segment(0, b"", SYN)),
        (0, segment(11, TALK[10:20])),
        (0, segment(31, TALK[30:])),
        (PATIENCE_NS - second, segment(1, TALK[:10])),
        (PATIENCE_NS + second, segment(1 + len(TALK), lost)),
        (PATIENCE_NS + second, segment(21, TALK[20:30])),
    ]
    assert messages(hear(capture, [Packet(when, RAW, data) for when, data in timed])) == [*APPENDIX_A, FLOOD]
    assert capture.counts.gaps == 0
    # The time is that for which this gap has been there, not that of the connection.
    capture = GraspCapture()
    later = [Packet(number * PATIENCE_NS, RAW, data) for number, data in enumerate(packets[:2])]
    assert hear(capture, [*later, Packet(9 * PATIENCE_NS, RAW, packets[2])]) == []
    assert hear(capture, [Packet(9 * PATIENCE_NS + 1, RAW, segment(21, lost[20:]))]) != []


def test_packets_that_the_capture_has_cut() -> None:
    """With a short snaplen a datagram is broken, and a stream has a gap."""
    cut = segment(1, FLOOD.encode())[:-20]
    capture = GraspCapture()
    packets = raw(segment(0, b"", SYN), cut, segment(1 + len(FLOOD.encode()), TALK), V6[:-20])
    assert hear(capture, packets) == []
    assert messages(capture.finish()) == APPENDIX_A
    assert (capture.counts.gaps, capture.counts.broken) == (1, 1)


def test_the_same_ports_again() -> None:
    """A new connection between the same ports has nothing to do with the old one."""
    packets = [
        segment(0, b"", SYN),
        segment(1, FLOOD.encode()[:20]),
        segment(70_000, b"", SYN),
        segment(70_001, TALK),
        # And one whose beginning is not in the capture.
        segment(70_000 + (1 << 30), FLOOD.encode()),
        # Data with the SYN (RFC 7413).
        segment(5, Wait(1, 1).encode(), SYN),
    ]
    capture = GraspCapture()
    found = list(capture.read([pcap(packets)]))
    assert messages(found) == [*APPENDIX_A, FLOOD, Wait(1, 1)]
    assert notes(found) == ["ends in the middle of a message"]
    assert capture.counts.gaps == 0
    # Whereas the same beginning again is that of the same connection.
    packets = [*packets[:2], segment(0, b"", SYN), segment(21, FLOOD.encode()[20:])]
    assert messages(read(pcap(packets))) == [FLOOD]
    # The end of one that has hardly begun is said too.
    assert notes(read(pcap([segment(0, b"", SYN), segment(1, b"\x81")]))) == [
        "ends in the middle of a message"
    ]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments after a gap, connections, and a message without end."""
    capture = GraspCapture()
    hear(capture, raw(segment(0, b"", SYN)))
    piece = Invalid(1, bytes(1380)).encode()
    for number in range(1000):
        hear(capture, raw(segment(10_000 + number * len(piece), piece)))
        assert capture._held <= MAX_HELD + 2 * len(piece)
    assert capture.counts.messages > 800
    # One byte at a time costs more than a byte.
    capture = GraspCapture()
    hear(capture, raw(segment(0, b"", SYN)))
    for number in range(MAX_HELD // 64 + 1):
        hear(capture, raw(segment(10_000 + 2 * number, b"\x81")))
    assert capture._held <= MAX_HELD
    assert capture.counts.gaps > 1
    # All connections together.
    monkeypatch.setattr(capture_module, "MAX_HELD_IN_ALL", 10_000)
    capture = GraspCapture()
    for port in range(1, 3 * MAX_STREAMS):
        hear(capture, raw(segment(0, b"", SYN, (port, 7017)), segment(9, piece, ACK, (port, 7017))))
        assert capture._held <= 10_000
        assert len(capture._streams) <= MAX_STREAMS
    assert capture._held == sum(stream.reassembly.held_size for stream in capture._streams.values())
    # More than any message.
    capture = GraspCapture()
    long = b"\x83\x18\x63\x00\x9f" + bytes(70_000)
    hear(capture, raw(segment(0, b"", SYN)))
    said = [
        captured
        for start in range(0, len(long), 1000)
        for captured in hear(capture, raw(segment(1 + start, long[start : start + 1000])))
    ]
    assert messages(said) == []
    assert notes(said) == ["not GRASP: CBOR item of more than 65535 bytes"]


# Whatever it is

_SEEDS = [
    pcap([segment(0, b"", SYN), segment(1, TALK[:99]), segment(60, TALK[59:]), V6, V4]),
    pcap([bytes(12) + b"\x86\xdd" + V6], ETHERNET, ">"),
    section() + interface(options=option(2, b"x") + option(9, b"\x09")) + enhanced(V6, 5) + enhanced(V4, 6),
]


@settings(deadline=None, derandomize=True)
@given(
    st.binary(max_size=200)
    | st.tuples(st.sampled_from(_SEEDS), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)))).map(
        lambda drawn: _spoilt(*drawn)
    ),
    st.integers(1, 100),
)
def test_any_bytes(file: bytes, size: int) -> None:
    """Nothing but a CaptureError, and the same in pieces."""
    outcomes = []
    for pieces in ([file], [file[start : start + size] for start in range(0, len(file), size)]):
        capture = GraspCapture()
        found, why = until_damage(capture, pieces)
        outcomes.append(([repr(captured) for captured in found], why, capture.counts))
    assert outcomes[0] == outcomes[1]


def _spoilt(seed: bytes, changes: list[tuple[int, int]]) -> bytes:
    data = bytearray(seed)
    for place, value in changes:
        data[place % len(data)] = value
    return bytes(data)
