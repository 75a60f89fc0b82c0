"""The sockets that children cannot open themselves: bound to their device, buffers set, then handed over.

Each function works in the calling thread's namespace and raises OSError.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
from contextlib import suppress
from ipaddress import IPv6Address

from minerva.linux.firewall import PLEDGE_PORTS
from minerva.linux.sockopt import force_receive_buffer, force_send_buffer, pass_only_icmp6, take_esp_in_udp

_IPV6_MTU_DISCOVER = 23
_IPV6_PMTUDISC_PROBE = 3
_RPL_CONTROL = 155
_IPPROTO_ESP = 50

CONTROL_BUFFER = 1 << 20
"""Socket buffer of control protocols, in bytes: a burst of a flooding neighbour must not displace others."""

USER_TIMEOUT = 10
"""How long a TCP peer may be silent before its connection is given up, in seconds (RFC 5482)."""

_PLEDGE_TRIES = 16
_BACKLOG = 128

DATA_BUFFER = 4 << 20
"""Socket buffer of ESP sockets, in bytes: more than any other choice it decides the throughput of TCP."""


def _buffers(sock: socket.socket, size: int) -> None:
    force_receive_buffer(sock, size)
    force_send_buffer(sock, size)


def _device(sock: socket.socket, device: str) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")


def udp_socket(device: str, port: int) -> socket.socket:
    """Return a UDP socket on ``port`` of whatever addresses ``device`` has or gets."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    _device(sock, device)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    # Several GRASP instances of a machine must all hear link-local multicast (RFC 8990 section 2.3).
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _buffers(sock, CONTROL_BUFFER)
    sock.bind(("::", port))
    return sock


def multicast_socket(
    device: str, index: int, group: IPv6Address, port: int, *, hops: int = 1
) -> socket.socket:
    """Return a UDP socket on ``port`` that is a member of the link-local ``group`` on ``device``.

    ``hops`` is the hop limit of what it sends to groups.
    """
    sock = udp_socket(device, port)
    join_group(sock, group, index)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, hops)
    return sock


def join_group(sock: socket.socket, group: IPv6Address, index: int) -> None:
    """Make ``sock`` a member of ``group`` on the interface ``index``."""
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group.packed + struct.pack("@I", index))


def leave_group(sock: socket.socket, group: IPv6Address, index: int) -> None:
    """End the membership of ``sock`` in ``group`` on the interface ``index``, if there is one."""
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_LEAVE_GROUP, group.packed + struct.pack("@I", index))


def esp_socket(
    device: str,
    index: int,
    local: IPv6Address,
    remote: IPv6Address,
    *,
    udp_port: int = 0,
    buffer: int | None = DATA_BUFFER,
) -> socket.socket:
    """Return an ESP socket between two addresses on the link of ``device`` and nobody else.

    It is a raw one, or one for ESP in UDP between that ``udp_port`` of both. ``buffer`` is the size of its
    two buffers in bytes, ``None`` for what the kernel gives every socket. It never fragments and never
    believes a Packet Too Big, which anybody on the link could forge.
    """
    kind, protocol = (socket.SOCK_DGRAM, 0) if udp_port else (socket.SOCK_RAW, _IPPROTO_ESP)
    sock = socket.socket(socket.AF_INET6, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    _device(sock, device)
    # Each peer has one, on the same port.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if buffer is not None:
        _buffers(sock, buffer)
    sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_PROBE)
    sock.bind((str(local), udp_port, 0, index))
    sock.connect((str(remote), udp_port, 0, index))
    return sock


def esp_in_udp_socket(device: str, port: int) -> socket.socket:
    """Return a UDP socket by which the kernel's IPsec takes what is ESP on ``port`` of ``device``.

    The kernel passes on what is not; it need not be read.
    """
    sock = udp_socket(device, port)
    try:
        take_esp_in_udp(sock)
    except OSError:
        sock.close()
        raise
    return sock


def rpl_socket() -> socket.socket:
    """Return a raw ICMPv6 socket that passes RPL messages only; the kernel fills in checksums."""
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    sock = socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6)
    pass_only_icmp6(sock, _RPL_CONTROL)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
    _buffers(sock, CONTROL_BUFFER)
    return sock


def _tcp() -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A peer that vanishes is noticed within USER_TIMEOUT, whether something is on its way to it or not.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT * 1000)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, USER_TIMEOUT // 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    return sock


def tcp_socket(source: IPv6Address, interface: int = 0) -> socket.socket:
    """Return a TCP socket bound to ``source``, on ``interface`` if that is a link-local address."""
    sock = _tcp()
    try:
        sock.bind((str(source), 0, 0, interface))
    except OSError:
        sock.close()
        raise
    return sock


def pledge_socket(device: str, interface: int, link_local: IPv6Address) -> socket.socket:
    """Return a TCP socket of a pledge on ``device``, whose port is one that the policy lets through."""
    sock = _tcp()
    try:
        _device(sock, device)
        for port in random.sample(PLEDGE_PORTS, _PLEDGE_TRIES):
            try:
                sock.bind((str(link_local), port, 0, interface))
                return sock
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    except OSError:
        sock.close()
        raise


def start_connect(sock: socket.socket, address: IPv6Address, port: int, interface: int = 0) -> None:
    """Begin to connect ``sock``, which does not block. Raises OSError if that fails at once."""
    result = sock.connect_ex((str(address), port, 0, interface))
    if result not in (0, errno.EINPROGRESS):
        raise OSError(result, os.strerror(result))


def connected_udp_socket(source: IPv6Address, address: IPv6Address, port: int) -> socket.socket:
    """Return a UDP socket bound to ``source`` that hears ``port`` of ``address`` alone. Raises OSError."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((str(source), 0))
        sock.connect((str(address), port))
    except OSError:
        sock.close()
        raise
    return sock


def tcp_listener(address: IPv6Address, port: int) -> socket.socket:
    """Return a TCP socket that listens on ``port`` of ``address``; it may have been used a moment ago."""
    sock = _tcp()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(address), port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def grasp_listener(port: int) -> socket.socket:
    """Return a TCP socket to listen on ``port`` of all addresses of the namespace; not listening yet."""
    sock = _tcp()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::", port))
    except OSError:
        sock.close()
        raise
    return sock


PROXY_BUFFER = 64 << 10
"""Socket buffers of the join proxy, in bytes: an enrolment is some tens of kilobytes."""


def proxy_listener(device: str, port: int) -> socket.socket:
    """Return a TCP socket on ``port`` of whatever addresses ``device`` has; not listening yet.

    What it accepts has its limits: those of :func:`tcp_socket`, and small buffers.
    """
    sock = _tcp()
    try:
        _device(sock, device)
        _small_buffers(sock)
        # Its predecessor may not be closed yet.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("::", port))
    except OSError:
        sock.close()
        raise
    return sock


def proxy_socket(source: IPv6Address, mark: int) -> socket.socket:
    """Return a TCP socket bound to ``source`` whose packets have the firewall's ``mark``."""
    sock = tcp_socket(source)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    _small_buffers(sock)
    return sock


def _small_buffers(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PROXY_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PROXY_BUFFER)
