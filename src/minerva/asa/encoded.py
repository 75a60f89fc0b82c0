"""Values that are CBOR already (RFC 8991 section 2.3.2.4), in tag 24 (RFC 8949 section 3.4.5.1).

By these, ASAs in whatever language can exchange values that GRASP and its API hand on byte for byte.
"""

from __future__ import annotations

from typing import Any, Final

from cbor2 import CBORTag

from minerva.asa.protocol import MAX_REQUEST
from minerva.core import cbor
from minerva.core.cbor_stream import ItemScanner
from minerva.grasp.api import AsaError, ErrorCode
from minerva.grasp.options import NO_VALUE

ENCODED_CBOR: Final = 24
"""The tag of an encoded CBOR data item."""

_MAX_DEPTH = 256
"""What is inside is decoded by ASAs alone, and this only counts brackets."""


def encoded(data: bytes) -> CBORTag:
    """Return the value of an objective that is the one CBOR item in ``data``, to be handed on as it is.

    Raises :class:`AsaError` (``CBORfail``) if ``data`` is not one well-formed item.
    """
    try:
        items = ItemScanner(max_size=MAX_REQUEST, max_depth=_MAX_DEPTH).feed(data)
    except cbor.CborError as error:
        raise AsaError(ErrorCode.CBORfail, str(error)) from error
    if items != [data]:
        raise AsaError(ErrorCode.CBORfail, f"{len(data)} bytes that are not one CBOR item")
    return CBORTag(ENCODED_CBOR, bytes(data))


def raw(value: Any) -> bytes:
    """Return the CBOR of the value of an objective: what is in the tag, or else the value encoded.

    What a tag from the network holds need not be well-formed; check it. Raises :class:`AsaError`
    (``CBORfail``) if there is no value.
    """
    if isinstance(value, CBORTag) and value.tag == ENCODED_CBOR and isinstance(value.value, bytes):
        return value.value
    if value is NO_VALUE:
        raise AsaError(ErrorCode.CBORfail, "the objective has no value")
    return cbor.dumps(value)
