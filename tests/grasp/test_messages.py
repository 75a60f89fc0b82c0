"""GRASP messages: the published examples, another implementation's, and what must be refused."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerva.core import cbor
from minerva.grasp.constants import MAX_UINT32, ObjectiveFlag, TransportProto
from minerva.grasp.errors import GraspDecodeError, GraspError, GraspIncomplete
from minerva.grasp.messages import (
    Discovery,
    End,
    Flood,
    FloodEntry,
    Invalid,
    Message,
    Negotiate,
    Noop,
    RequestNegotiation,
    RequestSynchronization,
    Response,
    Synch,
    Wait,
    decode,
    decode_first,
)
from minerva.grasp.options import (
    NO_VALUE,
    Divert,
    FqdnLocator,
    IPv4Locator,
    IPv6Locator,
    Objective,
    UriLocator,
)

from .examples import ACP, APPENDIX_A, DRAFT_FLOOD, LINK_LOCAL

ADDRESS = LINK_LOCAL.packed
LOCATOR = [103, ADDRESS, 17, 500]
LOCATORS = (IPv6Locator(LINK_LOCAL, TransportProto.IPPROTO_UDP, 500),)
OBJECTIVE = ["EX1", 4, 1, "x"]


def test_messages_of_rfc8994(vectors: Any) -> None:
    """The AN_ACP and SRV.est examples: decoded, compared field by field, and the same bytes again.

    SRV.est without a value, and with null as its value, are two different messages, both accepted.

    covers: 6.4-8, 6.4-14, G2.10.3-1, G2.8.11-1
    """
    examples = [bytes.fromhex(example["hex"]) for example in vectors["grasp_acp"]]
    assert [decode(example) for example in examples] == ACP
    assert [message.encode() for message in ACP] == examples


def test_messages_of_rfc8990(vectors: Any) -> None:
    """Appendix A of RFC 8990, decoded, compared field by field, and the same bytes again.

    covers: G2.8.8-1, G2.10.2-1
    """
    examples = [bytes.fromhex(example) for example in vectors["grasp_rfc8990_appA"]]
    assert [decode(example) for example in examples] == APPENDIX_A
    assert [message.encode() for message in APPENDIX_A] == examples


def test_malformed_flood_of_the_draft() -> None:
    """The flood example of draft-15 promises six elements and has five."""
    with pytest.raises(GraspDecodeError, match="cut off"):
        decode(DRAFT_FLOOD)
    assert decode(b"\x85" + DRAFT_FLOOD[1:]) == APPENDIX_A[2]


def _others(fixtures: Path) -> list[dict[str, Any]]:
    lines = (fixtures / "grasp-peer" / "messages.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_messages_of_another_implementation(fixtures: Path) -> None:
    """Every message type of another implementation decodes and encodes to what it was."""
    for line in _others(fixtures):
        data = bytes.fromhex(line["hex"])
        message = decode(data)
        assert line["kind"].startswith(message.TYPE.name)
        if b"\xfb" in data:
            # It writes 3.5 as a double. Deterministic CBOR takes the shortest float.
            assert decode(message.encode()) == message
        else:
            assert message.encode() == data


def test_fields_of_another_implementation(fixtures: Path) -> None:
    """A divert, an echoed objective, a reason and a diagnostic of another implementation."""
    messages = {line["kind"]: decode(bytes.fromhex(line["hex"])) for line in _others(fixtures)}
    initiator = IPv6Address("fd10:2:3::1")
    peer = IPv6Locator(IPv6Address("fd10:2:3::3"), TransportProto.IPPROTO_TCP, 39083)
    assert messages["M_NOOP"] == Noop()
    assert messages["M_RESPONSE_divert"] == Response(1376305714, initiator, 598485, (), Divert((peer,)))
    rapid = messages["M_RESPONSE_rapid_objective"]
    assert isinstance(rapid, Response)
    assert rapid.objective == Objective("rplg:rapid", ObjectiveFlag(5), 6, "rapid-value")
    assert messages["M_END_decline"] == End(3142771949, False, "too low")
    assert messages["M_WAIT"] == Wait(4216516060, 5000)
    assert messages["M_INVALID"] == Invalid(3915770299, "diagnostic text")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([0], Noop()),
        ([0, 1, 2], Noop()),
        ([7, 1, 2, "more"], Wait(1, 2)),
        ([99, 1], Invalid(1)),
        ([99, 1, None], Invalid(1, None)),
        ([6, 1, [102]], End(1, False)),
        ([6, 1, [102, "no", 4]], End(1, False, "no")),
        ([6, 1, [107, b"signature"], [101]], End(1, True)),
        ([6, 1, [101], [100, LOCATOR]], End(1, True)),
        ([8, 1, [*OBJECTIVE, "more"], [107]], Synch(1, Objective("EX1", ObjectiveFlag.F_SYNCH, 1, "x"))),
        (
            [9, 1, ADDRESS, 0, [107, b"signature"], [OBJECTIVE, [], "more"], 5],
            Flood(1, LINK_LOCAL, 0, (FloodEntry(Objective("EX1", ObjectiveFlag.F_SYNCH, 1, "x")),)),
        ),
        (
            [9, 1, ADDRESS, 0, [OBJECTIVE, [108, "new"]], [["B", 4, 1], []]],
            Flood(1, LINK_LOCAL, 0, (FloodEntry(Objective("B", ObjectiveFlag.F_SYNCH, 1)),)),
        ),
        (
            [2, 1, ADDRESS, 5, [101], [*LOCATOR, 1], [100, LOCATOR]],
            Response(1, LINK_LOCAL, 5, (IPv6Locator(LINK_LOCAL, TransportProto.IPPROTO_UDP, 500),)),
        ),
    ],
)
def test_unknown_and_misplaced_options_are_discarded(item: list[Any], message: Message) -> None:
    """Options that do not fit the message, or that are unknown, and trailing elements change nothing.

    covers: G2.8.2-1, G2.9-1, G2.8.13-1
    """
    assert decode(cbor.dumps(item)) == message


@pytest.mark.parametrize(
    "item",
    [
        [],
        {},
        "text",
        [True],
        [-1, 1],
        [256, 1],
        ["9", 1],
        [1],
        [7, True, 1],
        [7, 2**32, 1],
        [7, -1, 1],
        [7, 1],
        [7, 1, True],
        [7, 1, 1.0],
        [7, 1, 2**32],
        [1, 1, ADDRESS],
        [1, 1, ADDRESS[:15], OBJECTIVE],
        [1, 1, "::1", OBJECTIVE],
        [1, 1, ADDRESS, "EX1"],
        [1, 1, ADDRESS, ["EX1", 4]],
        [1, 1, ADDRESS, [b"EX1", 4, 1]],
        [1, 1, ADDRESS, ["EX1", 16, 1]],
        [1, 1, ADDRESS, ["EX1", True, 1]],
        [1, 1, ADDRESS, ["EX1", 4, 256]],
        [1, 1, ADDRESS, ["EX1", 4, -1]],
        [1, 1, ADDRESS, ["EX1", 4, False]],
        [2, 1, ADDRESS, 5],
        [2, 1, ADDRESS, 5, OBJECTIVE],
        [2, 1, ADDRESS, 5, [100]],
        [2, 1, ADDRESS, 5, [100, [107]]],
        [2, 1, ADDRESS, -5, LOCATOR],
        [2, 1, ADDRESS, 5, LOCATOR, ["EX1"]],
        [2, 1, ADDRESS, 5, 100],
        [2, 1, ADDRESS, 5, [103, ADDRESS[:4], 17, 500]],
        [2, 1, ADDRESS, 5, [104, ADDRESS, 17, 500]],
        [2, 1, ADDRESS, 5, [103, ADDRESS, 1, 500]],
        [2, 1, ADDRESS, 5, [103, ADDRESS, None, 500]],
        [2, 1, ADDRESS, 5, [103, ADDRESS, 17, 65536]],
        [2, 1, ADDRESS, 5, [103, ADDRESS, 17, True]],
        [2, 1, ADDRESS, 5, [103, ADDRESS, 17]],
        [2, 1, ADDRESS, 5, [105, b"host", 17, 1]],
        [2, 1, ADDRESS, 5, [106, 5, None, None]],
        [2, 1, ADDRESS, 5, [106, "uri", None, -1]],
        [6, 1],
        [6, 1, [100]],
        [6, 1, 101],
        [6, 1, 102],
        [6, 1, [102, 5]],
        [9, 1, ADDRESS, 5],
        [9, 1, ADDRESS, 5, [107]],
        [9, 1, ADDRESS, 5, [OBJECTIVE]],
        [9, 1, ADDRESS, 5, [OBJECTIVE, None]],
        [9, 1, ADDRESS, 5, [OBJECTIVE, ["x"]]],
        [9, 1, ADDRESS, 5, [OBJECTIVE, [[]]]],
        [9, 1, ADDRESS, 5, "x"],
        [9, 1, ADDRESS, 5, OBJECTIVE],
        [10, 1, 2],
    ],
)
def test_refused(item: Any) -> None:
    """What the CDDL does not allow; a boolean is not a number."""
    with pytest.raises(GraspDecodeError):
        decode(cbor.dumps(item))


def test_error_knows_what_to_answer() -> None:
    """An unknown type and a broken message leave type and Session ID for M_INVALID."""
    with pytest.raises(GraspDecodeError, match="unknown message type 10") as caught:
        decode(cbor.dumps([10, 77]))
    assert (caught.value.message_type, caught.value.session_id) == (10, 77)
    with pytest.raises(GraspDecodeError) as caught:
        decode(cbor.dumps([3, 78, "no objective"]))
    assert (caught.value.message_type, caught.value.session_id) == (3, 78)
    with pytest.raises(GraspDecodeError) as caught:
        decode(cbor.dumps([3, "no session"]))
    assert (caught.value.message_type, caught.value.session_id) == (3, None)


def test_decode_of_one_type() -> None:
    """A class decodes its own messages only."""
    data = Wait(1, 2).encode()
    assert Wait.decode(data) == Wait(1, 2)
    with pytest.raises(GraspDecodeError, match="M_WAIT where M_END is expected"):
        End.decode(data)


def test_size_is_limited() -> None:
    """2048 bytes are taken, more only when the caller says so."""
    longest = Invalid(1, b"x" * 2041)
    assert len(longest.encode()) == 2048
    assert decode(longest.encode()) == longest
    too_long = Invalid(1, b"x" * 2042)
    with pytest.raises(GraspDecodeError, match="2049 bytes"):
        decode(too_long.encode())
    assert decode(too_long.encode(), max_size=4096) == too_long


def test_stream() -> None:
    """Messages on a stream have no length in front: the end of the CBOR item is the end of the message."""
    first, second = APPENDIX_A[7], APPENDIX_A[8]
    stream = first.encode() + second.encode()
    assert decode_first(stream) == (first, len(first.encode()))
    for length in range(len(first.encode())):
        with pytest.raises(GraspIncomplete):
            decode_first(stream[:length])
    with pytest.raises(GraspDecodeError, match="longer than 10") as caught:
        decode_first(stream, max_size=10)
    assert not isinstance(caught.value, GraspIncomplete)
    with pytest.raises(GraspDecodeError) as caught:
        decode_first(b"\xff" + stream)
    assert not isinstance(caught.value, GraspIncomplete)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Wait(-1, 0),
        lambda: Wait(0, 2**32),
        lambda: Wait(True, 0),
        lambda: Flood(1, LINK_LOCAL, 0, ()),
        lambda: Response(1, LINK_LOCAL, 0),
        lambda: Response(1, LINK_LOCAL, 0, LOCATORS, Divert(LOCATORS)),
        lambda: Divert(()),
        lambda: End(1, True, "why"),
        lambda: Objective("x", ObjectiveFlag.F_NEG, 256),
        lambda: Objective("x", ObjectiveFlag(16), 1),
        lambda: IPv6Locator(LINK_LOCAL, TransportProto.IPPROTO_TCP, 65536),
        lambda: UriLocator("coap://x", None, -1),
    ],
)
def test_nothing_invalid_can_be_made(make: Any) -> None:
    """Our own mistakes are refused before they are sent, and are no decode errors."""
    with pytest.raises(GraspError) as caught:
        make()
    assert not isinstance(caught.value, GraspDecodeError)


def test_value_that_cbor_cannot_say() -> None:
    """A Python object that is not CBOR is a mistake of ours."""
    with pytest.raises(GraspError, match="not to be encoded"):
        Invalid(1, object()).encode()


_texts = st.text(max_size=12)
_uint32 = st.integers(0, MAX_UINT32)
_transports = st.sampled_from(TransportProto)
_ports = st.integers(0, 65535)
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | _texts | st.binary(max_size=9) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_texts | st.integers(0, 99), inner, max_size=3)
    ),
    max_leaves=6,
)
_objectives = st.builds(
    Objective,
    _texts,
    st.integers(0, 15).map(ObjectiveFlag),
    st.integers(0, 255),
    st.just(NO_VALUE) | _values,
)
_initiators = st.ip_addresses()
_locators = st.one_of(
    st.builds(IPv6Locator, st.ip_addresses(v=6), _transports, _ports),
    st.builds(IPv4Locator, st.ip_addresses(v=4), _transports, _ports),
    st.builds(FqdnLocator, _texts, _transports, _ports),
    st.builds(UriLocator, _texts, st.none() | _transports, st.none() | _ports),
)
_some_locators = st.lists(_locators, min_size=1, max_size=3).map(tuple)
_entries = st.lists(st.builds(FloodEntry, _objectives, st.none() | _locators), min_size=1, max_size=3)
_messages = st.one_of(
    st.just(Noop()),
    st.builds(Discovery, _uint32, _initiators, _objectives),
    st.builds(Response, _uint32, _initiators, _uint32, _some_locators, st.none(), st.none() | _objectives),
    st.builds(Response, _uint32, _initiators, _uint32, st.just(()), st.builds(Divert, _some_locators)),
    *(
        st.builds(kind, _uint32, _objectives)
        for kind in (RequestNegotiation, RequestSynchronization, Negotiate, Synch)
    ),
    st.builds(End, _uint32, st.just(True)),
    st.builds(End, _uint32, st.just(False), st.none() | _texts),
    st.builds(Wait, _uint32, _uint32),
    st.builds(Flood, _uint32, _initiators, _uint32, _entries.map(tuple)),
    st.builds(Invalid, _uint32, st.just(NO_VALUE) | _values),
)


@settings(deadline=None, derandomize=True)
@given(_messages)
def test_round_trip(message: Message) -> None:
    """Every message that can be made decodes to itself."""
    data = message.encode()
    again = decode(data, max_size=cbor.MAX_SIZE)
    assert type(again) is type(message)
    # By bytes, since NaN is not equal to itself.
    assert again.encode() == data


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    """Whatever the bytes, nothing but a decode error, and what decodes encodes."""
    try:
        message = decode(data)
    except GraspDecodeError:
        return
    assert decode(message.encode(), max_size=cbor.MAX_SIZE).encode() == message.encode()


def test_ipv4_initiator() -> None:
    """An initiator may be an IPv4 address."""
    message = decode(cbor.dumps([1, 2, bytes((192, 0, 2, 1)), OBJECTIVE]))
    assert isinstance(message, Discovery)
    assert message.initiator == IPv4Address("192.0.2.1")
