"""The DULL instance: when it announces, whom it believes, and what it forgets."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from minerva.core import cbor
from minerva.core.sansio import Core, Datagram
from minerva.grasp.announcement import AN_ACP_IKEV2, Announcement, Drop
from minerva.grasp.constants import (
    ALL_GRASP_NEIGHBORS,
    AN_ACP,
    AN_PROXY,
    GRASP_LISTEN_PORT,
    MAX_MULTICAST_SIZE,
    ObjectiveFlag,
    TransportProto,
)
from minerva.grasp.dull import (
    ANSWER_BURST,
    MAX_ANNOUNCEMENTS,
    MAX_LIFETIME,
    MAX_SOURCES,
    MIN_GAP,
    Count,
    DullInstance,
    Event,
    NeighbourEntry,
    NeighbourExpired,
    NeighbourHeard,
    NeighbourRefreshed,
)
from minerva.grasp.errors import GraspError
from minerva.grasp.messages import Flood
from minerva.sim.driver import Driver
from minerva.sim.kernel import Simulator
from minerva.sim.link import Link

OWN = IPv6Address("fe80::1")
PEER = IPv6Address("fe80::2")
PROXY = Announcement(AN_PROXY, "", TransportProto.IPPROTO_TCP, 4443)
SERIES = [0.0, 1.0, 3.0, 7.0, 15.0]


def _instance(seed: int = 0) -> DullInstance:
    return DullInstance(OWN, random=random.Random(seed))


def _announced_at(core: DullInstance, until: float, start: float = 0.0) -> list[float]:
    """Return when the instance sends, if nothing else happens."""
    times = [start] * len(core.datagrams_to_send(start))
    while (when := core.next_timer()) is not None and when <= until:
        core.on_timer(when)
        times += [when] * len(core.datagrams_to_send(when))
    return times


def _events(core: DullInstance) -> list[Event]:
    return list(iter(core.next_event, None))  # type: ignore[arg-type]


def _flood(source: IPv6Address, *announcements: Announcement, ttl: int = 210_000) -> bytes:
    entries = tuple(item.to_entry(source) for item in announcements or (AN_ACP_IKEV2,))
    return Flood(1, source, ttl, entries).encode()


def _hear(
    core: DullInstance, source: IPv6Address, now: float, *announcements: Announcement, ttl: int = 210_000
) -> list[Event]:
    core.receive(_flood(source, *announcements, ttl=ttl), source, 5000, now)
    return _events(core)


def test_announcement() -> None:
    """What goes out: to ff02::13 port 7017, flags 4, loop count 1, initiator our own address, no locator.

    covers: 6.4-8, 6.4-9, 6.4-10, 6.4-12, 6.4-17, G2.5.2-rules
    """
    core: Core = _instance()
    assert isinstance(core, DullInstance)
    core.announce([AN_ACP_IKEV2], 0.0)
    [datagram] = core.datagrams_to_send(0.0)
    assert (datagram.address, datagram.port) == (IPv6Address("ff02::13"), 7017)
    flood = Flood.decode(datagram.data)
    assert flood.initiator == OWN
    assert flood.ttl == 210_000
    [entry] = flood.entries
    assert entry.objective.flags == ObjectiveFlag.F_SYNCH == 4
    assert (entry.objective.loop_count, entry.objective.value) == (1, "IKEv2")
    assert entry.locator is None
    assert len(datagram.data) < 50


def test_session_ids_differ() -> None:
    """Every flood has a new Session ID, and one in recent use is not taken again.

    covers: 6.4-15
    """

    class Repeating(random.Random):
        numbers = (5, 5, 5, 6, 6, 5, 7)

        def getrandbits(self, k: int, /) -> int:
            assert k == 32
            number, *rest = self.numbers
            self.numbers = tuple(rest)
            return number

    core = DullInstance(OWN, random=Repeating())
    sent = []
    for now in (0.0, 1.0, 2.0):
        core.announce([AN_ACP_IKEV2], now)
        sent += [Flood.decode(datagram.data).session_id for datagram in core.datagrams_to_send(now)]
    assert sent == [5, 6, 7]


def test_series_then_period() -> None:
    """At once, again within seconds, then every 60 s within a twentieth, so that a ttl covers three.

    covers: 6.4-9
    """
    core = _instance()
    core.announce([AN_ACP_IKEV2], 0.0)
    times = _announced_at(core, 1000.0)
    assert times[:5] == SERIES
    gaps = [later - earlier for earlier, later in itertools.pairwise(times[4:])]
    assert len(gaps) >= 15
    assert all(57.0 <= gap <= 63.0 for gap in gaps)
    assert len(set(gaps)) > 1


def test_announcing_again_begins_anew() -> None:
    """The link came up, or there is more to announce: at once, each with its own time to live.

    covers: 6.4-16, JP-2
    """
    core = _instance()
    core.announce([AN_ACP_IKEV2], 0.0)
    _announced_at(core, 100.0)
    core.announce([AN_ACP_IKEV2, PROXY], 101.0)
    floods = [Flood.decode(datagram.data) for datagram in core.datagrams_to_send(101.0)]
    sent = [(flood.ttl, [entry.objective.name for entry in flood.entries]) for flood in floods]
    assert sent == [(210_000, ["AN_ACP"]), (180_000, ["AN_Proxy"])]
    assert len({flood.session_id for flood in floods}) == 2
    assert _announced_at(core, 120.0) == [102.0, 102.0, 104.0, 104.0, 108.0, 108.0, 116.0, 116.0]


def test_a_proxy_is_announced_as_the_rfc_says(fixtures: Path) -> None:
    """Byte for byte RFC 8995 figure 11, but for the Session ID.

    covers: JP-2
    """
    core = _instance()
    core.announce([PROXY], 0.0)
    [datagram] = core.datagrams_to_send(0.0)
    figure = (fixtures / "rfc8995" / "fig11-grasp-m_flood-AN_Proxy.cbor").read_bytes()
    session = cbor.loads(figure)[1]
    assert replace(Flood.decode(datagram.data), session_id=session).encode() == figure


def test_what_is_less_waits_for_its_time() -> None:
    """Nobody has to hear at once what is not said any more."""
    core = _instance()
    core.announce([AN_ACP_IKEV2, PROXY], 0.0)
    _announced_at(core, 100.0)
    core.announce([AN_ACP_IKEV2], 101.0)
    assert core.datagrams_to_send(101.0) == []
    times = _announced_at(core, 300.0, 101.0)
    assert len(times) == len(set(times)) >= 3
    core.announce([AN_ACP_IKEV2], 301.0)
    assert len(core.datagrams_to_send(301.0)) == 1


def test_the_second_of_two_floods_is_none_out_of_turn() -> None:
    """A neighbour that announces a proxy besides the ACP gets no answer for it, as it gets none without."""
    core = _instance()
    core.announce([AN_ACP_IKEV2], 0.0)
    _hear(core, PEER, 0.1)
    _announced_at(core, 100.0)
    sent = core.counters[Count.SENT]
    _hear(core, PEER, 131.0)
    _hear(core, PEER, 131.05, PROXY)
    assert _announced_at(core, 133.0) == []
    assert core.counters[Count.SENT] == sent


def test_withdraw() -> None:
    """Nothing is sent any more, not even to strangers; others are still heard."""
    core = _instance()
    core.announce([AN_ACP_IKEV2], 0.0)
    core.datagrams_to_send(0.0)
    core.withdraw(0.5)
    assert len(_hear(core, PEER, 0.6)) == 1
    assert _announced_at(core, 200.0) == []


def test_nothing_is_fragmented() -> None:
    """What does not fit into a packet of 1280 bytes is refused when it is to be announced.

    covers: G2.5.3-1, 6.4-17, 6.13.3-2
    """
    core = _instance()
    fits = [Announcement(AN_ACP, "m" * 200, TransportProto.IPPROTO_UDP, 1000)] * 5
    core.announce(fits, 0.0)
    [datagram] = core.datagrams_to_send(0.0)
    assert 1100 < len(datagram.data) <= MAX_MULTICAST_SIZE == 1232
    with pytest.raises(GraspError, match="at most 1232"):
        core.announce([*fits, fits[0]], 1.0)
    assert _announced_at(core, 2.0) == [1.0]


def test_stranger_is_answered() -> None:
    """Who is heard for the first time gets a series soon; who has been heard in its turn gets nothing.

    covers: 6.4-9
    """
    core = _instance()
    core.announce([AN_ACP_IKEV2], 0.0)
    _announced_at(core, 50.0)
    _hear(core, PEER, 50.0)
    answers = _announced_at(core, 70.0)
    assert len(answers) == 5
    assert 50.0 <= answers[0] <= 50.02
    later = _announced_at(core, 109.0)
    _hear(core, PEER, 110.0)
    assert later == []
    assert all(when >= 115.0 for when in _announced_at(core, 125.0))


def test_neighbour_out_of_turn_is_answered() -> None:
    """A known neighbour that has restarted announces too soon: it gets one answer, but not one per packet."""
    core = _instance()
    core.announce([AN_ACP_IKEV2], 0.0)
    _hear(core, PEER, 16.0)
    _announced_at(core, 40.0)
    answers = []
    for gap in SERIES:
        now = 41.0 + gap
        answers += _announced_at(core, now)
        _hear(core, PEER, now)
        answers += _announced_at(core, now + 0.9)
    assert [round(when - 41.0, 0) for when in answers] == [0.0, 3.0, 7.0, 15.0]


def test_answers_do_not_go_on_forever() -> None:
    """Nodes that answer each other fall silent, but for the period.

    covers: 6.4-9
    """
    simulator = Simulator(4)
    link = Link(simulator)
    drivers = [_join(simulator, link, IPv6Address(f"fe80::{number}")) for number in range(1, 9)]
    simulator.run_until(60.0)
    _join(simulator, link, IPv6Address("fe80::99"))
    simulator.run_until(100.0)
    before = len(link.carried)
    simulator.run_until(700.0)
    assert len(link.carried) - before <= 9 * 11
    assert len(drivers) == 8


def _join(simulator: Simulator, link: Link, address: IPv6Address) -> Driver:
    core = DullInstance(address, random=random.Random(simulator.random.random()))
    driver = Driver(simulator, link, address, core, port=GRASP_LISTEN_PORT)
    core.announce([AN_ACP_IKEV2], simulator.now)
    driver.pump()
    return driver


def test_answers_are_limited() -> None:
    """A hundred invented strangers a second: a burst of answers at ``MIN_GAP``, then fewer, and counted."""
    core = _instance()
    core.announce([AN_ACP_IKEV2], 0.0)
    sent: list[float] = []
    for tick in range(6000):
        now = 100.0 + tick / 100
        sent += _announced_at(core, now)
        _hear(core, IPv6Address(f"fe80::{tick + 2:x}"), now)
    sent = [when for when in sent if when >= 100.0]
    assert all(later - earlier >= 0.99 * MIN_GAP for earlier, later in itertools.pairwise(sent))
    assert ANSWER_BURST < len(sent) <= 45
    assert core.counters[Count.ANSWER_LIMITED] > 0
    assert len(core.neighbours()) == MAX_SOURCES


def test_heard_refreshed_changed() -> None:
    """The events of a neighbour, and that its newest word counts."""
    core = _instance()
    assert _hear(core, PEER, 10.0) == [NeighbourHeard(PEER, (AN_ACP_IKEV2,), 220.0, new=True)]
    assert _hear(core, PEER, 70.0) == [NeighbourRefreshed(PEER, 280.0)]
    moved = Announcement(AN_ACP, "IKEv2", TransportProto.IPPROTO_UDP, 15000)
    assert _hear(core, PEER, 71.0, moved) == [NeighbourHeard(PEER, (moved,), 281.0, new=False)]
    assert _hear(core, PEER, 72.0, PROXY) == [NeighbourHeard(PEER, (moved, PROXY), 282.0, new=False)]
    [entry] = core.neighbours()
    assert (entry.first_heard, entry.last_heard, entry.expires, entry.pinned) == (10.0, 72.0, 282.0, False)
    assert core.counters[Count.ACCEPTED] == 4


def test_a_unique_local_address_has_a_flood_of_its_own() -> None:
    """Who does not believe it hears the other one all the same; who does, keeps both apart."""
    ula = replace(AN_ACP_IKEV2, address=IPv6Address("fd00::2"))
    sender = DullInstance(PEER, random=random.Random(1))
    sender.announce([ula, AN_ACP_IKEV2, PROXY], 0.0)
    packets = [datagram.data for datagram in sender.datagrams_to_send(0.0)]
    assert [len(Flood.decode(packet).entries) for packet in packets] == [1, 1, 1]
    for believes, expected in ((False, (AN_ACP_IKEV2, PROXY)), (True, (ula, AN_ACP_IKEV2, PROXY))):
        core = DullInstance(OWN, random=random.Random(2), unique_local=believes)
        for packet in packets:
            core.receive(packet, PEER, 5000, 0.0)
        [entry] = core.neighbours()
        assert entry.announcements == expected
        assert core.counters[Drop.LOCATOR] == (not believes)
    _events(core)
    moved = replace(ula, address=IPv6Address("fd00::3"))
    assert _hear(core, PEER, 1.0, moved) == [
        NeighbourHeard(PEER, (AN_ACP_IKEV2, PROXY, moved), 211.0, new=False)
    ]


def test_expiry() -> None:
    """Every announcement has its own lifetime; with the last of them the neighbour is forgotten.

    covers: 6.4-9
    """
    core = _instance()
    _hear(core, PEER, 0.0)
    _hear(core, PEER, 100.0, PROXY)
    assert core.next_timer() == 210.0
    core.on_timer(209.9)
    assert _events(core) == []
    core.on_timer(210.0)
    assert _events(core) == [NeighbourHeard(PEER, (PROXY,), 310.0, new=False)]
    core.on_timer(310.0)
    assert _events(core) == [NeighbourExpired(PEER)]
    assert core.next_timer() is None
    assert _hear(core, PEER, 311.0) == [NeighbourHeard(PEER, (AN_ACP_IKEV2,), 521.0, new=True)]


@pytest.mark.parametrize(("ttl", "lifetime"), [(0, MAX_LIFETIME), (2**32 - 1, MAX_LIFETIME), (1500, 1.5)])
def test_lifetime_is_bounded(ttl: int, lifetime: float) -> None:
    """Zero means an indefinite lifetime; an hour is enough."""
    core = _instance()
    assert _hear(core, PEER, 5.0, ttl=ttl) == [
        NeighbourHeard(PEER, (AN_ACP_IKEV2,), 5.0 + lifetime, new=True)
    ]


def test_expiry_without_timer() -> None:
    """A packet that comes before a late timer finds the old announcement expired."""
    core = _instance()
    _hear(core, PEER, 0.0)
    events = _hear(core, PEER, 211.0)
    assert events == [NeighbourExpired(PEER), NeighbourHeard(PEER, (AN_ACP_IKEV2,), 421.0, new=True)]


def test_drops_are_counted() -> None:
    """What is not believed has a reason that the operator can see, and no other effect.

    covers: G2.5.2-rules
    """
    core = _instance()
    core.announce([AN_ACP_IKEV2], 0.0)
    _announced_at(core, 0.5)
    own = Flood(1, OWN, 1, (AN_ACP_IKEV2.to_entry(OWN),)).encode()
    core.receive(own, OWN, 7017, 0.6)
    core.receive(b"\xff", PEER, 7017, 0.6)
    core.receive(_flood(PEER), IPv6Address("fe80::3"), 7017, 0.6)
    core.receive(cbor.dumps([1, 1, PEER.packed, ["AN_ACP", 5, 1, None]]), PEER, 7017, 0.6)
    core.receive(cbor.dumps([1, 1, PEER.packed, ["AN_ACP", 5, 1, None]]), PEER, 7017, 0.6)
    assert {name: core.counters[name] for name in core.counters if name in set(Drop)} == {
        "own-address-as-source": 1,
        "malformed": 1,
        "initiator-is-not-source": 1,
        "not-a-flood": 2,
    }
    assert _events(core) == []
    assert core.neighbours() == []
    assert _announced_at(core, 0.9) == []


def test_methods_per_source_are_bounded() -> None:
    """One announcer cannot fill the memory with methods; the latest ones count."""
    core = _instance()
    for number in range(50):
        _hear(core, PEER, 1.0, Announcement(AN_ACP, f"m{number}"))
    [entry] = core.neighbours()
    assert [item.method for item in entry.announcements] == [f"m{n}" for n in range(50)][-MAX_ANNOUNCEMENTS:]
    assert core.counters[Count.FORGOTTEN] == 50 - MAX_ANNOUNCEMENTS


def test_pinned_neighbours_stay() -> None:
    """Whoever invents announcers drives out none that has been authenticated; newcomers are still heard."""
    core = _instance()
    pinned = [IPv6Address(f"fe80::a:{number:x}") for number in range(1, 11)]
    for address in pinned:
        _hear(core, address, 0.0)
        core.pin(address)
    for number in range(1, 2000):
        events = _hear(core, IPv6Address(f"fe80::b:{number:x}"), 1.0)
        assert isinstance(events[-1], NeighbourHeard)
    entries = core.neighbours()
    assert len(entries) == MAX_SOURCES
    assert [entry.address for entry in entries if entry.pinned] == pinned
    assert core.counters[Count.EVICTED] == 1999 + 10 - MAX_SOURCES


def test_table_full_of_pinned() -> None:
    """Where everybody is authenticated, a newcomer has to wait; it is counted."""
    core = _instance()
    for number in range(1, MAX_SOURCES + 1):
        address = IPv6Address(f"fe80::a:{number:x}")
        _hear(core, address, 0.0)
        core.pin(address)
    assert _hear(core, PEER, 1.0) == []
    assert core.counters[Drop.TABLE_FULL] == 1
    core.unpin(IPv6Address("fe80::a:7"))
    assert _hear(core, PEER, 2.0)[0] == NeighbourExpired(IPv6Address("fe80::a:7"))


@pytest.mark.parametrize("seed", range(20))
def test_two_nodes_hear_each_other(seed: int) -> None:
    """On a link that loses, delays and repeats, both know each other soon."""
    simulator = Simulator(seed)
    link = Link(simulator, loss=0.3, jitter=0.05, duplicate=0.1)
    first, second = (_join(simulator, link, address) for address in (OWN, PEER))
    simulator.run_until(30.0)
    assert [entry.address for entry in _neighbours(first)] == [PEER]
    assert [entry.address for entry in _neighbours(second)] == [OWN]


@pytest.mark.parametrize("age", [2.0, 12.0, 40.0, 100.0])
def test_restarted_node_need_not_wait_for_the_period(age: float) -> None:
    """It hears at once who has known it before the restart, however long that had been up."""
    simulator = Simulator(1)
    link = Link(simulator)
    _join(simulator, link, OWN)
    _join(simulator, link, PEER).stop()
    simulator.run_until(age)
    again = _join(simulator, link, PEER)
    simulator.run_until(age + 3.5)
    assert [entry.address for entry in _neighbours(again)] == [OWN]


def _neighbours(driver: Driver) -> list[NeighbourEntry]:
    assert isinstance(driver.core, DullInstance)
    return driver.core.neighbours()


def test_datagrams_are_handed_out_once() -> None:
    """The contract of a core."""
    core = _instance()
    core.announce([AN_ACP_IKEV2], 0.0)
    [datagram] = core.datagrams_to_send(0.0)
    assert datagram == Datagram(datagram.data, ALL_GRASP_NEIGHBORS, GRASP_LISTEN_PORT)
    assert core.datagrams_to_send(0.0) == []
