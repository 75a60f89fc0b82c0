"""Traffic selectors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.core.reader import Reader
from minerva.ikev2.constants import TsType
from minerva.ikev2.errors import IkeDecodeError
from minerva.ikev2.traffic import (
    ALL_IPV6,
    TrafficSelector,
    TrafficSelectorsInitiator,
    TrafficSelectorsResponder,
    narrow,
)


def selector(**changes: Any) -> TrafficSelector:
    fields: dict[str, Any] = {name: getattr(ALL_IPV6, name) for name in TrafficSelector.__dataclass_fields__}
    return TrafficSelector(**(fields | changes))


def test_the_vector(vectors: Any) -> None:
    """covers: 6.8.3.1-3"""
    wire = bytes.fromhex(vectors["ikev2_ts"]["native"])
    decoded = TrafficSelector.decode(Reader(wire, IkeDecodeError))
    assert decoded == ALL_IPV6
    assert (decoded.protocol, decoded.start_port, decoded.end_port) == (0, 0, 65535)
    assert ALL_IPV6.encode() == wire


@pytest.mark.parametrize("payload", [TrafficSelectorsInitiator, TrafficSelectorsResponder])
def test_payload_on_the_wire(
    payload: type[TrafficSelectorsInitiator | TrafficSelectorsResponder], vectors: Any
) -> None:
    wire = bytes.fromhex("01000000" + vectors["ikev2_ts"]["native"])
    assert payload.decode(wire) == payload((ALL_IPV6,))
    assert payload((ALL_IPV6,)).encode() == wire


@pytest.mark.parametrize(
    "wire",
    [
        "",
        "00000000",
        "01000000",
        "02000000" + ALL_IPV6.encode().hex(),
        "01000000" + ALL_IPV6.encode().hex() + "00",
        "01000000" + "0800000c0000ffff" + "00" * 4,
        "01000000" + "080000040000ffff",
        "01000000" + "070000280000ffff" + "00" * 32,
    ],
)
def test_malformed(wire: str) -> None:
    with pytest.raises(IkeDecodeError):
        TrafficSelectorsInitiator.decode(bytes.fromhex(wire))


selectors = st.one_of(
    *(
        st.builds(
            TrafficSelector,
            st.just(int(kind)),
            st.integers(0, 255),
            st.integers(0, 65535),
            st.integers(0, 65535),
            st.binary(min_size=size, max_size=size),
            st.binary(min_size=size, max_size=size),
        )
        for kind, size in ((TsType.TS_IPV4_ADDR_RANGE, 4), (TsType.TS_IPV6_ADDR_RANGE, 16))
    )
)


@given(st.lists(selectors, min_size=1, max_size=5).map(tuple))
def test_round_trip(some: tuple[TrafficSelector, ...]) -> None:
    payload = TrafficSelectorsResponder(some)
    assert TrafficSelectorsResponder.decode(payload.encode()) == payload


def test_unknown_types_are_skipped() -> None:
    unknown = TrafficSelector(9, 0, 0, 65535, b"anything", b"")
    payload = TrafficSelectorsInitiator((unknown, ALL_IPV6))
    assert TrafficSelectorsInitiator.decode(payload.encode()) == payload
    assert narrow(payload.selectors) == (ALL_IPV6,)
    assert narrow((unknown,)) is None


IPV4 = TrafficSelector(TsType.TS_IPV4_ADDR_RANGE, 0, 0, 65535, bytes(4), b"\xff" * 4)


@pytest.mark.parametrize(
    ("offered", "acceptable"),
    [
        ((ALL_IPV6,), True),
        ((IPV4, ALL_IPV6), True),
        ((selector(start=bytes(15) + b"\x01"), ALL_IPV6), True),
        ((IPV4,), False),
        ((selector(protocol=47),), False),
        ((selector(start=bytes(15) + b"\x01"),), False),
        ((selector(end=b"\xff" * 15 + b"\xfe"),), False),
        ((selector(start_port=1),), False),
        ((selector(end_port=65534),), False),
        ((selector(start_port=65535, end_port=0),), False),
    ],
)
def test_only_all_of_ipv6_will_do(offered: tuple[TrafficSelector, ...], acceptable: bool) -> None:
    """covers: 6.8.3.1-3"""
    assert narrow(offered) == ((ALL_IPV6,) if acceptable else None)
