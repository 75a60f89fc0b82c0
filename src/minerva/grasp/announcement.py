"""What a node announces on a link, as an M_FLOOD carries it (RFC 8994 section 6.4, RFC 8995 section 4.1.1).

The AN_ACP objective in CDDL::

    objective = ["AN_ACP", objective-flags, loop-count, objective-value]
    objective-value = method-name / [ method, *extension ]
    method = method-name / [ method-name, *method-param ]
    method-name = "IKEv2" / "DTLS" / id
    id = text .regexp "[A-Za-z@_$]([-.]*[A-Za-z0-9@_$])*"

A flood is believed as a whole or not at all: that is the letter of RFC 8990 section 2.5.2 ("any message
referring to"), and an announcer that breaks one rule has no claim to be heard on the rest.

One rule can be waived, that the locator of an AN_ACP is the announcer's link-local address: see
:mod:`minerva.adjacency.outer`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address
from typing import Any

from minerva.core.addresses import UNIQUE_LOCAL
from minerva.grasp.constants import (
    AN_ACP,
    AN_PROXY,
    IKEV2,
    IKEV2_PORT,
    ObjectiveFlag,
    TransportProto,
)
from minerva.grasp.errors import GraspDecodeError
from minerva.grasp.messages import Flood, FloodEntry, decode
from minerva.grasp.options import IPv6Locator, Objective

DULL_LOOP_COUNT = 1
"""The only loop count in a DULL instance (RFC 8990 section 2.5.2)."""

_DEFAULT_PORTS = {(AN_ACP, IKEV2): (TransportProto.IPPROTO_UDP, IKEV2_PORT)}
# The same set without the nested repetition of the RFC's, which takes exponential time on some texts.
_METHOD_NAME = re.compile(r"[A-Za-z@_$](?:[-.A-Za-z0-9@_$]*[A-Za-z0-9@_$])?")


class Drop(StrEnum):
    """Why a packet that a DULL instance received had no effect."""

    MALFORMED = "malformed"
    SOURCE = "source-not-link-local"
    OWN = "own-address-as-source"
    MESSAGE_TYPE = "not-a-flood"
    INITIATOR = "initiator-is-not-source"
    LOOP_COUNT = "loop-count-is-not-1"
    OBJECTIVE = "unknown-objective"
    FLAGS = "not-for-synchronization"
    LOCATOR = "bad-locator"
    VALUE = "bad-value"
    TABLE_FULL = "table-full"


class AnnouncementError(GraspDecodeError):
    """A message that a DULL instance must not believe; ``reason`` is what it is counted under."""

    def __init__(self, reason: Drop, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Announcement:
    """A service offered at the announcer's link-local address, or at another ``address``.

    ``method`` is the method name of an AN_ACP objective, known to us or not, or the value of an AN_Proxy
    one. ``transport`` and ``port`` are ``None`` where no locator came and the method has no default port.
    """

    objective: str
    method: str
    transport: TransportProto | None = None
    port: int | None = None
    address: IPv6Address | None = None

    def to_entry(self, address: IPv6Address) -> FloodEntry:
        """Return the announcement of a node with link-local ``address`` as it is flooded.

        The port that the method has by default is left out together with the locator: ``[]`` implies it
        (RFC 8994 section 6.4), and a shorter packet is less often lost.
        """
        objective = Objective(self.objective, ObjectiveFlag.F_SYNCH, DULL_LOOP_COUNT, self.method)
        if self.transport is None or self.port is None:
            return FloodEntry(objective)
        if self.address is None and (self.transport, self.port) == self._default:
            return FloodEntry(objective)
        return FloodEntry(objective, IPv6Locator(self.address or address, self.transport, self.port))

    @property
    def _default(self) -> tuple[TransportProto | None, int | None]:
        return _DEFAULT_PORTS.get((self.objective, self.method), (None, None))


AN_ACP_IKEV2 = Announcement(AN_ACP, IKEV2, TransportProto.IPPROTO_UDP, IKEV2_PORT)
"""What an ACP node announces: secure channels by IKEv2 on the well-known port."""


def channel_methods(
    announcements: Iterable[Announcement], address: IPv6Address | None = None
) -> dict[str, int]:
    """Return the UDP port of every method by which the announcer of these takes secure channels.

    That is at its link-local address, or at another ``address`` that it announces.
    """
    return {
        announcement.method: announcement.port
        for announcement in announcements
        if announcement.objective == AN_ACP
        and announcement.address == address
        and announcement.transport is TransportProto.IPPROTO_UDP
        and announcement.port is not None
    }


def read_announcements(
    data: bytes, source: IPv6Address, *, unique_local: bool = False
) -> tuple[int, tuple[Announcement, ...]]:
    """Return ttl (milliseconds) and announcements of a packet that came from ``source``.

    Raises :class:`AnnouncementError` if the rules for DULL (RFC 8990 section 2.5.2, RFC 8994 sections 6.4
    and 11) forbid to believe it. With ``unique_local`` the locator of an AN_ACP may be a unique local
    address, which they forbid too.
    """
    if not source.is_link_local:
        raise AnnouncementError(Drop.SOURCE, f"{source} is not a link-local address")
    try:
        message = decode(data)
    except GraspDecodeError as error:
        raise AnnouncementError(Drop.MALFORMED, str(error)) from error
    if not isinstance(message, Flood):
        raise AnnouncementError(Drop.MESSAGE_TYPE, f"{message.TYPE.name} is of no use here")
    if message.initiator != source:
        raise AnnouncementError(Drop.INITIATOR, f"{source} sent a flood of {message.initiator}")
    return message.ttl, tuple(_announcement(entry, source, unique_local) for entry in message.entries)


def _announcement(entry: FloodEntry, source: IPv6Address, unique_local: bool) -> Announcement:
    objective, locator = entry.objective, entry.locator
    name = objective.name
    if objective.loop_count != DULL_LOOP_COUNT:
        raise AnnouncementError(Drop.LOOP_COUNT, f"{name!a} with loop count {objective.loop_count}")
    if name not in (AN_ACP, AN_PROXY):
        raise AnnouncementError(Drop.OBJECTIVE, f"objective {name!a} is not for insecure links")
    # Other implementations set F_DISC as well. It changes nothing, as discovery is not answered here.
    if not objective.flags & ObjectiveFlag.F_SYNCH:
        raise AnnouncementError(Drop.FLAGS, f"{name} without F_SYNCH")
    method = _method(objective.value) if name == AN_ACP else objective.value
    if not isinstance(method, str):
        raise AnnouncementError(Drop.VALUE, f"{name} with a value that names no method")
    if locator is None:
        transport, port = _DEFAULT_PORTS.get((name, method), (None, None))
        return Announcement(name, method, transport, port)
    elsewhere = locator.address if isinstance(locator, IPv6Locator) and locator.address != source else None
    waived = unique_local and name == AN_ACP and elsewhere is not None and elsewhere in UNIQUE_LOCAL
    if not isinstance(locator, IPv6Locator) or not locator.port or (elsewhere is not None and not waived):
        raise AnnouncementError(Drop.LOCATOR, f"{name} of {source} with locator {locator}")
    return Announcement(name, method, locator.transport, locator.port, elsewhere)


def _method(value: Any) -> str | None:
    """Return the method name in any of the three shapes; parameters and extensions are ignored."""
    for _ in range(2):
        if isinstance(value, list) and value:
            value = value[0]
    return value if isinstance(value, str) and _METHOD_NAME.fullmatch(value) else None
