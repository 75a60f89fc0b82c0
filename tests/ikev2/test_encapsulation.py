"""SAs on port 4500 (RFC 7296 section 2.23, RFC 3948)."""

from __future__ import annotations

import hashlib

import pytest

from minerva.core.sansio import Datagram
from minerva.ikev2.config import Config
from minerva.ikev2.constants import ENCAPSULATION_PORT, IKE_PORT, NotifyType
from minerva.ikev2.endpoint import ChildUp, Established, IkeRekeyed
from minerva.ikev2.message import HEADER_LENGTH, Header, decode_payloads, find_notify
from tests.ikev2.nodes import A, B, Hand, check_match, hands

MARKER = bytes(4)
ON, OFF = Config(udp_encapsulation=True), Config()


def exchange(a: Hand, b: Hand, now: float = 0.0) -> list[Datagram]:
    """Carry messages until there are none, each between the same port at both ends; return them."""
    carried = []
    sender, receiver = a, b
    messages = a.out(now)
    while messages:
        carried += messages
        for datagram in messages:
            receiver.endpoint.receive(datagram.data, sender.address, datagram.port, now)
        sender, receiver = receiver, sender
        messages = sender.out(now)
    return carried


def up(config_a: Config, config_b: Config) -> tuple[Hand, Hand, list[Datagram]]:
    a, b = hands(config_a, config_b)
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    return a, b, exchange(a, b)


def test_both_want_it() -> None:
    a, b, messages = up(ON, ON)
    (of_a,), (of_b,) = a.of(Established), b.of(Established)
    check_match(of_a, of_b)
    assert of_a.encapsulated
    assert of_b.encapsulated
    assert [message.port for message in messages] == [IKE_PORT] * 2 + [ENCAPSULATION_PORT] * 2
    assert [message.data.startswith(MARKER) for message in messages] == [False] * 2 + [True] * 2


def test_all_of_it_on_port_4500() -> None:
    """As whoever began there may do (RFC 7296 section 2.23)."""
    a, b = hands(ON, ON)
    a.endpoint.initiate(B, ENCAPSULATION_PORT, 0.0)
    messages = exchange(a, b)
    assert len(messages) == 4
    assert all(m.port == ENCAPSULATION_PORT and m.data.startswith(MARKER) for m in messages)
    assert all(hand.of(Established)[0].encapsulated for hand in (a, b))
    answer = messages[1].data[len(MARKER) :]
    payloads = decode_payloads(Header.decode(answer).next_payload, answer, HEADER_LENGTH)
    assert find_notify(payloads, NotifyType.NAT_DETECTION_SOURCE_IP) is not None


@pytest.mark.parametrize("settings", [(ON, OFF), (OFF, ON), (OFF, OFF)])
def test_not_both_want_it(settings: tuple[Config, Config]) -> None:
    a, b, messages = up(*settings)
    (of_a,), (of_b,) = a.of(Established), b.of(Established)
    assert not of_a.encapsulated
    assert not of_b.encapsulated
    assert {message.port for message in messages} == {IKE_PORT}


@pytest.mark.parametrize("which", [0, 1])
def test_what_tells_that_we_can(which: int) -> None:
    """The hash of the receiver's address is right; that of our own is not, so that ESP goes in UDP."""
    _, _, messages = up(ON, ON)
    data, to = messages[which].data, messages[which].address
    header = Header.decode(data)
    payloads = decode_payloads(header.next_payload, data, HEADER_LENGTH)
    source = find_notify(payloads, NotifyType.NAT_DETECTION_SOURCE_IP)
    destination = find_notify(payloads, NotifyType.NAT_DETECTION_DESTINATION_IP)
    assert source is not None
    assert destination is not None

    def digest(address: bytes) -> bytes:
        return hashlib.sha1(header.spi_i + header.spi_r + address + (500).to_bytes(2)).digest()

    assert destination.data == digest(to.packed)
    assert source.data != digest((A if to == B else B).packed)
    assert len(source.data) == 20


def test_nothing_of_it_by_default() -> None:
    _, _, messages = up(OFF, OFF)
    for message in messages[:2]:
        payloads = decode_payloads(Header.decode(message.data).next_payload, message.data, HEADER_LENGTH)
        assert find_notify(payloads, NotifyType.NAT_DETECTION_SOURCE_IP) is None
        assert find_notify(payloads, NotifyType.NAT_DETECTION_DESTINATION_IP) is None


def test_rekeying_and_the_end_are_on_port_4500_too() -> None:
    a, b, _ = up(ON, ON)
    (of_a,) = a.of(Established)
    for method, kind in ((a.endpoint.rekey_ike, IkeRekeyed), (a.endpoint.rekey_child, ChildUp)):
        method(of_a.sa, 1.0)
        messages = exchange(a, b, 1.0)
        assert len(a.of(kind)) == len(b.of(kind)) == 1
        assert {message.port for message in messages} == {ENCAPSULATION_PORT}
        assert all(message.data.startswith(MARKER) for message in messages)
    a.endpoint.close(of_a.sa, 2.0, "test")
    assert {message.port for message in exchange(a, b, 2.0)} == {ENCAPSULATION_PORT}
    assert b.endpoint.status() == []


def test_what_is_not_ike_on_port_4500_is_counted() -> None:
    """A keepalive, and an ESP packet, that the driver should have kept to itself."""
    a, b, _ = up(ON, ON)
    for data in (b"\xff", b"\0\0\1\1" + bytes(60), b""):
        assert b.take(data, A, 1.0, ENCAPSULATION_PORT) == []
    assert b.endpoint.counters["no IKE message on port 4500"] == 3
    assert a.endpoint.status()


def test_fragments_leave_room_for_the_marker() -> None:
    a, b = hands(ON, ON)
    for hand in (a, b):
        hand.fragments = True
        hand.config = Config(udp_encapsulation=True, max_datagram=700)
        hand.__post_init__()
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    messages = exchange(a, b)
    assert a.of(Established)
    assert len(messages) > 4
    assert max(len(message.data) for message in messages) <= 700
