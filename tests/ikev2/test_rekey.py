"""CREATE_CHILD_SA message by message: replacing the child SA and the IKE SA, and all that is refused."""

from __future__ import annotations

import hmac
from dataclasses import replace
from typing import Any

import pytest

from minerva.ikev2.child import offer_child
from minerva.ikev2.children import TRANSITIONS, Child, ChildInput, ChildState
from minerva.ikev2.config import Config
from minerva.ikev2.constants import DhGroup, ExchangeType, Flag, NotifyType, PrfId, ProtocolId
from minerva.ikev2.crypto import IkeKeys, new_agreement, prf_plus
from minerva.ikev2.endpoint import ChildGone, ChildUp, Closed, Established, IkeRekeyed, State, Transition
from minerva.ikev2.errors import IkeUsageError
from minerva.ikev2.events import ChildKeys
from minerva.ikev2.message import Header, Protection, decode_payloads
from minerva.ikev2.payloads import Delete, KeyExchange, Nonce, Notify, Opaque, Payload
from minerva.ikev2.proposals import Proposal, SecurityAssociation, Transform, esp_policy, ike_policy
from minerva.ikev2.traffic import TrafficSelector, TrafficSelectorsInitiator, TrafficSelectorsResponder
from tests.ikev2.channel import Channel
from tests.ikev2.nodes import A, B, Hand, Peer, hands, recorded

CONFIG = Config(keylog=True, rekey_jitter=0.0)
GROUP = DhGroup.ECP_256
ESP = esp_policy((GROUP,))
IKE = ike_policy((PrfId.PRF_HMAC_SHA2_256,), (GROUP,))


def pair(config: Config = CONFIG) -> tuple[Hand, Hand]:
    a, b = hands(config, config)
    recorded(a, b)
    return a, b


def sa_of(hand: Hand) -> Any:
    return hand.endpoint._sas[hand.of(Established)[0].sa]


def children(hand: Hand) -> list[ChildState]:
    return [child.state for child in sa_of(hand).children]


def exchange(a: Hand, b: Hand, requests: list[bytes], now: float) -> None:
    """Let messages go to and fro until none is left; the first ones are from ``a``."""
    ways, sender, receiver = requests, a, b
    while ways:
        answers = [answer for data in ways for answer in receiver.take(data, sender.address, now)]
        ways, sender, receiver = answers, receiver, sender


def begin(hand: Hand, what: str, now: float) -> list[bytes]:
    number = hand.of(Established)[0].sa
    (hand.endpoint.rekey_child if what == "child" else hand.endpoint.rekey_ike)(number, now)
    return [datagram.data for datagram in hand.out(now)]


def timers(hand: Hand, now: float) -> list[bytes]:
    hand.endpoint.on_timer(now)
    return [datagram.data for datagram in hand.out(now)]


def agree(a: Hand, b: Hand) -> tuple[ChildKeys, ChildKeys]:
    (ours,), (theirs,) = sa_of(a).children, sa_of(b).children
    assert (ours.keys.spi_in, ours.keys.key_in) == (theirs.keys.spi_out, theirs.keys.key_out)
    assert (ours.keys.spi_out, ours.keys.key_out) == (theirs.keys.spi_in, theirs.keys.key_in)
    for hand, child in ((a, ours), (b, theirs)):
        assert hand.endpoint._context.child_spis == {child.keys.spi_in}
    return ours.keys, theirs.keys


# --- without trouble -------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
def test_a_child_sa_is_replaced(first: int) -> None:
    """Received on by both before anybody sends on it; the old one goes later, by the one who began.

    covers: 6.8-rekey, 6.8.2-3
    """
    both = pair()
    a, b = both[first], both[1 - first]
    before = a.of(Established)[0].child
    (request,) = begin(a, "child", 10.0)
    assert not a.of(ChildUp)
    (response,) = b.take(request, a.address, 10.1)
    (theirs,) = b.of(ChildUp)
    assert not theirs.send, "the peer cannot receive on it yet"
    assert a.take(response, b.address, 10.2) == []
    (ours,) = a.of(ChildUp)
    assert ours.send
    assert (ours.child.spi_in, ours.child.key_in) == (theirs.child.spi_out, theirs.child.key_out)
    assert (ours.child.spi_out, ours.child.key_out) == (theirs.child.spi_in, theirs.child.key_in)
    keys = (before.key_in, before.key_out, ours.child.key_in, ours.child.key_out)
    assert len({key.reveal() for key in keys}) == 4
    assert not a.of(ChildGone)
    assert timers(a, 10.2 + 0.49) == []
    (delete,) = timers(a, 10.2 + 0.5)
    (confirmed,) = b.take(delete, a.address, 10.7)
    assert [gone.spi_in for gone in b.of(ChildGone)] == [before.spi_out]
    a.take(confirmed, b.address, 10.8)
    assert not a.of(ChildGone), "what the peer sent before may still be on its way"
    assert children(a) == [ChildState.DRAINING, ChildState.INSTALLED]
    timers(a, 11.3)
    assert [gone.spi_in for gone in a.of(ChildGone)] == [before.spi_in]
    agree(a, b)
    assert children(a) == children(b) == [ChildState.INSTALLED]


