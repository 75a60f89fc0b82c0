"""Echo messages, and pings over the loopback interface of a namespace of their own."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.linux import icmp
from minerva.linux.icmp import Echo, EchoAnswer, EchoSocket, EchoType, IcmpDecodeError
from minerva.linux.namespace import CLONE_NEWNET, unshare

# --- the messages -----------------------------------------------------------------------------------------


def test_message() -> None:
    """RFC 4443 section 4.1: type, code, checksum, identifier, sequence number, data."""
    data = bytes.fromhex("80 00 0000 beef 0102 70696e67")
    echo = Echo.decode(data)
    assert echo == Echo(EchoType.ECHO_REQUEST, 0xBEEF, 0x0102, b"ping")
    assert echo.encode() == data


@given(st.sampled_from(EchoType), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(max_size=100))
def test_round_trip(kind: EchoType, ident: int, sequence: int, payload: bytes) -> None:
    echo = Echo(kind, ident, sequence, payload)
    assert Echo.decode(echo.encode()) == echo


def test_the_checksum_is_the_kernels_business() -> None:
    assert Echo.decode(bytes.fromhex("8100abcd00010002")) == Echo(EchoType.ECHO_REPLY, 1, 2)


@given(st.binary(max_size=20))
def test_any_bytes_decode_or_raise_a_decode_error(data: bytes) -> None:
    try:
        echo = Echo.decode(data)
    except IcmpDecodeError:
        assert len(data) < 8 or data[0] not in (128, 129) or data[1] != 0
    else:
        assert echo.encode() == data[:2] + b"\0\0" + data[4:]


@pytest.mark.parametrize("text", ["", "80", "80000000beef00", "8001000000010001", "8700000000010001"])
def test_refused(text: str) -> None:
    with pytest.raises(IcmpDecodeError):
        Echo.decode(bytes.fromhex(text))


# --- the socket -------------------------------------------------------------------------------------------

ONE, TWO, THREE = (IPv6Address(f"fd00::{number}") for number in (1, 2, 3))
IFA_F_TENTATIVE = 0x40
Isolated = Callable[[Callable[[], None]], None]


def set_up_loopback() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sH22x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
        for address in (ONE, TWO):
            fcntl.ioctl(control, 0x8916, struct.pack("16sIi", address.packed, 128, 1))  # SIOCSIFADDR
    # The kernel takes up an address a moment later, even here, where nobody could have it already.
    deadline = time.monotonic() + 10
    while any(int(line.split()[4], 16) & IFA_F_TENTATIVE for line in addresses_here()):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def addresses_here() -> list[str]:
    """Return the addresses of this thread's network namespace, as the kernel lists them."""
    return Path("/proc/thread-self/net/if_inet6").read_text().splitlines()


@pytest.fixture
def isolated() -> Iterator[Isolated]:
    """Run a function in a thread with a network namespace of its own, which goes when the thread ends."""

    def enter() -> None:
        unshare(CLONE_NEWNET)
        set_up_loopback()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(enter).result()
        yield lambda function: thread.submit(function).result(timeout=60)


def forge(message: bytes, source: IPv6Address, destination: IPv6Address) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.bind((str(source), 0))
        sock.sendto(message, (str(destination), 0))


