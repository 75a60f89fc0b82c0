"""What ``minerva status`` prints for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minerva.cli.table import table


def _table(head: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> list[str]:
    return table(head, rows, empty, indent="  ").splitlines()


def _neighbour(item: dict[str, Any]) -> tuple[object, ...]:
    failure = item.get("failure") if item.get("state") != "connected" else None
    return (
        item["port"],
        item["address"],
        item.get("state"),
        item.get("role"),
        failure or item.get("peer_name"),
    )


def status_text(found: dict[str, Any]) -> str:
    """Return the answer to ``status`` as text: the node, its ports, neighbours, channels and routes."""
    node, acp0, rpl = found["node"], found["acp0"], found["rpl"] or {}
    valid = f"{'valid until' if node['certificate_valid'] else 'EXPIRED'} {node['certificate_expires']}"
    lines = [
        f"{node['name']}",
        f"  ACP address {node['address']} ({node['scheme']}), certificate {valid}",
        f"  {acp0['interface']} {acp0['address']}, ACP prefix {acp0['prefix']}, guard {acp0['guard']}",
    ]
    if acp0["problem"]:
        lines.append(f"  {acp0['interface']} is off: {acp0['problem']}")
    lines += ["", "Ports"]
    lines += _table(
        ("NAME", "STATE", "LINK-LOCAL", "NOTE"),
        [(p["name"], p["state"], p.get("link_local"), p["problem"] or "") for p in found["ports"]],
        "none: no interface of this machine is one that the ACP uses",
    )
    lines += ["", "Neighbours"]
    lines += _table(
        ("PORT", "LINK-LOCAL", "STATE", "ROLE", "NOTE"),
        [_neighbour(item) for item in found["neighbours"]],
        "none heard yet",
    )
    lines += ["", f"Channels (data plane: {node['data_plane']}, {node['data_plane_reason']})"]
    lines += _table(
        ("INTERFACE", "PORT", "PEER", "MTU", "IN", "OUT", "DROPPED"),
        [
            (
                channel["interface"],
                channel["port"],
                channel["peer_name"],
                channel["mtu"],
                channel.get("packets_in"),
                channel.get("packets_out"),
                sum(channel.get("drops", {}).values()),
            )
            for channel in found["channels"]
        ],
        "none yet",
    )
    lines += ["", "Routing"]
    lines += _routing(rpl)
    lines += ["", "GRASP"]
    lines += _grasp(found["grasp"] or {})
    broken = [p for p in found["processes"] if p["pid"] is None or p["restarts"]]
    if broken:
        lines += ["", "Processes that were started again"]
        lines += _table(
            ("NAME", "PID", "RESTARTS"), [(p["name"], p["pid"], p["restarts"]) for p in broken], "none"
        )
    return "\n".join(lines)


def _grasp(grasp: dict[str, Any]) -> list[str]:
    if not grasp:
        return ["  the process of GRASP does not answer"]
    lines = [
        f"  objectives of ASAs here: {grasp['objectives']}, flooded ones known: {grasp['floods']}, "
        f"sessions: {grasp['sessions']}, programs using it: {grasp['api_connections']}"
    ]
    return lines + _table(
        ("INTERFACE", "NEIGHBOUR", "STATE"),
        [
            (link["interface"], link["peer"], "ready" if link["ready"] else "waiting")
            for link in grasp["links"]
        ],
        "no neighbours yet",
    )


def _routing(rpl: dict[str, Any]) -> list[str]:
    if not rpl:
        return ["  the routing process does not answer"]
    parent = rpl.get("preferred_parent")
    where = f"rank {rpl.get('rank')}" + (f", parent on {parent['interface']}" if parent else "")
    lines = [f"  {rpl.get('role')} of DODAG {rpl.get('dodag_id')}, {where}"]
    return lines + _table(
        ("PREFIX", "INTERFACE", "NEXT HOP"),
        [(route["prefix"], route["interface"], route["next_hop"]) for route in rpl.get("routes", [])],
        "no routes yet",
    )
