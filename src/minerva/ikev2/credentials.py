"""Who we are towards a peer, and whether the peer is who it says (RFC 7296 sections 3.5 to 3.7)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from minerva.ikev2.auth import choose_hash, verify
from minerva.ikev2.constants import CertEncoding, HashAlgorithm, IdType, NotifyType
from minerva.ikev2.errors import IkePeerError
from minerva.ikev2.events import PeerCertificate
from minerva.ikev2.payloads import (
    Authentication,
    Certificate,
    CertificateRequest,
    IdentificationInitiator,
    IdentificationResponder,
    Payload,
)
from minerva.pki.certificates import UNREADABLE, load_certificate
from minerva.pki.errors import CertificateError, MembershipError
from minerva.pki.identity import Identity
from minerva.pki.membership import Member
from minerva.pki.path import MAX_CERTIFICATES

Authenticate = Callable[[Sequence[x509.Certificate]], Member]
"""The membership check: takes what the peer sent, its own certificate first; raises ``MembershipError``."""


class Credentials:
    """What of our identity goes into messages, encoded once.

    ``certificates`` are our own certificate, the intermediate CAs and, with ``send_trust_anchor``, the trust
    anchor above them. They are sent whatever the peer asks for in a CERTREQ: one that names none of
    our trust anchors is ignored, so that its operator can see the difference (RFC 8994 section 6.8.3.1.2).

    Raises :class:`~minerva.ikev2.errors.IkeUsageError` if we cannot sign with the key of that certificate.
    """

    def __init__(self, identity: Identity, *, send_trust_anchor: bool) -> None:
        self.key = identity.certificate.public_key()
        choose_hash(self.key, None)
        path = [identity.certificate, *identity.chain]
        if send_trust_anchor:
            top = path[-1].issuer
            path += [anchor for anchor in identity.anchors if anchor.subject == top and anchor not in path]
        self.certificates = tuple(
            Certificate(CertEncoding.X509_SIGNATURE, certificate.public_bytes(Encoding.DER))
            for certificate in path
        )
        self.request = CertificateRequest(
            CertEncoding.X509_SIGNATURE, tuple(_key_hash(anchor) for anchor in identity.anchors)
        )
        address = identity.address.address.packed
        self.id_i = IdentificationInitiator(IdType.ID_IPV6_ADDR, address)
        self.id_r = IdentificationResponder(IdType.ID_IPV6_ADDR, address)


def _key_hash(certificate: x509.Certificate) -> bytes:
    info = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    # SHA-1 only names a key here, as RFC 7296 section 3.7 has it; nothing is trusted for it.
    return hashlib.sha1(info, usedforsecurity=False).digest()


def hash_for(credentials: Credentials, offered: Set[HashAlgorithm] | None) -> HashAlgorithm:
    """Return what we sign with for a peer that announced ``offered``. Raises :class:`IkePeerError`."""
    chosen = choose_hash(credentials.key, offered)
    if chosen is None:
        raise _failed("the peer accepts no signature hash of SHA2-256, SHA2-384 and SHA2-512")
    return chosen


def read_certificates(payloads: Sequence[Payload]) -> list[x509.Certificate]:
    """Return the certificates that a peer sent, its own first. Raises :class:`IkePeerError`."""
    encoded = [
        payload.data
        for payload in payloads
        if isinstance(payload, Certificate) and payload.encoding == CertEncoding.X509_SIGNATURE
    ]
    if not 1 <= len(encoded) <= MAX_CERTIFICATES:
        raise _failed(
            f"the peer sent {len(encoded)} X.509 certificates; 1 to {MAX_CERTIFICATES} are accepted"
        )
    try:
        return [load_certificate(data) for data in encoded]
    except CertificateError as error:
        raise _failed(f"a certificate of the peer cannot be read: {error}") from error


def describe_certificates(certificates: Sequence[x509.Certificate]) -> PeerCertificate | None:
    """Return for an operator what the peer sent, or ``None`` if the names in it cannot be read."""
    try:
        leaf = certificates[0]
        anchors = tuple(_name(c.subject) for c in certificates[1:] if c.subject == c.issuer)
        return PeerCertificate(_name(leaf.subject), _name(leaf.issuer), anchors)
    except UNREADABLE:
        return None


def _name(name: x509.Name) -> str:
    # In ASCII: what a stranger sends must not play tricks on a terminal.
    return ascii(name.rfc4514_string())[1:-1] or "(no name)"


@dataclass(frozen=True, slots=True)
class Peer:
    """An authenticated peer. ``address`` is what its ID payload says, which its certificate confirms.

    ``signed`` is the index of what it has signed, among what it may have.
    """

    member: Member
    address: IPv6Address
    signed: int = 0


def authenticate_peer(
    certificates: Sequence[x509.Certificate],
    identification: IdentificationInitiator | IdentificationResponder,
    authentication: Authentication,
    octets: Sequence[bytes],
    own: Credentials,
    authenticate: Authenticate,
) -> Peer:
    """Return the peer if its signature of one of ``octets``, its certificates and its ID are all good.

    The signature comes first: it is cheap, and what is said about the certificates afterwards is
    about somebody who owns them. ``own`` is who we are: a peer that is the same is a mirror.

    Raises :class:`IkePeerError`.
    """
    try:
        key = certificates[0].public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _failed(f"the key in the peer's certificate cannot be read: {error}") from error
    signed = _verify_any(key, octets, authentication)
    try:
        member = authenticate(certificates)
    except MembershipError as error:
        raise IkePeerError(NotifyType.AUTHENTICATION_FAILED, str(error), rule=error.rule) from error
    address = _check_id(identification, member)
    if address.packed == own.id_i.data and member.address is not None:
        raise _failed(
            "the peer has our own ACP address: the link leads back to us, or a certificate is in use twice"
        )
    return Peer(member, address, signed)


def _verify_any(key: PublicKeyTypes, octets: Sequence[bytes], authentication: Authentication) -> int:
    *others, last = octets
    for index, alternative in enumerate(others):
        with suppress(IkePeerError):
            verify(key, alternative, authentication)
            return index
    verify(key, last, authentication)
    return len(others)


def _check_id(
    identification: IdentificationInitiator | IdentificationResponder, member: Member
) -> IPv6Address:
    if identification.id_type != IdType.ID_IPV6_ADDR or len(identification.data) != 16:
        raise _failed(
            f"the peer's ID is of type {identification.id_type}; RFC 8994 wants ID_IPV6_ADDR, its ACP address"
        )
    address = IPv6Address(identification.data)
    # A member without an address of its own ("0") may say anything here: no rule tells what.
    if member.node_name.address not in (None, address):
        raise _failed(f"the peer's ID is {address}, but its certificate is for {member.node_name.address}")
    return address


def _failed(reason: str) -> IkePeerError:
    return IkePeerError(NotifyType.AUTHENTICATION_FAILED, reason)
