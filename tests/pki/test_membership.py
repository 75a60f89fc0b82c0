"""The ACP domain membership check, rule by rule (RFC 8994 section 6.2.3)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from minerva.pki.errors import MembershipError, Rule
from minerva.pki.identity import Identity
from minerva.pki.membership import Member, RevocationStatus, check_membership
from minerva.pki.path import MAX_CERTIFICATES, MAX_INTERMEDIATES

from .certs import DAY, NOW, Ca, key, node_name, subject

PEER = node_name(2)


@pytest.fixture(scope="module")
def ca() -> Ca:
    return Ca.root()


@pytest.fixture(scope="module")
def us(ca: Ca) -> Identity:
    return ca.identity()


def check(
    us: Identity, *chain: x509.Certificate, when: datetime | None = NOW, channel: bool = True
) -> Member:
    return check_membership(chain, us, when=when, channel=channel)


def fails(rule: Rule, us: Identity, *chain: x509.Certificate, **options: Any) -> str:
    with pytest.raises(MembershipError) as caught:
        check(us, *chain, **options)
    assert caught.value.rule is rule
    assert str(caught.value).startswith(rule.label)
    return str(caught.value)


def test_a_member(ca: Ca, us: Identity) -> None:
    """covers: 6.2.3-1, 6.2.2-4"""
    peer = ca.node(PEER, end=NOW + 10 * DAY)
    member = check(us, peer)
    assert member.certificate == peer
    assert str(member.node_name) == PEER
    assert member.address is not None
    assert member.address.address == member.node_name.address
    assert member.expires == NOW + 10 * DAY
    assert member.revocation is None


def test_membership_ends_with_the_first_certificate_of_the_path() -> None:
    """The end of the CA counts if it comes first."""
    ca = Ca.root(end=NOW + 3 * DAY)
    assert check(ca.identity(), ca.node(PEER)).expires == NOW + 3 * DAY


def test_rules_have_sentences() -> None:
    assert [rule.value for rule in Rule] == [1, 2, 3, 4, 5]
    assert all(rule.sentence.endswith(".") for rule in Rule)
    assert len({rule.sentence for rule in Rule}) == 5
    assert Rule.PROOF_OF_POSSESSION.label == "rule 1 (proof of possession)"


# Rule 2: the path


def test_another_ca(us: Identity) -> None:
    """covers: 6.2.3-1"""
    stranger = Ca.root("Somebody Else", "p256/other")
    text = fails(Rule.PATH, us, stranger.node(PEER))
    assert text.endswith("no path to a trust anchor; its issuer is CN=Somebody Else")
    fails(Rule.PATH, us, stranger.node(PEER), stranger.certificate)


def test_another_ca_of_the_same_name(us: Identity) -> None:
    """covers: 6.2.3-1"""
    impostor = Ca.root("Root", "p256/other")
    assert "not our CA of that name" in fails(Rule.PATH, us, impostor.node(PEER), impostor.certificate)


def test_no_certificate_and_too_many(ca: Ca, us: Identity) -> None:
    fails(Rule.PATH, us)
    peer = ca.node(PEER)
    check(us, *[peer] * MAX_CERTIFICATES)
    assert "at most" in fails(Rule.PATH, us, *[peer] * (MAX_CERTIFICATES + 1))


def test_expired(ca: Ca, us: Identity) -> None:
    """covers: 6.2.3.1-1"""
    peer = ca.node(PEER, end=NOW)
    check(us, peer, when=NOW)
    text = fails(Rule.PATH, us, peer, when=NOW + timedelta(seconds=1))
    assert text == "rule 2 (path): certificate of CN=node expired on 2026-06-01T12:00:00Z"


def test_not_yet_valid(ca: Ca, us: Identity) -> None:
    """covers: 6.2.3.1-1"""
    peer = ca.node(PEER, start=NOW + DAY)
    check(us, peer, when=NOW + DAY)
    assert "not valid before 2026-06-02T12:00:00Z" in fails(Rule.PATH, us, peer)


def test_expired_intermediate(ca: Ca, us: Identity) -> None:
    """covers: 6.2.3.1-1"""
    old = ca.ca("Issuing", end=NOW - DAY / 2)
    text = fails(Rule.PATH, us, old.node(PEER), *old.chain)
    assert "certificate of CN=Issuing expired on 2026-06-01T00:00:00Z" in text
    # The very same key, certified again.
    renewed = ca.ca("Issuing", end=NOW + DAY)
    member = check(us, old.node(PEER), *old.chain, *renewed.chain)
    assert member.expires == NOW + DAY


def test_expired_trust_anchor() -> None:
    old = Ca.root(end=NOW - DAY / 2)
    assert "certificate of CN=Root expired" in fails(Rule.PATH, old.identity(), old.node(PEER))


def test_certificates_that_were_never_valid_together(ca: Ca, us: Identity) -> None:
    issuing = ca.ca("Issuing", start=NOW - 9 * DAY, end=NOW - 8 * DAY)
    peer = issuing.node(PEER, start=NOW - 5 * DAY, end=NOW - 4 * DAY)
    assert "certificate of CN=node expired" in fails(Rule.PATH, us, peer, *issuing.chain)
    fails(Rule.PATH, us, peer, *issuing.chain, when=None)


@pytest.mark.parametrize("start", [-100, 100])
def test_no_clock_no_time_checks(ca: Ca, us: Identity, start: int) -> None:
    """covers: 6.2.3.1-2"""
    issuing = ca.ca("Issuing", start=NOW - 200 * DAY, end=NOW + 200 * DAY)
    anchors = (Ca.root(start=NOW - 200 * DAY, end=NOW + 200 * DAY).certificate,)
    us = issuing.identity(anchors)
    peer = issuing.node(PEER, start=NOW + start * DAY, end=NOW + (start + 1) * DAY)
    fails(Rule.PATH, us, peer, *issuing.chain)
    assert check(us, peer, *issuing.chain, when=None).expires == NOW + (start + 1) * DAY
    stranger = Ca.root("Somebody Else", "p256/other")
    fails(Rule.PATH, us, stranger.node(PEER), when=None)


@pytest.mark.parametrize("kind", ["rsa1024", "p224", "brainpool", "ed25519", "dsa"])
def test_unacceptable_leaf_keys(ca: Ca, us: Identity, kind: str) -> None:
    """covers: 6.2.1-3"""
    text = fails(Rule.PATH, us, ca.node(PEER, kind=kind))
    assert "accepted" in text or "neither" in text


@pytest.mark.parametrize("kind", ["rsa1024", "p224"])
def test_unacceptable_ca_keys(ca: Ca, us: Identity, kind: str) -> None:
    """covers: 6.2.1-3"""
    weak = ca.ca("Weak", kind)
    assert "CA CN=Weak: " in fails(Rule.PATH, us, weak.node(PEER), *weak.chain)
    root = Ca.root("Weak Root", kind)
    fails(Rule.PATH, root.identity(), root.node(PEER))


def test_sha1_signature(ca: Ca, us: Identity) -> None:
    """covers: 6.2.1-6"""
    # The library signs no more with SHA-1, so a certificate says it did. It is refused for saying so,
    # before anybody looks at the signature.
    good = ca.node(PEER, kind="p256")
    ecdsa_sha256, ecdsa_sha1 = bytes.fromhex("06082a8648ce3d040302"), bytes.fromhex("06072a8648ce3d0401")
    der = good.public_bytes(Encoding.DER)
    assert der.count(ecdsa_sha256) == 2
    bad = x509.load_der_x509_certificate(_replace_algorithm(der, ecdsa_sha256, ecdsa_sha1))
    assert "sha1" in fails(Rule.PATH, us, bad)


@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "rsa2048", "rsa3072"])
@pytest.mark.parametrize("ca_kind", ["p256", "p384", "p521", "rsa2048"])
def test_accepted_keys(kind: str, ca_kind: str) -> None:
    """covers: 6.2.1-2, 6.2.1-4, 6.2.1-5, 6.2.1-6"""
    root = Ca.root("Root", ca_kind)
    check(root.identity(), root.node(PEER, kind=kind))


@pytest.mark.parametrize("digest", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
@pytest.mark.parametrize("ca_kind", ["p256", "rsa2048"])
def test_accepted_digests(ca_kind: str, digest: Any) -> None:
    """covers: 6.2.1-6"""
    root = Ca.root("Root", ca_kind)
    check(root.identity(), root.node(PEER, digest=digest))


def test_rsa_pss_signature() -> None:
    root = Ca.root("Root", "rsa2048")
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    check(root.identity(), root.node(PEER, padding=pss))


@pytest.mark.parametrize("depth", range(MAX_INTERMEDIATES + 2))
def test_intermediates_in_any_order(ca: Ca, us: Identity, depth: int) -> None:
    """covers: 6.2.4-4"""
    issuing = ca
    for level in range(depth):
        issuing = issuing.ca(f"Level {level}", f"p256/{level}")
    peer = issuing.node(PEER)
    assert len(issuing.chain) == depth
    for order in itertools.islice(itertools.permutations(issuing.chain), 24):
        if depth <= MAX_INTERMEDIATES:
            check(us, peer, *order)
            check(us, peer, *order, ca.certificate)
        else:
            fails(Rule.PATH, us, peer, *order)
    if depth:
        fails(Rule.PATH, us, peer, *issuing.chain[:-1])


def test_mixed_keys_in_one_path() -> None:
    """covers: 6.2.1-2, 6.2.4-4"""
    root = Ca.root("Root", "rsa2048")
    issuing = root.ca("One", "p384").ca("Two", "rsa3072")
    check(root.identity(), issuing.node(PEER, kind="p256"), *issuing.chain)


def test_junk_beside_the_chain(ca: Ca, us: Identity) -> None:
    issuing = ca.ca("Issuing", "p256/issuing")
    stranger = Ca.root("Root", "p256/other")
    junk = [
        stranger.certificate,
        stranger.node(PEER),
        stranger.ca("Issuing", "p256/issuing").certificate,
        Ca.root("Weak", "rsa1024").certificate,
        ca.node(node_name(9)),
    ]
    check(us, issuing.node(PEER), *junk, *issuing.chain)
    fails(Rule.PATH, us, issuing.node(PEER), *junk)


def test_hostile_chains_cost_little(us: Identity) -> None:
    """Sixteen CAs that all could have issued one another are dismissed within a few signatures' time."""
    loop = [
        Ca.root("Root", "p521/other", start=NOW - DAY * n).certificate for n in range(1, MAX_CERTIFICATES)
    ]
    peer = Ca.root("Root", "p521/other").node(PEER)
    start = time.process_time()
    fails(Rule.PATH, us, peer, *loop)
    assert time.process_time() - start < 0.1


