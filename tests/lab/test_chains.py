"""Certificates as they come in real networks: with intermediate CAs, other curves, other address schemes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from minerva.linux.icmp import EchoSocket
from minerva.linux.namespace import Namespace
from tests.lab.conftest import minerva
from tests.lab.test_node import ip, status

pytestmark = pytest.mark.root


@pytest.fixture
def pair() -> Iterator[tuple[Namespace, Namespace]]:
    """Two hosts with a cable from eth0 to eth0."""
    a = Namespace.create(f"lab-chain-a-{os.getpid()}")
    b = Namespace.create(f"lab-chain-b-{os.getpid()}")
    ip(a.name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b.name)
    for host in (a, b):
        for name in ("lo", "eth0"):
            ip(host.name, "link", "set", name, "up")
    yield a, b
    a.delete()
    b.delete()


def run(*arguments: object) -> None:
    result = minerva(*arguments)
    assert result.returncode == 0, result.stderr


def start(stack: ExitStack, host: Namespace, directory: Path) -> subprocess.Popen[bytes]:
    (directory / "minerva.toml").write_text('[ports]\ninclude = ["eth*"]\n')
    command = [sys.executable, "-m", "minerva", "connect", "--state-dir", str(directory / "node")]
    command += ["--run-dir", str(directory / "run"), "--config", str(directory / "minerva.toml")]
    with host.entered(), (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    stack.callback(process.wait)
    stack.callback(process.send_signal, signal.SIGTERM)
    return process


def reach(host: Namespace, source: str, destination: str) -> None:
    with host.entered():
        echo = EchoSocket(IPv6Address(source))
    for sequence in range(100):
        try:
            echo.send(IPv6Address(destination), 1, sequence, bytes(1200))
        except OSError as error:
            print(error)
        time.sleep(0.1)
        if echo.receive():
            echo.close()
            return
    raise AssertionError(f"{destination} does not answer")


@pytest.mark.parametrize(
    ("intermediates", "issue"),
    [
        (1, ["--key-type", "p384"]),
        (2, ["--scheme", "vlong8"]),
        (0, ["--scheme", "vlong16", "--key-type", "p521"]),
        (2, ["--key-type", "rsa2048"]),
    ],
)
def test_chains_keys_and_schemes(
    pair: tuple[Namespace, Namespace], tmp_path: Path, intermediates: int, issue: list[str]
) -> None:
    """With two intermediates an IKE_AUTH message does not fit into one packet.

    covers: 6.2.4-4, 6.2.4-5, 6.11.5-1, 6.2.1-5, 6.8.3.1.2-6
    """
    run("ca", "init", "acp.example", "--dir", tmp_path / "ca0")
    for level in range(intermediates):
        run("ca", "init", "--parent", tmp_path / f"ca{level}", "--dir", tmp_path / f"ca{level + 1}")
    with ExitStack() as stack:
        for name, host in zip("ab", pair, strict=True):
            (tmp_path / name).mkdir()
            run("ca", "issue", tmp_path / f"ca{intermediates}", tmp_path / name / "node", *issue)
            start(stack, host, tmp_path / name)
        found = [status(tmp_path / name, until="routed")["acp0"]["address"] for name in "ab"]
        reach(pair[0], found[0], found[1])
