"""One attempt of a device to become a member, through one proxy (RFC 8995 section 5).

::

    TLS, the registrar's certificate taken provisionally          CONNECTING
    POST requestvoucher, with that certificate in it              VOUCHER_REQUESTED   202: WAITING
    the voucher checked: the maker's word, for this device, for
    this nonce, and for the owner of this TLS connection          VOUCHER_VERIFIED
    POST voucher_status
    GET cacerts, checked against what the voucher pins            CA_CERTIFICATES
    GET csrattrs                                                  ATTRIBUTES
    POST simpleenroll, with a new key                             REQUESTED           202: WAITING
    the certificate checked                                       ENROLLED
    POST enrollstatus, over a new TLS with the new certificate    REPORTED

All that arrives before VOUCHER_VERIFIED is a stranger's. Nothing is kept before ENROLLED: a device whose
power fails begins anew, with a new nonce and a new key, and the registrar gives it the same address.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from socket import socket
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from minerva.brski.pledge.device import Device
from minerva.brski.pledge.enrolment import (
    SIMPLEENROLL,
    Enrolled,
    Now,
    anchors_of,
    check_issued,
    demanded_key,
    fetch_attributes,
    fetch_authorities,
    first_request,
    patiently,
    refuse,
    request_certificate,
)
from minerva.brski.pledge.errors import AttemptError, UntrustedError
from minerva.brski.pledge.session import Connect, Session, name_of
from minerva.core.errors import MinervaError
from minerva.core.text import shortened
from minerva.https.client import Response
from minerva.https.errors import HttpError
from minerva.https.stream import host_and_port
from minerva.pki.certificates import load_certificate
from minerva.pki.keys import KeyType
from minerva.tls.context import make_context
from minerva.voucher.check import check_registrar_chain, check_voucher
from minerva.voucher.cms import sign
from minerva.voucher.errors import VoucherRefused
from minerva.voucher.model import Assertion, VoucherRequest, make_nonce
from minerva.voucher.telemetry import Status

log = logging.getLogger(__name__)

REQUESTVOUCHER: Final = "/.well-known/brski/requestvoucher"
VOUCHER_STATUS: Final = "/.well-known/brski/voucher_status"
ENROLLSTATUS: Final = "/.well-known/brski/enrollstatus"

VOUCHER_TYPE: Final = "application/voucher-cms+json"

VOUCHER_SECONDS: Final = 90.0
"""How long a registrar may take to answer a request for a voucher, for which it has to ask the maker."""

STATUS_SECONDS: Final = 10.0
"""How long it may take to listen to how it went."""

NONCE_OCTETS: Final = 16

ASSERTIONS: Final = frozenset((Assertion.VERIFIED, Assertion.LOGGED, Assertion.PROXIMITY))
"""The assertions that are good enough: agent-proximity is for devices that are enrolled by a helper."""

_MAX_TARGET = 512
_MAX_REASON = 200
_REDIRECTS = (301, 302, 307, 308)


class Step(Enum):
    """How far an attempt is."""

    CONNECTING = "connecting"
    VOUCHER_REQUESTED = "voucher_requested"
    WAITING = "waiting"
    VOUCHER_VERIFIED = "voucher_verified"
    CA_CERTIFICATES = "ca_certificates"
    ATTRIBUTES = "attributes"
    REQUESTED = "requested"
    ENROLLED = "enrolled"
    REPORTED = "reported"


OnStep = Callable[[Step, str], Awaitable[None] | None]
"""Is told each step when it is reached, with a sentence for people. What it raises ends the attempt."""

ConnectTo = Callable[[str, int], Awaitable[socket]]
"""Connects to a name or an address that a registrar sent us to, and a port."""


class Teller:
    """Tells whom it concerns how far an attempt is."""

    def __init__(self, on_step: OnStep | None) -> None:
        self._on_step = on_step

    async def tell(self, step: Step, text: str) -> None:
        """Say that ``step`` is reached."""
        if self._on_step is not None and (result := self._on_step(step, text)) is not None:
            await result

    async def waiting(self, text: str) -> None:
        """Say that the registrar asks us to wait."""
        await self.tell(Step.WAITING, text)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a device accepts of vouchers; the defaults are what RFC 8995 wants of everybody.

    ``nonceless``: also those that are not for one attempt (section 7.2: a pledge MUST take them).
    """

    assertions: Collection[Assertion] = ASSERTIONS
    nonceless: bool = True


