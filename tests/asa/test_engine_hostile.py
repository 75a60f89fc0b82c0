"""Requests with any arguments at all, to the real engine behind the real socket: it answers, and lives."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from minerva.asa import AsaError, ErrorCode, Grasp
from minerva.asa.protocol import TRACE
from minerva.grasp import calls
from tests.asa.node import lone_node
from tests.asa.test_protocol import VALUES

FUNCTIONS = st.sampled_from([*sorted(calls._FUNCTIONS), TRACE, "what is this"])
FLAGS = st.integers(0, 15) | st.sampled_from([2, 4, 10])
OBJECTIVES = st.tuples(st.sampled_from(["a", "b"]), FLAGS, st.integers(0, 255), VALUES).map(list)
ADDRESSES = st.sampled_from(
    [bytes(16), bytes.fromhex("fd89b714f3db00000000000000000001"), b"\xfe\x80" + bytes(14)]
)
OPTIONS = st.tuples(st.just(103), ADDRESSES, st.sampled_from([6, 17]), st.integers(0, 65535)).map(list)
LOCATORS = st.none() | st.tuples(
    OPTIONS, st.integers(0, 9), st.none() | st.integers(0, 9), st.booleans()
).map(list)
TAGGED = st.tuples(OBJECTIVES, LOCATORS).map(list)
ARGUMENTS: Any = (
    OBJECTIVES
    | LOCATORS
    | TAGGED
    | st.lists(TAGGED, max_size=3)
    | st.integers(0, 2**32)
    | st.booleans()
    | st.text(max_size=5)
    | VALUES
)
HANDLE = object()
"""Stands for the handle of an ASA that exists."""

PLAUSIBLE = st.one_of(
    st.tuples(
        st.just("register_objective"), st.tuples(st.just(HANDLE), OBJECTIVES, ARGUMENTS, *[st.booleans()] * 3)
    ),
    st.tuples(
        st.sampled_from(["deregister_objective", "listen_negotiate", "stop_listen_negotiate", "get_flood"])
        | st.sampled_from(["listen_synchronize", "stop_listen_synchronize"]),
        st.tuples(st.just(HANDLE), OBJECTIVES),
    ),
    st.tuples(
        st.just("discover"), st.tuples(st.just(HANDLE), OBJECTIVES, st.integers(0, 5), st.integers(0, 5))
    ),
    st.tuples(
        st.sampled_from(["request_negotiate", "synchronize"]),
        st.tuples(st.just(HANDLE), OBJECTIVES, st.none(), st.integers(0, 5)),
    ),
    st.tuples(st.just("flood"), st.tuples(st.just(HANDLE), st.integers(0, 5), st.lists(TAGGED, max_size=3))),
    st.tuples(st.just("expire_flood"), st.tuples(st.just(HANDLE), TAGGED)),
    st.tuples(st.just("status"), st.just(())),
)
ANYTHING = st.tuples(FUNCTIONS, st.lists(st.just(HANDLE) | ARGUMENTS, max_size=6))


@settings(max_examples=200, deadline=None)
@given(st.lists(PLAUSIBLE | ANYTHING, max_size=12))
def test_any_arguments(requests: list[tuple[str, Any]]) -> None:
    problems: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        with tempfile.TemporaryDirectory() as run_dir:
            async with lone_node(Path(run_dir)) as node, Grasp.connect(node.path) as grasp:
                handle = await grasp.register_asa("hostile")

                async def call(function: str, arguments: Any) -> None:
                    given = [handle if argument is HANDLE else argument for argument in arguments]
                    try:
                        await grasp._connection.call(function, *given)
                    except AsaError as error:
                        if error.code is ErrorCode.noSocket or "internal error" in error.reason:
                            problems.append((function, given, error))

                running = [asyncio.ensure_future(call(*request)) for request in requests]
                done, waiting = await asyncio.wait(running, timeout=0.03) if running else (set(), set())
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*done)
                await asyncio.gather(*waiting, return_exceptions=True)
                assert isinstance(await grasp.status(), dict)  # still there
            async with lone_node(Path(run_dir)) as node:
                assert node.server.connections == 0

    asyncio.run(main())
    assert problems == []
