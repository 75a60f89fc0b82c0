"""The registrar as a client of the manufacturers' services, MASAs (RFC 8995 sections 5.4 to 5.8).

Connections are kept, for the next device of the same manufacturer will come. The server is always verified:
by the anchors that go for this manufacturer, and by the host name or address in the URL. Redirections are
not followed: nobody but the manufacturer's certificate, or the operator, says where its MASA is.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from cryptography import x509

from minerva.brski.registrar.errors import RegistrarError
from minerva.core.text import shortened
from minerva.https.client import HttpClient, Response
from minerva.https.errors import (
    HttpClosed,
    HttpError,
    HttpProtocolError,
    HttpTimeout,
    HttpUsageError,
    NotTrustedError,
    StreamError,
)
from minerva.https.stream import ByteStream, host_and_port, web_stream
from minerva.pki.errors import IdevidError
from minerva.pki.idevid import normalise_masa_url
from minerva.pki.keys import PrivateKey

log = logging.getLogger(__name__)

VOUCHER_CMS_JSON: Final = "application/voucher-cms+json"
"""The one media type of vouchers and requests for them (RFC 8995 section 5.6)."""

MAX_CONNECTIONS: Final = 8
"""How many requests of one MASA are under way at a time; others wait for their turn."""

IDLE_SECONDS: Final = 60.0
"""How long a connection is kept that nobody uses, in seconds."""

MAX_SERVERS: Final = 100
"""With how many servers connections are kept."""

_ATTEMPTS = 2
_REASON = 300


class MasaError(RegistrarError):
    """A MASA did not give what it was asked for; ``str()`` names it and says why."""


class MasaAwayError(MasaError):
    """It cannot be reached, or not now: it may work later, in ``retry_after`` seconds if it said so."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class MasaUntrustedError(MasaError):
    """Its TLS certificate is not acceptable."""


class MasaRefusedError(MasaError):
    """It refuses, with this HTTP status; ``text`` is what it says, harmless to show."""

    def __init__(self, reason: str, status: int, text: str) -> None:
        super().__init__(reason)
        self.status = status
        self.text = text


class MasaAnswerError(MasaError):
    """It answers with something that makes no sense."""


@dataclass(frozen=True, slots=True)
class MasaServer:
    """Where a MASA is (``https://authority/path``), and what its TLS certificate is checked with."""

    url: str
    anchors: tuple[x509.Certificate, ...] | Literal["web"] = "web"


@dataclass(frozen=True, slots=True)
class Credentials:
    """How the registrar shows a MASA who its customer is (section 5.4.1)."""

    certificate: x509.Certificate | None = None
    chain: tuple[x509.Certificate, ...] = ()
    key: PrivateKey | None = field(default=None, repr=False)
    user: str = ""
    password: str = field(default="", repr=False)


@dataclass(slots=True)
class _Pool:
    """The connections with one server: those that nobody uses now, and a place for each that may be."""

    places: asyncio.Semaphore
    idle: list[tuple[float, HttpClient]] = field(default_factory=list)


