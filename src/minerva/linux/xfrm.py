"""IPsec in the kernel: the security associations and policies of one namespace (``ip xfrm``).

pyroute2 knows nothing of XFRM, and what it would add is not wanted here: its messages are objects that can be
printed, and these carry keys. So this is a codec of its own for the few messages that are needed, on the
structures of ``linux/xfrm.h``, and a connection that wipes what held a key.

SAs are those of an ACP channel: ESP in tunnel mode, AES-GCM-16-256, between two addresses on a link, no
extended sequence numbers. Each belongs to an xfrm interface by its ``if_id``. Policies say "all IPv6", which
catches nothing but what passes that interface; without an ``if_id`` neighbour discovery would need policies
of its own that let it pass.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Address
from typing import Final

from minerva.core.secret import Secret
from minerva.linux.errors import LinuxError
from minerva.linux.namespace import Namespace

_NETLINK_XFRM = 6
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11

_NEWSA, _DELSA, _GETSA, _DELPOLICY, _UPDPOLICY = 0x10, 0x11, 0x12, 0x14, 0x19
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _EXCLUSIVE, _CREATE, _DUMP = 0x01, 0x04, 0x200, 0x400, 0x300
_ERROR_HAS_TEXT, _ERROR_TEXT = 0x200, 1  # NLM_F_ACK_TLVS, NLMSGERR_ATTR_MSG

_ENCAP, _TMPL, _ALG_AEAD, _REPLAY_ESN_VAL, _IF_ID = 4, 5, 18, 23, 31  # XFRMA_…

_ESP = 50
_AF_INET6 = int(socket.AF_INET6)
_TUNNEL = 1
_ALGORITHM, _ICV_BITS = b"rfc4106(gcm(aes))", 128
_WORD_BITS = 32

UNLIMITED: Final = 2**64 - 1
"""The limit of what has none."""

# Native sizes and alignment, as the compiler of the kernel has them; addresses and SPI are bytes.
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_SELECTOR = "16s16s4HH3BiI"
_ID = "16s4sB0I"
_LIMITS, _CURRENT, _STATISTICS = "8Q", "4Q", "3I"
_SA_INFO = struct.Struct(f"@{_SELECTOR}{_ID}16s{_LIMITS}{_CURRENT}{_STATISTICS}2IH3B0Q")
_SA_ID = struct.Struct("@16s4sHB0I")
_POLICY_INFO = struct.Struct(f"@{_SELECTOR}{_LIMITS}{_CURRENT}2I4B0Q")
_POLICY_ID = struct.Struct(f"@{_SELECTOR}IB0I")
_TEMPLATE = struct.Struct(f"@{_ID}H2x16sI3Bx3I")
_AEAD = struct.Struct("@64s2I")
_REPLAY = struct.Struct("@6I")
_ENCAPSULATION = struct.Struct("@H2s2s2x16s0I")
_ESP_IN_UDP = 2  # UDP_ENCAP_ESPINUDP
_ANYTHING: Final = (bytes(16), bytes(16), 0, 0, 0, 0, _AF_INET6, 0, 0, 0, 0, 0)  # a selector: all of IPv6
_ANY_KIND = 2**32 - 1

_BUFFER = 1 << 16
_TIMEOUT = struct.pack("@ll", 5, 0)  # the kernel answers at once, or something is wrong with it


class Direction(IntEnum):
    """What a policy is for, from the view of this machine (XFRM_POLICY_…)."""

    IN = 0
    OUT = 1


@dataclass(frozen=True, slots=True)
class SecurityAssociation:
    """What an SA is, without its key. ``window`` is the size of the replay window, 0 for one to send with.

    After ``soft_bytes`` or ``soft_packets`` the kernel tells who listens that the SA should be replaced,
    after ``hard_packets`` it deletes it. With ``udp_port`` ESP goes in UDP between that port of both ends.
    """

    source: IPv6Address
    destination: IPv6Address
    spi: int
    if_id: int
    window: int = 0
    soft_bytes: int = UNLIMITED
    soft_packets: int = UNLIMITED
    hard_packets: int = UNLIMITED
    udp_port: int = 0


@dataclass(frozen=True, slots=True)
class SaCounters:
    """What the kernel counted for an SA: inner packets and their bytes, received ones once authenticated.

    The last three are packets dropped: before the replay window, in it a second time, not authentic.
    """

    destination: IPv6Address
    spi: int
    if_id: int
    packets: int
    bytes: int
    old: int
    replayed: int
    not_authentic: int


def _attribute(kind: int, value: bytes | bytearray) -> bytearray:
    size = _ATTRIBUTE.size + len(value)
    return bytearray(_ATTRIBUTE.pack(size, kind)) + value + bytes(-size % 4)


def _spi(spi: int) -> bytes:
    return spi.to_bytes(4)


def encode_sa(sa: SecurityAssociation, key: Secret) -> bytearray:
    """Return ``struct xfrm_usersa_info`` and attributes; ``key`` is the AES key, then the salt."""
    limits = (sa.soft_bytes, UNLIMITED, sa.soft_packets, sa.hard_packets, 0, 0, 0, 0)
    body = bytearray(
        _SA_INFO.pack(
            *_ANYTHING,
            *(sa.destination.packed, _spi(sa.spi), _ESP),
            sa.source.packed,
            *limits,
            *(0, 0, 0, 0),
            *(0, 0, 0),
            *(0, sa.if_id),  # sequence number of an acquire, reqid
            *(_AF_INET6, _TUNNEL, 0, 0),  # the size of the replay window in an attribute, no flags
        )
    )
    material = bytearray(key.reveal())
    algorithm = bytearray(_AEAD.pack(_ALGORITHM, len(material) * 8, _ICV_BITS)) + material
    attribute = _attribute(_ALG_AEAD, algorithm)
    body += attribute
    for copy in (material, algorithm, attribute):
        wipe(copy)
    if sa.window:
        # The old field has room for 32 packets only. This one does without extended sequence numbers too.
        words = -(-sa.window // _WORD_BITS)
        body += _attribute(_REPLAY_ESN_VAL, _REPLAY.pack(words, 0, 0, 0, 0, sa.window))
    if sa.udp_port:
        port = sa.udp_port.to_bytes(2)
        body += _attribute(_ENCAP, _ENCAPSULATION.pack(_ESP_IN_UDP, port, port, bytes(16)))
    return body + _attribute(_IF_ID, struct.pack("=I", sa.if_id))


def encode_sa_id(destination: IPv6Address, spi: int) -> bytes:
    """Return ``struct xfrm_usersa_id``, which finds an SA."""
    return _SA_ID.pack(destination.packed, _spi(spi), _AF_INET6, _ESP)


def encode_policy(
    direction: Direction, source: IPv6Address, destination: IPv6Address, if_id: int, spi: int
) -> bytes:
    """Return ``struct xfrm_userpolicy_info`` and attributes.

    All IPv6 through the interface ``if_id`` must go, or have come, by ESP from ``source`` to
    ``destination``, under the SA ``spi``, or any if that is 0.
    """
    info = _POLICY_INFO.pack(
        *_ANYTHING,
        *(UNLIMITED, UNLIMITED, UNLIMITED, UNLIMITED, 0, 0, 0, 0),
        *(0, 0, 0, 0),
        *(0, 0, direction, 0, 0, 0),  # priority, index, direction, action: allow, flags, share
    )
    template = _TEMPLATE.pack(
        *(destination.packed, _spi(spi), _ESP, _AF_INET6, source.packed),
        *(if_id, _TUNNEL, 0, 0),  # reqid, mode, share, not optional
        *(_ANY_KIND, _ANY_KIND, _ANY_KIND),
    )
    return bytes(info + _attribute(_TMPL, template) + _attribute(_IF_ID, struct.pack("=I", if_id)))


def encode_policy_id(direction: Direction, if_id: int) -> bytes:
    """Return ``struct xfrm_userpolicy_id`` and the attribute, which together find a policy."""
    info = _POLICY_ID.pack(*_ANYTHING, 0, direction)
    return bytes(info + _attribute(_IF_ID, struct.pack("=I", if_id)))


def decode_counters(data: memoryview) -> SaCounters:
    """Return what an answer to XFRM_MSG_GETSA says, without its keys. Raises struct.error."""
    fields = _SA_INFO.unpack_from(data)
    destination, spi, _ = fields[12:15]
    packets_and_bytes, statistics = fields[24:26], fields[28:31]
    if_id = 0
    for kind, value in _attributes(data[_SA_INFO.size :]):
        if kind == _IF_ID:
            (if_id,) = struct.unpack("=I", value)
    octets, packets = packets_and_bytes
    old, replayed, not_authentic = statistics
    return SaCounters(
        IPv6Address(destination), int.from_bytes(spi), if_id, packets, octets, old, replayed, not_authentic
    )


def _attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    while len(data) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(data)
        if size < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : size]
        data = data[(size + 3) & ~3 :]


def wipe(buffer: bytearray | memoryview) -> None:
    """Overwrite what held a key."""
    buffer[:] = bytes(len(buffer))


class Xfrm:
    """A connection to IPsec of one namespace. Its methods raise :class:`LinuxError` when the kernel says no.

    They do not wait: the kernel does what it is asked before ``send`` returns.
    """

    def __init__(self, namespace: Namespace | None = None) -> None:
        """Open a connection to ``namespace``, or to the namespace of the calling thread."""
        self._where = namespace.name if namespace else "the host"
        self._sequence = 0
        self._buffer = bytearray(_BUFFER)
        try:
            with namespace.entered() if namespace else nullcontext():
                kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
                self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_XFRM)
        except OSError as error:
            raise LinuxError(
                f"cannot talk to IPsec in this kernel ({error.strerror}): load the kernel module xfrm_user"
            ) from error
        # An error otherwise comes with a copy of the request, and that with a key.
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
        self._socket.bind((0, 0))

    def add_sa(self, sa: SecurityAssociation, key: Secret) -> None:
        """Add an SA with its key: 32 bytes of AES-256 and 4 of salt."""
        body = encode_sa(sa, key)
        try:
            self._do(f"add the SA {sa.spi:08x}", _NEWSA, body, _CREATE | _EXCLUSIVE)
        finally:
            wipe(body)

    def delete_sa(self, destination: IPv6Address, spi: int) -> None:
        """Delete an SA with its key; gone already is fine."""
        body = encode_sa_id(destination, spi)
        self._do(f"delete the SA {spi:08x}", _DELSA, body, accept=(errno.ESRCH,))

    def set_policy(
        self, direction: Direction, source: IPv6Address, destination: IPv6Address, if_id: int, spi: int = 0
    ) -> None:
        """Add or replace the policy of an interface for ``direction``; see :func:`encode_policy`."""
        body = encode_policy(direction, source, destination, if_id, spi)
        self._do(f"set the policy of interface {if_id}", _UPDPOLICY, body)

    def delete_policy(self, direction: Direction, if_id: int) -> None:
        """Delete the policy of an interface for ``direction``; gone already is fine."""
        body = encode_policy_id(direction, if_id)
        self._do(f"delete the policy of interface {if_id}", _DELPOLICY, body, accept=(errno.ENOENT,))

    def counters(self) -> list[SaCounters]:
        """Return the counters of all SAs."""
        self._send(_GETSA, b"", _DUMP)
        found: list[SaCounters] = []
        while True:
            size = self._receive("list the SAs")
            view = memoryview(self._buffer)[:size]
            try:
                for kind, _, body in self._messages(view):
                    if kind == _NLMSG_DONE:
                        return found
                    if kind == _NLMSG_ERROR:
                        raise LinuxError(f"cannot list the SAs in {self._where}")
                    found.append(decode_counters(body))
            except struct.error as error:
                raise LinuxError(f"this kernel speaks another XFRM than ours: {error}") from error
            finally:
                wipe(view)  # the kernel tells root all keys, whether asked to or not

    def close(self) -> None:
        """Close the connection; SAs and policies stay."""
        self._socket.close()

    # --- netlink -----------------------------------------------------------------------------------------

    def _send(self, kind: int, body: bytes | bytearray, flags: int) -> None:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, self._sequence, 0)
        self._socket.sendmsg([header, body])

    def _receive(self, what: str) -> int:
        try:
            return self._socket.recv_into(self._buffer)
        except OSError as error:
            raise LinuxError(f"cannot {what} in {self._where}: {error.strerror}") from error

    def _messages(self, data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """Yield type, flags and body of the messages of a packet that answer our last request."""
        while len(data) >= _HEADER.size:
            size, kind, flags, sequence, _ = _HEADER.unpack_from(data)
            if size < _HEADER.size:
                return
            if sequence == self._sequence:
                yield kind, flags, data[_HEADER.size : size]
            data = data[(size + 3) & ~3 :]

    def _do(
        self,
        what: str,
        kind: int,
        body: bytes | bytearray,
        flags: int = 0,
        *,
        accept: tuple[int, ...] = (),
    ) -> None:
        try:
            self._send(kind, body, flags | _ACK)
        except OSError as error:
            raise LinuxError(f"cannot {what} in {self._where}: {error.strerror}") from error
        while True:
            size = self._receive(what)
            for answer, answer_flags, content in self._messages(memoryview(self._buffer)[:size]):
                if answer != _NLMSG_ERROR:
                    continue
                (number,) = struct.unpack_from("=i", content)
                if number == 0 or -number in accept:
                    return
                raise XfrmError(
                    f"cannot {what} in {self._where}: {_words(-number, answer_flags, content)}", -number
                )


class XfrmError(LinuxError):
    """The kernel refused something of IPsec; ``number`` is an errno."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def _words(number: int, flags: int, content: memoryview) -> str:
    """Return what the kernel says of an error, in its own words if it has any."""
    if flags & _ERROR_HAS_TEXT:
        # After the error and, as was asked for, nothing but the header of the request.
        for kind, value in _attributes(content[4 + _HEADER.size :]):
            if kind == _ERROR_TEXT:
                return f"{os.strerror(number)} ({bytes(value).rstrip(bytes(1)).decode(errors='replace')})"
    return os.strerror(number)
