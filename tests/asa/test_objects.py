"""ASAs of one node, on connections of their own, talk to each other: the real engine, no neighbour."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from cbor2 import CBORTag

from minerva.asa import (
    Asa,
    AsaError,
    AsaLocator,
    ErrorCode,
    Grasp,
    IPv6Locator,
    Objective,
    ObjectiveFlag,
    Session,
    TaggedObjective,
    TransportProto,
    encoded,
)
from tests.asa.node import ADDRESS, LoneNode, lone_node

NEGOTIABLE = Objective("alms", ObjectiveFlag.F_NEG)
SYNCHRONIZED = Objective("motd", ObjectiveFlag.F_SYNCH, value="hello")


def run(run_dir: Path, test: Callable[[LoneNode, Asa, Asa], Awaitable[None]]) -> None:
    """Run ``test`` with a node and two ASAs that have a connection each."""

    async def main() -> None:
        async with (
            lone_node(run_dir) as node,
            Asa.connect("one", node.path) as one,
            Asa.connect("two", node.path) as two,
            asyncio.timeout(20),
        ):
            await test(node, one, two)

    asyncio.run(main())


def code_of(caught: pytest.ExceptionInfo[AsaError]) -> ErrorCode:
    return caught.value.code


def asking(value: Any, *, dry: bool = False, loop_count: int = 6) -> Objective:
    flags = ObjectiveFlag.F_NEG | (ObjectiveFlag.F_NEG_DRY if dry else ObjectiveFlag(0))
    return Objective("alms", flags, loop_count, value)


async def listens(asa: Asa) -> None:
    """Wait until somebody listens; connections are independent of each other."""
    while not await asa.discover(NEGOTIABLE, 0):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def responder(asa: Asa, answer: Callable[[Session], Awaitable[None]]) -> Any:
    """Let the ASA answer negotiations in the background."""

    async def serve() -> None:
        while True:
            async with await asa.listen_negotiate(NEGOTIABLE) as session:
                await answer(session)

    await asa.register_objective(NEGOTIABLE)
    task = asyncio.ensure_future(serve())
    await listens(asa)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_discovery_finds_what_listens(tmp_path: Path) -> None:
    async def test(_: LoneNode, one: Asa, two: Asa) -> None:
        await one.register_objective(SYNCHRONIZED)
        assert await two.discover(SYNCHRONIZED, 50) == []
        await one.listen_synchronize(SYNCHRONIZED)
        for timeout in (0, 50):
            (found,) = await two.discover(SYNCHRONIZED, timeout)
            assert found.locator == IPv6Locator(ADDRESS, TransportProto.IPPROTO_TCP, 7017)
        await one.stop_listen_synchronize(SYNCHRONIZED)
        assert await two.discover(SYNCHRONIZED, 0) == []

    run(tmp_path, test)


@pytest.mark.parametrize(
    "value", ["hello", None, CBORTag(24, b"\x18\x2a"), encoded(b"\x9f\xff"), {"a": [1.5]}]
)
def test_synchronization(tmp_path: Path, value: Any) -> None:
    async def test(_: LoneNode, one: Asa, two: Asa) -> None:
        await one.register_objective(SYNCHRONIZED)
        await one.listen_synchronize(Objective("motd", ObjectiveFlag.F_SYNCH, value=value))
        assert (await two.synchronize(SYNCHRONIZED)).value == value
        peer = AsaLocator(IPv6Locator(ADDRESS, TransportProto.IPPROTO_TCP, 7017))
        assert (await two.synchronize(SYNCHRONIZED, peer)).value == value
        await one.listen_synchronize(Objective("motd", ObjectiveFlag.F_SYNCH, value="changed"))
        assert (await two.synchronize(SYNCHRONIZED)).value == "changed"

    run(tmp_path, test)


def test_a_flood_is_for_all(tmp_path: Path) -> None:
    async def test(_: LoneNode, one: Asa, two: Asa) -> None:
        await one.register_objective(SYNCHRONIZED)
        await one.flood(60_000, SYNCHRONIZED)
        (copy,) = await two.get_flood(SYNCHRONIZED)
        assert (copy.objective.value, copy.locator) == ("hello", None)
        assert (await two.synchronize(SYNCHRONIZED)).value == "hello"
        locator = AsaLocator(IPv6Locator(IPv6Address("fd00::5"), TransportProto.IPPROTO_TCP, 443))
        await one.flood(60_000, [TaggedObjective(SYNCHRONIZED, locator)])
        locators = [copy.locator for copy in await two.get_flood(SYNCHRONIZED)]
        assert IPv6Address("fd00::5") in [found.address for found in locators if found is not None]
        for copy in await two.get_flood(SYNCHRONIZED):
            await two.expire_flood(copy)
        assert await two.get_flood(SYNCHRONIZED) == []

    run(tmp_path, test)


def test_a_negotiation_accepted_at_once(tmp_path: Path) -> None:
    async def accept(session: Session) -> None:
        await session.accept()
        assert (session.ended, session.agreed) == (True, True)

    async def test(_: LoneNode, one: Asa, two: Asa) -> None:
        async with responder(one, accept):
            session = await two.negotiate(asking(410))
            assert (session.ended, session.agreed, session.value) == (True, True, 410)
            with pytest.raises(AsaError) as caught:
                await session.offer(1)
            assert code_of(caught) is ErrorCode.noSession

    run(tmp_path, test)


def test_a_negotiation_with_counter_offers_and_a_wait(tmp_path: Path) -> None:
    async def haggle(session: Session) -> None:
        assert session.value == 410
        answer = await session.offer(80)
        assert answer.value == 307
        await session.wait(5000)
        answer = await session.step(Objective("alms", ObjectiveFlag.F_NEG, 99, 120))
        assert session.agreed
        assert answer.value == 120

    async def test(_: LoneNode, one: Asa, two: Asa) -> None:
        async with responder(one, haggle):
            async with await two.negotiate(asking(410)) as session:
                assert (session.value, session.ended, session.objective.loop_count) == (80, False, 5)
                offer = await session.offer(307)
                assert (offer.value, offer.loop_count, session.ended) == (120, 3, False)
                await session.accept()
            assert session.agreed

    run(tmp_path, test)


def test_a_negotiation_declined(tmp_path: Path) -> None:
    async def decline(session: Session) -> None:
        if session.value == 1:
            await session.decline("too little")
        elif session.value == 2:
            await session.offer(3)
        # else leaves it: the session is declined for it

    async def test(_: LoneNode, one: Asa, two: Asa) -> None:
        async with responder(one, decline):
            with pytest.raises(AsaError) as caught:
                await two.negotiate(asking(1))
            assert (code_of(caught), caught.value.reason) == (ErrorCode.declined, "too little")
            with pytest.raises(AsaError) as caught:
                await two.negotiate(asking(5))
            assert (code_of(caught), caught.value.reason) == (ErrorCode.declined, "broken off")
            session = await two.negotiate(asking(2))
            await session.decline("changed my mind")
            assert (session.ended, session.agreed) == (True, False)

    run(tmp_path, test)


def test_a_dry_run_stays_one(tmp_path: Path) -> None:
    async def counter(session: Session) -> None:
        assert session.objective.flags & ObjectiveFlag.F_NEG_DRY
        with contextlib.suppress(AsaError):
            await session.offer(3)

    async def test(_: LoneNode, one: Asa, two: Asa) -> None:
        async with responder(one, counter), await two.negotiate(asking(1, dry=True)) as session:
            with pytest.raises(AsaError) as caught:
                await session.step(asking(2))
            assert code_of(caught) is ErrorCode.notDry
            assert not session.ended
            await session.accept()

    run(tmp_path, test)


def test_the_loop_count_ends_a_quarrel(tmp_path: Path) -> None:
    async def insist(session: Session) -> None:
        with contextlib.suppress(AsaError):
            while not session.ended:
                await session.offer(1)

    async def quarrel(session: Session) -> None:
        while True:
            await session.offer(2)

    async def test(_: LoneNode, one: Asa, two: Asa) -> None:
        async with responder(one, insist), await two.negotiate(asking(2, loop_count=10)) as session:
            with pytest.raises(AsaError) as caught:
                await quarrel(session)
            assert session.ended
            assert code_of(caught) is ErrorCode.loopExhausted

    run(tmp_path, test)


def test_an_asa_that_dies_in_the_middle(tmp_path: Path) -> None:
    async def test(node: LoneNode, one: Asa, two: Asa) -> None:
        async with Asa.connect("mortal", node.path) as mortal:
            await mortal.register_objective(NEGOTIABLE)
            listening = asyncio.ensure_future(mortal.listen_negotiate(NEGOTIABLE))
            await listens(mortal)
            asked = asyncio.ensure_future(two.negotiate(asking(1)))
            await listening
        with pytest.raises(AsaError):
            await asked
        await one.register_objective(NEGOTIABLE)  # it has no owner any more

    run(tmp_path, test)


def test_several_negotiations_at_a_time(tmp_path: Path) -> None:
    async def test(_: LoneNode, one: Asa, two: Asa) -> None:
        await one.register_objective(NEGOTIABLE)

        async def serve() -> None:
            session = await one.listen_negotiate(NEGOTIABLE)
            answer = await session.offer(session.value * 2)
            assert answer.value == session.value
            await session.accept()

        async def ask(value: int) -> int:
            session = await two.negotiate(asking(value))
            assert session.value == 2 * value
            await session.offer(session.value + 1)
            assert session.agreed
            result: int = session.value
            return result

        serving = [asyncio.ensure_future(serve()) for _ in range(10)]
        await listens(one)
        assert await asyncio.gather(*(ask(value) for value in range(10))) == [
            2 * value + 1 for value in range(10)
        ]
        await asyncio.gather(*serving)

    run(tmp_path, test)


def test_a_cancelled_listener_takes_no_session(tmp_path: Path) -> None:
    async def test(_: LoneNode, one: Asa, two: Asa) -> None:
        await one.register_objective(NEGOTIABLE)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await one.listen_negotiate(NEGOTIABLE)
        listening = asyncio.ensure_future(one.listen_negotiate(NEGOTIABLE))
        await listens(one)
        asked = asyncio.ensure_future(two.negotiate(asking(1)))
        await (await listening).accept()
        assert (await asked).agreed

    run(tmp_path, test)


def test_stopping_to_listen(tmp_path: Path) -> None:
    async def test(_: LoneNode, one: Asa, __: Asa) -> None:
        await one.register_objective(NEGOTIABLE)
        listening = asyncio.ensure_future(one.listen_negotiate(NEGOTIABLE))
        await asyncio.sleep(0)
        await one.stop_listen_negotiate(NEGOTIABLE)
        with pytest.raises(AsaError):
            await listening

    run(tmp_path, test)


def test_registration_has_its_errors(tmp_path: Path) -> None:
    async def test(_: LoneNode, one: Asa, two: Asa) -> None:
        async def fails(call: Awaitable[Any]) -> ErrorCode:
            with pytest.raises(AsaError) as caught:
                await call
            return code_of(caught)

        both = Objective("x", ObjectiveFlag.F_NEG | ObjectiveFlag.F_SYNCH)
        dry = Objective("x", ObjectiveFlag.F_SYNCH | ObjectiveFlag.F_NEG_DRY)
        assert await fails(two.grasp.register_asa("one")) is ErrorCode.dupASA
        assert await fails(two.grasp.deregister_asa(one.handle, "one")) is ErrorCode.notYourASA
        assert await fails(two.grasp.deregister_asa(two.handle, "one")) is ErrorCode.notYourASA
        assert await fails(two.grasp.discover(two.handle ^ 1, NEGOTIABLE)) is ErrorCode.noASA
        assert await fails(one.register_objective(both)) is ErrorCode.notBoth
        assert await fails(one.register_objective(dry)) is ErrorCode.notDry
        assert await fails(one.deregister_objective(NEGOTIABLE)) is ErrorCode.notYourObj
        await one.register_objective(NEGOTIABLE)
        assert await fails(one.register_objective(NEGOTIABLE)) is ErrorCode.objReg
        assert await fails(two.register_objective(NEGOTIABLE)) is ErrorCode.objReg
        assert await fails(one.flood(1000, SYNCHRONIZED)) is ErrorCode.notYourObj
        assert await fails(one.grasp.negotiate_wait(one.handle, 12345, 1)) is ErrorCode.noSession
        await one.deregister_objective(NEGOTIABLE)
        await two.register_objective(NEGOTIABLE)

    run(tmp_path, test)


def test_many_asas_of_many_processes(tmp_path: Path) -> None:
    async def main() -> None:
        async with lone_node(tmp_path) as node, asyncio.timeout(20):

            async def process(number: int) -> list[Any]:
                async with Grasp.connect(node.path) as grasp:

                    async def asa(index: int) -> Any:
                        name = f"asa {number}.{index}"
                        mine = Objective(name, ObjectiveFlag.F_SYNCH, value=[number, index])
                        async with Asa.register(grasp, name) as agent:
                            await agent.register_objective(mine)
                            await agent.listen_synchronize(mine)
                            return (await agent.synchronize(Objective(name, ObjectiveFlag.F_SYNCH))).value

                    return await asyncio.gather(*(asa(index) for index in range(10)))

            found = await asyncio.gather(*(process(number) for number in range(20)))
            assert found == [[[number, index] for index in range(10)] for number in range(20)]
            async with Grasp.connect(node.path) as grasp:
                assert (await grasp.status())["objectives"] == []
                assert await grasp.node() == (ADDRESS, 7017)

    asyncio.run(main())


def test_the_end_of_the_node_ends_a_with_without_more_ado(tmp_path: Path) -> None:
    async def main() -> None:
        async with lone_node(tmp_path) as node, Asa.connect("one", node.path) as one:
            listening = asyncio.ensure_future(one.grasp.discover(one.handle, NEGOTIABLE, 60_000))
            await asyncio.sleep(0.01)
            node.close()
            with pytest.raises(AsaError) as caught:
                await listening
            assert code_of(caught) is ErrorCode.noSocket

    asyncio.run(main())
