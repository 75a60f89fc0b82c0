"""The join proxy with a supervisor, pledges and registrars that the test plays."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv6Address
from typing import Any

import pytest

from minerva.connect import circuit as circuits
from minerva.connect import join_proxy as proxies
from minerva.connect import messages as m
from minerva.connect.join_proxy import MAX_PER_LINK, MAX_PER_PEER, PROXY_PORTS, JoinProxy
from minerva.connect.messages import Registrar
from minerva.grasp.announcement import Announcement
from minerva.grasp.constants import AN_PROXY, TransportProto

ONE, TWO = (Registrar(IPv6Address(f"fd00::{number}"), 8443, "") for number in (1, 2))
CMP = Registrar(IPv6Address("fd00::1"), 9443, "cmp")
FIRST = PROXY_PORTS[0]


def peer(number: int = 1) -> IPv6Address:
    return IPv6Address("fe80::100") + number


def offer(port: int = FIRST, variation: str = "") -> Announcement:
    return Announcement(AN_PROXY, variation, TransportProto.IPPROTO_TCP, port)


class Scene:
    """A proxy; registrars are listeners on this machine, by the address that they claim to have."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.registrars: dict[tuple[IPv6Address, int], socket.socket] = {}
        self.announced: dict[int, list[Announcement]] = {}
        self.opened: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self.connects: list[IPv6Address] = []
        self.silent: set[IPv6Address] = set()
        self.willing = True
        self.pledges: list[socket.socket] = []
        self.proxy = JoinProxy(self._from_proxy, self._announce, random=random.Random(4))

    def _announce(self, port: int, offers: Sequence[Announcement]) -> None:
        self.announced[port] = list(offers)

    def _from_proxy(self, message: Any) -> None:
        self.loop.call_soon(self._answer, message)

    def _answer(self, message: Any) -> None:
        match message:
            case m.ProxyOpen():
                self.opened[message.port] = (message.connect, message.circuits)
                granted = message.connect if self.willing else ()
                listeners = []
                for _ in granted:
                    sock = socket.socket(socket.AF_INET6)
                    sock.bind(("::1", 0))
                    sock.setblocking(False)
                    listeners.append(sock.detach())
                self.proxy.opened(m.ProxyOpened(message.port, granted), listeners)
            case m.ProxyConnect():
                self.connects.append(message.address)
                target = self.registrars.get((message.address, message.port))
                if target is None:
                    reason = os.strerror(errno.ECONNREFUSED)
                    self.proxy.not_connecting(message.request, reason)
                elif message.address not in self.silent:
                    sock = socket.socket(socket.AF_INET6)
                    sock.setblocking(False)
                    sock.connect_ex(target.getsockname())
                    self.proxy.connecting(message.request, sock.detach())

    def run_registrar(self, registrar: Registrar) -> None:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=128)
        listener.setblocking(False)
        self.registrars[registrar.address, registrar.port] = listener

    def kill_registrar(self, registrar: Registrar) -> None:
        self.registrars.pop((registrar.address, registrar.port)).close()

    async def accepted(self, registrar: Registrar) -> socket.socket:
        """A connection to a registrar that is not closed at once, as those are that only look."""
        async with asyncio.timeout(5):
            while True:
                listener = self.registrars[registrar.address, registrar.port]
                sock, _ = await self.loop.sock_accept(listener)
                await asyncio.sleep(0.02)
                with contextlib.suppress(BlockingIOError):
                    if sock.recv(1, socket.MSG_PEEK) == b"":
                        sock.close()
                        continue
                self.pledges.append(sock)
                return sock

    def pledge(self, number: int = 1, link: int = 1, port: int = FIRST) -> socket.socket:
        """A pledge that has connected."""
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
            ours = socket.create_connection(listener.getsockname()[:2])
            theirs, _ = listener.accept()
        ours.setblocking(False)
        self.pledges.append(ours)
        self.proxy.admit(link, port, theirs, peer(number))
        return ours

    async def until(self, condition: Callable[[], Any], seconds: float = 5.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.002)

    async def offered(self, *offers: Announcement, link: int = 1) -> None:
        await self.until(lambda: self.announced.get(link) == list(offers))

    async def up(self, *registrars: Registrar) -> None:
        """Have the proxy offer what these registrars do."""
        for registrar in registrars:
            self.run_registrar(registrar)
        self.proxy.registrars(registrars)
        self.proxy.port_up(1, "eth0")
        await self.until(lambda: self.announced.get(1))

    def close(self) -> None:
        self.proxy.close()
        for sock in (*self.pledges, *self.registrars.values()):
            sock.close()


