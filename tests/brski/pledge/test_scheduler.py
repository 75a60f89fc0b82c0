"""Which proxies are tried, and when: under a clock that only the test moves."""

from __future__ import annotations

import random
from collections.abc import Iterator
from ipaddress import IPv6Address
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from minerva.brski.pledge import scheduler as module
from minerva.brski.pledge.errors import SchedulerError
from minerva.brski.pledge.scheduler import (
    MAX_ATTEMPTS,
    MAX_BACKOFF,
    MAX_PER_PORT,
    MAX_PROTECTED,
    MAX_PROXIES,
    STALL,
    Abandon,
    AttemptScheduler,
    Event,
    Proxy,
    Start,
    State,
)

FOREVER = 1e9


def proxy(number: int, port: int = 1) -> Proxy:
    """Return one of many proxies."""
    return Proxy(port, IPv6Address(f"fe80::{number:x}"), 49152 + number % 1000)


class Clock:
    """Drives a scheduler: takes its events, calls its timer, notes when each start was."""

    def __init__(self, **options: int) -> None:
        self.random = random.Random(7)
        self.scheduler = AttemptScheduler(self.random.random, **options)
        self.now = 1000.0
        self.starts: list[tuple[float, Start]] = []
        self.abandoned: list[Abandon] = []

    def hear(self, *proxies: Proxy, expires: float = FOREVER) -> None:
        for each in proxies:
            self.scheduler.heard(each, expires, self.now)
        self.take()

    def take(self) -> list[Event]:
        taken: list[Event] = []
        while (event := self.scheduler.next_event()) is not None:
            taken.append(event)
            if isinstance(event, Start):
                self.starts.append((self.now, event))
            else:
                self.abandoned.append(event)
        return taken

    def run(self, seconds: float, refresh: tuple[Proxy, ...] = ()) -> None:
        """Let time pass; ``refresh`` are the proxies that announce themselves all the while."""
        end = self.now + seconds
        while True:
            due = self.scheduler.next_timer()
            step = min(end, self.now + 60)
            if due is None or due > step:
                self.now = step
            else:
                assert due >= self.now, "a timer that was due before"
                self.now = due
                self.scheduler.on_timer(self.now)
                self.take()
            for each in refresh:
                self.scheduler.heard(each, FOREVER, self.now)
            self.take()
            if self.now >= end:
                return

    def fail(self, attempt: int) -> None:
        self.scheduler.failed(attempt, "no", self.now)
        self.take()

    def running(self) -> list[Start]:
        return [
            Start(status.proxy, status.attempt)
            for status in self.scheduler.status(self.now)
            if status.attempt is not None
        ]

    def last(self) -> Start:
        return self.starts[-1][1]


def test_the_first_starts_at_once_and_the_others_three_to_five_seconds_apart() -> None:
    """covers: P-13, P-14"""
    clock = Clock()
    clock.hear(*(proxy(number) for number in range(4)))
    assert [when for when, _ in clock.starts] == [1000.0]
    clock.run(30)
    assert [start.proxy for _, start in clock.starts] == [proxy(number) for number in range(4)]
    times = [when for when, _ in clock.starts]
    gaps = [after - before for before, after in pairwise(times)]
    assert all(3 <= gap <= 5 for gap in gaps)
    assert len(set(gaps)) == 3, "the gaps are random"
    assert not clock.abandoned, "they run beside each other"


def test_every_attempt_has_a_number_of_its_own() -> None:
    """covers: P-14"""
    clock = Clock()
    clock.hear(proxy(1), proxy(2))
    for _ in range(20):
        clock.run(400, (proxy(1), proxy(2)))
        for attempt in [status.attempt for status in clock.scheduler.status(clock.now)]:
            if attempt is not None:
                clock.fail(attempt)
    numbers = [start.attempt for _, start in clock.starts]
    assert len(numbers) > 10
    assert len(set(numbers)) == len(numbers)


def test_a_failure_doubles_the_back_off_of_that_proxy_up_to_an_hour() -> None:
    """covers: P-13"""
    clock = Clock()
    clock.hear(proxy(1))
    waits = []
    for _ in range(14):
        failed_at = clock.now
        clock.fail(clock.last().attempt)
        before = len(clock.starts)
        clock.run(2 * MAX_BACKOFF, (proxy(1),))
        assert len(clock.starts) == before + 1
        waits.append(clock.starts[-1][0] - failed_at)
        clock.now = clock.starts[-1][0]
    assert waits[0] <= 5
    for count, wait in enumerate(waits):
        most = min(5.0 * 2**count, MAX_BACKOFF)
        assert 0.8 * most - 5 <= wait <= most + 5
    assert max(waits) <= MAX_BACKOFF


