"""Streams over real sockets: what arrives, what waits, and what fails with which sentence."""

from __future__ import annotations

import asyncio
import socket

import pytest
from OpenSSL import SSL

from minerva.https.errors import HttpError, HttpTimeout, StreamError
from minerva.https.stream import TcpStream, TlsStream, host_and_port
from tests.https.ends import (
    DEVICE_CHAIN,
    REGISTRAR,
    device_context,
    dial,
    listener,
    rest,
    run,
    server_context,
)

VERSIONS = pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"])
LARGE = bytes(range(256)) * 4096  # a mebibyte


async def tcp_pair() -> tuple[TcpStream, TcpStream]:
    server = listener()
    client = TcpStream(dial(server.getsockname()[1]))
    accepted, _ = await asyncio.get_running_loop().sock_accept(server)
    server.close()
    return client, TcpStream(accepted)


async def tls_pair(
    client: SSL.Context | None = None, server: SSL.Context | None = None
) -> tuple[TlsStream, TlsStream]:
    with listener() as sock:
        dialled = dial(sock.getsockname()[1])
        accepted, _ = await asyncio.get_running_loop().sock_accept(sock)
    one, other = await asyncio.gather(
        TlsStream.client(dialled, client or device_context()),
        TlsStream.server(accepted, server or server_context()),
    )
    return one, other


async def closed(*streams: TcpStream | TlsStream) -> None:
    for stream in streams:
        await stream.close()
        await stream.close()


@VERSIONS
def test_both_see_the_other_s_certificates(version: int) -> None:
    """A chain of three of a maker that nobody knows is accepted, and is shown whole.

    covers: P-20, R-10
    """

    async def test() -> None:
        one, other = await tls_pair(device_context(version), server_context())
        assert one.peer_chain == (REGISTRAR,)
        assert other.peer_chain == DEVICE_CHAIN
        assert one.connection.version == {SSL.TLS1_2_VERSION: "TLSv1.2"}.get(version, "TLSv1.3")
        await one.write(b"hello")
        assert await other.read() == b"hello"
        await closed(one, other)

    run(test())


@VERSIONS
def test_large_bodies_both_ways_at_once(version: int) -> None:
    """Who writes waits for who reads, and nothing is kept that is not needed."""

    async def test() -> None:
        one, other = await tls_pair(device_context(version), server_context())

        async def say(stream: TlsStream) -> None:
            await stream.write(LARGE)

        async def hear(stream: TlsStream) -> bytes:
            heard = b""
            while len(heard) < len(LARGE):
                piece = await stream.read(50_000)
                assert 0 < len(piece) <= 50_000
                heard += piece
            return heard

        _, _, *heard = await asyncio.gather(say(one), say(other), hear(one), hear(other))
        assert heard == [LARGE, LARGE]
        await closed(one, other)

    run(test())


def test_who_does_not_read_makes_the_other_wait() -> None:
    async def test() -> None:
        one, other = await tls_pair()
        writing = asyncio.ensure_future(one.write(LARGE * 16))
        await asyncio.sleep(0.1)
        assert not writing.done()
        # What is on its way is in the buffers of the system, not here.
        assert len(other.transport._arrived) <= 65_536
        assert len(one._to_send) < 200_000
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await closed(one, other)

    run(test())


def test_a_cancelled_read_loses_nothing() -> None:
    """Cancelled at every moment between the arrival of the bytes and the return of the read."""

    async def test() -> None:
        one, other = await tls_pair()
        for turns in range(6):
            reading = asyncio.ensure_future(other.read())
            await asyncio.sleep(0.01)
            await one.write(b"precious")
            for _ in range(turns):
                await asyncio.sleep(0)
            if reading.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await reading
                assert await other.read() == b"precious"
            else:
                assert reading.result() == b"precious"
        await closed(one, other)

    run(test())


def test_a_cancelled_write_does_not_break_the_stream() -> None:
    async def test() -> None:
        one, other = await tls_pair()
        writing = asyncio.ensure_future(one.write(LARGE * 16))
        await asyncio.sleep(0.05)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        finishing = asyncio.ensure_future(one.write(b"the end"))
        heard = b""
        while not heard.endswith(b"the end"):
            heard += await other.read()
        await finishing
        assert (LARGE * 16).startswith(heard.removesuffix(b"the end"))
        await closed(one, other)

    run(test())


