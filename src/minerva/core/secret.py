"""Key material that does not show itself."""

from __future__ import annotations

import hmac


class Secret:
    """Bytes that never appear in ``repr``, ``str`` or a log; call ``reveal`` where they are used.

    Comparison takes constant time. A secret is not hashable, so it cannot become a dictionary key that
    some dump prints.
    """

    __slots__ = ("_value",)

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """Return the bytes themselves."""
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __repr__(self) -> str:
        return f"<Secret, {len(self._value)} bytes>"
