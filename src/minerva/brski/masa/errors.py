"""What can go wrong in a MASA, and what it answers then."""

from __future__ import annotations

from minerva.core.errors import MinervaError


class MasaError(MinervaError):
    """What its operator asked for cannot be done: one sentence, with what to do."""


class Refusal(MasaError):
    """A request is not granted: the HTTP status of RFC 8995 section 5.6, and the reason as a sentence.

    The sentence goes to the registrar. Texts of strangers in it are printable.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
