"""A peer that is a member and yet sends whatever it likes: no error escapes, and nothing piles up."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from minerva.ikev2.children import ChildState
from minerva.ikev2.config import Config
from minerva.ikev2.constants import DhGroup, Flag, NotifyType, PrfId, ProtocolId
from minerva.ikev2.crypto import new_agreement
from minerva.ikev2.endpoint import ChildGone, ChildUp, Closed, Established, State
from minerva.ikev2.message import Header
from minerva.ikev2.payloads import Delete, KeyExchange, Nonce, Notify, Opaque, Payload
from minerva.ikev2.proposals import esp_policy, ike_policy
from minerva.ikev2.traffic import ALL_IPV6, TrafficSelectorsInitiator, TrafficSelectorsResponder
from tests.ikev2.nodes import A, Hand, Peer, hands, recorded

CONFIG = Config(keylog=True, ike_lifetime=20.0, child_lifetime=15.0, rekey_grace=10.0, successor_lifetime=3.0)
ESP = esp_policy((DhGroup.CURVE25519,))
IKE = ike_policy((PrfId.PRF_HMAC_SHA2_256,), (DhGroup.CURVE25519,))
PUBLIC = new_agreement(DhGroup.CURVE25519).public
SELECTORS = (TrafficSelectorsInitiator((ALL_IPV6,)), TrafficSelectorsResponder((ALL_IPV6,)))


class Rogue:
    """The initiator's end of an SA. It chooses at random among what makes sense and what does not."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        a, self.b = hands(CONFIG, CONFIG, seed)
        recorded(a, self.b)
        self.peer = Peer(a, self.b)
        self.now = 1.0
        self.waiting: list[bytes] = []
        self.sent: list[bytes] = []

    def spis(self) -> list[int]:
        """The SPIs that the node sends with, or has ever sent with, and one that it has not."""
        ups: list[Any] = [*self.b.of(Established), *self.b.of(ChildUp)]
        return [event.child.spi_out for event in ups] + [0x7777_7777]

    def parts(self) -> list[Payload]:
        """Payloads of CREATE_CHILD_SA."""
        choose, nonce = self.random.choice, Nonce(self.random.randbytes(32))
        key_exchange = KeyExchange(DhGroup.CURVE25519, PUBLIC)
        old = choose(self.spis()[-3:]).to_bytes(4)
        found: list[Payload] = [IKE.offer(self.random.randbytes(8)), nonce, key_exchange]
        if self.random.random() < 0.85:
            rekey = Notify(NotifyType.REKEY_SA, protocol=ProtocolId.ESP, spi=old)
            association = ESP.offer(self.random.randbytes(4), with_none=frozenset({5}))
            found = [rekey, association, nonce, key_exchange, *SELECTORS]
        if self.random.random() < 0.03:
            found.pop(self.random.randrange(len(found)))
        return found

    def request(self) -> tuple[int, tuple[Payload, ...]]:
        choose = self.random.choice
        spi = choose(self.spis()).to_bytes(4)
        kind = self.random.randrange(12)
        if kind < 6:
            return 36, tuple(self.parts())
        held = [child for sa in self.b.endpoint._sas.values() for child in sa.children]
        # Mostly not the last one, with which all ends.
        if kind < 9 and (len(held) > 1 or self.random.random() < 0.03):
            return 37, (Delete(ProtocolId.ESP, (spi,) * self.random.randint(1, 2)),)
        return 37, choose(
            [(), (), (), (Delete(ProtocolId.AH, (spi,)),), (Opaque(201, b"?"),), (Notify(40_001),)]
        )

    def answer(self, header: Header) -> tuple[Payload, ...]:
        error = Notify(self.random.choice([7, 14, 17, 35, 38, 43, 43, 43, 44, 9000]), b"\x00\x1f")
        if header.exchange == 37:
            return self.random.choice([(), (), (), (error,)])
        if self.random.random() < 0.02:
            return tuple(self.parts()[1:])
        return self.random.choice([(error,), (error,), ()])

    def hear(self, datagrams: list[bytes]) -> None:
        for data in datagrams:
            header = Header.decode(data)
            if not header.is_response and header.spi_r == self.peer.spis[1]:
                self.waiting.append(data)

    def step(self) -> None:
        peer, kind = self.peer, self.random.randrange(10)
        if kind < 5:
            exchange, payloads = self.request()
            data = peer.seal(exchange, payloads, peer.message_id)
            self.sent.append(data)
            answers = self.b.take(data, A, self.now)
            peer.message_id += any(Header.decode(answer).is_response for answer in answers)
            self.hear(answers)
        elif kind < 6 and self.sent:
            self.hear(self.b.take(self.random.choice(self.sent[-2:]), A, self.now))
        elif kind < 8 and self.waiting:
            header = Header.decode(self.random.choice(self.waiting))
            data = peer.seal(header.exchange, self.answer(header), header.message_id, Flag.RESPONSE)
            self.hear(self.b.take(data, A, self.now))
        else:
            self.now += self.random.choice([0.01, 0.3, 1.0, 2.0])
            self.b.endpoint.on_timer(self.now)
            number = self.b.of(Established)[0].sa
            if self.random.random() < 0.6:
                self.b.endpoint.traffic_seen(number, self.now)
            if self.random.random() < 0.2:
                self.b.endpoint.rekey_child(number, self.now)
            if self.random.random() < 0.1:
                self.b.endpoint.rekey_ike(number, self.now)
            self.hear([datagram.data for datagram in self.b.out(self.now)])
            for _ in range(3):  # the end of one SA may be the turn of another
                self.b.endpoint.on_timer(self.now)
                self.hear([datagram.data for datagram in self.b.out(self.now)])
            timer = self.b.endpoint.next_timer()
            assert timer is None or timer > self.now, "or the driver would spin"


def check(b: Hand, now: float) -> None:
    endpoint = b.endpoint
    table = [child for sa in endpoint._by_spi.values() for child in sa.children]
    assert len(table) <= CONFIG.child_limit + 1
    assert len(endpoint._by_spi) <= 2 + now  # one successor waits, others linger for a while
    known = {event.child.spi_in for event in [*b.of(Established), *b.of(ChildUp)]}
    known -= {event.spi_in for event in b.of(ChildGone)}
    if not b.of(Closed):
        assert {child.keys.spi_in for child in table} == known
        assert any(child.state is not ChildState.DRAINING for child in table)
        assert [status.state for status in endpoint.status()] == [State.ESTABLISHED]


@pytest.mark.parametrize("block", range(8))
def test_a_member_that_sends_whatever_it_likes(block: int) -> None:
    ended = 0
    for seed in range(block * 25, block * 25 + 25):
        rogue = Rogue(seed)
        for _ in range(60):
            rogue.step()
            check(rogue.b, rogue.now)
            if rogue.b.of(Closed):
                break
        ended += bool(rogue.b.of(Closed))
        while (timer := rogue.b.endpoint.next_timer()) is not None and timer < rogue.now + 300:
            rogue.now = max(rogue.now, timer)
            rogue.b.endpoint.on_timer(rogue.now)
            rogue.b.out(rogue.now)
        assert not rogue.b.endpoint._by_spi, "a peer that is silent is forgotten"
        assert not rogue.b.endpoint._context.child_spis
        assert len(rogue.b.of(Closed)) == 1
    assert 5 <= ended <= 25
