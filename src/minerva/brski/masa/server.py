"""``minerva masa run``: the MASA as a process."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from minerva.brski.database import open_engine
from minerva.brski.masa.app import MAX_BODY, make_app
from minerva.brski.masa.authority import load_authority
from minerva.brski.masa.database import Database
from minerva.brski.masa.errors import MasaError
from minerva.brski.masa.service import Masa
from minerva.core.text import printable
from minerva.https.server import Limits, make_server_context, serve

_BACKLOG = 256


def parse_listen(text: str) -> tuple[str, int]:
    """Return address and port of ``[ADDRESS]:PORT``, ``ADDRESS:PORT``, ``:PORT`` or ``PORT``.

    Without an address it is that of everything. Raises :class:`MasaError`.
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        if not port.isascii() or not port.isdigit() or int(port) > 65_535:
            raise ValueError(port)
        return (str(ip_address(host)) if host else "::"), int(port)
    except ValueError as error:
        raise MasaError(
            f"{printable(text)} is not where to listen: give PORT, ADDRESS:PORT or [ADDRESS]:PORT"
        ) from error


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there; the address ``::`` is that of IPv4 too."""
    family = socket.AF_INET6 if isinstance(ip_address(host), IPv6Address) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        shown = f"[{host}]" if family == socket.AF_INET6 else host
        raise MasaError(f"cannot listen on {shown}:{port}: {error.strerror}") from error
    return sock


async def run(directory: Path, where: str | None, ready: Callable[[str], object]) -> None:
    """Serve until SIGINT or SIGTERM comes. ``ready`` is told where, as soon as registrars are served.

    Without ``where`` the port is that of the MASA's URL. Raises :class:`MasaError`.
    """
    authority = load_authority(directory)
    settings = authority.settings
    location = settings.location
    host, port = ("::", location.port) if where is None else parse_listen(where)
    database = Database(open_engine(settings.database_at(directory)))
    try:
        database.check()
        tls = authority.tls
        # The root goes along: whoever has only its fingerprint can see the whole chain.
        context = make_server_context(tls.certificate, authority.anchors, tls.key, client="optional")
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        sock = listen(host, port)
        bound, port = sock.getsockname()[:2]
        shown = f"[{bound}]:{port}" if ":" in bound else f"{bound}:{port}"
        await serve(
            make_app(Masa(authority, database), location.path),
            [sock],
            context,
            ready=lambda: ready(shown),
            stop=stop,
            limits=Limits(body_size=MAX_BODY),
        )
    finally:
        database.close()