@pytest.mark.parametrize("first", [0, 1])
def test_the_ike_sa_is_replaced(first: int) -> None:
    """The number that the owner knows, and the child SA, stay.

    covers: 6.8-rekey, 6.8.2-3
    """
    both = pair()
    a, b = both[first], both[1 - first]
    old = sa_of(a)
    exchange(a, b, begin(a, "ike", 10.0), 10.0)
    (ours,), (theirs,) = a.of(IkeRekeyed), b.of(IkeRekeyed)
    assert (ours.ike_spi_i, ours.ike_spi_r) == (theirs.ike_spi_i, theirs.ike_spi_r)
    assert (ours.initiator, theirs.initiator) == (True, False)
    assert ours.sa == a.of(Established)[0].sa
    assert sa_of(a) is not old
    assert old.state is State.CLOSED
    agree(a, b)
    assert not a.of(Closed)
    assert not a.of(ChildUp)
    for hand, other in ((a, b), (b, a)):
        exchange(hand, other, timers(hand, 30.0), 30.0)
        assert list(hand.endpoint._by_spi.values()) == [sa_of(hand)]
    assert [event.after for event in a.of(Transition)][-2:] == [State.ESTABLISHED, State.REKEYED]
    # All goes on under the same number: liveness, the next rekeying, the end.
    exchange(b, a, begin(b, "child", 31.0), 31.0)
    assert len(a.of(ChildUp)) == 1
    exchange(a, b, begin(a, "ike", 31.0), 31.0)
    b.endpoint.close(theirs.sa, 32.0, "enough")
    exchange(b, a, [datagram.data for datagram in b.out(32.0)], 32.0)
    assert [(event.sa, event.by_peer) for event in a.of(Closed)] == [(ours.sa, True)]
    for hand in (a, b):
        hand.endpoint.on_timer(60.0)
        assert not hand.endpoint._by_spi
        assert not hand.endpoint._context.child_spis


def test_message_ids_begin_anew() -> None:
    a, b = pair()
    (request,) = begin(a, "ike", 10.0)
    (response,) = b.take(request, A, 10.0)
    sent = a.take(response, B, 10.0)
    headers = [Header.decode(data) for data in sent]
    (probe,) = [header for header in headers if header.spi_i != Header.decode(request).spi_i]
    assert probe.message_id == 0
    (delete,) = [header for header in headers if header.spi_i == Header.decode(request).spi_i]
    assert delete.message_id == Header.decode(request).message_id + 1


def test_the_keys_of_a_rekeyed_ike_sa() -> None:
    """RFC 7296 section 2.18: SKEYSEED with the PRF of the old SA, the rest with that of the new one."""
    old = IkeKeys.derive(PrfId.PRF_HMAC_SHA2_512, b"shared", b"i" * 32, b"r" * 32, b"1" * 8, b"2" * 8)
    new = old.successor(PrfId.PRF_HMAC_SHA2_256, b"fresh", b"I" * 32, b"R" * 32, b"3" * 8, b"4" * 8)
    seed = b"I" * 32 + b"R" * 32
    skeyseed = hmac.digest(old.sk_d.reveal(), b"fresh" + seed, "sha512")
    stream = prf_plus(PrfId.PRF_HMAC_SHA2_256, skeyseed, seed + b"3" * 8 + b"4" * 8, 32 + 36 + 36 + 32 + 32)
    parts = (new.sk_d, new.sk_ei, new.sk_er, new.sk_pi, new.sk_pr)
    assert b"".join(part.reveal() for part in parts) == stream
    fresh, back = new.child(b"n" * 16, b"m" * 16, b"dh")
    stream = prf_plus(PrfId.PRF_HMAC_SHA2_256, new.sk_d.reveal(), b"dh" + b"n" * 16 + b"m" * 16, 72)
    assert fresh.reveal() + back.reveal() == stream


