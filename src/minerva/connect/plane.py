"""The plane: routing and GRASP inside the ACP. It lives in the ACP namespace and has no privileges."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from ipaddress import IPv6Address
from math import inf
from typing import Any

from minerva.asa.inventory import Description
from minerva.asa.services import AN_JOIN_REGISTRAR, SRV_EST
from minerva.brski.pledge.enrolment import Enrolled
from minerva.connect.child import Child
from minerva.connect.grasp import GraspRunner, GraspTls
from minerva.connect.grasp_api import ApiServer
from minerva.connect.inventory import InventoryAsa
from minerva.connect.ipc import Message
from minerva.connect.keys import load_key
from minerva.connect.maintenance import Maintenance, Server
from minerva.connect.messages import Crl as CrlMessage
from minerva.connect.messages import Identity as IdentityMessage
from minerva.connect.messages import InterfaceDown, InterfaceUp, PlaneStart, Registrars, Renewed
from minerva.connect.registrar_watch import RegistrarWatch
from minerva.connect.rpl import RplRunner
from minerva.core.errors import MinervaError
from minerva.core.secret import Secret
from minerva.grasp.api import ErrorCode
from minerva.grasp.engine import Answer, FloodTaken, GraspEngine
from minerva.grasp.options import IPv6Locator
from minerva.grasp.session import SessionEnded
from minerva.grasp.substrate import Traced
from minerva.pki.address import AcpAddress
from minerva.pki.certificates import dump_pem
from minerva.pki.crl import Crl
from minerva.pki.identity import Identity
from minerva.pki.keys import dump_private_key
from minerva.rpl.config import Preference
from minerva.tls.context import make_context

log = logging.getLogger(__name__)


class Plane(Child):
    """The plane process: RPL on one raw ICMPv6 socket, GRASP on TCP and TLS, ASAs on a Unix socket."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._loop = asyncio.get_running_loop()
        self._names: dict[int, str] = {}
        self._tls: GraspTls | None = None
        self._maintenance: Maintenance | None = None
        self._rpl: RplRunner | None = None
        self._grasp: GraspRunner | None = None
        self._api: ApiServer | None = None
        self._registrars: RegistrarWatch | None = None
        self._registrars_timer: asyncio.TimerHandle | None = None

    def handle(self, message: Message, descriptors: list[int]) -> bool:
        if isinstance(message, IdentityMessage) and len(descriptors) == 1:
            self._take_identity(message, descriptors[0])
        elif isinstance(message, PlaneStart) and self._rpl is None and len(descriptors) == 2:
            self._start(message, *descriptors)
        elif isinstance(message, InterfaceUp) and self._rpl is not None:
            self._interface_up(self._rpl, message)
        elif isinstance(message, InterfaceDown) and self._rpl is not None:
            self._interface_down(self._rpl, message.interface)
        else:
            return False
        return True

    def _take_identity(self, message: IdentityMessage, descriptor: int) -> None:
        """Be this member from now on: at the start, and when the certificate is renewed."""
        try:
            identity = Identity.from_pem(message.certificate, message.chain, message.anchors)
            key = load_key(message, descriptor)
            context = make_context(identity.certificate, identity.chain, key)
        except MinervaError as error:  # the signer says the same, and with it the node ends
            log.error("%s", error)
            self.stop()
            return
        if self._maintenance is None:
            self._maintenance = Maintenance(
                identity, key, servers=self._est_servers, on_renewed=self._renewed, on_crl=self._take_crl
            )
        else:
            self._maintenance.take(identity, key)
        self._tls = GraspTls(context, identity, self._maintenance.crls)
        if self._grasp is not None:
            self._grasp.tls = self._tls

    def _est_servers(self) -> list[Server]:
        if self._grasp is None:
            return []
        found = self._grasp.engine.floods(SRV_EST, self._loop.time())
        locators = (copy.locator for copy in found)
        return [
            (locator.address, locator.port)
            for locator in locators
            if isinstance(locator, IPv6Locator) and locator.port and not locator.address.is_link_local
        ]

    def _renewed(self, enrolled: Enrolled, server: Server) -> None:
        self.send(
            Renewed(
                dump_pem((enrolled.certificate,)),
                dump_pem(enrolled.chain),
                dump_pem(enrolled.anchors),
                Secret(dump_private_key(enrolled.key)),
                *server,
            )
        )

    def _take_crl(self, crl: Crl) -> None:
        self.send(CrlMessage(crl.der))

    def _start(self, start: PlaneStart, rpl_socket: int, api_socket: int) -> None:
        if self._tls is None:
            for descriptor in (rpl_socket, api_socket):
                os.close(descriptor)
            return
        if start.est_port and self._maintenance is not None:
            self._maintenance.last_server = (start.est_address, start.est_port)
        self._rpl = RplRunner(start, rpl_socket, send=self.send, heard=self._heard, name=self._name_of)
        engine = GraspEngine(start.address, random=random.SystemRandom())
        self._grasp = GraspRunner(
            engine, self._tls, on_event=self._on_grasp, is_channel=self._names.__contains__
        )
        self._registrars = RegistrarWatch(
            engine,
            (start.address, AcpAddress(start.address).with_v(1).address),
            self._loop.time(),
            tell=lambda registrars: self.send(Registrars(registrars)),
            tell_local=lambda local: self._registrar_here(Preference(start.preference), local),
        )
        self._api = ApiServer(socket.socket(fileno=api_socket), engine, self._api_used, self._name_of)
        self._listening = self._loop.create_task(self._grasp.listen())
        # Without its listener GRASP is half deaf: let it be seen, and start again.
        self._listening.add_done_callback(lambda task: task.cancelled() or task.result())
        self._look_for_registrars()
        inventory = InventoryAsa(engine, Description.of_texts(start.machine), self._loop.time)
        self._tell_inventory(inventory)

    def _api_used(self) -> None:
        assert self._grasp is not None
        self._grasp.pump()
        self._look_for_registrars()

    def _look_for_registrars(self) -> None:
        assert self._registrars is not None
        when = self._registrars.look(self._loop.time())
        if self._registrars_timer is not None:
            self._registrars_timer.cancel()
        self._registrars_timer = None if when == inf else self._loop.call_at(when, self._look_for_registrars)

    def _registrar_here(self, configured: Preference, here: bool) -> None:
        """Want to be the root while a registrar is on this machine (RFC 8994 section 6.12.1.12)."""
        assert self._rpl is not None
        log.info("a registrar %s on this machine", "announces itself" if here else "is no longer announced")
        self._rpl.prefer(max(configured, Preference.REGISTRAR) if here else configured)

    def _tell_inventory(self, inventory: InventoryAsa) -> None:
        seconds = inventory.flood()
        assert self._grasp is not None
        self._grasp.pump()
        self._loop.call_later(seconds, self._tell_inventory, inventory)

    def _interface_up(self, rpl: RplRunner, message: InterfaceUp) -> None:
        self._names[message.interface] = message.name
        assert self._grasp is not None
        self._grasp.engine.interface_up(message.interface, message.link_local, self._loop.time())
        if not rpl.interface_up(message):
            self._interface_down(rpl, message.interface)
        self._grasp.pump()

    def _interface_down(self, rpl: RplRunner, interface: int) -> None:
        # Routing first: it is what the rest of the network waits for.
        rpl.interface_down(interface)
        assert self._grasp is not None
        self._grasp.engine.interface_down(interface, self._loop.time())
        self._grasp.pump()
        self._names.pop(interface, None)

    def _heard(self, interface: int, address: IPv6Address) -> None:
        """GRASP learns from routing who is behind a channel (RFC 8994 section 6.13.5.2)."""
        if self._grasp is not None:
            self._grasp.engine.peer_heard(interface, address, self._loop.time())
            self._grasp.pump()

    def _on_grasp(self, event: object) -> None:
        assert self._api is not None
        match event:
            case Answer() | Traced():
                self._api.deliver(event)
            case FloodTaken():
                names = ", ".join(ascii(entry.objective.name) for entry in event.flood.entries)
                log.debug("flood of %s by %s", names, event.flood.initiator)
                if any(entry.objective.name == AN_JOIN_REGISTRAR for entry in event.flood.entries):
                    self._look_for_registrars()
            case SessionEnded() if event.code is not ErrorCode.ok:
                how = f"{event.code.name}{f': {event.reason!a}' if event.reason else ''}"
                log.info("GRASP session on %a with %s: %s", event.objective, event.peer, how)

    def _name_of(self, interface: int) -> str:
        return self._names.get(interface, f"interface {interface}")

    def state(self) -> dict[str, Any]:
        if self._rpl is None or self._grasp is None or self._api is None:
            return {}
        grasp = self._grasp.engine.summary() | self._grasp.status()
        for link in grasp["links"]:
            link["interface"] = self._name_of(link["interface"])
        assert self._maintenance is not None
        return {
            "rpl": self._rpl.state(),
            "grasp": grasp | self._api.status(),
            "certificate": self._maintenance.status(),
        }

    def shutdown(self) -> None:
        """Tell the neighbours that all routes through here end, then end."""
        if self._rpl is not None:
            self._rpl.shutdown()
        if self._grasp is not None:
            self._grasp.close()
        self.stop()
