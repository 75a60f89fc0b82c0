"""Upward routes, DIO and DIS: one node, scripted neighbours."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from random import Random

import pytest

from minerva.rpl.config import LOW_SPEED_FACTOR, Preference
from minerva.rpl.engine import RplNode
from minerva.rpl.errors import RplUsageError
from minerva.rpl.events import (
    DEFAULT_ROUTE,
    DodagCause,
    DodagChanged,
    Drop,
    NeighbourCause,
    NeighbourHeard,
    NeighbourLost,
    NextHop,
    ParentsChanged,
    Role,
    RouteAdded,
    RouteRemoved,
)
from minerva.rpl.messages import ALL_RPL_NODES, INFINITE_RANK, Dio, Dis
from minerva.rpl.options import SolicitedInformation

from .bench import BASE, CONFIGURATION, ROOT, Bench, dao, dio, local, own_prefix, remote

HOST_ROUTE = IPv6Network(ROOT)


def joined(*ranks: int, **config: object) -> Bench:
    """A node with a neighbour of each rank in the DODAG of ROOT, on interfaces 1, 2, ..."""
    bench = Bench(**config)  # type: ignore[arg-type]
    for interface, rank in enumerate(ranks, 1):
        bench.up(interface)
        bench.hear(interface, dio(rank))
    return bench


@pytest.mark.parametrize(
    ("preference", "bits", "grounded"),
    [
        (Preference.CONFIGURED_ROOT, 0b100, True),
        (Preference.REGISTRAR, 0b011, True),
        (Preference.ACP_CONNECT, 0b010, True),
        (Preference.DEFAULT, 0b001, False),
    ],
)
def test_root(preference: Preference, bits: int, grounded: bool) -> None:
    """A node without a parent roots its own DODAG, by the parameters of the profile.

    covers: 6.12.1.2-1, 6.12.1.3-1, 6.12.1.6-1, 6.12.1.12-1, R8.1-2, R8.2.2.2
    """
    bench = Bench(preference)
    bench.up(1)
    ((_, destination, message),) = bench.take(Dio)
    assert destination == ALL_RPL_NODES
    assert message == Dio(240, 256, grounded, 2, bits, 240, BASE + 2, (CONFIGURATION,), instance=0)
    assert bench.node.black_hole == own_prefix(1)
    assert CONFIGURATION.objective_code_point == 0
    assert CONFIGURATION.path_control_size == 7
    assert CONFIGURATION.dio_redundancy_constant == 0
    assert bench.node.routes == {}


def test_join() -> None:
    """covers: 6.12-1, R8.1-1, R8.0, OF0-1"""
    bench = joined(512)
    message = bench.last(Dio)
    assert message == dio(768, dtsn=message.dtsn)
    hop = NextHop(1, remote(1))
    assert bench.node.routes == {DEFAULT_ROUTE: hop, HOST_ROUTE: hop}
    assert bench.happened(DodagChanged) == [DodagChanged(Role.ROUTER, ROOT, 240, DodagCause.BETTER_DODAG)]
    assert bench.happened(ParentsChanged) == [ParentsChanged((hop,), 768)]
    assert bench.happened(NeighbourHeard) == [NeighbourHeard(1, remote(1))]


@pytest.mark.parametrize(
    ("factor", "step", "rank"), [(1, 1, 512), (1, 3, 1024), (LOW_SPEED_FACTOR, 1, 1536), (5, 3, 4096)]
)
def test_rank_factor(factor: int, step: int, rank: int) -> None:
    """covers: 6.12.1.6-1"""
    bench = Bench(step_of_rank=step)
    bench.up(1, factor)
    bench.hear(1, dio(256))
    assert bench.last(Dio).rank == rank


def test_fast_link_is_preferred() -> None:
    """Two fast hops are nearer than a slow one.

    covers: 6.12.1.6-1, OF0-1
    """
    bench = Bench()
    bench.up(1, LOW_SPEED_FACTOR)
    bench.up(2)
    bench.hear(1, dio(256))
    bench.hear(2, dio(512))
    assert bench.node.parents[0] == 2


def test_loss_of_the_last_parent_detaches() -> None:
    """At once a DODAG of its own, said three times within a quarter of a second.

    covers: 6.12.1.1.2-1, 6.12.1.1.2-3, R8.2.2.6
    """
    bench = joined(512)
    bench.up(2)
    bench.take(Dio)
    bench.down(1)
    assert bench.node.routes == {}
    assert bench.happened(DodagChanged)[-1] == DodagChanged(Role.ROOT, BASE + 2, 241, DodagCause.NO_PARENT)
    bench.wait(0.25)
    told = [message for _, _, message in bench.take(Dio, 2)]
    assert [(m.dodag_id, m.rank, m.version) for m in told] == [(BASE + 2, 256, 241)] * 3


def test_dio_timing_has_no_trickle() -> None:
    """Repetitions after a change, then the keep-alive alone, however many others are heard.

    covers: 6.12.1.7-4
    """
    bench = joined(512)
    bench.wait(20)
    bench.take(Dio)
    bench.take(Dis)
    for _ in range(60):
        bench.wait(60)
        bench.hear(1, dio(512), unicast=False)
    assert 54 <= len(bench.take(Dio)) <= 67
    assert bench.take(Dis) == []


def test_another_parent_takes_over_at_once() -> None:
    """covers: 6.12.1.1.2-3, OF0-2, R8.2.2.7"""
    bench = joined(512, 512)
    assert bench.node.parents == (1, 2)
    bench.down(1)
    hop = NextHop(2, remote(2))
    assert bench.node.routes == {DEFAULT_ROUTE: hop, HOST_ROUTE: hop}
    assert bench.happened(RouteRemoved) == []
    assert bench.node.role is Role.ROUTER


def test_parents_are_nearer_and_few() -> None:
    """Up to three parents, none as far as the node itself.

    covers: 6.12.1.1.2-2, R8.2.1, OF0-2
    """
    bench = joined(512, 512, 768, 512, 512)
    assert bench.node.parents == (1, 2, 4)
    assert bench.node.status(bench.now).rank == 768


def test_equal_candidate_does_not_replace_the_parent() -> None:
    """covers: R8.4, OF0-1"""
    bench = Bench()
    bench.up(1)
    bench.up(2)
    bench.hear(2, dio(512))
    bench.hear(1, dio(512))
    assert bench.node.parents == (2, 1)


def test_parent_that_does_not_hear_us_is_none() -> None:
    """A neighbour that never spoke to our own address may not hear us.

    covers: R8.4
    """
    bench = Bench()
    bench.up(1)
    bench.take(Dis)
    bench.hear(1, dio(512), unicast=False)
    assert bench.node.role is Role.ROOT
    assert [to for _, to, _ in bench.take(Dis)] == [remote(1)]
    bench.hear(1, dio(512))
    assert bench.node.role is Role.ROUTER


def test_poison() -> None:
    """covers: R8.2.2.5"""
    bench = joined(512)
    bench.hear(1, dio(INFINITE_RANK), unicast=False)
    assert bench.node.role is Role.ROOT
    assert bench.node.routes == {}


def test_parent_whose_rank_grows_beyond_ours() -> None:
    """It may have gone below us: detach, and follow it only when the hold-down is over.

    covers: R8.2.2.4, R8.2.2.6, R8.2.2.1
    """
    bench = joined(512)
    bench.hear(1, dio(768))
    assert bench.node.role is Role.ROOT
    bench.wait(0.4)
    assert bench.node.role is Role.ROOT
    bench.wait(0.2)
    assert bench.node.role is Role.ROUTER
    assert bench.last(Dio).rank == 1024


def test_parent_whose_rank_grows_a_little() -> None:
    bench = joined(512)
    bench.hear(1, dio(767))
    assert bench.node.role is Role.ROUTER
    assert bench.last(Dio).rank == 1023
    bench.hear(1, dio(768))
    assert bench.node.role is Role.ROOT


def test_hold_down_doubles() -> None:
    """A DODAG that is lost again and again is rejoined ever later.

    covers: R8.2.2.1
    """
    bench = joined(512)
    rank, waited = 512, []
    for _ in range(6):
        rank += 512
        bench.hear(1, dio(rank))
        start = bench.now
        while bench.node.role is Role.ROOT:
            bench.wait(0.05)
        waited.append(round(bench.now - start, 1))
    assert waited == pytest.approx([0.5, 1, 2, 4, 8, 8], abs=0.11)


def test_max_rank_increase_of_another_root() -> None:
    """covers: R8.2.2.4"""
    configuration = replace(CONFIGURATION, max_rank_increase=100)
    bench = Bench()
    bench.up(1)
    bench.hear(1, dio(512, configuration=configuration))
    bench.hear(1, dio(612, configuration=configuration))
    assert bench.node.role is Role.ROUTER
    bench.hear(1, dio(613, configuration=configuration))
    assert bench.node.role is Role.ROOT


def test_versions_only_go_up() -> None:
    """covers: R8.2.2.1, 6.12.1.7-1"""
    bench = joined(512, 512)
    bench.hear(2, dio(2048, version=241))
    assert bench.node.parents == (2,)
    assert bench.last(Dio).version == 241
    assert bench.happened(DodagChanged)[-1].cause is DodagCause.NEW_VERSION
    bench.down(2)
    assert bench.node.role is Role.ROOT
    bench.wait(0.4)
    assert bench.node.role is Role.ROOT
    bench.hear(1, dio(512, version=241))
    assert bench.node.role is Role.ROUTER


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"preference": 4, "grounded": False}, {"preference": 3, "dodag_id": ROOT + 1}),
        ({"preference": 3}, {"preference": 3, "grounded": False, "dodag_id": ROOT + 1}),
        ({"preference": 3, "dodag_id": ROOT + 1}, {"preference": 3, "dodag_id": ROOT}),
    ],
)
def test_order_of_dodags(better: dict[str, object], worse: dict[str, object]) -> None:
    """Preference, then grounded, then the higher DODAGID; not the distance.

    covers: OF0-1, 6.12.1.12-1
    """
    bench = Bench()
    bench.up(1)
    bench.up(2)
    bench.hear(1, dio(256, **worse))  # type: ignore[arg-type]
    assert bench.node.parents == (1,)
    bench.hear(2, dio(4096, **better))  # type: ignore[arg-type]
    assert bench.node.parents == (2,)


def test_better_root_stays_root() -> None:
    bench = Bench(Preference.REGISTRAR)
    bench.up(1)
    bench.hear(1, dio(256, preference=1, grounded=False))
    bench.hear(1, dio(256, dodag_id=BASE, preference=3))
    assert bench.node.role is Role.ROOT


def test_preference_can_change() -> None:
    """A registrar starts here and stops again.

    covers: 6.12.1.12-1, 6.12.1.7-1
    """
    bench = joined(512)
    bench.node.set_preference(Preference.CONFIGURED_ROOT, bench.now)
    assert bench.node.role is Role.ROOT
    assert bench.last(Dio).preference == 4
    assert bench.happened(DodagChanged)[-1].cause is DodagCause.BEST_ROOT
    version = bench.node.status(bench.now).version
    bench.node.set_preference(Preference.DEFAULT, bench.now)
    bench.wait(0.1)
    assert bench.node.role is Role.ROUTER
    bench.down(1)
    assert bench.node.status(bench.now).version > version


def test_global_repair() -> None:
    """covers: 6.12.1.7-1"""
    bench = Bench()
    bench.up(1)
    bench.wait(3600)
    assert bench.last(Dio).version == 240
    bench.node.global_repair(bench.now)
    bench.wait(0.1)
    assert bench.last(Dio).version == 241
    router = joined(512)
    router.node.global_repair(router.now)
    router.wait(0.1)
    assert router.last(Dio).version == 240


def test_own_dodag_from_before_a_restart() -> None:
    bench = Bench(Preference.REGISTRAR)
    bench.up(1)
    bench.hear(1, dio(512, dodag_id=BASE + 2, version=250))
    bench.wait(0.1)
    assert bench.last(Dio).version == 251
    assert bench.node.role is Role.ROOT
    for version in range(252, 256):
        bench.hear(1, dio(512, dodag_id=BASE + 2, version=version))
    assert bench.node.status(bench.now).version == 251


@pytest.mark.parametrize(
    "message",
    [
        dio(512, mode=0),
        dio(512, mode=1),
        dio(512, mode=3),
        dio(512, instance=1),
        dio(255),
        dio(0),
        dio(INFINITE_RANK - 255),
        dio(512, configuration=replace(CONFIGURATION, objective_code_point=1)),
        dio(512, configuration=replace(CONFIGURATION, min_hop_rank_increase=0)),
        dio(512, configuration=replace(CONFIGURATION, lifetime_unit=0)),
        dio(512, configuration=replace(CONFIGURATION, default_lifetime=0)),
        dio(512, configuration=replace(CONFIGURATION, authentication_enabled=True)),
        dio(512, dodag_id=IPv6Address("2001:db8::1")),
        dio(512, dodag_id=IPv6Address("fe80::1")),
    ],
)
def test_dodag_that_cannot_be_joined(message: Dio) -> None:
    """Another mode of operation, instance or objective function, and nonsense.

    covers: 6.12.1.2-1, 6.12.1.3-1, 6.12.1.6-1
    """
    bench = Bench()
    bench.up(1)
    bench.hear(1, message)
    assert bench.node.role is Role.ROOT
    assert bench.node.routes == {}


def test_configuration_is_asked_for() -> None:
    """And asked ever more seldom, where the neighbour does not say (as two other implementations do not)."""
    bench = Bench()
    bench.up(1)
    bench.wait(0.2)
    bench.take(Dis)
    bench.hear(1, dio(512, configuration=None))
    for _ in range(600):
        bench.wait(1)
        bench.hear(1, dio(512, configuration=None))
    asked = bench.take(Dis)
    assert {to for _, to, _ in asked} == {remote(1)}
    assert 10 <= len(asked) <= 25
    assert bench.node.role is Role.ROOT
    bench.hear(1, dio(512))
    bench.hear(1, dio(520, configuration=None))
    assert bench.node.role is Role.ROUTER
    assert bench.take(Dis) == []
    bench.hear(1, dio(520, version=241, configuration=None))
    assert [to for _, to, _ in bench.take(Dis)] == [remote(1)]
    assert bench.node.role is Role.ROOT


def test_dis() -> None:
    """A unicast DIS gets a unicast DIO with the configuration, a multicast one a multicast DIO.

    covers: R8.3
    """
    bench = joined(512)
    bench.wait(30)
    bench.take(Dio)
    bench.hear(1, Dis())
    ((_, to, message),) = bench.take(Dio)
    assert to == remote(1)
    assert message.configuration == CONFIGURATION
    bench.hear(1, Dis(), unicast=False)
    assert [to for _, to, _ in bench.take(Dio)] == [ALL_RPL_NODES]
    other = SolicitedInformation(0, ROOT + 1, 0, dodagid_predicate=True)
    bench.hear(1, Dis((other,)))
    bench.hear(1, Dis((other,)), unicast=False)
    assert bench.take(Dio) == []
    assert bench.node.dropped[Drop.NOT_ASKED] == 2


def test_dis_storm() -> None:
    """Ten answers a second at most."""
    bench = joined(512)
    bench.wait(30)
    bench.take(Dio)
    for _ in range(1000):
        bench.hear(1, Dis())
        bench.wait(0.001)
    assert len(bench.take(Dio)) <= 12


def test_dis_when_nothing_is_heard() -> None:
    bench = Bench()
    bench.up(1)
    bench.wait(0.2)
    first = bench.take(Dis)
    assert len(first) == 3
    assert {to for _, to, _ in first} == {ALL_RPL_NODES}
    bench.wait(3600)
    assert 60 <= len(bench.take(Dis)) <= 75


@pytest.mark.parametrize(
    ("source", "destination", "drop"),
    [
        ("fd89::1", "ff02::1a", Drop.NOT_LINK_LOCAL),
        ("fe80::b:1", "fd89::1", Drop.NOT_LINK_LOCAL),
        ("fe80::b:1", "ff02::1", Drop.NOT_LINK_LOCAL),
        ("fe80::b:1", "fe80::a:2", Drop.NOT_LINK_LOCAL),
        ("fe80::a:1", "ff02::1a", Drop.OWN_ADDRESS),
    ],
)
def test_addresses(source: str, destination: str, drop: Drop) -> None:
    """covers: R9.1"""
    bench = Bench()
    bench.up(1)
    data = dio(512).encode()
    bench.node.receive(1, data, IPv6Address(source), IPv6Address(destination), bench.now)
    assert bench.node.dropped == {drop: 1}


@pytest.mark.parametrize("code", [4, 0x80, 0x81, 0x82, 0x83, 0x8A])
def test_unknown_code_gets_no_reply(code: int) -> None:
    """covers: 6.12.1.8/9/10"""
    bench = Bench()
    bench.up(1)
    bench.wait(20)
    bench.sent.clear()
    bench.node.receive(1, bytes((155, code, 0, 0)) + bytes(20), remote(1), local(1), bench.now)
    bench.collect()
    assert bench.sent == []
    assert bench.node.dropped == {Drop.UNKNOWN_CODE: 1}


def test_malformed_is_dropped_silently() -> None:
    """covers: R8.2.3"""
    bench = joined(512)
    bench.wait(20)
    bench.sent.clear()
    bench.node.receive(1, dio(256).encode()[:-1], remote(1), local(1), bench.now)
    bench.node.receive(9, dio(256).encode(), remote(1), local(1), bench.now)
    bench.collect()
    assert bench.sent == []
    assert bench.node.dropped == {Drop.MALFORMED: 1, Drop.UNKNOWN_INTERFACE: 1}
    assert bench.node.status(bench.now).rank == 768


def test_silent_neighbour() -> None:
    """It is probed, then dropped with its routes.

    covers: R8.2.1
    """
    bench = joined(512)
    bench.wait(1)
    bench.hear(1, dio(512))
    bench.take(Dis)
    bench.wait(149)
    assert bench.take(Dis) == []
    bench.wait(3)
    assert [to for _, to, _ in bench.take(Dis)] == [remote(1)] * 3
    bench.hear(1, dio(512), unicast=False)
    assert bench.node.role is Role.ROUTER
    bench.wait(154)
    assert bench.happened(NeighbourLost) == [NeighbourLost(1, remote(1), NeighbourCause.SILENT)]
    assert bench.node.routes == {}
    bench.hear(1, dio(512))
    assert bench.node.role is Role.ROUTER


def test_neighbour_with_another_address() -> None:
    bench = joined(512)
    bench.hear(1, dio(512), source=IPv6Address("fe80::c"))
    assert bench.happened(NeighbourLost) == [NeighbourLost(1, remote(1), NeighbourCause.REPLACED)]
    assert bench.node.routes[DEFAULT_ROUTE] == NextHop(1, IPv6Address("fe80::c"))


def test_shutdown() -> None:
    """Neighbours hear that routes through us are gone, and nothing comes after it."""
    bench = joined(512)
    bench.up(2)
    bench.hear(2, dio(768))
    bench.hear(2, dao(240, own_prefix(5)))
    bench.wait(0.1)
    bench.acknowledge(1)
    bench.sent.clear()
    bench.node.shutdown(bench.now)
    bench.collect()
    assert {m.rank for _, _, m in bench.take(Dio)} == {INFINITE_RANK}
    withdrawn = bench.targets(1)
    assert withdrawn.keys() == {own_prefix(1), own_prefix(5)}
    assert {transit.path_lifetime for transit in withdrawn.values()} == {0}
    assert bench.node.routes == {}
    assert bench.node.next_timer() is None
    assert bench.happened(DodagChanged)[-1].role is Role.STOPPED
    bench.hear(1, dio(512))
    bench.up(3)
    bench.down(1)
    bench.node.set_preference(Preference.REGISTRAR, bench.now)
    bench.node.shutdown(bench.now)
    bench.node.on_timer(bench.now)
    bench.collect()
    assert bench.take(Dio) == []
    assert bench.node.role is Role.STOPPED


def test_misuse() -> None:
    bench = Bench()
    bench.up(1)
    with pytest.raises(RplUsageError, match="up already"):
        bench.up(1)
    bench.down(7)
    with pytest.raises(RplUsageError, match="no ACP address"):
        RplNode(BASE, own_prefix(1), random=Random(1))
    with pytest.raises(RplUsageError, match="no ACP address"):
        RplNode(BASE, IPv6Network("fd89:b714:f3db::/48"), random=Random(1))
    with pytest.raises(RplUsageError, match="or longer"):
        bench.node.set_subnets([IPv6Network("fd89:b714:f3db::/48")], bench.now)


def test_status() -> None:
    bench = joined(512, 512, 768)
    bench.hear(3, dao(240, own_prefix(5)))
    bench.wait(0.1)
    bench.acknowledge(1)
    bench.up(4)
    status = bench.node.status(bench.now)
    assert (status.role, status.dodag_id, status.version, status.rank) == (Role.ROUTER, ROOT, 240, 768)
    assert (status.preference, status.root_preference, status.grounded) == (1, 3, True)
    assert status.parents == (NextHop(1, remote(1)), NextHop(2, remote(2)))
    assert [n.rank for n in status.neighbours] == [512, 512, 768, None]
    assert [n.address for n in status.neighbours] == [remote(1), remote(2), remote(3), None]
    assert [n.synchronized for n in status.neighbours] == [True, False, True, True]
    assert [n.targets for n in status.neighbours] == [0, 0, 1, 0]
    assert status.routes == bench.node.routes
    assert status.targets == 1
    assert status.sent["Dio"] > 0
    bench.hear(1, dao(240, own_prefix(6)))
    assert bench.node.status(bench.now).dropped == {"DAO from a parent": 1}


def test_routes_follow_the_events() -> None:
    bench = joined(512, 512)
    bench.hear(2, dio(768))
    bench.hear(2, dao(240, own_prefix(5), own_prefix(6)))
    bench.down(1)
    bench.down(2)
    routes = {}
    for event in bench.events:
        if isinstance(event, RouteAdded):
            routes[event.prefix] = NextHop(event.interface, event.next_hop)
        elif isinstance(event, RouteRemoved):
            assert routes.pop(event.prefix) == NextHop(event.interface, event.next_hop)
    assert routes == bench.node.routes == {}
