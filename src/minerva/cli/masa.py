"""``minerva masa``: the maker's side. Makes identities for devices and says to whom devices belong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minerva.core.errors import MinervaError
from minerva.core.text import utc

if TYPE_CHECKING:
    from minerva.brski.masa.authority import Authority
    from minerva.brski.masa.database import Database, DeviceRecord, Owner
    from minerva.brski.masa.factory import Made

# As in cli/ca.py: what these come from takes longer to import than `minerva --help` may take.
DIRECTORY = Path("/var/lib/minerva/masa")
KEY_TYPES = ("p256", "p384", "rsa2048")
SALES = ("open", "proof", "listed")
VOUCHER_LIFETIME = 1200
MAX_VOUCHER_LIFETIME = 3650 * 86400
DATABASE_FILE = "masa.db"
MAX_BATCH = 100_000

_EXTRA = frozenset({"sqlalchemy", "starlette"})

_PATH = click.Path(path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)
_OUT = click.Path(file_okay=False, path_type=Path)
_dir_option = click.option(
    "--dir",
    "directory",
    type=_OUT,
    default=DIRECTORY,
    show_default=True,
    envvar="MINERVA_MASA_DIR",
    help="Where the MASA keeps its things.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_key_type_option = click.option(
    "--key-type",
    type=click.Choice(KEY_TYPES),
    default="p256",
    show_default=True,
    help="The kind of key to make.",
)
_password_option = click.option(
    "--password-file",
    type=_FILE,
    help="The first line of this file is the password for PKCS #12; without, it is asked for.",
)
_serials_argument = click.argument("serials", nargs=-1, required=True, metavar="SERIAL...")


@click.group()
def masa() -> None:
    """Be the maker of devices: give them identities, and say to whom they belong (RFC 8995)."""


@masa.command(short_help="Make a MASA: its keys, certificates and database.")
@_dir_option
@click.option("--name", required=True, help="The maker's name, in all certificates.")
@click.option(
    "--url",
    required=True,
    help="Where registrars will find the MASA, in all devices for ever: HOST, HOST:PORT or an HTTPS URL.",
)
@click.option(
    "--sales",
    type=click.Choice(SALES),
    default="open",
    show_default=True,
    help="Who may own a new device: the first who comes, the first whom it speaks with, or who was assigned.",
)
@click.option(
    "--voucher-lifetime",
    type=click.IntRange(1, MAX_VOUCHER_LIFETIME),
    default=VOUCHER_LIFETIME,
    show_default=True,
    metavar="SECONDS",
    help="How long a voucher without a nonce is valid.",
)
@click.option(
    "--database",
    default=DATABASE_FILE,
    show_default=True,
    envvar="MINERVA_MASA_DATABASE",
    help="A file in the directory, or the URL of a PostgreSQL database.",
)
@_json_option
def init(
    directory: Path, name: str, url: str, sales: str, voucher_lifetime: int, database: str, as_json: bool
) -> None:
    """Make a MASA: the maker's CAs, what signs vouchers, a server's certificate, and a database."""
    with _one_sentence():
        from minerva.brski.database import open_engine
        from minerva.brski.masa.authority import check_free, create_authority
        from minerva.brski.masa.database import Database
        from minerva.brski.masa.settings import Settings

        settings = Settings(name, url, database, sales, voucher_lifetime).check()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_free(directory)
        store = Database(open_engine(settings.database_at(directory)))
        try:
            store.create()
        finally:
            store.close()
        authority = create_authority(directory, settings, _now())
    location = authority.settings.location
    if as_json:
        _print_json(
            {
                "directory": str(directory),
                "name": name,
                "url": location.url,
                "host": location.host,
                "port": location.port,
                "sales": sales,
                "anchors": str(directory / "anchors.pem"),
            }
        )
        return
    click.echo(f"MASA of {name} in {directory}, for {location.url}")
    click.echo(
        "The key of the root CA, root/key.pem, is needed again only by `minerva masa renew`: keep it safe."
    )


@masa.command(short_help="Make the identity of a device.")
@click.argument("serial")
@click.argument("out_dir", type=_OUT)
@_dir_option
@_key_type_option
@click.option("--p12", type=_FILE, help="Write it into this file as PKCS #12 too.")
@_password_option
@_json_option
def device(
    serial: str,
    out_dir: Path,
    directory: Path,
    key_type: str,
    p12: Path | None,
    password_file: Path | None,
    as_json: bool,
) -> None:
    """Make a key and an IDevID for the device SERIAL, and write them into OUT_DIR."""
    if password_file is not None and p12 is None:
        raise click.UsageError("--password-file is for --p12.")
    password = None if p12 is None else _password(password_file)
    with _open(directory) as (authority, database):
        from minerva.brski.masa.factory import make_device
        from minerva.pki.keys import KeyType

        made = make_device(
            authority,
            database,
            serial,
            out_dir,
            _now(),
            key_type=KeyType(key_type),
            p12=None if p12 is None or password is None else (p12, password),
        )
    if as_json:
        _print_json(_made(made) | ({"p12": str(p12)} if p12 is not None else {}))
    else:
        click.echo(f"{made.serial_number} in {made.directory}")


@masa.command(short_help="Make the identities of many devices.")
@click.argument("arguments", nargs=-1, required=True, type=_PATH, metavar="[FILE] OUT_DIR")
@_dir_option
@click.option("--count", type=click.IntRange(1, MAX_BATCH), help="Make this many, instead of those in FILE.")
@click.option("--prefix", default="", help="What the serial numbers of --count begin with.")
@_key_type_option
@click.option("--p12", is_flag=True, help="Write a device.p12 (PKCS #12) for each too.")
@_password_option
@_json_option
def batch(
    arguments: tuple[Path, ...],
    directory: Path,
    count: int | None,
    prefix: str,
    key_type: str,
    p12: bool,
    password_file: Path | None,
    as_json: bool,
) -> None:
    """Make identities for the devices in FILE, or for --count new ones, each in a directory in OUT_DIR.

    FILE has one serial number a line. With --count they are PREFIX000001 and so on, after those that are
    there already. What was interrupted is finished by the same command.
    """
    if len(arguments) != (2 if count is None else 1):
        raise click.UsageError("Give FILE and OUT_DIR, or --count and OUT_DIR.")
    if prefix and count is None:
        raise click.UsageError("--prefix is for --count.")
    if password_file is not None and not p12:
        raise click.UsageError("--password-file is for --p12.")
    password = _password(password_file) if p12 else None
    done = []
    with _open(directory) as (authority, database):
        from minerva.brski.masa.factory import make_batch, numbered, read_serial_numbers
        from minerva.pki.keys import KeyType

        serials = numbered(prefix, count, database) if count else read_serial_numbers(arguments[0])
        for made in make_batch(
            authority,
            database,
            serials,
            arguments[-1],
            _now(),
            key_type=KeyType(key_type),
            p12_password=password,
        ):
            done.append(_made(made))
            if not as_json:
                click.echo(f"{made.serial_number} in {made.directory}")
    if as_json:
        _print_json({"devices": done})


@masa.command("sign-csr", short_help="Make an IDevID for a key that stays in its device.")
@click.argument("csr", type=_FILE)
@click.argument("out_dir", type=_OUT)
@_dir_option
@click.option("--serial", help="The device's serial number; without, it is the serialNumber of the subject.")
@_json_option
def sign_csr(csr: Path, out_dir: Path, directory: Path, serial: str | None, as_json: bool) -> None:
    """Make an IDevID for the certificate request CSR (PKCS #10, PEM or DER), and write it into OUT_DIR."""
    with _open(directory) as (authority, database):
        from minerva.brski.masa.factory import sign_request

        made = sign_request(authority, database, csr.read_bytes(), out_dir, _now(), serial_number=serial)
    if as_json:
        _print_json(_made(made))
    else:
        click.echo(f"{made.serial_number} in {made.directory}")


@masa.command()
@_dir_option
@_json_option
def anchors(directory: Path, as_json: bool) -> None:
    """Print what registrars trust, in PEM: for devices, for vouchers, and for the MASA's server."""
    with _one_sentence():
        from minerva.brski.masa.authority import load_anchors
        from minerva.pki.certificates import dump_pem

        text = dump_pem(load_anchors(directory)).decode("ascii")
    if as_json:
        _print_json({"anchors": text})
    else:
        click.echo(text, nl=False)


@masa.command()
@_dir_option
@_json_option
def renew(directory: Path, as_json: bool) -> None:
    """Give the server and the signer of vouchers new keys and certificates; then start the MASA again."""
    with _one_sentence():
        from minerva.brski.masa.authority import renew as renew_certificates

        authority = renew_certificates(directory, _now())
    expires = authority.signer.certificate.not_valid_after_utc
    if as_json:
        _print_json({"expires": utc(expires)})
    else:
        click.echo(f"valid until {utc(expires)}")


@masa.command()
@_dir_option
@click.option(
    "--listen",
    metavar="[ADDRESS]:PORT",
    help="Where to listen.  [default: all addresses, the port of the URL]",
)
def run(directory: Path, listen: str | None) -> None:
    """Answer registrars until stopped."""
    with _one_sentence():
        import asyncio
        import logging

        from minerva.brski.interpreter import prepare
        from minerva.brski.masa.server import run as serve
        from minerva.connect.log import configure

        configure("masa")
        prepare()
        logger = logging.getLogger(__name__)
        asyncio.run(serve(directory, listen, lambda where: logger.info("ready on %s", where)))


@masa.command()
@_dir_option
@_json_option
def devices(directory: Path, as_json: bool) -> None:
    """List all devices."""
    with _open_database(directory) as database:
        if as_json:
            _print_json({"devices": [_device(each) for each in database.devices()]})
            return
        from minerva.cli.table import table

        rows = [
            (
                each.serial_number,
                _state(each),
                each.owner and each.owner.name,
                each.assigned and each.assigned.name,
                _time(each.last_voucher),
            )
            for each in database.devices()
        ]
    head = ("SERIAL NUMBER", "STATE", "OWNER", "ASSIGNED TO", "LAST VOUCHER")
    click.echo(table(head, rows, "no devices"))


@masa.command()
@click.argument("serial")
@_dir_option
@_json_option
def log(serial: str, directory: Path, as_json: bool) -> None:
    """Show the history of the device SERIAL: its vouchers, and what was done to it here."""
    with _open_database(directory) as database:
        from minerva.brski.masa.service import audit_log

        record = database.known(serial)
        entries, vouchers, actions = (
            database.log(record),
            database.vouchers(record),
            database.actions(record),
        )
    if as_json:
        _print_json(
            {
                "device": _device(record),
                # What registrars are told.
                "audit_log": json.loads(audit_log(entries).encode()),
                "vouchers": [
                    {
                        "created": _time(each.created),
                        "owner": _owner(each.owner),
                        "nonce": each.nonce,
                        "assertion": each.assertion,
                        "expires": _time(each.expires),
                        "peer": each.peer,
                        "void": each.void,
                    }
                    for each in vouchers
                ],
                "actions": [
                    {"time": _time(each.time), "action": each.action, "detail": each.detail}
                    for each in actions
                ],
            }
        )
        return
    lines = [
        (
            each.created,
            f"voucher  {each.assertion}, {'nonce' if each.nonce is not None else 'no nonce'}, "
            f"for {each.owner.name}, asked by {each.peer}",
        )
        for each in vouchers
    ]
    lines += [(each.time, f"{each.action}  {each.detail}".rstrip()) for each in actions]
    lines.append((record.made, "made"))
    for time, text in sorted(lines, key=lambda line: line[0]):
        click.echo(f"{_time(time)}  {text}")
    kept = len(vouchers)
    if (issued := sum(entry.issued for entry in entries)) > kept:
        click.echo(f"{issued} vouchers in all, of which the newest {kept} are shown.")


@masa.command()
@_serials_argument
@click.argument("owner_ca", type=_FILE, metavar="OWNER_CA.pem")
@_dir_option
@click.option("--nonceless", is_flag=True, help="Let the owner have vouchers without a nonce, for later use.")
@_json_option
def assign(serials: tuple[str, ...], owner_ca: Path, directory: Path, nonceless: bool, as_json: bool) -> None:
    """Note that the devices SERIAL were sold to the domain with the CA (or registrar) in OWNER_CA.pem."""
    with _open_database(directory) as database:
        from minerva.brski.masa.database import Owner

        owner = Owner.load(owner_ca)
        done = [
            _device(database.assign(serial, owner, nonceless=nonceless, now=_now())) for serial in serials
        ]
    _print_done(done, f"assigned to {owner.name}", as_json)


@masa.command()
@_serials_argument
@_dir_option
@_json_option
def release(serials: tuple[str, ...], directory: Path, as_json: bool) -> None:
    """Let the devices SERIAL have new owners: forget owner and buyer. Their history is kept."""
    with _open_database(directory) as database:
        done = [_device(database.release(serial, _now())) for serial in serials]
    _print_done(done, "released", as_json)


@masa.command()
@_serials_argument
@_dir_option
@click.option("--reason", default="", help="Why, for the log.")
@_json_option
def block(serials: tuple[str, ...], directory: Path, reason: str, as_json: bool) -> None:
    """Issue no more vouchers for the devices SERIAL, such as stolen ones."""
    with _open_database(directory) as database:
        done = [_device(database.block(serial, reason, _now())) for serial in serials]
    _print_done(done, "blocked", as_json)


@masa.command()
@_serials_argument
@_dir_option
@_json_option
def unblock(serials: tuple[str, ...], directory: Path, as_json: bool) -> None:
    """Undo `block`."""
    with _open_database(directory) as database:
        done = [_device(database.unblock(serial, _now())) for serial in serials]
    _print_done(done, "no longer blocked", as_json)


def _print_done(done: list[dict[str, Any]], what: str, as_json: bool) -> None:
    if as_json:
        _print_json({"devices": done})
        return
    for each in done:
        click.echo(f"{each['serial_number']} {what}")


def _made(made: Made) -> dict[str, Any]:
    return {
        "serial_number": made.serial_number,
        "directory": str(made.directory),
        "certificate_serial": f"{made.certificate.serial_number:x}",
    }


def _device(record: DeviceRecord) -> dict[str, Any]:
    return {
        "serial_number": record.serial_number,
        "state": _state(record),
        "made": _time(record.made),
        "owner": _owner(record.owner),
        "owned_since": _time(record.owned_since),
        "assigned": _owner(record.assigned),
        "nonceless": record.nonceless,
        "blocked": record.blocked,
        "released": _time(record.released),
        "last_voucher": _time(record.last_voucher),
    }


def _state(record: DeviceRecord) -> str:
    if record.blocked is not None:
        return "blocked"
    if record.owner is not None:
        return "owned"
    return "assigned" if record.assigned is not None else "free"


def _owner(owner: Owner | None) -> dict[str, str] | None:
    from base64 import b64encode

    if owner is None:
        return None
    return {"name": owner.name, "domain_id": b64encode(owner.domain_id).decode("ascii")}


def _time(time: datetime | None) -> str | None:
    return None if time is None else utc(time)


def _now() -> datetime:
    return datetime.now(UTC)


def _password(file: Path | None) -> bytes:
    if file is None:
        text = click.prompt("Password for PKCS #12", hide_input=True, confirmation_prompt=True)
    else:
        with _one_sentence():
            text = file.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
    if not text:
        raise click.UsageError("The password for PKCS #12 is empty.")
    return str(text).encode()


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value))


@contextmanager
def _open(directory: Path) -> Iterator[tuple[Authority, Database]]:
    """Open the MASA in ``directory``."""
    with _one_sentence():
        from minerva.brski.masa.authority import load_authority

        authority = load_authority(directory)
    with _open_database(directory) as database:
        yield authority, database


@contextmanager
def _open_database(directory: Path) -> Iterator[Database]:
    with _one_sentence():
        from minerva.brski.database import open_engine
        from minerva.brski.masa.database import Database
        from minerva.brski.masa.settings import Settings

        database = Database(open_engine(Settings.load(directory).database_at(directory)))
        try:
            database.check()
            yield database
        finally:
            database.close()


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Show what went wrong as one sentence and not as a traceback."""
    try:
        yield
    except MinervaError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or 'file'}: {error.strerror}") from error
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise click.ClickException(
            "a MASA needs more libraries: pip install 'minerva-acp[registrar]'"
        ) from error
