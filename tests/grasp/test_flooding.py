"""Floods: sent, relayed, cached, told to those who come later, and limited."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv6Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerva.grasp import flooding
from minerva.grasp.api import AsaLocator, ErrorCode, TaggedObjective
from minerva.grasp.constants import ObjectiveFlag, TransportProto
from minerva.grasp.messages import Flood, FloodEntry, decode
from minerva.grasp.options import NO_VALUE, FqdnLocator, IPv6Locator, Locator, Objective
from minerva.grasp.substrate import Traced
from tests.grasp.network import F_DISC, F_NEG, F_SYNCH, Asa, Network, address, line, objective
from tests.grasp.wire import OURS, Wire, flood, locator, neighbour

ANY = IPv6Locator(IPv6Address("::"), TransportProto.IPPROTO_TCP, 4711)


def values(network: Network, node: int, name: str = "EX1") -> list[Any]:
    """Return the values of a flooded objective that a node has, the newest last."""
    now = network.simulator.now
    return [copy.objective.value for copy in network.nodes[node].core.floods(name, now)]


def flooder(network: Network, node: int, *names: str) -> Asa:
    """Register an ASA that may flood."""
    asa = network.asa(node, f"flooder {node}")
    for name in names or ("EX1",):
        asa.register(objective(name, F_SYNCH))
    return asa


def send(asa: Asa, value: Any, *, ttl: int = 60_000, loop_count: int = 255, tag: Any = None) -> None:
    """Let an ASA flood its objective EX1."""
    tagged = TaggedObjective(objective("EX1", F_SYNCH, value, loop_count), tag)
    assert asa.call("flood", ttl, [tagged]).code is ErrorCode.ok


# --- relay ----------------------------------------------------------------------------------------


def test_a_flood_is_relayed_on_all_other_links_once() -> None:
    """Same Session ID, same initiator, one less in the loop count, and not back to where it came from.

    covers: G2.5.6.2-3, G2.5.6.2-5, 6.9.2-8
    """
    wire = Wire()
    came_by, second, third = wire.link(1), wire.link(2), wire.link(3)
    wire.say(came_by, flood(7, loop_count=6))
    assert wire.heard(came_by) == []
    assert wire.heard(second) == wire.heard(third) == [flood(7, loop_count=5)]
    assert [(event.flood, event.interface) for event in wire.floods] == [(flood(7, loop_count=6), 1)]
    # The same by another link, as happens in a ring, and by the same link again.
    wire.say(second, flood(7, loop_count=4))
    wire.say(came_by, flood(7, loop_count=6))
    assert wire.heard(came_by) == wire.heard(second) == wire.heard(third) == []
    assert wire.core.counters["floods-seen-before"] == 2
    assert len(wire.floods) == 1


def test_the_loop_count_of_the_first_objective_is_lowered_and_of_no_other() -> None:
    """covers: G2.5.6.2-5"""
    wire = Wire()
    came_by, other = wire.link(1), wire.link(2)
    entries = tuple(FloodEntry(Objective(f"EX{n}", F_SYNCH, 9 - n, n), locator(n)) for n in range(3))
    wire.say(came_by, Flood(7, address(50), 5000, entries))
    [relayed] = wire.heard(other)
    assert [entry.objective.loop_count for entry in relayed.entries] == [8, 8, 7]
    assert relayed.ttl == 5000


@pytest.mark.parametrize(("loop_count", "relayed"), [(0, False), (1, False), (2, True), (255, True)])
def test_a_flood_whose_loop_count_is_used_up_is_taken_and_not_relayed(loop_count: int, relayed: bool) -> None:
    """covers: G2.5.6.2-5"""
    wire = Wire()
    came_by, other = wire.link(1), wire.link(2)
    wire.say(came_by, flood(7, loop_count=loop_count))
    assert len(wire.core.floods("EX1", wire.now)) == 1
    assert bool(wire.heard(other)) is relayed
    third = wire.link(3)  # nor is it told to those who come later
    assert bool(wire.heard(third)) is relayed


def test_a_flood_is_remembered_for_twice_the_default_timeout_and_while_it_lives() -> None:
    """covers: G2.5.6.2-5"""
    wire = Wire()
    came_by, other = wire.link(1), wire.link(2)
    wire.say(came_by, flood(1, ttl=1000), flood(2, ttl=600_000), flood(3, ttl=0))
    wire.heard(other)
    for after in (1.5, 118.0):
        wire.run(after)
        wire.say(other, flood(1, ttl=1000), flood(2, ttl=600_000), flood(3, ttl=0))
        assert wire.heard(came_by) == []
    wire.run(400)
    wire.say(other, flood(2, ttl=600_000), flood(3, ttl=0))
    assert wire.heard(came_by) == []
    wire.say(other, flood(1, ttl=1000))  # long forgotten: it could as well be another one
    assert len(wire.heard(came_by)) == 1


def test_a_flood_without_end_is_relayed_once_however_long_it_lives() -> None:
    """covers: G2.5.6.2-5"""
    wire = Wire()
    came_by, other = wire.link(1), wire.link(2)
    wire.say(came_by, flood(1, ttl=0))
    wire.heard(other)
    wire.run(3 * flooding.SEEN_LONGEST)
    wire.say(other, flood(1, ttl=0))
    assert wire.heard(came_by) == []
    assert len(wire.floods) == 1


def test_a_flood_in_a_ring_crosses_each_link_once_or_twice_and_is_relayed_once_by_each() -> None:
    """covers: 6.9.2-8, G2.5.6.2-3"""
    network = Network(6)
    for a in range(6):
        network.join(a, (a + 1) % 6)
    network.run(0.1)
    send(flooder(network, 0), "x")
    network.run(0.1)
    assert [values(network, n) for n in range(6)] == [["x"]] * 6
    assert [network.counters(n)["floods-relayed"] for n in range(6)] == [0, 1, 1, 1, 1, 1]
    assert sum(network.counters(n)["floods-seen-before"] for n in range(6)) == 2  # where both ways meet


# --- what is invalid ------------------------------------------------------------------------------


@pytest.mark.parametrize("loop_count", [0, 2, 6, 255])
def test_a_link_local_flood_has_loop_count_1_or_is_invalid(loop_count: int) -> None:
    """covers: G2.5.6.2-4"""
    wire = Wire()
    came_by, other = wire.link(1), wire.link(2)
    wire.say(came_by, flood(7, neighbour(1), loop_count=loop_count))
    assert wire.core.floods("EX1", wire.now) == []
    assert wire.heard(other) == wire.heard(came_by) == wire.floods == []
    assert wire.core.counters["floods-invalid"] == 1


def test_a_link_local_flood_stays_on_its_link() -> None:
    """covers: G2.5.6.2-4"""
    wire = Wire()
    came_by, other = wire.link(1), wire.link(2)
    tag = IPv6Locator(neighbour(1), TransportProto.IPPROTO_TCP, 80)
    wire.say(came_by, flood(7, neighbour(1), loop_count=1, tag=tag))
    [copy] = wire.core.floods("EX1", wire.now)
    assert (copy.locator, copy.interface) == (tag, 1)
    assert wire.heard(other) == wire.heard(wire.link(3)) == []
    wire.say(other, flood(8))
    wire.core.interface_down(1, wire.now)  # with which it loses its meaning
    assert [copy.session_id for copy in wire.core.floods("EX1", wire.now)] == [8]


def test_what_holds_a_link_local_locator_or_is_not_for_synchronization_is_left_out() -> None:
    """The rest of the flood is taken and relayed.

    covers: 6.9.2-5, G2.9.5-1, G2.5.6.2-1
    """
    wire = Wire()
    came_by, other = wire.link(1), wire.link(2)
    entries = (
        FloodEntry(Objective("EX1", F_SYNCH, 4, 1), IPv6Locator(OURS, TransportProto.IPPROTO_TCP, 80)),
        FloodEntry(Objective("EX2", F_NEG, 9, 2), locator(50)),
        FloodEntry(Objective("EX3", F_SYNCH, 9, 3), locator(50)),
    )
    wire.say(came_by, Flood(7, address(50), 60_000, entries))
    assert [len(wire.core.floods(name, wire.now)) for name in ("EX1", "EX2", "EX3")] == [0, 0, 1]
    third = FloodEntry(Objective("EX3", F_SYNCH, 3, 3), locator(50))
    assert wire.heard(other) == [Flood(7, address(50), 60_000, (third,))]
    wire.say(came_by, Flood(8, address(50), 60_000, entries[:2]))
    assert wire.heard(other) == []
    assert wire.core.counters["objectives-refused"] == 4


def test_a_flood_by_unicast_is_not_taken() -> None:
    """Floods go from neighbour to neighbour alone, where channels protect them.

    covers: G2.5.6.2-7, 6.9.2-6
    """
    wire = Wire()
    link, unicast = wire.link(1), wire.peer()
    wire.say(unicast, flood(7))
    assert wire.core.floods("EX1", wire.now) == wire.heard(link) == wire.heard(unicast) == []
    assert wire.core.counters["unicast-floods"] == 1


def test_a_flood_without_a_value_is_taken() -> None:
    """RFC 8994 figure 4 has SRV.est like that.

    covers: G2.10.3-1
    """
    wire = Wire()
    came_by, other = wire.link(1), wire.link(2)
    wire.say(came_by, flood(7, name="SRV.est", value=NO_VALUE, tag=locator(9, 443)))
    assert wire.core.floods("SRV.est", wire.now)[0].objective.value is NO_VALUE
    assert wire.heard(other)[0].entries[0].objective.value is NO_VALUE


# --- cache ----------------------------------------------------------------------------------------


def test_the_cache_is_tagged_by_locator_and_the_newest_wins() -> None:
    """covers: G2.8.11-1, G2.8.11-2"""
    wire = Wire()
    link = wire.link(1)
    a, b = locator(1), FqdnLocator("b.example", TransportProto.IPPROTO_TCP, 80)
    tags: list[Locator | None] = [None, a, b]
    for number, tag in enumerate(tags):
        wire.say(link, flood(number, value=number, tag=tag))
    found = {copy.locator: copy.objective.value for copy in wire.core.floods("EX1", wire.now)}
    assert found == {None: 0, a: 1, b: 2}
    wire.say(link, flood(10, 51, value=10, tag=a), flood(11, 52, value=11))  # whoever floods it
    found = {copy.locator: copy.objective.value for copy in wire.core.floods("EX1", wire.now)}
    assert found == {None: 11, a: 10, b: 2}
    wire.say(link, flood(12, name="EX10", value=12), flood(13, name="ex1", value=13))
    assert len(wire.core.floods("EX1", wire.now)) == 3


def test_a_copy_is_valid_for_its_ttl_and_0_is_for_ever() -> None:
    """covers: G2.8.11-2"""
    wire = Wire()
    link = wire.link(1)
    wire.say(link, flood(1, ttl=5000, tag=locator(1)), flood(2, ttl=0, tag=locator(2)))
    wire.run(4.9)
    assert len(wire.core.floods("EX1", wire.now)) == 2
    wire.run(0.2)
    assert [copy.locator for copy in wire.core.floods("EX1", wire.now)] == [locator(2)]
    handle = wire.asa()
    assert len(wire.result(wire.call("get_flood", handle, objective("EX1", F_SYNCH)))) == 1
    wire.run(200_000)
    assert len(wire.core.floods("EX1", wire.now)) == 1


def test_a_new_copy_has_the_new_lifetime() -> None:
    """covers: G2.8.11-2"""
    wire = Wire()
    link = wire.link(1)
    wire.say(link, flood(1, ttl=0), flood(2, ttl=1000))
    wire.run(1.1)
    assert wire.core.floods("EX1", wire.now) == []


def test_the_place_of_an_entry_that_has_just_expired_can_be_used() -> None:
    """A sweep in the middle of storing takes away what the new entry was to be put into."""
    wire = Wire()
    link = wire.link(1)
    for number in range(flooding.MAX_ENTRIES_PER_INITIATOR):
        wire.say(link, flood(number, ttl=9000, name="EX1" if number == 0 else f"EX1:{number}"))
    wire.run(9.5)  # all have expired, none has been swept out
    wire.say(link, flood(1000, tag=locator(1)))
    assert len(wire.core.floods("EX1", wire.now)) == 1
    assert [message.session_id for message in wire.heard(wire.link(2))] == [1000]


# --- from here ------------------------------------------------------------------------------------


def test_an_asa_floods_and_reads_what_was_flooded() -> None:
    """The initiator sets the loop count; it answers synchronization requests as well.

    covers: G2.5.6.2-2, G2.5.6.2-6, G2.7-1, G2.8.11-1
    """
    network = line(3)
    asa = flooder(network, 0, "EX1", "EX2")
    here = AsaLocator(locator(0, 4711))
    first, second = objective("EX1", F_SYNCH, [1], 9), objective("EX2", F_SYNCH, "x", 3)
    assert asa.call("flood", 5000, [TaggedObjective(first, here), TaggedObjective(second)]).code == 0
    network.run(0.1)
    reader = network.asa(2)
    [item] = reader.call("get_flood", objective("EX1", F_SYNCH)).result
    tagged = TaggedObjective.from_cbor(item)
    assert (tagged.objective.value, tagged.objective.loop_count) == ([1], 8)
    assert tagged.locator is not None
    assert tagged.locator.locator == here.locator
    assert 4800 < (tagged.locator.ttl or 0) < 5000
    assert reader.call("get_flood", objective("EX2", F_SYNCH)).result == [[["EX2", F_SYNCH, 3, "x"], None]]
    peer = AsaLocator(locator(0))
    request = reader.call("synchronize", objective("EX2", F_SYNCH), peer, 0)
    network.run(0.1)
    assert request.result == ["EX2", F_SYNCH, 3, "x"]


def test_each_flood_has_a_session_id_of_its_own() -> None:
    """covers: G2.7-1"""
    wire = Wire()
    link = wire.link(1)
    handle = wire.asa(objective("EX1", F_SYNCH))
    for value in range(20):
        tagged = TaggedObjective(objective("EX1", F_SYNCH, value))
        wire.result(wire.call("flood", handle, 1000, [tagged]))
    heard = wire.heard(link)
    assert len({message.session_id for message in heard}) == 20
    assert {message.initiator for message in heard} == {address(1)}


def test_nobody_floods_but_who_registered_it_for_synchronization() -> None:
    """covers: G2.5.6.2-1"""
    wire = Wire()
    link = wire.link(1)
    handle = wire.asa(objective("EX1", F_SYNCH), objective("EX2", F_NEG))
    tagged = [TaggedObjective(objective(name, F_SYNCH, 1)) for name in ("EX2", "EX3")]
    assert wire.code(wire.call("flood", handle, 0, [tagged[0]])) is ErrorCode.notFloodDisc
    assert wire.code(wire.call("flood", handle, 0, [tagged[1]])) is ErrorCode.notYourObj
    without = TaggedObjective(objective("EX1", F_DISC, 1))
    assert wire.code(wire.call("flood", handle, 0, [without])) is ErrorCode.notFloodDisc
    assert wire.heard(link) == []


def test_no_link_local_address_leaves_in_a_flood_through_the_network() -> None:
    """covers: 6.9.2-5, G2.9.5-1"""
    wire = Wire()
    link = wire.link(1)
    handle = wire.asa(objective("EX1", F_SYNCH))
    tag = AsaLocator(IPv6Locator(OURS, TransportProto.IPPROTO_TCP, 80))
    call = wire.call("flood", handle, 0, [TaggedObjective(objective("EX1", F_SYNCH, 1), tag)])
    assert wire.code(call) is ErrorCode.invalidLoc
    assert wire.heard(link) == []


def test_the_unspecified_address_is_flooded_as_our_link_local_one_and_for_the_link_alone() -> None:
    """RFC 8991, flood. What is for the link and what is for all do not mix."""
    wire = Wire()
    links = {number: wire.link(number) for number in (1, 2)}
    handle = wire.asa(objective("EX1", F_SYNCH))
    tagged = TaggedObjective(objective("EX1", F_SYNCH, 1, 9), AsaLocator(ANY))
    wire.result(wire.call("flood", handle, 5000, [tagged]))
    for connection in links.values():
        [message] = wire.heard(connection)
        assert message.initiator == OURS
        [entry] = message.entries
        assert entry.objective.loop_count == 1
        assert entry.locator == IPv6Locator(OURS, TransportProto.IPPROTO_TCP, 4711)
    mixed = [tagged, TaggedObjective(objective("EX1", F_SYNCH, 1))]
    assert wire.code(wire.call("flood", handle, 0, mixed)) is ErrorCode.invalidLoc


def test_a_flood_of_more_than_2048_bytes_is_not_sent() -> None:
    """covers: G2.8.3-1"""
    wire = Wire()
    link = wire.link(1)
    handle = wire.asa(objective("EX1", F_SYNCH))
    sizes = []
    for size in (1900, 2100):
        tagged = TaggedObjective(objective("EX1", F_SYNCH, b"x" * size))
        sizes.append(wire.code(wire.call("flood", handle, 0, [tagged])))
    assert sizes == [ErrorCode.ok, ErrorCode.unspec]
    assert len(wire.heard(link)) == 1


def test_a_flood_of_more_than_2048_bytes_is_taken() -> None:
    """covers: G2.8.3-1"""
    wire = Wire()
    wire.say(wire.link(1), flood(1, value=b"x" * 60_000))
    assert len(wire.core.floods("EX1", wire.now)) == 1


def test_flooded_values_can_be_expired_by_an_asa() -> None:
    wire = Wire()
    wire.say(wire.link(1), flood(1, tag=locator(1)), flood(2))
    handle = wire.asa()
    first, second = wire.result(wire.call("get_flood", handle, objective("EX1", F_SYNCH)))
    assert wire.result(wire.call("expire_flood", handle, TaggedObjective.from_cbor(first))) is None
    assert wire.result(wire.call("get_flood", handle, objective("EX1", F_SYNCH))) == [second]
    again = wire.call("expire_flood", handle, TaggedObjective.from_cbor(first))
    assert wire.code(again) is ErrorCode.notObj


# --- late joiners ---------------------------------------------------------------------------------


def test_a_node_that_joins_later_has_what_was_flooded_before_with_the_time_that_is_left() -> None:
    """covers: 6.9.2-1"""
    network = line(3)
    send(flooder(network, 0), "early", ttl=100_000)
    network.run(30)
    network.add()
    network.join(2, 3)
    network.run(0.1)
    assert values(network, 3) == ["early"]
    network.run(69)
    assert values(network, 3) == ["early"]
    network.run(2)
    assert values(network, 3) == []


def test_partitions_heal_and_the_newest_value_of_an_initiator_wins() -> None:
    """What was flooded while the network was in two parts is everywhere afterwards; nothing old comes back.

    covers: G2.8.11-2, G2.5.6.2-5
    """
    network = line(6)
    asas = [flooder(network, node) for node in (0, 5)]
    tags = [AsaLocator(locator(node)) for node in (0, 5)]
    for asa, tag in zip(asas, tags, strict=True):
        send(asa, "old", ttl=0, tag=tag)
    network.run(0.1)
    network.cut(2, 3)
    send(asas[0], "new", ttl=0, tag=tags[0])
    network.run(7200)
    assert values(network, 5) == ["old", "old"]
    network.join(2, 3)
    network.run(1)
    for node in range(6):
        copies = network.nodes[node].core.floods("EX1", network.simulator.now)
        assert {copy.locator: copy.objective.value for copy in copies} == {
            tags[0].locator: "new",
            tags[1].locator: "old",
        }, node


def test_a_neighbour_that_has_forgotten_everything_is_told_what_it_told_us() -> None:
    """It may have started anew, and whoever it had it from may be gone."""
    wire = Wire()
    wire.say(wire.link(1), flood(1))
    wire.core.interface_down(1, wire.now)
    assert wire.heard(wire.link(1)) == [flood(1, loop_count=5)]


def test_no_node_sends_a_flood_to_a_neighbour_twice_while_the_link_lasts() -> None:
    """In a network whose links come and go; counted per link, Session ID and initiator.

    covers: G2.5.6.2-5
    """
    network = Network(8)
    random = network.simulator.random
    for a in range(8):
        network.join(a, (a + 1) % 8)
        network.nodes[a].core.tracing = True
    asas = [flooder(network, node) for node in range(8)]
    for round_ in range(60):
        send(random.choice(asas), round_, ttl=random.choice([0, 5000, 60_000]))
        if network.channels and random.random() < 0.4:
            network.cut(*random.choice(list(network.channels)))
        a, b = random.sample(range(8), 2)
        if random.random() < 0.4 and not {(a, b), (b, a)} & set(network.channels):
            network.join(a, b)
        network.run(random.choice([0.01, 0.5, 4.0]))
    for node in network.nodes:
        sent: Counter[Any] = Counter()
        for _, event in node.events:
            if isinstance(event, Traced) and not event.incoming and event.interface is not None:
                message = decode(event.data)
                if isinstance(message, Flood):
                    sent[event.interface, message.session_id, message.initiator] += 1
        assert set(sent.values()) == {1}


def test_what_was_flooded_reaches_all_that_can_be_reached_however_the_network_was_joined() -> None:
    network = Network(12)
    random = network.simulator.random
    asas = [flooder(network, node) for node in range(12)]
    nodes = list(range(12))
    random.shuffle(nodes)
    for position, node in enumerate(nodes):  # a tree, grown link by link while everybody floods
        send(asas[node], node, ttl=0, tag=AsaLocator(locator(node)))
        if position:
            network.join(node, nodes[random.randrange(position)])
        network.run(random.choice([0.0005, 0.01, 1.0]))
    network.run(1)
    for node in range(12):
        assert sorted(values(network, node)) == list(range(12))


def test_a_neighbour_is_told_in_portions_below_what_it_takes() -> None:
    """A thousand floods of a hundred initiators reach one who comes later, none of them limited."""
    network = line(2)
    core = network.nodes[0].core
    core.interface_up(900, OURS, network.simulator.now)
    connection = core.accepted(neighbour(900), 900, network.simulator.now)
    assert connection is not None
    for number in range(1000):
        message = flood(number, 100 + number % 100, name=f"EX1:{number}", ttl=0)
        core.received(connection, message.encode(), network.simulator.now)
        network.streams.pump(network.nodes[0])
        network.run(0.005)
    network.add()
    network.join(1, 2)
    network.run(1)
    early = len(network.nodes[2].core.status(network.simulator.now)["floods"])
    assert 0 < early <= 300
    network.run(10)
    assert len(network.nodes[2].core.status(network.simulator.now)["floods"]) == 1000
    assert network.counters(2)["floods-limited"] == 0


def test_a_neighbour_that_connects_again_and_again_is_not_told_more_for_it() -> None:
    wire = Wire()
    wire.say(wire.link(1), *(flood(n, 50 + n, name=f"EX1:{n}") for n in range(200)))
    told = 0
    wire.core.interface_up(2, OURS, wire.now)
    for _ in range(50):
        connection = wire.core.accepted(neighbour(2), 2, wire.now)
        assert connection is not None
        wire.run(0.01)
        told += len(wire.heard(connection))
        wire.lost(connection)
    assert told <= 4 * flooding.REPLAY_BATCH


# --- limits ---------------------------------------------------------------------------------------


def sizes(wire: Wire) -> dict[str, int]:
    """Return how many entries each table of the flooding has."""
    part = wire.core._flooding
    tables = {name: len(table) for name, table in vars(part).items() if isinstance(table, dict)}
    del tables["_counters"]
    return tables


def test_one_initiator_is_limited_and_the_others_are_not() -> None:
    """1,000 floods a second from one initiator for a minute, by way of the neighbour that brings all.

    covers: G2.5.6.2-5
    """
    wire = Wire()
    relay, other = wire.link(1), wire.link(2)
    rounds = 60_000
    for number in range(rounds):
        wire.say(relay, flood(number, 66, value=number))
        if number % 1000 == 0:
            wire.say(relay, flood(number, 51, name="EX2", value=number))
            assert wire.core.floods("EX2", wire.now)[0].objective.value == number
        if number % 5 == 4:
            wire.run(0.005)
    relayed = Counter(message.initiator for message in wire.heard(other))
    allowed = flooding.INITIATOR_BURST + flooding.INITIATOR_RATE * 60
    assert allowed * 0.99 <= relayed[address(66)] <= allowed + 1
    assert relayed[address(51)] == 60
    assert wire.core.counters["floods-limited"] == rounds - relayed[address(66)]
    assert sizes(wire)["_seen"] < 2 * allowed
    assert sizes(wire)["_cache"] == 2


def test_a_neighbour_that_makes_initiators_up_is_limited_and_the_network_is_served() -> None:
    """1,000 floods a second for a minute, each by another initiator, through a relay to a third node.

    Who is known from before is heard all the time, by the relay and behind it; memory stays within bounds.

    covers: G2.5.6.2-5
    """
    relay, behind = Wire(1), Wire(2)
    hostile, honest, to_behind = relay.link(1), relay.link(2), relay.link(3)
    from_relay = behind.link(1)
    for second in range(60):
        for number in range(1000):
            made_up = IPv6Address((0xFD00 << 112) + second * 1000 + number)
            relay.say(hostile, flood(number, made_up, name=f"x:{second}.{number}", ttl=0))
            if number % 500 == 0:
                relay.say(honest, flood(second * 1000 + number, 51, name="EX2", value=(second, number)))
            if number % 5 == 4:
                relay.run(0.005)
                behind.run(0.005)
                behind.say(from_relay, *relay.heard(to_behind))
        for wire in (relay, behind):
            assert wire.core.floods("EX2", wire.now)[0].objective.value == [second, 500]
    taken = relay.core.counters["floods-received"]
    assert taken <= flooding.LINK_BURST + 60 * flooding.LINK_RATE + 130
    assert relay.core.counters["floods-limited"] > 40_000
    for wire in (relay, behind):
        assert sizes(wire)["_cache"] <= flooding.MAX_ENTRIES
        assert sizes(wire)["_seen"] <= flooding.MAX_SEEN
        assert sizes(wire)["_initiator_buckets"] <= flooding.MAX_INITIATORS


def test_a_full_cache_makes_room_where_it_is_fullest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flooding, "MAX_ENTRIES", 100)
    monkeypatch.setattr(flooding, "_EVICTED_AT_ONCE", 5)
    wire = Wire()
    hostile, honest = wire.link(1), wire.link(2)
    wire.say(honest, *(flood(n, 50 + n, name=f"EX1:{n}", ttl=0) for n in range(20)))
    wire.say(hostile, *(flood(n, 500 + n, name=f"EX2:{n}", ttl=0) for n in range(400)))
    wire.say(honest, *(flood(n, 50 + n, name=f"EX1:{n}", ttl=0) for n in range(20, 40)))
    assert all(len(wire.core.floods(f"EX1:{n}", wire.now)) == 1 for n in range(40))
    assert len(wire.core.floods("EX2:399", wire.now)) == 1
    assert sizes(wire)["_cache"] <= 100
    assert wire.core.counters["flood-cache-full"] == 0


def test_an_initiator_has_no_more_than_its_share_of_the_cache() -> None:
    wire = Wire()
    link = wire.link(1)
    for number in range(400):
        wire.say(link, flood(number, name=f"EX1:{number}", ttl=0))
        wire.run(0.2)
    assert sizes(wire)["_cache"] == flooding.MAX_ENTRIES_PER_INITIATOR
    wire.say(link, flood(1000, value="new", name="EX1:0", ttl=0), flood(1001, 51, ttl=0))
    assert wire.core.floods("EX1:0", wire.now)[0].objective.value == "new"
    assert len(wire.core.floods("EX1", wire.now)) == 1


def test_tables_are_empty_again_when_everything_has_expired() -> None:
    wire = Wire()
    link = wire.link(1)
    wire.say(link, *(flood(n, 50 + n, name=f"EX1:{n}", tag=locator(n)) for n in range(100)))
    local = Objective("EX1", ObjectiveFlag.F_NEG, 2, 1)
    wire.say(link, Flood(999, address(60), 1000, (FloodEntry(local),)))  # seen, and not cached
    wire.run(150)
    counts = sizes(wire)
    assert counts.pop("_initiator_buckets") == 100
    assert counts.pop("_link_buckets") == counts.pop("_replays") == 1
    assert set(counts.values()) == {0}
    assert wire.core.next_timer() is None


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_the_tables_of_the_cache_agree_with_each_other(data: st.DataObject) -> None:
    """Whatever is flooded, replaced, expired by an ASA or by time, and told again."""
    wire = Wire()
    links = [wire.link(1), wire.link(2)]
    handle = wire.asa()
    names, tags = ["EX1", "EX2"], [None, locator(1), locator(2)]
    for number in range(data.draw(st.integers(1, 25))):
        entries = tuple(
            FloodEntry(Objective(name, F_SYNCH, loop_count, number), tag)
            for name, tag, loop_count in data.draw(
                st.lists(
                    st.tuples(st.sampled_from(names), st.sampled_from(tags), st.integers(0, 3)),
                    min_size=1,
                    max_size=3,
                )
            )
        )
        ttl = data.draw(st.sampled_from([0, 500, 2000]))
        initiator = address(data.draw(st.integers(50, 52)))
        wire.say(data.draw(st.sampled_from(links)), Flood(number, initiator, ttl, entries))
        wire.run(data.draw(st.sampled_from([0.0, 0.3, 11.0])))
        if data.draw(st.booleans()):
            wire.heard(wire.link(3))
            wire.core.interface_down(3, wire.now)
        if data.draw(st.booleans()):
            tag = data.draw(st.sampled_from(tags))
            tagged = TaggedObjective(objective("EX1", F_SYNCH), None if tag is None else AsaLocator(tag))
            wire.call("expire_flood", handle, tagged)
        part = wire.core._flooding
        cached = {(name, tag) for name, copies in part._cache.items() for tag in copies}
        listed = [key for keys in part._floods.values() for key in keys]
        assert sorted(map(str, cached)) == sorted(map(str, listed))
        assert part._entries == part._per_link.total() == part._per_initiator.total() == len(cached)
        assert all(part._cache.values())
        assert all(part._floods.values())
