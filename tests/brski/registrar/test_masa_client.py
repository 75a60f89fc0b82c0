"""The registrar asks MASAs: which it trusts, what it makes of their answers, how it gets there."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from minerva.brski.registrar import masa_client as module
from minerva.brski.registrar.masa_client import (
    VOUCHER_CMS_JSON,
    Credentials,
    MasaAnswerError,
    MasaAwayError,
    MasaClient,
    MasaRefusedError,
    MasaServer,
    MasaUntrustedError,
    Proxy,
    proxy_for,
)
from minerva.https.errors import HttpUsageError
from minerva.https.exchange import Limits
from minerva.https.server import HttpServer, client_chain, make_server_context
from tests.pki.certs import Ca, key, subject

TODAY = {"start": datetime.now(UTC) - timedelta(days=1), "end": datetime.now(UTC) + timedelta(days=30)}
ROOT = Ca.root("MASA root", **TODAY)


def names(*given: str) -> x509.SubjectAlternativeName:
    found: list[x509.GeneralName] = []
    for name in given:
        try:
            found.append(x509.IPAddress(ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(found)


def certificate(*given: str, ca: Ca = ROOT, **options: Any) -> x509.Certificate:
    extensions = [(names(*given), False)] if given else []
    return ca.node(subject=subject("masa"), extensions=extensions, **TODAY | options)


GOOD = certificate("127.0.0.1", "localhost")


@dataclass
class Masa:
    """A server that answers as it is told, and remembers what it was asked."""

    answer: Callable[[Request, bytes], Awaitable[Response]] | None = None
    certificate: x509.Certificate = GOOD
    port: int = 0
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    chains: list[Any] = field(default_factory=list)
    server: HttpServer | None = None

    @property
    def at(self) -> MasaServer:
        return MasaServer(f"https://localhost:{self.port}/.well-known/brski", (ROOT.certificate,))

    async def _handle(self, request: Request) -> Response:
        body = await request.body()
        self.asked.append((request.method, request.url.path, dict(request.headers), body))
        self.chains.append(client_chain(request.scope))
        if self.answer is not None:
            return await self.answer(request, body)
        return Response(b"voucher", media_type=VOUCHER_CMS_JSON)

    @asynccontextmanager
    async def running(self, limits: Limits | None = None) -> AsyncIterator[Masa]:
        methods = ["GET", "POST"]
        app = Starlette(routes=[Route("/{path:path}", self._handle, methods=methods)])
        sock = socket.create_server(("127.0.0.1", self.port))
        self.port = sock.getsockname()[1]
        context = make_server_context(self.certificate, (), key("p256"), client="optional")
        self.server = HttpServer(app, context, limits=limits)
        await self.server.begin([sock])
        try:
            yield self
        finally:
            await self.server.end()


def saying(status: int, body: str = "", **headers: str) -> Callable[[Request, bytes], Awaitable[Response]]:
    async def answer(_: Request, __: bytes) -> Response:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return Response(body, status, fields, "text/plain")

    return answer


@asynccontextmanager
async def client(**options: Any) -> AsyncIterator[MasaClient]:
    made = MasaClient(**{"timeout": 5.0} | options)
    try:
        yield made
    finally:
        await made.close()


def run(test: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await test

    asyncio.run(main())


def test_what_is_sent_and_that_connections_are_kept() -> None:
    """
    covers: R-40, R-42
    """

    async def scenario() -> None:
        async with Masa().running() as masa, client() as asker:
            for _ in range(3):
                assert await asker.request_voucher(masa.at, b"request") == b"voucher"
            method, path, headers, body = masa.asked[0]
            assert (method, path, body) == ("POST", "/.well-known/brski/requestvoucher", b"request")
            assert headers["content-type"] == headers["accept"] == VOUCHER_CMS_JSON
            assert headers["host"] == f"localhost:{masa.port}"
            assert masa.server is not None
            assert masa.server.counters["accepted"] == 1
            assert masa.chains == [()] * 3

    run(scenario())


def test_many_at_a_time_share_a_few_connections() -> None:
    async def scenario() -> None:
        async def slow(_: Request, __: bytes) -> Response:
            await asyncio.sleep(0.01)
            return Response(b"v", media_type=VOUCHER_CMS_JSON)

        async with Masa(slow).running() as masa, client() as asker:
            await asyncio.gather(*(asker.request_voucher(masa.at, b"r") for _ in range(40)))
            assert masa.server is not None
            assert masa.server.counters["accepted"] <= module.MAX_CONNECTIONS

    run(scenario())


def test_a_kept_connection_that_the_server_has_closed() -> None:
    async def scenario() -> None:
        async with Masa().running(Limits(idle=0.05)) as masa, client() as asker:
            await asker.request_voucher(masa.at, b"r")
            await asyncio.sleep(0.3)
            assert await asker.request_voucher(masa.at, b"r") == b"voucher"
            assert masa.server is not None
            assert masa.server.counters["accepted"] == 2

    run(scenario())


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (certificate("masa.example.com"), "another name"),
        (certificate(), "localhost"),
        (certificate("localhost", ca=Ca.root("Stranger", kind="p256/stranger", **TODAY)), "no trust anchor"),
        (
            certificate(
                "localhost", start=datetime(2020, 1, 1, tzinfo=UTC), end=datetime(2021, 1, 1, tzinfo=UTC)
            ),
            "expired",
        ),
    ],
)
def test_a_server_that_is_not_the_masa(shown: x509.Certificate, said: str) -> None:
    """
    covers: R-32
    """

    async def scenario() -> None:
        async with Masa(certificate=shown).running() as masa, client() as asker:
            with pytest.raises(MasaUntrustedError) as caught:
                await asker.request_voucher(masa.at, b"r")
            assert said in str(caught.value)
            assert masa.asked == []

    run(scenario())


def test_the_web_does_not_know_a_private_masa() -> None:
    """
    covers: R-32
    """

    async def scenario() -> None:
        async with Masa().running() as masa, client() as asker:
            with pytest.raises(MasaUntrustedError):
                await asker.request_voucher(MasaServer(masa.at.url), b"r")

    run(scenario())


def test_the_name_is_sent_as_sni() -> None:
    """
    covers: R-32
    """

    async def scenario() -> None:
        seen: list[bytes | None] = []
        async with Masa().running() as masa, client() as asker:
            assert masa.server is not None
            assert masa.server.context is not None
            masa.server.context.set_tlsext_servername_callback(
                lambda connection: seen.append(connection.get_servername())
            )
            await asker.request_voucher(masa.at, b"r")
            assert seen == [b"localhost"]

    run(scenario())


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (202, MasaAwayError),
        (429, MasaAwayError),
        (500, MasaAwayError),
        (503, MasaAwayError),
        (401, MasaRefusedError),
        (403, MasaRefusedError),
        (404, MasaRefusedError),
        (406, MasaRefusedError),
        (301, MasaAnswerError),
        (307, MasaAnswerError),
        (204, MasaAnswerError),
    ],
)
def test_what_is_made_of_a_status(
    status: int, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """
    covers: R-32, R-50
    """

    async def scenario() -> None:
        text = "" if status == 204 else "sold\x1b[2J"
        answer = saying(status, text, retry_after="7", location="https://elsewhere.example/")
        async with Masa(answer).running() as masa, client() as asker:
            with pytest.raises(kind) as caught:
                await asker.request_voucher(masa.at, b"r")
            error = caught.value
            assert f"localhost:{masa.port}" in str(error)
            assert str(error).isprintable()
            if isinstance(error, MasaAwayError):
                assert error.retry_after == 7.0
            if isinstance(error, MasaRefusedError):
                assert (error.status, error.text) == (status, "sold\\u001b[2J")
            assert len(masa.asked) == 1  # nobody is redirected

    run(scenario())
    assert ("wants to know who we are" in caplog.text) is (status == 401)


def test_answers_that_make_no_sense() -> None:
    async def scenario() -> None:
        async def html(_: Request, __: bytes) -> Response:
            return Response("<html>", 200, media_type="text/html")

        async with Masa(html).running() as masa, client() as asker:
            with pytest.raises(MasaAnswerError, match="text/html instead of a voucher"):
                await asker.request_voucher(masa.at, b"r")

        async def huge(_: Request, __: bytes) -> Response:
            return Response(b"x" * 300_000, media_type=VOUCHER_CMS_JSON)

        async with Masa(huge).running() as masa, client() as asker:
            with pytest.raises(MasaAnswerError, match="larger"):
                await asker.request_voucher(masa.at, b"r")

    run(scenario())


def test_a_masa_that_is_not_there_or_too_slow() -> None:
    """
    covers: R-23
    """

    async def scenario() -> None:
        masa = Masa()
        async with masa.running():
            pass
        async with client() as asker:
            with pytest.raises(MasaAwayError):
                await asker.request_voucher(masa.at, b"r")

        async def never(_: Request, __: bytes) -> Response:
            await asyncio.sleep(30)
            return Response()

        async with Masa(never).running(Limits(shutdown=0.1)) as slow, client(timeout=0.3) as asker:
            with pytest.raises(MasaAwayError, match="did not answer"):
                await asker.request_voucher(slow.at, b"r")

    run(scenario())


# The audit log


def test_the_audit_log_is_answered_or_elsewhere_or_not_there() -> None:
    """
    covers: R-61
    """

    async def scenario() -> None:
        place = [""]

        async def answer(request: Request, _: bytes) -> Response:
            path = request.url.path
            if path.endswith("/requestauditlog"):
                return Response(status_code=201, headers={"Location": place[0]})
            return Response(b"log", headers={"Location": "ignored"})

        async with Masa(answer).running() as masa, client() as asker:
            for place[0] in (
                "/log/1",
                f"https://localhost:{masa.port}/log/1?a=b",
                f"HTTPS://LOCALHOST:{masa.port}/log/1",
            ):
                masa.asked.clear()
                assert await asker.request_audit_log(masa.at, b"r") == b"log"
                assert [(method, path) for method, path, _, _ in masa.asked] == [
                    ("POST", "/.well-known/brski/requestauditlog"),
                    ("GET", "/log/1"),
                ]
                assert masa.asked[0][3] == b"r"
                assert masa.asked[0][2]["content-type"] == VOUCHER_CMS_JSON
            for place[0] in (
                "http://localhost/log",
                "ftp://x/",
                "//localhost/log",
                "log",
                "https://",
                "https://[::1",
            ):
                with pytest.raises(MasaAnswerError):
                    await asker.request_audit_log(masa.at, b"r")
        async with Masa(saying(404, "no")).running() as masa, client() as asker:
            assert await asker.request_audit_log(masa.at, b"r") is None
        async with Masa(saying(403, "no")).running() as masa, client() as asker:
            with pytest.raises(MasaRefusedError):
                await asker.request_audit_log(masa.at, b"r")

    run(scenario())


# Who we are


def test_credentials_are_for_one_server() -> None:
    """
    covers: R-32
    """
    own = ROOT.node(subject=subject("customer"), **TODAY)

    async def scenario() -> None:
        def credentials(host: str, port: int) -> Credentials:
            assert host == "localhost"
            return Credentials(own, (), key("p256"), "me", "secret") if port == masa.port else Credentials()

        async with (
            Masa().running() as masa,
            Masa().running() as other,
            client(credentials=credentials) as asker,
        ):
            await asker.request_voucher(masa.at, b"r")
            await asker.request_voucher(other.at, b"r")
            assert [chain[0] for chain in masa.chains] == [own]
            expected = f"Basic {base64.b64encode(b'me:secret').decode()}"
            assert masa.asked[0][2]["authorization"] == expected
            assert other.chains == [()]
            assert "authorization" not in other.asked[0][2]

    run(scenario())
    assert "secret" not in repr(Credentials(user="me", password="secret"))


# Proxies


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, Proxy("proxy", 3128)),
        ({"https_proxy": "proxy"}, Proxy("proxy", 80)),
        ({"ALL_PROXY": "http://u:p%40@[2001:db8::1]:3128/"}, Proxy("2001:db8::1", 3128, "u:p@")),
        ({"HTTPS_PROXY": "http://p", "NO_PROXY": "*"}, None),
        ({"HTTPS_PROXY": "http://p", "no_proxy": "other, .example.com"}, None),
        ({"HTTPS_PROXY": "http://p", "NO_PROXY": "ample.com"}, Proxy("p", 80)),
    ],
)
def test_which_proxy(environment: dict[str, str], expected: Proxy | None) -> None:
    assert proxy_for("masa.example.com", environment) == expected


@pytest.mark.parametrize("url", ["socks5://p:1", "https://p", "http://:1", "http://p:x"])
def test_proxies_of_no_use(url: str) -> None:
    with pytest.raises(HttpUsageError):
        proxy_for("masa.example.com", {"HTTPS_PROXY": url})


@asynccontextmanager
async def proxy(answer: bytes = b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n") -> AsyncIterator[tuple[int, list[bytes]]]:
    """A proxy that connects everybody with whom he names."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head)
        writer.write(answer)
        if answer.startswith(b"HTTP/1.1 200"):
            host, _, port = head.split()[1].decode().rpartition(":")
            there, back = await asyncio.open_connection(host, int(port))
            await asyncio.gather(copy(reader, back), copy(there, writer))
        writer.close()

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
        target.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heads
    finally:
        server.close()


