"""Drives cores that talk over streams, such as GRASP's, on a simulated network of channels.

Every connection is reliable and in order, as TCP is, takes ``delay`` seconds each way, and ends at both ends
when a channel or a node goes. How the bytes are cut into segments is up to ``segment``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any

from minerva.grasp.engine import GraspEngine
from minerva.grasp.substrate import Close, Connect, Send
from minerva.sim.kernel import Simulator, Timer


@dataclass(slots=True, eq=False)
class _End:
    """One end of a connection: the core's number for it, ``None`` before the core knows of it."""

    node: StreamNode
    number: int | None
    other: _End | None = None
    interface: int | None = None
    open: bool = True


@dataclass(slots=True)
class StreamNode:
    """A core on the network; ``events`` is all that it has said, with the time."""

    name: str
    core: GraspEngine
    neighbours: dict[int, tuple[StreamNode, int]] = field(default_factory=dict)
    ends: dict[int, _End] = field(default_factory=dict)
    events: list[tuple[float, Any]] = field(default_factory=list)
    timer: Timer | None = None
    alive: bool = True


class StreamNetwork:
    """Nodes, the channels between them, and the connections that their cores open."""

    def __init__(
        self,
        simulator: Simulator,
        *,
        delay: float = 0.001,
        segment: Callable[[bytes], list[bytes]] = lambda data: [data],
    ) -> None:
        self.simulator = simulator
        self.delay = delay
        self.segment = segment
        self.nodes: dict[IPv6Address, StreamNode] = {}
        self.messages = 0
        self.bytes = 0
        self._interfaces = 0

    def add(self, name: str, core: GraspEngine) -> StreamNode:
        """Add a node."""
        node = StreamNode(name, core)
        self.nodes[core.address] = node
        return node

    def join(self, a: StreamNode, b: StreamNode) -> tuple[int, int]:
        """Make a channel between two nodes; return its interface at each."""
        self._interfaces += 2
        ours, theirs = self._interfaces - 1, self._interfaces
        a.neighbours[ours], b.neighbours[theirs] = (b, theirs), (a, ours)
        now = self.simulator.now
        for node, interface in ((a, ours), (b, theirs)):
            node.core.interface_up(interface, link_local(interface), now)
        for node, interface, peer in ((a, ours, theirs), (b, theirs, ours)):
            node.core.peer_heard(interface, link_local(peer), now)
            self.pump(node)
        return ours, theirs

    def cut(self, a: StreamNode, interface: int) -> None:
        """End a channel; both ends learn of it at once."""
        b, theirs = a.neighbours.pop(interface)
        del b.neighbours[theirs]
        for node, number in ((a, interface), (b, theirs)):
            for end in [end for end in node.ends.values() if end.interface == number]:
                self._forget(end)
            node.core.interface_down(number, self.simulator.now)
            self.pump(node)

    def kill(self, node: StreamNode) -> None:
        """Let a node vanish: its neighbours learn by their channels, its other peers by their connections."""
        node.alive = False
        for interface in list(node.neighbours):
            self.cut(node, interface)
        for end in list(node.ends.values()):
            self._forget(end)
            self._later(lambda end=end: self._tell_closed(end.other, "the peer is gone"))  # type: ignore[misc]
        del self.nodes[node.core.address]

    def pump(self, node: StreamNode) -> None:
        """Carry out what a core wants, take its events, and arm its timer."""
        if not node.alive:
            return
        for action in node.core.actions():
            match action:
                case Connect():
                    self._connect(node, action)
                case Send():
                    self._send(node.ends[action.connection], action.data)
                case Close():
                    self._close(node.ends.get(action.connection))
        while (event := node.core.next_event()) is not None:
            node.events.append((self.simulator.now, event))
        when = node.core.next_timer()
        if node.timer is not None:
            if node.timer.when == when:
                return
            node.timer.cancel()
        node.timer = None if when is None else self.simulator.call_at(when, lambda: self._expire(node))

    def _expire(self, node: StreamNode) -> None:
        node.timer = None
        if node.alive:
            node.core.on_timer(self.simulator.now)
            self.pump(node)

    def _later(self, do: Callable[[], None]) -> None:
        self.simulator.call_later(self.delay, do)

    def _connect(self, node: StreamNode, action: Connect) -> None:
        ours = _End(node, action.connection, interface=action.interface)
        node.ends[action.connection] = ours
        if action.interface is None:
            peer, interface = self.nodes.get(action.address), None
        else:
            peer, interface = node.neighbours.get(action.interface, (None, None))

        def arrive() -> None:
            if peer is None or not peer.alive or not ours.open:
                self._tell_closed(ours, "no route")
                return
            source = node.core.address if interface is None else action.source
            assert source is not None
            number = peer.core.accepted(source, interface, self.simulator.now)
            if number is None:
                self._later(lambda: self._tell_closed(ours, "refused"))
            else:
                theirs = _End(peer, number, ours, interface)
                ours.other = theirs
                peer.ends[number] = theirs
                self._later(connected)
            self.pump(peer)

        def connected() -> None:
            if ours.open and node.alive:
                node.core.connected(action.connection, self.simulator.now)
                self.pump(node)

        self._later(arrive)

    def _send(self, end: _End, data: bytes) -> None:
        self.messages += 1
        self.bytes += len(data)
        for piece in self.segment(data):
            self._later(lambda piece=piece: self._deliver(end.other, piece))  # type: ignore[misc]

    def _deliver(self, end: _End | None, data: bytes) -> None:
        if end is not None and end.open and end.node.alive and end.number is not None:
            end.node.core.received(end.number, data, self.simulator.now)
            self.pump(end.node)

    def _close(self, end: _End | None) -> None:
        if end is not None:
            self._forget(end)
            self._later(lambda: self._tell_closed(end.other, "the peer closed the connection"))

    def _tell_closed(self, end: _End | None, reason: str) -> None:
        if end is not None and end.open and end.node.alive:
            self._forget(end)
            assert end.number is not None
            end.node.core.closed(end.number, reason, self.simulator.now)
            self.pump(end.node)

    @staticmethod
    def _forget(end: _End) -> None:
        end.open = False
        if end.number is not None:
            end.node.ends.pop(end.number, None)


def link_local(interface: int) -> IPv6Address:
    """Return the link-local address of an interface of the simulated network."""
    return IPv6Address((0xFE80 << 112) + interface)
