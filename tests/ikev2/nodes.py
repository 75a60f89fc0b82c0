"""Nodes with an IKEv2 endpoint and a signer, for tests: on a simulated link, or driven by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import IPv6Address
from typing import Any, TypeVar

from cryptography import x509

from minerva.core.sansio import Datagram
from minerva.ikev2 import auth
from minerva.ikev2.config import Config
from minerva.ikev2.constants import IKE_PORT, ExchangeType, Flag
from minerva.ikev2.endpoint import Endpoint, Established, Failed, KeyLog, SignatureNeeded
from minerva.ikev2.message import Header, Protection, decode_payloads
from minerva.ikev2.payloads import Payload
from minerva.pki.identity import Identity
from minerva.pki.membership import Member, check_membership
from minerva.sim.driver import Driver
from minerva.sim.kernel import Simulator
from minerva.sim.link import Link
from tests.pki import certs

A = IPv6Address("fe80::a")
B = IPv6Address("fe80::b")

ROOT = certs.Ca.root("Root", kind="p384")
ISSUER = ROOT.ca("Issuer")
OTHER_ROOT = certs.Ca.root("Other root")

T = TypeVar("T")


def sign(key: Any, event: SignatureNeeded) -> bytes:
    """Do what the signer process does."""
    auth.check_own_init(event.message)
    octets = auth.signed_octets(event.message, event.nonce, event.maced_id)
    return auth.sign(key, octets, event.hash)


@dataclass
class Party:
    """Who a node is, and whom it believes."""

    identity: Identity
    key: Any
    when: datetime = certs.NOW

    def authenticate(self, chain: Sequence[x509.Certificate]) -> Member:
        return check_membership(chain, self.identity, when=self.when, channel=True)


def party(
    number: int,
    *,
    ca: certs.Ca = ISSUER,
    anchors: Sequence[certs.Ca] = (ROOT,),
    kind: str = "p256",
    name: str | None = None,
    identity_name: str | None = None,
    **options: Any,
) -> Party:
    """Node ``number`` with a certificate of ``ca``, of another ``name`` than usual if given.

    ``identity_name`` is for a node whose certificate holds no address: what it believes to be.
    """
    kind = f"{kind}/{number}"
    own_name = name or certs.node_name(number)
    leaf = ca.node(own_name, kind=kind, **options)
    roots = tuple(anchor.certificate for anchor in anchors)
    if identity_name is None:
        return Party(Identity.from_certificates(leaf, ca.chain, roots), certs.key(kind))
    own = Identity.from_certificates(ca.node(identity_name, kind=kind), ca.chain, roots)
    return Party(Identity(leaf, ca.chain, roots, own.node_name, own.address), certs.key(kind))


def endpoint(
    who: Party,
    address: IPv6Address,
    config: Config | None = None,
    seed: int = 0,
    ula: IPv6Address | None = None,
) -> Endpoint:
    """An endpoint with predictable randomness."""
    source = random.Random(f"{address}/{seed}")
    return Endpoint(address, who.identity, who.authenticate, source.randbytes, config, ula=ula)


class Node:
    """A node on a simulated link. Its signer answers after ``signing`` seconds."""

    def __init__(
        self,
        simulator: Simulator,
        link: Link,
        address: IPv6Address,
        who: Party,
        config: Config | None = None,
        *,
        seed: int = 0,
        signing: float = 0.001,
    ) -> None:
        self.who = who
        self.address = address
        self.signing = signing
        self.endpoint = endpoint(who, address, config, seed)
        self.driver = Driver(simulator, link, address, self.endpoint, port=IKE_PORT, on_event=self._on_event)
        self.simulator = simulator

    def _on_event(self, event: Any, now: float) -> None:  # noqa: ARG002
        if isinstance(event, SignatureNeeded):
            signature = sign(self.who.key, event)
            self.simulator.call_later(self.signing, lambda: self._signed(event.sa, signature))

    def _signed(self, sa: int, signature: bytes) -> None:
        self.endpoint.signed(sa, signature, self.simulator.now)
        self.driver.pump()

    def initiate(self, peer: IPv6Address) -> int:
        sa = self.endpoint.initiate(peer, IKE_PORT, self.simulator.now)
        self.driver.pump()
        return sa

    def close(self, sa: int, reason: str = "test") -> None:
        self.endpoint.close(sa, self.simulator.now, reason)
        self.driver.pump()

    def events(self, kind: type[T]) -> list[T]:
        return [event for _, event in self.driver.events if isinstance(event, kind)]

    def when(self, kind: type[Any]) -> float:
        """When the last event of that kind came."""
        return max(now for now, event in self.driver.events if isinstance(event, kind))


class Net:
    """Two nodes on a link. Without parties they are two members of one domain."""

    def __init__(
        self,
        a: Party | None = None,
        b: Party | None = None,
        config_a: Config | None = None,
        config_b: Config | None = None,
        *,
        seed: int = 0,
        **link: Any,
    ) -> None:
        self.simulator = Simulator(seed)
        self.link = Link(self.simulator, **link)
        self.a = Node(self.simulator, self.link, A, a or MEMBER_A, config_a, seed=seed)
        self.b = Node(self.simulator, self.link, B, b or MEMBER_B, config_b, seed=seed)

    def run(self, seconds: float) -> None:
        self.simulator.run_until(self.simulator.now + seconds)

    def handshake(self, seconds: float = 1.0) -> tuple[Established, Established]:
        """Have A initiate, and return what both report."""
        self.a.initiate(B)
        self.run(seconds)
        (of_a,), (of_b,) = self.a.events(Established), self.b.events(Established)
        return of_a, of_b


MEMBER_A = party(1)
MEMBER_B = party(2)


@dataclass
class Hand:
    """A node driven by hand: nothing moves but what the test moves. The signer answers at once.

    Every message is one datagram, unless ``fragments`` are wanted.
    """

    who: Party
    address: IPv6Address
    config: Config | None = None
    seed: int = 0
    fragments: bool = False
    ula: IPv6Address | None = None

    def __post_init__(self) -> None:
        config = self.config or Config()
        if not self.fragments:
            config = replace(config, max_datagram=None)
        self.endpoint = endpoint(self.who, self.address, config, self.seed, self.ula)
        self.events: list[Any] = []

    def out(self, now: float = 0.0) -> list[Datagram]:
        """Take events, sign, and return what is to be sent."""
        while (event := self.endpoint.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, SignatureNeeded):
                self.endpoint.signed(event.sa, sign(self.who.key, event), now)
        return self.endpoint.datagrams_to_send(now)

    def take(self, data: bytes, source: IPv6Address, now: float = 0.0, port: int = IKE_PORT) -> list[bytes]:
        """Receive ``data`` and return what it makes the node send."""
        self.endpoint.receive(data, source, port, now)
        return [datagram.data for datagram in self.out(now)]

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]


def hands(config_a: Config | None = None, config_b: Config | None = None, seed: int = 0) -> tuple[Hand, Hand]:
    """Two members driven by hand."""
    return Hand(MEMBER_A, A, config_a, seed), Hand(MEMBER_B, B, config_b, seed)


def recorded(a: Hand, b: Hand, now: float = 0.0) -> list[bytes]:
    """Do a whole handshake that ``a`` begins and return its four messages."""
    a.endpoint.initiate(b.address, IKE_PORT, now)
    (init,) = (datagram.data for datagram in a.out(now))
    (init_response,) = b.take(init, a.address, now)
    (auth_request,) = a.take(init_response, b.address, now)
    (auth_response,) = b.take(auth_request, a.address, now)
    assert a.take(auth_response, b.address, now) == []
    return [init, init_response, auth_request, auth_response]


class Peer:
    """The initiator's end of an SA, to say what no initiator of ours would."""

    def __init__(self, a: Hand, b: Hand) -> None:
        self.b = b
        (keys,) = a.of(KeyLog)
        self.spis = (keys.spi_i, keys.spi_r)
        self._protection = Protection(key_out=keys.sk_ei, key_in=keys.sk_er)
        # Far from the counter of the real initiator, which has the same key.
        self._protection._sealed = 1 << 32
        self.message_id = 2

    def seal(self, exchange: int, payloads: tuple[Payload, ...], message_id: int, flags: int = 0) -> bytes:
        header = Header(*self.spis, exchange, Flag.INITIATOR | flags, message_id)
        return self._protection.seal(header, payloads)

    def open(self, data: bytes) -> tuple[Header, tuple[Payload, ...]]:
        header = Header.decode(data)
        return header, decode_payloads(*self._protection.open(header, data))

    def ask(self, *payloads: Payload, exchange: int = ExchangeType.INFORMATIONAL) -> tuple[Payload, ...]:
        """Send a request and return what the response holds."""
        answers = self.b.take(self.seal(exchange, payloads, self.message_id), A, 1.0)
        header, found = self.open(answers[0])
        assert header.is_response
        assert (header.message_id, header.exchange) == (self.message_id, exchange)
        self.message_id += 1
        self.further = answers[1:]
        return found


def check_match(one: Established, other: Established) -> None:
    """Assert that both ends of a channel mean the same."""
    assert (one.ike_spi_i, one.ike_spi_r) == (other.ike_spi_i, other.ike_spi_r)
    assert (one.child.spi_in, one.child.spi_out) == (other.child.spi_out, other.child.spi_in)
    assert (one.child.key_in, one.child.key_out) == (other.child.key_out, other.child.key_in)
    assert one.child.key_in != one.child.key_out
    assert len(one.child.key_in) == 36
    assert one.initiator is not other.initiator


def failures(node: Node | Hand) -> list[Failed]:
    return node.of(Failed) if isinstance(node, Hand) else node.events(Failed)
