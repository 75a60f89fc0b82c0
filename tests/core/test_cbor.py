"""Strict CBOR."""

from __future__ import annotations

from typing import Any

import pytest
from cbor2 import CBORTag
from hypothesis import given, settings
from hypothesis import strategies as st

from minerva.core.cbor import MAX_DEPTH, MAX_SIZE, CborError, CborIncomplete, dumps, loads, loads_first


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (2**64 - 1, "1bffffffffffffffff"),
        (-1, "20"),
        (True, "f5"),
        (None, "f6"),
        (1.5, "f93e00"),
        (b"\x01\x02", "420102"),
        ("ü", "62c3bc"),
        ([1, [2, 3]], "8201820203"),
        ({"b": 1, "a": 2, 10: 3}, "a30a03616102616201"),
        (CBORTag(24, b"x"), "d8184178"),
    ],
)
def test_values(value: Any, encoded: str) -> None:
    """Both directions; maps are sorted by their encoded keys."""
    assert dumps(value).hex() == encoded
    assert loads(bytes.fromhex(encoded)) == value


@pytest.mark.parametrize(
    "encoded",
    [
        "0000",  # a second item
        "1c",  # reserved additional information
        "ff",  # a break alone
        "8201ff",  # a break in an array of known length
        "a201020103",  # the same key twice
        "bf01020103ff",
        "62c328",  # not UTF-8
        "5f6161ff",  # text in a byte string
        "f818",  # a simple value in two bytes that must not be
    ],
)
def test_refused(encoded: str) -> None:
    """What is no single, well-formed, unambiguous item."""
    with pytest.raises(CborError) as caught:
        loads(bytes.fromhex(encoded))
    assert not isinstance(caught.value, CborIncomplete)


@pytest.mark.parametrize("encoded", ["", "18", "1a0000", "42ff", "8201", "a101", "9f01", "7f6161", "c1"])
def test_incomplete(encoded: str) -> None:
    """The beginning of an item can be told from garbage, so a stream can wait for the rest."""
    with pytest.raises(CborIncomplete):
        loads(bytes.fromhex(encoded))


@pytest.mark.parametrize(
    ("encoded", "number"),
    [
        ("c074323031332d30332d32315432303a30343a30305a", 0),
        ("c11a514b67b0", 1),
        ("c249010000000000000000", 2),
        ("c48221196ab3", 4),
        ("d8236161", 35),
        ("d81c80", 28),
        ("d81d00", 29),
        ("d825500102030405060708090a0b0c0d0e0f10", 37),
        ("d9010281", None),
        ("d901028101", 258),
        ("d9d9f700", 55799),
    ],
)
def test_tags_are_not_interpreted(encoded: str, number: int | None) -> None:
    """No date, regular expression, bignum or shared reference is made of a stranger's bytes."""
    data = bytes.fromhex(encoded)
    if number is None:
        with pytest.raises(CborIncomplete):
            loads(data)
        return
    value = loads(data)
    assert isinstance(value, CBORTag)
    assert value.tag == number
    assert dumps(value) == data


def test_depth_is_limited() -> None:
    """As deep as allowed and no deeper, whatever the nesting is made of."""
    assert loads(b"\x81" * (MAX_DEPTH - 1) + b"\x80") is not None
    for opening in (b"\x81", b"\xa1\x00", b"\xc6", b"\x9f"):
        with pytest.raises(CborError):
            loads(opening * (MAX_DEPTH + 1) + b"\x00")
    with pytest.raises(CborError):
        loads(b"\x81\x81\x00", max_depth=1)


def test_size_is_limited() -> None:
    """Neither more bytes than allowed nor the announcement of more is taken."""
    assert len(loads(dumps(b"x" * (MAX_SIZE - 3)))) == MAX_SIZE - 3
    with pytest.raises(CborError, match="at most"):
        loads(dumps(b"x" * (MAX_SIZE - 2)))
    for announced in ("5b7fffffffffffffff", "9b7fffffffffffffff", "bb7fffffffffffffff"):
        with pytest.raises(CborError):
            loads(bytes.fromhex(announced))


def test_first_of_several() -> None:
    """The first item and where it ends."""
    assert loads_first(bytes.fromhex("820102f5")) == ([1, 2], 3)
    with pytest.raises(CborError, match="2 bytes after"):
        loads(bytes.fromhex("00f5f5"))


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    """Whatever the bytes, nothing but a CborError."""
    try:
        _, end = loads_first(data)
    except CborError:
        return
    assert 0 < end <= len(data)
