"""The built-in CA: what it issues, what it remembers, and what openssl says of it."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from minerva.pki.address import Scheme, ula_global_id
from minerva.pki.ca import BACKDATING, CertificateAuthority, Issued, check_free, write_node_directory
from minerva.pki.certificates import dump_pem
from minerva.pki.crl import CrlStore
from minerva.pki.errors import AuthorityError, KeyRuleError, MembershipError, PathError
from minerva.pki.identity import Identity, check_own, load_identity
from minerva.pki.keys import load_private_key
from minerva.pki.membership import RevocationStatus, check_membership
from minerva.pki.node_name import AcpNodeName, AddressField
from minerva.pki.path import validate_path

from .certs import DAY, NOW, Ca, key

DOMAIN = "acp.example.com"
ID_KP_CMC_RA = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create(DOMAIN, tmp_path / "ca", now=NOW)


def identity(issued: Issued) -> Identity:
    return Identity.from_certificates(issued.certificate, issued.chain, issued.anchors)


def test_a_node(ca: CertificateAuthority, tmp_path: Path) -> None:
    """covers: 6.2.1-1, 6.2.2-1, 6.2.2-2, 6.11.7.3-1"""
    write_node_directory(tmp_path / "node", ca.issue(now=NOW))
    us = load_identity(tmp_path / "node")
    check_own(us, NOW)
    assert us.address.scheme is Scheme.ZONE
    assert us.address.zone_id == 0
    assert us.address.v == 0
    assert us.address.global_id == ula_global_id(DOMAIN)
    key_path = tmp_path / "node" / "key.pem"
    assert stat.S_IMODE(key_path.stat().st_mode) == 0o600
    assert key_path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert load_private_key(key_path.read_bytes()).public_key() == us.certificate.public_key()
    assert (tmp_path / "node" / "chain.pem").read_bytes() == b""


def test_what_is_in_the_certificate(ca: CertificateAuthority) -> None:
    certificate = ca.issue(now=NOW, lifetime=DAY).certificate
    assert certificate.version is x509.Version.v3
    assert certificate.not_valid_before_utc == NOW - BACKDATING
    assert certificate.not_valid_after_utc == NOW + DAY
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [type(name) for name in names] == [x509.OtherName]
    key_id = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    own_id = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.key_identifier
    assert key_id == own_id


@pytest.mark.parametrize("scheme", [Scheme.ZONE, Scheme.VLONG8, Scheme.VLONG16])
def test_addresses_are_unique(ca: CertificateAuthority, scheme: Scheme) -> None:
    """covers: 6.11.7.2-1, 6.11.7.3-3"""
    addresses = [ca.issue(scheme, public_key=key("p256").public_key(), now=NOW).address for _ in range(5)]
    assert all(address is not None and address.scheme is scheme for address in addresses)
    assert len({address.prefix for address in addresses if address is not None}) == 5
    again = CertificateAuthority.open(ca.directory)
    later = again.issue(scheme, public_key=key("p256").public_key(), now=NOW).address
    assert later is not None
    assert later.node_number == 5


def test_routing_subdomain(ca: CertificateAuthority) -> None:
    """covers: 6.11.2-1"""
    issued = ca.issue(rsub="Area51.research", now=NOW)
    assert issued.address is not None
    assert issued.address.global_id == bytes.fromhex("89b714f3db")
    assert issued.node_name.routing_subdomain == "area51.research.acp.example.com"
    other = ca.issue(now=NOW)
    check_membership([issued.certificate], identity(other), when=NOW, channel=True)


def test_lost_state_gives_a_new_registrar_id(ca: CertificateAuthority) -> None:
    """covers: 6.11.7.3-3"""
    before = ca.issue(now=NOW).address
    (ca.directory / "state.json").unlink()
    after = ca.issue(now=NOW).address
    assert before is not None
    assert after is not None
    assert before.registrar_id != after.registrar_id


def test_broken_state_stops_the_ca(ca: CertificateAuthority) -> None:
    (ca.directory / "state.json").write_text("{")
    with pytest.raises(AuthorityError, match="remove it, and new addresses get a new Registrar-ID"):
        ca.issue(now=NOW)
    assert ca.issue(address=AddressField.OMITTED, now=NOW).address is None


def test_state_is_on_the_disk_before_the_certificate_is_made(
    ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """covers: 6.11.7.2-1"""

    def crash(_self: CertificateAuthority, _builder: x509.CertificateBuilder) -> x509.Certificate:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CertificateAuthority, "_sign", crash)
        with pytest.raises(KeyboardInterrupt):
            ca.issue(now=NOW)
    address = ca.issue(now=NOW).address
    assert address is not None
    assert address.node_number == 1


def test_an_address_is_kept_on_renewal(ca: CertificateAuthority) -> None:
    """covers: 6.11.7.4-1"""
    first = ca.issue(rsub="r", now=NOW)
    assert first.address is not None
    second = ca.issue(rsub="r", address=first.address, now=NOW + DAY)
    assert second.node_name == first.node_name
    assert second.certificate != first.certificate
    with pytest.raises(AuthorityError, match="is not what this CA gave"):
        ca.issue(address=first.address, now=NOW)
    other = ca.issue(now=NOW)
    assert other.address is not None
    assert other.address.node_number == first.address.node_number + 1


def test_names_without_address(ca: CertificateAuthority) -> None:
    """covers: 6.11.4-2"""
    us = identity(ca.issue(now=NOW))
    member = ca.issue(address=AddressField.OMITTED, now=NOW)
    assert str(member.node_name) == "@acp.example.com"
    assert member.address is None
    check_membership([member.certificate], us, when=NOW, channel=False)
    zero = ca.issue(address=AddressField.ZERO, rsub="r", now=NOW)
    assert str(zero.node_name) == "0+r@acp.example.com"
    check_membership([zero.certificate], us, when=NOW, channel=True)


def test_options(ca: CertificateAuthority) -> None:
    issued = ca.issue(name="router 7", with_ip_san=True, now=NOW)
    assert issued.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "router 7"
    names = issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert issued.address is not None
    assert names.get_values_for_type(x509.IPAddress) == [IPv6Address(str(issued.address))]


def test_public_key_of_the_node(ca: CertificateAuthority, tmp_path: Path) -> None:
    issued = ca.issue(public_key=key("p384").public_key(), now=NOW)
    assert issued.certificate.public_key() == key("p384").public_key()
    assert issued.private_key is None
    write_node_directory(tmp_path / "node", issued)
    assert not (tmp_path / "node" / "key.pem").exists()
    with pytest.raises(KeyRuleError, match="RSA key of 1024 bits"):
        ca.issue(public_key=key("rsa1024").public_key(), now=NOW)


@pytest.mark.parametrize(
    ("key_type", "kind"),
    [("p256", ec.EllipticCurvePublicKey), ("p384", ec.EllipticCurvePublicKey), ("rsa2048", rsa.RSAPublicKey)],
)
def test_key_types(tmp_path: Path, key_type: str, kind: type) -> None:
    """covers: 6.2.1-2"""
    ca = CertificateAuthority.create(DOMAIN, tmp_path, key_type, now=NOW)
    issued = ca.issue(key_type=key_type, now=NOW)
    assert isinstance(ca.certificate.public_key(), kind)
    assert isinstance(issued.certificate.public_key(), kind)
    check_own(identity(issued), NOW)


def test_bad_requests_cost_no_number(ca: CertificateAuthority) -> None:
    for attempt in (
        lambda: ca.issue(rsub="not a domain", now=NOW),
        lambda: ca.issue(name="n" * 65, now=NOW),
        lambda: ca.issue(Scheme.MANUAL, now=NOW),
        lambda: ca.issue(lifetime=timedelta(0), now=NOW),
        lambda: ca.issue(now=NOW + 3651 * DAY),
    ):
        with pytest.raises(AuthorityError):
            attempt()
    address = ca.issue(now=NOW).address
    assert address is not None
    assert address.node_number == 0


def test_no_certificate_outlives_the_ca(ca: CertificateAuthority) -> None:
    issued = ca.issue(lifetime=9999 * DAY, now=NOW)
    assert issued.certificate.not_valid_after_utc == ca.certificate.not_valid_after_utc


@pytest.mark.parametrize("depth", [1, 2])
def test_cas_below(ca: CertificateAuthority, tmp_path: Path, depth: int) -> None:
    """covers: 6.2.4-4, 6.11.7.2-2"""
    issuing = ca
    for level in range(depth):
        issuing = issuing.issue_ca(tmp_path / f"ca{level}", now=NOW)
    assert issuing.domain == DOMAIN
    issuing = CertificateAuthority.open(issuing.directory)
    write_node_directory(tmp_path / "node", issuing.issue(now=NOW))
    us = load_identity(tmp_path / "node")
    assert len(us.chain) == depth
    assert us.anchors == ca.anchors
    check_own(us, NOW)
    root_node = identity(ca.issue(now=NOW))
    check_membership([us.certificate, *us.chain], root_node, when=NOW, channel=True)
    assert root_node.address.registrar_id != us.address.registrar_id


def test_open_again(ca: CertificateAuthority) -> None:
    again = CertificateAuthority.open(ca.directory)
    assert again.domain == DOMAIN
    assert again.certificate == ca.certificate
    assert stat.S_IMODE((ca.directory / "ca-key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(ca.directory.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["ca-cert.pem", "ca-key.pem", "chain.pem", "anchors.pem"])
def test_open_what_is_not_whole(ca: CertificateAuthority, name: str) -> None:
    (ca.directory / name).write_bytes(b"nonsense")
    with pytest.raises(AuthorityError, match="cannot be read"):
        CertificateAuthority.open(ca.directory)
    (ca.directory / name).unlink()
    with pytest.raises(AuthorityError, match="make one with `minerva ca init`"):
        CertificateAuthority.open(ca.directory)


def test_open_with_another_key(ca: CertificateAuthority, tmp_path: Path) -> None:
    other = CertificateAuthority.create(DOMAIN, tmp_path / "other", now=NOW)
    shutil.copy(other.directory / "ca-key.pem", ca.directory)
    with pytest.raises(AuthorityError, match="do not belong together"):
        CertificateAuthority.open(ca.directory)


def test_nothing_is_overwritten(ca: CertificateAuthority, tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match=r"there is a CA in .* already"):
        CertificateAuthority.create(DOMAIN, ca.directory, now=NOW)
    assert CertificateAuthority.open(ca.directory).certificate == ca.certificate
    node = tmp_path / "node"
    check_free(node)
    write_node_directory(node, ca.issue(now=NOW))
    before = {path.name: path.read_bytes() for path in node.iterdir()}
    with pytest.raises(AuthorityError, match=r"there is an identity in .* already"):
        write_node_directory(node, ca.issue(now=NOW))
    assert {path.name: path.read_bytes() for path in node.iterdir()} == before


def test_index(ca: CertificateAuthority) -> None:
    assert list(ca.issued()) == []
    issued = [ca.issue(now=NOW), ca.issue(address=AddressField.OMITTED, now=NOW)]
    assert [entry["acp_node_name"] for entry in ca.issued()] == [str(each.node_name) for each in issued]
    assert [int(entry["serial"], 16) for entry in ca.issued()] == [
        each.certificate.serial_number for each in issued
    ]
    with (ca.directory / "issued.jsonl").open("a") as stream:
        stream.write('{"serial": "12\n')
    with pytest.raises(AuthorityError, match="line 3: not JSON"):
        list(ca.issued())


def test_invalid_domains_leave_nothing(tmp_path: Path) -> None:
    for domain in ("", "a b", "-", "a..b", "@", "1.example.com"):
        with pytest.raises(AuthorityError, match="labels, divided by dots"):
            CertificateAuthority.create(domain, tmp_path / "ca", now=NOW)
    assert not (tmp_path / "ca").exists()


ISSUE_TEN = """
import sys
from pathlib import Path
from minerva.pki.ca import CertificateAuthority
ca = CertificateAuthority.open(Path(sys.argv[1]))
for _ in range(10):
    print(ca.issue().address)
