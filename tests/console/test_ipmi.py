"""Sessions of IPMI and Serial over LAN, against a BMC of this file and a network that loses packets."""

from __future__ import annotations

import hmac
import random
import struct
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from minerva.console.ipmi import (
    Answer,
    Ended,
    IpmiDecodeError,
    IpmiError,
    IpmiEvent,
    LoggedIn,
    Privilege,
    Session,
    SolPayload,
    decode_response,
    encode_request,
)
from minerva.console.sol import (
    BREAK_DETECTED,
    DEACTIVATED,
    GENERATE_BREAK,
    NACK,
    OVERRUN,
    Sol,
    SolDecodeError,
    SolPacket,
)
from minerva.core.secret import Secret

HASHES = {1: ("sha1", 12), 3: ("sha256", 16)}


def checksum(data: bytes) -> bytes:
    """Return the checksum of a message of IPMI."""
    return bytes([-sum(data) & 0xFF])


class Bmc:
    """A BMC, written apart from the client: one user, one session."""

    def __init__(self, *, suites: tuple[int, ...] = (17, 3), kg: bytes | None = None) -> None:
        self.authentication = tuple({3: 1, 17: 3}[suite] for suite in suites)
        self.password = b"secret"
        self.kg = kg
        self.privilege = 4
        self.version_2 = True
        self.id = 0x01020304
        self.sequence = 0
        self.commands: list[tuple[int, int, bytes]] = []
        self.answers: dict[tuple[int, int], tuple[int, bytes]] = {}
        self.sol: list[bytes] = []
        self.closed = False
        self.k1 = b""

    def receive(self, packet: bytes) -> list[bytes]:
        """Return the answers to a packet."""
        assert packet[:4] == b"\x06\x00\xff\x07"
        if packet[4] == 0:
            supports = 0x80 if self.version_2 else 0
            data = bytes([1, supports | 0x16, 0x04, 0x02 if self.version_2 else 1, 0, 0, 0, 0])
            message = self.message(packet[14:], data)
            return [packet[:13] + bytes([len(message)]) + message]
        kind = packet[5] & 0x3F
        (size,) = struct.unpack_from("<H", packet, 14)
        payload = packet[16 : 16 + size]
        if kind == 0x10:
            return [self.open(payload)]
        if kind == 0x12:
            return [self.rakp_1(payload)]
        if kind == 0x14:
            return [self.rakp_3(payload)]
        plain = self.unprotect(packet, payload)
        if kind == 1:
            self.sol.append(plain)
            return []
        return [self.protect(0, self.command(plain))]

    def message(self, request: bytes, data: bytes, code: int = 0) -> bytes:
        head = bytes([0x81, (request[1] >> 2 | 1) << 2])
        body = bytes([0x20, request[4], request[5], code]) + data
        return head + checksum(head) + body + checksum(body)

    def command(self, message: bytes) -> bytes:
        netfn, command, data = message[1] >> 2, message[5], message[6:-1]
        assert checksum(message[3:-1]) == message[-1:]
        self.commands.append((netfn, command, data))
        if (netfn, command) == (6, 0x3B):
            return self.message(message, data, 0 if data[0] <= self.privilege else 0x81)
        if (netfn, command) == (6, 0x3C):
            self.closed = True
        code, answer = self.answers.get((netfn, command), (0, b""))
        return self.message(message, answer, code)

    def plain(self, kind: int, payload: bytes) -> bytes:
        return b"\x06\x00\xff\x07\x06" + bytes([kind]) + bytes(8) + struct.pack("<H", len(payload)) + payload

    def open(self, payload: bytes) -> bytes:
        self.console_id = payload[4:8]
        self.algorithm = payload[12]
        if self.algorithm not in self.authentication:
            return self.plain(0x11, bytes([payload[0], 0x04]))
        self.hash, self.size = HASHES[self.algorithm]
        ids = self.console_id + struct.pack("<I", self.id)
        return self.plain(0x11, bytes([payload[0], 0, 4, 0]) + ids + payload[8:32])

    def digest(self, key: bytes, data: bytes) -> bytes:
        return hmac.new(key, data, self.hash).digest()

    def rakp_1(self, payload: bytes) -> bytes:
        self.rm, self.who = payload[8:24], payload[24:25] + payload[27:]
        if payload[28:] != b"root":
            return self.plain(0x13, bytes([payload[0], 0x0D]))
        self.rc, self.guid = b"r" * 16, b"g" * 16
        code = self.digest(
            self.password,
            self.console_id + struct.pack("<I", self.id) + self.rm + self.rc + self.guid + self.who,
        )
        head = bytes([payload[0], 0, 0, 0]) + self.console_id
        return self.plain(0x13, head + self.rc + self.guid + code)

    def rakp_3(self, payload: bytes) -> bytes:
        assert payload[8:] == self.digest(self.password, self.rc + self.console_id + self.who)
        sik = self.digest(self.kg or self.password, self.rm + self.rc + self.who)
        self.k1 = self.digest(sik, b"\1" * 20)
        self.aes = self.digest(sik, b"\2" * 20)[:16]
        code = self.digest(sik, self.rm + struct.pack("<I", self.id) + self.guid)[: self.size]
        return self.plain(0x15, bytes([payload[0], 0, 0, 0]) + self.console_id + code)

    def unprotect(self, packet: bytes, payload: bytes) -> bytes:
        assert packet[5] & 0xC0 == 0xC0
        assert packet[6:10] == struct.pack("<I", self.id)
        assert self.digest(self.k1, packet[4 : -self.size])[: self.size] == packet[-self.size :]
        assert (len(packet) - 4 - self.size) % 4 == 0
        decryptor = Cipher(algorithms.AES(self.aes), modes.CBC(payload[:16])).decryptor()
        plain = decryptor.update(payload[16:])
        return plain[: -plain[-1] - 1]

    def protect(self, kind: int, plain: bytes, sequence: int | None = None) -> bytes:
        self.sequence += 1
        pad = -(len(plain) + 1) % 16
        encryptor = Cipher(algorithms.AES(self.aes), modes.CBC(b"i" * 16)).encryptor()
        body = b"i" * 16 + encryptor.update(plain + bytes(range(1, pad + 1)) + bytes([pad]))
        head = bytes([6, 0xC0 | kind]) + self.console_id
        packet = head + struct.pack("<IH", sequence or self.sequence, len(body)) + body
        pad = -(len(packet) + 2) % 4
        packet += b"\xff" * pad + bytes([pad, 7])
        return b"\x06\x00\xff\x07" + packet + self.digest(self.k1, packet)[: self.size]


