"""A node that has no ACP certificate: the supervisor's side of the pledge (RFC 8995 section 2).

The pledge itself is a process of its own, :mod:`minerva.connect.pledge`, for it reads what strangers send.
Here its sockets are made, and what it brings home is kept.
"""

from __future__ import annotations

import asyncio
import logging
import os
from datetime import UTC, datetime
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, Protocol

from minerva.brski.pledge.constants import MDNS_GROUP, MDNS_PORT
from minerva.connect import messages as m
from minerva.connect.children import Children
from minerva.connect.ipc import Message
from minerva.connect.ports import DEVICE, Port, Ports
from minerva.connect.state import NodeState
from minerva.linux import process, sockets
from minerva.pki.errors import IdentityError, KeyRuleError
from minerva.pki.identity import (
    ANCHORS_FILE,
    CERTIFICATE_FILE,
    CHAIN_FILE,
    IDEVID_DIRECTORY,
    KEY_FILE,
    Identity,
    check_own,
    load_identity,
    store_identity,
)
from minerva.pki.keys import load_private_key

log = logging.getLogger(__name__)

_ROLE = "pledge"
_GOODBYE_SECONDS = 1.0
_REPORT_SECONDS = 20.0
_WATCH_SECONDS = 2.0
_MAX_STEPS = 64
_MDNS_HOP_LIMIT = 255  # RFC 6762 section 11
_MILESTONES = {"proxy_heard": "proxy_heard", "voucher_verified": "voucher"}


