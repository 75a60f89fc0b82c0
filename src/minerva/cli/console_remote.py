"""Consoles of other nodes: found by what is flooded in the domain, reached by SSH over the ACP."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minerva.cli import options
from minerva.core.errors import MinervaError, UsageError
from minerva.core.text import did_you_mean, printable

if TYPE_CHECKING:
    from minerva.console.announce import Announced


class NotReachedError(MinervaError):
    """A port in the ACP cannot be reached."""


@click.command(short_help="Connect standard input and output to a port in the ACP.")
@click.argument("address")
@click.argument("port", type=click.IntRange(1, 65_535))
@options.run_dir
def connect(address: str, port: int, run_dir: Path) -> None:
    """Connect standard input and output to PORT at ADDRESS, a node of the ACP.

    For ssh: ssh -o ProxyCommand='minerva console connect %h %p' -p 2222 CONSOLE@ADDRESS
    """
    from minerva.asa.sockets import acp_connect
    from minerva.console.client import carry

    with acp_connect(_address(address), port, run_dir=run_dir) as given:
        _wait_connected(given.sock, address, port)
        carry(given.sock, sys.stdin.fileno(), sys.stdout.fileno())


def _wait_connected(sock: socket.socket, address: str, port: int) -> None:
    import select

    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    if not poll.poll(20_000):
        raise NotReachedError(f"{address} port {port} does not answer")
    if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise NotReachedError(f"{address} port {port}: {os.strerror(code)}")


def _address(text: str) -> IPv6Address:
    try:
        return IPv6Address(text)
    except ValueError:
        raise UsageError(f"{text!r} is not an IPv6 address") from None


def locate(run_dir: Path, console: str, node: str, here: list[str]) -> tuple[str, int]:
    """Return the address and the SSH port of the server that has a console.

    ``here`` are the names of this machine's own, which it is not among. Raises MinervaError.
    """
    from minerva.asa.protocol import API_SOCKET
    from minerva.console.config import Ssh

    if here and not node and not (run_dir / API_SOCKET).exists():
        raise UsageError(
            f"there is no console {printable(console)} here, and no node runs that knows those of "
            f"others{did_you_mean(console, here)}"
        )
    servers = find(run_dir)
    if node:
        try:
            wanted = {str(_address(node))}
        except UsageError:
            names = node_names(run_dir)
            wanted = {address for address, name in names.items() if name == node}
            if not wanted:
                hint = did_you_mean(node, names.values()) or ": see 'minerva inventory'"
                raise UsageError(f"there is no node {printable(node)}{hint}") from None
            if len(wanted) > 1:
                # Each says itself what it is called.
                which = ", ".join(f"{printable(console)}@{address}" for address in sorted(wanted))
                raise UsageError(f"several nodes are called {printable(node)}: say one of {which}") from None
        address = wanted.pop()
        for one in servers:
            if str(one.address) == address and one.ssh:
                return address, one.ssh
        # It may not be announced, and be there all the same.
        return address, Ssh().port
    having = [one for one in servers if console in one.consoles and one.ssh]
    if not having:
        known = {name for one in servers for name in one.consoles} | set(here)
        raise UsageError(
            f"there is no console {printable(console)}, neither here nor announced in the domain"
            f"{did_you_mean(console, known)}"
        )
    if len(having) > 1:
        where = ", ".join(f"{console}@{one.address}" for one in having)
        raise UsageError(f"several nodes have a console {printable(console)}: say which of {where}")
    return str(having[0].address), having[0].ssh


def become_ssh(
    run_dir: Path, address: str, port: int, login: str, command: list[str], *, passwords: bool
) -> None:
    """Become an ssh that connects over the ACP. Raises UsageError.

    The node at ``address`` may be any member that says to have the console: it gets neither an agent nor a
    forwarded port, whatever the user's own settings are, and a password only with ``passwords``.
    """
    import shlex

    proxy = [sys.executable, "-m", "minerva", "console", "connect", "--run-dir", str(run_dir)]
    words = [
        *("ssh", "-o", f"ProxyCommand={shlex.join(proxy)} %h %p"),
        *("-o", f"HostKeyAlias=minerva-{address}", "-o", "StrictHostKeyChecking=ask"),
        *("-o", "EscapeChar=none", "-o", "PermitLocalCommand=no"),
        *("-a", "-x", "-o", "ClearAllForwardings=yes"),
        *(() if passwords else ("-o", "PasswordAuthentication=no", "-o", "KbdInteractiveAuthentication=no")),
        *("-t", "-p", str(port), "-l", login, address, *command),
    ]
    try:
        os.execvp(words[0], words)
    except FileNotFoundError:
        raise UsageError("there is no ssh here: install OpenSSH's client (Debian: openssh-client)") from None
    except OSError as error:
        raise UsageError(f"cannot run ssh: {error.strerror}") from error


def find(run_dir: Path) -> list[Announced]:
    """Return all console servers that the node has heard of. Raises MinervaError."""
    from minerva.cli.grasp_common import one_sentence
    from minerva.console import announce

    with one_sentence():
        return asyncio.run(announce.find(run_dir))


def node_names(run_dir: Path) -> dict[str, Any]:
    """Return the names of the domain's nodes by their addresses. Raises MinervaError."""
    from minerva.asa.protocol import API_SOCKET
    from minerva.cli.grasp_common import one_sentence
    from minerva.cli.inventory import take_inventory

    with one_sentence():
        machines = asyncio.run(take_inventory(run_dir / API_SOCKET, ask=False))
    # The inventory has the addresses of the nodes' GRASP, which are those of the nodes.
    return {machine.address: machine.description.name for machine in machines}
