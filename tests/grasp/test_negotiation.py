"""Negotiation: two ASAs through two engines, and one engine with a peer made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from minerva.grasp import sessions as module
from minerva.grasp.api import AsaLocator, ErrorCode
from minerva.grasp.constants import GRASP_DEF_LOOPCT, ObjectiveFlag
from minerva.grasp.discovery import Found
from minerva.grasp.messages import (
    End,
    Invalid,
    Message,
    Negotiate,
    Noop,
    RequestNegotiation,
    RequestSynchronization,
    Synch,
    Wait,
)
from minerva.grasp.options import NO_VALUE, Objective
from minerva.grasp.session import NEXT, State, Step
from tests.grasp.network import F_NEG, F_NEG_DRY, F_SYNCH, Asa, Call, Network, line, objective
from tests.grasp.wire import Wire, locator

PEER = AsaLocator(locator(99))


def ex1(value: Any = NO_VALUE, loop_count: int = 6, flags: ObjectiveFlag = F_NEG) -> Objective:
    """Return the objective that is negotiated here."""
    return objective("EX1", flags, value, loop_count)


def pair(network: Network, flags: ObjectiveFlag = F_NEG) -> tuple[Asa, Asa, Call]:
    """Return ASAs on the first and the last node, and the call with which the latter listens."""
    first, last = network.asa(0, "initiator"), network.asa(len(network.nodes) - 1, "responder", client=2)
    for asa in (first, last):
        asa.register(ex1(flags=flags))
    return first, last, last.call("listen_negotiate", ex1(flags=flags))


def begin(network: Network, value: Any = 100, loop_count: int = 6) -> tuple[Asa, Asa, Call, int]:
    """Begin a negotiation; return both ASAs, the initiator's call, and the session."""
    first, last, listening = pair(network)
    request = first.call("request_negotiate", ex1(value, loop_count), None, 0)
    network.run(0.5)
    session, requested = listening.result
    assert requested == ex1(value, loop_count).to_cbor()
    return first, last, request, session


def idle(network: Network) -> bool:
    """Return whether no node has a session or a unicast connection left."""
    return all(
        node.core.status(network.simulator.now)["sessions"] == []
        and not [c for c in node.core._substrate._connections.values() if c.interface is None]
        and not node.core._sessions._by_connection
        and not node.core._sessions._waiting
        for node in network.nodes
    )


# --- the way it is meant to be --------------------------------------------------------------------


@pytest.mark.parametrize("hops", [1, 5])
def test_counter_offers_waits_and_a_decline(hops: int) -> None:
    """The example of RFC 8990 appendix A.4, over one hop and over five.

    covers: G2.5.5-1, G2.8.7-1, G2.8.8-1, G2.8.9-1, G2.8.6-1
    """
    network = line(hops + 1)
    initiator, responder, request, session = begin(network, 410)
    steps = [responder.call("negotiate_step", session, ex1(80), 0)]
    network.run(0.2)
    ours, offer = request.result
    assert offer == ex1(80, 5).to_cbor()
    steps.append(initiator.call("negotiate_step", ours, ex1(307), 0))
    network.run(0.2)
    assert steps[0].result == [session, ex1(307, 4).to_cbor()]
    assert responder.call("negotiate_wait", session, 100_000).code is ErrorCode.ok
    network.run(99)  # longer than the default time-out
    assert steps[1].code is None
    steps.append(responder.call("negotiate_step", session, ex1(120), 0))
    network.run(0.2)
    assert steps[1].result == [ours, ex1(120, 3).to_cbor()]
    steps.append(initiator.call("negotiate_step", ours, ex1(246), 0))
    network.run(0.2)
    assert steps[2].result == [session, ex1(246, 2).to_cbor()]
    assert responder.call("end_negotiate", session, False, "Insufficient funds").code is ErrorCode.ok
    network.run(0.2)
    assert steps[3].answer is not None
    assert (steps[3].code, steps[3].answer.reason) == (ErrorCode.declined, "Insufficient funds")
    assert idle(network)


def test_accepted_at_once() -> None:
    """Then there is no session, only the value (RFC 8991, request_negotiate).

    covers: G2.8.8-1, G2.5.5-2
    """
    network = line(2)
    _, responder, request, session = begin(network, 410)
    assert responder.call("end_negotiate", session, True, None).code is ErrorCode.ok
    network.run(0.1)
    assert request.result == [None, ex1(410).to_cbor()]
    assert idle(network)


