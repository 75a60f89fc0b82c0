"""``minerva lab``: a whole network on one machine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from minerva.cli import options
from minerva.cli.node import NodeCommandError
from minerva.core.errors import MinervaError, UsageError
from minerva.core.text import printable

if TYPE_CHECKING:
    from minerva.lab.lab import Lab
    from minerva.lab.nodes import LabNode

_Found = dict[str, Any]

_DEFAULT_TIMEOUT = 120.0
_timeout_option = click.option(
    "--timeout",
    type=options.FiniteRange(0, min_open=True),
    default=_DEFAULT_TIMEOUT,
    show_default=True,
    help="Seconds to wait.",
)

_zero_touch_option = click.option(
    "--zero-touch",
    is_flag=True,
    help="Only the first node is a member, with a registrar; the others have to be let in.",
)
_lifetime_option = click.option(
    "--lifetime",
    type=click.IntRange(10, 10**9),
    help="With --zero-touch: how many seconds a node's certificate is valid; its CRL, a sixth of that.",
)


def _registrar_options(zero_touch: bool, lifetime: int | None) -> tuple[str, ...]:
    if lifetime is None:
        return ()
    if not zero_touch:
        raise UsageError("--lifetime goes with --zero-touch")
    return "--lifetime", str(lifetime), "--crl-lifetime", str(max(lifetime // 6, 2))


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
        rows = {}
        for name in lab.nodes:
            times = lab.milestones.get(name, {})
            reached = sum(1 for source, _ in lab.pinger.reached if source == name)
            done = [
                f"{phase.replace('_', ' ')} {times[phase]:.1f}s" for phase in lab.phases if phase in times
            ]
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


@lab.command(short_help="Build a lab, see that all reach all, tear it down.")
@click.argument("topology")
@click.option("--name", help="The lab's name.  [default: made up]")
@click.option("--pcap", type=click.Path(path_type=Path), help="Directory for one capture file a link.")
@click.option("--keylog", is_flag=True, help="With --pcap: a wireshark/ profile there with all session keys.")
@click.option("--cut", metavar="A-B", help="Then cut this link and wait until all is well again.")
@click.option(
    "--console",
    is_flag=True,
    help="At the end break the network of every host, and open a machine's console over the ACP.",
)
@_zero_touch_option
@_lifetime_option
@_timeout_option
@options.as_json
def run(
    topology: str,
    name: str | None,
    pcap: Path | None,
    keylog: bool,
    cut: str | None,
    console: bool,
    zero_touch: bool,
    lifetime: int | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Build TOPOLOGY, wait until every node reaches every other, tear it down.

    The exit code is 0 only if all pairs reached each other.
    """
    from minerva.lab import report
    from minerva.lab.lab import Lab, LabError
    from minerva.lab.topology import describe, draw, find_link, parse_topology

    _need_root()
    if keylog and pcap is None:
        raise UsageError("--keylog goes with --pcap DIR")
    wanted = parse_topology(topology)
    cut_link = find_link(wanted, cut) if cut else None
    init_options = _registrar_options(zero_touch, lifetime)
    network = Lab(wanted, name or f"run-{os.getpid()}", key_log=keylog, zero_touch=zero_touch)
    network.registrar_options = init_options
    progress = _Progress()

    async def work() -> _Found:
        progress.note(f"building {describe(wanted)}\n{draw(wanted)}")
        await network.build()
        if pcap is not None:
            network.capture(pcap)
        network.start(follow_us=True)
        found = await _reach_all(network, timeout, progress)
        shown = report.table(network)
        if cut_link is not None and found["error"] is None:
            progress.note(f"all reach each other; cutting the link {cut_link.name}")
            try:
                found["heal_seconds"] = round(await network.cut(cut_link, timeout, progress), 3)
            except LabError as error:
                found["error"] = f"after the cut: {error}"
        if console and found["error"] is None:
            # Those whose cable is cut are the farthest apart.
            await _show_console(network, cut_link.nodes if cut_link is not None else (), found, progress)
        if not as_json:
            click.echo(f"\n{shown}\n\n{report.summary(network, found)}")
        return found

    found = asyncio.run(_carry_out(network, work(), progress, pcap=pcap))
    if cut_link is not None:
        found.setdefault("heal_seconds", None)
    if console:
        found.setdefault("console", None)
    _end(found, as_json=as_json)


