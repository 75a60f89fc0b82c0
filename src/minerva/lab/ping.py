"""Who reaches whom: pings every ordered pair of acp0 addresses until all have answered."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address

from minerva.linux.icmp import EchoSocket
from minerva.linux.namespace import Namespace

_ROUND_SECONDS = 0.1
_MAX_PER_ROUND = 2_000

Pair = tuple[str, str]


class Pinger:
    """Pings between nodes, each from its own host namespace and V=1 address.

    ``reached`` holds for each ordered pair when (monotonic seconds) its first answer came, and the round
    trip in seconds.
    """

    def __init__(self) -> None:
        self._sockets: dict[str, EchoSocket] = {}
        self._addresses: dict[str, IPv6Address] = {}
        self._names: dict[IPv6Address, str] = {}
        self._ident = os.getpid() & 0xFFFF
        self._sequence = 0
        self._valid_from = 0
        self.reached: dict[Pair, tuple[float, float]] = {}

    def add(self, name: str, host: Namespace, address: IPv6Address) -> None:
        """Let the node ``name`` with ``address`` take part. Raises OSError while it has no such address."""
        with host.entered():
            sock = EchoSocket(address)
        self._sockets[name] = sock
        self._addresses[name] = address
        self._names[address] = name
        asyncio.get_running_loop().add_reader(sock.fileno(), self._answers, name)

    @property
    def nodes(self) -> set[str]:
        """The nodes that take part."""
        return set(self._sockets)

    def _answers(self, name: str) -> None:
        for answer in self._sockets[name].receive():
            peer = self._names.get(answer.source)
            if peer is not None and answer.sequence >= self._valid_from:
                self.reached.setdefault((name, peer), (time.monotonic(), answer.rtt))

    def start_over(self) -> None:
        """Forget all answers; from now on only requests sent after this moment count."""
        self._valid_from = self._sequence + 1
        self.reached.clear()

    def _send_round(self, pairs: Iterable[Pair]) -> None:
        # Sequence numbers have 16 bits: a lab that has not converged in 65,000 rounds never will.
        self._sequence += 1
        for number, (name, peer) in enumerate(pairs):
            if number >= _MAX_PER_ROUND:
                return
            try:
                self._sockets[name].send(self._addresses[peer], self._ident, self._sequence)
            except OSError:
                continue  # no route yet: that is what the next round is for

    async def run(self, nodes: set[str], deadline: float, progress: Callable[[], None]) -> bool:
        """Ping until every ordered pair of ``nodes`` has answered or it is ``deadline`` (monotonic).

        ``progress`` is called after every round. Return whether all have answered.
        """
        pairs = [(a, b) for a in sorted(nodes) for b in sorted(nodes) if a != b]
        while time.monotonic() < deadline:
            ready = self.nodes
            missing = [
                pair for pair in pairs if pair not in self.reached and pair[0] in ready and pair[1] in ready
            ]
            self._send_round(missing)
            await asyncio.sleep(_ROUND_SECONDS)
            progress()
            if len(self.reached) == len(pairs):
                return True
        return False

    def close(self) -> None:
        """Close all sockets."""
        for sock in self._sockets.values():
            asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()
