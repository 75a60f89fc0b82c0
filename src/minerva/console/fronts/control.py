"""The control socket: how ``minerva console`` on the same machine talks to the server.

A request is one line of JSON with a ``command``, an answer one line of JSON, with ``error`` if it could not
be done. After the answer to ``attach`` the connection carries what the console says and what is typed.
Whoever may open the socket (root and the group ``minerva``) may do everything; who it was, the kernel says.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import pwd
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from minerva.asa.local_socket import open_local_socket
from minerva.console.access import EVERYTHING, Action, Identity, Role
from minerva.console.break_glass import DAYS, HOURS, Tokens
from minerva.console.config import parse_escape
from minerva.console.events import Mode
from minerva.console.fronts.desk import Desk
from minerva.console.fronts.driver import Driver
from minerva.console.power import PowerAction
from minerva.console.session import Ended, Output, Session, to_terminal
from minerva.core.errors import MinervaError, UsageError
from minerva.core.text import printable

log = logging.getLogger(__name__)

SOCKET: Final = "console.sock"
MAX_CONNECTIONS: Final = 64
MAX_REQUEST: Final = 262_144
QUEUE: Final = 65_536
"""Bytes on their way to a client; more wait in the console's ring."""
_TIMEOUT: Final = 10.0
_LOOK_SECONDS: Final = 1.0
_BACKLOG: Final = 64
_CREDENTIALS: Final = struct.Struct("3i")

Request = dict[str, Any]
Handler = Callable[[Identity, Request], Awaitable[dict[str, Any]]]


def open_control_socket(path: Path) -> socket.socket:
    """Return a listening socket at ``path``, for root and the group ``minerva``. Raises UsageError.

    One left there before is replaced, but not one that somebody listens on.
    """
    if _is_served(path):
        raise UsageError(f"a console server runs already: it listens on {path}")
    return open_local_socket(path, socket.SOCK_STREAM, _BACKLOG)


def peer_identity(sock: socket.socket) -> Identity:
    """Return who is at the other end of a Unix socket, as the kernel says."""
    pid, uid, _ = _CREDENTIALS.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = f"uid-{uid}"
    return Identity(user, f"local process {pid}", f"uid {uid}", ((Role.ADMIN, EVERYTHING),), hurried=True)


