"""Circuits of the join proxy, on real sockets: what goes in at one end comes out at the other, or ends it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address

import pytest

from minerva.connect import circuit as circuits
from minerva.connect.circuit import Circuit, End, reset
from minerva.connect.messages import Registrar

PEER = IPv6Address("fe80::2")
REGISTRAR = Registrar(IPv6Address("fd00::1"), 8443, "")


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return two ends of a TCP connection: pairs of Unix sockets know no half-close with a reset."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for sock in (one, other):
        sock.setblocking(False)
    return one, other


class Scene:
    """A circuit between two programs that the test plays."""

    def __init__(self, spend: Callable[[int], float] = lambda _: 0.0, *, small: bool = False) -> None:
        self.loop = asyncio.get_running_loop()
        self.pledge, proxy_side = tcp_pair()
        self.registrar, self.upstream = tcp_pair()
        if small:
            for sock in (self.pledge, proxy_side, self.registrar, self.upstream):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32_768)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        self.ends: list[End] = []
        self.circuit = Circuit(
            proxy_side, PEER, 4443, spend=spend, on_end=lambda _, how: self.ends.append(how)
        )

    def start(self) -> None:
        self.circuit.start(self.upstream, REGISTRAR)

    async def read(self, sock: socket.socket, size: int) -> bytes:
        data = b""
        async with asyncio.timeout(10):
            while len(data) < size and (piece := await self.loop.sock_recv(sock, 65_536)):
                data += piece
        return data

    async def ended(self) -> End:
        async with asyncio.timeout(10):
            while not self.ends:
                await asyncio.sleep(0.001)
        [how] = self.ends
        return how

    def close(self) -> None:
        self.circuit.end(End.CLOSED)
        self.pledge.close()
        self.registrar.close()


def play(test: Callable[[Scene], Awaitable[None]], **kwargs: object) -> None:
    """Run a test on a scene."""

    async def main() -> None:
        with contextlib.closing(Scene(**kwargs)) as scene:  # type: ignore[arg-type]
            await test(scene)

    asyncio.run(main())


def test_what_was_sent_before_the_registrar_was_there_is_not_lost() -> None:
    """
    covers: JP-1
    """

    async def test(scene: Scene) -> None:
        await scene.loop.sock_sendall(scene.pledge, b"hello")
        await asyncio.sleep(0.02)
        scene.start()
        assert await scene.read(scene.registrar, 5) == b"hello"
        await scene.loop.sock_sendall(scene.registrar, b"world!")
        assert await scene.read(scene.pledge, 6) == b"world!"
        assert (scene.circuit.bytes_up, scene.circuit.bytes_down) == (5, 6)

    play(test)


@pytest.mark.parametrize("pledge_first", [True, False])
def test_each_direction_ends_for_itself(pledge_first: bool) -> None:
    """Who has said all may still listen; when both have, it is an orderly end, and each has had all."""

    async def test(scene: Scene) -> None:
        scene.start()
        first, second = scene.pledge, scene.registrar
        if not pledge_first:
            first, second = second, first
        await scene.loop.sock_sendall(first, b"that is all")
        first.shutdown(socket.SHUT_WR)
        assert await scene.read(second, 100) == b"that is all"
        for _ in range(3):
            await scene.loop.sock_sendall(second, b"but there is more")
            assert await scene.read(first, 17) == b"but there is more"
        assert scene.circuit.open
        second.shutdown(socket.SHUT_WR)
        assert await scene.read(first, 1) == b""
        assert await scene.ended() is End.CLOSED

    play(test)


@pytest.mark.parametrize("by_pledge", [True, False])
def test_a_reset_is_passed_on(by_pledge: bool) -> None:
    async def test(scene: Scene) -> None:
        scene.start()
        first, second = scene.pledge, scene.registrar
        if not by_pledge:
            first, second = second, first
        await scene.loop.sock_sendall(first, b"x")
        assert await scene.read(second, 1) == b"x"
        reset(first)
        with pytest.raises(ConnectionResetError):
            await scene.read(second, 1)
        assert await scene.ended() is (End.RESET_BY_PLEDGE if by_pledge else End.RESET_BY_REGISTRAR)

    play(test)


def test_a_reset_after_a_half_close_is_passed_on() -> None:
    """The pledge closes altogether, so what the registrar still has to say finds nobody."""

    async def test(scene: Scene) -> None:
        scene.start()
        await scene.loop.sock_sendall(scene.pledge, b"x")
        scene.pledge.close()
        assert await scene.read(scene.registrar, 100) == b"x"

        async def talk() -> None:
            for _ in range(100):
                await scene.loop.sock_sendall(scene.registrar, b"y" * 100)
                await asyncio.sleep(0.005)

        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await talk()
        assert await scene.ended() is End.CLOSED_BY_PLEDGE

    play(test)


def test_all_comes_through_slow_readers_and_costs_no_memory() -> None:
    """Three megabytes each way at once; while nobody reads, little is taken from who sends."""

    async def test(scene: Scene) -> None:
        scene.start()
        sent = [os.urandom(3 << 20), os.urandom((3 << 20) + 7)]
        ends = [(scene.pledge, scene.registrar), (scene.registrar, scene.pledge)]
        sending = [
            asyncio.create_task(scene.loop.sock_sendall(source, data))
            for data, (source, _) in zip(sent, ends, strict=True)
        ]
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in sending), "both wait for the readers"
        moved = scene.circuit.bytes_up
        await asyncio.sleep(0.1)
        assert scene.circuit.bytes_up == moved < 1 << 20

        async def read_slowly(sock: socket.socket, size: int) -> bytes:
            found = hashlib.sha256()
            while size > 0:
                data = await scene.read(sock, min(size, 100_000))
                size -= len(data)
                found.update(data)
                await asyncio.sleep(0.001)
            return found.digest()

        reading = [read_slowly(sink, len(data)) for data, (_, sink) in zip(sent, ends, strict=True)]
        found = await asyncio.gather(*reading)
        assert found == [hashlib.sha256(data).digest() for data in sent]
        await asyncio.gather(*sending)

    play(test, small=True)


def test_who_sends_much_has_to_wait() -> None:
    """``spend`` says for how long, and is told of every byte."""
    spent: list[int] = []

    def spend(size: int) -> float:
        spent.append(size)
        return size / 200_000

    async def test(scene: Scene) -> None:
        scene.start()
        began = scene.loop.time()
        sending = asyncio.create_task(scene.loop.sock_sendall(scene.pledge, bytes(60_000)))
        assert len(await scene.read(scene.registrar, 60_000)) == 60_000
        await sending
        assert scene.loop.time() - began > 0.2
        assert sum(spent) == 60_000
        assert max(spent) <= circuits.PIECE

    play(test, spend=spend)


def impatient(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Set some of the time limits."""
    for name, value in seconds.items():
        monkeypatch.setattr(circuits, name, value)


