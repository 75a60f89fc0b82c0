"""Tables for people."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from minerva.core.text import printable, shortened

_GAP = 2
_NARROWEST = 10
"""Characters that every column may have, however narrow the terminal is."""


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    empty: str,
    *,
    width: int | None = None,
    flexible: str | None = None,
    indent: str = "",
) -> str:
    """Return a table, or ``empty`` in its place; ``width`` is the most characters that a cell shows.

    The column ``flexible`` is cut further, so that lines fit into the terminal, if standard output is one.
    Every cell is made printable: what it holds may be from the network.
    """
    if not rows:
        return f"{indent}{empty}"

    def shown(cell: object) -> str:
        text = "-" if cell is None or cell == "" else str(cell)
        return printable(text) if width is None else shortened(text, width)

    cells = [list(head), *([shown(cell) for cell in row] for row in rows)]
    if flexible is not None and sys.stdout is not None and sys.stdout.isatty():
        _fit(cells, list(head).index(flexible), shutil.get_terminal_size().columns - len(indent))
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        indent
        + (" " * _GAP).join(f"{cell:<{space}}" for cell, space in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _fit(cells: list[list[str]], column: int, columns: int) -> None:
    """Cut the cells of ``column`` so that the lines have no more than ``columns`` characters."""
    others = sum(
        max(map(len, cells_of)) + _GAP
        for index, cells_of in enumerate(zip(*cells, strict=True))
        if index != column
    )
    for row in cells:
        row[column] = shortened(row[column], max(columns - others, _NARROWEST))
