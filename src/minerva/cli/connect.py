"""``minerva connect``: run a node."""

from __future__ import annotations

import os
from pathlib import Path

import click

from minerva.cli import options
from minerva.connect.config import DATA_PLANES, OUTER_ADDRESSES
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
@click.option(
    "--outer-addresses",
    type=click.Choice(OUTER_ADDRESSES),
    help="Between which addresses channels are, whatever the configuration says. 'ula' is for neighbours "
    "that cannot use link-local ones, and against the standard.",
)
def connect(
    state_dir: Path,
    run_dir: Path,
    config_file: Path | None,
    data_plane: str | None,
    outer_addresses: str | None,
) -> None:
    """Run this machine's node in the foreground, until ^C or SIGTERM.

    The state directory holds its identity: see 'minerva ca issue'.
    """
    if os.geteuid() != 0:
        raise UsageError("'minerva connect' makes interfaces and namespaces: run it as root")
    from minerva.connect.node import run_node

    run_node(state_dir, run_dir, config_file, data_plane, outer_addresses)
