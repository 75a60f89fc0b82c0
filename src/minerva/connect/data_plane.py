"""The data plane in user space: packets between a TUN interface and an ESP socket, per channel.

On the wire it is what the kernel's ESP would send, for kernels that have none.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from minerva.connect.child import Child
from minerva.connect.forwarding_loop import ForwardingLoop
from minerva.connect.ipc import Message
from minerva.connect.messages import (
    ChannelAttach,
    ChannelDetach,
    ChannelFault,
    ChannelKeys,
    ChannelKeysGone,
    ChannelRekey,
    Hurry,
    Traffic,
)
from minerva.connect.segments import Segments
from minerva.connect.sending import SETTLE_SECONDS, SendingOrder
from minerva.esp.packet import spi_of
from minerva.esp.sa import LAST_SEQUENCE, ChannelSAs, InboundSA, OutboundSA
from minerva.linux import scheduling

log = logging.getLogger(__name__)

_BATCH = 64
"""Packets of one channel moved in one direction before all others have their turn: about a millisecond."""

_LATE = 8
"""Packets of a turn that show that others had waited for it."""

_HURRY_SECONDS, _RESTLESS_PAUSE = 0.1, 1.0
"""How long this process goes first after such a turn; how long it does not after having had no rest."""

_MAX_PACKET = 65_535

_NOT_TAKEN = frozenset({errno.EAGAIN, errno.EINVAL, errno.ENOMEM})
"""How an interface that goes on refuses one packet: whatever a peer puts into one must not end a channel."""

_TRAFFIC_SECONDS = 1.0


class _Channel:
    """Moves the packets of one channel. Nothing leaves without an outbound SA, nothing enters unopened."""

    def __init__(
        self, loop: ForwardingLoop, hurry: Callable[[], None], attach: ChannelAttach, tun: int, esp: int
    ) -> None:
        self.number = attach.channel
        self.name = attach.name
        self._mtu = attach.mtu
        self._rekey_bytes = attach.rekey_bytes
        self._loop = loop
        self._hurry = hurry
        self._tun = tun
        self._esp = socket.socket(fileno=esp)
        self._segments = Segments(self._esp) if self._esp.type == socket.SOCK_DGRAM else None
        self._send = self._esp.send if self._segments is None else self._segments.send
        self._order = SendingOrder[OutboundSA]()
        self._rekeying: int | None = None  # the SPI of the outbound SA for whose successor we have asked
        self.sas = ChannelSAs()
        self.heard = False  # since the last report
        self.fault: str | None = None  # why the channel cannot go on, until it is reported
        self._fault_reported = False
        self.unsent = 0
        loop.add_forwarder(tun, self._from_acp)
        loop.add_forwarder(esp, self._from_wire)

    def add_keys(self, keys: ChannelKeys) -> None:
        """Receive with a further pair of SAs; send with it soon, or when the peer shows that it has it."""
        self.sas.add_inbound(InboundSA(keys.spi_in, keys.key_in))
        outbound = OutboundSA(keys.spi_out, keys.key_out, rekey_bytes=self._rekey_bytes)
        self._order.add(keys.spi_in, outbound)
        self.sas.set_outbound(self._order.choose())
        if keys.send:
            self._loop.call_later(SETTLE_SECONDS, self._send_with, keys.spi_in)
        self.fault, self._fault_reported = None, False

    def remove_keys(self, spi_in: int) -> None:
        """Forget a pair of SAs."""
        self.sas.remove_inbound(spi_in)
        self._order.remove(spi_in)
        self.sas.set_outbound(self._order.choose())

    def _send_with(self, spi_in: int | None) -> None:
        """Let a pair be for sending that waits for it, and is still there."""
        if spi_in is not None and self._order.allow(spi_in):
            self.sas.set_outbound(self._order.choose())

    def _from_acp(self) -> None:
        if self._seal_and_send() >= _LATE:
            self._hurry()
        if self._segments is not None:
            self.unsent += self._segments.finish()

    def _seal_and_send(self) -> int:
        """Do so with the packets of one turn; return how many there were."""
        tun, seal, send, size = self._tun, self.sas.seal, self._send, self._mtu + 1
        for number in range(_BATCH):
            try:
                packet = os.read(tun, size)
            except BlockingIOError:
                return number
            except OSError as error:
                self._lost(error)
                return number
            sealed = seal(packet)
            if sealed is None:
                continue
            try:
                send(sealed)
            except OSError as error:
                # A full queue drops, as any link would. What ICMPv6 errors somebody sent is not believed.
                self.unsent += 1
                log.debug("%s: send: %s", self.name, error.strerror)
        return _BATCH

    def _from_wire(self) -> None:
        receive = self._esp.recv
        arrived: list[bytes] = []
        # First out of the socket, whose buffer may be small, then into the interface, which takes longer.
        try:
            while len(arrived) < _BATCH:
                arrived.append(receive(_MAX_PACKET))
        except BlockingIOError:
            pass
        except OSError as error:
            log.debug("%s: receive: %s", self.name, error.strerror)
        tun, unseal, write, waiting = self._tun, self.sas.open, os.write, self._order.waiting
        opened = 0
        for sealed in arrived:
            packet = unseal(sealed)
            if packet is None:
                continue
            opened += 1
            if waiting:
                self._send_with(spi_of(sealed))  # the peer has it
            try:
                write(tun, packet)
            except OSError as error:
                if error.errno not in _NOT_TAKEN:
                    self._lost(error)
                    return
                self.unsent += 1
        self.heard = self.heard or opened > 0
        if opened >= _LATE:
            self._hurry()
        if 0 < len(arrived) < _BATCH:
            self._from_acp()  # what answers it is often there already

    def _lost(self, error: OSError) -> None:
        """The interface is down or gone: stop, and leave it to others to make a new channel."""
        log.warning("%s is of no use any more: %s", self.name, error.strerror)
        self.fault = f"its interface is gone: {error.strerror}"
        self._loop.remove_forwarder(self._tun)
        self._loop.remove_forwarder(self._esp.fileno())

    def take_fault(self) -> str | None:
        """Return, once, why the channel needs fresh keys or a fresh interface, if it does."""
        outbound = self.sas.outbound
        if outbound is not None and outbound.packets >= LAST_SEQUENCE:
            self.fault = "its sequence numbers are used up"
        if self.fault is None or self._fault_reported:
            return None
        self._fault_reported = True
        return self.fault

    def take_rekey(self) -> bool:
        """Return, once for each pair of SAs, whether it is time to replace it, by what was sent."""
        outbound = self.sas.outbound
        if outbound is None or not outbound.rekey_due or outbound.spi == self._rekeying:
            return False
        self._rekeying = outbound.spi
        return True

    def close(self) -> None:
        """Stop, and close both descriptors; the interface goes with them."""
        self._loop.remove_forwarder(self._tun)
        self._loop.remove_forwarder(self._esp.fileno())
        os.close(self._tun)
        self._esp.close()

    def status(self) -> dict[str, Any]:
        counters = self.sas.counters()
        outbound = self.sas.outbound
        return {
            "channel": self.number,
            "packets_in": counters.packets_in,
            "packets_out": counters.packets_out,
            "bytes_in": counters.bytes_in,
            "bytes_out": counters.bytes_out,
            "unsent": self.unsent,
            "drops": {reason.value: count for reason, count in counters.drops.items()},
            "spis_in": [f"{spi:08x}" for spi in self.sas.inbound_spis],
            "spi_out": f"{outbound.spi:08x}" if outbound is not None else None,
        }


class DataPlane(Child):
    """The data plane process. It runs in a :class:`ForwardingLoop`."""

    new_loop = ForwardingLoop

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ForwardingLoop)
        self._loop = loop
        self._channels: dict[int, _Channel] = {}
        self._loop.call_later(_TRAFFIC_SECONDS, self._report)
        self._late = False  # since somebody looked last
        self._ordinary: asyncio.TimerHandle | None = None  # when to look; none if there was no reason
        self._loop.add_signal_handler(signal.SIGXCPU, self._restless)
        scheduling.limit()

    def handle(self, message: Message, descriptors: list[int]) -> bool:
        match message:
            case ChannelAttach() if len(descriptors) == 2:
                self._detach(message.channel)
                self._channels[message.channel] = _Channel(self._loop, self._hurry, message, *descriptors)
            case ChannelDetach():
                self._detach(message.channel)
            case ChannelKeys():
                if (channel := self._channels.get(message.channel)) is not None:
                    channel.add_keys(message)
            case ChannelKeysGone():
                if (channel := self._channels.get(message.channel)) is not None:
                    channel.remove_keys(message.spi_in)
            case _:
                return False
        return True

    def _detach(self, number: int) -> None:
        if (channel := self._channels.pop(number, None)) is not None:
            channel.close()

    def _hurry(self) -> None:
        """Go before other processes while packets queue up, as buffers may be full in a millisecond."""
        self._late = True
        if self._ordinary is None:
            self.send(Hurry())
            self._ordinary = self._loop.call_later(_HURRY_SECONDS, self._look)

    def _look(self) -> None:
        """Be ordinary again, unless there was a reason not to since the last time."""
        self._ordinary = None
        if self._late:
            self._late = False
            self._ordinary = self._loop.call_later(_HURRY_SECONDS, self._look)
        else:
            scheduling.go_with_others()

    def _restless(self) -> None:
        """Do not do work without an end at the expense of others."""
        scheduling.go_with_others()
        log.info("no rest for %.0f ms: others have their turns again", scheduling.RESTLESS_SECONDS * 1e3)
        if self._ordinary is not None:
            self._ordinary.cancel()
        self._ordinary = self._loop.call_later(_RESTLESS_PAUSE, self._rested)

    def _rested(self) -> None:
        """From now on there may be a reason to go first again."""
        self._ordinary = None

    def _report(self) -> None:
        """Tell who was heard, and whose keys are used up."""
        self._loop.call_later(_TRAFFIC_SECONDS, self._report)
        heard = []
        for channel in self._channels.values():
            if channel.heard:
                channel.heard = False
                heard.append(channel.number)
            if (fault := channel.take_fault()) is not None:
                self.send(ChannelFault(channel.number, fault))
            elif channel.take_rekey():
                self.send(ChannelRekey(channel.number))
        if heard:
            self.send(Traffic(tuple(heard)))

    def state(self) -> dict[str, Any]:
        return {"channels": [channel.status() for channel in self._channels.values()]}