async def _show_console(lab: Lab, ends: Sequence[str], found: _Found, progress: _Progress) -> None:
    """Break all hosts' networks and open a console; add to ``found`` what came of it."""
    from minerva.lab.console_act import console_act

    try:
        operator, server = ends or (None, None)
        act = await console_act(lab, operator=operator, server=server, note=progress.note)
    except (MinervaError, OSError) as error:
        found["error"] = f"the console: {error}"
    else:
        found["console"] = {
            "operator": act.operator,
            "server": act.server,
            "address": act.address,
            "seconds": act.seconds,
            "transcript": list(act.transcript),
        }


async def _reach_all(lab: Lab, timeout: float, progress: _Progress) -> _Found:
    """Wait until all reach all; return what was found. A node that ends is a failure like any other."""
    from minerva.lab import report
    from minerva.lab.lab import LabError

    problem = None
    try:
        await lab.reach_all(timeout, progress)
        await lab.settle()
    except LabError as error:
        problem = str(error)
    return report.result(lab, await lab.status(), problem)


async def _carry_out(
    lab: Lab,
    work: Coroutine[Any, Any, _Found],
    progress: _Progress,
    *,
    pcap: Path | None = None,
    stay: bool = False,
) -> _Found:
    """Return what ``work`` found, or why it failed; then tear the lab down, or with ``stay`` if it failed."""
    from minerva.lab import report

    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    # Not the loop's own handlers: they end with the loop, and then a signal could cut the report short.
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
        signals.remove(signal.SIGHUP)
    for number in signals:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(task.cancel))
    try:
        await asyncio.wait([task])
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        if task.cancelled():
            await lab.close(pcap)
            return report.result(lab, {}, "interrupted; the lab is torn down")
        failed = task.exception() is not None
        if stay and not failed:
            await lab.leave()
        elif kept := await lab.close(pcap, keep_logs=failed or task.result()["error"] is not None):
            progress.note(f"the nodes' logs are in {kept}")
        return task.result()
    except (MinervaError, OSError) as error:
        return report.result(lab, {}, str(error))


def _end(found: _Found, *, as_json: bool) -> NoReturn:
    """Print what a program wants to know, and what went wrong; exit."""
    if as_json:
        click.echo(json.dumps(found))
    if found["error"] is not None:
        click.echo(f"minerva: {found['error']}", err=True)
    sys.exit(0 if found["error"] is None else 1)


@lab.command()
@click.argument("topology")
@click.option("--name", default="lab", show_default=True, help="What to call it.")
@_zero_touch_option
@_lifetime_option
@_timeout_option
@options.as_json
def up(
    topology: str, name: str, zero_touch: bool, lifetime: int | None, timeout: float, as_json: bool
) -> None:
    """Build TOPOLOGY and leave it running."""
    from minerva.lab import report
    from minerva.lab.lab import Lab
    from minerva.lab.topology import parse_topology

    _need_root()
    wanted = parse_topology(topology)
    init_options = _registrar_options(zero_touch, lifetime)
    network = Lab(wanted, name, zero_touch=zero_touch)
    network.registrar_options = init_options
    progress = _Progress()

    async def work() -> _Found:
        await network.build()
        network.start(follow_us=False)
        found = await _reach_all(network, timeout, progress)
        if not as_json:
            click.echo(f"\n{report.summary(network, found)}")
            click.echo(
                f"\nIt stays up. Look inside: 'minerva lab exec {name} {wanted.nodes[0].name} -- ip addr', "
                f"\n'minerva lab status {name}'. Remove it: 'minerva lab down {name}'."
            )
            if network.zero_touch is not None:
                run = f"minerva lab exec {name} {wanted.nodes[0].name} -- minerva"
                click.echo(
                    "\nThe operator's registrar and the maker's MASA run, too. Who is in, and what happened:"
                    f"\n'{run} registrar devices', '{run} registrar log',"
                    f"\n'{run} masa devices'. Their directories are"
                    f"\n{network.zero_touch.registrar_directory} and {network.zero_touch.masa_directory}."
                )
        return found

    found = asyncio.run(_carry_out(network, work(), progress, stay=True))
    _end(found | {"name": name}, as_json=as_json)


