"""Drives a sans-IO core on a socket in asyncio: the live counterpart of ``sim.driver``."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address
from typing import Any

from minerva.core.sansio import Core

log = logging.getLogger(__name__)

_BATCH = 64
"""Datagrams read before anybody else has a turn."""


class CoreRunner:
    """One core on one UDP socket that is bound to its device.

    ``on_event(event, now)`` gets its events; datagrams that ``accept(data, address, port, now)`` refuses do
    not reach it. ``others`` are further sockets, each for datagrams to and from that port of peers alone.
    """

    def __init__(
        self,
        core: Core,
        sock: socket.socket,
        on_event: Callable[[Any, float], None],
        *,
        accept: Callable[[bytes, IPv6Address, int, float], bool] = lambda *_: True,
        others: Mapping[int, socket.socket] | None = None,
    ) -> None:
        self._core = core
        self._socket = sock
        self._on_event = on_event
        self._accept = accept
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._pumping = False
        self.unsent = 0
        self._others = dict(others or {})
        for each in (sock, *self._others.values()):
            self._loop.add_reader(each, self._readable, each)

    def _readable(self, sock: socket.socket) -> None:
        now = self._loop.time()
        for _ in range(_BATCH):
            try:
                data, (host, port, _, _) = sock.recvfrom(65_535)
            except BlockingIOError:
                break
            except OSError as error:
                log.debug("receive: %s", error.strerror)
                break
            address = IPv6Address(host.partition("%")[0])
            if self._others.get(port, self._socket) is not sock:
                continue  # an answer would leave by another
            if self._accept(data, address, port, now):
                self._core.receive(data, address, port, now)
        self.pump()

    def pump(self) -> None:
        """Take events, send what is to be sent, arm the timer. To be called after using the core.

        Events come first: once a peer has our answer it may use what that grants, such as keys.
        """
        if self._pumping:
            return
        self._pumping = True
        try:
            now, progress = self._loop.time(), True
            while progress:
                while (event := self._core.next_event()) is not None:
                    self._on_event(event, now)
                progress = self._send(now)
        finally:
            self._pumping = False
        if self._timer is not None:
            self._timer.cancel()
        when = self._core.next_timer()
        self._timer = None if when is None else self._loop.call_at(when, self._expire)

    def _send(self, now: float) -> bool:
        datagrams = self._core.datagrams_to_send(now)
        for datagram in datagrams:
            try:
                sock = self._others.get(datagram.port, self._socket)
                sock.sendto(datagram.data, (str(datagram.address), datagram.port))
            except OSError as error:  # a full queue or a link that went down: protocols retransmit
                self.unsent += 1
                log.debug("send to %s: %s", datagram.address, error.strerror)
        return bool(datagrams)

    def _expire(self) -> None:
        self._timer = None
        self._core.on_timer(self._loop.time())
        self.pump()

    def close(self) -> None:
        """Stop driving, and close all sockets."""
        if self._timer is not None:
            self._timer.cancel()
        for sock in (self._socket, *self._others.values()):
            self._loop.remove_reader(sock)
            sock.close()
