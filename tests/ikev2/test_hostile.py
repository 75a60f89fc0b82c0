"""What strangers and forgers send: it costs little, and changes nothing for anybody else."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from ipaddress import IPv6Address

import pytest

from minerva.core.sansio import Datagram
from minerva.ikev2.config import Config, UdpEncapsulation
from minerva.ikev2.constants import (
    ENCAPSULATION_PORT,
    IKE_PORT,
    MIN_INIT_LENGTH,
    DhGroup,
    ExchangeType,
    Flag,
    NotifyType,
)
from minerva.ikev2.encapsulation import NON_ESP_MARKER
from minerva.ikev2.endpoint import Closed, Established, Failed, SignatureNeeded, State
from minerva.ikev2.message import Header, decode_message, encode_message
from minerva.ikev2.payloads import Delete, KeyExchange, Nonce, Notify, Opaque, signature_hashes
from minerva.ikev2.proposals import ike_policy
from minerva.pki.errors import MembershipError, Rule
from tests.ikev2.nodes import MEMBER_A, A, B, Hand, check_match, hands, recorded

PATIENT = Config(
    half_open_per_address=100_000,
    half_open_limit=100_000,
    cookie_threshold_per_address=100_000,
    cookie_threshold=100_000,
)


def mutations(message: bytes) -> Iterator[bytes]:
    """Every byte changed in one bit, and every length, with the header left and adjusted."""
    for position in range(len(message)):
        changed = bytearray(message)
        changed[position] ^= 1 << (position % 8)
        yield bytes(changed)
    for cut in range(0, len(message), 3):
        yield message[:cut]
        if cut >= 28:
            yield message[:24] + cut.to_bytes(4) + message[28:cut]
    yield message + b"\x00"
    yield message[:24] + (len(message) + 4).to_bytes(4) + message[28:] + bytes.fromhex("00000004")


def genuine(a: Hand, b: Hand, step: int, now: float = 0.0) -> bytes:
    """Do the first ``step`` messages of a handshake and return the next one."""
    a.endpoint.initiate(B, IKE_PORT, now)
    (datagram,) = a.out(now)
    message = datagram.data
    for number in range(step):
        (message,) = b.take(message, A, now) if number % 2 == 0 else a.take(message, B, now)
    return message


@pytest.mark.parametrize("step", [2, 3])
def test_every_mutation_of_ike_auth_before_the_genuine_one(step: int) -> None:
    """No mutation is answered, or taken for anything; the handshake then completes."""
    a, b = hands()
    message = genuine(a, b, step)
    receiver, source = (b, A) if step == 2 else (a, B)
    before = receiver.endpoint.status()
    known = len(receiver.events)
    for changed in mutations(message):
        assert receiver.take(changed, source) == []
        assert receiver.endpoint.status() == before
    assert len(receiver.events) == known
    answers = receiver.take(message, source)
    for answer in answers:
        a.take(answer, B)
    check_match(a.of(Established)[0], b.of(Established)[0])


def test_every_mutation_of_the_first_request_before_the_genuine_one() -> None:
    """Mutations may be requests of their own, with half-open SAs of their own; all in vain."""
    a, b = hands(config_b=PATIENT)
    message = genuine(a, b, 0)
    forged = []
    for changed in mutations(message):
        forged += b.take(changed, A)
    assert not b.of(SignatureNeeded)
    responses = b.take(message, A)
    # The initiator hears all the answers to what it did not send, then the genuine one.
    for answer in [*forged[:3], *responses]:
        for request in a.take(answer, B):
            for response in b.take(request, A):
                a.take(response, B)
    check_match(a.of(Established)[0], b.of(Established)[0])


def test_every_mutation_of_the_first_response_before_the_genuine_one() -> None:
    """Each is tried with a fresh initiator: none keeps it from the genuine peer (RFC 7296 section 2.4)."""
    a, b = hands()
    message = genuine(a, b, 1)
    for changed in mutations(message):
        a, b = hands()
        init = genuine(a, b, 0)
        (response,) = b.take(init, A)
        # The keys differ from those of `message`, the structure does not: change the same place.
        position = next((i for i, (x, y) in enumerate(zip(message, changed, strict=False)) if x != y), None)
        mutated = bytearray(changed)
        if len(changed) == len(message) and position is not None:
            mutated = bytearray(response)
            mutated[position] ^= message[position] ^ changed[position]
        sent = a.take(bytes(mutated), B)
        assert not a.of(Failed)
        for request in [*sent, *a.take(response, B)]:
            for answer in b.take(request, A):
                a.take(answer, B)
        check_match(a.of(Established)[0], b.of(Established)[0])
        a.endpoint.on_timer(2.0)
        assert [status.state for status in a.endpoint.status()] == [State.ESTABLISHED]


def test_an_initiator_follows_only_so_many_responses() -> None:
    a, b = hands(config_b=PATIENT)
    init = genuine(a, b, 0)
    (response,) = b.take(init, A)
    header, payloads = decode_message(response)
    signed = 0
    for number in range(50):
        forged = Header(header.spi_i, number.to_bytes(8), header.exchange, header.flags, 0)
        a.take(encode_message(forged, payloads), B)
        signed = len(a.of(SignatureNeeded))
    assert signed == Config().candidates
    assert a.endpoint.counters["IKE_SA_INIT response too late"] > 0


def test_replays_of_a_whole_handshake() -> None:
    """Old messages to either side, in any order, at any time: responses repeated at most."""
    a, b = hands()
    messages = recorded(a, b)
    events = (len(a.events), len(b.events))
    for _ in range(3):
        for message in messages:
            b.take(message, A, 1.0)
        for message in messages[1:]:
            a.take(message, B, 1.0)
    assert (len(a.events), len(b.events)) == events
    assert len(a.endpoint.status()) == len(b.endpoint.status()) == 1
    assert b.take(messages[0], A, 1.0) == [], "its IKE_AUTH request is there already"
    assert b.take(messages[2], A, 1.0) == [messages[3]], "bit for bit the same response"


def test_a_repeated_first_request_gets_the_same_response() -> None:
    a, b = hands()
    init = genuine(a, b, 0)
    (first,) = b.take(init, A)
    assert b.take(init, A, 1.0) == [first]
    assert len(b.endpoint.status()) == 1
    assert b.take(init, IPv6Address("fe80::c"), 1.0) != [first], "of another node it is another request"


def test_every_mutation_on_an_sa_that_is_up() -> None:
    a, b = hands()
    recorded(a, b)
    a.endpoint.check_liveness(a.of(Established)[0].sa, 1.0)
    (probe,) = a.out(1.0)
    events = len(b.events)
    for changed in mutations(probe.data):
        assert b.take(changed, A, 1.0) == []
    assert len(b.events) == events
    (response,) = b.take(probe.data, A, 1.0)
    events = len(a.events)
    for changed in mutations(response):
        assert a.take(changed, B, 1.0) == []
    assert len(a.events) == events
    assert a.take(response, B, 1.0) == []
    assert a.endpoint.counters["integrity check failed"] > 0
    for changed in mutations(probe.data):
        assert b.take(changed, A, 1.0) == [], "a repeated request must be the same, bit for bit"


def test_unprotected_messages_to_an_sa_that_is_up() -> None:
    """Errors and deletes without protection change nothing, and are not answered (section 2.21.4)."""
    a, b = hands()
    recorded(a, b)
    up = b.of(Established)[0]
    for flags in (Flag.INITIATOR, Flag.INITIATOR | Flag.RESPONSE):
        for message_id in (0, 1, 2, 3):
            for exchange in (34, 35, 36, 37, 99):
                for payload in (
                    Notify(NotifyType.INVALID_IKE_SPI),
                    Notify(NotifyType.AUTHENTICATION_FAILED),
                    Delete(1),
                    Opaque(46, bytes(40)),
                ):
                    header = Header(up.ike_spi_i, up.ike_spi_r, exchange, flags, message_id)
                    assert b.take(encode_message(header, (payload,)), A, 1.0) == []
    assert not b.of(Closed)
    assert b.endpoint.status()[0].state is State.ESTABLISHED


def test_a_mirror_is_not_a_neighbour() -> None:
    """Whoever sends us back what we send does not become a peer: we would be that peer."""
    a, _ = hands()
    init = genuine(a, hands()[1], 0)
    assert a.take(init, A) == []
    pending = a.take(init, B)
    while pending:
        pending = [answer for message in pending for answer in a.take(message, B)]
    assert not a.of(Established)
    assert any("our own ACP address" in failed.reason for failed in a.of(Failed))


def test_answers_with_the_same_keys_never_seal_twice_under_one_iv() -> None:
    """A forger changes a bit that has no part in the keys: a second message under them must not be."""
    a, b = hands()
    (response,) = b.take(genuine(a, b, 0), A)
    for bit in (1, 2, 4):
        forged = bytearray(response)
        forged[29] ^= bit  # reserved bits of the SA payload's header
        a.take(bytes(forged), B)
    a.take(response, B)
    assert len(a.of(SignatureNeeded)) == 1
    (candidate,) = a.endpoint._sas[1]._candidates  # type: ignore[attr-defined]
    assert len(candidate.peer_messages) == 4
    (answer,) = b.take(candidate.request.data[0], A)
    a.take(answer, B)
    check_match(a.of(Established)[0], b.of(Established)[0])


def test_messages_for_unknown_spis_are_not_answered() -> None:
    _, b = hands()
    for flags in (0, Flag.INITIATOR, Flag.RESPONSE, Flag.INITIATOR | Flag.RESPONSE):
        for exchange in (34, 35, 36, 37):
            header = Header(b"i" * 8, b"r" * 8, exchange, flags, 1)
            assert b.take(encode_message(header, (Opaque(46, bytes(40)),)), A) == []
    assert not b.endpoint._sas


def test_another_source_address_is_not_followed() -> None:
    a, b = hands()
    recorded(a, b)
    a.endpoint.check_liveness(1, 1.0)
    (probe,) = a.out(1.0)
    assert b.take(probe.data, IPv6Address("fe80::bad"), 1.0) == []
    assert b.endpoint.counters["other address than that of the SA"] == 1
    b.endpoint.receive(probe.data, A, 4711, 1.0)
    (response,) = b.out(1.0)
    assert response == Datagram(response.data, A, 4711), "another port is (section 2.11)"


def test_no_port_no_answer() -> None:
    a, b = hands()
    init = genuine(a, b, 0)
    assert b.take(init, A, port=0) == []


# --- floods ----------------------------------------------------------------------------------------------


class Forger:
    """Writes valid IKE_SA_INIT requests, fast."""

    def __init__(self) -> None:
        self.random = random.Random(7)
        config = Config()
        self._offer = ike_policy(config.prfs, config.groups).offer(b"")
        a, b = hands()
        self._ke = next(p for p in decode_message(genuine(a, b, 0))[1] if isinstance(p, KeyExchange))

    def request(self, cookie: bytes | None = None, like: bytes | None = None) -> bytes:
        """A request with a fresh SPI and nonce, or those of the request ``like``."""
        if like is None:
            spi, nonce = self.random.randbytes(8), Nonce(self.random.randbytes(32))
        else:
            header, payloads = decode_message(like)
            spi = header.spi_i
            (nonce,) = (p for p in payloads if isinstance(p, Nonce))
        header = Header(spi, bytes(8), ExchangeType.IKE_SA_INIT, Flag.INITIATOR, 0)
        first = () if cookie is None else (Notify(NotifyType.COOKIE, cookie),)
        return encode_message(header, (*first, self._offer, self._ke, nonce, signature_hashes(())))

    def address(self) -> IPv6Address:
        return IPv6Address(b"\xfe\x80" + bytes(6) + self.random.randbytes(8))


def cookie_in(answer: bytes) -> bytes | None:
    for payload in decode_message(answer)[1]:
        if isinstance(payload, Notify) and payload.notify_type == NotifyType.COOKIE:
            return payload.data
    return None


def test_a_flood_from_forged_addresses_meets_cookies() -> None:
    """No state beyond the threshold, no public-key operation; a member gets in all the while."""
    forger = Forger()
    a, b = hands()
    config = Config()
    for number in range(3000):
        now = number / 1000
        (answer,) = b.take(forger.request(), forger.address(), now)
        assert (cookie_in(answer) is not None) == (number >= config.cookie_threshold)
    assert len(b.endpoint._sas) == config.cookie_threshold
    assert b.endpoint.counters["cookie demanded"] == 3000 - config.cookie_threshold
    assert not b.events
    recorded_with_cookie(a, b, now=3.0)
    check_match(a.of(Established)[0], b.of(Established)[0])
    b.endpoint.on_timer(20.0)
    b.out(20.0)
    assert not b.endpoint._strangers
    assert not b.endpoint._strangers_of
    assert not b.endpoint._by_request.keys() - set(b.endpoint._request_keys.values())
    assert len(b.endpoint._sas) == 1


def recorded_with_cookie(a: Hand, b: Hand, now: float) -> None:
    init = genuine(a, b, 0, now)
    (cookie,) = b.take(init, A, now)
    (message,) = a.take(cookie, B, now)
    (message,) = b.take(message, A, now)
    (message,) = a.take(message, B, now)
    (message,) = b.take(message, A, now)
    assert a.take(message, B, now) == []


def test_no_cookie_is_longer_than_what_it_answers() -> None:
    """What is too short for an IKE_SA_INIT request has no answer, but is counted."""
    config = Config(cookie_threshold=0, udp_encapsulation=UdpEncapsulation.ACCEPT)
    _, b = hands(config_b=config)
    forger = Forger()
    lengths = range(16, MIN_INIT_LENGTH + 1)
    answered = []
    for length in lengths:
        header = Header(forger.random.randbytes(8), bytes(8), ExchangeType.IKE_SA_INIT, Flag.INITIATOR, 0)
        request = NON_ESP_MARKER + encode_message(header, (Nonce(bytes(length)),))
        for answer in b.take(request, forger.address(), port=ENCAPSULATION_PORT):
            assert len(answer) <= len(request)
            answered.append(length)
    assert 0 < len(answered) < len(lengths)
    assert b.endpoint.counters["cookie demanded"] == len(answered)
    assert b.endpoint.counters["malformed IKE_SA_INIT"] == len(lengths) - len(answered)
    (cookie,) = b.take(forger.request(), forger.address())
    assert cookie_in(cookie) is not None


def test_a_flood_from_addresses_that_return_cookies() -> None:
    """The oldest half-open SA makes room: what is kept has a limit, and newcomers are not shut out."""
    forger = Forger()
    config = Config(half_open_limit=40)
    a, b = hands(config_b=config)
    for _ in range(200):
        address, request = forger.address(), forger.request()
        (answer,) = b.take(request, address)
        cookie = cookie_in(answer)
        if cookie is not None:
            (answer,) = b.take(forger.request(cookie, like=request), address)
            assert cookie_in(answer) is None
    assert len(b.endpoint._sas) == config.half_open_limit
    assert b.endpoint.counters["half-open SA evicted"] == 160
    recorded_with_cookie(a, b, now=0.0)
    check_match(a.of(Established)[0], b.of(Established)[0])


def test_one_address_gets_only_so_many() -> None:
    forger = Forger()
    config = Config(half_open_per_address=5)
    a, b = hands(config_b=config)
    for number in range(20):
        request = forger.request()
        answers = b.take(request, A)
        if number >= config.cookie_threshold_per_address:
            cookie = cookie_in(answers[0])
            assert cookie is not None, "forged requests in a neighbour's name meet cookies early"
            answers = b.take(forger.request(cookie, like=request), A)
        assert len(answers) == (number < 5)
    assert len(b.endpoint._sas) == 5
    # The others of the link are not concerned, and the neighbour itself is welcome again later.
    assert cookie_in(b.take(forger.request(), forger.address())[0]) is None
    b.endpoint.on_timer(10.1)
    recorded(a, b, now=11.0)
    check_match(a.of(Established)[0], b.of(Established)[0])


def test_refused_peers_count_as_strangers_until_they_are_forgotten() -> None:
    """Or a stranger with any certificate could have itself refused as often as it likes."""
    _, b = hands(config_b=Config(half_open_per_address=3, cookie_threshold_per_address=100))

    def refuse(chain: Sequence[object]) -> object:
        raise MembershipError(Rule.PATH, f"{len(chain)} certificates")

    b.endpoint._context.authenticate = refuse  # type: ignore[assignment]
    for seed in range(5):
        a = Hand(MEMBER_A, A, seed=seed)
        a.endpoint.initiate(B, IKE_PORT, 0.0)
        for datagram in a.out():
            for answer in b.take(datagram.data, A):
                for request in a.take(answer, B):
                    b.take(request, A)
    assert len(b.of(Failed)) == 3


def test_random_datagrams() -> None:
    """Ten thousand: random, cut, or mutated out of genuine ones. Nothing is raised, nothing is kept."""
    a, b = hands()
    messages = recorded(a, b)
    source = random.Random(11)
    events = len(b.events)
    for _ in range(10_000):
        kind = source.randrange(3)
        data = bytearray(source.choice(messages))
        if kind == 0:
            data = bytearray(source.randbytes(source.randrange(200)))
        elif kind == 1:
            del data[source.randrange(len(data)) :]
        else:
            for _ in range(source.randrange(1, 6)):
                data[source.randrange(len(data))] = source.randrange(256)
        b.take(bytes(data), A, 1.0)
        a.take(bytes(data), B, 1.0)
    assert len(b.events) == events
    assert len(b.endpoint._sas) <= 1 + Config().half_open_per_address
    assert len(a.endpoint._sas) <= 1 + Config().half_open_per_address
    assert b.endpoint.status()[0].state is State.ESTABLISHED
    assert sum(b.endpoint.counters.values()) > 9_000


def test_an_oversized_first_request_is_not_parsed() -> None:
    header = Header(b"i" * 8, bytes(8), 34, Flag.INITIATOR, 0)
    _, b = hands()
    assert b.take(encode_message(header, (Opaque(43, bytes(9000)),)), A) == []
    assert b.endpoint.counters["malformed IKE_SA_INIT"] == 1


@pytest.mark.parametrize(
    "header",
    [
        Header(b"i" * 8, b"r" * 8, 34, Flag.INITIATOR, 0),
        Header(bytes(8), bytes(8), 34, Flag.INITIATOR, 0),
        Header(b"i" * 8, bytes(8), 34, Flag.INITIATOR, 1),
        Header(b"i" * 8, bytes(8), 34, 0, 0),
    ],
)
def test_first_requests_with_a_wrong_header(header: Header) -> None:
    a, b = hands()
    _, payloads = decode_message(genuine(a, b, 0))
    assert b.take(encode_message(header, payloads), A) == []
    assert not b.endpoint._sas
    assert b.endpoint.counters["malformed IKE_SA_INIT"] == 1


@pytest.mark.parametrize("bad", [b"", bytes(64), b"\xff" * 64, b"x" * 63])
def test_first_requests_with_a_bad_public_value(bad: bytes) -> None:
    a, b = hands()
    header, payloads = decode_message(genuine(a, b, 0))
    forged = [KeyExchange(19, bad) if isinstance(p, KeyExchange) else p for p in payloads]
    assert b.take(encode_message(header, forged), A) == []
    assert not b.endpoint._sas


def test_a_public_value_of_small_order() -> None:
    """It is known only when the IKE_AUTH request comes; then the SA is gone, and nobody is told."""
    config = Config(groups=(DhGroup.CURVE25519,))
    a, b = hands(config, config)
    header, payloads = decode_message(genuine(a, b, 0))
    forged = [KeyExchange(31, bytes(32)) if isinstance(p, KeyExchange) else p for p in payloads]
    (response,) = b.take(encode_message(header, forged), A)
    (request,) = a.take(response, B)
    assert b.take(request, A) == []
    assert not b.endpoint._sas
    assert not b.events
    assert b.endpoint.counters["key exchange refused"] == 1
