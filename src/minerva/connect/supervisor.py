"""The supervisor: root, and the only process with netlink. It parses nothing that comes from the network."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minerva.asa.protocol import API_SOCKET
from minerva.connect import channels, leftovers
from minerva.connect import messages as m
from minerva.connect.acp import AcpNamespace
from minerva.connect.channels import Channel, ChannelDataPlane
from minerva.connect.children import Children
from minerva.connect.config import Config
from minerva.connect.control import ControlServer
from minerva.connect.facts import describe_machine
from minerva.connect.grasp_api import open_api_socket
from minerva.connect.ipc import Message
from minerva.connect.kernel_data_plane import KernelDataPlane
from minerva.connect.kernel_probe import Choice
from minerva.connect.ports import Port, Ports, sysfs
from minerva.connect.proxy_gate import ProxyGate
from minerva.connect.state import NodeState
from minerva.connect.user_data_plane import UserDataPlane
from minerva.core.errors import MinervaError, UsageError
from minerva.linux import process, sockets
from minerva.linux.errors import LinuxError
from minerva.linux.firewall import guard_policy
from minerva.linux.netlink import Netlink
from minerva.pki.certificates import dump_pem
from minerva.pki.identity import KEY_FILE, Identity
from minerva.rpl.config import HIGH_SPEED_FACTOR, LOW_SPEED_FACTOR, Preference

log = logging.getLogger(__name__)

_RECONCILE_SECONDS = 10.0
_DEBOUNCE_SECONDS = 0.05
_GOODBYE_SECONDS = 1.5
_NUMBERS_PER_ABUTMENT = 1 << 40  # so that what one numbered is never taken for what its successor did
_MAX_SIGNING = 64
_MAX_WORK = 20_000
_MAX_CHANNELS = 1024  # more than any machine has ports and neighbours; a bound all the same
_SLOW_LINK_MBIT = 100


class Supervisor:
    """One node. :meth:`run` returns when the node was told to end; then nothing of it is left."""

    def __init__(
        self,
        state: NodeState,
        run_dir: Path,
        config: Config,
        identity: Identity,
        zygote: tuple[int, socket.socket],
        data_plane: Choice,
    ) -> None:
        self._state = state
        self._run_dir = run_dir
        self._config = config
        self._identity = identity
        self._stop = asyncio.Event()
        self._failure: UsageError | None = None
        self._host = Netlink()
        self._acp = AcpNamespace(state, identity.address, config.acp.interface)
        self._ports = Ports(state, config.ports, self._host, self._port_up, self._port_down)
        self._children = Children(zygote[1], zygote[0], self._zygote_lost)
        self._proxy = ProxyGate(
            self._acp, self._ports, self._send_abutment, time.monotonic, enabled=config.proxy.enabled
        )
        self._data_plane: ChannelDataPlane
        if data_plane.kernel:
            self._data_plane = KernelDataPlane(self._acp, self._tell_abutment, self._later)
        else:
            self._data_plane = UserDataPlane(
                self._acp, self._children, self._tell_abutment, self._data_plane_lost
            )
        self._data_plane_reason = data_plane.reason
        self._channels: dict[int, Channel] = {}
        self._abutment_generation = 0
        self._signing: set[int] = set()
        self._acp_work: asyncio.Queue[Coroutine[Any, Any, None]] = asyncio.Queue()
        self._look = asyncio.Event()
        self._guarding: asyncio.Task[None] | None = None
        self._guard_problem: str | None = "not applied yet"
        self._machine = describe_machine(config.name)
        self._api: socket.socket | None = None
        self._started = time.monotonic()
        self._milestones: dict[str, float] = {}
        self._control = ControlServer(
            run_dir / leftovers.CONTROL_SOCKET,
            {"status": self._status, "milestones": self._tell_milestones},
        )

    # --- life ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the node until a signal or the control socket says stop. Raises UsageError, LinuxError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        tasks: list[asyncio.Task[None]] = []
        try:
            await leftovers.remove(self._state, self._run_dir, self._host)
            await self._acp.open()
            self._api = open_api_socket(self._run_dir)
            self._start_children()
            await self._control.start()
            await self._host.subscribe()
            tasks = [
                asyncio.create_task(self._watch_host()),
                asyncio.create_task(self._reconcile()),
                asyncio.create_task(self._work_on_acp()),
                asyncio.create_task(self._data_plane.watch()),
            ]
            stopping = asyncio.create_task(self._stop.wait())
            done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            for task in done - {stopping}:
                task.result()
            if self._failure is not None:
                raise self._failure
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._tear_down()

    async def _tear_down(self) -> None:
        log.info("stopping")
        self._control.close()
        # Routing says goodbye through channels, so these go after it.
        for role in ("plane", "abutment"):
            await self._children.say_goodbye((role,), m.Shutdown(), _GOODBYE_SECONDS)
        self._data_plane.close()
        clean = True
        for step in (self._ports.close(), self._acp.close(self._host)):
            try:
                await step
            except (LinuxError, OSError) as error:  # the rest must go all the same
                log.error("%s; the next start removes what is left", error)
                clean = False
        self._children.close()
        # What they asked for on their way out is not done any more: all of it is gone.
        while not self._acp_work.empty():
            self._acp_work.get_nowait().close()
        if self._api is not None:
            self._api.close()
        for name in (leftovers.GUARD_FILE, API_SOCKET):
            (self._run_dir / name).unlink(missing_ok=True)
        await self._host.close()
        if clean:
            log.info("stopped; nothing is left behind")

    def _zygote_lost(self) -> None:
        self._failure = UsageError("the zygote process was lost; start the node again")
        self._stop.set()

    async def _tell_milestones(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"started": self._started, "milestones": self._milestones}

    # --- children --------------------------------------------------------------------------------------

    def _start_children(self) -> None:
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

    def _identity_message(self) -> m.Identity:
        identity = self._identity
        groups = ((identity.certificate,), identity.chain, identity.anchors)
        return m.Identity(*(dump_pem(group) for group in groups))

    # --- signer ----------------------------------------------------------------------------------------

    def _send_identity_with_key(self, role: str) -> None:
        # Copied by the kernel: the key's bytes are never in our memory, nor in that of what we fork.
        try:
            key = process.sealed_copy(self._state.directory / KEY_FILE, "minerva-key")
        except OSError as error:
            self._fail(f"cannot read {self._state.directory / KEY_FILE}: {error.strerror}")
            return
        self._children[role].send(self._identity_message(), [key])
        os.close(key)

    def _signer_ready(self) -> None:
        self._send_identity_with_key("signer")

    def _from_signer(self, message: Message) -> bool:
        match message:
            case m.SignerReady(problem=None):
                log.info("the signer holds the key of %s", self._identity.node_name)
            case m.SignerReady(problem=problem):
                self._fail(
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

    def _fail(self, reason: str) -> None:
        self._failure = UsageError(reason)
        self._stop.set()

    # --- guard -----------------------------------------------------------------------------------------

    def _guard_ready(self) -> None:
        guard = self._children["guard"]
        # Before it owns anything: what a killed node leaves, the next start must be able to find.
        leftovers.record_guard(self._run_dir, guard.pid)
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
        self._look.set()

    # --- ports -----------------------------------------------------------------------------------------

    async def _watch_host(self) -> None:
        async for _ in self._host.link_changes():
            self._look.set()

    async def _reconcile(self) -> None:
        while True:
            try:
                await self._ports.reconcile(await self._host.links())
            except (LinuxError, OSError) as error:
                log.error("%s; trying again", error)
            await self._acp.reconcile_acp0(self._host)
            if self._acp.acp0_problem is None:
                self._milestone("acp0")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), _RECONCILE_SECONDS)
            await asyncio.sleep(_DEBOUNCE_SECONDS)
            self._look.clear()

    def _milestone(self, name: str) -> None:
        if name not in self._milestones:
            self._milestones[name] = time.monotonic() - self._started

    def _port_up(self, port: Port) -> None:
        self._milestone("link_ready")
        assert port.link_local is not None
        self._children["abutment"].send(
            m.PortUp(port.number, port.name, port.link_local), [sock.fileno() for sock in port.descriptors]
        )

    async def _port_down(self, port: Port) -> None:
        self._children["abutment"].send(m.PortDown(port.number))
        self._proxy.port_down(port)
        for channel in [channel for channel in self._channels.values() if channel.port is port]:
            self._close_channel(channel.number, "the port is down")

    # --- abutment --------------------------------------------------------------------------------------

    def _abutment_ready(self) -> None:
        abutment = self._children["abutment"]
        abutment.send(self._identity_message())
        first = self._abutment_generation * _NUMBERS_PER_ABUTMENT
        ike = self._config.ike
        abutment.send(
            m.AbutmentStart(first, bool(self._config.debug.key_log), ike.ike_lifetime, ike.child_lifetime)
        )
        for port in self._ports.ports.values():
            if port.announced:
                self._port_up(port)
        self._proxy.abutment_ready()

    def _abutment_lost(self) -> None:
        self._proxy.abutment_lost()
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
        if not message.peer.is_link_local or any((c.port, c.peer) == (port, message.peer) for c in others):
            raise LinuxError("there is a channel to that neighbour already, or it is none")
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
            channel = await channels.plan(
                message.channel, port, message.peer, message.peer_name, self._state, self._acp
            )
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
        if channel.port.netlink is not None:
            await channel.port.netlink.delete_neighbour(channel.port.index, channel.peer)

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
                self._acp.address.address, self._acp.address.prefix, preference, self._machine.texts()
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
            case _:
                return False
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

    async def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        (abutment, plane, signer), moved = await asyncio.gather(
            asyncio.gather(*(self._children.state_of(role) for role in ("abutment", "plane", "signer"))),
            self._data_plane.status(),
        )
        expires = self._identity.certificate.not_valid_after_utc
        return {
            "node": {
                "name": str(self._identity.node_name),
                "machine": self._machine.name,
                "address": str(self._identity.address),
                "domain": self._identity.node_name.domain,
                "scheme": self._identity.address.scheme.name.lower(),
                "certificate_expires": expires.isoformat(),
                "certificate_valid": datetime.now(UTC) < expires,
                "tag": self._state.tag,
                "data_plane": self._data_plane.name,
                "data_plane_reason": self._data_plane_reason,
                "uptime": round(time.monotonic() - self._started, 3),
            },
            "acp0": self._acp.status()
            | {"guard": "in place" if self._guard_problem is None else self._guard_problem},
            "milestones": self._milestones,
            "ports": self._ports.status(),
            "neighbours": (abutment or {}).get("neighbours", []),
            "channels": self._channel_status(abutment, moved),
            "rpl": (plane or {}).get("rpl"),
            "grasp": (plane or {}).get("grasp"),
            "proxy": self._proxy.status(abutment),
            "counters": {
                "abutment": (abutment or {}).get("counters"),
                "signer": signer,
            },
            "processes": self._children.status(),
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
