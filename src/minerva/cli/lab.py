"""``minerva lab``: a whole network on one machine."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minerva.cli import options
from minerva.core.errors import UsageError

if TYPE_CHECKING:
    from minerva.lab.lab import Lab

_DEFAULT_TIMEOUT = 120.0


@click.group()
def lab() -> None:
    """A network of real nodes on this one machine, each in network namespaces of its own.

    TOPOLOGY is line:N, ring:N, star:N, lan:N, tree:AxD or the path of a TOML file.
    """


def _need_root() -> None:
    if os.geteuid() != 0:
        raise UsageError("a lab makes network namespaces: run it as root")


class _Progress:
    """Each node's way from link-up to reachable, on stderr: redrawn on a terminal, else line by line."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._lines = 0
        self._said: dict[str, str] = {}
        self._drawn = 0.0

    def note(self, text: str) -> None:
        """Say one thing."""
        click.echo(text, err=True)
        self._lines = 0

    def __call__(self, lab: Lab) -> None:
        """Show where every node is."""
        from minerva.lab.lab import PHASES

        rows = {}
        for name in lab.nodes:
            times = lab.milestones.get(name, {})
            reached = sum(1 for source, _ in lab.pinger.reached if source == name)
            done = [f"{phase.replace('_', ' ')} {times[phase]:.1f}s" for phase in PHASES if phase in times]
            rows[name] = ", ".join(done) + (f"; reaches {reached} of {len(lab.nodes) - 1}" if reached else "")
        if self._terminal:
            if time.monotonic() - self._drawn > 0.2:
                self._redraw(rows)
            return
        for name, row in rows.items():
            stage = row.split(";")[0]
            if stage and self._said.get(name) != stage:
                self._said[name] = stage
                click.echo(f"  {name}: {stage}", err=True)

    def _redraw(self, rows: dict[str, str]) -> None:
        self._drawn = time.monotonic()
        width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        if self._lines:
            click.echo(f"\x1b[{self._lines}A", err=True, nl=False)
        for name, row in rows.items():
            click.echo("\x1b[2K" + f"  {name}: {row or 'starting'}"[: width - 1], err=True)
        self._lines = len(rows)