@pytest.mark.parametrize("what", ["child", "ike"])
def test_the_lowest_nonce_loses(what: str) -> None:
    """Both replace the same SA at once (RFC 7296 sections 2.8.1 and 2.8.2)."""
    winners = set()
    for seed in range(8):
        a, b = hands(CONFIG, CONFIG, seed)
        recorded(a, b)
        (of_a,), (of_b,) = begin(a, what, 2.0), begin(b, what, 2.0)
        of_a_task, of_b_task = sa_of(a)._request.task, sa_of(b)._request.task
        (to_b,), (to_a,) = a.take(of_b, B, 2.0), b.take(of_a, A, 2.0)
        # What the one notes as its rival's lowest nonce is of the other's exchange.
        a_wins = of_b_task.rival > of_a_task.rival
        winners.add(a_wins)
        exchange(a, b, a.take(to_a, B, 2.1), 2.1)
        exchange(b, a, b.take(to_b, A, 2.1), 2.1)
        if what == "ike":
            assert sa_of(a).initiator is a_wins
        else:
            ups = {event.child.spi_in: event.send for event in a.of(ChildUp)}
            for now in (2.6, 3.2, 3.8):
                for hand, other in ((a, b), (b, a)):
                    exchange(hand, other, timers(hand, now), now)
            ours, _ = agree(a, b)
            assert ups[ours.spi_in] is a_wins
            assert list(ups.values()).count(True) == int(a_wins), "nobody begins to send on the redundant one"
        assert not a.of(Closed)
    assert winners == {True, False}


@pytest.mark.parametrize("what", ["child", "ike"])
def test_one_is_done_before_the_other_is_heard(what: str) -> None:
    """The second example of RFC 7296 section 2.8.1, and the special case of 2.8.2."""
    a, b = pair()
    (late,), (request,) = begin(a, what, 2.0), begin(b, what, 2.0)
    (response,) = a.take(request, B, 2.0)
    sent = b.take(response, A, 2.1)
    assert len(sent) == (2 if what == "ike" else 0)
    (refusal,) = b.take(late, A, 2.2)
    a.take(refusal, B, 2.3)
    assert a.endpoint.counters[f"{'IKE' if what == 'ike' else 'child'} SA: rekeying refused"] == 1
    if what == "child":
        assert children(a) == [ChildState.REPLACED, ChildState.UNCONFIRMED]
        assert children(b) == [ChildState.RETIRED, ChildState.INSTALLED]
        sent = timers(b, 2.6)
    exchange(b, a, sent, 2.6)
    for hand, other in ((b, a), (a, b)):
        exchange(hand, other, timers(hand, 3.2), 3.2)
    agree(a, b)
    assert children(a) == [ChildState.INSTALLED]
    assert not sa_of(a).initiator if what == "ike" else len(a.of(ChildUp)) == 1


@pytest.mark.parametrize(("first", "second"), [("child", "ike"), ("ike", "child")])
def test_one_replaces_the_child_sa_and_one_the_ike_sa(first: str, second: str) -> None:
    """Neither is done (RFC 7296 section 2.25): they try again, at different times."""
    a, b = pair()
    (of_a,), (of_b,) = begin(a, first, 2.0), begin(b, second, 2.0)
    (to_a,), (to_b,) = b.take(of_a, A, 2.0), a.take(of_b, B, 2.0)
    assert a.take(to_a, B, 2.1) == b.take(to_b, A, 2.1) == []
    assert not a.of(ChildUp)
    assert not a.of(IkeRekeyed)
    for hand in (a, b):
        assert sum("refused" in reason for reason in hand.endpoint.counters) >= 1
        assert children(hand) == [ChildState.INSTALLED]
        assert 2.6 <= hand.endpoint.next_timer() <= 3.6  # type: ignore[operator]


