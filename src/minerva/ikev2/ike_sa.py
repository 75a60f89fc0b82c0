"""One IKE SA: its states, its window of one request, its death (RFC 7296 sections 1.4, 2.1 to 2.4).

Theory of operation. An :class:`IkeSa` is born as an ``Initiator`` or a ``Responder`` (in modules of their
own), which do IKE_SA_INIT and IKE_AUTH and differ in all of it, or as the ``Successor`` of another. From
ESTABLISHED on they are all the same, and that is what is here and, for CREATE_CHILD_SA, in ``rekeying``. The
states and what leads from one to another are in ``TRANSITIONS``; each transition is an event, so that an
operator sees where an SA is.

In each direction there is at most one request on its way (a window of one). Our request is repeated by
timer until its response is there or its time is up. The peer's request is handled once, and its
response kept to be repeated whenever the very same request comes again. An SA that has ended lingers in
CLOSED for a while for that last purpose alone.

Only what passes the integrity check is acted upon; all else is counted and forgotten. A message that
passes it and yet is malformed ends the SA, on both sides (section 2.21.3).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from ipaddress import IPv6Address

from minerva.core.addresses import OwnAddresses
from minerva.core.sansio import Datagram
from minerva.ikev2.children import Child, ChildSas, ChildState
from minerva.ikev2.config import Config, Retransmission, UdpEncapsulation
from minerva.ikev2.constants import (
    MIN_ESP_SPI,
    SPI_LENGTH,
    ExchangeType,
    Flag,
    NotifyType,
    ProtocolId,
    notify_name,
)
from minerva.ikev2.credentials import Authenticate, Credentials, Peer
from minerva.ikev2.crypto import IkeKeys
from minerva.ikev2.encapsulation import NON_ESP_MARKER, has_marker
from minerva.ikev2.errors import IkeCryptoError, IkeDecodeError, IkePeerError, IkeUsageError
from minerva.ikev2.events import (
    Alive,
    ChildKeys,
    Closed,
    Established,
    Event,
    Failed,
    KeyLog,
    PeerCertificate,
    State,
    Transition,
)
from minerva.ikev2.exchange import Answer, Request, digest
from minerva.ikev2.message import (
    Header,
    Protection,
    decode_payloads,
    find_error,
    find_notify,
    unsupported_critical,
)
from minerva.ikev2.payloads import Delete, Notify, Payload
from minerva.ikev2.proposals import Policy


class Input(Enum):
    """What moves an SA from one state to another."""

    INIT_RESPONSE = auto()
    AUTH_REQUEST = auto()
    REQUEST_SIGNED = auto()
    AUTHENTICATED = auto()
    REKEYED = auto()
    DELETE = auto()
    END = auto()


TRANSITIONS: dict[tuple[State, Input], State] = {
    (State.INIT_SENT, Input.INIT_RESPONSE): State.INIT_SIGNING,
    (State.INIT_SIGNING, Input.REQUEST_SIGNED): State.AUTH_SENT,
    (State.AUTH_SENT, Input.AUTHENTICATED): State.ESTABLISHED,
    (State.AUTH_SENT, Input.DELETE): State.DELETING,
    (State.HALF_OPEN, Input.AUTH_REQUEST): State.AUTH_SIGNING,
    (State.AUTH_SIGNING, Input.AUTHENTICATED): State.ESTABLISHED,
    (State.AUTH_SIGNING, Input.DELETE): State.DELETING,
    (State.ESTABLISHED, Input.DELETE): State.DELETING,
    (State.ESTABLISHED, Input.REKEYED): State.REKEYED,
    (State.REKEYED, Input.DELETE): State.DELETING,
    **{(state, Input.END): State.CLOSED for state in State if state is not State.CLOSED},
}
"""The state machine. What is not here cannot happen; an attempt raises ``IkeUsageError``."""

NONCE_LENGTH = 32
"""The length of our nonces, in bytes: at least half the key size of any PRF (RFC 7296 section 2.10)."""

SIGNER_REFUSED = "our signer did not sign; its log tells why"

_FATAL = frozenset(
    {NotifyType.AUTHENTICATION_FAILED, NotifyType.INVALID_SYNTAX, NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD}
)
"""The errors that end an IKE SA without a Delete (RFC 7296 section 2.21.2)."""


@dataclass(slots=True)
class Context:
    """What the SAs of one endpoint share. The callables are the endpoint's."""

    ours: OwnAddresses
    config: Config
    policy: Policy
    child_policy: Policy
    credentials: Credentials
    authenticate: Authenticate
    random_bytes: Callable[[int], bytes]
    is_first_contact: Callable[[IkeSa], bool]
    peer_restarted: Callable[[IkeSa, float], None]
    new_spi: Callable[[], bytes]
    add: Callable[[IkeSa], None]
    succeeded: Callable[[IkeSa], None]
    child_spis: set[int] = field(default_factory=set)
    events: deque[Event] = field(default_factory=deque)
    datagrams: list[Datagram] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    ended: list[IkeSa] = field(default_factory=list)

    def new_child_spi(self) -> int:
        """Return an ESP SPI that none of our SAs has. It is taken until that SA ends."""
        while True:
            spi = int.from_bytes(self.random_bytes(4))
            if spi >= MIN_ESP_SPI and spi not in self.child_spis:
                self.child_spis.add(spi)
                return spi

    def earlier(self, lifetime: float) -> float:
        """Return ``lifetime``, shortened at random so that not both sides begin to rekey at once."""
        return lifetime * (1.0 - self.config.rekey_jitter * self.random())

    def random(self) -> float:
        """Return a number from 0 to 1."""
        return int.from_bytes(self.random_bytes(4)) / 2**32


