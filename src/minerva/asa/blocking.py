"""The GRASP API without asyncio, for scripts and threads: the names of :mod:`minerva.asa`, every call waits.

The connection is served by a thread in the background, so any number of threads may call at once. A call
that a signal interrupts (KeyboardInterrupt) takes its request back.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from minerva.asa import client, objects
from minerva.asa.protocol import TraceRecord
from minerva.grasp.api import AsaError, AsaLocator, ErrorCode
from minerva.grasp.options import Objective

_I = TypeVar("_I")
_T = TypeVar("_T")
_P = ParamSpec("_P")


class _Worker:
    """A thread with an event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="minerva-asa", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run ``coroutine`` in the loop and return what it returns."""
        with self._lock:
            if self._closed:
                coroutine.close()
                raise AsaError(ErrorCode.noSocket, "the connection has been closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Run ``last``, which must end whatever is under way, and end the thread."""
        with self._lock:
            if self._closed:
                last.close()
                return
            self._closed = True
            # Nothing can be begun after this, and all that was begun before is a task already when it runs.
            future = asyncio.run_coroutine_threadsafe(self._finish(last), self._loop)
        future.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _finish(self, last: Coroutine[Any, Any, None]) -> None:
        await last
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()


class _Facade(Generic[_I]):
    """Something of asyncio, and the thread where it lives."""

    def __init__(self, worker: _Worker, inner: _I) -> None:
        self._worker = worker
        self._inner = inner