def test_two_trust_anchors_after_a_key_rollover() -> None:
    """covers: 6.2.4-3, 6.2.4-4"""
    old, new = Ca.root("Root", "p256/old"), Ca.root("Root", "p256/new")
    for us in (
        old.identity((old.certificate, new.certificate)),
        new.identity((new.certificate, old.certificate)),
    ):
        check(us, old.node(PEER))
        check(us, new.node(PEER))
    fails(Rule.PATH, old.identity(), new.node(PEER))


def test_rollover_certificates() -> None:
    """A node that has only the old anchor follows the new key through the certificate for it.

    covers: 6.2.4-3
    """
    old, new = Ca.root("Root", "p256/old"), Ca.root("Root", "p256/new")
    new_with_old = old.ca("Root", "p256/new")
    check(old.identity(), new.node(PEER), new_with_old.certificate)


def test_a_node_is_no_ca(ca: Ca, us: Identity) -> None:
    """A member cannot make members."""
    for options in ({"ca": False}, {"ca": None}):
        member = ca.node(PEER, subject=subject("Member"), kind="p256/member", **options)
        rogue = Ca(member, key("p256/member")).node(node_name(3))
        fails(Rule.PATH, us, rogue, member)


def test_constraints_of_cas(ca: Ca, us: Identity) -> None:
    no_more = ca.ca("No More", "p256/1", path_length=0)
    check(us, no_more.node(PEER), *no_more.chain)
    below = no_more.ca("Below", "p256/2")
    fails(Rule.PATH, us, below.node(PEER), *below.chain)
    no_signing = ca.ca("No Signing", "p256/3", cert_sign=False)
    assert "keyUsage" in fails(Rule.PATH, us, no_signing.node(PEER), *no_signing.chain)
    signing = ca.ca("Signing", "p256/4", cert_sign=True)
    check(us, signing.node(PEER), *signing.chain)


