"""How a member stays one: renewal over the ACP, and the way back for one whose certificate has expired.

Renewal is EST with a server that the node can check, as it is a member itself (RFC 8994 section 6.2.5). One
that came too late is a candidate again (section 6.2.5.5), but no stranger: it still has its old certificate
and its old trust anchors, and keeps them until it has new ones. It tries in turn what :class:`Method` lists.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from datetime import datetime
from enum import Enum
from typing import Final

from cryptography import x509

from minerva.brski.pledge.attempt import (
    OnStep,
    Step,
    Teller,
    bootstrap,
    reporting,
    sentence_of,
)
from minerva.brski.pledge.device import Device
from minerva.brski.pledge.enrolment import (
    SIMPLEENROLL,
    SIMPLEREENROLL,
    Enrolled,
    Now,
    check_issued,
    demanded_key,
    fetch_attributes,
    fetch_authorities,
    next_request,
    request_certificate,
    roots_of,
)
from minerva.brski.pledge.errors import AttemptError
from minerva.brski.pledge.session import Connect, Requests, Session
from minerva.core.errors import MinervaError
from minerva.https.client import HttpClient
from minerva.https.stream import TlsStream
from minerva.pki.certificates import ID_KP_CMC_RA
from minerva.pki.identity import Identity
from minerva.pki.keys import KeyType, PrivateKey
from minerva.pki.membership import RevocationCheck
from minerva.tls.context import make_context
from minerva.tls.membership import check_peer

MAX_PROXIES: Final = 256
"""For how many proxies it is remembered what was tried last."""


def renew_at(certificate: x509.Certificate, *, fraction: float = 0.5) -> datetime:
    """Return when ``certificate`` should be renewed: before half of its life is over.

    RFC 8994 section 6.2.5.2: "after less than 50 %". ``fraction`` is for owners that want it earlier, each
    node by chance at another moment.
    """
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return start + (end - start) * min(max(fraction, 0.0), 0.5)


async def renew(
    stream: TlsStream,
    identity: Identity,
    *,
    now: Now,
    host: str = "registrar",
    key_type: KeyType = KeyType.P256,
    revocation: RevocationCheck | None = None,
    on_step: OnStep | None = None,
) -> Enrolled:
    """Return a new certificate for the node that is ``identity``, with a new key and the same address.

    ``stream`` is a connection with an EST server in which this node has shown ``identity``. The server has to
    be a member of our domain and a registrar; which address it has does not matter. The stream is closed.

    Raises :class:`AttemptError`.
    """
    teller = Teller(on_step)
    http = HttpClient(stream, host)
    try:
        check_peer(stream.connection, identity, when=now(), usage=ID_KP_CMC_RA, revocation=revocation)
        enrolled = await _renew(http, stream.peer_chain[0], identity, SIMPLEREENROLL, teller, now, key_type)
    except AttemptError:
        raise
    except (MinervaError, OSError) as error:
        raise AttemptError(sentence_of(error)) from error
    finally:
        await http.close()
    if enrolled.identity.address != identity.address:
        raise AttemptError(
            f"the registrar renews this node's certificate for another address, "
            f"{enrolled.identity.address} and not {identity.address}: not taken while the node runs"
        )
    return enrolled


class Method(Enum):
    """How a node whose certificate has expired may come back (RFC 8994 section 6.2.5.5)."""

    AS_MEMBER = "as-member"
    """With its old certificate, to a registrar that its old trust anchors tell to be one."""
    AS_DEVICE = "as-device"
    """With its IDevID, to such a registrar too: for one that does not honour old certificates."""
    WITH_VOUCHER = "with-voucher"
    """As a device that belongs to nobody."""


class Alternation:
    """Which method is next for a proxy: they take turns.

    So nobody who makes the old ones fail can make the node forget whose it is, and no trust anchor that has
    gone can keep it out for ever.
    """

    def __init__(self) -> None:
        self._tried: OrderedDict[Hashable, int] = OrderedDict()

    def next(self, proxy: Hashable) -> Method:
        """Return the method for the next attempt through ``proxy``."""
        methods = tuple(Method)
        count = self._tried.pop(proxy, 0)
        self._tried[proxy] = count + 1
        if len(self._tried) > MAX_PROXIES:
            self._tried.popitem(last=False)
        return methods[count % len(methods)]


async def reenrol(
    method: Method,
    connect: Connect,
    device: Device | None,
    former: Identity,
    former_key: PrivateKey,
    *,
    now: Now,
    on_step: OnStep | None = None,
    key_type: KeyType = KeyType.P256,
    host: str | None = None,
) -> Enrolled:
    """Make the node that was ``former`` a member again, in one attempt by ``method``.

    Without a ``device`` that can only be ``AS_MEMBER``.

    The other arguments, and what is raised, are as in :func:`~minerva.brski.pledge.attempt.bootstrap`.
    """
    member = method is Method.AS_MEMBER
    if member:
        shown = (former.certificate, former.chain, former_key)
    elif device is None:
        raise AttemptError("this node has no certificate of its maker: only its old one can bring it back")
    elif method is Method.WITH_VOUCHER:
        return await bootstrap(connect, device, now=now, on_step=on_step, key_type=key_type, host=host)
    else:
        shown = (device.certificate, device.chain, device.key)
    teller = Teller(on_step)
    try:
        context = make_context(*shown)
        async with Session(connect, context, host=host, check=_registrar_of(former, now)) as session:
            who = "its old certificate" if member else "its maker's certificate"
            await teller.tell(Step.CONNECTING, f"this device shows {who} to the registrar of its domain")
            await session.open()
            async with reporting(session):
                return await _renew(
                    session,
                    session.registrar,
                    former,
                    SIMPLEREENROLL if member else SIMPLEENROLL,
                    teller,
                    now,
                    key_type,
                )
    except AttemptError:
        raise
    except (MinervaError, OSError) as error:
        raise AttemptError(sentence_of(error)) from error


def _registrar_of(former: Identity, now: Now) -> Callable[[TlsStream], object]:
    """Return what checks that the other end is a registrar of the domain that we were in."""

    def check(stream: TlsStream) -> None:
        check_peer(stream.connection, former, when=now(), usage=ID_KP_CMC_RA)

    return check


async def _renew(
    registrar: Requests,
    certificate: x509.Certificate,
    former: Identity,
    operation: str,
    teller: Teller,
    now: Now,
    key_type: KeyType,
) -> Enrolled:
    """Get the successor of ``former`` from a registrar that is one of its domain, with ``certificate``."""
    authorities = await fetch_authorities(registrar)
    anchors = _anchors(authorities, former)
    await teller.tell(Step.CA_CERTIFICATES, f"{len(anchors)} trust anchors")
    attributes = await fetch_attributes(registrar)
    node_name = attributes.node_name or former.node_name
    await teller.tell(Step.ATTRIBUTES, f"to be {node_name}")
    if node_name.acp_domain != former.node_name.acp_domain:
        raise AttemptError(
            f"the registrar wants this node in the domain {node_name.acp_domain}, "
            f"but it is one of {former.node_name.acp_domain}"
        )
    key = demanded_key(attributes, key_type)
    request = next_request(key, attributes, former)
    await teller.tell(Step.REQUESTED, "asking for a new certificate")
    certificates = await request_certificate(registrar, operation, request, teller.waiting, now)
    identity = check_issued(certificates, authorities, anchors, key, node_name, now())
    await teller.tell(Step.ENROLLED, f"this node is {identity.node_name}")
    return Enrolled(identity, key, certificate)


def _anchors(authorities: Sequence[x509.Certificate], former: Identity) -> tuple[x509.Certificate, ...]:
    """Return the trust anchors to have from now on.

    The registrar is entitled to say which (RFC 7030 section 4.1.3: they replace those of before). Where it
    sends no root, those of ours that it sends stay.
    """
    if roots := roots_of(authorities):
        return roots
    if kept := tuple(anchor for anchor in former.anchors if anchor in authorities):
        return kept
    raise AttemptError("the registrar's CA certificates hold no trust anchor")
