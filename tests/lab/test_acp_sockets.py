"""Programs of the host with sockets of the ACP, while the host's own network is broken in every way."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from minerva.asa.sockets import AcpSocket, AcpSocketError, acp_connect, acp_datagram, acp_listener
from minerva.console import port_config
from minerva.console.backends.sol import SolBackend
from minerva.console.dialer import AcpDialer
from minerva.console.port_config import IpmiPort
from minerva.console.power import IpmiPower, PowerAction, PowerState
from minerva.lab import nodes
from tests.console.strangers import far_end, ipmi_sim_command, line, read_exactly
from tests.lab.attacker import StandingLab, run, standing_lab, until
from tests.lab.conftest import minerva

pytestmark = pytest.mark.root

PORT = 2222
ECHO = (
    "import socket\n"
    "listener = socket.socket(fileno=3)\n"
    "while True:\n"
    "    peer, _ = listener.accept()\n"
    "    peer.sendall(b'heard ' + peer.recv(100))\n"
    "    peer.close()\n"
)


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    with standing_lab("line:3", "sockets", tmp_path_factory.mktemp("labs")) as found:
        until(lambda: len(found.channels("n2")) == 2, "both links have a channel")
        yield found


def address(lab: StandingLab, node: str) -> IPv6Address:
    return IPv6Address(lab.status(node)["node"]["address"])


def say(given: AcpSocket, text: bytes) -> bytes:
    """Say something over a socket that is being connected; return the answer."""
    with given:
        given.sock.settimeout(10)
        deadline = time.monotonic() + 10
        while True:
            try:
                given.sock.sendall(text)
                break
            except BlockingIOError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        return given.sock.recv(100)


def ask(lab: StandingLab, source: str, target: str, text: bytes) -> bytes:
    given = acp_connect(address(lab, target), PORT, run_dir=lab.run_dir(source))
    assert given.address == address(lab, source)
    return say(given, text)


def test_a_program_with_an_activated_socket(lab: StandingLab) -> None:
    """It is reached from the far end, while no host has a route, an address or IPv6 left, and drops all.

    covers: 6.10-1
    """
    command = [sys.executable, "-m", "minerva", "listen", "--run-dir", str(lab.run_dir("n3")), "acp"]
    running = subprocess.Popen([*command, str(PORT), "--", sys.executable, "-c", ECHO])
    try:
        until(lambda: _listens(lab), "it listens")
        assert ask(lab, "n1", "n3", b"one") == b"heard one"
        for node in ("n1", "n2", "n3"):
            _break_host(lab, node)
        assert ask(lab, "n1", "n3", b"two") == b"heard two"
    finally:
        running.kill()
        running.wait()


def _listens(lab: StandingLab) -> bool:
    inside = lab.inside("n3").name
    return f":{PORT:04X} " in run("ip", "netns", "exec", inside, "cat", "/proc/net/tcp6")


def _break_host(lab: StandingLab, node: str) -> None:
    """Do to a host's network what people do by mistake, all of it, unless that has been done."""
    with lab.host(node).entered():
        if "inet broken" in run("nft", "list", "tables"):
            return
    where = lab.host(node).name
    run("ip", "-n", where, "-6", "route", "flush", "table", "all")
    for device in ("acp0", "eth0"):
        run("ip", "-n", where, "addr", "flush", "dev", device)
    with lab.host(node).entered():
        run("nft", "add table inet broken")
        for hook in ("input", "output", "forward"):
            run("nft", f"add chain inet broken {hook} {{ type filter hook {hook} priority 0; policy drop; }}")
    run("ip", "netns", "exec", where, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")


def test_a_bmc_in_the_acp(lab: StandingLab, tmp_path: Path) -> None:
    """Serial over LAN and power by IPMI, over UDP, while the hosts' networks are as broken as before."""
    here = address(lab, "n3")
    command = ipmi_sim_command(tmp_path, tmp_path / "near", str(here), 623)
    inside = lab.inside("n3")
    password = str(tmp_path / "password")
    dialer = AcpDialer(lab.run_dir("n1"))
    backend = SolBackend(IpmiPort(host=str(here), user="operator", password_file=password), dialer)
    power = IpmiPower(port_config.IpmiPower(host=str(here), user="operator", password_file=password), dialer)

    async def scenario() -> None:
        async with line(tmp_path) as (_, far):
            with inside.entered():
                bmc = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
            try:
                until(lambda: _has_udp(inside.name, 623), "the BMC listens")
                await backend.open()
                with far_end(far) as device:
                    device.say(b"over the ACP")
                    assert await read_exactly(backend, 12) == b"over the ACP"
                    await backend.write(b"and back")
                    assert await device.hear(8) == b"and back"
                assert await power.status() is PowerState.OFF
                await power.act(PowerAction.ON)
                assert await power.status() is PowerState.ON
                await backend.close()
            finally:
                bmc.kill()
                bmc.wait()

    for node in ("n1", "n3"):
        _break_host(lab, node)
    asyncio.run(scenario())


def _has_udp(namespace: str, port: int) -> bool:
    return f":{port:04X} " in run("ip", "netns", "exec", namespace, "cat", "/proc/net/udp6")


def test_what_is_refused(lab: StandingLab) -> None:
    """With a sentence, and without harm to what comes next."""
    run_dir = lab.run_dir("n1")
    with acp_listener(PORT + 1, run_dir=run_dir), pytest.raises(AcpSocketError, match="in use"):
        acp_listener(PORT + 1, run_dir=run_dir)
    with pytest.raises(AcpSocketError, match="GRASP"):
        acp_listener(7017, run_dir=run_dir)
    for outside in ("2001:db8::1", "fe80::1", "ff02::1", "::1"):
        with pytest.raises(AcpSocketError, match="not an address in the ACP"):
            acp_connect(IPv6Address(outside), PORT, run_dir=run_dir)
        with pytest.raises(AcpSocketError, match="not an address in the ACP"):
            acp_datagram(IPv6Address(outside), PORT, run_dir=run_dir)
    with pytest.raises(AcpSocketError, match="minerva connect"):
        acp_listener(PORT, run_dir=run_dir.parent)
    for nonsense in (b"{", b"[]", b'{"listen": "x"}', b'{"listen": 0}', b'{"connect": 3}', b"x" * 900):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(str(run_dir / "sockets.sock"))
            client.send(nonsense)
            assert b"error" in client.recv(2000)
    done = minerva("listen", "--run-dir", run_dir, "acp", "7017", "--", "true")
    assert done.returncode == 1
    assert "GRASP" in done.stderr


def test_life_ends_with_the_namespace(lab: StandingLab) -> None:
    """Who has a socket learns when the node ends: it must ask for another."""
    given = acp_listener(PORT, run_dir=lab.run_dir("n1"))
    with given:
        given.life.settimeout(20)
        [supervisor] = [item["pid"] for item in lab.status("n1")["processes"] if item["name"] == "supervisor"]
        os.kill(supervisor, 15)
        assert given.life.recv(1) == b""
    it = nodes.LabNode("n1", lab.directory / "nodes" / "n1")
    until(lambda: not nodes._processes([it]), "all its processes have ended")
    it.start(lab.host("n1"), follow_us=False)
    assert it.process is not None
    it.process.returncode = 0  # it ends with the lab, and is not waited for
    until(lambda: it.ask("status"), "it runs again")
