"""Channels as the supervisor sees them, and what it wants of a data plane."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any, Protocol

from minerva.connect.acp import AcpNamespace
from minerva.connect.messages import ChannelKeys, ChannelKeysGone, ChannelOpen
from minerva.connect.ports import Port
from minerva.connect.state import NodeState
from minerva.core.addresses import OwnAddresses
from minerva.esp.packet import inner_mtu
from minerva.linux.errors import LinuxError

log = logging.getLogger(__name__)


@dataclass
class Channel:
    """What the kernel holds for the channel between one port and one peer.

    Its outer addresses are ``local`` and ``peer``; ``next_hop`` is the peer's link-local one in any case.
    """

    number: int
    port: Port
    local: IPv6Address
    peer: IPv6Address
    next_hop: IPv6Address
    peer_name: str
    interface: str
    link_local: IPv6Address
    index: int = 0
    mtu: int = 0
    in_udp: bool = False

    def status(self) -> dict[str, Any]:
        """Return what the kernel's side of the channel is, for ``minerva status``."""
        return {
            "channel": self.number,
            "interface": self.interface,
            "port": self.port.name,
            "local": str(self.local),
            "peer": str(self.peer),
            "peer_name": self.peer_name,
            "inner_link_local": str(self.link_local),
            "mtu": self.mtu,
            "udp_encapsulation": self.in_udp,
        }


def interface_name(ours: IPv6Address, theirs: IPv6Address, taken: set[str]) -> str:
    """Return a name for the interface of a channel: both ends' last four hex digits, ours first.

    Names that are taken get ``_2`` and so on; code finds interfaces by index, never by this.
    """
    base = f"acp_{ours.packed[-2:].hex()}_{theirs.packed[-2:].hex()}"
    number, name = 2, base
    while name in taken:
        # 15 characters is all that the kernel has room for.
        suffix = f"_{number}"
        name = base[: 15 - len(suffix)] + suffix
        number += 1
    return name


async def plan(
    opening: ChannelOpen, port: Port, next_hop: IPv6Address, state: NodeState, acp: AcpNamespace
) -> Channel:
    """Return the channel that the abutment wants; nothing of it is in the kernel yet.

    ``next_hop`` is the link-local address that leads to the peer. Raises LinuxError, EspError.
    """
    if port.link_local is None:
        raise LinuxError(f"port {port.name} is gone")
    if acp.netlink is None:
        raise LinuxError("the ACP namespace is gone")
    # Also the interface of a channel that has just ended may still be there.
    taken = {link.name for link in await acp.netlink.links()}
    return Channel(
        opening.channel,
        port,
        OwnAddresses(port.link_local, port.ula).towards(opening.peer),
        opening.peer,
        next_hop,
        opening.peer_name,
        interface_name(port.link_local, opening.peer, taken),
        state.channel_link_local(port.name, opening.peer),
        mtu=inner_mtu(port.link.mtu, in_udp=opening.in_udp),
        in_udp=opening.in_udp,
    )


async def bring_up(channel: Channel, acp: AcpNamespace) -> None:
    """Configure a channel's interface, which is in the ACP namespace, and set it up. Raises LinuxError."""
    port, netlink = channel.port, acp.netlink
    if netlink is None or port.netlink is None:
        raise LinuxError(f"port {port.name} is gone")
    channel.index = await netlink.index_of(channel.interface)
    await netlink.set_link(channel.index, mtu=channel.mtu)
    await netlink.add_address(channel.index, channel.link_local, 64)
    await netlink.set_link(channel.index, state="up")
    if not await port.netlink.pin_neighbour(port.index, channel.next_hop):
        log.info("no neighbour entry to pin for %s on %s", channel.next_hop, port.name)


class ChannelDataPlane(Protocol):
    """What moves the packets of channels, as the supervisor sees it: in user space, or in the kernel.

    It tells the abutment by itself what IKE must know: traffic, faults, and when it is time for new keys.
    """

    @property
    def name(self) -> str:
        """What it is called in status and configuration."""

    @property
    def ready(self) -> bool:
        """Whether channels can be attached now."""

    def start(self) -> None:
        """Start what is needed before any channel."""

    async def attach(self, channel: Channel) -> None:
        """Make the interface of ``channel`` in the ACP namespace. Raises MinervaError, OSError; then nothing
        is left."""

    def detach(self, channel: Channel) -> None:
        """End a channel: no packet passes any more, its keys and its interface go."""

    def add_keys(self, keys: ChannelKeys) -> None:
        """Let a channel have a further pair of SAs."""

    def remove_keys(self, gone: ChannelKeysGone) -> None:
        """Forget a pair of SAs."""

    async def status(self) -> dict[int, dict[str, Any]]:
        """Return the counters of all channels, by number."""

    async def watch(self) -> None:
        """Look after the channels for as long as the node runs."""

    def close(self) -> None:
        """Let go of everything in link namespaces, which can go only then."""
