"""``minerva doctor``: everything that can be wrong with the ACP on this machine, and what to do about it."""

from __future__ import annotations

import json
import os
import select
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from minerva import __version__
from minerva.cli import options
from minerva.core.errors import MinervaError
from minerva.core.text import printable

if TYPE_CHECKING:
    from minerva.connect.diagnosis import Finding

PINGS: Final = 3
PING_SECONDS: Final = 1.0
_LEAST_SPACE: Final = 16 << 20
_SANE: Final = datetime(2025, 1, 1, tzinfo=UTC)
"""Machines without a battery begin in 1970, or where their firmware was built."""


@click.command()
@options.state_dir
@options.run_dir
@options.config_file
@options.as_json
def doctor(state_dir: Path, run_dir: Path, config_file: Path | None, as_json: bool) -> None:
    """Look at all that can be wrong with the ACP of this machine, and say what to do about it.

    It changes nothing, and works whether a node runs or not. The exit code is 1 if there is a problem.
    """
    from minerva.connect.diagnosis import Level

    found = []
    for finding in _examine(state_dir, run_dir, config_file):
        found.append(finding)
        if not as_json:
            click.echo(_text(finding))
    counts = {level: sum(finding.level is level for finding in found) for level in Level}
    problems, warnings = counts[Level.PROBLEM], counts[Level.WARNING]
    if as_json:
        click.echo(json.dumps({"ok": not problems, "findings": [finding.as_json() for finding in found]}))
    else:
        click.echo(f"\n{_count(problems, 'problem')}, {_count(warnings, 'warning')}")
    if problems:
        raise click.exceptions.Exit(1)


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _text(finding: Finding) -> str:
    line = f"{finding.level.value:<8} {finding.area:<13} {printable(finding.what)}"
    return f"{line}\n{'':<22} -> {printable(finding.advice)}" if finding.advice else line


def _examine(state_dir: Path, run_dir: Path, config_file: Path | None) -> Iterator[Finding]:
    from minerva.connect import control, diagnosis

    yield from _machine(state_dir)
    consoles = False
    for finding, has_consoles in _configuration(config_file):
        consoles = consoles or has_consoles
        yield finding
    if os.geteuid() != 0:
        yield diagnosis.warning("node", "only root may see the node and its files", "run it as root")
        return
    yield from _identity(state_dir)
    try:
        status = control.call(run_dir / "control.sock", {"command": "status"})
    except MinervaError as error:
        yield diagnosis.problem("node", str(error))
    else:
        yield from diagnosis.of_status(status, datetime.now(UTC))
        yield from _reach_root(status)
    if consoles:
        yield from _consoles(run_dir)


def _machine(state_dir: Path) -> Iterator[Finding]:
    """Look at what the kernel and the system must have."""
    from minerva.connect.diagnosis import ok, problem, warning
    from minerva.linux.nftables import Nftables

    python = ".".join(map(str, sys.version_info[:3]))
    yield ok("machine", f"minerva {__version__}, Python {python}, Linux {os.uname().release}")
    if not Path("/proc/net/if_inet6").exists():
        yield problem("machine", "the kernel has no IPv6", "start it without ipv6.disable=1")
    if not Path("/dev/net/tun").exists():
        yield warning(
            "machine", "there is no /dev/net/tun, which the data plane in user space needs", "'modprobe tun'"
        )
    try:
        Nftables().close()
    except MinervaError as error:
        yield problem("machine", str(error))
    now = datetime.now(UTC)
    if now < _SANE:
        yield problem("machine", f"the clock says {now:%Y-%m-%d}: no certificate is valid yet", "set it")
    try:
        free = shutil.disk_usage(state_dir).free
    except OSError:
        return  # that there is none is said of the identity
    if free < _LEAST_SPACE:
        yield problem("machine", f"{state_dir} has only {free >> 10} KiB left", "make room on that disk")


def _configuration(file: Path | None) -> Iterator[tuple[Finding, bool]]:
    """Look at the configuration; with each finding, return whether there are consoles in it."""
    from minerva.connect import config as node
    from minerva.connect.diagnosis import ok, problem
    from minerva.console import config as console
    from minerva.core import settings

    path = file or settings.DEFAULT_FILE
    try:
        node.load(file)
        there = path.exists()
        found = console.parse(path.read_text(), str(path)) if there else None
    except MinervaError as error:
        yield problem("configuration", str(error)), False
    else:
        said = f"{path} is right" if there else f"there is no {path}, and none is needed"
        yield ok("configuration", said), found is not None and bool(found.ports)


def _identity(state_dir: Path) -> Iterator[Finding]:
    """Look at the certificates in the state directory as a node does when it starts."""
    from minerva.connect.diagnosis import ok, problem, warning
    from minerva.connect.node import who_we_are

    if not state_dir.is_dir():
        yield problem("identity", f"there is no directory {state_dir}", "name it with --state-dir")
        return
    try:
        identity, expired = who_we_are(state_dir, datetime.now(UTC))
    except MinervaError as error:
        yield problem("identity", str(error))
        return
    if identity is not None:
        yield ok("identity", f"{identity.node_name} in {state_dir}")
    elif expired is not None:
        yield warning(
            "identity", f"{expired.node_name} in {state_dir} has expired", "a running node renews it"
        )
    else:
        yield ok(
            "identity", f"{state_dir} has a device's certificate from its maker, and is in no domain yet"
        )


def _reach_root(status: dict[str, Any]) -> Iterator[Finding]:
    """Ping the root from the host, as a program on it would reach it."""
    from minerva.connect.diagnosis import ok, problem
    from minerva.linux.icmp import EchoAnswer, EchoSocket

    rpl, acp0 = status.get("rpl"), status.get("acp0")
    if not rpl or not acp0 or acp0["problem"] or not rpl.get("preferred_parent"):
        return
    root, took = IPv6Address(rpl["dodag_id"]), []
    try:
        sock = EchoSocket(IPv6Address(acp0["address"]))
        try:
            for sequence in range(PINGS):
                sock.send(root, os.getpid() & 0xFFFF, sequence)
                deadline = time.monotonic() + PING_SECONDS
                answers: list[EchoAnswer] = []
                while not answers and (left := deadline - time.monotonic()) > 0:
                    select.select([sock], [], [], left)
                    answers = sock.receive()
                took += [answer.rtt for answer in answers]
        finally:
            sock.close()
    except OSError as error:
        yield problem(
            "reach", f"the root {root} cannot be pinged: {error.strerror}", "is this the node's host?"
        )
        return
    if took:
        yield ok("reach", f"the root answers in {statistics.median(took) * 1000:.1f} ms")
    else:
        yield problem(
            "reach",
            f"the root {root} does not answer",
            "see 'minerva doctor' on the machines along the way; 'minerva status' names the next hop",
        )


def _consoles(run_dir: Path) -> Iterator[Finding]:
    """Ask the console server which consoles are down."""
    from minerva.connect.diagnosis import ok, problem, warning
    from minerva.console import client

    try:
        listed = client.call(run_dir / "console.sock", "list")["consoles"]
    except client.ConsoleClientError as error:
        yield problem("consoles", str(error))
        return
    down = [item for item in listed if item["state"] == "Down"]
    for item in down:
        yield warning("consoles", f"{item['name']} is down: {item['reason']}")
    yield ok("consoles", f"{len(listed) - len(down)} of {len(listed)} are connected")
