"""Who decides, and who begins, between two neighbours (RFC 8994 section 6.6)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address

from minerva.pki.address import AcpAddress, decider_key

INITIATION_DELAY = 2.0
"""How long the end with the higher link-local address waits for the other to begin, in seconds."""


class Role(Enum):
    """What a node is towards one neighbour."""

    DECIDER = "Decider"
    FOLLOWER = "Follower"


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who a neighbour proved to be: its acp-node-name, its ACP address, and its certificate (DER).

    ``address`` is ``None`` where the name holds "0" or an address of a scheme unknown to us. ``certificate``
    is for the operator. That it stands in the table says nothing about it being valid now: every
    connection makes the membership check again.
    """

    node_name: str
    address: AcpAddress | None
    certificate: bytes = b""

    @property
    def node_id(self) -> int | None:
        """The Node-ID in the address, or ``None`` without an address."""
        return None if self.address is None else self.address.node_id


def decide_role(
    own: AcpAddress | None, own_link_local: IPv6Address, peer: AcpAddress | None, peer_link_local: IPv6Address
) -> Role:
    """Return our role towards a neighbour; it comes to the opposite conclusion.

    The higher Node-ID decides (see ``decider_key`` for ties). A node without an address is the Follower of
    one with an address. The RFC leaves two without open: the higher link-local address decides.
    """
    if own is not None and peer is not None:
        decider = decider_key(own) > decider_key(peer)
    elif own is None and peer is None:
        decider = own_link_local > peer_link_local
    else:
        decider = own is not None
    return Role.DECIDER if decider else Role.FOLLOWER


def initiation_delay(own_link_local: IPv6Address, peer_link_local: IPv6Address) -> float:
    """Return how long to wait, in seconds, before initiating to a neighbour just heard.

    Both ends hear each other at about the same time. If one waits, they seldom build two connections.
    """
    return 0.0 if own_link_local < peer_link_local else INITIATION_DELAY
