"""Negotiation and synchronization, one session a connection (RFC 8990 sections 2.5.5, 2.5.6.1; RFC 8991).

The states are those of :mod:`~minerva.grasp.session`. Every wait has an end: a waiting side gives up after
its time-out (60 s, or what an M_WAIT says); an ASA whose turn it is loses the session after the same time, as
its peer has given up by then.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, TypeAlias

from minerva.grasp.api import AsaError, AsaLocator, ErrorCode
from minerva.grasp.constants import GRASP_DEF_MAX_SIZE, GRASP_DEF_TIMEOUT, ObjectiveFlag, TransportProto
from minerva.grasp.errors import GraspError
from minerva.grasp.messages import (
    End,
    Invalid,
    Message,
    Negotiate,
    Noop,
    RequestNegotiation,
    RequestSynchronization,
    Synch,
    Wait,
    decode,
)
from minerva.grasp.options import NO_VALUE, IPv6Locator, Objective
from minerva.grasp.registry import Asa, Registration, Registry
from minerva.grasp.session import NEXT, Session, SessionEnded, State, Step
from minerva.grasp.session_id import SessionIds
from minerva.grasp.substrate import Substrate

MAX_SESSIONS = 1024
"""How many sessions a node has at a time."""

MAX_WAITING_REQUESTS = 16
"""How many negotiation requests wait for one ASA that listens but is busy."""

REQUEST_SECONDS = 10.0
"""How long a connection may stay open to us without a request, in seconds."""

_DIAGNOSTIC_BYTES = 256
_EPITAPHS = 256


def check_size(message: Message) -> None:
    """Raise :class:`AsaError` if others need not take ``message``.

    It may be too long to be sent unasked (RFC 8990 section 2.8.3), or nested more deeply than we take it.
    """
    try:
        decode(message.encode(), max_size=GRASP_DEF_MAX_SIZE)
    except GraspError as error:
        raise AsaError(ErrorCode.unspec, str(error)) from error


# Of a session by its number, or (in a conversation with ourselves) of each of its two ends.
_Key: TypeAlias = tuple[int, bool]


class Sessions:
    """All sessions of one instance.

    ``answer(token, code, result, reason)`` answers a call of an ASA. ``find(session, now)`` starts a
    discovery for a session, whose result comes to :meth:`found`; ``forget(name, locator)`` is told of
    locators that are of no use.
    """

    def __init__(
        self,
        substrate: Substrate,
        registry: Registry,
        session_ids: SessionIds,
        counters: Counter[str],
        *,
        answer: Callable[[Hashable, ErrorCode, Any, str], None],
        find: Callable[[Session, float], None],
        forget: Callable[[str, AsaLocator], None],
    ) -> None:
        self._substrate = substrate
        self._registry = registry
        self._session_ids = session_ids
        self._counters = counters
        self._answer = answer
        self._find = find
        self._forget = forget
        self._sessions: dict[_Key, Session] = {}
        self._by_connection: dict[tuple[int, int], Session] = {}
        self._listening: dict[tuple[int, str], deque[Hashable]] = {}
        self._waiting: dict[tuple[int, str], deque[Session]] = {}
        self._idle: dict[int, float] = {}
        self._epitaphs: dict[tuple[int, int], tuple[ErrorCode, str]] = {}
        self.ended: deque[SessionEnded] = deque()

    @property
    def size(self) -> int:
        """How many sessions there are."""
        return len(self._sessions)

    # --- calls of ASAs: initiator ------------------------------------------------------------------------

    def request(
        self,
        asa: Asa,
        objective: Objective,
        candidates: list[AsaLocator],
        *,
        timeout: int,
        token: Hashable,
        now: float,
    ) -> None:
        """Begin a negotiation or synchronization; the call ``token`` is answered when the peer has answered.

        With no candidates a peer is looked for first. ``timeout`` is in milliseconds, 0 for the default.
        """
        if len(self._sessions) >= MAX_SESSIONS:
            raise AsaError(ErrorCode.unspec, "too many sessions")
        seconds = (timeout or GRASP_DEF_TIMEOUT) / 1000
        session = Session(
            self._session_ids.new(), objective, asa, True, State.FINDING, now + seconds, seconds, token
        )
        check_size(self._request_message(session))
        self._sessions[session.session_id, True] = session
        self._session_ids.hold(session.session_id)
        if candidates:
            self.found(session, candidates, now)
        else:
            self._find(session, now)

    def found(self, session: Session, candidates: list[AsaLocator], now: float) -> None:
        """Go on with what discovery, or the caller, says of where peers are."""
        if session.state is not State.FINDING:
            return
        if not candidates:
            self._fail(session, ErrorCode.noDiscReply)
            return
        session.candidates = deque(candidates)
        self._try_next(session, now)

    def _try_next(self, session: Session, now: float) -> None:
        session.candidate = candidate = session.candidates.popleft()
        self._move(session, Step.FOUND)
        locator = candidate.locator
        if not isinstance(locator, IPv6Locator) or locator.transport is not TransportProto.IPPROTO_TCP:
            self._not_connected(session, ErrorCode.invalidLoc, "", now)
            return
        session.peer = locator.address
        if locator.address.is_link_local:
            # An objective for the link alone (RFC 8991: local): on the link's own connection.
            connection = self._substrate.link_to(candidate.interface, locator.address)
            if connection is None:
                self._not_connected(session, ErrorCode.invalidLoc, "", now)
                return
            self._attach(session, connection)
            self._connected(session, now)
        else:
            self._attach(session, self._substrate.open(locator.address, locator.port, now))

    def _not_connected(self, session: Session, code: ErrorCode, reason: str, now: float) -> None:
        self._forget_candidate(session)
        if session.candidates:
            self._try_next(session, now)
        else:
            self._fail(session, code, reason)

    def _forget_candidate(self, session: Session) -> None:
        if session.candidate is not None:
            self._forget(session.objective.name, session.candidate)

    def _attach(self, session: Session, connection: int) -> None:
        session.connection = connection
        self._by_connection[connection, session.session_id] = session

    def _detach(self, session: Session) -> None:
        if session.connection is not None:
            self._by_connection.pop((session.connection, session.session_id), None)
            session.connection = None

    def connected(self, connection: int, now: float) -> None:
        """A connection that a session asked for is there."""
        for session in self._of_connection(connection):
            self._connected(session, now)

    def _connected(self, session: Session, now: float) -> None:
        self._move(session, Step.CONNECTED)
        session.deadline = now + session.seconds
        self._send(session, self._request_message(session))

    @staticmethod
    def _request_message(session: Session) -> RequestNegotiation | RequestSynchronization:
        if session.negotiation:
            return RequestNegotiation(session.session_id, session.objective)
        return RequestSynchronization(session.session_id, session.objective)

    # --- calls of ASAs: responder ------------------------------------------------------------------------

    def listen(self, registration: Registration, token: Hashable) -> None:
        """Answer the call ``token`` with the next negotiation that is requested."""
        registration.negotiating = True
        key = (registration.asa.handle, registration.name)
        self._listening.setdefault(key, deque()).append(token)
        self._hand_over(key)

    def stop_listening(self, registration: Registration) -> None:
        """End the calls that listen, and refuse requests from now on."""
        registration.negotiating = False
        key = (registration.asa.handle, registration.name)
        for token in self._listening.pop(key, ()):
            self._answer(token, ErrorCode.noListener, None, "listening was stopped")
        for session in list(self._waiting.get(key, ())):
            self._fail(session, ErrorCode.noListener)

    def _hand_over(self, key: tuple[int, str]) -> None:
        listening, waiting = self._listening.get(key), self._waiting.get(key)
        while listening and waiting:
            session, token = waiting.popleft(), listening.popleft()
            self._answer(token, ErrorCode.ok, [session.session_id, session.objective.to_cbor()], "")
        # Empty ones would stay for every objective that ever was.
        if not listening:
            self._listening.pop(key, None)
        if not waiting:
            self._waiting.pop(key, None)

    # --- calls of ASAs: steps ----------------------------------------------------------------------------

    def of_asa(self, asa: Asa, session_id: int) -> Session:
        """Return the session with that number whose turn it is with ``asa``, or any of its sessions."""
        ours = [self._sessions.get((session_id, initiated)) for initiated in (True, False)]
        mine = [item for item in ours if item is not None and item.asa is asa and not self._is_queued(item)]
        if not mine:
            code, reason = self._epitaphs.pop((asa.handle, session_id), (ErrorCode.noSession, ""))
            raise AsaError(code, reason)
        return min(mine, key=lambda session: session.state is not State.TURN)

    def step(
        self, session: Session, objective: Objective, *, timeout: int, token: Hashable, now: float
    ) -> None:
        """Make the ASA's next offer; the call ``token`` is answered when the peer has answered."""
        self._check_turn(session)
        self._check_same(session, objective)
        loop_count = session.objective.loop_count - 1
        if loop_count < 1:
            # Nothing may be sent any more, so the peer learns of it by the end of the connection.
            session.token = token
            self._fail(session, ErrorCode.loopExhausted)
            return
        value = None if objective.value is NO_VALUE else objective.value
        offer = replace(session.objective, value=value, loop_count=loop_count)
        message = Negotiate(session.session_id, offer)
        check_size(message)
        session.objective, session.token = offer, token
        session.seconds = (timeout or GRASP_DEF_TIMEOUT) / 1000
        session.deadline = now + session.seconds
        self._move(session, Step.OWN_STEP)
        self._send(session, message)

    def delay(self, session: Session, timeout: int, now: float) -> None:
        """Ask the peer to wait for ``timeout`` milliseconds (0 for the default) from now."""
        self._check_turn(session)
        waiting_time = timeout or GRASP_DEF_TIMEOUT
        message = Wait(session.session_id, waiting_time)
        self._move(session, Step.OWN_DELAY)
        session.deadline = now + waiting_time / 1000
        self._send(session, message)

    def end(self, session: Session, *, accept: bool, reason: str | None) -> None:
        """End a negotiation: with the peer's last offer accepted, or declined for ``reason``."""
        self._check_turn(session)
        message = End(session.session_id, accept, None if accept else reason)
        check_size(message)
        self._send(session, message)
        code = ErrorCode.ok if accept else ErrorCode.declined
        self._finish(session, Step.OWN_END, code, reason or "")

    def invalid(self, session: Session, info: Any) -> None:
        """End a session with an M_INVALID."""
        if session.state not in (State.TURN, State.WAITING):
            raise AsaError(ErrorCode.noValidStep)
        message = Invalid(session.session_id, info)
        check_size(message)
        self._send(session, message)
        self._fail(session, ErrorCode.unspec, "this side sent M_INVALID")

    def _check_turn(self, session: Session) -> None:
        if session.state is not State.TURN:
            raise AsaError(ErrorCode.noValidStep)

    @staticmethod
    def _check_same(session: Session, objective: Objective) -> None:
        dry = ObjectiveFlag.F_NEG_DRY
        if objective.name != session.objective.name:
            raise AsaError(ErrorCode.notObj, "a negotiation is of one objective")
        if (objective.flags ^ session.objective.flags) & dry:
            raise AsaError(ErrorCode.notDry, "a negotiation is a dry run from its beginning to its end")

    def abandon(self, token: Hashable) -> bool:
        """Forget the call ``token``, and the session it waits for; return whether there was one."""
        for key, tokens in list(self._listening.items()):
            if token in tokens:
                tokens.remove(token)
                if not tokens:
                    del self._listening[key]
                return True
        for session in list(self._sessions.values()):
            if session.token is not None and session.token == token:
                session.token = None
                self._fail(session, ErrorCode.unspec, "the call was cancelled")
                return True
        return False

    def asa_gone(self, asa: Asa) -> None:
        """End everything of an ASA."""
        for key in [key for key in self._listening if key[0] == asa.handle]:
            for token in self._listening.pop(key):
                self._answer(token, ErrorCode.noASA, None, "")
        for session in [session for session in self._sessions.values() if session.asa is asa]:
            self._fail(session, ErrorCode.noASA)

    # --- messages ----------------------------------------------------------------------------------------

    def accepted(self, connection: int, now: float) -> None:
        """Somebody opened a connection: a request should come."""
        self._idle[connection] = now + REQUEST_SECONDS

    def receive(self, connection: int, message: Message, now: float) -> None:
        """Take a message of a negotiation or synchronization."""
        if isinstance(message, Noop):
            return
        session = self._by_connection.get((connection, message.session_id))
        if isinstance(message, RequestNegotiation | RequestSynchronization):
            if session is None:
                self._requested(connection, message, now)
            else:
                self._counters["session-id-clashes"] += 1
        elif session is not None:
            self._in_session(session, message, now)
        elif isinstance(message, Invalid):
            self._counters["invalid-received"] += 1
        else:
            self._counters["no-such-session"] += 1
            self._send_invalid(connection, message.session_id, message.encode())

    def nonsense(self, connection: int, session_id: int | None) -> None:
        """Something that is no message came on a unicast connection."""
        if session_id is None:  # an M_INVALID that has one is a message
            return
        session = self._by_connection.get((connection, session_id))
        self._send_invalid(connection, session_id, b"")
        if session is not None:
            self._fail(session, ErrorCode.CBORfail)

    def _send_invalid(self, connection: int, session_id: int, copy: bytes) -> None:
        self._counters["invalid-sent"] += 1
        content = copy[:_DIAGNOSTIC_BYTES] if copy else NO_VALUE
        self._substrate.send(connection, Invalid(session_id, content).encode())

    def _requested(
        self, connection: int, message: RequestNegotiation | RequestSynchronization, now: float
    ) -> None:
        known = self._substrate.get(connection)
        if known is None:
            return
        if self._clashes(message.session_id, ourselves=known.other_end is not None):
            self._counters["session-id-clashes"] += 1
            return
        if known.interface is None and self._of_connection(connection):
            # One session a connection, which ends with it.
            self._counters["messages-out-of-turn"] += 1
            self._send_invalid(connection, message.session_id, message.encode())
            return
        self._idle.pop(connection, None)
        if isinstance(message, RequestSynchronization):
            self._synchronize(connection, message, local=known.interface is not None)
            return
        chosen = self._who_negotiates(message.objective, local=known.interface is not None)
        if chosen is None or len(self._sessions) >= MAX_SESSIONS:
            self._refuse(connection)
            return
        seconds = GRASP_DEF_TIMEOUT / 1000
        session = Session(
            message.session_id, message.objective, chosen.asa, False, State.TURN, now + seconds, seconds
        )
        session.peer, session.answered = known.peer, True
        self._sessions[session.session_id, False] = session
        self._session_ids.hold(session.session_id)
        self._attach(session, connection)
        key = (chosen.asa.handle, chosen.name)
        self._waiting.setdefault(key, deque()).append(session)
        self._hand_over(key)

    def _clashes(self, session_id: int, *, ourselves: bool) -> bool:
        """Return whether a request has a Session ID that is active here (RFC 8990 section 2.8.6)."""
        if ourselves:
            return (session_id, False) in self._sessions
        return self._session_ids.is_active(session_id)

    def _who_negotiates(self, objective: Objective, *, local: bool) -> Registration | None:
        if not objective.flags & ObjectiveFlag.F_NEG:
            return None
        candidates = [item for item in self._registry.negotiating(objective.name) if item.local == local]

        def load(item: Registration) -> tuple[bool, int]:
            key = (item.asa.handle, item.name)
            return not self._listening.get(key), len(self._waiting.get(key, ()))

        chosen = min(candidates, key=load, default=None)
        return None if chosen is None or load(chosen)[1] >= MAX_WAITING_REQUESTS else chosen

    def _refuse(self, connection: int) -> None:
        """Close at once: nobody listens (section 2.8.6). A link's own connection stays."""
        self._counters["requests-refused"] += 1
        known = self._substrate.get(connection)
        if known is not None and known.interface is None:
            self._substrate.close(connection)

    def _synchronize(self, connection: int, message: RequestSynchronization, *, local: bool) -> None:
        value = self._registry.synchronizing(message.objective.name, local=local)
        if value is None:
            self._refuse(connection)
            return
        self._counters["synchronized"] += 1
        self._substrate.send(connection, Synch(message.session_id, value).encode())
        if not local:
            self._substrate.close(connection)

    def _in_session(self, session: Session, message: Message, now: float) -> None:
        match message:
            case Negotiate() if session.negotiation and (session.state, Step.OFFER) in NEXT:
                self._offered(session, message.objective, now)
            case Wait() if session.negotiation and (session.state, Step.DELAY) in NEXT:
                self._move(session, Step.DELAY)
                session.deadline = now + message.waiting_time / 1000
            case End() if session.negotiation and (session.state, Step.END) in NEXT:
                self._peer_ended(session, message)
            case Synch() if not session.negotiation and session.state is State.WAITING:
                self._synchronized(session, message.objective)
            case Invalid():
                code = ErrorCode.invalidNeg if session.negotiation else ErrorCode.noValidSynch
                self._fail(session, code, "the peer found our message invalid")
            case _:
                self._misplaced(session, message)

    def _misplaced(self, session: Session, message: Message) -> None:
        self._counters["messages-out-of-turn"] += 1
        if session.connection is not None:
            self._send_invalid(session.connection, session.session_id, message.encode())
        code = ErrorCode.invalidNeg if session.negotiation else ErrorCode.noValidSynch
        if isinstance(message, End):
            code = ErrorCode.invalidEnd
        self._fail(session, code, f"{message.TYPE.name} when it was not to come")

    def _offered(self, session: Session, objective: Objective, now: float) -> None:
        dry = ObjectiveFlag.F_NEG_DRY
        if (
            objective.name != session.objective.name
            or (objective.flags ^ session.objective.flags) & dry
            or objective.value is NO_VALUE
        ):
            self._misplaced(session, Negotiate(session.session_id, objective))
            return
        # Never more steps than the initiator allowed, whatever a peer makes of the loop count.
        loop_count = min(objective.loop_count, session.objective.loop_count)
        session.objective = replace(objective, loop_count=loop_count)
        session.deadline = now + GRASP_DEF_TIMEOUT / 1000
        session.answered = True
        self._move(session, Step.OFFER)
        token, session.token = session.token, None
        if token is not None:
            self._answer(token, ErrorCode.ok, [session.session_id, objective.to_cbor()], "")

    def _peer_ended(self, session: Session, message: End) -> None:
        code = ErrorCode.ok if message.accepted else ErrorCode.declined
        if session.state is State.TURN:  # it has not waited for our offer, so there is nothing to accept
            code = ErrorCode.declined
        session.answered = True
        self._finish(session, Step.END, code, message.reason or "")

    def _synchronized(self, session: Session, objective: Objective) -> None:
        if objective.name != session.objective.name:
            self._fail(session, ErrorCode.noValidSynch)
            return
        session.objective, session.answered = objective, True
        self._finish(session, Step.END, ErrorCode.ok, "")

    # --- ends --------------------------------------------------------------------------------------------

    def closed(self, connection: int, reason: str, now: float) -> None:
        """A connection is gone."""
        self._idle.pop(connection, None)
        for session in self._of_connection(connection):
            self._detach(session)
            if session.state is State.CONNECTING:
                code = ErrorCode.sockErrNegRq if session.negotiation else ErrorCode.sockErrSynRq
                self._not_connected(session, code, reason, now)
                continue
            if not session.answered:  # nobody listens there, so the next session should look elsewhere
                self._forget_candidate(session)
            code = ErrorCode.noPeer if session.negotiation else ErrorCode.noListener
            self._fail(session, code, reason)

    def _fail(self, session: Session, code: ErrorCode, reason: str = "") -> None:
        self._finish(session, Step.FAILED, code, reason)

    def _finish(self, session: Session, step: Step, code: ErrorCode, reason: str) -> None:
        if session.state is State.ENDED:
            return
        begun = session.state in (State.TURN, State.WAITING)
        self._move(session, step)
        connection = session.connection
        self._detach(session)
        known = None if connection is None else self._substrate.get(connection)
        if known is not None and known.interface is None:
            self._substrate.close(known.number)
        elif known is not None and step is Step.FAILED and begun and session.negotiation:
            # A link's own connection stays, so its end cannot tell the peer.
            self._substrate.send(known.number, End(session.session_id, accepted=False).encode())
        self._leave_queue(session)
        self._sessions.pop((session.session_id, session.initiated), None)
        if not any((session.session_id, initiated) in self._sessions for initiated in (True, False)):
            self._session_ids.release(session.session_id)
        self._counters["sessions-ok" if code is ErrorCode.ok else "sessions-failed"] += 1
        self.ended.append(
            SessionEnded(
                session.session_id, session.objective.name, session.peer, session.initiated, code, reason
            )
        )
        token, session.token = session.token, None
        if token is None:
            if step is not Step.OWN_END and session.asa is not None:
                self._bury(session.asa, session.session_id, code, reason)
        elif code is ErrorCode.ok:
            objective = session.objective.to_cbor()
            self._answer(token, code, [None, objective] if session.negotiation else objective, "")
        else:
            self._answer(token, code, None, reason)

    def _leave_queue(self, session: Session) -> None:
        """Let a session that has ended wait for its ASA no longer."""
        if self._is_queued(session):
            key = self._key(session)
            self._waiting[key].remove(session)
            if not self._waiting[key]:
                del self._waiting[key]

    def _is_queued(self, session: Session) -> bool:
        """Return whether a session waits for its ASA, which does not know of it yet."""
        return session.asa is not None and session in self._waiting.get(self._key(session), ())

    @staticmethod
    def _key(session: Session) -> tuple[int, str]:
        assert session.asa is not None
        return session.asa.handle, session.objective.name

    def _bury(self, asa: Asa, session_id: int, code: ErrorCode, reason: str) -> None:
        """Keep, for the ASA's next call, why a session ended while no call of it was waiting."""
        if len(self._epitaphs) >= _EPITAPHS:
            del self._epitaphs[next(iter(self._epitaphs))]
        self._epitaphs[asa.handle, session_id] = (code, reason)

    def _move(self, session: Session, step: Step) -> None:
        session.state = NEXT[session.state, step]

    def _of_connection(self, connection: int) -> list[Session]:
        return [session for (number, _), session in self._by_connection.items() if number == connection]

    def _send(self, session: Session, message: Message) -> None:
        assert session.connection is not None
        self._substrate.send(session.connection, message.encode())

    # --- time and state ----------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """Return when ``on_timer`` wants to be called."""
        times = [session.deadline for session in self._sessions.values()]
        return min([*times, *self._idle.values()], default=None)

    def on_timer(self, now: float) -> None:
        """End what has waited for too long."""
        for session in [session for session in self._sessions.values() if session.deadline <= now]:
            if session.state is State.TURN:
                self._fail(session, ErrorCode.noSession, "the ASA did not take its turn in time")
            elif session.state is State.FINDING:
                self._fail(session, ErrorCode.noDiscReply)
            else:
                code = ErrorCode.noNegReply if session.negotiation else ErrorCode.noSynchReply
                self._fail(session, code)
        for connection in [number for number, until in self._idle.items() if until <= now]:
            del self._idle[connection]
            self._counters["idle-connections"] += 1
            self._substrate.close(connection, abort=True)

    def status(self, now: float) -> list[dict[str, Any]]:
        """Return the sessions for ``minerva grasp sessions``."""
        return [session.status(now) for session in self._sessions.values()]