def test_the_initiator_accepts_the_counter_offer() -> None:
    """covers: G2.8.8-1"""
    network = line(2)
    initiator, responder, request, session = begin(network)
    step = responder.call("negotiate_step", session, ex1(80), 0)
    network.run(0.1)
    assert initiator.call("end_negotiate", request.result[0], True, None).code is ErrorCode.ok
    network.run(0.1)
    assert step.result == [None, ex1(80, 5).to_cbor()]
    assert idle(network)


def test_a_decline_needs_no_reason() -> None:
    network = line(2)
    _, responder, request, session = begin(network)
    responder.call("end_negotiate", session, False, None)
    network.run(0.1)
    assert request.answer is not None
    assert (request.code, request.answer.reason) == (ErrorCode.declined, "")


def test_many_negotiations_at_once() -> None:
    """Of one objective with one ASA, each a session of its own.

    covers: G2.5.5-1, G2.7-1
    """
    network = line(3)
    initiator, responder, listening = pair(network)
    requests = [initiator.call("request_negotiate", ex1(value), None, 0) for value in range(10)]
    sessions = {}
    for _ in range(10):
        network.run(0.5)
        session, requested = listening.result
        sessions[session] = requested[3]
        listening = responder.call("listen_negotiate", ex1())
    assert sorted(sessions.values()) == list(range(10))
    for session, value in sessions.items():
        responder.call("negotiate_step", session, ex1(value * 2), 0)
    network.run(0.5)
    assert [request.result[1][3] for request in requests] == [2 * value for value in range(10)]
    assert {request.result[0] for request in requests} == set(sessions)


def test_two_asas_share_an_objective_and_the_work() -> None:
    network = line(2)
    initiator = network.asa(0)
    initiator.register(ex1())
    listening = []
    for number in range(2):
        asa = network.asa(1, f"responder {number}")
        asa.register(ex1(), overlap=True)
        listening.append(asa.call("listen_negotiate", ex1()))
    for value in range(2):
        initiator.call("request_negotiate", ex1(value), None, 0)
    network.run(0.5)
    assert sorted(call.result[1][3] for call in listening) == [0, 1]


def test_requests_wait_for_an_asa_that_is_busy() -> None:
    network = line(2)
    initiator, responder, listening = pair(network)
    initiator.call("request_negotiate", ex1(1), None, 0)
    network.run(0.5)
    assert listening.result[1][3] == 1
    initiator.call("request_negotiate", ex1(2), None, 0)
    network.run(30)
    assert responder.call("listen_negotiate", ex1()).result[1][3] == 2


def test_dry_run_is_marked_from_beginning_to_end() -> None:
    """covers: G2.10.2-1"""
    network = line(2)
    dry = F_NEG | F_NEG_DRY
    initiator, responder, listening = pair(network, dry)
    request = initiator.call("request_negotiate", ex1(1, flags=dry), None, 0)
    network.run(0.5)
    session, requested = listening.result
    assert ObjectiveFlag(requested[1]) & F_NEG_DRY
    assert responder.call("negotiate_step", session, ex1(2), 0).code is ErrorCode.notDry
    responder.call("negotiate_step", session, ex1(2, flags=dry), 0)
    network.run(0.1)
    assert request.result[1] == ex1(2, 5, dry).to_cbor()
    assert initiator.call("negotiate_step", request.result[0], ex1(2), 0).code is ErrorCode.notDry


# --- turns ----------------------------------------------------------------------------------------


def test_turns_alternate_strictly() -> None:
    network = line(2)
    initiator, responder, request, session = begin(network)
    for function, arguments in (
        ("negotiate_step", [ex1(1), 0]),
        ("negotiate_wait", [1000]),
        ("end_negotiate", [True, None]),
    ):
        assert initiator.call(function, session, *arguments).code is ErrorCode.noValidStep
    step = responder.call("negotiate_step", session, ex1(2), 0)
    assert responder.call("negotiate_step", session, ex1(3), 0).code is ErrorCode.noValidStep
    assert responder.call("end_negotiate", session, True, None).code is ErrorCode.noValidStep
    network.run(0.1)
    assert request.result[1][3] == 2
    assert initiator.call("end_negotiate", session, True, None).code is ErrorCode.ok
    network.run(0.1)
    assert step.result == [None, ex1(2, 5).to_cbor()]


def test_a_step_is_of_the_same_objective_and_of_ones_own_session() -> None:
    network = line(2)
    initiator, responder, _, session = begin(network)
    other = objective("EX2", F_NEG, 1)
    assert responder.call("negotiate_step", session, other, 0).code is ErrorCode.notObj
    assert responder.call("negotiate_step", session ^ 1, ex1(1), 0).code is ErrorCode.noSession
    stranger = network.asa(1, "stranger")
    assert stranger.call("negotiate_step", session, ex1(1), 0).code is ErrorCode.noSession
    assert initiator.call("end_negotiate", session ^ 1, True, None).code is ErrorCode.noSession


