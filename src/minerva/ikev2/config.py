"""What can be set, and every timer and limit, with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from minerva.ikev2.constants import DhGroup, EncryptionId, PrfId

IKE_LIFETIME, CHILD_LIFETIME = 4 * 3600, 3600
"""How long an IKE SA and a child SA are used before they are rekeyed, in seconds."""


class UdpEncapsulation(StrEnum):
    """With whom ESP goes in UDP on port 4500 (:mod:`minerva.ikev2.encapsulation`)."""

    OFF = "off"
    """Never; nobody hears of it."""
    ACCEPT = "accept"
    """With peers that want it."""
    FORCE = "force"
    """With all peers that can."""


@dataclass(frozen=True, slots=True)
class Retransmission:
    """When a request is sent again, in seconds.

    The first repetition comes ``first`` seconds after the request, each further wait is ``factor`` times
    the one before, and the peer counts as dead ``give_up`` seconds after the request. With the defaults a
    request goes out five times: at 0, 0.5, 1.4, 3.0 and 5.9 s.
    """

    first: float = 0.5
    factor: float = 1.8
    give_up: float = 10.0


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of an :class:`~minerva.ikev2.endpoint.Endpoint`. Times are in seconds."""

    groups: tuple[DhGroup, ...] = (
        DhGroup.ECP_256,
        DhGroup.CURVE25519,
        DhGroup.ECP_384,
        DhGroup.ECP_521,
        DhGroup.MODP_2048,
    )
    """Diffie-Hellman groups, the most preferred first. P-256 and X25519 cost the same here, and P-256 is the
    one that every peer must have (RFC 8994 section 6.8.3.1.2); P-384 costs six times as much."""

    ciphers: tuple[EncryptionId, ...] = (EncryptionId.ENCR_AES_GCM_16, EncryptionId.ENCR_CHACHA20_POLY1305)
    """Ciphers of IKE SAs, the most preferred first. (Child SAs have AES-GCM only.)"""

    prfs: tuple[PrfId, ...] = (PrfId.PRF_HMAC_SHA2_256, PrfId.PRF_HMAC_SHA2_384, PrfId.PRF_HMAC_SHA2_512)
    """Pseudorandom functions, the most preferred first."""

    send_trust_anchor: bool = True
    """Whether our trust anchor is sent after our chain, as it helps the peer's operator to see why two nodes
    do not trust each other (RFC 8994 section 6.8.2). To be switched off where its content is confidential."""

    keylog: bool = False
    """Whether ``KeyLog`` events tell the keys of IKE SAs, for decryption of captured packets."""

    max_datagram: int | None = 1232
    """The longest message in one piece, in bytes; longer ones are sent in fragments (RFC 7383) to peers that
    can put them together again. This one fits into a packet of 1,280 bytes, which every IPv6 link carries;
    the kernel's own fragments are what many filters drop. ``None``: do without."""

    udp_encapsulation: UdpEncapsulation = UdpEncapsulation.OFF
    """Whether ESP goes in UDP. The profile of RFC 8994 has ESP as it is, so nobody needs it on a link but for
    peers that have nothing else. Unless it is off the driver has a socket on port 4500 as well."""

    handshake: Retransmission = Retransmission()
    """For IKE_SA_INIT and IKE_AUTH, each. RFC 7296 section 2.4 suggests minutes, for the Internet; here the
    peer is on the same link, and whoever asked for the SA tries again with a back-off of his own."""

    liveness: Retransmission = Retransmission(give_up=6.0)
    """For the probe of an idle peer."""

    liveness_interval: float = 3.0
    """How long nothing authenticated may come from the peer before it is probed."""

    liveness_lag: float = 0.5
    """By how much longer the responder waits, so that not both sides probe at once. With the two above, a
    dead peer is known within 9.5 s (the RPL of the ACP relies on 10)."""

    stalled: float = 30.0
    """How long a request may go unanswered while traffic shows that the peer is alive. It may only be busy,
    or its answers are lost; after that its IKE is taken for dead, or for one that has another SA in mind."""

    closing: Retransmission = Retransmission(give_up=3.0)
    """For the Delete of an SA; a peer that does not confirm it will find out by itself."""

    ike_lifetime: float = IKE_LIFETIME
    """How long an IKE SA is used before it is rekeyed."""

    child_lifetime: float = CHILD_LIFETIME
    """How long a child SA is used before it is rekeyed. (Its owner may want it earlier, by what was sent.)"""

    rekey_jitter: float = 0.2
    """By which part of a lifetime, at most and at random, rekeying begins earlier: it is for the two sides
    not to begin at once (RFC 7296 section 2.8.1)."""

    rekey_retry: float = 1.0
    """How long to wait, on average, after a rekeying that the peer refused for the moment; doubled each
    time, up to 16 times as much."""

    rekey_grace: float = 120.0
    """How long after its lifetime an SA is still used if rekeying does not succeed. Then all is built anew,
    which interrupts the traffic: hence not at once."""

    overlap: float = 0.5
    """For how long after the replacement of a child SA the old one is kept, and for how long after its
    deletion still received on: what is on its way under the old keys must not be lost."""

    successor_lifetime: float = 45.0
    """How long a new IKE SA, made in answer to the peer, may wait for the first sign that the peer has got
    the answer. Then the old one goes on as before. Longer than ``stalled``: a peer that has got the answer
    and cannot make itself heard has given up by then."""

    child_limit: int = 8
    """How many child SAs an IKE SA may have: two in use, while one replaces the other, and those that are
    about to go. More are refused for the moment."""

    linger: float = 10.0
    """How long an ended SA still repeats its last response, should the peer not have got it."""

    error_grace: float = 2.0
    """How long an initiator goes on trying after an error in IKE_SA_INIT: it is not authenticated, so a
    forger may have sent it (RFC 7296 section 2.21.1)."""

    half_open_lifetime: float = 10.0
    """How long after our IKE_SA_INIT response the IKE_AUTH request may come."""

    half_open_limit: int = 256
    """How many SAs strangers may have us keep; at the limit the oldest one makes room."""

    half_open_per_address: int = 8
    """How many SAs one address may have us keep without having authenticated; no more are made."""

    cookie_threshold: int = 16
    """From how many half-open SAs on a stranger must return a cookie first (RFC 7296 section 2.6)."""

    cookie_threshold_per_address: int = 2
    """The same for the half-open SAs of one address: forged requests in the name of an honest neighbour
    must not use up what that neighbour may have."""

    cookie_lifetime: float = 30.0
    """How long a secret makes cookies; they are accepted for as long again."""

    error_rate: float = 10.0
    """How many errors a second, on average, are answered to unauthenticated requests."""

    error_burst: int = 20
    """How many may be answered at once."""

    candidates: int = 4
    """How many different responses to its IKE_SA_INIT an initiator follows up. More than one, so that a
    forged one that comes first does not spoil the handshake (RFC 7296 section 2.4)."""

    cookie_retries: int = 4
    """How many cookies an initiator returns in one handshake."""
