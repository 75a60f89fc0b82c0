"""The command as a whole: what goes wrong is one sentence and an exit code."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from minerva.asa.inventory import Description
from minerva.cli import inventory, main, node, options
from minerva.cli.main import cli
from minerva.connect import control
from minerva.core.errors import MinervaError, UsageError
from minerva.lab.nodes import LabNode
from minerva.linux.namespace import Namespace


def minerva(*arguments: str | Path, redirect: str = "") -> subprocess.CompletedProcess[str]:
    command = f'exec "$@" {redirect}'
    return subprocess.run(
        ["/bin/sh", "-c", command, "sh", sys.executable, "-m", "minerva", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["grasp", "--help"], ["--version"], ["lab", "run", "-h"]])
def test_a_full_disk(arguments: list[str]) -> None:
    found = minerva(*arguments, redirect=">/dev/full")
    assert (found.returncode, found.stderr) == (1, "minerva: No space left on device\n")


def test_a_full_disk_and_a_file(tmp_path: Path) -> None:
    assert minerva("ca", "init", "example.com", "--dir", tmp_path / "ca").returncode == 0
    assert minerva("ca", "issue", tmp_path / "ca", tmp_path / "node").returncode == 0
    found = minerva("ca", "list", tmp_path / "ca", redirect=">/dev/full")
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert "No space left on device" in found.stderr


def test_without_standard_output(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no capture")
    found = minerva("grasp", "trace", tmp_path / "x", redirect=">&-")
    assert (found.returncode, found.stderr) == (1, "minerva: neither a pcap nor a pcapng file\n")
    found = minerva("ca", "init", "example.com", "--dir", tmp_path / "ca", redirect=">&-")
    assert (found.returncode, found.stderr) == (0, "")


def test_a_reader_that_goes_is_nobodys_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        found = subprocess.run(
            [sys.executable, "-m", "minerva", "--help"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert (found.returncode, found.stderr) == (1, "")


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UsageError("that cannot be"), 2, "minerva: that cannot be\n"),
        (MinervaError("it failed"), 1, "minerva: it failed\n"),
        (OSError(errno.EIO, "Input/output error"), 1, "minerva: Input/output error\n"),
        (OSError(errno.EACCES, "Permission denied", "/x"), 1, "minerva: /x: Permission denied\n"),
        (OSError("odd"), 1, "minerva: odd\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, ""),
        (KeyboardInterrupt(), 130, "\nminerva: interrupted\n"),
        (click.UsageError("no such option"), 2, "Error: no such option\n"),
        (click.ClickException("it failed"), 1, "minerva: it failed\n"),
        (
            ModuleNotFoundError("No module", name="sqlalchemy.engine"),
            1,
            "minerva: registrar and MASA need more libraries: pip install 'minerva-acp[registrar]'\n",
        ),
    ],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    sentence: str,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "invoke", fail)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # click replaces them when a pipe breaks
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    with pytest.raises(SystemExit) as caught:
        main.main(["status"])
    assert caught.value.code == code
    assert capsys.readouterr().err.endswith(sentence)


def test_a_namespace_that_is_mounted_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minerva.linux.namespace.RUN_NETNS", tmp_path)
    (tmp_path / "acp").touch()  # what 'ip netns' leaves to be seen where its mount is not
    where = Namespace("acp")
    with pytest.raises(MinervaError, match="another mount namespace"):
        node.exec_in(where, ("true",))
    where.close()


def test_a_namespace_that_there_is_not() -> None:
    status = {
        "acp0": {"namespace": "mnv-1-acp"},
        "ports": [{"name": "eth0", "namespace": "mnv-1-eth0"}, {"name": "eth1"}],
    }
    with pytest.raises(UsageError) as caught:
        control.node_namespace(status, "foo", "node n1")
    words = "node n1 has no namespace 'foo'; besides that of its host it has acp, link:eth0"
    assert str(caught.value) == words


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-inf", "1e999", "x", "-1"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(click.BadParameter):
        options.FiniteRange(0).convert(text, None, None)


@pytest.mark.parametrize("timeout", ["nan", "inf", "-1", "0"])
@pytest.mark.parametrize("command", ["run", "up"])
def test_a_lab_waits_for_a_time(command: str, timeout: str) -> None:
    result = CliRunner().invoke(cli, ["lab", command, "line:2", "--timeout", timeout])
    assert result.exit_code == 2
    assert "Invalid value for '--timeout'" in result.stderr


@pytest.mark.parametrize("group", [[], ["ca"], ["grasp"], ["lab"]])
def test_no_summary_is_cut(group: list[str]) -> None:
    text = CliRunner().invoke(cli, [*group, "--help"], terminal_width=80).stdout
    assert "Commands:" in text
    assert "..." not in text.partition("Commands:")[2]


def test_lab_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {name: LabNode(name, tmp_path / name) for name in ("a", "b")}
    answers: dict[str, Any] = {
        "a": {"acp0": {"address": "fd00::1"}, "channels": [{"interface": "acp_1"}]},
        "b": None,
    }
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("minerva.lab.lab.nodes_of", lambda _: nodes)
    monkeypatch.setattr(LabNode, "ask", lambda self, _: answers[self.name])
    for arguments in ((), ("--json",)):
        result = CliRunner().invoke(cli, ["lab", "status", "x", *arguments])
        assert isinstance(result.exception, MinervaError)
        assert not isinstance(result.exception, UsageError)
        assert str(result.exception) == "not every node of lab x answers: b not"
    answered = CliRunner().invoke(cli, ["lab", "status", "x"]).stdout
    assert answered.splitlines() == [
        "lab x: 2 nodes",
        "  a: fd00::1, channels: acp_1",
        f"  b: does not answer; its log is {tmp_path}/b/log",
        f"The log of a node is {tmp_path}/NODE/log",
    ]
    answers["b"] = answers["a"]
    assert CliRunner().invoke(cli, ["lab", "status", "x"]).exit_code == 0


def test_machines_that_do_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def take(*_: Any, **__: Any) -> list[inventory.Machine]:
        return [
            inventory.Machine("fd00::1", Description("one", "1", uptime=5), None),
            inventory.Machine("fd00::2", Description("t\x1bo", "1"), "no reply"),
        ]

    monkeypatch.setattr(inventory, "take_inventory", take)
    result = CliRunner().invoke(cli, ["inventory", "--run-dir", str(tmp_path)])
    head, one, two, problem = result.stdout.splitlines()
    assert head.split()[-1] == "UPTIME"
    assert one.split()[-1] == "00:00:05"
    assert two.split()[-1] == "-"
    assert problem == "t\\u001bo (fd00::2): no reply"