"""


def test_processes_never_get_the_same_address(tmp_path: Path) -> None:
    """covers: 6.11.7.2-1"""
    directory = tmp_path / "ca"
    CertificateAuthority.create(DOMAIN, directory)
    command = [sys.executable, "-c", ISSUE_TEN, str(directory)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    addresses = [address for output in outputs for address in output]
    assert len(addresses) == len(set(addresses)) == 30
    state = json.loads((directory / "state.json").read_text())
    assert state["next_node_number"]["zone"] == 30
    assert len(list(CertificateAuthority.open(directory).issued())) == 30


def openssl(*arguments: str) -> str:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, the witness of this test, is not installed")
    return subprocess.run(
        ["openssl", *arguments], check=True, capture_output=True, text=True, timeout=30
    ).stdout


@pytest.mark.parametrize("key_type", ["p256", "rsa2048"])
def test_openssl_agrees(tmp_path: Path, key_type: str) -> None:
    """covers: 6.2.1-1, 6.2.2-1"""
    root = CertificateAuthority.create(DOMAIN, tmp_path / "root", key_type)
    issuing = root.issue_ca(tmp_path / "issuing", key_type)
    issued = issuing.issue(key_type=key_type)
    node = tmp_path / "node"
    write_node_directory(node, issued)
    text = openssl("x509", "-in", str(node / "cert.pem"), "-noout", "-text")
    assert "Version: 3 (0x2)" in text
    assert f"othername: 1.3.6.1.5.5.7.8.10::{issued.node_name}" in text
    assert "CA:FALSE" in text
    verdict = openssl(
        "verify", "-x509_strict", "-purpose", "any",
        "-CAfile", str(node / "anchors.pem"),
        "-untrusted", str(node / "chain.pem"),
        str(node / "cert.pem"),
    )  # fmt: skip
    assert verdict.strip().endswith("OK")
    assert "BEGIN PUBLIC KEY" in openssl("pkey", "-in", str(node / "key.pem"), "-pubout")


def test_openssl_sees_the_rfc_example_bytes(tmp_path: Path) -> None:
    """The otherName of an issued certificate, byte by byte, is what RFC 8994 section 6.2.2.1 says."""
    ca = CertificateAuthority.create(DOMAIN, tmp_path / "ca")
    write_node_directory(tmp_path / "node", ca.issue(rsub="area51.research"))
    listing = openssl("asn1parse", "-in", str(tmp_path / "node" / "cert.pem"))
    san = listing.split("X509v3 Subject Alternative Name")[1]
    data = san.split("[HEX DUMP]:")[1].split()[0].lower()
    assert data.startswith("3050a04e06082b0601050507080aa042164066643839623731346633646230303030")


def test_clock_is_used_by_default(tmp_path: Path) -> None:
    certificate = CertificateAuthority.create(DOMAIN, tmp_path).issue().certificate
    now = datetime.now(UTC)
    assert now - BACKDATING - timedelta(minutes=1) < certificate.not_valid_before_utc < now


def test_certify(ca: CertificateAuthority) -> None:
    """covers: R-10, 6.2.2-1"""
    name = AcpNodeName(DOMAIN, address_field=AddressField.OMITTED)
    certificate = ca.certify(
        key("p256").public_key(),
        name,
        lifetime=DAY,
        now=NOW,
        usages=[ID_KP_CMC_RA, ExtendedKeyUsageOID.SERVER_AUTH],
        extra_names=[x509.IPAddress(IPv6Address("fd00::1")), x509.DNSName("registrar.example.com")],
        subject="registrar",
    )
    assert AcpNodeName.of(certificate) == name
    extensions = certificate.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [IPv6Address("fd00::1")]
    assert names.get_values_for_type(x509.DNSName) == ["registrar.example.com"]
    usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert not usages.critical
    assert list(usages.value) == [ID_KP_CMC_RA, ExtendedKeyUsageOID.SERVER_AUTH]
    assert certificate.subject == x509.Name.from_rfc4514_string("CN=registrar")
    assert extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert validate_path([certificate], ca.anchors, NOW)
    assert list(ca.issued()) == []
    assert json.loads((ca.directory / "state.json").read_text())["next_node_number"]["zone"] == 0


def test_certify_with_little(ca: CertificateAuthority) -> None:
    public_key = key("p256").public_key()
    certificates = [ca.certify(public_key, None, lifetime=DAY, now=NOW) for _ in range(2)]
    assert certificates[0].subject != certificates[1].subject
    assert certificates[0].serial_number != certificates[1].serial_number
    for absent in (x509.SubjectAlternativeName, x509.ExtendedKeyUsage, x509.CRLDistributionPoints):
        with pytest.raises(x509.ExtensionNotFound):
            certificates[0].extensions.get_extension_for_class(absent)
    name = x509.Name.from_rfc4514_string("CN=a,O=b")
    assert ca.certify(public_key, None, lifetime=DAY, now=NOW, subject=name).subject == name
    # One without a subject would need a critical subjectAltName (RFC 5280 section 4.2.1.6).
    assert len(ca.certify(public_key, None, lifetime=DAY, now=NOW, subject=x509.Name([])).subject) == 1
    with pytest.raises(KeyRuleError, match="RSA key of 1024 bits"):
        ca.certify(key("rsa1024").public_key(), None, lifetime=DAY, now=NOW)


def rollover(tmp_path: Path) -> tuple[CertificateAuthority, CertificateAuthority, Issued, Issued]:
    """An old root and a new one in its place, and a node under an issuing CA of each."""
    old = CertificateAuthority.create(DOMAIN, tmp_path / "old", now=NOW)
    before = old.issue_ca(tmp_path / "old-issuing", now=NOW).issue(now=NOW)
    new = CertificateAuthority.create(DOMAIN, tmp_path / "new", predecessor=old, now=NOW)
    new.issue_ca(tmp_path / "new-issuing", now=NOW)
    return old, new, before, CertificateAuthority.open(tmp_path / "new-issuing").issue(now=NOW)


def test_rollover_without_an_outage(tmp_path: Path) -> None:
    """covers: 6.2.4-3, E-4"""
    old, new, before, after = rollover(tmp_path)
    assert before.anchors == old.anchors
    assert after.anchors == (new.certificate, old.certificate)
    assert new.certificate.subject == old.certificate.subject
    for us, peer in ((before, after), (after, before), (after, after)):
        check_own(identity(us), NOW)
        member = check_membership((peer.certificate, *peer.chain), identity(us), when=NOW, channel=True)
        assert member.node_name == peer.node_name
    with pytest.raises(PathError):
        validate_path((after.certificate, after.chain[0]), old.anchors, NOW)
    with_new_alone = (new.certificate,)
    with pytest.raises(PathError):
        validate_path((before.certificate, *before.chain), with_new_alone, NOW)
    old_with_new = new.cross_sign(old.certificate, now=NOW)
    path = validate_path((before.certificate, *before.chain, old_with_new), with_new_alone, NOW)
    assert path[-2:] == (old_with_new, new.certificate)


def test_the_end_of_a_rollover(tmp_path: Path) -> None:
    """covers: 6.2.4-3"""
    _, new, before, after = rollover(tmp_path)
    issuing = CertificateAuthority.open(tmp_path / "new-issuing")
    for authority in (new, issuing):
        authority.forget_predecessors()
        again = CertificateAuthority.open(authority.directory)
        assert again.anchors == authority.anchors == (new.certificate,)
        assert again.chain == authority.chain
    assert new.chain == ()
    assert issuing.chain == (issuing.certificate,)
    last = identity(issuing.issue(now=NOW))
    check_membership((after.certificate, *after.chain), last, when=NOW, channel=True)
    with pytest.raises(MembershipError):
        check_membership((before.certificate, *before.chain), last, when=NOW, channel=True)


def test_the_old_root_expires_in_a_rollover(tmp_path: Path) -> None:
    """covers: 6.2.4-3"""
    old = CertificateAuthority.create(DOMAIN, tmp_path / "old", now=NOW, lifetime=100 * DAY)
    new = CertificateAuthority.create(DOMAIN, tmp_path / "new", predecessor=old, now=NOW)
    issuing = new.issue_ca(tmp_path / "issuing", now=NOW)
    one, other = issuing.issue(now=NOW), issuing.issue(now=NOW)
    for when in (NOW, NOW + 200 * DAY):
        chain = (other.certificate, *other.chain)
        member = check_membership(chain, identity(one), when=when, channel=True)
        # By the shorter path, which the old root has no part in.
        assert member.expires == other.certificate.not_valid_after_utc
    with pytest.raises(PathError, match="expired"):
        validate_path((other.certificate, *other.chain), old.anchors, NOW + 200 * DAY)


def test_a_second_rollover(tmp_path: Path) -> None:
    """Before the first has ended: a node that knows only the first root still finds a path."""
    old, new, before, _ = rollover(tmp_path)
    newest = CertificateAuthority.create(DOMAIN, tmp_path / "newest", predecessor=new, now=NOW)
    issued = newest.issue_ca(tmp_path / "newest-issuing", now=NOW).issue(now=NOW)
    assert issued.anchors == (newest.certificate, new.certificate, old.certificate)
    check_membership((issued.certificate, *issued.chain), identity(before), when=NOW, channel=True)


def test_cross_certificates(ca: CertificateAuthority, tmp_path: Path) -> None:
    other = CertificateAuthority.create("other.example", tmp_path / "other", now=NOW, lifetime=100 * DAY)
    certificate = ca.cross_sign(other.certificate, now=NOW)
    assert certificate.subject == other.certificate.subject
    assert certificate.issuer == ca.certificate.subject
    assert certificate.not_valid_after_utc == other.certificate.not_valid_after_utc
    same = x509.SubjectKeyIdentifier
    assert (
        certificate.extensions.get_extension_for_class(same).value
        == other.certificate.extensions.get_extension_for_class(same).value
    )
    node = other.issue(now=NOW).certificate
    for wrong, reason in (
        (ca.certificate, "of another CA, not of itself"),
        (node, "not of itself or of a node"),
        (Ca.root(kind="rsa1024").certificate, "RSA key of 1024 bits"),
        (Ca.root().certificate, "is not the certificate of a CA"),
    ):
        with pytest.raises(AuthorityError, match=reason):
            ca.cross_sign(wrong, now=NOW)
    with pytest.raises(AuthorityError, match="the other CA's certificate expired"):
        ca.cross_sign(other.certificate, now=NOW + 101 * DAY)
    with pytest.raises(AuthorityError, match=r"a CA for acp.example.com has no successor for other"):
        CertificateAuthority.create("other.example", tmp_path / "third", predecessor=ca, now=NOW)


def test_openssl_agrees_on_a_rollover(tmp_path: Path) -> None:
    """covers: 6.2.4-3"""
    old = CertificateAuthority.create(DOMAIN, tmp_path / "old")
    new = CertificateAuthority.create(DOMAIN, tmp_path / "new", predecessor=old)
    write_node_directory(tmp_path / "node", new.issue_ca(tmp_path / "issuing").issue())
    for anchors in ("old/ca-cert.pem", "new/ca-cert.pem", "node/anchors.pem"):
        verdict = openssl(
            "verify", "-x509_strict", "-purpose", "any",
            "-CAfile", str(tmp_path / anchors),
            "-untrusted", str(tmp_path / "node" / "chain.pem"),
            str(tmp_path / "node" / "cert.pem"),
        )  # fmt: skip
        assert verdict.strip().endswith("OK")


@pytest.mark.parametrize("key_type", ["p256", "p384", "rsa2048"])
def test_openssl_agrees_on_revocation(tmp_path: Path, key_type: str) -> None:
    """covers: 6.2.3-2, 6.2.5.3-1"""
    ca = CertificateAuthority.create(DOMAIN, tmp_path / "ca", key_type)
    url = "http://[fd00::1]:8080/crl"
    now = datetime.now(UTC)
    bad, good = (
        ca.certify(key("p256").public_key(), None, lifetime=DAY, crl_urls=[url], subject=name)
        for name in ("bad", "good")
    )
    for name, certificate in (("bad", bad), ("good", good)):
        (tmp_path / f"{name}.pem").write_bytes(dump_pem([certificate]))
    revoked = [(bad.serial_number, now, x509.ReasonFlags.cessation_of_operation)]
    (tmp_path / "crl.der").write_bytes(ca.make_crl(revoked, 4711, lifetime=DAY))
    crl_pem = openssl("crl", "-inform", "DER", "-in", str(tmp_path / "crl.der"))
    (tmp_path / "crl.pem").write_text(crl_pem)
    text = openssl("crl", "-in", str(tmp_path / "crl.pem"), "-noout", "-text", "-nameopt", "RFC2253")
    assert "Version 2 (0x1)" in text
    assert "CN=ACP Root CA,DC=acp,DC=example,DC=com" in text
    assert "X509v3 CRL Number: \n                4711" in text
    assert "Cessation Of Operation" in text
    assert f"{bad.serial_number:X}" in text
    assert f"URI:{url}" in openssl("x509", "-in", str(tmp_path / "good.pem"), "-noout", "-text")
    anchor = str(ca.directory / "ca-cert.pem")
    arguments = (
        "verify", "-x509_strict", "-crl_check", "-CAfile", anchor, "-CRLfile", str(tmp_path / "crl.pem")
    )  # fmt: skip
    assert openssl(*arguments, str(tmp_path / "good.pem")).strip().endswith("OK")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        openssl(*arguments, str(tmp_path / "bad.pem"))
    assert "certificate revoked" in caught.value.stderr
    store = CrlStore()
    store.add((tmp_path / "crl.der").read_bytes(), ca.anchors, now)
    assert store.status(bad, ca.certificate, now) is RevocationStatus.REVOKED
    assert store.status(good, ca.certificate, now) is RevocationStatus.GOOD


def test_a_crl_by_openssl(tmp_path: Path) -> None:
    """covers: 6.2.3-2"""
    ca = CertificateAuthority.create(DOMAIN, tmp_path / "ca")
    bad, good = (ca.certify(key("p256").public_key(), None, lifetime=DAY) for _ in range(2))
    (tmp_path / "bad.pem").write_bytes(dump_pem([bad]))
    (tmp_path / "index.txt").touch()
    (tmp_path / "crlnumber").write_text("2A\n")
    configuration = tmp_path / "openssl.cnf"
    configuration.write_text(
        f"[ca]\ndefault_ca = ours\n[ours]\n"
        f"database = {tmp_path}/index.txt\ncrlnumber = {tmp_path}/crlnumber\n"
        f"certificate = {ca.directory}/ca-cert.pem\nprivate_key = {ca.directory}/ca-key.pem\n"
        "default_md = sha256\ndefault_crl_hours = 1\ncrl_extensions = crl_ext\n"
        "[crl_ext]\nauthorityKeyIdentifier = keyid:always\n"
    )
    base = ("ca", "-config", str(configuration))
    openssl(*base, "-revoke", str(tmp_path / "bad.pem"), "-crl_reason", "keyCompromise")
    openssl(*base, "-gencrl", "-out", str(tmp_path / "crl.pem"))
    openssl("crl", "-in", str(tmp_path / "crl.pem"), "-outform", "DER", "-out", str(tmp_path / "crl.der"))
    store = CrlStore()
    added = store.add((tmp_path / "crl.der").read_bytes(), ca.anchors, datetime.now(UTC))
    assert added.number == 0x2A
    assert store.status(bad, ca.certificate, datetime.now(UTC)) is RevocationStatus.REVOKED
    assert store.status(good, ca.certificate, datetime.now(UTC)) is RevocationStatus.GOOD
