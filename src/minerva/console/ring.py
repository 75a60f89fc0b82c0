"""The last bytes of a console, numbered from the first that ever came: readers are offsets into it."""

from __future__ import annotations


class Ring:
    """Holds the last ``size`` bytes of a stream, and knows them by their absolute offset in it.

    Any number of readers share it: each is a number, and asking for the same bytes again costs no copy.
    The memory grows with what has come, up to ``size``.
    """

    __slots__ = ("_buffer", "_first", "_last", "_last_start", "size", "total")

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError("a ring holds at least one byte")
        self.size = size
        self.total = 0
        """How many bytes ever came: the offset of the next one."""
        self._buffer = bytearray()
        self._first = 0  # what came before that is not here, although there would be room
        self._last_start = 0
        self._last = b""

    @property
    def oldest(self) -> int:
        """The offset of the oldest byte that is still here."""
        return max(self._first, self.total - self.size)

    def append(self, data: bytes) -> None:
        """Add bytes; the oldest go when there is no room."""
        place, size = self.total % self.size, self.size
        self.total += len(data)
        if len(data) >= size:
            place = self.total % size
            kept = data[-size:]
            self._buffer = bytearray(kept[size - place :] + kept[: size - place])
            return
        first = min(len(data), size - place)
        self._buffer[place : place + first] = data[:first]
        self._buffer[: len(data) - first] = data[first:]

    def resize(self, size: int) -> None:
        """Hold another number of bytes from now on; what is here stays, as far as there is room."""
        if size < 1:
            raise ValueError("a ring holds at least one byte")
        kept = self.tail(size)
        self.size, self._first = size, self.total - len(kept)
        self._buffer = bytearray(min(size, self.total))
        place = self._first % size
        first = min(len(kept), size - place)
        self._buffer[place : place + first] = kept[:first]
        self._buffer[: len(kept) - first] = kept[first:]

    def slice(self, start: int, end: int) -> bytes:
        """Return the bytes with offsets from ``start`` to before ``end``, all of which must be here."""
        if not self.oldest <= start <= end <= self.total:
            raise ValueError(f"offsets {start} to {end} are not in {self.oldest} to {self.total}")
        # Readers that keep up all ask for the same bytes, one after another.
        if start == self._last_start and end - start == len(self._last):
            return self._last
        place, length = start % self.size, end - start
        with memoryview(self._buffer) as view:
            data = bytes(view[place : place + length])
            if len(data) < length:
                data += view[: length - len(data)]
        self._last_start, self._last = start, data
        return data

    def tail(self, length: int) -> bytes:
        """Return the last ``length`` bytes, or as many as are here."""
        return self.slice(max(self.oldest, self.total - length), self.total)
