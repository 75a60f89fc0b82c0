"""Ports: the interfaces of the host that the ACP uses, each with a link namespace of its own.

What is opened is opened in an order that leaks nothing: policy and sockets first, then the interface up;
on the way down the interface goes with its namespace, and the policy with it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from minerva.connect import config
from minerva.connect.state import NodeState, link_local_of
from minerva.core.errors import MinervaError
from minerva.esp.packet import inner_mtu
from minerva.grasp.constants import ALL_GRASP_NEIGHBORS, GRASP_LISTEN_PORT
from minerva.ikev2.constants import IKE_PORT
from minerva.linux import namespace, sockets
from minerva.linux.errors import LinuxError
from minerva.linux.firewall import LINK_TABLE, MARKED_IKE_PORT, link_policy, pledge_rules
from minerva.linux.namespace import Namespace
from minerva.linux.netlink import Link, Netlink
from minerva.linux.nftables import Nftables, firewall_counters

log = logging.getLogger(__name__)

DEVICE = "port0"
"""The name of our own interface in every link namespace."""

_DUPLICATE_CHECK_SECONDS = 1.0
_ATTEMPTS_IN_A_ROW = 8
_RETRY_SECONDS, _LONG_RETRY_SECONDS = 10.0, 300.0

LINK_SYSCTLS: dict[str, str | int] = {
    **namespace.NOTHING_LEARNT,
    "ipv6/conf/all/forwarding": 0,
    "ipv6/conf/default/optimistic_dad": 1,
    "ipv6/conf/all/optimistic_dad": 1,
    "ipv6/conf/default/use_optimistic": 1,
    "ipv6/conf/all/use_optimistic": 1,
    "ipv6/icmp/echo_ignore_all": 1,
    "ipv4/conf/all/arp_ignore": 8,
}

DEVICE_SYSCTLS: dict[str, str | int] = {
    # Two nodes with optimistic addresses cannot resolve each other (their solicitations carry no link-layer
    # address, RFC 4429 section 3.2), so duplicate address detection must not take its usual second.
    f"ipv6/neigh/{DEVICE}/retrans_time_ms": 200,
}

_OPTIONAL_SYSCTLS = frozenset(
    f"ipv6/conf/{which}/{name}"
    for which in ("all", "default")
    for name in ("optimistic_dad", "use_optimistic")
)


class PortState(Enum):
    """Where a port stands, in the words that ``minerva status`` uses."""

    OPENING = "opening"
    UP = "up"
    NO_CARRIER = "no carrier"
    FAILED = "failed"


@dataclass
class Port:
    """A port in use."""

    number: int
    link: Link
    state: PortState = PortState.OPENING
    problem: str = ""
    namespace: Namespace | None = None
    netlink: Netlink | None = None
    index: int = 0  # of our own interface, in the link namespace
    mac: str = ""
    link_local: IPv6Address | None = None
    ula: IPv6Address | None = None
    attempt: int = 0
    descriptors: list[socket.socket] = field(default_factory=list)
    announced: bool = False

    @property
    def name(self) -> str:
        """The name of the port in the host."""
        return self.link.name


def why_not(link: Link, settings: config.Ports) -> str | None:
    """Return why ``link`` is not used as a port, in words, or ``None`` if it is (RFC 8994 section 6.4)."""
    if link.alias and link.alias.startswith("minerva:"):
        return "it is Minerva's own"
    if any(fnmatchcase(link.name, pattern) for pattern in settings.exclude):
        return "excluded by the configuration"
    if not link.ethernet:
        return "not Ethernet"
    if any(fnmatchcase(link.name, pattern) for pattern in settings.include):
        return None
    if link.kind is not None:
        return f"a virtual interface ({link.kind}); ports.include in minerva.toml would use it"
    if (device := sysfs(link)) is not None and (device / "phy80211").exists():
        return "Wi-Fi"
    return None


def sysfs(link: Link) -> Path | None:
    """Return the directory of ``link`` in sysfs; ``None`` if what is there is another namespace's."""
    directory = Path("/sys/class/net", link.name)
    try:
        same = int((directory / "ifindex").read_text()) == link.index
    except (OSError, ValueError):
        return None
    return directory if same else None


