"""Ranges of addresses that several packages must know."""

from __future__ import annotations

from ipaddress import IPv6Network
from typing import Final

UNIQUE_LOCAL: Final = IPv6Network("fc00::/7")
"""Unique local addresses, of which also every ACP address is one (RFC 4193, RFC 8994 section 6.11.2)."""
