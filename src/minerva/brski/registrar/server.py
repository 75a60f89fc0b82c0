"""``minerva registrar run``: the registrar as a process.

It listens on this host's address in the ACP, which is there once the node is a member and stays when the node
is started again. Several processes on one database are one registrar: what one has begun another may end.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from minerva.asa import AsaError
from minerva.asa.protocol import API_SOCKET
from minerva.brski.registrar.announce import Announcer, node_address
from minerva.brski.registrar.app import MAX_BODY, make_app, make_crl_app
from minerva.brski.registrar.authority import Authority, BuiltInAuthority, open_authority
from minerva.brski.registrar.config import SERVICE_DIRECTORY, Config, Login, load
from minerva.brski.registrar.database import check_schema, open_database, reading, set_state, state, writing
from minerva.brski.registrar.domain import CRL_PATH, Domain, load_domain
from minerva.brski.registrar.errors import RegistrarError
from minerva.brski.registrar.est import EstService
from minerva.brski.registrar.identity import ServiceIdentities, ServiceIdentity, load_service
from minerva.brski.registrar.journal import Journal
from minerva.brski.registrar.masa_client import Credentials, MasaClient
from minerva.brski.registrar.own_node import renew_own_node
from minerva.brski.registrar.service_certificate import renew_service
from minerva.brski.registrar.telemetry import TelemetryService
from minerva.brski.registrar.vouchers import VoucherService
from minerva.core.errors import MinervaError
from minerva.core.text import utc
from minerva.https.server import HttpServer, Limits, make_server_context
from minerva.https.stream import host_and_port
from minerva.pki.address import AcpAddress
from minerva.pki.certificates import load_pem
from minerva.pki.errors import AddressError, CertificateError, KeyRuleError
from minerva.pki.keys import load_private_key

log = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS: Final = 30.0
"""How often a process says that it runs, and looks after its certificate."""

RUNNING: Final = "running."
"""What the keys in ``state`` begin with under which processes say that they run."""

FORGOTTEN: Final = timedelta(seconds=4 * HOUSEKEEPING_SECONDS)
"""After how long a process that says nothing more does not run any more."""

_BACKLOG = 256
_WAIT = 0.5


class Registrar:
    """One process of a registrar. ``clock`` is the calendar time, ``environment`` names proxies."""

    def __init__(
        self,
        directory: Path,
        config: Config,
        *,
        run_dir: Path,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = directory
        self._config = config
        self._api_socket = run_dir / API_SOCKET
        self._clock = clock
        self._environment = os.environ if environment is None else environment

    async def run(self, stop: asyncio.Event, ready: Callable[[IPv6Address, int, int], object]) -> None:
        """Serve until ``stop`` is set; call ``ready`` with the address and the two ports when it does.

        Raises :class:`~minerva.core.errors.MinervaError` if it cannot.
        """
        async with AsyncExitStack() as stack:
            engine = open_database(self._config.database_url(self._directory))
            stack.callback(engine.dispose)
            await asyncio.to_thread(check_schema, engine)
            services = ServiceIdentities(load_service(self._directory / SERVICE_DIRECTORY))
            domain = await asyncio.to_thread(_domain, engine)
            authority = open_authority(self._directory, engine, domain)
            masa = MasaClient(
                timeout=self._config.masa.timeout,
                credentials=_credentials(self._config.masa.servers),
                environment=self._environment,
            )
            stack.push_async_callback(masa.close)
            vouchers = VoucherService(engine, services, masa, self._config, clock=self._clock)
            stack.push_async_callback(vouchers.close)
            renewal = partial(self._renew_node, engine, authority)
            address = await _or_stopped(self._address(renewal), stop)
            if address is None:
                return
            sockets = await _or_stopped(self._listen(address), stop)
            if sockets is None:
                return
            port, crl_port = (sock.getsockname()[1] for sock in sockets)
            app = make_app(
                vouchers,
                TelemetryService(engine, clock=self._clock),
                EstService(engine, authority, clock=self._clock),
                Journal(engine),
                clock=self._clock,
            )
            server = HttpServer(app, _context(services.current), limits=Limits(body_size=MAX_BODY))
            own_ca = authority if isinstance(authority, BuiltInAuthority) else None
            crl_server = HttpServer(make_crl_app(engine, own_ca, clock=self._clock), None)
            for each, sock in ((server, sockets[0]), (crl_server, sockets[1])):
                await each.begin([sock])
                stack.push_async_callback(each.end)
            keeper = _Keeper(self._directory, engine, authority, services, server, self._clock, renewal)
            announcer = self._announcer(address, port, keeper)
            about = {"address": str(address), "port": port, "crl_port": crl_port}
            stack.callback(keeper.say_goodbye)
            ready(address, port, crl_port)
            tasks = [asyncio.create_task(keeper.run(about, announcer))]
            if announcer is not None:
                tasks.append(asyncio.create_task(announcer.run()))
            stack.push_async_callback(_cancelled, tasks)
            await _or_stopped(asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED), stop)
            for task in tasks:
                if task.done():
                    task.result()  # none of them ends by itself

    def _renew_node(self, engine: Engine, authority: Authority) -> None:
        """Let this machine's node in again, if its certificate has expired: nobody else can."""
        directory = Path(self._config.server.node_directory)
        identity = renew_own_node(directory, engine, authority, now=self._clock())
        if identity is not None:
            log.info("this machine's node had come too late: it has a new certificate")

    async def _address(self, renew_node: Callable[[], None]) -> IPv6Address:
        """Return the address to listen on: as configured, or once the node can tell, that of the node."""
        if self._config.server.address:
            return IPv6Address(self._config.server.address)
        said = False
        while True:
            try:
                await asyncio.to_thread(renew_node)
                return await node_address(self._api_socket)
            except (AsaError, MinervaError) as error:
                if not said:
                    log.info("waiting for this machine's node: %s", error)
                said = True
            await asyncio.sleep(_WAIT)

    async def _listen(self, address: IPv6Address) -> tuple[socket.socket, socket.socket]:
        """Return sockets that listen, as soon as the host has the address."""
        said = False
        while True:
            first = _bound(address, self._config.server.port)
            second = None if first is None else _bound(address, self._config.server.crl_port)
            if first is not None and second is not None:
                return first, second
            if first is not None:
                first.close()
            if not said:
                log.info("waiting for the address %s of this machine in the ACP", address)
            said = True
            await asyncio.sleep(_WAIT)

    def _announcer(self, address: IPv6Address, port: int, keeper: _Keeper) -> Announcer | None:
        try:
            AcpAddress(address)
        except AddressError:
            log.warning("not announced in the ACP: %s is not an address of it", address)
            return None
        return Announcer(
            self._api_socket,
            address,
            port,
            works=keeper.works,
            period=self._config.server.announce_period,
        )


