"""Every message between the supervisor and its children. ``docs/ipc.md`` shows them in CDDL.

Directions: S supervisor, G signer, A abutment, D data plane, P plane. All go through the supervisor, which
checks what it acts upon. Descriptors that travel with a message are named in its docstring.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network
from typing import Any

from minerva.connect.ipc import Message, message
from minerva.core.secret import Secret

# --- all children ------------------------------------------------------------------------------------------


@message(1)
@dataclass(frozen=True, slots=True)
class Ready(Message):
    """Any child → S: I have dropped all privileges and wait for work; ``version`` is ipc.VERSION."""

    version: int


@message(2)
@dataclass(frozen=True, slots=True)
class StatusRequest(Message):
    """S → any child: tell me your state."""

    request: int


@message(3)
@dataclass(frozen=True, slots=True)
class StatusReply(Message):
    """Any child → S: my state, as JSON would hold it."""

    request: int
    state: Any


@message(4)
@dataclass(frozen=True, slots=True)
class Shutdown(Message):
    """S → any child: say goodbye to your peers and end."""


@message(5)
@dataclass(frozen=True, slots=True)
class Identity(Message):
    """S → G, A, P: this node's certificates in PEM. To G and P with [private key, a sealed memory file]."""

    certificate: bytes
    chain: bytes
    anchors: bytes


# --- signer ------------------------------------------------------------------------------------------------


@message(10)
@dataclass(frozen=True, slots=True)
class SignerReady(Message):
    """G → S: the key is loaded and belongs to the certificate, or ``problem`` says why not."""

    problem: str | None


@message(11)
@dataclass(frozen=True, slots=True)
class SignRequest(Message):
    """A → S → G: sign as RFC 7296 section 2.15 says; ``hash`` is an RFC 7427 hash algorithm number."""

    request: int
    message: bytes
    nonce: bytes
    maced_id: bytes
    hash: int


@message(12)
@dataclass(frozen=True, slots=True)
class SignReply(Message):
    """G → S → A: the signature, or null and the reason."""

    request: int
    signature: bytes | None
    reason: str


# --- abutment ----------------------------------------------------------------------------------------------


@message(20)
@dataclass(frozen=True, slots=True)
class AbutmentStart(Message):
    """S → A: begin; number channels and requests above ``first``; with ``key_log`` report session keys.

    The lifetimes of IKE SAs and child SAs are in seconds; ``udp_encapsulation`` is as in the configuration.
    """

    first: int
    key_log: bool
    ike_lifetime: int
    child_lifetime: int
    udp_encapsulation: str


@message(21)
@dataclass(frozen=True, slots=True)
class PortUp(Message):
    """S → A: a port is ready; with [DULL GRASP socket, IKE socket, that of port 4500 if it is open]."""

    port: int
    name: str
    link_local: IPv6Address
    ula: IPv6Address | None


@message(22)
@dataclass(frozen=True, slots=True)
class PortDown(Message):
    """S → A: a port has lost its carrier or is gone; its sockets are of no use."""

    port: int


@message(23)
@dataclass(frozen=True, slots=True)
class ChannelKeys(Message):
    """A → S → D: a channel has a (further) pair of child SAs; the newest that may be is for sending.

    With ``send`` it may be at once. Without, the peer may not have it yet, and it may be as soon as a packet
    has come in on it, or no other is left (RFC 7296 section 2.8); it is for receiving in any case.

    Keys are 32 bytes of AES-256 and 4 of salt. A channel is what connects one port with one peer's
    outer address; it begins with its first pair and ends with its last.
    """

    channel: int
    spi_in: int
    spi_out: int
    key_in: Secret
    key_out: Secret
    send: bool


@message(24)
@dataclass(frozen=True, slots=True)
class ChannelOpen(Message):
    """A → S: a channel to an authenticated peer, with ESP in UDP or not, is about to get its first keys."""

    channel: int
    port: int
    peer: IPv6Address
    peer_name: str
    in_udp: bool


@message(25)
@dataclass(frozen=True, slots=True)
class ChannelKeysGone(Message):
    """A → S → D: this pair of child SAs is deleted."""

    channel: int
    spi_in: int


@message(26)
@dataclass(frozen=True, slots=True)
class ChannelClosed(Message):
    """A → S: the last pair of a channel is gone, or its peer: tell routing at once."""

    channel: int
    reason: str


@message(27)
@dataclass(frozen=True, slots=True)
class DataPlaneLost(Message):
    """S → A: the sending SAs are lost for good; every channel needs fresh ones."""


