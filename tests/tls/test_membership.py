"""Who is admitted, and the reason if not."""

from __future__ import annotations

from datetime import datetime
from ipaddress import IPv6Address

import pytest
from cryptography import x509
from OpenSSL import SSL

from minerva.pki.address import AcpAddress
from minerva.pki.identity import Identity
from minerva.pki.membership import MembershipError, RevocationStatus, Rule
from minerva.tls.connection import TlsConnection
from minerva.tls.context import make_context
from minerva.tls.errors import TlsIdentityError, TlsPeerError, TlsUsageError
from minerva.tls.membership import ID_KP_CMC_RA, check_peer
from tests.pki.certs import DAY, NOW, Ca, key, node_name
from tests.tls.ends import ALICE, BOB, ROOT, Node, carry, connected

BOB_ADDRESS = BOB.identity.address.address

versions = pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"])


def presented(leaf: x509.Certificate, *chain: x509.Certificate, version: int | None = None) -> TlsConnection:
    """Bob's end of a connection with a client that presents ``leaf``, and has already said something."""
    context = make_context(leaf, chain, key("p256"))
    if version is not None:
        context.set_max_proto_version(version)
    one, other = connected(context, BOB.context())
    check_peer(one, Identity.from_certificates(ALICE.identity.certificate, (), (ROOT.certificate,)), when=NOW)
    one.write(b"let me in")
    carry(one, other)
    return other


def assert_refused(connection: TlsConnection) -> None:
    """Nothing of what a refused peer said is delivered, and nothing can be said to it."""
    assert connection.closed
    assert connection.member is None
    assert connection.read() == b""
    with pytest.raises(TlsUsageError):
        connection.write(b"secret")


@versions
def test_member_is_admitted(version: int) -> None:
    """Both sides check each other; the address connected to is the one in the certificate.

    covers: 6.9.2-4
    """
    one, other = connected(ALICE.context(version), BOB.context(version))
    bob = check_peer(one, ALICE.identity, when=NOW, expected=BOB_ADDRESS)
    alice = check_peer(other, BOB.identity, when=NOW, expected=ALICE.identity.address.address)
    assert one.member is bob
    assert other.member is alice
    assert bob.address == BOB.identity.address
    assert alice.node_name == ALICE.identity.node_name
    assert bob.revocation is None


STRANGER = Ca.root("Root", kind="p384/stranger")
REFUSED = {
    "another domain": (ROOT.node(node_name(1, domain="other.example")), NOW, Rule.DOMAIN, "other.example"),
    "no acp-node-name": (ROOT.node(), NOW, Rule.DOMAIN, "no acp-node-name"),
    "two acp-node-names": (ROOT.node(node_name(1), node_name(2)), NOW, Rule.DOMAIN, "2 acp-node-names"),
    "expired": (ROOT.node(node_name(1), end=NOW - DAY / 2), NOW, Rule.PATH, "expired on 2026-06-01"),
    "not yet valid": (ROOT.node(node_name(1), start=NOW + DAY), NOW, Rule.PATH, "not valid before"),
    "stranger's CA": (STRANGER.node(node_name(1)), NOW, Rule.PATH, "not our CA of that name"),
    "its own CA": (Ca.root("Self", kind="p256").certificate, NOW, Rule.PATH, "no path"),
    "no intermediate": (ROOT.ca("Middle").node(node_name(1)), NOW, Rule.PATH, "issuer is CN=Middle"),
}


