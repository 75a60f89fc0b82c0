"""The GRASP API (RFC 8991) for any process of the host, in asyncio: the functions of the RFC by their names.

:class:`Grasp` is one connection to the node's API socket. Any number of ASAs may share it, and any number of
calls may be under way on it. When it ends, the node deregisters its ASAs and ends their sessions. Times are
in milliseconds, as in the RFC. :mod:`minerva.asa.objects` is more comfortable, :mod:`minerva.asa.blocking`
the same without asyncio.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, TypeVar

from minerva.asa import protocol
from minerva.asa.protocol import ApiError, Event, FrameScanner, Reply, Request, TraceRecord
from minerva.core.errors import DecodeError, UsageError
from minerva.grasp.api import AsaError, AsaLocator, ErrorCode, TaggedObjective
from minerva.grasp.constants import GRASP_DEF_TIMEOUT
from minerva.grasp.errors import GraspError
from minerva.grasp.options import Objective, check_array, check_uint

DISCOVERY_TIMEOUT = 2000
"""How long :meth:`Grasp.discover` collects locators unless it is told, in milliseconds."""

ANSWER_SECONDS = 10.0
"""How long a node may take for a call that it answers at once; then it is stuck, and the connection ends."""

_MAX_TRACE = 10_000
"""Trace records held for a reader that is behind; then the oldest go."""

_T = TypeVar("_T")


def default_path() -> Path:
    """Return the path of the node's API socket: in MINERVA_RUN_DIR, or where a node has it by default."""
    return Path(os.environ.get("MINERVA_RUN_DIR") or protocol.DEFAULT_RUN_DIR) / protocol.API_SOCKET


@dataclass(slots=True)
class _Pending:
    """A request under way. ``undo`` gets the result if it comes when nobody wants it any more."""

    reply: asyncio.Future[Any]
    undo: Callable[[Any], None] | None


class _Connection(asyncio.Protocol):
    """Numbers requests, hands replies to who waits for them. ``where`` is the path of the socket."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self._loop = asyncio.get_running_loop()
        self._scanner = FrameScanner(from_node=True)
        self._transport: asyncio.Transport | None = None
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self._ended = self._loop.create_future()
        self._why = "the node closed the connection"
        self.trace: deque[TraceRecord] = deque(maxlen=_MAX_TRACE)
        self.traced = asyncio.Event()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._scanner.feed(data):
                self._received(protocol.decode_from_node(frame))
        except GraspError as error:
            self._why = f"the node sent something that is no answer: {error}"
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._why = f"{self._why}: {exc}"
        self._transport = None
        self._writable.set()
        self.traced.set()
        pending, self._pending = self._pending, {}
        for waiting in pending.values():
            if not waiting.reply.done():
                waiting.reply.set_exception(AsaError(ErrorCode.noSocket, self._why))
        if not self._ended.done():
            self._ended.set_result(None)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # What the API calls

    @property
    def open(self) -> bool:
        """Whether requests can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def call(
        self,
        function: str,
        *arguments: Any,
        undo: Callable[[Any], None] | None = None,
        others: bool = False,
    ) -> Any:
        """Call ``function`` of the node and return its result. Raises :class:`AsaError`.

        ``others`` says that the answer depends on others than the node: then it takes whatever time it takes.
        """
        waiting = _Pending(self._loop.create_future(), undo)
        limit = None if others else self._loop.call_later(ANSWER_SECONDS, self._give_up, waiting)
        try:
            await self._writable.wait()
            identifier = self._send(function, *arguments)
            self._pending[identifier] = waiting
            try:
                return await waiting.reply
            except asyncio.CancelledError:
                self._withdraw(identifier, waiting)
                raise
        finally:
            if limit is not None:
                limit.cancel()

    def post(self, function: str, *arguments: Any) -> None:
        """Call ``function`` without waiting for how it ends; nothing happens if the connection is gone."""
        if self.open:
            self._send(function, *arguments)

    async def close(self) -> None:
        """End the connection and wait until it has ended."""
        if self.open and self._transport is not None:
            self._why = "the connection has been closed"
            self._transport.close()
        await self.wait_closed()

    async def wait_closed(self) -> None:
        """Wait until the connection has ended."""
        await asyncio.shield(self._ended)

    def _send(self, function: str, *arguments: Any) -> int:
        identifier = next(self._ids)
        try:
            data = Request(identifier, function, list(arguments)).encode()
        except ApiError as error:
            raise AsaError(ErrorCode.unspec, str(error)) from error
        if self._transport is None or not self.open:
            raise AsaError(ErrorCode.noSocket, self._why)
        self._transport.write(data)
        return identifier

    def _give_up(self, waiting: _Pending) -> None:
        """End the connection to a node that is stuck."""
        # If this process was stopped, the answer may have come together with the end of the time.
        if self._transport is not None and not waiting.reply.done():
            self._why = f"the node does not answer on {self._where}"
            self._transport.abort()

    def _withdraw(self, identifier: int, waiting: _Pending) -> None:
        """Take back a request whose caller has been cancelled."""
        if waiting.reply.cancelled():  # the node has it still; its reply is on its way, or will be
            self.post("cancel", identifier)
        elif waiting.reply.exception() is None and waiting.undo is not None:
            # The result and the cancellation came together, and the caller sees only the latter.
            waiting.undo(waiting.reply.result())

    def _received(self, frame: Reply | Event) -> None:
        if isinstance(frame, Event):
            if frame.kind == protocol.TRACE:
                self.trace.append(TraceRecord.from_cbor(frame.content))
                self.traced.set()
            return
        waiting = self._pending.pop(frame.id, None)
        if waiting is None:  # the reply to something posted
            return
        if not waiting.reply.cancelled():
            if frame.code is ErrorCode.ok:
                waiting.reply.set_result(frame.result)
            else:
                waiting.reply.set_exception(AsaError(frame.code, frame.reason))
        elif waiting.undo is not None and frame.code is ErrorCode.ok:
            waiting.undo(frame.result)


