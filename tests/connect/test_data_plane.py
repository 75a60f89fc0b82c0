"""The data plane process between two sockets that stand for its TUN interface and its ESP socket."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from minerva.connect import ipc
from minerva.connect import messages as m
from minerva.connect.data_plane import DataPlane
from minerva.core.secret import Secret
from minerva.esp.sa import InboundSA, OutboundSA

KEYS = {number: Secret(bytes([number]) * 36) for number in range(1, 7)}


def ipv6(payload: bytes) -> bytes:
    return bytes([0x60, 0, 0, 0, *len(payload).to_bytes(2), 59, 64]) + bytes(32) + payload


class Bench:
    """A data plane with one channel, its supervisor's end, and the other side of both descriptors."""

    def __init__(self) -> None:
        near, far = ipc.socket_pair()
        self.said: list[ipc.Message] = []
        self.plane = DataPlane(far)
        self.supervisor = ipc.Ipc(near, lambda message, _: self.said.append(message), lambda _: None)
        kind = socket.SOCK_SEQPACKET
        self.acp, tun = socket.socketpair(socket.AF_UNIX, kind)
        self.wire, esp = socket.socketpair(socket.AF_UNIX, kind)
        for sock in (self.acp, tun, self.wire, esp):
            sock.setblocking(False)
        self.supervisor.send(m.ChannelAttach(1, "acp_x", 1426), [tun.fileno(), esp.fileno()])
        tun.close()
        esp.close()

    def keys(self, spi_in: int, spi_out: int, key_in: int, key_out: int) -> None:
        self.supervisor.send(m.ChannelKeys(1, spi_in, spi_out, KEYS[key_in], KEYS[key_out]))

    async def close(self) -> None:
        self.supervisor.send(m.ChannelDetach(1))
        await settle()
        self.supervisor.close()
        await settle()
        self.acp.close()
        self.wire.close()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0.002)


def try_read(sock: socket.socket) -> bytes | None:
    try:
        return sock.recv(65_535)
    except BlockingIOError:
        return None


def test_packets_are_sealed_one_way_and_opened_the_other() -> None:
    async def main() -> None:
        bench = Bench()
        bench.keys(300, 400, 1, 2)
        await settle()
        bench.acp.send(ipv6(b"out"))
        await settle()
        sealed = try_read(bench.wire)
        assert sealed is not None
        assert InboundSA(400, KEYS[2]).open(sealed) == ipv6(b"out")
        bench.wire.send(OutboundSA(300, KEYS[1]).seal(ipv6(b"in")))
        await settle()
        assert try_read(bench.acp) == ipv6(b"in")
        await bench.close()

    asyncio.run(main())


def test_nothing_passes_without_keys_in_either_direction() -> None:
    async def main() -> None:
        bench = Bench()
        await settle()
        bench.acp.send(ipv6(b"secret"))
        bench.wire.send(ipv6(b"forged"))
        bench.wire.send(OutboundSA(300, KEYS[1]).seal(ipv6(b"forged")))
        await settle()
        assert try_read(bench.wire) is None
        assert try_read(bench.acp) is None
        [channel] = bench.plane.state()["channels"]
        assert channel["drops"] == {"no_outbound_sa": 1, "unknown_spi": 2}
        await bench.close()

    asyncio.run(main())


def test_the_newest_keys_send_and_all_receive_until_they_go() -> None:
    async def main() -> None:
        bench = Bench()
        bench.keys(300, 400, 1, 2)
        bench.keys(301, 401, 3, 4)
        await settle()
        bench.acp.send(ipv6(b"new"))
        old_peer = OutboundSA(300, KEYS[1])
        bench.wire.send(old_peer.seal(ipv6(b"old")))
        await settle()
        sealed = try_read(bench.wire)
        assert sealed is not None
        assert InboundSA(401, KEYS[4]).open(sealed) == ipv6(b"new")
        assert try_read(bench.acp) == ipv6(b"old")
        bench.supervisor.send(m.ChannelKeysGone(1, 301))
        await settle()
        bench.acp.send(ipv6(b"again"))
        await settle()
        sealed = try_read(bench.wire)
        assert sealed is not None
        assert InboundSA(400, KEYS[2]).open(sealed) == ipv6(b"again")
        await bench.close()

    asyncio.run(main())


def test_detached_channels_close_their_descriptors() -> None:
    async def main() -> None:
        bench = Bench()
        await settle()
        before = len([*Path("/proc/self/fd").iterdir()])
        bench.supervisor.send(m.ChannelDetach(1))
        await settle()
        assert len([*Path("/proc/self/fd").iterdir()]) == before - 2
        assert bench.wire.recv(10) == b"", "the other end is closed"
        await bench.close()

    asyncio.run(main())


def test_traffic_is_reported() -> None:
    async def main() -> None:
        bench = Bench()
        bench.keys(300, 400, 1, 2)
        await settle()
        bench.wire.send(OutboundSA(300, KEYS[1]).seal(ipv6(b"in")))
        await asyncio.sleep(1.2)
        assert bench.said == [m.Traffic((1,))]
        await bench.close()

    asyncio.run(main())
