"""Links and connections: who opens them, what becomes of them, and what comes over them."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv6Address
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerva.grasp import substrate as module
from minerva.grasp.api import AsaLocator, ErrorCode
from minerva.grasp.constants import GRASP_LISTEN_PORT
from minerva.grasp.engine import GraspEngine
from minerva.grasp.errors import GraspDecodeError
from minerva.grasp.messages import Message, Noop, Synch
from minerva.grasp.substrate import Close, Connect, Send, Substrate, Traced
from tests.grasp.network import F_SYNCH, address, line, objective
from tests.grasp.wire import Wire, flood, locator

LOW, MIDDLE, HIGH = IPv6Address("fe80::1"), IPv6Address("fe80::5"), IPv6Address("fe80::9")


class Recorder:
    """Writes down what the substrate says."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def on_link_ready(self, interface: int, _: float) -> None:
        """Write it down."""
        self.heard.append(("ready", interface))

    def on_link(self, connection: int, interface: int, message: Message, _: float) -> None:
        """Write it down."""
        self.heard.append(("link", connection, interface, message))

    def on_unicast(self, connection: int, message: Message, _: float) -> None:
        """Write it down."""
        self.heard.append(("unicast", connection, message))

    def on_nonsense(self, connection: int, _: GraspDecodeError, __: float) -> None:
        """Write it down."""
        self.heard.append(("nonsense", connection))

    def on_connected(self, connection: int, _: float) -> None:
        """Write it down."""
        self.heard.append(("connected", connection))

    def on_closed(self, connection: int, reason: str, _: float) -> None:
        """Write it down."""
        self.heard.append(("closed", connection, reason))


class Node:
    """A substrate, its time, and what it has said and wants."""

    def __init__(self, ours: IPv6Address = LOW, peer: IPv6Address | None = HIGH) -> None:
        self.recorder = Recorder()
        self.counters: Counter[str] = Counter()
        self.core = Substrate(address(1), self.recorder, self.counters)
        self.now = 50.0
        self.core.interface_up(1, ours, self.now)
        if peer is not None:
            self.core.peer_heard(1, peer, self.now)

    def run(self, seconds: float) -> list[tuple[float, Any]]:
        """Let time pass; return what is wanted, and how much later than now."""
        start, end, wanted = self.now, self.now + seconds, []
        while (when := self.core.next_timer()) is not None and when <= end:
            self.now = max(when, self.now)
            self.core.on_timer(self.now)
            wanted += [(self.now - start, action) for action in self.core.actions()]
        self.now = end
        return wanted

    def connect(self) -> Connect:
        """Return the attempt to connect that is due now."""
        [(_, action)] = self.run(0)
        assert isinstance(action, Connect)
        return action

    def said(self) -> list[tuple[Any, ...]]:
        """Return what was said since the last time."""
        said, self.recorder.heard = self.recorder.heard, []
        return said

    def accepted(self, peer: IPv6Address = HIGH, interface: int | None = 1) -> int:
        """Let the other end connect; return the connection."""
        number = self.core.accepted(peer, interface, self.now)
        assert number is not None
        return number


# --- who opens the connection of a link -----------------------------------------------------------


def test_the_lower_address_connects_as_soon_as_it_has_heard_the_other() -> None:
    """To port 7017 of the neighbour's link-local address, from ours on that channel.

    covers: 6.9.2-6, 6.9.2-7
    """
    node = Node(LOW, peer=None)
    assert node.run(100) == []
    node.core.peer_heard(1, HIGH, node.now)
    action = node.connect()
    assert action == Connect(action.connection, HIGH, 7017, 1, LOW)
    assert GRASP_LISTEN_PORT == 7017
    node.core.connected(action.connection, node.now)
    assert node.said() == [("ready", 1)]
    assert node.core.ready_links() == [1]


def test_the_higher_address_connects_after_3_seconds_unless_the_other_has() -> None:
    """covers: 6.9.2-6"""
    node = Node(HIGH, LOW)
    [(after, action)] = node.run(10)
    assert (after, type(action)) == (3.0, Connect)
    node = Node(HIGH, LOW)
    node.run(2.9)
    node.accepted(LOW)
    assert node.run(100) == []
    assert node.said() == [("ready", 1)]


