"""Downward routes: one node, scripted parents and children."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from itertools import pairwise

import pytest

from minerva.rpl.config import DAO_ACK_TIME_OUT, DAO_RETRIES
from minerva.rpl.events import DEFAULT_ROUTE, DaoUnanswered, Drop, NextHop, Role
from minerva.rpl.messages import Dao, DaoAck, DaoGroup, Dio, Dis
from minerva.rpl.options import TransitInformation

from .bench import CONFIGURATION, ROOT, Bench, dao, dio, own_prefix, remote

OWN, FIVE, SIX = own_prefix(1), own_prefix(5), own_prefix(6)
CHILD, OTHER_CHILD = 8, 9


def joined(*ranks: int, **config: object) -> Bench:
    """A node with a neighbour of each rank in the DODAG of ROOT on interfaces 1, 2, ..., and two children."""
    bench = Bench(**config)  # type: ignore[arg-type]
    for interface, rank in enumerate(ranks, 1):
        bench.up(interface)
        bench.hear(interface, dio(rank))
    for interface in (CHILD, OTHER_CHILD):
        bench.up(interface)
        bench.hear(interface, dio(1024))
    return bench


def settled(*ranks: int, **config: object) -> Bench:
    """The same, and the parents have acknowledged the node's own prefix."""
    bench = joined(*ranks, **config)
    bench.wait(0.03)
    for interface in bench.node.parents:
        bench.acknowledge(interface)
    bench.wait(0.1)
    bench.sent.clear()
    return bench


def test_own_prefix_is_announced() -> None:
    """To the parent's link-local address, with K, sixteen bytes of prefix, and a finite lifetime.

    covers: 6.12.1.4-1, 6.12.1.11-1, R9.1, R9.4, R9.5
    """
    bench = joined(512)
    bench.wait(0.03)
    ((_, to, message),) = bench.take(Dao)
    assert to == remote(1)
    assert message == Dao.of_groups(240, True, [DaoGroup((OWN,), (TransitInformation(0xFF, 241, 30),))])


@pytest.mark.parametrize("length", [127, 120, 112])
def test_prefix_of_every_addressing_scheme(length: int) -> None:
    """covers: 6.12.1.11-1"""
    bench = joined(512)
    prefix = IPv6Network(("fd89:b714:f3db:4200:0:6400:8001:0", length))
    bench.hear(CHILD, dao(240, prefix))
    assert bench.node.routes[prefix] == NextHop(CHILD, remote(CHILD))
    bench.wait(0.03)
    assert prefix in bench.targets(1)


def test_subnets_are_external() -> None:
    """An ACP connect subnet is announced with E, and withdrawn when it is gone.

    covers: 6.12.1.11-1, R9.4
    """
    subnet = IPv6Network("fd89:b714:f3db:2001::/64")
    bench = settled(512)
    bench.node.set_subnets([subnet], bench.now)
    bench.collect()
    targets = bench.acknowledge(1)
    assert targets[subnet] == TransitInformation(0xFF, 242, 30, external=True)
    assert targets[OWN] == TransitInformation(0xFF, 242, 30)
    bench.node.set_subnets([], bench.now)
    bench.collect()
    assert bench.targets(1)[subnet] == TransitInformation(0xFF, 243, 0, external=True)


def test_retransmission() -> None:
    """Three repetitions of the same DAO, 256 ms apart, then an event and a longer pause.

    covers: 6.12.1.4-1, R9.3, RPL-ACP
    """
    bench = joined(512)
    bench.wait(1.1)
    sent = bench.take(Dao)
    assert len(sent) == 1 + DAO_RETRIES
    gaps = [later[0] - earlier[0] for earlier, later in pairwise(sent)]
    assert gaps == pytest.approx([DAO_ACK_TIME_OUT] * 3)
    assert {message.sequence for _, _, message in sent} == {240}
    assert bench.happened(DaoUnanswered) == [DaoUnanswered(1, remote(1), None, 1.0)]
    bench.wait(1)
    assert {message.sequence for _, _, message in bench.take(Dao)} == {241}


