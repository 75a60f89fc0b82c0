"""One address for each device, for ever, whoever asks at the same time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from ipaddress import IPv6Address
from itertools import count

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from minerva.brski.registrar import addresses as allocation
from minerva.brski.registrar.addresses import AddressError, assign, assigned, new_id, prepare
from minerva.brski.registrar.database import addresses, counters, open_database, reading, writing
from minerva.brski.registrar.devices import see_device
from minerva.pki.address import AcpAddress, Scheme, ula_global_id

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DOMAIN = "acp.example.com"
REGISTRAR_ID = 0x020000006400

NODE_SCHEMES = [Scheme.ZONE, Scheme.VLONG8, Scheme.VLONG16]


@pytest.fixture
def prepared(engine: Engine) -> Engine:
    with writing(engine) as connection:
        prepare(connection, REGISTRAR_ID)
    return engine


def new_device(connection: Connection, serial_number: str) -> int:
    return see_device(connection, None, serial_number, when=NOW).id


def address_of(connection: Connection, device_id: int) -> AcpAddress:
    name = assigned(connection, device_id, DOMAIN)
    assert name is not None
    assert name.address is not None
    return AcpAddress(name.address)


@pytest.mark.parametrize("scheme", NODE_SCHEMES)
def test_numbers_run_up(prepared: Engine, scheme: Scheme) -> None:
    """covers: 6.11.7.3-3, R-74"""
    with writing(prepared) as connection:
        for number in range(3):
            device_id = new_device(connection, f"device {number}")
            name = assign(connection, device_id, DOMAIN, scheme, when=NOW)
            address = address_of(connection, device_id)
            assert name.address == address.address
            assert (address.scheme, address.node_number, address.v) == (scheme, number, 0)
            assert address.registrar_id == REGISTRAR_ID
            assert address.global_id == ula_global_id(DOMAIN)


def test_a_device_keeps_its_address(prepared: Engine) -> None:
    """covers: R-71, 6.11.7.4-1"""
    with writing(prepared) as connection:
        device_id = new_device(connection, "one")
        assert assigned(connection, device_id, DOMAIN) is None
        first = assign(connection, device_id, DOMAIN, when=NOW)
    with writing(prepared) as connection:
        # Whatever the operator says later.
        assert assign(connection, device_id, DOMAIN, Scheme.VLONG8, "area51", when=NOW) == first


def test_routing_subdomains(prepared: Engine) -> None:
    """covers: 6.11.2-2"""
    with writing(prepared) as connection:
        device_id = new_device(connection, "one")
        name = assign(connection, device_id, DOMAIN, Scheme.ZONE, "Area51.Research", when=NOW)
        assert str(name).endswith("+Area51.Research@acp.example.com")
        kept = assigned(connection, device_id, DOMAIN)
        assert kept is not None
        assert str(kept).endswith("+area51.research@acp.example.com")
        address = address_of(connection, device_id)
        assert address.global_id == ula_global_id("area51.research.acp.example.com")
        # The number goes on: the counter is one for all routing subdomains.
        other = new_device(connection, "two")
        assign(connection, other, DOMAIN, when=NOW)
        assert address_of(connection, other).node_number == 1


def test_two_routing_subdomains_with_one_prefix(prepared: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """covers: 6.11.2-2"""
    monkeypatch.setattr(allocation, "ula_global_id", lambda _: b"12345")
    with writing(prepared) as connection:
        assign(connection, new_device(connection, "one"), DOMAIN, when=NOW)
        with pytest.raises(AddressError, match=r"same ULA prefix as acp.example.com: choose another"):
            assign(connection, new_device(connection, "two"), DOMAIN, rsub="other", when=NOW)


def test_manual_addresses_are_not_for_nodes(prepared: Engine) -> None:
    """covers: 6.11.4-2"""
    with writing(prepared) as connection, pytest.raises(AddressError, match="not for nodes"):
        assign(connection, new_device(connection, "one"), DOMAIN, Scheme.MANUAL, when=NOW)


def test_when_all_numbers_are_used_up_another_registrar_id_is_taken(prepared: Engine) -> None:
    """covers: 6.11.7.2-2"""
    with writing(prepared) as connection:
        connection.execute(
            sa.update(counters).where(counters.c.scheme == "zone").values(next_number=(1 << 15) - 1)
        )
        found = []
        for number in range(3):
            device_id = new_device(connection, f"device {number}")
            assign(connection, device_id, DOMAIN, when=NOW)
            found.append(address_of(connection, device_id))
    assert [address.node_number for address in found] == [(1 << 15) - 1, 0, 1]
    assert found[0].registrar_id == REGISTRAR_ID != found[1].registrar_id == found[2].registrar_id


@pytest.mark.parametrize("what", ["address", "number", "device"])
def test_the_database_itself_refuses_a_second_one(prepared: Engine, what: str) -> None:
    with writing(prepared) as connection:
        one, two = new_device(connection, "one"), new_device(connection, "two")
        name = assign(connection, one, DOMAIN, when=NOW)
    again = {
        "address": str(name.address) if what == "address" else str(IPv6Address("fd00::1")),
        "device_id": one if what == "device" else two,
        "registrar_id": REGISTRAR_ID,
        "scheme": "zone",
        "number": 0 if what == "number" else 7,
        "routing_subdomain": DOMAIN,
        "created": NOW,
    }
    with pytest.raises(sa.exc.IntegrityError), writing(prepared) as connection:
        connection.execute(sa.insert(addresses).values(**again))


def in_threads(work: Callable[[int], None], threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


def check_all(engine: Engine, expected: int) -> None:
    with reading(engine) as connection:
        rows = connection.execute(sa.select(addresses)).all()
    assert len(rows) == expected
    prefixes = {AcpAddress(IPv6Address(row.address)).prefix for row in rows}
    assert len(prefixes) == expected
    numbers = sorted(row.number for row in rows if row.registrar_id == REGISTRAR_ID)
    assert numbers == list(range(len(numbers)))


def test_many_threads(prepared: Engine) -> None:
    """covers: R-74, 6.11.7.2-1"""

    def work(thread: int) -> None:
        for number in range(10):
            with writing(prepared) as connection:
                assign(connection, new_device(connection, f"{thread}/{number}"), DOMAIN, when=NOW)

    in_threads(work, 16)
    check_all(prepared, 160)


def test_one_device_in_many_threads(prepared: Engine) -> None:
    names = []

    def work(_: int) -> None:
        with writing(prepared) as connection:
            names.append(assign(connection, new_device(connection, "one"), DOMAIN, when=NOW))

    in_threads(work, 16)
    assert len(set(map(str, names))) == 1
    check_all(prepared, 1)


def test_many_threads_when_the_numbers_run_out(prepared: Engine) -> None:
    with writing(prepared) as connection:
        connection.execute(sa.update(counters).values(next_number=(1 << 15) - 20))
    ids = count()

    def random_bytes(_: int) -> bytes:
        return (0x30 << 40 | next(ids)).to_bytes(6)

    def work(thread: int) -> None:
        for number in range(5):
            with writing(prepared) as connection:
                device_id = new_device(connection, f"{thread}/{number}")
                assign(connection, device_id, DOMAIN, when=NOW, random_bytes=random_bytes)

    in_threads(work, 16)
    with reading(prepared) as connection:
        rows = connection.execute(sa.select(addresses)).all()
    assert len({row.address for row in rows}) == 80
    # Not one for each thread that found the numbers used up.
    assert len({row.registrar_id for row in rows}) == 2


PROCESS = """
import sys
from tests.brski.registrar.test_addresses import DOMAIN, NOW, new_device
from minerva.brski.registrar.addresses import assign
from minerva.brski.registrar.database import open_database, writing

