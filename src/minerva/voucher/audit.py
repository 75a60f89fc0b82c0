"""The audit log of a device: which domains its MASA has made vouchers for (RFC 8995 section 5.8.1)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from minerva.core.strict_json import load_object
from minerva.voucher.errors import AuditLogDecodeError
from minerva.voucher.leaves import (
    decode_binary,
    decode_counter,
    decode_date,
    decode_text,
    encode_binary,
    encode_date,
)
from minerva.voucher.model import Assertion

MAX_SIZE = 262_144
"""The longest audit log accepted, in bytes."""

MAX_TRUNCATION_COUNT = 1024
"""Where counting of what was left out of a log may end."""

VERSION = 1


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One voucher that the MASA made::

        { "date": text, "domainID": text, "nonce": text / null, "assertion": text, ? "truncated": uint }

    ``domain_id`` is that of :func:`minerva.pki.idevid.domain_id`. ``nonce`` is ``None`` for a voucher without
    one, which its domain may use again and again. ``truncated`` is how many older ones of this domain and
    kind were left out. ``assertion`` is a text for one that only a later version knows.
    """

    date: datetime
    domain_id: bytes
    nonce: str | None
    assertion: Assertion | str
    truncated: int = 0

    def members(self) -> dict[str, Any]:
        """Return the members of the JSON object."""
        members: dict[str, Any] = {
            "date": encode_date(self.date),
            "domainID": encode_binary(self.domain_id),
            "nonce": self.nonce,
            "assertion": self.assertion,
        }
        if self.truncated:
            members["truncated"] = min(self.truncated, MAX_TRUNCATION_COUNT)
        return members

    @classmethod
    def from_members(cls, members: Any) -> AuditEvent:
        """Return the event that a JSON object is. Raises :class:`AuditLogDecodeError`."""
        if not isinstance(members, dict):
            raise AuditLogDecodeError("events: not an array of objects")
        for name in ("date", "domainID", "assertion"):
            if name not in members:
                raise AuditLogDecodeError(f"events: one without {name}")
        nonce = members.get("nonce")
        assertion = decode_text(members["assertion"], "assertion", AuditLogDecodeError)
        return cls(
            date=decode_date(members["date"], "date", AuditLogDecodeError),
            domain_id=decode_binary(members["domainID"], "domainID", AuditLogDecodeError),
            nonce=None if nonce is None else decode_text(nonce, "nonce", AuditLogDecodeError),
            assertion=Assertion(assertion) if assertion in set(Assertion) else assertion,
            truncated=decode_counter(members.get("truncated", 0), "truncated", AuditLogDecodeError),
        )


@dataclass(frozen=True, slots=True)
class AuditLog:
    """The answer to ``requestauditlog``::

        { "version": uint, "events": [ + event ],
          "truncation": { ? "nonced duplicates": uint, ? "nonceless duplicates": uint, ? "arbitrary": uint } }

    The counters are of events that were left out: duplicates within a domain, and others. One that is not
    there is 0. They are written as numbers; the RFC's own example has them as texts, which are read as well.
    """

    events: tuple[AuditEvent, ...]
    nonced_duplicates: int = 0
    nonceless_duplicates: int = 0
    arbitrary: int = 0
    version: int = VERSION

    def encode(self) -> bytes:
        """Return the JSON."""
        counters = {
            "nonced duplicates": self.nonced_duplicates,
            "nonceless duplicates": self.nonceless_duplicates,
            "arbitrary": self.arbitrary,
        }
        members = {
            "version": self.version,
            "events": [event.members() for event in self.events],
            "truncation": {name: min(count, MAX_TRUNCATION_COUNT) for name, count in counters.items()},
        }
        return json.dumps(members, separators=(",", ":")).encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> AuditLog:
        """Return the log that the JSON ``data`` is. Raises :class:`AuditLogDecodeError`."""
        members = load_object(data, AuditLogDecodeError, max_size=MAX_SIZE)
        events = members.get("events")
        truncation = members.get("truncation") or {}
        if not isinstance(events, list) or not isinstance(truncation, dict):
            raise AuditLogDecodeError("an audit log without an array of events, or with a bad truncation")

        def count(name: str) -> int:
            return decode_counter(truncation.get(name, 0), name, AuditLogDecodeError)

        return cls(
            events=tuple(AuditEvent.from_members(event) for event in events),
            nonced_duplicates=count("nonced duplicates"),
            nonceless_duplicates=count("nonceless duplicates"),
            arbitrary=count("arbitrary"),
            version=decode_counter(members.get("version"), "version", AuditLogDecodeError),
        )
