"""Fuzzes IKEv2: every decoder, and an endpoint in the middle of a handshake and with an SA that is up.

The first byte chooses what the rest is given to.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from minerva.core.secret import Secret
from minerva.ikev2 import auth
from minerva.ikev2.config import Config, UdpEncapsulation
from minerva.ikev2.constants import ENCAPSULATION_PORT, IKE_PORT
from minerva.ikev2.encapsulation import NON_ESP_MARKER
from minerva.ikev2.endpoint import Endpoint, SignatureNeeded, State
from minerva.ikev2.errors import IkeCryptoError, IkeDecodeError
from minerva.ikev2.message import Header, Protection, decode_message, decode_payloads, encode_message
from minerva.ikev2.payloads import DECODERS, Opaque
from minerva.ikev2.proposals import SecurityAssociation
from minerva.pki.identity import Identity
from minerva.pki.membership import Member
from minerva.pki.node_name import AcpNodeName

A, B = IPv6Address("fe80::a"), IPv6Address("fe80::b")
KEY = ec.derive_private_key(7, ec.SECP256R1())


def _identity(number: int) -> Identity:
    name = AcpNodeName.parse(f"fd739fc23c340000020000006400{number << 1:04x}@acp.example.com")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"node {number}")])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(number)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName([name.other_name()]), critical=False)
        .sign(KEY, hashes.SHA256())
    )
    return Identity.from_certificates(certificate, (), (certificate,))


IDENTITIES = {A: _identity(1), B: _identity(2)}


def _authenticate(chain: Sequence[x509.Certificate]) -> Member:
    # Paths are not what is fuzzed here: who signs right is a member.
    identity = IDENTITIES[A] if chain[0] == IDENTITIES[A].certificate else IDENTITIES[B]
    return Member(chain[0], identity.node_name, identity.address, chain[0].not_valid_after_utc)


class _Node:
    def __init__(self, address: IPv6Address) -> None:
        source = random.Random(str(address))
        self.address = address
        config = Config(udp_encapsulation=UdpEncapsulation.ACCEPT)
        self.endpoint = Endpoint(address, IDENTITIES[address], _authenticate, source.randbytes, config)

    def take(self, data: bytes, source: IPv6Address) -> list[bytes]:
        port = ENCAPSULATION_PORT if data.startswith(NON_ESP_MARKER) else IKE_PORT
        self.endpoint.receive(data, source, port, 1.0)
        return self.out()

    def out(self) -> list[bytes]:
        while (event := self.endpoint.next_event()) is not None:
            if isinstance(event, SignatureNeeded):
                auth.check_own_init(event.message)
                octets = auth.signed_octets(event.message, event.nonce, event.maced_id)
                self.endpoint.signed(event.sa, auth.sign(KEY, octets, event.hash), 1.0)
        return [datagram.data for datagram in self.endpoint.datagrams_to_send(1.0)]


def _handshake(steps: int) -> tuple[_Node, _Node, list[bytes]]:
    """Two nodes that have carried this many messages of a handshake, and those and the next."""
    a, b = _Node(A), _Node(B)
    a.endpoint.initiate(B, IKE_PORT, 1.0)
    messages = a.out()
    for number in range(steps):
        messages += b.take(messages[-1], A) if number % 2 == 0 else a.take(messages[-1], B)
    return a, b, messages


def _fuzz_endpoint(step: int, data: bytes) -> None:
    """Give ``data`` to the one that waits for message ``step``: the genuine message must do all the same."""
    a, b, messages = _handshake(step)
    if step == 4:
        for node, peer in ((a, B), (b, A)):
            assert node.take(data, peer) == [] or data in messages or _is_new(data)
            assert any(status.state is State.ESTABLISHED for status in node.endpoint.status())
        return
    receiver, source = (b, A) if step % 2 == 0 else (a, B)
    pending = [(receiver, source, data), (receiver, source, messages[-1])]
    while pending:
        node, peer, message = pending.pop(0)
        other, own = (a, B) if node is b else (b, A)
        pending += [(other, own, answer) for answer in node.take(message, peer)]
    for node in (a, b):
        states = [status.state for status in node.endpoint.status()]
        assert states.count(State.ESTABLISHED) == 1, (
            "forged messages must not stop a handshake, nor double it"
        )


def _is_new(data: bytes) -> bool:
    header = Header.decode(data.removeprefix(NON_ESP_MARKER))
    return (not header.is_response and header.exchange == 34) or header.major_version > 2


def _fuzz_protection(data: bytes) -> None:
    """Whatever is inside an authentic message."""
    key = Secret(bytes(36))
    header = Header(b"i" * 8, b"r" * 8, 37, 8, 2)
    sealed = Protection(key, key).seal(header, (Opaque(data[0] if data else 43, data[1:]),))
    first, inner = Protection(key, key).open(Header.decode(sealed), sealed)
    try:
        decode_payloads(first, inner)
    except IkeDecodeError:
        return


def _fuzz_message(data: bytes) -> None:
    try:
        header, payloads = decode_message(data)
    except IkeDecodeError:
        return
    again = encode_message(header, payloads)
    assert decode_message(again)[0].spi_i == header.spi_i
    try:
        auth.check_own_init(data)
    except IkeDecodeError:
        return
    assert again == data, "what is signed has one encoding"


def _fuzz_body(data: bytes) -> None:
    for decoder in DECODERS.values():
        try:
            payload = decoder(data)
        except IkeDecodeError:
            continue
        if not isinstance(payload, SecurityAssociation):
            assert decoder(payload.encode()) == payload


def _fuzz_open(data: bytes) -> None:
    try:
        Protection(Secret(bytes(36)), Secret(bytes(36))).open(Header.decode(data), data)
    except (IkeDecodeError, IkeCryptoError):
        return


def target(data: bytes) -> None:
    """Let nothing pass but the errors of this protocol."""
    if not data:
        return
    kind, rest = data[0] % 9, data[1:]
    if kind < 5:
        _fuzz_endpoint(kind, rest)
    else:
        (_fuzz_message, _fuzz_body, _fuzz_protection, _fuzz_open)[kind - 5](rest)


_MESSAGES = _handshake(3)[2]
SEEDS: list[bytes] = [
    *(bytes((step,)) + message for step, message in enumerate(_MESSAGES)),
    *(bytes((kind,)) + message for kind in (4, 5, 8) for message in _MESSAGES),
    *(bytes((6,)) + message[32:] for message in _MESSAGES[:2]),
    bytes((7, 41)) + bytes.fromhex("00004000"),
]

if __name__ == "__main__":
    from _harness import run

    run(target, SEEDS)
