"""An external CA, asked over EST (RFC 7030): the registrar checks, and passes on what a device sends.

In ``external/`` of the registrar's directory, in the files that a node's identity has: the certificate and
key with which the registrar shows the CA that it may ask for others (``cert.pem``, ``chain.pem``,
``key.pem``), and by what the CA's server is known (``anchors.pem``; without, by what browsers trust).
CRLs are the CA's affair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from minerva.brski.registrar.domain import Domain
from minerva.brski.registrar.errors import Refusal, RegistrarError
from minerva.est.bodies import decode_base64, encode_base64, load_certs_only
from minerva.https.client import HttpClient, Response
from minerva.https.stream import host_and_port, web_stream
from minerva.pki.address import AcpAddress
from minerva.pki.ca import Issued
from minerva.pki.certificates import load_pem
from minerva.pki.errors import CertificateError, KeyRuleError, NodeNameError, PathError
from minerva.pki.identity import ANCHORS_FILE, CERTIFICATE_FILE, CHAIN_FILE, KEY_FILE
from minerva.pki.keys import PrivateKey, load_private_key
from minerva.pki.node_name import AcpNodeName
from minerva.pki.path import validate_path
from minerva.pki.request import CertificateRequest, RequestedExtension, make_request

EXTERNAL_DIRECTORY: Final = "external"

SECONDS: Final = 20.0
"""How long the CA may take for an answer."""

PAUSE: Final = timedelta(seconds=30)
"""How long the CA is taken not to work after it has failed."""

_PATH = "/.well-known/est"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the registrar shows the CA, and by what it knows it."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: PrivateKey = field(repr=False)
    anchors: tuple[x509.Certificate, ...] | Literal["web"]


def load_credentials(directory: Path) -> Credentials:
    """Return the credentials in ``directory``. Raises :class:`RegistrarError`."""
    try:
        certificate, *more = load_pem((directory / CERTIFICATE_FILE).read_bytes())
        key = load_private_key((directory / KEY_FILE).read_bytes())
        chain, anchors = (
            load_pem((directory / name).read_bytes()) if (directory / name).exists() else ()
            for name in (CHAIN_FILE, ANCHORS_FILE)
        )
    except OSError as error:
        raise RegistrarError(
            f"{error.filename}: {error.strerror}; an external CA wants a certificate and key of the registrar"
        ) from error
    except (ValueError, CertificateError, KeyRuleError) as error:
        raise RegistrarError(f"the credentials in {directory} cannot be used: {error}") from error
    return Credentials(certificate, (*more, *chain), key, anchors or "web")


class ExternalAuthority:
    """The external CA of a domain. Serves one event loop; :meth:`certify` is for where there is none."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        changed: Callable[[tuple[x509.Certificate, ...], datetime], object] | None = None,
    ) -> None:
        """``changed`` is called, in a thread, with the CA's certificates if they have changed."""
        self._credentials = credentials
        self._changed = changed
        self._authorities: tuple[x509.Certificate, ...] = ()
        self._failure: tuple[datetime, str] | None = None

    async def issue(
        self,
        domain: Domain,
        request: CertificateRequest,
        node_name: AcpNodeName,
        subject: x509.Name | None,  # noqa: ARG002 -- the CA decides
        now: datetime,
    ) -> x509.Certificate:
        """Return what the CA makes of a device's request, once it has been checked.

        Raises :class:`RegistrarError`, an error of HTTP, or :class:`Refusal` if the CA wants to be asked
        again later.
        """
        try:
            issued = await self._ask(domain, request.der, request.public_key, node_name, now)
        except Refusal:
            raise
        except Exception as error:
            self._failure = now, str(error)
            raise
        self._failure = None
        return issued.certificate

    def problem(self, domain: Domain, now: datetime) -> str | None:  # noqa: ARG002 -- as all authorities
        """Return why the CA is taken not to work: our own certificate has expired, or it just failed."""
        expires = self._credentials.certificate.not_valid_after_utc
        if expires <= now:
            what = f"the certificate for the external CA expired on {expires:%Y-%m-%d}"
            return f"{what}; put a new one into {EXTERNAL_DIRECTORY}/"
        if self._failure is not None and now - self._failure[0] < PAUSE:
            return f"the external CA failed: {self._failure[1]}"
        return None

    def certify(
        self,
        domain: Domain,
        key: PrivateKey,
        node_name: AcpNodeName,
        *,
        lifetime: timedelta,  # noqa: ARG002 -- the CA decides
        now: datetime,
        usages: Sequence[x509.ObjectIdentifier] = (),
        names: Sequence[x509.GeneralName] = (),
        subject: str | None = None,
        with_crl: bool = True,  # noqa: ARG002 -- the CA decides
    ) -> Issued:
        """Return a certificate for a key of our own. Takes as long as the CA does.

        Raises :class:`RegistrarError`, also if the CA leaves out what was asked for.
        """
        extensions: list[x509.ExtensionType] = [x509.SubjectAlternativeName([node_name.other_name(), *names])]
        if usages:
            extensions.append(x509.ExtendedKeyUsage(usages))
        requested = [RequestedExtension(one.oid, False, one.public_bytes()) for one in extensions]
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject or str(node_name.address))])
        request = make_request(key, node_name, extensions=requested, subject=name)
        issued = asyncio.run(self._ask(domain, request, key.public_key(), node_name, now))
        for wanted in extensions:
            _expect(issued.certificate, wanted)
        return Issued(
            issued.certificate, issued.chain, issued.anchors, node_name, issued.address, private_key=key
        )

    async def authorities(self, domain: Domain) -> tuple[x509.Certificate, ...]:
        """Return what the CA answers to /cacerts."""
        response = await self._exchange(domain, "GET", "cacerts", b"")
        _expect_ok(response, "cacerts")
        return load_certs_only(decode_base64(response.body))

    async def _ask(
        self,
        domain: Domain,
        request: bytes,
        key: CertificatePublicKeyTypes,
        node_name: AcpNodeName,
        now: datetime,
    ) -> Issued:
        response = await self._exchange(domain, "POST", "simpleenroll", encode_base64(request))
        if response.status == 202:
            wait = response.retry_after(datetime.now(UTC)) or PAUSE.total_seconds()
            raise Refusal(
                202, "the CA has not decided yet; ask again", retry_after=max(1, int(min(wait, 3600)))
            )
        if 400 <= response.status < 500:
            # That is about this request, and does not say that the CA does not work.
            said = f"the external CA answered {response.status}: {response.text() or 'no reason'}"
            raise Refusal(403, "the CA refuses this request", detail=said)
        _expect_ok(response, "simpleenroll")
        ours = [one for one in load_certs_only(decode_base64(response.body)) if one.public_key() == key]
        if len(ours) != 1:
            raise RegistrarError("the external CA answered with no certificate for the key in the request")
        (certificate,) = ours
        try:
            issued_for = AcpNodeName.of(certificate)
        except NodeNameError as error:
            raise RegistrarError(f"the external CA left the acp-node-name out: {error}") from error
        if issued_for != node_name:
            raise RegistrarError(
                f"the external CA issued a certificate for {issued_for}, not for {node_name}"
            )
        anchors, path = await self._path(domain, certificate, now)
        address = None if node_name.address is None else AcpAddress(node_name.address)
        return Issued(certificate, path[1:-1], anchors, node_name, address)

    async def _path(
        self, domain: Domain, certificate: x509.Certificate, now: datetime
    ) -> tuple[tuple[x509.Certificate, ...], tuple[x509.Certificate, ...]]:
        """Return the CA's trust anchors and the path to one of them, asking for new ones if need be."""
        for fresh in (False, True):
            if fresh or not self._authorities:
                self._authorities = await self.authorities(domain)
                if self._changed is not None:
                    await asyncio.to_thread(self._changed, self._authorities, now)
            anchors = tuple(one for one in self._authorities if is_root(one))
            between = tuple(one for one in self._authorities if one not in anchors)
            try:
                return anchors, tuple(validate_path((certificate, *between), anchors, now))
            except PathError as error:
                reason = str(error)
        raise RegistrarError(f"the external CA's certificate has no path to its trust anchors: {reason}")

    async def _exchange(self, domain: Domain, method: str, operation: str, body: bytes) -> Response:
        url = urlsplit(domain.est_url)
        host, port = url.hostname or "", url.port or 443
        ours = self._credentials
        stream = await web_stream(
            host, port, anchors=ours.anchors, certificate=ours.certificate, chain=ours.chain, key=ours.key
        )
        client = HttpClient(stream, host_and_port(host, port))
        headers = [("Content-Type", "application/pkcs10")] if body else []
        try:
            return await client.request(
                method,
                f"{url.path.rstrip('/') or _PATH}/{operation}",
                headers=headers,
                body=body,
                timeout=SECONDS,
            )
        finally:
            await client.close()


