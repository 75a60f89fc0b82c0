"""Where the CBOR items of a byte stream end (RFC 8949), found byte by byte as the stream arrives.

A stream of bare items has no length prefix. Decoding from the start again whenever some bytes have come
would let a sender that dribbles make us work quadratically; this looks at every byte once. It knows the
structure of CBOR and nothing else: what an item means, :func:`minerva.core.cbor.loads` says.
"""

from __future__ import annotations

from minerva.core.cbor import MAX_DEPTH, MAX_SIZE, CborError

_BREAK = 0xFF
_BYTES, _TEXT, _ARRAY, _MAP, _TAG = 2, 3, 4, 5, 6
"""Major types."""

_SIZED = 24
"""Below it, additional information is the argument; from it on, the argument follows in 1 to 8 bytes."""

_INDEFINITE_LENGTH = 31
_INDEFINITE = -1
"""In the stack of open containers: one that a break ends."""


class ItemScanner:
    """Cuts a byte stream into CBOR items of at most ``max_size`` bytes and ``max_depth`` levels."""

    __slots__ = ("_buffer", "_max_depth", "_max_size", "_open", "_position", "broken")

    def __init__(self, *, max_size: int = MAX_SIZE, max_depth: int = MAX_DEPTH) -> None:
        self._max_size = max_size
        self._max_depth = max_depth
        self._buffer = bytearray()
        self._position = 0  # where the next head, or the rest of a string, begins
        self._open: list[int] = []  # items still missing in each container that is open, outermost first
        self.broken: CborError | None = None

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished item are held."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream and return the items that are now complete.

        Raises :class:`CborError` where no item can come of the stream any more. Items that were complete
        before that point are returned first: then ``broken`` is set, and the next call raises.
        """
        if self.broken is not None:
            raise self.broken
        self._buffer += data
        items: list[bytes] = []
        try:
            while self._scan():
                if self._position > self._max_size:
                    raise CborError(f"CBOR item of more than {self._max_size} bytes")
                items.append(bytes(self._buffer[: self._position]))
                del self._buffer[: self._position]
                self._position = 0
            if len(self._buffer) > self._max_size:
                raise CborError(f"CBOR item of more than {self._max_size} bytes")
        except CborError as error:
            self.broken = error
            self._buffer.clear()
            if not items:
                raise
        return items

    def _scan(self) -> bool:
        """Go on as far as the bytes reach; return whether an item is complete."""
        while self._position < len(self._buffer):
            head = self._buffer[self._position]
            if head == _BREAK:
                if not self._open or self._open[-1] != _INDEFINITE:
                    raise CborError("a break where nothing of indefinite length is open")
                self._open.pop()
                self._position += 1
            else:
                after = self._after(head >> 5, head & 0x1F)
                if after is None:
                    return False
                self._position, inside = after
                if inside:
                    self._open.append(inside)
                    if len(self._open) > self._max_depth:
                        raise CborError(f"CBOR nested more than {self._max_depth} levels deep")
                    continue
            if self._item_ended():
                return True
        return False

    def _after(self, major: int, info: int) -> tuple[int, int] | None:
        """Return where what begins here goes on, and how many items are inside it.

        ``None`` as long as not all of its head, or of the string it is, has come.
        """
        body = self._position + 1
        if info < _SIZED:
            argument = info
        elif info < _SIZED + 4:
            size = 1 << (info - _SIZED)
            argument = int.from_bytes(self._buffer[body : body + size])
            body += size
            if body > len(self._buffer):
                return None
        elif info == _INDEFINITE_LENGTH and major in (_BYTES, _TEXT, _ARRAY, _MAP):
            return body, _INDEFINITE
        else:
            raise CborError(f"no CBOR item begins with {self._buffer[self._position]:#04x}")
        if major in (_BYTES, _TEXT):
            body += argument
            if body > self._max_size:
                raise CborError(f"CBOR item of more than {self._max_size} bytes")
            return (body, 0) if body <= len(self._buffer) else None
        inside = {_ARRAY: argument, _MAP: 2 * argument, _TAG: 1}.get(major, 0)
        if inside > self._max_size:  # each item takes a byte at least
            raise CborError(f"CBOR item of more than {self._max_size} bytes")
        return body, inside

    def _item_ended(self) -> bool:
        """Note that an item has ended, and with it perhaps what it is in; return whether nothing is open."""
        while self._open:
            if self._open[-1] == _INDEFINITE:
                return False
            self._open[-1] -= 1
            if self._open[-1]:
                return False
            self._open.pop()
        return True
