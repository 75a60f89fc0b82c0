"""The supervisor's view of its children: they are forked by the zygote, watched, and started again."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from minerva.connect.ipc import VERSION, Ipc, IpcError, Message, socket_pair
from minerva.connect.messages import Exited, Fork, Forked, Ready, StatusReply, StatusRequest
from minerva.core.backoff import Backoff

log = logging.getLogger(__name__)

_FIRST_RESTART, _LAST_RESTART = 0.5, 30.0
_GOOD_RUN = 60.0
"""Seconds of delay before a child is started again, and of a run after which the delays start over."""

_STATUS_SECONDS = 2.0
_END_SECONDS = 2.0


@dataclass
class ChildHandle:
    """A child as the supervisor sees it; ``pid`` is 0 while it does not run."""

    role: str
    on_message: Callable[[Message], bool]
    on_ready: Callable[[], None]
    on_exit: Callable[[], None]
    namespace: int | None = None
    ipc: Ipc | None = None
    pid: int = 0
    ready: bool = False
    doomed: bool = False
    retired: bool = False
    started: float = 0.0
    restarts: int = 0
    backoff: Backoff = field(default_factory=lambda: Backoff(_FIRST_RESTART, _LAST_RESTART))

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send ``message`` if the child is ready; what it needs to know it is told when it is."""
        if self.ipc is not None and self.ready:
            self.ipc.send(message, descriptors)


