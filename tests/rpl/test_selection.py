from __future__ import annotations

import itertools
from dataclasses import replace
from ipaddress import IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from minerva.rpl.config import Preference, RplConfig
from minerva.rpl.selection import MAX_REMEMBERED, Dodag, DodagMemory, Offer, OwnDodag, choose, resulting_rank

CONFIGURATION = RplConfig().dodag_configuration()
ROOT = IPv6Address("fd89::1000")
OWN = OwnDodag(IPv6Address("fd89::2"), Preference.DEFAULT).dodag


def offer(interface: int, rank: int, **dodag: object) -> Offer:
    description = replace(Dodag(ROOT, 240, True, 3, 2), **dodag)  # type: ignore[arg-type]
    return Offer(interface, description, rank, rank + 256, CONFIGURATION, False)


def memory() -> DodagMemory:
    return DodagMemory(0.5, 8, 30)


def test_resulting_rank() -> None:
    """covers: OF0-1"""
    assert resulting_rank(256, 1, 3, 256) == 1024
    assert resulting_rank(256, 5, 1, 256) == 1536
    assert resulting_rank(0xFF00, 5, 3, 256) == 0xFFFF


def test_lowest_rank_counts_and_not_the_last() -> None:
    """covers: R8.2.2.4"""
    known = memory()
    known.advertised(offer(1, 0).dodag, 768, 0)
    known.advertised(offer(1, 0).dodag, 1000, 1)
    assert known.allows(offer(1, 767), 2)
    assert not known.allows(offer(1, 768), 2)


def test_stable_membership_forgives() -> None:
    """Half a second the first time, and again after a DODAG was held for long."""
    known, now = memory(), 0.0
    for held, expected in [(1, 0.5), (1, 1.0), (1, 2.0), (31, 0.5), (1, 1.0)]:
        known.advertised(offer(1, 0).dodag, 768, now)
        now += held
        known.left(ROOT, now, lost=True)
        assert known.next_expiry(now) == now + expected
        now += expected


def test_change_to_a_better_dodag_is_no_loss() -> None:
    known = memory()
    for start in (0, 1, 2):
        known.advertised(offer(1, 0).dodag, 768, start)
        known.left(ROOT, start + 0.1, lost=False)
        assert known.next_expiry(start + 0.1) == start + 0.6


def test_memory_is_bounded() -> None:
    """The DODAG that was left longest ago is forgotten, not the one that the node is in."""
    known = memory()
    here = offer(1, 0).dodag
    known.advertised(here, 768, 0)
    for number in range(2 * MAX_REMEMBERED):
        other = replace(here, dodag_id=ROOT + 1 + number)
        known.advertised(other, 768, number)
        known.left(other.dodag_id, number, lost=True)
    assert len(known) == MAX_REMEMBERED
    assert not known.allows(offer(1, 768), 1000)


ranks = st.sampled_from([256, 512, 768, 1024])
offers = st.lists(
    st.tuples(ranks, st.sampled_from([ROOT, ROOT + 1]), st.sampled_from([1, 3]), st.sampled_from([240, 241])),
    max_size=5,
).map(
    lambda found: [
        offer(i, rank, dodag_id=who, preference=prefer, version=version)
        for i, (rank, who, prefer, version) in enumerate(found)
    ]
)


@given(offers, st.integers(1, 4))
def test_choice(found: list[Offer], most: int) -> None:
    """Whatever is offered: one DODAG and version, parents nearer than we are, the preferred one the nearest;
    and the order of interfaces changes nothing but ties.

    covers: R8.2.1, R8.2.2.1, OF0-1, OF0-2
    """
    choice = choose(OWN, found, lambda _: True, (), most)
    if choice is None:
        assert all(each.dodag.priority <= OWN.priority for each in found)
        return
    parents = [each for number in choice.parents for each in found if each.interface == number]
    assert 1 <= len(parents) <= most
    assert {each.dodag for each in parents} == {choice.dodag}
    assert all(each.rank < choice.rank for each in parents)
    assert choice.rank == parents[0].resulting_rank
    assert choice.rank == min(each.resulting_rank for each in found if each.dodag == choice.dodag)
    for order in itertools.islice(itertools.permutations(found), 6):
        assert choose(OWN, order, lambda _: True, (), most) == choice
