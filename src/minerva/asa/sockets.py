"""Sockets of the ACP for programs of the host: nothing in the host's network can cut them.

The node opens them in its ACP namespace, on its own address there (V=0), and passes the descriptors on. One
packet each way on a Unix socket (``SOCK_SEQPACKET``), in JSON::

    {"listen": PORT} / {"connect": [ADDRESS, PORT]} / {"datagram": [ADDRESS, PORT]}
    {"address": ADDRESS} with the descriptor / {"error": SENTENCE}

The connection then stays open for as long as the node has the namespace that the socket is in: when it ends,
the socket is of no more use, and another one has to be asked for.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, Final, Self

from minerva.asa.protocol import DEFAULT_RUN_DIR
from minerva.core.errors import MinervaError

SOCKETS_SOCKET: Final = "sockets.sock"

MAX_PACKET: Final = 1024
"""The largest request and answer, in bytes."""

_SECONDS = 10.0


class AcpSocketError(MinervaError):
    """The node does not give the socket: why."""


class NoAcp(AcpSocketError):
    """There is no node on this machine now that is in a domain."""


@dataclass(frozen=True, slots=True)
class AcpSocket:
    """A socket of the ACP, and the connection with the node that lives as long as it is good for anything.

    ``address`` is that of this node. ``life`` becomes readable when the node has ended, or left the domain.
    """

    sock: socket.socket
    address: IPv6Address
    life: socket.socket

    def close(self) -> None:
        """Close both."""
        self.sock.close()
        self.life.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def acp_listener(port: int, *, run_dir: Path | None = None) -> AcpSocket:
    """Return a TCP socket that listens on ``port`` of this node's own address in the ACP.

    ``run_dir`` is that of the node; without, as for :class:`~minerva.asa.client.Grasp`. Raises
    :class:`AcpSocketError`.
    """
    return _ask({"listen": port}, run_dir)


def acp_connect(address: IPv6Address, port: int, *, run_dir: Path | None = None) -> AcpSocket:
    """Return a TCP socket that is being connected to ``port`` of ``address``, a node of the ACP.

    It does not block; when it can be written to, it is connected, or SO_ERROR says why not. Else as
    :func:`acp_listener`.
    """
    return _ask({"connect": [str(address), port]}, run_dir)


def acp_datagram(address: IPv6Address, port: int, *, run_dir: Path | None = None) -> AcpSocket:
    """Return a UDP socket that talks with ``port`` of ``address``, a node of the ACP, and nobody else.

    It does not block. When ``life`` ends, nothing comes any more, and nobody else says so. Else as
    :func:`acp_listener`.
    """
    return _ask({"datagram": [str(address), port]}, run_dir)


def _ask(request: dict[str, Any], run_dir: Path | None) -> AcpSocket:
    directory = run_dir or Path(os.environ.get("MINERVA_RUN_DIR") or DEFAULT_RUN_DIR)
    life = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    descriptors: list[int] = []
    try:
        life.settimeout(_SECONDS)
        life.connect(str(directory / SOCKETS_SOCKET))
        life.send(json.dumps(request).encode())
        data, descriptors, _, _ = socket.recv_fds(life, MAX_PACKET, 1, socket.MSG_CMSG_CLOEXEC)
        answer = json.loads(data)
        if "error" in answer:
            raise AcpSocketError(str(answer["error"]))
        address = IPv6Address(answer["address"])
        sock = socket.socket(fileno=descriptors.pop())
    except AcpSocketError:
        life.close()
        raise
    except (FileNotFoundError, ConnectionRefusedError) as error:
        life.close()
        raise NoAcp(
            f"no member of a domain runs with the run directory {directory}; start one with 'minerva connect'"
        ) from error
    except PermissionError as error:
        life.close()
        raise AcpSocketError(
            f"only root and the group minerva may have sockets of the ACP ({directory})"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        life.close()
        for descriptor in descriptors:
            os.close(descriptor)
        raise AcpSocketError(f"the node gave no socket: {error or type(error).__name__}") from error
    life.settimeout(None)
    return AcpSocket(sock, address, life)
