"""``minerva grasp`` as an operator types it, on a node without neighbours."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click
import pytest

from minerva.asa import AsaError, Objective, ObjectiveFlag, blocking, client
from minerva.cli import grasp as command
from minerva.cli.main import main
from tests.asa.node import node_in_thread


class Console:
    """Runs commands; one in the background is a process of its own."""

    def __init__(self, run_dir: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.run_dir = run_dir
        self.capture = capture

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Return exit code, output and errors of ``minerva grasp`` with ``arguments``."""
        self.capture.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["grasp", arguments[0], "--run-dir", str(self.run_dir), *arguments[1:]])
        output = self.capture.readouterr()
        assert isinstance(caught.value.code, int)
        assert "Traceback" not in output.err
        return caught.value.code, output.out, output.err

    def good(self, *arguments: str) -> str:
        code, output, errors = self.run(*arguments)
        assert (code, errors) == (0, "")
        return output

    def json(self, *arguments: str) -> Any:
        return json.loads(self.good(*arguments, "--json"))

    def bad(self, *arguments: str) -> tuple[int, str]:
        """Return exit code and the one sentence about what is wrong."""
        code, _, errors = self.run(*arguments)
        assert errors.count("\n") == 1
        return code, errors

    @contextmanager
    def background(self, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
        """Run a command that listens, which is ready at its first line."""
        process = subprocess.Popen(
            [sys.executable, "-m", "minerva", "grasp", *arguments],
            env=os.environ | {"MINERVA_RUN_DIR": str(self.run_dir)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with process:
            try:
                assert process.stdout.readline(), process.stderr.read() if process.stderr else ""
                yield process, process.stdout
            finally:
                process.kill()


@pytest.fixture
def console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Console]:
    with node_in_thread(tmp_path):
        yield Console(tmp_path, capsys)


def test_flood_and_what_comes_of_it(console: Console) -> None:
    assert console.good("floods") == "nothing has been flooded\n"
    assert console.json("floods") == []
    assert console.good("flood", "a:motd", '"hello"') == 'flooded a:motd = "hello", valid for 180 s\n'
    locator = ("--locator", "[fd00::9]:443")
    assert console.good("flood", "other:x", "--cbor", "d8184101", "--ttl", "0", *locator)
    assert console.good("flood", "own:x", "1", "--locator", "[fd89:b714:f3db::1]:7017")
    head, *rows = console.good("floods").splitlines()
    assert head.split() == ["NAME", "VALUE", "ORIGIN", "LOCATOR", "VALID"]
    assert [row.split()[:4] for row in rows] == [
        ["a:motd", '"hello"', "fd89:b714:f3db::1", "-"],
        ["other:x", "24(h'01')", "fd89:b714:f3db::1", "[fd00::9]:443"],
        ["own:x", "1", "fd89:b714:f3db::1", ":7017"],
    ]
    assert rows[1].endswith("for ever")
    (item,) = console.json("floods", "other:x")
    assert item == {
        "objective": "other:x",
        "loop_count": 6,
        "value": {"tag": 24, "value": {"hex": "01"}},
        "origin": "fd89:b714:f3db::1",
        "locator": "[fd00::9]:443",
        "seconds_left": None,
    }
    assert console.json("floods", "own:x")[0]["locator"] == "[fd89:b714:f3db::1]:7017"
    assert console.good("floods", "un:known") == "nothing has been flooded as 'un:known'\n"
    assert console.good("sync", "a:motd") == '"hello"\n'
    assert console.json("sync", "other:x")["value"] == {"tag": 24, "value": {"hex": "01"}}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("motd", "'motd' is no registered name"),
        ("EX10", "'EX10' is no registered name"),
        ("AN_ACP", "what nodes find each other by"),
        ("AN_Proxy", "what nodes find each other by"),
        ("EX1", ""),
        ("SRV.est", ""),
        ("example.com:motd", ""),
    ],
)
def test_names_that_are_not_ones_own(console: Console, name: str, words: str) -> None:
    code, output, errors = console.run("flood", name, "1")
    assert (code, output) == (0, f"flooded {name} = 1, valid for 180 s\n")
    assert words in errors
    assert errors.count("\n") == bool(words)


