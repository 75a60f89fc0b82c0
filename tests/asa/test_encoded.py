"""Values that are CBOR already (RFC 8991 section 2.3.2.4)."""

from __future__ import annotations

import pytest
from cbor2 import CBORTag

from minerva.asa import NO_VALUE, AsaError, ErrorCode, encoded, raw


@pytest.mark.parametrize("data", ["182a", "9f01ff", "a201020103", "f97e00", "c249010000000000000000"])
def test_what_is_encoded_comes_back_byte_for_byte(data: str) -> None:
    """Also what no encoder of ours would write: indefinite lengths, a key twice."""
    item = bytes.fromhex(data)
    assert encoded(item) == CBORTag(24, item)
    assert raw(encoded(item)) == item


@pytest.mark.parametrize("data", ["", "18", "0102", "ff", "1c"])
def test_what_is_not_one_item_is_refused(data: str) -> None:
    with pytest.raises(AsaError) as caught:
        encoded(bytes.fromhex(data))
    assert caught.value.code is ErrorCode.CBORfail


def test_any_other_value_is_encoded() -> None:
    assert raw(["NZD", 410]).hex() == "82634e5a4419019a"
    assert raw(CBORTag(24, "not bytes")).hex() == "d818696e6f74206279746573"
    with pytest.raises(AsaError) as caught:
        raw(NO_VALUE)
    assert caught.value.code is ErrorCode.CBORfail
