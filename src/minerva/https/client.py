"""An HTTP/1.1 client on one connection, which is kept (RFC 9112, by h11).

No pool, no redirects, no cookies: a pledge has to know which TLS connection each answer came over, so the
connection is the caller's. What a server can make us keep is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import h11

from minerva.core.text import shortened
from minerva.https.errors import HttpClosed, HttpProtocolError, HttpTimeout, HttpUsageError, StreamError
from minerva.https.stream import ByteStream

MAX_BODY: Final = 262_144
"""The largest body of a response, in bytes, if nothing else is said."""

MAX_HEADERS: Final = 100
"""How many fields the header of a response may have, and its trailer."""

MAX_HEADER_SIZE: Final = 16_384
"""How long the header of a response may be, in bytes."""

MAX_INFORMATIONAL: Final = 16
"""How many responses of status 1xx may come before the one that counts."""

REQUEST_SECONDS: Final = 30.0
"""How long a request may take until the whole response is there, in seconds, if nothing else is said."""


@dataclass(frozen=True, slots=True)
class Response:
    """What a server answered. The names in ``headers`` are in lower case; fields of one name are joined by
    commas."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters; empty if there is none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def retry_after(self, now: datetime) -> float | None:
        """Return in how many seconds to ask again, or ``None`` if the server does not say (RFC 9110 10.2.3).

        Any number of seconds can come out: the caller knows what it is willing to wait.
        """
        value = self.headers.get("retry-after", "").strip()
        if value.isascii() and value.isdigit():
            return float(value) if len(value) < 12 else 1e11
        try:
            when = parsedate_to_datetime(value)
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        return max(0.0, (when - now).total_seconds())

    def text(self, limit: int = 200) -> str:
        """Return the body as a text that is harmless to show, such as a server's reason for refusing."""
        return shortened(self.body[: 4 * limit].decode("utf-8", "replace").strip(), limit)