def test_a_table_fits_into_the_terminal(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    console.good("flood", "a:motd", json.dumps("x" * 100))
    long = console.good("floods")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    short = console.good("floods")
    assert max(map(len, long.splitlines())) > 80
    assert max(map(len, short.splitlines())) == 80
    assert "xx…" in short


def test_flood_again_and_again_until_interrupted(console: Console) -> None:
    with console.background("flood", "a:beat", "[1]", "--every", "1", "--json") as (process, output):
        assert json.loads(output.readline())["ttl"] == 3.5
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_listen_to_synchronize(console: Console) -> None:
    assert console.bad("sync", "uptime", "--timeout", "0.05")[0] == 1
    with console.background("listen", "uptime", "--value", '{"s": 5}') as (process, _):
        assert console.good("sync", "uptime") == '{"s": 5}\n'
        assert console.json("sync", "uptime", "--peer", "fd89:b714:f3db::1")["value"] == {"s": 5}
        (found,) = console.json("discover", "uptime", "--timeout", "0.05")
        assert found["locator"] == "[fd89:b714:f3db::1]:7017"
        assert (found["address"], found["port"], found["transport"]) == ("fd89:b714:f3db::1", 7017, "TCP")
        head, row = console.good("discover", "uptime", "--timeout", "0").splitlines()
        assert head.split() == ["LOCATOR", "VALID", "TOLD"]
        assert row.startswith("[fd89:b714:f3db::1]:7017")
        (item,) = console.json("objectives")
        assert (item["name"], item["value"], item["synchronizing"]) == ("uptime", {"s": 5}, True)
        head, row = console.good("objectives").splitlines()
        assert row.split()[0] == "uptime"
        assert row.endswith('synchronization  yes      {"s": 5}')
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert console.good("objectives") == "no program has registered an objective\n"


def test_discover_nobody(console: Console) -> None:
    assert console.bad("discover", "nothing", "--timeout", "0.05") == (
        1,
        "minerva: nobody is known to handle 'nothing'\n",
    )
    code, output, _ = console.run("discover", "nothing", "--timeout", "0", "--fresh", "--json")
    assert (code, output) == (1, "[]\n")


def test_a_negotiation_that_is_accepted(console: Console) -> None:
    with console.background("listen", "alms", "--accept", "--count", "2") as (process, output):
        assert console.good("negotiate", "alms", "410") == "we ask for 410\nagreed on 410\n"
        assert console.json("negotiate", "alms", "--cbor", "182a", "--dry") == {
            "objective": "alms",
            "agreed": 42,
            "steps": [{"by": "us", "value": 42}],
        }
        assert process.wait(10) == 0
        lines = output.read().splitlines()
        assert lines == ["1: asks for 410", "1: agreed on 410", "2: asks for 42 (dry run)", "2: agreed on 42"]


def test_a_negotiation_that_is_declined(console: Console) -> None:
    arguments = ("listen", "alms", "--decline", "--reason", "\x1b[31mtoo dear", "--json", "--count", "1")
    with console.background(*arguments) as (process, output):
        code, sentence = console.bad("negotiate", "alms", "410")
        assert (code, sentence) == (1, "minerva: the peer declined: \\u001b[31mtoo dear (declined)\n")
        assert process.wait(10) == 0
        assert [json.loads(line) for line in output.read().splitlines()] == [
            {"event": "request", "negotiation": 1, "value": 410},
            {"event": "declined", "negotiation": 1},
        ]


def test_counter_offers(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with console.background("listen", "alms", "--counter", "80") as (_, output):
        assert console.good("negotiate", "alms", "410", "--accept").splitlines() == [
            "we ask for 410",
            "the peer offers 80",
            "agreed on 80",
        ]
        assert output.readline() == "1: asks for 410\n"
        assert output.readline() == "1: is offered 80\n"
        assert output.readline() == "1: agreed on 80\n"
        assert console.json("negotiate", "alms", "85", "--accept-within", "5")["agreed"] == 80
        assert console.json("negotiate", "alms", "80")["agreed"] == 80
        code, sentence = console.bad("negotiate", "alms", "90", "--accept-within", "5", "--json")
        assert (code, sentence) == (1, "minerva: the loop count is used up (loopExhausted)\n")
        code, sentence = console.bad("negotiate", "alms", "410")
        assert (code, "declined the counter-offer 80" in sentence) == (1, True)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "code", "last"),
    [
        ("accept\n", 0, "agreed on 80"),
        ("\n", 0, "agreed on 80"),
        ("nonsense\n80\n", 0, "agreed on 80"),
        ("100\n80\n", 0, "agreed on 80"),
        ("d\n", 1, ""),
    ],
)
def test_counter_offers_are_put_to_the_user(
    console: Console, monkeypatch: pytest.MonkeyPatch, typed: str, code: int, last: str
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    with console.background("listen", "alms", "--negotiate", "--value", "80"):
        found, output, _ = console.run("negotiate", "alms", "410")
        assert found == code
        assert output.splitlines()[-1].endswith(last)


def test_sessions(console: Console) -> None:
    assert console.good("sessions") == "no sessions\n"
    objective = Objective("alms", ObjectiveFlag.F_NEG, value=1)
    path = console.run_dir / "grasp.sock"
    with blocking.Asa.connect("one", path) as one, blocking.Asa.connect("two", path) as two:
        one.register_objective(objective)
        thread = threading.Thread(target=one.listen_negotiate, args=(objective,))
        thread.start()
        while not two.discover(objective, 0):
            pass
        thread_two = threading.Thread(target=_ask, args=(two, objective))
        thread_two.start()
        thread.join()
        head, *rows = console.good("sessions").splitlines()
        assert head.split()[:3] == ["OBJECTIVE", "KIND", "ROLE"]
        assert {row.split()[2] for row in rows} == {"initiator", "responder"}
        assert len(console.json("sessions")) == 2
        one._worker.run(one._inner.grasp.close())
        thread_two.join()


def _ask(asa: blocking.Asa, objective: Objective) -> None:
    with contextlib.suppress(AsaError):
        asa.negotiate(objective)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("flood", "x", "hello"), "needs its own quotes"),
        (("flood", "x", "1", "--cbor", "01"), "not both"),
        (("flood", "x", "1", "--locator", "fd00::1"), r"[ADDRESS]:PORT"),
        (("sync", "x", "--peer", "10.0.0.1"), "IPv6 address"),
        (("sync", "x", "--peer", "[fd00::1]:99999"), "IPv6 address"),
        (("negotiate", "x"), "give the VALUE"),
        (("negotiate", "x", "1", "--accept", "--accept-within", "1"), "not both"),
        (("negotiate", "x", '"a"', "--accept-within", "1"), "needs a number"),
        (("listen", "x"), "say how to answer"),
        (("listen", "x", "--negotiate"), "say how to answer"),
        (("listen", "x", "--sync"), "say how to answer"),
        (("listen", "x", "--sync", "--accept"), "not for both"),
        (("listen", "x", "--value", "1", "--accept"), "not for both"),
        (("listen", "x", "--accept", "--counter", "1"), "not both"),
        (("listen", "x", "--accept", "--decline"), "give --accept or --decline, not both"),
        (("listen", "x", "--value", "1", "--count", "2"), "--count counts negotiations"),
        (("listen", "x", "--value", "1", "--reason", "x"), "--reason goes with --decline"),
        (("listen", "x", "--accept", "--reason", "x"), "--reason goes with --decline"),
        (("flood", "x", "back at noon"), "as in '\"back at noon\"'"),
        (("flood", "x", "[" * 14 + "]" * 14), "nested too deeply: at most 13 "),
        (("flood", "x", "1", "--locator", "[::1]:443"), "as others reach it, not '[::1]:443'"),
        (("flood", "x", "1", "--locator", "[::]:443"), "as others reach it"),
        (("flood", "x", "1", "--locator", "[ff02::1]:443"), "as others reach it"),
        (("flood", "x", "1", "--locator", "[fd00::1]:0"), "as others reach it"),
        (("listen", "x", "--counter", "{"), "is not JSON"),
    ],
)
def test_wrong_use_is_said_in_one_sentence(console: Console, arguments: tuple[str, ...], words: str) -> None:
    code, sentence = console.bad(*arguments)
    assert code == 2
    assert words in sentence


