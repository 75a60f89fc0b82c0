"""The numbers of GRASP (RFC 8990 sections 2.6, 2.10.2 and 4), and of its use by the ACP and BRSKI."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from ipaddress import IPv6Address

ALL_GRASP_NEIGHBORS = IPv6Address("ff02::13")
"""Where M_DISCOVERY and M_FLOOD go on a link."""

GRASP_LISTEN_PORT = 7017
"""The UDP port of link-local multicast, and the TCP port of GRASP in the ACP (RFC 8994 section 6.9.2)."""

GRASP_DEF_TIMEOUT = 60_000
"""How long to wait for a counterpart before an operation has failed, in milliseconds."""

GRASP_DEF_LOOPCT = 6
"""The loop count that negotiations and floods start with."""

GRASP_DEF_MAX_SIZE = 2048
"""The longest message that every node must take, and that none sends unasked, in bytes."""

MAX_MULTICAST_SIZE = 1280 - 40 - 8
"""The longest message that fits into an IPv6 packet of 1280 bytes over UDP (section 2.5.3), in bytes."""

MAX_UINT32 = 0xFFFF_FFFF
"""The largest Session ID, and the largest time in milliseconds."""


class MessageType(IntEnum):
    """MESSAGE_TYPE."""

    M_NOOP = 0
    M_DISCOVERY = 1
    M_RESPONSE = 2
    M_REQ_NEG = 3
    M_REQ_SYN = 4
    M_NEGOTIATE = 5
    M_END = 6
    M_WAIT = 7
    M_SYNCH = 8
    M_FLOOD = 9
    M_INVALID = 99


class OptionType(IntEnum):
    """The first element of a GRASP option."""

    O_DIVERT = 100
    O_ACCEPT = 101
    O_DECLINE = 102
    O_IPv6_LOCATOR = 103
    O_IPv4_LOCATOR = 104
    O_FQDN_LOCATOR = 105
    O_URI_LOCATOR = 106


class ObjectiveFlag(IntFlag):
    """objective-flags. The CDDL numbers the bits 0 to 3; these are their values."""

    F_DISC = 1
    F_NEG = 2
    F_SYNCH = 4
    F_NEG_DRY = 8


class TransportProto(IntEnum):
    """transport-proto of a locator."""

    IPPROTO_TCP = 6
    IPPROTO_UDP = 17


AN_ACP = "AN_ACP"
"""The objective by which ACP nodes find each other (RFC 8994 section 6.4)."""

AN_PROXY = "AN_Proxy"
"""The objective by which a pledge finds a join proxy (RFC 8995 section 4.1.1)."""

IKEV2 = "IKEv2"
"""The AN_ACP method name of IKEv2 for IPsec."""

IKEV2_PORT = 500
"""The UDP port that an AN_ACP objective for IKEv2 without a locator means."""
