"""A session: the escape and its commands, the lease, input, rights that change."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.console.access import Access, Guard, Identity, Refused
from minerva.console.audit import Entry
from minerva.console.config import from_table
from minerva.console.events import Mode
from minerva.console.line import LineEditor
from minerva.console.power import PowerAction
from minerva.console.session import (
    HOLD_SECONDS,
    INPUT_SIZE,
    Ended,
    PowerAsked,
    Session,
    escape_text,
    to_terminal,
)
from tests.console.office import Line

ESCAPE = b"\x05c"
TABLE: dict[str, Any] = {
    "users": {
        "vera": {"view": ["*"]},
        "will": {"write": ["*"]},
        "paul": {"power": ["*"]},
        "anna": {"admin": ["*"]},
        "none": {},
    }
}


class Kept:
    """A log in memory."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def put(self, entry: Entry) -> None:
        """Keep it."""
        self.entries.append(entry)


class Room:
    """A console and who is at it."""

    def __init__(self) -> None:
        self.line = Line("rack1")
        self.kept = Kept()
        self.access = Access(from_table(TABLE, "test"))
        self.guard = Guard(self.access, self.kept, lambda: 0.0)
        self.wakes = 0

    def session(self, user: str, **options: Any) -> Session:
        """Attach somebody at a terminal."""
        return Session(
            Identity(user, f"ssh of {user}"),
            self.line,
            self.guard,
            **{"now": 0.0, "escape": ESCAPE, "wake": self._wake, **options},
        )

    def _wake(self) -> None:
        self.wakes += 1

    @property
    def refused(self) -> list[tuple[str, str]]:
        """What was refused."""
        return [(entry.user, entry.action) for entry in self.kept.entries if not entry.allowed]


@pytest.fixture
def room() -> Room:
    return Room()


def shown(session: Session) -> str:
    """Return all that a terminal would be sent now."""
    return b"".join(to_terminal(output) for output in iter(session.read, None)).decode()


def test_whoever_may_write_does_if_nobody_else_does(room: Room) -> None:
    will, paul, vera = (room.session(user) for user in ("will", "paul", "vera"))
    assert "you write" in shown(will)
    assert "will writes, ^Eca asks for it" in shown(paul)
    assert "you only read" in shown(vera)
    assert [info.writing for info in room.line.hub.who()] == [True, False, False]


def test_who_may_not_even_look(room: Room) -> None:
    with pytest.raises(Refused, match="none may not: attach at rack1 needs the role view"):
        room.session("none")
    with pytest.raises(Refused, match="write at rack1 needs the role write"):
        room.session("vera", mode=Mode.WRITE)
    assert not room.line.hub.who()
    assert room.refused == [("none", "attach"), ("vera", "write")]


def test_a_reader_is_told_and_it_is_written_down_once(room: Room) -> None:
    vera = room.session("vera")
    shown(vera)
    for _ in range(100):
        vera.receive(b"rm -rf /\r", 1.0)
    assert shown(vera) == "\r\n[not sent: vera may only read rack1]\r\n"
    assert not room.line.typed
    assert room.refused == [("vera", "input")]


@pytest.mark.parametrize(
    ("key", "action"), [(b"a", "write"), (b"f", "force"), (b"l0", "break"), (b"c", "write")]
)
def test_what_a_reader_may_not(room: Room, key: bytes, action: str) -> None:
    vera = room.session("vera")
    shown(vera)
    vera.receive(ESCAPE + key, 1.0)
    assert "vera may not" in shown(vera)
    assert room.refused == [("vera", action)]
    assert not room.line.breaks


def test_a_writer_may_not_switch_the_machine(room: Room) -> None:
    will = room.session("will")
    will.receive(ESCAPE + b"poff\r", 1.0)
    assert "power at rack1 needs the role power" in shown(will)
    assert will.next_event() is None
    assert room.refused == [("will", "power")]
    will.receive(ESCAPE + b"pstatus\r", 1.0)
    assert will.next_event() == PowerAsked(None)


def test_power_asks_whether_one_is_sure(room: Room) -> None:
    room.session("will")
    paul = room.session("paul")
    paul.receive(ESCAPE + b"pcycle\r", 1.0)
    assert "will (writes, from ssh of will)" in shown(paul)
    paul.receive(b"y\r", 1.0)
    assert "nothing was done" in shown(paul)
    assert paul.next_event() is None
    paul.receive(ESCAPE + b"pcycle\ryes\r", 1.0)
    assert paul.next_event() == PowerAsked(PowerAction.CYCLE)
    paul.receive(ESCAPE + b"p\x03", 1.0)
    assert "never mind" in shown(paul)


