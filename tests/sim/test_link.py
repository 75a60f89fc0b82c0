"""Simulated links, and the driver of a core on one."""

from __future__ import annotations

from collections import deque
from ipaddress import IPv6Address
from typing import Any

import pytest

from minerva.core.sansio import Datagram
from minerva.sim.driver import Driver
from minerva.sim.kernel import Simulator
from minerva.sim.link import Link, Packet

ONE, TWO, THREE = (IPv6Address(f"fe80::{number}") for number in (1, 2, 3))
ALL = IPv6Address("ff02::1")


def _collect(simulator: Simulator, link: Link, address: IPv6Address) -> list[tuple[float, bytes]]:
    arrived: list[tuple[float, bytes]] = []
    link.attach(address, lambda packet: arrived.append((simulator.now, packet.data)))
    return arrived


def test_unicast_and_multicast() -> None:
    """Unicast reaches its address, multicast all but the sender, after the delay."""
    simulator = Simulator()
    link = Link(simulator, delay=0.5)
    two, three = _collect(simulator, link, TWO), _collect(simulator, link, THREE)
    own: list[Packet] = []
    one = link.attach(ONE, own.append)
    one.send(b"to two", TWO, 7)
    one.send(b"to all", ALL, 7)
    simulator.run_until(1.0)
    assert two == [(0.5, b"to two"), (0.5, b"to all")]
    assert three == [(0.5, b"to all")]
    assert own == []
    assert [packet.data for packet in link.carried] == [b"to two", b"to all"]


def test_ports_and_source() -> None:
    """A packet says where it comes from."""
    simulator = Simulator()
    link = Link(simulator)
    arrived: list[Packet] = []
    link.attach(TWO, arrived.append)
    link.attach(ONE, arrived.append).send(b"x", TWO, 7017, source_port=5)
    simulator.run_until(1.0)
    assert arrived == [Packet(b"x", ONE, 5, TWO, 7017)]


def test_loss_and_duplicates() -> None:
    """About as many as asked for, the same for the same seed."""

    def run(**options: float) -> int:
        simulator = Simulator(7)
        link = Link(simulator, **options)  # type: ignore[arg-type]
        arrived = _collect(simulator, link, TWO)
        one = link.attach(ONE, lambda _: None)
        for _ in range(1000):
            one.send(b"x", TWO)
        simulator.run_until(1.0)
        return len(arrived)

    assert run() == 1000
    assert 650 < run(loss=0.3) < 750
    assert 1050 < run(duplicate=0.1) < 1150
    assert run(loss=1.0) == 0
    assert run(loss=0.3) == run(loss=0.3)


def test_jitter_reorders() -> None:
    """Packets arrive within delay and jitter, not in the order sent."""
    simulator = Simulator(1)
    link = Link(simulator, delay=1.0, jitter=1.0)
    arrived = _collect(simulator, link, TWO)
    one = link.attach(ONE, lambda _: None)
    for number in range(20):
        one.send(bytes((number,)), TWO)
    simulator.run_until(3.0)
    assert all(1.0 <= when <= 2.0 for when, _ in arrived)
    data = [data for _, data in arrived]
    assert data != sorted(data)
    assert len(data) == 20


def test_down_and_detached() -> None:
    """What is under way when the link breaks or the receiver leaves is lost."""
    simulator = Simulator()
    link = Link(simulator, delay=1.0)
    arrived: list[Packet] = []
    two = link.attach(TWO, arrived.append)
    one = link.attach(ONE, arrived.append)
    one.send(b"1", TWO)
    link.up = False
    simulator.run_until(1.0)
    link.up = True
    one.send(b"2", TWO)
    link.detach(two)
    simulator.run_until(3.0)
    assert arrived == []


def test_mangling_and_forging() -> None:
    """A test may drop, change and multiply packets, and inject some from nowhere."""
    simulator = Simulator()
    link = Link(simulator, mangle=lambda packet: (packet, packet) if packet.data == b"twice" else ())
    arrived = _collect(simulator, link, TWO)
    one = link.attach(ONE, lambda _: None)
    one.send(b"never", TWO)
    one.send(b"twice", TWO)
    link.mangle = None
    link.transmit(Packet(b"forged", THREE, 1, TWO, 2), None)
    simulator.run_until(1.0)
    assert [data for _, data in arrived] == [b"twice", b"twice", b"forged"]


class Echo:
    """A core that answers after a second, once per packet, and tells of it."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[float, Datagram]] = deque()
        self.out: list[Datagram] = []
        self.events: deque[str] = deque()

    def receive(self, data: bytes, address: IPv6Address, port: int, now: float) -> None:
        self.waiting.append((now + 1.0, Datagram(data[::-1], address, port)))

    def datagrams_to_send(self, now: float) -> list[Datagram]:  # noqa: ARG002
        out, self.out = self.out, []
        return out

    def next_timer(self) -> float | None:
        return self.waiting[0][0] if self.waiting else None

    def on_timer(self, now: float) -> None:
        while self.waiting and self.waiting[0][0] <= now:
            self.out.append(self.waiting.popleft()[1])
            self.events.append("answered")

    def next_event(self) -> Any | None:
        return self.events.popleft() if self.events else None


@pytest.mark.parametrize("stopped", [False, True])
def test_driver(stopped: bool) -> None:
    """It feeds the core, arms its timer, sends what it says; stopped, it is silent."""
    simulator = Simulator()
    link = Link(simulator, delay=0.25)
    heard: list[tuple[str, float]] = []
    core = Echo()
    driver = Driver(simulator, link, TWO, core, port=7, on_event=lambda *event: heard.append(event))
    arrived = _collect(simulator, link, ONE)
    link.transmit(Packet(b"abc", ONE, 9, TWO, 7), None)
    link.transmit(Packet(b"other port", ONE, 9, TWO, 8), None)
    simulator.run_until(0.5)
    if stopped:
        driver.stop()
    simulator.run_until(5.0)
    assert arrived == ([] if stopped else [(1.5, b"cba")])
    assert heard == ([] if stopped else [("answered", 1.25)])
    assert driver.events == [(when, event) for event, when in heard]
