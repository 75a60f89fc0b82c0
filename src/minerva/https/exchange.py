"""One connection of an HTTP server: requests come by h11 and are answered by an ASGI application.

A request is handed over when all of it is there: none here is large, and the application never has to wait
for a slow client. Every wait has a limit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

import h11
from cryptography import x509

from minerva.https.errors import HttpError, HttpTimeout, HttpUsageError
from minerva.https.lifespan import Application, Message, Scope
from minerva.https.stream import TcpStream, TlsStream

log = logging.getLogger(__name__)

_TLS: Final = "minerva.tls"
_LINGER_BYTES: Final = 1_048_576
_HEAD_BYTES: Final = 16_384  # what is read at a time, so that the library notices a header that is too long


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may cost. Times are in seconds, sizes in bytes."""

    connections: int = 512
    """How many connections there may be; of those that are idle the oldest gives way to a new one."""
    connections_per_peer: int = 128
    """How many of them one address may have. All pledges behind a join proxy have the proxy's."""
    handshake: float = 10.0
    """From the connection until TLS is ready."""
    head: float = 10.0
    """From the first byte of a request (of the first one: from the handshake) to the end of its header."""
    body: float = 20.0
    """From there to the end of the request."""
    answer: float = 120.0
    """From there until the application has answered."""
    write: float = 20.0
    """For the client to take a piece of the answer."""
    idle: float = 75.0
    """From an answer to the next request."""
    linger: float = 2.0
    """For the client to take note of our closing, so that an answer given early is not lost."""
    shutdown: float = 10.0
    """For all that is under way when the server ends."""
    body_size: int = 65_536
    headers: int = 100
    """How many fields the header of a request may have."""


@dataclass(frozen=True, slots=True)
class TlsFacts:
    """What is known of the client from TLS."""

    chain: tuple[x509.Certificate, ...]
    version: str


def client_chain(scope: Scope) -> tuple[x509.Certificate, ...]:
    """Return the certificates that the client of a request sent, its own first; ``()`` if it sent none.

    It has proved that it owns the key of the first. Nothing else about them has been checked.
    """
    facts: TlsFacts | None = scope.get(_TLS)
    return facts.chain if facts else ()


def tls_version(scope: Scope) -> str | None:
    """Return ``TLSv1.3`` or ``TLSv1.2``, or ``None`` for a request in the clear."""
    facts: TlsFacts | None = scope.get(_TLS)
    return facts.version if facts else None


