"""IKE and ESP in UDP on port 4500 (RFC 7296 section 2.23, RFC 3948), for peers that have no plain ESP.

There is no NAT on a link, so this is no NAT traversal: both ends are on port 4500, and a change of addresses
is not followed. It is agreed upon as everywhere: both send NAT_DETECTION notifications, and who does that can
encapsulate; it is done if a hash of either end is not that of an address on the packet. Who wants it all the
same, us with ``UdpEncapsulation.FORCE`` or strongSwan with ``encap = yes``, sends something random in the
place of the hash of its own address, so that it looks translated. IKE_SA_INIT is signed later, so nobody
else can have us believe it.

On port 4500 an IKE message follows four bytes of zero, where ESP has its SPI; a lone byte 0xFF is a
keepalive. We send none: with liveness probes after seconds no mapping would time out, if there were one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from ipaddress import IPv6Address

from minerva.ikev2.config import Config, UdpEncapsulation
from minerva.ikev2.constants import ENCAPSULATION_PORT, IKE_PORT, NotifyType
from minerva.ikev2.payloads import Notify, Payload

NON_ESP_MARKER = bytes(4)
"""What is before an IKE message on port 4500 (RFC 3948 section 2.2)."""

_HASH_LENGTH = 20


def has_marker(config: Config, port: int) -> bool:
    """Return whether datagrams to and from the peer's ``port`` are those of port 4500, with the marker."""
    return config.udp_encapsulation is not UdpEncapsulation.OFF and port == ENCAPSULATION_PORT


def message_in(config: Config, data: bytes, port: int) -> bytes | None:
    """Return the IKE message in a datagram from the peer's ``port``, ``None`` if there is none."""
    if not has_marker(config, port):
        return data
    return data[len(NON_ESP_MARKER) :] if data.startswith(NON_ESP_MARKER) else None


def _digest(spi_i: bytes, spi_r: bytes, address: IPv6Address, port: int) -> bytes:
    # SHA-1 only names the address here, as section 2.23 has it; nothing is trusted for it.
    return hashlib.sha1(spi_i + spi_r + address.packed + port.to_bytes(2), usedforsecurity=False).digest()


def _own_port(config: Config, port: int) -> int:
    return ENCAPSULATION_PORT if has_marker(config, port) else IKE_PORT


def nat_detection(
    config: Config,
    spi_i: bytes,
    spi_r: bytes,
    ours: IPv6Address,
    theirs: IPv6Address,
    port: int,
    random_bytes: Callable[[int], bytes],
) -> tuple[Notify, ...]:
    """Return the notifications for an IKE_SA_INIT message from ``ours`` to ``port`` of ``theirs``, if any."""
    if config.udp_encapsulation is UdpEncapsulation.OFF:
        return ()
    if config.udp_encapsulation is UdpEncapsulation.FORCE:
        source = random_bytes(_HASH_LENGTH)
    else:
        source = _digest(spi_i, spi_r, ours, _own_port(config, port))
    return (
        Notify(NotifyType.NAT_DETECTION_SOURCE_IP, source),
        Notify(NotifyType.NAT_DETECTION_DESTINATION_IP, _digest(spi_i, spi_r, theirs, port)),
    )


def can_encapsulate(payloads: Sequence[Payload]) -> bool:
    """Return whether a peer that sent ``payloads`` in IKE_SA_INIT can put ESP into UDP."""
    return all(
        _hashes(payloads, kind)
        for kind in (NotifyType.NAT_DETECTION_SOURCE_IP, NotifyType.NAT_DETECTION_DESTINATION_IP)
    )


def is_wanted(
    config: Config,
    payloads: Sequence[Payload],
    spi_i: bytes,
    spi_r: bytes,
    ours: IPv6Address,
    theirs: IPv6Address,
    port: int,
) -> bool:
    """Return whether ESP goes in UDP, after ``payloads`` of IKE_SA_INIT came from ``port`` of ``theirs``.

    SPIs are those of that message.
    """
    if config.udp_encapsulation is UdpEncapsulation.OFF or not can_encapsulate(payloads):
        return False
    here = _digest(spi_i, spi_r, ours, _own_port(config, port))
    there = _digest(spi_i, spi_r, theirs, port)
    return (
        config.udp_encapsulation is UdpEncapsulation.FORCE
        # Of its own addresses a peer may name several (section 2.23).
        or there not in _hashes(payloads, NotifyType.NAT_DETECTION_SOURCE_IP)
        or here not in _hashes(payloads, NotifyType.NAT_DETECTION_DESTINATION_IP)
    )


def _hashes(payloads: Sequence[Payload], kind: NotifyType) -> list[bytes]:
    return [item.data for item in payloads if isinstance(item, Notify) and item.notify_type == kind]
