"""The client against the real server: calls, errors, cancellation, connections that end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from cbor2 import CBORTag

from minerva.asa import client
from minerva.asa.client import Grasp, default_path
from minerva.core import cbor
from minerva.core.errors import UsageError
from minerva.grasp.api import AsaError, AsaLocator, ErrorCode, TaggedObjective
from minerva.grasp.constants import ObjectiveFlag, TransportProto
from minerva.grasp.options import IPv6Locator, Objective
from minerva.grasp.substrate import Traced
from tests.asa.node import Call, FakeNode, fake_node

OBJECTIVE = Objective("EX1", ObjectiveFlag.F_NEG | ObjectiveFlag.F_DISC, 6, ["NZD", 410])
LOCATOR = AsaLocator(IPv6Locator(IPv6Address("fd00::1"), TransportProto.IPPROTO_TCP, 7017), 3, 5000, True)


def run(run_dir: Path, test: Callable[[FakeNode, Grasp], Awaitable[None]]) -> None:
    async def main() -> None:
        async with fake_node(run_dir) as node, Grasp.connect(node.path) as grasp:
            await test(node, grasp)

    asyncio.run(main())


CALLS: list[tuple[Callable[[Grasp], Awaitable[Any]], Call, Any, Any]] = [
    # What is called, the call that the engine gets, what it answers, and what comes of that.
    (lambda g: g.register_asa("me"), ("register_asa", ["me"]), 77, 77),
    (lambda g: g.deregister_asa(77, "me"), ("deregister_asa", [77, "me"]), None, None),
    (
        lambda g: g.register_objective(77, OBJECTIVE),
        ("register_objective", [77, OBJECTIVE.to_cbor(), 60_000, False, False, False]),
        None,
        None,
    ),
    (
        lambda g: g.register_objective(77, OBJECTIVE, 5, discoverable=True, overlap=True, local=True),
        ("register_objective", [77, OBJECTIVE.to_cbor(), 5, True, True, True]),
        None,
        None,
    ),
    (
        lambda g: g.deregister_objective(77, OBJECTIVE),
        ("deregister_objective", [77, OBJECTIVE.to_cbor()]),
        None,
        None,
    ),
    (
        lambda g: g.discover(77, OBJECTIVE, 100, 0),
        ("discover", [77, OBJECTIVE.to_cbor(), 100, 0]),
        [LOCATOR.to_cbor()],
        [LOCATOR],
    ),
    (
        lambda g: g.request_negotiate(77, OBJECTIVE),
        ("request_negotiate", [77, OBJECTIVE.to_cbor(), None, 0]),
        [None, OBJECTIVE.to_cbor()],
        (None, OBJECTIVE),
    ),
    (
        lambda g: g.request_negotiate(77, OBJECTIVE, LOCATOR, 9),
        ("request_negotiate", [77, OBJECTIVE.to_cbor(), LOCATOR.to_cbor(), 9]),
        [5, OBJECTIVE.to_cbor()],
        (5, OBJECTIVE),
    ),
    (
        lambda g: g.listen_negotiate(77, OBJECTIVE),
        ("listen_negotiate", [77, OBJECTIVE.to_cbor()]),
        [5, OBJECTIVE.to_cbor()],
        (5, OBJECTIVE),
    ),
    (
        lambda g: g.stop_listen_negotiate(77, OBJECTIVE),
        ("stop_listen_negotiate", [77, OBJECTIVE.to_cbor()]),
        None,
        None,
    ),
    (
        lambda g: g.negotiate_step(77, 5, OBJECTIVE, 3),
        ("negotiate_step", [77, 5, OBJECTIVE.to_cbor(), 3]),
        [None, OBJECTIVE.to_cbor()],
        (None, OBJECTIVE),
    ),
    (lambda g: g.negotiate_wait(77, 5, 1000), ("negotiate_wait", [77, 5, 1000]), None, None),
    (lambda g: g.end_negotiate(77, 5, True), ("end_negotiate", [77, 5, True, None]), None, None),
    (
        lambda g: g.end_negotiate(77, 5, False, "no"),
        ("end_negotiate", [77, 5, False, "no"]),
        None,
        None,
    ),
    (
        lambda g: g.synchronize(77, OBJECTIVE, LOCATOR),
        ("synchronize", [77, OBJECTIVE.to_cbor(), LOCATOR.to_cbor(), 0]),
        OBJECTIVE.to_cbor(),
        OBJECTIVE,
    ),
    (
        lambda g: g.listen_synchronize(77, OBJECTIVE),
        ("listen_synchronize", [77, OBJECTIVE.to_cbor()]),
        None,
        None,
    ),
    (
        lambda g: g.stop_listen_synchronize(77, OBJECTIVE),
        ("stop_listen_synchronize", [77, OBJECTIVE.to_cbor()]),
        None,
        None,
    ),
    (
        lambda g: g.flood(77, 0, (TaggedObjective(OBJECTIVE, LOCATOR), TaggedObjective(OBJECTIVE))),
        ("flood", [77, 0, [[OBJECTIVE.to_cbor(), LOCATOR.to_cbor()], [OBJECTIVE.to_cbor(), None]]]),
        None,
        None,
    ),
    (
        lambda g: g.get_flood(77, OBJECTIVE),
        ("get_flood", [77, OBJECTIVE.to_cbor()]),
        [[OBJECTIVE.to_cbor(), None]],
        [TaggedObjective(OBJECTIVE)],
    ),
    (
        lambda g: g.expire_flood(77, TaggedObjective(OBJECTIVE, LOCATOR)),
        ("expire_flood", [77, [OBJECTIVE.to_cbor(), LOCATOR.to_cbor()]]),
        None,
        None,
    ),
    (lambda g: g.send_invalid(77, 5, b"?"), ("send_invalid", [77, 5, b"?"]), None, None),
    (
        lambda g: g.node(),
        ("node", []),
        {"address": IPv6Address("fd00::1").packed, "port": 7017},
        (IPv6Address("fd00::1"), 7017),
    ),
    (lambda g: g.status(), ("status", []), {"floods": []}, {"floods": []}),
]


@pytest.mark.parametrize(("call", "expected", "answer", "result"), CALLS, ids=lambda _: "")
def test_every_function_is_said_and_heard_as_the_paper_has_it(
    tmp_path: Path, call: Any, expected: Any, answer: Any, result: Any
) -> None:
    async def test(node: FakeNode, grasp: Grasp) -> None:
        node.engine.functions[expected[0]] = lambda _: answer
        assert await call(grasp) == result
        (made,) = node.engine.calls
        assert (made.function, made.arguments) == expected

    run(tmp_path, test)


@pytest.mark.parametrize(("call", "expected", "answer", "result"), CALLS, ids=lambda _: "")
@pytest.mark.parametrize("nonsense", [7.5, [1, 2, 3], "x", {}, [[[]]], [None, None]], ids=repr)
def test_an_answer_of_another_form_is_an_error_of_the_api(
    tmp_path: Path,
    call: Any,
    expected: Any,
    answer: Any,
    result: Any,  # noqa: ARG001
    nonsense: Any,
) -> None:
    if answer is None or expected[0] == "status":
        return

    async def test(node: FakeNode, grasp: Grasp) -> None:
        node.engine.functions[expected[0]] = lambda _: nonsense
        with pytest.raises(AsaError) as caught:
            await call(grasp)
        assert caught.value.code is ErrorCode.unspec

    run(tmp_path, test)


@pytest.mark.parametrize("code", [code for code in ErrorCode if code is not ErrorCode.ok])
def test_every_error_code_arrives(tmp_path: Path, code: ErrorCode) -> None:
    async def test(node: FakeNode, grasp: Grasp) -> None:
        node.engine.functions["register_asa"] = lambda _: code
        with pytest.raises(AsaError) as caught:
            await grasp.register_asa("me")
        assert caught.value.code is code

    run(tmp_path, test)


def test_the_reason_of_a_decline_arrives(tmp_path: Path) -> None:
    async def test(node: FakeNode, grasp: Grasp) -> None:
        node.engine.functions["request_negotiate"] = lambda _: ...
        asked = asyncio.ensure_future(grasp.request_negotiate(1, OBJECTIVE))
        await node.until(lambda: bool(node.engine.waiting))
        node.engine.answer(node.engine.calls[0], ErrorCode.declined, reason="too dear")
        node.pump()
        with pytest.raises(AsaError, match="declined: too dear") as caught:
            await asked
        assert (caught.value.code, caught.value.reason) == (ErrorCode.declined, "too dear")

    run(tmp_path, test)


@pytest.mark.parametrize(
    "value",
    [CBORTag(24, b"\x18\x2a"), CBORTag(24, b"\xff not CBOR"), [CBORTag(24, b"")], {"a": CBORTag(2, b"x")}],
)
def test_tags_pass_untouched_both_ways(tmp_path: Path, value: Any) -> None:
    """RFC 8991 section 2.3.2.4: an encoded CBOR data item is nobody's business between two ASAs."""

    async def test(node: FakeNode, grasp: Grasp) -> None:
        node.engine.functions["synchronize"] = lambda call: call.arguments[1]
        objective = Objective("EX1", ObjectiveFlag.F_SYNCH, 6, value)
        assert await grasp.synchronize(1, objective) == objective
        assert cbor.dumps(node.engine.calls[0].arguments[1]) == cbor.dumps(objective.to_cbor())

    run(tmp_path, test)


