"""A model of two data planes, driven by the events of two endpoints: what is sent must be readable.

It does what ``connect`` has a data plane do: the newest pair that may be used is for sending; a pair that the
peer may not have yet waits until a packet has come in on it, or nothing else is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from minerva.ikev2.children import ChildState
from minerva.ikev2.endpoint import (
    ChildGone,
    ChildKeys,
    ChildUp,
    Closed,
    Config,
    Established,
    IkeRekeyed,
    State,
)
from tests.ikev2.nodes import A, B, Net, Node


@dataclass
class Plane:
    """One end: the pairs by the SPI that is received with, those for sending in their order."""

    inbound: dict[int, ChildKeys] = field(default_factory=dict)
    sending: list[ChildKeys] = field(default_factory=list)
    waiting: list[ChildKeys] = field(default_factory=list)

    def take(self, event: Any) -> None:
        match event:
            case Established():
                self._add(event.child, event.initiator)
            case ChildUp():
                self._add(event.child, event.send)
            case ChildGone():
                self.inbound.pop(event.spi_in)
                self.sending = [keys for keys in self.sending if keys.spi_in != event.spi_in]
                self.waiting = [keys for keys in self.waiting if keys.spi_in != event.spi_in]
            case Closed():
                self.__init__()  # type: ignore[misc]

    def _add(self, keys: ChildKeys, send: bool) -> None:
        assert keys.spi_in not in self.inbound, "an SPI is used twice"
        self.inbound[keys.spi_in] = keys
        (self.sending if send else self.waiting).append(keys)

    def outbound(self) -> ChildKeys | None:
        if self.sending:
            return self.sending[-1]
        return self.waiting[0] if self.waiting else None

    def receive(self, spi: int, key: Any) -> bool:
        keys = self.inbound.get(spi)
        if keys is None:
            return False
        assert keys.key_in == key, "both ends hold the SPI with other keys"
        if keys in self.waiting:
            self.waiting.remove(keys)
            self.sending.append(keys)
        return True


class Channel(Net):
    """Two nodes with a channel, on which packets go both ways every ``interval`` seconds.

    ``lost`` are the times at which a packet was sent that its receiver could not read, by the sender.
    """

    def __init__(
        self, config: Config, *, seed: int, interval: float = 0.0, esp_delay: float = 0.001, **link: Any
    ) -> None:
        super().__init__(config_a=config, config_b=config, seed=seed, **link)
        self.esp_delay = esp_delay
        self.lost: dict[str, list[float]] = {"a": [], "b": []}
        self.delivered = 0
        self.planes = {self.a: Plane(), self.b: Plane()}
        self._seen = {self.a: 0, self.b: 0}
        self._interval = interval
        self.up(21)
        if interval:
            self._tick()

    def up(self, seconds: float) -> None:
        loss, self.link.loss = self.link.loss, 0.0
        self.a.initiate(B)
        self.simulator.run_while(
            lambda: not (self.a.events(Established) and self.b.events(Established)),
            limit=self.simulator.now + seconds,
        )
        self.link.loss = loss
        self.sa = {node: node.events(Established)[0].sa for node in (self.a, self.b)}

    def plane(self, node: Node) -> Plane:
        plane = self.planes[node]
        events = node.driver.events
        for _, event in events[self._seen[node] :]:
            plane.take(event)
        self._seen[node] = len(events)
        return plane

    def _tick(self) -> None:
        for node, other in ((self.a, self.b), (self.b, self.a)):
            keys = self.plane(node).outbound()
            if keys is None:
                self._note(node)
            else:
                self.simulator.call_later(self.esp_delay, self._arrival(node, other, keys))
        self.simulator.call_later(self._interval, self._tick)

    def _arrival(self, sender: Node, receiver: Node, keys: ChildKeys) -> Any:
        def arrive() -> None:
            if self.plane(receiver).receive(keys.spi_out, keys.key_out):
                self.delivered += 1
                receiver.endpoint.traffic_seen(self.sa[receiver], self.simulator.now)
            else:
                self._note(sender)

        return arrive

    def _note(self, sender: Node) -> None:
        self.lost["a" if sender is self.a else "b"].append(self.simulator.now)

    def rekey(self, node: Node, what: str) -> None:
        method = node.endpoint.rekey_child if what == "child" else node.endpoint.rekey_ike
        method(self.sa[node], self.simulator.now)
        node.driver.pump()

    def rekey_later(self, node: Node, what: str, seconds: float) -> None:
        self.simulator.call_later(seconds, lambda: self.rekey(node, what))

    def closed(self) -> list[Closed]:
        return [*self.a.events(Closed), *self.b.events(Closed)]

    def rekeyings(self) -> tuple[int, int]:
        """How often the IKE SA and the child SA were replaced, as A saw it."""
        return len(self.a.events(IkeRekeyed)), len(self.a.events(ChildUp))

    def settled(self) -> bool:
        """Whether both ends hold one IKE SA and one child SA, and nothing is under way."""
        for node in (self.a, self.b):
            sas = [sa for sa in node.endpoint._by_spi.values() if sa.state is not State.CLOSED]
            if len(sas) != 1 or [child.state for child in sas[0].children] != [ChildState.INSTALLED]:
                return False
        return True

    def check(self) -> None:
        """Assert that both ends hold the same one IKE SA with the same one child SA, and nothing else."""
        assert not self.closed()
        ends = []
        for node in (self.a, self.b):
            assert [status.state for status in node.endpoint.status()] == [State.ESTABLISHED]
            (sa,) = [sa for sa in node.endpoint._by_spi.values() if sa.state is not State.CLOSED]
            assert node.endpoint._sas == {self.sa[node]: sa}
            (child,) = sa.children
            assert child.state is ChildState.INSTALLED
            assert node.endpoint._context.child_spis == {child.keys.spi_in}
            plane = self.plane(node)
            assert list(plane.inbound.values()) == [child.keys]
            assert plane.outbound() == child.keys
            ends.append((sa, child.keys))
        (a, ours), (b, theirs) = ends
        assert (a._spi_i, a._spi_r, a.initiator) == (b._spi_i, b._spi_r, not b.initiator)
        assert a._keys is not None
        assert b._keys is not None
        assert a._keys.sk_d == b._keys.sk_d
        assert (ours.spi_in, ours.key_in) == (theirs.spi_out, theirs.key_out)
        assert (ours.spi_out, ours.key_out) == (theirs.spi_in, theirs.key_in)
        assert ours.key_in != ours.key_out
        # And the IKE SA works, both ways.
        for node in (self.a, self.b):
            now = self.simulator.now
            node.endpoint.check_liveness(self.sa[node], now)
            node.driver.pump()
            self.run(2.0)
            assert node.endpoint._sas[self.sa[node]]._last_heard > now


__all__ = ["A", "B", "Channel", "Plane"]
