"""``minerva console audit``: whether the audit log is as it was written."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from minerva.cli import options
from minerva.cli.console_common import find_directory, where
from minerva.core.errors import UsageError
from minerva.core.text import printable


@click.group(short_help="The audit log.")
def audit() -> None:
    """The audit log: who did what, and who was refused what."""


@audit.command(short_help="Check that no line was altered.")
@click.option(
    "--head",
    "heads",
    multiple=True,
    metavar="SHA256",
    help="Also check that the line with this digest, which was the last one once, is still there.",
)
@where
@options.as_json
def verify(
    heads: tuple[str, ...], directory: Path | None, config_file: Path | None, run_dir: Path, as_json: bool
) -> None:
    """Check that no line of the audit log was altered, put in or taken out since it was written.

    Each line has the SHA-256 of the one before it. Whoever is root can make all lines anew, or take away the
    last ones: that shows only if a digest from before, as the console server logs it once in an hour and this
    command prints it, has been kept on another machine and is given as --head.
    """
    from minerva.console import audit_chain
    from minerva.console.config import AUDIT

    path = find_directory(directory, config_file, run_dir) / AUDIT
    try:
        found = audit_chain.verify(path, [head.lower() for head in heads])
    except FileNotFoundError:
        raise UsageError(f"there is no audit log {path}") from None
    except OSError as error:
        raise UsageError(f"cannot read the audit log {path}: {error.strerror}") from error
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    before = f", and {found.unchained} from before there were digests" if found.unchained else ""
    since = f" since {printable(found.since)}" if found.since else ""
    click.echo(f"no line was altered: {found.lines} in {found.files} files{since}{before}")
    if found.head:
        click.echo(f"the last one has the SHA-256 {found.head}")
