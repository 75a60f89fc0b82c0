"""Which addresses there are on a link, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network
from typing import Final

UNIQUE_LOCAL: Final = IPv6Network("fc00::/7")
"""Unique local addresses, of which also every ACP address is one (RFC 4193, RFC 8994 section 6.11.2)."""


@dataclass(frozen=True, slots=True)
class OwnAddresses:
    """Our addresses on a link: the link-local one, and a unique local one if we want such outer addresses."""

    link_local: IPv6Address
    ula: IPv6Address | None = None

    def towards(self, peer: IPv6Address) -> IPv6Address:
        """Return the address from which we speak to ``peer``: both ends use the same kind."""
        return self.link_local if self.ula is None or peer.is_link_local else self.ula
