"""GRASP messages for people and for programs: what they say, in full, and nothing that does harm."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cbor2 import CBORSimpleValue, CBORTag
from hypothesis import given, settings
from hypothesis import strategies as st

from minerva.core import cbor
from minerva.grasp.constants import ObjectiveFlag, TransportProto
from minerva.grasp.messages import Discovery, End, Flood, FloodEntry, Invalid, Message, Noop, Response, decode
from minerva.grasp.options import (
    NO_VALUE,
    Divert,
    FqdnLocator,
    IPv4Locator,
    IPv6Locator,
    Objective,
    UriLocator,
)
from minerva.grasp.text import (
    MAX_LINE,
    MAX_VALUE,
    diagnostic,
    endpoint_text,
    json_data,
    json_text,
    message_data,
    message_text,
    objectives,
    printable,
)

from .examples import ACP, APPENDIX_A, DRAFT_FLOOD, EST, HOST, LINK_LOCAL

TCP = TransportProto.IPPROTO_TCP
OBJECTIVE = Objective("EX1", ObjectiveFlag.F_SYNCH, 1, "x")
HARM = "a\x1b[2J\x07\u202e\u2066\u200b\u2028\x9b\x7f\U000e0041\ufeffb"
ESCAPED = "a\\u001b[2J\\u0007\\u202e\\u2066\\u200b\\u2028\\u009b\\u007f\\udb40\\udc41\\ufeffb"


@pytest.mark.parametrize(
    ("data", "notation"),
    [
        ("00", "0"),
        ("1bffffffffffffffff", "18446744073709551615"),
        ("3bffffffffffffffff", "-18446744073709551616"),
        ("f90000", "0.0"),
        ("f98000", "-0.0"),
        ("fb3ff199999999999a", "1.1"),
        ("f97bff", "65504.0"),
        ("fbc010666666666666", "-4.1"),
        ("f97c00", "Infinity"),
        ("f97e00", "NaN"),
        ("f9fc00", "-Infinity"),
        ("f4", "false"),
        ("f5", "true"),
        ("f6", "null"),
        ("f7", "undefined"),
        ("f0", "simple(16)"),
        ("f8ff", "simple(255)"),
        ("c074323031332d30332d32315432303a30343a30305a", '0("2013-03-21T20:04:00Z")'),
        ("c11a514b67b0", "1(1363896240)"),
        ("d74401020304", "23(h'01020304')"),
        ("d818456449455446", "24(h'6449455446')"),
        ("d82076687474703a2f2f7777772e6578616d706c652e636f6d", '32("http://www.example.com")'),
        ("40", "h''"),
        ("4401020304", "h'01020304'"),
        ("60", '""'),
        ("62225c", r'"\"\\"'),
        ("62c3bc", '"ü"'),
        ("63e6b0b4", '"水"'),
        ("64f0908591", '"\U00010151"'),
        ("80", "[]"),
        ("8301820203820405", "[1, [2, 3], [4, 5]]"),
        ("a0", "{}"),
        ("a201020304", "{1: 2, 3: 4}"),
        ("a26161016162820203", '{"a": 1, "b": [2, 3]}'),
        ("826161a161626163", '["a", {"b": "c"}]'),
        ("a1820102a10304", "{[1, 2]: {3: 4}}"),
    ],
)
def test_diagnostic_notation(data: str, notation: str) -> None:
    """The examples of RFC 8949 appendix A that a decoded item can still be told by, and keys of a map."""
    assert diagnostic(cbor.loads(bytes.fromhex(data))) == notation


def _others(fixtures: Path) -> list[dict[str, Any]]:
    lines = (fixtures / "grasp-peer" / "messages.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_messages_of_another_implementation(fixtures: Path) -> None:
    """Each in the notation that a third party has written down, in its line, and without loss in JSON."""
    for line in _others(fixtures):
        data = bytes.fromhex(line["hex"])
        assert diagnostic(cbor.loads(data)) == line["diag"]
        message = decode(data)
        assert message_text(data).split()[0] == message.TYPE.name
        as_json = json.loads(json_text(message_data(data)))
        assert as_json["hex"] == line["hex"]
        assert line["kind"].startswith(as_json["type"])
        # All that it says is among the fields.
        assert "item" not in as_json
        assert "error" not in as_json


_LL = "h'fe80000000000000c0011001feef0000'"
_EST = "h'fd89b714f3db00000200000064000001'"
_HOST = "h'20010db8f000baaa28ccdc4c97036781'"

# As RFC 8994 (figures 6 and 4) and RFC 8990 (appendix A) print them, the former with a comma that is missing.
_AN_ACP = [
    f'[["AN_ACP", 4, 1, "IKEv2"], [103, {_LL}, 17, 15000]],'
    f' [["AN_ACP", 4, 1, "DTLS"], [103, {_LL}, 17, 17000]]',
    '[["AN_ACP", 4, 1, "IKEv2"], []]',
    f'[["AN_ACP", 4, 1, "IKEv2"], [103, {_LL}, 17, 500]]',
    f'[["AN_ACP", 4, 1, [["IKEv2"]]], [103, {_LL}, 17, 500]]',
    f'[["AN_ACP", 4, 1, [["IKEv2", {{"x": 1}}], "ext1"]], [103, {_LL}, 17, 500]]',
]
_SRV_EST = [
    f'[["SRV.est", 4, 255], [103, {_EST}, 6, 443]]',
    f'[["SRV.est", 4, 255, null], [103, {_EST}, 6, 443]]',
]
_APPENDIX_A = [
    f'[1, 13948744, {_HOST}, ["EX1", 5, 2, 0]]',
    f"[2, 13948744, {_HOST}, 60000, [103, h'20010db8f000baaaf000baaaf000baaa', 6, 49443]]",
    f'[9, 3504974, {_HOST}, 10000, [["EX1", 5, 2, ["Example 1 value=", 100]], []]]',
    '[4, 4038926, ["EX2", 5, 5, 0]]',
    '[8, 4038926, ["EX2", 5, 5, ["Example 2 value=", 200]]]',
    '[3, 802813, ["EX3", 3, 6, ["NZD", 47]]]',
    "[6, 802813, [101]]",
    '[3, 13767778, ["EX3", 3, 6, ["NZD", 410]]]',
    '[5, 13767778, ["EX3", 3, 6, ["NZD", 80]]]',
    '[5, 13767778, ["EX3", 3, 5, ["NZD", 307]]]',
    "[7, 13767778, 34965]",
    '[5, 13767778, ["EX3", 3, 4, ["NZD", 120]]]',
    '[5, 13767778, ["EX3", 3, 3, ["NZD", 246]]]',
    '[6, 13767778, [102, "Insufficient funds"]]',
]


def test_examples_as_they_are_printed(vectors: Any) -> None:
    """All examples of both RFCs in the notation in which they stand there."""
    printed = [f"[9, 12340815, {_LL}, 210000, {entries}]" for entries in _AN_ACP]
    printed += [f"[9, 12340815, {_EST}, 210000, {entries}]" for entries in _SRV_EST]
    found = [bytes.fromhex(example["hex"]) for example in vectors["grasp_acp"]]
    assert [diagnostic(cbor.loads(data)) for data in found] == printed
    found = [bytes.fromhex(example) for example in vectors["grasp_rfc8990_appA"]]
    assert [diagnostic(cbor.loads(data)) for data in found] == _APPENDIX_A


def test_the_registrar_of_rfc8995() -> None:
    """The flood by which a registrar tells of itself, decoded, shown, and the same bytes again."""
    address = IPv6Address("fda3:79a6:f6ee::200:0:6400:1")
    data = cbor.dumps(
        [
            9,
            51804321,
            address.packed,
            180000,
            [["AN_join_registrar", 4, 255, "EST-TLS"], [103, address.packed, 6, 8443]],
        ]
    )
    assert decode(data).encode() == data
    assert message_text(data) == (
        f"M_FLOOD session 51804321 initiator {address} ttl 180 s"
        f' AN_join_registrar (SYNCH, loop 255) = "EST-TLS" at tcp [{address}]:8443'
    )


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            ACP[0],
            "M_FLOOD session 12340815 initiator fe80::c001:1001:feef:0 ttl 210 s"
            ' AN_ACP (SYNCH, loop 1) = "IKEv2" at udp [fe80::c001:1001:feef:0]:15000;'
            ' AN_ACP (SYNCH, loop 1) = "DTLS" at udp [fe80::c001:1001:feef:0]:17000',
        ),
        (
            ACP[1],
            "M_FLOOD session 12340815 initiator fe80::c001:1001:feef:0 ttl 210 s"
            ' AN_ACP (SYNCH, loop 1) = "IKEv2"',
        ),
        (
            ACP[5],
            f"M_FLOOD session 12340815 initiator {EST} ttl 210 s"
            f" SRV.est (SYNCH, loop 255) at tcp [{EST}]:443",
        ),
        (
            ACP[6],
            f"M_FLOOD session 12340815 initiator {EST} ttl 210 s"
            f" SRV.est (SYNCH, loop 255) = null at tcp [{EST}]:443",
        ),
        (APPENDIX_A[0], f"M_DISCOVERY session 13948744 initiator {HOST} EX1 (DISC|SYNCH, loop 2) = 0"),
        (
            APPENDIX_A[1],
            f"M_RESPONSE session 13948744 initiator {HOST} ttl 60 s"
            " at tcp [2001:db8:f000:baaa:f000:baaa:f000:baaa]:49443",
        ),
        (APPENDIX_A[3], "M_REQ_SYN session 4038926 EX2 (DISC|SYNCH, loop 5) = 0"),
        (APPENDIX_A[4], 'M_SYNCH session 4038926 EX2 (DISC|SYNCH, loop 5) = ["Example 2 value=", 200]'),
        (APPENDIX_A[5], 'M_REQ_NEG session 802813 EX3 (DISC|NEG, loop 6) = ["NZD", 47]'),
        (APPENDIX_A[6], "M_END session 802813 accept"),
        (APPENDIX_A[9], 'M_NEGOTIATE session 13767778 EX3 (DISC|NEG, loop 5) = ["NZD", 307]'),
        (APPENDIX_A[10], "M_WAIT session 13767778 34.965 s"),
        (APPENDIX_A[13], 'M_END session 13767778 decline "Insufficient funds"'),
        (Noop(), "M_NOOP"),
        (Invalid(7), "M_INVALID session 7"),
        (Invalid(7, None), "M_INVALID session 7 null"),
        (End(7, accepted=False), "M_END session 7 decline"),
        (
            Flood(1, IPv4Address("192.0.2.1"), 0, (FloodEntry(Objective("two words", ObjectiveFlag(0), 0)),)),
            'M_FLOOD session 1 initiator 192.0.2.1 ttl unlimited "two words" (no flags, loop 0)',
        ),
        (
            Response(
                1,
                EST,
                0,
                divert=Divert(
                    (
                        FqdnLocator("host.example", TCP, 80),
                        UriLocator("coap://host", TCP, 5),
                        UriLocator("x"),
                        IPv4Locator(IPv4Address("192.0.2.1"), TransportProto.IPPROTO_UDP, 9),
                    )
                ),
                objective=OBJECTIVE,
            ),
            f'M_RESPONSE session 1 initiator {EST} ttl 0 s divert at tcp "host.example":80,'
            ' "coap://host" tcp port 5, "x", udp 192.0.2.1:9 EX1 (SYNCH, loop 1) = "x"',
        ),
    ],
)
def test_line(message: Message, line: str) -> None:
    """Each type of message in the line by which people know it: RFC 8994's, RFC 8990's and others."""
    assert message_text(message.encode()) == line


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("", "not a GRASP message: CBOR item cut off"),
        (
            "ffff",
            "not a GRASP message: not CBOR: break code encountered where a data item was expected: h'ffff'",
        ),
        ("820a05", "not a GRASP message: unknown message type 10: [10, 5]"),
        ("820905", "not a GRASP message: rest of M_FLOOD has 0 elements, not 3: [9, 5]"),
        ("8100" + "00", "not a GRASP message: 1 bytes after the CBOR item: h'810000'"),
        ("7f", "not a GRASP message: "),
        (DRAFT_FLOOD.hex(), "not a GRASP message: CBOR item cut off"),
        (b"GET / HTTP/1.1".hex(), "not a GRASP message: 6 bytes after the CBOR item: h'474554202f2048"),
    ],
)
def test_what_is_no_message(data: str, line: str) -> None:
    """It is said why, and what it is instead; JSON has all of it."""
    assert message_text(bytes.fromhex(data)).startswith(line)
    as_json = message_data(bytes.fromhex(data))
    assert as_json["hex"] == data
    assert as_json["error"]


def test_json_of_a_message() -> None:
    """All fields, under the RFC's names; times in milliseconds."""
    assert message_data(ACP[0].encode()) == {
        "type": "M_FLOOD",
        "session_id": 12340815,
        "initiator": str(LINK_LOCAL),
        "ttl": 210000,
        "entries": [
            {
                "objective": {"name": "AN_ACP", "flags": ["SYNCH"], "loop_count": 1, "value": value},
                "locator": {"address": str(LINK_LOCAL), "transport": "udp", "port": port},
            }
            for value, port in (("IKEv2", 15000), ("DTLS", 17000))
        ],
        "hex": ACP[0].encode().hex(),
    }
    uri = Response(1, EST, 5, (UriLocator("x"), FqdnLocator("y", TCP, 1)), objective=OBJECTIVE)
    found = message_data(uri.encode())
    assert found["locators"] == [
        {"uri": "x", "transport": None, "port": None},
        {"fqdn": "y", "transport": "tcp", "port": 1},
    ]
    assert found["objective"] == {"name": "EX1", "flags": ["SYNCH"], "loop_count": 1, "value": "x"}
    divert = message_data(Response(1, EST, 5, divert=Divert((IPv6Locator(EST, TCP, 5),))).encode())
    assert divert["divert"] == [{"address": str(EST), "transport": "tcp", "port": 5}]
    assert message_data(APPENDIX_A[10].encode())["waiting_time"] == 34965
    end = message_data(APPENDIX_A[13].encode())
    assert (end["accepted"], end["reason"]) == (False, "Insufficient funds")
    # Absent is not null.
    assert "content" not in message_data(Invalid(7).encode())
    assert message_data(Invalid(7, None).encode())["content"] is None
    assert "value" not in message_data(ACP[5].encode())["entries"][0]["objective"]
    assert message_data(ACP[6].encode())["entries"][0]["objective"]["value"] is None


