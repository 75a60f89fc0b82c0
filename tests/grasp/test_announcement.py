"""What a DULL instance believes of a packet, and how it says its own."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from minerva.core import cbor
from minerva.grasp.announcement import (
    AN_ACP_IKEV2,
    Announcement,
    AnnouncementError,
    Drop,
    channel_methods,
    read_announcements,
)
from minerva.grasp.constants import AN_ACP, AN_PROXY
from minerva.grasp.messages import Flood
from minerva.grasp.options import IPv6Locator

from .examples import LINK_LOCAL, TCP, UDP

OTHER = IPv6Address("fe80::2")


def _read(data: bytes, source: IPv6Address = LINK_LOCAL) -> tuple[Announcement, ...]:
    return read_announcements(data, source)[1]


def _acp(value: Any, locator: Any = ()) -> list[Any]:
    return [["AN_ACP", 4, 1, value], list(locator)]


def _flood(*entries: Any, initiator: bytes = LINK_LOCAL.packed, ttl: int = 210000) -> bytes:
    return cbor.dumps([9, 1, initiator, ttl, *entries])


def test_the_example_of_the_rfc(vectors: Any) -> None:
    """RFC 8994 figure 6: two methods, each with its own port, in one flood.

    covers: 6.4-12, 6.4-14
    """
    data = bytes.fromhex(vectors["grasp_acp"][0]["hex"])
    ttl, announcements = read_announcements(data, LINK_LOCAL)
    assert ttl == 210000
    assert announcements == (
        Announcement(AN_ACP, "IKEv2", UDP, 15000),
        Announcement(AN_ACP, "DTLS", UDP, 17000),
    )
    assert channel_methods(announcements) == {"IKEv2": 15000, "DTLS": 17000}


@pytest.mark.parametrize("index", [1, 2, 3, 4])
def test_the_shapes_of_the_value(vectors: Any, index: int) -> None:
    """A text, ``[method, *extension]`` and ``[[method-name, *param], *extension]``, with a locator or none.

    Parameters and extensions unknown to us are ignored; without a locator the port is 500.

    covers: 6.4-12, 6.4-13
    """
    data = bytes.fromhex(vectors["grasp_acp"][index]["hex"])
    assert _read(data) == (AN_ACP_IKEV2,)


@pytest.mark.parametrize(
    ("value", "method"),
    [
        (["IKEv2"], "IKEv2"),
        (["IKEv2", {"new": 1}, 5], "IKEv2"),
        ([["DTLS", "param"]], "DTLS"),
        ("x-method.2", "x-method.2"),
        ("@_$", "@_$"),
        ([["a"], ["b"]], "a"),
    ],
)
def test_unknown_methods_are_kept_by_name(value: Any, method: str) -> None:
    """A method that we do not speak is no reason to refuse the flood.

    covers: 6.4-13
    """
    assert _read(_flood(_acp(value)))[0].method == method


@pytest.mark.parametrize(
    "value", [None, 5, "", [], [[]], [[["IKEv2"]]], "1x", "x.", "-x", "x y", {"IKEv2": 1}]
)
def test_values_that_name_no_method(value: Any) -> None:
    """What the CDDL of AN_ACP does not allow as a method name."""
    _refused(_flood(_acp(value)), Drop.VALUE)


def test_absent_value() -> None:
    """AN_ACP has a value."""
    _refused(_flood([["AN_ACP", 4, 1], []]), Drop.VALUE)


def test_method_name_takes_no_time() -> None:
    """A text made to hurt a careless regular expression is judged at once."""
    _refused(_flood(_acp("a" + "-." * 800)), Drop.VALUE)


def test_join_proxy() -> None:
    """The AN_Proxy example of RFC 8995, and both objectives in one flood.

    covers: 6.4-16
    """
    address = IPv6Address("fe80::1")
    proxy = [["AN_Proxy", 4, 1, ""], [103, address.packed, 6, 4443]]
    announcements = _read(_flood(proxy, _acp("IKEv2"), initiator=address.packed), address)
    assert announcements == (Announcement(AN_PROXY, "", TCP, 4443), AN_ACP_IKEV2)
    assert channel_methods(announcements) == {"IKEv2": 500}


def _refused(data: bytes, reason: Drop, source: IPv6Address = LINK_LOCAL) -> None:
    with pytest.raises(AnnouncementError) as caught:
        read_announcements(data, source)
    assert caught.value.reason is reason


def test_source_must_be_link_local() -> None:
    """A packet that a router may have forwarded is dropped.

    covers: G2.5.2-rules
    """
    address = IPv6Address("2001:db8::1")
    _refused(_flood(_acp("IKEv2"), initiator=address.packed), Drop.SOURCE, address)


def test_initiator_must_be_the_source() -> None:
    """Nobody announces anybody else.

    covers: 6.4-10, 6.4-11
    """
    _refused(_flood(_acp("IKEv2"), initiator=OTHER.packed), Drop.INITIATOR)
    _refused(_flood(_acp("IKEv2"), initiator=bytes((192, 0, 2, 1))), Drop.INITIATOR)


@pytest.mark.parametrize(
    "locator",
    [
        [103, OTHER.packed, 17, 500],
        [103, LINK_LOCAL.packed, 17, 0],
        [104, bytes((192, 0, 2, 1)), 17, 500],
        [105, "host.example", 17, 500],
        [106, "coaps://host", None, None],
    ],
)
def test_locator_must_be_the_initiator(locator: list[Any]) -> None:
    """A locator is IPv6 and the announcer's own address, so that nobody can be sent against a third party.

    covers: 6.4-11
    """
    _refused(_flood(_acp("IKEv2", locator)), Drop.LOCATOR)


def test_a_unique_local_address_where_that_rule_is_waived() -> None:
    """Of AN_ACP only, beside link-local ones; no other address is let through with it."""

    def read(*entries: Any) -> tuple[Announcement, ...]:
        return read_announcements(_flood(*entries), LINK_LOCAL, unique_local=True)[1]

    ula = IPv6Address("fd12:3456:789a:1::1")
    elsewhere = replace(AN_ACP_IKEV2, address=ula)
    entry = elsewhere.to_entry(LINK_LOCAL)
    assert entry.locator == IPv6Locator(ula, UDP, 500)
    flood = Flood(1, LINK_LOCAL, 210_000, (entry, AN_ACP_IKEV2.to_entry(LINK_LOCAL))).encode()
    _refused(flood, Drop.LOCATOR)
    found = read_announcements(flood, LINK_LOCAL, unique_local=True)[1]
    assert found == (elsewhere, AN_ACP_IKEV2)
    assert read(_acp("IKEv2", [103, ula.packed, 17, 501])) == (replace(elsewhere, port=501),)
    assert channel_methods(found, ula) == channel_methods(found) == {"IKEv2": 500}
    assert channel_methods(found, IPv6Address("fd12::")) == {}
    for address in ("2001:db8::1", "::1", "ff02::1", "fe00::1", "fe80::2", "::ffff:192.0.2.1"):
        with pytest.raises(AnnouncementError) as caught:
            read(_acp("IKEv2", [103, IPv6Address(address).packed, 17, 500]))
        assert caught.value.reason is Drop.LOCATOR
    for bad in ([103, ula.packed, 17, 0], [104, bytes((192, 0, 2, 1)), 17, 500]):
        with pytest.raises(AnnouncementError):
            read(_acp("IKEv2", bad))
    with pytest.raises(AnnouncementError):
        read([["AN_Proxy", 4, 1, ""], [103, ula.packed, 6, 4443]])


@pytest.mark.parametrize("loop_count", [0, 2, 255])
def test_loop_count_must_be_1(loop_count: int) -> None:
    """Also if only one of several objectives has another.

    covers: 6.4-8, G2.5.2-rules
    """
    _refused(_flood(_acp("IKEv2"), [["AN_ACP", 4, loop_count, "DTLS"], []]), Drop.LOOP_COUNT)


def test_other_objectives_discredit_the_message() -> None:
    """RFC 8990 section 2.5.2: any message referring to an objective that does not need this mode.

    covers: G2.5.2-rules
    """
    _refused(_flood(_acp("IKEv2"), [["SRV.est", 4, 1], []]), Drop.OBJECTIVE)


def test_flags() -> None:
    """It must be a synchronization objective; more flags do not hurt."""
    _refused(_flood([["AN_ACP", 1, 1, "IKEv2"], []]), Drop.FLAGS)
    assert _read(_flood([["AN_ACP", 5, 1, "IKEv2"], []])) == (AN_ACP_IKEV2,)


def test_only_floods() -> None:
    """Discovery is silently dropped, as is everything else.

    covers: G2.5.2-rules, G2.8.2-2
    """
    discovery = cbor.dumps([1, 1, LINK_LOCAL.packed, ["AN_ACP", 5, 1, None]])
    for data in (discovery, cbor.dumps([0]), cbor.dumps([99, 1])):
        _refused(data, Drop.MESSAGE_TYPE)
    for data in (b"", b"\xff", b"\x00" * 2049, cbor.dumps([200, 1])):
        _refused(data, Drop.MALFORMED)


def test_packets_of_another_implementation(fixtures: Path) -> None:
    """It floods with a global address as initiator, which 6.4 forbids; everything else is no AN_ACP flood.

    covers: 6.4-10
    """
    reasons = {}
    for line in (fixtures / "grasp-peer" / "messages.jsonl").read_text().splitlines():
        packet = json.loads(line)
        with pytest.raises(AnnouncementError) as caught:
            read_announcements(bytes.fromhex(packet["hex"]), IPv6Address(packet["src"]))
        reasons[packet["kind"]] = caught.value.reason
    floods = {kind: reason for kind, reason in reasons.items() if kind.startswith("M_FLOOD")}
    assert len(floods) == 5
    assert set(floods.values()) == {Drop.INITIATOR}
    assert reasons["M_DISCOVERY_AN_Proxy"] is Drop.MESSAGE_TYPE
    assert reasons["M_REQ_SYN_rplg_syn"] is Drop.SOURCE


def test_what_we_send(vectors: Any) -> None:
    """Our own announcements give the bytes of the RFC's examples.

    covers: 6.4-8, 6.4-10, 6.4-11, 6.4-12
    """

    def flood(*announcements: Announcement) -> str:
        entries = tuple(announcement.to_entry(LINK_LOCAL) for announcement in announcements)
        return Flood(12340815, LINK_LOCAL, 210000, entries).encode().hex()

    with_ports = (Announcement(AN_ACP, "IKEv2", UDP, 15000), Announcement(AN_ACP, "DTLS", UDP, 17000))
    assert flood(*with_ports) == vectors["grasp_acp"][0]["hex"]
    assert flood(AN_ACP_IKEV2) == vectors["grasp_acp"][1]["hex"]