class _Keeper:
    """Looks after what a running registrar needs: its certificate, its CA, and that it is known to run."""

    def __init__(
        self,
        directory: Path,
        engine: Engine,
        authority: Authority,
        services: ServiceIdentities,
        server: HttpServer,
        clock: Callable[[], datetime],
        renew_node: Callable[[], None],
    ) -> None:
        self._renew_node = renew_node
        self._directory = directory
        self._engine = engine
        self._authority = authority
        self._services = services
        self._server = server
        self._clock = clock
        self._key = f"{RUNNING}{socket.gethostname()}.{os.getpid()}"
        self._started = clock()
        self._said: str | None = None

    async def works(self) -> bool:
        """Return whether certificates can be had here; say why not when that changes."""
        problem = await asyncio.to_thread(self._problem)
        if problem != self._said:
            if problem is not None:
                log.error("no certificates can be issued: %s", problem)
            elif self._said is not None:
                log.info("certificates can be issued again")
            self._said = problem
        return problem is None

    async def run(self, about: dict[str, Any], announcer: Announcer | None) -> None:
        """Do what is to be done from time to time, for ever, and when the announcer begins or ceases."""
        changed = asyncio.Event() if announcer is None else announcer.changed
        while True:
            changed.clear()
            try:
                await asyncio.to_thread(self._look_after)
                announced = announcer is not None and announcer.announced
                await asyncio.to_thread(self._say, about | {"announced": announced})
            except MinervaError as error:
                log.error("%s", error)
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), HOUSEKEEPING_SECONDS)

    def say_goodbye(self) -> None:
        """Say that this process does not run any more."""
        with suppress(MinervaError), writing(self._engine) as connection:
            connection.execute(sa.delete(state).where(state.c.key == self._key))

    def _problem(self) -> str | None:
        now = self._clock()
        try:
            domain = _domain(self._engine)
        except MinervaError as error:
            return str(error)
        return self._services.current.problem(now) or self._authority.problem(domain, now)

    def _look_after(self) -> None:
        """Have a new certificate in time, whoever made it: this process, another one, or the operator."""
        now = self._clock()
        self._renew_node()
        renew_service(self._directory, self._engine, self._authority, now=now)
        fresh = load_service(self._directory / SERVICE_DIRECTORY)
        if fresh.der != self._services.current.der:
            self._server.context = _context(fresh)
            self._services.replace(fresh)
            expires = fresh.certificate.not_valid_after_utc
            log.info("the registrar has a new certificate, valid until %s", utc(expires))

    def _say(self, about: dict[str, Any]) -> None:
        now = self._clock()
        content = about | {"since": self._started.isoformat(), "seen": now.isoformat()}
        with writing(self._engine) as connection:
            set_state(connection, self._key, json.dumps(content))
            for key, found in _running(connection):
                if now - datetime.fromisoformat(found["seen"]) > timedelta(days=1):
                    connection.execute(sa.delete(state).where(state.c.key == key))


