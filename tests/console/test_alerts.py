from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.console.alerts import (
    MAX_LINE,
    MAX_WAITING,
    PAUSE_SECONDS,
    Alert,
    AlertSink,
    Notifier,
    Watch,
)
from minerva.console.config import Alert as Rule

PANIC = Rule(pattern="[Pp]anic", context=2, interval=60)
LOGIN = Rule(pattern="login: $", context=0, interval=0)


def watch(**rules: Rule) -> Watch:
    return Watch("web1", rules or {"panic": PANIC})


def test_a_line_with_its_context() -> None:
    it = watch()
    assert it.feed(b"one\r\ntwo\r\nthree\r\nkernel pa", 1.0) == []
    assert it.feed(b"nic - not syncing\r", 2.0) == [
        Alert("panic", "web1", 2.0, "kernel panic - not syncing", ("two", "three"), 0)
    ]
    assert it.feed(b"\n", 3.0) == []


def test_what_escapes_and_controls_are_in_a_line_is_neither_seen_nor_shown() -> None:
    [found] = watch().feed(b"\x1b]0;title\x07\x1b[1;31mker\x1b[0mnel p\x1b[7manic\x07\x9b2J\n", 1.0)
    assert found.line == "kernel panic\\u0007\ufffd2J"
    assert found.line.isprintable()


def test_one_in_an_interval_and_the_others_are_counted() -> None:
    it = watch()
    told = [it.feed(b"panic\n", now) for now in (0.0, 1.0, 59.9, 60.0, 61.0, 200.0)]
    assert [[alert.suppressed for alert in found] for found in told] == [[0], [], [], [2], [], [1]]


def test_a_clock_that_is_set_back_does_not_silence_a_rule() -> None:
    it = watch()
    assert it.feed(b"panic\n", 1000.0)
    assert it.feed(b"panic\n", 5.0)


def test_a_prompt_is_found_without_an_end_of_line_and_only_once() -> None:
    it = watch(login=LOGIN)
    assert not it.unfinished
    assert it.feed(b"\nhost login: ", 1.0) == []
    assert it.unfinished
    assert [alert.line for alert in it.settle(1.5)] == ["host login:"]
    assert not it.unfinished


def test_what_was_found_in_part_of_a_line_is_not_found_again_at_its_end() -> None:
    it = watch(panic=Rule(pattern="panic", interval=0), all=Rule(pattern="panic.*end", interval=0))
    it.feed(b"a panic", 1.0)
    assert [alert.name for alert in it.settle(1.5)] == ["panic"]
    assert [alert.name for alert in it.feed(b" at the end\n", 2.0)] == ["all"]
    assert [alert.name for alert in it.feed(b"panic\n", 3.0)] == ["panic"]


def test_only_consoles_that_the_rule_is_for() -> None:
    it = watch(panic=Rule(pattern="panic", ports=("db*",)))
    assert it.feed(b"panic\n", 1.0) == []
    assert not it.unfinished


def test_a_line_without_end_is_cut() -> None:
    it = watch()
    it.feed(b"x" * (3 * MAX_LINE) + b"panic", 1.0)
    assert len(it._rest) <= MAX_LINE
    assert it.feed(b"\n", 2.0)[0].line.endswith("panic")


@given(st.binary(max_size=300), st.lists(st.integers(0, 300)))
def test_how_output_is_cut_into_pieces_is_no_matter(data: bytes, cuts: list[int]) -> None:
    rules = {"a": Rule(pattern="a", interval=0), "esc": Rule(pattern="\\[", interval=0, context=3)}
    whole = Watch("x", rules).feed(data + b"\n", 1.0)
    it, found = Watch("x", rules), []
    places = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    for start, end in itertools.pairwise(places):
        found += it.feed(data[start:end], 1.0)
    assert found + it.feed(b"\n", 1.0) == whole


def test_a_pattern_that_would_take_years_is_given_up_and_the_others_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    it = watch(slow=Rule(pattern="(a+)+b", context=0, interval=0), panic=PANIC)
    line = b"a" * 60 + b" panic\n"
    began = time.process_time()
    assert [alert.name for alert in it.feed(line * 20, 1.0)] == ["panic"]
    assert time.process_time() - began < 2
    assert it.slow == 1
    assert "the pattern of the alert slow takes too long for what web1 says" in caplog.text
    # It is looked for again, after a while.
    assert it.feed(b"aab\n", 2.0) == []
    assert [alert.name for alert in it.feed(b"aab\n", 1.0 + PAUSE_SECONDS)] == ["slow"]
    it.feed(b"a" * 60, 100.0)
    assert it.settle(101.0) == []
    assert it.slow == 2