def new_session(user: str = "root", password: bytes = b"secret", kg: bytes | None = None) -> Session:
    """Return a session that has not begun."""
    return Session(
        user,
        Secret(password),
        kg=None if kg is None else Secret(kg),
        random=random.Random(1).randbytes,
    )


def run(
    session: Session, bmc: Bmc, now: float = 0.0, lost: Callable[[], bool] = lambda: False
) -> tuple[list[IpmiEvent], float]:
    """Let both talk until nothing more happens; return what did, and the time."""
    events: list[IpmiEvent] = []
    while True:
        out = session.datagrams_to_send()
        for datagram in out:
            if not lost():
                for answer in bmc.receive(datagram):
                    if not lost():
                        session.receive(answer, now)
        while (event := session.next_event()) is not None:
            events.append(event)
        if out:
            continue
        timer = session.next_timer()
        if timer is None:
            return events, now
        now = max(now, timer)
        session.on_timer(now)


def logged_in(bmc: Bmc, **details: bytes | None) -> Session:
    """Return a session that is up."""
    session = new_session(**details)  # type: ignore[arg-type]
    session.start(0.0)
    events, _ = run(session, bmc)
    assert [type(event) for event in events] == [LoggedIn]
    return session


@pytest.mark.parametrize("suites", [(17, 3), (17,), (3,)])
def test_a_session_with_commands(suites: tuple[int, ...]) -> None:
    bmc = Bmc(suites=suites)
    bmc.answers[0, 1] = (0, b"\x21\x00\x40")
    bmc.answers[0, 2] = (0xD5, b"")
    session = new_session()
    session.start(0.0)
    events, _ = run(session, bmc)
    assert events == [LoggedIn(suites[0])]
    assert session.session_id == bmc.id
    one, two = session.command(0, 1, b"", 1.0), session.command(0, 2, b"\x01", 1.0)
    events, _ = run(session, bmc, 1.0)
    assert events == [Answer(one, 0, b"\x21\x00\x40"), Answer(two, 0xD5, b"")]
    assert bmc.commands[1:] == [(0, 1, b""), (0, 2, b"\x01")]
    session.close()
    run(session, bmc)
    assert bmc.closed


