"""Links that lose, delay, duplicate and reorder, by seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address

from minerva.sim.kernel import Simulator


@dataclass(frozen=True, slots=True)
class Packet:
    """What travels on a link."""

    data: bytes
    source: IPv6Address
    source_port: int
    destination: IPv6Address
    destination_port: int


class Attachment:
    """A node's end of a link: where it sends, and what the link calls when something arrives."""

    def __init__(self, link: Link, address: IPv6Address, receive: Callable[[Packet], None]) -> None:
        self.link = link
        self.address = address
        self.receive = receive

    def send(self, data: bytes, destination: IPv6Address, port: int = 0, *, source_port: int = 0) -> None:
        """Send from this end's address to ``destination``; to all others if that is multicast."""
        self.link.transmit(Packet(data, self.address, source_port, destination, port), self)


class Link:
    """A broadcast domain; with two attachments, a point-to-point link.

    ``loss`` and ``duplicate`` are probabilities per receiver. A packet takes ``delay`` seconds plus up to
    ``jitter``, so that jitter reorders. ``mangle`` sees every packet at its transmission and returns what
    is to be carried instead: nothing drops it.
    """

    def __init__(
        self,
        simulator: Simulator,
        *,
        loss: float = 0.0,
        delay: float = 0.001,
        jitter: float = 0.0,
        duplicate: float = 0.0,
        mangle: Callable[[Packet], Iterable[Packet]] | None = None,
    ) -> None:
        self.simulator = simulator
        self.loss = loss
        self.delay = delay
        self.jitter = jitter
        self.duplicate = duplicate
        self.mangle = mangle
        self.up = True
        self.carried: list[Packet] = []
        self._attachments: list[Attachment] = []

    def attach(self, address: IPv6Address, receive: Callable[[Packet], None]) -> Attachment:
        """Add an end with ``address``; ``receive`` is called with what arrives for it."""
        attachment = Attachment(self, address, receive)
        self._attachments.append(attachment)
        return attachment

    def detach(self, attachment: Attachment) -> None:
        """Remove an end; what is under way to it is lost."""
        self._attachments.remove(attachment)

    def transmit(self, packet: Packet, sender: Attachment | None) -> None:
        """Carry ``packet`` to its receivers; with ``sender`` ``None`` it is forged from nowhere."""
        for carried in self.mangle(packet) if self.mangle else (packet,):
            self.carried.append(carried)
            for receiver in list(self._attachments):
                if receiver is not sender and (
                    carried.destination.is_multicast or carried.destination == receiver.address
                ):
                    self._deliver(carried, receiver)

    def _deliver(self, packet: Packet, receiver: Attachment) -> None:
        random = self.simulator.random
        copies = 2 if random.random() < self.duplicate else 1
        for _ in range(copies):
            if random.random() < self.loss:
                continue
            delay = self.delay + self.jitter * random.random()
            self.simulator.call_later(delay, lambda: self._arrive(packet, receiver))

    def _arrive(self, packet: Packet, receiver: Attachment) -> None:
        if self.up and receiver in self._attachments:
            receiver.receive(packet)
