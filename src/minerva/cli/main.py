"""The command: its groups, its options, and how it says that something is wrong."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from minerva import __version__
from minerva.core.errors import MinervaError, UsageError
from minerva.core.text import shortened

_MAX_ERROR = 2000

INTERRUPTED = 130
"""The exit code after ^C: what a shell makes of a program that SIGINT ended."""

_REGISTRAR_LIBRARIES = frozenset({"sqlalchemy", "starlette"})
"""What the extra ``registrar`` installs. Who runs it with the extra ``console`` has half of them."""

_COMMANDS = {
    "ca": ("minerva.cli.ca", "ca", "A small certification authority for a domain."),
    "config": ("minerva.cli.config", "config", "Look at the configuration file of this machine."),
    "console": ("minerva.cli.console", "console", "Serial consoles and BMCs, here and in the domain."),
    "doctor": ("minerva.cli.doctor", "doctor", "Say what is wrong with the ACP here, and what to do."),
    "connect": ("minerva.cli.connect", "connect", "Run this machine's node in the foreground."),
    "factory-reset": ("minerva.cli.pledge", "factory_reset", "Make this machine forget its domain."),
    "inventory": ("minerva.cli.inventory", "inventory", "List the machines of the domain."),
    "exec": ("minerva.cli.node", "exec_command", "Run a command in a namespace of the node."),
    "grasp": ("minerva.cli.grasp", "grasp", "Discover, synchronize, negotiate and flood in the ACP."),
    "lab": ("minerva.cli.lab", "lab", "A network of real nodes on this one machine."),
    "pledge": ("minerva.cli.pledge", "pledge", "Make this machine a member of a domain, by hand."),
    "registrar": ("minerva.cli.registrar_manage", "registrar", "Let new devices into a domain."),
    "listen": ("minerva.cli.node", "listen", "Give a program a socket that listens in the ACP."),
    "masa": ("minerva.cli.masa", "masa", "Be the maker of devices: identities, and who owns them."),
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
    """Run the command; what goes wrong is one sentence and an exit code, never a traceback.

    The exit codes are in docs/configuration.md.
    """
    try:
        # Not its standalone mode: that takes ^C for a failure.
        code = cli.main(args=arguments, prog_name="minerva", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.message, error.exit_code)
    except click.Abort:
        _fail("interrupted", INTERRUPTED)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _REGISTRAR_LIBRARIES:
            raise
        _fail("registrar and MASA need more libraries: pip install 'minerva-acp[registrar]'", 1)
    except UsageError as error:
        _fail(str(error), 2)
    except MinervaError as error:
        _fail(str(error), 1)
    except OSError as error:
        what = error.strerror or str(error)
        _drop_output()
        _fail(what if error.filename is None else f"{error.filename}: {what}", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(sentence: str, code: int) -> NoReturn:
    # What it quotes may be from the network.
    click.echo(f"minerva: {shortened(sentence, _MAX_ERROR)}", err=True)
    sys.exit(code)


def _drop_output() -> None:
    """Let nobody try again to write what could not be written, such as Python when it ends."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