class Ports:
    """Keeps the ports as the host's interfaces want them.

    ``on_up(port)`` is called when a port can be used, ``on_down(port)`` when it cannot any more (its
    carrier or the port itself is gone). Both must not block. With ``udp_encapsulation`` UDP port 4500 is
    open as well; with ``ula`` each port has a unique local address beside the link-local one.
    """

    def __init__(
        self,
        state: NodeState,
        settings: config.Ports,
        host: Netlink,
        on_up: Callable[[Port], None],
        on_down: Callable[[Port], Awaitable[None]],
        *,
        udp_encapsulation: bool,
        ula: bool,
    ) -> None:
        self._state = state
        self._settings = settings
        self._host = host
        self._on_up = on_up
        self._on_down = on_down
        self._udp_encapsulation = udp_encapsulation
        self._ula = ula
        self._numbers = 0
        self._brought_up: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pledge_rules = pledge_rules(connect=False, mdns=False)
        self._lock = asyncio.Lock()  # ports change by one hand at a time
        self.ports: dict[int, Port] = {}  # by the index of the interface in the host
        self.left_out: dict[str, str] = {}

    async def reconcile(self, links: list[Link]) -> None:
        """Make the ports what the host's interfaces ``links`` say they should be."""
        async with self._lock:
            await self._reconcile(links)

    async def _reconcile(self, links: list[Link]) -> None:
        wanted: dict[int, Link] = {}
        left_out: dict[str, str] = {}
        for link in links:
            if (reason := why_not(link, self._settings)) is None:
                wanted[link.index] = link
            else:
                left_out[link.name] = reason
        self.left_out = left_out
        for index in [index for index in self.ports if index not in wanted]:
            await self._close(self.ports.pop(index))
        opening = []
        for index, link in wanted.items():
            port = self.ports.get(index)
            if port is None:
                self._numbers += 1
                port = self.ports[index] = Port(self._numbers, link)
                opening.append(self._open(port))
            else:
                await self._refresh(port, link)
        await asyncio.gather(*opening)

    async def _refresh(self, port: Port, link: Link) -> None:
        if link.name != port.link.name:
            log.info("port %s is now called %s", port.link.name, link.name)
        before, port.link = port.link, link
        if link.mtu != before.mtu and port.state in (PortState.UP, PortState.NO_CARRIER):
            # Everything on it has been made for the other MTU, and no packet would say so.
            log.info("port %s has an MTU of %d now, and is opened again", port.name, link.mtu)
            if port.announced:
                port.announced = False
                await self._on_down(port)
            await self._dismantle(port)
            await self._open(port)
            return
        usable = link.up and link.carrier
        if port.state is PortState.NO_CARRIER and usable:
            await self._announce(port)
        elif port.state is PortState.UP and not usable:
            port.state, port.announced = PortState.NO_CARRIER, False
            log.info("port %s lost its carrier", port.name)
            await self._on_down(port)

    async def _open(self, port: Port) -> None:
        link = port.link
        try:
            if not link.up and self._settings.bring_up and link.index not in self._brought_up:
                log.info("port %s is down and not configured: setting it up", link.name)
                await self._host.set_link(link.index, state="up")
            self._brought_up.add(link.index)
            inner_mtu(link.mtu)
            await self._build(port)
        except (MinervaError, OSError) as error:
            if port.problem != str(error):
                log.error("port %s cannot be used: %s", link.name, error)
            port.state, port.problem = PortState.FAILED, str(error)
            await self._dismantle(port)
            self._later(_RETRY_SECONDS, self._retry, port)
            return
        if link.up and link.carrier:
            await self._announce(port)
        else:
            port.state = PortState.NO_CARRIER

    async def _build(self, port: Port) -> None:
        port.namespace = Namespace.create(self._state.namespace(port.name))
        permanent = port.link.permanent_mac or port.link.mac
        port.mac = self._state.mac(port.name, permanent, port.attempt)
        port.link_local = link_local_of(port.mac)
        port.ula = self._state.ula(port.name, permanent, port.link_local) if self._ula else None
        with port.namespace.entered():
            namespace.write_sysctls(LINK_SYSCTLS, optional=_OPTIONAL_SYSCTLS)
            with Nftables() as nftables:
                policy = link_policy(
                    DEVICE, port.link_local, udp_encapsulation=self._udp_encapsulation, ula=port.ula
                )
                nftables.run(policy + self._pledge_rules)
        await self._host.add_macvlan(DEVICE, port.link.index, port.mac, port.namespace)
        port.netlink = Netlink(port.namespace)
        port.index = await port.netlink.index_of(DEVICE)
        with port.namespace.entered():
            namespace.write_sysctls(DEVICE_SYSCTLS)
        await port.netlink.add_address(port.index, port.link_local, 64, optimistic=True)
        if port.ula is not None:
            await self._add_ula(port.netlink, port.ula)
        with port.namespace.entered():
            port.descriptors = [
                sockets.multicast_socket(DEVICE, port.index, ALL_GRASP_NEIGHBORS, GRASP_LISTEN_PORT),
                sockets.udp_socket(DEVICE, IKE_PORT),
            ]
            if self._udp_encapsulation:
                port.descriptors.append(sockets.udp_socket(DEVICE, MARKED_IKE_PORT))
        await port.netlink.set_link(port.index, state="up")

    async def _add_ula(self, netlink: Netlink, ula: IPv6Address) -> None:
        # Not on the port itself: the kernel would solicit neighbours from it, who cannot answer there yet.
        loopback = await netlink.index_of("lo")
        await netlink.set_link(loopback, state="up")
        await netlink.add_address(loopback, ula, 128)

    async def _announce(self, port: Port) -> None:
        port.state, port.announced, port.problem = PortState.UP, True, ""
        log.info("port %s is up as %s", port.name, port.link_local)
        self._on_up(port)
        self._later(_DUPLICATE_CHECK_SECONDS, self._check_duplicate, port)

    async def _check_duplicate(self, port: Port) -> None:
        """Give the port another address if somebody else on the link has this one (RFC 4862 5.4)."""
        if port.netlink is None or not port.announced or self.ports.get(port.link.index) is not port:
            return
        if not any((await port.netlink.addresses(port.index)).values()):
            return
        log.warning("port %s: another station already has %s", port.name, port.link_local)
        await self._on_down(port)
        port.announced = False
        await self._dismantle(port)
        port.attempt += 1
        if port.attempt % _ATTEMPTS_IN_A_ROW == 0:
            port.state, port.problem = PortState.FAILED, "somebody on this link claims every address"
            log.error("port %s cannot be used for now: %s", port.name, port.problem)
            self._later(_LONG_RETRY_SECONDS, self._retry, port)
            return
        await self._open(port)

    async def _retry(self, port: Port) -> None:
        if self.ports.get(port.link.index) is port:
            port.state = PortState.OPENING
            await self._open(port)

    async def _close(self, port: Port) -> None:
        log.info("port %s is gone", port.name)
        if port.announced:
            port.announced = False
            await self._on_down(port)
        await self._dismantle(port)

    async def _dismantle(self, port: Port) -> None:
        if port.netlink is not None:
            if port.index:
                await port.netlink.delete_link(port.index)
            await port.netlink.close()
        for sock in port.descriptors:
            sock.close()
        if port.namespace is not None:
            port.namespace.delete()
        port.namespace, port.netlink, port.descriptors, port.index = None, None, [], 0

    def _later(self, delay: float, action: Callable[[Port], Awaitable[None]], port: Port) -> None:
        async def run() -> None:
            await asyncio.sleep(delay)
            try:
                async with self._lock:
                    await action(port)
            except (LinuxError, OSError) as error:
                log.error("port %s: %s", port.name, error)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Close all ports."""
        for task in list(self._tasks):
            task.cancel()
        for port in list(self.ports.values()):
            await self._dismantle(port)
        self.ports.clear()

    def let_pledge(self, *, connect: bool, mdns: bool) -> None:
        """Let a pledge connect to join proxies on all ports, and look for them by multicast DNS, or not.

        Raises LinuxError.
        """
        self._pledge_rules = pledge_rules(connect=connect, mdns=mdns)
        for port in self.ports.values():
            if port.namespace is not None:
                with port.namespace.entered(), Nftables() as nftables:
                    nftables.run(self._pledge_rules)

    def by_number(self, number: int) -> Port | None:
        """Return the port with our number ``number``."""
        return next((port for port in self.ports.values() if port.number == number), None)

    def status(self) -> list[dict[str, Any]]:
        """Return the ports, and the interfaces left out with the reason, for ``minerva status``."""
        used: list[dict[str, Any]] = [
            {
                "name": port.name,
                "state": port.state.value,
                "problem": port.problem or None,
                "link_local": str(port.link_local) if port.link_local else None,
                "ula": str(port.ula) if port.ula else None,
                "mac": port.mac or None,
                "mtu": port.link.mtu,
                "namespace": port.namespace.name if port.namespace else None,
                "attachment": "macvlan",
                "firewall": firewall_counters(port.namespace, LINK_TABLE),
            }
            for port in sorted(self.ports.values(), key=lambda port: port.number)
        ]
        unused = [
            {"name": name, "state": "left out", "problem": reason} for name, reason in self.left_out.items()
        ]
        return used + unused
