"""A circuit of the join proxy: bytes from a pledge to a registrar and back, which nobody here reads.

Both sockets are non-blocking. In each direction at most one piece is kept: nothing more is taken from one
end before the other has taken that, so a slow reader slows its peer down and costs no memory. The end of one
direction is passed on as such, the other goes on; a reset is passed on as a reset.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from enum import StrEnum
from ipaddress import IPv6Address

from minerva.connect.messages import Registrar

log = logging.getLogger(__name__)

PIECE = 16 << 10
"""The most bytes taken from one end before others have their turn."""

FIRST_BYTE_SECONDS = 30.0
IDLE_SECONDS = 120.0
LIFETIME_SECONDS = 600.0
"""How long a pledge may take for its first byte, both ends may then be silent, and all of it may take. Who
sends a byte now and then holds a place no longer than that."""

_NO_LINGER = struct.pack("ii", 1, 0)


class End(StrEnum):
    """How a circuit ended, as it is counted."""

    CLOSED = "closed"
    CLOSED_BY_PLEDGE = "closed by the pledge"
    RESET_BY_PLEDGE = "reset by the pledge"
    RESET_BY_REGISTRAR = "reset by the registrar"
    SILENT = "no first byte"
    IDLE = "idle"
    TOO_LONG = "too long"
    GAVE_WAY = "gave way"
    NO_REGISTRAR = "no registrar"
    PORT_DOWN = "port down"


def reset(sock: socket.socket) -> None:
    """Close a TCP socket with a reset, so that its peer knows that this is no orderly end."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    except OSError as error:
        log.debug("reset: %s", error.strerror)
    sock.close()


class _Flow:
    """One direction: from ``source`` to ``sink``, with what ``sink`` has not taken yet."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.kept = memoryview(b"")
        self.ended = False  # the source has said all; it was passed on if nothing is kept
        self.moved = 0
        self.rest_until = 0.0  # before that, nothing more is taken from the source


class Circuit:
    """A pledge's connection, and the registrar's once there is one.

    ``spend(size)`` is told of each piece and returns for how many seconds no more is to be taken from that
    end. ``on_end(circuit, how)`` is called once, when both sockets are closed.
    """

    def __init__(
        self,
        pledge: socket.socket,
        peer: IPv6Address,
        tcp_port: int,
        *,
        spend: Callable[[int], float],
        on_end: Callable[[Circuit, End], None],
    ) -> None:
        self.peer = peer
        self.tcp_port = tcp_port
        self.registrar: Registrar | None = None
        self._pledge = pledge
        self._spend = spend
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self.began = self.touched = self._loop.time()
        self._upward: _Flow | None = None
        self._downward: _Flow | None = None
        self._rests: set[asyncio.TimerHandle] = set()
        self.open = True
        self._timer = self._loop.call_at(self._deadline()[0], self._expire)

    def start(self, sock: socket.socket, registrar: Registrar) -> None:
        """Begin to relay; ``sock`` is connected with the registrar."""
        self.registrar = registrar
        self._upward = _Flow(self._pledge, sock)
        self._downward = _Flow(sock, self._pledge)
        for flow in (self._upward, self._downward):
            self._loop.add_reader(flow.source, self._readable, flow)

    @property
    def bytes_up(self) -> int:
        """How many bytes went to the registrar."""
        return self._upward.moved if self._upward else 0

    @property
    def bytes_down(self) -> int:
        """How many bytes went to the pledge."""
        return self._downward.moved if self._downward else 0

    @property
    def answered(self) -> bool:
        """Whether a registrar has had something to say to this pledge."""
        return self.bytes_down > 0

    # --- bytes -----------------------------------------------------------------------------------------

    def _readable(self, flow: _Flow) -> None:
        try:
            data = flow.source.recv(PIECE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._reset_by(flow.source)
            return
        self._loop.remove_reader(flow.source)
        self.touched = self._loop.time()
        if data:
            flow.kept = memoryview(data)
            flow.rest_until = self.touched + self._spend(len(data))
        else:
            flow.ended = True
        self._pass_on(flow)

    def _pass_on(self, flow: _Flow) -> None:
        """Give the sink what is kept; when it has taken all, go on with the source."""
        size = len(flow.kept)
        try:
            if flow.kept:
                sent = flow.sink.send(flow.kept)
                flow.kept = flow.kept[sent:]
                flow.moved += sent
            if flow.ended and not flow.kept:
                flow.sink.shutdown(socket.SHUT_WR)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._reset_by(flow.sink)
            return
        if len(flow.kept) < size:
            self.touched = self._loop.time()
        if flow.kept:
            self._loop.add_writer(flow.sink, self._writable, flow)
        elif flow.ended:
            self._end_if_done()
        else:
            self._rest(flow)

    def _writable(self, flow: _Flow) -> None:
        self._loop.remove_writer(flow.sink)
        self._pass_on(flow)

    def _rest(self, flow: _Flow) -> None:
        if flow.rest_until <= self._loop.time():
            self._loop.add_reader(flow.source, self._readable, flow)
            return

        def go_on() -> None:
            self._rests.discard(handle)
            self._loop.add_reader(flow.source, self._readable, flow)

        handle = self._loop.call_at(flow.rest_until, go_on)
        self._rests.add(handle)

    # --- the end ---------------------------------------------------------------------------------------

    def _end_if_done(self) -> None:
        assert self._upward is not None
        assert self._downward is not None
        if all(flow.ended and not flow.kept for flow in (self._upward, self._downward)):
            self.end(End.CLOSED)

    def _reset_by(self, sock: socket.socket) -> None:
        if sock is not self._pledge:
            self.end(End.RESET_BY_REGISTRAR)
        elif self._upward is not None and self._upward.ended:
            # It had said all, and is gone altogether: the registrar's farewell found nobody.
            self.end(End.CLOSED_BY_PLEDGE)
        else:
            self.end(End.RESET_BY_PLEDGE)

    def _deadline(self) -> tuple[float, End]:
        """Return when this is to end, as things are, and how that is called."""
        spoke = self._upward is not None and (self._upward.moved or self._upward.kept)
        idle = (
            (self.touched + IDLE_SECONDS, End.IDLE)
            if spoke
            else (self.began + FIRST_BYTE_SECONDS, End.SILENT)
        )
        return min(idle, (self.began + LIFETIME_SECONDS, End.TOO_LONG))

    def _expire(self) -> None:
        when, how = self._deadline()
        if when <= self._loop.time():
            self.end(how)
        else:
            self._timer = self._loop.call_at(when, self._expire)

    def end(self, how: End) -> None:
        """Close both connections; unless all was said, with resets."""
        if not self.open:
            return
        self.open = False
        self._timer.cancel()
        for handle in self._rests:
            handle.cancel()
        sockets = [self._pledge] if self._upward is None else [self._pledge, self._upward.sink]
        for sock in sockets:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
            if how is End.CLOSED:
                sock.close()
            else:
                reset(sock)
        self._on_end(self, how)
