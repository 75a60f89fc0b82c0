"""IKE and ESP in UDP on port 4500 (RFC 7296 section 2.23, RFC 3948), for peers that have no plain ESP.

There is no NAT on a link, so this is no NAT traversal: both ends are on port 4500, and a change of addresses
is not followed. It is agreed upon as everywhere: both send NAT_DETECTION notifications, and who does that can
encapsulate. The hash of our own address is something random, so that it looks translated and the peer
encapsulates although nothing is in the way.

On port 4500 an IKE message follows four bytes of zero, where ESP has its SPI; a lone byte 0xFF is a
keepalive. We send none: with liveness probes after seconds no mapping would time out, if there were one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from ipaddress import IPv6Address

from minerva.ikev2.config import Config
from minerva.ikev2.constants import ENCAPSULATION_PORT, NotifyType
from minerva.ikev2.message import find_notify
from minerva.ikev2.payloads import Notify, Payload

NON_ESP_MARKER = bytes(4)
"""What is before an IKE message on port 4500 (RFC 3948 section 2.2)."""

_HASH_LENGTH = 20


def encapsulated(config: Config, port: int) -> bool:
    """Return whether datagrams to and from the peer's ``port`` are those of port 4500, with the marker."""
    return config.udp_encapsulation and port == ENCAPSULATION_PORT


def nat_detection(
    spi_i: bytes, spi_r: bytes, address: IPv6Address, port: int, random_bytes: Callable[[int], bytes]
) -> tuple[Notify, Notify]:
    """Return the notifications for an IKE_SA_INIT message to ``address`` and ``port``."""
    # SHA-1 only names the address here, as section 2.23 has it; nothing is trusted for it.
    there = hashlib.sha1(spi_i + spi_r + address.packed + port.to_bytes(2), usedforsecurity=False).digest()
    return (
        Notify(NotifyType.NAT_DETECTION_SOURCE_IP, random_bytes(_HASH_LENGTH)),
        Notify(NotifyType.NAT_DETECTION_DESTINATION_IP, there),
    )


def port_after_init(config: Config, payloads: Sequence[Payload], port: int) -> int:
    """Return the peer's port for what follows IKE_SA_INIT, after a peer on ``port`` sent ``payloads``."""
    wanted = config.udp_encapsulation and all(
        find_notify(payloads, kind) is not None
        for kind in (NotifyType.NAT_DETECTION_SOURCE_IP, NotifyType.NAT_DETECTION_DESTINATION_IP)
    )
    return ENCAPSULATION_PORT if wanted else port
