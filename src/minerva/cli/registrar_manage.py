"""``minerva registrar``: running it, and what operators do with manufacturers and devices."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from minerva.cli import options
from minerva.cli.registrar import directory_option, json_option, registrar
from minerva.core.text import utc

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from minerva.brski.registrar.devices import Device
    from minerva.brski.registrar.manufacturers import Manufacturer

# As in cli/registrar.py; a test keeps these equal to what they stand for.
POLICIES = ("any", "listed", "approve")
STATES = ("waiting", "approved", "denied", "vouchered", "enrolled", "revoked")
SERIAL_SOURCES = ("serial-number", "common-name", "hardware-module-name")
PORT = 8443

_WIDTH = 60
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_F = TypeVar("_F", bound=Callable[..., Any])


def _manufacturer_option(function: _F) -> _F:
    return click.option(
        "--manufacturer",
        "maker",
        help="Whose device it is, if several manufacturers have one of that number.",
    )(function)


def _reason_option(function: _F) -> _F:
    return click.option("--reason", help="Why: the device is told so.")(function)


def _own_option(function: _F) -> _F:
    return click.option(
        "--own", is_flag=True, help="Also if it is the first node of the domain, which cannot come back."
    )(function)


@registrar.command(short_help="Run the registrar in the foreground.")
@directory_option
@click.option("--address", help="The address to listen on.  [default: that of this machine in the ACP]")
@click.option(
    "--port", type=click.IntRange(0, 65535), help=f"The port for devices and nodes.  [default: {PORT}]"
)
@click.option(
    "--crl-port", type=click.IntRange(0, 65535), help="The port for the CRL.  [default: as at `init`]"
)
@options.run_dir
def run(directory: Path, address: str | None, port: int | None, crl_port: int | None, run_dir: Path) -> None:
    """Let devices in until ^C or SIGTERM.

    Without --address it waits for the node of this machine, and for its interface into the ACP.
    """
    import asyncio
    from ipaddress import IPv6Address

    from minerva.brski.interpreter import prepare
    from minerva.brski.registrar.config import load
    from minerva.brski.registrar.server import serve
    from minerva.connect.log import configure

    if address is not None:
        try:
            IPv6Address(address)
        except ValueError:
            raise click.BadParameter(f"{address} is not an IPv6 address.", param_hint="'--address'") from None
    configure("registrar", load(directory).log_level)
    prepare()
    asyncio.run(serve(directory, run_dir, address=address, port=port, crl_port=crl_port))


@registrar.group()
def manufacturer() -> None:
    """The manufacturers whose devices may come."""


@manufacturer.command("add", short_help="Let devices of a manufacturer come.")
@click.argument("name")
@directory_option
@click.option(
    "--anchors",
    type=_FILE,
    required=True,
    help="A PEM file: what its devices' certificates and its vouchers are checked with.",
)
@click.option("--masa-url", help="Where its MASA is.  [default: where its devices' certificates say]")
@click.option(
    "--masa-anchors",
    metavar="FILE|web",
    help="A PEM file with what its MASA's web server is known by; web: as browsers do.  [default: --anchors]",
)
@click.option(
    "--policy",
    type=click.Choice(POLICIES),
    default="any",
    show_default=True,
    help="Which devices may join: any, those listed by `allow`, or those that you approve when they come.",
)
@click.option("--ignore-expiry", is_flag=True, help="Its devices' certificates do not expire for us.")
@click.option(
    "--serial-source",
    type=click.Choice(SERIAL_SOURCES),
    default="serial-number",
    show_default=True,
    help="Where in a device's certificate its serial number is.",
)
@json_option
def add_manufacturer(
    name: str,
    directory: Path,
    anchors: Path,
    masa_url: str | None,
    masa_anchors: str | None,
    policy: str,
    ignore_expiry: bool,
    serial_source: str,
    as_json: bool,
) -> None:
    """Let devices of the manufacturer NAME come."""
    from minerva.brski.registrar import manufacturers
    from minerva.brski.registrar.policy import Policy
    from minerva.pki.idevid import SerialNumberSource

    server = _server_anchors(masa_anchors)
    with _writing(directory) as connection:
        added = manufacturers.add(
            connection,
            name,
            anchors.read_bytes(),
            when=datetime.now(UTC),
            masa_url=masa_url,
            masa_anchors_pem=server,
            policy=Policy(policy),
            ignore_expiry=ignore_expiry,
            serial_source=SerialNumberSource(serial_source),
        )
    _print_manufacturer(added, as_json)


def _server_anchors(given: str | None) -> Any:
    """Return what --masa-anchors says: what is in the file, if it names one."""
    return given if given in (None, "", "web") else Path(str(given)).read_bytes()


@manufacturer.command("change", short_help="Change a manufacturer's policy, or where its MASA is.")
@click.argument("name")
@directory_option
@click.option("--policy", type=click.Choice(POLICIES), help="Which devices may join from now on.")
@click.option(
    "--ignore-expiry/--heed-expiry", default=None, help="Whether its devices' certificates expire for us."
)
@click.option("--masa-url", help="Where its MASA is; '': where its devices' certificates say.")
@click.option(
    "--masa-anchors",
    metavar="FILE|web",
    help="A PEM file with what its MASA's web server is known by; web: as browsers do; '': its --anchors.",
)
@json_option
def change_manufacturer(
    name: str,
    directory: Path,
    policy: str | None,
    ignore_expiry: bool | None,
    masa_url: str | None,
    masa_anchors: str | None,
    as_json: bool,
) -> None:
    """Change what goes for devices of the manufacturer NAME that come from now on."""
    from minerva.brski.registrar import manufacturers
    from minerva.brski.registrar.policy import Policy

    with _writing(directory) as connection:
        changed = manufacturers.change(
            connection,
            name,
            policy=None if policy is None else Policy(policy),
            ignore_expiry=ignore_expiry,
            masa_url=masa_url,
            masa_anchors_pem=_server_anchors(masa_anchors),
        )
    _print_manufacturer(changed, as_json)


@manufacturer.command("list")
@directory_option
@json_option
def list_manufacturers(directory: Path, as_json: bool) -> None:
    """List the manufacturers."""
    from minerva.brski.registrar.manufacturers import load_all
    from minerva.cli.table import table

    with _reading(directory) as connection:
        found = [_describe_manufacturer(one) for one in load_all(connection)]
    if as_json:
        _print_json({"manufacturers": found})
        return
    rows = [(one["name"], one["policy"], one["masa_url"], ", ".join(one["anchors"])) for one in found]
    click.echo(table(("NAME", "POLICY", "MASA", "ANCHORS"), rows, "no manufacturers", width=_WIDTH))


@manufacturer.command("remove")
@click.argument("name")
@directory_option
@json_option
def remove_manufacturer(name: str, directory: Path, as_json: bool) -> None:
    """Forget the manufacturer NAME, of whom no device has come."""
    from minerva.brski.registrar.manufacturers import remove

    with _writing(directory) as connection:
        remove(connection, name)
    if as_json:
        _print_json({"removed": name})


@registrar.command()
@directory_option
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@json_option
def devices(directory: Path, state: str | None, as_json: bool) -> None:
    """List the devices, and what was refused in the last day."""
    from minerva.brski.registrar.database import DeviceState
    from minerva.brski.registrar.journal import REFUSED
    from minerva.brski.registrar.management import RECENT, describe_devices, describe_events
    from minerva.cli.table import table

    with _reading(directory) as connection:
        found = list(describe_devices(connection, None if state is None else DeviceState(state)))
        since = datetime.now(UTC) - RECENT
        refused = describe_events(connection, count=20, kind=REFUSED, since=since)
    if as_json:
        _print_json({"devices": found, "refused": refused})
        return
    head = ("SERIAL NUMBER", "MANUFACTURER", "STATE", "ADDRESS", "EXPIRES", "LAST SEEN", "FROM", "REASON")
    rows = [
        (
            one["serial_number"],
            one["manufacturer"],
            one["state"] if one["audit_ok"] is not False else f"{one['state']}, history refused",
            one["address"],
            _shown_time(one["expires"]),
            _shown_time(one["last_seen"]),
            one["peer"],
            one["reason"],
        )
        for one in found
    ]
    click.echo(table(head, rows, "no devices", width=_WIDTH))
    if refused and state is None:
        click.echo("\nrefused in the last day:")
        _print_events(refused)


@registrar.command(short_help="Put devices on the list of those that may join.")
@click.argument("serial_numbers", metavar="SERIAL...", nargs=-1)
@directory_option
@_manufacturer_option
@click.option(
    "--from", "file", type=click.File(), help="A file with one serial number in a line; - for standard input."
)
@json_option
def allow(
    serial_numbers: tuple[str, ...], directory: Path, maker: str | None, file: Any, as_json: bool
) -> None:
    """Let devices join, whatever the policy of their manufacturer says."""
    from minerva.brski.registrar import management

    numbers = [*serial_numbers, *((line.strip() for line in file) if file is not None else ())]
    numbers = [number for number in numbers if number]
    if not numbers:
        raise click.UsageError("Give a SERIAL, or --from a file.")
    with _writing(directory) as connection:
        allowed = [management.allow(connection, number, maker, when=datetime.now(UTC)) for number in numbers]
    if as_json:
        _print_json({"devices": [_describe_device(device) for device in allowed]})
    else:
        click.echo(f"{len(allowed)} allowed")


@registrar.command(short_help="Let a device in that waits, or was shut out.")
@click.argument("serial_number", metavar="SERIAL")
@directory_option
@_manufacturer_option
@json_option
def approve(serial_number: str, directory: Path, maker: str | None, as_json: bool) -> None:
    """Let the device SERIAL in, with whatever history: at its next request, which comes within a minute."""
    from minerva.brski.registrar import management

    with _writing(directory) as connection:
        device = management.approve(connection, serial_number, maker, when=datetime.now(UTC))
    _print_device(device, as_json)


@registrar.command(short_help="Shut a device out.")
@click.argument("serial_number", metavar="SERIAL")
@directory_option
@_manufacturer_option
@_reason_option
@_own_option
@json_option
def deny(
    serial_number: str, directory: Path, maker: str | None, reason: str | None, own: bool, as_json: bool
) -> None:
    """Give the device SERIAL no voucher and no certificate any more. What it has stays good: see revoke."""
    from minerva.brski.registrar import management

    with _writing(directory) as connection:
        device = management.deny(
            connection, serial_number, maker, reason=reason, when=datetime.now(UTC), own=own
        )
    _print_device(device, as_json)
    if device.peer is None and device.manufacturer_id is not None and not as_json:
        click.echo("a device of this number has not come yet: is it the right one?", err=True)


@registrar.command(short_help="Revoke a device and its certificates.")
@click.argument("serial_number", metavar="SERIAL")
@directory_option
@_manufacturer_option
@_reason_option
@_own_option
@json_option
def revoke(
    serial_number: str, directory: Path, maker: str | None, reason: str | None, own: bool, as_json: bool
) -> None:
    """Throw the device SERIAL out: its certificates are on the next CRL, which nodes fetch in time."""
    from minerva.brski.registrar import management

    with _writing(directory) as connection:
        device, count = management.revoke(
            connection, serial_number, maker, reason=reason, when=datetime.now(UTC), own=own
        )
    if as_json:
        _print_json(_describe_device(device) | {"certificates": count})
    else:
        certificates = "1 certificate" if count == 1 else f"{count} certificates"
        click.echo(f"{device.serial_number} is revoked, with {certificates}")


@registrar.command("log", short_help="Show what has happened.")
@click.argument("serial_number", metavar="[SERIAL]", required=False)
@directory_option
@click.option(
    "-n", "count", type=click.IntRange(1, 100_000), default=50, show_default=True, help="How many events."
)
@json_option
def show_log(serial_number: str | None, directory: Path, count: int, as_json: bool) -> None:
    """Show the last events, or those of the device SERIAL."""
    from minerva.brski.registrar.management import describe_events

    with _reading(directory) as connection:
        found = describe_events(connection, serial_number, count=count)
    if as_json:
        _print_json({"events": found})
    elif found:
        _print_events(found)
    else:
        click.echo("no events")


@registrar.command()
@directory_option
@json_option
def status(directory: Path, as_json: bool) -> None:
    """Show how the registrar is."""
    from minerva.brski.registrar.management import describe_status
    from minerva.brski.registrar.server import running

    now = datetime.now(UTC)
    with _reading(directory) as connection:
        found = describe_status(connection, now) | {"running": running(connection, now)}
    if as_json:
        _print_json(found)
        return
    click.echo(f"registrar of {found['domain']}, CA: {found['authority']}")
    if not found["running"]:
        click.echo("no process runs: start one with `minerva registrar run`")
    for process in found["running"]:
        announced = "announced in the ACP" if process["announced"] else "not announced in the ACP"
        click.echo(f"runs on [{process['address']}]:{process['port']}, {announced}")
    counts = [f"{count} {state}" for state, count in found["devices"].items() if count]
    click.echo(f"devices: {', '.join(counts) or 'none'}")
    click.echo(
        f"manufacturers: {found['manufacturers']}, refused in the last day: {found['refused_last_day']}"
    )
    if found["crl"] is not None:
        click.echo(f"CRL {found['crl']['number']}, the next by {_shown_time(found['crl']['next_update'])}")
    else:
        click.echo("no CRL yet: `minerva registrar run` makes it")


@contextmanager
def _reading(directory: Path) -> Iterator[Connection]:
    with _database(directory) as engine:
        from minerva.brski.registrar.database import reading

        with reading(engine) as connection:
            yield connection


@contextmanager
def _writing(directory: Path) -> Iterator[Connection]:
    with _database(directory) as engine:
        from minerva.brski.registrar.database import writing

        with writing(engine) as connection:
            yield connection


@contextmanager
def _database(directory: Path) -> Iterator[Any]:
    from minerva.brski.registrar.config import load
    from minerva.brski.registrar.database import check_schema, open_database

    engine = open_database(load(directory).database_url(directory))
    try:
        check_schema(engine)
        yield engine
    finally:
        engine.dispose()


def _describe_manufacturer(one: Manufacturer) -> dict[str, Any]:
    return {
        "name": one.name,
        "policy": one.policy.value,
        "masa_url": one.masa_url,
        "anchors": [anchor.subject.rfc4514_string() for anchor in one.anchors],
        "masa_anchors": one.masa_anchors
        if one.masa_anchors is None or isinstance(one.masa_anchors, str)
        else [anchor.subject.rfc4514_string() for anchor in one.masa_anchors],
        "ignore_expiry": one.ignore_expiry,
        "serial_source": one.serial_source.value,
    }


def _print_manufacturer(one: Manufacturer, as_json: bool) -> None:
    if as_json:
        _print_json(_describe_manufacturer(one))
    else:
        click.echo(f"{one.name}: policy {one.policy.value}")


def _describe_device(device: Device) -> dict[str, Any]:
    return {
        "serial_number": device.serial_number,
        "state": device.state.value,
        "reason": device.reason,
        "audit_ok": device.audit_ok,
    }


def _print_device(device: Device, as_json: bool) -> None:
    from minerva.core.text import printable

    if as_json:
        _print_json(_describe_device(device))
    else:
        click.echo(f"{printable(device.serial_number)} is {device.state.value}")


def _print_events(found: list[dict[str, Any]]) -> None:
    from minerva.core.text import printable, shortened

    for event in found:
        detail = _shown_detail(event["detail"])
        parts = [
            _shown_time(event["time"]),
            event["kind"],
            *([printable(event["serial_number"])] if event["serial_number"] else []),
            *([f"from {printable(event['peer'])}"] if event["peer"] else []),
        ]
        click.echo("  ".join(parts) + (f": {shortened(detail, 500)}" if detail else ""))


def _shown_detail(detail: dict[str, Any]) -> str:
    """Return what an event says besides its kind; of a refusal first what was refused, and why."""
    left = {name: value for name, value in detail.items() if value is not None}
    first = []
    if "operation" in left:
        first = [f"{left.pop('operation')} {left.pop('status', '')}, {left.pop('reason', '')}"]
        if "detail" in left:
            first = [f"{first[0]} ({left.pop('detail')})"]
    return ", ".join([*first, *(f"{name.replace('_', ' ')} {value}" for name, value in left.items())])


def _shown_time(text: str | None) -> str:
    return "" if text is None else utc(datetime.fromisoformat(text))


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value))
