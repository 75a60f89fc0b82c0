"""Links, addresses, routes, rules and neighbours of one namespace, by rtnetlink.

Only the supervisor and the lab import this: pyroute2 costs 23 MiB.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import nullcontext
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network
from typing import Any, TypeVar

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from minerva.linux.errors import LinuxError
from minerva.linux.namespace import Namespace

ROUTE_PROTOCOL = 197
"""Marks our routes and rules (``ip route show proto 197``); no routing daemon uses the number."""

_IFA_F_NODAD = 0x02
_IFA_F_OPTIMISTIC = 0x04
_IFA_F_DADFAILED = 0x08
_IFF_UP = 1
_AF_INET6 = 10
_RTN_BLACKHOLE = "blackhole"
_ARPHRD_ETHER = 1
_LINK_EVENTS, _IPV6_ADDRESS_EVENTS, _IPV6_RULE_EVENTS = 1 << 0, 1 << 8, 1 << 18  # rtnetlink groups, less 1

_CLOSING_TURNS, _CLOSING_TURN_SECONDS = 500, 0.002

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as the kernel describes it."""

    index: int
    name: str
    kind: str | None  # None: not a virtual interface, as far as the kernel says
    mac: str
    permanent_mac: str | None
    mtu: int
    up: bool
    carrier: bool
    ethernet: bool
    alias: str | None


def _link(message: Any) -> Link:
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND"),
        mac=message.get_attr("IFLA_ADDRESS") or "",
        permanent_mac=message.get_attr("IFLA_PERM_ADDRESS"),
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & _IFF_UP),
        carrier=bool(message.get_attr("IFLA_CARRIER")),
        ethernet=message["ifi_type"] == _ARPHRD_ETHER,
        alias=message.get_attr("IFLA_IFALIAS"),
    )


