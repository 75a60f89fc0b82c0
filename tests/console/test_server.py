from __future__ import annotations

import os
import re
import signal
import socket
import stat
import time
from pathlib import Path

import pytest

from minerva.console import audit_chain, client, record_search
from minerva.console.client import ConsoleClientError
from tests.console.serving import Serving, until


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    return Serving(tmp_path)


def attach(serving: Serving, console: str, mode: str = "read") -> socket.socket:
    sock = client.connect(serving.run_dir / "console.sock")
    try:
        client.ask(sock, {"command": "attach", "console": console, "mode": mode})
    except BaseException:
        sock.close()
        raise
    return sock


def read_until(sock: socket.socket, wanted: bytes) -> bytes:
    sock.settimeout(10)
    seen = b""
    while wanted not in seen:
        data = sock.recv(4096)
        assert data, seen
        seen += data
    return seen


def records(serving: Serving) -> Path:
    return serving.directory / "state" / "records"


def test_it_serves_and_ends_in_order(serving: Serving) -> None:
    with serving:
        with attach(serving, "echo", "write") as sock:
            sock.sendall(b"hello there\n")
            read_until(sock, b"hello there\n")
        directory = serving.directory / "state"
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        for path in directory.rglob("*"):
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077 or path.suffix == ".pub", path
        assert serving.stop() == 0
        assert not (serving.run_dir / "console.sock").exists()
    lines = [line.text for line in record_search.last_lines(records(serving), "echo", 10)]
    assert "hello there" in lines
    assert lines[-1] == "the record ends"
    chain = audit_chain.verify(directory / "audit.jsonl")
    assert chain.lines > 0
    assert chain.head in serving.log.read_text()
    assert "Traceback" not in serving.log.read_text()


def test_a_reload_touches_only_what_is_different(serving: Serving) -> None:
    serving.ports["gone"] = {"type": "process", "command": ["sleep", "1000"]}
    with serving:
        before = serving.consoles()
        with attach(serving, "echo", "write") as sock, attach(serving, "gone") as leaving:
            del serving.ports["gone"]
            serving.ports["new"] = {
                "type": "process",
                "command": ["cat"],
                "raw_port": serving.raw_port,
                "tools_user": "op",
            }
            serving.ports["sh"]["description"] = "another one"
            serving.extra = '[console.alerts.boo]\npattern = "boo"\n'
            serving.write()
            found = serving.ask("reload")
            assert found == {"added": ["new"], "removed": ["gone"], "changed": ["sh"], "reconnected": []}
            leaving.settimeout(10)
            while leaving.recv(4096):
                pass
            sock.sendall(b"still boo here\n")
            read_until(sock, b"still boo here\n")
            after = serving.consoles()
            assert set(after) == {"echo", "new", "sh"}
            assert after["echo"]["times_up"] == before["echo"]["times_up"] == 1
            assert after["echo"]["attached"] == 1
            with until(lambda: _connected(serving.raw_port), "the new console's port") as raw:
                raw.sendall(b"raw\n")
                read_until(raw, b"raw")
        until(lambda: "alert boo at echo: still boo here" in serving.log.read_text(), "the new alert")


def _connected(port: int) -> socket.socket | None:
    try:
        return socket.create_connection(("127.0.0.1", port))
    except ConnectionRefusedError:
        return None


def test_a_wrong_configuration_changes_nothing(serving: Serving) -> None:
    with serving:
        good = serving.config.read_text()
        serving.config.write_text(good + "\n[console.ports.bad]\ntype = 'nonsense'\n")
        with pytest.raises(ConsoleClientError, match=r"bad\.type must be one of"):
            serving.ask("reload")
        serving.config.write_text(good.replace("/state", "/elsewhere"))
        with pytest.raises(ConsoleClientError, match="directory cannot be changed"):
            serving.ask("reload")
        assert serving.process is not None
        serving.process.send_signal(signal.SIGHUP)
        until(lambda: "stays as it was: the directory" in serving.log.read_text(), "the log says it")
        assert set(serving.consoles()) == {"echo", "sh"}
        serving.config.write_text(good + "\n[console.ports.more]\ntype = 'process'\ncommand = ['cat']\n")
        serving.process.send_signal(signal.SIGHUP)
        until(lambda: "more" in serving.consoles(), "the new console")


