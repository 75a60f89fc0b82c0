"""The adjacency core, one input at a time."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv6Address

import pytest

from minerva.adjacency.core import (
    FOLLOWER_PATIENCE,
    IRT,
    MAX_CONNECTIONS,
    MAX_NEIGHBOURS,
    MAX_WANTED,
    MRT,
    STABLE,
    SURPLUS,
    Adjacency,
)
from minerva.adjacency.roles import INITIATION_DELAY, PeerIdentity, Role
from minerva.adjacency.table import (
    TRANSITIONS,
    CheckConnection,
    CloseConnection,
    Event,
    Failure,
    Initiate,
    Neighbour,
    RolesDecided,
    State,
    StateChanged,
    TableFull,
    Trigger,
    Unexpected,
)
from minerva.pki.address import AcpAddress

GLOBAL_ID = bytes.fromhex("89b714f3db")
OWN = AcpAddress.zone(GLOBAL_ID, 1, 100)
LOWER = PeerIdentity("lower@example.com", AcpAddress.zone(GLOBAL_ID, 1, 7), b"DER")
HIGHER = PeerIdentity("higher@example.com", AcpAddress.zone(GLOBAL_ID, 1, 200))
LINK_LOCAL = IPv6Address("fe80::10")
PEER = IPv6Address("fe80::20")
EARLY_PEER = IPv6Address("fe80::1")
METHODS = {"IKEv2": 500}
FOREVER = 1e9


def _node(own: AcpAddress | None = OWN) -> Adjacency:
    core = Adjacency(own)
    core.port_up(1, LINK_LOCAL, 0.0)
    return core


def _events(core: Adjacency) -> list[Event]:
    """Return what the core wants; that a state has changed is asked of the table."""
    events: Iterator[Event] = iter(core.next_event, None)  # type: ignore[arg-type]
    return [event for event in events if not isinstance(event, StateChanged)]


def _row(core: Adjacency, address: IPv6Address = PEER, port: int = 1) -> Neighbour:
    [row] = [row for row in core.neighbours() if (row.port, row.address) == (port, address)]
    return row


def _connected(core: Adjacency, peer: PeerIdentity, now: float = 0.0, connection: str = "c1") -> None:
    """Bring the first connection up, by our initiative."""
    core.heard(1, PEER, METHODS, FOREVER, now)
    core.connected(1, PEER, connection, True, peer, now)
    _events(core)


def test_lower_link_local_initiates_at_once() -> None:
    """The announced port is where to.

    covers: 6.3-1, 6.6-1
    """
    core = _node()
    core.heard(1, PEER, {"DTLS": 9, "IKEv2": 15000, "other": 1}, 210.0, 5.0)
    assert _events(core) == [Initiate(1, PEER, 15000)]
    row = _row(core)
    assert row.state is State.INITIATING
    assert (row.first_heard, row.last_heard, row.expires) == (5.0, 5.0, 210.0)
    core.refreshed(1, PEER, 280.0, 70.0)
    assert (_row(core).last_heard, _row(core).expires) == (70.0, 280.0)


def test_higher_link_local_waits() -> None:
    """It initiates when nothing has come after 2 s."""
    core = _node()
    core.heard(1, EARLY_PEER, METHODS, FOREVER, 5.0)
    assert _events(core) == []
    assert _row(core, EARLY_PEER).state is State.DELAYED
    assert core.next_timer() == _row(core, EARLY_PEER).next_attempt == 5.0 + INITIATION_DELAY
    core.on_timer(6.9)
    assert _events(core) == []
    core.on_timer(7.0)
    assert _events(core) == [Initiate(1, EARLY_PEER, 500)]


def test_a_connection_from_the_peer_makes_ours_unnecessary() -> None:
    """What comes while we wait is taken.

    covers: 6.6-2
    """
    core = _node()
    core.heard(1, EARLY_PEER, METHODS, FOREVER, 5.0)
    core.connected(1, EARLY_PEER, "c1", False, HIGHER, 6.0)
    core.on_timer(100.0)
    assert _events(core) == [RolesDecided(1, EARLY_PEER, Role.FOLLOWER)]
    assert _row(core, EARLY_PEER).state is State.CONNECTED
    assert core.next_timer() is None


def test_no_method_of_ours() -> None:
    """Who speaks nothing that we speak is in the table, but not tried, until it announces more.

    covers: 6.3-1, 6.6-1
    """
    core = _node()
    core.heard(1, PEER, {"DTLS": 684}, FOREVER, 0.0)
    assert _events(core) == []
    assert _row(core).state is State.HEARD
    core.heard(1, PEER, {"DTLS": 684, "IKEv2": 500}, FOREVER, 1.0)
    assert _events(core) == [Initiate(1, PEER, 500)]


def test_table_after_authentication() -> None:
    """Node-ID, interface, link-local and certificate stand in the table.

    covers: 6.3-1
    """
    core = _node()
    _connected(core, LOWER)
    row = _row(core)
    assert row.peer is not None
    assert (row.port, row.address, row.peer.certificate) == (1, PEER, b"DER")
    assert (row.peer.node_id, row.peer.node_name) == (0x10000 | 7 << 1, "lower@example.com")
    assert (row.role, row.connections) == (Role.DECIDER, ("c1",))


def test_back_off() -> None:
    """10, 20, 40 ... 640, 640 seconds after each failed attempt of ours.

    covers: 6.7-2, 6.2.3-5
    """
    core = _node()
    core.heard(1, PEER, METHODS, FOREVER, 0.0)
    now, delays = 0.0, []
    for _ in range(9):
        assert _events(core) == [Initiate(1, PEER, 500)]
        now += 3.0
        core.failed(1, PEER, True, "no answer", None, now)
        assert _row(core).state is State.BACKOFF
        when = core.next_timer()
        assert when is not None
        delays.append(when - now)
        core.on_timer(when - 0.1)
        assert _events(core) == []
        core.on_timer(when)
        now = when
    assert delays == [10, 20, 40, 80, 160, 320, 640, 640, 640]
    assert (IRT, MRT) == (10, 640)


def test_responder_failures_do_not_throttle() -> None:
    """What the peer fails at as initiator is remembered for the operator, and nothing else.

    covers: 6.7-3
    """
    core = _node()
    core.heard(1, EARLY_PEER, METHODS, FOREVER, 0.0)
    for _ in range(50):
        core.failed(1, EARLY_PEER, False, "certificate of another domain", 4, 1.0)
    row = _row(core, EARLY_PEER)
    assert row.failure == Failure(1.0, "certificate of another domain", 4, initiated_by_us=False)
    assert (row.failures, row.state, row.next_attempt) == (0, State.DELAYED, INITIATION_DELAY)
    core.on_timer(2.0)
    assert _events(core) == [Initiate(1, EARLY_PEER, 500)]
    core.failed(1, EARLY_PEER, False, "again", 4, 2.5)
    assert _row(core, EARLY_PEER).state is State.INITIATING
    core.failed(1, EARLY_PEER, True, "no answer", None, 3.0)
    core.failed(1, EARLY_PEER, False, "again", 4, 3.5)
    assert _row(core, EARLY_PEER).next_attempt == 13.0


def test_success_ends_the_back_off() -> None:
    """Once it has lasted; a peer that hangs up at once is throttled on.

    covers: 6.7-2
    """
    core = _node()
    core.heard(1, PEER, METHODS, FOREVER, 0.0)
    core.failed(1, PEER, True, "no answer", None, 0.0)
    core.failed(1, PEER, False, "no answer", None, 0.0)
    core.on_timer(10.0)
    core.failed(1, PEER, True, "no answer", None, 10.0)
    core.on_timer(30.0)
    core.connected(1, PEER, "c1", True, LOWER, 31.0)
    core.closed(1, PEER, "c1", "closed by the peer", True, 32.0)
    assert (_row(core).state, _row(core).next_attempt) == (State.BACKOFF, 72.0)
    core.on_timer(72.0)
    core.connected(1, PEER, "c2", True, LOWER, 73.0)
    _events(core)
    core.closed(1, PEER, "c2", "liveness lost", False, 73.0 + STABLE)
    assert _events(core) == [Initiate(1, PEER, 500)]
    core.failed(1, PEER, True, "no answer", None, 200.0)
    assert _row(core).next_attempt == 210.0


def test_ports_are_independent() -> None:
    """The same address on two ports is two neighbours, and a failure on one does not stop the other.

    covers: 6.6-9, 6.6-10
    """
    core = _node()
    core.port_up(2, LINK_LOCAL, 0.0)
    core.heard(1, PEER, METHODS, FOREVER, 0.0)
    core.heard(2, PEER, METHODS, FOREVER, 0.0)
    assert _events(core) == [Initiate(1, PEER, 500), Initiate(2, PEER, 500)]
    core.failed(1, PEER, True, "no answer", None, 1.0)
    core.connected(2, PEER, "c2", True, HIGHER, 1.0)
    assert _row(core, port=1).peer is None
    core.on_timer(11.0)
    assert Initiate(1, PEER, 500) in _events(core)
    core.connected(1, PEER, "c1", True, LOWER, 12.0)
    assert [(row.port, row.peer) for row in core.neighbours()] == [(1, LOWER), (2, HIGHER)]
    assert _events(core) == [RolesDecided(1, PEER, Role.DECIDER)]


def test_same_node_on_two_ports_keeps_both() -> None:
    """One node over two links has a connection on each.

    covers: 6.13.4-1
    """
    core = _node()
    core.port_up(2, LINK_LOCAL, 0.0)
    core.connected(1, PEER, "c1", False, LOWER, 0.0)
    core.connected(2, EARLY_PEER, "c2", False, LOWER, 0.0)
    assert [row.connections for row in core.neighbours()] == [("c1",), ("c2",)]
    assert not any(isinstance(event, CloseConnection) for event in _events(core))


def test_decider_closes_the_surplus() -> None:
    """It keeps the newest connection, once the peer has answered by it, and decides the roles once.

    covers: 6.6-11, 6.13.4-1
    """
    core = _node()
    core.heard(1, PEER, METHODS, FOREVER, 0.0)
    core.connected(1, PEER, "theirs", False, LOWER, 1.0)
    assert _events(core)[1:] == [RolesDecided(1, PEER, Role.DECIDER)]
    core.connected(1, PEER, "ours", True, LOWER, 1.5)
    assert _events(core) == [CheckConnection("theirs"), CheckConnection("ours")]
    core.answered(1, PEER, "theirs", 1.6)
    assert core.next_timer() is None
    core.answered(1, PEER, "ours", 1.7)
    assert core.next_timer() == 1.7 + SURPLUS
    core.on_timer(1.7 + SURPLUS)
    assert _events(core) == [CloseConnection("theirs", "surplus: another connection to it is kept")]
    assert _row(core).connections == ("ours",)
    core.closed(1, PEER, "theirs", "closed by us", False, 2.8)
    assert _row(core).state is State.CONNECTED
    assert _events(core) == []
    assert core.next_timer() is None


def test_a_new_certificate_is_shown_by_a_further_connection() -> None:
    """Make before break: the old connection is closed when the new one has been answered.

    covers: 6.2.5.2-2
    """
    core = _node()
    core.reauthenticate(1, PEER, 0.5)
    assert _events(core) == []
    _connected(core, LOWER, 1.0, "old")
    core.reauthenticate(1, PEER, 50.0)
    core.reauthenticate(1, PEER, 50.0)
    assert _events(core) == [Initiate(1, PEER, 500)]
    core.failed(1, PEER, True, "no answer", None, 55.0)
    assert (_row(core).state, _row(core).connections) == (State.CONNECTED, ("old",))
    core.reauthenticate(1, PEER, 56.0)
    assert _events(core) == []
    core.reauthenticate(1, PEER, 55.0 + MRT)
    assert _events(core) == [Initiate(1, PEER, 500)]
    core.connected(1, PEER, "new", True, LOWER, 700.0)
    for connection in ("old", "new"):
        core.answered(1, PEER, connection, 700.1)
    core.on_timer(700.1 + SURPLUS)
    assert _events(core)[-1] == CloseConnection("old", "surplus: another connection to it is kept")
    assert (_row(core).state, _row(core).connections) == (State.CONNECTED, ("new",))


def test_what_the_peer_does_not_answer_by_is_replaced() -> None:
    """The old connection of a peer that has restarted ends by itself; the Decider closes nothing.

    covers: 6.13.4-1
    """
    core = _node()
    _connected(core, LOWER, 1.0, "old")
    core.connected(1, PEER, "new", False, LOWER, 9.0)
    core.answered(1, PEER, "new", 9.1)
    assert _events(core) == [CheckConnection("old"), CheckConnection("new")]
    assert core.next_timer() is None
    core.closed(1, PEER, "old", "the peer does not answer", False, 15.0)
    assert _events(core) == []
    assert (_row(core).state, _row(core).connections) == (State.CONNECTED, ("new",))


def test_the_newest_is_not_kept_before_it_has_carried_a_packet() -> None:
    """The end of a handshake may be lost: then what works stays, and the new connection dies.

    covers: 6.6-11
    """
    core = _node()
    _connected(core, LOWER, 1.0, "c1")
    core.connected(1, PEER, "c2", False, LOWER, 2.0)
    core.answered(1, PEER, "c1", 2.1)
    core.connected(1, PEER, "c3", False, LOWER, 3.0)
    for connection in ("c1", "c2"):
        core.answered(1, PEER, connection, 3.1)
    _events(core)
    core.on_timer(3.1 + SURPLUS)
    assert _events(core) == [CloseConnection("c1", "surplus: another connection to it is kept")]
    core.answered(1, PEER, "c3", 5.0)
    core.closed(1, PEER, "c3", "the peer does not answer", False, 5.5)
    assert core.next_timer() is None
    assert _row(core).connections == ("c2",)
    core.answered(1, PEER, "c2", 5.6)
    core.answered(1, PEER, "gone", 5.6)
    assert core.next_timer() is None


@pytest.mark.parametrize("peer", [LOWER, HIGHER])
def test_connections_with_one_neighbour_are_bounded(peer: PeerIdentity) -> None:
    """A member that builds ever more of them has the last ones only, whoever decides."""
    core = _node()
    for number in range(MAX_CONNECTIONS + 3):
        core.connected(1, PEER, number, False, peer, 1.0)
    closed = [event.connection for event in _events(core) if isinstance(event, CloseConnection)]
    assert closed == [0, 1, 2]
    assert _row(core).connections == tuple(range(3, MAX_CONNECTIONS + 3))


def test_follower_keeps_what_it_gets() -> None:
    """It closes nothing, and takes the Decider's closing as normal.

    covers: 6.6-4, 6.6-11
    """
    core = _node()
    _connected(core, HIGHER)
    core.connected(1, PEER, "c2", False, HIGHER, 1.0)
    assert _events(core) == [CheckConnection("c1"), CheckConnection("c2")]
    core.answered(1, PEER, "c1", 1.1)
    core.answered(1, PEER, "c2", 1.1)
    assert core.next_timer() is None
    assert _row(core).connections == ("c1", "c2")
    core.closed(1, PEER, "c1", "closed by the peer", True, 2.0)
    assert _events(core) == []
    assert (_row(core).state, _row(core).connections) == (State.CONNECTED, ("c2",))
    assert _row(core).failure is None


def test_follower_is_passive() -> None:
    """Dismissed by its Decider it does not initiate, whatever the known Decider announces.

    covers: 6.6-4, 6.13.4-1
    """
    core = _node()
    _connected(core, HIGHER)
    core.closed(1, PEER, "c1", "closed by the peer", True, 100.0)
    assert _row(core).state is State.FOLLOWER
    assert _row(core).failure is None
    core.refreshed(1, PEER, FOREVER, 160.0)
    core.heard(1, PEER, {"IKEv2": 4500}, FOREVER, 200.0)
    core.on_timer(100.0 + FOLLOWER_PATIENCE - 1)
    assert _events(core) == []
    core.connected(1, PEER, "c2", False, HIGHER, 750.0)
    assert _row(core).state is State.CONNECTED


def test_follower_wakes_on_a_new_announcement() -> None:
    """A Decider that had expired and is heard again is someone new.

    covers: 6.13.4-1
    """
    core = _node()
    _connected(core, HIGHER)
    core.closed(1, PEER, "c1", "closed by the peer", True, 100.0)
    core.expired(1, PEER, 200.0)
    assert core.neighbours() == []
    core.heard(1, PEER, METHODS, FOREVER, 300.0)
    assert _events(core) == [Initiate(1, PEER, 500)]


def test_follower_that_lost_the_decider_initiates() -> None:
    """Loss of liveness is nobody's decision.

    covers: 6.13.4-1
    """
    core = _node()
    _connected(core, HIGHER)
    core.closed(1, PEER, "c1", "liveness lost", False, 100.0)
    assert _events(core) == [Initiate(1, PEER, 500)]
    assert _row(core).failure == Failure(100.0, "liveness lost", None, initiated_by_us=True)


def test_patience_of_the_follower_ends() -> None:
    """A Decider that cannot hear us would never come back by itself."""
    core = _node()
    _connected(core, HIGHER)
    core.closed(1, PEER, "c1", "closed by the peer", True, 100.0)
    assert core.next_timer() == 100.0 + FOLLOWER_PATIENCE
    core.on_timer(100.0 + FOLLOWER_PATIENCE)
    assert _events(core) == [Initiate(1, PEER, 500)]


def test_attempt_under_way_when_dismissed() -> None:
    """A Follower's attempt that was under way ends its own way: it connects, or the Follower is passive."""
    for succeeds, state in ((True, State.CONNECTED), (False, State.FOLLOWER)):
        core = _node()
        core.heard(1, PEER, METHODS, FOREVER, 0.0)
        core.connected(1, PEER, "theirs", False, HIGHER, 0.5)
        core.closed(1, PEER, "theirs", "closed by the peer", True, 1.0)
        assert _row(core).state is State.INITIATING
        if succeeds:
            core.connected(1, PEER, "ours", True, HIGHER, 1.5)
        else:
            core.failed(1, PEER, True, "no answer", None, 1.5)
        assert _row(core).state is state
        assert not any(isinstance(event, Unexpected) for event in _events(core))


