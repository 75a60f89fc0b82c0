"""Which data plane a node has: whether this kernel has one is tried in a throw-away namespace."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import IPv6Address

from minerva.connect.state import NodeState
from minerva.core.errors import UsageError
from minerva.core.secret import Secret
from minerva.esp.packet import MIN_SPI
from minerva.esp.replay import DEFAULT_WINDOW
from minerva.esp.sa import KEYMAT_SIZE
from minerva.ikev2.constants import ENCAPSULATION_PORT
from minerva.linux import namespace, sockets
from minerva.linux.errors import LinuxError
from minerva.linux.namespace import Namespace
from minerva.linux.netlink import Netlink
from minerva.linux.xfrm import Direction, SecurityAssociation, Xfrm

_OURS, _THEIRS = IPv6Address("fe80::1"), IPv6Address("fe80::2")
_NUMBER = 1000  # of the interface


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether channels are the kernel's work, and why, in words."""

    kernel: bool
    reason: str


async def choose(state: NodeState, wanted: str, *, in_udp: bool = False) -> Choice:
    """Return the data plane to use; ``wanted`` is ``auto``, ``kernel`` or ``user``.

    With ``in_udp`` it must be able to put ESP into UDP, as that in user space is. Raises UsageError if it is
    to be the kernel's and the kernel has none.
    """
    if wanted == "user":
        return Choice(False, "the configuration says so")
    problem = await why_not(state, in_udp=in_udp)
    if wanted == "auto":
        return Choice(problem is None, problem or "this kernel has IPv6 ESP and xfrm interfaces")
    if problem is not None:
        raise UsageError(f"the kernel data plane cannot be used: {problem}; use 'auto' or 'user'")
    return Choice(True, "the configuration says so")


async def why_not(state: NodeState, *, in_udp: bool = False) -> str | None:
    """Return why the kernel cannot carry channels, in words, or ``None`` if it can.

    With ``in_udp`` also those with ESP in UDP.

    The namespace has the node's mark: should this process be killed meanwhile, the next start removes it.
    """
    name = state.namespace("probe")
    namespace.delete_name(name)
    try:
        where = Namespace.create(name)
    except LinuxError as error:
        return str(error)
    netlink = Netlink(where)
    try:
        await _try_interface(netlink)
        _try_ipsec(where)
        if in_udp:
            _try_udp(where)
    except LinuxError as error:
        return str(error)
    finally:
        await netlink.close()
        where.delete()
    return None


async def _try_interface(netlink: Netlink) -> None:
    try:
        await netlink.add_xfrm_interface("probe", _NUMBER)
    except LinuxError as error:
        raise LinuxError("this kernel has no xfrm interfaces (module xfrm_interface)") from error


def _try_ipsec(where: Namespace) -> None:
    """Do what a channel needs; that the SA can be listed shows that the structures are those we know."""
    xfrm = Xfrm(where)
    try:
        for direction in Direction:
            xfrm.set_policy(direction, _OURS, _THEIRS, _NUMBER, MIN_SPI)
        sa = SecurityAssociation(_THEIRS, _OURS, MIN_SPI, _NUMBER, window=DEFAULT_WINDOW)
        try:
            xfrm.add_sa(sa, Secret(os.urandom(KEYMAT_SIZE)))
        except LinuxError as error:
            raise LinuxError(
                "this kernel has no ESP for IPv6 with AES-GCM (modules esp6 and gcm): " + str(error)
            ) from error
        if [(item.destination, item.spi, item.if_id) for item in xfrm.counters()] != [
            (_OURS, MIN_SPI, _NUMBER)
        ]:
            raise LinuxError("this kernel does not list the SA that it was given")
    finally:
        xfrm.close()


def _try_udp(where: Namespace) -> None:
    """Do what ESP in UDP needs in addition."""
    sa = SecurityAssociation(_OURS, _THEIRS, MIN_SPI, _NUMBER, udp_port=ENCAPSULATION_PORT)
    xfrm = Xfrm(where)
    try:
        with where.entered():
            sockets.esp_in_udp_socket("lo", ENCAPSULATION_PORT).close()
        xfrm.add_sa(sa, Secret(os.urandom(KEYMAT_SIZE)))
    except (LinuxError, OSError) as error:
        raise LinuxError(f"this kernel cannot put ESP into UDP over IPv6 (Linux 5.8 can): {error}") from error
    finally:
        xfrm.close()