def test_every_transition_leads_somewhere_and_ends() -> None:
    assert {state for state, _ in NEXT} == set(State) - {State.ENDED}
    for state in set(State) - {State.ENDED}:
        assert NEXT[state, Step.FAILED] is State.ENDED
    assert (State.WAITING, Step.OWN_STEP) not in NEXT
    assert (State.TURN, Step.OFFER) not in NEXT


# --- loop count -----------------------------------------------------------------------------------


def test_the_loop_count_is_lowered_by_each_step_and_ends_the_negotiation_on_both_sides() -> None:
    """The ASAs offer the loop count they please; the engine counts.

    covers: G2.8.7-1
    """
    network = line(2)
    initiator, responder, request, session = begin(network, 0, loop_count=3)
    step = responder.call("negotiate_step", session, ex1(1, 255), 0)
    network.run(0.1)
    assert request.result[1] == ex1(1, 2).to_cbor()
    step2 = initiator.call("negotiate_step", session, ex1(2, 255), 0)
    network.run(0.1)
    assert step.result[1] == ex1(2, 1).to_cbor()
    last = responder.call("negotiate_step", session, ex1(3, 255), 0)
    assert last.code is ErrorCode.loopExhausted
    network.run(0.1)
    assert step2.code is ErrorCode.noPeer
    assert idle(network)


def test_a_request_starts_with_the_loop_count_it_is_given_and_not_with_0() -> None:
    """covers: G2.8.6-1"""
    assert objective("EX1", F_NEG).loop_count == GRASP_DEF_LOOPCT == 6
    assert Objective("EX1", F_NEG).loop_count == 6
    wire = Wire()
    handle = wire.asa(ex1())
    assert wire.code(wire.call("request_negotiate", handle, ex1(1, 0), PEER, 0)) is ErrorCode.loopExhausted


def test_a_peer_that_negotiates_for_ever_runs_into_the_loop_count() -> None:
    """It never lowers the loop count; we do with each step of ours.

    covers: G2.8.7-1
    """
    wire = Wire()
    handle = wire.asa(ex1())
    call = wire.call("request_negotiate", handle, ex1(0, 10), PEER, 0)
    connection = wire.connected()
    [request] = wire.heard(connection)
    steps = 0
    while wire.code(call) is None and steps < 50:
        wire.say(connection, Negotiate(request.session_id, ex1(0, 255)))
        assert wire.code(call) is ErrorCode.ok
        call = wire.call("negotiate_step", handle, request.session_id, ex1(0, 255), 0)
        steps += 1
    assert wire.code(call) is ErrorCode.loopExhausted
    assert steps == 10
    assert connection in wire.closes


# --- messages -------------------------------------------------------------------------------------


class Responder:
    """An engine whose ASA is asked by a peer made by hand."""

    def __init__(self, *, listening: bool = True, flags: ObjectiveFlag = F_NEG) -> None:
        self.wire = Wire()
        self.handle = self.wire.asa(ex1(flags=flags))
        self.listening = self.wire.call("listen_negotiate", self.handle, ex1()) if listening else 0

    def request(self, session_id: int = 7, value: Any = 100) -> int:
        """Let a peer ask; return its connection."""
        connection = self.wire.peer(1000 + session_id % 1000)
        self.wire.say(connection, RequestNegotiation(session_id, ex1(value)))
        return connection


def test_what_goes_over_the_wire() -> None:
    """covers: G2.8.6-1, G2.8.7-1, G2.8.8-1, G2.8.9-1, G2.5.3-2, G2.7-1"""
    wire = Wire()
    handle = wire.asa(ex1())
    call = wire.call("request_negotiate", handle, ex1([1]), PEER, 0)
    connection = wire.connected()
    [request] = wire.heard(connection)
    assert request == RequestNegotiation(request.session_id, ex1([1]))
    wire.say(connection, Negotiate(request.session_id, ex1([2], 5)))
    session, offer = wire.result(call)
    assert (session, offer) == (request.session_id, ex1([2], 5).to_cbor())
    wire.call("negotiate_wait", handle, session, 5000)
    call = wire.call("negotiate_step", handle, session, ex1([3]), 0)
    assert wire.heard(connection) == [Wait(session, 5000), Negotiate(session, ex1([3], 4))]
    wire.say(connection, End(session, True))
    assert wire.result(call) == [None, ex1([3], 4).to_cbor()]
    assert wire.closes[connection].abort is False