@message(28)
@dataclass(frozen=True, slots=True)
class Traffic(Message):
    """D → S → A: authenticated packets came in on these channels since the last such message."""

    channels: tuple[int, ...]


@message(29)
@dataclass(frozen=True, slots=True)
class KeyLog(Message):
    """A → S: a line for one of Wireshark's key tables; only sent when the operator asked for it."""

    table: str
    line: str


@message(30)
@dataclass(frozen=True, slots=True)
class NeighbourHeard(Message):
    """A → S: a neighbour announced itself on a port for the first time; for the node's own statistics."""

    port: int
    address: IPv6Address


@message(31)
@dataclass(frozen=True, slots=True)
class ChannelRefused(Message):
    """S → A: the channel cannot be set up on this machine; ``reason`` says why."""

    channel: int
    reason: str


@dataclass(frozen=True, slots=True)
class Route:
    """A unique local address of a neighbour, and its link-local address, which leads there."""

    address: IPv6Address
    via: IPv6Address


@message(32)
@dataclass(frozen=True, slots=True)
class OuterRoutes(Message):
    """A → S: these unique local addresses are of neighbours on this port; all of them, in a stable order."""

    port: int
    routes: tuple[Route, ...]


@message(33)
@dataclass(frozen=True, slots=True)
class OuterRoutesOpened(Message):
    """S → A: it is done; these can be reached now."""

    port: int
    addresses: tuple[IPv6Address, ...]


# --- data plane --------------------------------------------------------------------------------------------


@message(40)
@dataclass(frozen=True, slots=True)
class ChannelAttach(Message):
    """S → D: move packets for this channel; with [TUN, ESP socket].

    After ``rekey_bytes`` bytes under one key it is time for another.
    """

    channel: int
    name: str
    mtu: int
    rekey_bytes: int


@message(41)
@dataclass(frozen=True, slots=True)
class ChannelDetach(Message):
    """S → D: the channel is over: forget its keys and close its descriptors."""

    channel: int


@message(42)
@dataclass(frozen=True, slots=True)
class ChannelFault(Message):
    """D → S → A: the channel cannot send any more under these keys: make fresh ones."""

    channel: int
    reason: str


@message(43)
@dataclass(frozen=True, slots=True)
class ChannelRekey(Message):
    """D → S → A: the channel has sent so much under its keys that it is time to replace them."""

    channel: int


@message(44)
@dataclass(frozen=True, slots=True)
class Hurry(Message):
    """D → S: packets queue up for this process: let it run before others."""


# --- plane -------------------------------------------------------------------------------------------------


@message(50)
@dataclass(frozen=True, slots=True)
class PlaneStart(Message):
    """S → P: begin to route for ``address`` and ``prefix``, and to serve GRASP.

    With [RPL socket of the ACP namespace, listening API socket of the host]. ``machine`` is what the
    inventory tells: name, version, model, serial number. ``est_address`` and ``est_port`` are of the EST
    server that renewed the certificate last, ``::`` and 0 if none has.
    """

    address: IPv6Address
    prefix: IPv6Network
    preference: int
    machine: tuple[str, ...]
    est_address: IPv6Address
    est_port: int


@message(51)
@dataclass(frozen=True, slots=True)
class InterfaceUp(Message):
    """S → P: a channel interface is up; ``rank_factor`` is that of RFC 8994 section 6.12.1.6."""

    interface: int
    name: str
    link_local: IPv6Address
    rank_factor: int


@message(52)
@dataclass(frozen=True, slots=True)
class InterfaceDown(Message):
    """S → P: a channel interface is gone, now."""

    interface: int


@message(53)
@dataclass(frozen=True, slots=True)
class RouteAdd(Message):
    """P → S: route ``prefix`` to ``next_hop`` on ``interface``."""

    prefix: IPv6Network
    interface: int
    next_hop: IPv6Address


@message(54)
@dataclass(frozen=True, slots=True)
class RouteRemove(Message):
    """P → S: forget that route."""

    prefix: IPv6Network
    interface: int


@message(55)
@dataclass(frozen=True, slots=True)
class Crl(Message):
    """P → S → A: the newest CRL of a CA, in DER; whoever gets it checks it."""

    crl: bytes


@message(56)
@dataclass(frozen=True, slots=True)
class Renewed(Message):
    """P → S: the certificate of this node is renewed; keep these certificates and the private key, in PEM.

    And at which EST server, which is asked first the next time (RFC 8994 section 6.2.5).
    """

    certificate: bytes
    chain: bytes
    anchors: bytes
    key: Secret
    address: IPv6Address
    port: int


# --- pledge ------------------------------------------------------------------------------------------------