def by(port: int) -> dict[str, str]:
    return {"HTTPS_PROXY": f"http://127.0.0.1:{port}"}


def test_by_a_proxy() -> None:
    async def scenario() -> None:
        async with Masa().running() as masa, proxy() as (port, heads):
            environment = {"HTTPS_PROXY": f"http://me:pw@127.0.0.1:{port}"}
            async with client(environment=environment) as asker:
                assert await asker.request_voucher(masa.at, b"r") == b"voucher"
                assert await asker.request_voucher(masa.at, b"r") == b"voucher"
            (head,) = heads
            assert head.startswith(f"CONNECT localhost:{masa.port} HTTP/1.1\r\n".encode())
            assert b"Proxy-Authorization: Basic " + base64.b64encode(b"me:pw") in head
        # The server is checked behind a proxy as well.
        bad = Masa(certificate=certificate("masa.example.com"))
        async with bad.running() as masa, proxy() as (port, _), client(environment=by(port)) as asker:
            with pytest.raises(MasaUntrustedError):
                await asker.request_voucher(masa.at, b"r")

    run(scenario())


@pytest.mark.parametrize("answer", [b"HTTP/1.1 403 No\r\n\r\n", b"x" * 9000, b"", b"garbage\r\n\r\n"])
def test_a_proxy_that_does_not(answer: bytes) -> None:
    async def scenario() -> None:
        async with proxy(answer) as (port, _), client(environment=by(port)) as asker:
            with pytest.raises(MasaAwayError, match="proxy"):
                await asker.request_voucher(MasaServer("https://masa.example.com"), b"r")

    run(scenario())


def test_connections_are_kept_with_so_many_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SERVERS", 2)

    async def scenario() -> None:
        async with Masa().running() as masa, client() as asker:
            for path in ("", "/a", "/b"):
                server = MasaServer(masa.at.url + path, (ROOT.certificate,))
                await asker.request_voucher(server, b"r")
            other = Ca.root("Other", kind="p256/other", **TODAY).certificate
            for anchors in ((ROOT.certificate, other), (other, ROOT.certificate)):
                await asker.request_voucher(MasaServer(masa.at.url, anchors), b"r")
            assert len(asker._pools) == 1
            assert masa.server is not None
            assert masa.server.counters["accepted"] == 3

    run(scenario())
