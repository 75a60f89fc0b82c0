"""The registrar's EST service (RFC 7030, as RFC 8995 section 5.9 and RFC 8994 section 6.2.5 use it).

A client is known by its TLS certificate: the IDevID that the registrar has checked when it gave the voucher,
or a certificate of this domain, which may have expired. What it gets is bound to the device in the database.
A request is checked and answered in three steps, so that no transaction is open while a CA signs: look, let
the CA sign, then look again under a lock and write everything at once. What is refused leaves no trace but an
event in the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.engine import Connection, Engine
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from minerva.brski.registrar import manufacturers
from minerva.brski.registrar.addresses import assign, assigned
from minerva.brski.registrar.authority import (
    Authority,
    load_ca_certificates,
    record_certificate,
    serial_text,
)
from minerva.brski.registrar.database import (
    DeviceState,
    certificates,
    reading,
    record_event,
    writing,
)
from minerva.brski.registrar.devices import Device, change_state, find_by_idevid, find_device, get_device
from minerva.brski.registrar.domain import Domain, load_domain
from minerva.brski.registrar.errors import DatabaseError, Refusal
from minerva.brski.registrar.journal import Journal
from minerva.core.errors import MinervaError
from minerva.core.text import printable, utc
from minerva.est.bodies import certs_only, decode_base64, encode_base64
from minerva.est.csrattrs import for_node_name
from minerva.est.errors import EstDecodeError
from minerva.https.server import client_chain
from minerva.pki.address import Scheme
from minerva.pki.errors import RequestError
from minerva.pki.node_name import AcpNodeName
from minerva.pki.request import CertificateRequest, check_request, load_request

PREFIX: Final = "/.well-known/est"

MAX_BODY: Final = 65_536
"""The largest body of a request, in bytes."""

MAX_CERTIFICATES, CERTIFICATES_PERIOD = 64, timedelta(days=1)
"""How many certificates one device gets within that time, or within the life of one if that is less. All that
are valid are in the CRL when it is revoked, and a CRL that is too large to be fetched revokes nobody."""

RETRY_AFTER: Final = 10
"""After how many seconds a client may try again while the database or the CA does not answer."""

CERTIFICATES_RETRY_AFTER: Final = 600
"""The same for a device that has got too many certificates."""

_CA_MESSAGE_LASTS = timedelta(seconds=1)

_PKCS10 = "application/pkcs10"
_CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"
_PKCS7 = "application/pkcs7-mime"
_CSRATTRS = "application/csrattrs"

_METHODS = {"cacerts": "GET", "csrattrs": "GET", "simpleenroll": "POST", "simplereenroll": "POST"}

_ANY_METHOD = ("GET", "POST", "PUT", "PATCH", "DELETE")

# Clients with lines of limited length: libest takes no line of more than a kilobyte.
_WRAPPED_FOR = ("libest", "cisco est client")

_CERTIFICATE = sa.select(
    certificates.c.device_id, certificates.c.der, certificates.c.revoked_at, certificates.c.superseded_by
).where(certificates.c.serial == sa.bindparam("wanted"))

_LATELY = sa.select(sa.func.count()).where(
    certificates.c.device_id == sa.bindparam("owner"),
    certificates.c.issued > sa.bindparam("since"),
    certificates.c.issued <= sa.bindparam("now"),
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Client:
    """Who is at the other end of the TLS connection.

    ``own`` is the certificate of this domain by which it is known; without, it showed its IDevID.
    """

    device: Device
    own: x509.Certificate | None = None


class EstService:
    """What EST does, without HTTP. May be used by several threads."""

    def __init__(
        self,
        engine: Engine,
        authority: Authority,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        journal: Journal | None = None,
    ) -> None:
        self.engine = engine
        self.authority = authority
        self.now = clock
        self._manufacturers = manufacturers.Manufacturers()
        self._ca_message: tuple[datetime, bytes] | None = None
        self.journal = journal or Journal(engine)

    def ca_certificates(self) -> tuple[x509.Certificate, ...]:
        """Return what /cacerts answers: for everybody, as nothing in it is secret."""
        with reading(self.engine) as connection:
            return load_ca_certificates(connection, self.now())

    async def ca_message(self) -> bytes:
        """Return the DER of /cacerts. It is made once a second: everybody who enrols asks for it."""
        now = self.now()
        if self._ca_message is None or not timedelta(0) <= now - self._ca_message[0] < _CA_MESSAGE_LASTS:
            self._ca_message = now, certs_only(await asyncio.to_thread(self.ca_certificates))
        return self._ca_message[1]

    def attributes(self, chain: Sequence[x509.Certificate]) -> bytes:
        """Return the DER that /csrattrs answers: the client's own acp-node-name, the same every time.

        Raises :class:`Refusal`.
        """
        now = self.now()
        with reading(self.engine) as connection:
            domain = load_domain(connection)
            client = self._client(connection, chain, now)
            name = assigned(connection, client.device.id, domain.name)
        if name is None:
            with writing(self.engine) as connection:
                device = _lock(connection, client)
                name = _assign(connection, device, domain, now)
        return for_node_name(name)

    async def enroll(
        self, chain: Sequence[x509.Certificate], body: bytes, *, renew: bool, peer: str | None = None
    ) -> x509.Certificate:
        """Return the certificate that /simpleenroll, or with ``renew`` /simplereenroll, answers.

        Clients such as strongSwan's take simplereenroll whenever they have any certificate. What counts is
        which: with an IDevID a device enrols, and with its certificate of this domain it renews that.
        Raises :class:`Refusal`.
        """
        now = self.now()
        domain, client, name, request = await asyncio.to_thread(self._before, chain, body, renew, now)
        if problem := self.authority.problem(domain, now):
            raise Refusal(503, f"the CA cannot sign now: {problem}", retry_after=RETRY_AFTER)
        subject = None if client.own is None else client.own.subject
        try:
            certificate = await self.authority.issue(domain, request, name, subject, now)
        except Refusal as refusal:
            refusal.device_id = client.device.id
            raise
        except MinervaError as error:
            raise Refusal(
                503, "the CA cannot sign now; try again later", detail=str(error), retry_after=RETRY_AFTER
            ) from error
        await asyncio.to_thread(self._after, client, domain, name, certificate, peer, now)
        return certificate

    def _before(
        self, chain: Sequence[x509.Certificate], body: bytes, renew: bool, now: datetime
    ) -> tuple[Domain, Client, AcpNodeName, CertificateRequest]:
        """Check all that can be checked without writing; return what the certificate is made of."""
        with reading(self.engine) as connection:
            domain = load_domain(connection)
            client = self._client(connection, chain, now)
            name = assigned(connection, client.device.id, domain.name)
            _check_number(connection, client.device, domain, now)
        who = client.device
        request = _load(body, who)
        if name is None:
            raise Refusal(
                400, "ask /csrattrs first for the name that the request has to hold", device_id=who.id
            )
        # An empty subject is taken for the old one: the name that counts is in the subjectAltName.
        subject = client.own.subject if renew and client.own is not None and len(request.subject) else None
        try:
            check_request(request, name, subject=subject)
        except RequestError as error:
            raise Refusal(400, str(error), device_id=who.id) from error
        _check_extensions(request, who)
        return domain, client, name, request

    def _after(
        self,
        client: Client,
        domain: Domain,
        name: AcpNodeName,
        certificate: x509.Certificate,
        peer: str | None,
        now: datetime,
    ) -> None:
        """Write the certificate down, unless things have changed since it was ordered."""
        with writing(self.engine) as connection:
            device = _lock(connection, client)
            if client.own is not None:
                _check_own(connection, client.own, device)
            _check_number(connection, device, domain, now)
            change_state(connection, device, DeviceState.ENROLLED, seen=now, peer=peer)
            record_certificate(connection, certificate, device.id, now)
            record_event(
                connection,
                "enrolled" if client.own is None else "renewed",
                when=now,
                device_id=device.id,
                peer=peer,
                detail={
                    "acp_node_name": str(name),
                    "serial": serial_text(certificate),
                    "expires": utc(certificate.not_valid_after_utc),
                },
            )
        _log.info(
            "%s %s its certificate as %s, valid until %s",
            printable(device.serial_number),
            "gets" if client.own is None else "renews",
            name.address,
            utc(certificate.not_valid_after_utc),
        )

    def _client(self, connection: Connection, chain: Sequence[x509.Certificate], now: datetime) -> Client:
        """Return who shows this chain, and may use EST. Raises :class:`Refusal`."""
        if not chain:
            raise Refusal(401, "EST needs a TLS client certificate: the IDevID, or one of this domain")
        client = _owner(connection, chain[0], now) or self._device(connection, chain, now)
        _authorise(client.device)
        return client

    def _device(self, connection: Connection, chain: Sequence[x509.Certificate], now: datetime) -> Client:
        """Return the device with this IDevID."""
        if (device := find_by_idevid(connection, chain[0])) is not None:
            return Client(device)
        # Never checked before. Only the operator's word lets it in: there was no voucher (RFC 8995 5.9).
        try:
            manufacturer, serial_number = manufacturers.identify(
                self._manufacturers.load(connection), chain, now
            )
        except manufacturers.UnknownManufacturerError as error:
            raise Refusal(403, f"not a certificate of this domain, and {error}") from error
        device = find_device(connection, manufacturer.id, serial_number)
        if device is None:
            raise Refusal(
                403, f"the device {printable(serial_number)} got no voucher here; ask for one first"
            )
        if device.state is not DeviceState.APPROVED:
            raise Refusal(
                403,
                f"the device {printable(serial_number)} got no voucher here with this IDevID",
                device_id=device.id,
            )
        return Client(device)


def est_routes(service: EstService) -> list[Route]:
    """Return the routes of EST for an application of Starlette."""
    answer = partial(_answered, service)
    return [
        Route(f"{PREFIX}/cacerts", answer("cacerts", _cacerts), methods=["GET"]),
        Route(f"{PREFIX}/csrattrs", answer("csrattrs", _csrattrs), methods=["GET"]),
        Route(f"{PREFIX}/simpleenroll", answer("simpleenroll", _enroll), methods=["POST"]),
        Route(f"{PREFIX}/simplereenroll", answer("simplereenroll", _reenroll), methods=["POST"]),
        Route(f"{PREFIX}/serverkeygen", answer("serverkeygen", _serverkeygen), methods=["GET", "POST"]),
        Route(f"{PREFIX}/fullcmc", answer("fullcmc", _fullcmc), methods=["GET", "POST"]),
        Route(f"{PREFIX}/{{rest:path}}", answer("est", _other), methods=_ANY_METHOD),
    ]


_Endpoint = Callable[[Request], Awaitable[Response]]


def _answered(
    service: EstService, operation: str, endpoint: Callable[[EstService, Request], Awaitable[Response]]
) -> _Endpoint:
    async def run(request: Request) -> Response:
        try:
            return await endpoint(service, request)
        except Refusal as refusal:
            answer = refusal
        except DatabaseError as error:
            _log.error("%s: %s", operation, error)
            answer = Refusal(503, "the registrar's database does not answer", retry_after=RETRY_AFTER)
            return refusal_response(answer)
        await asyncio.to_thread(service.journal.refused, answer, operation, peer_of(request), service.now())
        return refusal_response(answer)

    return run


def refusal_response(refusal: Refusal) -> Response:
    """Return the HTTP answer that says why."""
    headers = {}
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    if refusal.close:
        headers["Connection"] = "close"
    return Response(f"{refusal.reason}\n", refusal.status, headers, "text/plain; charset=utf-8")


def peer_of(request: Request) -> str | None:
    """Return the address of the other end of the connection."""
    return None if request.client is None else request.client.host


async def _cacerts(service: EstService, request: Request) -> Response:
    return _answer(request, await service.ca_message(), _PKCS7)


async def _csrattrs(service: EstService, request: Request) -> Response:
    chain = client_chain(request.scope)
    return _answer(request, await asyncio.to_thread(service.attributes, chain), _CSRATTRS)


async def _enroll(service: EstService, request: Request) -> Response:
    return await _issue(service, request, renew=False)


async def _reenroll(service: EstService, request: Request) -> Response:
    return await _issue(service, request, renew=True)


async def _issue(service: EstService, request: Request, *, renew: bool) -> Response:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != _PKCS10:
        raise Refusal(415, f"the body has to be a certificate request, of type {_PKCS10}")
    body = await _body(request)
    certificate = await service.enroll(client_chain(request.scope), body, renew=renew, peer=peer_of(request))
    return _answer(request, certs_only([certificate]), _CERTS_ONLY)


async def _serverkeygen(_service: EstService, _request: Request) -> Response:
    raise Refusal(501, "no keys are made here: a device makes its own, and no one else has it")


async def _fullcmc(_service: EstService, _request: Request) -> Response:
    raise Refusal(501, "Full CMC is not offered here; use simpleenroll and simplereenroll")


async def _other(_service: EstService, request: Request) -> Response:
    rest = request.path_params["rest"]
    if (method := _METHODS.get(rest)) is not None:
        sentence = f"{rest} is asked with the method {method}\n"
        return Response(sentence, 405, {"Allow": method}, "text/plain; charset=utf-8")
    if "/" in rest:
        raise Refusal(404, f"there is one CA here, and no label for it: use {PREFIX}/OPERATION")
    raise Refusal(404, f"there is no such operation of EST; there are {', '.join(_METHODS)}")


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise Refusal(413, f"the body has more than {MAX_BODY} bytes", close=True)
    return bytes(body)


def _answer(request: Request, der: bytes, media_type: str) -> Response:
    agent = request.headers.get("user-agent", "").lower()
    wrapped = any(name in agent for name in _WRAPPED_FOR)
    # Without "charset", which Starlette adds only to text.
    return Response(encode_base64(der, wrapped=wrapped), 200, media_type=media_type)


def _load(body: bytes, device: Device) -> CertificateRequest:
    try:
        return load_request(decode_base64(body))
    except (EstDecodeError, RequestError) as error:
        raise Refusal(400, str(error), device_id=device.id) from error


def _owner(connection: Connection, certificate: x509.Certificate, now: datetime) -> Client | None:
    """Return the device to which this certificate was issued here, if it was.

    It may have expired if it is the latest. An older one may be used until then, as the answer with the newer
    one may have got lost; after that, whoever has its key has found it somewhere.
    """
    row = connection.execute(_CERTIFICATE, {"wanted": serial_text(certificate)}).one_or_none()
    if row is None or row.der != certificate.public_bytes(Encoding.DER):
        return None
    if row.device_id is None or (device := get_device(connection, row.device_id)) is None:
        raise Refusal(403, "a registrar's own certificate is not renewed over EST")
    if row.revoked_at is not None:
        raise Refusal(403, "this certificate has been revoked", device_id=device.id)
    if row.superseded_by is not None and certificate.not_valid_after_utc < now:
        raise Refusal(
            403, "this certificate has expired, and the device has got newer ones", device_id=device.id
        )
    return Client(device, certificate)


def _authorise(device: Device) -> None:
    """Raise :class:`Refusal` unless the device may have a certificate (RFC 8995 sections 5.8.3 and 5.9)."""
    who = f"the device {printable(device.serial_number)}"
    because = f": {printable(device.reason)}" if device.reason else ""
    if device.state in (DeviceState.REVOKED, DeviceState.DENIED):
        raise Refusal(403, f"{who} is {device.state}{because}", device_id=device.id)
    if device.state is DeviceState.WAITING:
        raise Refusal(403, f"{who} got no voucher here yet", device_id=device.id)
    if device.audit_ok is False:
        raise Refusal(403, f"{who} failed the check of its history{because}", device_id=device.id)
    if device.state is DeviceState.VOUCHERED and device.audit_ok is None:
        raise Refusal(
            503,
            f"the history of {who} has not been checked yet",
            retry_after=RETRY_AFTER,
            device_id=device.id,
        )


def _lock(connection: Connection, client: Client) -> Device:
    """Return the device as it is now, locked, if it still may have a certificate."""
    device = get_device(connection, client.device.id, lock=True)
    if device is None:
        raise Refusal(403, "the device was removed in between")
    _authorise(device)
    return device


def _check_own(connection: Connection, own: x509.Certificate, device: Device) -> None:
    row = connection.execute(_CERTIFICATE, {"wanted": serial_text(own)}).one_or_none()
    if row is None or row.revoked_at is not None:
        raise Refusal(403, "this certificate has been revoked", device_id=device.id)


def _check_number(connection: Connection, device: Device, domain: Domain, now: datetime) -> None:
    """Raise :class:`Refusal` if the device has got too many certificates lately."""
    since = now - min(CERTIFICATES_PERIOD, domain.certificate_lifetime)
    number = connection.scalar(_LATELY, {"owner": device.id, "since": since, "now": now}) or 0
    if number >= MAX_CERTIFICATES:
        raise Refusal(
            503,
            f"the device {printable(device.serial_number)} has got {number} certificates lately: enough",
            retry_after=CERTIFICATES_RETRY_AFTER,
            device_id=device.id,
        )


def _assign(connection: Connection, device: Device, domain: Domain, now: datetime) -> AcpNodeName:
    scheme = domain.scheme if device.scheme is None else Scheme(device.scheme)
    return assign(connection, device.id, domain.name, scheme, device.rsub, when=now)


def _check_extensions(request: CertificateRequest, device: Device) -> None:
    """Refuse what would not be in the certificate, so that nobody believes to have got it."""
    for extension in request.extensions:
        match extension.value:
            case x509.SubjectKeyIdentifier():
                continue
            case x509.BasicConstraints(ca=False):
                continue
            case x509.KeyUsage(key_cert_sign=False, crl_sign=False):
                continue
        name = extension.oid._name
        what = extension.oid.dotted_string if name == "Unknown OID" else name
        raise Refusal(
            400,
            f"the request asks for {what}, which a device's certificate does not get",
            device_id=device.id,
        )
