"""ACP addresses: every published and measured example, and both ends of every field."""

from __future__ import annotations

import hashlib
from ipaddress import IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.pki.address import (
    AcpAddress,
    Scheme,
    decider_key,
    registrar_id_from_mac,
    ula_global_id,
)
from minerva.pki.errors import AddressError

GLOBAL_ID = bytes.fromhex("89b714f3db")
REGISTRAR = 0x020000006400
MAC = registrar_id_from_mac(bytes.fromhex("00163e123456"))
CUT_MAC = registrar_id_from_mac(bytes.fromhex("f2163e123456"))

VECTORS = {
    "zone rfc": AcpAddress.zone(GLOBAL_ID, REGISTRAR, 0),
    "zone rfc EST fix": AcpAddress.zone(GLOBAL_ID, REGISTRAR, 0, v=1),
    "zone node1": AcpAddress.zone(GLOBAL_ID, REGISTRAR, 1),
    "zone node1 V1": AcpAddress.zone(GLOBAL_ID, REGISTRAR, 1, v=1),
    "zone zid5": AcpAddress.zone(GLOBAL_ID, REGISTRAR, 0x7FFF, zone_id=5),
    "manual sub1": AcpAddress.manual(GLOBAL_ID, 1, 1),
    "manual sub0x1fff": AcpAddress.manual(GLOBAL_ID, 0x1FFF, 1),
    "vlong8": AcpAddress.vlong8(GLOBAL_ID, REGISTRAR, 1),
    "vlong8 v255": AcpAddress.vlong8(GLOBAL_ID, REGISTRAR, 1, v=255),
    "vlong16": AcpAddress.vlong16(GLOBAL_ID, REGISTRAR, 1),
    "vlong16 max": AcpAddress.vlong16(GLOBAL_ID, REGISTRAR, 0x7FFF, v=0xFFFF),
    "vlong8 mac 00:16:3e:12:34:56": AcpAddress.vlong8(GLOBAL_ID, MAC, 0x12345),
    "zone mac 00:16:3e:12:34:56": AcpAddress.zone(GLOBAL_ID, MAC, 0x1234),
    "vlong8 mac f2:16:3e:12:34:56": AcpAddress.vlong8(GLOBAL_ID, CUT_MAC, 1),
}


def test_hash_vectors(vectors: Any) -> None:
    """covers: 6.11.2-1, 6.2.2-9"""
    assert vectors["ula_hash"]
    for vector in vectors["ula_hash"]:
        name = vector["routing_subdomain"]
        assert hashlib.sha256(name.encode()).hexdigest() == vector["sha256"]
        assert ula_global_id(name) == bytes.fromhex(vector["global_id"])
        assert ula_global_id(name.upper()) == bytes.fromhex(vector["global_id"])


def test_address_vectors(vectors: Any) -> None:
    """covers: 6.11.2-1, 6.11.3-1, 6.11.4-1, 6.11.5-1, 6.11.7.2-2"""
    assert {vector["name"] for vector in vectors["addresses"]} == set(VECTORS)
    for vector in vectors["addresses"]:
        built = VECTORS[vector["name"]]
        assert built == AcpAddress(IPv6Address(vector["addr"]))
        assert built.address.packed.hex() == vector["hex"]
        assert built.global_id == GLOBAL_ID
        assert built.ula_prefix == IPv6Network("fd89:b714:f3db::/48")
        assert str(built) == vector["addr"]


@pytest.mark.parametrize(
    ("text", "scheme", "prefix_length", "v_bits", "node_id_bits"),
    [
        ("fd89:b714:f3db:0:200:0:6400:2", Scheme.ZONE, 127, 1, 64),
        ("fd89:b714:f3db:2001::1", Scheme.MANUAL, 64, 0, 64),
        ("fd89:b714:f3db:4200:0:6400:0:100", Scheme.VLONG8, 120, 8, 78),
        ("fd89:b714:f3db:4200:0:6400:8001:0", Scheme.VLONG16, 112, 16, 78),
    ],
)
def test_schemes(text: str, scheme: Scheme, prefix_length: int, v_bits: int, node_id_bits: int) -> None:
    """covers: 6.11.3-1, 6.11.4-1, 6.11.5-1"""
    address = AcpAddress(IPv6Address(text))
    assert address.scheme is scheme
    assert address.prefix.prefixlen == prefix_length
    assert address.address in address.prefix
    assert address.v_bits == v_bits
    assert address.node_id_bits == node_id_bits
    assert address.node_id == int(address.address) % 2**node_id_bits


@pytest.mark.parametrize(
    ("hextet", "scheme"),
    [
        ("0", Scheme.ZONE),
        ("1fff", Scheme.ZONE),
        ("2000", Scheme.MANUAL),
        ("3fff", Scheme.MANUAL),
        ("4000", Scheme.VLONG8),
        ("7fff", Scheme.VLONG8),
    ],
)
def test_fourth_hextet(hextet: str, scheme: Scheme) -> None:
    """covers: 6.11.2-1"""
    assert AcpAddress(IPv6Address(f"fd89:b714:f3db:{hextet}::")).scheme is scheme


@pytest.mark.parametrize(
    "text", ["fd89:b714:f3db:8000::", "fd89:b714:f3db:ffff::1", "fc00::1", "2001:db8::1", "::"]
)
def test_not_acp_addresses(text: str) -> None:
    with pytest.raises(AddressError):
        AcpAddress(IPv6Address(text))


