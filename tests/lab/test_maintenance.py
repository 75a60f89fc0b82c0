"""A network whose certificates live for half a minute: renewal, a new CA, revocation, and coming too late."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.lab.attacker import Pings, StandingLab, standing_lab, until
from tests.lab.conftest import minerva

pytestmark = pytest.mark.root

NODES = ("n1", "n2", "n3")
LIFETIME = 30
CRL_PERIOD = LIFETIME // 6


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    directory = tmp_path_factory.mktemp("labs")
    options = ("--zero-touch", "--lifetime", str(LIFETIME))
    with standing_lab("line:3", "keep", directory, *options) as found:
        yield found


def registrar(lab: StandingLab, *words: str) -> dict[str, Any]:
    """What ``minerva registrar`` prints."""
    done = minerva("registrar", *words, "--dir", lab.directory / "registrar", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found if isinstance(found, dict) else {"found": found}


def certificate(lab: StandingLab, node: str) -> x509.Certificate:
    """The certificate that a node has kept."""
    return x509.load_pem_x509_certificate((lab.state_dir(node) / "cert.pem").read_bytes())


def renewals(lab: StandingLab) -> dict[str, int]:
    """How often each node has renewed its certificate."""
    return {node: (lab.status(node)["certificate"] or {}).get("renewals", 0) for node in NODES}


def host_address(lab: StandingLab, node: str) -> str:
    return str(lab.status(node)["acp0"]["address"])


def pings(lab: StandingLab, source: str, target: str) -> Pings:
    return Pings(lab.host(source), host_address(lab, source), host_address(lab, target))


def while_pinging(lab: StandingLab, condition: Any, what: str, seconds: float) -> None:
    """Wait until ``condition`` holds; meanwhile every ping between nodes is answered."""
    every = [pings(lab, "n1", "n3"), pings(lab, "n3", "n1"), pings(lab, "n2", "n3")]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} seconds still not: {what}"
        for one in every:
            one.send()
        time.sleep(0.1)
    lost = [one.lost() for one in every]
    for one in every:
        one.close()
    assert lost == [0, 0, 0]
    assert every[0].sent > 5


def test_renewal_interrupts_nothing(lab: StandingLab) -> None:
    """Every node gets a new certificate and key before half of the life is over, and keeps its address.

    covers: 6.2.5-1, 6.2.5.2-1, 6.2.5.2-2, 6.2.5-4, E-6, E-10, R-2
    """
    before = renewals(lab)
    old = {node: certificate(lab, node) for node in NODES}
    addresses = {node: host_address(lab, node) for node in NODES}
    while_pinging(
        lab,
        lambda: all(count > before[node] for node, count in renewals(lab).items()),
        "all have renewed their certificates",
        LIFETIME,
    )
    for node in NODES:
        new = certificate(lab, node)
        assert new.public_key() != old[node].public_key()
        assert new.not_valid_after_utc > old[node].not_valid_after_utc
        half = (
            old[node].not_valid_before_utc
            + (old[node].not_valid_after_utc - old[node].not_valid_before_utc) / 2
        )
        # The node began before that; issuing takes a moment, and times are whole seconds.
        assert (new.not_valid_before_utc - half).total_seconds() < 2
        assert host_address(lab, node) == addresses[node]
    # The neighbours have seen the new ones: nobody is held by an old one.
    for node in NODES:
        for channel in lab.status(node)["channels"]:
            expires = datetime.fromisoformat(channel["peer_certificate_expires"])
            assert (expires - datetime.now(UTC)).total_seconds() > 0


def test_a_new_issuing_ca_interrupts_nothing(lab: StandingLab) -> None:
    """
    covers: E-4
    """
    old = {node: certificate(lab, node).issuer for node in NODES}
    keys = {node: _authority_key(certificate(lab, node)) for node in NODES}
    registrar(lab, "rollover")
    while_pinging(
        lab,
        lambda: all(_authority_key(certificate(lab, node)) != keys[node] for node in NODES),
        "all have certificates of the new CA",
        2 * LIFETIME,
    )
    assert len({certificate(lab, node).issuer for node in NODES}) == 1, old


def _authority_key(leaf: x509.Certificate) -> bytes | None:
    return leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier


def registrar_pid(lab: StandingLab) -> int:
    found = subprocess.run(
        ["pgrep", "-f", f"registrar run --dir {lab.directory}/registrar"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(found.stdout.split()[0])


def start_registrar(lab: StandingLab) -> None:
    words = ["registrar", "run", "--dir", str(lab.directory / "registrar")]
    words += ["--run-dir", str(lab.run_dir("n1"))]
    with (lab.directory / "registrar.log").open("ab") as log, lab.host("n1").entered():
        running = subprocess.Popen(
            [sys.executable, "-m", "minerva", *words], stdout=log, stderr=log, start_new_session=True
        )
    running.returncode = 0  # it ends with the lab, and is not waited for


def test_who_came_too_late_comes_back(lab: StandingLab) -> None:
    """While nobody renews, all certificates expire; with the registrar all are back, with their addresses.

    covers: 6.2.5.5-1, 6.2.5.5-2, 6.2.5.5-4, 6.2.5.5-5, P-71, R-12
    """
    addresses = {node: host_address(lab, node) for node in NODES}
    os.kill(registrar_pid(lab), signal.SIGTERM)
    until(
        lambda: all("pledge" in lab.status(node) for node in NODES),
        "all have lost their membership",
        seconds=LIFETIME + 20,
    )
    assert "was " in (lab.directory / "nodes" / "n3" / "log").read_text()
    start_registrar(lab)
    until(
        lambda: all("acp0" in lab.status(node) for node in NODES),
        "all are members again",
        seconds=LIFETIME,
    )
    assert {node: host_address(lab, node) for node in NODES} == addresses
    one = pings(lab, "n1", "n3")
    until(one.reaches, "the ends reach each other", seconds=20)
    one.close()


def test_who_is_revoked_is_out(lab: StandingLab) -> None:
    """Within one period of the CRL, and the neighbour says why.

    covers: 6.2.3-3, 6.2.3-4, R9.2-1
    """
    registrar(lab, "revoke", "LAB-n3")
    until(
        lambda: len(lab.status("n2")["channels"]) == 1,
        "the channel to the revoked node is gone",
        seconds=CRL_PERIOD + 3,
    )
    [row] = [row for row in lab.status("n2")["neighbours"] if row["port"] == "eth1"]
    until(
        lambda: "revoked" in str(_neighbour(lab, "n2", "eth1")["failure"]),
        "the neighbour says why",
        seconds=LIFETIME,
    )
    assert row["state"] != "connected"
    one = pings(lab, "n1", "n2")
    until(one.reaches, "the others still reach each other", seconds=5)
    one.close()
    log = (lab.directory / "nodes" / "n2" / "log").read_text()
    assert "revoked" in log


def _neighbour(lab: StandingLab, node: str, port: str) -> dict[str, Any]:
    [row] = [row for row in lab.status(node)["neighbours"] if row["port"] == port]
    return dict(row)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_lifetimes_of_two_minutes(tmp_path: Path) -> None:
    """Twenty minutes of renewals in a ring: no ping is lost.

    covers: 6.2.5.4-1
    """
    seconds = float(os.environ.get("MINERVA_SOAK_SECONDS", "1200"))
    names = ("n1", "n2", "n3", "n4")
    with (
        standing_lab("ring:4", "soak", tmp_path, "--zero-touch", "--lifetime", "120") as lab,
        ExitStack() as stack,
    ):
        every = [
            stack.enter_context(pings(lab, source, target))
            for source in names
            for target in names
            if source != target
        ]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for one in every:
                one.send()
            time.sleep(0.2)
        assert [one.lost() for one in every] == [0] * len(every)
        for node in names:
            assert lab.status(node)["certificate"]["renewals"] >= seconds // 60 - 1
