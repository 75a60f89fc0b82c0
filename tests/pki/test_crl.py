"""CRLs: which are believed, and what the membership check hears of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from minerva.pki.ca import CertificateAuthority
from minerva.pki.crl import MAX_CRL_SIZE, MAX_ISSUERS, MAX_SKEW, MAX_URLS, CrlStore, crl_urls
from minerva.pki.errors import AuthorityError, CrlError, MembershipError, Rule
from minerva.pki.identity import Identity
from minerva.pki.membership import RevocationStatus, check_membership
from minerva.pki.node_name import AcpNodeName

from .certs import DAY, NOW, Ca, key, node_name

DOMAIN = "acp.example.com"
URL = "http://[fd73:9fc2:3c34:4000:200:0:6400:1]:8080/crl"
HOUR = timedelta(hours=1)

GOOD, REVOKED, UNAVAILABLE = (
    RevocationStatus.GOOD,
    RevocationStatus.REVOKED,
    RevocationStatus.UNAVAILABLE,
)


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    root = CertificateAuthority.create(DOMAIN, tmp_path / "root", now=NOW)
    return root.issue_ca(tmp_path / "issuing", now=NOW)


def certify(ca: CertificateAuthority, number: int = 1, **options: Any) -> x509.Certificate:
    name = AcpNodeName.parse(node_name(number))
    return ca.certify(key("p256").public_key(), name, lifetime=30 * DAY, now=NOW, **options)


def crl(
    issuer: Ca,
    *extensions: tuple[Any, bool],
    number: int | None = 1,
    start: datetime = NOW,
    end: datetime = NOW + DAY,
    revoked: Sequence[int] = (),
    digest: Any = hashes.SHA256(),  # noqa: B008 -- a constant
) -> bytes:
    """A CRL that our CA would not make."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(start)
        .next_update(end)
    )
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, digest).public_bytes(Encoding.DER)


def scope(**options: Any) -> x509.IssuingDistributionPoint:
    defaults = {
        "full_name": None,
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    return x509.IssuingDistributionPoint(**{**defaults, **options})


def urls(*values: str) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(value) for value in values]


def test_revoked_and_good(ca: CertificateAuthority) -> None:
    """covers: 6.2.3-2, 6.2.5.3-1"""
    bad, good = certify(ca, 1, crl_urls=[URL]), certify(ca, 2, crl_urls=[URL])
    store = CrlStore()
    assert store.status(bad, ca.certificate, NOW) is UNAVAILABLE
    revoked = [(bad.serial_number, NOW, x509.ReasonFlags.key_compromise)]
    added = store.add(ca.make_crl(revoked, 7, lifetime=DAY, now=NOW), ca.chain, NOW)
    assert added.number == 7
    assert added.this_update == NOW
    assert added.next_update == NOW + DAY
    assert added.issuer == ca.certificate.subject
    assert store.crls == (added,)
    assert store.status(bad, ca.certificate, NOW) is REVOKED
    assert store.status(good, ca.certificate, NOW) is GOOD


def test_the_membership_check_hears_of_it(ca: CertificateAuthority) -> None:
    """covers: 6.2.3-2"""
    issued = ca.issue(now=NOW)
    us = Identity.from_certificates(issued.certificate, issued.chain, issued.anchors)
    peer = certify(ca, 2, crl_urls=[URL])
    store = CrlStore()

    def check() -> RevocationStatus | None:
        member = check_membership((peer, *ca.chain), us, when=NOW, channel=True, revocation=store)
        return member.revocation

    assert check() is UNAVAILABLE
    store.add(ca.make_crl([], 1, lifetime=DAY, now=NOW), (*us.chain, *us.anchors), NOW)
    assert check() is GOOD
    revoked = [(peer.serial_number, NOW, None)]
    store.add(ca.make_crl(revoked, 2, lifetime=DAY, now=NOW), (*us.chain, *us.anchors), NOW)
    with pytest.raises(MembershipError, match="is revoked") as caught:
        check()
    assert caught.value.rule is Rule.REVOCATION


def test_time(ca: CertificateAuthority) -> None:
    """After its nextUpdate a CRL only tells who is revoked; without a clock, all it ever told.

    covers: 6.2.3-2, 6.2.3.1-1, 6.2.3.1-2
    """
    bad, good = certify(ca, 1), certify(ca, 2)
    store = CrlStore()
    data = ca.make_crl([(bad.serial_number, NOW, None)], 1, lifetime=HOUR, now=NOW)
    store.add(data, ca.chain, NOW)
    later = NOW + HOUR + timedelta(seconds=1)
    assert store.status(good, ca.certificate, NOW + HOUR) is GOOD
    assert store.status(good, ca.certificate, later) is UNAVAILABLE
    assert store.status(bad, ca.certificate, later) is REVOKED
    assert store.status(good, ca.certificate, None) is GOOD
    assert store.status(bad, ca.certificate, None) is REVOKED
    stale = CrlStore()
    stale.add(data, ca.chain, later)
    assert stale.status(good, ca.certificate, later) is UNAVAILABLE
    assert stale.status(bad, ca.certificate, later) is REVOKED


