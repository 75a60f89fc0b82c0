"""GRASP through a real network: floods, discovery, negotiation, failures, restarts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from minerva.asa import AsaError, ErrorCode, Objective, Session
from minerva.asa.services import AN_JOIN_REGISTRAR, SRV_EST, est_server, join_registrar, services
from minerva.grasp.constants import GRASP_LISTEN_PORT
from tests.lab.attacker import StandingLab, run, standing_lab, until
from tests.lab.conftest import minerva
from tests.lab.grasp import F_NEG, F_SYNCH, NODES, address, asas, eventually, until_ready

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


def know_all(lab: StandingLab, node: str) -> bool:
    """Return whether the floods with which all nodes began, long before they had a channel, are here."""
    return (lab.status(node)["grasp"] or {}).get("floods") == len(NODES)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    """Five nodes in a line, whose neighbours are all connected.

    The lab is up when all pairs reach each other. By a second later, every node must have been told what the
    others flooded when they started.
    """
    with standing_lab("line:5", "grasp", tmp_path_factory.mktemp("labs")) as lab:
        until(lambda: all(know_all(lab, node) for node in NODES), "all nodes know of all", seconds=1.0)
        until_ready(lab)
        yield lab


# --- floods ------------------------------------------------------------------------------------------------


def test_a_flood_is_everywhere_within_a_second(lab: StandingLab) -> None:
    """
    covers: 6.9.1-1, 6.9.2-6, G2.5.6.2-3, 6.13.5.2-5
    """

    async def main() -> float:
        objective = Objective("EX3", F_SYNCH, 6, {"what": ["ever", 1]})
        async with asas(lab, *NODES) as (first, *others):
            await first.register_objective(objective)
            began = time.monotonic()
            await first.flood(60_000, objective)
            for other in others:
                (tagged,), _ = await eventually(lambda other=other: other.get_flood(objective))
                assert tagged.objective.value == objective.value
                assert tagged.locator is None
            return time.monotonic() - began

    assert asyncio.run(main()) < 1.0


def test_services_for_enrolment_are_known_everywhere(lab: StandingLab) -> None:
    async def main() -> None:
        where = address(lab, "n1")
        async with asas(lab, "n1", "n5") as (registrar, far):
            announced = [est_server(where, 443), join_registrar(where, 8443)]
            for tagged in announced:
                await registrar.register_objective(tagged.objective)
            await registrar.flood(210_000, announced)
            for name, port in ((SRV_EST, 443), (AN_JOIN_REGISTRAR, 8443)):
                asked = Objective(name, F_SYNCH)
                found, _ = await eventually(lambda asked=asked: far.get_flood(asked))
                assert [(item.address, item.port) for item in services(found)] == [(where, port)]

    asyncio.run(main())


def test_a_cut_link_and_what_was_missed(lab: StandingLab) -> None:
    """What is flooded while a link is down is known behind it soon after it is up again."""

    async def main() -> None:
        objective = Objective("EX4", F_SYNCH, 6, "news")
        async with asas(lab, "n1", "n5") as (near, far):
            await near.register_objective(objective)
            ip = ("ip", "-n", lab.host("n3").name, "link", "set", "eth0")
            run(*ip, "down")
            try:
                until(lambda: len(lab.channels("n3")) == 1, "the channel is gone")
                await near.flood(60_000, objective)
                await asyncio.sleep(0.5)
                assert await far.get_flood(objective) == []
            finally:
                run(*ip, "up")
            _, seconds = await eventually(lambda: far.get_flood(objective), 30)
            assert seconds < 30
        until_ready(lab)

    asyncio.run(main())


# --- discovery ---------------------------------------------------------------------------------------------


def test_discovery_from_end_to_end_at_the_first_ask(lab: StandingLab) -> None:
    """
    covers: G2.5.4.4-1, G2.5.4.4-2, G2.5.4.4-3, G2.5.4.4-6, 6.9.2-5, G2.9.5-1
    """

    async def main() -> None:
        objective = Objective("EX5", F_NEG, 6)
        async with asas(lab, "n1", "n5", "n3") as (near, far, between):
            await far.register_objective(objective)
            listening = asyncio.create_task(far.listen_negotiate(objective))
            await asyncio.sleep(0.1)
            (found,) = await near.discover(objective, 600)
            assert found.address == address(lab, "n5")
            assert found.locator.port == GRASP_LISTEN_PORT
            # A node on the way has heard the answer too.
            (cached,) = await between.discover(objective, 0, 1)
            assert cached.address == address(lab, "n5")
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening

    asyncio.run(main())


# --- negotiation -------------------------------------------------------------------------------------------


@asynccontextmanager
async def negotiation(lab: StandingLab, name: str, **options: Any) -> AsyncIterator[tuple[Session, Session]]:
    """A negotiation between the ends of the line: the initiator after the first offer, and the responder."""
    objective = Objective(name, F_NEG, 6, 410)
    async with asas(lab, "n1", "n5") as (near, far):
        await near.register_objective(objective, overlap=True)
        await far.register_objective(objective, overlap=True)

        async def answer() -> Session:
            session = await far.listen_negotiate(objective)
            assert session.value == 410
            return session

        answering = asyncio.create_task(answer())
        await asyncio.sleep(0.1)
        asking = asyncio.create_task(near.negotiate(objective, **options))
        responder = await answering
        offering = asyncio.create_task(responder.offer(80))
        initiator = await asking
        assert initiator.value == 80
        yield initiator, responder
        offering.cancel()
        with contextlib.suppress(asyncio.CancelledError, AsaError):
            await offering


def test_a_negotiation_across_all_hops_that_is_declined(lab: StandingLab) -> None:
    """The session of RFC 8990 appendix A: offers, counter-offers, a delay, and a decline with its reason.

    covers: G2.5.5-1, G2.8.7-1, G2.8.8-1, G2.8.9-1
    """

    async def main() -> None:
        objective = Objective("EX6", F_NEG, 6, 410)
        async with asas(lab, "n1", "n5") as (near, far):
            await near.register_objective(objective)
            await far.register_objective(objective)

            async def respond() -> list[Any]:
                session = await far.listen_negotiate(objective)
                seen = [session.value]
                seen.append((await session.offer(80)).value)
                await session.wait(34_965)
                seen.append((await session.offer(120)).value)
                await session.decline("Insufficient funds")
                return seen

            responding = asyncio.create_task(respond())
            await asyncio.sleep(0.1)
            session = await near.negotiate(objective)
            seen = [session.value]
            seen.append((await session.offer(307)).value)
            with pytest.raises(AsaError) as caught:
                await session.offer(246)
            assert (caught.value.code, caught.value.reason) == (ErrorCode.declined, "Insufficient funds")
            assert session.ended
            assert not session.agreed
            assert seen == [80, 120]
            assert await responding == [410, 307, 246]

    asyncio.run(main())


def test_a_negotiation_that_is_accepted(lab: StandingLab) -> None:
    async def main() -> None:
        async with negotiation(lab, "EX7") as (initiator, responder):
            await initiator.accept()
            assert initiator.agreed
            until_ended = await eventually(lambda: _now(responder.ended))
            assert until_ended[1] < 5
            assert responder.agreed

    asyncio.run(main())


async def _now(value: bool) -> bool:
    return value


def test_a_peer_that_dies_in_the_middle(lab: StandingLab) -> None:
    """The process of the responder ends without a word: the initiator learns of it at once.

    covers: G2.5.5-2
    """

    async def main() -> None:
        objective = Objective("EX8", F_NEG, 6, 1)
        async with asas(lab, "n1", "n5") as (near, dying):
            await near.register_objective(objective)
            await dying.register_objective(objective)
            listening = asyncio.create_task(dying.listen_negotiate(objective))
            await asyncio.sleep(0.1)
            asking = asyncio.create_task(near.negotiate(objective))
            await listening
            await dying.grasp.close()
            with pytest.raises(AsaError) as caught:
                await asyncio.wait_for(asking, 5)
            assert caught.value.code is ErrorCode.noPeer

    asyncio.run(main())


def test_a_node_that_falls_silent_in_the_middle(lab: StandingLab) -> None:
    """The link breaks under a negotiation: TCP gives up, and both sides learn of it, well within a minute."""

    async def main() -> None:
        async with negotiation(lab, "EX9") as (initiator, responder):
            ip = ("ip", "-n", lab.host("n3").name, "link", "set", "eth0")
            run(*ip, "down")
            try:
                with pytest.raises(AsaError) as caught:
                    await asyncio.wait_for(initiator.offer(100), 30)
                assert caught.value.code in (ErrorCode.noPeer, ErrorCode.noNegReply)
                await eventually(lambda: _now(responder.ended), 30)
            finally:
                run(*ip, "up")
        until_ready(lab)

    asyncio.run(main())


# --- restarts ----------------------------------------------------------------------------------------------


def test_the_process_ends_and_everything_comes_back(lab: StandingLab) -> None:
    """The plane of n3 is killed: ASAs there are told, links come back, and what it knew is told it again."""

    async def main() -> None:
        objective = Objective("example.com:kept", F_SYNCH, 6, "still here")
        async with asas(lab, "n1", "n3") as (near, middle):
            await near.register_objective(objective)
            await near.flood(300_000, objective)
            await eventually(lambda: middle.get_flood(objective))
            waiting = asyncio.create_task(middle.discover(Objective("EX1", F_NEG), 60_000))
            await asyncio.sleep(0.1)
            os.kill(lab.processes("n3")["plane"]["pid"], signal.SIGKILL)
            with pytest.raises(AsaError) as caught:
                await asyncio.wait_for(waiting, 10)
            assert caught.value.code is ErrorCode.noSocket
            until_ready(lab)
            async with asas(lab, "n3") as (again,):
                await eventually(lambda: again.get_flood(objective))

    asyncio.run(main())


def test_inventory_lists_the_whole_domain(lab: StandingLab) -> None:
    result = minerva("inventory", "--run-dir", lab.run_dir("n5"), "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert [item["name"] for item in found] == list(NODES)
    assert [item["address"] for item in found] == [str(address(lab, node)) for node in NODES]
    assert all(item["problem"] is None and item["uptime"] is not None for item in found)
    text = minerva("inventory", "--run-dir", lab.run_dir("n1")).stdout
    assert len(text.splitlines()) == 1 + len(NODES)


def test_without_a_node_there_is_no_acp(tmp_path: Path) -> None:
    """
    covers: 6.9.2-3
    """
    result = minerva("inventory", "--run-dir", tmp_path)
    assert result.returncode == 1
    assert "noSecurity" in result.stderr
    assert len(result.stderr.splitlines()) == 1
