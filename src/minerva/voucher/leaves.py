"""The types of the leaves of a voucher, as they are written in JSON (RFC 7951)."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from minerva.core.errors import DecodeError

MAX_TEXT_LENGTH = 256
"""The longest text of a leaf accepted, such as a serial number or a nonce, in characters."""

MAX_COUNTER = 999_999_999
"""The largest counter accepted."""

_DIGITS = re.compile("[0-9]{1,9}")
_DATE_AND_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,32}))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_TO_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")


def encode_date(moment: datetime) -> str:
    """Return ``moment``, which has a time zone, as RFC 3339 writes it: in UTC, with "Z"."""
    if moment.tzinfo is None:
        raise ValueError("the time of a voucher needs a time zone")
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def decode_date(value: Any, name: str, error: type[DecodeError]) -> datetime:
    """Return the moment that the text ``value`` of leaf ``name`` is (RFC 3339), in UTC."""
    match = _DATE_AND_TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise error(f"{name}: not a date and time with a time zone")
    year, month, day, hour, minute, second = (int(field) for field in match.groups()[:6])
    # A leap second, which Python's clock does not have, is the moment after it.
    leap, second = (1, 59) if second == 60 else (0, second)
    microsecond = int((match[7] or "0")[:6].ljust(6, "0"))
    try:
        zone = UTC
        if match[8] is not None:
            offset = timedelta(hours=int(match[9]), minutes=int(match[10]))
            zone = timezone(-offset if match[8] == "-" else offset)
        moment = datetime(year, month, day, hour, minute, second, microsecond, zone)
        return moment.astimezone(UTC) + timedelta(seconds=leap)
    except (ValueError, OverflowError) as reason:
        raise error(f"{name}: there is no such date and time") from reason


def encode_binary(octets: bytes) -> str:
    """Return ``octets`` in base64 (RFC 4648 section 4), padded."""
    return b64encode(octets).decode("ascii")


def decode_binary(value: Any, name: str, error: type[DecodeError]) -> bytes:
    """Return the octets that the text ``value`` of leaf ``name`` is in base64.

    Others write it with the alphabet of URLs, without padding, or in lines. Neither changes what it says.
    """
    if not isinstance(value, str) or not value.isascii():
        raise error(f"{name}: not base64")
    text = b"".join(value.encode("ascii").translate(_TO_STANDARD_ALPHABET).split()).rstrip(b"=")
    try:
        return b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except Base64Error as reason:
        raise error(f"{name}: not base64") from reason


def decode_text(value: Any, name: str, error: type[DecodeError]) -> str:
    """Return the text ``value`` of leaf ``name``, which is not empty and has no control characters."""
    if not isinstance(value, str) or not value:
        raise error(f"{name}: not a text, or an empty one")
    if len(value) > MAX_TEXT_LENGTH:
        raise error(f"{name}: {len(value)} characters, at most {MAX_TEXT_LENGTH} are accepted")
    if any(character < " " or character == "\x7f" for character in value):
        raise error(f"{name}: a text with control characters")
    return value


def decode_boolean(value: Any, name: str, error: type[DecodeError]) -> bool:
    """Return the boolean ``value`` of leaf ``name``. A published example has it as a text."""
    if value in ("true", "false"):
        return bool(value == "true")
    if not isinstance(value, bool):
        raise error(f"{name}: neither true nor false")
    return value


def decode_counter(value: Any, name: str, error: type[DecodeError]) -> int:
    """Return the unsigned integer ``value`` of leaf ``name``. A published example has them as texts."""
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_COUNTER:
        raise error(f"{name}: not a number from 0 to {MAX_COUNTER}")
    return value