def test_it_is_time() -> None:
    """Each after its lifetime, earlier by up to a fifth at random."""
    config = replace(CONFIG, rekey_jitter=0.2)
    when: dict[str, list[float]] = {"child": [], "ike": []}
    for seed in range(30):
        a, b = hands(config, seed=seed)
        recorded(a, b)
        sa = sa_of(a)
        (child,) = sa.children
        when["child"].append(child.due)
        when["ike"].append(sa._rekey_at)
    for what, lifetime in (("child", config.child_lifetime), ("ike", config.ike_lifetime)):
        assert 0.8 * lifetime <= min(when[what]) < 0.85 * lifetime
        assert 0.95 * lifetime < max(when[what]) <= lifetime


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_lifetimes_of_seconds(seed: int, loss: float) -> None:
    """Both sides rekey all the time, often at once; no packet is lost to it, and nothing piles up.

    covers: 6.8-rekey
    """
    config = Config(ike_lifetime=4.0, child_lifetime=3.0)
    net = Channel(config, seed=seed, interval=0.02, loss=loss, delay=0.002, jitter=0.002)
    for _ in range(12):
        net.run(10.0)
        for node in (net.a, net.b):
            assert len(node.endpoint._by_spi) < 12
            assert len(node.endpoint._context.child_spis) <= 8
    assert not net.closed()
    assert net.lost == {"a": [], "b": []}
    ike, child = net.rekeyings()
    assert ike > 15
    assert child > 20
    net.link.loss = 0.0
    for node in (net.a, net.b):
        node.endpoint._context.config = Config()
    net.run(60.0)
    net.check()


# --- what a peer may ask for -----------------------------------------------------------------------------


@pytest.fixture
def peer() -> Peer:
    a, b = hands(Config(keylog=True))
    recorded(a, b)
    return Peer(a, b)


def rekey_request(peer: Peer, **changes: Any) -> tuple[Payload, ...]:
    """A request to replace the child SA as it should be, but for ``changes``."""
    association, i, r = offer_child(0x1000, ESP)
    agreement = new_agreement(GROUP)
    old = peer.b.of(Established)[0].child.spi_out
    parts = {
        "rekey": Notify(NotifyType.REKEY_SA, protocol=ProtocolId.ESP, spi=old.to_bytes(4)),
        "sa": association,
        "nonce": Nonce(b"n" * 32),
        "ke": KeyExchange(GROUP, agreement.public),
        "i": i,
        "r": r,
    }
    found: list[Any] = [payload for payload in (parts | changes).values() if payload is not None]
    return tuple(found)


def esp(*transforms: Transform) -> SecurityAssociation:
    return SecurityAssociation((Proposal(1, ProtocolId.ESP, b"\x00\x00\x10\x00", transforms),))


GCM, NO_ESN, P256, P384 = Transform(1, 20, 256), Transform(5, 0), Transform(4, 19), Transform(4, 20)
HALF = TrafficSelector(8, 0, 0, 65535, bytes(16), b"\x7f" + b"\xff" * 15)


