"""How many TLS handshakes a client and a server do in a second of their CPU time, and how fast bytes pass.

Two connections in one process, P-256, an issuing CA and a root on P-256, both sides showing a certificate;
all that a handshake takes is done: key agreement, signatures, the membership check with its path validation.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from OpenSSL import SSL

from _report import report
from minerva.pki.ca import CertificateAuthority
from minerva.pki.identity import Identity
from minerva.tls.connection import TlsConnection
from minerva.tls.context import make_context
from minerva.tls.membership import check_peer

BULK = 64 * 1024


class Node:
    """One end; ``cpu`` is the time that it has used, in seconds."""

    def __init__(self, authority: CertificateAuthority, version: int, *, server_side: bool) -> None:
        issued = authority.issue()
        self.identity = Identity.from_certificates(issued.certificate, issued.chain, issued.anchors)
        self.context = make_context(issued.certificate, issued.chain, issued.private_key)
        self.context.set_max_proto_version(version)
        self.server_side = server_side
        self.when = datetime.now(UTC)
        self.cpu = 0.0

    def open(self) -> None:
        """Begin a connection."""
        started = time.process_time()
        self.connection = TlsConnection(self.context, server_side=self.server_side)
        self.cpu += time.process_time() - started

    def take(self, data: bytes) -> bytes:
        """Do what is to be done about ``data`` and return the answer."""
        started = time.process_time()
        connection = self.connection
        connection.receive(data)
        if connection.handshake_done and connection.member is None:
            check_peer(connection, self.identity, when=self.when)
        answer = connection.data_to_send()
        self.cpu += time.process_time() - started
        return answer


def handshakes(client: Node, server: Node, count: int) -> tuple[float, float]:
    """Do so many, one after the other; return the rate of each side."""
    client.cpu = server.cpu = 0.0
    for _ in range(count):
        connect(client, server)
        assert client.connection.member is not None
        assert server.connection.member is not None
    return count / client.cpu, count / server.cpu


def connect(client: Node, server: Node) -> None:
    """Do one handshake."""
    client.open()
    server.open()
    data = client.take(b"")
    while data:
        data = client.take(server.take(data))


def bulk(client: Node, server: Node, megabytes: int) -> float:
    """Return how many megabytes pass in a second, both sides working in turns."""
    connect(client, server)
    payload = bytes(BULK)
    started = time.process_time()
    for _ in range(megabytes * 1_000_000 // BULK):
        client.connection.write(payload)
        server.connection.receive(client.connection.data_to_send())
        assert len(server.connection.read()) == BULK
    return megabytes / (time.process_time() - started)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--count", type=int, default=300, help="handshakes in a run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        authority = CertificateAuthority.create("bench.example.com", Path(folder, "root"))
        issuing = authority.issue_ca(Path(folder, "issuing"))
        for name, version in (("TLS 1.3", SSL.TLS1_3_VERSION), ("TLS 1.2", SSL.TLS1_2_VERSION)):
            client = Node(issuing, version, server_side=False)
            server = Node(issuing, version, server_side=True)
            handshakes(client, server, 20)
            rates = [handshakes(client, server, arguments.count) for _ in range(arguments.runs)]
            for side, values in zip(("client", "server"), zip(*rates, strict=True), strict=True):
                report("tls", f"{side} handshakes, {name}", values, "1/s of CPU", "higher")
                print(f"{name}, {side}: {[round(value) for value in values]}", file=sys.stderr)
            report(
                "tls",
                f"bytes, both sides, {name}",
                [bulk(client, server, 50) for _ in range(arguments.runs)],
                "MB/s of CPU",
                "higher",
            )


if __name__ == "__main__":
    main()
