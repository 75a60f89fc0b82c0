"""The child SA that IKE_AUTH brings along (RFC 7296 sections 1.2, 2.9, 2.17)."""

from __future__ import annotations

from collections.abc import Sequence

from minerva.ikev2.constants import MIN_ESP_SPI, NotifyType, notify_name
from minerva.ikev2.crypto import IkeKeys
from minerva.ikev2.errors import IkePeerError
from minerva.ikev2.events import ChildKeys
from minerva.ikev2.message import find_error, one
from minerva.ikev2.payloads import Payload
from minerva.ikev2.proposals import ESP_POLICY, Proposal, SecurityAssociation, esp_offer
from minerva.ikev2.traffic import ALL_IPV6, TrafficSelectorsInitiator, TrafficSelectorsResponder, narrow


def offer_child(spi: int) -> tuple[SecurityAssociation, TrafficSelectorsInitiator, TrafficSelectorsResponder]:
    """Return the payloads that ask for a child SA."""
    selectors = (ALL_IPV6,)
    return (
        esp_offer(spi.to_bytes(4)),
        TrafficSelectorsInitiator(selectors),
        TrafficSelectorsResponder(selectors),
    )


def answer_child(payloads: Sequence[Payload], spi: int) -> tuple[int, tuple[Payload, ...]]:
    """Return the initiator's SPI and the payloads that grant it the child SA it asks for.

    Raises :class:`IkePeerError` with what it is to be told instead; the IKE SA itself is not touched by that.
    """
    offered = one(payloads, SecurityAssociation)
    chosen = ESP_POLICY.choose(offered.proposals if offered else (), spi=spi.to_bytes(4))
    if chosen is None:
        raise IkePeerError(
            NotifyType.NO_PROPOSAL_CHOSEN,
            "the peer proposes no ESP with AES-GCM-256 and 32-bit sequence numbers",
        )
    _narrow(payloads)
    proposal, answer = chosen
    selectors = (ALL_IPV6,)
    return _spi_of(proposal), (
        SecurityAssociation((answer,)),
        TrafficSelectorsInitiator(selectors),
        TrafficSelectorsResponder(selectors),
    )


def read_child_answer(payloads: Sequence[Payload], offer: SecurityAssociation) -> int:
    """Return the responder's SPI from its answer to our ``offer``. Raises :class:`IkePeerError`."""
    answer = one(payloads, SecurityAssociation)
    if answer is None:
        error = find_error(payloads)
        raise IkePeerError(
            NotifyType.NO_PROPOSAL_CHOSEN,
            f"the peer refused the child SA: {notify_name(error.notify_type) if error else 'no SA payload'}",
        )
    chosen = ESP_POLICY.accepts_answer(answer, offer)
    if chosen is None:
        raise IkePeerError(NotifyType.NO_PROPOSAL_CHOSEN, "the peer chose a child SA that we did not offer")
    _narrow(payloads)
    return _spi_of(chosen)


def child_keys(
    keys: IkeKeys, nonce_i: bytes, nonce_r: bytes, spi_in: int, spi_out: int, *, initiator: bool
) -> ChildKeys:
    """Return the child SA as the side sees it that is the ``initiator``, or is not."""
    from_initiator, from_responder = keys.child(nonce_i, nonce_r)
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
