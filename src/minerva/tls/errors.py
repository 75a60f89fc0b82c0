"""What can go wrong in TLS."""

from __future__ import annotations

from minerva.core.errors import MinervaError


class TlsError(MinervaError):
    """Base of all errors of this package."""


class TlsUsageError(TlsError):
    """This package was asked for something that it cannot do, or that makes no sense in its state."""


class TlsPeerError(TlsError):
    """The peer broke the rules, or offers nothing that we accept.

    The connection is over. The alert for the peer, where there is one, is in ``data_to_send()``.
    """


class TlsRefusedError(TlsError):
    """The peer ended the connection with a fatal alert; ``alert`` is the library's name of it."""

    def __init__(self, alert: str) -> None:
        super().__init__(f"the peer refused with the alert {alert!a}")
        self.alert = alert


class TlsIdentityError(TlsError):
    """The peer is a member of our domain, but not the one that was wanted, or not entitled."""
