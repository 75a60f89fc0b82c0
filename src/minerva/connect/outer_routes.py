"""What unique local outer addresses need of root: routes to neighbours, and the firewall's consent.

The abutment decides who is reached by which address (:mod:`minerva.adjacency.outer`), by what strangers
announce. Here is checked that it asks for nothing but host routes to such addresses, each through a
link-local address of its own on that port, and for no more than an honest one could.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from ipaddress import IPv6Address, IPv6Network
from typing import Any

from minerva.adjacency.outer import MAX_ROUTES, PREFIX_LENGTH
from minerva.connect import messages as m
from minerva.connect.ipc import Message
from minerva.connect.ports import Port, Ports
from minerva.core.addresses import UNIQUE_LOCAL
from minerva.linux.errors import LinuxError
from minerva.linux.firewall import outer_neighbours
from minerva.linux.nftables import Nftables

log = logging.getLogger(__name__)

_Routes = dict[IPv6Address, IPv6Address]  # unique local address of a neighbour: its link-local address


class OuterRoutes:
    """The routes to neighbours with unique local addresses, on all ports.

    ``tell`` sends to the abutment; ``later`` has something done in its turn, in all that concerns channels.
    """

    def __init__(
        self,
        ports: Ports,
        tell: Callable[[Message], None],
        later: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._ports = ports
        self._tell = tell
        self._later = later
        self._routes: dict[int, _Routes] = {}  # by the number of the port: those in the kernel

    def next_hop(self, port: Port, peer: IPv6Address) -> IPv6Address:
        """Return the link-local address that leads to a neighbour. Raises LinuxError if nothing does."""
        if peer.is_link_local:
            return peer
        try:
            return self._routes[port.number][peer]
        except KeyError:
            raise LinuxError(f"{peer} is no neighbour's address on port {port.name}") from None

    def want(self, message: m.OuterRoutes) -> bool:
        """Have these routes and no others; return whether an honest abutment would ask for them."""
        port = self._ports.by_number(message.port)
        if port is None or not port.announced:
            return True  # it went while the message was under way
        wanted = {route.address: route.via for route in message.routes}
        if not len(message.routes) == len(wanted) == len(set(wanted.values())) <= MAX_ROUTES:
            return False
        if port.ula is None or port.link_local in wanted.values():
            return False
        own = IPv6Network((port.ula, PREFIX_LENGTH), strict=False)
        if not all(to in UNIQUE_LOCAL and to not in own and via.is_link_local for to, via in wanted.items()):
            return False
        self._later(self._open(port, wanted))
        return True

    def port_down(self, port: Port) -> None:
        """Remove what there is on a port, before it can come up again."""
        if port.ula is not None:  # something may still be under way
            self._later(self._set(port, {}))

    def close_all(self) -> None:
        """Remove everything: the abutment is gone, and its successor has heard nobody yet."""
        for port in self._ports.ports.values():
            self.port_down(port)

    async def close(self) -> None:
        """Remove everything at once, as this node is no member any more."""
        for port in self._ports.ports.values():
            if self._routes.get(port.number):
                try:
                    await self._set(port, {})
                except LinuxError as error:  # the rest must go all the same
                    log.error("%s", error)

    async def _open(self, port: Port, wanted: _Routes) -> None:
        try:
            await self._set(port, wanted)
        finally:
            self._tell(m.OuterRoutesOpened(port.number, tuple(self._routes.get(port.number, ()))))

    async def _set(self, port: Port, wanted: _Routes) -> None:
        """Make the routes of a port those that are wanted. Raises LinuxError; then some of them are."""
        before = self._routes.pop(port.number, {})
        if port.netlink is None or port.namespace is None:
            return  # all of it went with the namespace
        routes = self._routes[port.number] = {to: via for to, via in before.items() if wanted.get(to) == via}
        # Nobody is let in whom no answer would reach, nor longer than that.
        self._let_in(port, routes)
        for to in before.keys() - routes.keys():
            await port.netlink.delete_route(IPv6Network((to, 128)), port.index)
        try:
            for to in wanted.keys() - routes.keys():
                host, via = IPv6Network((to, 128)), wanted[to]
                await port.netlink.replace_route(host, index=port.index, via=via, source=port.ula)
                routes[to] = via
        finally:
            self._let_in(port, routes)

    def _let_in(self, port: Port, routes: _Routes) -> None:
        if port.namespace is None:
            raise LinuxError(f"port {port.name} is gone")
        with port.namespace.entered(), Nftables() as nftables:
            nftables.run(outer_neighbours(routes))
