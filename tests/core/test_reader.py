"""The strict reader of binary formats."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest

from minerva.core.errors import DecodeError
from minerva.core.reader import Reader


class OurError(DecodeError):
    """What a protocol would pass."""


def test_reads_in_order() -> None:
    """Every width, big-endian, and the position after each."""
    data = bytes.fromhex("01 0203 04050607 08090a0b0c0d0e0f") + IPv6Address("fe80::1").packed + b"tail"
    reader = Reader(data, OurError)
    assert (reader.u8("a"), reader.position) == (0x01, 1)
    assert (reader.u16("b"), reader.position) == (0x0203, 3)
    assert (reader.u32("c"), reader.position) == (0x04050607, 7)
    assert (reader.u64("d"), reader.position) == (0x08090A0B0C0D0E0F, 15)
    assert reader.ipv6("e") == IPv6Address("fe80::1")
    assert reader.remaining == 4
    assert reader.read(0, "nothing") == b""
    assert reader.rest() == b"tail"
    reader.expect_end("message")


def test_bounds() -> None:
    """A reader of a part sees nothing outside it."""
    reader = Reader(b"0123456789", OurError, start=2, end=5)
    assert (reader.position, reader.remaining) == (2, 3)
    with pytest.raises(OurError, match="field: 4 bytes wanted, 3 left"):
        reader.read(4, "field")
    assert reader.read(3, "field") == b"234"
    reader.expect_end("part")


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
def test_too_short(width: int) -> None:
    """What is cut off raises the protocol's error with the field's name, and moves nothing."""
    reader = Reader(b"\x00" * (width - 1), OurError)
    read = {1: reader.u8, 2: reader.u16, 4: reader.u32, 8: reader.u64, 16: reader.ipv6}[width]
    with pytest.raises(OurError, match="the field"):
        read("the field")
    assert reader.position == 0


def test_negative_length() -> None:
    """A length computed from hostile bytes may be negative: it must not go backwards."""
    reader = Reader(b"abc", OurError, start=2)
    with pytest.raises(OurError):
        reader.read(-1, "field")
    assert reader.position == 2


def test_trailing_bytes() -> None:
    """The end of the input is checked."""
    with pytest.raises(OurError, match="message: 3 bytes after its end"):
        Reader(b"abc", OurError).expect_end("message")