def test_a_pattern_that_is_slow_with_every_line_gets_its_share_and_no_more() -> None:
    it = watch(slow=Rule(pattern="x.*x.*x.*y", context=0, interval=0))
    began = time.process_time()
    for now in range(20):
        it.feed((b"x" * 300 + b"\n") * 200, float(now))
    assert it.slow == 1
    assert time.process_time() - began < 5


def test_a_long_line_in_one_piece_is_cut_as_well() -> None:
    it = watch(long=Rule(pattern=f"^.{{{MAX_LINE + 1}}}", interval=0), panic=PANIC)
    [found] = it.feed(b"x" * 10 * MAX_LINE + b"panic\n", 1.0)
    assert found.name == "panic"


class Hook:
    """A web server that keeps what it is sent."""

    def __init__(self) -> None:
        self.got: list[object] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.got.append((self.path, json.loads(body)))
                if self.path == "/moved":
                    self.send_response(307)
                    self.send_header("Location", "/other")
                else:
                    self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *_: object) -> None:  # noqa: A002
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}{path}"


def an_alert(name: str = "panic") -> Alert:
    return Alert(name, "web1", 1_700_000_000.25, "Kernel panic", ("before",), 3)


async def until(condition: object) -> None:
    async with asyncio.timeout(5):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


def test_all_who_are_to_be_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hook, flooded = Hook(), []
    syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    syslog.bind(str(tmp_path / "log"))
    syslog.settimeout(5)
    rule = Rule(pattern="x", to=("log", "syslog", "webhook", "grasp"), webhook=hook.url("/here"))

    async def main() -> None:
        notifier = Notifier({"panic": rule}, flooded.append, syslog=str(tmp_path / "log"))
        notifier.start()
        notifier.tell(an_alert())
        notifier.tell(an_alert("unknown"))
        await until(lambda: hook.got)
        await notifier.close()
        assert (notifier.told, notifier.dropped) == (1, 0)

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    with syslog:
        said = syslog.recv(1000).decode()
    assert said.startswith("<28>minerva-console[")
    assert said.endswith("]: alert panic at web1: Kernel panic (3 more since the last)")
    assert "alert panic at web1: Kernel panic" in caplog.text
    assert flooded == [an_alert()]
    assert hook.got == [
        (
            "/here",
            {
                "alert": "panic",
                "console": "web1",
                "time": "2023-11-14T22:13:20.250Z",
                "line": "Kernel panic",
                "context": ["before"],
                "suppressed": 3,
            },
        )
    ]
    hook.server.shutdown()
    hook.server.server_close()


def test_a_webhook_that_fails_or_sends_one_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    hook = Hook()
    rules = {
        "moved": Rule(pattern="x", to=("webhook",), webhook=hook.url("/moved")),
        "gone": Rule(pattern="x", to=("webhook",), webhook="http://127.0.0.1:1/"),
    }

    async def main() -> None:
        notifier = Notifier(rules, lambda _: None)
        notifier.start()
        notifier.tell(an_alert("gone"))
        notifier.tell(an_alert("moved"))
        await until(lambda: "webhook of moved" in caplog.text)
        for _ in range(MAX_WAITING + 5):
            notifier.tell(an_alert("gone"))
        assert notifier.dropped == 5
        await notifier.close()

    asyncio.run(main())
    assert "the webhook of gone took no alert: " in caplog.text
    assert [path for path, _ in hook.got] == ["/moved"]  # type: ignore[misc]
    hook.server.shutdown()
    hook.server.server_close()


def test_no_syslog_is_said_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        rule = Rule(pattern="x", to=("syslog",))
        Notifier({"panic": rule}, lambda _: None, syslog=str(tmp_path / "none")).tell(an_alert())

    asyncio.run(main())
    assert "took no alert" in caplog.text


def test_the_sink_looks_at_a_prompt_after_a_while() -> None:
    told: list[Alert] = []

    async def main() -> None:
        rule = Rule(pattern="login:", to=("grasp",))
        notifier = Notifier({"login": rule}, told.append)
        sink = AlertSink("web1", notifier)
        sink.output(b"host lo")
        await asyncio.sleep(0.3)
        sink.output(b"gin: ")
        await asyncio.sleep(0.3)
        assert not told
        await until(lambda: told)
        notifier.rules = {}
        sink.renew()
        sink.output(b"login:\n")
        sink.close()

    asyncio.run(main())
    assert [alert.line for alert in told] == ["host login:"]
