"""``minerva pledge`` and ``minerva factory-reset``: into a domain by hand, and out of it."""

from __future__ import annotations

import json
import os
import sys
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minerva.cli import options
from minerva.core.errors import MinervaError, UsageError
from minerva.core.text import printable, utc

if TYPE_CHECKING:
    import socket

    from minerva.brski.pledge.attempt import Step
    from minerva.brski.pledge.device import Device
    from minerva.brski.pledge.enrolment import Enrolled

_DEFAULT_PORT = 8443
_CONNECT_SECONDS = 10.0
_NODE_RUNS = "a node runs with the state directory {}; stop it first"


@click.command()
@click.option(
    "--registrar",
    required=True,
    metavar="HOST[:PORT]",
    help=f"The registrar, or a join proxy: a name, an address, or [address]:port.  [port: {_DEFAULT_PORT}]",
)
@options.state_dir
@click.option(
    "--idevid",
    type=click.Path(file_okay=False, path_type=Path),
    help="The device's own identity, from its maker.  [default: idevid in the state directory]",
)
@options.as_json
def pledge(registrar: str, state_dir: Path, idevid: Path | None, as_json: bool) -> None:
    """Make this machine a member of the domain of a registrar that you name.

    A node without a certificate does this by itself, with the join proxies on its links. By hand it works
    over any network. The registrar is not trusted for being named: the maker's voucher has to be for it.
    """
    import asyncio

    from minerva.brski.pledge.device import load_device
    from minerva.connect.state import lock_directory
    from minerva.pki.identity import IDEVID_DIRECTORY

    host, port = _host_and_port(registrar)
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = lock_directory(state_dir, _NODE_RUNS.format(state_dir))
    except OSError as error:
        raise UsageError(f"cannot use the state directory {state_dir}: {error.strerror}") from error
    try:
        _check_none(state_dir)
        device = load_device(idevid or state_dir / IDEVID_DIRECTORY)
        enrolled, reported = asyncio.run(_enrol(device, host, port, state_dir))
    finally:
        os.close(lock)
    _print_enrolled(state_dir, device, enrolled, reported, as_json)


@click.command()
@options.state_dir
@click.option("--yes", is_flag=True, help="Do not ask.")
def factory_reset(state_dir: Path, yes: bool) -> None:
    """Make this machine forget the domain it is a member of: its certificate, key and trust anchors.

    It keeps what its maker gave it (idevid in the state directory), with which it can enrol again, and the
    secret by which a node finds at its start what an earlier one left behind.
    """
    from minerva.connect.state import lock_directory
    from minerva.pki.identity import IDEVID_DIRECTORY, remove_identity

    try:
        lock = lock_directory(state_dir, _NODE_RUNS.format(state_dir))
    except OSError as error:
        raise UsageError(f"cannot use the state directory {state_dir}: {error.strerror}") from error
    try:
        if not yes:
            _ask(state_dir)
        removed = remove_identity(state_dir)
    finally:
        os.close(lock)
    if not removed:
        click.echo(f"{state_dir} holds no ACP identity: nothing to forget")
        return
    click.echo(f"the ACP identity in {state_dir} is removed")
    if not (state_dir / IDEVID_DIRECTORY).is_dir():
        click.echo(
            f"there is no {IDEVID_DIRECTORY} in it: without one this machine cannot enrol by itself", err=True
        )


def _ask(state_dir: Path) -> None:
    if not sys.stdin.isatty():
        raise UsageError(
            f"this removes the ACP certificate, key and trust anchors in {state_dir}: say --yes to do it"
        )
    question = f"Remove the ACP certificate, key and trust anchors in {state_dir}?"
    if not click.confirm(question, err=True):
        raise click.Abort


def _check_none(state_dir: Path) -> None:
    from minerva.pki.identity import CERTIFICATE_FILE, KEY_FILE, finish_storing

    finish_storing(state_dir)
    for name in (CERTIFICATE_FILE, KEY_FILE):
        if (state_dir / name).exists():
            raise UsageError(
                f"there is an identity in {state_dir} already ({name}); it is left as it is: "
                "'minerva factory-reset' removes it"
            )


