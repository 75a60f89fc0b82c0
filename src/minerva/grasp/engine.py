"""The GRASP instance inside the ACP (RFC 8990, RFC 8991, RFC 8994 section 6.9), without sockets and clocks.

:class:`GraspEngine` composes what the other modules do: :mod:`~minerva.grasp.substrate` (links and
connections), :mod:`~minerva.grasp.flooding`, :mod:`~minerva.grasp.discovery`,
:mod:`~minerva.grasp.sessions` and :mod:`~minerva.grasp.registry` (ASAs and objectives). It is driven like
every core, but for streams: ``received(connection, data, now)`` in, ``actions()`` out. ASAs call it by
``call``; every answer is an :class:`Answer`.

Rapid mode (section 2.5.5.1) is off: a value in an M_DISCOVERY is not looked at, and none is sent.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from ipaddress import IPv6Address
from random import Random
from typing import Any, TypeAlias

from minerva.grasp.api import ErrorCode
from minerva.grasp.calls import Calls
from minerva.grasp.constants import GRASP_LISTEN_PORT
from minerva.grasp.discovery import Discovery
from minerva.grasp.errors import GraspDecodeError
from minerva.grasp.finding import CallToken, Finder, milliseconds
from minerva.grasp.flooding import CachedObjective, Flooding
from minerva.grasp.messages import Discovery as DiscoveryMessage
from minerva.grasp.messages import Flood, FloodEntry, Message, Noop, Response
from minerva.grasp.options import Objective
from minerva.grasp.registry import Registry
from minerva.grasp.session import SessionEnded
from minerva.grasp.session_id import SessionIds
from minerva.grasp.sessions import Sessions
from minerva.grasp.substrate import Action, Substrate, Traced


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the call ``request`` of the process ``client``; ``result`` is a CBOR item."""

    client: int
    request: int
    code: ErrorCode
    result: Any = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FloodTaken:
    """A flood that is new here came by the link ``interface``."""

    flood: Flood
    interface: int


OWN_CLIENT = 0
"""The client that the node itself is; the numbers of processes begin with 1."""

Event: TypeAlias = Answer | FloodTaken | SessionEnded | Traced


