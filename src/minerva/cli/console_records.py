"""``minerva console log``, ``search`` and ``replay``: what consoles said before, from their records."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from minerva.cli import options
from minerva.cli.console_common import find_directory, name_argument, where
from minerva.cli.options import FiniteRange
from minerva.core.errors import UsageError
from minerva.core.text import did_you_mean, printable, utc

if TYPE_CHECKING:
    from minerva.console.record_search import Line

_EARLIEST, _LATEST = 0.0, math.inf

_F = TypeVar("_F", bound=Callable[..., Any])


def _seconds(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> float | None:
    """Return a time, which is UTC if it does not say otherwise, in seconds since 1970."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        example = utc(time.time() - 3600)
        raise click.BadParameter(f"{text!r} is not a time, such as {example} or {example[:10]}.") from None


def _since_until(function: _F) -> _F:
    """Add ``--since`` and ``--until``, in seconds since 1970."""
    until = click.option("--until", callback=_seconds, metavar="TIME", help="Up to this time.")
    since = click.option(
        "--since", callback=_seconds, metavar="TIME", help="From this time on, such as 2026-11-25T19:12Z."
    )
    return since(until(function))


def _records(
    directory: Path | None, config_file: Path | None, run_dir: Path, console: str | None = None
) -> Path:
    """Return where the records are. Raises UsageError if there are none, or none of ``console``."""
    from minerva.console.config import RECORDS

    found = find_directory(directory, config_file, run_dir) / RECORDS
    try:
        names = [entry.name for entry in found.iterdir()]
    except FileNotFoundError:
        raise UsageError(f"there are no records: {found} is not there") from None
    if console is not None and console not in names:
        raise UsageError(
            f"there are no records of {printable(console)} in {found}{did_you_mean(console, names)}"
        )
    return found


@click.command(short_help="Show the last lines of a console's record.")
@name_argument
@click.option("-n", "--lines", "count", type=click.IntRange(1), default=50, show_default=True)
@where
@options.as_json
def log(
    console: str,
    count: int,
    directory: Path | None,
    config_file: Path | None,
    run_dir: Path,
    as_json: bool,
) -> None:
    """Show the last lines of CONSOLE's record.

    Each has its time and says what it is: | a line of the device, + more of its last line, * what happened,
    < what somebody typed.
    """
    from minerva.console import record_search

    records = _records(directory, config_file, run_dir, console)
    for line in record_search.last_lines(records, console, count):
        _show_line(line, as_json, with_name=False)


@click.command(short_help="Search the records.")
@click.argument("pattern")
@click.option("--console", "names", multiple=True, help="Only in these; a pattern.  [default: all]")
@click.option(
    "-i", "--ignore-case", is_flag=True, help="Whether letters are small or capital does not matter."
)
@_since_until
@where
@options.as_json
def search(
    pattern: str,
    names: tuple[str, ...],
    ignore_case: bool,
    since: float | None,
    until: float | None,
    directory: Path | None,
    config_file: Path | None,
    run_dir: Path,
    as_json: bool,
) -> None:
    """Search the records of all consoles for PATTERN, a regular expression.

    The lines in which it is are shown in the order of time. The exit code is 1 if there are none.
    """
    from minerva.console import record_files, record_search

    try:
        compiled = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        raise UsageError(f"{pattern!r} is no regular expression: {error}") from error
    records = _records(directory, config_file, run_dir)
    for name in names:
        if not record_files.consoles(records, [name]):
            hint = did_you_mean(name, record_files.consoles(records, ["*"]))
            raise UsageError(f"there are no records of {printable(name)} in {records}{hint}")
    found = 0
    lines = record_search.search(
        records,
        compiled,
        consoles=names or ("*",),
        since=_EARLIEST if since is None else since,
        until=_LATEST if until is None else until,
    )
    for line in lines:
        found += 1
        _show_line(line, as_json, with_name=True)
    if not found:
        raise click.exceptions.Exit(1)


@click.command(short_help="Show what a console said, at its speed.")
@name_argument
@click.option("--speed", type=FiniteRange(0.01, 10_000), default=1.0, show_default=True)
@click.option("--max-idle", type=FiniteRange(0, 3600), default=2.0, show_default=True, help="Longest pause.")
@_since_until
@where
def replay(
    console: str,
    speed: float,
    max_idle: float,
    since: float | None,
    until: float | None,
    directory: Path | None,
    config_file: Path | None,
    run_dir: Path,
) -> None:
    """Show what CONSOLE said, as it was, at its speed.

    What it said goes to the terminal with all its control sequences, as if attached.
    """
    from minerva.console import record_search

    records = _records(directory, config_file, run_dir, console)
    found = False
    for wait, data in record_search.replay(
        records,
        console,
        since=_EARLIEST if since is None else since,
        until=_LATEST if until is None else until,
        speed=speed,
        max_idle=max_idle,
    ):
        found = True
        time.sleep(wait)
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    if not found:
        raise UsageError(f"{printable(console)} said nothing in that time, or it was not recorded")


def _show_line(line: Line, as_json: bool, *, with_name: bool) -> None:
    moment = utc(line.at, "milliseconds")
    if as_json:
        item = {"console": line.console, "time": moment, "kind": line.kind, "text": line.text}
        click.echo(json.dumps(item))
        return
    name = f"{line.console} " if with_name else ""
    click.echo(f"{moment} {name}{line.kind} {printable(line.text)}")
