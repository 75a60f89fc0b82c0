"""Drives the GRASP engine on the sockets of the ACP namespace (RFC 8994 section 6.9.2).

One listener on port 7017 serves both kinds of connection. Whoever connects to a link-local address comes over
a channel, whose other end is authenticated, and speaks plain TCP; whoever connects to the ACP address
authenticates itself by TLS. Nothing else is let in. The decisions are the engine's; here are bytes,
certificates and time limits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv6Address
from typing import Any

from OpenSSL import SSL

from minerva.connect.budget import TimeBudget
from minerva.core.errors import MinervaError
from minerva.grasp.constants import GRASP_LISTEN_PORT
from minerva.grasp.engine import GraspEngine
from minerva.grasp.substrate import Close, Connect, Send
from minerva.linux.sockets import grasp_listener, tcp_socket
from minerva.pki.identity import Identity
from minerva.pki.membership import RevocationCheck
from minerva.tls.connection import TlsConnection
from minerva.tls.membership import check_peer

log = logging.getLogger(__name__)

MAX_QUEUE = 1 << 20
"""Bytes that may wait for a peer that does not read; messages above that are lost to it, and counted."""

STALL_SECONDS = 10.0
"""How long a peer may leave everything unread before its connection is reset, in seconds."""

HANDSHAKE_SECONDS = 10.0
"""How long TLS may take to authenticate whoever connects, in seconds."""

MAX_HANDSHAKES, MAX_HANDSHAKES_PER_PEER = 128, 32
"""How many connections may be in TLS handshakes at a time, of all peers and of one."""

HANDSHAKES_PER_SECOND, HANDSHAKE_BURST = 250, 64
"""How many of them are done in a second, and at once: each costs about a millisecond, for which routing
waits. The others wait their turn."""

SHARE = 1 / 3
"""The part of the process's time that what comes on connections may take; the rest is for routing."""

_READ = 4096
"""The most bytes taken from one connection before others, and routing, have their turn."""

_LOOK_AGAIN = 3600.0  # seconds: the longest time between two looks at a certificate, should the clock be set


@dataclass(frozen=True, slots=True)
class GraspTls:
    """What TLS needs: our certificates with their key in ``context``, and whom we believe (``identity``).

    But for those whom ``revocation`` tells to be revoked.
    """

    context: SSL.Context
    identity: Identity
    revocation: RevocationCheck | None = None