def test_the_lease_by_commands(room: Room) -> None:
    will, paul = room.session("will"), room.session("paul")
    paul.receive(ESCAPE + b"a", 1.0)
    assert "paul asks will to hand over writing" in shown(will)
    will.receive(ESCAPE + b"c", 1.0)
    assert "paul may write, too" in shown(will)
    paul.receive(b"p", 1.0)
    will.receive(b"w", 1.0)
    assert room.line.typed == b"pw"
    number = paul.attachment.number
    will.receive(ESCAPE + b"h%d\r" % number, 1.0)
    assert room.line.hub.holder is paul.attachment
    will.receive(ESCAPE + b"h1x\r", 1.0)
    assert "a number is needed" in shown(will)
    paul.receive(ESCAPE + b"h99\r", 1.0)
    assert "nobody with the number 99" in shown(paul)
    paul.receive(ESCAPE + b"s", 1.0)
    assert room.line.hub.holder is None  # who handed over does not wait


def test_force_is_for_admins(room: Room) -> None:
    will, paul, anna = (room.session(user) for user in ("will", "paul", "anna"))
    paul.receive(ESCAPE + b"f", 1.0)
    assert room.line.hub.holder is will.attachment
    anna.receive(ESCAPE + b"f", 1.0)
    assert room.line.hub.holder is anna.attachment
    assert room.refused == [("paul", "force")]
    assert any(entry.action == "force" and entry.detail == "from will" for entry in room.kept.entries)


def test_others_hear_what_is_said_harmlessly(room: Room) -> None:
    will, vera = room.session("will"), room.session("vera")
    shown(vera)
    will.receive(ESCAPE + "bgrüß \x1b]0;evil\x07 Gott\r".encode(), 1.0)
    assert shown(vera) == "\r\n[will: grüß ]0;evil Gott]\r\n"


def test_detaching(room: Room) -> None:
    will = room.session("will")
    will.receive(b"a" + ESCAPE + b".bcd", 1.0)
    assert room.line.typed == b"a"
    assert will.ended
    assert will.next_event() == Ended("")
    assert not room.line.hub.who()
    will.receive(b"x", 1.0)
    will.close(2.0)
    again = room.session("will")
    again.receive(ESCAPE + b"m", 1.0)
    assert again.next_event() == Ended("", menu=True)


def test_the_console_goes_away(room: Room) -> None:
    vera = room.session("vera", escape=b"")
    room.line.say(b"last words")
    room.line.hub.detach_all("removed", 1.0)
    assert shown(vera).startswith("last words")
    assert vera.next_event() == Ended("removed")


def test_what_begins_like_an_escape_is_held_and_let_go(room: Room) -> None:
    will = room.session("will")
    will.receive(b"\x05", 1.0)
    assert not room.line.typed
    assert will.next_timer() == 1.0 + HOLD_SECONDS
    will.on_timer(1.0 + HOLD_SECONDS / 2)
    assert not room.line.typed
    will.on_timer(1.0 + HOLD_SECONDS)
    assert room.line.typed == b"\x05"
    assert will.next_timer() is None
    will.receive(b"c.", 3.0)
    assert room.line.typed == b"\x05c."
    will.receive(b"\x05\x05x", 4.0)
    assert room.line.typed == b"\x05c.\x05\x05x"


def test_the_escape_twice_sends_it(room: Room) -> None:
    will = room.session("will")
    will.receive(ESCAPE * 2 + b".", 1.0)
    assert room.line.typed == ESCAPE + b"."
    assert not will.ended


def test_another_escape(room: Room) -> None:
    will = room.session("will")
    will.receive(ESCAPE + b"e^^x\r", 1.0)
    assert "the escape is ^^x now" in shown(will)
    will.receive(ESCAPE + b".\x1ex.", 1.0)
    assert room.line.typed == ESCAPE + b"."
    assert will.ended


def test_an_escape_of_nothing_or_nonsense_is_not_taken(room: Room) -> None:
    will = room.session("will")
    for text in (b"", b"^1", b"abcd"):
        will.receive(ESCAPE + b"e" + text + b"\r", 1.0)
    assert will.escape == ESCAPE


def test_unknown_commands_change_nothing(room: Room) -> None:
    will = room.session("will")
    for key in (b"z", b"lx", b"\x05x", b"\xff"):
        will.receive(ESCAPE + key, 1.0)
        assert "there is no such command" in shown(will)
    assert not room.line.typed


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_without_an_escape_everything_is_sent(parts: list[bytes]) -> None:
    room = Room()
    will = room.session("will", escape=b"")
    for part in parts:
        will.receive(part, 1.0)
    assert room.line.typed == b"".join(parts)
    assert not will.ended


@given(st.binary(max_size=200).filter(lambda data: ESCAPE not in data), st.integers(1, 7))
def test_with_an_escape_that_does_not_come_everything_is_sent(data: bytes, size: int) -> None:
    room = Room()
    will = room.session("will")
    for start in range(0, len(data), size):
        will.receive(data[start : start + size], 1.0)
    will.on_timer(10.0)
    assert room.line.typed == data


