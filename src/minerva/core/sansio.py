"""The contract of a sans-IO protocol core.

A core opens no socket and reads no clock. Whoever drives it (the live daemon, the simulator, a test):

* hands it every datagram: ``receive(data, address, port, now)`` (a core of several interfaces takes the
  interface first);
* calls ``on_timer(now)`` once ``now`` has reached ``next_timer()``;
* after each of these sends all that ``datagrams_to_send(now)`` returns, takes events from
  ``next_event()`` until it returns ``None``, and arms one timer for ``next_timer()``.

``now`` is a monotonic time in seconds; its zero means nothing. Where a protocol needs the calendar (the
validity of a certificate), it takes that as a separate argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Datagram:
    """A datagram to be sent to ``address`` and ``port`` (0 where the protocol has no ports)."""

    data: bytes
    address: IPv6Address
    port: int = 0


class Core(Protocol):
    """What a driver needs of a core that talks datagrams on one interface."""

    def receive(self, data: bytes, address: IPv6Address, port: int, now: float) -> None:
        """Take a datagram that came from ``address`` and ``port``. Never raises for what is in it."""

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        """Return, and forget, what is to be sent."""

    def next_timer(self) -> float | None:
        """Return when ``on_timer`` wants to be called, or ``None`` for never."""

    def on_timer(self, now: float) -> None:
        """Do what is due at ``now``. Harmless when nothing is."""

    def next_event(self) -> Any | None:
        """Return, and forget, the oldest event, or ``None``."""
