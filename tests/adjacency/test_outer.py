"""Unique local outer addresses: who is known by which address, and whose routes nobody takes over."""

from __future__ import annotations

import random
from ipaddress import IPv6Address

import pytest

from minerva.adjacency.core import Adjacency
from minerva.adjacency.outer import (
    MAX_ROUTES,
    NEW_BURST,
    NEW_INTERVAL,
    Offers,
    OuterAddresses,
    Refusal,
)
from minerva.adjacency.roles import INITIATION_DELAY, PeerIdentity
from minerva.adjacency.table import Initiate, Neighbour, State
from minerva.core.addresses import OwnAddresses
from minerva.pki.address import AcpAddress

OWN_LINK_LOCAL, OWN = IPv6Address("fe80::10"), IPv6Address("fd01:203:405:1::10")
PEER, PEER_ULA = IPv6Address("fe80::20"), IPv6Address("fd0a:b0c:d0e:7::20")
OTHER, OTHER_ULA = IPv6Address("fe80::30"), IPv6Address("fd0f:1:2:3::30")
IKE = {"IKEv2": 500}
FAR = 1000.0


class Port:
    """One port, with a kernel that has every route at once unless told otherwise."""

    def __init__(self, ula: IPv6Address | None = OWN, *, slow: bool = False) -> None:
        self.adjacency = Adjacency(AcpAddress.zone(bytes(5), 1, 100))
        self.adjacency.port_up(1, OWN_LINK_LOCAL, 0.0, ula=ula)
        self.outer = OuterAddresses(self.adjacency, 1, ula)
        self.slow = slow

    def heard(
        self, source: IPv6Address, ula: IPv6Address | None = None, now: float = 0.0, *, only: bool = False
    ) -> None:
        offers: dict[IPv6Address | None, dict[str, int]] = {} if only else {None: IKE}
        if ula is not None:
            offers[ula] = IKE
        self.offers(source, offers, now)

    def offers(self, source: IPv6Address, offers: Offers, now: float = 0.0) -> None:
        self.outer.heard(source, offers, FAR, now)
        self.open(now)

    def open(self, now: float = 0.0) -> None:
        if not self.slow:
            self.outer.opened([ula for ula, _ in self.outer.routes], now)

    def live(self) -> dict[IPv6Address, Neighbour]:
        """Those that the table holds to be there."""
        return {row.address: row for row in self.adjacency.neighbours() if row.expires is not None}

    def initiated(self) -> list[IPv6Address]:
        return [
            event.address for event in iter(self.adjacency.next_event, None) if isinstance(event, Initiate)
        ]


def test_own_address_of_the_same_kind() -> None:
    """Whatever the peer's is; without a unique local one there is only the link-local one."""
    both, one = OwnAddresses(OWN_LINK_LOCAL, OWN), OwnAddresses(OWN_LINK_LOCAL)
    assert (both.towards(PEER), both.towards(PEER_ULA)) == (OWN_LINK_LOCAL, OWN)
    assert (one.towards(PEER), one.towards(PEER_ULA)) == (OWN_LINK_LOCAL, OWN_LINK_LOCAL)


def test_a_neighbour_is_known_by_its_unique_local_address_alone() -> None:
    """And initiated to by the end with the lower one of these."""
    port = Port()
    port.heard(PEER, PEER_ULA)
    assert port.outer.routes == ((PEER_ULA, PEER),)
    assert set(port.live()) == {PEER_ULA}
    assert port.initiated() == [PEER_ULA]
    assert port.outer.link_local_of(PEER_ULA) == port.outer.link_local_of(PEER) == PEER
    other = Port(ula=IPv6Address("fd0b::1"))
    other.heard(PEER, PEER_ULA)
    assert other.initiated() == []
    assert other.adjacency.next_timer() == INITIATION_DELAY


def test_who_has_none_is_known_by_its_link_local_address() -> None:
    port = Port()
    port.heard(PEER)
    assert port.outer.routes == ()
    assert set(port.live()) == {PEER}


def test_without_the_setting_all_is_link_local() -> None:
    """Even if somebody tells of another address."""
    port = Port(ula=None)
    port.heard(PEER, PEER_ULA)
    assert port.outer.routes == ()
    assert port.live()[PEER].methods == IKE


