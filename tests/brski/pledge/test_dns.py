"""DNS messages: vectors by hand, what is malformed, and what another implementation reads and writes."""

from __future__ import annotations

import struct
import time
from contextlib import suppress
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS

from minerva.brski.pledge.dns import (
    MAX_MESSAGE,
    MAX_QUESTIONS,
    MAX_RECORDS,
    Message,
    Name,
    Question,
    Record,
    Server,
    Type,
    name_of,
)
from minerva.brski.pledge.errors import DnsDecodeError

SERVICE = name_of("_brski-proxy._tcp.local.")
INSTANCE: Name = (b"a b", *SERVICE)
HOST = name_of("Proxy.local")
ADDRESS = IPv6Address("fe80::1")

QUERY = (
    "0000 0000 0001 0000 0000 0000 0c 5f62 7273 6b69 2d70 726f 7879 04 5f746370 05 6c6f63616c 00 000c 8001"
)
RESPONSE = (
    "0000 8400 0000 0001 0000 0003"
    "0c 5f6272736b692d70726f7879 04 5f746370 05 6c6f63616c 00 000c 0001 00001194 0006 03 412062 c00c"  # PTR
    "03 412042 c00c 0021 8001 00000078 000e 0000 0000 115b 05 50726f7879 c01e"  # SRV
    "c04b 0001 8001 00000078 0004 7f000001"  # A, which is passed over
    "c04b 001c 8001 00000078 0010 fe80 0000 0000 0000 0000 0000 0000 0001"  # AAAA
)


def header(questions: int, answers: int, flags: int = 0x8400) -> bytes:
    return struct.pack("!6H", 0, flags, questions, answers, 0, 0)


def test_query() -> None:
    message = Message(False, (Question(SERVICE, Type.PTR, unicast=True),))
    data = bytes.fromhex(QUERY)
    assert Message.decode(data) == message
    assert message.encode() == data


def test_response() -> None:
    """Names go on elsewhere, also in the middle, and are told apart without regard to case."""
    message = Message.decode(bytes.fromhex(RESPONSE))
    assert message.response
    assert message.records == (
        Record(SERVICE, 4500, INSTANCE),
        Record(INSTANCE, 120, Server(4443, HOST), flush=True),
        Record(HOST, 120, ADDRESS, flush=True),
    )
    assert Message.decode(message.encode()) == message


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "ID"),
        (header(1, 0), "label"),
        (header(0, 0) + b"\0", "after its end"),
        (header(0, 0, flags=0x2000), "plain"),
        (header(0, 0, flags=0x8003), "plain"),
        (header(1, 0) + b"\xc0\x0c\0\x0c\0\1", "goes on at 12"),
        (header(1, 0) + b"\1a\xc0\x0c\0\x0c\0\1", "goes on at 12"),
        (header(1, 0) + b"\1a\xff\xff\0\x0c\0\1", "goes on at"),
        (header(1, 0) + b"\x40a\0\0\x0c\0\1", "label begins with 0x40"),
        (header(1, 0) + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\x0c\0\1", "more than 255"),
        (header(0, 1) + b"\0" + struct.pack("!HHIH", 28, 1, 0, 15) + bytes(15), "address"),
        (header(0, 1) + b"\0" + struct.pack("!HHIH", 28, 1, 0, 17) + bytes(17), "after its end"),
        (header(0, 1) + b"\0" + struct.pack("!HHIH", 28, 1, 0, 17) + bytes(16), "data"),
        (header(0, 1) + b"\0" + struct.pack("!HHIH", 33, 1, 0, 6) + bytes(7), "label"),
        (header(0, 1) + b"\0" + struct.pack("!HHIH", 12, 1, 0, 2) + bytes(2), "after its end"),
        (header(MAX_QUESTIONS + 1, 0), "too many"),
        (header(0, MAX_RECORDS + 1), "too many"),
        (bytes(MAX_MESSAGE + 1), "at most"),
    ],
)
def test_malformed(data: bytes, what: str) -> None:
    with pytest.raises(DnsDecodeError, match=what):
        Message.decode(data)


