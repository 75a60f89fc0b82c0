"""The last act of a lab: the network of every host is broken, and an operator reaches a console all the same.

One node has a console server with one machine: a shell that has no network at all. Another one is where the
operator is, at the other end of the lab. Then all hosts lose every address and route, IPv6 and what their
firewall would let in; and the operator opens the console by SSH over the ACP.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from minerva.asa import AsaError
from minerva.asa.sockets import AcpSocketError, acp_connect
from minerva.console import announce
from minerva.console.dialer import connected
from minerva.console.events import State
from minerva.core.errors import MinervaError
from minerva.core.text import printable
from minerva.lab.nodes import LabNode
from minerva.linux import process
from minerva.linux.namespace import Namespace
from minerva.linux.nftables import Nftables

if TYPE_CHECKING:
    from minerva.lab.lab import Lab

CONSOLE: Final = "machine"
PORT: Final = 2222
PROMPT: Final = "machine# "
SECONDS: Final = 60.0
"""How long each step may take."""

_HOOKS = ("input", "output", "forward")
_MACHINE = ("unshare", "-n", "env", "-i", f"PS1={PROMPT}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-i")
_QUESTION = "hostname; cat /proc/net/dev | wc -l; echo console is {}ere"
EXPECTED: Final = "console is here"
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.2


class ConsoleActError(MinervaError):
    """The console was not reached."""


@dataclass(frozen=True, slots=True)
class ConsoleAct:
    """What came of it."""

    operator: str
    server: str
    address: str
    """Of the node with the console, in the ACP."""
    left: dict[str, list[str]]
    """What addresses and routes are left to each host: none."""
    seconds: float
    """From the operator's first packet to the machine's answer."""
    transcript: tuple[str, ...]
    """What the operator saw; fit for any terminal."""


async def console_act(
    lab: Lab,
    *,
    operator: str | None = None,
    server: str | None = None,
    note: Callable[[str], object] = lambda _: None,
) -> ConsoleAct:
    """Do all of it in a lab in which all nodes reach each other. Raises MinervaError, OSError.

    ``operator`` and ``server`` are nodes, the first and the last one by default. ``note`` is told what
    happens, for people. The hosts' networks stay broken.
    """
    names = list(lab.nodes)
    operator, server = operator or names[0], server or names[-1]
    try:
        import asyncssh
    except ModuleNotFoundError as error:
        raise ConsoleActError("consoles need packages: pip install 'minerva-acp[console]'") from error
    key = asyncssh.generate_private_key("ssh-ed25519")
    public = key.export_public_key().decode().strip()
    async with console_server(lab.nodes[server], lab.network.hosts[server], {"operator": public}):
        address = await announced(lab.nodes[operator], CONSOLE)
        note(f"{server} has the console of a machine that has no network; {operator} has heard of it")
        left = {}
        for name, host in lab.network.hosts.items():
            break_host(host)
            left[name] = what_is_left(host)
        if any(left.values()):
            raise ConsoleActError(f"hosts still have addresses or routes: {left}")
        note("all hosts have lost every address, every route, IPv6, and what their firewall let in")
        began = time.monotonic()
        said = await _talk(lab.nodes[operator], address, key)
        seconds = time.monotonic() - began
    lines = tuple(printable(line.rstrip("\r")) for line in said.split("\n"))
    note(f"over the ACP, {operator} has the console on its desk after {seconds:.1f} s")
    return ConsoleAct(operator, server, str(address), left, round(seconds, 3), lines)


async def _talk(node: LabNode, address: IPv6Address, key: object) -> str:
    """Open the console by SSH over the ACP and ask the machine something; return what was seen."""
    import asyncssh

    try:
        async with asyncio.timeout(SECONDS):
            given = await asyncio.to_thread(acp_connect, address, PORT, run_dir=node.run_dir)
            with given:
                await connected(given.sock)
                async with (
                    asyncssh.connect(
                        sock=given.sock, username=CONSOLE, client_keys=[key], known_hosts=None, config=None
                    ) as connection,
                    connection.create_process(term_type="vt100", encoding=None) as session,
                ):
                    session.stdin.write((_QUESTION.format("h") + "\r").encode())
                    seen = bytearray()
                    while EXPECTED.encode() not in seen.replace(_QUESTION.format("h").encode(), b""):
                        data = await session.stdout.read(4096)
                        if not data:
                            break
                        seen += data
                    session.stdin.write(b"\x05c.")
                    with suppress(asyncssh.Error):
                        await session.wait_closed()
    except TimeoutError:
        raise ConsoleActError(f"the console did not answer within {SECONDS:g} s") from None
    except (asyncssh.Error, AcpSocketError, OSError) as error:
        raise ConsoleActError(f"the console was not reached: {error}") from error
    text = bytes(seen).decode(errors="replace")
    if EXPECTED not in text.replace(_QUESTION.format("h"), ""):
        raise ConsoleActError("the console's connection ended before the machine answered")
    return text


def configuration(directory: Path, users: Mapping[str, str]) -> str:
    """Return the configuration of a console server with one machine; ``users`` have a public key each."""
    lines = [
        "[console]",
        f"directory = {json.dumps(str(directory))}",
        "[console.ssh]",
        f"port = {PORT}",
        f"[console.ports.{CONSOLE}]",
        'type = "process"',
        'description = "a machine without a network"',
        f"command = {json.dumps(list(_MACHINE))}",
    ]
    for name, key in users.items():
        lines += [f"[console.users.{name}]", f"keys = [{json.dumps(key)}]", 'admin = ["*"]']
    return "\n".join(lines) + "\n"


@asynccontextmanager
async def console_server(
    node: LabNode, host: Namespace, users: Mapping[str, str], more: str = ""
) -> AsyncIterator[Path]:
    """Have a console server at a node for the length of a ``with``; yield its configuration file.

    ``more`` is configuration besides.
    """
    config = node.directory / "console.toml"
    config.write_text(configuration(node.directory / "console", users) + more)
    us = os.getpid()
    with (node.directory / "console.log").open("ab") as log, host.entered():
        running = subprocess.Popen(
            [
                *(sys.executable, "-m", "minerva", "console", "run"),
                *("--config", str(config), "--run-dir", str(node.run_dir)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: process.end_with_parent(us),
        )
    try:
        yield config
    finally:
        running.terminate()
        try:
            await asyncio.to_thread(running.wait, _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


async def announced(node: LabNode, console: str) -> IPv6Address:
    """Return where a console is, as soon as a node has heard that it can be used. Raises ConsoleActError."""
    deadline = time.monotonic() + SECONDS
    problem = "it was not announced"
    while time.monotonic() < deadline:
        try:
            for one in await announce.find(node.run_dir):
                state = one.consoles.get(console)
                if state in (State.CONNECTED, State.IN_USE):
                    return one.address
        except AsaError as error:
            problem = str(error)
        await asyncio.sleep(_POLL_SECONDS)
    raise ConsoleActError(f"{node.name} does not know of the console {console}: {problem}")


def break_host(host: Namespace) -> None:
    """Do to a host's network what people do by mistake, all of it."""
    with host.entered():
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1\n")  # takes addresses and routes along
        with Nftables() as nft:
            nft.run(
                "add table inet broken\n"
                + "\n".join(
                    f"add chain inet broken {hook} {{ type filter hook {hook} priority 0; policy drop; }}"
                    for hook in _HOOKS
                )
            )


def what_is_left(host: Namespace) -> list[str]:
    """Return the addresses and routes that a host has, but for what every namespace has from the start."""
    with host.entered():
        net = Path("/proc/thread-self/net")
        addresses = (net / "if_inet6").read_text().splitlines()
        routes = (net / "route").read_text().splitlines()[1:]
        routes6 = [line for line in (net / "ipv6_route").read_text().splitlines() if not line.endswith(" lo")]
    return addresses + routes + routes6