def test_json_of_what_we_do_not_know() -> None:
    """Options that a message discards are still there for who looks at it."""
    extended = [7, 1, 2, [107, b"signature"]]
    assert message_data(cbor.dumps(extended)) == {
        "type": "M_WAIT",
        "session_id": 1,
        "waiting_time": 2,
        "item": [7, 1, 2, [107, {"hex": b"signature".hex()}]],
        "hex": cbor.dumps(extended).hex(),
    }
    assert message_data(cbor.dumps([10, 5]))["item"] == [10, 5]
    assert message_data(b"\xf6")["item"] is None


@pytest.mark.parametrize(
    ("item", "written"),
    [
        (b"\xc0\xff", {"hex": "c0ff"}),
        ({"hex": "c0ff"}, {"map": [["hex", "c0ff"]]}),
        ({"tag": 1, "value": 2}, {"map": [["tag", 1], ["value", 2]]}),
        ({"tag": 1}, {"tag": 1}),
        ({"map": []}, {"map": [["map", []]]}),
        ({"float": "NaN"}, {"map": [["float", "NaN"]]}),
        ({"simple": 23}, {"map": [["simple", 23]]}),
        ({1: 2, "1": 3}, {"map": [[1, 2], ["1", 3]]}),
        ({(1, 2): {"a": 1}}, {"map": [[[1, 2], {"a": 1}]]}),
        (float("-inf"), {"float": "-Infinity"}),
        (cbor2.undefined, {"simple": 23}),
        (CBORSimpleValue(99), {"simple": 99}),
        (CBORTag(24, b"\x01"), {"tag": 24, "value": {"hex": "01"}}),
        (-(2**64), -(2**64)),
    ],
)
def test_json_of_what_json_lacks(item: Any, written: Any) -> None:
    """Forms of our own, and no map that could be taken for one of them."""
    assert json_data(item) == written


