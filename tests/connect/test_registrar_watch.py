"""What counts as a registrar."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from ipaddress import IPv6Address
from math import inf
from pathlib import Path
from typing import Any

import pytest

from minerva.connect.messages import Registrar
from minerva.connect.registrar_watch import (
    MAX_REGISTRARS,
    MAX_VARIATIONS,
    SILENCE,
    RegistrarWatch,
    registrars_of,
    variations,
)
from minerva.grasp.constants import ObjectiveFlag, TransportProto
from minerva.grasp.engine import GraspEngine
from minerva.grasp.flooding import CachedObjective
from minerva.grasp.messages import Flood, FloodEntry
from minerva.grasp.options import NO_VALUE, IPv6Locator, Locator, Objective

OWN = IPv6Address("fd00::1:0")
OWN_HOST = IPv6Address("fd00::1:1")
OTHER = IPv6Address("fd00::2:1")
TCP, UDP = TransportProto.IPPROTO_TCP, TransportProto.IPPROTO_UDP


def copy(
    value: Any = "EST-TLS",
    locator: Locator | None = IPv6Locator(OTHER, TCP, 8443),  # noqa: B008 -- frozen
    expires: float = 100.0,
    interface: int | None = 7,
) -> CachedObjective:
    objective = Objective("AN_join_registrar", ObjectiveFlag.F_SYNCH, 255, value)
    return CachedObjective(objective, locator, 1, OTHER, interface, expires, 254)


class Cache:
    """Stands for the GRASP engine."""

    def __init__(self, *copies: CachedObjective) -> None:
        self.copies = list(copies)
        self.asked: list[str] = []

    def floods(self, name: str, now: float) -> list[CachedObjective]:
        self.asked.append(name)
        return [item for item in self.copies if item.expires > now]


class Told:
    """A watch, and what it tells."""

    def __init__(self, cache: Any, now: float = 0.0) -> None:
        self.registrars: list[tuple[Registrar, ...]] = []
        self.local: list[bool] = []
        self.watch = RegistrarWatch(
            cache, (OWN, OWN_HOST), now, tell=self.registrars.append, tell_local=self.local.append
        )


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("EST-TLS", [""]),
        ("", [""]),
        ("prm-jose", ["prm-jose"]),
        ("något nytt", ["något nytt"]),
        (NO_VALUE, [""]),
        (None, [""]),
        (5, [""]),
        ({"a": 1}, [""]),
        ([], [""]),
        (["EST-TLS", "cmp"], ["", "cmp"]),
        (["cmp", "cmp", ""], ["cmp", ""]),
        ("x" * 64, ["x" * 64]),
        ("x" * 65, []),
        ("ö" * 33, []),
    ],
)
def test_a_variation_is_passed_on_as_it_is(value: Any, found: list[str]) -> None:
    """
    covers: JP-4
    """
    assert variations(value) == found


def test_an_announcement_of_thousands_costs_little() -> None:
    """A flood has room for 16,000 variations, and is looked at again with every flood that comes."""
    many = [f"{number:x}" for number in range(16_000)]
    assert variations(many) == many[:MAX_VARIATIONS]
    told = Told(Cache(*(copy(many, IPv6Locator(OTHER, TCP, 1 + number)) for number in range(30))))
    began = time.process_time()
    told.watch.look(1.0)
    assert time.process_time() - began < 0.2
    assert len(told.registrars[0]) == MAX_REGISTRARS


def test_the_known_ones_are_found_among_thousands() -> None:
    known = copy()
    cache = Cache(known)
    told = Told(cache)
    told.watch.look(1.0)
    invented = [copy(locator=IPv6Locator(OTHER, TCP, 9000 + number)) for number in range(1000)]
    cache.copies = [*invented, known]
    told.watch.look(2.0)
    assert told.registrars[-1][0] == Registrar(OTHER, 8443, "")
    assert len(told.registrars[-1]) == MAX_REGISTRARS
    cache.copies = invented
    told.watch.look(3.0)
    assert Registrar(OTHER, 8443, "") not in told.registrars[-1]
    assert len(told.registrars[-1]) == MAX_REGISTRARS


@pytest.mark.parametrize(
    "locator",
    [
        None,
        IPv6Locator(OTHER, UDP, 5684),
        IPv6Locator(OTHER, TCP, 0),
        IPv6Locator(OTHER, TCP, 7017),
        IPv6Locator(IPv6Address("fe80::2"), TCP, 8443),
        IPv6Locator(IPv6Address("::1"), TCP, 8443),
        IPv6Locator(IPv6Address("ff02::1"), TCP, 8443),
        IPv6Locator(IPv6Address("2001:db8::1"), TCP, 8443),
    ],
    ids=str,
)
def test_what_cannot_be_proxied_to(locator: Locator | None) -> None:
    """Other transports than TCP, and what is not in the ACP.

    covers: JP-3, JP-4
    """
    assert registrars_of([copy(locator=locator)]) == []
    assert registrars_of([copy()]) == [Registrar(OTHER, 8443, "")]


def test_the_announcement_of_the_rfc(fixtures: Path) -> None:
    """RFC 8995 figure 12 through the real engine; and an AN_Proxy in the ACP is nobody's registrar.

    covers: JP-3
    """
    figure = Flood.decode((fixtures / "rfc8995" / "fig12-grasp-m_flood-AN_join_registrar.cbor").read_bytes())
    engine = GraspEngine(OWN, random=random.Random(1))
    told = Told(engine)
    own = IPv6Locator(OTHER, TCP, 4443)
    proxy = FloodEntry(Objective("AN_Proxy", ObjectiveFlag.F_SYNCH, 255, ""), own)
    engine.flood(180_000, [proxy], 1.0)
    other_spelling = FloodEntry(Objective("AN_Join_Registrar", ObjectiveFlag.F_SYNCH, 255, ""), own)
    engine.flood(180_000, [other_spelling], 1.0)
    assert told.watch.look(1.0) == SILENCE
    assert told.registrars == []
    engine._flooding.receive(figure, 3, 2.0)
    assert told.watch.look(2.0) == 182.0
    address = IPv6Address("fda3:79a6:f6ee:0:200:0:6400:1")
    assert told.registrars == [(Registrar(address, 8443, ""),)]
    assert told.local == []


def test_changes_are_told_and_repetitions_are_not() -> None:
    """
    covers: JP-6
    """
    cache = Cache()
    told = Told(cache)
    assert told.watch.look(SILENCE) == inf
    assert told.registrars == [()]
    cache.copies = [copy()]
    assert told.watch.look(20.0) == 100.0
    cache.copies = [copy(expires=160.0)]
    assert told.watch.look(30.0) == 160.0
    assert len(told.registrars) == 2
    told.watch.look(160.0)
    assert told.registrars == [(), (Registrar(OTHER, 8443, ""),), ()]
    assert set(cache.asked) == {"AN_join_registrar"}


def test_a_plane_that_was_started_again_is_silent_until_it_may_know() -> None:
    cache = Cache()
    told = Told(cache, now=50.0)
    assert told.watch.look(50.0) == 50.0 + SILENCE
    assert told.registrars == []
    cache.copies = [copy()]
    told.watch.look(50.5)
    assert len(told.registrars) == 1
    told = Told(Cache(), now=50.0)
    told.watch.look(50.0 + SILENCE)
    assert told.registrars == [()]


def test_newcomers_do_not_drive_out_who_was_there() -> None:
    first = copy()
    cache = Cache(first)
    told = Told(cache)
    told.watch.look(0.0)
    crowd = [copy(locator=IPv6Locator(IPv6Address(f"fd00::{number:x}"), TCP, 443)) for number in range(1, 60)]
    cache.copies = [*crowd, replace(first, expires=200.0)]
    told.watch.look(1.0)
    assert len(told.registrars[-1]) == MAX_REGISTRARS
    assert told.registrars[-1][0] == Registrar(OTHER, 8443, "")
    cache.copies.reverse()
    told.watch.look(2.0)
    assert len(told.registrars) == 2, "another order is no change"


@pytest.mark.parametrize("address", [OWN, OWN_HOST])
def test_a_registrar_of_this_machine(address: IPv6Address) -> None:
    """
    covers: JP-8
    """
    mine = copy(locator=IPv6Locator(address, TCP, 8443), interface=None)
    cache = Cache(mine)
    told = Told(cache)
    told.watch.look(0.0)
    told.watch.look(1.0)
    told.watch.look(100.0)
    assert told.local == [True, False]
    # Somebody else who says that we are a registrar, or a program here that says it of another node.
    for other in (replace(mine, interface=7), replace(mine, locator=IPv6Locator(OTHER, TCP, 8443))):
        cache.copies = [other]
        told.watch.look(50.0)
    assert told.local == [True, False]