@pytest.mark.parametrize("value", [object(), bytes(300_000), "\ud800"], ids=["object", "size", "text"])
def test_a_value_that_cannot_be_sent_harms_no_other_call(tmp_path: Path, value: Any) -> None:
    async def test(node: FakeNode, grasp: Grasp) -> None:
        node.engine.functions["register_asa"] = lambda _: ...
        waiting = asyncio.ensure_future(grasp.register_asa("me"))
        await node.until(lambda: bool(node.engine.waiting))
        deep: Any = value
        for _ in range(30):
            deep = [deep]
        for wrong in (value, deep):
            with pytest.raises(AsaError) as caught:
                await grasp.listen_synchronize(1, Objective("EX1", ObjectiveFlag.F_SYNCH, 6, wrong))
            assert caught.value.code is ErrorCode.unspec
        node.engine.answer(node.engine.calls[0], result=5)
        node.pump()
        assert await waiting == 5

    run(tmp_path, test)


def test_calls_are_answered_in_any_order(tmp_path: Path) -> None:
    async def test(node: FakeNode, grasp: Grasp) -> None:
        node.engine.functions["register_asa"] = lambda _: ...
        calls = [asyncio.ensure_future(grasp.register_asa(f"asa {number}")) for number in range(200)]
        await node.until(lambda: len(node.engine.waiting) == 200)
        for call in reversed(node.engine.calls):
            node.engine.answer(call, result=int(call.arguments[0].split()[1]))
        node.pump()
        assert await asyncio.gather(*calls) == list(range(200))

    run(tmp_path, test)


