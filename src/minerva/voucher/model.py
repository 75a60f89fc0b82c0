"""Vouchers and voucher requests: what is in them, and their JSON (RFC 8366, RFC 8995 section 3, RFC 7951).

Members that are not known are ignored, and so are those that mean nothing in a request: nobody can depend on
them by mistake. A nonce is the text that it is: the RFC's own examples are not the base64 that its data model
asks for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Self

from minerva.core.errors import DecodeError
from minerva.core.strict_json import load_object
from minerva.core.text import shortened
from minerva.voucher.errors import VoucherDecodeError, VoucherError
from minerva.voucher.leaves import (
    decode_binary,
    decode_boolean,
    decode_date,
    decode_text,
    encode_binary,
    encode_date,
)

MAX_SIZE = 65_536
"""The longest JSON of a voucher or a request accepted, in bytes."""

MIN_NONCE_LENGTH = 8
MAX_NONCE_LENGTH = 32


class Assertion(StrEnum):
    """How the MASA came to believe that the domain owns the device (RFC 8366 section 5.3)."""

    VERIFIED = "verified"
    LOGGED = "logged"
    PROXIMITY = "proximity"
    AGENT_PROXIMITY = "agent-proximity"


def make_nonce(octets: bytes) -> str:
    """Return the nonce that says ``octets``: 8 to 32 of them, random, new for every attempt."""
    if not MIN_NONCE_LENGTH <= len(octets) <= MAX_NONCE_LENGTH:
        raise ValueError(f"a nonce has {MIN_NONCE_LENGTH} to {MAX_NONCE_LENGTH} octets, not {len(octets)}")
    return encode_binary(octets)


def decode_assertion(value: Any, name: str, error: type[DecodeError]) -> Assertion:
    """Return the assertion that the text ``value`` of leaf ``name`` is."""
    try:
        return Assertion(value)
    except ValueError as reason:
        raise error(f"{name}: {shortened(repr(value), 40)} is none of {', '.join(Assertion)}") from reason


_Decoder = Callable[[Any, str, type[DecodeError]], Any]

_LEAVES: Mapping[str, _Decoder] = {
    "assertion": decode_assertion,
    "created_on": decode_date,
    "serial_number": decode_text,
    "nonce": decode_text,
    "idevid_issuer": decode_binary,
    "expires_on": decode_date,
    "proximity_registrar_cert": decode_binary,
    "prior_signed_voucher_request": decode_binary,
    "pinned_domain_cert": decode_binary,
    "domain_cert_revocation_checks": decode_boolean,
    "last_renewal_date": decode_date,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Artifact:
    """What a voucher and a request have in common. Dates have a time zone; certificates are in DER."""

    _TOP: ClassVar[str]

    assertion: Assertion | None = None
    created_on: datetime | None = None
    serial_number: str
    nonce: str | None = None
    idevid_issuer: bytes | None = None
    expires_on: datetime | None = None

    def encode(self) -> bytes:
        """Return the JSON. Raises :class:`VoucherError` for what must not be made."""
        members: dict[str, object] = {}
        for field in fields(self):
            match getattr(self, field.name):
                case None:
                    continue
                case datetime() as moment:
                    value: object = encode_date(moment)
                case bytes() as octets:
                    value = encode_binary(octets)
                case other:
                    value = other
            members[_member(field.name)] = value
        return json.dumps({self._TOP: members}, separators=(",", ":")).encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return what the JSON ``data`` says. Raises :class:`VoucherDecodeError`."""
        members = load_object(data, VoucherDecodeError, max_size=MAX_SIZE).get(cls._TOP)
        if not isinstance(members, dict):
            raise VoucherDecodeError(f"no object {cls._TOP} in the JSON")
        values = {}
        for field in fields(cls):
            name = _member(field.name)
            # Some write null for what is not there.
            if (value := members.get(name)) is not None:
                values[field.name] = _LEAVES[field.name](value, name, VoucherDecodeError)
        if "serial_number" not in values:
            raise VoucherDecodeError(f"{cls._TOP} without a serial-number")
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class VoucherRequest(_Artifact):
    """A voucher request: of a pledge to a registrar, or of a registrar to a MASA.

    ``proximity_registrar_cert`` is the registrar's certificate that the pledge saw in TLS. A registrar's
    request has the pledge's, signed, as ``prior_signed_voucher_request``; or the voucher that it renews.
    """

    _TOP: ClassVar[str] = "ietf-voucher-request:voucher"

    proximity_registrar_cert: bytes | None = None
    prior_signed_voucher_request: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Voucher(_Artifact):
    """A voucher: who, says the maker, owns the device ``serial_number``.

    ``pinned_domain_cert`` is missing in a voucher that refuses; such a one is decoded and never encoded.
    ``domain_cert_revocation_checks`` tells the pledge that it must (true) or must not (false) ask for the
    revocation of the registrar's certificate.
    """

    _TOP: ClassVar[str] = "ietf-voucher:voucher"

    pinned_domain_cert: bytes | None = None
    domain_cert_revocation_checks: bool | None = None
    last_renewal_date: datetime | None = None

    def encode(self) -> bytes:
        """Return the JSON. Raises :class:`VoucherError` for a voucher that RFC 8366 does not allow."""
        if not self.pinned_domain_cert:
            raise VoucherError("a voucher without a pinned-domain-cert would be good for any bearer")
        if self.assertion is None:
            raise VoucherError("a voucher needs an assertion")
        if self.nonce is not None and self.expires_on is not None:
            raise VoucherError("a voucher has a nonce or expires on a date, not both")
        if self.last_renewal_date is not None and self.expires_on is None:
            raise VoucherError("a voucher with a last-renewal-date needs a date on which it expires")
        return _Artifact.encode(self)


def _member(field: str) -> str:
    return field.replace("_", "-")