def test_a_request_has_a_value_if_only_null() -> None:
    """covers: G2.10.3-1"""
    wire = Wire()
    handle = wire.asa(ex1())
    wire.call("request_negotiate", handle, ex1(), PEER, 0)
    connection = wire.connected()
    [request] = wire.heard(connection)
    assert request.objective.value is None
    wire.say(connection, Negotiate(request.session_id, ex1(1, 5)))
    wire.call("negotiate_step", handle, request.session_id, ex1(), 0)
    assert wire.heard(connection)[0].objective.value is None


def test_the_responder_counts_and_ends_the_connection() -> None:
    """covers: G2.8.7-1, G2.5.5-2"""
    node = Responder()
    connection = node.request()
    session, requested = node.wire.result(node.listening)
    assert (session, requested) == (7, ex1(100).to_cbor())
    node.wire.call("negotiate_step", node.handle, 7, ex1(80), 0)
    assert node.wire.heard(connection) == [Negotiate(7, ex1(80, 5))]
    node.wire.say(connection, Negotiate(7, ex1(90, 4)))
    node.wire.call("end_negotiate", node.handle, 7, False, "no")
    assert node.wire.heard(connection) == [End(7, False, "no")]
    assert connection in node.wire.closes


@pytest.mark.parametrize("why", ["not registered", "not listening", "stopped", "not negotiated", "no flag"])
def test_nobody_listens(why: str) -> None:
    """The connection is closed at once.

    covers: G2.8.6-2
    """
    if why == "not negotiated":
        wire = Wire()
        handle = wire.asa(ex1(flags=F_SYNCH))
        wire.call("listen_synchronize", handle, ex1(1, flags=F_SYNCH))
    else:
        node = Responder(listening=why in ("stopped", "no flag"))
        wire = node.wire
        if why == "stopped":
            wire.result(wire.call("stop_listen_negotiate", node.handle, ex1()))
            assert wire.code(node.listening) is ErrorCode.noListener
    connection = wire.peer()
    name = "EX9" if why == "not registered" else "EX1"
    flags = F_SYNCH if why == "no flag" else F_NEG
    wire.say(connection, RequestNegotiation(7, objective(name, flags, 1)))
    assert wire.heard(connection) == []
    assert connection in wire.closes
    assert wire.core.counters["requests-refused"] == 1


def test_one_asa_has_a_bounded_number_of_requests_waiting() -> None:
    """Those that were given up meanwhile do not count.

    covers: G2.8.6-2
    """
    node = Responder()
    node.request(1)
    connections = [node.request(number) for number in range(2, 2 + module.MAX_WAITING_REQUESTS)]
    assert node.request(100) in node.wire.closes
    node.wire.lost(connections[0])
    assert node.request(101) not in node.wire.closes
    taken = [
        node.wire.result(node.wire.call("listen_negotiate", node.handle, ex1()))[0]
        for _ in range(module.MAX_WAITING_REQUESTS)
    ]
    assert taken == [*range(3, 2 + module.MAX_WAITING_REQUESTS), 101]


@pytest.mark.parametrize("active", ["negotiation", "discovery", "request"])
def test_a_request_whose_session_id_is_active_here_is_discarded(active: str) -> None:
    """covers: G2.8.6-3, G2.7-1"""
    node = Responder()
    wire = node.wire
    if active == "negotiation":
        session_id = 7
        node.request(7)
    elif active == "discovery":
        link = wire.link(1)
        wire.call("discover", node.handle, ex1(), 60_000, 0)
        session_id = wire.heard(link)[0].session_id
    else:
        wire.call("request_negotiate", node.handle, ex1(1), PEER, 0)
        session_id = wire.heard(wire.connected())[0].session_id
    before = wire.core.status(wire.now)["sessions"]
    wire.call("listen_negotiate", node.handle, ex1())
    connection = node.request(session_id)
    assert wire.core.counters["session-id-clashes"] == 1
    assert wire.heard(connection) == []
    assert wire.core.status(wire.now)["sessions"] == before


def test_a_connection_has_one_session() -> None:
    node = Responder()
    connection = node.request(7)
    node.wire.call("listen_negotiate", node.handle, ex1())
    node.wire.say(connection, RequestNegotiation(8, ex1(1)))
    assert [type(message) for message in node.wire.heard(connection)] == [Invalid]
    assert len(node.wire.core.status(node.wire.now)["sessions"]) == 1
    node.wire.say(connection, RequestNegotiation(7, ex1(1)))  # its own again
    assert node.wire.heard(connection) == []
    node.wire.call("negotiate_step", node.handle, 7, ex1(80), 0)
    assert node.wire.heard(connection) == [Negotiate(7, ex1(80, 5))]


