"""The CREATE_CHILD_SA exchanges that replace an SA, seen from either end (RFC 7296 sections 1.3.2, 1.3.3).

What is here knows nothing of states and times: it makes the payloads, reads the answers, and derives keys.
Each exchange has a fresh key exchange, so that no key follows from another (RFC 8994 section 6.8.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from minerva.ikev2.child import answer_child, child_keys, offer_child, read_child_answer
from minerva.ikev2.children import Child
from minerva.ikev2.constants import DhGroup, NotifyType, ProtocolId, TransformType
from minerva.ikev2.crypto import IkeKeys, KeyAgreement, new_agreement
from minerva.ikev2.errors import IkeCryptoError, IkeDecodeError, IkePeerError
from minerva.ikev2.events import ChildKeys
from minerva.ikev2.message import required
from minerva.ikev2.payloads import KeyExchange, Nonce, Notify, Payload
from minerva.ikev2.proposals import Policy, Proposal, SecurityAssociation, Transform, find, suite


@dataclass(slots=True, eq=False)
class Rekeying:
    """A request of ours to replace an SA.

    ``rival`` is the lower of the two nonces of the peer's own exchange for the same SA, if it began one
    before it had ours answered (section 2.8.1). ``tried`` are the groups that were offered a value of.
    """

    nonce: bytes
    agreement: KeyAgreement
    rival: bytes | None = None
    tried: set[int] = field(default_factory=set)

    def loses(self, nonce_r: bytes) -> bool:
        """Return whether what we have made is redundant: the lowest of the four nonces is in our exchange."""
        return self.rival is not None and min(self.nonce, nonce_r) < self.rival

    def _shared(self, payloads: Sequence[Payload], chosen: Proposal) -> bytes:
        """Return the Diffie-Hellman result. Raises :class:`IkeDecodeError`."""
        key_exchange = required(payloads, KeyExchange)
        group = self.agreement.group
        if not key_exchange.group == group == find(chosen, TransformType.DH):
            raise IkeDecodeError("the peer chose another group than that of the key exchange")
        return _compute(self.agreement, key_exchange)


@dataclass(slots=True, eq=False)
class ChildRekeying(Rekeying):
    """A request of ours to replace the child SA ``child`` by one that has the SPI ``spi_in`` at our end."""

    child: Child = field(kw_only=True)
    spi_in: int = field(kw_only=True)
    policy: Policy = field(kw_only=True)

    def payloads(self) -> tuple[Payload, ...]:
        """Return the request."""
        # We are to name the SPI of the packets that we receive (section 1.3.3).
        old = self.child.keys.spi_in.to_bytes(4)
        association, ours, theirs = offer_child(self.spi_in, self.policy)
        return (
            Notify(NotifyType.REKEY_SA, protocol=ProtocolId.ESP, spi=old),
            association,
            Nonce(self.nonce),
            KeyExchange(self.agreement.group, self.agreement.public),
            ours,
            theirs,
        )

    def finish(self, payloads: Sequence[Payload], keys: IkeKeys) -> tuple[ChildKeys, bytes]:
        """Return the new child SA and the peer's nonce.

        Raises :class:`IkeDecodeError` and :class:`IkePeerError` if the response is not one to our request.
        """
        association, *_ = offer_child(self.spi_in, self.policy)
        spi_out, chosen = read_child_answer(payloads, association, self.policy)
        nonce_r = required(payloads, Nonce).data
        shared = self._shared(payloads, chosen)
        child = child_keys(keys, self.nonce, nonce_r, self.spi_in, spi_out, initiator=True, shared=shared)
        return child, nonce_r


@dataclass(slots=True, eq=False)
class IkeRekeying(Rekeying):
    """A request of ours to replace the IKE SA by one that has the SPI ``spi`` at our end."""

    spi: bytes = field(kw_only=True)
    policy: Policy = field(kw_only=True)

    def payloads(self) -> tuple[Payload, ...]:
        """Return the request."""
        return (
            self.policy.offer(self.spi),
            Nonce(self.nonce),
            KeyExchange(self.agreement.group, self.agreement.public),
        )

    def finish(self, payloads: Sequence[Payload], keys: IkeKeys) -> tuple[IkeKeys, bytes, bytes]:
        """Return the keys of the new IKE SA, the peer's SPI and its nonce. Raises as for a child SA."""
        answer = required(payloads, SecurityAssociation)
        chosen = self.policy.accepts_answer(answer, self.policy.offer(self.spi))
        if chosen is None or not any(chosen.spi):
            raise IkeDecodeError("the peer chose an IKE SA that we did not offer")
        nonce_r = required(payloads, Nonce).data
        prf, encryption = suite(chosen)
        shared = self._shared(payloads, chosen)
        fresh = keys.successor(prf, shared, self.nonce, nonce_r, self.spi, chosen.spi, encryption)
        return fresh, chosen.spi, nonce_r