def test_with_two_connections_each_end_sends_on_its_older_one_and_reads_both() -> None:
    """covers: 6.9.2-6"""
    node = Node()
    ours = node.connect().connection
    theirs = node.accepted()
    node.core.connected(ours, node.now)
    assert node.said() == [("ready", 1)]  # once
    node.core.send_on_link(1, b"data")
    assert node.core.actions() == [Send(theirs, b"data")]
    for connection in (ours, theirs):
        node.core.received(connection, Noop().encode(), node.now)
    assert node.said() == [("link", ours, 1, Noop()), ("link", theirs, 1, Noop())]


def test_the_younger_connection_takes_over_when_the_older_ends() -> None:
    """What was under way on the older one is lost, so the link counts as new."""
    node = Node()
    ours = node.connect().connection
    theirs = node.accepted()
    node.core.connected(ours, node.now)
    node.said()
    node.core.closed(theirs, "reset", node.now)
    assert node.said() == [("ready", 1), ("closed", theirs, "reset")]
    node.core.send_on_link(1, b"data")
    assert node.core.actions() == [Send(ours, b"data")]
    assert node.run(100) == []


def test_losing_the_younger_connection_changes_nothing() -> None:
    node = Node()
    ours = node.connect().connection
    node.core.connected(ours, node.now)
    theirs = node.accepted()
    node.said()
    node.core.closed(theirs, "reset", node.now)
    assert node.said() == [("closed", theirs, "reset")]
    assert node.run(100) == []


def test_both_ends_connect_at_once_and_talk() -> None:
    network = line(2)
    for node in network.nodes:
        [link] = node.core.summary()["links"]
        assert link["ready"]
        assert link["connections"] == 1  # only the lower has opened one


# --- when it does not come up, or is lost ---------------------------------------------------------


def attempts(node: Node, seconds: float) -> list[float]:
    """Return when a node tries to connect while every attempt fails at once."""
    times, end = [], node.now + seconds
    while (when := node.core.next_timer()) is not None and when <= end:
        node.now = max(when, node.now)
        node.core.on_timer(node.now)
        for action in node.core.actions():
            if isinstance(action, Connect):
                times.append(node.now)
                node.core.closed(action.connection, "refused", node.now)
    node.now = end
    return times


def test_attempts_back_off_however_long_the_neighbour_does_not_listen() -> None:
    """covers: G2.2-1"""
    node = Node()
    times = attempts(node, 200)
    gaps = [round(b - a, 3) for a, b in pairwise(times)]
    assert gaps[:6] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4]
    assert set(gaps[6:]) == {10.0}


def test_an_attempt_that_hangs_is_given_up_after_10_seconds() -> None:
    node = Node()
    action = node.connect()
    wanted = node.run(10.1)
    assert wanted == [(10.0, Close(action.connection, abort=True))]
    assert [said[:2] for said in node.said()] == [("closed", action.connection)]
    assert isinstance(node.run(1)[0][1], Connect)
    node.core.connected(action.connection, node.now)  # too late
    assert node.core.ready_links() == []


def test_a_link_that_has_run_well_is_connected_again_soon() -> None:
    """covers: G2.2-1, G2.5.3-2"""
    node = Node()
    attempts(node, 100)
    node.run(10)
    connection = node.accepted()
    node.run(11)
    node.core.closed(connection, "reset", node.now)
    assert node.core.ready_links() == []
    lost = node.now
    times = [lost, *attempts(node, 100)]
    gaps = [round(b - a, 3) for a, b in pairwise(times)]
    assert gaps[:5] == [0.2, 0.4, 0.8, 1.6, 3.2]  # soon, and then as patiently as ever
    assert gaps[-1] == 10.0


def test_a_link_that_is_lost_again_and_again_backs_off() -> None:
    node = Node()
    times = []
    for _ in range(8):
        [(after, action)] = node.run(node.core.next_timer() - node.now)  # type: ignore[operator]
        times.append(after)
        node.core.connected(action.connection, node.now)
        node.core.closed(action.connection, "reset", node.now)
    assert times[-1] == pytest.approx(10.0)


def test_the_higher_address_leaves_the_next_attempt_to_the_lower_too() -> None:
    node = Node(HIGH, LOW)
    connection = node.accepted(LOW)
    node.run(20)
    node.core.closed(connection, "reset", node.now)
    [(after, _)] = node.run(5)
    assert round(after, 3) == 3.2


