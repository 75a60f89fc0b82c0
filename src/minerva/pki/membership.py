"""The ACP domain membership check (RFC 8994 section 6.2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Protocol

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID

from minerva.pki.address import AcpAddress
from minerva.pki.errors import AddressError, MembershipError, NodeNameError, PathError, Rule
from minerva.pki.identity import Identity
from minerva.pki.node_name import AcpNodeName, AddressField
from minerva.pki.path import validate_path

__all__ = ["Member", "MembershipError", "RevocationCheck", "RevocationStatus", "Rule", "check_membership"]


class RevocationStatus(Enum):
    """What CRL or OCSP say of a certificate."""

    GOOD = "good"
    REVOKED = "revoked"
    UNAVAILABLE = "unavailable"


class RevocationCheck(Protocol):
    """Knows what CRLs and OCSP responders said. Answers at once, from what it has fetched before."""

    def status(
        self, certificate: x509.Certificate, issuer: x509.Certificate, when: datetime | None
    ) -> RevocationStatus:
        """Return the status of ``certificate`` at ``when`` (``None``: the clock is not trusted)."""


@dataclass(frozen=True, slots=True)
class Member:
    """A peer that passed the check.

    ``address`` is ``None`` where the name holds "0", none, or one of a scheme unknown to us. ``expires``
    is the earliest notAfter in the path, in UTC: the membership ends there. ``revocation`` is ``None`` where
    the certificate names no CRL and no OCSP responder; ``UNAVAILABLE`` means that rule 3 was skipped and
    must be tried again (RFC 8994 section 6.2.3).
    """

    certificate: x509.Certificate
    node_name: AcpNodeName
    address: AcpAddress | None
    expires: datetime
    revocation: RevocationStatus | None = None


def check_membership(
    chain: Sequence[x509.Certificate],
    identity: Identity,
    *,
    when: datetime | None,
    channel: bool,
    revocation: RevocationCheck | None = None,
) -> Member:
    """Return the peer as a member of our ACP domain; raise :class:`MembershipError` with the rule it fails.

    ``chain`` is what the peer sent: its own certificate first, then any others in any order. ``when``
    is the calendar time with a time zone, or ``None`` if the clock is not trusted: time checks are then
    skipped. ``channel`` tells whether the peer is to become the other end of a secure channel (rule 5).

    Rule 1, that the peer holds the private key, is for the caller to have checked: IKE_AUTH and TLS do.
    """
    try:
        path = validate_path(chain, identity.anchors, when)
    except PathError as error:
        raise MembershipError(Rule.PATH, str(error)) from error
    leaf = path[0]
    status = _revocation_status(path, when, revocation)
    if status is RevocationStatus.REVOKED:
        raise MembershipError(Rule.REVOCATION, "the peer's certificate is revoked")
    node_name = _check_domain(leaf, identity)
    if channel and node_name.address_field is AddressField.OMITTED:
        raise MembershipError(
            Rule.ADDRESS, f"{node_name} has no ACP address: a member, but not for secure channels"
        )
    return Member(
        certificate=leaf,
        node_name=node_name,
        address=_address(node_name),
        expires=min(certificate.not_valid_after_utc for certificate in path),
        revocation=status,
    )


def _revocation_status(
    path: Sequence[x509.Certificate], when: datetime | None, revocation: RevocationCheck | None
) -> RevocationStatus | None:
    leaf, issuer = path[0], path[min(1, len(path) - 1)]
    if not _names_revocation(leaf):
        return None
    return RevocationStatus.UNAVAILABLE if revocation is None else revocation.status(leaf, issuer, when)


def _names_revocation(certificate: x509.Certificate) -> bool:
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.CRLDistributionPoints):
            return True
        if isinstance(extension.value, x509.AuthorityInformationAccess) and any(
            access.access_method == AuthorityInformationAccessOID.OCSP for access in extension.value
        ):
            return True
    return False


def _check_domain(leaf: x509.Certificate, identity: Identity) -> AcpNodeName:
    try:
        node_name = AcpNodeName.of(leaf)
    except NodeNameError as error:
        raise MembershipError(Rule.DOMAIN, str(error)) from error
    if node_name.acp_domain != identity.node_name.acp_domain:
        raise MembershipError(
            Rule.DOMAIN,
            f"the peer's ACP domain is {node_name.acp_domain}, ours is {identity.node_name.acp_domain}",
        )
    return node_name


def _address(node_name: AcpNodeName) -> AcpAddress | None:
    if node_name.address is None:
        return None
    try:
        return AcpAddress(node_name.address)
    except AddressError:
        # Of an addressing scheme to come (section 6.11.6). The name is valid, and that is all rule 5 asks.
        return None
