"""JSON from strangers: one object, in strict UTF-8, and nothing that two readers may read in two ways."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from minerva.core.errors import DecodeError

# A string, which may not end, or a bracket. Nothing is read twice, whatever the input: a string that
# begins matches to its end or to that of the input, and gives nothing of it back (the "++").
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


def load_object(
    data: bytes, error: type[DecodeError], *, max_size: int, max_depth: int = 16
) -> dict[str, Any]:
    """Return the one JSON object in ``data``; raise ``error`` for all else.

    ``max_size`` is in bytes; ``max_depth`` is how deep objects and arrays may be nested. No object
    may have two members of one name; neither NaN nor Infinity is a number (RFC 8259).
    """
    if len(data) > max_size:
        raise error(f"JSON of {len(data)} bytes, at most {max_size} are accepted")
    _check_depth(data, error, max_depth)

    def refuse_constant(name: str) -> NoReturn:
        raise error(f"JSON: {name} is not a number")

    def unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(members)
        if len(found) != len(members):
            raise error("JSON: an object has two members of one name")
        return found

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse_constant)
        if b"\\u" in data:
            # Escapes can make halves of characters, with which nobody knows what to do.
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError as reason:
        raise error("JSON: not in UTF-8, or with half a character") from reason
    except ValueError as reason:
        # The decoder's own texts name a place, or the number of digits of an integer that has too many.
        raise error(f"not JSON: {reason}") from reason
    if not isinstance(value, dict):
        raise error("JSON: not an object")
    return value


def _check_depth(data: bytes, error: type[DecodeError], max_depth: int) -> None:
    depth = 0
    for match in _TOKEN.finditer(data):
        token = data[match.start()]
        if token in b"[{":
            depth += 1
            if depth > max_depth:
                raise error(f"JSON: nested more than {max_depth} deep")
        elif token in b"]}":
            depth -= 1
