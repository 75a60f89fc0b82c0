"""Users, roles, passwords, the audit log, tokens, and the throttling of logins."""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from minerva.console.access import (
    BURST,
    PACE_SECONDS,
    Access,
    Action,
    Guard,
    Identity,
    Refused,
    Role,
)
from minerva.console.audit import AuditError, AuditLog, AuditSink, AuditWriter, Entry
from minerva.console.break_glass import TokenError, Tokens
from minerva.console.config import from_table
from minerva.console.events import LeaseMoved, Move
from minerva.console.passwords import hash_password, is_hash, verify
from minerva.console.throttle import Logins, Throttle, source_of
from minerva.core.errors import UsageError

TABLE = {
    "groups": {"floor": {"view": ["*"], "write": ["rack1*"]}},
    "users": {
        "vera": {"groups": ["floor"]},
        "paul": {"view": ["rack1*"], "power": ["rack2*"]},
        "anna": {"admin": ["*"]},
        "alan": {"admin": ["rack1"]},
        "none": {},
    },
}


@pytest.mark.parametrize(
    ("user", "console", "role"),
    [
        ("vera", "rack1-a", Role.WRITE),
        ("vera", "rack2", Role.VIEW),
        ("paul", "rack1", Role.VIEW),
        ("paul", "rack2", Role.POWER),
        ("paul", "other", None),
        ("anna", "*", Role.ADMIN),
        ("alan", "rack1", Role.ADMIN),
        ("alan", "*", None),  # the server as a whole
        ("none", "rack1", None),
        ("nobody", "rack1", None),
    ],
)
def test_roles(user: str, console: str, role: Role | None) -> None:
    access = Access(from_table(TABLE, "test"))
    assert access.role(Identity(user, ""), console, 0.0) is role
    for action in Action:
        may = access.may(Identity(user, ""), action, console, 0.0)
        assert may is (role is not None and role >= action.role)


def test_rights_that_end() -> None:
    access = Access(from_table({}, "test"))
    guest = Identity("guest", "", grants=((Role.WRITE, "rack*"),), until=100.0)
    assert access.role(guest, "rack1", 99.0) is Role.WRITE
    assert access.role(guest, "other", 99.0) is None
    assert access.role(guest, "rack1", 100.0) is None


def test_a_name_of_the_configuration_gives_no_rights_to_one_with_its_own() -> None:
    access = Access(from_table(TABLE, "test"))
    assert access.role(Identity("anna", "", grants=()), "rack1", 0.0) is None


