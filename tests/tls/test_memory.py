"""The library keeps its memory in C, where Python's tools do not see it: look at the process itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from minerva.tls.connection import TlsConnection
from minerva.tls.errors import TlsError
from minerva.tls.membership import check_peer
from tests.pki.certs import NOW
from tests.tls.ends import ALICE, BOB, carry, connected, ends

CLIENT, SERVER = ALICE.context(), BOB.context()


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(action: Callable[[], object], times: int) -> float:
    """Return by how many bytes each of so many actions makes the process grow, after as many to warm up."""
    for _ in range(min(times, 500)):
        action()
    before = resident()
    for _ in range(times):
        action()
    return (resident() - before) / times


def whole() -> None:
    one, other = connected(CLIENT, SERVER)
    check_peer(one, ALICE.identity, when=NOW)
    one.write(b"hello")
    carry(one, other)
    one.close()
    carry(one, other)


def abandoned() -> None:
    one, other = ends(CLIENT, SERVER)
    other.receive(one.data_to_send())
    other.data_to_send()


def broken() -> None:
    one, other = ends(CLIENT, SERVER)
    other.receive(one.data_to_send())
    with suppress(TlsError):
        one.receive(other.data_to_send()[:-20] + bytes(100))


ACTIONS = pytest.mark.parametrize("action", [whole, abandoned, broken])


@ACTIONS
def test_no_memory_is_lost(action: Callable[[], None]) -> None:
    assert growth(action, 500) < 1024


@pytest.mark.soak
@ACTIONS
def test_no_memory_is_lost_in_10000_handshakes(action: Callable[[], None]) -> None:
    assert growth(action, 10_000) < 64


def test_what_a_half_open_handshake_costs() -> None:
    """Whoever says hello and then nothing keeps no more than this of us, our answer to it included."""
    hello = TlsConnection(CLIENT, server_side=False).data_to_send()
    kept = []

    def half_open() -> None:
        server = TlsConnection(SERVER, server_side=True)
        server.receive(hello)
        kept.append(server)

    assert growth(half_open, 300) < 100_000
    assert not any(server.handshake_done for server in kept)


def test_a_connection_that_is_over_costs_little() -> None:
    """Whoever still holds the object holds no memory of the library any more."""
    kept = []

    def over() -> None:
        one, other = connected(CLIENT, SERVER)
        one.close()
        other.close()
        kept.append((one, other))

    assert growth(over, 300) < 30_000
