"""The client of EST: trust anchors, what to ask for, and a certificate (RFC 7030, RFC 8995 section 5.9).

Who the server is has been settled before. What it sends is checked nevertheless: a device that keeps a
certificate of no use would have to be found and reset.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from minerva.brski.pledge.errors import AttemptError, RefusedError
from minerva.brski.pledge.session import Requests, name_of
from minerva.est.bodies import decode_base64, encode_base64, load_certs_only
from minerva.est.csrattrs import CsrAttributes
from minerva.https.client import REQUEST_SECONDS, Response
from minerva.pki.certificates import UNREADABLE
from minerva.pki.errors import PathError
from minerva.pki.identity import Identity
from minerva.pki.keys import KeyType, PrivateKey, generate_key
from minerva.pki.node_name import AcpNodeName
from minerva.pki.path import MAX_CERTIFICATES, validate_path
from minerva.pki.request import RequestedExtension, make_request

CACERTS: Final = "/.well-known/est/cacerts"
CSRATTRS: Final = "/.well-known/est/csrattrs"
SIMPLEENROLL: Final = "/.well-known/est/simpleenroll"
SIMPLEREENROLL: Final = "/.well-known/est/simplereenroll"

MAX_RETRY_AFTER: Final = 60.0
"""How many seconds a registrar may make us wait (RFC 8995 section 5.6)."""

MIN_RETRY_AFTER: Final = 0.2
"""How many seconds we wait at least, whatever it says."""

DEFAULT_RETRY_AFTER: Final = 30.0
"""How many seconds we wait if it does not say."""

MAX_PATIENCE: Final = 4 * 86_400.0
"""For how many seconds we ask again and again: longer than a long weekend (RFC 8995 section 5.6)."""

_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_MAX_SENTENCE = 300

Now = Callable[[], datetime | None]
"""The calendar's time in UTC, or ``None`` while the clock is not to be trusted."""

Waiting = Callable[[str], Awaitable[None]]
"""Is called before each wait, with what is waited for."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A new membership: all that a node has to keep, and the certificate of the registrar it came from."""

    identity: Identity
    key: PrivateKey = field(repr=False)
    registrar: x509.Certificate

    @property
    def certificate(self) -> x509.Certificate:
        """The node's own certificate."""
        return self.identity.certificate

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """The CAs between the certificate and its anchor, and what leads there from older anchors."""
        return self.identity.chain

    @property
    def anchors(self) -> tuple[x509.Certificate, ...]:
        """The trust anchors of the domain."""
        return self.identity.anchors


def refuse(response: Response, what: str) -> RefusedError:
    """Return the error for a response that is not the one wanted, with what the registrar says to it."""
    sentence = response.text(_MAX_SENTENCE)
    said = f': "{sentence}"' if sentence else ""
    return RefusedError(
        f"the registrar answered {what} with the status {response.status}{said}", response.status
    )


