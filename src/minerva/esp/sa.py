"""Security associations: one sends, one receives, and the set of those of a channel.

There is deliberately no way to set a sequence number, to copy an outbound SA or to make one from saved
state. AES-GCM under one key must never see a nonce twice: with two packets of the same nonce anybody can
compute the key of the integrity check and forge packets. A process that restarts may receive on with the
old keys, but sends only under new ones.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from minerva.core.secret import Secret
from minerva.esp.errors import EspError, SequenceExhausted
from minerva.esp.packet import (
    IPV6_HEADER_SIZE,
    MAX_SPI,
    MIN_PACKET_SIZE,
    MIN_SPI,
    NEXT_HEADER_IPV6,
    NEXT_HEADER_NONE,
    PADDINGS,
    REKEY_BYTES,
    TRAILERS,
)
from minerva.esp.replay import DEFAULT_WINDOW, ReplayWindow

KEY_SIZE: Final = 32
"""AES-256, the only key size that RFC 8994 section 6.8.3.1.1 allows, in bytes."""

SALT_SIZE: Final = 4
"""The implicit part of the nonce, in bytes."""

KEYMAT_SIZE: Final = KEY_SIZE + SALT_SIZE
"""Key material of one direction: the key, then the salt (RFC 4106 section 8.1), in bytes."""

LAST_SEQUENCE: Final = 2**32 - 1
"""The last sequence number of an SA without extended sequence numbers."""

REKEY_SEQUENCE: Final = 3 * 2**30
"""Where an outbound SA asks for its successor: a billion packets are left for the rekeying to fail in."""

_HEADER = struct.Struct("!II").unpack_from
_HEADER_AND_IV = struct.Struct("!IIQ").pack


class DropReason(StrEnum):
    """Why a packet was not passed on. The values are stable: they are names of counters."""

    SHORT = "short"
    """Too short to be an ESP packet."""
    UNKNOWN_SPI = "unknown_spi"
    """No inbound SA with that SPI."""
    OLD = "old"
    """The sequence number lies before the replay window."""
    REPLAYED = "replayed"
    """The sequence number was seen before, or is 0."""
    NOT_AUTHENTIC = "not_authentic"
    """The integrity check failed."""
    BAD_PADDING = "bad_padding"
    """Authentic, but the padding is not the one of RFC 4303 section 2.4."""
    DUMMY = "dummy"
    """Authentic, and meant to be discarded (RFC 4303 section 2.6)."""
    NOT_IPV6 = "not_ipv6"
    """Authentic, or ours to send, but not an IPv6 packet."""
    BAD_LENGTH = "bad_length"
    """Authentic, but the IPv6 packet inside is cut off."""
    NO_OUTBOUND_SA = "no_outbound_sa"
    """To be sent before there was an SA to send it with."""
    SEQUENCE_EXHAUSTED = "sequence_exhausted"
    """To be sent after the last sequence number of the outbound SA."""


def _dropped(drops: dict[DropReason, int], reason: DropReason) -> bytes | None:
    drops[reason] = drops.get(reason, 0) + 1
    return None


def _cipher(spi: int, key: Secret) -> tuple[AESGCM, bytes]:
    if not MIN_SPI <= spi <= MAX_SPI:
        raise EspError(f"SPI {spi} cannot be used: an SA has one from {MIN_SPI} to {MAX_SPI}")
    if len(key) != KEYMAT_SIZE:
        raise EspError(
            f"the key material of an SA is {KEYMAT_SIZE} bytes (AES-256 key and salt), not {len(key)}"
        )
    material = key.reveal()
    return AESGCM(material[:KEY_SIZE]), material[KEY_SIZE:]


class OutboundSA:
    """Seals packets under one key, from sequence number 1 to 2**32 - 1 and then no more.

    ``key`` is the AES-256 key and the four bytes of salt; it must be new, and of this SA only.
    ``rekey_due`` begins after ``rekey_sequence`` packets or ``rekey_bytes`` bytes, whichever comes first.
    ``packets`` and ``bytes`` count inner packets sealed.
    Raises :class:`EspError` for a reserved SPI or key material of the wrong size.
    """

    __slots__ = ("_encrypt", "_next", "_rekey_bytes", "_rekey_sequence", "_salt", "bytes", "packets", "spi")

    def __init__(
        self,
        spi: int,
        key: Secret,
        *,
        rekey_sequence: int = REKEY_SEQUENCE,
        rekey_bytes: int = REKEY_BYTES,
    ) -> None:
        cipher, self._salt = _cipher(spi, key)
        self._encrypt = cipher.encrypt
        self._rekey_sequence = rekey_sequence
        self._rekey_bytes = rekey_bytes
        # One indivisible step, so that not even two threads could be given the same number.
        self._next = itertools.count(1).__next__
        self.spi = spi
        self.packets = 0
        self.bytes = 0

    @property
    def rekey_due(self) -> bool:
        """Whether so much is sealed that it is time to negotiate the next SA."""
        return self.packets >= self._rekey_sequence or self.bytes >= self._rekey_bytes

    def seal(self, inner: bytes) -> bytes:
        """Return the ESP packet that carries the IPv6 packet ``inner``.

        Raises :class:`SequenceExhausted` after the last sequence number, and :class:`EspError` if ``inner``
        is not an IPv6 packet.
        """
        if not inner or inner[0] & 0xF0 != 0x60:
            raise EspError("only an IPv6 packet can be sent through an ACP channel")
        sequence = self._next()
        if sequence > LAST_SEQUENCE:
            raise SequenceExhausted(
                f"SA {self.spi:#010x} has used all its sequence numbers: it must be rekeyed"
            )
        self.packets = sequence
        self.bytes += len(inner)
        head = _HEADER_AND_IV(self.spi, sequence, sequence)
        return head + self._encrypt(self._salt + head[8:], inner + TRAILERS[len(inner) & 3], head[:8])

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an outbound SA cannot be copied or saved: its sequence numbers would be used twice")


class InboundSA:
    """Opens packets that were sealed under one key, each at most once.

    ``window`` is the size of the replay window in packets. ``packets`` and ``bytes`` count the inner packets
    passed on, ``drops`` all others by reason. Raises :class:`EspError` for a reserved SPI, key material of
    the wrong size or a window that is too small.
    """

    __slots__ = ("_decrypt", "_salt", "_window", "bytes", "drops", "packets", "spi")

    def __init__(self, spi: int, key: Secret, window: int = DEFAULT_WINDOW) -> None:
        cipher, self._salt = _cipher(spi, key)
        self._decrypt = cipher.decrypt
        self._window = ReplayWindow(window)
        self.spi = spi
        self.packets = 0
        self.bytes = 0
        self.drops: dict[DropReason, int] = {}

    def open(self, packet: bytes) -> bytes | None:
        """Return the IPv6 packet in the ESP packet, without padding; ``None`` if dropped (and counted).

        A packet is dropped in the order of RFC 4303 section 3.4: replayed (which costs nothing to find),
        not authentic, not acceptable inside. Only an authentic one moves the replay window.
        """
        if len(packet) < MIN_PACKET_SIZE:
            return _dropped(self.drops, DropReason.SHORT)
        spi, sequence = _HEADER(packet)
        if spi != self.spi:
            return _dropped(self.drops, DropReason.UNKNOWN_SPI)
        window = self._window
        # What comes in order is above the window, and needs no further look at it.
        if sequence <= window.top and not window.is_new(sequence):
            return _dropped(self.drops, DropReason.OLD if window.is_old(sequence) else DropReason.REPLAYED)
        try:
            plain = self._decrypt(self._salt + packet[8:16], packet[16:], packet[:8])
        except InvalidTag:
            return _dropped(self.drops, DropReason.NOT_AUTHENTIC)
        window.accept(sequence)
        padding, next_header = plain[-2], plain[-1]
        if padding and plain[-2 - padding : -2] != PADDINGS[padding]:
            return _dropped(self.drops, DropReason.BAD_PADDING)
        if next_header != NEXT_HEADER_IPV6:
            return _dropped(
                self.drops, DropReason.DUMMY if next_header == NEXT_HEADER_NONE else DropReason.NOT_IPV6
            )
        available = len(plain) - 2 - padding
        if available < IPV6_HEADER_SIZE:
            return _dropped(self.drops, DropReason.BAD_LENGTH)
        if plain[0] & 0xF0 != 0x60:
            return _dropped(self.drops, DropReason.NOT_IPV6)
        # More than the packet needs is traffic flow confidentiality padding (RFC 4303 section 2.7).
        size = IPV6_HEADER_SIZE + (plain[4] << 8 | plain[5])
        if size > available:
            return _dropped(self.drops, DropReason.BAD_LENGTH)
        self.packets += 1
        self.bytes += size
        return plain[:size]


@dataclass(frozen=True, slots=True)
class ChannelCounters:
    """What went through a channel since its first SA: inner packets and bytes, and drops by reason."""

    packets_in: int
    bytes_in: int
    packets_out: int
    bytes_out: int
    drops: dict[DropReason, int]


class ChannelSAs:
    """The SAs of one channel: several to receive with, one to send with.

    Rekeying is make before break: the new inbound SA is added, then the outbound one replaced, and the old
    inbound SA removed only when the peer has deleted it. The counters go on across all of that.
    """

    __slots__ = ("_drops", "_inbound", "_openers", "_outbound", "_retired_in", "_retired_out")

    def __init__(self) -> None:
        self._inbound: dict[int, InboundSA] = {}
        # By the SPI as it stands in a packet, which saves every packet a conversion.
        self._openers: dict[bytes, Callable[[bytes], bytes | None]] = {}
        self._outbound: OutboundSA | None = None
        self._drops: dict[DropReason, int] = {}
        self._retired_in = (0, 0)
        self._retired_out = (0, 0)

    @property
    def inbound_spis(self) -> tuple[int, ...]:
        """The SPIs that are received on, oldest SA first."""
        return tuple(self._inbound)

    @property
    def outbound(self) -> OutboundSA | None:
        """The SA that is sent with."""
        return self._outbound

    def add_inbound(self, sa: InboundSA) -> None:
        """Receive with ``sa`` too. Raises :class:`EspError` if there is one with its SPI."""
        if sa.spi in self._inbound:
            raise EspError(f"the channel already has an inbound SA with the SPI {sa.spi:#010x}")
        self._inbound[sa.spi] = sa
        self._openers[sa.spi.to_bytes(4)] = sa.open

    def remove_inbound(self, spi: int) -> bool:
        """Receive no more with the SA of ``spi``; return whether there was one."""
        sa = self._inbound.pop(spi, None)
        if sa is None:
            return False
        del self._openers[spi.to_bytes(4)]
        packets, octets = self._retired_in
        self._retired_in = (packets + sa.packets, octets + sa.bytes)
        for reason, count in sa.drops.items():
            self._drops[reason] = self._drops.get(reason, 0) + count
        return True

    def set_outbound(self, sa: OutboundSA | None) -> None:
        """Send with ``sa`` from now on, ``None`` for not at all; it may be one that was sent with before."""
        packets, octets = self._retired_out
        if self._outbound is not None:
            packets, octets = packets + self._outbound.packets, octets + self._outbound.bytes
        if sa is not None:  # what it has sent is counted with it again
            packets, octets = packets - sa.packets, octets - sa.bytes
        self._retired_out = (packets, octets)
        self._outbound = sa

    def seal(self, inner: bytes) -> bytes | None:
        """Return the ESP packet that carries ``inner``; ``None`` if it cannot be sent (and was counted)."""
        sa = self._outbound
        if sa is None:
            return _dropped(self._drops, DropReason.NO_OUTBOUND_SA)
        try:
            return sa.seal(inner)
        except SequenceExhausted:
            return _dropped(self._drops, DropReason.SEQUENCE_EXHAUSTED)
        except EspError:
            return _dropped(self._drops, DropReason.NOT_IPV6)

    def open(self, packet: bytes) -> bytes | None:
        """Return the IPv6 packet in an ESP packet of any of the inbound SAs; ``None`` if it was dropped."""
        opener = self._openers.get(packet[:4])
        if opener is not None:
            return opener(packet)
        short = len(packet) < MIN_PACKET_SIZE
        return _dropped(self._drops, DropReason.SHORT if short else DropReason.UNKNOWN_SPI)

    def counters(self) -> ChannelCounters:
        """Return the sums over all SAs that the channel has or had."""
        packets_in, bytes_in = self._retired_in
        drops = dict(self._drops)
        for sa in self._inbound.values():
            packets_in += sa.packets
            bytes_in += sa.bytes
            for reason, count in sa.drops.items():
                drops[reason] = drops.get(reason, 0) + count
        packets_out, bytes_out = self._retired_out
        if self._outbound is not None:
            packets_out += self._outbound.packets
            bytes_out += self._outbound.bytes
        return ChannelCounters(packets_in, bytes_in, packets_out, bytes_out, drops)
