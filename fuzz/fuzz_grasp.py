"""Fuzzes the GRASP decoder, on datagrams and on streams, what is shown, and a DULL instance that hears it."""

from __future__ import annotations

import random
from ipaddress import IPv6Address

from minerva.core.cbor import MAX_SIZE
from minerva.grasp.announcement import AN_ACP_IKEV2
from minerva.grasp.constants import GRASP_DEF_MAX_SIZE, MAX_MULTICAST_SIZE
from minerva.grasp.dull import MAX_ANNOUNCEMENTS, MAX_LIFETIME, DullInstance
from minerva.grasp.errors import GraspDecodeError
from minerva.grasp.messages import decode, decode_first
from minerva.grasp.stream import MessageStream
from minerva.grasp.text import MAX_LINE, json_text, message_data, message_text

SOURCE = IPv6Address("fe80::c001:1001:feef:0")

SEEDS: list[bytes] = [
    bytes.fromhex(seed)
    for seed in (
        "8100",
        "84011a00d4d7485020010db8f000baaa28ccdc4c970367818463455831050200",
        "85021a00d4d7485020010db8f000baaa28ccdc4c9703678119ea608418675020010db8f000baaaf000baaaf000baaa0619c123",
        "84021a5208c23250fd1000020003000000000000000000011a000921d582186484186750fd10000200030000000000000000"
        "0003061998ab",
        "83031a000c3ffd8463455833030682634e5a44182f",
        "83061a000c3ffd811865",
        "83061a00d2146282186672496e73756666696369656e742066756e6473",
        "83071a00d21462198895",
        "8318631ae965e9bb6f646961676e6f737469632074657874",
        "86091a00bc4e4f50fe80000000000000c0011001feef00001a00033450828466414e5f414350040165494b45763284186750"
        "fe80000000000000c0011001feef000011193a98828466414e5f41435004016444544c5384186750fe80000000000000c001"
        "1001feef000011194268",
        "85091a00bc4e4f50fe80000000000000c0011001feef00001a00033450828466414e5f414350040165494b45763280",
        "85091a00bc4e4f50fe80000000000000c0011001feef00001a00033450828466414e5f4143500401828265494b457632a161"
        "7801646578743184186750fe80000000000000c0011001feef0000111901f4",
        "85091a00bc4e4f50fe80000000000000c0011001feef00001a00033450828466414e5f414350040165494b457632841867"
        "50fd01020304050001c0011001feef0000111901f4",
    )
]


def target(data: bytes) -> None:
    """Decode ``data`` in every way; what decodes must encode, and mean the same again."""
    _round_trip(data)
    _stream(data)
    _show(data)
    for unique_local in (False, True):
        _hear(data, unique_local=unique_local)


def _round_trip(data: bytes) -> None:
    try:
        message = decode(data)
    except GraspDecodeError:
        return
    encoded = message.encode()
    assert decode(encoded, max_size=MAX_SIZE).encode() == encoded


def _stream(data: bytes) -> None:
    try:
        message, end = decode_first(data)
    except GraspDecodeError:
        return
    assert 0 < end <= min(len(data), GRASP_DEF_MAX_SIZE)
    assert decode(data[:end]).encode() == message.encode()
    # A stream that is read as it comes has the same message first.
    first, found = next(iter(MessageStream().feed(data)))
    assert first == data[:end]
    assert not isinstance(found, GraspDecodeError)
    assert found.encode() == message.encode()


def _show(data: bytes) -> None:
    line, as_json = message_text(data), json_text(message_data(data))
    assert line.isprintable()
    assert 0 < len(line) <= MAX_LINE
    assert as_json.isascii()
    assert as_json.isprintable()


def _hear(data: bytes, *, unique_local: bool) -> None:
    core = DullInstance(IPv6Address("fe80::1"), random=random.Random(1), unique_local=unique_local)
    core.announce([AN_ACP_IKEV2], 0.0)
    core.receive(data, SOURCE, 7017, 50.0)
    while core.next_event() is not None:
        pass
    for neighbour in core.neighbours():
        assert neighbour.address == SOURCE
        assert 50.0 < neighbour.expires <= 50.0 + MAX_LIFETIME
        assert 0 < len(neighbour.announcements) <= MAX_ANNOUNCEMENTS
    core.on_timer(50.0 + MAX_LIFETIME)
    assert core.neighbours() == []
    assert all(len(datagram.data) <= MAX_MULTICAST_SIZE for datagram in core.datagrams_to_send(4000.0))


if __name__ == "__main__":
    from _harness import run

    run(target, SEEDS)
