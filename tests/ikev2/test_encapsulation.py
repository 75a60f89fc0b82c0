"""SAs on port 4500 (RFC 7296 section 2.23, RFC 3948)."""

from __future__ import annotations

import hashlib
from ipaddress import IPv6Address

import pytest

from minerva.core.sansio import Datagram
from minerva.ikev2.config import Config, UdpEncapsulation
from minerva.ikev2.constants import ENCAPSULATION_PORT, IKE_PORT, NotifyType
from minerva.ikev2.encapsulation import is_wanted
from minerva.ikev2.endpoint import ChildUp, Established, IkeRekeyed
from minerva.ikev2.message import HEADER_LENGTH, Header, decode_payloads, encode_message, find_notify
from minerva.ikev2.payloads import Notify, Payload
from tests.ikev2.nodes import MEMBER_A, MEMBER_B, A, B, Hand, check_match, hands

MARKER = bytes(4)
ON, ACCEPT, OFF = (
    Config(udp_encapsulation=mode)
    for mode in (UdpEncapsulation.FORCE, UdpEncapsulation.ACCEPT, UdpEncapsulation.OFF)
)


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


@pytest.mark.parametrize("settings", [(ON, ACCEPT), (ACCEPT, ON)])
def test_one_wants_it_and_the_other_can(settings: tuple[Config, Config]) -> None:
    """As with a strongSwan that has ``encap = yes``, whoever begins."""
    a, b, messages = up(*settings)
    assert [hand.of(Established)[0].encapsulated for hand in (a, b)] == [True, True]
    assert [message.port for message in messages] == [IKE_PORT] * 2 + [ENCAPSULATION_PORT] * 2


def test_nobody_wants_it_though_both_can() -> None:
    """Also when all of IKE is on port 4500: that says nothing of ESP."""
    a, b, messages = up(ACCEPT, ACCEPT)
    assert {message.port for message in messages} == {IKE_PORT}
    assert not any(hand.of(Established)[0].encapsulated for hand in (a, b))
    a, b = hands(ACCEPT, ACCEPT)
    a.endpoint.initiate(B, ENCAPSULATION_PORT, 0.0)
    assert {message.port for message in exchange(a, b)} == {ENCAPSULATION_PORT}
    assert not any(hand.of(Established)[0].encapsulated for hand in (a, b))


def test_a_peer_may_move_to_port_4500_and_have_esp_as_it_is() -> None:
    """As strongSwan does with MOBIKE, and as both may (RFC 7296 section 2.23)."""
    a, b = hands(ACCEPT, ACCEPT)
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    (response,) = b.take(init.data, A)
    (request,) = a.take(response, B)
    b.endpoint.receive(MARKER + request, A, ENCAPSULATION_PORT, 0.0)
    (answer,) = b.out()
    assert answer.port == ENCAPSULATION_PORT
    assert answer.data.startswith(MARKER)
    a.take(answer.data, B, 0.0, ENCAPSULATION_PORT)
    for hand in (a, b):
        assert not hand.of(Established)[0].encapsulated
    b.endpoint.check_liveness(b.of(Established)[0].sa, 1.0)
    assert {message.port for message in b.out(1.0)} == {ENCAPSULATION_PORT}


def init_payloads(data: bytes) -> tuple[Header, tuple[Payload, ...]]:
    header = Header.decode(data)
    return header, tuple(decode_payloads(header.next_payload, data, HEADER_LENGTH))


def without(payloads: tuple[Payload, ...], kind: NotifyType) -> tuple[Payload, ...]:
    return tuple(p for p in payloads if not (isinstance(p, Notify) and p.notify_type == kind))


def test_a_peer_may_name_several_addresses_of_its_own() -> None:
    """The one on the packet among them (RFC 7296 section 2.23)."""
    a, _ = hands(ACCEPT, ACCEPT)
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    header, payloads = init_payloads(init.data)
    other = Notify(NotifyType.NAT_DETECTION_SOURCE_IP, bytes(20))
    where = (header.spi_i, header.spi_r, B, A, IKE_PORT)
    assert not is_wanted(ACCEPT, (other, *payloads), *where)
    assert is_wanted(ACCEPT, (other, *without(payloads, other.notify_type)), *where)


