"""Synchronization: the value of an objective, asked for or flooded."""

from __future__ import annotations

from typing import Any

import pytest
from cbor2 import CBORTag

from minerva.grasp.api import AsaLocator, ErrorCode, TaggedObjective
from minerva.grasp.messages import Invalid, RequestSynchronization, Synch, Wait
from minerva.grasp.options import Objective
from tests.grasp.network import F_NEG, F_SYNCH, Network, line, objective
from tests.grasp.wire import Wire, flood, locator

PEER = AsaLocator(locator(99))


def ex1(*value: Any) -> Objective:
    """Return the objective that is synchronized here."""
    return objective("EX1", F_SYNCH, *value)


def test_a_value_is_asked_for_and_answered_and_the_connection_ends() -> None:
    """covers: G2.5.6.1-1, G2.8.6-1, G2.7-1"""
    wire = Wire()
    handle = wire.asa(ex1())
    call = wire.call("synchronize", handle, ex1(), PEER, 0)
    connection = wire.connected()
    [request] = wire.heard(connection)
    assert request == RequestSynchronization(request.session_id, ex1())
    wire.say(connection, Synch(request.session_id, ex1([1])))
    assert wire.result(call) == ex1([1]).to_cbor()
    assert connection in wire.closes
    assert wire.core.next_timer() is None


def test_who_listens_answers_with_its_latest_value() -> None:
    """covers: G2.5.6.1-1"""
    wire = Wire()
    handle = wire.asa(ex1())
    for value in ("first", "second"):
        wire.result(wire.call("listen_synchronize", handle, ex1(value)))
        connection = wire.peer()
        wire.say(connection, RequestSynchronization(7, ex1()))
        assert wire.heard(connection) == [Synch(7, ex1(value))]
        assert not wire.closes[connection].abort
        del wire.closes[connection]
    wire.result(wire.call("stop_listen_synchronize", handle, ex1()))
    connection = wire.peer()
    wire.say(connection, RequestSynchronization(7, ex1()))
    assert wire.heard(connection) == []
    assert connection in wire.closes


def test_nobody_listens() -> None:
    """The connection is closed at once.

    covers: G2.8.6-2
    """
    wire = Wire()
    handle = wire.asa(ex1())
    connection = wire.peer()
    wire.say(connection, RequestSynchronization(7, ex1()))
    assert wire.heard(connection) == []
    assert connection in wire.closes
    assert handle


@pytest.mark.parametrize(("timeout", "seconds"), [(0, 60.0), (3000, 3.0)])
def test_an_answer_has_its_time(timeout: int, seconds: float) -> None:
    """covers: G2.5.6.1-1, G2.8.6-1"""
    wire = Wire()
    call = wire.call("synchronize", wire.asa(), ex1(), PEER, timeout)
    connection = wire.connected()
    wire.run(seconds - 0.1)
    assert wire.code(call) is None
    wire.run(0.2)
    assert wire.code(call) is ErrorCode.noSynchReply
    assert connection in wire.closes


def test_a_peer_is_discovered_if_none_is_named() -> None:
    network = line(5)
    responder = network.asa(4)
    responder.register(ex1())
    responder.call("listen_synchronize", ex1({"a": 1}))
    asker = network.asa(0)
    call = asker.call("synchronize", ex1(), None, 0)
    network.run(0.5)
    assert call.result == ex1({"a": 1}).to_cbor()
    again = asker.call("synchronize", ex1(), None, 0)  # now it is known where
    network.run(0.05)
    assert again.result == call.result
    assert network.counters(0)["discoveries-sent"] == 1


def test_the_flooded_value_is_taken_if_no_peer_is_named() -> None:
    """At once, and the newest; with a peer named, that one is asked (RFC 8991, synchronize)."""
    wire = Wire()
    handle = wire.asa()
    wire.say(wire.link(1), flood(1, ttl=0, value="old", tag=locator(5)), flood(2, value="new"))
    assert wire.result(wire.call("synchronize", handle, ex1(), None, 0))[3] == "new"
    call = wire.call("synchronize", handle, ex1(), PEER, 0)
    assert wire.code(call) is None
    wire.run(70)
    assert wire.result(wire.call("synchronize", handle, ex1(), None, 0))[3] == "old"


