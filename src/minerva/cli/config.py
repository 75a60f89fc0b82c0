"""``minerva config``: look at a configuration before a node or a console server starts with it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from minerva.cli import options
from minerva.core import settings
from minerva.core.errors import UsageError


@click.group()
def config() -> None:
    """Look at the configuration file of this machine's node and console server."""


@config.command(short_help="Say whether the configuration is right.")
@options.config_file
@options.as_json
def check(config_file: Path | None, as_json: bool) -> None:
    """Say whether the whole configuration is right, of the node and of the console server.

    If not, one sentence says what is wrong, and the exit code is 2.
    """
    from minerva.connect import config as node
    from minerva.console import config as console

    path = config_file or settings.DEFAULT_FILE
    try:
        node.load(config_file)
        found = console.parse(path.read_text(), str(path)) if path.exists() else None
    except UsageError as error:
        if not as_json:
            raise
        click.echo(json.dumps({"ok": False, "file": str(path), "error": str(error)}))
        raise click.exceptions.Exit(2) from error
    if as_json:
        consoles = None if found is None else sorted(found.ports)
        click.echo(json.dumps({"ok": True, "file": str(path), "consoles": consoles}))
    elif path.exists():
        click.echo("ok")
    else:
        click.echo(f"ok: there is no {path}, so all is as it is without one")
