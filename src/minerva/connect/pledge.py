"""The pledge process: it hears join proxies on all ports and bootstraps through one (RFC 8995 section 4.1).

They make themselves known by DULL GRASP, for which it listens, or by multicast DNS, for which it asks too.
It has the device's own key, no privileges and no file. Its sockets come from the supervisor, to which it
brings home what it gets: a certificate, trust anchors, and the key it made.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv6Address
from typing import Any

from minerva.brski.pledge.attempt import OnStep, Step, bootstrap, report_enrolled
from minerva.brski.pledge.device import Device
from minerva.brski.pledge.enrolment import Enrolled
from minerva.brski.pledge.errors import AttemptError
from minerva.brski.pledge.heard import HeardProxies, Way
from minerva.brski.pledge.mdns import MdnsBrowser, ProxyEvicted, ProxyFound, ProxyLost
from minerva.brski.pledge.renewal import Alternation, Method, reenrol
from minerva.brski.pledge.scheduler import Abandon, AttemptScheduler, Proxy, Start
from minerva.connect import messages as m
from minerva.connect.child import Child
from minerva.connect.ipc import Message
from minerva.connect.runner import CoreRunner
from minerva.core.errors import MinervaError
from minerva.core.rate import TokenBucket
from minerva.core.secret import Secret
from minerva.grasp import dull
from minerva.grasp.announcement import Announcement
from minerva.grasp.constants import AN_PROXY, TransportProto
from minerva.pki.certificates import dump_pem
from minerva.pki.identity import Identity
from minerva.pki.keys import PrivateKey, dump_private_key, load_private_key

log = logging.getLogger(__name__)

_REPORTS, _REPORT_AGAIN_SECONDS = 3, 1.0
_MAX_DETAIL = 400
_NEWS_BURST, _NEWS_INTERVAL = 32, 5.0
"""How many proxies that are heard are worth a line in the log, and one more in how many seconds."""

PROXY_HEARD = "proxy_heard"
FAILED = "failed"
"""What is told of an attempt besides the steps of :class:`minerva.brski.pledge.attempt.Step`."""


@dataclass
class _Port:
    number: int
    name: str
    core: dull.DullInstance
    runners: list[CoreRunner] = field(default_factory=list)
    browser: MdnsBrowser | None = None

    def close(self) -> None:
        for runner in self.runners:
            runner.close()
        self.runners.clear()


class Pledge(Child):
    """The pledge process, which ends when the device is enrolled and the registrar has been told."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._loop = asyncio.get_running_loop()
        self._device: Device | None = None
        self._former: tuple[Identity, PrivateKey] | None = None
        self._alternation = Alternation()
        self._scheduler = AttemptScheduler(random.SystemRandom().random)
        self._timer: asyncio.TimerHandle | None = None
        self._ports: dict[int, _Port] = {}
        self._announcers: dict[tuple[int, IPv6Address], frozenset[Proxy]] = {}
        self._heard = HeardProxies()
        self._news = TokenBucket(_NEWS_BURST, _NEWS_INTERVAL)
        self._attempts: dict[int, asyncio.Task[None]] = {}
        self._sockets: dict[int, asyncio.Future[socket.socket]] = {}
        self._requests = 0

    # --- messages --------------------------------------------------------------------------------------

    def handle(self, message: Message, descriptors: list[int]) -> bool:
        match message:
            case m.PledgeStart():
                self._start(message, descriptors)
            case m.PledgePort() if len(descriptors) in (1, 2):
                self._port_up(message, *(socket.socket(fileno=descriptor) for descriptor in descriptors))
            case m.PortDown():
                self._port_down(message.port)
            case m.PledgeSocket():
                self._take_socket(message, descriptors)
            case _:
                return False
        return True

    def _start(self, start: m.PledgeStart, descriptors: list[int]) -> None:
        keys = []
        for descriptor in descriptors:
            with os.fdopen(descriptor, "rb") as file:
                keys.append(file.read())
        try:
            if start.certificate:
                self._device = Device.from_pem(start.certificate, start.chain, start.anchors, keys[0])
                log.info("this is the device %s", self._device.serial_number)
            if start.former_certificate:
                former = (start.former_certificate, start.former_chain, start.former_anchors)
                self._former = Identity.from_pem(*former), load_private_key(keys[-1])
                log.info("this node was %s", self._former[0].node_name)
        except MinervaError as error:
            log.error("%s", error)
            self.stop()

    # --- discovery -------------------------------------------------------------------------------------

    def _port_up(
        self, message: m.PledgePort, grasp: socket.socket, multicast_dns: socket.socket | None = None
    ) -> None:
        self._port_down(message.port)
        now, chance = self._loop.time(), random.SystemRandom()
        core = dull.DullInstance(message.link_local, random=chance)
        port = self._ports[message.port] = _Port(message.port, message.name, core)
        port.runners.append(CoreRunner(core, grasp, lambda event, now: self._on_dull(port, event, now)))
        if multicast_dns is not None:
            port.browser = MdnsBrowser(message.port, message.link_local, random=chance, now=now)
            runner = CoreRunner(port.browser, multicast_dns, self._on_mdns)
            port.runners.append(runner)
            runner.pump()
        self._scheduler.link_up(port.number, now)
        self._follow()

    def _port_down(self, number: int) -> None:
        port = self._ports.pop(number, None)
        if port is None:
            return
        port.close()
        for key in [key for key in self._announcers if key[0] == number]:
            del self._announcers[key]
        self._heard.forget_port(number)
        self._scheduler.link_down(number, self._loop.time())
        self._follow()

    def _on_dull(self, port: _Port, event: object, now: float) -> None:
        match event:
            case dull.NeighbourHeard():
                self._announced(port, event.address, event.announcements, event.expires, now)
            case dull.NeighbourRefreshed():
                for proxy in self._announcers.get((port.number, event.address), ()):
                    self._offered(proxy, Way.GRASP, event.expires, now)
            case dull.NeighbourExpired():
                self._announced(port, event.address, (), now, now)
        self._follow()

    def _announced(
        self,
        port: _Port,
        address: IPv6Address,
        announcements: tuple[Announcement, ...],
        expires: float,
        now: float,
    ) -> None:
        """Compare what a neighbour offers with what it offered before."""
        before = self._announcers.pop((port.number, address), frozenset())
        offered = frozenset(
            Proxy(port.number, address, item.port)
            for item in announcements
            if item.objective == AN_PROXY
            and item.transport is TransportProto.IPPROTO_TCP
            and item.port is not None
        )
        for proxy in before - offered:
            self._withdrawn(proxy, Way.GRASP, now)
        if offered:
            self._announcers[port.number, address] = offered
        for proxy in offered:
            self._offered(proxy, Way.GRASP, expires, now)

    def _on_mdns(self, event: object, now: float) -> None:
        match event:
            case ProxyFound():
                self._offered(event.proxy, Way.MDNS, event.expires, now)
            case ProxyLost():
                self._withdrawn(event.proxy, Way.MDNS, now)
            case ProxyEvicted():
                self._heard.lost(event.proxy, Way.MDNS)
        self._follow()

    def _offered(self, proxy: Proxy, way: Way, expires: float, now: float) -> None:
        new = way not in self._heard.ways(proxy)
        expires = self._heard.heard(proxy, way, expires)
        if new and self._news.take(now):
            log.info(
                "heard the join proxy %s on port %s by %s", proxy, self._ports[proxy.port].name, way.value
            )
            if len(self._heard.ways(proxy)) == 1:
                self._tell(proxy, PROXY_HEARD, "")
        self._scheduler.heard(proxy, expires, now)

    def _withdrawn(self, proxy: Proxy, way: Way, now: float) -> None:
        if (expires := self._heard.lost(proxy, way)) is None:
            self._scheduler.expired(proxy, now)
        else:
            self._scheduler.heard(proxy, expires, now)

    # --- attempts --------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Do what the scheduler decided, and arm its timer."""
        while (event := self._scheduler.next_event()) is not None:
            match event:
                case Start():
                    task = self._loop.create_task(self._attempt(event.proxy, event.attempt))
                    self._attempts[event.attempt] = task
                case Abandon():
                    log.info("left the join proxy %s alone: %s", event.proxy, event.reason)
                    self._tell(event.proxy, FAILED, event.reason)
                    if (running := self._attempts.pop(event.attempt, None)) is not None:
                        running.cancel()
        if self._timer is not None:
            self._timer.cancel()
        when = self._scheduler.next_timer()
        self._timer = None if when is None else self._loop.call_at(when, self._due)

    def _due(self) -> None:
        self._timer = None
        self._scheduler.on_timer(self._loop.time())
        self._follow()

    async def _attempt(self, proxy: Proxy, attempt: int) -> None:
        try:
            enrolled = await self._enrol(proxy, partial(self._step, proxy, attempt))
        except AttemptError as error:
            self._attempts.pop(attempt, None)
            log.warning("not enrolled through %s: %s", proxy, error)
            self._tell(proxy, FAILED, str(error))
            self._scheduler.failed(attempt, str(error), self._loop.time())
            self._follow()
        else:
            self._scheduler.succeeded(attempt)
            self._follow()
            await self._enrolled(proxy, enrolled)

    async def _enrol(self, proxy: Proxy, on_step: OnStep) -> Enrolled:
        """Return what one attempt got. Raises AttemptError."""
        connect = partial(self._connect, proxy)
        if self._former is None:
            assert self._device is not None
            return await bootstrap(connect, self._device, now=self._now, on_step=on_step)
        method = Method.AS_MEMBER if self._device is None else self._alternation.next(proxy)
        return await reenrol(method, connect, self._device, *self._former, now=self._now, on_step=on_step)

    def _step(self, proxy: Proxy, attempt: int, step: Step, detail: str) -> None:
        now = self._loop.time()
        if step is Step.VOUCHER_VERIFIED:
            if not self._scheduler.imprinted(attempt, now):
                raise AttemptError("another registrar was first")
        elif step is not Step.CONNECTING:
            self._scheduler.progress(attempt, now)
        log.info("%s: %s", proxy, detail)
        self._tell(proxy, step.value, detail)
        self._follow()

    def _tell(self, proxy: Proxy, step: str, detail: str) -> None:
        self.send(m.PledgeStep(proxy.port, proxy.address, step, detail[:_MAX_DETAIL]))

    def _now(self) -> datetime | None:
        """Return the time, unless the clock cannot be right: the device was not made in the future."""
        certificates = [] if self._device is None else [self._device.certificate]
        if self._former is not None:
            certificates.append(self._former[0].certificate)
        now = datetime.now(UTC)
        return now if all(now >= found.not_valid_before_utc for found in certificates) else None

    async def _enrolled(self, proxy: Proxy, enrolled: Enrolled) -> None:
        """Hand over all that was got, and the ports; then let the registrar know."""
        for port in self._ports.values():
            port.close()
        self.send(
            m.PledgeEnrolled(
                dump_pem((enrolled.certificate,)),
                dump_pem(enrolled.chain),
                dump_pem(enrolled.anchors),
                Secret(dump_private_key(enrolled.key)),
            )
        )
        for left in reversed(range(_REPORTS)):
            try:
                await report_enrolled(partial(self._connect, proxy), enrolled)
                log.info("the registrar knows that this device is enrolled")
                break
            except AttemptError as error:
                log.warning("the registrar was not told that this device is enrolled: %s", error)
                if left:
                    await asyncio.sleep(_REPORT_AGAIN_SECONDS)
        self.send(m.PledgeDone())

    # --- connections -----------------------------------------------------------------------------------

    async def _connect(self, proxy: Proxy) -> socket.socket:
        """Return a socket that is being connected to ``proxy``. Raises OSError."""
        self._requests += 1
        request = self._requests
        future: asyncio.Future[socket.socket] = self._loop.create_future()
        self._sockets[request] = future
        self.send(m.PledgeConnect(request, proxy.port, proxy.address, proxy.tcp_port))
        try:
            return await future
        finally:
            self._sockets.pop(request, None)

    def _take_socket(self, message: m.PledgeSocket, descriptors: list[int]) -> None:
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        future = self._sockets.get(message.request)
        if future is None or future.done():
            for sock in sockets:  # nobody waits for it any more
                sock.close()
        elif sockets:
            future.set_result(sockets[0])
        else:
            future.set_exception(OSError(0, message.problem or "no socket"))

    # --- state -----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        now = self._loop.time()
        return {
            "serial_number": None if self._device is None else self._device.serial_number,
            "former_name": None if self._former is None else str(self._former[0].node_name),
            "proxies": [
                {
                    "port": self._ports[item.proxy.port].name if item.proxy.port in self._ports else None,
                    "address": str(item.proxy.address),
                    "tcp_port": item.proxy.tcp_port,
                    "heard_by": [way.value for way in self._heard.ways(item.proxy)],
                    "state": item.state.value,
                    "failures": item.failures,
                    "retry_in": None if item.retry_at is None else round(item.retry_at - now, 1),
                    "reason": item.reason,
                }
                for item in self._scheduler.status(now)
            ],
            "dropped_announcements": self._scheduler.dropped,
            "mdns": {
                port.name: dict(port.browser.counters)
                for port in self._ports.values()
                if port.browser is not None
            },
        }

    def shutdown(self) -> None:
        """Give up what is under way, and end."""
        for task in self._attempts.values():
            task.cancel()
        self.stop()