class ControlFront:
    """Serves the control socket. ``reload`` and ``status`` are the server's."""

    def __init__(
        self,
        desk: Desk,
        tokens: Tokens,
        *,
        escape: Callable[[], bytes],
        reload: Callable[[], Awaitable[dict[str, Any]]],
        status: Callable[[], dict[str, Any]],
    ) -> None:
        self._desk = desk
        self._tokens = tokens
        self._escape = escape
        self._reload = reload
        self._status = status
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._handlers: dict[str, Handler] = {
            "list": self._do_list,
            "who": self._do_who,
            "send": self._do_send,
            "break": self._do_break,
            "power": self._do_power,
            "say": self._do_say,
            "reload": self._do_reload,
            "status": self._do_status,
            "token": self._do_token,
            "tokens": self._do_tokens,
            "revoke": self._do_revoke,
        }

    async def start(self, sock: socket.socket) -> None:
        """Begin to serve the listening socket; one from before is given up, its connections are not."""
        loop = asyncio.get_running_loop()
        if self._server is not None:
            self._server.close()
        self._server = await loop.create_unix_server(lambda: _Connection(self), sock=sock)

    def close(self) -> None:
        """End all connections and stop to listen; the socket's file goes with whoever made it."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.close()

    # -- used by connections

    def enter(self, connection: _Connection) -> bool:
        """Take a connection, unless there are too many."""
        if len(self._connections) >= MAX_CONNECTIONS:
            return False
        self._connections.add(connection)
        return True

    def leave(self, connection: _Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)

    async def answer(self, identity: Identity, request: Request) -> dict[str, Any]:
        """Do what is asked for and return the answer."""
        command = request.get("command")
        handler = self._handlers.get(command) if isinstance(command, str) else None
        try:
            if handler is None:
                known = ", ".join(sorted([*self._handlers, "attach"]))
                raise UsageError(f"there is no command {command!r}; there are: {known}")
            return await handler(identity, request)
        except MinervaError as error:
            return {"error": printable(str(error))}

    def attach(
        self, identity: Identity, request: Request, connection: _Connection
    ) -> tuple[Driver, dict[str, Any]]:
        """Attach a connection. Raises MinervaError."""
        console = self._desk.console(identity, _text(request, "console"))
        mode = request.get("mode")
        if mode not in (None, "read", "write"):
            raise UsageError("mode must be read or write")
        replay = request.get("replay")
        if replay is not None and (type(replay) is not int or replay < 0):
            raise UsageError("replay must be a number of bytes")
        escape = b""
        if request.get("interactive") is True:
            given = request.get("escape")
            escape = parse_escape(given, "escape") if isinstance(given, str) else self._escape()
        driver = Driver(
            self._desk,
            connection,
            lambda wake: Session(
                identity,
                console,
                self._desk.guard,
                now=self._desk.clock(),
                escape=escape,
                mode=None if mode is None else Mode(mode),
                replay=replay,
                wake=wake,
            ),
        )
        return driver, {
            "console": console.name,
            "state": console.hub.state.value,
            "reason": console.hub.reason,
        }

    # -- the commands

    async def _do_list(self, identity: Identity, _request: Request) -> dict[str, Any]:
        return {"consoles": self._desk.listing(identity)}

    async def _do_who(self, identity: Identity, request: Request) -> dict[str, Any]:
        return {"attached": self._desk.who(identity, _optional(request, "console"))}

    async def _do_send(self, identity: Identity, request: Request) -> dict[str, Any]:
        try:
            data = base64.b64decode(_text(request, "data"), validate=True)
        except (binascii.Error, ValueError):
            raise UsageError("data must be in base64") from None
        force = request.get("force") is True
        await self._desk.send(identity, _text(request, "console"), data, force=force)
        return {"sent": len(data)}

    async def _do_break(self, identity: Identity, request: Request) -> dict[str, Any]:
        seconds = request.get("seconds")
        if seconds is not None and type(seconds) not in (int, float):
            raise UsageError("seconds must be a number")
        self._desk.send_break(identity, _text(request, "console"), seconds)
        return {}

    async def _do_power(self, identity: Identity, request: Request) -> dict[str, Any]:
        wanted = _text(request, "action")
        try:
            action = None if wanted == "status" else PowerAction(wanted)
        except ValueError:
            raise UsageError("action must be status, on, off, cycle or reset") from None
        return {"said": await self._desk.power(identity, _text(request, "console"), action)}

    async def _do_say(self, identity: Identity, request: Request) -> dict[str, Any]:
        self._desk.say(identity, _optional(request, "console"), _text(request, "text"))
        return {}

    async def _do_reload(self, identity: Identity, _request: Request) -> dict[str, Any]:
        self._desk.guard.require(identity, Action.RELOAD)
        return await self._reload()

    async def _do_status(self, identity: Identity, _request: Request) -> dict[str, Any]:
        if not self._desk.guard.may(
            identity, Action.STATUS
        ):  # asking is no deed, so only this is written down
            self._desk.guard.require(identity, Action.STATUS)
        return self._status()

    async def _do_token(self, identity: Identity, request: Request) -> dict[str, Any]:
        try:
            role = Role[_text(request, "role").upper()]
        except KeyError:
            raise UsageError("role must be view, write, power or admin") from None
        ports = request.get("ports", [EVERYTHING])
        if not isinstance(ports, list) or not all(isinstance(port, str) and port for port in ports):
            raise UsageError("ports must be a list of patterns of consoles")
        days, hours = request.get("days", DAYS), request.get("hours", HOURS)
        if type(days) not in (int, float) or type(hours) not in (int, float):
            raise UsageError("days and hours must be numbers")
        self._desk.guard.require(identity, Action.TOKEN, detail=f"{role} at {' '.join(ports)}")
        text, token = self._tokens.create(
            role=role,
            ports=tuple(ports),
            made_by=identity.user,
            now=self._desk.clock(),
            days=days,
            hours=hours,
        )
        self._desk.guard.note(identity, "token made", detail=f"token {token.number}")
        await self._desk.audit.settled()
        return {"token": text, "number": token.number, "expires": token.expires}

    async def _do_tokens(self, identity: Identity, _request: Request) -> dict[str, Any]:
        self._desk.guard.require(identity, Action.TOKEN, detail="lists them")
        return {
            "tokens": [
                {
                    "number": token.number,
                    "role": token.role,
                    "ports": list(token.ports),
                    "made_by": token.made_by,
                    "made": token.made,
                    "expires": token.expires,
                }
                for token in self._tokens.list()
            ]
        }

    async def _do_revoke(self, identity: Identity, request: Request) -> dict[str, Any]:
        number = _text(request, "number")
        self._desk.guard.require(identity, Action.TOKEN, detail=f"revokes {number}")
        self._tokens.revoke(number)
        return {}


class _Connection(asyncio.Protocol):
    """One connection: requests one after another, until one attaches it."""

    def __init__(self, front: ControlFront) -> None:
        self._front = front
        self._transport: asyncio.Transport | None = None
        self._identity = Identity("", "")
        self._buffer = bytearray()
        self._driver: Driver | None = None
        self._task: asyncio.Task[None] | None = None
        self._full = False
        self._eof = False
        self._listening = True
        self._terminal = False
        self._timer: asyncio.TimerHandle | None = None

    # -- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Find out who it is."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._front.enter(self):
            transport.abort()
            return
        transport.set_write_buffer_limits(QUEUE)
        self._identity = peer_identity(transport.get_extra_info("socket"))
        self._timer = asyncio.get_running_loop().call_later(_TIMEOUT, self.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._front.leave(self)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        if self._driver is not None:
            self._driver.close("" if exc is None else "the connection was lost")
            self._driver = None

    def data_received(self, data: bytes) -> None:
        """Take a request, or what was typed."""
        if self._driver is not None:
            self._driver.receive(data)
            return
        self._buffer += data
        if len(self._buffer) > MAX_REQUEST:
            self.close()
            return
        self._next()

    def eof_received(self) -> bool:
        """Whoever writes no more may still read, if it is still there."""
        self._eof = True
        if self._driver is not None:
            self._look()
        return self._driver is not None or self._task is not None

    def pause_writing(self) -> None:
        """The client does not take more."""
        self._full = True

    def resume_writing(self) -> None:
        """It does again."""
        self._full = False
        if self._driver is not None:
            self._driver.wake()
        self._next()

    def _look(self) -> None:
        """See whether the client is gone: of one that was at its end before, asyncio would not say."""
        if self._transport is None:
            return
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket"), 0)
        if poll.poll(0):  # only POLLHUP and POLLERR come unasked
            self._transport.abort()
        else:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    # -- called by the driver

    @property
    def full(self) -> bool:
        """Whether the client has not taken what it was shown."""
        return self._full

    def show(self, output: Output) -> None:
        """Show something; to a program, only what the console says."""
        if self._transport is not None and (self._terminal or isinstance(output, bytes)):
            self._transport.write(to_terminal(output))

    def listen(self, hungry: bool) -> None:
        """Read what the user types, or leave it in the client."""
        if self._transport is not None and hungry is not self._listening:
            self._listening = hungry
            if hungry:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def ended(self, event: Ended) -> None:  # noqa: ARG002
        """The session at the console has ended."""
        self._driver = None
        self.close()

    # -- inside

    def close(self) -> None:
        """End, when what was written has been sent."""
        if self._transport is not None:
            self._transport.close()

    def _next(self) -> None:
        # One who takes no answers is asked for no more.
        if self._task is not None or self._driver is not None or self._full or b"\n" not in self._buffer:
            return
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            self._answer({"error": "a request is one line of JSON, an object"})
            self.close()
        elif request.get("command") == "attach":
            self._attach(request)
        else:
            self._task = asyncio.get_running_loop().create_task(self._serve(request))

    async def _serve(self, request: Request) -> None:
        try:
            self._answer(await self._front.answer(self._identity, request))
        finally:
            self._task = None
        if self._eof:
            self.close()
        self._next()

    def _attach(self, request: Request) -> None:
        try:
            driver, answer = self._front.attach(self._identity, request, self)
        except MinervaError as error:
            self._answer({"error": printable(str(error))})
            self.close()
            return
        self._answer(answer)
        self._terminal = request.get("interactive") is True
        self._driver = driver
        if self._buffer:
            driver.receive(bytes(self._buffer))
            self._buffer.clear()

    def _answer(self, answer: dict[str, Any]) -> None:
        if self._transport is not None:
            self._transport.write(json.dumps(answer).encode() + b"\n")


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _text(request: Request, name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name} must be a string")
    return value


def _optional(request: Request, name: str) -> str | None:
    return None if request.get(name) is None else _text(request, name)