def check_url(url: str) -> str:
    """Return the URL of an EST server. Raises :class:`RegistrarError`.

    Without a path it means /.well-known/est; one with a label has it in the path.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme == "https" and parts.hostname and (parts.port or 443) > 0
    except ValueError:
        usable = False
    if not usable:
        raise RegistrarError("the external CA is given by a URL such as https://ca.example.com")
    return url


def is_root(certificate: x509.Certificate) -> bool:
    """Return whether a certificate of a CA is signed by itself: a trust anchor."""
    if certificate.issuer != certificate.subject:
        return False
    try:
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _expect(certificate: x509.Certificate, wanted: x509.ExtensionType) -> None:
    try:
        found = certificate.extensions.get_extension_for_oid(wanted.oid).value
    except x509.ExtensionNotFound:
        found = None
    missing = []
    if isinstance(wanted, x509.ExtendedKeyUsage | x509.SubjectAlternativeName):
        has = list(found) if isinstance(found, type(wanted)) else []
        missing = [one for one in wanted if one not in has]
    if missing:
        shown = ", ".join(str(getattr(one, "dotted_string", one)) for one in missing)
        raise RegistrarError(f"the external CA left out what a registrar needs: {shown}")


def _expect_ok(response: Response, operation: str) -> None:
    if response.status != 200:
        raise RegistrarError(
            f"the external CA answered {operation} with {response.status}: {response.text() or 'no reason'}"
        )
