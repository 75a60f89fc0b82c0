"""The codec and the socket of the messages between processes."""

from __future__ import annotations

import asyncio
import os
import socket
from ipaddress import IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.connect import ipc
from minerva.connect import messages as m
from minerva.core import cbor
from minerva.core.secret import Secret

EXAMPLES = [
    m.Ready(1),
    m.StatusReply(7, {"a": [1, None, "x"], "b": 1.5}),
    m.Shutdown(),
    m.SignerReady(None),
    m.SignerReady("no key"),
    m.SignReply(3, b"\x01", ""),
    m.PortUp(1, "eth0", IPv6Address("fe80::1"), None),
    m.PortUp(1, "eth0", IPv6Address("fe80::1"), IPv6Address("fd00::1")),
    m.OuterRoutes(1, (m.Route(IPv6Address("fd00::2"), IPv6Address("fe80::2")),)),
    m.OuterRoutesOpened(1, (IPv6Address("fd00::2"),)),
    m.ChannelKeys(1, 256, 257, Secret(b"k" * 36), Secret(b"l" * 36), True),
    m.Traffic((1, 2, 3)),
    m.Hurry(),
    m.RouteAdd(IPv6Network("fd00::/48"), 4, IPv6Address("fe80::2")),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_round_trip(message: ipc.Message) -> None:
    decoded = ipc.decode(ipc.encode(message))
    assert decoded == message
    assert type(decoded) is type(message)


@pytest.mark.parametrize(
    "items",
    [
        [],
        ["x"],
        [True],
        [9999],
        [1],
        [1, "1"],
        [1, True],
        [1, 1, 1],
        [3, 1],
        [12, 1, "text instead of bytes", ""],
        [21, 1, "eth0", b"too short"],
        [28, 5],
        [28, [1, "2"]],
        [53, [b"\0" * 16, 129], 1, b"\0" * 16],
        [53, [b"\x01" * 16, 10], 1, b"\0" * 16],
        {"not": "an array"},
        7,
    ],
)
def test_what_does_not_follow_the_definition_is_refused(items: Any) -> None:
    with pytest.raises(ipc.IpcError):
        ipc.decode(cbor.dumps(items))


@given(st.binary(max_size=200))
def test_decoding_raises_nothing_else(data: bytes) -> None:
    try:
        ipc.decode(data)
    except ipc.IpcError:
        return


def test_secrets_do_not_show() -> None:
    message = m.ChannelKeys(1, 256, 257, Secret(b"k" * 36), Secret(b"l" * 36), True)
    assert "kkk" not in repr(message)
    assert "kkk" in ipc.encode(message).decode("latin-1")


def test_numbers_are_unique_and_documented() -> None:
    assert all(cls.__doc__ for cls in ipc.registered().values())
    with pytest.raises(ValueError, match="taken"):
        ipc.message(1)(m.Shutdown)


class Ends:
    """Two connected ends in one loop, and what arrived at the second."""

    def __init__(self) -> None:
        self.received: list[tuple[ipc.Message, list[int]]] = []
        self.closed: list[ipc.IpcError | None] = []
        self.near_closed: list[ipc.IpcError | None] = []
        self.near_socket, self.far_socket = ipc.socket_pair()
        self.near = ipc.Ipc(self.near_socket, lambda *_: None, self.near_closed.append)
        self.far = ipc.Ipc(self.far_socket, lambda *item: self.received.append(item), self.closed.append)

    def close(self) -> None:
        self.near.close()
        self.far.close()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)


def test_descriptors_travel_and_are_the_receivers() -> None:
    async def main() -> None:
        ends = Ends()
        read, write = os.pipe()
        ends.near.send(m.Shutdown(), [write])
        os.close(write)
        await settle()
        [(message, [received])] = ends.received
        assert message == m.Shutdown()
        os.write(received, b"hello")
        assert os.read(read, 10) == b"hello"
        os.close(received)
        os.close(read)
        ends.close()

    asyncio.run(main())


def test_a_large_message_arrives_through_a_memory_file() -> None:
    async def main() -> None:
        ends = Ends()
        state = {"names": ["x" * 100] * 3000}
        assert len(ipc.encode(m.StatusReply(1, state))) > ipc.MAX_PACKET
        ends.near.send(m.StatusReply(1, state))
        await settle()
        assert [message for message, _ in ends.received] == [m.StatusReply(1, state)]
        ends.close()

    asyncio.run(main())


def test_a_body_that_could_change_under_us_is_refused() -> None:
    async def main() -> None:
        ends = Ends()
        body = os.memfd_create("unsealed")
        os.write(body, ipc.encode(m.Shutdown()))
        socket.send_fds(ends.near_socket, [cbor.dumps([0])], [body])
        os.close(body)
        await settle()
        assert ends.received == []
        assert len(ends.closed) == 1
        assert "sealed" in str(ends.closed[0])
        ends.close()

    asyncio.run(main())


def test_nonsense_closes_the_connection_and_says_why() -> None:
    async def main() -> None:
        ends = Ends()
        ends.near_socket.send(b"\xff\xff")
        await settle()
        assert len(ends.closed) == 1
        assert isinstance(ends.closed[0], ipc.IpcError)
        assert ends.near_closed == [None]
        ends.close()

    asyncio.run(main())


def test_order_holds_when_the_receiver_is_slow() -> None:
    async def main() -> None:
        ends = Ends()
        for number in range(1500):
            ends.near.send(m.PortDown(number))
        await asyncio.sleep(0.2)
        ports = [message.port for message, _ in ends.received if isinstance(message, m.PortDown)]
        assert ports == [*range(1500)]
        ends.close()

    asyncio.run(main())


def test_a_peer_that_never_reads_is_given_up() -> None:
    async def main() -> None:
        near, far = ipc.socket_pair()
        closed: list[ipc.IpcError | None] = []
        connection = ipc.Ipc(near, lambda *_: None, closed.append)
        for number in range(20_000):
            connection.send(m.PortDown(number))
        assert len(closed) == 1
        assert "does not read" in str(closed[0])
        far.close()

    asyncio.run(main())
