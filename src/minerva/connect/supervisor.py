"""The supervisor: root, and the only process with netlink. It parses nothing that comes from the network.

It keeps the ports and the processes, and what the node is just now: a pledge that looks for a domain
(:mod:`minerva.connect.enrolment`), or a member of one (:mod:`minerva.connect.member`).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from minerva.connect import leftovers
from minerva.connect.children import Children
from minerva.connect.config import Config
from minerva.connect.control import ControlServer
from minerva.connect.enrolment import Enrolment
from minerva.connect.facts import describe_machine
from minerva.connect.kernel_probe import Choice
from minerva.connect.member import Member
from minerva.connect.ports import Port, Ports
from minerva.connect.state import NodeState
from minerva.core.errors import UsageError
from minerva.linux.errors import LinuxError
from minerva.linux.netlink import Netlink
from minerva.pki.identity import Identity

log = logging.getLogger(__name__)

_RECONCILE_SECONDS = 10.0
_DEBOUNCE_SECONDS = 0.05


class Supervisor:
    """One node. :meth:`run` returns when the node was told to end; then nothing of it is left.

    ``identity`` is ``None`` for a node that has yet to find its domain; ``expired`` is what it was in it, if
    its certificate has expired.
    """

    def __init__(
        self,
        state: NodeState,
        run_dir: Path,
        config: Config,
        identity: Identity | None,
        expired: Identity | None,
        zygote: tuple[int, socket.socket],
        data_plane: Choice,
    ) -> None:
        self.state = state
        self.run_dir = run_dir
        self.config = config
        self.machine = describe_machine(config.name)
        self.host = Netlink()
        self.ports = Ports(
            state,
            config.ports,
            self.host,
            self._port_up,
            self._port_down,
            udp_encapsulation=config.ike.may_encapsulate,
            ula=config.outer_addresses == "ula",
        )
        self.children = Children(zygote[1], zygote[0], self._zygote_lost)
        self._identity = identity
        self._expired = expired
        self._data_plane = data_plane
        self._role: Enrolment | Member | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._failure: UsageError | None = None
        self._look = asyncio.Event()
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
            await leftovers.remove(self.state, self.run_dir, self.host)
            await self._control.start()
            await self.host.subscribe()
            tasks = [
                asyncio.create_task(self._play_roles()),
                asyncio.create_task(self._watch_host()),
                asyncio.create_task(self._reconcile()),
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

    async def _play_roles(self) -> None:
        """Be a pledge until there is a certificate, then a member for as long as it is good."""
        while True:
            if self._identity is None:
                self._role = pledge = Enrolment(self, self._expired)
                self._identity = await pledge.run()
                # Meanwhile the member begins its work.
                self._reporting = asyncio.create_task(pledge.report())
            self._role = member = Member(self, self._identity, self._data_plane)
            await member.open()
            await member.run()
            log.warning("the ACP certificate of this node has expired")
            if self._reporting is not None:
                await self._reporting
            await member.say_goodbye()
            await member.close()
            self._identity, self._expired = None, member.identity

    async def _tear_down(self) -> None:
        log.info("stopping")
        self._control.close()
        self.children.stopping = True
        role, clean = self._role, True
        if self._reporting is not None:
            self._reporting.cancel()
        if role is not None:
            await role.say_goodbye()
        for step in (self.ports.close(), *([role.close()] if role is not None else [])):
            try:
                await step
            except (LinuxError, OSError) as error:  # the rest must go all the same
                log.error("%s; the next start removes what is left", error)
                clean = False
        self.children.close()
        await self.host.close()
        if clean:
            log.info("stopped; nothing is left behind")

    def _zygote_lost(self) -> None:
        self.fail("the zygote process was lost; start the node again")

    def fail(self, reason: str) -> None:
        """End the node, and say why."""
        self._failure = UsageError(reason)
        self._stop.set()

    # --- ports -----------------------------------------------------------------------------------------

    async def _watch_host(self) -> None:
        async for _ in self.host.link_changes():
            self._look.set()

    def look(self) -> None:
        """Reconcile ports and acp0 soon."""
        self._look.set()

    async def _reconcile(self) -> None:
        while True:
            try:
                await self.ports.reconcile(await self.host.links())
            except (LinuxError, OSError) as error:
                log.error("%s; trying again", error)
            if isinstance(self._role, Member):
                await self._role.reconcile()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), _RECONCILE_SECONDS)
            await asyncio.sleep(_DEBOUNCE_SECONDS)
            self._look.clear()

    def _port_up(self, port: Port) -> None:
        self.milestone("link_ready")
        if self._role is not None:
            self._role.port_up(port)

    async def _port_down(self, port: Port) -> None:
        if self._role is not None:
            self._role.port_down(port)

    # --- what can be seen ------------------------------------------------------------------------------

    def milestone(self, name: str) -> None:
        """Note when something happened for the first time."""
        if name not in self._milestones:
            self._milestones[name] = time.monotonic() - self._started

    async def _tell_milestones(self, _: dict[str, Any]) -> dict[str, Any]:
        address = self._role.host_address if isinstance(self._role, Member) else None
        return {
            "started": self._started,
            "milestones": self._milestones,
            "address": None if address is None else str(address),
        }

    async def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {} if self._role is None else await self._role.status()
        return found | {
            "node": found.get("node", {})
            | {
                "machine": self.machine.name,
                "tag": self.state.tag,
                "uptime": round(time.monotonic() - self._started, 3),
            },
            "milestones": self._milestones,
            "ports": self.ports.status(),
            "processes": self.children.status(),
        }
