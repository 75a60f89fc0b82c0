"""What the commands of ``minerva console`` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from minerva.cli import options
from minerva.core import settings
from minerva.core.errors import UsageError

_F = TypeVar("_F", bound=Callable[..., Any])

SOCKET: Final = "console.sock"
EXTRA: Final = "the console server needs packages that are not here: pip install 'minerva-acp[console]'"

directory_option = click.option(
    "--directory",
    type=options.PATH,
    help="The console server's directory.  [default: as the server says, or the configuration]",
)
name_argument = click.argument("console", metavar="CONSOLE")


def call(run_dir: Path, command: str, **arguments: Any) -> dict[str, Any]:
    """Have the console server do something and return its answer. Raises ConsoleClientError."""
    from minerva.console import client

    wanted = {name: value for name, value in arguments.items() if value is not None}
    return client.call(run_dir / SOCKET, command, **wanted)


def where(function: _F) -> _F:
    """Add what :func:`find_directory` needs: ``directory``, ``config_file`` and ``run_dir``."""
    return directory_option(options.config_file(options.run_dir(function)))


def find_directory(directory: Path | None, config_file: Path | None, run_dir: Path) -> Path:
    """Return the console server's directory. Raises MinervaError."""
    from minerva.console import config as configuration
    from minerva.console.client import NoServer

    if directory is not None:
        return directory
    if config_file is None:
        try:
            return Path(call(run_dir, "status")["directory"])
        except NoServer:
            if not settings.DEFAULT_FILE.exists():
                raise UsageError(
                    f"no console server runs with the run directory {run_dir}, and there is no "
                    f"{settings.DEFAULT_FILE}: name its directory with --directory, or its --config"
                ) from None
    return Path(configuration.load(config_file).directory)
