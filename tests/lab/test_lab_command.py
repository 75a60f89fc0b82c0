"""The lab as a command: what it refuses, what it says when it fails, and that it removes all of its own."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minerva.connect import config, control
from minerva.core.errors import UsageError
from minerva.lab import topology as topologies
from minerva.lab.lab import Lab, directory_of, down, nodes_of, open_node, standing
from minerva.lab.network import host_namespace, make_room_for_files, namespace_prefix
from minerva.lab.nodes import LabNode, node_config
from minerva.lab.topology import Node, parse_topology, topology_from_toml
from minerva.linux import namespace
from minerva.linux.namespace import Namespace
from tests.lab.conftest import lab_run, minerva, node_processes

NAME = f"lc{os.getpid()}"


@pytest.fixture
def labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for labs of this test alone."""
    monkeypatch.setenv("MINERVA_LAB_DIR", str(tmp_path / "labs"))
    return tmp_path / "labs"


def until(condition: Callable[[], Any], what: str, *, seconds: float = 30.0) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} seconds still not: {what}"
        time.sleep(0.02)


# --- names and places --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/", "a/b", "a_b", "A", "-a", "a\n", "a" * 21, "é"])
def test_a_name_that_could_be_a_path_is_refused_everywhere(labs: Path, name: str) -> None:
    (labs / "other" / "nodes").mkdir(parents=True)
    for use in (
        directory_of,
        down,
        nodes_of,
        lambda name: open_node(name, "n1"),
        lambda name: Lab(parse_topology("line:2"), name),
    ):
        with pytest.raises(UsageError, match="a lab cannot be called"):
            use(name)
    assert standing() == ["other"]


def test_only_what_is_a_lab_is_removed(labs: Path) -> None:
    (labs / "home" / "user").mkdir(parents=True)
    (labs / NAME).mkdir()
    (labs / "file").write_text("")
    assert standing() == [NAME]
    for name in ("home", "file"):
        with pytest.raises(UsageError, match=f"there is no lab called '{name}' \\(standing: {NAME}\\)"):
            down(name)
    down(NAME)  # made by a command that was killed at once
    assert sorted(path.name for path in labs.iterdir()) == ["file", "home"]


def test_names_of_namespaces_do_not_run_into_each_other() -> None:
    assert not namespace_prefix("a-b").startswith(namespace_prefix("a"))
    hosts = {host_namespace(lab, node) for lab in ("a", "a-b", "a-b-c") for node in ("c", "b-c", "lan1")}
    assert len(hosts) == 9


@pytest.mark.parametrize(
    ("place", "words"),
    [("/proc/x", "cannot make the directory /proc/x/lab"), ("/proc/" + "x" * 90, "too long for the sockets")],
)
def test_places_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, place: str, words: str) -> None:
    monkeypatch.setenv("MINERVA_LAB_DIR", place)
    with pytest.raises(UsageError, match=words):
        Lab(parse_topology("line:2"), "lab")


def test_a_run_directory_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot talk to the node on .*: AF_UNIX path too long"):
        control.call(tmp_path / ("x" * 120), {"command": "status"})


def test_a_large_lab_gets_the_files_it_needs() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        make_room_for_files(parse_topology("line:2"))
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1024
        make_room_for_files(parse_topology("ring:500"))
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(4000, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# --- settings of nodes -------------------------------------------------------------------------------------


def test_the_topology_in_the_documentation_is_one(labs: Path) -> None:
    """The example of the module's docstring, whose settings a node takes."""
    assert topologies.__doc__ is not None
    example = textwrap.dedent(topologies.__doc__.split("::\n", 1)[1])
    lab = Lab(topology_from_toml(example, "example"), "lab")
    assert set(lab.nodes) == {"a", "b", "c", "d"}
    assert (labs / "lab").is_dir()


def test_settings_reach_the_node() -> None:
    settings = {"log_level": "debug", "rpl": {"root": True}, "ports": {"exclude": ["eth1", 'a"ö\\']}}
    text = node_config(Node("a", settings), Path("/keys"), "here")
    found = config.parse(text, "there")
    assert found.log_level == "debug"
    assert found.rpl.root
    assert found.ports == config.Ports(include=("eth*",), exclude=("eth1", 'a"ö\\'))
    assert found.debug.key_log == "/keys"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("registrar = true", "nodes.a: there is no setting 'registrar'; there are: acp,"),
        ("ports = 3", "nodes.a.ports must be a table"),
        ("rpl.root = 1", "nodes.a.rpl.root must be true or false"),
        ("rpl.acp.interface = 'x'", "nodes.a.rpl: there is no setting 'acp'"),
        ("log_level = 2026-01-01", "log_level must be one of"),
        ("debug = [{x = 1}]", "nodes.a.debug must be a table"),
        ('"a b" = 3', "nodes.a: there is no setting 'a b'"),
        ("rpl.root = nan", "not TOML"),
    ],
)
def test_settings_that_no_node_has_are_refused_before_anything_is_made(
    labs: Path, settings: str, words: str
) -> None:
    wanted = topology_from_toml(f'links = [["a", "b"]]\n[nodes.a]\n{settings}', "net")
    with pytest.raises(UsageError) as caught:
        Lab(wanted, "lab")
    assert words in str(caught.value)
    assert str(caught.value).startswith("topology net: nodes.a")
    assert not labs.exists()


