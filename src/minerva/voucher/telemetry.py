"""What a pledge reports of its voucher and of its enrolment (RFC 8995 sections 5.7 and 5.9.4)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minerva.core.strict_json import load_object
from minerva.voucher.errors import StatusDecodeError
from minerva.voucher.leaves import decode_boolean, decode_counter

MAX_SIZE = 16_384
"""The longest report accepted, in bytes."""

VERSION = 1


@dataclass(frozen=True, slots=True)
class Status:
    """The body of a POST to ``voucher_status`` or ``enrollstatus``::

        { "version": uint, "status": bool, ? "reason": text, ? "reason-context": { ... } }

    ``status`` tells whether it went well. ``reason`` is for an operator, and should be of no use to an
    attacker, who may be the registrar. ``reason_context`` is any JSON. Members that are not known are in
    ``unknown``, to be logged; a version above 1 is for a person to look at. A stranger says all of it.
    """

    status: bool
    reason: str | None = None
    reason_context: Any = None
    version: int = VERSION
    unknown: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the JSON."""
        members = {**self.unknown, "version": self.version, "status": self.status}
        if self.reason is not None:
            members["reason"] = self.reason
        if self.reason_context is not None:
            members["reason-context"] = self.reason_context
        return json.dumps(members, separators=(",", ":")).encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Status:
        """Return the report that the JSON ``data`` is. Raises :class:`StatusDecodeError`."""
        members = load_object(data, StatusDecodeError, max_size=MAX_SIZE)
        for name in ("version", "status"):
            if name not in members:
                raise StatusDecodeError(f"a status without {name}")
        version = decode_counter(members.pop("version"), "version", StatusDecodeError)
        status = decode_boolean(members.pop("status"), "status", StatusDecodeError)
        reason = members.pop("reason", None)
        if reason is not None and not isinstance(reason, str):
            raise StatusDecodeError("reason: not a text")
        return cls(status, reason, members.pop("reason-context", None), version, members)
