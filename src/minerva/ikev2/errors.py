"""What can go wrong in IKEv2."""

from __future__ import annotations

from minerva.core.errors import DecodeError, MinervaError
from minerva.ikev2.constants import NotifyType


class IkeError(MinervaError):
    """Base of all errors of this package."""


class IkeUsageError(IkeError):
    """This package was asked for something that it cannot do, or that makes no sense in the SA's state."""


class IkeDecodeError(DecodeError, IkeError):
    """Bytes are not an IKEv2 message, or not the one that belongs here."""


class IkeCryptoError(IkeError):
    """A public value is not one of its group, or a protected message does not pass its integrity check."""


class IkePeerError(IkeError):
    """The peer broke the rules or wants what we do not do. ``notify`` is what it is to be told."""

    def __init__(
        self, notify: NotifyType, reason: str, *, data: bytes = b"", rule: int | None = None
    ) -> None:
        super().__init__(reason)
        self.notify = notify
        self.data = data
        self.rule = rule
