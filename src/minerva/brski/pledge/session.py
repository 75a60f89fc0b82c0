"""What a pledge says to one registrar: one TLS connection, made again where it was closed on the way.

The connection is provisional at first (RFC 8995 section 5.1): nobody knows who the registrar is. What can be
checked is checked, the chain is kept, and every further connection has to be with the owner of the very same
certificate (section 5).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Protocol, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from OpenSSL import SSL

from minerva.brski.pledge.errors import AttemptError, UntrustedError
from minerva.core.text import shortened
from minerva.https.client import REQUEST_SECONDS, HttpClient, Response
from minerva.https.errors import HttpClosed
from minerva.https.stream import HANDSHAKE_SECONDS, TlsStream, host_and_port
from minerva.pki.certificates import UNREADABLE
from minerva.pki.errors import KeyRuleError
from minerva.pki.keys import check_certificate

Connect = Callable[[], Awaitable[socket.socket]]
"""Makes a TCP connection to the registrar, which may still be in the making; each time a new one."""

Chain = tuple[x509.Certificate, ...]

MAX_VERIFICATIONS: Final = 32
"""How many signatures of a chain that nobody vouches for are checked: a stranger has chosen its length."""

_ANYONE = "registrar"
_MAX_NAME = 120


class Requests(Protocol):
    """Requests to a registrar, over one connection or over several with the same one."""

    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        timeout: float = REQUEST_SECONDS,
    ) -> Response:
        """Return the response to a request. Raises :class:`~minerva.https.errors.HttpError`."""


class Session:
    """A connection with a registrar, made when it is needed; close it, or use it with ``async with``.

    ``context`` says who we are. ``registrar`` is the certificate that the other end must have; without, it is
    the one that it has at first. ``check`` looks at each new connection, and raises
    :class:`~minerva.core.errors.MinervaError` if it must not be used. ``host`` is for the field Host;
    without, it is the address that we are connected to.
    """

    def __init__(
        self,
        connect: Connect,
        context: SSL.Context,
        *,
        host: str | None = None,
        registrar: x509.Certificate | None = None,
        check: Callable[[TlsStream], object] | None = None,
    ) -> None:
        self._connect = connect
        self._context = context
        self._host = host
        self._registrar = registrar
        self._check = check
        self._http: HttpClient | None = None
        self.chain: Chain = ()
        """What the registrar showed in the first connection, its own certificate first."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def registrar(self) -> x509.Certificate:
        """The registrar's certificate. Raises :class:`AttemptError` before there is one."""
        if self._registrar is None:
            raise AttemptError("there was no connection with the registrar yet")
        return self._registrar

    @property
    def usable(self) -> bool:
        """Whether the connection is there and can take one more request."""
        return self._http is not None and self._http.usable

    @property
    def host(self) -> str:
        """What stands in the field Host."""
        return self._host or _ANYONE

    async def open(self) -> None:
        """Connect, if the connection cannot be used any more; harmless otherwise.

        Raises :class:`UntrustedError` for a chain that cannot be right or is not the one of before, what
        ``check`` raises, and :class:`~minerva.https.errors.HttpError` or OSError.
        """
        if self.usable:
            return
        await self.close()
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                sock = await self._connect()
        except TimeoutError as error:
            raise AttemptError(f"no connection within {HANDSHAKE_SECONDS:g} s") from error
        stream = await TlsStream.client(sock, self._context, timeout=HANDSHAKE_SECONDS)
        try:
            self._admit(stream)
        except BaseException:
            await stream.close()
            raise
        if self._host is None:
            self._host = _address_of(sock)
        self._http = HttpClient(stream, self.host)

    def _admit(self, stream: TlsStream) -> None:
        chain = stream.peer_chain
        check_signatures(chain)
        if self._registrar is not None and chain[0] != self._registrar:
            raise UntrustedError(
                "the registrar shows another certificate than before: somebody may stand in between"
            )
        if self._check is not None:
            self._check(stream)
        self._registrar = chain[0]
        if not self.chain:
            self.chain = chain

    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        timeout: float = REQUEST_SECONDS,
    ) -> Response:
        """Send a request and return the response, once more over a new connection if the old one was closed.

        Raises as :meth:`open` does.
        """
        kept = self.usable
        await self.open()
        assert self._http is not None
        try:
            return await self._http.request(method, target, headers=headers, body=body, timeout=timeout)
        except HttpClosed:
            if not kept:
                raise
        await self.open()
        return await self._http.request(method, target, headers=headers, body=body, timeout=timeout)

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._http is not None:
            http, self._http = self._http, None
            await http.close()


def check_signatures(chain: Sequence[x509.Certificate]) -> None:
    """Raise :class:`UntrustedError` if a signature in ``chain`` is not what its issuer, in it too, made.

    Whether the chain leads to anybody known is open then (RFC 8995 section 5.1: "the signature in the
    certificate MUST be validated even if a signing key cannot (yet) be validated").
    """
    if not chain:
        raise UntrustedError("the registrar has shown no certificate")
    left = MAX_VERIFICATIONS
    try:
        for certificate in chain:
            check_certificate(certificate)
            issuers = [issuer for issuer in chain if _may_have_issued(issuer, certificate)]
            left -= len(issuers)
            if left < 0:
                raise UntrustedError("the registrar's certificates issue one another without end")
            if issuers and not any(_issued(issuer, certificate) for issuer in issuers):
                raise UntrustedError(
                    f"a signature in the registrar's chain is not valid: that of {name_of(certificate)}"
                )
    except KeyRuleError as error:
        raise UntrustedError(f"a certificate of the registrar cannot be accepted: {error}") from error
    except UNREADABLE as error:
        raise UntrustedError(
            f"a certificate of the registrar cannot be read: {shortened(str(error), _MAX_NAME)}"
        ) from error


def name_of(certificate: x509.Certificate) -> str:
    """Return whom ``certificate`` is for, harmless to show and not too long."""
    try:
        return shortened(certificate.subject.rfc4514_string(), _MAX_NAME) or "(no name)"
    except UNREADABLE:
        return "(unreadable)"


def _may_have_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Return whether names and key identifiers say so. A CA with a new key has its old name."""
    if issuer.subject != certificate.issuer:
        return False
    wanted, own = None, None
    with suppress(x509.ExtensionNotFound):
        extensions = certificate.extensions
        wanted = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    with suppress(x509.ExtensionNotFound):
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    return wanted is None or own is None or wanted == own


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _address_of(sock: socket.socket) -> str:
    """Return the address that ``sock`` is connected to; without the zone, which is nobody's business."""
    try:
        name = sock.getpeername()
    except OSError:
        return _ANYONE
    if not isinstance(name, tuple):
        return _ANYONE
    return host_and_port(str(name[0]).partition("%")[0], int(name[1]))
