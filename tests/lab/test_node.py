"""One node, as its operator meets it: start, look, stop, kill, start again, and every way to get it wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from minerva.connect.state import NodeState
from minerva.linux import namespace
from minerva.linux.namespace import Namespace
from tests.lab.conftest import minerva

pytestmark = pytest.mark.root


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A CA in ``ca`` and a node directory in ``node``."""
    assert minerva("ca", "init", "acp.example", "--dir", tmp_path / "ca").returncode == 0
    assert minerva("ca", "issue", tmp_path / "ca", tmp_path / "node").returncode == 0
    return tmp_path


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A host of its own with two ports, eth0 and eth1, wired to each other."""
    where = Namespace.create(f"lab-test-{os.getpid()}")
    ip = ["ip", "-n", where.name]
    subprocess.run([*ip, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1"], check=True)
    for name in ("lo", "eth0", "eth1"):
        subprocess.run([*ip, "link", "set", name, "up"], check=True)
    yield where
    where.delete()


@contextmanager
def node(host: Namespace, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A running node with its log in ``log``; killed in the end if it still runs."""
    (directory / "minerva.toml").write_text('[ports]\ninclude = ["eth*"]\n')
    command = [sys.executable, "-m", "minerva", "connect", "--state-dir", str(directory / "node")]
    command += ["--run-dir", str(directory / "run"), "--config", str(directory / "minerva.toml")]
    with host.entered(), (directory / "log").open("ab") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def status(directory: Path, *, until: str = "acp0") -> dict[str, Any]:
    """Return the node's status once it has reached the milestone ``until``."""
    for _ in range(100):
        result = minerva("status", "--run-dir", directory / "run", "--json")
        if result.returncode == 0:
            found = json.loads(result.stdout)
            if until in found["milestones"]:
                assert isinstance(found, dict)
                return found
        time.sleep(0.1)
    raise AssertionError(f"no {until} within 10 seconds: {result.stderr}")


def ip(where: str, *arguments: str) -> str:
    """Return what ``ip`` says in a namespace."""
    return subprocess.run(["ip", "-n", where, *arguments], capture_output=True, text=True, check=True).stdout


def left_in(host: Namespace, directory: Path) -> list[str]:
    """Return what of the node of ``directory`` is left in the host."""
    state = NodeState(directory / "node")
    state.close()
    ruleset = ["ip", "netns", "exec", host.name, "nft", "list", "ruleset"]
    found = namespace.names(state.namespace_prefix)
    found += re.findall(r"acp0", ip(host.name, "link"))
    found += re.findall(r".*proto 197.*", ip(host.name, "-6", "rule"))
    tables = subprocess.run(ruleset, capture_output=True, text=True, check=True).stdout
    found += re.findall(r"table inet minerva\S*", tables)
    return found


def test_what_status_says_is_what_the_kernel_has(host: Namespace, directory: Path) -> None:
    """
    covers: 6.10-1, 6.11-1, 6.13.5.1-1, 6.12.1.11-2, 6.11.3-1, 6.13.2-1
    """
    with node(host, directory) as process:
        # acp0 may be there before the ports are.
        wait_for_ports(directory, {"eth0", "eth1"})
        found = status(directory)
        acp = found["acp0"]
        assert acp["guard"] == "in place"
        addresses = ip(host.name, "-6", "addr", "show", "dev", "acp0")
        assert f"{acp['address']}/128" in addresses
        routes = ip(host.name, "-6", "route", "show", "table", "7017")
        assert f"{acp['prefix']} via fe80::1 dev acp0 proto 197 src {acp['address']}" in routes
        own = found["node"]["address"]
        inside = acp["namespace"]
        assert f"{own}/128" in ip(inside, "-6", "addr", "show", "dev", "lo")
        assert f"blackhole {own}/127" in ip(inside, "-6", "route").replace(f"blackhole {own} ", "")
        ports = {port["name"]: port for port in found["ports"]}
        assert ports["lo"]["state"] == "left out"
        assert ports["acp0"]["problem"] == "it is Minerva's own"
        for name in ("eth0", "eth1"):
            assert f"{ports[name]['link_local']}/64" in ip(ports[name]["namespace"], "-6", "addr")
        # As text, for people.
        text = minerva("status", "--run-dir", directory / "run").stdout
        assert own in text
        assert "Neighbours" in text
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert left_in(host, directory) == []


