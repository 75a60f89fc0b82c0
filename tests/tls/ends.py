"""Two ends of a TLS connection in one process, and messages of TLS made by hand."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from OpenSSL import SSL

from minerva.pki.identity import Identity
from minerva.tls.connection import TlsConnection
from minerva.tls.context import make_context
from minerva.tls.membership import check_peer
from tests.pki.certs import NOW, Ca, key, node_name

ROOT = Ca.root("Root", kind="p384")

HANDSHAKE, ALERT, APPLICATION_DATA = 22, 21, 23
TLS11, TLS12, TLS13 = 0x0302, 0x0303, 0x0304
SERVER_HELLO = 2


@dataclass(frozen=True)
class Node:
    """An ACP node: who it is, and what its contexts are made of."""

    identity: Identity
    kind: str

    @classmethod
    def make(cls, number: int, kind: str = "p256", ca: Ca = ROOT, **options: object) -> Node:
        leaf = ca.node(node_name(number), kind=kind, **options)
        return cls(Identity.from_certificates(leaf, ca.chain, (ROOT.certificate,)), kind)

    def context(self, version: int | None = None) -> SSL.Context:
        """A context as a node has it; or with this version of TLS alone, to see that both work."""
        context = make_context(self.identity.certificate, self.identity.chain, key(self.kind))
        if version is not None:
            context.set_min_proto_version(version)
            context.set_max_proto_version(version)
        return context


ALICE, BOB = Node.make(1), Node.make(2)


def ends(
    client: SSL.Context | None = None, server: SSL.Context | None = None
) -> tuple[TlsConnection, TlsConnection]:
    """A client and a server; Alice and Bob if nothing else is said."""
    return (
        TlsConnection(client or ALICE.context(), server_side=False),
        TlsConnection(server or BOB.context(), server_side=True),
    )


def carry(one: TlsConnection, other: TlsConnection) -> None:
    """Carry bytes until there are none."""
    while True:
        forth, back = one.data_to_send(), other.data_to_send()
        if not forth and not back:
            return
        if forth:
            other.receive(forth)
        if back:
            one.receive(back)


def connected(
    client: SSL.Context | None = None, server: SSL.Context | None = None
) -> tuple[TlsConnection, TlsConnection]:
    """A client and a server after their handshake; nobody is checked yet."""
    one, other = ends(client, server)
    carry(one, other)
    assert one.handshake_done
    assert other.handshake_done
    return one, other


def admitted(version: int | None = None) -> tuple[TlsConnection, TlsConnection]:
    """Alice as client and Bob as server, each knowing the other."""
    one, other = connected(ALICE.context(version), BOB.context(version))
    check_peer(one, ALICE.identity, when=NOW)
    check_peer(other, BOB.identity, when=NOW)
    return one, other


def record(kind: int, content: bytes, version: int = TLS12) -> bytes:
    """struct { ContentType type; ProtocolVersion version; uint16 length; opaque fragment[length]; }"""
    return struct.pack("!BHH", kind, version, len(content)) + content


def message(kind: int, body: bytes) -> bytes:
    """struct { HandshakeType msg_type; uint24 length; body }, in a record of its own."""
    return record(HANDSHAKE, bytes([kind]) + len(body).to_bytes(3) + body)


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack("!HH", kind, len(content)) + content


def client_hello(version: int, suites: Iterable[int], *, tls13: bool = False) -> bytes:
    """A ClientHello with P-256 and ECDSA and RSA over SHA-256, in TLS 1.3 with a share (RFC 8446 4.1.2)."""
    offered = b"".join(suite.to_bytes(2) for suite in suites)
    extensions = (
        extension(10, bytes.fromhex("0002 0017"))
        + extension(11, bytes.fromhex("01 00"))
        + extension(13, bytes.fromhex("0006 0403 0804 0401"))
    )
    if tls13:
        point = key("p256").public_key().public_numbers()
        share = b"\x04" + point.x.to_bytes(32) + point.y.to_bytes(32)
        extensions += extension(43, bytes.fromhex("02 0304"))
        extensions += extension(51, struct.pack("!HHH", len(share) + 4, 0x17, len(share)) + share)
    body = version.to_bytes(2) + bytes(32) + b"\x00" + len(offered).to_bytes(2) + offered + b"\x01\x00"
    return message(1, body + len(extensions).to_bytes(2) + extensions)


def server_hello(version: int, suite: int) -> bytes:
    """A ServerHello without extensions (RFC 5246 section 7.4.1.3)."""
    return message(SERVER_HELLO, version.to_bytes(2) + bytes(32) + b"\x00" + suite.to_bytes(2) + b"\x00")


def alert(data: bytes) -> tuple[int, int]:
    """Return level and description of the one alert, in the clear, that ``data`` is."""
    kind, _, length, level, description = struct.unpack("!BHHBB", data)
    assert (kind, length) == (ALERT, 2)
    return level, description
