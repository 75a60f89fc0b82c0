"""scapy as a second codec: it reads what we send as what we mean, and its ESP is ours."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from scapy.contrib import ikev2 as scapy_ike
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP, SecurityAssociation

from minerva.core.secret import Secret
from minerva.esp.sa import InboundSA, OutboundSA
from minerva.ikev2.config import Config, UdpEncapsulation
from minerva.ikev2.constants import NotifyType, PayloadType
from minerva.ikev2.endpoint import KeyLog
from tests.ikev2.nodes import A, B, Hand, hands, recorded

HEADER_LENGTH, PAYLOAD_HEADER_LENGTH, IV_LENGTH = 28, 4, 8


@pytest.fixture(scope="module")
def handshake() -> tuple[Hand, list[bytes]]:
    a, b = hands(Config(keylog=True))
    return a, recorded(a, b)


def layers(packet: Any) -> list[Any]:
    """The payloads of a message, as scapy has found them."""
    found = []
    while packet.payload and packet.payload.name != "Raw":
        packet = packet.payload
        found.append(packet)
    assert not packet.payload, "scapy has not understood the rest"
    return found


@pytest.mark.parametrize("which", [0, 1])
def test_ike_sa_init(handshake: tuple[Hand, list[bytes]], which: int) -> None:
    """Read, and written again from the fields alone, it is the same.

    covers: 6.8.3.1.2-7
    """
    data = handshake[1][which]
    message = scapy_ike.IKEv2(data)
    assert (message.version, message.exch_type, message.id, message.length) == (0x20, 34, 0, len(data))
    assert int(message.flags) == (0x08, 0x20)[which]
    assert (message.resp_SPI == bytes(8)) is (which == 0)
    payloads = {type(layer).__name__: layer for layer in layers(message)}
    proposal = payloads["IKEv2_SA"].prop
    transforms = []
    transform = proposal.trans
    while transform:
        transforms.append((transform.transform_type, transform.transform_id))
        transform = transform.payload
    assert transforms[0] == (1, 20), "AES-GCM-16 is not the first cipher"
    assert (4, 19) in transforms
    assert (len(transforms) == 3) is (which == 1), "a response has one transform of each type"
    assert payloads["IKEv2_KE"].group == 19
    assert len(payloads["IKEv2_KE"].ke) == 64
    assert len(payloads["IKEv2_Nonce"].nonce) == 32
    message.clear_cache()
    assert bytes(message) == data


@pytest.mark.parametrize("which", [2, 3])
def test_ike_auth(handshake: tuple[Hand, list[bytes]], which: int) -> None:
    """The outer part, and what is inside it, opened here as RFC 5282 says.

    covers: 6.8.3.1.2-2
    covers: 6.8.3.1.2-5
    covers: 6.8.3.1-3
    """
    a, messages = handshake
    data = messages[which]
    message = scapy_ike.IKEv2(data)
    assert (message.exch_type, message.id, message.length) == (35, 1, len(data))
    (sealed,) = layers(message)
    assert isinstance(sealed, scapy_ike.IKEv2_Encrypted)
    (keys,) = a.of(KeyLog)
    key = (keys.sk_ei if which == 2 else keys.sk_er).reveal()
    body = sealed.load
    associated = data[: HEADER_LENGTH + PAYLOAD_HEADER_LENGTH]
    plain = AESGCM(key[:32]).decrypt(key[32:] + body[:IV_LENGTH], body[IV_LENGTH:], associated)
    plain = plain[: len(plain) - 1 - plain[-1]]

    inner = scapy_ike.IKEv2(
        data[:16] + bytes((sealed.next_payload,)) + data[17:24] + struct.pack("!I", 28 + len(plain)) + plain
    )
    found = layers(inner)
    kinds = [type(layer).__name__ for layer in found]
    identity = found[0]
    assert kinds[0] == ("IKEv2_IDi", "IKEv2_IDr")[which - 2]
    assert identity.IDtype == 5
    certificates = [layer for layer in found if isinstance(layer, scapy_ike.IKEv2_CERT)]
    assert [layer.cert_encoding for layer in certificates] == [4] * 3, "own, intermediate, trust anchor"
    (auth,) = [layer for layer in found if isinstance(layer, scapy_ike.IKEv2_AUTH)]
    assert auth.auth_type == 14
    for kind in (scapy_ike.IKEv2_TSi, scapy_ike.IKEv2_TSr):
        (selectors,) = [layer for layer in found if isinstance(layer, kind)]
        (selector,) = selectors.traffic_selector
        assert selector.TS_type == 8
        assert (selector.starting_address_v6, selector.ending_address_v6) == (
            "::",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        )
    inner.clear_cache()
    assert bytes(inner)[HEADER_LENGTH:] == plain


def test_fragments_and_encapsulation() -> None:
    """Fragments have their numbers (RFC 7383), and NAT_DETECTION is there where it is wanted."""
    config = Config(max_datagram=600, udp_encapsulation=UdpEncapsulation.FORCE)
    a, b = hands(config, config)
    a.fragments = b.fragments = True
    a.__post_init__()
    b.__post_init__()
    a.endpoint.initiate(B, 500, 0.0)
    (request,) = (datagram.data for datagram in a.out())
    notifies = [
        layer.type for layer in layers(scapy_ike.IKEv2(request)) if isinstance(layer, scapy_ike.IKEv2_Notify)
    ]
    assert NotifyType.NAT_DETECTION_SOURCE_IP in notifies
    assert NotifyType.NAT_DETECTION_DESTINATION_IP in notifies
    (response,) = b.take(request, A)
    fragments = [scapy_ike.IKEv2(data[4:]) for data in a.take(response, B)]
    assert len(fragments) > 1
    for number, fragment in enumerate(fragments, 1):
        assert fragment.next_payload == PayloadType.SKF
        (layer,) = layers(fragment)
        assert (layer.frag_number, layer.frag_total) == (number, len(fragments))


KEY = bytes(range(36))
INNER = IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=1, dport=2) / b"twenty-one bytes here"


def scapy_sa() -> SecurityAssociation:
    outer = IPv6(src=str(A), dst=str(B))
    return SecurityAssociation(ESP, spi=0x101, crypt_algo="AES-GCM", crypt_key=KEY, tunnel_header=outer)


def test_scapy_opens_our_esp() -> None:
    """
    covers: 6.8.3.1-1
    covers: 6.8.3.1.1-2
    """
    outbound = OutboundSA(0x101, Secret(KEY))
    for sequence in (1, 2):
        sealed = outbound.seal(bytes(INNER))
        packet = IPv6(src=str(A), dst=str(B), nh=50) / ESP(sealed)
        assert (packet[ESP].spi, packet[ESP].seq) == (0x101, sequence)
        assert bytes(scapy_sa().decrypt(IPv6(bytes(packet)))) == bytes(INNER)


def test_we_open_the_esp_of_scapy() -> None:
    sealed = scapy_sa().encrypt(INNER)
    assert InboundSA(0x101, Secret(KEY)).open(bytes(sealed[ESP])) == bytes(INNER)
