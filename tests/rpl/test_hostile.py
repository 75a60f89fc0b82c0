"""A neighbour that is a member of the domain, but says whatever it likes, whenever it likes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from minerva.rpl.config import Preference
from minerva.rpl.events import DEFAULT_ROUTE, Role, RouteAdded, RouteRemoved
from minerva.rpl.messages import Dao, DaoAck, Dio, Dis, Message

from .bench import BASE, CONFIGURATION, ROOT, Bench, dao, dio, own_prefix

sequence = st.sampled_from([0, 5, 127, 128, 240, 241, 255])
dios = st.builds(
    dio,
    st.sampled_from([0, 256, 512, 768, 1024, 0xFEFF, 0xFFFF]),
    dodag_id=st.sampled_from([ROOT, ROOT + 1, BASE, BASE + 2]),
    version=sequence,
    preference=st.sampled_from([0, 1, 3, 7]),
    dtsn=sequence,
    configuration=st.sampled_from([CONFIGURATION, None]),
)
daos = st.builds(
    lambda number, prefixes, path, bits, life: dao(
        number, *prefixes, path_sequence=path, path_control=bits, lifetime=life
    ),
    sequence,
    st.lists(st.sampled_from([own_prefix(n) for n in range(5)]), min_size=1, max_size=3),
    sequence,
    st.sampled_from([0, 1, 0x0F, 0xFF]),
    st.sampled_from([0, 1, 255]),
)
acks = st.builds(DaoAck, sequence, st.sampled_from([0, 127, 255]))
messages: st.SearchStrategy[Message] = st.one_of(dios, daos, acks, st.just(Dis()))
steps = st.one_of(
    st.tuples(st.just("hear"), st.integers(1, 3), messages, st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([0.001, 0.05, 0.3, 1, 20, 200])),
    st.tuples(st.just("flap"), st.integers(1, 3)),
    st.tuples(st.just("prefer"), st.sampled_from(Preference)),
)


@given(st.lists(steps, max_size=40))
def test_any_history(history: list[tuple[Any, ...]]) -> None:
    """The node never raises, its timers always move on, its routes are what its events say, and it sends
    only as much as its own limits allow."""
    bench = Bench()
    for interface in (1, 2, 3):
        bench.up(interface)
    for what, *arguments in history:
        if what == "hear":
            interface, message, unicast = arguments
            bench.hear(interface, message, unicast=unicast)
        elif what == "wait":
            bench.wait(arguments[0])
        elif what == "flap":
            bench.down(arguments[0])
            bench.up(arguments[0])
        else:
            bench.node.set_preference(arguments[0], bench.now)
        bench.collect()
    _check(bench)
    assert len(bench.take(Dis) + bench.take(Dio) + bench.take(Dao)) < 200 * (len(history) + 1)


def _check(bench: Bench) -> None:
    node, routes = bench.node, {}
    for event in bench.events:
        if isinstance(event, RouteAdded):
            routes[event.prefix] = (event.interface, event.next_hop)
        elif isinstance(event, RouteRemoved):
            assert routes.pop(event.prefix) == (event.interface, event.next_hop)
    assert routes == {prefix: (hop.interface, hop.address) for prefix, hop in node.routes.items()}
    assert own_prefix(1) not in routes
    assert (DEFAULT_ROUTE in routes) == (node.role is Role.ROUTER) == bool(node.parents)
    status = node.status(bench.now)
    assert (status.dodag_id == node.dodag_id) == (node.role is Role.ROOT)
    for interface in node.parents:
        (neighbour,) = [n for n in status.neighbours if n.interface == interface]
        assert neighbour.rank is not None
        assert neighbour.rank < status.rank
        assert (neighbour.dodag_id, neighbour.version) == (status.dodag_id, status.version)
        assert neighbour.targets == 0