def test_objectives() -> None:
    """The objectives of a message, whichever type it is."""
    assert [objective.name for objective in objectives(ACP[0])] == ["AN_ACP", "AN_ACP"]
    assert objectives(APPENDIX_A[0]) == (Objective("EX1", ObjectiveFlag(5), 2, 0),)
    assert objectives(APPENDIX_A[1]) == ()
    assert objectives(APPENDIX_A[6]) == objectives(APPENDIX_A[10]) == objectives(Noop()) == ()


def test_nothing_harmful_gets_out() -> None:
    """Controls, escape sequences, characters for bidirectional text and invisible ones, wherever they are."""
    assert printable(HARM) == ESCAPED
    assert printable("a\n\t\r\\\"'ü水") == "a\\n\\t\\r\\\"'ü水"
    objective = Objective(HARM, ObjectiveFlag(4), 1, {HARM: [HARM, CBORTag(5, HARM)]})
    locators = (FqdnLocator(HARM, TCP, 1), UriLocator(HARM))
    for message in (
        Discovery(1, HOST, objective),
        Flood(1, HOST, 1, tuple(FloodEntry(objective, locator) for locator in locators)),
        Response(1, HOST, 1, locators, objective=objective),
        Response(1, HOST, 1, divert=Divert(locators)),
        End(1, accepted=False, reason=HARM),
        Invalid(1, HARM),
    ):
        line, as_json = message_text(message.encode()), json_text(message_data(message.encode()))
        assert line.isprintable()
        assert ESCAPED in line
        assert as_json.isascii()
        assert as_json.isprintable()
        assert json.loads(as_json)["session_id"] == 1
    for broken in ([HARM], [9, HARM], [6, 1, [102, [HARM]]], [2, 1, HOST.packed, 1, [105, HARM]], HARM):
        line, as_json = message_text(cbor.dumps(broken)), json_text(message_data(cbor.dumps(broken)))
        assert line.startswith("not a GRASP message")
        assert line.isprintable()
        assert as_json.isascii()
        assert as_json.isprintable()


