"""Hashes of passwords, with scrypt (RFC 7914): ``$scrypt$ln=14,r=8,p=5$SALT$HASH``, both in base64."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from typing import Final

from minerva.core.errors import UsageError

LONGEST: Final = 1024
"""Characters of a password at most."""

_LN: Final = 14  # 16 MiB, which a BMC can spare
_R: Final = 8
_P: Final = 5
_LENGTH: Final = 32
_MAX_MEMORY: Final = 128 << 20
_BASE64 = "([A-Za-z0-9+/]+)"
_FORM = re.compile(rf"\$scrypt\$ln=(\d{{1,2}}),r=(\d{{1,2}}),p=(\d{{1,2}})\${_BASE64}\${_BASE64}")


def hash_password(password: str) -> str:
    """Return the hash of a password, for the configuration. Raises UsageError."""
    if not password or len(password) > LONGEST:
        raise UsageError(f"a password has 1 to {LONGEST} characters")
    salt = os.urandom(16)
    digest = _scrypt(password, salt, _LN, _R, _P, _LENGTH)
    return f"$scrypt$ln={_LN},r={_R},p={_P}${_encode(salt)}${_encode(digest)}"


def verify(password: str, hashed: str) -> bool:
    """Return whether a password has this hash; False also where the hash is none of ours.

    Takes long on purpose, and as long for a hash that is empty: nobody learns that there is no such user.
    """
    parts = _parse(hashed) or (_LN, _R, _P, b"-" * 16, b"")
    ln, r, p, salt, digest = parts
    found = _scrypt(password[:LONGEST], salt, ln, r, p, len(digest) or _LENGTH)
    return len(password) <= LONGEST and hmac.compare_digest(found, digest)


def is_hash(text: str) -> bool:
    """Return whether the text is a hash of a password."""
    return _parse(text) is not None


def _parse(text: str) -> tuple[int, int, int, bytes, bytes] | None:
    if (form := _FORM.fullmatch(text)) is None:
        return None
    ln, r, p = (int(form[index]) for index in (1, 2, 3))
    try:
        salt, digest = _decode(form[4]), _decode(form[5])
    except binascii.Error:
        return None
    bearable = 1 <= ln <= 20 and r >= 1 and p >= 1 and (128 * r << ln) <= _MAX_MEMORY // 2
    if not bearable or len(digest) < 16:
        return None
    return ln, r, p, salt, digest


def _scrypt(password: str, salt: bytes, ln: int, r: int, p: int, length: int) -> bytes:
    data = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(data, salt=salt, n=1 << ln, r=r, p=p, maxmem=_MAX_MEMORY, dklen=length)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