def test_acknowledgement_ends_it() -> None:
    bench = settled(512)
    bench.wait(100)
    assert bench.take(Dao) == []
    assert bench.happened(DaoUnanswered) == []


def test_parent_that_does_not_acknowledge() -> None:
    """Another one is preferred until it does.

    covers: R8.4
    """
    bench = joined(512, 512)
    bench.wait(0.03)
    bench.acknowledge(2)
    bench.wait(1.2)
    assert bench.node.parents == (2, 1)
    while bench.node.parents == (2, 1):
        bench.wait(0.5)
        sent = bench.take_copy(Dao, 1)
        if sent:
            bench.hear(1, DaoAck(sent[-1][2].sequence))
        assert bench.now < 1100
        if not bench.node.status(bench.now).neighbours[0].suspicious:
            break
    assert not bench.node.status(bench.now).neighbours[0].suspicious


@pytest.mark.parametrize("status", [128, 255])
def test_rejection(status: int) -> None:
    """covers: R9.3"""
    bench = joined(512, 512)
    bench.wait(0.03)
    bench.acknowledge(2)
    bench.acknowledge(1, status)
    assert bench.node.parents[0] == 2
    assert bench.happened(DaoUnanswered) == [DaoUnanswered(1, remote(1), status, 1.0)]


def test_grudging_acceptance() -> None:
    bench = joined(512)
    bench.wait(0.03)
    bench.acknowledge(1, 127)
    bench.sent.clear()
    bench.wait(10)
    assert bench.take(Dao) == []


def test_changes_while_the_parent_is_silent() -> None:
    """Every DAO supersedes those before, and only the acknowledgement of recent ones counts."""
    bench = settled(512)
    for number in range(12):
        bench.hear(CHILD, dao(240, FIVE, path_sequence=number))
        bench.wait(0.03)
    sent = [message.sequence for _, _, message in bench.take(Dao)]
    assert len(sent) == len(set(sent)) == 12
    bench.hear(1, DaoAck(sent[0]))
    bench.hear(1, DaoAck(sent[-2]))
    bench.wait(0.3)
    assert bench.last(Dao).sequence == sent[-1]
    bench.hear(1, DaoAck(sent[-1]))
    bench.take(Dao)
    bench.wait(5)
    assert bench.take(Dao) == []


def test_acknowledgement_of_something_else() -> None:
    bench = joined(512)
    bench.wait(0.03)
    bench.hear(1, DaoAck(99))
    bench.hear(1, DaoAck(99, 255))
    bench.take(Dao)
    bench.wait(0.3)
    assert len(bench.take(Dao)) == 1


def test_several_parents_share_the_path_control_bits() -> None:
    """Disjoint bits, none without any, the preferred parent the most preferred ones, one Path Sequence.

    covers: 6.12.1.1.2-2, R9.2.1, R9.9
    """
    bench = joined(512, 512, 512)
    bench.wait(0.03)
    transits = [bench.targets(interface)[OWN] for interface in bench.node.parents]
    assert [transit.path_control for transit in transits] == [0b11100000, 0b00011100, 0b00000011]
    assert len({transit.path_sequence for transit in transits}) == 1


def test_path_control_size_of_the_root() -> None:
    """With PCS 1 there are two bits: the third parent cannot be told.

    covers: R9.9
    """
    configuration = replace(CONFIGURATION, path_control_size=1)
    bench = Bench()
    for interface in (1, 2, 3):
        bench.up(interface)
        bench.hear(interface, dio(512, configuration=configuration))
    bench.wait(0.03)
    told = [bench.targets(interface) for interface in (1, 2, 3)]
    assert [targets[OWN].path_control for targets in told[:2]] == [0x80, 0x40]
    assert told[2] == {}


