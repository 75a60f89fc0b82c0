"""Nodes for the tests of the API: the real server on a Unix socket, and an engine behind it.

:class:`FakeNode` has an engine that does as it is told, :class:`LoneNode` the real one without neighbours.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from random import Random
from typing import Any

from minerva.connect.grasp_api import ApiServer, open_api_socket
from minerva.grasp.api import ErrorCode
from minerva.grasp.engine import Answer, GraspEngine
from minerva.grasp.substrate import Connect, Traced


@dataclass(frozen=True)
class Call:
    client: int
    request: int
    function: str
    arguments: list[Any]


def _echo(call: Call) -> Any:
    return call.arguments


@dataclass
class FakeEngine:
    """Answers as ``functions`` says: with a result, an :class:`ErrorCode`, or (``Ellipsis``) not yet."""

    functions: dict[str, Callable[[Call], Any]] = field(default_factory=lambda: {"echo": _echo})
    tracing: bool = False
    calls: list[Call] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    events: deque[Answer | Traced] = field(default_factory=deque)
    waiting: dict[tuple[int, int], Call] = field(default_factory=dict)

    def call(self, client: int, request: int, function: str, arguments: list[Any], now: float) -> None:  # noqa: ARG002
        call = Call(client, request, function, arguments)
        self.calls.append(call)
        if function == "cancel":
            if (waiting := self.waiting.pop((client, arguments[0]), None)) is not None:
                self.answer(waiting, ErrorCode.unspec, reason="cancelled")
            self.answer(call)
            return
        if function not in self.functions:
            self.answer(call, ErrorCode.unspec, reason=f"there is no function {function!r}")
            return
        result = self.functions[function](call)
        if result is ...:
            self.waiting[client, request] = call
        elif isinstance(result, ErrorCode):
            self.answer(call, result)
        else:
            self.answer(call, result=result)

    def answer(
        self, call: Call, code: ErrorCode = ErrorCode.ok, result: Any = None, reason: str = ""
    ) -> None:
        self.waiting.pop((call.client, call.request), None)
        self.events.append(Answer(call.client, call.request, code, result, reason))

    def client_gone(self, client: int, now: float) -> None:  # noqa: ARG002
        self.gone.append(client)
        for key in [key for key in self.waiting if key[0] == client]:
            del self.waiting[key]

    def functions_called(self) -> list[str]:
        return [call.function for call in self.calls]


class FakeNode:
    """The engine behind its server."""

    def __init__(self, run_dir: Path) -> None:
        self.engine = FakeEngine()
        self.path = run_dir / "grasp.sock"
        self.server = ApiServer(open_api_socket(run_dir), self.engine, self.pump)

    def pump(self) -> None:
        while self.engine.events:
            self.server.deliver(self.engine.events.popleft())

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop run until the condition holds."""
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.001)

    def raw(self) -> socket.socket:
        """A client without manners, or without the library."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(str(self.path))
        except OSError:
            sock.close()
            raise
        return sock


@asynccontextmanager
async def fake_node(run_dir: Path) -> AsyncIterator[FakeNode]:
    node = FakeNode(run_dir)
    try:
        yield node
    finally:
        node.server.close()
        await asyncio.sleep(0)


ADDRESS = IPv6Address("fd89:b714:f3db::1")


class LoneNode:
    """The GRASP of a node without neighbours."""

    def __init__(self, run_dir: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.engine = GraspEngine(ADDRESS, random=Random(1))
        self.path = run_dir / "grasp.sock"
        self.server = ApiServer(open_api_socket(run_dir), self.engine, self.pump)

    def pump(self) -> None:
        self._refuse()
        while (event := self.engine.next_event()) is not None:
            if isinstance(event, Answer | Traced):
                self.server.deliver(event)
        if self._timer is not None:
            self._timer.cancel()
        when = self.engine.next_timer()
        self._timer = None if when is None else self._loop.call_at(when, self._expire)

    def _refuse(self) -> None:
        """Let every connection to others fail."""
        for action in self.engine.actions():
            if isinstance(action, Connect):
                self._loop.call_soon(self._refused, action.connection)

    def _refused(self, connection: int) -> None:
        self.engine.closed(connection, "there is nobody", self._loop.time())
        self.pump()

    def _expire(self) -> None:
        self.engine.on_timer(self._loop.time())
        self.pump()

    def close(self) -> None:
        self.server.close()
        if self._timer is not None:
            self._timer.cancel()


@asynccontextmanager
async def lone_node(run_dir: Path) -> AsyncIterator[LoneNode]:
    node = LoneNode(run_dir)
    try:
        yield node
    finally:
        node.close()


@contextmanager
def node_in_thread(run_dir: Path) -> Iterator[Path]:
    """A lone node in a thread of its own, for clients that block; gives the path of its socket."""
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with lone_node(run_dir):
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield run_dir / "grasp.sock"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