def test_fields_that_a_scheme_lacks() -> None:
    vlong, manual = VECTORS["vlong8"], VECTORS["manual sub1"]
    for address, what in (
        (vlong, "zone_id"),
        (vlong, "subnet_id"),
        (manual, "zone_id"),
        (manual, "registrar_id"),
        (manual, "node_number"),
    ):
        with pytest.raises(AddressError, match="has no"):
            getattr(address, what)
    assert manual.subnet_id == 1
    assert manual.v == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: AcpAddress.zone(GLOBAL_ID, 1 << 48, 0),
        lambda: AcpAddress.zone(GLOBAL_ID, 0, 1 << 15),
        lambda: AcpAddress.zone(GLOBAL_ID, 0, 0, zone_id=1 << 13),
        lambda: AcpAddress.zone(GLOBAL_ID, 0, 0, v=2),
        lambda: AcpAddress.zone(GLOBAL_ID, -1, 0),
        lambda: AcpAddress.zone(GLOBAL_ID[:4], 0, 0),
        lambda: AcpAddress.vlong8(GLOBAL_ID, 1 << 46, 0),
        lambda: AcpAddress.vlong8(GLOBAL_ID, 0, 1 << 23),
        lambda: AcpAddress.vlong8(GLOBAL_ID, 0, 0, v=256),
        lambda: AcpAddress.vlong16(GLOBAL_ID, 0, 1 << 15),
        lambda: AcpAddress.vlong16(GLOBAL_ID, 0, 0, v=1 << 16),
        lambda: AcpAddress.manual(GLOBAL_ID, 1 << 13, 0),
        lambda: AcpAddress.manual(GLOBAL_ID, 0, 1 << 64),
        lambda: VECTORS["manual sub1"].with_v(1),
        lambda: registrar_id_from_mac(b"12345"),
    ],
)
def test_fields_out_of_range(make: Any) -> None:
    with pytest.raises(AddressError):
        make()


@given(
    st.binary(min_size=5, max_size=5),
    st.integers(0, 2**48 - 1),
    st.integers(0, 2**15 - 1),
    st.integers(0, 2**13 - 1),
    st.integers(0, 1),
)
def test_zone_round_trip(global_id: bytes, registrar: int, number: int, zone: int, v: int) -> None:
    address = AcpAddress.zone(global_id, registrar, number, zone, v)
    assert address.scheme is Scheme.ZONE
    assert (address.global_id, address.registrar_id, address.node_number) == (global_id, registrar, number)
    assert (address.zone_id, address.v) == (zone, v)
    assert address.node_id == registrar << 16 | number << 1 | v


@given(st.sampled_from([Scheme.VLONG8, Scheme.VLONG16]), st.integers(0, 2**46 - 1), st.data())
def test_vlong_round_trip(scheme: Scheme, registrar: int, data: st.DataObject) -> None:
    make, number_bits, v_bits = {
        Scheme.VLONG8: (AcpAddress.vlong8, 23, 8),
        Scheme.VLONG16: (AcpAddress.vlong16, 15, 16),
    }[scheme]
    number = data.draw(st.integers(0, 2**number_bits - 1))
    v = data.draw(st.integers(0, 2**v_bits - 1))
    address = make(GLOBAL_ID, registrar, number, v)
    assert address.scheme is scheme
    assert (address.registrar_id, address.node_number, address.v) == (registrar, number, v)
    assert address.node_id < 2**78
    assert address.with_v(0).prefix == address.prefix
    assert address.with_v(0).address == address.prefix.network_address


@given(st.binary(min_size=16, max_size=16))
def test_any_address(data: bytes) -> None:
    try:
        address = AcpAddress(IPv6Address(data))
    except AddressError:
        assert data[0] != 0xFD or data[6] & 0x80
        return
    assert address.with_v(address.v) == address
    assert address.address in address.prefix
    assert address.prefix.subnet_of(address.ula_prefix)


def test_v_of_the_host_context() -> None:
    """covers: 6.11.3-1"""
    node = VECTORS["zone node1"]
    assert node.v == 0
    assert str(node.with_v(1)) == "fd89:b714:f3db:0:200:0:6400:3"
    assert node.with_v(1).with_v(0) == node


def test_decider_order() -> None:
    low, high = VECTORS["zone rfc"], VECTORS["zone node1"]
    assert decider_key(low) < decider_key(high)
    # The Node-ID decides before the prefix and the zone do.
    other_prefix = AcpAddress.zone(b"\xff" * 5, REGISTRAR, 0)
    assert decider_key(other_prefix) < decider_key(high)
    assert decider_key(VECTORS["zone zid5"]) > decider_key(high)
    # A tie is decided by the whole address.
    assert decider_key(low) < decider_key(other_prefix)
    # A Vlong Node-ID has 78 bits, and so is above every Zone one unless its Registrar-ID is tiny.
    assert decider_key(VECTORS["vlong8"]) > decider_key(VECTORS["zone zid5"])


@given(st.lists(st.binary(min_size=9, max_size=9), min_size=2, max_size=2, unique=True))
def test_decider_order_is_total(tails: list[bytes]) -> None:
    one, two = (AcpAddress(IPv6Address(b"\xfd" + GLOBAL_ID + b"\x00" + tail)) for tail in tails)
    assert decider_key(one) != decider_key(two)
