"""JSON from strangers."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.core.errors import DecodeError
from minerva.core.strict_json import load_object


class Refused(DecodeError):
    """The error of this test."""


def load(data: bytes, **limits: int) -> dict[str, Any]:
    return load_object(data, Refused, **{"max_size": 65_536, **limits})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), VALUES, max_size=5), st.booleans())
def test_what_others_write(value: dict[str, Any], ascii_only: bool) -> None:
    assert load(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'"{}"',
        b"{}{}",
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}',
        b'{"b":[{"a":1,"a":2}]}',
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b'{"\\udfff":1}',
        b'\xef\xbb\xbf{"a":1}',
        '{"a":1}'.encode("utf-16"),
        b'{"a":' + b"1" * 5000 + b"}",
        b'{"a":"\n"}',
    ],
)
def test_refused(data: bytes) -> None:
    """covers: V-1"""
    with pytest.raises(Refused):
        load(data)


def test_a_whole_pair_of_halves() -> None:
    assert load(b'{"a":"\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_limits() -> None:
    assert load(b'{"a":[[[]]]}', max_depth=4)
    with pytest.raises(Refused, match="nested more than 3"):
        load(b'{"a":[[[]]]}', max_depth=3)
    assert load(b'{"a":"[[[[[[[[","b":"\\"[[[[[[[["}', max_depth=1)
    assert load(b"{}  ", max_size=4) == {}
    with pytest.raises(Refused, match="at most 4"):
        load(b"{}   ", max_size=4)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 65_536,
        b'{"a":' * 13_000,
        b'"\\' * 32_768,
        b'{"a":"' + b'\\"' * 32_000,
        b'"' * 65_535,
        b"\\" * 65_536,
    ],
)
def test_soon(data: bytes) -> None:
    start = time.perf_counter()
    with pytest.raises(Refused):
        load(data)
    assert time.perf_counter() - start < 1


@given(st.binary(max_size=200))
def test_garbage(data: bytes) -> None:
    try:
        load(data)
    except Refused:
        return