def running(connection: Connection, now: datetime) -> list[dict[str, Any]]:
    """Return what the processes of this registrar say of themselves that run now."""
    return [
        found for _, found in _running(connection) if now - datetime.fromisoformat(found["seen"]) <= FORGOTTEN
    ]


async def serve(
    directory: Path,
    run_dir: Path,
    *,
    address: str | None = None,
    port: int | None = None,
    crl_port: int | None = None,
) -> None:
    """Run the registrar in ``directory`` until SIGINT or SIGTERM comes.

    What is given goes before its settings. Raises :class:`~minerva.core.errors.MinervaError`.
    """
    config = load(directory)
    server = replace(
        config.server,
        address=config.server.address if address is None else address,
        port=config.server.port if port is None else port,
        crl_port=config.server.crl_port if crl_port is None else crl_port,
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    def ready(where: IPv6Address, port: int, crl_port: int) -> None:
        there = host_and_port(str(where), port, 0)
        log.info(
            "ready on %s, the CRL at http://%s%s", there, host_and_port(str(where), crl_port, 80), CRL_PATH
        )

    await Registrar(directory, replace(config, server=server), run_dir=run_dir).run(stop, ready)
    log.info("stopped")


def _domain(engine: Engine) -> Domain:
    with reading(engine) as connection:
        return load_domain(connection)


def _context(identity: ServiceIdentity) -> Any:
    # The domain's CA goes along: without it a pledge could not check a voucher that pins that. Not everybody
    # who comes has a certificate: the CA certificates are for all (RFC 7030 section 4.1.1).
    return make_server_context(identity.certificate, identity.authorities, identity.key, client="optional")


def _credentials(logins: Mapping[str, Login]) -> Callable[[str, int], Credentials]:
    """Return what is shown to which server. Raises :class:`RegistrarError` for files that are of no use."""
    loaded = {name.lower(): _load_login(name, login) for name, login in logins.items()}
    return lambda host, port: loaded.get(host_and_port(host, port), Credentials())


def _load_login(name: str, login: Login) -> Credentials:
    try:
        certificates = load_pem(Path(login.certificate).read_bytes()) if login.certificate else ()
        key = load_private_key(Path(login.key).read_bytes()) if login.key else None
        password = Path(login.password_file).read_text() if login.password_file else ""
    except OSError as error:
        raise RegistrarError(f'masa.servers."{name}": {error.filename}: {error.strerror}') from error
    except (CertificateError, KeyRuleError, UnicodeDecodeError) as error:
        raise RegistrarError(f'masa.servers."{name}": {error}') from error
    if login.certificate and not certificates:
        raise RegistrarError(f'masa.servers."{name}": {login.certificate} holds no certificate')
    first, chain = (certificates[0], certificates[1:]) if certificates else (None, ())
    return Credentials(first, chain, key, login.user, password.partition("\n")[0])


def _bound(address: IPv6Address, port: int) -> socket.socket | None:
    """Return a socket that listens, or ``None`` while the host does not have the address."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((str(address), port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRNOTAVAIL:
            return None
        where = host_and_port(str(address), port, 0)
        raise RegistrarError(f"cannot listen on {where}: {error.strerror}") from error
    return sock


def _running(connection: Connection) -> list[tuple[str, dict[str, Any]]]:
    rows = connection.execute(
        sa.select(state.c.key, state.c.value).where(state.c.key.startswith(RUNNING, autoescape=True))
    )
    return [(row.key, json.loads(row.value)) for row in rows]


async def _or_stopped(coroutine: Any, stop: asyncio.Event) -> Any:
    """Return what a coroutine returns, or ``None`` if ``stop`` is set before."""
    task, stopped = asyncio.ensure_future(coroutine), asyncio.create_task(stop.wait())
    await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if task.done():
        return task.result()
    await _cancelled([task])
    return None


async def _cancelled(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
