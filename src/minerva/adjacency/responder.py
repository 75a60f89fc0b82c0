"""How often a peer that does not authenticate itself is answered.

Failures of a peer that initiates must not keep us from initiating to it (RFC 8994 section 6.7), nor may
they cost us a signature and a certificate check as often as it likes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from ipaddress import IPv6Address
from typing import TypeAlias

from minerva.core.rate import TokenBucket

ANSWERS_PER_MINUTE = 6
"""How many attempts of one peer are answered in any 60 s for as long as none of them succeeds."""

BEGINNINGS, BEGINNING_INTERVAL = 1000, 1 / 300
"""How many packets that begin an attempt are looked at on a port at once, whoever they are from, and every
how many seconds one more. That is more than the firewall lets through, if it sees each of them by itself:
but what comes from a neighbour on the same machine may be up to 64 datagrams in one piece, of which it sees
the first."""

MAX_PEERS = 1024
"""How many such peers are remembered; beyond, the one not heard for the longest time is forgiven."""

_WINDOW = 60.0

_Key: TypeAlias = tuple[int, IPv6Address]


class ResponderLimit:
    """Answers or not, for every port and link-local address.

    Ask ``may_answer`` for every packet that begins an attempt: repeated ones, and the one that returns a
    cookie, are known by the ``attempt`` they carry (an initiator's SPI) and count once. Every attempt counts
    from its start, not from its failure, as many can be under way at a time.
    """

    def __init__(self) -> None:
        self._attempts: OrderedDict[_Key, deque[tuple[float, bytes]]] = OrderedDict()
        self._beginnings: dict[int, TokenBucket] = {}

    def may_answer(self, port: int, address: IPv6Address, attempt: bytes, now: float) -> bool:
        """Return whether to answer a packet of ``attempt``."""
        if port not in self._beginnings:
            self._beginnings[port] = TokenBucket(BEGINNINGS, BEGINNING_INTERVAL)
        if not self._beginnings[port].take(now):
            return False
        key = (port, address)
        attempts = self._attempts.get(key)
        if attempts is None:
            attempts = self._attempts[key] = deque(maxlen=ANSWERS_PER_MINUTE)
            if len(self._attempts) > MAX_PEERS:
                self._attempts.popitem(last=False)
        self._attempts.move_to_end(key)
        if any(known == attempt for _, known in attempts):
            return True
        if len(attempts) == ANSWERS_PER_MINUTE and now - attempts[0][0] < _WINDOW:
            return False
        attempts.append((now, attempt))
        return True

    def record_success(self, port: int, address: IPv6Address) -> None:
        """Forget the attempts of a peer that has authenticated itself."""
        self._attempts.pop((port, address), None)

    def forget_port(self, port: int) -> None:
        """Forget what happened on a port that has gone."""
        self._beginnings.pop(port, None)
        for key in [key for key in self._attempts if key[0] == port]:
            del self._attempts[key]

    def __len__(self) -> int:
        return len(self._attempts)
