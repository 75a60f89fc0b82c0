"""What an endpoint reports. ``sa`` is the number that the endpoint gave the IKE SA; none is used twice."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address

from minerva.core.secret import Secret
from minerva.ikev2.constants import EncryptionId, HashAlgorithm
from minerva.pki.membership import Member


class State(Enum):
    """The states of an IKE SA."""

    INIT_SENT = "IKE_SA_INIT sent"
    INIT_SIGNING = "waiting for the signature of our IKE_AUTH request"
    AUTH_SENT = "IKE_AUTH sent"
    HALF_OPEN = "IKE_SA_INIT answered"
    AUTH_SIGNING = "waiting for the signature of our IKE_AUTH response"
    ESTABLISHED = "established"
    REKEYED = "replaced by a new IKE SA"
    DELETING = "deleting"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class SignatureNeeded:
    """The SA waits for ``Endpoint.signed``. The fields are those of ``auth.signed_octets``."""

    sa: int
    message: bytes
    nonce: bytes
    maced_id: bytes
    hash: HashAlgorithm


@dataclass(frozen=True, slots=True)
class ChildKeys:
    """A pair of ESP SAs in tunnel mode for ::/0. Keys are 32 bytes of AES-256 and 4 of salt (RFC 4106).

    ``spi_in`` is in the packets that we receive and ``spi_out`` in those that we send.
    """

    spi_in: int
    spi_out: int
    key_in: Secret
    key_out: Secret
    algorithm: EncryptionId = EncryptionId.ENCR_AES_GCM_16


@dataclass(frozen=True, slots=True)
class Established:
    """The peer is authenticated, and the IKE SA and its child SA are up.

    The SA must be closed when ``member.expires`` has come, and when the certificate is revoked (RFC 8994
    section 6.8.2): that is for the caller, as it takes the calendar. ESP goes in UDP where ``encapsulated``
    (never with ``Config.udp_encapsulation`` off).
    """

    sa: int
    address: IPv6Address
    port: int
    initiator: bool
    member: Member
    child: ChildKeys
    ike_spi_i: bytes
    ike_spi_r: bytes
    encapsulated: bool = False


@dataclass(frozen=True, slots=True)
class ChildUp:
    """A further child SA is there: one that replaces another. Packets must be accepted on it at once.

    ``send`` says whether to send with it at once. If not, the peer may not have it yet: the one before is
    for sending until a packet has come in on this one, or that one is gone (RFC 7296 section 2.8).
    """

    sa: int
    address: IPv6Address
    child: ChildKeys
    send: bool


@dataclass(frozen=True, slots=True)
class ChildGone:
    """A child SA was deleted, but not the last one: that goes with ``Closed``."""

    sa: int
    address: IPv6Address
    spi_in: int


@dataclass(frozen=True, slots=True)
class IkeRekeyed:
    """The IKE SA was replaced by another with these SPIs; its child SAs and its number stay."""

    sa: int
    address: IPv6Address
    initiator: bool
    ike_spi_i: bytes
    ike_spi_r: bytes


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What the peer sent, in words, for an operator to see why two nodes do not trust each other.

    None of it is verified. ``anchors`` are the self-issued ones among the certificates after the first.
    """

    subject: str
    issuer: str
    anchors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """The SA did not come up. ``rule`` is that of the membership check that the peer failed, if it was that.

    ``peer`` is ``None`` where the peer sent no certificate that can be read.
    """

    sa: int
    address: IPv6Address
    initiator: bool
    reason: str
    rule: int | None = None
    peer: PeerCertificate | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    """The SA is over, and its child SA with it; or it was closed by its owner before it was up."""

    sa: int
    address: IPv6Address
    reason: str
    by_peer: bool


@dataclass(frozen=True, slots=True)
class Alive:
    """The peer of an SA answered under the SA's keys after ``Endpoint.check_liveness``: it holds the SA."""

    sa: int
    address: IPv6Address


@dataclass(frozen=True, slots=True)
class Transition:
    """The SA went from one state to another. Strangers' half-open SAs are not reported before IKE_AUTH."""

    sa: int
    address: IPv6Address
    before: State
    after: State


@dataclass(frozen=True, slots=True)
class KeyLog:
    """The keys of an IKE SA, 32 bytes for the cipher and 4 of salt each (only with ``Config.keylog``)."""

    sa: int
    spi_i: bytes
    spi_r: bytes
    sk_ei: Secret
    sk_er: Secret
    algorithm: EncryptionId = EncryptionId.ENCR_AES_GCM_16


Event = (
    SignatureNeeded
    | Established
    | ChildUp
    | ChildGone
    | IkeRekeyed
    | Alive
    | Failed
    | Closed
    | Transition
    | KeyLog
)
