"""Options that several commands share, and the environment variables behind them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path, readable=False)
"""What cannot be read says so when it is read: click would say no more than that."""


class FiniteRange(click.FloatRange):
    """A number in a range. In ``click.FloatRange`` alone NaN is in every range, for it is not outside."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number. Raises click.BadParameter."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number to count with.", param, ctx)
        return number


def state_dir(function: _F) -> _F:
    """Add ``--state-dir`` (MINERVA_STATE_DIR)."""
    return click.option(
        "--state-dir",
        type=PATH,
        envvar="MINERVA_STATE_DIR",
        default="/var/lib/minerva",
        show_default=True,
        show_envvar=True,
        help="The node's certificate, key, trust anchors and secret.",
    )(function)


def run_dir(function: _F) -> _F:
    """Add ``--run-dir`` (MINERVA_RUN_DIR)."""
    return click.option(
        "--run-dir",
        type=PATH,
        envvar="MINERVA_RUN_DIR",
        default="/run/minerva",
        show_default=True,
        show_envvar=True,
        help="Where the sockets of the node and the console server are.",
    )(function)


def config_file(function: _F) -> _F:
    """Add ``--config`` (MINERVA_CONFIG), as the argument ``config_file``."""
    return click.option(
        "--config",
        "config_file",
        type=PATH,
        envvar="MINERVA_CONFIG",
        show_envvar=True,
        help="Configuration file.  [default: /etc/minerva/minerva.toml if it is there]",
    )(function)


def as_json(function: _F) -> _F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)
