"""The client's parser by itself, and the client on a stream that says what a test wants."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from minerva.core.errors import DecodeError
from minerva.https.client import (
    MAX_BODY,
    MAX_HEADER_SIZE,
    MAX_HEADERS,
    MAX_INFORMATIONAL,
    ClientProtocol,
    HttpClient,
    Response,
)
from minerva.https.errors import (
    HttpClosed,
    HttpError,
    HttpProtocolError,
    HttpTimeout,
    HttpUsageError,
    StreamError,
)
from tests.https.ends import run

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)


def asked(method: str = "GET") -> ClientProtocol:
    protocol = ClientProtocol()
    protocol.send(method, "/x", [("Host", "example.com")], b"")
    return protocol


def test_a_request() -> None:
    data = ClientProtocol().send("POST", "/a?b", [("Host", "h"), ("Accept", "a/b")], b"body")
    assert data == b"POST /a?b HTTP/1.1\r\nHost: h\r\nAccept: a/b\r\nContent-Length: 4\r\n\r\nbody"


def test_a_get_has_no_length() -> None:
    assert ClientProtocol().send("GET", "/", [("Host", "h")], b"") == b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (OK, Response(200, {"content-length": "2"}, b"hi")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Response(204)),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + OK,
            Response(200, {"content-length": "2"}, b"hi"),
        ),
        (
            b"HTTP/1.1 200 OK\r\nA: 1\r\na: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: t\r\n\r\n",
            Response(200, {"a": "1, 2", "transfer-encoding": "chunked"}, b"abcde"),
        ),
        (b"HTTP/1.0 404\r\nContent-Length:0\r\n\r\n", Response(404, {"content-length": "0"})),
    ],
    ids=["length", "no content", "1xx", "chunked", "1.0"],
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_responses(data: bytes, expected: Response, size: int) -> None:
    """The same response however the bytes arrive, and never too early."""
    protocol = asked()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    for piece in pieces[:-1]:
        assert protocol.receive(piece) is None
    assert protocol.receive(pieces[-1]) == expected


def test_a_response_until_the_end_of_the_connection() -> None:
    protocol = asked()
    assert protocol.receive(b"HTTP/1.1 200 OK\r\n\r\nall") is None
    assert protocol.receive(b" of it") is None
    assert protocol.receive(b"") == Response(200, {}, b"all of it")
    assert not protocol.usable


def test_a_response_to_head_has_no_body() -> None:
    assert asked("HEAD").receive(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n") is not None


def test_the_connection_is_kept_unless_the_server_closes() -> None:
    protocol = asked()
    assert protocol.receive(OK) is not None
    assert protocol.usable
    protocol.send("GET", "/y", [("Host", "h")], b"")
    assert not protocol.usable
    assert protocol.receive(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) is not None
    assert not protocol.usable
    with pytest.raises(HttpUsageError, match="no further request"):
        protocol.send("GET", "/z", [("Host", "h")], b"")


def test_more_than_an_answer_ends_it() -> None:
    """An answer nobody has asked for would be taken for that to the next request."""
    protocol = asked()
    assert protocol.receive(OK + OK) is not None
    assert not protocol.usable


FAULTS = {
    "garbage": b"\x16\x03\x03\x00\x00\x01\x02\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "status": b"HTTP/1.1 20 OK\r\n\r\n",
    "header": b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "switching": b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\n",
    "long header": b"HTTP/1.1 200 OK\r\nA: " + bytes(MAX_HEADER_SIZE).replace(b"\0", b"x"),
    "long header at once": b"HTTP/1.1 200 OK\r\nA: " + b"x" * 3 * MAX_HEADER_SIZE + b"\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (MAX_HEADERS + 1) + b"\r\n",
    "many trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    + b"A: b\r\n" * (MAX_HEADERS + 1)
    + b"\r\n",
    "many 1xx": b"HTTP/1.1 102 Processing\r\n\r\n" * (MAX_INFORMATIONAL + 1),
    "large body": b"HTTP/1.1 200 OK\r\n\r\n" + bytes(MAX_BODY + 1),
    "large chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"1000\r\n" + bytes(4096) + b"\r\n" * 1
    + (b"1000\r\n" + bytes(4096) + b"\r\n") * 64,
}  # fmt: skip


def feed(protocol: ClientProtocol, data: bytes, size: int) -> None:
    for start in range(0, len(data), size):
        assert protocol.receive(data[start : start + size]) is None


@pytest.mark.parametrize("data", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_faults(data: bytes, size: int) -> None:
    """Whatever is wrong, or too much, is one error, and the end.

    covers: P-22
    """
    protocol = asked()
    with pytest.raises(HttpProtocolError) as caught:
        feed(protocol, data, size)
    assert isinstance(caught.value, DecodeError)
    assert isinstance(caught.value, HttpError)
    assert str(caught.value).isprintable()
    assert not protocol.usable


@pytest.mark.parametrize("cut", range(len(OK)))
def test_cut_off(cut: int) -> None:
    protocol = asked()
    if cut:
        assert protocol.receive(OK[:cut]) is None
    with pytest.raises(HttpProtocolError, match="closed"):
        protocol.receive(b"")


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", "/a b", []),
        ("GET", "/a\r\nX: y", []),
        ("G T", "/", []),
        ("GET", "/ä", []),
        ("GET", "/", [("A", "b\r\nC: d")]),
        ("GET", "/", [("A b", "c")]),
    ],
)
def test_no_request_that_is_another(method: str, target: str, headers: list[tuple[str, str]]) -> None:
    with pytest.raises(HttpUsageError, match="not a request"):
        ClientProtocol().send(method, target, [("Host", "h"), *headers], b"")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("9" * 500, 1e11),
        ("Mon, 01 Jun 2026 12:01:00 GMT", 60.0),
        ("Mon, 01 Jun 2026 11:00:00 GMT", 0.0),
        ("Mon, 01 Jun 2026 12:01:00", 60.0),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("Mon, 99 Jun 2026 12:01:00 GMT", None),
        ("\u0665", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert Response(202, {"retry-after": value}).retry_after(NOW) == seconds
    assert Response(202).retry_after(NOW + timedelta(days=1)) is None


def test_what_a_response_says() -> None:
    response = Response(404, {"content-type": "Text/Plain; charset=utf-8"}, b"no \x1b[31m\xff\n" + b"x" * 500)
    assert response.content_type == "text/plain"
    assert Response(404).content_type == ""
    assert response.text().isprintable()
    assert len(response.text()) == 200
    assert response.text(15) == "no \\u001b[31m\ufffd…"


class Script:
    """A stream that answers what it was told to."""

    def __init__(self, *answers: bytes | Exception, refuse: Exception | None = None) -> None:
        self.said = b""
        self.closed = False
        self._answers = list(answers)
        self._refuse = refuse

    async def read(self, limit: int = 65_536) -> bytes:  # noqa: ARG002
        if not self._answers:
            await asyncio.Event().wait()
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def write(self, data: bytes) -> None:
        if self._refuse is not None:
            raise self._refuse
        self.said += data

    async def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("host", "field"),
    [
        ("example.com", "example.com"),
        ("example.com:8443", "example.com:8443"),
        ("192.0.2.1", "192.0.2.1"),
        ("fd00::1", "[fd00::1]"),
        ("[fd00::1]:8443", "[fd00::1]:8443"),
    ],
)
def test_host(host: str, field: str) -> None:
    async def test() -> None:
        script = Script(OK)
        await HttpClient(script, host).request("GET", "/")
        assert f"\r\nHost: {field}\r\n".encode() in script.said

    run(test())


def test_requests_one_after_the_other() -> None:
    """On one connection, also when they are made at the same time."""

    async def test() -> None:
        script = Script(OK[:5], OK[5:], OK.replace(b"hi", b"ho"))
        client = HttpClient(script, "h")
        first, second = await asyncio.gather(
            client.request("POST", "/1", body=b"1"), client.request("POST", "/2", body=b"2")
        )
        assert (first.body, second.body) == (b"hi", b"ho")
        assert client.usable
        await client.close()
        assert script.closed
        with pytest.raises(HttpUsageError):
            await client.request("GET", "/")

    run(test())


def test_no_answer_in_time() -> None:
    async def test() -> None:
        client = HttpClient(Script(OK[:20]), "h")
        with pytest.raises(HttpTimeout, match=r"h did not answer within 0\.01 s"):
            await client.request("GET", "/", timeout=0.01)
        assert not client.usable

    run(test())


def test_a_kept_connection_that_is_closed() -> None:
    """The caller can tell it from a server that breaks off its answer."""

    async def test() -> None:
        client = HttpClient(Script(OK, b""), "h")
        await client.request("GET", "/")
        with pytest.raises(HttpClosed, match="h closed the connection"):
            await client.request("GET", "/")
        assert not client.usable
        for broken in (Script(StreamError("broken")), Script(b"", refuse=StreamError("broken"))):
            with pytest.raises(HttpClosed, match="broken"):
                await HttpClient(broken, "h").request("GET", "/")
        with pytest.raises(StreamError, match="broken"):
            await HttpClient(Script(OK[:20], StreamError("broken")), "h").request("GET", "/")

    run(test())


def test_an_answer_before_the_request_was_sent() -> None:
    """A server may refuse what it does not want to hear, and close: its reason counts."""

    async def test() -> None:
        refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"
        client = HttpClient(Script(refusal, refuse=StreamError("broken pipe")), "h")
        assert (await client.request("POST", "/", body=b"x")).status == 413
        assert not client.usable

    run(test())


def test_a_request_that_is_given_up() -> None:
    async def test() -> None:
        client = HttpClient(Script(), "h")
        task = asyncio.ensure_future(client.request("GET", "/"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not client.usable

    run(test())
