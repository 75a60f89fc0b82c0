"""The event loop of the data plane: forwarders are called at once, and asyncio works beside them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from minerva.connect.forwarding_loop import ForwardingLoop


def run(main: Callable[[ForwardingLoop], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=ForwardingLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, ForwardingLoop)
        runner.run(main(loop))


def pair() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.setblocking(False)
    far.setblocking(False)
    return near, far


def test_forwarders_and_all_that_asyncio_has() -> None:
    """Readers, writers, timers, signals and other threads have their turns while a forwarder never rests."""

    async def main(loop: ForwardingLoop) -> None:
        (near, far), (reader, writer) = pair(), pair()
        turns = 0

        def forward() -> None:
            nonlocal turns
            turns += 1
            near.recv(10)
            far.send(b"again")

        far.send(b"first")
        loop.add_forwarder(near.fileno(), forward)
        signalled = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, signalled.set)
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.wait_for(signalled.wait(), 5)
        await loop.sock_sendall(writer, b"hello")
        assert await loop.sock_recv(reader, 10) == b"hello"
        before = turns
        await asyncio.sleep(0.05)
        assert turns > before
        assert await asyncio.to_thread(os.getpid) == os.getpid()
        loop.remove_forwarder(near.fileno())
        before = turns
        await asyncio.sleep(0.02)
        assert turns == before
        loop.remove_forwarder(near.fileno())
        for sock in (near, far, reader, writer):
            sock.close()

    run(main)


def test_one_forwarder_waits_for_the_turn_of_another() -> None:
    async def main(loop: ForwardingLoop) -> None:
        order: list[int] = []
        pairs = [pair() for _ in range(3)]
        for number, (near, far) in enumerate(pairs):
            far.send(b"always there")
            loop.add_forwarder(near.fileno(), lambda number=number: order.append(number))  # type: ignore[misc]
        while len(order) < 30:
            await asyncio.sleep(0)
        assert all(sorted(order[start : start + 3]) == [0, 1, 2] for start in range(0, 30, 3))
        for near, far in pairs:
            loop.remove_forwarder(near.fileno())
            near.close()
            far.close()

    run(main)


def test_a_forwarder_may_remove_another_that_is_ready() -> None:
    """Which is not called any more, although both were found ready together."""

    async def main(loop: ForwardingLoop) -> None:
        called: list[int] = []
        pairs = [pair() for _ in range(2)]

        def forward(number: int) -> None:
            called.append(number)
            for near, _ in pairs:
                loop.remove_forwarder(near.fileno())

        for number, (near, far) in enumerate(pairs):
            far.send(b"there")
            loop.add_forwarder(near.fileno(), lambda number=number: forward(number))  # type: ignore[misc]
        await asyncio.sleep(0.02)
        assert len(called) == 1
        for near, far in pairs:
            near.close()
            far.close()

    run(main)


def test_an_error_that_nobody_foresaw_ends_the_loop() -> None:
    async def main(loop: ForwardingLoop) -> None:
        near, far = pair()
        with near, far:
            far.send(b"bad")
            loop.add_forwarder(near.fileno(), lambda: {}["bug"])
            await asyncio.sleep(1)

    loop = ForwardingLoop()
    with pytest.raises(KeyError, match="bug"):
        loop.run_until_complete(main(loop))
    loop.close()
