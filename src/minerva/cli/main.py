"""The command: its groups, its options, and how it says that something is wrong."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from minerva import __version__
from minerva.core.errors import MinervaError, UsageError
from minerva.core.text import shortened

_MAX_ERROR = 2000

_COMMANDS = {
    "ca": ("minerva.cli.ca", "ca", "A small certification authority for a domain."),
    "connect": ("minerva.cli.connect", "connect", "Run this machine's node in the foreground."),
    "inventory": ("minerva.cli.inventory", "inventory", "List the machines of the domain."),
    "exec": ("minerva.cli.node", "exec_command", "Run a command in a namespace of the node."),
    "grasp": ("minerva.cli.grasp", "grasp", "Discover, synchronize, negotiate and flood in the ACP."),
    "lab": ("minerva.cli.lab", "lab", "A network of real nodes on this one machine."),
    "status": ("minerva.cli.node", "status", "Show what the running node does and sees."),
}


class _Lazy(click.Group):
    """Imports a command when it is used: `minerva status` should not wait for what `connect` needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, name, _ = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in sorted(_COMMANDS.items())])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="minerva %(version)s")
def cli() -> None:
    """A zero-configuration Autonomic Control Plane (RFC 8994) for Linux."""


def main(arguments: list[str] | None = None) -> Any:
    """Run the command; every error that we foresaw is one sentence and an exit code, never a traceback."""
    try:
        return cli.main(args=arguments, prog_name="minerva")
    except UsageError as error:
        # What it quotes may be from the network.
        click.echo(f"minerva: {shortened(str(error), _MAX_ERROR)}", err=True)
        sys.exit(2)
    except MinervaError as error:
        # What it quotes may be from the network.
        click.echo(f"minerva: {shortened(str(error), _MAX_ERROR)}", err=True)
        sys.exit(1)