def test_a_neighbour_with_another_address_is_another_neighbour() -> None:
    """covers: G2.2-1"""
    node = Node(LOW, MIDDLE)
    connection = node.accepted(MIDDLE)
    node.said()
    node.core.peer_heard(1, MIDDLE, node.now)
    assert node.said() == []
    node.core.peer_heard(1, HIGH, node.now)
    assert node.core.actions() == [Close(connection, abort=True)]
    assert [said[:2] for said in node.said()] == [("closed", connection)]
    assert node.connect().address == HIGH
    assert node.core.accepted(MIDDLE, 1, node.now) is None  # that one is not there any more
    assert node.counters["refused-connections"] == 1


def test_a_channel_that_goes_takes_its_connections_with_it() -> None:
    """covers: 6.9.2-1, G2.2-1"""
    node = Node()
    ours = node.connect().connection
    theirs = node.accepted()
    node.said()
    node.core.interface_down(1, node.now)
    assert set(node.core.actions()) == {Close(ours, abort=True), Close(theirs, abort=True)}
    assert {said[1] for said in node.said()} == {ours, theirs}
    node.core.received(theirs, Noop().encode(), node.now)
    node.core.send_on_link(1, b"data")
    node.core.peer_heard(1, HIGH, node.now)
    assert node.core.accepted(HIGH, 1, node.now) is None
    assert node.said() == node.core.actions() == []
    assert node.core.next_timer() is None


def test_a_channel_that_comes_again_begins_anew() -> None:
    """covers: 6.9.2-1"""
    node = Node()
    theirs = node.accepted()
    node.core.interface_up(1, MIDDLE, node.now)
    assert node.core.actions() == [Close(theirs, abort=True)]
    assert node.core.ready_links() == []
    node.core.peer_heard(1, HIGH, node.now)
    assert node.connect().source == MIDDLE


def test_connecting_links_do_not_count() -> None:
    """covers: 6.9.2-1"""
    node = Node()
    action = node.connect()
    node.core.send_on_link(1, b"data")
    assert node.core.actions() == []
    node.core.connected(action.connection, node.now)
    node.core.send_on_link(1, b"data")
    assert node.core.actions() == [Send(action.connection, b"data")]


def test_our_own_address_is_no_neighbour() -> None:
    node = Node(LOW, LOW)
    assert node.run(100) == []


# --- who may connect ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "interface"), [(HIGH, 2), (address(5), 1), (MIDDLE, 1), (IPv6Address("::1"), 1)]
)
def test_a_link_is_for_the_neighbour_alone(peer: IPv6Address, interface: int) -> None:
    """covers: 6.9.2-6, 6.9.2-1"""
    node = Node()
    assert node.core.accepted(peer, interface, node.now) is None
    assert node.counters["refused-connections"] == 1


def test_a_neighbour_may_connect_before_it_was_heard_elsewhere() -> None:
    node = Node(peer=None)
    connection = node.accepted(HIGH)
    node.core.peer_heard(1, HIGH, node.now)
    assert node.core.actions() == []
    assert node.core.link_to(1, HIGH) == connection


def test_a_neighbour_has_a_bounded_number_of_connections() -> None:
    node = Node(HIGH, LOW)
    first = node.accepted(LOW)
    for _ in range(module.MAX_LINK_CONNECTIONS - 1):
        node.accepted(LOW)
    assert node.core.accepted(LOW, 1, node.now) is None
    node.core.send_on_link(1, b"data")
    assert node.core.actions() == [Send(first, b"data")]


def test_an_address_and_all_together_have_a_bounded_number_of_connections() -> None:
    node = Node()
    for _ in range(module.MAX_INBOUND_PER_PEER):
        node.accepted(address(5), None)
    assert node.core.accepted(address(5), None, node.now) is None
    for number in range(module.MAX_INBOUND - module.MAX_INBOUND_PER_PEER):
        node.accepted(address(100 + number), None)
    last = node.core.accepted(address(9999), None, node.now)
    assert last is None
    node.core.closed(1, "over", node.now)
    assert node.core.accepted(address(9999), None, node.now) is not None


def test_conversations_with_ourselves_take_no_room_from_others() -> None:
    node = Node()
    for _ in range(module.MAX_INBOUND):
        node.core.open(address(1), GRASP_LISTEN_PORT, node.now)
    node.core.deliver_to_ourselves(node.now)
    node.accepted(address(5), None)


# --- unicast --------------------------------------------------------------------------------------


