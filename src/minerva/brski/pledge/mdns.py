"""Join proxies that say by multicast DNS where they are (RFC 8995 appendix B, RFC 6762, RFC 6763).

One :class:`MdnsBrowser` serves one interface while its link is up: a core as :mod:`minerva.core.sansio` says.

*When it asks.* For ``_brski-proxy._tcp.local.``: 20 to 120 ms after the link came up, with the QU bit; then
after 1, 2, 4 s and so on, at last once an hour (RFC 6762 section 5.2, RFC 8995 section 4.1). For what is
missing of an instance, its server and that one's address: in the same way. For what there is, before it runs
out: at 80, 85, 90 and 95 % of its time. Never twice within a second; what is due goes into one packet.

*Traffic reduction* (RFC 6762 section 7). Answers that are known are in the query, so that nobody repeats
them. Another's question that is ours as well counts as asked, but never twice in a row, for who only
pretends to ask could keep us silent. Refreshing is limited (``REFRESH_BURST``, ``REFRESH_INTERVAL``), whoever
invents instances that run out soon.

*What it believes.* What comes from port 5353 of a link-local address; that the hop limit was 255, and that
the packet was for us, the firewall sees to. An instance of the service with a server in ``local.`` whose
address is link-local, of whichever machine: a host may answer for its join proxy. It is believed for
``MAX_LIFETIME`` of the scheduler at most, and asked for again before. There is room for ``MAX_INSTANCES``; a
newcomer displaces one by chance, of which the scheduler has been told by then.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv6Address
from random import Random
from typing import Final, TypeAlias

from minerva.brski.pledge.constants import MDNS_GROUP, MDNS_PORT
from minerva.brski.pledge.dns import Message, Name, Question, Record, Server, Type, name_of
from minerva.brski.pledge.errors import DnsDecodeError
from minerva.brski.pledge.scheduler import MAX_LIFETIME, Proxy
from minerva.core.backoff import Backoff
from minerva.core.rate import TokenBucket
from minerva.core.sansio import Datagram

SERVICE: Final = name_of("_brski-proxy._tcp.local.")
"""The service that is looked for (RFC 8995 section 8.6)."""

FIRST_DELAY: Final = (0.02, 0.12)
"""How long the first question waits, in seconds: those whose link came up at the same moment spread out."""

INITIAL_INTERVAL: Final = 1.0
MAX_INTERVAL: Final = 3600.0
"""The interval between the first two questions, in seconds, and at most."""

MIN_GAP: Final = 1.0
"""The shortest time between two packets of ours, in seconds."""

REFRESH_AT: Final = (0.80, 0.85, 0.90, 0.95)
REFRESH_SPREAD: Final = 0.02
"""After which part of its time a record is asked for again, up to so much later (RFC 6762 section 5.2)."""

REFRESH_BURST: Final = 10
REFRESH_INTERVAL: Final = 10.0
"""So many packets that refresh or complete what there is may be sent at once, then one in so many seconds."""

MAX_INSTANCES: Final = 12
MAX_ADDRESSES: Final = 4
"""How many instances are remembered, and how many addresses of the server of each."""

MAX_SIZE: Final = 1232
"""How large a packet of ours is at most, in bytes: what every link carries (RFC 8200)."""

_GOODBYE = 1.0  # RFC 6762 section 10.1


class Count(StrEnum):
    """What a browser counts."""

    SENT = "sent"
    RESPONSES = "responses"
    MALFORMED = "malformed"
    STRANGE_SOURCE = "strange-source"
    ASKED_BY_OTHERS = "asked-by-others"
    LIMITED = "limited"
    EVICTED = "evicted"


@dataclass(frozen=True, slots=True)
class ProxyFound:
    """A join proxy offers itself until ``expires``; ``new`` if it did not just before."""

    proxy: Proxy
    expires: float
    new: bool


@dataclass(frozen=True, slots=True)
class ProxyLost:
    """A join proxy has said goodbye, or has not been heard for too long."""

    proxy: Proxy


@dataclass(frozen=True, slots=True)
class ProxyEvicted:
    """A join proxy is remembered no longer, for want of room. What was told of it is still true."""

    proxy: Proxy


Event: TypeAlias = ProxyFound | ProxyLost | ProxyEvicted


@dataclass(slots=True)
class _Lease:
    """A record that is believed for a while; times are in seconds."""

    since: float
    ttl: float
    spread: float
    asked: int = 0

    @property
    def believed(self) -> float:
        return min(self.ttl, MAX_LIFETIME)

    @property
    def expires(self) -> float:
        return self.since + self.believed

    @property
    def next_ask(self) -> float:
        if self.asked >= len(REFRESH_AT):
            return math.inf
        return self.since + self.believed * (REFRESH_AT[self.asked] + self.spread)

    def end(self, now: float) -> None:
        """Believe it for a second longer only, in which its owner may take that back."""
        if self.expires > now + _GOODBYE:
            self.since, self.ttl, self.asked = now, _GOODBYE, len(REFRESH_AT)


@dataclass(slots=True)
class _Instance:
    pointer: _Lease
    missing_at: float
    backoff: Backoff = field(default_factory=lambda: Backoff(INITIAL_INTERVAL, MAX_INTERVAL))
    server: Server | None = None
    server_lease: _Lease | None = None
    addresses: dict[IPv6Address, _Lease] = field(default_factory=dict)

    def next_ask(self) -> float:
        """Return when to ask for the server or its address."""
        times = [] if self.server_lease is None else [self.server_lease.next_ask]
        times += [lease.next_ask for lease in self.addresses.values()] or [self.missing_at]
        return min(times)

    def due(self, name: Name, now: float, soon: float) -> Question | None:
        """Return what to ask: what is missing, if it is time ``now``, or is to be refreshed ``soon``."""
        if self.server is None or self.server_lease is None:
            return Question(name, Type.SRV) if self.missing_at <= now else None
        if self.server_lease.next_ask <= soon:
            return Question(name, Type.SRV)
        if not self.addresses:
            return Question(self.server.target, Type.AAAA) if self.missing_at <= now else None
        if any(lease.next_ask <= soon for lease in self.addresses.values()):
            return Question(self.server.target, Type.AAAA)
        return None

    def asked(self, question: Question, now: float, soon: float) -> None:
        """Take note that this is being asked."""
        if not self.addresses:
            self.missing_at = now + self.backoff.failed()
        leases = [self.server_lease] if question.type == Type.SRV else self.addresses.values()
        for lease in leases:
            if lease is not None and lease.next_ask <= soon:
                lease.asked += 1

    def forget_expired(self, now: float) -> None:
        complete = bool(self.addresses)
        if self.server_lease is not None and self.server_lease.expires <= now:
            self.forget_server()
        self.addresses = {address: lease for address, lease in self.addresses.items() if lease.expires > now}
        if complete and not self.addresses:
            self.backoff.reset()
            self.missing_at = now

    def forget_server(self) -> None:
        self.server, self.server_lease = None, None
        self.addresses.clear()

    def leases(self) -> Iterator[_Lease]:
        yield self.pointer
        if self.server_lease is not None:
            yield self.server_lease
        yield from self.addresses.values()


class MdnsBrowser:
    """Looks for join proxies on the link of ``port`` (see the module's docstring), from ``now`` on.

    ``link_local`` is our address there. ``counters`` has a number for each :class:`Count` that has occurred.
    """

    def __init__(self, port: int, link_local: IPv6Address, *, random: Random, now: float) -> None:
        self.counters: Counter[str] = Counter()
        self._port = port
        self._link_local = link_local
        self._random = random
        self._instances: dict[Name, _Instance] = {}
        self._told: dict[Proxy, float] = {}
        self._browse_at = now + random.uniform(*FIRST_DELAY)
        self._interval = Backoff(INITIAL_INTERVAL, MAX_INTERVAL)
        self._spared = False
        self._last_sent = -math.inf
        self._refreshes = TokenBucket(REFRESH_BURST, REFRESH_INTERVAL)
        self._datagrams: list[Datagram] = []
        self._events: deque[Event] = deque()

    def receive(self, data: bytes, address: IPv6Address, port: int, now: float) -> None:
        """Take a datagram that came from ``address`` and ``port``."""
        if port != MDNS_PORT or not address.is_link_local or address == self._link_local:
            self.counters[Count.STRANGE_SOURCE] += 1
            return
        try:
            message = Message.decode(data)
        except DnsDecodeError:
            self.counters[Count.MALFORMED] += 1
            return
        self._forget_expired(now)
        if message.response:
            self.counters[Count.RESPONSES] += 1
            self._learn(message.records, now)
        else:
            self._hear_question(message, now)
        self._tell()

    def datagrams_to_send(self, now: float) -> list[Datagram]:  # noqa: ARG002 -- the contract
        """Return, and forget, what is to be sent."""
        datagrams, self._datagrams = self._datagrams, []
        return datagrams

    def next_timer(self) -> float | None:
        """Return when ``on_timer`` wants to be called."""
        ask = max(self._next_ask(), self._last_sent + MIN_GAP)
        expiries = [lease.expires for instance in self._instances.values() for lease in instance.leases()]
        return min([ask, *expiries])

    def on_timer(self, now: float) -> None:
        """Forget what has run out, and ask what is due."""
        self._forget_expired(now)
        self._tell()
        if now >= max(self._next_ask(), self._last_sent + MIN_GAP):
            self._ask(now)

    def next_event(self) -> Event | None:
        """Return, and forget, the oldest event, or ``None``."""
        return self._events.popleft() if self._events else None

    # --- asking ----------------------------------------------------------------------------------------

    def _next_ask(self) -> float:
        times = [self._browse_at]
        for instance in self._instances.values():
            times += (instance.next_ask(), instance.pointer.next_ask)
        return min(times)

    def _ask(self, now: float) -> None:
        soon = now + MIN_GAP  # What would be due before the next packet may be sent is asked in this one.
        browse = self._browse_at <= now
        pointers = [item.pointer for item in self._instances.values() if item.pointer.next_ask <= soon]
        questions: list[Question] = []
        known: tuple[Record, ...] = ()
        if browse or pointers:
            questions.append(Question(SERVICE, Type.PTR, unicast=browse and not self._interval.failures))
            known = self._known_answers(now)
            for pointer in pointers:
                pointer.asked += 1
        if browse:
            self._browse_at = now + self._interval.failed()
            self._spared = False
        for name, instance in sorted(self._instances.items(), key=lambda item: item[1].next_ask()):
            question = instance.due(name, now, soon)
            if question is None:
                continue
            if len(Message(False, (*questions, question), known).encode()) > MAX_SIZE:
                break
            questions.append(question)
            instance.asked(question, now, soon)
        self._last_sent = now
        if not browse and not self._refreshes.take(now):
            self.counters[Count.LIMITED] += 1
            return
        self.counters[Count.SENT] += 1
        data = Message(False, tuple(dict.fromkeys(questions)), known).encode()
        self._datagrams.append(Datagram(data, MDNS_GROUP, MDNS_PORT))

    def _known_answers(self, now: float) -> tuple[Record, ...]:
        """Return what nobody needs to tell us again, with the ttl that is left (RFC 6762 section 7.1)."""
        return tuple(
            Record(SERVICE, int(lease.since + lease.ttl - now), name)
            for name, lease in ((name, instance.pointer) for name, instance in self._instances.items())
            if now - lease.since <= lease.believed / 2
        )

    def _hear_question(self, message: Message, now: float) -> None:
        """Spare ourselves a question that somebody else has asked (RFC 6762 section 7.3)."""
        if self._spared or message.truncated or Question(SERVICE, Type.PTR) not in message.questions:
            return
        known = {record.data for record in self._known_answers(now)}
        if any(record.name == SERVICE and record.data not in known for record in message.records):
            return
        self._spared = True
        self.counters[Count.ASKED_BY_OTHERS] += 1
        self._browse_at = now + self._interval.failed()

    # --- learning --------------------------------------------------------------------------------------

    def _learn(self, records: tuple[Record, ...], now: float) -> None:
        """Take the records of a response: those first that give the others their meaning."""
        for record in sorted(records, key=lambda record: (Type.PTR, Type.SRV, Type.AAAA).index(record.type)):
            match record.data:
                case Server():
                    self._learn_server(record, record.data, now)
                case IPv6Address():
                    self._learn_address(record, record.data, now)
                case name if record.name == SERVICE and name[1:] == SERVICE:
                    self._learn_instance(record, name, now)

    def _learn_instance(self, record: Record, name: Name, now: float) -> None:
        instance = self._instances.get(name)
        if not record.ttl:
            if instance is not None:
                instance.pointer.end(now)
        elif instance is not None:
            instance.pointer = self._lease(record, now)
        else:
            if len(self._instances) >= MAX_INSTANCES:
                self._evict()
            missing_at = now + self._random.uniform(*FIRST_DELAY)
            self._instances[name] = _Instance(self._lease(record, now), missing_at)

    def _learn_server(self, record: Record, server: Server, now: float) -> None:
        instance = self._instances.get(record.name)
        if instance is None or not server.port or server.target[-1:] != SERVICE[-1:]:
            return
        if not record.ttl:
            if instance.server_lease is not None:
                instance.server_lease.end(now)
            return
        if instance.server is None or instance.server.target != server.target:
            instance.forget_server()
            instance.backoff.reset()
            instance.missing_at = now + self._random.uniform(*FIRST_DELAY)
        instance.server, instance.server_lease = server, self._lease(record, now)

    def _learn_address(self, record: Record, address: IPv6Address, now: float) -> None:
        if not address.is_link_local:
            return
        for instance in self._instances.values():
            if instance.server is None or instance.server.target != record.name:
                continue
            if record.flush:
                for lease in instance.addresses.values():
                    if lease.since < now - _GOODBYE:
                        lease.end(now)
            if not record.ttl:
                if (known := instance.addresses.get(address)) is not None:
                    known.end(now)
                continue
            instance.addresses.pop(address, None)
            if len(instance.addresses) >= MAX_ADDRESSES:
                del instance.addresses[next(iter(instance.addresses))]
            instance.addresses[address] = self._lease(record, now)

    def _lease(self, record: Record, now: float) -> _Lease:
        return _Lease(now, record.ttl, REFRESH_SPREAD * self._random.random())

    def _evict(self) -> None:
        instance = self._instances.pop(self._random.choice(list(self._instances)))
        for proxy, _ in self._offers(instance):
            if self._told.pop(proxy, None) is not None:
                self._events.append(ProxyEvicted(proxy))
        self.counters[Count.EVICTED] += 1

    def _forget_expired(self, now: float) -> None:
        for name, instance in list(self._instances.items()):
            if instance.pointer.expires <= now:
                del self._instances[name]
            else:
                instance.forget_expired(now)

    # --- telling ---------------------------------------------------------------------------------------

    def _offers(self, instance: _Instance) -> Iterator[tuple[Proxy, float]]:
        if instance.server is None or instance.server_lease is None:
            return
        until = min(instance.pointer.expires, instance.server_lease.expires)
        for address, lease in instance.addresses.items():
            yield Proxy(self._port, address, instance.server.port), min(until, lease.expires)

    def _tell(self) -> None:
        """Have an event for whatever is not as it was told."""
        offers: dict[Proxy, float] = {}
        for instance in self._instances.values():
            for proxy, expires in self._offers(instance):
                offers[proxy] = max(expires, offers.get(proxy, expires))
        for proxy in [proxy for proxy in self._told if proxy not in offers]:
            del self._told[proxy]
            self._events.append(ProxyLost(proxy))
        for proxy, expires in offers.items():
            if self._told.get(proxy) != expires:
                self._events.append(ProxyFound(proxy, expires, proxy not in self._told))
                self._told[proxy] = expires
