"""The codecs of telnet and RFC 2217."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerva.console.backends.base import Flow, LineSettings
from minerva.console.rfc2217 import Message, Rfc2217Error, What, settings_messages
from minerva.console.telnet import (
    BINARY,
    BRK,
    COM_PORT,
    DO,
    DONT,
    ECHO,
    IAC,
    MAX_SUBNEGOTIATION,
    NOP,
    SB,
    SE,
    SUPPRESS_GO_AHEAD,
    WILL,
    WONT,
    Command,
    Data,
    Option,
    Subnegotiation,
    Telnet,
    TelnetEvent,
)

OPTIONS = (BINARY, ECHO, SUPPRESS_GO_AHEAD, COM_PORT)


def joined(events: list[TelnetEvent]) -> list[TelnetEvent]:
    """Return the events with adjacent data in one."""
    found: list[TelnetEvent] = []
    for event in events:
        if isinstance(event, Data) and found and isinstance(last := found[-1], Data):
            found[-1] = Data(last.data + event.data)
        else:
            found.append(event)
    return found


def talk(one: Telnet, other: Telnet) -> None:
    """Let two ends answer each other until both are silent."""
    for _ in range(20):
        to_other, to_one = one.to_send(), other.to_send()
        if not to_other and not to_one:
            return
        other.receive(to_other)
        one.receive(to_one)
    raise AssertionError("they answer each other for ever")


@pytest.mark.parametrize(
    ("wire", "events"),
    [
        (b"abc", [Data(b"abc")]),
        (b"a\xff\xffb", [Data(b"a\xffb")]),
        (b"a\r\0b\r\nc\rd", [Data(b"a\rb\r\nc\rd")]),
        (bytes([IAC, BRK]), [Command(BRK)]),
        (bytes([IAC, NOP]) + b"x", [Data(b"x")]),
        (bytes([IAC, WILL, ECHO]), [Option(ECHO, ours=False, on=True)]),
        (bytes([IAC, DO, BINARY]), [Option(BINARY, ours=True, on=True)]),
        (
            bytes([IAC, WILL, COM_PORT, IAC, SB, COM_PORT, 1, IAC, IAC, IAC, SE]),
            [Option(COM_PORT, ours=False, on=True), Subnegotiation(COM_PORT, b"\x01\xff")],
        ),
        # Of an option that is not on.
        (bytes([IAC, SB, COM_PORT, 1, IAC, SE]) + b"x", [Data(b"x")]),
        # SE was forgotten.
        (bytes([IAC, SB, COM_PORT, 1, IAC, BRK]) + b"x", [Command(BRK), Data(b"x")]),
        (bytes([IAC, SB]) + b"a" * (MAX_SUBNEGOTIATION + 1) + bytes([IAC, SE]) + b"x", [Data(b"x")]),
        (bytes([IAC, SB, IAC, SE]), []),
    ],
)
def test_what_arrives(wire: bytes, events: list[TelnetEvent]) -> None:
    assert Telnet(ours=OPTIONS, theirs=OPTIONS).receive(wire) == events
    bytewise = Telnet(ours=OPTIONS, theirs=OPTIONS)
    assert joined([event for byte in wire for event in bytewise.receive(bytes([byte]))]) == events


@pytest.mark.parametrize(
    ("data", "wire"),
    [
        (b"abc", b"abc"),
        (b"\xff", b"\xff\xff"),
        (b"a\r", b"a\r\0"),
        (b"a\r\nb", b"a\r\nb"),
        (b"\r\r\n", b"\r\0\r\n"),
    ],
)
def test_what_is_sent_before_the_line_is_binary(data: bytes, wire: bytes) -> None:
    telnet = Telnet()
    telnet.send(data)
    assert telnet.to_send() == wire
    assert telnet.to_send() == b""


def test_an_option_that_nobody_wants_is_refused() -> None:
    telnet = Telnet(theirs=(ECHO,))
    assert telnet.receive(bytes([IAC, WILL, COM_PORT, IAC, DO, ECHO])) == []
    assert telnet.to_send() == bytes([IAC, DONT, COM_PORT, IAC, WONT, ECHO])


def test_an_option_that_is_on_is_not_answered_again() -> None:
    telnet = Telnet(theirs=(ECHO,))
    telnet.receive(bytes([IAC, WILL, ECHO]))
    assert telnet.to_send() == bytes([IAC, DO, ECHO])
    assert telnet.receive(bytes([IAC, WILL, ECHO])) == []
    assert telnet.to_send() == b""
    assert telnet.receive(bytes([IAC, WONT, ECHO])) == [Option(ECHO, ours=False, on=False)]
    assert telnet.to_send() == bytes([IAC, DONT, ECHO])
    assert not telnet.is_on(ECHO, ours=False)


def test_a_refusal_of_what_we_asked_for_is_told_and_not_answered() -> None:
    telnet = Telnet()
    telnet.will(COM_PORT)
    telnet.will(COM_PORT)
    assert telnet.to_send() == bytes([IAC, WILL, COM_PORT])
    assert telnet.receive(bytes([IAC, DONT, COM_PORT])) == [Option(COM_PORT, ours=True, on=False)]
    assert telnet.to_send() == b""


def test_two_ends_agree() -> None:
    client = Telnet(ours=OPTIONS, theirs=OPTIONS)
    server = Telnet(ours=OPTIONS, theirs=OPTIONS)
    for end in (client, server):
        for option in OPTIONS:
            end.will(option)
            end.do(option)
    talk(client, server)
    for option in OPTIONS:
        for ours in (True, False):
            assert client.is_on(option, ours=ours)
            assert server.is_on(option, ours=ours)


@given(st.binary(max_size=200), st.booleans(), st.integers(1, 7))
def test_data_comes_out_as_it_went_in(data: bytes, binary: bool, size: int) -> None:
    sender = Telnet(ours=OPTIONS)
    receiver = Telnet(theirs=OPTIONS)
    if binary:
        sender.will(BINARY)
        talk(sender, receiver)
        assert sender.is_on(BINARY, ours=True)
        assert receiver.is_on(BINARY, ours=False)
    heard = b""
    for start in range(0, len(data), size):
        sender.send(data[start : start + size])
        for event in receiver.receive(sender.to_send()):
            assert isinstance(event, Data)
            heard += event.data
    assert heard == data


@given(st.binary(max_size=300), st.integers(1, 9))
def test_anything_arrives_in_pieces_as_in_one(data: bytes, size: int) -> None:
    whole = Telnet(ours=OPTIONS, theirs=OPTIONS)
    pieces = Telnet(ours=OPTIONS, theirs=OPTIONS)
    events = whole.receive(data)
    parts = [event for i in range(0, len(data), size) for event in pieces.receive(data[i : i + size])]
    assert joined(parts) == joined(events)
    assert pieces.to_send() == whole.to_send()


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        (Message(What.SIGNATURE, text=b"hello"), b"\x00hello"),
        (Message(What.SET_BAUDRATE, 115_200), b"\x01\x00\x01\xc2\x00"),
        (Message(What.SET_DATASIZE, 8), b"\x02\x08"),
        (Message(What.SET_PARITY, 3, answer=True), b"\x67\x03"),
        (Message(What.NOTIFY_MODEMSTATE, 0xB0, answer=True), b"\x6b\xb0"),
        (Message(What.FLOWCONTROL_SUSPEND), b"\x08"),
        (Message(What.FLOWCONTROL_RESUME, answer=True), b"\x6d"),
        (Message(What.PURGE_DATA, 3), b"\x0c\x03"),
    ],
)
def test_messages_of_rfc2217(message: Message, wire: bytes) -> None:
    assert message.encode() == wire
    assert Message.decode(wire) == message


@pytest.mark.parametrize(
    "wire", [b"", b"\x01\x00\x01", b"\x02", b"\x02\x08\x08", b"\x08\x01", b"\x0d", b"\xff"]
)
def test_what_is_no_message_of_rfc2217(wire: bytes) -> None:
    with pytest.raises(Rfc2217Error):
        Message.decode(wire)


def test_settings_as_messages() -> None:
    settings = LineSettings(9600, 7, "E", 1.5, Flow.RTSCTS)
    assert [(message.what, message.value) for message in settings_messages(settings)] == [
        (What.SET_BAUDRATE, 9600),
        (What.SET_DATASIZE, 7),
        (What.SET_PARITY, 3),
        (What.SET_STOPSIZE, 3),
        (What.SET_CONTROL, 3),
    ]


def test_what_is_escaped_is_taken_in_time_linear_in_it() -> None:
    began = time.process_time()
    for data in (b"\xff\xff" * 262_144, b"a\xff\xff" * 131_072):
        [found] = Telnet().receive(data)
        assert found == Data(data.replace(b"\xff\xff", b"\xff"))
    assert time.process_time() - began < 4