def test_ports_come_and_go(host: Namespace, directory: Path) -> None:
    with node(host, directory) as process:
        status(directory, until="link_ready")
        ip(host.name, "link", "add", "eth7", "type", "veth", "peer", "name", "eth8")
        ip(host.name, "link", "set", "eth7", "up")
        ip(host.name, "link", "set", "eth8", "up")
        before = wait_for_ports(directory, {"eth0", "eth1", "eth7", "eth8"})
        ip(host.name, "link", "del", "eth7")
        wait_for_ports(directory, {"eth0", "eth1"})
        ip(host.name, "link", "set", "eth0", "down")
        found = wait_for_ports(directory, {"eth0", "eth1"}, state="no carrier")
        ip(host.name, "link", "set", "eth0", "up")
        after = wait_for_ports(directory, {"eth0", "eth1"}, state="up")
        assert after["eth0"]["link_local"] == before["eth0"]["link_local"] == found["eth0"]["link_local"]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert left_in(host, directory) == []


def wait_for_ports(directory: Path, names: set[str], state: str = "up") -> dict[str, Any]:
    ports: dict[str, Any] = {}
    for _ in range(60):
        ports = {
            port["name"]: port
            for port in status(directory, until="link_ready")["ports"]
            if port["state"] != "left out"
        }
        if set(ports) == names and all(port["state"] == state for port in ports.values()):
            return ports
        time.sleep(0.1)
    raise AssertionError(f"ports are {ports}")


def test_acp0_is_put_back_whatever_the_host_does_to_it(host: Namespace, directory: Path) -> None:
    with node(host, directory) as process:
        acp = status(directory)["acp0"]
        damages = [
            ["ip", "-n", host.name, "link", "del", "acp0"],
            ["ip", "-n", host.name, "link", "set", "acp0", "down"],
            ["ip", "-n", host.name, "-6", "addr", "flush", "dev", "acp0"],
            ["ip", "-n", host.name, "-6", "rule", "del", "pref", "1"],
        ]
        for damage in damages:
            subprocess.run(damage, check=True)
            wait_until_whole(host, acp)
        flush = ["ip", "netns", "exec", host.name, "nft", "flush", "ruleset"]
        subprocess.run(flush, check=False, capture_output=True)
        listing = ["ip", "netns", "exec", host.name, "nft", "list", "tables"]
        tables = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
        assert "table inet minerva_" in tables, "the guard is owned: it survives"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert left_in(host, directory) == []


def wait_until_whole(host: Namespace, acp: dict[str, Any]) -> None:
    for _ in range(150):
        links = ip(host.name, "-o", "link")
        if (
            "acp0" in links
            and f"{acp['address']}/128" in ip(host.name, "-6", "addr", "show", "dev", "acp0")
            and "lookup 7017" in ip(host.name, "-6", "rule")
            and "dev acp0" in routes_of(host)
        ):
            return
        time.sleep(0.1)
    raise AssertionError("acp0 was not put back")


