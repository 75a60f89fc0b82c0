"""RPL: the decoder, and a node that hears whatever a neighbour says, in any order and at any time."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network
from random import Random

from _harness import run
from minerva.rpl.config import HIGH_SPEED_FACTOR
from minerva.rpl.engine import RplNode
from minerva.rpl.errors import RplDecodeError
from minerva.rpl.events import RouteAdded, RouteRemoved
from minerva.rpl.messages import ALL_RPL_NODES, decode

_HEX = [
    "9b0000000000",
    "9b0000000000071300e0fd89b714f3db00000200000064000000f0",
    "9b01000000f0010093f00000fd89b714f3db00000200000064001000040e0714030000000100000000001e003c",
    "9b01000000f0ffff93f00000fd89b714f3db00000200000064001000",
    "9b020000008000f10512007ffd89b714f3db0000020000006400000406040080f01e",
    "9b020000008000f40512007ffd89b714f3db0000020000006400000406040080f300",
    "9b0300000000f000",
    "9b0300000080f1fffd89b714f3db00000200000064000000",
]
_INTERFACES = (1, 2)


def _session(*messages: str) -> bytes:
    return b"".join(bytes((1, len(message) // 2)) + bytes.fromhex(message) for message in messages)


SEEDS: list[bytes] = [
    *(bytes((0,)) + bytes.fromhex(text) for text in _HEX),
    bytes((1,)) + _session(_HEX[2], _HEX[4], _HEX[6], _HEX[5], _HEX[3]),
    bytes((1,)) + _session(_HEX[4], _HEX[2], _HEX[0], _HEX[7]),
]


def _decode(data: bytes) -> None:
    try:
        message = decode(data)
    except RplDecodeError:
        return
    assert decode(message.encode()) == message


def _local(interface: int) -> IPv6Address:
    return IPv6Address(f"fe80::a:{interface}")


def _check(node: RplNode, routes: dict[IPv6Network, tuple[int, IPv6Address]], now: float) -> None:
    for datagram in node.datagrams_to_send(now):
        decode(datagram.data)
    while (event := node.next_event()) is not None:
        if isinstance(event, RouteAdded):
            routes[event.prefix] = (event.interface, event.next_hop)
        elif isinstance(event, RouteRemoved):
            assert routes.pop(event.prefix) == (event.interface, event.next_hop)
    assert routes == {prefix: (hop.interface, hop.address) for prefix, hop in node.routes.items()}
    assert all(prefix.prefixlen == 0 or prefix.prefixlen >= 64 for prefix in routes)


def _drive(data: bytes) -> None:
    """Each step: a byte of interface, addresses and time, a length, a message."""
    own = IPv6Address("fd89:b714:f3db:0:200:0:6400:2")
    node = RplNode(own, IPv6Network((own, 127)), random=Random(0))
    routes: dict[IPv6Network, tuple[int, IPv6Address]] = {}
    now, offset = 0.0, 0
    for interface in _INTERFACES:
        node.interface_up(interface, _local(interface), HIGH_SPEED_FACTOR, now)
    while offset + 2 <= len(data):
        how, length = data[offset : offset + 2]
        message = data[offset + 2 : offset + 2 + length]
        offset += 2 + length
        interface = _INTERFACES[how & 1]
        destination = ALL_RPL_NODES if how & 2 else _local(interface)
        node.receive(interface, message, IPv6Address(f"fe80::b:{how >> 2 & 1}"), destination, now)
        _check(node, routes, now)
        when = node.next_timer()
        if how & 8 and when is not None:
            # Time goes on, from timer to timer: none may be in the past for ever.
            assert when >= now - 1e-6
            now = max(now, when)
            node.on_timer(now)
            _check(node, routes, now)


def target(data: bytes) -> None:
    """The first byte chooses between the decoder and the node."""
    if data[:1] == b"\0":
        _decode(data[1:])
    else:
        _drive(data[1:])


if __name__ == "__main__":
    run(target, SEEDS)
