"""Multicast DNS under a virtual clock: when a pledge asks, what it says it knows, and whom it believes."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterator
from ipaddress import IPv6Address
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from minerva.brski.pledge import mdns
from minerva.brski.pledge.constants import MDNS_GROUP, MDNS_PORT
from minerva.brski.pledge.dns import Message, Name, Question, Record, Server, Type, name_of
from minerva.brski.pledge.mdns import SERVICE, Count, Event, MdnsBrowser, ProxyEvicted, ProxyFound, ProxyLost
from minerva.brski.pledge.scheduler import MAX_LIFETIME, Proxy

PORT = 3
OURS = IPv6Address("fe80::99")
THEIRS = IPv6Address("fe80::1")
OTHER = IPv6Address("fe80::2")
INSTANCE: Name = (b"one", *SERVICE)
HOST = name_of("host.local")
BROWSE = Question(SERVICE, Type.PTR)


def pointer(name: Name = INSTANCE, ttl: int = 4500) -> Record:
    return Record(SERVICE, ttl, name)


def server(name: Name = INSTANCE, port: int = 4443, target: Name = HOST, ttl: int = 120) -> Record:
    return Record(name, ttl, Server(port, target), flush=True)


def address(value: IPv6Address = THEIRS, host: Name = HOST, ttl: int = 120, *, flush: bool = False) -> Record:
    return Record(host, ttl, value, flush)


ALL = (pointer(), server(), address())


class Link:
    """A browser on a link, and the time there."""

    def __init__(self, seed: int = 1) -> None:
        self.now = 1000.0
        self.browser = MdnsBrowser(PORT, OURS, random=Random(seed), now=self.now)
        self.sent: list[tuple[float, Message]] = []

    def run(self, until: float) -> None:
        """Let the time pass, to ``until`` seconds after the beginning."""
        steps = 0
        while (when := self.browser.next_timer()) is not None and when <= 1000 + until:
            self.now = max(self.now, when)
            self.browser.on_timer(self.now)
            self._take()
            steps += 1
            assert steps < 20_000, "it spins"
        self.now = 1000 + until

    def _take(self) -> None:
        for datagram in self.browser.datagrams_to_send(self.now):
            assert (datagram.address, datagram.port) == (MDNS_GROUP, MDNS_PORT)
            assert len(datagram.data) <= mdns.MAX_SIZE
            self.sent.append((self.now - 1000, Message.decode(datagram.data)))

    def hear(self, *records: Record, source: IPv6Address = THEIRS, port: int = MDNS_PORT) -> None:
        self.browser.receive(Message(True, (), records).encode(), source, port, self.now)
        self._take()

    def hear_query(
        self, *questions: Question, known: tuple[Record, ...] = (), truncated: bool = False
    ) -> None:
        message = Message(False, questions, known, truncated)
        self.browser.receive(message.encode(), OTHER, MDNS_PORT, self.now)
        self._take()

    def events(self) -> list[Event]:
        return list(self._events())

    def _events(self) -> Iterator[Event]:
        while (event := self.browser.next_event()) is not None:
            yield event

    def times(self, question: Question) -> list[float]:
        """When this was asked."""
        return [when for when, message in self.sent if question in message.questions]


def proxy(value: IPv6Address = THEIRS, port: int = 4443) -> Proxy:
    return Proxy(PORT, value, port)


# --- when it asks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_it_asks_less_and_less_often_up_to_once_an_hour(seed: int) -> None:
    """
    covers: P-12
    """
    link = Link(seed)
    link.run(6 * 3600)
    times = [when for when, _ in link.sent]
    assert mdns.FIRST_DELAY[0] <= times[0] <= mdns.FIRST_DELAY[1]
    expected = [min(2.0**number, 3600.0) for number in range(len(times) - 1)]
    assert [later - earlier for earlier, later in pairwise(times)] == pytest.approx(expected)
    assert len(times) == 12 + 1 + 4
    first, *others = [message for _, message in link.sent]
    assert first == Message(False, (Question(SERVICE, Type.PTR, unicast=True),))
    assert set(others) == {Message(False, (BROWSE,))}


def test_what_is_known_is_not_asked_for() -> None:
    """An answer is in the query with the ttl that is left, while that is half of it or more.

    covers: P-17
    """
    link = Link()
    link.run(1)
    link.hear(pointer(ttl=100), pointer((b"two", *SERVICE), ttl=4500))
    link.run(7.5)
    assert link.sent[-1][1].records == (
        pointer(ttl=100 - 7),
        pointer((b"two", *SERVICE), ttl=4500 - 7),
    )
    link.run(63.5)
    assert [record.data for record in link.sent[-1][1].records] == [(b"two", *SERVICE)]


def test_what_others_ask_is_not_asked_again() -> None:
    """But not twice in a row; not if they know what we do not, or know more than fits, or want it alone.

    covers: P-17
    """
    link = Link()
    link.run(3.5)
    assert len(link.sent) == 3
    link.hear_query(Question(SERVICE, Type.PTR, unicast=True))
    link.hear_query(BROWSE, known=(pointer(),))
    link.hear_query(BROWSE, truncated=True)
    link.hear_query(Question(HOST, Type.AAAA))
    link.run(7.5)
    assert len(link.sent) == 4
    link.hear_query(BROWSE)
    link.run(22.5)
    assert len(link.sent) == 4
    for _ in range(10):
        link.hear_query(BROWSE)
    link.run(25)
    assert len(link.sent) == 5
    assert link.browser.counters[Count.ASKED_BY_OTHERS] == 1


def test_what_is_missing_is_asked_for_with_a_back_off() -> None:
    link = Link()
    link.run(40)
    link.hear(pointer())
    link.run(100)
    times = link.times(Question(INSTANCE, Type.SRV))
    assert times[0] < 40.2
    assert [round(later - earlier) for earlier, later in pairwise(times)] == [1, 2, 4, 8, 16]
    link.run(130)
    link.hear(server())
    link.run(140)
    assert link.times(Question(HOST, Type.AAAA))
    link.hear(address())
    assert link.events() == [ProxyFound(proxy(), 1000 + 130 + 120, True)]


def test_what_runs_out_is_asked_for_before() -> None:
    """At 80, 85, 90 and 95 % of its time, and then not more often than anything that is missing."""
    link = Link()
    link.run(130)  # the next question of another kind is far
    link.hear(*ALL)
    link.run(130 + 119)
    times = [when - 130 for when in link.times(Question(INSTANCE, Type.SRV))]
    assert [round(when / 120 - share, 2) >= 0 for when, share in zip(times, mdns.REFRESH_AT, strict=True)]
    assert all(
        share * 120 - 1 <= when <= (share + mdns.REFRESH_SPREAD) * 120
        for when, share in zip(times, mdns.REFRESH_AT, strict=True)
    )
    assert link.events() == [ProxyFound(proxy(), 1130 + 120, True)]
    link.run(130 + 120)
    assert link.events() == [ProxyLost(proxy())]


def test_who_answers_stays() -> None:
    """As long as it does, with one question each time."""
    link = Link()
    link.run(130)
    link.hear(*ALL)
    before = len(link.sent)
    for step in range(1, 3600):
        link.run(130 + step)
        while before < len(link.sent):
            before += 1
            link.hear(*ALL)
    found = link.events()
    assert {type(event) for event in found} == {ProxyFound}
    assert [event.new for event in found if isinstance(event, ProxyFound)].count(True) == 1
    assert len(link.sent) < 8 + 3600 / 90


def test_never_twice_within_a_second_whatever_others_do() -> None:
    """
    covers: P-17
    """
    link, random = Link(), Random(7)
    for step in range(3000):
        link.run(step / 10)
        name: Name = (b"%d" % random.randrange(40), *SERVICE)
        host = name_of(f"{'x' * random.randrange(1, 63)}.{'y' * 63}.{'z' * 63}.local")
        ttl = random.choice((0, 1, 2, 10, 120))
        records = (
            pointer(name, ttl),
            server(name, target=host, ttl=ttl),
            address(IPv6Address(f"fe80::{random.randrange(1, 99)}"), host, ttl),
        )
        link.hear(*random.sample(records, random.randrange(1, 4)))
    times = [when for when, _ in link.sent]
    assert min(later - earlier for earlier, later in pairwise(times)) >= mdns.MIN_GAP
    assert len(times) <= 9 + mdns.REFRESH_BURST + 300 / mdns.REFRESH_INTERVAL
    assert link.browser.counters[Count.LIMITED] > 0
    assert len(link.browser._instances) <= mdns.MAX_INSTANCES


# --- what it believes --------------------------------------------------------------------------------------


def test_a_response_to_the_question() -> None:
    """
    covers: P-17
    """
    link = Link()
    link.run(1)
    link.hear(*ALL)
    assert link.events() == [ProxyFound(proxy(), 1001 + 120, True)]
    link.run(2)
    link.hear(address(ttl=4500), server(ttl=4500))
    assert link.events() == [ProxyFound(proxy(), 1001 + MAX_LIFETIME, False)]


def test_nobody_needs_to_be_asked() -> None:
    """What somebody says on his own is believed, in whatever order his records are, and in pieces.

    covers: P-17
    """
    link = Link()
    link.hear(*reversed(ALL))
    assert link.events() == [ProxyFound(proxy(), 1120, True)]
    two = (b"two", *SERVICE)
    link.hear(pointer(two))
    link.hear(server(two, 4444))
    assert link.events() == []
    link.hear(address())
    assert link.events() == [ProxyFound(proxy(port=4444), 1120, True)]


def test_a_machine_answers_for_another() -> None:
    link = Link()
    link.hear(pointer(), server(), address(OTHER), source=THEIRS)
    assert link.events() == [ProxyFound(proxy(OTHER), 1120, True)]


@pytest.mark.parametrize(
    ("source", "port"),
    [("2001:db8::1", MDNS_PORT), ("fe80::1", 53), ("::1", MDNS_PORT), (str(OURS), MDNS_PORT)],
)
def test_strange_sources(source: str, port: int) -> None:
    link = Link()
    link.hear(*ALL, source=IPv6Address(source), port=port)
    assert link.events() == []
    assert link.browser.counters == {Count.STRANGE_SOURCE: 1}


@pytest.mark.parametrize(
    "records",
    [
        (pointer(), server(), address(IPv6Address("2001:db8::1"))),
        (pointer(), server(), address(IPv6Address("ff02::1"))),
        (pointer(), server(), address(host=name_of("other.local"))),
        (pointer(), server(port=0), address()),
        (pointer(), server(target=name_of("host.example"), port=1), address(host=name_of("host.example"))),
        (pointer((b"a", b"b", *SERVICE)), server((b"a", b"b", *SERVICE)), address()),
        (pointer(SERVICE), server(SERVICE), address()),
        (Record(name_of("_http._tcp.local"), 120, INSTANCE), server(), address()),
        (pointer(), server((b"two", *SERVICE)), address()),
        (pointer(ttl=0), server(), address()),
        (server(), address()),
    ],
)
def test_no_proxy(records: tuple[Record, ...]) -> None:
    link = Link()
    link.hear(*records)
    link.run(5)
    assert link.events() == []


def test_malformed() -> None:
    link = Link()
    link.browser.receive(b"nonsense", THEIRS, MDNS_PORT, link.now)
    assert link.browser.counters == {Count.MALFORMED: 1}


@pytest.mark.parametrize("which", range(3))
def test_goodbye(which: int) -> None:
    """It is believed a second later, unless somebody says at once that he is there."""
    for returns in (False, True):
        link = Link()
        link.run(130)
        link.hear(*ALL)
        goodbye = (pointer(ttl=0), server(ttl=0), address(ttl=0))[which]
        link.run(131)
        link.hear(goodbye)
        link.hear(goodbye)
        assert link.events()[-1] == ProxyFound(proxy(), 1132, False)
        if returns:
            link.hear(*ALL)
        link.run(140)
        assert any(isinstance(event, ProxyLost) for event in link.events()) is not returns


def test_a_machine_has_another_address() -> None:
    """What it had before is over when it says that this is all (RFC 6762 section 10.2)."""
    link = Link()
    link.hear(*ALL)
    link.run(10)
    link.hear(address(OTHER))
    assert link.events()[-1] == ProxyFound(proxy(OTHER), 1120, True)
    link.run(20)
    link.hear(address(OTHER, flush=True))
    link.run(22)
    assert link.events()[-1] == ProxyLost(proxy())


def test_a_proxy_moves() -> None:
    """Another port, another machine."""
    link = Link()
    link.hear(*ALL)
    link.events()
    link.hear(server(port=4444))
    assert link.events() == [ProxyLost(proxy()), ProxyFound(proxy(port=4444), 1120, True)]
    moved = name_of("elsewhere.local")
    link.hear(server(port=4444, target=moved))
    assert link.events() == [ProxyLost(proxy(port=4444))]
    link.run(2)
    assert link.times(Question(moved, Type.AAAA))


def test_room() -> None:
    """Newcomers find some, and are told of at once; who had to go is still believed by whoever was told."""
    link = Link()
    for number in range(50):
        name, host = (b"%d" % number, *SERVICE), name_of(f"h{number}.local")
        link.hear(
            pointer(name), server(name, target=host), address(IPv6Address(0xFE80 << 112 | number + 1), host)
        )
    events = link.events()
    assert sum(isinstance(event, ProxyFound) for event in events) == 50
    assert sum(isinstance(event, ProxyEvicted) for event in events) == 50 - mdns.MAX_INSTANCES
    assert not any(isinstance(event, ProxyLost) for event in events)
    assert link.browser.counters[Count.EVICTED] == 50 - mdns.MAX_INSTANCES
    for number in range(50):
        link.hear(address(IPv6Address(f"fe80::9:{number}"), name_of("h49.local")))
    kept = {instance.data for _, message in link.sent for instance in message.records}
    assert len(kept) <= mdns.MAX_INSTANCES
    assert max(len(instance.addresses) for instance in link.browser._instances.values()) == mdns.MAX_ADDRESSES


def test_any_time() -> None:
    """Timers are never in the past for ever, whatever was heard."""
    for seed in range(30):
        link, random = Link(seed), Random(seed)
        for _ in range(60):
            record = random.choice(
                (
                    pointer(ttl=random.choice((0, 1, 3, 2**32 - 1))),
                    server(
                        ttl=random.choice((0, 1, 3, 120)), target=random.choice((HOST, name_of("b.local")))
                    ),
                    address(ttl=random.choice((0, 1, 3, 700)), flush=random.random() < 0.5),
                )
            )
            link.hear(record)
            link.run(link.now - 1000 + random.random() * random.choice((0.01, 1, 100)))
        link.run(link.now - 1000 + 3 * MAX_LIFETIME)
        for event in link.events():
            assert not isinstance(event, ProxyFound) or math.isfinite(event.expires)
        assert link.browser._told == {}


# --- others read the same ----------------------------------------------------------------------------------


def test_tshark_agrees(tmp_path: Path) -> None:
    """The question and the known answers are what another dissector reads.

    covers: P-17
    """
    if shutil.which("tshark") is None or shutil.which("text2pcap") is None:
        pytest.skip("tshark is not installed")
    link = Link()
    link.run(0.5)
    link.hear(pointer(), pointer((b"zwei", *SERVICE)))
    link.run(8)
    hexdump = tmp_path / "hex"
    data = link.sent[-1][1].encode()
    hexdump.write_text("0000 " + data.hex(" ") + "\n")
    capture = tmp_path / "capture.pcap"
    subprocess.run(
        ["text2pcap", "-q", "-u", "5353,5353", hexdump, capture], check=True, capture_output=True, timeout=60
    )
    fields = ("dns.qry.name", "dns.qry.type", "dns.qry.qu", "dns.resp.ttl", "dns.ptr.domain_name")
    options = [option for field in fields for option in ("-e", field)]
    read = subprocess.run(
        ["tshark", "-r", capture, "-T", "fields", "-E", "separator=|", *options],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.strip()
    name = "_brski-proxy._tcp.local"
    assert read == f"{name}|12|0|4493,4493|one.{name},zwei.{name}"
