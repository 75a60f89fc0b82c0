"""What a program may ask the node for at the socket for sockets."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest

from minerva.asa.sockets import MAX_PACKET
from minerva.connect.socket_server import _Request, _request, _RequestError


def test_requests() -> None:
    assert _request(b'{"listen": 22}') == _Request(None, 22)
    assert _request(b'{"connect": ["fd00::1", 22]}') == _Request(IPv6Address("fd00::1"), 22)
    assert _request(b'{"datagram": ["fd00::1", 623]}') == _Request(IPv6Address("fd00::1"), 623, datagram=True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[" * MAX_PACKET,  # deeper than the library goes
        b'{"a":' * (MAX_PACKET // 5),
        b'{"listen": true}',
        b'{"listen": 0}',
        b'{"listen": ' + b"9" * 900 + b"}",
        b'{"connect": ["::1", 22]}',
        b'{"connect": ["fe80::1", 22]}',
        b'{"datagram": ["fe80::1", 22]}',
        b'{"datagram": ["fd00::1", 0]}',
        b'{"datagram": "fd00::1"}',
        b'{"connect": ["\\u001b[2J", 22]}',
        b'{"connect": ["fd00::1", 65536]}',
        b'{"connect": ["fd00::1%lo", 22]}',
        b'{"datagram": ["fd00::1%\\u0000", 22]}',
        b'{"datagram": ["fd00::1%\\ud800", 22]}',
        b'{"datagram": ["fd00::1%\\u001b[2J", 22]}',
    ],
)
def test_what_cannot_be_meant(data: bytes) -> None:
    with pytest.raises(_RequestError) as caught:
        _request(data)
    assert str(caught.value).isprintable()