def test_the_flooder_answers_requests_with_what_it_flooded_until_it_listens_itself() -> None:
    """covers: G2.5.6.2-6"""
    wire = Wire()
    handle = wire.asa(ex1())

    def asked() -> Any:
        connection = wire.peer()
        wire.say(connection, RequestSynchronization(7, ex1()))
        answers = wire.heard(connection)
        wire.lost(connection)
        return answers and answers[0].objective.value

    wire.call("flood", handle, 0, [TaggedObjective(ex1(1))])
    assert asked() == 1
    wire.call("flood", handle, 0, [TaggedObjective(ex1(2))])
    assert asked() == 2
    wire.call("listen_synchronize", handle, ex1(3))
    wire.call("flood", handle, 0, [TaggedObjective(ex1(4))])
    assert asked() == 3


def test_cbor_in_tag_24_and_every_other_value_passes_untouched() -> None:
    """RFC 8991 section 2.3.2.3."""
    network = line(2)
    responder, asker = network.asa(1), network.asa(0)
    responder.register(ex1())
    for value in (CBORTag(24, b"\x83\x01\x02\x03"), None, [], {"a": [1.5, b"x", True]}, 2**63, "\u00e9"):
        responder.call("listen_synchronize", ex1(value))
        call = asker.call("synchronize", ex1(), AsaLocator(locator(1)), 0)
        network.run(0.1)
        assert call.result[3] == value


def test_a_value_of_more_than_2048_bytes_is_refused() -> None:
    """covers: G2.8.3-1"""
    wire = Wire()
    handle = wire.asa(ex1())
    assert wire.code(wire.call("listen_synchronize", handle, ex1(b"x" * 2048))) is ErrorCode.unspec
    assert wire.code(wire.call("listen_synchronize", handle, ex1(b"x" * 2000))) is ErrorCode.ok


def test_a_wait_has_no_place_in_a_synchronization() -> None:
    wire = Wire()
    call = wire.call("synchronize", wire.asa(), ex1(), PEER, 0)
    connection = wire.connected()
    [request] = wire.heard(connection)
    wire.say(connection, Wait(request.session_id, 1000))
    assert [type(message) for message in wire.heard(connection)] == [Invalid]
    assert wire.code(call) is ErrorCode.noValidSynch


def test_an_answer_that_nobody_asked_for_is_invalid() -> None:
    wire = Wire()
    connection = wire.peer()
    wire.say(connection, Synch(7, ex1(1)))
    assert [type(message) for message in wire.heard(connection)] == [Invalid]
    assert wire.core.floods("EX1", wire.now) == []


def test_a_request_cut_at_every_byte_gives_the_same_result() -> None:
    """covers: G2.5.3-2"""
    data = RequestSynchronization(7, ex1("question")).encode()
    for position in range(len(data) + 1):
        wire = Wire()
        handle = wire.asa(ex1())
        wire.call("listen_synchronize", handle, ex1("answer"))
        connection = wire.peer()
        for piece in (data[:position], data[position:]):
            wire.say(connection, piece)
        assert wire.heard(connection) == [Synch(7, ex1("answer"))]


def test_the_node_itself_answers_with_what_it_makes_then() -> None:
    wire = Wire()
    values = iter(range(10))
    wire.core.serve(lambda: ex1(next(values)), ttl=5000)
    for expected in (1, 2):
        connection = wire.peer()
        wire.say(connection, RequestSynchronization(7, ex1()))
        assert wire.heard(connection) == [Synch(7, ex1(expected))]


def test_local_values_are_asked_for_on_the_link_which_stays() -> None:
    network = Network(2)
    network.join(0, 1)
    network.run(0.1)
    responder, asker = network.asa(1), network.asa(0)
    responder.register(ex1(), local=True)
    responder.call("listen_synchronize", ex1(5))
    call = asker.call("synchronize", ex1(), None, 0)
    network.run(0.2)
    assert call.result[3] == 5
    assert network.nodes[0].core.summary()["links"][0]["connections"] == 1


def test_a_negotiation_objective_cannot_be_synchronized() -> None:
    """The two do not mix.

    covers: G2.10.2-1
    """
    wire = Wire()
    handle = wire.asa(objective("EX1", F_NEG))
    for flags in (F_NEG, F_NEG | F_SYNCH):
        item = objective("EX1", flags)
        assert wire.code(wire.call("synchronize", handle, item, PEER, 0)) is ErrorCode.notSynch