def test_nobody_is_known_before_there_is_a_route() -> None:
    port = Port(slow=True)
    port.heard(PEER, PEER_ULA)
    port.outer.refreshed(PEER, FAR, 0.5)
    assert port.live() == {}
    port.outer.opened([PEER_ULA], 1.0)
    assert port.live()[PEER_ULA].first_heard == 1.0
    port.outer.opened([PEER_ULA], 2.0)
    assert port.live()[PEER_ULA].last_heard == 1.0


def test_the_link_local_flood_comes_first_and_gives_way() -> None:
    """As when the other one was lost: what is connected already stays until its owner closes it."""
    port = Port()
    port.heard(PEER)
    assert set(port.live()) == {PEER}
    port.heard(PEER, PEER_ULA, 1.0)
    assert set(port.live()) == {PEER_ULA}
    port.outer.refreshed(PEER, 2000.0, 60.0)
    assert port.live()[PEER_ULA].expires == 2000.0
    port.heard(PEER, now=61.0)
    assert set(port.live()) == {PEER}
    assert port.outer.routes == ()


def test_the_route_goes_with_the_announcement() -> None:
    port = Port()
    port.heard(PEER, PEER_ULA)
    port.outer.expired(PEER, 5.0)
    assert port.outer.routes == ()
    assert port.live() == {}


def test_the_route_stays_while_there_is_a_channel() -> None:
    port = Port()
    port.heard(PEER, PEER_ULA)
    port.outer.hold(PEER_ULA)
    port.outer.expired(PEER, 5.0)
    assert port.outer.routes == ((PEER_ULA, PEER),)
    port.outer.release(PEER_ULA)
    assert port.outer.routes == ()


def test_the_address_of_another_neighbour_is_refused() -> None:
    """While that one lives, by announcements or by a channel. Who is refused has its link-local address."""
    port = Port()
    port.heard(PEER, PEER_ULA)
    port.heard(OTHER, PEER_ULA, 1.0)
    assert port.outer.routes == ((PEER_ULA, PEER),)
    assert set(port.live()) == {PEER_ULA, OTHER}
    assert port.outer.counters[Refusal.TAKEN] == 1
    port.outer.hold(PEER_ULA)
    port.outer.expired(PEER, 2.0)
    port.outer.refreshed(OTHER, FAR, 3.0)
    assert port.outer.routes == ((PEER_ULA, PEER),)
    port.outer.release(PEER_ULA)
    port.outer.refreshed(OTHER, FAR, 4.0)
    port.open(4.0)
    assert port.outer.routes == ((PEER_ULA, OTHER),)
    assert set(port.live()) == {PEER_ULA}


def test_a_forged_source_moves_nobody_who_has_a_channel() -> None:
    """Without one the newest word counts, as it does for the port."""
    port = Port()
    port.heard(PEER, PEER_ULA)
    port.heard(PEER, OTHER_ULA, 1.0)
    assert port.outer.routes == ((OTHER_ULA, PEER),)
    port.heard(PEER, PEER_ULA, 2.0)
    port.outer.hold(PEER_ULA)
    for forged in ({None: IKE, OTHER_ULA: IKE}, {None: IKE}, {}):
        port.offers(PEER, forged, 3.0)
        assert port.outer.routes == ((PEER_ULA, PEER),)
        assert set(port.live()) == {PEER_ULA}


@pytest.mark.parametrize(
    ("address", "refusal"),
    [
        ("2001:db8::1", Refusal.NOT_ONE),
        ("fe80::20", Refusal.NOT_ONE),
        ("::", Refusal.NOT_ONE),
        ("ff02::1", Refusal.NOT_ONE),
        ("fe00::1", Refusal.NOT_ONE),
        ("fd01:203:405:1::10", Refusal.OURS),
        ("fd01:203:405:ffff::1", Refusal.OURS),
    ],
)
def test_no_route_for_other_addresses_nor_for_our_own(address: str, refusal: Refusal) -> None:
    port = Port()
    port.heard(PEER, IPv6Address(address))
    assert port.outer.routes == ()
    assert set(port.live()) == {PEER}
    assert port.outer.counters == {refusal: 1}


