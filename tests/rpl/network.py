"""Networks of RPL nodes on simulated point-to-point channels, and a walker that follows their routes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network
from random import Random
from typing import Any

from minerva.rpl.config import HIGH_SPEED_FACTOR, Preference, RplConfig
from minerva.rpl.engine import RplNode
from minerva.rpl.events import DEFAULT_ROUTE, NextHop, Role, RouteAdded, RouteRemoved
from minerva.sim.kernel import Simulator, Timer
from minerva.sim.link import Attachment, Link, Packet

HOP_LIMIT = 64
STEP = 0.01
"""How finely convergence is measured, in virtual seconds."""

Edge = tuple[int, int]


@dataclass
class Channel:
    """One end of a simulated channel."""

    interface: int
    peer: int
    link: Link
    attachment: Attachment


class Host:
    """A node, its channels, and the routes a kernel would have after all its events."""

    def __init__(self, network: Network, number: int, preference: Preference) -> None:
        self.network = network
        self.number = number
        self.address = IPv6Address("fd89:b714:f3db:0:200:0:6400:0") + 2 * number
        self.prefix = IPv6Network((self.address, 127))
        self.preference = preference
        self.node = self._new_node()
        self.channels: dict[int, Channel] = {}
        self.routes: dict[IPv6Network, NextHop] = {}
        self.events: list[tuple[float, Any]] = []
        self.alive = True
        self._interfaces = itertools.count(1)
        self._timer: Timer | None = None
        self._started = network.now

    def _new_node(self) -> RplNode:
        seed = self.network.simulator.random.random()
        return RplNode(
            self.address, self.prefix, self.preference, random=Random(seed), config=self.network.config
        )

    def restart(self) -> None:
        """Forget everything but the channels, as when only the routing process is started anew.

        Not twice within half a second, which no supervisor does: neighbours take the second start for a
        repetition of the first one's hello.
        """
        if self.network.now - self._started < 0.5:
            return
        self._started = self.network.now
        self.node = self._new_node()
        self.routes.clear()
        for interface, channel in self.channels.items():
            self.node.interface_up(
                interface, channel.attachment.address, self.network.factor, self.network.now
            )
        self.pump()

    def open(self, link: Link, peer: int) -> None:
        """Bring a channel up on this end."""
        interface = next(self._interfaces)
        address = IPv6Address("fe80::") + (self.number << 32) + (peer << 16) + interface
        attachment = link.attach(address, lambda packet: self._receive(interface, packet))
        self.channels[interface] = Channel(interface, peer, link, attachment)
        self.node.interface_up(interface, address, self.network.factor, self.network.now)
        self.pump()

    def close(self, link: Link) -> None:
        """Take the channel down on this end."""
        for interface, channel in list(self.channels.items()):
            if channel.link is link:
                del self.channels[interface]
                link.detach(channel.attachment)
                self.node.interface_down(interface, self.network.now)
        self.pump()

    def _receive(self, interface: int, packet: Packet) -> None:
        if self.alive:
            self.node.receive(interface, packet.data, packet.source, packet.destination, self.network.now)
            self.pump()

    def pump(self) -> None:
        """Send, take events, arm the timer."""
        now = self.network.now
        for datagram in self.node.datagrams_to_send(now):
            channel = self.channels.get(datagram.interface)
            if channel is not None:
                channel.attachment.send(datagram.data, datagram.destination)
        while (event := self.node.next_event()) is not None:
            self.events.append((now, event))
            if isinstance(event, RouteAdded):
                self.routes[event.prefix] = NextHop(event.interface, event.next_hop)
            elif isinstance(event, RouteRemoved):
                removed = self.routes.pop(event.prefix)
                assert removed == NextHop(event.interface, event.next_hop)
        assert self.routes == self.node.routes
        if self._timer is not None:
            self._timer.cancel()
        when = self.node.next_timer()
        self._timer = None if when is None else self.network.simulator.call_at(when, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self.alive:
            self.node.on_timer(self.network.now)
            self.pump()

    def forward(self, destination: IPv6Address) -> Channel | None:
        """The channel to which the longest matching route leads."""
        for length in (128, 127, 120, 112, 64):
            hop = self.routes.get(IPv6Network((destination, length), strict=False))
            if hop is not None:
                return self._channel(hop)
        hop = self.routes.get(DEFAULT_ROUTE)
        return None if hop is None else self._channel(hop)

    def _channel(self, hop: NextHop) -> Channel | None:
        channel = self.channels[hop.interface]
        peer = self.network.hosts[channel.peer]
        known = any(other.attachment.address == hop.address for other in peer.channels.values())
        return channel if known and peer.alive else None


class Network:
    """Hosts by number and the channels between them."""

    def __init__(
        self,
        count: int,
        edges: Iterable[Edge],
        *,
        seed: int = 0,
        preferences: dict[int, Preference] | None = None,
        config: RplConfig | None = None,
        factor: int = HIGH_SPEED_FACTOR,
        up: bool = True,
        **link: Any,
    ) -> None:
        self.simulator = Simulator(seed)
        self.config = config or RplConfig()
        self.factor = factor
        self.link_options = link
        self.links: dict[Edge, Link] = {}
        preferences = preferences or {}
        self.hosts = [Host(self, n, preferences.get(n, Preference.DEFAULT)) for n in range(count)]
        self.edges = [(min(edge), max(edge)) for edge in edges]
        if up:
            for edge in self.edges:
                self.connect(*edge)

    @property
    def now(self) -> float:
        return self.simulator.now

    def run(self, seconds: float) -> None:
        self.simulator.run_until(self.now + seconds)

    def connect(self, one: int, other: int) -> None:
        """A channel comes up, on both ends at once."""
        edge = (min(one, other), max(one, other))
        link = self.links[edge] = Link(self.simulator, **self.link_options)
        self.hosts[one].open(link, other)
        self.hosts[other].open(link, one)

    def cut(self, one: int, other: int) -> None:
        """A channel goes down, and both ends notice."""
        link = self.links.pop((min(one, other), max(one, other)))
        link.up = False
        self.hosts[one].close(link)
        self.hosts[other].close(link)

    def kill(self, number: int) -> None:
        """A node vanishes without a word; its neighbours' IKE notices."""
        self.hosts[number].alive = False
        for edge in list(self.links):
            if number in edge:
                self.cut(*edge)

    def restart(self, number: int) -> None:
        """A node's routing process starts anew while its channels stay up."""
        self.hosts[number].restart()

    def components(self) -> Iterator[set[int]]:
        """The sets of living nodes that are connected."""
        left = {host.number for host in self.hosts if host.alive}
        while left:
            found, todo = set(), [min(left)]
            while todo:
                here = todo.pop()
                found.add(here)
                beside = {n for edge in self.links if here in edge for n in edge if self.hosts[n].alive}
                todo += beside - found - set(todo)
            left -= found
            yield found

    def problem(self) -> str | None:
        """What is wrong with the routes: unreachable, looping, or stale; ``None`` if nothing is."""
        for component in self.components():
            roots = [n for n in component if self.hosts[n].node.role is Role.ROOT]
            if len(roots) != 1:
                return f"{len(roots)} roots {roots} in {sorted(component)}"
            prefixes = {self.hosts[n].prefix for n in component}
            for number in component:
                host = self.hosts[number]
                for prefix in host.routes:
                    if prefix.prefixlen == 127 and prefix not in prefixes:
                        return f"node {number} has a stale route to {prefix}"
                    if prefix.prefixlen == 128 and prefix.network_address != self.hosts[roots[0]].address:
                        return f"node {number} has a stale route to the root {prefix}"
            for target in sorted(component):
                complaint = self._walk_to(target, component)
                if complaint:
                    return complaint
        return None

    def _walk_to(self, target: int, component: set[int]) -> str | None:
        """Follow a packet from everywhere to ``target``; say why one does not arrive, if so."""
        address = self.hosts[target].address
        forward = {number: self.hosts[number].forward(address) for number in component - {target}}
        for source in component:
            path = [source]
            while path[-1] != target:
                channel = forward[path[-1]]
                if channel is None:
                    return f"no route from {source} to {target}: {path}"
                path.append(channel.peer)
                if len(path) > HOP_LIMIT:
                    return f"loop from {source} to {target}: {path[-6:]}"
        return None

    def converge(self, limit: float) -> float:
        """Run until nothing is wrong; return how long that took. Fails after ``limit`` seconds."""
        start = self.now
        while (problem := self.problem()) is not None:
            assert self.now - start < limit, f"after {limit} s: {problem}"
            # Look less often the longer it takes: the walk costs more than the protocol.
            self.run(max(STEP, (self.now - start) / 20))
        return self.now - start

    @property
    def root(self) -> int:
        """The number of the only root."""
        (root,) = [host.number for host in self.hosts if host.alive and host.node.role is Role.ROOT]
        return root

    def messages(self) -> int:
        """How many messages all nodes have sent."""
        return sum(sum(host.node.sent.values()) for host in self.hosts)


def line(count: int) -> list[Edge]:
    return [(n, n + 1) for n in range(count - 1)]


def ring(count: int) -> list[Edge]:
    return [*line(count), (count - 1, 0)]


def star(count: int) -> list[Edge]:
    return [(0, n) for n in range(1, count)]


def tree(branching: int, depth: int) -> tuple[int, list[Edge]]:
    count = sum(branching**level for level in range(depth + 1))
    return count, [((n - 1) // branching, n) for n in range(1, count)]


def mesh(count: int) -> list[Edge]:
    return list(itertools.combinations(range(count), 2))


def random_graph(count: int, extra: int, random: Random) -> list[Edge]:
    """A connected graph: a random tree and ``extra`` more edges."""
    edges = {(random.randrange(n), n) for n in range(1, count)}
    pairs = [pair for pair in mesh(count) if pair not in edges]
    return sorted(edges | set(random.sample(pairs, min(extra, len(pairs)))))
