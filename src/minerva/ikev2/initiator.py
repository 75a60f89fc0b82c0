"""The initiator's part of a handshake (RFC 7296 section 1.2).

Nothing protects IKE_SA_INIT, so anybody on the link may answer our request before the genuine peer does. Each
different answer becomes a candidate with keys and an IKE_AUTH request of its own, and the first that ends
with an authenticated peer is the SA (section 2.4). Errors in IKE_SA_INIT do not end it at once either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from minerva.ikev2.auth import authentication_data, signed_octets
from minerva.ikev2.child import child_keys, offer_child, read_child_answer
from minerva.ikev2.constants import (
    ENCAPSULATION_PORT,
    MAX_COOKIE_LENGTH,
    MIN_COOKIE_LENGTH,
    NO_SPI,
    DhGroup,
    ExchangeType,
    Flag,
    HashAlgorithm,
    NotifyType,
    ProtocolId,
    TransformType,
    notify_name,
)
from minerva.ikev2.credentials import (
    Peer,
    authenticate_peer,
    describe_certificates,
    hash_for,
    read_certificates,
)
from minerva.ikev2.crypto import IkeKeys, KeyAgreement, new_agreement
from minerva.ikev2.encapsulation import is_wanted, nat_detection
from minerva.ikev2.errors import IkeCryptoError, IkeDecodeError, IkePeerError
from minerva.ikev2.events import SignatureNeeded, State
from minerva.ikev2.exchange import Request, digest
from minerva.ikev2.ike_sa import NONCE_LENGTH, SIGNER_REFUSED, Context, Input, max_datagram, refusal
from minerva.ikev2.message import (
    HEADER_LENGTH,
    Header,
    Protection,
    decode_payloads,
    encode_message,
    find_error,
    find_notify,
    one,
    required,
    unsupported_critical,
)
from minerva.ikev2.payloads import (
    Authentication,
    Delete,
    IdentificationResponder,
    KeyExchange,
    Nonce,
    Notify,
    Payload,
    digital_signature,
    read_signature_hashes,
    signature_hashes,
)
from minerva.ikev2.proposals import SecurityAssociation, find, suite
from minerva.ikev2.rekeying import RekeyingSa

_AUTH_MESSAGE_ID = 1


@dataclass(slots=True)
class _Attempt:
    """Our IKE_SA_INIT request for one group, in its latest version, and the key that is in it."""

    agreement: KeyAgreement
    message: bytes


@dataclass(slots=True)
class _Candidate:
    """Keys that follow from an answer to our IKE_SA_INIT, and what is done under them.

    ``peer_messages`` are all answers that lead to the same keys: a forger may have changed what has no part
    in them, such as whether ESP goes in UDP, which ``encapsulated`` says by each. They must share one
    ``protection``, as the same key with the same IV would seal two messages.
    ``deadline`` is for our signature, until there is a request.
    """

    spi_r: bytes
    nonce_r: bytes
    keys: IkeKeys
    own_message: bytes
    peer_messages: list[bytes]
    encapsulated: list[bool]
    hash: HashAlgorithm
    deadline: float
    max_datagram: int | None
    group: DhGroup
    protection: Protection = field(init=False)
    request: Request | None = None

    def __post_init__(self) -> None:
        self.protection = Protection.of(self.keys, initiator=True, max_datagram=self.max_datagram)

    def next_timer(self) -> float:
        return self.deadline if self.request is None else self.request.next_timer()


class Initiator(RekeyingSa):
    """An IKE SA that we began."""

    def __init__(
        self, context: Context, number: int, spi: bytes, address: IPv6Address, port: int, now: float
    ) -> None:
        """Send an IKE_SA_INIT request to ``address`` and ``port``."""
        super().__init__(context, number, spi, address, port, now, initiator=True)
        self._spi_i = spi
        self._next_request_id = _AUTH_MESSAGE_ID + 1
        self._nonce_i = context.random_bytes(NONCE_LENGTH)
        self._offer = context.policy.offer(b"")
        self._child_spi = context.new_child_spi()
        self._child_offer = offer_child(self._child_spi)
        self._attempts: dict[int, _Attempt] = {}
        self._nat_detection = nat_detection(
            context.config, spi, NO_SPI, context.ours.towards(address), address, port, context.random_bytes
        )
        self._cookie: Notify | None = None
        self._cookies_left = context.config.cookie_retries
        self._error = ""
        self._responses: set[bytes] = set()
        self._candidates: list[_Candidate] = []
        self._unsigned: deque[_Candidate] = deque()
        self._orphans: list[_Candidate] = []
        self._init_deadline = now + context.config.handshake.give_up
        self._send_init(context.config.groups[0], now)

    # --- IKE_SA_INIT ---------------------------------------------------------------------------------------

    def _send_init(self, group: DhGroup, now: float) -> None:
        known = self._attempts.get(group)
        agreement = new_agreement(group) if known is None else known.agreement
        payloads: tuple[Payload, ...] = (
            self._offer,
            KeyExchange(group, agreement.public),
            Nonce(self._nonce_i),
            signature_hashes(HashAlgorithm),
        )
        if self._context.config.max_datagram is not None:
            payloads = (*payloads, Notify(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED))
        payloads = (*payloads, *self._nat_detection)
        if self._cookie is not None:
            payloads = (self._cookie, *payloads)
        message = encode_message(self._header(ExchangeType.IKE_SA_INIT, 0, response=False), payloads)
        self._attempts[group] = _Attempt(agreement, message)
        self._group = group
        schedule = self._context.config.handshake
        self._request = Request(
            (message,), ExchangeType.IKE_SA_INIT, 0, schedule, now, deadline=self._init_deadline
        )
        self._send((message,), self.port)

    def receive_init(self, header: Header, data: bytes, now: float) -> None:
        """Take an IKE_SA_INIT response with our SPI."""
        if self.state not in (State.INIT_SENT, State.INIT_SIGNING, State.AUTH_SENT):
            self._context.counters["IKE_SA_INIT response too late"] += 1
            return
        try:
            payloads = decode_payloads(header.next_payload, data, HEADER_LENGTH)
            if unsupported_critical(payloads) is not None:
                raise IkeDecodeError("critical payload in a response")
            self._handle_init(header, data, payloads, now)
        except (IkeDecodeError, IkeCryptoError, IkePeerError) as error:
            # Not authenticated, so not the end: the genuine response may still come.
            self._context.counters["IKE_SA_INIT response refused"] += 1
            self._error = f"the peer's IKE_SA_INIT response is not acceptable: {error}"

    def _handle_init(self, header: Header, data: bytes, payloads: Sequence[Payload], now: float) -> None:
        cookie = find_notify(payloads, NotifyType.COOKIE)
        error = find_error(payloads)
        if cookie is None and error is None:
            self._add_candidate(header, data, payloads, now)
        elif self.state is not State.INIT_SENT:
            self._context.counters["IKE_SA_INIT response too late"] += 1
        elif cookie is not None:
            self._return_cookie(cookie, now)
        elif error is not None and error.notify_type == NotifyType.INVALID_KE_PAYLOAD:
            self._change_group(error, now)
        elif error is not None:
            self._note_error(error, now)

    def _return_cookie(self, cookie: Notify, now: float) -> None:
        if not MIN_COOKIE_LENGTH <= len(cookie.data) <= MAX_COOKIE_LENGTH:
            raise IkeDecodeError(f"cookie of {len(cookie.data)} bytes")
        if not self._cookies_left:
            self._error = "the peer is under load: it wants one cookie after the other"
            return
        self._cookies_left -= 1
        self._cookie = Notify(NotifyType.COOKIE, cookie.data)
        self._send_init(self._group, now)

    def _change_group(self, error: Notify, now: float) -> None:
        wanted = int.from_bytes(error.data)
        offered = self._context.config.groups
        if len(error.data) != 2 or wanted not in offered:
            raise IkeDecodeError(f"it wants group {wanted}, which we did not offer")
        # Each group is tried once: forged answers cannot keep us busy.
        if wanted not in self._attempts:
            self._send_init(DhGroup(wanted), now)

    def _note_error(self, error: Notify, now: float) -> None:
        name = notify_name(error.notify_type)
        self._context.counters["IKE_SA_INIT error received"] += 1
        self._error = f"the peer refused our IKE_SA_INIT: {name}"
        if error.notify_type == NotifyType.NO_PROPOSAL_CHOSEN:
            groups = ", ".join(group.name for group in self._context.config.groups)
            self._error += f"; it has none of our ciphers with HMAC-SHA2 and {groups}"
        self._init_deadline = min(self._init_deadline, now + self._context.config.error_grace)
        if self._request is not None:
            self._request.deadline = self._init_deadline

    def _add_candidate(self, header: Header, data: bytes, payloads: Sequence[Payload], now: float) -> None:
        mark = digest(data)
        if mark in self._responses:
            self._context.counters["IKE_SA_INIT response repeated"] += 1
            return
        if len(self._responses) >= self._context.config.candidates:
            self._context.counters["IKE_SA_INIT response too late"] += 1
            return
        candidate = self._examine(header, data, payloads, now)
        self._responses.add(mark)
        self._request = None
        for other in self._candidates:
            if other.spi_r == candidate.spi_r and other.keys.sk_ei == candidate.keys.sk_ei:
                other.peer_messages.append(data)
                other.encapsulated += candidate.encapsulated
                return
        self._candidates.append(candidate)
        self._unsigned.append(candidate)
        self._log_keys(candidate.keys, candidate.spi_r)
        if self.state is State.INIT_SENT:
            self._move(Input.INIT_RESPONSE)
        if len(self._unsigned) == 1:
            self._ask_for_signature(candidate)

    def _examine(self, header: Header, data: bytes, payloads: Sequence[Payload], now: float) -> _Candidate:
        key_exchange = required(payloads, KeyExchange)
        attempt = self._attempts.get(key_exchange.group)
        chosen = self._context.policy.accepts_answer(required(payloads, SecurityAssociation), self._offer)
        if header.spi_r == NO_SPI:
            raise IkeDecodeError("no responder SPI")
        if attempt is None or chosen is None or find(chosen, TransformType.DH) != key_exchange.group:
            raise IkeDecodeError("it chose what we did not offer")
        nonce_r = required(payloads, Nonce).data
        shared = attempt.agreement.load(key_exchange.data)()
        prf, encryption = suite(chosen)
        return _Candidate(
            spi_r=header.spi_r,
            nonce_r=nonce_r,
            keys=IkeKeys.derive(prf, shared, self._nonce_i, nonce_r, self._spi_i, header.spi_r, encryption),
            own_message=attempt.message,
            peer_messages=[data],
            hash=hash_for(self._credentials, read_signature_hashes(payloads)),
            deadline=now + self._context.config.handshake.give_up,
            max_datagram=max_datagram(self._context.config, payloads),
            group=attempt.agreement.group,
            encapsulated=[
                is_wanted(
                    self._context.config,
                    payloads,
                    self._spi_i,
                    header.spi_r,
                    self._context.ours.towards(self.address),
                    self.address,
                    self.port,
                )
            ],
        )

    def _send_as(self, candidate: _Candidate, message: Sequence[bytes]) -> None:
        """Send to the port that the peer told, or to both if it is not known which answer is genuine."""
        for encapsulated in sorted(set(candidate.encapsulated)):
            self._send(message, self._port_after_init(encapsulated))

    def _port_after_init(self, encapsulated: bool) -> int:
        return ENCAPSULATION_PORT if encapsulated else self.port

    # --- the IKE_AUTH request ------------------------------------------------------------------------------

    def _ask_for_signature(self, candidate: _Candidate) -> None:
        self._context.events.append(
            SignatureNeeded(
                self.number,
                candidate.own_message,
                candidate.nonce_r,
                candidate.keys.maced_id(self._credentials.id_i.encode(), initiator=True),
                candidate.hash,
            )
        )

    def signed(self, signature: bytes | None, now: float) -> None:
        if self.state not in (State.INIT_SIGNING, State.AUTH_SENT) or not self._unsigned:
            super().signed(signature, now)
            return
        candidate = self._unsigned.popleft()
        if self._unsigned:
            self._ask_for_signature(self._unsigned[0])
        if candidate not in self._candidates:
            super().signed(signature, now)
        elif signature is None:
            self._forget(candidate, SIGNER_REFUSED, now)
        else:
            self._send_auth(candidate, signature, now)

    def _send_auth(self, candidate: _Candidate, signature: bytes, now: float) -> None:
        first = (Notify(NotifyType.INITIAL_CONTACT),) if self._context.is_first_contact(self) else ()
        header = Header(self._spi_i, candidate.spi_r, ExchangeType.IKE_AUTH, Flag.INITIATOR, _AUTH_MESSAGE_ID)
        data = candidate.protection.seal_all(
            header,
            (
                self._credentials.id_i,
                *self._credentials.certificates,
                *first,
                self._credentials.request,
                digital_signature(authentication_data(self._credentials.key, candidate.hash, signature)),
                *self._child_offer,
            ),
        )
        schedule = self._context.config.handshake
        candidate.request = Request(data, header.exchange, header.message_id, schedule, now)
        if self.state is State.INIT_SIGNING:
            self._move(Input.REQUEST_SIGNED)
        self._send_as(candidate, data)

    # --- the IKE_AUTH response -----------------------------------------------------------------------------

    def _receive_response(self, header: Header, data: bytes, now: float) -> None:
        if self.state is not State.AUTH_SENT:
            if not self._delete_orphan(header, data):
                super()._receive_response(header, data, now)
            return
        if header.exchange != ExchangeType.IKE_AUTH or header.message_id != _AUTH_MESSAGE_ID:
            self._context.counters["response to no request"] += 1
            return
        for candidate in self._candidates:
            if candidate.spi_r == header.spi_r and candidate.request is not None:
                opened = self._open(candidate.protection, header, data)
                if opened is not None:
                    self._last_heard = now
                    self._handle_auth(candidate, opened, now)
                    return

    def _handle_auth(self, candidate: _Candidate, opened: tuple[int, bytes, bytes], now: float) -> None:
        try:
            payloads = decode_payloads(*opened[:2])
            if unsupported_critical(payloads) is not None:
                raise IkeDecodeError("critical payload in a response")
            authentication = one(payloads, Authentication)
            error = find_error(payloads)
            if authentication is None and error is not None:
                self._forget(candidate, refusal(error), now)
                return
            peer = self._authenticate(candidate, payloads)
        except (IkeDecodeError, IkePeerError) as failure:
            self._reject(candidate, failure, now)
            return
        self._adopt(candidate, peer.signed)
        try:
            spi_out, _ = read_child_answer(payloads, self._child_offer[0])
        except (IkeDecodeError, IkePeerError) as failure:
            self._report(str(failure))
            self._delete((), now)
            return
        assert self._child_spi is not None
        child = child_keys(
            candidate.keys, self._nonce_i, candidate.nonce_r, self._child_spi, spi_out, initiator=True
        )
        self._up(peer, child, now)
        if find_notify(payloads, NotifyType.INITIAL_CONTACT) is not None:
            self._context.peer_restarted(self, now)

    def _authenticate(self, candidate: _Candidate, payloads: Sequence[Payload]) -> Peer:
        identification = required(payloads, IdentificationResponder)
        authentication = required(payloads, Authentication)
        certificates = read_certificates(payloads)
        self._peer_certificate = describe_certificates(certificates)
        maced_id = candidate.keys.maced_id(identification.encode(), initiator=False)
        octets = [signed_octets(message, self._nonce_i, maced_id) for message in candidate.peer_messages]
        return authenticate_peer(
            certificates,
            identification,
            authentication,
            octets,
            self._credentials,
            self._context.authenticate,
        )

    # --- candidates ----------------------------------------------------------------------------------------

    def _adopt(self, candidate: _Candidate, signed: int = 0) -> None:
        """Make the candidate the SA's one peer; ``signed`` is the index of the answer that is genuine."""
        self._spi_r = candidate.spi_r
        self.encapsulated = candidate.encapsulated[signed]
        self.port = self._port_after_init(self.encapsulated)
        self._keys = candidate.keys
        self._rekey_group = candidate.group
        self._protection = candidate.protection
        self._orphans = [other for other in self._candidates if other is not candidate and other.request]
        self._candidates.clear()
        self._unsigned.clear()

    def _delete_orphan(self, header: Header, data: bytes) -> bool:
        """Delete what a peer has made of a candidate that we did not need; return whether it was that.

        A peer that got two versions of our IKE_SA_INIT may answer both, and would hold an SA that nobody else
        does. Should the Delete be lost, it finds out by itself.
        """
        if header.exchange != ExchangeType.IKE_AUTH or header.message_id != _AUTH_MESSAGE_ID:
            return False
        for orphan in self._orphans:
            if orphan.spi_r == header.spi_r and self._open(orphan.protection, header, data) is not None:
                self._orphans.remove(orphan)
                delete = Header(
                    self._spi_i,
                    orphan.spi_r,
                    ExchangeType.INFORMATIONAL,
                    Flag.INITIATOR,
                    _AUTH_MESSAGE_ID + 1,
                )
                self._context.counters["superfluous IKE SA deleted"] += 1
                self._send_as(orphan, (orphan.protection.seal(delete, (Delete(ProtocolId.IKE),)),))
                return True
        return False

    def _forget(self, candidate: _Candidate, reason: str, now: float) -> None:
        """Strike the candidate; the last one takes the SA with it."""
        self._candidates.remove(candidate)
        if not self._candidates:
            self._report(reason)
            self._end(now, linger=False)

    def _reject(self, candidate: _Candidate, failure: IkeDecodeError | IkePeerError, now: float) -> None:
        """Strike a candidate that answered wrongly; tell it if it is the last (section 2.21.2)."""
        if len(self._candidates) > 1:
            self._candidates.remove(candidate)
            return
        self._adopt(candidate)
        if isinstance(failure, IkePeerError):
            self._report(str(failure), rule=failure.rule)
            self._delete((Notify(failure.notify, failure.data),), now)
        else:
            self._report(f"the peer sent a malformed IKE_AUTH response: {failure}")
            self._delete((), now)

    def _end(self, now: float, *, linger: bool = True) -> None:
        self._candidates.clear()
        self._unsigned.clear()
        super()._end(now, linger=linger)

    # --- timers --------------------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        if self._candidates:
            return min(candidate.next_timer() for candidate in self._candidates)
        return super().next_timer()

    def on_timer(self, now: float) -> None:
        if self._candidates:
            for candidate in list(self._candidates):
                self._on_candidate_timer(candidate, now)
        elif self.state is State.INIT_SENT and self._request is not None and self._request.is_dead(now):
            self._report(self._error or "the peer does not answer IKE_SA_INIT")
            self._end(now, linger=False)
        else:
            super().on_timer(now)

    def _on_candidate_timer(self, candidate: _Candidate, now: float) -> None:
        if candidate.request is None:
            if now >= candidate.deadline:
                self._forget(candidate, "our signer does not answer", now)
        elif candidate.request.is_dead(now):
            self._forget(candidate, "the peer answered IKE_SA_INIT but does not answer IKE_AUTH", now)
        elif candidate.request.take_due(now):
            self._context.counters["request repeated"] += 1
            self._send_as(candidate, candidate.request.data)