def test_back_offs_are_independent() -> None:
    """covers: P-13"""
    clock = Clock()
    clock.hear(proxy(1))
    for _ in range(8):
        clock.fail(clock.last().attempt)
        clock.run(900, (proxy(1),))
    clock.fail(clock.last().attempt)
    waits_until = clock.scheduler.status(clock.now)[0].retry_at
    assert waits_until is not None
    assert waits_until > clock.now + 900
    clock.hear(proxy(2))
    assert clock.last().proxy == proxy(2), "the other one is tried at once"
    clock.fail(clock.last().attempt)
    first, second = clock.scheduler.status(clock.now)
    assert first.retry_at == waits_until
    assert second.retry_at is not None
    assert second.retry_at <= clock.now + 5


def test_a_link_that_comes_up_ends_the_back_offs_of_its_port_alone() -> None:
    """covers: P-12"""
    clock = Clock()
    here, there = proxy(1, port=1), proxy(2, port=2)
    clock.hear(here)
    clock.run(5)
    clock.hear(there)
    for _ in range(8):
        for status in clock.scheduler.status(clock.now):
            if status.attempt is not None:
                clock.fail(status.attempt)
        clock.run(1000, (here, there))
    for status in clock.scheduler.status(clock.now):
        if status.attempt is not None:
            clock.fail(status.attempt)
    clock.run(10, (here, there))
    before = len(clock.starts)
    clock.scheduler.link_up(2, clock.now)
    clock.take()
    assert [start.proxy for _, start in clock.starts[before:]] == [there]
    assert clock.scheduler.status(clock.now)[1].failures == 0
    clock.fail(clock.last().attempt)
    retry_at = clock.scheduler.status(clock.now)[1].retry_at
    assert retry_at is not None
    assert retry_at <= clock.now + 5, "from the beginning"


def test_an_announcement_that_expires_is_forgotten_and_the_attempt_goes_on() -> None:
    """covers: P-11, P-16"""
    clock = Clock()
    clock.hear(proxy(1), proxy(2), expires=1002.0)
    clock.run(10)
    assert [status.proxy for status in clock.scheduler.status(clock.now)] == [proxy(1)]
    assert len(clock.starts) == 1
    clock.fail(clock.last().attempt)
    assert clock.scheduler.status(clock.now) == ()
    assert clock.scheduler.next_timer() is None, "nothing to do but to listen"
    clock.hear(proxy(2))
    assert clock.last().proxy == proxy(2)


def test_one_that_withdraws_is_not_tried() -> None:
    clock = Clock()
    clock.hear(proxy(1), proxy(2))
    clock.scheduler.expired(proxy(2), clock.now)
    clock.hear(proxy(3), expires=clock.now)
    clock.run(20)
    assert [start.proxy for _, start in clock.starts] == [proxy(1)]


def test_nobody_is_believed_for_ever() -> None:
    clock = Clock(max_attempts=1)
    clock.hear(proxy(1), proxy(2), expires=FOREVER)
    for _ in range(599):
        clock.scheduler.progress(clock.last().attempt, clock.now)
        clock.run(1)
    assert len(clock.scheduler.status(clock.now)) == 2
    clock.run(2)
    assert [status.proxy for status in clock.scheduler.status(clock.now)] == [proxy(1)]


def test_out_of_sockets_the_oldest_without_progress_gives_way_after_five_seconds() -> None:
    """covers: P-14"""
    clock = Clock(max_attempts=2)
    clock.hear(*(proxy(number) for number in range(3)))
    clock.run(4.99)
    assert len(clock.starts) == 2
    first, second = (start for _, start in clock.starts)
    assert not clock.abandoned
    clock.run(6)
    assert clock.abandoned[0].attempt == first.attempt
    assert "5 s" in clock.abandoned[0].reason
    when, third = clock.starts[2]
    assert third.proxy == proxy(2)
    assert when >= 1000 + STALL
    assert second.attempt not in [event.attempt for event in clock.abandoned[:1]]
    status = clock.scheduler.status(clock.now)[0]
    assert status.failures == 1, "it has a back-off like any other that failed"
    assert status.reason == clock.abandoned[0].reason


def test_who_gets_on_keeps_the_socket() -> None:
    """covers: P-14"""
    clock = Clock(max_attempts=2)
    clock.hear(*(proxy(number) for number in range(8)))
    kept = clock.starts[0][1].attempt
    for _ in range(40):
        clock.run(1)
        clock.scheduler.progress(kept, clock.now)
    assert kept not in [event.attempt for event in clock.abandoned]
    assert len(clock.abandoned) >= 5