def test_critical_extensions(ca: Ca, us: Identity) -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    check(us, ca.node(PEER, extensions=[(unknown, False)]))
    fails(Rule.PATH, us, ca.node(PEER, extensions=[(unknown, True)]))


def test_extensions_that_cannot_be_read(ca: Ca, us: Identity) -> None:
    """covers: 6.2.1-1"""
    for extension in (
        x509.CRLDistributionPoints,
        x509.KeyUsage,
        x509.TLSFeature,
        x509.SubjectAlternativeName,
    ):
        broken = x509.UnrecognizedExtension(extension.oid, bytes.fromhex("3003020163"))
        assert "cannot be read" in fails(Rule.PATH, us, ca.node(extensions=[(broken, False)]))


def test_time_without_zone_is_a_mistake_of_ours(ca: Ca, us: Identity) -> None:
    with pytest.raises(ValueError, match="time zone"):
        check(us, ca.node(PEER), when=NOW.replace(tzinfo=None))


@pytest.mark.parametrize(
    "usages",
    [
        (ExtendedKeyUsageOID.SERVER_AUTH,),
        (ExtendedKeyUsageOID.CLIENT_AUTH,),
        (ExtendedKeyUsageOID.IPSEC_IKE,),
    ],
)
def test_any_extended_key_usage(ca: Ca, us: Identity, usages: Sequence[x509.ObjectIdentifier]) -> None:
    check(us, ca.node(PEER, extensions=[(x509.ExtendedKeyUsage(usages), False)]))