@pytest.mark.parametrize("name", ["", "x" * 256, "\u00e9" * 128])
@pytest.mark.parametrize(
    "command",
    [("discover",), ("sync",), ("flood", "1"), ("negotiate", "1"), ("listen", "--accept")],
)
def test_what_cannot_be_a_name_is_not_asked_for(
    console: Console, name: str, command: tuple[str, ...]
) -> None:
    code, _, errors = console.run(command[0], name, *command[1:])
    assert code == 2
    assert "a name has 1 to 255 bytes" in errors


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e300"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("discover", "x", "--timeout"),
        ("sync", "x", "--timeout"),
        ("flood", "x", "1", "--ttl"),
        ("flood", "x", "1", "--every"),
        ("negotiate", "x", "1", "--timeout"),
    ],
)
def test_times_that_are_none(console: Console, arguments: tuple[str, ...], number: str) -> None:
    code, _, errors = console.run(*arguments, number)
    assert code == 2
    assert f"Invalid value for '{arguments[-1]}'" in errors


def test_a_value_as_deep_as_can_be(console: Console) -> None:
    deep = "[" * 13 + "1" + "]" * 13
    console.good("flood", "a:x", deep)
    assert console.good("sync", "a:x") == f"{deep}\n"


def test_negotiating_what_is_only_synchronized(console: Console) -> None:
    words = "the peer closed the connection without an answer: nobody there negotiates 'a:x'"
    with console.background("listen", "a:x", "--value", "1"):
        arguments = ("negotiate", "a:x", "1", "--peer", "fd89:b714:f3db::1")
        assert console.bad(*arguments) == (1, f"minerva: {words}\n")


