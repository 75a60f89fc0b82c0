"""The data plane process between two sockets that stand for its TUN interface and its ESP socket."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from minerva.connect import data_plane, ipc
from minerva.connect import messages as m
from minerva.connect.data_plane import DataPlane
from minerva.connect.forwarding_loop import ForwardingLoop
from minerva.core.secret import Secret
from minerva.esp.sa import InboundSA, OutboundSA
from minerva.linux import scheduling

KEYS = {number: Secret(bytes([number]) * 36) for number in range(1, 7)}

BYTES = 1000


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
        self.supervisor.send(m.ChannelAttach(1, "acp_x", 1426, BYTES), [tun.fileno(), esp.fileno()])
        tun.close()
        esp.close()

    def keys(self, spi_in: int, spi_out: int, key_in: int, key_out: int, *, send: bool = True) -> None:
        self.supervisor.send(m.ChannelKeys(1, spi_in, spi_out, KEYS[key_in], KEYS[key_out], send))

    async def sent_with(self) -> str | None:
        """Send a packet; return the SPI that it has on the wire."""
        self.acp.send(ipv6(b"?"))
        await settle()
        sealed = try_read(self.wire)
        return None if sealed is None else sealed[:4].hex()

    async def close(self) -> None:
        self.supervisor.send(m.ChannelDetach(1))
        await settle()
        self.supervisor.close()
        await settle()
        self.acp.close()
        self.wire.close()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=ForwardingLoop) as runner:
        runner.run(main())


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

    run(main)


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

    run(main)


def test_the_newest_keys_send_and_all_receive_until_they_go() -> None:
    async def main() -> None:
        bench = Bench()
        bench.keys(300, 400, 1, 2)
        bench.keys(301, 401, 3, 4)
        assert await bench.sent_with() == "00000190", "the peer is given a moment"
        await asyncio.sleep(0.15)
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

    run(main)


def test_keys_that_the_peer_may_not_have_wait() -> None:
    """Until a packet has come in on them; they are received on at once.

    covers: 6.8-rekey
    """

    async def main() -> None:
        bench = Bench()
        bench.keys(300, 400, 1, 2, send=False)
        assert await bench.sent_with() == "00000190", "there are no others"
        bench.keys(301, 401, 3, 4, send=False)
        assert await bench.sent_with() == "00000190"
        bench.wire.send(OutboundSA(300, KEYS[1]).seal(ipv6(b"old")))
        bench.wire.send(OutboundSA(301, KEYS[5]).seal(ipv6(b"forged")))
        await settle()
        assert await bench.sent_with() == "00000190"
        bench.wire.send(OutboundSA(301, KEYS[3]).seal(ipv6(b"new")))
        await settle()
        assert await bench.sent_with() == "00000191"
        assert [try_read(bench.acp), try_read(bench.acp)] == [ipv6(b"old"), ipv6(b"new")]
        bench.keys(302, 402, 5, 6, send=False)
        bench.supervisor.send(m.ChannelKeysGone(1, 300))
        await settle()
        assert await bench.sent_with() == "00000191"
        bench.supervisor.send(m.ChannelKeysGone(1, 301))
        await settle()  # packets do not wait for messages
        assert await bench.sent_with() == "00000192", "no other is left"
        await bench.close()

    run(main)


def by_packets(spi: int, key: Secret, rekey_bytes: int) -> OutboundSA:
    assert rekey_bytes == BYTES
    return OutboundSA(spi, key, rekey_sequence=2)


def test_a_channel_that_has_sent_much_asks_for_new_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each pair of SAs, and the channel goes on."""
    monkeypatch.setattr(data_plane, "_TRAFFIC_SECONDS", 0.02)
    monkeypatch.setattr(data_plane, "OutboundSA", by_packets)

    async def main() -> None:
        bench = Bench()
        bench.keys(300, 400, 1, 2)
        for _ in range(3):
            assert await bench.sent_with() == "00000190"
        await asyncio.sleep(0.1)
        assert bench.said == [m.ChannelRekey(1)]
        bench.keys(301, 401, 3, 4)
        await asyncio.sleep(0.15)
        for _ in range(3):
            assert await bench.sent_with() == "00000191"
        await asyncio.sleep(0.1)
        assert bench.said == [m.ChannelRekey(1)] * 2
        await bench.close()

    run(main)