OUT_OF_TURN: list[tuple[Message, ErrorCode]] = [
    (Negotiate(7, ex1(1)), ErrorCode.invalidNeg),
    (Wait(7, 1000), ErrorCode.invalidNeg),
    (Synch(7, ex1(1)), ErrorCode.invalidNeg),
]


@pytest.mark.parametrize(("message", "code"), OUT_OF_TURN)
def test_a_message_out_of_turn_is_answered_with_invalid_and_ends_the_session(
    message: Message, code: ErrorCode
) -> None:
    """It is the ASA's turn, which learns of it by its next call.

    covers: G2.8.12-1
    """
    node = Responder()
    connection = node.request()
    node.wire.say(connection, message)
    [answer] = node.wire.heard(connection)
    assert isinstance(answer, Invalid)
    assert answer.session_id == 7
    assert answer.content == message.encode()
    assert connection in node.wire.closes
    assert node.wire.code(node.wire.call("negotiate_step", node.handle, 7, ex1(1), 0)) is code
    after = node.wire.call("negotiate_step", node.handle, 7, ex1(1), 0)
    assert node.wire.code(after) is ErrorCode.noSession


def test_a_peer_may_give_up_when_it_is_not_its_turn() -> None:
    """It cannot accept, though: there is nothing of ours on the table."""
    for accepted in (True, False):
        node = Responder()
        connection = node.request()
        node.wire.say(connection, End(7, accepted))
        assert node.wire.heard(connection) == []
        call = node.wire.call("end_negotiate", node.handle, 7, True, None)
        assert node.wire.code(call) is ErrorCode.declined


@pytest.mark.parametrize(
    "offer",
    [
        objective("EX2", F_NEG, 1, 5),
        ex1(1, 5, F_NEG | F_NEG_DRY),
        ex1(loop_count=5),
    ],
)
def test_an_offer_of_something_else_is_invalid(offer: Objective) -> None:
    """Another objective, a dry run in a real one, no value at all.

    covers: G2.10.2-1, G2.10.3-1, G2.5.5-1, G2.8.12-1
    """
    node = Responder()
    connection = node.request()
    call = node.wire.call("negotiate_step", node.handle, 7, ex1(1), 0)
    node.wire.heard(connection)
    node.wire.say(connection, Negotiate(7, offer))
    assert [type(message) for message in node.wire.heard(connection)] == [Invalid]
    assert node.wire.code(call) is ErrorCode.invalidNeg


@pytest.mark.parametrize(
    "message", [Negotiate(9, ex1(1)), End(9, True), Wait(9, 1), Synch(9, ex1(1)), Invalid(9), Noop()]
)
def test_messages_of_no_session(message: Message) -> None:
    """M_INVALID and M_NOOP are answered with nothing, and the connection's own session goes on.

    covers: G2.8.12-1, G2.8.13-1
    """
    node = Responder()
    connection = node.request()
    node.wire.say(connection, message)
    answers = node.wire.heard(connection)
    if isinstance(message, Invalid | Noop):
        assert answers == []
    else:
        assert answers == [Invalid(9, message.encode())]
    node.wire.call("negotiate_step", node.handle, 7, ex1(1), 0)
    assert node.wire.heard(connection) == [Negotiate(7, ex1(1, 5))]


def test_invalid_is_never_answered_with_invalid() -> None:
    """Neither one that is well-formed, nor one that is not, nor one for a session.

    covers: G2.8.12-1
    """
    node = Responder()
    connection = node.request()
    node.wire.say(connection, Invalid(9, "x"), bytes.fromhex("821863f6"), bytes.fromhex("8118630101"))
    node.wire.say(connection, Invalid(7))
    assert node.wire.heard(connection) == []
    assert connection in node.wire.closes
    call = node.wire.call("negotiate_step", node.handle, 7, ex1(1), 0)
    assert node.wire.code(call) is ErrorCode.invalidNeg