class MasaClient:
    """Asks MASAs. ``timeout`` is for one answer, in seconds; ``environment`` may name proxies.

    ``credentials`` returns what to show to the server with a host name or address and a port.
    """

    def __init__(
        self,
        *,
        timeout: float = 10.0,
        credentials: Callable[[str, int], Credentials] = lambda *_: Credentials(),
        environment: Mapping[str, str] = {},
    ) -> None:
        self._timeout = timeout
        self._credentials = credentials
        self._environment = environment
        self._pools: dict[tuple[str, int, object], _Pool] = {}

    async def request_voucher(
        self, server: MasaServer, request: bytes, accept: str = VOUCHER_CMS_JSON
    ) -> bytes:
        """Return the voucher for a registrar's voucher request, as it came. Raises :class:`MasaError`."""
        response = await self._post(server, "requestvoucher", request, accept)
        if response.status == 200:
            if response.content_type not in ("", VOUCHER_CMS_JSON):
                kind = shortened(response.content_type, 60)
                raise MasaAnswerError(f"{_name(server)} answered with {kind} instead of a voucher")
            return response.body
        raise self._failure(server, response)

    async def request_audit_log(self, server: MasaServer, request: bytes) -> bytes | None:
        """Return the audit log for the same request, ``None`` if it has none (404).

        Raises :class:`MasaError`.
        """
        response = await self._post(server, "requestauditlog", request, "application/json")
        if response.status == 201 and "location" in response.headers:
            response = await self._get(server, response.headers["location"])
        if response.status == 200:
            return response.body
        if response.status == 404:
            return None
        raise self._failure(server, response)

    async def close(self) -> None:
        """Close all connections that nobody uses."""
        for pool in self._pools.values():
            while pool.idle:
                await pool.idle.pop()[1].close()

    async def _post(self, server: MasaServer, operation: str, body: bytes, accept: str) -> Response:
        parts = urlsplit(server.url)
        headers = [("Content-Type", VOUCHER_CMS_JSON), ("Accept", accept)]
        return await self._exchange(server, "POST", f"{parts.path}/{operation}", headers, body)

    async def _get(self, server: MasaServer, location: str) -> Response:
        """Fetch what a MASA has put elsewhere: an absolute URL, or a path on the same server."""
        if location.startswith("/") and not location.startswith("//"):
            target, there = location, server
        else:
            try:
                parts = urlsplit(location)
                # Only for what it says of the authority; the path of a log is whatever the MASA wants.
                base = urlsplit(normalise_masa_url(f"{parts.scheme}://{parts.netloc}/"))
            except (ValueError, IdevidError) as error:
                raise MasaAnswerError(f"{_name(server)} has put its log where nobody can fetch it") from error
            if parts.scheme != "https":
                raise MasaAnswerError(f"{_name(server)} has put its log where it is not protected by TLS")
            there = MasaServer(f"https://{base.netloc}", server.anchors)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return await self._exchange(there, "GET", target, [("Accept", "application/json")], b"")

    async def _exchange(
        self, server: MasaServer, method: str, target: str, headers: list[tuple[str, str]], body: bytes
    ) -> Response:
        parts = urlsplit(server.url)
        host, port = parts.hostname or "", parts.port or 443
        shown = self._credentials(host, port)
        if shown.user:
            secret = base64.b64encode(f"{shown.user}:{shown.password}".encode()).decode("ascii")
            headers = [*headers, ("Authorization", f"Basic {secret}")]
        pool = await self._pool(host, port, server)
        try:
            async with pool.places:
                return await self._on_a_connection(pool, server, host, port, method, target, headers, body)
        except NotTrustedError as error:
            raise MasaUntrustedError(f"the MASA {error}") from error
        except HttpProtocolError as error:
            raise MasaAnswerError(f"{_name(server)}: {error}") from error
        except HttpError as error:
            raise MasaAwayError(f"{_name(server)}: {error}") from error
        except HttpUsageError as error:
            raise MasaAnswerError(f"{_name(server)} cannot be asked: {error}") from error

    async def _pool(self, host: str, port: int, server: MasaServer) -> _Pool:
        key = (host, port, server.anchors)
        if (pool := self._pools.get(key)) is None:
            if len(self._pools) >= MAX_SERVERS:
                # Those that nobody waits for; whose connections are under way stay alive without the pool.
                await self.close()
                self._pools.clear()
            pool = self._pools[key] = _Pool(asyncio.Semaphore(MAX_CONNECTIONS))
        return pool

    async def _on_a_connection(
        self,
        pool: _Pool,
        server: MasaServer,
        host: str,
        port: int,
        method: str,
        target: str,
        headers: list[tuple[str, str]],
        body: bytes,
    ) -> Response:
        """Make the request on a kept connection, or on a new one if there is none that works any more."""
        loop = asyncio.get_running_loop()
        while True:
            client = await self._kept(pool, loop.time())
            kept = client is not None
            if client is None:
                stream = await self._connect(server, host, port)
                client = HttpClient(stream, host_and_port(host, port))
            try:
                response = await client.request(
                    method, target, headers=headers, body=body, timeout=self._timeout
                )
            except HttpClosed:
                await client.close()
                if not kept:
                    raise
                continue
            except BaseException:
                await client.close()
                raise
            if client.usable:
                pool.idle.append((loop.time() + IDLE_SECONDS, client))
            else:
                await client.close()
            return response

    async def _kept(self, pool: _Pool, now: float) -> HttpClient | None:
        while pool.idle:
            expires, client = pool.idle.pop()
            if client.usable and now < expires:
                return client
            await client.close()
        return None

    async def _connect(self, server: MasaServer, host: str, port: int) -> ByteStream:
        """Connect, once more if the first attempt fails for another reason than trust."""
        shown = self._credentials(host, port)
        for attempt in range(1, _ATTEMPTS + 1):
            tunnel = None
            try:
                tunnel = await self._tunnel(host, port)
                return await web_stream(
                    host,
                    port,
                    anchors=server.anchors,
                    certificate=shown.certificate,
                    chain=shown.chain,
                    key=shown.key,
                    timeout=self._timeout,
                    sock=tunnel,
                )
            except (HttpError, HttpUsageError) as error:
                if tunnel is not None:
                    tunnel.close()
                again = isinstance(error, StreamError) and not isinstance(error, NotTrustedError)
                if not again or attempt == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    async def _tunnel(self, host: str, port: int) -> socket.socket | None:
        """Return a socket connected to the server by the proxy that the environment names, if any."""
        proxy = proxy_for(host, self._environment)
        if proxy is None:
            return None
        where = host_and_port(proxy.host, proxy.port, 0)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                found = await loop.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
                family, kind, protocol, _, address = found[0]
                sock = socket.socket(family, kind, protocol)
                sock.setblocking(False)
                try:
                    await loop.sock_connect(sock, address)
                    await _connect_through(sock, host_and_port(host, port, 0), proxy, where)
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError as error:
            raise HttpTimeout(f"the proxy {where} could not be reached within {self._timeout:g} s") from error
        except OSError as error:
            raise StreamError(f"no connection with the proxy {where}: {error.strerror or error}") from error
        return sock

    def _failure(self, server: MasaServer, response: Response) -> MasaError:
        name, text = _name(server), response.text(_REASON)
        said = f": {text}" if text else ""
        if response.status == 401:
            # Nobody sees it otherwise: the operator has to arrange something with the manufacturer.
            log.error("%s wants to know who we are (401)%s; see masa.servers in registrar.toml", name, said)
            return MasaRefusedError(f"{name} wants to know who we are (401){said}", 401, text)
        if response.status in (202, 429) or response.status >= 500:
            wait = response.retry_after(datetime.now(UTC))
            return MasaAwayError(f"{name} cannot answer now ({response.status}){said}", wait)
        if 400 <= response.status < 500:
            return MasaRefusedError(f"{name} refuses ({response.status}){said}", response.status, text)
        return MasaAnswerError(f"{name} answered with {response.status}, which makes no sense")


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; ``login`` is user and password as in its URL."""

    host: str
    port: int
    login: str = field(default="", repr=False)


def proxy_for(host: str, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy by which ``host`` is to be reached, as HTTPS_PROXY and NO_PROXY say.

    Raises :class:`~minerva.https.errors.HttpUsageError` for one that is not of use.
    """

    def value(name: str) -> str:
        return environment.get(name.lower()) or environment.get(name) or ""

    url = value("HTTPS_PROXY") or value("ALL_PROXY")
    if not url or any(_matches(host, entry.strip()) for entry in value("NO_PROXY").split(",")):
        return None
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        name, port = parts.hostname, parts.port or 80
    except ValueError as error:
        raise HttpUsageError(f"HTTPS_PROXY is not a URL: {error}") from error
    if parts.scheme != "http" or not name:
        raise HttpUsageError("HTTPS_PROXY must be the URL http://HOST:PORT of a proxy")
    login = parts.netloc.rpartition("@")[0]
    return Proxy(name, port, unquote(login))


