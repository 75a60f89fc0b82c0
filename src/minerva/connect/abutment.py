"""The abutment: DULL GRASP, adjacency and IKEv2 on all ports. It reads what strangers send.

It has no key, no privileges and no file. Signatures come from the signer; session keys go to the data
plane through the supervisor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from typing import Any

from cryptography import x509

from minerva.adjacency.core import Adjacency
from minerva.adjacency.outer import OuterAddresses
from minerva.adjacency.responder import ResponderLimit
from minerva.adjacency.roles import PeerIdentity
from minerva.adjacency.table import (
    CheckConnection,
    CloseConnection,
    Initiate,
    RolesDecided,
    Unexpected,
)
from minerva.connect import messages as m
from minerva.connect.abutment_parts import Channel, Connection, Peer, Port, neighbour_state
from minerva.connect.child import Child
from minerva.connect.ipc import Message
from minerva.connect.join_proxy import JoinProxy
from minerva.connect.runner import CoreRunner
from minerva.core.addresses import OwnAddresses
from minerva.esp.keylog import esp_sa_line
from minerva.grasp import dull
from minerva.grasp.announcement import Announcement, channel_methods
from minerva.ikev2 import events as ike
from minerva.ikev2.config import Config, UdpEncapsulation
from minerva.ikev2.constants import ENCAPSULATION_PORT, ExchangeType
from minerva.ikev2.encapsulation import message_in
from minerva.ikev2.endpoint import Endpoint
from minerva.ikev2.errors import IkeDecodeError
from minerva.ikev2.keylog import ikev2_decryption_table_line
from minerva.ikev2.message import Header
from minerva.pki.crl import CrlStore
from minerva.pki.errors import CrlError
from minerva.pki.identity import Identity
from minerva.pki.membership import Member, check_membership

log = logging.getLogger(__name__)

_EXPIRY_SECONDS = 5.0  # the longest time between two looks, should somebody set the clock
_LAST_SECOND = timedelta(seconds=1)  # that of notAfter is still within the validity (RFC 5280 4.1.2.5)
_GOODBYE_SECONDS = 0.3
_TAKEOVER_SECONDS, _DEAD_SECONDS = 2.0, 12.0  # until routing uses a new channel; until a dead one has ended
_SHOW_SECONDS, _SHOW_AGAIN_SECONDS = 2.0, 3.0
_FRESH_KEYS_SECONDS = 10.0
_FRESH_KEYS_AGAIN_SECONDS = 1.0


def _attempt(data: bytes) -> bytes | None:
    """Return the initiator's SPI if the message is an IKE_SA_INIT request: somebody wants a new IKE SA."""
    try:
        header = Header.decode(data)
    except IkeDecodeError:
        return None
    wanted = header.exchange == ExchangeType.IKE_SA_INIT and not header.is_response
    return header.spi_i if wanted else None


