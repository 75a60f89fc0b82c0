"""``minerva console``: the serial consoles and BMCs of this machine, and of the domain."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minerva.cli import options
from minerva.cli.options import FiniteRange
from minerva.cli.table import table
from minerva.core.errors import MinervaError, UsageError
from minerva.core.text import printable

if TYPE_CHECKING:
    from minerva.console.announce import Announced

_EXTRA = "the console server needs packages that are not here: pip install 'minerva-acp[console]'"
_SOCKET = "console.sock"
_DESCRIPTION = 40

config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    envvar="MINERVA_CONFIG",
    show_envvar=True,
    help="Configuration file.  [default: /etc/minerva/minerva.toml]",
)
_name = click.argument("console", metavar="CONSOLE")


@click.group(short_help="Serial consoles and BMCs, here and in the domain.")
def console() -> None:
    """Serial consoles and BMCs: reach a machine whose network is broken."""


@console.command()
@config_option
@options.run_dir
def run(config_file: Path | None, run_dir: Path) -> None:
    """Serve the consoles that the configuration names, in the foreground, until ^C or SIGTERM.

    SIGHUP, or 'minerva console reload', has it read the configuration again.
    """
    from minerva.connect import log
    from minerva.console import config as configuration

    config = configuration.load(config_file)
    log.configure("console")
    try:
        from minerva.console.server import ConsoleServer
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("minerva"):
            raise
        raise UsageError(_EXTRA) from error

    async def main() -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        server = ConsoleServer(config, run_dir, lambda: configuration.load(config_file))
        try:
            await server.start()
            loop.add_signal_handler(signal.SIGHUP, server.reload_soon)
            await stop.wait()
        finally:
            await server.close()

    os.umask(0o077)
    asyncio.run(main())


# --- what there is -----------------------------------------------------------------------------------------


@console.command("list")
@options.run_dir
@options.as_json
@click.option("--domain", is_flag=True, help="Show the consoles of all nodes of the domain.")
def list_consoles(run_dir: Path, as_json: bool, domain: bool) -> None:
    """List the consoles: what state they are in, who writes, how many are attached."""
    if domain:
        _list_domain(run_dir, as_json)
        return
    found = _call(run_dir, "list")["consoles"]
    if as_json:
        click.echo(json.dumps(found))
        return
    rows = [
        (
            item["name"],
            item["state"],
            item["attached"],
            item["writer"],
            item["description"] if item["state"] != "Down" else item["reason"],
        )
        for item in found
    ]
    head = ("CONSOLE", "STATE", "ATTACHED", "WRITER", "DESCRIPTION")
    click.echo(table(head, rows, "there are no consoles", flexible="DESCRIPTION"))


def _list_domain(run_dir: Path, as_json: bool) -> None:
    names = _node_names(run_dir)
    rows = [
        (name, state.value, names.get(str(one.address)), str(one.address), one.ssh or None)
        for one in _find(run_dir)
        for name, state in sorted(one.consoles.items())
    ]
    if as_json:
        keys = ("console", "state", "node", "address", "ssh")
        click.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows]))
        return
    head = ("CONSOLE", "STATE", "NODE", "ADDRESS", "SSH")
    click.echo(table(head, rows, "no node has told of consoles"))


@console.command()
@click.argument("console", required=False, metavar="[CONSOLE]")
@options.run_dir
@options.as_json
def who(console: str | None, run_dir: Path, as_json: bool) -> None:
    """Show who is attached, to one console or to all."""
    found = _call(run_dir, "who", console=console)["attached"]
    if as_json:
        click.echo(json.dumps(found))
        return
    rows = [
        (
            item["console"],
            item["number"],
            item["user"],
            "writes" if item["writing"] else "waits to write" if item["waiting"] else "reads",
            item["source"],
            _when(item["since"]),
            item["lost"],
        )
        for item in found
    ]
    head = ("CONSOLE", "NUMBER", "USER", "DOES", "FROM", "SINCE", "LOST")
    click.echo(table(head, rows, "nobody is attached"))


@console.command()
@options.run_dir
@options.as_json
def status(run_dir: Path, as_json: bool) -> None:
    """Show how the console server is: where it listens, what is recorded, what went wrong."""
    found = _call(run_dir, "status")
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"since {_when(found['started'])}, directory {printable(found['directory'])}")
    rows = [
        (item["what"], item["where"], item["port"], item["address"], item["problem"])
        for item in found["listening"]
    ]
    click.echo(table(("FRONT", "WHERE", "PORT", "LISTENS ON", "PROBLEM"), rows, "no front is open"))
    if found["announcement_problem"]:
        click.echo(f"not announced to the domain: {printable(found['announcement_problem'])}")
    if found["audit_failures"]:
        click.echo(f"{found['audit_failures']} entries of the audit log could not be written")
    consoles = [
        (
            item["name"],
            item["state"],
            item["device"],
            item["bytes_in"],
            item["bytes_out"],
            "yes" if item["recorded"] else "no",
            item["reason"],
        )
        for item in found["consoles"]
    ]
    head = ("CONSOLE", "STATE", "DEVICE", "IN", "OUT", "RECORDED", "REASON")
    click.echo("\n" + table(head, consoles, "there are no consoles", flexible="REASON"))


@console.command()
@options.run_dir
@options.as_json
def reload(run_dir: Path, as_json: bool) -> None:
    """Have the server read its configuration again; consoles that stay the same are not touched."""
    found = _call(run_dir, "reload")
    if as_json:
        click.echo(json.dumps(found))
        return
    for what in ("added", "removed", "changed"):
        if found[what]:
            click.echo(f"{what}: {printable(' '.join(found[what]))}")
    if not any(found.values()):
        click.echo("the consoles are the same as before")


# --- one console -------------------------------------------------------------------------------------------


@console.command()
@_name
@click.option("--read", "mode", flag_value="read", help="Only read.")
@click.option("--write", "mode", flag_value="write", help="Ask to write, if another one does.")
@click.option(
    "--replay",
    type=click.IntRange(0),
    default=4096,
    show_default=True,
    help="Show so many bytes of before, first.",
)
@click.option("--escape", help="What begins commands, such as ^Ec (which is the default).")
@click.option("--user", help="The user to log in as, at a console of another node.")
@options.run_dir
def attach(
    console: str, mode: str | None, replay: int, escape: str | None, user: str | None, run_dir: Path
) -> None:
    """Attach this terminal to CONSOLE, or to CONSOLE@NODE by SSH over the ACP.

    NODE is an address, or a name as 'minerva inventory' has it. A console that is not here but at one node
    of the domain is found there. The escape, by default ^Ec, and '?' show what can be done; '.' leaves.
    """
    from minerva.console import client

    name, _, node = console.partition("@")
    if not node and user is None:
        here = _call(run_dir, "list")["consoles"] if (run_dir / _SOCKET).exists() else []
        if any(item["name"] == name for item in here):
            client.attach(run_dir / _SOCKET, name, mode=mode, replay=replay, escape=escape)
            return
    address, port = _locate(run_dir, name, node)
    login = f"{user}:{name}" if user is not None else name
    command = ["read"] if mode == "read" else []
    _become_ssh(run_dir, address, port, login, command)


@console.command(context_settings={"ignore_unknown_options": True})
@_name
@click.argument("text", nargs=-1)
@click.option("--stdin", "from_stdin", is_flag=True, help="Send what comes on standard input, as it is.")
@click.option("--no-enter", is_flag=True, help="Do not send Enter after TEXT.")
@click.option("--force", is_flag=True, help="Also if somebody else writes.")
@options.run_dir
def send(
    console: str, text: tuple[str, ...], from_stdin: bool, no_enter: bool, force: bool, run_dir: Path
) -> None:
    """Send TEXT and Enter to CONSOLE, as if it had been typed."""
    if from_stdin is bool(text):
        raise click.UsageError("give TEXT, or --stdin.")
    data = sys.stdin.buffer.read() if from_stdin else " ".join(text).encode()
    if not from_stdin and not no_enter:
        data += b"\r"
    for start in range(0, len(data), 65_536):
        part = base64.b64encode(data[start : start + 65_536]).decode()
        _call(run_dir, "send", console=console, data=part, force=force)


@console.command("break")
@_name
@click.option("--seconds", type=FiniteRange(0.001, 10.0), help="How long.  [default: as configured]")
@options.run_dir
def send_break(console: str, seconds: float | None, run_dir: Path) -> None:
    """Send a break to CONSOLE."""
    _call(run_dir, "break", console=console, seconds=seconds)


@console.command()
@_name
@click.argument("action", type=click.Choice(["status", "on", "off", "cycle", "reset"]))
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.run_dir
def power(console: str, action: str, yes: bool, run_dir: Path) -> None:
    """Switch the machine behind CONSOLE, or ask whether it is on."""
    if action != "status" and not yes:
        attached = _call(run_dir, "who", console=console)["attached"]
        if not click.confirm(_question(console, action, attached)):
            raise click.Abort
    said = _call(run_dir, "power", console=console, action=action)["said"]
    click.echo(printable(said))


def _question(console: str, action: str, attached: list[dict[str, Any]]) -> str:
    from minerva.console.events import AttachmentInfo
    from minerva.console.power import PowerAction, confirmation

    people = [
        AttachmentInfo(
            item["number"],
            item["user"],
            item["source"],
            item["since"],
            item["writing"],
            item["writing"],
            item["waiting"],
            item["unread"],
            item["lost"],
        )
        for item in attached
    ]
    return confirmation(console, PowerAction(action), people)


@console.command()
@click.argument("text", nargs=-1, required=True)
@click.option("--console", "name", help="Only at this console.  [default: at all]")
@options.run_dir
def say(text: tuple[str, ...], name: str | None, run_dir: Path) -> None:
    """Tell something to all who are attached."""
    _call(run_dir, "say", console=name, text=" ".join(text))


# --- records -----------------------------------------------------------------------------------------------

_since = click.option("--since", type=click.DateTime(), help="From this time on (UTC).")
_until = click.option("--until", type=click.DateTime(), help="Up to this time (UTC).")


def _records(config_file: Path | None, console: str | None = None) -> Path:
    """Return where the records are. Raises UsageError if there are none of ``console``."""
    from minerva.console import config as configuration

    directory = configuration.load(config_file).records_directory
    if console is not None and not (directory / console).is_dir():
        raise UsageError(f"there are no records of {printable(console)} in {directory}")
    return directory


def _utc(moment: datetime | None, otherwise: float) -> float:
    return otherwise if moment is None else moment.replace(tzinfo=UTC).timestamp()


@console.command()
@_name
@click.option("-n", "--lines", "count", type=click.IntRange(1), default=50, show_default=True)
@config_option
@options.as_json
def log(console: str, count: int, config_file: Path | None, as_json: bool) -> None:
    """Show the last lines of the record of CONSOLE, each with its time."""
    from minerva.console import record_search

    for line in record_search.last_lines(_records(config_file, console), console, count):
        _show_line(line, as_json, with_name=False)


@console.command()
@click.argument("pattern")
@click.option("--console", "names", multiple=True, help="Only in these; a pattern.  [default: all]")
@click.option("-i", "--ignore-case", is_flag=True)
@_since
@_until
@config_option
@options.as_json
def search(
    pattern: str,
    names: tuple[str, ...],
    ignore_case: bool,
    since: datetime | None,
    until: datetime | None,
    config_file: Path | None,
    as_json: bool,
) -> None:
    """Show the lines of all records in which PATTERN, a regular expression, is."""
    import re

    from minerva.console import record_search

    try:
        compiled = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        raise UsageError(f"{pattern!r} is no regular expression: {error}") from error
    found = record_search.search(
        _records(config_file),
        compiled,
        consoles=names or ("*",),
        since=_utc(since, 0.0),
        until=_utc(until, float("inf")),
    )
    for line in found:
        _show_line(line, as_json, with_name=True)


@console.command()
@_name
@click.option("--speed", type=FiniteRange(0.01, 10_000), default=1.0, show_default=True)
@click.option("--max-idle", type=FiniteRange(0, 3600), default=2.0, show_default=True, help="Longest pause.")
@_since
@_until
@config_option
def replay(
    console: str,
    speed: float,
    max_idle: float,
    since: datetime | None,
    until: datetime | None,
    config_file: Path | None,
) -> None:
    """Show on this terminal what CONSOLE said, as it was, at its speed.

    What it said goes to the terminal with all its control sequences, as if attached.
    """
    import time

    from minerva.console import record_search

    found = record_search.replay(
        _records(config_file, console),
        console,
        since=_utc(since, 0.0),
        until=_utc(until, float("inf")),
        speed=speed,
        max_idle=max_idle,
    )
    for wait, data in found:
        time.sleep(wait)
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _show_line(line: Any, as_json: bool, *, with_name: bool) -> None:
    if as_json:
        item = {"console": line.console, "at": line.at, "kind": line.kind, "text": line.text}
        click.echo(json.dumps(item))
        return
    moment = datetime.fromtimestamp(line.at, UTC)
    name = f"{line.console} " if with_name else ""
    click.echo(
        f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03} {name}{line.kind} {printable(line.text)}"
    )


# --- access ------------------------------------------------------------------------------------------------


@console.command(short_help="Find serial lines, and what is at their other end.")
@click.option("--listen", "seconds", type=FiniteRange(0, 60), help="Listen so many seconds to each.")
@click.option("--speed", type=click.IntRange(50, 16_000_000), default=115_200, show_default=True)
@click.option("--enter", is_flag=True, help="Type Enter first, so that the device says something.")
@options.as_json
def discover(seconds: float | None, speed: int, enter: bool, as_json: bool) -> None:
    """Show the serial lines of this machine, by names that stay the same when adapters are plugged.

    With --listen, a name is suggested from what the device says, such as "web1 login:". A line that another
    program has is not disturbed.
    """
    from minerva.console import discovery
    from minerva.console.backends.base import BackendError

    async def name_of(path: str) -> tuple[str, str]:
        try:
            said = await discovery.listen(path, speed=speed, seconds=seconds or 0.0, enter=enter)
        except BackendError as error:
            return "", str(error)
        return discovery.suggested_name(said) or "", "" if said else "says nothing"

    async def names(paths: list[str]) -> list[tuple[str, str]]:
        return await asyncio.gather(*map(name_of, paths))

    found = discovery.adapters()
    guesses = asyncio.run(names([one.path for one in found])) if seconds else [("", "")] * len(found)
    rows = [
        (one.path, one.device, one.description, name, remark)
        for one, (name, remark) in zip(found, guesses, strict=True)
    ]
    head = ("path", "device", "description", "name", "remark")
    if as_json:
        click.echo(json.dumps([dict(zip(head, row, strict=True)) for row in rows]))
    else:
        click.echo(table(tuple(title.upper() for title in head), rows, "there are no serial lines here"))


@console.command()
def password() -> None:
    """Ask for a password and print its hash, for the setting 'password' of a user."""
    from minerva.console.passwords import hash_password

    text = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    click.echo(hash_password(text))


@console.group("break-glass", short_help="One-time tokens for when nothing else lets one in.")
def break_glass() -> None:
    """One-time tokens for when nothing else lets one in: made beforehand, kept in an envelope."""


@break_glass.command("create")
@click.option(
    "--role",
    type=click.Choice(["view", "write", "power", "admin"]),
    default="power",
    show_default=True,
)
@click.option("--console", "ports", multiple=True, help="For these; a pattern.  [default: all]")
@click.option("--days", type=FiniteRange(0.01, 3650), default=90.0, show_default=True, help="Good so long.")
@click.option(
    "--hours",
    type=FiniteRange(0.01, 1000),
    default=8.0,
    show_default=True,
    help="Who has used it may work so long.",
)
@options.run_dir
@options.as_json
def create_token(
    role: str, ports: tuple[str, ...], days: float, hours: float, run_dir: Path, as_json: bool
) -> None:
    """Make a token and print it, this once."""
    found = _call(run_dir, "token", role=role, ports=list(ports) or ["*"], days=days, hours=hours)
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(found["token"])
    click.echo(
        f"number {found['number']}, good until {_when(found['expires'])}; "
        "log in as break-glass with it as the password",
        err=True,
    )


@break_glass.command("list")
@options.run_dir
@options.as_json
def list_tokens(run_dir: Path, as_json: bool) -> None:
    """List the tokens that have not been used."""
    found = _call(run_dir, "tokens")["tokens"]
    if as_json:
        click.echo(json.dumps(found))
        return
    rows = [
        (item["number"], item["role"], " ".join(item["ports"]), item["made_by"], _when(item["expires"]))
        for item in found
    ]
    click.echo(table(("NUMBER", "ROLE", "CONSOLES", "MADE BY", "EXPIRES"), rows, "there are no tokens"))


@break_glass.command("revoke")
@click.argument("number")
@options.run_dir
def revoke_token(number: str, run_dir: Path) -> None:
    """Make a token useless."""
    _call(run_dir, "revoke", number=number)


# --- over the ACP ------------------------------------------------------------------------------------------


@console.command(short_help="Connect standard input and output to a port in the ACP.")
@click.argument("address")
@click.argument("port", type=click.IntRange(1, 65_535))
@options.run_dir
def connect(address: str, port: int, run_dir: Path) -> None:
    """Connect standard input and output to PORT at ADDRESS, a node of the ACP.

    For ssh: ssh -o ProxyCommand='minerva console connect %h %p' -p 2222 CONSOLE@ADDRESS
    """
    from minerva.asa.sockets import acp_connect
    from minerva.console.client import carry

    with acp_connect(_address(address), port, run_dir=run_dir) as given:
        _wait_connected(given.sock, address, port)
        carry(given.sock, sys.stdin.fileno(), sys.stdout.fileno())


def _wait_connected(sock: socket.socket, address: str, port: int) -> None:
    import select

    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    if not poll.poll(20_000):
        raise _ConsoleCommandError(f"{address} port {port} does not answer")
    if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise _ConsoleCommandError(f"{address} port {port}: {os.strerror(code)}")


class _ConsoleCommandError(MinervaError):
    """What was wanted of a console cannot be done."""


def _address(text: str) -> Any:
    from ipaddress import IPv6Address

    try:
        return IPv6Address(text)
    except ValueError:
        raise UsageError(f"{text!r} is not an IPv6 address") from None


def _locate(run_dir: Path, console: str, node: str) -> tuple[str, int]:
    """Return the address and the SSH port of the server that has a console. Raises MinervaError."""
    from minerva.console.config import Ssh

    servers = _find(run_dir)
    if node:
        try:
            wanted = {str(_address(node))}
        except UsageError:
            wanted = {address for address, name in _node_names(run_dir).items() if name == node}
            if not wanted:
                raise UsageError(f"there is no node {node!r}: see 'minerva inventory'") from None
        for one in servers:
            if str(one.address) in wanted:
                return str(one.address), one.ssh
        # It may not be announced, and be there all the same.
        return wanted.pop(), Ssh().port
    having = [one for one in servers if console in one.consoles and one.ssh]
    if not having:
        raise UsageError(f"there is no console {console!r}, neither here nor announced in the domain")
    if len(having) > 1:
        where = ", ".join(f"{console}@{one.address}" for one in having)
        raise UsageError(f"several nodes have a console {console!r}: say which of {where}")
    return str(having[0].address), having[0].ssh


def _become_ssh(run_dir: Path, address: str, port: int, login: str, command: list[str]) -> None:
    """Become an ssh that connects over the ACP."""
    import shlex

    proxy = [sys.executable, "-m", "minerva", "console", "connect", "--run-dir", str(run_dir)]
    words = [
        *("ssh", "-o", f"ProxyCommand={shlex.join(proxy)} %h %p"),
        *("-o", f"HostKeyAlias=minerva-{address}", "-o", "EscapeChar=none"),
        *("-t", "-p", str(port), "-l", login, address, *command),
    ]
    try:
        os.execvp(words[0], words)
    except OSError as error:
        raise UsageError(f"cannot run ssh: {error.strerror}") from error


def _find(run_dir: Path) -> list[Announced]:
    from minerva.cli.grasp_common import one_sentence
    from minerva.console.announce import find

    with one_sentence():
        return asyncio.run(find(run_dir))


def _node_names(run_dir: Path) -> dict[str, str]:
    from minerva.asa.protocol import API_SOCKET
    from minerva.cli.grasp_common import one_sentence
    from minerva.cli.inventory import take_inventory

    with one_sentence():
        machines = asyncio.run(take_inventory(run_dir / API_SOCKET, ask=False))
    # The inventory has the addresses of the nodes' GRASP, which are those of the nodes.
    return {machine.address: machine.description.name for machine in machines}


def _call(run_dir: Path, command: str, **arguments: Any) -> dict[str, Any]:
    from minerva.console import client

    wanted = {name: value for name, value in arguments.items() if value is not None}
    return client.call(run_dir / _SOCKET, command, **wanted)


def _when(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
