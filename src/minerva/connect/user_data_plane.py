"""The data plane in user space, as the supervisor sees it: a child process with two descriptors a channel.

The TUN interface is made in the ACP namespace, the ESP socket in the link namespace; the child
(:mod:`minerva.connect.data_plane`) moves packets between the two.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

from minerva.connect import channels
from minerva.connect import messages as m
from minerva.connect.acp import AcpNamespace
from minerva.connect.channels import Channel
from minerva.connect.children import Children
from minerva.connect.ipc import Message
from minerva.connect.ports import DEVICE
from minerva.ikev2.constants import ENCAPSULATION_PORT
from minerva.linux import scheduling, sockets
from minerva.linux.errors import LinuxError
from minerva.linux.tun import open_tun

log = logging.getLogger(__name__)

_ROLE = "data-plane"


class UserDataPlane:
    """One of the two data planes (:class:`~minerva.connect.channels.ChannelDataPlane`).

    ``tell`` takes messages for the abutment; ``on_lost`` is called when the child has ended, and all
    channels with it. Keys are replaced after ``rekey_bytes`` bytes.
    """

    name = "user"

    def __init__(
        self,
        acp: AcpNamespace,
        children: Children,
        tell: Callable[[Message], None],
        on_lost: Callable[[], None],
        rekey_bytes: int,
    ) -> None:
        self._acp = acp
        self._children = children
        self._tell = tell
        self._on_lost = on_lost
        self._rekey_bytes = rekey_bytes

    def start(self) -> None:
        """Start the child."""
        # When it ends, its interfaces are gone, and its sending keys must never be used again.
        self._children.start(_ROLE, self._from_child, self._child_ready, self._on_lost)

    @property
    def ready(self) -> bool:
        """Whether the child runs."""
        return self._children[_ROLE].ready

    def _child_ready(self) -> None:
        """Only a data plane that is there can be given fresh keys."""
        self._tell(m.DataPlaneLost())

    def _go_first(self) -> None:
        """Let the child run before ordinary processes until it says, or the kernel, that it is enough."""
        try:
            scheduling.go_first(self._children[_ROLE].pid)
        except OSError as error:
            log.debug("the data plane cannot go before other processes: %s", error.strerror)

    def _from_child(self, message: Message) -> bool:
        match message:
            case m.Hurry():
                self._go_first()
            case m.Traffic() | m.ChannelFault() | m.ChannelRekey():
                self._tell(message)
            case _:
                return False
        return True

    async def attach(self, channel: Channel) -> None:
        """Make a TUN interface and an ESP socket, and give them to the child."""
        port = channel.port
        if port.namespace is None or self._acp.namespace is None:
            raise LinuxError(f"port {port.name} is gone")
        descriptors = []
        try:
            with self._acp.namespace.entered():
                descriptors.append(open_tun(channel.interface))
            try:
                with port.namespace.entered():
                    esp = sockets.esp_socket(
                        DEVICE,
                        port.index,
                        channel.local,
                        channel.peer,
                        udp_port=ENCAPSULATION_PORT if channel.in_udp else 0,
                    )
            except OSError as error:
                raise LinuxError(f"cannot open an ESP socket on {port.name}: {error.strerror}") from error
            descriptors.append(esp.detach())
            await channels.bring_up(channel, self._acp)
            if not self.ready:
                raise LinuxError("the data plane was lost")
            self._children[_ROLE].send(
                m.ChannelAttach(channel.number, channel.interface, channel.mtu, self._rekey_bytes),
                descriptors,
            )
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def detach(self, channel: Channel) -> None:
        """Have the child close its descriptors, and the interface goes with them."""
        self._children[_ROLE].send(m.ChannelDetach(channel.number))

    def add_keys(self, keys: m.ChannelKeys) -> None:
        """Pass the keys on."""
        self._children[_ROLE].send(keys)

    def remove_keys(self, gone: m.ChannelKeysGone) -> None:
        """Pass it on."""
        self._children[_ROLE].send(gone)

    async def status(self) -> dict[int, dict[str, Any]]:
        """Return what the child counted."""
        state = await self._children.state_of(_ROLE)
        return {item["channel"]: item for item in (state or {}).get("channels", [])}

    async def watch(self) -> None:
        """Wait: the child speaks by itself."""
        await asyncio.Event().wait()

    def close(self) -> None:
        """Nothing: the child holds what there is, and ends with the others."""
