"""Channels in the kernel: the TUN interface in the ACP namespace, the ESP socket in the link namespace."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any

from minerva.connect.acp import AcpNamespace
from minerva.connect.ports import DEVICE, Port
from minerva.connect.state import NodeState
from minerva.esp.packet import inner_mtu
from minerva.linux import sockets
from minerva.linux.errors import LinuxError
from minerva.linux.tun import open_tun

log = logging.getLogger(__name__)


@dataclass
class Channel:
    """What the kernel holds for the channel between one port and one peer's link-local address."""

    number: int
    port: Port
    peer: IPv6Address
    peer_name: str
    interface: str
    link_local: IPv6Address
    index: int = 0
    mtu: int = 0

    def status(self) -> dict[str, Any]:
        """Return what the kernel's side of the channel is, for ``minerva status``."""
        return {
            "channel": self.number,
            "interface": self.interface,
            "port": self.port.name,
            "local": str(self.port.link_local),
            "peer": str(self.peer),
            "peer_name": self.peer_name,
            "inner_link_local": str(self.link_local),
            "mtu": self.mtu,
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


async def set_up(
    number: int,
    port: Port,
    peer: IPv6Address,
    peer_name: str,
    state: NodeState,
    acp: AcpNamespace,
) -> tuple[Channel, tuple[int, int]]:
    """Make a channel's interface and ESP socket.

    Return the channel and the descriptors (TUN, ESP), which the caller hands on and closes. Raises
    LinuxError; then nothing is left.
    """
    if port.namespace is None or port.netlink is None or port.link_local is None:
        raise LinuxError(f"port {port.name} is gone")
    if acp.namespace is None or acp.netlink is None:
        raise LinuxError("the ACP namespace is gone")
    mtu = inner_mtu(port.link.mtu)
    link_local = state.channel_link_local(port.name, peer)
    # Also the interface of a channel that has just ended may still be there.
    taken = {link.name for link in await acp.netlink.links()}
    channel = Channel(
        number, port, peer, peer_name, interface_name(port.link_local, peer, taken), link_local, mtu=mtu
    )
    try:
        with port.namespace.entered():
            esp = sockets.esp_socket(DEVICE, port.index, port.link_local, peer).detach()
    except OSError as error:
        raise LinuxError(f"cannot open an ESP socket on {port.name}: {error.strerror}") from error
    tun = -1
    try:
        with acp.namespace.entered():
            tun = open_tun(channel.interface)
        channel.index = await acp.netlink.index_of(channel.interface)
        await acp.netlink.set_link(channel.index, mtu=mtu)
        await acp.netlink.add_address(channel.index, link_local, 64)
        await acp.netlink.set_link(channel.index, state="up")
        if not await port.netlink.pin_neighbour(port.index, peer):
            log.info("no neighbour entry to pin for %s on %s", peer, port.name)
    except BaseException:
        os.close(esp)
        if tun >= 0:
            os.close(tun)
        raise
    return channel, (tun, esp)