def test_who_offers_no_method_of_ours_there_has_no_route() -> None:
    port = Port()
    port.offers(PEER, {PEER_ULA: {"DTLS": 4433}, None: IKE})
    assert port.outer.routes == ()
    assert set(port.live()) == {PEER}


def test_who_speaks_only_there_and_is_refused_is_not_tried() -> None:
    port = Port()
    port.heard(OTHER, PEER_ULA)
    assert port.initiated() == [PEER_ULA]
    port.heard(PEER, PEER_ULA, only=True)
    assert port.live()[PEER].state is State.HEARD
    assert port.initiated() == []


def invented(number: int) -> tuple[IPv6Address, IPv6Address]:
    return IPv6Address(f"fe80::{number + 0x100:x}"), IPv6Address(f"fd99::{number + 0x100:x}")


def test_there_are_only_so_many() -> None:
    port = Port()
    for number in range(200):
        port.heard(*invented(number), now=float(number))
    assert len(port.outer.routes) == MAX_ROUTES
    assert port.outer.counters == {Refusal.FULL: 200 - MAX_ROUTES}
    port.outer.expired(invented(0)[0], 300.0)
    port.heard(PEER, PEER_ULA, 301.0)
    assert (PEER_ULA, PEER) in port.outer.routes


def test_new_ones_are_limited() -> None:
    """Announcers that come and go do not keep the kernel busy."""
    port = Port()
    taken = 0
    for number in range(1000):
        source, ula = invented(number)
        now = 0.01 * number
        port.heard(source, ula, now)
        taken += (ula, source) in port.outer.routes
        port.outer.expired(source, now)
    assert NEW_BURST < taken <= NEW_BURST + 10 / NEW_INTERVAL
    assert port.outer.counters[Refusal.TOO_FAST] == 1000 - taken
    assert port.outer.routes == ()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes(seed: int) -> None:
    """Of all that strangers can do: a route is to who announced it first, and held ones never move."""
    chance = random.Random(seed)
    port, now = Port(), 0.0
    sources = [IPv6Address(f"fe80::{number}") for number in range(2, 8)]
    ulas = [IPv6Address(f"fd77::{number}") for number in range(4)] + [OWN, IPv6Address("2001:db8::1")]
    heard: set[IPv6Address] = set()
    held: dict[IPv6Address, IPv6Address] = {}
    for _ in range(2000):
        now += chance.random()
        before = dict(port.outer.routes)
        source = chance.choice(sources)
        match chance.randrange(6):
            case 0 | 1:
                port.heard(source, chance.choice([*ulas, None]), now, only=chance.random() < 0.3)
                heard.add(source)
            case 2 if source in heard:
                port.outer.refreshed(source, now + 210, now)
                port.open(now)
            case 3 if source in heard:
                port.outer.expired(source, now)
                heard.discard(source)
            case 4 if before and len(held) < 3:
                ula = chance.choice(list(before))
                port.outer.hold(ula)
                held[ula] = before[ula]
            case 5 if held:
                ula = chance.choice(list(held))
                del held[ula]
                port.outer.release(ula)
        routes = dict(port.outer.routes)
        assert len(set(routes.values())) == len(routes) <= 4
        assert set(routes) <= set(ulas[:4])
        assert held.items() <= routes.items()
        for ula in routes.keys() & before.keys():
            assert routes[ula] == before[ula]
        known = set(port.live())
        assert all(routes.get(address, address) in heard for address in known)
        assert len(known) == len({routes.get(address, address) for address in known})


def test_a_connection_at_the_link_local_address_survives_the_switch() -> None:
    port = Port()
    port.heard(PEER)
    peer = PeerIdentity("peer@example.com", AcpAddress.zone(bytes(5), 1, 7))
    port.adjacency.connected(1, PEER, "c1", True, peer, 0.0)
    port.heard(PEER, PEER_ULA, 1.0)
    states = {row.address: row.state for row in port.adjacency.neighbours()}
    assert states == {PEER: State.CONNECTED, PEER_ULA: State.INITIATING}