def _matches(host: str, entry: str) -> bool:
    """Return whether an entry of NO_PROXY is about ``host``."""
    if entry == "*":
        return True
    entry = entry.strip("[]").lstrip(".").lower()
    return bool(entry) and (host == entry or host.endswith(f".{entry}"))


async def _connect_through(sock: socket.socket, target: str, proxy: Proxy, where: str) -> None:
    """Have the proxy at the other end of ``sock`` connect us with ``target``."""
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.login:
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(proxy.login.encode()).decode('ascii')}")
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode("ascii"))
    head = bytearray()
    # Not a byte too many may be taken: after the head, the server's TLS begins.
    while not head.endswith(b"\r\n\r\n"):
        byte = await loop.sock_recv(sock, 1)
        if not byte or len(head) > 8192:
            raise StreamError(f"the proxy {where} does not speak HTTP")
        head += byte
    status = head.split(b"\r\n", 1)[0].split(b" ")
    if len(status) < 2 or not status[0].startswith(b"HTTP/1.") or not status[1].startswith(b"2"):
        line = shortened(head.split(b"\r\n", 1)[0].decode("latin-1"), 100)
        raise StreamError(f"the proxy {where} does not connect us: {line}")


def _name(server: MasaServer) -> str:
    return f"the MASA {shortened(urlsplit(server.url).netloc, 100)}"
