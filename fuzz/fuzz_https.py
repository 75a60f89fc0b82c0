"""Fuzzes what an HTTP client makes of a server's bytes, and a server of a client's.

The first byte of the input chooses which, and the size of the pieces in which the rest arrives; and for a
client the method of its request. Nothing but HttpError may come of it in a client, and the same bytes, whole
and in pieces, give the same response, where both give one. Nothing at all comes of it in a server: its
answers are always ones that a client understands.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, cast

import h11

from minerva.https.client import MAX_BODY, ClientProtocol, Response
from minerva.https.errors import HttpProtocolError, HttpUsageError
from minerva.https.exchange import Limits, ServerConnection
from minerva.https.stream import TcpStream

METHODS = ("GET", "POST", "HEAD", "DELETE")
PIECES = (1, 3, 97, 5000)
LIMITS = Limits()
WHEN = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)


LOOP = asyncio.new_event_loop()


def target(data: bytes) -> None:
    """Hand ``data`` to clients, or to a server, whole and in pieces."""
    if not data:
        return
    if data[0] & 0x80:
        for size in (len(data), PIECES[data[0] // 4 % 4]):
            LOOP.run_until_complete(_serve(data[1:], size))
        return
    method = METHODS[data[0] % 4]
    whole = _hear(method, data[1:], len(data))
    pieces = _hear(method, data[1:], PIECES[data[0] // 4 % 4])
    if whole is not None and pieces is not None:
        assert whole[0] == pieces[0], (whole[0], pieces[0])


def _hear(method: str, data: bytes, size: int) -> list[Response] | None:
    """Return the responses that a client takes from ``data``, the end of the connection included."""
    protocol = ClientProtocol()
    responses: list[Response] = []
    _ask(protocol, method)
    try:
        for start in range(0, len(data), size):
            response = protocol.receive(data[start : start + size])
            if response is None:
                continue
            _look_at(response)
            responses.append(response)
            if not protocol.usable:
                return responses
            _ask(protocol, method)
        response = protocol.receive(b"")
    except HttpProtocolError:
        assert not protocol.usable
        return responses or None
    assert response is not None
    _look_at(response)
    return [*responses, response]


def _ask(protocol: ClientProtocol, method: str) -> None:
    assert protocol.send(method, "/", [("Host", "example.com")], b"")
    assert not protocol.usable
    try:
        protocol.send(method, "/", [("Host", "example.com")], b"")
    except HttpUsageError:
        return
    raise AssertionError("two requests at once")


def _look_at(response: Response) -> None:
    assert 200 <= response.status <= 999
    assert len(response.body) <= MAX_BODY
    assert response.text().isprintable()
    assert response.content_type == response.content_type.lower()
    seconds = response.retry_after(WHEN)
    assert seconds is None or seconds >= 0


class _Wire:
    """A connection on which a client has said something, and closes."""

    deadline: float | None = None

    def __init__(self, data: bytes, size: int) -> None:
        self.sent = b""
        self._pieces = [data[start : start + size] for start in range(0, len(data), size)]

    async def read(self, limit: int = 65_536) -> bytes:
        piece = self._pieces.pop(0) if self._pieces else b""
        if len(piece) > limit:
            self._pieces.insert(0, piece[limit:])
        return piece[:limit]

    async def write(self, data: bytes) -> None:
        self.sent += data

    def shutdown(self) -> None:
        pass


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive())["body"]
    assert len(body) <= LIMITS.body_size
    assert scope["path"].startswith("/")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def _serve(data: bytes, size: int) -> None:
    wire = _Wire(data, size)
    stream = cast(TcpStream, wire)
    client, server = ("::1", 1), ("::1", 2)
    await ServerConnection(_echo, stream, limits=LIMITS, client=client, server=server, state={}).run()
    if b"HEAD" not in data:
        _read_answers(wire.sent)


def _read_answers(sent: bytes) -> None:
    """Read answers as a client would that knows the requests only by their answers."""
    # The client may have gone when it was to go on.
    sent = sent.removesuffix(b"HTTP/1.1 100 Continue\r\n\r\n")
    while sent:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
        client.send(h11.EndOfMessage())
        client.receive_data(sent)
        client.receive_data(b"")
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            assert event is not h11.NEED_DATA
            if isinstance(event, h11.Response):
                assert event.status_code in (200, 400, 408, 413, 431, 501)
        sent = client.trailing_data[0]


SEEDS = [
    b"\x80GET /a?b HTTP/1.1\r\nHost: h\r\n\r\nGET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n",
    b"\x84POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi",
    b"\x88POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\nx\r\n0\r\nT: u\r\n\r\n",
    b"\x8cGET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"\x80CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"\x80OPTIONS * HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    b"\0HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    b"\1HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\nRetry-After: 60\r\nContent-Length: 0\r\n\r\n",
    b"\5HTTP/1.1 503 X\r\nRetry-After: Mon, 01 Jun 2026 12:01:00 GMT\r\nConnection: close\r\n\r\nsorry",
    b"\4HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nTrailer: t\r\n\r\n",
    b"\2HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
    b"\3HTTP/1.0 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nno \xff\x1b[31m",
    b"\0HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    b"\0HTTP/1.1 204 No Content\r\n\r\n",
    b"\0HTTP/1.1 304\r\nContent-Length: 5\r\n\r\n",
    b"\x08HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\nA: b\r\n  folded\r\n\r\nabc",
]


if __name__ == "__main__":
    from _harness import run

    run(target, SEEDS)
