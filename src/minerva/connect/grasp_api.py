"""The node's end of the API socket: frames of local processes, calls of the GRASP engine.

Each connection is one client of the engine, with a number that is never used again. What clients send is
not trusted further than the socket's permissions go: nothing of it raises here, and what each may have under
way, or leave unread, is bounded. Frames are those of :mod:`minerva.asa.protocol`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from minerva.asa.local_socket import open_local_socket
from minerva.asa.protocol import (
    API_SOCKET,
    TRACE,
    ApiError,
    Event,
    FrameScanner,
    Reply,
    Request,
    TraceRecord,
)
from minerva.connect.budget import TimeBudget
from minerva.grasp.api import ErrorCode
from minerva.grasp.engine import Answer
from minerva.grasp.substrate import Traced

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
MAX_REQUESTS = 256
"""Requests under way per connection."""

MAX_OUTPUT = 1 << 20
"""Bytes that a connection may have left unread when there is more for it; then it is closed."""

MAX_TRACE_OUTPUT = MAX_OUTPUT // 4
"""Bytes unread from which on trace events are dropped: replies matter more."""

TURN_SECONDS = 0.005
SHARE = 1 / 3
"""How long one client may be served at a time, and the part of the process's time for all of them."""

_READ = 4096
"""Bytes taken from a connection at a time, so that one client cannot keep the process to itself."""

_BACKLOG = 2 * MAX_CONNECTIONS

_NO_DESCRIPTORS_PAUSE = 1.0
"""Seconds without accepting when the process is out of descriptors or memory."""


class Engine(Protocol):
    """What this needs of the GRASP engine; it answers each call, at once or later, with an ``Answer``."""

    tracing: bool

    def call(self, client: int, request: int, function: str, arguments: list[Any], now: float) -> None:
        """Do what an ASA of ``client`` asks; the answer carries the number ``request``."""

    def client_gone(self, client: int, now: float) -> None:
        """End all that belongs to ``client``."""


@dataclass(slots=True)
class ApiCounters:
    """What went on at the API socket."""

    connections: int = 0
    refused: int = 0  # more connections than MAX_CONNECTIONS
    requests: int = 0
    too_many_requests: int = 0  # refused, more than MAX_REQUESTS
    malformed: int = 0  # connections closed for it
    slow: int = 0  # connections closed because they did not read
    trace_dropped: int = 0
    too_large: int = 0  # answers that fit into no frame
    unexpected_answers: int = 0


def open_api_socket(run_dir: Path) -> socket.socket:
    """Return a socket that listens as the API socket in ``run_dir``. Raises UsageError."""
    return open_local_socket(run_dir / API_SOCKET, socket.SOCK_STREAM, _BACKLOG)


class _Client:
    """One connection: its socket, what it has under way, and what it has not read yet."""

    def __init__(self, server: ApiServer, number: int, sock: socket.socket) -> None:
        self._server = server
        self._number = number
        self._socket = sock
        self._scanner = FrameScanner(from_node=False)
        self._output = bytearray()
        self._loop = asyncio.get_running_loop()
        self.under_way: set[int] = set()
        self.tracing = False
        self.open = True
        self._frames: Iterator[bytes] = iter(())
        self._listen()

    def _listen(self) -> None:
        if self.open:
            self._loop.add_reader(self._socket, self._readable)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError as error:
            self._server.drop(self._number, f"{error.strerror}")
            return
        if not data:
            self._server.drop(self._number, "it went")
            return
        self._frames = self._scanner.feed(data)
        self._go_on()

    def _go_on(self) -> None:
        """Do what has been asked for, for as long as it is this client's turn."""
        began = time.thread_time()  # of a busy machine, what others take does not count
        try:
            while self.open and (frame := next(self._frames, None)) is not None:
                request = Request.decode(frame)
                if request.id in self.under_way:
                    raise ApiError(f"two requests with the id {request.id}")
                self._server.requested(self._number, self, request)
                if time.thread_time() - began > TURN_SECONDS:
                    break
        except ApiError as error:
            self._server.counters.malformed += 1
            self._server.drop(self._number, str(error))
        self._rest(began)

    def _rest(self, began: float) -> None:
        """Let others have their turn: what is left waits, and so does what is still to be read."""
        spent = time.thread_time() - began
        wait = self._server.budget.spent(spent, self._loop.time())
        if self.open and (wait > 0 or spent > TURN_SECONDS):
            self._loop.remove_reader(self._socket)
            self._loop.call_later(wait, self._after_rest)

    def _after_rest(self) -> None:
        self._listen()
        if self.open:
            self._go_on()

    def send(self, data: bytes) -> bool:
        """Send or keep ``data``; return whether there was room for it."""
        if len(self._output) > MAX_OUTPUT:  # and never mind how much this is: the first may be large
            return False
        waiting = bool(self._output)
        self._output += data
        if not waiting:
            self._writable()
        return True

    @property
    def unread(self) -> int:
        """How many bytes are kept because the client does not read."""
        return len(self._output)

    def _writable(self) -> None:
        try:
            del self._output[: self._socket.send(self._output)]
        except BlockingIOError:
            pass
        except OSError:  # reading will say that it is gone, but there is no use in keeping these
            self._output.clear()
        if self._output:
            self._loop.add_writer(self._socket, self._writable)
        else:
            self._loop.remove_writer(self._socket)

    def close(self) -> None:
        """End the connection."""
        self.open = False
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()


