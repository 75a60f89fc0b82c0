"""Keeps this node a member: renews its certificate in time, and learns who is none any more (RFC 8994 6.2.5).

Part of the plane, which has the ACP key and is in the ACP: the EST servers and the CRLs are there.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import AddressValueError, IPv6Address
from typing import Any
from urllib.parse import urlsplit

from minerva.brski.pledge.enrolment import Enrolled
from minerva.brski.pledge.renewal import renew, renew_at
from minerva.core.errors import MinervaError
from minerva.https.client import HttpClient
from minerva.https.stream import TcpStream, TlsStream, host_and_port
from minerva.linux.sockets import start_connect, tcp_socket
from minerva.pki.crl import Crl, CrlStore, crl_urls
from minerva.pki.errors import CrlError
from minerva.pki.identity import Identity
from minerva.pki.keys import PrivateKey
from minerva.pki.membership import RevocationStatus
from minerva.tls.context import make_context

log = logging.getLogger(__name__)

EARLIEST, LATEST = 0.38, 0.48
"""At which part of its life a certificate is renewed, each node by chance at another: before half of it is
over (RFC 8994 section 6.2.5.2)."""

FIRST_AGAIN, LAST_AGAIN = 1.0, 300.0
"""After how many seconds a renewal that failed is tried again: the first time, and at most."""

CRL_AGAIN, CRL_PERIOD = 5.0, 3600.0
"""After how many seconds a CRL that could not be had is tried again, and at most between two looks."""

CRL_PATIENCE = 20.0
"""For how many seconds a missing CRL is not worth a word: who has just started has no routes yet."""

MAX_CRL_BODY = 2 << 20
"""The largest CRL that is fetched, in bytes: one of 50,000 certificates. It has to fit into our messages."""

_LOOK_SECONDS = 30.0  # the longest sleep until a moment of the calendar: somebody may set the clock
_CONNECT_SECONDS = 10.0
_CRL_SECONDS = 20.0

Server = tuple[IPv6Address, int]


class Maintenance:
    """The certificate of this node and the CRLs of its domain.

    ``servers()`` returns the EST servers that are announced; ``on_renewed(enrolled, server)`` and
    ``on_crl(crl)`` take what was got. :attr:`last_server` is the one that renewed last, also before now.
    """

    def __init__(
        self,
        identity: Identity,
        key: PrivateKey,
        *,
        servers: Callable[[], list[Server]],
        on_renewed: Callable[[Enrolled, Server], None],
        on_crl: Callable[[Crl], None],
    ) -> None:
        self.crls = CrlStore()
        self._servers = servers
        self._on_renewed = on_renewed
        self._on_crl = on_crl
        self.last_server: Server | None = None
        self._renewals = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._problem: str | None = None
        self._crl_problem: str | None = None
        self._crl_missed: float | None = None  # since when, in the loop's time
        self._crl_problem_said: str | None = None
        self.take(identity, key)

    def take(self, identity: Identity, key: PrivateKey) -> None:
        """Look after ``identity`` from now on."""
        self.close()
        self._identity = identity
        self._context = make_context(identity.certificate, identity.chain, key)
        fraction = random.uniform(EARLIEST, LATEST)
        self._renew_at = renew_at(identity.certificate, fraction=fraction)
        if self._renewals:
            # Not at once again, whatever times the CA puts into its certificates.
            now = datetime.now(UTC)
            rest = identity.certificate.not_valid_after_utc - now
            self._renew_at = max(self._renew_at, now + rest * EARLIEST)
        for work in (self._renew_in_time(), self._follow_crls()):
            task = asyncio.get_running_loop().create_task(work)
            # One that ends by an exception is a defect; let it be seen.
            task.add_done_callback(lambda task: task.cancelled() or task.result())
            self._tasks.append(task)

    def close(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    def status(self) -> dict[str, Any]:
        """Return what ``minerva status`` tells of it."""
        return {
            "renew_at": self._renew_at.isoformat(),
            "renewals": self._renewals,
            "est_server": None if self.last_server is None else _shown(self.last_server),
            "problem": self._problem,
            "crl_problem": self._crl_problem,
            "crls": [
                {
                    "issuer": crl.issuer.rfc4514_string(),
                    "number": crl.number,
                    "next_update": crl.next_update.isoformat(),
                    "revoked": len(crl.serial_numbers),
                }
                for crl in self.crls.crls
            ],
        }

    def _connect(self, address: IPv6Address, port: int) -> socket.socket:
        sock = tcp_socket(self._identity.address.address)
        try:
            start_connect(sock, address, port)
        except OSError:
            sock.close()
            raise
        return sock

    # --- renewal ---------------------------------------------------------------------------------------

    async def _renew_in_time(self) -> None:
        while (left := (self._renew_at - datetime.now(UTC)).total_seconds()) > 0:
            await asyncio.sleep(min(left, _LOOK_SECONDS))
        again = FIRST_AGAIN
        while True:
            if (enrolled := await self._try_servers()) is not None and self.last_server is not None:
                self._problem = None
                self._renewals += 1
                expires = enrolled.certificate.not_valid_after_utc
                log.info("the certificate is renewed; the new one is valid until %s", expires)
                self._on_renewed(enrolled, self.last_server)
                return
            await asyncio.sleep(again * random.uniform(0.8, 1.2))
            again = min(2 * again, LAST_AGAIN)

    async def _try_servers(self) -> Enrolled | None:
        """Ask the server that worked last, then all others; return what the first one gives.

        Of those, first the ones at an address where our CA has its CRLs, as our certificate says: that is the
        registrar, and no member that announces a thousand servers gets before it.
        """
        likely = self._crl_addresses()
        servers = [server for server in self._servers() if server != self.last_server]
        servers.sort(key=lambda server: server[0] not in likely)
        if self.last_server is not None:
            servers.insert(0, self.last_server)
        if not servers:
            self._problem_is("no EST server is announced in the ACP (objective SRV.est)")
        for server in servers:
            try:
                enrolled = await self._renew(*server)
            except (MinervaError, OSError) as error:
                self._problem_is(f"{_shown(server)}: {error}")
            else:
                self.last_server = server
                return enrolled
        return None

    def _crl_addresses(self) -> set[IPv6Address]:
        found = set()
        with suppress(CrlError):
            for url in crl_urls(self._identity.certificate):
                with suppress(CrlError):
                    found.add(_place(url)[0])
        return found

    async def _renew(self, address: IPv6Address, port: int) -> Enrolled:
        stream = await TlsStream.client(self._connect(address, port), self._context, timeout=_CONNECT_SECONDS)
        return await renew(
            stream,
            self._identity,
            now=lambda: datetime.now(UTC),
            host=host_and_port(str(address), port),
            revocation=self.crls,
        )

    def _problem_is(self, problem: str) -> None:
        if problem != self._problem:
            log.warning("the certificate cannot be renewed: %s", problem)
        self._problem = problem

    # --- revocation ------------------------------------------------------------------------------------

    async def _follow_crls(self) -> None:
        """Fetch the CRLs that our own certificate names: those of our peers are the same CA's."""
        try:
            urls = crl_urls(self._identity.certificate)
        except CrlError as error:
            log.error("our own certificate: %s", error)
            return
        again = CRL_AGAIN / 4
        while urls:
            crl = None
            for url in urls:
                try:
                    crl = await self._fetch(url)
                except (MinervaError, OSError) as error:
                    said = error.strerror if isinstance(error, OSError) else None
                    self._crl_problem_is(f"{url}: {said or error}")
                else:
                    break
            if crl is None:
                await asyncio.sleep(again * random.uniform(0.8, 1.2))
                again = min(2 * again, CRL_AGAIN)
                continue
            self._crl_problem = self._crl_problem_said = self._crl_missed = None
            half = (crl.next_update - crl.this_update).total_seconds() / 2
            await asyncio.sleep(min(max(half * random.uniform(0.8, 1.0), 1.0), CRL_PERIOD))

    async def _fetch(self, url: str) -> Crl:
        """Return the CRL at ``url``, which is from now on the one to go by."""
        address, port, target = _place(url)
        host = host_and_port(str(address), port, 80)
        http = HttpClient(TcpStream(self._connect(address, port)), host, max_body=MAX_CRL_BODY)
        try:
            response = await http.request("GET", target, timeout=_CRL_SECONDS)
        finally:
            await http.close()
        if response.status != 200:
            raise CrlError(f"the server answers {response.status}: {response.text()}")
        now = datetime.now(UTC)
        held = {crl.der for crl in self.crls.crls}
        if response.body in held:
            return next(crl for crl in self.crls.crls if crl.der == response.body)
        issuers = (*self._identity.chain, *self._identity.anchors)
        before = {crl.issuer: crl.serial_numbers for crl in self.crls.crls}
        crl = self.crls.add(response.body, issuers, now)
        news = before.get(crl.issuer) != crl.serial_numbers
        level = logging.INFO if news else logging.DEBUG
        log.log(level, "CRL number %s: %d certificates are revoked", crl.number, len(crl.serial_numbers))
        own = self._identity.certificate
        if own.issuer == crl.issuer and crl.status(own, now) is RevocationStatus.REVOKED:
            log.error("the certificate of this node is revoked: no member of the domain will talk to it")
        self._on_crl(crl)
        return crl

    def _crl_problem_is(self, problem: str) -> None:
        now = asyncio.get_running_loop().time()
        self._crl_problem = problem
        if self._crl_missed is None:
            self._crl_missed = now
        if now - self._crl_missed >= CRL_PATIENCE and problem != self._crl_problem_said:
            log.warning("no CRL: %s", problem)
            self._crl_problem_said = problem


def _shown(server: Server) -> str:
    return host_and_port(str(server[0]), server[1])


def _place(url: str) -> tuple[IPv6Address, int, str]:
    """Return address, port and target of a URL in the ACP, where there are no names (RFC 8994 6.2.5.3)."""
    try:
        parts = urlsplit(url)
        address = IPv6Address(parts.hostname or "")
        port = 80 if parts.port is None else parts.port
    except (AddressValueError, ValueError):
        raise CrlError("not an address in the ACP; CRLs elsewhere are not fetched") from None
    if parts.scheme != "http":
        raise CrlError("not by HTTP: a CRL is signed, and needs no TLS")
    return address, port, parts.path or "/"
