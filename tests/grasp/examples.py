"""The published GRASP messages: name, hex, and what they say."""

from __future__ import annotations

from ipaddress import IPv6Address

from minerva.grasp.constants import ObjectiveFlag, TransportProto
from minerva.grasp.messages import (
    Discovery,
    End,
    Flood,
    FloodEntry,
    Message,
    Negotiate,
    RequestNegotiation,
    RequestSynchronization,
    Response,
    Synch,
    Wait,
)
from minerva.grasp.options import NO_VALUE, IPv6Locator, Objective

UDP, TCP = TransportProto.IPPROTO_UDP, TransportProto.IPPROTO_TCP
LINK_LOCAL = IPv6Address("fe80::c001:1001:feef:0")
EST = IPv6Address("fd89:b714:f3db:0:200:0:6400:1")
HOST = IPv6Address("2001:db8:f000:baaa:28cc:dc4c:9703:6781")
SYNCH, NEG = ObjectiveFlag.F_SYNCH, ObjectiveFlag.F_NEG
DISC_SYNCH = ObjectiveFlag.F_DISC | ObjectiveFlag.F_SYNCH
DISC_NEG = ObjectiveFlag.F_DISC | ObjectiveFlag.F_NEG


def _acp(value: object, port: int | None) -> FloodEntry:
    locator = None if port is None else IPv6Locator(LINK_LOCAL, UDP, port)
    return FloodEntry(Objective("AN_ACP", SYNCH, 1, value), locator)


def _flood(*entries: FloodEntry) -> Flood:
    return Flood(12340815, LINK_LOCAL, 210000, entries)


def _est(value: object) -> Flood:
    entry = FloodEntry(Objective("SRV.est", SYNCH, 255, value), IPv6Locator(EST, TCP, 443))
    return Flood(12340815, EST, 210000, (entry,))


# In the order of "grasp_acp" in the vectors: RFC 8994 figures 6 and 4, and their variants.
ACP: list[Message] = [
    _flood(_acp("IKEv2", 15000), _acp("DTLS", 17000)),
    _flood(_acp("IKEv2", None)),
    _flood(_acp("IKEv2", 500)),
    _flood(_acp([["IKEv2"]], 500)),
    _flood(_acp([["IKEv2", {"x": 1}], "ext1"], 500)),
    _est(NO_VALUE),
    _est(None),
]


def _ex3(loop_count: int, amount: int) -> Objective:
    return Objective("EX3", DISC_NEG, loop_count, ["NZD", amount])


_SESSION = 13767778

# In the order of "grasp_rfc8990_appA".
APPENDIX_A: list[Message] = [
    Discovery(13948744, HOST, Objective("EX1", DISC_SYNCH, 2, 0)),
    Response(
        13948744,
        HOST,
        60000,
        (IPv6Locator(IPv6Address("2001:db8:f000:baaa:f000:baaa:f000:baaa"), TCP, 49443),),
    ),
    Flood(
        3504974,
        HOST,
        10000,
        (FloodEntry(Objective("EX1", DISC_SYNCH, 2, ["Example 1 value=", 100])),),
    ),
    RequestSynchronization(4038926, Objective("EX2", DISC_SYNCH, 5, 0)),
    Synch(4038926, Objective("EX2", DISC_SYNCH, 5, ["Example 2 value=", 200])),
    RequestNegotiation(802813, Objective("EX3", DISC_NEG, 6, ["NZD", 47])),
    End(802813, accepted=True),
    RequestNegotiation(_SESSION, _ex3(6, 410)),
    Negotiate(_SESSION, _ex3(6, 80)),
    Negotiate(_SESSION, _ex3(5, 307)),
    Wait(_SESSION, 34965),
    Negotiate(_SESSION, _ex3(4, 120)),
    Negotiate(_SESSION, _ex3(3, 246)),
    End(_SESSION, accepted=False, reason="Insufficient funds"),
]

DRAFT_FLOOD = bytes.fromhex(
    "86091a00357b4e5020010db8f000baaa28ccdc4c97036781192710828463455831050282704578616d706c652031"
    "2076616c75653d186480"
)
"""The flood example of draft-15 as printed: an array of six that holds five. The RFC has corrected it."""
