"""All IKE SAs of one port (RFC 7296; contract: :mod:`minerva.core.sansio`).

Theory of operation. Each datagram is given to the SA whose SPI it carries, or is an IKE_SA_INIT request and
makes a new SA, or is counted and forgotten. What strangers can have us keep is bounded: from a few half-open
SAs on an initiator must return a cookie before we do any public-key operation for it, one address has only
so many, and at the limit of all the oldest makes room. A request without its cookie costs a hash and a parse.

Unprotected complaints (INVALID_IKE_SPI and the like) are counted and change nothing, and we send none for
unknown SPIs: liveness checks find out in seconds, with nothing to forge. A source address other than the one
that an SA was made with is not followed: there is no NAT on a link, and the address is the neighbour's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

from minerva.core.addresses import OwnAddresses
from minerva.core.sansio import Datagram
from minerva.ikev2.config import Config
from minerva.ikev2.constants import (
    MAJOR_VERSION,
    MAX_INIT_LENGTH,
    MIN_INIT_LENGTH,
    NO_SPI,
    SPI_LENGTH,
    ExchangeType,
    Flag,
    NotifyType,
)
from minerva.ikev2.cookies import CookieJar
from minerva.ikev2.credentials import Authenticate, Credentials
from minerva.ikev2.encapsulation import NON_ESP_MARKER, has_marker, message_in
from minerva.ikev2.errors import IkeCryptoError, IkeDecodeError, IkePeerError
from minerva.ikev2.events import (
    Alive,
    ChildGone,
    ChildKeys,
    ChildUp,
    Closed,
    Established,
    Event,
    Failed,
    IkeRekeyed,
    KeyLog,
    PeerCertificate,
    SignatureNeeded,
    State,
    Transition,
)
from minerva.ikev2.exchange import digest
from minerva.ikev2.ike_sa import Context, IkeSa
from minerva.ikev2.initiator import Initiator
from minerva.ikev2.message import (
    HEADER_LENGTH,
    Header,
    decode_payloads,
    encode_message,
    find_notify,
    required,
    unsupported_critical,
)
from minerva.ikev2.payloads import Nonce, Notify, Payload
from minerva.ikev2.proposals import esp_policy, ike_policy
from minerva.ikev2.rekeying import RekeyingSa
from minerva.ikev2.responder import Responder
from minerva.pki.identity import Identity

__all__ = [
    "Alive",
    "ChildGone",
    "ChildKeys",
    "ChildUp",
    "Closed",
    "Config",
    "Endpoint",
    "Established",
    "Event",
    "Failed",
    "IkeRekeyed",
    "KeyLog",
    "PeerCertificate",
    "SaStatus",
    "SignatureNeeded",
    "State",
    "Transition",
]

_FOR_COOKIE: dict[int, Callable[[bytes], Payload]] = {Nonce.TYPE: Nonce.decode, Notify.TYPE: Notify.decode}
_PEER_MAY_KNOW = frozenset({State.AUTH_SENT, State.ESTABLISHED, State.DELETING})
"""States in which the peer may hold the SA to be up."""


@dataclass(frozen=True, slots=True)
class SaStatus:
    """An IKE SA for an operator to look at. ``established`` is a monotonic time, in seconds."""

    sa: int
    address: IPv6Address
    initiator: bool
    state: State
    established: float | None


class Endpoint:
    """IKEv2 on one port: the initiator and the responder of all its SAs. A core of ``core.sansio``.

    ``address`` is our link-local address; ``ula`` is that to which peers with a unique local one speak, if
    there are such. ``authenticate`` makes the membership check of a peer's
    certificates, with the calendar. ``random_bytes`` makes nonces, SPIs and secrets of cookies; the keys of
    Diffie-Hellman come from the cryptographic library's own generator. ``held_elsewhere`` says whether
    another port has an IKE SA with the node of that name, or with any if the name is ``None``. ``counters``
    tells by reason what was dropped, repeated or refused.

    Raises :class:`~minerva.ikev2.errors.IkeUsageError` if we cannot sign with the kind of key in
    ``identity``.
    """

    def __init__(
        self,
        address: IPv6Address,
        identity: Identity,
        authenticate: Authenticate,
        random_bytes: Callable[[int], bytes],
        config: Config | None = None,
        *,
        ula: IPv6Address | None = None,
        held_elsewhere: Callable[[str | None], bool] = lambda _: False,
    ) -> None:
        self.address = address
        self._ours = OwnAddresses(address, ula)
        self.config = config or Config()
        self._context = Context(
            ours=self._ours,
            config=self.config,
            policy=ike_policy(self.config.prfs, self.config.groups, self.config.ciphers),
            child_policy=esp_policy(self.config.groups),
            credentials=self._credentials_of(identity),
            authenticate=authenticate,
            random_bytes=random_bytes,
            is_first_contact=self._is_first_contact,
            peer_restarted=self._peer_restarted,
            new_spi=self._new_spi,
            add=self._add_successor,
            succeeded=self._succeeded,
        )
        self.counters: Counter[str] = self._context.counters
        self._held_elsewhere = held_elsewhere
        self._cookies = CookieJar(random_bytes, self.config.cookie_lifetime)
        self._error_tokens, self._error_time = float(self.config.error_burst), 0.0
        self._next_number = 1
        # By number, the SA that stands for its connection; by SPI, also its predecessors and successors.
        self._sas: dict[int, RekeyingSa] = {}
        self._by_spi: dict[bytes, RekeyingSa] = {}
        # Responders by (address, port, hash of the request), to tell a repeated request from a new one.
        self._by_request: dict[tuple[IPv6Address, int, bytes], Responder] = {}
        self._request_keys: dict[int, tuple[IPv6Address, int, bytes]] = {}
        # SAs of strangers, the oldest first.
        self._strangers: dict[int, Responder] = {}
        self._strangers_of: Counter[IPv6Address] = Counter()

    # --- for the owner -------------------------------------------------------------------------------------

    def initiate(self, address: IPv6Address, port: int, now: float) -> int:
        """Begin an IKE SA with the peer at ``address`` and ``port``; return its number.

        It ends in ``Established`` or ``Failed``, or in ``Closed`` if it is closed before.
        """
        sa = Initiator(self._context, self._take_number(), self._new_spi(), address, port, now)
        self._add(sa)
        return sa.number

    def signed(self, sa: int, signature: bytes | None, now: float) -> None:
        """Answer the oldest ``SignatureNeeded`` of ``sa``; ``None`` if the signer refused.

        An SA that has ended meanwhile is no error; nor is it for the methods below.
        """
        self._call(sa, lambda it: it.signed(signature, now), now)

    def close(self, sa: int, now: float, reason: str) -> None:
        """End ``sa``: ``Closed`` comes at once, and the peer is told if the SA is up."""
        self._call(sa, lambda it: it.close(reason, now), now)

    def close_all(self, now: float, reason: str = "this node shuts down") -> None:
        """End all SAs as :meth:`close` does."""
        for number in list(self._sas):
            self.close(number, now, reason)

    def check_liveness(self, sa: int, now: float) -> None:
        """Probe the peer of ``sa`` now, as there is reason to doubt that it holds the SA: ``Alive``, or
        ``Closed`` after ``Config.liveness``."""
        self._call(sa, lambda it: it.doubt(now), now)

    def rekey_child(self, sa: int, now: float) -> None:
        """Replace the child SA of ``sa`` as soon as possible, as so much was sent with it."""
        self._call(sa, lambda it: it.rekey_child(now), now)

    def rekey_ike(self, sa: int, now: float) -> None:
        """Replace the IKE SA ``sa`` itself as soon as possible."""
        self._call(sa, lambda it: it.rekey_ike(now), now)

    def traffic_seen(self, sa: int, now: float) -> None:
        """Tell that an ESP packet of ``sa`` was decrypted: the peer lives, and need not be probed."""
        found = self._sas.get(sa)
        if found is not None:
            found.traffic_seen(now)

    def set_identity(self, identity: Identity) -> None:
        """Use ``identity``, a renewed certificate, for all SAs from now on; those there are stay as they are.

        Raises :class:`~minerva.ikev2.errors.IkeUsageError` as the constructor.
        """
        self._context.credentials = self._credentials_of(identity)

    def status(self) -> list[SaStatus]:
        """Return all SAs but those that only linger."""
        return [
            SaStatus(
                sa.number,
                sa.address,
                sa.initiator,
                sa.state,
                sa.established if sa.state is State.ESTABLISHED else None,
            )
            for sa in self._sas.values()
            if sa.state is not State.CLOSED
        ]

    def sizes(self) -> dict[str, int]:
        """Return how many IKE SAs are kept, with those that only linger, and how many SPIs of child SAs."""
        return {"ike_sas": len(self._by_spi), "child_spis": len(self._context.child_spis)}

    # --- for the driver ------------------------------------------------------------------------------------

    def receive(self, data: bytes, address: IPv6Address, port: int, now: float) -> None:
        """Take a datagram that came from ``address`` and ``port``. Never raises for what is in it.

        Unless ``Config.udp_encapsulation`` is off, those to and from port 4500 are those of our port 4500.
        """
        message = message_in(self.config, data, port)
        if message is None:
            self.counters["no IKE message on port 4500"] += 1
            return
        try:
            header = Header.decode(message)
        except IkeDecodeError:
            self.counters["malformed message"] += 1
            return
        if address == self._ours.towards(address) or not port:
            self.counters["no address to answer to"] += 1
        elif header.major_version != MAJOR_VERSION:
            self._receive_other(header, address, port, now)
        elif header.exchange == ExchangeType.IKE_SA_INIT and not header.is_response:
            self._receive_init_request(header, message, address, port, now)
        else:
            self._receive_for_sa(header, message, address, port, now)

    def datagrams_to_send(self, now: float) -> list[Datagram]:  # noqa: ARG002 -- the contract's signature
        """Return, and forget, what is to be sent."""
        datagrams, self._context.datagrams = self._context.datagrams, []
        return datagrams

    def next_timer(self) -> float | None:
        """Return when ``on_timer`` wants to be called, or ``None`` for never."""
        timers = [timer for sa in self._by_spi.values() if (timer := sa.next_timer()) is not None]
        return min(timers, default=None)

    def on_timer(self, now: float) -> None:
        """Do what is due at ``now``."""
        for sa in list(self._by_spi.values()):
            timer = sa.next_timer()
            if timer is not None and timer <= now:
                sa.on_timer(now)
                self._settle(sa, now)

    def next_event(self) -> Event | None:
        """Return, and forget, the oldest event, or ``None``."""
        return self._context.events.popleft() if self._context.events else None

    # --- datagrams -----------------------------------------------------------------------------------------

    def _receive_for_sa(
        self, header: Header, data: bytes, address: IPv6Address, port: int, now: float
    ) -> None:
        sa = self._by_spi.get(header.spi_r if header.from_initiator else header.spi_i)
        if sa is None or sa.initiator is header.from_initiator:
            self.counters["unknown IKE SPI"] += 1
        elif sa.address != address:
            self.counters["other address than that of the SA"] += 1
        elif header.exchange != ExchangeType.IKE_SA_INIT:
            sa.receive(header, data, port, now)
            self._settle(sa, now)
        elif isinstance(sa, Initiator) and header.message_id == 0 and len(data) <= MAX_INIT_LENGTH:
            sa.receive_init(header, data, now)
            self._settle(sa, now)
        else:
            self.counters["malformed IKE_SA_INIT"] += 1

    def _receive_init_request(
        self, header: Header, data: bytes, address: IPv6Address, port: int, now: float
    ) -> None:
        key = (address, port, digest(data))
        known = self._by_request.get(key)
        if known is not None:
            self.counters["IKE_SA_INIT request repeated"] += 1
            known.answer_init(port, now)
            return
        if (
            not MIN_INIT_LENGTH <= len(data) <= MAX_INIT_LENGTH
            or not header.from_initiator
            or header.message_id != 0
            or header.spi_i == NO_SPI
            or header.spi_r != NO_SPI
        ):
            self.counters["malformed IKE_SA_INIT"] += 1
            return
        try:
            if self._wants_cookie(address) and not self._has_cookie(header, data, address, port, now):
                return
            payloads = decode_payloads(header.next_payload, data, HEADER_LENGTH)
            if self._admit(payloads, address, now):
                spi = self._new_spi()
                sa = Responder(
                    self._context, self._take_number(), spi, address, port, now, header, payloads, data
                )
                self._add(sa, key)
        except (IkeDecodeError, IkeCryptoError):
            self.counters["malformed IKE_SA_INIT"] += 1
        except IkePeerError as error:
            self.counters[f"IKE_SA_INIT refused: {error.notify.name}"] += 1
            self._answer_error(header, Notify(error.notify, error.data), address, port, now)

    def _wants_cookie(self, address: IPv6Address) -> bool:
        return (
            len(self._strangers) >= self.config.cookie_threshold
            or self._strangers_of[address] >= self.config.cookie_threshold_per_address
        )

    def _has_cookie(self, header: Header, data: bytes, address: IPv6Address, port: int, now: float) -> bool:
        """Return whether a request returns our cookie; if not, it is answered with one.

        Nothing else in it is looked at before: most of what comes without one is forged.
        """
        payloads = decode_payloads(header.next_payload, data, HEADER_LENGTH, decoders=_FOR_COOKIE)
        nonce, cookie = required(payloads, Nonce).data, find_notify(payloads, NotifyType.COOKIE)
        if cookie is not None and self._cookies.check(cookie.data, header.spi_i, address, nonce, now):
            return True
        self.counters["cookie demanded"] += 1
        fresh = self._cookies.make(header.spi_i, address, nonce, now)
        self._answer(header, Notify(NotifyType.COOKIE, fresh), address, port)
        return False

    def _admit(self, payloads: Sequence[Payload], address: IPv6Address, now: float) -> bool:
        """Return whether a stranger may have a new SA; if not, that is counted, or raised to be answered."""
        critical = unsupported_critical(payloads)
        if critical is not None:
            reason = f"unknown critical payload of type {critical}"
            raise IkePeerError(NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD, reason, data=bytes((critical,)))
        if self._strangers_of[address] >= self.config.half_open_per_address:
            self.counters["too many half-open SAs of one address"] += 1
            return False
        if len(self._strangers) >= self.config.half_open_limit:
            self._evict(now)
        return True

    def _receive_other(self, header: Header, address: IPv6Address, port: int, now: float) -> None:
        self.counters["other IKE version"] += 1
        if header.major_version > MAJOR_VERSION and not header.is_response:
            # The version that we have is in the header of the answer (section 2.5).
            self._answer_error(header, Notify(NotifyType.INVALID_MAJOR_VERSION), address, port, now)

    def _answer_error(
        self, header: Header, notify: Notify, address: IPv6Address, port: int, now: float
    ) -> None:
        """Answer an unauthenticated request with an error, but not too often (section 2.21.4)."""
        elapsed = max(0.0, now - self._error_time)
        self._error_tokens = min(
            float(self.config.error_burst), self._error_tokens + elapsed * self.config.error_rate
        )
        self._error_time = now
        if self._error_tokens < 1.0:
            self.counters["error not answered: rate limit"] += 1
            return
        self._error_tokens -= 1.0
        self._answer(header, notify, address, port)

    def _answer(self, header: Header, notify: Notify, address: IPv6Address, port: int) -> None:
        flags = Flag.RESPONSE | (0 if header.from_initiator else Flag.INITIATOR)
        response = Header(header.spi_i, header.spi_r, header.exchange, flags, header.message_id)
        data = encode_message(response, (notify,))
        if has_marker(self.config, port):
            data = NON_ESP_MARKER + data
        self._context.datagrams.append(Datagram(data, address, port))

    # --- tables --------------------------------------------------------------------------------------------

    def _credentials_of(self, identity: Identity) -> Credentials:
        return Credentials(identity, send_trust_anchor=self.config.send_trust_anchor)

    def _take_number(self) -> int:
        number = self._next_number
        self._next_number += 1
        return number

    def _new_spi(self) -> bytes:
        while True:
            spi = self._context.random_bytes(SPI_LENGTH)
            if spi != NO_SPI and spi not in self._by_spi:
                return spi

    def _add_successor(self, sa: IkeSa) -> None:
        assert isinstance(sa, RekeyingSa)
        self._by_spi[sa.spi] = sa

    def _succeeded(self, sa: IkeSa) -> None:
        assert isinstance(sa, RekeyingSa)
        self._sas[sa.number] = sa

    def _add(self, sa: RekeyingSa, key: tuple[IPv6Address, int, bytes] | None = None) -> None:
        self._sas[sa.number] = self._by_spi[sa.spi] = sa
        if isinstance(sa, Responder) and key is not None:
            self._by_request[key] = sa
            self._request_keys[sa.number] = key
            self._strangers[sa.number] = sa
            self._strangers_of[sa.address] += 1

    def _call(self, number: int, method: Callable[[RekeyingSa], None], now: float) -> None:
        sa = self._sas.get(number)
        if sa is not None:
            method(sa)
            self._settle(sa, now)

    def _settle(self, sa: IkeSa, now: float) -> None:
        """Put the tables right after something happened to ``sa``."""
        if sa.authenticated:
            self._acquaint(sa)
        # Not only the SA itself may have come to its end, but also one that it replaces, or the other way.
        ended, self._context.ended = self._context.ended, []
        for it in dict.fromkeys((sa, *ended)):
            if it.finished(now):
                self._remove(it)

    def _acquaint(self, sa: IkeSa) -> None:
        if self._strangers.pop(sa.number, None) is not None:
            self._strangers_of[sa.address] -= 1
            if not self._strangers_of[sa.address]:
                del self._strangers_of[sa.address]

    def _remove(self, sa: IkeSa) -> None:
        if self._by_spi.pop(sa.spi, None) is None:
            return
        if self._sas.get(sa.number) is sa:
            del self._sas[sa.number]
        if isinstance(sa, Responder):
            self._acquaint(sa)
            key = self._request_keys.pop(sa.number, None)
            if key is not None:
                del self._by_request[key]

    def _evict(self, now: float) -> None:
        """Let the oldest stranger make room. Who is honest and alive needs its half-open SA only briefly."""
        oldest = next(iter(self._strangers.values()))
        self.counters["half-open SA evicted"] += 1
        oldest.close("too many half-open SAs", now)
        self._remove(oldest)

    def _is_first_contact(self, sa: IkeSa) -> bool:
        """Return whether ``sa`` is the only one between the two identities, for certain (section 2.4).

        An ACP has one for every link between them, and a peer of another make would drop all the others. An
        initiator does not know yet with whom it speaks: then any other SA may be with the same node. Who
        is not told so of a restart finds out by probing the old SA, while the new one is used already.
        """
        name = str(sa.peer.member.node_name) if sa.peer is not None else None
        return not self._held_elsewhere(name) and not any(
            other is not sa
            and other.state in _PEER_MAY_KNOW
            and (
                other.address == sa.address
                or sa.peer is None
                or other.peer is None
                or other.peer.member.node_name == sa.peer.member.node_name
            )
            for other in self._sas.values()
        )

    def _peer_restarted(self, sa: IkeSa, now: float) -> None:
        """Drop what the peer of ``sa`` says that it does not hold any more (INITIAL_CONTACT, section 2.4).

        Only what was up before ``sa`` began: with both sides initiating at once, the other SA is as new.
        """
        for other in list(self._sas.values()):
            if (
                other is not sa
                and other.state is State.ESTABLISHED
                and other.established < sa.created
                and other.address == sa.address
                and other.peer is not None
                and sa.peer is not None
                and other.peer.address == sa.peer.address
                and other.peer.member.node_name == sa.peer.member.node_name
            ):
                other.drop("the peer restarted", now)
                self._remove(other)