def _blocking(
    function: Callable[Concatenate[_I, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[_Facade[_I], _P], _T]:
    """Return the method ``function`` of asyncio as one that waits."""

    @functools.wraps(function)
    def method(self: _Facade[_I], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._worker.run(function(self._inner, *args, **kwargs))

    return method


class Grasp(_Facade[client.Grasp]):
    """The GRASP API of this host's node, as :class:`minerva.asa.Grasp`. Use as ``with Grasp.connect()``."""

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None) -> Grasp:
        """Connect to the API socket ``path`` of a node; raises as :meth:`minerva.asa.Grasp.open`."""
        worker = _Worker()
        try:
            return cls(worker, worker.run(client.Grasp.open(path)))
        except BaseException:
            worker.close(asyncio.sleep(0))
            raise

    @classmethod
    @contextmanager
    def connect(cls, path: str | os.PathLike[str] | None = None) -> Iterator[Grasp]:
        """Be connected for the length of a ``with``."""
        grasp = cls.open(path)
        try:
            yield grasp
        finally:
            grasp.close()

    def close(self) -> None:
        """End the connection. Calls that wait in other threads fail with ``noSocket``."""
        self._worker.close(self._inner.close())

    @property
    def is_open(self) -> bool:
        """Whether the connection stands."""
        return self._inner.is_open

    wait_closed = _blocking(client.Grasp.wait_closed)
    register_asa = _blocking(client.Grasp.register_asa)
    deregister_asa = _blocking(client.Grasp.deregister_asa)
    register_objective = _blocking(client.Grasp.register_objective)
    deregister_objective = _blocking(client.Grasp.deregister_objective)
    discover = _blocking(client.Grasp.discover)
    request_negotiate = _blocking(client.Grasp.request_negotiate)
    listen_negotiate = _blocking(client.Grasp.listen_negotiate)
    stop_listen_negotiate = _blocking(client.Grasp.stop_listen_negotiate)
    negotiate_step = _blocking(client.Grasp.negotiate_step)
    negotiate_wait = _blocking(client.Grasp.negotiate_wait)
    end_negotiate = _blocking(client.Grasp.end_negotiate)
    synchronize = _blocking(client.Grasp.synchronize)
    listen_synchronize = _blocking(client.Grasp.listen_synchronize)
    stop_listen_synchronize = _blocking(client.Grasp.stop_listen_synchronize)
    flood = _blocking(client.Grasp.flood)
    get_flood = _blocking(client.Grasp.get_flood)
    expire_flood = _blocking(client.Grasp.expire_flood)
    send_invalid = _blocking(client.Grasp.send_invalid)
    node = _blocking(client.Grasp.node)
    status = _blocking(client.Grasp.status)

    def trace(self) -> Iterator[TraceRecord]:
        """Yield the GRASP messages that the node receives and sends, until the connection ends."""
        records = self._inner.trace()
        try:
            while True:
                yield self._worker.run(_next(records))
        except StopAsyncIteration:
            return
        finally:
            if self.is_open:
                self._worker.run(_close(records))


async def _next(records: Any) -> TraceRecord:
    record: TraceRecord = await anext(records)
    return record


async def _close(records: Any) -> None:
    await records.aclose()


class Session(_Facade[objects.Session]):
    """One negotiation, as :class:`minerva.asa.Session`."""

    @property
    def objective(self) -> Objective:
        """What the peer asked for or offered last; once :attr:`agreed`, what was agreed."""
        return self._inner.objective

    @property
    def value(self) -> Any:
        """The value of :attr:`objective`."""
        return self._inner.value

    @property
    def ended(self) -> bool:
        """Whether the negotiation is over, in one way or the other."""
        return self._inner.ended

    @property
    def agreed(self) -> bool:
        """Whether it ended in agreement."""
        return self._inner.agreed

    step = _blocking(objects.Session.step)
    offer = _blocking(objects.Session.offer)
    wait = _blocking(objects.Session.wait)
    accept = _blocking(objects.Session.accept)
    decline = _blocking(objects.Session.decline)
    invalid = _blocking(objects.Session.invalid)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.ended:
            self._worker.run(self._inner.__aexit__(kind, error, traceback))


class Asa(_Facade[objects.Asa]):
    """A registered ASA, as :class:`minerva.asa.Asa`."""

    @property
    def name(self) -> str:
        """The name it is registered by."""
        return self._inner.name

    @property
    def handle(self) -> int:
        """Its handle, for the functions of :class:`Grasp`."""
        return self._inner.handle

    @classmethod
    @contextmanager
    def register(cls, grasp: Grasp, name: str) -> Iterator[Asa]:
        """Be the ASA ``name`` for the length of a ``with``, on a connection that others may use too."""
        worker, inner = grasp._worker, grasp._inner
        registration = objects.Asa.register(inner, name)
        asa = cls(worker, worker.run(registration.__aenter__()))
        try:
            yield asa
        finally:
            if grasp.is_open:
                worker.run(registration.__aexit__(None, None, None))

    @classmethod
    @contextmanager
    def connect(cls, name: str, path: str | os.PathLike[str] | None = None) -> Iterator[Asa]:
        """Be the ASA ``name`` on a connection of its own."""
        with Grasp.connect(path) as grasp, cls.register(grasp, name) as asa:
            yield asa

    register_objective = _blocking(objects.Asa.register_objective)
    deregister_objective = _blocking(objects.Asa.deregister_objective)
    discover = _blocking(objects.Asa.discover)
    stop_listen_negotiate = _blocking(objects.Asa.stop_listen_negotiate)
    synchronize = _blocking(objects.Asa.synchronize)
    listen_synchronize = _blocking(objects.Asa.listen_synchronize)
    stop_listen_synchronize = _blocking(objects.Asa.stop_listen_synchronize)
    flood = _blocking(objects.Asa.flood)
    get_flood = _blocking(objects.Asa.get_flood)
    expire_flood = _blocking(objects.Asa.expire_flood)

    def negotiate(self, objective: Objective, peer: AsaLocator | None = None, timeout: int = 0) -> Session:
        """As :meth:`minerva.asa.Asa.negotiate`."""
        return Session(self._worker, self._worker.run(self._inner.negotiate(objective, peer, timeout)))

    def listen_negotiate(self, objective: Objective) -> Session:
        """As :meth:`minerva.asa.Asa.listen_negotiate`."""
        return Session(self._worker, self._worker.run(self._inner.listen_negotiate(objective)))
