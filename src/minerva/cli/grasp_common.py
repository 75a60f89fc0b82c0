"""What the commands of ``minerva grasp`` share: the connection, options, and one sentence for every error."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, TypeVar

import click

from minerva.asa import blocking
from minerva.asa.protocol import API_SOCKET
from minerva.cli.options import FiniteRange
from minerva.cli.values import quoted
from minerva.connect.control import TO_HAVE_A_NODE
from minerva.core.errors import MinervaError, UsageError
from minerva.core.text import printable
from minerva.grasp.api import AsaError, AsaLocator, ErrorCode
from minerva.grasp.constants import GRASP_LISTEN_PORT, MAX_UINT32, TransportProto
from minerva.grasp.errors import GraspError
from minerva.grasp.options import NO_VALUE, IPv6Locator, Objective
from minerva.grasp.registry import check_name
from minerva.grasp.text import json_data

_F = TypeVar("_F", bound=Callable[..., Any])

MAX_SECONDS = MAX_UINT32 / 1000
"""The longest time that GRASP can say."""

SECONDS = FiniteRange(0, MAX_SECONDS)
LOOP_COUNT = click.IntRange(1, 255)


class _ObjectiveName(click.ParamType[str]):
    """The name of an objective."""

    name = "objective"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name. Raises click.BadParameter."""
        try:
            check_name(value)
        except AsaError as error:
            self.fail(f"{error.reason}.", param, ctx)
        return str(value)


objective_argument = click.argument("objective", type=_ObjectiveName())


class GraspCommandError(MinervaError):
    """What was asked of GRASP did not come about."""


def peer_option(function: _F) -> _F:
    """Add ``--peer``."""
    return click.option(
        "--peer", metavar="ADDRESS", help="Whom to ask: ADDRESS or [ADDRESS]:PORT; else one is discovered."
    )(function)


def timeout_option(seconds: float) -> Callable[[_F], _F]:
    """Add ``--timeout`` with that default."""
    return click.option(
        "--timeout", type=SECONDS, default=seconds, show_default=True, help="Seconds to wait for answers."
    )


cbor_option = click.option(
    "--cbor", "in_cbor", metavar="HEX", help="The value as CBOR, in the place of JSON."
)


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Turn errors of the API into ones that can be printed: a peer's reason may hold anything."""
    try:
        yield
    except AsaError as error:
        text = str(error)
        if error.code is ErrorCode.noSecurity:
            text = f"{error.reason}; {TO_HAVE_A_NODE} ({error.code.name})"
        raise GraspCommandError(printable(text)) from error
    except GraspError as error:
        raise UsageError(printable(str(error))) from error


def asa_name(what: str) -> str:
    """Return the name by which a command is registered as an ASA."""
    return f"minerva grasp {what} {os.getpid()}"


@contextlib.contextmanager
def registered(run_dir: Path, what: str) -> Iterator[blocking.Asa]:
    """Be an ASA of the node for the length of a command."""
    with one_sentence(), blocking.Asa.connect(asa_name(what), run_dir / API_SOCKET) as asa:
        yield asa


def node_status(run_dir: Path) -> dict[str, Any]:
    """Return the status of the node's GRASP."""
    with one_sentence(), blocking.Grasp.connect(run_dir / API_SOCKET) as connection:
        return connection.status()


def milliseconds(seconds: float) -> int:
    """Return a time as the API takes it."""
    # 0 means something else to each function, so what is nearly nothing must not become it.
    return min(max(round(seconds * 1000), int(seconds > 0)), MAX_UINT32)


def tcp_locator(text: str, option: str, default_port: int | None = None) -> AsaLocator:
    """Return the locator in ``ADDRESS`` or ``[ADDRESS]:PORT``, if others can reach it. Raises UsageError."""
    address, port = text, "" if default_port is None else str(default_port)
    if text.startswith("["):
        address, _, port = text[1:].partition("]:")
    try:
        if not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError
        locator = IPv6Locator(IPv6Address(address), TransportProto.IPPROTO_TCP, int(port))
    except ValueError:
        form = "[ADDRESS]:PORT" if default_port is None else "ADDRESS or [ADDRESS]:PORT"
        raise UsageError(f"{option} takes {form} with an IPv6 address, not {quoted(text)}") from None
    where = locator.address
    if where.is_loopback or where.is_unspecified or where.is_multicast or locator.port == 0:
        raise UsageError(
            f"{option} takes the address and the port of one node, as others reach it, not {quoted(text)}"
        )
    return AsaLocator(locator)


def peer_locator(text: str | None) -> AsaLocator | None:
    """Return what was given as ``--peer``. Raises UsageError."""
    return None if text is None else tcp_locator(text, "--peer", GRASP_LISTEN_PORT)


def objective_json(objective: Objective) -> dict[str, Any]:
    """Return an objective for ``--json``."""
    found = {"objective": objective.name, "loop_count": objective.loop_count}
    return found if objective.value is NO_VALUE else {**found, "value": json_data(objective.value)}


@contextlib.contextmanager
def until_interrupted(forever: bool) -> Iterator[None]:
    """Take Ctrl-C for the end of what would go on for ever."""
    try:
        yield
    except KeyboardInterrupt:
        if not forever:
            raise


def print_line(line: str) -> None:
    """Print at once, also into a pipe, and also what the terminal's encoding lacks."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    click.echo(line.encode(encoding, "backslashreplace").decode(encoding))
    if sys.stdout is not None:  # it was closed before we began
        sys.stdout.flush()
