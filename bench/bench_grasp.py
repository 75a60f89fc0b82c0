"""What GRASP costs: a relayed flood, a synchronization, a negotiation, and the memory of an engine.

Engines without sockets: what is measured is the protocol itself, with the encoding and decoding of its
messages, in CPU time of this process. One function a figure.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
import tracemalloc
from collections.abc import Callable
from ipaddress import IPv6Address
from random import Random
from typing import Any

from _grasp_live import live
from _report import report
from minerva.grasp.api import ErrorCode
from minerva.grasp.constants import ObjectiveFlag
from minerva.grasp.engine import Answer, GraspEngine
from minerva.grasp.messages import Flood, FloodEntry
from minerva.grasp.options import Objective
from minerva.grasp.substrate import Close, Connect, Send

PREFIX = 0xFD89B714F3DB << 80
OURS = IPv6Address("fe80::1")
NEG, SYNCH = ["EX1", 2, 6, ["offer", 100]], ["EX2", 4, 6, ["value", 100]]


def engine(number: int) -> GraspEngine:
    """Return an engine."""
    return GraspEngine(IPv6Address(PREFIX + number), random=Random(number))


def link(core: GraspEngine, interface: int) -> int:
    """Let a channel come up whose other end connects; return the connection."""
    core.interface_up(interface, OURS, 0.0)
    connection = core.accepted(IPv6Address(f"fe80::{interface:x}00"), interface, 0.0)
    assert connection is not None
    return connection


def floods(count: int) -> list[bytes]:
    """Return floods of as many nodes, each of one objective of its own, valid for an hour."""
    return [
        Flood(
            number,
            IPv6Address(PREFIX + 1000 + number),
            3_600_000,
            (FloodEntry(Objective(f"EX1:{number}", ObjectiveFlag.F_SYNCH, 255, ["value", number])),),
        ).encode()
        for number in range(count)
    ]


class Pair:
    """Two engines that are connected by nothing but this; ``cpu`` is what each has used, in seconds."""

    def __init__(self) -> None:
        self.cores = [engine(1), engine(2)]
        self.cpu = [0.0, 0.0]
        self.ends: dict[tuple[int, int], int] = {}
        self.requests = 0
        self.answers: dict[int, Answer] = {}
        self.handles = [self.result(self.call(side, "register_asa", ["bench"])) for side in (0, 1)]
        for side in (0, 1):
            for objective in (NEG, SYNCH):
                self.call(side, "register_objective", [self.handles[side], objective, 0, False, False, False])
        self.peer = [[103, self.cores[1].address.packed, 6, 7017], 0, None, False]

    def do(self, side: int, what: Callable[[GraspEngine], Any]) -> None:
        """Have one engine do something, and both all that follows."""
        todo: list[tuple[int, Callable[[GraspEngine], Any]]] = [(side, what)]
        while todo:
            side, what = todo.pop(0)
            core = self.cores[side]
            started = time.process_time()
            what(core)
            actions = core.actions()
            while (event := core.next_event()) is not None:
                if isinstance(event, Answer):
                    self.answers[event.request] = event
            core.next_timer()
            self.cpu[side] += time.process_time() - started
            todo += [item for action in actions for item in self._carry(side, action)]

    def _carry(self, side: int, action: Any) -> list[tuple[int, Callable[[GraspEngine], Any]]]:
        other = 1 - side
        ours = action.connection
        match action:
            case Connect():

                def accept(core: GraspEngine) -> None:
                    theirs = core.accepted(self.cores[side].address, None, 0.0)
                    assert theirs is not None
                    self.ends[side, ours], self.ends[other, theirs] = theirs, ours

                return [(other, accept), (side, lambda core: core.connected(ours, 0.0))]
            case Send():
                theirs = self.ends.get((side, ours))
                if theirs is not None:
                    return [(other, lambda core: core.received(theirs, action.data, 0.0))]
            case Close():
                theirs = self.ends.pop((side, ours), None)
                if theirs is not None:
                    self.ends.pop((other, theirs), None)
                    return [(other, lambda core: core.closed(theirs, "closed", 0.0))]
        return []

    def call(self, side: int, function: str, arguments: list[Any]) -> int:
        """Call a function; return the number of the call."""
        self.requests += 1
        request = self.requests
        self.do(side, lambda core: core.call(1, request, function, arguments, 0.0))
        return request

    def result(self, request: int) -> Any:
        """Return what a call has ended with."""
        answer = self.answers.pop(request)
        assert answer.code is ErrorCode.ok, answer
        return answer.result


def relayed_flood(count: int) -> float:
    """Return the CPU time to take, cache and relay a flood to one other neighbour, in microseconds."""
    core = engine(1)
    came_by, _ = link(core, 1), link(core, 2)
    data = floods(count)
    started = time.process_time()
    for number, message in enumerate(data):
        core.received(came_by, message, number * 0.01)  # below the limit of what a link may bring
        core.actions()
        core.next_event()
        core.next_timer()
    used = time.process_time() - started
    assert core.counters["floods-relayed"] == count
    return used / count * 1e6


def synchronization(count: int) -> tuple[float, float]:
    """Return the CPU time of a synchronization: of who asks, and of who answers, in microseconds."""
    pair = Pair()
    pair.call(1, "listen_synchronize", [pair.handles[1], SYNCH])
    pair.cpu = [0.0, 0.0]
    for _ in range(count):
        request = pair.call(0, "synchronize", [pair.handles[0], SYNCH, pair.peer, 0])
        assert pair.result(request) == SYNCH
    return pair.cpu[0] / count * 1e6, pair.cpu[1] / count * 1e6


def negotiation(count: int) -> float:
    """Return the CPU time of a negotiation with one counter-offer, of both sides, in microseconds."""
    pair = Pair()
    pair.cpu = [0.0, 0.0]
    for _ in range(count):
        listening = pair.call(1, "listen_negotiate", [pair.handles[1], NEG])
        request = pair.call(0, "request_negotiate", [pair.handles[0], NEG, pair.peer, 0])
        session, _ = pair.result(listening)
        step = pair.call(1, "negotiate_step", [pair.handles[1], session, NEG, 0])
        pair.result(request)
        pair.result(pair.call(0, "end_negotiate", [pair.handles[0], session, True, None]))
        assert pair.result(step)[0] is None
    return sum(pair.cpu) / count * 1e6


def memory_at_rest(count: int) -> float:
    """Return the memory of an engine with two links and nothing to do, in KiB."""

    def idle(number: int) -> GraspEngine:
        core = engine(number)
        link(core, 1)
        link(core, 2)
        core.actions()
        return core

    idle(0)
    return _allocated(lambda: [idle(number) for number in range(count)]) / count / 1024


def memory_per_flood(count: int) -> float:
    """Return the memory of a flood that was taken: the cached copy and what is remembered of it, in bytes."""
    core = engine(1)
    came_by = link(core, 1)
    data = floods(count)

    def take() -> GraspEngine:
        for number, message in enumerate(data):
            core.received(came_by, message, number * 0.01)
            core.next_event()
        return core

    used = _allocated(take) / count
    assert core.counters["floods-received"] == count
    return used


def _allocated(make: Callable[[], Any]) -> int:
    gc.collect()
    tracemalloc.start()
    kept = make()
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return used


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--count", type=int, default=2000, help="floods, or sessions, in a run")
    arguments = parser.parse_args()
    runs, count = range(arguments.runs), arguments.count
    synchronization(100)
    negotiation(100)
    answers = [synchronization(count) for _ in runs]
    figures: list[tuple[str, list[float], str]] = [
        ("relay_cpu_us", [relayed_flood(count) for _ in runs], "us"),
        ("sync_asker_cpu_us", [asks for asks, _ in answers], "us"),
        ("sync_answerer_cpu_us", [answers_ for _, answers_ in answers], "us"),
        ("negotiation_cpu_us", [negotiation(count) for _ in runs], "us"),
        ("engine_kib", [memory_at_rest(200) for _ in runs], "KiB"),
        ("flood_bytes", [memory_per_flood(count) for _ in runs], "bytes"),
    ]
    for figure, values, unit in figures:
        report("grasp", figure, values, unit, "lower")
        print(f"{figure}: {[round(value, 1) for value in values]} {unit}", file=sys.stderr)
    if os.geteuid() == 0:
        live()
    else:
        print("between real nodes nothing is measured: that needs root", file=sys.stderr)


if __name__ == "__main__":
    main()
