"""Records: every byte, valid files, crashes, rotation, retention, search and replay."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.console import record_files, record_search, records
from minerva.console.config import Records
from minerva.console.events import Said, Typed
from minerva.console.record_files import CAST, LOG, RecordError
from minerva.console.record_format import (
    MAX_LINE,
    Encoder,
    RecordDecodeError,
    decode_frame,
    decode_header,
    decode_log_line,
)
from minerva.console.records import Archive, Clock, Recorder

START = 1_795_633_930.25  # 2026-11-25T19:12:10.250Z
PLAIN = Records(compress="none")


def texts(log: bytes) -> list[str]:
    """Return the lines of a log without their times, which must not go back."""
    lines = [decode_log_line(line) for line in log.decode().splitlines()]
    assert all(a.offset <= b.offset for a, b in pairwise(lines))
    return [f"{line.kind} {line.text}" for line in lines]


def check_cast(data: bytes) -> bytes:
    """Check that a cast is valid, as asciinema's own tools would; return what the device said."""
    header, *events = [json.loads(line) for line in data.decode().split("\n")[:-1]]
    assert data.endswith(b"\n")
    assert header["version"] == 2
    assert all(type(header[name]) is int and header[name] > 0 for name in ("width", "height", "timestamp"))
    last = 0.0
    for offset, kind, text in events:
        assert type(offset) is float
        assert offset >= last
        last = offset
        assert kind in ("o", "i", "m", "b")
        text.encode()  # no half of a surrogate pair, which players refuse
    said, exact = b"", None
    for line in data.splitlines()[1:]:
        frame = decode_frame(line, exact)
        exact = frame.data if frame.kind == "b" else None
        if frame.kind == "o":
            said += frame.data
    return said


@pytest.fixture
def archives() -> Iterator[list[Archive]]:
    opened: list[Archive] = []
    yield opened
    for archive in opened:
        archive.close()


@pytest.fixture
def archive(tmp_path: Path, archives: list[Archive]) -> Callable[..., Archive]:
    def opened(settings: Records = PLAIN, clock: Clock | None = None) -> Archive:
        archives.append(Archive(tmp_path / "records", settings, clock))
        return archives[-1]

    return opened


def recorder(archive: Archive, name: str = "web1") -> Recorder:
    found = archive.recorder(name)
    assert found is not None
    return found