def test_length_is_bounded() -> None:
    """A value of 60 KiB, a name, a reason, many entries: no line is longer than is asked for."""
    long = "x" * 60_000
    assert diagnostic(long, limit=20) == '"xxxxxxxxxxxxxxxx...'
    assert diagnostic(list(range(1000)), limit=10) == "[0, 1, ..."
    assert diagnostic([1, 2], limit=6) == "[1, 2]"
    assert diagnostic([1, 2], limit=5) == "[1..."
    assert diagnostic([1, 2], limit=2) == ".."
    assert len(diagnostic(bytes(60_000))) == 120_003
    line = message_text(Invalid(1, long).encode())
    assert line == "M_INVALID session 1 " + '"' + "x" * (MAX_VALUE - 4) + "..."
    many = tuple(FloodEntry(Objective(f"name{number}", ObjectiveFlag(4), 1)) for number in range(200))
    assert len(message_text(Flood(1, HOST, 1, many).encode())) == MAX_LINE
    assert message_text(Flood(1, HOST, 1, many).encode(), limit=30) == "M_FLOOD session 1 initiator..."
    assert len(message_text(bytes(60_000))) < 300


def test_endpoints() -> None:
    """Addresses and ports as they are usually written."""
    assert endpoint_text(IPv6Address("fe80::1"), 7017) == "[fe80::1]:7017"
    assert endpoint_text(IPv4Address("192.0.2.1"), 80) == "192.0.2.1:80"


