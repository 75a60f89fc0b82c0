"""What can go wrong while a device becomes a member, and while it stays one."""

from __future__ import annotations

from minerva.core.errors import MinervaError


class PledgeError(MinervaError):
    """Base of all errors of this package."""


class SchedulerError(PledgeError):
    """The scheduler was told something that cannot have happened."""
