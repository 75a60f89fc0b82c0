"""``minerva connect``: run a node."""

from __future__ import annotations

import os
from pathlib import Path

import click

from minerva.cli import options
from minerva.connect.config import DATA_PLANES
from minerva.core.errors import UsageError


@click.command()
@options.state_dir
@options.run_dir
@options.config_file
@click.option(
    "--data-plane",
    type=click.Choice(DATA_PLANES),
    help="What moves the packets of channels, whatever the configuration says.",
)
def connect(state_dir: Path, run_dir: Path, config_file: Path | None, data_plane: str | None) -> None:
    """Run this machine's node in the foreground, until ^C or SIGTERM.

    The state directory holds its identity: see 'minerva ca issue'.
    """
    if os.geteuid() != 0:
        raise UsageError("'minerva connect' makes interfaces and namespaces: run it as root")
    from minerva.connect.node import run_node

    run_node(state_dir, run_dir, config_file, data_plane)