def test_pointers_have_an_end() -> None:
    """Each to the front of the one before, and no more than sixteen."""

    def chain(pointers: int) -> bytes:
        start = 12 + 11  # after the header and the beginning of the record in which the chain is
        places = [start, *range(start + 3, start + 3 + 2 * pointers, 2)]
        parts = b"\1a\0" + b"".join(struct.pack("!H", 0xC000 | place) for place in places[:pointers])
        last = struct.pack("!H", 0xC000 | places[pointers])
        record = b"\0" + struct.pack("!HHIH", 99, 1, 0, len(parts)) + parts
        return header(0, 2) + record + last + struct.pack("!HHIH", 12, 1, 0, 2) + last

    assert Message.decode(chain(15)).records == (Record((b"a",), 0, (b"a",)),)
    with pytest.raises(DnsDecodeError, match="after 16 pointers"):
        Message.decode(chain(16))


def test_a_long_name_that_is_pointed_to_by_all_is_read_once() -> None:
    long = b"\1a" * 126 + b"\0"
    record = b"\xc0\x0c" + struct.pack("!HHIH", 12, 1, 120, 2) + b"\xc0\x0c"
    data = header(1, MAX_RECORDS) + long + b"\0\x0c\0\1" + record * MAX_RECORDS
    start = time.process_time()
    for _ in range(10):
        assert len(Message.decode(data).records) == MAX_RECORDS
    assert (time.process_time() - start) / 10 < 0.05


def test_other_classes_and_types_are_passed_over() -> None:
    opt = b"\0" + struct.pack("!HHIH", 41, 1440, 0, 4) + bytes(4)
    chaos = b"\0" + struct.pack("!HHIH", 12, 3, 0, 0)
    assert Message.decode(header(0, 2) + opt + chaos) == Message(True)
    assert Message.decode(header(1, 0) + b"\0\0\x0c\0\3") == Message(True)
    assert Message.decode(header(1, 0) + b"\0\0\xff\0\xff").questions == (Question((), 255),)


# --- any message -------------------------------------------------------------------------------------------

LABELS = st.binary(min_size=1, max_size=63).map(bytes.lower)
NAMES = st.lists(LABELS, max_size=5).map(tuple).filter(lambda name: sum(map(len, name)) + len(name) < 255)
TTLS = st.integers(0, 2**32 - 1)
DATA = st.one_of(
    NAMES,
    st.builds(Server, st.integers(0, 65_535), NAMES),
    st.binary(min_size=16, max_size=16).map(IPv6Address),
)
MESSAGES = st.builds(
    Message,
    st.booleans(),
    st.lists(st.builds(Question, NAMES, st.integers(0, 65_535), st.booleans()), max_size=4).map(tuple),
    st.lists(st.builds(Record, NAMES, TTLS, DATA, st.booleans()), max_size=8).map(tuple),
    st.booleans(),
)


@given(MESSAGES)
def test_what_is_encoded_is_decoded(message: Message) -> None:
    assert Message.decode(message.encode()) == message


@given(st.binary(max_size=200))
def test_whatever_it_is_there_is_one_kind_of_error(data: bytes) -> None:
    for content in (data, header(1, 2) + data):
        try:
            message = Message.decode(content)
        except DnsDecodeError:
            continue
        assert Message.decode(message.encode()) == message


@given(MESSAGES, st.data())
def test_one_byte_is_another(message: Message, data: st.DataObject) -> None:
    changed = bytearray(message.encode())
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with suppress(DnsDecodeError):
        Message.decode(bytes(changed))


@given(st.lists(LABELS, min_size=1, max_size=3).map(tuple), st.integers(1, 65_535), TTLS)
def test_scapy_reads_the_same(host: Name, port: int, ttl: int) -> None:
    records = (Record(SERVICE, ttl, INSTANCE), Record(INSTANCE, ttl, Server(port, host)))
    message = Message(True, (), (*records, Record(host, ttl, ADDRESS)))
    read = DNS(message.encode())
    assert [answer.ttl for answer in read.an] == [ttl] * 3
    assert read.an[0].rrname == b"_brski-proxy._tcp.local."
    assert read.an[0].rdata == b"a b._brski-proxy._tcp.local."
    assert read.an[1].port == port
    assert read.an[1].target == b"".join(label + b"." for label in host)
    assert read.an[2].rdata == str(ADDRESS)