def _host_and_port(text: str) -> tuple[str, int]:
    """Return what ``text`` names. Raises UsageError."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        good = bracket == "]" and (not rest or rest.startswith(":"))
        number = rest[1:] if rest else str(_DEFAULT_PORT)
    elif text.count(":") > 1:
        _check_no_port(text)
        host, number, good = text, str(_DEFAULT_PORT), True
    else:
        host, colon, number = text.partition(":")
        number, good = (number, True) if colon else (str(_DEFAULT_PORT), True)
    if not good or not host or not number.isascii() or not number.isdigit() or not 0 < int(number) < 65_536:
        raise UsageError(f"--registrar takes HOST:PORT or [ADDRESS]:PORT, not '{printable(text)}'")
    return host, int(number)


def _check_no_port(text: str) -> None:
    """Raise UsageError if an address without brackets may have a port at its end."""
    address, _, port = text.rpartition(":")
    try:
        IPv6Address(address)
    except ValueError:
        return
    shown, other = printable(text), f"[{printable(address)}]:{printable(port)}"
    raise UsageError(f"--registrar {shown} may be an address, or one with a port: say [{shown}] or {other}")


async def _enrol(device: Device, host: str, port: int, state_dir: Path) -> tuple[Enrolled, bool]:
    """Enrol, keep what was got, and tell the registrar; return whether that knows."""
    from datetime import UTC, datetime
    from functools import partial

    from minerva.brski.pledge.attempt import bootstrap, report_enrolled
    from minerva.brski.pledge.errors import AttemptError
    from minerva.core.secret import Secret
    from minerva.https.stream import host_and_port
    from minerva.pki.identity import store_identity
    from minerva.pki.keys import dump_private_key

    connect = partial(_connect, host, port)
    named = host_and_port(host.partition("%")[0], port)
    enrolled = await bootstrap(
        connect,
        device,
        now=lambda: device.believable(datetime.now(UTC)),
        on_step=_show,
        host=named,
        connect_to=_connect,
    )
    store_identity(state_dir, enrolled.identity, Secret(dump_private_key(enrolled.key)))
    try:
        await report_enrolled(connect, enrolled, on_step=_show, host=named)
    except AttemptError as error:
        # It has what it came for; only the registrar's log lacks a line.
        click.echo(f"the registrar could not be told: {error}", err=True)
        return enrolled, False
    return enrolled, True


def _show(step: Step, text: str) -> None:
    click.echo(f"{step.value}: {text}", err=True)


async def _connect(host: str, port: int) -> socket.socket:
    """Return a socket that is connected to ``host``, by whichever of its addresses. Raises MinervaError."""
    import asyncio
    import socket

    from minerva.https.stream import host_and_port

    loop = asyncio.get_running_loop()
    who = host_and_port(host, port)
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "that is no name"
        raise MinervaError(f"{who} cannot be found: {reason}") from error
    problem: OSError | None = None
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            problem = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    answer = "nobody answers" if problem is None or not problem.errno else os.strerror(problem.errno)
    raise MinervaError(f"{who} cannot be reached: {answer}")


def _print_enrolled(
    state_dir: Path, device: Device, enrolled: Enrolled, reported: bool, as_json: bool
) -> None:
    identity, expires = enrolled.identity, enrolled.certificate.not_valid_after_utc
    if not as_json:
        click.echo(
            f"{identity.address} in {state_dir}, a member of {identity.node_name.acp_domain}, "
            f"valid until {utc(expires)}"
        )
        return
    result: dict[str, Any] = {
        "directory": str(state_dir),
        "serial_number": device.serial_number,
        "acp_node_name": str(identity.node_name),
        "address": str(identity.address),
        "prefix": str(identity.address.prefix),
        "serial": f"{enrolled.certificate.serial_number:x}",
        "expires": utc(expires),
        "registrar": printable(enrolled.registrar.subject.rfc4514_string()),
        "reported": reported,
    }
    click.echo(json.dumps(result))
