"""A strict reader of big-endian binary formats."""

from __future__ import annotations

from ipaddress import IPv6Address

from minerva.core.errors import DecodeError


class Reader:
    """Reads a byte string from front to back and raises ``error`` when it is too short.

    Every read names what it reads, so that the error says which field was cut off. Offsets and lengths
    are in bytes.
    """

    __slots__ = ("_data", "_end", "_error", "_position")

    def __init__(
        self, data: bytes, error: type[DecodeError], *, start: int = 0, end: int | None = None
    ) -> None:
        self._data = data
        self._position = start
        self._end = len(data) if end is None else end
        self._error = error

    @property
    def position(self) -> int:
        """The offset of the next byte to be read, from the start of the whole byte string."""
        return self._position

    @property
    def remaining(self) -> int:
        """How many bytes are left."""
        return self._end - self._position

    def read(self, length: int, what: str) -> bytes:
        """Return the next ``length`` bytes, which are the field ``what``."""
        start, end = self._position, self._position + length
        if length < 0 or end > self._end:
            raise self._error(f"{what}: {length} bytes wanted, {self.remaining} left")
        self._position = end
        return self._data[start:end]

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.read(self.remaining, "rest")

    def u8(self, what: str) -> int:
        """Return an unsigned integer of one byte."""
        return self.read(1, what)[0]

    def u16(self, what: str) -> int:
        """Return an unsigned integer of two bytes."""
        return int.from_bytes(self.read(2, what))

    def u32(self, what: str) -> int:
        """Return an unsigned integer of four bytes."""
        return int.from_bytes(self.read(4, what))

    def u64(self, what: str) -> int:
        """Return an unsigned integer of eight bytes."""
        return int.from_bytes(self.read(8, what))

    def ipv6(self, what: str) -> IPv6Address:
        """Return an IPv6 address of sixteen bytes."""
        return IPv6Address(self.read(16, what))

    def expect_end(self, what: str) -> None:
        """Raise unless everything has been read; ``what`` is the structure that ends here."""
        if self.remaining:
            raise self._error(f"{what}: {self.remaining} bytes after its end")
