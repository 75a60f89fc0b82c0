"""GRASP messages from a byte stream: bare CBOR items, one after the other (RFC 8990 section 2.5.3)."""

from __future__ import annotations

from collections.abc import Iterator

from minerva.core.cbor import CborError
from minerva.core.cbor_stream import ItemScanner
from minerva.grasp.errors import GraspDecodeError
from minerva.grasp.messages import Message, decode

MAX_STREAM_MESSAGE = 65_535
"""The longest message taken from a stream, in bytes; others may negotiate more than they must (2.8.3)."""


class MessageStream:
    """Cuts one direction of a connection into messages, whatever its segmentation."""

    __slots__ = ("_max_size", "_scanner")

    def __init__(self, *, max_size: int = MAX_STREAM_MESSAGE) -> None:
        self._max_size = max_size
        self._scanner = ItemScanner(max_size=max_size)

    @property
    def broken(self) -> bool:
        """Whether nothing more can come of this stream."""
        return self._scanner.broken is not None

    def feed(self, data: bytes) -> Iterator[tuple[bytes, Message | GraspDecodeError]]:
        """Take the next bytes; return each item that is now complete, with what it is or why it is nothing.

        Nothing is raised: a stream that is ``broken`` afterwards has no further items.
        """
        try:
            items = self._scanner.feed(data)
        except CborError:
            return
        for item in items:
            try:
                yield item, decode(item, max_size=self._max_size)
            except GraspDecodeError as error:
                yield item, error
