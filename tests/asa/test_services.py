"""SRV.est and AN_join_registrar: what is flooded, and what is made of what others flood."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Any

import pytest

from minerva.asa import services
from minerva.asa.services import EST_TLS, Service, est_server, join_registrar
from minerva.grasp.api import AsaLocator, TaggedObjective
from minerva.grasp.constants import ObjectiveFlag, TransportProto
from minerva.grasp.messages import Flood, FloodEntry
from minerva.grasp.options import NO_VALUE, FqdnLocator, IPv6Locator, Objective

TCP, UDP = TransportProto.IPPROTO_TCP, TransportProto.IPPROTO_UDP
ADDRESS = IPv6Address("fd89:b714:f3db:0:200:0:6400:1")


def flooded(tagged: TaggedObjective, session_id: int, address: IPv6Address, ttl: int) -> bytes:
    """Return the flood of one objective as bytes."""
    assert tagged.locator is not None
    entry = FloodEntry(tagged.objective, tagged.locator.locator)
    return Flood(session_id, address, ttl, (entry,)).encode()


def test_srv_est_is_that_of_the_rfc() -> None:
    """RFC 8994 figure 4, with the address that the RFC misprints.

    covers: 6.2.5.1-2, 6.2.5.1-3
    """
    wire = "85091a00bc4e4f50fd89b714f3db000002000000640000011a000334508283675352562e6573740418ff84186750"
    wire += "fd89b714f3db00000200000064000001061901bb"
    assert flooded(est_server(ADDRESS, 443), 12340815, ADDRESS, services.SRV_EST_TTL).hex() == wire
    assert services.PERIOD == 60
    assert services.PERIOD * 3.5 * 1000 == services.SRV_EST_TTL


def test_an_join_registrar_is_that_of_the_rfc() -> None:
    """RFC 8995 figure 12.

    covers: R-1
    """
    wire = "85091a031678a150fda379a6f6ee00000200000064000001"
    wire += "1a0002bf20828471414e5f6a6f696e5f7265676973747261720418ff674553542d544c53"
    wire += "84186750fda379a6f6ee00000200000064000001061920fb"
    address = IPv6Address("fda3:79a6:f6ee:0:200:0:6400:1")
    tagged = join_registrar(address, 8443)
    assert flooded(tagged, 0x031678A1, address, services.JOIN_REGISTRAR_TTL).hex() == wire
    assert services.PERIOD * 3 * 1000 == services.JOIN_REGISTRAR_TTL


@pytest.mark.parametrize("value", [NO_VALUE, None, "", "BRSKI_JP", 7, ["a", {}], {"unknown": 1}])
def test_whatever_the_value_says(value: Any) -> None:
    """
    covers: 6.2.5.1-4
    """
    objective = Objective("SRV.est", ObjectiveFlag.F_SYNCH, 200, value)
    tagged = TaggedObjective(objective, AsaLocator(IPv6Locator(ADDRESS, TCP, 443)))
    (found,) = services.services([tagged])
    assert (found.objective, found.address, found.port) == ("SRV.est", ADDRESS, 443)
    assert found.variation == (value if isinstance(value, str) else None)


def test_places_that_nobody_in_the_acp_could_use_are_left_out() -> None:
    objective = Objective("AN_join_registrar", ObjectiveFlag.F_SYNCH, 255, EST_TLS)
    places = [
        None,
        AsaLocator(FqdnLocator("registrar.example", TCP, 443)),
        AsaLocator(IPv6Locator(IPv6Address("fe80::1"), TCP, 443)),
        AsaLocator(IPv6Locator(ADDRESS, TCP, 0)),
        AsaLocator(IPv6Locator(ADDRESS, UDP, 5684)),
    ]
    found = services.services([TaggedObjective(objective, place) for place in places])
    assert found == [Service("AN_join_registrar", ADDRESS, 5684, UDP, EST_TLS)]
