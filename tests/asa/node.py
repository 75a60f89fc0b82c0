"""A node for the tests of its API: the real server on a Unix socket, an engine that does as it is told."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minerva.connect.grasp_api import ApiServer, open_api_socket
from minerva.grasp.api import ErrorCode


@dataclass(frozen=True)
class Answer:
    client: int
    request: int
    code: ErrorCode
    result: Any
    reason: str = ""


@dataclass(frozen=True)
class Traced:
    where: str
    direction: str
    data: bytes


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