def routes_of(host: Namespace) -> str:
    command = ["ip", "-n", host.name, "-6", "route", "show", "table", "7017"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_after_kill_minus_nine_the_next_start_cleans_up(host: Namespace, directory: Path) -> None:
    with node(host, directory) as process:
        first = status(directory)
        process.kill()
        process.wait()
        time.sleep(0.3)
        assert len(left_in(host, directory)) >= 4, "a kill leaves things, and the guard over them"
        assert "table inet minerva_" in "".join(left_in(host, directory))
    with node(host, directory) as process:
        status(directory, until="link_ready")
        second = status(directory)
        for found in (first, second):
            del found["acp0"]["firewall"]  # what it counts is another matter
        assert second["acp0"] == first["acp0"]
        assert len(namespace.names(f"minerva-{second['node']['tag']}-")) == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert left_in(host, directory) == []


def test_children_are_started_again(host: Namespace, directory: Path) -> None:
    with node(host, directory) as process:
        found = status(directory)
        victims = {"signer", "abutment", "data-plane", "plane"}
        pids = {item["name"]: item["pid"] for item in found["processes"]}
        for name in victims:
            os.kill(pids[name], signal.SIGKILL)
        for _ in range(100):
            now = {item["name"]: item for item in status(directory)["processes"]}
            if all(now[name]["pid"] not in (None, pids[name]) for name in victims):
                break
            time.sleep(0.1)
        assert all(now[name]["restarts"] == 1 for name in victims)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert left_in(host, directory) == []


def test_two_nodes_cannot_share_a_state_directory(host: Namespace, directory: Path) -> None:
    with node(host, directory):
        status(directory, until="link_ready")
        second = minerva("connect", "--state-dir", directory / "node", "--run-dir", directory / "run2")
        assert second.returncode == 2
        assert "already runs" in second.stderr.splitlines()[-1]
    cleanup(host, directory)


def cleanup(host: Namespace, directory: Path) -> None:
    """Start and stop a node, which removes what a killed one left."""
    with node(host, directory) as process:
        status(directory, until="link_ready")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert left_in(host, directory) == []


def refused(directory: Path, *words: str, state: str = "node") -> None:
    """Check that ``minerva connect`` refuses ``state`` with one sentence that has ``words`` in it."""
    result = minerva("connect", "--state-dir", directory / state, "--run-dir", directory / "run")
    assert result.returncode in (1, 2)
    assert "Traceback" not in result.stderr
    sentence = result.stderr.strip().splitlines()[-1]
    assert sentence.startswith("minerva: ")
    for word in words:
        assert word in sentence


def test_directories_that_cannot_be_used(directory: Path) -> None:
    """
    covers: 6.0-1, 6.2.2-2
    """
    refused(directory, "none", "minerva ca issue", state="none")
    for file in ("cert.pem", "key.pem", "anchors.pem"):
        shutil.copytree(directory / "node", directory / f"without-{file}")
        (directory / f"without-{file}" / file).unlink()
        refused(directory, file, state=f"without-{file}")
    minerva("ca", "issue", directory / "ca", directory / "no-address", "--no-address")
    refused(directory, "address", state="no-address")
    minerva("ca", "init", "other.example", "--dir", directory / "other-ca")
    minerva("ca", "issue", directory / "other-ca", directory / "other")
    shutil.copytree(directory / "node", directory / "foreign")
    shutil.copy(directory / "other" / "cert.pem", directory / "foreign" / "cert.pem")
    refused(directory, state="foreign")
    shutil.copytree(directory / "node", directory / "wrong-key")
    shutil.copy(directory / "other" / "key.pem", directory / "wrong-key" / "key.pem")
    refused(directory, "does not belong to the certificate", state="wrong-key")
    shutil.copytree(directory / "node", directory / "open-key")
    (directory / "open-key" / "key.pem").chmod(0o644)
    refused(directory, "chmod 600", state="open-key")


def test_status_without_a_node_says_what_to_do(tmp_path: Path) -> None:
    result = minerva("status", "--run-dir", tmp_path)
    assert result.returncode == 1
    assert "no node runs" in result.stderr
    assert "minerva connect" in result.stderr


def test_without_root_one_sentence(directory: Path) -> None:
    program = (
        "import os, sys, minerva.cli.connect, minerva.connect.node; from minerva.cli.main import main; "
        "os.setgid(65534); os.setuid(65534); main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, "connect", "--state-dir", str(directory / "node")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.strip().endswith("run it as root")
    assert len(result.stderr.strip().splitlines()) == 1