def test_strange_names_make_no_strange_messages(us: Identity) -> None:
    stranger = Ca.root("evil\x1b[2J\nroot é", "p256/other")
    text = fails(Rule.PATH, us, stranger.node(PEER))
    assert text.isascii()
    assert text.isprintable()


# Rule 3: revocation


class Known:
    def __init__(self, status: RevocationStatus) -> None:
        self.answer = status
        self.asked: list[tuple[x509.Certificate, x509.Certificate, datetime | None]] = []

    def status(
        self, certificate: x509.Certificate, issuer: x509.Certificate, when: datetime | None
    ) -> RevocationStatus:
        self.asked.append((certificate, issuer, when))
        return self.answer


_LOCATION = x509.UniformResourceIdentifier("http://[fd73::1]/crl")
CRLDP = x509.CRLDistributionPoints([x509.DistributionPoint([_LOCATION], None, None, None)])
OCSP = x509.AuthorityInformationAccess(
    [x509.AccessDescription(AuthorityInformationAccessOID.OCSP, _LOCATION)]
)
ISSUERS = x509.AuthorityInformationAccess(
    [x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, _LOCATION)]
)


@pytest.mark.parametrize("mechanism", [CRLDP, OCSP])
def test_revocation(ca: Ca, us: Identity, mechanism: Any) -> None:
    """covers: 6.2.3-2"""
    peer = ca.node(PEER, extensions=[(mechanism, False)])
    good = Known(RevocationStatus.GOOD)
    member = check_membership([peer], us, when=NOW, channel=True, revocation=good)
    assert member.revocation is RevocationStatus.GOOD
    assert good.asked == [(peer, ca.certificate, NOW)]
    with pytest.raises(MembershipError) as caught:
        check_membership([peer], us, when=NOW, channel=True, revocation=Known(RevocationStatus.REVOKED))
    assert caught.value.rule is Rule.REVOCATION


def test_revocation_that_cannot_be_learnt(ca: Ca, us: Identity) -> None:
    peer = ca.node(PEER, extensions=[(CRLDP, False)])
    unavailable = Known(RevocationStatus.UNAVAILABLE)
    member = check_membership([peer], us, when=NOW, channel=True, revocation=unavailable)
    assert member.revocation is RevocationStatus.UNAVAILABLE
    assert check(us, peer).revocation is RevocationStatus.UNAVAILABLE


@pytest.mark.parametrize("extensions", [[], [(ISSUERS, False)]])
def test_nobody_asks_without_a_mechanism(ca: Ca, us: Identity, extensions: Any) -> None:
    revoked = Known(RevocationStatus.REVOKED)
    peer = ca.node(PEER, extensions=extensions)
    assert check_membership([peer], us, when=NOW, channel=True, revocation=revoked).revocation is None
    assert not revoked.asked