def play(test: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        with contextlib.closing(Scene()) as scene:
            await test(scene)
            scene.proxy.close()
            await asyncio.sleep(0.01)

    asyncio.run(main())


def is_reset(sock: socket.socket) -> bool:
    try:
        sock.recv(1)
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False
    return False


async def talk(scene: Scene, pledge: socket.socket, registrar: socket.socket) -> None:
    """Bytes go both ways."""
    for source, sink in ((pledge, registrar), (registrar, pledge)):
        data = os.urandom(5000)
        await scene.loop.sock_sendall(source, data)
        found = b""
        while len(found) < len(data):
            found += await scene.loop.sock_recv(sink, 65_536)
        assert found == data


def test_offered_while_a_registrar_is_known_and_answers() -> None:
    """
    covers: JP-2, JP-6
    """

    async def test(scene: Scene) -> None:
        scene.proxy.port_up(1, "eth0")
        await asyncio.sleep(0.05)
        assert scene.announced == {}
        assert scene.opened == {}
        scene.proxy.registrars([ONE])
        await scene.until(lambda: scene.connects)
        await asyncio.sleep(0.05)
        assert scene.announced == {}, "it does not answer"
        scene.run_registrar(ONE)
        await scene.offered(offer())
        assert scene.opened[1] == ((FIRST,), ())
        scene.proxy.port_up(2, "eth1")
        await scene.offered(offer(), link=2)
        scene.proxy.registrars([])
        await scene.offered()
        await scene.offered(link=2)
        await scene.until(lambda: scene.opened == {1: ((), ()), 2: ((), ())})

    play(test)


def test_a_pledge_talks_to_the_registrar() -> None:
    """
    covers: JP-1, JP-3
    """

    async def test(scene: Scene) -> None:
        await scene.up(ONE)
        pledge = scene.pledge()
        registrar = await scene.accepted(ONE)
        await talk(scene, pledge, registrar)
        state = scene.proxy.state()
        assert state["offers"] == {"eth0": [{"tcp_port": FIRST, "variation": ""}]}
        assert state["connections"] == {"eth0": 1}
        assert [item["in_use"] for item in state["registrars"]] == [True]
        counters = state["counters"]
        assert (counters["accepted"], counters["active"]) == (1, 1)
        assert (counters["bytes_up"], counters["bytes_down"]) == (5000, 5000)
        pledge.close()
        registrar.close()
        await scene.until(lambda: scene.proxy.state()["counters"]["active"] == 0)
        counters = scene.proxy.state()["counters"]
        assert counters["ended"] == {"closed": 1}
        assert counters["bytes_up"] == 5000

    play(test)


def test_each_variation_has_its_port_and_its_registrars() -> None:
    """
    covers: JP-4
    """

    async def test(scene: Scene) -> None:
        await scene.up(ONE, CMP)
        await scene.offered(offer(), offer(PROXY_PORTS[1], "cmp"))
        scene.pledge(port=PROXY_PORTS[1])
        (await scene.accepted(CMP)).close()
        scene.pledge(port=FIRST)
        (await scene.accepted(ONE)).close()
        scene.proxy.registrars([CMP])
        await scene.offered(offer(PROXY_PORTS[1], "cmp"))
        many = [Registrar(IPv6Address("fd00::1"), 9443, f"v{number}") for number in range(9)]
        scene.proxy.registrars([CMP, *many, ONE])
        await scene.until(lambda: len(scene.announced[1]) == len(PROXY_PORTS))
        assert scene.announced[1][:2] == [offer(), offer(PROXY_PORTS[1], "cmp")]

    play(test)


def test_the_next_registrar_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that refuses, one that does not answer at all: for this pledge and, for a while, for all.

    covers: JP-6
    """
    monkeypatch.setattr(proxies, "CONNECT_SECONDS", 0.2)

    async def test(scene: Scene) -> None:
        await scene.up(ONE, TWO)
        pledge = scene.pledge()
        used = scene.connects[-1]
        await scene.until(lambda: scene.proxy.state()["connections"]["eth0"] == 1)
        first, second = (ONE, TWO) if scene.connects[-1] == ONE.address else (TWO, ONE)
        await talk(scene, pledge, await scene.accepted(first))
        scene.kill_registrar(first)
        await talk(scene, scene.pledge(2), await scene.accepted(second))
        scene.run_registrar(first)
        scene.connects.clear()
        await talk(scene, scene.pledge(3), await scene.accepted(second))
        assert set(scene.connects) == {second.address}
        assert used == first.address
        assert scene.announced[1] == [offer()], "still offered"

    play(test)


def test_one_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "CONNECT_SECONDS", 0.1)

    async def test(scene: Scene) -> None:
        await scene.up(ONE)
        scene.silent.add(ONE.address)
        pledge = scene.pledge()
        await scene.until(lambda: is_reset(pledge))
        await scene.offered()
        assert scene.proxy.state()["registrars"][0]["problem"] == "it does not answer"
        scene.silent.clear()
        await scene.offered(offer())

    play(test)


def test_one_of_many_gives_way() -> None:
    """A peer has its share; of more, the least active gives way.

    covers: JP-6
    """

    async def test(scene: Scene) -> None:
        await scene.up(ONE)
        pledges = []
        for _ in range(MAX_PER_PEER):
            pledges.append(scene.pledge())
            await asyncio.sleep(0.01)
        await scene.loop.sock_sendall(pledges[0], b"I am alive")
        await asyncio.sleep(0.05)
        scene.pledge()
        await scene.until(lambda: is_reset(pledges[1]))
        assert not is_reset(pledges[0])
        assert scene.proxy.state()["connections"]["eth0"] == MAX_PER_PEER
        assert scene.proxy.state()["counters"]["ended"] == {"gave way": 1}

    play(test)


def test_a_link_has_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes when all places are taken is refused, until somebody has been silent for long.

    covers: JP-6
    """

    async def test(scene: Scene) -> None:
        await scene.up(ONE)
        scene.proxy.port_up(2, "eth1")
        await scene.offered(offer(), link=2)
        pledges = [scene.pledge(number) for number in range(MAX_PER_LINK)]
        late = scene.pledge(1000)
        await scene.until(lambda: is_reset(late))
        assert scene.proxy.state()["counters"]["refused"] == {"too many connections": 1}
        other = scene.pledge(1000, link=2)
        await asyncio.sleep(0.05)
        assert not is_reset(other), "another link is another matter"
        monkeypatch.setattr(proxies, "GIVE_WAY_SECONDS", 0.0)
        scene.pledge(1001)
        await scene.until(lambda: sum(map(is_reset, pledges)) == 1)
        monkeypatch.setattr(proxies, "MAX_PER_NODE", MAX_PER_LINK + 1)
        monkeypatch.setattr(proxies, "GIVE_WAY_SECONDS", 5.0)
        last = scene.pledge(1002, link=2)
        await scene.until(lambda: is_reset(last))

    play(test)


def test_those_whom_a_registrar_has_answered_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "GIVE_WAY_SECONDS", 0.0)
    monkeypatch.setattr(proxies, "MAX_PER_LINK", 3)

    async def test(scene: Scene) -> None:
        await scene.up(ONE)
        served = scene.pledge(1)
        await talk(scene, served, await scene.accepted(ONE))
        silent = [scene.pledge(2), scene.pledge(3)]
        for number in range(4, 20):
            silent.append(scene.pledge(number))
            await asyncio.sleep(0)
        await scene.until(lambda: sum(map(is_reset, silent)) == len(silent) - 2)
        assert not is_reset(served)

    play(test)