def test_who_got_an_answer_outlasts_those_who_are_silent() -> None:
    clock = Clock(max_attempts=3)
    clock.hear(proxy(0))
    clock.scheduler.progress(clock.last().attempt, clock.now)
    clock.hear(*(proxy(number) for number in range(1, 9)))
    clock.run(60)
    assert proxy(0) not in [event.proxy for event in clock.abandoned], "it waits for an administrator"
    assert len(clock.abandoned) >= 5


def test_alone_it_may_wait() -> None:
    clock = Clock(max_attempts=1)
    clock.hear(proxy(1))
    clock.run(3600, (proxy(1),))
    assert len(clock.starts) == 1
    assert not clock.abandoned


def test_the_least_recently_tried_is_next() -> None:
    """covers: P-14"""
    clock = Clock(max_attempts=1)
    everybody = tuple(proxy(number) for number in range(3))
    clock.hear(*everybody)
    clock.run(120, everybody)
    order = [start.proxy for _, start in clock.starts]
    assert order[:3] == list(everybody)
    assert order[3:6] == list(everybody)


def test_one_voucher_and_the_others_stop() -> None:
    """covers: P-13"""
    clock = Clock()
    clock.hear(proxy(1), proxy(2), proxy(3))
    clock.run(10)
    first, second, third = (start.attempt for _, start in clock.starts)
    assert clock.scheduler.imprinted(second, clock.now)
    clock.take()
    assert sorted(event.attempt for event in clock.abandoned) == [first, third]
    assert not clock.scheduler.imprinted(first, clock.now), "too late"
    assert clock.scheduler.imprinted(second, clock.now), "twice does no harm"
    clock.scheduler.progress(second, clock.now)
    clock.hear(proxy(4))
    clock.run(100, (proxy(1), proxy(3), proxy(4)))
    assert len(clock.starts) == 3
    clock.fail(second)
    clock.run(30, (proxy(1), proxy(3), proxy(4)))
    tried = {start.proxy for _, start in clock.starts[3:]}
    assert {proxy(1), proxy(3), proxy(4)} <= tried, "the others have their turn again, without back-off"


def test_after_success_nothing_starts() -> None:
    clock = Clock()
    clock.hear(proxy(1), proxy(2))
    clock.run(10)
    first, second = (start.attempt for _, start in clock.starts)
    clock.scheduler.succeeded(first)
    clock.take()
    assert [event.attempt for event in clock.abandoned] == [second]
    clock.hear(proxy(3))
    clock.scheduler.link_up(1, clock.now)
    clock.scheduler.failed(second, "late", clock.now)
    assert clock.scheduler.next_timer() is None
    assert len(clock.starts) == 2


def test_what_is_reported_too_late_is_dropped() -> None:
    clock = Clock(max_attempts=1)
    clock.hear(proxy(1), proxy(2))
    clock.run(6)
    (old,) = (event.attempt for event in clock.abandoned)
    before = clock.scheduler.status(clock.now)
    clock.scheduler.progress(old, clock.now)
    clock.scheduler.failed(old, "late", clock.now)
    clock.scheduler.succeeded(old)
    assert not clock.scheduler.imprinted(old, clock.now)
    assert clock.scheduler.status(clock.now) == before


def test_a_port_that_goes_takes_its_proxies_along() -> None:
    clock = Clock()
    clock.hear(proxy(1, 1), proxy(2, 2))
    clock.run(10)
    clock.scheduler.link_down(1, clock.now)
    clock.take()
    assert [event.proxy for event in clock.abandoned] == [proxy(1, 1)]
    assert [status.proxy for status in clock.scheduler.status(clock.now)] == [proxy(2, 2)]
    clock.scheduler.link_down(9, clock.now)
    clock.hear(proxy(1, 1))
    clock.run(10)
    assert clock.last().proxy == proxy(1, 1), "back again, and without back-off"


def test_a_flood_of_forgeries_is_bounded_and_displaces_nobody_who_got_somewhere() -> None:
    """covers: P-14"""
    clock = Clock()
    genuine = proxy(1)
    clock.hear(genuine)
    clock.scheduler.progress(clock.last().attempt, clock.now)
    clock.fail(clock.last().attempt)  # such as a 403: to be tried again
    for number in range(2, 12_000):
        clock.scheduler.heard(proxy(number), FOREVER, clock.now)
        if number % 50 == 0:
            clock.run(1, (genuine,))
            for status in clock.scheduler.status(clock.now):
                if status.attempt is not None and status.proxy != genuine:
                    clock.fail(status.attempt)
        assert len(clock.scheduler.status(clock.now)) <= MAX_PER_PORT
        if status := [each for each in clock.scheduler.status(clock.now) if each.proxy == genuine]:
            if status[0].attempt is not None:
                clock.fail(status[0].attempt)
        else:
            raise AssertionError("the genuine proxy was displaced")
    assert clock.scheduler.dropped > 10_000
    tries = [when for when, start in clock.starts if start.proxy == genuine]
    assert len(tries) >= 5, "it still has its turns"


