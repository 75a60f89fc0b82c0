"""The web page: the consoles with their state, a terminal on each, their records.

One HTTPS port; a terminal is a websocket on it. Whoever logs in gets a cookie that scripts cannot read and
other sites cannot use; what changes something, and every websocket, must come from this page (Origin). The
page runs scripts of this server only (CSP). xterm.js is not in the sources: ``tools/vendor-xterm`` puts it
beside the page before a wheel is built.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import socket
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from minerva.console import record_files, record_search
from minerva.console.access import Access, Action, Identity
from minerva.console.break_glass import TokenError, Tokens
from minerva.console.config import BREAK_GLASS, Web
from minerva.console.events import Mode
from minerva.console.fronts.desk import Desk
from minerva.console.fronts.web_gate import Gate, visit_of
from minerva.console.fronts.web_terminal import WebTerminal
from minerva.console.fronts.web_tls import Certificate
from minerva.console.listeners import Connections
from minerva.console.session import Session
from minerva.console.throttle import Throttle, source_of
from minerva.core.errors import MinervaError
from minerva.core.text import printable

log = logging.getLogger(__name__)

COOKIE: Final = "__Host-minerva"
MAX_LOGINS: Final = 20
"""So often one user may have logged in at once; then the oldest login of that user ends."""
MAX_TERMINALS: Final = 32
"""Terminals that one user may have open."""
MAX_READS: Final = 2
"""So much may one user want of the records at once."""
MAX_BODY: Final = 8192
MAX_FOUND: Final = 1000
"""Lines that a search returns at most."""
SEARCH_SECONDS: Final = 20.0
REPLAY: Final = 65_536
"""Bytes from before that a terminal shows when it opens, at most."""
XTERM: Final = ("xterm.js", "xterm.css")

_FILES = {
    "index.html": "text/html; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "console.css": "text/css; charset=utf-8",
    "xterm.js": "text/javascript; charset=utf-8",
    "xterm.css": "text/css; charset=utf-8",
}
_NONCE = "@NONCE@"
_T = TypeVar("_T")
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,200}")


@dataclass(slots=True)
class _Login:
    identity: Identity
    until: float


def has_xterm() -> bool:
    """Return whether xterm.js is in this installation."""
    return all(_file(name).is_file() for name in XTERM)


def _file(name: str) -> Any:
    return resources.files("minerva.console.fronts").joinpath("web_files", name)


class WebFront:
    """The web page of one server. :meth:`serve` serves it on a listening socket until it is cancelled."""

    def __init__(
        self,
        desk: Desk,
        access: Access,
        throttle: Throttle,
        tokens: Tokens,
        settings: Web,
        *,
        directory: Path,
        records: Path,
    ) -> None:
        self._desk = desk
        self._guard = desk.guard
        self._access = access
        self._throttle = throttle
        self._tokens = tokens
        self._settings = settings
        self._records = records
        self._logins: dict[str, _Login] = {}
        # scrypt takes memory. Whoever has logged in before does not queue with strangers.
        self._hashing = {known: asyncio.Semaphore(1) for known in (True, False)}
        # Reading records may take long, and must not hold up what is done in other threads, such as logins.
        self._reading = ThreadPoolExecutor(2, thread_name_prefix="read records")
        self._reads: Counter[str] = Counter()
        self._terminals: Counter[str] = Counter()
        self._directory = directory
        self._making = asyncio.Lock()
        self._gate = Gate()
        # It warns of whatever strangers send.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        if not has_xterm():
            log.warning("the web page has no terminal: run tools/vendor-xterm")
        self._app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/static/{name}", self._static),
                Route("/api/login", self._login, methods=["POST"]),
                Route("/api/logout", self._logout, methods=["POST"]),
                Route("/api/consoles", self._consoles),
                Route("/api/search", self._search),
                Route("/api/consoles/{console}/who", self._who),
                Route("/api/consoles/{console}/log", self._log),
                Route("/api/consoles/{console}/records", self._list_records),
                Route("/api/consoles/{console}/records/{name}", self._record),
                WebSocketRoute("/api/consoles/{console}/attach", self._attach),
            ],
            exception_handlers={MinervaError: _explain, HTTPException: _explain},
        )

    def use(self, settings: Web) -> None:
        """Go by other settings; those who have logged in stay so."""
        self._settings = settings

    async def prepare(self, settings: Web) -> tuple[ssl.SSLContext, bytes]:
        """Return what :meth:`serve` needs for other settings, and a digest of that. Raises MinervaError."""
        async with self._making:
            return await asyncio.to_thread(Certificate(settings, self._directory).load)

    async def serve(
        self, listener: socket.socket, connections: Connections, context: ssl.SSLContext | None = None
    ) -> None:
        """Serve those who connect to ``listener``, until this is cancelled. Raises MinervaError."""
        if context is None:
            context, _ = await self.prepare(self._settings)
        await self._gate.serve(listener, connections, context, _Hardened(self._app))

    # -- who it is

    async def _login(self, request: Request) -> Response:
        _same_origin(request)
        body = await _body(request)
        user, password = body.get("user"), body.get("password")
        if not isinstance(user, str) or not isinstance(password, str):
            raise HTTPException(400, "user and password are needed")
        source = _source(request)
        place = source_of(source)
        now = time.time()
        async with self._hashing[self._throttle.known(place)]:
            # Only now: those who wait with us may have failed meanwhile.
            if self._throttle.password_blocked(place, time.time()):
                raise HTTPException(429, "too many failed logins: wait a minute")
            identity = await self._identify(user, password, f"web {source}", now)
            if identity is None:
                self._throttle.failed(place, time.time(), guess=True)
                waits = f"; {place} has to wait now" if self._throttle.blocked(place, time.time()) else ""
                self._note(user, source, f"the password is not right{waits}", allowed=False)
                raise HTTPException(403, "that user has not this password")
        self._throttle.succeeded(place)
        self._guard.pace(identity)
        visit_of(request.scope).known(identity.user)
        self._note(identity.user, source, identity.how)
        until = now + self._settings.session_hours * 3600
        if identity.until is not None:
            until = min(until, identity.until)
        token = secrets.token_urlsafe(32)
        self._forget_old(now, identity.user)
        self._logins[token] = _Login(identity, until)
        answer = JSONResponse({"user": identity.user})
        answer.set_cookie(
            COOKIE, token, max_age=int(until - now), secure=True, httponly=True, samesite="strict"
        )
        return answer

    async def _identify(self, user: str, password: str, source: str, now: float) -> Identity | None:
        if user == BREAK_GLASS:
            try:
                return await asyncio.to_thread(self._tokens.use, password, source, now)
            except TokenError as error:
                log.warning("a login by token from %s failed: %s", source, error)
                return None
        if await asyncio.to_thread(self._access.check_password, user, password):
            return Identity(user, source, "password")
        return None

    def _note(self, user: str, source: str, detail: str, *, allowed: bool = True) -> None:
        self._guard.note(Identity(user, f"web {source}"), "login", detail=detail, allowed=allowed)

    def _forget_old(self, now: float, user: str) -> None:
        """Forget the logins that are over, and the oldest of a user who has too many."""
        for token in [token for token, login in self._logins.items() if now >= login.until]:
            del self._logins[token]
        own = [token for token, login in self._logins.items() if login.identity.user == user]
        for token in own[: len(own) - MAX_LOGINS + 1]:
            del self._logins[token]

    async def _logout(self, request: Request) -> Response:
        _same_origin(request)
        login = self._logins.pop(request.cookies.get(COOKIE, ""), None)
        if login is not None:
            self._guard.note(login.identity, "logout")
        answer = JSONResponse({})
        answer.delete_cookie(COOKIE, secure=True, httponly=True, samesite="strict")
        return answer

    def _who_is(self, connection: HTTPConnection) -> Identity:
        """Return who asks. Raises HTTPException."""
        login = self._logins.get(connection.cookies.get(COOKIE, ""))
        if login is None or time.time() >= login.until:
            raise HTTPException(401, "log in first")
        user = login.identity.user
        if login.identity.grants is None and not self._access.is_user(user):
            raise HTTPException(401, "this user is no longer known here")
        visit_of(connection.scope).known(user)
        return login.identity

    # -- the page and what it shows

    async def _page(self, request: Request) -> Response:  # noqa: ARG002  # the same for everybody
        nonce = secrets.token_urlsafe(16)
        text = _file("index.html").read_text().replace(_NONCE, nonce)
        answer = Response(text, media_type=_FILES["index.html"])
        # xterm.js makes style elements of its own; our script gives them the nonce.
        answer.headers["Content-Security-Policy"] = _policy(f"'self' 'nonce-{nonce}'")
        return answer

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _FILES or not _file(name).is_file():
            raise HTTPException(404, "there is no such file")
        return Response(_file(name).read_bytes(), media_type=_FILES[name])

    async def _consoles(self, request: Request) -> Response:
        identity = self._who_is(request)
        found = self._desk.listing(identity)
        for console in found:
            console["may_write"] = self._guard.may(identity, Action.WRITE, console["name"])
            console["may_force"] = self._guard.may(identity, Action.FORCE, console["name"])
            console["may_power"] = console["power"] and self._guard.may(
                identity, Action.POWER, console["name"]
            )
        return JSONResponse({"user": identity.user, "consoles": found, "terminal": has_xterm()})

    async def _who(self, request: Request) -> Response:
        identity = self._who_is(request)
        return JSONResponse({"who": self._desk.who(identity, request.path_params["console"])})

    async def _log(self, request: Request) -> Response:
        console = self._recorded(request)
        try:
            count = max(1, min(MAX_FOUND, int(request.query_params.get("lines", "200"))))
        except ValueError:
            raise HTTPException(400, "lines must be a number") from None
        lines = await self._read(request, partial(record_search.last_lines, self._records, console, count))
        return JSONResponse({"lines": [_line(line) for line in lines]})

    async def _search(self, request: Request) -> Response:
        identity = self._who_is(request)
        try:
            # Of strangers' patterns, only plain text is safe: a regular expression may take for ever.
            pattern = re.compile(re.escape(request.query_params["text"]), re.IGNORECASE)
        except KeyError:
            raise HTTPException(400, "text is needed") from None
        if wanted := request.query_params.get("console", ""):
            # What does not exist may be a pattern, of consoles that this user may not see.
            names = [self._desk.console(identity, wanted).name]
            self._guard.require(identity, Action.RECORDS, wanted, f"search for {pattern.pattern}")
        else:
            names = [each["name"] for each in self._desk.listing(identity)]
            self._guard.pace(identity)
            self._guard.note(
                identity, Action.RECORDS.text, detail=f"search {len(names)} consoles for {pattern.pattern}"
            )
        found, complete = await self._read(request, partial(self._find, pattern, names))
        return JSONResponse({"lines": [_line(line) for line in found], "complete": complete})

    def _find(self, pattern: re.Pattern[str], names: list[str]) -> tuple[list[record_search.Line], bool]:
        """Return the first lines that are found, and whether they are all."""
        deadline = time.monotonic() + SEARCH_SECONDS
        found: list[record_search.Line] = []
        try:
            for line in record_search.search(self._records, pattern, consoles=names, deadline=deadline):
                if len(found) >= MAX_FOUND:
                    return found, False
                found.append(line)
        except TimeoutError:
            return found, False
        return found, True

    async def _read(self, request: Request, read: Callable[[], _T]) -> _T:
        """Run what reads records. Raises HTTPException if the user has not waited for what it wanted."""
        user = self._who_is(request).user
        if self._reads[user] >= MAX_READS:
            raise HTTPException(429, "wait for what you asked for before")
        self._reads[user] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reading, read)
        finally:
            self._reads[user] -= 1
            self._reads += Counter()  # forgets those who have none

    def _recorded(self, request: Request) -> str:
        """Return the console whose records are wanted, and may be seen."""
        identity = self._who_is(request)
        console = self._desk.console(identity, request.path_params["console"])
        self._guard.require(identity, Action.RECORDS, console.name, request.url.path.rsplit("/", 1)[-1])
        return console.name

    async def _list_records(self, request: Request) -> Response:
        console = self._recorded(request)
        files = await self._read(request, partial(record_files.files, self._records, console))
        return JSONResponse(
            {
                "records": [
                    {"name": file.path.name, "start": file.start, "bytes": file.path.stat().st_size}
                    for file in reversed(files)
                ]
            }
        )

    async def _record(self, request: Request) -> Response:
        """Send a cast as it was written, unpacked: to be replayed, or kept."""
        console, name = self._recorded(request), request.path_params["name"]
        files = await self._read(request, partial(record_files.files, self._records, console))
        file = next((file for file in files if file.path.name == name), None)
        if file is None or not _NAME.fullmatch(name):
            raise HTTPException(404, "there is no such record")
        plain = re.sub(r"\.(gz|zst)$", "", name)
        answer = StreamingResponse(_content(file), media_type="application/x-asciicast")
        answer.headers["Content-Disposition"] = f'attachment; filename="{console}-{plain}"'
        return answer

    # -- a terminal

    async def _attach(self, websocket: WebSocket) -> None:
        try:
            _same_origin(websocket)
            identity = self._who_is(websocket)
            if self._terminals[identity.user] >= MAX_TERMINALS:
                raise HTTPException(429, f"{identity.user} has {MAX_TERMINALS} terminals open already")
            console = self._desk.console(identity, websocket.path_params["console"])
            terminal = WebTerminal(websocket, self._desk)
            mode = None if websocket.query_params.get("mode") == "write" else Mode.READ
            terminal.session = Session(
                identity,
                console,
                self._guard,
                now=time.time(),
                mode=mode,
                replay=REPLAY,
                wake=terminal.wake,
            )
        except HTTPException as error:
            await websocket.close(1008, error.detail)
            return
        except MinervaError as error:
            await websocket.close(1008, printable(str(error))[:100])
            return
        self._terminals[identity.user] += 1
        try:
            await websocket.accept()
            await terminal.run(lambda: self._still(websocket))
        finally:
            self._terminals[identity.user] -= 1
            self._terminals += Counter()
            terminal.session.close(time.time(), "the page was left")

    def _still(self, websocket: WebSocket) -> bool:
        """Return whether the user is still logged in."""
        try:
            self._who_is(websocket)
        except HTTPException:
            return False
        return True


class _Hardened:
    """Adds to every answer what keeps browsers from mischief."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    async def __call__(
        self,
        scope: Any,
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        """Serve one request."""
        await self._app(scope, receive, partial(_send_hardened, send))


