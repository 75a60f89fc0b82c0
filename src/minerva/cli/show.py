"""What ``minerva status`` prints for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minerva.cli.table import table
from minerva.core.text import printable


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
    if "acp0" not in found:
        return _pledge_text(found)
    node, acp0, rpl = found["node"], found["acp0"], found["rpl"] or {}
    valid = f"{'valid until' if node['certificate_valid'] else 'EXPIRED'} {node['certificate_expires']}"
    lines = [
        f"{node['name']}",
        f"  ACP address {node['address']} ({node['scheme']}), certificate {valid}",
        f"  {acp0['interface']} {acp0['address']}, ACP prefix {acp0['prefix']}, guard {acp0['guard']}",
    ]
    if acp0["problem"]:
        lines.append(f"  {acp0['interface']} is off: {acp0['problem']}")
    lines += _ports(found)
    lines += ["", "Neighbours"]
    lines += _table(
        ("PORT", "ADDRESS", "STATE", "ROLE", "NOTE"),
        [_neighbour(item) for item in found["neighbours"]],
        "none heard yet",
    )
    lines += ["", f"Channels (data plane: {node['data_plane']}, {node['data_plane_reason']})"]
    lines += _table(
        ("INTERFACE", "PORT", "PEER", "ESP", "MTU", "IN", "OUT", "DROPPED"),
        [
            (
                channel["interface"],
                channel["port"],
                channel["peer_name"],
                "in UDP" if channel["udp_encapsulation"] else "plain",
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
    lines += ["", "Join proxy"]
    lines += _join_proxy(found["proxy"])
    broken = [p for p in found["processes"] if p["pid"] is None or p["restarts"]]
    if broken:
        lines += ["", "Processes that were started again"]
        lines += _table(
            ("NAME", "PID", "RESTARTS"), [(p["name"], p["pid"], p["restarts"]) for p in broken], "none"
        )
    return "\n".join(lines)


def _ports(found: dict[str, Any]) -> list[str]:
    rows = _table(
        ("NAME", "STATE", "LINK-LOCAL", "NOTE"),
        [
            (p["name"], p["state"], p.get("link_local"), p["problem"] or p.get("ula") or "")
            for p in found["ports"]
        ],
        "none: no interface of this machine is one that the ACP uses",
    )
    return ["", "Ports", *rows]


def _pledge_text(found: dict[str, Any]) -> str:
    """Return the answer of a node that is no member of any domain."""
    pledge = found.get("pledge")
    if pledge is None:
        return "the node is just being started"
    if former := pledge.get("former_name"):
        lines = [f"{former}: its certificate has expired. It asks for a new one."]
    else:
        serial_number = pledge.get("serial_number", "not known yet")
        lines = [f"This device ({serial_number}) is not enrolled in any domain yet."]
    lines += _ports(found)
    lines += ["", "Join proxies"]
    proxies = {(p["port"], p["address"]): p for p in pledge.get("proxies", [])}
    lines += _table(
        ("PORT", "LINK-LOCAL", "HEARD BY", "STEP", "NOTE"),
        [_pledge_step(step, proxies.get((step["port"], step["proxy"]), {})) for step in pledge["steps"]],
        "none heard yet: is there a member of the domain at the other end of a cable?",
    )
    return "\n".join(lines)


def _pledge_step(step: dict[str, Any], proxy: dict[str, Any]) -> tuple[object, ...]:
    note = step["detail"] or ""
    if step["step"] == "failed" and proxy.get("retry_in") is not None:
        note += f"; trying again in {max(proxy['retry_in'], 0):.0f} s"
    heard_by = ", ".join(proxy.get("heard_by", ()))
    return step["port"], step["proxy"], heard_by, step["step"].replace("_", " "), note


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


def _join_proxy(proxy: dict[str, Any]) -> list[str]:
    if not proxy["enabled"]:
        return ["  switched off by the configuration"]
    if "registrars" not in proxy:
        return ["  its process does not answer"]
    registrars = [
        (
            f"[{item['address']}]:{item['port']}",
            printable(item["variation"]) or "EST-TLS",
            "in use" if item["in_use"] else item["problem"] or item["state"],
        )
        for item in proxy["registrars"]
    ]
    offers = [
        (
            port,
            ", ".join(f"{offer['tcp_port']} {printable(offer['variation'])}".rstrip() for offer in offered),
            proxy["connections"].get(port, 0),
        )
        for port, offered in proxy["offers"].items()
        if offered
    ]
    lines = _table(("REGISTRAR", "FOR", "STATE"), registrars, "no registrar announces itself")
    if offers:
        lines += _table(("PORT", "TCP PORTS", "CONNECTIONS"), offers, "")
    return lines


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
