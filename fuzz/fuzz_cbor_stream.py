"""Fuzzes the cutting of a stream into CBOR items against decoding the same stream, in pieces of all sizes."""

from __future__ import annotations

from minerva.core import cbor
from minerva.core.cbor_stream import ItemScanner
from minerva.grasp.errors import GraspDecodeError
from minerva.grasp.messages import decode
from minerva.grasp.stream import MessageStream

MAX_SIZE = 300
MAX_DEPTH = 5
PIECES = (1, 2, 7, 64)

SEEDS: list[bytes] = [
    bytes.fromhex(seed)
    for seed in (
        "8100",
        "81008100",
        "83061a000c3ffd81186583071a00d21462198895",
        "9f018202039f0405ffff",
        "bf6346756ef563416d7421ff",
        "5f42010243030405ff7f61616162ff",
        "d818456449455446c074323031332d30332d32315432303a30343a30305a",
        "fb3ff199999999999af97e00f6f7f0f8ff",
        "818181818181",
        "5901000000",
        "9bffffffffffffffff",
        "a1810102",
        "ff",
        "1c",
        "85091a00bc4e4f50fe80000000000000c0011001feef00001a00033450828466414e5f414350040165494b45763280",
    )
]


def target(data: bytes) -> None:
    """Cut ``data`` whole and in pieces: the same items, each of which a decoder takes as just one."""
    whole, broken = _cut(data, len(data) or 1)
    for size in PIECES:
        assert _cut(data, size) == (whole, broken)
    _against_the_decoder(data, whole, broken)
    _messages(data)


def _cut(data: bytes, size: int) -> tuple[list[bytes], bool]:
    scanner = ItemScanner(max_size=MAX_SIZE, max_depth=MAX_DEPTH)
    items: list[bytes] = []
    for start in range(0, len(data), size):
        try:
            items += scanner.feed(data[start : start + size])
        except cbor.CborError:
            assert scanner.broken is not None
        assert scanner.pending <= MAX_SIZE
    return items, scanner.broken is not None


def _against_the_decoder(data: bytes, items: list[bytes], broken: bool) -> None:
    assert b"".join(items) == data[: sum(map(len, items))]
    assert all(0 < len(item) <= MAX_SIZE for item in items)
    position = 0
    for item in items:
        try:
            _, end = cbor.loads_first(data[position:], max_size=max(len(data), 1), max_depth=MAX_DEPTH)
        except cbor.CborIncomplete as error:
            raise AssertionError("the scanner saw an end where the decoder wants more") from error
        except cbor.CborError:
            pass  # what the structure does not show: a text that is not UTF-8, a key that is there twice
        else:
            assert end == len(item)
        position += len(item)
    rest = data[position:]
    if not broken:
        try:
            cbor.loads_first(rest, max_size=max(len(rest), 1), max_depth=MAX_DEPTH)
        except cbor.CborError:
            return
        raise AssertionError("the decoder found an item that the scanner did not")


def _messages(data: bytes) -> None:
    stream, pieces = MessageStream(max_size=MAX_SIZE), MessageStream(max_size=MAX_SIZE)
    whole = [item for item, _ in stream.feed(data)]
    apart = []
    for start in range(len(data)):
        for item, message in pieces.feed(data[start : start + 1]):
            apart.append(item)
            try:
                assert decode(item).encode() == message.encode()  # type: ignore[union-attr]
            except GraspDecodeError:
                assert isinstance(message, GraspDecodeError)
    assert apart == whole
    assert stream.broken == pieces.broken


if __name__ == "__main__":
    from _harness import run

    run(target, SEEDS)