def test_the_end_is_told() -> None:
    """An end that the peer has announced is one; to break off is an error, as something may be missing."""

    async def test() -> None:
        one, other = await tls_pair()
        await one.write(b"last words")
        await one.close()
        assert await rest(other) == b"last words"
        assert await other.read() == b""
        with pytest.raises(StreamError, match="closed"):
            await one.read()
        with pytest.raises(HttpError):
            await one.write(b"x")
        await closed(one, other)
        one, other = await tls_pair()
        one.transport.abort()
        with pytest.raises(StreamError, match="in the middle"):
            await other.read()
        await closed(one, other)

    run(test())


def test_a_stream_that_is_closed_while_somebody_waits() -> None:
    async def test() -> None:
        one, other = await tls_pair()
        reading = asyncio.ensure_future(one.read())
        await asyncio.sleep(0.01)
        await one.close()
        with pytest.raises(StreamError, match="closed"):
            await reading
        await closed(one, other)
        tcp, far = await tcp_pair()
        writing = asyncio.ensure_future(tcp.write(LARGE * 16))
        await asyncio.sleep(0.01)
        await tcp.close()
        with pytest.raises(StreamError, match="closed"):
            await writing
        await closed(far)

    run(test())


def test_plain_tcp() -> None:
    async def test() -> None:
        one, other = await tcp_pair()
        await one.write(b"abcdef")
        assert await other.read(4) == b"abcd"
        assert await other.read(4) == b"ef"
        one.shutdown()
        assert await other.read() == b""
        await other.write(b"still")
        assert await one.read() == b"still"
        other.deadline = one.deadline = asyncio.get_running_loop().time() + 0.01
        with pytest.raises(HttpTimeout):
            await one.read()
        with pytest.raises(HttpTimeout):
            await other.write(LARGE * 16)
        await closed(one, other)

    run(test())


def test_a_reset() -> None:
    async def test() -> None:
        one, other = await tcp_pair()
        other._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        other.abort()
        with pytest.raises(StreamError, match="Connection reset"):
            await one.read()
        await closed(one)

    run(test())


# --- handshakes that fail ---


def test_nobody_listens() -> None:
    async def test() -> None:
        with listener() as sock:
            port = sock.getsockname()[1]
        with pytest.raises(StreamError, match="Connection refused"):
            await TlsStream.client(dial(port), device_context())

    run(test())


def test_a_silent_server() -> None:
    async def test() -> None:
        with listener() as sock, pytest.raises(HttpTimeout, match=r"more than 0\.05 s"):
            await TlsStream.client(dial(sock.getsockname()[1]), device_context(), timeout=0.05)

    run(test())


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(100)])
def test_a_server_of_something_else(answer: bytes) -> None:
    async def test() -> None:
        async def strange(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(answer)
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(strange, sock=listener())
        with pytest.raises(StreamError) as caught:
            await TlsStream.client(dial(server.sockets[0].getsockname()[1]), device_context())
        assert str(caught.value).isprintable()
        server.close()
        await server.wait_closed()

    run(test())


def test_a_client_that_is_cancelled_leaves_nothing() -> None:
    async def test() -> None:
        with listener() as sock:
            task = asyncio.ensure_future(TlsStream.client(dial(sock.getsockname()[1]), device_context()))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(test())


def test_versions_that_do_not_meet() -> None:
    async def test() -> None:
        with pytest.raises(StreamError, match=r"alert.*protocol version|unsupported protocol"):
            await tls_pair(device_context(SSL.TLS1_2_VERSION), server_context(version=SSL.TLS1_3_VERSION))
        # The other end of the pair, which gather has left to itself.
        await asyncio.sleep(0.05)

    run(test())


def test_bytes_before_the_handshake_is_done_stay_unread() -> None:
    """Nothing of an application passes a connection that is not ready."""

    async def test() -> None:
        with listener() as sock:
            dialled = dial(sock.getsockname()[1])
            accepted, _ = await asyncio.get_running_loop().sock_accept(sock)
        task = asyncio.ensure_future(TlsStream.server(accepted, server_context()))
        client = TcpStream(dialled)
        await client.write(bytes.fromhex("1703030005") + b"hello")
        with pytest.raises(StreamError):
            await task
        await closed(client)

    run(test())


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [
        ("example.com", 443, "example.com"),
        ("example.com", 9443, "example.com:9443"),
        ("2001:db8::1", 443, "[2001:db8::1]"),
        ("2001:db8::1", 8443, "[2001:db8::1]:8443"),
        ("[2001:db8::1]", 8443, "[2001:db8::1]:8443"),
    ],
)
def test_host_and_port(host: str, port: int, text: str) -> None:
    assert host_and_port(host, port) == text
