"""What can go wrong while a device becomes a member, and while it stays one."""

from __future__ import annotations

from minerva.core.errors import DecodeError, MinervaError


class PledgeError(MinervaError):
    """Base of all errors of this package."""


class SchedulerError(PledgeError):
    """The scheduler was told something that cannot have happened."""


class DeviceError(PledgeError):
    """A device's own identity, that of its maker, cannot be used: why, and what to do."""


class AttemptError(PledgeError):
    """An attempt to enrol, or to renew, has failed: at which step, and why."""


class RefusedError(AttemptError):
    """The registrar does not want to: ``status`` is that of its response."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class UntrustedError(AttemptError):
    """The registrar is not who it has to be, or the voucher is not good for it."""


class DnsDecodeError(PledgeError, DecodeError):
    """Bytes are no DNS message that this package can read."""
