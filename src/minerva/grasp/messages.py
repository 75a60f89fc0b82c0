"""GRASP messages (RFC 8990 section 4).

``message.encode()`` gives deterministic CBOR. :func:`decode` gives back whichever message the bytes are
and ``Flood.decode`` one of that type only; both raise nothing but :class:`GraspDecodeError`. Options that
a message type does not know, and elements after its last, are discarded silently (section 2.8.2); what it
does know must be exactly as the CDDL has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar, Self, TypeAlias

import cbor2

from minerva.core import cbor
from minerva.grasp.constants import GRASP_DEF_MAX_SIZE, MAX_UINT32, MessageType, OptionType
from minerva.grasp.errors import GraspDecodeError, GraspError, GraspIncomplete
from minerva.grasp.options import (
    NO_VALUE,
    Divert,
    Locator,
    Objective,
    address_from_cbor,
    check_array,
    check_text,
    check_uint,
    is_locator,
    locator_from_cbor,
    option_type,
)


class _Message:
    """What all messages share. ``_items`` and ``_parse`` are the elements after the type."""

    __slots__ = ()

    TYPE: ClassVar[MessageType]

    def encode(self) -> bytes:
        """Return the message in CBOR. Raises :class:`GraspError` for a value that CBOR cannot say."""
        try:
            return cbor.dumps([self.TYPE.value, *self._items()])
        except cbor2.CBOREncodeError as error:
            raise GraspError(f"{self.TYPE.name}: not to be encoded: {error}") from error

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message of this type that ``data`` is. Raises :class:`GraspDecodeError`."""
        message = decode(data)
        if not isinstance(message, cls):
            raise GraspDecodeError(
                f"{message.TYPE.name} where {cls.TYPE.name} is expected", message_type=message.TYPE
            )
        return message

    def _items(self) -> list[Any]:
        raise NotImplementedError

    @classmethod
    def _parse(cls, session_id: int, elements: list[Any]) -> Self:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Noop(_Message):
    """``[M_NOOP]``: to be ignored (section 2.8.13)."""

    TYPE = MessageType.M_NOOP

    def _items(self) -> list[Any]:
        return []


@dataclass(frozen=True, slots=True)
class Discovery(_Message):
    """``[M_DISCOVERY, session-id, initiator, objective]`` (section 2.8.4)."""

    TYPE = MessageType.M_DISCOVERY

    session_id: int
    initiator: IPv6Address | IPv4Address
    objective: Objective

    def __post_init__(self) -> None:
        _check_session_id(self.session_id)

    def _items(self) -> list[Any]:
        return [self.session_id, self.initiator.packed, self.objective.to_cbor()]

    @classmethod
    def _parse(cls, session_id: int, elements: list[Any]) -> Self:
        initiator, objective = elements[:2]
        return cls(session_id, address_from_cbor(initiator, "initiator"), Objective.from_cbor(objective))


@dataclass(frozen=True, slots=True)
class Response(_Message):
    """An answer to M_DISCOVERY (section 2.8.5); ``ttl`` in milliseconds::

    [M_RESPONSE, session-id, initiator, ttl, (+locator-option // divert-option), ?objective]
    """

    TYPE = MessageType.M_RESPONSE

    session_id: int
    initiator: IPv6Address | IPv4Address
    ttl: int
    locators: tuple[Locator, ...] = ()
    divert: Divert | None = None
    objective: Objective | None = None

    def __post_init__(self) -> None:
        _check_session_id(self.session_id)
        check_uint(self.ttl, MAX_UINT32, "ttl")
        if bool(self.locators) is (self.divert is not None):
            raise GraspError("a response holds either locators or a Divert option")

    def _items(self) -> list[Any]:
        where = [locator.to_cbor() for locator in self.locators]
        if self.divert is not None:
            where = [self.divert.to_cbor()]
        objective = [] if self.objective is None else [self.objective.to_cbor()]
        return [self.session_id, self.initiator.packed, self.ttl, *where, *objective]

    @classmethod
    def _parse(cls, session_id: int, elements: list[Any]) -> Self:
        initiator, ttl, *options = elements
        locators = tuple(locator_from_cbor(option) for option in options if is_locator(option))
        diverts = [option for option in options if option_type(option) == OptionType.O_DIVERT]
        objectives = [option for option in options if option_type(option) is None]
        return cls(
            session_id,
            address_from_cbor(initiator, "initiator"),
            ttl,
            locators,
            # A responder that has the objective itself is nearer than where it would divert to.
            Divert.from_cbor(diverts[0]) if diverts and not locators else None,
            Objective.from_cbor(objectives[0]) if objectives else None,
        )