def test_expired_neighbour_is_forgotten() -> None:
    """Unless it is connected, or its attempt is under way, or was a moment ago."""
    core = _node()
    core.heard(1, PEER, METHODS, 210.0, 0.0)
    core.expired(1, PEER, 5.0)
    assert _row(core).state is State.INITIATING
    core.failed(1, PEER, True, "no answer", None, 6.0)
    assert _row(core).state is State.SILENT
    core.heard(1, PEER, METHODS, 210.0, 7.0)
    assert (_row(core).state, _row(core).next_attempt, _row(core).failures) == (State.BACKOFF, 10.0, 0)
    core.expired(1, PEER, 8.0)
    core.on_timer(10.0)
    assert core.neighbours() == []
    assert core.next_timer() is None


def test_expiry_does_not_end_a_connection() -> None:
    """A connection has its own liveness; when it ends and nobody is heard, the neighbour is gone."""
    core = _node()
    _connected(core, LOWER)
    core.expired(1, PEER, 210.0)
    assert (_row(core).state, _row(core).expires) == (State.CONNECTED, None)
    core.closed(1, PEER, "c1", "liveness lost", False, 300.0)
    assert core.neighbours() == []
    assert _events(core) == []


def test_peer_that_was_never_heard() -> None:
    """Who connects without having announced itself is answered all the same.

    covers: 6.6-2
    """
    core = _node()
    core.connected(1, PEER, "c1", False, LOWER, 0.0)
    assert _row(core).state is State.CONNECTED
    core.heard(1, PEER, METHODS, FOREVER, 1.0)
    assert _events(core) == [RolesDecided(1, PEER, Role.DECIDER)]
    core.failed(1, EARLY_PEER, False, "stranger", 2, 1.0)
    assert len(core.neighbours()) == 1


