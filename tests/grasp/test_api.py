"""The vocabulary of the GRASP API: there and back again."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.core import cbor
from minerva.grasp.api import AsaLocator, TaggedObjective
from minerva.grasp.constants import ObjectiveFlag, TransportProto
from minerva.grasp.errors import GraspError
from minerva.grasp.options import (
    NO_VALUE,
    FqdnLocator,
    IPv4Locator,
    IPv6Locator,
    Objective,
    UriLocator,
)

TRANSPORTS, PORTS = st.sampled_from(TransportProto), st.integers(0, 65535)
LOCATORS = st.one_of(
    st.builds(IPv6Locator, st.ip_addresses(v=6), TRANSPORTS, PORTS),
    st.builds(IPv4Locator, st.ip_addresses(v=4), TRANSPORTS, PORTS),
    st.builds(FqdnLocator, st.text(), TRANSPORTS, PORTS),
    st.builds(UriLocator, st.text(), st.none() | TRANSPORTS, st.none() | PORTS),
)
ASA_LOCATORS = st.builds(
    AsaLocator, LOCATORS, st.integers(0, 2**32 - 1), st.none() | st.integers(0, 2**62), st.booleans()
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
OBJECTIVES = st.builds(
    Objective,
    st.text(),
    st.integers(0, 15).map(ObjectiveFlag),
    st.integers(0, 255),
    st.just(NO_VALUE) | VALUES,
)


def sent(item: Any) -> Any:
    """Return an item as it arrives at the other end."""
    return cbor.loads(cbor.dumps(item))


@given(ASA_LOCATORS)
def test_locators_arrive_as_they_were_sent(locator: AsaLocator) -> None:
    assert AsaLocator.from_cbor(sent(locator.to_cbor())) == locator


@given(OBJECTIVES, st.none() | ASA_LOCATORS)
def test_tagged_objectives_arrive_as_they_were_sent(item: Objective, locator: AsaLocator | None) -> None:
    tagged = TaggedObjective(item, locator)
    assert TaggedObjective.from_cbor(sent(tagged.to_cbor())) == tagged


def test_addresses() -> None:
    tcp = TransportProto.IPPROTO_TCP
    six = AsaLocator(IPv6Locator(IPv6Address("fd00::1"), tcp, 7017), 3, 5000, True)
    assert (six.is_ipaddress, six.address) == (True, IPv6Address("fd00::1"))
    four = AsaLocator(IPv4Locator(IPv4Address("192.0.2.1"), tcp, 80))
    assert (four.is_ipaddress, four.address) == (True, None)
    name = AsaLocator(FqdnLocator("a.example", tcp, 80))
    assert (name.is_ipaddress, name.address) == (False, None)
    assert (four.interface, four.ttl, four.diverted) == (0, None, False)


GOOD = [[103, bytes(16), 6, 7017], 0, None, False]


@pytest.mark.parametrize(
    "item",
    [
        None,
        [],
        GOOD[:3],
        [None, *GOOD[1:]],
        [[103, bytes(15), 6, 7017], *GOOD[1:]],
        [GOOD[0], -1, None, False],
        [GOOD[0], 2**32, None, False],
        [GOOD[0], True, None, False],
        [GOOD[0], 0, -1, False],
        [GOOD[0], 0, 2**63, False],
        [GOOD[0], 0, "x", False],
        [GOOD[0], 0, None, 0],
    ],
)
def test_what_is_no_locator(item: Any) -> None:
    AsaLocator.from_cbor(GOOD)
    with pytest.raises(GraspError):
        AsaLocator.from_cbor(item)
    with pytest.raises(GraspError):
        TaggedObjective.from_cbor([["EX1", 4, 6], item] if item is not None else [["EX1", 4, 6]])


@given(VALUES)
def test_no_item_raises_anything_else(item: Any) -> None:
    for kind in (AsaLocator, TaggedObjective):
        with suppress(GraspError):
            kind.from_cbor(item)
