"""Messages in fragments (RFC 7383): sealed, put together in any order, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from random import Random

import pytest

from minerva.core.secret import Secret
from minerva.ikev2 import message as message_module
from minerva.ikev2.config import Config
from minerva.ikev2.constants import MAX_FRAGMENTS, ExchangeType, Flag, NotifyType, PayloadType
from minerva.ikev2.endpoint import Established, Failed, KeyLog
from minerva.ikev2.errors import IkeCryptoError
from minerva.ikev2.message import Header, Protection, decode_message, decode_payloads, find_notify
from minerva.ikev2.payloads import Nonce, Payload, VendorId
from minerva.sim.link import Packet
from tests.ikev2.nodes import ISSUER, MEMBER_A, MEMBER_B, ROOT, A, B, Hand, Net, check_match, party
from tests.ikev2.test_keylog import dissect, line, needs_tshark, udp, values
from tests.pki import certs

LIMIT = Config().max_datagram or 0
KEYS = Secret(b"k" * 36), Secret(b"l" * 36)
HEADER = Header(b"i" * 8, b"r" * 8, ExchangeType.IKE_AUTH, Flag.INITIATOR, 1)
LONG: tuple[Payload, ...] = (Nonce(b"n" * 32), *[VendorId(bytes([number]) * 400) for number in range(8)])


def pair(limit: int | None = LIMIT) -> tuple[Protection, Protection]:
    return Protection(*KEYS, max_datagram=limit), Protection(*reversed(KEYS), max_datagram=limit)


def offer(opener: Protection, data: bytes) -> tuple[int, bytes, bytes] | None:
    return opener.open_any(Header.decode(data), data)


# --- the codec -------------------------------------------------------------------------------------------


def test_short_messages_stay_in_one_piece() -> None:
    sealer, opener = pair()
    (data,) = sealer.seal_all(HEADER, (Nonce(b"n" * 32),))
    assert Header.decode(data).next_payload == PayloadType.SK
    opened = offer(opener, data)
    assert opened is not None
    assert opened[2] == data
    assert decode_payloads(*opened[:2]) == (Nonce(b"n" * 32),)


@pytest.mark.parametrize("spare", [-1, 0, 1])
def test_the_limit_is_exact(spare: int) -> None:
    sealer, _ = pair()
    empty = len(sealer.seal(HEADER, (VendorId(b""),)))
    pieces = sealer.seal_all(HEADER, (VendorId(bytes(LIMIT - empty - spare)),))
    assert len(pieces[0]) == (LIMIT - spare if spare >= 0 else LIMIT)
    assert len(pieces) == (1 if spare >= 0 else 2)


def test_layout() -> None:
    """RFC 7383 section 2.5: only the first fragment tells the type of the first payload."""
    pieces = pair()[0].seal_all(HEADER, LONG)
    assert len(pieces) == 3
    for number, piece in enumerate(pieces, 1):
        header = Header.decode(piece)
        assert (header.message_id, header.exchange, header.flags) == (1, 35, Flag.INITIATOR)
        assert header.next_payload == 53
        assert piece[28] == (PayloadType.NONCE if number == 1 else 0)
        assert piece[30:32] == (len(piece) - 28).to_bytes(2)
        assert piece[32:36] == number.to_bytes(2) + len(pieces).to_bytes(2)
        assert len(piece) <= LIMIT
    assert len({piece[36:44] for piece in pieces}) == 3, "no IV twice"


def test_any_order_and_repetition() -> None:
    for order in permutations(range(3)):
        sealer, opener = pair()
        pieces = sealer.seal_all(HEADER, LONG)
        *others, last = order
        for number in others * 2:
            assert offer(opener, pieces[number]) is None
        opened = offer(opener, pieces[last])
        assert opened is not None
        assert decode_payloads(*opened[:2]) == LONG
        assert opened[2] == pieces[0], "by which a repetition is known"
        assert not opener._reassembly


def test_every_forged_bit_is_found() -> None:
    """And spoils nothing: the genuine fragments still make the message."""
    sealer, opener = pair()
    pieces = sealer.seal_all(HEADER, LONG)
    source = Random(1)
    for piece in pieces[:2]:
        for position in {*range(28, 44), *(source.randrange(44, len(piece)) for _ in range(40))}:
            forged = bytearray(piece)
            forged[position] ^= 1 << source.randrange(8)
            with pytest.raises(IkeCryptoError):
                opener.open_any(Header.decode(piece), bytes(forged))
        assert offer(opener, piece) is None
    assert offer(opener, pieces[2]) is not None


def test_a_finer_fragmentation_replaces_a_coarser_one() -> None:
    """RFC 7383 section 2.6: and never the other way."""
    sealer, opener = pair()
    coarse = sealer.seal_all(HEADER, LONG)
    sealer.max_datagram = 600
    fine = sealer.seal_all(HEADER, LONG)
    assert offer(opener, coarse[0]) is None
    assert offer(opener, fine[1]) is None
    with pytest.raises(IkeCryptoError, match="coarser"):
        offer(opener, coarse[1])
    for piece in fine[2:]:
        assert offer(opener, piece) is None
    assert offer(opener, fine[0]) is not None


def test_requests_and_responses_are_kept_apart() -> None:
    sealer, opener = pair()
    request = sealer.seal_all(HEADER, LONG)
    response = sealer.seal_all(replace(HEADER, flags=Flag.RESPONSE), LONG)
    for one, other in zip(request[:2], response[:2], strict=True):
        assert offer(opener, one) is None
        assert offer(opener, other) is None
    assert offer(opener, request[2]) is not None
    assert offer(opener, response[2]) is not None


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    sealer, opener = pair(limit=100)
    many = sealer.seal_all(HEADER, [VendorId(bytes(100))] * 40)
    assert len(many) > MAX_FRAGMENTS
    with pytest.raises(IkeCryptoError, match="fragment 1 of"):
        offer(opener, many[0])
    monkeypatch.setattr(message_module, "MAX_FRAGMENTED_LENGTH", 2000)
    sealer, opener = pair()
    pieces = sealer.seal_all(HEADER, LONG)
    assert offer(opener, pieces[0]) is None
    with pytest.raises(IkeCryptoError, match="more than 2000 bytes"):
        offer(opener, pieces[1])


@pytest.mark.parametrize(("number", "total"), [(0, 3), (4, 3), (1, 0)])
def test_impossible_numbers(number: int, total: int) -> None:
    sealer, opener = pair()
    fragment = number.to_bytes(2) + total.to_bytes(2)
    piece = sealer._seal(HEADER, PayloadType.SKF, 40, fragment, b"x")
    with pytest.raises(IkeCryptoError, match=f"fragment {number} of {total}"):
        offer(opener, piece)


def test_fragments_that_were_not_agreed_upon() -> None:
    piece = pair()[0].seal_all(HEADER, LONG)[0]
    with pytest.raises(IkeCryptoError, match="none were agreed upon"):
        offer(pair(None)[1], piece)


# --- handshakes ------------------------------------------------------------------------------------------

DEEP = ISSUER.ca("Deeper")
RSA_ROOT = certs.Ca.root("RSA root", kind="rsa3072")
DEEP_RSA = RSA_ROOT.ca("RSA", kind="rsa3072").ca("RSA below", kind="rsa3072")


def narrow(net: Net, limit: int = LIMIT) -> None:
    """Let the link lose what does not fit into a packet of 1,280 bytes."""

    def mangle(packet: Packet) -> Iterable[Packet]:
        return (packet,) if len(packet.data) <= limit else ()

    net.link.mangle = mangle


@pytest.mark.parametrize("chain", ["p256", "p384", "rsa2048"])
def test_chains_with_two_intermediates_pass_a_narrow_link(chain: str) -> None:
    """covers: 6.8.2-2, 6.8.3.1.2-2"""
    ca, root = (DEEP_RSA, RSA_ROOT) if chain.startswith("rsa") else (DEEP, ROOT)
    one, two = (party(number, ca=ca, kind=chain, anchors=(root,)) for number in (1, 2))
    net = Net(one, two)
    narrow(net)
    check_match(*net.handshake())
    assert max(len(packet.data) for packet in net.link.carried) == LIMIT


@pytest.mark.parametrize("without", ["a", "b", "both"])
def test_peers_that_cannot(without: str) -> None:
    """They get their messages in one piece; on a narrow link that is the end of it."""
    off = Config(max_datagram=None)
    configs = (off if without != "b" else None, off if without != "a" else None)
    net = Net(config_a=configs[0], config_b=configs[1])
    check_match(*net.handshake())
    assert max(len(packet.data) for packet in net.link.carried) > LIMIT
    net = Net(config_a=configs[0], config_b=configs[1])
    narrow(net)
    net.a.initiate(B)
    net.run(30)
    assert net.a.events(Failed)


def test_support_is_announced() -> None:
    net = Net()
    net.handshake()
    for packet in net.link.carried[:2]:
        _, payloads = decode_message(packet.data)
        notify = find_notify(payloads, NotifyType.IKEV2_FRAGMENTATION_SUPPORTED)
        assert notify is not None
        assert (notify.data, notify.spi, notify.protocol) == (b"", b"", 0)


@pytest.mark.parametrize("loss", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(6))
def test_bad_links(seed: int, loss: float) -> None:
    member_a, member_b = party(1, ca=DEEP), party(2, ca=DEEP)
    net = Net(member_a, member_b, seed=seed, loss=loss, delay=0.01, jitter=0.3, duplicate=0.3)
    narrow(net)
    check_match(*net.handshake(21))
    net.link.loss = 0.0
    net.run(30)
    assert len(net.a.endpoint.status()) == len(net.b.endpoint.status()) == 1


def test_only_the_first_fragment_of_a_request_is_answered_again() -> None:
    """RFC 7383 section 2.6.1: or the answer would come as often as there are fragments."""
    a, b = Hand(MEMBER_A, A, fragments=True), Hand(MEMBER_B, B, fragments=True)
    a.endpoint.initiate(B, 500, 0.0)
    (init,) = (datagram.data for datagram in a.out())
    (response,) = b.take(init, A)
    pieces = a.take(response, B)
    assert len(pieces) == 2
    assert b.take(pieces[1], A) == []
    answers = b.take(pieces[0], A)
    assert len(answers) == 2
    assert b.take(pieces[1], A) == []
    assert b.take(pieces[0], A) == answers
    assert a.take(answers[1], B) == a.take(answers[0], B) == []
    check_match(a.of(Established)[0], b.of(Established)[0])
    assert a.take(answers[0], B) == []


@needs_tshark
def test_tshark_puts_fragments_together(tmp_path: Path) -> None:
    config = Config(keylog=True)
    net = Net(config_a=config, config_b=config)
    net.handshake()
    (keys,) = net.a.events(KeyLog)
    packets = [udp(packet.source, packet.destination, packet.data) for packet in net.link.carried]
    assert len(packets) == 6
    layers = dissect(tmp_path, packets, {"ikev2_decryption_table": [line(keys)]})
    for layer, identification in ((layers[3], "35"), (layers[5], "36")):
        assert "_ws.malformed" not in json.dumps(layer)
        assert {identification, "37", "39", "33", "44", "45"} <= set(values(layer, "isakmp.typepayload"))
        assert values(layer, "isakmp.auth.method") == ["14"]
