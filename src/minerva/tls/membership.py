"""Who may talk to us over TLS (RFC 8994 sections 6.1, 6.2.3 and 6.9.2)."""

from __future__ import annotations

from datetime import datetime
from ipaddress import IPv6Address

from cryptography import x509

from minerva.pki.address import AcpAddress
from minerva.pki.certificates import ID_KP_CMC_RA, UNREADABLE
from minerva.pki.errors import AddressError, MembershipError
from minerva.pki.identity import Identity
from minerva.pki.membership import Member, RevocationCheck, check_membership
from minerva.tls.connection import TlsConnection
from minerva.tls.errors import TlsIdentityError, TlsUsageError

__all__ = ["ID_KP_CMC_RA", "check_peer"]


def check_peer(
    connection: TlsConnection,
    identity: Identity,
    *,
    when: datetime | None,
    expected: IPv6Address | None = None,
    usage: x509.ObjectIdentifier | None = None,
    revocation: RevocationCheck | None = None,
) -> Member:
    """Admit the peer of ``connection``, whose handshake is done, and return who it is.

    ``when`` and ``revocation`` are as in :func:`minerva.pki.membership.check_membership`. ``expected`` is the
    ACP address that we connected to, or that the connection came from: it has to be the peer's own, whatever
    its V bits. Without it, any member could take the place of any other. ``usage`` is an extended key usage
    that the peer's certificate has to have.

    May be called again when certificates, CRLs or the time have changed. Raises
    :class:`~minerva.pki.errors.MembershipError` with the rule the peer fails, :class:`TlsIdentityError` if it
    is not who is wanted, and has then closed the connection; and :class:`TlsUsageError` if it is too early.
    """
    if not connection.handshake_done:
        raise TlsUsageError("there is no peer to be checked before the handshake is done")
    try:
        member = check_membership(
            connection.peer_chain, identity, when=when, channel=False, revocation=revocation
        )
        if expected is not None:
            _check_address(member, expected)
        if usage is not None:
            _check_usage(member, usage)
    except (MembershipError, TlsIdentityError):
        connection.refuse()
        raise
    connection.admit(member)
    return member


def _check_address(member: Member, expected: IPv6Address) -> None:
    if member.node_name.address is None:
        raise TlsIdentityError(f"{expected} was wanted, but {member.node_name} has no address")
    if _node(member.node_name.address) != _node(expected):
        raise TlsIdentityError(f"{expected} was wanted, but the peer is {member.node_name.address}")


def _node(address: IPv6Address) -> IPv6Address:
    try:
        return AcpAddress(address).with_v(0).address
    except AddressError:
        # Of an addressing scheme to come, of whose V bits nothing is known.
        return address


def _check_usage(member: Member, usage: x509.ObjectIdentifier) -> None:
    try:
        extension = member.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except (x509.ExtensionNotFound, *UNREADABLE):
        present = False
    else:
        present = usage in extension.value
    if not present:
        raise TlsIdentityError(
            f"{member.node_name} is not entitled: its certificate lacks the extended key usage "
            f"{usage.dotted_string}"
        )
