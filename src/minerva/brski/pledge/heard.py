"""By which ways a pledge hears a join proxy: one that is heard by several is one proxy."""

from __future__ import annotations

from enum import Enum

from minerva.brski.pledge.scheduler import Proxy


class Way(Enum):
    """How a join proxy makes itself known (RFC 8995 section 4.1, appendix B)."""

    GRASP = "grasp"
    MDNS = "mdns"


class HeardProxies:
    """Until when each proxy is heard, and by which way. Its bound is that of what the ways remember."""

    def __init__(self) -> None:
        self._heard: dict[Proxy, dict[Way, float]] = {}

    def heard(self, proxy: Proxy, way: Way, expires: float) -> float:
        """Note that ``proxy`` is heard by ``way`` until ``expires``; return until when it is by any."""
        ways = self._heard.setdefault(proxy, {})
        ways[way] = expires
        return max(ways.values())

    def lost(self, proxy: Proxy, way: Way) -> float | None:
        """Note that ``proxy`` is not heard by ``way``; return until when it is by another, if by any."""
        ways = self._heard.get(proxy, {})
        ways.pop(way, None)
        if ways:
            return max(ways.values())
        self._heard.pop(proxy, None)
        return None

    def ways(self, proxy: Proxy) -> tuple[Way, ...]:
        """Return by which ways ``proxy`` is heard, in the order in which it first was."""
        return tuple(self._heard.get(proxy, ()))

    def forget_port(self, port: int) -> None:
        """Forget the proxies on ``port``, which is gone."""
        self._heard = {proxy: ways for proxy, ways in self._heard.items() if proxy.port != port}
