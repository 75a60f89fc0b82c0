"""What can go wrong with RPL."""

from __future__ import annotations

from minerva.core.errors import DecodeError, MinervaError


class RplError(MinervaError):
    """Base of the exceptions of this package."""


class RplUsageError(RplError):
    """The program that drives the node did what makes no sense, such as bringing up an interface twice."""


class RplDecodeError(DecodeError, RplError):
    """The bytes are no acceptable RPL control message: drop them silently (RFC 6550 section 8.2.3)."""


class UnknownCode(RplDecodeError):
    """A well-formed ICMPv6 header with an RPL code that this profile does not use.

    The secured variants of RFC 6550 section 6.1 among them: RFC 8994 section 6.12.1.9 has no RPL security.
    """