@versions
@pytest.mark.parametrize(("leaf", "when", "rule", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_others_are_refused_with_the_reason(
    leaf: x509.Certificate, when: datetime, rule: Rule, reason: str, version: int
) -> None:
    """covers: 6.9.2-4"""
    other = presented(leaf, version=version)
    with pytest.raises(MembershipError, match=reason) as caught:
        check_peer(other, BOB.identity, when=when)
    assert caught.value.rule is rule
    assert_refused(other)


def test_client_refuses_a_server_as_well() -> None:
    """covers: 6.9.2-4"""
    context = make_context(STRANGER.node(node_name(2)), (), key("p256"))
    one, other = connected(ALICE.context(), context)
    with pytest.raises(MembershipError) as caught:
        check_peer(one, ALICE.identity, when=NOW, expected=BOB_ADDRESS)
    assert caught.value.rule is Rule.PATH
    assert_refused(one)
    carry(one, other)
    assert other.closed_by_peer


def test_too_many_certificates() -> None:
    """They are refused by their number, before anything is done with them."""
    flood = [ROOT.node(node_name(number)) for number in range(2, 22)]
    with pytest.raises(TlsPeerError, match=r"2[01] certificates, at most 16"):
        presented(ALICE.identity.certificate, *flood)


def test_clock_that_is_not_trusted() -> None:
    other = presented(ROOT.node(node_name(1), end=NOW - DAY / 2))
    assert check_peer(other, BOB.identity, when=None).address == ALICE.identity.address
    assert other.read() == b"let me in"


# --- who was wanted ---


def test_address_of_the_node_with_other_v_bits() -> None:
    one, _ = connected()
    host = BOB.identity.address.with_v(1).address
    assert host != BOB_ADDRESS
    assert check_peer(one, ALICE.identity, when=NOW, expected=host).address == BOB.identity.address


@pytest.mark.parametrize(
    "expected", [ALICE.identity.address.address, IPv6Address("fe80::1"), IPv6Address("2001:db8::1")]
)
def test_another_member_in_the_place_of_the_one_wanted(expected: IPv6Address) -> None:
    """A member that took over another's address is no better than a stranger.

    covers: 6.9.2-4
    """
    one, _ = connected()
    with pytest.raises(TlsIdentityError, match=f"{expected} was wanted, but the peer is {BOB_ADDRESS}"):
        check_peer(one, ALICE.identity, when=NOW, expected=expected)
    assert_refused(one)


def test_vlong_address_is_compared_without_its_v_bits() -> None:
    address = AcpAddress.vlong8(BOB.identity.address.global_id, 7, 9)
    leaf = ROOT.node(f"{int(address.address):032x}@acp.example.com")
    expected = address.with_v(200).address
    assert check_peer(presented(leaf), BOB.identity, when=NOW, expected=expected).address == address
    neighbour = AcpAddress.vlong8(BOB.identity.address.global_id, 7, 10).address
    with pytest.raises(TlsIdentityError):
        check_peer(presented(leaf), BOB.identity, when=NOW, expected=neighbour)


@pytest.mark.parametrize("name", ["0@acp.example.com", "@acp.example.com"])
def test_member_without_an_address(name: str) -> None:
    """Such a one is a member, but nobody to whom an address belongs."""
    leaf = ROOT.node(name)
    assert check_peer(presented(leaf), BOB.identity, when=NOW).address is None
    other = presented(leaf)
    with pytest.raises(TlsIdentityError, match="no address"):
        check_peer(other, BOB.identity, when=NOW, expected=BOB_ADDRESS)
    assert_refused(other)


def test_address_of_a_scheme_to_come() -> None:
    address = IPv6Address("fd73:9fc2:3c34:8000::1")
    other = presented(ROOT.node(f"{int(address):032x}@acp.example.com"))
    assert check_peer(other, BOB.identity, when=NOW, expected=address).address is None
    with pytest.raises(TlsIdentityError):
        check_peer(other, BOB.identity, when=NOW, expected=address + 1)


# --- who is entitled ---


def test_extended_key_usage() -> None:
    usages = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH, ID_KP_CMC_RA])
    registrar = ROOT.node(node_name(1), extensions=[(usages, False)])
    assert check_peer(presented(registrar), BOB.identity, when=NOW, usage=ID_KP_CMC_RA)


@pytest.mark.parametrize(
    "extensions", [(), [(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), False)]]
)
def test_extended_key_usage_that_is_not_there(extensions: list[tuple[x509.ExtensionType, bool]]) -> None:
    other = presented(ROOT.node(node_name(1), extensions=extensions))
    with pytest.raises(TlsIdentityError, match=r"1\.3\.6\.1\.5\.5\.7\.3\.28"):
        check_peer(other, BOB.identity, when=NOW, usage=ID_KP_CMC_RA)
    assert_refused(other)


# --- checked again ---


class Crl:
    """Knows one thing."""

    def __init__(self, answer: RevocationStatus) -> None:
        self.answer = answer

    def status(self, *_: object) -> RevocationStatus:
        return self.answer


def test_checked_again_and_found_revoked() -> None:
    """What a member said before it was found to be revoked, and nobody has read, is not delivered."""
    points = x509.CRLDistributionPoints(
        [x509.DistributionPoint([x509.UniformResourceIdentifier("http://[fd89::1]/crl")], None, None, None)]
    )
    other = presented(ROOT.node(node_name(1), extensions=[(points, False)]))
    assert check_peer(other, BOB.identity, when=NOW).revocation is RevocationStatus.UNAVAILABLE
    good = check_peer(other, BOB.identity, when=NOW, revocation=Crl(RevocationStatus.GOOD))
    assert good.revocation is RevocationStatus.GOOD
    with pytest.raises(MembershipError) as caught:
        check_peer(other, BOB.identity, when=NOW, revocation=Crl(RevocationStatus.REVOKED))
    assert caught.value.rule is Rule.REVOCATION
    assert_refused(other)


def test_checked_again_and_found_expired() -> None:
    other = presented(Node.make(1).identity.certificate)
    check_peer(other, BOB.identity, when=NOW)
    with pytest.raises(MembershipError, match="expired"):
        check_peer(other, BOB.identity, when=NOW + 60 * DAY)
    assert_refused(other)
