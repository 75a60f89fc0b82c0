"""What the kernel refused, in words."""

from __future__ import annotations

from minerva.core.errors import MinervaError


class LinuxError(MinervaError):
    """The kernel refused something; the message says what, and what to do where that is known."""