def test_a_peer_replaces_the_child_sa(peer: Peer) -> None:
    answer = peer.ask(*rekey_request(peer), exchange=36)
    kinds = [type(payload).__name__ for payload in answer]
    assert kinds == [
        "SecurityAssociation",
        "Nonce",
        "KeyExchange",
        "TrafficSelectorsInitiator",
        "TrafficSelectorsResponder",
    ]
    assert children(peer.b) == [ChildState.REPLACED, ChildState.UNCONFIRMED]
    again = peer.ask(*rekey_request(peer), exchange=36)
    assert again == (Notify(NotifyType.TEMPORARY_FAILURE),), "it has been replaced"
    (old,) = peer.b.of(Established)
    answer = peer.ask(Delete(3, (old.child.spi_out.to_bytes(4),)))
    assert answer == (Delete(3, (old.child.spi_in.to_bytes(4),)),)
    assert children(peer.b) == [ChildState.INSTALLED]
    assert not peer.b.of(Closed)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"sa": esp(GCM, NO_ESN)}, Notify(NotifyType.NO_PROPOSAL_CHOSEN)),
        ({"sa": esp(Transform(1, 20, 128), P256, NO_ESN)}, Notify(NotifyType.NO_PROPOSAL_CHOSEN)),
        ({"sa": esp(GCM, Transform(4, 5), NO_ESN)}, Notify(NotifyType.NO_PROPOSAL_CHOSEN)),
        ({"sa": esp(GCM, P256, Transform(5, 1))}, Notify(NotifyType.NO_PROPOSAL_CHOSEN)),
        ({"sa": esp(GCM, P384, NO_ESN)}, Notify(NotifyType.INVALID_KE_PAYLOAD, b"\x00\x14")),
        ({"i": TrafficSelectorsInitiator((HALF,))}, Notify(NotifyType.TS_UNACCEPTABLE)),
        ({"r": TrafficSelectorsResponder((HALF,))}, Notify(NotifyType.TS_UNACCEPTABLE)),
        ({"i": None}, Notify(NotifyType.TS_UNACCEPTABLE)),
        (
            {"rekey": Notify(NotifyType.REKEY_SA, protocol=3, spi=b"none")},
            Notify(NotifyType.CHILD_SA_NOT_FOUND, protocol=3, spi=b"none"),
        ),
        (
            {"rekey": Notify(NotifyType.REKEY_SA)},
            Notify(NotifyType.CHILD_SA_NOT_FOUND),
        ),
        ({"rekey": None}, Notify(NotifyType.NO_ADDITIONAL_SAS)),
        ({"x": Opaque(200, b"", critical=True)}, Notify(NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD, b"\xc8")),
    ],
)
def test_requests_that_are_refused(peer: Peer, changes: dict[str, Any], error: Notify) -> None:
    """What is up stays up.

    covers: 6.8-rekey, 6.8.2-3, 6.8.2-4
    """
    assert peer.ask(*rekey_request(peer, **changes), exchange=36) == (error,)
    assert children(peer.b) == [ChildState.INSTALLED]
    assert len(peer.b.endpoint._context.child_spis) == 1
    assert peer.ask() == ()
    assert len(peer.ask(*rekey_request(peer), exchange=36)) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": None},
        {"ke": None},
        {"ke": KeyExchange(19, bytes(64))},
        {"ke": KeyExchange(19, bytes(63))},
        {"nonce": Opaque(40, b"short")},
    ],
)
def test_malformed_requests_end_the_sa(peer: Peer, changes: dict[str, Any]) -> None:
    """RFC 7296 section 2.21.3."""
    assert peer.ask(*rekey_request(peer, **changes), exchange=36) == (Notify(NotifyType.INVALID_SYNTAX),)
    assert len(peer.b.of(Closed)) == 1
    assert not peer.b.endpoint._context.child_spis


def test_there_is_a_limit_on_child_sas() -> None:
    a, b = hands(Config(keylog=True), Config(child_limit=1))
    recorded(a, b)
    peer = Peer(a, b)
    assert peer.ask(*rekey_request(peer), exchange=36) == (Notify(NotifyType.TEMPORARY_FAILURE),)


def ike_request(spi: bytes = b"new spi!", group: DhGroup = GROUP) -> tuple[Payload, ...]:
    agreement = new_agreement(group)
    return (IKE.offer(spi), Nonce(b"n" * 32), KeyExchange(group, agreement.public))


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (ike_request(group=DhGroup.ECP_384), NotifyType.INVALID_KE_PAYLOAD),
        (
            (
                ike_policy((PrfId.PRF_HMAC_SHA2_256,), (DhGroup.NONE,)).offer(b"new spi!"),
                *ike_request()[1:],
            ),
            NotifyType.NO_PROPOSAL_CHOSEN,
        ),
        ((IKE.offer(bytes(8)), *ike_request()[1:]), NotifyType.INVALID_SYNTAX),
        (ike_request()[:2], NotifyType.INVALID_SYNTAX),
    ],
)
def test_ike_sas_that_are_refused(peer: Peer, request_: tuple[Payload, ...], error: NotifyType) -> None:
    (answer,) = peer.ask(*request_, exchange=36)
    assert isinstance(answer, Notify)
    assert answer.notify_type == error
    assert bool(peer.b.of(Closed)) == (error == NotifyType.INVALID_SYNTAX)
    assert sa_of(peer.b)._heir is None if peer.b.endpoint._sas else True


def test_a_successor_that_nobody_uses(peer: Peer) -> None:
    """Until there is a sign that the peer has the answer, the old SA stays; after a while for good."""
    assert len(peer.ask(*ike_request(), exchange=36)) == 3
    old = sa_of(peer.b)
    assert old._heir is not None
    assert peer.ask(*rekey_request(peer), exchange=36) == (Notify(NotifyType.TEMPORARY_FAILURE),)
    assert peer.ask(*ike_request(), exchange=36) == (Notify(NotifyType.TEMPORARY_FAILURE),)
    assert begin(peer.b, "child", 2.0) == []
    peer.b.endpoint.on_timer(1.0 + Config().successor_lifetime)
    assert old._heir is None
    assert list(peer.b.endpoint._by_spi.values()) == [old]
    assert not peer.b.of(IkeRekeyed)


