"""Fuzzes a GRASP engine: bytes on a link, bytes on a unicast connection, calls with any CBOR as arguments."""

from __future__ import annotations

import random
from ipaddress import IPv6Address
from typing import Any

from minerva.core import cbor
from minerva.core.cbor import CborError
from minerva.grasp.api import ErrorCode
from minerva.grasp.engine import Answer, GraspEngine
from minerva.grasp.messages import decode
from minerva.grasp.substrate import Close, Connect, Send

HERE, PEER = IPv6Address("fd89:b714:f3db::2"), IPv6Address("fd89:b714:f3db::4")
OURS, THEIRS = IPv6Address("fe80::1"), IPv6Address("fe80::2")
NEG, SYNCH = ["EX1", 2, 6, 1], ["EX2", 4, 6, 1]

FUNCTIONS = (
    "register_asa",
    "deregister_asa",
    "register_objective",
    "deregister_objective",
    "discover",
    "request_negotiate",
    "listen_negotiate",
    "stop_listen_negotiate",
    "negotiate_step",
    "negotiate_wait",
    "end_negotiate",
    "synchronize",
    "listen_synchronize",
    "stop_listen_synchronize",
    "flood",
    "get_flood",
    "expire_flood",
    "send_invalid",
    "cancel",
    "node",
    "status",
)

LINK, UNICAST, CALL, HANDLE_CALL, TIME, CONNECTED, CLOSED = range(7)


def step(kind: int, data: bytes, *, argument: int = 0) -> bytes:
    """Return a step of a seed: what to do, with what, and how many bytes that is."""
    return bytes([kind, argument, len(data) >> 8, len(data) & 0xFF]) + data


def call(name: str, *arguments: Any) -> bytes:
    """Return the step that calls a function with the handle of the ASA that there is."""
    return step(HANDLE_CALL, cbor.dumps(list(arguments)), argument=FUNCTIONS.index(name))


_MESSAGES = [
    bytes.fromhex(message)
    for message in (
        "8100",
        "84010750fd89b714f3db0000000000000000000483634558310206",
        "84010750fd89b714f3db0000000000000000000483634558320406",
        "85020750fd89b714f3db0000000000000000000419ea6084186750fd89b714f3db0000000000000000000406191b69",
        "8303078463455831020601",
        "83040783634558320406",
        "8305078463455831020502",
        "830607811865",
        "830607821866626e6f",
        "83070719ea60",
        "8308078463455832040602",
        "85090750fd89b714f3db0000000000000000000419ea6082846345583204060180",
        "8318630741ff",
    )
]

SEEDS: list[bytes] = [
    b"".join(step(LINK, message) for message in _MESSAGES),
    b"".join(step(UNICAST, message) for message in _MESSAGES),
    call("listen_negotiate", NEG)
    + step(UNICAST, _MESSAGES[4])
    + call("negotiate_wait", 7, 1000)
    + call("negotiate_step", 7, NEG, 0)
    + step(UNICAST, _MESSAGES[6])
    + call("end_negotiate", 7, False, "no"),
    call("request_negotiate", NEG, [[103, PEER.packed, 6, 7017], 0, None, False], 0)
    + step(CONNECTED, b"")
    + step(CLOSED, b"")
    + step(TIME, b"", argument=200),
    call("request_negotiate", NEG, [[103, HERE.packed, 6, 7017], 0, None, False], 0),
    call("synchronize", SYNCH, None, 0) + step(TIME, b"", argument=100),
    call("flood", 0, [[SYNCH, [[103, bytes(16), 6, 80], 0, None, False]]]) + call("get_flood", SYNCH),
    call("flood", 1000, [[SYNCH, None]]) + call("expire_flood", [SYNCH, None]),
    call("discover", SYNCH, 1000, 0) + call("cancel", 1) + call("send_invalid", 7, b"x"),
    step(CALL, cbor.dumps(["other"]), argument=0) + step(CALL, b"\x80", argument=20),
]


class Driver:
    """An engine with a link, a unicast connection and an ASA, and what it owes."""

    def __init__(self) -> None:
        self.core = GraspEngine(HERE, random=random.Random(1))
        self.now = 10.0
        self.core.interface_up(1, OURS, self.now)
        self.link = self.core.accepted(THEIRS, 1, self.now)
        self.unicast = self.core.accepted(PEER, None, self.now)
        self.open: list[int] = []
        self.request = 0
        self.answered: set[int] = set()
        self.handle = 0
        self.call("register_asa", ["fuzz"])
        for objective in (NEG, SYNCH):
            self.call("register_objective", [self.handle, objective, 0, False, False, False])
        self.call("listen_synchronize", [self.handle, SYNCH])

    def call(self, name: str, arguments: list[Any]) -> None:
        """Call a function."""
        self.request += 1
        self.core.call(1, self.request, name, arguments, self.now)
        self.settle()

    def settle(self) -> None:
        """Take what the engine wants and says."""
        for action in self.core.actions():
            match action:
                case Connect():
                    self.open.append(action.connection)
                case Send():
                    decode(action.data, max_size=1 << 17)
                case Close():
                    if action.connection in self.open:
                        self.open.remove(action.connection)
        while (event := self.core.next_event()) is not None:
            if isinstance(event, Answer):
                assert event.request not in self.answered, "answered twice"
                self.answered.add(event.request)
                assert event.code is ErrorCode.ok or event.result is None
                cbor.dumps(event.result)
                if event.request == 1:
                    self.handle = event.result

    def run(self, seconds: float) -> None:
        """Let time pass, a few timers at most."""
        end = self.now + seconds
        for _ in range(20):
            when = self.core.next_timer()
            if when is None or when > end:
                break
            self.now = max(self.now, when)
            self.core.on_timer(self.now)
            self.settle()
        self.now = end

    def do(self, kind: int, argument: int, data: bytes) -> None:
        """Do one step."""
        if kind == LINK and self.link is not None:
            self.core.received(self.link, data, self.now)
        elif kind == UNICAST and self.unicast is not None:
            self.core.received(self.unicast, data, self.now)
        elif kind in (CALL, HANDLE_CALL):
            try:
                arguments = cbor.loads(data)
            except CborError:
                return
            if isinstance(arguments, list):
                prefix = [self.handle] if kind == HANDLE_CALL else []
                self.call(FUNCTIONS[argument % len(FUNCTIONS)], prefix + arguments)
        elif kind == TIME:
            self.run(argument / 10)
        elif kind == CONNECTED and self.open:
            self.unicast = self.open.pop()
            self.core.connected(self.unicast, self.now)
        elif kind == CLOSED and self.unicast is not None:
            self.core.closed(self.unicast, "reset", self.now)
            self.unicast = self.core.accepted(PEER, None, self.now)
        self.settle()


def target(data: bytes) -> None:
    """Do the steps that ``data`` says; nothing is raised, and all that goes out can be decoded."""
    driver = Driver()
    while len(data) >= 4:
        kind, argument, size = data[0] % 7, data[1], int.from_bytes(data[2:4])
        body, data = data[4 : 4 + size], data[4 + size :]
        driver.do(kind, argument, body)
    driver.core.status(driver.now)
    driver.core.client_gone(1, driver.now)
    driver.settle()
    assert driver.core.status(driver.now)["sessions"] == []


if __name__ == "__main__":
    from _harness import run

    run(target, SEEDS)