def is_reset(sock: socket.socket) -> bool:
    """Whether a connection was ended with a reset."""
    try:
        return sock.recv(1) is None
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


@pytest.mark.parametrize("started", [True, False])
def test_who_says_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch, started: bool) -> None:
    """
    covers: JP-6
    """
    impatient(monkeypatch, FIRST_BYTE_SECONDS=0.1)

    async def test(scene: Scene) -> None:
        if started:
            scene.start()
        assert await scene.ended() is End.SILENT
        assert is_reset(scene.pledge)
        assert is_reset(scene.registrar) is started
        if not started:
            scene.upstream.close()

    play(test)


def test_silence_ends_it_and_words_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch, FIRST_BYTE_SECONDS=0.1, IDLE_SECONDS=0.2)

    async def test(scene: Scene) -> None:
        scene.start()
        for _ in range(6):
            await scene.loop.sock_sendall(scene.pledge, b"x")
            await asyncio.sleep(0.05)
            await scene.loop.sock_sendall(scene.registrar, b"y")
            await asyncio.sleep(0.05)
        assert scene.circuit.open
        began = scene.loop.time()
        assert await scene.ended() is End.IDLE
        assert 0.1 < scene.loop.time() - began < 1.0

    play(test)


def test_a_byte_now_and_then_holds_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    covers: JP-6
    """
    impatient(monkeypatch, IDLE_SECONDS=0.2, LIFETIME_SECONDS=0.5)

    async def test(scene: Scene) -> None:
        scene.start()
        began = scene.loop.time()
        while not scene.ends and scene.loop.time() - began < 5.0:
            with contextlib.suppress(OSError):
                await scene.loop.sock_sendall(scene.pledge, b"x")
            await asyncio.sleep(0.02)
        assert scene.ends == [End.TOO_LONG]
        assert scene.loop.time() - began < 1.5

    play(test)


def test_a_reader_that_never_reads_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch, FIRST_BYTE_SECONDS=0.1, IDLE_SECONDS=0.3)

    async def test(scene: Scene) -> None:
        scene.start()
        sending = asyncio.create_task(scene.loop.sock_sendall(scene.pledge, bytes(8 << 20)))
        assert await scene.ended() is End.IDLE
        with pytest.raises(OSError):
            await sending

    play(test, small=True)


def test_ended_once_and_nothing_is_left() -> None:
    async def test(scene: Scene) -> None:
        scene.start()
        scene.circuit.end(End.GAVE_WAY)
        scene.circuit.end(End.IDLE)
        assert scene.ends == [End.GAVE_WAY]
        assert scene.upstream.fileno() == -1

    play(test)


def test_resets_are_resets() -> None:
    """What the tests take for one is what the kernel sends."""
    one, other = tcp_pair()
    reset(one)
    assert is_reset(other)
    other.close()
    assert struct.calcsize("ii") == 8


@pytest.mark.parametrize("seed", range(20))
def test_whatever_both_ends_do_each_hears_what_the_other_said(seed: int) -> None:
    """Two ends that talk, pause and stop as they like; in the end all has come, and it is closed."""
    chance = random.Random(seed)

    async def test(scene: Scene) -> None:
        scene.start()

        async def say(sock: socket.socket, data: bytes) -> None:
            while data:
                size = chance.choice((1, 100, 20_000, 200_000))
                await scene.loop.sock_sendall(sock, data[:size])
                data = data[size:]
                if chance.random() < 0.3:
                    await asyncio.sleep(chance.random() * 0.01)
            sock.shutdown(socket.SHUT_WR)

        async def hear(sock: socket.socket) -> bytes:
            data = b""
            while piece := await scene.loop.sock_recv(sock, chance.choice((1, 500, 65_536))):
                data += piece
                if chance.random() < 0.02:
                    await asyncio.sleep(chance.random() * 0.01)
            return data

        said = [chance.randbytes(chance.choice((0, 1, 5000, 100_000))) for _ in range(2)]
        async with asyncio.timeout(20):
            heard = await asyncio.gather(
                hear(scene.registrar),
                hear(scene.pledge),
                say(scene.pledge, said[0]),
                say(scene.registrar, said[1]),
            )
        assert heard[:2] == said
        assert await scene.ended() is End.CLOSED
        assert (scene.circuit.bytes_up, scene.circuit.bytes_down) == tuple(map(len, said))

    play(test, small=chance.random() < 0.5)
