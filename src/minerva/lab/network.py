"""The wires of a lab: a namespace for the host of each node, veth pairs for links, bridges for LANs."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from minerva.core.errors import UsageError
from minerva.lab.topology import Segment, SegmentKind, Topology
from minerva.linux import namespace
from minerva.linux.namespace import Namespace
from minerva.linux.netlink import Netlink

log = logging.getLogger(__name__)

_BRIDGE = "br0"
_NEIGHBOUR_TABLE = Path("/proc/sys/net/ipv6/neigh/default")


def namespace_prefix(lab: str) -> str:
    """Return what the names of all namespaces of the lab called ``lab`` begin with."""
    return f"lab-{lab}-"


class Network:
    """The namespaces and wires of one lab."""

    def __init__(self, lab: str, topology: Topology) -> None:
        self.lab = lab
        self.topology = topology
        self.hosts: dict[str, Namespace] = {}
        self.lans: dict[str, Namespace] = {}
        self._netlinks: dict[str, Netlink] = {}

    async def build(self) -> None:
        """Make everything, and set it up. Raises LinuxError, UsageError."""
        prefix = namespace_prefix(self.lab)
        if left := namespace.names(prefix):
            raise UsageError(
                f"the namespace {left[0]} of a lab called {self.lab!r} is still there: "
                f"'minerva lab down {self.lab}' removes it"
            )
        for node in self.topology.nodes:
            self.hosts[node.name] = Namespace.create(f"{prefix}{node.name}")
        for segment in self.topology.segments:
            if segment.kind is SegmentKind.LAN:
                self.lans[segment.name] = Namespace.create(f"{prefix}{segment.name}")
        outside = Netlink()
        try:
            for segment in self.topology.segments:
                if segment.kind is SegmentKind.LAN:
                    await self._build_lan(segment, outside)
                else:
                    (near, interface), (far, far_interface) = segment.ends
                    await outside.add_veth_between(
                        interface, self.hosts[near], far_interface, self.hosts[far]
                    )
        finally:
            await outside.close()
        await asyncio.gather(*(self._set_up(item) for item in (*self.hosts.values(), *self.lans.values())))

    async def _build_lan(self, segment: Segment, outside: Netlink) -> None:
        bridge_side = self.lans[segment.name]
        netlink = self._netlink(bridge_side)
        await netlink.add_bridge(_BRIDGE)
        bridge = await netlink.index_of(_BRIDGE)
        for number, (node, interface) in enumerate(segment.ends):
            await outside.add_veth_between(interface, self.hosts[node], f"p{number}", bridge_side)
            await netlink.set_link(await netlink.index_of(f"p{number}"), master=bridge)

    async def _set_up(self, where: Namespace) -> None:
        netlink = self._netlink(where)
        for link in await netlink.links():
            await netlink.set_link(link.index, state="up")

    def _netlink(self, where: Namespace) -> Netlink:
        return self._netlinks.setdefault(where.name, Netlink(where))

    async def cut(self, segment: Segment) -> None:
        """Take both ends of a link down, as if somebody had pulled the cable."""
        for node, interface in segment.ends:
            netlink = self._netlink(self.hosts[node])
            await netlink.set_link(await netlink.index_of(interface), state="down")

    def capture_points(self, segment: Segment) -> list[tuple[Namespace, str, bool]]:
        """Return where to capture so that every packet of the segment is seen once.

        Each point is a namespace, an interface in it, and whether to take only what comes in there.
        """
        if segment.kind is SegmentKind.LAN:
            return [(self.lans[segment.name], f"p{number}", True) for number in range(len(segment.ends))]
        node, interface = segment.ends[0]
        return [(self.hosts[node], interface, False)]

    async def close(self, *, delete: bool) -> None:
        """Close what is open; with ``delete`` remove the namespaces and so all wires."""
        for netlink in self._netlinks.values():
            await netlink.close()
        self._netlinks.clear()
        for where in (*self.hosts.values(), *self.lans.values()):
            if delete:
                where.delete()
            else:
                where.close()


def make_room_for_neighbours(nodes: int) -> None:
    """Let the kernel's neighbour table, one for all namespaces, hold a lab of ``nodes`` on one LAN."""
    wanted = 64 * nodes
    for name in ("gc_thresh3", "gc_thresh2", "gc_thresh1"):
        file = _NEIGHBOUR_TABLE / name
        with suppress(OSError):  # not the machine's first namespace: what is there has to do
            if int(file.read_text()) < wanted:
                file.write_text(f"{wanted}\n")
