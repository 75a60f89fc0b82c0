"""The anti-replay window of an inbound SA (RFC 4303 section 3.4.3)."""

from __future__ import annotations

from typing import Final

from minerva.esp.errors import EspError

DEFAULT_WINDOW: Final = 1024
"""Packets that may overtake one another; several queues and cores on the way need far more than 64."""

MIN_WINDOW: Final = 32
"""The smallest window that RFC 4303 section 3.4.3 allows."""


class ReplayWindow:
    """Which of the last ``size`` sequence numbers have been seen.

    Ask :meth:`is_new` before the packet is authenticated and call :meth:`accept` only after: a forged
    sequence number must not move the window. ``top``, for reading only, is the highest number accepted, 0 for
    none: all above it are new.
    """

    # One integer of `size` bits, bit 0 for the highest number accepted: a shift and a mask a packet, which
    # in Python is several times faster than a ring of words.
    __slots__ = ("_mask", "_seen", "_size", "top")

    def __init__(self, size: int = DEFAULT_WINDOW) -> None:
        if size < MIN_WINDOW:
            raise EspError(
                f"a replay window of {size} packets is too small: RFC 4303 wants at least {MIN_WINDOW}"
            )
        self._size = size
        self._mask = (1 << size) - 1
        self._seen = 0
        self.top = 0

    def is_old(self, sequence: int) -> bool:
        """Return whether ``sequence`` lies before the window, so that nothing is known of it."""
        return sequence <= self.top - self._size

    def is_new(self, sequence: int) -> bool:
        """Return whether ``sequence`` may be accepted: in or after the window, and not seen. 0 never is."""
        behind = self.top - sequence
        if behind < 0:
            return True
        return behind < self._size and sequence != 0 and not self._seen >> behind & 1

    def accept(self, sequence: int) -> None:
        """Record ``sequence``, for which ``is_new`` was true and whose packet is authentic."""
        ahead = sequence - self.top
        if ahead <= 0:
            self._seen |= 1 << -ahead
            return
        # A jump over the whole window must not shift by up to 2**32 bits.
        self._seen = (self._seen << ahead | 1) & self._mask if ahead < self._size else 1
        self.top = sequence
