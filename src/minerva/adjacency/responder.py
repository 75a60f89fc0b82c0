"""How often a peer that fails is answered.

Failures of a peer that initiates must not keep us from initiating to it (RFC 8994 section 6.7), nor may
they cost us a signature and a certificate check as often as it likes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from ipaddress import IPv6Address
from typing import TypeAlias

ANSWERS_PER_MINUTE = 6
"""How many attempts of one peer are answered in any 60 s, once it has failed in one of them."""

MAX_FAILED_PEERS = 1024
"""How many failing peers are remembered; beyond, the one not heard for the longest time is forgiven."""

_WINDOW = 60.0

_Key: TypeAlias = tuple[int, IPv6Address]


class ResponderLimit:
    """Answers or not, for every port and link-local address.

    Ask ``may_answer`` once per attempt, at its first packet. A peer that never failed is always answered.
    """

    def __init__(self) -> None:
        self._answers: OrderedDict[_Key, deque[float]] = OrderedDict()

    def may_answer(self, port: int, address: IPv6Address, now: float) -> bool:
        """Return whether to answer a new attempt; if so, it counts as answered."""
        times = self._answers.get((port, address))
        if times is None:
            return True
        self._answers.move_to_end((port, address))
        if len(times) == ANSWERS_PER_MINUTE and now - times[0] < _WINDOW:
            return False
        times.append(now)
        return True

    def record_failure(self, port: int, address: IPv6Address, now: float) -> None:
        """Remember that an attempt of this peer's failed, so that its next ones are counted."""
        key = (port, address)
        if key not in self._answers:
            self._answers[key] = deque((now,), maxlen=ANSWERS_PER_MINUTE)
            if len(self._answers) > MAX_FAILED_PEERS:
                self._answers.popitem(last=False)

    def record_success(self, port: int, address: IPv6Address) -> None:
        """Forget the failures of a peer that has authenticated itself."""
        self._answers.pop((port, address), None)

    def forget_port(self, port: int) -> None:
        """Forget what happened on a port that has gone."""
        for key in [key for key in self._answers if key[0] == port]:
            del self._answers[key]

    def __len__(self) -> int:
        return len(self._answers)
