"""An IKE SA that is up: liveness, deletion, and requests of the peer."""

from __future__ import annotations

from typing import Any

import pytest

from minerva.core.secret import Secret
from minerva.ikev2.child import offer_child
from minerva.ikev2.config import Config, Retransmission
from minerva.ikev2.constants import IKE_PORT, ExchangeType, Flag, NotifyType
from minerva.ikev2.endpoint import Closed, Established, Failed, KeyLog, State, Transition
from minerva.ikev2.errors import IkeUsageError
from minerva.ikev2.exchange import Request
from minerva.ikev2.ike_sa import TRANSITIONS, Input
from minerva.ikev2.payloads import Delete, Nonce, Notify, Opaque, Payload
from tests.ikev2.nodes import A, B, Hand, Peer, hands, recorded


@pytest.fixture
def peer() -> Peer:
    a, b = hands(Config(keylog=True))
    recorded(a, b)
    return Peer(a, b)


def state(hand: Hand) -> State:
    (status,) = hand.endpoint.status()
    return status.state


def test_an_empty_request_is_answered(peer: Peer) -> None:
    """covers: 6.12-dpd"""
    for _ in range(5):
        assert peer.ask() == ()
    assert state(peer.b) is State.ESTABLISHED


def test_what_is_not_known_in_an_informational_request_is_ignored(peer: Peer) -> None:
    assert peer.ask(Notify(40_000), Notify(16_000), Opaque(201, b"x"), Delete(3, (b"none",))) == ()
    assert state(peer.b) is State.ESTABLISHED


def test_deletion_of_the_ike_sa(peer: Peer) -> None:
    assert peer.ask(Delete(1)) == ()
    (closed,) = peer.b.of(Closed)
    assert closed.by_peer
    assert not peer.b.endpoint.status()
    assert peer.b.take(peer.seal(37, (), 3), A, 2.0) == []
    repeated = peer.b.endpoint.counters["response repeated"]
    peer.b.endpoint.on_timer(60.0)
    assert not peer.b.endpoint._sas
    assert not peer.b.endpoint._context.child_spis
    assert peer.b.endpoint.counters["response repeated"] == repeated


def test_a_repeated_delete_is_answered_again(peer: Peer) -> None:
    """Or the peer would take us for dead."""
    request = peer.seal(37, (Delete(1),), 2)
    (first,) = peer.b.take(request, A, 1.0)
    assert peer.b.take(request, A, 5.0) == [first]
    peer.b.endpoint.on_timer(11.1)
    assert peer.b.take(request, A, 12.0) == []


def test_deletion_of_the_child_sa(peer: Peer) -> None:
    """The response names the other half of the pair; without a child SA the IKE SA goes as well."""
    child = peer.b.of(Established)[0].child
    answer = peer.ask(Delete(3, (child.spi_out.to_bytes(4),)))
    assert answer == (Delete(3, (child.spi_in.to_bytes(4),)),)
    (closed,) = peer.b.of(Closed)
    assert closed.by_peer
    assert "child SA" in closed.reason
    header, payloads = peer.open(peer.further[0])
    assert payloads == (Delete(1),)
    assert header.message_id == 0, "our first request on this SA"
    assert state(peer.b) is State.DELETING
    peer.b.take(peer.seal(37, (), 0, Flag.RESPONSE), A, 2.0)
    assert not peer.b.endpoint.status()


def test_crossing_deletes(peer: Peer) -> None:
    number = peer.b.of(Established)[0].sa
    peer.b.endpoint.close(number, 1.0, "we go")
    peer.b.out(1.0)
    assert state(peer.b) is State.DELETING
    assert peer.ask(Delete(3, (b"\x00\x00\x10\x00",))) == (), (
        "no Delete in answer to a Delete (section 1.4.1)"
    )
    assert peer.ask(exchange=ExchangeType.CREATE_CHILD_SA) == (Notify(NotifyType.TEMPORARY_FAILURE),)
    assert peer.ask(Delete(1)) == ()
    (closed,) = peer.b.of(Closed)
    assert (closed.reason, closed.by_peer) == ("we go", False)
    assert not peer.b.endpoint.status()


def test_no_further_child_sas(peer: Peer) -> None:
    """One channel has one child SA, and what replaces it."""
    association, ours, theirs = offer_child(4096)
    ask = (association, Nonce(bytes(32)), ours, theirs)
    assert peer.ask(*ask, exchange=36) == (Notify(NotifyType.NO_ADDITIONAL_SAS),)
    assert state(peer.b) is State.ESTABLISHED


@pytest.mark.parametrize(
    ("exchange", "payloads", "error"),
    [
        (37, (Opaque(200, b"", critical=True),), Notify(NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD, b"\xc8")),
        (37, (Opaque(40, b"short nonce"),), Notify(NotifyType.INVALID_SYNTAX)),
        (35, (), Notify(NotifyType.INVALID_SYNTAX)),
        (99, (), Notify(NotifyType.INVALID_SYNTAX)),
    ],
)
def test_authentic_and_yet_malformed_requests_are_fatal(
    peer: Peer, exchange: int, payloads: tuple[Payload, ...], error: Notify
) -> None:
    """RFC 7296 section 2.21.3: on both sides, without a Delete."""
    assert peer.ask(*payloads, exchange=exchange) == (error,)
    (closed,) = peer.b.of(Closed)
    assert not closed.by_peer
    assert not peer.b.endpoint.status()


