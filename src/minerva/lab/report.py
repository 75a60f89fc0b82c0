"""What a run of a lab found, for programs and for people."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from minerva.lab.lab import Lab, channel_count
from minerva.lab.topology import SegmentKind, describe

_MIB = 1024 * 1024
_LARGEST_TABLE = 16
_ZERO_TOUCH = (
    "The first is the operator's, with a registrar. All others had only what their maker gave them: each "
    "heard a neighbour that was a member already, asked the registrar through it, was told by its maker's "
    "MASA to whom it belongs, and got its certificate."
)


def memory_of_node(status: dict[str, Any]) -> float | None:
    """Return a node's memory in MiB.

    The anonymous memory of all its processes, each shared page counted once (PSS), plus the file-backed
    memory of the largest one once: programs and libraries that all of them map.
    """
    anonymous, files = 0, 0
    for process in status.get("processes", []):
        if process["pid"] is None:
            continue
        try:
            rollup = _kib_fields(Path(f"/proc/{process['pid']}/smaps_rollup"))
            resident = _kib_fields(Path(f"/proc/{process['pid']}/status"))
        except OSError:
            return None
        anonymous += rollup["Pss_Anon"]
        files = max(files, resident["RssFile"])
    return (anonymous + files) * 1024 / _MIB if anonymous else None


def _kib_fields(path: Path) -> dict[str, int]:
    fields = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            fields[name] = int(words[0])
    return fields


def result(lab: Lab, statuses: dict[str, dict[str, Any]], error: str | None = None) -> dict[str, Any]:
    """Return what ``minerva lab run --json`` prints; ``error`` says why not all pairs are reachable."""
    nodes = len(lab.nodes)
    phases: dict[str, dict[str, float] | None] = {}
    for phase in lab.phases:
        times = [times[phase] for times in lab.milestones.values() if phase in times]
        phases[phase] = (
            {"median": round(statistics.median(times), 3), "max": round(max(times), 3)} if times else None
        )
    memory = [mib for mib in map(memory_of_node, statuses.values()) if mib is not None]
    nodes_planes = (status.get("node", {}).get("data_plane") for status in statuses.values())
    planes = sorted({plane for plane in nodes_planes if plane is not None})  # a pledge has none
    last = max((when for when, _ in lab.pinger.reached.values()), default=0.0)
    return {
        "topology": lab.topology.name,
        "nodes": nodes,
        "links": len(lab.topology.segments),
        "channels": channel_count(statuses),
        "pairs_total": nodes * (nodes - 1),
        "pairs_reachable": len(lab.pinger.reached),
        "seconds": round(last - lab.first_start, 3) if error is None else None,
        "phases": phases,
        "mib_per_node": round(statistics.median(memory), 1) if memory else None,
        "data_plane": "+".join(planes),
        "error": error,
    }


def table(lab: Lab) -> str:
    """Return who reached whom, with round trips in milliseconds, for people."""
    names = list(lab.nodes)
    if len(names) > _LARGEST_TABLE:
        return ""
    reached = lab.pinger.reached
    width = max(6, *(len(name) for name in names))
    lines = [" " * width + "  " + " ".join(f"{name:>{width}}" for name in names)]
    for source in names:
        cells = []
        for target in names:
            if source == target:
                cells.append("·")
            elif (source, target) in reached:
                cells.append(f"{reached[source, target][1] * 1000:.1f}")
            else:
                cells.append("-")
        lines.append(f"{source:>{width}}  " + " ".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(["Round trips in milliseconds, from the node on the left to the one above:", "", *lines])


def summary(lab: Lab, found: dict[str, Any]) -> str:
    """Return the outcome in words that a newcomer understands."""
    lans = sum(1 for segment in lab.topology.segments if segment.kind is SegmentKind.LAN)
    lines = [describe(lab.topology)]
    if found["seconds"] is None:
        lines.append(
            f"NOT all reachable: {found['pairs_reachable']} of {found['pairs_total']} pairs of nodes reached "
            "each other."
        )
    else:
        lines.append(
            f"All {found['nodes']} nodes reach each other ({found['pairs_total']} of {found['pairs_total']} "
            f"pairs) {found['seconds']:.1f} seconds after the first was switched on."
        )
        if lab.zero_touch is not None:
            lines.append(_ZERO_TOUCH)
        where = "link" if not lans else "segment"
        lines.append(
            "They found their neighbours, checked each other's certificates, built "
            f"{_count(found['channels'], 'encrypted channel')} over {_count(found['links'], where)} "
            "and computed their routes. None of them was configured."
        )
    lines += _healing(found) + _console(found)
    return "\n".join(lines)


def _healing(found: dict[str, Any]) -> list[str]:
    if found.get("heal_seconds") is None:
        return []
    return [
        f"After the cut, all of them reached each other again within {found['heal_seconds']:.1f} seconds."
    ]


def _console(found: dict[str, Any]) -> list[str]:
    """Return what an operator saw of a machine's console, as on a screen."""
    if (act := found.get("console")) is None:
        return []
    return [
        "Then every host lost all its addresses and routes, its IPv6, and what its firewall let in. "
        f"The operator on {act['operator']} opened the console of a machine at {act['server']} all the same, "
        f"by SSH over the control plane, in {act['seconds']:.1f} seconds:",
        "",
        *(f"    {line}" for line in act["transcript"] if line.strip()),
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