# Rule 4: the domain


def test_another_domain(ca: Ca, us: Identity) -> None:
    """covers: 6.2.3-1"""
    text = fails(Rule.DOMAIN, us, ca.node(node_name(2, domain="acp.example.org")))
    assert text.endswith("the peer's ACP domain is acp.example.org, ours is acp.example.com")
    fails(Rule.DOMAIN, us, ca.node(node_name(2, domain="sub.acp.example.com")))


def test_domain_in_upper_case(ca: Ca, us: Identity) -> None:
    check(us, ca.node(node_name(2, domain="ACP.Example.COM")))


@pytest.mark.parametrize("rsub", ["+", "+area51", "+a.b+extension", "++extension"])
def test_rsub_and_extensions_do_not_matter(ca: Ca, us: Identity, rsub: str) -> None:
    """covers: 6.2.2-6"""
    check(us, ca.node(node_name(2, rsub=rsub)))


def test_rsub_does_not_make_the_domain(ca: Ca, us: Identity) -> None:
    fails(Rule.DOMAIN, us, ca.node(node_name(2, rsub="+acp", domain="example.com")))


def test_no_node_name(ca: Ca, us: Identity) -> None:
    """covers: 6.2.2-1"""
    fails(Rule.DOMAIN, us, ca.node())
    fails(Rule.DOMAIN, us, ca.node(PEER, node_name(3)))
    mail = x509.SubjectAlternativeName([x509.RFC822Name(PEER)])
    fails(Rule.DOMAIN, us, ca.node(extensions=[(mail, False)]))


# Rule 5: the address


def test_no_address(ca: Ca, us: Identity) -> None:
    """covers: 6.2.2-4, 6.2.3-1"""
    peer = ca.node("@acp.example.com")
    fails(Rule.ADDRESS, us, peer, channel=True)
    assert check(us, peer, channel=False).address is None


def test_address_0(ca: Ca, us: Identity) -> None:
    """covers: 6.2.2-4, 6.2.3-1"""
    peer = ca.node("0@acp.example.com")
    assert check(us, peer, channel=True).address is None
    assert check(us, peer, channel=False).address is None


def test_a_prefix_that_is_no_hash_of_the_domain(ca: Ca) -> None:
    """covers: 6.11.2-3"""
    odd = "fd01020304050000020000006400000{}@acp.example.com"
    us = Identity.from_certificates(ca.node(odd.format(2)), (), (ca.certificate,))
    peer = check(us, ca.node(odd.format(4)))
    assert peer.address is not None
    assert peer.address.ula_prefix == us.address.ula_prefix


def test_address_of_a_scheme_to_come(ca: Ca, us: Identity) -> None:
    peer = ca.node("fd739fc23c34c0000000000000000001@acp.example.com")
    member = check(us, peer)
    assert member.address is None
    assert member.node_name.address is not None


# Order, and the SHA-1 helper


def test_the_first_rule_that_fails_is_named(ca: Ca, us: Identity) -> None:
    stranger = Ca.root("Somebody Else", "p256/other")
    fails(Rule.PATH, us, stranger.node("@acp.example.org"))
    fails(Rule.DOMAIN, us, ca.node("@acp.example.org"))


def _replace_algorithm(der: bytes, old: bytes, new: bytes) -> bytes:
    """Put another algorithm of other length into a certificate, and correct the lengths around it."""
    certificate = x509.load_der_x509_certificate(der)
    tbs, signature = certificate.tbs_certificate_bytes, certificate.signature
    body = tbs[4:].replace(_sequence(old), _sequence(new))
    return _sequence(
        _sequence(body) + _sequence(new) + b"\x03" + _length(len(signature) + 1) + b"\x00" + signature
    )


def _sequence(content: bytes) -> bytes:
    return b"\x30" + _length(len(content)) + content


def _length(size: int) -> bytes:
    return (
        bytes([size])
        if size < 0x80
        else b"\x81" + bytes([size])
        if size < 0x100
        else b"\x82" + size.to_bytes(2)
    )