class Netlink:
    """A netlink connection to a namespace. Its methods raise :class:`LinuxError` when the kernel says no."""

    def __init__(self, namespace: Namespace | None = None) -> None:
        """Open a connection to ``namespace``, or to the namespace of the calling thread."""
        self._namespace = namespace
        self._where = namespace.name if namespace else "the host"
        self._route = self._connection()
        self._events: Any = None
        self._dumping = asyncio.Lock()
        self._under_way = 0
        self._closing = False

    def _connection(self) -> Any:
        # pyroute2 could enter a namespace by itself, but forks this whole process to do so.
        with self._namespace.entered() if self._namespace else nullcontext():
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
        return AsyncIPRoute(fileno=sock.detach())

    async def _do(self, what: str, request: Awaitable[_T], *, accept: tuple[int, ...] = ()) -> _T | None:
        if self._closing:
            if asyncio.iscoroutine(request):
                request.close()
            raise LinuxError(f"cannot {what} in {self._where}, which is being left")
        self._under_way += 1
        try:
            return await request
        except NetlinkError as error:
            if error.code in accept:
                return None
            raise LinuxError(f"cannot {what} in {self._where}: {error.args[-1]}") from error
        finally:
            self._under_way -= 1

    async def _dump(self, what: str, request: Awaitable[Any]) -> list[Any]:
        """Return all messages of a dump. The kernel does one at a time for a connection, else it is busy."""
        async with self._dumping:
            self._under_way += 1
            try:
                messages = await self._do(what, request)
                return [] if messages is None else [message async for message in messages]
            finally:
                self._under_way -= 1

    async def subscribe(self) -> None:
        """Start to receive what :meth:`link_changes` yields."""
        # A connection of its own: one that has been used for requests cannot be bound to groups any more.
        self._events = self._connection()
        await self._events.bind(groups=_LINK_EVENTS | _IPV6_ADDRESS_EVENTS | _IPV6_RULE_EVENTS)

    async def link_changes(self) -> AsyncIterator[None]:
        """Yield whenever links, addresses or rules may have changed; also when events were lost."""
        while True:
            try:
                async for _ in self._events.get():
                    yield
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield

    async def links(self) -> list[Link]:
        """Return all interfaces."""
        return [
            _link(message) for message in await self._dump("list the interfaces", self._route.get_links())
        ]

    async def index_of(self, name: str) -> int:
        """Return the index of the interface called ``name``."""
        for link in await self.links():
            if link.name == name:
                return link.index
        raise LinuxError(f"there is no interface {name} in {self._where}")

    async def add_macvlan(self, name: str, parent: int, mac: str, namespace: Namespace) -> None:
        """Make a private macvlan ``name`` on ``parent`` and put it, down, into ``namespace``."""
        await self._do(
            f"put a macvlan on interface {parent}",
            self._route.link(
                "add",
                ifname=name,
                kind="macvlan",
                link=parent,
                macvlan_mode="private",
                address=mac,
                net_ns_fd=namespace.descriptor,
            ),
        )

    async def add_xfrm_interface(self, name: str, number: int) -> None:
        """Make the xfrm interface ``name``, down; ``number`` is its index and its if_id.

        Wherever it is moved, its SAs and policies are those of the namespace in which it was made.
        """
        await self._do(
            f"make the xfrm interface {name}",
            self._route.link("add", ifname=name, kind="xfrm", index=number, xfrm_if_id=number),
        )

    async def add_veth(self, name: str, peer: str, peer_namespace: Namespace, alias: str = "") -> None:
        """Make a veth pair: ``name`` here, ``peer`` in ``peer_namespace``; both down."""
        await self._do(
            f"make the interface {name}",
            self._route.link(
                "add",
                ifname=name,
                kind="veth",
                peer={"ifname": peer, "net_ns_fd": peer_namespace.descriptor},
            ),
        )
        if alias:
            await self.set_link(await self.index_of(name), ifalias=alias)

    async def add_veth_between(
        self, name: str, namespace: Namespace, peer: str, peer_namespace: Namespace
    ) -> None:
        """Make a veth pair: ``name`` in ``namespace``, ``peer`` in ``peer_namespace``; both down."""
        await self._do(
            f"make the link {name}",
            self._route.link(
                "add",
                ifname=name,
                kind="veth",
                net_ns_fd=namespace.descriptor,
                peer={"ifname": peer, "net_ns_fd": peer_namespace.descriptor},
            ),
        )

    async def add_bridge(self, name: str) -> None:
        """Make the bridge ``name`` without spanning tree and without multicast snooping."""
        await self._do(
            f"make the bridge {name}",
            self._route.link("add", ifname=name, kind="bridge", br_stp_state=0, br_mcast_snooping=0),
        )

    async def set_link(self, index: int, **attributes: Any) -> None:
        """Set attributes of the interface ``index``: ``state``, ``mtu``, ``ifalias``, ``master`` …"""
        await self._do(
            f"set {attributes} on interface {index}", self._route.link("set", index=index, **attributes)
        )

    async def delete_link(self, index: int) -> None:
        """Delete the interface ``index``; gone already is fine."""
        await self._do(
            f"delete interface {index}",
            self._route.link("del", index=index),
            accept=(errno.ENODEV, errno.ENXIO),
        )

    async def add_address(
        self, index: int, address: IPv6Address, prefix_length: int, *, optimistic: bool = False
    ) -> None:
        """Add an address; with ``optimistic`` checked for duplicates while in use, else not checked."""
        flags = _IFA_F_OPTIMISTIC if optimistic else _IFA_F_NODAD
        await self._do(
            f"add the address {address}",
            self._route.addr("add", index=index, address=str(address), prefixlen=prefix_length, flags=flags),
            accept=(errno.EEXIST,),
        )

    async def addresses(self, index: int) -> dict[IPv6Address, bool]:
        """Return the IPv6 addresses of an interface, each with whether it was found to be a duplicate."""
        found = {}
        for message in await self._dump(
            "list addresses", self._route.get_addr(family=_AF_INET6, index=index)
        ):
            flags = message.get_attr("IFA_FLAGS") or message["flags"]
            found[IPv6Address(message.get_attr("IFA_ADDRESS"))] = bool(flags & _IFA_F_DADFAILED)
        return found

    async def replace_route(
        self,
        prefix: IPv6Network,
        *,
        index: int,
        via: IPv6Address | None = None,
        table: int = 254,
        source: IPv6Address | None = None,
        onlink: bool = False,
    ) -> None:
        """Add or replace the route to ``prefix`` through interface ``index``."""
        extra: dict[str, Any] = {}
        if via is not None:
            extra["gateway"] = str(via)
        if source is not None:
            extra["prefsrc"] = str(source)
        if onlink:
            extra["flags"] = "onlink"
        await self._do(
            f"route {prefix} to interface {index}",
            self._route.route(
                "replace",
                dst=str(prefix),
                oif=index,
                table=table,
                proto=ROUTE_PROTOCOL,
                family=_AF_INET6,
                **extra,
            ),
        )

    async def replace_blackhole(self, prefix: IPv6Network) -> None:
        """Add or replace a route that drops what is for ``prefix`` and matches nothing longer."""
        await self._do(
            f"make a black hole for {prefix}",
            self._route.route(
                "replace", dst=str(prefix), type=_RTN_BLACKHOLE, proto=ROUTE_PROTOCOL, family=_AF_INET6
            ),
        )

    async def delete_route(self, prefix: IPv6Network, index: int) -> None:
        """Delete our route to ``prefix`` through interface ``index``; gone already is fine."""
        await self._do(
            f"delete the route to {prefix}",
            self._route.route("del", dst=str(prefix), oif=index, proto=ROUTE_PROTOCOL, family=_AF_INET6),
            accept=(errno.ESRCH, errno.ENODEV, errno.ENOENT),
        )

    async def our_routes(self, table: int = 254) -> list[tuple[IPv6Network, int | None]]:
        """Return the routes that carry our mark in ``table``: prefix and interface index."""
        found = []
        for message in await self._dump("list routes", self._route.get_routes(family=_AF_INET6, table=table)):
            if message["proto"] == ROUTE_PROTOCOL:
                prefix = IPv6Network((message.get_attr("RTA_DST") or "::", message["dst_len"]))
                found.append((prefix, message.get_attr("RTA_OIF")))
        return found

    async def has_rule(self, preference: int, table: int) -> bool:
        """Return whether the policy rule is there."""
        for message in await self._dump("list rules", self._route.get_rules(family=_AF_INET6)):
            if message.get_attr("FRA_PRIORITY") == preference and message.get_attr("FRA_TABLE") == table:
                return True
        return False

    async def add_rule(self, preference: int, table: int) -> None:
        """Have the routes of ``table`` looked up at ``preference``."""
        await self._do(
            f"add the routing rule {preference}",
            self._route.rule(
                "add", family=_AF_INET6, priority=preference, table=table, FRA_PROTOCOL=ROUTE_PROTOCOL
            ),
            accept=(errno.EEXIST,),
        )

    async def delete_rule(self, preference: int, table: int) -> None:
        """Delete the policy rule; gone already is fine."""
        await self._do(
            f"delete the routing rule {preference}",
            self._route.rule("del", family=_AF_INET6, priority=preference, table=table),
            accept=(errno.ENOENT, errno.ESRCH),
        )

    async def pin_neighbour(self, index: int, address: IPv6Address) -> bool:
        """Make the neighbour entry of ``address`` permanent, so that a flood cannot displace it.

        Return whether there was an entry with a link-layer address.
        """
        for message in await self._dump(
            "list neighbours", self._route.get_neighbours(family=_AF_INET6, ifindex=index)
        ):
            mac = message.get_attr("NDA_LLADDR")
            if mac and IPv6Address(message.get_attr("NDA_DST")) == address:
                await self._do(
                    f"pin the neighbour {address}",
                    self._route.neigh(
                        "replace",
                        family=_AF_INET6,
                        dst=str(address),
                        lladdr=mac,
                        ifindex=index,
                        state="permanent",
                    ),
                )
                return True
        return False

    async def delete_neighbour(self, index: int, address: IPv6Address) -> None:
        """Forget the neighbour entry of ``address``."""
        await self._do(
            f"forget the neighbour {address}",
            self._route.neigh("del", family=_AF_INET6, dst=str(address), ifindex=index),
            accept=(errno.ENOENT, errno.ENODEV, errno.ENXIO),
        )

    async def close(self) -> None:
        """Close the connection, after what is under way: of that, no answer would ever come."""
        self._closing = True
        for _ in range(_CLOSING_TURNS):
            if not self._under_way:
                break
            await asyncio.sleep(_CLOSING_TURN_SECONDS)
        for connection in filter(None, (self._route, self._events)):
            closing = connection.close()
            if asyncio.iscoroutine(closing):
                await closing