def until(true: Callable[[], bool]) -> None:
    """Wait for what a thread does."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


# -- the two forms


def encoded(*chunks: bytes, every: float = 0.1) -> Encoder:
    """Return an encoder that was given the chunks, and has ended."""
    encoder = Encoder("web1")
    encoder.begin(0.0, START)
    for number, chunk in enumerate(chunks):
        encoder.output(chunk, number * every, START + number * every)
    encoder.end(len(chunks) * every, START + len(chunks) * every, final=True)
    return encoder


@given(st.lists(st.binary(min_size=1, max_size=40) | st.text(min_size=1).map(str.encode), max_size=20))
def test_a_cast_is_valid_and_has_every_byte(chunks: list[bytes]) -> None:
    encoder = encoded(*chunks)
    assert check_cast(bytes(encoder.cast)) == b"".join(chunks)
    assert all(line[0] in "|+" for line in texts(bytes(encoder.log)))
    assert all(byte == 10 or byte >= 32 for byte in encoder.log)


@given(
    text=st.lists(
        st.sampled_from([*"ab \r\n\x1b[0;31mé\x9b?2", "\x1b[?2004h", "\x1b[?2004l\r"]), max_size=60
    ).map("".join),
    cuts=st.lists(st.integers(0, 100), max_size=10),
)
def test_a_log_is_the_same_however_the_output_comes(text: str, cuts: list[int]) -> None:
    data = text.encode()
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in pairwise(places)]
    whole = texts(bytes(encoded(data).log))
    assert texts(bytes(encoded(*pieces, every=0.0).log)) == whole


def test_a_character_in_two_halves_is_one() -> None:
    encoder = encoded(b"gr\xc3", b"\xbcn\r", b"\n\xe2\x82", b"\xac")
    events = [json.loads(line) for line in bytes(encoder.cast).splitlines()[1:]]
    assert [event[1:] for event in events] == [["o", "gr"], ["o", "ün\r"], ["o", "\n"], ["o", "€"]]
    assert texts(bytes(encoder.log)) == ["| grün", "| €"]


def test_half_a_character_is_not_waited_for_long() -> None:
    encoder = Encoder("web1")
    encoder.begin(0.0, START)
    encoder.output(b"\xc3", 1.0, START + 1)
    encoder.settle(1.9, START + 1.9)
    assert encoder.cast.count(b"\n") == 1
    encoder.settle(2.0, START + 2)
    assert check_cast(bytes(encoder.cast)) == b"\xc3"
    assert encoder.log.endswith(b"| \\xc3")


def test_a_log_line() -> None:
    encoder = encoded(b"one\r\r\n", b"\x1b[1;31mtwo\x1b", b"[0m\ttab\x1b[2J\a\r\nlogin: ", every=0.5)
    assert encoder.log.decode().splitlines() == [
        "2026-11-25T19:12:10.250Z 0.250 | one",
        "2026-11-25T19:12:10.750Z 0.750 | two\\ttab\\u001b[2J\\u0007",
        "2026-11-25T19:12:11.250Z 1.250 | login: ",
    ]
    assert json.loads(encoder.cast.splitlines()[0])["timestamp"] == int(START)


def test_what_shells_say_around_commands_is_left_out() -> None:
    """Or no pattern for a whole line would find what a command says."""
    said = (b"\x1b[?2004h$ ec", b"ho hi\r\n\x1b[?20", b"04l\rhi\r\n\x1b[?2004h$ \x1b[?25lx\ry")
    assert texts(bytes(encoded(*said).log)) == ["| $ echo hi", "| hi", "| $ \\u001b[?25lx\\ry"]

    encoder = Encoder("web1")
    encoder.begin(0.0, START)
    encoder.output(b"$ sleep 9; echo hi\r\n\x1b[?2004l\r", 0.0, START)
    encoder.settle(2.0, START)
    encoder.output(b"hi\r\n", 9.0, START)
    assert texts(bytes(encoder.log)) == ["| $ sleep 9; echo hi", "| hi"]


def test_lines_have_a_limit() -> None:
    assert texts(bytes(encoded(b"x" * (2 * MAX_LINE + 1)).log)) == [
        "| " + "x" * MAX_LINE,
        "+ " + "x" * MAX_LINE,
        "+ x",
    ]


@pytest.mark.parametrize("size", [7, 65_536])
def test_a_device_that_says_only_carriage_returns_costs_no_time_and_no_memory(size: int) -> None:
    encoder = Encoder("x")
    encoder.begin(0.0, START)
    began = time.process_time()
    for start in range(0, 262_144, size):
        encoder.output(b"\r" * size, 1.0 + start / 1e6, START)
        encoder.cast.clear()
        assert len(encoder._unfinished) <= 100
    encoder.output(b"x\r\r\n", 2.0, START)
    assert time.process_time() - began < 10
    assert texts(encoder.log)[-1].endswith("x")


def test_what_interrupts_a_line_is_told_apart_from_it() -> None:
    encoder = Encoder("web1")
    encoder.begin(0.0, START)
    encoder.output(b"login: ", 0.0, START)
    encoder.mark("alice attached\x1b[2J", 0.1, START)
    encoder.output(b"alice\r\n* bob attached\r\n", 0.2, START)
    encoder.end(1.0, START, final=True)
    assert texts(bytes(encoder.log)) == [
        "| login: ",
        "* alice attached\\u001b[2J",
        "+ alice",
        "| * bob attached",
    ]


def test_what_is_typed_is_a_line_of_who_typed_it() -> None:
    encoder = Encoder("web1")
    encoder.begin(0.0, START)
    for user, data in (("al", b"l"), ("al", b"s\r"), ("al", b"r"), ("bo", b"\xff"), ("bo", b"x")):
        encoder.typed(user, data, 0.0, START)
    encoder.settle(0.5, START)
    assert texts(bytes(encoder.log)) == ["< al: ls\\r", "< al: r"]
    encoder.settle(1.0, START)
    assert texts(bytes(encoder.log))[2:] == ["< bo: \\xffx"]
    events = [json.loads(line)[1:] for line in bytes(encoder.cast).splitlines()[1:]]
    assert events == [
        ["m", "al types"],
        ["i", "l"],
        ["i", "s\r"],
        ["i", "r"],
        ["m", "bo types"],
        ["b", "/w=="],
        ["i", "\ufffd"],
        ["i", "x"],
    ]


def test_a_line_goes_on_in_the_next_file() -> None:
    encoder = Encoder("web1")
    encoder.begin(0.0, START)
    encoder.output(b"one\r\nhal", 0.0, START)
    encoder.end(1.0, START + 1)
    first, encoder.log = bytes(encoder.log), bytearray()
    encoder.begin(1.0, START + 1)
    encoder.output(b"f\r\n", 1.0, START + 1)
    assert texts(first) == ["| one", "| hal"]
    assert texts(bytes(encoder.log)) == ["+ f"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"x",
        b"[]",
        b"{}",
        b"[1, 2, 3]",
        b'[NaN, "o", ""]',
        b'[-1, "o", ""]',
        b'["1", "o", ""]',
        b'[1, "o", "\\ud800"]',
        b'[1, "b", "?"]',
        b"[" * 100_000,
    ],
)
def test_what_is_no_event(line: bytes) -> None:
    with pytest.raises(RecordDecodeError):
        decode_frame(line, None)


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b'{"version": 3, "timestamp": 1}', b'{"version": 2}', b'{"version": 2, "timestamp": "1"}'],
)
def test_what_is_no_header(line: bytes) -> None:
    with pytest.raises(RecordDecodeError):
        decode_header(line)


@pytest.mark.parametrize(
    "line", ["", "2026-13-25T19:12:10.250Z 0.250 | x", "2026-11-25T19:12:10.250Z 0.250 ? x"]
)
def test_what_is_no_line_of_a_log(line: str) -> None:
    with pytest.raises(RecordDecodeError):
        decode_log_line(line)


@given(st.binary(max_size=80), st.text(max_size=80))
def test_strange_files_raise_only_one_error(data: bytes, text: str) -> None:
    for call in (
        lambda: decode_frame(data, None),
        lambda: decode_header(data),
        lambda: decode_log_line(text),
    ):
        try:
            call()
        except RecordDecodeError:
            continue


# -- the files


def test_files_are_for_their_owner_alone(tmp_path: Path, archive: Callable[..., Archive]) -> None:
    web1 = recorder(archive())
    web1.output(b"hello\r\n")
    archive().close()
    directory = tmp_path / "records" / "web1"
    until(lambda: directory.exists() and len(list(directory.iterdir())) == 2)
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (directory, directory.parent)} == {0o700}


def test_everything_is_in_the_record_and_can_be_read_at_once(
    tmp_path: Path, archive: Callable[..., Archive]
) -> None:
    opened = archive(Records(input=("web*",)))
    web1, other = recorder(opened), recorder(opened, "db1")
    web1.output(b"login: ")
    web1.event(Said(1.0, "bob", "hello"))
    for each in (web1, other):
        each.event(Typed(1.0, "alice", b"root\r"))
        each.output(b"root\r\n\xff")
    opened.flush()
    directory = tmp_path / "records"
    assert b"".join(record_search.output(directory, "web1")) == b"login: root\r\n\xff"
    assert [(line.kind, line.text) for line in record_search.lines(directory, "web1")] == [
        ("|", "login: "),
        ("*", "bob: hello"),
        ("<", "alice: root\\r"),
        ("+", "root"),
        ("|", "\\xff"),
    ]
    assert [line.kind for line in record_search.lines(directory, "db1")] == ["|", "|"]


def test_what_is_not_to_be_recorded_is_not(archive: Callable[..., Archive]) -> None:
    opened = archive(Records(ports=("db*",)))
    assert opened.recorder("web1") is None
    recorder(opened, "db1")
    with pytest.raises(RecordError, match=r"^db1 is being recorded already$"):
        opened.recorder("db1")


def test_after_the_end_nothing_is_recorded(tmp_path: Path, archive: Callable[..., Archive]) -> None:
    opened = archive()
    web1 = recorder(opened)
    web1.output(b"before")
    opened.end(web1)
    web1.output(b"after")
    opened.end(web1)
    opened.flush()
    assert b"".join(record_search.output(tmp_path / "records", "web1")) == b"before"
    again = recorder(opened)
    again.output(b"again")
    opened.flush()
    assert b"".join(record_search.output(tmp_path / "records", "web1")) == b"beforeagain"


def test_a_pause_is_in_the_record(tmp_path: Path, archive: Callable[..., Archive]) -> None:
    opened = archive()
    opened.end(recorder(opened))
    for path in (tmp_path / "records" / "web1").iterdir():
        os.utime(path, (time.time() - 100, time.time() - 100))
    again = recorder(opened)
    opened.end(again)
    marks = [line.text for line in record_search.lines(tmp_path / "records", "web1")]
    assert marks[0] == marks[2] == "the record ends"
    assert re.fullmatch(
        r"nothing was recorded for 100\.\d s, since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", marks[1]
    )


CHILD = """
import sys, time
from pathlib import Path
from minerva.console.config import Records
from minerva.console.records import Archive
recorder = Archive(Path(sys.argv[1]), Records()).recorder("web1")
number = 0
while True:
    recorder.output(b"".join(b"%08d\\r\\n" % (number + index) for index in range(20)))
    number += 20
    print(number, flush=True)
    time.sleep(0.005)
