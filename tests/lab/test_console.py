"""Consoles over the ACP, while the host's own network is broken in every way, on all nodes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from minerva.asa.sockets import acp_listener
from minerva.lab import console_act
from minerva.lab.lab import Lab
from minerva.lab.topology import parse_topology
from tests.lab.conftest import minerva

pytestmark = pytest.mark.root


async def with_lab(name: str, do: object) -> None:
    lab = Lab(parse_topology("line:3"), name)
    try:
        await lab.build()
        lab.start(follow_us=True)
        await lab.reach_all(90, lambda _: None)
        await do(lab)  # type: ignore[operator]
    finally:
        await lab.close()


def test_an_operator_reaches_a_console_when_all_networks_are_broken() -> None:
    """As the demo shows it: from one end of the line to the other, with no data plane anywhere."""
    noted: list[str] = []

    async def do(lab: Lab) -> None:
        act = await console_act.console_act(lab, note=noted.append)
        assert (act.operator, act.server) == ("n1", "n3")
        assert act.left == {"n1": [], "n2": [], "n3": []}
        assert any(line.startswith(console_act.EXPECTED) for line in act.transcript)
        assert len(noted) == 3

    asyncio.run(with_lab("console-act", do))


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs OpenSSH's client")
def test_openssh_through_the_acp(tmp_path: Path) -> None:
    """ssh with a ProxyCommand, the list of the domain, a node that starts again, records that go on."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    public = key.with_suffix(".pub").read_text().strip()

    async def do(lab: Lab) -> None:
        operator, server = lab.nodes["n1"], lab.nodes["n3"]
        host = lab.network.hosts["n3"]
        async with console_act.console_server(server, host, {"alice": public}) as config:
            address = await console_act.announced(operator, console_act.CONSOLE)
            for each in lab.network.hosts.values():
                console_act.break_host(each)
            listed = await asyncio.to_thread(
                minerva, "console", "list", "--domain", "--json", "--run-dir", operator.run_dir
            )
            [found] = json.loads(listed.stdout)
            assert found["console"] == console_act.CONSOLE
            assert found["address"] == str(address)
            assert found["node"] == "n3"

            def begin(*command: str, port: int = console_act.PORT) -> subprocess.Popen[bytes]:
                proxy = f"{sys.executable} -m minerva console connect --run-dir {operator.run_dir} %h %p"
                options = [
                    *("-o", f"ProxyCommand={proxy}", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes"),
                    *("-o", f"UserKnownHostsFile={tmp_path / 'known'}", "-o", "IdentitiesOnly=yes"),
                    *("-i", str(key), "-p", str(port), "-l", f"alice:{console_act.CONSOLE}"),
                ]
                with lab.network.hosts["n1"].entered():
                    return subprocess.Popen(
                        ["ssh", "-F", "none", *options, str(address), *command],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                    )

            def ssh(*command: str, port: int = console_act.PORT) -> subprocess.CompletedProcess[bytes]:
                running = begin(*command, port=port)
                out, err = running.communicate(b"", 60)
                return subprocess.CompletedProcess(command, running.returncode, out, err)

            sent = ssh("send", "echo", "it", "is", "a$(echo live)")
            assert sent.returncode == 0, sent.stderr
            await until_recorded(config, "it is alive")
            await front_moves(server.run_dir, config, begin, ssh)
            # The node starts again: the server gets new sockets, and the console has missed nothing.
            assert server.process is not None
            server.process.terminate()
            await asyncio.to_thread(server.process.wait)
            server.start(host, follow_us=True)
            deadline = time.monotonic() + 60
            while (done := ssh("send", "echo", "and", "a$(echo gain)")).returncode != 0:
                assert time.monotonic() < deadline, done.stderr
                await asyncio.sleep(0.5)
            await until_recorded(config, "and again")

    asyncio.run(with_lab("console-ssh", do))


async def front_moves(
    run_dir: Path,
    config: Path,
    begin: Callable[..., subprocess.Popen[bytes]],
    ssh: Callable[..., subprocess.CompletedProcess[bytes]],
) -> None:
    """Have SSH move to another port of the ACP and back, while a session goes on."""
    port, other = console_act.PORT, console_act.PORT + 1
    text = config.read_text()

    async def reload() -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(minerva, "console", "reload", "--run-dir", run_dir)

    async def moves(session: subprocess.Popen[bytes]) -> None:
        assert session.stdin is not None

        async def typed(number: str) -> None:
            session.stdin.write(f"echo still h'ere {number}'\r".encode())  # type: ignore[union-attr]
            session.stdin.flush()  # type: ignore[union-attr]
            await until_recorded(config, f"still here {number}")

        await typed("one")
        config.write_text(text.replace(f"port = {port}", f"port = {other}"))
        with acp_listener(other, run_dir=run_dir):
            done = await reload()
            assert (done.returncode, done.stdout) == (1, "")
            assert (
                f"cannot listen on acp port {other}: port {other} in the ACP: Address already in use"
                in done.stderr
            )
            assert (await asyncio.to_thread(ssh, "list")).returncode == 0
        done = await reload()
        assert done.returncode == 0, done.stderr
        await typed("two")
        moved = await asyncio.to_thread(ssh, "who", port=other)
        assert moved.returncode == 0, moved.stderr
        assert b"alice" in moved.stdout
        assert (await asyncio.to_thread(ssh, "list")).returncode == 255
        config.write_text(text)
        done = await reload()
        assert done.returncode == 0, done.stderr
        await typed("three")

    with begin("write") as session:
        try:
            await moves(session)
        finally:
            session.kill()


ALERTS = """
[console.alerts.panic]
pattern = "Kernel panic"
to = ["grasp"]
interval = 0
[console.alerts.fire]
pattern = "on fire"
to = ["grasp", "log"]
"""


def test_an_alert_is_heard_in_the_whole_domain() -> None:
    """What a machine says at one end of the line is known at the other, without any data plane."""

    async def do(lab: Lab) -> None:
        server, host = lab.nodes["n3"], lab.network.hosts["n3"]

        async def say(text: str) -> None:
            done = await asyncio.to_thread(
                minerva, "console", "send", console_act.CONSOLE, text, "--run-dir", server.run_dir
            )
            assert done.returncode == 0, done.stderr

        async def heard(node: str, wanted: list[tuple[str, str]]) -> list[dict[str, str]]:
            deadline = time.monotonic() + 30
            while True:
                done = await asyncio.to_thread(
                    minerva, "console", "alerts", "--json", "--run-dir", lab.nodes[node].run_dir
                )
                found: list[dict[str, str]] = json.loads(done.stdout) if done.returncode == 0 else []
                if [(each["alert"], each["line"]) for each in found] == wanted:
                    return found
                assert time.monotonic() < deadline, (found, done.stderr)
                await asyncio.sleep(0.3)

        async with console_act.console_server(server, host, {}, ALERTS):
            address = await console_act.announced(lab.nodes["n1"], console_act.CONSOLE)
            for each in lab.network.hosts.values():
                console_act.break_host(each)
            await heard("n1", [])
            await say("echo Kernel 'panic: one'")
            one = ("panic", "Kernel panic: one")
            [found] = await heard("n1", [one])
            assert (found["node"], found["console"], found["address"]) == (
                "n3",
                console_act.CONSOLE,
                str(address),
            )
            assert abs(datetime.fromisoformat(found["time"]).timestamp() - time.time()) < 60
            # All of the latest are told together: none takes the place of another.
            await asyncio.sleep(1.1)
            await say("echo printer 'on' fire; echo Kernel 'panic: two'")
            wanted = [("panic", "Kernel panic: two"), ("fire", "printer on fire"), one]
            for node in ("n1", "n2", "n3"):
                await heard(node, wanted)
            # The node of the console begins anew, and is told of them again.
            assert server.process is not None
            server.process.terminate()
            await asyncio.to_thread(server.process.wait)
            server.start(host, follow_us=True)
            await heard("n3", wanted)

    asyncio.run(with_lab("console-alerts", do))


async def until_recorded(config: Path, text: str) -> None:
    """Wait until the record of the console has a line."""
    deadline = time.monotonic() + 10
    while True:
        done = await asyncio.to_thread(
            minerva, "console", "log", "--json", "--config", config, console_act.CONSOLE, env=os.environ
        )
        if any(json.loads(line)["text"] == text for line in done.stdout.splitlines()):
            return
        assert time.monotonic() < deadline, done.stdout + done.stderr
        await asyncio.sleep(0.2)
