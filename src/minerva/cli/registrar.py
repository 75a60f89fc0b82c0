"""``minerva registrar``: the registrar of a domain. Here: how one is made, and its CA."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minerva.core.text import utc

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from minerva.brski.registrar.config import Config
    from minerva.brski.registrar.init import Made

# As in cli/ca.py: what these come from takes longer to import than `minerva --help` may take.
DIRECTORY = Path("/var/lib/minerva/registrar")
NODE_DIRECTORY = Path("/var/lib/minerva")
SCHEMES = ("zone", "vlong8", "vlong16")
DAYS_OF_CERTIFICATE = 30
SECONDS_OF_CRL = 3600
CRL_PORT = 8080

_PATH = click.Path(file_okay=False, path_type=Path, readable=False)
_node_directory_option = click.option(
    "--node-dir",
    "node_directory",
    type=_PATH,
    default=NODE_DIRECTORY,
    show_default=True,
    help="Where this machine's node has its identity.",
)
directory_option = click.option(
    "--dir",
    "directory",
    type=_PATH,
    default=DIRECTORY,
    show_default=True,
    envvar="MINERVA_REGISTRAR_DIR",
    help="Where the registrar keeps its things.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def registrar() -> None:
    """Let new devices into an ACP domain (RFC 8995)."""


@registrar.command(short_help="Make a registrar, its CA, and the first node of a domain.")
@click.argument("domain")
@directory_option
@click.option(
    "--node-dir",
    "node_directory",
    type=_PATH,
    default=NODE_DIRECTORY,
    show_default=True,
    help="Where this machine's node has its identity, or will have it.",
)
@click.option(
    "--database", default="", help="The URL of a PostgreSQL database; without, a file in the directory."
)
@click.option(
    "--scheme",
    type=click.Choice(SCHEMES),
    default="zone",
    show_default=True,
    help="The scheme of the addresses that devices get.",
)
@click.option(
    "--lifetime",
    type=click.IntRange(1, 10**9),
    help=f"How long certificates of nodes are valid, in seconds.  [default: {DAYS_OF_CERTIFICATE} days]",
)
@click.option(
    "--crl-lifetime",
    type=click.IntRange(2, 10**7),
    default=SECONDS_OF_CRL,
    show_default=True,
    help="How long a CRL is valid, in seconds: so long a revoked node may remain.",
)
@click.option(
    "--crl-port",
    type=click.IntRange(1, 65535),
    default=CRL_PORT,
    show_default=True,
    help="The port on which the CRL is offered.",
)
@click.option("--est", "est_url", help="The URL of an external CA's EST server; without, a CA is made.")
@click.option(
    "--est-credentials",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The directory with the registrar's cert.pem and key.pem for that CA, and its anchors.pem.",
)
@json_option
def init(
    domain: str,
    directory: Path,
    node_directory: Path,
    database: str,
    scheme: str,
    lifetime: int | None,
    crl_lifetime: int,
    crl_port: int,
    est_url: str | None,
    est_credentials: Path | None,
    as_json: bool,
) -> None:
    """Make all that the registrar of DOMAIN needs, and the identity of this machine's node.

    A root CA and an issuing CA under it, a database, a certificate for the registrar, and one for the node,
    which is the first of the domain. Nothing is overwritten.
    """
    from datetime import UTC, datetime, timedelta

    from minerva.brski.registrar.init import External, initialise
    from minerva.pki.address import Scheme

    external = None
    if est_url is not None and est_credentials is not None:
        external = External(est_url, est_credentials)
    elif est_url is not None or est_credentials is not None:
        raise click.UsageError("--est and --est-credentials need each other.")
    made = initialise(
        domain,
        directory,
        node_directory,
        now=datetime.now(UTC),
        database=database,
        scheme=Scheme(scheme),
        certificate_lifetime=(
            timedelta(days=DAYS_OF_CERTIFICATE) if lifetime is None else timedelta(seconds=lifetime)
        ),
        crl_lifetime=timedelta(seconds=crl_lifetime),
        crl_port=crl_port,
        external=external,
    )
    _show(made, as_json)


@registrar.command(short_help="Make this machine one more of the registrar's.")
@directory_option
@_node_directory_option
@json_option
def join(directory: Path, node_directory: Path, as_json: bool) -> None:
    """Make this machine one more on which the registrar runs.

    It has an ordinary node of the domain, and in --dir a copy of another machine's registrar, whose database
    is a PostgreSQL that both reach.
    """
    from datetime import UTC, datetime

    from minerva.brski.registrar.machines import join

    with _opened(directory) as (engine, config):
        made = join(directory, node_directory, engine, crl_port=config.server.crl_port, now=datetime.now(UTC))
    expires = made.not_valid_after_utc
    if as_json:
        click.echo(json.dumps({"directory": str(directory), "service_expires": utc(expires)}))
    else:
        click.echo(f"{directory} has a certificate for this machine, valid until {utc(expires)}")


@registrar.command(short_help="Take this machine out of the registrar.")
@directory_option
@_node_directory_option
@json_option
def leave(directory: Path, node_directory: Path, as_json: bool) -> None:
    """Let certificates to come no longer say that this machine has the CRL."""
    from datetime import UTC, datetime

    from minerva.brski.registrar.machines import leave

    with _opened(directory) as (engine, config):
        leave(node_directory, engine, crl_port=config.server.crl_port, now=datetime.now(UTC))
    click.echo(json.dumps({"directory": str(directory)}) if as_json else "this machine has left")


@registrar.command(short_help="Put a new CA into the place of the old one.")
@directory_option
@click.option("--root", "new_root", is_flag=True, help="Make a new root, too.")
@click.option(
    "--keep",
    type=click.IntRange(0, 10**9),
    help="For how many seconds clients are told of the old CA.  [default: two lifetimes of a certificate]",
)
@json_option
def rollover(directory: Path, new_root: bool, keep: int | None, as_json: bool) -> None:
    """Make a new issuing CA and sign with it from now on, without an outage.

    The key of the root CA has to be in its directory for this. Certificates of the old issuing CA stay good
    until they expire; nodes get the new ones when they renew.
    """
    from datetime import UTC, datetime, timedelta

    from minerva.brski.registrar.rollover import roll_over

    with _opened(directory) as (engine, _):
        made = roll_over(
            directory,
            engine,
            now=datetime.now(UTC),
            new_root=new_root,
            keep=None if keep is None else timedelta(seconds=keep),
        )
    if as_json:
        click.echo(
            json.dumps(
                {
                    "issuing": str(made.issuing),
                    "root": None if made.root is None else str(made.root),
                    "until": utc(made.until),
                }
            )
        )
        return
    click.echo(f"the issuing CA is now that in {made.issuing}")
    if made.root is not None:
        click.echo(f"the root CA is now that in {made.root}; take its key offline")
    click.echo(f"clients are told of the old CA until {utc(made.until)}")


@registrar.command("new-id", short_help="Take a new Registrar-ID, after an old backup was put back.")
@directory_option
@json_option
def new_id(directory: Path, as_json: bool) -> None:
    """Take a new Registrar-ID for all addresses to come.

    A database that was put back from a backup does not know of the addresses that were given out since. With
    a new Registrar-ID, none of them is given out again.
    """
    from datetime import UTC, datetime

    from minerva.brski.registrar import addresses
    from minerva.brski.registrar.database import record_event, writing

    with _opened(directory) as (engine, _), writing(engine) as connection:
        number = f"{addresses.new_id(connection):012x}"
        record_event(connection, "new-id", when=datetime.now(UTC), detail={"registrar_id": number})
    click.echo(json.dumps({"registrar_id": number}) if as_json else f"the Registrar-ID is now {number}")


@contextmanager
def _opened(directory: Path) -> Iterator[tuple[Engine, Config]]:
    """Open the database of the registrar in ``directory``, and close it at the end."""
    from minerva.brski.registrar.config import load
    from minerva.brski.registrar.database import check_schema, open_database

    config = load(directory)
    engine = open_database(config.database_url(directory))
    try:
        check_schema(engine)
        yield engine, config
    finally:
        engine.dispose()


def _show(made: Made, as_json: bool) -> None:
    if as_json:
        click.echo(
            json.dumps(
                {
                    "domain": made.domain,
                    "directory": str(made.directory),
                    "node_directory": str(made.node_directory),
                    "address": str(made.address),
                    "service_address": str(made.service_address),
                    "node_expires": utc(made.node_expires),
                    "service_expires": utc(made.service_expires),
                }
            )
        )
        return
    click.echo(f"registrar of {made.domain} in {made.directory}")
    click.echo(f"this machine's node: {made.address} in {made.node_directory}")
    root_key = made.directory / "ca" / "root" / "ca-key.pem"
    if root_key.exists():
        click.echo(f"keep {root_key} offline: only a rollover needs it")
