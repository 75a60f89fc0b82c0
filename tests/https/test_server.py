"""The server: what it tells applications, what strangers get from it, and what it survives."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import subprocess
from contextlib import AsyncExitStack
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from OpenSSL import SSL
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from minerva.https import lifespan
from minerva.https import server as server_module
from minerva.https.client import HttpClient
from minerva.https.errors import HttpError, HttpUsageError, StreamError
from minerva.https.server import Limits, client_chain, make_server_context, serve
from minerva.https.stream import TcpStream, TlsStream, web_stream
from minerva.pki.certificates import dump_pem
from minerva.pki.keys import dump_private_key
from tests.https.ends import (
    DEVICE,
    DEVICE_CHAIN,
    MAKER,
    REGISTRAR,
    Serving,
    certificate_for,
    device_context,
    dial,
    echo,
    listener,
    only,
    rest,
    run,
    server_context,
    serving,
)
from tests.pki.certs import Ca, key

VERSIONS = pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"])

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


async def say(server: Serving, data: bytes) -> bytes:
    """Say something in the clear; return all that is answered until the server closes."""
    stream = await server.raw()
    try:
        await stream.write(data)
        return await rest(stream)
    finally:
        await stream.close()


def status(answer: bytes) -> int:
    """The status of the one answer that this is."""
    assert answer.count(b"HTTP/1.1 ") == 1
    return int(answer.split(b" ")[1])


async def works(server: Serving) -> None:
    """Others are served."""
    assert status(await say(server, CLOSE)) == 200


# --- what it is for ---


@VERSIONS
def test_requests_of_an_unknown_maker_s_device(version: int) -> None:
    """Its certificates are shown to the application, and the connection is kept.

    covers: R-10, P-23
    """
    chains = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            chains.append(client_chain(scope))
        await echo(scope, receive, send)

    async def test() -> None:
        async with serving(app, context=server_context()) as server:
            client = await server.tls(device_context(version))
            for number in range(3):
                response = await client.request("POST", f"/a%20b?{number}", body=bytes(60_000))
                assert response.status == 200
                assert response.body == f"POST /a b?{number} ".encode() + bytes(60_000)
                assert response.headers["x-tls"] == {SSL.TLS1_2_VERSION: "TLSv1.2"}.get(version, "TLSv1.3")
                assert "server" not in response.headers
                assert "date" in response.headers
            assert server.server.connections == 1
            await client.close()
            await server.quiet()
        assert chains == [DEVICE_CHAIN] * 3

    run(test())


@VERSIONS
@pytest.mark.parametrize("wanted", ["required", "optional"])
def test_a_client_without_certificate(version: int, wanted: str) -> None:
    """It is served where a certificate is optional, and told what is missing where it is required."""
    bare = only(SSL.Context(SSL.TLS_METHOD), version)

    async def test() -> None:
        async with serving(context=server_context(wanted)) as server:
            if wanted == "optional":
                client = await server.tls(bare)
                assert (await client.request("GET", "/")).headers["x-chain"] == "0"
                await client.close()
                client = await server.tls(device_context(version))
                assert (await client.request("GET", "/")).headers["x-chain"] == "3"
                await client.close()
                return
            if version == SSL.TLS1_2_VERSION:
                with pytest.raises(StreamError, match="alert"):
                    await server.tls(bare)
            else:
                client = await server.tls(bare)
                with pytest.raises(StreamError, match="certificate required"):
                    await client.request("GET", "/")
                await client.close()
            await server.quiet()
            assert server.server.counters["failed"] == 1

    run(test())


def test_a_client_of_the_web() -> None:
    """The other client of this package, with the check of names, and the alert in its words."""
    root = Ca.root("Root")
    names = (x509.DNSName("localhost"), x509.IPAddress(ip_address("::1")))
    certificate = certificate_for(root, *names)

    async def test() -> None:
        context = make_server_context(certificate, (), key("p256"), client="required")
        async with serving(context=context) as server:
            options: dict[str, Any] = {"anchors": (certificate,)}
            stream = await web_stream(
                "::1", server.port, **options, certificate=DEVICE, chain=MAKER.chain, key=key("p256")
            )
            client = HttpClient(stream, "::1")
            assert (await client.request("GET", "/")).headers["x-chain"] == "3"
            await client.close()
            client = HttpClient(await web_stream("::1", server.port, **options), "::1")
            with pytest.raises(StreamError, match="certificate required"):
                await client.request("GET", "/")
            await client.close()

    run(test())


def test_starlette_with_a_lifespan() -> None:
    """What the applications here are made with: state, streamed answers, errors of theirs."""
    steps = []

    class Lifespan:
        def __init__(self, _: object) -> None:
            pass

        async def __aenter__(self) -> dict[str, str]:
            steps.append("begin")
            return {"word": "state"}

        async def __aexit__(self, *_: object) -> None:
            steps.append("end")

    async def hello(request: Request) -> PlainTextResponse:
        assert request.client is not None
        return PlainTextResponse(f"{request.state.word} {await request.body()!r} {request.client.host}")

    async def streamed(_: Request) -> StreamingResponse:
        async def pieces() -> Any:
            for piece in (b"a" * 70_000, b"", b"b"):
                yield piece

        return StreamingResponse(pieces())

    async def broken(_: Request) -> PlainTextResponse:
        raise RuntimeError("secret detail")

    routes = [
        Route("/hello", hello, methods=["GET", "POST"]),
        Route("/streamed", streamed),
        Route("/broken", broken),
    ]

    async def test() -> None:
        stop, ready = asyncio.Event(), asyncio.Event()
        sock = listener()
        task = asyncio.ensure_future(
            serve(
                Starlette(routes=routes, lifespan=Lifespan),
                [sock],
                server_context(),
                ready=ready.set,
                stop=stop,
            )
        )
        port = sock.getsockname()[1]
        await ready.wait()
        client = HttpClient(await TlsStream.client(dial(port), device_context()), "h")
        response = await client.request("POST", "/hello", body=b"x")
        assert response.text() == "state b'x' ::1"
        assert (await client.request("GET", "/streamed")).body == b"a" * 70_000 + b"b"
        head = await client.request("HEAD", "/hello")
        assert (head.status, head.body) == (200, b"")
        assert (await client.request("GET", "/nothing")).status == 404
        assert (await client.request("DELETE", "/hello")).status == 405
        response = await client.request("GET", "/broken")
        assert response.status == 500
        assert b"secret" not in response.body
        stop.set()
        await task
        await client.close()
        assert steps == ["begin", "end"]
        assert sock.fileno() == -1

    run(test())


def test_an_application_that_cannot_start() -> None:
    class Lifespan:
        def __init__(self, _: object) -> None:
            pass

        async def __aenter__(self) -> None:
            raise RuntimeError("no database")

        async def __aexit__(self, *_: object) -> None:
            pass

    async def test() -> None:
        sock = listener()
        with pytest.raises(HttpUsageError, match="no database"):
            await serve(Starlette(lifespan=Lifespan), [sock], None, ready=lambda: None, stop=asyncio.Event())
        assert sock.fileno() == -1

    run(test())


def test_an_application_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended."""
    monkeypatch.setattr(lifespan, "END_SECONDS", 0.05)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        assert (await receive())["type"] == "lifespan.startup"
        await send({"type": "lifespan.startup.complete"})
        await asyncio.Event().wait()

    async def test() -> None:
        async with serving(app):
            pass

    run(test())


