"""Tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from minerva.core.text import printable, shortened


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    empty: str,
    *,
    width: int | None = None,
    indent: str = "",
) -> str:
    """Return a table, or ``empty`` in its place; ``width`` is the most characters that a cell shows.

    Every cell is made printable: what it holds may be from the network.
    """
    if not rows:
        return f"{indent}{empty}"

    def shown(cell: object) -> str:
        text = "-" if cell is None or cell == "" else str(cell)
        return printable(text) if width is None else shortened(text, width)

    cells = [list(head), *([shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        indent + "  ".join(f"{cell:<{space}}" for cell, space in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
