"""What can go wrong with the bodies of EST."""

from __future__ import annotations

from minerva.core.errors import DecodeError, MinervaError


class EstError(MinervaError):
    """Base of all errors of this package."""


class EstDecodeError(DecodeError, EstError):
    """A body is not what EST has at its place: why."""