def test_received_bits_are_shared_out_and_no_others() -> None:
    """covers: R9.9"""
    bench = joined(512, 512)
    bench.hear(CHILD, dao(240, FIVE, path_control=0b00110000))
    bench.hear(CHILD, dao(241, SIX, path_control=0b00001000))
    bench.hear(OTHER_CHILD, dao(240, FIVE, path_control=0b00000001))
    bench.wait(0.03)
    first, second = bench.targets(1), bench.targets(2)
    assert first[FIVE].path_control == 0b00110000
    assert second[FIVE].path_control == 0b00000001
    assert first[SIX].path_control == 0b00001000
    assert SIX not in second


def test_childs_target() -> None:
    """Acknowledged with its sequence, routed, and announced upwards with the owner's Path Sequence, once.

    covers: R9.3, R9.5, R9.8
    """
    bench = settled(512)
    bench.hear(CHILD, dao(77, FIVE, path_sequence=3))
    assert bench.last(DaoAck) == DaoAck(77)
    assert bench.node.routes[FIVE] == NextHop(CHILD, remote(CHILD))
    bench.wait(0.03)
    assert bench.acknowledge(1) == {FIVE: TransitInformation(0xFF, 3, 30)}
    bench.hear(CHILD, dao(78, FIVE, path_sequence=3))
    bench.wait(10)
    assert bench.take(Dao) == []


def test_targets_are_gathered() -> None:
    """What comes within DelayDAO goes up in one message, and the delay is not started anew.

    covers: R9.5
    """
    bench = settled(512)
    for number in range(8):
        bench.hear(CHILD, dao(240 + number, own_prefix(10 + number)))
        bench.wait(0.003)
    bench.wait(0.002)
    ((_, _, message),) = bench.take(Dao)
    assert len(message.groups()[0].targets) == 8


def test_many_targets_in_several_messages() -> None:
    """None longer than an IPv6 packet of 1280 bytes, each after the acknowledgement of the one before.

    covers: 6.13.3-2
    """
    bench = settled(512)
    prefixes = [own_prefix(100 + number) for number in range(100)]
    for number, prefix in enumerate(prefixes):
        bench.hear(CHILD, dao((240 + number) % 128, prefix, path_sequence=number))
    seen: set[IPv6Network] = set()
    for _ in range(3):
        bench.wait(0.03)
        assert len(bench.take_copy(Dao, 1)) == 1
        assert all(len(datagram.data) <= 1280 - 40 for _, datagram in bench.sent)
        seen |= bench.acknowledge(1).keys()
    assert seen == set(prefixes)


def test_link_breakage_withdraws_at_once() -> None:
    """All that was reachable by that link only, with the owner's Path Sequence.

    covers: 6.12.1.7-2, R9.8
    """
    bench = settled(512)
    bench.hear(CHILD, dao(240, FIVE, SIX, path_sequence=9))
    bench.hear(OTHER_CHILD, dao(240, SIX, path_sequence=9))
    bench.wait(0.03)
    bench.acknowledge(1)
    bench.down(CHILD)
    ((when, to, message),) = bench.take(Dao)
    assert (when, to) == (bench.now, remote(1))
    assert message.acknowledge
    assert message.groups() == (DaoGroup((FIVE,), (TransitInformation(0xFF, 9, 0),)),)
    assert FIVE not in bench.node.routes
    assert bench.node.routes[SIX] == NextHop(OTHER_CHILD, remote(OTHER_CHILD))


def test_new_parent_new_path_sequence() -> None:
    """covers: 6.12.1.7-3, R9.2.1, R9.8"""
    bench = settled(768)
    old_rank = bench.node.status(bench.now).rank
    bench.up(2)
    bench.hear(2, dio(256))
    assert bench.last(Dio).rank < old_rank
    bench.wait(0.03)
    new = bench.acknowledge(2)[OWN]
    bench.wait(0.3)
    withdrawn = bench.targets(1)[OWN]
    assert bench.node.parents == (2,)
    assert new.path_lifetime == 30
    assert withdrawn.path_lifetime == 0
    assert new.path_sequence == withdrawn.path_sequence == 242