@pytest.mark.parametrize("arguments", [("floods",), ("discover", "x"), ("listen", "x", "--accept")])
def test_a_node_that_is_stuck(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.1)
    path = tmp_path / "grasp.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stuck:
        stuck.bind(str(path))
        stuck.listen(2)
        code, sentence = Console(tmp_path, capsys).bad(*arguments)
    assert code == 1
    assert f"the node does not answer on {path}" in sentence


@pytest.mark.parametrize(
    "arguments",
    [
        ("discover", "x"),
        ("sync", "x"),
        ("flood", "x", "1"),
        ("flood", "x", "1", "--every", "1"),
        ("floods",),
        ("objectives",),
        ("sessions",),
        ("negotiate", "x", "1"),
        ("listen", "x", "--accept"),
        ("listen", "x", "--value", "1"),
    ],
)
def test_without_a_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    """covers: 6.9.2-3"""
    code, sentence = Console(tmp_path, capsys).bad(*arguments)
    assert code == 1
    with pytest.raises(SystemExit) as caught:
        main(["status", "--run-dir", str(tmp_path)])
    assert caught.value.code == 1
    assert sentence == capsys.readouterr().err.replace("\n", " (noSecurity)\n")
    assert f"no node runs with the run directory {tmp_path}" in sentence
    assert "--run-dir" in sentence


def test_a_node_that_ends_while_we_listen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(tmp_path, capsys)
    for policy in (("--value", "1"), ("--accept",)):
        with node_in_thread(tmp_path):
            background = console.background("listen", "x", *policy)
            process, _ = background.__enter__()
        assert process.wait(10) == 1
        assert process.stderr is not None
        assert "noSocket" in process.stderr.read()
        background.__exit__(None, None, None)


def test_names_from_the_network_are_escaped(console: Console) -> None:
    name = "evil:\x1b]0;owned\x07"
    console.good("flood", name, json.dumps({name: name}))
    for arguments in (("floods",), ("floods", "--json"), ("sync", name), ("objectives",)):
        assert console.good(*arguments).replace("\n", "").isprintable()
    # The escape is not escaped once more.
    sentence = "minerva: nobody is known to handle 'x\\u001b'\n"
    assert console.bad("discover", "x\x1b", "--timeout", "0") == (1, sentence)


def test_a_terminal_that_lacks_a_character(console: Console) -> None:
    console.good("flood", "a:motd", '"h\u00e9llo \u2713"')
    found = subprocess.run(
        [sys.executable, "-m", "minerva", "grasp", "sync", "a:motd", "--run-dir", str(console.run_dir)],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert found.stdout == b'"h\\xe9llo \\u2713"\n'


def test_all_the_commands_are_there() -> None:
    context = click.Context(command.grasp)
    there = set(command.grasp.list_commands(context))
    assert there == {
        *("discover", "flood", "floods", "listen", "negotiate", "objectives", "sessions", "sync", "trace"),
    }
    for name in there:
        assert isinstance(command.grasp.get_command(context, name), click.Command)