def successor(peer: Peer) -> tuple[Protection, bytes, bytes]:
    """Have the peer replace the IKE SA; return what it seals with, and the SPIs."""
    agreement = new_agreement(GROUP)
    request = (IKE.offer(b"new spi!"), Nonce(b"n" * 32), KeyExchange(GROUP, agreement.public))
    answer = peer.ask(*request, exchange=36)
    association, nonce, key_exchange = answer
    assert isinstance(association, SecurityAssociation)
    assert isinstance(nonce, Nonce)
    assert isinstance(key_exchange, KeyExchange)
    spi_r = association.proposals[0].spi
    keys = sa_of(peer.b)._keys.successor(
        PrfId.PRF_HMAC_SHA2_256,
        agreement.load(key_exchange.data)(),
        b"n" * 32,
        nonce.data,
        b"new spi!",
        spi_r,
    )
    return Protection(key_out=keys.sk_ei, key_in=keys.sk_er), b"new spi!", spi_r


def test_a_successor_that_is_used_counts(peer: Peer) -> None:
    """Although the Delete of the old one never comes."""
    protection, spi_i, spi_r = successor(peer)
    old = sa_of(peer.b)
    probe = Header(spi_i, spi_r, ExchangeType.INFORMATIONAL, Flag.INITIATOR, 0)
    (answer,) = peer.b.take(protection.seal(probe, ()), A, 3.0)
    assert Header.decode(answer).spi_r == spi_r
    assert sa_of(peer.b) is not old
    assert old.state == State.REKEYED
    assert peer.ask() == (), "the old one still answers"
    assert peer.ask(*rekey_request(peer), exchange=36) == (Notify(NotifyType.TEMPORARY_FAILURE),)
    peer.b.endpoint.on_timer(13.1)
    assert old.state == State.CLOSED
    assert not peer.b.of(Closed)
    assert len(peer.b.of(IkeRekeyed)) == 1


def test_a_successor_that_is_deleted_at_once(peer: Peer) -> None:
    """The peer lost the comparison of nonces, or has changed its mind: all stays as it was."""
    protection, spi_i, spi_r = successor(peer)
    delete = Header(spi_i, spi_r, ExchangeType.INFORMATIONAL, Flag.INITIATOR, 0)
    peer.b.take(protection.seal(delete, (Delete(ProtocolId.IKE),)), A, 3.0)
    assert sa_of(peer.b)._heir is None
    assert peer.ask() == ()
    assert not peer.b.of(Closed)
    assert not peer.b.of(IkeRekeyed)


def test_closing_while_a_successor_waits(peer: Peer) -> None:
    """Which of the two the peer believes in is not known: it is told on both."""
    protection, _, spi_r = successor(peer)
    peer.b.endpoint.close(peer.b.of(Established)[0].sa, 3.0, "enough")
    sent = [datagram.data for datagram in peer.b.out(3.0)]
    by_new = [data for data in sent if Header.decode(data).spi_r == spi_r]
    (by_old,) = [data for data in sent if data not in by_new]
    assert peer.open(by_old)[1] == (Delete(ProtocolId.IKE),)
    header = Header.decode(by_new[0])
    assert decode_payloads(*protection.open(header, by_new[0])) == (Delete(ProtocolId.IKE),)
    assert len(peer.b.of(Closed)) == 1


# --- what a peer may answer ------------------------------------------------------------------------------


def refuse(peer: Peer, what: str, *payloads: Payload, now: float = 2.0) -> list[bytes]:
    """Have B begin, answer with ``payloads``, and return what it sends then."""
    (request,) = begin(peer.b, what, now)
    header, _ = peer.open(request)
    assert header.exchange == ExchangeType.CREATE_CHILD_SA
    return peer.b.take(peer.seal(36, payloads, header.message_id, Flag.RESPONSE), A, now)