@pytest.mark.parametrize("hexed", ["83185507f6", "820507", "83060700", "830507844345583102064101"])
def test_an_unknown_or_broken_message_is_answered_with_invalid(hexed: str) -> None:
    """With its Session ID; the session that it belongs to fails.

    covers: G2.8.2-2, G2.8.12-1
    """
    node = Responder()
    connection = node.request()
    node.wire.say(connection, bytes.fromhex(hexed))
    assert node.wire.heard(connection) == [Invalid(7)]
    call = node.wire.call("negotiate_step", node.handle, 7, ex1(1), 0)
    assert node.wire.code(call) is ErrorCode.CBORfail


def test_an_asa_can_say_that_it_understands_nothing() -> None:
    """covers: G2.8.12-1"""
    for info in (None, b"\x01\x02"):
        node = Responder()
        connection = node.request()
        node.wire.result(node.wire.call("send_invalid", node.handle, 7, info))
        assert node.wire.heard(connection) == [Invalid(7, NO_VALUE if info is None else info)]
        assert connection in node.wire.closes
        assert node.wire.core.status(node.wire.now)["sessions"] == []


def test_nothing_of_more_than_2048_bytes_is_sent_unasked() -> None:
    """The session goes on with something shorter.

    covers: G2.8.3-1
    """
    node = Responder()
    connection = node.request()
    for function, arguments in (
        ("negotiate_step", [ex1(b"x" * 2048), 0]),
        ("end_negotiate", [False, "x" * 2048]),
        ("send_invalid", [b"x" * 2048]),
    ):
        call = node.wire.call(function, node.handle, 7, *arguments)
        assert node.wire.code(call) is ErrorCode.unspec
    node.wire.call("negotiate_step", node.handle, 7, ex1(b"x" * 2000), 0)
    [message] = node.wire.heard(connection)
    assert len(message.encode()) <= 2048
    request = node.wire.call("request_negotiate", node.handle, ex1(b"x" * 2048), PEER, 0)
    assert node.wire.code(request) is ErrorCode.unspec
    assert not node.wire.connects


# --- time, and connections that end ---------------------------------------------------------------


def test_a_negotiation_times_out_on_both_sides() -> None:
    """After GRASP_DEF_TIMEOUT, as neither ASA does anything.

    covers: G2.5.5-1, G2.8.6-1
    """
    network = line(2)
    _, responder, request, session = begin(network)
    network.run(59.0)
    assert request.code is None
    network.run(1.0)
    assert request.code in (ErrorCode.noNegReply, ErrorCode.noPeer)
    assert responder.call("negotiate_step", session, ex1(1), 0).code in (
        ErrorCode.noSession,
        ErrorCode.noPeer,
    )
    assert idle(network)


def test_a_call_has_its_own_timeout() -> None:
    network = line(2)
    initiator, responder, listening = pair(network)
    request = initiator.call("request_negotiate", ex1(1), None, 2000)
    network.run(1.9)
    assert request.code is None
    network.run(0.2)
    assert request.code is ErrorCode.noNegReply
    assert responder.call("negotiate_step", listening.result[0], ex1(1), 0).code is ErrorCode.noPeer


@pytest.mark.parametrize(("milliseconds", "seconds"), [(1000, 1.0), (100_000, 100.0), (0, 60.0)])
def test_a_wait_restarts_the_timer_with_its_own_value(milliseconds: int, seconds: float) -> None:
    """Longer or shorter than what was left of it.

    covers: G2.8.9-1
    """
    wire = Wire()
    handle = wire.asa(ex1())
    call = wire.call("request_negotiate", handle, ex1(1), PEER, 30_000)
    connection = wire.connected()
    [request] = wire.heard(connection)
    wire.run(20)
    wire.say(connection, Wait(request.session_id, milliseconds or 60_000))
    wire.run(seconds - 0.01)
    assert wire.code(call) is None
    wire.run(0.02)
    assert wire.code(call) is ErrorCode.noNegReply


def test_the_asa_that_delays_has_as_long_as_it_said() -> None:
    """covers: G2.8.9-1"""
    node = Responder()
    connection = node.request()
    node.wire.result(node.wire.call("negotiate_wait", node.handle, 7, 200_000))
    assert node.wire.heard(connection) == [Wait(7, 200_000)]
    node.wire.run(199)
    node.wire.result(node.wire.call("negotiate_wait", node.handle, 7, 0))
    assert node.wire.heard(connection) == [Wait(7, 60_000)]
    node.wire.run(61)
    call = node.wire.call("negotiate_step", node.handle, 7, ex1(1), 0)
    assert node.wire.code(call) is ErrorCode.noSession


