"""The ACP namespace of a node and acp0, the host's interface into it."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv6Address, IPv6Network
from typing import Any

from minerva.connect.state import NodeState
from minerva.core.addresses import UNIQUE_LOCAL
from minerva.linux import namespace
from minerva.linux.errors import LinuxError
from minerva.linux.firewall import ACP_TABLE, acp_policy
from minerva.linux.namespace import Namespace
from minerva.linux.netlink import Link, Netlink
from minerva.linux.nftables import Nftables, firewall_counters
from minerva.pki.address import AcpAddress

log = logging.getLogger(__name__)

HOST_SIDE = "host0"
"""The name, in the ACP namespace, of the other end of acp0."""

TABLE = 7017
PREFERENCE = 1
"""Routing table of the host for the ACP's prefix, and the preference of the rule that looks it up."""

_NEXT_HOP = IPv6Address("fe80::1")  # the ACP's end of the pair
_HOST_END = IPv6Address("fe80::2")
_DEFAULT = IPv6Network("::/0")

ACP_SYSCTLS: dict[str, str | int] = {
    **namespace.NOTHING_LEARNT,
    "ipv6/conf/all/forwarding": 1,
}


class AcpNamespace:
    """The namespace in which the ACP's traffic, and nothing else, is routed (RFC 8994 section 6.10)."""

    def __init__(self, state: NodeState, address: AcpAddress, interface: str) -> None:
        self._state = state
        self._interface = interface
        self.address = address
        self.host_address = address.with_v(1).address
        self.prefix = address.ula_prefix
        self.namespace: Namespace | None = None
        self.netlink: Netlink | None = None
        self._host_side = 0  # its index, once it is set up
        self._acp0: tuple[int, str] | None = None  # index and MAC address in the host
        self._acp0_lock = asyncio.Lock()
        self._wanted = False
        self.acp0_problem: str | None = "not set up yet"

    async def open(self) -> None:
        """Make the namespace with the node's own address in it. Raises LinuxError."""
        self.namespace = Namespace.create(self._state.namespace("acp"))
        with self.namespace.entered():
            namespace.write_sysctls(ACP_SYSCTLS)
            with Nftables() as nftables:
                nftables.run(acp_policy(HOST_SIDE, self.host_address, self.address.address))
        self.netlink = Netlink(self.namespace)
        loopback = await self.netlink.index_of("lo")
        await self.netlink.set_link(loopback, state="up")
        await self.netlink.add_address(loopback, self.address.address, 128)
        # What is for us but for no address in use ends here, not in a loop (RFC 8994 section 6.12.1.11).
        await self.netlink.replace_blackhole(self.address.prefix)

    async def add_route(self, prefix: IPv6Network, interface: int, next_hop: IPv6Address) -> None:
        """Install a route that RPL computed. Raises LinuxError; refuses what RPL has no business with."""
        acp = prefix.subnet_of(UNIQUE_LOCAL) and prefix.prefixlen >= 48
        if prefix != _DEFAULT and (not acp or prefix.overlaps(self.address.prefix)):
            raise LinuxError(f"routing asked for a route to {prefix}, which is none of the ACP's, or our own")
        if not next_hop.is_link_local:
            raise LinuxError(f"routing asked for the next hop {next_hop}, which is not link-local")
        assert self.netlink is not None
        await self.netlink.replace_route(prefix, index=interface, via=next_hop, onlink=True)

    async def remove_route(self, prefix: IPv6Network, interface: int) -> None:
        """Remove a route that RPL installed, of an interface that is a channel. Raises LinuxError."""
        assert self.netlink is not None
        await self.netlink.delete_route(prefix, interface)

    async def flush_routes(self) -> None:
        """Remove all that RPL installed: its process is gone and knows nothing of them any more."""
        assert self.netlink is not None
        for prefix, interface in await self.netlink.our_routes():
            if interface is not None and prefix != self.address.prefix and interface != self._host_side:
                await self.netlink.delete_route(prefix, interface)

    async def reconcile_acp0(self, host: Netlink) -> None:
        """Make sure that acp0, its address, its route and its rule are there, whatever the host did to them.

        What keeps it from that is in ``acp0_problem`` afterwards; ``None`` means that all is well.
        """
        async with self._acp0_lock:
            if not self._wanted:
                return
            try:
                await self._ensure_acp0(host)
            except LinuxError as error:
                if self.acp0_problem != str(error):
                    log.error("%s: %s", self._interface, error)
                self.acp0_problem = str(error)
            else:
                self.acp0_problem = None

    async def _ensure_acp0(self, host: Netlink) -> None:
        assert self.netlink is not None
        acp0 = await self._find_acp0(host)
        if acp0 is None:
            await self._make_acp0(host)
            acp0 = await self._find_acp0(host)
            if acp0 is None:
                raise LinuxError("it went away while it was made")
            log.info("%s is up with %s", self._interface, self.host_address)
        if acp0.name != self._interface:
            raise LinuxError(f"somebody calls it {acp0.name} now; the guard knows it as {self._interface}")
        await self._ensure_inside(self.netlink)
        if not acp0.up:
            await host.set_link(acp0.index, state="up")
        if self.host_address not in await host.addresses(acp0.index):
            await host.add_address(acp0.index, _HOST_END, 64)
            await host.add_address(acp0.index, self.host_address, 128)
        if (self.prefix, acp0.index) not in await host.our_routes(TABLE):
            await host.replace_route(
                self.prefix,
                index=acp0.index,
                via=_NEXT_HOP,
                table=TABLE,
                source=self.host_address,
                onlink=True,
            )
        if not await host.has_rule(PREFERENCE, TABLE):
            await host.add_rule(PREFERENCE, TABLE)

    async def _find_acp0(self, host: Netlink) -> Link | None:
        """Return our interface, by its alias or, had it lost that, by what we remember of it."""
        links = await host.links()
        for link in links:
            if link.alias == self._alias or (link.index, link.mac) == self._acp0:
                self._acp0 = (link.index, link.mac)
                return link
        if any(link.name == self._interface for link in links):
            raise LinuxError(
                "the host already has an interface of that name that is not this node's; "
                "remove it or set acp.interface in minerva.toml"
            )
        return None

    @property
    def _alias(self) -> str:
        return f"minerva:{self._state.tag}"

    async def _make_acp0(self, host: Netlink) -> None:
        assert self.namespace is not None
        await host.add_veth(self._interface, HOST_SIDE, self.namespace, alias=self._alias)

    async def _ensure_inside(self, netlink: Netlink) -> None:
        """Make sure of the ACP's end of the pair."""
        link = next((link for link in await netlink.links() if link.name == HOST_SIDE), None)
        if link is None:
            raise LinuxError("its other end is gone from the ACP namespace")
        if link.index == self._host_side and link.up:
            return
        await netlink.add_address(link.index, _NEXT_HOP, 64)
        await netlink.set_link(link.index, state="up")
        to_host = IPv6Network((self.host_address, 128))
        await netlink.replace_route(to_host, index=link.index, via=_HOST_END, onlink=True)
        self._host_side = link.index

    async def allow_acp0(self, allowed: bool, host: Netlink) -> None:
        """Let acp0 exist, or take it away at once, for as long as it is not guarded. Raises LinuxError."""
        self._wanted = allowed
        if not allowed:
            self.acp0_problem = "it is not guarded"
            async with self._acp0_lock:
                await self._remove_acp0(host)

    async def _remove_acp0(self, host: Netlink) -> None:
        for link in await host.links():
            if link.alias == self._alias or (link.index, link.mac) == self._acp0:
                await host.delete_link(link.index)
        if self._acp0 is not None:
            await host.delete_rule(PREFERENCE, TABLE)
        self._acp0, self._host_side = None, 0

    async def close(self, host: Netlink) -> None:
        """Remove acp0 with all that belongs to it, and the namespace."""
        await self.allow_acp0(False, host)
        if self.netlink is not None:
            await self.netlink.close()
        if self.namespace is not None:
            self.namespace.delete()
        self.namespace = self.netlink = None

    def status(self) -> dict[str, Any]:
        """Return the state of acp0 for ``minerva status``."""
        return {
            "interface": self._interface,
            "address": str(self.host_address),
            "prefix": str(self.prefix),
            "namespace": self.namespace.name if self.namespace else None,
            "problem": self.acp0_problem,
            "firewall": firewall_counters(self.namespace, ACP_TABLE),
        }
