"""An HTTP server for ASGI applications, over TLS that shows the client's certificate.

Why not one of the well-known servers: docs/decisions.md. What each client may cost is in
:class:`~minerva.https.exchange.Limits`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cryptography import x509
from OpenSSL import SSL

from minerva.core.rate import TokenBucket
from minerva.core.text import printable
from minerva.https.errors import HttpClosed, HttpError
from minerva.https.exchange import Limits, ServerConnection, client_chain, tls_version
from minerva.https.lifespan import Application, Lifespan
from minerva.https.stream import TcpStream, TlsStream
from minerva.pki.keys import PrivateKey
from minerva.tls.context import accept_any_certificate, make_context

__all__ = ["HttpServer", "Limits", "client_chain", "make_server_context", "serve", "tls_version"]

log = logging.getLogger(__name__)

GIVE_WAY_SECONDS = 1.0
"""For how long nobody has to give way who is in the middle of the handshake or of a request."""


def make_server_context(
    certificate: x509.Certificate,
    chain: Iterable[x509.Certificate],
    key: PrivateKey,
    *,
    client: Literal["required", "optional"],
) -> SSL.Context:
    """Return a context for a server that asks its clients for a certificate.

    Whatever they send is accepted, if they prove that they own its key: the application looks at
    :func:`client_chain` and decides. The rest is as in :func:`minerva.tls.context.make_context`.
    """
    context = make_context(certificate, chain, key)
    if client == "optional":
        accept_any_certificate(context, required=False)
    return context


async def serve(
    app: Application,
    sockets: Sequence[socket.socket],
    context: SSL.Context | None,
    *,
    ready: Callable[[], object],
    stop: asyncio.Event,
    limits: Limits | None = None,
) -> None:
    """Serve ``app`` on ``sockets``, which listen already, until ``stop`` is set; then close them.

    Without a ``context`` HTTP is in the clear. ``ready()`` is called as soon as clients are served. At the
    end what is under way is finished, within :attr:`Limits.shutdown`. Raises
    :class:`~minerva.https.errors.HttpUsageError` if the application cannot start.
    """
    server = HttpServer(app, context, limits=limits)
    await server.begin(sockets)
    try:
        ready()
        await stop.wait()
    finally:
        await server.end()


class HttpServer:
    """A server, for those who want to see its ``counters`` or to change its ``context`` while it runs.

    A new context is for connections to come.
    """

    def __init__(
        self, app: Application, context: SSL.Context | None, *, limits: Limits | None = None
    ) -> None:
        self.context = context
        self.counters: Counter[str] = Counter()
        """``accepted``, ``refused`` (too many), ``displaced`` (idle and slow ones for new ones),
        ``failed`` (TLS), ``silent`` (closed again without a word)."""
        self._app = app
        self._limits = limits or Limits()
        self._lifespan = Lifespan(app)
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._clients: dict[asyncio.Task[None], _Client] = {}
        self._peers: Counter[str] = Counter()
        self._complaints = TokenBucket(10, 1.0)

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._clients)

    async def begin(self, sockets: Sequence[socket.socket]) -> None:
        """Start the application, then serve on ``sockets``."""
        self._listeners = list(sockets)
        try:
            await self._lifespan.begin()
        except BaseException:
            self._close_listeners()
            raise
        loop = asyncio.get_running_loop()
        for listener in sockets:
            listener.setblocking(False)
            self._accepting.append(loop.create_task(self._accept(listener)))

    async def end(self) -> None:
        """Take no more connections, finish what is under way, close everything, end the application."""
        for task in self._accepting:
            task.cancel()
        if self._accepting:
            await asyncio.wait(self._accepting)
        self._close_listeners()
        for task, client in self._clients.items():
            client.end(task)
        if self._clients:
            await asyncio.wait(self._clients, timeout=self._limits.shutdown)
        for task in self._clients:
            task.cancel()
        if self._clients:
            await asyncio.wait(self._clients)
        await self._lifespan.end()

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:
                # Also that of a connection which is gone before it was taken. Others may come.
                self._complain("somebody", f"it could not be accepted: {error.strerror or error}")
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._displace(None)
                await asyncio.sleep(0.2)
                continue
            if self._has_room(address[0]):
                client = _Client(sock, address[:2])
                task = loop.create_task(self._serve(client))
                self._clients[task] = client
                self._peers[client.peer] += 1
                self.counters["accepted"] += 1
                task.add_done_callback(self._gone)
            else:
                self.counters["refused"] += 1
                self._complain(address[0], "too many connections")
                sock.close()
            # Those who are connected come before those who knock.
            await asyncio.sleep(0)

    def _has_room(self, peer: str) -> bool:
        if self._peers[peer] >= self._limits.connections_per_peer:
            return self._displace(peer)
        return len(self._clients) < self._limits.connections or self._displace(None)

    def _displace(self, peer: str | None) -> bool:
        """End the connection (of ``peer``) that has been idle for longest; return whether there was one.

        If none is idle, the one goes that has taken longest to shake hands or to say what it wants: else
        those who never do would keep all others out.
        """
        clients = [
            (client, task)
            for task, client in self._clients.items()
            if not client.displaced and (peer is None or client.peer == peer)
        ]
        late = time.monotonic() - GIVE_WAY_SECONDS
        found = [item for item in clients if item[0].is_idle] or [
            item for item in clients if not item[0].is_answered and item[0].since <= late
        ]
        if not found:
            return False
        _, task = min(found, key=lambda item: item[0].since)
        self.counters["displaced"] += 1
        self._clients[task].displaced = True
        task.cancel()
        return True

    async def _serve(self, client: _Client) -> None:
        """Shake hands with a client and serve it."""
        try:
            stream = await self._open(client.sock)
        except HttpClosed:
            self.counters["silent"] += 1  # somebody looked whether we are here, such as a join proxy
            return
        except HttpError as error:
            self.counters["failed"] += 1
            self._complain(client.peer, str(error))
            return
        try:
            client.connection = ServerConnection(
                self._app,
                stream,
                limits=self._limits,
                client=client.address,
                server=client.sock.getsockname()[:2],
                state=self._lifespan.state,
            )
            await client.connection.run()
        finally:
            await stream.close()

    async def _open(self, sock: socket.socket) -> TcpStream | TlsStream:
        if self.context is None:
            return TcpStream(sock)
        return await TlsStream.server(sock, self.context, timeout=self._limits.handshake)

    def _gone(self, task: asyncio.Task[None]) -> None:
        client = self._clients.pop(task)
        # Whatever happened, and also if the task never ran.
        client.sock.close()
        self._peers[client.peer] -= 1
        if not self._peers[client.peer]:
            del self._peers[client.peer]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("serving %s failed", client.peer, exc_info=error)

    def _complain(self, peer: str, reason: str) -> None:
        if self._complaints.take(asyncio.get_running_loop().time()):
            log.info("no connection with %s: %s", peer, printable(reason))


@dataclass(eq=False, slots=True)
class _Client:
    """A connection that somebody opened."""

    sock: socket.socket
    address: tuple[str, int]
    connection: ServerConnection | None = None
    displaced: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def peer(self) -> str:
        return self.address[0]

    @property
    def is_idle(self) -> bool:
        return self.connection is not None and self.connection.idle

    @property
    def is_answered(self) -> bool:
        """Whether it has said what it wants."""
        return self.connection is not None and self.connection.answering

    @property
    def since(self) -> float:
        """When what it does at present began."""
        return self.began if self.connection is None else self.connection.since

    def end(self, task: asyncio.Task[None]) -> None:
        """End ``task``, which serves it: at once, or after the answer that is under way."""
        if self.connection is None or self.connection.idle:
            task.cancel()
        else:
            self.connection.closing = True
