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
from minerva.linux.sockets import join_group, leave_group
from minerva.rpl.config import Preference
from minerva.rpl.engine import RplNode
from minerva.rpl.events import (
    DaoUnanswered,
    DodagChanged,
    NeighbourHeard,
    NeighbourLost,
    NextHop,
    ParentsChanged,
    RouteAdded,
    RouteRemoved,
    RplDatagram,
)
from minerva.rpl.messages import ALL_RPL_NODES
from minerva.rpl.status import RplStatus

log = logging.getLogger(__name__)

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
        self._node: RplNode | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._names: dict[int, str] = {}
        self._unsent = 0

    def handle(self, message: Message, descriptors: list[int]) -> bool:
        if isinstance(message, PlaneStart) and self._node is None and len(descriptors) == 1:
            self._start(message, descriptors[0])
        elif self._node is not None and isinstance(message, InterfaceUp):
            self._interface_up(self._node, message)
        elif self._node is not None and isinstance(message, InterfaceDown):
            self._interface_down(self._node, message.interface)
        else:
            return False
        self._pump()
        return True

    def _start(self, start: PlaneStart, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._loop.add_reader(self._socket, self._readable)
        self._node = RplNode(
            dodag_id=start.address,
            prefix=start.prefix,
            preference=Preference(start.preference),
            random=random.Random(),
        )

    def _interface_up(self, node: RplNode, message: InterfaceUp) -> None:
        assert self._socket is not None
        try:
            join_group(self._socket, ALL_RPL_NODES, message.interface)
        except OSError as error:  # it has gone again; the word of that is on its way
            log.error("%s: cannot listen to RPL: %s", message.name, error.strerror)
            return
        self._names[message.interface] = message.name
        node.interface_up(message.interface, message.link_local, message.rank_factor, self._loop.time())

    def _interface_down(self, node: RplNode, interface: int) -> None:
        assert self._socket is not None
        # Memberships count against the socket also when their interface is gone.
        leave_group(self._socket, ALL_RPL_NODES, interface)
        self._names.pop(interface, None)
        node.interface_down(interface, self._loop.time())

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

    def _send(self, out: RplDatagram) -> None:
        assert self._socket is not None
        control = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO.pack(bytes(16), out.interface))]
        try:
            self._socket.sendmsg([out.data], control, 0, (str(out.destination), 0, 0, out.interface))
        except OSError as error:
            self._unsent += 1
            log.debug("send on %s: %s", self._name(out.interface), error.strerror)

    def _on_event(self, event: object) -> None:
        match event:
            case RouteAdded():
                self.send(RouteAdd(event.prefix, event.interface, event.next_hop))
            case RouteRemoved():
                self.send(RouteRemove(event.prefix, event.interface))
            case DodagChanged():
                log.info("%s of DODAG %s: %s", event.role.value, event.dodag_id, event.cause.value)
            case ParentsChanged() if event.parents:
                parents = ", ".join(self._name(parent.interface) for parent in event.parents)
                log.info("rank %d, parents: %s", event.rank, parents)
            case NeighbourHeard():
                log.info("%s speaks RPL", self._name(event.interface))
            case NeighbourLost():
                log.info("the router behind %s is gone: %s", self._name(event.interface), event.cause.value)
            case DaoUnanswered():
                log.warning(
                    "the router behind %s does not take our routes; trying again in %.1f s",
                    self._name(event.interface),
                    event.retry_in,
                )

    def _name(self, interface: int) -> str:
        return self._names.get(interface, f"interface {interface}")

    def _expire(self) -> None:
        self._timer = None
        if self._node is not None:
            self._node.on_timer(self._loop.time())
            self._pump()

    def state(self) -> dict[str, Any]:
        if self._node is None:
            return {}
        status = self._node.status(self._loop.time())
        return self._describe(status) | {"unsent": self._unsent}

    def _describe(self, status: RplStatus) -> dict[str, Any]:
        def hop(item: NextHop) -> dict[str, str]:
            return {"interface": self._name(item.interface), "next_hop": str(item.address)}

        return {
            "role": status.role.value,
            "dodag_id": str(status.dodag_id),
            "version": status.version,
            "grounded": status.grounded,
            "rank": status.rank,
            "preference": int(status.preference),
            "root_preference": status.root_preference,
            "preferred_parent": hop(status.parents[0]) if status.parents else None,
            "parents": [hop(parent) for parent in status.parents],
            "neighbours": [
                {
                    "interface": self._name(item.interface),
                    "address": str(item.address) if item.address is not None else None,
                    "rank": item.rank,
                    "synchronized": item.synchronized,
                    "suspicious": item.suspicious,
                    "targets": item.targets,
                }
                for item in status.neighbours
            ],
            "routes": [{"prefix": str(prefix)} | hop(to) for prefix, to in sorted(status.routes.items())],
            "sent": status.sent,
            "dropped": status.dropped,
        }

    def shutdown(self) -> None:
        """Tell the neighbours that all routes through here end, then end."""
        if self._node is not None:
            self._node.shutdown(self._loop.time())
            self._pump()
        self.stop()
