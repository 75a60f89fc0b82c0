"""Discovery: asking, answering, relaying, passing answers back, caching."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address

import pytest

from minerva.grasp import discovery as module
from minerva.grasp.api import AsaLocator, ErrorCode
from minerva.grasp.constants import TransportProto
from minerva.grasp.messages import Discovery, Invalid, Response
from minerva.grasp.options import Divert, FqdnLocator, IPv6Locator, Locator, Objective, UriLocator
from tests.grasp.network import F_DISC, F_NEG, F_SYNCH, Network, address, line, objective
from tests.grasp.wire import OURS, Wire, discovery, locator, neighbour

EX1 = objective("EX1", F_SYNCH)
TCP = TransportProto.IPPROTO_TCP
LINK_LOCAL = IPv6Locator(neighbour(1), TCP, 7017)


def response(asked: Discovery, *locators: Locator, ttl: int = 60_000) -> Response:
    """Return an answer to a discovery."""
    return Response(asked.session_id, asked.initiator, ttl, locators)


def diverted(asked: Discovery, *locators: Locator, ttl: int = 60_000) -> Response:
    """Return an answer that tells of others."""
    return Response(asked.session_id, asked.initiator, ttl, divert=Divert(locators))


def found(wire: Wire, request: int) -> list[AsaLocator]:
    """Return what a discovery has found."""
    return [AsaLocator.from_cbor(item) for item in wire.result(request)]


def discover(wire: Wire, handle: int, timeout: int, minimum: int = 0, name: str = "EX1") -> int:
    """Call discover."""
    return wire.call("discover", handle, objective(name, F_SYNCH), timeout, minimum)


# --- asking ---------------------------------------------------------------------------------------


def test_a_discovery_goes_out_on_all_links_and_ends_with_its_time() -> None:
    """One objective without a value, our ACP address as initiator.

    covers: G2.8.4-1, G2.5.4.4-1, G2.10.3-1, 6.9.2-1
    """
    wire = Wire()
    links = [wire.link(number) for number in (1, 2, 3)]
    wire.core.interface_up(4, OURS, wire.now)  # a channel without a connection yet
    request = wire.call("discover", wire.asa(), objective("EX1", F_SYNCH, "a value", 4), 2000, 0)
    asked = [wire.heard(link) for link in links]
    assert asked[0] == asked[1] == asked[2]
    [message] = asked[0]
    assert message.initiator == address(1)
    assert message.objective == Objective("EX1", F_DISC | F_SYNCH, 4)
    wire.run(1.9)
    assert wire.code(request) is None
    wire.run(0.2)
    assert found(wire, request) == []


def test_all_responders_are_found_and_cached_with_interface_and_lifetime() -> None:
    """covers: G2.5.4.3-5, G2.5.4.3-6, G2.8.5-1"""
    wire = Wire()
    links = [wire.link(number) for number in (1, 2)]
    handle = wire.asa()
    request = discover(wire, handle, 1000)
    [asked] = wire.heard(links[0])
    wire.say(links[0], response(asked, locator(5), ttl=9000), diverted(asked, locator(6), locator(7)))
    wire.say(links[1], response(asked, locator(8), locator(5, 4711), ttl=0))
    wire.run(1.1)
    result = found(wire, request)
    assert {(item.locator, item.interface, item.diverted) for item in result} == {
        (locator(5), 1, False),
        (locator(6), 1, True),
        (locator(7), 1, True),
        (locator(8), 2, False),
        (locator(5, 4711), 2, False),
    }
    ttl = {item.locator: item.ttl for item in result}
    assert ttl[locator(5)] == 8000
    assert 590_000 < (ttl[locator(8)] or 0) <= 600_000  # 0 means ten times the default time-out
    again = found(wire, discover(wire, handle, 0, 1))  # from the cache, at once
    assert {item.locator for item in again} == set(ttl)
    assert min(item.ttl or 0 for item in again) == pytest.approx(7900, abs=1)


def test_no_cached_locator_outlives_its_ttl() -> None:
    """covers: G2.5.4.3-5"""
    wire = Wire()
    link = wire.link(1)
    handle = wire.asa()
    discover(wire, handle, 1000)
    [asked] = wire.heard(link)
    wire.say(link, response(asked, locator(5), ttl=5000), response(asked, locator(6), ttl=60_000))
    wire.run(4.9)
    assert len(found(wire, discover(wire, handle, 0, 1))) == 2
    wire.run(0.2)
    assert [item.locator for item in found(wire, discover(wire, handle, 0, 1))] == [locator(6)]


@pytest.mark.parametrize(("minimum", "left"), [(1, 2), (9_500, 1), (70_000, 0), (0, 0)])
def test_minimum_ttl_flushes(minimum: int, left: int) -> None:
    """Zero flushes everything (RFC 8991 section 2.3.4)."""
    wire = Wire()
    link = wire.link(1)
    handle = wire.asa()
    discover(wire, handle, 500)
    [asked] = wire.heard(link)
    wire.say(link, response(asked, locator(5), ttl=9000), response(asked, locator(6), ttl=60_000))
    assert len(found(wire, discover(wire, handle, 0, minimum))) == left
    assert len(found(wire, discover(wire, handle, 0, 1))) == left


def test_a_link_that_comes_up_is_asked_what_is_being_asked() -> None:
    wire = Wire()
    request = discover(wire, wire.asa(), 1000)
    wire.run(0.5)
    link = wire.link(1)
    [asked] = wire.heard(link)
    wire.say(link, response(asked, locator(5)))
    wire.run(1)
    assert [item.locator for item in found(wire, request)] == [locator(5)]
    assert wire.heard(wire.link(2)) == []  # it is over


def test_a_peer_is_looked_for_again_with_a_new_session_id_for_twice_as_long() -> None:
    """covers: G2.5.4.3-4, G2.7-1"""
    wire = Wire()
    link = wire.link(1)
    request = wire.call("synchronize", wire.asa(), objective("EX1", F_SYNCH, loop_count=5), None, 0)
    asked, times = [], []
    for _ in range(400):
        heard = wire.heard(link)
        asked += heard
        times += [wire.now] * len(heard)
        wire.run(0.01)
    assert len({message.session_id for message in asked}) == len(asked) == 3
    assert times[1] - times[0] == pytest.approx(0.5, abs=0.02)
    assert times[2] - times[1] == pytest.approx(1.0, abs=0.02)
    assert wire.code(request) is ErrorCode.noDiscReply


@pytest.mark.parametrize("wrong", ["session", "initiator", "late"])
def test_answers_to_what_was_not_asked_are_not_taken(wrong: str) -> None:
    """covers: G2.8.5-1, G2.7-1"""
    wire = Wire()
    link, other = wire.link(1), wire.link(2)
    handle = wire.asa()
    request = discover(wire, handle, 1000)
    [asked] = wire.heard(link)
    wire.heard(other)
    answer = response(asked, locator(5))
    if wrong == "session":
        answer = replace(answer, session_id=asked.session_id ^ 1)
    elif wrong == "initiator":
        answer = replace(answer, initiator=address(77))
    else:
        wire.run(1.1)
    wire.say(link, answer)
    wire.run(2)
    assert found(wire, request) == found(wire, discover(wire, handle, 0, 1)) == []
    assert wire.core.counters["responses-unasked"] == 1
    assert wire.heard(other) == []


def test_names_are_no_members_of_the_acp() -> None:
    """An FQDN or URI is handed to the ASA, which decides; GRASP itself neither keeps nor uses it.

    covers: G3-1
    """
    wire = Wire()
    link = wire.link(1)
    handle = wire.asa()
    request = discover(wire, handle, 1000)
    [asked] = wire.heard(link)
    names = (FqdnLocator("a.example", TCP, 80), UriLocator("https://b.example"))
    wire.say(link, response(asked, *names))
    wire.run(1.1)
    assert {item.locator for item in found(wire, request)} == set(names)
    assert found(wire, discover(wire, handle, 0, 1)) == []
    for name in names:
        call = wire.call("synchronize", handle, EX1, AsaLocator(name), 0)
        assert wire.code(call) is ErrorCode.invalidLoc
    assert not wire.connects


# --- answering ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["negotiating", "synchronizing", "discoverable", "not at all"])
def test_who_has_the_objective_answers_with_where_it_is(how: str) -> None:
    """Not before the ASA listens, unless it wants to be found before (RFC 8991 section 2.3.3).

    covers: G2.5.4.3-1, G2.8.5-1, G2.5.4.4-3
    """
    wire = Wire()
    link, other = wire.link(1), wire.link(2)
    flags = F_NEG if how == "negotiating" else F_SYNCH
    handle = wire.asa(objective("EX1", flags), discoverable=how == "discoverable", ttl=5000)
    if how == "negotiating":
        wire.call("listen_negotiate", handle, objective("EX1", flags))
    elif how == "synchronizing":
        wire.call("listen_synchronize", handle, objective("EX1", flags, 1))
    asked = replace(discovery(3), objective=objective("EX1", flags))
    wire.say(link, asked)
    if how == "not at all":
        assert wire.heard(link) == []
        assert wire.heard(other) == [replace(asked, objective=replace(asked.objective, loop_count=5))]
    else:
        assert wire.heard(link) == [response(asked, locator(1), ttl=5000)]
        assert wire.heard(other) == []


def test_who_has_it_for_something_else_does_not_answer() -> None:
    wire = Wire()
    link = wire.link(1)
    wire.asa(objective("EX1", F_NEG), discoverable=True)
    wire.say(link, discovery(1))
    assert wire.heard(link) == []
    wire.say(link, Discovery(2, address(50), objective("EX1", F_DISC)))
    assert len(wire.heard(link)) == 1


def test_names_are_compared_byte_by_byte() -> None:
    """covers: G2.10.1-1"""
    wire = Wire()
    link = wire.link(1)
    wire.asa(objective("caf\u00e9.example:x", F_SYNCH), discoverable=True)
    for number, name in enumerate(("cafe\u0301.example:x", "CAF\u00c9.example:x", "caf\u00e9.example:x ")):
        wire.say(link, discovery(number, name=name))
        assert wire.heard(link) == []
    wire.say(link, discovery(9, name="caf\u00e9.example:x"))
    assert len(wire.heard(link)) == 1


def test_what_is_for_the_link_alone_is_answered_with_the_link_local_address() -> None:
    """covers: G2.9.5-1"""
    wire = Wire()
    link, unicast = wire.link(1), wire.peer()
    wire.asa(objective("EX1", F_SYNCH), discoverable=True, local=True)
    wire.say(link, discovery(1))
    assert wire.heard(link)[0].locators == (IPv6Locator(OURS, TCP, 7017),)
    wire.say(unicast, discovery(2))
    assert wire.heard(unicast) == []


def test_a_discovery_by_unicast_is_answered_on_its_connection_and_not_relayed() -> None:
    """covers: G2.5.4.2-1"""
    wire = Wire()
    link, unicast = wire.link(1), wire.peer()
    wire.asa(objective("EX1", F_SYNCH), discoverable=True)
    wire.say(unicast, discovery(1), discovery(2, name="EX2"))
    assert wire.heard(unicast) == [response(discovery(1), locator(1))]
    assert wire.heard(link) == []


def test_rapid_mode_is_off() -> None:
    """A value in a discovery is not looked at: it is answered as any other.

    covers: G2.5.5.1-1
    """
    wire = Wire()
    link = wire.link(1)
    handle = wire.asa(objective("EX1", F_SYNCH))
    wire.call("listen_synchronize", handle, objective("EX1", F_SYNCH, "value"))
    wire.say(link, Discovery(1, address(50), objective("EX1", F_SYNCH | F_DISC, "mine")))
    [answer] = wire.heard(link)
    assert isinstance(answer, Response)
    assert answer.objective is None


def learn(wire: Wire, link: int, *locators: Locator, ttl: int = 60_000) -> None:
    """Let an engine find something by a link."""
    handle = wire.asa(name="learner")
    discover(wire, handle, 100, 1)
    asked = wire.heard(link)[-1]
    wire.say(link, response(asked, *locators, ttl=ttl))
    wire.run(0.2)


def test_who_knows_of_it_from_another_link_answers_with_a_divert() -> None:
    """covers: G2.5.4.3-2, G2.8.5-1"""
    wire = Wire()
    first, second, third = (wire.link(number) for number in (1, 2, 3))
    learn(wire, first, locator(5), locator(6), ttl=10_000)
    for link in (first, second, third):
        wire.heard(link)
    wire.say(second, discovery(1))
    [answer] = wire.heard(second)
    assert answer.divert == Divert((locator(5), locator(6)))
    assert (answer.session_id, answer.initiator, answer.locators) == (1, address(50), ())
    assert 9700 < answer.ttl < 9900
    assert wire.heard(third) == wire.heard(first) == []
    # Who told us should not be told; it asks further on.
    wire.say(first, discovery(2))
    assert wire.heard(first) == []
    assert len(wire.heard(second)) == len(wire.heard(third)) == 1
    wire.run(10)
    wire.say(second, discovery(3))
    assert wire.heard(second) == []


def test_no_divert_holds_a_link_local_address() -> None:
    """covers: G2.9.5-1"""
    wire = Wire()
    first, second = wire.link(1), wire.link(2)
    learn(wire, first, LINK_LOCAL, locator(5))
    wire.heard(second)
    wire.say(second, discovery(1))
    assert wire.heard(second)[0].divert == Divert((locator(5),))


def test_a_link_local_address_is_forgotten_with_its_link() -> None:
    wire = Wire()
    learn(wire, wire.link(1), LINK_LOCAL, locator(5))
    wire.core.interface_down(1, wire.now)
    handle = wire.asa(name="another")
    assert [item.locator for item in found(wire, discover(wire, handle, 0, 1))] == [locator(5)]


def test_a_link_local_address_in_a_divert_is_not_taken() -> None:
    """covers: G2.9.5-1"""
    wire = Wire()
    link = wire.link(1)
    handle = wire.asa()
    request = discover(wire, handle, 1000)
    [asked] = wire.heard(link)
    wire.say(link, diverted(asked, LINK_LOCAL, locator(5)))
    wire.run(1.1)
    assert [item.locator for item in found(wire, request)] == [locator(5)]


# --- relaying -------------------------------------------------------------------------------------


def test_what_is_unknown_is_asked_on_the_other_links_once() -> None:
    """Same Session ID, same initiator, one less in the loop count.

    covers: G2.5.4.4-1, G2.5.4.4-2, G2.5.4.4-4, 6.9.2-8
    """
    wire = Wire()
    first, second, third = (wire.link(number) for number in (1, 2, 3))
    wire.say(first, discovery(7, loop_count=6))
    assert wire.heard(first) == []
    assert wire.heard(second) == wire.heard(third) == [discovery(7, loop_count=5)]
    wire.say(second, discovery(7, loop_count=4))
    wire.say(first, discovery(7, loop_count=6))
    assert wire.heard(first) == wire.heard(second) == wire.heard(third) == []
    assert wire.core.counters["discoveries-seen-before"] == 2


@pytest.mark.parametrize(("loop_count", "relayed"), [(0, False), (1, False), (2, True)])
def test_what_may_go_no_further_is_dropped_silently(loop_count: int, relayed: bool) -> None:
    """covers: G2.5.4.4-2, G2.5.4.3-3, G2.8.4-1"""
    wire = Wire()
    first, second = wire.link(1), wire.link(2)
    wire.say(first, discovery(7, loop_count=loop_count))
    assert wire.heard(first) == []
    assert bool(wire.heard(second)) is relayed


def test_who_has_one_link_alone_drops_silently_what_it_does_not_know() -> None:
    """covers: G2.5.4.3-3"""
    wire = Wire()
    link = wire.link(1)
    wire.say(link, discovery(7))
    assert wire.heard(link) == []


def test_answers_are_passed_back_on_the_connection_of_the_question_and_cached() -> None:
    """covers: G2.5.4.4-3, G2.5.4.4-6, G2.5.4.3-5"""
    wire = Wire()
    first, second, third = (wire.link(number) for number in (1, 2, 3))
    asked = discovery(7)
    wire.say(first, asked)
    wire.heard(second)
    wire.heard(third)
    answers = [response(asked, locator(5)), diverted(asked, locator(6))]
    wire.say(second, answers[0])
    wire.say(third, answers[1])
    assert wire.heard(first) == answers
    assert wire.heard(second) == wire.heard(third) == []
    handle = wire.asa()
    known = {(item.locator, item.interface) for item in found(wire, discover(wire, handle, 0, 1))}
    assert known == {(locator(5), 2), (locator(6), 3)}


def test_answers_are_passed_back_for_100_ms_a_hop() -> None:
    """covers: G2.5.4.4-5, G2.5.4.4-4"""
    wire = Wire()
    first, second = wire.link(1), wire.link(2)
    asked = discovery(7, loop_count=6)
    wire.say(first, asked)
    wire.run(0.49)
    wire.say(second, response(asked, locator(5)))
    assert len(wire.heard(first)) == 1
    wire.run(0.02)
    wire.say(second, response(asked, locator(6)))
    assert wire.heard(first) == []
    assert wire.core.counters["responses-unasked"] == 1


def test_link_local_addresses_are_not_passed_back() -> None:
    """covers: G2.9.5-1"""
    wire = Wire()
    first, second = wire.link(1), wire.link(2)
    asked = discovery(7)
    wire.say(first, asked)
    wire.say(second, response(asked, LINK_LOCAL))
    wire.say(second, response(asked, LINK_LOCAL, locator(5)), diverted(asked, LINK_LOCAL, locator(6)))
    assert wire.heard(first) == [response(asked, locator(5)), diverted(asked, locator(6))]


def test_no_answer_comes_from_where_the_question_came() -> None:
    wire = Wire()
    first, second = wire.link(1), wire.link(2)
    asked = discovery(7)
    wire.say(first, asked)
    wire.say(first, response(asked, locator(5)))
    wire.heard(second)
    assert wire.heard(first) == []


def test_discovery_end_to_end_gives_the_locator_at_the_first_ask() -> None:
    """Over five hops; all on the way know it afterwards, and answer with a Divert.

    covers: G2.5.4.4-6, G2.5.4.3-2, G2.5.4.3-6
    """
    network = line(6)
    far = network.asa(5)
    far.register(objective("EX1", F_SYNCH), discoverable=True)
    call = network.asa(0).call("discover", objective("EX1", F_SYNCH), 700, 0)
    network.run(0.8)
    [item] = call.result
    assert AsaLocator.from_cbor(item).locator == locator(5)
    network.add()
    network.join(0, 6)
    network.run(0.1)
    call = network.asa(6).call("discover", objective("EX1", F_SYNCH, loop_count=1), 100, 0)
    network.run(0.2)
    [item] = call.result
    assert AsaLocator.from_cbor(item).locator == locator(5)
    assert AsaLocator.from_cbor(item).diverted


def test_a_discovery_goes_through_a_ring_once() -> None:
    """covers: G2.5.4.4-4"""
    network = Network(6)
    for a in range(6):
        network.join(a, (a + 1) % 6)
    network.run(0.1)
    network.asa(0).call("discover", EX1, 500, 0)
    network.run(1)
    assert [network.counters(node)["discoveries-relayed"] for node in range(6)] == [0, 1, 1, 1, 1, 1]


# --- limits ---------------------------------------------------------------------------------------


def test_a_storm_of_discoveries_is_relayed_at_a_limited_rate_and_others_are_served() -> None:
    """covers: G2.5.4.4-4"""
    wire = Wire()
    hostile, honest, other = (wire.link(number) for number in (1, 2, 3))
    answered = 0
    for number in range(30_000):
        wire.say(hostile, discovery(number, 60 + number % 1000, name=f"x:{number}"))
        if number % 1000 == 0:
            asked = discovery(number, 51, name=f"EX1:{number}")
            wire.say(honest, asked)
            assert asked.objective.name in [message.objective.name for message in wire.heard(other)]
            wire.say(other, response(asked, locator(5)))
            answered += len([item for item in wire.heard(honest) if isinstance(item, Response)])
        wire.run(0.001)
    assert answered == 30
    allowed = module.RELAY_BURST + 30 * module.RELAY_RATE
    assert wire.core.counters["discoveries-limited"] >= 30_000 - allowed - 10
    part = wire.core._discovery
    assert len(part._relayed) <= allowed + 100
    assert len(part._cache) == 30
    wire.run(700)
    assert len(part._relayed) == len(part._cache) == 0
    assert wire.core.next_timer() is None


def test_a_storm_of_answers_is_bounded() -> None:
    wire = Wire()
    first, second = wire.link(1), wire.link(2)
    asked = discovery(7)
    wire.say(first, asked)
    for number in range(1000):
        wire.say(second, response(asked, *(locator(n) for n in range(number, number + 20))))
    assert len(wire.heard(first)) == module.MAX_PASSED_BACK
    part = wire.core._discovery
    assert len(part._cache["EX1"]) <= module.MAX_LOCATORS
    handle = wire.asa()
    request = discover(wire, handle, 1000)
    ours = wire.heard(second)[-1]
    for number in range(100):
        wire.say(second, response(ours, *(locator(n) for n in range(number * 20, number * 20 + 20))))
    wire.run(1.1)
    assert len(found(wire, request)) <= 2 * module.MAX_LOCATORS
    assert len(part._cache["EX1"]) <= module.MAX_LOCATORS


def test_a_divert_is_short() -> None:
    wire = Wire()
    first, second = wire.link(1), wire.link(2)
    learn(wire, first, *(locator(n) for n in range(30)))
    wire.heard(second)
    wire.say(second, discovery(1))
    assert len(wire.heard(second)[0].divert.locators) == module.MAX_DIVERTED


def test_processes_have_a_bounded_number_of_discoveries_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_QUERIES", 5)
    wire = Wire()
    handle = wire.asa()
    requests = [discover(wire, handle, 1000) for _ in range(6)]
    assert wire.code(requests[5]) is ErrorCode.unspec
    wire.run(1.1)
    assert [wire.code(request) for request in requests[:5]] == [ErrorCode.ok] * 5


def test_a_discovery_can_be_cancelled_and_is_answered_once() -> None:
    wire = Wire()
    link = wire.link(1)
    handle = wire.asa()
    request = discover(wire, handle, 1000)
    [asked] = wire.heard(link)
    wire.result(wire.call("cancel", request))
    assert wire.code(request) is ErrorCode.unspec
    wire.result(wire.call("cancel", request))
    wire.say(link, response(asked, locator(5)))
    wire.run(2)
    assert wire.core.next_timer() is None


def test_nonsense_on_a_link_is_dropped_silently() -> None:
    """An unknown type and a malformed message alike; what follows is heard.

    covers: G2.8.2-2, G2.8.12-1
    """
    wire = Wire()
    link, other = wire.link(1), wire.link(2)
    for data in ("83185507f6", "8301075000", "84090750ff00", "80", "f6", "6161", "821863f6"):
        wire.say(link, bytes.fromhex(data))
    wire.say(link, Invalid(5))
    assert wire.heard(link) == wire.heard(other) == []
    wire.say(link, discovery(1))
    assert len(wire.heard(other)) == 1


def test_our_own_discovery_that_comes_back_is_dropped() -> None:
    wire = Wire()
    first, second = wire.link(1), wire.link(2)
    discover(wire, wire.asa(), 1000)
    [asked] = wire.heard(first)
    wire.heard(second)
    wire.say(second, replace(asked, objective=replace(asked.objective, loop_count=3)))
    assert wire.heard(first) == wire.heard(second) == []


def test_who_is_asked_for_the_same_by_two_ways_answers_once() -> None:
    wire = Wire()
    first, second = wire.link(1), wire.link(2)
    wire.asa(objective("EX1", F_SYNCH), discoverable=True)
    wire.say(first, discovery(1))
    wire.say(second, discovery(1))
    assert len(wire.heard(first)) == 1
    assert wire.heard(second) == []


def test_the_initiator_in_a_discovery_is_not_spoken_to() -> None:
    """It may be anybody; answers go where the question came from.

    covers: G2.5.4.4-3
    """
    wire = Wire()
    link = wire.link(1)
    wire.asa(objective("EX1", F_SYNCH), discoverable=True)
    wire.say(link, Discovery(1, IPv6Address("fd00::bad"), EX1))
    assert len(wire.heard(link)) == 1
    assert not wire.connects