@lab.command()
@click.argument("topology")
@click.option("--name", help="The lab's name.  [default: made up]")
@click.option("--pcap", type=click.Path(path_type=Path), help="Directory for one capture file a link.")
@click.option("--keylog", is_flag=True, help="With --pcap: a wireshark/ profile there with all session keys.")
@click.option("--cut", metavar="A-B", help="Then cut this link and wait until all is well again.")
@click.option("--timeout", type=float, default=_DEFAULT_TIMEOUT, show_default=True, help="Seconds to wait.")
@options.as_json
def run(
    topology: str,
    name: str | None,
    pcap: Path | None,
    keylog: bool,
    cut: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Build TOPOLOGY, wait until every node reaches every other, tear it down.

    The exit code is 0 only if all pairs reached each other.
    """
    from minerva.lab import report
    from minerva.lab.lab import Lab
    from minerva.lab.topology import find_link, parse_topology

    _need_root()
    if keylog and pcap is None:
        raise UsageError("--keylog goes with --pcap DIR")
    wanted = parse_topology(topology)
    cut_link = find_link(wanted, cut) if cut else None
    progress = _Progress()

    async def work() -> dict[str, Any]:
        lab = Lab(wanted, name or f"run-{os.getpid()}")
        try:
            progress.note(f"building {wanted.name}: {len(wanted.nodes)} nodes, {len(wanted.segments)} links")
            await lab.build(key_log=keylog)
            if pcap is not None:
                lab.capture(pcap)
            lab.start(follow_us=True)
            reached = await _reach_all(lab, timeout, progress)
            found = report.result(lab, lab.status(), all_reached=reached)
            shown = report.table(lab)
            if cut_link is not None:
                found["heal_seconds"] = None
                if reached:
                    progress.note(f"all reach each other; cutting the link {cut_link.name}")
                    healed = await lab.cut(cut_link, timeout, progress)
                    found["heal_seconds"] = None if healed is None else round(healed, 3)
            if not as_json:
                click.echo(f"\n{shown}\n\n{report.summary(lab, found)}")
            return found
        finally:
            await lab.close(pcap)

    found = asyncio.run(_until_signal(work()))
    if as_json:
        click.echo(json.dumps(found))
    healed = cut_link is None or found["heal_seconds"] is not None
    sys.exit(0 if found["seconds"] is not None and healed else 1)


async def _reach_all(lab: Lab, timeout: float, progress: _Progress) -> bool:
    """Wait until all reach all; a node that ends is a failure like any other, and is named."""
    from minerva.lab.lab import LabError

    try:
        return await lab.reach_all(timeout, progress)
    except LabError as error:
        progress.note(f"minerva: {error}")
        return False


async def _until_signal(work: Any) -> Any:
    """Run ``work``; on ^C or SIGTERM cancel it, so that it cleans up, and say so."""
    import signal

    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise UsageError("interrupted; the lab is torn down") from None


@lab.command()
@click.argument("topology")
@click.option("--name", default="lab", show_default=True, help="What to call it.")
@click.option("--timeout", type=float, default=_DEFAULT_TIMEOUT, show_default=True, help="Seconds to wait.")
@options.as_json
def up(topology: str, name: str, timeout: float, as_json: bool) -> None:
    """Build TOPOLOGY and leave it running."""
    from minerva.lab import report
    from minerva.lab.lab import Lab
    from minerva.lab.topology import parse_topology

    _need_root()
    wanted = parse_topology(topology)
    progress = _Progress()

    async def work() -> dict[str, Any]:
        lab = Lab(wanted, name)
        try:
            await lab.build()
            lab.start(follow_us=False)
            reached = await lab.reach_all(timeout, progress)
            found = report.result(lab, lab.status(), all_reached=reached)
            if not as_json:
                click.echo(f"\n{report.summary(lab, found)}")
            lab.release()
            await lab.network.close(delete=False)
        except BaseException:
            await lab.close()
            raise
        return found

    found = asyncio.run(_until_signal(work()))
    if as_json:
        click.echo(json.dumps(found | {"name": name}))
    else:
        click.echo(
            f"\nIt stays up. Look inside: 'minerva lab exec {name} {wanted.nodes[0].name} -- ip addr', "
        )
        click.echo(f"'minerva lab status {name}'. Remove it: 'minerva lab down {name}'.")
    sys.exit(0 if found["seconds"] is not None else 1)


@lab.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("name", metavar="LAB")
@click.argument("target", metavar="NODE[:host|acp|link:PORT]")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_command(name: str, target: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in a namespace of a node of a standing lab; the node's own commands work there too."""
    from minerva.cli.node import exec_in
    from minerva.lab.lab import base_directory, open_node

    _need_root()
    where = open_node(name, target)
    directory = base_directory() / name / "nodes" / target.partition(":")[0]
    os.environ["MINERVA_STATE_DIR"] = str(directory / "state")
    os.environ["MINERVA_RUN_DIR"] = str(directory / "run")
    exec_in(where, command)


@lab.command()
@click.argument("name", metavar="LAB", required=False)
@options.as_json
def status(name: str | None, as_json: bool) -> None:
    """Show the standing labs, or the nodes of one."""
    from minerva.lab.lab import Record, base_directory, standing
    from minerva.lab.nodes import LabNode

    if name is None:
        names = standing()
        click.echo(json.dumps(names) if as_json else "\n".join(names) or "no lab is standing")
        return
    record = Record.load(name)
    found: dict[str, Any] = {}
    for node in record.nodes:
        found[node] = LabNode(node, base_directory() / name / "nodes" / node).ask("status") or {}
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"lab {name}: {record.topology}")
    for node, state in found.items():
        if not state:
            click.echo(f"  {node}: does not answer")
            continue
        peers = ", ".join(channel["interface"] for channel in state["channels"]) or "none"
        click.echo(f"  {node}: {state['acp0']['address']}, channels: {peers}")


@lab.command()
@click.argument("name", metavar="LAB", required=False)
@click.option("--all", "everything", is_flag=True, help="Remove every lab.")
def down(name: str | None, everything: bool) -> None:
    """Remove a standing lab, or what a crash left of one."""
    from minerva.lab.lab import down as take_down
    from minerva.lab.lab import standing

    _need_root()
    if (name is None) == (not everything):
        raise UsageError("say which lab to remove, or --all")
    for one in standing() if name is None else [name]:
        take_down(one)
        click.echo(f"lab {one} is gone", err=True)
