"""The wires of a lab: a namespace for the host of each node, veth pairs for links, bridges for LANs."""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress
from pathlib import Path

from minerva.lab.topology import Segment, SegmentKind, Topology
from minerva.linux import offload
from minerva.linux.namespace import Namespace
from minerva.linux.netlink import Netlink

_BRIDGE = "br0"
_FILES, _FILES_PER_NODE = 256, 8  # a node: namespace, netlink, ping, what its start takes for a moment
_NEIGHBOUR_TABLE = Path("/proc/sys/net/ipv6/neigh/default")


def namespace_prefix(lab: str) -> str:
    """Return what the names of all namespaces of the lab called ``lab`` begin with.

    No lab and no node has an underscore in its name: neither another lab's nor, with a second one, that of
    a LAN can be the same.
    """
    return f"lab-{lab}_"


def host_namespace(lab: str, node: str) -> str:
    """Return the name of the namespace that is the host of ``node``."""
    return f"{namespace_prefix(lab)}{node}"


class Network:
    """The namespaces and wires of one lab."""

    def __init__(self, lab: str, topology: Topology) -> None:
        self.lab = lab
        self.topology = topology
        self.hosts: dict[str, Namespace] = {}
        self.lans: dict[str, Namespace] = {}
        self._netlinks: dict[str, Netlink] = {}

    async def build(self) -> None:
        """Make everything, and set it up. Raises LinuxError."""
        for node in self.topology.nodes:
            self.hosts[node.name] = Namespace.create(host_namespace(self.lab, node.name))
        for segment in self.topology.segments:
            if segment.kind is SegmentKind.LAN:
                self.lans[segment.name] = Namespace.create(f"{namespace_prefix(self.lab)}_{segment.name}")
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
        if where.name not in self._netlinks:
            self._netlinks[where.name] = Netlink(where)
        return self._netlinks[where.name]

    async def cut(self, segment: Segment) -> None:
        """Take both ends of a link down, as if somebody had pulled the cable."""
        for node, interface in segment.ends:
            netlink = self._netlink(self.hosts[node])
            await netlink.set_link(await netlink.index_of(interface), state="down")

    def leave_nothing_to_hardware(self, segment: Segment) -> None:
        """Have the segment carry frames as a wire would, for who captures them. Raises OSError."""
        for node, interface in segment.ends:
            with self.hosts[node].entered():
                offload.leave_nothing(interface)

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


def make_room_for_files(topology: Topology) -> None:
    """Raise the limit on open files, as far as we may, to what a lab of this size needs."""
    interfaces = sum(len(segment.ends) for segment in topology.segments)
    wanted = _FILES + _FILES_PER_NODE * len(topology.nodes) + interfaces  # of captures, one each
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def make_room_for_neighbours(nodes: int) -> None:
    """Let the kernel's neighbour table, one for all namespaces, hold a lab of ``nodes`` on one LAN."""
    wanted = 64 * nodes
    for name in ("gc_thresh3", "gc_thresh2", "gc_thresh1"):
        file = _NEIGHBOUR_TABLE / name
        with suppress(OSError):  # not the machine's first namespace: what is there has to do
            if int(file.read_text()) < wanted:
                file.write_text(f"{wanted}\n")
