"""Fuzzes what an HTTP client makes of a server's bytes: nothing but HttpError may come of them.

The first byte of the input chooses the method of the request and the size of the pieces in which the rest
arrives. The same bytes, whole and in pieces, have to give the same response, where both give one.
"""

from __future__ import annotations

from datetime import UTC, datetime

from minerva.https.client import MAX_BODY, ClientProtocol, Response
from minerva.https.errors import HttpProtocolError, HttpUsageError

METHODS = ("GET", "POST", "HEAD", "DELETE")
PIECES = (1, 3, 97, 5000)
WHEN = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)


def target(data: bytes) -> None:
    """Hand ``data`` to clients, whole and in pieces."""
    if not data:
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


SEEDS = [
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
