"""Drives the RPL core on one raw ICMPv6 socket for all channels."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Any

from minerva.connect.ipc import Message
from minerva.connect.messages import InterfaceUp, PlaneStart, RouteAdd, RouteRemove
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


class RplRunner:
    """Routing for ``start``, on the raw socket ``descriptor``.

    ``send(message)`` asks the supervisor for routes; ``heard(interface, address)`` is told of neighbours;
    ``name(interface)`` names an interface for people.
    """

    def __init__(
        self,
        start: PlaneStart,
        descriptor: int,
        *,
        send: Callable[[Message], None],
        heard: Callable[[int, IPv6Address], None],
        name: Callable[[int], str],
    ) -> None:
        self._send_message = send
        self._heard = heard
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._socket = socket.socket(fileno=descriptor)
        self._node = RplNode(
            dodag_id=start.address,
            prefix=start.prefix,
            preference=Preference(start.preference),
            random=random.Random(),
        )
        self._loop.add_reader(self._socket, self._readable)

    def prefer(self, preference: Preference) -> None:
        """Want to be the root as much as this."""
        self._node.set_preference(preference, self._loop.time())
        self.pump()

    def interface_up(self, message: InterfaceUp) -> bool:
        """Route on a channel; return whether that can be."""
        try:
            join_group(self._socket, ALL_RPL_NODES, message.interface)
        except OSError as error:  # it has gone again; the word of that is on its way
            log.error("%s: cannot listen to RPL: %s", message.name, error.strerror)
            return False
        self._node.interface_up(message.interface, message.link_local, message.rank_factor, self._loop.time())
        self.pump()
        return True

    def interface_down(self, interface: int) -> None:
        """Route around a channel that is gone."""
        # Memberships count against the socket also when their interface is gone.
        leave_group(self._socket, ALL_RPL_NODES, interface)
        self._node.interface_down(interface, self._loop.time())
        self.pump()

    def _readable(self) -> None:
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
        self.pump()

    def pump(self) -> None:
        """Send, take events, arm the timer. To be called after using the node."""
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
        control = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO.pack(bytes(16), out.interface))]
        try:
            self._socket.sendmsg([out.data], control, 0, (str(out.destination), 0, 0, out.interface))
        except OSError as error:
            self._unsent += 1
            log.debug("send on %s: %s", self._name(out.interface), error.strerror)

    def _on_event(self, event: object) -> None:
        match event:
            case RouteAdded():
                self._send_message(RouteAdd(event.prefix, event.interface, event.next_hop))
            case RouteRemoved():
                self._send_message(RouteRemove(event.prefix, event.interface))
            case DodagChanged():
                log.info("%s of DODAG %s: %s", event.role.value, event.dodag_id, event.cause.value)
            case ParentsChanged() if event.parents:
                parents = ", ".join(self._name(parent.interface) for parent in event.parents)
                log.info("rank %d, parents: %s", event.rank, parents)
            case NeighbourHeard():
                log.info("%s speaks RPL", self._name(event.interface))
                self._heard(event.interface, event.address)
            case NeighbourLost():
                log.info("the router behind %s is gone: %s", self._name(event.interface), event.cause.value)
            case DaoUnanswered():
                log.warning(
                    "the router behind %s does not take our routes; trying again in %.1f s",
                    self._name(event.interface),
                    event.retry_in,
                )

    def _expire(self) -> None:
        self._timer = None
        self._node.on_timer(self._loop.time())
        self.pump()

    def state(self) -> dict[str, Any]:
        """Return the state for ``minerva status``."""
        return self._describe(self._node.status(self._loop.time())) | {"unsent": self._unsent}

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
        """Tell the neighbours that all routes through here end."""
        self._node.shutdown(self._loop.time())
        self.pump()