def _back(data: Any) -> Any:
    """Return the CBOR item that :func:`json_data` has written."""
    if isinstance(data, list):
        return [_back(element) for element in data]
    if not isinstance(data, dict):
        return data
    match data:
        case {"hex": str(digits), **rest} if not rest:
            return bytes.fromhex(digits)
        case {"float": str(name), **rest} if not rest:
            return float(name)
        case {"simple": int(number), **rest} if not rest:
            return cbor2.undefined if number == 23 else CBORSimpleValue(number)
        case {"tag": int(number), "value": value, **rest} if not rest:
            return CBORTag(number, _back(value))
        case {"map": list(pairs), **rest} if not rest:
            return {_hashable(_back(key)): _back(value) for key, value in pairs}
    return {key: _back(value) for key, value in data.items()}


def _hashable(item: Any) -> Any:
    return tuple(_hashable(element) for element in item) if isinstance(item, list) else item


_texts = st.text(max_size=8) | st.sampled_from(["hex", "float", "simple", "map", "tag", "value", HARM])
_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | _texts
    | st.binary(max_size=9)
    | st.floats()
    | st.just(cbor2.undefined)
    | st.sampled_from([CBORSimpleValue(number) for number in (0, 16, 19, 32, 255)])
)
_items = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(_texts, inner, max_size=3)
        | st.dictionaries(_texts | st.integers(0, 99) | st.binary(max_size=2), inner, max_size=3)
        | st.builds(CBORTag, st.integers(0, 2**32), inner)
    ),
    max_leaves=8,
)


@settings(deadline=None, derandomize=True)
@given(_items)
def test_json_loses_nothing(item: Any) -> None:
    """Whatever CBOR can say comes back from JSON as the same bytes."""
    data = cbor.dumps(item)
    written = json_text(json_data(cbor.loads(data)))
    assert written.isascii()
    assert written.isprintable()
    assert cbor.dumps(_back(json.loads(written))) == data


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=60) | _items.map(lambda item: Invalid(1, item).encode()))
def test_any_bytes(data: bytes) -> None:
    """Bytes of all kinds give one printable line and JSON, and never an exception."""
    line, as_json = message_text(data), json_text(message_data(data))
    assert line.isprintable()
    assert 0 < len(line) <= MAX_LINE
    assert as_json.isascii()
    assert as_json.isprintable()
    assert json.loads(as_json)["hex"] == data.hex()
    if data and message_data(data).get("content", NO_VALUE) is not NO_VALUE:
        assert cbor.dumps(_back(json.loads(as_json)["content"])) == cbor.dumps(cbor.loads(data)[2])
