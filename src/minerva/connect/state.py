"""What makes a node itself across restarts: its secret, and all the names and addresses derived from it."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
from ipaddress import IPv6Address
from pathlib import Path

from minerva.core.errors import UsageError
from minerva.core.secret import Secret
from minerva.pki.files import File, write_files

_SECRET_FILE = "node-secret"
_SECRET_BYTES = 32
_EST_SERVER_FILE = "est-server"
_TAG_BYTES = 5
_LINK_LOCAL = int(IPv6Address("fe80::"))
_LOCALLY_ADMINISTERED, _MULTICAST = 0x02, 0x01
_LOCALLY_ASSIGNED = b"\xfd"  # the first octet of a unique local address


def lock_directory(directory: Path, taken: str) -> int:
    """Lock ``directory`` for as long as the returned descriptor is open. Raises OSError, UsageError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(taken) from None
    return descriptor


class NodeState:
    """The state directory of a node, locked for as long as this process lives.

    Everything that the node makes in the kernel carries ``tag``, ten hex digits that depend on its secret
    alone, so that the next start finds what this one could not remove.
    """

    def __init__(self, directory: Path) -> None:
        """Lock the directory and read, or make, the node's secret. Raises UsageError."""
        self.directory = directory
        try:
            self._lock = lock_directory(
                directory, f"a node already runs with the state directory {directory}; stop it first"
            )
        except OSError as error:
            raise UsageError(
                f"cannot use the state directory {directory}: {error.strerror}; "
                "make one with 'minerva ca issue CA_DIR NODE_DIR' or name another with --state-dir"
            ) from error
        try:
            self._secret = self._load_secret()
        except BaseException:
            self.close()
            raise
        self.tag = self._derive("tag")[:_TAG_BYTES].hex()

    def close(self) -> None:
        """Unlock the directory."""
        os.close(self._lock)

    def _load_secret(self) -> Secret:
        path = self.directory / _SECRET_FILE
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            data = os.urandom(_SECRET_BYTES)
            try:
                write_files(self.directory, File(_SECRET_FILE, data, secret=True))
            except OSError as error:
                raise UsageError(f"cannot write {path}: {error.strerror}") from error
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
        if len(data) != _SECRET_BYTES:
            raise UsageError(f"{path} is damaged: remove it, and the node gets new link-local addresses")
        return Secret(data)

    def est_server(self) -> tuple[IPv6Address, int]:
        """Return address and port of the EST server that renewed our certificate last, or ``::`` and 0."""
        try:
            address, port = (self.directory / _EST_SERVER_FILE).read_text().split()
            return IPv6Address(address), int(port)
        except (OSError, ValueError):
            return IPv6Address(0), 0

    def remember_est_server(self, address: IPv6Address, port: int) -> None:
        """Note that this EST server renewed our certificate (RFC 8994 section 6.2.5). Raises OSError."""
        if self.est_server() != (address, port):
            write_files(self.directory, File(_EST_SERVER_FILE, f"{address} {port}\n".encode()))

    def _derive(self, *what: str | bytes) -> bytes:
        text = b"\0".join(item.encode() if isinstance(item, str) else item for item in what)
        return hmac.digest(self._secret.reveal(), text, hashlib.sha256)

    def namespace(self, what: str) -> str:
        """Return the name of the node's network namespace for ``what`` (``acp`` or a port)."""
        return f"{self.namespace_prefix}{what}"

    @property
    def namespace_prefix(self) -> str:
        """What the names of all namespaces of this node begin with."""
        return f"minerva-{self.tag}-"

    def mac(self, port: str, permanent: str, attempt: int) -> str:
        """Return the MAC address of our own interface on a port: stable, and not the port's.

        ``attempt`` counts up when another station on the link turned out to have that address.
        """
        raw = bytearray(self._derive("mac", port, permanent, str(attempt))[:6])
        raw[0] = (raw[0] | _LOCALLY_ADMINISTERED) & ~_MULTICAST
        return raw.hex(":")

    def ula(self, port: str, permanent: str, link_local: IPv6Address) -> IPv6Address:
        """Return our unique local address on a port where our link-local one is ``link_local``.

        The global ID is the node's own, a keyed hash and so as random as RFC 4193 section 3.2 wants it; the
        subnet ID is the port's. Both are stable, as the secret is.
        """
        prefix = _LOCALLY_ASSIGNED + self._derive("ula")[:5] + self._derive("ula", port, permanent)[:2]
        return IPv6Address(prefix + link_local.packed[8:])

    def channel_link_local(self, port: str, peer: IPv6Address) -> IPv6Address:
        """Return the link-local address of a channel's interface inside the ACP.

        A keyed hash: nothing that is seen or sent on the wire tells it or can collide with it on purpose
        (RFC 8994 section 6.13.5.2).
        """
        return IPv6Address(_LINK_LOCAL | int.from_bytes(self._derive("channel", port, peer.packed)[:8]))


def link_local_of(mac: str) -> IPv6Address:
    """Return the link-local address with the modified EUI-64 of ``mac`` (RFC 4291 appendix A)."""
    raw = bytearray.fromhex(mac.replace(":", ""))
    raw[0] ^= _LOCALLY_ADMINISTERED
    return IPv6Address(_LINK_LOCAL | int.from_bytes(raw[:3] + b"\xff\xfe" + raw[3:]))