@dataclass(frozen=True, slots=True)
class _WithObjective(_Message):
    """A message that is a Session ID and one objective."""

    session_id: int
    objective: Objective

    def __post_init__(self) -> None:
        _check_session_id(self.session_id)

    def _items(self) -> list[Any]:
        return [self.session_id, self.objective.to_cbor()]

    @classmethod
    def _parse(cls, session_id: int, elements: list[Any]) -> Self:
        return cls(session_id, Objective.from_cbor(elements[0]))


@dataclass(frozen=True, slots=True)
class RequestNegotiation(_WithObjective):
    """``[M_REQ_NEG, session-id, objective]`` (section 2.8.6)."""

    TYPE = MessageType.M_REQ_NEG


@dataclass(frozen=True, slots=True)
class RequestSynchronization(_WithObjective):
    """``[M_REQ_SYN, session-id, objective]`` (section 2.8.6)."""

    TYPE = MessageType.M_REQ_SYN


@dataclass(frozen=True, slots=True)
class Negotiate(_WithObjective):
    """``[M_NEGOTIATE, session-id, objective]`` (section 2.8.7)."""

    TYPE = MessageType.M_NEGOTIATE


@dataclass(frozen=True, slots=True)
class Synch(_WithObjective):
    """``[M_SYNCH, session-id, objective]``: the answer to M_REQ_SYN (section 2.8.10)."""

    TYPE = MessageType.M_SYNCH


@dataclass(frozen=True, slots=True)
class End(_Message):
    """``[M_END, session-id, [O_ACCEPT] / [O_DECLINE, ?reason]]`` (section 2.8.8)."""

    TYPE = MessageType.M_END

    session_id: int
    accepted: bool
    reason: str | None = None

    def __post_init__(self) -> None:
        _check_session_id(self.session_id)
        if self.reason is not None:
            if self.accepted:
                raise GraspError("an Accept option has no reason")
            check_text(self.reason, "reason")

    def _items(self) -> list[Any]:
        if self.accepted:
            return [self.session_id, [OptionType.O_ACCEPT.value]]
        reason = [] if self.reason is None else [self.reason]
        return [self.session_id, [OptionType.O_DECLINE.value, *reason]]

    @classmethod
    def _parse(cls, session_id: int, elements: list[Any]) -> Self:
        for option in elements:
            kind = option_type(option)
            if kind == OptionType.O_ACCEPT:
                check_array(option, 1, "Accept option")
                return cls(session_id, accepted=True)
            if kind == OptionType.O_DECLINE:
                reason = check_array(option, 1, "Decline option")[1:2]
                return cls(session_id, False, check_text(reason[0], "reason") if reason else None)
        raise GraspError("neither an Accept nor a Decline option")


@dataclass(frozen=True, slots=True)
class Wait(_Message):
    """``[M_WAIT, session-id, waiting-time]``, in milliseconds (section 2.8.9)."""

    TYPE = MessageType.M_WAIT

    session_id: int
    waiting_time: int

    def __post_init__(self) -> None:
        _check_session_id(self.session_id)
        check_uint(self.waiting_time, MAX_UINT32, "waiting-time")

    def _items(self) -> list[Any]:
        return [self.session_id, self.waiting_time]

    @classmethod
    def _parse(cls, session_id: int, elements: list[Any]) -> Self:
        return cls(session_id, elements[0])


@dataclass(frozen=True, slots=True)
class FloodEntry:
    """``[objective, (locator-option / [])]``; ``locator`` is ``None`` for ``[]``."""

    objective: Objective
    locator: Locator | None = None

    def to_cbor(self) -> list[Any]:
        """Return the entry as a CBOR item."""
        return [self.objective.to_cbor(), [] if self.locator is None else self.locator.to_cbor()]


@dataclass(frozen=True, slots=True)
class Flood(_Message):
    """Objectives for everybody (section 2.8.11); ``ttl`` in milliseconds, 0 for an indefinite lifetime::

    [M_FLOOD, session-id, initiator, ttl, +[objective, (locator-option / [])]]
    """

    TYPE = MessageType.M_FLOOD

    session_id: int
    initiator: IPv6Address | IPv4Address
    ttl: int
    entries: tuple[FloodEntry, ...]

    def __post_init__(self) -> None:
        _check_session_id(self.session_id)
        check_uint(self.ttl, MAX_UINT32, "ttl")
        if not self.entries:
            raise GraspError("a flood needs an objective")

    def _items(self) -> list[Any]:
        entries = [entry.to_cbor() for entry in self.entries]
        return [self.session_id, self.initiator.packed, self.ttl, *entries]

    @classmethod
    def _parse(cls, session_id: int, elements: list[Any]) -> Self:
        initiator, ttl, *options = elements
        entries = [entry for option in options if (entry := _flood_entry(option)) is not None]
        return cls(session_id, address_from_cbor(initiator, "initiator"), ttl, tuple(entries))


