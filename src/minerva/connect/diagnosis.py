"""What is wrong with a running node, found in what it tells of itself, and what can be done about it.

Nothing here does input or output: :func:`of_status` judges a node's answer to ``status``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from minerva.core.text import utc
from minerva.esp.packet import MIN_LINK_MTU
from minerva.pki.errors import Rule

Status = dict[str, Any]

URGENT: Final = 0.5
"""A renewal that fails is urgent when less than this share of the time that was left for it is left."""
MANY_DROPS: Final = 10
"""So many dropped packets, and more than a hundredth of the good ones, are worth a word."""

_LOG = "the log says why"


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """It works, or may be meant so, but whoever wonders should know."""
    PROBLEM = "problem"
    """Something does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    area: str
    level: Level
    what: str
    """What was found, without a full stop. It may hold what strangers said: make it printable."""
    advice: str = ""
    """What to do, or where to look; nothing where all is well."""

    def as_json(self) -> dict[str, str]:
        """Return it as JSON would hold it."""
        return {"area": self.area, "level": self.level.value, "what": self.what, "advice": self.advice}


def ok(area: str, what: str) -> Finding:
    """Return that something is well."""
    return Finding(area, Level.OK, what)


def warning(area: str, what: str, advice: str = "") -> Finding:
    """Return what one should know of."""
    return Finding(area, Level.WARNING, what, advice)


def problem(area: str, what: str, advice: str = "") -> Finding:
    """Return what does not work."""
    return Finding(area, Level.PROBLEM, what, advice)


_ADVICE: Final = {
    Rule.PROOF_OF_POSSESSION: "its certificate and its key do not belong together, or it is an impostor",
    Rule.PATH: "it may be of another domain, or one of the two clocks wrong: compare 'date' on both, and "
    "'openssl x509 -noout -fingerprint -sha256 -in anchors.pem'",
    Rule.REVOCATION: "it was revoked: unplug it, or have it enrolled anew ('minerva factory-reset' there)",
    Rule.DOMAIN: "if it is to be of this domain, 'minerva factory-reset' there lets it be enrolled",
    Rule.ADDRESS: "its certificate has no address in the ACP: have it issued anew",
}
_SILENT: Final = (
    "see 'minerva doctor' on that machine; a switch between the two must let through UDP port 500, "
    "ESP (IP protocol 50) and multicast"
)


def of_status(status: Status, now: datetime) -> list[Finding]:
    """Return what is to be said of a node with this ``status``; ``now`` has a time zone."""
    found = [*_processes(status), *_ports(status)]
    if "acp0" not in status:
        return [*found, *_pledge(status)]
    return [
        *found,
        *_certificate(status, now),
        *_host(status),
        *_neighbours(status),
        *_channels(status),
        *_routing(status),
        *_registrars(status),
    ]


def _processes(status: Status) -> Iterator[Finding]:
    processes = status["processes"]
    for process in processes:
        if process["pid"] is None:
            yield problem("node", f"its process {process['name']} does not run", _LOG)
        elif count := process["restarts"]:
            times = "once" if count == 1 else f"{count} times"
            yield warning("node", f"its process {process['name']} ended and was started again {times}", _LOG)
    if all(process["pid"] is not None for process in processes):
        yield ok("node", f"it runs, in {len(processes)} processes")


def _ports(status: Status) -> Iterator[Finding]:
    used = [port for port in status["ports"] if port["state"] != "left out"]
    if not used:
        left_out = ", ".join(f"{port['name']} ({port['problem']})" for port in status["ports"])
        yield problem(
            "ports",
            f"no interface is used for the ACP; left out: {left_out or 'none'}",
            "name interfaces with ports.include in minerva.toml, or plug one in",
        )
    for port in used:
        name, state = port["name"], port["state"]
        if state == "failed":
            yield problem("ports", f"{name} cannot be used: {port['problem']}", _LOG)
        elif state == "no carrier":
            yield warning(
                "ports", f"{name} has no carrier", "is its cable in, and the other end switched on?"
            )
        elif port["mtu"] < MIN_LINK_MTU:
            yield problem(
                "ports",
                f"{name} has an MTU of {port['mtu']}; channels need {MIN_LINK_MTU}",
                f"'ip link set {name} mtu 1500', here and at the other end",
            )
        elif port["problem"]:
            yield warning("ports", f"{name}: {port['problem']}")
        else:
            yield ok("ports", f"{name} is {state}")


def _pledge(status: Status) -> Iterator[Finding]:
    pledge = status.get("pledge")
    if pledge is None:
        yield warning("enrolment", "the node is just being started", "ask again in a second")
        return
    if former := pledge.get("former_name"):
        yield problem(
            "enrolment",
            f"the certificate of {former} has expired, and there is no new one yet",
            "it asks its neighbours for a way to a registrar; is the clock right, and does a registrar run?",
        )
    else:
        device = pledge.get("serial_number") or "whose serial number is not known yet"
        yield warning(
            "enrolment", f"this device ({device}) is in no domain yet", "it looks for one by itself"
        )
    if not pledge.get("proxies"):
        yield problem(
            "enrolment",
            "nobody offers a way to a registrar",
            "at the other end of a cable must be a member of the domain that knows of a registrar",
        )
    for step in pledge["steps"]:
        if step["step"] == "failed":
            yield problem(
                "enrolment",
                f"by {step['proxy']} on {step['port']}: {step['detail']}",
                "'minerva registrar log' at the registrar tells its side of it",
            )