def test_an_application_that_takes_its_time() -> None:
    """Who loses patience leaves nothing behind."""

    async def app(*_: Any) -> None:
        await asyncio.Event().wait()

    async def test() -> None:
        sock = listener()
        task = asyncio.ensure_future(serve(app, [sock], None, ready=lambda: None, stop=asyncio.Event()))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(test())


def test_an_answer_that_is_to_be_the_last() -> None:
    """The application closes the connection by its header (RFC 8995 section 5.5.1 and its 401).

    covers: R-21
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        await receive()
        headers = [(b"connection", b"close"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body"})

    async def test() -> None:
        async with serving(app, context=server_context()) as server:
            client = await server.tls()
            assert (await client.request("POST", "/", body=b"x")).status == 401
            assert not client.usable
            assert await client.stream.read() == b""
            await client.close()
            await server.quiet()

    run(test())


# --- strangers ---

OPENSSL, CURL = shutil.which("openssl"), shutil.which("curl")


@pytest.fixture
def device_files(tmp_path: Path) -> Path:
    (tmp_path / "device.pem").write_bytes(dump_pem(DEVICE_CHAIN) + dump_private_key(key("p256")))
    (tmp_path / "registrar.pem").write_bytes(dump_pem([REGISTRAR]))
    return tmp_path


async def program(*command: str | Path, said: bytes = b"", until: bytes = b"") -> bytes:
    """Run a program; say something to it, and wait until it has shown something."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(said)
    await process.stdin.drain()
    heard = b""
    while not until or until not in heard:
        piece = await process.stdout.read(4096)
        if not piece:
            break
        heard += piece
    process.stdin.close()
    await process.communicate()
    return heard


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("name", [True, False], ids=["SNI", "no SNI"])
def test_openssl(device_files: Path, version: str, name: bool) -> None:
    """A program of others, with one version of TLS alone; what it asks for by SNI does not matter.

    covers: R-10, P-21
    """

    async def test() -> None:
        async with serving(context=server_context()) as server:
            files = device_files / "device.pem"
            heard = await program(
                *("openssl", "s_client", "-connect", f"[::1]:{server.port}", version, "-ign_eof"),
                *("-cert", files, "-key", files, "-cert_chain", files),
                *(("-servername", "somebody.example") if name else ("-noservername",)),
                said=CLOSE,
                until=b"GET /? ",
            )
            assert b"HTTP/1.1 200 OK" in heard
            assert re.search(rb"x-chain: [34]\r", heard)  # the program sends the leaf of the file twice
            assert b"x-tls: " + version.encode()[1:].replace(b"tls1_", b"TLSv1.") in heard

    run(test())


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
def test_openssl_with_an_old_version(device_files: Path) -> None:
    """covers: R-10"""

    async def test() -> None:
        async with serving(context=server_context()) as server:
            heard = await program(
                *("openssl", "s_client", "-connect", f"[::1]:{server.port}", "-tls1_1"),
                *("-cipher", "ALL:@SECLEVEL=0", "-cert", device_files / "device.pem"),
            )
            assert b"protocol version" in heard
            assert server.server.counters["failed"] == 1

    run(test())


