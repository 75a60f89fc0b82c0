"""What can go wrong in a registrar, and what it answers then."""

from __future__ import annotations

from minerva.brski.errors import DatabaseError
from minerva.core.errors import MinervaError

__all__ = ["DatabaseError", "Refusal", "RegistrarError"]


class RegistrarError(MinervaError):
    """Base of all errors of this package: one sentence for the operator, with what to do."""


class Refusal(RegistrarError):
    """A request is not granted: the HTTP status, and the reason as a sentence for both ends.

    ``status`` is what RFC 8995 (sections 5.2 to 5.6) and RFC 7030 make of it. ``reason`` goes to the peer as
    it is, so it holds nothing that only the operator may know; texts of strangers in it are printable.
    ``detail`` is for the log alone. ``retry_after``, in seconds, belongs to the statuses 202 and 503.
    ``close`` tells that the connection must be closed after the answer (RFC 8995 section 5.2).
    """

    def __init__(
        self,
        status: int,
        reason: str,
        *,
        detail: str | None = None,
        retry_after: int | None = None,
        close: bool = False,
        device_id: int | None = None,
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.retry_after = retry_after
        self.close = close
        self.device_id = device_id