def test_from_the_future(ca: CertificateAuthority) -> None:
    """covers: 6.2.3.1-1"""
    store = CrlStore()
    data = ca.make_crl([], 1, lifetime=DAY, now=NOW + MAX_SKEW + timedelta(seconds=1))
    with pytest.raises(CrlError, match="in the future; check the clocks"):
        store.add(data, ca.chain, NOW)
    store.add(ca.make_crl([], 1, lifetime=DAY, now=NOW + MAX_SKEW), ca.chain, NOW)
    CrlStore().add(data, ca.chain, None)


def test_replay(ca: CertificateAuthority) -> None:
    """covers: 6.2.3-2"""
    bad = certify(ca)
    store = CrlStore()
    old = ca.make_crl([], 1, lifetime=DAY, now=NOW)
    new = ca.make_crl([(bad.serial_number, NOW, None)], 2, lifetime=DAY, now=NOW + HOUR)
    store.add(old, ca.chain, NOW)
    store.add(new, ca.chain, NOW + HOUR)
    with pytest.raises(CrlError, match=r"is older \(2026-06-01T12:00:00Z\) than the one we know"):
        store.add(old, ca.chain, NOW + HOUR)
    with pytest.raises(CrlError, match="has number 1, we know number 2 already"):
        store.add(ca.make_crl([], 1, lifetime=DAY, now=NOW + 2 * HOUR), ca.chain, NOW + 2 * HOUR)
    assert store.status(bad, ca.certificate, NOW + HOUR) is REVOKED
    assert store.add(new, ca.chain, NOW + HOUR).number == 2


def test_of_whom(ca: CertificateAuthority, tmp_path: Path) -> None:
    """Only the CA itself says who is revoked, also if another has its name."""
    imposter = CertificateAuthority.create(DOMAIN, tmp_path / "imposter", now=NOW)
    imposter = imposter.issue_ca(tmp_path / "imposter-issuing", now=NOW)
    assert imposter.certificate.subject == ca.certificate.subject
    store = CrlStore()
    data = imposter.make_crl([], 1, lifetime=DAY, now=NOW)
    with pytest.raises(CrlError, match="not signed by our CA of the name CN=ACP Issuing CA"):
        store.add(data, (*ca.chain, *ca.anchors), NOW)
    with pytest.raises(CrlError, match=r"by CN=ACP Issuing CA.*, which is not a CA of ours"):
        store.add(data, ca.anchors, NOW)
    store.add(data, (*imposter.chain, *ca.chain, *ca.anchors), NOW)
    store.add(ca.make_crl([], 1, lifetime=DAY, now=NOW), (*imposter.chain, *ca.chain), NOW)
    assert len(store.crls) == 2
    assert store.status(certify(ca), ca.anchors[0], NOW) is UNAVAILABLE


def test_one_ca_with_several_certificates(tmp_path: Path) -> None:
    old = CertificateAuthority.create(DOMAIN, tmp_path / "old", now=NOW)
    new = CertificateAuthority.create(DOMAIN, tmp_path / "new", predecessor=old, now=NOW)
    store = CrlStore()
    store.add(new.make_crl([], 1, lifetime=DAY, now=NOW), (new.certificate,), NOW)
    assert store.status(certify(new), new.chain[0], NOW) is GOOD
    assert store.status(certify(old), old.certificate, NOW) is UNAVAILABLE


def test_a_ca_that_may_not_sign_crls() -> None:
    root = Ca.root(cert_sign=True)
    with pytest.raises(CrlError, match="not signed by our CA"):
        CrlStore().add(crl(root), [root.certificate], NOW)


OTHER = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
REASONS = frozenset([x509.ReasonFlags.key_compromise])


@pytest.mark.parametrize(
    ("extensions", "reason"),
    [
        ([(OTHER, True)], "unknown critical extension 1.2.3.4"),
        ([(x509.DeltaCRLIndicator(1), True)], "a delta CRL"),
        ([(scope(indirect_crl=True), True)], "an indirect CRL"),
        ([(scope(only_contains_ca_certs=True), True)], "not about the certificates of nodes"),
        ([(scope(only_contains_attribute_certs=True), True)], "not about the certificates of nodes"),
        ([(scope(full_name=urls(URL), only_some_reasons=REASONS), True)], "for some reasons"),
        ([(scope(full_name=urls("ldap://a/b")), True)], "without a URL of HTTP"),
    ],
)
def test_kinds_that_are_refused(extensions: list[tuple[Any, bool]], reason: str) -> None:
    root = Ca.root()
    with pytest.raises(CrlError, match=reason):
        CrlStore().add(crl(root, *extensions), [root.certificate], NOW)


def test_kinds_that_are_not() -> None:
    root = Ca.root()
    freshest = x509.FreshestCRL(
        [x509.DistributionPoint(full_name=urls(URL), relative_name=None, reasons=None, crl_issuer=None)]
    )
    data = crl(
        root, (OTHER, False), (freshest, False), (scope(only_contains_user_certs=True), True), number=None
    )
    assert CrlStore().add(data, [root.certificate], NOW).number is None


