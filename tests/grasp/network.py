"""GRASP engines on a simulated network, called as processes call them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from ipaddress import IPv6Address
from random import Random
from typing import Any

from minerva.grasp.api import AsaLocator, ErrorCode, TaggedObjective
from minerva.grasp.constants import ObjectiveFlag
from minerva.grasp.engine import Answer, GraspEngine
from minerva.grasp.options import NO_VALUE, Objective
from minerva.sim.kernel import Simulator
from minerva.sim.streams import StreamNetwork, StreamNode

F_DISC, F_NEG, F_SYNCH = ObjectiveFlag.F_DISC, ObjectiveFlag.F_NEG, ObjectiveFlag.F_SYNCH
F_NEG_DRY = ObjectiveFlag.F_NEG_DRY
_REQUESTS = itertools.count(1)


def address(number: int) -> IPv6Address:
    """Return the ACP address of the node with this number."""
    return IPv6Address((0xFD89B714F3DB << 80) + (number << 1))


class Network:
    """Nodes numbered from 0 and channels between them, in virtual time."""

    def __init__(self, size: int = 0, *, seed: int = 1, **options: Any) -> None:
        self.simulator = Simulator(seed)
        self.streams = StreamNetwork(self.simulator, **options)
        self.nodes: list[StreamNode] = []
        self.channels: dict[tuple[int, int], tuple[int, int]] = {}
        for _ in range(size):
            self.add()

    def add(self) -> StreamNode:
        """Add a node without channels."""
        number = len(self.nodes)
        core = GraspEngine(address(number), random=Random(f"{number}"))
        self.nodes.append(self.streams.add(f"n{number}", core))
        return self.nodes[-1]

    def join(self, a: int, b: int) -> None:
        """Make a channel between two nodes."""
        self.channels[a, b] = self.streams.join(self.nodes[a], self.nodes[b])

    def cut(self, a: int, b: int) -> None:
        """End the channel between two nodes."""
        ours, _ = self.channels.pop((a, b))
        self.streams.cut(self.nodes[a], ours)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.simulator.run_until(self.simulator.now + seconds)

    def call(self, node: int, function: str, *arguments: Any, client: int = 1) -> Call:
        """Have a process on ``node`` call a function; arguments as in RFC 8991."""
        request = next(_REQUESTS)
        target = self.nodes[node]
        items = [to_cbor(argument) for argument in arguments]
        target.core.call(client, request, function, items, self.simulator.now)
        self.streams.pump(target)
        return Call(self, target, client, request)

    def asa(self, node: int, name: str = "test", client: int = 1) -> Asa:
        """Register an ASA on a node."""
        return Asa(self, node, self.call(node, "register_asa", name, client=client).result, client)

    def counters(self, node: int) -> dict[str, int]:
        """Return what a node has counted."""
        return self.nodes[node].core.counters


def to_cbor(value: Any) -> Any:
    """Return an argument as the CBOR item that it travels as."""
    if isinstance(value, Objective | AsaLocator | TaggedObjective):
        return value.to_cbor()
    if isinstance(value, list):
        return [to_cbor(item) for item in value]
    return value


class Call:
    """A call that is, or will be, answered."""

    def __init__(self, network: Network, node: StreamNode, client: int, request: int) -> None:
        self._network = network
        self._node = node
        self._key = (client, request)

    @property
    def answer(self) -> Answer | None:
        """The answer, if it has come."""
        found = [
            event
            for _, event in self._node.events
            if isinstance(event, Answer) and (event.client, event.request) == self._key
        ]
        assert len(found) <= 1
        return found[0] if found else None

    @property
    def code(self) -> ErrorCode | None:
        """The error code, ``None`` while there is no answer."""
        return None if self.answer is None else self.answer.code

    @property
    def result(self) -> Any:
        """What a call that succeeded has returned."""
        assert self.answer is not None
        assert self.answer.code is ErrorCode.ok, self.answer
        return self.answer.result


class Asa:
    """An ASA on a node."""

    def __init__(self, network: Network, node: int, handle: int, client: int) -> None:
        self.network = network
        self.node = node
        self.handle = handle
        self.client = client

    def call(self, function: str, *arguments: Any) -> Call:
        """Call a function with this ASA's handle."""
        return self.network.call(self.node, function, self.handle, *arguments, client=self.client)

    def register(self, objective: Objective, **options: Any) -> None:
        """Register an objective."""
        values = {"ttl": 60_000, "discoverable": False, "overlap": False, "local": False} | options
        call = self.call("register_objective", objective, *values.values())
        assert call.code is ErrorCode.ok, call.answer


def line(size: int, **options: Any) -> Network:
    """Return nodes in a line whose links have come up."""
    network = Network(size, **options)
    for number in range(size - 1):
        network.join(number, number + 1)
    network.run(0.1)
    return network


def objective(name: str, flags: ObjectiveFlag, value: Any = NO_VALUE, loop_count: int = 6) -> Objective:
    """Return an objective."""
    return Objective(name, flags, loop_count, value)


def wait_for(network: Network, condition: Callable[[], object], limit: float = 60.0) -> None:
    """Let time pass until ``condition`` holds."""
    assert network.simulator.run_while(lambda: not condition(), limit=network.simulator.now + limit)
