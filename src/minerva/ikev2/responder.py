"""The responder's part of a handshake (RFC 7296 section 1.2).

A stranger's IKE_SA_INIT request costs us the making of a Diffie-Hellman key. The shared secret is computed
only when an IKE_AUTH request comes, which needs our answer, and only once; a message that then does
not pass the integrity check costs no more than that check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

from minerva.ikev2.auth import authentication_data, signed_octets
from minerva.ikev2.child import answer_child, child_keys
from minerva.ikev2.constants import DhGroup, ExchangeType, HashAlgorithm, NotifyType, TransformType
from minerva.ikev2.credentials import authenticate_peer, describe_certificates, hash_for, read_certificates
from minerva.ikev2.crypto import IkeKeys, new_agreement
from minerva.ikev2.encapsulation import can_encapsulate, is_wanted, nat_detection
from minerva.ikev2.errors import IkeCryptoError, IkePeerError
from minerva.ikev2.events import ChildKeys, SignatureNeeded, State
from minerva.ikev2.ike_sa import NONCE_LENGTH, SIGNER_REFUSED, Context, Input, max_datagram
from minerva.ikev2.message import Header, Protection, encode_message, find_notify, one, required
from minerva.ikev2.payloads import (
    Authentication,
    IdentificationInitiator,
    KeyExchange,
    Nonce,
    Notify,
    Payload,
    digital_signature,
    read_signature_hashes,
    signature_hashes,
)
from minerva.ikev2.proposals import SecurityAssociation, find, suite
from minerva.ikev2.rekey import choose_ike
from minerva.ikev2.rekeying import RekeyingSa


@dataclass(frozen=True, slots=True)
class _Accepted:
    """What we are going to answer to an IKE_AUTH request once it is signed."""

    hash: HashAlgorithm
    child: ChildKeys | None
    child_payloads: tuple[Payload, ...]
    child_refusal: str
    initial_contact: bool


class Responder(RekeyingSa):
    """An IKE SA that the peer began."""

    def __init__(
        self,
        context: Context,
        number: int,
        spi: bytes,
        address: IPv6Address,
        port: int,
        now: float,
        header: Header,
        payloads: Sequence[Payload],
        request: bytes,
    ) -> None:
        """Answer ``request``, an IKE_SA_INIT with this ``header`` and these ``payloads``.

        Raises :class:`IkePeerError` with what the initiator is to be told; :class:`IkeCryptoError` and
        :class:`IkeDecodeError` if nothing.
        """
        super().__init__(context, number, spi, address, port, now, initiator=False)
        self._spi_i, self._spi_r = header.spi_i, spi
        self._expected_request_id = 1  # 0 was IKE_SA_INIT
        self._init_request = request
        key_exchange = required(payloads, KeyExchange)
        _, chosen = choose_ike(context.policy, required(payloads, SecurityAssociation), key_exchange)
        self._prf, self._encryption = suite(chosen)
        self._nonce_i = required(payloads, Nonce).data
        self._peer_hashes = read_signature_hashes(payloads)
        agreement = new_agreement(DhGroup(find(chosen, TransformType.DH)))
        self._rekey_group = agreement.group
        self._shared_secret = agreement.load(key_exchange.data)
        self._nonce_r = context.random_bytes(NONCE_LENGTH)
        self._accepted: _Accepted | None = None
        self._max_datagram = max_datagram(context.config, payloads)
        fragmentation = (
            () if self._max_datagram is None else (Notify(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED),)
        )
        ours = context.ours.towards(address)
        self.encapsulated = is_wanted(
            context.config, payloads, header.spi_i, header.spi_r, ours, address, port
        )
        encapsulation = (
            nat_detection(context.config, header.spi_i, spi, ours, address, port, context.random_bytes)
            if can_encapsulate(payloads)
            else ()
        )
        self._init_response = encode_message(
            self._header(ExchangeType.IKE_SA_INIT, 0, response=True),
            (
                SecurityAssociation((chosen,)),
                KeyExchange(agreement.group, agreement.public),
                Nonce(self._nonce_r),
                self._credentials.request,
                signature_hashes(HashAlgorithm),
                *fragmentation,
                *encapsulation,
            ),
        )
        self.answer_init(port, now)

    def answer_init(self, port: int, now: float) -> None:
        """Send our IKE_SA_INIT response, for the first time or because the same request came again."""
        if self.state is State.HALF_OPEN:
            self._expires = now + self._context.config.half_open_lifetime
            self._send((self._init_response,), port)

    # --- the IKE_AUTH request ------------------------------------------------------------------------------

    def _request_protection(self, header: Header, now: float) -> Protection | None:
        if self.state is State.AUTH_SIGNING or (
            self.state is State.HALF_OPEN and header.exchange != ExchangeType.IKE_AUTH
        ):
            self._context.counters["request out of sequence"] += 1
            return None
        if self._protection is None:
            try:
                # Once only: what it costs must not depend on how often somebody asks.
                shared = self._shared_secret()
            except IkeCryptoError:
                self._context.counters["key exchange refused"] += 1
                self._end(now, linger=False)
                return None
            self._keys = IkeKeys.derive(
                self._prf,
                shared,
                self._nonce_i,
                self._nonce_r,
                self._spi_i,
                self._spi_r,
                self._encryption,
            )
            self._protection = Protection.of(self._keys, initiator=False, max_datagram=self._max_datagram)
        return self._protection

    def _handle_request(self, exchange: int, payloads: Sequence[Payload], now: float) -> None:
        if self.state is State.HALF_OPEN:
            self._handle_auth(payloads, now)
        else:
            super()._handle_request(exchange, payloads, now)

    def _handle_auth(self, payloads: Sequence[Payload], now: float) -> None:
        assert self._keys is not None
        self._move(Input.AUTH_REQUEST)
        self._expires = now + self._context.config.half_open_lifetime
        if self._answer is not None:
            self.port = self._answer.port  # another than before if ESP goes in UDP (section 2.23)
        self._log_keys(self._keys, self._spi_r)
        identification = required(payloads, IdentificationInitiator)
        authentication = one(payloads, Authentication)
        if authentication is None:
            raise IkePeerError(
                NotifyType.AUTHENTICATION_FAILED, "the peer sent no AUTH payload; it may want EAP"
            )
        certificates = read_certificates(payloads)
        self._peer_certificate = describe_certificates(certificates)
        maced_id = self._keys.maced_id(identification.encode(), initiator=True)
        octets = signed_octets(self._init_request, self._nonce_r, maced_id)
        self.peer = authenticate_peer(
            certificates,
            identification,
            authentication,
            (octets,),
            self._credentials,
            self._context.authenticate,
        )
        self._accepted = self._accept(payloads, self._keys)
        self._context.events.append(
            SignatureNeeded(
                self.number,
                self._init_response,
                self._nonce_i,
                self._keys.maced_id(self._credentials.id_r.encode(), initiator=False),
                self._accepted.hash,
            )
        )

    def _accept(self, payloads: Sequence[Payload], keys: IkeKeys) -> _Accepted:
        self._child_spi = self._context.new_child_spi()
        child: ChildKeys | None = None
        refusal = ""
        try:
            granted = answer_child(payloads, self._child_spi)
            answer = granted.payloads
            child = child_keys(
                keys, self._nonce_i, self._nonce_r, self._child_spi, granted.spi_out, initiator=False
            )
        except IkePeerError as error:
            # The peer is authenticated all the same, and is told so with the error (section 2.21.2).
            answer, refusal = (Notify(error.notify, error.data),), str(error)
        return _Accepted(
            hash=hash_for(self._credentials, self._peer_hashes),
            child=child,
            child_payloads=answer,
            child_refusal=refusal,
            initial_contact=find_notify(payloads, NotifyType.INITIAL_CONTACT) is not None,
        )

    # --- the IKE_AUTH response -----------------------------------------------------------------------------

    def signed(self, signature: bytes | None, now: float) -> None:
        accepted, peer = self._accepted, self.peer
        if self.state is not State.AUTH_SIGNING or accepted is None or peer is None:
            super().signed(signature, now)
            return
        if signature is None:
            self._refuse(IkePeerError(NotifyType.AUTHENTICATION_FAILED, SIGNER_REFUSED), now)
            return
        first = (Notify(NotifyType.INITIAL_CONTACT),) if self._context.is_first_contact(self) else ()
        self._respond(
            (
                self._credentials.id_r,
                *self._credentials.certificates,
                *first,
                digital_signature(authentication_data(self._credentials.key, accepted.hash, signature)),
                *accepted.child_payloads,
            )
        )
        if accepted.child is None:
            self._report(accepted.child_refusal)
            self._delete((), now)
            return
        self._up(peer, accepted.child, now)
        if accepted.initial_contact:
            self._context.peer_restarted(self, now)