def test_a_flood_on_one_port_takes_no_turn_from_another() -> None:
    clock = Clock(max_attempts=2)
    flooded = tuple(proxy(number, port=1) for number in range(100))
    clock.hear(*flooded)
    clock.hear(proxy(1, port=2))
    clock.run(12, flooded)
    assert proxy(1, port=2) in [start.proxy for _, start in clock.starts[:3]]


def test_those_who_got_somewhere_do_not_starve_the_others() -> None:
    clock = Clock(max_attempts=1)
    known = tuple(proxy(number) for number in range(MAX_PROTECTED))
    for each in known:
        clock.hear(each)
        clock.run(60, known)
    for _ in range(100):
        for status in clock.scheduler.status(clock.now):
            if status.attempt is not None:
                clock.scheduler.progress(status.attempt, clock.now)
                clock.fail(status.attempt)
        clock.run(20, known)
    before = len(clock.starts)
    clock.scheduler.link_up(1, clock.now)
    clock.hear(proxy(100))
    clock.run(30, known)
    assert len(clock.starts) > before + 2
    assert proxy(100) in [start.proxy for _, start in clock.starts[before:]][:3]


def test_the_whole_is_bounded_and_each_port_gets_its_share() -> None:
    clock = Clock(max_attempts=1)
    ports = MAX_PROXIES // MAX_PER_PORT
    for port in range(ports):
        for number in range(MAX_PER_PORT):
            clock.scheduler.heard(proxy(number, port), FOREVER, clock.now)
    assert len(clock.scheduler.status(clock.now)) == MAX_PROXIES
    for port in range(100, 120):
        clock.scheduler.heard(proxy(1, port), FOREVER, clock.now)
    found = {status.proxy.port for status in clock.scheduler.status(clock.now)}
    assert len(clock.scheduler.status(clock.now)) == MAX_PROXIES
    assert set(range(100, 120)) <= found


def test_hundreds_of_ports_with_one_neighbour_each() -> None:
    clock = Clock()
    clock.hear(proxy(1, 0))
    clock.fail(clock.last().attempt)
    for port in range(1, 300):
        clock.scheduler.heard(proxy(1, port), FOREVER, clock.now)
    assert len(clock.scheduler.status(clock.now)) == MAX_PROXIES
    assert clock.scheduler.dropped == 300 - MAX_PROXIES, "nobody has more than his share"


def test_protection_has_an_end() -> None:
    clock = Clock()
    everybody = tuple(proxy(number) for number in range(MAX_PER_PORT))
    failures = {each: 3 if number < 4 else 1 for number, each in enumerate(everybody)}
    for each, count in failures.items():
        clock.hear(each)
        for _ in range(count):
            while each not in [running.proxy for running in clock.running()]:
                clock.run(1, everybody[: everybody.index(each) + 1])
            for running in clock.running():
                clock.scheduler.progress(running.attempt, clock.now)
                clock.fail(running.attempt)
    most = max(status.failures for status in clock.scheduler.status(clock.now))
    worst = {each.proxy for each in clock.scheduler.status(clock.now) if each.failures == most}
    assert len(worst) <= MAX_PER_PORT - MAX_PROTECTED
    dropped = clock.scheduler.dropped
    clock.hear(proxy(99))
    assert clock.scheduler.dropped == dropped
    left = {status.proxy for status in clock.scheduler.status(clock.now)}
    assert proxy(99) in left
    assert len(worst - left) == 1, "one that failed most had to go"


def test_an_impossible_happening_is_an_error() -> None:
    entry = module._Entry(proxy(1), 1, FOREVER, module.Backoff())
    with pytest.raises(SchedulerError, match="waiting: no imprint now"):
        entry.happen(module.Happening.IMPRINT)
    with pytest.raises(SchedulerError, match="at least one"):
        AttemptScheduler(random.random, max_attempts=0)


