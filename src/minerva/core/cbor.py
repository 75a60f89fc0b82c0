"""Strict CBOR (RFC 8949): one item, nothing after it, no duplicate keys, bounded depth and size.

The library accepts trailing bytes and duplicate map keys and interprets tags: a date becomes a
``datetime``, a regular expression is compiled, a bignum becomes an ``int`` that takes seconds to print.
Bytes from a stranger should do none of that, so this is the one place that says no.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import cbor2
from cbor2 import CBORTag

from minerva.core.errors import DecodeError

MAX_DEPTH = 16
"""The deepest nesting of arrays, maps and tags accepted."""

MAX_SIZE = 65_535
"""The largest item accepted unless the caller says otherwise, in bytes."""


class CborError(DecodeError):
    """The bytes are not exactly one acceptable CBOR item."""


class CborIncomplete(CborError):
    """The bytes are the beginning of a CBOR item that more bytes could complete."""


def _keep(tag: int) -> Callable[..., CBORTag]:
    def keep(value: Any, immutable: bool = False) -> CBORTag:  # noqa: ARG001 -- the library's signature
        return CBORTag(tag, value)

    return keep


# Every tag that the library interprets, so that each arrives as a CBORTag like any unknown one.
# 28 and 29 (shared references, which can make a cyclic value) have no business here: a CBORTag too.
_INTERPRETED = (
    *(0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004),
    *(43000, 55799),
)
_TAGS_UNTOUCHED = {tag: _keep(tag) for tag in _INTERPRETED}


def dumps(value: Any) -> bytes:
    """Return ``value`` in deterministic CBOR (RFC 8949 section 4.2.1)."""
    return cbor2.dumps(value, canonical=True)


def loads(data: bytes, *, max_size: int = MAX_SIZE, max_depth: int = MAX_DEPTH) -> Any:
    """Return the one CBOR item that ``data`` (at most ``max_size`` bytes) consists of.

    Tags come as ``cbor2.CBORTag``, uninterpreted, whatever their number. Raises :class:`CborError`.
    """
    value, end = loads_first(data, max_size=max_size, max_depth=max_depth)
    if end != len(data):
        raise CborError(f"{len(data) - end} bytes after the CBOR item")
    return value


def loads_first(data: bytes, *, max_size: int = MAX_SIZE, max_depth: int = MAX_DEPTH) -> tuple[Any, int]:
    """Return the first CBOR item in ``data`` and the offset of the byte after it.

    Raises :class:`CborIncomplete` where more bytes could complete the item, else :class:`CborError`.
    """
    if len(data) > max_size:
        raise CborError(f"CBOR item of {len(data)} bytes, at most {max_size} allowed")
    stream = io.BytesIO(data)
    decoder = cbor2.CBORDecoder(
        stream,
        semantic_decoders=_TAGS_UNTOUCHED,
        max_depth=max_depth,
        allow_duplicate_keys=False,
        read_size=1,
    )
    try:
        value = decoder.decode()
    except cbor2.CBORDecodeEOF as error:
        raise CborIncomplete(f"CBOR item cut off: {error}") from error
    except (cbor2.CBORDecodeError, ValueError, TypeError, ArithmeticError, LookupError, MemoryError) as error:
        raise CborError(f"not CBOR: {error}") from error
    return value, stream.tell()