engine = open_database(sys.argv[1])
for number in range(20):
    with writing(engine) as connection:
        assign(connection, new_device(connection, f"{sys.argv[2]}/{number}"), DOMAIN, when=NOW)
"""


def test_many_processes(prepared: Engine, database_url: str) -> None:
    """covers: R-74, 6.11.7.2-1"""
    running = [
        subprocess.Popen([sys.executable, "-c", PROCESS, database_url, str(number)], stderr=subprocess.PIPE)
        for number in range(4)
    ]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    check_all(prepared, 80)


def test_numbers_survive_a_new_start(prepared: Engine, database_url: str) -> None:
    """covers: 6.11.7.3-3"""
    with writing(prepared) as connection:
        assign(connection, new_device(connection, "one"), DOMAIN, when=NOW)
    prepared.dispose()
    again = open_database(database_url)
    with writing(again) as connection:
        device_id = new_device(connection, "two")
        assign(connection, device_id, DOMAIN, when=NOW)
        assert address_of(connection, device_id).node_number == 1
    again.dispose()


def test_a_new_registrar_id_after_a_restore(prepared: Engine) -> None:
    """covers: 6.11.7.3-3"""
    with writing(prepared) as connection:
        one = new_device(connection, "one")
        assign(connection, one, DOMAIN, when=NOW)
        taken = new_id(connection)
        two = new_device(connection, "two")
        assign(connection, two, DOMAIN, when=NOW)
        assert address_of(connection, one).registrar_id == REGISTRAR_ID
        assert address_of(connection, two).registrar_id == taken != REGISTRAR_ID
        assert address_of(connection, two).node_number == 0
