"""Fuzzes what the console makes of telnet, RFC 2217, IPMI and Serial over LAN.

The first byte of the input chooses which, and the size of the pieces in which the rest arrives. Telnet bears
anything, and the same bytes, whole and in pieces, give the same; what is decoded of RFC 2217 is encoded to
the same bytes again; a session of IPMI bears anything before it is up.
"""

from __future__ import annotations

import random

from _harness import run
from minerva.console.ipmi import IpmiDecodeError, Session, decode_response, encode_request
from minerva.console.rfc2217 import Message, Rfc2217Error
from minerva.console.sol import Sol, SolDecodeError, SolPacket
from minerva.console.telnet import COM_PORT, Data, Subnegotiation, Telnet, TelnetEvent
from minerva.core.secret import Secret

OPTIONS = (0, 1, 3, COM_PORT)
PIECES = (1, 2, 5, 64)


def target(data: bytes) -> None:
    """Hand ``data`` to one of them."""
    if not data:
        return
    size, rest = PIECES[data[0] >> 2 & 3], data[1:]
    match data[0] & 3:
        case 0:
            _telnet(rest, size)
        case 1:
            _rfc2217(rest)
        case 2:
            _ipmi(rest)
        case _:
            _sol(rest, size)


def _telnet(data: bytes, size: int) -> None:
    whole, pieces = Telnet(ours=OPTIONS, theirs=OPTIONS), Telnet(ours=OPTIONS, theirs=OPTIONS)
    at_once = _joined(whole.receive(data))
    parts = [event for i in range(0, len(data), size) for event in pieces.receive(data[i : i + size])]
    assert at_once == _joined(parts)
    assert whole.to_send() == pieces.to_send()
    for event in at_once:
        if isinstance(event, Subnegotiation):
            _rfc2217(event.data)
    # What one end sends as data, the other has as data.
    sender, receiver = Telnet(), Telnet()
    sender.send(data)
    heard = b"".join(event.data for event in receiver.receive(sender.to_send()) if isinstance(event, Data))
    assert heard == data


def _joined(events: list[TelnetEvent]) -> list[TelnetEvent]:
    found: list[TelnetEvent] = []
    for event in events:
        if isinstance(event, Data) and found and isinstance(last := found[-1], Data):
            found[-1] = Data(last.data + event.data)
        else:
            found.append(event)
    return found


def _rfc2217(data: bytes) -> None:
    try:
        message = Message.decode(data)
    except Rfc2217Error:
        return
    assert message.encode() == data


def _ipmi(data: bytes) -> None:
    try:
        netfn, command, seq, code, rest = decode_response(data)
    except IpmiDecodeError:
        pass
    else:
        assert len(rest) == len(data) - 8
        assert 0 <= netfn < 64
        assert 0 <= seq < 64
        encode_request(netfn, seq, command, bytes([code]) + rest)
    session = Session("root", Secret(b"secret"), random=random.Random(0).randbytes)
    session.start(0.0)
    session.receive(data, 0.1)
    session.receive(b"\x06\x00\xff\x07" + data, 0.2)
    session.datagrams_to_send()


def _sol(data: bytes, size: int) -> None:
    sol = Sol(size)
    sol.send(b"typed", 0.0)
    sol.send_break(0.0)
    now = 0.0
    for start in range(0, len(data), 8):
        piece = data[start : start + 8]
        try:
            packet = SolPacket.decode(piece)
        except SolDecodeError:
            continue
        now += 0.3
        said = sol.receive(piece, now)
        assert len(said) <= len(packet.data)
        sol.on_timer(now)
        for payload in sol.payloads_to_send():
            assert SolPacket.decode(payload).encode() == payload
    assert sol.waiting >= 0


SEEDS = [
    b"\x00login: \xff\xfb\x01\xff\xfb\x03\xff\xfd\x18\r\x00x\xff\xff",
    b"\x04\xff\xfb\x2c\xff\xfa\x2c\x01\x00\x01\xc2\x00\xff\xf0\xff\xf3",
    b"\x01\x65\x00\x01\xc2\x00",
    b"\x01\x00Minerva",
    b"\x02\x81\x1c\x63\x20\x04\x38\x00\x4c\x58",
    b"\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x81\x1c\x63\x20\x00\x38\x00\x01\x96\x04\x02\x00\x00\x00\x00\x0b",
    b"\x03\x01\x00\x00\x00abcd\x00\x01\x05\x00\x00\x00\x00\x00",
]

if __name__ == "__main__":
    run(target, SEEDS)