async def _send_hardened(send: Callable[[Any], Awaitable[None]], message: Any) -> None:
    if message["type"] == "http.response.start":
        headers = message["headers"]
        have = {name.lower() for name, _ in headers}
        for name, value in (
            (b"content-security-policy", _policy("'self'").encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cache-control", b"no-store"),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cross-origin-resource-policy", b"same-origin"),
        ):
            if name not in have:
                headers.append((name, value))
    await send(message)


def _policy(style: str) -> str:
    return (
        "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; font-src 'self'; "
        f"style-src {style}; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )


def _explain(request: Request, error: Exception) -> Response:  # noqa: ARG001  # starlette passes it
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    return JSONResponse({"error": printable(str(error))}, 403)


def _same_origin(connection: HTTPConnection) -> None:
    """Raise HTTPException if it was another site's page that sent this."""
    origin, host = connection.headers.get("origin"), connection.headers.get("host")
    if not host or origin != f"https://{host}":
        raise HTTPException(403, "this did not come from the page of this server")


async def _body(request: Request) -> dict[str, Any]:
    """Return the JSON in a request. Raises HTTPException."""
    data = bytearray()
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_BODY:
                raise HTTPException(413, "that is too long")
    except ClientDisconnect:
        raise HTTPException(400, "the rest did not come") from None
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise HTTPException(400, "a JSON object is needed")
    return body


def _source(connection: HTTPConnection) -> str:
    return "?" if connection.client is None else connection.client.host


def _line(line: record_search.Line) -> dict[str, Any]:
    return {"console": line.console, "at": line.at, "kind": line.kind, "text": line.text}


def _content(file: record_files.RecordFile) -> Iterator[bytes]:
    with record_files.open_record(file) as opened:
        while chunk := opened.read(1 << 16):
            yield chunk
