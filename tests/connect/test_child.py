"""What children and their supervisor make of bad luck, and of each other's nonsense."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest

from minerva.connect import child, ipc
from minerva.connect.child import Child
from minerva.connect.children import _is_state
from minerva.connect.ipc import Message, socket_pair
from minerva.connect.messages import StatusReply, StatusRequest


class Talkative(Child):
    """A child whose state is larger than any message."""

    def handle(self, message: Message, descriptors: list[int]) -> bool:  # noqa: ARG002
        return False

    def state(self) -> dict[str, Any]:
        return {"routes": ["fd00::/127"] * 1_000_000}


def test_a_state_that_is_too_large_does_not_end_the_child() -> None:
    async def test() -> Message:
        ours, theirs = socket_pair()
        Talkative(theirs)
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(ours, ipc.encode(StatusRequest(7)))
        with ours, theirs:
            return ipc.decode(await loop.sock_recv(ours, ipc.MAX_PACKET))

    assert asyncio.run(test()) == StatusReply(7, {})


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_a_machine_that_is_short_of_something_does_not_end_a_child(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "_exit", pytest.fail)
    loop = asyncio.new_event_loop()
    error = OSError(number, "short")
    context = {"message": "socket.accept() out of system resource", "exception": error, "socket": None}
    child._crash(loop, context)
    loop.close()


def test_an_error_that_nobody_foresaw_does(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    loop = asyncio.new_event_loop()
    child._crash(loop, {"message": "a bug", "exception": KeyError("x")})
    child._crash(loop, {"message": "in a callback", "exception": OSError(errno.ENOMEM, "short")})
    loop.close()
    assert codes == [70, 70]


@pytest.mark.parametrize("state", [None, [], 7, {"a": b"bytes"}, {1: object()}])
def test_a_state_that_is_none(state: Any) -> None:
    assert not _is_state(state)
    assert _is_state({"a": [1, None, "x"]})
