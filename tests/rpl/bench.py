"""One node on a bench: neighbours are scripted, time is turned by hand."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network
from random import Random
from typing import Any, TypeVar

from minerva.rpl.config import HIGH_SPEED_FACTOR, Preference, RplConfig
from minerva.rpl.engine import RplNode
from minerva.rpl.events import RplDatagram
from minerva.rpl.messages import ALL_RPL_NODES, Dao, DaoAck, DaoGroup, Dio, Dis, Message, decode
from minerva.rpl.options import DodagConfiguration, TransitInformation

M = TypeVar("M", Dis, Dio, Dao, DaoAck)

BASE = IPv6Address("fd89:b714:f3db:0:200:0:6400:0")
CONFIGURATION = RplConfig().dodag_configuration()
ROOT = BASE + 0x1000
"""A DODAGID that beats the node's own."""


def own_prefix(number: int) -> IPv6Network:
    """The /127 of node ``number``."""
    return IPv6Network((BASE + 2 * number, 127))


def local(interface: int) -> IPv6Address:
    """The node's own address on an interface."""
    return IPv6Address(f"fe80::a:{interface}")


def remote(interface: int) -> IPv6Address:
    """The neighbour's address on an interface."""
    return IPv6Address(f"fe80::b:{interface}")


def dio(
    rank: int,
    *,
    dodag_id: IPv6Address = ROOT,
    version: int = 240,
    preference: int = Preference.REGISTRAR,
    grounded: bool = True,
    mode: int = 2,
    dtsn: int = 240,
    configuration: DodagConfiguration | None = CONFIGURATION,
    instance: int = 0,
) -> Dio:
    """A DIO of somebody else's DODAG."""
    options = (configuration,) if configuration else ()
    return Dio(version, rank, grounded, mode, preference, dtsn, dodag_id, options, instance)


def dao(
    sequence: int,
    *prefixes: IPv6Network,
    path_sequence: int = 240,
    path_control: int = 0xFF,
    lifetime: int = 30,
    acknowledge: bool = True,
    external: bool = False,
) -> Dao:
    """A DAO of a child; ``lifetime`` 0 makes it a No-Path."""
    transit = TransitInformation(path_control, path_sequence, lifetime, external)
    return Dao.of_groups(sequence, acknowledge, [DaoGroup(prefixes, (transit,))])


class Bench:
    """The node under test is number 1; ``now`` is its time."""

    def __init__(self, preference: Preference = Preference.DEFAULT, **config: Any) -> None:
        self.now = 1000.0
        self.node = RplNode(BASE + 2, own_prefix(1), preference, random=Random(1), config=RplConfig(**config))
        self.acknowledging: set[int] = set()
        self.events: list[Any] = []
        self.sent: list[tuple[float, RplDatagram]] = []

    def up(self, interface: int, rank_factor: int = HIGH_SPEED_FACTOR) -> None:
        self.node.interface_up(interface, local(interface), rank_factor, self.now)
        self.collect()

    def down(self, interface: int) -> None:
        self.node.interface_down(interface, self.now)
        self.collect()

    def hear(
        self, interface: int, message: Message, *, unicast: bool = True, source: IPv6Address | None = None
    ) -> None:
        """The neighbour on ``interface`` sends ``message``."""
        destination = local(interface) if unicast else ALL_RPL_NODES
        source = source or remote(interface)
        self.node.receive(interface, message.encode(), source, destination, self.now)
        self.collect()

    def wait(self, seconds: float) -> None:
        """Let time pass, timers run."""
        end, timers = self.now + seconds, 0
        while (when := self.node.next_timer()) is not None and when <= end:
            timers += 1
            assert timers < 1000 + 100 * seconds, "timers that never end"
            self.now = max(self.now, when)
            self.node.on_timer(self.now)
            self.collect()
        self.now = end

    def live(self, seconds: float, neighbours: dict[int, Dio]) -> None:
        """Let time pass while these neighbours repeat their DIOs and acknowledge every DAO at once."""
        self.acknowledging = set(neighbours)
        end = self.now + seconds
        while self.now < end:
            for interface, message in neighbours.items():
                self.hear(interface, message)
            self.wait(min(60.0, end - self.now))
        self.acknowledging = set()

    def collect(self) -> None:
        while datagrams := self.node.datagrams_to_send(self.now):
            self.sent += [(self.now, datagram) for datagram in datagrams]
            for datagram in datagrams:
                message, interface = decode(datagram.data), datagram.interface
                if isinstance(message, Dao) and interface in self.acknowledging:
                    ack = DaoAck(message.sequence).encode()
                    self.node.receive(interface, ack, remote(interface), local(interface), self.now)
        while (event := self.node.next_event()) is not None:
            self.events.append(event)

    def take(self, kind: type[M], interface: int | None = None) -> list[tuple[float, IPv6Address, M]]:
        """What was sent of one kind since the last call: when, to whom, what."""
        found = []
        for when, datagram in self.sent:
            message = decode(datagram.data)
            if isinstance(message, kind) and interface in (None, datagram.interface):
                found.append((when, datagram.destination, message))
        self.sent = [
            entry
            for entry in self.sent
            if not isinstance(decode(entry[1].data), kind) or interface not in (None, entry[1].interface)
        ]
        return found

    def last(self, kind: type[M], interface: int | None = None) -> M:
        """The last message of one kind, given the time to come out."""
        self.wait(0.02)
        return self.take(kind, interface)[-1][2]

    def targets(self, interface: int) -> dict[IPv6Network, TransitInformation]:
        """The last word on every target that the node sent on ``interface`` since the last call."""
        last: dict[IPv6Network, TransitInformation] = {}
        for _, _, message in self.take(Dao, interface):
            for group in message.groups():
                for prefix in group.targets:
                    last[prefix] = group.transits[-1]
        return last

    def acknowledge(self, interface: int, status: int = 0) -> dict[IPv6Network, TransitInformation]:
        """Answer the last DAO on ``interface`` and return what it and those before said."""
        sequence = [message.sequence for _, _, message in self.take_copy(Dao, interface)][-1]
        targets = self.targets(interface)
        self.hear(interface, DaoAck(sequence, status))
        return targets

    def take_copy(self, kind: type[M], interface: int) -> list[tuple[float, IPv6Address, M]]:
        """As :meth:`take`, but leave everything where it is."""
        kept = list(self.sent)
        found = self.take(kind, interface)
        self.sent = kept
        return found

    def happened(self, kind: type) -> list[Any]:
        """The events of one kind since the last call."""
        found = [event for event in self.events if isinstance(event, kind)]
        self.events = [event for event in self.events if not isinstance(event, kind)]
        return found