@pytest.mark.skipif(CURL is None, reason="curl is not installed")
def test_curl(device_files: Path) -> None:
    """Several requests on one connection, one of them after a 100 (Continue)."""
    (device_files / "body").write_bytes(b"x" * 60_000)

    async def test() -> None:
        async with serving(context=server_context()) as server:
            url = f"https://[::1]:{server.port}/a"
            heard = await program(
                *("curl", "-sSk", "--http1.1", "--cert", device_files / "device.pem", url),
                *("-H", "Expect: 100-continue", "--data-binary", f"@{device_files / 'body'}"),
                *("--next", "-sSk", "--cert", device_files / "device.pem", "-I", url),
            )
            assert heard.startswith(b"POST /a? " + b"x" * 60_000)
            assert b"HTTP/1.1 200 OK" in heard
            assert server.server.counters["accepted"] == 1

    run(test())


# --- hostile clients ---

REFUSED = {
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "a target that is none": (b"GET x HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    "two framings": (
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: gzip\r\n\r\nab",
        501,
    ),
    "a long header": (b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"x" * 40_000, 431),
    "a long target": (b"GET /" + b"x" * 40_000, 431),
    "many headers": (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 100 + b"\r\n", 431),
    "a large body": (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 65537\r\n\r\n" + bytes(65_537), 413),
    "a huge body that never comes": (
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\nExpect: 100-continue\r\n\r\n",
        413,
    ),
    "large chunks": (
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (b"2000\r\n" + bytes(8192) + b"\r\n") * 9,
        413,
    ),
    "a bad chunk": (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
}


@pytest.mark.parametrize(("data", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(data: bytes, expected: int) -> None:
    """It gets an answer, also if it had more to say, and nobody else notices."""

    async def test() -> None:
        async with serving() as server:
            answer = await say(server, data)
            assert status(answer) == expected
            assert b"\r\nConnection: close\r\n" in answer
            assert b"\r\nServer:" not in answer
            await works(server)
            await server.quiet()

    run(test())


@pytest.mark.parametrize(
    ("data", "statuses"),
    [
        (GET * 3 + CLOSE, [200] * 4),
        (CLOSE + GET, [200]),
        (GET + b"garbage\r\n\r\n", [200, 400]),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello" + CLOSE, [200, 200]),
        (b"GET http://h:1/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", [200]),
        (b"GET http://h HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", [200]),
        (b"GET / HTTP/1.0\r\n\r\n", [200]),
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n" + CLOSE, [200, 200]),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", [400]),
    ],
)
def test_several_requests_at_once(data: bytes, statuses: list[int]) -> None:
    """They are answered in their order; what comes after the end is not heard."""

    async def test() -> None:
        async with serving() as server:
            answer = await say(server, data)
            assert [int(found) for found in re.findall(rb"HTTP/1\.1 (\d+)", answer)] == statuses

    run(test())


@pytest.mark.parametrize("cut", range(0, len(GET), 5))
def test_who_leaves_in_the_middle(cut: int) -> None:
    async def test() -> None:
        async with serving() as server:
            stream = await server.raw()
            await stream.write(GET[:cut])
            await stream.close()
            await server.quiet()
            await works(server)

    run(test())


QUICK = Limits(handshake=0.6, head=0.6, body=0.6, answer=5, write=0.6, idle=0.6, linger=0.1, shutdown=0.3)


async def drip(server: Serving, begin: bytes, data: bytes) -> bytes:
    """Say ``begin``, then ``data`` byte by byte; return what is answered."""
    stream = await server.raw()

    async def dripping() -> None:
        await stream.write(begin)
        for byte in data:
            await asyncio.sleep(0.05)
            await stream.write(bytes([byte]))

    task = asyncio.ensure_future(dripping())
    heard = await rest(stream)
    task.cancel()
    await asyncio.wait([task])
    await stream.close()
    return heard


def test_slow_clients() -> None:
    """Each phase has its limit, however the bytes drip; meanwhile others are served."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        async with serving(limits=QUICK) as server:
            began = loop.time()
            header, body, nothing, idle, *_ = await asyncio.gather(
                drip(server, b"", GET),
                drip(server, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 60\r\n\r\n", bytes(60)),
                say(server, b""),
                say(server, GET),
                works(server),
                works(server),
            )
            assert loop.time() - began < 5
            assert (status(header), status(body), nothing, status(idle)) == (408, 408, b"", 200)
            assert b"header" in header
            assert b"body" in body
            await server.quiet()

    run(test())


def test_slow_handshakes() -> None:
    async def test() -> None:
        async with serving(context=server_context(), limits=QUICK) as server:
            silent, garbled = await server.raw(), await server.raw()
            await garbled.write(bytes.fromhex("1603010004 01000000"))
            client = await server.tls()
            assert (await client.request("GET", "/")).status == 200
            assert await rest(silent) == b""
            assert len(await rest(garbled)) == 7  # an alert
            assert server.server.counters["failed"] == 2
            for stream in (silent, garbled, client):
                await stream.close()
            await server.quiet()

    run(test())


async def large(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(16 << 20)})


def test_a_client_that_does_not_read() -> None:
    async def test() -> None:
        async with serving(large, limits=QUICK) as server:
            stream = await server.raw()
            await stream.write(GET)
            await server.quiet(1)
            await server.quiet(0)
            await stream.close()

    run(test())


def test_a_client_that_does_not_stop_talking() -> None:
    """What it says after an answer that was the last is not kept, and not heard for long."""

    async def test() -> None:
        async with serving(limits=QUICK) as server:
            stream = await server.raw()
            with pytest.raises(StreamError):
                await stream.write(CLOSE + bytes(64 << 20))
            await server.quiet()
            await stream.close()

    run(test())


async def hanging(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if scope["path"] != "/":
        await echo(scope, receive, send)
        return
    if scope["query_string"] == b"begun":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
    await asyncio.Event().wait()


def test_an_application_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets an answer, or sees that the answer ends in the middle; the operator reads of it."""

    async def test() -> None:
        async with serving(hanging, limits=replace(QUICK, answer=0.2)) as server:
            assert status(await say(server, GET)) == 500
            answer = await say(server, b"GET /?begun HTTP/1.1\r\nHost: h\r\n\r\n")
            assert answer.endswith(b"\r\n\r\n1\r\nx\r\n")
            assert status(await say(server, CLOSE.replace(b"/ ", b"/other "))) == 200

    with caplog.at_level(logging.ERROR):
        run(test())
    assert [record.getMessage() for record in caplog.records] == [
        "the application took more than 0.2 s for GET '/'"
    ] * 2


async def wrong(scope: Any, _: Any, send: Any) -> None:
    """An application that breaks the rules in the way that the path says."""
    if scope["type"] == "lifespan":
        raise NotImplementedError
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    body = {"type": "http.response.body", "body": b"ok"}
    for message in {
        "/nothing": [],
        "/no-body": [start],
        "/no-start": [body],
        "/two-starts": [start, start],
        "/too-much": [start, {**body, "body": b"more"}],
        "/too-little": [start, {**body, "body": b"k"}],
        "/more": [start, body, body],
        "/header": [{**start, "headers": [(b"a", b"b\r\nc: d")]}],
    }[scope["path"]]:
        await send(message)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/nothing", 500),
        ("/no-body", 500),
        ("/no-start", 500),
        ("/two-starts", 500),
        ("/too-much", None),
        ("/too-little", None),
        ("/more", 200),
        ("/header", 500),
        ("/unknown", 500),
    ],
)
def test_an_application_that_is_wrong(
    path: str, answer: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with serving(wrong) as server:
            heard = await say(server, f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            assert (status(heard) if heard else None) == answer

    run(test())
    assert caplog.records
    assert all(path in record.getMessage() for record in caplog.records)


def test_a_client_that_is_gone() -> None:
    """An application that waits for that hears of it at the end of its answer, and sending fails."""
    told = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        assert (await receive())["type"] == "http.request"
        try:
            await large(scope, lambda: asyncio.sleep(0), send)
        except OSError as error:
            told.append(type(error))
            told.append((await receive())["type"])
            raise

    async def test() -> None:
        async with serving(app, limits=QUICK) as server:
            stream = await server.raw()
            await stream.write(GET)
            await server.quiet(1)
            await stream.close()
            await server.quiet()
            assert told == [ConnectionError, "http.disconnect"]

    run(test())


# --- how many ---


def test_too_many_of_one_peer() -> None:
    """No more are taken than one peer may have; of those that are idle the oldest gives way."""

    async def test() -> None:
        async with serving(hanging, limits=Limits(connections_per_peer=3, shutdown=0.1)) as server:
            busy = [await server.raw() for _ in range(2)]
            for stream in busy:
                await stream.write(GET)
            old = await server.raw()
            await old.write(GET.replace(b"/ ", b"/other "))
            assert status(await old.read()) == 200
            await works_at(server, b"/other ")
            assert await rest(old) == b""
            assert server.server.counters["displaced"] == 1
            third = await server.raw()
            await third.write(GET)
            await asyncio.sleep(0.05)
            with pytest.raises((StreamError, AssertionError)):
                await works_at(server, b"/other ")
            assert server.server.counters["refused"] == 1
            for stream in (*busy, old, third):
                await stream.close()

    run(test())


async def works_at(server: Serving, path: bytes) -> None:
    assert status(await say(server, CLOSE.replace(b"/ ", path)) or b"none") == 200


def test_too_many_in_all() -> None:
    async def test() -> None:
        limits = Limits(connections=20)
        async with AsyncExitStack() as stack, serving(limits=limits) as server:
            for _ in range(60):
                stream = await server.raw()
                stack.push_async_callback(stream.close)
                await stream.write(GET)
                assert status(await stream.read()) == 200
                assert server.server.connections <= 21
            assert server.server.counters == {"accepted": 60, "displaced": 40}

    run(test())


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01"], ids=["silent", "begun"])
def test_who_never_ends_a_handshake_gives_way(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """With addresses enough, a few connections a second would else keep all others out."""
    monkeypatch.setattr(server_module, "GIVE_WAY_SECONDS", 0.2)

    async def test() -> None:
        limits = Limits(connections=10)
        async with (
            AsyncExitStack() as stack,
            serving(echo, context=server_context(), limits=limits) as server,
        ):
            for _ in range(10):
                stream = await server.raw()
                stack.push_async_callback(stream.close)
                if said:
                    await stream.write(said)
            await server.quiet(10)
            with pytest.raises(HttpError):
                await server.tls()
            await asyncio.sleep(0.3)
            client = await server.tls()
            assert (await client.request("GET", "/")).status == 200
            assert server.server.counters["displaced"] == 1
            await client.close()

    run(test())


def test_who_never_ends_a_request_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """But nobody whose request is being answered."""
    monkeypatch.setattr(server_module, "GIVE_WAY_SECONDS", 0.2)

    async def test() -> None:
        async with (
            AsyncExitStack() as stack,
            serving(hanging, limits=Limits(connections=4, shutdown=0.1)) as server,
        ):
            for request in (GET, GET, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n"):
                stream = await server.raw()
                stack.push_async_callback(stream.close)
                await stream.write(request)
            await server.quiet(3)
            await asyncio.sleep(0.3)
            for _ in range(2):
                stream = await server.raw()
                stack.push_async_callback(stream.close)
                await stream.write(GET)
                await asyncio.sleep(0.05)
            assert server.server.counters == {"accepted": 5, "displaced": 1}
            assert server.server.connections == 4

    run(test())


def test_a_connection_that_cannot_be_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without files left, say, goes on when it has some again."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        accept, failures = loop.sock_accept, [OSError(24, "Too many open files")]

        async def sock_accept(sock: Any) -> Any:
            if failures:
                raise failures.pop()
            return await accept(sock)

        monkeypatch.setattr(loop, "sock_accept", sock_accept)
        async with serving() as server:
            await works(server)

    run(test())


# --- the end ---


def test_what_is_under_way_is_finished() -> None:
    """Those who wait for an answer get it, and are told that it is the last; the others are let go.

    covers: R-10
    """
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        await go_on.wait()
        await echo(scope, receive, send)

    async def test() -> None:
        stop, ready = asyncio.Event(), asyncio.Event()
        sock = listener()
        port = sock.getsockname()[1]
        limits = Limits(linger=0.1)
        task = asyncio.ensure_future(
            serve(app, [sock], server_context(), ready=ready.set, stop=stop, limits=limits)
        )
        await ready.wait()
        idle = await TlsStream.client(dial(port), device_context())
        shaking = TcpStream(dial(port))
        busy = HttpClient(await TlsStream.client(dial(port), device_context()), "h")
        asking = asyncio.ensure_future(busy.request("GET", "/"))
        await asyncio.sleep(0.05)
        stop.set()
        assert await rest(idle) == b""
        assert await rest(shaking) == b""
        assert not task.done()
        with pytest.raises(StreamError, match="refused"):
            await TlsStream.client(dial(port), device_context())
        go_on.set()
        response = await asking
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert not busy.usable
        await task
        for stream in (idle, shaking, busy):
            await stream.close()

    run(test())


def test_what_does_not_finish_is_ended() -> None:
    async def test() -> None:
        async with serving(hanging, limits=Limits(shutdown=0.1)) as server:
            stream = await server.raw()
            await stream.write(GET)
            await server.quiet(1)
            await asyncio.sleep(0.02)
        assert await rest(stream) == b""
        await stream.close()

    run(test())


def test_a_new_certificate_while_it_runs() -> None:
    """New connections get it, the others stay.

    covers: R-10
    """

    async def test() -> None:
        async with serving(context=server_context()) as server:
            before = await server.tls()
            renewed = MAKER.node()
            server.server.context = make_server_context(renewed, MAKER.chain, key("p256"), client="optional")
            after = await server.tls()
            assert before.stream.peer_chain == (REGISTRAR,)
            assert after.stream.peer_chain == (renewed, *MAKER.chain)
            for client in (before, after):
                assert (await client.request("GET", "/")).status == 200
                await client.close()

    run(test())