class GraspEngine:
    """One GRASP instance with the ACP as its substrate (see the module's docstring).

    ``address`` is the node's ACP address. ``random`` makes Session IDs and handles: a daemon passes a
    ``random.SystemRandom``.
    """

    def __init__(self, address: IPv6Address, *, random: Random, port: int = GRASP_LISTEN_PORT) -> None:
        self.address = address
        self.counters: Counter[str] = Counter()
        self._events: deque[Event] = deque()
        self._session_ids = SessionIds(random)
        self._registry = Registry(random)
        self._substrate = Substrate(address, self, self.counters, port=port)
        self._flooding = Flooding(self.counters, self._substrate.send_on_link, self._substrate.ready_links)
        self._sessions = Sessions(
            self._substrate,
            self._registry,
            self._session_ids,
            self.counters,
            answer=self._answer,
            find=lambda session, now: self._finder.find(session, now),
            forget=lambda name, locator: self._discovery.forget(name, locator.locator),
        )
        self._finder = Finder(
            address, self._substrate, self._registry, found=self._sessions.found, answer=self._answer
        )
        self._discovery = self._finder.discovery = Discovery(
            address,
            self._session_ids,
            self.counters,
            own=self._finder.own_locators,
            links=self._substrate.ready_links,
            send=self._substrate.send,
            send_on_link=self._substrate.send_on_link,
            done=self._finder.discovered,
        )
        self._calls = Calls(
            address,
            self._substrate,
            self._registry,
            self._session_ids,
            self._flooding,
            self._discovery,
            self._finder,
            self._sessions,
            answer=self._answer,
            status=self.status,
        )

    # --- the substrate -----------------------------------------------------------------------------------

    @property
    def tracing(self) -> bool:
        """Whether each message becomes a :class:`Traced`."""
        return self._substrate.tracing

    @tracing.setter
    def tracing(self, value: bool) -> None:
        self._substrate.tracing = value

    def interface_up(self, interface: int, link_local: IPv6Address, now: float) -> None:
        """A channel is there; ``link_local`` is our address on its interface."""
        self._substrate.interface_up(interface, link_local, now)
        self._settle(now)

    def interface_down(self, interface: int, now: float) -> None:
        """A channel is gone."""
        self._substrate.interface_down(interface, now)
        self._flooding.link_down(interface)
        self._discovery.link_down(interface)
        self._settle(now)

    def peer_heard(self, interface: int, peer: IPv6Address, now: float) -> None:
        """The neighbour on a channel has this link-local address."""
        self._substrate.peer_heard(interface, peer, now)
        self._settle(now)

    def accepted(self, peer: IPv6Address, interface: int | None, now: float) -> int | None:
        """Somebody has opened a connection to us: on a link (``interface``) or, authenticated, anywhere.

        Return its number, or ``None`` if it is to be closed at once.
        """
        number = self._substrate.accepted(peer, interface, now)
        if number is not None and interface is None:
            self._sessions.accepted(number, now)
        self._settle(now)
        return number

    def connected(self, connection: int, now: float) -> None:
        """A connection of ours is open and authenticated."""
        self._substrate.connected(connection, now)
        self._settle(now)

    def received(self, connection: int, data: bytes, now: float) -> None:
        """Bytes have come on a connection."""
        self._substrate.received(connection, data, now)
        self._settle(now)

    def closed(self, connection: int, reason: str, now: float) -> None:
        """A connection has ended, or could not be opened or authenticated."""
        self._substrate.closed(connection, reason, now)
        self._settle(now)

    def actions(self) -> list[Action]:
        """Return, and forget, what is to be done with connections, in that order."""
        return self._substrate.actions()

    def next_timer(self) -> float | None:
        """Return when ``on_timer`` wants to be called, or ``None`` for never."""
        parts = (self._substrate, self._flooding, self._discovery, self._sessions)
        return min((when for part in parts if (when := part.next_timer()) is not None), default=None)

    def on_timer(self, now: float) -> None:
        """Do what is due."""
        for part in (self._substrate, self._flooding, self._discovery, self._sessions):
            part.on_timer(now)
        self._settle(now)

    def next_event(self) -> Event | None:
        """Return, and forget, the oldest event, or ``None``."""
        if self._events:
            return self._events.popleft()
        if self._sessions.ended:
            return self._sessions.ended.popleft()
        return self._substrate.next_traced()

    def _settle(self, now: float) -> None:
        self._substrate.deliver_to_ourselves(now)

    # --- what the substrate says ---------------------------------------------------------------------------

    def on_link_ready(self, interface: int, now: float) -> None:
        """Tell a neighbour that has come what it may have missed, and ask it what we are asking."""
        self._flooding.link_ready(interface, now)
        self._discovery.link_ready(interface)

    def on_link(self, connection: int, interface: int, message: Message, now: float) -> None:
        """Take a message from a neighbour: floods and discovery, and sessions of objectives for the link."""
        match message:
            case Flood():
                if self._flooding.receive(message, interface, now):
                    self._events.append(FloodTaken(message, interface))
            case DiscoveryMessage():
                self._discovery.receive(message, connection, interface, now)
            case Response():
                self._discovery.respond(message, interface, now)
            case _:
                self._sessions.receive(connection, message, now)

    def on_unicast(self, connection: int, message: Message, now: float) -> None:
        """Take a message from anywhere in the ACP."""
        match message:
            case Flood():  # by nothing but links, where each is relayed once (RFC 8994 section 6.9.2)
                self.counters["unicast-floods"] += 1
            case DiscoveryMessage():
                self._discovery.receive(message, connection, None, now)
            case Response():
                self._discovery.respond(message, None, now)
            case Noop():
                pass
            case _:
                self._sessions.receive(connection, message, now)

    def on_nonsense(self, connection: int, error: GraspDecodeError, now: float) -> None:  # noqa: ARG002
        """Answer what is no message with M_INVALID, if it came by unicast (RFC 8990 section 2.8.2)."""
        known = self._substrate.get(connection)
        if known is not None and known.interface is None:
            self._sessions.nonsense(connection, error.session_id)

    def on_connected(self, connection: int, now: float) -> None:
        """Note that a connection that a session asked for is there."""
        self._sessions.connected(connection, now)

    def on_closed(self, connection: int, reason: str, now: float) -> None:
        """Note that a connection is gone."""
        self._sessions.closed(connection, reason, now)

    # --- calls ---------------------------------------------------------------------------------------------

    def call(self, client: int, request: int, function: str, arguments: list[Any], now: float) -> None:
        """Do what the process ``client`` asks for; see :mod:`~minerva.grasp.calls`.

        ``request`` numbers the call among those of the process. The :class:`Answer` comes now or later;
        nothing is raised for anything that a process may ask.
        """
        self._calls.call(client, request, function, arguments, now)
        self._settle(now)

    def client_gone(self, client: int, now: float) -> None:
        """Forget a process, with all that is done for it."""
        self._calls.client_gone(client)
        self._events = deque(
            event for event in self._events if not (isinstance(event, Answer) and event.client == client)
        )
        self._settle(now)

    def serve(self, make: Callable[[], Objective], *, ttl: int) -> None:
        """Be an ASA of the node's own that answers requests for an objective with what ``make`` returns then.

        ``ttl`` is that of discovery responses, in milliseconds. Raises :class:`AsaError`.
        """
        objective = make()
        asa = self._registry.register_asa(f"this node: {objective.name}", OWN_CLIENT)
        registration = self._registry.register(
            asa, objective, ttl=ttl, discoverable=False, overlap=False, local=False
        )
        registration.make = make

    def flood(self, ttl: int, entries: list[FloodEntry], now: float) -> None:
        """Flood on behalf of the node itself; ``ttl`` in milliseconds. Raises :class:`AsaError`."""
        self._calls.flood(ttl, entries, now)
        self._settle(now)

    def _answer(self, token: Hashable, code: ErrorCode, result: Any, reason: str) -> None:
        assert isinstance(token, CallToken)
        self._events.append(Answer(token.client, token.request, code, result, reason))

    # --- state ---------------------------------------------------------------------------------------------

    def floods(self, name: str, now: float) -> list[CachedObjective]:
        """Return all valid copies of a flooded objective."""
        return self._flooding.copies(name, now)

    def summary(self) -> dict[str, Any]:
        """Return the state in short, for ``minerva status``."""
        return {
            "links": self._substrate.status(),
            "objectives": sum(1 for _ in self._registry),
            "floods": self._flooding.size,
            "sessions": self._sessions.size,
            "counters": dict(self.counters),
        }

    def status(self, now: float) -> dict[str, Any]:
        """Return everything an operator may want to see, as CBOR items."""
        return {
            "links": self._substrate.status(),
            "counters": dict(self.counters),
            "objectives": [
                {
                    "name": item.name,
                    "asa": item.asa.name,
                    "flags": int(item.flags),
                    "answers": item.answers,
                    "negotiating": item.negotiating,
                    "synchronizing": item.value is not None and not item.flooded,
                    "local": item.local,
                    "overlap": item.overlap,
                    "ttl": item.ttl,
                    "value": None if item.value is None else item.value.to_cbor(),
                }
                for item in self._registry
            ],
            "sessions": self._sessions.status(now),
            "floods": [
                {
                    "objective": copy.objective.to_cbor(),
                    "locator": None if copy.locator is None else copy.locator.to_cbor(),
                    "initiator": str(copy.initiator),
                    "session_id": copy.session_id,
                    "interface": copy.interface,
                    "ttl": milliseconds(copy.expires, now),
                }
                for copy in self._flooding.everything(now)
            ],
            "discovered": [
                {
                    "name": name,
                    "locator": found.locator.to_cbor(),
                    "interface": found.interface,
                    "diverted": found.diverted,
                    "ttl": milliseconds(found.expires, now),
                }
                for name, found in self._discovery.everything(now)
            ],
        }