def _certificate(status: Status, now: datetime) -> Iterator[Finding]:
    node, kept = status["node"], status["certificate"]
    expires = datetime.fromisoformat(node["certificate_expires"])
    until = utc(expires)
    if not node["certificate_valid"]:
        yield problem(
            "certificate", f"it expired at {until}", "is the clock right, and does a registrar run?"
        )
    elif kept is not None and kept["problem"] is not None:
        left_for_it = expires - datetime.fromisoformat(kept["renew_at"])
        yield Finding(
            "certificate",
            Level.PROBLEM if expires - now < left_for_it * URGENT else Level.WARNING,
            f"it is valid until {until}, but cannot be renewed: {kept['problem']}",
            "a registrar must run and be reached: 'minerva registrar status' there",
        )
    else:
        yield ok("certificate", f"it is valid until {until}")
    if kept is not None and kept["crl_problem"] is not None:
        yield warning(
            "certificate",
            f"the list of revoked certificates cannot be had: {kept['crl_problem']}",
            "who was revoked lately may still come in; a registrar must run and be reached",
        )


def _host(status: Status) -> Iterator[Finding]:
    acp0 = status["acp0"]
    name, guarded = acp0["interface"], acp0["guard"] == "in place"
    if not guarded:
        yield problem(
            "host",
            f"{name} is not guarded: {acp0['guard']}",
            "the kernel needs nftables; with a firewall of your own, acp.unguarded = true does without",
        )
    if acp0["problem"]:
        yield problem("host", f"{name} is off: {acp0['problem']}", _LOG)
    elif guarded:
        yield ok("host", f"{name} has {acp0['address']}, and is guarded")


def _neighbours(status: Status) -> Iterator[Finding]:
    heard = {item["port"] for item in status["neighbours"]}
    for port in status["ports"]:
        if port["state"] == "up" and port["name"] not in heard:
            yield warning(
                "neighbours",
                f"nobody announces itself on {port['name']}",
                "at the other end is no node, or a switch that keeps multicast (MLD snooping)",
            )
    for item in status["neighbours"]:
        where = f"{item['address']} on {item['port']}"
        if item["state"] == "connected":
            yield ok("neighbours", f"{where} is {item['peer_name']}")
        elif item["failure"]:
            rule = item.get("failure_rule")
            advice = _SILENT if rule is None else _ADVICE[Rule(rule)]
            yield problem("neighbours", f"{where}: {item['failure']}", advice)
        else:
            yield warning("neighbours", f"{where} is {item['state']}", "ask again in a few seconds")


def _channels(status: Status) -> Iterator[Finding]:
    for channel in status["channels"]:
        drops = {why: count for why, count in channel.get("drops", {}).items() if count}
        lost, good = sum(drops.values()), channel.get("packets_in") or 0
        if lost > max(MANY_DROPS, good // 100):
            reasons = ", ".join(f"{why}: {count}" for why, count in sorted(drops.items()))
            yield warning(
                "channels",
                f"{channel['interface']} dropped {lost} packets beside {good} good ones ({reasons})",
                "somebody on that link forges or repeats packets, or the link does",
            )


def _routing(status: Status) -> Iterator[Finding]:
    rpl = status["rpl"]
    if rpl is None:
        yield problem("routing", "its process does not answer", _LOG)
    elif not status["channels"]:
        yield warning("routing", "there is no channel to anybody", "see the neighbours")
    elif rpl["role"] == "root":
        yield ok("routing", "this node is the root")
    elif (parent := rpl.get("preferred_parent")) is not None:
        yield ok("routing", f"the root is {rpl['dodag_id']}, by {parent['interface']}")
    else:
        yield problem("routing", "there is no way to a root", f"if that stays for more than seconds, {_LOG}")


def _registrars(status: Status) -> Iterator[Finding]:
    proxy = status["proxy"]
    registrars = proxy.get("registrars", [])
    for item in registrars:
        where = f"[{item['address']}]:{item['port']}"
        if item["in_use"]:
            yield ok("registrar", f"{where} lets new devices in")
        elif item["problem"]:
            yield warning("registrar", f"{where}: {item['problem']}", "new devices do not come in by it")
    if not proxy["enabled"]:
        yield ok("registrar", "the join proxy is switched off by the configuration")
    elif not registrars:
        yield warning(
            "registrar",
            "none announces itself: nobody new comes in, and no certificate is renewed",
            "start one ('minerva registrar run'), if the domain is to have one",
        )