def test_the_keys_and_the_password_show_nowhere() -> None:
    session = logged_in(Bmc())
    assert repr(session) == "<Session UP>"


@pytest.mark.parametrize("seed", range(20))
def test_a_network_that_loses_packets(seed: int) -> None:
    dice = random.Random(seed)
    bmc, session = Bmc(), new_session()
    session.start(0.0)
    events, now = run(session, bmc, lost=lambda: dice.random() < 0.15)
    assert events == [LoggedIn(17)]
    tokens = [session.command(0, 1, bytes([number]), now) for number in range(10)]
    events, _ = run(session, bmc, now, lambda: dice.random() < 0.15)
    assert [event.token for event in events if isinstance(event, Answer)] == tokens


@pytest.mark.parametrize(
    ("details", "change", "reason"),
    [
        ({"password": b"wrong"}, {}, "the password is wrong"),
        ({"user": "other"}, {}, "the BMC does not know the user"),
        ({"kg": b"wrong"}, {}, "K_g"),
        ({}, {"privilege": 3}, "the user may not have the privilege"),
        ({}, {"authentication": ()}, "none of the cipher suites 17 and 3"),
        ({}, {"version_2": False}, "only IPMI 1.5"),
    ],
)
def test_why_there_is_no_session(details: dict[str, bytes], change: dict[str, object], reason: str) -> None:
    bmc, session = Bmc(), new_session(**details)  # type: ignore[arg-type]
    for name, value in change.items():
        setattr(bmc, name, value)
    session.start(0.0)
    events, _ = run(session, bmc)
    (ended,) = events
    assert isinstance(ended, Ended)
    assert reason in ended.reason
    assert session.next_timer() is None


def test_a_key_of_the_bmc_s_own() -> None:
    bmc = Bmc(kg=b"key of the bmc")
    session = logged_in(bmc, kg=b"key of the bmc")
    session.command(0, 1, b"", 1.0)
    events, _ = run(session, bmc, 1.0)
    assert isinstance(events[0], Answer)


def test_nobody_is_there() -> None:
    session = new_session()
    session.start(0.0)
    events, now = run(session, Bmc(), lost=lambda: True)
    assert events == [Ended("no BMC answers there")]
    assert 10 < now < 20


def test_a_bmc_that_is_gone_later() -> None:
    bmc = Bmc()
    session = logged_in(bmc)
    session.command(0, 1, b"", 1.0)
    events, _ = run(session, bmc, 1.0, lambda: True)
    assert events == [Ended("the BMC does not answer any more")]
    session.send_sol(b"x")
    session.receive(bmc.protect(1, b"\x01\x00\x00\x00x"), 2.0)
    assert session.datagrams_to_send() == []
    assert session.next_event() is None


@pytest.mark.parametrize("details", [{"user": "x" * 17}, {"password": b"x" * 21}])
def test_what_ipmi_cannot_hold(details: dict[str, bytes]) -> None:
    with pytest.raises(IpmiError, match="at most"):
        new_session(**details)  # type: ignore[arg-type]


def test_packets_that_are_not_of_the_session_are_dropped() -> None:
    bmc = Bmc()
    session = logged_in(bmc)
    good = bmc.protect(1, b"\x01\x00\x00\x00x")
    for bad in (
        b"",
        good[:-1],
        good[:-1] + bytes([good[-1] ^ 1]),
        good[:20] + bytes([good[20] ^ 1]) + good[21:],
        bmc.plain(1, b"\x01\x00\x00\x00x"),
        bmc.plain(0x15, b"\x00\x0f" + bytes(20)),
        bmc.plain(0x3F, b""),
        b"\x06\x00\xff\x07\x00" + bytes(8) + b"\x09" + bytes(9),
    ):
        dropped = session.dropped
        session.receive(bad, 1.0)
        assert session.next_event() is None, bad
        assert session.dropped >= dropped
    session.receive(good, 1.0)
    assert session.next_event() == SolPayload(b"\x01\x00\x00\x00x")


