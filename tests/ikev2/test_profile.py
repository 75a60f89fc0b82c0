"""What RFC 8994 demands of secure channels as a whole, shown with two endpoints."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from minerva.adjacency.core import METHODS
from minerva.ikev2.config import Config
from minerva.ikev2.constants import EncryptionId, ProtocolId, TransformType
from minerva.ikev2.endpoint import Established
from minerva.ikev2.message import decode_message, required
from minerva.ikev2.payloads import Certificate
from minerva.ikev2.proposals import SecurityAssociation
from minerva.pki.errors import Rule
from tests.ikev2.nodes import (
    ISSUER,
    MEMBER_A,
    MEMBER_B,
    OTHER_ROOT,
    ROOT,
    A,
    B,
    Hand,
    failures,
    hands,
    party,
    recorded,
)
from tests.ikev2.test_handshake import inside, run, up
from tests.pki import certs

KINDS = ("rsa2048", "rsa3072", "p256", "p384", "p521")
DIGESTS = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


@pytest.mark.parametrize(("one", "other"), list(itertools.product(KINDS, KINDS)))
def test_every_kind_of_key_authenticates(one: str, other: str) -> None:
    """At either end, and IKEv2 is the only protocol of channels that there is.

    covers: 6.2.1-8
    """
    assert METHODS == ("IKEv2",), "another one must be shown to do this too"
    a, b = Hand(party(1, kind=one), A), Hand(party(2, kind=other), B)
    run(a, b)
    up(a, b)


@pytest.mark.parametrize(("authority", "digest"), list(itertools.product(KINDS, DIGESTS)))
def test_and_so_does_every_signature_of_a_certificate(authority: str, digest: Callable[[], object]) -> None:
    """Of each kind of CA, over each hash, also of another kind than the node's own key.

    covers: 6.2.1-8
    """
    ca = ROOT.ca(f"Issuer {authority}", kind=f"{authority}/issuer", digest=digest())
    a, b = Hand(party(1, ca=ca, digest=digest()), A), Hand(MEMBER_B, B)
    run(a, b)
    up(a, b)


def test_who_was_a_member_is_checked_again() -> None:
    """Nothing of the first check is of use for the second connection, a month later.

    covers: 6.3-2
    """
    a = Hand(MEMBER_A, A)
    b = Hand(replace(MEMBER_B), B)
    run(a, b)
    up(a, b)
    b.who.when = certs.NOW + 31 * certs.DAY
    again = Hand(MEMBER_A, A, seed=1)
    run(again, b, 1.0)
    (failed,) = failures(b)
    assert failed.rule == Rule.PATH
    assert not again.of(Established)
    assert len(b.of(Established)) == 1


@pytest.mark.parametrize("anchors", [(ROOT,), (OTHER_ROOT, ROOT)])
def test_a_responder_shows_its_acp_certificate_and_no_other(anchors: tuple[certs.Ca, ...]) -> None:
    """With its chain and its trust anchor, whatever the initiator asks for.

    covers: 6.8.3.1.2-3
    """
    a = Hand(party(1, ca=anchors[0] if len(anchors) > 1 else ISSUER, anchors=anchors), A)
    b = Hand(party(2, anchors=(ROOT, OTHER_ROOT)), B)
    *_, response = recorded(a, b)
    up(a, b)
    shown = [p.data for p in inside(b, response) if isinstance(p, Certificate)]
    own = (b.who.identity.certificate, ISSUER.certificate, ROOT.certificate)
    assert shown == [certificate.public_bytes(Encoding.DER) for certificate in own]


def test_a_responder_believes_its_trust_anchors_only() -> None:
    """Not a CA that the initiator brings along, nor the root of another domain.

    covers: 6.8.3.1.2-3
    """
    a = Hand(party(1, ca=OTHER_ROOT, anchors=(OTHER_ROOT, ROOT)), A)
    b = Hand(MEMBER_B, B)
    run(a, b)
    (failed,) = failures(b)
    assert failed.rule == Rule.PATH
    assert not b.of(Established)


def test_proposals_are_in_the_order_of_speed() -> None:
    """By cost, and of two groups that cost the same first the one that every peer has (docs/decisions.md).

    What groups cost is measured by ``make bench-ike``. For packets there is one cipher.

    covers: 6.8.3.1.1-4
    """
    a, b = hands()
    init, _, request, _ = recorded(a, b)
    (of_ike,) = required(decode_message(init)[1], SecurityAssociation).proposals
    offered = {kind: [item.id for item in of_ike.transforms if item.type == kind] for kind in TransformType}
    ciphers, groups = offered[TransformType.ENCR], offered[TransformType.DH]
    assert ciphers == [EncryptionId.ENCR_AES_GCM_16, EncryptionId.ENCR_CHACHA20_POLY1305]
    assert groups == list(Config().groups)
    (of_esp,) = required(inside(a, request), SecurityAssociation).proposals
    assert of_esp.protocol == ProtocolId.ESP
    assert [item.id for item in of_esp.transforms if item.type == TransformType.ENCR] == [
        EncryptionId.ENCR_AES_GCM_16
    ]
