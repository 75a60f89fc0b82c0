"""GRASP messages, and bytes that are none, for people and for programs that read JSON.

What a message says was chosen by somebody else. Nothing of it gets to a terminal that would do more there
than be read: control characters, and those that change the direction or the shape of a text, are escaped.
Values are written in CBOR's diagnostic notation (RFC 8949 section 8), cut where they are too long.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv6Address
from typing import Any, Final

from cbor2 import CBORSimpleValue, CBORTag, undefined

from minerva.core import cbor
from minerva.core.text import escape, printable
from minerva.grasp.constants import ObjectiveFlag
from minerva.grasp.errors import GraspDecodeError
from minerva.grasp.messages import (
    Discovery,
    End,
    Flood,
    Invalid,
    Message,
    Negotiate,
    Noop,
    RequestNegotiation,
    RequestSynchronization,
    Response,
    Synch,
    Wait,
    decode,
)
from minerva.grasp.options import (
    NO_VALUE,
    FqdnLocator,
    IPv4Locator,
    IPv6Locator,
    Locator,
    Objective,
    UriLocator,
)

MAX_VALUE: Final = 100
"""How many characters of a value :func:`message_text` shows."""

MAX_LINE: Final = 1000
"""How many characters :func:`message_text` returns at most."""

_CUT = "..."
_CHUNK = 64
"""Characters, or bytes, of a string that are escaped at a time: a long one that is cut costs no more."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9._:@/+-]{1,100}")
_UNDEFINED = 23
"""The simple value that is "undefined" (RFC 8949 section 3.3)."""


def diagnostic(item: Any, *, limit: int | None = None) -> str:
    """Return a decoded CBOR item in diagnostic notation (RFC 8949 section 8), printable.

    With ``limit``, no more characters than that: what is cut off leaves ``...``.
    """
    pieces: list[str] = []
    length = 0
    for piece in _pieces(item):
        pieces.append(piece)
        length += len(piece)
        if limit is not None and length > limit:
            return _cut("".join(pieces), limit)
    return "".join(pieces)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: max(limit - len(_CUT), 0)] + _CUT[:limit]


def _pieces(item: Any) -> Iterator[str]:
    """Yield the notation of an item in pieces of a bounded length."""
    match item:
        case str():
            yield '"'
            for start in range(0, len(item), _CHUNK):
                yield "".join(
                    character if character.isprintable() and character not in '"\\' else escape(character)
                    for character in item[start : start + _CHUNK]
                )
            yield '"'
        case bytes():
            yield "h'"
            for start in range(0, len(item), _CHUNK):
                yield item[start : start + _CHUNK].hex()
            yield "'"
        case list() | tuple():  # a map's key that is an array arrives as a tuple
            yield from _between("[", item, _pieces, "]")
        case Mapping():
            yield from _between("{", item.items(), _pair, "}")
        case CBORTag():
            yield from _between(f"{item.tag}(", [item.value], _pieces, ")")
        case _:
            yield _scalar(item)


def _between(begin: str, items: Any, pieces: Callable[[Any], Iterator[str]], end: str) -> Iterator[str]:
    yield begin
    for number, item in enumerate(items):
        if number:
            yield ", "
        yield from pieces(item)
    yield end


def _pair(pair: tuple[Any, Any]) -> Iterator[str]:
    yield from _pieces(pair[0])
    yield ": "
    yield from _pieces(pair[1])


def _scalar(item: Any) -> str:
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, CBORSimpleValue):
        return f"simple({item.value})"
    if item is None:
        return "null"
    if item is undefined:
        return "undefined"
    if isinstance(item, float) and not math.isfinite(item):
        return _not_finite(item)
    return repr(item)


def _not_finite(number: float) -> str:
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


# One line for people


def message_text(data: bytes, *, limit: int = MAX_LINE) -> str:
    """Return a message in one printable line of at most ``limit`` characters.

    Bytes that are not a message are told as such, with the reason and what CBOR they are, if any.
    """
    try:
        return _cut(" ".join(filter(None, _words(decode(data, max_size=cbor.MAX_SIZE)))), limit)
    except GraspDecodeError as error:
        why = printable(str(error))
    try:
        what = diagnostic(cbor.loads(data), limit=MAX_VALUE)
    except cbor.CborError:
        what = diagnostic(data, limit=MAX_VALUE)
    return _cut(f"not a GRASP message: {_cut(why, MAX_VALUE)}: {what}", limit)