def _version(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


class Node(Protocol):
    """What an enrolment needs of its supervisor."""

    state: NodeState
    ports: Ports
    children: Children

    def milestone(self, name: str) -> None:
        """Note when something happened for the first time."""

    def fail(self, reason: str) -> None:
        """End the node, and say why."""


class Enrolment:
    """The node while it is a pledge: :meth:`run` returns when it is none any more.

    ``expired`` is the membership that the node had, if its certificate could not be renewed in time.
    """

    def __init__(self, node: Node, expired: Identity | None = None) -> None:
        self._node = node
        self._expired = expired
        self._enrolled: asyncio.Future[Identity] = asyncio.get_running_loop().create_future()
        self._reported = asyncio.Event()
        self._steps: dict[tuple[int, IPv6Address], m.PledgeStep] = {}

    async def run(self) -> Identity:
        """Look for a domain that takes this device; return who it is there, as soon as that is kept."""
        log.info("this device has no valid ACP certificate: looking for a join proxy on all ports")
        self._node.ports.let_pledge(connect=True, mdns=True)
        self._node.children.start(_ROLE, self._from_pledge, self._pledge_ready, self._pledge_lost)
        watching = asyncio.create_task(self._watch_directory())
        try:
            identity = await self._enrolled
        finally:
            watching.cancel()
        # To tell the registrar it has to connect once more, but there is nothing to look for.
        self._node.ports.let_pledge(connect=True, mdns=False)
        return identity

    async def _watch_directory(self) -> None:
        """Be the member whose identity somebody puts into the state directory, such as a registrar here."""
        directory = self._node.state.directory
        certificate = directory / CERTIFICATE_FILE
        before = _version(certificate)
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if (now := _version(certificate)) == before:
                continue
            before = now
            try:
                identity = load_identity(directory)
                check_own(identity, datetime.now(UTC))
            except IdentityError as error:
                log.warning("%s", error)
                continue
            if not self._enrolled.done():
                log.info("an identity was put into %s: this node is %s", directory, identity.node_name)
                self._reported.set()
                self._enrolled.set_result(identity)
            return

    async def report(self) -> None:
        """Let the pledge tell the registrar how it went, while the member begins its work; then end it."""
        try:
            await asyncio.wait_for(self._reported.wait(), _REPORT_SECONDS)
        except TimeoutError:
            log.warning("the registrar could not be told within %d seconds that all is well", _REPORT_SECONDS)
        await self.say_goodbye()
        self._node.ports.let_pledge(connect=False, mdns=False)

    # --- the pledge process ----------------------------------------------------------------------------

    def _pledge_ready(self) -> None:
        keys: list[int] = []
        certificates: list[bytes] = []
        here = self._node.state.directory
        try:
            for directory, there in (
                (here / IDEVID_DIRECTORY, (here / IDEVID_DIRECTORY).is_dir()),
                (here, self._expired is not None),
            ):
                if not there:
                    certificates += [b"", b"", b""]
                    continue
                # Copied by the kernel: the key's bytes are never in our memory, nor in that of what we fork.
                keys.append(process.sealed_copy(directory / KEY_FILE, "minerva-key"))
                certificates += [
                    (directory / name).read_bytes() for name in (CERTIFICATE_FILE, CHAIN_FILE, ANCHORS_FILE)
                ]
            self._node.children[_ROLE].send(m.PledgeStart(*certificates), keys)
        except OSError as error:
            self._node.fail(f"cannot read {error.filename}: {error.strerror}")
        finally:
            for key in keys:
                os.close(key)
        for port in self._node.ports.ports.values():
            if port.announced:
                self.port_up(port)

    def _pledge_lost(self) -> None:
        self._steps.clear()
        if self._enrolled.done():
            self._reported.set()

    def port_up(self, port: Port) -> None:
        """A port can be used."""
        assert port.link_local is not None
        assert port.namespace is not None
        dull, *_ = port.descriptors
        message = m.PledgePort(port.number, port.name, port.link_local)
        try:
            with port.namespace.entered():
                mdns = sockets.multicast_socket(
                    DEVICE, port.index, MDNS_GROUP, MDNS_PORT, hops=_MDNS_HOP_LIMIT
                )
        except OSError as error:
            log.warning("port %s: no multicast DNS: %s", port.name, error.strerror)
            self._node.children[_ROLE].send(message, [dull.fileno()])
        else:
            with mdns:
                self._node.children[_ROLE].send(message, [dull.fileno(), mdns.fileno()])

    def port_down(self, port: Port) -> None:
        """A port cannot be used any more."""
        self._node.children[_ROLE].send(m.PortDown(port.number))
        for key in [key for key in self._steps if key[0] == port.number]:
            del self._steps[key]

    def _from_pledge(self, message: Message) -> bool:
        match message:
            case m.PledgeConnect():
                self._connect(message)
            case m.PledgeStep():
                self._step(message)
            case m.PledgeEnrolled() if not self._enrolled.done():
                return self._keep(message)
            case m.PledgeDone() if self._enrolled.done():
                self._reported.set()
            case _:
                return False
        return True

    def _connect(self, message: m.PledgeConnect) -> None:
        port = self._node.ports.by_number(message.port)
        pledge = self._node.children[_ROLE]
        if port is None or port.namespace is None or port.link_local is None or not port.announced:
            pledge.send(m.PledgeSocket(message.request, "the port is gone"))
            return
        if not message.address.is_link_local or not 0 < message.tcp_port < 65_536:
            pledge.send(m.PledgeSocket(message.request, f"{message.address} is not on the link"))
            return
        try:
            with port.namespace.entered():
                sock = sockets.pledge_socket(DEVICE, port.index, port.link_local)
            with sock:
                sockets.start_connect(sock, message.address, message.tcp_port, port.index)
                pledge.send(m.PledgeSocket(message.request, None), [sock.fileno()])
        except OSError as error:
            pledge.send(m.PledgeSocket(message.request, error.strerror or str(error)))

    def _step(self, step: m.PledgeStep) -> None:
        if (milestone := _MILESTONES.get(step.step)) is not None:
            self._node.milestone(milestone)
        if len(self._steps) < _MAX_STEPS or (step.port, step.address) in self._steps:
            self._steps[step.port, step.address] = step

    def _keep(self, message: m.PledgeEnrolled) -> bool:
        """Keep what the pledge brought; return whether it is something that a node can be."""
        try:
            identity = Identity.from_pem(message.certificate, message.chain, message.anchors)
            key = load_private_key(message.key.reveal())
        except (IdentityError, KeyRuleError) as error:
            log.error("what the pledge brought is of no use: %s", error)
            return False
        # It is there at the next start too: a pledge that has gone astray must not end the node for good.
        if key.public_key() != identity.certificate.public_key():
            log.error("what the pledge brought is of no use: key and certificate do not belong together")
            return False
        try:
            store_identity(self._node.state.directory, identity, message.key)
        except OSError as error:
            self._node.fail(f"this device was enrolled, but cannot keep its certificate: {error}")
            return True
        self._node.milestone("enrolled")
        log.info("enrolled: this node is %s", identity.node_name)
        self._enrolled.set_result(identity)
        return True

    # --- the end ---------------------------------------------------------------------------------------

    async def say_goodbye(self) -> None:
        """End the pledge."""
        await self._node.children.end(_ROLE, m.Shutdown(), _GOODBYE_SECONDS)

    async def close(self) -> None:
        """Leave nothing behind: all that there was is the process, and the ports go on their own."""

    async def status(self) -> dict[str, Any]:
        """Return what ``minerva status`` tells of a pledge."""
        found = await self._node.children.state_of(_ROLE) or {}
        names = {port.number: port.name for port in self._node.ports.ports.values()}
        steps = [
            {
                "port": names.get(step.port, str(step.port)),
                "proxy": str(step.address),
                "step": step.step,
                "detail": step.detail,
            }
            for step in self._steps.values()
        ]
        return {"pledge": {"steps": steps} | found}
