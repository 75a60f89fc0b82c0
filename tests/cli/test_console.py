"""``minerva console``, against a server that runs."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minerva.cli.console import console
from minerva.core import settings
from tests.console.serving import Serving, until

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    it = Serving(tmp_path_factory.mktemp("console"))
    it.ports["evil"] = {
        "type": "process",
        "command": ["sh", "-c", r"printf '\033]0;pwned\007\033[2Jboo\n'; exec cat"],
        "description": "a\x1b[31mb",
        "power": {"x": 1},
    }
    del it.ports["evil"]["power"]
    flag = it.directory / "on"
    it.extra = (
        "[console.ports.echo.power]\ntype = 'command'\n"
        f"on = ['touch', '{flag}']\noff = ['rm', '{flag}']\n"
        f"status = ['sh', '-c', 'test -e {flag} && echo on || echo off']\n"
    )
    it.write()
    with it:
        yield it


def test_list(serving: Serving) -> None:
    done = serving.cli("list")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^echo +Connected +0 +- +-$", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout
    assert "a\\u001b[31mb" in done.stdout
    found = json.loads(serving.cli("list", "--json").stdout)
    assert [item["name"] for item in found] == ["echo", "evil", "sh"]
    assert re.fullmatch(TIME, found[0]["changed"])


def test_send_log_search(serving: Serving) -> None:
    assert serving.cli("send", "sh", "echo", "one$(echo two)").returncode == 0
    assert serving.cli("send", "sh", "--stdin", text="echo three$(echo four)\r").returncode == 0

    def logged() -> bool:
        return "threefour" in serving.cli("log", "sh").stdout

    until(logged, "the record has it")
    found = serving.cli("search", "^(onetwo|threefour)$", "--json").stdout.splitlines()
    assert [json.loads(line)["text"] for line in found] == ["onetwo", "threefour"]
    assert serving.cli("search", "[").returncode == 2
    # The times that are shown are those that can be asked for.
    when = json.loads(found[-1])["time"]
    assert re.fullmatch(TIME, when)
    assert serving.cli("search", "threefour$", "--since", when).stdout.startswith(f"{when} sh ")
    nothing = serving.cli("search", "threefour$", "--until", "2020-01-01")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (1, "", "")
    for wrong in ("yesterday", "99999-01-01"):
        done = serving.cli("search", "x", "--since", wrong)
        assert done.returncode == 2
        assert f"'{wrong}' is not a time, such as 2" in done.stderr
    done = serving.cli("search", "x", "--console", "Shh")
    assert (done.returncode, "; did you mean sh?" in done.stderr) == (2, True)
    assert serving.cli("send", "sh").returncode == 2
    log = until(lambda: (it := serving.cli("log", "evil").stdout) and "boo" in it and it, "the record")
    assert "\x1b" not in log
    assert "\x07" not in log


def test_replay(serving: Serving) -> None:
    serving.cli("send", "echo", "--no-enter", "as it was")
    until(lambda: "as it was" in serving.cli("replay", "--speed", "1000", "echo").stdout, "the record")
    done = serving.cli("replay", "echo", "--since", "2100-01-01")
    assert (done.returncode, "echo said nothing in that time" in done.stderr) == (2, True)


def test_records_are_found_without_the_configuration(serving: Serving, tmp_path: Path) -> None:
    """By the server, which knows where they are, or by naming its directory when it does not run."""
    assert serving.cli("send", "echo", "--no-enter", "for the audit log").returncode == 0
    environment = {name: value for name, value in os.environ.items() if name != "MINERVA_CONFIG"}

    def log(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "minerva", "console", "log", "sh", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )

    for arguments in (
        ("--run-dir", str(serving.run_dir)),
        ("--run-dir", str(tmp_path), "--directory", str(serving.directory / "state")),
    ):
        done = log(*arguments)
        assert done.returncode == 0, done.stderr
        assert "* the console is up" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "minerva", "console", "audit", "verify", "--run-dir", str(serving.run_dir)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stdout.startswith("no line was altered")) == (0, True), done.stderr
    done = log("--run-dir", str(tmp_path), "--directory", str(tmp_path))
    assert (done.returncode, done.stderr) == (
        2,
        f"minerva: there are no records: {tmp_path}/records is not there\n",
    )
    if not settings.DEFAULT_FILE.exists():
        done = log("--run-dir", str(tmp_path))
        assert done.returncode == 2
        assert "name its directory with --directory, or its --config" in done.stderr


def test_a_wrong_name_is_answered_with_those_that_are_like_it(serving: Serving, tmp_path: Path) -> None:
    for command in (["attach"], ["send", "--no-enter", "--stdin"], ["break"], ["who"], ["log"], ["replay"]):
        done = serving.cli(*command, "EHCO", text="x")
        assert done.returncode, command
        assert re.search("no (console|records of) EHCO.*; did you mean echo\\?$", done.stderr.strip()), (
            command
        )
    done = serving.cli("attach", "echo", "--run-dir", str(tmp_path))
    assert (done.returncode, "start one with 'minerva console run'" in done.stderr) == (1, True)


def test_power_asks_first(serving: Serving) -> None:
    assert serving.cli("power", "echo", "status").stdout == "the machine of echo is off\n"
    done = serving.cli("power", "echo", "on", text="n\n")
    assert done.returncode != 0
    assert "switch echo on? Nobody is attached" in done.stdout
    assert serving.cli("power", "echo", "on", text="y\n").returncode == 0
    assert serving.cli("power", "echo", "status").stdout == "the machine of echo is on\n"
    assert serving.cli("power", "echo", "off", "--yes").returncode == 0
    done = serving.cli("power", "sh", "status")
    assert (done.returncode, done.stderr) == (
        1,
        "minerva: nothing is configured to switch the machine of sh\n",
    )


def test_what_is_not_there(serving: Serving, tmp_path: Path) -> None:
    done = serving.cli("send", "nothing", "x")
    assert (done.returncode, done.stderr) == (1, "minerva: there is no console nothing\n")
    done = serving.cli("list", "--run-dir", str(tmp_path))
    assert done.returncode == 1
    assert "minerva console run" in done.stderr
    done = serving.cli("list", "--domain")
    assert done.returncode == 1
    assert "no node runs" in done.stderr
    done = serving.cli("connect", "fd00::1", "2222")
    assert done.returncode == 1
    assert "minerva connect" in done.stderr
    assert serving.cli("connect", "nonsense", "2222").returncode == 2
    assert serving.cli("log", "sh", "--config", str(tmp_path / "none")).returncode == 2
    for command in ("log", "replay"):
        assert "there are no records of nothing" in serving.cli(command, "nothing").stderr


def test_status_reload_tokens(serving: Serving) -> None:
    text = serving.cli("status").stdout
    assert f"ssh    127.0.0.1  {serving.ssh_port}" in text
    assert json.loads(serving.cli("status", "--json").stdout)["consoles"]
    assert serving.cli("reload").stdout == "the consoles are the same as before\n"
    made = serving.cli("break-glass", "create", "--role", "write", "--console", "sh")
    assert re.fullmatch(r"([0-9A-Z]{5}-){4}[0-9A-Z]{5}\n", made.stdout)
    number = made.stdout[:5]
    assert "no console" not in made.stderr
    lost = serving.cli("break-glass", "create", "--console", "ech")
    assert "now there is no console for ech; did you mean echo?" in lost.stderr
    assert serving.cli("break-glass", "revoke", lost.stdout[:5]).returncode == 0
    assert number in serving.cli("break-glass", "list").stdout
    assert serving.cli("break-glass", "revoke", number).returncode == 0
    assert serving.cli("break-glass", "list").stdout == "there are no tokens\n"


class Terminal:
    """A command at a pseudoterminal."""

    def __init__(self, serving: Serving, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minerva", "console", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=dict(os.environ, MINERVA_RUN_DIR=str(serving.run_dir)),
            start_new_session=True,
        )
        os.close(slave)
        self.seen = b""

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def expect(self, wanted: bytes) -> None:
        deadline = time.monotonic() + 15
        while wanted not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, self.seen
            self.seen += os.read(self.master, 4096)
        self.seen = self.seen.partition(wanted)[2]

    def end(self) -> int:
        code = self.process.wait(15)
        os.close(self.master)
        return code


def test_attach_at_a_terminal(serving: Serving) -> None:
    """Every key goes through, commands come after the escape, others see who is there."""
    terminal = Terminal(serving, "attach", "echo")
    terminal.expect(b"[echo: InUse; you write; ^Ec? for help]")
    terminal.type(b"abc\x03\x1a\x11")
    terminal.expect(b"abc\x03\x1a\x11")
    [who] = json.loads(serving.cli("who", "--json").stdout)
    assert (who["console"], who["writing"]) == ("echo", True)
    assert "writes" in serving.cli("who", "echo").stdout
    assert serving.cli("say", "--console", "echo", "tea is\x1b[31m ready").returncode == 0
    terminal.expect(b"tea is\\u001b[31m ready]")
    done = serving.cli("send", "echo", "x")
    assert done.returncode == 1
    assert "writes to echo" in done.stderr
    assert serving.cli("send", "--force", "echo", "forced").returncode == 0
    terminal.expect(b"forced")
    terminal.type(b"\x05c.")
    assert terminal.end() == 0


def test_attach_in_a_script_is_only_the_bytes(serving: Serving) -> None:
    serving.cli("send", "echo", "--no-enter", "for scripts")
    command = [sys.executable, "-m", "minerva", "console", "attach", "echo", "--replay", "1000"]
    running = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=dict(os.environ, MINERVA_RUN_DIR=str(serving.run_dir)),
    )
    assert running.stdout is not None
    seen = b""
    while b"for scripts" not in seen:
        seen += os.read(running.stdout.fileno(), 4096)
    assert b"[" not in seen
    running.terminate()
    running.wait()
    running.stdout.close()


def test_the_document_has_all_commands() -> None:
    document = (Path(__file__).parents[2] / "docs" / "console.md").read_text()
    rows = document.partition("\n## Commands\n")[2].partition("\n## ")[0].splitlines()
    named = {found[1] for row in rows if (found := re.match(r"\| `([a-z-]+)", row))}
    assert named == set(console.commands)