class Abutment(Child):
    """The abutment process: ports come and go, neighbours are heard, channels are made and end."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._loop = asyncio.get_running_loop()
        self._identity: Identity | None = None
        self._adjacency: Adjacency | None = None
        self._config = Config()
        self._ports: dict[int, Port] = {}
        self._channels: dict[Peer, Channel] = {}
        self._last_channel = 0
        self._signing: dict[int, tuple[int, int]] = {}  # request: port, IKE SA
        self._last_request = 0
        self._limit = ResponderLimit()
        self._proxy = JoinProxy(self.send, self._announce, random=random.SystemRandom())
        self._limited = 0
        self._crls = CrlStore()
        self._outdated: set[Peer] = set()  # whom we have not shown our newest certificate
        self._adjacency_timer: asyncio.TimerHandle | None = None
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._check_expiry()

    # --- messages --------------------------------------------------------------------------------------

    def handle(self, message: Message, descriptors: list[int]) -> bool:
        match message:
            case m.Identity():
                self._take_identity(message)
            case m.Crl():
                self._take_crl(message.crl)
            case m.AbutmentStart():
                self._config = Config(
                    keylog=message.key_log,
                    ike_lifetime=message.ike_lifetime,
                    child_lifetime=message.child_lifetime,
                    udp_encapsulation=UdpEncapsulation(message.udp_encapsulation),
                )
                self._last_channel = self._last_request = message.first
            case m.PortUp() if len(descriptors) in (2, 3):
                self._port_up(message, descriptors)
            case m.PortDown():
                self._port_down(message.port)
            case m.SignReply():
                self._signed(message)
            case m.Traffic():
                self._traffic(message.channels)
            case m.ChannelRefused() | m.ChannelFault():
                self._drop_channel(message.channel, message.reason)
            case m.ChannelRekey():
                self._rekey_channel(message.channel)
            case m.DataPlaneLost():
                self._data_plane_lost()
            case m.Registrars():
                self._proxy.registrars(message.registrars)
            case m.OuterRoutesOpened():
                self._routes_opened(message)
            case m.ProxyOpened():
                self._proxy.opened(message, descriptors)
            case m.ProxySocket() if len(descriptors) == 1:
                self._proxy.connecting(message.request, descriptors[0])
            case m.ProxyRefused():
                self._proxy.not_connecting(message.request, message.reason)
            case _:
                return False
        return True

    # --- who we are, and who is whom -------------------------------------------------------------------

    def _take_identity(self, message: m.Identity) -> None:
        """Be this node: at the start, and when the certificate is renewed."""
        self._identity = Identity.from_pem(message.certificate, message.chain, message.anchors)
        if self._adjacency is None:
            self._adjacency = Adjacency(self._identity.address)
            return
        log.info("this node has a new certificate: showing it to all neighbours")
        for port in self._ports.values():
            port.endpoint.set_identity(self._identity)
        # What is under way has shown the old one, and is over by then.
        self._loop.call_later(_SHOW_SECONDS, self._begin_showing)

    def _begin_showing(self) -> None:
        self._outdated = set(self._channels)
        self._show_certificate()

    def _show_certificate(self) -> None:
        """Authenticate with the new certificate to those who know only the old one, before that expires.

        Make before break: the new connections take over, and the Deciders close the old ones.
        """
        assert self._adjacency is not None
        self._outdated.intersection_update(self._channels)
        if not self._outdated:
            return
        for number, address in self._outdated:
            self._adjacency.reauthenticate(number, address, self._loop.time())
        self._follow_adjacency()
        self._loop.call_later(_SHOW_AGAIN_SECONDS * random.uniform(0.8, 1.2), self._show_certificate)

    def _take_crl(self, der: bytes) -> None:
        """Believe a CRL from now on, and end what was authenticated by a certificate that it revokes."""
        assert self._identity is not None
        issuers = (*self._identity.chain, *self._identity.anchors)
        try:
            crl = self._crls.add(der, issuers, datetime.now(UTC))
        except CrlError as error:
            log.warning("a CRL is not believed: %s", error)
            return
        for (number, _), channel in list(self._channels.items()):
            for sa, connection in list(channel.connections.items()):
                certificate = connection.certificate
                if certificate.issuer == crl.issuer and certificate.serial_number in crl.serial_numbers:
                    log.warning("the certificate of %s is revoked", channel.peer_name)
                    self._close_connection((number, sa), "the peer's certificate is revoked")

    # --- ports -----------------------------------------------------------------------------------------

    def _port_up(self, message: m.PortUp, descriptors: list[int]) -> None:
        assert self._identity is not None
        assert self._adjacency is not None
        self._port_down(message.port)
        now = self._loop.time()
        port = Port(
            message.port,
            message.name,
            OwnAddresses(message.link_local, message.ula),
            dull.DullInstance(
                message.link_local, random=random.SystemRandom(), unique_local=message.ula is not None
            ),
            OuterAddresses(self._adjacency, message.port, message.ula),
            Endpoint(
                message.link_local,
                self._identity,
                self._authenticate,
                os.urandom,
                config=self._config,
                ula=message.ula,
                held_elsewhere=lambda name: self._held_elsewhere(message.port, name),
            ),
        )
        self._ports[port.number] = port
        dull_socket, ike_socket, *marked = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        port.dull_runner = CoreRunner(port.dull, dull_socket, lambda event, _: self._heard(port, event))
        port.ike_runner = CoreRunner(
            port.endpoint,
            ike_socket,
            lambda event, _: self._on_ike(port, event),
            accept=lambda *datagram: self._may_answer(port, *datagram),
            others={ENCAPSULATION_PORT: marked[0]} if marked else {},
        )
        self._adjacency.port_up(port.number, message.link_local, now, ula=message.ula)
        port.dull.announce(port.acp, now)
        port.dull_runner.pump()
        self._follow_adjacency()
        self._proxy.port_up(port.number, port.name)

    def _announce(self, number: int, offers: Sequence[Announcement]) -> None:
        """Announce the ACP and what the join proxy offers."""
        port = self._ports.get(number)
        if port is not None and port.dull_runner is not None:
            port.dull.announce([*port.acp, *offers], self._loop.time())
            port.dull_runner.pump()

    def _port_down(self, number: int) -> None:
        port = self._ports.pop(number, None)
        if port is None or self._adjacency is None:
            return
        self._adjacency.port_down(number, self._loop.time())
        self._proxy.port_down(number)
        self._limit.forget_port(number)
        for peer in [peer for peer in self._channels if peer[0] == number]:
            self._end_channel(peer, "the port is down")
        port.close()
        self._follow_adjacency()

    def _may_answer(self, port: Port, data: bytes, address: IPv6Address, udp_port: int, now: float) -> bool:
        message = message_in(self._config, data, udp_port)
        attempt = None if message is None else _attempt(message)
        if attempt is None or self._limit.may_answer(port.number, address, attempt, now):
            return True
        self._limited += 1
        return False

    # --- discovery -------------------------------------------------------------------------------------

    def _heard(self, port: Port, event: dull.Event) -> None:
        assert self._adjacency is not None
        now = self._loop.time()
        match event:
            case dull.NeighbourHeard():
                if event.new:
                    log.info("heard %s on port %s", event.address, port.name)
                    self.send(m.NeighbourHeard(port.number, event.address))
                offers = {
                    item.address: channel_methods(event.announcements, item.address)
                    for item in event.announcements
                }
                port.outer.heard(event.address, offers, event.expires, now)
            case dull.NeighbourRefreshed():
                port.outer.refreshed(event.address, event.expires, now)
            case dull.NeighbourExpired():
                log.info("%s on port %s is not heard any more", event.address, port.name)
                port.outer.expired(event.address, now)
        self._tell_routes(port)
        self._follow_adjacency()

    def _tell_routes(self, port: Port) -> None:
        """Have the supervisor route to the neighbours that can only be reached so."""
        if port.routes != port.outer.routes:
            port.routes = port.outer.routes
            self.send(m.OuterRoutes(port.number, tuple(m.Route(*route) for route in port.routes)))

    def _routes_opened(self, message: m.OuterRoutesOpened) -> None:
        port = self._ports.get(message.port)
        if port is not None:
            port.outer.opened(message.addresses, self._loop.time())
            self._follow_adjacency()

    def _follow_adjacency(self) -> None:
        """Do what the adjacency core decided, and arm its timer."""
        assert self._adjacency is not None
        while (event := self._adjacency.next_event()) is not None:
            match event:
                case Initiate():
                    port = self._ports[event.port]
                    log.info("building a channel to %s on port %s", event.address, port.name)
                    port.endpoint.initiate(event.address, event.udp_port, self._loop.time())
                    port.pump()
                case CheckConnection():
                    self._check_connection(event.connection)
                case CloseConnection():
                    self._close_connection(event.connection, event.reason)
                case RolesDecided():
                    log.info("towards %s this node is %s", event.address, event.role.value)
                case Unexpected():
                    log.warning("neighbour %s: %s", event.address, event.what)
                case _:
                    log.debug("%s", event)
        if self._adjacency_timer is not None:
            self._adjacency_timer.cancel()
        when = self._adjacency.next_timer()
        self._adjacency_timer = None if when is None else self._loop.call_at(when, self._adjacency_due)

    def _adjacency_due(self) -> None:
        assert self._adjacency is not None
        self._adjacency_timer = None
        self._adjacency.on_timer(self._loop.time())
        self._follow_adjacency()

    def _check_connection(self, connection: Any) -> None:
        number, sa = connection
        port = self._ports.get(number)
        if port is not None:
            port.endpoint.check_liveness(sa, self._loop.time())
            port.pump()

    def _close_connection(self, connection: Any, reason: str) -> None:
        number, sa = connection
        port = self._ports.get(number)
        if port is not None:
            port.endpoint.close(sa, self._loop.time(), reason)
            port.pump()

    # --- IKE -------------------------------------------------------------------------------------------

    def _held_elsewhere(self, port: int, name: str | None) -> bool:
        """Return whether a channel of another port is with the node ``name``, or any if that is not known."""
        return any(
            number != port and name in (None, channel.peer_name)
            for (number, _), channel in self._channels.items()
        )

    def _authenticate(self, chain: Sequence[x509.Certificate]) -> Member:
        assert self._identity is not None
        return check_membership(
            chain, self._identity, when=datetime.now(UTC), channel=True, revocation=self._crls
        )

    def _on_ike(self, port: Port, event: object) -> None:
        assert self._adjacency is not None
        now = self._loop.time()
        match event:
            case ike.SignatureNeeded():
                self._last_request += 1
                self._signing[self._last_request] = (port.number, event.sa)
                request = m.SignRequest(
                    self._last_request, event.message, event.nonce, event.maced_id, int(event.hash)
                )
                self.send(request)
            case ike.Established():
                self._established(port, event, now)
            case ike.Failed():
                who = "we" if event.initiator else "they"
                log.warning(
                    "no channel with %s on port %s (%s began): %s",
                    event.address,
                    port.name,
                    who,
                    event.reason,
                )
                self._adjacency.failed(
                    port.number, event.address, event.initiator, event.reason, event.rule, now
                )
            case ike.ChildUp():
                self._child_up(port, event)
            case ike.ChildGone():
                self._child_gone(port, event)
            case ike.IkeRekeyed():
                who = "us" if event.initiator else "it"
                log.info("the IKE SA with %s on port %s was rekeyed by %s", event.address, port.name, who)
            case ike.Alive():
                self._adjacency.answered(port.number, event.address, (port.number, event.sa), now)
            case ike.Closed():
                self._closed(port, event, now)
            case ike.KeyLog():
                if (line := ikev2_decryption_table_line(event)) is not None:
                    self.send(m.KeyLog("ikev2_decryption_table", line))
            case _:
                log.debug("%s", event)
        self._follow_adjacency()

    def _signed(self, reply: m.SignReply) -> None:
        number, sa = self._signing.pop(reply.request, (0, 0))
        port = self._ports.get(number)
        if port is None:
            return
        if reply.signature is None:
            log.error("the signer did not sign: %s", reply.reason)
        port.endpoint.signed(sa, reply.signature, self._loop.time())
        port.pump()

    def _established(self, port: Port, event: ike.Established, now: float) -> None:
        assert self._adjacency is not None
        peer = (port.number, event.address)
        name = str(event.member.node_name)
        channel = self._channels.get(peer)
        self._limit.record_success(port.number, event.address)
        if channel is not None and channel.in_udp is not event.encapsulated:
            self._supersede(peer, channel)
            channel = None
        if channel is None:
            self._last_channel += 1
            channel = self._channels[peer] = Channel(self._last_channel, name, now, event.encapsulated)
            self._open_channel(peer, channel)
            delay = _DEAD_SECONDS if event.address.is_link_local else _TAKEOVER_SECONDS
            self._loop.call_later(delay, self._take_over, port, event.address)
        port.dull.pin(port.outer.link_local_of(event.address))
        port.outer.hold(event.address)
        channel.peer_name = name
        channel.connections[event.sa] = Connection(
            {event.child.spi_in}, event.member.certificate, event.member.expires, event.initiator
        )
        # Who answered cannot know whether the answer came: the peer may still use its other connection.
        self._send_keys(port, channel, event.address, event.child, send=event.initiator)
        log.info("%s on port %s is %s", event.address, port.name, name)
        identity = PeerIdentity(name, event.member.address)
        self._outdated.discard(peer)
        self._adjacency.connected(
            port.number, event.address, (port.number, event.sa), event.initiator, identity, now
        )
        self._check_expiry()

    def _send_keys(
        self, port: Port, channel: Channel, theirs: IPv6Address, child: ike.ChildKeys, *, send: bool
    ) -> None:
        if self._config.keylog:
            ours = port.ours.towards(theirs)
            self.send(m.KeyLog("esp_sa", esp_sa_line(theirs, ours, child.spi_in, child.key_in)))
            self.send(m.KeyLog("esp_sa", esp_sa_line(ours, theirs, child.spi_out, child.key_out)))
        channel.keyed = True
        self.send(
            m.ChannelKeys(channel.number, child.spi_in, child.spi_out, child.key_in, child.key_out, send)
        )

    def _connection(
        self, port: Port, address: IPv6Address, sa: int
    ) -> tuple[Channel, Connection] | tuple[None, None]:
        channel = self._channels.get((port.number, address))
        if channel is None or sa not in channel.connections:
            return None, None
        return channel, channel.connections[sa]

    def _child_up(self, port: Port, event: ike.ChildUp) -> None:
        channel, connection = self._connection(port, event.address, event.sa)
        if channel is not None and connection is not None:
            connection.spis_in.add(event.child.spi_in)
            self._send_keys(port, channel, event.address, event.child, send=event.send)

    def _child_gone(self, port: Port, event: ike.ChildGone) -> None:
        channel, connection = self._connection(port, event.address, event.sa)
        if channel is not None and connection is not None and event.spi_in in connection.spis_in:
            connection.spis_in.discard(event.spi_in)
            self.send(m.ChannelKeysGone(channel.number, event.spi_in))

    def _rekey_channel(self, number: int) -> None:
        """Replace the keys of a channel, all of them: which one was used so much, the peer may see alike."""
        for (port_number, _), channel in self._channels.items():
            if channel.number == number and (port := self._ports.get(port_number)) is not None:
                for sa in channel.connections:
                    port.endpoint.rekey_child(sa, self._loop.time())
                port.pump()

    def _closed(self, port: Port, event: ike.Closed, now: float) -> None:
        assert self._adjacency is not None
        peer = (port.number, event.address)
        channel = self._channels.get(peer)
        if channel is not None and (connection := channel.connections.pop(event.sa, None)) is not None:
            if channel.connections:
                for spi_in in sorted(connection.spis_in):
                    self.send(m.ChannelKeysGone(channel.number, spi_in))
            else:
                self._end_channel(peer, event.reason)
        self._adjacency.closed(
            port.number, event.address, (port.number, event.sa), event.reason, event.by_peer, now
        )

    # --- channels --------------------------------------------------------------------------------------

    def _end_channel(self, peer: Peer, reason: str) -> None:
        channel = self._channels.pop(peer, None)
        if channel is None:
            return
        self.send(m.ChannelClosed(channel.number, reason))
        if (port := self._ports.get(peer[0])) is not None:
            link_local = port.outer.link_local_of(peer[1])
            if not {(peer[0], link_local), (peer[0], port.outer.ula_of(link_local))} & set(self._channels):
                port.dull.unpin(link_local)
            port.outer.release(peer[1])
            self._tell_routes(port)

    def _open_channel(self, peer: Peer, channel: Channel) -> None:
        self.send(m.ChannelOpen(channel.number, *peer, channel.peer_name, channel.in_udp))

    def _supersede(self, peer: Peer, channel: Channel) -> None:
        """End a channel as its neighbour, set otherwise now, has ESP in UDP, or has not any more."""
        reason = "the peer has changed between ESP in UDP and ESP as it is"
        self._end_channel(peer, reason)
        for sa in list(channel.connections):
            self._close_connection((peer[0], sa), reason)

    def _take_over(self, port: Port, address: IPv6Address) -> None:
        """If a neighbour has a channel at its unique local address too, end that at its link-local one.

        It was made while one of the two ends had not heard of the other's unique local address. If it is the
        newer one, the other may have been of the peer before its restart: that had time to end.
        """
        link_local = port.outer.link_local_of(address)
        ula = port.outer.ula_of(link_local)
        kept = None if ula is None else self._channels.get((port.number, ula))
        replaced = self._channels.get((port.number, link_local))
        if kept is not None and replaced is not None and kept.peer_name == replaced.peer_name:
            for sa in list(replaced.connections):
                self._close_connection((port.number, sa), "a channel between other addresses is in its place")

    def _drop_channel(self, number: int, reason: str) -> None:
        """Close all connections of a channel; the adjacency core sees to new ones."""
        for (port, _), channel in list(self._channels.items()):
            if channel.number == number:
                for sa in list(channel.connections):
                    self._close_connection((port, sa), reason)

    def _data_plane_lost(self) -> None:
        """Serve the channels by a new data plane: on new interfaces, and with new child SAs only.

        What the old one last sent with a key is not known, and AES-GCM must not see a nonce twice. The IKE
        SAs live on, so neither end has anything to authenticate, and nobody is throttled.
        """
        for (port, address), channel in self._channels.items():
            self.send(m.ChannelClosed(channel.number, "the data plane was started again"))
            self._last_channel += 1
            channel.number = self._last_channel
            channel.keyed = False
            for connection in channel.connections.values():
                connection.spis_in.clear()
            self._open_channel((port, address), channel)
        self._ask_for_keys(self._loop.time() + _FRESH_KEYS_SECONDS)

    def _ask_for_keys(self, deadline: float) -> None:
        """Rekey the channels that have no keys; a peer that does not let us must build the channel anew."""
        waiting = [channel.number for channel in self._channels.values() if not channel.keyed]
        for number in waiting:
            if self._loop.time() < deadline:
                self._rekey_channel(number)
            else:
                self._drop_channel(number, "the peer gives no fresh keys, and the old ones are used up")
        if waiting:
            self._loop.call_later(_FRESH_KEYS_AGAIN_SECONDS, self._ask_for_keys, deadline)

    def _traffic(self, numbers: tuple[int, ...]) -> None:
        now = self._loop.time()
        for (number, _), channel in self._channels.items():
            if channel.number not in numbers or (port := self._ports.get(number)) is None:
                continue
            # Of several, traffic does not say which one is alive: a peer that has restarted holds only one.
            if len(channel.connections) == 1:
                for sa in channel.connections:
                    port.endpoint.traffic_seen(sa, now)

    def _check_expiry(self) -> None:
        """End what was authenticated by a certificate that has expired (RFC 8994 section 6.8.2)."""
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
        when, again = datetime.now(UTC), _EXPIRY_SECONDS
        for (number, _), channel in list(self._channels.items()):
            for sa, connection in list(channel.connections.items()):
                left = (connection.expires + _LAST_SECOND - when).total_seconds()
                if left <= 0:
                    self._close_connection((number, sa), "the peer's certificate has expired")
                else:
                    again = min(again, left)
        self._expiry_timer = self._loop.call_later(again, self._check_expiry)

    # --- state -----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        neighbours = self._adjacency.neighbours() if self._adjacency is not None else []
        now = self._loop.time()
        return {
            "neighbours": [neighbour_state(item, self._ports.get(item.port), now) for item in neighbours],
            "channels": [channel.state(now) for channel in self._channels.values()],
            "counters": {port.name: port.counters() for port in self._ports.values()}
            | {"attempts_not_answered": self._limited},
            "proxy": self._proxy.state(),
        }

    def shutdown(self) -> None:
        """Delete all SAs, so that the peers know at once, and end."""
        now = self._loop.time()
        self._proxy.close()
        for port in self._ports.values():
            port.endpoint.close_all(now)
            port.pump()
        self._loop.call_later(_GOODBYE_SECONDS if self._channels else 0.0, self.stop)