def when_usable(address: IPv6Address) -> EchoSocket:
    """Return a socket on a link-local address of lo, usable a moment after it is set."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return EchoSocket(address, scope=1)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a network namespace")
class TestEchoSocket:
    """Every test has a fresh network namespace with fd00::1 and fd00::2 on its loopback interface."""

    def test_ping(self, isolated: Isolated) -> None:
        def check() -> None:
            echo = EchoSocket(ONE)
            assert echo.receive() == []
            started = time.monotonic()
            echo.send(TWO, 7, 1, b"abc")
            echo.send(TWO, 7, 2)
            echo.send(ONE, 8, 1)
            first, second, third = echo.receive()
            elapsed = time.monotonic() - started
            assert (first.source, first.ident, first.sequence, first.payload) == (TWO, 7, 1, b"abc")
            assert (second.source, second.ident, second.sequence, second.payload) == (TWO, 7, 2, b"")
            assert (third.source, third.ident, third.sequence) == (ONE, 8, 1)
            assert {answer.hop_limit for answer in (first, second, third)} == {64}
            assert all(0 <= answer.rtt <= elapsed for answer in (first, second, third))
            assert echo.receive() == []
            echo.close()

        isolated(check)

    def test_waiting_in_our_buffer_is_not_part_of_the_round_trip(self, isolated: Isolated) -> None:
        def check() -> None:
            echo = EchoSocket(ONE)
            echo.send(TWO, 7, 1)
            time.sleep(0.2)
            (answer,) = echo.receive()
            assert answer.rtt < 0.1
            echo.close()

        isolated(check)

    def test_only_the_reply_that_was_asked_for(self, isolated: Isolated) -> None:
        """Not one of another address, identifier or sequence number, no request, no second reply."""

        def check() -> None:
            echo = EchoSocket(ONE)
            forge(Echo(EchoType.ECHO_REPLY, 7, 1).encode(), TWO, ONE)
            assert echo.receive() == []
            echo.send(TWO, 7, 1)
            forge(Echo(EchoType.ECHO_REPLY, 7, 1, b"duplicate").encode(), TWO, ONE)
            (answer,) = echo.receive()
            assert answer.payload == b""
            # TWO is a local address, so the true reply comes at once; a destination that never answers
            # shows that nothing else is taken for its reply.
            echo._outstanding[7, 2, THREE] = time.monotonic()
            for reply in (Echo(EchoType.ECHO_REPLY, 7, 2), Echo(EchoType.ECHO_REQUEST, 7, 2)):
                forge(reply.encode(), TWO, ONE)
            assert echo.receive() == []
            assert list(echo._outstanding) == [(7, 2, THREE)]
            echo.close()

        isolated(check)

    def test_other_types_never_reach_the_socket(self, isolated: Isolated) -> None:
        def check() -> None:
            echo = EchoSocket(ONE)
            for kind in (1, 128, 134, 155, 255):
                forge(bytes([kind, 0, 0, 0]) + bytes(20), TWO, ONE)
            with pytest.raises(BlockingIOError):
                echo._socket.recv(100)
            echo.close()

        isolated(check)

    def test_replies_to_another_address_do_not_come_here(self, isolated: Isolated) -> None:
        def check() -> None:
            one, two = EchoSocket(ONE), EchoSocket(TWO)
            one.send(TWO, 7, 1)
            two._outstanding[7, 1, TWO] = time.monotonic()
            assert two.receive() == []
            assert len(one.receive()) == 1
            one.close()
            two.close()

        isolated(check)

    def test_forgets_the_oldest(self, isolated: Isolated, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(icmp, "MAX_OUTSTANDING", 3)

        def check() -> None:
            echo = EchoSocket(ONE)
            for sequence in range(5):
                echo.send(TWO, 7, sequence)
            assert [answer.sequence for answer in echo.receive()] == [2, 3, 4]
            echo.close()

        isolated(check)

    def test_no_route_and_no_such_source(self, isolated: Isolated) -> None:
        def check() -> None:
            echo = EchoSocket(ONE)
            with pytest.raises(OSError) as caught:
                echo.send(IPv6Address("2001:db8::1"), 1, 1)
            assert caught.value.errno == errno.ENETUNREACH
            assert not echo._outstanding
            echo.close()
            with pytest.raises(OSError) as caught:
                EchoSocket(THREE)
            assert caught.value.errno == errno.EADDRNOTAVAIL

        isolated(check)

    def test_link_local_with_scope(self, isolated: Isolated) -> None:
        def check() -> None:
            address = IPv6Address("fe80::1")
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
                fcntl.ioctl(control, 0x8916, struct.pack("16sIi", address.packed, 64, 1))
            echo = when_usable(address)
            echo.send(address, 7, 1, scope=1)
            assert [answer.source for answer in echo.receive()] == [address]
            echo.close()

        isolated(check)

    def test_asyncio(self, isolated: Isolated) -> None:
        async def ping(echo: EchoSocket) -> list[EchoAnswer]:
            answers: asyncio.Queue[list[EchoAnswer]] = asyncio.Queue()
            asyncio.get_running_loop().add_reader(echo.fileno(), lambda: answers.put_nowait(echo.receive()))
            echo.send(TWO, 7, 1)
            async with asyncio.timeout(10):
                return await answers.get()

        def check() -> None:
            echo = EchoSocket(ONE)
            assert [answer.source for answer in asyncio.run(ping(echo))] == [TWO]
            echo.close()

        isolated(check)
