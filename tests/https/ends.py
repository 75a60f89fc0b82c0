"""Clients, servers and applications for the tests of this package, over the loopback interface."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from OpenSSL import SSL

from minerva.https.client import HttpClient
from minerva.https.server import HttpServer, Limits, client_chain, make_server_context, tls_version
from minerva.https.stream import TcpStream, TlsStream
from minerva.tls.context import make_context
from tests.pki.certs import Ca, key, node_name, subject

SECONDS = 20.0
"""When a test has failed because something hangs."""

TODAY = {"start": datetime.now(UTC) - timedelta(days=1), "end": datetime.now(UTC) + timedelta(days=30)}
"""Validity for those who look at the real clock."""

MAKER = Ca.root("Maker").ca("Maker's outer CA").ca("Maker's inner CA")
DEVICE = MAKER.node(subject=subject("device"))
DEVICE_CHAIN = (DEVICE, *MAKER.chain)

DOMAIN = Ca.root("Domain", kind="p384")
REGISTRAR = DOMAIN.node(node_name(1))


def device_context(version: int | None = None) -> SSL.Context:
    """The context of a device whose maker nobody knows."""
    return only(make_context(DEVICE, MAKER.chain, key("p256")), version)


def server_context(client: Any = "required", version: int | None = None) -> SSL.Context:
    return only(make_server_context(REGISTRAR, (), key("p256"), client=client), version)


def only(context: SSL.Context, version: int | None) -> SSL.Context:
    if version is not None:
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
    return context


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test, which has to end in time and leave no task and no file open."""
    before = open_files()

    async def main() -> None:
        async with asyncio.timeout(SECONDS):
            await test
        # What has been cancelled or closed gets the time to notice.
        for _ in range(10):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert open_files() == before


def listener(family: int = socket.AF_INET6, address: str = "::1") -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind((address, 0))
    sock.listen(128)
    sock.setblocking(False)
    return sock


def dial(port: int) -> socket.socket:
    """A socket that is connecting."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.connect_ex(("::1", port))
    return sock


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An application that says what it was asked, and how."""
    assert scope["type"] == "http"
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            break
    answer = f"{scope['method']} {scope['path']}?{scope['query_string'].decode()} ".encode() + body
    headers = [
        (b"content-length", str(len(answer)).encode()),
        (b"x-chain", str(len(client_chain(scope))).encode()),
        (b"x-tls", str(tls_version(scope)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


class Serving:
    """A server at work."""

    def __init__(self, server: HttpServer, port: int) -> None:
        self.server = server
        self.port = port

    async def tls(self, context: SSL.Context | None = None) -> HttpClient:
        stream = await TlsStream.client(dial(self.port), context or device_context())
        return HttpClient(stream, f"[::1]:{self.port}")

    async def raw(self) -> TcpStream:
        return TcpStream(dial(self.port))

    async def quiet(self, connections: int = 0) -> None:
        """Wait until so many connections are left."""
        while self.server.connections != connections:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(
    app: Any = echo, *, context: SSL.Context | None = None, limits: Limits | None = None
) -> AsyncIterator[Serving]:
    """A server on a port of the loopback interface: in the clear if there is no ``context``."""
    sock = listener()
    server = HttpServer(app, context, limits=limits)
    await server.begin([sock])
    try:
        yield Serving(server, sock.getsockname()[1])
    finally:
        await server.end()
        assert server.connections == 0


async def rest(stream: TcpStream | TlsStream) -> bytes:
    """All that comes until the end."""
    heard = b""
    while data := await stream.read():
        heard += data
    return heard


def certificate_for(ca: Ca, *names: x509.GeneralName, **options: Any) -> x509.Certificate:
    """A certificate of a server of the web."""
    extension = x509.SubjectAlternativeName(names)
    return ca.node(extensions=[(extension, False)], **{**TODAY, **options})