"""


def test_a_killed_server_loses_what_it_had_not_flushed_and_no_more(
    tmp_path: Path, archive: Callable[..., Archive]
) -> None:
    directory = tmp_path / "records"
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        said = {}
        while len(said) < 300:
            said[int(child.stdout.readline())] = time.monotonic()
        child.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        child.wait()
    last_sign = record_files.last_sign_of_life(directory / "web1")
    assert last_sign is not None
    time.sleep(1.0)
    opened = archive()
    again = recorder(opened)
    again.output(b"again\r\n")
    opened.flush()
    files = record_files.files(directory, "web1")
    for file in files:
        with record_files.open_record(file) as stream:
            check_cast(stream.read())
    output = b"".join(record_search.output(directory, "web1"))
    numbers = output.split(b"\r\n")[:-2]
    assert [int(number) for number in numbers] == list(range(len(numbers)))
    must_be_there = max(number for number, at in said.items() if at < killed - 2 * records.FLUSH)
    assert len(numbers) >= must_be_there
    mark = next(line for line in record_search.lines(directory, "web1") if line.kind == "*")
    away = re.match(r"nothing was recorded for (\d+\.\d) s", mark.text)
    assert away is not None
    assert 1.0 <= float(away[1]) <= 3.0


def test_what_a_power_failure_left_is_mended(tmp_path: Path, archive: Callable[..., Archive]) -> None:
    directory = tmp_path / "records" / "web1"
    directory.mkdir(parents=True)
    header = b'{"version": 2, "width": 80, "height": 24, "timestamp": 1795633930}\n'
    (directory / "20261125T191210Z.cast").write_bytes(header + b'[1.0, "o", "x"]\n[2.0, "o' + b"\0" * 99)
    (directory / "20261125T191210Z.log").write_bytes(b"2026-11-25T19:12:10.250Z 0.250 | x\0\0\0")
    (directory / "20261124T191210Z.cast.gz.part").write_bytes(b"x")
    (directory / "stranger").write_bytes(b"x")
    archive()
    cast, log = (directory / f"20261125T191210Z{kind}" for kind in (CAST, LOG))
    assert check_cast(cast.read_bytes()) == b"x"
    assert log.read_bytes() == b"2026-11-25T19:12:10.250Z 0.250 | x\n"
    assert sorted(path.name for path in directory.iterdir()) == [cast.name, log.name, "stranger"]


@pytest.mark.parametrize("left", [b"", b"\0" * 7, b'{"version"'])
def test_a_cast_without_a_beginning_is_removed(
    tmp_path: Path, archive: Callable[..., Archive], left: bytes
) -> None:
    directory = tmp_path / "records" / "web1"
    directory.mkdir(parents=True)
    (directory / "20261125T191210Z.cast").write_bytes(left)
    archive()
    assert list(directory.iterdir()) == []


class FakeTime:
    """Clocks that move when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.clock = Clock(lambda: 1000 + self.now, lambda: START + self.now)