class ApiServer:
    """Serves the listening, non-blocking Unix socket ``sock`` for the ``engine``.

    To be made in a running event loop. ``used`` is called whenever the engine was used: the owner then takes
    the engine's events and passes answers and trace events to :meth:`deliver`. ``name_of`` gives the name of
    an interface, for traces. Closing the server closes the socket.
    """

    def __init__(
        self,
        sock: socket.socket,
        engine: Engine,
        used: Callable[[], None] = lambda: None,
        name_of: Callable[[int], str] = str,
    ) -> None:
        self.counters = ApiCounters()
        self.budget = TimeBudget(SHARE)
        self._socket = sock
        self._engine = engine
        self._used = used
        self._name_of = name_of
        self._numbers = itertools.count(1)
        self._clients: dict[int, _Client] = {}
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        self._listen()

    @property
    def connections(self) -> int:
        """How many processes are connected."""
        return len(self._clients)

    def status(self) -> dict[str, Any]:
        """Return what the API socket's side has to say in ``minerva status``."""
        return {"api_connections": len(self._clients), "api_counters": dataclasses.asdict(self.counters)}

    def deliver(self, event: Answer | Traced) -> None:
        """Pass on an answer or a trace event of the engine."""
        if isinstance(event, Traced):
            self._traced(event)
        else:
            self._answered(event.client, Reply(event.request, event.code, event.result, event.reason))

    def close(self) -> None:
        """End all connections and stop to listen. The engine is told of none: it ends too."""
        if self._socket.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def _listen(self) -> None:
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # the loop would call this again at once, and again
            log.error("GRASP API: accept: %s", error.strerror)
            self._loop.remove_reader(self._socket)
            self._pause = self._loop.call_later(_NO_DESCRIPTORS_PAUSE, self._listen)
            return
        if len(self._clients) >= MAX_CONNECTIONS:
            self.counters.refused += 1
            sock.close()
            return
        sock.setblocking(False)
        self.counters.connections += 1
        number = next(self._numbers)
        self._clients[number] = _Client(self, number, sock)

    def requested(self, number: int, client: _Client, request: Request) -> None:
        """A client asks for something. For :class:`_Client`."""
        self.counters.requests += 1
        # A cancel is let in also then: it is what makes room.
        if len(client.under_way) >= MAX_REQUESTS and request.function != "cancel":
            self.counters.too_many_requests += 1
            reason = f"more than {MAX_REQUESTS} requests are under way on one connection"
            self._send(number, Reply(request.id, ErrorCode.unspec, None, reason))
            return
        if request.function == TRACE:
            self._send(number, self._trace(client, request))
            return
        client.under_way.add(request.id)
        try:
            self._engine.call(number, request.id, request.function, request.arguments, self._loop.time())
        except Exception:
            # A bug of the engine, to be mended there. But whoever hits on it should not wait for ever.
            log.exception("the GRASP engine fails at %r", request.function)
            self._answered(number, Reply(request.id, ErrorCode.unspec, None, "internal error of the node"))
        self._used()

    def _trace(self, client: _Client, request: Request) -> Reply:
        if len(request.arguments) != 1 or not isinstance(request.arguments[0], bool):
            return Reply(request.id, ErrorCode.unspec, None, "trace takes true or false")
        client.tracing = request.arguments[0]
        self._set_tracing()
        return Reply(request.id, ErrorCode.ok)

    def _set_tracing(self) -> None:
        self._engine.tracing = any(client.tracing for client in self._clients.values())

    def _answered(self, number: int, reply: Reply) -> None:
        client = self._clients.get(number)
        if client is None:  # it went while the engine was at it
            return
        if reply.id not in client.under_way:
            self.counters.unexpected_answers += 1  # a cancel came when it had been answered already
            return
        client.under_way.discard(reply.id)
        self._send(number, reply)

    def _send(self, number: int, reply: Reply) -> None:
        try:
            data = reply.encode()
        except ApiError as error:
            self.counters.too_large += 1
            data = Reply(reply.id, ErrorCode.unspec, None, f"the answer cannot be sent: {error}").encode()
        client = self._clients.get(number)
        if client is not None and not client.send(data):
            self.counters.slow += 1
            self.drop(number, "it does not read its answers")

    def _traced(self, event: Traced) -> None:
        where = str(event.peer)
        if event.interface is not None:
            where = f"{self._name_of(event.interface)} {where}"
        record = TraceRecord(time.time(), where, "in" if event.incoming else "out", event.data)
        try:
            data = Event(TRACE, record.to_cbor()).encode()
        except ApiError:
            self.counters.too_large += 1
            return
        for client in self._clients.values():
            if not client.tracing:
                continue
            if client.unread + len(data) > MAX_TRACE_OUTPUT:
                self.counters.trace_dropped += 1
            else:
                client.send(data)

    def drop(self, number: int, why: str) -> None:
        """End the connection of a client and all that it has in the engine."""
        client = self._clients.pop(number, None)
        if client is None:
            return
        log.debug("client %d of the GRASP API: %s", number, why)
        client.close()
        self._set_tracing()
        self._engine.client_gone(number, self._loop.time())
        self._used()
