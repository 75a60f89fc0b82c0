"""How a registrar makes itself known, by a real API socket and a node that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from minerva.asa import Asa, AsaError, TaggedObjective
from minerva.asa.services import Service, est_server, join_registrar, services
from minerva.brski.registrar.announce import Announcer, node_address
from minerva.core.errors import UsageError
from tests.asa.node import FakeNode, fake_node, lone_node

ADDRESS = IPv6Address("fd89:b714:f3db:0:200:0:6400:1")


class Works:
    """Whether the CA works, as a test wants it."""

    def __init__(self) -> None:
        self.now = True

    async def __call__(self) -> bool:
        return self.now


def prepared(node: FakeNode) -> FakeNode:
    node.engine.functions |= {
        "register_asa": lambda _: 7,
        "deregister_asa": lambda _: None,
        "register_objective": lambda _: None,
        "flood": lambda _: None,
        "node": lambda _: {"address": "fd89:b714:f3db:0:200:0:6400:0", "port": 7017},
    }
    return node


def floods(node: FakeNode) -> list[tuple[str, int]]:
    """Return the names and times to live of what has been flooded."""
    calls = [call.arguments for call in node.engine.calls if call.function == "flood"]
    return [(pair[0][0], ttl) for _, ttl, pairs in calls for pair in pairs]


@asynccontextmanager
async def running(announcer: Announcer) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(announcer.run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def announcer(node: Path, works: Works, **options: Any) -> Announcer:
    return Announcer(node, ADDRESS, 8443, works=works, check=0.01, reconnect=0.01, **options)


BOTH = [("AN_join_registrar", 180_000), ("SRV.est", 210_000)]
NEITHER = [("AN_join_registrar", 1), ("SRV.est", 1)]


def test_what_is_flooded_and_that_it_is_taken_back(tmp_path: Path) -> None:
    """
    covers: R-1, R-2, R-3, 6.2.5.1-1, 6.2.5.1-2
    """

    async def scenario() -> None:
        async with fake_node(tmp_path) as bare:
            node = prepared(bare)
            async with running(announcer(node.path, Works())):
                await node.until(lambda: len(floods(node)) >= 2)
                await asyncio.sleep(0.05)
                assert floods(node) == BOTH  # and not again before the period is over
                calls = [call.arguments for call in node.engine.calls if call.function == "flood"]
                assert TaggedObjective.from_cbor(calls[0][2][0]) == join_registrar(ADDRESS, 8443)
                registered = [c.arguments for c in node.engine.calls if c.function == "register_objective"]
                assert [one[4] for one in registered] == [True, True]  # two registrars may share a host
            assert floods(node) == BOTH + NEITHER

    asyncio.run(scenario())


def test_it_is_repeated_and_a_longer_period_lets_others_believe_it_longer(tmp_path: Path) -> None:
    """
    covers: R-1, R-2
    """

    async def scenario() -> None:
        async with fake_node(tmp_path) as bare:
            node = prepared(bare)
            async with running(announcer(node.path, Works(), period=0.06)):
                await node.until(lambda: len(floods(node)) >= 6)
            async with running(announcer(node.path, Works(), period=120)):
                await node.until(lambda: ("SRV.est", 420_000) in floods(node))
                assert ("AN_join_registrar", 360_000) in floods(node)

    asyncio.run(scenario())


def test_a_registrar_whose_ca_does_not_work_is_silent(tmp_path: Path) -> None:
    """
    covers: R-2
    """

    async def scenario() -> None:
        async with fake_node(tmp_path) as bare:
            node, works = prepared(bare), Works()
            works.now = False
            subject = announcer(node.path, works)
            async with running(subject):
                await node.until(lambda: "register_objective" in node.engine.functions_called())
                await asyncio.sleep(0.05)
                assert floods(node) == []
                works.now = True
                await node.until(lambda: subject.announced)
                assert floods(node) == BOTH
                works.now = False
                await node.until(lambda: not subject.announced)
                await node.until(lambda: floods(node) == BOTH + NEITHER)
                works.now = True
                await node.until(lambda: floods(node) == BOTH + NEITHER + BOTH)

    asyncio.run(scenario())


def test_it_waits_for_the_node_and_outlives_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        subject = announcer(tmp_path / "grasp.sock", Works())
        async with running(subject) as task:
            await asyncio.sleep(0.05)
            for _ in range(2):
                async with fake_node(tmp_path) as bare:
                    node = prepared(bare)
                    await node.until(lambda: subject.announced)
                    assert floods(node) == BOTH
                async with asyncio.timeout(5):
                    while subject.announced:
                        await asyncio.sleep(0.01)
            assert not task.done()

    asyncio.run(scenario())


def test_the_address_is_that_of_the_host_and_not_of_the_node(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(AsaError):
            await node_address(tmp_path / "grasp.sock")
        async with fake_node(tmp_path) as bare:
            node = prepared(bare)
            assert await node_address(node.path) == ADDRESS
            node.engine.functions["node"] = lambda _: {"address": "2001:db8::1", "port": 1}
            with pytest.raises(UsageError):
                await node_address(node.path)

    asyncio.run(scenario())


def test_with_the_engine_of_a_node(tmp_path: Path) -> None:
    """What is flooded can be found by ASAs of the node, and is gone when the registrar is.

    covers: R-1, R-2
    """

    async def scenario() -> None:
        async with lone_node(tmp_path) as node, Asa.connect("seeker", node.path) as seeker:
            wanted = [join_registrar(ADDRESS, 8443).objective, est_server(ADDRESS, 8443).objective]

            async def found() -> list[Service]:
                return [one for objective in wanted for one in services(await seeker.get_flood(objective))]

            subject = announcer(node.path, Works())
            async with running(subject):
                while not subject.announced:
                    await asyncio.sleep(0.01)
                assert [(one.objective, one.address, one.port) for one in await found()] == [
                    ("AN_join_registrar", ADDRESS, 8443),
                    ("SRV.est", ADDRESS, 8443),
                ]
            await asyncio.sleep(0.05)
            assert await found() == []

    asyncio.run(scenario())