def test_a_port_that_goes_takes_its_connections_along() -> None:
    async def test(scene: Scene) -> None:
        await scene.up(ONE)
        pledge, waiting = scene.pledge(), scene.pledge(2)
        registrar = await scene.accepted(ONE)
        scene.proxy.port_down(1)
        await scene.until(lambda: is_reset(pledge) and is_reset(waiting) and is_reset(registrar))
        assert scene.proxy.state()["counters"]["active"] == 0
        scene.proxy.port_up(1, "eth0")
        await scene.offered(offer())

    play(test)


def test_who_is_connected_when_the_offer_ends_may_go_on() -> None:
    """The port stays open for them alone, and is closed when the last has gone."""

    async def test(scene: Scene) -> None:
        await scene.up(ONE)
        pledge = scene.pledge()
        registrar = await scene.accepted(ONE)
        scene.proxy.registrars([])
        await scene.offered()
        await scene.until(lambda: scene.opened[1] == ((), (FIRST,)))
        await talk(scene, pledge, registrar)
        pledge.close()
        registrar.close()
        await scene.until(lambda: scene.opened[1] == ((), ()))

    play(test)


def test_what_the_supervisor_refuses_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "_ASK_AGAIN_SECONDS", 0.1)

    async def test(scene: Scene) -> None:
        scene.willing = False
        scene.run_registrar(ONE)
        scene.proxy.registrars([ONE])
        scene.proxy.port_up(1, "eth0")
        await scene.until(lambda: scene.opened)
        await asyncio.sleep(0.02)
        assert scene.announced == {}
        scene.willing = True
        await scene.offered(offer())

    play(test)