def test_a_cancelled_task_takes_its_request_back(tmp_path: Path) -> None:
    async def test(node: FakeNode, grasp: Grasp) -> None:
        node.engine.functions["discover"] = lambda _: ...
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await grasp.discover(1, OBJECTIVE, 60_000)
        await node.until(lambda: "cancel" in node.engine.functions_called())
        assert node.engine.calls[-1].arguments == [node.engine.calls[0].request]
        assert not node.engine.waiting
        node.engine.functions["discover"] = lambda _: []
        assert await grasp.discover(1, OBJECTIVE) == []

    run(tmp_path, test)


def test_a_session_that_begins_too_late_is_ended(tmp_path: Path) -> None:
    """The request to negotiate and its withdrawal cross on the way: the peer must not wait for nobody."""

    async def test(node: FakeNode, grasp: Grasp) -> None:
        node.engine.functions["listen_negotiate"] = lambda _: ...
        node.engine.functions["end_negotiate"] = lambda _: None
        listening = asyncio.ensure_future(grasp.listen_negotiate(9, OBJECTIVE))
        await node.until(lambda: bool(node.engine.waiting))
        listening.cancel()
        node.engine.answer(node.engine.calls[0], result=[1234, OBJECTIVE.to_cbor()])
        node.pump()  # before the cancel is read
        with pytest.raises(asyncio.CancelledError):
            await listening
        await node.until(lambda: "end_negotiate" in node.engine.functions_called())
        assert node.engine.calls[-1].arguments == [9, 1234, False, "withdrawn"]

    run(tmp_path, test)


def test_an_asa_that_is_registered_as_its_task_is_cancelled_is_deregistered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(node: FakeNode, grasp: Grasp) -> None:
        node.engine.functions["register_asa"] = lambda _: 42
        node.engine.functions["deregister_asa"] = lambda _: None
        received = grasp._connection._received

        def received_and_cancelled(frame: Any) -> None:
            received(frame)
            registering.cancel()

        monkeypatch.setattr(grasp._connection, "_received", received_and_cancelled)
        registering = asyncio.ensure_future(grasp.register_asa("me"))
        with pytest.raises(asyncio.CancelledError):
            await registering
        await node.until(lambda: len(node.engine.calls) == 2)
        assert node.engine.calls[1].function == "deregister_asa"
        assert node.engine.calls[1].arguments == [42, "me"]

    run(tmp_path, test)


