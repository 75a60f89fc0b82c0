"""The sockets that children are given, in namespaces of this test."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from ipaddress import IPv6Address

import pytest

from minerva.grasp.constants import ALL_GRASP_NEIGHBORS, GRASP_LISTEN_PORT
from minerva.linux import sockets
from minerva.linux.namespace import Namespace

pytestmark = pytest.mark.root


@pytest.fixture
def wire() -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces with a wire between them, a0 and b0, up and with link-local addresses."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    ends = [Namespace.create(f"minerva-test-{os.getpid()}-{name}") for name in "ab"]
    try:
        a, b = (end.name for end in ends)
        ip = ["ip", "-n", a]
        subprocess.run([*ip, "link", "add", "a0", "type", "veth", "peer", "b0", "netns", b], check=True)
        for namespace, device, address in ((a, "a0", "fe80::a"), (b, "b0", "fe80::b")):
            ip = ["ip", "-n", namespace]
            subprocess.run([*ip, "addr", "add", f"{address}/64", "dev", device, "nodad"], check=True)
            subprocess.run([*ip, "link", "set", device, "up"], check=True)
        wait_for_routes(b)
        yield ends[0], ends[1]
    finally:
        for end in ends:
            end.delete()


def wait_for_routes(namespace: str) -> None:
    """Wait until the kernel has noticed that the wire is up: only then does it route multicast."""
    command = ["ip", "-n", namespace, "-6", "route", "show", "table", "local", "ff00::/8"]
    deadline = time.monotonic() + 5
    while not subprocess.run(command, capture_output=True, check=True).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def received(sock: socket.socket) -> bytes | None:
    """Return what has come, or comes within two seconds."""
    readable, _, _ = select.select([sock], [], [], 2)
    return sock.recv(100) if readable else None


def test_all_grasp_instances_of_a_machine_hear_multicast(wire: tuple[Namespace, Namespace]) -> None:
    """
    covers: G2.3-1
    """
    near, far = wire
    with near.entered():
        index = socket.if_nametoindex("a0")
        listeners = [
            sockets.multicast_socket("a0", index, ALL_GRASP_NEIGHBORS, GRASP_LISTEN_PORT) for _ in range(3)
        ]
    with far.entered():
        sender = sockets.multicast_socket(
            "b0", socket.if_nametoindex("b0"), ALL_GRASP_NEIGHBORS, GRASP_LISTEN_PORT
        )
    try:
        sender.sendto(b"hello", (str(ALL_GRASP_NEIGHBORS), GRASP_LISTEN_PORT))
        assert [received(listener) for listener in listeners] == [b"hello"] * 3
    finally:
        for sock in (sender, *listeners):
            sock.close()


def test_a_tcp_peer_that_vanishes_is_given_up(wire: tuple[Namespace, Namespace]) -> None:
    """Nobody answers any more: the connection ends by itself, whether something is under way or not."""
    near, far = wire
    with near.entered():
        listener = sockets.grasp_listener(GRASP_LISTEN_PORT)
        listener.listen()
    with far.entered():
        client = sockets.tcp_socket(IPv6Address("fe80::b"), socket.if_nametoindex("b0"))
        client.setblocking(True)
        client.connect(("fe80::a", GRASP_LISTEN_PORT, 0, socket.if_nametoindex("b0")))
    listener.setblocking(True)
    server, _ = listener.accept()
    with client, listener, server:
        subprocess.run(["ip", "-n", near.name, "link", "set", "a0", "down"], check=True)
        client.settimeout(sockets.USER_TIMEOUT + 5)
        with pytest.raises(OSError) as caught:
            client.recv(1)
        # Without a number it would be our own time-out.
        assert caught.value.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
