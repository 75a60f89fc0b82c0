"""Session IDs (RFC 8990 section 2.7)."""

from __future__ import annotations

from collections import deque
from random import Random

_RECENT = 256


class SessionIds:
    """Makes Session IDs that are neither in use nor were lately.

    ``random`` should be cryptographically strong: a daemon passes a ``random.SystemRandom``.
    """

    def __init__(self, random: Random, *, recent: int = _RECENT) -> None:
        self._random = random
        self._recent: deque[int] = deque(maxlen=recent)
        self._active: set[int] = set()

    def new(self) -> int:
        """Return a fresh Session ID."""
        while (session_id := self._random.getrandbits(32)) in self._active or session_id in self._recent:
            pass
        self._recent.append(session_id)
        return session_id

    def hold(self, session_id: int) -> None:
        """Note that ``session_id`` is in use, until it is released."""
        self._active.add(session_id)

    def release(self, session_id: int) -> None:
        """Note that ``session_id`` is not in use any more; it still counts as recent."""
        self._active.discard(session_id)

    def is_active(self, session_id: int) -> bool:
        """Return whether ``session_id`` is in use here."""
        return session_id in self._active