class ClientProtocol:
    """The bytes of requests, and what comes back. Without a socket.

    ``send()`` begins an exchange; ``receive()`` gets what arrives, ``b""`` at the end of the connection, and
    returns the response once it is complete. Its body may have ``max_body`` bytes.
    """

    def __init__(self, max_body: int = MAX_BODY) -> None:
        self._max_body = max_body
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_SIZE)
        self._response: h11.Response | None = None
        self._body = bytearray()
        self._informational = 0
        self._over = False
        self._waiting = False
        self.heard = False
        """Whether a byte of the present response has arrived."""

    @property
    def usable(self) -> bool:
        """Whether one more request may be sent."""
        return not self._over and not self._waiting

    def send(self, method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
        """Return the bytes of a request. Raises :class:`HttpUsageError`."""
        if not self.usable:
            raise HttpUsageError("no further request can be made on this connection; make a new one")
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        fields = list(headers)
        if body or method in ("POST", "PUT"):
            fields.append(("Content-Length", str(len(body))))
        self._response, self._informational, self.heard = None, 0, False
        self._body.clear()
        try:
            pieces = [self._http.send(h11.Request(method=method, target=target, headers=fields))]
            if body:
                pieces.append(self._http.send(h11.Data(data=body)))
            pieces.append(self._http.send(h11.EndOfMessage()))
        except (h11.LocalProtocolError, UnicodeError) as error:
            self._over = True
            raise HttpUsageError(f"not a request of HTTP: {error}") from error
        self._waiting = True
        return b"".join(piece for piece in pieces if piece)

    def receive(self, data: bytes) -> Response | None:
        """Take what has arrived; return the response if that completes it. Raises HttpProtocolError."""
        self.heard = self.heard or bool(data)
        try:
            # In pieces, as the library looks at the size only of what it cannot use yet.
            for start in range(0, len(data), MAX_HEADER_SIZE) if data else (0,):
                self._http.receive_data(data[start : start + MAX_HEADER_SIZE])
                self._advance()
        except h11.RemoteProtocolError as error:
            self._over = True
            if not data:
                raise HttpProtocolError(
                    "the connection was closed before the response was complete"
                ) from error
            raise HttpProtocolError(f"not a response of HTTP: {shortened(str(error), 200)}") from error
        except HttpProtocolError:
            self._over = True
            raise
        return self._complete()

    def _advance(self) -> None:
        while True:
            match self._http.next_event():
                case h11.InformationalResponse() as event:
                    self._informational += 1
                    if self._informational > MAX_INFORMATIONAL:
                        raise HttpProtocolError(f"more than {MAX_INFORMATIONAL} responses of status 1xx")
                    _count(event.headers)
                case h11.Response() as event:
                    _count(event.headers)
                    self._response = event
                case h11.Data() as event:
                    if len(self._body) + len(event.data) > self._max_body:
                        raise HttpProtocolError(f"the response is larger than {self._max_body} bytes")
                    self._body += event.data
                case h11.EndOfMessage() as event:
                    _count(event.headers)
                case _:  # NEED_DATA, PAUSED and ConnectionClosed
                    return

    def _complete(self) -> Response | None:
        if self._response is None or self._http.their_state is h11.SEND_BODY:
            return None
        self._waiting = False
        # More than the answer: nothing after it can be believed.
        self._over = (
            self._over or self._http.trailing_data[0] != b"" or self._http.their_state is not h11.DONE
        )
        headers: dict[str, str] = {}
        for raw_name, raw_value in self._response.headers:
            name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return Response(self._response.status_code, headers, bytes(self._body))


def _count(headers: h11._headers.Headers) -> None:
    if len(headers) > MAX_HEADERS:
        raise HttpProtocolError(f"{len(headers)} header fields, at most {MAX_HEADERS} are accepted")


class HttpClient:
    """Requests and responses over ``stream``, one after the other.

    ``host`` is what goes into the field ``Host``: a name or address, with the port if it is not 443;
    :func:`minerva.https.stream.host_and_port` makes it. An IPv6 address alone gets its brackets here.
    """

    def __init__(self, stream: ByteStream, host: str, *, max_body: int = MAX_BODY) -> None:
        self.stream = stream
        self._host = f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host
        self._protocol = ClientProtocol(max_body)
        self._broken = False
        self._busy = asyncio.Lock()

    @property
    def usable(self) -> bool:
        """Whether one more request may be made: the connection is kept, as far as we know."""
        return not self._broken and self._protocol.usable

    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        timeout: float = REQUEST_SECONDS,
    ) -> Response:
        """Send a request for ``target``, a path that begins with a slash; return the response.

        ``Host`` and ``Content-Length`` are added. Whatever is raised, the connection is then of no more use:
        :class:`HttpClosed` if a kept connection turns out to be closed, :class:`HttpTimeout`,
        :class:`StreamError`, :class:`HttpProtocolError`; or :class:`HttpUsageError`.
        """
        async with self._busy:
            if self._broken:
                raise HttpUsageError("no further request can be made on this connection; make a new one")
            data = self._protocol.send(method, target, [("Host", self._host), *headers], body)
            self._broken = True
            try:
                async with asyncio.timeout(timeout):
                    response = await self._exchange(data)
            except TimeoutError as error:
                raise HttpTimeout(f"{self._host} did not answer within {timeout:g} s") from error
            return response

    async def close(self) -> None:
        """Close the connection."""
        self._broken = True
        await self.stream.close()

    async def _exchange(self, data: bytes) -> Response:
        failure: StreamError | None = None
        try:
            await self.stream.write(data)
        except StreamError as error:
            # A server that does not want to hear the rest may have said why.
            failure = error
        while True:
            try:
                heard = await self.stream.read()
                response = self._protocol.receive(heard)
            except (StreamError, HttpProtocolError) as error:
                if not self._protocol.heard:
                    raise HttpClosed(f"{self._host} closed the connection: {failure or error}") from error
                raise
            if response is not None:
                self._broken = failure is not None
                return response