def test_the_peer_refuses_us_afterwards(peer: Peer) -> None:
    assert peer.ask(Notify(NotifyType.AUTHENTICATION_FAILED)) == ()
    (closed,) = peer.b.of(Closed)
    assert closed.by_peer
    assert "AUTHENTICATION_FAILED" in closed.reason


@pytest.mark.parametrize("message_id", [0, 1, 3, 4, 1 << 31])
def test_the_window_is_one(peer: Peer, message_id: int) -> None:
    assert peer.b.take(peer.seal(37, (Delete(1),), message_id), A, 1.0) == []
    assert state(peer.b) is State.ESTABLISHED
    assert peer.ask() == ()


def test_responses_that_nobody_asked_for(peer: Peer) -> None:
    for message_id in range(3):
        assert peer.b.take(peer.seal(37, (Delete(1),), message_id, Flag.RESPONSE), A, 1.0) == []
    assert peer.b.endpoint.counters["response to no request"] == 3
    assert state(peer.b) is State.ESTABLISHED


@pytest.mark.parametrize(
    ("payloads", "by_peer"),
    [((Notify(NotifyType.INVALID_SYNTAX),), True), ((Opaque(40, b"short nonce"),), False)],
)
def test_responses_that_end_the_sa(peer: Peer, payloads: tuple[Payload, ...], by_peer: bool) -> None:
    peer.b.endpoint.check_liveness(1, 1.0)
    (probe,) = peer.b.out(1.0)
    assert peer.open(probe.data)[1] == ()
    peer.b.take(peer.seal(37, payloads, 0, Flag.RESPONSE), A, 1.1)
    (closed,) = peer.b.of(Closed)
    assert closed.by_peer is by_peer
    assert not peer.b.endpoint.status()


# --- liveness --------------------------------------------------------------------------------------------


def drain(hand: Hand, until: float, now: float = 0.0) -> list[tuple[float, bytes]]:
    """Let ``hand`` live until then with nobody there; return what it sends, and when."""
    sent = []
    while (timer := hand.endpoint.next_timer()) is not None and timer <= until:
        assert timer >= now, "time goes forward"
        now = timer
        hand.endpoint.on_timer(now)
        sent += [(now, datagram.data) for datagram in hand.out(now)]
    return sent


@pytest.mark.parametrize("side", [0, 1])
def test_a_dead_peer_is_found_in_time(side: int) -> None:
    """covers: 6.12-dpd"""
    pair = hands()
    recorded(*pair)
    hand = pair[side]
    sent = drain(hand, 60.0)
    (closed,) = hand.of(Closed)
    assert "does not answer" in closed.reason
    assert not closed.by_peer
    ended = next(i for i, event in enumerate(hand.events) if isinstance(event, Closed))
    assert isinstance(hand.events[ended + 1], Transition)
    assert len({data for _, data in sent}) == 1, "a repetition is the same, bit for bit"
    times = [when for when, _ in sent]
    assert times == pytest.approx([3 + 0.5 * side + t for t in (0, 0.5, 1.4, 3.02, 5.936)])
    assert not hand.endpoint._sas
    assert hand.endpoint.next_timer() is None


def test_traffic_makes_probes_unnecessary() -> None:
    a, b = hands()
    recorded(a, b)
    number = a.of(Established)[0].sa
    for second in range(1, 30):
        a.endpoint.traffic_seen(number, float(second))
        assert drain(a, float(second), float(second - 1)) == []
    assert a.endpoint.counters["liveness probe sent"] == 0


def test_traffic_while_a_probe_is_not_answered() -> None:
    """The peer lives, though its IKE does not answer: begin anew rather than end a working channel."""
    a, b = hands()
    recorded(a, b)
    number = a.of(Established)[0].sa
    drain(a, 8.0)
    a.endpoint.traffic_seen(number, 8.5)
    drain(a, 14.9, 8.5)
    assert not a.of(Closed)
    drain(a, 30.0, 14.9)
    assert len(a.of(Closed)) == 1


def test_the_owner_may_ask_for_a_probe() -> None:
    a, b = hands()
    recorded(a, b)
    number = a.of(Established)[0].sa
    a.endpoint.check_liveness(number, 0.5)
    a.endpoint.check_liveness(number, 0.6)
    (probe,) = a.out(0.6)
    (response,) = b.take(probe.data, A, 0.6)
    a.take(response, B, 0.7)
    assert a.endpoint.next_timer() == 0.7 + 3.0


# --- closing ---------------------------------------------------------------------------------------------


