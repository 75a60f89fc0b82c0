"""A node that is a member of its ACP domain: the ACP namespace, its channels, and the processes behind them.

Part of the supervisor, so it runs as root and parses nothing that comes from the network.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, Protocol

from minerva.asa.inventory import Description
from minerva.asa.protocol import API_SOCKET
from minerva.connect import channels, leftovers
from minerva.connect import messages as m
from minerva.connect.acp import AcpNamespace
from minerva.connect.channels import Channel, ChannelDataPlane
from minerva.connect.children import Children
from minerva.connect.config import Config
from minerva.connect.grasp_api import open_api_socket
from minerva.connect.ipc import Message
from minerva.connect.kernel_data_plane import KernelDataPlane
from minerva.connect.kernel_probe import Choice
from minerva.connect.outer_routes import OuterRoutes
from minerva.connect.ports import Port, Ports, sysfs
from minerva.connect.proxy_gate import ProxyGate
from minerva.connect.socket_server import SocketServer
from minerva.connect.state import NodeState
from minerva.connect.user_data_plane import UserDataPlane
from minerva.core.errors import MinervaError
from minerva.linux import process, sockets
from minerva.linux.errors import LinuxError
from minerva.linux.firewall import guard_policy
from minerva.linux.netlink import Netlink
from minerva.pki.certificates import dump_pem
from minerva.pki.errors import IdentityError, KeyRuleError
from minerva.pki.identity import KEY_FILE, Identity, check_own, store_identity
from minerva.pki.keys import load_private_key
from minerva.rpl.config import HIGH_SPEED_FACTOR, LOW_SPEED_FACTOR, Preference

log = logging.getLogger(__name__)

_GOODBYE_SECONDS = 1.5
_NUMBERS_PER_ABUTMENT = 1 << 40  # so that what one numbered is never taken for what its successor did
_EXPIRY_SECONDS = 1.0
_MAX_CRLS = 4  # for an abutment that is started again; the plane brings newer ones
_MAX_SIGNING = 64
_MAX_WORK = 20_000
_MAX_CHANNELS = 1024  # more than any machine has ports and neighbours; a bound all the same
_SLOW_LINK_MBIT = 100


def renewal_problem(old: Identity, new: Identity, message: m.Renewed, now: datetime) -> str | None:
    """Return why the plane's ``message`` must not make the node ``old`` into ``new``, if it must not.

    What is kept is there at the next start too: a plane that has gone astray must not end the node for good.
    """
    if new.address != old.address or new.node_name.acp_domain != old.node_name.acp_domain:
        return f"it is for {new.node_name}, which is another node"
    if not 0 < message.port < 65_536:
        return f"port {message.port} of the EST server is none"
    try:
        check_own(new, now)
        key = load_private_key(message.key.reveal())
    except (IdentityError, KeyRuleError) as error:
        return str(error)
    return None if key.public_key() == new.certificate.public_key() else "it is for another key"


class Node(Protocol):
    """What a member needs of its supervisor."""

    state: NodeState
    run_dir: Path
    config: Config
    host: Netlink
    ports: Ports
    children: Children
    machine: Description

    def milestone(self, name: str) -> None:
        """Note when something happened for the first time."""

    def look(self) -> None:
        """Reconcile ports and acp0 soon."""

    def fail(self, reason: str) -> None:
        """End the node, and say why."""


class Member:
    """The node while it has an ACP certificate: :meth:`open`, :meth:`run`, and :meth:`close` in any case."""

    def __init__(self, node: Node, identity: Identity, data_plane: Choice) -> None:
        self._node = node
        self._state = node.state
        self._config = node.config
        self._host = node.host
        self._ports = node.ports
        self._children = node.children
        self._milestone = node.milestone
        self.identity = identity
        self._acp = AcpNamespace(node.state, identity.address, node.config.acp.interface)
        self._data_plane: ChannelDataPlane
        child_bytes = node.config.ike.child_bytes
        if data_plane.kernel:
            self._data_plane = KernelDataPlane(self._acp, self._tell_abutment, self._later, child_bytes)
        else:
            self._data_plane = UserDataPlane(
                self._acp, self._children, self._tell_abutment, self._data_plane_lost, child_bytes
            )
        self._data_plane_reason = data_plane.reason
        self._proxy = ProxyGate(
            self._acp, self._ports, self._send_abutment, time.monotonic, enabled=self._config.proxy.enabled
        )
        self._outer = OuterRoutes(self._ports, self._tell_abutment, self._later)
        self._channels: dict[int, Channel] = {}
        self._abutment_generation = 0
        self._signing: set[int] = set()
        self._acp_work: asyncio.Queue[Coroutine[Any, Any, None]] = asyncio.Queue()
        self._guarding: asyncio.Task[None] | None = None
        self._guard_problem: str | None = "not applied yet"
        self._crls: deque[m.Crl] = deque(maxlen=_MAX_CRLS)
        self._api: socket.socket | None = None
        self._sockets: SocketServer | None = None

    @property
    def host_address(self) -> IPv6Address:
        """The address that the host has in the ACP."""
        return self._acp.host_address

    # --- life ------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Make the ACP namespace and start the processes. Raises LinuxError, OSError."""
        await self._acp.open()
        self._api = open_api_socket(self._node.run_dir)
        assert self._acp.namespace is not None
        self._sockets = SocketServer(self._node.run_dir, self._acp.address.address, self._acp.namespace)
        start = self._children.start
        start("signer", self._from_signer, self._signer_ready, self._signer_lost)
        start("abutment", self._from_abutment, self._abutment_ready, self._abutment_lost)
        self._data_plane.start()
        assert self._acp.namespace is not None
        start(
            "plane",
            self._from_plane,
            self._plane_ready,
            self._plane_lost,
            namespace=self._acp.namespace.descriptor,
        )
        host = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        start("guard", self._from_guard, self._guard_ready, self._guard_lost, namespace=host)

    async def run(self) -> None:
        """Do the work until our certificate expires."""
        work = [
            asyncio.create_task(task)
            for task in (self._work_on_acp(), self._data_plane.watch(), self._until_expiry())
        ]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    async def _until_expiry(self) -> None:
        # Looked at again and again: somebody may set the clock.
        while datetime.now(UTC) <= self.identity.certificate.not_valid_after_utc:
            await asyncio.sleep(_EXPIRY_SECONDS)

    async def say_goodbye(self) -> None:
        """Tell the peers, and end the processes that talk to them."""
        # Routing says goodbye through channels, so these go after it.
        for role in ("plane", "abutment"):
            await self._children.end(role, m.Shutdown(), _GOODBYE_SECONDS)
        self._proxy.close_all()
        self._data_plane.close()

    async def close(self) -> None:
        """Remove what is left, after :meth:`say_goodbye` and when the ports are closed. Raises LinuxError."""
        if self._sockets is not None:
            self._sockets.close()
        # A node that goes on as a pledge keeps its ports, and nobody may connect to them any more.
        self._proxy.close_all()
        try:
            await self._outer.close()
            await self._acp.close(self._host)
        finally:
            for role in ("signer", "data-plane", "guard"):
                await self._children.end(role)
            # What they asked for on their way out is not done any more: all of it is gone.
            while not self._acp_work.empty():
                self._acp_work.get_nowait().close()
            if self._api is not None:
                self._api.close()
            for name in (leftovers.GUARD_FILE, API_SOCKET):
                (self._node.run_dir / name).unlink(missing_ok=True)

    async def reconcile(self) -> None:
        """Make sure of acp0."""
        await self._acp.reconcile_acp0(self._host)
        if self._acp.acp0_problem is None:
            self._milestone("acp0")

    def _identity_message(self) -> m.Identity:
        identity = self.identity
        groups = ((identity.certificate,), identity.chain, identity.anchors)
        return m.Identity(*(dump_pem(group) for group in groups))

    # --- signer ----------------------------------------------------------------------------------------

    def _send_identity_with_key(self, role: str) -> None:
        # Copied by the kernel: the key's bytes are never in our memory, nor in that of what we fork.
        try:
            key = process.sealed_copy(self._state.directory / KEY_FILE, "minerva-key")
        except OSError as error:
            self._node.fail(f"cannot read {self._state.directory / KEY_FILE}: {error.strerror}")
            return
        self._children[role].send(self._identity_message(), [key])
        os.close(key)

    def _signer_ready(self) -> None:
        self._send_identity_with_key("signer")

    def _from_signer(self, message: Message) -> bool:
        match message:
            case m.SignerReady(problem=None):
                log.info("the signer holds the key of %s", self.identity.node_name)
            case m.SignerReady(problem=problem):
                self._node.fail(
                    f"{self._state.directory}: {problem}; issue the directory anew ('minerva ca issue')"
                )
            case m.SignReply():
                if message.request in self._signing:
                    self._signing.discard(message.request)
                    self._children["abutment"].send(message)
            case _:
                return False
        return True

    def _ask_signer(self, request: m.SignRequest) -> None:
        if not self._children["signer"].ready or len(self._signing) >= _MAX_SIGNING:
            reason = "the signer is busy or just being started"
            self._children["abutment"].send(m.SignReply(request.request, None, reason))
            return
        self._signing.add(request.request)
        self._children["signer"].send(request)

    def _signer_lost(self) -> None:
        for request in self._signing:
            self._children["abutment"].send(m.SignReply(request, None, "the signer was started again"))
        self._signing.clear()

    # --- guard -----------------------------------------------------------------------------------------

    def _guard_ready(self) -> None:
        guard = self._children["guard"]
        # Before it owns anything: what a killed node leaves, the next start must be able to find.
        leftovers.record_guard(self._node.run_dir, guard.pid)
        guard.send(m.GuardApply(guard_policy(self._state.tag, self._acp.prefix, self._config.acp.interface)))

    def _from_guard(self, message: Message) -> bool:
        if not isinstance(message, m.GuardReady):
            return False
        self._guard_problem = message.problem
        if message.problem is None:
            self._allow_acp0(True)
        elif self._config.acp.unguarded:
            log.warning("acp0 has no guard: %s; the configuration wants it all the same", message.problem)
            self._allow_acp0(True)
        else:
            log.error("acp0 stays off, because its guard cannot be put up: %s", message.problem)
        return True

    def _guard_lost(self) -> None:
        """Take acp0 away for as long as it is not guarded."""
        self._guard_problem = "its process ended"
        if not self._config.acp.unguarded:
            self._allow_acp0(False)

    def _allow_acp0(self, allowed: bool) -> None:
        # Not behind the work of the ACP namespace: an open door does not wait.
        self._guarding = asyncio.create_task(self._acp.allow_acp0(allowed, self._host))
        self._guarding.add_done_callback(self._acp0_allowed)

    def _acp0_allowed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s", error)
        self._node.look()

    # --- ports -----------------------------------------------------------------------------------------

    def port_up(self, port: Port) -> None:
        """A port can be used."""
        assert port.link_local is not None
        up = m.PortUp(port.number, port.name, port.link_local, port.ula)
        self._children["abutment"].send(up, [sock.fileno() for sock in port.descriptors])

    def port_down(self, port: Port) -> None:
        """A port cannot be used any more."""
        self._children["abutment"].send(m.PortDown(port.number))
        self._proxy.port_down(port)
        self._outer.port_down(port)
        for channel in [channel for channel in self._channels.values() if channel.port is port]:
            self._close_channel(channel.number, "the port is down")

    # --- abutment --------------------------------------------------------------------------------------

    def _abutment_ready(self) -> None:
        abutment = self._children["abutment"]
        abutment.send(self._identity_message())
        for crl in self._crls:
            abutment.send(crl)
        first = self._abutment_generation * _NUMBERS_PER_ABUTMENT
        ike = self._config.ike
        abutment.send(
            m.AbutmentStart(
                first,
                bool(self._config.debug.key_log),
                ike.ike_lifetime,
                ike.child_lifetime,
                ike.udp_encapsulation,
            )
        )
        for port in self._ports.ports.values():
            if port.announced:
                self.port_up(port)
        self._proxy.abutment_ready()

    def _abutment_lost(self) -> None:
        self._proxy.close_all()
        self._outer.close_all()
        self._abutment_generation += 1
        self._signing.clear()
        for number in list(self._channels):
            self._close_channel(number, "the abutment was started again")

    def _from_abutment(self, message: Message) -> bool:
        if self._acp_work.qsize() > _MAX_WORK:
            return False
        match message:
            case m.SignRequest():
                self._ask_signer(message)
            case m.NeighbourHeard():
                self._milestone("neighbour_heard")
            case m.ChannelOpen() | m.ChannelKeys() | m.ChannelKeysGone() | m.ChannelClosed():
                # All that concerns channels is done in its order, and opening one takes a while.
                self._acp_work.put_nowait(self._on_channel(message, self._abutment_generation))
            case m.OuterRoutes():
                return self._outer.want(message)
            case m.ProxyOpen():
                return self._proxy.open(message)
            case m.ProxyConnect():
                return self._proxy.connect(message)
            case m.KeyLog():
                self._write_key_log(message)
            case _:
                return False
        return True

    async def _on_channel(
        self,
        message: m.ChannelOpen | m.ChannelKeys | m.ChannelKeysGone | m.ChannelClosed,
        generation: int,
    ) -> None:
        if generation != self._abutment_generation:
            return  # said by an abutment that is no more; the numbers are another's now
        match message:
            case m.ChannelOpen():
                await self._open_channel(message, generation)
            case m.ChannelClosed():
                self._close_channel(message.channel, message.reason)
            case m.ChannelKeys() if message.channel in self._channels:
                self._data_plane.add_keys(message)
            case m.ChannelKeysGone() if message.channel in self._channels:
                self._data_plane.remove_keys(message)

    def _check_channel(self, message: m.ChannelOpen, port: Port | None) -> None:
        """Raise LinuxError unless this is a channel that an honest abutment would ask for."""
        others = self._channels.values()
        if port is None or not port.announced:
            raise LinuxError("there is no such port")
        if any((c.port, c.peer) == (port, message.peer) for c in others):
            raise LinuxError("there is a channel to that neighbour already")
        if message.channel in self._channels or len(self._channels) >= _MAX_CHANNELS:
            raise LinuxError("there are too many channels")
        if not self._data_plane.ready:
            raise LinuxError("the data plane is just being started")

    async def _open_channel(self, message: m.ChannelOpen, generation: int) -> None:
        self._milestone("ike_established")
        port = self._ports.by_number(message.port)
        try:
            self._check_channel(message, port)
            assert port is not None
            next_hop = self._outer.next_hop(port, message.peer)
            channel = await channels.plan(message, port, next_hop, self._state, self._acp)
            await self._data_plane.attach(channel)
        except (MinervaError, OSError) as error:
            log.error("no channel to %s: %s", message.peer, error)
            self._children["abutment"].send(m.ChannelRefused(message.channel, str(error)))
            return
        if generation != self._abutment_generation or not port.announced or not self._data_plane.ready:
            # While the interface was made, whoever asked for it or was to serve it has gone.
            self._data_plane.detach(channel)
            self._children["abutment"].send(m.ChannelRefused(message.channel, "overtaken by events"))
            return
        self._channels[channel.number] = channel
        log.info("channel %s to %s (%s) is up", channel.interface, channel.peer_name, channel.peer)
        self._interface_up(channel)

    def _close_channel(self, number: int, reason: str) -> None:
        channel = self._channels.pop(number, None)
        if channel is None:
            return
        log.info("channel %s to %s is down: %s", channel.interface, channel.peer_name, reason)
        if channel.port.netlink is not None:
            self._acp_work.put_nowait(self._unpin(channel))
        # Routing first: it is what the rest of the network waits for.
        self._children["plane"].send(m.InterfaceDown(channel.index))
        self._data_plane.detach(channel)

    async def _unpin(self, channel: Channel) -> None:
        where = (channel.port, channel.next_hop)
        if any((other.port, other.next_hop) == where for other in self._channels.values()):
            return
        if channel.port.netlink is not None:
            await channel.port.netlink.delete_neighbour(channel.port.index, channel.next_hop)

    def _write_key_log(self, message: m.KeyLog) -> None:
        folder = self._config.debug.key_log
        if (
            not folder
            or message.table not in ("ikev2_decryption_table", "esp_sa")
            or not message.line.isprintable()
        ):
            return
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(Path(folder, message.table), flags, 0o600)
        except OSError as error:
            log.error("cannot write the key log in %s: %s", folder, error.strerror)
            return
        with os.fdopen(descriptor, "a") as file:
            file.write(message.line + "\n")

    # --- data plane ------------------------------------------------------------------------------------

    def _tell_abutment(self, message: Message) -> None:
        self._children["abutment"].send(message)

    def _send_abutment(self, message: Message, descriptors: Sequence[int]) -> None:
        self._children["abutment"].send(message, descriptors)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        self._acp_work.put_nowait(work)

    def _data_plane_lost(self) -> None:
        for number in list(self._channels):
            self._close_channel(number, "the data plane was started again")

    # --- plane -----------------------------------------------------------------------------------------

    def _plane_ready(self) -> None:
        assert self._acp.namespace is not None
        with self._acp.namespace.entered():
            sock = sockets.rpl_socket()
        preference = Preference.CONFIGURED_ROOT if self._config.rpl.root else Preference.DEFAULT
        self._send_identity_with_key("plane")
        assert self._api is not None
        self._children["plane"].send(
            m.PlaneStart(
                self._acp.address.address,
                self._acp.address.prefix,
                preference,
                self._node.machine.texts(),
                *self._state.est_server(),
            ),
            [sock.fileno(), self._api.fileno()],
        )
        sock.close()
        for channel in self._channels.values():
            self._interface_up(channel)

    def _interface_up(self, channel: Channel) -> None:
        self._children["plane"].send(
            m.InterfaceUp(channel.index, channel.interface, channel.link_local, _rank_factor(channel.port))
        )

    def _from_plane(self, message: Message) -> bool:
        if self._acp_work.qsize() > _MAX_WORK:
            return False  # more than any change of the network makes: it has been taken over, or is broken
        match message:
            case m.RouteAdd():
                self._acp_work.put_nowait(self._add_route(message))
            case m.RouteRemove():
                self._acp_work.put_nowait(self._remove_route(message))
            case m.Registrars():
                return self._proxy.registrars(message)
            case m.Renewed():
                return self._renew(message)
            case m.Crl():
                self._crls.append(message)
                self._children["abutment"].send(message)
            case _:
                return False
        return True

    def _renew(self, message: m.Renewed) -> bool:
        """Be the same node with a new certificate; return whether it is one that the plane may bring."""
        try:
            identity = Identity.from_pem(message.certificate, message.chain, message.anchors)
        except IdentityError as error:
            log.error("the renewed certificate is of no use: %s", error)
            return False
        if (problem := renewal_problem(self.identity, identity, message, datetime.now(UTC))) is not None:
            log.error("the renewed certificate is not taken: %s", problem)
            return False
        try:
            store_identity(self._state.directory, identity, message.key)
            self._state.remember_est_server(message.address, message.port)
        except OSError as error:
            log.error("the renewed certificate cannot be kept, so it is not used: %s", error)
            return True
        self.identity = identity
        # Who signs comes before who shows the certificate.
        for role in ("signer", "plane"):
            if self._children[role].ready:
                self._send_identity_with_key(role)
        self._children["abutment"].send(self._identity_message())
        return True

    def _is_channel(self, interface: int) -> bool:
        return any(channel.index == interface for channel in self._channels.values())

    async def _remove_route(self, message: m.RouteRemove) -> None:
        if self._is_channel(message.interface):
            await self._acp.remove_route(message.prefix, message.interface)

    async def _add_route(self, message: m.RouteAdd) -> None:
        if not self._is_channel(message.interface):
            return  # the channel went down while the message was under way
        await self._acp.add_route(message.prefix, message.interface, message.next_hop)
        self._milestone("routed")

    def _plane_lost(self) -> None:
        self._acp_work.put_nowait(self._acp.flush_routes())

    async def _work_on_acp(self) -> None:
        """Do what children asked for in the ACP namespace, one thing after the other, in their order."""
        while True:
            work = await self._acp_work.get()
            try:
                await work
            except MinervaError as error:
                log.error("%s", error)

    # --- status ----------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """Return what ``minerva status`` tells of a member of a domain."""
        (abutment, plane, signer), moved = await asyncio.gather(
            asyncio.gather(*(self._children.state_of(role) for role in ("abutment", "plane", "signer"))),
            self._data_plane.status(),
        )
        expires = self.identity.certificate.not_valid_after_utc
        return {
            "node": {
                "name": str(self.identity.node_name),
                "address": str(self.identity.address),
                "domain": self.identity.node_name.domain,
                "scheme": self.identity.address.scheme.name.lower(),
                "certificate_expires": expires.isoformat(),
                "certificate_valid": datetime.now(UTC) < expires,
                "data_plane": self._data_plane.name,
                "data_plane_reason": self._data_plane_reason,
                "outer_addresses": self._config.outer_addresses,
            },
            "acp0": self._acp.status()
            | {"guard": "in place" if self._guard_problem is None else self._guard_problem},
            "neighbours": (abutment or {}).get("neighbours", []),
            "channels": self._channel_status(abutment, moved),
            "rpl": (plane or {}).get("rpl"),
            "grasp": (plane or {}).get("grasp"),
            "certificate": (plane or {}).get("certificate"),
            "proxy": self._proxy.status(abutment),
            "counters": {
                "abutment": (abutment or {}).get("counters"),
                "signer": signer,
            },
        }

    def _channel_status(self, abutment: Any, moved: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
        secured = {item["channel"]: item for item in (abutment or {}).get("channels", [])}
        return [
            secured.get(channel.number, {}) | moved.get(channel.number, {}) | channel.status()
            for channel in sorted(self._channels.values(), key=lambda channel: channel.interface)
        ]


def _rank_factor(port: Port) -> int:
    """Return OF0's rank factor for a port: 5 at 100 Mb/s and below (RFC 8994 section 6.12.1.6)."""
    device = sysfs(port.link)
    try:
        speed = int((device / "speed").read_text()) if device is not None else 0
    except (OSError, ValueError):
        speed = 0  # not a kind of interface that has one
    return LOW_SPEED_FACTOR if 0 < speed <= _SLOW_LINK_MBIT else HIGH_SPEED_FACTOR
