"""The frames between an ASA's process and the node, on the node's API socket.

The socket is a Unix stream socket. Both ways travel bare CBOR items, as in GRASP itself::

    request   = [id, function: tstr, arguments: [*any]]
    reply     = [id, errorcode: uint, result: any, reason: tstr]
    event     = [0, kind: tstr, content: any]
    id        = 1..4611686018427387904

A process numbers its requests as it likes, but never two alike of those that are under way. Each request
gets one reply, in whatever order. ``result`` is null where ``errorcode`` (RFC 8991 appendix A) is not 0.
Elements after those that are defined are ignored. Used by both ends; docs/asa.md lists the functions.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from minerva.core import cbor
from minerva.core.cbor_stream import ItemScanner
from minerva.core.errors import DecodeError
from minerva.grasp.api import ErrorCode
from minerva.grasp.errors import GraspError
from minerva.grasp.options import check_array, check_text, check_uint

API_SOCKET: Final = "grasp.sock"
"""The name of the socket in the node's run directory."""

DEFAULT_RUN_DIR: Final = "/run/minerva"
"""Where a node has its sockets unless it is told otherwise."""

MAX_REQUEST: Final = 256 << 10
"""The largest request, in bytes."""

MAX_REQUEST_DEPTH: Final = cbor.MAX_DEPTH + 2
"""The deepest nesting in a request: the value of a flood lies two levels deeper than in its message."""

MAX_REPLY: Final = 8 << 20
"""The largest reply or event, in bytes: what ten thousand nodes have flooded has to fit."""

MAX_REPLY_DEPTH: Final = cbor.MAX_DEPTH + 8
"""The deepest nesting in a reply: enough for every value that a request can bring, in a status."""

TRACE: Final = "trace"
"""The kind of the events that ``trace`` switches on; and that function's name."""

_EVENT_ID = 0
_MAX_ID = 1 << 62
_MAX_ERRORCODE = 0xFFFF_FFFF


class ApiError(GraspError):
    """A frame of the API socket cannot be made, or is not one."""


class ApiDecodeError(DecodeError, ApiError):
    """Bytes that are not an acceptable frame."""


def _encode(item: list[Any], max_size: int) -> bytes:
    try:
        data = cbor.dumps(item)
    except Exception as error:
        # The value is any Python object, so encoding runs code of the caller's: no list of types is complete.
        raise ApiError(f"this cannot be said in CBOR: {error}") from error
    if len(data) > max_size:
        raise ApiError(f"{len(data)} bytes of CBOR are more than the {max_size} that the API takes")
    return data


def _decode(data: bytes, max_size: int, max_depth: int, what: str) -> tuple[int, list[Any]]:
    """Return the id of a frame and the elements after it, two or more."""
    try:
        item = cbor.loads(data, max_size=max_size, max_depth=max_depth)
        identifier, *rest = check_array(item, 3, what)
        return check_uint(identifier, _MAX_ID, f"id of the {what}"), rest
    except (DecodeError, GraspError) as error:
        raise ApiDecodeError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Request:
    """``[id, function, arguments]``: a call of the function of RFC 8991, or of ours, of that name."""

    id: int
    function: str
    arguments: list[Any] = field(default_factory=list)

    def encode(self) -> bytes:
        """Return the frame. Raises :class:`ApiError`."""
        data = _encode([self.id, self.function, self.arguments], MAX_REQUEST)
        try:
            # What the node would refuse must not be sent: it ends the connection, and all that is under way.
            cbor.loads(data, max_size=MAX_REQUEST, max_depth=MAX_REQUEST_DEPTH)
        except cbor.CborError as error:
            raise ApiError(f"this cannot be said in CBOR: {error}") from error
        return data

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """Return the request that ``data`` is. Raises :class:`ApiDecodeError`."""
        identifier, (function, arguments, *_) = _decode(data, MAX_REQUEST, MAX_REQUEST_DEPTH, "request")
        try:
            check_text(function, "function of the request")
            check_array(arguments, 0, "arguments of the request")
        except GraspError as error:
            raise ApiDecodeError(str(error)) from error
        if identifier == _EVENT_ID:
            raise ApiDecodeError("a request has the id 0, which is for events")
        return cls(identifier, function, arguments)