class IkeSa:
    """What both kinds of SA have in common. Times are in seconds of the monotonic clock."""

    def __init__(
        self,
        context: Context,
        number: int,
        spi: bytes,
        address: IPv6Address,
        port: int,
        now: float,
        *,
        initiator: bool,
    ) -> None:
        self.number = number
        self.spi = spi
        self.address = address
        self.port = port
        self.encapsulated = False  # whether ESP goes in UDP
        self.initiator = initiator
        self.created = now
        self.established = now
        self.state = State.INIT_SENT if initiator else State.HALF_OPEN
        self.peer: Peer | None = None
        self._context = context
        # Those of the moment: an SA must not mix two certificates of ours if they change meanwhile.
        self._credentials = context.credentials
        self._spi_i = self._spi_r = bytes(SPI_LENGTH)
        self.children = ChildSas()
        self._child_spi: int | None = None  # that of the handshake
        self._was_up = False
        self._peer_certificate: PeerCertificate | None = None
        self._keys: IkeKeys | None = None
        self._protection: Protection | None = None
        self._next_request_id = 0
        self._expected_request_id = 0
        self._request: Request | None = None
        self._queue: deque[tuple[Payload, ...]] = deque()
        self._answer: Answer | None = None
        self._last_heard = now
        self._expires: float | None = None
        self._visible = initiator
        self._quiet = False  # nothing is to be reported, as another SA stands for the connection
        self._reported = False
        self._in_doubt = False  # the owner waits to hear whether the peer holds this SA

    # --- what the endpoint calls ---------------------------------------------------------------------------

    def receive(self, header: Header, data: bytes, port: int, now: float) -> None:
        """Take a message of any exchange but IKE_SA_INIT that has our SPI in its place."""
        if header.is_response:
            self._receive_response(header, data, now)
        else:
            self._receive_request(header, data, port, now)

    def signed(self, signature: bytes | None, now: float) -> None:  # noqa: ARG002
        """Go on with the signature that was asked for; ``None`` if the signer refused."""
        self._context.counters["signature for an SA that has ended"] += 1

    def close(self, reason: str, now: float) -> None:
        """End the SA: at once for our side, with a Delete for the peer if it is up."""
        if self.state in (State.ESTABLISHED, State.REKEYED):
            self._report(reason)
            self._delete((), now)
        elif self.state not in (State.DELETING, State.CLOSED):
            self._report(reason, closed=True)
            self._end(now, linger=False)

    def drop(self, reason: str, now: float) -> None:
        """Forget an SA that the peer has forgotten."""
        self._report(reason, by_peer=True)
        self._end(now, linger=False)

    def doubt(self, now: float) -> None:
        """Find out for the owner whether the peer holds this SA: ``Alive``, or ``Closed`` in some seconds."""
        self._in_doubt = self.state is State.ESTABLISHED
        self.check_liveness(now)

    def check_liveness(self, now: float) -> None:
        """Probe the peer, unless a request is on its way already."""
        if self.state is State.ESTABLISHED and self._request is None:
            self._context.counters["liveness probe sent"] += 1
            self._send_request((), self._context.config.liveness, now)

    def traffic_seen(self, now: float) -> None:
        """Note that an authentic ESP packet of the child SA came in."""
        self._last_heard = max(self._last_heard, now)

    @property
    def authenticated(self) -> bool:
        """Whether the peer is a member: only then does the SA not count as a stranger's."""
        return self.peer is not None

    def finished(self, now: float) -> bool:
        """Return whether there is nothing left to do for this SA."""
        return self.state is State.CLOSED and (self._expires is None or now >= self._expires)

    def next_timer(self) -> float | None:
        """Return when ``on_timer`` wants to be called."""
        if self._expires is not None:
            return self._expires
        if self._request is not None:
            return self._request.next_timer()
        return self._probe_at()

    def on_timer(self, now: float) -> None:
        """Do what is due."""
        if self._expires is not None:
            if now >= self._expires and self.state is not State.CLOSED:
                self._expired(now)
        elif self._request is not None:
            self._repeat_request(self._request, now)
        elif now >= self._probe_at():
            self.check_liveness(now)

    def _probe_at(self) -> float:
        config = self._context.config
        return self._last_heard + config.liveness_interval + (0.0 if self.initiator else config.liveness_lag)

    # --- requests of ours ----------------------------------------------------------------------------------

    def _header(self, exchange: int, message_id: int, *, response: bool) -> Header:
        flags = (Flag.INITIATOR if self.initiator else 0) | (Flag.RESPONSE if response else 0)
        return Header(self._spi_i, self._spi_r, exchange, flags, message_id)

    def _send(self, message: Sequence[bytes], port: int) -> None:
        if has_marker(self._context.config, port):
            message = [NON_ESP_MARKER + data for data in message]
        self._context.datagrams += [Datagram(data, self.address, port) for data in message]

    def _send_request(
        self,
        payloads: Sequence[Payload],
        schedule: Retransmission,
        now: float,
        *,
        exchange: ExchangeType = ExchangeType.INFORMATIONAL,
        closes: bool = False,
        task: object = None,
    ) -> None:
        assert self._protection is not None
        header = self._header(exchange, self._next_request_id, response=False)
        self._next_request_id += 1
        data = self._protection.seal_all(header, payloads)
        self._request = Request(
            data, header.exchange, header.message_id, schedule, now, closes=closes, task=task
        )
        self._send(data, self.port)

    def _repeat_request(self, request: Request, now: float) -> None:
        if request.is_dead(now):
            alive = self.state is State.ESTABLISHED and self._last_heard > request.started
            if alive and request.age(now) < self._context.config.stalled:
                # The peer's data plane is alive, so the peer is; its IKE may only be busy (section 2.4).
                request.restart(now)
                self._send(request.data, self.port)
                return
            self._context.counters["request not answered"] += 1
            self._report(f"the peer does not answer; nothing heard for {now - self._last_heard:.0f} s")
            self._end(now, linger=False)
        elif request.take_due(now):
            self._context.counters["request repeated"] += 1
            self._send(request.data, self.port)

    def _receive_response(self, header: Header, data: bytes, now: float) -> None:
        request = self._request
        if (
            request is None
            or header.message_id != request.message_id
            or header.exchange != request.exchange
            or self._protection is None
        ):
            self._context.counters["response to no request"] += 1
            return
        opened = self._open(self._protection, header, data)
        if opened is None:
            return
        self._heard(now)
        try:
            payloads = decode_payloads(*opened[:2])
            if (critical := unsupported_critical(payloads)) is not None:
                raise IkeDecodeError(f"critical payload of type {critical}, which we do not know")
            self._handle_response(request, payloads, now)
        except IkeDecodeError as error:
            self._report(f"the peer sent a malformed response: {error}")
            self._end(now)

    def _handle_response(self, request: Request, payloads: Sequence[Payload], now: float) -> None:
        error = find_error(payloads)
        if request.closes:
            self._end(now)
        elif error is not None and error.notify_type in _FATAL:
            self._report(refusal(error), by_peer=True)
            self._end(now)
        else:
            self._request = None
            if request.task is not None:
                self._finish_task(request.task, payloads, now)
            if self._queue and self._request is None:
                self._send_request(self._queue.popleft(), self._context.config.closing, now, closes=True)

    def _finish_task(self, task: object, payloads: Sequence[Payload], now: float) -> None:
        """Handle the response to a request that was sent for ``task``."""
        raise NotImplementedError

    def _delete(self, notifications: tuple[Payload, ...], now: float) -> None:
        """Tell the peer that the SA is deleted, as soon as the window has room."""
        payloads = (*notifications, Delete(ProtocolId.IKE))
        self._move(Input.DELETE)
        self._expires = None
        if self._request is None:
            self._send_request(payloads, self._context.config.closing, now, closes=True)
        else:
            self._queue.append(payloads)

    # --- requests of the peer ------------------------------------------------------------------------------

    def _receive_request(self, header: Header, data: bytes, port: int, now: float) -> None:
        answer = self._answer
        if answer is not None and header.message_id == answer.message_id:
            self._repeat_response(answer, data, port)
            return
        if self.state is State.CLOSED or header.message_id != self._expected_request_id:
            self._context.counters["message ID outside the window"] += 1
            return
        protection = self._request_protection(header, now)
        if protection is None:
            return
        opened = self._open(protection, header, data)
        if opened is None:
            return
        self._expected_request_id += 1
        self._heard(now)
        self._visible = True
        self._answer = Answer(header.exchange, header.message_id, digest(opened[2]), port)
        try:
            payloads = decode_payloads(*opened[:2])
            critical = unsupported_critical(payloads)
            if critical is None:
                self._handle_request(header.exchange, payloads, now)
            elif header.exchange == ExchangeType.CREATE_CHILD_SA:
                # Somebody tries an extension. The exchange fails; what is up stays up.
                self._respond((Notify(NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD, bytes((critical,))),))
            else:
                raise IkePeerError(
                    NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD,
                    f"the peer sent a critical payload of type {critical}, which we do not know",
                    data=bytes((critical,)),
                )
        except IkeDecodeError as error:
            reason = f"the peer sent a malformed request: {error}"
            self._refuse(IkePeerError(NotifyType.INVALID_SYNTAX, reason), now)
        except IkePeerError as error:
            self._refuse(error, now)

    def _request_protection(self, header: Header, now: float) -> Protection | None:  # noqa: ARG002
        """Return what opens a request that is inside the window; ``None`` if none is expected."""
        if self._protection is None:
            self._context.counters["request out of sequence"] += 1
        return self._protection

    def _repeat_response(self, answer: Answer, data: bytes, port: int) -> None:
        if digest(data) != answer.digest:
            self._context.counters["message ID used twice"] += 1
        elif answer.response is not None:
            self._context.counters["response repeated"] += 1
            self._send(answer.response, port)
        else:
            self._context.counters["repeated request while its response is made"] += 1

    def _respond(self, payloads: Sequence[Payload]) -> None:
        answer, protection = self._answer, self._protection
        assert answer is not None
        assert protection is not None
        header = self._header(answer.exchange, answer.message_id, response=True)
        answer.response = protection.seal_all(header, payloads)
        self._send(answer.response, answer.port)

    def _refuse(self, error: IkePeerError, now: float) -> None:
        """Answer a request with an error that ends the SA on both sides."""
        self._respond((Notify(error.notify, error.data),))
        self._report(str(error), rule=error.rule)
        self._end(now)

    def _handle_request(self, exchange: int, payloads: Sequence[Payload], now: float) -> None:
        if exchange == ExchangeType.INFORMATIONAL:
            self._handle_informational(payloads, now)
        elif exchange == ExchangeType.CREATE_CHILD_SA:
            self._respond(self._answer_create_child(payloads, now))
        else:
            raise IkePeerError(
                NotifyType.INVALID_SYNTAX, f"the peer began exchange {exchange} on an SA that is up"
            )

    def _answer_create_child(self, payloads: Sequence[Payload], now: float) -> tuple[Payload, ...]:
        """Return what to answer to a CREATE_CHILD_SA request. Raises :class:`IkeDecodeError`."""
        raise NotImplementedError

    def _handle_informational(self, payloads: Sequence[Payload], now: float) -> None:
        deletes = [payload for payload in payloads if isinstance(payload, Delete)]
        error = find_error(payloads)
        if error is not None and error.notify_type in _FATAL:
            self._respond(())
            self._report(refusal(error), by_peer=True)
            self._end(now)
        elif any(delete.protocol == ProtocolId.IKE for delete in deletes):
            self._respond(())
            self._deleted_by_peer(now)
        else:
            self._delete_children(deletes, now)

    def _deleted_by_peer(self, now: float) -> None:
        self._report("the peer deleted the SA", by_peer=True)
        self._end(now)

    def _delete_children(self, deletes: Sequence[Delete], now: float) -> None:
        """Answer a request with these Delete payloads (section 1.4.1)."""
        raise NotImplementedError

    # --- states and reports --------------------------------------------------------------------------------

    def _open(self, protection: Protection, header: Header, data: bytes) -> tuple[int, bytes, bytes] | None:
        try:
            return protection.open_any(header, data)
        except IkeCryptoError:
            self._context.counters["integrity check failed"] += 1
            return None

    def _heard(self, now: float) -> None:
        """Note that the peer has sent something new under the keys of this SA."""
        self._last_heard = now
        if self._in_doubt:
            self._in_doubt = False
            self._context.events.append(Alive(self.number, self.address))

    def _move(self, what: Input) -> None:
        after = TRANSITIONS.get((self.state, what))
        if after is None:
            raise IkeUsageError(f"{what.name} cannot happen to an SA that is {self.state.value}")
        before, self.state = self.state, after
        if self._visible and not self._quiet:
            self._context.events.append(Transition(self.number, self.address, before, after))

    def _log_keys(self, keys: IkeKeys, spi_r: bytes) -> None:
        if self._context.config.keylog:
            self._context.events.append(
                KeyLog(self.number, self._spi_i, spi_r, keys.sk_ei, keys.sk_er, keys.encryption)
            )

    def _up(self, peer: Peer, child: ChildKeys, now: float) -> None:
        self.peer = peer
        self._child_spi = None
        self._was_up = True
        self._add_child(child, now, ChildState.INSTALLED)
        self.established = self._last_heard = now
        self._expires = None
        self._move(Input.AUTHENTICATED)
        self._context.events.append(
            Established(
                self.number,
                self.address,
                self.port,
                self.initiator,
                peer.member,
                child,
                self._spi_i,
                self._spi_r,
                self.encapsulated,
            )
        )

    def _add_child(self, keys: ChildKeys, now: float, state: ChildState) -> Child:
        config = self._context.config
        due = now + self._context.earlier(config.child_lifetime)
        child = Child(keys, state, due, now + config.child_lifetime + config.rekey_grace)
        self.children.add(child)
        return child

    def _report(
        self, reason: str, *, by_peer: bool = False, closed: bool = False, rule: int | None = None
    ) -> None:
        """Report the end of the SA, once: ``Closed`` if it was up or is ``closed`` by us, else ``Failed``."""
        if self._reported or self._quiet or not self._visible:
            return
        self._reported = True
        event: Event
        if closed or self._was_up:
            event = Closed(self.number, self.address, reason, by_peer)
        else:
            event = Failed(self.number, self.address, self.initiator, reason, rule, self._peer_certificate)
        self._context.events.append(event)

    def _end(self, now: float, *, linger: bool = True) -> None:
        """Go to CLOSED; with ``linger``, our last response may still be asked for."""
        self._move(Input.END)
        self._request = None
        self._queue.clear()
        self._expires = now + (self._context.config.linger if linger else 0.0)
        self._context.ended.append(self)
        if self._child_spi is not None:
            self._context.child_spis.discard(self._child_spi)
        for child in self.children:
            self.children.remove(child)
            self._context.child_spis.discard(child.keys.spi_in)

    def _expired(self, now: float) -> None:
        """Give up a state that may only last for so long."""
        self._report(f"{self.state.value} for too long")
        self._end(now, linger=False)


def max_datagram(config: Config, payloads: Sequence[Payload]) -> int | None:
    """Return how long a datagram may be before it is sent in fragments, to a peer that sent ``payloads``.

    ``None`` if not both can do that (RFC 7383 section 2.3).
    """
    supported = find_notify(payloads, NotifyType.IKEV2_FRAGMENTATION_SUPPORTED) is not None
    if not supported or config.max_datagram is None:
        return None
    marked = config.udp_encapsulation is not UdpEncapsulation.OFF
    return config.max_datagram - (len(NON_ESP_MARKER) if marked else 0)


def refusal(error: Notify) -> str:
    """Return what an operator is told of an error by which the peer ended the SA."""
    hint = (
        "; its log tells which rule our certificate does not meet"
        if error.notify_type == NotifyType.AUTHENTICATION_FAILED
        else ""
    )
    return f"the peer refused us: {notify_name(error.notify_type)}{hint}"