@pytest.mark.parametrize("what", ["child", "ike"])
@pytest.mark.parametrize(
    "error",
    [
        Notify(NotifyType.TEMPORARY_FAILURE),
        Notify(NotifyType.NO_PROPOSAL_CHOSEN),
        Notify(NotifyType.NO_ADDITIONAL_SAS),
        Notify(NotifyType.INVALID_KE_PAYLOAD, b"\x00\x05"),
        Notify(NotifyType.INVALID_KE_PAYLOAD, b"\x00\x13"),
        Notify(NotifyType.INVALID_KE_PAYLOAD, b"?"),
        Notify(8000),
        None,
    ],
)
def test_refusals_are_no_end(peer: Peer, what: str, error: Notify | None) -> None:
    """It tries again, later each time; after the grace it gives up, as keys must not be used for ever."""
    errors = () if error is None else (error,)
    assert refuse(peer, what, *errors) == []
    assert children(peer.b) == [ChildState.INSTALLED]
    assert len(peer.b.endpoint._context.child_spis) == 1
    assert timers(peer.b, 2.49) == []
    waits, now = [], 2.0
    sa = sa_of(peer.b)
    for _ in range(7):
        (child,) = sa.children
        due = child.due if what == "child" else sa._rekey_at
        waits.append(due - now)
        now = due
        sa.traffic_seen(now)
        (request,) = timers(peer.b, now)
        header, _ = peer.open(request)
        peer.b.take(peer.seal(36, errors, header.message_id, Flag.RESPONSE), A, now)
    assert all(0.5 * 2**n <= wait <= 1.5 * 2**n for n, wait in enumerate(waits[:5]))
    assert all(8.0 <= wait <= 24.0 for wait in waits[5:])
    config = Config()
    end = config.rekey_grace + (config.child_lifetime if what == "child" else config.ike_lifetime)
    if what == "child":
        sa._rekey_at = sa._dies_at = 1e9
    else:
        for child in sa.children:
            child.due = child.expires = 1e9
    sa._last_heard = end + 5.0
    timers(peer.b, end)
    (closed,) = peer.b.of(Closed)
    assert "too old" in closed.reason


@pytest.mark.parametrize("what", ["child", "ike"])
def test_another_group_is_wanted(what: str) -> None:
    """Tried at once, and first from then on."""
    a, b = hands(CONFIG, replace(CONFIG, groups=(DhGroup.ECP_256, DhGroup.CURVE25519)))
    recorded(a, b)
    b.endpoint._context.policy = ike_policy(CONFIG.prfs, (DhGroup.CURVE25519,))
    b.endpoint._context.child_policy = esp_policy((DhGroup.CURVE25519,))
    exchange(a, b, begin(a, what, 2.0), 2.0)
    assert len(a.of(ChildUp) if what == "child" else a.of(IkeRekeyed)) == 1
    assert sum(count for reason, count in b.endpoint.counters.items() if "INVALID_KE" in reason) == 1
    assert sa_of(a)._rekey_group is DhGroup.CURVE25519


@pytest.mark.parametrize("what", ["child", "ike"])
def test_the_group_of_the_handshake_is_the_first(what: str) -> None:
    a, b = hands(CONFIG, replace(CONFIG, groups=(DhGroup.ECP_384,)))
    a.endpoint.initiate(B, 500, 0.0)
    exchange(a, b, [datagram.data for datagram in a.out()], 0.0)
    for first, second in ((a, b), (b, a)):
        exchange(first, second, begin(first, what, 2.0), 2.0)
        for reason in (*a.endpoint.counters, *b.endpoint.counters):
            assert "refused" not in reason or "IKE_SA_INIT" in reason
    assert len(a.of(ChildUp) if what == "child" else a.of(IkeRekeyed)) == (1 if what == "child" else 2)


def test_the_peer_does_not_know_our_child_sa(peer: Peer) -> None:
    """Then there is nothing to go on with (section 2.25)."""
    (delete,) = refuse(peer, "child", Notify(NotifyType.CHILD_SA_NOT_FOUND, protocol=3, spi=b"1234"))
    assert peer.open(delete)[1] == (Delete(ProtocolId.IKE),)
    assert len(peer.b.of(Closed)) == 1


@pytest.mark.parametrize("answer", [(), (Nonce(b"n" * 32),), (Opaque(201, b"", critical=True),)])
def test_answers_that_make_no_sense(peer: Peer, answer: tuple[Payload, ...]) -> None:
    refuse(peer, "child", esp(GCM, P256, NO_ESN), *answer)
    assert len(peer.b.of(Closed)) == 1
    assert not peer.b.of(ChildUp)


def test_a_peer_that_does_not_answer_is_dead() -> None:
    """A request to rekey takes the place of a probe: no later than by that it is known."""
    a, b = pair()
    begin(a, "child", 2.9)
    now = 2.9
    while (timer := a.endpoint.next_timer()) is not None and timer < 30:
        now = timer
        timers(a, now)
        if a.of(Closed):
            break
    assert now == pytest.approx(2.9 + 6.0)
    assert not a.endpoint._context.child_spis
    del b