@dataclass(frozen=True, slots=True)
class Reply:
    """``[id, errorcode, result, reason]``: what the request ``id`` ended with."""

    id: int
    code: ErrorCode
    result: Any = None
    reason: str = ""

    def encode(self) -> bytes:
        """Return the frame. Raises :class:`ApiError`."""
        return _encode([self.id, int(self.code), self.result, self.reason], MAX_REPLY)


@dataclass(frozen=True, slots=True)
class Event:
    """``[0, kind, content]``: what the node tells without having been asked."""

    kind: str
    content: Any

    def encode(self) -> bytes:
        """Return the frame. Raises :class:`ApiError`."""
        return _encode([_EVENT_ID, self.kind, self.content], MAX_REPLY)


def decode_from_node(data: bytes) -> Reply | Event:
    """Return the reply or event that ``data`` is. Raises :class:`ApiDecodeError`."""
    identifier, rest = _decode(data, MAX_REPLY, MAX_REPLY_DEPTH, "frame of the node")
    try:
        if identifier == _EVENT_ID:
            return Event(check_text(rest[0], "kind of the event"), rest[1])
        number, result, reason = check_array(rest, 3, "rest of the reply")[:3]
        check_text(reason, "reason of the reply")
        number = check_uint(number, _MAX_ERRORCODE, "errorcode")
    except GraspError as error:
        raise ApiDecodeError(str(error)) from error
    if number not in tuple(ErrorCode):  # of a node that is newer than we are
        return Reply(identifier, ErrorCode.unspec, None, reason or f"error {number}")
    return Reply(identifier, ErrorCode(number), result, reason)


@dataclass(frozen=True, slots=True)
class TraceRecord:
    """``[time, where, direction, message]``, the content of a trace event: a GRASP message seen by the node.

    ``time`` is in seconds since 1970. ``where`` is the interface and the neighbour
    (``acp_6bbc_3e6b fe80::1``) or, for unicast, the address of the peer. ``direction`` is ``in`` or ``out``,
    ``message`` the CBOR of the message.
    """

    time: float
    where: str
    direction: str
    message: bytes

    def to_cbor(self) -> list[Any]:
        """Return the record as a CBOR item."""
        return [self.time, self.where, self.direction, self.message]

    @classmethod
    def from_cbor(cls, item: Any) -> TraceRecord:
        """Return the record that ``item`` is. Raises :class:`GraspError`."""
        time, where, direction, message = check_array(item, 4, "trace record")[:4]
        if not isinstance(time, float | int) or not isinstance(message, bytes):
            raise ApiDecodeError(f"{reprlib.repr(item)} is not a trace record")
        return cls(
            float(time),
            check_text(where, "place of the trace record"),
            check_text(direction, "direction of the trace record"),
            message,
        )


class FrameScanner:
    """Cuts the stream of one direction into frames, not yet decoded: of requests, or ``from_node``."""

    __slots__ = ("_scanner",)

    def __init__(self, *, from_node: bool) -> None:
        self._scanner = (
            ItemScanner(max_size=MAX_REPLY, max_depth=MAX_REPLY_DEPTH)
            if from_node
            else ItemScanner(max_size=MAX_REQUEST, max_depth=MAX_REQUEST_DEPTH)
        )

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the frames that ``data`` completes. Raises :class:`ApiDecodeError` if no more can come."""
        try:
            yield from self._scanner.feed(data)
        except cbor.CborError as error:
            raise ApiDecodeError(str(error)) from error
        if self._scanner.broken is not None:
            raise ApiDecodeError(str(self._scanner.broken)) from self._scanner.broken
