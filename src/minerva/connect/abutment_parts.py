"""What the abutment holds for a port, a channel and a connection, and how status shows them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import IPv6Address
from typing import Any

from cryptography import x509

from minerva.adjacency.outer import OuterAddresses
from minerva.adjacency.table import Neighbour
from minerva.connect.runner import CoreRunner
from minerva.core.addresses import OwnAddresses
from minerva.grasp import dull
from minerva.grasp.announcement import AN_ACP_IKEV2, Announcement
from minerva.ikev2.endpoint import Endpoint

Peer = tuple[int, IPv6Address]
"""A neighbour: number of the port, and the address by which it is known there."""


@dataclass
class Port:
    """A port with its cores; ``routes`` are those of ``outer`` that the supervisor was told of."""

    number: int
    name: str
    ours: OwnAddresses
    dull: dull.DullInstance
    outer: OuterAddresses
    endpoint: Endpoint
    routes: tuple[tuple[IPv6Address, IPv6Address], ...] = ()
    dull_runner: CoreRunner | None = None
    ike_runner: CoreRunner | None = None

    @property
    def acp(self) -> list[Announcement]:
        """What is announced of the ACP: an address that not everybody believes comes first, and apart."""
        ula = self.ours.ula
        return [AN_ACP_IKEV2] if ula is None else [replace(AN_ACP_IKEV2, address=ula), AN_ACP_IKEV2]

    def pump(self) -> None:
        """Let the IKE core send what it wants to."""
        if self.ike_runner is not None:
            self.ike_runner.pump()

    def close(self) -> None:
        """Close both sockets."""
        for runner in (self.dull_runner, self.ike_runner):
            if runner is not None:
                runner.close()

    def counters(self) -> dict[str, Any]:
        """Return what its cores have counted."""
        return {
            "dull": dict(self.dull.counters),
            "outer": dict(self.outer.counters),
            "ike": dict(self.endpoint.counters),
            "kept": self.endpoint.sizes(),
        }


@dataclass
class Connection:
    """An IKE SA with its child SAs, by the SPI that is received with: several while they are rekeyed."""

    spis_in: set[int]
    certificate: x509.Certificate
    expires: datetime
    initiated_by_us: bool


@dataclass
class Channel:
    """What connects one port with one neighbour, made of one connection or, for moments, of several."""

    number: int
    peer_name: str
    established: float
    in_udp: bool
    keyed: bool = True  # whether the data plane of now has keys of it
    connections: dict[int, Connection] = field(default_factory=dict)  # by IKE SA

    def state(self, now: float) -> dict[str, Any]:
        """Return the channel as status shows it."""
        expires = min((item.expires for item in self.connections.values()), default=datetime.now(UTC))
        return {
            "channel": self.number,
            "seconds": round(now - self.established, 1),
            "connections": len(self.connections),
            "peer_certificate_expires": expires.isoformat(),
        }


def neighbour_state(item: Neighbour, port: Port | None, now: float) -> dict[str, Any]:
    """Return a neighbour as status shows it; ``port`` is the one that it is on, if that is still there."""
    failure = item.failure
    found: dict[str, Any] = {
        "port": port.name if port is not None else str(item.port),
        "address": str(item.address),
        "link_local": str(port.outer.link_local_of(item.address)) if port is not None else None,
        "state": item.state.value,
        "role": item.role.value if item.role is not None else None,
        "methods": dict(item.methods),
        "peer_name": item.peer.node_name if item.peer is not None else None,
        "heard_seconds_ago": None if item.last_heard is None else round(now - item.last_heard, 1),
        "next_attempt_in": None if item.next_attempt is None else round(item.next_attempt - now, 1),
        "failures": item.failures,
        "failure": None,
    }
    if failure is not None:
        found["failure"] = failure.reason
        found["failure_rule"] = failure.rule
        found["failure_seconds_ago"] = round(now - failure.time, 1)
    return found