class Children:
    """All children of this node. ``on_zygote_lost`` is called when no child can be made any more."""

    def __init__(self, zygote: socket.socket, zygote_pid: int, on_zygote_lost: Callable[[], None]) -> None:
        self._zygote = Ipc(zygote, self._from_zygote, self._zygote_closed)
        self.zygote_pid = zygote_pid
        self._on_zygote_lost = on_zygote_lost
        self._handles: dict[str, ChildHandle] = {}
        self._requests: dict[tuple[str, int], asyncio.Future[Any]] = {}
        self._request = 0
        self.stopping = False
        """Whether the node ends: then nothing is started again."""

    def start(
        self,
        role: str,
        on_message: Callable[[Message], bool],
        on_ready: Callable[[], None],
        on_exit: Callable[[], None],
        *,
        namespace: int | None = None,
    ) -> ChildHandle:
        """Start the child for ``role`` and keep it running; in ``namespace`` or in one with nothing in it.

        ``on_ready`` is called each time it is ready for work, ``on_exit`` each time it has ended;
        ``on_message`` returns whether the message is one that this child may send.
        """
        handle = ChildHandle(role, on_message, on_ready, on_exit, namespace)
        self._handles[role] = handle
        self._fork(handle)
        return handle

    def __getitem__(self, role: str) -> ChildHandle:
        return self._handles[role]

    def _fork(self, handle: ChildHandle) -> None:
        ours, theirs = socket_pair()
        handle.ipc = Ipc(
            ours,
            lambda message, descriptors: self._from_child(handle, message, descriptors),
            lambda error: self._child_closed(handle, error),
        )
        handle.started, handle.doomed = time.monotonic(), False
        descriptors = [theirs.fileno()]
        if handle.namespace is not None:
            descriptors.append(handle.namespace)
        self._zygote.send(Fork(handle.role, handle.role), descriptors)
        theirs.close()

    def _from_zygote(self, message: Message, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        if isinstance(message, Forked):
            handle = self._handles[message.name]
            handle.pid = message.pid
            if handle.doomed:
                self.kill(handle)
            elif handle.ready:
                handle.on_ready()
        elif isinstance(message, Exited):
            for handle in self._handles.values():
                if handle.pid == message.pid:
                    self._exited(handle, message.status)

    def _zygote_closed(self, error: IpcError | None) -> None:
        if not self.stopping:
            log.critical("the zygote is gone%s: no child can be started", f" ({error})" if error else "")
            self._on_zygote_lost()

    def _from_child(self, handle: ChildHandle, message: Message, descriptors: list[int]) -> None:
        if descriptors:
            for descriptor in descriptors:
                os.close(descriptor)
            self._distrust(handle, "it sent a descriptor")
        elif isinstance(message, Ready):
            if message.version != VERSION:
                self._distrust(handle, f"it speaks version {message.version} of our messages, not {VERSION}")
                return
            handle.ready = True
            if handle.pid:  # else the zygote's word of it is still under way, by another connection
                handle.on_ready()
        elif isinstance(message, StatusReply):
            if not _is_state(message.state):
                self._distrust(handle, "it told a state that is none")
                return
            future = self._requests.pop((handle.role, message.request), None)
            if future is not None and not future.done():
                future.set_result(message.state)
        elif not handle.on_message(message):
            self._distrust(handle, f"it sent a {type(message).__name__}")

    def _child_closed(self, handle: ChildHandle, error: IpcError | None) -> None:
        """End a child that broke the rules, or that cannot be talked to any more for whatever reason."""
        if error is not None:
            self._distrust(handle, str(error))
        else:
            self.kill(handle)

    def _distrust(self, handle: ChildHandle, reason: str) -> None:
        log.error("%s is broken: %s; it is started again", handle.role, reason)
        self.kill(handle)

    def kill(self, handle: ChildHandle) -> None:
        """Kill a child that is not to be trusted any more; it is started again."""
        handle.doomed = True
        if handle.pid:
            with suppress(ProcessLookupError):  # it has just ended, and the zygote is about to say so
                os.kill(handle.pid, signal.SIGKILL)

    def _exited(self, handle: ChildHandle, status: int) -> None:
        handle.pid, handle.ready = 0, False
        if handle.ipc is not None:
            handle.ipc.close()
            handle.ipc = None
        if self.stopping or handle.retired:
            return
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
        if time.monotonic() - handle.started > _GOOD_RUN:
            handle.backoff.reset()
        delay = handle.backoff.failed()
        handle.restarts += 1
        log.error("%s ended (%s); starting it again in %.1f s", handle.role, how, delay)
        handle.on_exit()
        asyncio.get_running_loop().call_later(delay, self._restart, handle)

    def _restart(self, handle: ChildHandle) -> None:
        if not self.stopping and not handle.retired:
            self._fork(handle)

    async def state_of(self, role: str) -> Any:
        """Return the state that a child reports, or ``None`` if it does not answer."""
        handle = self._handles.get(role)
        if handle is None or not handle.ready:
            return None
        self._request += 1
        request = self._request
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._requests[role, request] = future
        handle.send(StatusRequest(request))
        try:
            return await asyncio.wait_for(future, _STATUS_SECONDS)
        except TimeoutError:
            return None
        finally:
            self._requests.pop((role, request), None)

    def status(self) -> list[dict[str, Any]]:
        """Return the processes for ``minerva status``."""
        now = time.monotonic()
        processes: list[dict[str, Any]] = [
            {"name": "supervisor", "pid": os.getpid(), "restarts": 0},
            {"name": "zygote", "pid": self.zygote_pid, "restarts": 0},
        ]
        return processes + [
            {
                "name": handle.role,
                "pid": handle.pid or None,
                "restarts": handle.restarts,
                "seconds": round(now - handle.started, 1) if handle.pid else None,
            }
            for handle in self._handles.values()
            if not handle.retired
        ]

    async def end(self, role: str, message: Message | None = None, seconds: float = 0.0) -> None:
        """End the child for ``role`` for good: ask it with ``message``, and kill it after ``seconds``.

        Returns when it has ended, and does nothing where there is none.
        """
        handle = self._handles.get(role)
        if handle is None:
            return
        handle.retired = True
        if message is not None:
            handle.send(message)
        deadline = time.monotonic() + seconds
        while handle.ipc is not None and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        self.kill(handle)
        deadline = time.monotonic() + _END_SECONDS
        while handle.ipc is not None and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Kill all children and the zygote."""
        self.stopping = True
        for handle in self._handles.values():
            self.kill(handle)
            if handle.ipc is not None:
                handle.ipc.close()
        self._zygote.close()
        with suppress(ChildProcessError, ProcessLookupError):
            os.kill(self.zygote_pid, signal.SIGKILL)
            os.waitpid(self.zygote_pid, 0)


def _is_state(state: Any) -> bool:
    """Return whether a state is what JSON can say of one."""
    try:
        json.dumps(state)
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(state, dict)