async def bootstrap(
    connect: Connect,
    device: Device,
    *,
    now: Now,
    on_step: OnStep | None = None,
    key_type: KeyType = KeyType.P256,
    policy: Policy = Policy(),
    host: str | None = None,
    connect_to: ConnectTo | None = None,
) -> Enrolled:
    """Make ``device`` a member of the domain of the registrar to which ``connect`` makes connections.

    ``now`` is the calendar's time, or ``None`` while the clock is not to be trusted: what depends on time is
    then not checked, but for the nonce. ``key_type`` is made unless the registrar demands another. ``host``
    is for the field Host. ``connect_to`` is there where other registrars can be reached, to one of which
    this one may redirect us; over a link there is nobody but the proxy, and a redirection is a failure.

    Raises :class:`AttemptError`, and whatever ``on_step`` raises. The connection is then closed.
    """
    teller = Teller(on_step)
    session: Session | None = None
    try:
        context = make_context(device.certificate, device.chain, device.key)
        session = Session(connect, context, host=host)
        await teller.tell(Step.CONNECTING, "connecting to the registrar")
        ask = partial(_request_voucher, device=device, teller=teller, now=now, policy=policy)
        answer = await ask(session, REQUESTVOUCHER)
        if isinstance(answer, _Redirection):
            if not answer.leads_to(session.host):
                elsewhere = _connect_to(answer, connect_to)
                await session.close()
                session = Session(elsewhere, context, host=answer.origin)
                await teller.tell(Step.CONNECTING, f"the registrar redirects us to {answer.origin}")
            answer = await ask(session, answer.target)
        if isinstance(answer, _Redirection):
            raise AttemptError(f"the registrar redirects us once more, to {answer.origin}: not followed")
        return await _enrol(session, teller, answer, now, key_type)
    except AttemptError:
        raise
    except (MinervaError, OSError) as error:
        raise AttemptError(sentence_of(error)) from error
    finally:
        if session is not None:
            await session.close()


async def report_enrolled(
    connect: Connect, enrolled: Enrolled, *, on_step: OnStep | None = None, host: str | None = None
) -> None:
    """Tell the registrar over a new connection, with the new certificate, that all is well.

    ``connect`` is that of before (RFC 8995 section 5.9.4: "using the same Join Proxy"). What the registrar
    answers does not matter. Raises :class:`AttemptError` if it could not be told.
    """
    try:
        context = make_context(enrolled.certificate, enrolled.chain, enrolled.key)
        async with Session(connect, context, host=host, registrar=enrolled.registrar) as session:
            await _post(session, ENROLLSTATUS, Status(True))
    except AttemptError:
        raise
    except (MinervaError, OSError) as error:
        raise AttemptError(sentence_of(error)) from error
    await Teller(on_step).tell(Step.REPORTED, "the registrar knows that this device is enrolled")


# --- the voucher -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Redirection:
    """Where a registrar wants us to ask: ``origin`` as in the field Host, empty for itself."""

    host: str
    port: int
    target: str

    @property
    def origin(self) -> str:
        return host_and_port(self.host, self.port) if self.host else ""

    def leads_to(self, host: str) -> bool:
        """Return whether it is to the one whom we know as ``host``."""
        return self.origin in ("", host)


async def _request_voucher(
    session: Session, target: str, *, device: Device, teller: Teller, now: Now, policy: Policy
) -> x509.Certificate | _Redirection:
    """Return the certificate that a good voucher pins, which has then been reported; or where to ask."""
    await session.open()
    when = now()
    nonce = make_nonce(os.urandom(NONCE_OCTETS))
    request = VoucherRequest(
        assertion=Assertion.PROXIMITY,
        created_on=None if when is None else when.replace(microsecond=0),
        serial_number=device.serial_number,
        nonce=nonce,
        proximity_registrar_cert=session.registrar.public_bytes(Encoding.DER),
    )
    # Signed once: what is sent again after "not yet" has to be the very same.
    body = sign(request.encode(), device.key, device.certificate, device.chain, when=when)
    await teller.tell(
        Step.VOUCHER_REQUESTED, f"asking {name_of(session.registrar)}, of whom nothing is known yet"
    )

    async def send() -> Response:
        return await session.request(
            "POST",
            target,
            headers=[("Content-Type", VOUCHER_TYPE), ("Accept", VOUCHER_TYPE)],
            body=body,
            timeout=VOUCHER_SECONDS,
        )

    response = await patiently(send, "the voucher request", teller.waiting, now)
    if response.status in _REDIRECTS:
        return _redirection(response)
    if response.status != 200:
        raise refuse(response, "the voucher request")
    try:
        voucher = check_voucher(
            response.body,
            serial_number=device.serial_number,
            certificate=device.certificate,
            anchors=device.anchors,
            nonce=nonce,
            when=now(),
            accept=policy.assertions,
            allow_nonceless=policy.nonceless,
        )
        check_registrar_chain(voucher, session.chain, now())
    except VoucherRefused as error:
        try:
            await _report(session, VOUCHER_STATUS, Status(False, error.reason.report))
        except UntrustedError as other:
            log.debug("the voucher's refusal is not reported: %s", other)
        raise UntrustedError(f"the voucher is refused: {error}") from error
    assert voucher.pinned_domain_cert is not None
    pinned = load_certificate(voucher.pinned_domain_cert)
    await _report(session, VOUCHER_STATUS, Status(True))
    assertion = "" if voucher.assertion is None else f" ({voucher.assertion.value})"
    await teller.tell(
        Step.VOUCHER_VERIFIED, f"the maker says that this device belongs to {name_of(pinned)}{assertion}"
    )
    return pinned


