"""Three engines, their ASAs, and a network that loses connections and channels, in any order of events."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from minerva.grasp import discovery, flooding
from minerva.grasp.api import AsaLocator, ErrorCode, TaggedObjective
from minerva.grasp.constants import TransportProto
from minerva.grasp.engine import Answer
from minerva.grasp.messages import (
    Discovery,
    End,
    Flood,
    FloodEntry,
    Invalid,
    Negotiate,
    Noop,
    RequestNegotiation,
    RequestSynchronization,
    Response,
    Synch,
    Wait,
)
from minerva.grasp.options import Divert, IPv6Locator, Objective
from minerva.grasp.session import Session, State
from tests.grasp.network import F_NEG, F_SYNCH, Asa, Call, Network, address, objective
from tests.grasp.wire import OURS, Wire, locator, neighbour

NODES = st.integers(0, 2)
NAMES = st.sampled_from(["EX1", "EX2"])
VALUES = st.one_of(st.none(), st.integers(0, 9), st.binary(max_size=4))
TIMES = st.sampled_from([0, 200, 5000])
NEG, SYNCH = objective("EX1", F_NEG), objective("EX2", F_SYNCH)
PAIRS = [(0, 1), (1, 2), (0, 2)]

WAITING = {
    "discover",
    "request_negotiate",
    "listen_negotiate",
    "negotiate_step",
    "synchronize",
}


class Engines(RuleBasedStateMachine):
    """Each node has an ASA that has an objective to negotiate and one to synchronize."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network(3)
        self.asas = [self._asa(node) for node in range(3)]
        self.calls: list[tuple[str, Call]] = []
        self.join(0)
        self.join(1)

    def _asa(self, node: int) -> Asa:
        asa = self.network.asa(node, f"asa {node}", client=node + 1)
        for item in (NEG, SYNCH):
            asa.register(item)
        return asa

    def _call(self, node: int, function: str, *arguments: Any) -> Call:
        call = self.asas[node].call(function, *arguments)
        self.calls.append((function, call))
        if function not in WAITING:
            assert call.answer is not None
        return call

    # --- the network -------------------------------------------------------------------------------

    def _joined(self, pair: int) -> bool:
        return PAIRS[pair] in self.network.channels

    @rule(pair=NODES)
    def join(self, pair: int) -> None:
        """Let a channel come."""
        if not self._joined(pair):
            self.network.join(*PAIRS[pair])

    @rule(pair=NODES)
    def cut(self, pair: int) -> None:
        """Let a channel go."""
        if self._joined(pair):
            self.network.cut(*PAIRS[pair])

    @rule(node=NODES, data=st.data())
    def lose(self, node: int, data: st.DataObject) -> None:
        """Let a connection end, with what is under way on it."""
        ends = list(self.network.nodes[node].ends.values())
        if ends:
            end = data.draw(st.sampled_from(ends))
            network = self.network.streams
            other = end.other
            network._tell_closed(end, "reset")
            network._tell_closed(other, "reset")

    @rule(seconds=st.sampled_from([0.0005, 0.0015, 0.01, 0.3, 5.0, 61.0]))
    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.network.run(seconds)

    # --- calls -------------------------------------------------------------------------------------

    @rule(node=NODES, name=NAMES, timeout=TIMES, minimum=st.sampled_from([0, 1000]))
    def discover(self, node: int, name: str, timeout: int, minimum: int) -> None:
        """Discover."""
        self._call(node, "discover", NEG if name == "EX1" else SYNCH, timeout, minimum)

    @rule(node=NODES, peer=st.none() | NODES, value=VALUES, loops=st.integers(0, 4), timeout=TIMES)
    def request(self, node: int, peer: int | None, value: Any, loops: int, timeout: int) -> None:
        """Ask for a negotiation."""
        where = None if peer is None else AsaLocator(locator(peer))
        self._call(node, "request_negotiate", objective("EX1", F_NEG, value, loops), where, timeout)

    @rule(node=NODES, peer=NODES, value=VALUES, loops=st.integers(1, 5))
    def begin(self, node: int, peer: int, value: Any, loops: int) -> None:
        """Begin a negotiation that has every chance."""
        self._call(peer, "listen_negotiate", NEG)
        self.request(node, peer, value, loops, 0)
        self.network.run(0.02)

    @rule(data=st.data(), value=VALUES, how=st.sampled_from(["step", "step", "step", "wait", "end"]))
    def move(self, data: st.DataObject, value: Any, how: str) -> None:
        """Let an ASA whose turn it is take it."""
        turns = [
            (node, session.session_id)
            for node in range(3)
            for session in self.network.nodes[node].core._sessions._sessions.values()
            if session.state is State.TURN and not self._is_queued(node, session)
        ]
        if not turns:
            return
        node, session = data.draw(st.sampled_from(turns))
        if how == "step":
            call = self._call(node, "negotiate_step", session, objective("EX1", F_NEG, value), 0)
            assert call.code in (None, ErrorCode.loopExhausted, ErrorCode.ok)
        elif how == "wait":
            assert self._call(node, "negotiate_wait", session, 5000).code is ErrorCode.ok
        else:
            assert self._call(node, "end_negotiate", session, True, None).code is ErrorCode.ok
        self.network.run(data.draw(st.sampled_from([0.0, 0.0005, 0.01])))

    @rule(node=NODES)
    def listen(self, node: int) -> None:
        """Listen for negotiations."""
        self._call(node, "listen_negotiate", NEG)

    @rule(node=NODES)
    def stop_listening(self, node: int) -> None:
        """Listen no longer."""
        self._call(node, "stop_listen_negotiate", NEG)

    @rule(node=NODES, data=st.data(), value=VALUES, timeout=TIMES)
    def step(self, node: int, data: st.DataObject, value: Any, timeout: int) -> None:
        """Make an offer in whatever session."""
        session = data.draw(self._session(node))
        offer = objective("EX1", F_NEG, value)
        turn = self._state(node, session) is State.TURN
        call = self._call(node, "negotiate_step", session, offer, timeout)
        if not turn:  # whoever's turn it is not, cannot
            assert call.code not in (None, ErrorCode.ok, ErrorCode.loopExhausted)

    @rule(node=NODES, data=st.data(), timeout=TIMES)
    def wait(self, node: int, data: st.DataObject, timeout: int) -> None:
        """Ask the peer for patience."""
        self._call(node, "negotiate_wait", data.draw(self._session(node)), timeout)

    @rule(node=NODES, data=st.data(), accept=st.booleans())
    def end(self, node: int, data: st.DataObject, accept: bool) -> None:
        """End a negotiation."""
        self._call(node, "end_negotiate", data.draw(self._session(node)), accept, "no")

    @rule(node=NODES, data=st.data())
    def invalid(self, node: int, data: st.DataObject) -> None:
        """Say that a message was invalid."""
        self._call(node, "send_invalid", data.draw(self._session(node)), b"x")

    @rule(node=NODES, value=VALUES)
    def serve(self, node: int, value: Any) -> None:
        """Listen for synchronization requests."""
        self._call(node, "listen_synchronize", objective("EX2", F_SYNCH, value))

    @rule(node=NODES, peer=st.none() | NODES, timeout=TIMES)
    def synchronize(self, node: int, peer: int | None, timeout: int) -> None:
        """Ask for a value."""
        where = None if peer is None else AsaLocator(locator(peer))
        self._call(node, "synchronize", SYNCH, where, timeout)

    @rule(node=NODES, value=VALUES, ttl=TIMES, tag=st.none() | NODES)
    def flood(self, node: int, value: Any, ttl: int, tag: int | None) -> None:
        """Flood."""
        where = None if tag is None else AsaLocator(locator(tag))
        self._call(node, "flood", ttl, [TaggedObjective(objective("EX2", F_SYNCH, value), where)])

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Withdraw a call, answered or not."""
        if self.calls:
            _, call = data.draw(st.sampled_from(self.calls))
            client, request = call._key
            self.network.call(client - 1, "cancel", request, client=client)
            assert call.answer is not None

    @rule(node=NODES)
    def start_anew(self, node: int) -> None:
        """Let the process of an ASA end, and another one begin."""
        core = self.network.nodes[node].core
        core.client_gone(node + 1, self.network.simulator.now)
        self.network.streams.pump(self.network.nodes[node])
        self.calls = [item for item in self.calls if item[1]._key[0] != node + 1 or item[1].answer]
        self.asas[node] = self._asa(node)

    def _is_queued(self, node: int, session: Session) -> bool:
        return self.network.nodes[node].core._sessions._is_queued(session)

    def _state(self, node: int, session: int) -> State | None:
        found = [
            item
            for (number, _), item in self.network.nodes[node].core._sessions._sessions.items()
            if number == session and not self._is_queued(node, item)
        ]
        states = {item.state for item in found}
        return State.TURN if State.TURN in states else next(iter(states), None)

    def _session(self, node: int) -> st.SearchStrategy[int]:
        now = self.network.simulator.now
        known = [
            item["session_id"]
            for other in self.network.nodes
            for item in other.core.status(now)["sessions"]
            if other is self.network.nodes[node] or item["session_id"] % 4 == 0
        ]
        return st.sampled_from([*known, 12345])

    # --- what always holds ---------------------------------------------------------------------------

    @invariant()
    def calls_are_answered_at_most_once(self) -> None:
        """And no call is answered that was not made."""
        for node in self.network.nodes:
            keys = [(event.client, event.request) for _, event in node.events if isinstance(event, Answer)]
            assert len(keys) == len(set(keys))

    @invariant()
    def tables_are_bounded_and_agree(self) -> None:
        """What one table says, the others say."""
        for node in self.network.nodes:
            core = node.core
            part = core._sessions
            assert all(session.state is not State.ENDED for session in part._sessions.values())
            assert set(part._by_connection.values()) <= set(part._sessions.values())
            for number, _ in part._by_connection:
                assert core._substrate.get(number) is not None
            active = {number for number, _ in part._sessions} | set(core._discovery._queries)
            assert core._session_ids._active == active
            for waiting in part._waiting.values():
                assert waiting
                assert all(session.state is State.TURN for session in waiting)
            assert len(part._epitaphs) <= 256
            assert len(core._discovery._relayed) <= discovery.MAX_RELAYED
            cached = sum(len(copies) for copies in core._flooding._cache.values())
            assert cached == core._flooding._entries <= flooding.MAX_ENTRIES

    @invariant()
    def engines_do_nothing_that_engines_do_not_understand(self) -> None:
        """No message out of turn, for no session, or of no meaning, whatever is lost on the way."""
        for node in self.network.nodes:
            for name in ("messages-out-of-turn", "no-such-session", "not-a-message", "invalid-sent"):
                assert node.core.counters[name] == 0

    @invariant()
    def never_both_have_the_turn(self) -> None:
        """Of the two ends of a session, as long as there are two."""
        turns: dict[int, int] = {}
        for node in self.network.nodes:
            for session in node.core._sessions._sessions.values():
                if session.state is State.TURN and session.negotiation:
                    turns[session.session_id] = turns.get(session.session_id, 0) + 1
        assert all(count == 1 for count in turns.values())

    def teardown(self) -> None:
        """Everything ends by itself, and all calls but those that listen are answered."""
        self.network.run(10.0)
        self.network.run(200.0)
        now = self.network.simulator.now
        for function, call in self.calls:
            if function != "listen_negotiate":
                assert call.answer is not None, function
        for node in self.network.nodes:
            core = node.core
            assert core.status(now)["sessions"] == []
            assert not core._discovery._queries
            assert not core._sessions._by_connection
            assert not core._session_ids._active
            assert [c for c in core._substrate._connections.values() if c.interface is None] == []
            assert all(link["ready"] for link in core.summary()["links"])
        self.network.run(700.0)
        for node in self.network.nodes:
            assert not node.core._discovery._relayed
            assert not node.core._sessions._idle


TestEngines = Engines.TestCase
TestEngines.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


# --- whatever can be said in GRASP ----------------------------------------------------------------

SESSION_IDS = st.integers(1, 6)
INITIATORS = st.sampled_from([address(1), address(50), address(51), OURS, neighbour(1)])
LOCATORS = st.one_of(
    st.integers(0, 5).map(locator),
    st.just(IPv6Locator(neighbour(1), TransportProto.IPPROTO_TCP, 7017)),
    st.just(IPv6Locator(address(7), TransportProto.IPPROTO_UDP, 7017)),
)
SOME = st.lists(LOCATORS, min_size=1, max_size=3).map(tuple)
OBJECTIVES = st.builds(
    Objective, NAMES, st.sampled_from([F_NEG, F_SYNCH, F_NEG | F_SYNCH]), st.integers(0, 3), VALUES
)
LIFETIMES = st.sampled_from([0, 1, 5000, 2**32 - 1])
MESSAGES = st.one_of(
    st.builds(Noop),
    st.builds(Discovery, SESSION_IDS, INITIATORS, OBJECTIVES),
    st.builds(Response, SESSION_IDS, INITIATORS, LIFETIMES, SOME),
    st.builds(
        lambda session_id, initiator, ttl, locators: Response(
            session_id, initiator, ttl, divert=Divert(locators)
        ),
        SESSION_IDS,
        INITIATORS,
        LIFETIMES,
        SOME,
    ),
    st.builds(RequestNegotiation, SESSION_IDS, OBJECTIVES),
    st.builds(RequestSynchronization, SESSION_IDS, OBJECTIVES),
    st.builds(Negotiate, SESSION_IDS, OBJECTIVES),
    st.builds(End, SESSION_IDS, st.booleans()),
    st.builds(Wait, SESSION_IDS, LIFETIMES),
    st.builds(Synch, SESSION_IDS, OBJECTIVES),
    st.builds(
        Flood,
        SESSION_IDS,
        INITIATORS,
        LIFETIMES,
        st.lists(st.builds(FloodEntry, OBJECTIVES, st.none() | LOCATORS), min_size=1, max_size=3).map(tuple),
    ),
    st.builds(Invalid, SESSION_IDS, VALUES),
)


class Dice:
    """Stands in for randomness: Session IDs from the few that the messages have."""

    def __init__(self) -> None:
        self.last = 0

    def getrandbits(self, _: int) -> int:
        """Return the next number."""
        self.last += 1
        return self.last


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_whatever_neighbours_and_peers_say(data: st.DataObject) -> None:
    """Well-formed messages in any order, with Session IDs that meet ours; ASAs that answer or do not.

    No exception, every call answered once, everything ends; an M_INVALID answers no M_INVALID, and none
    goes out on a link for what is multicast.
    """
    wire = Wire()
    wire.core._session_ids._random = Dice()  # type: ignore[assignment]
    handle = wire.asa(NEG, SYNCH)
    links, peers = [wire.link(1), wire.link(2)], [wire.peer(), wire.peer(98)]
    calls = [wire.call("listen_negotiate", handle, NEG)]
    wire.call("listen_synchronize", handle, objective("EX2", F_SYNCH, 1))
    for _ in range(data.draw(st.integers(1, 15))):
        match data.draw(st.integers(0, 5)):
            case 0:
                calls.append(wire.call("request_negotiate", handle, NEG, None, 0))
            case 1:
                calls.append(wire.call("synchronize", handle, SYNCH, AsaLocator(locator(5)), 0))
            case 2:
                session = data.draw(SESSION_IDS)
                calls.append(wire.call("negotiate_step", handle, session, NEG, 0))
            case 3:
                while wire.connects:
                    peers.append(wire.connected())
                wire.run(data.draw(st.sampled_from([0.0, 0.2, 2.0])))
            case _:
                on = data.draw(st.sampled_from([*links, *peers]))
                wire.heard(on)
                message = data.draw(MESSAGES)
                wire.say(on, message)
                answers = [answer for answer in wire.heard(on) if isinstance(answer, Invalid)]
                if isinstance(message, Invalid | Noop | Flood | Discovery | Response):
                    assert answers == []
    wire.core.client_gone(2, wire.now)
    while wire.connects:
        wire.lost(wire.connects.popleft().connection)
    wire.run(200)
    wire.run(2**32 / 1000)  # as long as a peer may say that we should wait
    for request in calls[1:]:
        assert wire.code(request) is not None
    status = wire.core.status(wire.now)
    assert status["sessions"] == status["discovered"] == []
    assert len(wire.core._session_ids._active) == len(wire.core._discovery._queries) == 0
