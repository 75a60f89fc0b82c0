"""Messages between the processes of a node: what a child that was taken over could send."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network

from _harness import run
from minerva.connect import ipc
from minerva.connect import messages as m
from minerva.core.secret import Secret

SEEDS = [
    ipc.encode(message)
    for message in (
        m.Ready(1),
        m.StatusReply(7, {"a": [1, None, "x"]}),
        m.SignRequest(1, b"message", b"nonce", b"id", 2),
        m.ChannelKeys(1, 256, 257, Secret(b"k" * 36), Secret(b"l" * 36), True),
        m.ChannelOpen(1, 1, IPv6Address("fe80::1"), "name", False),
        m.RouteAdd(IPv6Network("fd00::/48"), 4, IPv6Address("fe80::2")),
    )
]


def target(data: bytes) -> None:
    """Decode; what decodes is encoded to what decodes to the same."""
    try:
        message = ipc.decode(data)
    except ipc.IpcError:
        return
    encoded = ipc.encode(message)
    assert ipc.encode(ipc.decode(encoded)) == encoded


if __name__ == "__main__":
    run(target, SEEDS)
