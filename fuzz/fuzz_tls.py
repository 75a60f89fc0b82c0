"""Fuzzes TLS connections: a new server and client, ones in the middle of a handshake, and ones after it.

The first byte of the input chooses which, the rest is what the peer sends. For a connection after the
handshake that is garbage, as the fuzzer has no keys; for the others the seeds are what honest peers send,
certificates in the clear included (TLS 1.2).
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from OpenSSL import SSL

from minerva.pki.ca import CertificateAuthority
from minerva.pki.errors import MembershipError
from minerva.pki.identity import Identity
from minerva.tls.connection import MAX_BACKLOG, MAX_HANDSHAKE_SIZE, TlsConnection
from minerva.tls.context import make_context
from minerva.tls.errors import TlsError, TlsPeerError, TlsRefusedError
from minerva.tls.membership import check_peer

MODES = 6
PIECE = 97

with tempfile.TemporaryDirectory() as _folder:
    _issued = (
        CertificateAuthority.create("fuzz.example.com", Path(_folder, "root"))
        .issue_ca(Path(_folder, "issuing"))
        .issue()
    )
IDENTITY = Identity.from_certificates(_issued.certificate, _issued.chain, _issued.anchors)
WHEN = datetime.now(UTC)


def _context(version: int) -> SSL.Context:
    context = make_context(_issued.certificate, _issued.chain, _issued.private_key)
    context.set_max_proto_version(version)
    return context


CONTEXTS = (_context(SSL.TLS1_2_VERSION), _context(SSL.TLS1_3_VERSION))


def _flights(context: SSL.Context) -> list[bytes]:
    """Return what a client and a server say to each other in a handshake, in turns."""
    one, other = _ends(context)
    flights = []
    while data := one.data_to_send():
        flights.append(data)
        other.receive(data)
        one, other = other, one
    return flights


def _ends(context: SSL.Context) -> tuple[TlsConnection, TlsConnection]:
    return TlsConnection(context, server_side=False), TlsConnection(context, server_side=True)


def target(data: bytes) -> None:
    """Hand ``data`` to a connection, whole and in pieces: nothing but an error of TLS may come of it."""
    if not data:
        return
    mode, rest = data[0] % MODES, data[1:]
    context = CONTEXTS[data[0] // MODES % len(CONTEXTS)]
    _hear(_prepared(mode, context), rest, len(rest) or 1)
    _hear(_prepared(mode, context), rest, PIECE)


def _prepared(mode: int, context: SSL.Context) -> TlsConnection:
    client, server = _ends(context)
    if mode == 0:
        return server
    hello = client.data_to_send()
    if mode == 1:
        return client
    server.receive(hello)
    answer = server.data_to_send()
    if mode == 2:
        return server
    client.receive(answer)
    server.receive(client.data_to_send())
    client.receive(server.data_to_send())
    connection = client if mode == 3 else server
    check_peer(connection, IDENTITY, when=WHEN)
    if mode == 5:
        # The rest of a record that began well.
        check_peer(client, IDENTITY, when=WHEN)
        client.write(b"hello")
        server.receive(client.data_to_send()[:-9])
    return connection


def _hear(connection: TlsConnection, data: bytes, size: int) -> None:
    for start in range(0, len(data), size):
        try:
            connection.receive(data[start : start + size])
        except (TlsPeerError, TlsRefusedError):
            assert connection.closed
            break
        if connection.handshake_done and connection.member is None:
            # Only with a key of its own can a peer get here; the fuzzer has none of ours.
            try:
                check_peer(connection, IDENTITY, when=WHEN)
            except (MembershipError, TlsError):
                assert connection.closed
                break
            raise AssertionError("a stranger was admitted")
    assert connection.closed or connection.handshake_done or len(data) <= MAX_HANDSHAKE_SIZE + size
    assert connection.read() == b""
    assert len(connection.data_to_send()) <= MAX_BACKLOG
    connection.close()
    connection.data_to_send()


def _seeds() -> list[bytes]:
    seeds = []
    for number, context in enumerate(CONTEXTS):
        flights = _flights(context)
        for mode, flight in (
            (0, flights[0]),
            (1, flights[1]),
            (2, flights[2]),
            (3, flights[1]),
            (4, flights[0]),
        ):
            seeds.append(bytes([number * MODES + mode]) + flight)
        seeds.append(bytes([number * MODES + 5]) + bytes(9))
        seeds.append(
            bytes([number * MODES + 4]) + bytes.fromhex("1503030002022814030300010117030300050102030405")
        )
    return seeds


SEEDS = _seeds()


if __name__ == "__main__":
    from _harness import run

    run(target, SEEDS)