def test_a_channel_that_has_sent_many_bytes_asks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    covers: 6.8-rekey
    """
    monkeypatch.setattr(data_plane, "_TRAFFIC_SECONDS", 0.02)

    async def main() -> None:
        bench = Bench()
        bench.keys(300, 400, 1, 2)
        bench.acp.send(ipv6(bytes(BYTES - 82)))
        assert await bench.sent_with() == "00000190"
        await asyncio.sleep(0.1)
        assert bench.said == []
        bench.acp.send(ipv6(b""))
        await asyncio.sleep(0.1)
        assert bench.said == [m.ChannelRekey(1)]
        await bench.close()

    run(main)


@pytest.mark.parametrize("first", [0, 71])
def test_bursts_arrive_whole_and_in_order(first: int) -> None:
    """In both directions, of all lengths, and longer than one turn of a channel."""
    packets = [ipv6(bytes([number]) * (number * 7)) for number in range(first, first + data_plane._BATCH + 7)]

    async def main() -> None:
        bench = Bench()
        bench.keys(300, 400, 1, 2)
        await settle()
        inbound, peer = InboundSA(400, KEYS[2]), OutboundSA(300, KEYS[1])
        for packet in packets:
            bench.acp.send(packet)
            bench.wire.send(peer.seal(packet))
        await settle()
        sealed = [try_read(bench.wire) or b"" for _ in packets]
        assert [inbound.open(packet) for packet in sealed] == packets
        assert [try_read(bench.acp) for _ in packets] == packets
        await bench.close()

    run(main)


def test_a_flooded_channel_does_not_starve_another() -> None:
    """One turn of the loop moves a bounded number of its packets, in each direction."""
    turns = 2 * data_plane._BATCH

    async def main() -> None:
        bench = Bench()
        acp, tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        wire, esp = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (acp, tun, wire, esp):
            sock.setblocking(False)
        bench.supervisor.send(m.ChannelAttach(2, "acp_y", 1426, BYTES), [tun.fileno(), esp.fileno()])
        tun.close()
        esp.close()
        bench.keys(300, 400, 1, 2)
        bench.supervisor.send(m.ChannelKeys(2, 500, 600, KEYS[3], KEYS[4], True))
        await settle()
        peer, other = OutboundSA(300, KEYS[1]), OutboundSA(500, KEYS[3])
        flood = 0
        with suppress(BlockingIOError):
            while True:
                bench.acp.send(ipv6(b"flood"))
                bench.wire.send(peer.seal(ipv6(b"flood")))
                flood += 1
        assert flood > 2 * turns, "the sockets hold less than what this test is about"
        acp.send(ipv6(b"out"))
        wire.send(other.seal(ipv6(b"in")))
        while (sealed := try_read(wire)) is None or (opened := try_read(acp)) is None:
            await asyncio.sleep(0)
            [first, _] = bench.plane.state()["channels"]
            assert first["packets_out"] <= turns
            assert first["packets_in"] <= turns
        assert InboundSA(600, KEYS[4]).open(sealed) == ipv6(b"out")
        assert opened == ipv6(b"in")
        bench.supervisor.send(m.ChannelDetach(2))
        await bench.close()
        acp.close()
        wire.close()

    run(main)


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EINVAL, errno.ENOMEM])
def test_a_packet_that_the_interface_refuses_is_counted(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The channel goes on."""
    write = os.write

    def refusing(descriptor: int, data: bytes) -> int:
        if data == ipv6(b"bad"):
            raise OSError(code, os.strerror(code))
        return write(descriptor, data)

    async def main() -> None:
        bench = Bench()
        bench.keys(300, 400, 1, 2)
        await settle()
        monkeypatch.setattr(os, "write", refusing)
        peer = OutboundSA(300, KEYS[1])
        bench.wire.send(peer.seal(ipv6(b"bad")))
        bench.wire.send(peer.seal(ipv6(b"good")))
        await settle()
        monkeypatch.undo()
        assert try_read(bench.acp) == ipv6(b"good")
        [channel] = bench.plane.state()["channels"]
        assert channel["unsent"] == 1
        await bench.close()

    run(main)


