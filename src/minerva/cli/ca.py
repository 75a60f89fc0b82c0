"""``minerva ca``: the built-in CA, for networks and tests without a registrar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minerva.core.errors import MinervaError
from minerva.core.text import utc

if TYPE_CHECKING:
    from minerva.pki.ca import CertificateAuthority, Issued

# The cryptography library takes longer to import than `minerva --help` may take, so each command imports
# what it needs. The names of key types and schemes therefore stand here too; a test keeps them equal.
KEY_TYPES = ("p256", "p384", "p521", "rsa2048", "rsa3072")
NODE_SCHEMES = ("zone", "vlong8", "vlong16")

_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_key_type_option = click.option(
    "--key-type",
    type=click.Choice(KEY_TYPES),
    default="p256",
    show_default=True,
    help="The kind of key to make.",
)


@click.group()
def ca() -> None:
    """Run a certification authority for an ACP domain in a directory."""


@ca.command(short_help="Make a CA for a domain.")
@click.argument("domain", required=False)
@click.option("--dir", "ca_dir", type=_DIRECTORY, required=True, help="Where the new CA is to be.")
@click.option(
    "--parent", type=_DIRECTORY, help="The CA that is to stand above; without, the new one is a root."
)
@_key_type_option
@click.option(
    "--days", type=click.IntRange(1, 36500), default=3650, show_default=True, help="How long it is valid."
)
@_json_option
def init(
    domain: str | None, ca_dir: Path, parent: Path | None, key_type: str, days: int, as_json: bool
) -> None:
    """Make a CA for the ACP domain DOMAIN (under --parent, for the domain of that)."""
    from minerva.pki.ca import CertificateAuthority

    if (domain is None) is (parent is None):
        raise click.UsageError("Give either DOMAIN, for a root CA, or --parent, for a CA under that.")
    lifetime = timedelta(days=days)
    with _one_sentence():
        if parent is not None:
            authority = CertificateAuthority.open(parent).issue_ca(ca_dir, key_type, lifetime=lifetime)
        else:
            authority = CertificateAuthority.create(str(domain), ca_dir, key_type, lifetime=lifetime)
    _print_authority(authority, as_json)


@ca.command(short_help="Make a node's identity: key, certificate, trust anchors.")
@click.argument("ca_dir", type=_DIRECTORY)
@click.argument("node_dir", type=_DIRECTORY)
@click.option(
    "--scheme",
    type=click.Choice(NODE_SCHEMES),
    default="zone",
    show_default=True,
    help="The addressing scheme.",
)
@click.option("--rsub", help="The routing subdomain, such as area51.research: gives the node another /48.")
@click.option(
    "--days", type=click.IntRange(1, 36500), help="How long the certificate is valid.  [default: 365]"
)
@click.option("--seconds", type=click.IntRange(1, 10**9), help="The same in seconds.")
@_key_type_option
@click.option("--name", help="The common name of the subject; without, it is the address.")
@click.option(
    "--with-ip-san", is_flag=True, help="Put the address into the subjectAltName as an iPAddress too."
)
@click.option("--no-address", is_flag=True, help="Make a member of the domain that is no ACP node.")
@_json_option
def issue(
    ca_dir: Path,
    node_dir: Path,
    scheme: str,
    rsub: str | None,
    days: int | None,
    seconds: int | None,
    key_type: str,
    name: str | None,
    with_ip_san: bool,
    no_address: bool,
    as_json: bool,
) -> None:
    """Make a node's identity in NODE_DIR: private key, certificate, chain and trust anchors."""
    from minerva.pki.address import Scheme
    from minerva.pki.ca import NODE_LIFETIME, CertificateAuthority, check_free, write_node_directory
    from minerva.pki.node_name import AddressField

    if days is not None and seconds is not None:
        raise click.UsageError("Give --days or --seconds, not both.")
    if no_address and with_ip_san:
        raise click.UsageError("--with-ip-san needs an address, which --no-address leaves out.")
    given = days is not None or seconds is not None
    with _one_sentence():
        authority = CertificateAuthority.open(ca_dir)
        # Asked before and not only when writing, so that a refusal does not cost a node number.
        check_free(node_dir)
        issued = authority.issue(
            Scheme(scheme),
            rsub,
            timedelta(days=days or 0, seconds=seconds or 0) if given else NODE_LIFETIME,
            key_type=key_type,
            address=AddressField.OMITTED if no_address else AddressField.ADDRESS,
            name=name,
            with_ip_san=with_ip_san,
        )
        write_node_directory(node_dir, issued)
    _print_issued(node_dir, issued, as_json)


@ca.command("list")
@click.argument("ca_dir", type=_DIRECTORY)
@_json_option
def list_issued(ca_dir: Path, as_json: bool) -> None:
    """List what the CA in CA_DIR has issued."""
    from minerva.pki.ca import CertificateAuthority

    with _one_sentence():
        authority = CertificateAuthority.open(ca_dir)
        entries = list(authority.issued())
    if as_json:
        _print_json({"domain": authority.domain, "issued": entries})
        return
    for entry in entries:
        click.echo(f"{entry['not_after'][:19]}  {entry['subject']:<42}  {entry['acp_node_name']}")


def _print_authority(authority: CertificateAuthority, as_json: bool) -> None:
    expires = authority.certificate.not_valid_after_utc
    if as_json:
        _print_json(
            {
                "directory": str(authority.directory),
                "domain": authority.domain,
                "expires": utc(expires),
            }
        )
    else:
        click.echo(f"CA for {authority.domain} in {authority.directory}, valid until {utc(expires)}")


def _print_issued(node_dir: Path, issued: Issued, as_json: bool) -> None:
    expires = issued.certificate.not_valid_after_utc
    address = None if issued.address is None else str(issued.address)
    if as_json:
        _print_json(
            {
                "directory": str(node_dir),
                "acp_node_name": str(issued.node_name),
                "address": address,
                "prefix": None if issued.address is None else str(issued.address.prefix),
                "serial": f"{issued.certificate.serial_number:x}",
                "expires": utc(expires),
            }
        )
    else:
        click.echo(f"{address or issued.node_name} in {node_dir}, valid until {utc(expires)}")


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value))


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Show what went wrong as one sentence and not as a traceback."""
    try:
        yield
    except MinervaError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or 'file'}: {error.strerror}") from error
