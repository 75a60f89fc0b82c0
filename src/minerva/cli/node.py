"""Commands that talk to the running node."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minerva.cli import options
from minerva.core.errors import MinervaError, UsageError

if TYPE_CHECKING:
    from minerva.linux.namespace import Namespace


_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START


class NodeCommandError(MinervaError):
    """The node does not do its part."""


def _ask(run_dir: Path, command: str) -> dict[str, Any]:
    from minerva.connect import control

    try:
        return control.call(run_dir / "control.sock", {"command": command})
    except control.NodeError as error:
        raise NodeCommandError(str(error)) from error


@click.command()
@options.run_dir
@options.as_json
def status(run_dir: Path, as_json: bool) -> None:
    """Show what the running node does and sees."""
    from minerva.cli.show import status_text

    found = _ask(run_dir, "status")
    click.echo(json.dumps(found) if as_json else status_text(found))


def exec_in(where: Namespace, command: tuple[str, ...]) -> None:
    """Become ``command`` in the namespace ``where``. Raises UsageError, NodeCommandError."""
    from minerva.linux import namespace

    try:
        namespace.enter(where.descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # There is a file of that name, but what the node mounted on it is not to be seen from here.
        raise NodeCommandError(
            "the node runs in another mount namespace (was it started under 'ip netns exec'?)"
        ) from error
    where.close()
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise UsageError(f"cannot run {command[0]}: {error.strerror}") from error


@click.command(context_settings={"ignore_unknown_options": True})
@options.run_dir
@click.argument("where", metavar="acp", type=click.Choice(["acp"]))
@click.argument("port", type=click.IntRange(1, 65535))
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def listen(run_dir: Path, where: str, port: int, command: tuple[str, ...]) -> None:  # noqa: ARG001
    """Run COMMAND with a socket that listens on PORT of this node in the ACP.

    Nothing in the host's network can cut it. COMMAND gets it as systemd passes sockets: it is descriptor 3,
    and LISTEN_FDS and LISTEN_PID say so.
    """
    from minerva.asa.sockets import acp_listener

    given = acp_listener(port, run_dir=run_dir)
    given.sock.setblocking(True)
    os.dup2(given.sock.fileno(), _FIRST_DESCRIPTOR)
    os.set_inheritable(_FIRST_DESCRIPTOR, True)
    os.environ["LISTEN_FDS"], os.environ["LISTEN_PID"] = "1", str(os.getpid())
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise UsageError(f"cannot run {command[0]}: {error.strerror}") from error


@click.command("exec", context_settings={"ignore_unknown_options": True})
@options.run_dir
@click.argument("where", metavar="acp|link:PORT")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_command(run_dir: Path, where: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in the node's ACP namespace, or in the link namespace of a port."""
    from minerva.connect.control import node_namespace

    if os.geteuid() != 0:
        raise UsageError("'minerva exec' enters a network namespace: run it as root")
    exec_in(node_namespace(_ask(run_dir, "status"), where, "this node"), command)
