"""A session of IPMI over RMCP+ with a BMC (IPMI 2.0 chapter 13), the side of the remote console; no input or
output.

Theory of operation. A session is set up in three exchanges: Open Session, which settles the algorithms, RAKP
1 and 2, by which the BMC shows that it knows the password, and RAKP 3 and 4, by which we do; then the
privilege is raised. All that comes later is encrypted (AES-128) and authenticated (HMAC); what is not, or is
old, is dropped. Of our requests one at a time is on its way, which is sent again until it is answered, as
BMCs lose what comes faster. Payloads of Serial over LAN travel beside them and have their own repetition
(``sol.Sol``).

``now`` is a monotonic time in seconds.
"""

from __future__ import annotations

import enum
import hmac
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from minerva.core.errors import DecodeError, MinervaError
from minerva.core.secret import Secret

MAX_USER: Final = 16
MAX_PASSWORD: Final = 20
MAX_PAYLOAD: Final = 1024

NETFN_CHASSIS: Final = 0x00
NETFN_APP: Final = 0x06
GET_CHANNEL_AUTHENTICATION_CAPABILITIES: Final = 0x38
SET_SESSION_PRIVILEGE_LEVEL: Final = 0x3B
CLOSE_SESSION: Final = 0x3C

_FIRST_WAIT: Final = 0.5
_LONGEST_WAIT: Final = 4.0
_TRIES: Final = 6
_WINDOW: Final = 32

_RMCP: Final = b"\x06\x00\xff\x07"
_BMC: Final = 0x20
_WE: Final = 0x81
_THIS_CHANNEL_EXTENDED: Final = 0x8E
_NAME_ONLY: Final = 0x10
_LAST_RESORT: Final = "the BMC refuses with status {:#04x}"


class IpmiError(MinervaError):
    """Something about a BMC does not work: the sentence says what."""


class IpmiDecodeError(DecodeError, IpmiError):
    """Bytes that are no packet of RMCP+ or no message of IPMI."""


class PayloadType(enum.IntEnum):
    """What a packet carries (IPMI 2.0 table 13-16)."""

    IPMI = 0x00
    SOL = 0x01
    OPEN_SESSION_REQUEST = 0x10
    OPEN_SESSION_RESPONSE = 0x11
    RAKP_1 = 0x12
    RAKP_2 = 0x13
    RAKP_3 = 0x14
    RAKP_4 = 0x15


class Privilege(enum.IntEnum):
    """What a session may do at most."""

    USER = 2
    OPERATOR = 3
    ADMINISTRATOR = 4


STATUS: Final = {
    0x01: "the BMC has no room for one more session",
    0x09: "the BMC does not know such a privilege",
    0x0A: "the user may not have that privilege",
    0x0B: "the BMC has no room for one more session of that privilege",
    0x0C: "the user's name is too long for the BMC",
    0x0D: "the BMC does not know the user, or the user may not have that privilege",
    0x0F: "the password is wrong",
    0x12: "the BMC does not like a parameter",
}
"""Statuses of RMCP+ and RAKP (IPMI 2.0 table 13-15)."""

_OTHER_SUITE: Final = {0x03, 0x04, 0x05, 0x10, 0x11}
"""Statuses by which a BMC refuses a cipher suite."""

COMPLETION: Final = {
    0xC0: "the BMC is busy",
    0xC1: "the BMC does not know the command",
    0xC3: "the BMC timed out",
    0xC4: "the BMC has no room",
    0xC9: "a parameter is out of range",
    0xCB: "what was asked for is not there",
    0xCC: "a field of the request is invalid",
    0xD3: "the destination is not available",
    0xD4: "the user's privilege is not enough",
    0xD5: "it cannot be done in the present state",
    0xFF: "the BMC does not say why",
}
"""Completion codes (IPMI 2.0 table 5-2)."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A cipher suite (IPMI 2.0 table 22-20): all of ours encrypt with AES-CBC-128."""

    number: int
    hash: str
    authentication: int
    integrity: int
    icv_size: int
    """Bytes of the HMACs in RAKP 4 and after each packet."""


SUITES: Final = (Suite(17, "sha256", 3, 4, 16), Suite(3, "sha1", 1, 1, 12))
"""The best first."""


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The session is there."""

    suite: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command came to: ``code`` 0 is success."""

    token: int
    code: int
    data: bytes


@dataclass(frozen=True, slots=True)
class SolPayload:
    """A payload of Serial over LAN has come."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The session is over, or did not come to be."""

    reason: str


