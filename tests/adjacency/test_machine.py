"""Any order of what can happen to an adjacency core leaves it in order."""

from __future__ import annotations

from ipaddress import IPv6Address

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from minerva.adjacency.core import MAX_CONNECTIONS, SURPLUS, Adjacency
from minerva.adjacency.roles import PeerIdentity, Role
from minerva.adjacency.table import CheckConnection, CloseConnection, Initiate, State, Unexpected
from minerva.pki.address import AcpAddress

GLOBAL_ID = bytes.fromhex("89b714f3db")
OWN = AcpAddress.zone(GLOBAL_ID, 1, 50)
PORTS = st.integers(1, 2)
ADDRESSES = st.sampled_from([IPv6Address(f"fe80::{number}") for number in (1, 2, 8, 9)])
PEERS = st.sampled_from(
    [None, *(AcpAddress.zone(GLOBAL_ID, 1, number) for number in (1, 50, 99))],
).map(lambda address: PeerIdentity("peer@example.com", address))
METHODS = st.sampled_from([{"IKEv2": 500}, {"IKEv2": 4500, "x": 1}, {"DTLS": 1}])


class AdjacencyMachine(RuleBasedStateMachine):
    """Drives a core as the daemon would: attempts end once, connections close once."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Adjacency(OWN)
        self.now = 0.0
        self.ports: set[int] = set()
        self.heard: set[tuple[int, IPv6Address]] = set()
        self.attempts: list[tuple[int, IPv6Address]] = []
        self.connections: dict[int, tuple[int, IPv6Address]] = {}
        self.asked: set[int] = set()
        self.quiet_since = 0.0
        self.count = 0

    def _act(self) -> None:
        while (event := self.core.next_event()) is not None:
            assert not isinstance(event, Unexpected), event
            if isinstance(event, Initiate):
                assert (event.port, event.address) not in self.attempts
                self.attempts.append((event.port, event.address))
            elif isinstance(event, CheckConnection):
                assert isinstance(event.connection, int)
                assert event.connection in self.connections
                self.asked.add(event.connection)
                self.quiet_since = self.now
            elif isinstance(event, CloseConnection):
                assert isinstance(event.connection, int)
                del self.connections[event.connection]
                self.asked.discard(event.connection)

    @rule(port=PORTS)
    def port_up(self, port: int) -> None:
        self.ports.add(port)
        self.core.port_up(port, IPv6Address("fe80::5"), self.now)
        self._act()

    @rule(port=PORTS)
    def port_down(self, port: int) -> None:
        self.ports.discard(port)
        self.heard = {key for key in self.heard if key[0] != port}
        self.attempts = [key for key in self.attempts if key[0] != port]
        self.core.port_down(port, self.now)
        self._act()

    @rule(port=PORTS, address=ADDRESSES, methods=METHODS)
    def hear(self, port: int, address: IPv6Address, methods: dict[str, int]) -> None:
        if port in self.ports:
            self.heard.add((port, address))
            self.core.heard(port, address, methods, self.now + 210, self.now)
            self._act()

    @rule(pick=st.integers(0, 20))
    def expire(self, pick: int) -> None:
        if self.heard:
            key = sorted(self.heard)[pick % len(self.heard)]
            self.heard.discard(key)
            self.core.expired(*key, self.now)
            self._act()

    @rule(pick=st.integers(0, 20), peer=PEERS, succeeds=st.booleans())
    def end_attempt(self, pick: int, peer: PeerIdentity, succeeds: bool) -> None:
        if not self.attempts:
            return
        key = self.attempts.pop(pick % len(self.attempts))
        if succeeds:
            self._connect(key, peer, True)
        else:
            self.core.failed(*key, True, "no answer", None, self.now)
            self._act()

    @rule(port=PORTS, address=ADDRESSES, peer=PEERS)
    def incoming(self, port: int, address: IPv6Address, peer: PeerIdentity) -> None:
        self._connect((port, address), peer, False)

    def _connect(self, key: tuple[int, IPv6Address], peer: PeerIdentity, initiated_by_us: bool) -> None:
        self.count += 1
        self.connections[self.count] = key
        self.core.connected(*key, self.count, initiated_by_us, peer, self.now)
        self._act()

    @rule(port=PORTS, address=ADDRESSES)
    def incoming_fails(self, port: int, address: IPv6Address) -> None:
        before = [(row.state, row.next_attempt, row.failures) for row in self.core.neighbours()]
        self.core.failed(port, address, False, "not a member", 4, self.now)
        after = [(row.state, row.next_attempt, row.failures) for row in self.core.neighbours()]
        assert after == before
        self._act()

    @rule(pick=st.integers(0, 20), by_peer=st.booleans())
    def close(self, pick: int, by_peer: bool) -> None:
        if self.connections:
            connection = list(self.connections)[pick % len(self.connections)]
            key = self.connections.pop(connection)
            self.asked.discard(connection)
            self.core.closed(*key, connection, "closed", by_peer, self.now)
            self._act()

    @rule(port=PORTS, address=ADDRESSES)
    def renew(self, port: int, address: IPv6Address) -> None:
        self.core.reauthenticate(port, address, self.now)
        self._act()

    @rule(pick=st.integers(0, 20))
    def answer(self, pick: int) -> None:
        if self.asked:
            connection = sorted(self.asked)[pick % len(self.asked)]
            self.asked.discard(connection)
            self.quiet_since = self.now
            self.core.answered(*self.connections[connection], connection, self.now)
            self._act()

    @rule(seconds=st.sampled_from([0.1, 2.0, 9.0, 60.0, 700.0]))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (when := self.core.next_timer()) is not None and when <= end:
            assert when >= self.now
            self.now = when
            self.core.on_timer(when)
            self._act()
        self.now = end

    @invariant()
    def books_agree(self) -> None:
        rows = {(row.port, row.address): row for row in self.core.neighbours()}
        assert {c for row in rows.values() for c in row.connections} == set(self.connections)
        for key, row in rows.items():
            assert bool(row.connections) is (row.state is State.CONNECTED)
            assert (row.expires is not None) is (key in self.heard)
            assert (row.next_attempt is not None) is (
                row.state in (State.DELAYED, State.BACKOFF, State.FOLLOWER)
            )
            if row.state is State.INITIATING:
                assert key in self.attempts
            assert len(row.connections) <= MAX_CONNECTIONS
            unanswered = self.asked & set(row.connections)
            if row.role is Role.DECIDER and not unanswered and self.now >= self.quiet_since + SURPLUS:
                assert len(row.connections) <= 1

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """Whoever is heard and speaks our method is connected, tried, or has its time."""
        for row in self.core.neighbours():
            if row.expires is not None and "IKEv2" in row.methods:
                assert row.state not in (State.HEARD, State.SILENT)


TestAdjacencyMachine = AdjacencyMachine.TestCase
TestAdjacencyMachine.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, derandomize=True
)
