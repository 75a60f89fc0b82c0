"""What the supervisor grants the join proxy, and what not."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any

import pytest

from minerva.connect import messages as m
from minerva.connect import proxy_gate
from minerva.connect.circuit import LIFETIME_SECONDS
from minerva.connect.ipc import Message
from minerva.connect.join_proxy import PROXY_PORTS
from minerva.connect.messages import Registrar
from minerva.connect.proxy_gate import SOCKET_BURST, ProxyGate
from minerva.connect.registrar_watch import MAX_REGISTRARS
from minerva.linux.errors import LinuxError

ONE, TWO = (Registrar(IPv6Address(f"fd00::{number}"), 8443, "") for number in (1, 2))
FIRST = PROXY_PORTS[0]


class Space:
    """Stands for a namespace; what is done in it is done by this name."""

    current = ""

    def __init__(self, name: str) -> None:
        self.name = name

    @contextmanager
    def entered(self) -> Iterator[None]:
        Space.current = self.name
        yield
        Space.current = ""


@dataclass
class FakePort:
    number: int
    name: str = "eth0"
    announced: bool = True
    namespace: Space | None = field(default_factory=lambda: Space("link"))


class Scene:
    """A gate, with a kernel that only notes what is asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, enabled: bool = True) -> None:
        self.now = 100.0
        self.told: list[tuple[Message, int]] = []
        self.policies: list[tuple[str, str]] = []
        self.made: list[tuple[str, str]] = []
        self.broken: Exception | None = None
        self.ports = {1: FakePort(1), 2: FakePort(2)}
        scene = self

        class FakeNftables:
            def __enter__(self) -> FakeNftables:
                return self

            def __exit__(self, *exc: object) -> None:
                pass

            def run(self, commands: str) -> str:
                if scene.broken is not None:
                    raise scene.broken
                scene.policies.append((Space.current, commands))
                return ""

        def make(what: str) -> Any:
            def function(*_: object) -> socket.socket:
                if isinstance(scene.broken, OSError):
                    raise scene.broken
                scene.made.append((Space.current, what))
                return socket.socket(socket.AF_INET6)

            return function

        monkeypatch.setattr(proxy_gate, "Nftables", FakeNftables)
        monkeypatch.setattr(proxy_gate.sockets, "proxy_listener", make("listener"))
        monkeypatch.setattr(proxy_gate.sockets, "proxy_socket", make("socket"))
        monkeypatch.setattr(proxy_gate.sockets, "start_connect", lambda *_: None)

        class FakeAcp:
            namespace = Space("acp")

            class address:  # noqa: N801
                address = IPv6Address("fd00::9")

        class FakePorts:
            by_number = self.ports.get

        self.gate = ProxyGate(
            FakeAcp(),  # type: ignore[arg-type]
            FakePorts(),  # type: ignore[arg-type]
            self._tell,
            lambda: self.now,
            enabled=enabled,
        )

    def _tell(self, message: Message, descriptors: Sequence[int]) -> None:
        for descriptor in descriptors:
            os.fstat(descriptor)
        self.told.append((message, len(descriptors)))

    def last(self) -> tuple[Message, int]:
        return self.told[-1]

    def open_on(self, space: str) -> str:
        return [commands for where, commands in self.policies if where == space][-1]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def test_registrars_are_passed_on_and_may_be_reached(scene: Scene) -> None:
    assert scene.gate.registrars(m.Registrars((ONE,)))
    assert scene.last() == (m.Registrars((ONE,)), 0)
    assert "fd00::1 . 8443" in scene.open_on("acp")
    assert scene.gate.connect(m.ProxyConnect(5, ONE.address, ONE.port))
    assert scene.last() == (m.ProxySocket(5), 1)
    assert scene.made == [("acp", "socket")]


def test_nothing_else_is_reached(scene: Scene) -> None:
    scene.gate.registrars(m.Registrars((ONE,)))
    for address, port in ((TWO.address, 8443), (ONE.address, 22), (IPv6Address("fd00::9"), 7017)):
        assert scene.gate.connect(m.ProxyConnect(6, address, port))
        assert scene.last() == (m.ProxyRefused(6, "it is no registrar any more"), 0)
    assert scene.made == []


def test_a_former_registrar_is_reached_until_the_last_conversation_has_ended(scene: Scene) -> None:
    scene.gate.registrars(m.Registrars((ONE,)))
    scene.gate.registrars(m.Registrars((TWO,)))
    assert "fd00::1 . 8443" in scene.open_on("acp")
    assert scene.gate.connect(m.ProxyConnect(7, ONE.address, ONE.port))
    assert isinstance(scene.last()[0], m.ProxyRefused), "but there are no new ones"
    scene.now += LIFETIME_SECONDS + 1
    scene.gate.registrars(m.Registrars(()))
    assert "fd00::1 " not in scene.open_on("acp")
    assert "fd00::2 . 8443" in scene.open_on("acp")