def test_a_step_of_the_clock_does_not_move_the_cast(tmp_path: Path, archive: Callable[..., Archive]) -> None:
    utc = [START]
    steady = [1000.0]
    opened = archive(PLAIN, Clock(lambda: steady[0], lambda: utc[0]))
    web1 = recorder(opened)
    for _ in range(3):
        web1.output(b"x")
        utc[0] -= 3600
        steady[0] += 1
    opened.flush()
    file = record_files.files(tmp_path / "records", "web1")[0]
    assert [frame.offset for frame in record_search.frames(file)] == [0.25, 1.25, 2.25]


def test_rotation_by_size_and_packing(tmp_path: Path, archive: Callable[..., Archive]) -> None:
    opened = archive(Records(rotate_mib=1))
    web1 = recorder(opened)
    said = b""
    for number in range(3):
        chunk = b"%d" % number * 300_000
        for _ in range(3):
            web1.output(chunk)
            opened.flush()
            said += chunk
    directory = tmp_path / "records"

    def packed() -> list[str]:
        return [file.packed for file in record_files.files(directory, "web1")]

    until(lambda: packed() == [".gz", ".gz", ""])
    assert b"".join(record_search.output(directory, "web1")) == said
    for file in record_files.files(directory, "web1")[:2]:
        check_cast(gzip.decompress(file.path.read_bytes()))
        assert file.path.stat().st_mode & 0o777 == 0o600
    stems = [[file.stem for file in record_files.files(directory, "web1", kind)] for kind in (CAST, LOG)]
    assert stems[0] == stems[1]
    assert sum(len(line.text) for line in record_search.lines(directory, "web1")) == len(said)


