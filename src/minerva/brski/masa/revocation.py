"""Whether a registrar's certificates have been revoked by its domain (RFC 8995 section 5.5.3).

The MASA has to ask strangers for the CRLs of strangers. So it asks public addresses alone, for one CRL at a
time and not for long. Many domains keep their CRL inside, where nobody but them can see it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from itertools import pairwise
from threading import Lock
from urllib.parse import urlsplit

from cryptography import x509

from minerva.brski.masa.database import key_of
from minerva.brski.masa.errors import Refusal
from minerva.brski.masa.settings import Crls
from minerva.core.errors import MinervaError
from minerva.core.text import shortened
from minerva.https.client import HttpClient
from minerva.https.stream import TcpStream
from minerva.pki.crl import Crl, CrlStore, crl_urls
from minerva.pki.errors import CrlError
from minerva.pki.membership import RevocationStatus

FETCH_SECONDS = 3.0
"""How long it may take to get a CRL, in seconds."""

KEPT_FOR = timedelta(minutes=10)
"""After how long a CRL is asked for again, if it does not end before."""

RETRY_AFTER = timedelta(minutes=1)
"""After how long one that could not be had is asked for again."""

MAX_CRLS = 256
"""How many are kept."""

_FORBIDDEN = 403
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Kept:
    crl: Crl | None
    until: datetime


class RevocationChecker:
    """The CRLs of domains, as far as they can be had. Threads may share one."""

    def __init__(self, policy: Crls, fetch: Callable[[str], bytes] | None = None) -> None:
        self._policy = policy
        self._fetch = fetch or fetch_crl
        self._kept: OrderedDict[tuple[str, bytes], _Kept] = OrderedDict()
        self._fetching = Lock()

    def check(self, path: Sequence[x509.Certificate], now: datetime) -> datetime | None:
        """Raise :class:`Refusal` if a certificate in ``path`` is revoked.

        Return until when the CRLs hold, ``None`` if there are none.
        """
        if self._policy is Crls.NEVER:
            return None
        ends = []
        for certificate, issuer in pairwise(path):
            urls = _urls(certificate)
            if not urls:
                continue
            crl = next(filter(None, (self._get(url, issuer, now) for url in urls)), None)
            status = RevocationStatus.UNAVAILABLE if crl is None else crl.status(certificate, now)
            if status is RevocationStatus.REVOKED:
                raise Refusal(
                    _FORBIDDEN,
                    f"the certificate of {_name(certificate)} is revoked, as {_name(issuer)} says",
                )
            if status is RevocationStatus.UNAVAILABLE and self._policy is Crls.ALWAYS:
                raise Refusal(
                    _FORBIDDEN,
                    f"the CRL for the certificate of {_name(certificate)} cannot be had; make it public",
                )
            if crl is not None and status is RevocationStatus.GOOD:
                ends.append(crl.next_update)
        return min(ends, default=None)

    def _get(self, url: str, issuer: x509.Certificate, now: datetime) -> Crl | None:
        key = (url, key_of(issuer))
        kept = self._kept.get(key)
        if kept is not None and now < kept.until:
            return kept.crl
        if not self._fetching.acquire(blocking=False):
            # Who has a slow server shall not keep all others waiting.
            return None if kept is None else kept.crl
        crl: Crl | None
        try:
            crl = CrlStore().add(self._fetch(url), (issuer,), now)
            self._kept[key] = _Kept(crl, now + KEPT_FOR)
        except MinervaError as error:
            _logger.info("no CRL from %s: %s", url, error)
            # The old one still tells who is revoked.
            crl = None if kept is None else kept.crl
            self._kept[key] = _Kept(crl, now + RETRY_AFTER)
        finally:
            self._fetching.release()
        while len(self._kept) > MAX_CRLS:
            self._kept.popitem(last=False)
        return crl


def fetch_crl(url: str) -> bytes:
    """Return what is at ``url``, from a public address. Raises :class:`MinervaError`."""
    return asyncio.run(_fetch(url))


async def _fetch(url: str) -> bytes:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, _, _, _, address = found[0]
            if not ip_address(address[0]).is_global:
                raise CrlError("it is not at a public address")
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, address)
                client = HttpClient(TcpStream(sock), host if port == 80 else parts.netloc)
                answer = await client.request("GET", target, timeout=FETCH_SECONDS)
            finally:
                sock.close()
    except (OSError, UnicodeError, ValueError) as error:
        raise CrlError(f"{type(error).__name__}: {error}") from error
    if answer.status != 200:
        raise CrlError(f"the server answers with status {answer.status}")
    return answer.body


def _urls(certificate: x509.Certificate) -> list[str]:
    try:
        return [url for url in crl_urls(certificate) if _usable(url)]
    except CrlError as error:
        raise Refusal(_FORBIDDEN, f"a certificate of the registrar cannot be read: {error}") from error


def _usable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme.lower() == "http" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _name(certificate: x509.Certificate) -> str:
    return shortened(certificate.subject.rfc4514_string(), 100)
