"""Which registrar a pledge is connected with."""

from __future__ import annotations

import random
from ipaddress import IPv6Address

from minerva.connect.messages import Registrar
from minerva.connect.registrar_choice import (
    FIRST_PATIENCE,
    GRACE,
    LAST_PATIENCE,
    LAST_PROBE,
    PASS_OVER,
    RegistrarChoice,
)

A, B, C = (Registrar(IPv6Address(f"fd00::{number}"), 8443, "") for number in (1, 2, 3))
CMP = Registrar(IPv6Address("fd00::1"), 9443, "cmp")


def choice(*registrars: Registrar, seed: int = 1) -> RegistrarChoice:
    made = RegistrarChoice(random.Random(seed))
    made.update(registrars)
    return made


def test_nothing_is_offered_before_it_has_worked() -> None:
    made = choice(A)
    assert not made.usable("")
    assert made.probes(0.0) == [A]
    assert made.probes(0.0) == [], "one at a time"
    assert made.next_timer() is None
    assert made.succeeded(A, 0.1, probe=True)
    assert made.usable("")
    assert made.probes(100.0) == []
    assert not made.succeeded(A, 200.0)


def test_all_in_turn_are_tried_until_one_is_usable() -> None:
    made = choice(A, B, C)
    tried = []
    for now in (0.0, 0.1, 0.2):
        [registrar] = made.probes(now)
        tried.append(registrar)
        assert not made.failed(
            registrar, "Connection refused", now, probe=True
        )  # nobody has waited for it yet
    assert sorted(tried, key=str) == [A, B, C]
    assert made.next_timer() is not None


def test_the_background_tries_less_and_less_often() -> None:
    """
    covers: JP-6
    """
    made, now = choice(A), 0.0
    gaps: list[float] = []
    waited = [made.patience(A)]
    for _ in range(12):
        assert made.probes(now) == [A]
        made.failed(A, "it does not answer", now, probe=True)
        when = made.next_timer()
        assert when is not None
        assert made.probes(when - 0.001) == []
        gaps.append(when - now)
        waited.append(made.patience(A))
        now = when
    assert gaps[0] < 1.0
    assert LAST_PROBE <= max(gaps) <= LAST_PROBE * 1.25
    assert (waited[0], waited[-1]) == (FIRST_PATIENCE, LAST_PATIENCE)
    assert waited == sorted(waited)
    made.probes(now)
    made.succeeded(A, now, probe=True)
    assert made.patience(A) == FIRST_PATIENCE
    made.failed(A, "it does not answer", now + 1)
    assert made.next_timer() - now - 1 < 1.0, "and starts over after it has worked"  # type: ignore[operator]


def test_the_one_that_worked_last_is_the_first_choice() -> None:
    made = choice(A, B, C)
    made.succeeded(B, 1.0)
    assert made.candidates("", 2.0)[0] == B
    made.succeeded(C, 3.0)
    assert made.candidates("", 4.0)[:2] == [C, B]


def test_one_that_failed_is_passed_over_for_a_while() -> None:
    """
    covers: JP-6
    """
    made = choice(A, B)
    made.succeeded(A, 0.0)
    assert made.offered(0.1) == [""]
    made.failed(A, "Connection refused", 10.0)
    assert made.candidates("", 10.1) == [B, A]
    assert not made.usable("")
    assert made.offered(10.1) == [""], "for a moment"
    [probed] = made.probes(10.1)
    assert probed == B, "what is not known to fail comes first"
    made.update([A, B, C])
    assert set(made.candidates("", 10.0 + PASS_OVER - 0.1)[:2]) == {B, C}
    assert made.candidates("", 10.0 + PASS_OVER)[0] == A, "it is not held against it any more"
    made.succeeded(B, 70.0, probe=True)
    made.update([A, B])
    assert made.candidates("", 71.0) == [B, A]
    assert made.offered(71.0) == [""]
    assert made.next_timer() is None
    made.failed(B, "Connection refused", 100.0)
    assert made.offered(100.0) == [""], "for a moment"
    assert made.next_timer() is not None
    assert made.offered(100.9) == [""]
    assert made.offered(100.0 + GRACE) == []
    made.update([A, B, C])
    assert made.offered(102.0) == [], "not before it has worked"


def test_variations_are_for_themselves() -> None:
    """
    covers: JP-4
    """
    made = choice(A, CMP)
    assert made.variations() == ["", "cmp"]
    assert set(made.probes(0.0)) == {A, CMP}
    made.succeeded(A, 0.1, probe=True)
    made.failed(CMP, "Connection refused", 0.1, probe=True)
    assert made.usable("")
    assert not made.usable("cmp")
    assert made.candidates("cmp", 1.0) == [CMP]


def test_nodes_begin_with_different_ones() -> None:
    firsts = {choice(A, B, C, seed=seed).probes(0.0)[0] for seed in range(30)}
    assert firsts == {A, B, C}


def test_what_is_gone_is_forgotten() -> None:
    made = choice(A, B)
    made.probes(0.0)
    made.update([B])
    assert not made.succeeded(A, 1.0, probe=True)
    assert not made.failed(A, "x", 1.0, probe=True)
    assert made.candidates("", 1.0) == [B]
    made.succeeded(B, 1.0)
    made.update([B, A])
    assert made.usable(""), "what is known of the others stays"
    made.update([])
    assert made.variations() == []
    assert made.next_timer() is None


def test_status_says_which_one_is_in_use() -> None:
    made = choice(A, B, CMP)
    assert not any(item["in_use"] for item in made.status(0.0))
    made.succeeded(B, 0.0)
    made.failed(A, "Connection refused", 1.0)
    found = {(item["address"], item["variation"]): item for item in made.status(2.0)}
    assert found["fd00::2", ""]["in_use"]
    assert found["fd00::1", ""]["problem"] == "Connection refused"
    assert not found["fd00::1", "cmp"]["in_use"]


def test_what_is_news() -> None:
    """Who has just joined hears of a registrar before all routes are there; what worked and fails is news."""
    made = choice(A)
    assert [made.failed(A, "it does not answer", float(now)) for now in range(5)] == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert made.failed(A, "Connection refused", 5.0)
    assert made.succeeded(A, 6.0)
    assert not made.succeeded(A, 7.0)
    assert made.failed(A, "Connection refused", 8.0)
    assert not made.failed(A, "Connection refused", 9.0)