class GraspRunner:
    """One engine on its listener and its connections.

    ``on_event(event)`` gets the engine's events. ``is_channel(interface)`` tells whether an interface is one.
    """

    def __init__(
        self,
        engine: GraspEngine,
        tls: GraspTls,
        *,
        on_event: Callable[[Any], None],
        is_channel: Callable[[int], bool],
    ) -> None:
        self.engine = engine
        self.tls = tls
        self.counters: Counter[str] = Counter()
        self._on_event = on_event
        self._is_channel = is_channel
        self._loop = asyncio.get_running_loop()
        self._connections: dict[int, _Wire] = {}
        self._handshakes: set[_Secured] = set()
        self._opening: dict[int, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._pumping = False
        self._server: asyncio.Server | None = None
        self._next_turn = 0.0
        self.budget = TimeBudget(SHARE)
        self.buffer = bytearray(_READ)

    async def listen(self) -> None:
        """Begin to listen. Raises OSError."""
        listener = grasp_listener(GRASP_LISTEN_PORT)
        self._server = await self._loop.create_server(lambda: _Incoming(self), sock=listener, backlog=256)

    def pump(self) -> None:
        """Do what the engine wants, take its events, arm its timer. To be called after using the engine."""
        if self._pumping:
            return
        self._pumping = True
        try:
            progress = True
            while progress:
                progress = False
                for action in self.engine.actions():
                    progress = True
                    self._act(action)
                while (event := self.engine.next_event()) is not None:
                    progress = True
                    self._on_event(event)
        finally:
            self._pumping = False
        if self._timer is not None:
            self._timer.cancel()
        when = self.engine.next_timer()
        self._timer = None if when is None else self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self.engine.on_timer(self._loop.time())
        self.pump()

    def _act(self, action: Connect | Send | Close) -> None:
        match action:
            case Connect():
                self._opening[action.connection] = self._loop.create_task(self._open(action))
            case Send() if action.connection in self._connections:
                self._connections[action.connection].write(action.data)
            case Close():
                opening = self._opening.pop(action.connection, None)
                if opening is not None:
                    opening.cancel()
                wire = self._connections.pop(action.connection, None)
                if wire is not None:
                    wire.close(abort=action.abort)

    async def _open(self, action: Connect) -> None:
        source = action.source or self.engine.address
        sock = None
        try:
            sock = tcp_socket(source, action.interface or 0)
            target = (str(action.address), action.port, 0, action.interface or 0)
            await self._loop.sock_connect(sock, target)
            wire = _Link(self) if action.interface is not None else _Secured(self, action.address)
            wire.number = action.connection
            self._connections[action.connection] = wire
            await self._loop.create_connection(lambda: wire, sock=sock)
        except OSError as error:
            if sock is not None:
                sock.close()
            self._opening.pop(action.connection, None)
            self.lost(action.connection, error.strerror or str(error))
        except asyncio.CancelledError:
            if sock is not None:
                sock.close()
            raise
        else:
            self._opening.pop(action.connection, None)

    # --- what connections tell -----------------------------------------------------------------------------

    def has_room(self, peer: IPv6Address) -> bool:
        """Return whether one more may begin a handshake with us."""
        of_peer = sum(wire.peer == peer for wire in self._handshakes)
        return len(self._handshakes) < MAX_HANDSHAKES and of_peer < MAX_HANDSHAKES_PER_PEER

    def turn(self) -> float:
        """Return in how many seconds the next handshake with us may be done; that turn is then taken."""
        now = self._loop.time()
        turn = max(self._next_turn, now - HANDSHAKE_BURST / HANDSHAKES_PER_SECOND)
        self._next_turn = turn + 1 / HANDSHAKES_PER_SECOND
        return max(0.0, turn - now)

    def handshaking(self, wire: _Secured, *, begun: bool) -> None:
        """Note that a handshake of somebody who connected to us has begun or ended."""
        (self._handshakes.add if begun else self._handshakes.discard)(wire)

    def accepted(self, wire: _Wire, peer: IPv6Address, interface: int | None) -> bool:
        """Offer the engine a connection that somebody opened; return whether it takes it."""
        number = self.engine.accepted(peer, interface, self._loop.time())
        if number is None:
            return False
        wire.number = number
        self._connections[number] = wire
        self.pump()
        return True

    def ready(self, wire: _Wire) -> None:
        """Tell the engine that a connection it wanted is there."""
        self.engine.connected(wire.number, self._loop.time())
        self.pump()

    def received(self, number: int, data: bytes) -> None:
        """Tell the engine what has come."""
        self.engine.received(number, data, self._loop.time())
        self.pump()

    def lost(self, number: int, reason: str) -> None:
        """Tell the engine that a connection is gone."""
        self._connections.pop(number, None)
        if number:
            self.engine.closed(number, reason, self._loop.time())
            self.pump()

    def is_channel(self, interface: int) -> bool:
        """Return whether ``interface`` is that of a channel."""
        return self._is_channel(interface)

    def close(self) -> None:
        """Close everything, at once."""
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            self._server.close()
        for task in self._opening.values():
            task.cancel()
        for wire in [*self._connections.values(), *self._handshakes]:
            wire.close(abort=True)
        self._connections.clear()

    def status(self) -> dict[str, Any]:
        """Return what the sockets' side has to say in ``minerva status``."""
        return {
            "connections": len(self._connections),
            "handshakes": len(self._handshakes),
            "wire_counters": dict(self.counters),
        }


class _Incoming(asyncio.Protocol):
    """A connection of which nothing is known yet: it becomes a :class:`_Link` or a :class:`_Secured`."""

    def __init__(self, runner: GraspRunner) -> None:
        self._runner = runner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        local, local_scope = _address(transport.get_extra_info("sockname"))
        peer, _ = _address(transport.get_extra_info("peername"))
        wire: _Wire | None = None
        if local.is_link_local:
            if peer.is_link_local and self._runner.is_channel(local_scope):
                wire = _Link(self._runner, interface=local_scope)
        elif local == self._runner.engine.address and self._runner.has_room(peer):
            wire = _Secured(self._runner, peer, inbound=True)
        if wire is None:
            self._runner.counters["refused"] += 1
            transport.abort()
            return
        transport.set_protocol(wire)
        wire.connection_made(transport)


def _address(name: Any) -> tuple[IPv6Address, int]:
    """Return address and scope of a socket name; of one that is gone already, nothing that fits anywhere."""
    if not name:
        return IPv6Address("::"), 0
    return IPv6Address(name[0].partition("%")[0]), name[3]


class _Wire(asyncio.BufferedProtocol):
    """One TCP connection. ``number`` is the engine's, 0 as long as it has none."""

    def __init__(self, runner: GraspRunner) -> None:
        self.number = 0
        self._runner = runner
        self._transport: asyncio.Transport | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._reason = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=MAX_QUEUE // 16)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.resume_writing()
        self._transport = None
        reason = self._reason or (str(error) if error else "the peer closed the connection")
        self._runner.lost(self.number, reason)

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002
        # One for all: what is read is taken out of it before anybody else reads.
        return self._runner.buffer

    def buffer_updated(self, nbytes: int) -> None:
        began = time.thread_time()  # of a busy machine, what others take does not count
        self._received(bytes(memoryview(self._runner.buffer)[:nbytes]))
        spent = time.thread_time() - began
        self._rest(self._runner.budget.spent(spent, asyncio.get_running_loop().time()))

    def _rest(self, seconds: float) -> None:
        """Take nothing from this connection for some time."""
        if seconds > 0 and self._transport is not None:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(seconds, self._transport.resume_reading)

    def _received(self, data: bytes) -> None:
        raise NotImplementedError

    def pause_writing(self) -> None:
        if self._stalled is None:
            loop = asyncio.get_running_loop()
            self._stalled = loop.call_later(STALL_SECONDS, self.fail, "the peer does not read")

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _put(self, data: bytes) -> None:
        if data and self._transport is not None:
            self._transport.write(data)

    def write(self, data: bytes) -> None:
        """Send a message, if there is room for it."""
        transport = self._transport
        if transport is None or transport.get_write_buffer_size() + len(data) > MAX_QUEUE:
            self._runner.counters["messages-lost"] += 1
            return
        self._write(data)

    def _write(self, data: bytes) -> None:
        raise NotImplementedError

    def fail(self, reason: str) -> None:
        """Reset the connection, for ``reason``."""
        self._runner.counters["connections-reset"] += 1
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()

    def close(self, *, abort: bool) -> None:
        """Close the connection on the engine's behalf, which wants to hear no more of it."""
        self.number = 0
        if self._transport is not None:
            (self._transport.abort if abort else self._transport.close)()


class _Link(_Wire):
    """A plain connection with the neighbour behind a channel; ``interface`` if that neighbour opened it."""

    def __init__(self, runner: GraspRunner, *, interface: int | None = None) -> None:
        super().__init__(runner)
        self._interface = interface

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._interface is None:
            self._runner.ready(self)
            return
        peer, _ = _address(transport.get_extra_info("peername"))
        if not self._runner.accepted(self, peer, self._interface):
            self.fail("refused")

    def _received(self, data: bytes) -> None:
        if self.number:
            self._runner.received(self.number, data)

    def _write(self, data: bytes) -> None:
        self._put(data)


class _Secured(_Wire):
    """A connection over TLS with ``peer``, whose certificate must be for that address."""

    def __init__(self, runner: GraspRunner, peer: IPv6Address, *, inbound: bool = False) -> None:
        super().__init__(runner)
        self.peer = peer
        self._inbound = inbound
        self._session = TlsConnection(runner.tls.context, server_side=inbound)
        self._deadline: asyncio.TimerHandle | None = None
        self._expires = datetime.min.replace(tzinfo=UTC)
        self._expiry: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(HANDSHAKE_SECONDS, self.fail, "TLS takes too long")
        if self._inbound:
            self._runner.handshaking(self, begun=True)
            self._rest(self._runner.turn())
        self._put(self._session.data_to_send())

    def connection_lost(self, error: Exception | None) -> None:
        self._handshake_over()
        if self._expiry is not None:
            self._expiry.cancel()
        super().connection_lost(error)

    def _handshake_over(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._runner.handshaking(self, begun=False)

    def _received(self, data: bytes) -> None:
        try:
            self._session.receive(data)
            if self._session.handshake_done and self._session.member is None:
                self._admit()
            text = self._session.read()
        except MinervaError as error:
            self._refuse(str(error))
            return
        self._put(self._session.data_to_send())
        if text and self.number:
            self._runner.received(self.number, text)
        if self._session.closed_by_peer and self._transport is not None:
            self._say_goodbye()
            self._transport.close()

    def _admit(self) -> None:
        """Check whether the peer, who has shown its certificate, may talk to us, and tell the engine."""
        tls = self._runner.tls
        member = check_peer(
            self._session,
            tls.identity,
            when=datetime.now(UTC),
            expected=self.peer,
            revocation=tls.revocation,
        )
        self._expires = member.expires
        self._look_at_expiry()
        self._handshake_over()
        self._put(self._session.data_to_send())
        if not self._inbound:
            self._runner.ready(self)
        elif not self._runner.accepted(self, self.peer, None):
            self.fail("refused")

    def _look_at_expiry(self) -> None:
        """End the connection when the peer's membership does (RFC 8994 section 6.2.3)."""
        left = (self._expires - datetime.now(UTC)).total_seconds()
        if left < 0:
            self.fail("the peer's certificate has expired")
            return
        loop = asyncio.get_running_loop()
        self._expiry = loop.call_later(min(left + 1, _LOOK_AGAIN), self._look_at_expiry)

    def _say_goodbye(self) -> None:
        with suppress(MinervaError):
            self._session.close()
        self._put(self._session.data_to_send())

    def _refuse(self, reason: str) -> None:
        self._runner.counters["tls-failures"] += 1
        log.warning("no GRASP with %s: %s", self.peer, reason)
        self._reason = reason
        self._put(self._session.data_to_send())
        if self._transport is not None:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        try:
            self._session.write(data)
        except MinervaError as error:
            self._refuse(str(error))
            return
        self._put(self._session.data_to_send())

    def close(self, *, abort: bool) -> None:
        if not abort:
            self._say_goodbye()
        super().close(abort=abort)