def test_a_packet_counts_once() -> None:
    bmc = Bmc()
    session = logged_in(bmc)
    packets = [bmc.protect(1, bytes([number]), 100 + number) for number in range(50)]
    for packet in (packets[10], packets[10], packets[8], packets[49], packets[20], packets[8], packets[0]):
        session.receive(packet, 1.0)
    events = []
    while (event := session.next_event()) is not None:
        events.append(event)
    # Number 8 came late once; 20 still counts after 49, which is 29 later; 0 is too old.
    assert events == [SolPayload(bytes([number])) for number in (10, 8, 49, 20)]


def test_sequence_numbers_go_past_their_end() -> None:
    bmc = Bmc()
    session = logged_in(bmc)
    for sequence in (2**31, 2**32 - 1, 1, 2, 2**32 - 1):
        session.receive(bmc.protect(1, b"x", sequence), 1.0)
    found = 0
    while session.next_event() is not None:
        found += 1
    assert found == 4


@given(st.binary(max_size=120))
def test_a_session_that_begins_bears_anything(data: bytes) -> None:
    session = new_session()
    session.start(0.0)
    session.receive(b"\x06\x00\xff\x07" + data, 0.1)


@given(st.integers(0, 0x3F), st.binary(max_size=80), st.binary(max_size=4))
def test_a_session_that_is_up_bears_anything(kind: int, plain: bytes, tail: bytes) -> None:
    bmc = Bmc()
    session = logged_in(bmc)
    session.command(0, 1, b"", 1.0)
    session.receive(bmc.protect(kind, plain) + tail, 1.0)


def test_messages() -> None:
    assert encode_request(6, 1, 0x38, b"\x8e\x04").hex() == "2018c88104388e04b1"
    assert decode_response(bytes.fromhex("811c63200438004c58")) == (7, 0x38, 1, 0, b"\x4c")
    for wrong in (b"", b"1234567", bytes.fromhex("811c64200438004c58"), bytes.fromhex("811c63200438004c59")):
        with pytest.raises(IpmiDecodeError):
            decode_response(wrong)


def test_the_privileges_are_those_of_the_configuration() -> None:
    from minerva.console.port_config import PRIVILEGES

    assert tuple(privilege.name.lower() for privilege in Privilege) == PRIVILEGES


# -- Serial over LAN


class FarSol:
    """The BMC's side of Serial over LAN."""

    def __init__(self) -> None:
        self.typed = b""
        self.breaks = 0
        self.last = 0
        self.takes = 1000
        self.flags = 0
        self.sequence = 0
        self.sent = b""
        self.acknowledged = True

    def receive(self, payload: bytes) -> bytes | None:
        """Return the acknowledgement for a payload, if it wants one."""
        packet = SolPacket.decode(payload)
        if packet.acknowledged and packet.acknowledged == self.sequence:
            assert packet.taken == len(self.sent)
            self.acknowledged = True
        if not packet.sequence:
            return None
        taken = min(len(packet.data), self.takes)
        if packet.sequence != self.last:
            self.typed += packet.data[:taken]
            self.breaks += bool(packet.flags & GENERATE_BREAK)
        self.last = packet.sequence
        flags = self.flags | (NACK if taken < len(packet.data) else 0)
        return SolPacket(acknowledged=packet.sequence, taken=taken, flags=flags).encode()

    def say(self, data: bytes) -> bytes:
        """Return a packet with characters."""
        self.sequence = self.sequence % 15 + 1
        self.sent, self.acknowledged = data, False
        return self.again()

    def again(self) -> bytes:
        """Return the last packet again."""
        return SolPacket(self.sequence, data=self.sent).encode()