def objectives(message: Message) -> tuple[Objective, ...]:
    """Return the objectives that a message carries, in their order."""
    match message:
        case Flood():
            return tuple(entry.objective for entry in message.entries)
        case Noop() | End() | Wait() | Invalid():
            return ()
    return () if message.objective is None else (message.objective,)


def _words(message: Message) -> Iterator[str]:
    """Yield the parts of a message's line; some are empty."""
    yield message.TYPE.name
    if isinstance(message, Noop):
        return
    yield f"session {message.session_id}"
    match message:
        case Discovery():
            yield f"initiator {message.initiator}"
            yield _objective_text(message.objective)
        case Response():
            yield f"initiator {message.initiator} ttl {_seconds(message.ttl)}"
            where = message.locators if message.divert is None else message.divert.locators
            yield "" if message.divert is None else "divert"
            yield f"at {', '.join(_locator_text(locator) for locator in where)}"
            if message.objective is not None:
                yield _objective_text(message.objective)
        case Flood():
            yield f"initiator {message.initiator}"
            # An indefinite lifetime (RFC 8990 section 2.8.11).
            yield f"ttl {_seconds(message.ttl)}" if message.ttl else "ttl unlimited"
            yield "; ".join(
                _objective_text(entry.objective)
                + (f" at {_locator_text(entry.locator)}" if entry.locator is not None else "")
                for entry in message.entries
            )
        case End():
            yield "accept" if message.accepted else "decline"
            if message.reason is not None:
                yield diagnostic(message.reason, limit=MAX_VALUE)
        case Wait():
            yield _seconds(message.waiting_time)
        case Invalid():
            yield "" if message.content is NO_VALUE else diagnostic(message.content, limit=MAX_VALUE)
        case _:
            yield _objective_text(message.objective)


def _seconds(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds}.{rest:03}".rstrip("0") + " s" if rest else f"{seconds} s"


def _objective_text(objective: Objective) -> str:
    plain = _PLAIN_NAME.fullmatch(objective.name)
    name = objective.name if plain else diagnostic(objective.name, limit=MAX_VALUE)
    value = "" if objective.value is NO_VALUE else f" = {diagnostic(objective.value, limit=MAX_VALUE)}"
    return f"{name} ({'|'.join(_flags(objective.flags)) or 'no flags'}, loop {objective.loop_count}){value}"


def _flags(flags: ObjectiveFlag) -> list[str]:
    return [flag.name.removeprefix("F_") for flag in ObjectiveFlag if flag in flags and flag.name]


def _locator_text(locator: Locator) -> str:
    if isinstance(locator, UriLocator):
        how = (
            None if locator.transport is None else _transport(locator),
            None if locator.port is None else f"port {locator.port}",
        )
        return " ".join([diagnostic(locator.uri, limit=MAX_VALUE), *(word for word in how if word)])
    match locator:
        case IPv6Locator() | IPv4Locator():
            where = endpoint_text(locator.address, locator.port)
        case FqdnLocator():
            where = f"{diagnostic(locator.name, limit=MAX_VALUE)}:{locator.port}"
    return f"{_transport(locator)} {where}"


def endpoint_text(address: object, port: int) -> str:
    """Return an IP address and a port as they are usually written."""
    return f"[{address}]:{port}" if isinstance(address, IPv6Address) else f"{address}:{port}"


def _transport(locator: Locator) -> str:
    return "" if locator.transport is None else locator.transport.name.removeprefix("IPPROTO_").lower()


# JSON