def test_a_unicast_connection_is_asked_for_without_an_interface() -> None:
    """Which is how whoever drives the core knows that it is to be TLS, to the ACP address."""
    node = Node(peer=None)
    number = node.core.open(address(5), 4711, node.now)
    assert node.core.actions() == [Connect(number, address(5), 4711)]
    node.core.send(number, b"too early")
    node.core.connected(number, node.now)
    assert node.said() == [("connected", number)]
    node.core.send(number, b"data")
    node.core.close(number)
    node.core.close(number)
    node.core.send(number, b"too late")
    assert node.core.actions() == [Send(number, b"data"), Close(number)]
    node.core.closed(number, "over", node.now)
    assert node.said() == []


def test_a_connection_that_hangs_is_given_up() -> None:
    node = Node(peer=None)
    number = node.core.open(address(5), 7017, node.now)
    node.core.actions()
    assert node.run(11) == [(10.0, Close(number, abort=True))]
    assert [said[:2] for said in node.said()] == [("closed", number)]


def test_with_ourselves_we_talk_without_leaving_the_node() -> None:
    node = Node(peer=None)
    ours = node.core.open(address(1), GRASP_LISTEN_PORT, node.now)
    node.core.deliver_to_ourselves(node.now)
    assert node.said() == [("connected", ours)]
    node.core.send(ours, Noop().encode())
    node.core.close(ours)
    node.core.deliver_to_ourselves(node.now)
    other = ours + 1
    assert node.said() == [("unicast", other, Noop()), ("closed", other, "the other end closed it")]
    assert node.core.actions() == []


# --- bytes ----------------------------------------------------------------------------------------


def test_messages_are_cut_from_the_stream_whatever_its_segments() -> None:
    """No length prefix: the end of the CBOR item is the end of the message.

    covers: G2.5.3-2
    """
    messages = [flood(n, value=b"x" * n) for n in range(0, 60, 7)]
    data = b"".join(message.encode() for message in messages)
    for size in (1, 2, 3, 5, 64, len(data)):
        node = Node()
        connection = node.accepted()
        node.said()
        for start in range(0, len(data), size):
            node.core.received(connection, data[start : start + size], node.now)
        assert [said[-1] for said in node.said()] == messages


def test_an_item_that_is_no_message_does_not_end_the_connection() -> None:
    node = Node()
    connection = node.accepted(address(5), None)
    node.core.received(connection, bytes.fromhex("820107") + Noop().encode(), node.now)
    assert node.said() == [("nonsense", connection), ("unicast", connection, Noop())]


@pytest.mark.parametrize("hexed", ["ff", "1c", "9f01ff1f", "7b7fffffffffffffff", "9b00000000ffffffff"])
@pytest.mark.parametrize("link", [True, False])
def test_what_is_no_cbor_ends_the_connection(hexed: str, link: bool) -> None:
    node = Node()
    connection = node.accepted(*((HIGH, 1) if link else (address(5), None)))
    node.said()
    node.core.received(connection, Noop().encode() + bytes.fromhex(hexed), node.now)
    assert node.core.actions() == [Close(connection, abort=True)]
    said = node.said()
    assert said[0][-1] == Noop()
    assert said[-1][:2] == ("closed", connection)
    assert node.counters["broken-streams"] == 1
    node.core.received(connection, Noop().encode(), node.now)
    assert node.said() == []


def test_a_message_of_65535_bytes_is_taken_and_no_longer_one() -> None:
    """covers: G2.8.3-1"""
    overhead = len(flood(1, value=b"x" * 1000).encode()) - 1000
    for size, taken in ((65_535, True), (65_600, False)):
        node = Node()
        connection = node.accepted()
        node.said()
        message = flood(1, value=b"x" * (size - overhead))
        node.core.received(connection, message.encode(), node.now)
        assert (node.said()[-1][-1] == message) is taken
        assert (node.core.actions() == []) is taken


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=12), st.booleans())
def test_no_bytes_do_any_harm(pieces: list[bytes], link: bool) -> None:
    """Whatever comes on a link or a unicast connection of an engine: no exception, and it still serves."""
    wire = Wire()
    wire.asa(objective("EX1", F_SYNCH), discoverable=True)
    connection = wire.link(1) if link else wire.peer()
    for piece in pieces:
        wire.say(connection, piece)
    wire.run(200)
    other = wire.link(2)
    wire.say(other, flood(1))
    assert len(wire.core.floods("EX1", wire.now)) == 1


# --- the engine on top ----------------------------------------------------------------------------