def test_port_down() -> None:
    """Its connections are to be closed, its neighbours are gone, and what is reported late does no harm."""
    core = _node()
    _connected(core, LOWER)
    core.heard(1, EARLY_PEER, METHODS, FOREVER, 0.0)
    core.port_down(1, 1.0)
    assert _events(core) == [CloseConnection("c1", "the port went down")]
    assert core.neighbours() == []
    core.failed(1, EARLY_PEER, True, "no answer", None, 2.0)
    core.closed(1, PEER, "c1", "closed by us", False, 2.0)
    core.expired(1, PEER, 2.0)
    assert _events(core) == []
    core.connected(1, PEER, "c2", False, LOWER, 2.0)
    assert _events(core) == [CloseConnection("c2", "the port went down")]


def test_port_up_with_another_address() -> None:
    """Another address of ours is another port; the same one again is nothing."""
    core = _node()
    _connected(core, LOWER)
    core.port_up(1, LINK_LOCAL, 1.0)
    assert len(core.neighbours()) == 1
    core.port_up(1, IPv6Address("fe80::11"), 2.0)
    assert core.neighbours() == []


def test_ourselves() -> None:
    """Two ports of a node on one link find each other once, and leave it at that."""
    core = _node()
    other = IPv6Address("fe80::30")
    core.port_up(2, other, 0.0)
    core.heard(1, other, METHODS, FOREVER, 0.0)
    core.heard(2, LINK_LOCAL, METHODS, FOREVER, 0.0)
    assert _events(core) == [Initiate(1, other, 500)]
    ourselves = PeerIdentity("own@example.com", OWN)
    core.connected(2, LINK_LOCAL, "in", False, ourselves, 1.0)
    core.connected(1, other, "out", True, ourselves, 1.0)
    reason = "the peer has our own ACP address"
    assert _events(core) == [CloseConnection("in", reason), CloseConnection("out", reason)]
    assert {row.state for row in core.neighbours()} == {State.OURSELVES}
    core.on_timer(10_000.0)
    assert _events(core) == []


