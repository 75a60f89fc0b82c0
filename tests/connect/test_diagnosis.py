"""What is found wrong in the status of a node."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import pytest

from minerva.connect.diagnosis import Level, of_status
from minerva.pki.errors import Rule

NOW = datetime(2026, 11, 25, tzinfo=UTC)
HEALTHY: dict[str, Any] = {
    "node": {"certificate_expires": "2027-11-25T00:00:00+00:00", "certificate_valid": True},
    "acp0": {"interface": "acp0", "address": "fd00::1", "guard": "in place", "problem": None},
    "ports": [
        {"name": "eth0", "state": "up", "problem": None, "mtu": 1500},
        {"name": "wlan0", "state": "left out", "problem": "Wi-Fi"},
    ],
    "processes": [{"name": "supervisor", "pid": 1, "restarts": 0}],
    "neighbours": [
        {"port": "eth0", "address": "fe80::1", "state": "connected", "peer_name": "b@x", "failure": None}
    ],
    "channels": [{"interface": "acp_1", "drops": {"replayed": 3}, "packets_in": 5}],
    "rpl": {"role": "router", "dodag_id": "fd00::9", "preferred_parent": {"interface": "acp_1"}},
    "certificate": {"renew_at": "2027-05-25T00:00:00+00:00", "problem": None, "crl_problem": None},
    "proxy": {
        "enabled": True,
        "registrars": [{"address": "fd00::9", "port": 8443, "in_use": True, "problem": None}],
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the healthy status with another value at ``path``, such as ``ports.0.state``."""
    status = copy.deepcopy(HEALTHY)
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place: Any = status
    for step in way:
        place = place[step]
    place[last] = value
    return status


def test_a_healthy_node() -> None:
    found = of_status(HEALTHY, NOW)
    assert {finding.level for finding in found} == {Level.OK}
    areas = [finding.area for finding in found]
    assert areas == ["node", "ports", "certificate", "host", "neighbours", "routing", "registrar"]


@pytest.mark.parametrize(
    ("path", "value", "level", "what", "advice"),
    [
        ("processes.0.pid", None, Level.PROBLEM, "supervisor does not run", "log"),
        ("processes.0.restarts", 2, Level.WARNING, "started again 2 times", "log"),
        ("ports.0.state", "failed", Level.PROBLEM, "eth0 cannot be used", "log"),
        ("ports.0.state", "no carrier", Level.WARNING, "eth0 has no carrier", "cable"),
        ("ports.0.mtu", 1300, Level.PROBLEM, "MTU of 1300; channels need 1356", "ip link set eth0"),
        ("ports.0.state", "left out", Level.PROBLEM, "wlan0 (Wi-Fi)", "ports.include"),
        ("acp0.guard", "no nftables", Level.PROBLEM, "acp0 is not guarded: no nftables", "unguarded"),
        ("acp0.problem", "it is taken", Level.PROBLEM, "acp0 is off: it is taken", "log"),
        ("neighbours", [], Level.WARNING, "nobody announces itself on eth0", "multicast"),
        ("neighbours.0.state", "initiating", Level.WARNING, "fe80::1 on eth0 is initiating", "again"),
        ("channels.0.drops", {"replayed": 11, "old": 1}, Level.WARNING, "old: 1, replayed: 11", "forges"),
        ("channels", [], Level.WARNING, "no channel to anybody", "neighbours"),
        ("rpl", None, Level.PROBLEM, "does not answer", "log"),
        ("rpl.preferred_parent", None, Level.PROBLEM, "no way to a root", "log"),
        ("node.certificate_valid", False, Level.PROBLEM, "expired at 2027-11-25", "clock"),
        ("certificate.problem", "nobody answers", Level.WARNING, "cannot be renewed", "registrar"),
        ("certificate.crl_problem", "nobody answers", Level.WARNING, "revoked", "registrar"),
        ("proxy.registrars", [], Level.WARNING, "none announces itself", "minerva registrar run"),
    ],
)
def test_what_is_wrong(path: str, value: Any, level: Level, what: str, advice: str) -> None:
    found = [finding for finding in of_status(changed(path, value), NOW) if what in finding.what]
    assert [finding.level for finding in found] == [level]
    assert advice in found[0].advice


def test_a_renewal_that_fails_becomes_urgent() -> None:
    status = changed("certificate.problem", "nobody answers")
    late = datetime(2027, 9, 1, tzinfo=UTC)
    assert [finding.level for finding in of_status(status, late) if finding.area == "certificate"] == [
        Level.PROBLEM
    ]


@pytest.mark.parametrize("rule", [None, *Rule])
def test_each_refusal_has_its_advice(rule: Rule | None) -> None:
    status = changed("neighbours.0.state", "backing off")
    status["neighbours"][0] |= {"failure": "so it is", "failure_rule": rule}
    (found,) = (finding for finding in of_status(status, NOW) if finding.area == "neighbours")
    assert found.level is Level.PROBLEM
    assert found.what == "fe80::1 on eth0: so it is"
    assert found.advice


def test_few_drops_among_many_packets_are_no_matter() -> None:
    status = changed("channels.0", {"interface": "acp_1", "drops": {"replayed": 50}, "packets_in": 10_000})
    assert {finding.level for finding in of_status(status, NOW)} == {Level.OK}


@pytest.mark.parametrize(
    ("pledge", "level", "what"),
    [
        (None, Level.WARNING, "just being started"),
        ({"serial_number": "SN-1", "steps": []}, Level.WARNING, "(SN-1) is in no domain yet"),
        ({"serial_number": None, "steps": []}, Level.PROBLEM, "nobody offers a way"),
        ({"former_name": "a@x", "steps": []}, Level.PROBLEM, "the certificate of a@x has expired"),
        (
            {"steps": [{"step": "failed", "proxy": "fe80::1", "port": "eth0", "detail": "no voucher"}]},
            Level.PROBLEM,
            "by fe80::1 on eth0: no voucher",
        ),
    ],
)
def test_a_pledge(pledge: dict[str, Any] | None, level: Level, what: str) -> None:
    status = {key: HEALTHY[key] for key in ("ports", "processes")} | ({"pledge": pledge} if pledge else {})
    found = [finding for finding in of_status(status, NOW) if what in finding.what]
    assert [finding.level for finding in found] == [level]
