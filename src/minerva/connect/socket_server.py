"""Gives sockets of the ACP namespace to programs of the host (see :mod:`minerva.asa.sockets`).

Part of the supervisor: it alone may open what only root may, such as a port below 1024. Who asks is root or
in the group ``minerva``; what is asked is one small packet.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from pathlib import Path
from typing import Any

from minerva.asa.local_socket import open_local_socket
from minerva.asa.sockets import MAX_PACKET, SOCKETS_SOCKET
from minerva.core.addresses import UNIQUE_LOCAL
from minerva.grasp.constants import GRASP_LISTEN_PORT
from minerva.linux.namespace import Namespace
from minerva.linux.sockets import connected_udp_socket, start_connect, tcp_listener, tcp_socket

log = logging.getLogger(__name__)

MAX_CLIENTS = 256
"""How many sockets programs may have at a time."""


class _RequestError(Exception):
    """What was asked for cannot be had: why."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A socket that listens on ``port``, or if there is an address, one that is connected to it."""

    address: IPv6Address | None
    port: int
    datagram: bool = False
    """UDP, else TCP."""


class SocketServer:
    """Serves one ACP namespace; :meth:`close` tells all who have sockets in it that it ends."""

    def __init__(self, run_dir: Path, address: IPv6Address, namespace: Namespace) -> None:
        """Begin to listen. Raises UsageError."""
        self._address = address
        self._namespace = namespace
        self._path = run_dir / SOCKETS_SOCKET
        self._loop = asyncio.get_running_loop()
        self._clients: set[socket.socket] = set()
        self._listener = open_local_socket(self._path, socket.SOCK_SEQPACKET, MAX_CLIENTS)
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError as error:
            log.debug("a program that wanted a socket is gone: %s", error.strerror)
            return
        client.setblocking(False)
        if len(self._clients) >= MAX_CLIENTS:
            log.warning("a program wants one more socket of the ACP, but %d are in use", MAX_CLIENTS)
            client.close()
            return
        self._clients.add(client)
        self._loop.add_reader(client, self._readable, client)

    def _readable(self, client: socket.socket) -> None:
        """Answer the one request of ``client``; whatever it says after that ends the connection."""
        try:
            data = client.recv(MAX_PACKET)
            if not data:
                self._drop(client)
                return
            self._loop.remove_reader(client)
            self._loop.add_reader(client, self._drop, client)
            self._answer(client, data)
        except OSError as error:
            log.debug("a program that wanted a socket of the ACP: %s", error.strerror)
            self._drop(client)

    def _answer(self, client: socket.socket, data: bytes) -> None:
        try:
            sock = self._open(_request(data))
        except _RequestError as error:
            client.send(json.dumps({"error": str(error)}).encode())
            return
        with sock:
            answer = json.dumps({"address": str(self._address)}).encode()
            socket.send_fds(client, [answer], [sock.fileno()])

    def _open(self, request: _Request) -> socket.socket:
        address, port = request.address, request.port
        if address is None and port == GRASP_LISTEN_PORT:
            raise _RequestError(f"port {port} in the ACP is GRASP's")
        try:
            with self._namespace.entered():
                if address is None:
                    return tcp_listener(self._address, port)
                if request.datagram:
                    return connected_udp_socket(self._address, address, port)
                sock = tcp_socket(self._address)
            try:
                start_connect(sock, address, port)
            except OSError:
                sock.close()
                raise
            return sock
        except OSError as error:
            what = f"port {port}" if address is None else f"[{address}]:{port}"
            raise _RequestError(f"{what} in the ACP: {error.strerror or error}") from error

    def _drop(self, client: socket.socket) -> None:
        self._clients.discard(client)
        self._loop.remove_reader(client)
        client.close()

    def close(self) -> None:
        """Stop, and end all connections: the sockets that were given out lose their namespace."""
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for client in list(self._clients):
            self._drop(client)
        self._path.unlink(missing_ok=True)


def _request(data: bytes) -> _Request:
    """Return what is asked for. Raises _RequestError."""
    try:
        request = json.loads(data)
    except (ValueError, RecursionError):
        raise _RequestError("a request is one packet of JSON") from None
    match request:
        case {"listen": int() as port} if _is_port(port):
            return _Request(None, port)
        case {"connect": [str() as text, int() as port]} | {"datagram": [str() as text, int() as port]} if (
            _is_port(port)
        ):
            try:
                address = IPv6Address(text)
            except AddressValueError:
                address = None
            # A zone is any text, which the system's resolver would be asked about.
            if address is None or address.scope_id is not None or address not in UNIQUE_LOCAL:
                raise _RequestError(f"{text!a} is not an address in the ACP")
            return _Request(address, port, datagram="connect" not in request)
    raise _RequestError(
        'a request is {"listen": PORT}, or {"connect": [ADDRESS, PORT]}, or so with "datagram"'
    )


def _is_port(value: Any) -> bool:
    return type(value) is int and 0 < value < 65_536