def test_too_many_registrars_are_nonsense(scene: Scene) -> None:
    crowd = tuple(Registrar(IPv6Address(f"fd00::{n:x}"), 1, "") for n in range(MAX_REGISTRARS + 1))
    assert not scene.gate.registrars(m.Registrars(crowd))
    assert scene.told == []


@pytest.mark.parametrize(
    ("address", "port"),
    [
        ("fd00::1", 0),
        ("fd00::1", -5),
        ("fd00::1", 70_000),
        ("fd00::1", 7017),
        ("::1", 8443),
        ("fe80::1", 8443),
    ],
)
def test_registrars_that_no_plane_finds_are_nonsense(scene: Scene, address: str, port: int) -> None:
    assert not scene.gate.registrars(m.Registrars((ONE, Registrar(IPv6Address(address), port, ""))))
    assert scene.told == []
    assert scene.policies == []


def test_ports_are_opened_and_closed(scene: Scene) -> None:
    scene.gate.registrars(m.Registrars((ONE,)))
    assert scene.gate.open(m.ProxyOpen(1, (FIRST,), ()))
    assert scene.last() == (m.ProxyOpened(1, (FIRST,)), 1)
    assert scene.open_on("link").count(str(FIRST)) == 2
    assert scene.gate.open(m.ProxyOpen(1, (), (FIRST,)))
    assert scene.last() == (m.ProxyOpened(1, ()), 0)
    assert scene.open_on("link").count(str(FIRST)) == 1
    assert "proxy_circuits { 4443 }" in scene.open_on("link")
    scene.gate.close_all()
    assert str(FIRST) not in scene.open_on("link")


def test_only_the_ports_of_the_proxy(scene: Scene) -> None:
    scene.gate.registrars(m.Registrars((ONE,)))
    assert not scene.gate.open(m.ProxyOpen(1, (22,), ()))
    assert not scene.gate.open(m.ProxyOpen(1, (), (7017,)))
    assert scene.made == []


def test_nobody_is_let_in_while_no_registrar_is_known(scene: Scene) -> None:
    assert scene.gate.open(m.ProxyOpen(1, (FIRST,), ()))
    assert scene.last() == (m.ProxyOpened(1, ()), 0)
    assert str(FIRST) not in scene.open_on("link")


def test_a_port_that_has_gone_meanwhile(scene: Scene) -> None:
    scene.gate.registrars(m.Registrars((ONE,)))
    scene.ports[1].announced = False
    for number in (1, 9):
        assert scene.gate.open(m.ProxyOpen(number, (FIRST,), ()))
    assert len(scene.told) == 1
    scene.gate.open(m.ProxyOpen(2, (FIRST,), ()))
    scene.gate.port_down(scene.ports[2])  # type: ignore[arg-type]
    assert str(FIRST) not in scene.open_on("link")
    scene.ports[2].namespace = None
    scene.gate.port_down(scene.ports[2])  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [LinuxError("no"), OSError(errno.EADDRINUSE, "in use")])
def test_what_the_kernel_refuses_is_not_opened(scene: Scene, error: Exception) -> None:
    scene.gate.registrars(m.Registrars((ONE,)))
    scene.broken = error
    if isinstance(error, LinuxError):
        scene.gate.registrars(m.Registrars((TWO,)))
    assert scene.gate.open(m.ProxyOpen(1, (FIRST,), ()))
    assert scene.last() == (m.ProxyOpened(1, ()), 0)
    if isinstance(error, OSError):
        scene.gate.connect(m.ProxyConnect(1, ONE.address, ONE.port))
        assert scene.last() == (m.ProxyRefused(1, "in use"), 0)


def test_sockets_are_not_given_without_end(scene: Scene) -> None:
    scene.gate.registrars(m.Registrars((ONE,)))
    for request in range(SOCKET_BURST + 5):
        assert scene.gate.connect(m.ProxyConnect(request, ONE.address, ONE.port))
    given = sum(isinstance(message, m.ProxySocket) for message, _ in scene.told)
    assert given == SOCKET_BURST
    scene.now += 1.0
    scene.gate.connect(m.ProxyConnect(999, ONE.address, ONE.port))
    assert scene.last() == (m.ProxySocket(999), 1)


def test_a_new_abutment_is_told(scene: Scene) -> None:
    scene.gate.abutment_ready()
    assert scene.told == []
    scene.gate.registrars(m.Registrars((ONE,)))
    scene.gate.abutment_ready()
    assert [message for message, _ in scene.told] == [m.Registrars((ONE,))] * 2


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, enabled=False)
    assert scene.gate.registrars(m.Registrars((ONE,)))
    assert scene.told == []
    scene.gate.open(m.ProxyOpen(1, (FIRST,), ()))
    assert scene.last() == (m.ProxyOpened(1, ()), 0)
    assert scene.gate.status(None) == {"enabled": False}
    assert scene.gate.status({"proxy": {"offers": {}}}) == {"enabled": False, "offers": {}}