@pytest.mark.parametrize("who", ["initiator", "responder"])
@pytest.mark.parametrize("turn", ["initiator", "responder"])
def test_a_peer_that_dies_in_the_middle(who: str, turn: str) -> None:
    """Whether it waits or has the turn, the other side learns at once that it is gone.

    covers: G2.5.5-2, G2.2-1
    """
    network = line(4)
    initiator, responder, request, session = begin(network)
    step = responder.call("negotiate_step", session, ex1(1), 0)
    network.run(0.1)
    if turn == "responder":
        request = initiator.call("negotiate_step", session, ex1(2), 0)
        network.run(0.1)
    died, other = (0, responder) if who == "initiator" else (3, initiator)
    network.streams.kill(network.nodes[died])
    network.run(0.1)
    if who == turn:
        waiting = request if who == "responder" else step
        assert waiting.code is ErrorCode.noPeer
    else:
        assert other.call("negotiate_step", session, ex1(3), 0).code is ErrorCode.noPeer
    network.nodes.pop(died)
    assert idle(network)


def test_the_channel_that_goes_takes_no_session_with_it_that_has_another_way() -> None:
    """Sessions are between ACP addresses, whatever the links."""
    network = line(3)
    _, responder, request, session = begin(network)
    network.cut(0, 1)
    responder.call("negotiate_step", session, ex1(1), 0)
    network.run(0.1)
    assert request.result[1][3] == 1


def test_connections_without_a_request_are_closed() -> None:
    wire = Wire()
    connection = wire.peer()
    wire.run(module.REQUEST_SECONDS - 0.1)
    assert connection not in wire.closes
    wire.run(0.2)
    assert wire.closes[connection].abort
    assert wire.core.next_timer() is None


def test_the_next_candidate_is_asked_if_one_cannot_be_reached() -> None:
    """And those that cannot are forgotten.

    covers: G2.5.5-2, G2.5.4.3-6
    """
    network = line(3)
    initiator = network.asa(0)
    initiator.register(ex1())
    for node in (1, 2):
        asa = network.asa(node)
        asa.register(ex1(), overlap=True)
        asa.call("listen_negotiate", ex1())
    find = initiator.call("discover", ex1(), 500, 0)
    network.run(0.6)
    assert len(find.result) == 1  # node 1 answers, and relays no further
    core = network.nodes[0].core
    core._discovery._keep("EX1", _known(2, network.simulator.now))
    network.streams.kill(network.nodes[1])
    request = initiator.call("request_negotiate", ex1(5), None, 0)
    network.run(0.5)
    [session] = core.status(network.simulator.now)["sessions"]
    assert session["peer"] == str(locator(2).address)
    assert request.code is None
    left = initiator.call("discover", ex1(), 0, 1).result
    assert [AsaLocator.from_cbor(item).locator for item in left] == [locator(2)]


def _known(number: int, now: float) -> Any:
    return Found(locator(number), 1, now + 50, True)


def test_a_peer_that_does_not_listen_any_more_is_forgotten() -> None:
    """The next request looks for another one.

    covers: G2.5.5-2, G2.5.4.3-5
    """
    network = line(3)
    initiator = network.asa(0)
    initiator.register(ex1())
    near = network.asa(1)
    near.register(ex1())
    near.call("listen_negotiate", ex1())
    initiator.call("discover", ex1(), 500, 0)
    network.run(0.6)
    near.call("deregister_objective", ex1())
    far = network.asa(2)
    far.register(ex1())
    listening = far.call("listen_negotiate", ex1())
    assert network.call(0, "node").code is ErrorCode.ok
    request = initiator.call("request_negotiate", ex1(5), None, 0)
    network.run(0.5)
    assert request.code is ErrorCode.noPeer
    initiator.call("request_negotiate", ex1(6), None, 0)
    network.run(1)
    assert listening.result[1][3] == 6


def test_a_peer_on_another_port_can_be_named() -> None:
    """As an ASA may end its sessions itself, on a port of its own.

    covers: G2.5.3-3
    """
    wire = Wire()
    handle = wire.asa(ex1())
    call = wire.call("request_negotiate", handle, ex1(1), AsaLocator(locator(5, 4711)), 0)
    assert (wire.connects[0].address, wire.connects[0].port) == (locator(5).address, 4711)
    connection = wire.connected()
    [request] = wire.heard(connection)
    wire.say(connection, End(request.session_id, True))
    assert wire.result(call) == [None, ex1(1).to_cbor()]


def test_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SESSIONS", 3)
    node = Responder()
    for number in range(3):
        node.request(number)
        node.wire.call("listen_negotiate", node.handle, ex1())
    assert node.request(9) in node.wire.closes
    call = node.wire.call("request_negotiate", node.handle, ex1(1), PEER, 0)
    assert node.wire.code(call) is ErrorCode.unspec