def test_zstd(tmp_path: Path, archive: Callable[..., Archive]) -> None:
    try:
        record_files.zstd()
    except RecordError as error:
        assert "pip install zstandard" in str(error)  # noqa: PT017
        with pytest.raises(RecordError):
            archive(Records(compress="zstd"))
        return
    opened = archive(Records(compress="zstd"))
    web1 = recorder(opened)
    web1.output(b"hello")
    opened.end(web1)
    until(lambda: [file.packed for file in record_files.files(tmp_path / "records", "web1")] == [".zst"])
    assert b"".join(record_search.output(tmp_path / "records", "web1")) == b"hello"


def test_rotation_by_time(tmp_path: Path, archive: Callable[..., Archive]) -> None:
    fake = FakeTime()
    opened = archive(Records(rotate_hours=1, compress="none"), fake.clock)
    web1 = recorder(opened)
    for _ in range(3):
        web1.output(b"x\r\n")
        opened.flush()
        fake.now += 3600
    starts = [file.start for file in record_files.files(tmp_path / "records", "web1")]
    assert starts == [int(START) + 3600 * number for number in range(len(starts))]
    assert len(starts) >= 3
    lines = list(record_search.lines(tmp_path / "records", "web1"))
    assert [line.at for line in lines] == [START, START + 3600, START + 7200]


def test_another_description_is_in_the_next_file(tmp_path: Path, archive: Callable[..., Archive]) -> None:
    fake = FakeTime()
    opened = archive(Records(rotate_hours=1, compress="none"), fake.clock)
    web1 = recorder(opened)
    for description in ("a router", "a switch", ""):
        web1.output(b"x")
        opened.flush()
        web1.describe(description)
        fake.now += 3600
    heads = [
        json.loads(file.path.read_bytes().split(b"\n")[0])["title"]
        for file in record_files.files(tmp_path / "records", "web1")
    ]
    assert heads[:3] == ["web1", "web1: a router", "web1: a switch"]


