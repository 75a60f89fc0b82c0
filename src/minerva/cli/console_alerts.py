"""``minerva console alerts``: what the consoles of the domain have said that somebody wants to know of."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click

from minerva.cli import options
from minerva.cli.console_remote import node_names
from minerva.cli.table import table
from minerva.core.text import utc


@click.command(short_help="Show the latest alerts of the domain.")
@options.run_dir
@options.as_json
def alerts(run_dir: Path, as_json: bool) -> None:
    """Show the alerts of the last hour that all nodes have told the domain of, the latest first.

    They are those of a server's configuration that have "grasp" in "to". A server tells of as many of its
    latest ones as fit into one message, at most 16.
    """
    from minerva.cli.grasp_common import one_sentence
    from minerva.console import announce

    with one_sentence():
        found = asyncio.run(announce.find_alerts(run_dir))
    names = node_names(run_dir)
    rows = [
        (utc(one.at), names.get(str(one.address)), str(one.address), one.console, one.name, one.line)
        for one in found
    ]
    if as_json:
        keys = ("time", "node", "address", "console", "alert", "line")
        click.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows]))
        return
    shown = [(at, node or address, *rest) for at, node, address, *rest in rows]
    head = ("TIME", "NODE", "CONSOLE", "ALERT", "LINE")
    click.echo(table(head, shown, "no node has told of alerts", flexible="LINE"))
