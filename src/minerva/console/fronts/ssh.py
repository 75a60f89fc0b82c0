"""The SSH front: ``ssh CONSOLE@host``.

The name to log in with is ``CONSOLE`` (a key or a certificate says who comes), ``USER`` for the menu, or
``USER:CONSOLE``; where a name is both, it is the console, and ``USER:`` is the user. With the name
``break-glass`` or ``break-glass:CONSOLE`` the password is a one-time token. Without a pseudoterminal there
is no escape, and what we have to say goes to the client's standard error.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import asyncssh

from minerva.console.access import Access, Identity, Refused
from minerva.console.break_glass import TokenError, Tokens
from minerva.console.config import BREAK_GLASS
from minerva.console.fronts.desk import Desk
from minerva.console.fronts.ssh_keys import KnownKeys, certificate_name, host_keys
from minerva.console.fronts.ssh_session import SshSession
from minerva.console.krl import Credential, DecodeError
from minerva.console.listeners import Connections
from minerva.console.ssh_limits import KEX, Brake, check_asyncssh
from minerva.console.throttle import Logins, Throttle, source_of
from minerva.core.text import printable

log = logging.getLogger(__name__)

LOGIN_SECONDS: Final = 30
KEEPALIVE_SECONDS: Final = 60
KEEPALIVES: Final = 10
MAX_PASSWORDS: Final = 4
MAX_KEYS: Final = 20
"""Keys and passwords that one connection may try."""
MAX_FAILURES: Final = 24
"""Attempts of any kind that may fail in one connection."""
LOGIN_BYTES: Final = 131_072
"""Bytes that a client may send before it has logged in: what it makes us do is bounded by that."""
MAX_SESSIONS: Final = 16
"""Sessions in one connection."""
CONNECTIONS_OF_USER: Final = 64
"""Connections that one user may have."""
WINDOW: Final = 131_072
"""Bytes of input of a session that wait here at most if its device takes nothing."""
_ACCEPT_PAUSE: Final = 1.0


@dataclass(frozen=True, slots=True)
class Login:
    """Who comes, as far as the name to log in with says, and to which console."""

    user: str | None
    console: str | None


def parse_login(name: str, console: str | None, names: Sequence[str]) -> Login:
    """Return what a name to log in with means; ``console`` is that of a port of its own."""
    user, colon, wanted = name.partition(":")
    if console is not None:
        return Login(None if user == console else user or None, console)
    if colon:
        return Login(user or None, wanted or None)
    if name in names:
        return Login(None, name)
    return Login(name, None)


class SshFront:
    """Serves SSH on sockets that it is given. ``directory`` has the server's keys. Raises UsageError."""

    def __init__(
        self, desk: Desk, tokens: Tokens, directory: Path, *, escape: Callable[[], bytes], throttle: Throttle
    ) -> None:
        self.desk = desk
        self.tokens = tokens
        self.escape = escape
        self.throttle = throttle
        self.logins = Logins()
        # Hashing passwords takes long and much memory: one at a time, and never in the event loop. Whoever
        # has logged in before does not queue with strangers.
        self._hashing = {
            known: ThreadPoolExecutor(1, thread_name_prefix="password") for known in (True, False)
        }
        check_asyncssh()
        self._keys = host_keys(directory)
        # What it says at lower levels has the names that strangers log in with, as they are.
        asyncssh.set_log_level(logging.WARNING)
        self._connections: set[asyncio.Task[None]] = set()
        self.of_user: Counter[str] = Counter()
        """How many connections each user has."""

    async def serve(self, sock: socket.socket, connections: Connections, console: str | None = None) -> None:
        """Serve a listening socket until cancelled; ``console`` if it is for one console only."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        while True:
            try:
                peer, address = await loop.sock_accept(sock)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                log.error("SSH: accept: %s", error.strerror)
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            task = self._accepted(peer, str(address[0]), console)
            if task is not None:
                connections.add(task)

    def close(self) -> None:
        """End all connections."""
        for task in self._connections:
            task.cancel()
        for executor in self._hashing.values():
            executor.shutdown(wait=False, cancel_futures=True)

    async def check_password(self, user: str, password: str, source: str) -> bool:
        """Return whether this is the user's password."""
        executor = self._hashing[self.throttle.known(source)]
        check = self.desk.guard.access.check_password
        return await asyncio.get_running_loop().run_in_executor(executor, check, user, password)

    # -- inside

    def _accepted(self, peer: socket.socket, address: str, console: str | None) -> asyncio.Task[None] | None:
        source = source_of(address)
        number = None

        def end() -> None:
            task.cancel()

        if not self.throttle.blocked(source, self.desk.clock()):
            number = self.logins.enter(source, end)
        if number is None:
            peer.close()
            return None
        task = asyncio.get_running_loop().create_task(self._connection(peer, address, console, number))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        return task

    async def _connection(self, peer: socket.socket, address: str, console: str | None, number: int) -> None:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = _Server(self, address, console)
        try:
            conn = await asyncssh.run_server(
                peer,
                server_factory=lambda: server,
                server_host_keys=self._keys,
                encoding=None,
                line_editor=False,
                allow_scp=False,
                agent_forwarding=False,
                x11_forwarding=False,
                gss_host=None,
                host_based_auth=False,
                compression_algs=None,
                kex_algs=KEX,
                window=WINDOW,
                login_timeout=LOGIN_SECONDS,
                keepalive_interval=KEEPALIVE_SECONDS,
                keepalive_count_max=KEEPALIVES,
                server_version="Minerva",
            )
            self.logins.leave(number)
            await conn.wait_closed()
        except (OSError, asyncssh.Error) as error:
            log.debug("SSH from %s: %s", address, printable(str(error)))
        finally:
            self.logins.leave(number)
            server.abort()
            peer.close()