def test_late_no_path_does_not_remove_the_newer_path() -> None:
    """The owner went from one child to another; the first one's No-Path comes last, and is older.

    covers: R9.2.2
    """
    bench = settled(512)
    bench.hear(CHILD, dao(240, FIVE, path_sequence=240))
    bench.hear(OTHER_CHILD, dao(240, FIVE, path_sequence=241))
    bench.wait(3)
    assert bench.node.routes[FIVE].interface == OTHER_CHILD
    bench.hear(CHILD, dao(241, FIVE, path_sequence=240, lifetime=0))
    assert bench.node.routes[FIVE].interface == OTHER_CHILD
    bench.hear(OTHER_CHILD, dao(241, FIVE, path_sequence=240, lifetime=0))
    assert bench.node.routes[FIVE].interface == OTHER_CHILD
    bench.wait(0.1)
    assert bench.targets(1)[FIVE].path_lifetime > 0


def test_no_path_of_the_same_sequence_counts_for_its_child_alone() -> None:
    """covers: R9.2.2"""
    bench = settled(512)
    bench.hear(CHILD, dao(240, FIVE))
    bench.hear(OTHER_CHILD, dao(240, FIVE))
    bench.hear(CHILD, dao(241, FIVE, lifetime=0))
    assert bench.node.routes[FIVE].interface == OTHER_CHILD
    bench.wait(0.03)
    bench.acknowledge(1)
    bench.hear(OTHER_CHILD, dao(241, FIVE, lifetime=0))
    assert FIVE not in bench.node.routes
    assert bench.targets(1)[FIVE] == TransitInformation(0xFF, 240, 0)


def test_no_path_is_as_new_as_all_that_was_announced() -> None:
    """Fallen back to a child's older path, and that lost too: the parent may have missed the step between."""
    bench = settled(512)
    bench.hear(CHILD, dao(240, FIVE, path_sequence=241))
    bench.hear(OTHER_CHILD, dao(240, FIVE, path_sequence=242))
    bench.wait(0.03)
    assert bench.acknowledge(1)[FIVE].path_sequence == 242
    bench.hear(OTHER_CHILD, dao(241, FIVE, path_sequence=242, lifetime=0))
    bench.wait(0.03)
    assert bench.targets(1)[FIVE] == TransitInformation(0xFF, 241, 30)
    bench.hear(CHILD, dao(241, FIVE, path_sequence=241, lifetime=0))
    assert bench.targets(1)[FIVE] == TransitInformation(0xFF, 242, 0)


def test_path_that_comes_back_before_its_no_path_is_acknowledged() -> None:
    """What the parent acknowledged before is not what it knows now."""
    bench = settled(512)
    bench.hear(CHILD, dao(240, FIVE))
    bench.wait(0.03)
    bench.acknowledge(1)
    bench.hear(CHILD, dao(241, FIVE, lifetime=0))
    ((_, _, withdrawn),) = bench.take(Dao)
    bench.hear(CHILD, dao(242, FIVE))
    bench.wait(0.03)
    assert bench.take_copy(Dao, 1)[-1][2].sequence != withdrawn.sequence
    bench.hear(1, DaoAck(withdrawn.sequence))
    assert bench.acknowledge(1)[FIVE].path_lifetime == 30
    bench.down(CHILD)
    assert bench.targets(1)[FIVE].path_lifetime == 0


def test_old_dao_is_ignored() -> None:
    """covers: R9.3"""
    bench = settled(512)
    bench.hear(CHILD, dao(242, FIVE, path_sequence=241))
    bench.hear(CHILD, dao(241, FIVE, path_sequence=241, lifetime=0))
    assert FIVE in bench.node.routes
    assert bench.node.dropped == {Drop.OLD_DAO: 1}
    bench.wait(4)
    bench.hear(CHILD, dao(240, SIX))
    assert SIX in bench.node.routes


