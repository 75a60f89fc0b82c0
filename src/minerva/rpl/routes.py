"""The routes a node wants installed, and the events that keep a copy of them."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Network

from minerva.rpl.events import NextHop, RouteAdded, RouteRemoved


class RouteTable:
    """One route per prefix. ``report`` gets every change, in order: whoever applies them has this table."""

    def __init__(self, report: Callable[[RouteAdded | RouteRemoved], None]) -> None:
        self._report = report
        self._routes: dict[IPv6Network, NextHop] = {}

    def set(self, prefix: IPv6Network, hop: NextHop | None) -> None:
        """Let ``prefix`` lead to ``hop``, or nowhere."""
        old = self._routes.get(prefix)
        if hop == old:
            return
        if hop is not None:
            self._routes[prefix] = hop
            self._report(RouteAdded(prefix, hop.interface, hop.address))
        elif old is not None:
            del self._routes[prefix]
            self._report(RouteRemoved(prefix, old.interface, old.address))

    def clear(self) -> None:
        """Remove every route."""
        for prefix in list(self._routes):
            self.set(prefix, None)

    def copy(self) -> dict[IPv6Network, NextHop]:
        """Return all routes."""
        return dict(self._routes)
