"""The node's end of the API socket, with clients that behave and clients that do not."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerva.asa import blocking, protocol
from minerva.asa.protocol import Event, FrameScanner, Reply, Request
from minerva.connect import grasp_api
from minerva.connect.grasp_api import open_api_socket
from minerva.core import cbor
from minerva.core.errors import UsageError
from minerva.grasp.api import ErrorCode
from minerva.grasp.substrate import Traced
from tests.asa.node import FakeNode, fake_node


class RawClient:
    """Speaks the protocol, or anything else, over a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.scanner = FrameScanner(from_node=True)
        self.frames: list[Reply | Event] = []
        self.loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.socket, data)

    async def request(self, *requests: Request) -> None:
        await self.send(b"".join(request.encode() for request in requests))

    async def receive(self) -> Reply | Event:
        async with asyncio.timeout(10):
            while not self.frames:
                data = await self.loop.sock_recv(self.socket, 65_536)
                if not data:
                    raise EOFError
                self.frames += [protocol.decode_from_node(frame) for frame in self.scanner.feed(data)]
        return self.frames.pop(0)

    async def reply(self) -> Reply:
        frame = await self.receive()
        assert isinstance(frame, Reply)
        return frame

    async def ends(self) -> bool:
        """Whether the node ends the connection, whatever it says before."""
        try:
            while True:
                await self.receive()
        except (EOFError, ConnectionResetError):
            return True


@asynccontextmanager
async def client(node: FakeNode) -> AsyncIterator[RawClient]:
    sock = node.raw()
    try:
        yield RawClient(sock)
    finally:
        sock.close()


def run(run_dir: Path, test: Callable[[FakeNode], Awaitable[None]]) -> None:
    async def main() -> None:
        async with fake_node(run_dir) as node:
            await test(node)

    asyncio.run(main())


async def serves(node: FakeNode) -> None:
    """A new client is served, whatever others did."""
    async with client(node) as good:
        await good.request(Request(1, "echo", ["still here"]))
        assert await good.reply() == Reply(1, ErrorCode.ok, ["still here"])


def test_request_and_reply(tmp_path: Path) -> None:
    async def test(node: FakeNode) -> None:
        async with client(node) as asa:
            await asa.request(Request(7, "echo", [1, "x", b"y", None]), Request(8, "unheard of"))
            assert await asa.reply() == Reply(7, ErrorCode.ok, [1, "x", b"y", None])
            refused = await asa.reply()
            assert (refused.id, refused.code, refused.result) == (8, ErrorCode.unspec, None)
            assert "unheard of" in refused.reason

    run(tmp_path, test)


def test_each_connection_is_a_client_and_its_end_is_told(tmp_path: Path) -> None:
    async def test(node: FakeNode) -> None:
        node.engine.functions["wait"] = lambda _: ...
        async with client(node) as one, client(node) as two:
            await one.request(Request(1, "wait"))
            await two.request(Request(1, "wait"))
            await node.until(lambda: len(node.engine.calls) == 2)
            first, second = (call.client for call in node.engine.calls)
            assert first != second
            assert node.server.connections == 2
            one.socket.close()
            await node.until(lambda: node.engine.gone == [first])
            node.engine.answer(node.engine.calls[1], result="two")
            node.engine.answer(node.engine.calls[0], result="nobody's any more")
            node.pump()
            assert (await two.reply()).result == "two"
        await node.until(lambda: node.engine.gone == [first, second])
        assert node.server.connections == 0

    run(tmp_path, test)


def test_frames_cut_anywhere(tmp_path: Path) -> None:
    async def test(node: FakeNode) -> None:
        async with client(node) as asa:
            data = Request(1, "echo", ["a" * 300, [1, {"k": 2.5}]]).encode() + Request(2, "echo").encode()
            for byte in data:
                await asa.send(bytes([byte]))
            assert (await asa.reply()).result == ["a" * 300, [1, {"k": 2.5}]]
            assert (await asa.reply()).result == []

    run(tmp_path, test)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"GET / HTTP/1.1\r\n\r\n",
        cbor.dumps([]),
        cbor.dumps({}),
        cbor.dumps([1, "echo"]),
        cbor.dumps([0, "echo", []]),
        cbor.dumps([-1, "echo", []]),
        cbor.dumps([True, "echo", []]),
        cbor.dumps([2**64, "echo", []]),
        cbor.dumps([1, b"echo", []]),
        cbor.dumps([1, "echo", {}]),
        b"\x83\x01\x61\xff\x80",  # text that is not UTF-8
        b"\x81" * 40,
        b"\x5b" + b"\xff" * 8,
        b"\x5a\x00\x05\x00\x00",
        Request(1, "wait").encode() * 2,
    ],
    ids=lambda data: data[:12].hex(),
)
def test_garbage_ends_the_connection_and_nothing_else(tmp_path: Path, data: bytes) -> None:
    async def test(node: FakeNode) -> None:
        node.engine.functions["wait"] = lambda _: ...
        async with client(node) as good, client(node) as bad:
            await good.request(Request(1, "wait"))
            await bad.request(Request(99, "echo"))
            await bad.reply()
            await bad.send(data)
            assert await bad.ends()
            assert node.server.counters.malformed == 1
            node.engine.answer(node.engine.calls[0], result="patience")
            node.pump()
            assert (await good.reply()).result == "patience"
        await serves(node)

    run(tmp_path, test)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_random_bytes_do_no_harm(chunks: list[bytes]) -> None:
    async def test(node: FakeNode) -> None:
        async with client(node) as bad:
            for chunk in chunks:
                try:
                    await bad.send(chunk)
                except OSError:
                    break
                await asyncio.sleep(0)
        await serves(node)
        await node.until(lambda: node.server.connections == 0)

    with tempfile.TemporaryDirectory() as run_dir:
        run(Path(run_dir), test)