@given(
    st.lists(
        st.sampled_from([ESCAPE, b"a", b"s", b"c", b"w", b"p", b"b", b"h1\r", b"e", b"^]\r", b"l", b"0"])
    )
)
def test_nothing_that_is_typed_breaks_a_session(parts: list[bytes]) -> None:
    room = Room()
    room.session("anna")
    will = room.session("will")
    for part in parts:
        will.receive(part, 1.0)
        will.on_timer(100.0)
        shown(will)


def test_a_paste_waits_for_room_and_nothing_is_lost(room: Room) -> None:
    will = room.session("will", escape=b"")
    room.line.takes = False
    paste = bytes(range(256)) * 1024
    sent = 0
    while will.hungry:
        will.receive(paste[sent : sent + 4096], 1.0)
        sent += 4096
    assert 2 * INPUT_SIZE <= sent < len(paste)
    will.send_break(1.0, 0.5)
    room.line.takes = True
    wakes = room.wakes
    room.line._event()
    assert room.wakes > wakes
    will.pump(2.0)
    assert will.hungry
    assert room.line.typed == paste[:sent]
    assert room.line.breaks == [0.5]


def test_input_for_a_device_that_is_away(room: Room) -> None:
    will = room.session("will")
    room.line.hub.upstream_down("unplugged", 1.0)
    shown(will)
    will.receive(b"reboot\r", 2.0)
    assert "rack1 is not connected (unplugged): what you typed was not sent" in shown(will)
    room.line.hub.upstream_up(3.0)
    assert not room.line.typed


def test_a_slow_reader_is_told_what_it_missed(room: Room) -> None:
    vera = room.session("vera")
    shown(vera)
    room.line.say(b"x" * 100_000)
    text = shown(vera)
    assert "bytes lost" in text
    lost = int(text.partition("[")[2].split()[0])
    assert text.count("x") + lost == 100_000


def test_rights_that_are_taken_away(room: Room) -> None:
    will, vera = room.session("will"), room.session("vera")
    room.access.use(from_table({"users": {"will": {"view": ["*"]}, "vera": {"write": ["*"]}}}, "test"))
    will.review(1.0)
    vera.review(1.0)
    assert room.line.hub.holder is None
    vera.receive(ESCAPE + b"a" + b"x", 2.0)
    assert room.line.typed == b"x"
    room.access.use(from_table({}, "test"))
    vera.review(3.0)
    assert vera.ended
    assert "vera has no rights at rack1 any more" in shown(vera)
    assert [info.user for info in room.line.hub.who()] == ["will"]


def test_replay(room: Room) -> None:
    room.line.say(b"one\r\ntwo\r\n")
    vera = room.session("vera", replay=5)
    assert shown(vera).endswith("two\r\n")
    vera.receive(ESCAPE + b"r", 1.0)
    assert shown(vera) == "one\r\ntwo\r\n"


@pytest.mark.parametrize(("escape", "text"), [(b"\x05c", "^Ec"), (b"\x1d", "^]"), (b"&", "&")])
def test_how_an_escape_is_written(escape: bytes, text: str) -> None:
    assert escape_text(escape) == text


@pytest.mark.parametrize(
    ("typed", "echo", "line"),
    [
        (b"ab\r", "ab\n", "ab"),
        (b"ab\x7fc\n", "ab\b \bc\n", "ac"),
        (b"\x7fa\x15b\r", "a\b \bb\n", "b"),
        ("ü\x7fö\r".encode(), "ü\b \bö\n", "ö"),
        (b"a\x1b[A\r", "a[A\n", "a[A"),
        (b"a\x03", "a\n", None),
        (b"\xff\r", "\n", "\ufffd"),
    ],
)
def test_typing_a_line(typed: bytes, echo: str, line: str | None) -> None:
    editor = LineEditor(10)
    shown_, found = "", None
    for byte in typed:
        assert not editor.done
        part, found = editor.receive(byte)
        shown_ += part
    assert editor.done
    assert (shown_, found) == (echo, line)


@pytest.mark.parametrize("keys", [b"\x05cr", b"\x05c?", b"\x05cw", b"\x05cz", b"\x05cbx\x03"])
def test_one_who_commands_and_does_not_read_costs_little_memory(room: Room, keys: bytes) -> None:
    will = room.session("will")
    room.line.say(b"A" * 10_000)
    for _ in range(100):
        will.receive(keys * 200, 1.0)
    assert sum(len(to_terminal(output)) for output in will._output) < 100_000
    text = shown(will)
    assert len(text) < 100_000 + 10_000
    assert "answers are not shown: this connection was too slow for them" in text
    # It is heard again.
    will.receive(b"\x05cw", 1.0)
    assert "will (you) writes" in shown(will)
