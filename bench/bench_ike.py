"""What an IKE handshake costs: two endpoints in one process, and on sockets, beside strongSwan's charon.

ECDSA with P-256, an issuing CA and a root on P-256; everything that a handshake takes is done (key agreement,
path validation, both signatures), and our own signing as well, though that is another process in a node.

The first figure counts the time of the responder's endpoint alone. The others are the CPU time of whole
processes (``_ike_live``), whoever is measured with the same process of ours at the other end, taking turns.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from cryptography import x509

import _ike_live
from _report import report
from minerva.ikev2 import auth
from minerva.ikev2.config import Config
from minerva.ikev2.constants import IKE_PORT, DhGroup
from minerva.ikev2.endpoint import Endpoint, Established, SignatureNeeded
from minerva.pki.ca import CertificateAuthority
from minerva.pki.identity import Identity
from minerva.pki.membership import Member, check_membership

GROUPS = (DhGroup.ECP_256, DhGroup.CURVE25519, DhGroup.ECP_384)
A, B = IPv6Address("fe80::a"), IPv6Address("fe80::b")


class Node:
    """An endpoint with its signer; ``cpu`` is the time that it has used, in seconds."""

    def __init__(self, address: IPv6Address, authority: CertificateAuthority, group: DhGroup) -> None:
        issued = authority.issue()
        self.address = address
        self.identity = Identity.from_certificates(issued.certificate, issued.chain, issued.anchors)
        self.key: Any = issued.private_key
        self.when = datetime.now(UTC)
        self.endpoint = Endpoint(
            address, self.identity, self._authenticate, os.urandom, Config(groups=(group,))
        )
        self.established = 0
        self.cpu = 0.0

    def _authenticate(self, chain: Sequence[x509.Certificate]) -> Member:
        return check_membership(chain, self.identity, when=self.when, channel=True)

    def take(self, messages: list[bytes], source: IPv6Address, now: float) -> list[bytes]:
        """Do what is to be done about ``messages`` and return the answers."""
        started = time.process_time()
        for message in messages:
            self.endpoint.receive(message, source, IKE_PORT, now)
        while (event := self.endpoint.next_event()) is not None:
            if isinstance(event, SignatureNeeded):
                auth.check_own_init(event.message)
                octets = auth.signed_octets(event.message, event.nonce, event.maced_id)
                self.endpoint.signed(event.sa, auth.sign(self.key, octets, event.hash), now)
            elif isinstance(event, Established):
                self.established += 1
        answers = [datagram.data for datagram in self.endpoint.datagrams_to_send(now)]
        self.cpu += time.process_time() - started
        return answers


def handshakes(initiator: Node, responder: Node, count: int) -> float:
    """Do so many, one after the other, each SA closed again; return the responder's rate."""
    used, before = 0.0, responder.established
    now = 0.0
    for _ in range(count):
        responder.cpu = 0.0
        sa = initiator.endpoint.initiate(B, IKE_PORT, now)
        exchange(initiator, responder, now)
        used += responder.cpu
        initiator.endpoint.close(sa, now, "next one")
        exchange(initiator, responder, now)
        now += 100.0
        for node in (initiator, responder):
            node.endpoint.on_timer(now)
    assert responder.established - before == count
    return count / used


def exchange(initiator: Node, responder: Node, now: float) -> None:
    """Carry messages until there are none."""
    messages = initiator.take([], B, now)
    while messages:
        messages = initiator.take(responder.take(messages, A, now), B, now)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--count", type=int, default=100, help="handshakes in a run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        authority = CertificateAuthority.create("bench.example.com", Path(folder, "root"))
        issuing = authority.issue_ca(Path(folder, "issuing"))
        for group in GROUPS:
            initiator, responder = Node(A, issuing, group), Node(B, issuing, group)
            handshakes(initiator, responder, 20)
            values = [handshakes(initiator, responder, arguments.count) for _ in range(arguments.runs)]
            report("ike", f"responder handshakes, {group.name}", values, "1/s of CPU", "higher")
            print(f"{group.name}: {[round(value) for value in values]}", file=sys.stderr)
        try:
            live = _ike_live.measure(issuing, Path(folder), GROUPS, arguments.runs, arguments.count)
        except _ike_live.NotHereError as error:
            print(f"no figures on sockets: {error}", file=sys.stderr)
            return
    for (role, group), (ours, theirs) in live.items():
        figure = f"{role}_cpu_ms" + ("" if group is GROUPS[0] else f", {group.name}")
        peer = "charon" if theirs else None
        report("ike", figure, ours, "ms/handshake", "lower", peer, theirs or None)


if __name__ == "__main__":
    main()
