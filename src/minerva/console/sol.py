"""Serial over LAN inside a session of IPMI (IPMI 2.0 chapter 15), the remote console's side; no input or
output.

Each side has one packet with characters on its way at a time, numbered 1 to 15, which it sends again until
it is acknowledged; an acknowledgement says how many characters were taken. Our packets and our
acknowledgements travel apart, as not every BMC takes both in one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from minerva.core.errors import DecodeError

MAX_CHARACTERS: Final = 255

NACK: Final = 0x40
# What we say.
GENERATE_BREAK: Final = 0x10
# What the BMC says.
TRANSFER_UNAVAILABLE: Final = 0x20
DEACTIVATED: Final = 0x10
OVERRUN: Final = 0x08
BREAK_DETECTED: Final = 0x04

_WAIT: Final = 1.0
_TRIES: Final = 8
_REFUSED_WAIT: Final = 0.25
_REFUSALS: Final = 40
"""So often the BMC may refuse characters until they are given up: the machine is off."""


class SolDecodeError(DecodeError):
    """Bytes that are no payload of Serial over LAN."""


@dataclass(frozen=True, slots=True)
class SolPacket:
    """One payload (IPMI 2.0 table 15-2): sequence, acknowledged sequence, how many characters were taken,
    and flags; then the characters."""

    sequence: int = 0
    """0 if it has no characters: then it is not acknowledged."""
    acknowledged: int = 0
    taken: int = 0
    flags: int = 0
    data: bytes = b""

    def encode(self) -> bytes:
        """Return the bytes of the payload."""
        return bytes([self.sequence, self.acknowledged, self.taken, self.flags]) + self.data

    @classmethod
    def decode(cls, payload: bytes) -> SolPacket:
        """Return the packet in a payload. Raises SolDecodeError."""
        if len(payload) < 4:
            raise SolDecodeError("a packet of Serial over LAN is cut off")
        return cls(payload[0] & 0x0F, payload[1] & 0x0F, payload[2], payload[3], payload[4:])


class Sol:
    """The characters of one console. ``size`` is how many a packet may have to the BMC."""

    def __init__(self, size: int = MAX_CHARACTERS) -> None:
        self._size = max(1, min(size, MAX_CHARACTERS))
        self._pending: deque[bytes | None] = deque()  # None: a break
        self._pending_size = 0
        self._current: SolPacket | None = None
        self._sequence = 0
        self._tries = 0
        self._refusals = 0
        self._timer: float | None = None
        self._hold = False
        self._last = 0
        self._last_size = 0
        self._out: list[bytes] = []
        self.ended: str | None = None
        """Why nothing more comes."""
        self.dropped = 0
        """Characters that the BMC did not want."""
        self.overruns = 0
        """How often the BMC says that it lost characters of the machine."""

    @property
    def waiting(self) -> int:
        """How many characters and breaks have not been taken by the BMC yet."""
        current = self._current
        return self._pending_size + (max(1, len(current.data)) if current is not None else 0)

    def send(self, data: bytes, now: float) -> None:
        """Send characters."""
        for start in range(0, len(data), self._size):
            self._pending.append(data[start : start + self._size])
        self._pending_size += len(data)
        self._next(now)

    def send_break(self, now: float) -> None:
        """Send a break after all characters so far."""
        self._pending.append(None)
        self._pending_size += 1
        self._next(now)

    def receive(self, payload: bytes, now: float) -> bytes:
        """Take a payload; return the characters that the machine said. Raises SolDecodeError."""
        packet = SolPacket.decode(payload)
        data = b""
        if packet.sequence:
            # Sent again, there may be characters more than the first time.
            again = packet.sequence == self._last
            data = packet.data[self._last_size :] if again else packet.data
            self._last_size = max(self._last_size, len(packet.data)) if again else len(packet.data)
            self._last = packet.sequence
            taken = min(len(packet.data), MAX_CHARACTERS)
            self._out.append(SolPacket(acknowledged=packet.sequence, taken=taken).encode())
        if packet.flags & OVERRUN:
            self.overruns += 1
        if packet.flags & DEACTIVATED:
            self.ended = self.ended or "the BMC has ended Serial over LAN"
        if self._current is not None and packet.acknowledged == self._current.sequence:
            self._take_acknowledgement(self._current, packet, now)
        return data

    def payloads_to_send(self) -> list[bytes]:
        """Return, and forget, what is to be sent."""
        out, self._out = self._out, []
        return out

    def next_timer(self) -> float | None:
        """Return when :meth:`on_timer` wants to be called."""
        return self._timer

    def on_timer(self, now: float) -> None:
        """Send again what was not acknowledged."""
        if self._timer is None or now < self._timer:
            return
        self._timer = None
        if self._hold:
            self._hold = False
            self._next(now)
        elif self._current is not None:
            if self._tries >= _TRIES:
                self.ended = self.ended or "the BMC does not acknowledge what is typed"
                return
            self._transmit(self._current, now)

    # -- inside

    def _next(self, now: float) -> None:
        if self._current is not None or self._hold or not self._pending or self.ended is not None:
            return
        item = self._pending.popleft()
        self._pending_size -= 1 if item is None else len(item)
        self._sequence = self._sequence % 15 + 1
        flags, data = (GENERATE_BREAK, b"") if item is None else (0, item)
        self._current = SolPacket(self._sequence, flags=flags, data=data)
        self._tries = 0
        self._transmit(self._current, now)

    def _transmit(self, packet: SolPacket, now: float) -> None:
        self._tries += 1
        self._timer = now + _WAIT
        self._out.append(packet.encode())

    def _take_acknowledgement(self, current: SolPacket, packet: SolPacket, now: float) -> None:
        self._current = self._timer = None
        rest = current.data[packet.taken :]
        if rest and not packet.taken:
            self._refusals += 1
            if self._refusals > _REFUSALS or packet.flags & DEACTIVATED:
                self.dropped += len(rest)
                rest = b""
            else:
                self._hold, self._timer = True, now + _REFUSED_WAIT
        else:
            self._refusals = 0
        if rest:
            # With a number of its own: it is another packet.
            self._pending.appendleft(rest)
            self._pending_size += len(rest)
        self._next(now)