@message(70)
@dataclass(frozen=True, slots=True)
class PledgeStart(Message):
    """S → pledge: find a domain for this device, by what its maker gave it and by what it was before.

    Certificates are in PEM, and empty where there is none; with [private key of the first kind, of the
    second], each only where there is its certificate, in sealed memory files. ``anchors`` are those by which
    the maker's vouchers are checked. What is called former is a membership whose certificate has expired
    (RFC 8994 section 6.2.5.5).
    """

    certificate: bytes
    chain: bytes
    anchors: bytes
    former_certificate: bytes
    former_chain: bytes
    former_anchors: bytes


@message(71)
@dataclass(frozen=True, slots=True)
class PledgePort(Message):
    """S → pledge: a port is ready; with [DULL GRASP socket, multicast DNS socket, which may be missing]."""

    port: int
    name: str
    link_local: IPv6Address


@message(72)
@dataclass(frozen=True, slots=True)
class PledgeConnect(Message):
    """Pledge → S: connect to the join proxy at this link-local address of a port."""

    request: int
    port: int
    address: IPv6Address
    tcp_port: int


@message(73)
@dataclass(frozen=True, slots=True)
class PledgeSocket(Message):
    """S → pledge: with [TCP socket], which is just being connected; or ``problem`` says why not."""

    request: int
    problem: str | None


@message(74)
@dataclass(frozen=True, slots=True)
class PledgeStep(Message):
    """Pledge → S: how far an attempt is; ``detail`` is for people."""

    port: int
    address: IPv6Address
    step: str
    detail: str


@message(75)
@dataclass(frozen=True, slots=True)
class PledgeEnrolled(Message):
    """Pledge → S: we are a member; keep these certificates and the private key, all in PEM."""

    certificate: bytes
    chain: bytes
    anchors: bytes
    key: Secret


@message(76)
@dataclass(frozen=True, slots=True)
class PledgeDone(Message):
    """Pledge → S: the registrar knows that all is well, or was told in vain; there is no more to do."""


# --- join proxy --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Registrar:
    """Where a registrar is, and for what: ``variation`` is the value of AN_Proxy for it, mostly ``""``."""

    address: IPv6Address
    port: int
    variation: str


@message(80)
@dataclass(frozen=True, slots=True)
class Registrars(Message):
    """P → S → A: these registrars announce themselves in the ACP; all of them, in a stable order."""

    registrars: tuple[Registrar, ...]


@message(81)
@dataclass(frozen=True, slots=True)
class ProxyOpen(Message):
    """A → S: let strangers on this port connect to the TCP ports ``connect``, and to no others.

    Connections that there are already, on the TCP ports ``circuits``, may go on.
    """

    port: int
    connect: tuple[int, ...]
    circuits: tuple[int, ...]


@message(82)
@dataclass(frozen=True, slots=True)
class ProxyOpened(Message):
    """S → A: it is done; with [a bound TCP socket for each of ``connect``]. Those refused are missing."""

    port: int
    connect: tuple[int, ...]


@message(83)
@dataclass(frozen=True, slots=True)
class ProxyConnect(Message):
    """A → S: connect me with a registrar, which must be one that the plane has told of."""

    request: int
    address: IPv6Address
    port: int


@message(84)
@dataclass(frozen=True, slots=True)
class ProxySocket(Message):
    """S → A: with [TCP socket of the ACP namespace, bound to our address, that is connecting to it]."""

    request: int


@message(85)
@dataclass(frozen=True, slots=True)
class ProxyRefused(Message):
    """S → A: there is no such socket; ``reason`` says why."""

    request: int
    reason: str


# --- zygote and guard --------------------------------------------------------------------------------------


@message(60)
@dataclass(frozen=True, slots=True)
class Fork(Message):
    """S → zygote: make a child; with [its end of the connection] or [that end, its network namespace]."""

    role: str
    name: str


@message(61)
@dataclass(frozen=True, slots=True)
class Forked(Message):
    """Zygote → S: the child called ``name`` runs."""

    name: str
    pid: int


@message(62)
@dataclass(frozen=True, slots=True)
class Exited(Message):
    """Zygote → S: a child has ended; ``status`` is its exit code, negative for a signal."""

    pid: int
    status: int


@message(63)
@dataclass(frozen=True, slots=True)
class GuardApply(Message):
    """S → guard: put this table into the host and keep it as long as you live."""

    commands: str


@message(64)
@dataclass(frozen=True, slots=True)
class GuardReady(Message):
    """Guard → S: the table is in place, or ``problem`` says why not."""

    problem: str | None