def test_a_synchronization_request_does_not_start_a_negotiation() -> None:
    node = Responder()
    connection = node.wire.peer()
    node.wire.say(connection, RequestSynchronization(7, ex1(flags=F_SYNCH)))
    assert connection in node.wire.closes
    assert node.wire.code(node.listening) is None


def test_local_objectives_are_negotiated_on_the_link() -> None:
    """Discovery tells the link-local address; the session goes over the link's own connection, which stays.

    covers: G2.9.5-1
    """
    network = line(2)
    responder, initiator = network.asa(1), network.asa(0)
    responder.register(ex1(), local=True)
    initiator.register(ex1())
    listening = responder.call("listen_negotiate", ex1())
    request = initiator.call("request_negotiate", ex1(1), None, 0)
    network.run(0.5)
    session, _ = listening.result
    responder.call("negotiate_step", session, ex1(2), 0)
    network.run(0.1)
    assert request.result[1] == ex1(2, 5).to_cbor()
    initiator.call("end_negotiate", session, True, None)
    network.run(0.1)
    for node in network.nodes:
        assert node.core.summary()["links"][0]["connections"] == 1
        assert node.core.status(network.simulator.now)["sessions"] == []


@pytest.mark.parametrize("who", ["initiator", "responder"])
def test_who_gives_up_on_the_link_says_so(who: str) -> None:
    """As the connection, whose end would tell it otherwise, goes on."""
    network = line(2)
    initiator, responder = network.asa(0, client=1), network.asa(1, client=2)
    responder.register(ex1(), local=True)
    initiator.register(ex1())
    listening = responder.call("listen_negotiate", ex1())
    request = initiator.call("request_negotiate", ex1(1), None, 0)
    network.run(0.5)
    session, _ = listening.result
    node = network.nodes[0 if who == "initiator" else 1]
    node.core.client_gone(1 if who == "initiator" else 2, network.simulator.now)
    network.streams.pump(node)
    network.run(0.1)
    if who == "responder":
        assert request.code is ErrorCode.declined
    else:
        assert responder.call("negotiate_step", session, ex1(2), 0).code is ErrorCode.declined
    assert all(node.core.status(network.simulator.now)["sessions"] == [] for node in network.nodes)


# --- one conversation, cut anywhere ---------------------------------------------------------------


def conversation(segment: Any) -> list[Any]:
    """Negotiate with counter-offers, waits and an end; return all that both ASAs were answered."""
    network = Network(2, segment=segment)
    network.join(0, 1)
    network.run(0.1)
    initiator, responder, listening = pair(network)
    request = initiator.call("request_negotiate", ex1(["a", 410]), None, 0)
    network.run(1)
    session, requested = listening.result
    results = [requested]
    for value in range(2):
        wait = responder.call("negotiate_wait", session, 70_000)
        step = responder.call("negotiate_step", session, ex1([value, b"x" * 30]), 0)
        network.run(1)
        results += [wait.code, request.result[1]]
        request = initiator.call("negotiate_step", session, ex1({"y": value}), 0)
        network.run(1)
        results.append(step.result[1])
    responder.call("end_negotiate", session, False, "nothing doing")
    network.run(1)
    assert request.answer is not None
    return [*results, request.answer.code, request.answer.reason]


def test_a_conversation_cut_at_every_byte_gives_the_same_result() -> None:
    """covers: G2.5.3-2"""
    whole = conversation(lambda data: [data])
    assert whole[-2:] == [ErrorCode.declined, "nothing doing"]
    assert conversation(lambda data: [bytes([byte]) for byte in data]) == whole
    for position in range(1, 75):
        cut = conversation(lambda data, p=position: [piece for piece in (data[:p], data[p:]) if piece])
        assert cut == whole, position


def test_messages_that_arrive_together_are_taken_one_by_one() -> None:
    """A wait, an offer and more in one piece, cut at every position.

    covers: G2.5.3-2
    """
    for position in range(60):
        wire = Wire()
        handle = wire.asa(ex1())
        call = wire.call("request_negotiate", handle, ex1(1), PEER, 0)
        connection = wire.connected()
        session = wire.heard(connection)[0].session_id
        data = b"".join(
            message.encode() for message in (Wait(session, 1000), Noop(), Negotiate(session, ex1(80, 5)))
        )
        assert len(data) < 60
        for piece in (data[:position], data[position:]):
            wire.say(connection, piece)
        assert wire.result(call) == [session, ex1(80, 5).to_cbor()]
