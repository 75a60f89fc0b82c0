"""``minerva grasp``: look at GRASP, and take part in it, from a console."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import click

from minerva.cli import options
from minerva.cli.grasp_common import (
    LOOP_COUNT,
    MAX_SECONDS,
    SECONDS,
    GraspCommandError,
    cbor_option,
    milliseconds,
    node_status,
    objective_argument,
    objective_json,
    one_sentence,
    peer_locator,
    peer_option,
    print_line,
    registered,
    tcp_locator,
    timeout_option,
    until_interrupted,
)
from minerva.cli.grasp_negotiation import listen, negotiate
from minerva.cli.grasp_trace import trace
from minerva.cli.table import table
from minerva.cli.values import parse, quoted, shown
from minerva.core.text import printable
from minerva.grasp.api import AsaLocator, TaggedObjective
from minerva.grasp.constants import AN_ACP, AN_PROXY, GRASP_DEF_LOOPCT, ObjectiveFlag, TransportProto
from minerva.grasp.options import (
    NO_VALUE,
    FqdnLocator,
    IPv4Locator,
    IPv6Locator,
    Locator,
    Objective,
    UriLocator,
    locator_from_cbor,
)
from minerva.grasp.text import json_data, json_text

_TTL_SECONDS = 180.0
_TTL_PERIODS = 3.5
"""A repeated flood is valid for that many periods, so that three may get lost."""

_PERIOD_MINIMUM = 1.0
"""A flood makes work for every node of the network (RFC 8990 section 2.8.11)."""

_CELL = 60
"""The most characters that a table shows of a value, or of anything else."""

_REGISTERED = re.compile(r"EX[0-9]|AN_ACP|AN_Proxy|AN_join_registrar|PrefixManager(\.Params)?|SRV\..+")
"""The names of the IANA registry "GRASP Objective Names", from RFC 8990, 8992, 8994 and 8995."""


@click.group()
def grasp() -> None:
    """Discover, synchronize, negotiate and flood in the ACP (RFC 8990).

    Values are JSON: 42, '"text"', '[1, {"a": null}]'; bytes are '{"hex": "c0ffee"}'.
    """


def _locator_text(locator: Locator) -> str:
    match locator:
        case IPv6Locator():
            where = f"[{locator.address}]:{locator.port}"
        case IPv4Locator():
            where = f"{locator.address}:{locator.port}"
        case FqdnLocator():
            where = f"{locator.name}:{locator.port}"
        case UriLocator():
            return locator.uri
    return where + ("" if locator.transport is TransportProto.IPPROTO_TCP else " UDP")


def _locator_json(found: AsaLocator) -> dict[str, Any]:
    transport = found.locator.transport
    return {
        "locator": _locator_text(found.locator),
        "address": None if found.address is None else str(found.address),
        "port": found.locator.port,
        "transport": None if transport is None else transport.name.removeprefix("IPPROTO_"),
        "interface": found.interface or None,
        "diverted": found.diverted,
        "seconds_left": _seconds_left(found.ttl),
    }


def _seconds_left(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _ttl_text(milliseconds: int | None) -> str:
    return "for ever" if milliseconds is None else f"{milliseconds // 1000} s"


# --- discover, sync --------------------------------------------------------------------------------------


@grasp.command(short_help="Find the nodes that handle an objective.")
@options.run_dir
@options.as_json
@objective_argument
@timeout_option(2.0)
@click.option("--fresh", is_flag=True, help="Forget what is known and ask again.")
def discover(run_dir: Path, as_json: bool, objective: str, timeout: float, fresh: bool) -> None:
    """Find the nodes that handle OBJECTIVE; with --timeout 0, say only what is known already."""
    with registered(run_dir, "discover") as asa:
        wanted = Objective(objective, ObjectiveFlag.F_DISC)
        found = asa.discover(wanted, milliseconds(timeout), 0 if fresh else 1)
    if as_json:
        print_line(json_text([_locator_json(locator) for locator in found]))
    elif found:
        rows = [
            (_locator_text(item.locator), _ttl_text(item.ttl), "by another node" if item.diverted else "")
            for item in found
        ]
        print_line(table(("LOCATOR", "VALID", "TOLD"), rows, "", width=_CELL))
    if not found:
        raise GraspCommandError(f"nobody is known to handle {quoted(objective)}")


@grasp.command(short_help="Get the value of an objective.")
@options.run_dir
@options.as_json
@objective_argument
@peer_option
@timeout_option(10.0)
def sync(run_dir: Path, as_json: bool, objective: str, peer: str | None, timeout: float) -> None:
    """Get the value of OBJECTIVE: as it was flooded, else from a node that has it."""
    where = peer_locator(peer)
    with registered(run_dir, "sync") as asa:
        found = asa.synchronize(Objective(objective, ObjectiveFlag.F_SYNCH), where, milliseconds(timeout))
    print_line(json_text(objective_json(found)) if as_json else shown(found.value))


# --- flood, floods ---------------------------------------------------------------------------------------


@grasp.command(short_help="Tell all nodes the value of an objective.")
@options.run_dir
@options.as_json
@objective_argument
@click.argument("value", required=False)
@cbor_option
@click.option(
    "--ttl",
    type=SECONDS,
    help=f"Seconds it is valid, 0 for ever. [default: {_TTL_SECONDS:g}, or {_TTL_PERIODS} times --every]",
)
@click.option(
    "--every",
    type=options.FiniteRange(_PERIOD_MINIMUM, MAX_SECONDS),
    help="Flood again every so many seconds.",
)
@click.option("--locator", metavar="[ADDRESS]:PORT", help="Where the thing can be reached, by TCP.")
@click.option(
    "--loop-count", type=LOOP_COUNT, default=GRASP_DEF_LOOPCT, show_default=True, help="Hops, at most."
)
def flood(
    run_dir: Path,
    as_json: bool,
    objective: str,
    value: str | None,
    in_cbor: str | None,
    ttl: float | None,
    every: float | None,
    locator: str | None,
    loop_count: int,
) -> None:
    """Tell all nodes of the network the VALUE of OBJECTIVE."""
    if ttl is None:
        ttl = _TTL_SECONDS if every is None else _TTL_PERIODS * every
    where = None if locator is None else tcp_locator(locator, "--locator")
    with one_sentence():
        told = Objective(objective, ObjectiveFlag.F_SYNCH, loop_count, parse(value, in_cbor))
    with registered(run_dir, "flood") as asa, until_interrupted(every is not None):
        asa.register_objective(told)
        _warn_of_name(objective)
        while True:
            asa.flood(milliseconds(ttl), TaggedObjective(told, where))
            if as_json:
                print_line(json_text({**objective_json(told), "ttl": ttl, "locator": locator}))
            else:
                valid = f"valid for {ttl:g} s" if ttl else "valid for ever"
                print_line(f"flooded {printable(objective)} = {shown(told.value)}, {valid}")
            if every is None:
                break
            time.sleep(every)


def _warn_of_name(name: str) -> None:
    if name in (AN_ACP, AN_PROXY):
        what = f"{quoted(name)} is what nodes find each other by: they may believe this flood"
    elif ":" in name or _REGISTERED.fullmatch(name):
        return
    else:
        what = f"{quoted(name)} is no registered name, and others may use it for something else"
    click.echo(
        f"minerva: {what}; private names are a domain and a colon, then a name, as in example.com:motd "
        "(RFC 8990 section 2.10.1)",
        err=True,
    )


@grasp.command(short_help="Show what has been flooded and is still valid.")
@options.run_dir
@options.as_json
@click.argument("objective", required=False)
def floods(run_dir: Path, as_json: bool, objective: str | None) -> None:
    """Show what has been flooded and is still valid: all of it, or OBJECTIVE."""
    rows, items = [], []
    with one_sentence():
        for entry in node_status(run_dir)["floods"]:
            told = Objective.from_cbor(entry["objective"])
            if objective not in (None, told.name):
                continue
            where = None if entry["locator"] is None else _locator_text(locator_from_cbor(entry["locator"]))
            origin, left = entry["initiator"], entry["ttl"]
            # Most are to be found where they come from, and an address twice makes the line too long.
            short = None if where is None else where.removeprefix(f"[{origin}]")
            rows.append((told.name, shown(told.value), origin, short, _ttl_text(left)))
            items.append(
                {
                    **objective_json(told),
                    "origin": origin,
                    "locator": where,
                    "seconds_left": _seconds_left(left),
                }
            )
    head = ("NAME", "VALUE", "ORIGIN", "LOCATOR", "VALID")
    empty = "nothing has been flooded" + ("" if objective is None else f" as {quoted(objective)}")
    print_line(json_text(items) if as_json else table(head, rows, empty, width=_CELL, flexible="VALUE"))


# --- objectives, sessions --------------------------------------------------------------------------------


def _kinds(flags: int) -> str:
    names = {
        ObjectiveFlag.F_NEG: "negotiation",
        ObjectiveFlag.F_SYNCH: "synchronization",
        ObjectiveFlag.F_NEG_DRY: "dry run",
    }
    return ", ".join(name for flag, name in names.items() if flags & flag) or "discovery"


@grasp.command(short_help="Show what programs of this machine have registered.")
@options.run_dir
@options.as_json
def objectives(run_dir: Path, as_json: bool) -> None:
    """Show the objectives that programs of this machine have registered."""
    rows, items = [], []
    with one_sentence():
        for entry in node_status(run_dir)["objectives"]:
            value = NO_VALUE if entry["value"] is None else Objective.from_cbor(entry["value"]).value
            answers = "yes" if entry["answers"] else "no"
            rows.append(
                (
                    entry["name"],
                    entry["asa"],
                    _kinds(entry["flags"]),
                    answers,
                    "" if value is NO_VALUE else shown(value),
                )
            )
            known = {} if value is NO_VALUE else {"value": json_data(value)}
            items.append({key: item for key, item in entry.items() if key != "value"} | known)
    head = ("NAME", "ASA", "FOR", "ANSWERS", "VALUE")
    empty = "no program has registered an objective"
    print_line(json_text(items) if as_json else table(head, rows, empty, width=_CELL, flexible="VALUE"))


@grasp.command(short_help="Show the sessions that are going on.")
@options.run_dir
@options.as_json
def sessions(run_dir: Path, as_json: bool) -> None:
    """Show the negotiations and synchronizations that are going on."""
    found = node_status(run_dir)["sessions"]
    if as_json:
        print_line(json_text(found))
        return
    rows = [
        (
            item["objective"],
            item["kind"] + (", dry run" if item["dry_run"] else ""),
            item["role"],
            item["peer"],
            item["asa"],
            item["state"],
            f"{max(0, item['seconds_left']):.0f} s",
        )
        for item in found
    ]
    head = ("OBJECTIVE", "KIND", "ROLE", "PEER", "ASA", "STATE", "TIME LEFT")
    print_line(table(head, rows, "no sessions", width=_CELL))


for _command in (negotiate, listen, trace):
    grasp.add_command(_command)