# --- what is said on failure -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (None, "it left no log"),
        ("", "it left no log"),
        ("one\ntwo\n", "two"),
        ("minerva: wrong\ntwo\n", "wrong"),
        ("signer error: bad\ntwo\n", "signer error: bad"),
    ],
)
def test_last_words(tmp_path: Path, log: str | None, words: str) -> None:
    node = LabNode("a", tmp_path)
    if log is not None:
        node.log_file.write_text(log)
    assert node.last_words() == words


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where logs are kept."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.mark.root
def test_a_failure_is_one_object_too_and_the_logs_are_kept(logs: Path) -> None:
    found = lab_run("line:2", "--name", NAME, "--timeout", "1e-3", "--cut", "n1-n2")
    assert found["exit_code"] == 1
    assert (found["nodes"], found["links"], found["pairs_total"]) == (2, 1, 2)
    assert (found["channels"], found["pairs_reachable"]) == (0, 0)
    assert found["seconds"] is found["heal_seconds"] is None
    assert found["error"] == "only 0 of 2 pairs of nodes reach each other after 0.001 seconds"
    (kept,) = logs.glob(f"minerva-lab-{NAME}-*")
    assert sorted(path.name for path in kept.iterdir()) == ["n1.log", "n2.log"]
    assert str(kept) in found["stderr"]
    assert found["stderr"].splitlines()[-1] == f"minerva: {found['error']}"


@pytest.mark.root
def test_a_failure_while_building_is_one_object_too() -> None:
    found = lab_run("lan:2", "--name", NAME, "--pcap", "/proc/none")
    assert found["exit_code"] == 1
    assert found["error"].startswith("cannot write captures to /proc/none")
    assert found["seconds"] is None
    assert found["phases"]["routed"] is None


@pytest.mark.root
@pytest.mark.parametrize("moment", ["nodes", "nodes/n2/run/control.sock"])
def test_signals_do_not_keep_it_from_tidying_up(labs: Path, moment: str) -> None:
    command = [sys.executable, "-m", "minerva", "lab", "run", "line:2", "--name", NAME, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until((labs / NAME / moment).exists, f"{moment} is there")
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
            time.sleep(0.05)  # a signal that is still pending is not sent twice
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1, stderr
    assert json.loads(stdout)["error"] == "interrupted; the lab is torn down"
    assert stderr.splitlines()[-1] == "minerva: interrupted; the lab is torn down"
    assert namespace.names(namespace_prefix(NAME)) == []
    assert list(labs.iterdir()) == []


# --- after a crash -----------------------------------------------------------------------------------------


@pytest.fixture
def neighbour() -> Iterator[str]:
    """A namespace of a lab whose name begins with that of ours."""
    where = Namespace.create(host_namespace(f"{NAME}-a", "n1"))
    yield where.name
    where.delete()


@pytest.mark.root
def test_down_after_a_crash(labs: Path, neighbour: str) -> None:
    """One node was killed and its guard lives, the other does not answer any more."""
    up = minerva("lab", "up", "lan:2", "--name", NAME, "--json")
    assert up.returncode == 0, up.stderr
    assert json.loads(up.stdout)["name"] == NAME
    again = minerva("lab", "run", "line:2", "--name", NAME)
    assert (again.returncode, again.stdout) == (2, "")
    assert f"'minerva lab down {NAME}'" in again.stderr
    nodes = nodes_of(NAME)
    assert list(nodes) == ["n1", "n2"]
    status = nodes["n1"].ask("status")
    assert status is not None
    supervisor = next(item["pid"] for item in status["processes"] if item["name"] == "supervisor")
    os.kill(supervisor, signal.SIGKILL)
    nodes["n2"].control_socket.unlink()

    result = minerva("lab", "down", NAME)
    assert (result.returncode, result.stderr) == (0, f"lab {NAME} is gone\n")
    assert standing() == []
    assert [pid for pid, mine in node_processes().items() if mine] == []
    assert namespace.names(namespace_prefix(NAME)) == []
    assert namespace.names(neighbour) == [neighbour]

    # And what is left when the directory is lost, too.
    Namespace.create(host_namespace(NAME, "n1")).close()
    with pytest.raises(UsageError, match="what a crash left of one"):
        Lab(parse_topology("line:2"), NAME)
    assert minerva("lab", "down", NAME).returncode == 0
    assert namespace.names(namespace_prefix(NAME)) == []
    assert not (labs / NAME).exists()