def test_a_frame_that_is_never_finished(tmp_path: Path) -> None:
    async def test(node: FakeNode) -> None:
        async with client(node) as asa:
            await asa.send(Request(1, "echo", ["x"]).encode()[:-1])
            await serves(node)
        await node.until(lambda: node.server.connections == 0)
        assert node.engine.functions_called() == ["echo"]

    run(tmp_path, test)


def test_the_largest_frame_and_one_byte_more(tmp_path: Path) -> None:
    async def test(node: FakeNode) -> None:
        empty = len(Request(1, "size", [b""]).encode()) + 4  # the length takes four bytes more then
        node.engine.functions["size"] = lambda call: len(call.arguments[0])
        async with client(node) as asa:
            size = protocol.MAX_REQUEST - empty
            await asa.request(Request(1, "size", [bytes(size)]))
            assert (await asa.reply()).result == size
            with contextlib.suppress(BrokenPipeError):  # it is noticed before all has been sent
                await asa.send(cbor.dumps([1, "size", [bytes(size + 1)]]))
            assert await asa.ends()

    run(tmp_path, test)


def test_a_thousand_requests_at_once(tmp_path: Path) -> None:
    """Those that are answered at once are all answered, those that wait only up to the limit."""

    async def test(node: FakeNode) -> None:
        node.engine.functions["wait"] = lambda _: ...
        async with client(node) as asa:
            await asa.request(*(Request(number, "echo", [number]) for number in range(1, 1001)))
            assert [(await asa.reply()).result for _ in range(1000)] == [
                [number] for number in range(1, 1001)
            ]
            await asa.request(*(Request(number, "wait") for number in range(1, 1001)))
            refused = [await asa.reply() for _ in range(1000 - grasp_api.MAX_REQUESTS)]
            assert {reply.code for reply in refused} == {ErrorCode.unspec}
            assert {reply.id for reply in refused} == set(range(grasp_api.MAX_REQUESTS + 1, 1001))
            assert node.server.counters.too_many_requests == len(refused)
            await asa.request(Request(5000, "cancel", [1]))
            assert await asa.reply() == Reply(1, ErrorCode.unspec, None, "cancelled")
            assert await asa.reply() == Reply(5000, ErrorCode.ok)
            await asa.request(Request(5001, "wait"), Request(5002, "wait"))
            assert (await asa.reply()).id == 5002

    run(tmp_path, test)


def test_more_connections_than_are_allowed(tmp_path: Path) -> None:
    async def test(node: FakeNode) -> None:
        sockets = [node.raw() for _ in range(grasp_api.MAX_CONNECTIONS + 5)]
        await node.until(lambda: node.server.counters.refused == 5)
        assert node.server.connections == grasp_api.MAX_CONNECTIONS
        assert [await RawClient(sock).ends() for sock in sockets[grasp_api.MAX_CONNECTIONS :]] == [True] * 5
        sockets[0].close()
        await node.until(lambda: node.server.connections == grasp_api.MAX_CONNECTIONS - 1)
        await serves(node)
        for sock in sockets:
            sock.close()

    run(tmp_path, test)


def test_a_client_that_does_not_read_is_disconnected(tmp_path: Path) -> None:
    async def test(node: FakeNode) -> None:
        node.engine.functions["big"] = lambda _: bytes(100_000)
        async with client(node) as lazy:
            await lazy.request(*(Request(number, "big") for number in range(1, 101)))
            await node.until(lambda: node.server.counters.slow == 1)
            assert node.engine.gone == [node.engine.calls[0].client]
            assert len(node.engine.calls) < 100
            await serves(node)

    run(tmp_path, test)


def test_a_large_answer_to_a_client_that_reads_slowly_arrives(tmp_path: Path) -> None:
    async def test(node: FakeNode) -> None:
        node.engine.functions["big"] = lambda call: bytes([call.request]) * sizes[call.request]
        sizes = {1: 250_000, 2: 500_000, 3: 8_000_000}
        async with client(node) as asa:
            asa.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await asa.request(*(Request(number, "big") for number in range(1, 4)))
            await node.until(lambda: len(node.engine.calls) == 3)
            for number in range(1, 4):
                assert (await asa.reply()).result == bytes([number]) * sizes[number]

    run(tmp_path, test)


