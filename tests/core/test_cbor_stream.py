"""Cutting a stream into CBOR items: the same items however it is segmented, and bounded work and memory."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.core import cbor
from minerva.core.cbor_stream import ItemScanner

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 64), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=40)
    | st.text(max_size=20)
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)

# RFC 8949 appendix A: items of indefinite length, tags, and nesting of both.
_INDEFINITE = (
    "5f42010243030405ff",
    "7f657374726561646d696e67ff",
    "9fff",
    "9f018202039f0405ffff",
    "83018202039f0405ff",
    "bf61610161629f0203ffff",
    "826161bf61626163ff",
    "d818456449455446",
    "c11a514b67b0",
    "f90000",
    "fb3ff199999999999a",
    "f8ff",
)


def segments(stream: bytes, cuts: list[int]) -> list[bytes]:
    """Return the stream cut at the positions given."""
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


@given(st.lists(_VALUES, max_size=6), st.lists(st.integers(0, 10_000), max_size=10))
def test_any_segmentation_gives_the_same_items(values: list[Any], cuts: list[int]) -> None:
    items = [cbor.dumps(value) for value in values]
    scanner = ItemScanner()
    found = [item for piece in segments(b"".join(items), cuts) for item in scanner.feed(piece)]
    assert found == items
    assert scanner.pending == 0


@pytest.mark.parametrize("text", _INDEFINITE)
def test_every_form_of_item(text: str) -> None:
    item = bytes.fromhex(text)
    assert ItemScanner().feed(item + item) == [item, item]
    scanner = ItemScanner()
    for position in range(len(item) - 1):
        assert scanner.feed(item[position : position + 1]) == []
    assert scanner.feed(item[-1:]) == [item]


@pytest.mark.parametrize("text", ["ff", "82ff", "1c", "3f", "df", "fe", "9f1fff", "81ff"])
def test_what_no_item_begins_with(text: str) -> None:
    with pytest.raises(cbor.CborError):
        ItemScanner().feed(bytes.fromhex(text))


@pytest.mark.parametrize(
    "text", ["5b7fffffffffffffff", "9b7fffffffffffffff", "bb00000000ffffffff", "5a00010000"]
)
def test_sizes_that_cannot_be_are_refused_at_once(text: str) -> None:
    with pytest.raises(cbor.CborError, match="more than 2048 bytes"):
        ItemScanner(max_size=2048).feed(bytes.fromhex(text))


def test_an_item_that_grows_too_large_is_refused() -> None:
    scanner = ItemScanner(max_size=100)
    scanner.feed(b"\x9f" + bytes(99))
    with pytest.raises(cbor.CborError, match="more than 100 bytes"):
        scanner.feed(bytes(1))


def test_one_byte_too_many_is_refused_however_it_comes() -> None:
    item = b"\x58\x61" + bytes(97)
    assert ItemScanner(max_size=99).feed(item) == [item]
    for cut in range(1, len(item) + 1):
        assert "more than 98 bytes" in str(refused(ItemScanner(max_size=98), item[:cut], item[cut:]))


def refused(scanner: ItemScanner, *pieces: bytes) -> cbor.CborError | None:
    """Return why the pieces of a stream are refused."""
    try:
        for piece in pieces:
            assert scanner.feed(piece) == []
    except cbor.CborError as error:
        return error
    return None


def test_what_came_before_the_break_is_not_lost() -> None:
    scanner = ItemScanner()
    assert scanner.feed(b"\x01\x02\xff\x03") == [b"\x01", b"\x02"]
    assert scanner.broken is not None
    with pytest.raises(cbor.CborError):
        scanner.feed(b"\x03")


def test_depth_is_bounded() -> None:
    with pytest.raises(cbor.CborError, match="levels deep"):
        ItemScanner(max_depth=16).feed(b"\x81" * 17)


@given(st.binary(max_size=200))
def test_agrees_with_the_decoder(data: bytes) -> None:
    """Whatever the decoder takes for an item, the scanner cuts off at the same place."""
    try:
        _, end = cbor.loads_first(data)
    except cbor.CborError:
        return
    scanner = ItemScanner()
    first = None
    for position in range(len(data)):
        if found := scanner.feed(data[position : position + 1]):
            first = found[0]
            break
    assert first == data[:end]