def message_data(data: bytes) -> dict[str, Any]:
    """Return a message as what JSON can say, complete, under names that go with the RFC's.

    ``hex`` is always there: the bytes. Times are in milliseconds, as in the message. ``item`` is all of it
    as :func:`json_data` has it, where it holds what this version of GRASP does not know. Of bytes that are
    not a message there are ``error`` and, if they are CBOR, ``item``.
    """
    found: dict[str, Any] = {}
    item: Any = NO_VALUE
    try:
        item = cbor.loads(data)
        message = decode(data, max_size=cbor.MAX_SIZE)
        found = {"type": message.TYPE.name, **_fields(message)}
        if cbor.dumps(item) == message.encode():
            item = NO_VALUE
    except (GraspDecodeError, cbor.CborError) as error:
        found = {"error": str(error)}
    if item is not NO_VALUE:
        found["item"] = json_data(item)
    return {**found, "hex": data.hex()}


def _fields(message: Message) -> dict[str, Any]:
    if isinstance(message, Noop):
        return {}
    found: dict[str, Any] = {"session_id": message.session_id}
    match message:
        case Discovery() | Response() | Flood():
            found["initiator"] = str(message.initiator)
    match message:
        case Response() | Flood():
            found["ttl"] = message.ttl
    match message:
        case Response():
            where = message.locators if message.divert is None else message.divert.locators
            key = "locators" if message.divert is None else "divert"
            found[key] = [_locator_data(locator) for locator in where]
        case Flood():
            found["entries"] = [
                {
                    "objective": _objective_data(entry.objective),
                    "locator": None if entry.locator is None else _locator_data(entry.locator),
                }
                for entry in message.entries
            ]
        case End():
            found |= {"accepted": message.accepted, "reason": message.reason}
        case Wait():
            found["waiting_time"] = message.waiting_time
        case Invalid():
            found |= {} if message.content is NO_VALUE else {"content": json_data(message.content)}
    match message:
        case (
            Discovery() | Response() | RequestNegotiation() | RequestSynchronization() | Negotiate() | Synch()
        ) if message.objective is not None:
            found["objective"] = _objective_data(message.objective)
    return found


def _objective_data(objective: Objective) -> dict[str, Any]:
    value = {} if objective.value is NO_VALUE else {"value": json_data(objective.value)}
    flags = _flags(objective.flags)
    return {"name": objective.name, "flags": flags, "loop_count": objective.loop_count, **value}


def _locator_data(locator: Locator) -> dict[str, Any]:
    match locator:
        case IPv6Locator() | IPv4Locator():
            where = {"address": str(locator.address)}
        case FqdnLocator():
            where = {"fqdn": locator.name}
        case UriLocator():
            where = {"uri": locator.uri}
    return {**where, "transport": _transport(locator) or None, "port": locator.port}


# The objects by which json_data says what JSON lacks. A map with just such keys is said in full.
_RESERVED = ({"hex"}, {"float"}, {"simple"}, {"map"}, {"tag", "value"})


def json_data(item: Any) -> Any:
    """Return a decoded CBOR item as what JSON can say, without loss.

    A byte string is ``{"hex": "..."}``, a tag ``{"tag": 24, "value": ...}``, a simple value
    ``{"simple": 99}`` ("undefined" is 23), a float that is not finite ``{"float": "NaN"}``. A map is an
    object if its keys are texts, and if it could not be taken for one of these, else
    ``{"map": [[key, value], ...]}``.
    """
    match item:
        case bytes():
            return {"hex": item.hex()}
        case list() | tuple():
            return [json_data(element) for element in item]
        case Mapping():
            if all(isinstance(key, str) for key in item) and set(item) not in _RESERVED:
                return {key: json_data(value) for key, value in item.items()}
            return {"map": [[json_data(key), json_data(value)] for key, value in item.items()]}
        case CBORTag():
            return {"tag": item.tag, "value": json_data(item.value)}
        case CBORSimpleValue():
            return {"simple": item.value}
        case float() if not math.isfinite(item):
            return {"float": _not_finite(item)}
    return {"simple": _UNDEFINED} if item is undefined else item


def json_text(data: Any) -> str:
    """Return JSON in one line of printable ASCII."""
    # ensure_ascii escapes all but the space and what is visible in ASCII.
    return json.dumps(data, ensure_ascii=True, allow_nan=False)
