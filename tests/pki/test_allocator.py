"""The registrar's memory of the addresses it gave out."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from minerva.pki.address import AcpAddress, Scheme, ula_global_id
from minerva.pki.allocator import AddressAllocator, new_registrar_id
from minerva.pki.errors import AuthorityError

DOMAIN = "acp.example.com"


def test_numbers_run_up_in_each_scheme_by_itself() -> None:
    """covers: 6.11.7.3-3, 6.11.5-1"""
    allocator = AddressAllocator(0x020000006400)
    for number in range(3):
        for scheme in (Scheme.ZONE, Scheme.VLONG8, Scheme.VLONG16):
            address, allocator = allocator.allocate(scheme, DOMAIN)
            assert address.scheme is scheme
            assert address.node_number == number
            assert address.registrar_id == 0x020000006400
            assert address.global_id == ula_global_id(DOMAIN)
            assert address.v == 0


def test_numbers_run_on_across_routing_subdomains() -> None:
    """covers: 6.11.7.2-1"""
    allocator = AddressAllocator(1)
    one, allocator = allocator.allocate(Scheme.ZONE, DOMAIN)
    two, allocator = allocator.allocate(Scheme.ZONE, f"area51.{DOMAIN}")
    assert one.global_id != two.global_id
    assert one.node_id != two.node_id


@pytest.mark.parametrize(
    ("scheme", "last"), [(Scheme.ZONE, 2**15 - 1), (Scheme.VLONG8, 2**23 - 1), (Scheme.VLONG16, 2**15 - 1)]
)
def test_numbers_end(scheme: Scheme, last: int) -> None:
    allocator = AddressAllocator(1)
    allocator = replace(allocator, next_numbers={**allocator.next_numbers, scheme: last})
    address, allocator = allocator.allocate(scheme, DOMAIN)
    assert address.node_number == last
    with pytest.raises(AuthorityError, match="are used up"):
        allocator.allocate(scheme, DOMAIN)


def test_manual_addresses_are_not_for_nodes() -> None:
    """covers: 6.11.4-2"""
    with pytest.raises(AuthorityError, match="not for nodes"):
        AddressAllocator(1).allocate(Scheme.MANUAL, DOMAIN)


def test_colliding_routing_subdomains() -> None:
    """covers: 6.11.2-2"""
    allocator = AddressAllocator(1, subdomains={ula_global_id(DOMAIN).hex(): "other.example.com"})
    with pytest.raises(AuthorityError, match=r"same ULA prefix as other\.example\.com"):
        allocator.allocate(Scheme.ZONE, DOMAIN)


def test_gave() -> None:
    allocator = AddressAllocator(1)
    address, allocator = allocator.allocate(Scheme.VLONG8, DOMAIN)
    assert allocator.gave(address, DOMAIN)
    assert not allocator.gave(address, f"r.{DOMAIN}")
    assert not allocator.gave(address.with_v(1), DOMAIN)
    global_id = ula_global_id(DOMAIN)
    assert not allocator.gave(AcpAddress.vlong8(global_id, 1, 1), DOMAIN)
    assert not allocator.gave(AcpAddress.vlong8(global_id, 2, 0), DOMAIN)
    assert not allocator.gave(AcpAddress.zone(global_id, 1, 0), DOMAIN)
    assert not allocator.gave(AcpAddress.manual(global_id, 1, 0), DOMAIN)


def test_random_registrar_ids() -> None:
    """covers: 6.11.7.2-2"""
    for filler in (b"\x00", b"\xff", b"\x55"):
        registrar_id = new_registrar_id(lambda size, filler=filler: filler * size)  # type: ignore[misc]
        first = registrar_id.to_bytes(6)[0]
        assert first & 0b11000011 == 0b00000010
    assert len({new_registrar_id(os.urandom) for _ in range(100)}) == 100


def test_encoding() -> None:
    _, allocator = AddressAllocator.fresh(os.urandom).allocate(Scheme.VLONG16, DOMAIN)
    assert AddressAllocator.decode(allocator.encode()) == allocator


GOOD = json.loads(AddressAllocator(1).encode())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        json.dumps({**GOOD, "version": 2}).encode(),
        json.dumps({**GOOD, "registrar_id": "1000000000000"}).encode(),
        json.dumps({**GOOD, "registrar_id": "-1"}).encode(),
        json.dumps({**GOOD, "registrar_id": 7}).encode(),
        json.dumps({**GOOD, "next_node_number": {"zone": 1}}).encode(),
        json.dumps({**GOOD, "next_node_number": {"zone": -1, "vlong8": 0, "vlong16": 0}}).encode(),
        json.dumps({**GOOD, "routing_subdomains": []}).encode(),
    ],
)
def test_what_is_no_state(content: bytes) -> None:
    with pytest.raises(AuthorityError, match="not the state"):
        AddressAllocator.decode(content)
