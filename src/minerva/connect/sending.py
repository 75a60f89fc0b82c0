"""Which of a channel's pairs of SAs is for sending (RFC 7296 section 2.8), the same on both data planes."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

SETTLE_SECONDS: Final = 0.1
"""How long to go on sending under the old keys when there are new ones. The peer's IKE knows these, but they
are still on their way to its data plane."""

_T = TypeVar("_T")


class SendingOrder(Generic[_T]):
    """The outbound SAs of a channel, each by the SPI of the inbound SA of its pair.

    A new one waits until it is allowed: when IKE says that the peer has it, after ``SETTLE_SECONDS``, or when
    a packet has come in on its pair. The newest that is allowed is sent with; if there is none, the oldest
    that waits.
    """

    __slots__ = ("_allowed", "_waiting")

    def __init__(self) -> None:
        self._allowed: dict[int, _T] = {}
        self._waiting: dict[int, _T] = {}

    def add(self, spi_in: int, outbound: _T) -> None:
        """Have a further pair, which waits."""
        self._waiting[spi_in] = outbound

    def allow(self, spi_in: int) -> bool:
        """Let a pair be for sending; return whether it is still there and has waited for that."""
        if spi_in not in self._waiting:
            return False
        self._allowed[spi_in] = self._waiting.pop(spi_in)
        return True

    def remove(self, spi_in: int) -> None:
        """Forget a pair."""
        self._allowed.pop(spi_in, None)
        self._waiting.pop(spi_in, None)

    @property
    def waiting(self) -> bool:
        """Whether a pair waits."""
        return bool(self._waiting)

    def choose(self) -> _T | None:
        """Return what to send with now."""
        if not self._allowed and self._waiting:
            self.allow(next(iter(self._waiting)))
        return next(reversed(self._allowed.values()), None)