class _Refused(Exception):
    """The request is not handed over, and the connection ends with this status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Gone(Exception):
    """The client has closed the connection, or is taken for gone."""


class ServerConnection:
    """Serves one client over ``stream`` until either has had enough.

    ``idle`` says whether no request is under way, and ``answering`` whether one is there as a whole;
    ``since`` is when the connection became idle, or when the request began to come. ``closing`` may be set to
    end after the present one.
    """

    def __init__(
        self,
        app: Application,
        stream: TcpStream | TlsStream,
        *,
        limits: Limits,
        client: tuple[str, int],
        server: tuple[str, int],
        state: dict[str, Any],
    ) -> None:
        self.idle = True
        self.answering = False
        self.since = time.monotonic()
        self.closing = False
        self._app = app
        self._stream = stream
        self._limits = limits
        self._client = client
        self._server = server
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._transport = stream.transport if isinstance(stream, TlsStream) else stream
        self._tls: TlsFacts | None = None
        if isinstance(stream, TlsStream):
            self._tls = TlsFacts(stream.peer_chain, stream.connection.version or "")
        self._is_head = False
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)

    async def run(self) -> None:
        """Serve until the end. The stream is the caller's to close. Never raises but for cancellation."""
        try:
            wait = self._limits.head
            while await self._exchange(wait) and not self.closing:
                self._http.start_next_cycle()
                wait = self._limits.idle
        except (_Gone, HttpError) as error:
            log.debug("%s: %s", self._client[0], error)
            return
        await self._linger()

    async def _exchange(self, wait: float) -> bool:
        """Serve one request, for which to ``wait``; return whether another may follow."""
        self._is_head = False
        try:
            request = await self._head(wait)
            self._is_head = request.method == b"HEAD"
            self.idle, self.since = False, time.monotonic()
            body = await self._body(request)
            exchange = _Exchange(self, request, body)
        except _Refused as refused:
            await self._refuse(refused.status, str(refused))
            return False
        self.answering = True
        finished = await self._answer(exchange)
        self.idle, self.answering, self.since = True, False, time.monotonic()
        return finished and self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    # --- what comes ---

    async def _head(self, wait: float) -> h11.Request:
        event = self._next_event()
        if event is h11.NEED_DATA:
            # An idle connection that comes to its end is no error.
            self._expect(wait)
            await self._hear()
            event = self._next_event()
        self._expect(self._limits.head)
        try:
            while event is h11.NEED_DATA:
                await self._hear()
                event = self._next_event()
        except HttpTimeout:
            raise _Refused(408, "the header of the request took too long") from None
        if not isinstance(event, h11.Request):
            raise _Gone("the client closed the connection")
        if len(event.headers) > self._limits.headers:
            raise _Refused(431, f"more than {self._limits.headers} header fields")
        return event

    async def _body(self, request: h11.Request) -> bytes:
        limit = self._limits.body_size
        too_large = _Refused(413, f"the request is larger than {limit} bytes")
        for name, value in request.headers:
            if name == b"content-length" and int(value) > limit:
                raise too_large
        if self._http.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            await self.write(self._http.send(go_on) or b"")
        body = bytearray()
        self._expect(self._limits.body)
        try:
            while not isinstance(event := self._next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    await self._hear()
                elif isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > limit:
                        raise too_large
                else:
                    raise _Gone("the client closed the connection in the middle of a request")
        except HttpTimeout:
            raise _Refused(408, "the body of the request took too long") from None
        return bytes(body)

    def _expect(self, seconds: float) -> None:
        """Begin to wait for the client, for so long."""
        self._transport.deadline = self._loop.time() + seconds

    async def _hear(self) -> None:
        self._http.receive_data(await self._stream.read(_HEAD_BYTES))

    def _next_event(self) -> Any:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            if self._http.trailing_data[1]:
                raise _Gone("the client closed the connection in the middle of a request") from error
            raise _Refused(error.error_status_hint, f"not a request of HTTP: {error}") from error

    # --- what goes ---

    async def _answer(self, exchange: _Exchange) -> bool:
        """Let the application answer; return whether it has done so in full."""
        timer = asyncio.timeout(self._limits.answer)
        try:
            async with timer:
                await self._app(exchange.scope, exchange.receive, exchange.send)
            if exchange.complete:
                return True
            log.error("the application gave no whole answer to %s", exchange)
        except Exception as error:
            if exchange.failed:
                raise _Gone("the client did not take the answer") from error
            if timer.expired() and isinstance(error, TimeoutError):
                log.error("the application took more than %g s for %s", self._limits.answer, exchange)
            else:
                log.exception("the application failed at %s", exchange)
        finally:
            exchange.over.set()
        await self._refuse(500, "the server failed at this request; its log says why")
        return False

    async def _refuse(self, status: int, reason: str) -> None:
        """Answer in place of the application, if it is not too late, and for the last time here."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            raise _Gone("the answer ends in the middle")
        text = (reason + "\n").encode("utf-8", "replace")
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(text))),
            ("Connection", "close"),
        ]
        data = self.respond(status, [(name.encode(), value.encode()) for name, value in headers])
        if not self._is_head:
            data += self.body(text, more=True)
        await self.write(data)

    def respond(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Return the bytes of the header of an answer."""
        fields = list(headers)
        names = {name.lower() for name, _ in fields}
        if b"date" not in names:
            fields.append((b"Date", _date(int(time.time()))))
        if self.closing and b"connection" not in names:
            fields.append((b"Connection", b"close"))
        response = h11.Response(status_code=status, headers=fields, reason=_phrase(status))
        return self._http.send(response) or b""

    def body(self, data: bytes, *, more: bool) -> bytes:
        """Return the bytes of a piece of an answer's body."""
        out = b""
        if data:
            out = self._http.send(h11.Data(data=data)) or b""
        if not more:
            out += self._http.send(h11.EndOfMessage()) or b""
        return out

    async def write(self, data: bytes) -> None:
        """Send bytes of an answer, within the time that the client has to take them."""
        self._expect(self._limits.write)
        await self._stream.write(data)

    async def _linger(self) -> None:
        """Say that nothing more comes, and wait until the client has noticed.

        To close at once while it still sends would make its system throw our answer away.
        """
        if isinstance(self._stream, TlsStream):
            await self._stream.say_goodbye()
        self._transport.shutdown()
        self._expect(self._limits.linger)
        left = _LINGER_BYTES
        with suppress(HttpError):
            while left > 0 and self._loop.time() < (self._transport.deadline or 0):
                data = await self._transport.read()
                if not data:
                    return
                left -= len(data)


class _Exchange:
    """A request and its answer, as the application sees them (ASGI HTTP 2.4)."""

    def __init__(self, connection: ServerConnection, request: h11.Request, body: bytes) -> None:
        target = request.target
        if not target.startswith(b"/"):
            target = _origin_form(target)
        path, _, query = target.partition(b"?")
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": request.http_version.decode("ascii"),
            "method": request.method.decode("ascii"),
            "scheme": "http" if connection._tls is None else "https",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": list(request.headers),
            "client": connection._client,
            "server": connection._server,
            "state": connection._state.copy(),
            "extensions": {},
            _TLS: connection._tls,
        }
        self.over = asyncio.Event()
        self.complete = False
        self.failed = False
        self._connection = connection
        self._body: bytes | None = body
        self._start: Message | None = None
        self._begun = False

    def __str__(self) -> str:
        return f"{self.scope['method']} {self.scope['path']!a}"

    async def receive(self) -> Message:
        """Return the body of the request, which is there as a whole; after it, wait for the end."""
        if (body := self._body) is not None:
            self._body = None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take a piece of the answer."""
        kind = message["type"]
        if kind == "http.response.start" and self._start is None:
            self._start = message
            return
        if kind != "http.response.body" or self._start is None or self.complete:
            raise HttpUsageError(f"the application sent {kind} when that made no sense")
        more = message.get("more_body", False)
        body = b"" if self.scope["method"] == "HEAD" else message.get("body", b"")
        data = b""
        try:
            if not self._begun:
                self._begun = True
                data = self._connection.respond(self._start["status"], self._start.get("headers", ()))
            data += self._connection.body(body, more=more)
        except h11.LocalProtocolError as error:
            raise HttpUsageError(f"the application's answer is not one of HTTP: {error}") from error
        self.complete = not more
        try:
            await self._connection.write(data)
        except (_Gone, HttpError) as error:
            self.failed = True
            self.over.set()
            # As ASGI 2.4 has it.
            raise ConnectionError("the client is gone") from error
        if self.complete:
            self.over.set()


def _origin_form(target: bytes) -> bytes:
    """Return what a server has to make of a target in absolute form (RFC 9112 section 3.2.2)."""
    scheme, separator, rest = target.partition(b"://")
    if not separator or not scheme.isalpha():
        raise _Refused(400, "the target of the request is not a path")
    _, slash, path = rest.partition(b"/")
    return slash + path or b"/"


@lru_cache(maxsize=1)
def _date(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode("ascii")


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""
