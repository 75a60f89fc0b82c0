"""The plane: routing inside the ACP. It lives in the ACP namespace and has no privileges."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import struct
from ipaddress import IPv6Address
from typing import Any

from minerva.connect.child import Child
from minerva.connect.ipc import Message
from minerva.connect.messages import InterfaceDown, InterfaceUp, PlaneStart, RouteAdd, RouteRemove
from minerva.linux.sockets import join_group
from minerva.rpl import engine as rpl

log = logging.getLogger(__name__)

ALL_RPL_NODES = IPv6Address("ff02::1a")

_BATCH = 64
_MAX_MESSAGE = 65_535
_PKTINFO = struct.Struct("@16sI")
_ANCILLARY = socket.CMSG_SPACE(_PKTINFO.size)


class Plane(Child):
    """The plane process: drives the RPL core on one raw ICMPv6 socket for all channels."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._node: rpl.RplNode | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._names: dict[int, str] = {}
        self._unsent = 0

    def handle(self, message: Message, descriptors: list[int]) -> bool:
        if isinstance(message, PlaneStart) and self._node is None and len(descriptors) == 1:
            self._start(message, descriptors[0])
        elif self._node is not None and isinstance(message, InterfaceUp):
            self._interface_up(self._node, message)
        elif self._node is not None and isinstance(message, InterfaceDown):
            self._names.pop(message.interface, None)
            self._node.interface_down(message.interface, self._loop.time())
        else:
            return False
        self._pump()
        return True

    def _start(self, start: PlaneStart, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._loop.add_reader(self._socket, self._readable)
        self._node = rpl.RplNode(
            dodag_id=start.address,
            prefix=start.prefix,
            preference=rpl.Preference(start.preference),
            random=random.Random(),
        )

    def _interface_up(self, node: rpl.RplNode, message: InterfaceUp) -> None:
        assert self._socket is not None
        try:
            join_group(self._socket, ALL_RPL_NODES, message.interface)
        except OSError as error:  # it has gone again; the word of that is on its way
            log.info("%s: cannot listen to RPL: %s", message.name, error.strerror)
            return
        self._names[message.interface] = message.name
        node.interface_up(message.interface, message.link_local, message.rank_factor, self._loop.time())

    def _readable(self) -> None:
        assert self._socket is not None
        assert self._node is not None
        now = self._loop.time()
        for _ in range(_BATCH):
            try:
                data, ancillary, _, (host, *_) = self._socket.recvmsg(_MAX_MESSAGE, _ANCILLARY)
            except BlockingIOError:
                break
            except OSError as error:
                log.debug("receive: %s", error.strerror)
                break
            for level, kind, value in ancillary:
                if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                    destination, interface = _PKTINFO.unpack(value)
                    source = IPv6Address(host.partition("%")[0])
                    self._node.receive(interface, data, source, IPv6Address(destination), now)
        self._pump()

    def _pump(self) -> None:
        if self._node is None:
            return
        now, progress = self._loop.time(), True
        while progress:
            progress = False
            for out in self._node.datagrams_to_send(now):
                self._send(out)
            while (event := self._node.next_event()) is not None:
                progress = True
                self._on_event(event)
        if self._timer is not None:
            self._timer.cancel()
        when = self._node.next_timer()
        self._timer = None if when is None else self._loop.call_at(when, self._expire)

    def _send(self, out: rpl.Outgoing) -> None:
        assert self._socket is not None
        control = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO.pack(bytes(16), out.interface))]
        try:
            self._socket.sendmsg([out.data], control, 0, (str(out.destination), 0, 0, out.interface))
        except OSError as error:
            self._unsent += 1
            log.debug("send on %s: %s", self._names.get(out.interface, out.interface), error.strerror)

    def _on_event(self, event: object) -> None:
        match event:
            case rpl.RouteAdded():
                self.send(RouteAdd(event.prefix, event.interface, event.next_hop))
            case rpl.RouteRemoved():
                self.send(RouteRemove(event.prefix, event.interface))
            case _:
                log.info("%s", event)

    def _expire(self) -> None:
        self._timer = None
        if self._node is not None:
            self._node.on_timer(self._loop.time())
            self._pump()

    def state(self) -> dict[str, Any]:
        if self._node is None:
            return {}
        return self._node.status(self._loop.time(), self._names) | {"unsent": self._unsent}

    def shutdown(self) -> None:
        """Tell the neighbours that all routes through here end, then end."""
        if self._node is not None:
            self._node.shutdown(self._loop.time())
            self._pump()
        self.stop()
