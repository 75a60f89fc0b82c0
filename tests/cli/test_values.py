"""Values as JSON and in diagnostic notation, and what must not reach a terminal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cbor2 import CBORSimpleValue, CBORTag, undefined
from hypothesis import given
from hypothesis import strategies as st

from minerva.cli.table import table
from minerva.cli.values import from_json, parse, shown
from minerva.core import cbor
from minerva.core.errors import UsageError
from minerva.grasp.options import NO_VALUE
from minerva.grasp.text import json_data, json_text

KEYS = st.text() | st.integers(-(2**64), 2**64 - 1) | st.binary() | st.booleans()
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary()
    | st.just(undefined)
    | st.builds(CBORSimpleValue, st.integers(0, 19) | st.integers(32, 255))
    | st.builds(CBORTag, st.integers(0, 2**32), st.binary()),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(st.sampled_from(["hex", "tag", "value", "map", "float", "simple"]), inner)
    ),
    max_leaves=10,
)


@given(VALUES)
def test_every_value_survives_json(value: Any) -> None:
    there = json_text(json_data(value))
    assert cbor.dumps(from_json(json.loads(there))) == cbor.dumps(value)
    assert there.isascii()
    assert there.isprintable()


@given(VALUES)
def test_what_is_shown_can_be_printed(value: Any) -> None:
    assert shown(value).isprintable()


@pytest.mark.parametrize(
    ("value", "item", "text"),
    [
        (42, 42, "42"),
        (None, None, "null"),
        (True, True, "true"),
        (1.5, 1.5, "1.5"),
        ("héllo", "héllo", '"héllo"'),
        (b"\xc0\xff", {"hex": "c0ff"}, "h'c0ff'"),
        (["a", [1]], ["a", [1]], '["a", [1]]'),
        ({"a": 1}, {"a": 1}, '{"a": 1}'),
        ({1: "x"}, {"map": [[1, "x"]]}, '{1: "x"}'),
        ({"hex": "zz"}, {"map": [["hex", "zz"]]}, '{"hex": "zz"}'),
        (CBORTag(24, b"\x18\x2a"), {"tag": 24, "value": {"hex": "182a"}}, "24(h'182a')"),
        (undefined, {"simple": 23}, "undefined"),
        (CBORSimpleValue(99), {"simple": 99}, "simple(99)"),
        (float("-inf"), {"float": "-Infinity"}, "-Infinity"),
    ],
)
def test_forms(value: Any, item: Any, text: str) -> None:
    assert json_data(value) == item
    assert from_json(item) == value
    assert shown(value) == text


@pytest.mark.parametrize(
    "item",
    [
        {"hex": "abc"},
        {"hex": 5},
        {"float": "1"},
        {"map": 5},
        {"map": [[1]]},
        {"map": [[{"a": 1}, 2]]},
        {"simple": "x"},
        {"simple": 24},
        {"tag": "x", "value": 1},
        {"tag": -1, "value": 1},
    ],
)
def test_what_only_looks_like_a_form(item: Any) -> None:
    with pytest.raises(UsageError, match="none of the forms"):
        from_json(item)


@pytest.mark.parametrize("text", ["\x1b[2J", "\x9b2J", "\x00", "\x7f", "\r\n", "\u202e", "\ud800", "a\tb"])
def test_nothing_reaches_the_terminal_that_does_not_print(text: str) -> None:
    found = [
        shown(text),
        shown({text: [text]}),
        shown(CBORTag(1, text)),
        *table(("A", "B"), [(text, text)], "").split("\n"),
    ]
    for line in found:
        assert line.isprintable(), ascii(line)


def test_parse() -> None:
    assert parse(None) is NO_VALUE
    assert parse("[1, null]") == [1, None]
    assert parse(None, "8201f6") == [1, None]
    assert parse(json.dumps({"a": "b"})) == {"a": "b"}
    for text in ("{", "[1", '"a'):  # whoever wrote that knows of quotes
        with pytest.raises(UsageError, match=r"is not JSON$"):
            parse(text)
    for text, in_cbor, words in [
        ("hello", None, "needs its own quotes"),
        ("{", None, "is not JSON"),
        ("back at noon", None, "needs its own quotes, as in '\"back at noon\"'"),
        ("x" * 500, None, "^x{59}… is not JSON; text needs"),
        ("[" * 5000 + "]" * 5000, None, "nested too deeply: at most 13"),
        ("[" * 14 + "]" * 14, None, "nested too deeply"),
        ('{"tag": 1, "value": ' * 14 + "1" + "}" * 14, None, "nested too deeply"),
        (None, "81" * 14 + "01", "nested too deeply"),
        (None, "\x1b" * 500, r"not '(\\u001b){9}"),
        ("1", "01", "not both"),
        (None, "0x", "hexadecimal"),
        (None, "ff", "CBOR"),
        (None, "0101", "after the CBOR item"),
    ]:
        with pytest.raises(UsageError, match=words):
            parse(text, in_cbor)


def test_table() -> None:
    assert table(("A", "LONG"), [], "nothing") == "nothing"
    assert table(("A", "LONG"), [("abc", None), (1, "x" * 100)], "", width=60).split("\n") == [
        "A    LONG",
        "abc  -",
        "1    " + "x" * 59 + "…",
    ]