def test_only_so_many_are_accepted_and_only_from_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the listener itself, where the test can only be ::1: which is refused as not link-local.

    covers: JP-5, JP-6
    """
    monkeypatch.setattr(proxies, "ACCEPT_BURST", 6)
    monkeypatch.setattr(proxies, "ACCEPTS_PER_SECOND", 10)

    async def test(scene: Scene) -> None:
        await scene.up(ONE)
        listener = scene.proxy._links[1].listeners[FIRST]
        began = scene.loop.time()
        strangers = [socket.create_connection(listener.getsockname()[:2]) for _ in range(6)]
        scene.pledges += strangers
        for sock in strangers:
            sock.setblocking(False)
        refused = scene.proxy.refused
        await scene.until(lambda: refused["not link-local"] == 6)
        more = [socket.create_connection(listener.getsockname()[:2]) for _ in range(6)]
        scene.pledges += more
        await scene.until(lambda: refused["not link-local"] == 12)
        assert scene.loop.time() - began > 0.4
        assert scene.proxy.state()["counters"]["accepted"] == 0
        assert all(map(is_reset, strangers))

    play(test)


def test_a_closed_offer_listens_no_more_and_opens_again() -> None:
    async def test(scene: Scene) -> None:
        await scene.up(ONE)
        name = scene.proxy._links[1].listeners[FIRST].getsockname()[:2]
        scene.proxy.registrars([])
        await scene.offered()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(name)
        scene.proxy.registrars([ONE])
        await scene.offered(offer())
        assert FIRST in scene.proxy._links[1].listeners

    play(test)


def test_a_silent_pledge_is_sent_away_also_while_no_registrar_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(circuits, "FIRST_BYTE_SECONDS", 0.1)

    async def test(scene: Scene) -> None:
        await scene.up(ONE)
        scene.silent.add(ONE.address)
        pledge = scene.pledge()
        await scene.until(lambda: is_reset(pledge))
        assert scene.proxy.state()["counters"]["ended"] == {"no first byte": 1}
        await scene.until(lambda: not scene.proxy._requests)

    play(test)


def test_a_socket_nobody_waits_for_is_closed() -> None:
    async def test(scene: Scene) -> None:
        ours, theirs = socket.socketpair()
        scene.proxy.connecting(99, theirs.detach())
        assert ours.recv(1) == b""
        ours.close()
        scene.proxy.not_connecting(99, "x")
        sock = socket.socket(socket.AF_INET6)
        scene.proxy.opened(m.ProxyOpened(7, (FIRST,)), [sock.detach()])

    play(test)
