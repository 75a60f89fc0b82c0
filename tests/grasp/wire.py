"""One GRASP engine whose neighbours and peers are made by hand, message by message."""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from ipaddress import IPv6Address
from random import Random
from typing import Any

from minerva.grasp.api import ErrorCode
from minerva.grasp.constants import TransportProto
from minerva.grasp.engine import Answer, FloodTaken, GraspEngine
from minerva.grasp.messages import Discovery, Flood, FloodEntry, Message, decode
from minerva.grasp.options import IPv6Locator, Locator, Objective
from minerva.grasp.session import SessionEnded
from minerva.grasp.stream import MAX_STREAM_MESSAGE
from minerva.grasp.substrate import Close, Connect, Send
from tests.grasp.network import F_SYNCH, address, to_cbor

OURS = IPv6Address("fe80::1")


def neighbour(interface: int) -> IPv6Address:
    """Return the link-local address of the neighbour on a link."""
    return IPv6Address(f"fe80::{0x100 + interface:x}")


class Wire:
    """An engine and all that it has done; ``now`` is its time."""

    def __init__(self, number: int = 1, **options: Any) -> None:
        self.now = 100.0
        self.core = GraspEngine(address(number), random=Random(number), **options)
        self.connects: deque[Connect] = deque()
        self.closes: dict[int, Close] = {}
        self.answers: dict[int, Answer] = {}
        self.floods: list[FloodTaken] = []
        self.ended: list[SessionEnded] = []
        self._sent: defaultdict[int, list[bytes]] = defaultdict(list)
        self._requests = itertools.count(1)

    # --- links and connections ---------------------------------------------------------------------------

    def link(self, interface: int) -> int:
        """Let a channel come up whose other end connects; return the connection."""
        self.core.interface_up(interface, OURS, self.now)
        number = self.core.accepted(neighbour(interface), interface, self.now)
        assert number is not None
        self._take()
        return number

    def peer(self, number: int = 99) -> int:
        """Let a node of the ACP connect; return the connection."""
        connection = self.core.accepted(address(number), None, self.now)
        assert connection is not None
        self._take()
        return connection

    def connected(self) -> int:
        """Let the oldest attempt to connect succeed; return the connection."""
        connection = self.connects.popleft().connection
        self.core.connected(connection, self.now)
        self._take()
        return connection

    def lost(self, connection: int, reason: str = "reset") -> None:
        """Let a connection end."""
        self.core.closed(connection, reason, self.now)
        self._take()

    def say(self, connection: int, *messages: Message | bytes) -> None:
        """Let messages, or bytes, come on a connection."""
        for message in messages:
            data = message if isinstance(message, bytes) else message.encode()
            self.core.received(connection, data, self.now)
        self._take()

    def heard(self, connection: int) -> list[Any]:
        """Return the messages that have gone out on a connection since it was last asked."""
        return [decode(data, max_size=MAX_STREAM_MESSAGE) for data in self._sent.pop(connection, [])]

    # --- time and calls ----------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self._take()
        end = self.now + seconds
        while (when := self.core.next_timer()) is not None and when <= end:
            self.now = max(self.now, when)
            self.core.on_timer(self.now)
            self._take()
        self.now = end

    def call(self, function: str, *arguments: Any, client: int = 1) -> int:
        """Call a function; return the number of the call."""
        request = next(self._requests)
        self.core.call(client, request, function, [to_cbor(item) for item in arguments], self.now)
        self._take()
        return request

    def code(self, request: int) -> ErrorCode | None:
        """Return what a call ended with, ``None`` if it has not ended."""
        answer = self.answers.get(request)
        return None if answer is None else answer.code

    def result(self, request: int) -> Any:
        """Return the result of a call that has succeeded."""
        answer = self.answers[request]
        assert answer.code is ErrorCode.ok, answer
        return answer.result

    def asa(self, *objectives: Objective, name: str = "test", **options: Any) -> int:
        """Register an ASA and its objectives; return its handle."""
        handle = int(self.result(self.call("register_asa", name)))
        values = {"ttl": 60_000, "discoverable": False, "overlap": False, "local": False} | options
        for item in objectives:
            self.result(self.call("register_objective", handle, item, *values.values()))
        return handle

    def _take(self) -> None:
        for action in self.core.actions():
            match action:
                case Connect():
                    self.connects.append(action)
                case Send():
                    self._sent[action.connection].append(action.data)
                case Close():
                    self.closes[action.connection] = action
        while (event := self.core.next_event()) is not None:
            match event:
                case Answer():
                    assert event.request not in self.answers, "answered twice"
                    self.answers[event.request] = event
                case FloodTaken():
                    self.floods.append(event)
                case SessionEnded():
                    self.ended.append(event)


def locator(number: int, port: int = 7017) -> IPv6Locator:
    """Return the locator of the GRASP instance, or a service, of the node with this number."""
    return IPv6Locator(address(number), TransportProto.IPPROTO_TCP, port)


def flood(
    session_id: int,
    initiator: int | IPv6Address = 50,
    *,
    name: str = "EX1",
    value: Any = 1,
    tag: Locator | None = None,
    ttl: int = 60_000,
    loop_count: int = 6,
    flags: Any = F_SYNCH,
) -> Flood:
    """Return a flood of one objective by the node with this number."""
    sender = address(initiator) if isinstance(initiator, int) else initiator
    return Flood(session_id, sender, ttl, (FloodEntry(Objective(name, flags, loop_count, value), tag),))


def discovery(session_id: int, initiator: int = 50, *, name: str = "EX1", loop_count: int = 6) -> Discovery:
    """Return a discovery by the node with this number."""
    return Discovery(session_id, address(initiator), Objective(name, F_SYNCH, loop_count))