def test_closing_tells_the_peer() -> None:
    a, b = hands()
    recorded(a, b)
    a.endpoint.close(a.of(Established)[0].sa, 1.0, "not needed")
    (delete,) = a.out(1.0)
    (closed,) = a.of(Closed)
    assert (closed.reason, closed.by_peer) == ("not needed", False)
    (response,) = b.take(delete.data, A, 1.0)
    a.take(response, B, 1.0)
    assert b.of(Closed)[0].by_peer
    assert not a.endpoint.status()
    assert not b.endpoint.status()


def test_closing_while_a_probe_is_out() -> None:
    """The window is one: the Delete waits for the response, or for the peer's death."""
    a, b = hands()
    recorded(a, b)
    number = a.of(Established)[0].sa
    a.endpoint.check_liveness(number, 1.0)
    (probe,) = a.out(1.0)
    a.endpoint.close(number, 1.1, "not needed")
    assert a.out(1.1) == []
    (response,) = b.take(probe.data, A, 1.2)
    (delete,) = a.take(response, B, 1.2)
    (response,) = b.take(delete, A, 1.3)
    a.take(response, B, 1.3)
    assert len(a.of(Closed)) == len(b.of(Closed)) == 1
    assert not a.endpoint.status()


def test_closing_towards_a_dead_peer() -> None:
    a, b = hands()
    recorded(a, b)
    a.endpoint.close(a.of(Established)[0].sa, 1.0, "not needed")
    assert len(drain(a, 60.0, 1.0)) == 3
    assert len(a.of(Closed)) == 1
    assert not a.endpoint._sas


def test_closing_before_it_is_up() -> None:
    a, _ = hands()
    number = a.endpoint.initiate(B, IKE_PORT, 0.0)
    a.endpoint.close(number, 0.1, "changed our mind")
    a.out()
    (closed,) = a.of(Closed)
    assert closed.reason == "changed our mind"
    assert not a.of(Failed)
    assert not a.endpoint._sas
    a.endpoint.close(number, 0.2, "again")
    a.endpoint.signed(number, b"", 0.2)
    a.endpoint.check_liveness(number, 0.2)
    a.endpoint.traffic_seen(number, 0.2)
    assert a.endpoint.next_event() is None


def test_close_all() -> None:
    a, b = hands()
    recorded(a, b)
    recorded(b, a)
    a.endpoint.initiate(B, IKE_PORT, 1.0)
    a.out(1.0)
    a.endpoint.close_all(2.0)
    sent = a.out(2.0)
    assert len(sent) == 2
    assert [event.reason for event in a.of(Closed)] == ["this node shuts down"] * 3
    for datagram in sent:
        for answer in b.take(datagram.data, A, 2.0):
            a.take(answer, B, 2.0)
    assert not a.endpoint.status()


# --- the machine -----------------------------------------------------------------------------------------


def test_every_state_can_be_reached_and_left() -> None:
    reachable = {State.INIT_SENT, State.HALF_OPEN} | set(TRANSITIONS.values())
    assert reachable == set(State)
    assert {before for before, _ in TRANSITIONS} == set(State) - {State.CLOSED}


def test_the_impossible_is_reported() -> None:
    a, b = hands()
    recorded(a, b)
    sa: Any = a.endpoint._sas[1]
    with pytest.raises(IkeUsageError, match="AUTH_REQUEST cannot happen to an SA that is established"):
        sa._move(Input.AUTH_REQUEST)


def test_retransmission_schedule() -> None:
    request = Request((b"",), 37, 0, Retransmission(0.5, 1.8, 10.0), 100.0)
    times = []
    while not request.is_dead(now := request.next_timer()):
        assert request.take_due(now)
        assert not request.take_due(now)
        times.append(round(now - 100.0, 3))
    assert times == [0.5, 1.4, 3.02, 5.936]
    assert request.next_timer() == 110.0


def test_a_dead_responder() -> None:
    a = hands()[0]
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    first = [datagram.data for datagram in a.out()]
    sent = drain(a, 60.0)
    assert {data for _, data in sent} == set(first)
    assert len(sent) == 4
    (failed,) = a.of(Failed)
    assert "does not answer IKE_SA_INIT" in failed.reason
    assert not a.endpoint._sas


def test_a_responder_that_dies_in_between() -> None:
    a, b = hands()
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    (response,) = b.take(init.data, A)
    a.take(response, B)
    drain(a, 60.0)
    (failed,) = a.of(Failed)
    assert "does not answer IKE_AUTH" in failed.reason
    assert drain(b, 60.0) == []
    assert not b.endpoint._sas
    assert not b.events, "a half-open SA comes and goes in silence"


def test_secrets_do_not_show() -> None:
    a, b = hands(Config(keylog=True))
    recorded(a, b)
    assert not b.of(KeyLog), "only when asked for"
    (keys,) = a.of(KeyLog)
    (up,) = a.of(Established)
    text = repr(a.events)
    for secret in (keys.sk_ei, keys.sk_er, up.child.key_in, up.child.key_out):
        assert isinstance(secret, Secret)
        assert secret.reveal().hex() not in text
        assert repr(secret.reveal()) not in text
