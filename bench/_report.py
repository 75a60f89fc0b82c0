"""One JSON line per measured figure on standard output; everything else in a bench goes to standard error."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal


def report(
    bench: str,
    figure: str,
    values: Sequence[float],
    unit: str,
    better: Literal["lower", "higher"],
    peer: str | None = None,
    peer_values: Sequence[float] | None = None,
    fields: Mapping[str, str | int] | None = None,
) -> None:
    """Print ``values``, one value a run, with their median; ``fields`` tell apart lines of one figure.

    Beside it stands that of the ``peer`` measured in the same session, if any, and ``ratio``: ours to theirs.
    """
    if not values:
        raise ValueError(f"{bench} {figure}: no runs")
    if (peer is None) != (not peer_values):
        raise ValueError(f"{bench} {figure}: a peer and its values go together")
    value = statistics.median(values)
    line: dict[str, object] = {
        "bench": bench,
        "figure": figure,
        **(fields or {}),
        "value": _rounded(value),
        "unit": unit,
        "runs": [_rounded(run) for run in values],
        "better": better,
    }
    if peer_values:
        peer_value = statistics.median(peer_values)
        line |= {
            "peer": peer,
            "peer_value": _rounded(peer_value),
            "ratio": _rounded(value / peer_value) if peer_value else None,
        }
    print(json.dumps(line), flush=True)


def _rounded(value: float) -> float:
    """Four significant digits: more would claim a precision that a median of a few runs does not have."""
    return float(f"{value:.4g}")