def test_a_peer_whose_ike_is_dead() -> None:
    """Its packets come in, its answers do not: after half a minute that is the end."""
    a, _ = pair()
    begin(a, "child", 1.0)
    now = 1.0
    while not a.of(Closed):
        timer = a.endpoint.next_timer()
        assert timer is not None
        now = timer
        a.endpoint.traffic_seen(a.of(Established)[0].sa, now - 0.01)
        timers(a, now)
    assert 31.0 <= now <= 37.0


def test_repeated_requests_get_the_same_answer() -> None:
    a, b = pair()
    for what in ("child", "ike"):
        (request,) = begin(a, what, 10.0)
        (response,) = b.take(request, A, 10.0)
        assert b.take(request, A, 10.5) == [response]
        a.take(response, B, 10.6)
        assert a.take(response, B, 10.7) == []
    assert len(b.of(ChildUp)) == 1
    assert len(b.of(IkeRekeyed)) == 0
    assert sa_of(b)._heir is not None


# --- Deletes that cross ----------------------------------------------------------------------------------


def test_the_peer_deletes_the_child_sa_that_we_replace() -> None:
    """Answered as usual; as it was the last one, all ends, and the answer to our request changes nothing."""
    a, b = pair()
    (request,) = begin(a, "child", 2.0)
    child = b.of(Established)[0].child
    sa = sa_of(b)
    sa._send_request((Delete(3, (child.spi_in.to_bytes(4),)),), CONFIG.closing, 2.0)
    (delete,) = b.out(2.0)
    (response,) = b.take(request, A, 2.0)
    answers = a.take(delete.data, B, 2.0)
    assert len(a.of(Closed)) == 1
    exchange(b, a, [response], 2.1)
    exchange(a, b, answers, 2.1)
    for hand in (a, b):
        hand.endpoint.on_timer(30.0)
        assert not hand.endpoint._context.child_spis


@pytest.mark.parametrize("what", ["child", "ike"])
def test_the_owner_closes_while_a_request_is_out(what: str) -> None:
    """What the peer has made of it goes as well, and nothing is left on either side."""
    a, b = pair()
    (request,) = begin(a, what, 2.0)
    a.endpoint.close(a.of(Established)[0].sa, 2.1, "enough")
    assert a.out(2.1) == []
    exchange(a, b, [request], 2.2)
    assert len(a.of(Closed)) == len(b.of(Closed)) == 1
    assert b.of(Closed)[0].by_peer
    for hand in (a, b):
        hand.endpoint.on_timer(30.0)
        assert not hand.endpoint._by_spi
        assert not hand.endpoint._context.child_spis


def test_a_replaced_child_sa_that_the_peer_forgets(peer: Peer) -> None:
    """Then we delete it, when its time is over."""
    peer.ask(*rekey_request(peer), exchange=36)
    config, sa = Config(), sa_of(peer.b)
    old, new = sa.children
    new.move(ChildInput.CONFIRMED)
    sa._rekey_at = sa._dies_at = new.due = new.expires = 1e9
    end = config.child_lifetime + config.rekey_grace
    sa.traffic_seen(end)
    (delete,) = timers(peer.b, end)
    assert peer.open(delete)[1] == (Delete(3, (old.keys.spi_in.to_bytes(4),)),)
    assert not peer.b.of(Closed)


def test_a_peer_that_restarts_after_rekeying() -> None:
    """INITIAL_CONTACT ends the connection that was there before, however often its keys were new."""
    a, b = pair()
    exchange(a, b, begin(a, "ike", 5.0), 5.0)
    again = Hand(a.who, A, seed=9)
    recorded(again, b, 20.0)
    assert [closed.reason for closed in b.of(Closed)] == ["the peer restarted"]
    assert len(b.endpoint.status()) == 1


# --- the machine of child SAs ----------------------------------------------------------------------------


def test_every_state_of_a_child_sa_can_be_reached_and_left() -> None:
    reachable = {ChildState.UNCONFIRMED, ChildState.INSTALLED} | set(TRANSITIONS.values())
    assert reachable == set(ChildState)
    assert {before for before, _ in TRANSITIONS} == set(ChildState) - {ChildState.DRAINING}
    a, _ = pair()
    child = Child(a.of(Established)[0].child, ChildState.DRAINING, 0.0, 0.0)
    with pytest.raises(IkeUsageError, match="REKEY cannot happen to a child SA that is DRAINING"):
        child.move(ChildInput.REKEY)
