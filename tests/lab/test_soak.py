"""A ring whose keys live for seconds, with traffic between all: nobody is silent, and nothing leaks."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any

import pytest

from minerva.linux.icmp import EchoSocket
from minerva.linux.namespace import Namespace
from minerva.linux.nftables import Nftables
from tests.lab.attacker import StandingLab, standing_lab, until

pytestmark = pytest.mark.root

NODES = [f"n{number}" for number in range(1, 7)]
LIFETIME = 4
"""How long an IKE SA and a child SA are used, in seconds."""

SILENT = {0: 1.0, 10: 5.0}
"""By the loss on every link, in percent, for how long no pair may be silent, in seconds."""

RATE = 10.0
FLOOD_GAP = 0.01
"""What a flooding ping waits for an answer, in seconds, before it sends the next."""

TCP_RATE = 2 << 20
"""Bytes per second of the TCP flow: not the machine is to be tested, on which others may be busy."""

MAX_KEPT = 16
"""How many IKE SAs, with those that linger, and SPIs of child SAs a port may have at any time."""


def topology(path: list[str]) -> str:
    """Return a topology with links along ``path`` and keys that live for ``LIFETIME``."""
    links = ", ".join(f'["{one}", "{other}"]' for one, other in itertools.pairwise(path))
    lifetimes = f"ike_lifetime = {LIFETIME}\nchild_lifetime = {LIFETIME}\n"
    settings = [f"[nodes.{node}.ike]\n{lifetimes}" for node in sorted(set(path))]
    return "\n".join([f"links = [{links}]", *settings])


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    directory = tmp_path_factory.mktemp("labs")
    (directory / "soak.toml").write_text(topology([*NODES, NODES[0]]))
    with standing_lab(str(directory / "soak.toml"), "soak", directory) as found:
        yield found


@contextmanager
def losing(lab: StandingLab, percent: int) -> Iterator[None]:
    """Let every link lose so many packets, in each direction, before anything of the node sees them."""
    with ExitStack() as stack:
        for node in NODES if percent else ():
            for port in ("eth0", "eth1"):
                with lab.host(node).entered(), Nftables() as nftables:
                    nftables.run(
                        f"table netdev loss_{port} {{ chain c {{\n"
                        f'type filter hook ingress device "{port}" priority 0;\n'
                        f"numgen random mod 100 < {percent} counter drop\n}}\n}}\n"
                    )
                stack.callback(_restore, lab.host(node), port)
        yield


def _restore(host: Namespace, port: str) -> None:
    with host.entered(), Nftables() as nftables:
        nftables.run(f"delete table netdev loss_{port}")


Pair = tuple[str, str]


@dataclass
class Probes:
    """Pings between all ordered pairs, and how long each pair was silent at most.

    A pair is silent from the first ping that is not answered until a later one is: by the clock of the
    kernel that the answer reaches, as this process may have no time to look at it. The kernel may have none
    either; therefore each node pings itself too, which no channel has to do with.
    """

    sockets: dict[str, EchoSocket]
    addresses: dict[str, IPv6Address]
    silent: dict[Pair, float] = field(default_factory=dict)
    heard: set[Pair] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    _waiting: dict[Pair, dict[int, float]] = field(default_factory=dict)  # numbers, and when they were sent
    _number: int = 0

    @property
    def pairs(self) -> list[Pair]:
        return list(itertools.product(self.addresses, self.addresses))

    def longest(self, *, self_alone: bool = False) -> Pair:
        """Return the pair of two nodes that was silent for the longest time, or that of one node."""
        pairs = [pair for pair in self.pairs if (pair[0] == pair[1]) is self_alone]
        return max(pairs, key=lambda pair: self.silent[pair])

    def start(self) -> None:
        self.receive()
        self._waiting = {pair: {} for pair in self.pairs}
        self.silent = dict.fromkeys(self.pairs, 0.0)
        self.heard.clear()
        self.counts = {"sent": 0, "answered": 0}

    def send(self, pair: Pair) -> None:
        self._number = (self._number + 1) & 0xFFFF
        self._waiting[pair][self._number] = time.monotonic()
        self.counts["sent"] += 1
        with suppress(OSError):  # of which nothing comes back either
            self.sockets[pair[0]].send(self.addresses[pair[1]], os.getpid() & 0x7FFF, self._number)

    def receive(self) -> None:
        names = {address: name for name, address in self.addresses.items()}
        for name, sock in self.sockets.items():
            for answer in sock.receive():
                pair = (name, names[answer.source])
                waiting = self._waiting.get(pair, {})
                if answer.sequence not in waiting:
                    continue  # an earlier one than the last that was answered
                self.counts["answered"] += 1
                self.heard.add(pair)
                self._note(pair, waiting[answer.sequence] + answer.rtt)
                while next(iter(waiting)) != answer.sequence:
                    del waiting[next(iter(waiting))]
                del waiting[answer.sequence]

    def _note(self, pair: Pair, now: float) -> None:
        """Note that a pair was silent until now; it may have been since just after the ping before."""
        if self._waiting[pair]:
            since = next(iter(self._waiting[pair].values())) - 1 / RATE
            self.silent[pair] = max(self.silent[pair], now - since)

    def run(self, seconds: float) -> None:
        """Ping all pairs at ``RATE`` each, spread over time."""
        started, sent = time.monotonic(), 0
        while (now := time.monotonic()) < started + seconds:
            while sent < (now - started) * RATE * len(self.pairs):
                self.send(self.pairs[sent % len(self.pairs)])
                sent += 1
            self.receive()
            time.sleep(0.002)
        time.sleep(0.1)
        self.receive()
        for pair in self.pairs:
            self._note(pair, time.monotonic())


class Flow(threading.Thread):
    """One TCP flow from one node to another."""

    def __init__(self, probes: Probes, lab: StandingLab, sender: str, receiver: str, rate: int) -> None:
        super().__init__()
        self._rate = rate
        self.moved = 0
        self.stop = threading.Event()
        with lab.host(receiver).entered():
            self._listener = socket.create_server(
                (str(probes.addresses[receiver]), 0), family=socket.AF_INET6
            )
        with lab.host(sender).entered():
            self._sender = socket.socket(socket.AF_INET6)
        self._sender.bind((str(probes.addresses[sender]), 0))
        self._sender.settimeout(20.0)
        self._sender.connect(self._listener.getsockname()[:2])
        self._receiver, _ = self._listener.accept()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)

    def run(self) -> None:
        chunk, sent, started = bytes(16_384), 0, time.monotonic()
        while not self.stop.is_set():
            with suppress(BlockingIOError):
                while sent < (time.monotonic() - started) * self._rate:
                    sent += self._sender.send(chunk)
            with suppress(BlockingIOError):
                while data := self._receiver.recv(1 << 16):
                    self.moved += len(data)
            time.sleep(0.005)
        for sock in (self._sender, self._receiver, self._listener):
            sock.close()


class FloodPing(threading.Thread):
    """A ping that does not wait: the next request follows the answer, or ``FLOOD_GAP``."""

    def __init__(self, probes: Probes, lab: StandingLab, sender: str, receiver: str) -> None:
        super().__init__()
        self.moved = 0
        self.stop = threading.Event()
        self._destination = probes.addresses[receiver]
        with lab.host(sender).entered():
            self._socket = EchoSocket(probes.addresses[sender])

    def run(self) -> None:
        number, sent_at, answered = 0, 0.0, True
        while not self.stop.is_set():
            if answered or time.monotonic() > sent_at + FLOOD_GAP:
                number, sent_at = (number + 1) & 0xFFFF, time.monotonic()
                with suppress(OSError):
                    self._socket.send(self._destination, 0x7ACE, number)
            answered = bool(self._socket.receive())
            self.moved += answered
            time.sleep(0.0005)
        self._socket.close()


def kept(lab: StandingLab, nodes: list[str]) -> dict[str, int]:
    """Return what ports keep, the most of each kind."""
    most: dict[str, int] = {"ike_sas": 0, "child_spis": 0, "connections": 0, "spis_in": 0}
    for node in nodes:
        status = lab.status(node)
        for channel in status["channels"]:
            for kind, count in status["counters"]["abutment"][channel["port"]]["kept"].items():
                most[kind] = max(most[kind], count)
        for channel in status["channels"]:
            most["connections"] = max(most["connections"], channel["connections"])
            most["spis_in"] = max(most["spis_in"], len(channel["spis_in"]))
    return most


def rekeyed(lab: StandingLab, nodes: list[str], what: str) -> int:
    return sum(
        counters.get("ike", {}).get(f"{what} SA: rekeying begun", 0)
        for node in nodes
        for counters in lab.status(node)["counters"]["abutment"].values()
        if isinstance(counters, dict)
    )


def soak(
    lab: StandingLab,
    seconds: float,
    percent: int,
    nodes: list[str] = NODES,
    *,
    links: int = 6,
    tcp_rate: int = TCP_RATE,
    flood: bool = True,
) -> None:
    """Ping between all, with a TCP flow and a flooding ping half way along; then look at everything."""
    until(lambda: sum(len(lab.channels(node)) for node in nodes) == 2 * links, "all links have their channel")
    addresses = {node: IPv6Address(lab.status(node)["acp0"]["address"]) for node in nodes}
    sockets = {}
    with ExitStack() as stack:
        for node in nodes:
            with lab.host(node).entered():
                sockets[node] = EchoSocket(addresses[node])
            stack.callback(sockets[node].close)
        probes = Probes(sockets, addresses)

        def all_answer() -> bool:
            probes.start()
            probes.run(0.5)
            return probes.heard == set(probes.pairs)

        until(all_answer, "all reach all")
        channels = {node: lab.channels(node) for node in nodes}
        before = {what: rekeyed(lab, nodes, what) for what in ("IKE", "child")}
        half = len(nodes) // 2
        workers: list[Any] = [
            Flow(probes, lab, nodes[0], nodes[-half], tcp_rate),
            *([FloodPing(probes, lab, nodes[1], nodes[1 - half])] if flood else []),
        ]
        with losing(lab, percent):
            for worker in workers:
                worker.start()
            try:
                probes.start()
                probes.run(seconds)
            finally:
                for worker in workers:
                    worker.stop.set()
                    worker.join()
            most = kept(lab, nodes)
    worst, machine = probes.longest(), probes.silent[probes.longest(self_alone=True)]
    begun = {what: rekeyed(lab, nodes, what) - count for what, count in before.items()}
    print(f"{percent} % loss, {seconds:.0f} s: {worst} was silent for {probes.silent[worst]:.2f} s")
    print(probes.counts, f"a node that pings itself waits {machine:.2f} s")
    print(f"TCP in bytes, flood in pings: {[worker.moved for worker in workers]}")
    print(f"rekeyed {begun}; kept {most}")
    assert {node: lab.channels(node) for node in nodes} == channels, "a channel was lost"
    assert probes.silent[worst] < SILENT[percent] + machine - 1 / RATE
    # Either end of a link may begin.
    assert min(begun.values()) >= links * seconds / LIFETIME / 2
    assert all(worker.moved > 0 for worker in workers)
    assert max(most.values()) <= MAX_KEPT, f"SAs leak: {most}"
    assert most["connections"] == 1


@pytest.mark.parametrize("percent", SILENT)
def test_keys_are_replaced_under_load(lab: StandingLab, percent: int) -> None:
    """
    covers: 6.8-rekey, 6.12-dpd
    """
    soak(lab, 30.0, percent)  # a minute in all


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("percent", SILENT)
def test_ten_minutes(lab: StandingLab, percent: int) -> None:
    soak(lab, 600.0, percent)
