"""``minerva console``: the serial consoles and BMCs of this machine, and of the domain."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import resource
import signal
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from minerva.cli import console_alerts, console_audit, console_records, console_remote, options
from minerva.cli.console_common import EXTRA, SOCKET, call, name_argument
from minerva.cli.options import FiniteRange
from minerva.cli.table import table
from minerva.core.errors import UsageError
from minerva.core.text import did_you_mean, printable, utc

_OPEN_FILES = 65_536
_TIMES = frozenset({"changed", "since", "started", "made", "expires"})


@click.group(short_help="Serial consoles and BMCs, here and in the domain.")
def console() -> None:
    """Serial consoles and BMCs: reach a machine whose network is broken."""


for _command in (
    console_records.log,
    console_records.search,
    console_records.replay,
    console_remote.connect,
    console_alerts.alerts,
    console_audit.audit,
):
    console.add_command(_command)


@console.command(short_help="Serve consoles, in the foreground.")
@options.config_file
@options.run_dir
def run(config_file: Path | None, run_dir: Path) -> None:
    """Serve the consoles that the configuration names, in the foreground, until ^C or SIGTERM.

    SIGHUP, or 'minerva console reload', has it read the configuration again.
    """
    from minerva.connect import log
    from minerva.console import config as configuration

    if config_file is not None:
        config_file = config_file.absolute()  # what is wrong with it may be read elsewhere
    config = configuration.load(config_file)
    log.configure("console")
    try:
        from minerva.console.server import ConsoleServer
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("minerva"):
            raise
        raise UsageError(EXTRA) from error

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
    # Each console, record and connection has a file open.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _OPEN_FILES)), hard))
    asyncio.run(main())


# --- what there is -----------------------------------------------------------------------------------------


@console.command("list", short_help="List the consoles, here or in the domain.")
@options.run_dir
@options.as_json
@click.option("--domain", is_flag=True, help="Show the consoles of all nodes of the domain.")
def list_consoles(run_dir: Path, as_json: bool, domain: bool) -> None:
    """List the consoles: what state they are in, who writes, how many are attached."""
    if domain:
        _list_domain(run_dir, as_json)
        return
    found = call(run_dir, "list")["consoles"]
    if as_json:
        click.echo(json.dumps(_with_times(found)))
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
    names = console_remote.node_names(run_dir)
    rows = [
        (name, state.value, names.get(str(one.address)), str(one.address), one.ssh or None)
        for one in console_remote.find(run_dir)
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
    found = call(run_dir, "who", console=console)["attached"]
    if as_json:
        click.echo(json.dumps(_with_times(found)))
        return
    rows = [
        (
            item["console"],
            item["number"],
            item["user"],
            "writes" if item["writing"] else "waits to write" if item["waiting"] else "reads",
            item["source"],
            utc(item["since"]),
            item["lost"],
        )
        for item in found
    ]
    head = ("CONSOLE", "NUMBER", "USER", "DOES", "FROM", "SINCE", "LOST")
    click.echo(table(head, rows, "nobody is attached"))


@console.command(short_help="Show how the console server is.")
@options.run_dir
@options.as_json
def status(run_dir: Path, as_json: bool) -> None:
    """Show how the console server is: where it listens, what is recorded, what went wrong."""
    found = call(run_dir, "status")
    if as_json:
        click.echo(json.dumps(_with_times(found)))
        return
    click.echo(f"since {utc(found['started'])}, directory {printable(found['directory'])}")
    rows = [
        (item["what"], item["where"], item["port"], item["address"], item["problem"])
        for item in found["listening"]
    ]
    click.echo(table(("FRONT", "WHERE", "PORT", "LISTENS ON", "PROBLEM"), rows, "no front is open"))
    if found["announcement_problem"]:
        click.echo(f"not announced to the domain: {printable(found['announcement_problem'])}")
    if found["revoked_problem"]:
        click.echo(f"nobody can log in with a key: {printable(found['revoked_problem'])}")
    if found["audit_failures"]:
        click.echo(f"{found['audit_failures']} entries of the audit log could not be written")
    if found["alerts_dropped"]:
        click.echo(f"{found['alerts_dropped']} alerts were dropped: their webhook is too slow")
    if found["alert_patterns_too_slow"]:
        click.echo("patterns of alerts take too long, and are not looked for all the time: see the log")
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


@console.command(short_help="Have the server read its configuration again.")
@options.run_dir
@options.as_json
def reload(run_dir: Path, as_json: bool) -> None:
    """Have the server read its configuration again; those who are attached stay attached."""
    found = call(run_dir, "reload")
    if as_json:
        click.echo(json.dumps(_with_times(found)))
        return
    for what in ("added", "removed", "changed", "reconnected"):
        if found[what]:
            click.echo(f"{what}: {printable(' '.join(found[what]))}")
    if not any(found.values()):
        click.echo("the consoles are the same as before")


# --- one console -------------------------------------------------------------------------------------------


@console.command(short_help="Have this terminal become a console.")
@name_argument
@click.option("--read", "mode", flag_value="read", help="Only read.")
@click.option("--write", "mode", flag_value="write", help="Ask to write, if another one does.")
@click.option(
    "--replay",
    type=click.IntRange(0),
    default=4096,
    show_default=True,
    help="Show so many bytes of before, first.",
)
@click.option("--escape", help="What begins commands.  [default: as configured: ^Ec]")
@click.option("--user", help="The user to log in as, at a console of another node.")
@options.run_dir
def attach(
    console: str, mode: str | None, replay: int, escape: str | None, user: str | None, run_dir: Path
) -> None:
    """Attach this terminal to CONSOLE, or to CONSOLE@NODE by SSH over the ACP.

    NODE is an address, or a name as 'minerva inventory' has it. A console that is not here but at one node
    of the domain is found there, and logged in to by a key: any node may say that it has a console of that
    name, so to be asked for a password, name the NODE. The escape, by default ^Ec, and '?' show what can be
    done; '.' leaves.
    """
    from minerva.asa.protocol import API_SOCKET
    from minerva.console import client

    name, _, node = console.partition("@")
    here: list[str] = []
    if not node and user is None:
        try:
            here = [item["name"] for item in call(run_dir, "list")["consoles"]]
        except client.NoServer:
            if not (run_dir / API_SOCKET).exists():
                raise
        if name in here:
            client.attach(run_dir / SOCKET, name, mode=mode, replay=replay, escape=escape)
            return
    address, port = console_remote.locate(run_dir, name, node, here)
    login = f"{user}:{name}" if user is not None else name
    command = ["read"] if mode == "read" else []
    if not node:
        shown = printable(name)
        hint = f"{shown} is at {address}, says that node; for a password, say {shown}@{address}"
        click.echo(hint, err=True)
    console_remote.become_ssh(run_dir, address, port, login, command, passwords=bool(node))


@console.command(context_settings={"ignore_unknown_options": True})
@name_argument
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
        call(run_dir, "send", console=console, data=part, force=force)


@console.command("break")
@name_argument
@click.option("--seconds", type=FiniteRange(0.001, 10.0), help="How long.  [default: as configured]")
@options.run_dir
def send_break(console: str, seconds: float | None, run_dir: Path) -> None:
    """Send a break to CONSOLE."""
    call(run_dir, "break", console=console, seconds=seconds)


@console.command()
@name_argument
@click.argument("action", type=click.Choice(["status", "on", "off", "cycle", "reset"]))
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.run_dir
def power(console: str, action: str, yes: bool, run_dir: Path) -> None:
    """Switch the machine behind CONSOLE, or ask whether it is on."""
    if action != "status" and not yes:
        attached = call(run_dir, "who", console=console)["attached"]
        if not click.confirm(_question(console, action, attached)):
            raise click.Abort
    said = call(run_dir, "power", console=console, action=action)["said"]
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
    call(run_dir, "say", console=name, text=" ".join(text))


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

    if enter and not seconds:
        raise click.UsageError("--enter needs --listen SECONDS.")

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


@console.command(short_help="Make the hash of a user's password.")
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
    found = call(run_dir, "token", role=role, ports=list(ports) or ["*"], days=days, hours=hours)
    if as_json:
        click.echo(json.dumps(_with_times(found)))
        return
    click.echo(found["token"])
    click.echo(
        f"number {found['number']}, good until {utc(found['expires'])}; "
        "log in as break-glass with it as the password",
        err=True,
    )
    names = [item["name"] for item in call(run_dir, "list")["consoles"]]
    for pattern in ports:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = did_you_mean(pattern, names)
            click.echo(f"now there is no console for {printable(pattern)}{hint}", err=True)


@break_glass.command("list")
@options.run_dir
@options.as_json
def list_tokens(run_dir: Path, as_json: bool) -> None:
    """List the tokens that have not been used."""
    found = call(run_dir, "tokens")["tokens"]
    if as_json:
        click.echo(json.dumps(_with_times(found)))
        return
    rows = [
        (item["number"], item["role"], " ".join(item["ports"]), item["made_by"], utc(item["expires"]))
        for item in found
    ]
    click.echo(table(("NUMBER", "ROLE", "CONSOLES", "MADE BY", "EXPIRES"), rows, "there are no tokens"))


@break_glass.command("revoke")
@click.argument("number")
@options.run_dir
def revoke_token(number: str, run_dir: Path) -> None:
    """Make a token useless."""
    call(run_dir, "revoke", number=number)


def _with_times(found: Any) -> Any:
    """Return an answer of the server with its times as all commands print them."""
    if isinstance(found, list):
        return [_with_times(item) for item in found]
    if isinstance(found, dict):
        return {
            key: utc(value, "milliseconds")
            if key in _TIMES and isinstance(value, int | float)
            else _with_times(value)
            for key, value in found.items()
        }
    return found