async def patiently(
    send: Callable[[], Awaitable[Response]], what: str, waiting: Waiting, now: Now
) -> Response:
    """Return the response to ``send``, called again for as long as it is "accepted, not done yet".

    Raises :class:`AttemptError` after :data:`MAX_PATIENCE`, and what ``send`` raises.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + MAX_PATIENCE
    while (response := await send()).status == 202:
        delay = _retry_after(response, now())
        if loop.time() + delay > end:
            raise AttemptError(f"the registrar has not decided on {what} for {MAX_PATIENCE / 86_400:g} days")
        said = f' ("{sentence}")' if (sentence := response.text(_MAX_SENTENCE)) else ""
        await waiting(f"the registrar has not decided on {what} yet{said}; asking again in {delay:g} s")
        await asyncio.sleep(delay)
    return response


def _retry_after(response: Response, now: datetime | None) -> float:
    value = response.headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(value):
        seconds: float | None = float(value)
    elif now is None:
        seconds = None  # a date, perhaps, of which we cannot say how far it is
    else:
        seconds = response.retry_after(now.astimezone(UTC))
    if seconds is None:
        return DEFAULT_RETRY_AFTER
    return min(max(seconds, MIN_RETRY_AFTER), MAX_RETRY_AFTER)


async def fetch_authorities(registrar: Requests) -> tuple[x509.Certificate, ...]:
    """Return the CA certificates of the domain (RFC 7030 section 4.1). Raises MinervaError."""
    response = await registrar.request("GET", CACERTS)
    if response.status != 200:
        raise refuse(response, "the request for the CA certificates")
    return load_certs_only(decode_base64(response.body))


async def fetch_attributes(registrar: Requests) -> CsrAttributes:
    """Return what the certificate request has to have (RFC 7030 section 4.5). Raises MinervaError."""
    response = await registrar.request("GET", CSRATTRS)
    if response.status in (204, 404):
        return CsrAttributes(())
    if response.status != 200:
        raise refuse(response, "the request for the CSR attributes")
    return CsrAttributes.decode(decode_base64(response.body)) if response.body.strip() else CsrAttributes(())


async def request_certificate(
    registrar: Requests, operation: str, request: bytes, waiting: Waiting, now: Now
) -> tuple[x509.Certificate, ...]:
    """Return what the registrar sends for the PKCS #10 ``request`` (RFC 7030 section 4.2)."""
    body = encode_base64(request)

    async def send() -> Response:
        return await registrar.request(
            "POST",
            operation,
            headers=[("Content-Type", "application/pkcs10"), ("Accept", "application/pkcs7-mime")],
            body=body,
            timeout=2 * REQUEST_SECONDS,
        )

    response = await patiently(send, "the certificate request", waiting, now)
    if response.status != 200:
        raise refuse(response, "the certificate request")
    return load_certs_only(decode_base64(response.body))


def demanded_key(attributes: CsrAttributes, default: KeyType) -> PrivateKey:
    """Return a new key of the type that the registrar demands. Raises MinervaError if we make none."""
    return generate_key(attributes.key_type(default))


def first_request(key: PrivateKey, attributes: CsrAttributes) -> bytes:
    """Return the certificate request of a device that had none. Raises :class:`AttemptError`."""
    if attributes.node_name is None:
        raise AttemptError(
            "the registrar's CSR attributes hold no acp-node-name: it does not enrol nodes of an ACP"
        )
    if attributes.node_name.address is None:
        raise AttemptError(
            f"the registrar's CSR attributes hold {attributes.node_name}: no address, which a node needs"
        )
    return make_request(key, attributes.node_name, extensions=attributes.extensions)


def next_request(key: PrivateKey, attributes: CsrAttributes, former: Identity) -> bytes:
    """Return the request for a certificate that takes the place of ``former``'s (RFC 7030 section 4.2.2).

    The subject is that of before, and so are the names, unless the registrar tells them.
    """
    extensions = list(attributes.extensions)
    if attributes.node_name is None:
        names = former.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        extensions = [extension for extension in extensions if extension.oid != names.oid]
        extensions.append(RequestedExtension(names.oid, names.critical, names.value.public_bytes()))
    return make_request(key, former.node_name, extensions=extensions, subject=former.certificate.subject)