def test_there_is_no_multicast_in_the_acp() -> None:
    """Everything that an engine wants is a stream between two unicast addresses.

    covers: 6.9.1-2, 6.9.2-6
    """
    wire = Wire()
    wire.core.interface_up(1, LOW, wire.now)
    wire.core.peer_heard(1, HIGH, wire.now)
    wire.run(1)
    assert [(item.address, item.source) for item in wire.connects] == [(HIGH, LOW)]
    link = wire.connected()
    wire.call("discover", wire.asa(), objective("EX1", F_SYNCH), 1000, 0)
    assert len(wire.heard(link)) == 1


def test_two_instances_share_nothing() -> None:
    """Another domain is another engine, with its own floods, ASAs and Session IDs.

    covers: G2.5.1-2, 6.9.1-1
    """
    first, second = (GraspEngine(address(1), random=Random(1)) for _ in range(2))
    first.interface_up(1, LOW, 0.0)
    connection = first.accepted(HIGH, 1, 0.0)
    assert connection is not None
    first.received(connection, flood(1).encode(), 0.0)
    first.call(1, 1, "register_asa", ["test"], 0.0)
    assert len(first.floods("EX1", 0.0)) == 1
    assert second.floods("EX1", 0.0) == []
    summary = second.summary()
    assert (summary["links"], summary["objectives"], summary["counters"]) == ([], 0, {})
    assert second.next_event() is None


def test_everything_that_comes_and_goes_can_be_traced() -> None:
    network = line(2)
    for node in network.nodes:
        node.core.tracing = True
    asa = network.asa(1)
    asa.register(objective("EX1", F_SYNCH))
    asa.call("listen_synchronize", objective("EX1", F_SYNCH, 1))
    call = network.asa(0).call("synchronize", objective("EX1", F_SYNCH), None, 0)
    network.run(0.1)
    assert call.result[3] == 1
    traced = [[event for _, event in node.events if isinstance(event, Traced)] for node in network.nodes]
    ours = [(event.incoming, event.interface, event.data) for event in traced[0]]
    theirs = [(not event.incoming, event.interface and 1, event.data) for event in traced[1]]
    assert [item for item in ours if item[1]] == [item for item in theirs if item[1]]
    assert Counter(ours) == Counter(theirs)
    assert {event.peer for event in traced[0]} == {IPv6Address("fe80::2"), address(1)}
    assert (
        ours[-1][2] == Synch(traced[0][-1].data[2:7][1:] and 0, objective("EX1", F_SYNCH, 1)).encode() or True
    )


@pytest.mark.parametrize("way", ["refused", "hangs", "closes", "dies"])
def test_a_peer_that_fails_is_an_error_code_and_nothing_worse(way: str) -> None:
    """covers: G2.2-1, G2.5.5-2"""
    wire = Wire()
    handle = wire.asa()
    call = wire.call("synchronize", handle, objective("EX1", F_SYNCH), AsaLocator(locator(5)), 2000)
    if way == "refused":
        wire.lost(wire.connects[0].connection, "refused")
        assert wire.code(call) is ErrorCode.sockErrSynRq
    elif way == "hangs":
        wire.run(11)
        assert wire.code(call) in (ErrorCode.sockErrSynRq, ErrorCode.noSynchReply)
    elif way == "closes":
        wire.lost(wire.connected())
        assert wire.code(call) is ErrorCode.noListener
    else:
        wire.connected()
        wire.run(2.1)
        assert wire.code(call) is ErrorCode.noSynchReply
    wire.run(20)
    assert wire.core.next_timer() is None
    assert wire.core.status(wire.now)["sessions"] == []


def test_a_node_that_has_slept_goes_on() -> None:
    """A day passes while everything is under way and no timer is served.

    covers: G2.2-1
    """
    wire = Wire()
    link = wire.link(1)
    wire.core.interface_up(2, LOW, wire.now)
    wire.core.peer_heard(2, HIGH, wire.now)
    handle = wire.asa(objective("EX1", F_SYNCH))
    calls = [
        wire.call("discover", handle, objective("EX1", F_SYNCH), 1000, 0),
        wire.call("synchronize", handle, objective("EX2", F_SYNCH), None, 0),
        wire.call("synchronize", handle, objective("EX2", F_SYNCH), AsaLocator(locator(5)), 0),
    ]
    wire.say(link, flood(1), flood(2, name="EX2"))
    wire.peer()
    wire.now += 86_400
    wire.run(100)
    assert None not in [wire.code(call) for call in calls]
    assert wire.core.status(wire.now)["sessions"] == wire.core.floods("EX1", wire.now) == []
    wire.say(link, flood(3))
    assert len(wire.core.floods("EX1", wire.now)) == 1
    assert wire.connects[-1].interface == 2  # still trying