@dataclass(frozen=True, slots=True)
class ChildGrant:
    """Our answer to the peer's request to replace a child SA; ``lowest`` is the lower nonce of the two."""

    child: ChildKeys
    lowest: bytes
    payloads: tuple[Payload, ...]


def grant_child(
    payloads: Sequence[Payload], spi_in: int, nonce: bytes, keys: IkeKeys, policy: Policy
) -> ChildGrant:
    """Answer the peer's request to replace a child SA.

    Raises :class:`IkePeerError` with what it is to be told instead, :class:`IkeDecodeError` if the request
    is malformed.
    """
    nonce_i = required(payloads, Nonce).data
    key_exchanges = [payload for payload in payloads if isinstance(payload, KeyExchange)]
    preferred = Transform(TransformType.DH, key_exchanges[0].group) if key_exchanges else None
    answer = answer_child(payloads, spi_in, policy, preferred)
    key_exchange = required(payloads, KeyExchange)
    agreement = _agree(answer.chosen, key_exchange)
    shared = _compute(agreement, key_exchange)
    association, *selectors = answer.payloads
    return ChildGrant(
        child_keys(keys, nonce_i, nonce, spi_in, answer.spi_out, initiator=False, shared=shared),
        min(nonce_i, nonce),
        (association, Nonce(nonce), KeyExchange(agreement.group, agreement.public), *selectors),
    )


@dataclass(frozen=True, slots=True)
class IkeGrant:
    """Our answer to the peer's request to replace the IKE SA; ``spi`` is the peer's for the new one."""

    keys: IkeKeys
    spi: bytes
    lowest: bytes
    payloads: tuple[Payload, ...]


def grant_ike(
    payloads: Sequence[Payload], spi_r: bytes, nonce: bytes, keys: IkeKeys, policy: Policy
) -> IkeGrant:
    """Answer the peer's request to replace the IKE SA. Raises as :func:`grant_child`."""
    nonce_i = required(payloads, Nonce).data
    key_exchange = required(payloads, KeyExchange)
    offered = required(payloads, SecurityAssociation)
    proposal, chosen = choose_ike(policy, offered, key_exchange, spi_r)
    if not any(proposal.spi):
        raise IkeDecodeError("a new IKE SA with an SPI of zero")
    agreement = new_agreement(DhGroup(key_exchange.group))
    shared = _compute(agreement, key_exchange)
    prf, encryption = suite(chosen)
    return IkeGrant(
        keys.successor(prf, shared, nonce_i, nonce, proposal.spi, spi_r, encryption),
        proposal.spi,
        min(nonce_i, nonce),
        (
            SecurityAssociation((chosen,)),
            Nonce(nonce),
            KeyExchange(agreement.group, agreement.public),
        ),
    )


def choose_ike(
    policy: Policy, offered: SecurityAssociation, key_exchange: KeyExchange, spi: bytes = b""
) -> tuple[Proposal, Proposal]:
    """Return the proposal for an IKE SA that we accept, and our answer with our ``spi``.

    Raises :class:`IkePeerError` with what the peer is to be told if there is none, or of another group than
    that of ``key_exchange``.
    """
    preferred = Transform(TransformType.DH, key_exchange.group)
    chosen = policy.choose(offered.proposals, spi=spi, preferred=preferred)
    if chosen is None:
        raise IkePeerError(NotifyType.NO_PROPOSAL_CHOSEN, "no proposal of the peer is acceptable")
    _check_group(chosen[1], key_exchange)
    return chosen


def _check_group(chosen: Proposal, key_exchange: KeyExchange) -> None:
    group = find(chosen, TransformType.DH)
    if group != key_exchange.group:
        raise IkePeerError(
            NotifyType.INVALID_KE_PAYLOAD,
            f"key exchange in group {key_exchange.group}, {group} wanted",
            data=group.to_bytes(2),
        )


def _agree(chosen: Proposal, key_exchange: KeyExchange) -> KeyAgreement:
    _check_group(chosen, key_exchange)
    return new_agreement(DhGroup(key_exchange.group))


def _compute(agreement: KeyAgreement, key_exchange: KeyExchange) -> bytes:
    try:
        return agreement.load(key_exchange.data)()
    except IkeCryptoError as error:
        # From an authenticated peer: as malformed as any other field.
        raise IkeDecodeError(str(error)) from error
