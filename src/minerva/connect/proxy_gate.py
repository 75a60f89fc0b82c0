"""What the join proxy needs of root: sockets on both sides, and the firewall's consent.

The abutment, which strangers speak to, asks; here is checked whether that makes sense. A socket that it gets
is marked, and the firewall of the ACP namespace lets marked packets go to registrars that the plane has told
of, and nowhere else: so a socket is good for nothing else, whatever is done with it.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any

from minerva.connect import messages as m
from minerva.connect.acp import AcpNamespace
from minerva.connect.circuit import LIFETIME_SECONDS
from minerva.connect.ipc import Message
from minerva.connect.join_proxy import PROXY_PORTS
from minerva.connect.ports import DEVICE, Port, Ports
from minerva.connect.registrar_watch import MAX_REGISTRARS
from minerva.core.addresses import UNIQUE_LOCAL
from minerva.core.rate import TokenBucket
from minerva.grasp.constants import GRASP_LISTEN_PORT
from minerva.linux import sockets
from minerva.linux.errors import LinuxError
from minerva.linux.firewall import PROXY_MARK, open_proxy, proxy_targets
from minerva.linux.nftables import Nftables

log = logging.getLogger(__name__)

SOCKETS_PER_SECOND, SOCKET_BURST = 50, 200
"""How many sockets to registrars the abutment gets: enough for all connections that it may have at once."""

_Target = tuple[IPv6Address, int]


@dataclass(frozen=True, slots=True)
class _Opening:
    """What is open on a port."""

    connect: tuple[int, ...] = ()
    circuits: tuple[int, ...] = ()


class ProxyGate:
    """The supervisor's part of the join proxy. ``tell`` sends to the abutment; ``now`` is the time."""

    def __init__(
        self,
        acp: AcpNamespace,
        ports: Ports,
        tell: Callable[[Message, Sequence[int]], None],
        now: Callable[[], float],
        *,
        enabled: bool,
    ) -> None:
        self.enabled = enabled
        self._acp = acp
        self._ports = ports
        self._tell = tell
        self._now = now
        self._registrars: tuple[m.Registrar, ...] = ()
        self._left: dict[_Target, float] = {}  # registrars no more, and when their last circuit has ended
        self._open: dict[int, _Opening] = {}
        self._sockets = TokenBucket(SOCKET_BURST, 1 / SOCKETS_PER_SECOND)

    @property
    def _targets(self) -> set[_Target]:
        return {(registrar.address, registrar.port) for registrar in self._registrars}

    def abutment_ready(self) -> None:
        """Tell a new abutment what there is."""
        if self._registrars:
            self._tell(m.Registrars(self._registrars), ())

    def close_all(self) -> None:
        """Close everything: the abutment is gone, and nobody is there to talk to."""
        for number in list(self._open):
            port = self._ports.by_number(number)
            if port is not None:
                self._let_in(port, _Opening())
        self._open.clear()

    def port_down(self, port: Port) -> None:
        """Close what is open on a port, before it can come up again."""
        if self._open.pop(port.number, None) is not None:
            self._let_in(port, _Opening())

    def registrars(self, message: m.Registrars) -> bool:
        """Note which registrars the plane knows; return whether it is one that makes sense."""
        if len(message.registrars) > MAX_REGISTRARS or not all(map(_can_be, message.registrars)):
            return False
        if not self.enabled:
            return True
        before = self._targets
        self._registrars = message.registrars
        if self._targets != before:
            self._let_out(before)
        self._tell(message, ())
        return True

    def _let_out(self, before: set[_Target]) -> None:
        """Let the proxy's sockets go to the registrars; and to former ones, for what is under way."""
        now = self._now()
        for target in before - self._targets:
            self._left[target] = now + LIFETIME_SECONDS
        self._left = {
            target: until
            for target, until in self._left.items()
            if until > now and target not in self._targets
        }
        while len(self._left) > MAX_REGISTRARS:
            del self._left[min(self._left, key=self._left.__getitem__)]
        assert self._acp.namespace is not None
        try:
            with self._acp.namespace.entered(), Nftables() as nftables:
                nftables.run(proxy_targets(self._targets.union(self._left)))
        except LinuxError as error:
            log.error("the join proxy cannot reach registrars: %s", error)

    # --- what the abutment asks for ----------------------------------------------------------------------

    def open(self, message: m.ProxyOpen) -> bool:
        """Open TCP ports to strangers, or close them; return whether an honest abutment would ask for it."""
        if not set(message.connect + message.circuits) <= set(PROXY_PORTS):
            return False
        port = self._ports.by_number(message.port)
        if port is None or not port.announced or port.namespace is None:
            return True  # it went while the message was under way
        wanted = _Opening(message.connect if self._registrars else (), message.circuits)
        listeners: list[socket.socket] = []
        try:
            with port.namespace.entered():
                listeners += [sockets.proxy_listener(DEVICE, number) for number in wanted.connect]
            if not self._let_in(port, wanted):
                wanted = _Opening()
        except OSError as error:
            log.error("no join proxy on port %s: %s", port.name, error.strerror)
            wanted = _Opening()
        self._open[port.number] = wanted
        opened = m.ProxyOpened(port.number, wanted.connect)
        self._tell(opened, [sock.fileno() for sock in listeners[: len(wanted.connect)]])
        for sock in listeners:
            sock.close()
        return True

    def _let_in(self, port: Port, wanted: _Opening) -> bool:
        if port.namespace is None:
            return False
        try:
            with port.namespace.entered(), Nftables() as nftables:
                nftables.run(open_proxy(wanted.connect, wanted.circuits))
        except LinuxError as error:
            log.error("no join proxy on port %s: %s", port.name, error)
            return False
        return True

    def connect(self, message: m.ProxyConnect) -> bool:
        """Make a socket that is connecting to a registrar."""
        reason = None
        if (message.address, message.port) not in self._targets:
            reason = "it is no registrar any more"
        elif not self._sockets.take(self._now()):
            reason = "too many connections to registrars were asked for"
        if reason is None:
            try:
                sock = self._connecting(message.address, message.port)
            except OSError as error:
                reason = error.strerror or str(error)
            else:
                self._tell(m.ProxySocket(message.request), [sock.fileno()])
                sock.close()
                return True
        self._tell(m.ProxyRefused(message.request, reason), ())
        return True

    def _connecting(self, address: IPv6Address, port: int) -> socket.socket:
        assert self._acp.namespace is not None
        with self._acp.namespace.entered():
            sock = sockets.proxy_socket(self._acp.address.address, PROXY_MARK)
            try:
                sockets.start_connect(sock, address, port)
            except OSError:
                sock.close()
                raise
        return sock

    # --- state -------------------------------------------------------------------------------------------

    def status(self, abutment: Any) -> dict[str, Any]:
        """Return the join proxy for ``minerva status``, given what the abutment says of it."""
        found = (abutment or {}).get("proxy") or {}
        return {"enabled": self.enabled, **found}


def _can_be(registrar: m.Registrar) -> bool:
    """Return whether a registrar is where an honest plane finds one."""
    return (
        registrar.address in UNIQUE_LOCAL
        and 0 < registrar.port < 65_536
        and registrar.port != GRASP_LISTEN_PORT
    )
