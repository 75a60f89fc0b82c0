"""Numbers of IANA that pledges need."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Final

MDNS_PORT: Final = 5353
MDNS_GROUP: Final = IPv6Address("ff02::fb")
"""Where multicast DNS is spoken on a link (RFC 6762 section 3)."""