def roots_of(authorities: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """Return those of ``authorities`` that are CAs and signed by themselves."""
    return tuple(each for each in authorities if is_ca(each) and _issued(each))


def anchors_of(
    authorities: Sequence[x509.Certificate], pinned: x509.Certificate, when: datetime | None
) -> tuple[x509.Certificate, ...]:
    """Return those of ``authorities`` to be our trust anchors, which a voucher pinned ``pinned`` to.

    That is the root that ``pinned`` is, or those that it leads to, and their successors: roots whose key one
    of them has signed. (That a stranger has signed the key of ours means nothing.) Where the registrar itself
    is pinned, with a certificate that nobody else has signed, its word is all there is: all its roots count.

    Raises :class:`AttemptError` if nothing is left.
    """
    roots = roots_of(authorities)
    if _issued(pinned):
        found = [root for root in roots if _same_authority(pinned, root)]
    else:
        between = _between(authorities, roots)
        found = [root for root in roots if _leads_to(pinned, between, root, when)]
    while successors := [
        root
        for root in roots
        if root not in found and any(_succeeds(root, old, authorities) for old in found)
    ]:
        found += successors
    if not found and _issued(pinned) and not is_ca(pinned):
        found = list(roots)
    if not found and is_ca(pinned) and pinned in authorities:
        found = [pinned]
    if not found:
        raise AttemptError(
            "none of the registrar's CA certificates belongs to the domain that the voucher names "
            f"({name_of(pinned)})"
        )
    return tuple(found)


def check_issued(
    certificates: Sequence[x509.Certificate],
    authorities: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    key: PrivateKey,
    node_name: AcpNodeName,
    when: datetime | None,
) -> Identity:
    """Return who we are by the certificate that the registrar sent for ``key`` and ``node_name``.

    Raises :class:`AttemptError` or :class:`~minerva.pki.errors.PkiError` for one that is of no use.
    """
    ours = [certificate for certificate in certificates if _has_key(certificate, key)]
    if len(ours) != 1:
        raise AttemptError("the registrar's certificate is for another key than the one in the request")
    try:
        path = validate_path((ours[0], *_between((*certificates, *authorities), anchors)), anchors, when)
    except PathError as error:
        raise AttemptError(f"the registrar's certificate is of no use: {error}") from error
    crossing = [
        certificate
        for certificate in authorities
        if certificate not in anchors and _same_authority(certificate, path[-1])
    ]
    chain = tuple(dict.fromkeys((*path[1:-1], *crossing)))
    identity = Identity.from_certificates(ours[0], chain, tuple(anchors))
    if identity.node_name != node_name:
        raise AttemptError(
            f"the registrar's certificate is for {identity.node_name}, not for {node_name} as it had told"
        )
    return identity


def is_ca(certificate: x509.Certificate) -> bool:
    """Return whether ``certificate`` says that it is one of a CA."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except (x509.ExtensionNotFound, *UNREADABLE):
        return False
    return constraints.value.ca


def _issued(certificate: x509.Certificate, issuer: x509.Certificate | None = None) -> bool:
    """Return whether ``issuer``, or its owner itself, has signed ``certificate``."""
    try:
        certificate.verify_directly_issued_by(issuer or certificate)
    except (InvalidSignature, UnsupportedAlgorithm, *UNREADABLE):
        return False
    return True


def _between(
    certificates: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """Return the CAs that may stand between a certificate and ``anchors``: as many as a path may be of."""
    cas = [certificate for certificate in dict.fromkeys(certificates) if is_ca(certificate)]
    return [certificate for certificate in cas if certificate not in anchors][: MAX_CERTIFICATES - 1]


def _leads_to(
    pinned: x509.Certificate,
    between: Sequence[x509.Certificate],
    root: x509.Certificate,
    when: datetime | None,
) -> bool:
    try:
        validate_path((pinned, *between), (root,), when)
    except PathError:
        return False
    return True


def _succeeds(root: x509.Certificate, old: x509.Certificate, authorities: Sequence[x509.Certificate]) -> bool:
    """Return whether ``old`` has signed the key of ``root``, in a certificate among ``authorities``."""
    return any(
        _same_authority(certificate, root) and is_ca(certificate) and _issued(certificate, old)
        for certificate in authorities
        if certificate != root
    )


def _same_authority(one: x509.Certificate, other: x509.Certificate) -> bool:
    try:
        return one.subject == other.subject and one.public_key() == other.public_key()
    except UNREADABLE:
        return False


def _has_key(certificate: x509.Certificate, key: PrivateKey) -> bool:
    try:
        return certificate.public_key() == key.public_key()
    except UNREADABLE:
        return False