def test_old_files_are_removed_and_then_the_oldest_of_too_many(tmp_path: Path) -> None:
    now = time.time()
    for console in ("a", "b"):
        (tmp_path / console).mkdir()
        for day in range(1, 6):
            file = tmp_path / console / f"2026112{day}T000000Z.cast.gz"
            file.write_bytes(b"x" * 100)
            os.utime(file, (now - day * 86_400, now - day * 86_400))
        (tmp_path / console / "keep.txt").write_bytes(b"x" * 100)

    def left() -> list[int]:
        return [len(record_files.files(tmp_path, console)) for console in ("a", "b")]

    def remove(keep_days: int, keep_bytes: int, in_use: Path = tmp_path) -> None:
        record_files.remove_old(
            tmp_path, now=now, keep_days=keep_days, keep_bytes=keep_bytes, in_use=frozenset({in_use})
        )

    remove(0, 0)
    assert left() == [5, 5]
    remove(4, 0)
    assert left() == [4, 4] or left() == [3, 3]
    remove(0, 500, tmp_path / "a" / "20261123T000000Z.cast.gz")
    assert sum(left()) == 5
    assert (tmp_path / "a" / "20261123T000000Z.cast.gz").exists()
    assert (tmp_path / "b" / "keep.txt").exists()


def test_a_device_that_talks_without_end_pushes_out_only_its_own_record(tmp_path: Path) -> None:
    now = time.time()
    for console, count in (("quiet", 2), ("noisy", 50)):
        (tmp_path / console).mkdir()
        for minute in range(count):
            file = tmp_path / console / f"20261125T00{minute:02}00Z.cast.gz"
            file.write_bytes(b"x" * 100)
            age = 86_400 if console == "quiet" else minute
            os.utime(file, (now - age, now - age))
    removed = record_files.remove_old(tmp_path, now=now, keep_days=90, keep_bytes=1000, in_use=frozenset())
    assert {path.parent.name for path in removed} == {"noisy"}
    assert len(record_files.files(tmp_path, "quiet")) == 2
    # The oldest went.
    assert [file.path.name[9:13] for file in record_files.files(tmp_path, "noisy")] == [
        f"00{minute:02}" for minute in range(8)
    ]


def test_retention_happens_by_itself(tmp_path: Path, archive: Callable[..., Archive]) -> None:
    directory = tmp_path / "records" / "gone"
    directory.mkdir(parents=True)
    old = directory / "20200101T000000Z.log.gz"
    old.write_bytes(b"x")
    os.utime(old, (0, 0))
    opened = archive(Records(keep_days=0))
    time.sleep(0.3)
    assert old.exists()
    opened.update(Records(keep_days=1))
    until(lambda: not old.exists())


def test_a_full_disk_costs_nothing_until_memory_is_full(
    tmp_path: Path,
    archive: Callable[..., Archive],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened = archive()
    web1 = recorder(opened)
    web1.output(b"before\r\n")
    opened.flush()
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) <= 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:5])

    monkeypatch.setattr(os, "write", full)
    web1.output(b"while\r\n")
    opened.flush()
    web1.output(b"still\r\n")
    opened.flush()
    assert caplog.messages == ["cannot write the record of web1: No space left on device"]
    monkeypatch.setattr(records, "MAX_PENDING", 1000)
    web1.output(b"x" * 1000)
    web1.output(b"y")
    monkeypatch.setattr(os, "write", write)
    opened.flush()
    web1.output(b"after\r\n")
    opened.flush()
    said = b"".join(record_search.output(tmp_path / "records", "web1"))
    assert said == b"before\r\nwhile\r\nstill\r\nafter\r\n"
    marks = [line.text for line in record_search.lines(tmp_path / "records", "web1") if line.kind == "*"]
    assert marks == ["1001 bytes are not in this record"]
    assert web1.lost == 1001


def test_a_directory_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match=r"^cannot keep records in .*file/records: Not a directory$"):
        Archive(tmp_path / "file" / "records", PLAIN)


def test_names_are_not_used_twice(tmp_path: Path) -> None:
    for name in ("20261125T191210Z", "20261125T191210Z-2", "20261125T191210Z-3"):
        cast, log = record_files.new_names(tmp_path, START)
        assert (cast.name, log.name) == (f"{name}.cast", f"{name}.log")
        cast.with_name(f"{cast.name}.gz").touch()
    assert [file.turn for file in record_files.files(tmp_path.parent, tmp_path.name)] == [1, 2, 3]
    assert record_files.files(tmp_path, "no such console") == []
    assert record_files.consoles(tmp_path / "nowhere") == []


# -- search and replay


