"""Decider and Follower, and who begins."""

from __future__ import annotations

from ipaddress import IPv6Address
from itertools import permutations

import pytest

from minerva.adjacency.roles import INITIATION_DELAY, PeerIdentity, Role, decide_role, initiation_delay
from minerva.pki.address import AcpAddress

GLOBAL_ID = bytes.fromhex("89b714f3db")
LOW, HIGH = IPv6Address("fe80::1"), IPv6Address("fe80::2")
ADDRESSES = [
    None,
    AcpAddress.zone(GLOBAL_ID, 0x0200_0000_6400, 0),
    AcpAddress.zone(GLOBAL_ID, 0x0200_0000_6400, 1),
    AcpAddress.zone(b"\x00\x00\x00\x00\x01", 0x0200_0000_6400, 1),
    AcpAddress.zone(GLOBAL_ID, 0x0200_0000_6400, 1, zone_id=5),
    AcpAddress.vlong8(GLOBAL_ID, 0x0200_0000_6400, 1),
    AcpAddress.vlong16(GLOBAL_ID, 0x0200_0000_6400, 1),
]


@pytest.mark.parametrize(("own", "peer"), [*permutations(ADDRESSES, 2)])
def test_the_two_ends_agree(own: AcpAddress | None, peer: AcpAddress | None) -> None:
    """One is the Decider and the other the Follower, whatever their addresses and link-locals.

    covers: 6.6-3
    """
    for ours, theirs in ((LOW, HIGH), (HIGH, LOW)):
        roles = {decide_role(own, ours, peer, theirs), decide_role(peer, theirs, own, ours)}
        assert roles == {Role.DECIDER, Role.FOLLOWER}


def test_higher_node_id_decides() -> None:
    """Whoever has the higher Node-ID is the Decider, whatever the link-local addresses.

    covers: 6.6-3
    """
    zero, one = ADDRESSES[1], ADDRESSES[2]
    assert decide_role(one, LOW, zero, HIGH) is Role.DECIDER
    assert decide_role(zero, HIGH, one, LOW) is Role.FOLLOWER


def test_node_id_comes_before_the_prefix() -> None:
    """A higher prefix does not make up for a lower Node-ID; between equal Node-IDs it decides.

    covers: 6.6-3
    """
    lower_prefix = AcpAddress.zone(b"\x00\x00\x00\x00\x01", 0x0200_0000_6400, 2)
    assert decide_role(lower_prefix, LOW, ADDRESSES[2], HIGH) is Role.DECIDER
    assert decide_role(ADDRESSES[3], HIGH, ADDRESSES[2], LOW) is Role.FOLLOWER


def test_zero_address_follows() -> None:
    """A peer with the acp-address "0" is the Follower; of two such, the higher link-local decides.

    covers: 6.6-6
    """
    assert decide_role(ADDRESSES[1], LOW, None, HIGH) is Role.DECIDER
    assert decide_role(None, HIGH, ADDRESSES[1], LOW) is Role.FOLLOWER
    assert decide_role(None, HIGH, None, LOW) is Role.DECIDER


def test_the_lower_link_local_begins() -> None:
    """One end begins at once, the other waits."""
    assert initiation_delay(LOW, HIGH) == 0.0
    assert initiation_delay(HIGH, LOW) == INITIATION_DELAY > 0


def test_node_id_of_an_identity() -> None:
    """The table's Node-ID comes from the address in the certificate."""
    assert PeerIdentity("x@d", ADDRESSES[2]).node_id == 0x0200_0000_6400_0002
    assert PeerIdentity("0@d", None).node_id is None