def test_what_is_said_of_a_proxy() -> None:
    clock = Clock()
    clock.hear(proxy(1))
    clock.scheduler.failed(clock.last().attempt, "it refused", clock.now)
    (status,) = clock.scheduler.status(clock.now)
    assert (status.state, status.attempt, status.failures, status.reason) == (
        State.WAITING,
        None,
        1,
        "it refused",
    )
    assert str(proxy(1)) == "[fe80::1]:49153"


class Machine(RuleBasedStateMachine):
    """Anything may happen in any order: the promises hold."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.random = random.Random(1)
        self.scheduler = AttemptScheduler(self.random.random, max_attempts=3)
        self.running: dict[int, Proxy] = {}
        self.numbers: set[int] = set()
        self.not_before: dict[Proxy, float] = {}
        self.last_start = -1e9
        self.imprinted: int | None = None
        self.done = False

    def take(self) -> None:
        while (event := self.scheduler.next_event()) is not None:
            if isinstance(event, Abandon):
                assert self.running.pop(event.attempt) == event.proxy
                continue
            assert not self.done
            assert self.imprinted is None
            assert event.attempt not in self.numbers
            assert event.proxy not in self.running.values()
            assert self.now - self.last_start >= 3
            assert self.now >= self.not_before.get(event.proxy, 0), "in its back-off"
            self.last_start = self.now
            self.numbers.add(event.attempt)
            self.running[event.attempt] = event.proxy
            assert len(self.running) <= 3

    def attempts(self) -> Iterator[int]:
        return iter(sorted(self.running))

    @rule(number=st.integers(1, 40), port=st.integers(1, 3), lifetime=st.floats(-1, 1000))
    def hear(self, number: int, port: int, lifetime: float) -> None:
        self.scheduler.heard(proxy(number, port), self.now + lifetime, self.now)
        self.take()

    @rule(number=st.integers(1, 40), port=st.integers(1, 3))
    def withdraw(self, number: int, port: int) -> None:
        self.scheduler.expired(proxy(number, port), self.now)
        self.take()

    @rule(seconds=st.floats(0, 20))
    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(200):
            due = self.scheduler.next_timer()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.scheduler.on_timer(self.now)
            self.take()
            again = self.scheduler.next_timer()
            assert again is None or again > self.now or again > due, "a timer that does nothing"
        else:
            raise AssertionError("the timer spins")
        self.now = end

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def progress(self, data: st.DataObject) -> None:
        self.scheduler.progress(data.draw(st.sampled_from(sorted(self.running))), self.now)
        self.take()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.running)))
        failed = self.running.pop(attempt)
        if self.imprinted == attempt:
            self.imprinted = None
        # Of a proxy that is forgotten and heard again nothing is known, so only the shortest is sure.
        known = any(status.proxy == failed for status in self.scheduler.status(self.now))
        assert known
        self.scheduler.failed(attempt, "no", self.now)
        retry = [status for status in self.scheduler.status(self.now) if status.proxy == failed]
        self.not_before[failed] = (retry[0].retry_at or 0) if retry else 0
        self.take()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def imprint(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.running)))
        assert self.scheduler.imprinted(attempt, self.now) is (self.imprinted in (None, attempt))
        self.imprinted = attempt
        self.take()
        assert list(self.running) == [attempt]

    @rule(port=st.integers(1, 3))
    def link_up(self, port: int) -> None:
        for each in [each for each in self.not_before if each.port == port]:
            del self.not_before[each]
        self.scheduler.link_up(port, self.now)
        self.take()

    @rule(port=st.integers(1, 3))
    def link_down(self, port: int) -> None:
        for each in [each for each in self.not_before if each.port == port]:
            del self.not_before[each]
        if self.imprinted is not None and self.running[self.imprinted].port == port:
            self.imprinted = None
        self.scheduler.link_down(port, self.now)
        self.take()

    @invariant()
    def bounded(self) -> None:
        states = self.scheduler.status(self.now)
        assert len(states) <= MAX_PROXIES
        for port in (1, 2, 3):
            assert sum(1 for status in states if status.proxy.port == port) <= MAX_PER_PORT
        running = {status.attempt: status.proxy for status in states if status.attempt is not None}
        assert running == self.running
        # A proxy that was forgotten comes back as a stranger.
        known = {status.proxy for status in states}
        for each in [each for each in self.not_before if each not in known]:
            del self.not_before[each]


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
test_anything_in_any_order = Machine.TestCase


def test_the_limits_are_those_of_the_rfc() -> None:
    """covers: P-13, P-14"""
    assert module.SPACING == (3.0, 5.0)
    assert STALL == 5.0
    assert MAX_BACKOFF == 3600.0
    assert MAX_ATTEMPTS > 1
