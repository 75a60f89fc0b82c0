"""Who may connect to the web page, and how many: strangers are at the expense of strangers only.

uvicorn takes all who come and waits for them for ever. So this accepts connections itself and hands them to
uvicorn's protocols one by one. One who has not logged in has :data:`STRANGER_SECONDS` and a place among few
(:class:`~minerva.console.throttle.Logins`); one who has is counted with its user's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from minerva.console.listeners import Connections
from minerva.console.throttle import Logins, Paces, source_of

log = logging.getLogger(__name__)

STRANGER_SECONDS: Final = 20.0
"""How long one may be connected who does not log in, TLS and all."""
STRANGERS_OF_SOURCE: Final = 16
STRANGERS: Final = 96
BURST: Final = 100
"""So often may one source connect at once,"""
PACE_SECONDS: Final = 0.1
"""and once more every so many seconds: TLS costs more than a connection."""
CONNECTIONS_OF_USER: Final = 64
"""When a user has more, the oldest of them end."""
MAX_HEADER: Final = 16_384
MAX_MESSAGE: Final = 65_536
END_SECONDS: Final = 2

_VISIT: Final = "visit"
_ACCEPT_PAUSE: Final = 1.0
_LOOK_SECONDS: Final = 1.0


class Visit:
    """One connection."""

    def __init__(self, gate: Gate, source: str) -> None:
        self._gate = gate
        self._user: str | None = None
        self._transport: asyncio.Transport | None = None
        self._number = gate.strangers.enter(source, self.end)
        self._timer = asyncio.get_running_loop().call_later(STRANGER_SECONDS, self.end)
        self.admitted = self._number is not None
        self.task: asyncio.Task[None] | None = None
        if not self.admitted:
            self._timer.cancel()

    def made(self, transport: asyncio.Transport) -> None:
        """TLS is up."""
        self._transport = transport

    def known(self, user: str) -> None:
        """Whoever it is has logged in."""
        if self._user is None:
            self._leave_strangers()
            self._user = user
            self._gate.count(user, self)

    def end(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()
        elif self.task is not None:
            self.task.cancel()

    def ended(self) -> None:
        """The connection has ended; again has no effect."""
        self._leave_strangers()
        if self._user is not None:
            self._gate.forget(self._user, self)

    def _leave_strangers(self) -> None:
        self._timer.cancel()
        if self._number is not None:
            self._gate.strangers.leave(self._number)
            self._number = None


def visit_of(scope: MutableMapping[str, Any]) -> Visit:
    """Return the connection that a request came by."""
    visit = scope["state"][_VISIT]
    assert isinstance(visit, Visit)
    return visit


class Gate:
    """Hands connections to uvicorn. It is the same for all sockets of the page."""

    def __init__(self) -> None:
        self.strangers = Logins(STRANGERS_OF_SOURCE, STRANGERS)
        self._paces = Paces(BURST, PACE_SECONDS)
        self._of_user: dict[str, dict[Visit, None]] = {}

    def count(self, user: str, visit: Visit) -> None:
        """Count a connection of a user; end the oldest of too many."""
        visits = self._of_user.setdefault(user, {})
        visits[visit] = None
        if len(visits) > CONNECTIONS_OF_USER:
            oldest = next(iter(visits))
            del visits[oldest]
            oldest.end()

    def forget(self, user: str, visit: Visit) -> None:
        """Count a connection no more."""
        visits = self._of_user.get(user, {})
        visits.pop(visit, None)
        if not visits:
            self._of_user.pop(user, None)

    async def serve(
        self, listener: socket.socket, connections: Connections, context: ssl.SSLContext, app: Any
    ) -> None:
        """Serve those who connect to ``listener``, until this is cancelled; those who are served go on."""
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            http=_Http,
            ws=_WebSocket,
            ws_max_size=MAX_MESSAGE,
            ws_per_message_deflate=False,
            h11_max_incomplete_event_size=MAX_HEADER,
            timeout_graceful_shutdown=END_SECONDS,
        )
        server = _Server(config)
        running = asyncio.ensure_future(server.serve(sockets=[]))
        try:
            while not server.started:
                await asyncio.sleep(0)
            await self._accept(listener, server, context)
        finally:
            connections.add(asyncio.ensure_future(_finish(server, running)))

    async def _accept(self, listener: socket.socket, server: _Server, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                peer, address = await loop.sock_accept(listener)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                log.error("web: accept: %s", error.strerror)
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            source = source_of(str(address[0]))
            if not self._paces.take(source, loop.time()):
                peer.close()
                continue
            visit = Visit(self, source)
            if visit.admitted:
                visit.task = loop.create_task(_connect(peer, visit, server, context))
                server.handshakes.add(visit.task)
                visit.task.add_done_callback(server.handshakes.discard)
            else:
                peer.close()


async def _connect(peer: socket.socket, visit: Visit, server: _Server, context: ssl.SSLContext) -> None:
    """Make TLS with one who has come; from then on, uvicorn has the connection."""
    try:
        await asyncio.get_running_loop().connect_accepted_socket(
            server.protocol(visit), peer, ssl=context, ssl_handshake_timeout=STRANGER_SECONDS
        )
    except (OSError, asyncio.CancelledError):
        # It did not speak TLS, or not in time.
        visit.ended()
        peer.close()
    except BaseException:
        visit.ended()
        peer.close()
        raise


class _Http(H11Protocol):
    """uvicorn's, which says when it begins and ends."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state[_VISIT].made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.app_state[_VISIT].ended()
        super().connection_lost(exc)


class _WebSocket(WebSocketsSansIOProtocol):
    """uvicorn's, which says when it ends, and keeps no answers for one who does not take them."""

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                # As uvicorn does, but for a traceback in the log for each.
                self.frames = []
                self.conn.send_close(1007)
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # only the last ping needs an answer (RFC 6455 section 5.5.3)

    def connection_lost(self, exc: Exception | None) -> None:
        self.app_state[_VISIT].ended()
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    """uvicorn, without its hands on the signals of this process, and without listening itself."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.handshakes: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them as they are."""
        yield

    def protocol(self, visit: Visit) -> Callable[[], asyncio.Protocol]:
        """Return what makes the protocol of one connection."""
        return lambda: _Http(
            config=self.config,
            server_state=self.server_state,
            app_state={**self.lifespan.state, _VISIT: visit},
        )


async def _finish(server: _Server, running: asyncio.Future[None]) -> None:
    """Serve those who are here until they leave, or until this is cancelled."""
    try:
        while server.server_state.connections or server.handshakes:
            await asyncio.sleep(_LOOK_SECONDS)
    finally:
        for task in tuple(server.handshakes):
            task.cancel()
        server.should_exit = True
        await running
