"""The gate of the web page: strangers are bounded in number and time, and lock out nobody else."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
from minerva.console.config import Web
from minerva.console.fronts import web_gate
from minerva.console.fronts.web_gate import Gate, visit_of
from minerva.console.fronts.web_tls import Certificate
from minerva.console.listeners import Connections
from tests.console.office import until

TRUSTING = ssl.create_default_context()
TRUSTING.check_hostname = False
TRUSTING.verify_mode = ssl.CERT_NONE

Test = Callable[[int, Gate], Awaitable[None]]


async def app(scope: Any, _receive: Any, send: Any) -> None:
    """Know who asks for /login."""
    if scope["path"] == "/login":
        visit_of(scope).known("vera")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def run(tmp_path: Path, test: Test) -> None:
    async def main() -> None:
        context, _ = Certificate(Web(), tmp_path).load()
        gate, connections = Gate(), Connections()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.ensure_future(gate.serve(listener, connections, context, app))
            try:
                async with asyncio.timeout(60):
                    await test(listener.getsockname()[1], gate)
            finally:
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)
                await connections.close()
        assert not gate.strangers._waiting
        assert not gate._of_user

    asyncio.run(main())


class Client:
    """One connection to the page."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, source: str = "127.0.0.1", *, tls: bool = True) -> Client:
        """Connect."""
        return cls(
            *await asyncio.open_connection(
                "127.0.0.1", port, ssl=TRUSTING if tls else None, local_addr=(source, 0)
            )
        )

    async def get(self, path: str) -> bytes:
        """Ask for something; return the first line of the answer."""
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = await self.reader.readuntil(b"\r\n\r\n")
        if b"200 OK" in answer:
            assert await self.reader.readexactly(2) == b"ok"
        return answer.partition(b"\r\n")[0]

    async def is_over(self) -> bool:
        """Wait until the server ends it."""
        with suppress(ConnectionError):
            async with asyncio.timeout(10):
                while await self.reader.read(1000):
                    pass
        self.writer.transport.abort()
        return True


def test_a_stranger_has_only_so_much_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_gate, "STRANGER_SECONDS", 1.0)

    async def test(port: int, gate: Gate) -> None:
        silent, halting, known = (
            await Client.open(port, tls=False),
            await Client.open(port),
            await Client.open(port),
        )
        assert await known.get("/login") == b"HTTP/1.1 200 OK"
        halting.writer.write(b"GET / HTTP/1.1\r\nHost: ")
        assert await silent.is_over()
        assert await halting.is_over()
        # Who has logged in stays.
        assert await known.get("/other") == b"HTTP/1.1 200 OK"
        known.writer.transport.abort()
        await until(lambda: not gate._of_user)

    run(tmp_path, test)


def test_one_who_connects_all_the_time_is_let_in_once_in_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_gate, "BURST", 5)
    monkeypatch.setattr(web_gate, "PACE_SECONDS", 60.0)

    async def test(port: int, gate: Gate) -> None:
        done = 0
        for _ in range(20):
            with suppress(ConnectionError, ssl.SSLError):
                client = await Client.open(port, "127.0.0.2")
                assert await client.get("/") == b"HTTP/1.1 200 OK"
                client.writer.transport.abort()
                done += 1
        assert done == 5
        other = await Client.open(port)
        assert await other.get("/login") == b"HTTP/1.1 200 OK"
        other.writer.transport.abort()
        await until(lambda: not gate.strangers._waiting and not gate._of_user)

    run(tmp_path, test)


def test_a_crowd_of_strangers_from_one_place_keeps_nobody_else_out(tmp_path: Path) -> None:
    async def test(port: int, gate: Gate) -> None:
        crowd = [await Client.open(port, "127.0.0.2", tls=False) for _ in range(300)]
        await until(lambda: gate.strangers.refused >= web_gate.BURST - web_gate.STRANGERS_OF_SOURCE)
        assert len(gate.strangers._waiting) == web_gate.STRANGERS_OF_SOURCE
        other = await Client.open(port)
        assert await other.get("/login") == b"HTTP/1.1 200 OK"
        # From many places, too.
        more = [
            await Client.open(port, f"127.0.1.{place}", tls=False)
            for place in range(1, 40)
            for _ in range(10)
        ]
        await until(lambda: gate.strangers.refused >= web_gate.BURST + 390 - web_gate.STRANGERS)
        assert await other.get("/login") == b"HTTP/1.1 200 OK"
        new = await Client.open(port)
        assert await new.get("/login") == b"HTTP/1.1 200 OK"
        for client in (*crowd, *more, other, new):
            client.writer.transport.abort()
        await until(lambda: not gate.strangers._waiting and not gate._of_user)

    run(tmp_path, test)


def test_a_user_has_only_so_many_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_gate, "CONNECTIONS_OF_USER", 3)

    async def test(port: int, gate: Gate) -> None:
        clients = []
        for _ in range(5):
            clients.append(await Client.open(port))
            assert await clients[-1].get("/login") == b"HTTP/1.1 200 OK"
        assert await clients[0].is_over()
        assert await clients[1].is_over()
        assert await clients[2].get("/login") == b"HTTP/1.1 200 OK"
        for client in clients:
            client.writer.transport.abort()
        await until(lambda: not gate._of_user)

    run(tmp_path, test)


def test_a_header_without_end_is_cut_off(tmp_path: Path) -> None:
    async def test(port: int, gate: Gate) -> None:
        client = await Client.open(port)
        with suppress(ConnectionError):
            for number in range(100):
                client.writer.write(f"x{number}: ".encode() + b"a" * 1000 + b"\r\n")
                await client.writer.drain()
        assert await client.is_over()
        await until(lambda: not gate.strangers._waiting)

    run(tmp_path, test)
