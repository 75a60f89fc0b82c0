"""What can go wrong in GRASP."""

from __future__ import annotations

from minerva.core.errors import DecodeError, MinervaError


class GraspError(MinervaError):
    """Something that GRASP does not allow, or that does not fit into its messages."""


class GraspDecodeError(DecodeError, GraspError):
    """Bytes that are not an acceptable GRASP message.

    ``message_type`` and ``session_id`` are what could be read before it went wrong: an M_INVALID that
    answers a unicast message copies the Session ID, and nothing ever answers an M_INVALID (RFC 8990
    section 2.8.12).
    """

    def __init__(
        self, message: str, *, message_type: int | None = None, session_id: int | None = None
    ) -> None:
        super().__init__(message)
        self.message_type = message_type
        self.session_id = session_id


class GraspIncomplete(GraspDecodeError):
    """The bytes are the beginning of a message that more bytes from the stream could complete."""
