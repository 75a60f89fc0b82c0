"""Fuzzes the records of consoles: in the cast is every byte that a device says, and the log is harmless.

The first byte of the input chooses whether the rest is what a device says, in pieces whose length is in a
byte before each, or a line of a file that is no record.
"""

from __future__ import annotations

import json
from contextlib import suppress

from _harness import run
from minerva.console.record_format import (
    Encoder,
    RecordDecodeError,
    decode_frame,
    decode_header,
    decode_log_line,
)

UTC = 1_795_633_930.25


def pieces(data: bytes) -> list[bytes]:
    """Cut the input into pieces; a byte before each says how long it is."""
    found = []
    while data:
        length = data[0] % 32 + 1
        found.append(data[1 : 1 + length])
        data = data[1 + length :]
    return found


def record(chunks: list[bytes]) -> None:
    """Record what a device says, and read it again."""
    encoder = Encoder("fuzz")
    encoder.begin(0.0, UTC)
    for number, chunk in enumerate(chunks):
        encoder.output(chunk, number * 0.3, UTC + number * 0.3)
        if number % 7 == 3:
            encoder.mark("mark", number * 0.3, UTC + number * 0.3)
        if number % 5 == 2:
            encoder.settle(number * 0.3, UTC + number * 0.3)
    encoder.end(len(chunks) * 0.3, UTC, final=True)
    header, *lines = bytes(encoder.cast).split(b"\n")[:-1]
    assert decode_header(header) == int(UTC)
    said, exact, last = b"", None, 0.0
    for line in lines:
        json.loads(line)[2].encode()
        frame = decode_frame(line, exact)
        assert frame.offset >= last
        last = frame.offset
        exact = frame.data if frame.kind == "b" else None
        said += frame.data if frame.kind == "o" else b""
    assert said == b"".join(chunks)
    for text in bytes(encoder.log).decode().split("\n")[:-1]:
        assert text.isprintable()
        decode_log_line(text)


def target(data: bytes) -> None:
    """Run one input."""
    if data[:1] < b"\x80":
        record(pieces(data[1:]))
        return
    for exact in (None, b"exact"):
        with suppress(RecordDecodeError):
            decode_frame(data[1:], exact)
    with suppress(RecordDecodeError):
        decode_header(data[1:])
    with suppress(RecordDecodeError):
        decode_log_line(data[1:].decode(errors="replace"))


if __name__ == "__main__":
    run(
        target,
        [
            b"\x00\x1fgr\xc3\xbcn \x1b[31mred\x1b[0m\r\r\n\x00\xc3\x00\xbc\x05\r\n\xff\xf0\x9f\x98",
            b'\x80[1.5, "o", "x"]',
            b'\x80[1.5, "b", "/w=="]',
            b'\x80{"version": 2, "width": 80, "height": 24, "timestamp": 1795633930}',
            b"\x802026-11-25T19:12:10.250Z 0.250 | x",
        ],
    )
