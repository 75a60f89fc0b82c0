"""Packets that are sent together arrive one by one, in order, whatever their lengths are."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv6Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerva.connect.segments import MAX_BYTES, MAX_SEGMENTS, Segments
from minerva.linux import sockets
from minerva.linux.namespace import Namespace
from minerva.linux.offload import leave_nothing
from tests.lab.attacker import UDP, Wire
from tests.linux.test_sockets import wire  # noqa: F401  # a fixture


class Recorder:
    """A socket that takes notes; it refuses what ``refuses`` says, by the number of packets in it."""

    def __init__(self, refuses: dict[bool, int] | None = None) -> None:
        self.calls: list[list[int]] = []  # the lengths of the packets in each call
        self._refuses = refuses or {}

    def send(self, packet: bytes) -> None:
        self._take([len(packet)])

    def sendmsg(self, buffers: Any, ancillary: Any) -> None:
        [buffer], [(level, kind, value)] = buffers, ancillary
        assert (level, kind) == (socket.IPPROTO_UDP, 103)
        (length,) = struct.unpack("=H", value)
        assert len(buffer) <= MAX_BYTES
        self._take([len(buffer[at : at + length]) for at in range(0, len(buffer), length)])

    def _take(self, lengths: list[int]) -> None:
        if (number := self._refuses.get(len(lengths) > 1)) is not None:
            raise OSError(number, os.strerror(number))
        self.calls.append(lengths)


def send(sock: Recorder, *lengths: int) -> int:
    segments = Segments(sock)  # type: ignore[arg-type]
    for length in lengths:
        segments.send(bytes(length))
    return segments.finish()


def test_what_goes_together() -> None:
    """Packets of one length, and a shorter one after them."""
    sock = Recorder()
    assert send(sock, 100, 100, 50, 50, 60, 60, 60, 10, 70) == 0
    assert sock.calls == [[100, 100, 50], [50], [60, 60, 60, 10], [70]]


def test_no_more_than_the_kernel_takes() -> None:
    sock = Recorder()
    send(sock, *[100] * (MAX_SEGMENTS + 2))
    assert sock.calls == [[100] * MAX_SEGMENTS, [100] * 2]
    sock = Recorder()
    send(sock, *[1452] * 50)
    assert [len(call) for call in sock.calls] == [45, 5]


def test_nothing_waits_when_it_is_finished() -> None:
    sock = Recorder()
    segments = Segments(sock)  # type: ignore[arg-type]
    segments.send(bytes(10))
    assert sock.calls == []
    assert segments.finish() == segments.finish() == 0
    assert sock.calls == [[10]]


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_where_the_kernel_cannot_cut_they_go_one_by_one(number: int) -> None:
    """None is lost, and it is not tried again."""
    sock = Recorder({True: number})
    assert send(sock, 100, 100, 50, 100, 100) == 0
    assert sock.calls == [[100], [100], [50], [100], [100]]


def test_what_a_full_queue_does_not_take_is_counted() -> None:
    assert send(Recorder({True: errno.EAGAIN}), 100, 100, 50, 30) == 3
    assert send(Recorder({True: errno.EIO, False: errno.EAGAIN}), 100, 100, 50, 30) == 4


@pytest.fixture(scope="module")
def loopback() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = [socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in range(2)]
    for end in ends:
        end.bind(("::1", 0))
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        end.setblocking(False)
    ends[0].connect(ends[1].getsockname())
    yield ends[0], ends[1]
    for end in ends:
        end.close()


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.sampled_from([1, 40, 1200, 1400, 1401]), max_size=80))
def test_they_arrive_as_they_were_sent(
    loopback: tuple[socket.socket, socket.socket], lengths: list[int]
) -> None:
    near, far = loopback
    packets = [bytes([number & 0xFF]) * length for number, length in enumerate(lengths)]
    segments = Segments(near)
    for packet in packets:
        segments.send(packet)
    assert segments.finish() == 0
    arrived = []
    while len(arrived) < len(packets) and select.select([far], [], [], 1)[0]:
        arrived.append(far.recv(2000))
    assert arrived == packets


@pytest.mark.root
def test_on_an_interface_that_leaves_nothing_to_hardware_they_are_cut(
    wire: tuple[Namespace, Namespace],  # noqa: F811
) -> None:
    """As a capture sees it; without that, in one piece."""
    near, far = wire
    ends = IPv6Address("fe80::a"), IPv6Address("fe80::b")
    with near.entered():
        there = sockets.esp_socket("a0", socket.if_nametoindex("a0"), *ends, udp_port=4500)
    with far.entered():
        here = sockets.udp_socket("b0", 4500)  # whoever refuses would be heard
    with there, here, Wire(near, "a0") as heard:
        seen = []
        for _ in range(2):
            segments = Segments(there)
            for _ in range(8):
                segments.send(b"\1" * 1000)
            assert segments.finish() == 0
            seen.append([len(packet.data) for packet in heard.heard(0.3) if packet.kind == UDP])
            with near.entered():
                leave_nothing("a0")
                leave_nothing("lo")
    assert seen == [[8 + 8000], [8 + 1000] * 8]
