"""ASAs and their objectives, and every error code of RFC 8991 that a call of the engine can end with."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from minerva.grasp import registry as module
from minerva.grasp.api import AsaError, AsaLocator, ErrorCode, TaggedObjective
from minerva.grasp.constants import TransportProto
from minerva.grasp.messages import End, Negotiate, RequestNegotiation, Synch
from minerva.grasp.options import FqdnLocator, Objective
from minerva.grasp.registry import Registry, check_objective
from tests.grasp.network import F_DISC, F_NEG, F_NEG_DRY, F_SYNCH, address, line, objective
from tests.grasp.test_session_id import Dice
from tests.grasp.wire import Wire, discovery, locator

PEER = AsaLocator(locator(99))
NEG, SYNCH = objective("EX1", F_NEG, 1), objective("EX2", F_SYNCH, 1)

Case = Callable[[Wire, int], int]


def call(function: str, *arguments: Any) -> Case:
    """Return a case that is one call of an ASA which has EX1 to negotiate and EX2 to synchronize."""
    return lambda wire, handle: wire.call(function, handle, *arguments)


def _stranger(wire: Wire, handle: int) -> int:
    return wire.call("get_flood", handle, SYNCH, client=2)


def _twice(wire: Wire, _: int) -> int:
    return wire.call("register_asa", "test", client=2)


def _overlap(mine: bool) -> Case:
    def do(wire: Wire, _: int) -> int:
        other = wire.asa(name="other")
        return wire.call("register_objective", other, SYNCH, 0, False, mine, False)

    return do


def _lost(objective_: Objective, *, connected: bool) -> Case:
    def do(wire: Wire, handle: int) -> int:
        function = "request_negotiate" if objective_ is NEG else "synchronize"
        request = wire.call(function, handle, objective_, PEER, 0)
        wire.lost(wire.connected() if connected else wire.connects[0].connection)
        return request

    return do


def _answered(objective_: Objective, answer: Callable[[int], Any], seconds: float = 0.0) -> Case:
    def do(wire: Wire, handle: int) -> int:
        function = "request_negotiate" if objective_ is NEG else "synchronize"
        request = wire.call(function, handle, objective_, PEER, 0)
        connection = wire.connected()
        wire.say(connection, answer(wire.heard(connection)[0].session_id))
        wire.run(seconds)
        return request

    return do


def _no_message(session_id: int) -> bytes:
    return bytes.fromhex("8218551a") + session_id.to_bytes(4)


def _not_found(wire: Wire, handle: int) -> int:
    request = wire.call("request_negotiate", handle, NEG, None, 0)
    wire.run(10)
    return request


def _stopped(wire: Wire, handle: int) -> int:
    request = wire.call("listen_negotiate", handle, NEG)
    wire.result(wire.call("stop_listen_negotiate", handle, NEG))
    return request


def _not_our_turn(wire: Wire, handle: int) -> int:
    wire.call("request_negotiate", handle, NEG, PEER, 0)
    session = wire.heard(wire.connected())[0].session_id
    return wire.call("negotiate_step", handle, session, NEG, 0)


def _dry_in_the_middle(wire: Wire, handle: int) -> int:
    wire.call("listen_negotiate", handle, NEG)
    wire.say(wire.peer(), RequestNegotiation(7, NEG))
    return wire.call("negotiate_step", handle, 7, objective("EX1", F_NEG | F_NEG_DRY, 1), 0)


def _too_big(wire: Wire, handle: int) -> int:
    return wire.call("listen_synchronize", handle, objective("EX2", F_SYNCH, b"x" * 2048))


def _register(item: Objective) -> Case:
    return call("register_objective", item, 0, False, False, False)


NAME = AsaLocator(FqdnLocator("a.example", TransportProto.IPPROTO_TCP, 80))

CODES: list[tuple[ErrorCode, Case]] = [
    (ErrorCode.ok, call("get_flood", SYNCH)),
    (ErrorCode.declined, _answered(NEG, lambda session: End(session, False, "no"))),
    (ErrorCode.unspec, call("flood", 0, [])),
    (ErrorCode.unspec, _too_big),
    (ErrorCode.dupASA, _twice),
    (ErrorCode.noASA, lambda wire, handle: wire.call("get_flood", handle ^ 1, SYNCH)),
    (ErrorCode.notYourASA, _stranger),
    (ErrorCode.notYourASA, call("deregister_asa", "another name")),
    (ErrorCode.notBoth, _register(objective("EX3", F_NEG | F_SYNCH))),
    (ErrorCode.notBoth, call("request_negotiate", objective("EX3", F_NEG | F_SYNCH), PEER, 0)),
    (ErrorCode.notDry, _register(objective("EX3", F_SYNCH | F_NEG_DRY))),
    (ErrorCode.notDry, _dry_in_the_middle),
    (ErrorCode.notOverlap, _overlap(mine=True)),
    (ErrorCode.objReg, _overlap(mine=False)),
    (ErrorCode.objReg, _register(NEG)),
    (ErrorCode.notYourObj, call("listen_negotiate", objective("EX9", F_NEG))),
    (ErrorCode.notYourObj, call("deregister_objective", objective("EX9", F_NEG))),
    (ErrorCode.notYourObj, call("flood", 0, [TaggedObjective(objective("EX9", F_SYNCH, 1))])),
    (ErrorCode.notObj, call("expire_flood", TaggedObjective(SYNCH))),
    (ErrorCode.notNeg, call("listen_negotiate", objective("EX2", F_NEG))),
    (ErrorCode.notNeg, call("request_negotiate", SYNCH, PEER, 0)),
    (ErrorCode.noDiscReply, _not_found),
    (ErrorCode.sockErrNegRq, _lost(NEG, connected=False)),
    (ErrorCode.noSession, call("negotiate_wait", 12345, 0)),
    (ErrorCode.loopExhausted, call("request_negotiate", objective("EX1", F_NEG, 1, 0), PEER, 0)),
    (ErrorCode.noPeer, _lost(NEG, connected=True)),
    (ErrorCode.CBORfail, _answered(NEG, _no_message)),
    (ErrorCode.invalidNeg, _answered(NEG, lambda session: Synch(session, SYNCH))),
    (ErrorCode.invalidEnd, _answered(SYNCH, lambda session: End(session, True))),
    (ErrorCode.noNegReply, _answered(NEG, lambda session: Negotiate(session ^ 1, NEG), 61)),
    (ErrorCode.noValidStep, _not_our_turn),
    (ErrorCode.notSynch, call("listen_synchronize", NEG)),
    (ErrorCode.notSynch, call("synchronize", NEG, PEER, 0)),
    (ErrorCode.notFloodDisc, call("flood", 0, [TaggedObjective(NEG)])),
    (ErrorCode.sockErrSynRq, _lost(SYNCH, connected=False)),
    (ErrorCode.noListener, _lost(SYNCH, connected=True)),
    (ErrorCode.noListener, _stopped),
    (ErrorCode.noSynchReply, _answered(SYNCH, lambda session: Synch(session ^ 1, SYNCH), 61)),
    (ErrorCode.noValidSynch, _answered(SYNCH, lambda session: Synch(session, NEG))),
    (ErrorCode.noValidSynch, _answered(SYNCH, lambda session: Negotiate(session, SYNCH))),
    (ErrorCode.invalidLoc, call("request_negotiate", NEG, NAME, 0)),
]

ELSEWHERE = {
    ErrorCode.noReply,  # of event loops that poll; answers here come when they come
    ErrorCode.noSecurity,  # of who finds no engine to ask
    ErrorCode.ASAfull,  # below
    ErrorCode.objFull,  # below
    # The engine does not learn of the failure of a single sending: the connection ends, which is noPeer.
    ErrorCode.noSocket,
    ErrorCode.sockErrNegStep,
    ErrorCode.sockErrWait,
    ErrorCode.sockErrEnd,
    ErrorCode.IDclash,  # the request is discarded (RFC 8990 section 2.8.6), so nobody is there to be told
}


@pytest.mark.parametrize(("code", "case"), CODES, ids=[code.name for code, _ in CODES])
def test_error_codes(code: ErrorCode, case: Case) -> None:
    """covers: G2.2-1"""
    wire = Wire()
    handle = wire.asa(NEG, SYNCH)
    request = case(wire, handle)
    assert wire.code(request) is code, wire.answers.get(request)
    if code is not ErrorCode.ok:
        assert wire.answers[request].result is None


def test_every_code_has_its_case() -> None:
    assert {code for code, _ in CODES} | ELSEWHERE == set(ErrorCode)
    assert [int(code) for code in ErrorCode] == list(range(39))
    for code in ErrorCode:
        assert code.name in str(AsaError(code))


def test_bounds_of_what_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ASAS", 3)
    monkeypatch.setattr(module, "MAX_OBJECTIVES", 2)
    wire = Wire()
    handle = wire.asa(NEG, SYNCH)
    third = wire.call("register_objective", handle, objective("EX3", F_SYNCH), 0, False, False, False)
    assert wire.code(third) is ErrorCode.objFull
    wire.asa(name="second")
    wire.asa(name="third")
    assert wire.code(wire.call("register_asa", "fourth")) is ErrorCode.ASAfull


@pytest.mark.parametrize("name", ["", "x" * 256, "\u00e9" * 128])
def test_names_have_a_length(name: str) -> None:
    wire = Wire()
    handle = wire.asa()
    assert wire.code(wire.call("register_asa", name)) is ErrorCode.unspec
    item = objective(name, F_SYNCH)
    assert (
        wire.code(wire.call("register_objective", handle, item, 0, False, False, False)) is ErrorCode.unspec
    )


def test_names_are_whatever_utf8_can_say() -> None:
    """Bytes count: what looks the same is not the same.

    covers: G2.10.1-1
    """
    wire = Wire()
    names = ["EX1", "ex1", "example.com:a", "411:caf\u00e9", "411:cafe\u0301", "\U0001f600:x"]
    handle = wire.asa(*(objective(name, F_SYNCH) for name in names))
    status = wire.core.status(wire.now)["objectives"]
    assert [item["name"] for item in status] == names
    assert handle


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (F_DISC, None),
        (F_NEG, None),
        (F_NEG | F_NEG_DRY, None),
        (F_SYNCH, None),
        (F_NEG | F_SYNCH, ErrorCode.notBoth),
        (F_NEG_DRY, ErrorCode.notDry),
        (F_SYNCH | F_NEG_DRY, ErrorCode.notDry),
    ],
)
def test_what_an_objective_can_be_for(flags: Any, code: ErrorCode | None) -> None:
    """covers: G2.10.2-1"""
    if code is None:
        check_objective(objective("EX1", flags))
        return
    with pytest.raises(AsaError) as error:
        check_objective(objective("EX1", flags))
    assert error.value.code is code


def test_overlapping_objectives_are_shared_by_those_who_all_agree() -> None:
    registry = Registry(Random(1))
    asas = [registry.register_asa(f"asa {number}", 1) for number in range(3)]

    def register(number: int, *, overlap: bool) -> None:
        registry.register(asas[number], NEG, ttl=1000, discoverable=False, overlap=overlap, local=False)

    register(0, overlap=True)
    register(1, overlap=True)
    with pytest.raises(AsaError) as error:
        register(2, overlap=False)
    assert error.value.code is ErrorCode.objReg
    registry.deregister(asas[0], "EX1")
    registry.deregister(asas[1], "EX1")
    register(2, overlap=False)
    assert [item.asa.name for item in registry] == ["asa 2"]


def test_handles_are_not_0_and_not_in_use() -> None:
    registry = Registry(Dice(0, 5, 5, 0, 5, 6))
    assert [registry.register_asa(name, 1).handle for name in "ab"] == [5, 6]


def test_an_asa_that_goes_takes_everything_along() -> None:
    """Its objectives, listening calls and sessions; its name is free again."""
    wire = Wire()
    handle = wire.asa(NEG, SYNCH)
    wire.result(wire.call("listen_synchronize", handle, SYNCH))
    listening = [wire.call("listen_negotiate", handle, NEG) for _ in range(2)]
    connection = wire.peer()
    wire.say(connection, RequestNegotiation(7, NEG))
    asking = wire.call("synchronize", handle, SYNCH, PEER, 0)
    wire.result(wire.call("deregister_asa", handle, "test"))
    assert wire.code(listening[1]) is wire.code(asking) is ErrorCode.noASA
    assert connection in wire.closes
    status = wire.core.status(wire.now)
    assert status["objectives"] == status["sessions"] == []
    assert wire.code(wire.call("get_flood", handle, SYNCH)) is ErrorCode.noASA
    wire.asa(NEG)
    link = wire.link(1)
    wire.say(link, discovery(1, name="EX2"))
    assert wire.heard(link) == []


def test_a_process_that_goes_takes_its_asas_along_and_no_others() -> None:
    """And nobody answers its calls any more."""
    wire = Wire()
    wire.asa(NEG)
    theirs = wire.result(wire.call("register_asa", "theirs", client=2))
    wire.call("register_objective", theirs, SYNCH, 0, True, False, False, client=2)
    requests = [
        wire.call("discover", theirs, SYNCH, 1000, 0, client=2),
        wire.call("synchronize", theirs, objective("EX9", F_SYNCH), None, 0, client=2),
    ]
    wire.core.client_gone(2, wire.now)
    wire.run(100)
    assert [wire.code(request) for request in requests] == [None, None]
    assert [item["asa"] for item in wire.core.status(wire.now)["objectives"]] == ["test"]
    assert wire.core.next_timer() is None


def test_an_objective_that_goes() -> None:
    wire = Wire()
    handle = wire.asa(NEG)
    listening = wire.call("listen_negotiate", handle, NEG)
    wire.result(wire.call("deregister_objective", handle, NEG))
    assert wire.code(listening) is ErrorCode.noListener
    connection = wire.peer()
    wire.say(connection, RequestNegotiation(7, NEG))
    assert connection in wire.closes


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("no_such_function", []),
        ("register_asa", []),
        ("register_asa", [5]),
        ("discover", ["handle"]),
        ("discover", ["handle", "EX1", 0, 0]),
        ("discover", ["handle", ["EX1", 99, 6], 0, 0]),
        ("discover", ["handle", ["EX1", 4, 6], -1, 0]),
        ("discover", ["handle", ["EX1", 4, 6], True, 0]),
        ("register_objective", ["handle", ["EX3", 4, 6], 0, 1, False, False]),
        ("request_negotiate", ["handle", ["EX1", 2, 6], "peer", 0]),
        ("request_negotiate", ["handle", ["EX1", 2, 6], [[103, b"x", 6, 1], 0, None, False], 0]),
        ("negotiate_step", ["handle", "session", ["EX1", 2, 6], 0]),
        ("end_negotiate", ["handle", 7, "yes", None]),
        ("end_negotiate", ["handle", 7, True, 5]),
        ("flood", ["handle", 0, ["EX1"]]),
        ("flood", ["handle", 0, {}]),
        ("flood", ["handle", 2**32, [[["EX2", 4, 6, 1], None]]]),
        ("expire_flood", ["handle", []]),
        ("cancel", ["x"]),
        ("get_flood", [None, ["EX1", 4, 6]]),
    ],
)
def test_wrong_arguments_are_an_answer_with_a_reason(function: str, arguments: list[Any]) -> None:
    """covers: G2.2-1"""
    wire = Wire()
    handle = wire.asa(NEG, SYNCH)
    request = wire.call(function, *(handle if item == "handle" else item for item in arguments))
    assert wire.code(request) is ErrorCode.unspec
    assert wire.answers[request].reason


def test_the_node_can_be_asked_where_it_is_and_how_it_does() -> None:
    wire = Wire()
    assert wire.result(wire.call("node")) == {"address": address(1).packed, "port": 7017}
    assert wire.result(wire.call("status")) == wire.core.status(wire.now)


def test_values_that_others_need_not_take() -> None:
    """Too long, or nested too deeply: refused here, where the ASA can be told, and not by its peers."""
    asa = line(1).asa(0)
    asa.register(objective("EX1", F_SYNCH))
    deep: object = 0
    for _ in range(15):
        deep = [deep]
    for value in ("x" * 2048, deep):
        call = asa.call("listen_synchronize", objective("EX1", F_SYNCH, value))
        assert call.code is ErrorCode.unspec