IpmiEvent: TypeAlias = LoggedIn | Answer | SolPayload | Ended


class _State(enum.Enum):
    NEW = enum.auto()
    ASKING = enum.auto()
    """Whether anybody is there, and speaks IPMI 2.0."""
    OPENING = enum.auto()
    RAKP_1 = enum.auto()
    RAKP_3 = enum.auto()
    RAISING = enum.auto()
    UP = enum.auto()
    ENDED = enum.auto()


@dataclass(frozen=True, slots=True)
class _Request:
    token: int
    netfn: int
    command: int
    data: bytes


class Session:
    """One session (see the module's theory of operation).

    ``random`` returns so many random bytes. ``kg`` is the BMC's own key, if it has one.
    """

    def __init__(
        self,
        user: str,
        password: Secret,
        *,
        privilege: Privilege = Privilege.ADMINISTRATOR,
        kg: Secret | None = None,
        random: Callable[[int], bytes],
    ) -> None:
        self._user = user.encode()
        if len(self._user) > MAX_USER:
            raise IpmiError(f"a user of IPMI has at most {MAX_USER} bytes in its name")
        if len(password) > MAX_PASSWORD:
            raise IpmiError(f"a password of IPMI has at most {MAX_PASSWORD} bytes")
        self._password = password
        self._kg = kg or password
        self._privilege = privilege
        self._random = random
        self._state = _State.NEW
        self._suites = list(SUITES)
        self._suite = SUITES[0]
        self._id = 0
        self._bmc_id = 0
        self._our_random = b""
        self._bmc_random = b""
        self._bmc_guid = b""
        self._sik = b""
        self._k1 = b""
        self._aes = b""
        self._tag = 0
        self._sequence = 0
        self._newest = 0
        self._seen = 0
        self._rq_seq = 0
        self._tokens = 0
        self._waiting: deque[_Request] = deque()
        self._current: _Request | None = None
        self._build: Callable[[], bytes] | None = None
        self._tries = 0
        self._timer: float | None = None
        self._out: list[bytes] = []
        self._events: deque[IpmiEvent] = deque()
        self.dropped = 0
        """Datagrams that could not be used."""

    def __repr__(self) -> str:
        return f"<Session {self._state.name}>"

    @property
    def session_id(self) -> int:
        """The BMC's number of the session."""
        return self._bmc_id

    # -- what the driver calls

    def start(self, now: float) -> None:
        """Begin to set up the session."""
        if self._state is _State.NEW:
            self._state = _State.ASKING
            data = bytes([_THIS_CHANNEL_EXTENDED, self._privilege])
            message = encode_request(NETFN_APP, 0, GET_CHANNEL_AUTHENTICATION_CAPABILITIES, data)
            self._ask(lambda: _RMCP + b"\0" + bytes(8) + bytes([len(message)]) + message, now)

    def command(self, netfn: int, command: int, data: bytes, now: float) -> int:
        """Send a command when its turn comes; return the token of its answer."""
        self._tokens += 1
        self._waiting.append(_Request(self._tokens, netfn, command, data))
        self._next_command(now)
        return self._tokens

    def send_sol(self, payload: bytes) -> None:
        """Send a payload of Serial over LAN, once."""
        if self._state is _State.UP:
            self._out.append(self._protect(PayloadType.SOL, payload))

    def close(self) -> None:
        """End the session; the BMC is told, once, if it is up."""
        if self._state is _State.UP:
            message = encode_request(
                NETFN_APP, self._next_seq(), CLOSE_SESSION, struct.pack("<I", self._bmc_id)
            )
            self._out.append(self._protect(PayloadType.IPMI, message))
        self._end("it was closed")

    def datagrams_to_send(self) -> list[bytes]:
        """Return, and forget, what is to be sent."""
        out, self._out = self._out, []
        return out

    def next_event(self) -> IpmiEvent | None:
        """Return what has happened next."""
        return self._events.popleft() if self._events else None

    def next_timer(self) -> float | None:
        """Return when :meth:`on_timer` wants to be called."""
        return self._timer

    def on_timer(self, now: float) -> None:
        """Send the present request again, or give up."""
        if self._timer is None or now < self._timer or self._build is None:
            return
        if self._tries >= _TRIES:
            known = self._state is not _State.ASKING
            self._end("the BMC does not answer any more" if known else "no BMC answers there")
            return
        self._send_current(now)

    def receive(self, datagram: bytes, now: float) -> None:
        """Take a datagram. Never raises for what is in it."""
        try:
            self._receive(datagram, now)
        except IpmiDecodeError:
            self.dropped += 1

    # -- requests on their way

    def _ask(self, build: Callable[[], bytes], now: float) -> None:
        self._build, self._tries = build, 0
        self._send_current(now)

    def _send_current(self, now: float) -> None:
        assert self._build is not None
        self._out.append(self._build())
        self._timer = now + min(_LONGEST_WAIT, _FIRST_WAIT * 2.0**self._tries)
        self._tries += 1

    def _answered(self) -> None:
        self._build = self._timer = None

    def _next_command(self, now: float) -> None:
        if self._state is not _State.UP or self._current is not None or not self._waiting:
            return
        request = self._current = self._waiting.popleft()
        seq = self._next_seq()
        message = encode_request(request.netfn, seq, request.command, request.data)
        self._ask(lambda: self._protect(PayloadType.IPMI, message), now)

    def _next_seq(self) -> int:
        self._rq_seq = (self._rq_seq + 1) & 0x3F
        return self._rq_seq

    def _end(self, reason: str) -> None:
        if self._state is not _State.ENDED:
            self._state = _State.ENDED
            self._answered()
            self._waiting.clear()
            self._current = None
            self._sik = self._k1 = self._aes = b""
            self._events.append(Ended(reason))

    # -- packets

    def _receive(self, datagram: bytes, now: float) -> None:
        if len(datagram) < 5 or datagram[0] != 6 or datagram[3] != 7:
            raise IpmiDecodeError("not a packet of RMCP with IPMI")
        if datagram[4] == 0:
            if self._state is _State.ASKING:
                self._take_capabilities(datagram[5:], now)
            return
        kind, protected, payload = self._unpack(datagram)
        if kind in (PayloadType.IPMI, PayloadType.SOL):
            if not protected or self._state not in (_State.RAISING, _State.UP):
                raise IpmiDecodeError("a message outside of the session")
            if kind is PayloadType.SOL:
                self._events.append(SolPayload(payload))
            else:
                self._take_message(payload, now)
        else:
            self._take_setup(kind, payload, now)

    def _unpack(self, datagram: bytes) -> tuple[PayloadType, bool, bytes]:
        """Return what a packet of RMCP+ carries, and whether it was protected by the session."""
        if datagram[4] != 6 or len(datagram) < 16:
            raise IpmiDecodeError("not a packet of RMCP+")
        flags, session, sequence, size = struct.unpack_from("<BIIH", datagram, 5)
        try:
            kind = PayloadType(flags & 0x3F)
        except ValueError:
            raise IpmiDecodeError(f"RMCP+ knows no payload {flags & 0x3F:#x}") from None
        payload = datagram[16 : 16 + size]
        if len(payload) != size or size > MAX_PAYLOAD:
            raise IpmiDecodeError("a packet of RMCP+ is cut off, or too large")
        if not flags & 0x40:
            if flags & 0x80:
                raise IpmiDecodeError("a packet that is encrypted but not authenticated")
            return kind, False, payload
        if not self._k1 or session != self._id:
            raise IpmiDecodeError("a packet of another session")
        end = len(datagram) - self._suite.icv_size
        if end < 18 + size or not hmac.compare_digest(self._icv(datagram[4:end]), datagram[end:]):
            raise IpmiDecodeError("a packet that is not authentic")
        if not flags & 0x80:
            raise IpmiDecodeError("a packet that is not encrypted")
        payload = self._decrypt(payload)
        self._check_new(sequence)
        return kind, True, payload

    def _protect(self, kind: PayloadType, payload: bytes) -> bytes:
        """Return a packet of the session."""
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        body = self._encrypt(payload)
        packet = struct.pack("<BBIIH", 6, 0xC0 | kind, self._bmc_id, self._sequence, len(body)) + body
        pad = -(len(packet) + 2) % 4
        packet += b"\xff" * pad + bytes([pad, 7])
        return _RMCP + packet + self._icv(packet)

    def _icv(self, data: bytes) -> bytes:
        return hmac.digest(self._k1, data, self._suite.hash)[: self._suite.icv_size]

    def _encrypt(self, payload: bytes) -> bytes:
        pad = -(len(payload) + 1) % 16
        plain = payload + bytes(range(1, pad + 1)) + bytes([pad])
        initial = self._random(16)
        encryptor = Cipher(algorithms.AES(self._aes), modes.CBC(initial)).encryptor()
        return initial + encryptor.update(plain) + encryptor.finalize()

    def _decrypt(self, body: bytes) -> bytes:
        if len(body) < 32 or len(body) % 16:
            raise IpmiDecodeError("an encrypted payload of a wrong size")
        decryptor = Cipher(algorithms.AES(self._aes), modes.CBC(body[:16])).decryptor()
        plain = decryptor.update(body[16:]) + decryptor.finalize()
        pad = plain[-1]
        if pad > 15:
            raise IpmiDecodeError("an encrypted payload with a wrong padding")
        return plain[: len(plain) - 1 - pad]

    def _check_new(self, sequence: int) -> None:
        """Drop what has come already, or is so old that we cannot know."""
        ahead = sequence - self._newest
        # They go past their end, and there is no 0.
        if ahead < -0x7FFFFFFF:
            ahead += 0xFFFFFFFF
        elif ahead > 0x7FFFFFFF and self._newest:
            ahead -= 0xFFFFFFFF
        if ahead > 0:
            self._seen = ((self._seen << ahead) | 1) & ((1 << _WINDOW) - 1) if ahead < _WINDOW else 1
            self._newest = sequence
        elif -ahead >= _WINDOW or self._seen >> -ahead & 1:
            raise IpmiDecodeError("a packet that has come before")
        else:
            self._seen |= 1 << -ahead

    def _plain(self, kind: PayloadType, payload: bytes) -> bytes:
        return _RMCP + struct.pack("<BBIIH", 6, kind, 0, 0, len(payload)) + payload

    # -- setting up

    def _take_capabilities(self, rest: bytes, now: float) -> None:
        if len(rest) < 9 or len(rest) < 9 + rest[8]:
            raise IpmiDecodeError("a packet of IPMI 1.5 is cut off")
        _, command, _, code, data = decode_response(rest[9 : 9 + rest[8]])
        if command != GET_CHANNEL_AUTHENTICATION_CAPABILITIES:
            raise IpmiDecodeError("an answer to nothing")
        if code == 0 and len(data) >= 4 and not (data[1] & 0x80 and data[3] & 0x02):
            self._end("the BMC speaks only IPMI 1.5, which has no protection and no console")
            return
        self._open(now)

    def _open(self, now: float) -> None:
        self._state = _State.OPENING
        self._suite = self._suites.pop(0)
        self._tag = (self._tag + 1) & 0xFF
        self._id = int.from_bytes(self._random(4)) | 1
        suite = self._suite
        algorithms_ = (
            struct.pack("<BHBB3x", 0, 0, 8, suite.authentication)
            + struct.pack("<BHBB3x", 1, 0, 8, suite.integrity)
            + struct.pack("<BHBB3x", 2, 0, 8, 1)
        )
        payload = struct.pack("<BBHI", self._tag, self._privilege, 0, self._id) + algorithms_
        self._ask(lambda: self._plain(PayloadType.OPEN_SESSION_REQUEST, payload), now)

    def _take_setup(self, kind: PayloadType, payload: bytes, now: float) -> None:
        expected = {
            _State.OPENING: PayloadType.OPEN_SESSION_RESPONSE,
            _State.RAKP_1: PayloadType.RAKP_2,
            _State.RAKP_3: PayloadType.RAKP_4,
        }.get(self._state)
        if kind is not expected or len(payload) < 2 or payload[0] != self._tag:
            raise IpmiDecodeError("an answer to nothing")
        status = payload[1]
        if self._state is _State.OPENING and status in _OTHER_SUITE and self._suites:
            self._open(now)
            return
        if self._state is _State.OPENING and status in _OTHER_SUITE:
            numbers = " and ".join(str(suite.number) for suite in SUITES)
            self._end(f"the BMC knows none of the cipher suites {numbers}")
            return
        if status:
            self._end(STATUS.get(status, _LAST_RESORT.format(status)))
            return
        if len(payload) < 8 or struct.unpack_from("<I", payload, 4)[0] != self._id:
            raise IpmiDecodeError("an answer for another session")
        match self._state:
            case _State.OPENING:
                self._take_open(payload, now)
            case _State.RAKP_1:
                self._take_rakp_2(payload, now)
            case _:
                self._take_rakp_4(payload, now)

    def _take_open(self, payload: bytes, now: float) -> None:
        if len(payload) < 36:
            raise IpmiDecodeError("an Open Session Response is cut off")
        suite = self._suite
        if (payload[16], payload[24], payload[32]) != (suite.authentication, suite.integrity, 1):
            self._end("the BMC chooses other algorithms than those that it was asked for")
            return
        (self._bmc_id,) = struct.unpack_from("<I", payload, 8)
        self._our_random = self._random(16)
        self._state = _State.RAKP_1
        self._tag = (self._tag + 1) & 0xFF
        message = (
            struct.pack("<B3xI", self._tag, self._bmc_id)
            + self._our_random
            + struct.pack("<BHB", self._role, 0, len(self._user))
            + self._user
        )
        self._ask(lambda: self._plain(PayloadType.RAKP_1, message), now)

    @property
    def _role(self) -> int:
        return self._privilege | _NAME_ONLY

    def _hmac(self, key: Secret, data: bytes) -> bytes:
        return hmac.digest(key.reveal().ljust(MAX_PASSWORD, b"\0"), data, self._suite.hash)

    def _take_rakp_2(self, payload: bytes, now: float) -> None:
        if len(payload) < 40:
            raise IpmiDecodeError("RAKP message 2 is cut off")
        self._bmc_random, self._bmc_guid = payload[8:24], payload[24:40]
        who = bytes([self._role, len(self._user)]) + self._user
        both = struct.pack("<II", self._id, self._bmc_id)
        expected = self._hmac(
            self._password, both + self._our_random + self._bmc_random + self._bmc_guid + who
        )
        if not hmac.compare_digest(expected, payload[40:]):
            self._end("the password is wrong")
            return
        self._sik = self._hmac(self._kg, self._our_random + self._bmc_random + who)
        self._k1 = hmac.digest(self._sik, b"\x01" * 20, self._suite.hash)
        self._aes = hmac.digest(self._sik, b"\x02" * 20, self._suite.hash)[:16]
        self._state = _State.RAKP_3
        self._tag = (self._tag + 1) & 0xFF
        code = self._hmac(self._password, self._bmc_random + struct.pack("<I", self._id) + who)
        message = struct.pack("<BBHI", self._tag, 0, 0, self._bmc_id) + code
        self._ask(lambda: self._plain(PayloadType.RAKP_3, message), now)

    def _take_rakp_4(self, payload: bytes, now: float) -> None:
        data = self._our_random + struct.pack("<I", self._bmc_id) + self._bmc_guid
        expected = hmac.digest(self._sik, data, self._suite.hash)[: self._suite.icv_size]
        if not hmac.compare_digest(expected, payload[8:]):
            self._end("the BMC does not know its key K_g, or ours is wrong")
            return
        self._state = _State.RAISING
        message = encode_request(
            NETFN_APP, self._next_seq(), SET_SESSION_PRIVILEGE_LEVEL, bytes([self._privilege])
        )
        self._ask(lambda: self._protect(PayloadType.IPMI, message), now)

    def _take_message(self, payload: bytes, now: float) -> None:
        netfn, command, seq, code, data = decode_response(payload)
        if seq != self._rq_seq or self._build is None:
            raise IpmiDecodeError("an answer to nothing")
        if self._state is _State.RAISING:
            if command != SET_SESSION_PRIVILEGE_LEVEL:
                raise IpmiDecodeError("an answer to nothing")
            if code:
                self._end("the user may not have the privilege")
                return
            self._answered()
            self._state = _State.UP
            self._events.append(LoggedIn(self._suite.number))
        else:
            request = self._current
            if request is None or (netfn, command) != (request.netfn + 1, request.command):
                raise IpmiDecodeError("an answer to nothing")
            self._answered()
            self._current = None
            self._events.append(Answer(request.token, code, data))
        self._next_command(now)


def encode_request(netfn: int, seq: int, command: int, data: bytes) -> bytes:
    """Return a message of IPMI to the BMC (IPMI 2.0 figure 13-4)."""
    head = bytes([_BMC, netfn << 2])
    body = bytes([_WE, seq << 2, command]) + data
    return head + _checksum(head) + body + _checksum(body)


def decode_response(message: bytes) -> tuple[int, int, int, int, bytes]:
    """Return network function, command, sequence, completion code and data of an answer.

    Raises IpmiDecodeError.
    """
    if len(message) < 8:
        raise IpmiDecodeError("a message of IPMI is cut off")
    if _checksum(message[:2]) != message[2:3] or _checksum(message[3:-1]) != message[-1:]:
        raise IpmiDecodeError("a message of IPMI has a wrong checksum")
    return message[1] >> 2, message[5], message[4] >> 2, message[6], message[7:-1]


def _checksum(data: bytes) -> bytes:
    return bytes([-sum(data) & 0xFF])
