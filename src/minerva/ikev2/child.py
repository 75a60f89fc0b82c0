"""What IKE_AUTH and CREATE_CHILD_SA say about a child SA (RFC 7296 sections 1.2, 1.3, 2.9, 2.17)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minerva.ikev2.constants import MIN_ESP_SPI, NotifyType, notify_name
from minerva.ikev2.crypto import IkeKeys
from minerva.ikev2.errors import IkePeerError
from minerva.ikev2.events import ChildKeys
from minerva.ikev2.message import find_error, one
from minerva.ikev2.payloads import Payload
from minerva.ikev2.proposals import (
    ESP_POLICY,
    Policy,
    Proposal,
    SecurityAssociation,
    Transform,
    esp_offer,
)
from minerva.ikev2.traffic import ALL_IPV6, TrafficSelectorsInitiator, TrafficSelectorsResponder, narrow


def offer_child(
    spi: int, policy: Policy = ESP_POLICY
) -> tuple[SecurityAssociation, TrafficSelectorsInitiator, TrafficSelectorsResponder]:
    """Return the payloads that ask for a child SA."""
    selectors = (ALL_IPV6,)
    return (
        esp_offer(spi.to_bytes(4), policy),
        TrafficSelectorsInitiator(selectors),
        TrafficSelectorsResponder(selectors),
    )


@dataclass(frozen=True, slots=True)
class ChildAnswer:
    """What we answer to a request for a child SA: the initiator's SPI, our choice, and the payloads."""

    spi_out: int
    chosen: Proposal
    payloads: tuple[Payload, ...]


def answer_child(
    payloads: Sequence[Payload],
    spi: int,
    policy: Policy = ESP_POLICY,
    preferred: Transform | None = None,
) -> ChildAnswer:
    """Return what grants the initiator the child SA that it asks for, with our ``spi``.

    ``preferred`` is the group that it has made a KE payload for. Raises :class:`IkePeerError` with what it
    is to be told instead; the IKE SA itself is not touched by that.
    """
    offered = one(payloads, SecurityAssociation)
    chosen = policy.choose(offered.proposals if offered else (), spi=spi.to_bytes(4), preferred=preferred)
    if chosen is None:
        raise IkePeerError(
            NotifyType.NO_PROPOSAL_CHOSEN,
            "the peer proposes no ESP with AES-GCM-256 and 32-bit sequence numbers"
            + ("" if policy is ESP_POLICY else ", and a key exchange"),
        )
    _narrow(payloads)
    proposal, answer = chosen
    selectors = (ALL_IPV6,)
    return ChildAnswer(
        _spi_of(proposal),
        answer,
        (
            SecurityAssociation((answer,)),
            TrafficSelectorsInitiator(selectors),
            TrafficSelectorsResponder(selectors),
        ),
    )


def read_child_answer(
    payloads: Sequence[Payload], offer: SecurityAssociation, policy: Policy = ESP_POLICY
) -> tuple[int, Proposal]:
    """Return the responder's SPI and choice from its answer to our ``offer``.

    Raises :class:`IkePeerError`.
    """
    answer = one(payloads, SecurityAssociation)
    if answer is None:
        error = find_error(payloads)
        raise IkePeerError(
            NotifyType.NO_PROPOSAL_CHOSEN,
            f"the peer refused the child SA: {notify_name(error.notify_type) if error else 'no SA payload'}",
        )
    chosen = policy.accepts_answer(answer, offer)
    if chosen is None:
        raise IkePeerError(NotifyType.NO_PROPOSAL_CHOSEN, "the peer chose a child SA that we did not offer")
    _narrow(payloads)
    return _spi_of(chosen), chosen


def child_keys(
    keys: IkeKeys,
    nonce_i: bytes,
    nonce_r: bytes,
    spi_in: int,
    spi_out: int,
    *,
    initiator: bool,
    shared: bytes = b"",
) -> ChildKeys:
    """Return the child SA as the side sees it that is the ``initiator`` of its exchange, or is not."""
    from_initiator, from_responder = keys.child(nonce_i, nonce_r, shared)
    if initiator:
        return ChildKeys(spi_in, spi_out, key_in=from_responder, key_out=from_initiator)
    return ChildKeys(spi_in, spi_out, key_in=from_initiator, key_out=from_responder)


def _narrow(payloads: Sequence[Payload]) -> None:
    # What a peer asks for, or leaves of what we asked for, must have room for all of IPv6, both ways.
    for kind in (TrafficSelectorsInitiator, TrafficSelectorsResponder):
        found = one(payloads, kind)
        if found is None or narrow(found.selectors) is None:
            raise IkePeerError(
                NotifyType.TS_UNACCEPTABLE,
                f"the peer's {kind.TYPE.name} does not cover ::/0 for all protocols",
            )


def _spi_of(proposal: Proposal) -> int:
    spi = int.from_bytes(proposal.spi)
    if spi < MIN_ESP_SPI:
        raise IkePeerError(NotifyType.NO_PROPOSAL_CHOSEN, f"the peer's ESP SPI {spi} is a reserved one")
    return spi