@dataclass(frozen=True, slots=True)
class Invalid(_Message):
    """``[M_INVALID, session-id, ?any]`` (section 2.8.12); ``content`` is ``NO_VALUE`` if absent."""

    TYPE = MessageType.M_INVALID

    session_id: int
    content: Any = NO_VALUE

    def __post_init__(self) -> None:
        _check_session_id(self.session_id)

    def _items(self) -> list[Any]:
        return [self.session_id] if self.content is NO_VALUE else [self.session_id, self.content]

    @classmethod
    def _parse(cls, session_id: int, elements: list[Any]) -> Self:
        return cls(session_id, elements[0] if elements else NO_VALUE)


Message: TypeAlias = (
    Noop
    | Discovery
    | Response
    | RequestNegotiation
    | RequestSynchronization
    | Negotiate
    | End
    | Wait
    | Synch
    | Flood
    | Invalid
)

_SessionMessage: TypeAlias = type[
    Discovery
    | Response
    | RequestNegotiation
    | RequestSynchronization
    | Negotiate
    | End
    | Wait
    | Synch
    | Flood
    | Invalid
]

# By message type: the class, and how many elements there must be after the Session ID.
_MESSAGES: dict[int, tuple[_SessionMessage, int]] = {
    MessageType.M_DISCOVERY: (Discovery, 2),
    MessageType.M_RESPONSE: (Response, 3),
    MessageType.M_REQ_NEG: (RequestNegotiation, 1),
    MessageType.M_REQ_SYN: (RequestSynchronization, 1),
    MessageType.M_NEGOTIATE: (Negotiate, 1),
    MessageType.M_END: (End, 1),
    MessageType.M_WAIT: (Wait, 1),
    MessageType.M_SYNCH: (Synch, 1),
    MessageType.M_FLOOD: (Flood, 3),
    MessageType.M_INVALID: (Invalid, 0),
}


def decode(data: bytes, *, max_size: int = GRASP_DEF_MAX_SIZE) -> Message:
    """Return the message that ``data``, at most ``max_size`` bytes, is. Raises :class:`GraspDecodeError`."""
    try:
        item = cbor.loads(data, max_size=max_size)
    except cbor.CborError as error:
        raise GraspDecodeError(str(error)) from error
    return _message(item)


def decode_first(data: bytes, *, max_size: int = GRASP_DEF_MAX_SIZE) -> tuple[Message, int]:
    """Return the message that a stream begins with, and the offset of what follows it.

    On a stream the end of the CBOR item is the end of the message (RFC 8990 section 2.5.3). Raises
    :class:`GraspIncomplete` where more bytes may help, and :class:`GraspDecodeError` where they cannot,
    which includes ``max_size`` bytes without a complete message.
    """
    try:
        item, end = cbor.loads_first(data[:max_size])
    except cbor.CborIncomplete as error:
        if len(data) < max_size:
            raise GraspIncomplete(str(error)) from error
        raise GraspDecodeError(f"message longer than {max_size} bytes") from error
    except cbor.CborError as error:
        raise GraspDecodeError(str(error)) from error
    return _message(item), end


def _message(item: Any) -> Message:
    session_id = message_type = None
    try:
        elements = check_array(item, 1, "message")
        message_type = check_uint(elements[0], 255, "message type")
        if message_type == MessageType.M_NOOP:
            return Noop()
        session_id = _check_session_id(check_array(item, 2, "message")[1])
        if message_type not in _MESSAGES:
            raise GraspError(f"unknown message type {message_type}")
        kind, minimum = _MESSAGES[message_type]
        return kind._parse(session_id, check_array(elements[2:], minimum, f"rest of {kind.TYPE.name}"))
    except GraspError as error:
        raise GraspDecodeError(str(error), message_type=message_type, session_id=session_id) from error


def _check_session_id(value: Any) -> int:
    return check_uint(value, MAX_UINT32, "session-id")


def _flood_entry(option: Any) -> FloodEntry | None:
    """Return an entry of M_FLOOD, or ``None`` if it is, or its locator is, an option unknown to us."""
    if option_type(option) is not None:
        return None
    objective, locator = check_array(option, 2, "objective and locator")[:2]
    if locator == []:
        return FloodEntry(Objective.from_cbor(objective))
    if option_type(locator) is not None and not is_locator(locator):
        # Without its locator it would be another objective, so it cannot be kept.
        return None
    return FloodEntry(Objective.from_cbor(objective), locator_from_cbor(locator))
