"""Frames: both directions, and whatever else might come."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from cbor2 import CBORTag
from hypothesis import given
from hypothesis import strategies as st

from minerva.asa import protocol
from minerva.asa.protocol import ApiDecodeError, ApiError, Event, FrameScanner, Reply, Request, TraceRecord
from minerva.core import cbor
from minerva.grasp.api import ErrorCode
from minerva.grasp.errors import GraspError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.builds(CBORTag, st.just(24), st.binary()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
IDS = st.integers(1, 2**62)


@pytest.mark.parametrize(
    ("frame", "data"),
    [
        (Request(1, "register_asa", ["me"]), "83016c72656769737465725f61736181626d65"),
        (Request(2, "status"), "83026673746174757380"),
        (Reply(1, ErrorCode.ok, 77), "840100184d60"),
        (Reply(9, ErrorCode.declined, None, "no"), "840901f6626e6f"),
        (Event("trace", [1.5, "x", "in", b""]), "83006574726163658" + "4f93e006178" + "62696e40"),
    ],
)
def test_frames_as_bytes(frame: Any, data: str) -> None:
    assert frame.encode().hex() == data
    decode = Request.decode if isinstance(frame, Request) else protocol.decode_from_node
    assert decode(bytes.fromhex(data)) == frame


@given(IDS, st.text(), st.lists(VALUES, max_size=5))
def test_every_request_survives(identifier: int, function: str, arguments: list[Any]) -> None:
    request = Request(identifier, function, arguments)
    assert Request.decode(request.encode()) == request


@given(IDS, st.sampled_from(ErrorCode), VALUES, st.text())
def test_every_reply_survives(identifier: int, code: ErrorCode, result: Any, reason: str) -> None:
    reply = Reply(identifier, code, result, reason)
    assert protocol.decode_from_node(reply.encode()) == reply


@given(st.binary(max_size=64) | VALUES.map(cbor.dumps) | st.lists(VALUES, max_size=5).map(cbor.dumps))
def test_decoders_raise_nothing_but_their_error(data: bytes) -> None:
    for decode in (Request.decode, protocol.decode_from_node):
        with contextlib.suppress(ApiDecodeError):
            decode(data)
    for from_node in (True, False):
        with contextlib.suppress(ApiDecodeError):
            list(FrameScanner(from_node=from_node).feed(data))


@given(VALUES)
def test_a_trace_record_raises_nothing_but_a_grasp_error(item: Any) -> None:
    with contextlib.suppress(GraspError):
        TraceRecord.from_cbor(item)


@given(st.lists(st.builds(Request, IDS, st.text(), st.lists(VALUES, max_size=3)), max_size=4), st.data())
def test_a_stream_cut_anywhere_gives_the_same_frames(requests: list[Request], data: st.DataObject) -> None:
    stream = b"".join(request.encode() for request in requests)
    scanner, found = FrameScanner(from_node=False), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += [Request.decode(frame) for frame in scanner.feed(stream[:size])]
        stream = stream[size:]
    assert found == requests


def test_frames_before_the_stream_breaks_are_given() -> None:
    frames = FrameScanner(from_node=False).feed(Request(1, "status").encode() + b"\xff")
    assert Request.decode(next(frames)) == Request(1, "status")
    with pytest.raises(ApiDecodeError):
        next(frames)


@pytest.mark.parametrize(
    "item",
    [
        [],
        [1],
        [1, 0],
        [1, 0, None],
        [1, "0", None, ""],
        [1, -1, None, ""],
        [1, 0, None, None],
        [-1, 0, None, ""],
        [0, 5, None],
        [True, 0, None, ""],
        {},
    ],
)
def test_what_is_no_frame_of_a_node(item: Any) -> None:
    with pytest.raises(ApiDecodeError):
        protocol.decode_from_node(cbor.dumps(item))


def test_extensions_are_ignored_and_errors_of_the_future_unspecified() -> None:
    assert protocol.decode_from_node(cbor.dumps([1, 0, 5, "", "more"])) == Reply(1, ErrorCode.ok, 5)
    assert protocol.decode_from_node(cbor.dumps([1, 99, 5, ""])) == Reply(
        1, ErrorCode.unspec, None, "error 99"
    )
    assert Request.decode(cbor.dumps([1, "status", [], "more"])) == Request(1, "status")


def test_what_the_other_end_would_refuse_is_not_sent() -> None:
    deep: Any = None
    for _ in range(protocol.MAX_REQUEST_DEPTH):
        deep = [deep]
    for value in (deep, bytes(protocol.MAX_REQUEST), object(), "\ud800", {1: object()}):
        with pytest.raises(ApiError):
            Request(1, "x", [value]).encode()


def test_what_a_request_brings_fits_into_every_reply() -> None:
    """Otherwise one ASA's deep value would end the connection of whoever asks for the node's status."""
    deep: Any = 0
    while True:
        try:
            Request(1, "listen_synchronize", [1, ["x", 4, 6, [deep]]]).encode()
        except ApiError:
            break
        deep = [deep]
    status = {"objectives": [{"value": ["x", 4, 6, deep]}]}
    assert protocol.decode_from_node(Reply(1, ErrorCode.ok, status).encode()) == Reply(
        1, ErrorCode.ok, status
    )
