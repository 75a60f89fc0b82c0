"""SA payloads and the choice among proposals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.ikev2.constants import DhGroup, EncryptionId, EsnId, PrfId, ProtocolId, TransformType
from minerva.ikev2.errors import IkeDecodeError
from minerva.ikev2.proposals import (
    AES_GCM_256,
    ESP_POLICY,
    Proposal,
    SecurityAssociation,
    Transform,
    esp_offer,
    find,
    ike_policy,
)

SPI = bytes.fromhex("c0ffee01")
POLICY = ike_policy((PrfId.PRF_HMAC_SHA2_256, PrfId.PRF_HMAC_SHA2_384), (DhGroup.ECP_256, DhGroup.CURVE25519))

DH = TransformType.DH
INTEG = TransformType.INTEG
ESN = TransformType.ESN
PRF = TransformType.PRF

# Written by hand from RFC 7296 sections 3.3.1 to 3.3.5.
ESP_WIRE = bytes.fromhex(
    "00 00 0020 01 03 04 02 c0ffee01"  # last, length 32, proposal 1, ESP, SPI of 4 bytes, 2 transforms
    "03 00 000c 01 00 0014 800e 0100"  # more, length 12, ENCR 20, key length 256
    "00 00 0008 05 00 0000"  # last, length 8, ESN 0
)
IKE_WIRE = bytes.fromhex(
    "02 00 0024 01 01 00 03"  # more, length 36, proposal 1, IKE, no SPI, 3 transforms
    "03 00 000c 01 00 0014 800e 0100"  # ENCR 20, 256
    "03 00 0008 02 00 0005"  # PRF 5
    "00 00 0008 04 00 0013"  # DH 19
    "00 00 0010 02 01 00 01"  # last, length 16, proposal 2, IKE, no SPI, 1 transform
    "00 00 0008 04 00 000e"  # DH 14
)


def ike_proposal(*transforms: Transform, number: int = 1) -> Proposal:
    return Proposal(number, ProtocolId.IKE, b"", transforms)


def esp_proposal(*transforms: Transform) -> Proposal:
    return Proposal(1, ProtocolId.ESP, SPI, transforms)


def test_esp_offer_is_the_wire_vector() -> None:
    """covers: 6.8.3.1.1-2"""
    offer = esp_offer(SPI)
    assert offer.encode() == ESP_WIRE
    assert SecurityAssociation.decode(ESP_WIRE) == offer
    assert offer.proposals == (Proposal(1, ProtocolId.ESP, SPI, (AES_GCM_256, Transform(ESN, EsnId.NO_ESN))),)


def test_two_ike_proposals_on_the_wire() -> None:
    payload = SecurityAssociation.decode(IKE_WIRE)
    first, second = payload.proposals
    assert first.number == 1
    assert first.transforms == (
        AES_GCM_256,
        Transform(PRF, PrfId.PRF_HMAC_SHA2_256),
        Transform(DH, DhGroup.ECP_256),
    )
    assert second == ike_proposal(Transform(DH, 14), number=2)
    assert payload.encode() == IKE_WIRE


@pytest.mark.parametrize("cut", range(len(IKE_WIRE)))
def test_cut_off(cut: int) -> None:
    with pytest.raises(IkeDecodeError):
        SecurityAssociation.decode(IKE_WIRE[:cut])


@pytest.mark.parametrize(
    ("wire", "why"),
    [
        (ESP_WIRE + b"\x00", "after its end"),
        (b"\x03" + ESP_WIRE[1:], "in the place of 0"),
        (b"\x02" + ESP_WIRE[1:], "proposal: 8 bytes wanted"),
        (ESP_WIRE[:6] + b"\x08" + ESP_WIRE[7:], "SPI of 8 bytes"),
        (ESP_WIRE[:7] + b"\x01" + ESP_WIRE[8:], "in the place of 0"),
        (ESP_WIRE[:7] + b"\x03" + ESP_WIRE[8:], "in the place of 0"),
        (ESP_WIRE[:12] + b"\x00" + ESP_WIRE[13:], "in the place of 0"),
        (ESP_WIRE[:15] + b"\x04" + ESP_WIRE[16:], "transform"),
    ],
)
def test_malformed(wire: bytes, why: str) -> None:
    with pytest.raises(IkeDecodeError, match=why):
        SecurityAssociation.decode(wire)


def test_too_many_proposals() -> None:
    """What a stranger can make us keep has a limit."""
    one = ike_proposal(AES_GCM_256)
    with pytest.raises(IkeDecodeError, match="more than 32"):
        SecurityAssociation.decode(SecurityAssociation((one,) * 33).encode())


def test_too_many_attributes() -> None:
    transform = bytes.fromhex("00 00 001c 01 00 0014" + "8001 0000" * 5)
    proposal = bytes.fromhex("00 00 0024 01 01 00 01") + transform
    with pytest.raises(IkeDecodeError, match="more than 4 attributes"):
        SecurityAssociation.decode(proposal)


transforms = st.builds(
    Transform, st.integers(0, 255), st.integers(0, 65535), st.none() | st.integers(0, 65535)
)
proposals = st.one_of(
    st.builds(
        Proposal,
        st.integers(0, 255),
        st.just(int(ProtocolId.ESP)),
        st.binary(min_size=4, max_size=4),
        st.lists(transforms, max_size=6).map(tuple),
    ),
    st.builds(
        Proposal,
        st.integers(0, 255),
        st.just(int(ProtocolId.IKE)),
        st.just(b"") | st.binary(min_size=8, max_size=8),
        st.lists(transforms, max_size=6).map(tuple),
    ),
)


@given(st.lists(proposals, min_size=1, max_size=4).map(tuple))
def test_round_trip(some: tuple[Proposal, ...]) -> None:
    payload = SecurityAssociation(some)
    assert SecurityAssociation.decode(payload.encode()) == payload


@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    try:
        payload = SecurityAssociation.decode(data)
    except IkeDecodeError:
        return
    assert SecurityAssociation.decode(payload.encode()).proposals[0].protocol == payload.proposals[0].protocol


# --- choosing --------------------------------------------------------------------------------------------


def test_our_own_offer_is_acceptable_to_us() -> None:
    offer = POLICY.offer(b"")
    chosen = POLICY.choose(offer.proposals)
    assert chosen is not None
    _, answer = chosen
    assert [(t.type, t.id) for t in answer.transforms] == [
        (TransformType.ENCR, EncryptionId.ENCR_AES_GCM_16),
        (PRF, PrfId.PRF_HMAC_SHA2_256),
        (DH, DhGroup.ECP_256),
    ]
    assert POLICY.accepts_answer(SecurityAssociation((answer,)), offer) == answer


def test_the_group_of_the_key_exchange_goes_before_all() -> None:
    chosen = POLICY.choose(POLICY.offer(b"").proposals, preferred=Transform(DH, DhGroup.CURVE25519))
    assert chosen is not None
    assert find(chosen[1], TransformType.DH) == DhGroup.CURVE25519


def test_a_preferred_group_that_we_do_not_accept_is_not_taken() -> None:
    chosen = POLICY.choose(POLICY.offer(b"").proposals, preferred=Transform(DH, 14))
    assert chosen is not None
    assert find(chosen[1], TransformType.DH) == DhGroup.ECP_256


GOOD_IKE = (AES_GCM_256, Transform(PRF, 5), Transform(DH, 19))


@pytest.mark.parametrize(
    ("offered", "why"),
    [
        ((Transform(TransformType.ENCR, 20, 128), *GOOD_IKE[1:]), "128-bit keys"),
        ((Transform(TransformType.ENCR, 20), *GOOD_IKE[1:]), "no key length"),
        ((Transform(TransformType.ENCR, 11), *GOOD_IKE[1:]), "NULL encryption"),
        ((Transform(TransformType.ENCR, 12, 256), *GOOD_IKE[1:]), "CBC"),
        ((Transform(TransformType.ENCR, 20, 256, unknown_attributes=True), *GOOD_IKE[1:]), "attribute"),
        ((*GOOD_IKE[:2],), "no group"),
        ((*GOOD_IKE[:2], Transform(DH, DhGroup.NONE)), "group NONE"),
        ((*GOOD_IKE[:2], Transform(DH, 14)), "group 14"),
        ((GOOD_IKE[0], Transform(PRF, 2), GOOD_IKE[2]), "SHA-1"),
        ((*GOOD_IKE, Transform(INTEG, 12)), "an AEAD with integrity"),
        ((*GOOD_IKE, Transform(6, 0)), "unknown transform type"),
        ((), "nothing"),
    ],
)
def test_unacceptable_ike_proposals(offered: tuple[Transform, ...], why: str) -> None:
    """covers: 6.8.2-4, 6.8.2-5"""
    assert POLICY.choose([ike_proposal(*offered)]) is None, why


def test_the_first_acceptable_proposal_is_chosen() -> None:
    bad = ike_proposal(Transform(TransformType.ENCR, 12, 256), *GOOD_IKE[1:], number=1)
    good = ike_proposal(*GOOD_IKE, number=2)
    chosen = POLICY.choose([bad, good])
    assert chosen is not None
    offered, answer = chosen
    assert offered == good
    assert answer.number == 2


def test_integrity_none_is_accepted_and_repeated() -> None:
    chosen = POLICY.choose([ike_proposal(*GOOD_IKE, Transform(INTEG, 12), Transform(INTEG, 0))])
    assert chosen is not None
    assert chosen[1].transforms == (*GOOD_IKE, Transform(INTEG, 0))


def test_an_initial_ike_proposal_has_no_spi() -> None:
    assert POLICY.choose([Proposal(1, ProtocolId.IKE, bytes(8), GOOD_IKE)]) is None


@pytest.mark.parametrize(
    ("offered", "answer"),
    [
        ((AES_GCM_256, Transform(ESN, 0)), (AES_GCM_256, Transform(ESN, 0))),
        ((AES_GCM_256, Transform(ESN, 1), Transform(ESN, 0)), (AES_GCM_256, Transform(ESN, 0))),
        ((AES_GCM_256,), (AES_GCM_256,)),
        (
            (AES_GCM_256, Transform(DH, 0), Transform(ESN, 0)),
            (AES_GCM_256, Transform(DH, 0), Transform(ESN, 0)),
        ),
        ((AES_GCM_256, Transform(ESN, 1)), None),
        ((AES_GCM_256, Transform(DH, 19), Transform(ESN, 0)), None),
        ((Transform(TransformType.ENCR, 11), Transform(ESN, 0)), None),
        ((Transform(TransformType.ENCR, 20, 128), Transform(ESN, 0)), None),
        ((Transform(TransformType.ENCR, 12, 256), Transform(INTEG, 12), Transform(ESN, 0)), None),
    ],
)
def test_esp_proposals(offered: tuple[Transform, ...], answer: tuple[Transform, ...] | None) -> None:
    """covers: 6.8.2-4, 6.8.2-5, 6.8.3.1.1-2"""
    own = bytes.fromhex("00000100")
    chosen = ESP_POLICY.choose([esp_proposal(*offered)], spi=own)
    assert (chosen and chosen[1]) == (answer and Proposal(1, ProtocolId.ESP, own, answer))


def test_ah_is_never_accepted() -> None:
    """covers: 6.8.3.1.1-1"""
    ah = Proposal(1, ProtocolId.AH, SPI, (Transform(INTEG, 12), Transform(ESN, 0)))
    assert ESP_POLICY.choose([ah], spi=SPI) is None


@pytest.mark.parametrize(
    "answer",
    [
        (),
        (ike_proposal(*GOOD_IKE, number=2),),
        (ike_proposal(*GOOD_IKE[:2]),),
        (ike_proposal(*GOOD_IKE, Transform(DH, 31)),),
        (ike_proposal(*GOOD_IKE[:2], Transform(DH, 20)),),
        (Proposal(1, ProtocolId.IKE, bytes(8), GOOD_IKE),),
        (Proposal(1, ProtocolId.ESP, SPI, GOOD_IKE),),
        (ike_proposal(*GOOD_IKE), ike_proposal(*GOOD_IKE, number=2)),
    ],
)
def test_answers_that_are_not_a_choice_out_of_our_offer(answer: tuple[Proposal, ...]) -> None:
    assert POLICY.accepts_answer(SecurityAssociation(answer), POLICY.offer(b"")) is None