def test_selection_is_bounded() -> None:
    """Of more than 64 neighbours, the connected and those that fail least are tried."""
    core = _node()
    for number in range(MAX_NEIGHBOURS + 1):
        core.heard(1, IPv6Address(f"fe80::1:{number:x}"), METHODS, FOREVER, float(number))
    events = _events(core)
    assert sum(isinstance(event, Initiate) for event in events) == MAX_WANTED
    assert [event for event in events if isinstance(event, TableFull)] == [
        TableFull(1, IPv6Address(f"fe80::1:{MAX_NEIGHBOURS:x}"))
    ]
    first = IPv6Address("fe80::1:0")
    core.failed(1, first, True, "no answer", None, 300.0)
    assert first not in core.wanted(1)
    assert _events(core) == [Initiate(1, IPv6Address(f"fe80::1:{MAX_WANTED:x}"), 500)]
    last = IPv6Address(f"fe80::1:{MAX_NEIGHBOURS - 1:x}")
    core.connected(1, last, "c", False, LOWER, 301.0)
    assert last in core.wanted(1)
    assert len(core.wanted(1)) == MAX_WANTED


def test_attempts_are_bounded() -> None:
    """Announcers that come and go start no more attempts than those that stay."""
    core = _node()
    attempts = 0
    for number in range(2000):
        address = IPv6Address(f"fe80::1:{number:x}")
        core.heard(1, address, METHODS, FOREVER, number / 100)
        attempts += sum(isinstance(event, Initiate) for event in _events(core))
        core.expired(1, address, number / 100)
    assert attempts == MAX_WANTED
    assert len(core.neighbours()) == MAX_WANTED


