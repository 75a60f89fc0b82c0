"""The responder's cookies: proof of return routability without state (RFC 7296 section 2.6)."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from ipaddress import IPv6Address

_SECRET_LENGTH = 32


class CookieJar:
    """Makes and checks cookies. A secret serves for ``lifetime`` seconds, and is accepted for as long again.

    ::

        Cookie = version of the secret 8 | HMAC-SHA-256(secret, SPIi | IPi | Ni)
    """

    def __init__(self, random_bytes: Callable[[int], bytes], lifetime: float) -> None:
        self._random_bytes = random_bytes
        self._lifetime = lifetime
        self._secrets: dict[int, bytes] = {}

    def make(self, spi_i: bytes, address: IPv6Address, nonce: bytes, now: float) -> bytes:
        """Return the cookie for an initiator."""
        epoch = self._epoch(now)
        if epoch not in self._secrets:
            fresh = {epoch: self._random_bytes(_SECRET_LENGTH)}
            self._secrets = {e: secret for e, secret in self._secrets.items() if e == epoch - 1} | fresh
        return self._compute(epoch, spi_i, address, nonce)

    def check(self, cookie: bytes, spi_i: bytes, address: IPv6Address, nonce: bytes, now: float) -> bool:
        """Return whether ``cookie`` is one that we made for this initiator not long ago."""
        epoch = self._epoch(now)
        return any(
            hmac.compare_digest(cookie, self._compute(e, spi_i, address, nonce))
            for e in (epoch, epoch - 1)
            if e in self._secrets
        )

    def _epoch(self, now: float) -> int:
        return int(now // self._lifetime)

    def _compute(self, epoch: int, spi_i: bytes, address: IPv6Address, nonce: bytes) -> bytes:
        mac = hmac.digest(self._secrets[epoch], spi_i + address.packed + nonce, "sha256")
        return bytes((epoch & 0xFF,)) + mac