class _Server(asyncssh.SSHServer):
    """One connection: who it is, and what it opens."""

    def __init__(self, front: SshFront, address: str, console: str | None) -> None:
        self._front = front
        self._console = console
        self._source = source_of(address)
        self._where = f"ssh {address}"
        self._conn: asyncssh.SSHServerConnection | None = None
        self._login = Login(None, console)
        self._name = ""
        self._candidate: Identity | None = None
        self._passwords = self._keys = self._failures = self._bytes = 0
        self._counted = False
        self._shown = b""
        self._refusal = ""
        self.identity: Identity | None = None
        self.sessions: set[SshSession] = set()
        self._brake: Brake | None = None

    @property
    def transport_full(self) -> bool:
        """Whether the client has not taken what it was sent: its window may be far larger."""
        return self._brake is not None and self._brake.full

    # -- called by asyncssh

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Begin."""
        self._conn = conn
        # The names of a certificate are all that it would tell us.
        conn.validate_public_key = partial(  # type: ignore[method-assign]
            self._validate_key, conn.validate_public_key
        )
        # Nor does it limit what a stranger may send and try.
        conn.data_received = partial(self._received, conn.data_received)  # type: ignore[method-assign]
        self._brake = Brake(conn, self._room)
        conn.send_userauth_failure = partial(  # type: ignore[method-assign]
            self._attempt_failed, conn.send_userauth_failure
        )

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Count it if nobody logged in, and end the sessions."""
        if self.identity is None:
            if not self._counted:
                self._fail("", guess=False)
        else:
            self._front.desk.guard.note(self.identity, "logout")
            self._front.of_user[self.identity.user] -= 1
            self._front.of_user += Counter()  # forgets those who have none
        self.abort()

    def begin_auth(self, username: str) -> bool:
        """Look at the name to log in with; it takes a proof in any case."""
        self._name = username
        login = parse_login(username, self._console, self._front.desk.consoles.names())
        known = login.user == BREAK_GLASS or self._front.desk.guard.access.is_user(login.user or "")
        if login.console is None and not known and ":" not in username:
            # Nobody's name means a console, whether there is one or not: only who may look at it is to know.
            login = Login(None, username)
        self._login = login
        assert self._conn is not None
        self._conn.set_authorized_keys(KnownKeys(self._known_key))
        return True

    def password_auth_supported(self) -> bool:
        """Whether passwords are of any use: tokens always are."""
        return True

    async def validate_password(self, username: str, password: str) -> bool:  # noqa: ARG002
        """Return whether the password is right, or a token good."""
        front, user = self._front, self._login.user
        self._candidate = None
        self._passwords += 1
        if self._passwords > MAX_PASSWORDS:
            self._too_many()
            return False
        if front.throttle.password_blocked(self._source, front.desk.clock()):
            self._fail("too many failed logins", guess=False)
            return False
        if user == BREAK_GLASS:
            try:
                found = await asyncio.to_thread(front.tokens.use, password, self._where, front.desk.clock())
            except TokenError as error:
                self._fail(str(error), guess=True)
                return False
            self._candidate = found
            return True
        if user is None:
            # As long as for a user: how fast it is refused must not tell that there is such a console.
            await front.check_password("", password, self._source)
            self._fail("a password needs USER:CONSOLE to log in with", guess=True)
            return False
        if await front.check_password(user, password, self._source):
            self._candidate = Identity(user, self._where, "password")
            return True
        self._fail("wrong password", guess=True)
        return False

    async def auth_completed(self) -> None:
        """Write down who logged in. Nothing came between the last proof and this."""
        found = self._candidate
        assert found is not None
        desk = self._front.desk
        try:
            desk.guard.pace(found)
            if self._front.of_user[found.user] >= CONNECTIONS_OF_USER:
                desk.guard.note(found, "login", "", "has too many connections", allowed=False)
                raise Refused(f"{found.user} has {CONNECTIONS_OF_USER} connections already")
        except Refused as error:
            assert self._conn is not None
            self._counted = True  # as no guess
            self._conn.disconnect(asyncssh.DISC_TOO_MANY_CONNECTIONS, printable(str(error)))
            return
        self.identity = found
        self._front.of_user[found.user] += 1
        self._front.throttle.succeeded(self._source)
        desk.guard.note(found, "login", self._login.console or "", f"as {self._name}")
        if found.grants is not None:
            desk.warn_all(f"{found.user} has come in by a break-glass token from {self._where}")
            await desk.audit.settled()

    def session_requested(self) -> SshSession | bool:
        """Open a session."""
        if self.identity is None or len(self.sessions) >= MAX_SESSIONS:
            return False
        console = self._login.console
        if console is None and self._means_nothing:
            console = self._login.user
        return SshSession(self, self._front.desk, self._front.escape, self.identity, console)

    # -- inside

    @property
    def _means_nothing(self) -> bool:
        """Whether the name to log in with is neither a console's nor a user's, as far as one may know.

        Whoever has a good key is told so, as of a console that it may not view.
        """
        user = self._login.user
        return (
            self._login.console is None
            and user not in (None, BREAK_GLASS)
            and ":" not in self._name
            and not self._front.desk.guard.access.is_user(user)
        )

    def abort(self) -> None:
        """End all sessions and the connection."""
        for session in tuple(self.sessions):
            session.gone("the connection ended")
        if self._conn is not None:
            self._conn.abort()

    def _known_key(self, blob: bytes, fingerprint: str, principals: Sequence[str] | None) -> bool:
        self._candidate = None
        self._keys += 1
        if self._keys > MAX_KEYS:
            self._too_many()
            return False
        access: Access = self._front.desk.guard.access
        try:
            shown = Credential.decode(blob if principals is None else self._shown)
        except DecodeError as error:
            self._refusal = str(error)
            return False
        if principals is None:
            users = access.users_of_key(blob)
            how = f"key {fingerprint}"
        elif access.is_authority(blob) and shown.authority == blob:
            # A certificate for no name in particular would be one for all.
            users = tuple(name for name in principals if access.is_user(name))
            how = f"{certificate_name(shown)} of CA {fingerprint}"
        else:
            return False
        wanted = self._login.user
        if wanted is not None and not self._means_nothing:
            users = tuple(name for name in users if name == wanted)
        if len(users) != 1:
            return False
        if why := access.revoked.refuses(shown):
            self._refusal = f"{how}: {why}"
            return False
        self._candidate = Identity(users[0], self._where, how, shown=shown)
        return True

    def _fail(self, why: str, *, guess: bool) -> None:
        """Count a failed login, and write it down if there was more than a connection."""
        self._counted = True
        front, now = self._front, self._front.desk.clock()
        front.throttle.failed(self._source, now, guess=guess)
        blocked = front.throttle.blocked(self._source, now)
        why = why or self._refusal or ("no good key or password" if self._name else "")
        if why or blocked:
            stranger = Identity(self._name, self._where)
            detail = f"{why}; {self._source} has to wait now" if blocked else why
            front.desk.guard.note(stranger, "login", self._login.console or "", detail, allowed=False)

    def _too_many(self) -> None:
        assert self._conn is not None
        self._conn.disconnect(asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "too many attempts")

    async def _validate_key(
        self,
        validate: Callable[[str, bytes, bytes, bytes], Awaitable[bool]],
        username: str,
        key_data: bytes,
        msg: bytes,
        signature: bytes,
    ) -> bool:
        self._shown = key_data
        await asyncio.to_thread(self._front.desk.guard.access.revoked.look)
        return await validate(username, key_data, msg, signature)

    def _received(self, receive: Callable[[bytes, int | None], None], data: bytes, *rest: int | None) -> None:
        if self.identity is None:
            self._bytes += len(data)
            if self._bytes > LOGIN_BYTES:
                assert self._conn is not None
                self._conn.abort()
                return
        receive(data, *rest)

    def _attempt_failed(self, tell: Callable[[bool], None], partial_success: bool) -> None:
        self._failures += 1
        if self._failures > MAX_FAILURES:
            self._too_many()
        else:
            tell(partial_success)

    def _room(self) -> None:
        for session in tuple(self.sessions):
            session.wake()