def pump(sol: Sol, far: FarSol, now: float, lost: Callable[[], bool] = lambda: False) -> tuple[bytes, float]:
    """Let both talk until nothing is on its way; return what the machine said, and the time."""
    heard = b""
    while True:
        out = sol.payloads_to_send()
        for payload in out:
            if not lost() and (answer := far.receive(payload)) is not None and not lost():
                heard += sol.receive(answer, now)
        if out:
            continue
        timer = sol.next_timer()
        if timer is None or sol.ended is not None:
            return heard, now
        now = max(now, timer)
        sol.on_timer(now)


def test_typing_over_sol() -> None:
    sol, far = Sol(20), FarSol()
    data = bytes(range(256)) * 3
    sol.send(data, 0.0)
    sol.send_break(0.0)
    sol.send(b"after", 0.0)
    assert sol.waiting == len(data) + 1 + 5
    pump(sol, far, 0.0)
    assert (far.typed, far.breaks, sol.waiting) == (data + b"after", 1, 0)


@pytest.mark.parametrize("seed", range(20))
def test_sol_on_a_network_that_loses_packets(seed: int) -> None:
    dice = random.Random(seed)
    sol, far, now = Sol(30), FarSol(), 0.0
    typed, said, heard = dice.randbytes(1000), dice.randbytes(1000), b""
    sol.send(typed, now)
    position = 0
    while position < len(said) or not far.acknowledged:
        if far.acknowledged:
            packet = far.say(said[position : position + 50])
            position += 50
        else:
            packet = far.again()
        if dice.random() < 0.8:
            heard += sol.receive(packet, now)
        more, now = pump(sol, far, now, lambda: dice.random() < 0.12)
        heard += more
    assert heard == said
    assert far.typed == typed
    assert sol.ended is None


def test_a_bmc_that_takes_only_a_part() -> None:
    sol, far = Sol(), FarSol()
    far.takes = 3
    sol.send(b"0123456789", 0.0)
    pump(sol, far, 0.0)
    assert far.typed == b"0123456789"


def test_a_machine_that_is_off_wants_no_characters_and_gets_none_later() -> None:
    sol, far = Sol(), FarSol()
    far.takes = 0
    sol.send(b"lost", 0.0)
    _, now = pump(sol, far, 0.0)
    assert (sol.dropped, sol.waiting, sol.ended) == (4, 0, None)
    assert 5 < now < 20
    far.takes = 100
    sol.send(b"typed", now)
    pump(sol, far, now)
    assert far.typed == b"typed"


def test_a_bmc_that_acknowledges_nothing() -> None:
    sol = Sol()
    sol.send(b"x", 0.0)
    pump(sol, FarSol(), 0.0, lambda: True)
    assert sol.ended == "the BMC does not acknowledge what is typed"


def test_characters_that_come_again_with_more() -> None:
    sol = Sol()
    assert sol.receive(SolPacket(1, data=b"abc").encode(), 0.0) == b"abc"
    assert sol.receive(SolPacket(1, data=b"abcde").encode(), 0.0) == b"de"
    assert sol.receive(SolPacket(1, data=b"abcde").encode(), 0.0) == b""
    assert sol.receive(SolPacket(2, data=b"f").encode(), 0.0) == b"f"
    assert [SolPacket.decode(payload).taken for payload in sol.payloads_to_send()] == [3, 5, 5, 1]


def test_what_the_bmc_says_besides() -> None:
    sol = Sol()
    sol.receive(SolPacket(flags=OVERRUN | BREAK_DETECTED).encode(), 0.0)
    assert (sol.overruns, sol.ended) == (1, None)
    sol.receive(SolPacket(flags=DEACTIVATED).encode(), 0.0)
    assert sol.ended == "the BMC has ended Serial over LAN"
    with pytest.raises(SolDecodeError):
        sol.receive(b"\x01\x00\x00", 0.0)


@given(st.binary(max_size=300))
def test_a_payload_may_be_anything(data: bytes) -> None:
    sol = Sol()
    sol.send(b"typed", 0.0)
    try:
        sol.receive(data, 0.0)
    except SolDecodeError:
        assert len(data) < 4