def test_unique_local_addresses_are_not_taken_for_translated_ones() -> None:
    """Each end compares the hashes with the address of its own that the peer speaks to."""
    ours, theirs = IPv6Address("fd0a::a"), IPv6Address("fd0b::b")
    a, b = Hand(MEMBER_A, A, ACCEPT, ula=ours), Hand(MEMBER_B, B, ACCEPT, ula=theirs)
    a.endpoint.initiate(theirs, IKE_PORT, 0.0)
    (init,) = a.out()
    (response,) = b.take(init.data, ours)
    (request,) = a.take(response, theirs)
    (answer,) = b.take(request, ours)
    a.take(answer, theirs)
    for hand, peer in ((a, theirs), (b, ours)):
        (established,) = hand.of(Established)
        assert established.address == peer
        assert not established.encapsulated
        assert hand.take(init.data, hand.ula or A) == []
        assert hand.endpoint.counters["no address to answer to"] == 1


def test_who_is_translated_on_the_way_needs_it() -> None:
    """The hash of the receiver's address is not that on the packet, or its port is another."""
    a, _ = hands(ACCEPT, ACCEPT)
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    header, payloads = init_payloads(init.data)
    spis = (header.spi_i, header.spi_r)
    assert not is_wanted(ACCEPT, payloads, *spis, B, A, IKE_PORT)
    assert is_wanted(ACCEPT, payloads, *spis, A, A, IKE_PORT), "it was sent to another address"
    assert is_wanted(ACCEPT, payloads, *spis, B, B, IKE_PORT), "it came from another address"
    assert is_wanted(ACCEPT, payloads, *spis, B, A, 1025), "it came from another port"
    for kind in (NotifyType.NAT_DETECTION_SOURCE_IP, NotifyType.NAT_DETECTION_DESTINATION_IP):
        assert not is_wanted(ACCEPT, without(payloads, kind), *spis, A, A, IKE_PORT), "it cannot"
    assert not is_wanted(OFF, payloads, *spis, A, A, IKE_PORT)


@pytest.mark.parametrize("settings", [(ACCEPT, ACCEPT), (ACCEPT, ON), (ACCEPT, OFF)])
def test_a_forged_answer_that_comes_first_decides_nothing(settings: tuple[Config, Config]) -> None:
    """The genuine one says whether ESP goes in UDP, as it is the one that is signed."""
    a, b = hands(*settings)
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    (init,) = a.out()
    (response,) = b.take(init.data, A)
    header, payloads = init_payloads(response)
    kinds = (NotifyType.NAT_DETECTION_SOURCE_IP, NotifyType.NAT_DETECTION_DESTINATION_IP)
    for kind in kinds:
        payloads = without(payloads, kind)
    if settings[1] is not ON:
        payloads += tuple(Notify(kind, bytes(20)) for kind in kinds)
    a.endpoint.receive(encode_message(header, payloads), B, IKE_PORT, 0.0)
    a.endpoint.receive(response, B, IKE_PORT, 0.0)
    requests = a.out()
    requests += a.out(a.endpoint.next_timer() or 0.0)
    a.endpoint.on_timer(1.0)
    requests += a.out(1.0)
    assert {message.port for message in requests} == {IKE_PORT, ENCAPSULATION_PORT}
    for message in requests:
        if message.port == IKE_PORT or settings[1] is not OFF:
            b.endpoint.receive(message.data, A, message.port, 1.0)
    for message in b.out(1.0):
        a.endpoint.receive(message.data, B, message.port, 1.0)
    a.out(1.0)
    expected = settings[1] is ON
    assert [hand.of(Established)[0].encapsulated for hand in (a, b)] == [expected, expected]


@pytest.mark.parametrize("settings", [(ON, OFF), (OFF, ON), (OFF, OFF), (ACCEPT, OFF), (OFF, ACCEPT)])
def test_not_both_can(settings: tuple[Config, Config]) -> None:
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
        hand.config = Config(udp_encapsulation=UdpEncapsulation.FORCE, max_datagram=700)
        hand.__post_init__()
    a.endpoint.initiate(B, IKE_PORT, 0.0)
    messages = exchange(a, b)
    assert a.of(Established)
    assert len(messages) > 4
    assert max(len(message.data) for message in messages) <= 700
