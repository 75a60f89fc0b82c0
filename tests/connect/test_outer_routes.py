"""What the supervisor grants of routes to unique local addresses, and what not."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv6Address, IPv6Network
from types import SimpleNamespace
from typing import Any

import pytest

from minerva.adjacency.outer import MAX_ROUTES
from minerva.connect import messages as m
from minerva.connect import outer_routes
from minerva.connect.ipc import Message
from minerva.connect.outer_routes import OuterRoutes
from minerva.linux.errors import LinuxError
from minerva.linux.firewall import OUTER_NEIGHBOURS, outer_neighbours

OURS, OUR_ULA = IPv6Address("fe80::1"), IPv6Address("fd01:203:405:6::1")
ULAS = [IPv6Address(f"fd99::{number + 2:x}") for number in range(100)]
LINK_LOCALS = [IPv6Address(f"fe80::{number + 2:x}") for number in range(100)]


class FakeKernel:
    """The routes of a link namespace and whom its firewall lets in."""

    def __init__(self) -> None:
        self.routes: dict[IPv6Address, IPv6Address] = {}
        self.let_in = ""
        self.changes = 0
        self.broken: set[IPv6Address] = set()

    async def replace_route(
        self, prefix: IPv6Network, *, index: int, via: IPv6Address, source: IPv6Address
    ) -> None:
        assert (index, source, prefix.prefixlen) == (7, OUR_ULA, 128)
        assert str(prefix.network_address) not in self.let_in, "nobody is let in before there is a route"
        if prefix.network_address in self.broken:
            raise LinuxError("no such route")
        self.changes += 1
        self.routes[prefix.network_address] = via

    async def delete_route(self, prefix: IPv6Network, index: int) -> None:
        assert (index, prefix.prefixlen) == (7, 128)
        assert str(prefix.network_address) not in self.let_in, "nor when there is none any more"
        self.changes += 1
        del self.routes[prefix.network_address]

    @contextmanager
    def entered(self) -> Iterator[None]:
        yield

    def __enter__(self) -> FakeKernel:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def run(self, commands: str) -> str:
        self.let_in = commands
        return ""


class Scene:
    """The supervisor's part with one port, and what it told the abutment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel = FakeKernel()
        monkeypatch.setattr(outer_routes, "Nftables", lambda: self.kernel)
        self.port: Any = SimpleNamespace(
            number=1,
            name="eth0",
            index=7,
            announced=True,
            link_local=OURS,
            ula=OUR_ULA,
            netlink=self.kernel,
            namespace=self.kernel,
        )
        ports: Any = SimpleNamespace(ports={5: self.port}, by_number={1: self.port}.get)
        self.told: list[Message] = []
        self.work: list[Coroutine[Any, Any, None]] = []
        self.outer = OuterRoutes(ports, self.told.append, self.work.append)

    def do(self) -> None:
        while self.work:
            asyncio.run(self.work.pop(0))  # type: ignore[arg-type]

    def want(self, pairs: Sequence[tuple[IPv6Address, IPv6Address]], port: int = 1) -> bool:
        return self.outer.want(m.OuterRoutes(port, tuple(m.Route(*pair) for pair in pairs)))


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    made = Scene(monkeypatch)
    yield made
    for work in made.work:
        work.close()


PAIRS = list(zip(ULAS, LINK_LOCALS, strict=True))


def test_routes_come_and_go(scene: Scene) -> None:
    for pairs in (PAIRS[:2], PAIRS[1:3], [(ULAS[1], LINK_LOCALS[5])], []):
        assert scene.want(pairs)
        scene.do()
        assert scene.kernel.routes == dict(pairs)
        assert scene.kernel.let_in == outer_neighbours(dict(pairs))
        opened = scene.told.pop()
        assert isinstance(opened, m.OuterRoutesOpened)
        assert (opened.port, set(opened.addresses)) == (1, set(dict(pairs)))
    assert scene.kernel.changes == 2 + 2 + 3 + 1


