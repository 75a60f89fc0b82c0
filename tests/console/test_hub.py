"""One console: readers, the writer's lease, input, notices; at the end, all of it against a model."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from minerva.console import hub as hub_module
from minerva.console.events import (
    Attached,
    BreakAsked,
    CoWriting,
    Detached,
    InputLost,
    LeaseMoved,
    Move,
    Said,
    Typed,
    UpstreamChanged,
    WriteRequested,
)
from minerva.console.hub import (
    Attachment,
    BreakRequest,
    Gap,
    Hub,
    HubError,
    HubEvent,
    InputFull,
    Item,
    Mode,
    NotAllowed,
    NotAttached,
    NotConnected,
    NotWriter,
    State,
)


def up(**settings: int) -> Hub:
    """Return a hub whose device is there."""
    hub = Hub("web1", **settings)
    hub.upstream_up(0.0)
    events(hub)
    return hub


def events(hub: Hub) -> list[HubEvent]:
    """Take what happened."""
    found = []
    while (event := hub.next_event()) is not None:
        found.append(event)
    return found


def everything(hub: Hub, attachment: Attachment) -> list[Item]:
    """Read until there is nothing."""
    found = []
    while (item := hub.read(attachment)) is not None:
        found.append(item)
    return found


def said(hub: Hub, attachment: Attachment) -> bytes:
    """Read until there is nothing, and leave notices out; there must be no gap."""
    found = [item for item in everything(hub, attachment) if isinstance(item, bytes | Gap)]
    assert all(isinstance(item, bytes) for item in found)
    return b"".join(item for item in found if isinstance(item, bytes))


# -- the device


def test_states() -> None:
    hub = Hub("web1")
    assert hub.state is State.UNKNOWN
    hub.upstream_down("no such device", 1.0)
    assert (hub.state, hub.reason, hub.changed_at) == (State.DOWN, "no such device", 1.0)
    hub.upstream_down("still none", 2.0)
    assert (hub.reason, hub.changed_at) == ("still none", 1.0)
    hub.upstream_up(3.0)
    hub.upstream_up(4.0)
    assert (hub.state, hub.reason, hub.changed_at, hub.times_up) == (State.CONNECTED, "", 3.0, 1)
    reader = hub.attach("alice", now=5.0)
    assert hub.state is State.IN_USE
    hub.upstream_down("unplugged", 6.0)
    assert hub.state is State.DOWN
    assert events(hub)[:2] == [UpstreamChanged(1.0, False, "no such device"), UpstreamChanged(3.0, True, "")]
    assert everything(hub, reader) == [UpstreamChanged(6.0, False, "unplugged")]


def test_those_who_attach_stay_when_the_device_comes_and_goes() -> None:
    hub = up()
    reader = hub.attach("alice", now=0.0)
    hub.output(b"one", 1.0)
    hub.upstream_down("unplugged", 2.0)
    hub.upstream_up(3.0)
    hub.output(b"two", 4.0)
    assert everything(hub, reader) == [
        b"one",
        UpstreamChanged(2.0, False, "unplugged"),
        UpstreamChanged(3.0, True, ""),
        b"two",
    ]


# -- reading


def test_a_reader_gets_what_comes_and_not_what_came() -> None:
    hub = up()
    hub.output(b"before", 1.0)
    reader = hub.attach("alice", now=2.0)
    hub.output(b"after", 3.0)
    assert reader.start == 6
    assert hub.read(reader, 2) == b"af"
    assert hub.read(reader) == b"ter"
    assert hub.read(reader) is None


@pytest.mark.parametrize(
    ("replay", "shown"),
    [
        (0, b""),
        (-1, b""),
        (3, b""),
        (7, b"three\r\n"),
        (8, b"three\r\n"),
        (14, b"three\r\n"),
        (15, b"one two\nthree\r\n"),
        (10_000, b"one two\nthree\r\n"),
    ],
)
def test_a_replay_begins_with_a_line(replay: int, shown: bytes) -> None:
    hub = up()
    hub.output(b"one two\nthree\r\n", 1.0)
    assert said(hub, hub.attach("alice", replay=replay, now=2.0)) == shown


def test_a_replay_of_one_long_line_begins_in_it() -> None:
    hub = up(ring_size=10)
    hub.output(b"0123456789abc", 1.0)
    assert said(hub, hub.attach("alice", replay=100, now=2.0)) == b"3456789abc"


def test_a_replay_longer_than_the_queue_has_no_gap() -> None:
    hub = up()
    hub.output(b"x" * 5000, 1.0)
    assert len(said(hub, hub.attach("alice", replay=5000, queue=10, now=2.0))) == 5000


def test_a_slow_reader_is_told_what_it_missed_and_others_miss_nothing() -> None:
    hub = up()
    slow = hub.attach("slow", queue=8, now=0.0)
    fast = hub.attach("fast", now=0.0)
    everything(hub, slow)
    hub.output(b"0123", 1.0)
    hub.output(b"456789", 1.0)
    assert everything(hub, slow) == [Gap(6), b"6789"]
    assert said(hub, fast) == b"0123456789"
    assert (slow.lost, fast.lost, hub.bytes_lost) == (6, 0, 6)
    assert str(Gap(6)) == "6 bytes lost"
    assert [info.lost for info in hub.who()] == [6, 0]


def test_no_queue_is_longer_than_the_ring() -> None:
    hub = up(ring_size=8)
    reader = hub.attach("alice", queue=1000, now=0.0)
    hub.output(b"0123456789", 1.0)
    assert everything(hub, reader) == [Gap(6), b"6789"]


def test_a_reader_that_stopped_costs_nothing() -> None:
    hub = up()
    readers = [hub.attach("stopped", now=0.0) for _ in range(100)]
    hub.output(b"x" * hub_module.RING_SIZE, 1.0)
    events(hub)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(10_000):
        hub.output(b"y" * 1000, 2.0)
        if number % 10 == 0:
            hub.message("admin", "still there?", 2.0)
            events(hub)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 1_500_000  # 100 readers with 100 references to notices each
    assert hub.read(readers[0]) == Gap(10_000_000 + hub_module.RING_SIZE - hub_module.QUEUE_SIZE // 2)


def test_a_reader_is_called_once_when_it_had_read_everything() -> None:
    hub = up()
    called: list[str] = []
    reader = hub.attach("alice", on_readable=lambda: called.append("x"), now=0.0)
    assert hub.read(reader) is None
    hub.output(b"one", 1.0)
    hub.output(b"two", 1.0)
    assert len(called) == 1
    assert hub.read(reader, 3) == b"one"
    hub.output(b"three", 1.0)
    assert len(called) == 1
    assert said(hub, reader) == b"twothree"
    hub.message("bob", "hello", 2.0)
    assert len(called) == 2


def test_nobody_is_called_before_he_is_attached() -> None:
    hub = up()
    hub.attach("alice", mode=Mode.WRITE, on_readable=pytest.fail, now=0.0)


def test_a_reader_may_read_and_leave_when_it_is_called() -> None:
    hub = up()
    got: list[Item | None] = []
    attachments: list[Attachment] = []

    def read() -> None:
        got.append(hub.read(attachments[0]))
        hub.detach(attachments[0], 2.0)

    attachments.append(hub.attach("alice", on_readable=read, now=0.0))
    other = hub.attach("bob", now=0.0)
    hub.output(b"x", 1.0)
    assert isinstance(got[0], Attached)
    assert [info.user for info in hub.who()] == ["bob"]
    assert said(hub, other) == b"x"


# -- who is attached


def test_who_is_attached() -> None:
    hub = up()
    hub.attach("alice", mode=Mode.WRITE, source="ssh from ::1", now=1.0)
    hub.attach("bob", mode=Mode.WRITE, now=2.0)
    hub.attach("carol", now=3.0)
    hub.output(b"123", 4.0)
    assert [(i.user, i.source, i.since, i.writing, i.holder, i.waiting, i.unread) for i in hub.who()] == [
        ("alice", "ssh from ::1", 1.0, True, True, False, 3),
        ("bob", "", 2.0, False, False, True, 3),
        ("carol", "", 3.0, False, False, False, 3),
    ]


def test_others_are_told_who_comes_and_goes() -> None:
    hub = up()
    alice = hub.attach("alice", now=1.0)
    hub.output(b"x", 1.0)
    bob = hub.attach("bob\x1b[2J", now=2.0)
    hub.detach(bob, 3.0, "the line broke\n")
    assert [str(item) for item in everything(hub, alice)[1:]] == [
        "bob\\u001b[2J attached",
        "bob\\u001b[2J detached (the line broke\\n)",
    ]
    assert [type(event) for event in events(hub)] == [Attached, Attached, Detached]


def test_one_who_is_gone_reads_what_came_before_and_is_no_part_of_it_any_more() -> None:
    hub = up()
    called: list[str] = []
    alice = hub.attach(
        "alice",
        mode=Mode.WRITE,
        on_readable=lambda: called.append("read"),
        on_room=lambda: called.append("room"),
        now=0.0,
    )
    hub.output(b"before", 1.0)
    hub.input_room(alice)
    hub.detach_all("the port was removed", 2.0)
    hub.detach(alice, 2.0)
    hub.output(b"after", 3.0)
    assert called == ["read", "room"]
    assert alice.ended == "the port was removed"
    assert everything(hub, alice)[1:] == [b"before"]
    assert hub.holder is None
    hub.input_room(alice)
    calls: list[Callable[[], object]] = [
        lambda: hub.request_write(alice, 4.0),
        lambda: hub.force_write(alice, 4.0),
        lambda: hub.release(alice, 4.0),
        lambda: hub.input(alice, b"x", 4.0),
        lambda: hub.allow_write(alice, True, 4.0),
    ]
    for call in calls:
        with pytest.raises(NotAttached, match=r"^alice is not attached to web1$"):
            call()


def test_what_a_gone_reader_can_no_longer_read_is_a_gap() -> None:
    hub = up(ring_size=10)
    alice = hub.attach("alice", now=0.0)
    hub.output(b"before", 1.0)
    hub.detach(alice, 2.0)
    hub.output(b"after after", 3.0)
    assert everything(hub, alice) == [Gap(6)]


def test_one_who_is_told_at_the_end_is_called() -> None:
    hub = up()
    called: list[str] = []
    alice = hub.attach("alice", on_readable=lambda: called.append("x"), now=0.0)
    hub.detach(alice, 1.0)
    assert called == ["x"]
    assert hub.read(alice) is None
    assert alice.ended == ""


def test_messages_are_harmless_and_the_oldest_go_first() -> None:
    hub = up()
    alice = hub.attach("alice", now=0.0)
    for number in range(hub_module.NOTICE_LIMIT + 5):
        hub.message("bob", f"{number}\x07", 1.0)
    found = everything(hub, alice)
    assert len(found) == hub_module.NOTICE_LIMIT
    assert found[0] == Said(1.0, "bob", "5\x07")
    assert str(found[0]) == "bob: 5\\u0007"


def test_an_attachment_has_a_number() -> None:
    hub = up()
    alice = hub.attach("alice", now=0.0)
    assert hub.attachment(alice.number) is alice
    assert hub.attachment(99) is None
    hub.detach(alice, 1.0)
    assert hub.attachment(alice.number) is None


def test_the_runner_is_called_whenever_there_is_an_event() -> None:
    hub = Hub("web1")
    seen: list[list[HubEvent]] = []
    hub.on_event = lambda: seen.append(events(hub))
    hub.upstream_up(1.0)
    alice = hub.attach("alice", mode=Mode.WRITE, now=2.0)
    hub.output(b"x", 3.0)
    hub.input(alice, b"y", 3.0)
    hub.detach(alice, 4.0)
    kinds = [type(event) for found in seen for event in found]
    assert kinds == [UpstreamChanged, Attached, LeaseMoved, Typed, LeaseMoved, Detached]
    assert all(seen)


def test_an_attachment_does_not_show_much() -> None:
    assert repr(up().attach("alice", now=0.0)) == "<Attachment 1 of 'alice'>"


# -- the lease


def test_the_first_writer_has_the_lease_and_the_next_waits() -> None:
    hub = up()
    alice = hub.attach("alice", mode=Mode.WRITE, now=1.0)
    bob = hub.attach("bob", mode=Mode.WRITE, now=2.0)
    assert hub.holder is alice
    assert hub.request_write(alice, 3.0) is None
    assert hub.request_write(bob, 3.0) is alice
    moves = [event for event in events(hub) if not isinstance(event, Attached)]
    assert moves == [LeaseMoved(1.0, None, "alice", Move.GRANTED), WriteRequested(2.0, "bob", "alice")]
    with pytest.raises(NotWriter, match=r"^bob does not write to web1; alice does$"):
        hub.input(bob, b"x", 3.0)
    hub.detach(alice, 4.0)
    assert hub.holder is bob
    assert events(hub)[0] == LeaseMoved(4.0, "alice", "bob", Move.LEFT)


def test_a_reader_cannot_write() -> None:
    hub = up()
    alice = hub.attach("alice", now=1.0)
    with pytest.raises(NotAllowed, match=r"^alice may not write to web1$"):
        hub.request_write(alice, 2.0)
    with pytest.raises(NotAllowed):
        hub.force_write(alice, 2.0)
    bob = hub.attach("bob", mode=Mode.WRITE, now=2.0)
    with pytest.raises(NotAllowed):
        hub.hand_over(bob, alice, 3.0)
    with pytest.raises(NotWriter):
        hub.hand_over(alice, bob, 3.0)
    with pytest.raises(NotWriter, match=r"^alice does not have the lease of web1$"):
        hub.co_write(alice, True, 3.0)
    for call in (hub.send_break, lambda a, now: hub.input(a, b"x", now)):
        with pytest.raises(NotWriter):
            call(alice, 3.0)
    hub.release(alice, 3.0)
    assert hub.holder is bob


def test_one_who_only_reads_may_want_to_write_later() -> None:
    hub = up()
    alice = hub.attach("alice", may_write=True, now=1.0)
    with pytest.raises(NotWriter, match=r"; nobody does$"):
        hub.input(alice, b"x", 2.0)
    assert hub.request_write(alice, 2.0) is None
    hub.input(alice, b"x", 2.0)
    hub.release(alice, 3.0)
    assert events(hub)[-1] == LeaseMoved(3.0, "alice", None, Move.RELEASED)
    assert not hub.writes(alice)


def test_who_has_no_right_to_write_cannot_attach_for_it() -> None:
    hub = up()
    with pytest.raises(NotAllowed):
        hub.attach("alice", mode=Mode.WRITE, may_write=False, now=1.0)
    assert hub.who() == ()
    assert events(hub) == []


def test_the_lease_is_handed_over_and_forced() -> None:
    hub = up()
    alice = hub.attach("alice", mode=Mode.WRITE, now=1.0)
    bob = hub.attach("bob", mode=Mode.WRITE, now=1.0)
    carol = hub.attach("carol", may_write=True, now=1.0)
    events(hub)
    hub.hand_over(alice, bob, 2.0)
    hub.force_write(carol, 3.0)
    hub.force_write(carol, 3.0)
    assert events(hub) == [
        LeaseMoved(2.0, "alice", "bob", Move.HANDED_OVER),
        LeaseMoved(3.0, "bob", "carol", Move.FORCED),
    ]
    hub.release(carol, 4.0)
    assert events(hub) == [LeaseMoved(4.0, "carol", None, Move.RELEASED)]
    hub.force_write(alice, 5.0)
    assert events(hub) == [LeaseMoved(5.0, None, "alice", Move.GRANTED)]


def test_a_right_that_was_taken_away_ends_the_lease() -> None:
    hub = up()
    alice = hub.attach("alice", mode=Mode.WRITE, now=1.0)
    events(hub)
    hub.allow_write(alice, False, 2.0)
    assert events(hub) == [LeaseMoved(2.0, "alice", None, Move.REVOKED)]
    with pytest.raises(NotAllowed):
        hub.request_write(alice, 3.0)
    hub.allow_write(alice, True, 4.0)
    assert hub.request_write(alice, 4.0) is None


def test_co_writing() -> None:
    hub = up()
    alice = hub.attach("alice", mode=Mode.WRITE, now=1.0)
    bob = hub.attach("bob", mode=Mode.WRITE, now=1.0)
    carol = hub.attach("carol", may_write=True, now=1.0)
    events(hub)
    hub.co_write(alice, True, 2.0)
    assert hub.co_writing
    assert hub.request_write(carol, 3.0) is None
    assert [hub.writes(each) for each in (alice, bob, carol)] == [True, True, True]
    for each in (alice, bob, carol):
        hub.input(each, each.user.encode(), 3.0)
    assert hub.to_upstream() == b"alicebobcarol"
    hub.release(carol, 4.0)
    hub.co_write(alice, False, 5.0)
    assert [hub.writes(each) for each in (alice, bob, carol)] == [True, False, False]
    assert [event for event in events(hub) if not isinstance(event, Typed)] == [
        CoWriting(2.0, "bob", True),
        CoWriting(3.0, "carol", True),
        CoWriting(4.0, "carol", False),
        CoWriting(5.0, "bob", False),
    ]


def test_co_writers_wait_first_in_line_when_the_lease_moves() -> None:
    hub = up()
    alice = hub.attach("alice", mode=Mode.WRITE, now=1.0)
    hub.co_write(alice, True, 1.0)
    bob = hub.attach("bob", mode=Mode.WRITE, now=1.0)
    carol = hub.attach("carol", mode=Mode.WRITE, now=1.0)
    dave = hub.attach("dave", may_write=True, now=1.0)
    hub.force_write(dave, 2.0)
    assert not hub.co_writing
    assert [hub.writes(each) for each in (alice, bob, carol)] == [False, False, False]
    hub.detach(dave, 3.0)
    assert hub.holder is bob
    hub.detach(bob, 4.0)
    assert hub.holder is carol


# -- input


def test_input_reaches_the_device_in_order_and_at_its_pace() -> None:
    hub = up()
    alice = hub.attach("alice", mode=Mode.WRITE, now=1.0)
    events(hub)
    hub.input(alice, b"", 2.0)
    hub.input(alice, b"hello ", 2.0)
    hub.input(alice, b"world", 3.0)
    assert hub.input_waiting
    assert hub.to_upstream(7) == b"hello w"
    hub.written(3)
    assert hub.to_upstream() == b"lo world"
    hub.written(8)
    hub.written(8)
    assert hub.to_upstream() == b""
    assert hub.bytes_out == 11
    assert not hub.input_waiting
    assert events(hub) == [Typed(2.0, "alice", b"hello "), Typed(3.0, "alice", b"world")]


def test_what_was_typed_is_in_no_repr() -> None:
    typed = Typed(1.0, "alice", b"secret")
    assert "secret" not in repr(typed) + str(typed)


def test_a_paste_waits_for_room_and_loses_nothing() -> None:
    hub = up(input_limit=10)
    called: list[str] = []
    alice = hub.attach("alice", mode=Mode.WRITE, on_room=lambda: called.append("x"), now=1.0)
    paste, sent, got = b"0123456789" * 10, 0, b""
    while len(got) < len(paste):
        if room := hub.input_room(alice):
            hub.input(alice, paste[sent : sent + room], 2.0)
            sent = min(len(paste), sent + room)
        with pytest.raises(InputFull):
            hub.input(alice, b"x" * 11, 2.0)
        calls = len(called)
        data = hub.to_upstream(3)
        got += data
        hub.written(len(data))
        assert len(called) == calls + 1
    assert got == paste


def test_a_break_is_sent_in_its_place() -> None:
    hub = up()
    alice = hub.attach("alice", mode=Mode.WRITE, now=1.0)
    hub.input(alice, b"before", 2.0)
    hub.send_break(alice, 3.0, 0.5)
    hub.send_break(alice, 3.0)
    hub.input(alice, b"b", 4.0)
    assert hub.break_wanted() == []
    assert hub.to_upstream() == b"before"
    hub.written(6)
    assert hub.to_upstream() == b""
    assert hub.break_wanted() == [BreakRequest("alice", 0.5), BreakRequest("alice", hub_module.BREAK_SECONDS)]
    assert hub.break_wanted() == []
    assert hub.to_upstream() == b"b"
    assert BreakAsked(3.0, "alice", 0.5) in events(hub)


def test_breaks_have_limits() -> None:
    hub = up()
    alice = hub.attach("alice", mode=Mode.WRITE, now=1.0)
    for seconds in (0.0, -1.0, 11.0, float("nan")):
        with pytest.raises(HubError, match=r"^a break lasts up to 10 seconds$"):
            hub.send_break(alice, 2.0, seconds)
    for _ in range(hub_module.BREAK_LIMIT):
        hub.send_break(alice, 2.0)
    with pytest.raises(InputFull):
        hub.send_break(alice, 2.0)
    assert len(hub.break_wanted()) == hub_module.BREAK_LIMIT
    hub.send_break(alice, 2.0)


def test_input_that_a_device_did_not_get_is_not_kept_for_later() -> None:
    hub = up()
    alice = hub.attach("alice", mode=Mode.WRITE, now=1.0)
    everything(hub, alice)
    hub.input(alice, b"reboot\r", 2.0)
    hub.send_break(alice, 2.0)
    offered = hub.to_upstream(2)
    hub.upstream_down("unplugged", 3.0)
    hub.written(len(offered))
    assert everything(hub, alice)[-1] == InputLost(3.0, 7)
    assert str(InputLost(3.0, 7)) == "7 bytes of input never reached the device"
    assert hub.input_room(alice) == 0
    with pytest.raises(NotConnected, match=r"^web1 is not connected$"):
        hub.input(alice, b"x", 4.0)
    with pytest.raises(NotConnected):
        hub.send_break(alice, 4.0)
    hub.upstream_up(5.0)
    assert (hub.to_upstream(), hub.break_wanted(), hub.bytes_out) == (b"", [], 0)


def test_a_writer_is_called_when_the_device_is_back() -> None:
    hub = Hub("web1")
    called: list[str] = []
    alice = hub.attach("alice", mode=Mode.WRITE, on_room=lambda: called.append("x"), now=1.0)
    assert hub.input_room(alice) == 0
    hub.upstream_up(2.0)
    assert called == ["x"]
    assert hub.input_room(alice) == hub_module.INPUT_LIMIT


def test_the_last_bytes_of_all() -> None:
    hub = up(ring_size=8)
    hub.output(b"0123456789", 1.0)
    assert (hub.tail(3), hub.tail(100), hub.bytes_in) == (b"789", b"23456789", 10)


# -- everything against a model


class Party:
    """What the model knows of one who is attached."""

    def __init__(self, attachment: Attachment, may_write: bool) -> None:
        self.attachment = attachment
        self.may_write = may_write
        self.seen = 0  # bytes and gaps
        self.end: int | None = None
        self.asleep = False
        self.calls = 0


class HubMachine(RuleBasedStateMachine):
    """Everything that may happen to a hub, in any order."""

    parties = Bundle("parties")

    def __init__(self) -> None:
        super().__init__()
        self.stream = b""
        self.oldest = 0
        self.all: list[Party] = []
        self.here: list[Party] = []
        self.holder: Party | None = None
        self.co_writers: list[Party] = []
        self.waiting: list[Party] = []
        self.co_writing = False
        self.is_up = False
        self.typed: list[bytes | BreakRequest] = []
        self.now = 0.0

    @initialize(ring_size=st.integers(1, 30), input_limit=st.integers(1, 30))
    def begin(self, ring_size: int, input_limit: int) -> None:
        self.ring_size, self.input_limit = ring_size, input_limit
        self.hub = Hub("x", ring_size=ring_size, input_limit=input_limit)

    # -- the device

    @rule()
    def comes(self) -> None:
        self.hub.upstream_up(self.now)
        self.is_up = True

    @rule()
    def goes(self) -> None:
        self.hub.upstream_down("gone", self.now)
        self.is_up = False
        self.typed = []

    @rule(data=st.binary(max_size=40))
    def says(self, data: bytes) -> None:
        # Called once, and only those who had read everything.
        calls = {party: party.calls + (party.asleep and bool(data)) for party in self.here}
        self.hub.output(data, self.now)
        self.stream += data
        self.oldest = max(self.oldest, len(self.stream) - self.ring_size)
        assert {party: party.calls for party in self.here} == calls

    @rule(ring_size=st.integers(1, 30))
    def has_another_ring(self, ring_size: int) -> None:
        self.hub.resize(ring_size)
        self.ring_size = ring_size
        self.oldest = max(self.oldest, len(self.stream) - ring_size)
        assert self.hub.tail(100) == self.stream[self.oldest :]

    @rule(limit=st.integers(1, 20), part=st.integers(0, 20))
    def takes(self, limit: int, part: int) -> None:
        offered = self.hub.to_upstream(limit)
        if not self.typed or isinstance(self.typed[0], BreakRequest):
            assert offered == b""
            return
        assert offered == self.typed[0][:limit]
        taken = min(part, len(offered))
        self.hub.written(taken)
        self.typed[0] = self.typed[0][taken:]
        if not self.typed[0]:
            self.typed.pop(0)

    @rule()
    def takes_breaks(self) -> None:
        due = self.hub.break_wanted()
        while self.typed and isinstance(self.typed[0], BreakRequest):
            assert due.pop(0) == self.typed.pop(0)
        assert due == []

    # -- those who are attached

    @rule(
        target=parties,
        write=st.booleans(),
        may_write=st.booleans(),
        replay=st.none() | st.integers(0, 40),
        queue=st.integers(1, 40),
    )
    def attaches(self, write: bool, may_write: bool, replay: int | None, queue: int) -> Party:
        party: Party

        def called() -> None:
            party.calls += 1
            party.asleep = False

        mode = Mode.WRITE if write else Mode.READ
        attachment = self.hub.attach(
            "u",
            mode=mode,
            may_write=may_write or write,
            replay=replay,
            queue=queue,
            on_readable=lambda: called(),
            now=self.now,
        )
        party = Party(attachment, may_write or write)
        party.asleep = True
        expected = max(self.oldest, len(self.stream) - (replay or 0))
        assert expected <= attachment.start <= len(self.stream)
        if attachment.start != expected:
            assert self.stream[attachment.start - 1 : attachment.start] == b"\n"
        self.all.append(party)
        self.here.append(party)
        if write:
            self.asked(party)
        return party

    @rule(party=consumes(parties))
    def detaches(self, party: Party) -> None:
        self.hub.detach(party.attachment, self.now)
        self.here.remove(party)
        party.end = len(self.stream)
        self.dropped(party)

    @rule(party=parties, limit=st.integers(1, 50))
    def reads(self, party: Party, limit: int) -> None:
        item = self.hub.read(party.attachment, limit)
        start = party.attachment.start + party.seen
        if item is None:
            assert start == len(self.stream)
            party.asleep = True
        elif isinstance(item, bytes):
            assert 0 < len(item) <= limit
            assert item == self.stream[start : start + len(item)]
            party.seen += len(item)
        elif isinstance(item, Gap):
            assert item.lost > 0
            party.seen += item.lost

    @rule(text=st.text(max_size=5))
    def is_said(self, text: str) -> None:
        self.hub.message("u", text, self.now)

    # -- the lease, told again in other words

    def asked(self, party: Party) -> None:
        if self.holder is None:
            self.holder = party
        elif party is self.holder or party in self.co_writers or party in self.waiting:
            pass
        elif self.co_writing:
            self.co_writers.append(party)
        else:
            self.waiting.append(party)

    def ended_co_writing(self) -> None:
        self.waiting = self.co_writers + self.waiting
        self.co_writers, self.co_writing = [], False

    def dropped(self, party: Party) -> None:
        if party is self.holder:
            self.ended_co_writing()
            self.holder = self.waiting.pop(0) if self.waiting else None
        for each in (self.co_writers, self.waiting):
            if party in each:
                each.remove(party)

    @rule(party=parties)
    def asks(self, party: Party) -> None:
        if not party.may_write:
            with pytest.raises(NotAllowed):
                self.hub.request_write(party.attachment, self.now)
            return
        self.asked(party)
        answer = self.hub.request_write(party.attachment, self.now)
        if party is self.holder or party in self.co_writers:
            assert answer is None
        else:
            assert self.holder is not None
            assert answer is self.holder.attachment

    def gave(self, party: Party) -> None:
        if party is not self.holder:
            self.ended_co_writing()
            if party in self.waiting:
                self.waiting.remove(party)
            self.holder = party

    @rule(party=parties)
    def forces(self, party: Party) -> None:
        if party.may_write:
            self.hub.force_write(party.attachment, self.now)
            self.gave(party)

    @rule(party=parties, to=parties)
    def hands_over(self, party: Party, to: Party) -> None:
        if party is not self.holder:
            with pytest.raises(NotWriter):
                self.hub.hand_over(party.attachment, to.attachment, self.now)
        elif to.may_write:
            self.hub.hand_over(party.attachment, to.attachment, self.now)
            self.gave(to)

    @rule(party=parties, allowed=st.booleans())
    def allows_co_writing(self, party: Party, allowed: bool) -> None:
        if party is not self.holder:
            with pytest.raises(NotWriter):
                self.hub.co_write(party.attachment, allowed, self.now)
            return
        self.hub.co_write(party.attachment, allowed, self.now)
        if allowed:
            self.co_writing = True
            self.co_writers += self.waiting
            self.waiting = []
        else:
            self.ended_co_writing()

    @rule(party=parties)
    def releases(self, party: Party) -> None:
        self.hub.release(party.attachment, self.now)
        self.dropped(party)

    @rule(party=parties, allowed=st.booleans())
    def gets_another_right(self, party: Party, allowed: bool) -> None:
        self.hub.allow_write(party.attachment, allowed, self.now)
        party.may_write = allowed
        if not allowed:
            self.dropped(party)

    # -- input

    def refusal(self, party: Party) -> type[HubError] | None:
        if party is not self.holder and party not in self.co_writers:
            return NotWriter
        return None if self.is_up else NotConnected

    @rule(party=parties, data=st.binary(min_size=1, max_size=12))
    def types(self, party: Party, data: bytes) -> None:
        refusal = self.refusal(party)
        size = sum(len(item) for item in self.typed if isinstance(item, bytes))
        if refusal is None and size + len(data) > self.input_limit:
            refusal = InputFull
        if refusal is not None:
            with pytest.raises(refusal):
                self.hub.input(party.attachment, data, self.now)
            return
        assert self.hub.input_room(party.attachment) == self.input_limit - size
        self.hub.input(party.attachment, data, self.now)
        if self.typed and isinstance(self.typed[-1], bytes):
            self.typed[-1] += data
        else:
            self.typed.append(data)

    @rule(party=parties)
    def breaks(self, party: Party) -> None:
        refusal = self.refusal(party)
        if refusal is None and sum(isinstance(item, BreakRequest) for item in self.typed) >= 16:
            refusal = InputFull
        if refusal is not None:
            with pytest.raises(refusal):
                self.hub.send_break(party.attachment, self.now)
            return
        self.hub.send_break(party.attachment, self.now)
        self.typed.append(BreakRequest("u", hub_module.BREAK_SECONDS))

    # -- what is always so

    @precondition(lambda self: hasattr(self, "hub"))
    @invariant()
    def the_lease_is_where_the_model_has_it(self) -> None:
        self.now += 1.0
        assert self.hub.holder is (None if self.holder is None else self.holder.attachment)
        assert self.hub.co_writing is self.co_writing
        infos = {info.number: info for info in self.hub.who()}
        assert list(infos) == [party.attachment.number for party in self.here]
        for party in self.here:
            info = infos[party.attachment.number]
            assert info.holder is (party is self.holder)
            assert info.writing is (party is self.holder or party in self.co_writers)
            assert info.waiting is (party in self.waiting)
            assert info.unread == len(self.stream) - party.attachment.start - party.seen

    def teardown(self) -> None:
        """All that anybody read, with the gaps, is all that was said while he was attached."""
        for party in self.all:
            last_notice = 0.0
            while (item := self.hub.read(party.attachment)) is not None:
                start = party.attachment.start + party.seen
                if isinstance(item, bytes):
                    assert item == self.stream[start : start + len(item)]
                    party.seen += len(item)
                elif isinstance(item, Gap):
                    party.seen += item.lost
                else:
                    assert item.at >= last_notice
                    last_notice = item.at
            end = len(self.stream) if party.end is None else party.end
            assert party.attachment.start + party.seen == end


HubMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestHubMachine = HubMachine.TestCase
