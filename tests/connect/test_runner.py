"""A core on several sockets: which datagram comes in by which, and which leaves by which."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv6Address

from minerva.connect.runner import CoreRunner
from minerva.core.sansio import Datagram

HERE = IPv6Address("::1")


class Core:
    """Takes notes, and answers everything."""

    def __init__(self) -> None:
        self.received: list[tuple[bytes, int]] = []
        self.waiting: list[Datagram] = []

    def receive(self, data: bytes, address: IPv6Address, port: int, now: float) -> None:  # noqa: ARG002
        self.received.append((data, port))
        self.waiting.append(Datagram(b"to " + data, address, port))

    def datagrams_to_send(self, now: float) -> list[Datagram]:  # noqa: ARG002
        datagrams, self.waiting = self.waiting, []
        return datagrams

    def next_timer(self) -> float | None:
        return None

    def on_timer(self, now: float) -> None:  # noqa: ARG002
        raise AssertionError("there is no timer")

    def next_event(self) -> None:
        return None


def udp() -> tuple[socket.socket, int]:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind((str(HERE), 0))
    sock.setblocking(False)
    return sock, sock.getsockname()[1]


def test_a_socket_that_is_for_one_port_of_peers() -> None:
    """By it comes and goes what is of that port, and by the other all else."""

    async def main() -> None:
        (ours, our_port), (marked, marked_port) = udp(), udp()
        (any_peer, any_port), (special, special_port) = udp(), udp()
        core = Core()
        runner = CoreRunner(core, ours, lambda *_: None, others={special_port: marked})
        for sender, to, data in (
            (any_peer, our_port, b"1"),
            (special, marked_port, b"2"),
            (any_peer, marked_port, b"astray"),
            (special, our_port, b"astray too"),
        ):
            sender.sendto(data, (str(HERE), to))
        await asyncio.sleep(0.1)
        assert sorted(core.received) == [(b"1", any_port), (b"2", special_port)]
        assert any_peer.recvfrom(100)[1][1] == our_port
        assert special.recvfrom(100)[1][1] == marked_port
        runner.close()
        assert ours.fileno() == marked.fileno() == -1
        any_peer.close()
        special.close()

    asyncio.run(main())
