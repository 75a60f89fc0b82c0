"""Drives a core on a simulated link exactly as the live daemon drives it on a socket."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Any

from minerva.core.sansio import Core
from minerva.sim.kernel import Simulator, Timer
from minerva.sim.link import Link, Packet


class Driver:
    """One core, one address, one link.

    Events go to ``on_event(event, now)`` if given, and are kept in ``events`` with their time in any case.
    Call :meth:`pump` after using the core's own methods (``initiate`` and the like) from outside.
    """

    def __init__(
        self,
        simulator: Simulator,
        link: Link,
        address: IPv6Address,
        core: Core,
        *,
        port: int = 0,
        on_event: Callable[[Any, float], None] | None = None,
    ) -> None:
        self.simulator = simulator
        self.core = core
        self.port = port
        self.on_event = on_event
        self.events: list[tuple[float, Any]] = []
        self.attachment = link.attach(address, self._receive)
        self._timer: Timer | None = None

    def _receive(self, packet: Packet) -> None:
        if packet.destination_port == self.port:
            self.core.receive(packet.data, packet.source, packet.source_port, self.simulator.now)
            self.pump()

    def pump(self) -> None:
        """Take events, send what is to be sent, and arm the timer."""
        now = self.simulator.now
        progress = True
        while progress:
            progress = False
            for datagram in self.core.datagrams_to_send(now):
                self.attachment.send(datagram.data, datagram.address, datagram.port, source_port=self.port)
            while (event := self.core.next_event()) is not None:
                progress = True
                self.events.append((now, event))
                if self.on_event is not None:
                    self.on_event(event, now)
        if self._timer is not None:
            self._timer.cancel()
        when = self.core.next_timer()
        self._timer = None if when is None else self.simulator.call_at(when, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self.core.on_timer(self.simulator.now)
        self.pump()

    def stop(self) -> None:
        """Vanish without a word: the node crashed."""
        self.attachment.link.detach(self.attachment)
        if self._timer is not None:
            self._timer.cancel()