@lab.command(
    "exec",
    context_settings={"ignore_unknown_options": True},
    short_help="Run a command in a node of a standing lab.",
)
@click.argument("name", metavar="LAB")
@click.argument("target", metavar="NODE[:host|acp|link:PORT]")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_command(name: str, target: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in a namespace of a node of a standing lab; the node's own commands work there too.

    So do those of the registrar and the MASA, if the lab has them.
    """
    from minerva.cli.node import exec_in
    from minerva.lab.lab import directory_of, nodes_of, open_node
    from minerva.lab.nodes import services

    _need_root()
    where = open_node(name, target)
    node = nodes_of(name)[target.partition(":")[0]]
    os.environ["MINERVA_STATE_DIR"] = str(node.state_dir)
    os.environ["MINERVA_RUN_DIR"] = str(node.run_dir)
    for service in services(directory_of(name)):
        os.environ[f"MINERVA_{service.upper()}_DIR"] = str(directory_of(name) / service)
    exec_in(where, command)


@lab.command()
@click.argument("name", metavar="LAB", required=False)
@options.as_json
def status(name: str | None, as_json: bool) -> None:
    """Show the standing labs, or the nodes of one.

    The exit code is 1 if one of the nodes does not answer, or the registrar or the MASA has ended.
    """
    from minerva.lab.lab import directory_of, nodes_of, standing
    from minerva.lab.nodes import services

    _need_root()
    if name is None:
        names = standing()
        click.echo(json.dumps(names) if as_json else "\n".join(names) or "no lab is standing")
        return
    nodes = nodes_of(name)
    found = {node: running.ask("status") or {} for node, running in nodes.items()}
    beside = {service: bool(pids) for service, pids in services(directory_of(name)).items()}
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(_status_text(name, nodes, found, beside, directory_of(name)))
    if silent := [node for node, state in found.items() if not state]:
        raise NodeCommandError(f"not every node of lab {name} answers: {', '.join(silent)} not")
    if ended := [service for service, runs in beside.items() if not runs]:
        raise NodeCommandError(f"not all of lab {name} runs: {' and '.join(map(_the, ended))} not")


def _status_text(
    lab: str, nodes: dict[str, LabNode], found: dict[str, _Found], beside: dict[str, bool], directory: Path
) -> str:
    lines = [f"lab {lab}: {len(nodes)} nodes"]
    for node, state in found.items():
        if not state:
            lines.append(f"  {node}: does not answer; its log is {nodes[node].log_file}")
        elif "acp0" in state:
            peers = ", ".join(channel["interface"] for channel in state["channels"]) or "none"
            lines.append(f"  {node}: {state['acp0']['address']}, channels: {peers}")
        else:
            lines.append(f"  {node}: not enrolled; {_way_in(state)}")
    for service, runs in beside.items():
        lines.append(
            f"  {_the(service)} {'runs' if runs else 'has ended'}; its log is {directory / service}.log"
        )
    if nodes:
        one = next(iter(nodes.values()))
        lines.append(f"The log of a node is {one.directory.parent / 'NODE' / one.log_file.name}")
    return "\n".join(lines)


def _the(service: str) -> str:
    return "the MASA" if service == "masa" else f"the {service}"


def _way_in(state: _Found) -> str:
    """Return in words how far a device is."""
    steps = state.get("pledge", {}).get("steps", [])
    if not steps:
        return "it has heard no join proxy"
    last = steps[-1]
    detail = f": {printable(last['detail'])}" if last["detail"] else ""
    return f"{last['step'].replace('_', ' ')} through {last['proxy']} on port {last['port']}{detail}"


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