@pytest.mark.parametrize(
    "answer", [bytes(protocol.MAX_REPLY), object(), "\ud800"], ids=["big", "odd", "text"]
)
def test_an_answer_that_fits_into_no_frame(tmp_path: Path, answer: Any) -> None:
    async def test(node: FakeNode) -> None:
        node.engine.functions["odd"] = lambda _: answer
        async with client(node) as asa:
            await asa.request(Request(1, "odd"), Request(2, "echo"))
            reply = await asa.reply()
            assert (reply.id, reply.code) == (1, ErrorCode.unspec)
            assert "cannot be sent" in reply.reason
            assert (await asa.reply()).id == 2

    run(tmp_path, test)


def test_an_engine_that_fails_leaves_nobody_waiting(tmp_path: Path) -> None:
    async def test(node: FakeNode) -> None:
        def broken(_: Any) -> None:
            raise RuntimeError("a bug")

        node.engine.functions["broken"] = broken
        async with client(node) as asa:
            await asa.request(Request(1, "broken"))
            assert (await asa.reply()).code is ErrorCode.unspec
            await asa.request(Request(1, "echo"))
            assert (await asa.reply()).code is ErrorCode.ok

    run(tmp_path, test)


def test_trace_goes_to_those_who_asked(tmp_path: Path) -> None:
    async def test(node: FakeNode) -> None:
        async with client(node) as asa, client(node) as other:
            await asa.request(Request(1, "trace", ["yes"]))
            assert (await asa.reply()).code is ErrorCode.unspec
            assert not node.engine.tracing
            await asa.request(Request(2, "trace", [True]))
            assert (await asa.reply()).code is ErrorCode.ok
            assert node.engine.tracing
            node.server.deliver(Traced(None, IPv6Address("fd00::1"), True, b"\x80"))
            event = await asa.receive()
            assert isinstance(event, Event)
            record = protocol.TraceRecord.from_cbor(event.content)
            assert (record.where, record.direction, record.message) == ("fd00::1", "in", b"\x80")
            await other.request(Request(1, "echo"))
            assert isinstance(await other.receive(), Reply)  # and no event before
            await asa.request(Request(3, "trace", [False]))
            await asa.reply()
            assert not node.engine.tracing
            await asa.request(Request(4, "trace", [True]))
            await asa.reply()
        await node.until(lambda: node.server.connections == 0)
        assert not node.engine.tracing

    run(tmp_path, test)


def test_trace_events_are_dropped_before_answers(tmp_path: Path) -> None:
    async def test(node: FakeNode) -> None:
        async with client(node) as lazy:
            await lazy.request(Request(1, "trace", [True]))
            await lazy.reply()
            for _ in range(1000):
                node.server.deliver(Traced(3, IPv6Address("fe80::1"), False, bytes(2000)))
            assert node.server.counters.trace_dropped > 100
            await lazy.request(Request(2, "echo", ["important"]))
            while not isinstance(frame := await lazy.receive(), Reply):
                pass
            assert frame.result == ["important"]

    run(tmp_path, test)


def test_closing_the_server_ends_all(tmp_path: Path) -> None:
    async def test(node: FakeNode) -> None:
        async with client(node) as asa:
            await serves(node)
            node.server.close()
            assert await asa.ends()
            with pytest.raises(ConnectionRefusedError):
                node.raw()

    run(tmp_path, test)


def test_the_socket_is_for_root_and_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(grp, "getgrnam", nobody)
    open_api_socket(tmp_path).close()
    assert stat.S_IMODE((tmp_path / "grasp.sock").stat().st_mode) == 0o600

    group = grp.getgrgid(os.getgid())
    monkeypatch.setattr(grp, "getgrnam", {"minerva": group}.__getitem__)
    open_api_socket(tmp_path).close()  # in the place of the one before
    found = (tmp_path / "grasp.sock").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, group.gr_gid)


def test_a_socket_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot make the socket"):
        open_api_socket(tmp_path / "absent")
    with pytest.raises(UsageError, match="cannot make the socket"):
        open_api_socket(tmp_path / ("long" * 50))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_who_may_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says so: root, and members of the group, but nobody else."""
    group = grp.struct_group(("minerva", "x", 12345, []))
    monkeypatch.setattr(grp, "getgrnam", {"minerva": group}.__getitem__)

    def as_user(gid: int) -> None:
        before = os.getegid()
        os.setegid(gid)
        os.seteuid(65534)
        try:
            blocking.Grasp.open(run_dir / "grasp.sock").close()
        finally:
            os.seteuid(0)
            os.setegid(before)

    with tempfile.TemporaryDirectory() as name:
        run_dir = Path(name)
        run_dir.chmod(0o755)
        listening = open_api_socket(run_dir)
        as_user(group.gr_gid)
        with pytest.raises(UsageError, match="group minerva"):
            as_user(65534)
        listening.close()