@pytest.fixture
def two_consoles(tmp_path: Path) -> Path:
    """Return a directory with records of two consoles, each in two files, the first of them packed."""
    for console, shift in (("web1", 0.0), ("db1", 0.5)):
        (tmp_path / console).mkdir()
        for number in range(2):
            at = START + shift + number * 100
            encoder = Encoder(console)
            encoder.begin(at, at)
            encoder.output(b"boot %d\r\nKernel pa" % number, at, at)
            encoder.mark("alice attached", at + 1, at + 1)
            encoder.output(b"nic\r\n", at + 10, at + 10)
            encoder.end(at + 11, at + 11, final=True)
            names = record_files.new_names(tmp_path / console, at)
            for path, data in zip(names, (encoder.cast, encoder.log), strict=True):
                path.write_bytes(data)
                if not number:
                    record_files.pack(path, "gzip")
    return tmp_path


def test_search_is_in_order_over_all_consoles(two_consoles: Path) -> None:
    found = list(record_search.search(two_consoles, re.compile("boot")))
    assert [(line.console, line.text, round(line.at - START, 3)) for line in found] == [
        ("web1", "boot 0", 0.0),
        ("db1", "boot 0", 0.5),
        ("web1", "boot 1", 100.0),
        ("db1", "boot 1", 100.5),
    ]


def test_a_line_that_was_interrupted_is_found(two_consoles: Path) -> None:
    found = list(record_search.search(two_consoles, re.compile("Kernel panic"), consoles=("web*",)))
    assert [line.text for line in found] == ["Kernel panic", "Kernel panic"]
    assert len(list(record_search.search(two_consoles, re.compile("Kernel"), consoles=("web*",)))) == 2
    assert len(list(record_search.search(two_consoles, re.compile("nic$"), consoles=("web*",)))) == 2


def test_search_by_time_and_kind(two_consoles: Path) -> None:
    everything = re.compile("")
    assert len(list(record_search.search(two_consoles, everything))) == 16
    late = record_search.search(two_consoles, everything, since=START + 105, consoles=("web1",))
    assert [line.text for line in late] == ["nic"]
    early = record_search.search(two_consoles, everything, until=START + 0.1, consoles=("web1",))
    assert [line.text for line in early] == ["boot 0", "Kernel pa"]
    marks = record_search.search(two_consoles, everything, kinds="*")
    assert {line.text for line in marks} == {"alice attached"}


def test_the_last_lines(two_consoles: Path) -> None:
    texts = [line.text for line in record_search.last_lines(two_consoles, "web1", 5)]
    assert texts == ["nic", "boot 1", "Kernel pa", "alice attached", "nic"]
    assert len(record_search.last_lines(two_consoles, "web1", 100)) == 8
    assert record_search.last_lines(two_consoles, "web1", 0) == []
    assert record_search.last_lines(two_consoles, "none", 5) == []


def test_replay_keeps_time(two_consoles: Path) -> None:
    first = b"boot 0\r\nKernel pa"
    second = first.replace(b"0", b"1")
    assert list(record_search.replay(two_consoles, "web1", max_idle=1000)) == [
        (0.0, first),
        (10.0, b"nic\r\n"),
        (90.0, second),
        (10.0, b"nic\r\n"),
    ]
    fast = record_search.replay(two_consoles, "web1", speed=4, max_idle=20)
    assert [wait for wait, _ in fast] == [0.0, 2.5, 20, 2.5]
    part = record_search.replay(two_consoles, "web1", since=START + 5, until=START + 50)
    assert [data for _, data in part] == [b"nic\r\n"]


def test_a_strange_file_is_told(two_consoles: Path) -> None:
    (two_consoles / "web1" / "20270101T000000Z.cast").write_bytes(b"hello\n")
    with pytest.raises(RecordError, match=r"20270101T000000Z\.cast is no cast$"):
        list(record_search.replay(two_consoles, "web1"))


def test_a_file_that_is_packed_or_removed_between_listing_and_reading(two_consoles: Path) -> None:
    file = record_files.files(two_consoles, "web1", LOG)[1]
    record_files.pack(file.path, "gzip")
    with record_files.open_record(file) as stream:
        assert stream.read().startswith(b"2026-11-25T")
    file.path.with_name(file.path.name + ".gz").unlink()
    with pytest.raises(RecordError, match=r"has been removed$"):
        record_files.open_record(file)