def test_a_crl_for_some_urls() -> None:
    root = Ca.root()
    store = CrlStore()

    def node(*values: str) -> x509.Certificate:
        point = x509.DistributionPoint(
            full_name=urls(*values), relative_name=None, reasons=None, crl_issuer=None
        )
        return root.node(node_name(1), extensions=[(x509.CRLDistributionPoints([point]), False)])

    inside, outside = node("http://elsewhere/", URL), node("http://elsewhere/")
    store.add(crl(root, (scope(full_name=urls(URL)), True), revoked=[99]), [root.certificate], NOW)
    assert store.status(inside, root.certificate, NOW) is GOOD
    assert store.status(outside, root.certificate, NOW) is UNAVAILABLE


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a CRL"),
        (b"nonsense", "not a CRL"),
        (bytes(MAX_CRL_SIZE + 1), "at most 4194304 are accepted"),
        (crl(Ca.root())[:-1], "not a CRL"),
        (crl(Ca.root()) + b"\0", "not a CRL"),
        (crl(Ca.root(), digest=hashes.SHA224()), "CRL signed with sha224"),
        (crl(Ca.root(kind="ed25519"), digest=None), "CRL signed with 1.3.101.112"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    with pytest.raises(CrlError, match=reason):
        CrlStore().add(data, [Ca.root().certificate], NOW)


def test_a_forged_entry() -> None:
    root = Ca.root()
    data = crl(root, revoked=[0x1122334455667788])
    forged = data.replace(bytes.fromhex("1122334455667788"), bytes.fromhex("1122334455667789"))
    assert forged != data
    with pytest.raises(CrlError, match="not signed by our CA"):
        CrlStore().add(forged, [root.certificate], NOW)


def test_limit_of_cas() -> None:
    store = CrlStore()
    for number in range(MAX_ISSUERS):
        root = Ca.root(f"Root {number}")
        store.add(crl(root), [root.certificate], NOW)
    another = Ca.root("one too many")
    with pytest.raises(CrlError, match="CRLs of 16 CAs already"):
        store.add(crl(another), [another.certificate], NOW)
    store.add(crl(root, number=2), [root.certificate], NOW)


def test_urls_in_certificates(ca: CertificateAuthority) -> None:
    """covers: 6.2.5.3-1, 6.2.5.3-2"""
    both = (URL, "https://crl.example.com/crl")
    certificate = certify(ca, crl_urls=both)
    assert crl_urls(certificate) == both
    point = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints)
    assert not point.critical
    assert crl_urls(certify(ca)) == ()
    with pytest.raises(AuthorityError, match="no URL of a CRL"):
        certify(ca, crl_urls=["http://ä/"])


def test_urls_of_strangers() -> None:
    root = Ca.root()
    points = [
        x509.DistributionPoint(
            full_name=[
                *urls("ldap://a/b", "http://a/ b", "http://a/\x1b[2J", "HTTP://a/b"),
                x509.DNSName("a"),
            ],
            relative_name=None,
            reasons=None,
            crl_issuer=None,
        ),
        x509.DistributionPoint(
            full_name=urls("http://indirect/"),
            relative_name=None,
            reasons=None,
            crl_issuer=[x509.DirectoryName(root.certificate.subject)],
        ),
        x509.DistributionPoint(
            full_name=urls(*(f"http://a/{number}" for number in range(20))),
            relative_name=None,
            reasons=None,
            crl_issuer=None,
        ),
    ]
    node = root.node(extensions=[(x509.CRLDistributionPoints(points), False)])
    found = crl_urls(node)
    assert len(found) == MAX_URLS
    assert found[:2] == ("HTTP://a/b", "http://a/0")
    broken = root.node(
        extensions=[
            (x509.UnrecognizedExtension(x509.CRLDistributionPoints.oid, b"\x05\x00"), False),
        ]
    )
    with pytest.raises(CrlError, match="extensions cannot be read"):
        crl_urls(broken)


def test_what_is_in_a_crl(ca: CertificateAuthority) -> None:
    when = NOW - HOUR
    reasons = [x509.ReasonFlags.superseded, x509.ReasonFlags.unspecified, None]
    revoked = [(10 + number, when, reason) for number, reason in enumerate(reasons)]
    made = x509.load_der_x509_crl(ca.make_crl(revoked, 5, lifetime=HOUR, now=NOW))
    assert made.last_update_utc == NOW
    assert made.next_update_utc == NOW + HOUR
    identifier = made.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    own = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert identifier.key_identifier == own.key_identifier
    assert made.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 5
    assert [(entry.serial_number, entry.revocation_date_utc) for entry in made] == [
        (10 + number, when) for number in range(3)
    ]
    assert [len(entry.extensions) for entry in made] == [1, 0, 0]
    with pytest.raises(AuthorityError, match="lifetime of at least one second"):
        ca.make_crl([], 1, lifetime=timedelta(0), now=NOW)
    start = x509.load_der_x509_crl(ca.make_crl([], 1, lifetime=HOUR)).last_update_utc
    assert abs(datetime.now(UTC) - start) < timedelta(minutes=1)
