"""What can go wrong in registrar and MASA alike."""

from __future__ import annotations

from minerva.core.errors import MinervaError


class DatabaseError(MinervaError):
    """The database cannot be used: it is not there, not ours, of another version, or does not answer."""