class Kept:
    """A log in memory."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def put(self, entry: Entry) -> None:
        """Keep it."""
        self.entries.append(entry)


def test_what_is_granted_and_what_is_refused_is_written_down() -> None:
    kept = Kept()
    guard = Guard(Access(from_table(TABLE, "test")), kept, lambda: 5.0)
    vera = Identity("vera", "ssh ::1", "password")
    guard.require(vera, Action.WRITE, "rack1")
    with pytest.raises(Refused, match="vera may not: power at rack1 needs the role power"):
        guard.require(vera, Action.POWER, "rack1", "off")
    with pytest.raises(Refused, match="reload at the console server needs the role admin"):
        guard.require(vera, Action.RELOAD)
    assert [(each.action, each.allowed, each.detail) for each in kept.entries] == [
        ("write", True, ""),
        ("power", False, "off"),
        ("reload", False, ""),
    ]
    assert kept.entries[0] == Entry(5.0, "write", True, "vera", "ssh ::1", "password", "rack1", "")


# -- passwords


def test_one_who_wants_too_much_pushes_nothing_out_of_the_audit_log() -> None:
    now = 1000.0
    entries: list[Entry] = []

    class Kept:
        def put(self, entry: Entry) -> None:
            entries.append(entry)

    guard = Guard(Access(from_table(TABLE, "test")), Kept(), lambda: now)
    vera = Identity("vera", "ssh fd01::2")
    done = refused = 0
    for _ in range(10_000):
        try:
            guard.require(vera, Action.RECORDS, "rack1")
            done += 1
        except Refused:
            refused += 1
        guard.note(vera, "attach", "no-such", allowed=False)
    assert (done, refused) == (BURST // 2, 10_000 - BURST // 2)
    with pytest.raises(Refused, match="vera wants too much at once: wait a moment"):
        guard.require(vera, Action.RECORDS, "rack1")
    assert len(entries) == BURST + 1
    assert [entry.action for entry in entries if entry.action == "too much at once"] == ["too much at once"]
    # Others are not held up, nor is root of this machine, nor is she later.
    guard.require(Identity("vera", "ssh fd01::3"), Action.RECORDS, "rack1")
    for _ in range(1000):
        guard.require(
            Identity("root", "local process 1", grants=((Role.ADMIN, "*"),), hurried=True),
            Action.RELOAD,
        )
    now += 2 * PACE_SECONDS
    guard.require(vera, Action.RECORDS, "rack1")


def test_passwords() -> None:
    hashed = hash_password("päss word")
    assert is_hash(hashed)
    assert verify("päss word", hashed)
    assert not verify("pass word", hashed)
    assert hash_password("päss word") != hashed


@pytest.mark.parametrize(
    "hashed", ["", "plain", "$scrypt$ln=30,r=8,p=1$AAAA$AAAAAAAAAAAAAAAAAAAAAAAA", "$scrypt$ln=4,r=8,p=1$A$A"]
)
def test_what_is_no_hash_is_no_password(hashed: str) -> None:
    assert not is_hash(hashed)
    assert not verify("", hashed)
    assert not verify(hashed, hashed)


def test_passwords_of_no_sensible_length() -> None:
    for password in ("", "x" * 1025):
        with pytest.raises(UsageError):
            hash_password(password)
    assert not verify("x" * 1025, hash_password("x" * 1024))


# -- audit


def test_the_audit_log_has_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    evil = "\x1b]0;title\x07\x9b31m\x7f\u202e\n\ud800"
    log.write([Entry(0.5, "say", user=evil, detail=evil)])
    data = path.read_bytes()
    assert all(0x20 <= byte < 0x7F for byte in data[:-1])
    assert json.loads(data) == {
        "time": "1970-01-01T00:00:00.500Z",
        "action": "say",
        "allowed": True,
        "user": evil,
        "detail": evil,
        "before": "",
    }
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_audit_log_is_rotated(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", max_size=1000, keep=3)
    for number in range(100):
        log.write([Entry(float(number), "say", detail="x" * 100)])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2", "audit.jsonl.3"]
    times = [
        json.loads(line)["time"]
        for name in reversed(names)
        for line in (tmp_path / name).read_text().splitlines()
    ]
    assert times == sorted(times)
    assert times[-1] == "1970-01-01T00:01:39.000Z"
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def _write_many(path: Path, user: str) -> None:
    log = AuditLog(path, max_size=4000, keep=1000)
    for number in range(100):
        log.write([Entry(float(number), "say", user=user)])


def test_several_processes_write_to_one_log(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_write_many, args=(tmp_path / "audit.jsonl", f"user{number}"))
        for number in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    lines = [line for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    assert len(lines) == 300
    assert {json.loads(line)["user"] for line in lines} == {"user0", "user1", "user2"}


def test_a_log_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = AuditLog(tmp_path / "nowhere" / "audit.jsonl")
    with pytest.raises(AuditError, match="cannot write the audit log"):
        log.write([Entry(0.0, "say")])
    writer = AuditWriter(log)
    writer.put(Entry(0.0, "power", user="vera"))
    asyncio.run(writer.settled())
    writer.close()
    assert writer.failures == 1
    assert '"user": "vera"' in caplog.text  # at least there


def test_putting_never_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(0.2)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    writer = AuditWriter(AuditLog(tmp_path / "audit.jsonl"))
    began = time.monotonic()
    for number in range(1000):
        writer.put(Entry(float(number), "say"))
    assert time.monotonic() - began < 0.2
    writer.close()
    assert len((tmp_path / "audit.jsonl").read_text().splitlines()) == 1000


def test_where_the_lease_goes_is_written_down(tmp_path: Path) -> None:
    writer = AuditWriter(AuditLog(tmp_path / "audit.jsonl"))
    sink = AuditSink("rack1", writer)
    sink.output(b"secret")
    sink.event(LeaseMoved(1.0, "vera", "anna", Move.FORCED))
    writer.close()
    assert json.loads((tmp_path / "audit.jsonl").read_text()) == {
        "time": "1970-01-01T00:00:01.000Z",
        "action": "lease",
        "allowed": True,
        "user": "anna",
        "console": "rack1",
        "detail": "from vera to anna: forced",
        "before": "",
    }


# -- break glass


def make(tokens: Tokens, **changes: object) -> str:
    settings = {"role": Role.POWER, "ports": ("rack*",), "made_by": "root", "now": 0.0, "days": 1.0}
    return tokens.create(**{**settings, **changes})[0]  # type: ignore[arg-type]


def test_a_token_is_good_once(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "break-glass")
    text = make(tokens, hours=2.0)
    assert [token.number for token in tokens.list()] == [text[:5]]
    typed = f" {text.lower().replace('1', 'l').replace('0', 'o')} "
    found = tokens.use(typed, "ssh ::1", 10.0)
    assert found == Identity(
        f"break-glass-{text[:5]}", "ssh ::1", f"token {text[:5]}", ((Role.POWER, "rack*"),), 7210.0
    )
    assert tokens.list() == []
    with pytest.raises(TokenError, match="has been used"):
        tokens.use(text, "ssh ::1", 11.0)


def test_a_token_is_kept_as_a_hash_for_root_alone(tmp_path: Path) -> None:
    directory = tmp_path / "break-glass"
    tokens = Tokens(directory)
    text = make(tokens)
    assert directory.stat().st_mode & 0o777 == 0o700
    (path,) = directory.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert text[6:11] not in path.read_text()
    assert tokens.list()[0].digest not in repr(tokens.list())


def test_tokens_that_are_not_good(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "break-glass")
    text = make(tokens)
    other = text[:-1] + ("0" if text[-1] != "0" else "1")
    for wrong, why in (
        ("", "no break-glass token"),
        ("../../etc/passwd", "no break-glass token"),
        ("0" * 25, "no such"),
        (other, "not right"),
    ):
        with pytest.raises(TokenError, match=why):
            tokens.use(wrong, "", 1.0)
    with pytest.raises(TokenError, match="expired"):
        tokens.use(text, "", 86_400.0)
    tokens.revoke(text[:5])
    with pytest.raises(TokenError, match="no such"):
        tokens.use(text, "", 1.0)
    for number in (text[:5], "../x"):
        with pytest.raises(UsageError):
            tokens.revoke(number)
    # A time that is no number would never come.
    for days, hours in (
        (math.nan, 1.0),
        (1.0, math.nan),
        (math.inf, 1.0),
        (1.0, math.inf),
        (0.0, 1.0),
        (1.0, -1.0),
    ):
        with pytest.raises(UsageError, match="a token needs"):
            tokens.create(role=Role.VIEW, ports=("*",), made_by="root", now=1.0, days=days, hours=hours)
    assert not tokens.list()


# -- throttling


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fd89:b714:f3db:0:200:0:6400:1", "fd89:b714:f3db:0:200:0:6400:0/120"),
        ("fe80::1%eth0", "fe80::1"),
        ("::1", "::1"),
        ("", ""),
    ],
)
def test_sources(address: str, source: str) -> None:
    assert source_of(address) == source


def test_a_source_that_fails_has_to_wait_and_others_do_not() -> None:
    throttle = Throttle(3)
    for second in range(3):
        throttle.failed("a", float(second), guess=True)
        assert not throttle.blocked("a", float(second))
    throttle.failed("a", 3.0, guess=True)
    assert throttle.blocked("a", 3.0)
    assert throttle.blocked("a", 62.0)
    assert not throttle.blocked("b", 3.0)
    assert not throttle.password_blocked("b", 3.0)
    assert not throttle.blocked("a", 63.5)


def test_many_sources_that_guess_lock_out_no_key_and_nobody_who_was_here_before() -> None:
    throttle = Throttle(10)
    throttle.succeeded("desk")
    for number in range(200):
        throttle.failed(f"bot{number}", 100.0, guess=True)
    assert throttle.password_blocked("stranger", 100.0)
    assert not throttle.blocked("stranger", 100.0)
    assert not throttle.password_blocked("desk", 100.0)
    assert not throttle.password_blocked("stranger", 102.0)


def test_the_throttle_remembers_only_so_much() -> None:
    throttle = Throttle(1)
    for number in range(20_000):
        for _ in range(2):
            throttle.failed(f"bot{number}", 0.0, guess=False)
        throttle.succeeded(f"good{number}")
    assert len(throttle._sources) == len(throttle._good) == 4096
    assert len(throttle._blocked_until) == 4096


def test_too_many_logins_end_those_of_the_busiest() -> None:
    logins = Logins(of_source=8, total=20)
    ended: list[str] = []
    numbers = [logins.enter(source, lambda: ended.append("a")) for source in "a" * 8]
    assert logins.enter("a", lambda: None) is None
    for number in range(12):
        assert logins.enter(f"b{number}", lambda: ended.append("b")) is not None
    assert logins.enter("c", lambda: ended.append("c")) is not None
    assert ended == ["a"]
    logins.leave(numbers[0] or 0)  # was ended already
    assert logins.refused == 2
