"""The layout of ESP packets and the sizes that follow from it."""

from __future__ import annotations

import pytest

from minerva.esp.errors import EspError
from minerva.esp.packet import MIN_LINK_MTU, MIN_PACKET_SIZE, TRAILERS, inner_mtu, spi_of


@pytest.mark.parametrize(
    ("link", "inner"), [(1500, 1426), (1400, 1326), (9000, 8926), (1356, 1282), (1359, 1282)]
)
def test_inner_mtu(link: int, inner: int) -> None:
    """The MTU of a channel follows from the link's alone.

    covers: 6.13.3-1
    """
    assert inner_mtu(link) == inner


@pytest.mark.parametrize("in_udp", [False, True])
@pytest.mark.parametrize("link", range(MIN_LINK_MTU + 8, MIN_LINK_MTU + 300))
def test_largest_inner_packet_fits_and_the_next_does_not(link: int, in_udp: bool) -> None:
    def outer_size(inner: int) -> int:
        return 40 + (8 if in_udp else 0) + 8 + 8 + inner + len(TRAILERS[inner & 3]) + 16

    assert outer_size(inner_mtu(link, in_udp=in_udp)) <= link
    assert outer_size(inner_mtu(link, in_udp=in_udp) + 1) > link


def test_link_too_small_for_ipv6() -> None:
    assert MIN_LINK_MTU == 1356
    assert inner_mtu(MIN_LINK_MTU) >= 1280
    assert ((MIN_LINK_MTU - 1 - 72) & ~3) - 2 < 1280
    with pytest.raises(EspError, match="raise it to 1356"):
        inner_mtu(MIN_LINK_MTU - 1)
    assert inner_mtu(MIN_LINK_MTU + 8, in_udp=True) == inner_mtu(MIN_LINK_MTU)
    with pytest.raises(EspError, match="raise it to 1364"):
        inner_mtu(MIN_LINK_MTU + 7, in_udp=True)


def test_trailers() -> None:
    """Padding counts 1, 2, 3; pad length; next header IPv6; and the whole ends on a word (RFC 4303 2.4)."""
    assert TRAILERS == (b"\1\2\2\x29", b"\1\1\x29", b"\0\x29", b"\1\2\3\3\x29")
    assert all((size + len(trailer)) % 4 == 0 for size, trailer in enumerate(TRAILERS))


def test_spi_of() -> None:
    packet = bytes.fromhex("c0ffee01") + bytes(MIN_PACKET_SIZE - 4)
    assert spi_of(packet) == 0xC0FFEE01
    assert spi_of(packet[:-1]) is None
    assert spi_of(b"") is None