def test_another_node_at_the_same_address() -> None:
    """Who is at an address is what its last certificate says, and so are the roles.

    covers: 6.6-9
    """
    core = _node()
    _connected(core, LOWER)
    core.connected(1, PEER, "c2", False, HIGHER, 1.0)
    assert _events(core)[0] == RolesDecided(1, PEER, Role.FOLLOWER)
    assert _row(core).peer == HIGHER


def test_own_address_zero() -> None:
    """A node whose certificate holds "0" follows one with an address.

    covers: 6.6-6
    """
    core = _node(own=None)
    core.connected(1, PEER, "c1", False, LOWER, 0.0)
    assert _events(core) == [RolesDecided(1, PEER, Role.FOLLOWER)]


def test_the_impossible_is_reported() -> None:
    """Defects of whoever drives the core come out as events."""
    core = _node()
    core.heard(9, PEER, METHODS, FOREVER, 0.0)
    assert _events(core) == [Unexpected(9, PEER, "heard on a port that is not up")]
    core.heard(1, EARLY_PEER, METHODS, FOREVER, 0.0)
    core.failed(1, EARLY_PEER, True, "?", None, 0.0)
    [event] = _events(core)
    assert isinstance(event, Unexpected)
    core.connected(1, PEER, "c1", False, LOWER, 0.0)
    _events(core)
    core.connected(1, PEER, "c1", False, LOWER, 0.0)
    [event] = _events(core)
    assert isinstance(event, Unexpected)
    assert "twice" in event.what


@pytest.mark.parametrize("state", State)
def test_transition_table(state: State) -> None:
    """From every state an authenticated connection leads to CONNECTED, and every state can be reached."""
    assert TRANSITIONS[state, Trigger.CONNECTED] is State.CONNECTED
    assert state in TRANSITIONS.values()


def test_transitions_can_be_seen() -> None:
    """Every change of state is an event with its reason."""
    core = _node()
    core.heard(1, PEER, METHODS, FOREVER, 0.0)
    core.failed(1, PEER, True, "no answer", None, 1.0)
    events: Iterator[Event] = iter(core.next_event, None)  # type: ignore[arg-type]
    changes = [(e.old, e.new, e.reason) for e in events if isinstance(e, StateChanged)]
    assert changes == [
        (State.SILENT, State.HEARD, "heard"),
        (State.HEARD, State.DELAYED, "selected"),
        (State.DELAYED, State.INITIATING, "time to initiate"),
        (State.INITIATING, State.BACKOFF, "no answer"),
    ]