def test_the_next_hop(scene: Scene) -> None:
    assert scene.outer.next_hop(scene.port, LINK_LOCALS[0]) == LINK_LOCALS[0]
    scene.want(PAIRS[:1])
    for address in (ULAS[0], ULAS[1], IPv6Address("2001:db8::1"), IPv6Address("ff02::1")):
        with pytest.raises(LinuxError, match="is no neighbour's address on port eth0"):
            scene.outer.next_hop(scene.port, address)
    scene.do()
    assert scene.outer.next_hop(scene.port, ULAS[0]) == LINK_LOCALS[0]


@pytest.mark.parametrize(
    "pairs",
    [
        PAIRS[: MAX_ROUTES + 1],
        [(ULAS[0], LINK_LOCALS[0]), (ULAS[0], LINK_LOCALS[1])],
        [(ULAS[0], LINK_LOCALS[0]), (ULAS[1], LINK_LOCALS[0])],
        [(ULAS[0], OURS)],
        [(OUR_ULA, LINK_LOCALS[0])],
        [(IPv6Address("fd01:203:405:ffff::9"), LINK_LOCALS[0])],
        [(IPv6Address("2001:db8::1"), LINK_LOCALS[0])],
        [(IPv6Address("::"), LINK_LOCALS[0])],
        [(IPv6Address("ff02::1"), LINK_LOCALS[0])],
        [(LINK_LOCALS[1], LINK_LOCALS[0])],
        [(ULAS[0], ULAS[1])],
        [(ULAS[0], IPv6Address("2001:db8::1"))],
    ],
)
def test_what_no_honest_abutment_asks_for(scene: Scene, pairs: list[tuple[IPv6Address, IPv6Address]]) -> None:
    assert not scene.want(pairs)
    assert scene.work == []


def test_as_many_as_the_firewall_has_room_for(scene: Scene) -> None:
    assert MAX_ROUTES == OUTER_NEIGHBOURS
    assert scene.want(PAIRS[:MAX_ROUTES])
    scene.do()
    assert len(scene.kernel.routes) == MAX_ROUTES


def test_a_node_without_the_setting_has_no_routes(scene: Scene) -> None:
    scene.port.ula = None
    assert not scene.want(PAIRS[:1])
    assert scene.want([], port=9), "a port that has gone is no fault"


def test_the_end_of_a_port_or_of_the_abutment(scene: Scene) -> None:
    """Whatever was still to be done before."""
    for end in (lambda: scene.outer.port_down(scene.port), scene.outer.close_all):
        scene.want(PAIRS[:2])
        end()
        scene.do()
        assert scene.kernel.routes == {}
        assert scene.kernel.let_in == outer_neighbours(())
    scene.want(PAIRS[:2])
    scene.do()
    asyncio.run(scene.outer.close())
    assert scene.kernel.routes == {}


def test_a_port_that_has_gone_with_its_namespace(scene: Scene) -> None:
    scene.want(PAIRS[:2])
    scene.do()
    scene.port.netlink = scene.port.namespace = None
    scene.want(PAIRS[:1])
    scene.do()
    assert scene.told[-1] == m.OuterRoutesOpened(1, ())
    with pytest.raises(LinuxError):
        scene.outer.next_hop(scene.port, ULAS[0])


def test_what_the_kernel_refuses_is_no_route(scene: Scene) -> None:
    """And what it took before stays what it is, so that it can be removed."""
    scene.want(PAIRS[:1])
    scene.do()
    scene.kernel.broken = {ULAS[1]}
    scene.want(PAIRS[:2])
    with pytest.raises(LinuxError):
        scene.do()
    assert scene.told[-1] == m.OuterRoutesOpened(1, (ULAS[0],))
    assert scene.kernel.let_in == outer_neighbours([ULAS[0]])
    with pytest.raises(LinuxError):
        scene.outer.next_hop(scene.port, ULAS[1])
    scene.want([])
    scene.do()
    assert scene.kernel.routes == {}