def test_dtsn_of_the_parent() -> None:
    """Everything again.

    covers: R9.6
    """
    bench = settled(512)
    bench.hear(CHILD, dao(240, FIVE))
    bench.wait(0.03)
    bench.acknowledge(1)
    bench.hear(1, dio(512, dtsn=241))
    bench.wait(0.03)
    assert bench.targets(1).keys() == {OWN, FIVE}


def test_no_acknowledgement_without_k() -> None:
    bench = settled(512)
    bench.hear(CHILD, dao(240, FIVE, acknowledge=False))
    assert FIVE in bench.node.routes
    assert bench.take(DaoAck) == []


def test_multicast_dao_is_refused() -> None:
    """covers: R9.1"""
    bench = settled(512)
    bench.hear(CHILD, dao(240, FIVE, acknowledge=False), unicast=False)
    assert FIVE not in bench.node.routes
    assert bench.node.dropped == {Drop.NOT_UNICAST: 1}


def test_dao_with_a_target_without_transit_is_refused_whole() -> None:
    """covers: R9.4"""
    bench = settled(512)
    good = dao(240, FIVE)
    bench.hear(CHILD, Dao(240, True, (*good.options, *dao(240, SIX).options[:1])))
    assert FIVE not in bench.node.routes
    assert bench.take(DaoAck) == []
    assert bench.node.dropped == {Drop.MALFORMED: 1}


@pytest.mark.parametrize(
    "prefix",
    [
        "::/0",
        "fd00::/8",
        "fd89:b714:f3db::/48",
        "fd89:b714:f3db:2000::/63",
        "2001:db8::/64",
        "fe80::1/128",
        "ff0e::1/128",
        str(OWN),
        str(OWN.network_address),
        str(OWN.supernet(new_prefix=112)),
    ],
)
def test_targets_that_no_neighbour_may_announce(prefix: str) -> None:
    """The rest of the message counts."""
    bench = settled(512)
    bench.hear(CHILD, dao(240, IPv6Network(prefix), FIVE))
    assert set(bench.node.routes) == {DEFAULT_ROUTE, IPv6Network(ROOT), FIVE}
    assert bench.node.routes[DEFAULT_ROUTE].interface == 1
    assert bench.node.dropped == {Drop.BAD_TARGET: 1}
    assert bench.last(DaoAck) == DaoAck(240)


def test_too_many_targets() -> None:
    """A child that announces more than it may is told so, and what fits is kept."""
    bench = settled(512, max_targets_per_neighbour=3)
    bench.hear(CHILD, dao(240, *(own_prefix(10 + number) for number in range(5))))
    assert bench.last(DaoAck).rejects
    assert bench.node.status(bench.now).targets == 3
    assert bench.node.dropped == {Drop.TOO_MANY_TARGETS: 2}
    bench.hear(CHILD, dao(241, own_prefix(10), path_sequence=241))
    assert not bench.last(DaoAck).rejects
    bench.hear(OTHER_CHILD, dao(240, FIVE))
    assert not bench.last(DaoAck).rejects


def test_parent_and_child_at_once() -> None:
    """A parent's DAO is not taken, and its DIO asked for; a child that becomes a parent loses its targets.

    covers: R9.6
    """
    bench = settled(512)
    bench.take(Dis)
    bench.hear(1, dao(240, FIVE))
    assert FIVE not in bench.node.routes
    assert bench.take(DaoAck) == []
    assert [to for _, to, _ in bench.take(Dis)] == [remote(1)]
    bench.hear(CHILD, dao(240, SIX))
    bench.wait(0.05)
    dtsn = bench.last(Dio).dtsn if bench.take_copy(Dio, 1) else 240
    bench.hear(CHILD, dio(256))
    assert bench.node.parents == (CHILD,)
    assert SIX not in bench.node.routes
    assert bench.last(Dio).dtsn == dtsn + 1


