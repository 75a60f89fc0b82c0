"""What the commands of ``minerva console`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from minerva.cli import options

SOCKET: Final = "console.sock"
EXTRA: Final = "the console server needs packages that are not here: pip install 'minerva-acp[console]'"

config_option = click.option(
    "--config",
    "config_file",
    type=options.PATH,
    envvar="MINERVA_CONFIG",
    show_envvar=True,
    help="Configuration file.  [default: /etc/minerva/minerva.toml]",
)
name_argument = click.argument("console", metavar="CONSOLE")


def call(run_dir: Path, command: str, **arguments: Any) -> dict[str, Any]:
    """Have the console server do something and return its answer. Raises ConsoleClientError."""
    from minerva.console import client

    wanted = {name: value for name, value in arguments.items() if value is not None}
    return client.call(run_dir / SOCKET, command, **wanted)
