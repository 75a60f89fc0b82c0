"""A node without a neighbour: its ASAs find each other and talk all the same (RFC 8994 section 6.9.2)."""

from __future__ import annotations

from minerva.grasp.api import AsaLocator, ErrorCode, TaggedObjective
from minerva.grasp.substrate import GRASP_LISTEN_PORT
from tests.grasp.network import F_NEG, F_SYNCH, Network, objective
from tests.grasp.wire import Wire, locator

NEG, SYNCH = objective("EX1", F_NEG), objective("EX2", F_SYNCH)


def test_an_asa_discovers_another_one() -> None:
    """covers: 6.9.2-2"""
    network = Network(1)
    here, there = network.asa(0, "here"), network.asa(0, "there", client=2)
    there.register(SYNCH, ttl=5000)
    assert here.call("discover", SYNCH, 0, 1).result == []
    there.call("listen_synchronize", objective("EX2", F_SYNCH, 1))
    expected = [AsaLocator(locator(0, GRASP_LISTEN_PORT), 0, 5000).to_cbor()]
    assert here.call("discover", SYNCH, 0, 1).result == expected
    call = here.call("discover", SYNCH, 300, 0)
    network.run(0.4)
    assert call.result == expected


def test_two_asas_negotiate() -> None:
    """With counter-offers and a wait, as with anybody else; both know the same Session ID.

    covers: 6.9.2-2
    """
    network = Network(1)
    here, there = network.asa(0, "here"), network.asa(0, "there", client=2)
    there.register(NEG)
    listening = there.call("listen_negotiate", NEG)
    request = here.call("request_negotiate", objective("EX1", F_NEG, 100), None, 0)
    session, requested = listening.result
    assert requested == objective("EX1", F_NEG, 100).to_cbor()
    step = there.call("negotiate_step", session, objective("EX1", F_NEG, 50), 0)
    assert request.result == [session, objective("EX1", F_NEG, 50, 5).to_cbor()]
    assert here.call("negotiate_wait", session, 100_000).code is ErrorCode.ok
    network.run(90)
    step2 = here.call("negotiate_step", session, objective("EX1", F_NEG, 70), 0)
    assert step.result[1][3] == 70
    assert there.call("end_negotiate", session, True, None).code is ErrorCode.ok
    assert step2.result == [None, objective("EX1", F_NEG, 70, 4).to_cbor()]
    core = network.nodes[0].core
    assert core.status(network.simulator.now)["sessions"] == []
    assert not core._substrate._connections


def test_an_asa_negotiates_with_itself() -> None:
    """Each of the two sessions has one side's turn, so the ASA always means the one that may be moved."""
    network = Network(1)
    asa = network.asa(0)
    asa.register(NEG)
    listening = asa.call("listen_negotiate", NEG)
    request = asa.call("request_negotiate", objective("EX1", F_NEG, 1), None, 0)
    session = listening.result[0]
    for value in (2, 4):
        step = asa.call("negotiate_step", session, objective("EX1", F_NEG, value), 0)
        assert request.result[1][3] == value
        request = asa.call("negotiate_step", session, objective("EX1", F_NEG, value + 1), 0)
        assert step.result[1][3] == value + 1
    asa.call("end_negotiate", session, False, "enough")
    assert request.code is ErrorCode.declined


def test_two_asas_synchronize_and_flood() -> None:
    """covers: 6.9.2-2"""
    network = Network(1)
    here, there = network.asa(0, "here"), network.asa(0, "there", client=2)
    there.register(SYNCH)
    value = objective("EX2", F_SYNCH, [1, 2])
    there.call("listen_synchronize", value)
    assert here.call("synchronize", SYNCH, None, 0).result == value.to_cbor()
    flooded = objective("EX2", F_SYNCH, [3])
    assert there.call("flood", 1000, [TaggedObjective(flooded)]).code is ErrorCode.ok
    assert here.call("synchronize", SYNCH, None, 0).result == flooded.to_cbor()
    [item] = here.call("get_flood", SYNCH).result
    assert item == TaggedObjective(flooded).to_cbor()
    network.run(1.1)
    assert here.call("get_flood", SYNCH).result == []


def test_nothing_leaves_the_node() -> None:
    """covers: 6.9.2-1"""
    wire = Wire()
    handle = wire.asa(NEG, SYNCH)
    wire.call("listen_negotiate", handle, NEG)
    wire.call("request_negotiate", handle, NEG, AsaLocator(locator(1)), 0)
    wire.call("discover", handle, objective("EX3", F_SYNCH), 1000, 0)
    wire.call("flood", handle, 0, [TaggedObjective(objective("EX2", F_SYNCH, 1))])
    wire.run(100)
    assert not wire.connects
    assert not wire.closes


def test_nobody_listens_here_either() -> None:
    network = Network(1)
    here = network.asa(0)
    call = here.call("request_negotiate", NEG, AsaLocator(locator(0)), 0)
    assert call.code is ErrorCode.noPeer
    call = here.call("synchronize", SYNCH, AsaLocator(locator(0)), 0)
    assert call.code is ErrorCode.noListener
    call = here.call("synchronize", SYNCH, None, 0)
    network.run(10)
    assert call.code is ErrorCode.noDiscReply


def test_the_other_end_goes() -> None:
    network = Network(1)
    here, there = network.asa(0, "here"), network.asa(0, "there", client=2)
    there.register(NEG)
    listening = there.call("listen_negotiate", NEG)
    request = here.call("request_negotiate", NEG, None, 0)
    assert listening.result
    core = network.nodes[0].core
    core.client_gone(2, network.simulator.now)
    network.streams.pump(network.nodes[0])
    assert request.code is ErrorCode.noPeer
    assert not core._substrate._connections


def test_the_values_of_the_node_itself_can_be_had_here() -> None:
    network = Network(1)
    network.nodes[0].core.serve(lambda: objective("EX2", F_SYNCH, 7), ttl=1000)
    assert network.asa(0).call("synchronize", SYNCH, None, 0).result[3] == 7