def test_refresh_and_end_of_a_lifetime() -> None:
    """Own targets are announced three times in a lifetime, each time with the next Path Sequence; a child's
    target that is not refreshed ends, and the parents hear of it.

    covers: R9.2.1
    """
    bench = settled(512)
    bench.hear(CHILD, dao(240, FIVE, lifetime=20))
    bench.wait(0.03)
    assert bench.acknowledge(1)[FIVE].path_lifetime == 20
    start = bench.now
    bench.live(1800, {1: dio(512), CHILD: dio(1024), OTHER_CHILD: dio(1024)})
    sent = [(when - start, message.groups()[0]) for when, _, message in bench.take(Dao)]
    refreshes = [(when, group.transits[0]) for when, group in sent if group.targets == (OWN,)]
    ends = [(when, group.transits[0]) for when, group in sent if group.targets == (FIVE,)]
    assert [transit.path_sequence for _, transit in refreshes] == [242, 243, 244]
    assert all(480 < when / count <= 600 for count, (when, _) in enumerate(refreshes, 1))
    ((when, transit),) = ends
    assert when == pytest.approx(1200, abs=0.1)
    assert transit.path_lifetime == 0
    assert FIVE not in bench.node.routes


def test_infinite_lifetime_of_another_root() -> None:
    configuration = replace(CONFIGURATION, default_lifetime=255, lifetime_unit=65535)
    bench = Bench()
    bench.up(1)
    bench.hear(1, dio(512, configuration=configuration))
    bench.up(CHILD)
    bench.hear(CHILD, dao(240, FIVE, lifetime=255))
    bench.wait(0.03)
    assert {transit.path_lifetime for transit in bench.targets(1).values()} == {255}


def test_remaining_lifetime_is_passed_on() -> None:
    """A parent that comes later is not told that the path is fresh."""
    bench = settled(512)
    bench.hear(CHILD, dao(240, FIVE, lifetime=30))
    bench.live(600, {1: dio(512), CHILD: dio(1024)})
    bench.up(2)
    bench.hear(2, dio(256))
    bench.wait(0.03)
    assert bench.targets(2)[FIVE].path_lifetime == 20


def test_restarted_child() -> None:
    """Its multicast DIS makes us ask for its targets again; what it does not announce any more ends.

    covers: R9.6
    """
    bench = settled(512)
    bench.hear(CHILD, dao(250, FIVE, SIX))
    bench.wait(30)
    dtsn = bench.last(Dio).dtsn
    bench.hear(CHILD, Dis(), unicast=False)
    bench.wait(0.2)
    assert bench.last(Dio).dtsn == dtsn + 1
    bench.hear(1, dio(512, dtsn=241))
    bench.wait(0.03)
    assert {transit.path_lifetime for transit in bench.targets(1).values()} == {30}
    bench.hear(CHILD, dao(240, FIVE))
    assert {FIVE, SIX} <= set(bench.node.routes)
    bench.wait(10)
    assert FIVE in bench.node.routes
    assert SIX not in bench.node.routes


def test_restarted_parent() -> None:
    bench = settled(512)
    bench.wait(30)
    bench.hear(1, Dis(), unicast=False)
    bench.wait(0.03)
    assert bench.targets(1).keys() == {OWN}


def test_host_route_to_the_root_is_not_for_children() -> None:
    """covers: R8.0"""
    bench = settled(512)
    host = IPv6Network(ROOT)
    bench.hear(CHILD, dao(240, host))
    assert bench.node.routes[host].interface == 1
    bench.down(1)
    assert bench.node.role is Role.ROOT
    assert bench.node.routes[host].interface == CHILD


def test_roots_send_no_dao() -> None:
    bench = Bench()
    bench.up(CHILD)
    bench.hear(CHILD, dao(240, FIVE))
    bench.wait(3600)
    assert bench.take(Dao) == []
    assert bench.node.dodag_id == IPv6Address("fd89:b714:f3db:0:200:0:6400:2")