def _parsed(parse: Callable[[Any], _T], item: Any) -> _T:
    try:
        return parse(item)
    except (GraspError, DecodeError) as error:
        raise AsaError(ErrorCode.unspec, f"the node's answer is not as it should be: {error}") from error


def _locators(item: Any) -> list[AsaLocator]:
    return [AsaLocator.from_cbor(locator) for locator in check_array(item, 0, "list of locators")]


def _tagged(item: Any) -> list[TaggedObjective]:
    return [TaggedObjective.from_cbor(pair) for pair in check_array(item, 0, "list of flooded objectives")]


def _number(item: Any) -> int:
    return check_uint(item, 0xFFFF_FFFF, "handle")


def _step(item: Any) -> tuple[int | None, Objective]:
    session, objective = check_array(item, 2, "negotiation step")[:2]
    return None if session is None else _number(session), Objective.from_cbor(objective)


def _peer(peer: AsaLocator | None) -> Any:
    return None if peer is None else peer.to_cbor()


class Grasp:
    """The GRASP API of this host's node. Every call that fails raises :class:`AsaError` with the RFC's code.

    A node that leaves unanswered for ``ANSWER_SECONDS`` what it has only itself to ask about is stuck: the
    connection ends, and all calls on it with ``noSocket``.
    A task that is cancelled while it waits takes its request back. Use as ``async with Grasp.connect()``.
    """

    def __init__(self, connection: _Connection) -> None:
        """For :meth:`open` and :meth:`connect`."""
        self._connection = connection

    @classmethod
    async def open(cls, path: str | os.PathLike[str] | None = None) -> Grasp:
        """Connect to the API socket ``path`` of a node (default: in MINERVA_RUN_DIR or /run/minerva).

        Raises :class:`AsaError` (``noSecurity``) where no node runs, :class:`UsageError` where this user may
        not use it.
        """
        where = default_path() if path is None else Path(path)
        try:
            _, connection = await asyncio.get_running_loop().create_unix_connection(
                lambda: _Connection(where), str(where)
            )
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            raise AsaError(
                ErrorCode.noSecurity, f"no node runs with the run directory {where.parent}"
            ) from error
        except PermissionError as error:
            raise UsageError(
                f"this user may not use GRASP ({where}): run as root, or as a member of the group minerva"
            ) from error
        except OSError as error:
            raise UsageError(f"cannot connect to {where}: {error.strerror or error}") from error
        return cls(connection)

    @classmethod
    @asynccontextmanager
    async def connect(cls, path: str | os.PathLike[str] | None = None) -> AsyncIterator[Grasp]:
        """Be connected (as :meth:`open`) for the length of a ``with``."""
        grasp = await cls.open(path)
        try:
            yield grasp
        finally:
            await grasp.close()

    async def close(self) -> None:
        """End the connection: the node deregisters all ASAs of it. Calls that wait fail with ``noSocket``."""
        await self._connection.close()

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, from whichever side."""
        await self._connection.wait_closed()

    @property
    def is_open(self) -> bool:
        """Whether the connection stands."""
        return self._connection.open

    # Registration (RFC 8991 section 2.3.3)

    async def register_asa(self, name: str) -> int:
        """Register an ASA and return its handle."""

        def undo(handle: Any) -> None:
            self._connection.post("deregister_asa", handle, name)

        return _parsed(_number, await self._connection.call("register_asa", name, undo=undo))

    async def deregister_asa(self, handle: int, name: str) -> None:
        """Deregister an ASA with all its objectives and sessions."""
        await self._connection.call("deregister_asa", handle, name)

    async def register_objective(
        self,
        handle: int,
        objective: Objective,
        ttl: int = GRASP_DEF_TIMEOUT,
        *,
        discoverable: bool = False,
        overlap: bool = False,
        local: bool = False,
    ) -> None:
        """Register an objective that the ASA may negotiate, offer for synchronization, or flood.

        ``ttl`` is how long a discovery response for it is valid. It is answered once the ASA listens, or at
        once if ``discoverable``. ``overlap`` lets other ASAs register it too (all must say so), ``local``
        makes discovery tell the link-local address.
        """
        await self._connection.call(
            "register_objective", handle, objective.to_cbor(), ttl, discoverable, overlap, local
        )

    async def deregister_objective(self, handle: int, objective: Objective) -> None:
        """Take back a registration."""
        await self._connection.call("deregister_objective", handle, objective.to_cbor())

    # Discovery (2.3.4)

    async def discover(
        self, handle: int, objective: Objective, timeout: int = DISCOVERY_TIMEOUT, minimum_ttl: int = 1
    ) -> list[AsaLocator]:
        """Return where the objective is to be found: all that is known or answers within ``timeout``.

        Nothing found is an empty list. With ``timeout`` 0 the cache alone is asked. Cached locators with
        ``minimum_ttl`` or less to live are forgotten first; 0 forgets all.
        """
        found = await self._connection.call(
            "discover", handle, objective.to_cbor(), timeout, minimum_ttl, others=True
        )
        return _parsed(_locators, found)

    # Negotiation (2.3.5)

    async def request_negotiate(
        self, handle: int, objective: Objective, peer: AsaLocator | None = None, timeout: int = 0
    ) -> tuple[int | None, Objective]:
        """Ask ``peer``, or one that is discovered, for the objective's value.

        Returns the session and the counter-offer, or ``None`` and the objective if the peer has accepted.
        Raises :class:`AsaError` with ``declined`` and the peer's reason if it declined. ``timeout`` 0 is
        GRASP_DEF_TIMEOUT, here and below.
        """
        found = await self._connection.call(
            "request_negotiate",
            handle,
            objective.to_cbor(),
            _peer(peer),
            timeout,
            undo=lambda result: self._end_unwanted(handle, result),
            others=True,
        )
        return _parsed(_step, found)

    async def listen_negotiate(self, handle: int, objective: Objective) -> tuple[int, Objective]:
        """Wait for a request to negotiate the objective; return its session and what is asked for.

        Call it again at once, in another task, to answer several at a time.
        """
        found = await self._connection.call(
            "listen_negotiate",
            handle,
            objective.to_cbor(),
            undo=lambda result: self._end_unwanted(handle, result),
            others=True,
        )
        session, requested = _parsed(_step, found)
        if session is None:
            raise AsaError(ErrorCode.unspec, "the node announces a negotiation without a session")
        return session, requested

    async def stop_listen_negotiate(self, handle: int, objective: Objective) -> None:
        """Take no more requests; a :meth:`listen_negotiate` that waits ends with an error."""
        await self._connection.call("stop_listen_negotiate", handle, objective.to_cbor())

    async def negotiate_step(
        self, handle: int, session: int, objective: Objective, timeout: int = 0
    ) -> tuple[int | None, Objective]:
        """Make an offer, with the loop count that came with the peer's.

        Returns and raises as :meth:`request_negotiate`.
        """
        found = await self._connection.call(
            "negotiate_step",
            handle,
            session,
            objective.to_cbor(),
            timeout,
            undo=lambda result: self._end_unwanted(handle, result),
            others=True,
        )
        return _parsed(_step, found)

    async def negotiate_wait(self, handle: int, session: int, timeout: int) -> None:
        """Ask the peer for ``timeout`` milliseconds of patience."""
        await self._connection.call("negotiate_wait", handle, session, timeout)

    async def end_negotiate(self, handle: int, session: int, result: bool, reason: str | None = None) -> None:
        """Accept what the peer offered last (``result``), or decline it for a ``reason``."""
        await self._connection.call("end_negotiate", handle, session, result, reason)

    def _end_unwanted(self, handle: int, result: Any) -> None:
        """End a session that began when nobody waited for it any more: its peer should not have to."""
        session = result[0] if isinstance(result, list) and result else None
        if session is not None:
            self._connection.post("end_negotiate", handle, session, False, "withdrawn")

    # Synchronization and flooding (2.3.6)

    async def synchronize(
        self, handle: int, objective: Objective, peer: AsaLocator | None = None, timeout: int = 0
    ) -> Objective:
        """Return the objective with the value it has at ``peer``; without one, as flooded or discovered."""
        found = await self._connection.call(
            "synchronize", handle, objective.to_cbor(), _peer(peer), timeout, others=True
        )
        return _parsed(Objective.from_cbor, found)

    async def listen_synchronize(self, handle: int, objective: Objective) -> None:
        """Answer requests for the objective with the value it has; call again when that changes."""
        await self._connection.call("listen_synchronize", handle, objective.to_cbor())

    async def stop_listen_synchronize(self, handle: int, objective: Objective) -> None:
        """Answer no more requests for the objective."""
        await self._connection.call("stop_listen_synchronize", handle, objective.to_cbor())

    async def flood(self, handle: int, ttl: int, tagged_objectives: Iterable[TaggedObjective]) -> None:
        """Flood objectives, with a locator each or none, to all nodes; valid for ``ttl`` (0: for ever)."""
        tagged = [pair.to_cbor() for pair in tagged_objectives]
        await self._connection.call("flood", handle, ttl, tagged)

    async def get_flood(self, handle: int, objective: Objective) -> list[TaggedObjective]:
        """Return what is cached of the objective, from each node that flooded it."""
        return _parsed(_tagged, await self._connection.call("get_flood", handle, objective.to_cbor()))

    async def expire_flood(self, handle: int, tagged_objective: TaggedObjective) -> None:
        """Forget one that :meth:`get_flood` returned."""
        await self._connection.call("expire_flood", handle, tagged_objective.to_cbor())

    # Invalid messages (2.3.7)

    async def send_invalid(self, handle: int, session: int, info: bytes | None = None) -> None:
        """End a session with M_INVALID, where :meth:`end_negotiate` would not do."""
        await self._connection.call("send_invalid", handle, session, info)

    # Beyond the RFC

    async def node(self) -> tuple[IPv6Address, int]:
        """Return the ACP address of this node and the port of its GRASP."""
        return _parsed(_node, await self._connection.call("node"))

    async def status(self) -> dict[str, Any]:
        """Return what the node's GRASP knows and does: objectives, sessions, floods, links, counters."""
        found = await self._connection.call("status")
        if not isinstance(found, dict):
            raise AsaError(ErrorCode.unspec, "the node's status is not a map")
        return found

    async def trace(self) -> AsyncIterator[TraceRecord]:
        """Yield the GRASP messages that the node receives and sends, as they come, until the caller stops.

        A reader that is too slow misses some. Ends when the connection does.
        """
        connection = self._connection
        await connection.call("trace", True)
        try:
            while connection.open:
                await connection.traced.wait()
                connection.traced.clear()
                while connection.trace:
                    yield connection.trace.popleft()
        finally:
            connection.post("trace", False)


def _node(item: Any) -> tuple[IPv6Address, int]:
    try:
        return IPv6Address(item["address"]), check_uint(item["port"], 65535, "port")
    except (LookupError, TypeError, ValueError) as error:
        raise GraspError(f"not an address and a port: {error}") from error