def test_who_is_late_hurries_and_then_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """While many packets wait for a turn, in either direction; of what nothing is authentic none counts."""
    rests: list[int] = []
    monkeypatch.setattr(scheduling, "go_with_others", lambda: rests.append(len(rests)))
    monkeypatch.setattr(data_plane, "_HURRY_SECONDS", 0.05)
    monkeypatch.setattr(data_plane, "_RESTLESS_PAUSE", 60.0)

    async def main() -> None:
        bench = Bench()

        def hurries() -> int:
            return bench.said.count(m.Hurry())

        bench.keys(300, 400, 1, 2)
        await settle()
        peer, forger = OutboundSA(300, KEYS[1]), OutboundSA(300, KEYS[3])
        for _ in range(data_plane._LATE):
            bench.wire.send(forger.seal(ipv6(b"forged")))
        for _ in range(data_plane._LATE - 1):
            bench.wire.send(peer.seal(ipv6(b"in")))
            bench.acp.send(ipv6(b"out"))
        await settle()
        assert hurries() == 0
        for number, ways in enumerate(([bench.acp], [bench.wire], [bench.acp, bench.wire]), 1):
            for _ in range(data_plane._LATE):
                for way in ways:
                    way.send(ipv6(b"out") if way is bench.acp else peer.seal(ipv6(b"in")))
            await settle()
            assert hurries() == number
            await asyncio.sleep(0.25)
            assert len(rests) == number
        os.kill(os.getpid(), signal.SIGXCPU)  # as the kernel does if there is no rest
        await settle()
        assert len(rests) == 4
        for _ in range(data_plane._LATE):
            bench.acp.send(ipv6(b"out"))
        await settle()
        assert hurries() == 3, "not so soon"
        await bench.close()

    run(main)


def test_who_had_no_rest_may_hurry_again_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if there is no moment without a reason to hurry."""
    monkeypatch.setattr(scheduling, "go_with_others", lambda: None)
    monkeypatch.setattr(data_plane, "_HURRY_SECONDS", 0.2)
    monkeypatch.setattr(data_plane, "_RESTLESS_PAUSE", 0.3)

    async def main() -> None:
        bench = Bench()
        bench.keys(300, 400, 1, 2)
        await settle()

        async def be_late(seconds: float) -> None:
            for _ in range(round(seconds / 0.02)):
                for _ in range(data_plane._LATE):
                    bench.acp.send(ipv6(b"out"))
                await asyncio.sleep(0.02)

        await be_late(0.04)
        assert bench.said.count(m.Hurry()) == 1
        os.kill(os.getpid(), signal.SIGXCPU)  # as the kernel does if there is no rest
        await be_late(0.1)
        assert bench.said.count(m.Hurry()) == 1
        await be_late(0.5)
        assert bench.said.count(m.Hurry()) == 2
        await bench.close()

    run(main)


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

    run(main)


def test_traffic_is_reported() -> None:
    async def main() -> None:
        bench = Bench()
        bench.keys(300, 400, 1, 2)
        await settle()
        bench.wire.send(OutboundSA(300, KEYS[1]).seal(ipv6(b"in")))
        await asyncio.sleep(1.2)
        assert bench.said == [m.Traffic((1,))]
        await bench.close()

    run(main)
