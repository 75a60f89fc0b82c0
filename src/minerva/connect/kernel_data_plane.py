"""The data plane of the kernel: per channel an xfrm interface, security associations and two policies.

The interface is created in the link namespace and moved to the ACP namespace; SAs and policies stay behind
and are looked up there, where link-local addresses are unambiguous although an SA knows no interface. Keys
come from the abutment and go to the kernel; they are not kept here.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Final

from minerva.connect import channels
from minerva.connect import messages as m
from minerva.connect.acp import AcpNamespace
from minerva.connect.channels import Channel
from minerva.connect.ipc import Message
from minerva.connect.ports import DEVICE, Port
from minerva.connect.sending import SETTLE_SECONDS, SendingOrder
from minerva.esp.packet import MIN_SPI
from minerva.esp.replay import DEFAULT_WINDOW
from minerva.esp.sa import KEYMAT_SIZE, LAST_SEQUENCE, REKEY_SEQUENCE, DropReason
from minerva.ikev2.constants import ENCAPSULATION_PORT
from minerva.linux import sockets
from minerva.linux.errors import LinuxError
from minerva.linux.namespace import Namespace
from minerva.linux.xfrm import Direction, SaCounters, SecurityAssociation, Xfrm

log = logging.getLogger(__name__)

_TRAFFIC_SECONDS = 1.0
_WAITING_SECONDS = 0.1
"""How often the counters are read, in seconds, and how often while the peer's first packet under new keys is
awaited: soon the old ones are deleted."""

_LOOKS_PER_CHECK = 5  # at interfaces, which nobody but a person at the keyboard takes away
_MAX_PAIRS = 64
_FIRST_INTERFACE: Final = 10_000
"""Of numbers that are index of an interface, if_id and reqid in one. No other interface of the two namespaces
comes near, so each keeps its index when it is moved, and no index is ever used again."""


@dataclass
class _Pair:
    """Two SAs, by SPI, and what the kernel has counted for them so far."""

    spi_in: int
    spi_out: int
    inbound: SaCounters | None = None
    outbound: SaCounters | None = None
    rekey_asked: bool = False


@dataclass
class _Totals:
    """Counters over all SAs of a channel, also those that are gone."""

    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0
    drops: dict[str, int] = field(default_factory=dict)

    def add(self, pair: _Pair) -> None:
        """Count what a pair has counted."""
        if (inbound := pair.inbound) is not None:
            self.packets_in += inbound.packets
            self.bytes_in += inbound.bytes
            for reason, number in (
                (DropReason.OLD, inbound.old),
                (DropReason.REPLAYED, inbound.replayed),
                (DropReason.NOT_AUTHENTIC, inbound.not_authentic),
            ):
                if number:
                    self.drops[reason.value] = self.drops.get(reason.value, 0) + number
        if (outbound := pair.outbound) is not None:
            self.packets_out += outbound.packets
            self.bytes_out += outbound.bytes


class _Link:
    """IPsec of one link namespace; closed with its last channel, as no namespace goes while it is open."""

    def __init__(self, port: Port) -> None:
        if port.namespace is None:
            raise LinuxError(f"port {port.name} is gone")
        self.xfrm = Xfrm(port.namespace)
        self._esp_in_udp: socket.socket | None = None
        self.users = 0

    def take_udp(self, where: Namespace) -> None:
        """Have IPsec take ESP in UDP as well. Raises OSError."""
        if self._esp_in_udp is None:
            with where.entered():
                self._esp_in_udp = sockets.esp_in_udp_socket(DEVICE, ENCAPSULATION_PORT)

    def close(self) -> None:
        """Let go of the namespace."""
        self.xfrm.close()
        if self._esp_in_udp is not None:
            self._esp_in_udp.close()


class _KernelChannel:
    """A channel with its SAs. All methods raise LinuxError when the kernel says no."""

    def __init__(self, channel: Channel, link: _Link, number: int, rekey_bytes: int) -> None:
        self.channel = channel
        self.link = link
        self._ours = channel.local
        self.number = number  # of the interface
        self._rekey_bytes = rekey_bytes
        self._pairs: dict[int, _Pair] = {}
        self.order = SendingOrder[_Pair]()
        self._sending: _Pair | None = None  # what the policy names
        self._gone = _Totals()
        self.attached = False
        self.fault: str | None = None  # why the channel cannot go on
        self._fault_told = False

    def add_keys(self, keys: m.ChannelKeys) -> None:
        """Add a pair of SAs, for receiving at once."""
        if min(keys.spi_in, keys.spi_out) < MIN_SPI or {len(keys.key_in), len(keys.key_out)} != {KEYMAT_SIZE}:
            raise LinuxError("these are no keys of an ACP channel")
        if len(self._pairs) >= _MAX_PAIRS or keys.spi_in in self._pairs:
            raise LinuxError("it has too many keys, or has these already")
        ours, peer, number = self._ours, self.channel.peer, self.number
        udp_port = ENCAPSULATION_PORT if self.channel.in_udp else 0
        inbound = SecurityAssociation(
            *(peer, ours, keys.spi_in, number), window=DEFAULT_WINDOW, udp_port=udp_port
        )
        outbound = SecurityAssociation(
            *(ours, peer, keys.spi_out, number),
            soft_bytes=self._rekey_bytes,
            soft_packets=REKEY_SEQUENCE,
            hard_packets=LAST_SEQUENCE,
            udp_port=udp_port,
        )
        self.link.xfrm.add_sa(inbound, keys.key_in)
        try:
            self.link.xfrm.add_sa(outbound, keys.key_out)
        except LinuxError:
            self.link.xfrm.delete_sa(ours, keys.spi_in)
            raise
        pair = self._pairs[keys.spi_in] = _Pair(keys.spi_in, keys.spi_out)
        self.order.add(keys.spi_in, pair)
        self.choose()

    def remove_keys(self, spi_in: int) -> None:
        """Delete a pair of SAs, after another is sent with if there is one."""
        if spi_in not in self._pairs:
            return
        self.read(self.link.xfrm.counters())
        pair = self._pairs.pop(spi_in)
        self._gone.add(pair)
        self.order.remove(spi_in)
        self.choose()
        self._delete(pair)

    def _delete(self, pair: _Pair) -> None:
        self.link.xfrm.delete_sa(self.channel.peer, pair.spi_out)
        self.link.xfrm.delete_sa(self._ours, pair.spi_in)

    def allow(self, spi_in: int) -> None:
        """Let a pair be for sending that waits for it, and is still there."""
        if self.order.allow(spi_in):
            self.choose()

    def choose(self) -> None:
        """Name the SA to send with in the policy: else the kernel takes whichever it likes."""
        chosen = self.order.choose()
        if chosen is self._sending:
            return
        self._sending = chosen
        if chosen is None:
            self.link.xfrm.delete_policy(Direction.OUT, self.number)
        else:
            self.link.xfrm.set_policy(
                Direction.OUT, self._ours, self.channel.peer, self.number, chosen.spi_out
            )

    def open(self) -> None:
        """Let in what comes by ESP from the peer, and nothing else."""
        self.link.xfrm.set_policy(Direction.IN, self.channel.peer, self._ours, self.number)

    def close(self) -> None:
        """Delete all policies and SAs."""
        for direction in (Direction.OUT, Direction.IN):
            self.link.xfrm.delete_policy(direction, self.number)
        for pair in self._pairs.values():
            self._delete(pair)
        self._pairs.clear()

    def read(self, counters: list[SaCounters]) -> bool:
        """Take over the counters of the namespace; return whether something came in since the last time.

        A first packet under new keys shows that the peer has them too.
        """
        found = {(item.destination, item.spi): item for item in counters if item.if_id == self.number}
        heard = False
        for pair in list(self._pairs.values()):
            inbound = found.get((self._ours, pair.spi_in))
            outbound = found.get((self.channel.peer, pair.spi_out))
            if inbound is None or outbound is None:
                self.fault = "its security associations are gone from the kernel, or used up"
                continue
            if inbound.packets > (pair.inbound.packets if pair.inbound is not None else 0):
                heard = True
                self.allow(pair.spi_in)
            pair.inbound, pair.outbound = inbound, outbound
        return heard

    def take_fault(self) -> str | None:
        """Return, once, why the channel needs fresh keys or a fresh interface, if it does."""
        if self.fault is None or self._fault_told:
            return None
        self._fault_told = True
        return self.fault

    def take_rekey(self) -> bool:
        """Return, once for each pair, whether it is time to replace the one that is sent with."""
        pair = self._sending
        if pair is None or pair.rekey_asked or pair.outbound is None:
            return False
        sent = pair.outbound
        pair.rekey_asked = sent.packets >= REKEY_SEQUENCE or sent.bytes >= self._rekey_bytes
        return pair.rekey_asked

    def status(self) -> dict[str, Any]:
        """Return what the child of the user-space data plane would."""
        totals = replace(self._gone, drops=dict(self._gone.drops))
        for pair in self._pairs.values():
            totals.add(pair)
        return vars(totals) | {
            "spis_in": [f"{spi:08x}" for spi in self._pairs],
            "spi_out": f"{self._sending.spi_out:08x}" if self._sending is not None else None,
        }


class KernelDataPlane:
    """One of the two data planes (:class:`~minerva.connect.channels.ChannelDataPlane`).

    ``tell`` takes messages for the abutment; ``later`` does something in the ACP namespace, in its turn.
    Keys are replaced after ``rekey_bytes`` bytes.
    """

    name = "kernel"
    ready = True

    def __init__(
        self,
        acp: AcpNamespace,
        tell: Callable[[Message], None],
        later: Callable[[Coroutine[Any, Any, None]], None],
        rekey_bytes: int,
    ) -> None:
        self._acp = acp
        self._tell = tell
        self._later = later
        self._rekey_bytes = rekey_bytes
        self._numbers = count(_FIRST_INTERFACE)
        self._links: dict[int, _Link] = {}  # by the number of the port
        self._channels: dict[int, _KernelChannel] = {}
        self._hurry = asyncio.Event()

    def start(self) -> None:
        """Nothing: the kernel runs."""

    # --- channels ----------------------------------------------------------------------------------------

    async def attach(self, channel: Channel) -> None:
        """Make an xfrm interface in the link namespace and move it; make the policy for what comes in."""
        port, acp = channel.port, self._acp
        if port.netlink is None or acp.namespace is None:
            raise LinuxError(f"port {port.name} is gone")
        number = next(self._numbers)
        link = self._links.get(port.number)
        if link is None:
            link = self._links[port.number] = _Link(port)
        link.users += 1
        made = _KernelChannel(channel, link, number, self._rekey_bytes)
        self._channels[channel.number] = made
        channel.index = number
        try:
            if channel.in_udp and port.namespace is not None:
                link.take_udp(port.namespace)
            made.open()
            await port.netlink.add_xfrm_interface(channel.interface, number)
            await port.netlink.set_link(number, net_ns_fd=acp.namespace.descriptor)
            await channels.bring_up(channel, acp)
            made.attached = True
        except BaseException:
            self.detach(channel)
            if port.netlink is not None:
                with suppress(LinuxError):
                    await port.netlink.delete_link(number)  # if it was not moved yet
            raise

    def detach(self, channel: Channel) -> None:
        """Delete policies, SAs, and the interface in its turn."""
        made = self._channels.pop(channel.number, None)
        if made is None:
            return
        try:
            made.close()
        except LinuxError as error:
            log.error("%s: %s", channel.interface, error)
        made.link.users -= 1
        if made.link.users == 0:
            made.link.close()
            self._links.pop(channel.port.number, None)
        self._later(self._delete_interface(made.number))

    async def _delete_interface(self, number: int) -> None:
        if self._acp.netlink is not None:
            await self._acp.netlink.delete_link(number)

    @contextmanager
    def _of(self, number: int) -> Iterator[_KernelChannel | None]:
        """Work on a channel; what the kernel refuses is a fault of it."""
        made = self._channels.get(number)
        try:
            yield made
        except LinuxError as error:
            assert made is not None
            log.error("%s: %s", made.channel.interface, error)
            self._tell(m.ChannelFault(number, str(error)))

    def add_keys(self, keys: m.ChannelKeys) -> None:
        """Give the keys to the kernel."""
        with self._of(keys.channel) as made:
            if made is None:
                return
            made.add_keys(keys)
            if keys.send:
                asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._allow, keys.channel, keys.spi_in)
            elif made.order.waiting:
                self._hurry.set()

    def _allow(self, number: int, spi_in: int) -> None:
        with self._of(number) as made:
            if made is not None:
                made.allow(spi_in)

    def remove_keys(self, gone: m.ChannelKeysGone) -> None:
        """Have the kernel forget the keys."""
        with self._of(gone.channel) as made:
            if made is not None:
                made.remove_keys(gone.spi_in)

    # --- counters ----------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Read the counters again and again, and tell who was heard, and whose keys are used up."""
        for turn in count():
            waiting = any(made.order.waiting for made in self._channels.values())
            if waiting:
                await asyncio.sleep(_WAITING_SECONDS)
            else:
                self._hurry.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), _TRAFFIC_SECONDS)
            self._read()
            if turn % _LOOKS_PER_CHECK == 0:
                await self._check_interfaces()

    def _read(self) -> None:
        heard = []
        for link in list(self._links.values()):
            try:
                counters = link.xfrm.counters()
            except LinuxError as error:
                log.error("%s", error)
                continue
            for number, made in list(self._channels.items()):
                if made.link is not link:
                    continue
                with self._of(number):
                    if made.read(counters):
                        heard.append(number)
                self._tell_needs(number, made)
        if heard:
            self._tell(m.Traffic(tuple(heard)))

    def _tell_needs(self, number: int, made: _KernelChannel) -> None:
        if (fault := made.take_fault()) is not None:
            log.error("%s: %s", made.channel.interface, fault)
            self._tell(m.ChannelFault(number, fault))
        elif made.take_rekey():
            self._tell(m.ChannelRekey(number))

    async def _check_interfaces(self) -> None:
        """Find channels whose interface somebody deleted: their SAs go on to count."""
        if self._acp.netlink is None or not self._channels:
            return
        attached = [made for made in self._channels.values() if made.attached]
        try:
            there = {link.index for link in await self._acp.netlink.links()}
        except (LinuxError, OSError) as error:
            log.error("%s", error)
            return
        for made in attached:
            if made.number not in there:
                made.fault = "its interface is gone"

    async def status(self) -> dict[int, dict[str, Any]]:
        """Return the counters of all channels, by number."""
        self._read()
        return {number: made.status() for number, made in self._channels.items()}

    def close(self) -> None:
        """Close the connections to link namespaces; SAs and policies go with the namespaces."""
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._channels.clear()
