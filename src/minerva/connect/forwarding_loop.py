"""An event loop for who forwards packets: asyncio's way to a callback is longer than the work on a packet."""

from __future__ import annotations

import asyncio
import select
import selectors
from collections.abc import Callable, Mapping
from typing import Any


class _Selector(selectors.BaseSelector):
    """Calls forwarders while it waits, and returns what is for asyncio."""

    def __init__(self) -> None:
        self._asyncio = selectors.EpollSelector()
        self._epoll = select.epoll()
        self._epoll.register(self._asyncio.fileno(), select.EPOLLIN)
        self._forwarders: dict[int, Callable[[], None]] = {}

    def add(self, descriptor: int, forward: Callable[[], None]) -> None:
        self._epoll.register(descriptor, select.EPOLLIN)
        self._forwarders[descriptor] = forward

    def remove(self, descriptor: int) -> None:
        if self._forwarders.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        forwarders, others = self._forwarders, False
        for descriptor, _ in self._epoll.poll(timeout):
            forward = forwarders.get(descriptor)
            if forward is None:
                others = True
            else:
                forward()
        return self._asyncio.select(0) if others else []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._asyncio.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._asyncio.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._asyncio.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._asyncio.get_map()

    def close(self) -> None:
        self._epoll.close()
        self._asyncio.close()


class ForwardingLoop(asyncio.SelectorEventLoop):
    """An asyncio loop that calls what forwards packets without a detour, all else as always.

    In each turn of the loop each forwarder that has something to read is called once, in the order of their
    descriptors' readiness. What a forwarder raises ends the loop.
    """

    def __init__(self) -> None:
        self._forwarding = _Selector()
        super().__init__(self._forwarding)

    def add_forwarder(self, descriptor: int, forward: Callable[[], None]) -> None:
        """Call ``forward`` whenever ``descriptor`` can be read, or its other end is gone."""
        self._forwarding.add(descriptor, forward)

    def remove_forwarder(self, descriptor: int) -> None:
        """Do so no longer, if ever; to be called before ``descriptor`` is closed."""
        self._forwarding.remove(descriptor)