def test_the_end_of_the_connection_fails_all_calls(tmp_path: Path) -> None:
    async def test(node: FakeNode, grasp: Grasp) -> None:
        node.engine.functions["register_asa"] = lambda _: ...
        calls = [asyncio.ensure_future(grasp.register_asa(f"asa {number}")) for number in range(5)]
        await node.until(lambda: len(node.engine.waiting) == 5)
        node.server.close()
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, AsaError)
            assert result.code is ErrorCode.noSocket
        with pytest.raises(AsaError, match="the node closed the connection") as caught:
            await grasp.register_asa("again")
        assert caught.value.code is ErrorCode.noSocket
        assert not grasp.is_open

    run(tmp_path, test)


def test_closing_fails_the_calls_under_way(tmp_path: Path) -> None:
    async def test(node: FakeNode, grasp: Grasp) -> None:
        node.engine.functions["register_asa"] = lambda _: ...
        call = asyncio.ensure_future(grasp.register_asa("me"))
        await node.until(lambda: bool(node.engine.waiting))
        await grasp.close()
        with pytest.raises(AsaError, match="has been closed") as caught:
            await call
        assert caught.value.code is ErrorCode.noSocket
        await node.until(lambda: node.engine.gone == [1])
        await grasp.close()

    run(tmp_path, test)


@pytest.mark.parametrize("answer", [b"\xff", b"HTTP/1.1 200 OK", cbor.dumps([1]), cbor.dumps([1, "x", 2, 3])])
def test_a_node_that_talks_nonsense(tmp_path: Path, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await reader.read()
        writer.close()

    async def main() -> None:
        path = tmp_path / "grasp.sock"
        async with await asyncio.start_unix_server(serve, path), Grasp.connect(path) as grasp:
            with pytest.raises(AsaError, match="no answer") as caught:
                await grasp.register_asa("me")
            assert caught.value.code is ErrorCode.noSocket

    asyncio.run(main())


def test_trace(tmp_path: Path) -> None:
    async def test(node: FakeNode, grasp: Grasp) -> None:
        trace = grasp.trace()
        first = asyncio.ensure_future(anext(trace))
        await node.until(lambda: node.engine.tracing)
        node.server.deliver(Traced(3, IPv6Address("fe80::1"), True, b"\x80"))
        record = await first
        assert (record.where, record.direction, record.message) == ("3 fe80::1", "in", b"\x80")
        await trace.aclose()
        await node.until(lambda: not node.engine.tracing)

    run(tmp_path, test)


def test_no_node_is_no_security(tmp_path: Path) -> None:
    """covers: 6.9.2-3"""

    async def main() -> None:
        with pytest.raises(AsaError, match="no ACP") as caught:
            await Grasp.open(tmp_path / "grasp.sock")
        assert caught.value.code is ErrorCode.noSecurity
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
            dead.bind(str(tmp_path / "grasp.sock"))
        with pytest.raises(AsaError) as caught:
            await Grasp.open(tmp_path / "grasp.sock")
        assert caught.value.code is ErrorCode.noSecurity

    asyncio.run(main())


def test_a_node_that_is_stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.05)

    async def test(node: FakeNode, grasp: Grasp) -> None:
        node.engine.functions |= dict.fromkeys(("listen_negotiate", "status"), lambda _: ...)
        listening = asyncio.ensure_future(grasp.listen_negotiate(1, OBJECTIVE))
        await asyncio.sleep(0.1)  # that may take as long as it likes
        assert grasp.is_open
        for call in (grasp.status(), listening, grasp.status()):
            with pytest.raises(AsaError, match=f"the node does not answer on {node.path}") as caught:
                await call
            assert caught.value.code is ErrorCode.noSocket

    run(tmp_path, test)


def test_an_unspecified_error_with_a_reason_is_specified() -> None:
    assert str(AsaError(ErrorCode.unspec, "too many sessions")) == "too many sessions (unspec)"
    assert str(AsaError(ErrorCode.unspec)) == "unspecified error (unspec)"
    assert str(AsaError(ErrorCode.declined, "no")) == "the peer declined: no (declined)"


def test_a_user_without_permission_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async def refused(*_: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(asyncio.get_running_loop(), "create_unix_connection", refused, raising=False)
        with pytest.raises(UsageError, match="group minerva"):
            await Grasp.open(tmp_path / "grasp.sock")

    asyncio.run(main())


def test_where_the_socket_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINERVA_RUN_DIR", raising=False)
    assert default_path() == Path("/run/minerva/grasp.sock")
    monkeypatch.setenv("MINERVA_RUN_DIR", "/run/other")
    assert default_path() == Path("/run/other/grasp.sock")