def test_fronts_can_be_moved_and_records_switched_off(serving: Serving) -> None:
    with serving:
        moved = serving.web_port
        serving.ssh_port, serving.web_port = serving.web_port, serving.ssh_port
        serving.extra = '[console.records]\nports = ["echo"]\n'
        serving.write()
        serving.ask("reload")
        until(lambda: all(item["address"] for item in serving.ask("status")["listening"]), "they listen")
        with socket.create_connection(("127.0.0.1", moved)) as sock:
            assert read_until(sock, b"\r\n").startswith(b"SSH-2.0-Minerva")
        assert [item["recorded"] for item in serving.consoles().values()] == [True, False]
        serving.extra = ""
        serving.write()
        serving.ask("reload")
        assert [item["recorded"] for item in serving.consoles().values()] == [True, True]


def test_the_list_of_revoked_keys_is_looked_at_all_the_time(serving: Serving) -> None:
    """Also if nobody logs in; and the status says what is wrong with it."""
    path = serving.directory / "revoked"
    serving.extra = f'[console.access]\nrevoked = "{path}"\n'

    def problem() -> str:
        return str(serving.ask("status")["revoked_problem"])

    with serving:
        until(lambda: "No such file" in problem(), "it is missed")
        path.write_text("")
        until(lambda: not problem(), "it is good")
        path.write_text("nonsense")
        until(lambda: "line 1 is neither a public key" in problem(), "it is no list")
        shown = serving.cli("status").stdout
        assert "nobody can log in with a key: the list of revoked keys" in shown


def test_a_directory_that_somebody_else_can_write_in_is_refused(tmp_path: Path) -> None:
    def refused(directory: Path) -> bool:
        serving = Serving(tmp_path)
        serving.directory = directory.parent
        serving.write()
        done = serving.cli("run", "--config", str(serving.config), "--run-dir", str(tmp_path / "run"))
        return done.returncode == 1 and "has to be ours alone" in done.stderr

    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    state.chmod(0o770)
    assert refused(state)
    state.chmod(0o707)
    assert refused(state)
    assert not (state / "lock").exists()
    if os.geteuid() == 0:
        state.chmod(0o700)
        os.chown(state, 12_345, -1)
        assert refused(state)
        # Nor is one that somebody else's link shows us.
        os.chown(state, 0, -1)
        other = tmp_path / "other"
        other.mkdir()
        (other / "state").symlink_to(state)
        os.lchown(other / "state", 12_345, -1)
        assert refused(other / "state")


def test_a_second_one_is_refused(serving: Serving, tmp_path: Path) -> None:
    with serving:
        done = serving.cli("run")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("minerva: another console server runs with the dir")
        other = Serving(tmp_path / "..")
        other.run_dir = serving.run_dir
        assert serving.consoles()


def test_a_control_socket_that_somebody_removed_comes_back(serving: Serving) -> None:
    with serving:
        (serving.run_dir / "console.sock").unlink()
        until(lambda: (serving.run_dir / "console.sock").exists(), "the socket is back")
        assert set(serving.consoles()) == {"echo", "sh"}


def test_killed_under_load_and_started_again(serving: Serving) -> None:
    """The record has no hole but the time it was away, and says so."""
    count = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.002; done"
    serving.ports = {"load": {"type": "process", "command": ["sh", "-c", count]}}
    with serving:
        with attach(serving, "load") as sock:
            read_until(sock, b"line 300\r\n")
        seen = time.time()
        serving.stop(signal.SIGKILL)
        time.sleep(1)
        serving.start()
        with attach(serving, "load") as sock:
            read_until(sock, b"line 100\r\n")
        serving.stop()
    lines = list(record_search.lines(records(serving), "load"))
    gap = next(index for index, line in enumerate(lines) if "nothing was recorded for" in line.text)
    before = [line.text for line in lines[:gap] if line.kind == "|"]
    assert before == [f"line {number}" for number in range(1, len(before) + 1)]
    # What was seen more than a flush before the kill is there.
    assert len(before) >= 200
    away = float(re.search(r"for ([0-9.]+) s", lines[gap].text)[1])  # type: ignore[index]
    assert 0.9 < away < 5
    assert lines[gap].at > seen
    after = [line.text for line in lines[gap:] if line.kind == "|"]
    assert after[:100] == [f"line {number}" for number in range(1, 101)]


def test_many_who_log_in_and_a_line_that_cannot_be_opened(serving: Serving) -> None:
    """One console that is not there says why, and is no matter for the others."""
    serving.ports["none"] = {"type": "serial", "device": str(serving.directory / "none")}
    serving.write()
    serving._serves = lambda: (serving.run_dir / "console.sock").exists()  # type: ignore[method-assign]
    with serving:
        found = until(lambda: (it := serving.consoles()["none"])["state"] == "Down" and it, "it is down")
        assert "No such file" in found["reason"] or "not there" in found["reason"]
        assert serving.consoles()["echo"]["state"] == "Connected"