def _redirection(response: Response) -> _Redirection:
    location = response.headers.get("location", "")
    shown = shortened(location, _MAX_REASON)
    if not location.isascii() or len(location) > _MAX_TARGET or any(c <= " " for c in location):
        raise AttemptError(f'the registrar redirects us to "{shown}", which is no place to go to')
    try:
        parts = urlsplit(location)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise AttemptError(f'the registrar redirects us to "{shown}", which is no URL') from error
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    relative = not parts.scheme and not parts.netloc
    if not target.startswith("/") or not (relative or (parts.scheme == "https" and host)):
        raise AttemptError(f'the registrar redirects us to "{shown}", which is not a URL of HTTPS')
    return _Redirection(host or "", 443 if port is None else port, target)


def _connect_to(redirection: _Redirection, connect_to: ConnectTo | None) -> Connect:
    if connect_to is None:
        raise AttemptError(
            f"the registrar redirects us to {redirection.origin}, which cannot be reached over a link: "
            "a device without a network talks to its join proxy only"
        )
    return partial(connect_to, redirection.host, redirection.port)


# --- the certificate ---------------------------------------------------------------------------------------


async def _enrol(
    session: Session, teller: Teller, pinned: x509.Certificate, now: Now, key_type: KeyType
) -> Enrolled:
    """Get a certificate from a registrar that the voucher was good for; tell it if that fails."""
    async with reporting(session):
        authorities = await fetch_authorities(session)
        anchors = anchors_of(authorities, pinned, now())
        await teller.tell(Step.CA_CERTIFICATES, f"trust anchors: {', '.join(map(name_of, anchors))}")
        attributes = await fetch_attributes(session)
        await teller.tell(Step.ATTRIBUTES, f"to be enrolled as {attributes.node_name}")
        key = demanded_key(attributes, key_type)
        request = first_request(key, attributes)
        await teller.tell(Step.REQUESTED, "asking for a certificate")
        certificates = await request_certificate(session, SIMPLEENROLL, request, teller.waiting, now)
        assert attributes.node_name is not None
        identity = check_issued(certificates, authorities, anchors, key, attributes.node_name, now())
    await teller.tell(Step.ENROLLED, f"this device is {identity.node_name}")
    return Enrolled(identity, key, session.registrar)


@asynccontextmanager
async def reporting(session: Session) -> AsyncIterator[None]:
    """Tell the registrar, over the same connection, if the enrolment fails (RFC 8995 section 5.9.4)."""
    try:
        yield
    except (MinervaError, OSError) as error:
        # Over another connection it would not know which attempt this is about.
        if session.usable:
            await _report(session, ENROLLSTATUS, Status(False, shortened(str(error), _MAX_REASON)))
        raise


async def _report(session: Session, target: str, status: Status) -> None:
    """Tell the registrar how it went; that it cannot be told changes nothing.

    Raises :class:`UntrustedError` if it is another one now.
    """
    try:
        await _post(session, target, status)
    except (HttpError, OSError) as error:
        log.debug("the registrar did not take a report: %s", error)


async def _post(session: Session, target: str, status: Status) -> None:
    await session.request(
        "POST",
        target,
        headers=[("Content-Type", "application/json")],
        body=status.encode(),
        timeout=STATUS_SECONDS,
    )


def sentence_of(error: Exception) -> str:
    """Return what ``error`` says, also if it is one of the system."""
    if isinstance(error, OSError):
        return f"no connection with the registrar: {error.strerror or str(error) or type(error).__name__}"
    return str(error)
